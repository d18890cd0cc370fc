"""Events: told after the commit, typed, and never able to touch the task."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import (
    AsyncRegistry,
    Checkpointer,
    ChecksumMismatchError,
    Claim,
    FinishNotRecordedError,
    Registry,
    Status,
    StoreFullError,
    TaskFailedError,
    TaskUnknownError,
    events,
)
from idemreg.sqlite import tasks
from tests.support.interruptions import interrupt_at
from tests.support.processes import Script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("nothing_on_the_event_loop")

DIES_IN_JOB = """
from idemreg import Registry
Registry(sys.argv[1], durability="normal").run(
    "t", lambda: os.kill(os.getpid(), 9), name="job", on_crash=sys.argv[2], max_attempts=int(sys.argv[3])
)
"""


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def registry(open_registry: Callable[..., Registry], told: list[Any]) -> Registry:
    return open_registry(on_event=told.append)


def kinds(told: list[Any]) -> list[str]:
    names = [type(event).__name__ for event in told]
    told.clear()
    return names


def fails(error: BaseException) -> Callable[[], None]:
    def job() -> None:
        raise error

    return job


def test_a_call_and_its_duplicate(registry: Registry, told: list[Any]) -> None:
    """A new task is claimed and succeeds; its duplicate is a replay; other arguments are a mismatch."""
    outcome = registry.run("t", lambda: 1, name="job")
    registry.run("t", lambda: 2, name="job")
    with pytest.raises(ChecksumMismatchError):
        registry.run("t", lambda: 2, name="job", payload=1)
    task = ("t", "job", outcome.token, 1)
    assert told == [
        events.Claimed(*task),
        events.Succeeded(*task),
        events.Replayed(*task),
        events.Mismatched("t", "job"),
    ]


def test_every_end_is_told(registry: Registry, told: list[Any]) -> None:
    """failed, unknown, released, each with its claim before it; that a known failure is refused again is no event."""
    for options, kind in [({}, "Failed"), ({"unknown_on": OSError}, "Unknown"), ({"release_on": OSError}, "Released")]:
        with pytest.raises(OSError, match="x"):
            registry.run(kind, fails(OSError("x")), name="job", max_attempts=1, **options)  # type: ignore[arg-type]
        assert getattr(told[1], "error", "OSError: x").startswith("OSError: x")
        assert kinds(told) == ["Claimed", kind]
    with pytest.raises(TaskFailedError):
        registry.run("Failed", lambda: 1, name="job", max_attempts=1)
    with pytest.raises(TaskUnknownError):
        registry.run("Unknown", lambda: 1, name="job")
    assert kinds(told) == []


def test_the_ends_of_a_claim_in_hand(registry: Registry, told: list[Any]) -> None:
    """`claim` in all its forms tells the same; a transaction tells after its commit."""
    with registry.claim("a", name="job"):
        assert kinds(told) == ["Claimed"]
    assert kinds(told) == ["Succeeded"]
    with registry.claim("b") as claim, claim.transaction() as tx:
        tx.execute("select 1")
        kinds(told)
    assert kinds(told) == ["Succeeded"]
    registry.claim("c").release()
    assert kinds(told) == ["Claimed", "Released"]
    registry.claim("c").fail(ValueError("x"))
    assert kinds(told) == ["Claimed", "Failed"]


@pytest.mark.parametrize(
    ("on_crash", "attempts", "expected"),
    [("hold", 10, ["Unknown"]), ("rerun", 10, ["TakenOver", "Succeeded"]), ("rerun", 1, ["Failed"])],
)
def test_a_dead_owner(
    registry: Registry, path: Path, told: list[Any], on_crash: Any, attempts: int, expected: list[str]
) -> None:
    """Whoever finds an owner dead tells what came of it: unknown, taken over, or failed for good."""
    with Script(DIES_IN_JOB, path, on_crash, attempts) as script:
        script.process.wait()
    try:
        registry.run("t", lambda: 1, name="job", on_crash=on_crash, max_attempts=attempts)
    except (TaskUnknownError, TaskFailedError):
        assert expected != ["TakenOver", "Succeeded"]
    assert kinds(told) == expected
    registry_of_dead = registry.get("t")
    assert registry_of_dead is not None


def test_checkpoints_are_told(registry: Registry, told: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint by hand is told with its value, and can be logged."""
    registry.run("t", lambda: 1)
    told.clear()
    done = registry.checkpoint("TRUNCATE")
    assert told == [events.Checkpointed(done)]
    with caplog.at_level(logging.DEBUG, "jobs"):
        events.log_events(logging.getLogger("jobs"))(told[0])
    assert caplog.messages == [f"idemreg: checkpointed {done.moved_pages} of {done.wal_pages} pages"]


def test_a_checkpointer_for_a_block_tells_as_well(registry: Registry, told: list[Any]) -> None:
    """The registry hears of its checkpoints, unless somebody else is to."""
    registry.run("t", lambda: 1)
    told.clear()
    done = Checkpointer(registry, passive_pages=1).step()
    assert done is not None
    assert told == [events.Checkpointed(done)]
    told.clear()
    heard: list[object] = []
    registry.run("u", lambda: 1)
    told.clear()
    done = Checkpointer(registry, passive_pages=1, on_checkpoint=heard.append).step()
    assert (heard, told) == ([done], [])


def test_the_checkpointer_tells_as_well(open_registry: Callable[..., Registry]) -> None:
    """`Registry(checkpointer=True)` tells of the checkpoints of its thread, in that thread."""
    heard, threads = threading.Event(), set()

    def hear(event: events.Event) -> None:
        if isinstance(event, events.Checkpointed):
            threads.add(threading.current_thread())
            heard.set()

    registry = open_registry(on_event=hear, checkpointer=True)
    number = 0
    while not heard.is_set():
        registry.run(f"t{number}", lambda: "x" * 4_000)
        number += 1
        assert number < 20_000, "no checkpoint was told"
    assert threading.main_thread() not in threads


def test_told_after_the_commit(open_registry: Callable[..., Registry]) -> None:
    """When an event arrives, another handle sees the row that it speaks of."""
    other = open_registry()
    seen = []

    def look(event: events.Event) -> None:
        task = other.get(event.task_id)  # type: ignore[union-attr] # no checkpoint here
        seen.append((type(event).__name__, None if task is None else task.status.word))

    open_registry(on_event=look).run("t", lambda: 1)
    assert seen == [("Claimed", "running"), ("Succeeded", "succeeded")]


def interrupts_on(kind: type, error: BaseException, *, at: int = 1) -> Callable[[events.Event], None]:
    """A callback that is interrupted at its so-manieth event of a kind."""
    times = 0

    def on_event(event: events.Event) -> None:
        nonlocal times
        times += isinstance(event, kind)
        if times == at and isinstance(event, kind):
            raise error

    return on_event


INTERRUPTIONS = [KeyboardInterrupt, SystemExit, asyncio.CancelledError]


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_an_interrupted_callback_of_a_claim_puts_it_back(
    open_registry: Callable[..., Registry], interruption: type[BaseException]
) -> None:
    """Ctrl-C in the callback goes to the caller; the job never began, and the attempt does not count."""
    registry = open_registry(on_event=interrupts_on(events.Claimed, interruption(), at=2))
    registry.run("known", lambda: 1)  # so that the next claims go by one statement
    with pytest.raises(interruption):
        registry.run("t", lambda: 1, name="job")
    task = registry.get("t")
    assert task is not None
    assert (task.status, task.attempt) == (Status.PENDING, 0)
    assert registry.run("t", lambda: 1, name="job").attempt == 1
    other = open_registry(on_event=interrupts_on(events.Claimed, interruption()))
    with pytest.raises(interruption):
        other.claim("u", name="job")
    assert other.run("u", lambda: 1, name="job").attempt == 1


@pytest.mark.parametrize("interruption", [SystemExit, asyncio.CancelledError])
def test_an_interrupted_callback_on_an_event_loop_puts_the_claim_back(
    path: Path, interruption: type[BaseException]
) -> None:
    """The same under AsyncRegistry, where a callback may find out that its coroutine is cancelled."""
    registry = AsyncRegistry(path, durability="normal", on_event=interrupts_on(events.Claimed, interruption()))

    async def main() -> None:
        with pytest.raises(interruption):
            await registry.run("t", lambda: 1, name="job")
        assert (await registry.run("t", lambda: 1, name="job", wait=30)).attempt == 1

    asyncio.run(main())
    registry.registry.close()


def test_an_interrupted_callback_of_a_batch_puts_all_of_it_back(open_registry: Callable[..., Registry]) -> None:
    """Whichever claim was being told of: nobody has any of them, so none stays running."""
    registry = open_registry(on_event=interrupts_on(events.Claimed, KeyboardInterrupt(), at=2))
    with pytest.raises(KeyboardInterrupt):
        registry.claim_many([(f"t{n}", None) for n in range(4)], name="job")
    assert [(task.status, task.attempt) for task in registry.tasks()] == [(Status.PENDING, 0)] * 4


def test_an_interrupted_callback_of_an_end_changes_nothing(open_registry: Callable[..., Registry]) -> None:
    """It is told after the commit; so the rest of a batch is stored as well."""
    registry = open_registry(on_event=interrupts_on(events.Succeeded, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        list(registry.consume("ab", str, task_id=str))
    assert [task.status for task in registry.tasks()] == [Status.SUCCEEDED] * 2


def test_an_interrupted_callback_before_the_verify_hook_leaves_it_unknown(
    open_registry: Callable[..., Registry],
) -> None:
    """The claim for the hook is told as any other, and its caller is gone: the question is still open."""
    registry = open_registry(on_event=interrupts_on(events.Claimed, KeyboardInterrupt(), at=2))
    verifying: Any = {"name": "job", "on_crash": "verify", "verify": lambda _task: True}
    with pytest.raises(OSError, match="x"):
        registry.run("t", fails(OSError("x")), unknown_on=OSError, **verifying)
    with pytest.raises(KeyboardInterrupt):
        registry.run("t", lambda: 1, **verifying)
    task = registry.get("t")
    assert task is not None
    assert task.status is Status.UNKNOWN
    assert registry.run("t", lambda: 1, **verifying).replayed


# --- unknown: told by whoever makes it so ---------------------------------------------------------------------------


def no_space(*_: object) -> bool:
    msg = "no space left"
    raise StoreFullError(msg)


def test_an_end_that_could_not_be_stored_is_told_as_unknown(
    registry: Registry, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, as it is left to the store: of a single end, of a batch, of effects. Who meets it later tells nothing."""
    registry.run("warm", lambda: 1)
    batch = registry.claim_many([("a", None), ("b", None)], name="job")
    for one in batch:
        assert isinstance(one, Claim)
        one.enter()
    kinds(told)
    with monkeypatch.context() as full:
        full.setattr(tasks, "succeed", no_space)
        full.setattr(tasks, "finish", no_space)
        with pytest.raises(FinishNotRecordedError):
            registry.run("t", lambda: 1, name="job")
        assert [type(one) for one in told] == [events.Claimed, events.Unknown]
        assert "no space left" in told.pop().error
        kinds(told)
        answers = registry.finish_many([(one, 1) for one in batch if isinstance(one, Claim)])
        assert [type(one) for one in answers] == [FinishNotRecordedError] * 2
        assert kinds(told) == ["Unknown", "Unknown"]
        with pytest.raises(FinishNotRecordedError), registry.claim("tx") as claim, claim.transaction() as tx:
            tx.execute("select 1")
        assert kinds(told) == ["Claimed", "Unknown"]
    registry.run("other", lambda: 1)  # carries all of them with it
    kinds(told)
    for task_id in ("t", "a", "b"):
        with pytest.raises(TaskUnknownError):
            registry.run(task_id, lambda: 1, name="job")
    assert kinds(told) == []


def test_an_end_that_was_stored_is_not_told_as_unknown(open_registry: Callable[..., Registry], told: list[Any]) -> None:
    """An interruption right behind the commit: the success stays, and no alarm is raised."""
    registry = open_registry(on_event=told.append)
    interrupt_at("finish.committed", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        registry.run("t", lambda: 1, name="job")
    assert kinds(told) == ["Claimed"]
    interrupt_at("finish.in-transaction", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        registry.run("u", lambda: 1, name="job")
    assert kinds(told) == ["Claimed", "Unknown"]


def test_a_dropped_claim_is_told(registry: Registry, told: list[Any]) -> None:
    """By its crash policy: unknown, or released; released as well where it was not entered."""
    for options, kind in [({}, "Unknown"), ({"on_crash": "rerun"}, "Released")]:
        with pytest.warns(ResourceWarning):
            registry.claim(kind, **options)  # type: ignore[arg-type]
        assert kinds(told) == ["Claimed", kind]
    with pytest.warns(ResourceWarning):
        registry.claim_many([("t", None)])
    assert kinds(told) == ["Claimed", "Released"]


def test_a_verify_hook_that_cannot_tell_is_told(registry: Registry, told: list[Any]) -> None:
    """The task is unknown again; so it is where the hook fails, or is interrupted."""
    answers: list[Any] = [None, RuntimeError("down"), KeyboardInterrupt()]

    def verify(_task: Any) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    with pytest.raises(OSError, match="x"):
        registry.run("t", fails(OSError("x")), name="job", unknown_on=OSError, on_crash="verify", verify=verify)
    kinds(told)
    for expected in (TaskUnknownError, TaskUnknownError, KeyboardInterrupt):
        with pytest.raises(expected):
            registry.run("t", lambda: 1, name="job", on_crash="verify", verify=verify)
        assert kinds(told) == ["Claimed", "Unknown"]


# --- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_tells_of_each(registry: Registry, told: list[Any]) -> None:
    """`claim_many` and `finish_many` tell what single calls would, one event an item."""
    claims = [one for one in registry.claim_many([("a", 1), ("b", 2)], name="job") if isinstance(one, Claim)]
    tasks_of = [(one.task_id, "job", one.token, 1) for one in claims]
    assert told == [events.Claimed(*task) for task in tasks_of]
    told.clear()
    for claim in claims:
        claim.enter()
    registry.finish_many([(claim, 1) for claim in claims])
    assert told == [events.Succeeded(*task) for task in tasks_of]
    told.clear()
    registry.claim_many([("a", 1), ("b", 3)], name="job")
    assert told == [events.Replayed(*tasks_of[0]), events.Mismatched("b", "job")]


def test_consuming_tells_of_each(registry: Registry, told: list[Any]) -> None:
    """Claims first, then the ends, failures among them; a duplicate in the batch is a replay of what it found."""

    def job(message: str) -> str:
        return str(1 / (message != "bad"))

    list(registry.consume(["a", "bad", "a"], job, task_id=str))
    assert kinds(told) == ["Claimed", "Claimed", "Succeeded", "Failed", "Replayed"]


def test_an_interrupted_batch_tells_of_each(registry: Registry, told: list[Any]) -> None:
    """What has run succeeded, what was interrupted is unknown, what was not entered is released."""

    def job(message: str) -> None:
        if message == "b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(registry.consume("abc", job, task_id=str))
    assert kinds(told) == ["Claimed", "Claimed", "Claimed", "Succeeded", "Unknown", "Released"]


def test_nobody_listening_costs_nothing(
    open_registry: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ``on_event`` no teller is made, and no event, whatever happens to tasks."""
    made: list[str] = []
    monkeypatch.setattr(events.Teller, "__init__", lambda _self, _on_event: made.append("Teller"))
    for kind in (one for one in vars(events).values() if isinstance(one, type) and hasattr(one, "_fields")):
        monkeypatch.setattr(kind, "__new__", lambda cls, *_, **__: made.append(cls.__name__))
    registry = open_registry(checkpointer=True)
    registry.run("t", lambda: 1, name="job")
    registry.run("t", lambda: 1, name="job")
    with pytest.raises(ChecksumMismatchError):
        registry.run("t", lambda: 1, name="other")
    with pytest.raises(OSError, match="x"):
        registry.run("u", fails(OSError("x")), unknown_on=OSError)
    with pytest.warns(ResourceWarning):
        registry.claim("dropped")
    list(registry.consume("ab", str, task_id=str))
    registry.checkpoint("TRUNCATE")
    assert made == []
    assert registry.terms(registry.checked({})).teller is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_in_the_callback_never_touches_the_task(
    open_registry: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes to `threading.excepthook`; every call returns what it would without a callback."""
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_value))
    registry = open_registry(on_event=fails_on_event)
    assert registry.run("t", lambda: 1).result == 1
    assert registry.run("t", lambda: 1).replayed
    assert [str(error) for error in reported] == ["Claimed", "Succeeded", "Replayed"]


def fails_on_event(event: events.Event) -> None:
    raise RuntimeError(type(event).__name__)


def test_asynchronous_callers_tell_the_same(path: Path, told: list[Any]) -> None:
    """The callback runs on the event loop, between the steps of the walk."""
    registry = AsyncRegistry(path, durability="normal", on_event=told.append)

    async def main() -> None:
        await registry.run("t", lambda: 1)
        await registry.run("t", lambda: 1)
        async with registry.claim("u"):
            pass

    asyncio.run(main())
    registry.registry.close()
    assert kinds(told) == ["Claimed", "Succeeded", "Replayed", "Claimed", "Succeeded"]


def test_the_logging_adapter(open_registry: Callable[..., Registry], caplog: pytest.LogCaptureFixture) -> None:
    """What needs a person is a warning, the rest is debug; the event is in the record."""
    registry = open_registry(on_event=events.log_events(logging.getLogger("jobs")))
    with caplog.at_level(logging.DEBUG, "jobs"):
        registry.run("a", lambda: 1, name="job")
        with pytest.raises(ValueError, match="x"):
            registry.run("b", fails(ValueError("x")), name="job")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "idemreg: claimed a (job)"),
        ("DEBUG", "idemreg: succeeded a (job)"),
        ("DEBUG", "idemreg: claimed b (job)"),
        ("WARNING", "idemreg: failed b (job)"),
    ]
    assert isinstance(caplog.records[3].idemreg, events.Failed)  # type: ignore[attr-defined] # set by `extra`
    caplog.clear()
    events.log_events(logging.getLogger("jobs"))(events.TakenOver("c", "job", 2, 2, 7))
    assert caplog.messages == ["idemreg: taken-over c (job)"]  # by the name that `watch --on` gives it
