"""The benchmark runs, tells what it measured, and compares like with like."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bench.__main__ import GOALS, Row, issue_coupon, race, table
from bench.by_hand import ByHand
from bench.imports import MEASURED
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

CALLS = ("new", "new, no look by hand", "duplicate")


def test_a_tiny_run_prints_its_table_and_writes_its_figures(tmp_path: Path) -> None:
    """A line a durability and kind of call, the machine above it, the same figures as JSON, and exit code 0."""
    file = tmp_path / "results" / "run.json"
    command = [sys.executable, "-m", "bench", "--rounds", "2", "--calls", "30", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(file.read_text("utf-8"))
    assert figures["machine"].keys() >= {"python", "apsw", "sqlite", "kernel", "cpus"}
    assert [(row["durability"], row["call"]) for row in figures["rows"]] == [
        (durability, call) for durability in ("normal", "full") for call in CALLS
    ]
    assert {row["call"]: row["goal"] for row in figures["rows"] if row["goal"]} == GOALS
    for row in figures["rows"]:
        assert 0 < row["lowest"] <= row["ratio"] <= row["highest"]
    lines = done.stdout.splitlines()
    assert f"sqlite {figures['machine']['sqlite']}" in lines[0]
    assert [line.split()[0] for line in lines[-6:]] == ["normal"] * 3 + ["full"] * 3


def test_the_table_says_what_was_reached() -> None:
    """A goal is told as reached or not; the exit code never depends on it."""
    good = Row("normal", "new", 20.0, 29.0, 1.45, 1.4, 1.6, 1.5)
    lines = table([good, good._replace(ratio=1.51), good._replace(goal=None)]).splitlines()
    assert [line.partition("1.60x")[2].strip() for line in lines[1:]] == [
        "<= 1.5x reached",
        "<= 1.5x NOT REACHED",
        "",
    ]


def test_contenders_take_turns_and_do_the_same_calls() -> None:
    """Every contender gets each user once, in slices, and who begins changes."""
    calls: list[tuple[str, int]] = []
    spent = race([lambda user: calls.append(("a", user)), lambda user: calls.append(("b", user))], range(7, 47), 0)
    assert len(spent) == 2
    assert [user for who, user in calls if who == "a"] == [user for who, user in calls if who == "b"] == [*range(7, 47)]
    assert "".join(who for who, _ in calls)[:8] == "aabbbbaa"


def test_the_yardstick_is_idempotent(path: Path) -> None:
    """What is measured against runs a job once, replays it, and refuses other arguments."""
    hand = ByHand(str(path), "normal")
    for call in (hand.call, hand.call, hand.call_unseen):
        assert call("coupon:7", issue_coupon, user_id=7, day="d") == issue_coupon(7, "d")
    with pytest.raises(ValueError):
        hand.call("coupon:7", issue_coupon, user_id=8, day="d")
    assert hand.connection.execute("SELECT task_id, status FROM task").fetchall() == [("coupon:7", 1)]
    hand.close()


def test_what_starting_costs_is_measured_too() -> None:
    """A line a process, each against what it stands on."""
    command = [sys.executable, "-m", "bench.imports", "--runs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line[:30].strip() for line in done.stdout.splitlines()[1:]] == list(MEASURED)
