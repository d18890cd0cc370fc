"""`run --every`, `schedule` and `audit`: schedules from the shell."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import threading
import zoneinfo
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import Clock, Registry, StoreBusyError, StoreError, StoreFullError
from idemreg.audit import STATES
from idemreg.cli import every
from idemreg.cli.audit import AUDIT_FIELDS, MARKS
from idemreg.cli.ending import SAID
from idemreg.cli.schedule import SCHEDULE_FIELDS
from idemreg.clockcheck.readings import Hardware
from idemreg.clockcheck.verdict import Permit
from idemreg.scheduled import SlotRun
from idemreg.scheduler import FOR_GOOD, LOOK_S, NAP_S, ClockWatch, Loops, Scheduler, keep
from idemreg.testing import ManualClock
from tests.support.bands import GRACE_S, Said, each_band
from tests.support.processes import PATIENCE_S, Script
from tests.support.raw import connect, reseal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from idemreg import IdemregError
    from tests.cli.driver import Cli

HOUR = 3_600
EVERY = ("run", "--every", "0 * * * *", "--tz", "Asia/Shanghai")


class Time:
    """The time of every `Clock` of this process."""

    def __init__(self) -> None:
        self.clock = ManualClock()  # 2026-11-23 03:00 UTC

    def pass_hours(self, hours: float) -> None:
        self.clock.advance(round(hours * HOUR))


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(Clock, "wall_us", lambda _clock: time.clock.wall_us())
    monkeypatch.setattr(Clock, "boot_ms", lambda _clock: time.clock.boot_ms())
    return time


def rows(cli: Cli) -> dict[str, str]:
    listed = cli("list", "--json").stdout.splitlines()
    return {task["task_id"][-9:-4]: task["evidence"] or task["status"] for task in map(json.loads, listed)}


# --- run --every ------------------------------------------------------------------------------------------------


class Cron:
    """A line of a crontab: the command notes its slot."""

    def __init__(self, cli: Cli, folder: Path, *options: str) -> None:
        self.cli, self.options = cli, options
        self.noted = folder / "noted"
        self.script = f"echo $IDEMREG_SLOT >>{self.noted}"

    def __call__(self, *words: str) -> Result:
        return self.cli(*EVERY, *self.options, *words, "job", "--", "/bin/sh", "-c", self.script)

    def slots(self) -> list[str]:
        return self.noted.read_text().split() if self.noted.exists() else []


def test_a_frequent_cron_line_runs_each_slot_once(cli: Cli, tmp_path: Path, time: Time) -> None:
    """The first call begins the schedule; then each slot runs at the first call behind it, and catches up."""
    cron = Cron(cli, tmp_path)
    for _ in range(5 * 6):  # every ten minutes
        assert cron().exit_code == 0
        time.pass_hours(1 / 6)
    assert cron.slots() == [f"2026-11-23T0{hour}:00:00Z" for hour in range(4, 8)]
    time.pass_hours(3)
    assert cron().exit_code == 0
    assert cron.slots()[4:] == ["2026-11-23T11:00:00Z"]
    assert rows(cli)["08:00"] == "coalesced"


def test_the_command_may_be_edited(cli: Cli, tmp_path: Path, time: Time) -> None:
    """Its words are no part of a slot's checksum: a failed slot is retried with the corrected command."""
    cron = Cron(cli, tmp_path)
    cron()
    time.pass_hours(1)
    good, cron.script = cron.script, "exit 3"
    assert cron().exit_code == 3
    cron.script = good
    assert cron().exit_code == 0
    assert rows(cli) == {"04:00": "succeeded"}


def test_a_slot_may_have_limits_and_steps(cli: Cli, tmp_path: Path, time: Time) -> None:
    """--lease and --timeout go with --every, and `idemreg step` saves pieces of the slot under them."""
    cron = Cron(cli, tmp_path, "--lease", "3600", "--timeout", "3600", "--on-crash", "rerun")
    cron.script += f"; {shlex.quote(sys.executable)} -m idemreg step one -- true"
    cron()
    time.pass_hours(1)
    assert cron().exit_code == 0
    assert [step["name"] for step in cli.json("show", "job@2026-11-23T04:00:00Z")["steps"]] == ["one"]


def test_the_exit_code_is_that_of_the_first_that_failed(cli: Cli, tmp_path: Path, time: Time) -> None:
    """Also where a later one succeeds; and what cannot be run is told with its own code."""
    cron = Cron(cli, tmp_path, "--coalesce", "all")
    cron.script += f'; test "$(wc -l <{cron.noted})" -ne 1 || exit 7'
    cron()
    time.pass_hours(2)
    assert cron().exit_code == 7
    assert rows(cli) == {"04:00": "failed", "05:00": "succeeded"}


def test_a_command_that_cannot_run_is_told_at_once(cli: Cli, tmp_path: Path, time: Time) -> None:
    """By the call that would begin the schedule, and by each one after: not at the first slot, which would be lost."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    for command, exit_code in (("nosuchcommand", 127), ("/no/such/command", 127), (str(script), 126)):
        result = cli(*EVERY, "job", "--", command)
        assert (result.exit_code, command in result.stderr) == (exit_code, True)
    assert cli("audit", "job").exit_code == 2, "it has not begun"
    cron = Cron(cli, tmp_path)
    assert cron().exit_code == 0
    time.pass_hours(1)
    assert cli(*EVERY, "job", "--", "nosuchcommand").exit_code == 127
    assert cron().exit_code == 0
    assert cron.slots() == ["2026-11-23T04:00:00Z"]


def test_what_ran_is_told_as_json(cli: Cli, tmp_path: Path, time: Time) -> None:
    """One object a slot that was run, on stderr, as of `run`; none where nothing was due."""
    cron = Cron(cli, tmp_path)
    assert cron("--json").stderr.count("\n") <= 1  # that the file was created
    time.pass_hours(1)
    (told,) = map(json.loads, cron("--json").stderr.splitlines())
    assert (told["task_id"], told["exit_code"], told["status"]) == ("job@2026-11-23T04:00:00Z", 0, "succeeded")


def test_the_options_of_a_schedule_go_with_every(cli: Cli) -> None:
    """Without --every there is nothing that they could mean; and a schedule must make sense."""
    assert cli("run", "--coalesce", "all", "job", "--", "true").exit_code == 2
    assert cli("run", "--every", "0 3 * *", "job", "--", "true").exit_code == 2
    assert cli("run", "--every", "0 3 * * *", "--tz", "Nowhere", "job", "--", "true").exit_code == 2
    assert cli("run", "--every", "0 3 * * *", "a@b", "--", "true").exit_code == 2
    assert not cli.path.exists()


def test_a_command_that_overlaps_waits_or_is_skipped(cli: Cli, tmp_path: Path, time: Time) -> None:
    """While a slot's command runs, another call leaves what comes due to the option."""
    cron = Cron(cli, tmp_path, "--overlap", "queue")
    cron()
    time.pass_hours(1)
    with Registry(cli.path, create=False) as registry:
        registry.add("job@2026-11-23T04:00:00Z", name="job")
        with registry.claim("job@2026-11-23T04:00:00Z", name="job"):
            time.pass_hours(1)
            assert cron().exit_code == 0
            assert rows(cli) == {"04:00": "running", "05:00": "pending"}
    assert cron().exit_code == 0
    assert cron.slots() == ["2026-11-23T05:00:00Z"]


def test_a_command_that_finds_another_at_work_behind_its_claim_is_put_back(
    cli: Cli, tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another slot was begun since the look: nothing runs beside it, nor is that an error; the next call runs it."""
    cron = Cron(cli, tmp_path, "--coalesce", "all")
    cron()
    time.pass_hours(2)
    run = every._run
    with Registry(cli.path) as registry:
        others: list[Any] = []

        def late(*words: Any, **options: Any) -> Any:
            others.append(registry.claim("job@2026-11-23T05:00:00Z", name="job", payload=None))
            return run(*words, **options)

        with monkeypatch.context() as patch:
            patch.setattr(every, "_run", late)
            assert (cron().exit_code, cron.slots()) == (0, [])
        assert rows(cli) == {"04:00": "pending", "05:00": "running"}
        others[0].release()
    assert cron().exit_code == 0
    assert cron.slots() == ["2026-11-23T04:00:00Z", "2026-11-23T05:00:00Z"]


def test_a_slot_by_hand(cli: Cli, tmp_path: Path, time: Time) -> None:
    """`run` with the slot's own task_id, once it is forgotten, runs it whatever its window; it finds its slot."""
    cron = Cron(cli, tmp_path, "--misfire-grace", "5m")
    cron()
    time.pass_hours(1.5)
    cron()
    assert rows(cli) == {"04:00": "too_late"}
    slot = "job@2026-11-23T04:00:00Z"
    assert cli("forget", slot).exit_code == 0
    assert cli("run", slot, "--", "/bin/sh", "-c", cron.script).exit_code == 0
    assert cron.slots() == ["2026-11-23T04:00:00Z"]
    assert cli("audit", "job").exit_code == 0


# --- a clock in doubt -------------------------------------------------------------------------------------------


@pytest.fixture
def jump(time: Time, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the wall clock by so many hours, on a machine whose sources say nothing."""
    monkeypatch.setattr(Clock, "sources", ())

    def jump(hours: float) -> None:
        time.clock.set(wall_us=time.clock.wall_us() + round(hours * HOUR * 1_000_000))

    return jump


def test_a_suspended_clock_is_told_by_run_every(cli: Cli, tmp_path: Path, jump: Callable[[float], None]) -> None:
    """By each call, with exit code 1, until somebody has confirmed it; the command to type looks into the same file."""
    cron = Cron(cli, tmp_path)
    assert (cron().exit_code, cron().stderr) == (0, "")
    jump(3)
    db = ("--db", str(cli.path))
    for _ in range(2):
        result = cron(*db)
        message, hint = result.stderr.splitlines()
        assert result.exit_code == 1
        assert message.startswith(
            "idemreg: the clock is in doubt (deviating, 3.0 h ahead): scheduling and catch-up are"
        )
        assert message.endswith("; the alarm is clock@2026-11-23T06:00:00.000000Z")
        assert hint == f"  hint: Set the clock right, or `idemreg --db {cli.path} clock --confirm`."
    told = json.loads(cron("--json").stderr)
    assert (told["error"], told["exit_code"], told["retryable"]) == ("clock", 1, True)
    assert told["task_id"] == "clock@2026-11-23T06:00:00.000000Z"
    assert cron.slots() == []
    assert cli("clock", "--confirm").exit_code == 0
    assert (cron().exit_code, cron().stderr) == (0, "")
    assert cron.slots() == ["2026-11-23T06:00:00Z"]


def test_a_suspended_clock_is_told_by_schedule_once(cli: Cli, jobs: str, jump: Callable[[float], None]) -> None:
    """As by `run --every`."""
    assert cli("schedule", "--once", jobs).exit_code == 0
    jump(3)
    result = cli("schedule", "--once", jobs)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "clock is in doubt (deviating, 3.0 h ahead)" in result.stderr
    result = cli("schedule", "--once", "--json", jobs)
    assert (result.exit_code, json.loads(result.stderr)["error"]) == (1, "clock")
    cli("clock", "--confirm")
    assert "good@2026-11-23T06:00:00Z succeeded" in cli("schedule", "--once", jobs).stdout


def test_the_hardware_clock_serves_and_the_suspension_is_told(
    cli: Cli, tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is due runs by it; that what was missed waits is told all the same."""
    real = [time.clock.wall_us()]
    monkeypatch.setattr(Clock, "sources", (lambda clock: board(clock.wall_us() - real[0]),))

    def board(ahead_us: int) -> Hardware:
        return Hardware(real[0], ahead_us, 1_000_000, keeps_utc=True, name="rtc0")

    cron = Cron(cli, tmp_path)
    cron()
    time.pass_hours(0.9)
    real[0] += HOUR * 1_000_000
    result = cron()
    assert result.exit_code == 1
    assert "what is due goes by the hardware clock" in result.stderr
    assert cron.slots() == ["2026-11-23T04:00:00Z"]


def test_the_loop_tells_a_suspension_once(path: Path) -> None:
    """However many schedules and looks there are, each alarm once; the loop goes on, and runs what is due behind it."""
    clock, told = ManualClock(), list[Any]()
    with Registry(path, durability="normal", clock=clock) as registry:
        for name in ("one", "two"):
            registry.scheduled(name, cron="0 * * * *")(lambda: None)
        registry.run_due()
        clock.set(wall_us=clock.wall_us() + 3 * HOUR * 1_000_000)
        watch = ClockWatch(registry, told.append)
        for name in ("one", "two"):
            keep(registry, name, told.append, watch, Pauses(clock, 3 * LOOK_S))
        first = registry.check_clock().alarm
        registry.confirm_clock()
        clock.set(wall_us=clock.wall_us() - HOUR * 1_000_000)
        keep(registry, "one", told.append, watch, Pauses(clock, 3 * LOOK_S))
        assert [one.task_id for one in told] == [first, registry.check_clock().alarm]
        registry.confirm_clock()
        keep(registry, "one", told.append, watch, Pauses(clock, 2 * HOUR // 5))
    assert [one.task_id[:4] for one in told[2:]] == ["one@"] * (len(told) - 2)
    assert len(told) > 2


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    said = Said()
    monkeypatch.setattr(Clock, "sources", (said,))
    return said


@each_band
def test_the_bands_of_the_clock_by_run_every(
    cli: Cli, tmp_path: Path, time: Time, said: Said, deviation_us: int | None, late_us: int, becomes: str | None
) -> None:
    """A window is as long as the clock has it; from the last band on nothing is decided until a source confirms it."""
    cron = Cron(cli, tmp_path, "--misfire-grace", str(GRACE_S))
    assert cron().exit_code == 0
    time.clock.advance(HOUR + GRACE_S + late_us / 1_000_000)
    said.deviation_us = deviation_us
    result = cron()
    assert (result.exit_code, "the clock is in doubt" in result.stderr) == (
        (1, True) if becomes is None else (0, False)
    )
    assert rows(cli).get("04:00") == becomes
    said.deviation_us = 0
    assert (cron().exit_code, rows(cli)["04:00"]) == (0, becomes or "succeeded")
    assert len(cron.slots()) == (becomes != "too_late")


@each_band
def test_the_bands_of_the_clock_by_schedule_once(
    cli: Cli,
    jobs: str,
    tmp_path: Path,
    time: Time,
    said: Said,
    deviation_us: int | None,
    late_us: int,
    becomes: str | None,
) -> None:
    """As by `run --every`."""
    module = tmp_path / "slot_jobs.py"
    module.write_text(
        module.read_text().split('@registry.scheduled("bad"')[0].replace('*")', f'*", misfire_grace={GRACE_S})')
    )
    assert cli("schedule", "--once", jobs).exit_code == 0
    time.clock.advance(HOUR + GRACE_S + late_us / 1_000_000)
    said.deviation_us = deviation_us
    result = cli("schedule", "--once", jobs)
    assert (result.exit_code, "the clock is in doubt" in result.stderr) == (
        (1, True) if becomes is None else (0, False)
    )
    assert ("good@2026-11-23T04:00:00Z succeeded" in result.stdout) == (becomes == "succeeded")
    assert rows(cli).get("04:00") == becomes
    said.deviation_us = 0
    assert (cli("schedule", "--once", jobs).exit_code, rows(cli)["04:00"]) == (0, becomes or "succeeded")


@each_band
def test_the_bands_of_the_clock_by_the_loop_of_schedule(
    path: Path, deviation_us: int | None, late_us: int, becomes: str | None
) -> None:
    """As by `run --every`; the alarm is told once, and the same loop goes on once a source confirms the clock."""
    clock, said, told = ManualClock(), Said(), list[Any]()
    clock.sources = (said,)
    with Registry(path, durability="normal", clock=clock) as registry:
        registry.scheduled("job", cron="0 * * * *", misfire_grace=GRACE_S)(lambda: None)
        registry.run_due()
        clock.advance(HOUR + GRACE_S + late_us / 1_000_000)
        said.deviation_us = deviation_us
        states: list[list[str]] = []

        def pause(_seconds: float) -> bool:
            tasks = registry.tasks(prefix="job@")
            states.append([task.evidence or task.status.word for task in tasks])
            said.deviation_us = 0
            clock.advance(NAP_S)
            return len(states) > LOOK_S / NAP_S + 1  # behind the second look

        keep(registry, "job", told.append, ClockWatch(registry, told.append), pause)
    assert states[0] == ([] if becomes is None else [becomes])
    assert states[-1] == [becomes or "clock"]
    assert [type(one).__name__ for one in told] == {None: ["ClockError"], "succeeded": ["SlotRun"]}.get(becomes, [])


# --- audit ------------------------------------------------------------------------------------------------------


def test_a_clean_audit(cli: Cli, tmp_path: Path, time: Time) -> None:
    """A calendar by days of the schedule's zone, the sum, and exit code 0."""
    cron = Cron(cli, tmp_path)
    cron()
    time.pass_hours(15)
    cron()
    result = cli("audit", "job")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "2026-11-23 Mon  " + "-" * 12  # from 12:00 in Shanghai on
    assert lines[1] == "2026-11-24 Tue  --+"
    assert lines[-1] == "job: 1 run, 14 skipped (skipped: 14 coalesced)"


def test_an_audit_of_a_gap_and_a_double(cli: Cli, tmp_path: Path, time: Time) -> None:
    """Exit code 1, with --json as well; each is named."""
    cron = Cron(cli, tmp_path, "--coalesce", "all")
    cron()
    time.pass_hours(3)
    cron()
    assert cli("audit", "job").exit_code == 0
    with Registry(cli.path, create=False) as registry:
        registry.forget("job@2026-11-23T05:00:00Z")
    gap = cli("audit", "job")
    assert (gap.exit_code, "job@2026-11-23T05:00:00Z is missing" in gap.stdout) == (1, True)
    with Registry(cli.path, create=False) as registry:
        registry.run("job@2026-11-23T05:00:01Z", lambda: None, name="job")
    double = cli("audit", "job", "--json")
    assert double.exit_code == 1
    found = [json.loads(line) for line in double.stdout.splitlines()]
    assert [one["state"] for one in found] == ["run", "missing", "double", "run"]
    assert all(one.keys() == AUDIT_FIELDS.keys() for one in found)
    assert found[0]["local"] == "2026-11-23T12:00:00+08:00"
    assert cli("audit", "job", "--since", "2026-11-23T13:30").exit_code == 0  # behind both, by the schedule's clock
    assert cli("audit", "job", "--since", "30m").exit_code == 0
    assert cli("audit", "job", "--until", "2026-11-23T04:00Z", "--json").stdout.count("\n") == 1


KILLED = """
    from idemreg import Registry, faults
    from idemreg.testing import ManualClock
    clock = ManualClock()
    registry = Registry(sys.argv[1], clock=clock)
    registry.scheduled("job", cron="0 4 1 * *", on_crash="rerun")(lambda: os.kill(os.getpid(), 9))
    registry.run_due()
    clock.advance(9 * 86_400)
    if sys.argv[2] == "before": faults.arm("slots.committed", faults.kill)
    registry.run_due()
"""


@pytest.mark.parametrize(
    ("died", "why"),
    [("within", "its owner is dead, and nobody has looked since"), ("before", "nobody has started it since")],
)
def test_an_audit_of_a_slot_that_its_scheduler_has_left(cli: Cli, time: Time, died: str, why: str) -> None:
    """Killed in the only slot of the month, or right before it: three days later that is told, and no clean audit."""
    cli("init")
    with Script(KILLED, cli.path, died) as script:
        assert script.end() == -9
    time.pass_hours(12 * 24)
    result = cli("audit", "job")
    assert (result.exit_code, result.stdout.splitlines()) == (
        1,
        ["2026-12-01 Tue  L", f"job@2026-12-01T04:00:00Z is late: {why}", "L late", "job: 1 late"],
    )
    told = cli("audit", "job", "--json")
    found = json.loads(told.stdout)
    assert (told.exit_code, found["state"], found["reason"]) == (1, "late", why)


def test_an_audit_of_what_nobody_knows(cli: Cli) -> None:
    """A schedule that is not there, a time that is none."""
    cli("init")
    assert cli("audit", "job").exit_code == 2
    assert cli("audit", "job", "--since", "yesterday").exit_code == 2


def test_an_audit_says_what_a_time_may_be_and_that_none_had_a_slot(cli: Cli, time: Time) -> None:
    """WHEN is a date, a time or an age; a time without slots is not the life of the schedule."""
    cli(*EVERY, "job", "--", "true")
    assert "2026-11-22T19:00Z, and no age such as 7d" in cli("audit", "job", "--since", "yesterday").stderr
    time.pass_hours(2.5)
    cli(*EVERY, "job", "--", "true")
    assert "no slot in that time" in cli("audit", "job", "--since", "1m").stdout


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_an_audit_of_no_time_is_refused(cli: Cli, time: Time, form: tuple[str, ...]) -> None:
    """One that ends before it begins, and one that is all to come: a monitor with a slip would be green for ever."""
    cli(*EVERY, "job", "--", "true")
    time.pass_hours(2)
    for since, until in (("2026-11-23T05:00Z", "2026-11-23T04:00Z"), ("2026-11-23", "2026-11-23"), ("1h", "2h")):
        turned = cli("audit", "job", "--since", since, "--until", until, *form)
        assert (turned.exit_code, "the time ends before it begins" in turned.stderr) == (2, True)
    for words in (("--since", "2026-12-01"), ("--since", "2026-12-01", "--until", "2026-12-02")):
        early = cli("audit", "job", *words, *form)
        assert (early.exit_code, "nothing to audit yet" in early.stderr) == (2, True)
    assert cli("audit", "job", "--since", "2026-11-23T05:00Z", *form).exit_code == 0
    assert cli("audit", "job", "--since", "2026-11-22", "--until", "2026-12-01", *form).exit_code == 1


def test_gaps_beyond_the_list_are_counted(cli: Cli, time: Time) -> None:
    """The terminal names the first twenty, and says how many more there are."""
    cli(*EVERY, "job", "--", "true")
    time.pass_hours(20.9)
    assert cli("audit", "job").stdout.splitlines()[-1] == "job: 20 late"
    assert "more; --json" not in cli("audit", "job").stdout
    time.pass_hours(158)
    told = cli("audit", "job").stdout.splitlines()
    assert sum(" is late: " in line for line in told) == 20
    assert told[-3] == "... and 158 more; --json tells all"
    assert told[-1] == "job: 178 late"


def test_a_day_of_many_slots_is_counted(cli: Cli, time: Time) -> None:
    """Where the marks do not fit into a line there are numbers."""
    words = ("run", "--every", "* * * * *", "job", "--", "true")
    cli(*words)
    assert "no slot yet" in cli("audit", "job").stdout
    time.pass_hours(10)
    cli(*words)
    assert cli("audit", "job").stdout.splitlines()[0] == "2026-11-23 Mon  1 run, 599 skipped"


def test_every_state_has_a_mark() -> None:
    """And no two share one."""
    assert set(MARKS) == set(STATES)
    assert len({mark for mark, _ in MARKS.values()}) == len(MARKS)


# --- schedule ---------------------------------------------------------------------------------------------------

MODULE = """
import sys
from idemreg import Registry
registry = Registry({path!r})

@registry.scheduled("good", cron="0 * * * *")
def good(slot): print("printed", slot.hour)

@registry.scheduled("bad", cron="0 * * * *")
async def bad(): raise ValueError("no luck")

empty = Registry({path!r})
"""


@pytest.fixture
def jobs(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "slot_jobs.py").write_text(MODULE.format(path=str(cli.path)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    sys.modules.pop("slot_jobs", None)
    return "slot_jobs:registry"


def test_once_runs_what_is_due(cli: Cli, jobs: str, time: Time) -> None:
    """A line a slot, and exit code 1 where a job failed."""
    assert cli("schedule", "--once", jobs).exit_code == 0
    time.pass_hours(1)
    result = cli("schedule", "--once", jobs)
    assert result.exit_code == 1
    assert "good@2026-11-23T04:00:00Z succeeded" in result.stdout
    assert "bad@2026-11-23T04:00:00Z: ValueError: no luck" in result.stdout


def test_no_more_of_an_error_is_told_than_is_stored(cli: Cli, jobs: str, tmp_path: Path, time: Time) -> None:
    """Of error_detail="type" it is the type."""
    module = tmp_path / "slot_jobs.py"
    module.write_text(module.read_text().replace("Registry(", "Registry(error_detail='type', path="))
    cli("schedule", "--once", jobs)
    time.pass_hours(1)
    assert "bad@2026-11-23T04:00:00Z: ValueError\n" in cli("schedule", "--once", jobs).stdout


@pytest.mark.parametrize("at", ["9999-12-31T23:59-14:00", "0001-01-01T00:00+14:00"])
def test_a_time_that_is_of_no_year_in_utc_is_one(cli: Cli, jobs: str, at: str) -> None:
    """Its zone brings it there; no slot is so far, and it is told like any other."""
    assert cli("schedule", "--once", jobs).exit_code == 0
    for words in (["--since", at], ["--until", at], ["--since", at, "--until", at]):
        done = cli("audit", "good", *words)
        assert done.exit_code in {0, 2}
        assert "unexpected" not in done.stderr


def test_the_audit_of_a_schedule_in_utc_needs_no_database_of_zones(
    cli: Cli, jobs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do its times without a zone."""
    assert cli("schedule", "--once", jobs).exit_code == 0
    monkeypatch.setitem(sys.modules, "tzdata", None)
    zoneinfo.reset_tzpath(to=())
    zoneinfo.ZoneInfo.clear_cache()
    try:
        done = cli("audit", "good", "--since", "2000-01-01")
    finally:
        zoneinfo.reset_tzpath()
        zoneinfo.ZoneInfo.clear_cache()
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize("on_crash", ["hold", "rerun"])
@pytest.mark.parametrize("words", [["--once"], ["--slot", "good@2026-11-23T04:00:00Z"]])
def test_an_interrupted_slot_is_told(
    cli: Cli, jobs: str, tmp_path: Path, time: Time, on_crash: str, words: list[str]
) -> None:
    """Nobody knows what its job had done, and the same call again would not say so before."""
    cli("schedule", "--once", jobs)
    time.pass_hours(1)
    module = tmp_path / "slot_jobs.py"
    text = module.read_text().replace('"0 * * * *")\ndef', f'"0 * * * *", on_crash="{on_crash}")\ndef')
    module.write_text(text.replace('print("printed", slot.hour)', "raise KeyboardInterrupt"))
    sys.modules.pop("slot_jobs", None)
    done = cli("schedule", *words, "--json", jobs)
    assert done.exit_code == 130
    told = json.loads(done.stderr)
    slot = "good@2026-11-23T04:00:00Z"
    if on_crash == "rerun":
        assert (told["error"], told["task_id"], told["retryable"]) == ("interrupted", None, True)
    else:
        assert (told["error"], told["task_id"], told["retryable"]) == ("interrupted", slot, False)
        assert f"resolve {slot} happened" in told["hint"]
        assert slot in told["message"]


def test_an_interrupted_slot_is_told_whatever_the_clock_does(
    cli: Cli, jobs: str, tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is set back in the middle of the job."""
    cli("schedule", "--once", jobs)
    time.pass_hours(1)
    monkeypatch.setitem(sys.modules, "slot_time", time)  # as a module has it
    module = tmp_path / "slot_jobs.py"
    back = "import slot_time; slot_time.clock.set(wall_us=slot_time.clock.wall_us() - 7_200_000_000); "
    module.write_text(module.read_text().replace('print("printed", slot.hour)', f"{back}raise KeyboardInterrupt"))
    sys.modules.pop("slot_jobs", None)
    done = cli("schedule", "--once", "--json", jobs)
    assert json.loads(done.stderr)["task_id"] == "good@2026-11-23T04:00:00Z"


@pytest.mark.parametrize("on_crash", ["hold", "rerun"])
@pytest.mark.parametrize("words", [["--once"], ["--slot", "good@2026-11-23T04:00:00Z"]])
def test_a_job_that_exits_is_told(
    cli: Cli, jobs: str, tmp_path: Path, time: Time, on_crash: str, words: list[str]
) -> None:
    """It does not end the command as if all were well, or with an exit code of its own."""
    cli("schedule", "--once", jobs)
    time.pass_hours(1)
    module = tmp_path / "slot_jobs.py"
    text = module.read_text().replace('"0 * * * *")\ndef', f'"0 * * * *", on_crash="{on_crash}")\ndef')
    module.write_text(text.replace('print("printed", slot.hour)', "sys.exit(0)"))
    sys.modules.pop("slot_jobs", None)
    done = cli("schedule", *words, jobs)
    assert done.exit_code == 1
    slot = "good@2026-11-23T04:00:00Z"
    assert f"{slot}: SystemExit: 0\n" in done.stdout
    assert (f"resolve {slot} happened" in done.stdout) == (on_crash == "hold")


def test_the_slot_is_told_whose_job_was_ended_in_another_task(cli: Cli, jobs: str, tmp_path: Path, time: Time) -> None:
    """Also where that begins as the slots do."""
    cli("schedule", "--once", jobs)
    time.pass_hours(1)
    module = tmp_path / "slot_jobs.py"
    text = module.read_text().replace('print("printed", slot.hour)', 'registry.run("good@part", sys.exit)')
    module.write_text(text)
    sys.modules.pop("slot_jobs", None)
    assert "good@2026-11-23T04:00:00Z: SystemExit\n" in cli("schedule", "--once", jobs).stdout


def test_of_two_slots_of_one_millisecond_the_last_has_been_ended(
    cli: Cli, jobs: str, tmp_path: Path, time: Time
) -> None:
    """The one before it is unknown as well, by its own error."""
    cli("schedule", "--once", jobs)
    time.pass_hours(2)
    module = tmp_path / "slot_jobs.py"
    text = module.read_text().replace('"0 * * * *")\ndef', '"0 * * * *", coalesce="all", unknown_on=OSError)\ndef')
    text = text.replace('print("printed", slot.hour)', "\n    if slot.hour == 4: raise OSError\n    sys.exit()")
    module.write_text(text)
    sys.modules.pop("slot_jobs", None)
    told = cli("schedule", "--once", jobs).stdout
    assert told.index("good@2026-11-23T04:00:00Z: OSError\n") < told.index("good@2026-11-23T05:00:00Z: SystemExit\n")


def test_an_exit_that_is_of_no_job_is_one(cli: Cli, jobs: str, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a signal's handler that the module has, say, between two jobs."""
    cli("schedule", "--once", jobs)
    monkeypatch.setattr(Registry, "may_schedule", lambda _registry: sys.exit(7))
    assert cli("schedule", "--once", jobs).exit_code == 7


def test_a_slot_that_is_unknown_is_told_as_such(
    cli: Cli, jobs: str, tmp_path: Path, time: Time, capfd: pytest.CaptureFixture[str]
) -> None:
    """With what is to be done about it; one that failed, without."""
    cli("schedule", "--once", jobs)
    time.pass_hours(1)
    module = tmp_path / "slot_jobs.py"
    text = module.read_text().replace('"0 * * * *")\ndef', '"0 * * * *", unknown_on=(OSError,))\ndef')
    module.write_text(text.replace('print("printed", slot.hour)', 'raise OSError("no answer")'))
    sys.modules.pop("slot_jobs", None)
    done = cli("schedule", "--once", jobs)
    slot = "good@2026-11-23T04:00:00Z"
    assert f"{slot}: OSError: no answer\n  hint: Find out whether it happened, then" in done.stdout
    assert done.stdout.count("hint") == 1
    time.pass_hours(1)
    cli("schedule", "--once", "--json", jobs)
    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(one["name"], one["status"]) for one in told] == [("good", "unknown"), ("bad", "failed"), ("bad", "failed")]


def test_a_slot_of_a_module_by_hand(cli: Cli, jobs: str, time: Time) -> None:
    """Any slot, once."""
    cli("schedule", "--once", jobs)
    assert "succeeded" in cli("schedule", "--slot", "good@2026-11-23T02:00:00Z", jobs).stdout
    assert cli("schedule", "--slot", "bad@2026-11-23T02:00:00Z", jobs).exit_code == 1
    assert cli("schedule", "--slot", "other@2026-11-23T02:00:00Z", jobs).exit_code == 2


def test_json_of_a_schedule(cli: Cli, jobs: str) -> None:
    """One object a slot on stdout, whatever the jobs print; one a schedule where it lists."""
    with Registry(cli.path) as registry:
        registry.scheduled("good", cron="0 * * * *")(print)
        registry.run_due()
    connection = connect(cli.path)
    connection.execute("UPDATE idempotent_schedule SET after_s = after_s - 7200, watermark_s = watermark_s - 7200")
    reseal(connection)
    connection.close()
    done = cli.process("schedule", "--once", "--json", jobs)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["name"], one["succeeded"], one["status"]) for one in told] == [("good", True, "succeeded")]
    assert "printed" in done.stderr
    listed = [json.loads(line) for line in cli("schedule", "--json").stdout.splitlines()]
    assert [(one["name"], one["state"], one["cron"]) for one in listed] == [
        ("bad", "going", "0 * * * *"), ("good", "going", "0 * * * *"),
    ]  # fmt: skip
    assert set(told[0]) | set(listed[0]) == set(SCHEDULE_FIELDS)


def test_the_next_slot_is_one_that_may_still_start(
    cli: Cli, jobs: str, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was run by hand before its time is none; one that a clock skipped that was ahead comes again."""
    cli("schedule", "--once", jobs)
    cli("schedule", "--slot", "good@2026-11-23T04:00:00Z", jobs)
    assert cli.json("schedule", "--pause", "good")["next"] == "2026-11-23T05:00:00Z"
    time.pass_hours(6)
    cli("schedule", "--once", jobs)
    time.clock.set(wall_us=time.clock.wall_us() - 6 * HOUR * 1_000_000)
    assert cli.json("schedule", "--pause", "good")["next"] == "2026-11-23T05:00:00Z"
    monkeypatch.setattr("idemreg.cli.schedule.YEARS_S", HOUR)
    assert cli.json("schedule", "--pause", "good")["next"] is None


def test_pause_and_resume(cli: Cli, jobs: str, time: Time) -> None:
    """A paused schedule runs nothing; it tells what it is then, and goes on with the next slot."""
    cli("schedule", "--once", jobs)
    assert " paused " in cli("schedule", "--pause", "good").stdout
    time.pass_hours(1)
    assert "good@" not in cli("schedule", "--once", jobs).stdout
    assert cli.json("schedule", "--resume", "good")["state"] == "going"
    time.pass_hours(1)
    assert "good@2026-11-23T05:00:00Z succeeded" in cli("schedule", "--once", jobs).stdout
    assert cli("audit", "good").exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("--once",), ("--slot", "x"), ("--pause", "a", "--resume", "b"), ("--pause", "a", "slot_jobs:registry"),
        ("slot_jobs",), ("slot_jobs:other",), ("nowhere:registry",), ("sys:path",), ("slot_jobs:empty",),
    ],
)  # fmt: skip
def test_what_makes_no_sense(cli: Cli, jobs: str, words: tuple[str, ...]) -> None:
    """Is a usage error with a hint."""
    result = cli("schedule", *words)
    assert result.exit_code == 2, result.output
    assert "hint:" in result.stderr


def test_no_schedule_yet(cli: Cli) -> None:
    """The list says so."""
    cli("init")
    assert "no schedule yet" in cli("schedule").stdout


def test_a_name_that_is_no_text_is_no_schedule(cli: Cli) -> None:
    """Bytes of a command line that are no UTF-8 name none, whatever asks."""
    cli("init")
    for words in (["audit", "--", "\udcff"], ["schedule", "--pause", "\udcff"]):
        asked = cli(*words)
        assert (asked.exit_code, "knows no schedule" in asked.stderr) == (2, True)


# --- the loop ---------------------------------------------------------------------------------------------------


class Pauses:
    """Lets time pass in place of sleeping, sometimes with a suspend or a jump; ends at the last."""

    def __init__(self, clock: ManualClock, count: int) -> None:
        self.clock, self.left = clock, count
        self.suspends: dict[int, float] = {}

    def __call__(self, pause: float) -> bool:
        assert pause <= NAP_S
        self.left -= 1
        self.clock.advance(pause)
        if jump := self.suspends.get(self.left):
            boot_ms = self.clock.boot_ms() + round(max(jump, 0) * 1_000)  # suspend counts for it
            self.clock.set(wall_us=self.clock.wall_us() + round(jump * 1_000_000), boot_ms=boot_ms)
        return self.left < 0


def kept(path: Path, pauses: int, suspends: dict[int, float] | None = None) -> list[tuple[str, float]]:
    """Which slots the loop runs, and how late."""
    clock = ManualClock()
    ran: list[tuple[str, float]] = []
    pausing = Pauses(clock, pauses)
    pausing.suspends = suspends or {}
    with Registry(path, durability="normal", clock=clock) as registry:
        registry.may_schedule = Permit  # type: ignore[method-assign] # a clock that is set back is confirmed at once

        @registry.scheduled("job", cron="*/10 * * * *")
        def job(slot: Any) -> None:
            ran.append((f"{slot:%H:%M}", clock.wall_us() / 1_000_000 - slot.timestamp()))

        told: list[SlotRun | IdemregError] = []
        keep(registry, "job", told.append, lambda: None, pausing)
        assert len(told) == len(ran)
    return ran


def test_the_loop_waits_for_the_next_slot(path: Path) -> None:
    """Each is run at its instant."""
    assert kept(path, 3 * int(600 / NAP_S) + 10) == [("03:10", 0), ("03:20", 0), ("03:30", 0)]


def test_the_loop_survives_suspend(path: Path) -> None:
    """After an hour of suspend, in which the monotonic clock stood still, it looks within a nap."""
    ran = kept(path, 300, {200: 3_600.0})  # at 03:08:20
    assert ran[:2] == [("04:00", 500.0), ("04:10", 0.0)]


def test_the_loop_survives_a_clock_set_back(path: Path) -> None:
    """It looks once a minute at least, and runs nothing twice; a schedule that began by that clock begins now."""
    ran = kept(path, 1_000, {700: -3_600.0})
    slots = [slot for slot, _ in ran]
    assert slots == ["03:10", "03:20", "02:30", "02:40", "02:50", "03:00"]
    assert LOOK_S >= NAP_S


def test_the_loop_looks_at_once_where_the_clock_is_behind_its_last_look(path: Path) -> None:
    """What that one skipped too early comes again only if somebody looks before its time comes."""
    ran = kept(path, 600, {588: 4_200.0, 584: -1_895.0})  # ten seconds before 03:40
    assert [slot for slot, _ in ran] == ["04:10", "03:40", "03:50", "04:00", "04:20"]


def test_errors_of_the_store_are_told_and_tried_again(path: Path) -> None:
    """The loop goes on; of a schedule that another process has superseded it ends."""
    clock = ManualClock()
    told: list[Any] = []
    with Registry(path, durability="normal", clock=clock) as registry, Registry(path, clock=clock) as other:
        registry.scheduled("job", cron="0 * * * *")(lambda: None)
        registry.run_due()
        other.scheduled("job", cron="30 * * * *")(lambda: None)
        other.run_due()
        keep(registry, "job", told.append, lambda: None, lambda _: pytest.fail("it goes on"))
    assert [one.code for one in told] == ["schedule"]


def replaced(path: Path) -> None:
    """The files are moved away, and others are made in their place."""
    moved = path.parent / "moved"
    moved.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        file.rename(moved / file.name)
    Registry(path).open().close()


def vanished(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def newer(path: Path) -> None:
    """A later idemreg has migrated it."""
    connection = connect(path)
    connection.execute("UPDATE idempotent_registry SET schema_version = 99")
    reseal(connection)
    connection.close()


@pytest.mark.parametrize("becomes", [replaced, vanished, newer])
def test_the_loop_ends_by_what_no_look_can_heal(path: Path, becomes: Callable[[Path], None]) -> None:
    """Also where nothing is due, so that nothing is written: whoever is started anew opens what is there."""
    clock = ManualClock()
    with Registry(path, durability="normal", clock=clock) as registry:
        registry.scheduled("job", cron="0 0 1 1 *")(lambda: None)
        registry.scheduled("other", cron="0 * * * *")(lambda: None)
        registry.run_due()
        becomes(path)
        clock.advance(HOUR)
        scheduler = Scheduler(registry, lambda told: pytest.fail(f"{told} was told"))
        with pytest.raises(FOR_GOOD):
            scheduler.run()


@pytest.mark.parametrize(
    "error", [StoreBusyError("busy"), StoreFullError("full"), StoreError("an I/O error")], ids=repr
)
def test_the_loop_goes_on_by_what_heals(path: Path, error: StoreError) -> None:
    """It is told, and the look behind it runs what has come due meanwhile."""
    clock = ManualClock()
    told: list[Any] = []
    with Registry(path, durability="normal", clock=clock) as registry:
        registry.scheduled("job", cron="0 * * * *")(lambda: None)
        registry.run_due()
        clock.advance(HOUR)
        whole = registry.store.check_files  # type: ignore[attr-defined]

        def fails_once() -> None:
            registry.store.check_files = whole  # type: ignore[attr-defined]
            raise error

        registry.store.check_files = fails_once  # type: ignore[attr-defined]
        keep(registry, "job", told.append, lambda: None, Pauses(clock, 2 * LOOK_S))
    assert told[0] is error
    assert told[1].error is None


def test_a_scheduler_of_a_file_that_was_replaced_ends(cli: Cli, jobs: str) -> None:
    """With 74, and once: the schedules' threads need not all say so."""
    source = """
        from idemreg import Registry
        from idemreg.cli import main
        from idemreg.scheduler import Scheduler
        run = Scheduler.run
        def told(self):
            say("runs")
            wait()
            run(self)
        Scheduler.run = told
        sys.stderr = sys.stdout
        sys.path.insert(0, sys.argv[1])
        import slot_jobs
        slot_jobs.registry.run_due()
        main(["schedule", sys.argv[2]])
    """
    with Script(source, cli.path.parent, jobs) as script:
        script.expect("runs")
        replaced(cli.path)
        script.go()
        assert "was deleted, moved or replaced" in script.line()
        assert script.line().startswith("hint:")
        assert script.end() == 74


def test_a_job_that_ends_its_thread_is_told(path: Path) -> None:
    """SystemExit of a job is the job's: the loop tells it, and waits for the next slot."""
    clock = ManualClock()
    told: list[Any] = []
    with Registry(path, durability="normal", clock=clock) as registry:
        registry.scheduled("job", cron="0 * * * *")(lambda: sys.exit(3))
        registry.run_due()
        clock.advance(HOUR)
        keep(registry, "job", told.append, lambda: None, lambda _: True)
    assert [(one.code, str(one)) for one in told] == [("schedule", "a job of job was ended by SystemExit: 3")]


def test_no_more_of_what_ends_a_thread_is_told_than_is_stored(path: Path) -> None:
    """The text of a SystemExit is the job's as well."""
    clock = ManualClock()
    told: list[Any] = []
    with Registry(path, durability="normal", clock=clock, error_detail="type") as registry:
        registry.scheduled("job", cron="0 * * * *")(lambda: sys.exit("a secret"))
        registry.run_due()
        clock.advance(HOUR)
        keep(registry, "job", told.append, lambda: None, lambda _: True)
    assert [str(one) for one in told] == ["a job of job was ended by SystemExit"]


@pytest.mark.parametrize(("error", "raised"), [(OSError("full"), OSError), (SystemExit(3), RuntimeError)])
def test_an_error_that_ends_one_loop_ends_all(error: BaseException, raised: type[Exception]) -> None:
    """It is raised where they are waited for, and never swallowed with its thread."""

    def fails(_pause: Callable[[float], bool]) -> None:
        raise error

    def goes_on(pause: Callable[[float], bool]) -> None:
        while not pause(PATIENCE_S):
            pytest.fail("it was not stopped")

    with pytest.raises(raised, match=r"full|SystemExit: 3"):
        Loops({"fails": fails, "goes on": goes_on}).run()


def test_a_signal_ends_it(cli: Cli, jobs: str) -> None:
    """SIGTERM: the threads end, and the exit code says so."""
    source = """
        from idemreg.cli import main
        from idemreg.scheduler import Scheduler
        run = Scheduler.run
        def told(self):
            say("runs")
            run(self)
        Scheduler.run = told
        sys.path.insert(0, sys.argv[1])
        main(["schedule", sys.argv[2]])
    """
    with Script(source, cli.path.parent, jobs) as script:
        script.expect("runs")
        script.signal(signal.SIGTERM)
        assert script.end() == 128 + signal.SIGTERM


AT_WORK = """
    from idemreg import scheduler
    from idemreg.cli import main
    def at_work(_registry, name, *_):
        if name == "good":
            say("at work")
            wait()
    scheduler.keep = at_work
    sys.path.insert(0, sys.argv[1])
    os.dup2(1, 2)
    sys.stderr = open(2, "w", closefd=False)  # the one before may have been of a file
    main(["schedule", sys.argv[2]])
"""


def test_a_signal_ends_it_behind_what_runs(cli: Cli, jobs: str) -> None:
    """The first one is told on stderr, since it goes on; and the exit code is of it."""
    with Script(AT_WORK, cli.path.parent, jobs) as script:
        script.expect("at work")
        script.signal(signal.SIGINT)
        script.expect(SAID.decode().strip())
        script.go()
        assert script.end() == 128 + signal.SIGINT


def test_a_second_signal_kills_it(cli: Cli, jobs: str) -> None:
    """Whichever it is; by the one that asked first."""
    with Script(AT_WORK, cli.path.parent, jobs) as script:
        script.expect("at work")
        script.signal(signal.SIGINT)
        script.expect(SAID.decode().strip())
        script.signal(signal.SIGTERM)
        assert script.end() == -signal.SIGINT


def test_each_schedule_has_a_thread(path: Path) -> None:
    """A long job of one delays no other; stopped, the loop ends behind what runs."""
    clock, barrier = ManualClock(), threading.Barrier(2)
    with Registry(path, durability="normal", clock=clock) as registry:
        for name in ("one", "two"):
            registry.scheduled(name, cron="0 * * * *")(lambda: barrier.wait(10))
        registry.run_due()
        clock.advance(HOUR)
        told: list[SlotRun | IdemregError] = []
        scheduler = Scheduler(registry, told.append)
        scheduler.stop()
        scheduler.run()
    assert [one.error for one in told if isinstance(one, SlotRun)] == [None, None]
