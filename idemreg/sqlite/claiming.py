"""One claim inside the write transaction: read the row, look at its owner, decide, write.

The decision itself is `idemreg.deciding.decide`; here is what it needs to know and what it leads to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from idemreg import faults
from idemreg.deciding import Decision, decide
from idemreg.errors import StoreCorruptError
from idemreg.model import Liveness, OnCrash, Status, Verdict
from idemreg.recovery import as_stored
from idemreg.sqlite import arguments, leases, records, rows, tasks
from idemreg.sqlite.whose import owner_of
from idemreg.store import Done, Granted, Lost, Mismatch, Refused, Running, Settlement, Unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.deciding import Deadlines, Wanted
    from idemreg.model import Policy, Task
    from idemreg.owner import OwnerInfo
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.database import Database
    from idemreg.sqlite.owners import Batch, Owners
    from idemreg.sqlite.stamps import Stamp
    from idemreg.store import Answer

__all__ = ["Claiming", "changed_under_lock", "has_final", "look", "must_sync", "will_sync"]

BY_FINDER = "a later claim"
BY_SWEEP = "sweep"


class Claiming(NamedTuple):
    """What every claim of one transaction has in common."""

    connection: Connection
    schema_version: int
    owners: Owners
    batch: Batch | None = None

    def claim(self, wanted: Wanted, floor: int, stamp: Stamp, note: int | None = None) -> Answer:
        """Claim one task. What is `Granted` is noted as live before anybody can see its row."""
        if wanted.limits is not None and not wanted.policy.is_limited:
            wanted = wanted._replace(policy=wanted.policy._replace(is_limited=True))
        if wanted.kept is not None and not wanted.policy.keeps_arguments:
            wanted = wanted._replace(policy=wanted.policy._replace(keeps_arguments=True))
        answer = self._claim(wanted, floor, stamp, note)
        if not isinstance(answer, Granted):
            return answer
        if wanted.kept is not None:
            arguments.keep(self.connection, wanted.task_id, wanted.kept)
        self.owners.record(self.connection, answer.owner)
        if self.batch is not None:
            answer = answer._replace(note=note)
            self.batch.open.add(wanted.task_id)
        self.owners.live[wanted.task_id, answer.token] = answer
        return answer

    def _claim(self, wanted: Wanted, floor: int, stamp: Stamp, note: int | None) -> Answer:
        owner = self._owner(wanted)
        follows = None if wanted.kept is None else wanted.kept.follows
        if follows is None and tasks.insert(self.connection, wanted, self.schema_version, floor, owner, stamp, note):
            deadlines = self._limit(wanted, floor + 1, stamp)
            return Granted(wanted.task_id, floor + 1, 1, owner, None, wanted.policy, deadlines=deadlines)
        row = rows.read(self.connection, self.schema_version, wanted.task_id)
        if follows is not None and (row is None or row.version != follows):
            return Lost(row) if row is None or not row.is_final else Done(row)
        if row is None:
            msg = f"task {wanted.task_id!r} can neither be inserted nor read"
            raise StoreCorruptError(msg, task_id=wanted.task_id)
        decision, owner_info = _judge(self.connection, self.owners, row, wanted)
        faults.point("claim.decided")
        if (answer := _answer(decision, row, owner_info)) is not None:
            return answer
        if decision is Decision.VERIFY and self.batch is not None:
            return Unknown(row)  # a hook is asked under a claim of its own
        if decision in (Decision.BECOMES_UNKNOWN, Decision.BECOMES_FAILED):
            return self._bury(row, decision, owner_info, stamp, BY_FINDER)
        return self._claim_again(row, wanted, decision, floor, owner, stamp, note)

    def _owner(self, wanted: Wanted) -> int:
        if self.batch is not None:
            return self.batch.id
        return self.owners.own().id if wanted.owner is None else wanted.owner

    def _claim_again(
        self,
        row: Task,
        wanted: Wanted,
        decision: Decision,
        floor: int,
        owner: int,
        stamp: Stamp,
        note: int | None,
    ) -> Granted:
        to_verify = decision is Decision.VERIFY
        attempt = row.attempt if to_verify or decision is Decision.PUT_BACK else row.attempt + 1
        token = max(row.token, floor) + 1
        policy = _policy(row, wanted)
        if to_verify:  # a hook has the task for as long as it takes: it is short, and nothing of it would be fenced
            policy = policy._replace(is_limited=False)
        if not tasks.claim(self.connection, row, wanted, policy, token, attempt, owner, stamp, note):
            raise changed_under_lock(row.task_id)
        self._leave_owner(row)
        deadlines = None if to_verify else self._limit(wanted, token, stamp)
        return Granted(row.task_id, token, attempt, owner, row, policy, to_verify, deadlines=deadlines)

    def _limit(self, wanted: Wanted, token: int, stamp: Stamp) -> Deadlines | None:
        if wanted.limits is None:
            return None
        return leases.grant(self.connection, wanted.task_id, token, wanted.limits, stamp[1])

    def _leave_owner(self, row: Task) -> None:
        """A dead owner has one claim less, which counts where it is a batch."""
        if row.status is Status.RUNNING and row.owner is not None:
            records.leave_batch(self.connection, row.owner)

    def bury(self, seen: Task, stamp: Stamp) -> Unknown | Refused | None:
        """What a claim under the stored policy alone, and without a hook, would make of a task of a dead owner.

        None where it would run the task, or the row has changed since it was ``seen``.
        """
        row = rows.read(self.connection, self.schema_version, seen.task_id)
        if row is None or row.version != seen.version:
            return None
        decision, owner = _judge(self.connection, self.owners, row, as_stored(row))
        if decision not in (Decision.BECOMES_UNKNOWN, Decision.BECOMES_FAILED):
            return None
        return self._bury(row, decision, owner, stamp, BY_SWEEP)

    def _bury(self, row: Task, decision: Decision, owner: OwnerInfo | None, stamp: Stamp, by: str) -> Unknown | Refused:
        """The owner is proven dead, or its lease expired, and nobody may run the task by himself."""
        reason = "" if owner is None else owner.describe()
        is_expired = owner is not None and owner.liveness is Liveness.EXPIRED
        what = "LeaseExpired" if is_expired else "OwnerDied"
        failed = decision is Decision.BECOMES_FAILED
        is_to_ask = row.policy.keeps_arguments and row.policy.on_crash is OnCrash.VERIFY  # a sweep, which has its hook
        settlement = Settlement(
            None if is_to_ask else Verdict.CANNOT_TELL,
            by,
            evidence=reason,
            error=f"{what}: attempt {row.attempt} ended without a finish ({reason})",
        )
        status = Status.FAILED if failed else Status.UNKNOWN
        if not tasks.settle(self.connection, row, status, settlement, stamp):
            raise changed_under_lock(row.task_id)
        self._leave_owner(row)
        self.owners.let_go(row.task_id, row.token)
        buried = rows.read(self.connection, self.schema_version, row.task_id) or row
        return Refused(buried, is_new=True) if failed else Unknown(buried, is_new=True)


def look(connection: Connection, schema_version: int, owners: Owners, wanted: Wanted) -> Answer | None:
    """The answer of a plain read; None where a row must be written."""
    row = rows.read(connection, schema_version, wanted.task_id)
    if row is None:
        return None
    decision, owner = _judge(connection, owners, row, wanted)
    return Done(row) if decision is Decision.DONE else _answer(decision, row, owner)


def _judge(connection: Connection, owners: Owners, row: Task, wanted: Wanted) -> tuple[Decision, OwnerInfo | None]:
    if row.status is not Status.RUNNING:
        return decide(row, wanted, Liveness.CANNOT_TELL), None
    owner = owner_of(owners, connection, row)
    return decide(row, wanted, owner.liveness, entered=owner.entered), owner


def _answer(decision: Decision, row: Task, owner: OwnerInfo | None) -> Answer | None:
    match decision:
        case Decision.DONE:
            return Done(row)
        case Decision.MISMATCH:
            return Mismatch(row)
        case Decision.REFUSED:
            return Refused(row)
        case Decision.UNKNOWN:
            return Unknown(row)
        case Decision.RUNNING if owner is not None:
            return Running(row, owner)
        case _:
            return None


def _policy(row: Task, wanted: Wanted) -> Policy:
    """What is stored with the claim. A pending row was never claimed, so only what is asked for counts."""
    if row.status is Status.PENDING and not row.attempt:
        return wanted.policy
    return wanted.policy._replace(on_crash=max(row.policy.on_crash, wanted.policy.on_crash))


def will_sync(wanted: Sequence[Wanted]) -> bool:
    """Whether each that is granted must be on the disk before its job is entered, whatever is stored of it."""
    return all(_syncs(one, one.policy) for one in wanted)


def _syncs(wanted: Wanted, policy: Policy) -> bool:
    """A lost claim under rerun is only run again, by a caller who comes again; kept arguments stand for none."""
    return policy.on_crash is not OnCrash.RERUN or wanted.kept is not None


def must_sync(database: Database, wanted: Sequence[Wanted], answers: Sequence[Answer]) -> bool:
    """Whether one is granted that must be on the disk before its job is entered.

    That is for the policy to say which is stored, not for the one that was asked for: the stored may be stricter.
    """
    if database.sync is None:  # the commit itself syncs, by a setting that was chosen before any row was read
        return any(one.durable for one in wanted)
    granted = ((one, answer) for one, answer in zip(wanted, answers, strict=True) if isinstance(answer, Granted))
    return any(one.durable and _syncs(one, claim.policy) for one, claim in granted)


def has_final(wanted: Sequence[Wanted], answers: Sequence[Answer]) -> bool:
    """Whether one whose answer must outlive a power cut is answered from what is neither running nor his own."""
    pairs = zip(wanted, answers, strict=True)
    return any(one.durable for one, answer in pairs if not isinstance(answer, (Granted, Running)))


def changed_under_lock(task_id: str) -> StoreCorruptError:
    """The second barrier spoke: the row changed between a read and a write of one write transaction."""
    msg = f"the row of task {task_id!r} changed under the write lock"
    return StoreCorruptError(
        msg,
        task_id=task_id,
        hint="Did this process open and close the database file by other means? That drops SQLite's locks.",
    )
