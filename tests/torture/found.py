"""Which mutants each trial has found, in the last saved run of ``python -m tests.torture --power``: a table.

A run of some trials only leaves the rows of the others as they stand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tests.support.block import Block
from tests.torture.power import SHARE
from tests.torture.table import PAGE
from tests.torture.trials import TRIALS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.torture.trial import Trial

__all__ = ["save"]

BEGIN: Final = "<!-- power: written by `python -m tests.torture --power --save`, not by hand -->\n"
END: Final = "<!-- end of the power -->\n"
HEAD: Final = "| trial | in a hundredth | its mutants | found | with | at |\n|---|---:|---:|---:|---|---|\n"


def save(found: Sequence[Mapping[str, Any]], options: str = "", revision: str = "", page: Path = PAGE) -> None:
    """Write the rows anew of the trials whose mutants were tried."""
    block = Block(page, BEGIN, END)
    rows = {line.split("`")[1]: f"{line}\n" for line in block.read().removeprefix(HEAD).splitlines()}
    for trial in TRIALS:
        if of_it := [one for one in found if one["trial"] == trial.name]:
            rows[trial.name] = _row(trial, of_it, options, revision)
    block.write(HEAD + "".join(rows[trial.name] for trial in TRIALS if trial.name in rows))


def _row(trial: Trial, found: Sequence[Mapping[str, Any]], options: str, revision: str) -> str:
    missed = [f"`{one['mutant']}`" for one in found if not one["is_well"]]
    told = f"{len(found) - len(missed)}{', not ' + ', '.join(missed) if missed else ''}"
    counted = f"{-(-trial.count // SHARE):,} {trial.counted}"
    cells = (f"`{trial.name}`", counted, str(len(found)), told, options and f"`{options}`", revision)
    return f"| {' | '.join(cells)} |\n"
