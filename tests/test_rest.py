"""What lay at rest: changed, lost or replaced while nobody had it open, it is refused; whatever is no loss is not."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import Clock, Registry, Status, StoreCorruptError
from idemreg.lockfile import LockFile
from idemreg.sqlite import noted, rest, walindex
from idemreg.sqlite.stamps import EPOCH_BITS
from tests.support import raw
from tests.support.processes import Script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TASKS = 60

# Ends TASKS tasks, and is killed with them in the -wal; some more by a name of their own.
WORKER = """
from idemreg import Registry
registry = Registry(sys.argv[1], durability=sys.argv[3])
for number in range(int(sys.argv[2])): registry.run(f"{sys.argv[4]}:{number}", lambda: number, name="job")
say("done")
wait()
if sys.argv[5] == "close": registry.close()
say("closed")
"""


class LaterBoot(Clock):
    """The machine was booted anew."""

    def boot_id(self) -> str:
        return "a later boot"


def work(path: Path, *, name: str = "t", durability: str = "full", then: str = "kill", tasks: int = TASKS) -> None:
    """Another process ends some tasks; it is killed then, or closes the file."""
    with Script(WORKER, path, tasks, durability, name, then) as worker:
        worker.expect("done")
        if then == "close":
            worker.go()
            worker.expect("closed")
        else:
            worker.kill()


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def other_wal(path: Path) -> None:
    other = path.with_name("other.db")
    work(other)
    os.replace(beside(other, "-wal"), beside(path, "-wal"))


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 16]))


def flip_wal(share: float) -> Callable[[Path], None]:
    """In its first ``share``, of what is in use."""

    def change(path: Path) -> None:
        flip(beside(path, "-wal"), int(share * (32 + TASKS * 2 * 2_072)))

    return change


def replace_database(path: Path) -> None:
    subprocess.run(["cp", path, beside(path, ".new")], check=True)
    beside(path, ".new").rename(path)


# In this boot or a later one: by the content of the -wal.
BY_CONTENT: dict[str, Callable[[Path], object]] = {
    "a bit of the -wal's header": lambda path: flip(beside(path, "-wal"), 9),
    "a bit of its salts": lambda path: flip(beside(path, "-wal"), 18),
    "a bit of its magic": lambda path: flip(beside(path, "-wal"), 0),
    "a bit of its first frame": lambda path: flip(beside(path, "-wal"), 500),
    "a bit in its middle": flip_wal(0.5),
    "a bit near its end": flip_wal(0.95),
    "the -wal cut": lambda path: os.truncate(beside(path, "-wal"), 50_000),
    "the database replaced under its -wal": replace_database,
}

# In this boot: by the times of the database, which was not written since.
BY_TIMES: dict[str, Callable[[Path], object]] = {
    "the -wal deleted": lambda path: beside(path, "-wal").unlink(),
    "the -wal emptied": lambda path: os.truncate(beside(path, "-wal"), 0),
    "the -wal of another registry": other_wal,
}

LOSSES = {**BY_CONTENT, **BY_TIMES}


def refuse(path: Path, **options: Any) -> StoreCorruptError:
    """Refused, as often as it is tried, and the same by the next; and nothing is changed by it."""
    with Registry(path, **options) as registry:
        for _ in range(2):
            with pytest.raises(StoreCorruptError) as error:
                registry.run("t:0", lambda: pytest.fail("ran again"), name="job")
    assert error.value.hint
    return error.value


def check_all(path: Path, *names: str, **options: Any) -> None:
    """Each task that was ended is replayed."""
    with Registry(path, **options) as registry:
        for name in names:
            for number in range(TASKS):
                outcome = registry.run(f"{name}:{number}", lambda: pytest.fail("ran again"), name="job")
                assert outcome.replayed
                assert outcome.result == number


@pytest.mark.parametrize("what", LOSSES)
def test_what_was_lost_at_rest_is_noticed(path: Path, what: str) -> None:
    """Acknowledged tasks are in the -wal of a killed process, which is damaged then: nothing runs on its word."""
    work(path)
    LOSSES[what](path)
    refuse(path)


@pytest.mark.parametrize("what", BY_CONTENT)
def test_also_after_a_reboot(path: Path, what: str) -> None:
    """What is told by content is told in every boot."""
    work(path)
    BY_CONTENT[what](path)
    refuse(path, clock=LaterBoot())


@pytest.mark.parametrize("what", LOSSES)
def test_also_behind_checkpoints_and_comings_and_goings(path: Path, what: str) -> None:
    """The files have been closed, opened and moved before; what counts is how they were left last."""
    work(path, name="a", then="close")
    with Registry(path) as registry:
        registry.checkpoint("RESTART")
        registry.run("b", lambda: 1)
        registry.checkpoint("TRUNCATE")
    work(path)
    LOSSES[what](path)
    refuse(path)


def test_an_older_wal_is_refused(path: Path) -> None:
    """A copy of the -wal that was over before another was synced would undo what came after it."""
    work(path, name="a")
    older = path.with_name("older")
    shutil.copy(beside(path, "-wal"), older)
    with Registry(path) as registry:
        registry.checkpoint("RESTART")
        registry.run("b", lambda: 1)
        registry.checkpoint("TRUNCATE")
    work(path, name="t", then="close")
    assert not beside(path, "-wal").exists()
    shutil.copy(older, beside(path, "-wal"))
    error = refuse(path, clock=LaterBoot())
    assert "is an older one" in error.message
    beside(path, "-wal").unlink()
    check_all(path, "a", "t")


def test_a_wal_is_over_once_the_next_has_frames(path: Path) -> None:
    """SQLite tells of new salts before it writes them: synced in between, the -wal there is the old one yet."""

    def header(salts: bytes, frames: int) -> bytes:
        return noted._INDEX.pack(1, 2_048, frames, 0, bytes(8), salts)

    first, second, third, fourth = b"the 1st.", b"the 2nd.", b"the 3rd.", b"the 4th."
    Registry(path).open().close()
    lock_file = LockFile(f"{path}-lock").open()
    try:
        noted.bury(lock_file, header(first, 7), header(second, 0))
        noted.bury(lock_file, header(second, 0), header(third, 0))
        assert not rest._ring(lock_file)
        noted.bury(lock_file, header(third, 0), header(third, 1))
        assert rest._ring(lock_file) == {first}
        noted.bury(lock_file, header(third, 9), header(first, 2))
        assert rest._ring(lock_file) == {first, third}
        noted.bury(lock_file, header(fourth, 2), header(second, 0))
        noted.bury(lock_file, header(second, 0), header(fourth, 3))
        assert rest._ring(lock_file) == {first, third}  # it goes on, since nothing was written behind it
        noted.bury(lock_file, header(fourth, 3), header(second, 1))
        assert rest._ring(lock_file) == {first, third, fourth}
        noted.bury(lock_file, header(second, 1), header(first, 0))
        for number in range(6):  # whichever a cut of the power may have left of it
            os.pwrite(lock_file.fd, number.to_bytes(8, "little"), noted.RING_AT)
            assert second not in rest._ring(lock_file)
    finally:
        lock_file.close()


# Its disk is full at the first frame of a new -wal. SQLite has told of that one's salts already, and a reader syncs.
NOTHING_WRITTEN = """
import resource
from idemreg import Registry
from idemreg.errors import IdemregError
registry = Registry(sys.argv[1])
registry.run("a", lambda: 1, name="job")
registry.checkpoint("RESTART")
before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
try: registry.run("b", lambda: 1, name="job")
except IdemregError as error: failed = error
resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
registry.get("a")
say(failed.code)
wait()
"""


def test_a_wal_that_goes_on_behind_a_restart_that_failed_is_no_older_one(path: Path) -> None:
    """Nothing was written under the new salts; killed then, SQLite goes on with the -wal that lies there."""
    with Script(NOTHING_WRITTEN, path) as worker:
        worker.expect("store")
        worker.kill()
    work(path)
    check_all(path, "t")


def test_an_older_wal_is_refused_also_behind_a_restart_that_wrote_nothing(path: Path) -> None:
    """Its end is noted with the first commit of the next."""
    with Registry(path) as registry:
        registry.run("a", lambda: 1, name="job")
        older = beside(path, "-wal").read_bytes()
        registry.checkpoint("RESTART")
        registry.get("a")
        registry.run("t", lambda: 2, name="job")
    assert not beside(path, "-wal").exists()
    beside(path, "-wal").write_bytes(older)
    with Registry(path, clock=LaterBoot()) as registry, pytest.raises(StoreCorruptError, match="older"):
        registry.run("t", lambda: pytest.fail("ran again"), name="job")


def test_an_older_wal_that_was_written_on_is_refused(path: Path) -> None:
    """As long as the one that was lost, and of the same salts: the checksum over its frames is another."""
    work(path, name="a", tasks=5)
    older = path.with_name("older")
    shutil.copy(beside(path, "-wal"), older)
    work(path, name="b", tasks=5)
    beside(path, "-shm").unlink()
    shutil.copy(older, beside(path, "-wal"))
    killed_shell(path, "CREATE TABLE x(y)", *["INSERT INTO x VALUES (1)"] * 60)
    assert "was changed" in refuse(path).message


def test_a_database_replaced_under_its_wal_says_what_to_do(path: Path) -> None:
    """Whoever puts a backup in place and forgets the -wal is told so; without it the backup is what counts."""
    work(path, name="a", then="close")
    backup = path.with_name("backup.db")
    with Registry(path) as registry:
        registry.backup(backup)
    work(path)
    backup.rename(path)
    error = refuse(path)
    assert f"remove {path}-wal" in error.hint
    beside(path, "-wal").unlink()
    beside(path, "-shm").unlink()
    check_all(path, "a")


def test_what_is_lost_can_be_given_up(path: Path) -> None:
    """As the hint says: without the lock file the registry opens with what is left, under tokens of a new epoch."""
    work(path, name="a", then="close")
    work(path)
    with Registry(path) as registry:
        epoch = registry.store.floor() >> EPOCH_BITS
    work(path, name="u")
    os.truncate(beside(path, "-wal"), 50_000)
    assert "delete the lock file" in refuse(path).hint
    beside(path, "-lock").unlink()
    check_all(path, "a", "t")
    with Registry(path) as registry:
        assert registry.store.floor() >> EPOCH_BITS > epoch


# --- no loss --------------------------------------------------------------------------------------------------------


SHELL = """
import apsw
connection = apsw.Connection(sys.argv[1])
for statement in sys.argv[2:]: connection.execute(statement).fetchall()
"""


def shell(path: Path, *statements: str) -> None:
    """Another program's work; it closes the file as SQLite does."""
    with Script(f"{SHELL}connection.close(); say('done')", path, *statements) as other:
        other.expect("done")


def killed_shell(path: Path, *statements: str) -> None:
    with Script(f"{SHELL}say('done'); wait()", path, *statements) as other:
        other.expect("done")
        other.kill()


def move(path: Path, *suffixes: str) -> None:
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    for suffix in suffixes:
        if beside(path, suffix).exists():
            beside(path, suffix).rename(elsewhere / f"{path.name}{suffix}")
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    for file in elsewhere.iterdir():
        file.rename(path.parent / file.name)


def copy_folder(path: Path) -> None:
    copied = path.parent.with_name("copied")
    subprocess.run(["cp", "-a", path.parent, copied], check=True)
    shutil.rmtree(path.parent)
    copied.rename(path.parent)


HARMLESS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a shell that looks": lambda path: shell(path, "SELECT count(*) FROM idempotent_log"),
    "a shell that writes": lambda path: shell(path, "CREATE TABLE x(y)", "INSERT INTO x VALUES (1)"),
    "a shell that checkpoints": lambda path: shell(path, "PRAGMA wal_checkpoint(TRUNCATE)"),
    "a shell that restarts the -wal": lambda path: shell(path, "PRAGMA wal_checkpoint(RESTART)", "CREATE TABLE x(y)"),
    "a shell that is killed": lambda path: killed_shell(path, "CREATE TABLE x(y)"),
    "a shell that is killed behind a checkpoint": lambda path: killed_shell(
        path, "PRAGMA wal_checkpoint(TRUNCATE)", "CREATE TABLE x(y)"
    ),
    "a shell that leaves the -wal's mode": lambda path: shell(path, "PRAGMA journal_mode = delete"),
    "a shell that vacuums": lambda path: shell(path, "VACUUM"),
    "other rights": lambda path: path.chmod(0o600),
    "a touch": os.utime,
    "another lock file": lambda path: beside(path, "-lock").unlink(),
    "another place": lambda path: move(path, "", "-wal"),
    "another place, with the lock file": lambda path: move(path, "", "-wal", "-lock"),
    "a copied folder": copy_folder,
    "no index": lambda path: beside(path, "-shm").unlink(missing_ok=True),
    "grown zeros": lambda path: os.truncate(beside(path, "-wal"), 7 * 2**20),
}


@pytest.mark.parametrize("boot", [Clock, LaterBoot])
@pytest.mark.parametrize("then", ["kill", "close"])
@pytest.mark.parametrize("what", HARMLESS)
def test_what_may_happen_at_rest_is_no_alarm(path: Path, what: str, then: str, boot: type[Clock]) -> None:
    """Nothing is lost by it, so nothing is refused, and every task is replayed; nor is there an alarm later."""
    work(path, name="a", then=then)
    work(path, name="t", then=then)
    if not (what == "grown zeros" and then == "close"):
        HARMLESS[what](path)
    check_all(path, "a", "t", clock=boot())
    work(path, name="u", then=then)
    check_all(path, "a", "t", "u", clock=boot())


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_after_a_clean_end_nothing_is_missed(path: Path, suffix: str) -> None:
    """The -wal goes with the last process: that there is none is as it should be."""
    work(path, then="close")
    beside(path, suffix).unlink(missing_ok=True)
    check_all(path, "t")


def test_at_normal_frames_may_go_with_the_power(path: Path) -> None:
    """What was never synced was never promised: a shorter -wal of a registry at normal is no alarm in a later boot."""
    work(path, durability="normal")
    os.truncate(beside(path, "-wal"), 50_000)
    with Registry(path, clock=LaterBoot()) as registry:
        assert 0 < registry.count()[Status.SUCCEEDED] < TASKS


@pytest.mark.parametrize("size", [0, 50_000])
def test_at_normal_nothing_notes_what_the_wal_holds(path: Path, size: int) -> None:
    """Deleted or cut behind a kill it takes ended tasks along, and no error tells of it: the pages for users do."""
    work(path, durability="normal")
    if size:
        os.truncate(beside(path, "-wal"), size)
    else:
        beside(path, "-wal").unlink()
    with Registry(path, durability="normal") as registry:
        assert registry.count().get(Status.SUCCEEDED, 0) < TASKS


@pytest.mark.parametrize("durability", ["normal", "full"])
def test_kills_everywhere_are_no_alarm(path: Path, durability: str) -> None:
    """Killed at each point of a sync and a checkpoint, again and again: the next opens, and nothing is lost."""
    script = """
        from idemreg import Registry, faults
        registry = Registry(sys.argv[1], durability=sys.argv[2])
        registry.open()
        count = 0
        def perhaps():
            global count
            count += 1
            if count > int(sys.argv[4]): os.kill(os.getpid(), signal.SIGKILL)
        for point in ("sync.begun", "sync.done", "sync.published", "claim.committed", "finish.committed"):
            faults.arm(point, perhaps)
        number = 0
        while True:
            registry.run(f"{sys.argv[3]}:{number}", lambda: 1)
            if number % 3 == 2: registry.checkpoint(("PASSIVE", "RESTART", "TRUNCATE")[number // 3 % 3])
            number += 1
    """
    for number in range(12):
        with Script(script, path, durability, number, 3 + number * 2) as worker:
            assert worker.end() == -signal.SIGKILL
    with Registry(path) as registry:
        assert registry.count()[Status.SUCCEEDED] > 12


def test_others_at_work_are_not_at_rest(path: Path) -> None:
    """Whoever opens while another has it open compares nothing: that one's records move on all the time."""
    with Registry(path) as first:
        first.run("a", lambda: 1)
        before = beside(path, "-lock").read_bytes()
        script = "from idemreg import Registry; r = Registry(sys.argv[1]).open(); say('open'); wait()"
        with Script(script, path) as other:
            other.expect("open")
            assert beside(path, "-lock").read_bytes() == before
            other.kill()
        first.run("b", lambda: 1)


# --- suspicion ------------------------------------------------------------------------------------------------------


def restore(path: Path, backup: Path, *, in_place: bool) -> None:
    """As README says; into the same file, or as another one."""
    for suffix in ("-wal", "-shm"):
        beside(path, suffix).unlink(missing_ok=True)
    if in_place:
        subprocess.run(["cp", "--no-preserve=all", backup, path], check=True)
    else:
        shutil.copy(backup, beside(path, ".new"))
        beside(path, ".new").rename(path)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("then", ["kill", "close"])
def test_tokens_do_not_return_with_an_older_copy(path: Path, tmp_path: Path, then: str, *, in_place: bool) -> None:
    """A backup in place of the file has forgotten what ran; the tokens given since, over boots, are not given again."""
    backup = tmp_path / "backup.db"
    with Registry(path) as registry:
        registry.run("t", lambda: 1)
        registry.backup(backup)
    tokens = []
    for number, clock in enumerate((Clock(), LaterBoot(), Clock())):
        with Registry(path, clock=clock) as registry:
            tokens.append(registry.run(f"u:{number}", lambda: 1).token)
            tokens.append(registry.run("v", lambda: 1, on_duplicate="return").token)
    work(path, name="w", then=then)
    with Registry(path) as registry:
        tokens += [task.token for task in registry.tasks()]
    restore(path, backup, in_place=in_place)
    with Registry(path) as registry:
        assert registry.get("v") is None
        assert registry.run("v", lambda: 1).token > max(tokens)
    restore(path, backup, in_place=in_place)
    with Registry(path) as registry:
        again = registry.run("v", lambda: 1).token
    assert again >> EPOCH_BITS > max(tokens) >> EPOCH_BITS


def test_a_file_that_is_as_it_was_left_keeps_its_epoch(path: Path) -> None:
    """Openings, closings, kills and checkpoints of our own raise nothing."""
    work(path, name="a", then="close")
    with Registry(path) as registry:
        epoch = registry.store.floor() >> EPOCH_BITS
        registry.checkpoint("TRUNCATE")
    work(path, name="b")
    work(path, name="c", then="close")
    with Registry(path) as registry:
        assert registry.store.floor() >> EPOCH_BITS == epoch


def swap_pages(path: Path) -> None:
    """Two leaves of a tree change places."""
    size = 2_048
    data = bytearray(path.read_bytes())
    leaves = [at for at in range(size, len(data), size) if data[at] in (10, 13)][-6:]
    first, second = leaves[0], leaves[-1]
    data[first : first + size], data[second : second + size] = data[second : second + size], data[first : first + size]
    with path.open("r+b") as file:
        file.write(data)


def test_a_file_that_somebody_changed_is_looked_at_as_a_whole(path: Path) -> None:
    """Pages that changed places at rest: the file is not as it was noted, and SQLite's own check refuses it."""
    work(path, name="t", then="close", tasks=300)
    swap_pages(path)
    with Registry(path) as registry, pytest.raises(StoreCorruptError, match="damaged"):
        registry.open()


@pytest.mark.parametrize(
    "change",
    [
        "idempotent_serial SET mark_us = mark_us - 1",
        "idempotent_step SET result = '7'",
        "idempotent_clock SET accepted_us = 1",
        "idempotent_schedule SET watermark_s = watermark_s + 1",
        "idempotent_lease SET until_stamp = until_stamp + 1",
        "idempotent_argument SET is_command = 1",
        "idempotent_owner SET pid = pid + 1",
    ],
)
def test_so_are_the_rows_that_are_no_tasks(path: Path, change: str) -> None:
    """A row of any table that changed at rest is found by its seal, before somebody decides by it."""
    with Script(OF_EVERY_TABLE, path) as worker:
        worker.expect("done")
        worker.kill()
    with contextlib.closing(raw.connect(path)) as connection:
        connection.execute(f"UPDATE {change}")
        assert connection.changes() == 1
    with Registry(path) as registry, pytest.raises(StoreCorruptError, match=change.split(maxsplit=1)[0]):
        registry.open()


OF_EVERY_TABLE = """
from idemreg import Registry
registry = Registry(sys.argv[1])
registry.scheduled("job", cron="* * * * *")(print)
registry.run_due()
next(registry.serials("a"))
claim = registry.claim("t", lease=3_600)
claim.run_step("s", lambda: 1)
@registry.idempotent("u", recover=True)
def job():
    say("done")
    wait()
job()
"""


def test_a_large_file_is_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check takes time by the size of the file, and is left out above a bound."""
    work(path, name="t", then="close", tasks=300)
    swap_pages(path)
    monkeypatch.setattr(rest, "CHECKED_BYTES", 4_096)
    with Registry(path) as registry:
        registry.open()


def test_without_an_index_nothing_is_compared(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SQLite does not show its index there are no records of syncs either."""
    monkeypatch.setattr(walindex, "VERSION", 1)
    for replayed in (False, True):
        with Registry(path) as registry:
            assert registry.run("t", lambda: 1, name="job").replayed is replayed


def test_a_lock_file_cut_short_at_rest(path: Path) -> None:
    """A typed error, which says what to do."""
    work(path, then="close")
    os.truncate(beside(path, "-lock"), 100)
    assert "cut short" in refuse(path).message


def test_a_wal_that_hides_what_is_in_the_database(path: Path) -> None:
    """That of another registry, whose lock file nobody asks, beside a registry that was closed in order."""
    other = path.with_name("other.db")
    work(other, name="u", then="close", tasks=300)
    work(other, name="v")
    work(path, name="t", then="close", tasks=300)
    shutil.copy(beside(other, "-wal"), beside(path, "-wal"))
    for _ in range(2):
        assert refuse(path).hint
    beside(path, "-wal").unlink()
    check_all(path, "t")


def test_an_older_wal_that_no_sync_knows_hides_nothing_unseen(path: Path) -> None:
    """At normal nothing is noted of it. Each of its pages is sound, and the database has tasks that it has not."""
    work(path, name="a", then="close", durability="normal", tasks=1)
    work(path, name="v", durability="normal", tasks=1)
    beside(path, "-wal").rename(beside(path, ".older"))
    work(path, name="u", then="close", durability="normal", tasks=1)
    beside(path, ".older").rename(beside(path, "-wal"))
    assert "hides what is in the database" in refuse(path).message
    beside(path, "-wal").unlink()
    with Registry(path) as registry:
        assert [task.task_id for task in registry.tasks()] == ["a:0", "u:0"]


def test_a_purge_that_was_killed_hides_nothing(path: Path) -> None:
    """The first that is in a -wal of which no sync knows: rows went, and the token floor says so, a second time too."""
    work(path, name="t", then="close", durability="normal")
    source = """
    from idemreg import Registry
    registry = Registry(sys.argv[1], durability="normal")
    registry.purge(prefix=sys.argv[2], older_than=0)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    for prefix in ("t:1", "t:2"):
        with Script(source, path, prefix) as worker:
            assert worker.end() == -signal.SIGKILL
        with Registry(path) as registry:
            assert registry.get(prefix) is None
            assert registry.get("t:3") is not None


def test_an_epoch_that_was_never_given_is_refused(path: Path) -> None:
    """A flip in the lock file's note of the highest epoch would use up the epochs of the registry, which are few."""
    work(path, then="close")
    flip(beside(path, "-lock"), 178)
    assert "never given" in refuse(path).message
    flip(beside(path, "-lock"), 178)
    check_all(path, "t")


@pytest.mark.parametrize("before", ["none", "the one before"])
def test_an_epoch_that_was_written_by_half_is_written_anew(before: str, path: Path) -> None:
    """The disk failed as the lock file was told of it, and all were gone then: nothing of it was lost."""
    work(path, then="close")
    lock = beside(path, "-lock")
    whole = lock.read_bytes()[176:192]
    epoch = int.from_bytes(whole[:8], "little")
    former = (epoch - 1).to_bytes(8, "little") + (~(epoch - 1) & 2**64 - 1).to_bytes(8, "little")
    for size in range(1, 16):
        with lock.open("r+b") as file:
            file.seek(176)
            file.write(whole[:size] + (bytes(16) if before == "none" else former)[size:])
        check_all(path, "t")
        assert lock.read_bytes()[176:192] == whole


@pytest.mark.parametrize("size", range(4, 48, 4))
def test_a_sync_that_was_noted_by_half_says_nothing(size: int, path: Path) -> None:
    """The disk failed as the lock file was told of it: by what is left of the note nothing was lost."""
    with Registry(path) as registry:
        for number in range(TASKS):
            registry.run(f"t:{number}", functools.partial(int, number), name="job")
        noted = beside(path, "-lock").read_bytes()[64:112]
    assert any(noted)
    with beside(path, "-lock").open("r+b") as file:
        file.seek(64)
        file.write(noted[:size] + bytes(48 - size))
    check_all(path, "t")


def test_text_that_is_none_is_damage(path: Path) -> None:
    """A flip at rest leaves bytes that are no UTF-8: a typed error of the opening, and no other."""
    text = "a result that is found in the file"
    with Registry(path) as registry:
        registry.run("t:0", lambda: text, name="job")
    at = path.read_bytes().index(text.encode())
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff")
    assert "UTF-8" in refuse(path).message


def test_a_status_that_never_was_is_damage(path: Path) -> None:
    """Also where tasks are only counted."""
    with Registry(path) as registry:
        registry.run("t:0", lambda: 0, name="job")
        with raw.connect(path) as connection:
            connection.pragma("ignore_check_constraints", value=True)
            connection.execute("UPDATE idempotent_log SET status = 52")
        with pytest.raises(StoreCorruptError, match="no idemreg writes"):
            registry.count()


def test_a_lock_file_cut_at_work_is_told_by_a_typed_error(path: Path) -> None:
    """Whatever of it is left, also where the ring is cut off and the next -wal is synced."""
    for length in (463, 200, 180, 100):
        with Registry(path) as registry:
            registry.run(f"a:{length}", lambda: 0, name="job")
            registry.checkpoint("RESTART")
            whole = beside(path, "-lock").read_bytes()
            os.truncate(beside(path, "-lock"), length)
            with pytest.raises(StoreCorruptError):
                registry.run(f"b:{length}", lambda: pytest.fail("ran"), name="job")
            with contextlib.suppress(StoreCorruptError):
                registry.close()
        with beside(path, "-lock").open("r+b") as file:
            file.write(whole)
