"""The states of the file before a call: what an earlier process, a kill or another boot has left.

Each is made once by real processes, kept in memory, and laid anew for each call; how many tasks it holds is up to the
seed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from idemreg import Clock, Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

__all__ = ["BUSY_S", "LARGE", "NAMES", "NAMES_BEFORE", "RESULT", "Boot", "JobError", "State", "make"]

NAMES: Final = ("none", "empty", "filled", "killed", "rebooted")
RESULT: Final = {"n": 1}
LARGE: Final = "x" * 3_000
BUSY_S: Final = 0.02
MOST_FILLERS: Final = 60
MODE: Final = 0o666  # of a file, before the umask

# The jobs that the tasks of a filled state belong to, where it is not "job".
NAMES_BEFORE: Final = {"failed": "_fail", "held": "_fail", "unknown": "_fail", "unknown-too": "_fail", "dead": "",
                       "pending": "", "done": "first", "large": "first"}  # fmt: skip


class JobError(Exception):
    """What a job of the trials raises."""


class Boot(Clock):
    """The machine's clock, in a boot of a name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def boot_id(self) -> str:
        return self._name


class State(NamedTuple):
    """Files to be laid somewhere; ``size`` says how many tasks there are beside the named ones."""

    name: str
    size: int
    files: tuple[tuple[str, bytes], ...]

    @property
    def is_filled(self) -> bool:
        return self.size > 0

    def copy(self, target: str) -> None:
        os.mkdir(target)
        for name, content in self.files:
            fd = os.open(os.path.join(target, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
            os.write(fd, content)
            os.close(fd)


def make(name: str, random: Random, base: str) -> State:
    """Make the state in a folder of its own."""
    size = random.randrange(1, MOST_FILLERS) if name not in {"none", "empty"} else 0
    folder = os.path.join(base, f"state-{name}")
    os.mkdir(folder)
    path = os.path.join(folder, "jobs.db")
    if name != "none":
        _in_child(lambda: _make(path, name, size), is_killed=name == "killed")
        Path(f"{path}-shm").unlink(missing_ok=True)
    files = tuple((one.name, one.read_bytes()) for one in Path(folder).iterdir())
    shutil.rmtree(folder)
    return State(name, size, files)


def _in_child(body: Callable[[], Registry], *, is_killed: bool) -> None:
    """In a process of its own, which is killed, or closes what it has opened."""
    if not (pid := os.fork()):
        with contextlib.suppress(BaseException):
            registry = body()
            if not is_killed:
                registry.close()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status == 0, "a state could not be made"


def _make(path: str, name: str, size: int) -> Registry:
    registry = Registry(path, clock=Boot("before") if name == "rebooted" else None, durability="normal").open()
    if size:
        _fill(registry, path, size)
    return registry


def _fail() -> None:
    raise JobError


def _fill(registry: Registry, path: str, size: int) -> None:
    registry.run("done", lambda: RESULT, name="first")
    registry.run("large", lambda: LARGE, name="first")
    registry.add("pending")
    registry.add("skipped")
    registry.skip("skipped", "not wanted")
    for task_id, options in (("failed", {}), ("held", {"on_failure": "hold"}), ("unknown", {"unknown_on": JobError})):
        with contextlib.suppress(JobError):
            registry.run(task_id, _fail, **options)
    with contextlib.suppress(JobError):
        registry.run("unknown-too", _fail, unknown_on=JobError)
    for number in range(size):
        registry.run(f"filler:{number}", lambda: None)
    if not (pid := os.fork()):
        claim = Registry(path, clock=registry.clock, durability="normal").claim("dead")
        os._exit(0 if claim.is_open else 1)
    assert os.waitpid(pid, 0)[1] == 0
