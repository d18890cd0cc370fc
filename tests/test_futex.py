"""A word of a shared file: who sleeps on it is woken when it changes, and never sleeps beyond a bound."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from idemreg import Clock, futex
from idemreg.futex import PAGE_BYTES, Futex
from idemreg.testing import ManualClock
from tests.support.processes import PATIENCE_S, Script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OFFSET = 120

SLEEPER = """
    import os
    from idemreg import Clock
    from idemreg.futex import Futex
    fd = os.open(sys.argv[1], os.O_RDWR)
    futex = Futex(fd, 120, Clock())
    say("ready")
    while os.pread(fd, 1, 120) == b"\\0":
        futex.wait(0, 3, 600)
    say("woken")
"""


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "shared", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(PAGE_BYTES))
    yield fd
    os.close(fd)


def test_a_change_wakes_other_processes(fd: int, tmp_path: Path) -> None:
    """Whoever sleeps in another process goes on at once, without its bound of ten minutes."""
    word = Futex(fd, OFFSET, Clock())
    with Script(SLEEPER, tmp_path / "shared") as sleeper:
        sleeper.expect("ready")
        os.pwrite(fd, b"\1", OFFSET)
        threads = threading.Thread(target=sleeper.expect, args=("woken",))
        threads.start()
        while threads.is_alive():  # it may not be asleep yet, and is woken when it is
            word.wake(3)
            threads.join(0.001)
        assert sleeper.end() == 0


def test_a_word_that_has_changed_lets_nobody_sleep(fd: int) -> None:
    """What changed between the look and the wait is noticed: no wake-up is lost."""
    os.pwrite(fd, b"\2", OFFSET)
    clock = Clock()
    before = clock.monotonic()
    Futex(fd, OFFSET, clock).wait(1, 0, PATIENCE_S)
    assert clock.monotonic() - before < PATIENCE_S / 2


def test_another_channel_is_not_woken(fd: int) -> None:
    """Who listens elsewhere sleeps on, up to his bound."""
    word = Futex(fd, OFFSET, Clock())
    woken = threading.Event()

    def sleep() -> None:
        word.wait(0, 5, 0.2)
        woken.set()

    before = Clock().monotonic()
    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    while not woken.is_set():
        word.wake(4)
    assert Clock().monotonic() - before > 0.1
    sleeper.join()


@pytest.mark.parametrize("what", ["another machine", "a clock set by hand", "a file cut short"])
def test_where_there_is_no_futex_a_wait_is_a_nap(fd: int, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends after its bound, by the clock that it was given."""
    if what == "another machine":
        monkeypatch.setattr(futex, "NUMBERS", {})
    clock = ManualClock()
    word = Futex(fd, OFFSET, clock)
    if what == "a file cut short":
        os.truncate(fd, 0)
    word.wait(0, 0, 10)
    word.wake(0)
    assert clock.monotonic() == 10
    word.close()
