"""Clocks that jump: no jump changes whether a task may run, which token it gets, or what a purge takes of this boot.

Two processes share a registry, one of them in another time namespace, where the time since boot is years ahead or some
minutes behind. The wall clock of both jumps by a second to a hundred years, forth and back, also while somebody waits,
and once in every history by a hundred years exactly, ahead and back again (no system sets a clock further back than
1970). The machine sleeps as long, and is booted anew; owners are killed. What each call must answer is known from what
was done, and from the only two clocks that may count: the time since boot, which the trial keeps by itself, for rows of
this boot, and dates for rows of earlier ones.
"""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from tests.support.unshared import time_namespace
from tests.torture.trial import Tally, Trial, again

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["TRIAL"]

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PATIENCE_S: Final = 20.0  # for an answer: what takes longer hangs
SECOND: Final = 1_000
HOUR: Final = 3_600 * SECOND
YEAR: Final = 31_557_600 * SECOND
MOST: Final = 100 * YEAR
LEAST_US: Final = -MOST * 1_000 // 2  # of what is added to the machine's clock: no system has a date before 1970
LATEST_MS: Final = 2**40 - 1  # 34 years, which a stamp has room for
WAIT_S: Final = 0.03
OWN, OTHER = 0, 1  # the workers: in this time namespace, and in another

Bracket = tuple[int, int]  # the earliest and the latest that it may have been


class HangError(Exception):
    """A worker does not answer, or is gone."""


class Worker:
    """A process of `clockwork`."""

    def __init__(self, offset_s: int | None) -> None:
        command = [sys.executable, "-m", "tests.torture.clockwork"]
        if offset_s is not None:
            command = [*time_namespace(), "--boottime", str(offset_s), *command]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def send(self, command: str, options: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([command, options]).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise HangError from None

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            raise HangError
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def _offset_s(chance: Random) -> int:
    """Of the time since boot in another namespace, where it never was before the boot: the system makes none such."""
    behind = min(600, _since_boot() // 1_000 // 2)
    return chance.choice((-behind, 3_600, 10 * YEAR // 1_000, 90 * YEAR // 1_000))


def _since_boot() -> int:
    now_ns: int = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return now_ns // 1_000_000


@dataclass
class Known:
    """What is known of a task."""

    result: int
    keep_ms: int | None
    boot: int
    since_boot: Bracket  # when it changed last, by either clock
    date: Bracket
    is_final: bool = True


@dataclass
class World:
    """One registry, its two processes, and what must be true of it."""

    chance: Random
    workers: list[Worker]
    path: str
    tally: Tally
    plan: list[str] = field(default_factory=list)
    tasks: dict[str, Known] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    wall_us: int = 0  # what is added to the machine's clocks
    boot_ms: int = 0
    boot: int = 0
    number: int = 0

    # --- asking ---------------------------------------------------------------------------------------------------

    def since_boot(self) -> int:
        return _since_boot() + self.boot_ms

    def date(self) -> int:
        return time.time_ns() // 1_000 + self.wall_us

    def ask(self, who: int, command: str, **options: Any) -> dict[str, Any]:
        self.plan.append(f"{who} {command} {options}")
        self.workers[who].send(command, options)
        answer = self.workers[who].receive()
        return self.workers[who].receive() if "waits" in answer else answer

    def wrong(self, what: str) -> None:
        self.tally.violations.append(what)

    def anybody(self) -> int:
        return self.chance.choice((OWN, OTHER))

    def new(self) -> str:
        self.number += 1
        return f"t{self.number}"

    def tell_clocks(self) -> None:
        for who in (OWN, OTHER):
            self.ask(who, "set", wall=self.wall_us, boot=self.boot_ms, name=f"boot {self.boot}")

    def open(self) -> None:
        self.tell_clocks()
        for who in (OWN, OTHER):
            self.ask(who, "open", path=self.path)

    # --- time -----------------------------------------------------------------------------------------------------

    def span(self) -> int:
        """Milliseconds: as likely some seconds as some years."""
        return round(SECOND * math.pow(MOST / SECOND, self.chance.random()))

    def jump(self, ms: int | None = None) -> None:
        """Of the wall clock."""
        ms = self.chance.choice((-1, 1)) * self.span() if ms is None else ms
        before_us = self.wall_us
        self.wall_us = max(LEAST_US, min(before_us + ms * 1_000, MOST * 1_000))
        self.tell_clocks()
        self.tally.events["jumps of the wall clock"] += 1
        self.tally.events["jumps of a hundred years ahead"] += self.wall_us - before_us == MOST * 1_000
        self.tally.events["jumps of a hundred years back"] += self.wall_us - before_us == -MOST * 1_000

    def suspend(self, ms: int | None = None) -> None:
        """The machine: time since boot goes on, and dates with it."""
        ms = self.span() if ms is None else ms
        self.boot_ms += ms
        self.wall_us += ms * 1_000
        self.tell_clocks()
        self.tally.events["sleeps of the machine"] += 1

    def reboot(self) -> None:
        for who in (OWN, OTHER):
            self.ask(who, "close")
        self.boot += 1
        self.boot_ms = self.chance.randint(0, 1_000) - _since_boot()
        self.boot_ms += self.chance.choice((0, self.span()))
        self.open()
        self.tally.events["boots"] += 1

    def set_right(self) -> None:
        """The wall clock is not behind any date that is stored."""
        newest = max((known.date[1] for known in self.tasks.values()), default=0)
        if (behind := newest - self.date()) >= 0:
            self.jump(behind // 1_000 + SECOND)

    # --- what is done ---------------------------------------------------------------------------------------------

    def run_new(self, who: int, keep_ms: int | None) -> str:
        task, result = self.new(), self.chance.randrange(1_000)
        before = self.since_boot(), self.date()
        options = {} if keep_ms is None else {"keep_for": keep_ms / 1_000}
        answer = self.ask(who, "run", task=task, result=result, **options)
        found = answer.get("answer")
        if found is None or found["entered"] != 1 or found["result"] != result:
            self.wrong(f"a new task was not run once: {answer}")
            return task
        self.note_token(task, found["token"])
        self.note(task, result, keep_ms, before)
        return task

    def note(
        self, task: str, result: int, keep_ms: int | None, before: tuple[int, int], *, is_final: bool = True
    ) -> None:
        now = self.since_boot(), self.date()
        self.tasks[task] = Known(
            result, keep_ms, self.boot, (before[0], now[0]), (min(before[1], now[1]), max(before[1], now[1])), is_final
        )

    def note_token(self, task: str, token: int) -> None:
        given = self.tokens.setdefault(task, [])
        if given and token <= given[-1]:
            self.wrong(f"{task} got token {token} behind {given[-1]}")
        given.append(token)

    def must_replay(self, who: int, task: str) -> None:
        known = self.tasks[task]
        answer = self.ask(who, "run", task=task, result=-1)
        found = answer.get("answer", {})
        if found.get("entered") != 0 or not found.get("replayed") or found["result"] != known.result:
            self.wrong(f"{task} had ended with {known.result}, and is answered {answer}")

    def must_be(self, code: str, who: int, task: str, **options: Any) -> None:
        answer = self.ask(who, "run", task=task, result=-1, **options)
        if answer.get("error") != code:
            self.wrong(f"{task} is {code}, and is answered {answer}")

    # --- purge ----------------------------------------------------------------------------------------------------

    def purge(self, who: int) -> None:
        """Take what may go: exactly that, or nothing where a date is still to come."""
        begun = self.since_boot(), self.date()
        answer = self.ask(who, "purge")
        ended = self.since_boot(), self.date()
        newest = max((known.date[0] for known in self.tasks.values()), default=0)
        if answer.get("error") == "clock":
            self.tally.events["purges refused"] += 1
            if not answer["hint"]:
                self.wrong(f"a purge was refused without a hint: {answer}")
            if max((known.date[1] for known in self.tasks.values()), default=0) <= begun[1]:
                self.wrong(f"a purge was refused, and no date is to come: {answer}")
            return
        if "error" in answer:
            self.wrong(f"a purge was answered {answer}")
            return
        self.tally.events["purges"] += 1
        if newest > ended[1]:
            self.wrong("a purge believed a clock that is behind a stored date")
        there = {task for task, _, _ in self.ask(who, "rows")["answer"]}
        for task, known in list(self.tasks.items()):
            may_go = self.may_go(known, begun, ended)
            if may_go is not None and may_go == (task in there):
                age = f"changed {known.since_boot} in boot {known.boot} of {self.boot}, kept for {known.keep_ms} ms"
                self.wrong(f"a purge {'left' if may_go else 'took'} {task}: {age}, at {begun}")
            if task not in there:
                del self.tasks[task]
                self.tally.events["tasks purged"] += 1

    def may_go(self, known: Known, begun: tuple[int, int], ended: tuple[int, int]) -> bool | None:
        """None where it is too near to be told from outside."""
        if known.keep_ms is None or not known.is_final:
            return False
        if known.boot == self.boot:
            least, most = begun[0] - known.since_boot[1] - 2, ended[0] - known.since_boot[0] + 2
            if ended[0] > LATEST_MS:  # a row then grows no older
                return False if most < known.keep_ms else None
        else:
            least, most = (begun[1] - known.date[1]) // 1_000 - 2, (ended[1] - known.date[0]) // 1_000 + 2
        return True if least >= known.keep_ms else False if most < known.keep_ms else None

    # --- scenes ---------------------------------------------------------------------------------------------------

    def scene_kept(self) -> None:
        """A row of this boot is not made older by the wall clock, nor by another time namespace; by sleep it is."""
        first, keep_ms = self.anybody(), self.span()
        task = self.run_new(first, keep_ms)
        self.jump(keep_ms + SECOND)
        for who in (first, 1 - first):
            self.set_right()
            self.purge(who)
        if task in self.tasks:
            self.suspend(keep_ms + SECOND)
            self.set_right()
            self.purge(1 - first)

    def scene_across(self) -> None:
        """By each of the two, looked at by the other."""
        for who in (OWN, OTHER):
            self.run_new(who, self.chance.choice((0, HOUR, YEAR)))
            self.set_right()
            self.purge(1 - who)

    def scene_future(self) -> None:
        """Behind a stored date nothing is purged."""
        self.run_new(self.anybody(), 0)
        self.jump(-self.span())
        self.purge(self.anybody())

    def scene_century(self) -> None:
        """A hundred years ahead, where something ends, and exactly as many back again."""
        self.jump(min(0, -(self.wall_us // 1_000)))  # from where there is room for both
        self.jump(MOST)
        task = self.run_new(self.anybody(), self.chance.choice((None, 0, self.span())))
        self.jump(-MOST)
        self.purge(self.anybody())  # refused: a date is to come
        if task in self.tasks:
            self.must_replay(self.anybody(), task)

    def scene_replay(self) -> None:
        tasks = [task for task, known in self.tasks.items() if known.is_final]
        for task in self.chance.sample(tasks, min(3, len(tasks))):
            self.jump()
            self.must_replay(self.anybody(), task)

    def scene_twin(self) -> None:
        """Whoever waits for a twin waits by a clock that no jump touches."""
        task, result, who = self.new(), self.chance.randrange(1_000), self.anybody()
        before = self.since_boot(), self.date()
        answer = self.ask(who, "claim", task=task)
        if "error" in answer:
            self.wrong(f"a new task was not claimed: {answer}")
            return
        self.note_token(task, answer["answer"]["token"])
        self.note(task, result, None, before, is_final=False)
        self.jump()
        self.must_be("running", 1 - who, task)
        self.must_be("running", 1 - who, task, wait=WAIT_S, jump=-self.span() * 1_000)
        self.tell_clocks()
        self.workers[1 - who].send("run", {"task": task, "result": -1, "wait": PATIENCE_S / 2, "jump": MOST * 1_000})
        self.plan.append(f"{1 - who} waits")
        found = self.workers[1 - who].receive()
        before = self.since_boot(), self.date()
        self.ask(who, "finish", task=task, result=result)
        self.note(task, result, None, before)
        found = self.workers[1 - who].receive() if "waits" in found else found
        if not found.get("answer", {}).get("replayed"):
            self.wrong(f"{task} ended while somebody waited for it, who was answered {found}")
        self.tell_clocks()

    def scene_long_up(self) -> None:
        """Up for longer than a stamp has room for: nothing goes early."""
        self.suspend(max(0, LATEST_MS - self.since_boot()) + self.span())
        self.run_new(self.anybody(), HOUR + self.span())
        self.set_right()
        self.purge(self.anybody())

    def scene_killed(self) -> None:
        """What an owner's death leads to is the policy's to say, and no clock's."""
        task, policy = self.new(), self.chance.choice(("hold", "rerun"))
        before = self.since_boot(), self.date()
        answer = self.ask(OWN, "claim", task=task, on_crash=policy)
        self.note_token(task, answer["answer"]["token"])
        self.note(task, -1, None, before, is_final=False)
        self.workers[OWN].kill()
        self.workers[OWN] = Worker(None)
        self.tally.events["owners killed"] += 1
        self.jump()
        if self.chance.random() < 0.5:
            self.suspend()
        self.ask(OWN, "open", path=self.path)
        if policy == "hold":
            before = self.since_boot(), self.date()
            self.must_be("unknown", OTHER, task, on_crash="hold")
            self.note(task, -1, None, before, is_final=False)
            return
        before = self.since_boot(), self.date()
        found = self.ask(OTHER, "run", task=task, result=5, on_crash="rerun").get("answer")
        if not found or not found["entered"]:
            self.wrong(f"{task} was left by a dead owner, may run again, and is answered {found}")
            return
        self.note_token(task, found["token"])
        self.note(task, 5, None, before)

    def again(self) -> None:
        """A task that a purge took runs anew, and under a larger token."""
        gone = [task for task in self.tokens if task not in self.tasks]
        for task in self.chance.sample(gone, min(2, len(gone))):
            before = self.since_boot(), self.date()
            found = self.ask(self.anybody(), "run", task=task, result=7).get("answer")
            if not found or not found["entered"]:
                self.wrong(f"{task} was purged, and is answered {found}")
                continue
            self.note_token(task, found["token"])
            self.note(task, 7, None, before)


def run(seed: int, count: int) -> Tally:
    """Worlds one after the other, with the same two processes unless one is killed."""
    tally = Tally()
    chance = Random(seed)
    offset_s = _offset_s(chance) if time_namespace() else None
    if offset_s is None:
        tally.not_tried("another time namespace (this user may make none)")
    workers = [Worker(None), Worker(offset_s)]
    try:
        for number in range(count):
            with tempfile.TemporaryDirectory(prefix="clock-") as folder:
                world = World(chance, workers, os.path.join(folder, "jobs.db"), tally)
                before = len(tally.violations)
                try:
                    live(world)
                except HangError:
                    world.wrong(f"hangs, or has ended: {world.plan[-1]}")
                    for worker in workers:
                        worker.kill()
                    workers[:] = [Worker(None), Worker(offset_s)]
                command = again("clock", seed, number + 1)
                tally.violations[before:] = [f"{line} [{command}]" for line in tally.violations[before:]]
                tally.tried += 1
                digest = blake2b("\n".join(world.plan).replace(folder, "").encode(), digest_size=8).digest()
                tally.distinct.add(int.from_bytes(digest, "big"))
    finally:
        for worker in workers:
            worker.kill()
    return tally


def _play(world: World, scenes: Sequence[Callable[[], None]]) -> None:
    for scene in scenes:
        scene()
        world.jump()
    world.again()


def live(world: World) -> None:
    """Scenes in any order, over two or three boots."""
    world.jump()
    world.open()
    scenes = [world.scene_kept, world.scene_across, world.scene_future, world.scene_replay, world.scene_twin]
    if world.chance.random() < 0.3:
        scenes.append(world.scene_killed)
    for boot in range(2):
        if boot:
            world.reboot()
        world.chance.shuffle(scenes)
        _play(world, scenes)
    world.scene_century()  # late: its date is ahead of all that follows in its boot
    world.scene_long_up()
    world.set_right()
    world.purge(world.anybody())
    for task, known in world.tasks.items():
        if known.is_final:
            world.must_replay(world.anybody(), task)
    for task, given in world.tokens.items():
        if any(second <= first for first, second in pairwise(given)):
            world.wrong(f"the tokens of {task} are {given}")
    for who in (OWN, OTHER):
        world.ask(who, "close")


TRIAL: Final = Trial(
    name="clock",
    counted="histories",
    count=200,
    part=10,
    run=run,
    mutants=(
        "clock-age-by-date",
        "clock-deadline-by-date",
        "clock-namespace-ignored",
        "clock-purge-unchecked",
        "clock-stamp-overflows",
    ),
)
