"""Group sync: what is answered is durable, whoever wrote it; one sync covers many; a failed one is never forgotten."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest

from idemreg import (
    AsyncRegistry,
    Claim,
    Clock,
    FinishNotRecordedError,
    Registry,
    Status,
    StoreBusyError,
    StoreError,
    SyncFailedError,
    Task,
    TaskDoneError,
    TaskUnknownError,
    faults,
)
from idemreg.ends import success_end
from idemreg.lockfile import SYNC_RECORD_OFFSET
from idemreg.sqlite import guard, hot, syncing, walindex
from idemreg.sqlite.connection import FULL
from idemreg.store import Lost, Recorded, Unsure
from idemreg.testing import ManualClock
from idemreg.turn import Turns
from tests.support.faulted import FaultedScript
from tests.support.interruptions import interrupt_at
from tests.support.processes import PATIENCE_S, Script
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import apsw

    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.database import Database
    from idemreg.sqlite.syncing import GroupSync

# Another program, which commits at NORMAL.
FOREIGN = (
    "from tests.support.raw import connect; c = connect(sys.argv[1]); c.pragma('synchronous', 1);"
    " c.execute('create table f(x)')"
)

# Stops itself at a named fault point, or is killed there, while it finishes "t".
FINISHER = """
from idemreg import Registry, faults
registry = Registry(sys.argv[1])
registry.run("warm", lambda: 0, on_crash="rerun")
if sys.argv[2]: faults.arm(sys.argv[2], lambda: os.kill(os.getpid(), getattr(signal, sys.argv[3])))
say("ready"); wait()
registry.run("t", lambda: 7, name="job", on_crash="rerun")
say("told")
wait()
"""


# As FINISHER, and says when it is inside the job.
WORKER = FINISHER.replace("lambda: 7", "lambda: (say('inside'), wait(), 7)[2]")


class LaterBoot(Clock):
    """The machine was booted anew."""

    def boot_id(self) -> str:
        return "a later boot"


@pytest.fixture
def full(open_registry: Callable[..., Registry]) -> Registry:
    """A registry whose answers are durable. Until all who are to wait do so, the first of them has waited for long."""
    return open_registry(durability="full", busy_timeout=PATIENCE_S)


def database(registry: Registry) -> Database:
    opened = cast("SqliteStore", registry.store)._opening.current
    assert opened is not None
    return opened.database


def sync_of(registry: Registry) -> GroupSync:
    sync = database(registry).sync
    assert sync is not None
    return sync


def is_covered(registry: Registry) -> bool:
    """Whether all that is committed now is known to be on the disk, by what the lock file says."""
    sync = sync_of(registry)
    return sync._read().header == sync._index.header()


def break_disk(registry: Registry) -> None:
    """From now on each sync of this process fails by an error of the system, as on a disk that is gone.

    The descriptor becomes one that names the file (O_PATH), and cannot be synced.
    """
    sync = sync_of(registry)
    named = os.open(sync._path, os.O_PATH | os.O_CLOEXEC)
    os.dup2(named, sync._fd, inheritable=False)
    os.close(named)
    sync._guard._frames = guard._NONE  # nor does it tell its size


# --- how many syncs -------------------------------------------------------------------------------------------------


def test_a_hold_task_needs_two_syncs_a_rerun_task_one(full: Registry) -> None:
    """The claim is durable before its job under hold only; the finish always; a duplicate needs none."""
    full.run("first", lambda: 1)
    counts = []
    for on_crash in ("hold", "verify", "rerun"):
        before = sync_of(full).syncs
        options: dict[str, Any] = {"on_crash": on_crash}
        if on_crash == "verify":
            options["verify"] = lambda: "cannot-tell"
        full.run(f"new:{on_crash}", lambda: 1, **options)
        counts.append(sync_of(full).syncs - before)
        full.run(f"new:{on_crash}", lambda: 1, **options)
        assert sync_of(full).syncs - before == counts[-1]
    assert counts == [2, 2, 1]


def test_what_a_first_claim_stands_on_is_durable(path: Path) -> None:
    """The epoch of the tokens may not be yet, where the process that raised it was killed: a rerun claim syncs once."""
    with Registry(path) as other:
        other.open()
    with Script(f"{FOREIGN}; say('left'); wait()", path) as writer, Registry(path) as registry:
        writer.expect("left")
        registry.open()
        assert registry.run("t", lambda: sync_of(registry).syncs, on_crash="rerun").result == 1
        assert registry.run("u", lambda: sync_of(registry).syncs, on_crash="rerun").result == 2
        writer.kill()


@pytest.mark.parametrize("held", ["hold", "verify"])
@pytest.mark.parametrize("how", ["run", "coroutine", "batch"])
def test_a_claim_is_as_durable_as_the_policy_that_is_stored_with_it(full: Registry, held: str, how: str) -> None:
    """Asked for under rerun, of a task that must not run again, it is on the disk before its job is entered."""
    stored: dict[str, Any] = {"on_crash": held}
    if held == "verify":
        stored["verify"] = lambda: "cannot-tell"
    asked: dict[str, Any] = {"name": "job", "on_crash": "rerun"}
    with pytest.raises(ZeroDivisionError):
        full.run("t", lambda: 1 // 0, name="job", **stored)

    def job() -> bool:
        return is_covered(full)

    async def coroutine() -> bool:
        return (await AsyncRegistry.of(full).run("t", job, **asked)).result

    def batch() -> bool:
        (claim,) = full.claim_many([("t", None)], **asked)
        assert isinstance(claim, Claim)
        with claim:
            claim.result = is_covered(full)
        return bool(claim.result)

    ways: dict[str, Callable[[], bool]] = {
        "run": lambda: full.run("t", job, **asked).result,
        "coroutine": lambda: asyncio.run(coroutine()),
        "batch": batch,
    }
    assert ways[how]()


def test_without_an_index_too_a_claim_is_as_durable_as_the_stored_policy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where commits sync themselves, that of a claim under rerun of a task that is held does."""
    monkeypatch.setattr(walindex, "VERSION", 1)
    with Registry(path) as before, pytest.raises(ZeroDivisionError):
        before.run("t", lambda: 1 // 0, name="job", on_crash="hold")
    with Registry(path) as registry:
        idle = registry.run("t", lambda: len(database(registry)._idle[FULL]), name="job", on_crash="rerun").result
        assert idle == 1  # the connection that has claimed


def test_nothing_is_synced_where_nothing_was_promised(registry: Registry) -> None:
    """At ``durability="normal"`` neither claims nor finishes nor their readers sync."""
    for number in range(30):
        registry.run(f"t:{number}", lambda: 1)
        registry.get(f"t:{number}")
    assert sync_of(registry).syncs == 0


def test_a_thousand_claims_at_once_share_their_syncs(path: Path) -> None:
    """1,000 coroutines claim at once: combined in transactions, they are covered by at most 100 syncs."""

    async def main() -> None:
        async with AsyncRegistry(path) as registry:
            await registry.run("first", lambda: 1)
            before = sync_of(registry.registry).syncs
            claims = await asyncio.gather(*(registry.claim(f"t:{number}") for number in range(1_000)))
            assert sync_of(registry.registry).syncs - before <= 100
            assert (await registry.count())[Status.RUNNING] == len(claims) == 1_000
            await registry.finish_many((claim, None) for claim in claims)

    asyncio.run(main())


# --- readers join ---------------------------------------------------------------------------------------------------


def again() -> None:
    pytest.fail("ran again")


def job_of(registry: Registry, **options: Any) -> Any:
    """The job of FINISHER."""
    return registry.idempotent("t", name="job", on_crash="rerun", checksum=lambda: None, **options)(again)


def told_done(claim: Callable[..., Any], **options: Any) -> bool:
    with pytest.raises(TaskDoneError):
        claim("t", name="job", on_crash="rerun", **options)
    return True


async def awaited_claim(registry: Registry, **options: Any) -> bool:
    with pytest.raises(TaskDoneError):
        await AsyncRegistry.of(registry).claim("t", name="job", on_crash="rerun", **options)
    return True


async def awaited_add(registry: Registry, **options: Any) -> Task:
    async def job() -> None:
        again()

    decorate = AsyncRegistry.of(registry).idempotent(
        "t", name="job", checksum=lambda: None, on_crash="rerun", **options
    )
    return await decorate(job).add()


# Of a call, which may have a durability of its own.
CALLS: dict[str, Callable[..., Any]] = {
    "run": lambda on, **options: on.run("t", again, name="job", on_crash="rerun", **options).result,
    "claim": lambda on, **options: told_done(on.claim, **options),
    "claim_many": lambda on, **options: on.claim_many([("t", None)], name="job", on_crash="rerun", **options),
    "job": lambda on, **options: job_of(on, **options)(),
    "job.add": lambda on, **options: job_of(on, **options).add(),
    "job.task": lambda on, **options: job_of(on, **options).task(),
    "refusal": lambda on, **options: on.claim_many([("t", 1)], name="other", on_crash="rerun", **options),
    "await run": lambda on, **options: asyncio.run(
        AsyncRegistry.of(on).run("t", again, name="job", on_crash="rerun", **options)
    ),
    "await claim": lambda on, **options: asyncio.run(awaited_claim(on, **options)),
    "await claim_many": lambda on, **options: asyncio.run(
        AsyncRegistry.of(on).claim_many([("t", None)], name="job", on_crash="rerun", **options)
    ),
    "await job.add": lambda on, **options: asyncio.run(awaited_add(on, **options)),
}

# Of the registry.
LOOKS: dict[str, Callable[[Registry], Any]] = {
    "get": lambda on: on.get("t"),
    "tasks": lambda on: list(on.tasks()),
    "count": lambda on: on.count(),
    "add": lambda on: on.add("t", name="job"),
    "export": lambda on: list(on.export_lines()),
    "purge": lambda on: on.purge(older_than=0, dry_run=True),
    "await get": lambda on: asyncio.run(AsyncRegistry.of(on).get("t")),
    "await count": lambda on: asyncio.run(AsyncRegistry.of(on).count()),
}


def leave_uncovered(path: Path) -> None:
    """A writer is killed when "t" has succeeded, and before that is synced."""
    with Script(FINISHER, path, "sync.begun", "SIGKILL") as writer:
        writer.expect("ready")
        writer.go()
        assert writer.end() == -signal.SIGKILL


def assert_syncs_first(registry: Registry, look: Callable[[], Any]) -> None:
    before = sync_of(registry).syncs
    assert not is_covered(registry)
    assert look()
    assert is_covered(registry)
    assert sync_of(registry).syncs == before + 1
    look()
    assert sync_of(registry).syncs == before + 1  # it is known to be covered by now


@pytest.mark.parametrize("look", [*CALLS, *LOOKS])
def test_a_reader_of_what_a_killed_writer_left_syncs_it_first(path: Path, full: Registry, look: str) -> None:
    """A finish that was committed and not synced is durable before anybody answers from it, however he asks."""
    full.run("first", lambda: 1)
    leave_uncovered(path)
    reader = CALLS.get(look) or LOOKS[look]
    assert_syncs_first(full, lambda: reader(full))


@pytest.mark.parametrize("look", CALLS)
def test_a_call_says_by_itself_how_durable_its_answer_is(path: Path, registry: Registry, look: str) -> None:
    """At full on a registry at normal it syncs what it answers from."""
    registry.run("first", lambda: 1)
    leave_uncovered(path)
    assert_syncs_first(registry, lambda: CALLS[look](registry, durability="full"))


@pytest.mark.parametrize("look", CALLS)
def test_a_call_at_normal_is_answered_without_a_sync(path: Path, full: Registry, look: str) -> None:
    """It has asked for no more, also on a registry at full."""
    full.run("first", lambda: 1)
    leave_uncovered(path)
    before = sync_of(full).syncs
    assert CALLS[look](full, durability="normal")
    assert sync_of(full).syncs == before


def test_whoever_waits_for_a_twin_syncs_what_it_left(path: Path) -> None:
    """The twin is killed between the commit of its success and the sync, while somebody waits for it."""
    with Script(WORKER, path, "sync.begun", "SIGKILL") as twin:
        twin.expect("ready")
        twin.go()
        twin.expect("inside")

        class Waiting(Clock):
            def sleep(self, seconds: float) -> None:
                if twin.process.poll() is None:
                    twin.go()
                    assert twin.end() == -signal.SIGKILL
                super().sleep(seconds)

        with Registry(path, clock=Waiting()) as registry:
            registry.open()
            before = sync_of(registry).syncs
            outcome = registry.run("t", again, name="job", on_crash="rerun", wait=PATIENCE_S)
            assert outcome.replayed
            assert is_covered(registry)
            assert sync_of(registry).syncs == before + 1


def test_a_registry_at_full_syncs_what_one_at_normal_has_answered(
    full: Registry, open_registry: Callable[..., Registry]
) -> None:
    """Both on one file: what the one has stored without a sync is durable before the other answers from it."""
    normal = open_registry()
    full.run("first", lambda: 1)
    normal.run("t", lambda: 7, name="job")
    assert sync_of(normal).syncs == 0
    assert_syncs_first(full, lambda: full.run("t", again, name="job").result)


def test_a_covered_row_needs_no_sync_of_its_reader(path: Path, full: Registry) -> None:
    """What another process has synced and published is believed."""
    with Script(FINISHER, path, "", "") as writer:
        writer.expect("ready")
        writer.go()
        writer.expect("told")
        full.open()
        before = sync_of(full).syncs
        assert full.run("t", lambda: 0, name="job", on_crash="rerun").result == 7
        assert sync_of(full).syncs == before


def test_another_programs_commit_is_synced_before_it_is_passed(path: Path, full: Registry) -> None:
    """A program that knows nothing of idemreg commits at NORMAL: the next answer syncs what it left."""
    full.run("t", lambda: 1, name="job")
    before = sync_of(full).syncs
    with Script(FOREIGN, path) as other:
        assert other.end() == 0
    assert full.run("t", lambda: 2, name="job").result == 1
    assert sync_of(full).syncs == before + 1


# --- a disk that fails ----------------------------------------------------------------------------------------------


def test_a_claim_whose_sync_fails_starts_no_job(path: Path, full: Registry) -> None:
    """It is put back by a plain commit; and from then on nobody, in no process, calls anything durable."""
    full.run("first", lambda: 1, name="job")
    with Registry(path) as other:
        other.open()
        break_disk(full)
        with pytest.raises(SyncFailedError):
            full.run("t", lambda: pytest.fail("the job started"))
        for _ in range(2):
            with pytest.raises(SyncFailedError):
                other.run("first", lambda: 1, name="job")
        with pytest.raises(SyncFailedError):
            other.run("u", lambda: pytest.fail("the job started"))
    with pytest.raises(SyncFailedError), Registry(path) as later:
        later.get("first")
    with Registry(path, clock=LaterBoot()) as booted:
        assert booted.run("first", lambda: 1, name="job").replayed
        assert booted.run("t", lambda: 2).attempt == 1


def test_a_finish_whose_sync_fails_is_told(path: Path, full: Registry) -> None:
    """The caller gets the result and an error; nobody is told of a success before the machine was booted anew."""
    full.run("first", lambda: 1)
    break_disk(full)
    with pytest.raises(FinishNotRecordedError) as unsure:
        full.run("t", lambda: 7, name="job", on_crash="rerun")
    assert unsure.value.result == 7
    with pytest.raises(SyncFailedError):
        full.get("t")
    with Registry(path, clock=LaterBoot()) as booted:
        assert booted.run("t", lambda: pytest.fail("ran"), name="job", on_crash="rerun").result == 7


def test_an_awaited_finish_whose_sync_fails_is_told(full: Registry) -> None:
    """As above, of a coroutine."""
    full.run("first", lambda: 1)

    async def main() -> None:
        claim = await AsyncRegistry.of(full).claim("t", name="job", on_crash="rerun")
        break_disk(full)
        with pytest.raises(FinishNotRecordedError) as unsure:
            await claim.succeed(7)
        assert unsure.value.result == 7

    asyncio.run(main())
    with pytest.raises(SyncFailedError):
        full.get("t")
    with Registry(full.path, clock=LaterBoot()) as booted:
        assert booted.run("t", lambda: pytest.fail("ran"), name="job", on_crash="rerun").result == 7


def test_effects_whose_sync_fails_are_told(full: Registry) -> None:
    """A transaction that was committed and not synced is a finish that was not recorded."""
    full.run("first", lambda: 1)
    break_disk(full)
    with (
        pytest.raises(FinishNotRecordedError),
        full.claim("t", on_crash="rerun") as claim,
        claim.transaction() as tx,
    ):
        tx.execute("create table effect (n)")


def test_all_who_waited_for_a_sync_that_failed_are_told(full: Registry) -> None:
    """Many threads, one failing sync: every one of them gets an error of its own, and no job starts."""
    full.run("first", lambda: 1)
    break_disk(full)

    def claim(number: int) -> BaseException | None:
        try:
            full.run(f"t:{number}", lambda: pytest.fail("the job started"))
        except SyncFailedError as error:
            return error
        return None

    with ThreadPoolExecutor(16) as pool:
        errors = list(pool.map(claim, range(64)))
    assert len({id(error) for error in errors if error is not None}) == 64


def test_a_failure_that_cannot_be_noted_is_remembered(path: Path, full: Registry) -> None:
    """The lock file cannot be written either: a typed error, and this process answers nothing from then on."""
    full.run("first", lambda: 1)
    opened = cast("SqliteStore", full.store)._opening.current
    assert opened is not None

    def open_lock_file(flags: int) -> None:
        fd = os.open(f"{path}-lock", flags | os.O_CLOEXEC)
        os.dup2(fd, opened.lock_file.fd, inheritable=False)
        os.close(fd)

    break_disk(full)
    faults.arm("sync.begun", lambda: open_lock_file(os.O_RDONLY))
    with pytest.raises(FinishNotRecordedError):
        full.run("t", lambda: 7, on_crash="rerun")
    faults.disarm()
    open_lock_file(os.O_RDWR)
    for _ in range(2):
        with pytest.raises(SyncFailedError):
            full.get("first")


def test_a_failure_that_another_thread_was_told_meanwhile_counts(full: Registry) -> None:
    """Behind the last look of a sync that went well: its own caller is answered, and nobody else is any more."""
    full.run("first", lambda: 1)
    sync = sync_of(full)
    sound = sync._sound

    def fails_then() -> Any:
        record = sound()
        other = threading.Thread(target=sync.taint)
        other.start()
        other.join(PATIENCE_S)
        return record

    faults.arm("sync.published", lambda: setattr(sync, "_sound", fails_then))
    assert full.run("t", lambda: 7, name="job", on_crash="rerun").result == 7
    faults.disarm()
    sync._sound = sound  # type: ignore[method-assign]
    with pytest.raises(SyncFailedError):
        full.get("t")


def test_a_failure_that_is_told_amid_the_end_of_another_sync_counts(
    full: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync that went well notes what it covers in the very moment in which another thread is told of a failure."""
    full.run("first", lambda: 1)
    sync = sync_of(full)
    header = sync._index.header()
    assert header is not None

    def set_behind_a_note(self: GroupSync, name: str, value: object) -> None:
        if name == "_failed" and value:
            sync._note_synced(header)
        object.__setattr__(self, name, value)

    monkeypatch.setattr(syncing.GroupSync, "__setattr__", set_behind_a_note, raising=False)
    sync.taint()
    monkeypatch.undo()
    with pytest.raises(SyncFailedError):
        full.get("first")


def test_a_sync_under_an_index_that_cannot_be_read_covers_nothing(full: Registry) -> None:
    """A writer was killed in its header: what was synced is durable, and the next who answers syncs once more."""
    full.run("first", lambda: 1)
    full.run("t", lambda: 1, durability="normal")
    sync, index = sync_of(full), sync_of(full)._index
    copies, cast("Any", index).copies = index.copies, SimpleNamespace(raw=b"a" * 48 + b"b" * 48)
    before = sync.syncs
    sync.durable()
    index.copies = copies
    assert sync.syncs == before + 1
    assert not is_covered(full)
    task = full.get("t")
    assert task is not None
    assert (task.status, sync.syncs, is_covered(full)) == (Status.SUCCEEDED, before + 2, True)


def test_an_end_that_was_lost_is_told_so_whatever_became_of_the_sync(full: Registry) -> None:
    """Of ends in one commit whose sync fails, the durable is unsure; one that changed nothing is no success."""
    full.run("first", lambda: 1)
    claims = [
        full.claim("durable", on_crash="rerun"),
        full.claim("lost", on_crash="rerun", durability="normal"),
        full.claim("lost and durable", on_crash="rerun"),
        full.claim("normal", on_crash="rerun", durability="normal"),
    ]
    ends = [success_end(claim.grant, claim.options, 1)[0] for claim in claims]
    for claim in claims:
        claim.settled()
    break_disk(full)
    late = [ends[0], *(end._replace(token=end.token + 100) for end in ends[1:3]), ends[3]]
    assert [type(answer) for answer in full.store.finish(late)] == [Unsure, Lost, Lost, Recorded]
    for end in ends:
        full.store.abandon(end)


def test_a_batch_whose_duplicate_cannot_be_synced_keeps_no_claim(path: Path, full: Registry) -> None:
    """Answered from a row that is not durable it would be wrong; nobody is told of its claims, so they are put back."""
    full.run("first", lambda: 1)
    leave_uncovered(path)
    break_disk(full)
    with pytest.raises(SyncFailedError):
        full.claim_many([("t", None), ("new", None)], name="job", on_crash="rerun")
    (task,) = full.store.get(["new"], durable=False)
    assert task is not None
    assert task.status is Status.PENDING


# --- files that vanish ----------------------------------------------------------------------------------------------


def test_a_wal_that_was_deleted_acknowledges_nothing(path: Path, full: Registry) -> None:
    """SQLite commits into a deleted file, and says OK; the sync looks whether the file is the one at the path."""
    full.run("first", lambda: 1)
    os.unlink(f"{path}-wal")
    with pytest.raises(SyncFailedError, match="deleted"):
        full.run("t", lambda: pytest.fail("the job started"))


@pytest.mark.parametrize("when", ["in the job", "between commit and sync"])
def test_an_end_in_a_wal_that_was_deleted_is_told(path: Path, full: Registry, when: str) -> None:
    """Nobody looks at the files behind a job but the sync of its end, so that is what must notice it."""
    full.run("first", lambda: 1)

    def job() -> int:
        if when == "in the job":
            os.unlink(f"{path}-wal")
        else:
            faults.arm("sync.begun", lambda: os.unlink(f"{path}-wal"))
        return 7

    with pytest.raises(FinishNotRecordedError) as lost:
        full.run("t", job, on_crash="rerun")
    assert lost.value.result == 7


def test_a_sync_of_a_new_wal_covers_nothing_of_a_deleted_one(
    path: Path, full: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The -wal is deleted, another process begins a new one: what that one publishes is not believed here."""
    monkeypatch.setattr(syncing, "PATIENCE_S", PATIENCE_S)
    full.run("first", lambda: 1)
    os.unlink(f"{path}-wal")
    os.unlink(f"{path}-shm")
    script = """
        from idemreg import Registry, faults
        def hold():
            faults.disarm(); say("begun"); wait()
        faults.arm("sync.begun", hold)
        Registry(sys.argv[1]).run("other", lambda: 7)
        say("told"); wait()
    """
    with Script(script, path) as other, ThreadPoolExecutor(1) as pool:
        other.expect("begun")
        waits = pool.submit(full.run, "t", lambda: pytest.fail("the job started"))
        while not sync_of(full)._is_leading:
            os.sched_yield()
        other.go()
        other.expect("told")
        assert isinstance(waits.exception(PATIENCE_S), SyncFailedError)


def test_what_is_noted_of_another_wal_is_not_believed(path: Path, full: Registry) -> None:
    """Numbers that a process left which still had a deleted -wal cover nothing: this one syncs, and notes its own."""
    full.run("first", lambda: 1)
    sync = sync_of(full)
    sync._put(SYNC_RECORD_OFFSET, walindex.NO_HEADER + struct.pack("<QQQQ", 5, 9, 0, 1))
    turns = Turns(f"{path}-lock", Clock())
    assert turns.sync.try_take()
    before = sync.syncs
    full.run("t", lambda: 1, on_crash="rerun")
    assert sync.syncs == before + 1
    turns.close()
    full.run("u", lambda: 1, on_crash="rerun")
    with Registry(path) as other:
        other.open()
        assert sync_of(other)._read() == sync._read()
        assert sync._read().inode == os.stat(f"{path}-wal").st_ino


def test_as_many_frames_of_an_earlier_wal_cover_nothing(full: Registry) -> None:
    """A -wal that begins anew comes to the same length again: its salts tell the two apart, and it is synced."""
    full.run("first", lambda: 1)
    sync = sync_of(full)
    header = sync._index.header()
    assert header is not None
    assert sync._read().header == header
    salts = bytes(byte ^ 1 for byte in header[walindex.SALTS])
    sync._put(SYNC_RECORD_OFFSET, header[: walindex.SALTS.start] + salts + header[walindex.SALTS.stop :])
    sync._synced = b""
    before = sync.syncs
    sync.durable()
    assert sync.syncs == before + 1
    assert sync._read().header == header


def test_a_lock_file_that_was_cut_short_is_an_error(path: Path, full: Registry) -> None:
    """It is read and written, not mapped: a typed error, not SIGBUS."""
    full.run("first", lambda: 1)
    os.truncate(f"{path}-lock", 70)
    with pytest.raises(Exception, match="cut short") as error:
        full.run("t", lambda: pytest.fail("the job started"))
    assert getattr(error.value, "code", "") == "store-corrupt"


def test_an_index_of_another_format_is_not_believed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then durable writes are SQLite's own synchronous=FULL, with its own checkpoints."""
    monkeypatch.setattr(walindex, "VERSION", 1)
    with Registry(path) as registry:
        assert registry.run("t", lambda: 1).result == 1
        assert registry.run("t", lambda: 1).replayed
        assert database(registry).sync is None
        connection = database(registry).take(2)
        assert (connection.pragma("synchronous"), connection.pragma("wal_autocheckpoint")) == (2, 2_000)
        database(registry).give_back(connection, 2)


# --- whoever holds a turn and stops ---------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["sync.begun", "sync.done"])
def test_a_stopped_leader_costs_the_others_some_speed(path: Path, full: Registry, point: str) -> None:
    """A process that was stopped with the sync turn keeps nobody waiting: each syncs for itself, unpublished."""
    full.run("first", lambda: 1)
    with Script(FINISHER, path, point, "SIGSTOP") as writer:
        writer.expect("ready")
        writer.go()
        os.waitid(os.P_PID, writer.process.pid, os.WSTOPPED)
        before = sync_of(full)._read()
        assert full.run("u", lambda: 1).result == 1
        with Registry(path) as other:
            assert other.run("u", lambda: 2).result == 1
        after = sync_of(full)._read()
        assert (after.header, after.begun, after.done) == (before.header, before.begun, before.done)
        writer.signal(signal.SIGCONT)
        writer.expect("told")


def test_patience_with_a_stopped_leader_is_short(path: Path, open_registry: Callable[..., Registry]) -> None:
    """Whoever waits for a sync of another's syncs by himself after a fiftieth of a second, and not in his own time."""
    clock = ManualClock()
    with open_registry(clock=clock, durability="full") as registry:
        registry.run("first", lambda: 1)
        turns = Turns(f"{path}-lock", Clock())
        assert turns.sync.try_take()
        before, syncs = clock.monotonic(), sync_of(registry).syncs
        registry.run("t", lambda: 1)
        assert sync_of(registry).syncs == syncs + 2, "of its claim and of its end"
        assert clock.monotonic() - before <= 2 * 0.025
        turns.close()


@pytest.mark.parametrize("point", ["turn.taken", "finish.in-transaction"])
def test_a_stopped_writer_ends_in_a_busy_error(path: Path, full: Registry, point: str) -> None:
    """A process that was stopped with the write turn: `StoreBusyError` at the deadline, and no job starts."""
    full.run("first", lambda: 1)
    script = FINISHER.replace('registry.run("warm"', "#") if point == "turn.taken" else FINISHER
    with Script(script, path, point, "SIGSTOP") as writer:
        writer.expect("ready")
        writer.go()
        os.waitid(os.P_PID, writer.process.pid, os.WSTOPPED)
        with Registry(path, busy_timeout=0.05) as hurried, pytest.raises(StoreBusyError):
            hurried.run("u", lambda: pytest.fail("the job started"))
        writer.signal(signal.SIGCONT)
        writer.expect("told")
    assert full.run("u", lambda: 1).result == 1


@pytest.mark.parametrize("point", ["turn.taken", "sync.begun"])
def test_a_turn_ends_with_its_holder(path: Path, full: Registry, point: str) -> None:
    """A process that is killed with a turn leaves it to the others at once."""
    full.run("first", lambda: 1)
    script = FINISHER.replace('registry.run("warm"', "#")
    with Script(script, path, point, "SIGKILL") as writer:
        writer.expect("ready")
        writer.go()
        assert writer.end() == -signal.SIGKILL
    turns = Turns(f"{path}-lock", Clock())
    assert turns.write.try_take()
    assert turns.sync.try_take()
    turns.close()
    assert full.run("u", lambda: 1).result == 1


def test_behind_a_stopped_leader_one_sync_serves_all_threads(path: Path, full: Registry) -> None:
    """What one thread syncs when its patience ends covers the others of its process, who do not begin to wait anew."""
    full.run("first", lambda: 1)
    with Script(FINISHER, path, "sync.begun", "SIGSTOP") as writer:
        writer.expect("ready")
        writer.go()
        os.waitid(os.P_PID, writer.process.pid, os.WSTOPPED)
        before = sync_of(full).syncs
        with ThreadPoolExecutor(16) as pool:
            ready = threading.Barrier(16)

            def look(_: int) -> object:
                ready.wait(PATIENCE_S)
                return full.get("t")

            assert all(pool.map(look, range(16)))
        assert 1 <= sync_of(full).syncs - before <= 4
        writer.signal(signal.SIGCONT)
        writer.expect("told")


def test_a_call_in_the_middle_of_a_sync_waits_for_nobody(path: Path, full: Registry) -> None:
    """A finaliser or a signal's handler can run anywhere: it syncs for itself, and the sync around it goes on."""
    full.run("first", lambda: 1)
    before = sync_of(full).syncs

    def within() -> None:
        faults.disarm()
        full.run("within", lambda: 1, name="w", on_crash="rerun")
        assert not turns.sync.try_take()  # the turn is still that of the sync around it

    turns = Turns(f"{path}-lock", Clock())
    faults.arm("sync.begun", within)
    try:
        full.run("t", lambda: 1, on_crash="rerun")
    finally:
        faults.disarm()
        turns.close()
    assert sync_of(full).syncs > before
    assert full.run("within", lambda: 2, name="w", on_crash="rerun").replayed


def test_a_checkpoint_in_the_middle_of_a_sync_leaves_it_its_turn(path: Path, full: Registry) -> None:
    """A signal's handler moves the -wal as well: it does not wait for the sync around it, nor give its turn away."""
    full.run("first", lambda: 1)
    turns = Turns(f"{path}-lock", Clock())

    def within() -> None:
        faults.disarm()
        assert not full.checkpoint().busy
        assert not turns.sync.try_take()

    faults.arm("sync.begun", within)
    try:
        assert full.run("t", lambda: 1, on_crash="rerun").result == 1
    finally:
        faults.disarm()
    assert is_covered(full)
    assert turns.sync.try_take()
    turns.close()


@pytest.mark.parametrize("how", ["sync", "checkpoint"])
def test_an_interrupt_right_before_the_turn_is_dropped_leaves_no_turn(
    path: Path, full: Registry, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It is free for other processes, and the next sync of this one is published as ever."""
    full.run("first", lambda: 1)
    sync, dropped = sync_of(full), list[int]()
    drop = sync._turn.drop

    def interrupted() -> None:
        dropped.append(len(dropped))
        if len(dropped) == 1:
            raise KeyboardInterrupt
        drop()

    monkeypatch.setattr(sync._turn, "drop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        full.run("t", lambda: 1, on_crash="rerun") if how == "sync" else full.checkpoint()
    turns = Turns(f"{path}-lock", Clock())
    assert turns.sync.try_take()
    turns.close()
    before = sync._read().done
    full.run("u", lambda: 1)
    assert sync._read().done > before


# --- combining ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threads", "rounds"), [(20, 1), (65, 2), (150, 3)])
def test_what_waits_is_written_together(full: Registry, threads: int, rounds: int) -> None:
    """Threads that find another writing are carried out in one transaction, at most 64 at once, each for itself."""
    full.run("first", lambda: 1)
    commits = _count_commits(full)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with full.claim("held", on_crash="rerun") as claim, claim.transaction():
            held.set()
            done.wait(PATIENCE_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE_S)
    before = commits()
    with ThreadPoolExecutor(threads) as pool:
        results = [pool.submit(full.add, f"t:{number}") for number in range(threads)]
        gate = database(full).gate
        until(lambda: len(gate.waiting) >= threads)
        done.set()
        assert {result.result(PATIENCE_S).status for result in results} == {Status.PENDING}
    holder.join()
    assert commits() - before == 1 + rounds  # the first is the holder's


def _count_commits(registry: Registry) -> Callable[[], int]:
    """How often the -wal's index has changed: its counter of transactions."""
    index = database(registry).index
    assert index is not None

    def count() -> int:
        header = index.header()
        assert header is not None
        return int.from_bytes(header[8:12], "little")

    return count


def _change(connection: Connection) -> None:
    connection.execute("CREATE TABLE of_the_crowd (n)")


@pytest.fixture
def crowd(full: Registry) -> Iterator[Crowd]:
    """A thread writes, and others wait to."""
    crowd = Crowd(full)
    yield crowd
    crowd.end()


class Crowd:
    """Keeps the gate of a registry taken until `end`, with one more who waits."""

    def __init__(self, registry: Registry) -> None:
        registry.run("first", lambda: 1, name="job", on_crash="rerun")
        self._database, self._gate = database(registry), database(registry).gate
        self._held, self._done = threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(40)
        self._results = [self._pool.submit(self._hold)]
        assert self._held.wait(PATIENCE_S)
        self._results.append(self.send(lambda: self._database.write(_change, durable=False)))

    def send(self, call: Callable[[], Any]) -> Future[Any]:
        """Call it on a thread of its own; return once it waits for the gate."""
        before = len(self._gate.waiting)
        future = self._pool.submit(call)
        until(lambda: len(self._gate.waiting) != before or future.done())
        return future

    def _hold(self) -> None:
        with self._database.long_write(durable=False):
            self._held.set()
            self._done.wait(PATIENCE_S)

    def end(self) -> None:
        self._done.set()
        for result in self._results:
            result.result(PATIENCE_S)
        self._pool.shutdown()


@pytest.mark.parametrize("policy", ["hold", "rerun"])
def test_where_threads_wait_new_tasks_are_looked_for_and_claimed_by_one(
    full: Registry, crowd: Crowd, monkeypatch: pytest.MonkeyPatch, policy: Literal["hold", "rerun"]
) -> None:
    """In a crowd a thread does not look by itself: who writes inserts for all, and none of them is run twice."""
    monkeypatch.setattr(hot, "PATIENCE_S", PATIENCE_S)
    monkeypatch.setattr(hot.Claim, "look", lambda *_: pytest.fail("a thread looked by itself"))
    ran: list[int] = []
    before = sync_of(full).syncs

    def call(number: int) -> Callable[[], Any]:
        return lambda: full.run(f"t:{number // 2}", lambda: ran.append(number), on_crash=policy, wait=PATIENCE_S)

    calls = [crowd.send(call(number)) for number in range(30)]
    assert sync_of(full).syncs == before
    monkeypatch.undo()
    crowd.end()
    assert sum(not one.result(PATIENCE_S).replayed for one in calls) == len(ran) == 15
    assert {number // 2 for number in ran} == set(range(15))


def test_where_threads_wait_a_stored_answer_is_durable_and_soon_given(
    full: Registry, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a crowd a duplicate waits for the commit of others, and its answer is synced.

    One that does not come keeps it for a moment only.
    """
    soon = full.run("first", lambda: pytest.fail("it ran twice"), name="job", on_crash="rerun")
    assert soon.replayed
    monkeypatch.setattr(hot, "PATIENCE_S", PATIENCE_S)
    again = crowd.send(lambda: full.run("first", lambda: pytest.fail("it ran twice"), name="job", on_crash="rerun"))
    assert not again.done()
    crowd.end()
    assert again.result(PATIENCE_S).replayed
    assert sync_of(full)._read().header == database(full).index.header()  # type: ignore[union-attr]


def test_where_threads_wait_no_rerun_claim_stands_on_a_failed_sync(
    full: Registry, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that needs no sync of its own is refused behind a failed one, in a crowd as alone."""
    monkeypatch.setattr(hot, "PATIENCE_S", PATIENCE_S)
    call = crowd.send(lambda: full.run("t", lambda: pytest.fail("the job started"), on_crash="rerun"))
    sync_of(full).taint()
    crowd.end()
    with pytest.raises(SyncFailedError):
        call.result(PATIENCE_S)


class Napping(Clock):
    """Tells of the first nap."""

    def __init__(self) -> None:
        self.naps = threading.Event()

    def sleep(self, seconds: float) -> None:
        self.naps.set()
        super().sleep(seconds)


def test_the_wal_is_not_moved_while_a_sync_is_about_to_fail(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever leads a sync that fails says so before he drops the turn: a checkpoint waits for that."""
    monkeypatch.setattr(syncing, "PATIENCE_S", PATIENCE_S)
    clock = Napping()
    with Registry(path, clock=clock) as registry, ThreadPoolExecutor(1) as pool:
        registry.run("t", lambda: 1)
        leader = Turns(f"{path}-lock", clock)
        assert leader.sync.try_take()
        clock.naps.clear()
        moved = pool.submit(registry.checkpoint)
        until(lambda: clock.naps.is_set() or moved.done())
        sync_of(registry)._lock_file.note_failed_sync()
        leader.close()
        with pytest.raises(SyncFailedError):
            moved.result(PATIENCE_S)


def test_an_error_of_one_spares_the_others(full: Registry) -> None:
    """In a shared transaction what fails is rolled back alone, and its caller alone is told."""
    full.run("first", lambda: 1)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with full.claim("held", on_crash="rerun") as claim, claim.transaction():
            held.set()
            done.wait(PATIENCE_S)

    def fails(connection: apsw.Connection) -> None:
        connection.execute("CREATE TABLE half (n)")
        connection.execute("INSERT INTO nowhere VALUES (1)")

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE_S)
    with ThreadPoolExecutor(3) as pool:
        one = pool.submit(full.add, "one")
        bad = pool.submit(lambda: database(full).write(fails, durable=True))
        two = pool.submit(full.add, "two")
        until(lambda: len(database(full).gate.waiting) >= 3)
        done.set()
        assert one.result(PATIENCE_S).status is two.result(PATIENCE_S).status is Status.PENDING
        assert bad.exception(PATIENCE_S) is not None
    holder.join()
    tables = database(full).read(lambda connection: connection.execute("SELECT name FROM sqlite_schema").fetchall())
    assert ("half",) not in tables


def test_whoever_waited_too_long_is_told_and_nothing_of_it_is_written(open_registry: Callable[..., Registry]) -> None:
    """At its deadline a thread that waits for another of its process gives up, and is not carried out later."""
    registry = open_registry(durability="full", busy_timeout=0.05)
    registry.run("first", lambda: 1)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with registry.claim("held", on_crash="rerun") as claim, claim.transaction():
            held.set()
            done.wait(PATIENCE_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE_S)
    with pytest.raises(StoreBusyError):
        registry.add("late")
    done.set()
    holder.join()
    assert registry.run("next", lambda: 1).result == 1
    assert registry.get("late") is None


# --- the -wal -------------------------------------------------------------------------------------------------------


def test_the_wal_is_written_to_its_size_once_and_kept(path: Path, full: Registry) -> None:
    """A process that syncs often grows it to its working size; checkpoints leave it there."""
    wal = f"{path}-wal"
    full.run("first", lambda: 1)
    assert os.path.getsize(wal) < 2**20
    for number in range(1_500):
        full.run(f"t:{number}", lambda: "x" * 100, on_crash="rerun")
    assert os.path.getsize(wal) == 6 * 2**20
    index = database(full).index
    assert index is not None
    assert index.frames < 2_500  # it began anew meanwhile
    assert not full.checkpoint("TRUNCATE").busy
    assert os.path.getsize(wal) == 0
    for number in range(10):
        full.run(f"again:{number}", lambda: 1)
    assert os.path.getsize(wal) == 6 * 2**20


GROWER = """
from idemreg import Registry, SyncFailedError
from idemreg.sqlite.wal import SYNCS_BEFORE
registry = Registry(sys.argv[1])
registry.open()
sync = registry.store._opening.opened().database.sync
while sync.syncs < SYNCS_BEFORE - 1: registry.run(f"t:{sync.syncs}", lambda: 1, on_crash="rerun")
fail("sync", errno.EIO, number=2)
registry.run("next", lambda: 1, on_crash="rerun")  # syncs once; then the -wal is written to its size
say(hits())
try: say(registry.get("next").result)
except SyncFailedError: say("not sure")
wait()
"""


@pytest.mark.usefixtures("compiler")
def test_where_the_sync_of_its_new_size_fails_nothing_is_sure(path: Path) -> None:
    """It would have covered what others have committed as well: no process believes what it sees from then on."""
    with FaultedScript(GROWER, path) as script:
        script.expect("1")
        script.expect("not sure")
        with Registry(path) as other, pytest.raises(SyncFailedError):
            other.get("next")


def test_a_backup_in_the_place_of_a_closed_registry_is_what_it_is(path: Path, tmp_path: Path, full: Registry) -> None:
    """Nothing stays beside a file that was closed: frames that stayed would be replayed over the backup."""
    full.run("old", lambda: 1)
    full.backup(tmp_path / "copy.db")
    for number in range(50):
        full.run(f"new:{number}", lambda: 1)
    full.close()
    os.replace(tmp_path / "copy.db", path)
    with Registry(path) as restored:
        assert [task.task_id for task in restored.tasks()] == ["old"]


def test_a_hold_task_that_was_told_of_stays_told_of_after_kills(path: Path, full: Registry) -> None:
    """Killed between commit and sync of its claim, the task was never entered, and is unknown, not run again."""
    script = FINISHER.replace('on_crash="rerun")\nsay("told")', 'on_crash="hold")\nsay("told")')
    with Script(script, path, "sync.begun", "SIGKILL") as writer:
        writer.expect("ready")
        writer.go()
        assert writer.end() == -signal.SIGKILL
    with pytest.raises(TaskUnknownError):
        full.run("t", lambda: pytest.fail("ran"), name="job")


def test_a_closed_index_shows_nothing(full: Registry) -> None:
    """Once its connection is closed, SQLite has unmapped the memory: what is asked then reads none of it."""
    full.run("t", lambda: 1)
    index = database(full).index
    assert index is not None
    assert index.frames > 0
    full.close()
    assert (index.frames, index.moved, index.is_known) == (0, 0, False)


def test_a_closed_file_is_not_used(full: Registry) -> None:
    """Whoever comes too late is told so: nothing is written through what was closed."""
    full.run("t", lambda: 1)
    late = database(full)
    full.close()
    with pytest.raises(StoreError, match="after it was closed"):
        late.read(lambda connection: connection.execute("SELECT 1").fetchall())


def test_a_leader_who_is_interrupted_before_the_sync_leaves_it_to_the_others(full: Registry) -> None:
    """What he took along is committed: each of them syncs it before its caller is told."""
    full.run("first", lambda: 1)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with database(full).long_write(durable=False):
            held.set()
            done.wait(PATIENCE_S)

    gate = database(full).gate
    with ThreadPoolExecutor(3) as pool:
        holder = pool.submit(hold)
        assert held.wait(PATIENCE_S)
        calls = []
        for number in range(2):
            calls.append(pool.submit(full.add, f"t:{number}"))
            until(lambda number=number: len(gate.waiting) == number + 1)  # type: ignore[misc]
        interrupt_at("sync.begun", KeyboardInterrupt())
        done.set()
        holder.result(PATIENCE_S)
        errors = [call.exception(PATIENCE_S) for call in calls]
    assert [type(error) for error in errors] == [KeyboardInterrupt, type(None)]
    assert is_covered(full)
    assert {task.task_id: task.status.word for task in full.tasks(prefix="t:")} == {"t:0": "pending", "t:1": "pending"}
