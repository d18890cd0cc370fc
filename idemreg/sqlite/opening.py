"""Opening the files at first use, closing them when nobody needs them any more, and what a fork means for both.

Threads share the files, and any of them may close them while the others are at work. So each operation is noted as a
user from before its first look at the files to behind its last, and whoever leaves last closes what is to be closed.
A close that took the lock file from under a claim in flight would leave a row whose owner's byte is free: another
process would run the task a second time.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Final

import apsw

from idemreg import oslock
from idemreg.errors import StoreError, StorePathError
from idemreg.lockfile import TOO_MANY_OPEN, LockFile, open_error
from idemreg.placing import refuse_companion
from idemreg.sqlite import files, records, tasks, upkeep
from idemreg.sqlite.connection import connect, leave_wal, translate
from idemreg.sqlite.database import Database
from idemreg.sqlite.forking import is_left, no_fork_meanwhile
from idemreg.sqlite.leases import LATEST_MS
from idemreg.sqlite.making import check_identity, has_content
from idemreg.sqlite.owners import Owners
from idemreg.sqlite.trust import check_trust
from idemreg.store import Instant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from idemreg.store import Granted

__all__ = ["Opened", "Opening"]

# At the end of a process there is no time to wait for the write lock; an owner's record left behind does no harm.
FAREWELL_S: Final = 0.05


class Opened:
    """All that exists once the files are open.

    It is closed once it ``wants_close``, has no user and no claim of its owners is open. Why no user can come too late,
    with the interpreter's lock or without: an operation adds itself to ``users`` and then looks at ``wants_close``;
    whoever closes sets ``wants_close`` and then looks at ``users``. Both use the dictionary's own lock, so one of the
    two sees the other. The hot path does these steps by itself, since calls cost as much as they do.
    """

    is_closed = True  # until all is open: see `__del__`

    def __init__(
        self,
        file: upkeep.Brought,
        lock_file: LockFile,
        making: upkeep.Making,
        *,
        reads_durable: bool,
    ) -> None:
        clock = making.clock
        self.wants_close = False
        self._pid = os.getpid()
        self.users: dict[object, bool] = {}  # one entry an operation; what each is does not matter
        self._deciding = threading.RLock()  # whether it is closed; a finaliser may come back to it in the same thread
        self._epoch_bits = file.row.floor >> upkeep.EPOCH_BITS << upkeep.EPOCH_BITS
        self.floor = file.row.floor  # as it was last read; a guess that the statements check
        self.lock_file = lock_file
        self.database = Database(
            file.path,
            lock_file,
            clock,
            busy_s=making.busy_s,
            reads_durable=reads_durable,
            checks_pages=file.checks_pages,
        )
        try:
            self.owners = Owners(lock_file, clock, self._epoch_bits)
            self._clock = clock
            self._wall_us, self._boot_ms = clock.wall_us, clock.boot_ms
        except BaseException:
            self.database.close()
            raise
        self.is_closed = False
        self.new_in_a_row = 0  # tasks that were looked for, and not there: see `hot.Claim`

    def stamp(self) -> tasks.Stamp:
        """What a row that is written now is stamped with."""
        return self._wall_us(), self._epoch_bits | min(self._boot_ms(), LATEST_MS)

    def instant(self) -> Instant:
        """Now, as ages are counted. This process lives in one boot, so every epoch since its opening is this boot."""
        return Instant(self._wall_us(), min(self._boot_ms(), LATEST_MS), self._epoch_bits)

    # --- who uses it ----------------------------------------------------------------------------------------------

    def enter(self, user: object) -> bool:
        """Keep it open until the user leaves; False where it is to be closed: another is opened in its place."""
        self.users[user] = True
        if not self.wants_close:
            return True
        self.leave(user)
        return False

    def enter_late(self, user: object) -> bool:
        """The same for the end of a claim, which may come after `close`; False where it is closed."""
        with self._deciding:
            if self.is_closed:
                return False
            self.users[user] = True
            return True

    def leave(self, user: object) -> None:
        """The user is done; the last one closes what is to be closed."""
        del self.users[user]
        if self.wants_close:
            self.close_if_idle()

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close now, or when the last user is gone and the last claim settled: the owner's byte speaks for claims."""
        self.wants_close = True
        self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close what `close` had to leave open, if nothing needs it any more."""
        with self._deciding:
            # A copy is made under the lock of the dictionary, its length is not.
            if not self.wants_close or self.is_closed or self.users.copy() or not self.owners.are_idle:
                return
            self.is_closed = True
        self._close_typed()

    def _close(self) -> None:
        try:
            self._farewell()
        finally:
            try:
                self.database.close()
            finally:
                self.lock_file.close()

    def _close_typed(self) -> None:
        try:
            self._close()
        except OSError as error:  # all the others are closed
            msg = f"a file beside {self.lock_file.path} cannot be closed: {error.strerror}"
            hint = "Another part of this process has closed its descriptor (os.closerange, perhaps)."
            raise StoreError(msg, hint=hint if error.errno == errno.EBADF else None) from error

    def __del__(self) -> None:
        """A registry that was dropped without a close leaves no descriptors.

        Whoever could end one of its claims holds the registry: so those that are left were dropped, and count as those
        of a dead owner. At the end of the interpreter a thread may be in the middle of a job: there the kernel closes.
        """
        if not self.is_closed and self._pid == os.getpid() and not sys.is_finalizing():
            self.is_closed = True
            self._close()

    def _farewell(self) -> None:
        """Take this process's record away: it has no claim left. If that fails, whoever finds it dead will."""
        owner = self.owners.recorded
        if owner is None:
            return
        with contextlib.suppress(StoreError):
            self.database.write(
                lambda connection: records.forget_owner(connection, owner), durable=False, busy_s=FAREWELL_S
            )

    def forget(self) -> None:
        """In a forked child: close the lock descriptor (an unlock would drop the parent's locks) and touch nothing."""
        self.is_closed = True
        self._deciding = threading.RLock()  # it may be held by a thread that is not here
        self.lock_file.close()
        self.owners.forget()


class Opening:
    """Opens the registry's files once, at first use, for all threads."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        making: upkeep.Making,
        *,
        create: bool,
        reads_durable: bool,
        unsafe_path: bool,
    ) -> None:
        self.path = files.absolute(path)
        self._unsafe_path = unsafe_path
        self._making = making
        self._create = create
        self._clock = making.clock
        self._reads_durable = reads_durable
        # Gives what is called at each opening, also in a forked child. Weak: a circle would keep a registry that was
        # dropped open until the garbage is collected.
        self.when_opened: Callable[[], Callable[[Opened], None] | None] = _nobody
        self.after_write: Callable[[], None] = _nobody  # called behind each write, outside the gate
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
                    opened.database.after_write = self.after_write
                    if (when_opened := self.when_opened()) is not None:
                        when_opened(opened)
                    self.current = opened
        return opened

    @contextlib.contextmanager
    def using(self, owner: int | None = None) -> Iterator[Opened]:
        """The open files, for one operation; those that the owner lives in, if it does. Opens them where needed."""
        user = object()
        opened = None if owner is None else self._enter_of(user, owner)
        while opened is None:
            opened = self.opened()
            if not opened.enter(user):  # closed since
                opened = None
        try:
            yield opened
        finally:  # as `Opened.leave`, at whose entry an interrupt would leave the user inside
            del opened.users[user]
            if opened.wants_close:
                opened.close_if_idle()

    @contextlib.contextmanager
    def using_open(self) -> Iterator[Opened | None]:
        """The files where they are open now, for one operation."""
        user, opened = object(), self.current
        if opened is None or not opened.enter(user):
            yield None
            return
        try:
            yield opened
        finally:  # as above
            del opened.users[user]
            if opened.wants_close:
                opened.close_if_idle()

    @contextlib.contextmanager
    def using_of(self, owner: int) -> Iterator[Opened | None]:
        """The files that an owner claimed in, for one operation; None where it is not of this process, or ended."""
        user = object()
        opened = self._enter_of(user, owner)
        try:
            yield opened
        finally:  # as above
            if opened is not None:
                del opened.users[user]
                if opened.wants_close:
                    opened.close_if_idle()

    def _enter_of(self, user: object, owner: int) -> Opened | None:
        opened = self.of_owner(owner)
        return opened if opened is not None and opened.enter_late(user) else None

    def of_owner(self, owner: int) -> Opened | None:
        """The files that an owner of this process claimed in; None where the owner is not of this process.

        They may be closed at any moment, unless one of its claims is open.
        """
        return next((opened for opened in self._of_this_process() if opened.owners.is_ours(owner)), None)

    def let_go(self, task_id: str, token: int) -> None:
        """The claim is settled: nobody in this process holds it any more. What was kept open for it is closed."""
        for opened in self._of_this_process():
            opened.owners.let_go(task_id, token)
            if opened.wants_close:
                opened.close_if_idle()

    def take_back(self, grant: Granted) -> None:
        """The claim is not stored; see `Owners.take_back`."""
        for opened in self._of_this_process():
            opened.owners.take_back(grant)

    def _of_this_process(self) -> list[Opened]:
        current = self.current  # before those that it may become one of
        some = [] if current is None else [current]
        return [*some, *(closing for closing in self._closing if not closing.is_closed)]

    def _open(self) -> Opened:
        files.check_sqlite_version(apsw.sqlite_lib_version())
        if not oslock.SUPPORTED:
            msg = "this platform has no open-file-description locks"
            raise StoreError(msg, hint="idemreg runs on Linux.")
        location = files.locate(self.path)
        check_trust(self.path, location.database, is_forced=self._unsafe_path)
        if is_left(location.database):
            msg = f"this process was forked while its parent was inside {location.database}, so it has no locks on it"
            raise StoreError(
                msg, hint="Fork outside of claim.transaction(), or start a new program (subprocess, spawn)."
            )
        with no_fork_meanwhile(self._clock):
            return self._open_files(location)

    def _open_files(self, location: files.Location) -> Opened:
        self._check_present(location)
        lock_file = LockFile(location.lock)
        try:
            file = upkeep.bring_up(location, lock_file, self._making)
            return Opened(file, lock_file, self._making, reads_durable=self._reads_durable)
        except BaseException as error:
            lock_file.close()
            if isinstance(error, OSError):
                raise _open_error(location.database, error) from error
            raise

    def _check_present(self, location: files.Location) -> None:
        """Refuse what is no registry before a lock file is put beside it. Where there is one, `bring_up` refuses it."""
        if location.has_content:
            if not _is_written(location.lock):
                self._check_foreign(location)
        elif not self._create:
            import shlex  # noqa: PLC0415 - errors only

            msg = f"there is no registry at {location.database}"
            raise StorePathError(msg, hint=f"Create it first: idemreg --db {shlex.quote(location.database)} init")
        else:
            refuse_companion(location.database)

    def _check_foreign(self, location: files.Location) -> None:
        try:
            connection = connect(location.database, synchronous=None, busy_s=self._making.busy_s, clock=self._clock)
            try:
                leave_wal(connection)
                check_identity(connection, location.database)
            finally:
                connection.close()
        except apsw.NotADBError as error:
            msg = f"{location.database} is not a SQLite database"
            raise StorePathError(msg, hint="Choose another path: a registry has a file of its own.") from error
        except (apsw.Error, UnicodeDecodeError) as error:
            raise translate(error) from error

    def close(self) -> None:
        """Close what is open, once nobody uses it. A later use opens anew, as another owner."""
        with self._lock:
            opened = self.current
            if opened is None:
                return
            # First there, then not here any more: nobody looks for an owner of this process in vain.
            self._closing = [*(closing for closing in self._closing if not closing.is_closed), opened]
            self.current = None
        opened.close()

    def forget(self) -> None:
        """In a forked child: the parent's files are not ours."""
        self._lock = threading.Lock()
        for opened in [*self._closing, *([self.current] if self.current else [])]:
            opened.forget()
        self.current, self._closing = None, []


def _open_error(path: str, error: OSError) -> StoreError:
    """The error of what is done to open the files: whatever the disk reports is no fault of the path."""
    if error.errno in TOO_MANY_OPEN:
        return open_error(path, error)
    return StoreError(f"cannot open {path}: {error.strerror}")


def _is_written(path: str) -> bool:
    """Whether there is a file with anything in it. No where the disk cannot tell: whoever opens it then says why."""
    try:
        return has_content(path)
    except OSError:
        return False


def _nobody() -> None:
    """Nobody wants to hear of it."""


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
