"""The cases that are commands: each in this process, with a fault beneath it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from typing import TYPE_CHECKING, Final

from idemreg import Status
from idemreg.claim_environment import DATABASE_VARIABLE, TASK_ID_VARIABLE, TOKEN_VARIABLE
from tests.torture.injected import work
from tests.torture.injected.cases import CommandError, case
from tests.torture.injected.coroutines import CASES
from tests.torture.injected.scene import NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.torture.injected.scene import Scene

__all__ = ["CASES"]

SUCCEEDED, FAILED, PENDING, RUNNING, UNKNOWN = (
    *(Status.SUCCEEDED, Status.FAILED, Status.PENDING, Status.RUNNING, Status.UNKNOWN),
)
UNKNOWN_EXIT: Final = 76
FINAL: Final = (SUCCEEDED, Status.SKIPPED, Status.CANCELLED)


def command(scene: Scene, *words: str, names_file: bool = True) -> int:
    """The command in this process; `CommandError` where it says that the file could not be read or written.

    Not ``names_file``: it is told of the file in another way.
    """
    from idemreg.cli import main  # noqa: PLC0415

    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([*(("--db", scene.path) if names_file else ()), *words])
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
    ):
        scene.tries(task_id, status)
        if command(scene, *words) == 0:
            scene.tells(task_id, status)
    scene.tries("dead", UNKNOWN)  # and no more than that: whether its owner is dead may be what nobody can tell
    command(scene, "watch", "--once")
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


@case("idemreg each", "idemreg each", mixed=True, weight=0)
def each(scene: Scene) -> None:
    names = ("line-1", "line-2")
    for task_id in names:
        scene.entered[task_id] = scene.failed[task_id] = 0
        scene.tries(task_id, RUNNING, PENDING, UNKNOWN)
    work.of_lines = {task_id: scene.job(task_id) for task_id in names}
    lines = "".join(f'{{"id": "{task_id}"}}\n' for task_id in names)
    with _as_stdin(lines.encode()):
        code = command(scene, "each", "--task-id", "{id}", "--python", f"{work.__name__}:of_line")
    if code == 0:  # told before the registry was closed, which has written since
        for task_id in names:
            scene.tells(task_id, SUCCEEDED, durable=False)
    scene.check(code in {0, UNKNOWN_EXIT}, f"each ends with {code}")


@contextlib.contextmanager
def _as_stdin(content: bytes) -> Iterator[None]:
    """The standard input of this process, until nobody reads it any more."""
    before, there = os.dup(0), os.memfd_create("lines")
    os.write(there, content)
    os.lseek(there, 0, os.SEEK_SET)
    os.dup2(there, 0)
    try:
        yield
    finally:
        for thread in threading.enumerate():
            if thread.name.startswith(("idemreg-feeder", "idemreg-each")):
                thread.join()
        os.dup2(before, 0)
        os.close(before)
        os.close(there)


@case("idemreg step", "idemreg step", mixed=True, weight=0)
def step(scene: Scene) -> None:
    scene.is_block = True
    scene.tries("new", RUNNING, PENDING, UNKNOWN)
    with scene.registry.claim("new", name=NAME) as claim:
        scene.has_begun = True
        claim.result = scene.job("new")()
        told = {TASK_ID_VARIABLE: "new", TOKEN_VARIABLE: str(claim.token), DATABASE_VARIABLE: scene.path}
        os.environ.update(told)
        try:
            for _ in range(2):  # the second time it is there
                scene.check(command(scene, "step", "first", "--", "true", names_file=False) == 0, "step")
        except CommandError:
            scene.failed["new"] += 1
            raise
        finally:
            for name in told:
                del os.environ[name]
    scene.tells("new", SUCCEEDED)
    scene.check([one.name for one in scene.registry.steps("new")] == ["first"], "a step that was saved is not told")


@case("idemreg schedule", "idemreg schedule", mixed=True, weight=0)
def schedule(scene: Scene) -> None:
    work.registry, slot = scene.registry, "leap@2024-02-29T00:00:00Z"
    scene.registry.scheduled("leap", cron="0 0 29 2 *")(work.of_slot)
    target, path = f"{work.__name__}:registry", [*sys.path]
    try:
        scene.check(command(scene, "schedule", "--once", target, names_file=False) == 0, "schedule --once")
        for words in (("--pause", "leap"), ("--resume", "leap"), ()):
            scene.check(command(scene, "schedule", *words) == 0, f"schedule {words}")
        scene.tries(slot, RUNNING, PENDING, UNKNOWN, SUCCEEDED)
        scene.check(command(scene, "schedule", "--slot", slot, target, names_file=False) == 0, "schedule --slot")
        scene.tells(slot, SUCCEEDED, durable=False)
    finally:
        sys.path[:] = path
        work.registry = None
