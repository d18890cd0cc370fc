"""The table of trials in docs/reliability.md, between two markers: what the last saved run has shown.

Under it stands what befell the product in each trial, the events of most times; and whatever could not be tried.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

from tests.mutants.mutant import ROOT
from tests.support.block import Block
from tests.torture.trial import NOT_TRIED, Trial
from tests.torture.trials import TRIALS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["rows", "save", "saved"]

BLOCK: Final = Block(
    ROOT / "docs" / "reliability.md",
    "<!-- trials: written by `python -m tests.torture --save`, not by hand -->\n",
    "<!-- end of the trials -->\n",
)
WIDTH: Final = 120
MOST: Final = 8  # events of a trial, beside what was not tried
HEAD: Final = (
    "| trial | counted | in `make torture` | tried in this run, distinct | violations | s |\n"
    "|---|---|---:|---:|---:|---:|\n"
)


def rows(found: Mapping[str, Mapping[str, Any]], command: str) -> str:
    """The table, and the command that has given its figures."""
    lines = [_row(trial.name, trial.counted, trial.count, found.get(trial.name)) for trial in TRIALS]
    events = [_events(trial, one["events"]) for trial in TRIALS if (one := found.get(trial.name)) and one["events"]]
    befell = "\nWhat befell the product meanwhile, most often:\n\n" + "".join(events) if events else ""
    return HEAD + "".join(lines) + f"\nBy `{command}`, on two cores.\n" + befell


def _events(trial: Trial, events: Mapping[str, int]) -> str:
    missed = [event for event in events if event.startswith(NOT_TRIED)]
    told = [event for event in trial.told if event in events]
    others = sorted(events.keys() - {*missed, *told}, key=lambda event: (-events[event], event))
    words = ", ".join(f"{events[event]:,} {event}" for event in (*missed, *told, *others[: MOST - len(told)]))
    return textwrap.fill(f"- `{trial.name}`: {words}", WIDTH, subsequent_indent="  ", break_on_hyphens=False) + "\n"


def _row(name: str, counted: str, count: int, one: Mapping[str, Any] | None) -> str:
    tried = ("", "", "") if one is None else (f"{one['distinct']:,}", str(one["found"]), f"{one['seconds']:.0f}")
    return f"| `{name}` | {counted} | {count:,} | {' | '.join(tried)} |\n"


def saved() -> str:
    """The table as it stands in the page."""
    return BLOCK.read()


def save(found: Sequence[Mapping[str, Any]], command: str) -> None:
    """Write it anew."""
    BLOCK.write(rows({one["trial"]: one for one in found}, command))
