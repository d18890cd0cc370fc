"""Cycles of `resources`: three processes at work, while what they need goes and comes back.

    python -m tests.torture.resources_cycle '{"folder": ..., "seeds": [1, 2], "may_mount": true}'

Runs in namespaces of its own where it may mount. In each cycle every resource goes and comes back once, in some order,
while the processes are at work; none of them is ever started anew. Says what it found as one line of JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import subprocess
import sys
import traceback
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tests.torture.resources_work import FREE_MOST, HANGS_S, audit, work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["KINDS", "MOUNTED", "cycle", "hash_of"]

T = TypeVar("T")

STYLES: Final = ("lives", "visits", "comes and goes")
CALLS: Final = 5  # of each process while a resource goes, while it is away, and while it comes back
SIZE: Final = "12m"  # of the small disk: twice what the -wal is grown to
INODES: Final = 32
PAGE: Final = 4_096
# What a file may grow to, in bytes; 0 stands for the size that the -wal has.
LIMITS: Final = (PAGE, 33_000, 0)
NOTHING: Final = 1  # byte: no page, frame or header fits into it

# What goes. Those of the second line need a disk of their own, and so the right to mount one.
MOUNTED: Final = ("disk full", "no inodes", "read-only")
KINDS: Final = ("file size", "every write", "descriptors", "descriptor limit", *MOUNTED)


class Hangs(Exception):  # noqa: N818 - it is told as a violation
    """A process says nothing."""


class Crew:
    """The processes of a cycle."""

    def __init__(self, database: str, chance: Random) -> None:
        self.reports: list[dict[str, Any]] = []
        self.said: list[str] = []  # what each was told, without what differs from run to run
        self.wrong: list[str] = []
        self.plan: list[object] = []  # what the dice have chosen for all of them
        self.ordered = self.obeyed = self.called = 0
        self.pids: list[int] = []
        self._orders: list[int] = []
        self._pipes: dict[int, bytes] = {}
        for number, style in enumerate(STYLES):
            self._start(database, f"p{number}", style, chance.getrandbits(32))

    def _start(self, database: str, name: str, style: str, seed: int) -> None:
        orders, to = os.pipe()
        back, reports = os.pipe()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                for fd in (to, back, *self._orders, *self._pipes):
                    os.close(fd)
                work(database, name, style, seed, orders, reports)
                code = 0
            except BaseException:  # noqa: BLE001 - a forked child must never return into its parent's code
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(orders)
        os.close(reports)
        self.pids.append(pid)
        self._orders.append(to)
        self._pipes[back] = b""

    def chosen(self, value: T) -> T:
        """The value, which is noted in the plan."""
        self.plan.append(value)
        return value

    def order(self, what: str, number: int = 0) -> None:
        """Tell each; see `resources_work.work`."""
        for to in self._orders:
            os.write(to, json.dumps([what, number]).encode() + b"\n")
            self.ordered += 1

    def obey(self, what: str, number: int = 0) -> None:
        """The same, and wait until all have done it, and what they were told before."""
        self.order(what, number)
        self.hear(lambda: self.obeyed >= self.ordered)

    def wait_for_calls(self, number: int) -> None:
        """Until so many more calls are made."""
        wanted = self.called + number
        self.hear(lambda: self.called >= wanted)

    def hear(self, is_enough: Callable[[], bool]) -> None:
        """What they report, until it is enough."""
        while not is_enough() and self._pipes:
            ready, _, _ = select.select([*self._pipes], [], [], 2 * HANGS_S)
            if not ready:
                raise Hangs
            for pipe in ready:
                self._read(pipe)

    def _read(self, pipe: int) -> None:
        data = os.read(pipe, 65_536)
        if not data:
            os.close(pipe)
            del self._pipes[pipe]
            return
        *lines, self._pipes[pipe] = (self._pipes[pipe] + data).split(b"\n")
        for one in map(json.loads, lines):
            self.obeyed += "obeyed" in one
            self.called += "called" in one
            if "wrong" in one:
                self.wrong.append(one["wrong"])
            elif "task" in one:
                self.reports.append(one)
                self.said.append(one["what"])

    def end(self) -> None:
        """They close and end."""
        for to in self._orders:
            os.close(to)
        self._orders = []
        self.hear(lambda: False)
        for pid in self.pids:
            _, status = os.waitpid(pid, 0)
            if status:
                self.wrong.append(f"a process ended with {os.waitstatus_to_exitcode(status)}")
        self.pids = []

    def kill(self) -> None:
        """What hangs."""
        for fd in (*self._orders, *self._pipes):
            os.close(fd)
        for pid in self.pids:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


# --- what goes ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk_full(crew: Crew, place: str, chance: Random) -> Iterator[None]:
    """Somebody else writes the disk full, but for a few pages."""
    filler = os.path.join(place, "filler")
    fd = os.open(filler, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        for at_once in (64 * PAGE, PAGE):
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, bytes(at_once))
        size = os.lseek(fd, 0, os.SEEK_END)
        os.ftruncate(fd, max(size - crew.chosen(chance.choice((0, 0, 1, 3))) * PAGE, 0))
        yield
    finally:
        os.ftruncate(fd, 0)
        os.close(fd)
        os.unlink(filler)


@contextlib.contextmanager
def no_inodes(crew: Crew, place: str, chance: Random) -> Iterator[None]:
    """Somebody else makes so many files that no other can be made."""
    made = []
    try:
        with contextlib.suppress(OSError):
            for number in range(2 * INODES):
                path = os.path.join(place, f"filler-{number}")
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                made.append(path)
        yield
    finally:
        for path in made:
            os.unlink(path)


@contextlib.contextmanager
def read_only(crew: Crew, place: str, chance: Random) -> Iterator[None]:
    """The disk is mounted anew. The kernel refuses that while a file is open for writing: so they rest before."""
    crew.obey("rest")
    if _mount("remount,ro", place):
        crew.wrong.append("a file is still open, though all have closed the registry")
    try:
        yield
    finally:
        _mount("remount,rw", place)


@contextlib.contextmanager
def file_size(crew: Crew, place: str, chance: Random) -> Iterator[None]:
    """No file may grow beyond a limit."""
    limit = crew.chosen(chance.choice(LIMITS))
    if not limit:
        with contextlib.suppress(FileNotFoundError):
            limit = os.stat(os.path.join(place, "jobs.db-wal")).st_size
    with _limited(crew, resource.RLIMIT_FSIZE, limit):
        yield


@contextlib.contextmanager
def every_write(crew: Crew, place: str, chance: Random) -> Iterator[None]:
    """Nothing can be stored, wherever in its file it would stand: no end of a claim is recorded now."""
    with _limited(crew, resource.RLIMIT_FSIZE, NOTHING):
        yield


@contextlib.contextmanager
def descriptor_limit(crew: Crew, place: str, chance: Random) -> Iterator[None]:
    """Hardly any may be opened, or none."""
    with _limited(crew, resource.RLIMIT_NOFILE, crew.chosen(chance.randint(3, 20))):
        yield


@contextlib.contextmanager
def no_descriptors(crew: Crew, place: str, chance: Random) -> Iterator[None]:
    """Somebody else in each process has taken them, but for a few: at first so many that an opening fails at each."""
    for free in range(1, FREE_MOST + 1):
        for order in ("take", "open", "give"):
            crew.order(order, free)
    crew.obey("take", crew.chosen(chance.randint(0, FREE_MOST)))
    try:
        yield
    finally:
        crew.obey("give")


@contextlib.contextmanager
def _limited(crew: Crew, what: int, limit: int) -> Iterator[None]:
    before = resource.getrlimit(what)
    for pid in crew.pids:
        resource.prlimit(pid, what, (limit, before[1]))
    try:
        yield
    finally:
        for pid in crew.pids:
            resource.prlimit(pid, what, before)


GOING: Final = {
    "disk full": disk_full,
    "no inodes": no_inodes,
    "read-only": read_only,
    "file size": file_size,
    "every write": every_write,
    "descriptors": no_descriptors,
    "descriptor limit": descriptor_limit,
}


# --- a cycle --------------------------------------------------------------------------------------------------------


def cycle(folder: str, seed: int, *, may_mount: bool) -> dict[str, Any]:
    """One cycle: what was wrong, what was planned (a hash), what befell the processes."""
    chance = Random(seed)
    kinds = [kind for kind in KINDS if may_mount or kind not in MOUNTED]
    chance.shuffle(kinds)
    place = os.path.join(folder, str(seed))
    os.mkdir(place)
    if may_mount and _mount(f"size={SIZE},nr_inodes={INODES},mode=700", place, "tmpfs"):
        msg = "a disk in memory cannot be mounted"
        raise OSError(errno.EPERM, msg)
    crew = Crew(os.path.join(place, "jobs.db"), chance)
    during = "work"
    try:
        crew.obey("call", CALLS)
        for during in kinds:
            crew.chosen(during)
            _go_and_come(crew, during, place, chance)
        crew.end()
        crew.wrong += audit(os.path.join(place, "jobs.db"), crew.reports)
    except Hangs:
        crew.wrong.append(f"{during}: a process hangs")
        crew.kill()
    finally:
        if may_mount:
            subprocess.run(["umount", place], check=False)
    return {
        "wrong": crew.wrong,
        "hash": hash_of(crew.plan),
        "said": crew.said,
    }


def hash_of(plan: Sequence[object]) -> int:
    """What was tried: in which order what went, how far, and behind how many calls it went and came back.

    Not what the processes were told, which is never the same: two cycles of one plan count once.
    """
    return int.from_bytes(blake2b(json.dumps(plan).encode(), digest_size=8).digest(), "little")


def _go_and_come(crew: Crew, kind: str, place: str, chance: Random) -> None:
    """At some moment of the work it goes, at some later one it comes back; then each must go on at once.

    Each has a claim meanwhile that was open before, and ends while the resource is away: whether another call is in the
    middle of its job just then is chance, and to fail at a claim leaves no end that could fail.
    """
    before = len(crew.wrong)
    if kind != "read-only":  # an open claim keeps a file open, which forbids that mount
        crew.obey("begin")
    if kind not in {"read-only", "descriptors"}:  # which have orders of their own
        crew.order("call", CALLS)
        crew.wait_for_calls(crew.chosen(chance.randint(0, len(STYLES) * CALLS)))
    with GOING[kind](crew, place, chance):
        crew.obey("finish")
        crew.order("call", 2 * CALLS)
        crew.wait_for_calls(crew.chosen(chance.randint(len(STYLES) * CALLS, len(STYLES) * 2 * CALLS)))
    crew.obey("prove")
    crew.obey("rest")
    crew.wrong[before:] = [f"{kind}: {text}" for text in crew.wrong[before:]]


def _mount(options: str, place: str, kind: str = "") -> int:
    words = ["mount", *(["-t", kind, "idemreg"] if kind else []), "-o", options, place]
    return subprocess.run(words, check=False, capture_output=True).returncode


def main() -> None:
    """The cycles that are asked for."""
    asked = json.loads(sys.argv[1])
    found = [cycle(asked["folder"], seed, may_mount=asked["may_mount"]) for seed in asked["seeds"]]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
