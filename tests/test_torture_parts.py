"""How the parts of a trial are shared out."""

from __future__ import annotations

from collections import Counter

from tests.torture.__main__ import _run
from tests.torture.trial import Tally, Trial


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


def test_parts_end_where_nothing_new_comes() -> None:
    """A trial that does not come to its count ends all the same."""
    tally = _run(Trial("nothing", "things", 2, 2, nothing), 2, seed=1, jobs=1)
    assert not tally.distinct


def nothing(_seed: int, count: int) -> Tally:
    """A part that finds nothing new."""
    return Tally(count)
