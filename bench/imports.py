"""What starting costs: whole processes, each timed against one that only imports what idemreg stands on.

`python -m bench.imports`, also called by `make bench`. The processes take turns within one run. Byte code is compiled
before, and the commands are those of an installed package: what an edge device or a cron line pays at each call.
"""

from __future__ import annotations

import argparse
import compileall
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

import idemreg

if TYPE_CHECKING:
    from collections.abc import Sequence

MEASURED = "import idemreg", "from idemreg import Registry", "idemreg show"
LIBRARY = "import apsw, json, hashlib"
COMMAND = "import click, apsw"


class Pair(NamedTuple):
    """A process, the one it is measured against, and how many times as long it may take; None: for information."""

    name: str
    argv: list[str]
    against: str
    goal: float | None


def pairs(database: str) -> list[Pair]:
    show = "import sys; from idemreg.__main__ import start; sys.argv = ['idemreg', *sys.argv[1:]]; start()"
    return [
        Pair(MEASURED[0], ["-c", MEASURED[0]], LIBRARY, 1.6),
        Pair(MEASURED[1], ["-c", MEASURED[1]], LIBRARY, None),
        Pair(MEASURED[2], ["-c", show, "--db", database, "show", "task"], COMMAND, 1.6),
    ]


def spent_ms(argv: Sequence[str], environment: dict[str, str]) -> float:
    began = time.perf_counter_ns()
    subprocess.run([sys.executable, *argv], env=environment, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter_ns() - began) / 1e6


def measure(runs: int) -> list[tuple[Pair, float, list[float]]]:
    """Of each pair the median milliseconds, and the ratios of the runs; the first run is not counted."""
    compileall.compile_dir(os.path.dirname(idemreg.__file__), quiet=2)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory(prefix="idemreg-bench-") as folder:
        database = os.path.join(folder, "jobs.db")
        with idemreg.Registry(database) as registry:
            registry.run("task", lambda: {"n": 1})
        rows = []
        for pair in pairs(database):
            turns = [
                (spent_ms(pair.argv, environment), spent_ms(["-c", pair.against], environment)) for _ in range(runs + 1)
            ]
            rows.append((pair, statistics.median(ours for ours, _ in turns[1:]), [a / b for a, b in turns[1:]]))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.imports", description="What starting costs.")
    parser.add_argument("--runs", type=int, default=21, help="counted runs of each process (21)")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs is 1 or more")
    print(f"{'process':<30}{'median':>9}{'ratio':>8}{'lowest':>8}{'highest':>9}  goal")
    for pair, median, ratios in measure(options.runs):
        ratio = statistics.median(ratios)
        goal = "" if pair.goal is None else f"<= {pair.goal}x {'reached' if ratio <= pair.goal else 'NOT REACHED'}"
        line = f"{pair.name:<30}{median:>6.1f} ms{ratio:>7.2f}x{min(ratios):>7.2f}x{max(ratios):>8.2f}x  {goal}"
        print(f"{line.rstrip()}  against python -c '{pair.against}'")


if __name__ == "__main__":
    main()
