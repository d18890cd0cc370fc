"""Under Celery, with its broker in memory and two threads as workers. Prefork and kills: tests/test_hosts.py."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Reject, Retry
from celery.signals import task_prerun

from idemreg import Registry, Status, TaskRunningError, current_claim
from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

app = Celery("hosts", broker="memory://", backend="cache+memory://")
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"polling_interval": 0.01},
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
)


def jobs_on(registry: Registry) -> SimpleNamespace:  # noqa: C901 - a list of small jobs
    """The tasks of all tests: a worker of Celery knows those that exist when it starts."""
    jobs = SimpleNamespace(registry=registry, entered=[], deliveries=[], prerun=threading.Semaphore(0))
    jobs.refused = threading.Event()

    @registry.idempotent("order:{order}")
    def ship(order: int) -> dict[str, int]:
        jobs.entered.append(order)
        return {"parcel": 100 + order}

    @app.task(bind=True, acks_late=True)
    def ship_and_lose(self: Any, order: int) -> dict[str, int]:
        parcel = ship(order)
        jobs.deliveries.append(self.request.id)
        if len(jobs.deliveries) == 1:  # done, but never acknowledged
            raise Reject(requeue=True)
        return parcel

    @app.task(bind=True, max_retries=5)
    @registry.idempotent("poll:{key}", release_on=Retry, wait=PATIENCE_S)
    def poll(self: Any, key: str) -> int:
        jobs.entered.append(current_claim().attempt)
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    @app.task(autoretry_for=(OSError,), retry_backoff=False, default_retry_delay=0, max_retries=5)
    @registry.idempotent("charge:{invoice}", wait=PATIENCE_S)
    def charge(invoice: str) -> str:
        jobs.entered.append(current_claim().attempt)
        if len(jobs.entered) < 3:
            raise OSError
        return "paid"

    @app.task(bind=True)
    @registry.idempotent(lambda self, name: f"greet:{self.request.id}")
    def greet(self: Any, name: str) -> str:
        jobs.entered.append(self.request.id)
        return f"hello {name}"

    @app.task
    @registry.idempotent("slow:{key}", wait=PATIENCE_S)
    def slow(key: str) -> int:
        for _ in range(2):  # until both messages are in a worker
            assert jobs.prerun.acquire(timeout=PATIENCE_S)
        jobs.entered.append(key)
        return threading.get_ident()

    @registry.idempotent("twin:{key}")
    def twin(key: str) -> int:
        assert jobs.refused.wait(PATIENCE_S)
        jobs.entered.append(key)
        return threading.get_ident()

    @app.task(autoretry_for=(TaskRunningError,), default_retry_delay=0, max_retries=None)
    def impatient(key: str) -> int:
        try:
            return twin(key)
        except TaskRunningError:
            jobs.refused.set()
            raise

    for one in (ship_and_lose, poll, charge, greet, slow, impatient):
        setattr(jobs, one.__name__, one)
    return jobs


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """One worker for all tests, since it takes seconds to stop."""
    jobs = jobs_on(Registry(tmp_path_factory.mktemp("celery") / "jobs.db", durability="normal"))
    # Celery tells its log settings to child processes by the environment: those of other tests must not hear of them.
    with (
        mock.patch.dict(os.environ),
        start_worker(app, pool="threads", concurrency=2, perform_ping_check=False, loglevel="CRITICAL"),
    ):
        yield jobs


@pytest.fixture
def jobs(worker: SimpleNamespace) -> Iterator[SimpleNamespace]:
    worker.entered.clear()
    yield worker
    worker.registry.close()


def result(sent: Any) -> Any:
    return sent.get(timeout=PATIENCE_S, interval=0.01)


def end_of(registry: Registry, task_id: str) -> tuple[Status, int]:
    task = registry.get(task_id)
    assert task is not None
    return task.status, task.attempt


def test_a_redelivered_message_runs_once(jobs: SimpleNamespace) -> None:
    """The job is done, its message is not acknowledged and comes again: the stored result, and no second body."""
    assert result(jobs.ship_and_lose.delay(1)) == {"parcel": 101}
    assert jobs.entered == [1]
    assert len(jobs.deliveries) == 2
    assert len(set(jobs.deliveries)) == 1


def test_retry_by_hand_releases(jobs: SimpleNamespace) -> None:
    """`self` is injected and does not count; `self.retry` puts the task back, so each is the first attempt."""
    assert result(jobs.poll.delay("a")) == 2
    assert result(jobs.poll.delay(key="a")) == 2
    assert jobs.entered == [1, 1, 1]
    assert end_of(jobs.registry, "poll:a") == (Status.SUCCEEDED, 1)


def test_autoretry_is_the_next_attempt(jobs: SimpleNamespace) -> None:
    """A failure that Celery retries by itself is stored, and the message of the retry runs the next attempt."""
    assert result(jobs.charge.delay("a")) == "paid"
    assert jobs.entered == [1, 2, 3]
    assert end_of(jobs.registry, "charge:a") == (Status.SUCCEEDED, 3)


def test_the_message_id_can_be_the_task_id(jobs: SimpleNamespace) -> None:
    """A task_id from `self.request.id`: the same message runs once, a second message of the same content runs too."""
    for message in ("m-1", "m-1", "m-2"):
        assert result(jobs.greet.apply_async(("you",), task_id=message)) == "hello you"
    assert jobs.entered == ["m-1", "m-2"]


@pytest.mark.parametrize("bad", [((), {}), (("a", "b"), {}), (("a",), {"colour": "red"})])
def test_celery_checks_the_arguments(jobs: SimpleNamespace, bad: tuple[tuple[str, ...], dict[str, str]]) -> None:
    """A call that does not fit is a TypeError at the sender, also with `self` injected, and leaves no row."""
    before = jobs.registry.count()
    for job in (jobs.poll, jobs.charge):
        with pytest.raises(TypeError):
            job.apply_async(*bad)
    assert jobs.registry.count() == before


def test_two_workers_share_one_execution(jobs: SimpleNamespace) -> None:
    """Both workers have a message of the task at once: one enters the body, the other waits and has its result."""

    def note(**_: object) -> None:
        jobs.prerun.release()

    task_prerun.connect(note, sender=jobs.slow)
    first, second = jobs.slow.delay("a"), jobs.slow.delay("a")
    assert result(first) == result(second)
    assert jobs.entered == ["a"]


def test_a_running_twin_is_retried_by_celery(jobs: SimpleNamespace) -> None:
    """Without `wait=` the second worker gets TaskRunningError, which Celery retries until the result is there."""
    first, second = jobs.impatient.delay("a"), jobs.impatient.delay("a")
    assert result(first) == result(second)
    assert jobs.entered == ["a"]
