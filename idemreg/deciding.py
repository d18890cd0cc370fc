"""A claim as it is asked for, and the one pure decision over it; what its caller is given at its end.

Nothing here touches a file, a lock or a clock. Every Store shares `decide`, so no second copy of a rule can differ. A
room of its own, so that a process that only looks need not import what claims ask.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from idemreg.model import NO_CHECKSUM, OnCrash, OnFailure, Status, Verdict, attempts_left

if TYPE_CHECKING:
    from collections.abc import Mapping

    from idemreg.model import Liveness, Policy, Task
    from idemreg.recovery import Kept

__all__ = [
    "Deadlines",
    "Decision",
    "Limits",
    "Outcome",
    "Wanted",
    "decide",
    "may_forget",
    "settled_status",
]

R = TypeVar("R")


class Limits(NamedTuple):
    """How long a claim is good for without a renewal, and how long its job may take; None: as long as it likes."""

    lease_ms: int | None = None
    timeout_ms: int | None = None


class Deadlines(NamedTuple):
    """When a claim's lease expires, and when its job is overdue: milliseconds since this boot, or None."""

    lease_ms: int | None
    overdue_ms: int | None


class Wanted(NamedTuple):
    """A request to claim: the identity of the work, and what the caller asks for.

    ``durable``: what is answered outlives a power cut. So does the claim, unless the policy stored with it is rerun and
    no arguments are kept: a lost claim is only run again then, as was asked for. So it is one sync a job, at its end.
    """

    task_id: str
    name: str
    checksum: str
    policy: Policy
    keep_ms: int | None = None
    can_verify: bool = False
    durable: bool = True
    owner: int | None = None  # of a command; None = this process
    limits: Limits | None = None  # of one that only `Store.claim` grants, and `Store.finish` ends
    kept: Kept | None = None  # likewise


class Outcome(NamedTuple, Generic[R]):
    """A call with its circumstances. ``replayed`` is true where the job did not run now."""

    task_id: str
    status: Status
    result: R
    replayed: bool
    attempt: int
    token: int


class Decision(enum.Enum):
    """What a claim does with the row it found."""

    INSERT = "insert"  # no row: the first claim
    CLAIM = "claim"  # pending, or failed and claimable
    TAKE_OVER = "take over"  # running, owner proven dead or its lease expired (so below), rerun
    PUT_BACK = "put back"  # running, owner proven dead before the job was entered: claimed as if released
    VERIFY = "verify"  # claim for the verify hook: the body is not entered
    DONE = "done"  # final: replay
    RUNNING = "running"  # a live owner, or one that nobody can tell about
    MISMATCH = "mismatch"
    REFUSED = "refused"  # failed, and held or used up
    UNKNOWN = "unknown"
    BECOMES_UNKNOWN = "becomes unknown"  # running, owner proven dead, hold
    BECOMES_FAILED = "becomes failed"  # running, owner proven dead, rerun, attempts used up


def decide(row: Task | None, wanted: Wanted, liveness: Liveness, *, entered: bool = True) -> Decision:
    """Decide a claim. Pure: the row, what is wanted, and of running rows, whether the owner has it.

    ``entered``: whether a dead owner had entered the job; only of a batch can that be known to be false.

    A pending task is always claimed. ``max_attempts`` bounds what follows a failure or a death: whoever left the row
    pending had attempts left by its own policy, or put it back. A refusal would leave a pending task that no call runs
    and no `retry` can help.
    """
    if row is None:
        return Decision.INSERT
    if row.checksum != NO_CHECKSUM and (row.name != wanted.name or row.checksum != wanted.checksum):
        return Decision.MISMATCH
    match row.status:
        case Status.PENDING:
            return Decision.CLAIM
        case Status.SUCCEEDED | Status.SKIPPED | Status.CANCELLED:
            return Decision.DONE
        case Status.FAILED:
            return Decision.CLAIM if _failed_is_claimable(row, wanted.policy) else Decision.REFUSED
        case Status.UNKNOWN:
            return Decision.VERIFY if _verifies(row, wanted) else Decision.UNKNOWN
        case Status.RUNNING:
            if not liveness.frees:
                return Decision.RUNNING
            return _decide_freed(row, wanted) if entered else Decision.PUT_BACK


def _decide_freed(row: Task, wanted: Wanted) -> Decision:
    if _verifies(row, wanted):
        return Decision.VERIFY
    if _stricter(row, wanted) is not OnCrash.RERUN:
        return Decision.BECOMES_UNKNOWN
    return Decision.TAKE_OVER if attempts_left(row, wanted.policy) else Decision.BECOMES_FAILED


def _stricter(row: Task, wanted: Wanted) -> OnCrash:
    return max(row.policy.on_crash, wanted.policy.on_crash)


def _verifies(row: Task, wanted: Wanted) -> bool:
    return wanted.can_verify and _stricter(row, wanted) is OnCrash.VERIFY


def _failed_is_claimable(row: Task, asked: Policy) -> bool:
    if row.verdict is Verdict.RETRY:  # an operator allowed one more, whatever was used up
        return True
    if row.verdict is Verdict.DID_NOT_HAPPEN:  # settled as not done: nothing failed, so on_failure does not speak
        return attempts_left(row, asked)
    held = OnFailure.HOLD in (row.policy.on_failure, asked.on_failure)
    return not held and attempts_left(row, asked)


# Which statuses a settlement may start from. A running row counts as unknown once its owner is
# proven dead, or its lease has expired.
_SETTLED_FROM: Mapping[Verdict, frozenset[Status]] = {
    Verdict.HAPPENED: frozenset({Status.UNKNOWN}),
    Verdict.DID_NOT_HAPPEN: frozenset({Status.UNKNOWN}),
    Verdict.CANNOT_TELL: frozenset({Status.UNKNOWN}),
    Verdict.RETRY: frozenset({Status.FAILED}),
    Verdict.SKIPPED: frozenset({Status.PENDING}),
    Verdict.CANCELLED: frozenset({Status.PENDING, Status.FAILED, Status.UNKNOWN}),
}

_SETTLED_TO: Mapping[Verdict, Status] = {
    Verdict.HAPPENED: Status.SUCCEEDED,
    Verdict.DID_NOT_HAPPEN: Status.FAILED,
    Verdict.CANNOT_TELL: Status.UNKNOWN,
    Verdict.RETRY: Status.FAILED,
    Verdict.SKIPPED: Status.SKIPPED,
    Verdict.CANCELLED: Status.CANCELLED,
}


def settled_status(row: Task, verdict: Verdict, *, verifying: bool, liveness: Liveness) -> Status | None:
    """The status that ``verdict`` gives the row, or None where it may not be settled so.

    ``verifying``: the caller holds the claim itself, to settle it by its verify hook.
    """
    status = row.status
    if status is Status.RUNNING and (verifying or liveness.frees):
        status = Status.UNKNOWN
    return _SETTLED_TO[verdict] if status in _SETTLED_FROM[verdict] else None


def may_forget(row: Task, liveness: Liveness, *, force: bool) -> bool:
    """Whether the row may go: a running one of a dead owner, and an unknown one, only by force."""
    if row.status is Status.RUNNING:
        return force and liveness.frees
    return force or row.status is not Status.UNKNOWN
