"""The thirty-second version of the product."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from idemreg import ChecksumMismatchError, Status
from tests.support.processes import PATIENCE_S, ROOT, Script

if TYPE_CHECKING:
    from pathlib import Path

    from idemreg import Registry


def test_a_decorated_job_runs_once_a_task(registry: Registry) -> None:
    """The second call gets the first one's result, equal in value and type, and the body is not entered."""
    entered = []

    @registry.idempotent("coupon:{user}:{day}")
    def issue(user: int, day: str, amount: int = 10) -> dict[str, object]:
        entered.append(user)
        return {"user": user, "amounts": (amount,)}

    assert issue(7, "2026-11-23") == issue(7, "2026-11-23") == {"user": 7, "amounts": (10,)}
    assert entered == [7]
    assert issue.call(7, "2026-11-23").replayed
    with pytest.raises(ChecksumMismatchError):
        issue(7, "2026-11-23", amount=99)


def test_a_killed_owners_task_becomes_unknown(registry: Registry, path: Path) -> None:
    """kill -9 in mid-job leaves a task that nobody runs again by himself."""
    with Script(
        """
        from idemreg import Registry
        claim = Registry(sys.argv[1]).claim("task")
        say("claimed")
        wait()
        """,
        path,
    ) as owner:
        owner.expect("claimed")
        owner.kill()
        with pytest.raises(Exception) as caught:
            registry.run("task", lambda: None, name="")
        assert caught.value.__class__.__name__ == "TaskUnknownError"
        task = registry.get("task")
        assert task is not None
        assert task.status is Status.UNKNOWN


def test_ctrl_c_while_it_imports_is_silent(tmp_path: Path) -> None:
    """Interrupted before its first line of work, the command ends by the signal and prints no traceback."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    # A module that is imported first of all waits at the gate, in the place of a slow disk.
    (tmp_path / "click.py").write_text(f"open({str(gate)!r}).read()\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "idemreg", "list"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stderr=subprocess.PIPE,
    )
    with gate.open("w"):  # opens once the import is waiting there
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (-signal.SIGINT, b"")
