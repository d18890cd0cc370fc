"""Connections to one database file, and the one write transaction.

A connection is borrowed for one operation and given back: never shared by two threads at a time, since a transaction
belongs to the connection and another thread could commit it. There is no connection a thread, which would leak with
every thread that ends.

Every write is a BEGIN IMMEDIATE. A read that turns into a write fails at once with BUSY_SNAPSHOT after another's
commit, and the busy handler is not even asked.

Fork. A child must not use the parent's connections: it could commit the parent's open transaction. Nor may it close
them, which writes to the shared -shm. It forgets them (see `_leak`), and opens its own at its next call. The fork
itself waits, for a moment, until no other thread is inside SQLite: the child would inherit SQLite's mutexes locked, and
its note, shared by all connections of a process to one file, of the locks that the parent's connection held. For that
reason a child that is forked inside `claim.transaction()` itself cannot write to the file: it finds it busy.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar

import apsw

from idemreg.clock import Clock
from idemreg.errors import (
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StorePathError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    WalHook = Callable[[apsw.Connection, str, int], int]

__all__ = [
    "FULL",
    "NORMAL",
    "CommitUnsureError",
    "Connection",
    "Database",
    "commit",
    "connect",
    "no_fork_meanwhile",
    "translate",
    "unsure",
]

P = ParamSpec("P")
T = TypeVar("T")

NORMAL: Final = 1  # values of PRAGMA synchronous
FULL: Final = 2

# In pages: the size at which a commit checkpoints. SQLite's own default, set since a build may have another.
AUTOCHECKPOINT_PAGES = 1_000

# Waits for another process's lock: the first nap is about one commit, the longest keeps a waiter from falling behind.
FIRST_NAP_S = 0.0002
LONGEST_NAP_S = 0.005
NAP_GROWTH = 1.6

# More connections than this are closed when they are given back; each holds a page cache.
IDLE_CONNECTIONS = 8

# How long a fork waits for other threads to leave SQLite.
FORK_PATIENCE_S = 1.0
FORK_NAP_S = 0.0002


class CommitUnsureError(StoreError):
    """COMMIT reported an error: the transaction may be stored or not. Settled by reading again."""

    code = "commit-unsure"


class Connection(apsw.Connection):
    """A connection with a cursor for the hot path: a new cursor for each statement costs a quarter of a microsecond.

    What the cursor gives must be fetched whole at once: a statement left in the middle keeps its read transaction open.
    """

    hot: apsw.Cursor


def connect(path: str, *, synchronous: int, busy_s: float, clock: Clock, create: bool = False) -> Connection:
    """Open a connection with our settings, each of them read back."""
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    connection = Connection(path, flags=flags)
    try:
        connection.set_busy_handler(_busy_handler(busy_s, clock))  # before the first statement
        _set(connection, "synchronous", synchronous)
        _set(connection, "wal_autocheckpoint", AUTOCHECKPOINT_PAGES)
        _set(connection, "trusted_schema", 0)
        connection.hot = connection.cursor()
    except BaseException:
        connection.close()
        raise
    return connection


def _set(connection: Connection, pragma: str, value: int) -> None:
    # Pragma by pragma: several in one execute() stop at the first row, and the rest silently never runs.
    connection.pragma(pragma, value)
    if connection.pragma(pragma) != value:
        msg = f"SQLite does not accept {pragma}={value}"
        raise StoreError(msg)


def _busy_handler(busy_s: float, clock: Clock) -> Callable[[int], bool]:
    """Wait in naps up to the time-out. SQLite's own wait naps up to 100 ms, which starves, and sits out Ctrl-C."""
    deadline = 0.0

    def wait(tries: int) -> bool:
        nonlocal deadline
        now = clock.monotonic()
        if tries == 0:
            deadline = now + busy_s
        elif now >= deadline:
            return False
        clock.sleep(min(FIRST_NAP_S * NAP_GROWTH ** min(tries, 20), LONGEST_NAP_S))
        return True

    return wait


def translate(error: apsw.Error) -> StoreError:
    """The idemreg error for one of SQLite's. The caller chains it."""
    kinds: tuple[tuple[tuple[type[apsw.Error], ...], type[StoreError]], ...] = (
        ((apsw.BusyError, apsw.LockedError), StoreBusyError),
        ((apsw.FullError,), StoreFullError),
        ((apsw.CorruptError, apsw.NotADBError, apsw.FormatError), StoreCorruptError),
        ((apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError), StorePathError),
    )
    for sources, target in kinds:
        if isinstance(error, sources):
            return target(f"SQLite: {error}")
    return StoreError(f"SQLite: {error}")


class Database:
    """One database file: a pool of connections and the write transaction. Thread-safe; touches nothing until used."""

    def __init__(self, path: str, *, busy_s: float, clock: Clock) -> None:
        self.path = path
        self._busy_s = busy_s
        self._clock = clock
        self._wal_hook: WalHook | None = None
        self._reset()
        _databases.add(self)

    def _reset(self) -> None:
        self._idle: dict[int, list[Connection]] = {NORMAL: [], FULL: []}
        self._write_lock = threading.Lock()
        self._writer = 0
        self._closed = False

    # --- reading and writing ------------------------------------------------------------------------------------

    def read(self, body: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` on a connection, outside any transaction. It must fetch fully: an open read blocks the WAL."""
        connection = self.take(NORMAL)
        try:
            return body(connection, *args, **kwargs)
        except apsw.Error as error:
            raise translate(error) from error
        finally:
            self.give_back(connection, NORMAL)

    def write(self, body: Callable[[Connection], T], *, synchronous: int) -> T:
        """Run ``body`` in one write transaction, and commit. With `FULL` the commit is on disk when this returns.

        An error of ``body`` rolls everything back. `StoreBusyError` when the write lock is not free in time;
        `CommitUnsureError` when COMMIT itself reports an error.
        """
        turn = self._enter_turn()
        try:
            connection = self.take(synchronous)
            try:
                connection.execute("BEGIN IMMEDIATE")
                answer = body(connection)
                commit(connection)
                return answer
            except apsw.Error as error:
                raise translate(error) from error
            finally:
                self.give_back(connection, synchronous)
        finally:
            self.leave_turn(turn)

    @contextlib.contextmanager
    def long_write(self, *, synchronous: int) -> Iterator[Connection]:
        """A write transaction around user code, which commits by `commit`; rolled back where it did not."""
        turn = self._enter_turn()
        try:
            connection = self.take(synchronous)
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
            except apsw.Error as error:
                raise translate(error) from error
            finally:
                self.give_back(connection, synchronous)
        finally:
            self.leave_turn(turn)

    @property
    def is_writing(self) -> bool:
        """Whether a thread of this process is writing now."""
        return self._write_lock.locked()

    # --- one writer of this process at a time -------------------------------------------------------------------

    def _enter_turn(self) -> threading.Lock:
        """Threads queue here, and not in SQLite's back-off."""
        me = threading.get_ident()
        if self._writer == me:
            msg = "this thread has a claim.transaction() open, and another write would wait for it for ever"
            raise StoreBusyError(msg, hint="Claim and finish other tasks before or after the transaction's block.")
        turn = self._write_lock
        if not turn.acquire(timeout=self._busy_s):
            msg = f"another thread of this process has been writing for {self._busy_s:g} s"
            raise StoreBusyError(msg)
        self._writer = me
        return turn

    def try_turn(self) -> threading.Lock | None:
        """The turn to write if nobody has it. Give it back by `leave_turn`."""
        turn = self._write_lock
        if not turn.acquire(False):  # noqa: FBT003 - a keyword costs on the hot path
            return None
        self._writer = threading.get_ident()
        return turn

    def leave_turn(self, turn: threading.Lock) -> None:
        """Let the next thread write."""
        if self._write_lock is turn:  # a forked child has a turn of its own by now
            self._writer = 0
        turn.release()

    # --- the pool -----------------------------------------------------------------------------------------------

    def take(self, synchronous: int) -> Connection:
        """Borrow a connection for one operation. Give it back by `give_back`, whatever happens."""
        me = threading.get_ident()
        idle = self._idle[synchronous]
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                connection = self._open(synchronous)
            _inside[connection] = me
            if not _fork.thread or _fork.thread == me:
                return connection
            # A thread is about to fork: stay out of SQLite until it has.
            del _inside[connection]
            idle.append(connection)
            self._clock.sleep(FORK_NAP_S)

    def _open(self, synchronous: int) -> Connection:
        ticket = object()
        _inside[ticket] = threading.get_ident()
        try:
            connection = connect(self.path, synchronous=synchronous, busy_s=self._busy_s, clock=self._clock)
            if self._wal_hook is not None:
                connection.set_wal_hook(self._wal_hook)  # in place of `wal_autocheckpoint`, which is such a hook
            return connection
        except apsw.Error as error:
            raise translate(error) from error
        finally:
            _inside.pop(ticket, None)

    def give_back(self, connection: Connection, synchronous: int) -> None:
        """Put the connection back, rolling back what it did not commit."""
        if _inside.pop(connection, None) is None:
            return  # taken before a fork: it is the parent's
        if connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except apsw.Error:
                connection.close()  # rolls back as well; SQLite did so itself after most errors
                return
        idle = self._idle[synchronous]
        if self._closed or len(idle) >= IDLE_CONNECTIONS:
            connection.close()
        else:
            idle.append(connection)

    def hook_wal(self, hook: WalHook | None) -> None:
        """Give the connections opened from now on this hook at each commit; None = SQLite's own checkpoints."""
        self._wal_hook = hook
        for idle in self._idle.values():
            with contextlib.suppress(IndexError):  # another thread took the last one
                while idle:
                    idle.pop().close()

    def close(self) -> None:
        """Close the idle connections now, and the borrowed ones as they come back."""
        self._closed = True
        for idle in self._idle.values():
            while idle:
                idle.pop().close()

    def forget(self) -> None:
        """In a forked child: leave every connection to the parent."""
        for idle in self._idle.values():
            for connection in idle:
                _leak(connection)
        self._reset()


def commit(connection: Connection) -> None:
    """Commit; `CommitUnsureError` where COMMIT reports an error."""
    try:
        connection.execute("COMMIT")
    except apsw.Error as error:
        raise unsure(error) from translate(error)


def unsure(error: apsw.Error) -> CommitUnsureError:
    """The error for one that a COMMIT, or a statement that commits by itself, has reported."""
    return CommitUnsureError(f"the commit reported an error: {error}")


# --- fork -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_fork_meanwhile(clock: Clock) -> Iterator[None]:
    """While a file is opened or made: a fork of another thread waits for the end of it, and this for the fork's."""
    ticket, me = object(), threading.get_ident()
    while True:
        _inside[ticket] = me
        if not _fork.thread or _fork.thread == me:
            break
        del _inside[ticket]
        clock.sleep(FORK_NAP_S)
    try:
        yield
    finally:
        _inside.pop(ticket, None)


class _Fork:
    """The thread that is about to fork; 0 = none."""

    thread = 0


_fork = _Fork()

# What is inside SQLite now (a connection, or a ticket while one is being opened), and in which thread.
_inside: dict[object, int] = {}

_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _before_fork() -> None:
    me = threading.get_ident()
    _fork.thread = me
    clock = Clock()
    deadline = clock.monotonic() + FORK_PATIENCE_S
    while any(thread != me for thread in list(_inside.values())) and clock.monotonic() < deadline:
        clock.sleep(FORK_NAP_S)


def _after_fork_in_parent() -> None:
    _fork.thread = 0


def _after_fork_in_child() -> None:
    _fork.thread = 0
    for connection in _inside:
        _leak(connection)
    _inside.clear()
    for database in list(_databases):
        database.forget()


def _leak(connection: object) -> None:
    """Make the object immortal, so that not even the interpreter's exit closes the parent's connection."""
    import ctypes  # noqa: PLC0415 - 1.4 ms that only forked children pay

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
