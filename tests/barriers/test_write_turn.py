"""The write turn alone: in every test the writer's process has closed a descriptor of each file.

That drops all POSIX locks of the process, and so SQLite's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from idemreg import FinishNotRecordedError, Registry, StoreBusyError
from idemreg.sqlite.hot import SURELY_NEW
from tests.barriers.actors import BUSY_S, another, stopped
from tests.support import raw

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg import Claim
    from idemreg.sqlite.backend import SqliteStore

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
    with Registry(path, durability="normal") as registry:
        registry.add("before")  # or the first write would begin the -wal anew, which SQLite refuses one without locks
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


def claim(registry: Registry, _held: Claim) -> None:
    registry.run("other", int)


def claim_unseen(registry: Registry, held: Claim) -> None:
    """As behind many new tasks: the next is claimed before it is looked for, if nobody writes."""
    cast("SqliteStore", registry.store)._opening.opened().new_in_a_row = SURELY_NEW
    claim(registry, held)


def succeed(_registry: Registry, held: Claim) -> None:
    held.succeed(1)


@pytest.mark.parametrize(
    ("write", "error"), [(claim, StoreBusyError), (claim_unseen, StoreBusyError), (succeed, FinishNotRecordedError)]
)
def test_no_statement_of_the_hot_path_goes_beside_a_writer_who_lost_sqlites_locks(
    path: Path, write: Callable[[Registry, Claim], None], error: type[Exception]
) -> None:
    """The same of what takes the turn by itself: the claim of a new task, and the end of one."""
    point, act = WRITES["failure"]
    with Registry(path, durability="normal", busy_timeout=BUSY_S) as registry:
        registry.run("first", int)
        held = registry.claim("held")
        with stopped(path, WRITER.format(act=act, early=""), point) as writer:
            with pytest.raises(error):
                write(registry, held)
            writer.go()
            writer.expect("done")
            writer.kill()
        assert registry.get("other") is None
        if held.is_open:
            held.release()
    connection = raw.connect(path)
    assert connection.pragma("integrity_check") == "ok"
    connection.close()
