"""Runs the trials, and says what they found: ``python -m tests.torture --only simulation --seed 7``.

The seed and the count of each part are printed with whatever it finds (`again`), and ``--only NAME --seed SEED --count
COUNT`` is one part of exactly these. With ``--power`` it measures the trials themselves (`tests.torture.power`): each
mutant must be found within a hundredth of the count, and nothing without it. Ends with 1 where anything was found, or
fewer were tried than was asked for.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.support import compiled
from tests.support.lean import without_statistics
from tests.torture import found
from tests.torture.power import power
from tests.torture.table import save
from tests.torture.trial import BROKE_OFF, Tally, Trial, again, is_finding
from tests.torture.trials import TRIALS

if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN: Final = 10  # violations of one trial
SPARE: Final = 2  # so many times the parts that the count takes are run at most, as some things come twice
SPARE_PARTS: Final = 40  # beyond that, for what is missing in the end: each is smaller than the one before


def options_of(words: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description="Random trials of each promise.")
    parser.add_argument("--only", action="append", choices=[one.name for one in TRIALS], help="this trial; repeatable")
    parser.add_argument("--seed", type=int, default=1, help="of the first part; the next have the next")
    parser.add_argument("--share", type=int, default=1, help="a part of the counts: 10 for a tenth")
    parser.add_argument(
        "--count", type=int, default=0, help="in place of each trial's own count; up to that of a part, it is one"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processors to use")
    parser.add_argument("--power", action="store_true", help="try each trial on its mutants instead")
    parser.add_argument("--save", action="store_true", help="put the figures into docs/reliability.md")
    parser.add_argument("--json", default="", help="write what was found to this file as well")
    return parser.parse_args(words)


def main() -> int:
    """Carry out what the command line says."""
    compiled.shared()
    options = options_of(sys.argv[1:])
    at = _revision() if options.save else ""  # before: the code may change meanwhile
    trials = [one for one in TRIALS if options.only is None or one.name in options.only]
    if options.power:
        rows = [row for one in trials for row in power(one, options.seed, options.jobs)]
    else:
        rows = [_try(one, options) for one in trials]
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.save:
        keep = found.save if options.power else save
        keep(rows, _how(options), at)
    return int(not all(row["is_well"] for row in rows))


def _how(options: argparse.Namespace) -> str:
    """What was asked for beside the names of trials, as the command line says it."""
    given = {"--seed": options.seed, "--share": options.share, "--count": options.count}
    usual = {"--seed": 1, "--share": 1, "--count": 0}
    return " ".join(f"{name} {value}" for name, value in given.items() if value != usual[name])


def _revision() -> str:
    """Of the code that is tried."""
    from bench.machine import revision  # noqa: PLC0415 - it knows all that is measured beside idemreg

    return revision()


def _try(trial: Trial, options: argparse.Namespace) -> dict[str, Any]:
    count = options.count or -(-trial.count // options.share)
    begun = time.monotonic()
    tally = _run(trial, count, options.seed, options.jobs, is_asked=bool(options.count))
    seconds = time.monotonic() - begun
    is_well = not tally.violations and len(tally.distinct) >= count
    for line in tally.violations[:SHOWN]:
        print(f"  {line}")
    print(
        f"{trial.name}: {len(tally.violations)} violations in {len(tally.distinct):,} distinct {trial.counted} of"
        f" {count:,} wanted ({tally.tried:,} tried, seeds from {options.seed}); {seconds:.0f} s",
        flush=True,
    )
    if tally.events:
        print("  " + ", ".join(f"{number:,} {event}" for event, number in sorted(tally.events.items())))
    return {
        "trial": trial.name,
        "counted": trial.counted,
        "wanted": count,
        "distinct": len(tally.distinct),
        "tried": tally.tried,
        "found": len(tally.violations),
        "findings": sum(map(is_finding, tally.violations)),  # not of what was not tried
        "violations": tally.violations[:SHOWN],
        "events": dict(sorted(tally.events.items())),
        "seed": options.seed,
        "seconds": round(seconds, 1),
        "is_well": is_well,
    }


def _run(trial: Trial, count: int, seed: int, jobs: int, *, is_asked: bool = False) -> Tally:
    """Part after part, several at once, until so many distinct things were tried. One that raises is a violation.

    ``is_asked``: the count is that of a printed command, and no part may be smaller that need not be.
    """
    jobs *= trial.crowd
    total = Tally()
    seeds = iter(range(seed, seed + SPARE * -(-count // trial.part) + SPARE_PARTS))
    with ProcessPoolExecutor(jobs, _processes(), without_statistics, max_tasks_per_child=1) as pool:
        running: dict[Future[Tally], tuple[int, int]] = {}  # how many each is to try, and its seed
        while True:
            missing = count - len(total.distinct) - sum(size for size, _ in running.values())
            sizes = next_parts(trial.part, missing, jobs - len(running), is_asked=is_asked)
            for size, next_seed in zip(sizes, seeds, strict=False):
                running[pool.submit(trial.run, next_seed, size)] = size, next_seed
            if not running:
                return total
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                size, its_seed = running.pop(one)
                try:
                    total.add(one.result())
                except Exception as error:  # noqa: BLE001 - whatever it is, the other parts and trials go on
                    traceback.print_exception(error)
                    what = f"{BROKE_OFF}{type(error).__name__}: {error}"
                    total.violations.append(f"{what}; {again(trial.name, its_seed, size)}")


def _processes() -> multiprocessing.context.BaseContext:
    """Where each part gets a process, which inherits no lock and no connection of another.

    Forked from one that has imported all trials, and does nothing else: to import them took each part half a second.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.torture.trials"])
    return context


def next_parts(most: int, missing: int, free: int, *, is_asked: bool) -> list[int]:
    """How many things each of the next parts is to try: of those ``missing``, for so many ``free`` places.

    The last parts share what is missing: a whole one for a few would take a minute, with nobody beside it. But a count
    that was asked for is that of a part as it was printed: another one, by another seed, is not what was found.
    """
    sizes: list[int] = []
    while len(sizes) < free and missing > 0:
        sizes.append(min(most, missing if is_asked else -(-missing // (free - len(sizes)))))
        missing -= sizes[-1]
    return sizes


if __name__ == "__main__":
    sys.exit(main())
