"""Salvage: what the damaged file held back, a schedule that is paused or a clock in doubt, its copy holds back."""

from __future__ import annotations

import json
import os
import random
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from idemreg import Registry, ScheduleError, Status
from idemreg.doctor.salvage import Salvaged, salvage
from idemreg.ledger import Ledger, Schedule, State
from idemreg.slots import slot_id
from idemreg.sqlite.holding import CLOCK, CLOCK_COLUMNS, SCHEDULE_COLUMNS, SCHEDULES
from idemreg.sqlite.making import PAGE_BYTES
from idemreg.sqlite.salvaging import LOG, STEPS
from idemreg.sqlite.seals import values_seal
from idemreg.sqlite.upkeep import SCHEMA
from idemreg.testing import ManualClock
from tests.cli.driver import Cli
from tests.support.processes import Script
from tests.support.raw import connect

if TYPE_CHECKING:
    from pathlib import Path

    from idemreg.clockcheck.check import ClockStore
    from idemreg.clockcheck.readings import Watch

DAY = timedelta(days=1)
DAILY = "0 3 * * *"
YEAR_US = 365 * 86_400 * 10**6


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Files:
    """A registry with two daily schedules, and the copy that salvage makes of it. ``ran``: the slots of both."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self.path, self.out, self.clock = folder / "jobs.db", folder / "out.db", clock
        self.ran: list[str] = []

    def open(self, path: Path, cron: str = DAILY) -> Registry:
        registry = Registry(path, clock=self.clock)
        for name in ("going", "held"):

            def job(slot: Any, name: str = name) -> None:
                self.ran.append(f"{name} {slot:%d}")

            registry.scheduled(name, cron=cron, coalesce="all")(job)
        return registry

    def salvage(self) -> Salvaged:
        return salvage(self.path, self.out, clock=self.clock)

    def due(self, path: Path) -> list[str]:
        """What runs there now."""
        self.ran = []
        with self.open(path) as registry:
            registry.run_due()
        return self.ran

    def stored(self, path: Path) -> list[Schedule]:
        with Registry(path, clock=self.clock) as registry:
            return cast("Ledger", registry.store).schedules()

    def content(self) -> object:
        """All that the copy has; of a schedule also how it was left."""
        with Registry(self.out, clock=self.clock) as registry:
            tasks = [task._replace(boot_stamp=0) for task in registry.tasks()]
            steps = [registry.steps(task.task_id) for task in tasks]
        return tasks, steps, self.stored(self.out), self.watch(self.out)

    def watch(self, path: Path) -> Watch:
        with Registry(path, clock=self.clock) as registry:
            return cast("ClockStore", registry.store).watch()


@pytest.fixture
def files(tmp_path: Path, clock: ManualClock) -> Files:
    """A day was run, then one of the two was paused, and two more days have passed. The clock begins at 3 o'clock."""
    files = Files(tmp_path, clock)
    with files.open(files.path, "0 2 * * *") as registry:
        registry.run_due()
    with files.open(files.path) as registry:
        registry.run_due()
        clock.advance(DAY)
        registry.run_due()
        registry.pause("held")
    assert files.ran == ["going 24", "held 24"]
    clock.advance(2 * DAY)
    return files


def page_of(path: Path, table: str) -> int:
    """The number of its only page, counted from 0."""
    connection = connect(path)
    page: Any
    ((page,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchall()
    connection.close()
    return int(page) - 1


def clear(path: Path, table: str) -> None:
    """Its only page is zeros: nothing of it is left."""
    page = page_of(path, table)
    content = bytearray(path.read_bytes())
    content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(content)


def empty(path: Path, table: str) -> None:
    """The first record of its only page says that it has no columns."""
    begin = page_of(path, table) * PAGE_BYTES
    content = bytearray(path.read_bytes())
    cell = begin + int.from_bytes(content[begin + 8 : begin + 10], "big")
    is_short = content[cell] < 0x80  # its size is a varint of one byte, or of two
    content[cell + (1 if is_short else 2)] = 1
    path.write_bytes(content)


def alter(path: Path, statement: str) -> None:
    """A row is another, and its seal does not hold."""
    connection = connect(path)
    try:
        connection.execute(statement)
        assert connection.total_changes()
    finally:
        connection.close()


def widen(path: Path, table: str, key: int) -> None:
    """Its rows have a column more, as of a later version, and seals that hold. ``key``: columns that a seal skips."""
    connection = connect(path)
    connection.execute(f"ALTER TABLE {table} ADD COLUMN more INTEGER")
    rows: list[Any] = connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - a constant
    update = f"UPDATE {table} SET more = ? WHERE seal = ?"  # noqa: S608 - as above
    for *values, _ in rows:
        connection.execute(update, (values_seal(values[key:]), values[-1]))
    assert connection.total_changes() == len(rows) > 0
    connection.close()


def test_schedules_of_a_sound_file_go_on_where_they_were(files: Files) -> None:
    """All versions; missed slots run, what was paused stays so, and the audit reckons from the beginning."""
    before, watch = files.stored(files.path), files.watch(files.path)
    assert [(one.name, one.version) for one in before] == [("going", 1), ("going", 2), ("held", 1), ("held", 2)]
    assert files.salvage().gaps.are_none
    assert files.stored(files.out) == before
    assert files.watch(files.out) == watch
    assert files.due(files.out) == ["going 25", "going 26"]
    files.clock.advance(DAY)
    assert files.due(files.out) == ["going 27"]
    with files.open(files.out) as registry:
        assert all(one.is_sound for name in ("going", "held") for one in registry.audit(name))


def test_an_open_alarm_suspends_the_copy_as_well(files: Files) -> None:
    """The same one: what confirms it there lets the copy go on."""
    files.clock.set(wall_us=files.clock.wall_us() + YEAR_US)
    assert files.due(files.path) == []
    watch = files.watch(files.path)
    assert watch.alarm is not None
    assert files.salvage().gaps.are_none
    assert files.watch(files.out) == watch
    files.clock.advance(DAY)
    assert files.due(files.out) == []
    with files.open(files.out) as registry:
        registry.confirm_clock(evidence="looked at it", by="me")
        registry.run_due()
    assert files.ran


def check_paused(files: Files, done: Salvaged) -> None:
    """Nothing runs of what the copy may know too little of, until an operator says so; then later slots do."""
    assert done.gaps.lost_schedules
    assert done.gaps.paused == ("going", "held")
    assert done.gaps.paused_schedules == 2
    assert files.due(files.out) == []
    files.clock.advance(DAY)
    assert files.due(files.out) == []
    with files.open(files.out) as registry:
        for name in ("going", "held"):
            registry.resume(name)
    files.clock.advance(DAY)
    assert files.due(files.out) == ["going 28", "held 28"]
    assert {one.state for one in files.stored(files.out) if one.until_s is None} == {State.GOING}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE idempotent_schedule SET state = 0 WHERE name = 'held' AND version = 2",
        "UPDATE idempotent_schedule SET watermark_s = watermark_s - 3600 WHERE name = 'going' AND version = 2",
        "UPDATE idempotent_schedule SET name = 'h@ld' WHERE name = 'held'",
        "UPDATE idempotent_schedule SET zone = 'Utc' WHERE name = 'held' AND version = 1",
    ],
)
def test_a_damaged_row_pauses_every_schedule(files: Files, change: str) -> None:
    """It may be of any of them, since the name may be what is damaged; a version that had ended goes on as another."""
    alter(files.path, change)
    done = files.salvage()
    assert not done.gaps.lost_clock
    check_paused(files, done)


def test_a_schedule_of_another_number_of_columns_pauses_every_one(files: Files) -> None:
    """It stands in the right table and is no row of it."""
    widen(files.path, SCHEDULES, 0)
    check_paused(files, files.salvage())


def test_a_row_about_the_clock_of_another_number_of_columns_suspends_the_copy(files: Files) -> None:
    """As one that is lost; the schedules are as they were."""
    before = files.stored(files.path)
    widen(files.path, CLOCK, 1)
    done = files.salvage()
    assert (done.gaps.lost_clock, done.gaps.suspended, done.gaps.lost_schedules) == (True, "clock@salvage", False)
    assert files.stored(files.out) == before
    assert files.due(files.out) == []


def test_a_task_that_looks_like_a_slot_is_no_schedules(files: Files) -> None:
    """There is no such day: nothing of its name is paused."""
    with Registry(files.path, clock=files.clock) as registry:
        registry.run("other@2026-02-30T03:00:00Z", int, name="job")
    clear(files.path, SCHEDULES)
    check_paused(files, files.salvage())


@pytest.mark.parametrize("table", [LOG, SCHEDULES, CLOCK, STEPS])
def test_no_damaged_byte_loses_a_row_without_a_word(files: Files, table: str) -> None:
    """Also where the record cannot be decoded any more, or has another kind of value, or another number of them."""
    with files.open(files.path) as registry, registry.claim("a task") as claim:
        claim.run_step("first", lambda: 1)
        claim.run_step("second", lambda: 2)
    begin = page_of(files.path, table) * PAGE_BYTES
    content = files.path.read_bytes()
    assert files.salvage().gaps.are_none
    whole = files.content()
    first = begin + int.from_bytes(content[begin + 5 : begin + 7], "big")  # where the records begin
    dice = random.Random(table)  # noqa: S311 - for a test
    for _ in range(60):
        damaged = bytearray(content)
        damaged[dice.randrange(first, begin + PAGE_BYTES)] = dice.choice([0, 1, 9, 127, 128, 255])
        files.path.write_bytes(damaged)
        for file in files.out.parent.glob("out.db*"):
            file.unlink()
        assert not files.salvage().gaps.are_none or files.content() == whole


def test_a_record_without_columns_is_a_damaged_row(files: Files) -> None:
    """It has not even a name; the others pause their schedules, and the copy is made."""
    empty(files.path, SCHEDULES)
    gaps = files.salvage().gaps
    assert (gaps.lost_schedules, gaps.paused) == (True, ("going", "held"))
    assert files.due(files.out) == []


def test_a_lost_page_pauses_every_schedule_that_has_a_slot(files: Files) -> None:
    """By the tasks its name is known; its expression comes with the program that has it."""
    clear(files.path, SCHEDULES)
    check_paused(files, files.salvage())
    with files.open(files.out) as registry:
        assert {one.state for one in registry.audit("held")} == {"skipped", "run"}
        first = next(one for one in files.stored(files.out) if one.name == "held")
        with pytest.raises(ScheduleError, match="is lost"):
            registry.run_slot(slot_id("held", first.after_s + 1))


@pytest.mark.parametrize("has_others", [True, False])
def test_a_slot_that_ran_ahead_of_its_time_is_not_how_far_a_lost_schedule_has_come(
    files: Files, *, has_others: bool
) -> None:
    """By hand, ten days before: no slot until then is skipped without a word; and that one runs no second time."""
    ahead_s = files.clock.wall_us() // 10**6 + 10 * 86_400
    with files.open(files.path) as registry:
        registry.run_slot(slot_id("going", ahead_s))
        if not has_others:
            for task in list(registry.tasks(prefix="going@")):
                if task.task_id != slot_id("going", ahead_s):
                    registry.forget(task.task_id)
    clear(files.path, SCHEDULES)
    salvaged_s = files.clock.wall_us() // 10**6
    check_paused(files, files.salvage())
    if not has_others:  # no slot tells how far it has come: it begins with its copy
        (first, *_) = (one for one in files.stored(files.out) if one.name == "going")
        assert first.after_s == salvaged_s
    for day in ("29", "30", "01", "02", "03", "04", "05"):
        files.clock.advance(DAY)
        assert files.due(files.out) == [f"going {day}", f"held {day}"]
    files.clock.advance(DAY)
    assert files.due(files.out) == ["held 06"]


def test_a_table_that_nothing_leads_to_pauses_every_schedule(files: Files) -> None:
    """Its rows are found, and none can be said to be the last."""
    content = files.path.read_bytes()
    files.path.write_bytes(content.replace(b"table" + 2 * SCHEDULES.encode(), b"table" + 2 * b"idempotent_sChedule"))
    assert files.path.read_bytes() != content
    check_paused(files, files.salvage())


def test_lost_frames_pause_every_schedule_and_suspend_by_the_clock(files: Files) -> None:
    """A pause, an alarm and how far a schedule had run may be among them."""
    lose_frames(files.path)
    done = files.salvage()
    assert done.gaps.lost_frames
    assert done.gaps.lost_clock
    assert done.gaps.suspended == "clock@salvage"
    with files.open(files.out) as registry:
        registry.confirm_clock(evidence="looked at it", by="me")
    check_paused(files, done)


def test_the_last_version_is_not_taken_for_the_one_that_counts(files: Files) -> None:
    """Where only one that had ended is left, another goes on from its end, paused."""
    alter(files.path, "UPDATE idempotent_schedule SET state = 1 WHERE name = 'going' AND version = 2")
    done = files.salvage()
    first, second = (one for one in files.stored(files.out) if one.name == "going")
    assert first.until_s == first.watermark_s == second.after_s
    assert (second.version, second.until_s, second.state) == (2, None, State.PAUSED)
    check_paused(files, done)


def test_a_lost_row_about_the_clock_suspends_the_copy(files: Files) -> None:
    """By an alarm of its own, which says why; the schedules are as they were."""
    before = files.stored(files.path)
    clear(files.path, CLOCK)
    done = files.salvage()
    assert (done.gaps.lost_clock, done.gaps.suspended, done.gaps.lost_schedules) == (True, "clock@salvage", False)
    assert files.stored(files.out) == before
    assert files.due(files.out) == []
    with files.open(files.out) as registry:
        alarm = registry.get("clock@salvage")
        assert alarm is not None
        assert alarm.status is Status.UNKNOWN
        assert "damaged file" in (alarm.error or "")
        registry.confirm_clock(evidence="looked at it", by="me")
        assert registry.get("clock@salvage").status is Status.SUCCEEDED  # type: ignore[union-attr]
    assert files.due(files.out) == ["going 25", "going 26"]


@pytest.mark.parametrize("harm", ["row", "page"])
def test_an_alarm_among_the_tasks_is_found_without_the_clocks_row(files: Files, harm: str) -> None:
    """It is the one that the copy goes by; and one that a copy was made with before is no obstacle."""
    files.clock.set(wall_us=files.clock.wall_us() + YEAR_US)
    files.due(files.path)
    alarm = files.watch(files.path).alarm
    clear(files.path, CLOCK) if harm == "page" else alter(files.path, "UPDATE idempotent_clock SET alarm = NULL")
    assert files.salvage().gaps.suspended == alarm
    assert files.watch(files.out).alarm == alarm
    assert files.due(files.out) == []


def test_a_copy_of_a_copy_has_an_alarm_of_its_own(files: Files) -> None:
    """The former one has ended: by its name the clock would be confirmed."""
    with Registry(files.path, clock=files.clock) as registry:
        registry.run("clock@salvage", int, name="job")
    clear(files.path, CLOCK)
    assert files.salvage().gaps.suspended == "clock@salvage1"
    assert files.due(files.out) == []


def lose_frames(path: Path) -> None:
    """A process that has run a task is killed, and half of the -wal goes."""
    source = """
        from idemreg import Registry
        registry = Registry(sys.argv[1])
        registry.run("task", int)
        say("done")
        wait()
    """
    with Script(source, path) as process:
        process.expect("done")
        process.kill()
    os.truncate(f"{path}-wal", os.path.getsize(f"{path}-wal") // 2)


def test_without_schedules_nothing_is_suspended(path: Path, tmp_path: Path) -> None:
    """Where frames are lost and nothing tells of a schedule, no alarm is made up; that one may be lost is told."""
    with Registry(path) as registry:
        registry.run("first", int)
    lose_frames(path)
    gaps = salvage(path, tmp_path / "out.db").gaps
    assert (gaps.lost_frames, gaps.lost_schedules, gaps.lost_clock) == (True, True, True)
    assert (gaps.paused, gaps.suspended) == ((), None)


def test_a_table_of_a_job_is_none_of_them(files: Files) -> None:
    """Its rows may have as many columns."""
    connection = connect(files.path)
    for name, columns in (("twelve", SCHEDULE_COLUMNS), ("ten", CLOCK_COLUMNS)):
        connection.execute(f"CREATE TABLE {name} AS SELECT {', '.join(['NULL'] * columns)}")
    connection.close()
    gaps = files.salvage().gaps
    assert gaps._replace(other_tables=()).are_none
    assert gaps.other_tables == ("twelve", "ten")


def test_the_rows_have_as_many_columns_as_their_tables() -> None:
    """As schema.sql has them, in which order a record has its values; and nothing of ours has as many."""
    tables = re.findall(r"CREATE TABLE (\w+) \((.*?)^\)", SCHEMA.read_text(), re.DOTALL | re.MULTILINE)
    counts = {name: len(re.findall(r"^    [a-z_]+ +(?:TEXT|INTEGER)", body, re.MULTILINE)) for name, body in tables}
    assert counts[SCHEDULES] == SCHEDULE_COLUMNS
    assert counts[CLOCK] == CLOCK_COLUMNS
    assert list(counts.values()).count(SCHEDULE_COLUMNS) == list(counts.values()).count(CLOCK_COLUMNS) == 1


def test_the_command_tells_what_the_copy_holds_back(files: Files) -> None:
    """With exit code 1, in sentences and as JSON."""
    clear(files.path, CLOCK)
    alter(files.path, "UPDATE idempotent_schedule SET state = 0 WHERE name = 'held' AND version = 2")
    cli = Cli(files.path)
    told = cli("doctor", "--salvage", str(files.out))
    assert told.exit_code == 1
    said = " ".join(told.stdout.split())
    assert "schedules are paused in the copy: going, held" in said
    assert "idemreg schedule --resume NAME" in said
    assert "clock@salvage suspends schedules until idemreg clock --confirm" in said
    as_json = cli("doctor", "--json", "--salvage", str(files.out.with_name("other.db")))
    assert as_json.exit_code == 1
    gaps = json.loads(as_json.stdout)["gaps"]
    assert (gaps["lost_schedules"], gaps["paused"], gaps["paused_schedules"]) == (True, ["going", "held"], 2)
    assert (gaps["lost_clock"], gaps["suspended"]) == (True, "clock@salvage")
