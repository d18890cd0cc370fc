"""Events: told after the commit, typed, and never able to touch the task."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import AsyncRegistry, ChecksumMismatchError, Registry, TaskFailedError, TaskUnknownError, events
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
