"""The row about the wall clock, under its seal: what `idemreg.clockcheck` keeps between two looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from idemreg.clockcheck.readings import Trusted, Watch
from idemreg.sqlite.seals import broken, values_hold, values_seal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.sqlite.connection import Connection

__all__ = ["note_watch", "to_watch", "watch"]

_READ: Final = (
    "SELECT wall_us, boot_ms, boot_id, newest_us, hardware_us, accepted_us, alarm, of_jump, seal FROM idempotent_clock"
)
_UNTRUSTED: Final = (None, None, None, None, None, 0)


def watch(connection: Connection) -> Watch:
    """What is kept; `StoreCorruptError` where it is not as it was written."""
    rows: list[Any] = connection.execute(_READ).fetchall()
    return to_watch(rows[0]) if rows else Watch()


def to_watch(row: Sequence[Any]) -> Watch:
    """A row but for its id, its seal verified."""
    *values, seal = row
    if not values_hold(values, seal):
        what = "the row about the clock"
        raise broken(what)
    *trusted, alarm, of_jump = values
    return Watch(None if trusted[0] is None else Trusted._make(trusted), alarm, bool(of_jump))


def note_watch(connection: Connection, seen: Watch, new: Watch) -> bool:
    """Keep ``new`` in place of ``seen``. False, and nothing is changed, where another process was faster."""
    if watch(connection) != seen:
        return False
    values = (*(_UNTRUSTED if new.trusted is None else new.trusted), new.alarm, int(new.of_jump))
    connection.execute(
        "INSERT OR REPLACE INTO idempotent_clock VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, values_seal(values))
    )
    return True
