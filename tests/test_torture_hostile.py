"""The trial of hostile input guards itself: it is content with the product, and not with two of its mutants."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.mutants import CATALOGUE, mutated
from tests.torture.hostile import TRIAL, run


def test_hostile_input_is_refused_in_order() -> None:
    """A tiny count of it: nothing is wrong, nearly all of it is distinct, and every kind of it was tried."""
    tally = run(4, 150)
    assert tally.violations == []
    assert len(tally.distinct) > 120
    assert tally.events.keys() == {"command", "call", "planted", "tampered", "process"}


def test_the_same_seed_tries_the_same() -> None:
    """So what a trial finds is found again."""
    assert run(5, 40).distinct == run(5, 40).distinct


@pytest.mark.parametrize("name", ["text-as-stored", "path-not-looked-at"])
def test_a_mutant_is_found(name: str) -> None:
    """Within a hundredth of the count."""
    assert name in TRIAL.mutants
    source = "from tests.torture.hostile import run; print(len(run(1, 100).violations))"
    with mutated(CATALOGUE[name]) as folder:
        found = subprocess.run([sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, check=True)
    assert int(found.stdout) > 0
