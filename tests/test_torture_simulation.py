"""The simulation itself: it finds nothing in the shipped code, finds what is broken on purpose, and repeats itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from idemreg import faults
from tests.mutants import CATALOGUE, mutated
from tests.simulator.schedule import playground
from tests.torture import simulation

# A program that plays schedules until one shows a violation.
PLAY = """
import sys
from tests.simulator.schedule import playground
with playground() as ground:
    for seed in range(1, 501):
        played = ground.play(seed)
        if played.violation:
            print(played.violation)
            sys.exit(1)
"""


def test_nothing_is_broken() -> None:
    """Some schedules with all kinds of faults in them break no promise, and each is another."""
    tally = simulation.run(1, 60)
    assert not tally.violations
    assert len(tally.distinct) == tally.tried == 60
    assert {"crashes", "stops", "power cuts", "reboots", "lost locks"} <= tally.events.keys()


def test_a_seed_is_a_schedule() -> None:
    """The same seed gives the same steps, whatever was played before it in the same process."""
    with playground() as ground:
        forth = [ground.play(seed).digest for seed in range(1, 16)]
        back = [ground.play(seed).digest for seed in range(15, 0, -1)]
    assert forth == back[::-1]
    assert len(set(forth)) == len(forth)


def test_a_schedule_alone_is_the_same() -> None:
    """What is printed with a violation plays the very schedule again: the first of a part is the seed's own."""
    later = 3 + 2 * simulation.APART
    some, alone = simulation.run(3, 3), simulation.run(later, 1)
    assert alone.distinct < some.distinct


def test_every_point_is_passed() -> None:
    """The schedules come past each fault point that belongs to what they do."""
    passed: set[str] = set()
    with playground() as ground:
        for seed in range(1, 80):
            passed |= ground.play(seed).points
    not_simulated = ("create.", "migrate.", "import.", "backup.", "place.", "command.", "serial.", "slots.")
    assert {point for point in faults.POINTS if not point.startswith(not_simulated)} <= passed


def test_nothing_is_left_in_place() -> None:
    """Behind a schedule the system is the real one again."""
    from idemreg import futex, liveness  # noqa: PLC0415 - looked at before and behind
    from idemreg.sqlite import files, opening, syncing  # noqa: PLC0415

    def now() -> list[Any]:
        return [vars(module).copy() for module in (files, futex, liveness, opening, syncing)]

    before = now()
    simulation.run(1, 2)
    assert now() == before
    assert vars(liveness)["os"] is os
    assert not faults._armed


@pytest.mark.parametrize("name", ["token-not-increased", "hold-reruns"])
def test_what_is_broken_is_found(name: str) -> None:
    """A mutant of the shipped code is found within some hundred schedules."""
    with mutated(CATALOGUE[name]) as folder:
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        run = subprocess.run(
            [sys.executable, "-c", PLAY], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    assert run.returncode == 1, run.stderr
    assert run.stdout
