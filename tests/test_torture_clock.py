"""The trial of clocks: it finds nothing in the shipped code, and it finds what is broken on purpose."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.mutants import CATALOGUE, mutated
from tests.torture import clock


def test_a_few_histories() -> None:
    """Each is another, nothing is wrong in it, and what it is about has happened."""
    tally = clock.run(seed=11, count=3)
    assert tally.violations == []
    assert len(tally.distinct) == tally.tried == 3
    assert min(tally.events[what] for what in ("boots", "jumps of the wall clock", "purges", "tasks purged")) > 0


@pytest.mark.parametrize("name", ["clock-age-by-date", "clock-deadline-by-date"])
def test_a_mutant_is_found(name: str) -> None:
    """Within two histories, a hundredth of the trial's count, and it says how to see it again."""
    with mutated(CATALOGUE[name]) as folder:
        program = "from tests.torture import clock; print(*clock.run(1, 2).violations, sep='\\n')"
        found = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert "python -m tests.torture --only clock --seed 1 --count" in found.stdout
