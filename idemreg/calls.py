"""What a registry runs and claims by its methods. A program that only looks at tasks imports none of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from idemreg import acquiring, attempt
from idemreg.claim import Claim
from idemreg.lockfile import importing
from idemreg.request import add_task, check_job, job_name, wanted
from idemreg.tagged import canonical
from idemreg.walk import drive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from idemreg.batch import Handled
    from idemreg.deciding import Outcome
    from idemreg.errors import IdemregError
    from idemreg.model import Task
    from idemreg.options import CallOptions
    from idemreg.registry import Registry

__all__ = ["add", "claim", "claim_many", "consume", "finish_many", "run"]

M = TypeVar("M")
R = TypeVar("R")


def add(registry: Registry, task_id: str, payload: object, name: str) -> Task:
    """See `Registry.add`."""
    return add_task(registry.store, wanted(task_id, name, canonical(payload), registry.checked({})))


def run(
    registry: Registry, task_id: str, job: Callable[[], R], payload: object, name: str | None, options: CallOptions
) -> Outcome[R]:
    """See `Registry.run`."""
    checked = registry.checked(options)
    check_job(job)
    request = wanted(task_id, job_name(job) if name is None else name, canonical(payload), checked)
    return attempt.run(registry.terms(checked), request, job, (), {})


def claim(registry: Registry, task_id: str, payload: object, name: str, options: CallOptions) -> Claim:
    """See `Registry.claim`."""
    checked = registry.checked({**options, "on_duplicate": "raise"})
    request = wanted(task_id, name, canonical(payload), checked)
    taken = acquiring.claim(registry.terms(checked), request)
    assert isinstance(taken, Claim)  # noqa: S101 - with on_duplicate="raise" an outcome is an error
    taken.hold()
    return taken


def claim_many(
    registry: Registry, items: Iterable[tuple[str, object]], name: str, options: CallOptions
) -> list[Claim | Outcome[Any] | IdemregError]:
    """See `Registry.claim_many`."""
    with importing():
        from idemreg.batch import claim_many, requests  # noqa: PLC0415 - few programs need it

    checked = registry.checked(options).for_batch()
    return drive(claim_many(registry.terms(checked), requests(items, name, checked)))


def finish_many(ended: Iterable[tuple[Claim, object]]) -> list[Outcome[Any] | IdemregError]:
    """See `Registry.finish_many`."""
    with importing():
        from idemreg.batch import finish_many  # noqa: PLC0415 - as above

    return drive(finish_many(list(ended)))


def consume(
    registry: Registry,
    messages: Iterable[M | None],
    job: Callable[[M], R],
    task_id: Callable[[M], str],
    payload: Callable[[M], object] | None,
    batch: int,
    name: str | None,
    options: CallOptions,
) -> Iterator[Handled[M, R]]:
    """See `Registry.consume`."""
    with importing():
        from idemreg.batch import handle, messages_of  # noqa: PLC0415 - as above
        from idemreg.batching import batches  # noqa: PLC0415

    checked = registry.checked(options).for_batch()
    check_job(job)
    terms, called = registry.terms(checked), job_name(job) if name is None else name
    for some in batches(messages, batch):
        yield from drive(handle(terms, messages_of(some, task_id, payload, called, checked), job))
