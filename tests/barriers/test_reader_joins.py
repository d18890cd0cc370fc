"""What is answered is on the disk. In each test the disk of this process refuses to sync: so it must answer nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import FinishNotRecordedError, Registry, StoreError, SyncFailedError
from tests.barriers.actors import stopped
from tests.test_syncing import break_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Its success is committed, and its sync has begun: everybody sees the row, and a power cut would take it back.
WRITER = """
registry = Registry(path)
registry.run("warm", lambda: 1)
faults.arm(point, stop)
registry.run("t", lambda: 7, name="j", on_crash="rerun")
"""

ANSWERS: dict[str, Callable[[Registry], Any]] = {
    "duplicate": lambda registry: registry.run("t", pytest.fail, name="j", on_crash="rerun"),
    "claim": lambda registry: registry.claim("t", name="j"),
    "batch": lambda registry: registry.claim_many([("t", None)], name="j"),
    "get": lambda registry: registry.get("t"),
    "list": lambda registry: list(registry.tasks()),
    "count": lambda registry: registry.count(),
    "mismatch": lambda registry: registry.claim("t", name="other"),
}


@pytest.fixture
def full(path: Path) -> Iterator[Registry]:
    """A registry whose answers are durable, all of whose own writes are on the disk."""
    with Registry(path) as registry:
        registry.run("first", lambda: 1)
        yield registry


@pytest.mark.parametrize("answer", ANSWERS)
def test_nobody_answers_from_what_may_not_be_on_the_disk(path: Path, full: Registry, answer: str) -> None:
    """A writer is stopped between its commit and its sync; who reads its row must sync first, and here cannot."""
    with stopped(path, WRITER, "sync.begun"):
        break_disk(full)
        with pytest.raises(SyncFailedError):
            ANSWERS[answer](full)


def test_no_job_is_entered_whose_claim_may_not_be_on_the_disk(full: Registry) -> None:
    """Under hold: a power cut would take the claim back, and the job would run a second time."""
    break_disk(full)
    for number in range(2):
        with pytest.raises(StoreError):
            full.run(f"t{number}", lambda: pytest.fail("the job was entered"))


def test_no_batch_is_given_whose_claims_may_not_be_on_the_disk(full: Registry) -> None:
    """The same of many at once."""
    break_disk(full)
    with pytest.raises(StoreError):
        full.claim_many([("t", None)])


@pytest.mark.parametrize("result", ["small", "large" * 100])
def test_no_end_is_told_that_may_not_be_on_the_disk(full: Registry, result: str) -> None:
    """A success that could be lost is an error with the result attached."""
    break_disk(full)
    with pytest.raises(FinishNotRecordedError) as lost:
        full.run("t", lambda: result, on_crash="rerun")
    assert lost.value.result == result


def test_after_a_failed_sync_no_other_process_answers(path: Path, full: Registry) -> None:
    """The kernel says it once, and to this process only: the next sync of another would say OK."""
    with Registry(path) as other:
        other.open()
        break_disk(full)
        with pytest.raises(FinishNotRecordedError):
            full.run("t", lambda: 1, name="j", on_crash="rerun")
        with pytest.raises(SyncFailedError):
            other.run("t", lambda: pytest.fail("ran"), name="j", on_crash="rerun")


def test_a_deleted_wal_makes_nothing_durable(path: Path, full: Registry) -> None:
    """SQLite commits into a deleted file, and its sync says OK."""
    os.unlink(f"{path}-wal")
    with pytest.raises(StoreError):
        full.run("t", lambda: pytest.fail("the job was entered"))
