"""The trials themselves, tried: each finds its mutants within a hundredth of its count, and nothing without them.

A trial that finds something in any case would find every mutant. So there is a control: by the same seed and count it
must find nothing in the shipped code, nor where only the other barriers are away that would hide a mutant. Where it
does, or where it cannot be tried here, it has found nothing of what it says it has.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.mutants import CATALOGUE, Mutant, mutated

if TYPE_CHECKING:
    from tests.mutants.mutant import Patch
    from tests.torture.trial import Trial

__all__ = ["Shown", "power", "shown"]

SHARE: Final = 100  # of the count, the part in which a mutant must be found
TOLD: Final = 2_000  # characters of what a run has printed


class Shown(NamedTuple):
    """What a trial has shown in a copy of the tree."""

    findings: int  # without what says nothing of the product
    is_content: bool  # as much was tried as was to be, and no violation of whatever kind
    output: str


def power(trial: Trial, seed: int, jobs: int) -> list[dict[str, Any]]:
    """A row of each mutant of the trial; ``is_well`` where it was found, and its control was content."""
    controls: dict[tuple[Patch, ...], bool] = {}
    rows = []
    for name in trial.mutants:
        mutant = CATALOGUE[name]
        if mutant.without not in controls:
            controls[mutant.without] = _control(trial, mutant, seed, jobs)
        is_found = controls[mutant.without] and _is_found(trial, mutant, seed, jobs)
        rows.append({"trial": trial.name, "mutant": name, "is_well": is_found})
    return rows


def _control(trial: Trial, mutant: Mutant, seed: int, jobs: int) -> bool:
    control = shown(trial.name, mutant, seed, jobs, is_broken=False)
    away = f"without {mutant.off or 'what would hide ' + mutant.name}" if mutant.without else "as it is"
    print(f"{trial.name}: the code {away}: {'nothing' if control.is_content else 'NOT CONTENT'}", flush=True)
    if not control.is_content:
        print(control.output)
    return control.is_content


def _is_found(trial: Trial, mutant: Mutant, seed: int, jobs: int) -> bool:
    found = shown(trial.name, mutant, seed, jobs)
    print(f"{trial.name}: mutant {mutant.name}: {'found' if found.findings else 'NOT FOUND'}", flush=True)
    if not found.findings:
        print(found.output)
    return found.findings > 0


def shown(trial: str, mutant: Mutant, seed: int, jobs: int, *, is_broken: bool = True) -> Shown:
    """Run it where the mutant is; not ``is_broken``: where only those barriers are away that would hide it."""
    with mutated(mutant, is_broken=is_broken) as folder:
        file = folder / "found.json"
        words = ["--only", trial, "--seed", seed, "--jobs", jobs, "--share", SHARE, "--json", file]
        run = subprocess.run(
            [sys.executable, "-m", "tests.torture", *map(str, words)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        rows: list[dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.exists() else []
    is_content = not run.returncode and all(row["is_well"] for row in rows)
    output = run.stdout[-TOLD:] + run.stderr[-TOLD:]
    return Shown(sum(row["findings"] for row in rows), is_content and bool(rows), output)
