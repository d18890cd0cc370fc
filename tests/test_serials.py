"""Serial numbers: none repeats, and none goes back, whatever the clock, the process or the thread does."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import threading
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idemreg import (
    AsyncRegistry,
    PrefixError,
    Registry,
    StoreBusyError,
    StoreCorruptError,
    faults,
    serials,
)
from idemreg.doctor import examine
from idemreg.doctor.salvage import salvage
from idemreg.sqlite.serial_marks import COUNTED_US, LAST_BELIEVED_US, LEAP_US, WRITTEN_US
from idemreg.testing import ManualClock, throw_away_registry
from tests.support.interrupts import each_interrupt
from tests.support.processes import Script
from tests.support.raw import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

NOW_US = 1_795_402_800_000_000
YEAR_9999_US = 253_370_764_800_000_000
SECOND_US = 1_000_000


def end_of_process() -> None:
    """What a process knew of its lines is gone; another begins."""
    serials._lines.clear()


def increase(numbers: Sequence[str]) -> bool:
    return all(one < other for one, other in pairwise(numbers))


def micros(number: str) -> int:
    value = 0
    for digit in number.partition("-")[2][:11]:
        value = value * 32 + serials.DIGITS.index(digit)
    return value


def instance(number: str) -> str:
    return number[-10:]


class Reservations:
    """Counts the commits of a process's serials."""

    def __init__(self) -> None:
        self.count = 0
        faults.arm("serial.reserved", self._add)

    def _add(self) -> None:
        self.count += 1


# --- form -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["C", "COUP", "_", "a1_Z", "12345678"])
def test_a_serial_is_at_most_32_characters_of_plain_text(prefix: str) -> None:
    """Its prefix, a dash, and 23 digits that sort as ASCII does; the time in it is the clock's."""
    clock = ManualClock(wall_us=NOW_US)
    with throw_away_registry(clock=clock) as registry:
        number = registry.serials(prefix).next()
    head, dash, digits = number.partition("-")
    assert (head, dash, len(digits)) == (prefix, "-", 23)
    assert set(digits) <= set(serials.DIGITS)
    assert micros(number) == NOW_US
    assert "".join(sorted(serials.DIGITS)) == serials.DIGITS


@pytest.mark.parametrize("prefix", ["", "123456789", "CO-UP", "CÖUP", "CO UP", "COUP\n", "\uff11", None, 7, b"COUP"])
def test_a_prefix_that_is_none_is_refused(path: Path, prefix: Any) -> None:
    """PrefixError, before any file comes into being for it."""
    with pytest.raises(PrefixError):
        Registry(path).serials(prefix)
    assert not path.exists()


def test_prefixes_are_apart(registry: Registry) -> None:
    """Each prefix has a mark and instances of its own; a shorter one is none of a longer."""
    first, second = registry.serials("COUP"), registry.serials("COUPON")
    numbers = [number for _ in range(50) for number in (first.next(), second.next())]
    assert len(set(numbers)) == 100
    assert increase(numbers[::2])
    assert increase(numbers[1::2])


def test_iterating_gives_serials_without_end(registry: Registry) -> None:
    """`for` and `next()` give what the method does."""
    numbers = registry.serials("COUP")
    assert increase([*islice(numbers, 5), next(numbers), numbers.next()])


# --- clocks -----------------------------------------------------------------------------------------------------

WALLS = st.one_of(
    st.integers(NOW_US - 40 * SECOND_US, NOW_US + 40 * SECOND_US),
    st.integers(0, YEAR_9999_US),
    st.sampled_from([-(10**15), -1, 0, WRITTEN_US, NOW_US, LAST_BELIEVED_US, 2**55, 2**62, YEAR_9999_US]),
)
STEPS = st.lists(st.one_of(WALLS, st.integers(1, 40).map(float), st.none()), max_size=25)


@given(STEPS)
def test_they_increase_through_every_history_of_the_clock(steps: list[int | float | None]) -> None:
    """Whatever the clock jumps to, however many are taken, wherever a process ends: each is above the one before."""
    clock = ManualClock(wall_us=NOW_US)
    end_of_process()
    with throw_away_registry(clock=clock) as registry:
        numbers = [registry.serials("COUP").next()]
        for step in steps:
            match step:
                case int():
                    clock.set(wall_us=step)
                case float():
                    numbers += islice(registry.serials("COUP"), int(step))
                case None:
                    end_of_process()
            numbers.append(registry.serials("COUP").next())
    assert increase(numbers)
    assert max(map(len, numbers)) == 28


def test_a_clock_that_stands_costs_few_commits(open_registry: Callable[..., Registry]) -> None:
    """100,000 serials of one microsecond: they count on, and tens of thousands come of one commit."""
    registry = open_registry(clock=ManualClock())
    commits = Reservations()
    numbers = list(islice(registry.serials("COUP"), 100_000))
    assert increase(numbers)
    assert commits.count == 1


def test_a_clock_far_behind_costs_few_commits(open_registry: Callable[..., Registry]) -> None:
    """So do serials that count on from a mark which the clock will not reach for years."""
    clock = ManualClock(wall_us=NOW_US + LEAP_US // 2)
    numbers = open_registry(clock=clock).serials("COUP")
    found = [numbers.next()]
    clock.set(wall_us=NOW_US)
    commits = Reservations()
    found += islice(numbers, 20 * 1_024 * COUNTED_US // 10)
    assert increase(found)
    assert commits.count <= 2


def test_a_clock_that_runs_costs_a_commit_in_ten_seconds(open_registry: Callable[..., Registry]) -> None:
    """A new process reserves little, since whoever comes behind it begins at its end; one that stays, more."""
    clock = ManualClock()
    numbers = open_registry(clock=clock).serials("COUP")
    commits = Reservations()
    for _ in range(600):
        numbers.next()
        clock.advance(0.1)
    assert commits.count <= 3 + 6


def test_a_jump_to_the_year_9999_is_not_believed(open_registry: Callable[..., Registry]) -> None:
    """Serials count on meanwhile, at no commit each, and have the time again once the clock has."""
    clock = ManualClock(wall_us=NOW_US)
    numbers = open_registry(clock=clock).serials("COUP")
    found = [numbers.next()]
    clock.set(wall_us=YEAR_9999_US)
    commits = Reservations()
    found += islice(numbers, 2_000)
    assert commits.count <= 1
    assert micros(found[-1]) < NOW_US + 2 * SECOND_US
    clock.set(wall_us=NOW_US + 60 * SECOND_US)
    found.append(numbers.next())
    assert micros(found[-1]) == NOW_US + 60 * SECOND_US
    assert increase(found)


def test_a_new_prefix_does_not_believe_the_year_9999_either(open_registry: Callable[..., Registry]) -> None:
    """It has no mark to go by; the date of this code is one."""
    clock = ManualClock(wall_us=YEAR_9999_US)
    numbers = open_registry(clock=clock).serials("COUP")
    found = list(islice(numbers, 10))
    clock.set(wall_us=NOW_US)
    found.append(numbers.next())
    assert increase(found)
    assert micros(found[-1]) == NOW_US


def test_who_comes_behind_a_short_life_begins_close_to_its_clock(path: Path) -> None:
    """Fifty commands in a row, each one serial: the time in the last is still right to a second."""
    clock = ManualClock(wall_us=NOW_US)
    numbers = []
    for _ in range(50):
        end_of_process()
        with Registry(path, durability="normal", clock=clock) as registry:
            numbers.append(registry.serials("COUP").next())
    assert increase(numbers)
    assert NOW_US <= micros(numbers[-1]) < NOW_US + SECOND_US
    assert len(set(map(instance, numbers))) == 50


# --- processes --------------------------------------------------------------------------------------------------

# The clock is a file that every process sets back, or far ahead, now and then; the second life of a process begins
# where the first was killed.
WORKER = """
import struct
from idemreg import Clock, Registry
path, clock_path, out, start, count = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
clock_fd = os.open(clock_path, os.O_RDWR)
class FileClock(Clock):
    def wall_us(self): return struct.unpack("q", os.pread(clock_fd, 8, 0))[0]
numbers = Registry(path, clock=FileClock()).serials("COUP")
say("ready")
wait()
with open(out, "a") as file:
    for number in range(count):
        if number % 250 == 0:
            jump = (-7_000_000, 3_000_000, -90_000_000, 20_000_000, 0)[number // 250 % 5]
            os.pwrite(clock_fd, struct.pack("q", start + jump - number), 0)
        file.write(numbers.next() + "\\n")
os.kill(os.getpid(), signal.SIGKILL)
"""
PROCESSES, COUNT = 8, 12_500


def test_100_000_of_8_processes_with_the_clock_going_back_are_distinct(tmp_path: Path) -> None:
    """No two are the same, and those of each process increase, also over its death by kill -9 and its next life."""
    clock = tmp_path / "clock"
    clock.write_bytes(NOW_US.to_bytes(8, "little"))
    outs = [tmp_path / f"out{number}" for number in range(PROCESSES)]
    for life in range(2):
        start = NOW_US - life * 3_600 * SECOND_US  # the second life begins an hour before the first
        scripts = [Script(WORKER, tmp_path / "jobs.db", clock, out, start, COUNT // 2) for out in outs]
        for script in scripts:
            script.expect("ready")
        for script in scripts:
            script.go()
        assert [script.end() for script in scripts] == [-9] * PROCESSES
        for script in scripts:
            script.__exit__(None, None, None)
    found = [out.read_text().split() for out in outs]
    assert all(increase(numbers) for numbers in found)
    assert len({number for numbers in found for number in numbers}) == PROCESSES * COUNT
    assert len({instance(number) for numbers in found for number in numbers}) == 2 * PROCESSES


def forked(body: Callable[[], list[str]]) -> list[str]:
    """What ``body`` gives in a forked child."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.write(writing, "\n".join(body()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        found = pipe.read().split()
    assert os.waitpid(child, 0)[1] == 0
    return found


def test_a_forked_child_has_an_instance_of_its_own(registry: Registry) -> None:
    """With the clock standing still, child and parent go on from the same place, and give no number twice."""
    numbers = registry.serials("COUP")
    before = [numbers.next()]
    theirs = forked(lambda: list(islice(numbers, 100)))
    ours = list(islice(numbers, 100))
    assert increase([*before, *ours])
    assert increase([*before, *theirs])
    assert not {*map(instance, ours)} & {*map(instance, theirs)}


def test_a_child_does_not_wait_for_a_thread_of_its_parent(registry: Registry) -> None:
    """Forked while another thread takes a number, it does not find the lock held for ever."""
    numbers = registry.serials("COUP")
    numbers.next()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with numbers._line.lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert len(forked(lambda: [numbers.next()])) == 1
    finally:
        done.set()
        thread.join()


# --- in a process -----------------------------------------------------------------------------------------------


def test_threads_share_them(registry: Registry) -> None:
    """Each of 8 threads sees its own increase, and no two get the same."""
    found: list[list[str]] = [[] for _ in range(8)]
    barrier = threading.Barrier(8)
    numbers = registry.serials("COUP")

    def take(into: list[str]) -> None:
        barrier.wait()
        into.extend(islice(numbers, 1_000))

    threads = [threading.Thread(target=take, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(increase(into) for into in found)
    assert len({number for into in found for number in into}) == 8_000


def test_all_registries_of_one_file_give_from_one_line(path: Path, open_registry: Callable[..., Registry]) -> None:
    """Two handles, one of them by another name of the path, increase together; nothing is reserved twice."""
    other = Registry(path.parent / "." / path.name, durability="normal")
    both = open_registry().serials("COUP"), other.serials("COUP")
    commits = Reservations()
    numbers = [number.next() for _ in range(500) for number in both]
    assert increase(numbers)
    assert commits.count <= 2
    other.close()


def test_a_durable_one_is_of_a_durable_block(path: Path, open_registry: Callable[..., Registry]) -> None:
    """What a handle with durability="normal" has reserved is no good for one that promises more."""
    clock = ManualClock()
    full = Registry(path, clock=clock)
    commits = Reservations()
    numbers = [open_registry(clock=clock).serials("COUP").next()]
    numbers.append(full.serials("COUP").next())
    assert commits.count == 2
    numbers.append(open_registry(clock=clock).serials("COUP").next())
    assert commits.count == 2
    assert increase(numbers)
    full.close()


def test_a_block_is_on_the_disk_before_a_number_of_it_is_given(path: Path) -> None:
    """Under durability="full" a sync stands between the commit of the mark and the first number below it."""
    seen: list[str] = []
    for point in ("serial.in-transaction", "sync.done", "serial.reserved"):
        faults.arm(point, lambda point=point: seen.append(point))  # type: ignore[misc]
    with Registry(path, clock=ManualClock()) as registry:
        numbers = registry.serials("COUP")
        numbers.next()
        assert seen[-3:] == ["serial.in-transaction", "sync.done", "serial.reserved"]
        seen.clear()
        numbers.next()
        assert seen == []
        faults.disarm()


def test_they_go_on_over_a_close(registry: Registry) -> None:
    """A closed registry opens again at the next reservation, under the same instance."""
    numbers = registry.serials("COUP")
    found = [numbers.next()]
    registry.close()
    found += islice(numbers, 5)
    assert increase(found)
    assert len(set(map(instance, found))) == 1


def test_a_signal_handler_may_take_one_in_the_middle(registry: Registry) -> None:
    """What runs while a block is being reserved gets a number, does not wait for itself, and none is given twice."""
    numbers = registry.serials("COUP")
    found: list[str] = []

    def handler() -> None:
        faults.disarm()
        found.extend(islice(numbers, 3_000))

    faults.arm("serial.reserved", handler)
    found.append(numbers.next())
    found.append(numbers.next())
    assert len(set(found)) == 3_002
    assert increase(found[:3_000])


@pytest.mark.parametrize("jump_us", [1, SECOND_US, -SECOND_US])
def test_an_interrupt_anywhere_costs_a_number_at_most(open_registry: Callable[..., Registry], jump_us: int) -> None:
    """Ctrl-C at each step of taking one: those taken before and behind it still increase."""
    clock = ManualClock()
    numbers = open_registry(clock=clock).serials("COUP")
    found = [numbers.next()]
    for interrupter in each_interrupt(serials):
        clock.set(wall_us=clock.wall_us() + jump_us)
        interrupter.carry_out(lambda: found.extend([*islice(numbers, 2)]))
        found.append(numbers.next())
        if len(found) > 400:
            break
    assert increase(found)


# --- what the file says -----------------------------------------------------------------------------------------


def test_an_older_copy_in_its_place_is_noticed(path: Path) -> None:
    """The mark that a process left is gone: it goes on above its own, under an instance that is new."""
    clock = ManualClock(wall_us=NOW_US)
    with Registry(path, durability="normal", clock=clock) as registry:
        numbers = registry.serials("COUP")
        found = [numbers.next()]
        registry.backup(f"{path}.old")
        clock.advance(100)
        found.append(numbers.next())
    shutil.copyfile(f"{path}.old", path)
    clock.set(wall_us=NOW_US + 50 * SECOND_US)
    with Registry(path, durability="normal", clock=clock) as registry:
        numbers = registry.serials("COUP")
        clock.advance(100)
        found.append(numbers.next())
    assert increase(found)
    assert instance(found[2]) != instance(found[1])


def test_a_number_is_not_given_where_its_block_cannot_be_reserved(
    path: Path, open_registry: Callable[..., Registry]
) -> None:
    """StoreBusyError, and the next call goes on as if nothing had been."""
    clock = ManualClock()
    numbers = open_registry(clock=clock, busy_timeout=0).serials("COUP")
    found = [numbers.next()]
    clock.advance(1)
    other = connect(path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusyError):
        numbers.next()
    other.execute("ROLLBACK")
    other.close()
    found += islice(numbers, 2)
    assert increase(found)


@pytest.mark.parametrize("column", ["instance", "mark_us", "seal"])
def test_a_changed_mark_is_an_error(path: Path, column: str) -> None:
    """A smaller one would give a serial twice: StoreCorruptError, and doctor names it."""
    with Registry(path, durability="normal") as registry:
        registry.serials("COUP").next()
    connection = connect(path)
    connection.execute(f"UPDATE idempotent_serial SET {column} = {column} - 1")  # noqa: S608
    connection.close()
    end_of_process()
    with Registry(path, durability="normal") as registry, pytest.raises(StoreCorruptError):
        registry.serials("COUP").next()
    (broken,) = [one for one in examine(path) if one.code == "seal-broken"]
    assert "'COUP'" in broken.text


def test_a_backup_and_a_salvaged_file_go_on_above(path: Path, tmp_path: Path) -> None:
    """Both bring the mark along; what is salvaged has instances of its own."""
    clock = ManualClock(wall_us=NOW_US)
    with Registry(path, durability="normal", clock=clock) as registry:
        registry.run("t", lambda: 1)
        first = registry.serials("COUP").next()
        registry.backup(tmp_path / "copy.db")
    gc.collect()
    salvage(path, tmp_path / "saved.db", clock=clock)
    clock.set(wall_us=0)
    for name in ("copy.db", "saved.db"):
        end_of_process()
        with Registry(tmp_path / name, durability="normal", clock=clock) as registry:
            number = registry.serials("COUP").next()
        assert number > first
        assert instance(number) != instance(first)
        assert not {"seal-broken", "schema-altered", "integrity"} & {one.code for one in examine(tmp_path / name)}


def test_purge_and_export_leave_them_alone(registry: Registry) -> None:
    """No upkeep of tasks lowers a mark; the lines of an export speak of tasks only."""
    numbers = registry.serials("COUP")
    first = numbers.next()
    registry.run("t", lambda: 1)
    assert len(list(registry.export_lines())) == 3
    registry.purge(older_than=0)
    end_of_process()
    assert registry.serials("COUP").next() > first


# --- asynchronous -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_on_the_event_loop")
def test_coroutines_take_them_too(path: Path) -> None:
    """Awaited or iterated they increase; a commit is made on a thread, and the usual one needs none."""

    async def main() -> list[str]:
        registry = AsyncRegistry(path, durability="normal")
        numbers = registry.serials("COUP")
        found = [await numbers.next()]
        async for number in numbers:
            found.append(number)
            if len(found) == 100:
                break
        many = await asyncio.gather(*(numbers.next() for _ in range(100)))
        assert len({*found, *many}) == 200
        await registry.close()
        return found

    assert increase(asyncio.run(main()))
