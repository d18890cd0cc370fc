"""A pool of connections to one database file.

A connection is borrowed for one operation and given back: never shared by two threads at a time, since a transaction
belongs to the connection and another thread could commit it. There is no connection a thread, which would leak with
every thread that ends.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from typing import TYPE_CHECKING, Final

import apsw

from idemreg.errors import StoreCorruptError, StoreError
from idemreg.sqlite.connection import (
    AUTOCHECKPOINT_PAGES,
    FULL,
    NORMAL,
    Connection,
    connect,
    leave_wal,
    set_synchronous,
    translate,
)
from idemreg.sqlite.forking import FORK_NAP_S, fork, inside, is_waited_for, leak, leave, no_fork_meanwhile
from idemreg.sqlite.pages import damage, is_unread

if TYPE_CHECKING:
    from idemreg.clock import Clock

__all__ = ["Pool"]

# More connections than this are closed when they are given back; each holds a page cache.
IDLE_CONNECTIONS: Final = 8

_OF_READS: Final = (apsw.IOError, apsw.CorruptError)


class Pool:
    """Connections that nobody uses at the moment, by their synchronous setting. Thread-safe."""

    def __init__(self, path: str, busy_s: float, clock: Clock, *, checks_pages: bool = False) -> None:
        self.path = path
        self.busy_s = busy_s
        self.levels = (NORMAL, NORMAL)  # the synchronous settings of what need not be durable, and of what must be
        self._clock = clock
        self._checks_pages = checks_pages
        self._closed = False
        self.lost: StoreError | None = None  # why these files must not be touched any more
        self._idle: dict[int, list[Connection]] = {NORMAL: [], FULL: []}
        # Borrowed ones as well: a forked child has to part with each. Weak: what an interrupt left is closed by itself.
        self._all: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._most_idle = IDLE_CONNECTIONS
        self._spoilt: weakref.WeakSet[Connection] = weakref.WeakSet()

    def translate(self, error: apsw.Error | UnicodeDecodeError, connection: Connection | None = None) -> StoreError:
        """The error for one of SQLite's, which the connection has reported."""
        told = translate(error, connection)
        # One that was refused a read would take damage that it meets later for the disk's refusal.
        is_refused = connection is not None and isinstance(error, _OF_READS) and is_unread(connection)
        if is_refused or isinstance(error, apsw.ReadOnlyError):
            self.spoil()
        return told

    def begins(self, connection: Connection) -> bool:
        """Begin a write transaction. False where the connection can only read, and another is to be taken for it."""
        try:
            connection.execute("BEGIN IMMEDIATE")
        except apsw.ReadOnlyError:
            self.spoil()
            return False
        return True

    def exchange(self, connection: Connection, synchronous: int) -> Connection:
        """Give one back that can only read, and take another. What it may wait for is the same."""
        until = connection.patience.until
        self.give_back(connection, synchronous)
        return self.take_until(synchronous, until)

    def spoil(self) -> None:
        """Use none of the present connections again.

        Where SQLite cannot open a file for writing, be it for a moment, it opens it for reading, and the connection
        stays so for good.
        """
        self._spoilt.update(self._all)
        self._most_idle = 0
        for idle in self._idle.values():
            while idle:
                connection = idle.pop()
                self._spoilt.discard(connection)
                self._all.discard(connection)
                connection.close()

    def take(self, synchronous: int) -> Connection:
        """Borrow a connection for one operation. Give it back by `give_back`, whatever happens."""
        me = threading.get_ident()
        idle = self._idle[synchronous]
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                connection = self._open(synchronous)
            try:
                inside[connection] = me
                if not fork.thread or fork.thread == me or is_waited_for(me):
                    return connection
            except BaseException:
                inside.pop(connection, None)
                raise
            # A thread is about to fork: stay out of SQLite until it has.
            del inside[connection]
            idle.append(connection)
            self._clock.sleep(FORK_NAP_S)

    def take_until(self, synchronous: int, until: float | None) -> Connection:
        """The same, for a statement that may wait for another program's until then."""
        connection = self.take(synchronous)
        connection.patience.until = until
        return connection

    def adopt(self, held: list[Connection]) -> None:
        """Take over the one by which the file was brought up, as if it had been opened here: it has read the schema."""
        (connection,) = held
        self._all.add(connection)
        held.clear()
        set_synchronous(connection, NORMAL)
        leave_wal(connection, leaves=False)
        self._tune(connection)
        self._idle[NORMAL].append(connection)

    def _tune(self, connection: Connection) -> None:
        if self.levels[True] == FULL:
            connection.wal_autocheckpoint(AUTOCHECKPOINT_PAGES)

    def _open(self, synchronous: int | None) -> Connection:
        try:
            with no_fork_meanwhile(self._clock):
                self._check_usable()  # behind the wait, in which others may have found the files replaced
                connection = connect(
                    self.path,
                    synchronous=synchronous,
                    busy_s=self.busy_s,
                    clock=self._clock,
                    checks_pages=self._checks_pages,
                )
                try:
                    self._tune(connection)
                    self._all.add(connection)
                except BaseException:
                    connection.close()
                    raise
                return connection
        except apsw.Error as error:
            raise self.translate(error) from error

    def _check_usable(self) -> None:
        if self.lost is not None:
            raise copy.copy(self.lost)
        if self._closed:  # whoever uses a file keeps it open: fail rather than write to one that nobody minds
            msg = f"{self.path} is used after it was closed"
            raise StoreError(msg, hint="This is a fault of idemreg. Please report it.")

    def give_back(self, connection: Connection, synchronous: int) -> None:
        """Put the connection back, rolling back what it did not commit."""
        if connection not in inside:
            return  # taken before a fork: it is the parent's
        connection.patience.until = None
        if connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except apsw.Error:
                self._close_inside(connection)  # which rolls back as well; SQLite did so itself after most errors
                return
        idle = self._idle[synchronous]
        if self._closed or len(idle) >= self._most_idle:
            if self._closed:
                leave_wal(connection)
            self._spoilt.discard(connection)
            self._close_inside(connection)
            if not any(one in inside for one in self._spoilt):
                self._most_idle = IDLE_CONNECTIONS
        else:
            del inside[connection]  # before another thread can take it
            idle.append(connection)

    def lose(self, error: StoreError) -> None:
        """Use these files no more: whoever asks for a connection gets this error, until the files are opened anew."""
        self.lost, self._closed = error, True
        with no_fork_meanwhile(self._clock):
            for idle in self._idle.values():
                while idle:
                    connection = idle.pop()
                    inside[connection] = threading.get_ident()
                    try:
                        leave_wal(connection)
                    finally:
                        self._close_inside(connection)

    def is_whole(self) -> bool:
        """Whether each table is whole, to a connection that has seen nothing of it yet.

        `StoreError` where it cannot be read, which says nothing about it.
        """
        try:
            return self._damage() == []
        except StoreCorruptError:
            return False

    def _damage(self) -> list[str]:
        with no_fork_meanwhile(self._clock), contextlib.closing(self._open(NORMAL)) as connection:
            leave_wal(connection)
            try:
                return damage(connection, "quick_check", 1)
            except apsw.Error as error:
                raise self.translate(error, connection) from error

    def surely_give_back(self, connection: Connection, synchronous: int) -> None:
        """The same once more, where an interrupt may have come in the middle of it. By the thread that took it."""
        if inside.get(connection) == threading.get_ident():
            self.give_back(connection, synchronous)

    def _close_inside(self, connection: Connection) -> None:
        """Close it. No fork meanwhile, since it counts as inside: the child would inherit SQLite's mutexes locked."""
        try:
            self._all.discard(connection)
            connection.close()
        finally:
            inside.pop(connection, None)

    def _part(self) -> None:
        """In a forked child: close the parent's connections that are idle, and leave those at work as they are."""
        for connection in list(self._all):
            if connection in inside or connection.in_transaction:
                leak(connection)
                if inside.get(connection) == threading.get_ident():
                    leave(self.path)
            else:
                with contextlib.suppress(apsw.ConnectionClosedError):
                    leave_wal(connection)
                connection.close()
        self._all = weakref.WeakSet()
        self._idle = {NORMAL: [], FULL: []}
