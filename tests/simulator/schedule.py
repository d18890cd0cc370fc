"""One schedule: files from a template, a machine, its work, and what it has come to."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

from idemreg import Registry
from tests.simulator.crew import Crew
from tests.simulator.machine import Machine, Process
from tests.simulator.model import WAL_HEADER_BYTES, Observer
from tests.simulator.seams import Seat, installed
from tests.simulator.work import Work

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

__all__ = ["Played", "playground"]

MEMORY: Final = "/dev/shm"  # noqa: S108 - a file system in memory, where there is one: nothing here need be synced
MODE: Final = 0o666  # of a file, before the umask
FORGOTTEN: Final = 0.5  # chance that a power cut leaves the lock file as it was made: nothing in it is synced later
GARBAGE: Final = 32  # schedules between two collections: with more of them memory is used that no cache holds


class Played(NamedTuple):
    """What became of a schedule."""

    digest: int
    violation: str
    story: str
    events: Counter[str]
    steps: int
    points: frozenset[str]


class Playground:
    """A folder in which schedules are played, one after the other."""

    def __init__(self, folder: str, template: str, seat: Seat, crew: Crew) -> None:
        self._seat, self._crew = seat, crew
        self._path = os.path.join(folder, "jobs.db")
        self._files = {end: Path(f"{template}{end}").read_bytes() for end in ("", "-lock")}  # as the template has them
        self._played = 0

    def play(self, seed: int, *, is_whole: bool = False) -> Played:
        """Play the schedule of the seed; ``is_whole``: its story is told from its beginning."""
        self._lay()
        machine = Machine(seed, self._crew)
        observer = Observer(machine, self._path)
        machine.look, machine.when_dead = observer.look, observer.died
        machine.when_down = lambda: self._down(machine, observer)
        work = Work(machine, observer, self._path)
        self._seat.take(machine, observer.synced)
        work.start()
        machine.run()
        observer.close()
        self._check_end(machine, observer)
        story = machine.story(is_whole=is_whole) if machine.violation else ""
        points = frozenset(point for _, point, _ in machine.trace)
        played = Played(machine.digest(), machine.violation, story, machine.events, len(machine.trace), points)
        # All that was seen and done, which would else be garbage in a circle, and take long to collect.
        vars(observer).clear()
        vars(work).clear()
        machine.trace.clear()
        return played

    def _lay(self) -> None:
        """The files as the template has them."""
        for end in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path + end)
        for end in self._files:
            self._put(end)
        self._played += 1
        if self._played % GARBAGE == 0:
            gc.collect()

    def _put(self, end: str) -> None:
        fd = os.open(f"{self._path}{end}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            os.write(fd, self._files[end])
            os.ftruncate(fd, len(self._files[end]))  # behind it, so that its pages need not be found anew
        finally:
            os.close(fd)

    def _down(self, machine: Machine, observer: Observer) -> None:
        """All are dead; with the power gone, what no sync has covered is gone, or some of it."""
        least = observer.least_wal_bytes()
        observer.close()
        if not machine.style.is_cut:
            return
        wal = Path(f"{self._path}-wal")
        if wal.exists():
            size = wal.stat().st_size
            least = min(max(least, WAL_HEADER_BYTES), size)
            os.truncate(wal, machine.rng.choice((least, least, machine.rng.randint(least, size), size)))
        if machine.rng.random() < FORGOTTEN:
            self._put("-lock")
        observer.lost_power()

    def _check_end(self, machine: Machine, observer: Observer) -> None:
        """The file is sound, and holds no record of an owner that is gone."""
        if machine.violation:
            return
        if left := apsw.connections():
            machine.violation = f"{len(left)} connections are left open"
            return
        connection = apsw.Connection(self._path)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # nobody reads the files any more
        try:
            if (sound := connection.pragma("integrity_check")) != "ok":
                machine.violation = f"the file is damaged: {sound}"
            elif owners := connection.execute("SELECT id FROM idempotent_owner").fetchall():
                machine.violation = f"owners that are gone are still recorded: {len(owners)}"
        finally:
            connection.close()


class _FirstClock:
    """Of the template: the first boot of the machine."""

    def __new__(cls) -> Any:
        machine = Machine(0, Crew())
        return Process(machine, 0, 0, 0.0).clock


@contextlib.contextmanager
def playground() -> Iterator[Playground]:
    """A place for schedules, in memory where that can be."""
    where = MEMORY if os.access(MEMORY, os.W_OK) else None
    was_collecting = gc.isenabled()
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=where) as folder:
        gc.disable()  # a finaliser of the product must not run in the middle of another's step
        try:
            template = _template(folder)
            with contextlib.closing(Crew()) as crew, installed() as seat:
                ground = Playground(folder, template, seat, crew)
                gc.collect()
                gc.freeze()  # all that is imported: to go through it took a twentieth of each schedule
                yield ground
        finally:
            gc.unfreeze()
            gc.collect()
            if was_collecting:
                gc.enable()


def _template(folder: str) -> str:
    """The path of a file as the first boot leaves it."""
    path = os.path.join(folder, "template.db")
    with Registry(path, clock=_FirstClock()) as registry:
        registry.open()
    connection = apsw.Connection(path)
    connection.execute("CREATE TABLE effect (task TEXT, token INTEGER)")
    connection.close()
    return path
