"""What a caller is told who is not granted a claim: one error a situation, with what it is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idemreg.errors import (
    ChecksumMismatchError,
    StoreError,
    TaskDoneError,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
)
from idemreg.store import Mismatch, Refused, Unknown, Unsure

if TYPE_CHECKING:
    from idemreg.deciding import Outcome, Wanted
    from idemreg.model import Task
    from idemreg.store import Running

__all__ = ["done_error", "refusal", "running_error", "unknown_error"]


def done_error(happened: str, outcome: Outcome[Any]) -> TaskDoneError:
    """The task has ended, and the caller wants no replay, or there is none."""
    error = TaskDoneError(f"task {outcome.task_id!r} {happened}", task_id=outcome.task_id)
    error.outcome = outcome
    return error


def running_error(answer: Running) -> TaskRunningError:
    """Somebody else has the task."""
    task, owner = answer
    msg = f"task {task.task_id!r} is running: {owner.describe()}"
    error = TaskRunningError(msg, task_id=task.task_id)
    error.owner, error.since = owner, task.updated_at
    return error


def refusal(answer: Mismatch | Refused | Unknown | Unsure, wanted: Wanted) -> Exception:
    """What an answer other than a claim means to the caller."""
    task_id = wanted.task_id
    match answer:
        case Mismatch(task) if task.name != wanted.name:
            msg = f"task {task_id!r} belongs to the job {task.name!r}, not to {wanted.name!r}"
            return ChecksumMismatchError(msg, task_id=task_id)
        case Mismatch():
            return ChecksumMismatchError(f"task {task_id!r} was claimed with other arguments", task_id=task_id)
        case Refused(task):
            failed = TaskFailedError(
                f"task {task_id!r} failed in attempt {task.attempt}: {_first_line(task.error)}", task_id=task_id
            )
            failed.task = task
            return failed
        case Unknown(task):
            return unknown_error(task)
        case Unsure(cause):
            store_error = StoreError(f"the claim of task {task_id!r} could not be stored", task_id=task_id)
            store_error.__cause__ = cause
            return store_error


def unknown_error(task: Task) -> TaskUnknownError:
    """Nobody can know whether the effect happened."""
    msg = f"nobody knows whether task {task.task_id!r} happened: {_first_line(task.error)}"
    error = TaskUnknownError(msg, task_id=task.task_id)
    error.task = task
    return error


def _first_line(error: str | None) -> str:
    """The line of a stored error that says what happened."""
    return (error or "no error was stored").partition("\n")[0]
