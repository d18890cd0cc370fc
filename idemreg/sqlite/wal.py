"""The -wal of an open registry: its state, checkpoints with a bound, and word of each commit of this process.

SQLite checkpoints at a commit by a hook of the connection (``wal_autocheckpoint`` is one). Whoever watches the -wal
puts his own in its place: commits then move no pages, they only say how long the -wal has become. Since a thread that
listens can die, the hook keeps a net: told so by the watcher, the commit itself checkpoints, as SQLite would have.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, cast

import apsw

from idemreg.sqlite import upkeep
from idemreg.sqlite.connection import Database

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.clock import Clock
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.opening import Opened, Opening

__all__ = ["Wal"]


class Wal:
    """The -wal of the registry's file. Thread-safe."""

    def __init__(self, opening: Opening, clock: Clock) -> None:
        self._opening = opening
        self._clock = clock

    @property
    def is_open(self) -> bool:
        """Whether this process has the file open now."""
        return self._opening.current is not None

    def open(self) -> None:
        """Open the file now, where it is not."""
        self._opening.opened()

    def state(self) -> upkeep.WalState | None:
        """How many pages are in the -wal, and how many of them in the database already; None while it is not open."""
        opened = self._opening.current
        return None if opened is None else opened.database.read(upkeep.wal_state)

    def file_bytes(self) -> int:
        """The size of the -wal's file, which never shrinks but by TRUNCATE and at the last close; 0 where it is not."""
        try:
            return os.stat(f"{self._opening.opened().database.path}-wal").st_size
        except OSError:
            return 0

    def checkpoint(self, mode: upkeep.Mode, *, busy_s: float | None = None) -> upkeep.Checkpoint:
        """Move pages from the -wal into the database; see `upkeep.checkpoint`.

        ``busy_s`` bounds how long it waits for others, in place of the registry's busy time-out: FULL, RESTART and
        TRUNCATE keep every writer out for as long as they wait for readers. Readers that kept it from completing are
        named in the answer.
        """
        database = self._opening.opened().database
        begun = self._clock.monotonic()
        if busy_s is None:
            done = database.read(upkeep.checkpoint, mode)
        else:
            hurried = Database(database.path, busy_s=busy_s, clock=self._clock)
            try:
                done = hurried.read(upkeep.checkpoint, mode)
            finally:
                hurried.close()
        done = done._replace(duration_us=round((self._clock.monotonic() - begun) * 1_000_000))
        if not done.busy:
            return done
        from idemreg.sqlite.readers import wal_readers  # noqa: PLC0415 - only where somebody is in the way

        return done._replace(readers=wal_readers(database.path, self._clock))

    def watch(self, grown: Callable[[int], bool], opened: Callable[[], None]) -> None:
        """From now on ``grown`` hears of each commit of this process, in place of SQLite's own checkpoints.

        It gets the pages in the -wal, and answers whether the commit shall checkpoint by itself. It must be quick and
        never raise: it runs inside the commit. ``opened`` is called whenever the file is opened, and now if it is.
        Connections that are in use at this moment keep SQLite's own checkpoints.
        """
        hook = _hook(grown)

        def when_opened(now_open: Opened) -> None:
            now_open.database.hook_wal(hook)
            opened()

        self._opening.when_opened = when_opened
        if (now_open := self._opening.current) is not None:
            when_opened(now_open)

    def unwatch(self) -> None:
        """Give the checkpoints back to SQLite."""
        self._opening.when_opened = None
        if (now_open := self._opening.current) is not None:
            now_open.database.hook_wal(None)

    def forget(self) -> None:
        """In a forked child: nobody watches what it will open. What the parent has open is not touched."""
        self._opening.when_opened = None


def _hook(grown: Callable[[int], bool]) -> Callable[[apsw.Connection, str, int], int]:
    def hook(connection: apsw.Connection, _name: str, pages: int) -> int:
        if grown(pages):
            # The commit is done: an error here would make its caller believe that it failed.
            with contextlib.suppress(apsw.Error):
                upkeep.checkpoint(cast("Connection", connection), "PASSIVE")
        return int(apsw.SQLITE_OK)

    return hook
