"""What counts as tried is hashed from what really happened: the same again counts once, and anything else anew."""

from __future__ import annotations

import pytest

from tests.torture.killing import tried
from tests.torture.resources_cycle import hash_of

CALLED = ("call 1 0 run hold-1 hold 0 -", "said 1 0 done 5 1 1.0.1")


def calls(*lines: str) -> set[int]:
    return tried.calls([line.split() for line in lines])


def test_the_same_calls_in_another_run_are_one() -> None:
    """Two runs in which the same happened have tried one thing, whatever their seeds are."""
    assert len(calls(*CALLED)) == 1
    assert calls(*CALLED) == calls("born 1 77", *CALLED, "gone 1")


@pytest.mark.parametrize(
    "other",
    [
        ("call 1 0 run hold-2 hold 0 -", CALLED[1]),
        ("call 1 0 run hold-1 rerun 0 -", CALLED[1]),
        ("call 1 0 get hold-1 - 0 -", CALLED[1]),
        (CALLED[0], "said 1 0 running"),
        (CALLED[0], "killing 1", "gone 1"),
        ("call 2 0 get hold-1 - 0 -", "said 2 0 none", *CALLED),
    ],
    ids=["task", "options", "kind", "answer", "death", "history"],
)
def test_another_call_is_another(other: tuple[str, ...]) -> None:
    """By its task, what was asked and answered, and what its task had been through before."""
    assert not calls(*CALLED) & calls(*other)


def test_each_item_of_a_batch_is_a_call_and_what_is_none_is_not() -> None:
    """An item is answered by itself; to enter a body is counted nowhere, and a sweep once."""
    items = ("item 1 0 claim batch-1 hold 0 -", "item 1 0 claim batch-2 hold 0 -")
    assert len(calls(*items, "got 1 0 batch-1 granted 3 1", "got 1 0 batch-2 running")) == 2
    assert len(calls(*items, "got 1 0 batch-1 granted 3 1", "killing 1", "gone 1")) == 2
    assert not calls("call 1 0 enter batch-1 - 3 -", "said 1 0 ok")
    assert len(calls("call 1 0 sweep - - 0 -", "got 1 0 hold-1 settled unknown", "said 1 0 swept")) == 1


def test_deaths_alike_are_one() -> None:
    """A kill is its side and the life that it ended; who died before he did anything died like all others."""
    killed = [line.split() for line in ("born 1 7", "killing 1", "gone 1", "born 2 8", "killing 2", "gone 2")]
    assert len(tried.kills(killed, {1: "pid", 2: "pid"})) == 1
    assert len(tried.kills(killed, {1: "pid", 2: "pid,time"})) == 2
    lived = [*killed[:1], CALLED[0].split(), *killed[1:]]
    assert len(tried.kills(lived, {1: "pid", 2: "pid"})) == 2
    left = [line.split() for line in ("born 1 7", *CALLED, "leaving 1", "gone 1")]
    assert not tried.kills(left, {1: "pid"})


def test_a_cycle_is_its_plan() -> None:
    """What went in which order, how far and when: not what came of it."""
    plan = ["every write", 7, 20, "descriptors", 3, 17]
    assert hash_of(plan) == hash_of([*plan])
    assert len({hash_of(one) for one in (plan, plan[3:] + plan[:3], [*plan[:1], 8, *plan[2:]], plan[:-1])}) == 4
