"""Every legal and illegal transition: in the pure model against tables written here, and in a real registry."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idemreg import (
    ClaimLostError,
    IdemregError,
    Registry,
    Status,
    Task,
    TaskDoneError,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
    TransitionError,
    Verdict,
)
from idemreg.deciding import Decision, Wanted, decide, may_forget, settled_status
from idemreg.model import (
    FINAL,
    MAX_ATTEMPTS_LIMIT,
    NO_CHECKSUM,
    TRANSITIONS,
    Liveness,
    OnCrash,
    OnFailure,
    Policy,
    unpack_policy,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALL_LIVENESS = tuple(Liveness)
FREES = {Liveness.DEAD, Liveness.EXPIRED}
ASKED_MAX = 3


def a_row(status: Status, *, policy: Policy | None = None, attempt: int = 1, verdict: Verdict | None = None) -> Task:
    owner = 7 if status is Status.RUNNING else None
    chosen = policy or Policy()
    return Task("t", status, "c" * 64, 0, 0, "job", 9, attempt, owner, chosen, None, None, None, verdict, None, None)


def a_wish(policy: Policy | None = None, *, can_verify: bool = False, name: str = "job", checksum: str = "c") -> Wanted:
    return Wanted("t", name, checksum * 64, policy or Policy(), can_verify=can_verify)


def test_a_pending_task_is_claimed_whatever_its_attempts() -> None:
    """max_attempts bounds what follows a failure or a death; who left a task pending had attempts left."""
    for attempt in range(2 * ASKED_MAX):
        row = a_row(Status.PENDING, attempt=attempt)
        assert decide(row, a_wish(Policy(max_attempts=ASKED_MAX)), Liveness.CANNOT_TELL) is Decision.CLAIM


# --- decide -----------------------------------------------------------------------------------------------------

STRICTER = {
    ("rerun", "rerun"): "rerun",
    ("rerun", "verify"): "verify",
    ("rerun", "hold"): "hold",
    ("verify", "rerun"): "verify",
    ("verify", "verify"): "verify",
    ("verify", "hold"): "hold",
    ("hold", "rerun"): "hold",
    ("hold", "verify"): "hold",
    ("hold", "hold"): "hold",
}

# status, owner, stricter on_crash, a hook at hand, verdict, failures held by either, attempts left -> what happens.
# None: whatever it is. The first rule that fits counts. They are written from the promises, not from the code.
RULES: list[tuple[str, str | None, str | None, bool | None, str | None, bool | None, bool | None, str]] = [
    ("pending", None, None, None, None, None, None, "claim"),
    ("succeeded", None, None, None, None, None, None, "done"),
    ("skipped", None, None, None, None, None, None, "done"),
    ("cancelled", None, None, None, None, None, None, "done"),
    ("running", "alive", None, None, None, None, None, "running"),
    ("running", "cannot tell", None, None, None, None, None, "running"),
    ("running", "dead", "hold", None, None, None, None, "becomes unknown"),
    ("running", "dead", "verify", True, None, None, None, "verify"),
    ("running", "dead", "verify", False, None, None, None, "becomes unknown"),
    ("running", "dead", "rerun", None, "retry", None, None, "take over"),
    ("running", "dead", "rerun", None, None, None, True, "take over"),
    ("running", "dead", "rerun", None, None, None, False, "becomes failed"),
    # An expired lease permits what a death permits.
    ("running", "lease expired", "hold", None, None, None, None, "becomes unknown"),
    ("running", "lease expired", "verify", True, None, None, None, "verify"),
    ("running", "lease expired", "verify", False, None, None, None, "becomes unknown"),
    ("running", "lease expired", "rerun", None, "retry", None, None, "take over"),
    ("running", "lease expired", "rerun", None, None, None, True, "take over"),
    ("running", "lease expired", "rerun", None, None, None, False, "becomes failed"),
    ("failed", None, None, None, "retry", None, None, "claim"),
    ("failed", None, None, None, "did-not-happen", None, True, "claim"),
    ("failed", None, None, None, "did-not-happen", None, False, "refused"),
    ("failed", None, None, None, None, True, None, "refused"),
    ("failed", None, None, None, None, False, True, "claim"),
    ("failed", None, None, None, None, False, False, "refused"),
    ("unknown", None, "verify", True, None, None, None, "verify"),
    ("unknown", None, None, None, None, None, None, "unknown"),
]


def rule_for(*facts: object) -> int:
    return next(
        number
        for number, rule in enumerate(RULES)
        if all(want is None or want == fact for want, fact in zip(rule[:-1], facts, strict=True))
    )


def test_decide_agrees_with_the_table() -> None:
    """Every status, liveness, stored and asked policy, count of attempts, verdict and hook decides as the table says.

    Of the attempts only those asked for count, so the stored maximum varies without an effect; every rule is used.
    """
    used = set()
    policies = [Policy(*both, most) for both in itertools.product(OnCrash, OnFailure) for most in (1, 5)]
    asks = [Policy(*both, ASKED_MAX) for both in itertools.product(OnCrash, OnFailure)]
    attempts = (0, ASKED_MAX - 1, ASKED_MAX, ASKED_MAX + 1)
    for status, alive, stored, asked, attempt, verdict, hook in itertools.product(
        Status, ALL_LIVENESS, policies, asks, attempts, [None, *Verdict], (False, True)
    ):
        crash = STRICTER[stored.on_crash.name.lower(), asked.on_crash.name.lower()]
        held = OnFailure.HOLD in (stored.on_failure, asked.on_failure)
        word = None if verdict is None else verdict.word
        number = rule_for(status.word, alive.value, crash, hook, word, held, attempt < ASKED_MAX)
        used.add(number)
        row = a_row(status, policy=stored, attempt=attempt, verdict=verdict)
        decision = decide(row, a_wish(asked, can_verify=hook), alive)
        assert decision is Decision(RULES[number][-1]), (row, asked, alive, hook)
    assert used == set(range(len(RULES)))


def test_a_first_claim_inserts() -> None:
    """Where there is no row nothing stands in the way."""
    assert {decide(None, a_wish(), alive) for alive in ALL_LIVENESS} == {Decision.INSERT}


@pytest.mark.parametrize("other", [a_wish(name="other"), a_wish(checksum="d"), a_wish(name="", checksum="e")])
def test_other_work_is_a_mismatch_whatever_the_row_says(other: Wanted) -> None:
    """Another job, or other arguments, are refused before status, liveness or any policy is looked at."""
    every = itertools.product(Status, ALL_LIVENESS, [None, *Verdict], OnCrash)
    decisions = {
        decide(a_row(status, verdict=verdict, policy=Policy(crash)), other, alive)
        for status, alive, verdict, crash in every
    }
    assert decisions == {Decision.MISMATCH}


def test_a_released_row_binds_nobody() -> None:
    """A row whose only claim was released belongs to no job and no arguments yet: any call may claim it."""
    row = a_row(Status.PENDING)._replace(name="", checksum=NO_CHECKSUM)
    assert decide(row, a_wish(name="other", checksum="e"), Liveness.CANNOT_TELL) is Decision.CLAIM


def test_only_proof_of_death_moves_a_running_task() -> None:
    """An owner that is alive, or that nobody can tell about, is never replaced, whatever is stored and asked."""
    for alive in (Liveness.ALIVE, Liveness.CANNOT_TELL):
        for stored, asked, hook in itertools.product(OnCrash, OnCrash, (False, True)):
            row = a_row(Status.RUNNING, policy=Policy(stored))
            assert decide(row, a_wish(Policy(asked), can_verify=hook), alive) is Decision.RUNNING


def test_a_task_of_a_dead_batch_is_put_back_unless_it_was_entered() -> None:
    """Whatever is stored and asked; while its owner may live it is running, entered or not."""
    for stored, asked, hook in itertools.product(OnCrash, OnCrash, (False, True)):
        row, wish = a_row(Status.RUNNING, policy=Policy(stored)), a_wish(Policy(asked), can_verify=hook)
        assert decide(row, wish, Liveness.DEAD, entered=False) is Decision.PUT_BACK
        assert decide(row, wish, Liveness.DEAD, entered=True) is not Decision.PUT_BACK
        for alive in (Liveness.ALIVE, Liveness.CANNOT_TELL):
            assert decide(row, wish, alive, entered=False) is Decision.RUNNING


# --- settle and forget ------------------------------------------------------------------------------------------

SETTLED = {
    (Status.UNKNOWN, Verdict.HAPPENED): Status.SUCCEEDED,
    (Status.UNKNOWN, Verdict.DID_NOT_HAPPEN): Status.FAILED,
    (Status.UNKNOWN, Verdict.CANNOT_TELL): Status.UNKNOWN,
    (Status.FAILED, Verdict.RETRY): Status.FAILED,
    (Status.PENDING, Verdict.SKIPPED): Status.SKIPPED,
    (Status.PENDING, Verdict.CANCELLED): Status.CANCELLED,
    (Status.FAILED, Verdict.CANCELLED): Status.CANCELLED,
    (Status.UNKNOWN, Verdict.CANCELLED): Status.CANCELLED,
}


def test_settled_status_agrees_with_the_table() -> None:
    """A verdict is taken from the listed statuses only; a running row that is free, or one's own, is unknown."""
    for status, verdict, verifying, alive in itertools.product(Status, Verdict, (False, True), ALL_LIVENESS):
        counts_as = status
        if status is Status.RUNNING and (verifying or alive in FREES):
            counts_as = Status.UNKNOWN
        got = settled_status(a_row(status), verdict, verifying=verifying, liveness=alive)
        assert got is SETTLED.get((counts_as, verdict)), (status, verdict, verifying, alive)


def test_may_forget_agrees_with_the_table() -> None:
    """What is over may go; unknown, and running that is free, only by force; what may still run, never."""
    for status, alive, force in itertools.product(Status, ALL_LIVENESS, (False, True)):
        if status is Status.RUNNING:
            expected = force and alive in FREES
        elif status is Status.UNKNOWN:
            expected = force
        else:
            expected = True
        assert may_forget(a_row(status), alive, force=force) is expected, (status, alive, force)


# --- words ------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(OnCrash),
    st.sampled_from(OnFailure),
    st.integers(1, MAX_ATTEMPTS_LIMIT),
    st.booleans(),
    st.booleans(),
)
def test_a_policy_survives_its_integer(
    on_crash: OnCrash,
    on_failure: OnFailure,
    most: int,
    is_limited: bool,  # noqa: FBT001
    keeps_arguments: bool,  # noqa: FBT001
) -> None:
    """Packed and unpacked again every policy is the same, by the layout that schema.sql tells."""
    policy = Policy(on_crash, on_failure, most, is_limited, keeps_arguments)
    crash = {"rerun": 0, "verify": 1, "hold": 2}[on_crash.name.lower()]
    flags = 16 * keeps_arguments + 8 * is_limited + (4 if on_failure is OnFailure.HOLD else 0)
    assert policy.pack() == most * 32 + flags + crash
    assert unpack_policy(policy.pack()) == policy
    assert type(unpack_policy(policy.pack()).on_crash) is OnCrash


@pytest.mark.parametrize("packed", [160 + 3, 160 + 4 + 3, 160 + 8 + 3])
def test_a_policy_that_nobody_packs_is_refused(packed: int) -> None:
    """Bits that no policy has are an error, never the nearest policy."""
    with pytest.raises(ValueError, match=r"."):
        unpack_policy(packed)


def test_the_numbers_are_those_of_the_design() -> None:
    """Statuses and verdicts are stored by number, so the numbers never change; the schema tells the same."""
    words = ["pending", "succeeded", "failed", "running", "unknown", "skipped", "cancelled"]
    assert [Status(number).word for number in range(7)] == words
    verdicts = ["happened", "did-not-happen", "cannot-tell", "retry", "skipped", "cancelled"]
    assert [Verdict(number).word for number in range(1, 7)] == verdicts
    assert {Status.SUCCEEDED, Status.SKIPPED, Status.CANCELLED} == FINAL


def test_final_rows_only_go() -> None:
    """No transition leads out of a final status but the row's removal, and every status has its line in the table."""
    assert TRANSITIONS.keys() == {None, *Status}
    assert all(TRANSITIONS[status] == {None} for status in FINAL)


@pytest.mark.parametrize(
    ("attempt", "verdict", "dead"), [(9, None, False), (10, None, True), (11, None, True), (10, Verdict.RETRY, False)]
)
def test_a_dead_letter_has_no_attempt_left(attempt: int, verdict: Verdict | None, dead: object) -> None:
    """Failed with all attempts used up, and nobody has allowed one more; no other status is a dead letter."""
    assert a_row(Status.FAILED, attempt=attempt, verdict=verdict).is_dead_letter is dead
    others = set(Status) - {Status.FAILED}
    assert not any(a_row(status, attempt=attempt, verdict=verdict).is_dead_letter for status in others)


# --- the real store ---------------------------------------------------------------------------------------------


def die_holding(path: Path, task_id: str, on_crash: str, name: str = "") -> None:
    """Another process claims the task and is gone without a word."""
    child = os.fork()
    if not child:
        try:
            claim = Registry(path, durability="normal").claim(task_id, name=name, on_crash=on_crash)  # type: ignore[arg-type]
            os._exit(0 if claim.is_open else 1)
        finally:
            os._exit(2)
    _, state = os.waitpid(child, 0)
    assert state == 0


class BoomError(Exception):
    pass


class MaybeError(Exception):
    pass


class LaterError(Exception):
    pass


class Drive:
    """Brings one task of a real registry into a state, and tries a step on it."""

    def __init__(self, registry: Registry, path: Path) -> None:
        self.registry = registry
        self.path = path
        self.held: list[Any] = []

    def bring(self, state: str) -> None:
        registry = self.registry
        steps: dict[str, Callable[[], object]] = {
            "none": lambda: None,
            "pending": lambda: registry.add("t"),
            "succeeded": lambda: self.run(None),
            "failed": lambda: self.run(BoomError),
            "held": lambda: self.run(BoomError, on_failure="hold"),
            "used up": lambda: self.run(BoomError, max_attempts=1),
            "running": lambda: self.held.append(registry.claim("t")),
            "dead, hold": lambda: die_holding(self.path, "t", "hold"),
            "dead, rerun": lambda: die_holding(self.path, "t", "rerun"),
            "unknown": lambda: self.run(MaybeError),
            "skipped": lambda: (registry.add("t"), registry.skip("t", "holiday")),
            "cancelled": lambda: (registry.add("t"), registry.cancel("t")),
        }
        steps[state]()

    def run(self, error: type[BaseException] | None, **options: Any) -> None:
        def job() -> None:
            if error is not None:
                raise error

        chosen = {"unknown_on": MaybeError, "release_on": LaterError, **options}
        with contextlib.suppress(BoomError, MaybeError, LaterError, KeyboardInterrupt):
            self.registry.run("t", job, name="", **chosen)

    def step(self, step: str) -> None:
        registry = self.registry
        steps: dict[str, Callable[[], object]] = {
            "claim": lambda: self.held.append(registry.claim("t")),
            "claim, rerun": lambda: self.held.append(registry.claim("t", on_crash="rerun")),
            "claim, last": lambda: self.held.append(registry.claim("t", on_crash="rerun", max_attempts=1)),
            "add": lambda: registry.add("t"),
            "skip": lambda: registry.skip("t", "why"),
            "cancel": lambda: registry.cancel("t"),
            "retry": lambda: registry.retry("t"),
            "happened": lambda: registry.resolve("t", "happened", result=5),
            "did-not-happen": lambda: registry.resolve("t", "did-not-happen"),
            "cannot-tell": lambda: registry.resolve("t", "cannot-tell"),
            "forget": lambda: registry.forget("t"),
            "forget, force": lambda: registry.forget("t", force=True),
        }
        steps[step]()

    def row(self) -> Task | None:
        return self.registry.get("t")

    def status(self) -> Status | None:
        row = self.row()
        return None if row is None else row.status


# For each state what each step leads to; every step that is not listed is a TransitionError. A class: the step raises
# it; with a status beside it, the row has moved all the same.
_R, _F, _S, _U = Status.RUNNING, Status.FAILED, Status.SUCCEEDED, Status.UNKNOWN
_K, _C, _P = Status.SKIPPED, Status.CANCELLED, Status.PENDING
_DONE = {"claim": TaskDoneError, "claim, rerun": TaskDoneError, "claim, last": TaskDoneError}
_BUSY = {"claim": TaskRunningError, "claim, rerun": TaskRunningError, "claim, last": TaskRunningError}
_ALL_RUN = {"claim": _R, "claim, rerun": _R, "claim, last": _R}
_GONE = {"forget": None, "forget, force": None}
_RESOLVED = {"happened": _S, "did-not-happen": _F, "cannot-tell": _U, "cancel": _C, "forget, force": None}
STEPS: dict[str, dict[str, Any]] = {
    "none": {**_ALL_RUN, "add": _P},
    "pending": {**_ALL_RUN, "add": _P, "skip": _K, "cancel": _C, **_GONE},
    "succeeded": {**_DONE, "add": _S, **_GONE},
    "skipped": {**_DONE, "add": _K, **_GONE},
    "cancelled": {**_DONE, "add": _C, **_GONE},
    "failed": {**_ALL_RUN, "claim, last": TaskFailedError, "add": _F, "retry": _F, "cancel": _C, **_GONE},
    "held": {**dict.fromkeys(_ALL_RUN, TaskFailedError), "add": _F, "retry": _F, "cancel": _C, **_GONE},
    "used up": {**_ALL_RUN, "claim, last": TaskFailedError, "add": _F, "retry": _F, "cancel": _C, **_GONE},
    "running": {**_BUSY, "add": _R},
    "unknown": {**dict.fromkeys(_ALL_RUN, TaskUnknownError), "add": _U, **_RESOLVED},
    "dead, hold": {**dict.fromkeys(_ALL_RUN, (TaskUnknownError, _U)), "add": _R, **_RESOLVED},
    "dead, rerun": {
        "claim": (TaskUnknownError, _U),
        "claim, rerun": _R,
        "claim, last": (TaskFailedError, _F),
        "add": _R,
        **_RESOLVED,
    },
}
ALL_STEPS = ("claim", "claim, rerun", "claim, last", "add", "skip", "cancel", "retry", "happened", "did-not-happen",
             "cannot-tell", "forget", "forget, force")  # fmt: skip


@pytest.mark.parametrize("step", ALL_STEPS)
@pytest.mark.parametrize("state", STEPS)
def test_a_step_does_what_the_table_says(registry: Registry, path: Path, state: str, step: str) -> None:
    """Each step from each state leads where the table says, along TRANSITIONS, or raises and leaves the row alone."""
    drive = Drive(registry, path)
    drive.bring(state)
    before = drive.row()
    expected = STEPS[state].get(step, TransitionError)
    error, status = expected if isinstance(expected, tuple) else (expected, expected)
    if isinstance(error, type):
        with pytest.raises(IdemregError) as caught:
            drive.step(step)
        assert type(caught.value) is error
        assert caught.value.task_id == "t"
    else:
        drive.step(step)
    if isinstance(status, type):
        assert drive.row() == before
    else:
        was = None if before is None else before.status
        assert drive.status() is status
        assert status in TRANSITIONS[was] or (step == "add" and drive.row() == before)
    for claim in drive.held:
        claim.release()


ENDS: dict[str, tuple[Status, Callable[[Drive], None]]] = {
    "succeed": (Status.SUCCEEDED, lambda drive: drive.run(None)),
    "fail": (Status.FAILED, lambda drive: drive.run(BoomError)),
    "unknown_on": (Status.UNKNOWN, lambda drive: drive.run(MaybeError)),
    "release": (Status.PENDING, lambda drive: drive.run(LaterError)),
    "interrupted under hold": (Status.UNKNOWN, lambda drive: drive.run(KeyboardInterrupt)),
    "interrupted under rerun": (Status.PENDING, lambda drive: drive.run(KeyboardInterrupt, on_crash="rerun")),
    "interrupted the last time": (
        Status.FAILED,
        lambda drive: drive.run(KeyboardInterrupt, on_crash="rerun", max_attempts=1),
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_an_end_does_what_the_table_says(registry: Registry, path: Path, end: str) -> None:
    """Each way in which a job can end leads from running to its own status."""
    status, run = ENDS[end]
    drive = Drive(registry, path)
    run(drive)
    assert drive.status() is status
    assert status in TRANSITIONS[Status.RUNNING]


@pytest.mark.parametrize("second", ["succeed", "fail", "release", "transaction"])
def test_a_second_end_is_refused(registry: Registry, second: str) -> None:
    """A claim ends once: what comes behind its end is a ClaimLostError, and the row stays as the first end left it."""
    claim = registry.claim("t")
    claim.succeed(1)
    before = registry.get("t")
    ends: dict[str, Callable[[], object]] = {
        "succeed": lambda: claim.succeed(2),
        "fail": lambda: claim.fail(BoomError()),
        "release": claim.release,
        "transaction": lambda: claim.transaction().__enter__(),
    }
    with pytest.raises(ClaimLostError):
        ends[second]()
    assert registry.get("t") == before


STATUS_OF = {
    "none": None,
    "held": Status.FAILED,
    "used up": Status.FAILED,
    "dead, hold": Status.RUNNING,
    "dead, rerun": Status.RUNNING,
}


def test_every_transition_of_the_table_happens() -> None:
    """TRANSITIONS lists what the tests above drive a real registry through: nothing more, and nothing less."""
    driven: set[tuple[Status | None, Status | None]] = {(Status.RUNNING, status) for status, _ in ENDS.values()}
    driven.add((Status.UNKNOWN, Status.RUNNING))  # by a verify hook: tests/test_attempt.py
    for state, steps in STEPS.items():
        status = STATUS_OF[state] if state in STATUS_OF else Status[state.upper()]
        answers = [answer for step, answer in steps.items() if step != "add" or state == "none"]
        ends = [answer[1] if isinstance(answer, tuple) else answer for answer in answers]
        driven |= {(status, end) for end in ends if not isinstance(end, type)}
    assert driven == {(status, end) for status, ends in TRANSITIONS.items() for end in ends}
