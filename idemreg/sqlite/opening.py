"""Opening the files at first use, and closing them: whoever comes later opens them anew, and so does a forked child."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import threading
import weakref
from typing import TYPE_CHECKING

import apsw

from idemreg import oslock
from idemreg.errors import StoreError, StorePathError
from idemreg.lockfile import TOO_MANY_OPEN, LockFile, open_error, tells_of_database
from idemreg.placing import refuse_companion
from idemreg.sqlite import files, upkeep
from idemreg.sqlite.connection import Connection, connect, leave_wal, translate
from idemreg.sqlite.forking import is_left, no_fork_meanwhile
from idemreg.sqlite.making import check_identity, has_content
from idemreg.sqlite.opened import Opened
from idemreg.sqlite.trust import check_trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from idemreg.clock import Clock
    from idemreg.keyed import KeyNote
    from idemreg.store import Granted

__all__ = ["Opening"]


class Opening:
    """Opens the registry's files once, at first use, for all threads."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool,
        busy_s: float,
        clock: Clock,
        schema: upkeep.Schema = upkeep.SCHEMA,
        reads_durable: bool = True,
        unsafe_path: bool = False,
        key_note: KeyNote | None = None,
        page_checksums: bool = False,
    ) -> None:
        """``reads_durable``: nothing is answered from a final row that a power cut could take back.

        ``unsafe_path``: files and folders are used that others could plant or swap; see `sqlite/trust.py`.
        ``key_note``: of the key of the checksums that the callers make; see `idemreg.keyed`. ``page_checksums``: of a
        file that is made now; see `sqlite/pages.py`.
        """
        self.path = files.absolute(path)
        self.clock = clock
        self.schema_version = schema.version
        self.key_note = key_note
        self._unsafe_path = unsafe_path
        self._making = upkeep.Making(schema, clock, busy_s, key_note, page_checksums)
        self._create = create
        self._reads_durable = reads_durable
        # What is called behind each write, outside the gate; and what gives that which is called at each opening, also
        # in a forked child. Weak: a circle would keep a registry that was dropped open until the garbage is collected.
        self._served: tuple[Callable[[], None], Callable[[], Callable[[Opened], None] | None]] = _nobody, _nobody
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
                    served = self._tell(opened)
                    try:
                        self.current = opened
                        if served is not self._served:  # who came meanwhile may have seen nothing open
                            self._tell(opened)
                    except BaseException:  # an interrupt: others use the files by now, and nobody would tell them again
                        self._tell(opened)
                        raise
        return opened

    def serve(
        self, after_write: Callable[[], None], when_opened: Callable[[], Callable[[Opened], None] | None]
    ) -> None:
        """Call these from now on, also of files that a look has opened already. Takes no lock; twice is once.

        ``when_opened`` is a weak reference: called, it gives what to call, or None.
        """
        self._served = after_write, when_opened
        if (opened := self.current) is not None:
            self._tell(opened)

    def _tell(self, opened: Opened) -> object:
        """Have the files call whoever is served, and tell him of them. Gives who that was, for another may come."""
        served = self._served
        after_write, when_opened = served
        opened.database.after_write = after_write
        if (tell := when_opened()) is not None:
            tell(opened)
        return served

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
        with no_fork_meanwhile(self.clock):
            return self._open_files(location)

    def _open_files(self, location: files.Location) -> Opened:
        self._check_present(location)
        held: list[Connection] = []
        lock_file = LockFile(location.lock)
        try:
            lock_file.open()
            file = upkeep.bring_up(location, lock_file, self._making, held)
            return Opened(file, lock_file, self._making, reads_durable=self._reads_durable)
        except BaseException as error:
            for connection in held:  # nobody has taken it over
                connection.close()
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
            if tells_of_database(location.lock):
                raise upkeep.vanished(location)
            import shlex  # noqa: PLC0415 - errors only

            msg = f"there is no registry at {location.database}"
            raise StorePathError(msg, hint=f"Create it first: `idemreg --db {shlex.quote(location.database)} init`.")
        else:
            refuse_companion(location.database)

    def _check_foreign(self, location: files.Location) -> None:
        try:
            connection = connect(location.database, synchronous=None, busy_s=self._making.busy_s, clock=self.clock)
            try:
                leave_wal(connection)
                check_identity(connection, location.database)
            except apsw.CorruptError as error:
                raise translate(error, connection) from error
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
            left = [closing for closing in self._closing if not closing.is_closed]
            if (opened := self.current) is not None:
                left.insert(0, opened)
            # First there, then not here any more: nobody looks for an owner of this process in vain.
            self._closing, self.current = left, None
        for closing in left:  # also what an earlier call has left, for which there was no memory
            closing.close()

    def forget(self) -> None:
        """In a forked child: the parent's files are not ours."""
        self._lock = threading.Lock()
        for opened in [*self._closing, *([self.current] if self.current else [])]:
            opened.forget()
        self.current, self._closing = None, []


def _open_error(path: str, error: OSError) -> StoreError:
    """The error of what is done to open the files: whatever the disk reports is no fault of the path."""
    if error.errno == errno.ENOSPC or error.errno in TOO_MANY_OPEN:
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
