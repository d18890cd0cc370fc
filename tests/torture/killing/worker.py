"""What each process does until it is killed: calls of the public API on a few tasks that all processes share.

Which call comes next is decided by chance and by a seed. Every call is told to the witness before and after, and so is
every body, by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import struct
import threading
import traceback
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from idemreg import (
    ClaimLostError,
    FinishNotRecordedError,
    Outcome,
    Registry,
    StoreBusyError,
    Task,
    TaskDoneError,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
    TransitionError,
    Verdict,
    Verified,
    current_claim,
    faults,
)
from idemreg.model import Status
from idemreg.store import End, Recorded
from idemreg.sweeping import RERUN
from tests.torture.killing.chances import (
    BODY,
    EVERY_TIME,
    FOR_SWEEPS,
    IN_STEP,
    INTERRUPTED,
    LATE_IN_BODY,
    OPTIONS,
    POLICIES,
    STEPS,
    SWEEP,
    VERDICTS,
    WITH_STEPS,
    JobFailedError,
    JobInterruptedError,
    JobLaterError,
    JobUnsureError,
    draw_call,
    draw_end,
    is_left,
    kind_of,
    task_id,
)
from tests.torture.killing.directed import ANY_BODY, NOWHERE, PLACES, Place, bit_of
from tests.torture.killing.estate import Estate
from tests.torture.killing.witness import Witness

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator

    from idemreg import Claim, Swept

__all__ = ["EFFECTS", "SHARED", "WIDTH", "Orders", "Worker"]

BUSY_S: Final = 10
LEASE_S: Final = 3_600  # longer than any run: a lease must change nothing about the dead, nor about the stopped
SHARED: Final = struct.Struct("<QQQ")  # the first task that is worked on, whether all is over, where one is to die
WIDTH: Final = 3  # so many tasks are worked on at a time
EFFECTS: Final = "CREATE TABLE IF NOT EXISTS effect (task TEXT, token INTEGER)"


class Orders(NamedTuple):
    """How one process is to live."""

    process: int
    seed: int
    path: str
    threads: int
    durability: str
    point: str  # at which it kills or stops itself; "-" = nowhere
    passes: int  # when it comes there for this time
    action: str  # kill, stop, or unlock: lose its locks, and stop
    is_sweeper: bool = False
    has_namesakes: bool = False  # on other sides: one of them is to ask for what it leaves


class Worker:
    """One process."""

    def __init__(self, orders: Orders, witness_fd: int, shared: mmap.mmap) -> None:
        self.orders = orders
        self.witness = Witness(witness_fd, orders.process)
        self.shared = shared
        self.estate = Estate(shared)
        self.registry = Registry(orders.path, durability=orders.durability, busy_timeout=BUSY_S)  # type: ignore[arg-type]
        self.passes = 0
        self.must_leave = False
        self.counting = threading.Lock()
        self.here = threading.local()  # its `thread`: who is in a job that a sweep may have begun
        self.kept = self._kept()

    def _kept(self) -> Callable[[str], Outcome[str]]:
        """The job that any process can run again with the arguments that are kept of it."""

        def job(task: str) -> str:
            if current_claim().task_id != task:
                self.witness.say("trouble", "of", current_claim().task_id, "are kept the arguments", task)
            return self.here.thread.body(STEPS)  # type: ignore[no-any-return]

        options: dict[str, Any] = {"name": "kept", "on_crash": "rerun", "recover": True, **OPTIONS}
        return self.registry.idempotent(lambda task: task, **options)(job).call

    def live(self) -> None:
        """Until all is over, or a kill."""
        warnings.simplefilter("ignore", ResourceWarning)
        places = {place.point: place for place in PLACES}
        for point in {self.orders.point, *places} - {"-", BODY}:
            faults.arm(point, partial(self.passed, point, places.get(point)))
        threads = [threading.Thread(target=_Thread(self, number).live) for number in range(1, self.orders.threads)]
        for thread in threads:
            thread.start()
        _Thread(self, 0).live()
        for thread in threads:
            thread.join()
        faults.disarm()
        self.registry.close()
        self.witness.say("leaving")

    def passed(self, point: str, place: Place | None) -> None:
        """The fault point, or one of a place where somebody may be wanted to die."""
        if place is not None:
            self.die_if_wanted(place)
        if point == self.orders.point:
            self.reached()

    def die_if_wanted(self, place: Place, task: str = "") -> None:
        """The first who comes to a place that is made known. Who has lost its locks shows nothing by its death."""
        first, is_over, wanted = SHARED.unpack_from(self.shared)
        has_heir = not self.orders.has_namesakes or self.estate.is_shared(os.getpid())
        if wanted & bit_of(place) and has_heir and not self.must_leave:
            SHARED.pack_into(self.shared, 0, first, is_over, NOWHERE)  # for one at a time, until it is said again
            self._leave(task)
            self.witness.say("point", "kill", place)
            os.kill(os.getpid(), signal.SIGKILL)

    def reached(self, task: str = "") -> None:
        """The fault point; or a body of the task."""
        with self.counting:
            self.passes += 1
            again = self.orders.action == "stop" and self.orders.point == EVERY_TIME
            if self.passes != self.orders.passes and not again:
                return
        if self.orders.action == "unlock":
            self._lose_locks()
        elif self.orders.action == "kill":
            self._leave(task)
        self.witness.say("point", self.orders.action, self.orders.point)
        os.kill(os.getpid(), signal.SIGKILL if self.orders.action == "kill" else signal.SIGSTOP)

    def _leave(self, task: str) -> None:
        if task and self.orders.has_namesakes:
            self.estate.leave(int(task.rpartition("-")[2]), self.orders.process)

    def _lose_locks(self) -> None:
        """As a careless `os.closerange` would, but for what comes in the place of the descriptor."""
        lock_file = self.registry.store._opening.current.lock_file  # type: ignore[attr-defined]
        fd = os.open(lock_file.path, os.O_RDWR | os.O_CLOEXEC)
        self.must_leave = True
        os.dup2(fd, lock_file.fd, inheritable=False)
        os.close(fd)
        self.witness.say("unlocked")

    @property
    def is_over(self) -> bool:
        return self.must_leave or bool(SHARED.unpack_from(self.shared)[1])

    @property
    def first(self) -> int:
        number: int = SHARED.unpack_from(self.shared)[0]
        return number


class _Thread:
    """One thread of a process, with a chance of its own."""

    def __init__(self, worker: Worker, number: int) -> None:
        orders = worker.orders
        self.worker, self.registry, self.number, self.seed = worker, worker.registry, number, orders.seed
        self.random = random.Random(f"{orders.seed}:{orders.process}:{number}")
        self.calls = 0
        self.is_sweeping = False
        self.stale: dict[str, End] = {}
        self.jobs: dict[str, Callable[[], Outcome[str]]] = {}
        self.last: dict[str, str] = {}  # what the last call of each task was told

    def live(self) -> None:
        self.worker.here.thread = self
        try:
            while not self.worker.is_over:
                self.one()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it must not be
            lines = [*traceback.format_exception(error)][-3:]
            self.worker.witness.say("trouble", repr(error)[:200], *json.dumps(lines).split())

    def say(self, kind: str, *words: object) -> None:
        self.worker.witness.say(kind, self.number, *words)

    def one(self) -> None:
        """One call of the public API, or a few that belong together."""
        estate, left = self.worker.estate, self.worker.estate.left
        if left is not None and estate.is_for(os.getpid()):
            self.ask_for(left)
            return
        number = self.worker.first + self.random.randrange(WIDTH)
        task, kind = task_id(self.seed, number), kind_of(self.seed, number)
        what = draw_call(self.random, self.last.get(task, ""), is_sweeper=self.worker.orders.is_sweeper)
        if left is not None and (what == "sweep" or kind == kind_of(self.seed, left)):
            os.sched_yield()  # that is kept for somebody else
        else:
            self.call(what, kind, task)

    def ask_for(self, left: int) -> None:
        """For what somebody has left; of a batch only where it is one of those at hand."""
        if left >= self.worker.first:
            self.work(kind_of(self.seed, left), task_id(self.seed, left))
        else:
            self.worker.estate.clear()

    def call(self, what: str, kind: str, task: str) -> None:
        match what:
            case "work":
                if not self.is_left(kind, task):
                    self.work(kind, task)
            case "get":
                self.get(task)
            case "resolve":
                self.resolve(task, self.random.choice(VERDICTS))
            case "forget":
                force = self.random.random() < 0.6
                asked = "force" if force else "-"
                self.order("forget", task, asked, lambda: self.registry.forget(task, force=force))
            case "retry":
                self.order("retry", task, "-", lambda: self.registry.retry(task))
            case "late" if task in self.stale:
                self.end_late(task)
            case "sweep":
                self.sweep()

    def is_left(self, kind: str, task: str) -> bool:
        """Whether it is left to whoever sweeps; if its owner is dead, nobody may have called it then."""
        if kind not in FOR_SWEEPS:
            return False
        self.get(task)
        return is_left(self.random, self.last[task])

    def work(self, kind: str, task: str) -> None:
        match kind:
            case "hold":
                self.run(task, kind, self.decorated(task))
            case "rerun":
                self.run(task, kind, lambda: self.registry.run(task, self.body, name="j", on_crash="rerun", **OPTIONS))
            case "leased":
                job = self.body
                self.run(
                    task,
                    kind,
                    lambda: self.registry.run(task, job, name="j", on_crash="hold", lease=LEASE_S, **OPTIONS),
                )
            case "kept":
                self.run(task, kind, lambda: self.worker.kept(task))
            case "steps":
                self.claimed(task, "rerun", lambda claim, result: claim.succeed(result), STEPS)
            case "verify":
                self.run(task, kind, lambda: self.verified(task))
            case "effects":
                self.effects(task)
            case "claim":
                self.claimed(task, "hold", lambda claim, result: claim.succeed(result))
            case _:
                self.batch()

    def result(self) -> str:
        """One that nobody else gives."""
        self.calls += 1
        return f"{self.worker.orders.process}.{self.number}.{self.calls}"

    # --- a job ------------------------------------------------------------------------------------------------------

    def decorated(self, task: str) -> Callable[[], Outcome[str]]:
        if task not in self.jobs:

            def job() -> str:
                return self.body()

            idempotent = self.registry.idempotent(lambda: task, name="j", on_crash="hold", **OPTIONS)
            self.jobs[task] = idempotent(job).call
        return self.jobs[task]

    def verified(self, task: str) -> Outcome[str]:
        return self.registry.run(task, self.body, name="j", on_crash="verify", verify=self.hook, **OPTIONS)

    def run(self, task: str, kind: str, call: Callable[[], Outcome[str]]) -> None:
        with self.told("run", task, POLICIES[kind]) as answer:
            outcome = call()
            answer.extend(_done(outcome) if outcome.replayed else ["recorded"])

    def body(self, steps: int = 0) -> str:
        """What a job does, as it tells itself."""
        error, _, result = self.inside(current_claim(), steps)
        if error is not None:
            raise error(result)
        return result

    def dwell(self, task: str) -> None:
        """Be in a body for a while."""
        for _ in range(self.random.choice((0, 0, 1, 4))):
            os.sched_yield()
        if task in self.stale and self.random.random() < LATE_IN_BODY:
            self.end_late(task)
        self.at_body(task)

    def at_body(self, task: str) -> None:
        """The point inside a body. Who loses its locks begins nothing more, and a sweep would."""
        kind, orders = task.partition("-")[0], self.worker.orders
        if kind not in WITH_STEPS or self.random.random() < IN_STEP:
            self.worker.die_if_wanted(Place(kind, BODY), task)
            self.worker.die_if_wanted(ANY_BODY, task)
        if orders.point == BODY and not (self.is_sweeping and orders.action == "unlock"):
            self.worker.reached(task)

    def hook(self, prior: Task) -> Any:
        """What a verify hook does. It cannot know, so it says anything; and each of it must be taken for the truth."""
        claim_token = self.registry.store.get([prior.task_id])[0]
        assert claim_token is not None
        self.say("hook", prior.task_id, claim_token.token)
        verdict = self.random.choice(VERDICTS)
        result = self.result()
        self.say("verdict", verdict.word, result)
        return Verified(verdict, result=result)

    # --- claims -----------------------------------------------------------------------------------------------------

    def claimed(
        self, task: str, on_crash: Literal["hold", "rerun"], succeed: Callable[[Claim, str], None], steps: int = 0
    ) -> None:
        """Claim it, be in its body, and end it by a call of its own; one more end of it may come late."""
        with self.told("claim", task, on_crash) as answer:
            claim = self.registry.claim(task, name="j", on_crash=on_crash, **OPTIONS)
            answer += ["granted", claim.token, claim.attempt]
        if answer[0] != "granted":
            return
        try:
            error, end, result = self.inside(claim, steps)
        except (ClaimLostError, StoreBusyError) as problem:
            with self.told("finish", task, INTERRUPTED, claim.token) as answer:
                claim.fail(problem)
                answer.append("recorded")
            return
        with self.told("finish", task, end, claim.token, result) as answer:
            if error is not None:
                claim.fail(error())
            else:
                succeed(claim, result)
            answer.append("recorded")
        if answer[0] == "recorded":
            self.stale[task] = End(
                task, claim.token, claim.grant.owner, Status.SUCCEEDED, claim.attempt, json.dumps(result)
            )

    def inside(self, claim: Claim, steps: int = 0) -> tuple[type[BaseException] | None, str, str]:
        self.say("in", claim.task_id, claim.token, claim.attempt)
        try:
            for number in range(steps):
                self.step(claim, f"part-{number}")
        except (ClaimLostError, StoreBusyError):
            self.say("out", INTERRUPTED, "-")
            raise
        self.dwell(claim.task_id)
        error, end = draw_end(self.random, claim.task_id, in_sweep=self.is_sweeping)
        result = self.result()
        self.say("out", end, result)
        return error, end, result

    def step(self, claim: Claim, name: str) -> None:
        """A piece of the job, in either form; what it gives is known before, and to nobody else."""
        task, result = claim.task_id, self.result()

        def piece() -> str:
            self.say("step", task, name, result)
            self.at_body(task)
            return result

        if self.random.random() < 0.5:
            given = claim.run_step(name, piece)
        else:
            with claim.step(name) as step:
                if not step.done:
                    step.result = piece()
            given = step.result
        self.say("stepped", task, name, given)

    def end_late(self, task: str) -> None:
        """End a claim once more that has long ended: somebody else may have the task by now."""
        end = self.stale[task]
        with self.told("late", task, "succeeded", end.token, json.loads(end.result or "")) as answer:
            recorded = self.registry.store.finish_one(end)
            answer.append("recorded" if isinstance(recorded, Recorded) else "lost")

    def effects(self, task: str) -> None:
        """Effects in the same file, which must be there exactly once."""

        def succeed(claim: Claim, result: str) -> None:
            with claim.transaction() as transaction:
                transaction.execute("INSERT INTO effect VALUES (?, ?)", (task, claim.token))
                claim.result = result

        self.claimed(task, "rerun", succeed)

    # --- batches ----------------------------------------------------------------------------------------------------

    def batch(self) -> None:
        """All tasks at hand that are for batches, by one commit; each item counts as a call."""
        first = self.worker.first
        tasks = [task_id(self.seed, n) for n in range(first, first + WIDTH) if kind_of(self.seed, n) == "batch"]
        if not tasks:
            return
        for task in tasks:
            self.say("item", "claim", task, "hold", 0, "-")
        answers = self.registry.claim_many([(task, None) for task in tasks], name="j", on_crash="hold", **OPTIONS)
        claims = []
        for task, got in zip(tasks, answers, strict=True):
            if isinstance(got, Outcome):
                self.got(task, *_done(got))
            elif isinstance(got, Exception):
                self.got(task, _word(got))
            else:
                self.got(task, "granted", got.token, got.attempt)
                claims.append(got)
        # Who has lost its locks meanwhile enters no more of them: others may have done so, who see no process of its.
        chosen = (claim for claim in claims if self.random.random() < 0.8 and not self.worker.must_leave)
        ended = [(claim, self.enter(claim)) for claim in chosen]
        entered = {claim for claim, _ in ended}
        for claim in claims:
            if claim not in entered:
                with self.told("finish", claim.task_id, "released", claim.token) as answer:
                    claim.release()
                    answer.append("recorded")
        if ended:
            self.finish(ended)

    def enter(self, claim: Claim) -> str:
        with self.told("enter", claim.task_id, "-", claim.token) as answer:
            claim.enter()
            answer.append("ok")
        return self.inside(claim)[2]

    def finish(self, ended: list[tuple[Claim, str]]) -> None:
        for claim, result in ended:
            self.say("item", "finish", claim.task_id, "succeeded", claim.token, result)
        for (claim, _), got in zip(ended, self.registry.finish_many(ended), strict=True):
            self.got(claim.task_id, "recorded" if isinstance(got, Outcome) else _word(got))

    def got(self, task: str, *answer: object) -> None:
        self.say("got", task, *answer)
        self.last[task] = str(answer[0])

    # --- more -------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Whatever dead owners have left; what became of each task is told before the sweep has ended."""
        clock = self.registry.clock
        with self.told("sweep", SWEEP, "-") as answer:
            begun, self.is_sweeping = clock.monotonic(), True
            for one in self.registry.sweep():
                self.got(one.task_id, *_became(one))
            self.is_sweeping = False
            # It ends in silence where the file is busy, and has then not looked at all of them.
            answer.append("swept" if clock.monotonic() - begun < BUSY_S else "busy")

    def get(self, task: str) -> None:
        with self.told("get", task, "-") as answer:
            row = self.registry.get(task)
            if row is None:
                answer.append("none")
            else:
                answer.extend((row.status.word, row.token, row.attempt, json.loads(row.result or '"-"')))
                if row.status is Status.SUCCEEDED and task.startswith("kept"):
                    self.look_for_arguments(row)

    def look_for_arguments(self, done: Task) -> None:
        """No final task is ever seen with its arguments, unless it is another's by the time they are looked for."""
        kept = self.registry.store.kept_of(done.task_id)  # type: ignore[attr-defined]
        if kept is not None and (now := self.registry.get(done.task_id)) is not None and now.version == done.version:
            self.worker.witness.say("trouble", "left behind while all go on:", done.task_id)

    def resolve(self, task: str, verdict: Verdict) -> None:
        result = self.result() if verdict is Verdict.HAPPENED else None
        self.order("resolve", task, verdict.word, lambda: self.registry.resolve(task, verdict, result=result), result)

    def order(self, kind: str, task: str, asked: str, call: Callable[[], object], result: str | None = None) -> None:
        with self.told(kind, task, asked, 0, result or "-") as answer:
            call()
            answer.append("ok")

    @contextlib.contextmanager
    def told(self, kind: str, task: str, asked: str, token: int = 0, result: str = "-") -> Iterator[list[Any]]:
        """Tell of a call before and after; its errors are answers."""
        self.say("call", kind, task, asked, token, result)
        clock = self.registry.clock
        begun = clock.monotonic()
        answer: list[Any] = []
        try:
            yield answer
        except (JobFailedError, JobUnsureError, JobLaterError, JobInterruptedError):
            answer[:] = ["recorded"]
        except (TaskDoneError, StoreBusyError) as error:
            answer[:] = _done(error.outcome) if isinstance(error, TaskDoneError) else ["busy"]
            if answer == ["busy"] and clock.monotonic() - begun < BUSY_S:
                self.worker.witness.say("trouble", "busy before its time:", repr(error.__cause__ or error)[:300])
        except Exception as error:  # noqa: BLE001 - what is no answer is raised again
            answer[:] = [_word(error)]
        self.say("said", *answer)
        self.last[task] = answer[0]


def _done(outcome: Outcome[Any] | None) -> list[Any]:
    assert outcome is not None
    return ["done", outcome.token, outcome.attempt, outcome.result]


def _became(one: Swept) -> list[str]:
    if one.did != RERUN:
        return [one.did, one.status.word]
    job_ended = one.error is None or isinstance(one.error, (JobFailedError, JobUnsureError, JobLaterError))
    return ["recorded" if job_ended else _word(one.error)]  # type: ignore[arg-type]


_WORDS: Final[dict[type[Exception], str]] = {
    TaskRunningError: "running",
    TaskUnknownError: "unknown",
    TaskFailedError: "failed",
    ClaimLostError: "lost",
    FinishNotRecordedError: "not-recorded",
    TransitionError: "refused",
    StoreBusyError: "busy",
}


def _word(error: Exception) -> str:
    if (word := _WORDS.get(type(error))) is None:
        raise error
    return word
