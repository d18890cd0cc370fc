"""One recording made, and judged: every cut of it, in every way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from tests.powercut import recorder
from tests.powercut.conduct import Scenario
from tests.powercut.cuts import WAYS
from tests.powercut.disk import Disk
from tests.powercut.image import contents, hash_of_all, hashes
from tests.powercut.judge import Reader
from tests.powercut.reboot import reboot
from tests.powercut.told import Told
from tests.powercut.trace import BrokenTraceError, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.powercut.image import Content
    from tests.powercut.told import Found
    from tests.powercut.trace import Record

__all__ = ["Report", "judge", "record", "record_and_judge"]

ROOT: Final = Path(__file__).resolve().parent.parent.parent
DATABASE: Final = "jobs.db"
RECORDING_S: Final = 120.0  # only for one that hangs

# Every so many new images are opened by a whole registry as well, which takes as long as thirty quick looks.
REBOOT_EVERY: Final = 250
# Records that are worth counting, beside what the conductor says of the processes.
_EVENTS: Final = {
    ("U", b"jobs.db-wal"): "-wal deleted",
    ("T", b""): "file cut or extended",
    ("G", b""): "sync failed",
    ("E", b""): "sync",
}

# Images come back soon or never: what was found in this many is remembered.
REMEMBERED: Final = 64

# The ways in which each cut is tried in any case; of the others as many as are wanted.
WAYS_ALWAYS: Final = ("lost", "kept")
WAYS_OF_CHOICE: Final = [way for way in WAYS if way not in WAYS_ALWAYS]


@dataclass(slots=True)
class Report:
    """What the cuts of one trace, or of several, have shown."""

    traces: int = 1
    records: int = 0
    cuts: int = 0
    images: int = 0
    distinct: set[int] = field(default_factory=set)  # the hashes of the images (`image.hash_of_all`)
    reboots: int = 0
    entries: int = 0  # bodies entered
    ends: int = 0  # ends acknowledged
    by_way: Counter[str] = field(default_factory=Counter)  # images
    events: Counter[str] = field(default_factory=Counter)  # what befell the processes and the files
    losses: list[str] = field(default_factory=list)  # an image each: where in the trace, which way, what is lost

    def add(self, other: Report) -> None:
        """Count another trace's in."""
        self.traces += other.traces
        self.records += other.records
        self.cuts += other.cuts
        self.images += other.images
        self.distinct |= other.distinct
        self.reboots += other.reboots
        self.entries += other.entries
        self.ends += other.ends
        self.by_way += other.by_way
        self.events += other.events
        self.losses += other.losses


def record(scenario: Scenario, at: recorder.Recorder, *, sync_us: int | None = recorder.SYNC_US) -> None:
    """Make a recording: the log is then at ``at.log``."""
    subprocess.run(
        [sys.executable, "-m", "tests.powercut.conduct", json.dumps(scenario._asdict())],
        env=os.environ | at.environment(sync_us=sync_us) | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        check=True,
        timeout=RECORDING_S,
    )


def check_whole(records: list[Record], folder: str) -> None:
    """The trace, replayed without a loss, gives the very files that are there; so nothing went past the recorder."""
    disk = Disk()
    for number, one in enumerate(records):
        if one.kind != "N":
            disk.apply(number, one)
    image = contents(WAYS["kept"](disk, Random(0)))
    there = {name for name in os.listdir(folder) if not name.endswith("-shm")}
    different = there.symmetric_difference(image) or {
        name for name in there if Path(folder, name).read_bytes() != image[name].read()
    }
    if different:
        msg = f"not recorded in full: {sorted(different)}"
        raise BrokenTraceError(msg)


class Judging:
    """Goes through a trace, and looks at what a cut would leave at every point of it."""

    def __init__(self, folder: str, seed: int, *, images: int, ways: int, stop_at: int) -> None:
        self.report = Report()
        self._seed, self._images, self._ways, self._stop_at = seed, images, ways, stop_at
        quick, self._reboots = (os.path.join(folder, name) for name in ("quick", "reboot"))
        os.mkdir(quick)
        self._reader = Reader(quick, DATABASE)
        self._disk, self._told = Disk(), Told()
        self._seen: set[int] = set()
        self._found: OrderedDict[int, Found] = OrderedDict()

    def judge(self, records: list[Record]) -> Report:
        report = self.report
        report.records = len(records)
        chance = Random(self._seed)
        share = min(self._images / (len(records) * self._ways), 1.0) if self._images else 1.0
        for number, one in enumerate(records):
            if (event := _EVENTS.get((one.kind, one.data))) is not None:
                report.events[event] += 1
            if one.kind == "N":
                self._told.apply(one.data)
            elif not self._disk.apply(number, one):
                continue
            drawn = chance.sample(WAYS_OF_CHOICE, self._ways - len(WAYS_ALWAYS))
            ways = [name for name in (*WAYS_ALWAYS, *drawn) if chance.random() < share]
            report.cuts += bool(ways)
            for way in ways:
                self._cut(number, way)
            if len(report.losses) >= self._stop_at:
                break
        report.losses += self._told.problems
        report.events += self._told.events
        report.entries, report.ends, report.distinct = self._told.entries, self._told.ends, self._seen
        self._reader.close()
        return report

    def _cut(self, number: int, way: str) -> None:
        chance = Random((self._seed << 32 | number) * len(WAYS) + [*WAYS].index(way))
        image = contents(WAYS[way](self._disk, chance))
        parts = hashes(image)
        key = hash_of_all(parts)
        self.report.images += 1
        self.report.by_way[way] += 1
        is_new = key not in self._seen
        self._seen.add(key)
        lost = list(self._lost(self._look(parts, image), is_new=is_new))
        if is_new and not lost and len(self._seen) % REBOOT_EVERY == 0:
            self.report.reboots += 1
            lost = list(reboot(image, self._reboots, DATABASE, self._told, chance))
        if lost:
            self.report.losses.append(f"record {number}, {way}: {'; '.join(lost[:3])}")

    def _look(self, parts: dict[str, int], image: dict[str, Content]) -> Found:
        key = hash(tuple(map(parts.get, self._reader.names)))
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._reader.read(image)
            if len(self._found) > REMEMBERED:
                self._found.popitem(last=False)
        return found

    def _lost(self, found: Found, *, is_new: bool) -> Iterator[str]:
        if found.problem:
            yield found.problem
        else:
            yield from self._told.lost(found)
            if is_new:
                yield from self._told.invented(found)


def judge(log: str, folder: str, seed: int, *, images: int = 0, ways: int = len(WAYS), stop_at: int = 20) -> Report:
    """Judge a trace in an empty folder: each cut in so many ``ways``, those that find most and some that are drawn.

    ``images``: about how many to look at (0: all); ends at ``stop_at`` losses.
    """
    return Judging(folder, seed, images=images, ways=ways, stop_at=stop_at).judge(read(log))


def record_and_judge(
    seed: int,
    *,
    images: int = 0,
    ways: int = len(WAYS),
    stop_at: int = 20,
    keep: str = "",
    sync_us: int | None = recorder.SYNC_US,
    **scenario: Any,
) -> Report:
    """One trace by a seed. ``keep``: where to put the log should something be lost."""
    base = recorder.scratch()
    try:
        at = recorder.Recorder(base)
        record(Scenario(at.database, at.control, seed, **scenario), at, sync_us=sync_us)
        check_whole(read(at.log), at.folder)
        report = judge(at.log, base, seed, images=images, ways=ways, stop_at=stop_at)
        if report.losses and keep:
            shutil.copy(at.log, os.path.join(keep, f"powercut-{seed}.log"))
        return report
    finally:
        shutil.rmtree(base, ignore_errors=True)
