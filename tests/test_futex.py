"""A word of a shared file: who sleeps on it is woken when it changes, and never sleeps beyond a bound."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from idemreg import Clock, futex, oslock
from idemreg.futex import PAGE_BYTES, Futex
from idemreg.testing import ManualClock
from tests.support.processes import PATIENCE_S, Script

if TYPE_CHECKING:
    from collections.abc import Iterator

OFFSET = 120

SLEEPER = """
    import os
    from idemreg import Clock
    from idemreg.futex import Futex
    fd = os.open(sys.argv[1], os.O_RDWR)
    futex = Futex(sys.argv[1], fd, 120, Clock())
    say("ready")
    while os.pread(fd, 1, 120) == b"\\0":
        futex.wait(0, 3, 600)
    say("woken")
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "shared")


@pytest.fixture
def fd(file: str) -> Iterator[int]:
    fd = os.open(file, os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(PAGE_BYTES))
    yield fd
    os.close(fd)


def test_a_change_wakes_other_processes(fd: int, file: str) -> None:
    """Whoever sleeps in another process goes on at once, without its bound of ten minutes."""
    word = Futex(file, fd, OFFSET, Clock())
    with Script(SLEEPER, file) as sleeper:
        sleeper.expect("ready")
        os.pwrite(fd, b"\1", OFFSET)
        threads = threading.Thread(target=sleeper.expect, args=("woken",))
        threads.start()
        while threads.is_alive():  # it may not be asleep yet, and is woken when it is
            word.wake(3)
            threads.join(0.001)
        assert sleeper.end() == 0


def test_a_word_that_has_changed_lets_nobody_sleep(fd: int, file: str) -> None:
    """What changed between the look and the wait is noticed: no wake-up is lost."""
    os.pwrite(fd, b"\2", OFFSET)
    clock = Clock()
    before = clock.monotonic()
    Futex(file, fd, OFFSET, clock).wait(1, 0, PATIENCE_S)
    assert clock.monotonic() - before < PATIENCE_S / 2


def test_another_channel_is_not_woken(fd: int, file: str) -> None:
    """Who listens elsewhere sleeps on, up to his bound."""
    word = Futex(file, fd, OFFSET, Clock())
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


@pytest.mark.parametrize("what", ["another machine", "another kernel", "a clock set by hand", "a file cut short"])
def test_where_there_is_no_futex_a_wait_is_a_nap(
    fd: int, file: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after its bound, by the clock that it was given."""
    if what == "another machine":
        monkeypatch.setattr(futex, "NUMBERS", {})
    if what == "another kernel":
        monkeypatch.setattr(futex, "NUMBERS", {os.uname().machine: 100_000})  # the number of no call: ENOSYS
    clock = ManualClock()
    word = Futex(file, fd, OFFSET, clock)
    if what == "a file cut short":
        word.wake(0)
        os.truncate(fd, 0)
    word.wait(0, 0, 10)
    word.wake(0)
    assert clock.monotonic() == 10
    word.close()


def test_a_clock_set_by_hand_ahead_of_the_machines_lets_nobody_sleep_on(fd: int, file: str) -> None:
    """The kernel would wait until its own has come as far; and nobody need wake who sleeps no longer than its bound."""
    clock = ManualClock()
    clock.advance(10 * 365 * 86_400)
    began = clock.monotonic()
    sleeper = threading.Thread(target=Futex(file, fd, OFFSET, clock).wait, args=(0, 0, 0.01), daemon=True)
    sleeper.start()
    sleeper.join(PATIENCE_S)
    assert not sleeper.is_alive()
    assert clock.monotonic() == pytest.approx(began + 0.01)


def test_what_cannot_be_mapped_is_a_nap(tmp_path: Path) -> None:
    """A folder, say: ENODEV."""
    clock = ManualClock()
    fd = os.open(tmp_path, os.O_RDONLY)
    word = Futex(str(tmp_path), fd, OFFSET, clock)
    word.wait(0, 0, 10)
    word.close()
    os.close(fd)
    assert clock.monotonic() == 10


@pytest.mark.parametrize("what", ["nothing", "another file"])
def test_a_file_that_has_lost_its_name_is_a_nap_until_it_has_it_again(fd: int, file: str, what: str) -> None:
    """In what bears the name by then nobody sleeps, and its word may never be the one that is waited for."""
    clock = ManualClock()
    word = Futex(file, fd, OFFSET, clock)
    os.rename(file, f"{file}.moved")
    if what == "another file":
        Path(file).write_bytes(b"\1" * PAGE_BYTES)
    word.wait(0, 0, 10)
    assert clock.monotonic() == 10
    os.rename(f"{file}.moved", file)
    os.pwrite(fd, b"\2", OFFSET)
    word.wait(0, 0, 10)
    assert clock.monotonic() == 10
    word.close()


def test_threads_that_sleep_first_share_a_mapping(fd: int, file: str) -> None:
    """One of theirs; the others are unmapped."""
    count = 8
    barrier, word = threading.Barrier(count), Futex(file, fd, OFFSET, Clock())
    before = _mapped(file)

    def wake() -> None:
        barrier.wait()
        word.wake(0)

    threads = [threading.Thread(target=wake) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (before, _mapped(file)) == (0, 1)
    word.close()
    assert _mapped(file) == 0


def test_a_handler_that_wakes_while_it_is_mapped_shares_the_mapping(
    fd: int, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever came in between has mapped it, and the other is unmapped."""
    word = Futex(file, fd, OFFSET, Clock())
    same, comes = os.path.sameopenfile, [lambda: word.wake(0)]

    def interrupted(one: int, other: int) -> bool:
        if comes:
            comes.pop()()
        return same(one, other)

    monkeypatch.setattr(os.path, "sameopenfile", interrupted)
    word.wake(0)
    assert _mapped(file) == 1
    word.close()


def _mapped(file: str) -> int:
    return Path("/proc/self/maps").read_text(encoding="utf-8").count(file)


def test_a_mapping_holds_no_lock(fd: int, file: str) -> None:
    """A lock that was taken through another open file is gone with that one's last descriptor."""
    holder = os.open(file, os.O_RDWR)
    word = Futex(file, fd, OFFSET, Clock())
    word.wake(0)
    assert oslock.try_lock(holder, 7)
    os.close(holder)
    assert not oslock.is_held(fd, 7)
    word.close()
