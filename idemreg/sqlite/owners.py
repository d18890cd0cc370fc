"""The owners that live in this process: the process itself, and the commands it starts.

An owner's byte of the lock file is held before its first claim is stored, and until its last claim is settled.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, cast

from idemreg import faults, oslock
from idemreg.errors import StoreBusyError, StoreError, StoreFullError
from idemreg.liveness import Examiner, OwnerRecord
from idemreg.lockfile import FIRST_NOTE, LockFile, open_error, owner_byte
from idemreg.model import Liveness
from idemreg.sqlite import records
from idemreg.sqlite.stamps import LATEST_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from idemreg.clock import Clock
    from idemreg.sqlite.connection import Connection
    from idemreg.store import Granted

__all__ = ["Batch", "CommandOwner", "Owners"]

# Dead owners are looked for when a new one is recorded, a bounded number at a time: a probe costs a microsecond.
PRUNED_AT_ONCE: Final = 256


class CommandOwner:
    """The owner of one command: a byte, an open file and a descriptor of its own, which the command inherits."""

    def __init__(
        self,
        lock_file: LockFile,
        clock: Clock,
        owners: Owners,
        rewrite: Callable[[OwnerRecord], None],
        ended: Callable[[], None],
    ) -> None:
        self.record = OwnerRecord.of_this_process(lock_file.lock_id, clock)
        self.id = self.record.id
        self.is_closed = False
        try:
            self.fd = oslock.open_high(lock_file.path)
        except OSError as error:
            raise open_error(lock_file.path, error) from error
        try:
            _hold(self.fd, self.id)
        except BaseException:
            os.close(self.fd)
            raise
        self._rewrite = rewrite
        self._ended = ended
        self._owners = owners
        owners.commands[self.id] = self

    def note_process(self, pid: int) -> bool:
        """Note which process runs the command; False where others are writing just now.

        A command may close what it inherits, the lock among it (sudo does): should this process be killed then, the
        command's own existence still speaks for it. Until it is noted, or where it cannot be, the lock alone does.
        """
        self.record = self.record.of_child(pid)
        try:
            self._rewrite(self.record)
        except StoreBusyError:
            return False
        except StoreError:
            return True  # a full disk, say: the command goes on
        return True

    def leave_to(self, pid: int) -> None:
        """See `store.CommandOwner`. From now on its claims are nobody's in this process."""
        self.note_process(pid)
        self.close()
        for held in self._owners.held_by(self.id):
            self._owners.take_back(held)

    def close(self) -> None:
        """Drop this process's share of the lock, once no claim is open; a command that inherited it keeps its own.

        An end that could not be stored waits in this process, and its claim is open until it is. May be called again
        where it was interrupted.
        """
        self.is_closed = True
        self._owners.close_command(self.id)

    def drop(self) -> None:
        """Close the descriptor; interrupted, it can be called again."""
        try:
            if self.fd >= 0:
                fd, self.fd = self.fd, -1  # neither an interrupt nor another thread comes in before the call
                os.close(fd)
        finally:
            self._owners.commands.pop(self.id, None)
        self._ended()


class Batch:
    """The owner of the claims of one batch: a byte of this process's own lock, and a note for each task."""

    def __init__(self, lock_file: LockFile, clock: Clock, size: int) -> None:
        self.record = OwnerRecord.of_this_process(lock_file.lock_id, clock)
        self.id = self.record.id
        self.size = size
        self.open: set[str] = set()  # the tasks whose claims have not ended
        self._lock_file = lock_file
        _hold(lock_file.fd, self.id)

    def place(self, connection: Connection) -> None:
        """Take a place for the notes, in the transaction of the claims: nobody else takes one meanwhile."""
        at = records.place_notes(connection, FIRST_NOTE, self.size)
        try:
            self._lock_file.clear_notes(at, self.size)
        except OSError as error:
            msg = f"cannot write to the lock file: {error.strerror}"
            raise (StoreFullError if error.errno == errno.ENOSPC else StoreError)(msg) from error
        self.record = self.record._replace(notes_at=at, notes=self.size)

    def store(self, connection: Connection) -> None:
        """Store the record, behind the claims."""
        records.record_owner(connection, self.record._replace(claims=len(self.open)))

    def enter(self, note: int) -> None:
        """Note that a task is entered."""
        try:
            self._lock_file.write_note(cast("int", self.record.notes_at) + note)
        except OSError as error:
            msg = f"cannot note in the lock file that the job begins: {error.strerror}"
            raise StoreError(msg) from error

    def release(self) -> None:
        """Give the byte back: every claim has ended, or none was stored."""
        if self._lock_file.fd >= 0:
            oslock.unlock(self._lock_file.fd, owner_byte(self.id))


class Owners:
    """Who owns claims in this process, and whether strangers live."""

    def __init__(self, lock_file: LockFile, clock: Clock, epoch_bits: int) -> None:
        self._lock_file = lock_file
        self._clock = clock
        self._epoch_bits = epoch_bits
        self.examiner = Examiner(lock_file, clock)
        self._own: OwnerRecord | None = None
        # The number of this process as an owner, once its record is stored.
        self.recorded: int | None = None
        self.commands: dict[int, CommandOwner] = {}  # until they are closed and their last claims have ended
        self._batches: dict[int, Batch] = {}
        # The claims that somebody in this process holds. A row of ours that is not in here was dropped (interrupted
        # right behind the commit, say), and counts as one of a dead owner. By task and token, so that whoever takes
        # out a claim that has ended never takes one with it that another thread has made since.
        self.live: dict[tuple[str, int], Granted] = {}

    @property
    def are_idle(self) -> bool:
        """Whether no claim is open, and no command is about to be claimed for."""
        return not self.live and not self.commands

    @property
    def own_id(self) -> int | None:
        """The number of this process as an owner; None as long as it has claimed nothing."""
        return None if self._own is None else self._own.id

    @property
    def own_record(self) -> OwnerRecord | None:
        """Likewise; its record."""
        return self._own

    def own(self) -> OwnerRecord:
        """This process as an owner, its byte held."""
        if self._own is None:
            record = OwnerRecord.of_this_process(self._lock_file.lock_id, self._clock)
            _hold(self._lock_file.fd, record.id)
            faults.point("owner.byte-held")
            self._own = record
        return self._own

    def command(self, rewrite: Callable[[OwnerRecord], None], ended: Callable[[], None]) -> CommandOwner:
        """A new owner for a command; ``rewrite`` stores its record anew, ``ended`` is called when it is gone."""
        return CommandOwner(self._lock_file, self._clock, self, rewrite, ended)

    def batch(self, size: int) -> Batch:
        """A new owner for the claims of a batch, registered until they have ended."""
        batch = Batch(self._lock_file, self._clock, size)
        self._batches[batch.id] = batch
        return batch

    def enter(self, owner: int, note: int) -> None:
        """Note that a task of a batch is entered."""
        self._batches[owner].enter(note)

    def close_batch(self, owner: int) -> None:
        """Let the batch go if its last claim has ended."""
        batch = self._batches.get(owner)
        # Of two threads that end the last claims, one takes it out.
        if batch is not None and not batch.open and self._batches.pop(owner, None) is not None:
            batch.release()

    def held_by(self, owner: int) -> list[Granted]:
        """The claims of an owner that have not ended."""
        return [held for held in list(self.live.values()) if held.owner == owner]

    def close_command(self, owner: int) -> None:
        """Let a command's owner go if it is closed, and its last claim has ended: whichever comes last."""
        command = self.commands.get(owner)
        if command is not None and command.is_closed and not self.held_by(owner):
            command.drop()

    def record(self, connection: Connection, owner: int) -> None:
        """Store the owner's record in the transaction of its first claim, and take dead owners' records away.

        A batch stores its own, once its claims can be counted.
        """
        if owner in self._batches:
            return
        command = self.commands.get(owner)
        if command is not None:
            records.record_owner(connection, command.record)
        elif self.recorded is None:
            self._prune(connection)
            records.record_owner(connection, self.own())

    def _prune(self, connection: Connection) -> None:
        for record in records.other_owners(connection, PRUNED_AT_ONCE):
            liveness, _ = self.examiner.examine(record.id, record)
            if liveness is Liveness.DEAD:
                records.forget_owner(connection, record.id)

    def ended(self, connection: Connection, owner: int, claims: int = 1) -> None:
        """In the transaction that ends a claim: a command's owner has no other, and a batch has one less."""
        if owner in self.commands:
            records.forget_owner(connection, owner)
        elif owner != self.own_id:
            records.leave_batch(connection, owner, claims)

    def is_ours(self, owner: int) -> bool:
        """Whether the owner lives in this process."""
        return self.is_here(owner) or owner in self.commands

    def is_here(self, owner: int) -> bool:
        """Whether its byte is held through this process's own lock, which does not see itself."""
        return (self._own is not None and owner == self._own.id) or owner in self._batches

    def note_recorded(self, granted: Iterable[Granted]) -> None:
        """The transaction of these claims is committed, and with it the record of a new owner."""
        if self.recorded is None and self._own is not None:
            own = self._own.id
            if any(one.owner == own for one in granted):
                self.recorded = own

    def take_back(self, grant: Granted) -> None:
        """The claim is not (or not surely) stored: whatever row is found of it counts as dropped."""
        # By identity: another thread may have claimed the task since, under the very same token.
        if self.live.get((grant.task_id, grant.token)) is grant:
            self.let_go(grant.task_id, grant.token)

    def holds(self, task_id: str, token: int) -> bool:
        """Whether somebody in this process holds the claim."""
        return (task_id, token) in self.live

    def let_go(self, task_id: str, token: int) -> None:
        """The claim is settled; nobody holds it any more."""
        held = self.live.pop((task_id, token), None)
        if held is not None and held.note is not None and (batch := self._batches.get(held.owner)) is not None:
            batch.open.discard(task_id)
            self.close_batch(held.owner)
        if held is not None and self.commands:
            self.close_command(held.owner)

    def forget(self) -> None:
        """Drop this process's share of the commands' locks, whatever claims they have: nobody here can end them."""
        for command in list(self.commands.values()):
            command.drop()

    def now(self) -> int:
        """This moment as a stamp of this boot."""
        return self._epoch_bits | min(self._clock.boot_ms(), LATEST_MS)


def _hold(fd: int, owner: int) -> None:
    if not oslock.try_lock(fd, owner_byte(owner)):
        msg = f"the lock of the new owner {owner} is already held"
        raise StoreError(msg, hint="This cannot happen by chance; look at who locks the lock file.")
