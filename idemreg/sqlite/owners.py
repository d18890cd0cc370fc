"""The owners that live in this process: the process itself, and the commands it starts.

An owner's byte of the lock file is held before its first claim is stored, and until its last claim is settled.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from idemreg import faults, oslock
from idemreg.errors import StoreError
from idemreg.liveness import Examiner, OwnerRecord
from idemreg.lockfile import LockFile, owner_byte
from idemreg.model import Liveness, OwnerInfo
from idemreg.sqlite import tasks
from idemreg.store import Granted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.clock import Clock
    from idemreg.model import Task
    from idemreg.sqlite.connection import Connection
    from idemreg.store import Answer

__all__ = ["CommandOwner", "Owners"]

# Dead owners are looked for when a new one is recorded, a bounded number at a time: a probe costs a microsecond.
PRUNED_AT_ONCE: Final = 256


class CommandOwner:
    """The owner of one command: a byte, an open file and a descriptor of its own, which the command inherits."""

    def __init__(self, lock_file: LockFile, clock: Clock, registered: dict[int, CommandOwner]) -> None:
        self.record = OwnerRecord.of_this_process(lock_file.lock_id, clock)
        self.id = self.record.id
        self.fd = oslock.open_high(lock_file.path)
        _hold(self.fd, self.id)
        self._registered = registered
        registered[self.id] = self

    def close(self) -> None:
        """Drop this process's share of the lock; a command that inherited the descriptor keeps its own."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._registered.pop(self.id, None)


class Owners:
    """Who owns claims in this process, and whether strangers live."""

    def __init__(self, lock_file: LockFile, clock: Clock) -> None:
        self._lock_file = lock_file
        self._clock = clock
        self._examiner = Examiner(lock_file, clock)
        self._own: OwnerRecord | None = None
        # The number of this process as an owner, once its record is stored.
        self.recorded: int | None = None
        self._commands: dict[int, CommandOwner] = {}
        # The claims that somebody in this process holds, by task. A row of ours that is not in here was dropped
        # (interrupted right behind the commit, say), and counts as one of a dead owner.
        self.live: dict[str, Granted] = {}

    @property
    def locks_work(self) -> bool:
        """Whether the file system passed the self-test; where not, nobody is ever proven dead."""
        return self._examiner.locks_work

    @property
    def own_id(self) -> int | None:
        """The number of this process as an owner; None as long as it has claimed nothing."""
        return None if self._own is None else self._own.id

    def own(self) -> OwnerRecord:
        """This process as an owner, its byte held."""
        if self._own is None:
            record = OwnerRecord.of_this_process(self._lock_file.lock_id, self._clock)
            _hold(self._lock_file.fd, record.id)
            faults.point("owner.byte-held")
            self._own = record
        return self._own

    def command(self) -> CommandOwner:
        """A new owner for a command."""
        return CommandOwner(self._lock_file, self._clock, self._commands)

    def record(self, connection: Connection, owner: int) -> None:
        """Store the owner's record in the transaction of its first claim, and take dead owners' records away."""
        command = self._commands.get(owner)
        if command is not None:
            tasks.record_owner(connection, command.record)
        elif self.recorded is None:
            self._prune(connection)
            tasks.record_owner(connection, self.own())

    def _prune(self, connection: Connection) -> None:
        for record in tasks.other_owners(connection, PRUNED_AT_ONCE):
            liveness, _ = self._examiner.examine(record.id, record)
            if liveness is Liveness.DEAD:
                tasks.forget_owner(connection, record.id)

    def ended(self, connection: Connection, owner: int) -> None:
        """In the transaction that finishes a command's claim: its owner has no other."""
        if owner != self.own_id:
            tasks.forget_owner(connection, owner)

    def is_ours(self, owner: int) -> bool:
        """Whether the owner lives in this process."""
        return (self._own is not None and owner == self._own.id) or owner in self._commands

    def note_recorded(self, answers: Sequence[Answer]) -> None:
        """The transaction that gave these answers is committed, and with it the record of a new owner."""
        if self.recorded is None and self._own is not None:
            own = self._own.id
            if any(isinstance(answer, Granted) and answer.owner == own for answer in answers):
                self.recorded = own

    def take_back(self, grant: Granted) -> None:
        """The claim is not (or not surely) stored: whatever row is found of it counts as dropped."""
        # By identity: another thread may have claimed the task since, under the very same token.
        if self.live.get(grant.task_id) is grant:
            del self.live[grant.task_id]

    def _holds(self, task_id: str, token: int) -> bool:
        held = self.live.get(task_id)
        return held is not None and held.token == token

    def let_go(self, task_id: str, token: int) -> None:
        """The claim is settled; nobody holds it any more."""
        held = self.live.get(task_id)
        if held is not None and held.token == token:
            del self.live[task_id]

    def forget(self) -> None:
        """In a forked child: drop this process's share of the commands' locks."""
        for command in list(self._commands.values()):
            command.close()

    def of(self, connection: Connection, task: Task) -> OwnerInfo:
        """Who owns a running task, and whether it lives."""
        owner = task.owner or 0
        if self._own is not None and owner == self._own.id:
            if self._holds(task.task_id, task.token):
                return _info(owner, self._own, Liveness.ALIVE, "it is this process")
            return _info(owner, self._own, Liveness.DEAD, "this process dropped the claim without a finish")
        record = tasks.owner_record(connection, owner)
        return _info(owner, record, *self._examiner.examine(owner, record))


def _info(owner: int, record: OwnerRecord | None, liveness: Liveness, reason: str) -> OwnerInfo:
    if record is None:
        return OwnerInfo(owner, liveness, reason=reason)
    return OwnerInfo(owner, liveness, record.pid, record.host, record.command, reason)


def _hold(fd: int, owner: int) -> None:
    if not oslock.try_lock(fd, owner_byte(owner)):
        msg = f"the lock of the new owner {owner} is already held"
        raise StoreError(msg, hint="This cannot happen by chance; look at who locks the lock file.")
