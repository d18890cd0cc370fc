"""Errors: one line, one hint, the exit code of the design, and never a traceback."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

import click
import pytest

from idemreg import errors
from idemreg.cli.context import Settings
from idemreg.cli.failures import FIELDS, guarded

if TYPE_CHECKING:
    from pathlib import Path

    from idemreg import Registry
    from tests.cli.driver import Cli

EXIT_CODES = {
    "ArgumentError": 2,
    "ChecksumKeyError": 74,
    "ChecksumMismatchError": 65,
    "ClaimLostError": 75,
    "ClockError": 78,
    "CommandNotExecutableError": 126,
    "CommandNotFoundError": 127,
    "FinishNotRecordedError": 74,
    "IdemregError": 1,
    "ImportLineError": 65,
    "PrefixError": 2,
    "RecoveryError": 1,
    "ResultError": 1,
    "ScheduleError": 2,
    "StepError": 2,
    "StoreBusyError": 74,
    "StoreCorruptError": 74,
    "StoreError": 74,
    "StoreFullError": 74,
    "SyncFailedError": 74,
    "StorePathError": 74,
    "StoreVersionError": 74,
    "TaskDoneError": 73,
    "TaskFailedError": 1,
    "TaskIdError": 2,
    "TaskRunningError": 75,
    "TaskTimeoutError": 124,
    "TaskUnknownError": 76,
    "TransitionError": 1,
}


def fail_with(error: BaseException, settings: Settings | None = None) -> int:
    def work() -> None:
        raise error

    return guarded(work, settings or Settings())


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_has_its_exit_code(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each class of error ends the command with the exit code of the design, one line, and a hint that can be typed."""
    error = getattr(errors, name)("it went wrong", task_id="order 42")
    assert fail_with(error) == EXIT_CODES[name]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "idemreg: it went wrong"
    assert name == "IdemregError" or lines[1].startswith("  hint: ")
    assert "TASK_ID" not in "".join(lines)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_as_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Under --json an error is one object on stderr, with the documented fields."""
    settings = Settings()
    settings.json = True
    error = getattr(errors, name)("it went\nwrong", task_id="t")
    exit_code = fail_with(error, settings)
    caught = capsys.readouterr()
    assert caught.out == ""
    shown = json.loads(caught.err)
    assert list(shown) == list(FIELDS)
    assert (shown["error"], shown["message"], shown["task_id"]) == (error.code, "it went\nwrong", "t")
    assert (shown["retryable"], shown["exit_code"]) == (error.retryable, exit_code)


def test_a_store_error_tells_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    """What SQLite or the kernel said stands below the message."""
    error = errors.StoreError("the claim could not be stored")
    error.__cause__ = OSError(errno.EIO, "I/O error")
    assert fail_with(error) == 74
    assert "  cause: OSError: [Errno 5] I/O error\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "exit_code", "first"),
    [
        (KeyboardInterrupt(), 130, "idemreg: interrupted"),
        (click.Abort(), 130, "idemreg: interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/jobs.db"),
            74,
            "idemreg: No space left on device: /x/jobs.db",
        ),
        (OSError("odd"), 74, "idemreg: odd"),
        (ValueError("a\x1b[2Jb"), 70, "idemreg: unexpected ValueError: a\\x1b[2Jb"),
        (RecursionError(), 70, "idemreg: unexpected RecursionError"),
    ],
)
def test_the_unexpected_is_one_line(
    error: BaseException, exit_code: int, first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever else is raised is named in one line, without a traceback."""
    assert fail_with(error) == exit_code
    caught = capsys.readouterr().err
    assert caught.splitlines()[0] == first
    assert "Traceback" not in caught


def test_the_traceback_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """IDEMREG_DEBUG=1 shows where an unexpected error comes from; the exit code stays."""
    monkeypatch.setenv("IDEMREG_DEBUG", "1")
    assert fail_with(ValueError("odd")) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("task_id", ["", " x", "a\x1bb", "e\u0301", "x" * 513, "a\u2028b"])
def test_a_malformed_task_id(cli: Cli, task_id: str) -> None:
    """A task_id that cannot be one is a usage error of every command, with nothing of it acting on the terminal."""
    cli("init")
    for words in (["show"], ["retry"], ["forget"], ["run"]):
        result = cli(*words, "--", task_id, *(["--", "true"] if words == ["run"] else []))
        assert result.exit_code == 2
        assert "\x1b" not in result.output
        assert "Traceback" not in result.output


@pytest.mark.parametrize("words", [["show"], ["list", "x"], ["resolve", "x"], ["resolve", "x", "maybe"], ["--frob"]])
def test_usage_errors(cli: Cli, words: list[str]) -> None:
    """A line that is not understood exits with 2, and the hint shows the form; also as JSON."""
    result = cli(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("idemreg: ")
    assert "  hint: idemreg " in result.stderr
    shown = json.loads(cli(*words, "--json").stderr)
    assert (shown["error"], shown["exit_code"]) == ("usage", 2)


def test_bad_files(cli: Cli, tmp_path: Path) -> None:
    """A folder, a pipe, a foreign file and a missing folder are told apart, each in a line with a hint."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("not a database")
    for name in (".", "fifo", "text", "no/folder/jobs.db"):
        result = cli("--db", str(tmp_path / name), "list")
        assert result.exit_code == 74, name
        assert "  hint: " in result.stderr
        assert "Traceback" not in result.output


def test_a_damaged_file(cli: Cli, registry: Registry, path: Path) -> None:
    """A damaged file is an error of the store with its cause, never an empty list."""
    registry.add("t", name="job")
    registry.close()
    path.write_bytes(b"garbage" * 1_000)
    result = cli("list")
    assert result.exit_code == 74
    assert "damaged" in result.stderr


@pytest.mark.parametrize(
    "words",
    [("stats",), ("list", "--json"), ("show", "t"), ("export",), ("serial", "X"), ("retry", "t"), ("--version",)],
)
def test_what_cannot_be_told_is_no_success(cli: Cli, registry: Registry, words: tuple[str, ...]) -> None:
    """Where stdout is closed, what was asked for has come nowhere: an error, as on a full disk."""
    with registry, pytest.raises(LookupError):
        registry.run("t", {}.popitem, max_attempts=1)
    for script in ('"$@" >&-', '"$@" >/dev/full'):
        done = cli.process(*words, script=script)
        assert (done.returncode, "idemreg" in done.stderr or '"error": "os"' in done.stderr) == (74, True)


def test_what_a_job_prints_to_a_closed_stdout_is_no_error(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Python itself; only what the command has to say must come somewhere."""
    (tmp_path / "printing.py").write_text("print('here')\ndef handle(line):\n    print(line, flush=True)\n")
    monkeypatch.chdir(tmp_path)
    words = ("each", "--task-id", "{id}", "--python", "printing:handle")
    done = cli.process(*words, script="""echo '{"id": 1}' | "$@" >&-""")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "idemreg: 1 line: 1 done")


def test_errors_without_anywhere_to_write(cli: Cli) -> None:
    """Where stdout and stderr are closed, an error still has its exit code."""
    assert cli.process("show", "x", script='"$@" >&- 2>&-').returncode == 74
