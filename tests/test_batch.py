"""Batches: one commit for all, each item for itself, and after a death exactly the entered tasks are in doubt."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from typing import TYPE_CHECKING, Any

import apsw
import pytest
import trio

from idemreg import (
    AsyncClaim,
    AsyncRegistry,
    ChecksumMismatchError,
    Claim,
    ClaimLostError,
    Clock,
    FinishNotRecordedError,
    Liveness,
    Outcome,
    Registry,
    ResultError,
    Status,
    TaskFailedError,
    TaskIdError,
    TaskRunningError,
    TaskUnknownError,
    current_claim,
    faults,
)
from idemreg.batching import BATCH_LIMIT
from idemreg.errors import ArgumentError, StoreError
from idemreg.lockfile import FIRST_NOTE, LockFile
from idemreg.testing import ManualClock
from tests.support.interruptions import interrupt_at
from tests.support.processes import PATIENCE_S, Script
from tests.support.raw import connect, reseal
from tests.support.settled import left_is_done

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("nothing_on_the_event_loop")


def states(registry: Registry) -> dict[str, str]:
    return {task.task_id: task.status.word for task in registry.tasks()}


def batch_owners(path: Path) -> int:
    connection = connect(path, apsw.SQLITE_OPEN_READONLY)
    rows: Any = connection.execute("SELECT id FROM idempotent_owner WHERE claims IS NOT NULL").fetchall()
    connection.close()
    return len(rows)


# --- claim_many and finish_many -------------------------------------------------------------------------------------


def test_one_answer_an_item_in_order(registry: Registry) -> None:
    """Claims, outcomes and errors stand at their item's place; none is raised, and none keeps another from its own."""
    registry.run("done", lambda: 7, name="")
    with pytest.raises(ZeroDivisionError):
        registry.run("failed", lambda: 1 / 0, name="", max_attempts=1)
    with registry.claim("running"):
        answers = registry.claim_many(
            [
                ("new", None),
                ("done", None),
                ("", None),
                ("running", None),
                ("done", {"other": 1}),
                ("object", object()),
                ("failed", None),
                ("new", None),
                ("last", [1]),
            ],
            max_attempts=1,
        )
    kinds = [Claim, Outcome, TaskIdError, TaskRunningError, ChecksumMismatchError, ArgumentError, TaskFailedError]
    assert [type(one) for one in answers] == [*kinds, TaskRunningError, Claim]
    assert isinstance(answers[1], Outcome)
    assert (answers[1].result, answers[1].replayed) == (7, True)
    for claim in answers:
        if isinstance(claim, Claim):
            claim.release()


def test_one_commit_claims_and_one_ends(registry: Registry, path: Path) -> None:
    """A hundred tasks take two commits; afterwards the batch has left nothing behind."""
    passed: list[str] = []
    faults.arm("batch.committed", lambda: passed.append("claims"))
    faults.arm("finish.committed", lambda: passed.append("ends"))
    answers = registry.claim_many([(f"t{n}", n) for n in range(100)], name="job")
    claims = [one for one in answers if isinstance(one, Claim)]
    assert len(claims) == 100
    assert batch_owners(path) == 1
    for claim in claims:
        claim.enter()
    outcomes = registry.finish_many([(claim, n) for n, claim in enumerate(claims)])
    assert passed == ["claims", "ends"]
    assert [one.result for one in outcomes if isinstance(one, Outcome)] == list(range(100))
    assert set(states(registry).values()) == {"succeeded"}
    assert batch_owners(path) == 0
    assert registry.run("t7", lambda: 0, name="job", payload=7).replayed


def test_each_end_is_its_own(registry: Registry) -> None:
    """A result that cannot be stored, a claim that has ended, one that was lost: an error at its place only."""
    claims = [one for one in registry.claim_many([(name, None) for name in "abcd"]) if isinstance(one, Claim)]
    for claim in claims:
        claim.enter()
    claims[1].succeed("early")
    apsw_registry_settle(registry, "c")
    answers = registry.finish_many([(claims[0], 1), (claims[1], 2), (claims[2], 3), (claims[3], object())])
    assert [type(one) for one in answers] == [Outcome, ClaimLostError, ClaimLostError, ResultError]
    assert states(registry) == {"a": "succeeded", "b": "succeeded", "c": "unknown", "d": "succeeded"}


def apsw_registry_settle(registry: Registry, task_id: str) -> None:
    """Take the claim away, as another owner would after a death that was none."""
    connection = connect(registry.path)
    connection.set_busy_timeout(5_000)
    connection.execute(
        "UPDATE idempotent_log SET status = 4, owner = NULL, token = token + 1 WHERE task_id = ?", (task_id,)
    )
    reseal(connection)
    connection.close()


def test_a_claim_that_was_not_entered_cannot_succeed(registry: Registry) -> None:
    """A job that runs without its note could run twice, so the first try of such a program says so."""
    (claim, other) = registry.claim_many([("t", None), ("u", None)])
    assert isinstance(claim, Claim)
    assert isinstance(other, Claim)
    with pytest.raises(RuntimeError, match="enter"):
        claim.succeed(1)
    with pytest.raises(RuntimeError, match="enter"):
        registry.finish_many([(claim, 1)])
    with pytest.raises(RuntimeError, match="enter"), claim.transaction():
        pass
    claim.enter()
    claim.enter()  # twice is once
    claim.succeed(1)
    with other:  # a block enters
        assert current_claim() is other
    with pytest.raises(ClaimLostError):
        claim.enter()
    assert states(registry) == {"t": "succeeded", "u": "succeeded"}


def test_a_batch_that_is_refused_as_a_whole_takes_no_claim_away(
    registry: Registry, open_registry: Callable[..., Registry]
) -> None:
    """One that was not entered, one of another registry, one twice: each can still be ended, and is ended once."""
    first, second = entered_batch(registry, "ab")
    (late,) = registry.claim_many([("late", None)])
    (stranger,) = entered_batch(open_registry(), "s")
    assert isinstance(late, Claim)
    with pytest.raises(RuntimeError, match="enter"):
        registry.finish_many([(first, 1), (late, 1)])
    with pytest.raises(ValueError, match="several registries"):
        registry.finish_many([(first, 1), (stranger, 1)])
    answers = registry.finish_many([(first, 1), (second, 2), (first, 3)])
    assert [type(one) for one in answers] == [Outcome, Outcome, ClaimLostError]
    late.release()
    stranger.release()
    task = registry.get("a")
    assert task is not None
    assert task.result == "1"


def entered_batch(registry: Registry, names: str, **options: Any) -> list[Claim]:
    claims = [one for one in registry.claim_many([(name, None) for name in names], **options) if isinstance(one, Claim)]
    for claim in claims:
        claim.enter()
    return claims


@pytest.mark.parametrize("point", ["batch.in-transaction", "sync.begun", "batch.committed"])
def test_an_interruption_as_a_batch_is_claimed_puts_it_back(
    open_registry: Callable[..., Registry], path: Path, point: str
) -> None:
    """No job began: for other processes as well nothing runs, no attempt counts, and nothing of the batch is left."""
    registry, other = open_registry(durability="full"), open_registry()
    registry.run("warm", lambda: 1)
    interrupt_at(point, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        registry.claim_many([("a", None), ("b", None)])
    assert "running" not in states(other).values()
    assert batch_owners(path) == 0
    assert [one.outcome and one.outcome.attempt for one in other.consume("ab", str, task_id=str)] == [1, 1]


def test_an_interruption_while_a_batch_waits_for_one_puts_the_others_back(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during `wait=`: nobody gets the claims that there are."""

    def interrupted(_pause: float) -> None:
        raise KeyboardInterrupt

    with registry.claim("b"):
        monkeypatch.setattr(registry.clock, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            registry.claim_many([("a", None), ("b", None), ("c", None)], wait=60)
    assert states(registry) == {"a": "pending", "b": "succeeded", "c": "pending"}


@pytest.mark.parametrize("on_crash", ["hold", "rerun", "verify"])
def test_what_a_batch_waited_for_is_put_back_as_well(
    open_registry: Callable[..., Registry], path: Path, on_crash: Any
) -> None:
    """A claim of a task that ran elsewhere, or that a hook was asked about, is not entered either until it is."""
    registry, holder = open_registry(clock=(clock := ManualClock())), open_registry()
    held = holder.claim("b", on_crash=on_crash, **hook(on_crash))

    def nap(pause: float) -> None:
        assert held.is_open, pause
        held.release()

    clock.sleep = nap  # type: ignore[method-assign]
    claims = registry.claim_many([("a", None), ("b", None)], on_crash=on_crash, wait=60, **hook(on_crash))
    assert [type(claim) for claim in claims] == [Claim, Claim]
    with pytest.warns(ResourceWarning, match="dropped"):  # noqa: PT031 - they go at once
        claims.clear()
        gc.collect()
    rows = [registry.get(task) for task in "ab"]
    assert [row and (row.status, row.attempt) for row in rows] == [(Status.PENDING, 0)] * 2
    assert batch_owners(path) == 0


def test_a_batch_that_is_interrupted_keeps_nothing_that_it_waited_for(open_registry: Callable[..., Registry]) -> None:
    """Also while somebody looks at the interrupt, whose traceback keeps alive what its frames had."""
    registry, holder = open_registry(clock=(clock := ManualClock())), open_registry()
    held = [holder.claim(task_id, on_crash="rerun") for task_id in "bc"]

    def nap(pause: float) -> None:
        if not held[0].is_open:  # that of the first was given, and the second is waited for
            raise KeyboardInterrupt(pause)
        held[0].release()

    clock.sleep = nap  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt) as interrupt:
        registry.claim_many([("a", None), ("b", None), ("c", None)], on_crash="rerun", wait=60)
    rows = [registry.get(task) for task in "abc"]
    assert [row and row.status for row in rows] == [Status.PENDING, Status.PENDING, Status.RUNNING]
    assert interrupt.value.__traceback__ is not None
    held[1].release()


def test_an_interruption_behind_what_is_done_puts_the_others_back(registry: Registry) -> None:
    """Also where some of the batch have an answer and no claim."""
    registry.run("a", lambda: 1, name="")

    def interrupted(_pause: float) -> None:
        raise KeyboardInterrupt

    with registry.claim("b"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.clock, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            registry.claim_many([("a", None), ("b", None), ("c", None)], wait=60)
    assert states(registry) == {"a": "succeeded", "b": "succeeded", "c": "pending"}


class Interrupting(list[Any]):
    """Interrupts whoever looks what is in it."""

    def __getitem__(self, _at: object) -> Any:
        raise KeyboardInterrupt


def test_an_interruption_as_one_that_was_waited_for_is_claimed_puts_it_back(
    open_registry: Callable[..., Registry], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is granted already, and its caller does not have it yet."""
    registry, holder = open_registry(clock=(clock := ManualClock())), open_registry()
    held = holder.claim("b", on_crash="hold")
    claim_batch = registry.store.claim_batch

    def nap(pause: float) -> None:
        assert pause
        held.release()
        monkeypatch.setattr(registry.store, "claim_batch", lambda wanted: Interrupting(claim_batch(wanted)))

    clock.sleep = nap  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        registry.claim_many([("a", None), ("b", None)], on_crash="hold", wait=60)
    rows = [holder.get(task) for task in "ab"]
    assert [row and (row.status, row.attempt) for row in rows] == [(Status.PENDING, 0)] * 2
    assert batch_owners(path) == 0


def hook(on_crash: str) -> dict[str, Any]:
    """One that has found out that nothing happened, where there is to be one."""
    return {"verify": lambda _task: False} if on_crash == "verify" else {}


def test_what_a_batch_verified_is_put_back_as_well(registry: Registry, path: Path) -> None:
    """The hook's claim ends with its verdict; that of the batch behind it is not entered until it is."""
    with pytest.raises(ZeroDivisionError):
        registry.run("b", lambda: 1 / 0, name="", on_crash="verify", verify=bool, unknown_on=ZeroDivisionError)
    claims = registry.claim_many([("a", None), ("b", None)], on_crash="verify", **hook("verify"))
    assert [type(claim) for claim in claims] == [Claim, Claim]
    with pytest.warns(ResourceWarning, match="dropped"):  # noqa: PT031 - they go at once
        claims.clear()
        gc.collect()
    rows = [registry.get(task) for task in "ab"]
    assert [row and (row.status, row.attempt) for row in rows] == [(Status.PENDING, 0), (Status.FAILED, 1)]
    assert batch_owners(path) == 0


@pytest.mark.parametrize(("on_crash", "state"), [("hold", "unknown"), ("rerun", "pending")])
def test_an_interruption_as_a_batch_is_ended_counts_as_a_crash(
    registry: Registry, path: Path, on_crash: Any, state: str
) -> None:
    """on_crash decides of each; what was stored stays."""
    claims = entered_batch(registry, "ab", on_crash=on_crash)
    interrupt_at("finish.in-transaction", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        registry.finish_many([(claim, 1) for claim in claims])
    assert states(registry) == {"a": state, "b": state}
    claims = entered_batch(registry, "cd", on_crash=on_crash)
    interrupt_at("finish.committed", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        registry.finish_many([(claim, 1) for claim in claims])
    assert states(registry) == {"a": state, "b": state, "c": "succeeded", "d": "succeeded"}
    assert batch_owners(path) == 0


def test_an_interruption_as_consumed_messages_are_ended_counts_as_a_crash(registry: Registry) -> None:
    """Those that have run are settled by on_crash, and none stays running."""
    interrupt_at("finish.in-transaction", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        list(registry.consume("ab", str, task_id=str))
    assert states(registry) == {"a": "unknown", "b": "unknown"}


def test_a_message_that_is_run_again_may_be_interrupted_as_any(registry: Registry) -> None:
    """Its twin of the same batch has failed: Ctrl-C in the second run is settled by on_crash as well."""
    errors: list[BaseException] = [ZeroDivisionError(), KeyboardInterrupt()]

    def job(_message: str) -> None:
        raise errors.pop(0)

    with pytest.raises(KeyboardInterrupt):
        list(registry.consume("aa", job, task_id=str))
    assert states(registry) == {"a": "unknown"}


def test_what_cannot_be_ended_together_leaves_every_claim_open(
    registry: Registry, tmp_path: Path, open_registry: Callable[..., Registry]
) -> None:
    """A claim that was not entered, or of another registry, ends none of the others: each can end still."""
    first, second = (one for one in registry.claim_many([("a", None), ("b", None)]) if isinstance(one, Claim))
    first.enter()
    with pytest.raises(RuntimeError, match="enter"):
        registry.finish_many([(first, 1), (second, 2)])
    second.enter()
    with Registry(tmp_path / "other.db", durability="normal") as other:
        third = other.claim("c")
        with pytest.raises(ValueError, match="several registries"):
            registry.finish_many([(first, 1), (third, 3)])
        third.succeed(3)
    assert [one.result for one in registry.finish_many([(first, 1), (second, 2)]) if isinstance(one, Outcome)] == [1, 2]
    assert states(registry) == {"a": "succeeded", "b": "succeeded"}


def test_a_dropped_claim_is_put_back_unless_it_was_entered(registry: Registry) -> None:
    """What was not entered can run again, without an attempt counted; what was is settled as by a crash."""
    entered, _ = registry.claim_many([("entered", None), ("not", None)])
    assert isinstance(entered, Claim)
    entered.enter()
    with pytest.warns(ResourceWarning):  # noqa: PT031 - both go at once
        del entered, _
        gc.collect()
    assert states(registry) == {"entered": "unknown", "not": "pending"}
    assert registry.run("not", lambda: 1, name="another job").attempt == 1


def test_a_verify_hook_is_asked_in_a_batch_too(registry: Registry, path: Path) -> None:
    """A dead owner's task under verify is settled by the hook, as in a single claim; the others are not kept by it."""
    with Script(DIES_IN_JOB, path, "verify") as script:
        script.process.wait()
    answers = registry.claim_many(
        [("t", None), ("u", None)], name="job", on_crash="verify", verify=lambda task: task.task_id == "t"
    )
    assert [type(one) for one in answers] == [Outcome, Claim]
    assert isinstance(answers[1], Claim)
    answers[1].release()


def test_a_batch_has_a_bound(registry: Registry) -> None:
    """More than the limit is refused before anything is stored."""
    with pytest.raises(ValueError, match="at most"):
        registry.claim_many([(f"t{n}", None) for n in range(BATCH_LIMIT + 1)])
    for wrong in (0, -1, BATCH_LIMIT + 1, 1.5, True):
        with pytest.raises(ValueError, match="batch"):
            list(registry.consume([], print, task_id=str, batch=wrong))  # type: ignore[arg-type]
    assert registry.count() == {}
    assert registry.claim_many([]) == []
    assert registry.finish_many([]) == []


# --- the notes of the dead ------------------------------------------------------------------------------------------

DIES_IN_JOB = """
from idemreg import Registry
Registry(sys.argv[1], durability="normal").run(
    "t", lambda: os.kill(os.getpid(), 9), name="job", on_crash=sys.argv[2], verify=lambda task: True
)
"""

DIES_IN_BATCH = """
from idemreg import Registry
registry = Registry(sys.argv[1], durability="normal")
claims = registry.claim_many([(f"t{n}", None) for n in range(5)], name="job", on_crash=sys.argv[2])
claims[1].enter()
claims[3].enter()
claims[3].succeed(3)
say("ready")
wait()
os.kill(os.getpid(), 9)
"""


def test_a_dead_batch_is_told_apart(registry: Registry, path: Path) -> None:
    """The entered task is unknown; those not entered run, as first attempts; the one that had ended is replayed."""
    with Script(DIES_IN_BATCH, path, "hold") as script:
        script.expect("ready")
        with pytest.raises(TaskRunningError) as running:  # alive: nobody is put back
            registry.run("t0", lambda: 0, name="job")
        assert running.value.owner is not None
        assert running.value.owner.reason == "its lock is held"
        script.go()
        script.process.wait()
    with pytest.raises(TaskUnknownError):
        registry.run("t1", lambda: 0, name="job")
    assert registry.run("t3", lambda: 0, name="job").result == 3
    for name in ("t0", "t2", "t4"):
        outcome = registry.run(name, lambda: 9, name="job")
        assert (outcome.attempt, outcome.replayed) == (1, False)
    assert batch_owners(path) == 0


def test_a_dead_batch_under_rerun(registry: Registry, path: Path) -> None:
    """With on_crash="rerun" all run again; only the entered one counts its attempt."""
    with Script(DIES_IN_BATCH, path, "rerun") as script:
        script.expect("ready")
        script.go()
        script.process.wait()
    attempts = [registry.run(f"t{n}", lambda: 9, name="job", on_crash="rerun").attempt for n in (0, 1, 2, 4)]
    assert attempts == [1, 2, 1, 1]


def test_tokens_grow_over_a_task_that_is_put_back(registry: Registry, path: Path) -> None:
    """A claim that was not entered had a token; the next has a larger one all the same."""
    with Script(DIES_IN_BATCH, path, "hold") as script:
        script.expect("ready")
        script.go()
        script.process.wait()
    before = registry.get("t0")
    assert before is not None
    assert registry.run("t0", lambda: 9, name="job").token > before.token


def test_notes_of_an_earlier_boot_are_not_trusted(path: Path) -> None:
    """After a power cut the notes may be lost, so the whole batch counts as entered."""
    with Script(DIES_IN_BATCH, path, "hold") as script:
        script.expect("ready")
        script.go()
        script.process.wait()
    with Registry(path, clock=ManualClock(boot_id="a later boot")) as later, pytest.raises(TaskUnknownError):
        later.run("t0", lambda: 0, name="job")


def test_notes_that_are_gone_count_as_entered(registry: Registry, path: Path) -> None:
    """A lock file cut short by somebody must not make an entered task run again."""
    with Script(DIES_IN_BATCH, path, "hold") as script:
        script.expect("ready")
        script.go()
        script.process.wait()
    os.truncate(f"{path}-lock", FIRST_NOTE)
    with pytest.raises(TaskUnknownError):
        registry.run("t0", lambda: 0, name="job")


def test_places_are_used_again_and_never_shared(registry: Registry, path: Path) -> None:
    """Batches alive at once have places of their own; those of ended batches are cleared and used again."""
    first = registry.claim_many([(f"a{n}", None) for n in range(10)])
    second = registry.claim_many([(f"b{n}", None) for n in range(10)])
    assert places(path) == [(FIRST_NOTE, 10), (FIRST_NOTE + 10, 10)]
    for claim in first:
        assert isinstance(claim, Claim)
        claim.enter()
    assert all(isinstance(one, Outcome) for one in registry.finish_many([(claim, 1) for claim in first]))  # type: ignore[misc]
    third = registry.claim_many([(f"c{n}", None) for n in range(4)])
    assert places(path) == [(FIRST_NOTE, 4), (FIRST_NOTE + 10, 10)]
    with open(f"{path}-lock", "rb") as file:
        assert file.read()[FIRST_NOTE : FIRST_NOTE + 20] == b"\0" * 4 + b"\1" * 6 + b"\0" * 10
    for claim in [*second, *third]:
        assert isinstance(claim, Claim)
        claim.release()
    assert places(path) == []


def places(path: Path) -> list[tuple[int, int]]:
    connection = connect(path, apsw.SQLITE_OPEN_READONLY)
    rows: Any = connection.execute(
        "SELECT notes_at, notes FROM idempotent_owner WHERE claims IS NOT NULL ORDER BY notes_at"
    ).fetchall()
    connection.close()
    return rows  # type: ignore[no-any-return]


def test_a_note_that_cannot_be_written_keeps_the_job_from_beginning(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk under the lock file: the task is put back, and the caller told."""
    entered: list[str] = []

    def full(self: LockFile, at: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LockFile, "write_note", full)
    (handled,) = registry.consume(["m"], entered.append, task_id=str)
    assert isinstance(handled.error, StoreError)
    assert (entered, states(registry)) == ([], {"m": "pending"})


# --- consume --------------------------------------------------------------------------------------------------------


def test_consuming_runs_each_message_once(registry: Registry) -> None:
    """Every message comes out with its outcome, in order; what comes again is a replay."""
    ran: list[int] = []

    def job(message: dict[str, int]) -> int:
        ran.append(message["id"])
        assert current_claim().task_id == f"m:{message['id']}"
        return message["id"] * 2

    messages = [{"id": n} for n in range(7)]
    for replayed in (False, True):
        handled = list(registry.consume(messages, job, task_id=lambda m: f"m:{m['id']}", batch=3))
        assert [one.message for one in handled] == messages
        assert [one.outcome and (one.outcome.result, one.outcome.replayed) for one in handled] == [
            (n * 2, replayed) for n in range(7)
        ]
    assert ran == list(range(7))


def test_one_bad_message_stops_no_other(registry: Registry) -> None:
    """No task id, no canonical bytes, a failing job, a changed payload: each comes out with its error."""

    def job(message: dict[str, Any]) -> str:
        if message["id"] == "fails":
            raise ValueError(message["id"])
        return "ok"

    registry.run("changed", lambda: 1, name=job.__qualname__, payload="another")
    messages: list[dict[str, Any]] = [{"id": "a"}, {}, {"id": "fails"}, {"id": "b", "x": object()}, {"id": "changed"}]
    messages.append({"id": "z"})
    handled = list(registry.consume(messages, job, task_id=lambda m: m["id"]))
    kinds = [type(None), KeyError, ValueError, ArgumentError, ChecksumMismatchError, type(None)]
    assert [type(one.error) for one in handled] == kinds
    assert [one.retryable for one in handled] == [False, True, True, False, False, False]
    assert states(registry) == {"a": "succeeded", "changed": "succeeded", "fails": "failed", "z": "succeeded"}


def test_the_same_message_twice_in_a_batch(registry: Registry) -> None:
    """The second is a replay of the first, though both were claimed at once."""
    ran: list[str] = []
    handled = list(registry.consume(["m", "m", "n", "m"], ran.append, task_id=str))
    assert ran == ["m", "n"]
    assert [one.outcome and one.outcome.replayed for one in handled] == [False, True, False, True]


class NobodyNaps(Clock):
    """A clock on which nobody may wait."""

    def sleep(self, pause: float) -> None:
        pytest.fail(f"waits {pause} s")


def test_a_batch_does_not_wait_for_itself(open_registry: Callable[..., Registry]) -> None:
    """With ``wait`` a twin in the same batch is answered at once: it cannot end before the batch goes on."""
    registry = open_registry(clock=NobodyNaps())
    handled = list(registry.consume(["m", "m", "m"], str, task_id=str, wait=PATIENCE_S))
    assert [one.outcome and one.outcome.replayed for one in handled] == [False, True, True]
    claim, twin = registry.claim_many([("t", None), ("t", None)], wait=PATIENCE_S)
    assert isinstance(claim, Claim)
    assert isinstance(twin, TaskRunningError)
    claim.release()


def test_a_message_that_runs_elsewhere_keeps_no_other_waiting(open_registry: Callable[..., Registry]) -> None:
    """``wait`` is for the one message; the others of its batch have run by then."""
    clock = ManualClock()
    registry = open_registry(clock=clock)
    ran: list[float] = []
    with registry.claim("elsewhere", payload="elsewhere", name="job"):
        handled = list(
            registry.consume(
                ["elsewhere", "a"], lambda _: ran.append(clock.monotonic()), task_id=str, name="job", wait=5
            )
        )
    assert isinstance(handled[0].error, TaskRunningError)
    assert ran == [0.0]
    assert clock.monotonic() == pytest.approx(5)


def test_a_twin_that_is_interrupted_is_settled(registry: Registry) -> None:
    """A message whose twin failed runs in its turn, and an interruption of it is as any other in a batch."""
    ran: list[str] = []

    def job(message: str) -> None:
        ran.append(message)
        raise KeyboardInterrupt if len(ran) == 2 else ValueError

    with pytest.raises(KeyboardInterrupt):
        list(registry.consume(["m", "m"], job, task_id=str))
    assert states(registry) == {"m": "unknown"}


def test_none_ends_a_batch_early(registry: Registry) -> None:
    """A source that has nothing at the moment says None: what it gave before is handled without waiting for more."""
    done: list[str] = []

    def source() -> Iterator[str | None]:
        yield "a"
        yield "b"
        yield None
        assert done == ["a", "b"]
        yield None
        yield "c"

    handled = list(registry.consume(source(), done.append, task_id=str, batch=50))
    assert [one.message for one in handled] == done == ["a", "b", "c"]


@pytest.mark.parametrize(("on_crash", "state"), [("hold", "unknown"), ("rerun", "pending")])
def test_interrupted_in_mid_batch(registry: Registry, path: Path, on_crash: Any, state: str) -> None:
    """Ctrl-C: what has run is stored, the interrupted task is settled by its policy, the rest is put back."""

    def job(message: str) -> str:
        if message == "b":
            raise KeyboardInterrupt
        return message

    with pytest.raises(KeyboardInterrupt):
        list(registry.consume("abcd", job, task_id=str, on_crash=on_crash))
    assert states(registry) == {"a": "succeeded", "b": state, "c": "pending", "d": "pending"}
    assert batch_owners(path) == 0
    assert [one.outcome and one.outcome.attempt for one in registry.consume("cd", str, task_id=str)] == [1, 1]


def test_effects_of_a_message_commit_with_its_finish(registry: Registry) -> None:
    """A job of a batch may end its own claim by `claim.transaction()`; what was stored then is the outcome."""
    with registry.claim("make") as claim, claim.transaction() as tx:
        tx.execute("create table effect (m text)")

    def job(message: str) -> str:
        claim = current_claim()
        with claim.transaction() as tx:
            tx.execute("insert into effect values (?)", (message,))
            claim.result = message
        return message

    handled = list(registry.consume("abc", job, task_id=str, on_crash="rerun"))
    assert [one.outcome and one.outcome.result for one in handled] == ["a", "b", "c"]
    with registry.claim("look") as claim, claim.transaction() as tx:
        assert tx.execute("select m from effect") == [("a",), ("b",), ("c",)]


def test_a_message_whose_job_returns_what_it_did_not_store(registry: Registry) -> None:
    """What its own transaction has stored is the outcome of the task; that the job returned another is an error."""

    def job(_message: str) -> str:
        claim = current_claim()
        with claim.transaction():
            claim.result = "stored"
        return "returned"

    (handled,) = registry.consume("a", job, task_id=str)
    assert isinstance(handled.error, ResultError)
    task = registry.get("a")
    assert task is not None
    assert (task.status, task.result) == (Status.SUCCEEDED, '"stored"')


def test_ends_that_the_store_refuses_together_are_told_of_each(
    open_registry: Callable[..., Registry], path: Path
) -> None:
    """Another program writes for too long: each caller has his result back, and the tasks become unknown behind it."""
    registry = open_registry(busy_timeout=0.01)
    claims = entered_batch(registry, "ab")
    other = connect(path)
    other.execute("BEGIN IMMEDIATE")
    answers = registry.finish_many([(claim, claim.task_id) for claim in claims])
    assert [type(one) for one in answers] == [FinishNotRecordedError] * 2
    assert [one.result for one in answers if isinstance(one, FinishNotRecordedError)] == ["a", "b"]
    assert states(registry) == {"a": "running", "b": "running"}
    other.execute("ROLLBACK")
    other.close()
    registry.add("c")
    assert states(registry) == {"a": "unknown", "b": "unknown", "c": "pending"}


def test_an_interruption_leaves_what_was_answered_before(registry: Registry) -> None:
    """A message of the batch that is replayed has no claim: Ctrl-C in the job of another ends nothing of it."""
    errors: list[BaseException] = []

    def job(_message: str) -> None:
        if errors:
            raise errors.pop()

    list(registry.consume("a", job, task_id=str))
    errors.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        list(registry.consume("ab", job, task_id=str))
    assert states(registry) == {"a": "succeeded", "b": "unknown"}


def test_messages_that_fill_their_batches_leave_no_empty_one(registry: Registry) -> None:
    """Of four messages by two there are two batches, and nothing is claimed for a third."""
    assert [one.message for one in registry.consume("abcd", str, task_id=str, batch=2)] == list("abcd")
    assert states(registry) == dict.fromkeys("abcd", "succeeded")


def test_a_forked_child_has_no_claim_of_its_parents_batch(registry: Registry) -> None:
    """In a child the parent's claims are lost; the parent's stay its own."""
    (claim,) = registry.claim_many([("t", None)])
    assert isinstance(claim, Claim)
    if (child := os.fork()) == 0:
        code = 1
        try:
            claim.enter()
        except ClaimLostError:
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    claim.enter()
    claim.succeed()


def test_a_closed_registry_keeps_a_batch_alive(open_registry: Callable[..., Registry]) -> None:
    """Its claims can end after close(), and until then nobody takes them over."""
    registry, other = open_registry(), open_registry()
    (claim,) = registry.claim_many([("t", None)], name="job")
    assert isinstance(claim, Claim)
    registry.close()
    task = other.get("t")
    assert task is not None
    owner = other.owner(task)
    assert owner is not None
    assert owner.liveness is not Liveness.DEAD
    claim.enter()
    claim.succeed(1)
    assert other.run("t", lambda: 2, name="job").result == 1


# --- asynchronous ---------------------------------------------------------------------------------------------------


async def pause() -> None:
    if trio.lowlevel.in_trio_run():
        await trio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)


async def for_ever() -> None:
    if trio.lowlevel.in_trio_run():
        await trio.sleep_forever()
    else:
        await asyncio.Event().wait()


def test_asynchronous_batches(path: Path, loop: Any) -> None:
    """The same, awaited; the source may be asynchronous, and the job a coroutine function."""
    registry = AsyncRegistry(path, durability="normal")

    async def source() -> AsyncIterator[str | None]:
        for message in "abcb":
            yield message
        yield None
        yield "d"

    async def job(message: str) -> str:
        await pause()
        return message.upper()

    async def main() -> None:
        handled = [one async for one in registry.consume(source(), job, task_id=str, batch=10)]
        assert [one.outcome and (one.outcome.result, one.outcome.replayed) for one in handled] == [
            ("A", False),
            ("B", False),
            ("C", False),
            ("B", True),
            ("D", False),
        ]
        claim, outcome = await registry.claim_many([("new", None), ("a", "a")], name=job.__qualname__)
        assert isinstance(claim, AsyncClaim)
        assert isinstance(outcome, Outcome)
        await claim.enter()
        (ended,) = await registry.finish_many([(claim, 1)])
        assert isinstance(ended, Outcome)

    loop(main)
    assert {task.status for task in registry.registry.tasks()} == {Status.SUCCEEDED}
    registry.registry.close()


class Source:
    """Messages from elsewhere; not a generator, and so nothing to be closed."""

    def __init__(self, messages: str) -> None:
        self._messages = list(messages)

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> str:
        await pause()
        if not self._messages:
            raise StopAsyncIteration
        return self._messages.pop(0)


def test_an_asynchronous_source_need_not_be_a_generator(path: Path, loop: Any) -> None:
    """Any asynchronous iterator will do, and its last batch may be full."""
    registry = AsyncRegistry(path, durability="normal")

    async def job(message: str) -> str:
        return message

    async def main() -> None:
        handled = [one async for one in registry.consume(Source("abcd"), job, task_id=str, batch=2)]
        assert [one.message for one in handled] == list("abcd")

    loop(main)
    assert states(registry.registry) == dict.fromkeys("abcd", "succeeded")
    registry.registry.close()


def test_a_loop_closed_in_mid_batch_settles_what_it_leaves(path: Path) -> None:
    """Nothing can be awaited then: the task of the job is settled as by a crash all the same, and the rest put back."""
    registry = AsyncRegistry(path, durability="normal")
    loop = asyncio.new_event_loop()

    async def job(_message: str) -> None:
        loop.stop()
        await for_ever()

    async def main() -> None:
        async for _ in registry.consume("ab", job, task_id=str):
            pytest.fail("the job came to its end")

    coroutine = main()
    task = loop.create_task(coroutine)
    loop.run_forever()
    coroutine.close()  # in this context, as the garbage collector would
    loop.close()
    del task
    gc.collect()
    left_is_done(registry.registry.offload)
    assert states(registry.registry) == {"a": "unknown", "b": "pending"}
    registry.registry.close()


def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def test_an_asynchronous_batch_that_is_cancelled(path: Path, loop: Any) -> None:
    """Cancelled in a job: as a Ctrl-C in a plain batch."""
    registry = AsyncRegistry(path, durability="normal")

    async def consume(cancel: Callable[[], None]) -> None:
        async def job(message: str) -> None:
            if message == "b":
                cancel()
                await for_ever()

        async with contextlib.aclosing(registry.consume("abc", job, task_id=str)) as handled:
            async for _ in handled:
                pass

    async def main() -> None:
        if trio.lowlevel.in_trio_run():
            with trio.CancelScope() as scope:
                await consume(scope.cancel)
            assert scope.cancelled_caught
        else:
            task: asyncio.Task[None] = asyncio.ensure_future(consume(lambda: cancel(task)))
            with pytest.raises(asyncio.CancelledError):
                await task

    loop(main)
    assert states(registry.registry) == {"a": "succeeded", "b": "unknown", "c": "pending"}
    registry.registry.close()
