"""A file and its copy, both in use: no number of the one is given by the other, whatever the clock and the copy."""

from __future__ import annotations

import os
import shutil
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import pytest

from idemreg import Clock, Registry, StoreCorruptError, serials
from idemreg.sqlite import rest
from idemreg.testing import ManualClock
from tests.support.processes import Script
from tests.support.raw import connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW_US = 1_795_402_800_000_000
SECOND_US = 1_000_000


def lives(path: Path, clock: Clock, count: int = 3) -> list[str]:
    """The numbers of some processes, each behind the end of the one before."""
    found: list[str] = []
    for _ in range(count):
        serials._lines.clear()
        with Registry(path, durability="normal", clock=clock) as registry:
            found += islice(registry.serials("COUP"), 5)
    return found


def instances(numbers: list[str]) -> set[str]:
    return {number[-10:] for number in numbers}


def increase(numbers: list[str]) -> bool:
    return all(one < other for one, other in pairwise(numbers))


def back_up(path: Path, copy: Path) -> None:
    with Registry(path, durability="normal") as registry:
        registry.backup(copy)


def copy_database(path: Path, copy: Path) -> None:
    shutil.copyfile(path, copy)


def copy_both(path: Path, copy: Path) -> None:
    """As `cp -p`: database and lock file, of the same lock id, with their times."""
    shutil.copy2(path, copy)
    shutil.copy2(f"{path}-lock", f"{copy}-lock")


def copy_in_use(path: Path, copy: Path) -> None:
    """As `cp -p` of all files while a process has them open."""
    with Registry(path, durability="normal") as registry:
        registry.serials("BILL").next()
        for suffix in ("", "-wal", "-lock"):
            shutil.copy2(f"{path}{suffix}", f"{copy}{suffix}")


def move_the_original(path: Path, copy: Path) -> None:
    """The backup comes into the original's place, and under its lock file; the original goes on elsewhere."""
    back_up(path, copy)
    shutil.move(path, f"{path}.moved")
    shutil.copyfile(copy, path)
    shutil.copyfile(f"{path}-lock", f"{copy}-lock")
    shutil.move(f"{path}.moved", copy)


COPIES = [back_up, copy_database, copy_both, copy_in_use, move_the_original]


@pytest.mark.parametrize("copied", COPIES)
def test_no_number_is_given_by_both(path: Path, tmp_path: Path, copied: Callable[[Path, Path], None]) -> None:
    """Both go on from one mark by one clock, which goes back: they have nothing in common, and each increases."""
    clock = ManualClock(wall_us=NOW_US)
    before = lives(path, clock)
    copy = tmp_path / "copy.db"
    copied(path, copy)
    for wall_us in (NOW_US, 0, NOW_US + 60 * SECOND_US, NOW_US - 3_600 * SECOND_US):
        clock.set(wall_us=wall_us)
        ours, theirs = lives(path, clock), lives(copy, clock)
        assert increase([*before, *ours])
        assert increase([*before, *theirs])
        assert not instances(ours) & instances(theirs)
        assert not set(ours) & set(theirs)
        before = max(ours, theirs)


def test_what_was_given_behind_the_backup_is_not_given_again(path: Path, tmp_path: Path) -> None:
    """A backup in the place of its file, under the same lock file, and a clock that went back as far as it."""
    clock = ManualClock(wall_us=NOW_US)
    lives(path, clock)
    back_up(path, tmp_path / "copy.db")
    before = lives(path, clock)
    shutil.copyfile(tmp_path / "copy.db", path)
    assert not instances(lives(path, clock)) & instances(before)


def test_what_a_power_cut_took_back_is_not_given_again(path: Path, tmp_path: Path) -> None:
    """With durability="normal" the newest mark may go, and a machine without a clock of its own has the same time."""
    clock = ManualClock(wall_us=NOW_US)
    lives(path, clock)
    copy_both(path, tmp_path / "synced.db")
    before = lives(path, clock)
    shutil.copy2(tmp_path / "synced.db", path)
    clock.set(boot_id="another")
    assert not instances(lives(path, clock)) & instances(before)


def test_a_registry_with_a_new_lock_file_still_increases(path: Path) -> None:
    """Its mark stays, though its instances are drawn anew: no number below it comes, whatever the clock says."""
    clock = ManualClock(wall_us=NOW_US)
    before = lives(path, clock)
    os.remove(f"{path}-lock")
    clock.set(wall_us=0)
    assert increase([*before, *lives(path, clock)])


def test_a_damaged_mark_keeps_no_copy_from_the_others(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file too large to be checked as a whole it is told when its own prefix is asked for, and not before."""
    monkeypatch.setattr(rest, "CHECKED_BYTES", 0)
    clock = ManualClock(wall_us=NOW_US)
    before = lives(path, clock)
    with Registry(path, durability="normal", clock=clock) as registry:
        registry.serials("BILL").next()
    copy = tmp_path / "copy.db"
    copy_database(path, copy)
    connection = connect(copy)
    connection.execute("UPDATE idempotent_serial SET mark_us = mark_us - 1 WHERE prefix = 'BILL'")
    connection.close()
    assert not instances(lives(copy, clock)) & instances([*before, *lives(path, clock)])
    with Registry(copy, durability="normal", clock=clock) as registry, pytest.raises(StoreCorruptError):
        registry.serials("BILL").next()


WORKER = """
from idemreg import Registry
numbers = Registry(sys.argv[1], durability="normal").serials("COUP")
first = numbers.next()
say("ready")
wait()
say(first, *(numbers.next() for _ in range(1_500)))
"""


def test_two_processes_give_none_twice_by_the_clock_of_the_machine(path: Path, tmp_path: Path) -> None:
    """One in the file, one in its backup, at the same time."""
    copy = tmp_path / "copy.db"
    lives(path, Clock())
    back_up(path, copy)
    with Script(WORKER, path) as ours, Script(WORKER, copy) as theirs:
        for script in (ours, theirs):
            script.expect("ready")
        for script in (ours, theirs):
            script.go()
        found = [script.line().split() for script in (ours, theirs)]
    assert all(map(increase, found))
    assert len({*found[0], *found[1]}) == 2 * 1_501
    assert not instances(found[0]) & instances(found[1])
