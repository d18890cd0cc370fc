"""The clock check in real processes whose wall clock is set by libfaketime: nothing of idemreg knows of it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.processes import PATIENCE_S, ROOT

# The machine's own clock, faked; what the machine knows of the real one is not asked.
LOOK = """
import sys
from idemreg import Clock, Registry
class Faked(Clock):
    sources = ()
with Registry(sys.argv[1], durability="normal", clock=Faked()) as registry:
    found = registry.confirm_clock() if "confirm" in sys.argv else registry.check_clock()
    registry.run("job", lambda: 1)
print(found.verdict.value, round(found.deviation_us / 1e6), found.is_suspended)
"""


# `idemreg` itself, on a machine whose sources say nothing.
COMMAND = """
from idemreg import Clock
from idemreg.cli import main
Clock.sources = ()
main()
"""


class Seen(NamedTuple):
    verdict: str
    deviation_s: int
    is_suspended: bool


def library() -> Path:
    """The shared library of the package, which is not imported: it would load half of a calendar."""
    found = importlib.util.find_spec("libfaketime")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"


def python(source: str, offset: str, *words: object) -> subprocess.CompletedProcess[str]:
    """One process whose clock is so many seconds off the real one."""
    faked = {"LD_PRELOAD": str(library()), "FAKETIME": offset, "DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
    return subprocess.run(
        [sys.executable, "-c", source, *map(str, words)],
        env=os.environ | faked | {"PYTHONPATH": str(ROOT), "IDEMREG_DB": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def look(path: Path, offset: str, *words: str) -> Seen:
    """One process that looks at its clock."""
    done = python(LOOK, offset, path, *words)
    assert done.returncode == 0, done.stderr
    verdict, deviation_s, is_suspended = done.stdout.split()
    return Seen(verdict, int(deviation_s), is_suspended == "True")


@pytest.mark.parametrize("seconds", [-1, 3_600, -36_524 * 86_400])
def test_a_faked_jump_suspends_and_is_known_when_it_is_over(path: Path, seconds: int) -> None:
    """Between one process and the next the clock jumps; put back, it confirms itself. Jobs run all the while."""
    assert look(path, "+0") == ("cannot-tell", 0, False)
    assert look(path, f"{seconds:+}") == ("deviating", seconds, True)
    assert look(path, "+0") == ("cannot-tell", 0, False)


def test_a_faked_jump_is_confirmed_by_an_operator(path: Path) -> None:
    """From then on the clock is right as it is, and its former time is the jump."""
    assert look(path, "+0").is_suspended is False
    assert look(path, "+7200").is_suspended is True
    assert look(path, "+7200", "confirm") == ("cannot-tell", 0, False)
    assert look(path, "+7200") == ("cannot-tell", 0, False)
    assert look(path, "+0") == ("deviating", -7_200, True)


# --- run --every ------------------------------------------------------------------------------------------------


class Crontab:
    """A line of a crontab that says each hour, by a clock of which a test says what it shows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.noted = path.with_name("noted")
        now = datetime.now(UTC)
        self.midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=2)
        self.offset = self.midnight - now

    def idemreg(self, minutes: int, *words: str) -> tuple[int, str]:
        """So many minutes behind a midnight that is to come, or (negative) before it; the exit code, and stderr."""
        offset_s = (self.offset + timedelta(minutes=minutes)).total_seconds()
        done = python(COMMAND, f"{offset_s:+.0f}", "--db", self.path, *words)
        return done.returncode, done.stderr

    def __call__(self, minutes: int) -> tuple[int, str]:
        script = f"echo $IDEMREG_SLOT >>{self.noted}"
        return self.idemreg(
            minutes, "run", "--every", "0 * * * *", "--coalesce", "all", "job", "--", "/bin/sh", "-c", script
        )

    def slots(self) -> list[timedelta]:
        """What ran, in order, behind midnight."""
        noted = self.noted.read_text("utf-8").split() if self.noted.exists() else []
        return [datetime.fromisoformat(slot) - self.midnight for slot in noted]


def assert_in_doubt(told: tuple[int, str], direction: str) -> None:
    code, text = told
    assert code == 1, text
    assert re.search(rf"^idemreg: the clock is in doubt \(deviating, \S+ \S+ {direction}\): scheduling and", text), text


def test_run_every_over_a_clock_set_back_across_midnight(path: Path) -> None:
    """In doubt nothing runs and each call says so; confirmed, before midnight or behind it, no slot runs twice."""
    cron, ran = Crontab(path), list[timedelta]()
    assert cron(-30)[0] == 0
    for minutes, direction in ((75, "ahead"), (-30, "behind"), (75, "ahead")):
        for _ in range(2):
            assert_in_doubt(cron(minutes), direction)
        assert cron.slots() == ran
        assert cron.idemreg(minutes, "clock", "--confirm")[0] == 0
        assert cron(minutes)[0] == 0
        ran = [timedelta(), timedelta(hours=1)]
        assert cron.slots() == ran
    assert cron.idemreg(75, "audit", "job")[0] == 0


def test_run_every_by_a_clock_behind_the_newest_stored_time(path: Path) -> None:
    """At the first look there is, so nobody has seen it jump: no schedule begins by it, nor by a later one unasked."""
    cron = Crontab(path)
    assert cron.idemreg(30, "run", "other", "--", "true")[0] == 0
    assert_in_doubt(cron(-30), "behind")
    assert cron(15)[0] == 1
    assert cron.idemreg(15, "audit", "job")[0] == 2, "it has not begun"
    assert cron.idemreg(15, "clock", "--confirm")[0] == 0
    assert cron(15)[0] == 0
    assert cron.slots() == []
    assert cron.idemreg(15, "audit", "job")[0] == 0
