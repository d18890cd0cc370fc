"""The table of mutants in docs/reliability.md, between two markers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tests.mutants.catalogue import CATALOGUE
from tests.mutants.mutant import ROOT
from tests.support.block import Block
from tests.torture.trials import TRIALS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.mutants.killing import Verdict
    from tests.mutants.mutant import Mutant

__all__ = ["PAGE", "killer_of", "rows", "save", "saved"]

PAGE: Final = ROOT / "docs" / "reliability.md"
BLOCK: Final = Block(
    PAGE, "<!-- mutants: written by `make mutants`, not by hand -->\n", "<!-- end of the mutants -->\n"
)
HEAD: Final = "| barrier | mutant | what is broken | off besides | killed by | s |\n|---|---|---|---|---|---:|\n"


def killer_of(mutant: Mutant) -> str:
    """The test that kills it, or the trials that find it; empty where nothing does."""
    if mutant.killer:
        return f"`{mutant.killer}`"
    return ", ".join(f"trial `{one.name}`" for one in TRIALS if mutant.name in one.mutants)


def rows(seconds: Mapping[str, str]) -> str:
    """The table, with how long each killer took."""
    return HEAD + "".join(
        f"| {one.barrier} | `{one.name}` | {one.what} | {one.off} | {killer_of(one)} | {seconds.get(one.name, '')} |\n"
        for one in CATALOGUE.values()
    )


def saved() -> tuple[str, dict[str, str]]:
    """The table as it stands in the page, and the times in it."""
    table = BLOCK.read()
    return table, dict(re.findall(r"^\|[^|]*\| `([\w-]+)` .*\| ([\d.]+) \|$", table, re.MULTILINE))


def save(verdicts: Iterable[Verdict]) -> None:
    """Write it anew."""
    seconds = {verdict.mutant.name: f"{verdict.seconds:.1f}" for verdict in verdicts}
    BLOCK.write(rows(seconds))
