"""Under huey: its queue in memory and a consumer of two threads, and its queue in SQLite and two processes."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from huey import MemoryHuey, SqliteHuey, crontab
from huey.exceptions import RetryTask, TaskException, TaskTimeout
from huey.signals import SIGNAL_EXECUTING, SIGNAL_INTERRUPTED

from idemreg import Registry, Status, current_claim
from tests.support.processes import PATIENCE_S, Script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def huey() -> MemoryHuey:
    return MemoryHuey("hosts")


@pytest.fixture
def consumer(huey: MemoryHuey) -> Iterator[None]:
    """Two workers, which huey stops by an event; its handlers of signals are taken back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    consumer = huey.create_consumer(workers=2, initial_delay=0.01, max_delay=0.01, periodic=False)
    consumer.start()
    yield
    consumer.stop(graceful=True)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def result(sent: Any) -> Any:
    return sent.get(blocking=True, timeout=PATIENCE_S, backoff=1, max_delay=0.01, preserve=True)


def end_of(registry: Registry, task_id: str) -> tuple[Status, int]:
    task = registry.get(task_id)
    assert task is not None
    return task.status, task.attempt


def run_all(huey: MemoryHuey) -> None:
    """What one worker does, here and now: every message of the queue, also those that a run puts there."""
    while (message := huey.dequeue()) is not None:
        huey.execute(message)
    assert huey.scheduled_count() == 0


def test_the_same_message_runs_once(huey: MemoryHuey, registry: Registry, consumer: None) -> None:
    """A message that is queued twice, and a second message with the same arguments: one body."""
    entered = []

    @huey.task()
    @registry.idempotent("order:{order}", wait=PATIENCE_S)
    def ship(order: int) -> dict[str, int]:
        entered.append(order)
        return {"parcel": 100 + order}

    message = ship.s(1)
    for sent in (huey.enqueue(message), huey.enqueue(message), ship(order=1)):
        assert result(sent) == {"parcel": 101}
    assert entered == [1]


def test_a_retry_of_huey_is_the_next_attempt(huey: MemoryHuey, registry: Registry) -> None:
    """`retries=` runs the failed task again, until an attempt succeeds."""
    attempts = []

    @huey.task(retries=5)
    @registry.idempotent("charge:{invoice}")
    def charge(invoice: str) -> str:
        attempts.append(current_claim().attempt)
        if len(attempts) < 3:
            raise OSError
        return "paid"

    sent = charge("a")
    run_all(huey)
    assert result(sent) == "paid"
    assert attempts == [1, 2, 3]
    assert end_of(registry, "charge:a") == (Status.SUCCEEDED, 3)


def test_retry_by_hand_releases(huey: MemoryHuey, registry: Registry) -> None:
    """RetryTask is no failure: the task is put back, and each run is the first attempt."""
    attempts = []

    @huey.task()
    @registry.idempotent("poll:{key}", release_on=RetryTask)
    def poll(key: str) -> str:
        attempts.append(current_claim().attempt)
        if len(attempts) < 3:
            raise RetryTask
        return "done"

    sent = poll("a")
    run_all(huey)
    assert result(sent) == "done"
    assert attempts == [1, 1, 1]


def test_an_injected_task_does_not_count(huey: MemoryHuey, registry: Registry) -> None:
    """With `context=True` huey hands over its task by the name `task`; excluded, it changes no checksum."""
    messages = []

    @huey.task(context=True)
    @registry.idempotent("mail:{address}", exclude=("task",))
    def mail(address: str, task: Any = None) -> str:
        messages.append(task.id)
        return f"to {address}"

    sent = [mail("a@example.com") for _ in range(2)]
    run_all(huey)
    assert [result(one) for one in sent] == ["to a@example.com"] * 2
    assert messages == [sent[0].id]


def test_an_injected_task_that_counts_is_refused(huey: MemoryHuey, registry: Registry) -> None:
    """Forgotten in `exclude=`, it is an ArgumentError at the first run, and not a mismatch at the second."""

    @huey.task(context=True)
    @registry.idempotent("mail:{address}")
    def mail(address: str, task: Any = None) -> None: ...

    sent = mail("a@example.com")
    run_all(huey)
    with pytest.raises(TaskException) as caught:
        result(sent)
    assert caught.value.metadata["error"].startswith("ArgumentError(")
    assert registry.count() == {}


def test_the_message_id_can_be_the_task_id(huey: MemoryHuey, registry: Registry) -> None:
    """A task_id from `task.id`: the same message runs once, a second message of the same content runs too."""
    entered = []

    @huey.task(context=True)
    @registry.idempotent(lambda name, task: f"greet:{task.id}", exclude=("task",))
    def greet(name: str, task: Any) -> str:
        entered.append(task.id)
        return f"hello {name}"

    message = greet.s("you")
    sent = [huey.enqueue(message), huey.enqueue(message), greet("you")]
    run_all(huey)
    assert [result(one) for one in sent] == ["hello you"] * 3
    assert entered == [message.id, sent[2].id]


def test_huey_leaves_the_argument_check_to_the_run(huey: MemoryHuey, registry: Registry) -> None:
    """huey queues any arguments; a call that does not fit is a TypeError of the run, and leaves no row."""

    @huey.task()
    @registry.idempotent("order:{order}")
    def ship(order: int) -> None: ...

    sent = [ship(), ship(1, 2), ship(1, colour="red")]
    run_all(huey)
    for one in sent:
        with pytest.raises(TaskException) as caught:
            result(one)
        assert caught.value.metadata["error"].startswith("TypeError(")
    assert registry.count() == {}


def test_an_interrupted_task_does_not_run_again(huey: MemoryHuey, registry: Registry) -> None:
    """A consumer stopped in mid-job, and a handler that queues the task again, as huey's manual has it: unknown."""
    entered = []

    @huey.signal(SIGNAL_INTERRUPTED)
    def again(_signal: str, task: Any) -> None:
        huey.enqueue(task)

    @huey.task()
    @registry.idempotent("pay:{invoice}")
    def pay(invoice: str) -> None:
        entered.append(invoice)
        raise KeyboardInterrupt

    sent = pay("a")
    run_all(huey)
    with pytest.raises(TaskException) as caught:
        result(sent)
    assert caught.value.metadata["error"].startswith("TaskUnknownError(")
    assert entered == ["a"]
    assert end_of(registry, "pay:a") == (Status.UNKNOWN, 1)


def test_a_time_out_of_huey_is_unknown(huey: MemoryHuey, registry: Registry) -> None:
    """TaskTimeout is an ordinary exception; in `unknown_on=` it leaves open what happened."""

    @huey.task(timeout=0.001, retries=2)
    @registry.idempotent("pay:{invoice}", unknown_on=TaskTimeout)
    def pay(invoice: str) -> None:
        message._deadline = 0.001  # long ago, by the clock that huey compares it with
        message.check_timeout()

    pay("a")
    message = huey.dequeue()
    huey.execute(message)
    run_all(huey)
    assert end_of(registry, "pay:a") == (Status.UNKNOWN, 1)


def test_a_periodic_task_runs_once_for_two_consumers(huey: MemoryHuey, registry: Registry) -> None:
    """Two consumers each queue what is due, as two machines of a careless set-up do: one run for the due time."""
    entered = []

    @registry.idempotent("report:{day}")
    def report(day: str) -> None:
        entered.append(day)

    days = ["2026-11-23", "2026-11-23", "2026-11-24"]

    @huey.periodic_task(crontab(hour="3", minute="0"))
    def nightly() -> None:
        report(days[len(runs)])
        runs.append("nightly")

    runs: list[str] = []
    (due,) = huey._registry.periodic_tasks
    for _ in days:
        huey.enqueue(due)
    run_all(huey)
    assert entered == ["2026-11-23", "2026-11-24"]
    assert len(runs) == 3


def test_two_workers_share_one_execution(huey: MemoryHuey, registry: Registry, consumer: None) -> None:
    """Both workers have a message of the task at once: one enters the body, the other waits and has its result."""
    executing = threading.Semaphore(0)
    entered = []

    @huey.signal(SIGNAL_EXECUTING)
    def note(_signal: str, _task: Any) -> None:
        executing.release()

    @huey.task()
    @registry.idempotent("slow:{key}", wait=PATIENCE_S)
    def slow(key: str) -> int:
        for _ in range(2):  # until both messages are in a worker
            assert executing.acquire(timeout=PATIENCE_S)
        entered.append(key)
        return threading.get_ident()

    first, second = slow("a"), slow("a")
    assert result(first) == result(second)
    assert entered == ["a"]


def test_other_arguments_are_an_error_of_their_message(huey: MemoryHuey, registry: Registry) -> None:
    """The same task with another amount is refused, and has no second effect."""
    entered = []

    @huey.task()
    @registry.idempotent("pay:{order}")
    def pay(order: str, cents: int) -> int:
        entered.append(cents)
        return cents

    sent = [pay("a", 100), pay("a", 900)]
    run_all(huey)
    assert result(sent[0]) == 100
    with pytest.raises(TaskException) as caught:
        result(sent[1])
    assert caught.value.metadata["error"].startswith("ChecksumMismatchError(")
    assert entered == [100]


# --- two processes ----------------------------------------------------------------------------------------------------


# A consumer of one worker, so that two messages at a time are in two processes. The body waits for the test's word.
CONSUMER = """
    import threading
    from huey import SqliteHuey
    from huey.signals import SIGNAL_EXECUTING
    from idemreg import Registry

    huey = SqliteHuey(filename=sys.argv[1] + ".queue")
    registry = Registry(sys.argv[1], durability="normal")
    gate = threading.Event()

    @huey.task(name="slow")
    @registry.idempotent("slow:{key}", name="slow", wait=60)
    def slow(key):
        say("entered")
        assert gate.wait(60)
        with open(sys.argv[1] + ".witness", "a") as file:
            file.write(key)
        return os.getpid()

    huey.signal(SIGNAL_EXECUTING)(lambda signal, task: say("executing"))
    consumer = huey.create_consumer(workers=1, initial_delay=0.01, max_delay=0.01, periodic=False)
    consumer.start()
    say(os.getpid())
    wait()
    gate.set()
    wait()
    consumer.stop(graceful=True)
    registry.close()
"""


@pytest.fixture
def queue(path: Path) -> Iterator[Any]:
    """The test's side of a queue that two processes consume: its task, to be sent."""
    huey = SqliteHuey(filename=f"{path}.queue")

    def slow(key: str) -> None:
        pytest.fail("the sender runs nothing")

    slow.__module__ = "__main__"  # part of the task's name, and there the consumers have it
    yield huey.task(name="slow")(slow)
    huey.storage.close()


def test_two_processes_share_one_execution(path: Path, queue: Any) -> None:
    """Both consumers have a message of the task at once: one enters the body, both give its result."""
    with Script(CONSUMER, path) as one, Script(CONSUMER, path) as other:
        pids = {int(one.line()), int(other.line())}
        sent = [queue("a"), queue("a")]
        for consumer in (one, other):
            consumer.expect("executing")  # and one of them says "entered", which nobody reads
        for consumer in (one, other):
            consumer.go()
        results = [result(message) for message in sent]
        assert results[0] == results[1]
        assert results[0] in pids
        for consumer in (one, other):
            consumer.go()
        assert (one.end(), other.end()) == (0, 0)
    assert path.with_name(f"{path.name}.witness").read_text("utf-8") == "a"


def test_a_message_whose_consumer_was_killed_is_unknown(path: Path, queue: Any) -> None:
    """huey has taken it off the queue. Sent again, another process says that nobody knows, and runs nothing."""
    with Script(CONSUMER, path) as one:
        one.line()
        message = queue("a")
        one.expect("executing")
        one.expect("entered")
        one.kill()
    with Script(CONSUMER, path) as other:
        other.line()
        message.huey.enqueue(message.task)
        other.expect("executing")
        with pytest.raises(TaskException) as caught:
            result(message)
        assert caught.value.metadata["error"].startswith("TaskUnknownError(")
    assert not path.with_name(f"{path.name}.witness").exists()
