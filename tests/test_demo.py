"""The demonstration tells the truth: it ends well only where the witness agrees, and leaves no process behind."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from idemreg import Registry, Status, demo
from idemreg.demo import crew as crews
from idemreg.demo.account import disagreements
from idemreg.demo.crew import Crew, CrewError, Delivery
from idemreg.demo.witness import Witness
from tests.support.processes import PATIENCE_S, ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_every_effect_happens_once_although_workers_are_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small demonstration ends with 0; witness, rows and account agree that each task happened exactly once."""
    assert demo.main(str(tmp_path), workers=3, tasks=60, seed=1) == 0
    account = capsys.readouterr().out
    witnessed = Witness(str(tmp_path / "witness.log")).effects()
    assert set(witnessed.values()) == {1}
    assert len(witnessed) == 60
    with Registry(tmp_path / "jobs.db", create=False) as registry:
        assert registry.count() == {Status.SUCCEEDED: 60}
        settled = [task for task in registry.tasks() if task.settled_by]
    assert "exactly 1, for all 60" in account
    assert "15 workers killed with SIGKILL" in account
    assert f"{len(settled)} tasks, whose worker died" in account
    assert f"idemreg --db {tmp_path}/jobs.db stats" in account
    assert len(account) < 2_000
    assert "\r" not in account  # a progress line is for terminals


def test_the_account_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object with the same figures as the prose, and nothing else on stdout."""
    assert demo.main(str(tmp_path), workers=2, tasks=40, seed=1, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["tasks"], told["killed"], told["seed"], told["effects_a_task"]) == (40, 10, 1, 1)
    assert told["deliveries"] >= told["duplicates"] + 40
    with Registry(tmp_path / "jobs.db", create=False) as registry:
        settled = [task for task in registry.tasks() if task.settled_by]
    assert told["settled_by_hook"] + told["resolved_by_hand"] == len(settled)


def test_the_account_fits_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for the commands to copy, no line has more than 80 columns."""
    assert demo.main(str(tmp_path), workers=2, tasks=8, seed=1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines if "idemreg" not in line and "grep" not in line)


def test_kills_leave_both_kinds_of_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some killed tasks are settled by the verify hook, others are left unknown and resolved by hand."""
    assert demo.main(str(tmp_path), workers=2, tasks=60, seed=1) == 0
    account = capsys.readouterr().out
    assert int(re.findall(r"by verify hook +(\d+): \d+ had happened", account)[0]) > 0
    assert int(re.findall(r"left unknown +(\d+)", account)[0]) > 0
    assert int(re.findall(r"resolved by hand +(\d+): \d+ had happened", account)[0]) > 0


def test_one_task_and_one_worker_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest demonstration works as well: its only worker is killed and replaced."""
    assert demo.main(str(tmp_path / "made"), workers=1, tasks=1, seed=3) == 0
    assert "exactly 1, for all 1;" in capsys.readouterr().out


def test_a_disagreeing_witness_fails_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An effect that the registry knows nothing of ends the demonstration with 1, and is named."""
    planted = Witness(str(tmp_path / "witness.log"))
    planted.record("coupon:1", "planted")
    planted.record("coupon:1", "planted")
    planted.record("coupon:999", "planted")
    assert demo.main(str(tmp_path), workers=2, tasks=8, seed=1) == 1
    out, err = capsys.readouterr()
    assert "exactly 1" not in out
    assert "DEMO FAILED" in err
    assert re.search(r"coupon:1: [23] effects, not exactly one", err)
    assert "coupon:999: nobody delivered it" in err


def test_every_kind_of_disagreement_is_found(registry: Registry) -> None:
    """Twice, never, of nobody's, without a row, not succeeded: each is a finding of its own."""
    with registry.claim("good"):
        pass
    registry.add("pending")
    rows = {task.task_id: task for task in registry.tasks()}
    effects = {"good": 2, "pending": 1, "stranger": 1}
    assert disagreements(["good", "pending", "lost"], effects, rows) == [
        "good: 2 effects, not exactly one",
        "lost: 0 effects, not exactly one",
        "lost: no row, not succeeded",
        "pending: pending, not succeeded",
        "stranger: nobody delivered it, but there is a row or an effect of it",
    ]
    assert disagreements(["good"], {"good": 1}, {"good": rows["good"]}) == []


def test_a_folder_with_a_registry_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demonstration never writes into a registry that is there already."""
    (tmp_path / "jobs.db").touch()
    assert demo.main(str(tmp_path), workers=1, tasks=1) == 2
    assert "there is a jobs.db" in capsys.readouterr().err
    assert demo.main(str(tmp_path / "jobs.db"), workers=1, tasks=1) == 2
    assert demo.main(workers=0) == 2
    assert demo.main(tasks=0) == 2


def test_a_worker_that_ends_by_itself_fails_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the workers cannot work, the demonstration says so instead of hanging."""
    monkeypatch.setattr("idemreg.demo.crew.PROGRAM", "raise SystemExit(3)")
    assert demo.main(str(tmp_path), workers=2, tasks=3) == 1
    assert "ended by itself, with exit code 3" in capsys.readouterr().err


def test_workers_that_fall_silent_fail_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all of them hang, the demonstration ends instead of waiting for ever, and ends them."""
    monkeypatch.setattr("idemreg.demo.crew.PROGRAM", "import sys; sys.stdin.read()")
    monkeypatch.setattr("idemreg.demo.crew.SILENCE_S", 0)
    before = children_of(os.getpid())
    assert demo.main(str(tmp_path), workers=2, tasks=3) == 1
    assert "no worker said anything" in capsys.readouterr().err
    assert children_of(os.getpid()) == before


def test_a_worker_that_cannot_be_started_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three the second cannot be: the first is ended, and the error is the system's."""
    before = children_of(os.getpid())
    crew = Crew("jobs.db", "witness.log", 3, {})
    hire = crew._hire
    hired: list[int] = []

    def then_lose_the_program() -> None:
        hire()
        hired.extend(set(children_of(os.getpid())) - set(before))
        crew._argv[0] = "/nonexistent/python"

    monkeypatch.setattr(crew, "_hire", then_lose_the_program)
    with pytest.raises(FileNotFoundError), crew:
        pytest.fail("the block was entered")
    assert len(hired) == 1
    assert children_of(os.getpid()) == before


# Speaks as a worker does, and takes the deliveries of two tasks apart.
SPEAKER = """
import sys
print("ready", flush=True)
has_come = set()
for line in iter(sys.stdin.readline, ""):
    kind, number, moment = line.split()
    if kind == "coupon":
        print("at", "before", flush=True)
        assert sys.stdin.readline().strip() == "go"
        print("ran", flush=True)
    else:
        print("ran" if line in has_come else "again running", flush=True)
        has_come.add(line)
"""


def test_what_a_crew_does_with_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is not to die is let go on; a delivery to be repeated comes again; three are made of two."""
    monkeypatch.setattr(crews, "PROGRAM", SPEAKER)
    with Crew("jobs.db", "witness.log", 1, {}) as crew:
        crew.deliver([Delivery("coupon", 1), Delivery("letter", 2)], lambda _: None)
        crew.dismiss()
        assert crew.answers == {"ran": 2, "again": 1}
        assert crew.delivered == 3
        assert not crew.killed


def test_a_worker_that_went_is_told_by_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended before it was told something: that cannot be written, and the error is that it ended."""
    monkeypatch.setattr(crews, "PROGRAM", "print('ready', flush=True)")
    with Crew("jobs.db", "witness.log", 1, {}) as crew, pytest.raises(CrewError, match="exit code 0"):
        crew.deliver([Delivery("coupon", number) for number in range(2)], lambda _: None)


def test_workers_run_the_code_of_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """This very package comes first on their import path, and what the parent was given behind it."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert Crew("", "", 1, {})._environment["PYTHONPATH"] == f"{ROOT}{os.pathsep}/elsewhere"
    monkeypatch.delenv("PYTHONPATH")
    assert Crew("", "", 1, {})._environment["PYTHONPATH"] == str(ROOT)


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    """Ctrl-C in the terminal ends the demonstration at once, with 130 and one line, and every worker with it."""
    parent_side, child_side = pty.openpty()
    program = "import sys; from idemreg.demo import main; sys.exit(main(sys.argv[1], workers=4, tasks=50_000))"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=child_side,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        process_group=0,
        text=True,
    ) as process:
        os.close(child_side)
        try:
            wait_for(parent_side, b"deliveries")
            workers = children_of(process.pid)
            os.killpg(process.pid, signal.SIGINT)  # what the terminal does
            _, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            os.close(parent_side)
    assert process.returncode == 130
    assert err.count("\n") == 1
    assert "every worker is gone" in err
    assert len(workers) >= 3  # one may be between two lives
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]


def wait_for(fd: int, word: bytes) -> None:
    seen = b""
    while word not in seen:
        ready, _, _ = select.select([fd], [], [], PATIENCE_S)
        assert ready, "the demonstration said nothing"
        seen = seen[-100:] + os.read(fd, 65_536)


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]
