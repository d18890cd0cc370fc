"""One database file: reads, and write transactions.

Every write is a BEGIN IMMEDIATE, or one statement that is its own transaction (see `hot`). A read that turns into a
write fails at once with BUSY_SNAPSHOT after another's commit, and the busy handler is not even asked. Who writes when
is `writing.Gate`'s to say; what makes a commit durable is `syncing.GroupSync`. Where SQLite does not show its index,
durable writes are SQLite's own synchronous=FULL.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import apsw

from idemreg.errors import StoreBusyError, StoreError
from idemreg.sqlite import noted
from idemreg.sqlite.connection import (
    FULL,
    NORMAL,
    CommitUnsureError,
    Connection,
    is_sync_failure,
    leave_wal,
)
from idemreg.sqlite.forking import forgets, inside, no_fork_meanwhile
from idemreg.sqlite.guard import Guard
from idemreg.sqlite.long_write import LongWrite
from idemreg.sqlite.pages import is_damage
from idemreg.sqlite.pool import Pool
from idemreg.sqlite.syncing import GroupSync
from idemreg.sqlite.walindex import WalIndex
from idemreg.sqlite.writing import Gate, Write, carry_out, tell
from idemreg.turn import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from idemreg.clock import Clock
    from idemreg.lockfile import LockFile
    from idemreg.sqlite.upkeep import Brought

__all__ = ["Database"]

P = ParamSpec("P")
T = TypeVar("T")


class Database(Pool):
    """One database file, open. Thread-safe."""

    def __init__(self, file: Brought, lock_file: LockFile, clock: Clock, *, busy_s: float, reads_durable: bool) -> None:
        super().__init__(file.path, busy_s, clock, checks_pages=file.checks_pages)
        self.reads_durable = reads_durable  # of reads that belong to no call; a call says it itself
        self.after_commit: Callable[[], None] = _nothing
        self.after_write: Callable[[], None] = _nothing  # this thread has left the gate; not on the hot path
        self._anchor: Connection | None = None
        self.lock_file = lock_file
        self.guard: Guard | None = None
        self.index: WalIndex | None = None
        self.sync: GroupSync | None = None
        self.turns = Turns(lock_file.path, clock)
        try:
            self.gate = Gate(self.turns.write, clock, busy_s)
            self._look_at_index(lock_file)
            self.adopt(file.held)
            forgets(self)
        except apsw.Error as error:
            with contextlib.closing(self):
                raise self.translate(error, self._anchor) from error
        except BaseException:
            self.close()
            raise

    def _look_at_index(self, lock_file: LockFile) -> None:
        """Keep a connection for as long as the file is open: it keeps the -wal in being, and its index mapped."""
        # For this SQLite reads no more than the header of the file. Any other statement has it read the schema: a third
        # of what it takes to open a connection.
        self._anchor = self._open(None)
        self._anchor.pragma("user_version")
        guard = self.guard = Guard(self.path, lock_file, self._clock)
        guard.lose, guard.is_whole, self.gate.look = self.lose, self.is_whole, guard.before_writing
        index = WalIndex(self._anchor)
        if index.is_known:
            self.index = index
            self.sync = GroupSync(lock_file, f"{self.path}-wal", index, self.turns.sync, self._clock, guard)
        else:
            self.levels = (NORMAL, FULL)

    # --- reading --------------------------------------------------------------------------------------------------

    def read(self, body: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` on a connection, outside any transaction. It must fetch fully: an open read blocks the WAL."""
        connection = self.take(NORMAL)
        try:
            try:
                return body(connection, *args, **kwargs)
            except (apsw.Error, UnicodeDecodeError) as error:
                raise self.translate(error, connection) from error
            finally:
                self.give_back(connection, NORMAL)
        except BaseException:  # an interrupt may have come in the middle of giving back
            self.surely_give_back(connection, NORMAL)
            raise

    def durable(self) -> None:
        """Return once all that is committed now is on the disk; `SyncFailedError` where the disk refuses."""
        if self.sync is not None:
            self.sync.durable()

    def seen_final(self, *, durable: bool) -> None:
        """A final row was read, and is about to be answered from: a power cut must not take it back afterwards."""
        if durable and self.sync is not None:
            self.sync.durable()

    def check_files(self) -> None:
        """Before a job is entered: `FilesReplacedError` where its claim is not in the files that were opened."""
        assert self.guard is not None  # noqa: S101 - a database that is open has one
        self.guard.check()

    def check_disk(self, *, durable: bool, is_synced: bool = False) -> None:
        """Before a claim: `SyncFailedError` where what it stands on may be lost.

        ``is_synced``: the claim will be synced, and with it all that was committed before.
        """
        if durable and self.sync is not None:
            self.sync.check(is_synced=is_synced)

    # --- writing --------------------------------------------------------------------------------------------------

    def write(
        self,
        body: Callable[[Connection], T],
        *,
        durable: bool,
        is_alone: bool = False,
        busy_s: float | None = None,
    ) -> T:
        """Run ``body`` in a write transaction, and commit; if ``durable``, it is on the disk when this returns.

        Unless it ``is_alone``, others may share the transaction, each for itself: an error of ``body`` rolls back what
        it did (one that ``is_atomic`` has done nothing then). It may run in another thread, and once more after a
        rollback. `StoreBusyError` when the write lock is not free in time; `CommitUnsureError` when COMMIT itself
        reports an error, `SyncFailedError` when the sync behind it does.
        """
        answer: T = self.write_one(Write(body, durable=durable, is_alone=is_alone), busy_s=busy_s)
        return answer

    def write_one(self, mine: Write, *, busy_s: float | None = None) -> Any:  # noqa: ANN401 - what its body answers
        """As `write`."""
        is_led = self._lead(mine, [mine], self._until(busy_s))
        if not is_led and mine.durable and mine.error is None and not mine.is_synced:
            self.durable()  # whoever committed it was interrupted before the sync
        self.after_write()
        if mine.error is not None:
            try:
                raise mine.error
            finally:
                mine.error = None  # whose traceback leads here, and so to itself, and to whatever stands in its frames
        return mine.answer

    def write_all(self, writes: Sequence[Write]) -> None:
        """Carry them out in one transaction; each has its answer or its error then."""
        try:
            self._lead(Write(_no_body, durable=False, is_alone=True), writes, self._until())
        except StoreBusyError as error:
            tell(writes, error)
        self.after_write()

    def _until(self, busy_s: float | None = None) -> float:
        return self._clock.monotonic() + (self.busy_s if busy_s is None else busy_s)

    def _lead(self, mine: Write, own: Sequence[Write], until: float) -> bool:
        """Carry out this thread's ``own`` and what it takes along, and let the others know. False: another has."""
        writes = self._come_through(mine, own, until)
        if not writes:
            return False
        try:
            for other in mine.taken:
                if not other.durable:
                    other.wake()
            self._sync(writes)
        finally:
            for other in mine.taken:
                other.wake()
        self.after_commit()
        return True

    def _come_through(self, mine: Write, own: Sequence[Write], until: float) -> Sequence[Write]:
        """Through the gate and out again: what was carried out, each with its answer or its error."""
        connection: Connection | None = None
        synchronous = NORMAL
        try:
            try:
                if not self.gate.enter(mine, until):
                    return ()
                writes = [*own, *mine.taken]
                synchronous = self.levels[any(write.durable for write in writes)]
                try:
                    connection = self.take_until(synchronous, until)
                    if not self.begins(connection):
                        connection = self.exchange(connection, synchronous)
                        connection.execute("BEGIN IMMEDIATE")
                    self._carry_out(connection, mine, writes)
                except (apsw.Error, UnicodeDecodeError) as error:
                    tell(writes, self.translate(error, connection), error)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is told to each who waits for it
                    tell(writes, error)
                mine.round.is_told = True
                return writes
            finally:
                self._go_out(mine, connection, synchronous)
        except BaseException:  # an interrupt may have come in the middle of leaving
            self._surely_go_out(mine, connection, synchronous)
            for other in mine.taken:  # committed before the interrupt; they sync themselves
                other.wake()
            raise

    def _go_out(self, mine: Write, connection: Connection | None, synchronous: int) -> None:
        if connection is not None:
            self.give_back(connection, synchronous)
        self.gate.done(mine)

    def _surely_go_out(self, mine: Write, connection: Connection | None, synchronous: int) -> None:
        if connection is not None:
            self.surely_give_back(connection, synchronous)
        self.gate.done(mine)

    def _carry_out(self, connection: Connection, mine: Write, writes: Sequence[Write]) -> None:
        """In the transaction. Interrupted behind its commit it was carried out, and nothing of it is done again."""
        is_committing = False
        try:
            if len(writes) == 1:
                writes[0].answer = writes[0].body(connection)
            else:
                for write in writes:
                    carry_out(connection, write)
            is_committing = True
            try:
                connection.execute("COMMIT")
            except apsw.Error as error:
                is_committing = False
                raise self.unsure(error) from error
        except BaseException:
            mine.round.is_told = is_committing and not connection.in_transaction
            raise

    def _sync(self, writes: Sequence[Write]) -> None:
        to_sync = [write for write in writes if write.durable and write.error is None]
        if not to_sync:
            return
        try:
            self.durable()
        except Exception as error:  # noqa: BLE001 - as above
            tell(to_sync, error)
        else:
            for write in to_sync:
                write.is_synced = True

    @contextlib.contextmanager
    def long_write(self, *, durable: bool) -> Iterator[LongWrite]:
        """A write transaction around user code; rolled back where it was not committed."""
        mine = Write(_no_body, durable=durable, is_alone=True)
        with self._alone(mine, self.levels[durable], self._until(), begins=True) as connection:
            connection.patience.until = None
            yield LongWrite(self, connection, mine)

    @contextlib.contextmanager
    def alone(self, until: float) -> Iterator[Connection]:
        """A connection outside any transaction, while nobody else writes who knows of turns."""
        with self._alone(Write(_no_body, durable=False, is_alone=True), NORMAL, until) as connection:
            yield connection

    @contextlib.contextmanager
    def _alone(self, mine: Write, synchronous: int, until: float, *, begins: bool = False) -> Iterator[Connection]:
        connection: Connection | None = None
        try:
            try:
                has_come_through = self.gate.enter(mine, until)
                assert has_come_through  # noqa: S101 - alone: no other thread takes it along
                connection = self.take_until(synchronous, until)
                if begins and not self.begins(connection):
                    connection = self.exchange(connection, synchronous)
                    connection.execute("BEGIN IMMEDIATE")
                yield connection
            except apsw.Error as error:
                raise self.translate(error, connection) from error
            finally:
                self._go_out(mine, connection, synchronous)
        except BaseException:  # as above
            self._surely_go_out(mine, connection, synchronous)
            raise
        self.after_write()

    def translate(self, error: apsw.Error | UnicodeDecodeError, connection: Connection | None = None) -> StoreError:
        """The error for one of SQLite's. That the disk refused to sync is remembered, for every process."""
        if self.sync is not None and is_sync_failure(error):
            self.sync.taint()
        return super().translate(error, connection)

    def unsure(self, error: apsw.Error) -> StoreError:
        """The error for one that a COMMIT, or a statement that commits by itself, has reported."""
        if is_damage(error):  # met while reading: it was never committed
            return self.translate(error)
        return CommitUnsureError(f"the commit reported an error: {self.translate(error).message}")

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the idle connections now, and the borrowed ones as they come back. Nobody must be inside."""
        may_move = False
        try:
            may_move = self._move_wal()
        finally:
            self._closed = True
            if self.index is not None:
                self.index.close()  # before the last connection, with which SQLite unmaps what it shows
            try:
                with no_fork_meanwhile(self._clock):
                    self._close_connections(may_move=may_move)
            except BaseException:  # an interrupt, or no memory, in the middle of it
                self._close_connections(may_move=False)
                raise
            finally:
                self._close_looks()

    def _close_looks(self) -> None:
        """Each by itself, whatever becomes of the others; and with no memory, of which there may be none."""
        try:
            if self.guard is not None:
                self.guard.close()
        finally:
            try:
                if self.sync is not None:
                    self.sync.close()
            finally:
                self.turns.close()

    def _close_connections(self, *, may_move: bool) -> None:
        anchor, self._anchor = self._anchor, None
        left = [one for one in self._all if one is not anchor and one not in inside]  # also what an interrupt has left
        for connection in [*left, *([anchor] if anchor else [])]:
            if not may_move:
                leave_wal(connection)
            self._all.discard(connection)
            connection.close()
        self._idle = {NORMAL: [], FULL: []}

    def _move_wal(self) -> bool:
        """Before the end move what is in the -wal. False where SQLite must not: it would swallow a failed sync."""
        if self.lost is not None:
            return False
        if self._anchor is None or self.sync is None or self.index is None:
            return True
        try:
            self.check_files()
            with noted.moving(self.path, self.lock_file, self.index):
                if self.index.frames > self.index.moved:
                    self.durable()
                    self.read(_move, self.sync)
                else:
                    self.sync.check()
        except StoreError:
            return False
        return self.index.frames == self.index.moved

    def forget(self) -> None:
        """In a forked child: leave everything to the parent."""
        if self.index is not None:
            self.index.close()  # the connection that it looks through is closed next
        self._part()
        self._anchor = self.index = None
        with contextlib.suppress(OSError):  # where a thread of the parent had just closed them
            self._close_looks()
        self.gate = Gate(self.turns.write, self._clock, self.busy_s)


def _move(connection: Connection, sync: GroupSync) -> None:
    sync.check_before_moving(connection)
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _no_body(_connection: Connection) -> None:
    """Of a write that comes through the gate and is not carried out."""


def _nothing() -> None:
    """Nobody looks after the -wal."""
