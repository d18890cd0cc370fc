"""The registry against a small dictionary model, over any order of claims, ends, crashes, operators and reopening."""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from idemreg import (
    ChecksumMismatchError,
    IdemregError,
    Registry,
    Status,
    TaskDoneError,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
    TransitionError,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg import Claim, Task

TASKS = ("a", "ä")
ATTEMPTS = 3
FINAL = {"succeeded", "skipped", "cancelled"}

tasks = st.sampled_from(TASKS)
handles = st.integers(0, 1)
payloads = st.sampled_from([1] * 9 + [2])  # mostly the same work
crashes = st.sampled_from(["hold", "rerun"])
failures = st.sampled_from(["retry", "retry", "hold"])
outcomes = st.sampled_from(["success", "failure", "unknown", "release", "interrupt"])


class FailError(Exception):
    pass


class MaybeError(Exception):
    pass


class LaterError(Exception):
    pass


ERRORS: dict[str, type[BaseException]] = {
    "failure": FailError,
    "unknown": MaybeError,
    "release": LaterError,
    "interrupt": KeyboardInterrupt,
}


@dataclass
class Row:
    """What the model knows of one task. ``dead``: running, and its owner died; no payload: released, binds nobody."""

    status: str = "pending"
    payload: int | None = 1
    attempt: int = 0
    crash: str = "hold"
    failure: str = "retry"
    verdict: str | None = None
    result: Any = None
    dead: bool = False


@dataclass
class Asked:
    payload: int
    crash: str
    failure: str


@dataclass
class Held:
    """A claim that lives in this process, and the row before it."""

    claim: Claim
    before: Row | None


@dataclass
class Model:
    rows: dict[str, Row] = field(default_factory=dict)

    def claim(self, task: str, asked: Asked) -> type[IdemregError] | str:
        """What a claim leads to: an error, "replay" or "run"; and what it makes of the row."""
        row = self.rows.get(task)
        if row is None:
            return self._run(task, Row(payload=asked.payload), asked)
        if row.payload not in {None, asked.payload}:
            return ChecksumMismatchError
        match row.status:
            case "pending":
                return self._run(task, row, asked)
            case "succeeded":
                return "replay"
            case "skipped" | "cancelled":
                return TaskDoneError
            case "unknown":
                return TaskUnknownError
            case "failed":
                return self._run(task, row, asked) if claimable(row, asked) else TaskFailedError
        return self._dead(task, row, asked) if row.dead else TaskRunningError

    def _dead(self, task: str, row: Row, asked: Asked) -> type[IdemregError] | str:
        if "hold" in (row.crash, asked.crash):
            self.rows[task] = replace(row, status="unknown", dead=False, verdict="cannot-tell")
            return TaskUnknownError
        if row.attempt >= ATTEMPTS:
            self.rows[task] = replace(row, status="failed", dead=False, verdict="cannot-tell")
            return TaskFailedError
        return self._run(task, row, asked)

    def _run(self, task: str, row: Row, asked: Asked) -> str:
        fresh = row.status == "pending" and row.attempt == 0
        crash = asked.crash if fresh or row.crash == asked.crash else "hold"
        self.rows[task] = Row("running", asked.payload, row.attempt + 1, crash, asked.failure)
        return "run"

    def end(self, task: str, outcome: str, before: Row | None, result: object) -> None:
        row = self.rows[task]
        if outcome == "success":
            row.status, row.result = "succeeded", result
        elif outcome in {"failure", "unknown"}:
            row.status = "failed" if outcome == "failure" else "unknown"
        elif outcome == "release":
            failed = before is not None and before.status == "failed"
            row.status = "failed" if failed else "pending"
            row.verdict = before.verdict if before is not None and failed else None
            row.attempt -= 1
        elif row.crash == "hold":
            row.status = "unknown"
        else:
            row.status = "failed" if row.attempt >= ATTEMPTS else "pending"


def claimable(row: Row, asked: Asked) -> bool:
    if row.verdict == "retry":
        return True
    if row.attempt >= ATTEMPTS:
        return False
    return row.verdict == "did-not-happen" or "hold" not in (row.failure, asked.failure)


class RegistryMachine(RuleBasedStateMachine):
    """Every rule does one thing to a registry and to the model, and compares what the caller is told."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="idemreg-")
        self.path = os.path.join(self.folder.name, "jobs.db")
        self.handles: list[Registry] = []
        self.model = Model()
        self.held: dict[str, Held] = {}
        self.tokens = dict.fromkeys(TASKS, 0)
        self.final: dict[str, Task] = {}
        self.results = 0

    @initialize()
    def open(self) -> None:
        self.handles = [Registry(self.path, durability="normal") for _ in range(2)]

    def teardown(self) -> None:
        for held in self.held.values():
            held.claim.release()
        for registry in self.handles:
            registry.close()
        self.folder.cleanup()

    # --- jobs ---------------------------------------------------------------------------------------------------

    @rule(handle=handles, task=tasks, payload=payloads, crash=crashes, failure=failures, outcome=outcomes)
    def run(self, handle: int, task: str, payload: int, crash: str, failure: str, outcome: str) -> None:
        before = self.model.rows.get(task)
        expected = self.model.claim(task, Asked(payload, crash, failure))
        self.results += 1
        result = {"number": (self.results,)}
        entered: list[int] = []

        def job() -> Any:
            entered.append(1)
            if outcome in ERRORS:
                raise ERRORS[outcome]
            return result

        told, got = self.told(
            lambda: self.handles[handle].run(task, job, **options(payload, crash, failure)), tuple(ERRORS.values())
        )
        assert bool(entered) == (expected == "run")
        if expected == "run":
            self.grown(task)
            self.model.end(task, outcome, before, result)
            assert told is ERRORS.get(outcome)
        elif expected == "replay":
            assert told is None
            assert got.replayed
            assert got.result == self.model.rows[task].result
        else:
            assert told is expected

    @rule(handle=handles, task=tasks, payload=payloads, crash=crashes, failure=failures)
    def claim(self, handle: int, task: str, payload: int, crash: str, failure: str) -> None:
        before = self.model.rows.get(task)
        expected = self.model.claim(task, Asked(payload, crash, failure))
        told, got = self.told(lambda: self.handles[handle].claim(task, **options(payload, crash, failure)))
        if expected == "run":
            assert told is None
            assert got.attempt == self.model.rows[task].attempt
            self.held[task] = Held(got, before)
            self.grown(task)
        else:
            assert told is (TaskDoneError if expected == "replay" else expected)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), outcome=outcomes | st.just("drop"))
    def end(self, data: st.DataObject, outcome: str) -> None:
        task = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held.pop(task)
        self.results += 1
        if outcome == "success":
            held.claim.succeed(self.results)
        elif outcome == "drop":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                held.claim.drop("by the machine")
        else:
            held.claim.fail(ERRORS[outcome]())
        self.model.end(task, outcome, held.before, self.results)

    # --- crashes ------------------------------------------------------------------------------------------------

    @rule(task=tasks, payload=payloads, crash=crashes, failure=failures)
    def die(self, task: str, payload: int, crash: str, failure: str) -> None:
        """A forked child opens the file anew, claims the task and is gone; what it is told, its exit code says."""
        expected = self.model.claim(task, Asked(payload, crash, failure))
        child = os.fork()
        if not child:
            try:
                told, _claim = self.told(lambda: self.handles[0].claim(task, **options(payload, crash, failure)))
                os._exit(TOLD.index(told))
            finally:
                os._exit(99)
        _, state = os.waitpid(child, 0)
        told = TOLD[os.waitstatus_to_exitcode(state)]
        if expected == "run":
            assert told is None
            self.model.rows[task].dead = True
            self.grown(task)
        else:
            assert told is (TaskDoneError if expected == "replay" else expected)

    @rule(handle=handles)
    def reopen(self, handle: int) -> None:
        """A closed handle opens by itself at its next use, as another owner; its live claims stay its own."""
        self.handles[handle].close()

    @rule(handle=handles)
    def replace_handle(self, handle: int) -> None:
        self.handles[handle].close()
        self.handles[handle] = Registry(self.path, durability="normal", create=False)

    # --- operators ----------------------------------------------------------------------------------------------

    @rule(handle=handles, task=tasks, payload=payloads)
    def add(self, handle: int, task: str, payload: int) -> None:
        row = self.model.rows.setdefault(task, Row(payload=payload))
        told, _ = self.told(lambda: self.handles[handle].add(task, payload=payload, name="job"))
        assert told is (None if row.payload in {None, payload} else ChecksumMismatchError)

    @rule(handle=handles, task=tasks, verdict=st.sampled_from(["happened", "did-not-happen", "cannot-tell"]))
    def resolve(self, handle: int, task: str, verdict: Any) -> None:
        self.results += 1
        status = {"happened": "succeeded", "did-not-happen": "failed", "cannot-tell": "unknown"}[verdict]
        result = self.results
        act = lambda: self.handles[handle].resolve(task, verdict, result=result)  # noqa: E731
        if self.settle(task, act, verdict, {"unknown"}, status) and status == "succeeded":
            self.model.rows[task].result = result

    @rule(handle=handles, task=tasks)
    def retry(self, handle: int, task: str) -> None:
        self.settle(task, lambda: self.handles[handle].retry(task), "retry", {"failed"}, "failed")

    @rule(handle=handles, task=tasks)
    def cancel(self, handle: int, task: str) -> None:
        allowed = {"pending", "failed", "unknown"}
        self.settle(task, lambda: self.handles[handle].cancel(task), "cancelled", allowed, "cancelled")

    @rule(handle=handles, task=tasks)
    def skip(self, handle: int, task: str) -> None:
        self.settle(task, lambda: self.handles[handle].skip(task, "why"), "skipped", {"pending"}, "skipped")

    def settle(self, task: str, act: Callable[[], object], verdict: str, allowed: set[str], status: str) -> bool:
        row = self.model.rows.get(task)
        is_allowed = row is not None and ("unknown" if row.dead else row.status) in allowed
        told, _ = self.told(act)
        assert told is (None if is_allowed else TransitionError)
        if row is not None and is_allowed:
            row.status, row.verdict, row.dead = status, verdict, False
        return is_allowed

    @rule(handle=handles, task=tasks, force=st.booleans())
    def forget(self, handle: int, task: str, force: bool) -> None:  # noqa: FBT001 - drawn
        row = self.model.rows.get(task)
        allowed = row is not None and (
            (force and row.dead) if row.status == "running" else (force or row.status != "unknown")
        )
        told, _ = self.told(lambda: self.handles[handle].forget(task, force=force))
        assert told is (None if allowed else TransitionError)
        if allowed:
            del self.model.rows[task]
            self.final.pop(task, None)

    # --- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        """Status, attempts, result and verdict of every task are the model's; final rows never change."""
        for registry in self.handles:
            rows = {task.task_id: task for task in registry.tasks()}
            assert {task: self.seen(row) for task, row in rows.items()} == {
                task: (row.status, row.attempt, row.verdict) for task, row in self.model.rows.items()
            }
            for task, row in rows.items():
                assert row.token <= self.tokens[task]
                if row.status.word in FINAL:
                    assert self.final.setdefault(task, row) == row

    @staticmethod
    def seen(row: Task) -> tuple[str, int, str | None]:
        return row.status.word, row.attempt, None if row.verdict is None else row.verdict.word

    def grown(self, task: str) -> None:
        """The claim that was just granted has a larger token than every one of this task before it."""
        row = self.handles[0].get(task)
        assert row is not None
        assert row.token > self.tokens[task]
        self.tokens[task] = row.token

    @staticmethod
    def told(act: Callable[[], Any], others: tuple[type[BaseException], ...] = ()) -> tuple[Any, Any]:
        """The class of the error that the caller gets, or None; and what it returns."""
        expected: tuple[type[BaseException], ...] = (IdemregError, *others)
        try:
            return None, act()
        except expected as error:
            return type(error), None


# What a forked child is told, by its exit code.
TOLD: list[Any] = [None, ChecksumMismatchError, TaskDoneError, TaskFailedError, TaskRunningError, TaskUnknownError]


def options(payload: int, crash: str, failure: str) -> dict[str, Any]:
    return {
        "payload": payload,
        "name": "job",
        "on_crash": crash,
        "on_failure": failure,
        "max_attempts": ATTEMPTS,
        "unknown_on": MaybeError,
        "release_on": LaterError,
    }


def test_the_words_of_the_model_are_those_of_the_registry() -> None:
    """The model's statuses and verdicts are spelt as the registry's, so that agreeing means something."""
    assert {one.word for one in Status} >= FINAL | {"pending", "failed", "running", "unknown"}
    assert {one.word for one in Verdict} >= {"did-not-happen", "cannot-tell", "retry", "skipped", "cancelled"}


TestRegistry = RegistryMachine.TestCase
# 30 in the quick profile, 1,500 in "long" (HYPOTHESIS_PROFILE=long): each takes as long as many of another test.
TestRegistry.settings = settings(max_examples=settings().max_examples * 3 // 10, stateful_step_count=40)
