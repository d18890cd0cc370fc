"""Checkpoints: pages moved from the -wal into the database, and how many of them there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from idemreg.sqlite.walindex import FILE_HEADER_BYTES, FRAME_HEADER_BYTES

if TYPE_CHECKING:
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.readers import WalReader

__all__ = ["MODES", "Checkpoint", "Mode", "WalState", "checkpoint", "wal_state"]

Mode = Literal["PASSIVE", "FULL", "RESTART", "TRUNCATE"]
MODES: Final = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")


class Checkpoint(NamedTuple):
    """What a checkpoint did. ``busy``: a reader or a writer kept it from finishing.

    ``wal_pages`` and ``moved_pages`` are counted since the -wal last began anew; -1 where another checkpoint was at
    work. ``readers``: who was reading when it could not finish; None where the system does not tell.
    """

    mode: Mode
    wal_pages: int
    moved_pages: int
    busy: bool
    duration_us: int = 0
    readers: tuple[WalReader, ...] | None = ()


class WalState(NamedTuple):
    """How many pages are in the -wal, how many of them in the database already, and how large a page is."""

    pages: int
    moved: int
    page_bytes: int

    @property
    def used_bytes(self) -> int:
        """The bytes of the -wal that are in use; its file may be larger, since it never shrinks."""
        return FILE_HEADER_BYTES + self.pages * (self.page_bytes + FRAME_HEADER_BYTES)


def checkpoint(connection: Connection, mode: Mode) -> Checkpoint:
    """Move pages from the -wal into the database.

    PASSIVE waits for nobody; FULL and RESTART wait for writers and readers up to the busy time-out; TRUNCATE also
    cuts the -wal to nothing, which makes the next commits dearer (a growing file syncs slower).
    """
    if mode not in MODES:
        msg = f"no checkpoint mode {mode!r}: one of {', '.join(MODES)}"
        raise ValueError(msg)
    # By the pragma: `Connection.wal_checkpoint` raises where it was kept from finishing, and loses the numbers.
    was_kept, wal_pages, moved_pages = _wal_checkpoint(connection, mode)
    return Checkpoint(mode, wal_pages, moved_pages, busy=bool(was_kept) or moved_pages < wal_pages)


def _wal_checkpoint(connection: Connection, mode: str) -> Any:  # noqa: ANN401 - SQLite's row of three integers
    return connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()[0]


def wal_state(connection: Connection) -> WalState:
    """Look at the -wal without moving anything."""
    _, pages, moved = _wal_checkpoint(connection, "NOOP")
    return WalState(max(pages, 0), max(moved, 0), connection.pragma("page_size"))
