"""The table of the trials says what was counted, what befell the product meanwhile, and what could not be tried."""

from __future__ import annotations

from typing import Any

from tests.torture.table import HEAD, MOST, rows, saved
from tests.torture.trial import NOT_TRIED
from tests.torture.trials import TRIALS


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


def test_nothing_befell_nobody() -> None:
    """Without events the table stands alone."""
    assert rows({"clock": found()}, "it").endswith("By `it`, on two cores.\n")
