"""The words of the registry as types, and every legal transition in one table.

Nothing here touches a file, a lock or a clock. What a claim asks, and is decided by, is in `idemreg.deciding`.
"""

# Not `from __future__ import annotations`: of a named tuple's fields typing compiles each annotation that is text.

import enum
import functools
from collections.abc import Mapping
from typing import Final, NamedTuple

__all__ = [
    "FINAL",
    "MAX_ATTEMPTS_LIMIT",
    "NO_CHECKSUM",
    "TRANSITIONS",
    "Liveness",
    "OnCrash",
    "OnFailure",
    "Origin",
    "Policy",
    "Status",
    "Task",
    "Verdict",
    "Version",
    "attempts_left",
    "is_durable",
    "of_fields",
    "unpack_policy",
]

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
        return self.status is Status.FAILED and not attempts_left(self, self.policy)


class Origin(NamedTuple):
    """A place that tasks come from. ``key_note``: of the key of their checksums, or None; see `idemreg.keyed`."""

    registry_id: str
    key_note: str | None = None


def attempts_left(row: Task, asked: Policy) -> bool:
    """Whether one more is allowed by the policy that is asked for now, or by an operator."""
    return row.verdict is Verdict.RETRY or row.attempt < asked.max_attempts
