"""The table of trials in docs/reliability.md, between two markers: what the last saved run has shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tests.mutants.mutant import ROOT
from tests.support.block import Block
from tests.torture.trials import TRIALS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["rows", "save", "saved"]

BLOCK: Final = Block(
    ROOT / "docs" / "reliability.md",
    "<!-- trials: written by `python -m tests.torture --save`, not by hand -->\n",
    "<!-- end of the trials -->\n",
)
HEAD: Final = (
    "| trial | counted | in `make torture` | tried in this run, distinct | violations | s |\n"
    "|---|---|---:|---:|---:|---:|\n"
)


def rows(found: Mapping[str, Mapping[str, Any]], command: str) -> str:
    """The table, and the command that has given its figures."""
    lines = [_row(trial.name, trial.counted, trial.count, found.get(trial.name)) for trial in TRIALS]
    return HEAD + "".join(lines) + f"\nBy `{command}`, on two cores.\n"


def _row(name: str, counted: str, count: int, one: Mapping[str, Any] | None) -> str:
    tried = ("", "", "") if one is None else (f"{one['distinct']:,}", str(one["found"]), f"{one['seconds']:.0f}")
    return f"| `{name}` | {counted} | {count:,} | {' | '.join(tried)} |\n"


def saved() -> str:
    """The table as it stands in the page."""
    return BLOCK.read()


def save(found: Sequence[Mapping[str, Any]], command: str) -> None:
    """Write it anew."""
    BLOCK.write(rows({one["trial"]: one for one in found}, command))
