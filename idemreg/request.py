"""What a call asks of the store, and whose it is."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any

from idemreg.errors import ChecksumMismatchError
from idemreg.model import NO_CHECKSUM, Task, Wanted
from idemreg.template import check_task_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.options import Options
    from idemreg.store import Store

__all__ = ["Templates", "add_task", "job_name", "wanted"]


def wanted(task_id: object, name: str, content: bytes, options: Options) -> Wanted:
    """The request for a claim; `TaskIdError` where the task_id is malformed."""
    return Wanted(
        check_task_id(task_id),
        name,
        hashlib.sha256(content).hexdigest(),  # `tagged.digest` imports late, for programs that make no request
        options.policy,
        options.keep_ms,
        options.verify is not None,
        options.durable,
    )


def add_task(store: Store, request: Wanted) -> Task:
    """Make sure that the task has a row, `pending` where it is new. `ChecksumMismatchError` where it has another's."""
    task = store.add(request)
    if task.checksum != NO_CHECKSUM and (task.name, task.checksum) != (request.name, request.checksum):
        msg = f"task {request.task_id!r} exists, for another job or other arguments"
        raise ChecksumMismatchError(msg, task_id=request.task_id)
    return task


def job_name(job: Callable[..., Any]) -> str:
    """The qualified name of a function, of what a partial applies, or of a callable's class."""
    while isinstance(job, functools.partial):
        job = job.func
    return getattr(job, "__qualname__", None) or type(job).__qualname__


class Templates:
    """The literal templates of one registry: two jobs with one of them would answer for each other's tasks."""

    def __init__(self) -> None:
        self._jobs: dict[str, str] = {}

    def claim(self, source: object, function: Callable[..., Any]) -> None:
        """Note whose template it is; ValueError where it is another function's. A reloaded module may come again."""
        if not isinstance(source, str):
            return
        job = f"{function.__module__}.{function.__qualname__}"
        other = self._jobs.setdefault(source, job)
        if other != job:
            msg = (
                f"the template {source!r} is {other}'s already; {job} would replay its results: give it its own prefix"
            )
            raise ValueError(msg)
