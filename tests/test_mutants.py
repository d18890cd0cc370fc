"""The mutants of the shipped code: each still applies and has its killer; the sharpest are killed here and now.

All of them: ``make mutants``.
"""

from __future__ import annotations

import ast
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.mutants import CATALOGUE, Mutant
from tests.mutants.killing import judge
from tests.mutants.mutant import ROOT, Patch, applied
from tests.mutants.table import PAGE, killer_of, rows, saved

if TYPE_CHECKING:
    from pathlib import Path

LEAST = 30
BARRIERS = {
    "write turn",
    "BEGIN IMMEDIATE",
    "compare-and-set",
    "owner lock",
    "process check",
    "reader joins the sync",
}

# One a barrier, each with the one of its killer's cases that is the quickest.
SHARPEST = {
    "turn-not-taken": "[success]",
    "deferred-begin": "[verdict]",
    "claim-without-token": "[claim beside claim]",
    "byte-held-after-commit": "[claim]",
    "process-check-off": "[closes its descriptor]",
    "reader-does-not-join": "[get]",
}

each_mutant = pytest.mark.parametrize("mutant", CATALOGUE.values(), ids=[*CATALOGUE])


@cache
def names_in(file: Path) -> set[str]:
    """The tests of a file; those of a class by its name as well, and those it inherits by theirs alone."""
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@each_mutant
def test_each_mutant_applies(mutant: Mutant) -> None:
    """Every patch finds its text exactly once in the shipped code, and what it makes of it is Python."""
    for patches in (mutant.without, (*mutant.without, *mutant.patches)):
        for file, text in applied(patches).items():
            ast.parse(text, file)
    assert mutant.patches


@each_mutant
def test_each_mutant_has_a_killer(mutant: Mutant) -> None:
    """It is a test that exists, or a trial; and the mutant says what it breaks."""
    assert mutant.barrier
    assert mutant.what
    assert killer_of(mutant)
    if mutant.killer:
        file, *names = mutant.killer.partition("[")[0].split("::")
        assert set(names) <= names_in(ROOT / file)


def test_every_barrier_has_its_mutants() -> None:
    """At least so many in all, and some of every barrier; no two have one name."""
    assert len(CATALOGUE) >= LEAST
    assert {mutant.barrier for mutant in CATALOGUE.values()} >= BARRIERS


def test_the_table_tells_of_each() -> None:
    """The table in docs/reliability.md is that of the catalogue; `make mutants` writes it."""
    table, seconds = saved()
    assert table == rows(seconds), f"{PAGE}: run `make mutants`"


@pytest.mark.parametrize("name", SHARPEST)
def test_the_sharpest_are_killed(name: str) -> None:
    """Its killer fails with the mutant, and passes where only the other barriers are away."""
    mutant = CATALOGUE[name]
    verdict = judge(mutant._replace(killer=f"{mutant.killer}{SHARPEST[name]}"))
    assert verdict.is_well, verdict.output


def test_a_mutant_that_breaks_nothing_lives() -> None:
    """A killer that would fail anyway, or that a mutant leaves content, kills nothing."""
    harmless = Patch("idemreg/turn.py", "TRIES: Final = 10\n", "TRIES: Final = 11\n")
    killer = "tests/test_mutants.py::test_every_barrier_has_its_mutants"
    alive = judge(Mutant("harmless", "nothing", (harmless,), killer=killer))
    assert (alive.is_content, alive.is_killed) == (True, False)
    missing = judge(Mutant("harmless", "nothing", (harmless,), killer=f"{killer}_or_not"))
    assert not missing.is_content
    assert not missing.is_killed
