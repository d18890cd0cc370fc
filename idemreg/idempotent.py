"""The decorator: a function becomes a job that runs once a task."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Protocol, Self, TypeVar, cast, overload

from idemreg.attempt import Terms, run
from idemreg.binding import Binder
from idemreg.errors import ChecksumMismatchError
from idemreg.model import NO_CHECKSUM, Outcome, Task, Wanted
from idemreg.tagged import canonical, digest
from idemreg.template import Template, check_task_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from idemreg.options import Options
    from idemreg.store import Store

__all__ = [
    "Checksum",
    "IdempotentFunction",
    "TaskIdSource",
    "Templates",
    "add_task",
    "idempotent",
    "job_name",
    "wanted",
]

P = ParamSpec("P")
R = TypeVar("R")
Q = ParamSpec("Q")  # of a method: what is left behind self
S = TypeVar("S")
T = TypeVar("T")

TaskIdSource = str | Callable[..., str]
Checksum = Callable[..., object]


class IdempotentFunction(Protocol[P, R]):
    """A decorated function: called like the function itself, and asked about its tasks."""

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the job once, or return what it returned before."""

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...

    @overload
    def __get__(
        self: IdempotentFunction[Concatenate[S, Q], T], instance: S, owner: type | None = None, /
    ) -> Callable[Q, T]: ...

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Outcome[R]:
        """The call with its circumstances."""

    def task(self, *args: P.args, **kwargs: P.kwargs) -> Task | None:
        """The row of the task that these arguments name; never runs."""

    def task_id(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The task_id that these arguments name."""

    def add(self, *args: P.args, **kwargs: P.kwargs) -> Task:
        """Make sure that the task of these arguments has a row, `pending` where it is new; never runs."""


class Recipe(NamedTuple):
    """How a call's arguments become a claim."""

    name: str
    binder: Binder
    task_id: Callable[[tuple[Any, ...], dict[str, Any], dict[str, object]], str]
    checksum: Checksum | None
    options: Options

    def wanted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Wanted:
        """The claim that a call with these arguments asks for. Raises before anything is stored."""
        bound = self.binder.bind(*args, **kwargs)
        task_id = self.task_id(args, kwargs, bound)
        if self.checksum is not None:
            return wanted(task_id, self.name, canonical(self.checksum(*args, **kwargs)), self.options)
        return wanted(task_id, self.name, self.binder.canonical(bound), self.options)


def wanted(task_id: object, name: str, content: bytes, options: Options) -> Wanted:
    """The request for a claim; `TaskIdError` where the task_id is malformed."""
    return Wanted(
        check_task_id(task_id),
        name,
        digest(content),
        options.policy,
        options.keep_ms,
        options.verify is not None,
        options.durable_claim,
    )


def add_task(store: Store, request: Wanted) -> Task:
    """Make sure that the task has a row, `pending` where it is new. `ChecksumMismatchError` where it has another's."""
    task = store.add(request)
    if task.checksum != NO_CHECKSUM and (task.name, task.checksum) != (request.name, request.checksum):
        msg = f"task {request.task_id!r} exists, for another job or other arguments"
        raise ChecksumMismatchError(msg, task_id=request.task_id)
    return task


def idempotent(
    function: Callable[P, R],
    source: TaskIdSource,
    terms: Terms,
    *,
    name: str | None,
    exclude: Iterable[str],
    checksum: Checksum | None,
) -> IdempotentFunction[P, R]:
    """Make the function a job. Everything that can be wrong with it is refused here, not at the first call."""
    if inspect.iscoroutinefunction(function):
        msg = f"{function.__qualname__} is a coroutine function; this version decorates plain functions"
        raise TypeError(msg)
    binder = Binder(function, exclude)
    recipe = Recipe(name or function.__qualname__, binder, _task_id(source, binder), checksum, terms.options)

    def call(*args: P.args, **kwargs: P.kwargs) -> Outcome[R]:
        return run(terms, recipe.wanted(args, kwargs), function, args, kwargs)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return run(terms, recipe.wanted(args, kwargs), function, args, kwargs).result

    def task_id(*args: P.args, **kwargs: P.kwargs) -> str:
        return check_task_id(recipe.task_id(args, kwargs, binder.bind(*args, **kwargs)))

    def task(*args: P.args, **kwargs: P.kwargs) -> Task | None:
        (row,) = terms.store.get([task_id(*args, **kwargs)])
        return row

    def add(*args: P.args, **kwargs: P.kwargs) -> Task:
        return add_task(terms.store, recipe.wanted(args, kwargs))

    # A real function, not an object with __call__: Celery, FastAPI and pickle look for one, and read its signature.
    decorated = cast("Any", wrapper)
    decorated.__signature__ = inspect.signature(function)
    decorated.call, decorated.task, decorated.task_id, decorated.add = call, task, task_id, add
    return cast("IdempotentFunction[P, R]", decorated)


class Templates:
    """The literal templates of one registry: two jobs with one of them would answer for each other's tasks."""

    def __init__(self) -> None:
        self._jobs: dict[str, str] = {}

    def claim(self, source: TaskIdSource, function: Callable[..., Any]) -> None:
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


def job_name(job: Callable[..., Any]) -> str:
    """The qualified name of a function, of what a partial applies, or of a callable's class."""
    while isinstance(job, functools.partial):
        job = job.func
    return getattr(job, "__qualname__", None) or type(job).__qualname__


def _task_id(
    source: TaskIdSource, binder: Binder
) -> Callable[[tuple[Any, ...], dict[str, Any], dict[str, object]], str]:
    if isinstance(source, str):
        render = Template(source, binder.parameters).render
        return lambda _args, _kwargs, bound: render(bound)
    make: object = source
    if not callable(make):
        msg = f"the task_id comes from a template such as 'order:{{order_id}}' or from a callable, not from {make!r}"
        raise TypeError(msg)
    return lambda args, kwargs, _bound: source(*args, **kwargs)
