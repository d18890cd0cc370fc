"""`idemreg each` on terminals: a progress line that fits, an account that stays, and Ctrl-C."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.driver import Cli


@pytest.mark.parametrize("columns", [80, 40])
def test_on_a_terminal(cli: Cli, columns: int) -> None:
    """Typed lines are handled as they come; problems and the account are lines of their own."""
    words = ["each", "--task-id", "{id}", "--", "sh", "-c", "cat >/dev/null; echo handled $IDEMREG_TASK_ID"]
    shown = cli.terminal(columns, *words, typed='{"id": 1}\n{"id": 2}\nno json\n\x04')
    assert "handled 1" in shown
    assert "line 3 refused" in shown.replace("\n", " ")
    assert "idemreg: 3 lines: 2 done, 1 refused" in shown
    drawn = [piece.partition("\n")[0].partition("\x1b")[0] for piece in shown.split("\r\x1b[K")[1:]]
    progress = [piece for piece in drawn if "line" in piece and piece.endswith("/s")]
    assert progress
    assert all(len(piece) < columns for piece in progress)


@pytest.mark.parametrize("columns", [80, 40])
def test_functions_on_a_terminal(cli: Cli, columns: int, tmp_path: Path) -> None:
    """What a function prints stands in lines of its own above the progress, also where it gives them no end."""
    (tmp_path / "talks.py").write_text(
        "import sys\n"
        "def f(line):\n"
        "    print('said', line['id'], end='')\n"
        "    print('murmured', line['id'], file=sys.stderr)\n"
        "    if line['id'] == 2: raise SystemExit\n"
    )
    words = ["each", "--task-id", "{id}", "--python", "talks:f"]
    shown = cli.terminal(
        columns, *words, typed='{"id": 1}\n{"id": 2}\n{"id": 3}\n\x04', PYTHONPATH=f"{ROOT}:{tmp_path}"
    )
    lines = [line.rpartition("\r\x1b[K")[2] for line in shown.split("\n")]
    assert {"said 1", "said 2", "said 3", "murmured 1", "murmured 2", "murmured 3"} <= set(lines), shown
    assert "idemreg: line 2 (2) unknown: SystemExit" in lines
    assert "idemreg: 3 lines: 2 done, 1 unknown" in lines


def test_interrupted_on_a_terminal(cli: Cli) -> None:
    """Ctrl-C reaches the command and us; its task is settled, and the account says that it was interrupted."""
    words = ["each", "--task-id", "{id}", "--", "sh", "-c", "echo on; exec sleep 60"]
    shown = cli.terminal(80, *words, typed='{"id": 1}\n', then=("on", "\x03"))
    assert "idemreg: interrupted: 1 line: 1 unknown" in shown
    assert cli.json("show", "1")["status"] == "unknown"
