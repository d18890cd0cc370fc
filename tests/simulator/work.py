"""What the virtual processes are told to do, and whether the answers that they get are true.

A process carries out its orders one after the other, as a consumer of a queue does; one that dies is started again and
begins with the order that it died at. An answer is held against what the observer has seen between the call and it.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg import (
    ClaimLostError,
    ClockError,
    FinishNotRecordedError,
    IdemregError,
    Registry,
    StoreBusyError,
    StoreError,
    TaskDoneError,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
    TransitionError,
    current_claim,
)
from idemreg.claim import Claim
from idemreg.deciding import Outcome
from idemreg.model import Verdict
from idemreg.options import Verified
from tests.simulator.beside import argument_of, expected_step
from tests.simulator.machine import Doing
from tests.simulator.model import (
    CANCELLED,
    FAILED,
    HAPPENED,
    HOLD,
    PENDING,
    RERUN,
    RUNNING,
    SKIPPED,
    SUCCEEDED,
    UNKNOWN,
    VERIFY,
    Row,
    expected,
)

if TYPE_CHECKING:
    import random

    from idemreg import Task
    from idemreg.base_claim import BaseClaim
    from idemreg.sweeping import Swept
    from tests.simulator.machine import Machine, Process, Style
    from tests.simulator.model import Observer

__all__ = ["Order", "Work"]

POLICIES: Final = {RERUN: "rerun", VERIFY: "verify", HOLD: "hold"}
BUSY_S: Final = 0.02
TASKS: Final = ("a", "b", "c", "d")

FRESH: Final = 0.3  # chance that an order may be about a task of its own

# How often each order is given, of some hundred.
KINDS: Final = (
    ("run", 36),
    ("claim", 14),
    ("batch", 10),
    ("consume", 6),
    ("effect", 10),
    ("resolve", 8),
    ("retry", 3),
    ("forget", 5),
    ("purge", 3),
    ("cancel", 2),
    ("skip", 1),
    ("add", 2),
    ("look", 5),
    ("checkpoint", 2),
    ("reopen", 3),
)
# Where there is recovery, so many of the jobs keep their arguments, and so many orders are sweeps.
KEEPING: Final = 0.8
KEPT_KINDS: Final = frozenset({"run", "claim", "batch", "consume", "effect"})
SWEEPING: Final = 0.35
SWEPT_ENDS: Final = ("return", "return", "fail")  # of the jobs that a sweep runs
# Where there are leases, so many tasks are claimed with one, of so many seconds.
LEASED: Final = 0.7
LEASES_S: Final = (1.0, 1.0, 2.0)
LEASED_KINDS: Final = frozenset({"run", "claim", "effect", "keep", "sweep"})  # a batch has none
# Between two orders, and between two pieces of a job, time passes there; so many times does the heart beat then.
BETWEEN_S: Final = (0.0, 0.0, 0.4, 1.1)
IN_JOB_S: Final = (0.0, 0.4, 0.8, 1.3)
BEFORE_EFFECT_S: Final = (0.0, 1.3, 2.5)  # so that its owner may be late; behind the first effect nobody else writes
BEATS: Final = 0.6
GIVES_UP: Final = 0.5  # so often does a job stop that was told so
MOST_STEPS: Final = 2  # of a job

# What a job does: returns, fails, leaves it open, wants to be put back, is interrupted, or drops its claim.
ENDS: Final = ("return",) * 8 + ("fail", "fail", "open", "back", "stop")


class JobError(Exception):
    """The job has failed."""


class OpenError(Exception):
    """Nobody knows whether the job's effect happened."""


class BackError(Exception):
    """The task is to be put back."""


class StopJob(BaseException):
    """The job is interrupted."""


class Order(NamedTuple):
    """One thing to do."""

    kind: str
    task: str
    end: str
    option: str
    wait: float
    steps: int
    tasks: tuple[str, ...]


class TaskPolicy(NamedTuple):
    """What every call of a task asks for."""

    on_crash: int
    on_failure: str
    max_attempts: int
    lease_s: float  # 0 = none


class Work:
    """The orders of one schedule, and those who carry them out."""

    def __init__(self, machine: Machine, observer: Observer, path: str) -> None:
        self._machine = machine
        self._observer = observer
        self._path = path
        rng = machine.rng
        self.tasks = TASKS[: rng.choice((1, 2, 2, 3, 4))]
        self.style = style = machine.style
        self.policies = defaultdict(lambda: _policy(rng, style), {task: _policy(rng, style) for task in TASKS})
        self.kept_lease_s = rng.choice(LEASES_S) if style.leases and rng.random() < LEASED else None
        self.kept_on_crash = rng.choice((RERUN, RERUN, VERIFY, HOLD))
        self._orders = [_orders(rng, self.tasks, style) for _ in range(rng.choice((2, 2, 2, 3, 3, 4)))]
        self._next = [0] * len(self._orders)
        self._happened: set[str] = set()  # tasks whose job came to its effect in a body that was not ended

    def start(self) -> None:
        """Start a process for each list of orders."""
        self._machine.when_over = self._over
        for slot in range(len(self._orders)):
            self._machine.start(slot, self._main, self._machine.rng.random() * 0.01)

    def _over(self, process: Process) -> None:
        """Who died is started again, or stays away."""
        machine = self._machine
        if machine.violation or machine.is_calm:
            return
        if process.is_dead and process.doing.kind == "keep":
            self._next[process.slot] += 1  # its caller does not come again: that is what its arguments are kept for
        has_more = self._next[process.slot] < len(self._orders[process.slot])
        if process.is_dead and has_more and machine.rng.random() < 0.85:
            machine.start(process.slot, self._main, machine.rng.choice((0.0, 0.001, 0.05)))
        elif not machine.processes:
            machine.is_calm = True
            machine.start(len(self._orders), self._audit)

    def _open(self, process: Process) -> Registry:
        process.registry = Registry(
            self._path,
            create=False,
            busy_timeout=BUSY_S,
            error_detail="message",  # nobody reads the tracebacks of the jobs, and to make one takes as long as a claim
            clock=process.clock,
        )
        return process.registry

    def _main(self, process: Process) -> None:
        slot = process.slot
        self._open(process)
        orders = self._orders[slot]
        while self._next[slot] < len(orders):
            self._carry_out(process, orders[self._next[slot]])
            self._next[slot] += 1
        process.doing = Doing("close")
        assert process.registry is not None
        process.registry.close()

    # --- orders -----------------------------------------------------------------------------------------------------

    def _carry_out(self, process: Process, order: Order) -> None:
        if self.style.leases and (pause := self._machine.rng.choice(BETWEEN_S)):
            process.clock.sleep(pause)
        self._begin(process, order)
        self._machine.events["calls"] += 1
        _Call(self, process, order).carry_out()
        self._machine.step(process, "told")

    def _begin(self, process: Process, order: Order) -> None:
        """What the process may do from now on, for the observer to know."""
        is_kept = order.kind in {"keep", "sweep"}
        process.doing = Doing(
            order.kind,
            order.task,
            order.option,
            "drop" if order.option == "drop" else order.end,
            self.kept_lease_s if is_kept else self.policies[order.task].lease_s * (order.kind in LEASED_KINDS) or None,
            order.option if order.kind == "keep" else None,
        )
        process.begun_ms = self._machine.boot_ms()

    def _audit(self, process: Process) -> None:
        """The last process, alone: nothing is in its way, and what the dead have left is settled."""
        registry = self._open(process).open()
        observer, machine = self._observer, self._machine
        observer.look(process)
        if self.style.recovers:
            sweep = Order("sweep", "", "return", "", 0, 0, ())
            self._begin(process, sweep)
            _Call(self, process, sweep).carry_out()
        for task in (*sorted(observer.rows), "last"):
            order = Order("run", task, "return", "", 0, 0, ())
            self._begin(process, order)
            _Call(self, process, order).carry_out()
            row = observer.rows.get(task)
            if row is None or row.status == RUNNING:
                machine.fail(f"{task} is left {row}")
        observer.look(process)
        process.doing = Doing("close")
        registry.close()

    @property
    def machine(self) -> Machine:
        return self._machine

    @property
    def observer(self) -> Observer:
        return self._observer

    @property
    def happened(self) -> set[str]:
        return self._happened


class _Call:
    """One call of the registry, from the order to the judgement of its answer."""

    def __init__(self, work: Work, process: Process, order: Order) -> None:
        assert process.registry is not None
        self.work = work
        self.machine, self.observer = work.machine, work.observer
        self.process = process
        self.registry = process.registry
        self.order = order
        self.since = self.observer.now
        self.begun_at = self.machine.now
        self.begun_ms = self.machine.boot_ms()
        self.tokens: dict[str, int] = {}  # of the bodies that it has entered
        self.claimed: dict[str, int] = {}  # tokens of the claims that it had
        self.lapsed: set[str] = set()  # tasks whose lease was over, as their claim said
        process.call = self

    def carry_out(self) -> None:
        order = self.order
        try:
            getattr(self, order.kind)()
        except (JobError, OpenError, BackError, StopJob) as error:
            if order.task not in self.tokens and not self.tokens:
                self.fail(f"{type(error).__name__} of a job that was not entered")
        except IdemregError as error:
            self.observer.look(self.process)
            self.judge_error(error.task_id or order.task, error)

    def fail(self, what: str) -> None:
        self.machine.fail(f"{self.order.task}: {what} ({self.process}, {self.process.doing})")

    def options_of(self, task: str) -> dict[str, Any]:
        policy = self.work.policies[task]
        options: dict[str, Any] = {
            "on_crash": POLICIES[policy.on_crash],
            "on_failure": policy.on_failure,
            "max_attempts": policy.max_attempts,
            "unknown_on": OpenError,
            "release_on": BackError,
            "name": "j",
        }
        if policy.on_crash == VERIFY:
            options["verify"] = self.verify
        if self.process.doing.lease_s:
            options["lease"] = policy.lease_s
        return options

    def decorated(self) -> Any:
        """The function of the registry that keeps its arguments."""
        process, on_crash = self.process, self.work.kept_on_crash
        if process.decorated is None:
            options: dict[str, Any] = {"unknown_on": OpenError, "release_on": BackError}
            if on_crash == VERIFY:
                options["verify"] = lambda row, **_: process.call.verify(row)

            def job(task: str, n: str) -> Any:
                return process.call.kept_job(task, n)

            process.decorated = self.registry.idempotent(
                lambda task, n: task,
                name="j",
                checksum=_nothing,
                recover=True,
                on_crash=POLICIES[on_crash],  # type: ignore[arg-type]
                lease=self.work.kept_lease_s,
                **options,
            )(job)
        return process.decorated

    # --- what the user's code does ----------------------------------------------------------------------------------

    def body(self, claim: BaseClaim, end: str, *, in_transaction: bool = False) -> Any:
        """The body of a job."""
        machine, process = self.machine, self.process
        task, token = claim.task_id, claim.token
        self.tokens[task] = self.claimed[task] = token
        body = self.observer.enter(process, task, token)
        try:
            if self.work.style.steps and not in_transaction:
                self.steps_of(claim)
            for _ in range(self.order.steps):
                machine.step(process, "in the job")
            if process.doing.lease_s and not in_transaction:
                self.time_passes(claim)
        except IdemregError:
            self.observer.interrupted.add((task, token))
            self.observer.leave(body)
            raise
        self.work.happened.add(task)
        if self.order.steps > 1:
            process.clock.sleep(0.001)
        self.observer.leave(body)
        match end:
            case "fail":
                raise JobError
            case "open":
                raise OpenError
            case "back":
                raise BackError
            case "stop":
                raise StopJob
        return expected(task, token, is_settled=False)

    def steps_of(self, claim: Any) -> None:
        """The steps of a job, each of which does nothing twice."""
        for number in range(min(self.order.steps, MOST_STEPS)):
            name, since = f"s{number}", self.observer.now
            with claim.step(name) as step:
                if step.done:
                    self.replayed_step(claim.task_id, name, step.result, since)
                    continue
                self.observer.enter_step(self.process, claim.task_id, claim.token, name)
                self.machine.step(self.process, "in the step")
                step.result = expected_step(name, claim.token)
            self.saved_step(claim, name)

    def replayed_step(self, task: str, name: str, result: Any, since: int) -> None:
        self.observer.look(self.process)
        row = self.observer.step_since(since, task, name, result["n"])
        if row is None or result != expected_step(name, result["n"]):
            self.fail(
                f"step {name} of {task} is done, with {result}, and was saved as {self.observer.step(task, name)}"
            )
        else:
            self.observer.require(task, row)

    def saved_step(self, claim: BaseClaim, name: str) -> None:
        """It was told that the step is saved."""
        self.observer.look(self.process)
        self.process.in_step = None
        saved, task = self.observer.step(claim.task_id, name), claim.task_id
        is_late = self.process.may_be_taken_for_dead or self.observer.is_late(task, claim.token)
        if saved is not None:
            self.observer.require(task, self.observer.rows[task])
        elif not is_late:  # whoever has the task by now may have forgotten it
            self.fail(f"step {name} of {task} is told to be saved, and is not")

    def time_passes(self, claim: BaseClaim) -> None:
        """So much that a lease may be over; and its heart beats, or does not."""
        for _ in range(self.order.steps):
            if pause := self.machine.rng.choice(IN_JOB_S):
                self.machine.step(self.process, "in the job", pause)
            if self.machine.rng.random() < BEATS:
                self.process.heart.step()
            self.check(claim)

    def check(self, claim: BaseClaim) -> None:
        """What the claim says of itself is true, or its job is told to stop."""
        task, token = claim.task_id, claim.token
        try:
            claim.check()
        except ClaimLostError:
            self.observer.look(self.process)
            if task not in self.lapsed and not self.observer.is_late(task, token):
                self.fail("told that its claim is lost, and has it")
            self.lapsed.add(task)
            if self.machine.rng.random() < GIVES_UP:
                raise
            return
        self.observer.look(self.process)
        if self.observer.is_late(task, token) and not self.process.may_be_taken_for_dead:
            self.fail("told that it has its claim, and does not")

    def job(self) -> Any:
        """As a function that the registry calls."""
        return self.body(current_claim(), self.order.end)

    def kept_job(self, task: str, n: str) -> Any:
        """As a function that is called with arguments which the file keeps."""
        claim = current_claim()
        self.observer.look(self.process)
        row = self.observer.rows.get(task)
        is_its = row is not None and (row.status, row.token) == (RUNNING, claim.token)
        if row is not None and is_its and (row.kept is None or argument_of(row.kept) != n):
            self.fail(f"{task} is called with {n}, and keeps {row.kept}")
        if claim.task_id != task:
            self.fail(f"{task} is called under the claim of {claim.task_id}")
        return self.body(claim, self.order.end)

    def verify(self, row: Task) -> Any:
        """The hook knows the truth, or does not."""
        task = row.task_id
        self.machine.step(self.process, "in the hook")
        if self.machine.rng.random() < 0.2:
            return None
        if task in self.work.happened:
            return Verified(Verdict.HAPPENED, {"settled": task})
        return False

    # --- the calls --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        task = self.order.task
        outcome = self.registry.run(task, self.job, wait=self.order.wait, **self.options_of(task))
        self.judge(task, outcome)

    def claim(self) -> None:
        task, end = self.order.task, self.order.end
        claim = self.registry.claim(task, wait=self.order.wait, **self.options_of(task))
        if self.order.option == "drop":
            self.body(claim, "return")
            del claim
            return
        with claim:
            claim.result = self.body(claim, end)
        self.told(task, claim.token)

    def effect(self) -> None:
        task = self.order.task
        options = {**self.options_of(task), "on_crash": "rerun"}
        options.pop("verify", None)
        with self.registry.claim(task, **options) as claim:
            self.claimed[task] = claim.token
            if claim.options.limits is not None and (pause := self.machine.rng.choice(BEFORE_EFFECT_S)):
                self.process.clock.sleep(pause)
            with claim.transaction() as transaction:
                transaction.execute("INSERT INTO effect VALUES (?, ?)", (task, claim.token))
                claim.result = self.body(claim, self.order.end, in_transaction=True)
        self.told(task, claim.token)

    def keep(self) -> None:
        """A call that keeps its arguments, for a sweep to run it again."""
        task = self.order.task
        self.judge(task, self.decorated().call(task, self.order.option))

    def sweep(self) -> None:
        """Each task of a dead owner is settled or run again, unless somebody kept the sweep from it."""
        self.decorated()
        self.observer.look(self.process)
        dead = {task: row for task, row in self.observer.rows.items() if self.must_be_swept(row)}
        for one in self.registry.sweep():
            self.observer.look(self.process)
            self.swept(one)
        for task, row in dead.items():
            is_left = (now := self.observer.rows.get(task)) is not None and now[:2] == row[:2]
            if is_left and not self.machine.stood_still(self.begun_at, BUSY_S / 2, self.process):
                self.fail(f"a sweep has left {task} as it was: {row}")

    def must_be_swept(self, row: Row) -> bool:
        holder = self.machine.owner_of.get(row.owner or 0)
        if row.status != RUNNING or holder is None or not holder.is_dead or row.note is not None:
            return False
        return row.on_crash != RERUN or row.kept is not None

    def swept(self, one: Swept) -> None:
        task, error = one.task_id, one.error
        if one.outcome is not None:
            self.judge(task, one.outcome)
        elif isinstance(error, IdemregError):
            self.judge_error(error.task_id or task, error)
        elif error is not None and task not in self.tokens:
            self.fail(f"{error!r} of {task}, whose job was not entered")
        elif not self.observer.was(self.since, task, int(one.status)):
            self.fail(f"{task} was swept to {one.status.word}, which it was not")

    def batch(self) -> None:
        tasks = self.order.tasks
        options = self.options_of(tasks[0])
        answers = self.registry.claim_many([(task, None) for task in tasks], wait=self.order.wait, **options)
        ended = []
        for task, answer in zip(tasks, answers, strict=True):
            if not isinstance(answer, Claim):
                self.answered(task, answer)
                continue
            try:
                answer.enter()
                ended.append((answer, self.body(answer, self.order.end)))
            except (JobError, OpenError, BackError) as error:
                with self.judging(task):
                    answer.fail(error)
        for (claim, _), answer in zip(ended, self.registry.finish_many(ended), strict=True):
            self.answered(claim.task_id, answer)

    def consume(self) -> None:
        tasks = self.order.tasks
        options = self.options_of(tasks[0])
        for handled in self.registry.consume(tasks, lambda _: self.job(), task_id=str, payload=_nothing, **options):
            self.observer.look(self.process)
            if handled.outcome is not None:
                self.judge(handled.message, handled.outcome)
            elif isinstance(handled.error, IdemregError):
                self.judge_error(handled.message, handled.error)
            elif handled.message not in self.tokens:
                self.fail(f"{handled.error!r} of a job that was not entered")

    def resolve(self) -> None:
        task, verdict = self.order.task, self.order.option
        result = {"settled": task} if verdict == "happened" else None
        self.settled(self.registry.resolve(task, verdict, result=result))  # type: ignore[arg-type]

    def retry(self) -> None:
        self.settled(self.registry.retry(self.order.task))

    def cancel(self) -> None:
        self.settled(self.registry.cancel(self.order.task))

    def skip(self) -> None:
        self.settled(self.registry.skip(self.order.task, "not wanted"))

    def add(self) -> None:
        self.registry.add(self.order.task, name="j")

    def forget(self) -> None:
        self.registry.forget(self.order.task, force=self.order.option == "force")
        self.observer.look(self.process)
        self.observer.require(self.order.task, None)

    def purge(self) -> None:
        with contextlib.suppress(ClockError):
            self.registry.purge(older_than=0)

    def look(self) -> None:
        for task in self.registry.tasks():
            self.observer.look(self.process)
            if not self.observer.was(self.since, task.task_id, int(task.status)):
                self.fail(f"listed as {task.status.word}, which it was not")
        self.registry.get(self.order.task)
        self.registry.count()

    def checkpoint(self) -> None:
        self.registry.checkpoint("TRUNCATE" if self.order.option == "happened" else "PASSIVE")

    def reopen(self) -> None:
        self.registry.close()

    # --- judging ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def judging(self, task: str) -> Any:
        try:
            yield
        except IdemregError as error:
            self.observer.look(self.process)
            self.judge_error(task, error)

    def answered(self, task: str, answer: Any) -> None:
        self.observer.look(self.process)
        if isinstance(answer, Outcome):
            self.judge(task, answer)
        elif isinstance(answer, IdemregError):
            self.judge_error(task, answer)
        else:
            self.fail(f"no answer but {answer!r}")

    def told(self, task: str, token: int) -> None:
        """Its own success is stored."""
        self.observer.look(self.process)
        rows = [row for row in self.observer.was(self.since, task, SUCCEEDED) if row.token == token]
        if not rows:
            self.fail("a success that was told is not stored")
        else:
            self.observer.require(task, rows[0])

    def judge(self, task: str, outcome: Outcome[Any]) -> None:
        self.observer.look(self.process)
        rows = [row for row in self.observer.was(self.since, task, SUCCEEDED) if row.token == outcome.token]
        if not rows:
            self.fail(f"{outcome} of a task that did not succeed so")
            return
        wanted = expected(task, outcome.token, is_settled=rows[-1].verdict == HAPPENED)
        if outcome.result != wanted:
            self.fail(f"the result is {outcome.result!r}, not {wanted!r}")
        if outcome.replayed == (self.tokens.get(task) == outcome.token):
            self.fail(f"{outcome} says that it is a replay, or that it is none")
        self.observer.require(task, rows[-1])

    def settled(self, task: Any) -> None:
        self.observer.look(self.process)
        row = self.observer.rows.get(task.task_id)
        rows = [row for row in self.observer.was(self.since, task.task_id, int(task.status)) if row.token == task.token]
        if not rows:
            self.fail(f"settled as {task.status.word}, which it is not: {row}")
        else:
            self.observer.require(task.task_id, rows[-1])

    def judge_error(self, task: str, error: IdemregError) -> None:
        problem = self.wrong(task, error)
        if problem:
            self.fail(f"{type(error).__name__} ({error}) for {task}: {problem}")

    def wrong(self, task: str, error: IdemregError) -> str:
        """What is untrue about the error."""
        was = self.observer.was
        match error:
            case TaskRunningError():
                return "" if any(map(self.may_run, was(self.since, task, RUNNING))) else "nobody runs it"
            case TaskUnknownError():
                return "" if was(self.since, task, UNKNOWN) else "it is not unknown"
            case TaskFailedError():
                return "" if was(self.since, task, FAILED) else "it has not failed"
            case TaskDoneError():
                return "" if was(self.since, task, SUCCEEDED, SKIPPED, CANCELLED) else "it is not done"
            case TransitionError():
                return "it was allowed" if self.observer.stayed(self.since, task, self.allowed()) else ""
            case ClaimLostError():
                is_lost = task in self.lapsed or self.observer.is_late(task, self.claimed.get(task, 0))
                return "" if is_lost or self.process.may_be_taken_for_dead else "it was not lost"
            case FinishNotRecordedError() | StoreBusyError():
                return (
                    "" if self.machine.stood_still(self.begun_at, BUSY_S / 2, self.process) else "nobody is in the way"
                )
            case StoreError():
                return f"no fault of the store: {error.__cause__!r}"
        return "nothing calls for it"

    def allowed(self) -> tuple[int, ...]:
        """In which statuses a task may be changed so, whoever has it."""
        some = {
            "resolve": (UNKNOWN,),
            "retry": (FAILED,),
            "skip": (PENDING,),
            "cancel": (PENDING, FAILED, UNKNOWN),
            "forget": (PENDING, FAILED, SUCCEEDED, SKIPPED, CANCELLED),
        }[self.order.kind]
        return (*some, UNKNOWN) if self.order.option == "force" else some

    def may_run(self, row: Row) -> bool:
        """Whether somebody may be told that the task runs: its owner and its lease live, or did as the call began."""
        if self.observer.has_expired(row, self.begun_ms):
            return False
        holder = self.machine.owner_of.get(row.owner or 0)
        return holder is not None and (not holder.is_dead or holder.died_at >= self.begun_at)


def _nothing(*_: object, **__: object) -> None:
    return None


def _policy(rng: random.Random, style: Style) -> TaskPolicy:
    return TaskPolicy(
        rng.choice((HOLD, HOLD, RERUN, RERUN, VERIFY)),
        rng.choice(("retry", "retry", "hold")),
        rng.choice((10, 10, 2)),
        rng.choice(LEASES_S) if style.leases and rng.random() < LEASED else 0,
    )


def _orders(rng: random.Random, tasks: tuple[str, ...], style: Style) -> list[Order]:
    kinds = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS], k=rng.choice((2, 2, 3, 3, 4, 6)))
    if style.recovers:
        kinds = [_recovering(rng, kind) for kind in kinds]
    return [_order(rng, kind, tasks) for kind in kinds]


def _recovering(rng: random.Random, kind: str) -> str:
    if rng.random() < SWEEPING:
        return "sweep"
    return "keep" if kind in KEPT_KINDS and rng.random() < KEEPING else kind


def _order(rng: random.Random, kind: str, tasks: tuple[str, ...]) -> Order:
    if rng.random() < FRESH:
        tasks = (*tasks, f"n{rng.randrange(100)}")
    option = ""
    if kind in {"resolve", "checkpoint"}:
        option = rng.choice(("happened", "did-not-happen", "did-not-happen", "cannot-tell"))
    elif kind == "forget":
        option = rng.choice(("", "force"))
    elif kind == "claim" and rng.random() < 0.1:
        option = "drop"
    elif kind == "keep":
        option = f"n{rng.randrange(1_000)}"
    some = tuple(rng.sample(tasks, rng.randint(1, len(tasks))))
    return Order(
        kind,
        rng.choice(tasks),
        rng.choice(SWEPT_ENDS if kind == "sweep" else ENDS),
        option,
        rng.choice((0.0, 0.0, 0.01, 0.1)),
        rng.choice((1, 1, 2, 4) if kind in {"keep", "sweep"} else (0, 1, 1, 2, 4)),
        some,
    )
