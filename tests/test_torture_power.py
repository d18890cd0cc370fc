"""That a trial finds a mutant is said where it has found something, and nothing without the mutant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.mutants.mutant import Mutant, Patch
from tests.torture import power
from tests.torture.power import Shown
from tests.torture.trial import BROKE_OFF, NOT_TRIED, Tally, Trial, is_finding

if TYPE_CHECKING:
    from collections.abc import Callable

CONTENT = Shown(0, is_content=True, output="")
FINDS = Shown(3, is_content=False, output="")
MISSED = Shown(0, is_content=False, output="")  # what says nothing of the product

BARRIER = Patch("idemreg/model.py", "one", "none")
OTHER = Patch("idemreg/model.py", "other", "none")

PLAIN = Mutant("plain", "no barrier is there", (BARRIER,))
HIDDEN = Mutant("hidden", "no barrier is there", (BARRIER,), without=(OTHER,), off="the other")
HIDDEN_TOO = HIDDEN._replace(name="hidden too")


@pytest.mark.parametrize(
    ("violation", "says"),
    [
        ("t was entered twice; again: ...", True),
        ("the process ended with -11 at claim", True),
        (f"{NOT_TRIED}a disk of its own (nobody here may mount)", False),
        (f"{BROKE_OFF}KeyError: 3; again: ...", False),
    ],
)
def test_what_was_not_tried_is_no_finding(violation: str, *, says: bool) -> None:
    """It is a violation all the same, where all must be tried."""
    assert is_finding(violation) is says


def tried(
    monkeypatch: pytest.MonkeyPatch, shows: Callable[[Mutant, bool], Shown], *mutants: Mutant
) -> tuple[dict[str, bool], list[tuple[str, bool]]]:
    """Which mutants count as found, and what was run: each mutant's name, and whether it was in."""
    runs = []

    def shown(_trial: str, mutant: Mutant, seed: int, jobs: int, *, is_broken: bool = True) -> Shown:
        assert (seed, jobs) == (7, 2)
        runs.append((mutant.name, is_broken))
        return shows(mutant, is_broken)

    monkeypatch.setattr(power, "shown", shown)
    monkeypatch.setattr(power, "CATALOGUE", {one.name: one for one in mutants})
    trial = Trial("fake", "things", 100, 1, lambda _seed, _count: Tally(), tuple(one.name for one in mutants))
    return {row["mutant"]: row["is_well"] for row in power.power(trial, 7, 2)}, runs


def test_a_mutant_is_found_where_nothing_is_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped code is tried once, and so is each of the codes that lack other barriers."""
    found, runs = tried(monkeypatch, lambda _, is_broken: FINDS if is_broken else CONTENT, PLAIN, HIDDEN, HIDDEN_TOO)
    assert found == {"plain": True, "hidden": True, "hidden too": True}
    assert runs == [("plain", False), ("plain", True), ("hidden", False), ("hidden", True), ("hidden too", True)]


@pytest.mark.parametrize("shows", [CONTENT, MISSED])
def test_what_finds_nothing_has_found_no_mutant(monkeypatch: pytest.MonkeyPatch, shows: Shown) -> None:
    """Nor where it only was not tried."""
    found, _ = tried(monkeypatch, lambda _, is_broken: shows if is_broken else CONTENT, PLAIN)
    assert found == {"plain": False}


@pytest.mark.parametrize("control", [FINDS, MISSED])
def test_what_is_never_content_has_found_no_mutant(monkeypatch: pytest.MonkeyPatch, control: Shown) -> None:
    """It would find any; those whose own control is content are found."""
    found, runs = tried(
        monkeypatch, lambda one, is_broken: FINDS if is_broken else control if one.without else CONTENT, PLAIN, HIDDEN
    )
    assert found == {"plain": True, "hidden": False}
    assert ("hidden", True) not in runs


# --- a run in a copy ------------------------------------------------------------------------------------------------

# A trial of that copy alone, which finds nothing.
FAKE = """
def found(seed: int, count: int) -> Tally:
    return Tally(count, {*range(count)}, [])

TRIALS = (Trial("fake", "things", 100, 1, found),)
"""


def fake(finds: str) -> Mutant:
    """A trial that finds this where the mutant is, and nothing without it."""
    file = "tests/torture/trials.py"
    there = (
        Patch(file, "if TYPE_CHECKING:\n", "if True:\n"),
        Patch(file, "import Trial\n", "import NOT_TRIED, Tally, Trial\n"),
        Patch(file, "    hostile.TRIAL,\n)\n", f"    hostile.TRIAL,\n)\n{FAKE}"),
    )
    return Mutant("fake", "a trial", (Patch(file, "range(count)}, [])", f"range(count)}}, {finds})"),), without=there)


def test_a_run_in_a_copy_says_what_it_has_found() -> None:
    """By what it has written, whatever it prints: how much says something of the product, and whether all is well."""
    found = power.shown("fake", fake('["t was entered twice", NOT_TRIED + "more"]'), 7, 1)
    assert found[:2] == (1, False)
    assert "2 violations in 1 distinct things" in found.output
    control = power.shown("fake", fake("[]"), 7, 1, is_broken=False)
    assert control[:2] == (0, True)


def test_a_run_that_ends_before_it_has_written_has_shown_nothing() -> None:
    """An import that fails, say, is no finding."""
    ended = power.shown("fake", fake("[]")._replace(without=()), 7, 1, is_broken=False)
    assert ended[:2] == (0, False)
    assert "invalid choice: 'fake'" in ended.output
