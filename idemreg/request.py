"""What a call asks of the store, and whose it is."""

from __future__ import annotations

import functools
import hashlib
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

from idemreg.errors import ChecksumMismatchError
from idemreg.model import NO_CHECKSUM, Task, Wanted
from idemreg.template import check_task_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.options import Options
    from idemreg.store import Store

__all__ = ["add_task", "check_job", "job_name", "wanted"]

# What the code of a function says of its calls (`inspect` has these numbers as well, and takes 5 ms to import).
_GENERATOR: Final = 0x20
_COROUTINE: Final = 0x80
_ITERABLE_COROUTINE: Final = 0x100  # a generator that can be awaited
_ASYNC_GENERATOR: Final = 0x200


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


def check_job(job: Callable[..., Any], *, is_awaited: bool = False) -> None:
    """TypeError where a call of the job would only make a coroutine or a generator, and run nothing of it.

    ``is_awaited``: the caller awaits what a call returns.
    """
    flags = _code_flags(job)
    if flags & (_GENERATOR | _ASYNC_GENERATOR) and not flags & _ITERABLE_COROUTINE:
        msg = f"{job_name(job)} is a generator function: its calls have no result to store"
        raise TypeError(msg)
    if flags & (_COROUTINE | _ITERABLE_COROUTINE) and not is_awaited:
        msg = f"{job_name(job)} is a coroutine function, and nobody here awaits it: use AsyncRegistry"
        raise TypeError(msg)


def _code_flags(job: Any) -> int:  # noqa: ANN401 - anything that can be called
    while isinstance(job, functools.partial):
        job = job.func
    code = getattr(job, "__code__", None)
    if code is None and callable(job):
        code = getattr(type(job).__call__, "__code__", None)
    return code.co_flags if isinstance(code, CodeType) else 0
