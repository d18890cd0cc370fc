"""The marks of serial numbers: a row a prefix, under its seal. A mark only grows, and an instance is given once.

A copy of the file has the original's marks, and both may be in use: by the same clock each would give the numbers of
the other, were its next instance the same. So the instances of every prefix are drawn anew where the file is new to its
lock file, or may be an older copy, or the machine has started anew (`upkeep`); the marks stay.

Every function runs inside a transaction that its caller opened.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg import faults
from idemreg.blocks import INSTANCE_BITS, MICROSECOND_BITS, Block
from idemreg.errors import StoreCorruptError
from idemreg.sqlite import records
from idemreg.sqlite.seals import broken, values_hold, values_seal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.sqlite.connection import Connection

__all__ = ["Mark", "all_marks", "draw_anew", "mark_of", "reserve", "to_mark"]

# Also where the clock does not move: so many microseconds, each with the 1,024 serials of its count.
COUNTED_US: Final = 64

# How far beyond the mark a clock is believed. One that jumps to the year 9999 would carry the mark there, and leave no
# room above it; so serials count on instead, until it is set right.
LEAP_US: Final = 20 * 365 * 86_400 * 1_000_000
WRITTEN_US: Final = 1_767_225_600_000_000  # 2026-01-01, when this was: a prefix without a mark counts from here
# Whatever the clock says, above this there is room for a serial a nanosecond over thirty years.
LAST_BELIEVED_US: Final[int] = 2**MICROSECOND_BITS - 2**50

_INSTANCES: Final[int] = 2**INSTANCE_BITS


class Mark(NamedTuple):
    """A prefix: the instance of who opened it last, and the first microsecond that nobody has reserved."""

    prefix: str
    instance: int
    mark_us: int


def reserve(
    connection: Connection, schema_version: int, prefix: str, now_us: int, ahead_us: int, held: Block | None
) -> Block:
    """Reserve a block; see `Blocks.reserve_serials`."""
    records.floor(connection, schema_version)
    mark = mark_of(connection, prefix)
    last = Mark(prefix, _drawn(), 0) if mark is None else mark
    ceiling_us = min(max(last.mark_us, WRITTEN_US) + LEAP_US, LAST_BELIEVED_US)
    believed_us = now_us if now_us < ceiling_us else 0
    if held is not None and last.mark_us >= held.until_us:
        instance, begin_us = held.instance, max(held.begin_us, believed_us)
    else:  # it is new; or its mark is gone: the file is another by now, or an older copy
        instance = last.instance if mark is None else (last.instance + 1) % _INSTANCES
        last = last._replace(instance=instance)
        begin_us = max(last.mark_us, believed_us, 0 if held is None else held.begin_us)
    until_us = max(believed_us + ahead_us, begin_us + COUNTED_US)
    _write(connection, last._replace(mark_us=max(last.mark_us, until_us)))
    faults.point("serial.in-transaction")
    return Block(instance, begin_us, until_us, ceiling_us)


def draw_anew(connection: Connection) -> None:
    """From now on each prefix counts its instances up from another random one.

    A row whose seal is broken stays as it is, and is told when its prefix is asked for.
    """
    for row in connection.execute("SELECT * FROM idempotent_serial").fetchall():
        with contextlib.suppress(StoreCorruptError):
            _write(connection, to_mark(row)._replace(instance=_drawn()))


def _drawn() -> int:
    """An instance to count up from: random, so that two registries, or a file and its copy, hardly meet."""
    return int.from_bytes(os.urandom(8), "big") % _INSTANCES


def mark_of(connection: Connection, prefix: str) -> Mark | None:
    """The prefix's row; None where nobody has opened it yet."""
    row: Any = connection.execute("SELECT * FROM idempotent_serial WHERE prefix = ?", (prefix,)).fetchone()
    return None if row is None else to_mark(row)


def all_marks(connection: Connection, limit: int) -> list[Mark]:
    """Some of the rows."""
    rows = connection.execute("SELECT * FROM idempotent_serial ORDER BY prefix LIMIT ?", (limit,)).fetchall()
    return [to_mark(row) for row in rows]


def to_mark(row: Sequence[Any]) -> Mark:
    """A row, its seal verified."""
    mark = Mark._make(row[:-1])
    if not values_hold(mark, row[-1]):
        what = f"the mark of the serials {mark.prefix!r}"
        raise broken(what)
    return mark


def _write(connection: Connection, mark: Mark) -> None:
    connection.execute("INSERT OR REPLACE INTO idempotent_serial VALUES (?, ?, ?, ?)", (*mark, values_seal(mark)))
