"""huey: redelivery, its own retry, the task that it injects, and two workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from huey import MemoryHuey
from huey.exceptions import TaskException

from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from idemreg import Registry


@pytest.fixture
def huey() -> Iterator[Any]:
    """A queue in memory with a consumer of two worker threads."""
    queue = MemoryHuey(results=True, store_none=True)
    consumer = queue.create_consumer(
        workers=2, initial_delay=0.01, max_delay=0.01, periodic=False, check_worker_health=False
    )
    consumer.start()
    yield queue
    consumer.stop(graceful=True)


def test_a_message_that_comes_twice_has_one_effect(huey: Any, registry: Registry) -> None:
    """The same call enqueued four times, taken by two workers: one execution, and four equal results."""
    ran: list[str] = []

    @huey.task()
    @registry.idempotent("ship:{order}", wait=PATIENCE_S)
    def ship(order: str) -> dict[str, str]:
        ran.append(order)
        return {"shipped": order}

    results = [ship(order) for order in ("a", "b", "a", "a", "b", "a")]
    assert [result(blocking=True, timeout=PATIENCE_S) for result in results] == [
        {"shipped": order} for order in ("a", "b", "a", "a", "b", "a")
    ]
    assert sorted(ran) == ["a", "b"]


def test_its_own_retry_is_the_next_attempt(huey: Any, registry: Registry) -> None:
    """huey's retry calls again; the registry counts the attempts, and the success is replayed from then on."""
    attempts: list[int] = []

    @huey.task(retries=3)
    @registry.idempotent("charge:{order}")
    def charge(order: str) -> int:
        attempts.append(len(attempts) + 1)
        if len(attempts) < 3:
            raise ConnectionError(order)
        return len(attempts)

    assert _value(charge("o-1")) == 3
    assert _value(charge("o-1")) == 3
    assert attempts == [1, 2, 3]
    task = registry.get("charge:o-1")
    assert task is not None
    assert task.attempt == 3


def _value(result: Any) -> Any:
    """The result, over the retries of its task: huey stores each failure under the same id."""
    while True:
        try:
            return result.get(blocking=True, timeout=PATIENCE_S, preserve=False)
        except TaskException:
            result.reset()


def test_the_injected_task_does_not_count(huey: Any, registry: Registry) -> None:
    """With context=True huey passes task=, another object at each delivery: left out of the checksum by exclude=."""
    seen: list[str] = []

    @huey.task(context=True)
    @registry.idempotent("mail:{to}", exclude=("task",), wait=PATIENCE_S)
    def mail(to: str, task: Any = None) -> str:
        seen.append(task.id)
        return to

    first, second = mail("x"), mail("x")
    assert [one(blocking=True, timeout=PATIENCE_S) for one in (first, second)] == ["x", "x"]
    assert len(seen) == 1
    assert seen[0] in (first.id, second.id)


def test_a_changed_message_is_refused(huey: Any, registry: Registry) -> None:
    """The same task with other arguments is an error of that message, and no second effect."""
    ran: list[int] = []

    @huey.task()
    @registry.idempotent("pay:{order}")
    def pay(order: str, cents: int) -> None:
        ran.append(cents)

    assert pay("o", 100)(blocking=True, timeout=PATIENCE_S) is None
    with pytest.raises(TaskException, match="ChecksumMismatchError"):
        pay("o", 900)(blocking=True, timeout=PATIENCE_S)
    assert ran == [100]
