"""The write turn alone: in every test the writer's process has closed a descriptor of each file.

That drops all POSIX locks of the process, and so SQLite's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from idemreg import Registry
from tests.barriers.actors import another, stopped
from tests.support import raw

if TYPE_CHECKING:
    from pathlib import Path

WARM = 'registry.run("warm", lambda: 1)'
FAIL = 'told(lambda: registry.run("t", lambda: 1 / 0, unknown_on=ZeroDivisionError))'.replace("told(", "failing(")

# What the writer is stopped in, and what it does.
WRITES = {
    "first claim": ("claim.in-transaction", 'registry.run("t", lambda: 1)'),
    "claim": ("claim.in-transaction", f'{WARM}; arm(); registry.run("t", lambda: 1)'),
    "success": ("finish.in-transaction", f'{WARM}; arm(); registry.run("t", lambda: 1)'),
    "failure": ("finish.in-transaction", f'{WARM}; arm(); failing(lambda: registry.run("t", lambda: 1 / 0))'),
    "batch": ("batch.in-transaction", 'list(registry.consume(["t"], str, task_id=str))'),
    "verdict": ("settle.decided", f'{FAIL}; registry.resolve("t", "happened")'),
    "forget": ("forget.decided", f'{FAIL}; registry.forget("t", force=True)'),
    "purge": ("purge.in-transaction", f"{WARM}; registry.purge(older_than=0)"),
    "effects": (
        "transaction.open",
        'with registry.claim("t", on_crash="rerun") as claim, claim.transaction() as tx: tx.execute("select 1")',
    ),
}

WRITER = """
registry = Registry(path, durability="normal")
def inside(): faults.disarm(); drop_posix_locks(); say("stopped"); wait()
def arm(): faults.arm(point, inside)
def failing(act):
    try: act()
    except ZeroDivisionError: pass
{early}
{act}
say("done"); wait()
"""


@pytest.mark.parametrize("write", WRITES)
def test_nobody_writes_beside_a_writer_who_lost_sqlites_locks(path: Path, write: str) -> None:
    """Another process is told that it is busy, whatever the writer is in; what he writes is whole."""
    point, act = WRITES[write]
    with stopped(path, WRITER.format(act=act, early="" if "arm()" in act else "arm()"), point) as writer:
        assert another(path, 'registry.add("other")') == "store-busy"
        writer.go()
        writer.expect("done")
        writer.kill()
    with Registry(path, durability="normal") as registry:
        assert registry.get("other") is None
    connection = raw.connect(path)
    assert connection.pragma("integrity_check") == "ok"
    connection.close()
