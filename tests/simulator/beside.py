"""What must hold of what lies beside a task's row: the limits of its claim, its kept arguments, its steps.

Told from schema.sql and without the product, as all that judges here is: each function looks at a task before and
behind one commit, and at what its author was told to do.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from tests.simulator.machine import Doing
    from tests.simulator.model import Row

__all__ = ["EPOCH_BITS", "FINAL", "STATUSES", "Lease", "Step", "claimed", "ended", "expected_step", "swept", "went_on"]

STATUSES: Final = range(7)
PENDING, SUCCEEDED, FAILED, RUNNING, UNKNOWN, SKIPPED, CANCELLED = STATUSES
FINAL: Final = (SUCCEEDED, SKIPPED, CANCELLED)
DID_NOT_HAPPEN, RETRY = 2, 4
EPOCH_BITS: Final = 40
MS_BITS: Final = (1 << EPOCH_BITS) - 1


class Lease(NamedTuple):
    """Of one claim: until that stamp nobody else may take its task."""

    token: int
    until: int


class Step(NamedTuple):
    """A piece of the job that is done."""

    name: str
    token: int
    result: str | None


def expected_step(name: str, token: int) -> Any:
    """What a step must give, now or later."""
    return {"step": name, "n": token}


# --- each kind of commit ----------------------------------------------------------------------------------------


def claimed(old: Row | None, new: Row, doing: Doing, begun_ms: int, now_ms: int, *, is_hook: bool) -> str:
    """A claim has the limits and the arguments that it asked for, and no others; the steps stay."""
    if new.steps != (() if old is None else old.steps):
        return "a claim changed the steps"
    lease_s = None if is_hook else doing.lease_s
    if lease_s is None and new.lease is not None:
        return "it has a lease, which nobody asked for"
    if lease_s is not None and (problem := _granted(new, lease_s, begun_ms, now_ms)):
        return problem
    if doing.kind == "sweep":
        return "" if old is not None and new.kept == old.kept else "a sweep changed the arguments"
    if (None if new.kept is None else argument_of(new.kept)) != doing.kept:
        return f"it keeps {new.kept}, and was to keep {doing.kept}"
    return ""


def went_on(old: Row, new: Row, doing: Doing, begun_ms: int, now_ms: int, in_step: tuple[str, int, str] | None) -> str:
    """Within a claim its lease is renewed, or a step saved that has just ended."""
    if new.kept != old.kept:
        return "the arguments changed"
    if new.lease != old.lease:
        is_longer = old.lease is not None and new.lease is not None and new.lease.until > old.lease.until
        if not is_longer or doing.lease_s is None:
            return f"its lease was {old.lease} and is {new.lease}"
        if problem := _granted(new, doing.lease_s, begun_ms, now_ms):
            return problem
    if new.steps == old.steps:
        return ""
    saved = new.steps[-1] if new.steps else Step("", 0, None)
    if new.steps[:-1] != old.steps or in_step is None or (saved.token, saved.name) != in_step[1:]:
        return f"its steps were {old.steps} and are {new.steps}, in {in_step}"
    is_result = saved.result is not None and json.loads(saved.result) == expected_step(saved.name, saved.token)
    return "" if is_result else f"step {saved.name} was saved with {saved.result}"


def ended(old: Row | None, new: Row) -> str:
    """Whatever ends a claim takes its limits away; what makes the task final its arguments as well."""
    if new.lease is not None:
        return "its lease stays behind its claim"
    if new.steps != (() if old is None else old.steps):
        return "an end changed the steps"
    if new.kept is not None and new.status in FINAL:
        return "it is final, and keeps its arguments"
    was_nothing = new.status == PENDING and new.attempt == 0
    if new.status not in FINAL and new.kept != (None if old is None else old.kept) and not was_nothing:
        return "the arguments changed"
    return ""


def swept(old: Row | None) -> str:
    """A sweep runs what a dead owner left with its arguments, or what somebody has said may run; and nothing else."""
    if old is None or old.kept is None:
        return "a sweep ran what keeps no arguments"
    if old.status == PENDING:
        return "" if old.attempt else "a sweep ran what never began"
    if old.status == FAILED:
        return "" if old.verdict in {DID_NOT_HAPPEN, RETRY} else "a sweep ran again what simply failed"
    return ""


def argument_of(kept: str) -> Any:
    """The argument that tells one call of a job from another."""
    return json.loads(kept)["n"]


def _granted(row: Row, lease_s: float, begun_ms: int, now_ms: int) -> str:
    """Its lease lasts so long from a moment since its author began, by the time since boot."""
    if row.lease is None or row.lease.token != row.token:
        return f"it has the lease {row.lease}"
    given_ms = (row.lease.until & MS_BITS) - round(lease_s * 1_000)
    return "" if begun_ms <= given_ms <= now_ms else f"its lease was given at {given_ms}, and it is {now_ms}"
