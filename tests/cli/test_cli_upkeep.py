"""checkpoint and doctor: what they print, how wide, with which exit code, and how they are interrupted."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from idemreg.cli import checkpoint, doctor
from idemreg.cli.text import width
from tests.support.processes import Script

if TYPE_CHECKING:
    from pathlib import Path

    from idemreg import Registry
    from tests.cli.driver import Cli

READER = """
    from tests.support.raw import connect
    connection = connect(sys.argv[1])
    connection.execute("begin")
    connection.execute("select count(*) from idempotent_log").fetchall()
    say("reading")
    wait()
"""
MODES = ["passive", "full", "restart", "truncate"]


def fail(registry: Registry, task_id: str) -> None:
    def job() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        registry.run(task_id, job, name="job", max_attempts=1)


# --- checkpoint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_checkpoint_moves_all_pages(cli: Cli, registry: Registry, path: Path, mode: str) -> None:
    """Each mode says what it moved, in the fields that its help names, and exits with 0."""
    registry.add("t")
    told = cli.json("checkpoint", "--mode", mode)
    assert list(told) == list(checkpoint.FIELDS)
    assert (told["path"], told["mode"], told["busy"], told["readers"]) == (str(path), mode, False, [])
    assert told["moved_pages"] == told["wal_pages"]
    assert (os.path.getsize(f"{path}-wal") == 0) == (mode == "truncate")
    registry.add("u")
    result = cli("checkpoint", "--mode", mode)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{mode}: ")


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_in_the_way_is_named(cli: Cli, registry: Registry, path: Path, mode: str) -> None:
    """What could not complete exits with 75, and names the process that reads, for people and in JSON."""
    registry.add("t")
    with Script(READER, path) as reader:
        reader.expect("reading")
        for number in range(10):
            registry.add(f"t:{number}")
        words = ("checkpoint", "--mode", mode, "--wait", "0.01")
        result = cli(*words, "--json")
        told = json.loads(result.stdout)
        assert result.exit_code == 75
        assert told["busy"]
        assert 0 <= told["moved_pages"] < told["wal_pages"]
        (named,) = told["readers"]
        assert named["pid"] == reader.process.pid
        assert " -c " in named["command"]
        result = cli(*words)
        assert result.exit_code == 75
        assert f"process {reader.process.pid} (" in result.stdout


def test_checkpoint_creates_nothing(cli: Cli, path: Path) -> None:
    """Where there is no registry it says so, and leaves no file."""
    assert cli("checkpoint").exit_code == 74
    assert os.listdir(path.parent) == []


# --- doctor -----------------------------------------------------------------------------------------------------


def test_doctor_of_a_healthy_file(cli: Cli, registry: Registry) -> None:
    """All is well: exit code 0, its last line says so, and --quiet says nothing at all."""
    registry.add("t")
    result = cli("doctor")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "all is well")
    for words in (["--quiet"], ["--quiet", "--full"], ["--quiet", "--json"]):
        quiet = cli("doctor", *words)
        assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


def test_doctor_of_an_unwell_file(cli: Cli, registry: Registry) -> None:
    """A warning or an error: exit code 1, the finding with its hint, and a summary; --quiet leaves the rest out."""
    fail(registry, "t")
    result = cli("doctor", "--quiet")
    assert result.exit_code == 1
    first, *_, last = result.stdout.splitlines()
    assert (first, last) == ("warning dead-letter", "1 warning")
    assert "  hint: " in result.stdout
    assert "info " not in result.stdout
    assert cli("doctor").exit_code == 1


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_doctor_speaks_json(cli: Cli, registry: Registry, quiet: list[str]) -> None:
    """One object a line, in the fields that its help names."""
    fail(registry, "t")
    result = cli("doctor", "--json", *quiet)
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(list(one) == list(doctor.FIELDS) for one in told)
    assert [one["code"] for one in told if one["severity"] == "warning"] == ["dead-letter"]
    assert (len(told) == 1) == bool(quiet)


@pytest.mark.parametrize("content", [None, "", "my notes\n" * 500])
def test_doctor_of_what_cannot_be_opened(cli: Cli, path: Path, content: str | None) -> None:
    """Nothing there, or no database: exit code 74 and what to do. An empty file only lacks its registry."""
    if content is not None:
        path.write_text(content)
    before = os.listdir(path.parent)
    result = cli("doctor", "--quiet")
    assert result.exit_code == (1 if content == "" else 74)
    assert "hint: " in result.stdout
    assert os.listdir(path.parent) == before


def test_hints_look_into_the_same_file(cli: Cli, registry: Registry, path: Path) -> None:
    """A hint that names a command names the file as well, where it was given by --db."""
    fail(registry, "t")
    result = cli("--db", str(path), "doctor", "--json", "--quiet")
    assert f"idemreg --db {path} retry" in json.loads(result.stdout)["hint"]


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--quiet"], ["checkpoint"]])
def test_every_line_fits_the_terminal(cli: Cli, registry: Registry, path: Path, columns: int, words: list[str]) -> None:
    """On a terminal no line is wider than it, and severities have a colour there."""
    for number in range(9):
        fail(registry, f"order:{number}" * 20)
    with Script(READER, path) as reader:
        reader.expect("reading")
        registry.add("t")
        screen = cli.terminal(columns, *words)
        plain = cli("--db", str(path), *words, COLUMNS=str(columns))
    assert ("\x1b[33mwarning\x1b[0m" in screen) == (words[0] == "doctor")
    for line in [*screen.replace("\x1b[33m", "").replace("\x1b[32m", "").replace("\x1b[0m", "").splitlines()]:
        assert width(line) <= columns, line
    assert "\x1b" not in plain.stdout
    assert all(width(line) <= columns for line in plain.stdout.splitlines())


def test_in_a_pipe(cli: Cli, registry: Registry) -> None:
    """Into a pipe it is plain text; a reader that goes away early is no error of the doctor's."""
    fail(registry, "t")
    done = cli.process("doctor", "--quiet")
    assert done.returncode == 1
    assert done.stdout.startswith("warning dead-letter\n")
    assert done.stderr == ""
    done = cli.process("doctor", script='"$@" | head -n 1')
    assert (done.stdout, done.stderr) == ("info versions\n", "")


def test_ctrl_c_while_it_looks(registry: Registry, path: Path) -> None:
    """Interrupted inside a long question to SQLite it ends at once, with 130 and without a traceback."""
    registry.add("t")
    source = """
        import sys
        from idemreg.cli import main
        from idemreg.sqlite import looking
        def asked(self):
            say("looking")
            signal.pause()
            return False
        looking.STEPS_BETWEEN_LOOKS_AT_THE_CLOCK = 1
        looking.Look._is_late = asked
        sys.stderr = sys.stdout
        main(["--db", sys.argv[1], "doctor", "--full", "--quiet"])
    """
    with Script(source, path) as script:
        script.expect("looking")
        script.signal(signal.SIGINT)
        script.expect("idemreg: interrupted")
        assert script.end() == 130


def test_ctrl_c_while_a_checkpoint_waits(registry: Registry, path: Path) -> None:
    """A checkpoint that waits for a reader is interrupted at once."""
    registry.add("t")
    source = """
        import sys
        from idemreg.clock import Clock
        from idemreg.cli import main
        def nap(self, pause):
            say("waiting")
            signal.pause()
        Clock.sleep = nap
        sys.stderr = sys.stdout
        main(["--db", sys.argv[1], "checkpoint", "--mode", "restart", "--wait", "1h"])
    """
    with Script(READER, path) as reader:
        reader.expect("reading")
        registry.add("u")
        with Script(source, path) as script:
            script.expect("waiting")
            script.signal(signal.SIGINT)
            script.expect("idemreg: interrupted")
            assert script.end() == 130
