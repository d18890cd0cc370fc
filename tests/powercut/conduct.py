"""Conducts one recording: starts workers, kills, stops and continues them, by a seed. Runs recorded itself.

    python -m tests.powercut.conduct '{"database": ..., "control": ..., "seed": 1, ...}'

A recording goes in rounds. In each, some processes work on the same file at the same time, each with a fate of its own:
it ends in order, or without closing, is killed at a named fault point, is killed or stopped for a while from outside.
Between two rounds nobody has the file open; now and then the machine is said to have booted.

Workers are forked, since a new interpreter costs as much as all its work; each opens the registry by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import traceback
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from idemreg import faults
from tests.powercut import worker
from tests.powercut.crews import CREWS
from tests.powercut.recorder import Control
from tests.powercut.settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

# Points that no worker here comes past.
ELSEWHERE: Final = ("migrate.", "purge.", "import.", "serial.", "slots.", "renew.", "backup.", "place.", "command.")
CREATION: Final = "create."

FAILING_SYNCS: Final = 10  # one of the first so many of a round
# Who is not there then: `foreign` (see `Scenario`); `visitors`, whose syncs are mostly those of SQLite's own closing.
UNFIT: Final = frozenset({"foreign", "visitors"})
FAILS_LAST: Final = 0.8  # how likely that is the last round: little happens behind a failed sync

# How likely the file is closed in order before a boot, which deletes the -wal: the new boot begins with another.
IN_ORDER: Final = 0.7

# How long a process stays stopped while nobody else makes a step: the others may be waiting for it.
STOPPED_S: Final = 0.02
PATIENCE_S: Final = 60.0  # only where something hangs


class Scenario(NamedTuple):
    """What is recorded; all that `conduct` needs."""

    database: str
    control: str
    seed: int
    rounds: int = 3
    steps: int = 6
    durability: str = "full"
    crews: Sequence[Sequence[str]] = CREWS
    boots: float = 0.3  # how likely a boot is between two rounds
    settings: Sequence[str] = ()  # of `settings.SETTINGS`
    # Let a sync of the -wal fail in one of the rounds. From then on there is neither a boot (that of a recording keeps
    # the page cache, which has what the disk lacks) nor the program that knows nothing of it, and moves the -wal into
    # the database all the same.
    fail_sync: bool = False


class Fate(NamedTuple):
    """How a worker ends. ``at``: the number of steps of all workers, or of passes of the fault point."""

    kind: str  # close, leave, fault, kill or stop
    at: int = 0
    point: str = ""


CLOSES: Final = Fate("close")


class Crew:
    """The workers of one round."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._tell = worker.Teller()
        self._pipes: dict[int, tuple[int, Fate]] = {}  # the end that says its steps -> who, and how it will end
        self._stopped: set[int] = set()
        self._steps = 0

    def start(self, plan: worker.Plan, fate: Fate, scenario: Scenario) -> None:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read)
            _child(plan, fate, scenario, write)
        os.close(write)
        self._pipes[read] = (pid, fate)

    def watch(self) -> None:
        """Until all have ended."""
        while self._pipes:
            ready, _, _ = select.select([*self._pipes], [], [], STOPPED_S if self._stopped else PATIENCE_S)
            if not ready and not self._stopped:
                self._kill_all()
                sys.exit("the workers hang")
            if not ready:
                self._go_on()
            for pipe in ready:
                self._hear(pipe)
            for pid, fate in list(self._pipes.values()):
                if fate.at == self._steps:
                    self._strike(pid, fate)

    def _hear(self, pipe: int) -> None:
        said = os.read(pipe, 1)
        if said:
            self._steps += 1
            return
        pid, fate = self._pipes.pop(pipe)
        os.close(pipe)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
            self._tell("event", "killed at a fault point" if fate.kind == "fault" else "killed")
        elif status:
            self._kill_all()
            sys.exit(f"a worker ended with {os.waitstatus_to_exitcode(status)}")

    def _strike(self, pid: int, fate: Fate) -> None:
        if fate.kind == "kill":
            with self._control.alone():
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        elif fate.kind == "stop" and pid not in self._stopped:
            with self._control.alone():
                os.kill(pid, signal.SIGSTOP)
                os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            self._stopped.add(pid)
            self._tell("event", "stopped")

    def _go_on(self) -> None:
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped.clear()

    def _kill_all(self) -> None:
        for pid, _ in self._pipes.values():
            os.kill(pid, signal.SIGKILL)


def _child(plan: worker.Plan, fate: Fate, scenario: Scenario, steps: int) -> NoReturn:
    code = 1
    try:
        for setting in scenario.settings:
            SETTINGS[setting]()
        if fate.kind == "fault":
            _arm(fate)
        worker.work(plan, lambda: _say(steps), leave=fate.kind == "leave")
        code = 0
    except BaseException:  # noqa: BLE001 - a forked child must never return into its parent's code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _say(steps: int) -> None:
    os.write(steps, b".")


def _arm(fate: Fate) -> None:
    left = fate.at

    def pass_by() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            faults.kill()

    faults.arm(fate.point, pass_by)


def _fate(chance: Random, *, first: bool) -> Fate:
    kind = chance.choice(("close", "close", "leave", "fault", "fault", "kill", "stop"))
    if kind != "fault":
        return Fate(kind, chance.randint(2, 20))
    at_creation = first and chance.random() < 0.3
    points = [point for point in faults.POINTS if point.startswith(CREATION) == at_creation]
    return Fate(kind, chance.randint(1, 4), chance.choice([name for name in points if not name.startswith(ELSEWHERE)]))


def conduct(scenario: Scenario) -> None:
    """Carry the rounds out."""
    chance = Random(scenario.seed)
    control = Control(scenario.control)
    boot = 1
    rounds = range(scenario.rounds)
    faulty = scenario.rounds
    if scenario.fail_sync:
        faulty = rounds[-1] if chance.random() < FAILS_LAST else chance.choice(rounds)
    for number in rounds:
        crew = Crew(control)
        crews = [roles for roles in scenario.crews if number < faulty or not UNFIT.intersection(roles)]
        steps = scenario.steps
        if number == faulty:
            steps *= 2
            control.fail_sync(chance.randint(1, FAILING_SYNCS))  # before they begin, or they may have ended
        for role in chance.choice(crews):
            first = number * (scenario.steps // 2 + 1)
            seed = chance.getrandbits(32)
            plan = worker.Plan(scenario.database, role, seed, steps, first, scenario.durability, boot)
            crew.start(plan, _fate(chance, first=not number), scenario)
        crew.watch()
        if number < faulty and chance.random() < scenario.boots:
            if chance.random() < IN_ORDER:
                crew.start(worker.Plan(scenario.database, "last", 0, 1, 0, scenario.durability, boot), CLOSES, scenario)
                crew.watch()
            boot += 1
    control.close()


if __name__ == "__main__":
    conduct(Scenario(**json.loads(sys.argv[1])))
