"""How a command's claim ends where its end cannot be stored, or an error comes in between: once, and never in doubt."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest

from idemreg import FinishNotRecordedError, Liveness, Registry, Status, TaskRunningError, TaskUnknownError, faults
from idemreg.command import run_command
from tests.support.descriptors import left_open
from tests.support.processes import Script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Literal, TypeAlias

    from idemreg import OwnerInfo, Task

    OnCrashWord: TypeAlias = Literal["hold", "rerun"]

SH = "/bin/sh"


def task_of(registry: Registry, task_id: str) -> Task:
    task = registry.get(task_id)
    assert task is not None
    return task


def owner_of(registry: Registry, task_id: str) -> OwnerInfo:
    owner = registry.owner(task_of(registry, task_id))
    assert owner is not None
    return owner


# --- an end that cannot be stored ---------------------------------------------------------------------------------

# Another program, which knows nothing of turns, has SQLite's write lock.
FOREIGN = """
    import apsw
    connection = apsw.Connection(sys.argv[1])
    connection.execute("BEGIN IMMEDIATE")
    say("holds"); wait()
    connection.execute("ROLLBACK")
"""


class Unrecorded:
    """A command that has succeeded, and whose end could not be stored; ``store_again`` lets it be."""

    def __init__(self, registry: Registry, path: Path, on_crash: OnCrashWord) -> None:
        self.registry, self.on_crash = registry, on_crash
        self.witness = path.parent / "witness"
        registry.run("warm", int)
        with Script(FOREIGN, path) as holder:
            faults.arm("command.ended", lambda: holder.expect("holds"))
            with pytest.raises(FinishNotRecordedError):
                self.run()
            with Registry(path) as other:
                self.owner = owner_of(other, "t")
                with pytest.raises(TaskRunningError):
                    self.run(other)
            holder.go()
            assert holder.end() == 0

    def run(self, registry: Registry | None = None) -> None:
        argv = [SH, "-c", f"echo ran >>{self.witness}"]
        run_command(registry or self.registry, "t", argv, on_crash=self.on_crash)

    def check(self, registry: Registry) -> None:
        """It is unknown, says why, and does not run again."""
        task = task_of(registry, "t")
        assert task.status is Status.UNKNOWN
        assert task.error is not None
        assert task.error.startswith("FinishNotRecorded: the job ended as succeeded")
        with pytest.raises(TaskUnknownError):
            self.run(registry)
        assert self.witness.read_text() == "ran\n"


@pytest.mark.parametrize("on_crash", ["rerun", "hold"])
def test_a_command_whose_end_could_not_be_stored_does_not_run_again(
    on_crash: OnCrashWord, path: Path, open_registry: Callable[..., Registry]
) -> None:
    """Until its end is stored its owner lives, and then it is unknown; nothing stays open for it."""
    registry = open_registry(busy_timeout=0.05)
    unrecorded = Unrecorded(registry, path, on_crash)
    assert unrecorded.owner.liveness is Liveness.ALIVE
    registry.add("another")  # whoever writes stores what waits
    unrecorded.check(registry)
    registry.close()
    assert left_open(path) == []


def test_nor_where_the_registry_is_closed_meanwhile(path: Path, open_registry: Callable[..., Registry]) -> None:
    """Its files stay open behind the close for as long as its end waits, and no longer."""
    registry = open_registry(busy_timeout=0.05)
    unrecorded = Unrecorded(registry, path, "rerun")
    registry.close()
    assert left_open(path)
    other = open_registry()
    assert owner_of(other, "t").liveness is Liveness.ALIVE
    other.close()
    registry.add("another")
    unrecorded.check(registry)
    registry.close()
    assert left_open(path) == []


def test_a_registry_that_is_dropped_keeps_no_command(path: Path) -> None:
    """Nobody is left who could store the end: the command counts as that of a dead owner once its process is gone."""
    unrecorded = Unrecorded(Registry(path, busy_timeout=0.05), path, "hold")
    del unrecorded
    gc.collect()
    assert left_open(path) == []


def test_a_child_has_no_part_in_a_command_whose_end_waits(path: Path, open_registry: Callable[..., Registry]) -> None:
    """Forked meanwhile, it has nothing of it open, and ends nothing; its parent does."""
    registry = open_registry(busy_timeout=0.05)
    unrecorded = Unrecorded(registry, path, "rerun")
    child = os.fork()
    if not child:
        try:
            registry.add("of the child")
            lives = owner_of(registry, "t").liveness is Liveness.ALIVE
            registry.close()
            os._exit(0 if lives and task_of(registry, "t").status is Status.RUNNING else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    registry.add("another")
    unrecorded.check(registry)
