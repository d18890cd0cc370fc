"""The Tab key: task_ids of the file that the line means, quoted for the shell, and never an error or a new file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from idemreg import Registry
from idemreg.cli.complete import OFFERED
from idemreg.sqlite.peeking import task_ids
from tests.cli.driver import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.driver import Cli

ODD = "it's a $(trap) & more: 備份;'\""


@pytest.fixture
def full(registry: Registry) -> Registry:
    for task_id in ("order:1", "order:2", "backup:2026-11-23", ODD, "a,b"):
        registry.add(task_id)
    return registry


def bash(cli: Cli, line: str, **environment: str) -> list[str]:
    """What a real bash puts into COMPREPLY for the line, with the cursor at its end."""
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    script = """
        idemreg() { "$PYTHON" -m idemreg "$@"; }
        eval "$(_IDEMREG_COMPLETE=bash_source "$PYTHON" -c 'from idemreg.cli import main; main(prog_name="idemreg")')"
        COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDBREAKS=$' \\t\\n"\\'@><=;|&(:'
        _idemreg_completion "$IDEMREG"
        for reply in "${COMPREPLY[@]}"; do printf '%s\\n' "$reply"; done
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", line],
        env=cli.environment(
            PYTHON=sys.executable, IDEMREG=os.path.join(os.path.dirname(sys.executable), "idemreg"), **environment
        ),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def offered(cli: Cli, *words: str, asker: str = "zsh", **environment: str) -> str:
    """What click's own script of a shell is given."""
    *before, last = words
    return cli.process(
        _IDEMREG_COMPLETE=f"{asker}_complete",
        COMP_WORDS=" ".join(["idemreg", *before, last]),
        COMP_CWORD=last if asker == "fish" else str(len(words)),
        **environment,
    ).stdout


@pytest.mark.parametrize("command", ["show", "retry", "forget", "resolve", "run"])
def test_every_task_id_is_offered(full: Registry, cli: Cli, command: str) -> None:
    """Each command that takes a TASK_ID offers those that begin so, in their order."""
    assert bash(cli, f"idemreg {command} order:") == ["1", "2"]  # bash replaces what is behind the colon
    assert bash(cli, f"idemreg {command} bac") == ["backup:2026-11-23"]


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("idemreg show it", [r"it\'s\ a\ \$\(trap\)\ \&\ more:\ 備份\;\'\""]),
        (r"idemreg show it\'s\ a\ \$\(trap\)\ \&\ more:", [r"\ 備份\;\'\""]),
        ("idemreg show \"it's a", [ODD]),
        ("idemreg show a,", ["a,b"]),
        ("idemreg sho", ["show"]),
        ("idemreg list --old", ["--older-than"]),
        ("idemreg list --status fa", ["failed"]),
        ("idemreg show zzz", []),
    ],
)
def test_bash_gets_what_it_can_use(full: Registry, cli: Cli, line: str, replies: list[str]) -> None:
    """Odd ids are quoted for bash, inside quotes they are not; commands, options and choices are offered as ever."""
    assert bash(cli, line) == replies


def test_the_quoted_id_is_the_id(full: Registry, cli: Cli) -> None:
    """The shell that reads the completed line hands over exactly the id that was meant."""
    (reply,) = bash(cli, "idemreg show it")
    done = subprocess.run(["bash", "-c", f"printf %s {reply}"], capture_output=True, text=True, check=True)
    assert done.stdout == ODD


def test_a_dash_is_offered_where_it_can_be_taken(full: Registry, cli: Cli) -> None:
    """A task_id that begins with a dash is offered behind -- alone: before it, it would be an option."""
    full.add("-dash")
    assert "-dash" not in bash(cli, "idemreg show ")
    assert bash(cli, "idemreg show -- -d") == ["-dash"]
    assert "-dash" not in offered(cli, "show", "")


def test_the_scripts_of_zsh_and_fish(full: Registry, cli: Cli) -> None:
    """click's scripts get the ids without a help text, so zsh takes their colons as they are."""
    assert offered(cli, "show", "ord").splitlines() == ["plain", "order:1", "_", "plain", "order:2", "_"]
    assert "plain,order:1" in offered(cli, "show", "ord", asker="fish")
    for shell in ("bash", "zsh", "fish"):
        source = cli.process(_IDEMREG_COMPLETE=f"{shell}_source")
        assert (source.returncode, source.stderr) == (0, "")
        assert "_IDEMREG_COMPLETE" in source.stdout


def test_the_file_is_the_one_of_the_line(full: Registry, cli: Cli, tmp_path: Path) -> None:
    """--db goes before IDEMREG_DB, on either side of the command."""
    with Registry(tmp_path / "other.db") as other:
        other.add("order:other")
    for line in (f"idemreg --db {tmp_path}/other.db show or", f"idemreg show --db {tmp_path}/other.db or"):
        assert bash(cli, line) == ["order:other"]
    assert bash(cli, "idemreg show or", IDEMREG_DB=str(tmp_path / "other.db")) == ["order:other"]


def test_a_long_list_is_bounded(full: Registry, cli: Cli) -> None:
    """However many tasks there are, a person gets the first few dozen."""
    for number in range(OFFERED + 10):
        full.add(f"many:{number:03}")
    assert len(bash(cli, "idemreg show many:")) == OFFERED


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 99])
def test_nothing_is_created_and_nothing_said(cli: Cli, path: Path, content: bytes | None) -> None:
    """No file, an empty one, a foreign one, no home: nothing is offered, printed, or comes into being."""
    if content is not None:
        path.write_bytes(content)
        path.with_name(path.name + "-lock").write_bytes(content)
    before = {one: one.read_bytes() for one in path.parent.iterdir()}
    assert bash(cli, "idemreg show ") == []
    assert bash(cli, "idemreg show ", IDEMREG_DB="", HOME="/nonexistent") == []
    assert {one: one.read_bytes() for one in path.parent.iterdir()} == before
    broken = cli.process(_IDEMREG_COMPLETE="bash_complete")
    assert (broken.stdout, broken.stderr) == ("", "")


def test_a_file_at_rest_stays_as_it_is(full: Registry, path: Path) -> None:
    """A registry that nobody has open is read, and leaves no -wal behind; a backup gets no files at its side."""
    full.backup(path.with_name("copy.db"))
    full.close()
    before = sorted(os.listdir(path.parent))
    assert task_ids(str(path), "order:", 9) == ["order:1", "order:2"]
    assert task_ids(str(path.with_name("copy.db")), "order:", 9) == []
    assert sorted(os.listdir(path.parent)) == before
