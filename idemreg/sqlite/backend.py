"""The Store in one SQLite file: opens it at first use, one transaction a method, settles what was dropped.

The order within a claim is what the promises rest on: the owner's byte is held before its row is stored, the row is
stored before the job starts, and every row that is decided by was read in the transaction that writes it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from typing import TYPE_CHECKING

from idemreg import faults
from idemreg.errors import ClaimLostError, StoreError
from idemreg.model import Liveness, Status, may_forget, settled_status
from idemreg.sqlite import tasks, upkeep
from idemreg.sqlite.claiming import Claiming, changed_under_lock
from idemreg.sqlite.connection import FULL, NORMAL, CommitUnsureError
from idemreg.sqlite.effects import Effects
from idemreg.sqlite.opening import Opened, Opening
from idemreg.sqlite.reading import Reader
from idemreg.sqlite.wal import Wal
from idemreg.store import Granted, Lost, Recorded, Unsure

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from apsw import Connection

    from idemreg.clock import Clock
    from idemreg.model import Task, Wanted
    from idemreg.sqlite.owners import CommandOwner
    from idemreg.store import Answer, End, Settlement

__all__ = ["SqliteStore"]


class SqliteStore(Reader):
    """Tasks in one SQLite file. Touches no file before its first use; shared by threads; reopens in a forked child."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool,
        busy_s: float,
        clock: Clock,
        schema: upkeep.Schema = upkeep.SCHEMA,
    ) -> None:
        opening = Opening(path, create=create, busy_s=busy_s, clock=clock, schema=schema)
        super().__init__(opening, clock, schema.version)
        self.path = opening.path
        self.wal = Wal(opening, clock)
        # Ends that could not be written yet: of claims dropped in a finaliser, or of finishes that the disk refused.
        self._unsettled: deque[End] = deque()

    # --- claim --------------------------------------------------------------------------------------------------

    def claim(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """Claim each, in order, in one transaction."""
        opened = self._opening.opened()
        if len(wanted) == 1 and (grant := self._claim_new(opened, wanted[0])) is not None:
            return [grant]
        version = self._schema_version
        answers: list[Answer] = []

        def claim(connection: Connection) -> None:
            floor = opened.floor = tasks.floor(connection, version)
            stamp = self._stamp(opened)
            claiming = Claiming(connection, version, opened.owners)
            answers.extend(claiming.claim(one, floor, stamp) for one in wanted)
            faults.point("claim.in-transaction")

        try:
            opened.database.write(claim, synchronous=_synchronous(wanted))
        except CommitUnsureError as error:
            self._take_back(opened, answers)
            return [Unsure(error)] * len(wanted)
        except BaseException:
            self._take_back(opened, answers)
            raise
        opened.owners.note_recorded(answers)
        faults.point("claim.committed")
        self._settle_dropped()
        return answers

    def _claim_new(self, opened: Opened, wanted: Wanted) -> Granted | None:
        """The hot path: a task without a row is claimed by one statement. None where it takes a decision.

        Only where this process's record is stored already, since that would be a second statement.
        """
        owners, task_id = opened.owners, wanted.task_id
        owner = owners.own_id
        if wanted.owner is not None or owner is None or not owners.is_recorded:
            return None
        ground = tasks.Ground(self._schema_version, opened.floor)
        grant = Granted(task_id, ground.floor + 1, 1, owner, None, wanted.policy)

        def insert(connection: Connection) -> bool:
            if task_id in owners.live:  # of another thread, whose note must stay
                return False
            owners.live[task_id] = grant  # before anybody can see the row
            faults.point("claim.in-transaction")
            if tasks.insert(connection, wanted, ground, owner, self._stamp(opened)):
                return True
            del owners.live[task_id]
            return False

        try:
            inserted = opened.database.write_one(insert, synchronous=FULL if wanted.durable else NORMAL)
        except BaseException as error:  # noqa: BLE001 - raised again, after the note is taken back
            self._take_back(opened, [grant])
            raise _plain(error) from None
        faults.point("claim.committed")
        if self._unsettled:
            self._settle_dropped()
        return grant if inserted else None

    @staticmethod
    def _take_back(opened: Opened, answers: Sequence[Answer]) -> None:
        """The claims are not (or not surely) stored: whatever row is found of them counts as dropped."""
        for answer in answers:
            # By identity: another thread may have claimed the task since, under the very same token.
            if isinstance(answer, Granted) and opened.owners.live.get(answer.task_id) is answer:
                del opened.owners.live[answer.task_id]

    # --- finish -------------------------------------------------------------------------------------------------

    def finish(self, ends: Sequence[End]) -> list[Recorded | Lost | Unsure]:
        """End each claim, in order, in one transaction."""
        opened = self._opening.of_owner(ends[0].owner)
        if opened is None:  # the claim of a parent process, finished in its forked child
            return [Lost(None) for _ in ends]
        if len(ends) == 1 and self._finish_new(opened, ends[0]):
            return [Recorded(ends[0].task_id)]

        def finish(connection: Connection) -> list[Recorded | Lost | Unsure]:
            answers: list[Recorded | Lost | Unsure] = [self._finish_one(connection, opened, end) for end in ends]
            faults.point("finish.in-transaction")
            return answers

        try:
            answers = opened.database.write(finish, synchronous=_synchronous(ends))
        except CommitUnsureError as error:
            answers = [self._read_again(end, error) for end in ends]
        faults.point("finish.committed")
        for end, answer in zip(ends, answers, strict=True):
            if not isinstance(answer, Unsure):
                self._let_go(opened, end)
        self._settle_dropped()
        return answers

    def _finish_new(self, opened: Opened, end: End) -> bool:
        """The hot path: the success of a first attempt is one statement. False where it takes more, or did nothing."""
        if end.owner != opened.owners.own_id or not tasks.is_one_statement(end):
            return False

        def finish(connection: Connection) -> bool:
            faults.point("finish.in-transaction")
            return tasks.finish(connection, self._schema_version, end, self._stamp(opened))

        try:
            finished = opened.database.write_one(finish, synchronous=FULL if end.durable else NORMAL)
        except CommitUnsureError as error:
            finished = isinstance(self._read_again(end, error), Recorded)
            if not finished:
                raise
        if finished:
            faults.point("finish.committed")
            self._let_go(opened, end)
            if self._unsettled:
                self._settle_dropped()
        return finished

    def _finish_one(self, connection: Connection, opened: Opened, end: End) -> Recorded | Lost:
        if self._finish_in(connection, opened, end):
            return Recorded(end.task_id)
        return Lost(tasks.read(connection, self._schema_version, end.task_id))

    def _finish_in(self, connection: Connection, opened: Opened, end: End) -> bool:
        tasks.floor(connection, self._schema_version)
        if not tasks.finish(connection, self._schema_version, end, self._stamp(opened)):
            return False
        opened.owners.ended(connection, end.owner)
        return True

    def _read_again(self, end: End, error: CommitUnsureError) -> Recorded | Unsure:
        """After an error at COMMIT: at FULL, what is visible was synced before it became so."""
        with contextlib.suppress(StoreError):
            (row,) = self.get([end.task_id])
            if row is not None and (row.status, row.token) == (end.status, end.token):
                return Recorded(end.task_id)
        return Unsure(error)

    @staticmethod
    def _let_go(opened: Opened, end: End | Task) -> None:
        # Of this token only: another thread may have claimed the task since the commit.
        opened.owners.let_go(end.task_id, end.token)
        opened.close_if_idle()

    def abandon(self, end: End) -> None:
        """End a claim as soon as the store can write, now or later. Raises nothing; safe in a finaliser."""
        self._unsettled.append(end)
        self._settle_dropped()

    def _settle_dropped(self) -> None:
        """Write the ends that wait.

        A finaliser may run while this very thread is writing, so nothing is waited for: the writer looks here again
        when it is done.
        """
        if not self._unsettled:
            return
        with contextlib.suppress(IndexError):  # another thread took the last one
            while self._unsettled:
                end = self._unsettled.popleft()
                opened = self._opening.of_owner(end.owner)
                if opened is None:
                    continue  # of a parent process
                if opened.database.is_writing:
                    self._unsettled.append(end)
                    return
                if not self._try_to_settle(end):
                    self._unsettled.append(end)
                    return

    def _try_to_settle(self, end: End) -> bool:
        try:
            (answer,) = self.finish([end])
        except StoreError:
            return False
        return not isinstance(answer, Unsure)

    # --- settle, add, forget ------------------------------------------------------------------------------------

    def settle(self, task_id: str, settlement: Settlement) -> Task | Lost:
        """End the task without its owner. `Lost` where its status does not allow the verdict."""
        opened = self._opening.opened()

        def settle(connection: Connection) -> Task | Lost:
            row = tasks.read(connection, self._schema_version, task_id)
            if row is None:
                return Lost(None)
            verifying = settlement.verifying is not None and self._is_own(opened, row, settlement.verifying)
            liveness = self._liveness(connection, opened, row)
            status = settled_status(row, settlement.verdict, verifying=verifying, liveness=liveness)
            if status is None or (settlement.verifying is not None and not verifying):
                return Lost(row)
            if not tasks.settle(connection, row, status, settlement, self._stamp(opened)):
                raise changed_under_lock(task_id)
            if row.owner is not None:
                opened.owners.ended(connection, row.owner)
            faults.point("settle.in-transaction")
            return self._reread(connection, task_id)

        answer = opened.database.write(settle, synchronous=FULL)
        faults.point("settle.committed")
        if not isinstance(answer, Lost):
            self._let_go(opened, answer)
        return answer

    def add(self, wanted: Wanted) -> Task:
        """Make sure that the row exists, `pending` where it is new."""
        opened = self._opening.opened()

        def add(connection: Connection) -> Task:
            ground = tasks.Ground(self._schema_version, tasks.floor(connection, self._schema_version))
            tasks.insert(connection, wanted, ground, None, self._stamp(opened))
            return self._reread(connection, wanted.task_id)

        return opened.database.write(add, synchronous=_synchronous([wanted]))

    def forget(self, task_id: str, *, force: bool) -> Task | Lost:
        """Remove the row and raise the token floor past its token. `Lost` where its status does not allow it."""
        opened = self._opening.opened()

        def forget(connection: Connection) -> Task | Lost:
            row = tasks.read(connection, self._schema_version, task_id)
            if row is None or not may_forget(row, self._liveness(connection, opened, row), force=force):
                return Lost(row)
            if not tasks.forget(connection, row):
                raise changed_under_lock(task_id)
            faults.point("forget.in-transaction")
            return row

        answer = opened.database.write(forget, synchronous=FULL)
        faults.point("forget.committed")
        if not isinstance(answer, Lost):
            self._let_go(opened, answer)
        return answer

    # --- more ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, claim: Granted, *, durable: bool) -> Iterator[Effects]:
        """Open a transaction for the effects of the job; rolled back unless `Effects.finish` committed it."""
        opened = self._opening.of_owner(claim.owner)
        if opened is None:
            msg = "the claim belongs to the parent of this process"
            raise ClaimLostError(msg, task_id=claim.task_id)
        try:
            with opened.database.long_write(synchronous=FULL if durable else NORMAL) as connection:
                row = tasks.read(connection, self._schema_version, claim.task_id)
                if row is None or not self._is_own(opened, row, claim.token):
                    msg = "another owner has the task, or it was settled without this claim"
                    raise ClaimLostError(msg, task_id=claim.task_id)
                faults.point("transaction.open")
                yield Effects(
                    connection,
                    lambda connection, end: self._finish_in(connection, opened, end),
                    lambda end: self._let_go(opened, end),
                    claim.task_id,
                )
        finally:
            self._settle_dropped()

    @staticmethod
    def _is_own(opened: Opened, row: Task, token: int) -> bool:
        return row.status is Status.RUNNING and row.token == token and opened.owners.is_ours(row.owner or 0)

    @staticmethod
    def _liveness(connection: Connection, opened: Opened, row: Task) -> Liveness:
        if row.status is not Status.RUNNING:
            return Liveness.CANNOT_TELL
        return opened.owners.of(connection, row).liveness

    def _reread(self, connection: Connection, task_id: str) -> Task:
        row = tasks.read(connection, self._schema_version, task_id)
        if row is None:
            raise changed_under_lock(task_id)
        return row

    def own_byte(self) -> CommandOwner:
        """A new owner with a lock and a descriptor of its own, for a command that inherits it."""
        return self._opening.opened().owners.command()

    def downstream_key(self, task_id: str) -> str:
        """A key for receivers: the same over all attempts of the task, different in every other registry."""
        seed = f"{self._opening.opened().registry_id}\n{task_id}"
        return hashlib.sha256(seed.encode()).hexdigest()[:32]

    def checkpoint(self, mode: upkeep.Mode, *, busy_s: float | None = None) -> upkeep.Checkpoint:
        """Move pages from the -wal into the database; see `Wal.checkpoint`."""
        return self.wal.checkpoint(mode, busy_s=busy_s)

    def open(self) -> None:
        """Open now what the first use would."""
        self._opening.opened()

    def close(self) -> None:
        """Close what is open. Claims that are not finished keep their owner's lock until they are."""
        self._opening.close()

    def _stamp(self, opened: Opened) -> tasks.Stamp:
        return self._clock.wall_us(), opened.epoch_bits | self._clock.boot_ms()


def _plain(error: BaseException) -> BaseException:
    """Of a claim it does not matter whether the commit was stored: the job does not start. So its cause tells more."""
    return error.__cause__ or error if isinstance(error, CommitUnsureError) else error


def _synchronous(requests: Sequence[Wanted] | Sequence[End]) -> int:
    return FULL if any(request.durable for request in requests) else NORMAL
