"""The table of schedules among the others: sealed, examined, copied, and left out of an export."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import apsw
import pytest

from idemreg import AsyncRegistry, Registry, Status, StoreCorruptError
from idemreg.sqlite.backend import SqliteStore
from idemreg.sqlite.opening import Opening
from idemreg.testing import ManualClock
from tests.support.raw import connect
from tests.test_scheduled import HOUR, Job, ledger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from idemreg.ledger import Ledger


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def job(open_registry: Callable[..., Registry], clock: ManualClock) -> Job:
    """A schedule with a slot that ran, and one that was skipped."""
    job = Job(open_registry(clock=clock))
    clock.advance(2 * HOUR)
    job.due()
    return job


def tamper(path: Path, statement: str) -> None:
    connection = connect(path)
    connection.pragma("ignore_check_constraints", 1)
    connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "change",
    ["cron = '1 * * * *'", "zone = 'x'", "after_s = 1", "until_s = 1", "watermark_s = 1", "open_s = 1", "grace_ms = 1",
     "state = 1", "skips = 'paused'", "seal = seal + 1", "version = 2", "name = 'job' || ''  , state = 2"],
)  # fmt: skip
def test_a_damaged_row_of_a_schedule_is_an_error(job: Job, path: Path, change: str) -> None:
    """Nothing is planned by it, and nothing runs."""
    job.registry.close()
    tamper(path, f"UPDATE idempotent_schedule SET {change}")  # noqa: S608 - of this file
    with pytest.raises(StoreCorruptError):
        job.due()
    assert job.ran == ["2"]


def test_a_damaged_row_of_a_slot_is_an_error(job: Job, clock: ManualClock, path: Path) -> None:
    """A slot that was skipped does not become one that waits."""
    tamper(path, "UPDATE idempotent_log SET status = 0 WHERE status = 5")
    clock.advance(HOUR)
    with pytest.raises(StoreCorruptError):
        job.due()


def test_the_table_holds_its_rules(job: Job, path: Path) -> None:
    """A watermark before the beginning, an end that is not the watermark, a state that never was."""
    connection = connect(path)
    for change in ("after_s = watermark_s + 1", "until_s = watermark_s + 1", "state = 3", "version = 0"):
        with pytest.raises(apsw.ConstraintError):
            connection.execute(f"UPDATE idempotent_schedule SET {change}")  # noqa: S608 - as above
    connection.close()


def test_the_store_is_a_ledger(job: Job) -> None:
    """In the words of the protocol, which the type checker compares."""
    store: Ledger = SqliteStore(Opening(job.registry.path, create=False, busy_s=1, clock=job.registry.clock))
    assert [one.name for one in store.schedules()] == ["job"]
    cast("SqliteStore", store).close()


def test_a_second_plan_by_the_same_look_is_refused(job: Job) -> None:
    """The watermark is a compare-and-set: who has not seen the last one writes nothing."""
    seen = job.schedule()
    wanted = job.registry.schedules["job"].wanted
    becomes = [seen._replace(watermark_s=seen.watermark_s + 1)]
    assert ledger(job.registry).plan(seen, becomes, [], wanted)
    assert not ledger(job.registry).plan(seen, becomes, [], wanted)


def test_the_doctor_finds_nothing_and_a_broken_seal(job: Job, path: Path) -> None:
    """A file with schedules is sound; a row of one that is not as it was written is found by a full examination."""
    codes = {one.code for one in job.registry.doctor(full=True)}
    assert not codes & {"schema-altered", "seal-broken", "row-invalid", "integrity"}
    tamper(path, "UPDATE idempotent_schedule SET cron = '1 * * * *'")
    assert "seal-broken" in {one.code for one in job.registry.doctor(full=True)}


def test_a_backup_goes_on_where_it_was(job: Job, clock: ManualClock, path: Path) -> None:
    """It carries the schedule: what came due since is caught up there, and nothing that ran runs again."""
    copy = path.with_name("copy.db")
    job.registry.backup(copy)
    clock.advance(HOUR)
    with Registry(copy, durability="normal", clock=clock) as registry:
        twin = Job(registry)
        assert twin.ran == ["3"]
        assert twin.rows() == {"1": "coalesced", "2": "succeeded", "3": "succeeded"}


def test_salvage_keeps_the_slots(job: Job, path: Path) -> None:
    """They are tasks; the schedule itself goes on where it was."""
    from idemreg.doctor.salvage import salvage  # noqa: PLC0415

    schedules = ledger(job.registry).schedules()
    job.registry.close()
    target = path.with_name("saved.db")
    salvage(path, target)
    with Registry(target, create=False) as registry:
        assert registry.count() == {Status.SUCCEEDED: 1, Status.SKIPPED: 1}
        assert ledger(registry).schedules() == schedules


def test_the_operators_half_is_awaited_as_well(
    job: Job, clock: ManualClock, loop: Callable[..., Any], nothing_on_the_event_loop: None
) -> None:
    """`AsyncRegistry` audits, pauses and resumes."""
    registry = AsyncRegistry.of(job.registry)

    async def main() -> list[str]:
        await registry.pause("job")
        clock.advance(HOUR)
        await registry.resume("job")
        return [one.state for one in await registry.audit("job")]

    assert loop(main) == ["skipped", "run", "skipped"]
