"""Power cuts at every recorded point lose nothing that a caller was told; what records, replays and judges is right.

That each way of breaking durability is found is tried by ``make torture ARGS="--power --only powercut"``.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random
from typing import Any

import pytest

from idemreg import Status
from tests.powercut import recorder
from tests.powercut.crews import SYNC_FAILS
from tests.powercut.cuts import WAYS
from tests.powercut.disk import Disk
from tests.powercut.image import contents
from tests.powercut.judge import problem_beside
from tests.powercut.run import check_whole, record_and_judge
from tests.powercut.settings import SETTINGS
from tests.powercut.told import Found, Row, Told
from tests.powercut.trace import FOLDER, BrokenTraceError, Record, read

pytestmark = pytest.mark.usefixtures("compiler")


# --- the promise ------------------------------------------------------------------------------------------------


# A short recording, and the fewest ways for each cut: the trial has the long ones.
SHORT: dict[str, Any] = {"rounds": 2, "steps": 3, "ways": 3}


def test_full_loses_nothing() -> None:
    """With durability="full" no cut loses an acknowledged claim or result, lets a token return, or damages the file."""
    report = record_and_judge(1, **SHORT)
    assert report.losses == []
    assert report.images == sum(report.by_way.values()) == report.cuts * SHORT["ways"]
    assert 0 < len(report.distinct) <= report.images
    assert min(report.entries, report.ends) > 0


@pytest.mark.parametrize("setting", SETTINGS)
def test_full_loses_nothing_where_a_sync_fails(setting: str) -> None:
    """A sync of the -wal reports an error once, and says OK ever after: nothing that it should have covered is told.

    While rare things are common: syncs without the turn; a -wal that is grown, filled and begun anew by commits.
    """
    assert record_and_judge(4, settings=[setting], **SYNC_FAILS, **SHORT).losses == []


def test_normal_loses() -> None:
    """With durability="normal" the same harness finds losses at once, so it would have found them."""
    assert record_and_judge(1, durability="normal", stop_at=1).losses


# --- the recorder -----------------------------------------------------------------------------------------------


@pytest.fixture
def at(tmp_path: Path) -> recorder.Recorder:
    return recorder.Recorder(str(tmp_path))


def recorded(at: recorder.Recorder, source: str) -> list[Record]:
    """What a program does in its folder. It ends with 0, or by its own SIGKILL."""
    program = "import os, sys, json\n" + textwrap.dedent(source)
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | at.environment(), check=False, capture_output=True, text=True
    )
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return read(at.log)


def kinds(records: list[Record]) -> str:
    return "".join(record.kind for record in records)


# What Python and SQLite write with. A file made by a relative path would be unknown, and void the trace.
WRITES = {
    "os.pwrite(fd, b'abc', 5)": "W",
    "os.write(fd, b'abc'); os.write(fd, b'def')": "WW",
    "os.writev(fd, [b'ab', b'', b'cd'])": "W",
    "os.pwritev(fd, [b'ab', b'cd'], 4_096)": "W",
    "os.ftruncate(fd, 7)": "T",
    "os.fdatasync(fd); os.fsync(fd)": "BEBE",
    "os.fsync(os.open(os.path.dirname(path), os.O_RDONLY))": "BE",
    "copy = os.dup(fd); os.close(fd); os.pwrite(copy, b'x', 1)": "W",
    "os.dup2(fd, 700); os.close(fd); os.pwrite(700, b'x', 1)": "W",
    "os.rename(path, path + '.new'); os.pwrite(fd, b'x', 0)": "RW",
    "os.link(path, path + '.new'); os.unlink(path); os.pwrite(fd, b'x', 0)": "LUW",
    "os.open(path, os.O_WRONLY | os.O_TRUNC)": "T",
    "open(path, 'ab', buffering=0).write(b'x'); open(path, 'ab', buffering=0).write(b'y')": "WW",
    "os.unlink(path); os.close(fd); os.write(os.open(path, os.O_CREAT | os.O_WRONLY), b'x')": "UCW",
    "os.fork() or (os.pwrite(fd, b'x', 0), os._exit(0)); os.wait()": "W",
}


@pytest.mark.parametrize("write", WRITES)
def test_every_write_and_sync_is_seen(at: recorder.Recorder, write: str) -> None:
    """Whatever a program writes, cuts, renames, removes or syncs is recorded; replayed it gives the same files."""
    path = f"path = {at.database!r}; fd = os.open(path, os.O_CREAT | os.O_RDWR); "
    records = recorded(at, path + write)
    assert kinds(records) == "C" + WRITES[write]
    check_whole(records, at.folder)


@pytest.mark.parametrize(
    "what",
    [
        "import mmap; os.ftruncate(fd, 4_096); mmap.mmap(fd, 4_096)",
        "os.posix_fallocate(fd, 0, 4_096)",
        "os.open(path, os.O_WRONLY | os.O_SYNC)",
        "os.truncate(path, 3)",
        "os.rename(path, os.path.dirname(path) + '-elsewhere')",
        "other = os.open('/proc/self/exe', os.O_RDONLY); os.copy_file_range(other, fd, 10)",
    ],
)
def test_what_is_not_modelled_voids_the_trace(at: recorder.Recorder, what: str) -> None:
    """What the replayer does not know is no silent gap in a trace, but its end."""
    with pytest.raises(BrokenTraceError):
        recorded(at, f"path = {at.database!r}; fd = os.open(path, os.O_CREAT | os.O_RDWR); {what}")


def test_a_file_that_went_past_the_recorder_is_noticed(at: recorder.Recorder) -> None:
    """A trace that does not give the files that are there is refused."""
    records = recorded(at, f"open({at.database!r}, 'wb', buffering=0).write(b'abc')")
    check_whole(records, at.folder)
    Path(at.database).write_bytes(b"abd")
    with pytest.raises(BrokenTraceError):
        check_whole(records, at.folder)


def test_a_process_that_kills_itself_leaves_a_whole_trace(at: recorder.Recorder) -> None:
    """A kill among writing threads cuts no operation from its record: the lock is held by whoever kills."""
    records = recorded(
        at,
        f"""
        import signal, threading
        fds = [os.open({at.database!r} + str(n), os.O_CREAT | os.O_RDWR) for n in range(4)]
        ready = threading.Barrier(5)
        def write(fd):
            ready.wait()
            while True: os.write(fd, bytes(1_000_000))
        for fd in fds: threading.Thread(target=write, args=(fd,), daemon=True).start()
        ready.wait()
        while sum(os.fstat(fd).st_size for fd in fds) < 20_000_000: pass
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    assert kinds(records).count("W") > 19
    check_whole(records, at.folder)


def test_a_half_written_record_is_left_out(at: recorder.Recorder) -> None:
    """Whoever is killed in the middle of a record takes only that one with him."""
    whole = recorded(
        at, f"fd = os.open({at.database!r}, os.O_CREAT | os.O_RDWR); [os.pwrite(fd, b'x', n) for n in 'abc'.encode()]"
    )
    log = Path(at.log).read_bytes()
    ends = [log.index(b"WCUT", 1), *(len(log) - left for left in (1, 20, 40))]
    for end in ends[1:]:
        Path(at.log).write_bytes(log[:end])
        assert read(at.log) == whole[:-1]
        Path(at.log).write_bytes(log[:end] + log)
        assert read(at.log) == whole[:-1] + whole


def test_a_failed_sync_is_reported_once_a_descriptor(at: recorder.Recorder) -> None:
    """As the kernel does it: each descriptor that was open hears of it once, one opened later never."""
    control = recorder.Control(at.control)
    control.fail_sync(2)
    control.close()
    records = recorded(
        at,
        f"""
        path = {at.database!r} + "-wal"
        def sync(fd):
            try: os.fdatasync(fd)
            except OSError as error: return error.errno
        one, two = os.open(path, os.O_CREAT | os.O_RDWR), os.open(path, os.O_RDWR)
        said = [sync(one), sync(one), sync(one), sync(two), sync(two), sync(os.open(path, os.O_RDWR))]
        os.write(os.open(os.environ["POWERCUT_TOLD"], os.O_WRONLY), json.dumps(said).encode())
        """,
    )
    assert kinds(records) == "C" + "BE" + "BG" + "BE" + "BF" + "BE" + "BE" + "N"
    assert json.loads(records[-1].data) == [None, errno.EIO, None, errno.EIO, None, None]


# --- the replayer -----------------------------------------------------------------------------------------------


def disk_after(*steps: tuple[str, int, bytes]) -> Disk:
    """A disk on which file 1, named f and synced with its folder, was then written: (kind, at, data)."""
    disk = Disk()
    first = (("C", 1, 0, b"f"), ("B", FOLDER, 900, b""), ("E", FOLDER, 900, b""))
    rest = ((kind, 1, at, data) for kind, at, data in steps)
    for number, (kind, file, at, data) in enumerate((*first, *rest)):
        disk.apply(number, Record(kind, 0, file, at, data))
    return disk


def left(disk: Disk, way: str, seed: int = 0) -> dict[str, bytes]:
    chance = Random(seed)  # noqa: S311 - to be repeated
    return {name: content.read() for name, content in contents(WAYS[way](disk, chance)).items()}


def test_a_sync_covers_what_came_before_its_begin() -> None:
    """What is written during a sync is not durable when it ends."""
    disk = disk_after(("W", 0, b"old"), ("B", 1, b""), ("W", 0, b"new"), ("E", 1, b""))
    assert left(disk, "lost") == {"f": b"old"}
    assert left(disk, "kept") == {"f": b"new"}


def test_a_failed_sync_dooms_what_it_would_have_covered() -> None:
    """No later sync makes it durable, unless it is written again; also where another descriptor hears of no failure."""
    doomed = (("W", 0, b"abcd"), ("B", 1, b""), ("G", 1, b""), ("W", 2, b"Z"), ("B", 2, b""), ("E", 2, b""))
    disk = disk_after(*doomed)
    assert left(disk, "lost") == {"f": b"\0\0Z"}
    assert left(disk, "kept") == {"f": b"abZd"}
    assert left(disk_after(*doomed, ("W", 0, b"again"), ("B", 3, b""), ("E", 3, b"")), "lost") == {"f": b"again"}


def test_a_cut_file_that_grows_again_has_zeros_there() -> None:
    """Neither durable nor written bytes come back from beyond a truncation."""
    written = (("W", 0, b"a" * 10_000), ("B", 1, b""), ("E", 1, b""), ("W", 5_000, b"b" * 10_000))
    disk = disk_after(*written, ("T", 4_000, b""), ("W", 12_000, b"c"))
    assert left(disk, "kept") == {"f": b"a" * 4_000 + bytes(8_000) + b"c"}
    assert left(disk, "lost") == {"f": b"a" * 10_000}


def test_names_last_once_the_folder_is_synced() -> None:
    """Until then a new file may have no name, and a removed one may be back, with what was durable of it."""
    disk = disk_after(("W", 0, b"x"), ("B", 1, b""), ("E", 1, b""), ("U", 0, b"f"), ("C", 0, b"f"), ("W", 0, b"y"))
    assert left(disk, "lost") == {"f": b"x"}
    assert left(disk, "kept") == {"f": b"y"}
    disk.apply(100, Record("B", 0, FOLDER, 5, b""))
    disk.apply(101, Record("E", 0, FOLDER, 5, b""))
    assert left(disk, "lost") == {"f": b""}


def test_torn_writes_keep_whole_sectors() -> None:
    """Of a torn write each sector of 512 bytes is old or new as a whole, at whatever offset it begins."""
    disk = disk_after(("W", 0, bytes(4_096)), ("B", 1, b""), ("E", 1, b""), ("W", 100, b"x" * 3_000))
    seen = set()
    for seed in range(40):
        sectors = left(disk, "torn", seed)["f"]
        parts = [sectors[max(at, 100) : min(at + 512, 3_100)] for at in range(0, 3_100, 512)]
        assert all(len(set(part)) == 1 for part in parts)
        seen.add(tuple(part[0] for part in parts))
    assert len(seen) > 20


# --- the judge --------------------------------------------------------------------------------------------------

TOKEN = (1 << 40) + 5


def told(*messages: list[object]) -> Told:
    all_of_it = Told()
    for message in messages:
        all_of_it.apply(json.dumps(message).encode())
    return all_of_it


def verdict(told: Told, status: int, token: int = TOKEN, result: str | None = None, floor: int = 1 << 40) -> int:
    return len(list(told.lost(Found({"t": Row(token, (status, result))}, floor))))


GRANTED: list[object] = ["granted", "t", TOKEN, "hold"]
ENTERED: list[object] = ["entered", "t", TOKEN, "hold"]
ENDING: list[object] = ["ending", "t", TOKEN, Status.SUCCEEDED, "1"]
ENDED: list[object] = ["ended", "t", TOKEN, Status.SUCCEEDED, "1"]
FAILING: list[object] = ["ending", "t", TOKEN, Status.FAILED, None]


def test_a_claim_under_hold_must_be_there() -> None:
    """It may be running, unknown, or ended as its owner said before; never gone, claimable, or an older claim."""
    claimed = told(GRANTED, ENTERED)
    assert not verdict(claimed, Status.RUNNING)
    assert not verdict(claimed, Status.UNKNOWN)
    assert verdict(claimed, Status.PENDING)
    assert verdict(claimed, Status.FAILED)
    assert verdict(claimed, Status.RUNNING, TOKEN - 1)
    assert list(claimed.lost(Found({}, 1 << 40)))
    assert not verdict(told(GRANTED, ENTERED, FAILING), Status.FAILED)


def test_a_claim_under_rerun_may_be_lost() -> None:
    """But not its acknowledged end; and its token must not come back."""
    rerun = told(["granted", "t", TOKEN, "rerun"])
    assert not list(rerun.lost(Found({}, 1 << 40)))
    assert list(rerun.lost(Found({}, 0)))
    assert list(told(["granted", "t", TOKEN, "rerun"], ENDING, ENDED).lost(Found({}, 1 << 40)))


def test_an_acknowledged_success_is_final() -> None:
    """Same status, token and result, whatever else was announced."""
    ended = told(GRANTED, ENTERED, FAILING, ENDING, ENDED)
    assert not verdict(ended, Status.SUCCEEDED, result="1")
    assert verdict(ended, Status.SUCCEEDED, result="2")
    assert verdict(ended, Status.FAILED)
    assert verdict(ended, Status.RUNNING)
    assert verdict(ended, Status.RUNNING, TOKEN + 1)


KEPT: list[object] = ["granted", "t", TOKEN, "kept"]
STEPPING: list[object] = ["stepping", "t", "first", '"1"']
STEPPED: list[object] = ["stepped", "t", "first", '"1"']


def test_a_claim_that_keeps_its_arguments_must_be_there() -> None:
    """Under rerun as well, since no caller stands for it who would come again."""
    assert list(told(KEPT).lost(Found({}, 1 << 40)))
    assert not verdict(told(KEPT), Status.RUNNING)


def test_a_step_that_was_told_must_be_there() -> None:
    """With what it gave; nothing is owed of one that nobody was told, but it must be what its body said."""
    floor = 1 << 40
    none, right, wrong = (
        Found({}, floor, "", steps) for steps in ({}, {("t", "first"): '"1"'}, {("t", "first"): '"2"'})
    )
    assert [len(list(told(STEPPING, STEPPED).lost(found))) for found in (none, right, wrong)] == [1, 0, 1]
    assert [len(list(told(STEPPING).lost(found))) for found in (none, right, wrong)] == [0, 0, 0]
    assert [len(list(told(STEPPING).invented(found))) for found in (none, right, wrong)] == [0, 0, 1]


def test_steps_that_need_no_cut_are_found_as_well() -> None:
    """One that is entered again, and one that gives what no body said, or something else than before."""
    another: list[object] = ["stepped", "t", "first", '"2"']
    assert not told(STEPPING, STEPPING, STEPPED, STEPPED).problems
    assert told(STEPPING, STEPPED, STEPPING).problems
    assert told(STEPPED).problems
    assert told(STEPPING, ["stepping", "t", "first", '"2"'], STEPPED, another).problems


ARGUMENTS = '{"task":"k1"}'
BESIDE: dict[str, tuple[int, dict[str, str], dict[tuple[str, str], str], str]] = {
    "running, with its arguments": (Status.RUNNING, {"k1": ARGUMENTS}, {("k1", "first"): "1"}, ""),
    "ended, and without": (Status.SUCCEEDED, {}, {("k1", "first"): "1"}, ""),
    "ended, and still with": (Status.SUCCEEDED, {"k1": ARGUMENTS}, {}, "keeps"),
    "running, and without": (Status.RUNNING, {}, {}, "gone"),
    "failed, and without": (Status.FAILED, {}, {}, "gone"),
    "running, with another's": (Status.RUNNING, {"k1": '{"task":"k2"}'}, {}, "keeps"),
    "arguments of no task": (Status.SUCCEEDED, {"k2": '{"task":"k2"}'}, {}, "left behind"),
    "steps of no task": (Status.SUCCEEDED, {}, {("k2", "first"): "1"}, "left behind"),
}


@pytest.mark.parametrize(("status", "kept", "steps", "said"), BESIDE.values(), ids=BESIDE.keys())
def test_what_lies_beside_a_row_comes_and_goes_with_it(
    status: int, kept: dict[str, str], steps: dict[tuple[str, str], str], said: str
) -> None:
    """Whatever the cut, an image has the arguments of a task that began and did not end, and of no other."""
    problem = problem_beside({"k1": Row(TOKEN, (status, None))}, {"k1"}, kept, steps)
    assert said in problem
    assert bool(said) == bool(problem)


def test_of_what_was_put_back_before_its_job_nothing_is_kept() -> None:
    """Its row binds nobody, and no attempt counts."""
    assert not problem_beside({"k1": Row(TOKEN, (Status.PENDING, None))}, set(), {}, {})


def test_what_needs_no_cut_is_found_as_well() -> None:
    """A body entered twice under hold, and a token given twice."""
    assert not told(
        GRANTED, ENTERED, FAILING, ["granted", "t", TOKEN + 1, "hold"], ["entered", "t", TOKEN + 1, "hold"]
    ).problems
    assert told(GRANTED, ENTERED, ["granted", "t", TOKEN + 1, "hold"], ["entered", "t", TOKEN + 1, "hold"]).problems
    assert told(GRANTED, GRANTED).problems
