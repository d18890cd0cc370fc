"""The trial of missing resources tries what it says, says what it could not try, and judges aright what it sees.

That it finds its mutants is tried by ``make torture ARGS="--power --only resources"``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import Claim, FinishNotRecordedError, Registry, StoreError
from tests.torture import resources
from tests.torture.resources_cycle import MOUNTED, STYLES
from tests.torture.resources_work import Worker, audit, result_of
from tests.torture.trial import NOT_TRIED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CYCLES = 2
TASK = "p0-1"


def test_it_finds_nothing() -> None:
    """Of the shipped code: all that it promises holds, and no process could record an end while nothing was stored."""
    tally = resources.run(1, CYCLES)
    assert tally.violations == []
    assert len(tally.distinct) == CYCLES
    assert tally.events["unrecorded"] >= CYCLES * len(STYLES)


def test_it_says_what_it_could_not_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody may mount, the rest is tried, and what was not is counted; in CI it is a violation."""
    monkeypatch.setattr(resources, "namespaces", tuple)
    missed = [f"{NOT_TRIED}{kind} (nobody here may mount)" for kind in MOUNTED]
    plans = set()
    for wrong in ([], missed):
        monkeypatch.setenv("CI", "true") if wrong else monkeypatch.delenv("CI", raising=False)
        tally = resources.run(1, 1)
        assert tally.violations == wrong
        assert [tally.events[what] for what in missed] == [1] * len(missed)
        plans |= tally.distinct
    assert len(plans) == 1, "one plan is one cycle, whatever came of it"


# --- the audit --------------------------------------------------------------------------------------------------


def succeeded(claim: Claim) -> None:
    claim.succeed("done")


def failed(claim: Claim) -> None:
    claim.fail(ValueError("no"))


def unknown(claim: Claim) -> None:
    claim.fail(KeyboardInterrupt())


def released(claim: Claim) -> None:
    claim.release()


ENTERED = ("entered", 0)
ENDED = ("ended", 0)
UNRECORDED = ("unrecorded", 0)

Told = tuple[tuple[str, int], ...]


def told_of(row: Callable[[Claim], None] | None, told: Told, path: Path) -> list[str]:
    """What the audit says of a task with that row, and of what its callers were told: each with how much later a token.

    Without ``row`` its claim is left open.
    """
    with Registry(path, durability="normal") as registry:
        claim = registry.claim(TASK, name="job")
        if row is not None:
            row(claim)
        found = audit(str(path), [{"task": TASK, "what": what, "token": claim.token + later} for what, later in told])
        if row is None:
            claim.release()
    return found


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (succeeded, (ENTERED, ENDED)),
        (unknown, (ENTERED, UNRECORDED)),
        (succeeded, (ENTERED, UNRECORDED)),  # it was unsure, and then it was there
        (failed, (("run: StoreError", 0),)),
    ],
)
def test_the_audit_admits_what_may_be(row: Callable[[Claim], None], told: Told, path: Path) -> None:
    """What was acknowledged is there; what could not be recorded is unknown, or there all the same."""
    assert told_of(row, told, path) == []


@pytest.mark.parametrize(
    ("row", "told", "says"),
    [
        (None, (ENTERED, ENDED), "its success was acknowledged, and it is running"),  # as finish-error-swallowed has it
        (unknown, (ENTERED, ENDED), "its success was acknowledged, and it is unknown"),
        (succeeded, (ENTERED, ("ended", -1)), "its success was acknowledged, and it is succeeded"),  # by another claim
        (failed, (ENTERED, UNRECORDED), "its end could not be recorded, and it is failed"),
        (released, (ENTERED, UNRECORDED), "its end could not be recorded, and it is pending"),
        (None, (ENTERED, UNRECORDED), "its end could not be recorded, and it is running"),
        (succeeded, (("entered", -1), ENTERED, ENDED), "entered 2 times"),
        (succeeded, (("entered", 1),), "entered with token"),
    ],
)
def test_the_audit_speaks(row: Callable[[Claim], None] | None, told: Told, says: str, path: Path) -> None:
    """A row that contradicts what callers were told is reported, once."""
    (wrong,) = told_of(row, told, path)
    assert says in wrong


def test_the_audit_misses_an_absent_row(path: Path) -> None:
    """A body that was entered under a claim that nobody stored, as claim-error-swallowed has it."""
    with Registry(path, durability="normal") as registry:
        registry.add("another", name="job")
    assert audit(str(path), [{"task": TASK, "what": "entered", "token": 7}]) == [
        f"{TASK}: entered with token 7, and its row is None"
    ]


# --- the callers ------------------------------------------------------------------------------------------------


@pytest.fixture
def reports() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def worker(path: Path, reports: list[dict[str, Any]]) -> Iterator[Worker]:
    worker = Worker(str(path), "p0", "lives", 1, reports.append)
    yield worker
    worker.registry.close()


def wrong(reports: list[dict[str, Any]]) -> list[str]:
    return [one["wrong"] for one in reports if "wrong" in one]


def test_a_task_that_runs_again_is_seen(worker: Worker, reports: list[dict[str, Any]]) -> None:
    """Whoever could not record an end looks whether its job is entered once more."""
    worker.unrecorded.append(TASK)  # which the file does not have
    worker.again()
    assert wrong(reports) == [f"p0 (lives): {TASK}: ran again"]


def test_a_descriptor_that_is_left_is_seen(worker: Worker, reports: list[dict[str, Any]]) -> None:
    """Behind a close no more are open than before the first call; each that stays is told once."""
    left = os.open("/dev/null", os.O_RDONLY)
    worker.rest()
    worker.rest()
    os.close(left)
    assert wrong(reports) == ["p0 (lives): 1 descriptors are left behind a close"]


def refuse(error: Exception) -> None:
    raise error


def not_recorded(result: str) -> FinishNotRecordedError:
    error = FinishNotRecordedError("not recorded", task_id=TASK)
    error.result = result
    return error


@pytest.mark.parametrize(
    ("error", "entered", "says"),
    [
        (StoreError("full"), [], None),
        (not_recorded(result_of(TASK, 5)), [5], None),
        (StoreError("full"), [5], "its body was entered, and its caller got StoreError"),
        (not_recorded("other"), [5], "has the result 'other'"),
        (OSError("full"), [], "run raised OSError"),
    ],
)
def test_an_error_must_fit(
    worker: Worker, reports: list[dict[str, Any]], error: Exception, entered: list[int], says: str | None
) -> None:
    """A caller gets the error that fits to whether the body was entered, with its result; any other is told."""
    with worker.told("run", TASK, entered):
        refuse(error)
    found = wrong(reports)
    assert len(found) == (says is not None)
    assert all(says in one for one in found if says)


def test_what_is_back_must_serve(worker: Worker, reports: list[dict[str, Any]]) -> None:
    """Once the resource is there again no error is forgiven."""
    with worker.told("run", TASK, [], must=True):
        refuse(StoreError("full"))
    assert wrong(reports) == [f"p0 (lives): {TASK}: all is there again, and the call got StoreError('full')"]
