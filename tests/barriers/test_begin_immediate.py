"""BEGIN IMMEDIATE alone: nobody writes between what a transaction reads and what it writes by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from idemreg import Registry, Status
from tests.barriers.actors import another, stopped

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = 'kept.append(registry.claim("t", name="j", on_crash="rerun"))'

# What is between reading and writing, and what becomes of the failed task in it.
WRITES: dict[str, tuple[str, str, Status | None]] = {
    "claim": ("claim.decided", CLAIM, Status.UNKNOWN),
    "verdict": ("settle.decided", 'registry.retry("t")', Status.FAILED),
    "forget": ("forget.decided", 'registry.forget("t")', None),
}

WRITER = """
registry, kept = Registry(path, durability="normal"), []
faults.arm(point, stop)
told(lambda: {act})
leave()
"""

EFFECTS = """
registry = Registry(path, durability="normal")
def act():
    with registry.claim("t", name="j", on_crash="rerun") as claim, claim.transaction() as tx:
        faults.disarm()
        (number,) = tx.execute("select count(*) from idempotent_log")
        say("stopped"); wait()
        tx.execute("create table effect (n)")
told(act)
leave()
"""


@pytest.fixture
def failed(path: Path) -> None:
    with Registry(path, durability="normal") as registry, pytest.raises(ZeroDivisionError):
        registry.run("t", lambda: 1 / 0, name="j")


@pytest.mark.parametrize("write", WRITES)
def test_nobody_writes_between_reading_and_writing(path: Path, failed: None, write: str) -> None:
    """Another process is told that it is busy, and the writer that it is done."""
    point, act, status = WRITES[write]
    with stopped(path, WRITER.format(act=act), point) as writer:
        assert another(path, 'registry.add("other")') == "store-busy"
        writer.go()
        writer.expect("done")
        writer.end()
    with Registry(path, durability="normal") as registry:
        if write == "claim":
            registry.resolve("t", "cannot-tell")  # of an owner that has died
        task = registry.get("t")
        assert (None if task is None else task.status) is status


def test_nobody_writes_between_what_a_job_reads_and_writes(path: Path, failed: None) -> None:
    """The same of the job's own statements in `claim.transaction()`."""
    with stopped(path, EFFECTS) as writer:
        assert another(path, 'registry.add("other")') == "store-busy"
        writer.go()
        writer.expect("done")
        writer.end()
