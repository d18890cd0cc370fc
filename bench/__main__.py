"""`make bench` and `make bench-full`: every figure, measured on this machine, with its goal.

    python -m bench                       the small set, about two minutes
    python -m bench --scale full          all of it, contenders and ten million rows included
    python -m bench --only processes-8    one figure, whatever the set
    python -m bench --list                what there is

All contenders of a figure are measured in one run on one file system, in rounds that take turns; a value is the median
of the rounds, printed with the lowest and the highest, which tell how far to trust it. Exit code 0 whether or not a
goal is reached; 2 where something that `--scale full` needs is missing, and says what.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from bench.figures import FIGURES
from bench.keep import save, write_json
from bench.machine import machine, revision
from bench.model import SCALES
from bench.report import figure_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.model import Figure, Scale

# A sync costs nothing there, so no figure at `full` would mean anything.
NO_DISK = frozenset({"tmpfs", "ramfs"})


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.list:
        for figure in FIGURES.values():
            print(f"{figure.name:<14} {figure.durability:<7} {figure.title}\n{'':<23}{figure.how}")
        return
    scale = SCALES[options.scale]
    if options.rounds:
        scale = scale._replace(rounds=options.rounds)
    chosen = [FIGURES[name] for name in options.only or FIGURES]
    chosen = [figure for figure in chosen if options.only or figure.is_small or scale.name != "small"]
    missing = dict.fromkeys(why for figure in chosen for why in figure.lacks())
    if missing and scale.name == "full" and not options.allow_absent:
        print("Missing, so the tables would have gaps (--allow-absent measures without):", file=sys.stderr)
        print("\n".join(f"    {why}" for why in missing), file=sys.stderr)
        sys.exit(2)
    run(chosen, scale, options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="What idemreg costs, and what others do.")
    parser.add_argument("--scale", choices=SCALES, default="small", help="how much is measured (small)")
    parser.add_argument("--only", choices=FIGURES, action="append", metavar="NAME", help="this figure; also several")
    parser.add_argument("--rounds", type=int, help="counted rounds of each figure")
    parser.add_argument("--folder", help="measure in this folder's file system (that of temporary files)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--save", action="store_true", help="put them into bench/results/, with tables and plots")
    parser.add_argument("--allow-absent", action="store_true", help="measure also where something is missing")
    parser.add_argument("--list", action="store_true", help="tell what there is, and measure nothing")
    options = parser.parse_args(arguments)
    if options.save and options.scale != "full":
        parser.error("what is kept is of --scale full")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds is 1 or more")
    return options


def run(chosen: Sequence[Figure], scale: Scale, options: argparse.Namespace) -> None:
    where = machine(options.folder or tempfile.gettempdir())
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    if where["file system"] in NO_DISK:
        print(f"{where['file system']}: a sync costs nothing here. Name a folder on a disk: --folder", file=sys.stderr)
    of = revision()  # before anything is saved: what is saved is a change to the checkout
    found: dict[str, Any] = {"machine": where, "figures": {}}
    for figure in chosen:
        found["figures"][figure.name] = measured(figure, scale, options, of)
        print(f"\n{figure_table(figure.name, found['figures'][figure.name], is_plain=True)}", flush=True)
        if options.json:
            write_json(options.json, found)
        if options.save:  # after each: an interruption costs one figure
            save(found)


def measured(figure: Figure, scale: Scale, options: argparse.Namespace, of: str) -> dict[str, Any]:
    """The figure as JSON, of that revision, measured in a folder that is removed afterwards."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="idemreg-bench-", dir=options.folder) as home:
        done = figure.measure(scale, home)
    return {
        "title": figure.title,
        "durability": figure.durability,
        "how": figure.how,
        "command": asked_for(figure, options),
        "measured_on": time.strftime("%Y-%m-%d", time.gmtime()),
        "took_s": round(time.perf_counter() - began, 1),
        "scale": scale._asdict(),
        "values": [value.as_json() for value in done.values],
        "sides": [side.as_json() for side in done.sides],
        "absent": done.absent,
        "notes": done.notes,
        "load": round(os.getloadavg()[2], 1),
        "revision": of,
    }


def asked_for(figure: Figure, options: argparse.Namespace) -> str:
    """The command that measures this figure alone as it was measured, without the name of a folder."""
    words = ["python", "-m", "bench", "--scale", options.scale, "--only", figure.name]
    if options.rounds:
        words += ["--rounds", str(options.rounds)]
    if options.folder:
        words += ["--folder", "FOLDER"]
    if options.allow_absent:
        words += ["--allow-absent"]
    return shlex.join(words)


if __name__ == "__main__":
    main()
