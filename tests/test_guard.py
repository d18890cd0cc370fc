"""The guard: no job begins on a claim that is stored in files which are not those at their names any more."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import apsw
import pytest

from idemreg import (
    AsyncRegistry,
    Claim,
    FinishNotRecordedError,
    Registry,
    Status,
    StoreCorruptError,
    StoreError,
    TaskRunningError,
    current_claim,
)
from idemreg.command import run_command
from idemreg.lockfile import SIZE
from idemreg.sqlite import guard
from idemreg.sqlite.making import PAGE_BYTES
from tests.support.descriptors import left_open
from tests.support.processes import Script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.database import Database


def database(registry: Registry) -> Database:
    opened = cast("SqliteStore", registry.store)._opening.current
    assert opened is not None
    return opened.database


def replace(name: str) -> None:
    """Another file of the same content takes its place. By `cp`, since this process must not open the database."""
    subprocess.run(["cp", name, f"{name}.new"], check=True)
    os.rename(f"{name}.new", name)


def move_folder(name: str) -> None:
    folder = os.path.dirname(name)
    os.rename(folder, f"{folder}.elsewhere")
    os.mkdir(folder)


# What befalls the database and its -wal: nothing may be written any more.
LOSSES: dict[str, Callable[[str], None]] = {
    "database deleted": os.unlink,
    "database replaced": replace,
    "database renamed": lambda name: os.rename(name, f"{name}.old"),
    "database emptied": lambda name: os.truncate(name, 0),
    "database cut": lambda name: os.truncate(name, os.stat(name).st_size // 2),
    "database cut to a page": lambda name: os.truncate(name, PAGE_BYTES),
    "wal deleted": lambda name: os.unlink(f"{name}-wal"),
    "wal replaced": lambda name: replace(f"{name}-wal"),
    "wal emptied": lambda name: os.truncate(f"{name}-wal", 0),
    "wal cut": lambda name: os.truncate(f"{name}-wal", 100),
    "index deleted": lambda name: os.unlink(f"{name}-shm"),
    "folder moved": move_folder,
}

# What befalls the lock file alone: what was stored is put back.
LOCK_LOSSES: dict[str, Callable[[str], None]] = {
    "lock file deleted": lambda name: os.unlink(f"{name}-lock"),
    "lock file replaced": lambda name: replace(f"{name}-lock"),
    "lock file cut": lambda name: os.truncate(f"{name}-lock", SIZE - 1),
}

ALL = {**LOSSES, **LOCK_LOSSES}


def begun(*_: object) -> None:
    pytest.fail("the job began")


def by_decorator(registry: Registry) -> None:
    registry.idempotent("t")(begun)()


def by_claim(registry: Registry) -> None:
    with registry.claim("t"):
        begun()


def by_claim_many(registry: Registry) -> None:
    registry.claim_many([("t", None), ("u", None)])
    begun()


def by_consume(registry: Registry) -> None:
    (handled,) = registry.consume(["t"], begun, task_id=str)
    assert handled.error is not None
    raise handled.error


def by_command(registry: Registry) -> None:
    run_command(registry, "t", [sys.executable, "-c", "print('began')"])
    begun()


async def coroutines(registry: Registry) -> None:
    asynchronous = AsyncRegistry.of(registry)
    results = await asyncio.gather(
        *(asynchronous.run(f"t:{number}", begun) for number in range(3)), return_exceptions=True
    )
    assert {type(result) for result in results} <= {guard.FilesReplacedError}
    raise cast("BaseException", results[0])


async def awaited_claim(registry: Registry) -> None:
    async with AsyncRegistry.of(registry).claim("t"):
        begun()


WAYS: dict[str, Callable[[Registry], Any]] = {
    "run": lambda registry: registry.run("t", begun),
    "rerun": lambda registry: registry.run("t", begun, on_crash="rerun"),
    "decorator": by_decorator,
    "claim": by_claim,
    "claim_many": by_claim_many,
    "consume": by_consume,
    "command": by_command,
    "coroutines": lambda registry: asyncio.run(coroutines(registry)),
    "await claim": lambda registry: asyncio.run(awaited_claim(registry)),
}


def befalls(registry: Registry, happens: Callable[[], object]) -> None:
    """It happens once, behind the commit of the next claim, right before the files are looked at."""
    opened = database(registry)
    look = opened.check_files

    def happen() -> None:
        opened.check_files = look  # type: ignore[method-assign]
        happens()
        look()

    opened.check_files = happen  # type: ignore[method-assign]


@pytest.fixture(params=["normal", "full"])
def at_work(request: pytest.FixtureRequest, path: Path, open_registry: Callable[..., Registry]) -> Registry:
    """A registry whose file has a few tasks, a few pages of them in the -wal only."""
    registry = open_registry(durability=request.param)
    for number in range(40):
        registry.run(f"done:{number}", lambda: "x" * 200)
    registry.checkpoint("TRUNCATE")
    registry.run("last", lambda: "x" * 30_000, name="last")
    return registry


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["database deleted", "wal deleted", "lock file deleted"])
def test_no_way_in_enters_a_job_whose_claim_is_nowhere(at_work: Registry, path: Path, what: str, way: str) -> None:
    """However it was claimed: the file went between the commit and the job, so the job does not begin."""
    befalls(at_work, lambda: ALL[what](str(path)))
    with pytest.raises(StoreCorruptError, match=r"deleted, moved or replaced") as error:
        WAYS[way](at_work)
    assert "Stop every process" in error.value.hint
    assert error.value.exit_code == StoreError.exit_code
    assert not error.value.retryable


@pytest.mark.parametrize("what", ALL)
def test_no_job_begins_whatever_became_of_a_file(at_work: Registry, path: Path, what: str) -> None:
    """Deleted, replaced, renamed, cut or moved away: each is seen behind the commit and before the job."""
    befalls(at_work, lambda: ALL[what](str(path)))
    with pytest.raises(StoreCorruptError, match=r"while this process has the registry open"):
        at_work.run("t", begun)


@pytest.mark.parametrize("what", [what for what in ALL if what != "folder moved"])
def test_what_happened_before_the_claim_is_seen_as_well(at_work: Registry, path: Path, what: str) -> None:
    """The commit goes into a file that was gone already, or gives one that was cut its size back."""
    ALL[what](str(path))
    with pytest.raises(StoreError):
        at_work.run("t", begun)


@pytest.mark.parametrize("way", WAYS)
def test_a_wal_cut_by_less_than_a_block_is_not_written_to(at_work: Registry, path: Path, way: str) -> None:
    """The next frame would give it its size back, and leave no hole: only zeros, in rows that had ended."""
    size = cut_a_little(at_work, path)
    with pytest.raises(StoreCorruptError, match=r"cut short"):
        WAYS[way](at_work)
    assert os.stat(f"{path}-wal").st_size == size


def test_nor_is_it_by_a_finish(at_work: Registry, path: Path) -> None:
    """Whose caller keeps the result."""
    claim = at_work.claim("t")
    size = cut_a_little(at_work, path)
    with pytest.raises(FinishNotRecordedError) as lost:
        claim.succeed("mine")
    assert (lost.value.result, os.stat(f"{path}-wal").st_size) == ("mine", size)


@pytest.mark.parametrize("returned", [None, "x" * 5_000], ids=["a failure", "a large result"])
def test_nor_by_an_end_that_is_no_plain_success(at_work: Registry, path: Path, returned: str | None) -> None:
    """Its caller hears that it is not stored, and by no other error."""

    def job() -> str:
        cut_a_little(at_work, path)
        if returned is None:
            raise LookupError
        return returned

    with pytest.raises(FinishNotRecordedError) as lost:
        at_work.run("t", job)
    assert lost.value.result == returned


def test_nor_by_the_end_of_a_batch(at_work: Registry, path: Path) -> None:
    """Each of them is told so."""
    claims = [claim for claim in at_work.claim_many([("t", None), ("u", None)]) if isinstance(claim, Claim)]
    for claim in claims:
        claim.enter()
    cut_a_little(at_work, path)
    ended = at_work.finish_many([(claim, 1) for claim in claims])
    assert [type(one) for one in ended] == [FinishNotRecordedError] * 2


def test_nor_by_the_transaction_of_a_job(at_work: Registry, path: Path) -> None:
    """Which may have been open for long: it is looked at right before its commit."""
    sizes = []

    def job() -> None:
        with current_claim().transaction() as transaction:
            transaction.execute("CREATE TABLE own (n)")
            sizes.append(cut_a_little(at_work, path))

    with pytest.raises(FinishNotRecordedError):
        at_work.run("t", job)
    assert [os.stat(f"{path}-wal").st_size] == sizes


def cut_a_little(registry: Registry, path: Path) -> int:
    index = database(registry).index
    assert index is not None
    os.truncate(f"{path}-wal", index.used_bytes - 100)
    return index.used_bytes - 100


@pytest.mark.parametrize("what", LOSSES)
def test_files_that_are_lost_are_not_written_any_more(at_work: Registry, path: Path, what: str) -> None:
    """What is at the names now is another's. Claims, ends and reads fail until the registry is closed."""
    befalls(at_work, lambda: ALL[what](str(path)))
    with pytest.raises(StoreCorruptError):
        at_work.run("t", begun)
    wal = os.path.getsize(f"{path}-wal") if os.path.exists(f"{path}-wal") else None
    for call in (lambda: at_work.run("u", begun), lambda: at_work.get("t"), lambda: at_work.add("v")):
        with pytest.raises(StoreCorruptError, match="while this process"):
            call()
    if wal is not None:
        assert os.path.getsize(f"{path}-wal") == wal
    at_work.close()
    assert left_open(path) == []


@pytest.mark.parametrize("what", LOCK_LOSSES)
def test_a_claim_is_put_back_where_the_lock_file_went(at_work: Registry, path: Path, what: str) -> None:
    """The database is what it was: the task is as before the claim, and no later claim begins a job either."""
    befalls(at_work, lambda: ALL[what](str(path)))
    for _ in range(2):
        with pytest.raises(StoreCorruptError, match=r"jobs\.db-lock"):
            at_work.run("t", begun)
    if "cut" not in what:
        row = at_work.store.get(["t"], durable=False)[0]
        assert row is not None
        assert row.status is Status.PENDING


def test_a_batch_is_guarded_at_each_task_that_it_enters(at_work: Registry, path: Path) -> None:
    """The files may go long behind the claims of a batch: the next of its jobs does not begin."""
    first, second = at_work.claim_many([("a", None), ("b", None)])
    assert isinstance(first, Claim)
    assert isinstance(second, Claim)
    with first:
        first.result = 1
    os.unlink(path)
    with pytest.raises(StoreCorruptError), second:
        begun()
    second.not_begun()


def test_a_job_that_runs_meanwhile_gets_its_result_back(at_work: Registry, path: Path) -> None:
    """Its end cannot be recorded, and says so with the result attached, once somebody has found the files lost."""

    def job() -> int:
        os.unlink(path)
        with pytest.raises(StoreCorruptError):
            at_work.run("other", begun)
        return 7

    with pytest.raises(FinishNotRecordedError) as error:
        at_work.run("t", job)
    assert error.value.result == 7
    at_work.close()
    assert left_open(path) == []


# --- what is no loss ------------------------------------------------------------------------------------------------


def copy(path: Path) -> None:
    subprocess.run(["cp", "-a", f"{path.parent}/.", f"{path.parent}.copy"], check=True)


def shell(path: Path, *statements: str) -> None:
    """Another program's work on the file; it closes the file as SQLite does."""
    script = """
        import apsw
        connection = apsw.Connection(sys.argv[1])
        for statement in sys.argv[2:]: connection.execute(statement).fetchall()
        say("done")
    """
    with Script(script, path, *statements) as other:
        other.expect("done")


HARMLESS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a second name": lambda path: os.link(path, path.with_name("second.db")),
    "other files": lambda path: path.with_name("notes.txt").write_text("x"),
    "a copy": copy,
    "other rights": lambda path: path.chmod(0o640),
    "checkpoint": lambda path: shell(path, "PRAGMA wal_checkpoint(TRUNCATE)"),
    "restart": lambda path: shell(path, "PRAGMA wal_checkpoint(RESTART)", "CREATE TABLE x(y)"),
    # It had fewer pages than the -wal held for it: so it is larger behind these two. One that becomes smaller is below.
    "vacuum of a grown file": lambda path: shell(
        path, "DELETE FROM idempotent_log WHERE task_id GLOB 'done:*'", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"
    ),
    "vacuum of a grown file, and a table": lambda path: shell(
        path,
        "DELETE FROM idempotent_log WHERE task_id GLOB 'done:*'",
        "VACUUM",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "CREATE TABLE x(y)",
        "INSERT INTO x VALUES (randomblob(9000))",
    ),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_others_may_do_is_no_alarm(at_work: Registry, path: Path, what: str) -> None:
    """Backups, second names and SQLite's own ways with the files, by whichever program."""
    for number in range(3):
        befalls(at_work, lambda: HARMLESS[what](path))
        assert at_work.run(f"t:{number}", lambda: 1).result == 1
        if what in ("a second name", "restart", "vacuum of a grown file, and a table"):
            break
    assert at_work.run("later", lambda: 1).result == 1


SMALLER = "DELETE FROM idempotent_log WHERE task_id GLOB 'large:*'", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"
GROWN_AGAIN = "CREATE TABLE x(y)", "INSERT INTO x VALUES (randomblob(9000))"  # in the -wal alone


@pytest.mark.parametrize("then", [(), GROWN_AGAIN], ids=["and no more", "and it grows again"])
def test_a_database_that_another_program_makes_smaller_is_no_alarm(
    at_work: Registry, path: Path, then: tuple[str, ...]
) -> None:
    """It has all that is committed, as the index says; or as its tables do, where the index tells of growth since."""
    for number in range(20):
        at_work.run(f"large:{number}", lambda: "x" * 30_000)
    at_work.checkpoint("TRUNCATE")
    at_work.run("seen", lambda: 1)
    watching, size = database(at_work).guard, path.stat().st_size
    assert watching is not None
    assert watching._index is not None
    assert watching._size == size
    befalls(at_work, lambda: shell(path, *SMALLER, *then))
    assert at_work.run("t", lambda: 1).result == 1
    assert watching._size == path.stat().st_size < size
    assert (watching._index.database_bytes > watching._size) == bool(then)
    assert at_work.run("later", lambda: 1).result == 1


def test_comings_and_goings_of_others_are_no_alarm(at_work: Registry, path: Path) -> None:
    """Processes open, work on, cut and close the file all the time, and none of 2,000 claims is refused for it."""
    script = """
        from idemreg import Registry
        say("there")
        for number in range(60):
            with Registry(sys.argv[1]) as registry:
                registry.run(f"{os.getpid()}:{number}", lambda: 1)
                registry.checkpoint(("PASSIVE", "RESTART", "TRUNCATE")[number % 3])
        say("done")
        wait()
    """
    with Script(script, path) as one, Script(script, path) as two:
        one.expect("there")
        two.expect("there")
        for number in range(2_000):
            at_work.run(f"here:{number}", lambda: 1, durability="normal")
        one.expect("done")
        two.expect("done")


def test_without_proc_the_names_are_compared_otherwise(
    at_work: Registry, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a place without /proc the inode of the -wal's name is looked at."""

    def no_proc(_path: str) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(os, "readlink", no_proc)
    at_work.run("t", lambda: 1)
    os.unlink(f"{path}-wal")
    with pytest.raises(StoreCorruptError):
        at_work.run("u", begun)


def test_a_descriptor_closed_by_mistake_is_an_error_of_the_store(at_work: Registry) -> None:
    """`os.closerange` takes what the guard looks through: no job begins, and the error is a typed one."""
    watching = database(at_work).guard
    assert watching is not None
    os.close(watching._database)
    try:
        with pytest.raises(StoreCorruptError, match="descriptors were closed"):
            at_work.run("t", begun)
    finally:
        watching._database = -1


def test_nor_is_a_wal_written_whose_descriptor_was_closed(at_work: Registry, path: Path) -> None:
    """Before the first frame: nothing of the claim is in it."""
    watching = database(at_work).guard
    assert watching is not None
    size, wal = os.stat(f"{path}-wal").st_size, watching._wal
    watching._wal = os.dup(wal)
    os.close(watching._wal)
    with pytest.raises(StoreCorruptError, match="descriptors were closed"):
        at_work.run("t", begun)
    assert os.stat(f"{path}-wal").st_size == size


def test_a_registry_whose_descriptors_were_closed_closes_with_a_typed_error(path: Path) -> None:
    """All that it still has is closed, and the next opening of the file works."""
    source = """
        from idemreg import Registry, StoreError
        registry = Registry(sys.argv[1])
        registry.run("t", int)
        os.closerange(3, 2_000)
        try: registry.close()
        except StoreError as error: say("os.closerange" in error.hint)
        say(registry.run("t", int).replayed)
        registry.close()
        say(len(os.listdir("/proc/self/fd")))
    """
    with Script(source, path) as script:
        script.expect("True")
        script.expect("True")
        script.expect("4")  # the streams, and the folder itself
        assert script.end() == 0


def test_looking_drops_no_lock_of_sqlite(path: Path, registry: Registry) -> None:
    """A descriptor that only names the database takes no part in its locks: opened and closed, they are still held."""
    registry.run("t", lambda: 1)
    script = """
        import apsw
        connection = apsw.Connection(sys.argv[1])
        say("there")
        while True:
            wait()
            try: connection.execute("BEGIN IMMEDIATE"); connection.execute("ROLLBACK"); say("free")
            except apsw.BusyError: say("held")
    """
    writer = apsw.Connection(str(path))
    with Script(script, path) as other:
        other.expect("there")
        writer.execute("BEGIN EXCLUSIVE")
        os.close(os.open(path, os.O_PATH))
        os.close(os.open(f"{path}-shm", os.O_PATH))
        other.go()
        other.expect("held")
        os.close(os.open(f"{path}-shm", os.O_RDONLY))  # what a real descriptor does
        other.go()
        other.expect("free")
    writer.close()


def test_a_file_put_back_is_the_file(at_work: Registry, path: Path) -> None:
    """Whoever stops the process in time and puts the file back has lost nothing."""
    os.rename(path, path.with_name("elsewhere.db"))
    os.rename(path.with_name("elsewhere.db"), path)
    assert at_work.run("t", lambda: 1).result == 1


def test_a_lost_registry_is_opened_anew_in_the_same_process(at_work: Registry, path: Path, tmp_path: Path) -> None:
    """Closed, and its backup put in place as README says, it works again; the claim that went is not remembered."""
    backup = tmp_path / "backup.db"
    at_work.backup(backup)
    befalls(at_work, path.unlink)
    with pytest.raises(StoreCorruptError):
        at_work.run("t", begun)
    at_work.close()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.move(backup, path)
    assert at_work.run("last", begun, name="last").replayed
    assert at_work.run("t", lambda: 1).result == 1


def test_a_task_under_a_lost_lock_file_is_not_taken_over(at_work: Registry, path: Path) -> None:
    """What runs while the lock file goes keeps its task: nobody can tell, by the next lock file, that it is dead."""

    def job() -> int:
        os.unlink(f"{path}-lock")
        with Registry(path, busy_timeout=1) as other, pytest.raises(TaskRunningError):
            other.run("t", begun, name="job", on_crash="rerun")
        return 1

    assert at_work.run("t", job, name="job", on_crash="rerun").result == 1


def test_a_wal_emptied_between_two_looks_is_no_alarm(at_work: Registry) -> None:
    """Its index was read before another process cut it: it tells of no frames by now, and the -wal has none."""

    class Before:
        value = 9

    at_work.checkpoint("TRUNCATE")
    watching = database(at_work).guard
    assert watching is not None
    frames, watching._frames = watching._frames, Before()
    try:
        watching.check()
    finally:
        watching._frames = frames
