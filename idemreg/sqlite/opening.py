"""Opening the files at first use, closing them when the last claim is settled, and what a fork means for both."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, Final

import apsw

from idemreg import oslock
from idemreg.errors import StoreCorruptError, StoreError, StorePathError
from idemreg.lockfile import LockFile
from idemreg.sqlite import files, tasks, upkeep
from idemreg.sqlite.connection import FULL, connect, leave_wal, translate
from idemreg.sqlite.database import Database
from idemreg.sqlite.forking import no_fork_meanwhile
from idemreg.sqlite.owners import Owners
from idemreg.store import Instant

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.clock import Clock

__all__ = ["Opened", "Opening"]

# At the end of a process there is no time to wait for the write lock; an owner's record left behind does no harm.
FAREWELL_S: Final = 0.05


class Opened:
    """All that exists once the files are open."""

    def __init__(
        self,
        location: files.Location,
        lock_file: LockFile,
        row: upkeep.Registered,
        clock: Clock,
        busy_s: float,
        *,
        reads_durable: bool,
    ) -> None:
        self._epoch_bits = row.epoch << upkeep.EPOCH_BITS
        self.floor = row.floor  # as it was last read; a guess that the statements check
        self.lock_file = lock_file
        self.database = Database(location.database, lock_file, busy_s=busy_s, clock=clock, reads_durable=reads_durable)
        self.owners = Owners(lock_file, clock)
        self._clock = clock
        self._wall_us, self._boot_ms = clock.wall_us, clock.boot_ms
        self.wants_close = False
        self.is_closed = False

    def stamp(self) -> tasks.Stamp:
        """What a row that is written now is stamped with."""
        return self._wall_us(), self._epoch_bits | self._boot_ms()

    def instant(self) -> Instant:
        """Now, as ages are counted. This process lives in one boot, so every epoch since its opening is this boot."""
        return Instant(self._wall_us(), self._boot_ms(), self._epoch_bits)

    def close(self) -> None:
        """Close now, or when the last claim is settled: until then the owner's byte speaks for it."""
        self.wants_close = True
        self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close what `close` had to leave open, if nothing needs it any more."""
        if self.wants_close and not self.owners.live:
            self.wants_close = False
            self._farewell()
            self.database.close()
            self.lock_file.close()
            self.is_closed = True

    def _farewell(self) -> None:
        """Take this process's record away: it has no claim left. If that fails, whoever finds it dead will."""
        owner = self.owners.recorded
        if owner is None:
            return
        with contextlib.suppress(StoreError):
            self.database.write(
                lambda connection: tasks.forget_owner(connection, owner), durable=False, busy_s=FAREWELL_S
            )

    def forget(self) -> None:
        """In a forked child: close the lock descriptor (an unlock would drop the parent's locks) and touch nothing."""
        self.lock_file.close()
        self.owners.forget()


class Opening:
    """Opens the registry's files once, at first use, for all threads."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool,
        busy_s: float,
        clock: Clock,
        schema: upkeep.Schema,
        reads_durable: bool,
    ) -> None:
        self.path = files.absolute(path)
        self._create = create
        self._busy_s = busy_s
        self._clock = clock
        self._schema = schema
        self._reads_durable = reads_durable
        self.when_opened: Callable[[Opened], None] | None = None  # also in a forked child, when it opens anew
        self.current: Opened | None = None  # what is open now; `opened` opens it
        self._closing: list[Opened] = []
        self._lock = threading.Lock()
        _openings.add(self)

    def opened(self) -> Opened:
        """The open files; opens them where they are not."""
        opened = self.current
        if opened is None:
            with self._lock:
                opened = self.current
                if opened is None:
                    opened = self._open()
                    if self.when_opened is not None:
                        self.when_opened(opened)
                    self.current = opened
        return opened

    def of_owner(self, owner: int) -> Opened | None:
        """The open files that an owner of this process claimed in; None where the owner is not of this process."""
        opened = self.current
        if opened is not None and opened.owners.is_ours(owner):
            return opened
        return next((closing for closing in self._closing if closing.owners.is_ours(owner)), None)

    def _open(self) -> Opened:
        files.check_sqlite_version(apsw.sqlite_lib_version())
        if not oslock.SUPPORTED:
            msg = "this platform has no open-file-description locks"
            raise StoreError(msg, hint="idemreg runs on Linux.")
        location = files.locate(self.path)
        with no_fork_meanwhile(self._clock):
            return self._open_files(location)

    def _open_files(self, location: files.Location) -> Opened:
        self._check_present(location)
        lock_file = LockFile(location.lock)
        try:
            row = upkeep.bring_up(location, lock_file, self._schema, self._clock, self._busy_s)
            return Opened(location, lock_file, row, self._clock, self._busy_s, reads_durable=self._reads_durable)
        except BaseException:
            lock_file.close()
            raise

    def _check_present(self, location: files.Location) -> None:
        """Refuse what is no registry before a lock file is put beside it."""
        if location.has_content:
            self._check_foreign(location)
        elif not self._create:
            import shlex  # noqa: PLC0415 - errors only

            msg = f"there is no registry at {location.database}"
            raise StorePathError(msg, hint=f"Create it first: idemreg --db {shlex.quote(location.database)} init")

    def _check_foreign(self, location: files.Location) -> None:
        try:
            connection = connect(location.database, synchronous=FULL, busy_s=self._busy_s, clock=self._clock)
            try:
                leave_wal(connection)
                upkeep.check_identity(connection, location.database)
            finally:
                connection.close()
        except apsw.NotADBError as error:
            if os.path.exists(location.lock):
                msg = f"{location.database} is damaged: its header is not a database's"
                raise StoreCorruptError(msg) from error
            msg = f"{location.database} is not a SQLite database"
            raise StorePathError(msg, hint="Choose another path: a registry has a file of its own.") from error
        except apsw.Error as error:
            raise translate(error) from error

    def close(self) -> None:
        """Close what is open. A later use opens anew, as another owner."""
        with self._lock:
            opened, self.current = self.current, None
            self._closing = [closing for closing in self._closing if not closing.is_closed]
            if opened is not None:
                self._closing.append(opened)
        if opened is not None:
            opened.close()

    def forget(self) -> None:
        """In a forked child: the parent's files are not ours."""
        self._lock = threading.Lock()
        for opened in [*self._closing, *([self.current] if self.current else [])]:
            opened.forget()
        self.current, self._closing = None, []


_openings: weakref.WeakSet[Opening] = weakref.WeakSet()


def _close_all() -> None:
    for opening in list(_openings):
        opening.close()


def _forget_all() -> None:
    for opening in list(_openings):
        opening.forget()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
