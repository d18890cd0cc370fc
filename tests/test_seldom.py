"""What hardly ever happens, by what the caller is told and what the row says behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING, Any, cast

import apsw
import pytest

from idemreg import (
    ArgumentError,
    AsyncRegistry,
    ClaimLostError,
    Liveness,
    RecoveryError,
    Registry,
    Status,
    StoreBusyError,
    StoreCorruptError,
    TaskDoneError,
    TaskUnknownError,
    acquiring,
    attempt,
    clock,
    command_parts,
    feed,
    oslock,
    scheduled,
    turn,
)
from idemreg.clock import Clock
from idemreg.doctor.salvage import salvage
from idemreg.liveness import Examiner, OwnerRecord
from idemreg.lockfile import LockFile
from idemreg.owned import check_owned
from idemreg.sqlite.connection import NORMAL
from idemreg.sqlite.readers import WalReader
from idemreg.step_command import CommandClaim, StepEnd, run_step_command
from idemreg.store import End
from idemreg.tagged import decode_arguments
from idemreg.testing import ManualClock
from idemreg.turn import Turns
from tests.support.descriptors import left_open
from tests.support.faulted import FaultedScript
from tests.support.processes import PATIENCE_S
from tests.support.raw import connect
from tests.support.waiting import until
from tests.test_seal import mistype

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg import Claim, Task
    from idemreg.child import Child
    from idemreg.ledger import Ledger
    from idemreg.progress import Progress
    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.database import Database


def database_of(registry: Registry) -> Database:
    return cast("SqliteStore", registry.store)._opening.opened().database


def task_of(registry: Registry, task_id: str) -> Task:
    task = registry.get(task_id)
    assert task is not None
    return task


# --- memory goes between the store and the claim -----------------------------------------------------------------


def no_memory(*_words: object, **_options: object) -> Any:
    raise MemoryError


def test_a_claim_that_cannot_be_made_is_put_back(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was granted; nobody has it, and the next call claims the task."""
    registry.run("warm", lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr(acquiring, "make_claim", no_memory)
        with pytest.raises(MemoryError):
            registry.claim("t")
    assert (task_of(registry, "t").status, task_of(registry, "t").attempt) == (Status.PENDING, 0)
    with registry.claim("t") as claim:
        assert claim.attempt == 1


@pytest.mark.parametrize("way", ["run", "claim"])
def test_neither_is_one_of_a_coroutine(registry: Registry, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """As above."""
    jobs = AsyncRegistry.of(registry)

    async def begin() -> None:
        if way == "run":
            await jobs.run("t", lambda: pytest.fail("the job started"), name="job")
        async with jobs.claim("t", name="job"):
            pytest.fail("the block was entered")

    async def main() -> None:
        await jobs.run("warm", lambda: 1)
        with monkeypatch.context() as patch:
            patch.setattr(acquiring if way == "claim" else attempt, "make_claim", no_memory)
            with pytest.raises(MemoryError):
                await begin()
        outcome = await jobs.run("t", lambda: 7, name="job", wait=PATIENCE_S)  # a thread puts it back
        assert outcome.attempt == 1

    asyncio.run(main())
    assert task_of(registry, "t").status is Status.SUCCEEDED


def test_a_job_that_has_returned_does_not_fail_for_want_of_memory(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result cannot be encoded: it did run, so the task is unknown, and not failed, or it would run again."""
    ran: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(attempt, "success_end", no_memory)
        with pytest.raises(MemoryError):
            registry.run("t", lambda: ran.append(1), name="job")
    assert task_of(registry, "t").status is Status.UNKNOWN
    with pytest.raises(TaskUnknownError):
        registry.run("t", lambda: ran.append(2), name="job")
    assert ran == [1]


def test_turns_that_cannot_be_made_leave_nothing_open(
    path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of their descriptor nobody would know."""
    registry.open()
    before = left_open(path)
    with monkeypatch.context() as patch:
        patch.setattr(turn, "Turn", no_memory)
        with pytest.raises(MemoryError):
            Turns(f"{path}-lock", Clock())
    assert left_open(path) == before


# --- a commit that is reported as failed, and is there -----------------------------------------------------------


@contextlib.contextmanager
def commits_told_as_failed(database: Database) -> Any:
    """What SQLite says where a hook behind the commit fails: it is committed, and the statement reports an error."""

    def hook(*_: object) -> int:
        return apsw.SQLITE_IOERR

    connection = database.take(NORMAL)
    connection.set_wal_hook(hook)
    database.give_back(connection, NORMAL)
    try:
        yield
    finally:
        connection.set_wal_hook(None)


def test_a_finish_that_is_there_is_recorded(registry: Registry) -> None:
    """Whatever its commit said: what is visible and durable was committed. The caller has his result."""
    registry.run("warm", lambda: 1)
    claim = registry.claim("t")
    other = registry.claim("u")
    with commits_told_as_failed(database_of(registry)):
        claim.succeed(7)
        other.fail(LookupError("none"))
    assert (task_of(registry, "t").status, task_of(registry, "t").result) == (Status.SUCCEEDED, "7")
    assert task_of(registry, "u").status is Status.FAILED


def test_so_is_that_of_a_coroutine(registry: Registry) -> None:
    """Which is stored together with those of others."""
    jobs = AsyncRegistry.of(registry)

    async def main() -> None:
        async with jobs.claim("t") as claim:
            with commits_told_as_failed(database_of(registry)):
                await claim.succeed(7)

    asyncio.run(main())
    assert (task_of(registry, "t").status, task_of(registry, "t").result) == (Status.SUCCEEDED, "7")


# --- claims that are lost, or cut off ----------------------------------------------------------------------------


def test_a_claim_that_is_gone_within_its_own_transaction_is_lost(registry: Registry) -> None:
    """As in a process that has lost SQLite's locks: it is told, nothing is overwritten, and nobody keeps the claim."""
    registry.run("warm", lambda: 1)
    owners = cast("SqliteStore", registry.store)._opening.opened().owners
    with pytest.raises(ClaimLostError), registry.claim("t") as claim, claim.transaction() as effects:
        cast("Any", effects)._connection.execute("DELETE FROM idempotent_log WHERE task_id = 't'; COMMIT").fetchall()
    assert registry.get("t") is None
    assert owners.live == {}


def test_two_threads_settle_what_was_dropped_once(registry: Registry) -> None:
    """Both have seen it wait: who comes second finds it gone, and the task is put back once."""
    store = cast("Any", registry.store)
    claim = registry.claim("t")
    meeting, settle = threading.Barrier(2, timeout=PATIENCE_S), store._try_to_settle

    def together(left: object) -> bool:
        meeting.wait()
        return bool(settle(left))

    store._try_to_settle = together

    def meet() -> None:
        until(lambda: store._unsettled)
        store._settle_dropped()

    other = threading.Thread(target=meet)
    other.start()
    ended = store.abandon(End.release(claim.grant, nothing_ran=True))
    other.join(PATIENCE_S)
    claim.settled()
    assert (ended, len(store._unsettled), store._settling) == (True, 0, set())
    assert (task_of(registry, "t").status, task_of(registry, "t").attempt) == (Status.PENDING, 0)


def test_a_finish_writes_what_waits_as_well(path: Path, open_registry: Callable[..., Registry]) -> None:
    """What was dropped while another program wrote is put back with the next end, if no other call has come."""
    registry = open_registry(busy_timeout=0.01)
    dropped, claim = registry.claim("t"), registry.claim("u")
    with contextlib.closing(connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        registry.store.abandon(End.release(dropped.grant, nothing_ran=True))
        dropped.settled()
    with contextlib.closing(connect(path)) as other:
        status = "SELECT status FROM idempotent_log WHERE task_id = 't'"
        assert other.execute(status).fetchall() == [(Status.RUNNING,)]
        claim.succeed(7)
        assert other.execute(status).fetchall() == [(Status.PENDING,)]


def test_a_hook_whose_answer_cannot_be_stored_is_told_and_asked_again(
    path: Path, open_registry: Callable[..., Registry]
) -> None:
    """Another program writes all the time: the task is unknown again, without a verdict, and whoever listens hears."""
    events: list[Any] = []
    registry = open_registry(on_event=events.append, busy_timeout=0.01)
    other = connect(path)
    answers: list[Any] = [lambda: other.execute("BEGIN IMMEDIATE"), lambda: None]

    def hook(_task: Task) -> bool:
        answers.pop(0)()
        return True

    ask: dict[str, Any] = {"name": "job", "on_crash": "verify", "verify": hook}
    with pytest.raises(KeyboardInterrupt), registry.claim("t", **ask):
        raise KeyboardInterrupt
    with pytest.raises(StoreBusyError):
        registry.run("t", lambda: pytest.fail("the job started"), **ask)
    assert task_of(registry, "t").status is Status.RUNNING, "the hook's claim, until the store can write"
    other.execute("ROLLBACK")
    other.close()
    registry.add("another")
    assert (task_of(registry, "t").status, task_of(registry, "t").verdict) == (Status.UNKNOWN, None)
    assert [type(event).__name__ for event in events] == ["Claimed", "Unknown", "Claimed", "Unknown"]
    assert registry.run("t", lambda: pytest.fail("the job started"), **ask).replayed
    assert task_of(registry, "t").status is Status.SUCCEEDED


# --- what a sweep finds ------------------------------------------------------------------------------------------


def test_what_is_not_as_it_was_seen_is_not_buried(registry: Registry) -> None:
    """A sweep settles what it has seen of dead owners; the living and the ended stay as they are."""
    store = cast("SqliteStore", registry.store)
    claim = registry.claim("t")
    seen = task_of(registry, "t")
    assert store.bury([seen]) == [None]
    assert task_of(registry, "t") == seen
    claim.succeed(7)
    assert store.bury([seen]) == [None]
    assert (task_of(registry, "t").status, task_of(registry, "t").result) == (Status.SUCCEEDED, "7")


def test_kept_arguments_that_were_changed_are_damage(path: Path, registry: Registry) -> None:
    """Nothing is run with them: the sweep raises, and the task is as it was."""
    ran: list[int] = []

    @registry.idempotent("t:{user}", name="job", on_crash="rerun", recover=True)
    def job(user: int) -> None:
        ran.append(user)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(7)
    before = task_of(registry, "t:7")
    with contextlib.closing(connect(path)) as connection:
        connection.execute("UPDATE idempotent_argument SET arguments = replace(arguments, '7', '8')")
    with pytest.raises(StoreCorruptError, match="kept of the arguments of task 't:7'"):
        registry.sweep()
    assert (ran, task_of(registry, "t:7")) == ([7], before)


def test_a_claim_that_is_no_batchs_has_no_note(registry: Registry) -> None:
    """It is entered as it is claimed: to say so again changes nothing."""
    claim = registry.claim("t")
    before = task_of(registry, "t")
    registry.store.enter(claim.grant)
    assert task_of(registry, "t") == before
    claim.succeed()


# --- the system refuses ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("compiler")
def test_a_command_whose_process_cannot_be_noted_goes_on(path: Path) -> None:
    """The disk is full: its lock alone speaks for it then, and it is not tried again."""
    source = """
        from idemreg import Registry
        from tests.torture.injected.shim import LASTING
        fail("write", errno.ENOSPC, number=LASTING)  # none yet, but its files are known from now on
        registry = Registry(sys.argv[1], durability="normal")
        registry.run("warm", int)
        owner = registry.store.own_byte()
        fail("write", errno.ENOSPC, lasting=LASTING)
        say(owner.note_process(os.getpid()), hits() > 0)
        say(owner.record.pid == os.getpid(), registry.get("warm").status.word)
        owner.close()
    """
    with FaultedScript(source, path) as script:
        script.expect("True True")
        script.expect("True succeeded")
        assert script.end() == 0


@pytest.mark.usefixtures("compiler")
def test_a_file_that_cannot_be_looked_into_gets_no_lock_file(path: Path) -> None:
    """It may be another program's: the error is the disk's, and nothing is put beside it."""
    with contextlib.closing(connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
    source = """
        from idemreg import Registry, StoreError
        from tests.torture.injected.shim import LASTING
        fail("read", errno.EIO, lasting=LASTING)
        try: Registry(sys.argv[1]).open()
        except StoreError as error: told = type(error).__name__, error.code
        say(*told, hits() > 0, os.path.exists(sys.argv[1] + "-lock"))
    """
    with FaultedScript(source, path) as script:
        script.expect("StoreError store True False")
        assert script.end() == 0


@pytest.mark.usefixtures("compiler")
def test_of_claims_whose_commit_fails_none_is_held(path: Path) -> None:
    """Each is told as unsure, also the one that was refused; the task of the other is free."""
    source = """
        from idemreg import Registry
        from idemreg.options import Options
        from idemreg.request import wanted
        from tests.torture.injected.shim import LASTING
        fail("write", errno.EIO, number=LASTING)  # as above
        registry = Registry(sys.argv[1], durability="normal")
        held = registry.claim("held", name="job")
        ask = lambda task_id: wanted(task_id, "job", b"null", Options.of({}, "normal"))
        fail("write", errno.EIO, lasting=LASTING)
        answers = registry.store.claim([ask("held"), ask("t")])
        say(hits() > 0, *(type(answer).__name__ for answer in answers))
        say(list(registry.store._opening.opened().owners.live) == [("held", held.token)])
        say(registry.run("t", lambda: 7, name="job").attempt, registry.get("held").status.word)
        held.succeed()
    """
    with FaultedScript(source, path) as script:
        script.expect("True Unsure Unsure")
        script.expect("True")
        script.expect("1 running")
        assert script.end() == 0


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("way", ["plain", "awaited"])
def test_an_end_whose_commit_fails_is_told_with_its_result(path: Path, way: str) -> None:
    """It may be stored or not, and is not: the task is unknown once the disk can be written."""
    source = """
        import asyncio
        from idemreg import AsyncRegistry, FinishNotRecordedError, Registry
        from tests.torture.injected.shim import LASTING
        fail("write", errno.EIO, number=LASTING)  # as above
        registry = Registry(sys.argv[1], durability="normal")
        registry.run("warm", int)
        async def end():
            claim = await AsyncRegistry.of(registry).claim("t")
            fail("write", errno.EIO, lasting=LASTING)
            await claim.succeed(7)
        try:
            if sys.argv[2] == "awaited": asyncio.run(end())
            else:
                claim = registry.claim("t")
                fail("write", errno.EIO, lasting=LASTING)
                claim.succeed(7)
        except FinishNotRecordedError as error: said = error.result
        say(said, hits() > 0)
        registry.add("another")
        say(registry.get("t").status.word, registry.get("warm").status.word)
    """
    with FaultedScript(source, path, way) as script:
        script.expect("7 True")
        script.expect("unknown succeeded")
        assert script.end() == 0


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("check", ["integrity_check", "quick_check"])
def test_a_check_that_memory_cuts_off_tells_of_no_damage(path: Path, check: str) -> None:
    """Whichever allocation of SQLite's is the first to fail: a sound file is never told as a damaged one."""
    source = """
        import apsw
        from idemreg import Registry
        from idemreg.sqlite import pages
        from tests.torture.injected.shim import LASTING, watch_sqlite
        with Registry(sys.argv[1], durability="normal") as registry:
            for number in range(20): registry.run(f"t:{number}", lambda: "x" * 3_000)
        watch_sqlite(_functions)
        number, told = 0, []
        while True:
            number += 1
            connection = apsw.Connection(sys.argv[1])
            fail("sqlite", errno.ENOMEM, number=number, lasting=LASTING)
            try: told += pages.damage(connection, sys.argv[2], 1)
            except (MemoryError, apsw.Error): pass
            failed = hits()
            connection.close()
            if not failed: break
        say(number > 20, told)
    """
    with FaultedScript(source, path, check) as script:
        script.expect("True []")
        assert script.end() == 0


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("check", ["integrity_check", "quick_check"])
def test_a_check_whose_pages_the_disk_does_not_give_tells_of_no_damage(path: Path, check: str) -> None:
    """Whichever read is the first to fail: SQLite has words for it as for damage, and the disk is what is told."""
    source = """
        import apsw
        from idemreg import Registry, StoreError
        from idemreg.sqlite import pages
        from tests.torture.injected.shim import LASTING
        with Registry(sys.argv[1], durability="normal") as registry:
            for number in range(20): registry.run(f"t:{number}", lambda: "x" * 3_000)
        number, found, told = 0, [], set()
        while True:
            number += 1
            connection = apsw.Connection(sys.argv[1])
            connection.execute("SELECT 1 FROM sqlite_schema").fetchall()  # who asks has read from it
            fail("read", errno.EIO, number=number, lasting=LASTING)
            try: found += pages.damage(connection, sys.argv[2], 1)
            except StoreError as error: told.add((error.code, error.message.partition(":")[0]))
            failed = hits()
            connection.close()
            if not failed: break
        say(number > 20, found, told)
    """
    with FaultedScript(source, path, check) as script:
        script.expect("True [] {('store', 'the disk reported an error')}")
        assert script.end() == 0


# --- schedules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("times", "ran"), [(1, 1), (scheduled.TRIES, 0)])
def test_a_look_that_others_are_always_faster_than_runs_nothing(
    open_registry: Callable[..., Registry], times: int, ran: int
) -> None:
    """It looks again, so many times; what is due is left to them, and to the next look."""
    by = ManualClock()
    registry = open_registry(clock=by)
    slots: list[int] = []
    registry.scheduled("s", cron="* * * * *")(lambda: slots.append(1))
    registry.run_due("s")
    by.advance(60)
    with pytest.MonkeyPatch.context() as patch:
        plan, left = cast("Ledger", registry.store).plan, iter(range(times))
        patch.setattr(registry.store, "plan", lambda *words: next(left, None) is None and plan(*words))
        assert len(registry.run_due("s")) == ran
    assert len(registry.run_due("s")) == 1 - ran
    assert slots == [1]


def test_a_slot_at_work_elsewhere_is_left_to_whoever_runs_it(open_registry: Callable[..., Registry]) -> None:
    """Both have found the same slot due: who comes second runs nothing, and nothing behind it."""
    by = ManualClock()
    one, other = open_registry(clock=by), open_registry(clock=by)
    ran: list[str] = []
    found: list[object] = []

    def begin() -> None:
        ran.append("one")

    def late() -> None:
        ran.append("other")

    one.scheduled("s", cron="* * * * *")(begin)
    other.scheduled("s", cron="* * * * *")(late)
    one.run_due("s")
    by.advance(60)
    look = one.store.look
    slot: list[str] = []

    def first(wanted: Any) -> Any:
        if not slot:
            slot.append(wanted.task_id)
            found.extend(other.run_due("s"))
        return look(wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one.store, "look", first)
        assert one.run_due("s") == []
    assert (ran, len(found)) == (["other"], 1)
    assert (task_of(one, slot[0]).status, task_of(one, slot[0]).attempt) == (Status.SUCCEEDED, 1)


def test_a_job_that_calls_a_task_which_is_skipped_has_failed(open_registry: Callable[..., Registry]) -> None:
    """The error tells of another task than the slot's: it is the job's own, and told as such."""
    by = ManualClock()
    registry = open_registry(clock=by)
    registry.add("other", name="other")
    registry.skip("other", reason="not today")
    registry.scheduled("s", cron="* * * * *")(lambda: registry.run("other", lambda: 1, name="other"))
    registry.run_due("s")
    by.advance(60)
    (run,) = registry.run_due("s")
    assert isinstance(run.error, TaskDoneError)
    assert run.error.task_id == "other"
    assert task_of(registry, run.task_id).status is Status.FAILED


# --- damage ------------------------------------------------------------------------------------------------------


def test_a_salvage_leaves_views_out_and_tables_of_jobs(path: Path) -> None:
    """A view has no page; the table is told."""
    with Registry(path, durability="normal") as registry:
        registry.run("t", lambda: 1, name="job")
    with contextlib.closing(connect(path)) as connection:
        connection.execute("CREATE TABLE stock (n); CREATE VIEW shown AS SELECT n FROM stock").fetchall()
    done = salvage(path, path.with_name("out.db"))
    assert (done.copied, done.gaps.other_tables) == (1, ("stock",))


def test_a_row_about_the_file_of_other_types_is_lost(path: Path) -> None:
    """Its seal cannot even be reckoned: the copy has a new id, and all tasks."""
    with Registry(path, durability="normal") as registry:
        registry.run("t", lambda: 1, name="job")
        before = registry.store.origin().registry_id
    mistype(path, "idempotent_registry SET registry_id = 1.5")
    done = salvage(path, path.with_name("out.db"))
    assert (done.copied, done.gaps.lost_file_row) == (1, True)
    with Registry(path.with_name("out.db"), durability="normal") as registry:
        assert registry.store.origin().registry_id != before
        assert registry.run("t", lambda: pytest.fail("ran again"), name="job").replayed


# --- steps of commands -------------------------------------------------------------------------------------------


def step(registry: Registry, claim: Claim, *argv: str) -> StepEnd:
    with open(os.devnull, "wb") as nowhere:
        by = CommandClaim(claim.task_id, claim.token, str(registry.path))
        return run_step_command(registry.store, by, "s", argv, stdout=nowhere.fileno(), stderr=nowhere.fileno())


def test_a_step_whose_claim_ends_in_its_middle_is_not_saved(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command has run, and whoever ran it is told that the task is another's by now."""
    claim = registry.claim("t")
    save = cast("Progress", registry.store).save_step

    def late(*words: Any, **options: Any) -> Any:
        claim.succeed(7)
        return save(*words, **options)

    monkeypatch.setattr(registry.store, "save_step", late)
    with pytest.raises(ClaimLostError):
        step(registry, claim, "/bin/true")
    assert registry.steps("t") == []
    assert (task_of(registry, "t").status, task_of(registry, "t").result) == (Status.SUCCEEDED, "7")


def test_a_step_that_is_interrupted_waits_for_its_command(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which can write no more, and so ends: nothing is saved, and the claim is as it was."""
    claim = registry.claim("t")
    children: list[Child] = []

    def interrupt(child: Child, *_: object) -> None:
        children.append(child)
        raise KeyboardInterrupt

    monkeypatch.setattr(command_parts, "pump", interrupt)
    with pytest.raises(KeyboardInterrupt):
        step(registry, claim, "/bin/cat", "/dev/zero")
    assert not os.path.exists(f"/proc/{children[0].pid}"), "it was waited for"
    assert registry.steps("t") == []
    assert task_of(registry, "t").status is Status.RUNNING
    claim.succeed()


# --- small rooms -------------------------------------------------------------------------------------------------


def test_what_nobody_knows_of_a_reader_is_not_said() -> None:
    """Its process has ended by the time that it is looked at."""
    assert WalReader(2**22 + 1, "", None).describe() == f"process {2**22 + 1} (its command cannot be told)"
    assert WalReader(2**22 + 1, "x", None, 3).describe() == f"process {2**22 + 1} (x), seen reading for 3 s"


def test_without_its_id_each_process_is_a_boot(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing of another process counts as of this boot."""
    monkeypatch.setattr(clock, "BOOT_ID_PATH", str(path / "boot_id"))
    assert clock._boot_id.__wrapped__() == clock._PROCESS_BOOT_ID
    monkeypatch.setattr(clock, "BOOT_ID_PATH", str(path.parent))
    with pytest.raises(IsADirectoryError):
        clock._boot_id.__wrapped__()


def test_without_locks_a_restart_proves_death(path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this boot nobody can tell: its owner may live."""
    registry.open()
    monkeypatch.setattr(oslock, "self_test", lambda *_: False)
    lock_file = LockFile(f"{path}-lock").open()
    record = OwnerRecord.of_this_process("lock", Clock())
    examiner = Examiner(lock_file, Clock())
    assert examiner.examine(record.id, record)[0] is Liveness.CANNOT_TELL
    assert examiner.examine(record.id, None)[0] is Liveness.CANNOT_TELL
    former = record._replace(boot_id="another")
    assert examiner.examine(record.id, former) == (Liveness.DEAD, "the machine was restarted since")
    lock_file.close()


def test_what_another_user_owns_is_not_executed(path: Path) -> None:
    """Nobody but its owner may have written it; and no hint but to make it one's own helps."""
    path.parent.chmod(0o700)
    path.touch(0o600)
    theirs = "/etc/passwd"  # root's
    if os.geteuid() == 0:
        os.chown(path, 1, -1)
        theirs = str(path)
    with pytest.raises(RecoveryError, match="another user's") as refused:
        check_owned(theirs, "t")
    assert (refused.value.task_id, f"chown {os.geteuid()} {theirs}" in refused.value.hint) == ("t", True)


def test_what_is_not_there_is_nobodys(path: Path) -> None:
    """The files of a registry come and go; those that are there are looked at."""
    path.parent.chmod(0o700)
    check_owned(path)
    path.touch(0o600)
    check_owned(path)


def test_a_reader_waits_where_its_descriptor_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program that has it has set it so. The first bytes come when it is about to wait for them."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    poll = select.poll

    def then_write() -> Any:
        os.write(writing, b"line\n")
        return poll()

    monkeypatch.setattr(select, "poll", then_write)
    assert feed.read_some(reading, 100) == b"line\n"
    assert not os.get_blocking(reading)
    os.close(writing)
    assert feed.read_some(reading, 100) == b""
    os.close(reading)


def test_kept_arguments_that_are_none_are_told() -> None:
    """They are told as arguments, and not as a result."""
    with pytest.raises(ArgumentError, match="kept of the arguments"):
        decode_arguments("no JSON")
