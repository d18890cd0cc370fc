"""idemreg clock: what it prints, how wide, with which exit code, and what it refuses."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import pytest

from idemreg import Clock, Registry, Status
from idemreg.cli import clock
from idemreg.cli.text import width
from idemreg.clockcheck.chrony import chrony
from idemreg.clockcheck.readings import HARDWARE, KERNEL, Hardware, Reading
from tests.support.raw import connect, reseal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg.clockcheck.readings import Source
    from tests.cli.driver import Cli

HOUR, MS = 3_600_000_000, 1_000
TRACKING = "C0A80001,{name},3,1795402700.1,{correction},0.0,0.000035822,-3.2,-0.0,0.1,0.0136,0.0011,64.2,{leap}"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose chrony says what a test writes down, whose kernel is alone, and that has no other clock."""
    command = tmp_path / "bin/chronyc"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/tracking ] || exit 1\nread -r line <{tmp_path}/tracking\necho "$line"\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    # The machine that runs the tests may be synchronised, and would answer for its clock.
    monkeypatch.setattr(Clock, "sources", (silent(KERNEL), chrony, silent(HARDWARE)))


@pytest.fixture
def say(registry: Registry, tmp_path: Path) -> Callable[..., None]:
    """What chrony says from now on; there is a registry as well."""
    registry.open()

    def write(correction: str = "0.0", *, name: str = "ntp", leap: str = "Normal") -> None:
        line = TRACKING.format(name=name, correction=correction, leap=leap)
        (tmp_path / "tracking").write_text(f"{line}\n")

    return write


@pytest.fixture
def jump(cli: Cli, registry: Registry, path: Path) -> Callable[[int], None]:
    """Looks at the clock, and makes it jump: the last look is moved the other way."""
    registry.add("t")

    def by(us: int) -> None:
        assert cli("clock").exit_code == 0
        connection = connect(path)
        connection.execute("UPDATE idempotent_clock SET wall_us = wall_us - ?, newest_us = newest_us - ?", (us, us))
        reseal(connection)
        connection.close()

    return by


def silent(source: str) -> Source:
    return lambda _clock: Reading(source, None, text="it says nothing")


# --- verdicts ---------------------------------------------------------------------------------------------------


def test_nobody_can_tell(cli: Cli, registry: Registry) -> None:
    """Exit code 0, a warning on stderr, and each source with its reason."""
    registry.open()
    result = cli("clock")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "cannot tell: scheduling goes on"
    assert [line[:10].strip() for line in lines[1:]] == ["kernel", "chrony", "hardware", "boot time", "stored"]
    assert result.stderr == "idemreg: warning: no source can tell whether the clock is right; scheduling goes on\n"


def test_a_good_clock(cli: Cli, say: Callable[..., None]) -> None:
    """Exit code 0, and nothing on stderr."""
    say("-0.004")
    result = cli("clock")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("good: scheduling goes on\n")
    assert "\nchrony    4.0 ms ahead (synchronised, " in result.stdout


def test_a_small_deviation(cli: Cli, say: Callable[..., None]) -> None:
    """Exit code 0, and a line that says what follows."""
    say("0.030")
    result = cli("clock")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == (
        "deviating, 30.0 ms behind: scheduling goes on, execution windows are 20 ms"
    )


def test_the_hardware_clock_serves_meanwhile(cli: Cli, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1: the clock is an hour behind it, which is added to what is due; what was missed waits."""
    registry.open()
    ahead_us = [0]

    def board(clock: Clock) -> Hardware:
        return Hardware(clock.wall_us() - ahead_us[0], ahead_us[0], 1_000 * MS, keeps_utc=True, name="rtc0")

    monkeypatch.setattr(Clock, "sources", (silent(KERNEL), board))
    assert cli("clock").exit_code == 0
    ahead_us[0] = -HOUR
    result = cli("clock")
    assert result.exit_code == 1
    assert "catch-up is suspended, and what is due goes by the hardware clock" in result.stdout.replace("\n", " ")
    found = json.loads(cli("clock", "--json").stdout)
    assert (found["scheduling"], found["catch_up"], found["correction_us"]) == (True, False, HOUR)
    (alarm,) = registry.tasks(prefix="clock@")
    assert (alarm.task_id, alarm.status) == (found["alarm"], Status.UNKNOWN)


@pytest.mark.parametrize("us", [60 * MS, HOUR, -HOUR])
def test_a_jump_is_confirmed(cli: Cli, registry: Registry, jump: Callable[[int], None], us: int) -> None:
    """Exit code 1 until it is: the alarm is named, listed and doctored, and --confirm settles it with who and why."""
    jump(us)
    result = cli("clock")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.startswith("deviating, ")
    assert "suspended until the clock is confirmed" in result.stdout.replace("\n", " ")
    (alarm,) = registry.tasks(prefix="clock@")
    assert f"\nalarm     {alarm.task_id}\n" in result.stdout
    assert "idemreg clock --confirm" in result.stdout
    assert alarm.task_id in cli("list", "--status", "unknown").stdout
    assert cli("doctor", "--quiet").exit_code == 1
    assert cli("clock").exit_code == 1
    result = cli("clock", "--confirm", "--evidence", "my watch", "--by", "ada")
    assert result.exit_code == 0
    assert result.stdout.startswith("cannot tell: scheduling goes on\n")
    settled = registry.get(alarm.task_id)
    assert settled is not None
    assert (settled.status, settled.settled_by, settled.evidence) == (Status.SUCCEEDED, "ada", "my watch")
    assert cli("clock").exit_code == 0


def test_the_alarm_says_what_may_be_done_about_it(cli: Cli, registry: Registry, jump: Callable[[int], None]) -> None:
    """`show` and doctor name `clock --confirm`, in this file; what could not run it again is refused."""
    jump(HOUR)
    cli("clock")
    (alarm,) = registry.tasks(prefix="clock@")
    confirm = f"idemreg --db {cli.path} clock --confirm"
    shown = cli("show", alarm.task_id, "--db", str(cli.path)).stdout.replace("\n          ", " ")
    assert "unknown: the clock is in doubt, and nothing is scheduled until it is confirmed" in shown
    assert "".join(confirm.split()) in "".join(shown.split())  # a long path goes over two lines
    assert "idemreg resolve" not in shown
    found = [json.loads(line) for line in cli("doctor", "--json").stdout.splitlines()]
    assert [one["code"] for one in found if one["severity"] == "warning"] == ["clock-suspended"]
    for words in (["resolve", alarm.task_id, "did-not-happen"], ["retry", alarm.task_id]):
        refused = cli("--db", str(cli.path), *words)
        assert (refused.exit_code, confirm in refused.stderr) == (1, True)
    assert registry.get(alarm.task_id) == alarm
    assert cli("resolve", alarm.task_id, "happened").exit_code == 0
    assert cli("clock").exit_code == 0
    shown = cli("show", alarm.task_id).stdout
    assert "clock --confirm" not in shown


def test_there_is_nothing_to_confirm(cli: Cli, registry: Registry, jump: Callable[[int], None]) -> None:
    """It says so, with exit code 0; a jump that nobody has looked at so far is an alarm first, and is confirmed."""
    registry.open()
    result = cli("clock", "--confirm")
    assert result.exit_code == 0
    assert "idemreg: there was nothing to confirm: no alarm suspends scheduling\n" in result.stderr
    assert cli.json("clock", "--confirm")["confirmed"] is None
    jump(HOUR)
    told = cli.json("clock", "--confirm", "--by", "ada")
    (alarm,) = registry.tasks(prefix="clock@")
    assert (told["confirmed"], told["alarm"], alarm.settled_by) == (alarm.task_id, None, "ada")
    jump(HOUR)
    cli("clock")
    assert "nothing to confirm" not in cli("clock", "--confirm").stderr


def test_a_source_confirms(cli: Cli, say: Callable[..., None]) -> None:
    """What chrony says suspends, and what it says later ends it."""
    say("7.5")
    result = cli("clock")
    assert result.exit_code == 1
    assert result.stdout.startswith("deviating, 7.500 s behind: ")
    say("0.001")
    assert cli("clock").exit_code == 0


def test_the_bands_are_options(cli: Cli, say: Callable[..., None]) -> None:
    """For this look, which suspends nobody who goes by others: an alarm would outlast it."""
    say("0.030")
    words = ("clock", "--extend-from", "31")
    assert cli(*words).stdout.startswith("good: ")
    told = cli.json("clock", "--extend-from", "5", "--extension", "7.5")
    assert (told["verdict"], told["extension_ms"]) == ("deviating", 7.5)
    tried = cli("clock", "--extend-from", "5", "--suspend-from", "30")
    assert tried.exit_code == 1
    assert "would be suspended" in tried.stdout
    found = cli("clock", "--json", "--extend-from", "5", "--suspend-from", "30")
    assert found.exit_code == 1
    assert (json.loads(found.stdout)["scheduling"], json.loads(found.stdout)["alarm"]) == (False, None)
    assert cli("clock").exit_code == 0
    assert cli("list", "--status", "unknown").stdout == "no such tasks\n"


def test_other_bands_end_no_suspension(cli: Cli, say: Callable[..., None]) -> None:
    """Nor is it confirmed by them."""
    say("0.070")
    assert cli("clock").exit_code == 1
    tried = cli("clock", "--suspend-from", "100")
    assert tried.exit_code == 1
    assert "catch-up are suspended" in tried.stdout
    assert cli("clock", "--confirm", "--suspend-from", "100").exit_code == 2
    assert cli("clock").exit_code == 1


def test_the_environment_has_the_bands_of_all_commands(
    cli: Cli, say: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By which `run --every` schedules, and `clock` says so."""
    say("0.070")
    run = ("run", "--every", "* * * * *", "tick", "--", "true")
    monkeypatch.setenv("IDEMREG_CLOCK_SUSPEND_FROM", "100")
    assert cli(*run).exit_code == 0
    assert cli("clock").stdout.startswith("deviating, 70.0 ms behind: scheduling goes on")
    monkeypatch.setenv("IDEMREG_CLOCK_SUSPEND_FROM", "60")
    assert cli(*run).exit_code == 1
    assert cli("clock").exit_code == 1
    monkeypatch.setenv("IDEMREG_CLOCK_SUSPEND_FROM", "1e306")
    refused = cli("clock")
    assert (refused.exit_code, "suspend_from_ms" in refused.stderr) == (2, True)
    monkeypatch.setenv("IDEMREG_CLOCK_SUSPEND_FROM", "soon")
    for words in (run, ("clock",)):
        refused = cli(*words)
        assert refused.exit_code == 2
        assert "IDEMREG_CLOCK_SUSPEND_FROM is a number of milliseconds, not 'soon'" in refused.stderr


def test_a_schedule_is_resumed_by_the_same_bands(
    cli: Cli, say: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds nothing up for `run --every` does not for `schedule --resume` either; and the other way."""
    assert cli("run", "--every", "* * * * *", "tick", "--", "true").exit_code == 0
    say("0.070")
    monkeypatch.setenv("IDEMREG_CLOCK_SUSPEND_FROM", "100")
    assert cli("schedule", "--pause", "tick").exit_code == 0
    assert " going " in cli("schedule", "--resume", "tick").stdout
    say("0.040")
    monkeypatch.setenv("IDEMREG_CLOCK_SUSPEND_FROM", "30")
    assert cli("schedule", "--pause", "tick").exit_code == 0
    refused = cli("schedule", "--resume", "tick")
    assert refused.exit_code == 1
    assert "the clock is in doubt" in refused.stderr
    monkeypatch.setenv("IDEMREG_CLOCK_SUSPEND_FROM", "soon")
    assert cli("schedule", "--resume", "tick").exit_code == 2
    assert cli("schedule").exit_code == 0  # which looks at no clock


# --- forms ------------------------------------------------------------------------------------------------------


def test_it_speaks_json(cli: Cli, say: Callable[..., None], jump: Callable[[int], None]) -> None:
    """One object, in the fields that its help names; the exit codes are the same."""
    told = cli.json("clock")
    assert list(told) == list(clock.FIELDS)
    assert (told["verdict"], told["scheduling"], told["catch_up"], told["alarm"]) == ("cannot-tell", True, True, None)
    assert [one["source"] for one in told["sources"]] == [
        *("kernel", "chrony", "hardware clock", "time since boot", "stored times"),
    ]
    say("-0.030")
    told = cli.json("clock")
    assert (told["verdict"], told["deviation_us"], told["extension_ms"]) == ("deviating", 30_000, 20)
    say(leap="Not synchronised")
    jump(HOUR)
    result = cli("clock", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (told["scheduling"], told["catch_up"], told["correction_us"]) == (False, False, 0)
    assert abs(told["deviation_us"] - HOUR) < 100 * MS
    assert told["alarm"].startswith("clock@")
    assert cli.json("clock", "--confirm")["alarm"] is None


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(cli: Cli, jump: Callable[[int], None], columns: int) -> None:
    """Also the alarm's name, and what to do next."""
    jump(HOUR)
    lines = cli("clock", COLUMNS=str(columns)).stdout.splitlines()
    assert len(lines) > 6
    assert not [line for line in lines if width(line) > columns]


def test_it_is_painted_on_a_terminal(cli: Cli, jump: Callable[[int], None]) -> None:
    """The verdict has its colour there, and nowhere else: red, unless this machine is synchronised and confirms."""
    jump(HOUR)
    assert "\x1b" not in cli("clock").stdout
    assert re.search(r"\x1b\[3[123]m(deviating|good|cannot tell)", cli.terminal(80, "clock"))


def test_what_a_source_says_moves_no_cursor(cli: Cli, say: Callable[..., None], path: Path) -> None:
    """Nor does a name that was planted in the row."""
    say(name="\x1b[2J", leap="Normal\x07")
    assert "\x1b" not in cli("clock").stdout
    connection = connect(path)
    connection.execute("UPDATE idempotent_clock SET alarm = 'clock@' || char(27) || '[2J'")
    reseal(connection)
    connection.close()
    result = cli("clock")
    assert "\x1b" not in result.output
    assert result.exit_code != 0


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["now"],
        ["--confirm", "now"],
        ["--evidence", "my watch"],
        ["--by", "ada"],
        ["--extend-from", "0"],
        ["--extend-from", "60"],
        ["--suspend-from", "5"],
        ["--suspend-from", "nan"],
        ["--extension", "-1"],
        ["--extension", "soon"],
        ["--slack", "1"],
    ],
)
def test_wrong_usage(cli: Cli, registry: Registry, path: Path, words: list[str]) -> None:
    """Exit code 2 with a hint, in JSON as well, and nothing is written."""
    registry.open()
    result = cli("clock", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "hint: " in result.stderr
    told = json.loads(cli("clock", *words, "--json").stderr)
    assert (told["error"], told["exit_code"]) == ("usage", 2)
    connection = connect(path)
    assert connection.execute("SELECT count(*) FROM idempotent_clock").fetchall() == [(0,)]
    connection.close()


def test_it_creates_nothing(cli: Cli, path: Path) -> None:
    """Where there is no registry it says so, and leaves no file."""
    assert cli("clock").exit_code == 74
    assert not path.exists()
