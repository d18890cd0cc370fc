"""Memory goes at one allocation after the other, in this very process: what a batch had done is not forgotten."""

from __future__ import annotations

import sys
from ctypes import ArgumentError
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import Clock, IdemregError, Liveness, Registry, Status
from idemreg.doctor.case import Lock
from idemreg.sqlite import database as databases
from tests.support.descriptors import left_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

testcapi: Any = pytest.importorskip("_testcapi", reason="this Python cannot be made to run out of memory")


@pytest.fixture(autouse=True)
def nobody_measures() -> Iterator[None]:
    """Whoever measures coverage takes memory as well: what he lacks is an error at any line, which no code can mend."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


# A generator that is closed without memory tells so past everybody.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_batch_whose_memory_goes_behind_its_last_job_is_settled(
    path: Path, open_registry: Callable[..., Registry]
) -> None:
    """Whichever allocation fails between the job and the store, no task stays running as if somebody were at it."""
    registry = open_registry(durability="normal")
    failed = 0
    for number in range(1, 60):

        def job(_message: str, at: int = number) -> None:
            testcapi.set_nomemory(at, at + 1)

        try:
            list(registry.consume([f"t:{number}"], job, task_id=str, name="job"))
        except (MemoryError, RuntimeError, IdemregError):  # a lock that cannot be made is a RuntimeError
            failed += 1
        finally:
            testcapi.remove_mem_hooks()
        task = registry.get(f"t:{number}")
        assert task is not None
        if task.status is Status.RUNNING:
            owner = registry.owner(task)
            assert owner is not None
            assert owner.liveness is Liveness.DEAD, number
    assert failed > 5
    registry.close()
    assert left_open(path) == []


# A generator that is closed without memory tells so past everybody, as does a claim that is dropped.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_transaction_whose_memory_goes_as_it_opens_is_closed(
    path: Path, open_registry: Callable[..., Registry]
) -> None:
    """Whichever allocation fails on the way in, no lock is kept, and the next write waits for nobody."""
    registry = open_registry(durability="normal")
    failed = 0
    for number in range(1, 300):
        try:
            with registry.claim(f"t:{number}", on_crash="rerun") as claim:
                testcapi.set_nomemory(number, number + 1)
                with claim.transaction():
                    testcapi.remove_mem_hooks()
        except (MemoryError, RuntimeError, IdemregError):
            failed += 1
        finally:
            testcapi.remove_mem_hooks()
        registry.run(f"next:{number}", int)
    assert failed > 20
    registry.close()
    assert left_open(path) == []


def test_an_opening_that_is_not_remembered_leaves_nothing_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last that an opening needs is a place among those that a fork forgets: all that it has opened is closed."""

    def refuses(_database: object) -> None:
        raise MemoryError

    with Registry(path) as registry:
        registry.run("t", int)
    monkeypatch.setattr(databases, "forgets", refuses)
    with pytest.raises(MemoryError):
        Registry(path).open()
    assert left_open(path) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_close_whose_memory_goes_can_be_called_again(path: Path) -> None:
    """Whichever allocation fails, the second call closes what the first has left, also where it was opened since."""
    failed, number, fared_well = 0, 0, 0
    while fared_well < 20:  # behind the last that it makes
        number += 1
        registry = Registry(path, durability="normal")
        registry.run(f"t:{number}", int)
        testcapi.set_nomemory(number, number + 1)
        try:
            registry.close()
            fared_well += 1
        except (MemoryError, ArgumentError, RuntimeError, IdemregError):
            failed, fared_well = failed + 1, 0
        finally:
            testcapi.remove_mem_hooks()
        if number % 2:
            registry.run(f"next:{number}", int)
        registry.close()
        assert left_open(path) == [], number
    assert failed > 200


def test_a_look_at_a_lock_file_whose_memory_goes_leaves_it_closed(path: Path) -> None:
    """Of the doctor's: whatever is made of what was read, also behind the reading."""
    with Registry(path) as registry:
        registry.run("t", int)
    failed, number, fared_well, clock = 0, 0, 0, Clock()
    while fared_well < 5:
        number += 1
        testcapi.set_nomemory(number, number + 1)
        try:
            Lock(f"{path}-lock", clock).file.close()
            fared_well += 1
        except (MemoryError, IdemregError):
            failed, fared_well = failed + 1, 0
        finally:
            testcapi.remove_mem_hooks()
        assert left_open(path) == [], number
    assert failed > 5
