"""The compare-and-set alone: where nothing else kept two writers apart, one of them has changed nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from idemreg import Registry, Status, StoreCorruptError, faults
from idemreg.options import Options
from idemreg.request import wanted
from idemreg.sqlite import forking, records
from idemreg.sqlite.claiming import Claiming
from idemreg.sqlite.connection import Connection
from idemreg.sqlite.upkeep import SCHEMA
from tests.barriers.actors import another, stopped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.opened import Opened

CLAIM = 'kept.append(registry.claim("t", name="j", on_crash="rerun"))'  # kept: one that is dropped would be settled

WRITER = """
registry, kept = Registry(path, durability="normal"), []
registry.run("warm", lambda: 1)
faults.arm(point, stop)
told(lambda: {act})
leave()
"""

# The first has read the failed task, and not yet written, when the second does all that it does.
PAIRS = {
    "claim beside claim": ("claim.decided", CLAIM, CLAIM),
    "verdict beside claim": ("settle.decided", 'registry.cancel("t")', CLAIM),
    "forget beside claim": ("forget.decided", 'registry.forget("t")', CLAIM),
}


@pytest.fixture
def failed(path: Path) -> None:
    with Registry(path, durability="normal") as registry, pytest.raises(ZeroDivisionError):
        registry.run("t", lambda: 1 / 0, name="j")


def both_told(path: Path, point: str, first: str, second: str) -> list[str]:
    """What both are told, the first of whom is stopped at the point while the second comes and goes."""
    with stopped(path, WRITER.format(act=first), point) as writer:
        answer = another(path, second)
        writer.go()
        answers = [writer.line(), answer]
        writer.end()
    return answers


@pytest.mark.parametrize("pair", PAIRS)
def test_of_two_who_decide_over_one_row_one_has_his_way(path: Path, failed: None, pair: str) -> None:
    """Of two claims one is granted; a verdict and a `forget` touch no row that was claimed meanwhile."""
    assert both_told(path, *PAIRS[pair]).count("done") == 1


def test_of_two_first_claims_one_is_granted(path: Path) -> None:
    """Both have seen that there is no row."""
    claim = CLAIM.replace("rerun", "hold")  # not to be taken over when the second has gone
    assert both_told(path, "claim.in-transaction", claim, claim).count("done") == 1


HOLDER = """
registry = Registry(path, durability="normal")
claim = registry.claim("t", name="j")
say("stopped"); wait()
"""
RUN = 'registry.run("t", job, name="j")'


def test_a_burial_leaves_a_settled_task_alone(path: Path) -> None:
    """Who finds an owner dead notes it in no row that was settled meanwhile."""
    with stopped(path, HOLDER):
        pass  # killed with its claim
    with stopped(path, WRITER.format(act=RUN), "claim.decided") as finder:
        settled = another(path, f'(told(lambda: {RUN}), registry.resolve("t", "happened"))')
        finder.go()
        assert finder.line() in {"unknown", "store-corrupt"}
        finder.end()
    with Registry(path, durability="normal") as registry:
        task = registry.get("t")
        assert task is not None
        assert task.status is (Status.UNKNOWN if settled == "store-busy" else Status.SUCCEEDED)


OWNER = """
registry = Registry(path, durability="normal")
claim = registry.claim("t", name="j", on_crash="rerun")
os.close(registry.store._opening.opened().lock_file.fd)
say("stopped"); wait()
{end}
leave()
"""
LATE_ENDS = {
    "success": 'told(lambda: claim.succeed("late"))',
    "large success": 'told(lambda: claim.succeed("late" * 100))',
    "failure": 'told(lambda: claim.fail(ValueError("late")))',
    "release": "told(claim.release)",
}


@pytest.mark.parametrize("late", LATE_ENDS)
def test_a_late_owner_ends_nothing(path: Path, late: str) -> None:
    """Taken over (here by a later boot, where its lock was lost) it is told so, and the row is its successor's."""
    with stopped(path, OWNER.format(end=LATE_ENDS[late])) as owner:
        assert another(path, CLAIM, options=", clock=Later()") == "done"
        owner.go()
        owner.expect("claim-lost")
        owner.end()
    with Registry(path, durability="normal") as registry:
        task = registry.get("t")
        assert task is not None
        assert (task.status, task.attempt, task.result) == (Status.RUNNING, 2, None)


FORGETTER = """
registry = Registry(path, durability="normal")
registry.run("warm", lambda: 1)
say("stopped"); wait()
say(registry.run("t", lambda: 1, name="j").token)
leave()
"""


def test_a_token_that_was_forgotten_elsewhere_is_not_given_again(path: Path) -> None:
    """The floor that another process has raised meanwhile counts, whatever this one has read before."""
    with stopped(path, FORGETTER) as other:
        with Registry(path, durability="normal") as registry:
            tokens = [registry.run("t", lambda: 1, name="j").token]
            registry.forget("t")
            tokens.append(registry.run("t", lambda: 1, name="j").token)
            registry.forget("t")
        other.go()
        tokens.append(int(other.line()))
        other.end()
    assert tokens == sorted(set(tokens))


# --- in one process ---------------------------------------------------------------------------------------------------


def opened(registry: Registry) -> Opened:
    return cast("SqliteStore", registry.store)._opening.opened()


def change_under_lock(sql: str) -> Callable[[], None]:
    """What another would do that got past the write lock: on the very connection, and so inside its transaction."""

    def act() -> None:
        faults.disarm()
        (connection,) = [one for one in forking.inside if isinstance(one, Connection) and one.in_transaction]
        connection.execute(sql)

    return act


def drop_claim(registry: Registry, task_id: str) -> None:
    """As where its caller was interrupted right behind the commit: its owner counts as dead."""
    claim = registry.claim(task_id, name="j")
    opened(registry).owners.take_back(claim.grant)
    claim.settled()


CALLS: dict[str, tuple[str, Callable[[Registry], object]]] = {
    "a claim": ("claim.decided", lambda registry: registry.run("failed", lambda: 1, name="j")),
    "a claim that finds a dead owner": ("claim.decided", lambda registry: registry.run("dead", lambda: 1, name="j")),
    "a verdict": ("settle.decided", lambda registry: registry.cancel("failed")),
    "forget": ("forget.decided", lambda registry: registry.forget("failed")),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_changes_under_the_write_lock_is_an_error(registry: Registry, call: str) -> None:
    """The caller is told that the locks were lost, no job is entered, and the row is as it was."""
    with pytest.raises(ZeroDivisionError):
        registry.run("failed", lambda: 1 / 0, name="j")
    drop_claim(registry, "dead")
    before = registry.store.get(["failed", "dead"])
    point, act = CALLS[call]
    faults.arm(point, change_under_lock("UPDATE idempotent_log SET token = token + 1"))
    with pytest.raises(StoreCorruptError, match="changed under the write lock") as caught:
        act(registry)
    assert caught.value.task_id in {"failed", "dead"}
    assert "close the database file" in str(caught.value.hint)
    assert registry.store.get(["failed", "dead"]) == before


def test_a_row_that_is_gone_under_the_write_lock_is_an_error(registry: Registry) -> None:
    """What was settled and cannot be read again was not settled; the row stays."""
    registry.add("t", name="j")
    faults.arm("settle.in-transaction", change_under_lock("DELETE FROM idempotent_log"))
    with pytest.raises(StoreCorruptError, match="changed under the write lock"):
        registry.skip("t", "not wanted")
    assert registry.store.get(["t"])[0].status is Status.PENDING  # type: ignore[union-attr]


def test_a_claim_below_the_floor_is_an_error(registry: Registry) -> None:
    """A statement checks the floor that its token was taken from: by an older one nothing is stored."""
    registry.run("warm", lambda: 1)
    there, asked = opened(registry), wanted("t", "j", b"{}", Options.of({}, "normal"))

    def claim(connection: Connection) -> object:
        floor = records.floor(connection, SCHEMA.version)
        return Claiming(connection, SCHEMA.version, there.owners).claim(asked, floor - 1, there.stamp())

    with pytest.raises(StoreCorruptError, match="neither be inserted nor read") as caught:
        there.database.write(claim, durable=False)
    assert caught.value.task_id == "t"
    assert registry.get("t") is None
    assert registry.run("t", lambda: 2).result == 2
