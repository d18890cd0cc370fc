"""The trials of kills and of namespaces: they find nothing in the shipped code, and what judges them is right.

That they find their mutants is tried by ``make torture ARGS="--power --only kills --only namespaces"``.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from typing import Any

import pytest

from idemreg import faults
from tests.torture import kills, namespaces
from tests.torture.killing.chances import BODY, KINDS, kind_of, task_id
from tests.torture.killing.directed import PLACES, TURNS, Directed, bit_of
from tests.torture.killing.estate import ESTATE_AT, ESTATE_BYTES, Estate
from tests.torture.killing.heirs import RECORDS_TO_ASK, Heirs
from tests.torture.killing.history import History
from tests.torture.killing.linear import find_stuck
from tests.torture.killing.rules import Rules
from tests.torture.killing.spec import Op

LINEARIZABLE = {
    "a task is run, and replayed": """
        1-2 A claim granted token=1 attempt=1
        3-4 A finish recorded asked=succeeded token=1 result=r
        5-6 B claim done token=1 attempt=1 result=r""",
    "two at a time: one has it, and the other is told so, in either order of their records": """
        1-4 A claim granted token=1 attempt=1
        2-3 B claim running
        5-6 A finish recorded asked=failed token=1""",
    "a replay may begin before the finish that it tells of has ended": """
        1-2 A claim granted token=1 attempt=1
        3-6 A finish recorded asked=succeeded token=1 result=r
        4-5 B claim done token=1 attempt=1 result=r""",
    "a killed claim has happened": """
        1-4 A claim pending
        3-4 A die ok
        5-6 B claim unknown""",
    "a killed claim has not happened": """
        1-4 A claim pending
        3-4 A die ok
        5-6 B claim granted token=1 attempt=1""",
    "a killed finish has happened": """
        1-2 A claim granted token=1 attempt=1
        3-6 A finish pending asked=succeeded token=1 result=r
        5-6 A die ok
        7-8 B claim done token=1 attempt=1 result=r""",
    "of a dead owner the next is told, and an operator's verdict lets it run again": """
        1-2 A claim granted token=1 attempt=1
        3-4 A die ok
        5-6 B claim unknown
        7-8 B resolve ok asked=did-not-happen
        9-10 C claim granted token=2 attempt=2""",
    "who dies is running still for whoever looks meanwhile": """
        1-2 A claim granted token=1 attempt=1
        3-6 A die ok
        4-5 B claim running
        7-8 B claim unknown""",
    "who is told of an unknown task may have made it so": """
        1-2 A claim granted token=1 attempt=1
        3-4 A die ok
        5-6 B claim unknown
        5-20 C claim unknown
        7-8 B resolve ok asked=did-not-happen
        9-10 D claim granted token=2 attempt=2
        11-12 D die ok
        21-22 B get ok asked=unknown token=2 attempt=2""",
    "under rerun the next has it": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-4 A die ok
        5-6 B claim granted token=2 attempt=2 asked=rerun""",
    "a task of a batch that was not entered is put back: the attempt does not count": """
        1-2 A claim granted token=1 attempt=1 batch=1
        3-4 A die ok
        5-6 B claim granted token=2 attempt=1""",
    "a verify hook is asked under a claim of the same attempt": """
        1-2 A claim granted token=1 attempt=1 asked=verify
        3-4 A die ok
        5-6 B verify granted token=2
        7-8 B settle ok asked=did-not-happen token=2
        9-10 B claim granted token=3 attempt=2 asked=verify""",
    "a late finish is lost": """
        1-2 A claim granted token=1 attempt=1
        3-4 A finish recorded asked=released token=1
        5-6 B claim granted token=2 attempt=1
        7-8 A finish lost asked=succeeded token=1 result=r""",
    "a sweep runs again what a dead owner left with its arguments": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-4 A die ok
        5-8 B sweep granted token=2 attempt=2 asked=kept
        9-10 B finish recorded token=2 asked=succeeded result=r
        11-12 C sweep untouched asked=kept""",
    "a sweep runs again what an operator has said may run": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-4 A finish recorded token=1 asked=failed
        5-6 B retry ok
        7-8 C sweep granted token=2 attempt=2 asked=kept""",
    "two retries at a time, each of which lets a run begin": """
        1-2 A claim granted token=1 attempt=1 asked=rerun most=1
        3-4 A finish recorded token=1 asked=failed
        5-20 B retry ok
        6-12 C retry ok
        7-8 D claim granted token=2 attempt=2 asked=rerun most=1
        9-10 D finish recorded token=2 asked=failed
        13-16 E claim granted token=3 attempt=3 asked=rerun most=1""",
    "a sweep settles what is held, and leaves what its next call runs by itself": """
        1-2 A claim granted token=1 attempt=1
        3-4 A die ok
        5-6 B sweep unknown asked=hold
        7-8 B resolve ok asked=did-not-happen
        9-10 C claim granted token=2 attempt=2 asked=rerun
        11-12 C die ok
        13-14 D sweep left asked=rerun""",
    "a sweep that was killed has settled it, or has not": """
        1-2 A claim granted token=1 attempt=1
        3-4 A die ok
        5-8 B sweep pending asked=hold
        7-8 B die ok
        9-10 C get ok asked=unknown token=1 attempt=1""",
    "a sweep that another was faster than": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-4 A die ok
        5-9 B sweep untouched asked=kept
        6-7 C sweep granted token=2 attempt=2 asked=kept""",
    "a job that could not save a step is put back with its attempt counted": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-4 A finish recorded token=1 asked=interrupted
        5-6 B sweep granted token=2 attempt=2 asked=kept""",
    "whoever lost its lock may be taken for dead, or be seen": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-3 A lose ok
        4-5 B claim running asked=rerun
        6-7 C claim granted token=2 attempt=2 asked=rerun
        8-9 A finish lost asked=succeeded token=1 result=r""",
    "a job that could not save a step, since its claim was lost, is told no more": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-3 A lose ok
        4-5 B claim granted token=2 attempt=2 asked=rerun
        6-7 A finish recorded asked=interrupted token=1
        8-9 B finish recorded token=2 asked=succeeded result=r""",
    "a sweep gives a task up, and runs it again, since it was retried meanwhile": """
        1-2 A claim granted token=1 attempt=1 asked=rerun most=1
        3-4 A die ok
        5-12 B bury ok most=1
        6-11 C retry ok
        7-8 D get ok asked=failed token=1 attempt=1
        5-12 B sweep granted token=2 attempt=2 asked=kept most=1""",
}
NOT_LINEARIZABLE = {
    "a sweep runs what has no attempts left": """
        1-2 A claim granted token=1 attempt=1 asked=rerun most=1
        3-4 A die ok
        5-6 B bury ok most=1
        5-6 B sweep granted token=2 attempt=2 asked=kept most=1""",
    "a retry, which lets two runs begin": """
        1-2 A claim granted token=1 attempt=1 asked=rerun most=1
        3-4 A finish recorded token=1 asked=failed
        5-20 B retry ok
        7-8 D claim granted token=2 attempt=2 asked=rerun most=1
        9-10 D finish recorded token=2 asked=failed
        13-16 E claim granted token=3 attempt=3 asked=rerun most=1""",
    "two have it at once": """
        1-4 A claim granted token=1 attempt=1
        2-3 B claim granted token=2 attempt=1""",
    "it runs again while its owner lives": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-4 B claim granted token=2 attempt=2 asked=rerun""",
    "a killed owner's task runs still for whoever asks after its death": """
        1-2 A claim granted token=1 attempt=1
        3-4 A die ok
        5-6 B claim running""",
    "an owner that lives is said to be unknown": """
        1-2 A claim granted token=1 attempt=1
        3-4 B claim unknown""",
    "held, and run again with nobody's verdict": """
        1-2 A claim granted token=1 attempt=1
        3-4 A die ok
        5-6 B claim granted token=2 attempt=2""",
    "a success is forgotten by itself": """
        1-2 A claim granted token=1 attempt=1
        3-4 A finish recorded asked=succeeded token=1 result=r
        5-6 B claim granted token=2 attempt=2""",
    "a token is given twice": """
        1-2 A claim granted token=1 attempt=1
        3-4 A finish recorded asked=failed token=1
        5-6 B claim granted token=1 attempt=2""",
    "a token is given again behind forget": """
        1-2 A claim granted token=5 attempt=1
        3-4 A finish recorded asked=failed token=5
        5-6 B forget ok
        7-8 B claim granted token=5 attempt=1""",
    "another result is replayed": """
        1-2 A claim granted token=1 attempt=1
        3-4 A finish recorded asked=succeeded token=1 result=r
        5-6 B claim done token=1 attempt=1 result=s""",
    "a replay comes before there is a result": """
        1-2 A claim granted token=1 attempt=1
        3-4 B claim done token=1 attempt=1 result=r
        5-6 A finish recorded asked=succeeded token=1 result=r""",
    "a late finish is recorded over its successor's claim": """
        1-2 A claim granted token=1 attempt=1
        3-4 A finish recorded asked=released token=1
        5-6 B claim granted token=2 attempt=1
        7-8 A finish recorded asked=succeeded token=1 result=r
        9-10 B finish lost asked=failed token=2""",
    "the dead finish": """
        1-2 A claim granted token=1 attempt=1
        3-4 A die ok
        5-6 B claim unknown
        7-8 B get ok asked=succeeded token=1 attempt=1 result=r""",
    "a batch's task that was entered is put back": """
        1-2 A claim granted token=1 attempt=1 batch=1
        3-4 A enter ok token=1
        5-6 A die ok
        7-8 B claim granted token=2 attempt=1""",
    "a sweep runs what a living owner has": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-4 B sweep granted token=2 attempt=2 asked=kept""",
    "a sweep runs what simply failed": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-4 A finish recorded token=1 asked=failed
        5-6 B sweep granted token=2 attempt=2 asked=kept""",
    "a sweep runs what was put back as it was": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-4 A finish recorded token=1 asked=released
        5-6 B sweep granted token=2 attempt=1 asked=kept""",
    "a sweep runs what keeps no arguments": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-4 A die ok
        5-6 B sweep granted token=2 attempt=2 asked=rerun""",
    "a sweep settles what a living owner has": """
        1-2 A claim granted token=1 attempt=1
        3-4 B sweep unknown asked=hold""",
    "a whole sweep passes a dead owner's task over": """
        1-2 A claim granted token=1 attempt=1
        3-4 A die ok
        5-6 B sweep untouched asked=hold""",
    "two sweeps run it": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-4 A die ok
        5-6 B sweep granted token=2 attempt=2 asked=kept
        7-8 C sweep granted token=3 attempt=3 asked=kept""",
    "a sweep says left, and it was done": """
        1-2 A claim granted token=1 attempt=1 asked=rerun
        3-4 A finish recorded token=1 asked=succeeded result=r
        5-6 B sweep left asked=rerun""",
    "an operator's verdict over a task whose owner lives": """
        1-2 A claim granted token=1 attempt=1
        3-4 B resolve ok asked=happened result=r""",
}


def history(text: str) -> list[Op]:
    """Operations as written above."""
    numbers = {"token", "attempt", "batch", "most"}
    ops = []
    for line in text.split("\n")[1:]:
        span, who, kind, answer, *rest = line.split()
        begun, ended = map(int, span.split("-"))
        more: dict[str, Any] = {"asked": "hold", "most": 4}
        for key, value in (word.split("=") for word in rest):
            more[key] = int(value) if key in numbers else value
        ops.append(Op(begun, ended, ord(who), kind, answer, **more))
    return ops


@pytest.mark.parametrize("text", LINEARIZABLE.values(), ids=LINEARIZABLE.keys())
def test_what_may_be_is_admitted(text: str) -> None:
    """The checker finds an order for histories that a correct registry may give."""
    assert find_stuck(history(text)) is None


@pytest.mark.parametrize("text", NOT_LINEARIZABLE.values(), ids=NOT_LINEARIZABLE.keys())
def test_what_must_not_be_is_found(text: str) -> None:
    """The checker finds no order for histories that break a promise, and is sure of it."""
    stuck = find_stuck(history(text))
    assert stuck is not None
    assert stuck.is_sure


def test_a_long_contended_history_is_cheap() -> None:
    """Sixty calls that all overlap are put in order; their number is no exponent."""
    ops = [Op(0, 1_000, 1, "claim", "granted", 1, 1, asked="hold", most=4)]
    ops += [Op(number, 1_000, number, "claim", "running", 0, asked="hold", most=4) for number in range(2, 60)]
    assert find_stuck(ops) is None


BROKEN = {
    "bodies overlap": ("in 1 0 rerun-1 5 1", "in 2 0 rerun-1 6 2"),
    "held and entered again": ("in 1 0 hold-1 5 1", "killing 1", "gone 1", "in 2 0 hold-1 6 2"),
    "who was replaced goes on": ("in 1 0 rerun-1 5 1", "killing 1", "in 2 0 rerun-1 6 2", "out 1 0 failed 1.1"),
    "a token goes back": ("in 1 0 rerun-1 5 1", "out 1 0 failed 1.1", "in 2 0 rerun-1 5 2"),
    "ended twice": ("call 1 0 late claim-1 succeeded 5 1.1", "said 1 0 recorded"),
    "a living owner has lost its claim": ("call 1 0 finish claim-1 succeeded 5 1.1", "said 1 0 lost"),
    "two results": (
        *("call 1 0 run hold-1 hold 0 -", "said 1 0 done 5 1 1.1"),
        *("call 2 0 run hold-1 hold 0 -", "said 2 0 done 5 1 2.2"),
    ),
    "an effect twice": ("effect 1 effects-1 5", "effect 1 effects-1 5"),
    "an effect is lost": ("call 1 0 finish effects-1 succeeded 5 1.1", "said 1 0 recorded"),
    "a step is entered again": (
        *("step 1 0 kept-1 part-0 1.1", "stepped 1 0 kept-1 part-0 1.1", "saved 9 kept-1 part-0 1.1"),
        *("killing 1", "gone 1", "step 2 0 kept-1 part-0 2.1"),
    ),
    "a step gives something else": (
        *("step 1 0 kept-1 part-0 1.1", "step 1 0 kept-1 part-0 2.1", "stepped 1 0 kept-1 part-0 1.1"),
        *("stepped 2 0 kept-1 part-0 2.1", "saved 9 kept-1 part-0 2.1"),
    ),
    "a step gives what another gave": (
        *("step 1 0 kept-1 part-0 1.1", "stepped 1 0 kept-1 part-1 1.1", "saved 9 kept-1 part-1 1.1"),
    ),
    "a step is lost": ("step 1 0 kept-1 part-0 1.1", "stepped 1 0 kept-1 part-0 1.1"),
    "a sweep's claim is lost, and its process lives": (
        *("call 1 0 sweep - - 0 -", "in 1 0 kept-1 5 1", "out 1 0 succeeded 1.1", "got 1 0 kept-1 lost"),
    ),
    "trouble": ("trouble 1 something",),
}


@pytest.mark.parametrize("records", BROKEN.values(), ids=BROKEN.keys())
def test_each_plain_rule_speaks(records: tuple[str, ...]) -> None:
    """Records that break one plain rule are found by that rule, once."""
    rules = Rules()
    for record in records:
        rules.read(record.split())
    rules.look_at_the_end()
    assert len(rules.broken) == 1


def test_a_killed_call_is_open_until_its_death() -> None:
    """What a killed process was in the middle of becomes a pending operation that ends where its parent reaped it."""
    told = History()
    for record in ("call 1 0 run hold-1 hold 0 -", "killing 1", "gone 1"):
        told.read(record.split())
    claim, die = told.ops["hold-1"]
    assert (claim.kind, claim.answer, claim.begun, claim.ended) == ("claim", "pending", 0, 2)
    assert (die.kind, die.begun, die.ended) == ("die", 1, 2)


FORGOTTEN = (
    ("call 2 0 forget kept-1 force 0 -", "said 2 0 ok"),
    ("call 2 0 forget kept-1 force 0 -", "killing 2", "gone 2"),
)


@pytest.mark.parametrize("records", FORGOTTEN, ids=["told", "killed"])
def test_steps_go_with_their_task(records: tuple[str, ...]) -> None:
    """What may have been forgotten may run again, give something else, and be gone in the end."""
    rules = Rules()
    done = ("step 1 0 kept-1 part-0 {0}", "stepped 1 0 kept-1 part-0 {0}")
    for result in ("1.1", "1.2"):
        for record in (*done, *records):
            rules.read(record.format(result).split())
    rules.look_at_the_end()
    assert rules.broken == []


def test_a_forget_that_was_refused_changes_nothing() -> None:
    """While it may still be carried out nothing is judged; once it was not, all is owed as before."""
    rules = Rules()
    done = ("step 1 0 kept-1 part-0 1.1", "stepped 1 0 kept-1 part-0 1.1", "saved 9 kept-1 part-0 1.1")
    again = "step 3 0 kept-1 part-0 3.1"
    for record in (*done, "call 2 0 forget kept-1 force 0 -", again, "said 2 0 refused"):
        rules.read(record.split())
    assert rules.broken == []
    rules.read(again.split())
    assert len(rules.broken) == 1


def test_a_killed_sweep_may_have_done_anything_it_may_do() -> None:
    """Each task that is known then has a pending operation; what is kept may have been claimed by the dead process."""
    told = History()
    before = ("call 2 0 get kept-1 - 0 -", "said 2 0 none", "call 2 0 get hold-2 - 0 -", "said 2 0 none")
    for record in (*before, "call 1 0 sweep - - 0 -", "killing 1", "gone 1"):
        told.read(record.split())
    kinds = {task: [(op.kind, op.answer, op.asked) for op in ops[1:]] for task, ops in told.ops.items()}
    assert kinds == {
        "kept-1": [("sweep", "pending", "kept"), ("die", "ok", "")],
        "hold-2": [("sweep", "pending", "hold")],
    }


def test_a_sweep_is_told_by_the_task() -> None:
    """Its claims, the ends of what it ran, what it settled; and of what a dead owner had, and it does not tell of."""
    told = History()
    owner = (
        "call 1 0 run hold-1 hold 0 -",
        "in 1 0 hold-1 5 1",
        "call 1 1 run verify-2 verify 0 -",
        "killing 1",
        "gone 1",
    )
    sweep = (
        *("call 3 0 sweep - - 0 -", "in 3 0 kept-4 6 2", "out 3 0 failed 3.1", "got 3 0 hold-1 settled unknown"),
        *("got 3 0 kept-4 recorded", "said 3 0 swept"),
    )
    for record in (*owner, *sweep):
        told.read(record.split())
    swept = {task: [(op.kind, op.answer) for op in ops if op.process == 3] for task, ops in told.ops.items()}
    assert swept == {
        "hold-1": [("sweep", "unknown")],
        "verify-2": [("sweep", "untouched")],
        "kept-4": [("sweep", "granted"), ("finish", "recorded")],
    }


def test_a_sweep_tells_twice_of_what_it_gave_up_and_ran_again() -> None:
    """It was retried meanwhile: first that it was settled, and then what became of its run."""
    told = History()
    records = (
        *("call 3 0 sweep - - 0 -", "in 3 0 kept-4 9 5", "out 3 0 failed 3.1", "got 3 0 kept-4 settled failed"),
        *("got 3 0 kept-4 recorded", "said 3 0 swept"),
    )
    for record in records:
        told.read(record.split())
    kinds = [(op.kind, op.answer) for op in told.ops["kept-4"]]
    assert kinds == [("bury", "ok"), ("sweep", "granted"), ("finish", "recorded")]


def test_an_effect_tells_what_became_of_a_killed_finish() -> None:
    """With its effect in the file a killed finish must have been recorded; without, it must not."""
    for effect, answer in (("effect 9 effects-1 5",), "recorded"), ((), "nothing"):
        told = History()
        records = ("call 1 0 finish effects-1 succeeded 5 1.1", "killing 1", "gone 1", *effect)
        for record in records:
            told.read(record.split())
        told.settle_effects()
        assert [op.answer for op in told.ops["effects-1"]] == [answer]


def test_a_place_is_wanted_until_somebody_dies_there() -> None:
    """Twice where it has two turns; and where somebody else dies nothing changes."""
    directed = Directed(TURNS, seed=0, most=len(TURNS))
    assert directed.wanted == sum(map(bit_of, PLACES))
    for _ in range(2):
        assert directed.wanted & bit_of(TURNS[0])
        directed.reached("body")
        directed.reached(str(TURNS[0]))
    assert not directed.wanted & bit_of(TURNS[0])
    assert directed.hit == 2
    for place in TURNS:
        directed.reached(str(place))
    assert (directed.left, directed.wanted, directed.hit) == ([], 0, len(TURNS))


@pytest.mark.parametrize("most", [1, 5, 13])
def test_small_parts_share_the_places(most: int) -> None:
    """Parts that are too small for all of them have, by one seed after the other, each of them."""
    parts = -(-len(TURNS) // most)
    chosen = [place for seed in range(7, 7 + parts) for place in Directed(TURNS, seed, most).left]
    assert set(chosen) == set(PLACES)


def test_what_the_dead_leave_is_asked_for_by_their_number() -> None:
    """Nobody is to come near it before its owner is gone, and then only who lives under its process id."""
    with mmap.mmap(-1, ESTATE_AT + ESTATE_BYTES) as shared:
        estate = Estate(shared)
        heirs = Heirs(estate, seed=1)
        heirs.bear(1, pid=7)
        assert not estate.is_shared(7)
        heirs.bear(2, pid=7)
        heirs.bear(3, pid=8)
        assert estate.is_shared(7)
        estate.leave(5, process=1)
        assert not estate.is_for(7)
        assert heirs.bury(1, now=10) == {2}
        assert (estate.is_for(7), estate.is_for(8), estate.is_shared(7)) == (True, False, False)
        left = []
        for process, kind, words in (
            (3, "call", ["0", "run", task_id(1, 5), "hold", "0", "-"]),  # who has another number: that is none of it
            (2, "call", ["0", "run", task_id(1, 5), "hold", "0", "-"]),
            (3, "said", ["0", "running"]),
            (2, "said", ["0", "running"]),
        ):
            left.append(estate.left)
            heirs.hear([kind, str(process), *words], now=11)
        assert [*left, estate.left] == [5, 5, 5, 5, None]
        assert heirs.asked == 1


def test_what_the_dead_leave_is_not_kept_for_ever() -> None:
    """Nobody has that number; or who has it is not heard of."""
    with mmap.mmap(-1, ESTATE_AT + ESTATE_BYTES) as shared:
        estate = Estate(shared)
        heirs = Heirs(estate, seed=1)
        for process in (1, 2, 3):
            heirs.bear(process, pid=7)
        for dead in (1, 2, 3):
            estate.leave(dead, process=dead)
            assert bool(heirs.bury(dead, now=10)) == estate.is_for(7) == (dead != 3)
            heirs.hear(["in", "9", "0", "hold-1", "1", "1"], now=10 + RECORDS_TO_ASK)
            assert estate.left == (None if dead == 3 else dead)
            heirs.hear(["in", "9", "0", "hold-1", "1", "1"], now=11 + RECORDS_TO_ASK)
            assert estate.left is None
    assert heirs.asked == 0


def test_whose_estate_it_is_does_not_depend_on_who_else_dies() -> None:
    """Who leaves nothing calls nobody; a newer estate is not cleared by the time of the one before."""
    with mmap.mmap(-1, ESTATE_AT + ESTATE_BYTES) as shared:
        estate = Estate(shared)
        heirs = Heirs(estate, seed=1)
        for process in range(1, 7):
            heirs.bear(process, pid=7 + process % 2)
        estate.leave(5, process=1)
        assert heirs.bury(2, now=10) == set()
        assert not estate.is_for(7)
        assert heirs.bury(1, now=10) == {3, 5}
        estate.leave(6, process=3)
        heirs.hear(["in", "9", "0", "hold-1", "1", "1"], now=11 + RECORDS_TO_ASK)
        assert estate.left == 6
        assert not estate.is_for(8)
        assert heirs.bury(3, now=300) == {5}
        assert estate.is_for(8)


def test_each_kind_of_task_has_a_place_and_comes_as_often_as_it_should() -> None:
    """Of each row of tasks, by whatever seed."""
    assert {place.kind for place in PLACES if place.point == BODY} == set(KINDS)
    assert {place.point for place in PLACES} - {BODY} <= set(faults.POINTS)
    for seed in range(3):
        kinds = [kind_of(seed, number) for number in range(2 * len(KINDS))]
        assert Counter(kinds[: len(KINDS)]) == Counter(kinds[len(KINDS) :]) == Counter(KINDS)


def test_a_killed_late_end_has_done_nothing() -> None:
    """The effect that is there is that of the claim's own end, which had been recorded."""
    told = History()
    before = ("call 1 0 claim effects-1 rerun 0 -", "said 1 0 granted 5 1")
    end = ("call 1 0 finish effects-1 succeeded 5 1.1", "said 1 0 recorded")
    late = ("call 1 0 late effects-1 succeeded 5 1.1", "killing 1", "gone 1", "effect 9 effects-1 5")
    for record in (*before, *end, *late):
        told.read(record.split())
    told.settle_effects()
    assert [(op.kind, op.answer) for op in told.ops["effects-1"]] == [
        ("claim", "granted"),
        ("finish", "recorded"),
        ("die", "ok"),
    ]


def test_processes_are_killed_and_all_is_well() -> None:
    """A small part of the trial: no violation, and as many calls and kills as were asked for."""
    tally = kills.run(seed=3, count=200)
    assert tally.violations == []
    assert len(tally.distinct) == tally.tried >= 200
    assert tally.events["kills"] >= 2


def test_namespaces_share_a_file_and_all_is_well() -> None:
    """The same with processes whose ids are the same on each side."""
    if not namespaces.sides() and "CI" not in os.environ:
        pytest.skip("no pid namespace is allowed here")
    tally = namespaces.run(seed=3, count=2)
    assert tally.violations == []
    assert len(tally.distinct) >= 2
