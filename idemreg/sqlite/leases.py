"""The limits of claims, a row each: see idempotent_lease in schema.sql.

Every function that writes runs inside a transaction that its caller opened. Deadlines are stored as stamps, so that
those of an earlier boot lie before every stamp of this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg.deciding import Deadlines
from idemreg.sqlite.seals import broken, values_hold, values_seal
from idemreg.sqlite.stamps import EPOCH_BITS, LATEST_MS

if TYPE_CHECKING:
    from idemreg.deciding import Limits
    from idemreg.model import Task
    from idemreg.sqlite.connection import Connection

__all__ = ["LeaseRow", "check_seals", "drop", "grant", "read", "remove", "renew"]

_COLUMNS: Final = "task_id, token, until_stamp, overdue_stamp"


class LeaseRow(NamedTuple):
    """The limits of one claim, as stored."""

    task_id: str
    token: int
    until: int | None
    overdue: int | None

    def left_ms(self, now: int) -> int | None:
        """How long its lease is good for, negative once it has expired; None where it has none."""
        return None if self.until is None else _ms_between(now, self.until)

    def overdue_ms(self, now: int) -> int | None:
        """How long its job is overdue, negative before; None where it may take as long as it likes."""
        return None if self.overdue is None else _ms_between(self.overdue, now)


def _ms_between(first: int, then: int) -> int:
    """Milliseconds between two stamps; of different boots as far apart as a stamp can tell, since nobody knows."""
    if first >> EPOCH_BITS == then >> EPOCH_BITS:
        return then - first
    return LATEST_MS if then > first else -LATEST_MS


def grant(connection: Connection, task_id: str, token: int, limits: Limits, now: int) -> Deadlines:
    """Store the limits of a claim that begins at the stamp ``now``, in place of those of an earlier one."""
    until, overdue = (None if span is None else _later(now, span) for span in limits)
    _write(connection, LeaseRow(task_id, token, until, overdue))
    return Deadlines(*(None if stamp is None else stamp & LATEST_MS for stamp in (until, overdue)))


def renew(connection: Connection, row: LeaseRow, lease_ms: int, now: int) -> int:
    """The lease is good for so long from now on; gives the new deadline in milliseconds since this boot."""
    until = _later(now, lease_ms)
    _write(connection, row._replace(until=until))
    return until & LATEST_MS


def _later(now: int, duration_ms: int) -> int:
    return now + min(duration_ms, LATEST_MS - (now & LATEST_MS))


def _write(connection: Connection, row: LeaseRow) -> None:
    connection.execute("INSERT OR REPLACE INTO idempotent_lease VALUES (?, ?, ?, ?, ?)", (*row, values_seal(row)))


def read(connection: Connection, task: Task) -> LeaseRow | None:
    """The limits of the task's present claim; None where it has none."""
    if not task.policy.is_limited:
        return None
    found: Any = connection.execute(
        f"SELECT {_COLUMNS}, seal FROM idempotent_lease WHERE task_id = ? AND token = ?",  # noqa: S608 - constants
        (task.task_id, task.token),
    ).fetchone()
    return None if found is None else _checked(found)


def drop(connection: Connection, row: Task) -> None:
    """What follows the claim that the row tells of has limits of its own, or none."""
    if row.policy.is_limited:
        remove(connection, row.task_id)


def remove(connection: Connection, task_id: str) -> None:
    """The claim has ended, or another follows it."""
    connection.execute("DELETE FROM idempotent_lease WHERE task_id = ?", (task_id,))


def check_seals(connection: Connection) -> None:
    """`StoreCorruptError` where a row is not as it was written. Reads all of them."""
    for row in connection.execute(f"SELECT {_COLUMNS}, seal FROM idempotent_lease"):  # noqa: S608 - constants
        _checked(row)


def _checked(found: Any) -> LeaseRow:  # noqa: ANN401 - a row
    row = LeaseRow._make(found[:-1])
    if not values_hold(row, found[-1]):
        what = f"the lease of task {row.task_id!r}"
        raise broken(what, str(row.task_id))
    return row
