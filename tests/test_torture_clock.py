"""The trial of clocks: it finds nothing in the shipped code, and what it must not be answered is a violation.

That it finds its mutants is tried by ``make torture ARGS="--power --only clock"``.
"""

from __future__ import annotations

from random import Random
from typing import Any, cast

import pytest

from tests.torture import clock
from tests.torture.clock import HOUR, OTHER, OWN, HangError, Known, Worker, World
from tests.torture.trial import NOT_TRIED, Tally


def test_a_few_histories() -> None:
    """Each is another, nothing is wrong in it, and what it is about has happened."""
    tally = clock.run(seed=11, count=2)
    assert tally.violations == []
    assert len(tally.distinct) == tally.tried == 2
    happened = ("boots", "jumps of the wall clock", "purges", "tasks purged")
    assert min(tally.events[what] for what in happened) > 0
    for what in ("jumps of a hundred years ahead", "jumps of a hundred years back"):  # exactly, and in each of them
        assert tally.events[what] >= tally.tried


def test_it_says_that_there_is_no_other_time_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is tried there, but in CI all must be."""
    monkeypatch.setattr(clock, "time_namespace", list)
    missed = f"{NOT_TRIED}another time namespace (this user may make none)"
    for wrong in ([], [missed]):
        monkeypatch.setenv("CI", "true") if wrong else monkeypatch.delenv("CI", raising=False)
        tally = clock.run(seed=1, count=1)
        assert tally.violations == wrong
        assert tally.events[missed] == tally.tried == 1


@pytest.mark.parametrize("since_boot_s", [0, 1, 60, 10**6])
def test_no_other_namespace_is_older_than_the_boot(monkeypatch: pytest.MonkeyPatch, since_boot_s: int) -> None:
    """On a machine that has just come up the system makes none in which it would not be up yet."""
    monkeypatch.setattr(clock, "_since_boot", lambda: since_boot_s * 1_000)
    drawn = {clock._offset_s(Random(seed)) for seed in range(100)}  # noqa: S311 - by a seed
    assert len(drawn) == 4
    assert since_boot_s + min(drawn) >= 0


def test_a_worker_that_has_ended_hangs_nobody() -> None:
    """What is sent to it raises what the trial tells, whether the pipe is closed or the answer does not come."""
    worker = Worker(None)
    worker.process.kill()
    worker.process.wait()
    try:
        with pytest.raises(HangError):
            worker.send("close", {})
    finally:
        worker.kill()


class Answers:
    """In place of a process: gives what it is told to give, and hears nothing."""

    def __init__(self) -> None:
        self.next: list[dict[str, Any]] = []

    def send(self, command: str, options: dict[str, Any]) -> None:
        pass

    def receive(self) -> dict[str, Any]:
        return self.next.pop(0)


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def world(answers: Answers) -> World:
    """A machine that has run for some hours, on whose date and boot the real clocks have no influence."""
    workers = [cast("Worker", answers)] * 2
    return World(Random(1), workers, "jobs.db", Tally(), boot_ms=10 * HOUR)  # noqa: S311 - by a seed


def row(world: World, *, hours_old: int, keep_hours: int, date_hours: int | None = None, boot: int = 0) -> Known:
    """A success of so many hours ago, whose date may say otherwise."""
    since_boot = world.since_boot() - hours_old * HOUR
    date = world.date() - (hours_old if date_hours is None else date_hours) * HOUR * 1_000
    return Known(7, keep_hours * HOUR, boot, (since_boot, since_boot), (date, date))


def purged(world: World, answers: Answers, known: Known, *, is_there: bool) -> list[str]:
    """What is wrong with a purge behind which the row is there, or not."""
    world.tasks["t1"] = known
    answers.next = [{"answer": {}}, {"answer": [["t1", 1, 2]] if is_there else []}]
    world.purge(OWN)
    return world.tally.violations


def test_a_purge_that_takes_too_much_is_seen(world: World, answers: Answers) -> None:
    """A row of this boot that the date makes older than it is must stay."""
    known = row(world, hours_old=1, keep_hours=3, date_hours=100)
    (wrong,) = purged(world, answers, known, is_there=False)
    assert "a purge took t1" in wrong


def test_a_purge_that_leaves_too_much_is_seen(world: World, answers: Answers) -> None:
    """Whose time is over goes."""
    (wrong,) = purged(world, answers, row(world, hours_old=5, keep_hours=3), is_there=True)
    assert "a purge left t1" in wrong


@pytest.mark.parametrize("hours_old", [1, 5])
def test_a_right_purge_is_admitted(world: World, answers: Answers, hours_old: int) -> None:
    """Exactly what is over is gone; of an earlier boot by its date."""
    assert purged(world, answers, row(world, hours_old=hours_old, keep_hours=3), is_there=hours_old < 3) == []
    earlier = row(world, hours_old=0, keep_hours=3, date_hours=hours_old, boot=-1)
    assert purged(world, answers, earlier, is_there=hours_old < 3) == []


def test_a_purge_behind_a_stored_date_is_seen(world: World, answers: Answers) -> None:
    """It must refuse there, and only there, and say what to do."""
    late = row(world, hours_old=1, keep_hours=3, date_hours=-2)
    (wrong,) = purged(world, answers, late, is_there=True)
    assert "believed a clock that is behind" in wrong
    answers.next = [{"error": "clock", "hint": "set it"}, {"error": "clock", "hint": ""}]
    world.purge(OWN)
    world.purge(OTHER)
    assert ["without a hint" in one for one in world.tally.violations] == [False, True]
    world.tasks["t1"] = row(world, hours_old=1, keep_hours=3)
    answers.next = [{"error": "clock", "hint": "set it"}]
    world.purge(OWN)
    assert "no date is to come" in world.tally.violations[-1]


def test_a_token_that_goes_back_is_seen(world: World) -> None:
    """Each must be larger than the one before."""
    for token in (5, 6, 6):
        world.note_token("t1", token)
    assert world.tally.violations == ["t1 got token 6 behind 6"]


@pytest.mark.parametrize(
    ("answer", "is_wrong"),
    [
        ({"answer": {"entered": 0, "replayed": True, "result": 7}}, False),
        ({"answer": {"entered": 1, "replayed": False, "result": 7}}, True),
        ({"answer": {"entered": 0, "replayed": True, "result": 8}}, True),
        ({"error": "unknown"}, True),
    ],
)
def test_what_has_ended_must_be_replayed(
    world: World, answers: Answers, answer: dict[str, Any], *, is_wrong: bool
) -> None:
    """With its result, and without entering its body."""
    world.tasks["t1"] = row(world, hours_old=1, keep_hours=3)
    answers.next = [answer]
    world.must_replay(OWN, "t1")
    assert bool(world.tally.violations) == is_wrong


def test_a_wait_that_ends_early_is_seen(world: World, answers: Answers) -> None:
    """Whoever is to be told that a twin is running must be told that, however the clock jumps meanwhile."""
    answers.next = [{"error": "running"}, {"waits": 1}, {"answer": {"entered": 1}}]
    world.must_be("running", OTHER, "t1")
    world.must_be("running", OTHER, "t1", wait=1)
    assert len(world.tally.violations) == 1
