"""`idemreg each` on terminals: a progress line that fits, an account that stays, and Ctrl-C."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
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


def test_interrupted_on_a_terminal(cli: Cli) -> None:
    """Ctrl-C reaches the command and us; its task is settled, and the account says that it was interrupted."""
    words = ["each", "--task-id", "{id}", "--", "sh", "-c", "echo on; exec sleep 60"]
    shown = cli.terminal(80, *words, typed='{"id": 1}\n', then=("on", "\x03"))
    assert "idemreg: interrupted: 1 line: 1 unknown" in shown
    assert cli.json("show", "1")["status"] == "unknown"
