"""Under dramatiq, with its stub broker in memory and a worker of two threads; once with a worker in another process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO, CurrentMessage, Interrupt, Middleware
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from idemreg import AsyncRegistry, IdemregError, Registry, Status, current_claim
from tests.support.processes import PATIENCE_S, Script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_MS = int(PATIENCE_S * 1000)


def may_help(retries: int, error: BaseException) -> bool:
    """As in docs/dramatiq.md: retry the job's own errors, and those of idemreg that pass by themselves."""
    return retries < 10_000 and getattr(error, "retryable", True)


class Started(Middleware):
    """Counts the messages that a worker has begun with."""

    def __init__(self) -> None:
        self.count = threading.Semaphore(0)

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        self.count.release()


@pytest.fixture
def broker() -> Iterator[StubBroker]:
    broker = StubBroker(fail_fast_default=False)
    broker.add_middleware(CurrentMessage())
    broker.add_middleware(AsyncIO())
    broker.add_middleware(Results(backend=StubBackend()))  # type: ignore[no-untyped-call]
    yield broker
    broker.close()


@pytest.fixture
def worker(broker: StubBroker) -> Iterator[dramatiq.Worker]:
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=2)
    worker.start()
    yield worker
    worker.stop()


def done(broker: StubBroker, worker: dramatiq.Worker) -> None:
    broker.join("default", timeout=PATIENCE_MS)
    worker.join()


def result(broker: StubBroker, message: Any) -> Any:
    return message.get_result(backend=broker.get_results_backend(), block=True, timeout=PATIENCE_MS)


def end_of(registry: Registry, task_id: str) -> tuple[Status, int]:
    task = registry.get(task_id)
    assert task is not None
    return task.status, task.attempt


def test_a_redelivered_message_runs_once(broker: StubBroker, worker: dramatiq.Worker, registry: Registry) -> None:
    """The same message twice, and another with the same arguments: one body, and one result for all."""
    entered = []

    @dramatiq.actor(broker=broker, store_results=True)
    @registry.idempotent("order:{order}", wait=PATIENCE_S)
    def ship(order: int) -> dict[str, int]:
        entered.append(order)
        return {"parcel": 100 + order}

    message = ship.send(1)
    assert result(broker, broker.enqueue(message)) == {"parcel": 101}
    assert result(broker, ship.send(order=1)) == {"parcel": 101}
    done(broker, worker)
    assert entered == [1]


def test_a_retry_of_dramatiq_is_the_next_attempt(
    broker: StubBroker, worker: dramatiq.Worker, registry: Registry
) -> None:
    """Its Retries middleware sends the failed message again, until an attempt succeeds."""
    attempts = []

    @dramatiq.actor(broker=broker, min_backoff=1, max_backoff=1)
    @registry.idempotent("charge:{invoice}")
    def charge(invoice: str) -> None:
        attempts.append(current_claim().attempt)
        if len(attempts) < 3:
            raise OSError

    charge.send("a")
    done(broker, worker)
    assert attempts == [1, 2, 3]
    assert end_of(registry, "charge:a") == (Status.SUCCEEDED, 3)


def test_retry_by_hand_releases(broker: StubBroker, worker: dramatiq.Worker, registry: Registry) -> None:
    """dramatiq.Retry is no failure: the task is put back, and each run is the first attempt."""
    attempts = []

    @dramatiq.actor(broker=broker)
    @registry.idempotent("poll:{key}", release_on=dramatiq.Retry)
    def poll(key: str) -> None:
        attempts.append(current_claim().attempt)
        if len(attempts) < 3:
            raise dramatiq.Retry(delay=1)

    poll.send("a")
    done(broker, worker)
    assert attempts == [1, 1, 1]
    assert end_of(registry, "poll:a") == (Status.SUCCEEDED, 1)


def test_the_message_id_can_be_the_task_id(broker: StubBroker, worker: dramatiq.Worker, registry: Registry) -> None:
    """CurrentMessage is there before the claim: the same message runs once, a second one of the same content too."""
    entered = []

    def message_id(name: str) -> str:
        message = CurrentMessage.get_current_message()
        assert message is not None
        return f"greet:{message.message_id}"

    @dramatiq.actor(broker=broker)
    @registry.idempotent(message_id, wait=PATIENCE_S)
    def greet(name: str) -> None:
        entered.append(current_claim().task_id)

    message = greet.send("you")
    broker.enqueue(message)
    other = greet.send("you")
    done(broker, worker)
    assert sorted(entered) == sorted(f"greet:{one.message_id}" for one in (message, other))


def test_dramatiq_leaves_the_argument_check_to_the_run(
    broker: StubBroker, worker: dramatiq.Worker, registry: Registry
) -> None:
    """dramatiq sends any arguments; a call that does not fit is a TypeError of the run, and leaves no row."""

    @dramatiq.actor(broker=broker, throws=TypeError)
    @registry.idempotent("order:{order}")
    def ship(order: int) -> None: ...

    ship.send()  # type: ignore[call-arg]
    ship.send(1, 2)  # type: ignore[call-arg]
    ship.send(1, colour="red")  # type: ignore[call-arg]
    done(broker, worker)
    assert [type(message._exception) for message in broker.dead_letters] == [TypeError] * 3
    assert registry.count() == {}


def test_an_interrupted_job_goes_to_the_dead_letters(
    broker: StubBroker, worker: dramatiq.Worker, registry: Registry
) -> None:
    """A time limit or a shutdown in mid-job leaves it unknown; the retry is refused, and `retry_when` ends it."""
    entered = []

    @dramatiq.actor(broker=broker, retry_when=may_help, min_backoff=1, max_backoff=1)
    @registry.idempotent("pay:{invoice}")
    def pay(invoice: str) -> None:
        entered.append(invoice)
        raise Interrupt  # what TimeLimit and Shutdown raise in the worker's thread

    pay.send("a")
    done(broker, worker)
    assert entered == ["a"]
    assert [type(message._exception).__name__ for message in broker.dead_letters] == ["TaskUnknownError"]
    assert end_of(registry, "pay:a") == (Status.UNKNOWN, 1)


def test_other_arguments_go_to_the_dead_letters(
    broker: StubBroker, worker: dramatiq.Worker, registry: Registry
) -> None:
    """The same task with other arguments is refused, and not retried for days."""

    @dramatiq.actor(broker=broker, retry_when=may_help)
    @registry.idempotent("order:{order}")
    def ship(order: int, address: str) -> None: ...

    ship.send(1, "Elm Street")
    done(broker, worker)
    ship.send(1, "Oak Street")
    done(broker, worker)
    assert [type(message._exception).__name__ for message in broker.dead_letters] == ["ChecksumMismatchError"]


def test_two_workers_share_one_execution(broker: StubBroker, worker: dramatiq.Worker, registry: Registry) -> None:
    """Both workers have a message of the task at once: one enters the body, the other waits and has its result."""
    started = Started()
    broker.add_middleware(started)
    entered = []

    @dramatiq.actor(broker=broker, store_results=True)
    @registry.idempotent("slow:{key}", wait=PATIENCE_S)
    def slow(key: str) -> int:
        for _ in range(2):  # until both messages are in a worker
            assert started.count.acquire(timeout=PATIENCE_S)
        entered.append(key)
        return threading.get_ident()

    first, second = slow.send("a"), slow.send("a")
    assert result(broker, first) == result(broker, second)
    done(broker, worker)
    assert entered == ["a"]


# A worker of its own process. Its broker is in memory as well, so the test hands it the bytes of its messages.
OTHER_WORKER = """
    import dramatiq
    from dramatiq.brokers.stub import StubBroker
    from idemreg import Registry

    broker = StubBroker()
    registry = Registry(sys.argv[1], durability="normal")

    @dramatiq.actor(broker=broker)
    @registry.idempotent("slow:{key}", name="slow")
    def slow(key: str) -> int:
        say("entered")
        wait()
        return os.getpid()

    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    while message := wait():
        broker.enqueue(dramatiq.Message.decode(bytes.fromhex(message)))
        broker.join("default")
        worker.join()
        say("done")
"""


def test_a_message_that_two_processes_have(
    broker: StubBroker, worker: dramatiq.Worker, registry: Registry, path: Path
) -> None:
    """Delivered to two worker processes it runs in one of them; if that one is killed in it, the other is refused."""
    started = Started()
    broker.add_middleware(started)
    entered = []

    @dramatiq.actor(broker=broker, store_results=True, retry_when=may_help, min_backoff=1, max_backoff=1)
    @registry.idempotent("slow:{key}", name="slow", wait=PATIENCE_S)
    def slow(key: str) -> None:
        entered.append(key)

    shared, doubtful = slow.message("a"), slow.message("b")
    with Script(OTHER_WORKER, path) as other:
        other.go(shared.encode().hex())
        other.expect("entered")
        broker.enqueue(shared)
        assert started.count.acquire(timeout=PATIENCE_S)
        other.go()
        assert result(broker, shared) == other.process.pid
        other.expect("done")
        other.go(doubtful.encode().hex())
        other.expect("entered")
        other.kill()
    broker.enqueue(doubtful)
    done(broker, worker)
    assert entered == []
    assert [type(message._exception).__name__ for message in broker.dead_letters] == ["TaskUnknownError"]
    assert end_of(registry, "slow:b") == (Status.UNKNOWN, 1)


def test_a_running_twin_is_retried_by_dramatiq(broker: StubBroker, worker: dramatiq.Worker, registry: Registry) -> None:
    """Without `wait=` the second worker gets TaskRunningError, which is retried until the stored result is there."""
    refused = threading.Event()
    entered = []

    @registry.idempotent("twin:{key}")
    def twin(key: str) -> None:
        assert refused.wait(PATIENCE_S)
        entered.append(key)

    @dramatiq.actor(broker=broker, retry_when=may_help, min_backoff=1, max_backoff=1)
    def outer(key: str) -> None:
        try:
            twin(key)
        except IdemregError:
            refused.set()
            raise

    outer.send("a")
    outer.send("a")
    done(broker, worker)
    assert entered == ["a"]
    assert broker.dead_letters == []


def test_an_asynchronous_actor_runs_once(broker: StubBroker, worker: dramatiq.Worker, registry: Registry) -> None:
    """Under the AsyncIO middleware a coroutine function is an actor like any other."""
    entered = []

    @dramatiq.actor(broker=broker, store_results=True)
    @AsyncRegistry.of(registry).idempotent("fetch:{url}", wait=PATIENCE_S)
    async def fetch(url: str) -> str:
        entered.append(url)
        return f"read {url}"

    sent = [fetch.send("a") for _ in range(2)]
    assert [result(broker, message) for message in sent] == ["read a"] * 2
    assert entered == ["a"]
