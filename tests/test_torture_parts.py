"""How the parts of a trial are shared out."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support import compiled
from tests.torture import clock, kills, namespaces, resources
from tests.torture.__main__ import _run, next_parts, options_of
from tests.torture.clock import HangError
from tests.torture.trial import Tally, Trial, again
from tests.torture.trials import TRIALS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.torture.clock import World


# What one `make torture` is to try: these figures are promised, and a trial that got too slow does not lower its own.
COUNTS = {
    "simulation": (200_000, "schedules"),
    "powercut": (1_000_000, "images"),
    "io-errors": (100_000, "faults"),
    "out-of-memory": (20_000, "allocations"),
    "kills": (500_000, "calls"),
    "corruption": (50_000, "corruptions"),
    "resources": (200, "cycles"),
    "clock": (200, "histories"),
    "namespaces": (500, "kills"),
    "hostile": (10_000, "inputs"),
}


def test_each_trial_tries_as_many_as_is_promised() -> None:
    """Distinct ones, by its own hash of them; and the calls of `kills` come with 5,000 kills."""
    assert {trial.name: (trial.count, trial.counted) for trial in TRIALS} == COUNTS
    assert COUNTS["kills"][0] // kills.CALLS_A_KILL == 5_000


def half(seed: int, count: int) -> Tally:
    """A part of which every second thing has come before."""
    return Tally(count, {seed * 1_000 + number // 2 for number in range(count)})


def test_the_last_parts_are_as_small_as_what_is_missing() -> None:
    """What has come twice is tried anew, and not a whole part for a few."""
    tally = _run(Trial("halves", "things", 12, 6, half), 12, seed=1, jobs=1)
    assert len(tally.distinct) >= 12
    assert tally.tried <= 6 + 6 + 6 + 3 + 2 + 1


def test_the_last_parts_are_shared_out() -> None:
    """What is missing goes to all that work, so none of them waits for the last part."""
    seen = _run(Trial("sizes", "sizes", 8, 6, size), 8, seed=1, jobs=2)
    assert sorted(seen.events.elements()) == ["4", "4"]


def test_a_trial_that_waits_runs_more_parts() -> None:
    """Where a part often waits, another goes on beside it on the same processor."""
    seen = _run(Trial("sizes", "sizes", 8, 6, size, crowd=2), 8, seed=1, jobs=2)
    assert sorted(seen.events.elements()) == ["2", "2", "2", "2"]


def size(seed: int, count: int) -> Tally:
    """A part that tells how much it was to try."""
    return Tally(count, {seed * 1_000 + number for number in range(count)}, events=Counter([str(count)]))


@pytest.mark.usefixtures("compiler")
def test_parts_compile_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one of them has compiled is there for the next; another source is compiled anew."""
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path))
    source = tmp_path / "one.c"
    source.write_text("int one(void) { return 1; }\n")
    first = compiled.library([source])
    made = os.stat(first)
    assert (compiled.library([source]), os.stat(first)) == (first, made)
    source.write_text("int one(void) { return 2; }\n")
    assert compiled.library([source]) != first


def test_parts_end_where_nothing_new_comes() -> None:
    """A trial that does not come to its count ends all the same."""
    tally = _run(Trial("nothing", "things", 2, 2, nothing), 2, seed=1, jobs=1)
    assert not tally.distinct


def nothing(_seed: int, count: int) -> Tally:
    """A part that finds nothing new."""
    return Tally(count)


def test_a_part_that_breaks_off_is_told_and_the_others_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    """By the command that calls it again, as whatever is found."""
    tally = _run(Trial("breaks", "things", 12, 4, breaks), 12, seed=1, jobs=1)
    assert tally.violations == [f"broke off: KeyError: 3; {again('breaks', 3, 4)}"]
    assert len(tally.distinct) == 12
    assert "in breaks" in capfd.readouterr().err, "the traceback says where"


def breaks(seed: int, count: int) -> Tally:
    """A part that breaks off where it is the third."""
    if seed == 3:
        raise KeyError(seed)
    return Tally(count, {seed * 1_000 + number for number in range(count)})


# --- a printed command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_a_printed_command_is_that_part_alone(trial: Trial) -> None:
    """Whatever a part has printed leads to the same seed and count, on any number of processors."""
    for count in (1, trial.part // 2 + 1, trial.part):
        words = shlex.split(again(trial.name, 7, count))
        assert words[:3] == ["python", "-m", "tests.torture"]
        options = options_of(words[3:])
        assert (options.only, options.seed) == ([trial.name], 7)
        for free in (1, 2, 8):
            assert next_parts(trial.part, options.count, free, is_asked=True) == [count]


def test_what_is_asked_for_is_one_part() -> None:
    """The count is its own, the seed that of the command, and nobody shares it."""
    seen = _run(Trial("sizes", "sizes", 8, 6, size), 5, seed=7, jobs=2, is_asked=True)
    assert seen.distinct == {7_000 + number for number in range(5)}


def test_more_than_a_part_is_asked_for() -> None:
    """It is split as a whole run is: into whole parts, and what is left."""
    assert next_parts(2_500, 6_000, 2, is_asked=True) == [2_500, 2_500]
    assert next_parts(2_500, 1_000, 1, is_asked=True) == [1_000]
    assert next_parts(2_500, 1_000, 2, is_asked=False) == [500, 500]


@pytest.mark.parametrize(("missing", "free"), [(0, 2), (-3, 2), (5, 0)])
def test_nothing_is_begun_where_nothing_is_missing_or_free(missing: int, free: int) -> None:
    """Nor where there is no place for it."""
    for is_asked in (False, True):
        assert next_parts(6, missing, free, is_asked=is_asked) == []


def hang(world: World) -> None:
    world.plan.append("nothing")
    raise HangError


def test_what_is_printed_is_what_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of a finding names the seed of its part, and its count or as much of it as came to the finding."""
    monkeypatch.setattr(clock, "live", hang)
    assert [line.partition("[")[2] for line in clock.run(7, 2).violations] == [
        f"{again('clock', 7, 1)}]", f"{again('clock', 7, 2)}]",
    ]  # fmt: skip
    monkeypatch.setattr(namespaces, "sides", tuple)
    assert f"({again('namespaces', 7, 20)})" in namespaces.run(7, 20).violations[0]
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert resources.run(7, 4).violations[0].endswith(again("resources", 7, 4))
