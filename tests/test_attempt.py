"""The walk of one attempt through a real registry: duplicates, twins, failures, hooks, results, claims, effects."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import pickle
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from idemreg import (
    ChecksumMismatchError,
    Claim,
    ClaimLostError,
    FinishNotRecordedError,
    Liveness,
    Outcome,
    OwnerInfo,
    Registry,
    ResultError,
    Status,
    StoreBusyError,
    StoreError,
    Task,
    TaskDoneError,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
    TransitionError,
    Verdict,
    Verified,
    acquiring,
    current_claim,
    ends,
    errors,
    faults,
)
from idemreg import attempt as attempts
from idemreg.clock import Clock
from idemreg.ends import ERROR_CHARACTERS
from idemreg.options import Options
from idemreg.request import wanted
from idemreg.tagged import canonical
from idemreg.testing import ManualClock
from idemreg.walk import drive
from tests.support.descriptors import left_open
from tests.support.interruptions import TimeLimitError, interrupt_at
from tests.support.names import shown
from tests.support.processes import PATIENCE_S
from tests.support.raw import connect, reseal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg.claim import Terms
    from idemreg.deciding import Wanted


class BoomError(Exception):
    pass


class MaybeError(Exception):
    pass


class LaterError(Exception):
    pass


def row_of(registry: Registry, task_id: str = "t") -> Task:
    row = registry.get(task_id)
    assert row is not None
    return row


def fails_with(error: BaseException) -> Callable[[], Any]:
    def job() -> None:
        raise error

    return job


def never() -> Any:
    pytest.fail("the job was entered")


def in_child(act: Callable[[], object]) -> None:
    """Carry ``act`` out in a forked child that ends right behind it, with no clean-up."""
    child = os.fork()
    if not child:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    _, state = os.waitpid(child, 0)
    assert state == 0


def die_holding(path: Path, task_id: str = "t", **options: Any) -> None:
    in_child(lambda: globals().__setitem__("_kept", Registry(path, durability="normal").claim(task_id, **options)))


def failed_once(registry: Registry, **options: Any) -> None:
    with pytest.raises(BoomError):
        registry.run("t", fails_with(BoomError("first")), name="", **options)


def unknown_once(registry: Registry, **options: Any) -> None:
    with pytest.raises(MaybeError):
        registry.run("t", fails_with(MaybeError("sent?")), name="", unknown_on=MaybeError, **options)


# --- duplicates -------------------------------------------------------------------------------------------------


def test_a_duplicate_gets_the_stored_outcome(registry: Registry) -> None:
    """The second call never enters the job, and says of itself that it is a replay of the same attempt and token."""
    first = registry.run("t", lambda: [1], name="")
    second = registry.run("t", never, name="")
    assert first == Outcome("t", Status.SUCCEEDED, [1], replayed=False, attempt=1, token=first.token)
    assert second == first._replace(replayed=True)


def test_a_duplicate_may_raise_with_the_outcome(registry: Registry) -> None:
    """on_duplicate="raise" refuses the second call, and the error carries what the first gave."""
    registry.run("t", lambda: {"a": 1}, name="")
    with pytest.raises(TaskDoneError) as caught:
        registry.run("t", never, name="", on_duplicate="raise")
    assert caught.value.task_id == "t"
    assert caught.value.outcome is not None
    assert caught.value.outcome.result == {"a": 1}
    assert caught.value.outcome.replayed


@pytest.mark.parametrize("end", ["skip", "cancel"])
def test_a_task_ended_without_running_never_runs(registry: Registry, end: str) -> None:
    """A skipped or cancelled task has no result to return: TaskDoneError, with its status and the reason."""
    registry.add("t")
    if end == "skip":
        registry.skip("t", "public holiday", by="me")
    else:
        registry.cancel("t", reason="public holiday", by="me")
    with pytest.raises(TaskDoneError) as caught:
        registry.run("t", never, name="")
    assert caught.value.outcome is not None
    assert caught.value.outcome.status is row_of(registry).status
    assert "public holiday" in str(caught.value)
    assert row_of(registry).settled_by == "me"


def test_a_task_that_was_added_runs_once(registry: Registry) -> None:
    """A pending row is claimed as if there were none, and its first attempt is 1."""
    assert registry.add("t").status is Status.PENDING
    assert registry.run("t", lambda: 1, name="").attempt == 1
    assert registry.run("t", never, name="").replayed


# --- running twins ----------------------------------------------------------------------------------------------


def test_a_running_twin_is_refused_with_its_owner(registry: Registry) -> None:
    """TaskRunningError tells who runs the task and since when, and may be called again."""
    with registry.claim("t"):
        with pytest.raises(TaskRunningError) as caught:
            registry.run("t", never, name="")
        assert caught.value.retryable
        assert caught.value.owner is not None
        assert (caught.value.owner.liveness, caught.value.owner.pid) == (Liveness.ALIVE, os.getpid())
        assert caught.value.since == row_of(registry).updated_at


def test_a_waiter_replays_the_twins_result(registry: Registry) -> None:
    """With wait= the second caller gets the result of the one that runs, without running."""
    entered, leave = threading.Event(), threading.Event()
    outcomes: list[Outcome[Any]] = []

    def job() -> str:
        entered.set()
        assert leave.wait(PATIENCE_S)
        return "done"

    first = threading.Thread(target=lambda: outcomes.append(registry.run("t", job, name="")))
    first.start()
    assert entered.wait(PATIENCE_S)
    # The waiter's own look at the clock is the observed state: from then on it waits.
    waits = WaitSeen(leave)
    with Registry(registry.path, durability="normal", clock=waits) as other:
        second = other.run("t", never, name="", wait=PATIENCE_S)
    first.join(PATIENCE_S)
    assert waits.seen
    assert (second.result, second.replayed, second.token) == ("done", True, outcomes[0].token)


class WaitSeen(Clock):
    """Says that somebody naps, and lets the other side go on."""

    def __init__(self, then: threading.Event) -> None:
        self.seen = False
        self._then = then

    def sleep(self, pause: float) -> None:
        self.seen = True
        self._then.set()
        super().sleep(pause)


def test_a_wait_has_an_end(path: Path, registry: Registry) -> None:
    """A twin that does not end in time is a TaskRunningError, after no more than the time given."""
    clock = ManualClock()
    with registry.claim("t"), Registry(path, durability="normal", clock=clock) as other:
        before = clock.monotonic()
        with pytest.raises(TaskRunningError):
            other.run("t", never, name="", wait=5)
        assert clock.monotonic() - before == pytest.approx(5)


def test_a_waiter_takes_over_from_a_twin_that_failed(registry: Registry) -> None:
    """When the twin fails in the meantime, the waiter runs the task itself as the next attempt."""
    claim = registry.claim("t")
    leave = threading.Event()
    outcomes: list[Outcome[Any]] = []

    def wait() -> None:
        with Registry(registry.path, durability="normal", clock=WaitSeen(leave)) as other:
            outcomes.append(other.run("t", lambda: "second", name="", wait=PATIENCE_S))

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert leave.wait(PATIENCE_S)
    claim.fail(BoomError())
    waiter.join(PATIENCE_S)
    assert (outcomes[0].result, outcomes[0].attempt) == ("second", 2)


def test_threads_racing_for_a_task_enter_it_once(registry: Registry) -> None:
    """Of many threads behind one barrier one runs the job; all others get its result."""
    barrier = threading.Barrier(8)
    entered: list[int] = []
    results: list[Any] = []

    def race(number: int) -> None:
        def job() -> int:
            entered.append(number)
            return number

        barrier.wait(PATIENCE_S)
        results.append(registry.run("t", job, name="", wait=PATIENCE_S).result)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(entered) == 1
    assert results == entered * 8


# --- mismatch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["pending", "running", "succeeded", "failed", "unknown", "skipped", "cancelled"])
@pytest.mark.parametrize("other", [{"payload": 2, "name": "a"}, {"payload": 1, "name": "b"}])
def test_other_work_under_the_same_id_is_refused(registry: Registry, state: str, other: dict[str, Any]) -> None:
    """Other arguments, or another job, never run and never get a result of the task, whatever its status."""
    mine: Any = {"payload": 1, "name": "a"}
    registry.add("t", **mine)
    held: list[Claim] = []
    act: dict[str, Callable[[], object]] = {
        "pending": lambda: None,
        "running": lambda: held.append(registry.claim("t", **mine)),
        "succeeded": lambda: registry.run("t", lambda: 1, **mine),
        "failed": lambda: registry.claim("t", **mine).fail(BoomError()),
        "unknown": lambda: registry.claim("t", unknown_on=MaybeError, **mine).fail(MaybeError()),
        "skipped": lambda: registry.skip("t", ""),
        "cancelled": lambda: registry.cancel("t"),
    }
    act[state]()
    before = row_of(registry)
    assert before.status.word == state
    for call in (lambda: registry.run("t", never, **other), lambda: registry.add("t", **other)):
        with pytest.raises(ChecksumMismatchError) as caught:
            call()
        assert caught.value.task_id == "t"
    assert row_of(registry) == before
    for claim in held:
        claim.release()


# --- failures ---------------------------------------------------------------------------------------------------


def test_a_failed_task_is_retried_until_its_attempts_are_used_up(registry: Registry) -> None:
    """Each call is one attempt; behind the last the task is a dead letter, and the job is not entered again."""
    for attempt in (1, 2, 3):
        with pytest.raises(BoomError):
            registry.run("t", fails_with(BoomError("no luck")), name="", max_attempts=3)
        assert row_of(registry).attempt == attempt
    with pytest.raises(TaskFailedError) as caught:
        registry.run("t", never, name="", max_attempts=3)
    assert not caught.value.retryable
    assert caught.value.task == row_of(registry)
    assert row_of(registry).is_dead_letter
    assert "no luck" in str(caught.value)


def test_a_failure_leads_to_success_in_the_end(registry: Registry) -> None:
    """A retry that succeeds is final, and nothing of the old failure is left in the row."""
    failed_once(registry)
    assert registry.run("t", lambda: 5, name="").attempt == 2
    row = row_of(registry)
    assert (row.status, row.error, row.attempt) == (Status.SUCCEEDED, None, 2)


def test_a_held_failure_waits_for_an_operator(registry: Registry) -> None:
    """on_failure="hold" never runs again by itself; `retry` allows just one more attempt."""
    failed_once(registry, on_failure="hold")
    with pytest.raises(TaskFailedError):
        registry.run("t", never, name="")  # the stored policy holds, though this caller would retry
    registry.retry("t", reason="disk replaced", by="ann")
    with pytest.raises(BoomError):
        registry.run("t", fails_with(BoomError()), name="", on_failure="hold")
    with pytest.raises(TaskFailedError):
        registry.run("t", never, name="", on_failure="hold")
    assert (row_of(registry).settled_by, row_of(registry).evidence) == ("ann", "disk replaced")


def test_retry_revives_a_dead_letter_once(registry: Registry) -> None:
    """Used-up attempts are no obstacle to an operator, and the attempt is counted on."""
    failed_once(registry, max_attempts=1)
    registry.retry("t")
    with pytest.raises(BoomError):
        registry.run("t", fails_with(BoomError()), name="", max_attempts=1)
    assert row_of(registry).attempt == 2
    with pytest.raises(TaskFailedError):
        registry.run("t", never, name="", max_attempts=1)


def test_an_error_that_leaves_it_open_makes_the_task_unknown(registry: Registry) -> None:
    """unknown_on: a time-out is no "did not happen"; the error goes to its caller, and nobody runs the task again."""
    unknown_once(registry)
    assert row_of(registry).status is Status.UNKNOWN
    with pytest.raises(TaskUnknownError) as caught:
        registry.run("t", never, name="")
    assert not caught.value.retryable
    assert caught.value.task == row_of(registry)
    assert "sent?" in str(caught.value)


def test_a_release_does_not_count(registry: Registry) -> None:
    """release_on puts a first claim back to pending, with no attempt used and no error kept."""
    for _ in range(3):
        with pytest.raises(LaterError):
            registry.run("t", fails_with(LaterError()), name="", release_on=LaterError, max_attempts=1)
    row = row_of(registry)
    assert (row.status, row.attempt, row.error) == (Status.PENDING, 0, None)
    assert registry.run("t", lambda: 1, name="", max_attempts=1).attempt == 1


@pytest.mark.parametrize("message", ["short", "long " * 200])
def test_a_release_restores_the_earlier_failure(registry: Registry, message: str) -> None:
    """A failed task that is released is failed again, with the same error and the same count of attempts."""
    with pytest.raises(BoomError):
        registry.run("t", fails_with(BoomError(message)), name="")
    before = row_of(registry)
    with pytest.raises(LaterError):
        registry.run("t", fails_with(LaterError()), name="", release_on=(LaterError,))
    after = row_of(registry)
    assert after == before._replace(token=after.token, updated_at=after.updated_at, boot_stamp=after.boot_stamp)
    assert after.token > before.token


def test_a_release_keeps_what_an_operator_allowed(registry: Registry) -> None:
    """`retry`, then a release: the operator's one more attempt was not used, so it is still there."""
    failed_once(registry, max_attempts=1)
    registry.retry("t")
    with pytest.raises(LaterError):
        registry.run("t", fails_with(LaterError()), name="", release_on=LaterError, max_attempts=1)
    assert row_of(registry).verdict is Verdict.RETRY
    assert registry.run("t", lambda: 1, name="", max_attempts=1).attempt == 2
    assert row_of(registry).verdict is None


def test_the_error_is_stored_and_bounded(registry: Registry) -> None:
    """Type, message and the place are kept; an endless message, a lone surrogate or a NUL harm nothing."""
    with pytest.raises(BoomError):
        registry.run("t", fails_with(BoomError("a\0b\ud800 " + "x" * 100_000)), name="")
    error = row_of(registry).error
    assert error is not None
    assert error.startswith(f"{__name__}.BoomError: a\\0b\\ud800 xxx")
    assert "test_attempt.py" in error
    assert len(error) <= ERROR_CHARACTERS


def test_an_error_without_a_message_of_its_own_is_stored(registry: Registry) -> None:
    """An exception whose __str__ raises is a failure like any other."""

    class MuteError(Exception):
        def __str__(self) -> str:
            msg = "no words"
            raise RuntimeError(msg)

    with pytest.raises(MuteError):
        registry.run("t", fails_with(MuteError()), name="")
    assert row_of(registry).status is Status.FAILED
    assert "RuntimeError" in (row_of(registry).error or "")


# --- crashes and interruptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"on_crash": "hold"}, Status.UNKNOWN),
        ({"on_crash": "verify", "verify": lambda task: None}, Status.UNKNOWN),
        ({"on_crash": "rerun"}, Status.PENDING),
        ({"on_crash": "rerun", "max_attempts": 1}, Status.FAILED),
    ],
    ids=["hold", "verify", "rerun", "rerun-last"],
)
def test_an_interruption_counts_as_a_crash(
    registry: Registry, interruption: type[BaseException], options: dict[str, Any], status: Status
) -> None:
    """The interruption goes on its way, the attempt counts, and on_crash decides what the task becomes."""
    with pytest.raises(interruption):
        registry.run("t", fails_with(interruption()), name="", **options)
    row = row_of(registry)
    assert (row.status, row.attempt) == (status, 1)
    assert interruption.__name__ in (row.error or "")


def test_an_interruption_inside_a_claims_block_goes_on_its_way(registry: Registry) -> None:
    """Ctrl-C in `with claim` is Ctrl-C to the caller even where the claim was lost meanwhile."""
    with pytest.raises(KeyboardInterrupt), registry.claim("t") as claim:  # noqa: PT012 - its block is tested
        steal(registry)
        raise KeyboardInterrupt
    assert not claim.is_open


def run_success(registry: Registry, **options: Any) -> None:
    registry.run("t", lambda: 1, name="", **options)


def run_failure(registry: Registry, **options: Any) -> None:
    registry.run("t", fails_with(BoomError("x")), name="", **options)


def block_success(registry: Registry, **options: Any) -> None:
    with registry.claim("t", **options):
        pass


def block_failure(registry: Registry, **options: Any) -> None:
    with registry.claim("t", **options):
        raise BoomError


def by_hand(registry: Registry, **options: Any) -> None:
    globals()["_kept"] = claim = registry.claim("t", **options)
    claim.succeed(1)


def failed_by_hand(registry: Registry, **options: Any) -> None:
    globals()["_kept"] = claim = registry.claim("t", **options)
    claim.fail(BoomError("x"))


ENDS = [run_success, run_failure, block_success, block_failure, by_hand, failed_by_hand]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeLimitError()], ids=shown)
@pytest.mark.parametrize("end", ENDS, ids=shown)
@pytest.mark.parametrize(("on_crash", "status"), [("hold", Status.UNKNOWN), ("rerun", Status.PENDING)])
def test_an_interruption_as_the_end_is_stored_counts_as_a_crash(
    registry: Registry, on_crash: str, status: Status, end: Callable[..., None], error: BaseException
) -> None:
    """It goes on its way, and the task does not stay running: on_crash decides, and the row tells what was lost."""
    interrupt_at("finish.in-transaction", error)
    with pytest.raises(type(error)):
        end(registry, on_crash=on_crash)
    row = row_of(registry)
    assert (row.status, row.attempt) == (status, 1)
    assert row.error is not None
    assert row.error.startswith("FinishNotRecorded: the job ended as ")
    assert type(error).__name__ in row.error


@pytest.mark.parametrize("end", ENDS, ids=shown)
def test_an_interruption_behind_the_commit_of_the_end_changes_nothing(
    registry: Registry, end: Callable[..., None]
) -> None:
    """An end that was stored stays, whatever its caller was told."""
    interrupt_at("finish.committed", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        end(registry)
    assert row_of(registry).status is (Status.FAILED if "fail" in end.__name__ else Status.SUCCEEDED)
    assert registry.run("u", lambda: 1).result == 1


def test_an_interrupted_release_is_a_release(registry: Registry) -> None:
    """What was to leave the task as it was still does."""
    claim = registry.claim("t")
    interrupt_at("finish.in-transaction", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        claim.release()
    assert (row_of(registry).status, row_of(registry).attempt) == (Status.PENDING, 0)


class InterruptedClock(ManualClock):
    is_armed = False

    def wall_us(self) -> int:
        if self.is_armed:
            self.is_armed = False
            raise KeyboardInterrupt
        return super().wall_us()


def test_a_second_interruption_only_puts_the_end_off(open_registry: Callable[..., Registry]) -> None:
    """Ctrl-C again, while the first one is being settled: the next write carries the end with it."""
    clock = InterruptedClock()
    registry = open_registry(clock=clock)

    def interrupt_twice() -> None:
        faults.disarm()
        clock.is_armed = True
        raise KeyboardInterrupt

    faults.arm("finish.in-transaction", interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        registry.run("t", lambda: 1, name="")
    assert (clock.is_armed, row_of(registry).status) == (False, Status.RUNNING)
    registry.run("other", lambda: 1)
    assert row_of(registry).status is Status.UNKNOWN


def test_an_interruption_in_a_codec_counts_as_a_crash(registry: Registry) -> None:
    """The job has run, and its result is not made yet: with run as with a block that still has its claim."""
    codec = InterruptedCodec()
    with pytest.raises(KeyboardInterrupt):
        registry.run("t", lambda: 1, result=codec)
    with pytest.raises(KeyboardInterrupt), registry.claim("u", result=codec) as claim:
        claim.result = 1
    assert not claim.is_open
    assert (row_of(registry).status, row_of(registry, "u").status) == (Status.UNKNOWN, Status.UNKNOWN)


class InterruptedCodec:
    def encode(self, value: object) -> object:
        raise KeyboardInterrupt

    def decode(self, data: object) -> object:
        return data


@pytest.mark.parametrize("known", [False, True], ids=["first-claim", "later-claim"])
@pytest.mark.parametrize("point", ["claim.in-transaction", "sync.begun", "claim.committed"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeLimitError()], ids=shown)
def test_an_interruption_as_the_claim_is_stored_puts_it_back(
    open_registry: Callable[..., Registry], error: BaseException, point: str, *, known: bool
) -> None:
    """The job never began: for other processes as well the task is not running, and the attempt does not count."""
    registry, other = open_registry(durability="full"), open_registry()
    if known:
        registry.run("warm", lambda: 1)
    interrupt_at(point, error)
    with pytest.raises(type(error)):
        registry.run("t", never, name="")
    row = other.get("t")
    assert row is None or (row.status, row.attempt) == (Status.PENDING, 0)
    assert other.run("t", lambda: 2, name="").attempt == 1


def steal(registry: Registry, task_id: str = "t") -> None:
    """Take the row from under its owner's feet, as another owner's takeover would."""
    connection = connect(registry.path)
    sql = "UPDATE idempotent_log SET status = 4, owner = NULL, token = token + 1 WHERE task_id = ?"
    connection.execute(sql, (task_id,))
    reseal(connection)
    connection.close()


def test_a_dead_owners_task_is_unknown_under_hold(registry: Registry, path: Path) -> None:
    """The first call behind the death says so, stores it with its reason, and does not run."""
    die_holding(path)
    with pytest.raises(TaskUnknownError):
        registry.run("t", never, name="")
    row = row_of(registry)
    assert (row.status, row.verdict, row.attempt) == (Status.UNKNOWN, Verdict.CANNOT_TELL, 1)
    assert "OwnerDied" in (row.error or "")


def test_a_death_in_a_later_attempt_is_what_the_row_tells(registry: Registry, path: Path) -> None:
    """The error of a row is that of its last failure or loss: an earlier attempt's error does not hide the death."""
    failed_once(registry)
    die_holding(path)
    with pytest.raises(TaskUnknownError) as caught:
        registry.run("t", never, name="")
    assert "OwnerDied: attempt 2" in (row_of(registry).error or "")
    assert "OwnerDied" in str(caught.value)


def test_a_dead_owners_task_runs_again_under_rerun(registry: Registry, path: Path) -> None:
    """The next call takes over at once, as the next attempt under a larger token, up to max_attempts."""
    die_holding(path, on_crash="rerun")
    token = row_of(registry).token
    outcome = registry.run("t", lambda: "again", name="", on_crash="rerun")
    assert (outcome.attempt, outcome.replayed) == (2, False)
    assert outcome.token > token
    die_holding(path, "u", on_crash="rerun")
    with pytest.raises(TaskFailedError):
        registry.run("u", never, name="", on_crash="rerun", max_attempts=1)
    assert row_of(registry, "u").status is Status.FAILED


@pytest.mark.parametrize(("stored", "asked"), [("hold", "rerun"), ("rerun", "hold")])
def test_the_stricter_crash_policy_holds(registry: Registry, path: Path, stored: str, asked: Any) -> None:
    """Of the policy stored with the claim and the one asked for, hold wins over rerun from either side."""
    die_holding(path, on_crash=stored)
    with pytest.raises(TaskUnknownError):
        registry.run("t", never, name="", on_crash=asked)
    assert row_of(registry).status is Status.UNKNOWN


def test_a_crash_policy_never_weakens_from_claim_to_claim(registry: Registry, path: Path) -> None:
    """What was once claimed under hold is held when a later attempt under rerun dies, for whoever finds it."""
    failed_once(registry)
    die_holding(path, on_crash="rerun")
    with pytest.raises(TaskUnknownError):
        registry.run("t", never, name="", on_crash="rerun")


# --- verify hooks -----------------------------------------------------------------------------------------------


HAPPENED: Any = [True, Verdict.HAPPENED, Verified(Verdict.HAPPENED)]
DID_NOT: Any = [False, Verdict.DID_NOT_HAPPEN, Verified(Verdict.DID_NOT_HAPPEN, evidence="looked")]
CANNOT_TELL: Any = [None, Verdict.CANNOT_TELL, Verified(Verdict.CANNOT_TELL)]


def verifying(answer: object) -> dict[str, Any]:
    """The options of a caller whose hook gives, or raises, ``answer``."""

    def hook(task: Task, *args: object, **kwargs: object) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return {"on_crash": "verify", "verify": hook}


@pytest.mark.parametrize("answer", HAPPENED)
def test_a_hook_that_says_happened_ends_the_task(registry: Registry, path: Path, answer: object) -> None:
    """The task has succeeded without being entered again; a result that the hook does not give is None."""
    die_holding(path, **verifying(None))
    outcome = registry.run("t", never, name="", **verifying(answer))
    assert (outcome.status, outcome.result, outcome.replayed) == (Status.SUCCEEDED, None, True)
    assert row_of(registry).verdict is Verdict.HAPPENED


@pytest.mark.parametrize("answer", DID_NOT)
def test_a_hook_that_says_did_not_happen_lets_it_run(registry: Registry, path: Path, answer: object) -> None:
    """The same call runs the job, as the next attempt."""
    die_holding(path, **verifying(None))
    outcome = registry.run("t", lambda: "now", name="", **verifying(answer))
    assert (outcome.result, outcome.attempt, outcome.replayed) == ("now", 2, False)


def test_a_hook_that_is_cut_off_leaves_what_an_operator_has_said(registry: Registry) -> None:
    """He cannot tell, says where he asks, and stays the one who was asked: no sweep asks the hook instead of him."""
    asks: Any = {"on_crash": "verify", "verify": interrupts}
    with pytest.raises(KeyboardInterrupt):
        registry.run("t", interrupts, **asks)
    told = registry.resolve("t", "cannot-tell", evidence="asked the bank")
    with pytest.raises(KeyboardInterrupt):
        registry.run("t", interrupts, **asks)
    row = row_of(registry)
    assert (row.status, row.verdict, row.settled_by) == (Status.UNKNOWN, Verdict.CANNOT_TELL, told.settled_by)
    assert row.evidence == "asked the bank"


def interrupts(*_task: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("answer", CANNOT_TELL)
def test_a_hook_that_cannot_tell_leaves_it_unknown(registry: Registry, path: Path, answer: object) -> None:
    """The job is not entered, and the next call asks the hook again: so the error is retryable."""
    die_holding(path, **verifying(None))
    for _ in range(2):
        with pytest.raises(TaskUnknownError) as caught:
            registry.run("t", never, name="", **verifying(answer))
        assert caught.value.retryable
        assert (row_of(registry).status, row_of(registry).attempt) == (Status.UNKNOWN, 1)
    assert registry.run("t", never, name="", **verifying(Verdict.HAPPENED)).replayed


def test_what_a_hook_found_is_stored(registry: Registry, path: Path) -> None:
    """Result, evidence and author of the verdict stay in the row, and every caller gets the result."""
    die_holding(path, **verifying(None))
    found = Verified(Verdict.HAPPENED, result={"receipt": (1, 2)}, evidence="receipt 4711")
    assert registry.run("t", never, name="", **verifying(found)).result == {"receipt": (1, 2)}
    row = row_of(registry)
    assert (row.evidence, row.settled_by) == ("receipt 4711", "verify hook")
    assert registry.run("t", never, name="").result == {"receipt": (1, 2)}


def test_a_hook_is_asked_about_unknown_tasks_too(registry: Registry) -> None:
    """A task that an unknown_on error left open under verify is settled by the next call."""
    unknown_once(registry, **verifying(None))
    assert registry.run("t", never, name="", **verifying(Verified(Verdict.HAPPENED, 3))).result == 3


def test_a_hook_gets_the_row_and_the_arguments(registry: Registry) -> None:
    """verify(task, *args, **kwargs): the row as it was found, and what the job would be called with."""
    seen: list[Any] = []

    def hook(task: Task, *args: object, **kwargs: object) -> bool:
        seen.append((task.status, task.attempt, args, kwargs))
        return True

    @registry.idempotent("pay:{number}", on_crash="verify", verify=hook, unknown_on=MaybeError)
    def pay(number: int, *, amount: int) -> None:
        raise MaybeError

    with pytest.raises(MaybeError):
        pay(7, amount=3)
    pay(7, amount=3)
    assert seen == [(Status.UNKNOWN, 1, (7,), {"amount": 3})]


class WildError(Exception):
    def __str__(self) -> str:
        raise ValueError


class Unspeakable:
    def __str__(self) -> str:
        msg = "no text"
        raise RuntimeError(msg)


@pytest.mark.parametrize(
    "answer",
    [
        BoomError("service down"),
        WildError(),
        "yes",
        1,
        object(),
        Verdict.RETRY,
        Verdict.CANCELLED,
        Verified("happened"),  # type: ignore[arg-type]
        Verified(Verdict.SKIPPED),
        Verified(Verdict.HAPPENED, evidence=Unspeakable()),  # type: ignore[arg-type]
    ],
    ids=shown,
)
def test_a_hook_that_fails_leaves_it_unknown(registry: Registry, path: Path, answer: object) -> None:
    """A hook that raises, or whose answer is no verdict on what happened, decides nothing and holds nothing up."""
    die_holding(path, **verifying(None))
    with pytest.raises(TaskUnknownError) as caught:
        registry.run("t", never, name="", **verifying(answer))
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, Exception)
    row = row_of(registry)
    assert (row.status, row.verdict, row.attempt) == (Status.UNKNOWN, Verdict.CANNOT_TELL, 1)
    assert type(caught.value.__cause__).__name__ in (row.evidence or "")
    assert registry.run("t", lambda: 1, name="", **verifying(Verdict.DID_NOT_HAPPEN)).attempt == 2


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_hook_leaves_it_unknown(
    registry: Registry, path: Path, interruption: type[BaseException]
) -> None:
    """Ctrl-C in the hook is Ctrl-C to the caller, and the task is unknown again, without a verdict: nobody answered."""
    die_holding(path, **verifying(None))
    with pytest.raises(interruption):
        registry.run("t", never, name="", **verifying(interruption()))
    row = row_of(registry)
    assert (row.status, row.verdict, row.attempt) == (Status.UNKNOWN, None, 1)
    assert (row.evidence or "").startswith(f"no verdict: {interruption.__name__}")
    assert registry.run("t", never, name="", **verifying(Verdict.HAPPENED)).replayed


def test_an_interrupted_hook_leaves_what_was_known(registry: Registry) -> None:
    """Why the task was unknown before the hook was asked is not lost; what the hook has said before counts no more."""
    unknown_once(registry, **verifying(None))
    why = row_of(registry).error
    with pytest.raises(TaskUnknownError):
        registry.run("t", never, name="", **verifying(None))
    assert row_of(registry).verdict is Verdict.CANNOT_TELL
    with pytest.raises(KeyboardInterrupt):
        registry.run("t", never, name="", **verifying(KeyboardInterrupt()))
    assert (row_of(registry).verdict, row_of(registry).error) == (None, why)


def test_a_hook_whose_answer_cannot_be_stored_leaves_what_a_person_has_said(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He could not tell: that stays, with his name and his evidence, and the next call asks the hook again."""
    unknown_once(registry, **verifying(None))
    registry.resolve("t", "cannot-tell", evidence="nothing in the log", by="Ann")
    before = row_of(registry)

    def fails(*_: object) -> Any:
        raise TimeLimitError

    with monkeypatch.context() as patch:
        patch.setattr(registry.store, "settle", fails)
        with pytest.raises(TimeLimitError):
            registry.run("t", never, name="", **verifying(Verdict.HAPPENED))
    row = row_of(registry)
    assert (row.status, row.verdict, row.attempt) == (Status.UNKNOWN, Verdict.CANNOT_TELL, 1)
    assert (row.settled_by, row.evidence, row.error) == ("Ann", "nothing in the log", before.error)
    assert registry.run("t", never, name="", **verifying(Verdict.HAPPENED)).replayed


@pytest.mark.parametrize("point", ["claim.in-transaction", "claim.committed"])
@pytest.mark.parametrize("left", ["unknown", "dead"])
def test_a_claim_for_a_hook_that_nobody_gets_is_no_release(
    registry: Registry, path: Path, left: str, point: str
) -> None:
    """Interrupted between the claim's commit and its caller, the task stays as much in doubt as it was.

    Put back as if nothing had run, the next call would run the job again without a question.
    """
    if left == "unknown":
        unknown_once(registry, **verifying(None))
    else:
        die_holding(path, **verifying(None))
    faults.arm(point, fails_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        registry.run("t", never, name="", **verifying(None))
    faults.disarm()
    row = row_of(registry)
    assert (row.attempt, row.verdict) == (1, None)
    assert row.status in {Status.UNKNOWN, Status.RUNNING}  # as it was, where nothing was committed
    assert registry.run("t", never, name="", **verifying(Verdict.HAPPENED)).replayed


def test_a_hooks_result_that_cannot_be_stored_is_lost_and_said(registry: Registry, path: Path) -> None:
    """It did happen, so it must not run again: succeeded, and a ResultError for this and every later caller."""
    die_holding(path, **verifying(None))
    for answer in (Verified(Verdict.HAPPENED, result=object()), None):
        with pytest.raises(ResultError):
            registry.run("t", never, name="", **verifying(answer))
        assert row_of(registry).status is Status.SUCCEEDED


def test_a_hook_holds_the_claim(registry: Registry, path: Path) -> None:
    """While it looks its caller owns the task: a larger token, the same attempt, and all others see it running."""
    die_holding(path, **verifying(None))
    before = row_of(registry)
    during: list[Task] = []

    def hook(task: Task) -> bool:
        assert task == before
        during.append(row_of(registry))
        with Registry(path, durability="normal") as other:
            for handle in (registry, other):
                with pytest.raises(TaskRunningError):
                    handle.run("t", never, name="", **verifying(Verdict.HAPPENED))
                with pytest.raises(TransitionError):
                    handle.forget("t", force=True)
            other.add("u")  # nobody's transaction is open
        return True

    registry.run("t", never, name="", on_crash="verify", verify=hook)
    assert (during[0].status, during[0].attempt) == (Status.RUNNING, before.attempt)
    assert during[0].token > before.token
    assert row_of(registry).token == during[0].token


def test_a_hook_whose_caller_dies_leaves_it_unknown(registry: Registry, path: Path) -> None:
    """Death inside the hook is one more owner proven dead: the task is unknown again, with the same attempt."""
    die_holding(path, **verifying(None))

    def die(task: Task) -> bool:
        os._exit(0)

    in_child(lambda: Registry(path, durability="normal").run("t", never, name="", on_crash="verify", verify=die))
    assert row_of(registry).status is Status.RUNNING
    with pytest.raises(TaskUnknownError):
        registry.run("t", never, name="")
    assert (row_of(registry).status, row_of(registry).attempt) == (Status.UNKNOWN, 1)


def test_a_verdict_that_cannot_be_stored_holds_nothing_up(registry: Registry, path: Path) -> None:
    """A store that is busy as the hook answers is the caller's error; the task is unknown once it can be written."""
    die_holding(path, **verifying(None))
    blocker = connect(path)

    def hook(task: Task) -> bool:
        blocker.execute("BEGIN IMMEDIATE")
        return True

    with Registry(path, durability="normal", busy_timeout=0) as hasty:
        with pytest.raises(StoreBusyError):
            hasty.run("t", never, name="", on_crash="verify", verify=hook)
        blocker.execute("ROLLBACK")
        blocker.close()
        hasty.run("other", lambda: 1)  # any write carries the abandoned end with it
        assert (row_of(hasty).status, row_of(hasty).verdict) == (Status.UNKNOWN, None)


# --- results ----------------------------------------------------------------------------------------------------


@dataclass
class Receipt:
    number: int
    lines: tuple[str, ...]


RESULTS: list[Any] = [
    None,
    True,
    0,
    -1.5,
    10**40,
    "",
    "größer \0 \U0001f600",
    b"\x00\xff",
    (1, (2,), [3]),
    {1, 2},
    frozenset({"a"}),
    {"a": {"$": 1}, "b": [None]},
    {1: "int", True + 1: "two", (1, 2): "tuple"},
    Decimal("1.10"),
    datetime(2026, 11, 23, 3, 0, tzinfo=UTC),
    UUID(int=7),
    "x" * 100_000,
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda value: shown(value)[:30])
def test_a_replay_equals_the_result_in_value_and_type(registry: Registry, result: Any) -> None:
    """Whatever plain data a job returns, every later caller gets an equal value of the same type."""
    registry.run("t", lambda: result, name="")
    again = registry.run("t", never, name="").result
    assert again == result
    assert type(again) is type(result)
    assert repr(again) == repr(result) or isinstance(result, (set, frozenset))


def test_a_codec_brings_back_a_dataclass(registry: Registry) -> None:
    """result= names the class, and the replay is an instance of it."""
    registry.run("t", lambda: [Receipt(1, ("a",))], name="", result=Receipt)
    assert registry.run("t", never, name="", result=Receipt).result == [Receipt(1, ("a",))]


@pytest.mark.parametrize("result", [object(), Receipt(1, ()), "x" * (1 << 20)], ids=["object", "class", "large"])
def test_a_result_that_cannot_be_stored_is_never_a_rerun(registry: Registry, result: object) -> None:
    """The job did run: its task is succeeded with its result lost, and this and every later caller is told."""
    entered: list[int] = []

    def job() -> object:
        entered.append(1)
        return result

    for _ in range(3):
        with pytest.raises(ResultError) as caught:
            registry.run("t", job, name="")
        assert caught.value.task_id == "t"
        assert not caught.value.retryable
    assert entered == [1]
    row = row_of(registry)
    assert (row.status, row.result) == (Status.SUCCEEDED, None)
    assert "ResultError" in (row.error or "")


def test_a_codec_that_fails_is_never_a_rerun(registry: Registry) -> None:
    """A codec that cannot encode loses the result, one that cannot decode tells it; neither runs the job again."""

    class Broken:
        def encode(self, value: Any, /) -> object:
            raise BoomError

        def decode(self, data: Any, /) -> Any:
            raise BoomError

    with pytest.raises(ResultError):
        registry.run("t", lambda: 1, name="", result=Broken())
    registry.run("u", lambda: 1, name="")
    with pytest.raises(ResultError) as caught:
        registry.run("u", never, name="", result=Broken())
    assert caught.value.task_id == "u"
    assert row_of(registry).status is row_of(registry, "u").status is Status.SUCCEEDED


# --- inside a job -----------------------------------------------------------------------------------------------


def test_nested_jobs_keep_their_claims_apart(registry: Registry) -> None:
    """A job inside a job sees its own claim, the outer one its own again behind it; each row has its own end."""

    @registry.idempotent("inner:{number}")
    def inner(number: int) -> str:
        return current_claim().task_id

    @registry.idempotent("outer:{number}")
    def outer(number: int) -> list[str]:
        before = current_claim().task_id
        return [before, inner(number), inner(number), current_claim().task_id]

    assert outer(1) == ["outer:1", "inner:1", "inner:1", "outer:1"]
    assert (row_of(registry, "outer:1").status, row_of(registry, "inner:1").status) == (Status.SUCCEEDED,) * 2


def test_an_inner_failure_fails_both_and_no_more(registry: Registry) -> None:
    """An error that passes through two jobs is stored in both rows; a caught one fails the inner task only."""

    def through() -> None:
        registry.run("in", fails_with(BoomError("deep")))

    def caught() -> str:
        with pytest.raises(BoomError):
            registry.run("in2", fails_with(BoomError("deep")))
        return current_claim().task_id

    with pytest.raises(BoomError):
        registry.run("out", through)
    assert registry.run("out2", caught).result == "out2"
    statuses = [row_of(registry, task_id).status.word for task_id in ("in", "out", "in2", "out2")]
    assert statuses == ["failed", "failed", "failed", "succeeded"]


def test_recursion_into_other_tasks_works_and_into_its_own_is_refused(registry: Registry) -> None:
    """A job may call itself for another task; for the same task it meets itself running."""

    @registry.idempotent("countdown:{number}")
    def countdown(number: int) -> int:
        return 0 if number == 0 else 1 + countdown(number - 1)

    @registry.idempotent("loop")
    def loop() -> None:
        loop()

    assert countdown(5) == 5
    assert registry.count() == {Status.SUCCEEDED: 6}
    with pytest.raises(TaskRunningError):
        loop()


def test_there_is_no_claim_outside_of_a_job(registry: Registry) -> None:
    """current_claim() outside of a job, and behind one that succeeded or failed, is a RuntimeError."""
    registry.run("t", lambda: current_claim().attempt)
    with pytest.raises(BoomError):
        registry.run("u", fails_with(BoomError()))
    with pytest.raises(RuntimeError):
        current_claim()


def test_a_downstream_key_is_constant_over_attempts(registry: Registry, tmp_path: Path) -> None:
    """A receiver that remembers keys sees one key a task, whatever the attempt; another registry has other keys."""
    keys: list[str] = []

    def job() -> None:
        keys.append(current_claim().downstream_key)
        if len(keys) < 3:
            raise BoomError

    for _ in range(2):
        with pytest.raises(BoomError):
            registry.run("t", job)
    registry.run("t", job)
    registry.forget("t")
    registry.run("t", job)
    assert len(set(keys)) == 1
    registry.run("u", job)
    with Registry(tmp_path / "other.db", durability="normal") as other:
        other.run("t", job)
    assert len(set(keys)) == 3


def test_a_job_may_end_its_own_claim(registry: Registry) -> None:
    """What the job stored by itself is what its caller and every later caller get; another return value is an error."""
    assert registry.run("t", lambda: current_claim().succeed(1)).result == 1
    assert registry.run("t", lambda: current_claim().succeed(1)).result == 1

    def contradicts() -> int:
        current_claim().succeed(1)
        return 2

    with pytest.raises(ResultError):
        registry.run("u", contradicts)
    assert registry.run("u", contradicts).result == 1


# --- a claim in hand --------------------------------------------------------------------------------------------


def test_a_claims_block_stores_its_result(registry: Registry) -> None:
    """`with` ends the claim as succeeded, with what was put into claim.result."""
    with registry.claim("t", payload=1) as claim:
        assert current_claim() is claim
        assert claim.attempt == 1
        claim.result = {"parts": 3}
    assert not claim.is_open
    assert registry.run("t", never, payload=1, name="").result == {"parts": 3}
    with pytest.raises(TaskDoneError) as caught:
        registry.claim("t", payload=1)
    assert caught.value.outcome is not None
    assert caught.value.outcome.result == {"parts": 3}


def test_a_claims_block_that_raises_fails_the_task(registry: Registry) -> None:
    """The error leaves the block as it is, and is the task's failure."""
    with pytest.raises(BoomError), registry.claim("t") as claim:  # noqa: PT012 - its block is tested
        claim.result = 1
        raise BoomError
    assert (row_of(registry).status, row_of(registry).result) == (Status.FAILED, None)


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED, Status.UNKNOWN, Status.PENDING])
def test_a_claim_is_ended_by_hand_inside_its_block(registry: Registry, status: Status) -> None:
    """succeed, fail and release end the claim at once; the end of the block then changes nothing."""
    with registry.claim("t", unknown_on=MaybeError) as claim:
        if status is Status.SUCCEEDED:
            claim.succeed(1)
        elif status is Status.PENDING:
            claim.release()
        else:
            claim.fail(BoomError() if status is Status.FAILED else MaybeError())
        assert row_of(registry).status is status
        claim.result = "too late"
    assert row_of(registry).status is status
    assert row_of(registry).result == ("1" if status is Status.SUCCEEDED else None)


def test_a_dropped_claim_is_settled_at_once(registry: Registry) -> None:
    """A claim that nobody refers to any more is unknown under hold, claimable under rerun, and a ResourceWarning."""
    with pytest.warns(ResourceWarning, match="'t'"):
        registry.claim("t")
    assert row_of(registry).status is Status.UNKNOWN
    with pytest.warns(ResourceWarning, match="'u'"):
        registry.claim("u", on_crash="rerun")
    assert row_of(registry, "u").status is Status.PENDING
    assert registry.run("u", lambda: 1, name="", on_crash="rerun").attempt == 2


def test_a_block_left_in_another_context_settles_its_claim(registry: Registry) -> None:
    """A host that enters and leaves a block in copies of a context (FastAPI) ends the task all the same."""
    claim = registry.claim("t")
    contextvars.copy_context().run(claim.__enter__)
    contextvars.copy_context().run(claim.__exit__, None, None, None)
    task = registry.get("t")
    assert task is not None
    assert task.status is Status.SUCCEEDED


def test_a_claim_left_by_its_thread_is_settled_at_once(registry: Registry) -> None:
    """A thread that ends with an open claim drops it, also while somebody else still refers to the claim."""
    left: list[Claim] = []

    with pytest.warns(ResourceWarning, match="thread"):  # noqa: PT031 - its block is tested
        thread = threading.Thread(target=lambda: left.append(registry.claim("t")))
        thread.start()
        thread.join(PATIENCE_S)
    assert row_of(registry).status is Status.UNKNOWN
    with pytest.raises(ClaimLostError):
        left[0].succeed(1)


def test_a_claim_that_another_thread_entered_is_that_threads(registry: Registry) -> None:
    """A claim handed over to a thread that entered its block outlives the thread that took it."""
    handed: list[Claim] = []
    taken, entered = threading.Event(), threading.Event()

    def take() -> None:
        handed.append(registry.claim("t"))
        taken.set()
        assert entered.wait(PATIENCE_S)

    thread = threading.Thread(target=take)
    thread.start()
    assert taken.wait(PATIENCE_S)
    with handed[0] as claim:
        entered.set()
        thread.join(PATIENCE_S)
        assert row_of(registry).status is Status.RUNNING
        claim.result = 1
    assert row_of(registry).status is Status.SUCCEEDED


def end_by_hand(claim: Claim, end: str) -> None:
    if end == "succeed":
        claim.succeed(1)
    elif end == "fail":
        claim.fail(BoomError())
    else:
        claim.release()


def test_a_late_owner_cannot_finish(registry: Registry) -> None:
    """Whoever lost the task is told so by every kind of end, and overwrites nothing."""
    for end in ("succeed", "fail", "release"):
        claim = registry.claim(end)
        steal(registry, end)
        before = row_of(registry, end)
        with pytest.raises(ClaimLostError):
            end_by_hand(claim, end)
        assert row_of(registry, end) == before


def test_a_closed_registry_lets_its_claim_finish(registry: Registry, path: Path) -> None:
    """Registry.close leaves a live claim owned: nobody takes it over, and it can still end."""
    claim = registry.claim("t", on_crash="rerun")
    registry.close()
    with Registry(path, durability="normal") as other:
        with pytest.raises(TaskRunningError):
            other.run("t", never, name="", on_crash="rerun")
        claim.succeed(1)
        assert other.run("t", never, name="", on_crash="rerun").result == 1


def test_a_verdict_is_stored_though_the_registry_was_closed(registry: Registry, path: Path) -> None:
    """Closed while a verify hook is asked, what the hook says is stored all the same, and nothing is left claimed."""
    die_holding(path, on_crash="verify", verify=bool)

    def hook(task: Task) -> bool:
        registry.close()
        return True

    outcome = registry.run("t", never, name="", on_crash="verify", verify=hook)
    assert (outcome.status, outcome.replayed) == (Status.SUCCEEDED, True)
    registry.close()
    assert left_open(path) == []


def test_a_parents_claim_is_lost_in_its_child(registry: Registry) -> None:
    """A forked child can neither end nor use the claim of its parent, which goes on with it."""
    claim = registry.claim("t")

    def in_the_child() -> None:
        for act in (claim.succeed, claim.release, lambda: claim.transaction().__enter__()):
            with pytest.raises(ClaimLostError):
                act()
            claim._is_open = True  # each end is tried afresh

    in_child(in_the_child)
    claim.succeed(2)
    assert row_of(registry).status is Status.SUCCEEDED


def test_a_claim_says_which_it_is(registry: Registry) -> None:
    """Its task, its attempt and how it stands, also behind its end; nothing of its arguments or its result."""
    with registry.claim("order:7", payload="secret") as claim:
        claim.result = "secret"
        assert repr(claim) == "<Claim of 'order:7', attempt 1, open>"
    assert repr(claim) == "<Claim of 'order:7', attempt 1, ended>"
    (noted,) = registry.claim_many([("order:8", "secret")])
    assert repr(noted) == "<Claim of 'order:8', attempt 1, not entered>"
    noted.release()  # type: ignore[union-attr]


# --- effects in the same file -----------------------------------------------------------------------------------


@pytest.fixture
def stock(registry: Registry) -> Callable[[], int]:
    """A table of the job's own, with one number in it; called, it reads the number."""
    with registry.claim("setup") as claim, claim.transaction() as tx:
        tx.execute("CREATE TABLE stock (n INTEGER)")
        tx.execute("INSERT INTO stock VALUES (10)")

    def read() -> int:
        connection = connect(registry.path)
        ((number,),) = connection.execute("SELECT n FROM stock").fetchall()
        connection.close()
        assert isinstance(number, int)
        return number

    return read


TAKE_ONE = "UPDATE stock SET n = n - 1"


def test_effects_and_finish_are_one_commit(registry: Registry, stock: Callable[[], int]) -> None:
    """Before the block ends nobody sees the effect; behind it both the effect and the success are there."""
    with registry.claim("t") as claim:
        with claim.transaction() as tx:
            tx.execute(TAKE_ONE)
            assert tx.execute("SELECT n FROM stock WHERE n = ?", (9,)) == [(9,)]
            assert (stock(), row_of(registry).status) == (10, Status.RUNNING)
            claim.result = 9
        assert not claim.is_open
    assert (stock(), row_of(registry).status) == (9, Status.SUCCEEDED)
    assert registry.run("t", never, name="").result == 9


def test_an_error_takes_the_effects_back(registry: Registry, stock: Callable[[], int]) -> None:
    """The transaction is rolled back with everything in it, and the task has failed."""
    with pytest.raises(BoomError), registry.claim("t") as claim, claim.transaction() as tx:  # noqa: PT012 - its block is tested
        tx.execute(TAKE_ONE)
        raise BoomError
    assert (stock(), row_of(registry).status) == (10, Status.FAILED)


def test_a_lost_claim_takes_the_effects_back(registry: Registry, stock: Callable[[], int]) -> None:
    """A late owner leaves nothing behind: its transaction does not even open."""
    with pytest.raises(ClaimLostError), registry.claim("t") as claim:  # noqa: PT012 - its block is tested
        steal(registry)
        with claim.transaction() as tx:
            tx.execute(TAKE_ONE)
    assert stock() == 10


@pytest.mark.parametrize("point", ["transaction.open", "transaction.finished"])
def test_a_crash_inside_a_transaction_is_exactly_once_under_rerun(
    registry: Registry, path: Path, stock: Callable[[], int], point: str
) -> None:
    """Killed before the commit, the next call takes over and the effect is there once."""

    def job() -> None:
        with current_claim().transaction() as tx:
            tx.execute(TAKE_ONE)

    def crash() -> None:
        faults.arm(point, lambda: os._exit(0))
        Registry(path, durability="normal").run("t", job, name="", on_crash="rerun")

    in_child(crash)
    assert stock() == 10
    assert registry.run("t", job, name="", on_crash="rerun").attempt == 2
    assert registry.run("t", never, name="", on_crash="rerun").replayed
    assert stock() == 9


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE idempotent_log SET status = 1",
        "DELETE FROM idempotent_registry",
        "INSERT INTO idempotent_large VALUES ('t', '', '')",
        "DROP TABLE idempotent_owner",
        "ALTER TABLE Idempotent_Log ADD COLUMN x",
        "CREATE INDEX i ON idempotent_log (name)",
        "DROP INDEX idempotent_attention",
        "CREATE TRIGGER x AFTER INSERT ON stock BEGIN DELETE FROM idempotent_log; END",
        "COMMIT",
        "ROLLBACK",
        "BEGIN",
        "SAVEPOINT s; COMMIT",
        "ATTACH ':memory:' AS other",
        "PRAGMA synchronous = 0",
        "PRAGMA user_version = 9",
        "nonsense",
    ],
)
def test_the_transaction_cannot_be_misused(registry: Registry, stock: Callable[[], int], sql: str) -> None:
    """What would end the transaction, change what it stands on, or write idemreg's own rows is a StoreError.

    It may be caught, and the rest of the transaction commits all the same.
    """
    with registry.claim("t") as claim, claim.transaction() as tx:
        tx.execute(TAKE_ONE)
        with pytest.raises(StoreError) as caught:
            tx.execute(sql)
        assert caught.value.task_id == "t"
        assert caught.value.__cause__ is not None
        assert tx.execute("SELECT count(*) FROM idempotent_log") == [(2,)]
    assert (stock(), row_of(registry).status) == (9, Status.SUCCEEDED)


@pytest.mark.parametrize("write", ["run", "claim", "add", "forget", "own transaction"])
def test_another_write_inside_the_block_is_refused_at_once(
    registry: Registry, stock: Callable[[], int], write: str
) -> None:
    """It would wait for its own transaction for ever; so it is a typed error, and the block may go on."""
    with registry.claim("t") as claim, claim.transaction() as tx:
        tx.execute(TAKE_ONE)
        acts: dict[str, Callable[[], object]] = {
            "run": lambda: registry.run("other", never),
            "claim": lambda: registry.claim("other"),
            "add": lambda: registry.add("other"),
            "forget": lambda: registry.forget("setup"),
            "own transaction": lambda: claim.transaction().__enter__(),
        }
        with pytest.raises(StoreBusyError) as caught:
            acts[write]()
        assert caught.value.hint
        assert registry.run("setup", never, name="").replayed  # a plain read is no write
    assert (stock(), row_of(registry).status) == (9, Status.SUCCEEDED)


@pytest.mark.parametrize(("on_crash", "status"), [("hold", Status.UNKNOWN), ("rerun", Status.PENDING)])
def test_an_interruption_as_effects_are_committed_takes_them_back(
    registry: Registry, stock: Callable[[], int], on_crash: Any, status: Status
) -> None:
    """Effects and finish are gone together, and on_crash decides; behind the commit both stay."""
    with pytest.raises(KeyboardInterrupt), registry.claim("t", on_crash=on_crash) as claim, claim.transaction() as tx:  # noqa: PT012 - its block is tested
        tx.execute(TAKE_ONE)
        interrupt_at("transaction.finished", KeyboardInterrupt())
    assert (stock(), row_of(registry).status) == (10, status)
    assert claim.terms.store.downstream_key("t")  # the claim is still referred to
    with Registry(registry.path) as full:
        full.run("warm", lambda: 1)
        with pytest.raises(KeyboardInterrupt), full.claim("u") as other, other.transaction() as tx:  # noqa: PT012 - as above
            tx.execute(TAKE_ONE)
            interrupt_at("sync.begun", KeyboardInterrupt())
        assert (stock(), row_of(registry, "u").status) == (9, Status.SUCCEEDED)


def test_a_busy_file_is_no_failure_of_the_job(registry: Registry, path: Path) -> None:
    """A transaction that cannot open in time releases the task: an error of the store is not the job's."""
    registry.open()
    blocker = connect(path)

    def job() -> None:
        blocker.execute("BEGIN IMMEDIATE")
        try:
            with current_claim().transaction():
                never()
        finally:
            blocker.execute("ROLLBACK")

    with Registry(path, durability="normal", busy_timeout=0) as hasty, pytest.raises(StoreBusyError):
        hasty.run("t", job)
    blocker.close()
    assert (row_of(registry).status, row_of(registry).attempt) == (Status.PENDING, 0)


def test_a_finish_that_cannot_be_stored_carries_the_result(registry: Registry, path: Path) -> None:
    """The job ran: its caller gets the result with the error, nobody runs the task again, and it becomes unknown."""
    registry.open()
    blocker = connect(path)

    def job() -> list[int]:
        blocker.execute("BEGIN IMMEDIATE")
        return [5]

    with Registry(path, durability="normal", busy_timeout=0) as hasty:
        with pytest.raises(FinishNotRecordedError) as caught:
            hasty.run("t", job, name="", on_crash="rerun")
        assert (caught.value.result, caught.value.task_id) == ([5], "t")
        with pytest.raises(TaskRunningError):
            registry.run("t", never, name="", on_crash="rerun")
        blocker.execute("ROLLBACK")
        blocker.close()
        hasty.run("other", lambda: 1)  # the next write carries the end with it
    with pytest.raises(TaskUnknownError):
        registry.run("t", never, name="", on_crash="rerun")


# --- operators --------------------------------------------------------------------------------------------------


def test_tokens_grow_over_forget_and_claim_again(registry: Registry) -> None:
    """Every claim of a task has a larger token than all before it, also behind forget, release and reopen."""
    tokens = []
    for _ in range(3):
        claim = registry.claim("t")
        tokens.append(claim.token)
        claim.release()
        claim = registry.claim("t")
        tokens.append(claim.token)
        claim.succeed()
        assert registry.forget("t").token == claim.token
        assert registry.get("t") is None
        registry.close()
    assert tokens == sorted(set(tokens))


def test_a_forgotten_task_may_run_again_with_other_arguments(registry: Registry) -> None:
    """With its row go checksum, result, attempts and policy."""
    registry.run("t", lambda: "x" * 1_000, payload=1, name="a")
    registry.forget("t")
    assert registry.run("t", lambda: 2, payload=2, name="b").attempt == 1


@pytest.mark.parametrize("step", ["resolve", "forget"])
def test_an_operators_step_never_frees_a_claim_taken_behind_it(registry: Registry, step: str) -> None:
    """A thread that claims right behind the operator's commit keeps its claim: nobody takes the task for dropped."""
    unknown_once(registry)
    claims: list[Claim] = []
    taken, leave = threading.Event(), threading.Event()

    def take() -> None:
        claims.append(registry.claim("t", on_crash="rerun"))
        taken.set()
        assert leave.wait(PATIENCE_S)
        claims[0].succeed()

    thread = threading.Thread(target=take)

    def between() -> None:
        faults.disarm()
        thread.start()
        assert taken.wait(PATIENCE_S)

    faults.arm("settle.committed" if step == "resolve" else "forget.committed", between)
    if step == "resolve":
        registry.resolve("t", "did-not-happen")
    else:
        registry.forget("t", force=True)
    row = row_of(registry)
    owner = registry.owner(row)
    leave.set()
    thread.join(PATIENCE_S)
    assert owner is not None
    assert owner.liveness is Liveness.ALIVE


def test_resolve_says_who_and_why(registry: Registry) -> None:
    """An operator's knowledge ends an unknown task, with result, evidence and author; cannot-tell is only noted."""
    unknown_once(registry)
    assert registry.resolve("t", "cannot-tell", evidence="asked the bank").status is Status.UNKNOWN
    task = registry.resolve("t", "happened", result=(1,), evidence="the bank answered", by="ann")
    assert (task.status, task.settled_by, task.evidence) == (Status.SUCCEEDED, "ann", "the bank answered")
    assert registry.run("t", never, name="").result == (1,)


def test_a_resolve_that_makes_no_sense_changes_nothing(registry: Registry) -> None:
    """A verdict that is none is a ValueError, a result that cannot be stored a ResultError; the row stays unknown."""
    unknown_once(registry)
    before = row_of(registry)
    for verdict in ("yes", "retry", Verdict.CANCELLED):
        with pytest.raises(ValueError, match="verdict"):
            registry.resolve("t", verdict)  # type: ignore[arg-type]
    with pytest.raises(ResultError):
        registry.resolve("t", "happened", result=object())
    assert row_of(registry) == before


# --- errors -----------------------------------------------------------------------------------------------------

# exit_code and retryable of each class, as they were designed.
ERRORS: dict[str, tuple[int, bool]] = {
    "IdemregError": (1, False),
    "ArgumentError": (2, False),
    "ChecksumKeyError": (74, False),
    "ChecksumMismatchError": (65, False),
    "ClaimLostError": (75, True),
    "ClockError": (78, False),
    "ImportLineError": (65, False),
    "CommandNotExecutableError": (126, False),
    "CommandNotFoundError": (127, False),
    "FinishNotRecordedError": (74, False),
    "PrefixError": (2, False),
    "RecoveryError": (1, False),
    "ResultError": (1, False),
    "ScheduleError": (2, False),
    "StepError": (2, False),
    "StoreBusyError": (74, True),
    "StoreCorruptError": (74, False),
    "StoreError": (74, False),
    "StoreFullError": (74, True),
    "StorePathError": (74, False),
    "StoreVersionError": (74, False),
    "SyncFailedError": (74, False),
    "TaskDoneError": (73, False),
    "TaskFailedError": (1, False),
    "TaskIdError": (2, False),
    "TaskRunningError": (75, True),
    "TaskTimeoutError": (124, False),
    "TaskUnknownError": (76, False),
    "TransitionError": (1, False),
}


def test_every_error_class_is_known_here() -> None:
    """A new error class needs its line in the table of exit codes and retryability."""
    assert ERRORS.keys() == set(errors.__all__)


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_survives_pickling_with_its_fields(registry: Registry, name: str) -> None:
    """Celery and multiprocessing carry errors between processes: message, task_id, hint and fields arrive."""
    kind: type[errors.IdemregError] = getattr(errors, name)
    assert (kind.exit_code, kind.retryable) == ERRORS[name]
    error = kind("what happened", task_id="t", hint="do this")
    registry.add("t")
    fields: dict[str, Any] = {
        "owner": OwnerInfo(1, Liveness.ALIVE, 2),
        "since": 5,
        "task": row_of(registry),
        "outcome": Outcome("t", Status.SUCCEEDED, [1], replayed=True, attempt=1, token=2),
        "result": {"a": (1,)},
    }
    own = [field for field in inspect.get_annotations(kind) if field in fields]
    for field in own:
        setattr(error, field, fields[field])
    error.retryable = not error.retryable
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own bytes
        assert type(copy) is kind
        assert (copy.message, copy.task_id, copy.hint) == ("what happened", "t", "do this")
        assert copy.retryable is error.retryable
        assert [getattr(copy, field) for field in own] == [fields[field] for field in own]


# --- rare ends ------------------------------------------------------------------------------------------------------


def test_an_interruption_whose_end_cannot_be_stored_goes_on_its_way(
    open_registry: Callable[..., Registry], path: Path
) -> None:
    """It says in a note what the store could not do; the task is settled as soon as something can be written."""
    registry, other = open_registry(busy_timeout=0.01), connect(path)

    def job() -> None:
        other.execute("BEGIN IMMEDIATE")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        registry.run("t", job, name="")
    assert "could not be stored" in caught.value.__notes__[0]
    assert row_of(registry).status is Status.RUNNING
    other.execute("ROLLBACK")
    other.close()
    registry.add("another")
    assert row_of(registry).status is Status.UNKNOWN


def test_a_verdict_over_a_claim_that_is_anothers_changes_nothing(registry: Registry, path: Path) -> None:
    """A hook that took too long for somebody else, who claimed the task by force: its caller has lost the claim."""
    unknown_once(registry, on_crash="verify", verify=lambda _: None)

    def hook(_prior: Task) -> bool:
        other = connect(path)
        other.execute("UPDATE idempotent_log SET token = token + 1 WHERE task_id = 't'")
        reseal(other)
        other.close()
        return True

    with pytest.raises(ClaimLostError):
        registry.run("t", never, name="", on_crash="verify", verify=hook)
    row = row_of(registry)
    assert (row.status, row.result) == (Status.RUNNING, None)


WAYS_TO_A_CLAIM: dict[str, Callable[[Terms, Wanted], object]] = {
    "run": lambda terms, request: attempts.run(terms, request, never, (), {}),
    "run-walk": lambda terms, request: drive(attempts.run_walk(terms, request, never, (), {})),
    "claim": acquiring.claim,
    "claim-walk": lambda terms, request: drive(acquiring.claim_walk(terms, request)),
}


@pytest.mark.parametrize("known", ["new", "pending"])
@pytest.mark.parametrize("way", WAYS_TO_A_CLAIM)
def test_a_claim_that_cannot_be_made_is_put_back(registry: Registry, way: str, known: str) -> None:
    """No memory for it, say: nobody else could end it, so the task is as it was."""

    def refuses(*_: object) -> None:
        raise MemoryError

    if known == "pending":
        registry.add("t")
    request = wanted("t", "", canonical(None), Options.of({}, "normal"))
    terms = registry.terms(registry.checked({}))._replace(claim=refuses)
    with pytest.raises(MemoryError):
        WAYS_TO_A_CLAIM[way](terms, request)
    assert row_of(registry).status is Status.PENDING


def test_a_hook_that_cannot_tell_is_stored_once(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer ends its claim: there is nothing to be put back behind it."""
    unknown_once(registry, on_crash="verify", verify=lambda _: None)
    monkeypatch.setattr(registry.store, "abandon", lambda end: pytest.fail(f"{end} was left"))
    with pytest.raises(TaskUnknownError):
        registry.run("t", never, name="", on_crash="verify", verify=lambda _: None)
    assert row_of(registry).status is Status.UNKNOWN


def test_a_claim_that_cannot_be_made_for_a_hook_stays_unknown(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not put back as if nothing had run: nobody has asked the hook yet."""

    def refuses(*_: object) -> None:
        raise MemoryError

    unknown_once(registry, on_crash="verify", verify=lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(acquiring, "_verify", refuses)
        with pytest.raises(MemoryError):
            registry.run("t", never, name="", on_crash="verify", verify=lambda _: True)
    assert row_of(registry).status is Status.UNKNOWN
    assert registry.run("t", never, name="", on_crash="verify", verify=lambda _: True).replayed


@pytest.mark.parametrize(("where", "status"), [("go_in", Status.PENDING), ("leave", Status.UNKNOWN)])
def test_a_context_that_cannot_be_changed_leaves_no_claim(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, where: str, status: Status
) -> None:
    """Without memory in front of the job it is put back, and behind it nobody knows."""

    def refuses(_: object) -> None:
        raise MemoryError

    entered = []
    monkeypatch.setattr(attempts, where, refuses)
    with pytest.raises(MemoryError):
        registry.run("t", lambda: entered.append(1), name="")
    assert len(entered) == (where == "leave")
    assert row_of(registry).status is status


def test_an_error_that_cannot_be_described_is_told_by_its_type(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the memory for its message the failure is stored all the same."""

    def refuses(*_: object) -> str:
        raise MemoryError

    monkeypatch.setattr(ends, "_described", refuses)
    with pytest.raises(BoomError):
        registry.run("t", fails_with(BoomError("large")), name="")
    assert (row_of(registry).status, row_of(registry).error) == (Status.FAILED, "BoomError")


def test_a_stored_result_of_another_codec_is_told_to_who_wants_no_replay(registry: Registry) -> None:
    """`on_duplicate="raise"` has the result with its error; where it cannot be read, that is the error."""
    registry.run("t", lambda: Opened(5), name="", result=Opened)
    stored = row_of(registry).result
    with pytest.raises(ResultError) as caught:
        registry.run("t", never, name="", on_duplicate="raise", result=Closed)
    assert caught.value.task_id == "t"
    assert row_of(registry).result == stored


@dataclass
class Opened:
    lid: int


@dataclass
class Closed:
    lid: int
