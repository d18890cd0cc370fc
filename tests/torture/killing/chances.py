"""What a process may do, and how often: the kinds of tasks, the calls of the public API, and how a job ends."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from idemreg import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BODY",
    "EVERY_TIME",
    "FOR_SWEEPS",
    "INTERRUPTED",
    "IN_STEP",
    "KINDS",
    "LATE_IN_BODY",
    "MOST_ATTEMPTS",
    "OPTIONS",
    "POLICIES",
    "STEPS",
    "SWEEP",
    "VERDICTS",
    "WITH_STEPS",
    "JobFailedError",
    "JobInterruptedError",
    "JobLaterError",
    "JobUnsureError",
    "draw_call",
    "draw_end",
    "is_left",
    "kind_of",
    "task_id",
]

MOST_ATTEMPTS: Final = 4
# How often which kind of task comes, and what it asks for on a crash.
KINDS: Final = (
    *("hold", "leased", "claim", "rerun", "kept", "kept", "steps"),
    *("effects", "effects", "effects", "verify", "batch", "batch"),
)
POLICIES: Final = {
    "hold": "hold",
    "leased": "hold",
    "claim": "hold",
    "rerun": "rerun",
    "kept": "rerun",
    "steps": "rerun",
    "effects": "rerun",
    "verify": "verify",
    "batch": "hold",
}
# What is called, out of a hundred times: usually, and after what was told last.
WHAT: Final = ("work", "get", "resolve", "forget", "retry", "late", "sweep")
USUALLY: Final = (71, 8, 4, 4, 2, 10, 1)
AFTER: Final = {
    "done": (57, 8, 2, 25, 2, 5, 1),
    "unknown": (29, 5, 50, 10, 5, 0, 1),
    "failed": (19, 5, 5, 20, 50, 0, 1),
}
LATE_IN_BODY: Final = 0.5  # so often is an earlier claim of the thread ended once more, where it has the task again
SWEEPS: Final = 0.5  # so much of what a sweeping process does
# Of these kinds most that began and did not end are left to whoever sweeps, and so often.
FOR_SWEEPS: Final = frozenset({"kept", "leased"})
LEFT_TO_SWEEPS: Final = 0.9
EVERY_TIME: Final = "sweep.found"  # whoever stops here does so whenever he comes here
STEPS: Final = 3  # of a job that has any
WITH_STEPS: Final = frozenset({"kept", "steps"})
IN_STEP: Final = 0.4  # so often does who is to die in such a job do so at the next body, of it or of a step
SWEEP: Final = "-"  # in place of a task: all that there are
INTERRUPTED: Final = "interrupted"  # the end of a job that could not save a step
VERDICTS: Final = (Verdict.HAPPENED, Verdict.DID_NOT_HAPPEN, Verdict.DID_NOT_HAPPEN, Verdict.CANNOT_TELL)
BODY: Final = "body"  # in place of a fault point: inside a body


def draw_call(chance: random.Random, told: str, *, is_sweeper: bool) -> str:
    """What is called next of a task of which the last call was told this."""
    if is_sweeper and chance.random() < SWEEPS:
        return "sweep"
    return chance.choices(WHAT, AFTER.get(told, USUALLY))[0]


def is_left(chance: random.Random, status: str) -> bool:
    """Whether nobody calls a task of those kinds in that status, and a sweep is to find it."""
    return status in ("running", "pending") and chance.random() < LEFT_TO_SWEEPS


def kind_of(seed: int, number: int) -> str:
    """Of which kind the task is."""
    block, place = divmod(number, len(KINDS))
    return _shuffled(seed, block)[place]


@cache
def _shuffled(seed: int, block: int) -> Sequence[str]:
    """Of so many tasks each kind is as often as it is to be: by chance alone a short run might lack one."""
    return random.Random(f"{seed}:tasks:{block}").sample(KINDS, len(KINDS))


def task_id(seed: int, number: int) -> str:
    """Its id, which says its kind."""
    return f"{kind_of(seed, number)}-{number}"


class JobFailedError(Exception):
    """What a body raises."""


class JobUnsureError(Exception):
    """What leaves open whether the effect happened."""


class JobLaterError(Exception):
    """What puts the task back."""


class JobInterruptedError(BaseException):
    """What ends a job as a crash does, but for its owner."""


ENDS: Final[tuple[tuple[type[BaseException] | None, str], ...]] = (
    (None, "succeeded"),
    (JobFailedError, "failed"),
    (JobUnsureError, "unknown"),
    (JobLaterError, "released"),
    (JobInterruptedError, INTERRUPTED),
)
# How often each comes, usually; of a job that sweeps run again; and within a sweep, which an interruption would end.
USUAL_ENDS: Final = (80, 12, 3, 5, 0)
ENDS_OF_KEPT: Final = (25, 35, 3, 5, 32)
ENDS_IN_SWEEPS: Final = (22, 70, 3, 5, 0)
OPTIONS: Final[dict[str, Any]] = {
    "unknown_on": (JobUnsureError,),
    "release_on": (JobLaterError,),
    "max_attempts": MOST_ATTEMPTS,
}


def draw_end(chance: random.Random, task: str, *, in_sweep: bool) -> tuple[type[BaseException] | None, str]:
    """How a job of the task ends: what it raises, and the word for it."""
    of_kept = ENDS_IN_SWEEPS if in_sweep else ENDS_OF_KEPT
    return chance.choices(ENDS, of_kept if task.startswith("kept") else USUAL_ENDS)[0]
