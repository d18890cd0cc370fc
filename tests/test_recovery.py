"""Recovery: kept arguments, and sweeps that rerun or settle the tasks of dead owners."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import (
    ArgumentError,
    AsyncRegistry,
    ClaimLostError,
    FinishNotRecordedError,
    RecoveryError,
    Registry,
    Status,
    StoreCorruptError,
    Swept,
    TaskDoneError,
    TaskFailedError,
    TaskUnknownError,
    Verdict,
    current_claim,
    faults,
    sweeping,
)
from idemreg.aio import current_claim as current_async_claim
from idemreg.beside import BesideStore
from idemreg.events import Succeeded, TakenOver, Unknown
from idemreg.rerunning import sweep as sweep_for_watch
from idemreg.sweeping import sweep as sweep_walk
from idemreg.tagged import MAX_ARGUMENTS_BYTES
from idemreg.testing import ManualClock
from idemreg.walk import drive
from tests.support.processes import PATIENCE_S, Script
from tests.support.raw import connect, reseal

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from idemreg.events import Event

SECRET = "the secret of user 7"  # noqa: S105 - a word that the tests look for

# A process that begins one job of the test's, and waits in its middle to be killed.
WORKER = """
    from datetime import date
    from decimal import Decimal
    from idemreg import Registry, faults
    registry = Registry(sys.argv[1])
    options = eval(sys.argv[2])
    call = sys.argv[3]
    @registry.idempotent("t:{user}", name="job", **options)
    def job(user, *more, amount=1, **rest):
        say("begun")
        wait()
    eval(call, {"job": job, "Decimal": Decimal, "date": date})
"""
CALL = "job(7, 'the secret of user 7', (1, 2), amount=Decimal('1.50'), day=date(2026, 11, 23))"
ARGUMENTS: tuple[Any, Any] = (7, SECRET, (1, 2)), {"amount": Decimal("1.50"), "day": dt.date(2026, 11, 23)}
RERUN: dict[str, Any] = {"on_crash": "rerun", "recover": True}


def killed(path: Path, options: dict[str, Any] = RERUN, call: str = CALL) -> None:
    """A worker dies in the middle of the job."""
    with Script(WORKER, path, repr(options), call) as worker:
        worker.expect("begun")
        worker.kill()


class Job:
    """The function of the worker, in the registry that sweeps, and the calls that came."""

    def __init__(self, registry: Registry, body: Callable[[], object] = lambda: "done", **options: Any) -> None:
        self.calls: list[tuple[Any, Any]] = []
        self.attempts: list[int] = []
        self.body = body

        @registry.idempotent("t:{user}", name="job", **{**RERUN, **options})
        def job(user: int, *more: object, amount: Any = 1, **rest: object) -> object:
            self.calls.append(((user, *more), {"amount": amount, **rest}))
            self.attempts.append(current_claim().attempt)
            return self.body()

        self.call = job


def kept(path: Path) -> list[Any]:
    """What is stored of arguments, as another program sees it."""
    connection = connect(path)
    try:
        return connection.execute("SELECT task_id, is_command, arguments FROM idempotent_argument").fetchall()
    finally:
        connection.close()


def status(registry: Registry, task_id: str = "t:7") -> Status:
    task = registry.get(task_id)
    assert task is not None
    return task.status


def only(swept: list[Swept]) -> Swept:
    (one,) = swept
    return one


# --- rerun ------------------------------------------------------------------------------------------------------


def test_a_killed_job_is_rerun_with_its_arguments(registry: Registry, path: Path) -> None:
    """A sweep runs the task of a dead owner once more, with arguments equal in value and type, and keeps none then."""
    killed(path)
    job = Job(registry)
    one = only(registry.sweep())
    assert (one.task_id, one.did, one.status, one.error) == ("t:7", "rerun", Status.SUCCEEDED, None)
    assert one.outcome.result == "done"
    assert job.calls == [ARGUMENTS]
    assert job.attempts == [2]
    assert kept(path) == []
    assert registry.sweep() == []
    assert len(job.calls) == 1


def test_arguments_are_kept_until_the_task_is_final(registry: Registry, path: Path) -> None:
    """While it runs and after a failure they stand in the file; with its success they go, in one commit."""
    during = []

    def body() -> None:
        during.append(kept(path))
        if len(during) == 1:
            msg = "no luck"
            raise ValueError(msg)

    job = Job(registry, body)
    with pytest.raises(ValueError, match="no luck"):
        job.call(7, SECRET)
    (after,) = kept(path)
    assert after == ("t:7", 0, f'{{"user":7,"more":{{"$":["tuple",["{SECRET}"]]}},"rest":{{}},"":{{"amount":1}}}}')
    job.call(7, SECRET)
    assert during == [[after], [after]]
    assert kept(path) == []


END: dict[str, Callable[[Registry], object]] = {
    "cancel": lambda registry: registry.cancel("t:7"),
    "forget": lambda registry: registry.forget("t:7", force=True),
    "resolve": lambda registry: registry.resolve("t:7", "happened"),
}


@pytest.mark.parametrize("how", END)
def test_an_operators_end_takes_the_arguments(how: str, registry: Registry, path: Path) -> None:
    """Whoever makes the task final or removes it, its arguments go with that."""
    killed(path, {"on_crash": "hold", "recover": True})
    registry.sweep()
    assert status(registry) is Status.UNKNOWN
    assert len(kept(path)) == 1
    END[how](registry)
    assert kept(path) == []


def test_a_skipped_task_keeps_none(registry: Registry, path: Path) -> None:
    """A task that was interrupted and then skipped is final."""
    job = Job(registry, interrupt)
    with pytest.raises(KeyboardInterrupt):
        job.call(7)
    assert len(kept(path)) == 1
    registry.skip("t:7", "no need")
    assert kept(path) == []


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_call_without_recover_takes_them_away(registry: Registry, path: Path) -> None:
    """The last claim says whether arguments are kept: a newer program that wants none leaves none behind."""
    killed(path)

    @registry.idempotent("t:{user}", name="job", on_crash="rerun")
    def job(user: int, *more: object, amount: Any = 1, **rest: object) -> str:
        assert kept(path) == []
        return "done"

    args, kwargs = ARGUMENTS
    assert job(*args, **kwargs) == "done"
    assert kept(path) == []


def test_nothing_that_ran_before_the_job_is_kept(registry: Registry, path: Path) -> None:
    """A caller who was cancelled before the job leaves a row that binds nobody, and no arguments."""
    job = Job(registry)
    faults.arm("claim.committed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        job.call(7, SECRET)
    assert status(registry) is Status.PENDING
    assert kept(path) == []


def test_a_sweep_goes_on_where_the_steps_end(registry: Registry, path: Path) -> None:
    """What a dead attempt has saved as a step is not run again by a sweep."""
    with Script(
        """
        from idemreg import Registry, current_claim
        registry = Registry(sys.argv[1])
        @registry.idempotent("t:{user}", name="job", on_crash="rerun", recover=True)
        def job(user):
            current_claim().run_step("first", lambda: 41)
            say("begun")
            wait()
        job(7)
        """,
        path,
    ) as worker:
        worker.expect("begun")
        worker.kill()

    @registry.idempotent("t:{user}", name="job", on_crash="rerun", recover=True)
    def job(user: int) -> int:
        return current_claim().run_step("first", lambda: 0) + 1

    assert only(registry.sweep()).outcome.result == 42


def test_an_interrupted_job_is_rerun_too(registry: Registry) -> None:
    """Under rerun an interruption puts the task back with its attempt counted; nobody else knows its arguments."""
    job = Job(registry)
    job.body = interrupt
    with pytest.raises(KeyboardInterrupt):
        job.call(7)
    assert status(registry) is Status.PENDING
    job.body = str
    assert only(registry.sweep()).status is Status.SUCCEEDED
    assert job.attempts == [1, 2]


def test_a_released_task_waits_for_its_caller(registry: Registry) -> None:
    """A job that asked to be put back says when it shall run: a sweep lets it be."""

    def busy() -> None:
        raise BlockingIOError

    job = Job(registry, busy, release_on=BlockingIOError)
    with pytest.raises(BlockingIOError):
        job.call(7)
    assert registry.sweep() == []
    assert len(job.calls) == 1


def test_a_rerun_that_is_put_back_waits_for_the_next_sweep(registry: Registry, path: Path) -> None:
    """Its caller is dead, so nobody else would ever run it: whether or not an error is stored."""

    def busy() -> None:
        raise BlockingIOError

    killed(path)
    job = Job(registry, busy, release_on=BlockingIOError)
    one = only(registry.sweep())
    assert (one.did, one.status, type(one.error)) == ("rerun", Status.PENDING, BlockingIOError)
    job.body = str
    assert only(registry.sweep()).status is Status.SUCCEEDED
    assert job.attempts == [2, 2]
    assert kept(path) == []


def test_a_failed_task_waits_for_its_caller_or_an_order(registry: Registry) -> None:
    """A failure is the caller's to repeat; after `retry`, or a verdict that it did not happen, a sweep runs it."""

    def fail() -> None:
        msg = "no luck"
        raise ValueError(msg)

    job = Job(registry, fail)
    with pytest.raises(ValueError, match="no luck"):
        job.call(7)
    assert registry.sweep() == []
    registry.retry("t:7")
    one = only(registry.sweep())
    assert (one.did, one.status, type(one.error)) == ("rerun", Status.FAILED, ValueError)
    assert one.is_trouble
    assert registry.sweep() == []
    assert job.attempts == [1, 2]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=type)
def test_a_job_that_ends_its_caller_is_told(error: BaseException, registry: Registry, path: Path) -> None:
    """Where no signal raises it, it is the job's: its policy decides, and other tasks are run."""
    killed(path)
    killed(path, call=CALL.replace("7", "8", 1))

    def end() -> None:
        if len(job.calls) == 1:
            raise error

    job = Job(registry, end)
    first, second = sweep_for_watch(registry, None, lambda: False)
    assert (first.did, first.status, first.error, first.is_trouble) == ("rerun", Status.PENDING, error, True)
    assert (second.task_id, second.status) == ("t:8", Status.SUCCEEDED)
    assert only(registry.sweep()).status is Status.SUCCEEDED


def test_an_interruption_of_the_sweep_goes_on_its_way(registry: Registry, path: Path) -> None:
    """In the main thread it may be Ctrl-C, or a handler's SystemExit: the sweep ends by it. In another it may not."""
    killed(path)
    job = Job(registry, interrupt)
    with pytest.raises(KeyboardInterrupt):
        registry.sweep()
    swept: list[Swept] = []
    thread = threading.Thread(target=lambda: swept.extend(registry.sweep()))
    thread.start()
    thread.join(PATIENCE_S)
    assert (only(swept).status, type(only(swept).error)) == (Status.PENDING, KeyboardInterrupt)
    assert job.attempts == [2, 3]


def test_an_attempt_too_many_is_a_dead_letter(registry: Registry, path: Path) -> None:
    """A task that kills each of its owners is rerun until its attempts are used up."""
    killed(path, {**RERUN, "max_attempts": 1})
    job = Job(registry, max_attempts=1)
    one = only(registry.sweep())
    assert (one.did, one.status, type(one.error)) == ("settled", Status.FAILED, TaskFailedError)
    assert job.calls == []
    assert len(kept(path)) == 1
    registry.retry("t:7")
    assert only(registry.sweep()).status is Status.SUCCEEDED
    assert job.calls == [ARGUMENTS]


def test_kept_arguments_are_on_the_disk_before_the_job(path: Path) -> None:
    """A lost claim under rerun is run again by a caller who comes again; here there is none, so it is synced."""
    counts = []
    with Registry(path) as registry:
        registry.run("first", lambda: 1)
        store: Any = registry.store
        sync = store._opening.current.database.sync
        for recover in (True, False):

            @registry.idempotent(f"t:{recover}:{{user}}", name=f"{recover}", on_crash="rerun", recover=recover)
            def job(user: int) -> int:
                counts.append(sync.syncs)
                return user

            counts.append(sync.syncs)
            job(7)
            counts.append(sync.syncs)
    assert [after - before for before, after in itertools.pairwise(counts)] == [1, 1, 0, 0, 1]


def test_each_task_is_told_at_once(registry: Registry, path: Path) -> None:
    """What was settled, or rerun, is told before the next job runs: it may take hours."""
    told: list[tuple[str, str]] = []
    before: list[list[tuple[str, str]]] = []
    killed(path)
    killed(path, call=CALL.replace("7", "8", 1))
    killed(path, {"on_crash": "hold"}, CALL.replace("7", "9", 1))
    Job(registry, lambda: before.append(list(told)))
    sweep_for_watch(registry, tell=lambda one: told.append((one.task_id, one.did)))
    settled, first, second = ("t:9", "settled"), ("t:7", "rerun"), ("t:8", "rerun")
    assert before == [[settled], [settled, first]]
    assert told == [settled, first, second]


# --- settle -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recover", [True, False])
def test_a_held_task_becomes_unknown(recover: bool, open_registry: Callable[..., Registry], path: Path) -> None:  # noqa: FBT001
    """Under hold nothing runs again: the sweep settles it at once, and says so."""
    events: list[Event] = []
    registry = open_registry(on_event=events.append)
    killed(path, {"on_crash": "hold", "recover": recover})
    job = Job(registry, on_crash="hold")
    one = only(registry.sweep())
    assert (one.did, one.status, type(one.error)) == ("settled", Status.UNKNOWN, TaskUnknownError)
    task = registry.get("t:7")
    assert task is not None
    assert (task.verdict, task.settled_by) == (Verdict.CANNOT_TELL, "sweep")
    assert (task.error or "").startswith("OwnerDied: attempt 1")
    assert [type(event) for event in events] == [Unknown]
    assert job.calls == []
    assert registry.sweep() == []


def test_what_did_not_happen_is_rerun(registry: Registry, path: Path) -> None:
    """An operator who found out that a held task did not happen need not know its arguments."""
    killed(path, {"on_crash": "hold", "recover": True})
    job = Job(registry, on_crash="hold")
    registry.sweep()
    registry.resolve("t:7", "did-not-happen")
    assert only(registry.sweep()).status is Status.SUCCEEDED
    assert job.calls == [ARGUMENTS]


def test_a_rerun_without_arguments_is_left_to_its_call(registry: Registry, path: Path) -> None:
    """The next call would run it by itself, and has the arguments: `unknown` would keep it from that."""
    killed(path, {"on_crash": "rerun"})
    one = only(registry.sweep())
    assert (one.did, one.status, one.error, one.is_trouble) == ("left", Status.RUNNING, None, False)
    job = Job(registry)
    args, kwargs = ARGUMENTS
    assert job.call(*args, **kwargs) == "done"


def test_nothing_is_told_of_an_owner_that_ended_meanwhile(registry: Registry, path: Path) -> None:
    """Who ends its task, and then itself, between a sweep's look at the row and that at its owner, left nothing."""
    with Script(
        """
        from idemreg import Registry
        with Registry(sys.argv[1]) as registry, registry.claim("t:7", on_crash="rerun"):
            say("claimed")
            wait()
        """,
        path,
    ) as worker:
        worker.expect("claimed")

        class Slow(BesideStore):
            def page(self, *args: Any) -> Any:
                page = self._store.page(*args)
                worker.go()
                assert worker.end() == 0
                return page

        store: Any = Slow(registry.store)
        nothing_to_run: Any = None
        assert drive(sweep_walk(store, None, nothing_to_run)) == []
    assert status(registry) is Status.SUCCEEDED


def test_a_task_of_a_batch_that_was_not_begun_is_left(registry: Registry, path: Path) -> None:
    """Nothing of it has run, so its next call claims it as if it had been put back."""
    with Script(
        """
        from idemreg import Registry
        registry = Registry(sys.argv[1])
        claims = registry.claim_many([("begun", None), ("waits", None)], name="batch")
        claims[0].enter()
        say("claimed")
        wait()
        """,
        path,
    ) as worker:
        worker.expect("claimed")
        worker.kill()
    swept = {one.task_id: (one.did, one.status) for one in registry.sweep()}
    assert swept == {"begun": ("settled", Status.UNKNOWN), "waits": ("left", Status.RUNNING)}
    assert registry.run("waits", lambda: 1, name="batch").attempt == 1


@pytest.mark.parametrize("answer", [True, False, None])
def test_a_hook_is_asked_with_the_arguments(answer: bool | None, registry: Registry, path: Path) -> None:  # noqa: FBT001
    """Under verify the function's own hook decides: it happened, it is run again, or it stays unknown."""
    asked: list[Any] = []

    def look_up(task: object, *args: object, **kwargs: object) -> bool | None:
        asked.append((args, kwargs))
        return answer

    killed_under_verify(path)
    job = Job(registry, on_crash="verify", verify=look_up)
    one = only(registry.sweep())
    assert asked == [ARGUMENTS]
    expected = {
        True: ("settled", Status.SUCCEEDED, 0),
        False: ("rerun", Status.SUCCEEDED, 1),
        None: ("settled", Status.UNKNOWN, 0),
    }
    assert (one.did, one.status, len(job.calls)) == expected[answer]
    assert registry.sweep() == []


def killed_under_verify(path: Path) -> None:
    with Script(VERIFIED, path) as worker:
        worker.expect("begun")
        worker.kill()


def cut_off_in_a_call(registry: Registry, path: Path, job: AskedJob) -> None:
    """Ctrl-C while its caller asks the hook."""
    del registry
    killed_under_verify(path)
    with pytest.raises(KeyboardInterrupt):
        job.call(*ARGUMENTS[0], **ARGUMENTS[1])


def cut_off_in_a_sweep(registry: Registry, path: Path, job: AskedJob) -> None:
    """Ctrl-C while a sweep asks it."""
    del job
    killed_under_verify(path)
    with pytest.raises(KeyboardInterrupt):
        registry.sweep()


def killed_in_a_sweep(registry: Registry, path: Path, job: AskedJob) -> None:
    """kill -9 while another process asks it."""
    job.answers.clear()
    killed_under_verify(path)
    with Script(ASKING, path) as asking:
        asking.expect("asked")
        assert registry.sweep() == []  # never twice at once
        asking.kill()


def interrupted_in_its_job(registry: Registry, path: Path, job: AskedJob) -> None:
    """The job was interrupted, and nobody has asked the hook yet."""
    del registry, path

    def interrupt() -> None:
        raise KeyboardInterrupt

    job.answers.clear()
    job.body = interrupt
    with pytest.raises(KeyboardInterrupt):
        job.call(*ARGUMENTS[0], **ARGUMENTS[1])
    job.calls.clear()
    job.body = lambda: "done"


class AskedJob(Job):
    """A job whose hook gives, or raises, what it is told to."""

    def __init__(self, registry: Registry, answers: list[Any]) -> None:
        self.answers = answers
        self.asked: list[Any] = []
        super().__init__(registry, on_crash="verify", verify=self.look_up)

    def look_up(self, task: object, *args: object, **kwargs: object) -> Any:
        self.asked.append((args, kwargs))
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.mark.parametrize("answer", [True, False, None])
@pytest.mark.parametrize(
    "left",
    [cut_off_in_a_call, cut_off_in_a_sweep, killed_in_a_sweep, interrupted_in_its_job],
    ids=lambda one: one.__name__,
)
def test_a_hook_that_was_cut_off_is_asked_again(
    left: Callable[[Registry, Path, AskedJob], None],
    answer: bool | None,  # noqa: FBT001
    registry: Registry,
    path: Path,
) -> None:
    """By the next sweep, with the arguments, and once: its verdict settles the task, and 'cannot tell' is one."""
    job = AskedJob(registry, [KeyboardInterrupt()])
    left(registry, path, job)
    job.asked.clear()
    job.answers.append(answer)
    one = only(registry.sweep())
    expected = {
        True: ("settled", Status.SUCCEEDED, []),
        False: ("rerun", Status.SUCCEEDED, [ARGUMENTS]),
        None: ("settled", Status.UNKNOWN, []),
    }
    assert (one.did, one.status, job.calls) == expected[answer]
    assert registry.sweep() == []
    assert job.asked == [ARGUMENTS]


def test_a_hook_is_asked_although_a_call_without_it_found_the_owner_dead(
    open_registry: Callable[..., Registry], path: Path
) -> None:
    """That call could settle it to unknown only, and is no answer of the hook."""
    killed_under_verify(path)
    sweeper, other = open_registry(), open_registry()
    job = AskedJob(sweeper, [True])
    with pytest.raises(TaskUnknownError):
        Job(other, on_crash="hold", recover=False).call(*ARGUMENTS[0], **ARGUMENTS[1])
    one = only(sweeper.sweep())
    assert (one.did, one.status, job.asked) == ("settled", Status.SUCCEEDED, [ARGUMENTS])


def test_a_hook_that_ends_its_thread_is_told_as_not_run(registry: Registry, path: Path) -> None:
    """Where nothing else raises SystemExit it is the hook's: the task is unknown, and its job did not run."""
    killed_under_verify(path)
    job = AskedJob(registry, [SystemExit(3)])
    one = only(sweep_for_watch(registry, is_ended=lambda: False))
    assert (one.did, one.status, type(one.error), job.calls) == ("settled", Status.UNKNOWN, SystemExit, [])


@pytest.mark.parametrize("answer", [None, False])
def test_a_sweep_looks_again_before_each(
    answer: bool | None,  # noqa: FBT001
    open_registry: Callable[..., Registry],
    path: Path,
) -> None:
    """What another sweep has done since the page was read is not done again: a job before it may take hours."""
    killed_under_verify(path)
    late, quick = open_registry(), open_registry()

    def fails() -> None:
        raise LookupError

    jobs = AskedJob(late, [True]), AskedJob(quick, [answer])
    jobs[1].body = fails
    kept_page = late.store.kept  # type: ignore[attr-defined]

    def overtaken(after: str | None, limit: int) -> Any:
        found = kept_page(after, limit)
        quick.sweep()
        return found

    late.store.kept = overtaken  # type: ignore[attr-defined]
    assert late.sweep() == []
    assert (jobs[0].asked, jobs[1].asked) == ([], [ARGUMENTS])
    assert status(late) is (Status.UNKNOWN if answer is None else Status.FAILED)


ASKING = """
    from idemreg import Registry
    registry = Registry(sys.argv[1])
    def look_up(task, *args, **kwargs):
        say("asked")
        wait()
    @registry.idempotent("t:{user}", name="job", on_crash="verify", verify=look_up, recover=True)
    def job(user, *more, amount=1, **rest):
        say("rerun")
    registry.sweep()
"""

VERIFIED = WORKER.replace(
    "options = eval(sys.argv[2])", 'options = dict(on_crash="verify", verify=print, recover=True)'
)
VERIFIED = VERIFIED.replace("sys.argv[3]", repr(CALL))


@pytest.mark.parametrize("options", [RERUN, {"on_crash": "hold", "recover": True}, {"on_crash": "hold"}])
def test_a_living_owner_is_let_be(registry: Registry, path: Path, options: dict[str, Any]) -> None:
    """Neither its task nor its arguments are touched, under whichever policy."""
    with Script(WORKER, path, repr(options), CALL) as worker:
        worker.expect("begun")
        job = Job(registry)
        assert registry.sweep() == []
        worker.go()
        assert worker.end() == 0
    assert registry.sweep() == []
    assert job.calls == []


def test_an_expired_lease_is_swept(open_registry: Callable[..., Registry]) -> None:
    """The task of an owner that hangs is rerun once its lease is over; the late owner changes nothing."""
    clock = ManualClock()
    hanging, sweeping = open_registry(clock=clock), open_registry(clock=clock)
    late = Job(hanging, lease=60)
    job = Job(sweeping, lease=60)

    def sweeps() -> None:
        clock.advance(61)
        assert only(sweeping.sweep()).status is Status.SUCCEEDED

    late.body = sweeps
    with pytest.raises(ClaimLostError):
        late.call(7)
    assert (late.attempts, job.attempts) == ([1], [2])


def test_many_dead_tasks_are_settled_in_batches(registry: Registry, path: Path) -> None:
    """One sweep settles them all: at most 100 by one transaction, and what one page of 500 has before the next."""
    count = 620
    with Script(
        """
        from idemreg import Registry
        registry = Registry(sys.argv[1], durability="normal")
        claims = [registry.claim(f"t:{number}", name="job") for number in range(int(sys.argv[2]))]
        say("claimed")
        wait()
        """,
        path,
        count,
    ) as worker:
        worker.expect("claimed")
        worker.kill()
    committed: list[int] = []
    faults.arm("sweep.committed", lambda: committed.append(registry.count()[Status.UNKNOWN]))
    told: list[int] = []  # how many were settled by then; a page's are told once all of it is
    swept = sweep_for_watch(registry, tell=lambda _: told.append(registry.count()[Status.UNKNOWN]))
    assert committed == [100, 200, 300, 400, 500, 600, count]
    assert told == [500] * 500 + [count] * (count - 500)
    assert len({one.task_id for one in swept}) == count
    assert registry.count() == {Status.UNKNOWN: count}


# --- what comes in between --------------------------------------------------------------------------------------


def put_back(registry: Registry, *users: int) -> Job:
    """A job that waits for a sweep, for each of these: its first attempt was interrupted."""
    job = Job(registry, interrupt)
    for user in users:
        with pytest.raises(KeyboardInterrupt):
            job.call(user)
    job.body = lambda: "done"
    return job


def test_an_error_of_the_store_behind_what_was_swept_is_the_next_sweeps(registry: Registry, path: Path) -> None:
    """What was settled is told all the same; the next sweep, which settles nothing, meets the damage."""
    job = put_back(registry, 7)
    killed(path, {"on_crash": "hold"}, CALL.replace("7", "8", 1))
    with contextlib.closing(connect(path)) as connection:
        connection.execute("UPDATE idempotent_argument SET arguments = '{}'")
    assert only(registry.sweep()).task_id == "t:8"
    with pytest.raises(StoreCorruptError, match="kept of the arguments of task 't:7'"):
        registry.sweep()
    assert (status(registry), status(registry, "t:8")) == (Status.PENDING, Status.UNKNOWN)
    assert job.attempts == [1]


def test_what_another_sweep_settles_first_is_its_own_to_tell(
    open_registry: Callable[..., Registry], path: Path
) -> None:
    """Both have seen the same dead owner: one tells of the task."""
    killed(path, {"on_crash": "hold"})
    late, quick = open_registry(), open_registry()
    page = late.store.page
    swept: list[Swept] = []

    def overtaken(*words: Any) -> Any:
        found = page(*words)
        swept.extend(quick.sweep())
        return found

    late.store.page = overtaken  # type: ignore[method-assign,assignment]
    assert late.sweep() == []
    assert (only(swept).did, status(late)) == ("settled", Status.UNKNOWN)


def test_arguments_that_no_claim_brought_are_not_run(registry: Registry, path: Path) -> None:
    """Its claim kept none, says the row: whatever lies beside it is none of that claim's."""
    job = put_back(registry, 7)
    with contextlib.closing(connect(path)) as connection:
        connection.execute("UPDATE idempotent_log SET policy = policy & ~16")
        reseal(connection)
    assert registry.sweep() == []
    assert (status(registry), job.attempts) == (Status.PENDING, [1])


def test_more_than_a_page_of_kept_arguments_is_run(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, each task once, while those of the pages before go."""
    monkeypatch.setattr(sweeping, "KEPT_AT_ONCE", 2)
    job = put_back(registry, *range(5))
    assert [one.task_id for one in registry.sweep()] == [f"t:{user}" for user in range(5)]
    assert job.attempts == [1] * 5 + [2] * 5
    assert registry.sweep() == []


def test_a_rerun_job_that_calls_a_task_which_is_skipped_has_failed(registry: Registry) -> None:
    """The error is of the other task, and so the job's own."""
    registry.add("other", name="other")
    registry.skip("other", reason="not today")
    job = put_back(registry, 7)
    job.body = lambda: registry.run("other", lambda: 1, name="other")
    one = only(registry.sweep())
    assert (one.did, one.status, type(one.error)) == ("rerun", Status.FAILED, TaskDoneError)
    assert (status(registry), status(registry, "other")) == (Status.FAILED, Status.SKIPPED)


def test_a_rerun_whose_end_nobody_can_read_is_told_as_it_was(path: Path) -> None:
    """Its file is gone in the middle of the job: the caller has the error, and no row to go by."""
    with Registry(path, durability="full") as registry:
        job = put_back(registry, 7)
        job.body = path.unlink
        one = only(registry.sweep())
        assert (one.did, one.status, type(one.error)) == ("rerun", Status.PENDING, FinishNotRecordedError)
        assert job.attempts == [1, 2]


def test_a_rerun_that_cannot_be_made_is_put_back(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory goes behind its claim: nothing ran, and the next sweep runs it."""
    job = put_back(registry, 7)

    def no_memory(*_words: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "Version", no_memory)
        one = only(registry.sweep())
    assert (one.status, type(one.error), job.attempts) == (Status.PENDING, MemoryError, [1])
    assert only(registry.sweep()).status is Status.SUCCEEDED
    assert job.attempts == [1, 2]


def test_a_sweep_that_is_dropped_in_a_job_ends(registry: Registry) -> None:
    """Whatever errors are a job's there: the end of the walk itself is none of them, and nothing more is done."""
    put_back(registry, 7)
    before = registry.get("t:7")

    def job() -> None:
        pytest.fail("nobody carries it out")

    def rerun(*_: object) -> Any:
        yield job, (), {}

    told: list[Swept] = []
    walk = sweeping.sweep(registry.store, None, rerun, jobs_own=(BaseException,), tell=told.append)
    call, args, _ = next(walk)
    while call is not job:
        call, args, _ = walk.send(call(*args))
    walk.close()
    assert (told, registry.get("t:7")) == ([], before)


# --- who may ----------------------------------------------------------------------------------------------------


def test_two_sweeps_rerun_each_task_once(open_registry: Callable[..., Registry], path: Path) -> None:
    """Of two that found the same task dead, one gets the claim; the other has nothing to tell."""
    killed(path)
    first, second = open_registry(), open_registry()
    meeting = threading.Barrier(2, timeout=PATIENCE_S)
    jobs = [Job(first), Job(second)]
    original = [registry.store.kept for registry in (first, second)]  # type: ignore[attr-defined]

    def together(store: Any, kept: Any) -> None:
        def call(after: str | None, limit: int) -> Any:
            found = kept(after, limit)
            if found:
                meeting.wait()
            return found

        store.kept = call

    for registry, own in zip((first, second), original, strict=True):
        together(registry.store, own)
    swept: list[list[Swept]] = []
    threads = [threading.Thread(target=lambda one=one: swept.append(one.sweep())) for one in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(len(one) for one in swept) == [0, 1]
    assert sum(len(job.calls) for job in jobs) == 1


@pytest.mark.parametrize(
    ("meanwhile", "left"),
    [(lambda other: other.sweep(), Status.FAILED), (lambda other: other.forget("t:7", force=True), None)],
    ids=["swept by another, and failed", "forgotten"],
)
def test_a_sweep_reruns_nothing_that_has_moved_on(
    open_registry: Callable[..., Registry], path: Path, meanwhile: Callable[[Registry], object], left: Status | None
) -> None:
    """What somebody else has run since the sweep found it, or has taken away, is not run once more."""
    killed(path)
    slow, other = open_registry(), open_registry()
    behind, before = Job(slow), Job(other, lambda: 1 / 0)

    def happens() -> None:
        faults.disarm()
        meanwhile(other)

    faults.arm("sweep.found", happens)
    assert slow.sweep() == []
    row = slow.get("t:7")
    assert (row and row.status) == left
    assert (len(behind.calls), len(before.calls)) == (0, 0 if left is None else 1)


def test_a_sweep_does_not_tell_of_what_others_have_settled(open_registry: Callable[..., Registry], path: Path) -> None:
    """Somebody ran the task for the last time since the sweep found it: that it failed for good is not its doing."""
    options = {**RERUN, "max_attempts": 2}
    killed(path, options)
    slow, other = open_registry(), open_registry()
    behind, before = Job(slow, **options), Job(other, lambda: 1 / 0, **options)

    def happens() -> None:
        faults.disarm()
        assert only(other.sweep()).status is Status.FAILED

    faults.arm("sweep.found", happens)
    assert slow.sweep() == []
    assert (len(behind.calls), len(before.calls)) == (0, 1)


def test_nor_of_what_others_know_to_have_happened(open_registry: Callable[..., Registry], path: Path) -> None:
    """An operator was faster than the hook, which nobody asks then."""
    options: dict[str, Any] = {"on_crash": "verify", "recover": True, "verify": lambda _: 1 / 0}
    killed_under_verify(path)
    slow, other = open_registry(), open_registry()
    job = Job(slow, **options)

    def happens() -> None:
        faults.disarm()
        other.resolve("t:7", "happened")

    faults.arm("sweep.found", happens)
    assert slow.sweep() == []
    assert job.calls == []


def test_a_sweep_reruns_nothing_that_its_late_owner_has_ended(
    open_registry: Callable[..., Registry],
) -> None:
    """Its lease was over as the sweep found it; but it failed before anybody took it, and its caller was told."""
    clock, begun, goes_on = ManualClock(), threading.Event(), threading.Event()
    late, sweeper = open_registry(clock=clock), open_registry(clock=clock)

    def fails() -> None:
        begun.set()
        assert goes_on.wait(PATIENCE_S)
        raise ZeroDivisionError

    def call() -> None:
        with pytest.raises(ZeroDivisionError):
            Job(late, fails, lease=60).call(7)

    swept = Job(sweeper)
    owner = threading.Thread(target=call)
    owner.start()
    assert begun.wait(PATIENCE_S)
    clock.advance(61)

    def ends() -> None:
        faults.disarm()
        goes_on.set()
        owner.join(PATIENCE_S)

    faults.arm("sweep.found", ends)
    assert sweeper.sweep() == []
    assert swept.calls == []
    row = sweeper.get("t:7")
    assert (row and (row.status, row.attempt)) == (Status.FAILED, 1)


def test_a_task_of_another_function_is_left(registry: Registry, path: Path) -> None:
    """A registry reruns what it has decorated; what it does not know is told, and stays for who knows it."""
    killed(path)
    one = only(registry.sweep())
    assert (one.did, one.status, type(one.error)) == ("left", Status.RUNNING, RecoveryError)
    assert "no function 'job' with recover=True" in str(one.error)
    job = Job(registry)
    assert only(registry.sweep()).did == "rerun"
    assert job.calls == [ARGUMENTS]


def test_a_function_that_has_changed_is_not_rerun(registry: Registry, path: Path) -> None:
    """Arguments that the function does not take any more, or counts otherwise, are left to a person."""
    killed(path)

    @registry.idempotent("t:{user}", name="job", recover=True, on_crash="rerun")
    def job(user: int, amount: int) -> None:
        raise AssertionError

    one = only(registry.sweep())
    assert (one.did, type(one.error)) == ("left", RecoveryError)
    assert "its parameters are others now" in str(one.error)
    other = Registry(path)
    Job(other, checksum=lambda *_, **__: "something else")
    assert "has another checksum now" in str(only(other.sweep()).error)
    other.close()


def test_an_error_before_the_claim_leaves_the_task(registry: Registry, path: Path) -> None:
    """Whatever `checksum=` raises over what was kept: nothing ran, and what comes next may run it."""
    killed(path)

    def checksum(*_args: object, **_kwargs: object) -> object:
        raise KeyError("user")  # noqa: EM101 - as a lookup raises it

    job = Job(registry, checksum=checksum)
    one = only(registry.sweep())
    assert (one.did, one.status, type(one.error)) == ("left", Status.RUNNING, RecoveryError)
    assert "KeyError: 'user'" in str(one.error)
    assert job.calls == []
    with Registry(path) as other:
        Job(other)
        assert only(other.sweep()).status is Status.SUCCEEDED


def test_the_stored_task_id_counts(registry: Registry, path: Path) -> None:
    """What makes a task_id may look at more than the arguments, as at the date: a rerun is of the task that died."""
    killed(path)
    ran = []

    @registry.idempotent(lambda *_, **__: "another", name="job", recover=True, on_crash="rerun")
    def job(user: int, *more: object, amount: Any = 1, **rest: object) -> None:
        ran.append(current_claim().task_id)

    registry.sweep()
    assert ran == ["t:7"]


# --- what can be kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", [object(), "x" * MAX_ARGUMENTS_BYTES, "\ud800"], ids=["type", "size", "text"])
def test_arguments_that_cannot_be_kept_are_refused(argument: object, registry: Registry) -> None:
    """Before the job starts, and before anything is stored."""
    ran = []

    @registry.idempotent("t", recover=True, checksum=lambda _: None)
    def job(argument: object) -> None:
        ran.append(argument)

    with pytest.raises(ArgumentError, match="what is kept of the arguments") as refused:
        job(argument)
    assert "recover=" in refused.value.hint
    assert not ran
    assert registry.get("t") is None


def test_what_is_excluded_needs_a_default(registry: Registry) -> None:
    """Nobody could give it at a rerun: so a method, and a function that is handed a connection, are refused at once."""

    class Shop:
        def order(self, number: int) -> None: ...

    with pytest.raises(ValueError, match="needs 'self', which is excluded"):
        registry.idempotent("t:{number}", recover=True)(Shop.order)


def test_what_is_excluded_is_not_kept(registry: Registry, path: Path) -> None:
    """An excluded argument has its default again at a rerun; so has what was left to a default that is no data."""
    calls: list[Any] = []
    default = object()

    @registry.idempotent("t:{user}", exclude=["token", "session"], recover=True, on_crash="rerun")
    def job(user: int, session: object = None, other: object = default, *, token: str = "", **rest: object) -> None:
        calls.append((user, session, other, token, rest))
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(7, object(), token=SECRET, session_id=1)
    assert SECRET not in str(kept(path))
    registry.sweep()
    assert calls[1] == (7, None, default, "", {"session_id": 1})


@pytest.mark.parametrize("given", [{}, {"amount": 1_000}], ids=["left out", "given"])
def test_a_rerun_has_the_defaults_of_its_call(given: dict[str, Any], registry: Registry, path: Path) -> None:
    """The rerun is the very call, also by a program whose function has another default by now."""
    calls = []

    def job(user: int, amount: int = 1_000, limits: tuple[int, ...] = (1, 2)) -> None:
        calls.append((user, amount, limits))
        if len(calls) == 1:
            raise KeyboardInterrupt

    decorate = {"name": "job", **RERUN}
    with pytest.raises(KeyboardInterrupt):
        registry.idempotent("t:{user}", **decorate)(job)(7, **given)
    job.__defaults__ = (2_000, (3,))
    with Registry(path) as other:
        other.idempotent("t:{user}", **decorate)(job)
        assert only(other.sweep()).error is None
    assert calls == [(7, 1_000, (1, 2))] * 2


def test_two_functions_of_one_name_are_refused(registry: Registry) -> None:
    """A rerun could not tell them apart."""
    Job(registry)
    with pytest.raises(ValueError, match="the name 'job' is"):

        @registry.idempotent("other:{user}", name="job", recover=True)
        def job(user: int) -> None: ...


# --- coroutines -------------------------------------------------------------------------------------------------


def test_coroutines_are_rerun(
    path: Path,
    loop: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any],
    nothing_on_the_event_loop: None,
) -> None:
    """`await registry.sweep()` does the same from an event loop, and never on its thread."""
    killed(path)
    calls = []

    async def main() -> list[Swept]:
        async with AsyncRegistry(path) as jobs:

            @jobs.idempotent("t:{user}", name="job", on_crash="rerun", recover=True)
            async def job(user: int, *more: object, amount: Any = 1, **rest: object) -> str:
                calls.append(((user, *more), {"amount": amount, **rest}))
                return "done"

            return await jobs.sweep()

    assert only(loop(main)).outcome.result == "done"
    assert calls == [ARGUMENTS]


def test_a_plain_sweep_runs_coroutines(registry: Registry, path: Path) -> None:
    """Without an event loop each coroutine function has one of its own; inside of one it is refused."""
    killed(path)

    @registry.idempotent("t:{user}", name="job", on_crash="rerun", recover=True)
    async def job(user: int, *more: object, amount: Any = 1, **rest: object) -> str:
        return "done"

    async def inside() -> None:
        registry.sweep()

    with pytest.raises(RuntimeError, match="use AsyncRegistry"):
        asyncio.run(inside())
    assert only(registry.sweep()).outcome.result == "done"


def test_a_coroutine_finds_the_claim_of_coroutines(registry: Registry, path: Path) -> None:
    """Also where a plain sweep runs it: its steps are awaited, by the one attempt that was killed and by the next."""
    killed(path)

    @registry.idempotent("t:{user}", name="job", on_crash="rerun", recover=True)
    async def job(user: int, *more: object, amount: Any = 1, **rest: object) -> list[Any]:
        claim = current_async_claim()

        async def part() -> int:
            return 5

        async with claim.step("two") as step:
            step.result = 7
        return [await claim.run_step("one", part), step.result]

    assert only(registry.sweep()).outcome.result == [5, 7]
    assert kept(path) == []


def test_a_plain_function_finds_the_claim_of_plain_ones(
    path: Path, loop: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any], nothing_on_the_event_loop: None
) -> None:
    """Also where a sweep from an event loop runs it: what it calls of its claim is done when it returns."""
    killed(path)

    async def main() -> list[Swept]:
        async with AsyncRegistry(path) as jobs:

            @jobs.idempotent("t:{user}", name="job", on_crash="rerun", recover=True)
            def job(user: int, *more: object, amount: Any = 1, **rest: object) -> int:
                return current_claim().run_step("one", lambda: 5)

            return await jobs.sweep()

    assert only(loop(main)).outcome.result == 5


# --- events and errors ------------------------------------------------------------------------------------------


def test_a_rerun_is_told(open_registry: Callable[..., Registry], path: Path) -> None:
    """`on_event` hears of a sweep's claims and ends as of all others."""
    events: list[Event] = []
    registry = open_registry(on_event=events.append)
    killed(path)
    Job(registry)
    registry.sweep()
    assert [type(event) for event in events] == [TakenOver, Succeeded]


# --- crashes ----------------------------------------------------------------------------------------------------

SWEEPER = """
    from idemreg import Registry, faults
    registry = Registry(sys.argv[1])
    @registry.idempotent("t:{user}", name="job", on_crash="rerun", recover=True)
    def job(user, *more, amount=1, **rest):
        say("rerun")
    faults.arm(sys.argv[2], faults.kill)
    registry.sweep()
    say("swept")
"""


@pytest.mark.parametrize("point", ["claim.in-transaction", "claim.committed", "job.returned", "finish.in-transaction"])
def test_a_sweep_that_is_killed_is_swept(point: str, registry: Registry, path: Path) -> None:
    """Killed between any two commits, a rerun leaves what the next sweep runs again, with the same arguments."""
    killed(path)
    with Script(SWEEPER, path, point) as sweeper:
        sweeper.process.wait(PATIENCE_S)
    job = Job(registry)
    assert only(registry.sweep()).status is Status.SUCCEEDED
    assert job.calls == [ARGUMENTS]
    assert kept(path) == []


def test_a_sweep_that_is_killed_behind_the_finish_is_done(registry: Registry, path: Path) -> None:
    """What it has committed stays: the task is final, and its arguments are gone."""
    killed(path)
    with Script(SWEEPER, path, "finish.committed") as sweeper:
        sweeper.process.wait(PATIENCE_S)
    job = Job(registry)
    assert registry.sweep() == []
    assert (status(registry), job.calls, kept(path)) == (Status.SUCCEEDED, [], [])


@pytest.mark.parametrize(("point", "swept"), [("sweep.in-transaction", 1), ("sweep.committed", 0)])
def test_a_settlement_that_is_killed_is_whole(point: str, swept: int, registry: Registry, path: Path) -> None:
    """Killed before its commit nothing is settled, behind it all of the batch is."""
    killed(path, {"on_crash": "hold"})
    with Script(SWEEPER, path, point) as sweeper:
        sweeper.process.wait(PATIENCE_S)
    assert len(registry.sweep()) == swept
    assert status(registry) is Status.UNKNOWN
