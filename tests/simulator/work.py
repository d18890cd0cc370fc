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
from idemreg.model import Outcome, Verdict
from idemreg.options import Verified
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
    from tests.simulator.machine import Machine, Process
    from tests.simulator.model import Observer

__all__ = ["Order", "Work"]

POLICIES: Final = {RERUN: "rerun", VERIFY: "verify", HOLD: "hold"}
BUSY_S: Final = 0.02
TASKS: Final = ("a", "b", "c", "d")

FRESH: Final = 0.3  # chance that an order may be about a task of its own

# How often each order is given, of some hundred.
KINDS: Final = (
    ("run", 40),
    ("claim", 14),
    ("batch", 10),
    ("consume", 6),
    ("effect", 6),
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


class Work:
    """The orders of one schedule, and those who carry them out."""

    def __init__(self, machine: Machine, observer: Observer, path: str) -> None:
        self._machine = machine
        self._observer = observer
        self._path = path
        rng = machine.rng
        self.tasks = TASKS[: rng.choice((1, 2, 2, 3, 4))]
        self.policies = defaultdict(lambda: _policy(rng), {task: _policy(rng) for task in TASKS})
        self._orders = [_orders(rng, self.tasks) for _ in range(rng.choice((2, 2, 2, 3, 3, 3, 4, 5)))]
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
        process.doing = Doing(order.kind, order.task, order.option, "drop" if order.option == "drop" else order.end)
        self._machine.events["calls"] += 1
        _Call(self, process, order).carry_out()
        self._machine.step(process, "told")

    def _audit(self, process: Process) -> None:
        """The last process, alone: nothing is in its way, and what the dead have left is settled."""
        registry = self._open(process).open()
        observer, machine = self._observer, self._machine
        observer.look(process)
        for task in (*sorted(observer.rows), "last"):
            order = Order("run", task, "return", "", 0, 0, ())
            process.doing = Doing("run", task)
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
        self.tokens: dict[str, int] = {}  # of the bodies that it has entered
        self.options: dict[str, Any] = {}

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
        return options

    # --- what the user's code does ----------------------------------------------------------------------------------

    def body(self, task: str, token: int, end: str) -> Any:
        """The body of a job."""
        machine, process = self.machine, self.process
        self.tokens[task] = token
        body = self.observer.enter(process, task, token)
        for _ in range(self.order.steps):
            machine.step(process, "in the job")
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

    def job(self) -> Any:
        """As a function that the registry calls."""
        claim = current_claim()
        return self.body(claim.task_id, claim.token, self.order.end)

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
            self.body(task, claim.token, "return")
            del claim
            return
        with claim:
            claim.result = self.body(task, claim.token, end)
        self.told(task, claim.token)

    def effect(self) -> None:
        task = self.order.task
        options = {**self.options_of(task), "on_crash": "rerun"}
        options.pop("verify", None)
        with self.registry.claim(task, **options) as claim, claim.transaction() as transaction:
            transaction.execute("INSERT INTO effect VALUES (?, ?)", (task, claim.token))
            claim.result = self.body(task, claim.token, self.order.end)
        self.told(task, claim.token)

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
                ended.append((answer, self.body(task, answer.token, self.order.end)))
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
                return "" if self.process.may_be_taken_for_dead else "it was not lost"
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
        """Whether somebody may be told that the task runs: its owner lives; or lived, as the call began."""
        holder = self.machine.owner_of.get(row.owner or 0)
        return holder is not None and (not holder.is_dead or holder.died_at >= self.begun_at)


def _nothing(_message: object) -> None:
    return None


def _policy(rng: random.Random) -> TaskPolicy:
    return TaskPolicy(
        rng.choice((HOLD, HOLD, RERUN, RERUN, VERIFY)),
        rng.choice(("retry", "retry", "hold")),
        rng.choice((10, 10, 2)),
    )


def _orders(rng: random.Random, tasks: tuple[str, ...]) -> list[Order]:
    kinds = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS], k=rng.choice((2, 3, 3, 4, 5, 8)))
    return [_order(rng, kind, tasks) for kind in kinds]


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
    some = tuple(rng.sample(tasks, rng.randint(1, len(tasks))))
    return Order(
        kind,
        rng.choice(tasks),
        rng.choice(ENDS),
        option,
        rng.choice((0.0, 0.0, 0.01, 0.1)),
        rng.choice((0, 1, 1, 2, 4)),
        some,
    )
