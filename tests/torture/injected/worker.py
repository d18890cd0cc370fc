"""The process in which calls fail: carries out case after case, the n-th call of the system failing, n = 1, 2, 3, ...

``python -m tests.torture.injected.worker io SEED COUNT FOLDER [CASE]`` (or ``memory``), with the environment of
`shim.environment`; with the COUNT 0 the last word says what exactly is tried. Prints one JSON object. What it
is at stands in a file, for whoever finds it dead or hanging.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import json
import os
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg import Registry, serials
from tests.support.lean import without_statistics
from tests.torture.injected import shim, states
from tests.torture.injected.commands import CASES
from tests.torture.injected.judge import End, judge
from tests.torture.injected.leaked import end_leaked
from tests.torture.injected.scene import Scene, rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

    from idemreg import Clock
    from tests.torture.injected.cases import Case
    from tests.torture.injected.scene import Row

HANG_S: Final = 5.0
LOCK_S: Final = 11.0
LOCK_STATEMENTS: Final = 12  # a doctor asks eleven questions
MOST_CALLS: Final = 3_000  # of one kind in one case
ONCE: Final = 0.6
OPEN_OFTEN: Final = 6
DRAWN: Final = 4
SOON: Final = 40
NEVER: Final = shim.NEVER
REFUSED: Final = 50_000  # items in a row that are not to be tried: there are none left
SHOWN: Final = int(os.environ.get("SHOWN", "40"))
MEMORY: Final = "/dev/shm"  # noqa: S108 - a file system in memory


class HangError(BaseException):
    """A call took too long."""


class Item(NamedTuple):
    """What is tried for n = 1, 2, 3, ..."""

    case: Case
    state: str
    is_warm: bool
    kind: str
    error: int
    lasting: int

    def words(self, number: int) -> str:
        error = "half of it" if self.error == shim.SHORT else os.strerror(self.error)
        if self.kind in {"sqlite", "python"}:
            error = "no memory"
        lasts = "once" if self.lasting == 1 else "from then on"
        warm = "open" if self.is_warm else "not open"
        return f"{self.case.name}; the file {self.state}, {warm}; {self.kind} {number}: {error}, {lasts}"


class Worker:
    """One part of a trial."""

    def __init__(self, mode: str, seed: int, base: str) -> None:
        self.mode = mode
        self.seed = seed
        self.base = base
        self.random = Random(f"{mode} {seed}")
        self.tried = 0
        self.calls: dict[tuple[str, str, bool], list[int]] = {}  # of each kind, by what was called without a fault
        self.bodies: list[int] = []  # how many allocations there were before each body, where none failed
        self.distinct: set[int] = set()
        self.violations: list[str] = []
        self.events: Counter[str] = Counter()
        self.states = {name: states.make(name, self.random, base) for name in states.NAMES}
        self.rows: dict[str, dict[str, Row]] = {}
        for name, state in self.states.items():
            path = os.path.join(base, "look")
            state.copy(path)
            database = os.path.join(path, "jobs.db")
            self.rows[name] = rows(database) if name != "none" else {}
            shutil.rmtree(path)
        self.fault, functions = shim.loaded()
        shim.watch_sqlite(functions)
        if mode == "memory":
            shim.watch_python(functions)
        self.at = os.open(os.path.join(base, "at"), os.O_RDWR | os.O_CREAT)

    # --- what is tried ------------------------------------------------------------------------------------------------

    def items(self, only: str) -> Iterator[Item]:
        """In an order that the seed gives, until none is left: see `_is_next`."""
        refused, tried = 0, set[Item]()
        for item in self._drawn(only):
            refused = 0 if (is_next := self._is_next(item, tried)) else refused + 1
            if is_next:
                tried.add(item)
                yield item
            elif refused > REFUSED:
                return

    def _is_next(self, item: Item, tried: set[Item]) -> bool:
        """Whether it is to be tried here and now.

        Of I/O errors each item has all its numbers, and to try it again in this part would show nothing new. Other
        parts may: what weighs most is to be tried for certain, whichever parts there are. Of allocations there are too
        many, and those of one item are drawn anew each time.
        """
        return self.mode != "io" or item not in tried

    def _drawn(self, only: str) -> Iterator[Item]:
        """Without end, each as often as its weight says."""
        pairs = [
            (case, state, is_warm)
            for case in CASES
            for state in states.NAMES
            for is_warm in ((False,) if case.is_cold or state == "none" else (True, False))
            if only in case.name and (not case.is_filled or state in {"filled", "killed", "rebooted"})
            # To open the file is half of what the call does then, and every case's half is the same.
            for _ in range(case.weight * (OPEN_OFTEN if is_warm or case.is_cold else 1) or 1)
        ]
        kinds = shim.IO_KINDS if self.mode == "io" else ("sqlite", "python")
        while True:
            case, state, is_warm = self.random.choice(pairs)
            kind = self.random.choice(kinds)
            if kind == "python" and case.is_mixed:
                continue
            errors = shim.ERRORS.get(kind, (shim.SHORT,))
            error = self.random.choice(errors)
            is_once = self.random.random() < ONCE or error == errno.EINTR
            yield Item(case, state, is_warm, kind, error, 1 if is_once or kind == "python" else shim.LASTING)

    def run(self, count: int, only: str) -> None:
        for item in self.items(only):
            for number in self.numbers(item):
                if len(self.distinct) >= count:
                    return
                if not self.one(item, number) and self.mode == "io":
                    break  # no later one would be met either; of allocations there are not as many each time

    def numbers(self, item: Item) -> Iterable[int]:
        """1, 2, 3, ...; of allocations, which are many, some by chance, half of them soon behind a body.

        To count them takes the call once more, so there are several to each count.
        """
        if self.mode == "io":  # where it is known how many there are, none beyond them, which no call would meet
            calls = self.calls.get((item.case.name, item.state, item.is_warm))
            return range(1, MOST_CALLS if calls is None else calls[shim.KINDS[item.kind]] + 1)
        self.bodies.clear()
        self.one(item, NEVER)
        most, bodies = self.fault.seen, [before for before in self.bodies if before < self.fault.seen]
        drawn = {self.random.randint(1, most) for _ in range(DRAWN)} if most else set()
        for before in self.random.choices(bodies, k=DRAWN) if bodies else ():
            drawn.add(self.random.randint(before + 1, min(before + SOON, most)))
        return self.random.sample(sorted(drawn), len(drawn))

    # --- one call -----------------------------------------------------------------------------------------------------

    def one(self, item: Item, number: int) -> bool:
        """False where the call has come to its end without meeting the fault."""
        words = item.words(number)
        os.pwrite(self.at, words.encode().ljust(400), 0)
        folder = os.path.join(self.base, "files")
        self.states[item.state].copy(folder)
        serials._lines.clear()  # of the file of an earlier call: with numbers left it would reserve none in this one
        # Before anything is opened: what a descriptor is of, is noted as it is opened.
        self.fault.aim(folder, item.kind, number, item.error, item.lasting)
        scene = self.scene(item, os.path.join(folder, "jobs.db"))
        self.fault.wal_dirty = 0
        # SQLite itself asks for a lock for ten seconds: one of the -shm that is refused is to it one that is taken. A
        # doctor asks some questions, each of which takes as long, and a command waits five seconds for whoever writes.
        most_s = LOCK_STATEMENTS * LOCK_S if item.kind == "lock" else HANG_S
        begun = time.monotonic()
        end = self.act(item.case, scene, most_s)
        took = time.monotonic() - begun + self.fault.slept_us / 1e6
        self.tried += 1
        found = list(judge(scene, end, is_memory=self.mode == "memory"))
        if took > most_s:
            found.append(f"the call took {took:.1f} s")
        if end.is_fault_met and item.error == errno.EINTR and end.kind is not None:
            found.append(f"EINTR was told to the caller: {end.text}")
        if found and self.mode == "memory" and end_leaked():
            self.events["excused: CPython had lost the arguments of a call, with claims in them"] += 1
            found.clear()
        for problem in found[:3]:
            where = shim.FILES[self.fault.hit_file] if self.mode == "io" else ""
            self.violations.append(f"{words} ({where}): {problem}; {self.command(item, number)}")
        del scene
        if found:  # what was left open goes with the registry, and not beneath its feet
            gc.collect()
        self.fault.folder = b""
        _remove(folder)
        if end.is_fault_met:
            name = "no error" if end.kind is None else end.kind.__name__
            self.events[f"ended with {name}"] += 1
            self.distinct.add(hash_of(self.mode, words))
        elif not item.case.is_mixed:  # else threads share what is done, now so and now so
            calls = self.calls.setdefault((item.case.name, item.state, item.is_warm), [0] * len(self.fault.calls))
            calls[:] = map(max, calls, self.fault.calls)  # those that wait may do so now longer, now shorter
        return end.is_fault_met

    def command(self, item: Item, number: int) -> str:
        exact = json.dumps([item.case.name, item.state, item.is_warm, item.kind, item.error, item.lasting, number])
        return f"python -m tests.torture.injected {self.mode} {self.seed} '{exact}'"

    def exact(self, words: str) -> None:
        """One item, as `command` writes it, or a list of them; the number 0 is all of them, 1, 2, 3, ..."""
        asked = json.loads(words)
        for name, *rest, number in asked if isinstance(asked[0], list) else [asked]:
            item = Item(next(case for case in CASES if case.name == name), *rest)
            if self.mode == "memory":  # as `numbers` does: what is imported late is there, and is compiled
                self.one(item, NEVER)
            for one in [number] if number else range(1, MOST_CALLS):
                if not self.one(item, one):
                    break

    def scene(self, item: Item, path: str) -> Scene:
        clock: Clock | None = None
        scene = Scene(path, self.fault, clock, self.rows[item.state], self.bodies)
        if item.is_warm:
            scene.registry.run("warm", lambda: 1, name="warm")
        return scene

    def act(self, case: Case, scene: Scene, most_s: float) -> End:
        fault, act = self.fault, case.act
        kind: type[BaseException] | None = None
        text, result = "no error", None
        signal.setitimer(signal.ITIMER_REAL, most_s)
        try:
            try:
                fault.armed = 1
                act(scene)
            finally:
                fault.armed = 0
                signal.setitimer(signal.ITIMER_REAL, 0)
        except BaseException as error:
            kind, text, result = type(error), _told(error), getattr(error, "result", None)
            if isinstance(error, KeyboardInterrupt):
                raise
        is_whole = fault.error != shim.SHORT or self.mode == "memory"  # half a write is damage
        return End(kind, text, result, fault.hits > 0, fault.wal_hit > 0, is_whole)


def _remove(folder: str) -> None:
    """The folder of a call, where there are files only; `shutil.rmtree` takes three times as long."""
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))
    os.rmdir(folder)


def hash_of(mode: str, words: str) -> int:
    """What was tried: the case, the state of the file, and which call failed how.

    Not how many tasks the file held beside: to nearly every call the n-th call of the system is the same with one more.
    There are some 900,000 without.
    """
    return int.from_bytes(blake2b(f"{mode} {words}".encode(), digest_size=8).digest(), "big")


def _told(error: BaseException) -> str:
    """The error, and the lines of the package that it came through last."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "/idemreg/" in file:
            places.append(f"{file.rpartition('/idemreg/')[2]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__}: {error} [{' '.join(places[-4:])}]"


def _late(_number: int, _frame: FrameType | None) -> None:
    raise HangError


def main() -> None:
    mode, seed, count, base, only = (*sys.argv[1:5], sys.argv[5] if len(sys.argv) > 5 else "")
    faulthandler.enable()
    faulthandler.dump_traceback_later(float(os.environ.get("IDEMREG_TEST_PART_S", "900")), exit=True)
    warnings.simplefilter("ignore", ResourceWarning)
    signal.signal(signal.SIGALRM, _late)
    if mode == "io":  # of memory, the allocations are what is counted
        without_statistics()
    worker = Worker(mode, int(seed), base)
    with contextlib.closing(Registry(os.path.join(base, "first.db"))) as registry:  # what is imported late is there
        registry.run("first", lambda: 1)
    gc.collect()
    gc.freeze()
    if int(count):
        worker.run(int(count), only)
    else:
        worker.exact(only)
    found: dict[str, Any] = {
        "tried": worker.tried,
        "distinct": sorted(worker.distinct),
        "violations": worker.violations[:SHOWN],
        "events": worker.events,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
