"""The decorator: a function becomes a job that runs once a task."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    NamedTuple,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    cast,
    overload,
)

from idemreg.attempt import run, run_walk
from idemreg.binding import Binder
from idemreg.ends import describe, message_of
from idemreg.errors import IdemregError, RecoveryError
from idemreg.model import NO_CHECKSUM
from idemreg.overtime import within_time
from idemreg.recovery import Kept
from idemreg.request import add_task, checked_name, wanted_of
from idemreg.tagged import canonical, decode_arguments, encode_arguments
from idemreg.template import Template, check_task_id
from idemreg.walk import adrive

if TYPE_CHECKING:
    from collections.abc import Iterable

    from idemreg.claim import Terms
    from idemreg.deciding import Outcome, Wanted
    from idemreg.model import Task
    from idemreg.offload import Offload
    from idemreg.options import Options

__all__ = [
    "AsyncIdempotentFunction",
    "Checksum",
    "Decorator",
    "IdempotentFunction",
    "Recipe",
    "Recoverable",
    "TaskIdSource",
    "claim_template",
    "idempotent",
    "note_recoverable",
    "recipe_of",
    "unless_bare",
]

P = ParamSpec("P")
R = TypeVar("R")
Q = ParamSpec("Q")  # of a method: what is left behind self
S = TypeVar("S")
T = TypeVar("T")

# The first parameters by which a function in the body of a class is known for a method.
METHOD_PARAMETERS: Final = frozenset({"self", "cls"})
ATTRIBUTES: Final = ("call", "task", "task_id", "add")

TaskIdSource = str | Callable[..., str]
Checksum = Callable[..., object]


class IdempotentFunction(Protocol[P, R]):
    """A decorated function: called like the function itself, and asked about its tasks.

    What asks about the tasks of a method is not bound: `Shop.order.call(shop, 7)`. Without the instance it is refused.
    """

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


class AsyncIdempotentFunction(Protocol[P, R]):
    """A decorated coroutine function; what asks about its tasks is awaited as well."""

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Run the job once, or return what it returned before."""

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...

    @overload
    def __get__(
        self: AsyncIdempotentFunction[Concatenate[S, Q], T], instance: S, owner: type | None = None, /
    ) -> Callable[Q, Coroutine[Any, Any, T]]: ...

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Outcome[R]]:
        """The call with its circumstances."""

    def task(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Task | None]:
        """The row of the task that these arguments name; never runs."""

    def task_id(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The task_id that these arguments name."""

    def add(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Task]:
        """Make sure that the task of these arguments has a row, `pending` where it is new; never runs."""


class Decorator(Protocol):
    """What `Registry.idempotent` gives: a coroutine function stays one."""

    @overload
    def __call__(  # type: ignore[overload-overlap] # any R may be a coroutine; the first one that fits is meant
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> AsyncIdempotentFunction[P, T]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> IdempotentFunction[P, R]: ...


class Recipe(NamedTuple):
    """How a call's arguments become a claim."""

    name: str
    binder: Binder
    task_id: Callable[[dict[str, object], tuple[Any, ...], dict[str, Any]], str]
    checksum: Checksum | None
    options: Options
    recover: bool = False

    def wanted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Wanted:
        """The claim that a call with these arguments asks for. Raises before anything is stored."""
        bound = self.binder.bind(*args, **kwargs)
        task_id = self.task_id(bound, args, kwargs)
        content = self.binder.canonical(bound) if self.checksum is None else self._checksummed(args, kwargs)
        request = wanted_of(task_id, self.name, content, self.options)
        if not self.recover:
            return request
        return request._replace(kept=Kept(is_command=False, arguments=encode_arguments(self.binder.to_keep(bound))))

    def _checksummed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        return canonical(cast("Checksum", self.checksum)(*args, **kwargs))

    def again(self, task: Task, kept: Kept) -> tuple[Wanted, tuple[Any, ...], dict[str, Any]]:
        """The claim and the arguments of a rerun. `RecoveryError` where the function makes another task of them now.

        The task_id is the stored one: what makes one may look at more than the arguments, at the date say.
        """
        try:
            stored = decode_arguments(kept.arguments)
            args, kwargs = self.binder.counted_call_of(stored)
            bound = self.binder.bind(*args, **kwargs)
            content = self.binder.canonical(bound) if self.checksum is None else self._checksummed(args, kwargs)
            request = wanted_of(task.task_id, self.name, content, self.options)
            args, kwargs = self.binder.call_of(stored)
        except Exception as error:
            msg = f"{self.name} cannot be called with what is kept of its arguments: {_said(error)}"
            raise RecoveryError(msg, task_id=task.task_id) from error  # of a checksum= too: nothing ran, and may yet
        if task.checksum not in (request.checksum, NO_CHECKSUM):
            msg = f"{self.name} has changed: what is kept of its arguments has another checksum now"
            raise RecoveryError(msg, task_id=task.task_id)
        return request._replace(kept=kept), args, kwargs


def _said(error: Exception) -> str:
    return message_of(error) if isinstance(error, (TypeError, IdemregError)) else describe(error, "message")


class Recoverable(NamedTuple):
    """A function whose tasks can be run again without a caller."""

    recipe: Recipe
    function: Callable[..., Any]


def recipe_of(
    function: Callable[..., Any],
    source: TaskIdSource,
    options: Options,
    *,
    name: str | None,
    exclude: Iterable[str],
    checksum: Checksum | None,
    recover: bool,
) -> Recipe:
    """How calls of the function become claims. Everything that can be wrong with it is refused here, not at a call."""
    binder = Binder(function, exclude)
    if recover:
        binder.check_keepable()
    called = checked_name(name or function.__qualname__)
    return Recipe(called, binder, _task_id(source, binder), checksum, options, recover)


def idempotent(function: Callable[P, R], recipe: Recipe, terms: Terms) -> Any:  # noqa: ANN401 - what `Decorator` says
    """Make the function a job. Of a coroutine function the ``terms`` are those of an asynchronous caller."""
    binder = recipe.binder

    def task_id(*args: P.args, **kwargs: P.kwargs) -> str:
        return check_task_id(recipe.task_id(binder.bind(*args, **kwargs), args, kwargs))

    make = _coroutine_job if inspect.iscoroutinefunction(function) else _plain_job
    # A real function, not an object with __call__: Celery, FastAPI and pickle look for one, and read its signature.
    decorated = make(terms, recipe, task_id, function)
    decorated.__signature__ = inspect.signature(function)
    decorated.task_id = task_id
    owner, first = function.__qualname__.rpartition(".")[0], next(iter(binder.parameters), "")
    if first in METHOD_PARAMETERS and owner and not owner.endswith("<locals>"):
        for attribute in ATTRIBUTES:
            setattr(decorated, attribute, _of_method(getattr(decorated, attribute), function, owner, first, attribute))
    return decorated


def _of_method(
    ask: Callable[..., Any], function: Callable[..., Any], owner: str, first: str, attribute: str
) -> Callable[..., Any]:
    """An attribute of a method: refuses what is not given the instance (or the class) as its first argument.

    Python binds a method, and not the attributes of its function: `shop.order.call(7)` would take 7 for `self`. The
    class does not exist yet when its methods are decorated, so it is known by its name.
    """

    def checked(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if args and not _is_of(args[0], owner, function.__module__):
            msg = (
                f"{function.__qualname__}.{attribute} is not bound to an instance, and its first argument is"
                f" {args[0]!r}: write {owner}.{function.__name__}.{attribute}({first}, ...)"
            )
            raise TypeError(msg)
        return ask(*args, **kwargs)

    return checked


def _is_of(value: Any, owner: str, module: str) -> bool:  # noqa: ANN401
    """Whether it is an instance of the class of that name, or the class itself, or one derived from it."""
    kinds = [*value.__class__.__mro__, *(value.__mro__ if isinstance(value, type) else ())]
    return any((kind.__qualname__, kind.__module__) == (owner, module) for kind in kinds)


def _plain_job(terms: Terms, recipe: Recipe, task_id: Callable[..., str], function: Callable[..., Any]) -> Any:  # noqa: ANN401
    def call(*args: Any, **kwargs: Any) -> Outcome[Any]:  # noqa: ANN401
        return run(terms, recipe.wanted(args, kwargs), function, args, kwargs)

    @functools.wraps(function)
    def decorated(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return run(terms, recipe.wanted(args, kwargs), function, args, kwargs).result

    def task(*args: Any, **kwargs: Any) -> Task | None:  # noqa: ANN401
        return terms.store.get([task_id(*args, **kwargs)], durable=terms.options.durable)[0]

    def add(*args: Any, **kwargs: Any) -> Task:  # noqa: ANN401
        return add_task(terms.store, recipe.wanted(args, kwargs))

    job = cast("Any", decorated)
    job.call, job.task, job.add = call, task, add
    return job


def _coroutine_job(terms: Terms, recipe: Recipe, task_id: Callable[..., str], function: Callable[..., Any]) -> Any:  # noqa: ANN401
    offload = cast("Offload", terms.offload)
    get = functools.partial(terms.store.get, durable=terms.options.durable)
    timed = within_time(terms, function)

    async def call(*args: Any, **kwargs: Any) -> Outcome[Any]:  # noqa: ANN401
        walk = run_walk(terms, recipe.wanted(args, kwargs), timed, args, kwargs)
        return await adrive(walk, offload.host())

    @functools.wraps(function)
    async def decorated(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return (await call(*args, **kwargs)).result

    async def task(*args: Any, **kwargs: Any) -> Task | None:  # noqa: ANN401
        rows: list[Task | None] = await offload.call(get, [task_id(*args, **kwargs)])
        return rows[0]

    async def add(*args: Any, **kwargs: Any) -> Task:  # noqa: ANN401
        return cast("Task", await offload.call(add_task, terms.store, recipe.wanted(args, kwargs)))

    job = cast("Any", decorated)
    job.call, job.task, job.add = call, task, add
    return job


def _task_id(
    source: TaskIdSource, binder: Binder
) -> Callable[[dict[str, object], tuple[Any, ...], dict[str, Any]], str]:
    if isinstance(source, str):
        return Template(source, binder.parameters).render
    make: object = source
    if not callable(make):
        msg = f"the task_id comes from a template such as 'order:{{order_id}}' or from a callable, not from {make!r}"
        raise TypeError(msg)
    return lambda _bound, args, kwargs: source(*args, **kwargs)


def unless_bare(source: TaskIdSource, decorate: Callable[[Callable[..., Any]], Any]) -> Callable[..., Any]:
    """The decorator, which says so where it was written without a task_id, bare.

    The function then came in the place of the callable that makes one, and a call of it comes in the place of the
    function that is to be decorated. Of classes only `str` makes one.
    """
    if inspect.isclass(source) and source is not str:
        msg = f"{source.__qualname__} is a class, which is no job and makes no task_id: decorate its methods"
        raise TypeError(msg)
    if not inspect.isfunction(source) or source.__name__ == "<lambda>":
        return decorate

    def decorate_or_tell(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as above
        if len(args) == 1 and not kwargs and callable(args[0]):
            return decorate(args[0])
        msg = (
            f"{source.__qualname__} was taken for what makes the task_id, since @registry.idempotent was written"
            f' without one: write @registry.idempotent("{_template_for(source)}")'
        )
        raise TypeError(msg)

    return decorate_or_tell


def _template_for(function: Callable[..., Any]) -> str:
    """One that tells apart all calls whose arguments without a default differ."""
    parameters = inspect.signature(function).parameters.values()
    needed = [
        one for one in parameters if one.default is one.empty and one.kind not in {one.VAR_POSITIONAL, one.VAR_KEYWORD}
    ]
    names = [one.name for one in needed if one.name not in METHOD_PARAMETERS]
    return ":".join([function.__name__, *(f"{{{name}}}" for name in names)])


def claim_template(templates: dict[str, str], source: object, function: Callable[..., Any]) -> None:
    """Note whose literal template it is; ValueError where it is another function's. A reloaded module may come again.

    Two jobs with one of them would answer for each other's tasks.
    """
    if not isinstance(source, str):
        return
    job = f"{function.__module__}.{function.__qualname__}"
    other = templates.setdefault(source, job)
    if other != job:
        msg = f"the template {source!r} is {other}'s already; {job} would replay its results: give it its own prefix"
        raise ValueError(msg)


def note_recoverable(known: dict[str, Recoverable], recipe: Recipe, function: Callable[..., Any]) -> None:
    """Note whose tasks can be run again, by the job's name; ValueError where it is another function's."""
    other = known.get(recipe.name, Recoverable(recipe, function)).function
    if (other.__module__, other.__qualname__) != (function.__module__, function.__qualname__):
        msg = (
            f"the name {recipe.name!r} is {other.__qualname__}'s already, so no rerun could tell them apart: give name="
        )
        raise ValueError(msg)
    known[recipe.name] = Recoverable(recipe, function)
