"""Asynchronous callers: the same walk, awaited; no call of the store on the event loop; each done whole."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import random
import threading
import types
from typing import TYPE_CHECKING, Any

import apsw
import pytest
import trio
import trio.testing

from idemreg import (
    AsyncRegistry,
    ChecksumMismatchError,
    Claim,
    ClaimLostError,
    Clock,
    FinishNotRecordedError,
    Registry,
    ResultError,
    Status,
    StoreBusyError,
    StoreError,
    StoreFullError,
    TaskDoneError,
    TaskFailedError,
    TaskUnknownError,
    Verdict,
    aio,
    faults,
)
from idemreg.doctor import Severity
from idemreg.later import later
from idemreg.sqlite import tasks as statements
from idemreg.turn import Turns
from tests.support.interruptions import TimeLimitError, interrupt_at
from tests.support.processes import PATIENCE_S, Script
from tests.support.raw import connect
from tests.support.settled import left_is_done

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
    from pathlib import Path

    from idemreg import Task


pytestmark = pytest.mark.usefixtures("nothing_on_the_event_loop")


@pytest.fixture
def areg(path: Path) -> Iterator[AsyncRegistry]:
    registry = AsyncRegistry(path, durability="normal")
    yield registry
    registry.registry.close()


def row(areg: AsyncRegistry, task_id: str = "t") -> Task:
    task = areg.registry.get(task_id)
    assert task is not None
    return task


async def never() -> None:
    pytest.fail("the job was entered")


async def pause() -> None:
    if trio.lowlevel.in_trio_run():
        await trio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)


async def together(callers: list[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Run them at once, under whichever library this is."""
    if trio.lowlevel.in_trio_run():
        async with trio.open_nursery() as nursery:
            for caller in callers:
                nursery.start_soon(caller)
    else:
        await asyncio.gather(*(caller() for caller in callers))


# --- the same as Registry -------------------------------------------------------------------------------------------


def test_the_names_and_signatures_are_those_of_registry() -> None:
    """Whatever a Registry can do, an AsyncRegistry can by the same call; only what comes of it is awaited."""
    of_loops = {"of", "registry"}
    not_for_users = {"store", "teller", "terms", "async_terms", "offload", "checked", "path", "durability", "clock"}
    not_for_users |= {"schedules", "may_schedule", "recoverable", "reader"}
    plain = {name for name in dir(Registry) if not name.startswith("_")} - not_for_users
    loops = {name for name in dir(AsyncRegistry) if not name.startswith("_")} - of_loops
    assert plain == loops
    for name in sorted(plain | {"__init__"}):
        here, there = (inspect.signature(getattr(one, name)).parameters.values() for one in (Registry, AsyncRegistry))
        assert [(one.name, one.kind, one.default) for one in here] == [
            (one.name, one.kind, one.default) for one in there
        ], name


def test_a_coroutine_job_runs_once(areg: AsyncRegistry, loop: Any) -> None:
    """A decorated coroutine function runs, replays, refuses other arguments, and tells of its tasks; all awaited."""
    entered = []

    @areg.idempotent("coupon:{user}")
    async def issue(user: int, amount: int = 10) -> dict[str, int]:
        entered.append((user, aio.current_claim().attempt))
        await pause()
        return {"user": user, "amount": amount}

    async def main() -> None:
        assert issue.task_id(7) == "coupon:7"
        assert await issue.task(7) is None
        assert (await issue.add(7)).status is Status.PENDING
        assert await issue(7) == {"user": 7, "amount": 10}
        assert await issue(7) == {"user": 7, "amount": 10}
        with pytest.raises(ChecksumMismatchError):
            await issue(7, amount=99)
        outcome = await issue.call(7)
        assert (outcome.replayed, outcome.attempt, outcome.result) == (True, 1, {"user": 7, "amount": 10})
        task = await issue.task(7)
        assert task is not None
        assert task.status is Status.SUCCEEDED

    loop(main)
    assert entered == [(7, 1)]
    assert inspect.iscoroutinefunction(issue)


def test_a_plain_registry_decorates_coroutine_functions(registry: Registry) -> None:
    """`Registry.idempotent` on an `async def` gives an asynchronous job; both kinds share the file."""

    @registry.idempotent("a:{n}")
    async def slow(n: int) -> int:
        return n * 2

    assert asyncio.run(slow(4)) == 8
    assert registry.run("a:4", lambda: pytest.fail("entered"), name=slow.__qualname__, payload={"n": 4}).result == 8


def test_an_end_that_cannot_be_stored_is_left_before_it_is_told(
    areg: AsyncRegistry, monkeypatch: pytest.MonkeyPatch, loop: Any
) -> None:
    """No further thread is waited for: the next call finds what became of the task, however busy they are."""

    def full(*_: object) -> None:
        msg = "full"
        raise StoreFullError(msg)

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(statements, "succeed", full)
            patch.setattr(statements, "finish", full)
            with pytest.raises(FinishNotRecordedError):
                await areg.run("t", int)
        with pytest.raises(TaskUnknownError):
            await areg.run("t", int)

    monkeypatch.setattr(later, "do", [].append)  # nobody does it
    loop(main)


def test_run_and_claim(areg: AsyncRegistry, loop: Any) -> None:
    """`run` awaits what the job returns, also from a plain function; `claim` is awaited or entered at once."""
    keys = []

    async def handle() -> str:
        assert aio.current_claim().task_id == "a"
        keys.append(aio.current_claim().downstream_key)  # told by the loop's thread, and not read by it
        return "done"

    async def main() -> None:
        assert (await areg.run("a", handle, payload=[1])).result == "done"
        assert (await areg.run("a", never, payload=[1], name=handle.__qualname__)).replayed
        assert (await areg.run("plain", lambda: 3)).result == 3
        async with areg.claim("b") as claim:
            claim.result = {"n": 1}
            assert aio.current_claim() is claim
            keys.append(claim.downstream_key)
        with pytest.raises(TaskDoneError):
            await areg.claim("b")
        async with await areg.claim("c") as claim:
            await claim.succeed("early")
        with pytest.raises(ClaimLostError):
            await claim.succeed("again")
        with pytest.raises(ZeroDivisionError):
            async with areg.claim("d"):
                raise ZeroDivisionError
        released = await areg.claim("e")
        await released.release()

    loop(main)
    assert keys == [areg.registry.store.downstream_key(name) for name in "ab"]
    states = {name: row(areg, name).status.word for name in "abcde"}
    assert states == dict(zip("abcde", ("succeeded", "succeeded", "succeeded", "failed", "pending"), strict=True))
    assert row(areg, "b").result == '{"n":1}'


def test_operators_and_lists(areg: AsyncRegistry, loop: Any) -> None:
    """What an operator does is there as well, awaited; tasks come page by page."""

    async def main() -> None:
        async with await areg.open() as opened:
            for n in range(3):
                await opened.add(f"p{n}")
            assert [task.task_id async for task in opened.tasks(prefix="p")] == ["p0", "p1", "p2"]
            await opened.skip("p0", "not today")
            await opened.cancel("p1")
            await opened.forget("p2")
            assert await opened.count() == {Status.SKIPPED: 1, Status.CANCELLED: 1}
            with pytest.raises(ZeroDivisionError):
                await opened.run("f", lambda: 1 / 0, name="f", on_failure="hold")
            with pytest.raises(TaskFailedError):
                await opened.run("f", never, name="f")
            await opened.retry("f")
            assert (await opened.run("f", lambda: 5, name="f")).result == 5
            assert await opened.owner(row_of(await opened.get("f"))) is None
            assert (await opened.checkpoint()).mode == "PASSIVE"

    def row_of(task: Task | None) -> Task:
        assert task is not None
        return task

    loop(main)


def test_keeping_and_settling(areg: AsyncRegistry, loop: Any, tmp_path: Path) -> None:
    """Resolve, purge, backup, export, import and doctor are awaited as well, and leave the event loop alone."""

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await areg.run("t", lambda: 1 / 0, name="job", unknown_on=ZeroDivisionError)
        assert (await areg.resolve("t", "happened", result=1)).status is Status.SUCCEEDED
        lines = [line async for line in areg.export_lines()]
        assert len(lines) == 3
        assert (await areg.backup(tmp_path / "copy.db")).pages > 0
        assert (await areg.purge(older_than=0)).removed == 1
        assert (await areg.import_lines(lines)).imported == 1
        assert not [found for found in await areg.doctor() if found.severity is Severity.ERROR]
        assert (await areg.run("t", never, name="job")).replayed

    loop(main)


def test_leaving_a_loop_over_messages_closes_their_source(areg: AsyncRegistry, loop: Any) -> None:
    """The caller's asynchronous generator ends with `consume`, not when the garbage collector finds it."""
    is_closed = []

    async def source() -> AsyncIterator[str]:
        try:
            for name in "abc":
                yield name
        finally:
            is_closed.append(True)

    async def job(_: str) -> None: ...

    async def main() -> None:
        messages = source()
        async with contextlib.aclosing(areg.consume(messages, job, task_id=str, batch=1)) as handled:
            assert (await anext(handled)).message == "a"
        assert is_closed == [True]

    loop(main)


def test_every_kind_of_end(areg: AsyncRegistry, loop: Any) -> None:
    """Failures, unknown_on, release_on, results that cannot be stored: as for plain functions."""

    async def raises(error: BaseException) -> None:
        raise error

    async def main() -> None:
        with pytest.raises(ValueError, match="x"):
            await areg.run("failed", lambda: raises(ValueError("x")))
        with pytest.raises(OSError, match="x"):
            await areg.run("unknown", lambda: raises(OSError("x")), unknown_on=OSError)
        with pytest.raises(KeyError):
            await areg.run("pending", lambda: raises(KeyError("x")), release_on=KeyError)
        with pytest.raises(ResultError):
            await areg.run("succeeded", object)

    loop(main)
    for name in ("failed", "unknown", "pending", "succeeded"):
        assert row(areg, name).status.word == name


def test_the_verify_hook_may_be_a_coroutine_function(areg: AsyncRegistry, loop: Any) -> None:
    """A hook is awaited where it is one; its verdict settles the task, and what did not happen runs now."""

    async def job() -> str:
        return "ran"

    async def crash() -> None:
        raise KeyboardInterrupt

    async def verify(task: Task) -> bool:
        assert task.status is Status.UNKNOWN
        return task.task_id == "happened"

    async def main() -> None:
        for name in ("happened", "did-not"):
            with pytest.raises(KeyboardInterrupt):
                await areg.run(name, crash, name="job")
            outcome = await areg.run(name, job, name="job", on_crash="verify", verify=verify)
            assert outcome.replayed is (name == "happened")

    with pytest.raises(TaskUnknownError):  # the stored policy is the stricter
        loop(main)
    areg.registry.forget("happened", force=True)

    async def policy() -> None:
        for name in ("happened", "did-not"):
            with pytest.raises(KeyboardInterrupt):
                await areg.run(name, crash, name="job", on_crash="verify", verify=verify)
            outcome = await areg.run(name, job, name="job", on_crash="verify", verify=verify)
            assert outcome.replayed is (name == "happened")

    loop(policy)
    assert row(areg, "happened").verdict is Verdict.HAPPENED


def test_effects_commit_with_the_finish(areg: AsyncRegistry, loop: Any) -> None:
    """Effects and finish are one commit; an error rolls both back, and the file is free for others afterwards."""

    async def effect(task_id: str, sql: str, error: BaseException | None = None) -> None:
        async with areg.claim(task_id, on_crash="rerun") as claim, claim.transaction() as tx:
            await tx.execute(sql)
            if error is not None:
                raise error

    async def main() -> None:
        async with areg.claim("make") as claim, claim.transaction() as tx:
            await tx.execute("create table effect (n integer)")
        async with areg.claim("t", on_crash="rerun") as claim, claim.transaction() as tx:
            await tx.execute("insert into effect values (?)", (1,))
            claim.result = 1
            assert await tx.execute("select n from effect") == [(1,)]
        with pytest.raises(ZeroDivisionError):
            await effect("u", "insert into effect values (2)", ZeroDivisionError())
        with pytest.raises(StoreError):
            await effect("v", "insert into nowhere values (2)")
        async with areg.claim("w", on_crash="rerun") as claim, claim.transaction() as tx:
            assert await tx.execute("select n from effect") == [(1,)]

    loop(main)
    assert [row(areg, name).status.word for name in "tuvw"] == ["succeeded", "failed", "failed", "succeeded"]


# --- many at once ---------------------------------------------------------------------------------------------------


def test_more_waiters_than_threads_do_not_keep_the_finish_from_a_thread(areg: AsyncRegistry, loop: Any) -> None:
    """Callers that wait for a running twin hold no thread: its finish gets one, and all have its result."""
    twins = 50

    async def main() -> None:
        async with areg.claim("t", name="job") as claim:
            waiting = 0

            async def twin() -> None:
                nonlocal waiting
                waiting += 1
                outcome = await areg.run("t", never, name="job", wait=PATIENCE_S)
                assert outcome.result == "first"

            async def settle() -> None:
                while waiting < twins:
                    await pause()
                await claim.succeed("first")

            await together([twin] * twins + [settle])

    loop(main)


def test_a_thousand_coroutines_each_task_twice_with_random_cancellation(path: Path) -> None:
    """1,000 tasks, 2,000 callers, 600 of them cancelled: one body a task, no stuck row, no open transaction.

    A task whose body was cancelled is unknown; one that nobody entered can still run.
    """
    chance = random.Random(20261123)  # noqa: S311 - a shuffle
    areg = AsyncRegistry(path, durability="normal")
    entered: dict[int, int] = {}

    @areg.idempotent("task:{n}", wait=PATIENCE_S)
    async def job(n: int) -> int:
        entered[n] = entered.get(n, 0) + 1
        for _ in range(n % 7):
            await asyncio.sleep(0)
        return n

    async def main() -> None:
        calls = [asyncio.ensure_future(job(n % 1_000)) for n in range(2_000)]
        chance.shuffle(calls)
        for call in calls[:600]:
            for _ in range(chance.randrange(30)):
                await asyncio.sleep(0)
            call.cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        odd = [one for one in done if isinstance(one, BaseException) and not isinstance(one, asyncio.CancelledError)]
        assert all(isinstance(one, TaskUnknownError) for one in odd), odd[:3]

    asyncio.run(main())
    counts = areg.registry.count()
    assert set(counts) <= {Status.SUCCEEDED, Status.UNKNOWN, Status.PENDING}
    assert not any(connection.in_transaction for connection in apsw.connections())
    assert set(entered.values()) == {1}
    for task in areg.registry.tasks():
        assert (task.status is Status.PENDING) is (int(task.task_id[5:]) not in entered)
    assert counts[Status.SUCCEEDED] > 500
    areg.registry.close()


# --- cancellation ---------------------------------------------------------------------------------------------------


def cancel_at(point: str) -> Callable[[], None]:
    """Cancel the current task once the store's thread comes past the point, and go on only when that was done."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def action() -> None:
        done = threading.Event()

        def cancel() -> None:
            task.cancel()
            loop.call_soon(done.set)

        faults.disarm()
        loop.call_soon_threadsafe(cancel)
        assert done.wait(PATIENCE_S)

    faults.arm(point, action)
    return action


@pytest.mark.parametrize("point", ["claim.in-transaction", "claim.committed"])
def test_cancelled_between_claim_and_job_the_task_is_put_back(areg: AsyncRegistry, point: str) -> None:
    """A claim that was begun is done whole; the job is not entered, and the task is as if never claimed."""

    async def main() -> None:
        await areg.run("warm", lambda: 1)
        for name in ("first", "again"):
            cancel_at(point)
            with pytest.raises(asyncio.CancelledError):
                await areg.run(name, never, name="job", payload={"wrong": True})
            assert (await areg.run(name, lambda: 2, name="job")).attempt == 1

    asyncio.run(main())
    assert {row(areg, name).status for name in ("first", "again")} == {Status.SUCCEEDED}


async def take_one(areg: AsyncRegistry) -> None:
    async with areg.claim("t"):
        pytest.fail("entered")


async def take_many(areg: AsyncRegistry) -> None:
    await areg.claim_many([("warm", None), ("t", None)])


@pytest.mark.parametrize(
    ("take", "point"),
    [
        (take_one, "claim.in-transaction"),
        (take_one, "claim.committed"),
        (take_many, "batch.in-transaction"),
        (take_many, "batch.committed"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_claim_that_its_cancelled_caller_never_gets_is_put_back(
    areg: AsyncRegistry, take: Callable[[AsyncRegistry], Awaitable[None]], point: str
) -> None:
    """`claim` and `claim_many` hand out nothing to a cancelled caller; no task is left running, or in doubt."""

    async def main() -> None:
        await areg.run("warm", lambda: 1)
        cancel_at(point)
        with pytest.raises(asyncio.CancelledError):
            await take(areg)

    asyncio.run(main())
    assert row(areg).status is Status.PENDING


@pytest.mark.parametrize("point", ["finish.in-transaction", "finish.committed"])
def test_cancelled_in_the_finish_the_end_is_stored(areg: AsyncRegistry, point: str) -> None:
    """The caller is told of its cancellation, and the task has succeeded: the next call replays it."""

    async def main() -> None:
        await areg.run("warm", lambda: 1)
        cancel_at(point)
        with pytest.raises(asyncio.CancelledError):
            await areg.run("t", lambda: 2, name="job")
        assert (await areg.run("t", never, name="job")).result == 2

    asyncio.run(main())


@pytest.mark.parametrize(("on_crash", "status"), [("hold", Status.UNKNOWN), ("rerun", Status.PENDING)])
def test_cancelled_in_the_job_the_crash_policy_decides(
    areg: AsyncRegistry, loop: Any, on_crash: Any, status: Status
) -> None:
    """A cancellation of the job is an interruption: unknown under hold, claimable under rerun; never stuck."""

    async def asyncio_main() -> None:
        inside = asyncio.Event()

        async def job() -> None:
            inside.set()
            await asyncio.Event().wait()

        task = asyncio.ensure_future(areg.run("t", job, on_crash=on_crash))
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def trio_main() -> None:
        with trio.CancelScope() as scope:

            async def job() -> None:
                scope.cancel()
                await trio.sleep_forever()

            await areg.run("t", job, on_crash=on_crash)
        assert scope.cancelled_caught

    loop(trio_main if loop is trio.run else asyncio_main)
    assert row(areg).status is status


def test_trio_cancels_before_the_job(areg: AsyncRegistry) -> None:
    """Under trio a cancelled scope enters no job, and the claim that was made meanwhile is put back."""

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await areg.run("t", never)
        assert scope.cancelled_caught

    trio.run(main)
    assert row(areg).status is Status.PENDING


def test_a_timeout_in_a_transaction_leaves_none_open(areg: AsyncRegistry) -> None:
    """A caller cancelled inside `claim.transaction()` rolls back, and the file is free at once."""

    async def main() -> None:
        async with areg.claim("make") as claim, claim.transaction() as tx:
            await tx.execute("create table effect (n integer)")
        inside = asyncio.Event()

        async def effect() -> None:
            async with areg.claim("t", on_crash="rerun") as claim, claim.transaction() as tx:
                await tx.execute("insert into effect values (1)")
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(effect())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with areg.claim("t", on_crash="rerun") as claim, claim.transaction() as tx:
            assert await tx.execute("select count(*) from effect") == [(0,)]

    asyncio.run(main())
    assert not any(connection.in_transaction for connection in apsw.connections())


def test_a_closed_coroutine_drops_its_claim(areg: AsyncRegistry) -> None:
    """A coroutine that is thrown away in its job settles the task as by a crash, on another thread, with a warning."""
    inside = []

    @types.coroutine
    def once() -> Iterator[None]:
        yield

    async def hang() -> None:
        inside.append(1)
        await once()

    async def main() -> None:
        coroutine = areg.run("t", hang, name="job")
        while not inside:  # step by hand, as a loop would
            future: Any = coroutine.send(None)
            if future is not None:
                future._asyncio_future_blocking = False
                await asyncio.wait((future,))
        with pytest.warns(ResourceWarning):  # noqa: PT031 - close and collect are one act
            coroutine.close()
            gc.collect()

    asyncio.run(main())
    with pytest.raises(TaskUnknownError):
        areg.registry.run("t", lambda: pytest.fail("entered"), name="job", wait=PATIENCE_S)


def test_a_coroutine_closed_in_its_claim_puts_the_task_back(areg: AsyncRegistry) -> None:
    """Thrown away while a thread makes the claim: what was granted to nobody is released."""

    async def main() -> None:
        await areg.run("warm", lambda: 1)
        reached, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            reached.set()
            assert go_on.wait(PATIENCE_S)

        faults.arm("claim.committed", hold)
        coroutine = areg.run("t", never, name="job")
        coroutine.send(None)
        await asyncio.to_thread(reached.wait, PATIENCE_S)
        coroutine.close()
        go_on.set()
        faults.disarm()

    asyncio.run(main())
    assert areg.registry.run("t", lambda: 3, name="job", wait=PATIENCE_S).result == 3


@pytest.mark.parametrize("point", ["claim.committed", "batch.committed"])
def test_a_coroutine_closed_in_its_claim_under_trio_puts_the_task_back(
    areg: AsyncRegistry, point: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the run has ended by the time that the claim is made: what was granted to nobody is released."""
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        assert go_on.wait(PATIENCE_S)

    async def main() -> None:
        await areg.run("warm", lambda: 1)
        faults.arm(point, hold)
        one = areg.run("t", never, name="job")
        coroutine: Any = one if point == "claim.committed" else areg.claim_many([("t", None)], name="job")
        coroutine.send(None)
        assert reached.wait(PATIENCE_S)
        coroutine.close()
        one.close()
        if point == "claim.committed":  # a coroutine that shared it with others is not woken either
            faults.disarm()
            go_on.set()
            await areg.add("another")

    trio.run(main)
    faults.disarm()
    go_on.set()
    assert areg.registry.run("t", lambda: 3, name="job", wait=PATIENCE_S).result == 3
    assert not caplog.records


@pytest.mark.parametrize("point", ["claim.in-transaction", "claim.committed"])
def test_an_error_from_outside_as_a_claim_is_stored_puts_it_back(areg: AsyncRegistry, loop: Any, point: str) -> None:
    """A host that raises in a thread of the pool: the job never began, and the task can run at once."""

    async def main() -> None:
        await areg.run("warm", lambda: 1)
        interrupt_at(point, TimeLimitError())
        with pytest.raises(TimeLimitError):
            await areg.run("t", never, name="job")
        assert (await areg.run("t", lambda: 2, name="job")).attempt == 1

    loop(main)


@pytest.mark.parametrize("way", ["run", "claim", "fail"])
@pytest.mark.parametrize(("on_crash", "again"), [("hold", TaskUnknownError), ("rerun", None)])
def test_an_error_from_outside_as_an_end_is_stored_counts_as_a_crash(
    areg: AsyncRegistry, loop: Any, way: str, on_crash: Any, again: type[Exception] | None
) -> None:
    """The task does not stay running: on_crash decides what becomes of it."""

    async def end() -> None:
        if way == "run":
            await areg.run("t", lambda: 1, name="", on_crash=on_crash)
        else:
            async with areg.claim("t", on_crash=on_crash):
                if way == "fail":
                    raise ZeroDivisionError

    async def main() -> None:
        await areg.run("warm", lambda: 1)
        interrupt_at("finish.in-transaction", TimeLimitError())
        with pytest.raises(TimeLimitError):
            await end()
        while (task := await areg.get("t")) is None or task.status is Status.RUNNING:  # settled on another thread
            await pause()
        if again is None:
            assert (await areg.run("t", lambda: 2, name="", on_crash=on_crash)).attempt == 2
        else:
            with pytest.raises(again):
                await areg.run("t", never, name="")

    loop(main)


class TellTale(asyncio.SelectorEventLoop):
    """A loop that tells when another thread has left it something to do."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override] # its arguments' types are those of the callback
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        self.told.set()
        return handle

    def turn(self) -> None:
        self.call_soon(self.stop)
        self.run_forever()


@pytest.mark.parametrize("when", ["before the answer", "before it arrives", "before it is taken"])
def test_a_loop_closed_with_a_grant_on_its_way_puts_the_task_back(areg: AsyncRegistry, when: str) -> None:
    """Wherever the answer is when the loop ends for good: the claim that nobody took is released."""
    areg.registry.run("warm", lambda: 1)
    go_on = threading.Event()
    if when == "before the answer":
        faults.arm("claim.committed", lambda: asserted(go_on.wait(PATIENCE_S)))
    loop = TellTale()
    task = loop.create_task(areg.run("t", never, name="job"))
    loop.turn()
    if when != "before the answer":
        assert loop.told.wait(PATIENCE_S)
    if when == "before it is taken":
        loop.turn()
    loop.close()
    del task
    gc.collect()
    go_on.set()
    faults.disarm()
    assert areg.registry.run("t", lambda: 3, name="job", wait=PATIENCE_S).result == 3
    settled(areg)  # who put the claim back is at it for a moment after the next caller had it


def test_a_caller_cancelled_as_its_answer_arrives_puts_the_task_back(areg: AsyncRegistry) -> None:
    """The loop has the answer and the cancellation at once: nothing is told twice, and the claim is released."""
    areg.registry.run("warm", lambda: 1)
    loop, complaints = TellTale(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, complaint: complaints.append(complaint))
    task = loop.create_task(areg.run("t", never, name="job"))
    loop.turn()
    assert loop.told.wait(PATIENCE_S)
    task.cancel()  # between two turns of the loop: in the next one it wakes whom the answer is for
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
    assert not complaints
    assert row(areg).status is Status.PENDING


def asserted(holds: bool) -> None:  # noqa: FBT001 - for a lambda
    assert holds


def test_a_block_left_in_another_context_settles_its_claim(areg: AsyncRegistry) -> None:
    """A block that is entered by one task of asyncio and left by another ends its claim all the same."""

    async def main() -> None:
        claiming = areg.claim("t")
        await asyncio.create_task(claiming.__aenter__())
        await asyncio.create_task(claiming.__aexit__(None, None, None))

    asyncio.run(main())
    assert row(areg).status is Status.SUCCEEDED


def test_a_generator_is_no_job(areg: AsyncRegistry, loop: Any) -> None:
    """Of a generator function nothing would run, awaited or not: TypeError, and nothing is stored."""

    async def generator(*_: object) -> Any:
        yield 1

    async def main() -> None:
        with pytest.raises(TypeError, match="generator"):
            await areg.run("t", generator)
        with pytest.raises(TypeError, match="generator"):
            async for _ in areg.consume(["t"], generator, task_id=str):
                pass

    loop(main)
    assert areg.registry.count() == {}


async def cancelled(call: Callable[[Callable[[], None]], Coroutine[Any, Any, Any]]) -> None:
    """Await a call that is cancelled by the function that it is given, called on a thread of the store."""
    if trio.lowlevel.in_trio_run():
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:

            def cancel() -> None:
                trio.from_thread.run_sync(scope.cancel, trio_token=token)
                for _ in range(2):  # turns of the loop: the task has heard of it
                    trio.from_thread.run_sync(int, trio_token=token)

            await call(cancel)
        assert scope.cancelled_caught
        return
    loop = asyncio.get_running_loop()

    def stop() -> None:
        done = threading.Event()

        def act() -> None:
            task.cancel()
            loop.call_soon(done.set)

        loop.call_soon_threadsafe(act)
        assert done.wait(PATIENCE_S)

    task = asyncio.ensure_future(call(stop))
    with pytest.raises(asyncio.CancelledError):
        await task


def test_cancelled_between_two_chunks_a_long_operation_ends_there(
    areg: AsyncRegistry, loop: Any, tmp_path: Path
) -> None:
    """What is done so far stays done, a half copy is removed, and nobody waits for the rest."""
    claims = [
        one for one in areg.registry.claim_many([(f"t{n}", None) for n in range(1_100)]) if isinstance(one, Claim)
    ]
    for claim in claims:
        claim.enter()
    areg.registry.finish_many([(claim, None) for claim in claims])
    other = AsyncRegistry(tmp_path / "other.db", durability="normal")
    lines = list(areg.registry.export_lines())

    async def main() -> None:
        await cancelled(lambda cancel: other.import_lines(lines, progress=lambda _: cancel()))
        await cancelled(lambda cancel: areg.backup(tmp_path / "copy.db", progress=lambda *_: cancel()))
        await cancelled(lambda cancel: areg.purge(older_than=0, progress=lambda _: cancel()))

    loop(main)
    with other.registry as registry:
        assert registry.count() == {Status.SUCCEEDED: 500}
    assert areg.registry.count() == {Status.SUCCEEDED: 600}
    assert not list(tmp_path.glob("copy*"))


def test_a_cancellation_that_is_taken_back_is_told(areg: AsyncRegistry, tmp_path: Path) -> None:
    """Under trio a shield may come behind it: what was ended between two chunks is no success all the same."""
    go_on = threading.Event()
    areg.registry.run("t", lambda: 1)

    async def main() -> None:
        begun, token = trio.Event(), trio.lowlevel.current_trio_token()
        cancelled, shielded = trio.CancelScope(), trio.CancelScope()

        def progress(*_: object) -> None:
            token.run_sync_soon(begun.set)
            assert go_on.wait(PATIENCE_S)

        async def meddle() -> None:
            await begun.wait()
            cancelled.cancel()
            shielded.shield = True
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(meddle)
            with pytest.raises(Exception, match="was cancelled, and is not any more"), cancelled, shielded:
                await areg.backup(tmp_path / "copy.db", progress=progress)

    trio.run(main)
    assert not list(tmp_path.glob("copy*"))
    assert row(areg).status is Status.SUCCEEDED


# --- closing --------------------------------------------------------------------------------------------------------


def test_closing_loses_nobody_who_has_asked(areg: AsyncRegistry, loop: Any) -> None:
    """`close` while calls are queued and carried out: each has its answer, and no row stays running."""
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        faults.disarm()
        reached.set()
        assert go_on.wait(PATIENCE_S)

    async def job() -> str:
        return "done"

    async def main() -> None:
        await areg.run("warm", job)
        faults.arm("claim.committed", hold)
        ended, asked = [], 0

        async def first() -> None:
            ended.append((await areg.run("first", job)).result)

        async def behind() -> None:
            nonlocal asked
            while not reached.is_set():
                await pause()
            asked += 1
            ended.append((await areg.run(f"t{asked}", job)).result)

        async def close() -> None:
            while asked < 39:
                await pause()
            await areg.close()
            assert await areg.get("warm") is not None  # a later use, while they are waiting
            go_on.set()

        await together([first, *[behind] * 39, close])
        assert ended == ["done"] * 40

    loop(main)
    assert areg.registry.count() == {Status.SUCCEEDED: 41}


def test_closing_while_jobs_run_ends_them_all(areg: AsyncRegistry, loop: Any) -> None:
    """A batch, a job of its own, and a caller who waits for that job: all go on behind `close`, and end."""

    async def main() -> None:
        inside: list[str] = []
        waiting: list[int] = []
        is_closed = False

        async def job(message: str) -> str:
            inside.append(message)
            while not is_closed:
                await pause()
            return message

        async def consumer() -> None:
            handled = [one async for one in areg.consume("ab", job, task_id=str)]
            assert [one.outcome and one.outcome.result for one in handled] == ["a", "b"]

        async def single() -> None:
            assert (await areg.run("t", lambda: job("t"), name="job")).result == "t"

        async def waiter() -> None:
            while "t" not in inside:
                await pause()
            waiting.append(1)
            assert (await areg.run("t", never, name="job", wait=PATIENCE_S)).replayed

        async def close() -> None:
            nonlocal is_closed
            while not (waiting and len(inside) == 2):
                await pause()
            await areg.close()
            is_closed = True

        await together([consumer, single, waiter, close])

    loop(main)
    assert areg.registry.count() == {Status.SUCCEEDED: 3}


def test_an_exception_of_the_loop_thread_is_not_a_store_call(areg: AsyncRegistry) -> None:
    """The guard of this file works: a plain call on the event loop is noticed."""

    async def main() -> None:
        with pytest.raises(AssertionError, match="on the event loop"):
            areg.registry.get("t")

    asyncio.run(main())


def test_a_forked_child_starts_threads_of_its_own(path: Path) -> None:
    """After a fork the child's asynchronous calls work, as another owner."""
    with Script(
        """
        import asyncio, os
        from idemreg import AsyncRegistry
        registry = AsyncRegistry(sys.argv[1], durability="normal")
        async def call(name): return (await registry.run(name, lambda: name)).result
        say(asyncio.run(call("parent")))
        if (child := os.fork()) == 0:
            say(asyncio.run(call("child")))
            asyncio.run(registry.close())
            os._exit(0)
        os.waitpid(child, 0)
        say(asyncio.run(call("after")))
        """,
        path,
    ) as script:
        for name in ("parent", "child", "after"):
            script.expect(name)
        assert script.process.wait(PATIENCE_S) == 0


# --- rare ends ------------------------------------------------------------------------------------------------------


def settled(areg: AsyncRegistry) -> None:
    """What was left to the threads is done."""
    left_is_done(areg.registry.offload)


def test_a_result_that_cannot_be_stored_is_told_behind_its_success(areg: AsyncRegistry, loop: Any) -> None:
    """`succeed` of an asynchronous claim: the task has succeeded, its result is lost, and both are said."""

    async def main() -> None:
        claim = await areg.claim("t")
        with pytest.raises(ResultError):
            await claim.succeed(object())
        assert not claim.is_open

    loop(main)
    task = row(areg)
    assert (task.status, task.result) == (Status.SUCCEEDED, None)
    assert str(task.error).startswith("ResultError")


class EndError(BaseException):
    """From outside, as an interruption."""


@pytest.mark.parametrize("kind", [ZeroDivisionError, EndError])
def test_an_error_of_a_block_whose_end_cannot_be_stored(path: Path, loop: Any, kind: type[BaseException]) -> None:
    """A failure gives way to what the store says; an interruption goes on its way, and says it in a note."""
    areg = AsyncRegistry(path, durability="normal", busy_timeout=0.01)
    other = connect(path)

    async def main() -> None:
        error = kind("in the block")
        with pytest.raises(BaseException) as caught:  # noqa: PT012 - the block is what is tried
            async with areg.claim("t"):
                other.execute("BEGIN IMMEDIATE")
                raise error
        if kind is EndError:
            assert caught.value is error
            assert "could not be stored" in caught.value.__notes__[0]
        else:
            assert isinstance(caught.value, FinishNotRecordedError)
            assert caught.value.__context__ is error
        other.execute("ROLLBACK")
        other.close()
        await areg.add("another")

    loop(main)
    settled(areg)
    assert row(areg).status is Status.UNKNOWN
    areg.registry.close()


def until_closed(areg: AsyncRegistry, reached: threading.Event, body: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """A loop that is closed for good where its coroutine waits, once another thread has come so far."""
    loop = TellTale()
    task = loop.create_task(body())
    while not reached.is_set():
        loop.turn()
        assert not task.done(), task.exception()
    loop.close()
    del task
    gc.collect()


def test_a_loop_closed_in_a_transaction_rolls_it_back(areg: AsyncRegistry) -> None:
    """Nothing can be awaited any more: the effects are undone all the same, and the task is in doubt."""
    inside = threading.Event()

    async def main() -> None:
        async with areg.claim("t") as claim, claim.transaction() as transaction:
            await transaction.execute("CREATE TABLE effect (n)")
            inside.set()
            await asyncio.Event().wait()

    with pytest.warns(ResourceWarning, match="dropped"):
        until_closed(areg, inside, main)
    areg.registry.add("another")  # once the transaction is over
    settled(areg)
    assert row(areg).status is Status.UNKNOWN
    with areg.registry.claim("look") as claim, claim.transaction() as transaction:
        assert transaction.execute("SELECT 1 FROM sqlite_schema WHERE name = 'effect'") == []


def test_a_loop_closed_while_a_hook_gets_its_claim_asks_later(areg: AsyncRegistry) -> None:
    """The grant comes behind the end of its caller: nobody has asked, so the task is as unknown as before."""
    options: Any = {"name": "job", "on_crash": "verify", "verify": lambda _: True}
    with pytest.raises(ZeroDivisionError):
        areg.registry.run("t", lambda: 1 / 0, unknown_on=ZeroDivisionError, **options)
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        faults.disarm()
        reached.set()
        assert go_on.wait(PATIENCE_S)

    faults.arm("claim.committed", hold)
    until_closed(areg, reached, lambda: areg.run("t", never, **options))
    go_on.set()
    settled(areg)
    gc.collect()  # the thread has held the coroutine until now
    settled(areg)
    assert (row(areg).status, row(areg).attempt) == (Status.UNKNOWN, 1)
    assert areg.registry.run("t", lambda: pytest.fail("it was run"), **options).replayed


@pytest.mark.parametrize("way", ["one", "many"])
def test_a_loop_closed_while_a_task_is_claimed_again_puts_it_back(areg: AsyncRegistry, way: str) -> None:
    """The grant comes behind the end of its caller: the failed task is failed as before, and can be claimed."""
    for task_id in ("t", "u"):
        with pytest.raises(ZeroDivisionError):
            areg.registry.run(task_id, lambda: 1 / 0, name="job")
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        faults.disarm()
        reached.set()
        assert go_on.wait(PATIENCE_S)

    faults.arm("claim.committed" if way == "one" else "batch.committed", hold)
    if way == "one":
        until_closed(areg, reached, lambda: areg.run("t", never, name="job"))
    else:
        until_closed(areg, reached, lambda: areg.claim_many([("t", None), ("u", None)], name="job"))
    go_on.set()
    settled(areg)
    gc.collect()  # the thread has held the coroutine until now
    settled(areg)
    assert areg.registry.run("t", lambda: 3, name="job").attempt == 2
    assert row(areg, "u").status is Status.FAILED


def test_a_loop_closed_while_an_end_is_stored_leaves_it_to_the_store(areg: AsyncRegistry) -> None:
    """What the coroutine waited for is done all the same, and whole."""
    areg.registry.run("warm", lambda: 1)
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        faults.disarm()
        reached.set()
        assert go_on.wait(PATIENCE_S)

    async def job() -> int:
        faults.arm("finish.in-transaction", hold)
        return 3

    until_closed(areg, reached, lambda: areg.run("t", job, name="job"))
    go_on.set()
    settled(areg)
    assert areg.registry.run("t", lambda: 4, name="job").result == 3


def test_a_loop_closed_in_a_verify_hook_leaves_the_task_unknown(areg: AsyncRegistry) -> None:
    """Nobody will hear the hook's answer, and the task does not stay claimed by it."""
    with pytest.raises(ZeroDivisionError):
        areg.registry.run(
            "t", lambda: 1 / 0, name="job", unknown_on=ZeroDivisionError, on_crash="verify", verify=lambda _: None
        )
    inside = threading.Event()

    async def hook(_prior: object) -> bool:
        inside.set()
        await asyncio.Event().wait()
        return True

    until_closed(areg, inside, lambda: areg.run("t", never, name="job", on_crash="verify", verify=hook))
    settled(areg)
    assert row(areg).status is Status.UNKNOWN


def test_without_a_thread_a_call_says_so_and_the_next_one_works(
    areg: AsyncRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives no thread nothing is claimed, and nobody waits for one that does not come."""

    class NoThreads:
        def submit(self, *_: object) -> None:
            msg = "can't start new thread"
            raise RuntimeError(msg)

    offload = areg.registry.offload
    pools: list[Any] = [NoThreads()]
    given = offload.lane._pool
    monkeypatch.setattr(offload.lane, "_pool", lambda: pools.pop() if pools else given())

    async def main() -> None:
        with pytest.raises(RuntimeError, match="new thread"):
            await areg.run("t", never, name="job")
        assert (await areg.run("t", lambda: 2, name="job")).attempt == 1

    asyncio.run(main())
    assert row(areg).status is Status.SUCCEEDED


def test_a_registry_that_cannot_be_asked_for_its_id_grants_all_the_same(
    areg: AsyncRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim is worth more: its key is read when it is asked for, and is the same."""
    areg.registry.run("warm", lambda: 1)

    def refuses() -> Any:
        msg = "the disk reported an error"
        raise StoreError(msg)

    monkeypatch.setattr(areg.registry.store, "origin", refuses)

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with areg.claim("t", on_crash="rerun"):
                raise ZeroDivisionError
        claim = await areg.claim("t")  # by the general path
        monkeypatch.undo()
        assert await asyncio.to_thread(lambda: claim.downstream_key) == areg.registry.store.downstream_key("t")
        await claim.release()

    asyncio.run(main())
    assert row(areg).status is Status.FAILED


def test_callers_together_hear_that_others_write_for_too_long(path: Path, loop: Any) -> None:
    """Each has its error, and no job of theirs is entered."""
    areg = AsyncRegistry(path, durability="normal", busy_timeout=0.01)
    areg.registry.run("warm", lambda: 1)
    errors: list[Exception] = []

    async def caller() -> None:
        try:
            await areg.run(f"t{len(errors)}", never, name="job")
        except StoreBusyError as error:
            errors.append(error)

    with contextlib.closing(Turns(f"{path}-lock", Clock())) as other:
        assert other.write.try_take()
        loop(lambda: together([caller, caller]))
    assert len(errors) == 2
    assert errors[0] is not errors[1]
    assert areg.registry.count() == {Status.SUCCEEDED: 1}
    areg.registry.close()
