"""Kills the mutants, and says by which test: ``python -m tests.mutants --only claim-without-token``.

Each killer is run twice: in a tree in which only the other barriers are away, where it must pass, and in one with the
mutant as well, where it must fail. Mutants that a trial finds are left to ``python -m tests.torture --power``. With
``--save`` the table in docs/reliability.md is written anew. Ends with 1 where a mutant lives, or a killer fails alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.mutants.catalogue import CATALOGUE
from tests.mutants.killing import Verdict, judge
from tests.mutants.table import save

if TYPE_CHECKING:
    from tests.mutants.mutant import Mutant


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Mutants of the shipped code.")
    parser.add_argument("--only", action="append", choices=[*CATALOGUE], metavar="NAME", help="this mutant; repeatable")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--save", action="store_true", help="write the table in docs/reliability.md anew")
    return parser.parse_args()


def main() -> int:
    """Carry out what the command line says."""
    options = _options()
    mutants = [one for one in CATALOGUE.values() if one.killer and (not options.only or one.name in options.only)]
    with ThreadPoolExecutor(options.jobs) as pool:
        verdicts = list(pool.map(_told, mutants))
    alive = [verdict.mutant.name for verdict in verdicts if not verdict.is_well]
    print(f"{len(mutants) - len(alive)} of {len(mutants)} mutants killed, each by the barrier that is left alone")
    if options.save and not alive and not options.only:
        save(verdicts)
    return int(bool(alive))


def _told(mutant: Mutant) -> Verdict:
    verdict = judge(mutant)
    word = "killed" if verdict.is_well else "ALIVE" if verdict.is_content else "ITS KILLER FAILS WITHOUT IT"
    off = f" (off: {mutant.off})" if mutant.off else ""
    line = (
        f"{mutant.name}: {mutant.what}{off}: {word} in {verdict.seconds:.1f} s by {verdict.killed_by or mutant.killer}"
    )
    print(line if verdict.is_well else f"{line}\n{verdict.output[-4_000:]}", flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main())
