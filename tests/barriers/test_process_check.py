"""The process check alone, and what else cannot tell: where the owner's lock says nothing, nobody is taken for dead."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from idemreg import Registry, TaskRunningError
from tests.barriers.actors import another, orphaned, stopped
from tests.support import raw

if TYPE_CHECKING:
    from pathlib import Path

RUN = 'registry.run("t", lambda: 1, name="j", on_crash="rerun")'
CLAIM = 'registry = Registry(path, durability="normal"); claim = registry.claim("t", name="j", on_crash="rerun")'
STOPPED = 'say("stopped"); wait()'

# How a live process loses its lock.
LOSSES = {
    "closes its descriptor": "os.close(registry.store._opening.opened().lock_file.fd)",
    "closes every descriptor": "os.closerange(3, 5000)",
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_live_process_that_lost_its_lock_is_not_replaced(path: Path, loss: str) -> None:
    """Its byte is free, and it is still there: nobody runs, settles or forgets its task."""
    with stopped(path, f"{CLAIM}; {LOSSES[loss]}; {STOPPED}"):
        assert another(path, RUN) == "running"
        assert another(path, 'registry.resolve("t", "did-not-happen")') == "transition"
        assert another(path, 'registry.forget("t", force=True)') == "transition"


def test_a_process_that_lost_its_lock_is_replaced_once_it_is_dead(path: Path) -> None:
    """Whoever calls next takes the task over."""
    with stopped(path, f"{CLAIM}; {LOSSES['closes every descriptor']}; {STOPPED}") as owner:
        owner.kill()
        assert another(path, RUN) == "done"


def test_a_number_that_another_process_bears_now_is_nobodys_life(path: Path) -> None:
    """A process of the same number that was started at another time is another one: the owner is dead."""
    with stopped(path, f"{CLAIM}; {STOPPED}") as owner:
        owner.kill()
    connection = raw.connect(path)
    connection.execute("UPDATE idempotent_owner SET pid = ?", (os.getpid(),))
    raw.reseal(connection)
    connection.close()
    assert another(path, RUN) == "done"


def test_a_zombie_is_nobodys_life(path: Path) -> None:
    """A process that was killed and not yet reaped still has its number and its start time."""
    with stopped(path, f"{CLAIM}; {STOPPED}") as owner:
        owner.process.kill()
        os.waitid(os.P_PID, owner.process.pid, os.WEXITED | os.WNOWAIT)
        assert another(path, RUN) == "done"


def test_the_bytes_of_a_new_lock_file_prove_nobody_dead(path: Path) -> None:
    """The owner holds its byte of the one that was deleted."""
    with stopped(path, f"{CLAIM}; {STOPPED}"):
        os.unlink(f"{path}-lock")
        assert another(path, RUN) == "running"


def test_the_bytes_of_a_deleted_lock_file_prove_nobody_dead(path: Path) -> None:
    """The owner holds its byte of the new one, which this process, open for longer, does not look at."""
    with Registry(path, durability="normal") as registry:
        registry.run("warm", lambda: 1)
        os.unlink(f"{path}-lock")
        with stopped(path, f"{CLAIM}; {STOPPED}"), pytest.raises(TaskRunningError):
            registry.run("t", lambda: 1, name="j", on_crash="rerun")


def test_a_command_that_closed_what_it_inherited_keeps_its_task(path: Path, tmp_path: Path) -> None:
    """As sudo does: it is known by its process, which was noted before its first word was passed on."""
    with orphaned(path, tmp_path / "gate", "os.closerange(3, 5000)"):
        assert another(path, 'registry.resolve("t", "did-not-happen")') == "transition"
