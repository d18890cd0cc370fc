"""The words of the registry as types, every legal transition in one table, and the one pure decision over a claim.

Nothing here touches a file, a lock or a clock. Every Store shares `decide`, so no second copy of a rule can differ.
"""

from __future__ import annotations

import enum
import functools
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from idemreg.recovery import Kept

__all__ = [
    "FINAL",
    "MAX_ATTEMPTS_LIMIT",
    "NO_CHECKSUM",
    "TRANSITIONS",
    "Deadlines",
    "Decision",
    "Limits",
    "Liveness",
    "OnCrash",
    "OnFailure",
    "Origin",
    "Outcome",
    "Policy",
    "Status",
    "Task",
    "Verdict",
    "Version",
    "Wanted",
    "decide",
    "is_durable",
    "may_forget",
    "of_fields",
    "settled_status",
    "unpack_policy",
]

R = TypeVar("R")

# On the hot path: a named tuple of all its fields, in their order. What NamedTuple itself generates is Python code that
# C calls, at twice the cost.
of_fields: Final = tuple.__new__

# The stored policy keeps max_attempts in the bits above the fifth; a million tries of one task is a bound, not a plan.
MAX_ATTEMPTS_LIMIT = 1_000_000


# Of a row that was claimed and released before anything ran, where there had been no row: it binds nobody, so that a
# corrected call may follow a mistyped one. It keeps the token, which must not be given again.
NO_CHECKSUM: Final = "0" * 64


def is_durable(durability: str) -> bool:
    """Whether acknowledged rows must survive a power cut."""
    words: dict[object, bool] = {"full": True, "normal": False}
    if durability not in words:
        msg = f"durability is 'full' or 'normal', not {durability!r}"
        raise ValueError(msg)
    return words[durability]


class Status(enum.IntEnum):
    """Where a task stands. The numbers are stored and never change."""

    PENDING = 0
    SUCCEEDED = 1
    FAILED = 2
    RUNNING = 3
    UNKNOWN = 4
    SKIPPED = 5
    CANCELLED = 6

    @property
    def word(self) -> str:
        """The status as people and JSON see it."""
        return self.name.lower()


FINAL = frozenset({Status.SUCCEEDED, Status.SKIPPED, Status.CANCELLED})

# None stands for "no row". What is not in this table never happens; the tests try all of it.
TRANSITIONS: Mapping[Status | None, frozenset[Status | None]] = {
    None: frozenset({Status.PENDING, Status.RUNNING}),
    Status.PENDING: frozenset({Status.RUNNING, Status.SKIPPED, Status.CANCELLED, None}),
    Status.RUNNING: frozenset(
        # The last two only with a dead owner, when the row counts as unknown; none by force.
        {Status.SUCCEEDED, Status.FAILED, Status.PENDING, Status.UNKNOWN, Status.RUNNING, Status.CANCELLED, None}
    ),
    Status.FAILED: frozenset({Status.RUNNING, Status.CANCELLED, Status.FAILED, None}),  # to itself: retry
    Status.UNKNOWN: frozenset(
        {Status.SUCCEEDED, Status.FAILED, Status.UNKNOWN, Status.RUNNING, Status.CANCELLED, None}  # running: to verify
    ),
    Status.SUCCEEDED: frozenset({None}),
    Status.SKIPPED: frozenset({None}),
    Status.CANCELLED: frozenset({None}),
}


class OnCrash(enum.IntEnum):
    """What a claim whose owner died becomes. A larger number is stricter."""

    __hash__ = int.__hash__  # Enum's own is Python code, on the path of every claim through `Policy.pack`

    RERUN = 0
    VERIFY = 1
    HOLD = 2


class OnFailure(enum.IntEnum):
    """Whether a failed task may run again by itself."""

    __hash__ = int.__hash__

    RETRY = 0
    HOLD = 1


class Verdict(enum.IntEnum):
    """How a task was settled without its owner. The numbers are stored and never change."""

    HAPPENED = 1
    DID_NOT_HAPPEN = 2
    CANNOT_TELL = 3
    RETRY = 4
    SKIPPED = 5
    CANCELLED = 6

    @property
    def word(self) -> str:
        """The verdict as people and JSON see it."""
        return self.name.lower().replace("_", "-")


class Liveness(enum.Enum):
    """Whether an owner lives. Only a proof permits a takeover: of its death, or that its lease has expired."""

    ALIVE = "alive"
    DEAD = "dead"
    CANNOT_TELL = "cannot tell"
    EXPIRED = "lease expired"  # of an owner that may live, and whose task asked to be freed by time

    @property
    def frees(self) -> bool:
        """Whether the owner's task may be decided about without it."""
        return self is Liveness.DEAD or self is Liveness.EXPIRED


class Limits(NamedTuple):
    """How long a claim is good for without a renewal, and how long its job may take; None: as long as it likes."""

    lease_ms: int | None = None
    timeout_ms: int | None = None


class Deadlines(NamedTuple):
    """When a claim's lease expires, and when its job is overdue: milliseconds since this boot, or None."""

    lease_ms: int | None
    overdue_ms: int | None


class Policy(NamedTuple):
    """What the claim asked for, stored with it as one integer. The last two: limits, arguments have a row beside it."""

    on_crash: OnCrash = OnCrash.HOLD
    on_failure: OnFailure = OnFailure.RETRY
    max_attempts: int = 10
    is_limited: bool = False
    keeps_arguments: bool = False

    @functools.cache  # noqa: B019 - a process has few policies
    def pack(self) -> int:
        """As one integer; the layout is told in schema.sql."""
        besides = self.keeps_arguments << 4 | self.is_limited << 3
        return self.max_attempts << 5 | besides | self.on_failure << 2 | self.on_crash


@functools.cache
def unpack_policy(packed: int) -> Policy:
    """The policy of a stored integer; a file holds few different ones. ValueError where no policy packs so."""
    return Policy(OnCrash(packed & 3), OnFailure(packed >> 2 & 1), packed >> 5, bool(packed & 8), bool(packed & 16))


class Version(NamedTuple):
    """What a compare-and-set compares: a row that still has both has not changed."""

    status: Status
    token: int


class Task(NamedTuple):
    """One row, as stored. ``result`` is the stored tagged JSON, ``updated_at`` microseconds by the wall clock."""

    task_id: str
    status: Status
    checksum: str
    updated_at: int
    boot_stamp: int
    name: str
    token: int
    attempt: int
    owner: int | None
    policy: Policy
    keep_ms: int | None
    result: str | None
    error: str | None
    verdict: Verdict | None
    settled_by: str | None
    evidence: str | None

    @property
    def version(self) -> Version:
        """What a compare-and-set of this row compares."""
        return Version(self.status, self.token)

    @property
    def is_final(self) -> bool:
        """Whether the row never changes again."""
        return self.status in FINAL

    @property
    def is_untried(self) -> bool:
        """Whether it is pending and no attempt counts: none has begun, or the only one was released."""
        return self.status is Status.PENDING and not self.attempt

    @property
    def is_dead_letter(self) -> bool:
        """Failed for good: attempts used up, and nobody has allowed one more."""
        return self.status is Status.FAILED and not _attempts_left(self, self.policy)


class Outcome(NamedTuple, Generic[R]):
    """A call with its circumstances. ``replayed`` is true where the job did not run now."""

    task_id: str
    status: Status
    result: R
    replayed: bool
    attempt: int
    token: int


class Origin(NamedTuple):
    """A place that tasks come from. ``key_note``: of the key of their checksums, or None; see `idemreg.keyed`."""

    registry_id: str
    key_note: str | None = None


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
    return Decision.TAKE_OVER if _attempts_left(row, wanted.policy) else Decision.BECOMES_FAILED


def _stricter(row: Task, wanted: Wanted) -> OnCrash:
    return max(row.policy.on_crash, wanted.policy.on_crash)


def _verifies(row: Task, wanted: Wanted) -> bool:
    return wanted.can_verify and _stricter(row, wanted) is OnCrash.VERIFY


def _failed_is_claimable(row: Task, asked: Policy) -> bool:
    if row.verdict is Verdict.RETRY:  # an operator allowed one more, whatever was used up
        return True
    if row.verdict is Verdict.DID_NOT_HAPPEN:  # settled as not done: nothing failed, so on_failure does not speak
        return _attempts_left(row, asked)
    held = OnFailure.HOLD in (row.policy.on_failure, asked.on_failure)
    return not held and _attempts_left(row, asked)


def _attempts_left(row: Task, asked: Policy) -> bool:
    return row.verdict is Verdict.RETRY or row.attempt < asked.max_attempts


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
