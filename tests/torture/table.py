"""What the last saved run of the trials has shown: in docs/reliability.md a table of trials, and a column of promises.

Under the table of trials stands what befell the product in each, the events of most times; and whatever could not be
tried. The last column of the promises is made from that table: ``python -m tests.torture.table`` writes it anew, where
a merge has brought the one and not the other.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

from tests.mutants.mutant import ROOT
from tests.support.block import Block
from tests.torture.promises import Figures, filled
from tests.torture.trial import NOT_TRIED, Trial
from tests.torture.trials import TRIALS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["PAGE", "figures", "promised", "rows", "save", "saved", "tell_promises"]

PAGE: Final = ROOT / "docs" / "reliability.md"
BEGIN: Final = "<!-- trials: written by `python -m tests.torture --save`, not by hand -->\n"
END: Final = "<!-- end of the trials -->\n"
PROMISES: Final = "<!-- promises: the last column is written by `python -m tests.torture --save`, not by hand -->\n"
END_OF_PROMISES: Final = "<!-- end of the promises -->\n"
WIDTH: Final = 120
MOST: Final = 8  # events of a trial, beside what was not tried
HEAD: Final = (
    "| trial | counted | in `make torture` | tried in this run, distinct | violations | s |\n"
    "|---|---|---:|---:|---:|---:|\n"
)


def rows(found: Mapping[str, Mapping[str, Any]], command: str, revision: str = "") -> str:
    """The table, and the command that has given its figures, at which revision of the code."""
    lines = [_row(trial.name, trial.counted, trial.count, found.get(trial.name)) for trial in TRIALS]
    events = [_events(trial, one["events"]) for trial in TRIALS if (one := found.get(trial.name)) and one["events"]]
    befell = "\nWhat befell the product meanwhile, most often:\n\n" + "".join(events) if events else ""
    of = f", at revision {revision}" if revision else ""
    return HEAD + "".join(lines) + f"\nBy `{command}`, on two cores{of}.\n" + befell


def _events(trial: Trial, events: Mapping[str, int]) -> str:
    missed = [event for event in events if event.startswith(NOT_TRIED)]
    told = [event for event in trial.told if event in events]
    others = sorted(events.keys() - {*missed, *told}, key=lambda event: (-events[event], event))
    words = ", ".join(f"{events[event]:,} {event}" for event in (*missed, *told, *others[: MOST - len(told)]))
    return textwrap.fill(f"- `{trial.name}`: {words}", WIDTH, subsequent_indent="  ", break_on_hyphens=False) + "\n"


def _row(name: str, counted: str, count: int, one: Mapping[str, Any] | None) -> str:
    tried = ("", "", "") if one is None else (f"{one['distinct']:,}", str(one["found"]), f"{one['seconds']:.0f}")
    return f"| `{name}` | {counted} | {count:,} | {' | '.join(tried)} |\n"


def saved(page: Path = PAGE) -> str:
    """The table of trials as it stands in the page."""
    return _trials(page).read()


def promised(page: Path = PAGE) -> str:
    """The table of promises as it stands there."""
    return _promises(page).read()


def save(found: Sequence[Mapping[str, Any]], command: str, revision: str = "", page: Path = PAGE) -> None:
    """Write the trials anew, and what they say of the promises."""
    _trials(page).write(rows({one["trial"]: one for one in found}, command, revision))
    tell_promises(page)


def tell_promises(page: Path = PAGE) -> None:
    """Write the last column of the promises, by the table of trials that is there."""
    _promises(page).write(filled(promised(page), figures(saved(page))))


def figures(table: str) -> dict[str, Figures]:
    """By trial, how many distinct things were tried and how many violations found; without those that were not run."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")]
    return {name.strip("`"): (tried, violations) for name, _, _, tried, violations, _ in cells if tried}


def _trials(page: Path) -> Block:
    return Block(page, BEGIN, END)


def _promises(page: Path) -> Block:
    return Block(page, PROMISES, END_OF_PROMISES)


if __name__ == "__main__":
    tell_promises()
