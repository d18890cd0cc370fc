"""The mutants of the shipped code: each still applies and has its killer; the sharpest are killed here and now.

All of them: ``make mutants``.
"""

from __future__ import annotations

import ast
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.mutants import CATALOGUE, Mutant
from tests.mutants.killing import judge, killed
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
    "file guard",
    "seal",
}

# One a barrier, each with the one of its killer's cases that is the quickest.
SHARPEST = {
    "turn-not-taken": "[success]",
    "deferred-begin": "[verdict]",
    "claim-without-token": "[claim beside claim]",
    "byte-held-after-commit": "[claim]",
    "process-check-off": "[closes its descriptor]",
    "reader-not-joining": "[get]",
    "guard-off": "",  # whose killer is one case
    "replay-without-seal": "[result]",
}


@cache
def names_in(file: Path) -> set[str]:
    """The tests of a file; those of a class by its name as well, and those it inherits by theirs alone."""
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_each_mutant_applies() -> None:
    """Every patch finds its text exactly once in the shipped code, and what it makes of it is Python."""
    for name, mutant in CATALOGUE.items():
        assert mutant.patches, name
        for patches in {mutant.without, (*mutant.without, *mutant.patches)}:
            for text in applied(patches).values():
                compile(text, name, "exec", ast.PyCF_ONLY_AST)


def test_each_mutant_has_a_killer() -> None:
    """It is a test that exists, or a trial; and the mutant says what it breaks, of which barrier where it is a test."""
    for name, mutant in CATALOGUE.items():
        assert mutant.what, name
        assert mutant.barrier or not mutant.killer, name
        assert killer_of(mutant), name
        if mutant.killer:
            file, *tests = mutant.killer.partition("[")[0].split("::")
            assert set(tests) <= names_in(ROOT / file), name


def test_every_barrier_has_its_mutants() -> None:
    """At least so many in all, and some of every barrier; no two have one name."""
    assert len(CATALOGUE) >= LEAST
    assert {mutant.barrier for mutant in CATALOGUE.values()} >= BARRIERS
    assert {CATALOGUE[name].barrier for name in SHARPEST} == BARRIERS


def test_the_table_tells_of_each() -> None:
    """The table in docs/reliability.md is that of the catalogue; `make mutants` writes it."""
    table, seconds = saved()
    assert table == rows(seconds), f"{PAGE}: run `make mutants`"


@pytest.mark.parametrize("name", SHARPEST)
def test_the_sharpest_are_killed(name: str) -> None:
    """Its killer fails with the mutant. That it passes where only the other barriers are away: `make mutants`."""
    mutant = CATALOGUE[name]
    killed_by, output = killed(mutant._replace(killer=f"{mutant.killer}{SHARPEST[name]}"))
    assert killed_by, output


def test_a_mutant_that_breaks_nothing_lives() -> None:
    """A killer that would fail anyway, or that a mutant leaves content, kills nothing."""
    harmless = Patch("idemreg/turn.py", "TRIES: Final = 10\n", "TRIES: Final = 11\n")
    killer = "tests/test_errors.py"
    alive = judge(Mutant("harmless", "nothing", (harmless,), killer=killer))
    assert (alive.is_content, alive.is_killed) == (True, False)
    missing = judge(Mutant("harmless", "nothing", (harmless,), killer=f"{killer}_or_not"))
    assert not missing.is_content
    assert not missing.is_killed
