"""Conducts: which process is killed or stopped, and when, and who comes in its place; then has the history judged.

It acts on what the witness says and on chance by a seed. Nobody sleeps: what it waits for is the next record.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from tests.torture.killing.audit import prepare
from tests.torture.killing.chances import BODY, EVERY_TIME, task_id
from tests.torture.killing.directed import NOWHERE, Directed, Place
from tests.torture.killing.estate import ESTATE_BYTES, Estate
from tests.torture.killing.heirs import Heirs
from tests.torture.killing.history import COUNTED, History
from tests.torture.killing.linear import find_stuck
from tests.torture.killing.rules import Rules
from tests.torture.killing.witness import records
from tests.torture.killing.worker import SHARED, WIDTH
from tests.torture.trial import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["ASKED", "Conductor", "Plan"]

SILENCE_S: Final = 0.01  # as long as nothing is heard while somebody is stopped: he has what the others wait for
HUSH_S: Final = 0.25  # as long where nobody is known to be: a stop may have come behind the order to go on
HUSHES: Final = 120  # only for a hang
CALLS_OF_TASK: Final = (30, 90)  # after so many another task comes in its place
CALLS_BETWEEN: Final = (5, 60)  # what the conductor itself does
RECORDS_STOPPED: Final = (5, 150)  # so long is a process stopped
AT_POINT: Final = 0.8  # so often is a process to kill itself, where there were too few kills
FROM_OUTSIDE: Final = 0.4  # so often does the conductor kill, for the same reason
SWEEPERS: Final = 0.3  # so many of all processes sweep
AT_FOUND: Final = 0.8  # so many of those stop before they run a task again: others may, meanwhile
UNLOCKED: Final = 0.4  # so many of those that stop themselves have lost their locks
IN_BODY: Final = 0.5  # so often is somebody chosen who is in a body, if somebody is
MOST_CALLS: Final = 1.2  # so many times those that were asked for, where somebody is still to die at some place
ASKED: Final = "dead whose number asked for what they left"
ENOUGH: Final = 3  # findings; the rest of the histories is not looked at then

# Where a process may kill or stop itself, and how often; each is passed by some call of the workers.
POINTS: Final = (
    *("claim.in-transaction", "claim.committed", "claim.granted", "finish.in-transaction", "finish.committed") * 3,
    *(BODY,) * 6,
    *("owner.byte-held", "turn.taken", "sync.begun", "sync.done", "sync.published", "job.returned"),
    *("batch.in-transaction", "batch.committed", "batch.entered", "settle.in-transaction", "settle.committed"),
    *("forget.in-transaction", "forget.committed", "transaction.open"),
    *("transaction.finished",) * 9,
    *("step.in-transaction", "step.saved"),
)
# The same for those that sweep.
SWEEPING_POINTS: Final = (
    *("sweep.found",) * 2,
    *("sweep.in-transaction", "sweep.committed", "claim.in-transaction", "claim.granted", "step.saved", "job.returned"),
    *("finish.in-transaction", "finish.committed", BODY, BODY),
)
# Passed by every second call: a process dies at a later time. At all others the first time may be the last.
OFTEN: Final = frozenset({BODY, "turn.taken", "claim.in-transaction", "claim.committed", "finish.in-transaction"})


class Plan(NamedTuple):
    """What is to be tried."""

    calls: int
    kills: int
    sides: tuple[str, ...] = ("-",)  # the namespaces of each side: see `keeper`
    places: int = 6  # processes at a time, over all sides
    points: Sequence[str] = POINTS  # where a process may kill or stop itself
    threads: int = 3  # of a process, at most
    directed: Sequence[Place] = ()  # where somebody dies in any case, but for more than half of the kills


class Conductor:
    """One file, some processes, and what becomes of them."""

    def __init__(self, seed: int, plan: Plan, again: str) -> None:
        """``again``: the command that does the same once more."""
        self.seed, self.plan, self._again = seed, plan, again
        self.random = random.Random(f"{seed}:conductor")
        self.folder = tempfile.mkdtemp(prefix="kills-")
        self.path = os.path.join(self.folder, "jobs.db")
        self.history = History(others_may_bury=len(plan.sides) > 1)
        self.rules = Rules()
        self.directed = Directed(plan.directed, seed, -(-plan.kills // 2))
        self.events: Counter[str] = Counter()
        self.calls = self.kills = self.born = 0
        self._inside: set[int] = set()
        self._pids: list[set[str]] = [set() for _ in plan.sides]
        self.alive: dict[int, int] = {}  # processes, each with its side
        self.sides: dict[int, str] = {}  # of all that there were
        self.stopped: dict[int, int] = {}  # until which record
        self.doomed: set[int] = set()  # about to end by themselves
        self.log: list[Sequence[str]] = []
        self.first, self._calls_of = 0, Counter[str]()
        self._limit = self._hushes = 0
        self._has_sides = len(plan.sides) > 1
        self._is_over = False
        self._buffer = b""

    def __enter__(self) -> Self:
        shared = os.path.join(self.folder, "shared")
        with open(shared, "wb") as file:
            file.write(bytes(SHARED.size + ESTATE_BYTES))
        with open(shared, "r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 0)
        self._heirs = Heirs(Estate(self._shared), self.seed)
        self._reading, writing = os.pipe()
        self._keepers = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.torture.killing.keeper", str(writing), shared, side],
                stdin=subprocess.PIPE,
                pass_fds=[writing],
            )
            for side in self.plan.sides
        ]
        os.close(writing)
        prepare(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for keeper in self._keepers:
            assert keeper.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                keeper.stdin.close()
        while os.read(self._reading, 65_536):
            pass  # until everybody is gone who could write
        for keeper in self._keepers:
            if keeper.wait() != 0:
                self.rules.broken.append(f"a keeper ended with {keeper.returncode}")
        os.close(self._reading)
        self._shared.close()
        shutil.rmtree(self.folder)

    # --- what happens -----------------------------------------------------------------------------------------------

    def conduct(self) -> None:
        """Until there were enough calls and kills; then let all end in order, and look at what is there."""
        self._limit = self.random.randint(*CALLS_OF_TASK)
        next_act = self.random.randint(*CALLS_BETWEEN)
        while self._is_wanting() and not self.rules.broken:
            while len(self.alive) <= self.plan.places - len(self.plan.sides):
                self._bear_row()
            if not self._listen():
                return
            if self.calls >= next_act:
                next_act = self.calls + self.random.randint(*CALLS_BETWEEN)
                self._act()
        self._is_over = True
        self._share()
        while self.alive:
            if not self._listen():
                return
        self._audit()

    def _is_wanting(self) -> bool:
        if self.calls < self.plan.calls or self.kills < self.plan.kills:
            return True
        return bool(self.directed.left) and self.calls < self.plan.calls * MOST_CALLS

    def _share(self) -> None:
        """Let all know which tasks are worked on, whether it is over, and where somebody is to die by now."""
        wanted = self.directed.wanted if self._are_due(self.directed.hit) and not self._is_over else NOWHERE
        SHARED.pack_into(self._shared, 0, self.first, self._is_over, wanted)

    def _are_due(self, kills: int, factor: float = 1) -> bool:
        """Whether more kills than these are due by now."""
        return kills * self.plan.calls <= self.calls * self.plan.kills * factor

    def _order(self, side: int, order: str, *words: object) -> None:
        keeper = self._keepers[side]
        assert keeper.stdin is not None
        keeper.stdin.write(json.dumps([order, *words]).encode() + b"\n")
        keeper.stdin.flush()

    def _bear_row(self) -> None:
        """One on each side, at about the same moment: so they have the same process ids, and mostly start times."""
        for side in range(len(self.plan.sides)):
            self._bear(side)

    def _bear(self, side: int) -> None:
        self.born += 1
        chance = self.random
        point, action = "-", "-"
        is_sweeper = chance.random() < SWEEPERS
        points = SWEEPING_POINTS if is_sweeper else self.plan.points
        if is_sweeper and chance.random() < AT_FOUND:
            point, action = EVERY_TIME, "stop"
        elif self._are_due(self.kills, 1.1) and chance.random() < AT_POINT:
            point, action = chance.choice(points), "kill"
        elif chance.random() < 0.6:
            point, action = chance.choice(points), "stop"
            if chance.random() < UNLOCKED:
                point, action = BODY, "unlock"
        threads = 1 if action == "unlock" else min(self.plan.threads, chance.choice((1, 1, 1, 2, 3)))
        durability = "normal" if action == "unlock" else chance.choice(("full", "normal"))
        passes = 1 + (int(chance.expovariate(0.3)) if point in OFTEN else 0)
        self.alive[self.born] = side
        self.sides[self.born] = self.plan.sides[side]
        fields = (self.seed, self.path, threads, durability, point, passes, action, is_sweeper, self._has_sides)
        self._order(side, "start", self.born, *fields)

    def _act(self) -> None:
        """Kill somebody, or stop somebody."""
        chosen = sorted(self.alive.keys() - self.doomed)
        if not chosen:
            return
        busy = [process for process in chosen if process in self._inside]
        process = self.random.choice(busy if busy and self.random.random() < IN_BODY else chosen)
        if self._are_due(self.kills) and self.random.random() < FROM_OUTSIDE:
            self._kill(process)
        elif process not in self.stopped:
            self._order(self.alive[process], "stop", process)
            self._stopped(process)

    def _kill(self, process: int) -> None:
        self.doomed.add(process)
        self.stopped.pop(process, None)
        self._order(self.alive[process], "kill", process)

    def _stopped(self, process: int) -> None:
        self.events["stops"] += 1
        self.stopped[process] = self.history.now + self.random.randint(*RECORDS_STOPPED)

    def _let_go_on(self, *, by_force: bool = False) -> None:
        """Those whose time is over; or, as nothing else goes on, all."""
        for process, until in list(self.stopped.items()):
            if by_force or self.history.now >= until:
                del self.stopped[process]
                if self.random.random() < 0.3 and process not in self.doomed:
                    self._kill(process)
                else:
                    self._order(self.alive[process], "go", process)

    # --- what is heard ----------------------------------------------------------------------------------------------

    def _listen(self) -> bool:
        """Hear what comes next; False where nothing does, and nothing can."""
        ready, _, _ = select.select([self._reading], [], [], SILENCE_S if self.stopped else HUSH_S)
        if not ready:
            return self._wake()
        self._hushes = 0
        data = os.read(self._reading, 1 << 16)
        if not data:
            self.rules.broken.append("all keepers have ended")
            return False
        heard, self._buffer = records(self._buffer + data)
        for record in heard:
            self._hear(record)
        self._let_go_on()
        return True

    def _wake(self) -> bool:
        """Nothing is heard: whoever is stopped goes on. False where that has not helped for long."""
        if self.stopped:
            self._let_go_on(by_force=True)
            return True
        for process, side in self.alive.items():
            self._order(side, "go", process)
        self._hushes += 1
        if self._hushes == HUSHES:
            self.rules.broken.append(f"nothing was heard for {HUSHES * HUSH_S:g} s")
        return self._hushes < HUSHES

    def _hear(self, record: Sequence[str]) -> None:
        kind, process = record[0], int(record[1])
        self.log.append(record)
        self.history.read(record)
        self.rules.read(record)
        self._heirs.hear(record, self.history.now)
        match kind:
            case "call" | "item":
                self._count(record)
            case "in":
                self._inside.add(process)
            case "out":
                self._inside.discard(process)
            case "point":
                self._at_point(process, record[2], record[3])
            case "born" | "killing" | "leaving" | "gone":
                self._live(kind, process, record)

    def _at_point(self, process: int, action: str, point: str) -> None:
        self.events[f"{action} at {point}"] += 1
        if action != "kill":
            self._stopped(process)
            return
        self.directed.reached(point)
        if process not in self.doomed:
            self._kill(process)  # it may have been stopped just before

    def _live(self, kind: str, process: int, record: Sequence[str]) -> None:
        if kind == "born":
            self._pids[self.alive[process]].add(record[2])
            self._heirs.bear(process, int(record[2]))
        elif kind == "killing":
            self.kills += 1
        elif kind == "gone":
            del self.alive[process]
            self.stopped.pop(process, None)
            called = self._heirs.bury(process, self.history.now)
            self.stopped.update(dict.fromkeys(self.stopped.keys() & called, self.history.now))  # they go on
        elif process not in self.doomed:
            self.doomed.add(process)
            self.stopped.pop(process, None)
            self._order(self.alive[process], "reap", process)

    def _count(self, record: Sequence[str]) -> None:
        _, _, _, kind, task, *_ = record
        if kind not in COUNTED:
            return
        self.calls += 1
        self._calls_of[task] += 1
        if self._calls_of[task] >= self._limit and task == task_id(self.seed, self.first):
            self.first += 1
            self._limit = self.random.randint(*CALLS_OF_TASK)
        self._share()

    # --- the end ----------------------------------------------------------------------------------------------------

    def _audit(self) -> None:
        self.born += 1
        self.alive[self.born] = 0
        tasks = [task_id(self.seed, number) for number in range(self.first + WIDTH)]
        self._order(0, "audit", self.born, self.path, tasks)
        while self.alive:
            if not self._listen():
                return
        self.history.settle_effects()
        self.rules.look_at_the_end()

    def judge(self) -> Tally:
        """What has come out of it. What counts as tried is for the trial to say, from the `log`."""
        broken = list(self.rules.broken)
        answers: Counter[str] = Counter()
        for task, ops in self.history.ops.items():
            answers.update(f"{op.kind} {op.answer}" for op in ops)
            if len(broken) < ENOUGH and (stuck := find_stuck(ops)) is not None:
                what = "not linearizable" if stuck.is_sure else "undecided"
                broken.append(f"{task}: {what}: {stuck.state} admits none of {_shown(stuck.rest)}")
        if not broken and self.kills < self.plan.kills:
            broken.append(f"only {self.kills} kills, wanted {self.plan.kills}")
        self.events["kills"] = self.kills
        self.events["histories"] = len(self.history.ops)
        self.events["processes"] = self.born
        self.events["places where nobody came to die"] = len(self.directed.left)
        if self._has_sides:
            self.events["process ids that every side has"] = len(set.intersection(*self._pids))
            self.events[ASKED] = self._heirs.asked
        self.events += answers
        violations = [f"{line} ({self._again})" for line in broken]
        if broken:
            violations[0] += f"; the records: {self._keep()}"
        return Tally(self.calls, set(), violations, self.events)

    def _keep(self) -> str:
        with tempfile.NamedTemporaryFile("w", prefix=f"kills-{self.seed}-", suffix=".log", delete=False) as file:
            file.writelines(" ".join(record) + "\n" for record in self.log)
        return file.name


def _shown(ops: Sequence[Any]) -> str:
    return "; ".join(
        f"{op.kind} {op.asked} {op.token} -> {op.answer} by {op.process} [{op.begun}-{op.ended}]" for op in ops
    )
