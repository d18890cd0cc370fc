"""The cases that are commands: each in this process, with a fault beneath it."""

from __future__ import annotations

import contextlib
import io
import os
from typing import TYPE_CHECKING, Final

from idemreg import Status
from tests.torture.injected.cases import CASES, CommandError, case

if TYPE_CHECKING:
    from tests.torture.injected.scene import Scene

__all__ = ["CASES"]

SUCCEEDED, FAILED, PENDING, RUNNING, UNKNOWN = (
    *(Status.SUCCEEDED, Status.FAILED, Status.PENDING, Status.RUNNING, Status.UNKNOWN),
)
FINAL: Final = (SUCCEEDED, Status.SKIPPED, Status.CANCELLED)


def command(scene: Scene, *words: str) -> int:
    """The command in this process; `CommandError` where it says that the file could not be read or written."""
    from idemreg.cli import main  # noqa: PLC0415

    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["--db", scene.path, *words])
        except SystemExit as end:
            code = end.code
    text = err.getvalue()
    scene.check("Traceback" not in text and "unexpected" not in text, f"{words[0]}: {text!r}")
    scene.check(isinstance(code, int), f"{words[0]} ended with {code!r}")
    if code == 74:
        scene.check(text or out.getvalue(), f"{words[0]} says nothing of its error")
        raise CommandError(text)
    return code if isinstance(code, int) else 0


@case("commands", "idemreg init", "idemreg show", "idemreg list", "idemreg stats", mixed=True, weight=0)
def commands(scene: Scene) -> None:
    scene.check(command(scene, "init") == 0, "init")
    for words in (("stats",), ("list",), ("show", "done")):
        wanted = 0 if words[0] != "show" or "done" in scene.before else 1
        scene.check(command(scene, *words) == wanted, f"{words[0]} does not end with {wanted}")


@case("idemreg run", "idemreg run", mixed=True, weight=0)
def run_command(scene: Scene) -> None:
    scene.tries("ran", RUNNING, PENDING, UNKNOWN, SUCCEEDED)
    scene.check(command(scene, "run", "ran", "--", "true") == 0, "run does not end with 0")
    scene.tells("ran", SUCCEEDED)


@case(
    "commands that look",
    *("idemreg export", "idemreg checkpoint", "idemreg doctor", "idemreg serial", "idemreg clock", "idemreg audit"),
    filled=True,
    mixed=True,
    weight=0,
)
def look(scene: Scene) -> None:
    for words in (("export",), ("checkpoint",), ("doctor",), ("serial", "COUP"), ("clock",), ("audit", "nothing")):
        command(scene, *words)


@case(
    "commands that decide",
    *("idemreg resolve", "idemreg retry", "idemreg forget", "idemreg purge", "idemreg watch"),
    filled=True,
    mixed=True,
    weight=0,
)
def decide(scene: Scene) -> None:
    for task_id, status, *words in (
        ("unknown", SUCCEEDED, "resolve", "unknown", "happened"),
        ("held", FAILED, "retry", "held"),
        ("failed", None, "forget", "failed"),
        ("dead", UNKNOWN, "watch", "--once"),
    ):
        scene.tries(task_id, status)
        if command(scene, *words) == 0:
            scene.tells(task_id, status)
    for task_id in ("warm", *(one for one, row in scene.before.items() if row.status in FINAL), "unknown"):
        scene.promised.pop(task_id, None)
        scene.tries(task_id, SUCCEEDED, None)
    command(scene, "purge", "--older-than", "0", "--yes")


@case("commands that copy", "idemreg backup", "idemreg import", "idemreg doctor", filled=True, cold=True, mixed=True,
      weight=0)  # fmt: skip
def copy(scene: Scene) -> None:
    out = os.path.join(os.path.dirname(os.path.dirname(scene.path)), "out")  # beside the folder that is looked through
    lines = f"{out}.lines"
    for end in ("", "-wal", "-shm", "-lock", ".lines"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(out + end)
    command(scene, "doctor", "--salvage", out)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(out)
    command(scene, "backup", out)
    command(scene, "export", lines)
    if os.path.exists(lines):
        command(scene, "import", lines)
