"""The decorator keeps the function what it was, and refuses at decoration whatever could go wrong at 03:00."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import pickle
import re
import threading
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import ArgumentError, ChecksumMismatchError, Registry, Status, TaskIdError, TaskRunningError
from idemreg.testing import ManualClock, throw_away_registry
from tests.support.names import shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from pathlib import Path

    from idemreg.idempotent import TaskIdSource

# Touches no file: it is only opened by the tests that give it a path of its own.
importable = Registry("/nonexistent/jobs.db")


@importable.idempotent("importable:{number}")
def at_import(number: int) -> int:
    """A job that pickle finds by its name."""
    return number


# --- what stays -------------------------------------------------------------------------------------------------


def test_the_signature_is_kept(registry: Registry) -> None:
    """inspect, functools and argument checks of other libraries see the function itself: name, docs, parameters."""

    def plain(one: int, /, two: str = "b", *rest: int, three: float, four: bool = True, **more: str) -> dict[str, int]:
        """What it does."""
        return {}

    job: Any = registry.idempotent("task:{one}")(plain)
    assert inspect.isfunction(job)
    assert inspect.signature(job) == inspect.signature(plain)
    assert inspect.getfullargspec(job) == inspect.getfullargspec(plain)
    assert inspect.unwrap(job) is plain
    for field in functools.WRAPPER_ASSIGNMENTS:
        assert getattr(job, field) == getattr(plain, field)


def test_a_decorated_function_is_pickled_by_its_name() -> None:
    """A worker pool may carry the job: what arrives is the decorated function, not the bare one."""
    assert pickle.loads(pickle.dumps(at_import)) is at_import  # noqa: S301 - our own bytes


def test_decorating_opens_no_file(tmp_path: Path) -> None:
    """A module with decorated functions can be imported where the registry's file cannot be: nothing is touched."""
    registry = Registry(tmp_path / "jobs.db")
    registry.idempotent("task")(lambda: None)
    assert not list(tmp_path.iterdir())


def test_the_innermost_of_several_decorators(registry: Registry) -> None:
    """A decorator outside of it runs at every call, the job inside only once."""
    calls: list[str] = []

    def outside(function: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> str:
            calls.append("outside")
            return function(*args, **kwargs)

        return wrapper

    @outside
    @registry.idempotent("task:{number}")
    def job(number: int) -> str:
        calls.append("inside")
        return "result"

    assert job(1) == job(1) == "result"
    assert calls == ["outside", "inside", "outside"]


def test_wrong_arguments_are_the_functions_own_type_error(registry: Registry) -> None:
    """A call that does not fit raises as Python would, naming the job, and nothing is stored."""

    @registry.idempotent("task:{number}")
    def job(number: int) -> None: ...

    wrong: list[tuple[Any, Any]] = [((), {}), ((1, 2), {}), ((1,), {"other": 2})]
    for args, kwargs in wrong:
        with pytest.raises(TypeError, match="job"):
            job(*args, **kwargs)
    assert registry.count() == {}


def test_a_call_with_its_circumstances(registry: Registry) -> None:
    """.call gives the outcome, .task the row or None, .task_id the name, .add a pending row; only .call runs."""
    entered: list[int] = []

    @registry.idempotent("task:{number}")
    def job(number: int) -> int:
        entered.append(number)
        return number * 2

    assert job.task_id(7) == "task:7"
    assert job.task(7) is None
    assert job.add(7).status is Status.PENDING
    assert entered == []
    outcome = job.call(7)
    assert (outcome.task_id, outcome.result, outcome.replayed, outcome.attempt) == ("task:7", 14, False, 1)
    assert job.call(7).replayed
    row = job.task(7)
    assert row is not None
    assert (row.status, row.name) == (Status.SUCCEEDED, job.__qualname__)
    assert entered == [7]


def test_methods_leave_self_out(registry: Registry) -> None:
    """Two instances, and a class, are one caller: self and cls are neither counted nor in need of canonical bytes."""
    entered: list[int] = []

    class Shop:
        @registry.idempotent("order:{number}")
        def order(self, number: int) -> int:
            entered.append(number)
            return number

        @classmethod
        @registry.idempotent("stock:{number}")
        def stock(cls, number: int) -> int:
            entered.append(number)
            return number

    assert Shop().order(1) == Shop().order(1) == 1
    assert Shop.stock(2) == Shop().stock(2) == 2  # type: ignore[call-arg, arg-type] # mypy does not bind through classmethod
    assert entered == [1, 2]


async def awaited(asked: Awaitable[object]) -> object:
    return await asked


@pytest.mark.parametrize("attribute", ["call", "task", "task_id", "add"])
def test_what_asks_about_a_methods_tasks_takes_the_instance_first(registry: Registry, attribute: str) -> None:
    """Python does not bind a method's attributes, so the first argument would become self: refused, never run."""

    class Shop:
        @registry.idempotent("order:{number}")
        def order(self, number: int = 0) -> int:
            assert isinstance(self, Shop)
            return number

        @registry.idempotent("later:{number}")
        async def later(self, number: int = 0) -> int:
            assert isinstance(self, Shop)
            return number

        @classmethod
        @registry.idempotent("stock:{number}")
        def stock(cls, number: int = 0) -> int:
            assert issubclass(cls, Shop)
            return number

        @staticmethod
        @registry.idempotent("free:{number}")
        def free(number: int = 0) -> int:
            return number

    class Branch(Shop): ...

    method: Any
    for method in (Shop().order, Shop.order, Shop().later, Shop().stock, Branch.stock):
        with pytest.raises(TypeError, match=rf"Shop\.\w+\.{attribute}\(\w+, \.\.\.\)"):
            getattr(method, attribute)(1)
    assert registry.count() == {}
    for of in (Shop(), Branch()):
        getattr(Shop.order, attribute)(of, 1)
        if inspect.isawaitable(asked := getattr(Branch.later, attribute)(of, 1)):
            asyncio.run(awaited(asked))
        getattr(Shop.stock, attribute)(type(of), 1)
    getattr(Shop().free, attribute)(1)
    getattr(Shop.order, attribute)(self=Shop(), number=1)
    with pytest.raises(TypeError, match="self"):
        getattr(Shop.order, attribute)()
    assert {task.task_id for task in registry.tasks()} <= {"order:1", "later:1", "stock:1", "free:1"}


# --- what counts ------------------------------------------------------------------------------------------------


def counted(registry: Registry, *calls: Callable[[Any], object]) -> list[bool]:
    """Whether each call of one task, behind the first, is taken for the same work."""

    @registry.idempotent(lambda *args, **kwargs: "task")
    def job(value: object = None, other: object = None) -> None: ...

    calls[0](job)
    same = []
    for call in calls[1:]:
        try:
            call(job)
            same.append(True)
        except ChecksumMismatchError:
            same.append(False)
    return same


def test_values_that_compare_equal_but_differ_are_told_apart(registry: Registry) -> None:
    """1, 1.0, True and "1" are other arguments; so are 0 and False, and -0.0 and 0.0."""
    assert counted(
        registry,
        lambda job: job([1, 0, 0.0]),
        lambda job: job([1.0, 0, 0.0]),
        lambda job: job([True, 0, 0.0]),
        lambda job: job(["1", 0, 0.0]),
        lambda job: job([1, False, 0.0]),
        lambda job: job([1, 0, -0.0]),
        lambda job: job([1, 0, 0.0]),
    ) == [False, False, False, False, False, True]


def test_tuple_and_list_count_as_one(registry: Registry) -> None:
    """A queue that carries JSON turns tuples into lists, and keyword order is no one's intention."""
    assert counted(
        registry,
        lambda job: job((1, (2, 3)), {"a": 1, "b": 2}),
        lambda job: job([1, [2, 3]], {"b": 2, "a": 1}),
        lambda job: job(other={"a": 1, "b": 2}, value=(1, [2, 3])),
    ) == [True, True]


def test_an_added_optional_parameter_breaks_no_redelivery(open_registry: Callable[..., Registry]) -> None:
    """A new version of the job, with one more optional parameter, answers for the old one's tasks."""

    def version(registry: Registry, function: Callable[..., Any]) -> Any:
        return registry.idempotent("task:{number}", name="job")(function)

    def old(number: int) -> str:
        return "old"

    def new(number: int, colour: str = "red", *extra: int, size: int = 3, **more: int) -> str:
        return "new"

    before, after = version(open_registry(), old), version(open_registry(), new)
    assert before(1) == "old"
    assert after(1) == after(1, "red") == after(1, size=3) == after(number=1, colour="red") == "old"
    others: list[tuple[Any, Any]] = [((1, "blue"), {}), ((1,), {"size": 3.0}), ((1, "red", 1), {}), ((1,), {"x": 1})]
    for args, kwargs in others:
        with pytest.raises(ChecksumMismatchError):
            after(*args, **kwargs)


def test_excluded_parameters_do_not_count(registry: Registry) -> None:
    """exclude= leaves out what differs between deliveries, canonical or not."""

    @registry.idempotent("task:{number}", exclude=("log", "at"))
    def job(number: int, log: object, *, at: float = 0) -> str:
        return "result"

    assert job(1, object(), at=1) == job(1, threading.Lock(), at=2) == "result"
    with pytest.raises(TypeError):
        job(1)  # type: ignore[call-arg]


def test_a_checksum_of_ones_own(registry: Registry) -> None:
    """checksum= is called like the job, and what it gives is all that counts."""

    @registry.idempotent("task:{number}", checksum=lambda number, body, **_: body.strip().lower())
    def job(number: int, body: str, *, sender: object = None) -> str:
        return body

    assert job(1, "Hello ") == job(1, "hello", sender=object()) == "Hello "
    with pytest.raises(ChecksumMismatchError):
        job(1, "bye")


def test_arguments_without_canonical_bytes_are_refused(registry: Registry) -> None:
    """Two calls that no checksum can tell apart: ArgumentError, the job is not entered and nothing is stored."""

    @registry.idempotent("task:{number}")
    def job(number: int, thing: object) -> None:
        pytest.fail("entered")

    recursive: list[Any] = []
    recursive.append(recursive)
    for thing in (object(), lambda: None, "\ud800", recursive):
        with pytest.raises(ArgumentError):
            job(1, thing)
    assert registry.count() == {}


def test_another_job_under_the_same_task_id_is_a_mismatch(open_registry: Callable[..., Registry]) -> None:
    """ship("o-1") never replays charge("o-1"), also where the two stand in two programs; name= says they are one."""

    def charge(order: str) -> str:
        return "charged"

    def ship(order: str) -> str:
        return "shipped"

    assert open_registry().idempotent("{order}")(charge)("o-1") == "charged"
    with pytest.raises(ChecksumMismatchError):
        open_registry().idempotent("{order}")(ship)("o-1")
    assert open_registry().idempotent("{order}", name=charge.__qualname__)(ship)("o-1") == "charged"


# --- task ids ---------------------------------------------------------------------------------------------------


def test_a_task_id_from_a_callable(registry: Registry) -> None:
    """A callable in place of the template is called with the job's own arguments, as they were given."""

    @registry.idempotent(lambda number, *, day="today": f"{day}/{number}")
    def job(number: int, *, day: str = "today") -> str:
        return day

    assert job.task_id(1) == "today/1"
    assert job.call(number=2, day="monday").task_id == "monday/2"


BAD_TASK_IDS: list[object] = [
    "",
    None,
    7,
    b"bytes",
    "x" * 513,
    "é" * 257,
    "e\u0301",
    "a\nb",
    "a\0b",
    "\x1b[31m",
    "a\x7f",
    "a\u2028b",
    "a\ud800",
    " padded",
]


@pytest.mark.parametrize("bad", BAD_TASK_IDS, ids=lambda value: shown(value)[:20])
def test_a_malformed_task_id_never_runs(registry: Registry, bad: Any) -> None:
    """Empty, no text, over-long, not NFC, or not to be seen: TaskIdError everywhere, nothing is stored or run."""

    @registry.idempotent(lambda: bad)
    def job() -> None:
        pytest.fail("entered")

    calls: list[Callable[[], object]] = [
        job,
        job.call,
        job.task,
        job.task_id,
        job.add,
        lambda: registry.run(bad, lambda: pytest.fail("entered")),
        lambda: registry.claim(bad),
        lambda: registry.add(bad),
        lambda: registry.get(bad),
        lambda: registry.skip(bad, "why"),
        lambda: registry.cancel(bad),
        lambda: registry.retry(bad),
        lambda: registry.resolve(bad, "happened"),
        lambda: registry.forget(bad),
    ]
    for call in calls:
        with pytest.raises(TaskIdError) as caught:
            call()
        assert caught.value.hint
    assert registry.count() == {}


@pytest.mark.parametrize("value", [None, "", 1.5, [1], object(), float("nan")], ids=shown)
def test_a_template_field_without_a_text_never_runs(registry: Registry, value: Any) -> None:
    """A task_id without its key would make different work one task."""

    @registry.idempotent("order:{number}")
    def job(number: Any) -> None:
        pytest.fail("entered")

    with pytest.raises(TaskIdError, match="number"):
        job(value)
    assert registry.count() == {}


def test_stray_separators_make_no_two_tasks_one(registry: Registry) -> None:
    """("a:b", "c") and ("a", "b:c") are two tasks."""

    @registry.idempotent("{one}:{two}")
    def job(one: str, two: str) -> list[str]:
        return [one, two]

    for pair in (("a:b", "c"), ("a", "b:c"), ("a%3Ab", "c")):
        assert job(*pair) == list(pair)
    assert registry.count() == {Status.SUCCEEDED: 3}


# --- what is refused at decoration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("task:{other}", "other"),
        ("task:{}", "parameter"),
        ("task:{0}", "parameter"),
        ("{number}{day}", "separator"),
        ("task:{number:>5}", "format"),
        ("task:{number!r}", "conversion"),
        ("task:{number", "write {name}"),
        ("task:number}", "write {name}"),
        ("task:{number.}", "name"),
        (7, "template"),
        (None, "template"),
    ],
)
def test_a_bad_template_is_refused_at_decoration(registry: Registry, template: Any, word: str) -> None:
    """What would lose or guess a task_id shows when the module is imported, and says what is wrong."""
    with pytest.raises((ValueError, TypeError), match=word):

        @registry.idempotent(template)
        def job(number: int, day: str) -> None: ...


def test_two_functions_with_one_template_are_refused(registry: Registry) -> None:
    """They would answer for each other's tasks. A reloaded module, and another registry, may use it again."""

    def charge(order: str) -> None: ...

    def ship(order: str) -> None: ...

    registry.idempotent("{order}")(charge)
    registry.idempotent("{order}")(charge)
    with pytest.raises(ValueError, match="ship"):
        registry.idempotent("{order}")(ship)
    with throw_away_registry() as other:
        other.idempotent("{order}")(ship)


def test_a_refused_function_does_not_keep_its_template(registry: Registry) -> None:
    """A function that was refused answers for no task, so its template is free for the one that replaces it."""

    def wrong(order: str) -> Generator[None]:
        yield

    def right(order: str) -> int:
        return 1

    with pytest.raises(TypeError):
        registry.idempotent("{order}")(wrong)
    assert registry.idempotent("{order}")(right)("o-1") == 1


def test_what_has_no_result_to_store_is_refused(registry: Registry) -> None:
    """Generators and things that are no function: TypeError at decoration."""

    def generator() -> Generator[int]:
        yield 1

    async def both() -> Any:
        yield 1

    class Callable_:  # noqa: N801 - reads as it is
        def __call__(self) -> None: ...

    functions: list[Any] = [generator, both, Callable_(), Callable_, 7, functools.partial(int, 1)]
    for function in functions:
        with pytest.raises(TypeError):
            registry.idempotent("task")(function)


def test_a_decorator_without_a_task_id_says_what_to_write(registry: Registry) -> None:
    """Written bare, it takes the function for what makes the task_id: each call tells the line that was meant."""

    def bare(function: Any) -> Any:
        return registry.idempotent(function)

    @bare
    def ship(order: str, *rest: int, fast: bool = False, **more: str) -> None:
        pytest.fail("it ran")

    @bare
    def tidy() -> None:
        pytest.fail("it ran")

    class Shop:
        @bare
        async def order(self, number: int) -> None:
            pytest.fail("it ran")

    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: ship("o-1"), 'ship:{order}"'),
        (lambda: ship(order="o-1"), 'ship:{order}"'),
        (tidy, 'tidy"'),
        (lambda: Shop().order(7), 'order:{number}"'),
    ]
    for call, template in calls:
        with pytest.raises(TypeError, match=re.escape(f'write @registry.idempotent("{template})')):
            call()


def test_a_class_is_refused_at_once(registry: Registry) -> None:
    """Decorated bare it would be taken for what makes the task_id; of classes only `str` does."""
    with pytest.raises(TypeError, match="Job is a class"):

        @registry.idempotent  # type: ignore[arg-type]
        class Job:
            pass

    assert registry.idempotent(str)(lambda number: number + 1)(7) == 8
    assert registry.get("7") is not None


def test_a_function_may_make_the_task_id(registry: Registry) -> None:
    """By its name or as a lambda; what it decorates is refused for what it is, and not for the function."""

    def make(number: int) -> str:
        return f"task:{number}"

    assert registry.idempotent(make)(lambda number: number + 1)(1) == 2
    for source in (make, lambda number: f"task:{number}"):
        with pytest.raises(TypeError, match="no function"):
            registry.idempotent(source)(functools.partial(int, 1))


class Awaited:
    async def __call__(self, *_: object) -> None: ...

    async def method(self, *_: object) -> None: ...


async def coroutine(*_: object) -> None: ...


def generator(*_: object) -> Generator[int]:
    yield 1


async def async_generator(*_: object) -> Any:
    yield 1


@pytest.mark.parametrize(
    "job",
    [coroutine, generator, async_generator, Awaited(), Awaited().method, functools.partial(coroutine, 1)],
    ids=shown,
)
def test_a_job_whose_call_runs_nothing_is_refused(registry: Registry, job: Any) -> None:
    """A coroutine or generator function given to `run` or `consume` is a TypeError, and nothing is stored."""
    with pytest.raises(TypeError, match="function"):
        registry.run("t", job)
    with pytest.raises(TypeError, match="function"):
        list(registry.consume(["t"], job, task_id=str))
    assert registry.count() == {}


def test_a_job_that_returns_a_coroutine_has_failed(registry: Registry) -> None:
    """What nobody awaits has not happened: TypeError, and a task that can run again; no success with a lost result."""

    @registry.idempotent("decorated")
    def decorated() -> Any:
        return coroutine()

    with pytest.raises(TypeError, match="awaits"):
        registry.run("run", lambda: coroutine(1))
    with pytest.raises(TypeError, match="awaits"):
        decorated()
    (handled,) = registry.consume(["consumed"], lambda _: coroutine(), task_id=str)
    assert isinstance(handled.error, TypeError)
    assert registry.count() == {Status.FAILED: 3}


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"on_duplicate": "ignore"}, "on_duplicate"),
    ({"on_failure": "rerun"}, "on_failure"),
    ({"on_crash": "retry"}, "on_crash"),
    ({"on_crash": None}, "on_crash"),
    ({"on_crash": "verify"}, "verify"),
    ({"verify": lambda task: True}, "verify"),
    ({"on_crash": "verify", "verify": "hook"}, "verify"),
    ({"max_attempts": 0}, "max_attempts"),
    ({"max_attempts": 2.0}, "max_attempts"),
    ({"max_attempts": True}, "max_attempts"),
    ({"max_attempts": 1_000_001}, "max_attempts"),
    ({"wait": -1}, "wait"),
    ({"wait": float("inf")}, "wait"),
    ({"wait": float("nan")}, "wait"),
    ({"wait": "5"}, "wait"),
    ({"wait": True}, "wait"),
    ({"keep_for": -1}, "keep_for"),
    ({"keep_for": 10**18}, "keep_for"),
    ({"unknown_on": "TimeoutError"}, "unknown_on"),
    ({"unknown_on": (TimeoutError, 7)}, "unknown_on"),
    ({"release_on": [TimeoutError]}, "release_on"),
    ({"release_on": TimeoutError()}, "release_on"),
    ({"durability": "safe"}, "durability"),
    ({"result": "json"}, "result"),
    ({"result": int}, "dataclass"),
]


@pytest.mark.parametrize(("options", "word"), BAD_OPTIONS, ids=lambda value: shown(value)[:40])
def test_a_bad_option_is_refused_by_name(registry: Registry, options: dict[str, Any], word: str) -> None:
    """At decoration, at run and at claim: an error that names the option, and nothing is stored."""
    acts: list[Callable[[], object]] = [
        lambda: registry.idempotent("task", **options),
        lambda: registry.run("task", lambda: None, **options),
    ]
    if word != "on_duplicate":  # a claim has none: it is never answered with a result
        acts.append(lambda: registry.claim("task", **options))
    for act in acts:
        with pytest.raises((ValueError, TypeError), match=word):
            act()
    assert registry.count() == {}


@pytest.mark.parametrize("options", [{"leases": 5}, {"retries": 3}, {"on_error": "hold"}])
def test_an_option_that_there_is_not_is_refused(registry: Registry, options: dict[str, Any]) -> None:
    """A misspelt option must not be dropped silently: the job would run under another policy than its author thinks."""
    for act in (
        lambda: registry.idempotent("task", **options),
        lambda: registry.run("task", lambda: None, **options),
        lambda: registry.claim("task", **options),
    ):
        with pytest.raises(TypeError, match=next(iter(options))):
            act()


def test_exclude_names_parameters(registry: Registry) -> None:
    """An exclusion of what is no parameter is a slip, and would one day exclude nothing."""

    def job(number: int) -> None: ...

    with pytest.raises(ValueError, match="nmuber"):
        registry.idempotent("task:{number}", exclude=("nmuber",))(job)


def test_durations_are_seconds_or_timedelta(registry: Registry) -> None:
    """keep_for and wait take both; what is stored is milliseconds."""
    keeps: list[float | timedelta] = [90, 90.0, timedelta(seconds=90)]
    for number, keep in enumerate(keeps):
        registry.run(f"t{number}", lambda: None, keep_for=keep, wait=timedelta(0))
    assert {task.keep_ms for task in registry.tasks()} == {90_000}


@pytest.mark.parametrize("duration", [pytest.param(10**400, id="huge"), -1, float("inf"), float("nan"), True, "1"])
def test_what_is_no_duration_is_refused(registry: Registry, duration: Any) -> None:
    """Also a number that is larger than every float: one kind of error for all."""
    with pytest.raises(ValueError, match="wait"):
        registry.run("t", lambda: pytest.fail("entered"), wait=duration)


# --- for users' own tests (idemreg.testing) -------------------------------------------------------------------------


def test_a_throw_away_registry_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works like any registry while its block lasts, and then its folder is gone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with throw_away_registry() as registry:
        assert registry.run("t", lambda: 1).result == 1
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_manual_clock_passes_time_only_when_told() -> None:
    """Its three clocks advance together, jump apart, and a sleep is over at once."""
    clock = ManualClock(wall_us=5_000_000, boot_ms=1_000, monotonic=10.0)
    clock.advance(timedelta(seconds=2))
    clock.sleep(1)
    assert (clock.wall_us(), clock.boot_ms(), clock.monotonic()) == (8_000_000, 4_000, 13.0)
    clock.set(wall_us=0)
    assert (clock.wall_us(), clock.boot_ms(), clock.monotonic()) == (0, 4_000, 13.0)
    with pytest.raises(ValueError, match="advance"):
        clock.advance(-1)


def test_a_manual_clock_stamps_rows_and_ends_waits() -> None:
    """Rows carry the time that was set, a wait ends at its deadline at once, and no jump of the wall runs a task."""
    clock = ManualClock(wall_us=5)
    with throw_away_registry(clock=clock) as registry, registry.claim("t"):
        row = registry.get("t")
        assert row is not None
        assert row.updated_at == 5
        clock.set(wall_us=10**18)
        with pytest.raises(TaskRunningError):
            registry.run("t", lambda: pytest.fail("entered"), name="", wait=timedelta(seconds=30))


def test_a_manual_boot_is_a_restart() -> None:
    """A new boot_id is a restart: what is opened behind it gives tokens of a later epoch."""
    clock = ManualClock(boot_id="one")
    with throw_away_registry(clock=clock) as registry:
        first = registry.run("t", lambda: None).token
        registry.close()
        clock.set(boot_id="two", boot_ms=0)
        second = registry.run("u", lambda: None).token
    assert second - first >= 1 << 40


@pytest.mark.parametrize("task_id", ["drop:{a}", lambda a, b: f"drop:{a}"], ids=["template", "callable"])
def test_a_job_that_nobody_has_any_more_is_freed_at_once(registry: Registry, task_id: TaskIdSource) -> None:
    """What is written out for it refers to no function: many may be decorated in a loop, each with much to hold."""

    class Much:
        pass

    def decorated() -> weakref.ref[Much]:
        much = Much()

        def job(a: int, b: object = 1) -> bool:
            return bool(much)

        once = registry.idempotent(task_id)(job)
        assert once(1, 1) is once(1, b=1) is once(2, [1.0]) is True
        return weakref.ref(much)

    gc.disable()
    try:
        assert decorated()() is None
    finally:
        gc.enable()
