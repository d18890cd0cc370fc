"""The Store in one SQLite file: opens it at first use, one transaction a method, settles what was dropped.

The order within a claim is what the promises rest on: the owner's byte is held before its row is stored, the row is
stored before the job starts, and every row that is decided by was read in the transaction that writes it.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from typing import TYPE_CHECKING

from idemreg import faults
from idemreg.errors import ClaimLostError, StoreError
from idemreg.model import Liveness, Status, may_forget, settled_status
from idemreg.sqlite import hot, tasks, upkeep
from idemreg.sqlite.claiming import Claiming, changed_under_lock
from idemreg.sqlite.connection import FULL, NORMAL, CommitUnsureError
from idemreg.sqlite.keeping import Keeper
from idemreg.sqlite.opening import Opened, Opening
from idemreg.sqlite.wal import Wal
from idemreg.store import Granted, Lost, Recorded, Unsure

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from idemreg.clock import Clock
    from idemreg.liveness import OwnerRecord
    from idemreg.model import Task, Version, Wanted
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.effects import Effects
    from idemreg.sqlite.owners import CommandOwner
    from idemreg.store import Absent, Answer, End, Settlement, Stored

__all__ = ["SqliteStore"]


class SqliteStore(Keeper):
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
        super().__init__(opening, schema.version)
        self.path = opening.path
        self.wal = Wal(opening, clock)
        # Ends that could not be written yet: of claims dropped in a finaliser, or of finishes that the disk refused.
        self._unsettled: deque[End] = deque()

    # --- claim --------------------------------------------------------------------------------------------------

    def begin(self, wanted: Wanted) -> Stored | Granted | Absent | None:
        """Replay the task's stored success, or claim it where it has no row; see `hot.begin`."""
        answer = hot.begin(self._opening.opened(), self._schema_version, wanted)
        if self._unsettled:
            self._settle_dropped()
        return answer

    def claim(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """Claim each, in order, in one transaction."""
        opened = self._opening.opened()
        version = self._schema_version
        answers: list[Answer] = []

        def claim(connection: Connection) -> None:
            floor = opened.floor = tasks.floor(connection, version)
            stamp = opened.stamp()
            claiming = Claiming(connection, version, opened.owners)
            answers.extend(claiming.claim(one, floor, stamp) for one in wanted)
            faults.point("claim.in-transaction")

        try:
            opened.database.write(claim, synchronous=_synchronous(wanted))
        except CommitUnsureError as error:
            _take_back(opened, answers)
            return [Unsure(error)] * len(wanted)
        except BaseException:
            _take_back(opened, answers)
            raise
        opened.owners.note_recorded(answers)
        faults.point("claim.committed")
        self._settle_dropped()
        return answers

    def claim_batch(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """Claim each, in order, in one transaction, under an owner of their own with a note for each."""
        opened = self._opening.opened()
        version = self._schema_version
        batch = opened.owners.batch(len(wanted))
        answers: list[Answer] = []

        def claim(connection: Connection) -> None:
            floor = opened.floor = tasks.floor(connection, version)
            stamp = opened.stamp()
            batch.place(connection)
            claiming = Claiming(connection, version, opened.owners, batch)
            answers.extend(claiming.claim(one, floor, stamp, note) for note, one in enumerate(wanted))
            if batch.open:
                batch.store(connection)
            faults.point("batch.in-transaction")

        try:
            opened.database.write(claim, synchronous=_synchronous(wanted))
        except CommitUnsureError as error:
            _take_back(opened, answers)
            answers = [Unsure(error)] * len(wanted)
        except BaseException:
            _take_back(opened, answers)
            raise
        finally:
            opened.owners.close_batch(batch.id)
        faults.point("batch.committed")
        self._settle_dropped()
        return answers

    def enter(self, claim: Granted) -> None:
        """Note that the job of a claim is entered."""
        opened = self._opening.of_owner(claim.owner)
        if opened is None:
            msg = "the claim belongs to the parent of this process, or has ended"
            raise ClaimLostError(msg, task_id=claim.task_id)
        if claim.note is not None:
            opened.owners.enter(claim.owner, claim.note)
        faults.point("batch.entered")

    # --- finish -------------------------------------------------------------------------------------------------

    def finish_one(self, end: End) -> Recorded | Lost | Unsure:
        """End a claim."""
        opened = self._opening.current
        if opened is None or end.owner != opened.owners.recorded or not tasks.is_plain_success(end):
            return self.finish([end])[0]
        try:
            if not hot.succeed(opened, self._schema_version, end):
                return self.finish([end])[0]
        except CommitUnsureError as error:
            if not isinstance(self._read_again(end, error), Recorded):
                raise
        faults.point("finish.committed")
        self._let_go(opened, end)
        if self._unsettled:
            self._settle_dropped()
        return Recorded(end.task_id)

    def finish(self, ends: Sequence[End]) -> list[Recorded | Lost | Unsure]:
        """End each claim, in order, in one transaction."""
        opened = self._opening.of_owner(ends[0].owner)
        if opened is None:  # the claim of a parent process, finished in its forked child
            return [Lost(None) for _ in ends]

        def finish(connection: Connection) -> list[Recorded | Lost | Unsure]:
            tasks.floor(connection, self._schema_version)
            answers: list[Recorded | Lost | Unsure] = [self._finish_in(connection, opened, end) for end in ends]
            recorded = zip(ends, answers, strict=True)
            owners = Counter(end.owner for end, answer in recorded if isinstance(answer, Recorded))
            for owner, claims in owners.items():
                opened.owners.ended(connection, owner, claims)
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

    def _finish_in(self, connection: Connection, opened: Opened, end: End) -> Recorded | Lost:
        if tasks.finish(connection, self._schema_version, end, opened.stamp()):
            return Recorded(end.task_id)
        return Lost(tasks.read(connection, self._schema_version, end.task_id))

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
        if opened.wants_close:
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
            answer = self.finish_one(end)
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
            if not tasks.settle(connection, row, status, settlement, opened.stamp()):
                raise changed_under_lock(task_id)
            if row.status is Status.RUNNING and row.owner is not None:
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
            floor = tasks.floor(connection, self._schema_version)
            tasks.insert(connection, wanted, self._schema_version, floor, None, opened.stamp())
            return self._reread(connection, wanted.task_id)

        return opened.database.write(add, synchronous=_synchronous([wanted]))

    def forget(self, task_id: str, *, force: bool, seen: Version | None = None) -> Task | Lost:
        """Remove the row and raise the token floor past its token. `Lost` where its status does not allow it."""
        opened = self._opening.opened()

        def forget(connection: Connection) -> Task | Lost:
            row = tasks.read(connection, self._schema_version, task_id)
            if row is None or (seen is not None and row.version != seen):
                return Lost(row)
            if not may_forget(row, self._liveness(connection, opened, row), force=force):
                return Lost(row)
            if not tasks.forget(connection, row):
                raise changed_under_lock(task_id)
            if row.owner is not None:
                opened.owners.ended(connection, row.owner)
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
        from idemreg.sqlite.effects import Effects  # noqa: PLC0415 - few jobs have effects in the same file

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
                    lambda connection, end: self._finish_with_effects(connection, opened, end),
                    lambda end: self._let_go(opened, end),
                    claim.task_id,
                )
        finally:
            self._settle_dropped()

    def _finish_with_effects(self, connection: Connection, opened: Opened, end: End) -> bool:
        tasks.floor(connection, self._schema_version)
        if isinstance(self._finish_in(connection, opened, end), Lost):
            return False
        opened.owners.ended(connection, end.owner)
        return True

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
        opened = self._opening.opened()

        def rewrite(record: OwnerRecord) -> None:
            opened.database.write(lambda connection: tasks.record_owner(connection, record), synchronous=NORMAL)

        return opened.owners.command(rewrite)

    def downstream_key(self, task_id: str) -> str:
        """A key for receivers: the same over all attempts of the task, different in every other registry."""
        from idemreg.tagged import digest  # noqa: PLC0415 - for jobs, which have it

        return digest(f"{self.registry_id()}\n{task_id}".encode())[:32]

    def checkpoint(self, mode: upkeep.Mode, *, busy_s: float | None = None) -> upkeep.Checkpoint:
        """Move pages from the -wal into the database; see `Wal.checkpoint`."""
        return self.wal.checkpoint(mode, busy_s=busy_s)

    def open(self) -> None:
        """Open now what the first use would."""
        self._opening.opened()

    def close(self) -> None:
        """Close what is open. Claims that are not finished keep their owner's lock until they are."""
        self._opening.close()


def _take_back(opened: Opened, answers: Sequence[Answer]) -> None:
    for answer in answers:
        if isinstance(answer, Granted):
            opened.owners.take_back(answer)


def _synchronous(requests: Sequence[Wanted] | Sequence[End]) -> int:
    return FULL if any(request.durable for request in requests) else NORMAL
