"""What a call asks of the store, and whose it is."""

from __future__ import annotations

import functools
import hashlib
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

from idemreg.deciding import Wanted
from idemreg.errors import ChecksumMismatchError
from idemreg.model import NO_CHECKSUM, Task, of_fields
from idemreg.template import check_task_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.options import Options
    from idemreg.store import Store

__all__ = ["add_task", "check_job", "checked_name", "checksum", "job_name", "wanted", "wanted_of"]

MAX_NAME_CHARACTERS: Final = 1_000

# What the code of a function says of its calls (`inspect` has these numbers as well, and takes 5 ms to import).
_GENERATOR: Final = 0x20
_COROUTINE: Final = 0x80
_ITERABLE_COROUTINE: Final = 0x100  # a generator that can be awaited
_ASYNC_GENERATOR: Final = 0x200


def wanted(task_id: object, name: str, content: bytes, options: Options) -> Wanted:
    """The request for a claim; `TaskIdError` where the task_id is malformed, ValueError where the name is none."""
    return wanted_of(task_id, checked_name(name), content, options)


def wanted_of(task_id: object, name: str, content: bytes, options: Options) -> Wanted:
    """The same for a name that was checked before."""
    key = options.secrecy.key
    fields = (
        check_task_id(task_id),
        name,
        # As `checksum`, whose call would be a hundredth of a duplicate.
        hashlib.sha256(content).hexdigest() if key is None else key.digest(content),
        options.policy,
        options.keep_ms,
        options.verify is not None,
        options.durable,
        None,  # a claim of this process, and one that `Store.begin` may grant
        None,
        None,
    )
    return of_fields(Wanted, fields)


def checked_name(name: object) -> str:
    """The name of a job, if it is one; TypeError or ValueError says why it is not."""
    if type(name) is not str:
        msg = f"name is text, not {type(name).__name__}"
        raise TypeError(msg)
    has_surrogates = not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name)
    if len(name) > MAX_NAME_CHARACTERS or has_surrogates:
        msg = f"name is at most {MAX_NAME_CHARACTERS:,} characters of valid Unicode, not {name[:80]!a}"
        raise ValueError(msg)
    return name


def checksum(content: bytes, options: Options) -> str:
    """What is stored of the arguments."""
    key = options.secrecy.key
    # `tagged.digest` imports late, for programs that make no request.
    return hashlib.sha256(content).hexdigest() if key is None else key.digest(content)


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
