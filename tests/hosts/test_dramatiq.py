"""dramatiq: redelivery, its own retries, the current message, and two workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import CurrentMessage

from idemreg import Status
from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from idemreg import Registry

MILLISECONDS = int(PATIENCE_S * 1_000)


@pytest.fixture
def broker() -> Iterator[Any]:
    """A broker in memory, and two workers of two threads each."""
    stub = StubBroker()
    stub.add_middleware(CurrentMessage())
    dramatiq.set_broker(stub)
    workers = [dramatiq.Worker(stub, worker_timeout=10, worker_threads=2) for _ in range(2)]
    for worker in workers:
        worker.start()
    yield stub
    for worker in workers:
        worker.stop()
    stub.close()


def finish(broker: Any, actor: Any, *, fail_fast: bool = True) -> None:
    broker.join(actor.queue_name, fail_fast=fail_fast, timeout=MILLISECONDS)


def test_a_message_that_comes_twice_has_one_effect(broker: Any, registry: Registry) -> None:
    """The very message delivered again and again, to whichever worker: one execution."""
    ran: list[str] = []

    @dramatiq.actor(max_retries=0)
    @registry.idempotent("ship:{order}", wait=PATIENCE_S)
    def ship(order: str) -> None:
        ran.append(order)

    message = ship.send("a")
    for _ in range(5):
        broker.enqueue(message)
    finish(broker, ship)
    assert ran == ["a"]


def test_its_own_retry_is_the_next_attempt(broker: Any, registry: Registry) -> None:
    """A failure is retried by dramatiq, and each retry is an attempt of the same task."""
    attempts: list[int] = []

    @dramatiq.actor(max_retries=5, min_backoff=1, max_backoff=5)
    @registry.idempotent("charge:{order}")
    def charge(order: str) -> None:
        attempts.append(len(attempts) + 1)
        if len(attempts) < 3:
            raise ConnectionError(order)

    charge.send("o-1")
    finish(broker, charge, fail_fast=False)
    task = registry.get("charge:o-1")
    assert task is not None
    assert (attempts, task.status, task.attempt) == ([1, 2, 3], Status.SUCCEEDED, 3)


def test_a_refusal_is_not_retried_for_ever(broker: Any, registry: Registry) -> None:
    """`throws=` takes what no retry can mend: a changed message goes to the dead letters at once."""
    from idemreg import ChecksumMismatchError  # noqa: PLC0415 - as a user's module would

    ran: list[int] = []

    @dramatiq.actor(max_retries=5, min_backoff=1, throws=ChecksumMismatchError)
    @registry.idempotent("pay:{order}")
    def pay(order: str, cents: int) -> None:
        ran.append(cents)

    pay.send("o", 100)
    finish(broker, pay)
    pay.send("o", 900)
    with pytest.raises(ChecksumMismatchError):
        finish(broker, pay)
    assert ran == [100]


def test_the_current_message_is_there_in_the_job(broker: Any, registry: Registry) -> None:
    """What dramatiq keeps beside the arguments is found in the job as without the registry."""
    seen: list[str] = []

    @dramatiq.actor(max_retries=0)
    @registry.idempotent("look:{key}")
    def look(key: str) -> None:
        message: Any = CurrentMessage.get_current_message()
        seen.append(message.message_id)

    message = look.send("k")
    finish(broker, look)
    assert seen == [message.message_id]
