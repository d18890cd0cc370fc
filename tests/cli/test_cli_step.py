"""`idemreg step` inside of `idemreg run`: a shell job that goes on where it was."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import Registry
from idemreg.cli.step import STEP_FIELDS
from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.driver import Cli

STEP = f"{shlex.quote(sys.executable)} -m idemreg step"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A script whose three steps each leave a letter in `witness`; the last ends as `code` says."""
    script = tmp_path / "job.sh"
    script.write_text(
        f"set -e\ncd {shlex.quote(str(tmp_path))}\n"
        f"{STEP} one -- sh -c 'printf 1 >>witness; echo first'\n"
        f"{STEP} two -- sh -c 'printf 2 >>witness; echo second >&2'\n"
        f"{STEP} three -- sh -c 'printf 3 >>witness; exit $(cat code)'\n"
        "echo all\n"
    )
    (tmp_path / "code").write_text("5")
    return script


def steps_of(cli: Cli, task_id: str = "t") -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = cli.json("show", task_id)["steps"]
    return steps


def test_a_job_that_runs_again_goes_on_at_its_step(cli: Cli, job: Path, tmp_path: Path) -> None:
    """What is done is not run again; its output is written again, each stream to its own."""
    words = "run", "t", "--", "sh", str(job)
    first = cli.process(*words)
    assert (first.returncode, first.stdout) == (5, "first\n")
    (tmp_path / "code").write_text("0")
    second = cli.process(*words)
    assert (second.returncode, second.stdout) == (0, "first\nall\n")
    assert "second\n" in second.stderr
    assert (tmp_path / "witness").read_text() == "1233"
    assert [(step["name"], step["number"]) for step in steps_of(cli)] == [("one", 1), ("two", 2), ("three", 3)]
    assert "1. one, " in cli("show", "t").stdout


def test_outside_of_a_run_it_is_a_usage_error(cli: Cli) -> None:
    """Exit code 2 and a hint; nothing runs."""
    result = cli.process("step", "one", "--", "echo", "ran", IDEMREG_TASK_ID="", IDEMREG_CLAIM_DB="x")
    assert (result.returncode, result.stdout) == (2, "")
    assert "idemreg run" in result.stderr


@pytest.mark.parametrize("words", [["step"], ["step", "one"], ["step", "one", "true"], ["step", "--", "true"]])
def test_the_name_goes_before_the_dashes_and_the_command_behind(cli: Cli, words: list[str]) -> None:
    """Everything else is a usage error that shows the form."""
    result = cli(*words)
    assert result.exit_code == 2
    assert "idemreg step" in result.output


def inside(cli: Cli, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    return cli.process("run", *options, "t", "--", "sh", "-c", script)


@pytest.mark.parametrize(
    ("command", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)], ids=["code", "kill", "term"]
)
def test_exit_codes_are_passed_on_and_nothing_is_saved(cli: Cli, command: str, code: int) -> None:
    """The command's own, or 128+n where signal n killed it."""
    result = inside(cli, f"{STEP} one -- sh -c {shlex.quote(command)}; echo code $?")
    assert result.stdout == f"code {code}\n"
    assert steps_of(cli) == []


def test_a_name_stands_for_one_piece_of_the_task(cli: Cli) -> None:
    """Used again in the same attempt it is skipped as by a later one, whatever the command; the help says so."""
    result = inside(cli, f"{STEP} one -- echo first; {STEP} one -- echo second; {STEP} two -- echo third")
    assert result.stdout == "first\nfirst\nthird\n"
    assert [step["name"] for step in steps_of(cli)] == ["one", "two"]
    assert "used a second time" in " ".join(cli("step", "--help").stdout.split())


def test_a_command_that_cannot_run_has_the_shells_codes(cli: Cli) -> None:
    """127 where it is not there, 126 where it is not executable; and a name that is none is 2."""
    result = inside(
        cli, f"for c in /none /etc/passwd; do {STEP} one -- $c; echo $?; done; {STEP} ' x' -- true; echo $?"
    )
    assert result.stdout == "127\n126\n2\n"


def test_json_is_one_line_on_stderr(cli: Cli) -> None:
    """With the fields that the help names; stdout is the command's."""
    result = inside(cli, f"{STEP} --json one -- echo out; {STEP} --json one -- echo out")
    assert result.stdout == "out\nout\n"
    rows = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    assert [list(row) for row in rows] == [list(STEP_FIELDS)] * 2
    assert [(row["exit_code"], row["replayed"]) for row in rows] == [(0, False), (0, True)]


def test_a_claim_that_is_lost_begins_and_saves_no_step(cli: Cli) -> None:
    """Exit code 75 under a token that is not the running one's: not run, and not saved where it was lost meanwhile."""
    script = f"IDEMREG_TOKEN=1 {STEP} one -- echo ran; echo $?"
    assert inside(cli, script).stdout == "75\n"
    task = cli.json("show", "t")
    late = cli.process(
        *("step", "two", "--", "echo", "ran"),
        IDEMREG_TASK_ID="t",
        IDEMREG_TOKEN=str(task["token"]),
        IDEMREG_CLAIM_DB=str(cli.path),
    )
    assert (late.returncode, late.stdout) == (75, "")
    assert steps_of(cli) == []


def test_a_nested_run_stays_in_its_own_file(cli: Cli, tmp_path: Path) -> None:
    """The claim's file is named by a variable of its own, so --db of `run` moves nothing that its command runs."""
    other = tmp_path / "other.db"
    nested = f"{shlex.quote(sys.executable)} -m idemreg run inner -- true; {STEP} one -- true"
    assert cli.process("--db", str(other), "run", "t", "--", "sh", "-c", nested).returncode == 0
    assert cli.json("show", "inner")["status"] == "succeeded"
    with Registry(other, durability="normal") as registry:
        assert [step.name for step in registry.steps("t")] == ["one"]


def test_a_step_that_goes_on_keeps_its_task_owned(cli: Cli, tmp_path: Path) -> None:
    """With `run`, the script and `idemreg step` killed by kill -9, the step's command still is the task's owner."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"echo $$ >pids; {STEP} one -- sh -c 'echo $PPID >>pids; cat fifo; true'; true"
    process = subprocess.Popen(
        [sys.executable, "-m", "idemreg", "run", "t", "--", "sh", "-c", script], env=cli.environment(), cwd=tmp_path
    )
    writing = os.open(fifo, os.O_WRONLY)  # returns once `cat` reads
    shell, step = map(int, (tmp_path / "pids").read_text().split())
    for pid in (process.pid, shell, step):
        os.kill(pid, signal.SIGKILL)
    process.wait(PATIENCE_S)
    assert cli.json("show", "t")["owner_liveness"] == "alive"
    assert cli.process("run", "t", "--", "sh", "-c", script).returncode == 75
    os.close(writing)
    again = cli.process("run", "--wait", "60", "t", "--", "sh", "-c", script)
    assert again.returncode == 76
