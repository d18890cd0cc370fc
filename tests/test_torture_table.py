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

from tests.torture import found as mutants_found
from tests.torture.__main__ import options_of
from tests.torture.injected.commands import CASES
from tests.torture.injected.shim import ERRORS, IO_KINDS, LASTING
from tests.torture.injected.states import NAMES
from tests.torture.promises import NO_TRIAL, NOT_RUN, TRIED, filled, names
from tests.torture.table import HEAD, MOST, PAGE, figures, parsed, promised, save, saved, table, texts
from tests.torture.trial import NOT_TRIED
from tests.torture.trials import TRIALS

if TYPE_CHECKING:
    from pathlib import Path


def found(trial: str, **events: int) -> dict[str, Any]:
    """What a run of a trial has shown."""
    return {"trial": trial, "distinct": 50_120, "found": 0, "seconds": 25.2, "events": events}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A copy of the page."""
    copy = tmp_path / PAGE.name
    copy.write_text(PAGE.read_text("utf-8"), "utf-8")
    return copy


def test_the_page_has_a_row_of_each_trial() -> None:
    """Whatever was saved last: the head and the rows are those that would be written now."""
    assert saved().startswith(HEAD)
    assert [line.split("`")[1] for line in saved()[len(HEAD) :].splitlines()[: len(TRIALS)]] == [
        trial.name for trial in TRIALS
    ]


def test_what_a_trial_is_about_is_told_first() -> None:
    """The kills of the kills, though each kind of answer comes more often; and not every answer."""
    answers = {f"answer {number}": 1_000 + number for number in range(2 * MOST)}
    line = " ".join(texts([found("kills", kills=501, stops=73, **answers)])["kills"].events.split())
    assert line.startswith(f"- `kills`: 501 kills, 73 stops, 1,{2 * MOST - 1:03} answer {2 * MOST - 1}, ")
    assert line.count("answer") == MOST - 2


def test_what_could_not_be_tried_is_always_told() -> None:
    """Once is enough, and it comes before all else."""
    more = {f"answer {number}": 1_000 for number in range(2 * MOST)}
    run = found("clock", **{**more, f"{NOT_TRIED}another time namespace": 1})
    assert texts([run])["clock"].events.startswith(f"- `clock`: 1 {NOT_TRIED}another time namespace, 1,000 answer")


def test_a_row_says_how_it_was_tried_and_of_which_code() -> None:
    """Where it is a checkout; a + says that it was changed since its commit."""
    assert texts([found("clock")], "--share 10", "1234567+")["clock"].row.endswith("| 25 | `--share 10` | 1234567+ |\n")
    assert texts([found("clock")])["clock"].row.endswith("| 25 |  |  |\n")


def test_nothing_befell_nobody() -> None:
    """Without events the table stands alone."""
    assert table(texts([found("clock")])).count("\n\n") == 0


def test_a_run_of_some_trials_leaves_the_others_as_they_stand(page: Path) -> None:
    """Their rows, and what befell the product in them."""
    save([found(trial.name, calls=5, kills=2) for trial in TRIALS], "--share 10", "1234567", page=page)
    before = parsed(saved(page))
    save([found("kills", calls=7)], "", "7654321", page=page)
    after = parsed(saved(page))
    assert after.pop("kills") != before.pop("kills")
    assert after == before
    assert len(after) == len(TRIALS) - 1


def test_what_was_found_of_the_mutants_stands_by_trial(page: Path) -> None:
    """What was missed is named; and a run of some trials leaves the others as they stand."""
    kills = [{"trial": "kills", "mutant": name, "is_well": name != "b"} for name in "abc"]
    mutants_found.save([*kills, {"trial": "clock", "mutant": "d", "is_well": True}], "", "1234567", page)
    mutants_found.save([{"trial": "clock", "mutant": "d", "is_well": True}] * 2, "--seed 7", "7654321", page)
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith(("| `kills` |", "| `clock` |"))]
    assert rows[-2:] == [
        "| `kills` | 5,000 calls | 3 | 2, not `b` |  | 1234567 |",
        "| `clock` | 2 histories | 2 | 2 | `--seed 7` | 7654321 |",
    ]


# --- promises -----------------------------------------------------------------------------------------------------


def last(promises: str, promise: str) -> str:
    """The last column of a promise."""
    (line,) = [line for line in promises.splitlines() if line.startswith(f"| {promise} |")]
    return line.split("|")[-2].strip()


def by_hand(promises: str) -> list[str]:
    """All that stands before the last column."""
    return [line.rpartition(" | ")[0] for line in promises.splitlines()]


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
    before, were = promised(page), figures(saved(page))
    save([found("kills") | {"distinct": 501_234}, found("hostile") | {"found": 3}], page=page)
    now = {"kills": ("501,234", "0"), "hostile": ("50,120", "3")}
    assert figures(saved(page)) == were | now
    assert "`kills`: 0 in 501,234 calls; `namespaces`: " in last(promised(page), "crash")
    assert last(promised(page), "hostile input") == "`hostile`: 3 in 50,120 inputs"
    assert last(promised(page), "fork") == NO_TRIAL
    assert by_hand(promised(page)) == by_hand(before)
    assert last(filled(promised(page), {}), "hostile input") == f"`hostile`: {NOT_RUN}"


def test_to_write_it_again_changes_nothing(page: Path) -> None:
    """Nor does a run add to what the one before it has written."""
    run = [found(trial.name, calls=5) for trial in TRIALS]
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
