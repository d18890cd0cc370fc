"""The hot path: the claim of a new task and a plain success, each by one statement that is its own transaction.

A statement takes the write lock before it reads, as BEGIN IMMEDIATE does, and checks by itself what a transaction would
have read before; BEGIN and COMMIT cost 3 µs of the 25 that SQLite takes for a task. Whatever does not fit (a row that
is there, a first claim that brings its owner's record) is left to the general path, which decides. So nothing here is a
rule of its own: both paths use the statements of `tasks`, the general one in the frame of a transaction.

The frame is written out here, not borrowed from `Database`: each Python call between two statements costs twice what
it does alone, since SQLite has had the caches in between. Where another process writes, its turn is waited for, and the
statement is the same. Where another thread does, the statement is combined with what others want to write (see
`writing`); where threads wait for that already, the look goes with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import apsw

from idemreg import faults
from idemreg.errors import StoreBusyError
from idemreg.model import OnCrash, of_fields
from idemreg.sqlite import tasks
from idemreg.sqlite.writing import Ticket, Write
from idemreg.store import Absent, Granted

if TYPE_CHECKING:
    from idemreg.deciding import Wanted
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.opened import Opened
    from idemreg.store import End, Stored

__all__ = ["Claim", "succeed", "success"]

PATIENCE_S: Final = 0.02  # with whoever writes, before a thread looks by itself

SURELY_NEW: Final = 8  # new tasks in a row, after which the next is claimed before it is looked for

RERUN: Final = OnCrash.RERUN  # an enumeration looks up its members by Python code


class Claim(Ticket):
    """The claim of a task that may be new. ``grant`` is what may have been stored, also where an error was raised."""

    __slots__ = ("_found", "_is_durable", "_opened", "_schema_version", "_wanted", "grant", "may_insert")

    def __init__(self, opened: Opened, schema_version: int, wanted: Wanted) -> None:
        self._opened = opened
        self._schema_version = schema_version
        self._wanted = wanted
        self._is_durable = wanted.durable and wanted.policy.on_crash is not RERUN
        self.grant: Granted | None = None
        self.may_insert = False
        self._found: Stored | Absent | None = None

    def begin(self) -> Stored | Granted | Absent | None:
        """Replay the task's stored success, or claim it where it has no row. Durable as `Wanted` says.

        `Absent` where there is no row, and the general path must insert it; None where there is one, to be decided
        about. `SyncFailedError` where the claim is stored, and not durable.
        """
        opened = self._opened
        database = opened.database
        synchronous, gate = database.levels[self._is_durable], database.gate
        if gate.waiting and self._begin_with_others():
            return self._found if self.grant is None else self.grant
        connection = database.take(synchronous)
        try:
            try:
                is_alone = opened.new_in_a_row >= SURELY_NEW and self._insert_at_once(connection)
                if not is_alone:
                    found = self.look(connection)
                    opened.new_in_a_row = opened.new_in_a_row + 1 if self.may_insert else 0
                    if not self.may_insert:
                        return found
                    # Whoever must wait for another process gives the connection back first, see `_insert_in_turn`.
                    is_alone = gate.enter_at_once(self) and self._insert_alone(connection)
            except (apsw.Error, UnicodeDecodeError) as error:  # unsure or not, the job does not start
                raise database.translate(error, connection) from error
            finally:
                if self.may_insert:
                    gate.leave(self)
                database.give_back(connection, synchronous)
        except BaseException:  # an interrupt may have come in the middle of leaving
            gate.leave(self)
            database.surely_give_back(connection, synchronous)
            raise
        if not is_alone and not self._insert_in_turn(synchronous):
            database.write_one(self.write())
        elif self._is_durable and self.grant is not None:
            database.durable()
        return self.grant

    def _may_insert(self) -> bool:
        """Whether the owner's record is there already, which a first claim has to bring."""
        return self._opened.owners.recorded is not None and self._wanted.owner is None

    def _insert_at_once(self, connection: Connection) -> bool:
        """Behind many new tasks the next is as good as new: claim it without a look, if nobody writes right now.

        False where it is not claimed. Where it is not new the statement changes nothing, and costs as much as a look.
        """
        database = self._opened.database
        if not self._may_insert() or not database.gate.enter_at_once(self):
            return False
        if self._wanted.durable and not self._is_durable:
            database.check_disk(durable=True)
        connection.patience.until = 0.0
        try:
            self._insert(connection)
        except (apsw.BusyError, apsw.ReadOnlyError):  # another program writes, or nobody may: a look may do
            self.take_back()
        connection.patience.until = None
        database.gate.leave(self)
        return self.grant is not None

    def _insert_alone(self, connection: Connection) -> bool:
        """Claim it. False where the connection can only read: the general path takes another for it."""
        try:
            self._insert(connection)
        except apsw.ReadOnlyError:
            self._opened.database.spoil()
            return False
        return True

    def _insert_in_turn(self, synchronous: int) -> bool:
        """Wait for the turn of this process, and claim it. False where another thread of it writes, or as above.

        The turn is waited for without a connection: a fork waits for those that have one, and whoever has the turn may
        be waiting for that fork. As in `succeed`.
        """
        database, gate = self._opened.database, self._opened.database.gate
        connection: Connection | None = None
        try:
            try:
                if not gate.try_enter(self):
                    return False
                connection = database.take(synchronous)
                connection.patience.until = gate.until
                return self._insert_alone(connection)
            except (apsw.Error, UnicodeDecodeError) as error:  # as in `begin`
                raise database.translate(error, connection) from error
            finally:
                gate.leave(self)
                if connection is not None:
                    database.give_back(connection, synchronous)
        except BaseException:  # an interrupt may have come in the middle of leaving
            gate.leave(self)
            if connection is not None:
                database.surely_give_back(connection, synchronous)
            raise

    def _begin_with_others(self) -> bool:
        """Both halves in one, carried out by whoever writes; False where that takes too long, or cannot be.

        Where many threads write, each look costs a fight for the interpreter's lock: so they sleep, and one does it for
        all. The price is that a stored answer waits for the commit of others; not for long, should they be stopped.
        """
        opened, wanted = self._opened, self._wanted
        if not self._may_insert():
            return False
        write = Write(lambda on: self._insert_or_look(on, write), durable=self._is_durable, is_atomic=True)
        try:
            opened.database.write_one(write, busy_s=PATIENCE_S)
        except StoreBusyError:
            self.take_back()
            return False
        finally:
            write.forget()
        if self.grant is None and not self._is_durable:
            opened.database.seen_final(durable=wanted.durable)
        return True

    def _insert_or_look(self, connection: Connection, write: Write) -> None:
        if self._wanted.durable and not self._is_durable and not write.round.is_checked:
            self._opened.database.check_disk(durable=True)
            write.round.is_checked = True
        self._insert(connection)
        if self.grant is None:
            self._found = tasks.glance(connection, self._schema_version, self._wanted)

    def look(self, connection: Connection) -> Stored | Absent | None:
        """The first half of `begin`, without the write lock; ``may_insert`` says whether a second is to follow."""
        found = tasks.glance(connection, self._schema_version, self._wanted)
        if type(found) is Absent:
            if self._wanted.durable and not self._is_durable:
                self._opened.database.check_disk(durable=True)
            self.may_insert = self._may_insert()
        elif found is not None:
            self._opened.database.seen_final(durable=self._wanted.durable)
        return found

    def write(self) -> Write:
        """The second half, to be written with others."""
        return Write(self._insert, durable=self._is_durable, is_atomic=True)

    def _insert(self, connection: Connection) -> None:
        self.take_back()
        wanted, opened, owner = self._wanted, self._opened, self._opened.owners.recorded
        live = opened.owners.live
        token = opened.floor + 1
        note = wanted.task_id, token
        if owner is None or note in live:  # of another thread, whose note must stay
            return
        fields = (wanted.task_id, token, 1, owner, None, wanted.policy, False, None, None)
        grant = self.grant = of_fields(Granted, fields)
        live[note] = grant  # before anybody can see the row
        faults.point("claim.in-transaction")
        if not tasks.insert(connection, wanted, self._schema_version, opened.floor, owner, opened.stamp()):
            live.pop(note, None)  # whoever ended the task before under this token may have taken it out
            self.grant = None

    def take_back(self) -> None:
        """Nobody is told of it: whatever row is found of it counts as dropped."""
        if self.grant is not None:
            self._opened.owners.take_back(self.grant)
            self.grant = None


def succeed(opened: Opened, schema_version: int, end: End) -> bool:
    """Store a plain success; durable if that is wanted. False where nothing was changed.

    `CommitUnsureError` where the statement reported an error: it may or may not be stored. `SyncFailedError` where it
    is, and not durable.
    """
    database = opened.database
    synchronous, gate = database.levels[end.durable], database.gate
    ticket, connection, is_stored = Ticket(), None, False
    try:
        try:
            is_alone = gate.try_enter(ticket)
            if is_alone:
                connection = database.take(synchronous)
                connection.patience.until = gate.until
                faults.point("finish.in-transaction")
                is_stored = tasks.succeed(connection, schema_version, end, opened.stamp())
        except apsw.ReadOnlyError:  # as above
            database.spoil()
            is_alone = False
        except apsw.BusyError as error:
            raise database.translate(error) from error
        except apsw.Error as error:
            raise database.unsure(error) from error
        finally:
            gate.leave(ticket)
            if connection is not None:
                database.give_back(connection, synchronous)
    except BaseException:  # an interrupt may have come in the middle of leaving
        gate.leave(ticket)
        if connection is not None:
            database.surely_give_back(connection, synchronous)
        raise
    if not is_alone:
        return bool(database.write_one(success(opened, schema_version, end)))
    if is_stored and end.durable:
        database.durable()
    return is_stored


def success(opened: Opened, schema_version: int, end: End) -> Write:
    """A plain success, to be written with others; its answer is whether anything was changed."""

    def succeed(connection: Connection) -> bool:
        faults.point("finish.in-transaction")
        return tasks.succeed(connection, schema_version, end, opened.stamp())

    return Write(succeed, durable=end.durable, is_atomic=True)
