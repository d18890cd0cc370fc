"""The newest time of a row, noted in the lock file: it never goes back in its boot, and is known once it is whole."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from idemreg import Clock, StoreError
from idemreg.lockfile import LockFile
from idemreg.sqlite.stamps import NewestTime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = 1_700_000_000_000_000
GRAIN = 1_000
MARK = range(280, 316)


@pytest.fixture
def lock_file(tmp_path: Path) -> Iterator[LockFile]:
    with closing(LockFile(str(tmp_path / "jobs.db-lock")).open()) as opened:
        with opened.creation(Clock(), 1):
            opened.read_or_write_id()
        yield opened


@pytest.fixture
def newest(lock_file: LockFile) -> NewestTime:
    """Whole, with a row of now."""
    one = NewestTime(lock_file, "boot")
    make_whole(one, NOW)
    return one


def make_whole(one: NewestTime, newest_us: int | None, now_us: int = -(2**62)) -> None:
    """As a look does, which finds this in the tasks."""
    reading = one.begin(now_us)
    assert reading is not None
    one.complete(reading, newest_us)


def test_rows_alone_begin_nothing(lock_file: LockFile) -> None:
    """Nobody knows what was stored before them."""
    one = NewestTime(lock_file, "boot")
    one.note(NOW)
    assert one.read() is None
    assert one.after_us < NOW <= one.until_us  # and the next rows do not ask again at once
    assert not one.after_us < NOW - GRAIN
    assert not one.until_us > NOW + GRAIN


def test_it_is_known_once_all_rows_were_read(lock_file: LockFile) -> None:
    """A row that was stored meanwhile is in it, and the newest holds. Of two looks at once each may complete it."""
    one, other = NewestTime(lock_file, "boot"), NewestTime(lock_file, "boot")
    first = one.begin(NOW - 20)
    assert first is not None
    assert one.read() is None
    other.note(NOW)
    second = other.begin(NOW - 10)
    assert second == first
    one.complete(first, NOW - 5)
    assert one.read() == other.read() == NOW
    other.complete(second, NOW + 5)
    one.complete(first, None)
    assert other.read() == NOW + 5


@pytest.mark.parametrize("how", ["lost", "begun anew", "rows of times to come"])
def test_what_was_read_before_it_was_begun_anew_does_not_complete_it(lock_file: LockFile, how: str) -> None:
    """Rows that were stored in between may be in neither."""
    one = NewestTime(lock_file, "boot")
    reading = one.begin(NOW)
    assert reading is not None
    if how == "rows of times to come":
        one.void()
    else:
        os.pwrite(lock_file.fd, bytes(len(MARK)), MARK[0])
    if how == "begun anew":
        assert one.begin(NOW) != reading
    one.complete(reading, NOW)
    assert one.read() is None


def test_rows_of_times_to_come_make_it_unknown(newest: NewestTime) -> None:
    """Until a look has read them; what was known stays."""
    newest.void()
    assert newest.read() is None
    make_whole(newest, NOW - 5)
    assert newest.read() == NOW


def test_where_there_is_none_nothing_is_unknown(lock_file: LockFile) -> None:
    """It is so already."""
    one = NewestTime(lock_file, "boot")
    one.void()
    assert one.read() is None
    assert os.pread(lock_file.fd, len(MARK), MARK[0]) == bytes(len(MARK))


@pytest.mark.parametrize("time_us", [NOW, 0, -1, -(2**62) + 1, 2**62])
def test_it_is_what_was_noted(lock_file: LockFile, time_us: int) -> None:
    """Also by a clock that is centuries off."""
    one = NewestTime(lock_file, "boot")
    make_whole(one, None)
    one.note(time_us)
    assert NewestTime(lock_file, "boot").read() == time_us


def test_it_never_goes_back(lock_file: LockFile, newest: NewestTime) -> None:
    """Whoever notes knows nothing of what others have noted since."""
    other = NewestTime(lock_file, "boot")
    other.note(NOW - 5)
    other.note(NOW + 5_000)
    newest.note(NOW + 2_000)
    assert newest.read() == other.read() == NOW + 5_000
    assert newest.after_us < -NOW
    assert newest.until_us == NOW + 5_000 + GRAIN


def test_that_of_another_boot_says_nothing(lock_file: LockFile, newest: NewestTime) -> None:
    """The clock may have been set in between, and was then: most devices begin each boot in the past."""
    after = NewestTime(lock_file, "the next boot")
    assert after.read() is None
    make_whole(after, None, now_us=NOW - 1_000_000)
    assert after.read() == NOW - 1_000_000
    assert newest.read() is None


@pytest.mark.parametrize("at", MARK)
def test_a_damaged_one_says_nothing(lock_file: LockFile, newest: NewestTime, at: int) -> None:
    """Neither that a clock is behind, nor that it is not; and a look makes it whole."""
    (byte,) = os.pread(lock_file.fd, 1, at)
    os.pwrite(lock_file.fd, bytes([byte ^ 1]), at)
    assert newest.read() is None
    newest.note(NOW + 1)
    assert newest.read() is None
    make_whole(newest, NOW + 1)
    assert newest.read() == NOW + 1


def test_a_lock_file_that_was_cut_short_says_nothing(lock_file: LockFile, newest: NewestTime) -> None:
    """The guard tells of that."""
    os.truncate(lock_file.path, MARK[-1])
    assert newest.read() is None


def test_what_cannot_be_written_is_noted_with_the_next_row(lock_file: LockFile, newest: NewestTime) -> None:
    """A row is not lost for it, nor a look; and an earlier time makes it good as well."""
    kept, lock_file.fd = lock_file.fd, os.open(lock_file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        newest.note(NOW + 7)
        assert newest.read() == NOW
        assert not newest.after_us < NOW <= newest.until_us
        assert NewestTime(lock_file, "the next boot").begin(NOW) is None
        reading = newest.begin(NOW)
        assert reading is not None
        newest.complete(reading, NOW + 1)
        assert newest.read() == NOW
        with pytest.raises(StoreError, match="cannot write"):
            newest.void()
    finally:
        os.close(lock_file.fd)
        lock_file.fd = kept
    newest.note(NOW - 1_000_000)
    assert newest.read() == NOW + 7
    newest.note(NOW + 9_000)
    assert newest.read() == NOW + 9_000


def test_what_cannot_be_read_says_nothing(lock_file: LockFile, newest: NewestTime) -> None:
    """All tasks are asked then."""
    lock_file.close()
    assert newest.read() is None
    newest.note(NOW + 1)
