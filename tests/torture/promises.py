"""Which trials try which promise of docs/reliability.md, and the last column of its table, which a saved run writes.

A trial stands with a promise if its judge names a break of it as such; that the promise happens to be relied on in it
is not enough. Each trial tries several at once, so what it has found stands with each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.torture import (
    clock,
    corruption,
    hostile,
    io_errors,
    kills,
    memory,
    namespaces,
    powercut,
    resources,
    simulation,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.torture.trial import Trial

__all__ = ["NOT_RUN", "NO_TRIAL", "TRIED", "Figures", "filled", "names"]

Figures = tuple[str, str]  # of a trial: how many were tried, and the violations

NO_TRIAL: Final = "no trial, the tests alone"
DRAWN: Final[Mapping[str, str]] = {  # by random in the tests, by Hypothesis
    "slots": "no trial; random lives in the tests",
    "serial numbers": "no trial; random histories in the tests",
}
NOT_RUN: Final = "not in that run"

# The processes of these two have one judge (killing/rules.py, killing/spec.py).
_KILLS: Final = (kills.TRIAL, namespaces.TRIAL)
TRIED: Final[Mapping[str, tuple[Trial, ...]]] = {
    # "is entered, and runs in"; "a body is entered while process N is in one".
    "exclusion": (simulation.TRIAL, *_KILLS),
    # "is entered again without a verdict"; "entered again ..., and nobody gave a verdict".
    "crash": (simulation.TRIAL, *_KILLS),
    # What is left "is of N commits before one told of"; Told.lost and reboot().
    "power cut": (simulation.TRIAL, powercut.TRIAL),
    # "a final row changed"; "was final"; "must be replayed"; "was told for token N, and ... before".
    "final": (simulation.TRIAL, powercut.TRIAL, *_KILLS),
    # "is not above"; "was granted after"; "token N behind M"; "got token N, and M was given before".
    "token": (simulation.TRIAL, powercut.TRIAL, *_KILLS, corruption.TRIAL, clock.TRIAL),
    # Leases and waits under jumps; and purges too, whose ages the simulation does not judge.
    "clock": (simulation.TRIAL, clock.TRIAL),
    "slots": (),
    # "its owner lives"; "has lost its claim, and lives". Leases that expire are the simulation's only.
    "pause": (simulation.TRIAL, *_KILLS),
    # Without memory nothing can be stored either, and the judge is that of the I/O errors (injected/judge.py).
    "disk full, I/O error": (io_errors.TRIAL, memory.TRIAL, resources.TRIAL),
    # Files that were damaged, cut, exchanged or are gone; and those that somebody planted, or tampered with.
    "corruption": (corruption.TRIAL, hostile.TRIAL),
    "fork": (),
    # "step S is run again"; "is entered again, and was told to be done"; Told.steps; killing/pieces.py.
    "steps": (simulation.TRIAL, powercut.TRIAL, *_KILLS),
    # beside.swept(); "a sweep made S of"; killing/spec.py.
    "recovery": (simulation.TRIAL, powercut.TRIAL, *_KILLS),
    "serial numbers": (),
    "hostile input": (hostile.TRIAL,),
    "what is stored": (),
    "secrets": (),
}


def filled(table: str, figures: Mapping[str, Figures]) -> str:
    """The table of promises with these figures in its last column; all other columns are written by hand."""
    return "".join(_filled(line, figures) for line in table.splitlines(keepends=True))


def names(table: str) -> list[str]:
    """The promises of the table, in its order."""
    return [name for line in table.splitlines() if line.startswith("| ") and (name := _name(line))]


def _name(line: str) -> str:
    return line.removeprefix("|").partition("|")[0].strip()


def _filled(line: str, figures: Mapping[str, Figures]) -> str:
    if (trials := TRIED.get(name := _name(line))) is None:
        return line
    by_hand, _, _ = line.rstrip("\n").removesuffix("|").rpartition("|")
    return f"{by_hand}| {'; '.join(_told(trial, figures) for trial in trials) or DRAWN.get(name, NO_TRIAL)} |\n"


def _told(trial: Trial, figures: Mapping[str, Figures]) -> str:
    if (one := figures.get(trial.name)) is None:
        return f"`{trial.name}`: {NOT_RUN}"
    tried, violations = one
    return f"`{trial.name}`: {violations} in {tried} {trial.counted}"
