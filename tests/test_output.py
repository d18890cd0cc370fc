"""What a command writes, and what becomes of its words: slow ends, lost readers, and every option on its way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import command
from idemreg.child import Descriptors, Lines, replay_output
from idemreg.command import CommandEnd, run_command
from idemreg.model import Status
from idemreg.output import STDERR, STDOUT
from tests.cli.driver import Cli
from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from idemreg import Registry

SH = "/bin/sh"
IDEMREG = [sys.executable, "-m", "idemreg"]


@pytest.fixture
def cli(path: Path) -> Cli:
    return Cli(path)


@pytest.fixture
def both(tmp_path: Path) -> int:
    """One file for both streams."""
    return os.open(tmp_path / "both", os.O_RDWR | os.O_CREAT)


def test_a_replay_keeps_the_order_of_the_streams(both: int) -> None:
    """Where both streams go to one place, the pieces come in the order in which they came."""
    replay_output([(STDERR, "b"), (STDOUT, b"a"), (STDERR, "c")], Descriptors(both, both))
    assert os.pread(both, 10, 0) == b"bac"


def test_lines_wait_for_their_end(both: int) -> None:
    """A piece of a line is kept until its end comes, each stream's own; the last one gets an end."""
    lines = Lines(Descriptors(both, both))
    for stream, data in ((STDOUT, b"a"), (STDERR, b"x"), (STDOUT, b"b\nc"), (STDERR, b"y\n")):
        assert lines.write(stream, data)
    assert os.pread(both, 100, 0) == b"ab\nxy\n"
    lines.close()
    assert os.pread(both, 100, 0) == b"ab\nxy\nc\n"


def test_a_line_without_an_end_is_bounded(both: int) -> None:
    """After 64 KiB a line goes on its way; what comes behind a line end is kept all the same."""
    lines = Lines(Descriptors(both, both))
    lines.write(STDOUT, b"z" * 65_535)
    assert os.fstat(both).st_size == 0
    lines.write(STDOUT, b"z")
    assert os.fstat(both).st_size == 65_536
    lines.write(STDOUT, b"\n" + b"y" * 65_000)
    assert os.fstat(both).st_size == 65_537


def test_a_reader_that_left_ends_nothing(registry: Registry) -> None:
    """`idemreg run ... | head`: the command goes on, its output is kept, and its exit code is its own."""
    reader, writer = os.pipe()
    os.close(reader)
    end = run_command(registry, "t", [SH, "-c", "echo out; echo more; exit 3"], stdout=writer, on_failure="hold")
    os.close(writer)
    assert end.exit_code == 3
    task = registry.get("t")
    assert task is not None
    assert json.loads(task.result or "")["output"] == [[1, "out\nmore\n"]]


def test_the_end_is_seen_without_a_pidfd(
    registry: Registry, both: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that has none costs a look now and then: a silent child that holds the streams keeps nobody."""

    def refused(_pid: int) -> int:
        raise OSError

    monkeypatch.setattr(os, "pidfd_open", refused)
    gate, go = tmp_path / "gate", tmp_path / "go"
    os.mkfifo(gate)
    os.mkfifo(go)
    # Nothing is written before somebody has opened it to read: so the command lives when it is looked at first.
    going = threading.Thread(target=go.write_text, args=("\n",))
    going.start()
    end = run_command(registry, "t", [SH, "-c", f"cat <{gate} & read x <{go}"], stdout=both, stderr=both)
    going.join(PATIENCE_S)
    assert end.exit_code == 0
    gate.write_text("it was still there to read this")


def test_a_verify_command_reads_nothing_of_ours(cli: Cli) -> None:
    """Standard input is the command's: a verify command finds none."""
    options = ["--on-crash", "verify", "--verify", "read x && exit 2; exit 0"]
    script = 'echo typed | "$@"'
    words = ["run", *options, "t", "--", SH, "-c", "kill -9 $$"]
    assert cli.process(*words, script=script).returncode == 137
    assert cli.process(*words, script=script).returncode == 0


# --- what `run` says --------------------------------------------------------------------------------------------------


def test_a_replay_names_the_attempt_and_the_cut(cli: Cli) -> None:
    """The line tells which attempt it was, and that only the end of its output is left."""
    script = '[ "$IDEMREG_ATTEMPT" = 2 ] || exit 1; head -c 100000 /dev/zero | tr "\\0" x'
    words = ("run", "t", "--", SH, "-c", script)
    assert [cli.process(*words).returncode for _ in range(2)] == [1, 0]
    again = cli.process(*words)
    assert len(again.stdout) == 64 * 1_024
    assert "(attempt 2, " in again.stderr
    assert "the end of its output is above" in again.stderr


def test_every_option_reaches_the_library(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flag of `run` is an argument of `run_command`, in the library's units."""
    got: dict[str, Any] = {}

    def fake(_registry: object, task_id: str, argv: list[str], **options: object) -> CommandEnd:
        got.update(options, task_id=task_id, argv=argv)
        return CommandEnd(0, replayed=False, task_id=task_id, attempt=1, token=1, status=Status.SUCCEEDED)

    monkeypatch.setattr(command, "run_command", fake)
    flags = {
        "--name": "n", "--payload": "p", "--on-duplicate": "raise", "--wait": "2m", "--on-failure": "hold",
        "--max-attempts": "3", "--on-crash": "verify", "--verify": "v", "--unknown-on": "4,5", "--release-on": "6",
        "--keep-for": "1h", "--durability": "normal", "--lease": "30s", "--timeout": "5m",
    }  # fmt: skip
    words = [word for flag in flags.items() for word in flag]
    words.append("--no-output")
    assert cli("run", *words, "t", "--", "true", "x").exit_code == 0
    assert got == {
        "task_id": "t", "argv": ["true", "x"], "name": "n", "payload": "p", "on_duplicate": "raise", "wait": 120.0,
        "on_failure": "hold", "max_attempts": 3, "on_crash": "verify", "verify": "v", "unknown_on": {4, 5},
        "release_on": {6}, "keep_for": 3_600.0, "durability": "normal",
        "keeps_output": False, "recover": False, "lease": 30.0, "timeout": 300.0,
    }  # fmt: skip


def test_the_wait_is_for_the_twin(cli: Cli, tmp_path: Path) -> None:
    """--wait stays until the running twin has ended, and then replays what it wrote."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    words = ["run", "--wait", "60", "t", "--", SH, "-c", f"echo on; read x <{gate}; echo done"]
    first, second = (
        subprocess.Popen([*IDEMREG, *words], env=cli.environment(), stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    assert first.stdout is not None
    assert second.stdout is not None
    gate.write_text("go\n")  # opened by whichever runs it
    outputs = {process.communicate(timeout=60)[0] for process in (first, second)}
    assert (outputs, first.returncode, second.returncode) == ({"on\ndone\n"}, 0, 0)
