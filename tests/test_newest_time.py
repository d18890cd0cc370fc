"""The newest time of a row, noted in the lock file: it never goes back within a boot, and damage makes it unknown."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from idemreg import Clock
from idemreg.lockfile import LockFile
from idemreg.sqlite.stamps import NewestTime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = 1_700_000_000_000_000
MARK = range(280, 312)


@pytest.fixture
def lock_file(tmp_path: Path) -> Iterator[LockFile]:
    with closing(LockFile(str(tmp_path / "jobs.db-lock")).open()) as opened:
        with opened.creation(Clock(), 1):
            opened.read_or_write_id()
        yield opened


def test_nothing_is_known_before_the_first(lock_file: LockFile) -> None:
    """So all tasks are asked."""
    assert NewestTime(lock_file, "boot").read() is None


@pytest.mark.parametrize("time_us", [NOW, 0, -1, -(2**62), 2**62])
def test_it_is_what_was_noted(lock_file: LockFile, time_us: int) -> None:
    """Also by a clock that is centuries off."""
    NewestTime(lock_file, "boot").note(time_us)
    assert NewestTime(lock_file, "boot").read() == time_us


def test_it_never_goes_back(lock_file: LockFile) -> None:
    """Whoever notes knows nothing of what others have noted since."""
    one, other = NewestTime(lock_file, "boot"), NewestTime(lock_file, "boot")
    one.note(NOW)
    other.note(NOW - 5)
    other.note(NOW + 5_000)
    one.note(NOW + 2_000)
    assert one.read() == other.read() == NOW + 5_000
    assert one.covered_us == NOW + 6_000


def test_that_of_another_boot_says_nothing(lock_file: LockFile) -> None:
    """The clock may have been set in between, and was then: most devices begin each boot in the past."""
    NewestTime(lock_file, "boot").note(NOW)
    after = NewestTime(lock_file, "the next boot")
    assert after.read() is None
    after.note(NOW - 1_000_000)
    assert after.read() == NOW - 1_000_000


@pytest.mark.parametrize("at", MARK)
def test_a_damaged_one_says_nothing(lock_file: LockFile, at: int) -> None:
    """Neither that a clock is behind, nor that it is not; and the next makes it whole."""
    newest = NewestTime(lock_file, "boot")
    newest.note(NOW)
    (byte,) = os.pread(lock_file.fd, 1, at)
    os.pwrite(lock_file.fd, bytes([byte ^ 1]), at)
    assert newest.read() is None
    newest.note(NOW + 1)
    assert newest.read() == NOW + 1


def test_a_lock_file_that_was_cut_short_says_nothing(lock_file: LockFile) -> None:
    """The guard tells of that."""
    newest = NewestTime(lock_file, "boot")
    newest.note(NOW)
    os.truncate(lock_file.path, MARK[-1])
    assert newest.read() is None


def test_what_cannot_be_written_is_noted_by_the_next(lock_file: LockFile) -> None:
    """A row is not lost for it."""
    newest, kept = NewestTime(lock_file, "boot"), lock_file.fd
    lock_file.fd = os.open(lock_file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        newest.note(NOW)
        assert newest.read() is None
        assert newest.covered_us < NOW
    finally:
        os.close(lock_file.fd)
        lock_file.fd = kept
    newest.note(NOW)
    assert newest.read() == NOW


def test_what_cannot_be_read_says_nothing(lock_file: LockFile) -> None:
    """All tasks are asked then."""
    newest = NewestTime(lock_file, "boot")
    newest.note(NOW)
    lock_file.close()
    assert newest.read() is None
    newest.note(NOW + 1)
