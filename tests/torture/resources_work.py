"""One process of a cycle of `resources`: calls a registry while its disk, its descriptors or its limits come and go.

It does what it is told, line by line, and reports each call: what was entered, and what its caller was told. What
breaks the promise is found where it can be seen: here by the caller, in `resources_cycle` over all processes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import time
from random import Random
from typing import TYPE_CHECKING, Any, Final

from idemreg import (
    Claim,
    FinishNotRecordedError,
    IdemregError,
    Outcome,
    Registry,
    Status,
    StoreError,
    TaskRunningError,
    TaskUnknownError,
    current_claim,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Worker", "audit", "result_of", "work"]

JOB: Final = "job"
BUSY_S: Final = 1.0
HANGS_S: Final = 5.0  # what no call may take
SHARED: Final = 12  # tasks that the processes run against one another
LONGEST: Final = 3_000  # characters of a result
PLAIN: Final = frozenset({"begin", "finish", "give", "open", "rest"})  # orders without a number
FREE_MOST: Final = 8  # descriptors that are left
ROOM: Final = 64  # descriptors that are taken at most


def result_of(task: str, token: int) -> str:
    """What the job of a claim returns: the same whoever asks, and often too long for the row."""
    return f"{task}#{token}#" + "x" * (token * 977 % LONGEST)


class Worker:
    """The calls of one process.

    ``style``: its registry stays open ("lives"), is closed behind each call ("visits"), or behind some of them.
    """

    def __init__(
        self, database: str, name: str, style: str, seed: int, report: Callable[[dict[str, Any]], None]
    ) -> None:
        self.name, self.style, self.report = name, style, report
        self.chance = Random(seed)
        self.number = 0
        self.taken: list[int] = []
        self.limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.done: list[str] = []
        self.unrecorded: list[str] = []
        self.begun: list[Claim] = []
        self.at_first = descriptors()
        self.registry = Registry(database, busy_timeout=BUSY_S)

    # --- one call -------------------------------------------------------------------------------------------------

    def call(self) -> None:
        """Any of them; says what it was told."""
        kinds: list[Callable[[], None]] = [self.new, self.new, self.claim, self.batch, self.shared, self.look]
        if self.done:
            kinds.append(self.replay)
        if self.unrecorded:
            kinds += [self.again, self.again]
        kind = self.chance.choice(kinds)
        begun = time.monotonic()
        kind()
        if (took := time.monotonic() - begun) > HANGS_S:
            self.wrong(f"{kind.__name__} took {took:.1f} s")
        if self.style == "visits" or (self.style == "comes and goes" and self.chance.random() < 0.3):
            self.registry.close()

    def new(self, *, must: bool = False) -> None:
        """A task that nobody had. ``must``: it has to succeed."""
        self.number += 1
        self.run(f"{self.name}-{self.number}", self.chance.choice(("hold", "rerun")), must=must)

    def shared(self) -> None:
        self.run(f"shared-{self.chance.randrange(SHARED)}", "hold")

    def again(self) -> None:
        """What could not be stored: it did run, and must not run again."""
        self.run(self.chance.choice(self.unrecorded), "hold", may_enter=False)

    def replay(self) -> None:
        self.run(self.chance.choice(self.done), "hold", may_enter=False)

    def look(self) -> None:
        with self.told("get", "", []):
            self.registry.get(self.chance.choice(self.done) if self.done else "nobody")

    def run(self, task: str, on_crash: str, *, must: bool = False, may_enter: bool = True) -> None:
        entered: list[int] = []

        def job() -> str:
            entered.append(current_claim().token)
            return result_of(task, entered[0])

        with self.told("run", task, entered, must=must):
            outcome = self.registry.run(task, job, name=JOB, on_crash=on_crash)  # type: ignore[arg-type]
            self.answered(task, outcome, is_new=bool(entered))
        if entered and not may_enter:
            self.wrong(f"{task}: ran again")

    def claim(self) -> None:
        self.number += 1
        task = f"{self.name}-{self.number}"
        entered: list[int] = []
        with self.told("claim", task, entered):
            with self.registry.claim(task, name=JOB) as claim:
                entered.append(claim.token)
                claim.result = result_of(task, claim.token)
            self.acknowledged(task, claim.token)

    def begin(self) -> None:
        """A claim that `finish` ends, while all is there; it outlives the close, so that the next call opens anew."""
        self.number += 1
        task = f"{self.name}-{self.number}"
        with self.told("begin", task, [], must=True):
            self.begun.append(self.registry.claim(task, name=JOB))
        self.registry.close()

    def finish(self) -> None:
        """End what was begun."""
        while self.begun:
            claim = self.begun.pop()
            with self.told("finish", claim.task_id, [claim.token]):
                claim.succeed(result_of(claim.task_id, claim.token))
                self.acknowledged(claim.task_id, claim.token)

    def batch(self) -> None:
        self.number += 1
        tasks = [f"{self.name}-{self.number}-{part}" for part in range(3)]
        with self.told("batch", "", []):
            answers = self.registry.claim_many([(task, None) for task in tasks], name=JOB)
            claims = [answer for answer in answers if isinstance(answer, Claim)]
            inside = []
            for claim in claims:
                with self.told("enter", claim.task_id, []):
                    claim.enter()
                    inside.append((claim, result_of(claim.task_id, claim.token)))
            for (claim, _), answer in zip(inside, self.registry.finish_many(inside) if inside else (), strict=True):
                self.tell(claim.task_id, "entered", claim.token)
                with self.told("end", claim.task_id, [claim.token]):
                    if isinstance(answer, IdemregError):
                        raise answer
                    self.acknowledged(claim.task_id, answer.token)

    # --- what a caller is told ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def told(self, kind: str, task: str, entered: list[int], *, must: bool = False) -> Any:
        """Around a call: its error is one of the promised kinds, and fits to whether the body was entered."""
        error: BaseException | None = None
        try:
            yield
        except FinishNotRecordedError as caught:
            error = caught
            self.unrecorded.append(task)
            if not entered:
                self.wrong(f"{task}: {caught!r}, and its body was not entered")
            elif caught.result != result_of(task, entered[0]):
                self.wrong(f"{task}: {caught!r} has the result {str(caught.result)[:40]!r}")
            self.tell(task, "entered", entered[0])
            self.tell(task, "unrecorded", entered[0])
        except (StoreError, TaskRunningError, TaskUnknownError) as caught:
            error = caught
            if entered:
                self.wrong(f"{task}: its body was entered, and its caller got {caught!r}")
            self.tell(task, f"{kind}: {type(caught).__name__}")
        except Exception as caught:  # noqa: BLE001 - any other is a finding
            error = caught
            self.wrong(f"{task}: {kind} raised {causes(caught)}")
        if must and error is not None:
            self.wrong(f"{task}: all is there again, and the call got {causes(error)}")

    def answered(self, task: str, outcome: Outcome[Any], *, is_new: bool) -> None:
        if is_new:
            self.acknowledged(task, outcome.token)
        if outcome.replayed == is_new or outcome.result != result_of(task, outcome.token):
            self.wrong(f"{task}: got {str(outcome)[:80]}, {'entered' if is_new else 'not entered'}")

    def acknowledged(self, task: str, token: int) -> None:
        self.done.append(task)
        self.tell(task, "entered", token)
        self.tell(task, "ended", token)

    def tell(self, task: str, what: str, token: int = 0) -> None:
        self.report({"task": task, "what": what, "token": token})

    def wrong(self, text: str) -> None:
        self.report({"wrong": f"{self.name} ({self.style}): {text}"})

    # --- orders ---------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Close while all is there: no descriptor is left then. A claim that has not ended would keep some."""
        self.registry.close()
        gc.collect()
        if (left := descriptors() - self.at_first) > 0:
            self.wrong(f"{left} descriptors are left behind a close")
            self.at_first += left

    def open(self) -> None:
        """Open anew, or fail at the descriptor that is the first not to be had."""
        self.registry.close()
        self.look()

    def take(self, free: int) -> None:
        """Take all descriptors but ``free`` of them."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + ROOM, self.limit[1]))
        with contextlib.suppress(OSError):
            while True:
                self.taken.append(os.dup(0))
        for _ in range(min(free, len(self.taken))):
            os.close(self.taken.pop())

    def give(self) -> None:
        while self.taken:
            os.close(self.taken.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limit)


def causes(error: BaseException) -> str:
    """An error with what it came from."""
    chain = [repr(error)]
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
        chain.append(repr(error))
    return " from ".join(chain)


def descriptors() -> int:
    """How many are open; without one to look with, where there is none."""
    return sum(is_open(fd) for fd in range(512))


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def work(database: str, name: str, style: str, seed: int, orders: int, reports: int) -> None:
    """Carry out orders, a line each, until there are no more."""

    def report(what: dict[str, Any]) -> None:
        os.write(reports, json.dumps(what).encode() + b"\n")

    worker = Worker(database, name, style, seed, report)
    for kind in (worker.batch, worker.claim, worker.look):  # Python reads their modules: without descriptors it cannot
        kind()
    with open(orders, encoding="utf-8", closefd=False) as lines:
        for line in lines:
            order, number = json.loads(line)
            if order == "call":
                for _ in range(number):
                    worker.call()
                    report({"called": 1})
            elif order == "prove":
                worker.new(must=True)
                if worker.unrecorded:
                    worker.again()
            elif order == "take":
                worker.take(number)
            else:
                assert order in PLAIN, order
                getattr(worker, order)()
            report({"obeyed": order})
    worker.rest()


def audit(database: str, reports: list[dict[str, Any]]) -> list[str]:
    """What a new process finds, of all that the others were told."""
    wrong = []
    told: dict[str, dict[str, list[int]]] = {}
    for one in reports:
        told.setdefault(one["task"], {}).setdefault(one["what"], []).append(one["token"])
    with Registry(database, create=False) as registry:
        for task, facts in told.items():
            entered, ended, unrecorded = (facts.get(what, []) for what in ("entered", "ended", "unrecorded"))
            if not entered:
                continue
            if len(set(entered)) > 1:
                wrong.append(f"{task}: entered {len(set(entered))} times")
            row = registry.get(task)
            if row is None or row.token < max(entered):
                wrong.append(f"{task}: entered with token {max(entered)}, and its row is {row}")
            elif ended and (row.status is not Status.SUCCEEDED or row.token != ended[-1]):
                wrong.append(f"{task}: its success was acknowledged, and it is {row.status.word}")
            elif unrecorded and row.status not in {Status.UNKNOWN, Status.SUCCEEDED}:
                wrong.append(f"{task}: its end could not be recorded, and it is {row.status.word}")
    return wrong
