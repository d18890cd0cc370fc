"""The table of the trials says what was counted, what befell the product meanwhile, and what could not be tried.

And with each promise of docs/reliability.md stand the trials that try it, and what they have found; with each finding
stands the test that keeps it from coming back.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.torture.__main__ import options_of
from tests.torture.injected.commands import CASES
from tests.torture.injected.shim import ERRORS, IO_KINDS, LASTING
from tests.torture.injected.states import NAMES
from tests.torture.promises import NO_TRIAL, NOT_RUN, TRIED, filled, names
from tests.torture.table import HEAD, MOST, PAGE, figures, promised, rows, save, saved
from tests.torture.trial import NOT_TRIED
from tests.torture.trials import TRIALS

if TYPE_CHECKING:
    from pathlib import Path


def found(**events: int) -> dict[str, Any]:
    """What a run of a trial has shown."""
    return {"distinct": 50_120, "found": 0, "seconds": 25.2, "events": events}


def test_the_page_has_a_row_of_each_trial() -> None:
    """Whatever was saved last: the head and the rows are those that would be written now."""
    assert saved().startswith(HEAD)
    assert [line.split("`")[1] for line in saved()[len(HEAD) :].splitlines()[: len(TRIALS)]] == [
        trial.name for trial in TRIALS
    ]


def test_what_a_trial_is_about_is_told_first() -> None:
    """The kills of the kills, though each kind of answer comes more often; and not every answer."""
    answers = {f"answer {number}": 1_000 + number for number in range(2 * MOST)}
    text = rows({"kills": found(kills=501, stops=73, **answers)}, "python -m tests.torture")
    (line,) = (" ".join(one.split()) for one in text.split("\n- ")[1:])
    assert line.startswith(f"`kills`: 501 kills, 73 stops, 1,{2 * MOST - 1:03} answer {2 * MOST - 1}, ")
    assert line.count("answer") == MOST - 2


def test_what_could_not_be_tried_is_always_told() -> None:
    """Once is enough, and it comes before all else."""
    more = {f"answer {number}": 1_000 for number in range(2 * MOST)}
    text = rows({"clock": found(**{**more, f"{NOT_TRIED}another time namespace": 1})}, "python -m tests.torture")
    assert f"- `clock`: 1 {NOT_TRIED}another time namespace, 1,000 answer" in text


def test_the_figures_say_of_which_code_they_are() -> None:
    """Where it is a checkout; a + says that it was changed since its commit."""
    assert "\nBy `it`, on two cores, at revision 1234567+.\n" in rows({"clock": found(calls=1)}, "it", "1234567+")


def test_nothing_befell_nobody() -> None:
    """Without events the table stands alone."""
    assert rows({"clock": found()}, "it").endswith("By `it`, on two cores.\n")


# --- promises -----------------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A copy of the page."""
    copy = tmp_path / PAGE.name
    copy.write_text(PAGE.read_text("utf-8"), "utf-8")
    return copy


def last(table: str, promise: str) -> str:
    """The last column of a promise."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {promise} |")]
    return line.split("|")[-2].strip()


def by_hand(table: str) -> list[str]:
    """All that stands before the last column."""
    return [line.rpartition(" | ")[0] for line in table.splitlines()]


def test_each_promise_has_its_tests_and_its_trials() -> None:
    """The promises of the page are those of the mapping, in its order; and there is no trial that tries none."""
    assert names(promised()) == list(TRIED)
    assert all("`tests/" in line for line in promised().splitlines()[2:])
    assert {trial.name for trials in TRIED.values() for trial in trials} == {trial.name for trial in TRIALS}


def test_the_promises_have_the_figures_of_the_trials() -> None:
    """Those that stand in the table of trials: where a merge has parted them, run `python -m tests.torture.table`."""
    assert filled(promised(), figures(saved())) == promised()


def test_a_saved_run_writes_both(page: Path) -> None:
    """The trials and, with each promise, what those of them have found that try it; what stands by hand stays."""
    before = promised(page)
    kills = {"trial": "kills", **found(), "distinct": 501_234}
    save([kills, {"trial": "hostile", **found(), "found": 3}], "it", page=page)
    assert figures(saved(page)) == {"kills": ("501,234", "0"), "hostile": ("50,120", "3")}
    assert last(promised(page), "crash") == (
        f"`simulation`: {NOT_RUN}; `kills`: 0 in 501,234 calls; `namespaces`: {NOT_RUN}"
    )
    assert last(promised(page), "hostile input") == "`hostile`: 3 in 50,120 inputs"
    assert last(promised(page), "fork") == NO_TRIAL
    assert by_hand(promised(page)) == by_hand(before)


def test_to_write_it_again_changes_nothing(page: Path) -> None:
    """Nor does a run add to what the one before it has written."""
    run = [{"trial": trial.name, **found(calls=5)} for trial in TRIALS]
    save(run, "it", page=page)
    once = page.read_text("utf-8")
    save(run, "it", page=page)
    assert page.read_text("utf-8") == once
    assert NOT_RUN not in once


def test_a_promise_that_nobody_has_mapped_is_seen() -> None:
    """It is named, keeps its line, and so is no promise of the mapping."""
    line = "| speed | it is fast | `tests/test_bench.py` | a guess |\n"
    assert names(line) == ["speed"]
    assert filled(line, {}) == line


# --- what was found -----------------------------------------------------------------------------------------------

HEAD_OF_FOUND = "| found by | what was wrong |\n|---|---|\n"
FOUND = PAGE.read_text("utf-8").partition(HEAD_OF_FOUND)[2].partition("\n\n")[0].splitlines()


def named(row: str) -> str:
    """The beginning of what was wrong."""
    return row.split("|")[2].strip()[:50]


@pytest.mark.parametrize("row", FOUND, ids=named)
def test_each_finding_has_a_test_that_keeps_it_from_coming_back(row: str) -> None:
    """By name; that it exists is asked of every page (tests/test_docs.py)."""
    assert re.search(r"`tests/[\w/]+\.py::test_\w+`", row)


def test_the_commands_of_findings_can_be_given() -> None:
    """Their trials exist, and their options; a fault that is named is one that can be tried."""
    commands = [command for row in FOUND for command in re.findall(r"`python -m ([^`]*)`", row)]
    assert len(commands) > 20
    for module, *words in map(shlex.split, commands):
        if module == "tests.torture":
            assert options_of(words).only
        else:
            assert (module, len(words)) == ("tests.torture.injected", 3)
            name, state, is_warm, kind, error, lasting, number = json.loads(words[2])
            assert name in {case.name for case in CASES}
            assert state in NAMES
            assert (type(is_warm), int(words[1]) > 0) == (bool, True)
            assert words[0] == "memory" or (kind in IO_KINDS and error in ERRORS[kind] and lasting in (1, LASTING))
            assert number >= 0
