"""The trial of corrupted files guards itself: it is content with the product, and not with its mutants."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.mutants import CATALOGUE, mutated
from tests.torture import corruption
from tests.torture.corrupted.damage import AT_REST, Scene, damage
from tests.torture.corrupted.series import OTHER, make
from tests.torture.trial import Tally


def test_nothing_is_lost_by_corruption() -> None:
    """A tiny count: nothing is wrong, nearly all of it is distinct, and at rest and at work was tried."""
    tally = corruption.run(3, 120)
    assert tally.violations == []
    assert len(tally.distinct) > 110
    assert min(tally.events["alive"], tally.events["flips of database"], tally.events["StoreCorruptError"]) > 0


def test_every_kind_of_damage_is_tried() -> None:
    """Each of the kinds comes up, and says what it has chosen."""
    stages = make(OTHER)
    seen = set()
    for seed in range(300):
        kind, damaged = damage(Scene(stages, stages, Random(seed), with_checksums=False))  # noqa: S311 - by a seed
        seen.add(kind)
        assert damaged.what
    assert seen == {kind.__name__ for kind in AT_REST}


def test_a_death_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies by a signal is a violation, and the rest is tried by another."""

    def die(*_: object) -> dict[str, object]:
        import os  # noqa: PLC0415 - in the child

        os.abort()

    monkeypatch.setattr(corruption, "_try", die)
    monkeypatch.setattr(corruption, "make", lambda _name: ())
    tally = corruption.run(1, 2)
    assert isinstance(tally, Tally)
    assert [line.split(";")[0] for line in tally.violations] == [
        "0: the process ended with 6", "1: the process ended with 6",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["corrupt-rows-believed", "corrupt-whole-unchecked"])
def test_a_mutant_is_found(name: str) -> None:
    """Within a hundredth of the count."""
    assert name in corruption.TRIAL.mutants
    source = "from tests.torture.corruption import run; print(len(run(1, 150).violations))"
    with mutated(CATALOGUE[name]) as folder:
        found = subprocess.run([sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, check=True)
    assert int(found.stdout) > 0
    assert Path(folder) != Path.cwd()
