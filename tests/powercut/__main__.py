"""Many traces, and many cuts of each: ``python -m tests.powercut --seed 1 --traces 20 --images 100000``.

Says what was looked at and what was lost, and ends with 1 where anything was. A log with a loss is kept: the order of
events depends on the machine as well, so it is judged again from the log and not from the seed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any, Final

from tests.mutants import CATALOGUE, catalogue_powercut, mutated
from tests.powercut import recorder
from tests.powercut.crews import SYNC_FAILS, mixed
from tests.powercut.cuts import WAYS
from tests.powercut.run import Report, judge, record_and_judge

SHOWN: Final = 20  # losses


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.powercut", description="Simulated power cuts.")
    parser.add_argument("--seed", type=int, default=1, help="of the first trace; the next have the next")
    parser.add_argument("--traces", type=int, default=10, help="at most so many")
    parser.add_argument("--images", type=int, default=0, help="end when about so many were looked at (0: no bound)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="traces at a time")
    parser.add_argument("--rounds", type=int, default=0, help="of each trace")
    parser.add_argument("--steps", type=int, default=0, help="of each worker")
    parser.add_argument("--ways", type=int, default=len(WAYS), help="of each cut; 6 as in the trial `powercut`")
    parser.add_argument("--durability", choices=("full", "normal"), default="full")
    parser.add_argument("--fail-sync", action="store_true", help="let a sync of the -wal fail in each trace")
    parser.add_argument("--mutant", choices=[one.name for one in catalogue_powercut.MUTANTS], help="break the code so")
    parser.add_argument("--first", action="store_true", help="end at the first loss")
    parser.add_argument("--keep", default=tempfile.gettempdir(), help="folder for the logs of traces with losses")
    parser.add_argument("--log", default="", help="judge this log once more")
    return parser.parse_args()


def main() -> int:
    """Carry out what the command line says."""
    options = _options()
    if options.mutant:
        return _broken(options.mutant)
    begun = time.monotonic()
    report = _again(options) if options.log else _many(options)
    _show(report, time.monotonic() - begun)
    return bool(report.losses)


def _again(options: argparse.Namespace) -> Report:
    base = recorder.scratch()
    try:
        return judge(options.log, base, options.seed, images=options.images, ways=options.ways)
    finally:
        shutil.rmtree(base)


def _broken(mutant: str) -> int:
    """The same words, but in a copy of the tree that has the mutant."""
    alone = argparse.ArgumentParser(add_help=False)
    alone.add_argument("--mutant")
    _, words = alone.parse_known_args()
    with mutated(CATALOGUE[mutant]) as folder:
        return subprocess.run([sys.executable, "-m", "tests.powercut", *words], cwd=folder, check=False).returncode


def _many(options: argparse.Namespace) -> Report:
    os.environ["POWERCUT_SHIM"] = recorder.shim()  # compiled once for all
    total = Report(traces=0)
    scenario: dict[str, Any] = {
        "ways": options.ways,
        "durability": options.durability,
        **(SYNC_FAILS if options.fail_sync else {}),
    }
    if options.first:
        scenario["stop_at"] = 1
    scenario |= {name: value for name in ("rounds", "steps") if (value := getattr(options, name))}
    seeds = iter(range(options.seed, options.seed + options.traces))
    with ProcessPoolExecutor(options.jobs) as pool:
        running: dict[Future[Report], int] = {}
        while True:
            wanted = options.images - total.images if options.images else 0
            goes_on = wanted >= 0 and not (options.first and total.losses)
            while len(running) < options.jobs and goes_on and (seed := next(seeds, None)) is not None:
                by_seed = mixed(seed) | scenario
                running[pool.submit(record_and_judge, seed, images=wanted, keep=options.keep, **by_seed)] = seed
            if not running:
                return total
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                _add(total, done.result(), running.pop(done), options.keep)


def _add(total: Report, report: Report, seed: int, keep: str) -> None:
    total.add(report)
    if report.losses:
        log = os.path.join(keep, f"powercut-{seed}.log")
        print(f"seed {seed}: {len(report.losses)} losses; again: python -m tests.powercut --seed {seed} --log {log}")


def _show(report: Report, seconds: float) -> None:
    for loss in report.losses[:SHOWN]:
        print(loss)
    print(
        f"{len(report.losses)} lost in {report.images:,} images of {report.cuts:,} cuts"
        f" ({len(report.distinct):,} distinct, {report.reboots:,} opened by a whole registry); {report.traces} traces:"
        f" {report.records:,} records, {report.entries:,} bodies entered, {report.ends:,} ends acknowledged;"
        f" {seconds:.0f} s"
    )
    print("events: " + ", ".join(f"{count:,} {event}" for event, count in sorted(report.events.items())))
    print("by way: " + ", ".join(f"{way} {count:,}" for way, count in sorted(report.by_way.items())))


if __name__ == "__main__":
    sys.exit(main())
