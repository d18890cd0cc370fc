"""What an operator does to a task without running it: skip, cancel, retry, resolve, forget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from idemreg.clockcheck.alarm import NEXT, is_alarm
from idemreg.codec import store_result
from idemreg.ends import bounded
from idemreg.errors import TransitionError
from idemreg.model import Verdict
from idemreg.store import Lost, Settlement
from idemreg.template import check_task_id

if TYPE_CHECKING:
    from idemreg.model import Task
    from idemreg.store import Store

__all__ = ["ResolveVerdict", "forget", "resolve", "settle"]

ResolveVerdict = Literal["happened", "did-not-happen", "cannot-tell"]

EVIDENCE_CHARACTERS = 4_096
BY_CHARACTERS = 200

_RESOLVE = {one.word: one for one in (Verdict.HAPPENED, Verdict.DID_NOT_HAPPEN, Verdict.CANNOT_TELL)}

# What each verdict is called in an error, and what it needs.
_NEEDS = {
    Verdict.HAPPENED: "only an unknown task can be resolved",
    Verdict.DID_NOT_HAPPEN: "only an unknown task can be resolved",
    Verdict.CANNOT_TELL: "only an unknown task can be resolved",
    Verdict.RETRY: "only a failed task can be retried",
    Verdict.SKIPPED: "only a pending task can be skipped",
    Verdict.CANCELLED: "only a pending, failed or unknown task can be cancelled",
}

_RUNS_AGAIN = frozenset({Verdict.DID_NOT_HAPPEN, Verdict.RETRY})


def resolve(
    store: Store, task_id: str, verdict: ResolveVerdict | Verdict, result: object, evidence: str, by: str
) -> Task:
    """End an unknown task by an operator's knowledge."""
    chosen = verdict if isinstance(verdict, Verdict) else _RESOLVE.get(verdict)
    if chosen is None or chosen not in _RESOLVE.values():
        msg = f"verdict is one of {', '.join(_RESOLVE)}, not {verdict!r}"
        raise ValueError(msg)
    return settle(store, task_id, chosen, evidence, by, result)


def settle(store: Store, task_id: str, verdict: Verdict, evidence: str, by: str, result: object = None) -> Task:
    """Settle the task, or raise `TransitionError` where its status does not allow the verdict.

    Or where it is an alarm of the clock, which nothing would run again.
    """
    task_id = check_task_id(task_id)
    if verdict in _RUNS_AGAIN:
        _refuse_alarm(store, task_id)
    text = store_result(result, None) if verdict is Verdict.HAPPENED else None
    settlement = Settlement(verdict, bounded(by, BY_CHARACTERS), bounded(evidence, EVIDENCE_CHARACTERS), text)
    answer = store.settle(task_id, settlement)
    if isinstance(answer, Lost):
        raise _not_allowed(store, task_id, answer.task, _NEEDS[verdict])
    return answer


def forget(store: Store, task_id: str, *, force: bool) -> Task:
    """Remove the row and give it back, or raise `TransitionError` where its status does not allow it."""
    task_id = check_task_id(task_id)
    answer = store.forget(task_id, force=force)
    if isinstance(answer, Lost):
        needs = "an unknown task can be forgotten only by force, a running one only by force and with a dead owner"
        raise _not_allowed(store, task_id, answer.task, needs)
    return answer


def _refuse_alarm(store: Store, task_id: str) -> None:
    row = store.get([task_id])[0]
    if row is not None and is_alarm(row) and not row.is_final:
        msg = f"task {task_id!r} is an alarm of the clock: it has no job that could run again"
        raise TransitionError(msg, task_id=task_id, hint=NEXT)


def _not_allowed(store: Store, task_id: str, task: Task | None, needs: str) -> TransitionError:
    if task is None:
        return TransitionError(f"there is no task {task_id!r}", task_id=task_id, hint="`idemreg list` shows the tasks.")
    owner = store.owner(task)
    state = task.status.word if owner is None else f"{task.status.word} ({owner.describe()})"
    return TransitionError(f"task {task_id!r} is {state}: {needs}", task_id=task_id)
