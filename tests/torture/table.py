"""What the last saved run of the trials has shown: in docs/reliability.md a table of trials, and a column of promises.

Under the table of trials stands what befell the product in each, the events of most times; and whatever could not be
tried. A run of some trials only leaves the others as they stand. The last column of the promises is made from that
table: ``python -m tests.torture.table`` writes it anew, where a merge has brought the one and not the other.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.mutants.mutant import ROOT
from tests.support.block import Block
from tests.torture.promises import Figures, filled
from tests.torture.trial import NOT_TRIED, Trial
from tests.torture.trials import TRIALS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["PAGE", "Text", "figures", "parsed", "promised", "save", "saved", "table", "tell_promises", "texts"]

PAGE: Final = ROOT / "docs" / "reliability.md"
BEGIN: Final = "<!-- trials: written by `python -m tests.torture --save`, not by hand -->\n"
END: Final = "<!-- end of the trials -->\n"
PROMISES: Final = "<!-- promises: the last column is written by `python -m tests.torture --save`, not by hand -->\n"
END_OF_PROMISES: Final = "<!-- end of the promises -->\n"
WIDTH: Final = 120
MOST: Final = 8  # events of a trial, beside what was not tried
HEAD: Final = (
    "| trial | counted | in `make torture` | tried, distinct | violations | s | with | at |\n"
    "|---|---|---:|---:|---:|---:|---|---|\n"
)
BEFELL: Final = "\nWhat befell the product meanwhile, most often:\n\n"


class Text(NamedTuple):
    """What the page says of a trial: its row, and a line of what befell the product, or none."""

    row: str
    events: str = ""


def table(texts: Mapping[str, Text]) -> str:
    """Of each trial by its name; one that was not tried has an empty row."""
    lines = [(texts.get(trial.name) or Text(_row(trial, None))).row for trial in TRIALS]
    events = [text.events for trial in TRIALS if (text := texts.get(trial.name))]
    return HEAD + "".join(lines) + (BEFELL + "".join(events) if any(events) else "")


def texts(found: Sequence[Mapping[str, Any]], options: str = "", revision: str = "") -> dict[str, Text]:
    """Of what a run has found, with these ``options`` of the command, at this revision of the code."""
    by_name = {trial.name: trial for trial in TRIALS}
    return {
        one["trial"]: Text(
            _row(by_name[one["trial"]], one, options, revision), _events(by_name[one["trial"]], one["events"])
        )
        for one in found
    }


def parsed(table: str) -> dict[str, Text]:
    """What stands there already."""
    rows, _, events = table.removeprefix(HEAD).partition(BEFELL)
    told = {line.split("`")[1]: f"- {line}" for line in f"\n{events}".split("\n- ")[1:]}
    return {
        name: Text(f"{row}\n", f"{told[name].rstrip()}\n" if name in told else "")
        for row in rows.splitlines()
        if (name := row.split("`")[1])
    }


def _events(trial: Trial, events: Mapping[str, int]) -> str:
    if not events:
        return ""
    missed = [event for event in events if event.startswith(NOT_TRIED)]
    told = [event for event in trial.told if event in events]
    others = sorted(events.keys() - {*missed, *told}, key=lambda event: (-events[event], event))
    words = ", ".join(f"{events[event]:,} {event}" for event in (*missed, *told, *others[: MOST - len(told)]))
    return textwrap.fill(f"- `{trial.name}`: {words}", WIDTH, subsequent_indent="  ", break_on_hyphens=False) + "\n"


def _row(trial: Trial, one: Mapping[str, Any] | None, options: str = "", revision: str = "") -> str:
    tried = ("",) * 5
    if one is not None:
        tried = (
            f"{one['distinct']:,}",
            str(one["found"]),
            f"{one['seconds']:.0f}",
            options and f"`{options}`",
            revision,
        )
    return f"| `{trial.name}` | {trial.counted} | {trial.count:,} | {' | '.join(tried)} |\n"


def saved(page: Path = PAGE) -> str:
    """The table of trials as it stands in the page."""
    return _trials(page).read()


def promised(page: Path = PAGE) -> str:
    """The table of promises as it stands there."""
    return _promises(page).read()


def save(found: Sequence[Mapping[str, Any]], options: str = "", revision: str = "", page: Path = PAGE) -> None:
    """Write the trials anew that were tried, and what they say of the promises."""
    _trials(page).write(table(parsed(saved(page)) | texts(found, options, revision)))
    tell_promises(page)


def tell_promises(page: Path = PAGE) -> None:
    """Write the last column of the promises, by the table of trials that is there."""
    _promises(page).write(filled(promised(page), figures(saved(page))))


def figures(table: str) -> dict[str, Figures]:
    """By trial, how many distinct things were tried and how many violations found; without those that were not run."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")]
    return {name.strip("`"): (tried, violations) for name, _, _, tried, violations, *_ in cells if tried}


def _trials(page: Path) -> Block:
    return Block(page, BEGIN, END)


def _promises(page: Path) -> Block:
    return Block(page, PROMISES, END_OF_PROMISES)


if __name__ == "__main__":
    tell_promises()
