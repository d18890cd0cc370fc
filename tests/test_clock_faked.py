"""The clock check in real processes whose wall clock is set by libfaketime: nothing of idemreg knows of it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
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


def look(path: Path, offset: str, *words: str) -> Seen:
    """One process that looks at its clock, which is so many seconds off the real one."""
    faked = {"LD_PRELOAD": str(library()), "FAKETIME": offset, "DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, path, *words],
        env=os.environ | faked | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
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
