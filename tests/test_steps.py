"""Steps: a piece of a job that is done is saved before the next begins, and no later attempt runs it again."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import (
    AsyncRegistry,
    ClaimLostError,
    ImportLineError,
    Registry,
    ResultError,
    Status,
    StepError,
    StoreCorruptError,
    StoreFullError,
    TaskUnknownError,
    faults,
)
from idemreg.doctor.salvage import salvage
from idemreg.store import End
from idemreg.testing import ManualClock
from tests.support.processes import PATIENCE_S, Script
from tests.support.raw import connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg import Claim, Step


class Job:
    """Counts how often each of its pieces has run; the last of them fails until it is mended."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.is_mended = False

    def piece(self, name: str) -> str:
        self.ran.append(name)
        if name == "c" and not self.is_mended:
            raise OSError(name)
        return name.upper()

    def __call__(self, claim: Claim) -> list[str]:
        return [claim.run_step(name, lambda name=name: self.piece(name)) for name in "abc"]  # type: ignore[misc]


def end_behind_its_back(claim: Claim) -> None:
    """The row is claimed anew by somebody who proved this owner dead, say; the claim knows nothing of it."""
    grant = claim.grant
    claim.terms.store.finish([End(grant.task_id, grant.token, grant.owner, Status.FAILED, grant.attempt, error="x")])


# --- under a lease ----------------------------------------------------------------------------------------------


def test_a_step_of_a_claim_whose_lease_was_lost_is_not_saved(open_registry: Callable[..., Registry]) -> None:
    """Its body hears of it by `check`, and its end by the save; the taker goes on behind what was saved before."""
    clock = ManualClock()
    registry, other = open_registry(clock=clock), open_registry(clock=clock)
    late = registry.claim("t", on_crash="rerun", lease=60)
    late.run_step("a", lambda: 1)
    takers: list[Claim] = []

    def hangs() -> None:
        clock.advance(61)
        takers.append(other.claim("t", on_crash="rerun", lease=60))
        with pytest.raises(ClaimLostError):
            late.check()

    with pytest.raises(ClaimLostError):
        late.run_step("b", hangs)
    (taker,) = takers
    assert [step.name for step in other.steps("t")] == ["a"]
    assert taker.run_step("a", lambda: 2) == 1
    taker.run_step("b", lambda: 2)
    with pytest.raises(ClaimLostError):
        late.run_step("c", lambda: 3)
    with pytest.raises(ClaimLostError):
        late.succeed()
    taker.succeed()
    assert [step.name for step in other.steps("t")] == ["a", "b"]


def test_coroutines_save_steps_under_a_lease(registry: Registry) -> None:
    """A claim with limits that is awaited has the same steps."""
    async_registry = AsyncRegistry.of(registry)

    async def piece() -> int:
        return 1

    async def main() -> None:
        async with async_registry.claim("t", lease=3_600, timeout=3_600) as claim:
            assert await claim.run_step("a", piece) == 1
            async with claim.step("b") as step:
                claim.check()
                step.result = 2

    asyncio.run(main())
    assert [step.result for step in registry.steps("t")] == ["1", "2"]


# --- what is done -----------------------------------------------------------------------------------------------


def test_a_later_attempt_skips_what_is_done(registry: Registry) -> None:
    """A step that ended runs once, whatever became of the attempt, and gives the same result again."""
    job = Job()
    with pytest.raises(OSError, match="c"), registry.claim("t") as claim:
        job(claim)
    assert [(step.name, step.number, step.result) for step in registry.steps("t")] == [("a", 1, '"A"'), ("b", 2, '"B"')]
    job.is_mended = True
    with registry.claim("t") as claim:
        assert job(claim) == ["A", "B", "C"]
    assert job.ran == ["a", "b", "c", "c"]
    assert [step.name for step in registry.steps("t")] == ["a", "b", "c"]


def test_the_block_says_whether_it_is_done(registry: Registry) -> None:
    """`with claim.step(...)` is the same: its body looks at ``done``, and sets ``result``."""
    with pytest.raises(ZeroDivisionError), registry.claim("t") as claim:  # noqa: PT012 - its block is tested
        with claim.step("one") as step:
            assert (step.name, step.done, step.result) == ("one", False, None)
            step.result = {"parts": (1, 2)}
        assert step.done
        with claim.step("two"):
            raise ZeroDivisionError
    with registry.claim("t") as claim:
        with claim.step("one") as step:
            assert step.done
        assert step.result == {"parts": (1, 2)}
        with claim.step("two") as step:
            assert not step.done
    assert [step.result for step in registry.steps("t")][1] == "null"


def test_what_is_done_takes_no_other_result(registry: Registry) -> None:
    """A body that forgot to look at ``done`` hears of it."""
    with registry.claim("t") as claim:
        claim.run_step("one", lambda: 1)
        with pytest.raises(StepError) as caught, claim.step("one") as step:
            step.result = 2
        assert claim.run_step("one", lambda: 3) == 1
    assert "if not step.done" in caught.value.hint


def test_the_decorated_job_has_steps_too(registry: Registry) -> None:
    """By `current_claim()`, and for an unknown task that an operator has cleared."""
    from idemreg import current_claim  # noqa: PLC0415 - as a job does

    ran: list[int] = []

    def piece(n: int) -> int:
        ran.append(n)
        return n

    @registry.idempotent("n:{n}", unknown_on=OSError)
    def work(n: int) -> int:
        found = current_claim().run_step("one", lambda: piece(n))
        if len(ran) == 1 and current_claim().attempt == 1:
            raise OSError
        return found + 1

    with pytest.raises(OSError):
        work(7)
    with pytest.raises(TaskUnknownError):
        work(7)
    registry.resolve("n:7", "did-not-happen")
    assert work(7) == 8
    assert ran == [7]


def test_an_interrupted_step_is_not_saved(registry: Registry) -> None:
    """Ctrl-C in its body leaves it to be run again; what came before it is done."""
    with pytest.raises(KeyboardInterrupt), registry.claim("t", on_crash="rerun") as claim:  # noqa: PT012 - its block is tested
        claim.run_step("one", lambda: 1)
        with claim.step("two"):
            raise KeyboardInterrupt
    assert [step.name for step in registry.steps("t")] == ["one"]


def test_steps_may_stand_within_steps(registry: Registry) -> None:
    """The inner one is saved first; should the outer fail, it stays."""
    with pytest.raises(ZeroDivisionError), registry.claim("t") as claim, claim.step("outer"):  # noqa: PT012 - its block is tested
        claim.run_step("inner", lambda: 1)
        raise ZeroDivisionError
    assert [step.name for step in registry.steps("t")] == ["inner"]


# --- results ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Part:
    size: int


def test_a_result_may_be_of_the_jobs_own_types(registry: Registry) -> None:
    """The codec of the job is that of its steps."""
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), registry.claim("t", result=Part) as claim:  # noqa: PT012 - its block is tested
            assert claim.run_step("one", lambda: Part(3)) == Part(3)
            raise ZeroDivisionError
    assert len(registry.steps("t")) == 1


def test_a_result_that_cannot_be_stored_is_lost_and_the_step_is_done(registry: Registry) -> None:
    """ResultError now and in each later attempt, as for a task; the body has run, and does not run again."""
    ran: list[int] = []

    def body() -> object:
        ran.append(1)
        return object()

    for _ in range(2):
        with pytest.raises(ResultError), registry.claim("t") as claim:
            claim.run_step("one", body)
    with registry.claim("t") as claim, claim.step("one") as step:
        assert step.done
        with pytest.raises(ResultError) as caught:
            _ = step.result
    assert "will not run again" in caught.value.hint
    assert ran == [1]
    assert [step.result for step in registry.steps("t")] == [None]


# --- whose it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_followed", [False, True])
def test_a_late_owner_can_neither_begin_nor_save_a_step(registry: Registry, is_followed: bool) -> None:  # noqa: FBT001
    """ClaimLostError before the body, or behind it, and nothing is written."""
    ran: list[str] = []
    late = registry.claim("t")
    with pytest.raises(ClaimLostError), late.step("one"):  # noqa: PT012 - its block is tested
        ran.append("in the middle")
        end_behind_its_back(late)
        follower = registry.claim("t") if is_followed else None
    with pytest.raises(ClaimLostError):
        late.run_step("two", lambda: ran.append("late"))
    assert (ran, registry.steps("t")) == (["in the middle"], [])
    if follower is not None:
        follower.run_step("one", lambda: ran.append("the follower's"))
        follower.succeed()
    with pytest.raises(ClaimLostError):
        late.succeed()


def test_a_claim_that_has_ended_begins_no_step(registry: Registry) -> None:
    """ClaimLostError; and a step whose claim ended in its middle says that it is not saved."""
    claim = registry.claim("t")
    with pytest.raises(StepError), claim.step("one"):
        claim.succeed(1)
    with pytest.raises(ClaimLostError):
        claim.run_step("two", lambda: 2)
    assert registry.steps("t") == []


def test_a_forked_child_saves_nothing(registry: Registry) -> None:
    """The claim is the parent's: ClaimLostError in the child, and the parent goes on."""
    with registry.claim("t") as claim:
        claim.run_step("one", lambda: 1)
        if (child := os.fork()) == 0:
            code = 1
            try:
                claim.run_step("two", lambda: 2)
            except ClaimLostError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        claim.run_step("two", lambda: 3)
    assert [step.result for step in registry.steps("t")] == ["1", "3"]


def test_a_claim_of_a_batch_is_entered_first(registry: Registry) -> None:
    """RuntimeError before, as for its end; then it has steps as any other."""
    (claim,) = registry.claim_many([("t", None)])
    with pytest.raises(RuntimeError):
        claim.run_step("one", lambda: 1)  # type: ignore[union-attr]
    with claim as entered:  # type: ignore[union-attr]
        assert entered.run_step("one", lambda: 1) == 1


def test_steps_go_on_over_a_close(registry: Registry) -> None:
    """A claim outlives the close of its registry, and so do its steps."""
    with registry.claim("t") as claim:
        claim.run_step("one", lambda: 1)
        registry.close()
        claim.run_step("two", lambda: 2)
    assert len(registry.steps("t")) == 2


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 513, "\ud800", None, 7])
def test_a_step_is_named_as_a_task_is(registry: Registry, name: Any) -> None:
    """StepError, before anything runs; the hint is that of the name."""
    with registry.claim("t") as claim, pytest.raises(StepError, check=lambda error: error.hint != StepError.hint):
        claim.step(name)


def test_a_step_does_not_run_within_itself(registry: Registry) -> None:
    """StepError for the inner one, which would run the body twice; behind the outer one it is done."""
    with registry.claim("t") as claim:
        with claim.step("one"), pytest.raises(StepError):
            claim.run_step("one", lambda: 1)
        assert claim.run_step("one", lambda: 1) is None


def test_two_threads_do_not_run_one_step(registry: Registry) -> None:
    """Whoever comes while it runs gets a StepError; threads with steps of their own names save each its own."""
    inside, go_on = threading.Event(), threading.Event()

    def body() -> int:
        inside.set()
        assert go_on.wait(PATIENCE_S)
        return 1

    with registry.claim("t") as claim:
        threads = [threading.Thread(target=claim.run_step, args=("one", body))]
        threads[0].start()
        assert inside.wait(PATIENCE_S)
        with pytest.raises(StepError):
            claim.run_step("one", lambda: 2)
        threads += [threading.Thread(target=claim.run_step, args=(f"n{n}", lambda: None)) for n in range(4)]
        for thread in threads[1:]:
            thread.start()
        go_on.set()
        for thread in threads:
            thread.join()
    assert {step.name for step in registry.steps("t")} == {"one", "n0", "n1", "n2", "n3"}
    assert [step.number for step in registry.steps("t")] == [1, 2, 3, 4, 5]


def test_a_transaction_has_no_steps(registry: Registry) -> None:
    """StepError at once, where a save would wait for the transaction itself; the effects can still be committed."""
    with registry.claim("t") as claim:
        claim.run_step("before", lambda: 1)
        with claim.transaction() as tx:
            tx.execute("create table effect (n)")
            with pytest.raises(StepError):
                claim.run_step("within", lambda: 2)
    task = registry.get("t")
    assert task is not None
    assert task.status is Status.SUCCEEDED
    assert [step.name for step in registry.steps("t")] == ["before"]


# --- the disk, and death ----------------------------------------------------------------------------------------


def test_a_step_that_could_not_be_saved_is_not_run_again_by_itself(registry: Registry) -> None:
    """A full disk behind its body: the task becomes unknown, and is not put back as if nothing had run."""

    def full() -> None:
        faults.disarm()
        msg = "the disk is full"
        raise StoreFullError(msg)

    ran = []
    with pytest.raises(StoreFullError), registry.claim("t") as claim:  # noqa: PT012 - its block is tested
        faults.arm("step.in-transaction", full)
        claim.run_step("one", lambda: ran.append(1))
    task = registry.get("t")
    assert task is not None
    assert (task.status, ran, registry.steps("t")) == (Status.UNKNOWN, [1], [])


def test_a_step_is_on_the_disk_before_the_next_begins(path: Path) -> None:
    """Under durability="full" a sync stands between its commit and its return, also where it was found."""
    seen: list[str] = []
    for point in ("step.in-transaction", "sync.done", "step.saved"):
        faults.arm(point, lambda point=point: seen.append(point))  # type: ignore[misc]
    with Registry(path) as registry:
        with registry.claim("t", on_crash="rerun") as claim:
            for name in "ab":
                seen.clear()
                claim.run_step(name, lambda: None)
                assert seen == ["step.in-transaction", "sync.done", "step.saved"]
        faults.disarm()


RESUMED = """
from idemreg import Registry
path, witness, last = sys.argv[1:4]
def piece(name):
    with open(witness, "a") as file: file.write(name)
    if name == last:
        say("reached")
        wait()
    return name.upper()
registry = Registry(path)
with registry.claim("t", name="job", on_crash="rerun") as claim:
    claim.result = [claim.run_step(name, lambda: piece(name)) for name in "abcd"]
say(*claim.result)
"""


def test_a_killed_job_resumes_at_its_step(path: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of the third step, then of the fourth: each process goes on at the step that was cut."""
    witness = tmp_path / "witness"
    for last in "cd":
        with Script(RESUMED, path, witness, last) as script:
            script.expect("reached")
            script.kill()
    with Script(RESUMED, path, witness, "none") as script:
        script.expect("A B C D")
        assert script.end() == 0
    assert witness.read_text() == "abccdd"


# --- asynchronous -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_on_the_event_loop")
def test_coroutines_have_steps(path: Path) -> None:
    """`await claim.run_step(...)` and `async with claim.step(...)`, saved on a thread, skipped by the next attempt."""
    ran: list[str] = []

    async def piece(name: str) -> str:
        await asyncio.sleep(0)
        ran.append(name)
        return name.upper()

    async def attempt(registry: AsyncRegistry) -> None:
        async with registry.claim("t") as claim:
            assert await claim.run_step("a", lambda: piece("a")) == "A"
            async with claim.step("b") as step:
                if not step.done:
                    step.result = await piece("b")
            assert step.result == "B"
            if claim.attempt == 1:
                raise OSError

    async def main() -> None:
        registry = AsyncRegistry(path, durability="normal")
        with pytest.raises(OSError):
            await attempt(registry)
        await attempt(registry)
        assert [step.name for step in await registry.steps("t")] == ["a", "b"]
        await registry.close()

    asyncio.run(main())
    assert ran == ["a", "b"]


def test_a_cancelled_step_is_not_saved(path: Path) -> None:
    """Cancelled in its body it is left to be run again, and may be begun anew at once under another claim."""

    async def main() -> None:
        registry = AsyncRegistry(path, durability="normal")
        entered = asyncio.Event()

        async def body() -> None:
            entered.set()
            await asyncio.Event().wait()

        async def attempt() -> None:
            async with registry.claim("t", on_crash="rerun") as claim:
                await claim.run_step("one", body)

        task = asyncio.create_task(attempt())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await registry.steps("t") == []
        await registry.close()

    asyncio.run(main())


# --- elsewhere --------------------------------------------------------------------------------------------------


def with_steps(path: Path) -> list[Step]:
    """A registry with a failed task, two of whose steps are done, between tasks that have none; those two."""
    with Registry(path, durability="normal") as registry:
        registry.run("a", lambda: 1, name="job")
        with pytest.raises(ZeroDivisionError), registry.claim("t", name="job") as claim:  # noqa: PT012 - its block
            claim.run_step("one", lambda: "x" * 3_000)
            claim.run_step("two", lambda: {1, 2})
            raise ZeroDivisionError
        registry.run("z", lambda: 1, name="job")
        return registry.steps("t")


def test_an_import_brings_the_steps_along(path: Path, tmp_path: Path) -> None:
    """A task that is moved to another registry goes on there where it was; importing again changes nothing."""
    steps = with_steps(path)
    with Registry(path, durability="normal") as registry:
        lines = list(registry.export_lines())
        assert [json.loads(line).get("step") for line in lines] == [None, None, None, "one", "two", None, None]
    with Registry(tmp_path / "new.db", durability="normal") as registry:
        for imported, skipped in [(3, 0), (0, 3)]:
            done = registry.import_lines(lines)
            assert (done.read, done.imported, done.skipped) == (3, imported, skipped)
            assert registry.steps("t") == steps
        with registry.claim("t", name="job") as claim:
            assert claim.run_step("two", lambda: pytest.fail("it ran")) == {1, 2}


@pytest.mark.parametrize("change", ["behind another", "twice", "a field", "a number", "a name", "a result"])
def test_a_line_that_is_no_step_is_refused(path: Path, tmp_path: Path, change: str) -> None:
    """ImportLineError with its number; nothing of its task is imported without the steps before it."""
    with_steps(path)
    with Registry(path, durability="normal") as registry:
        lines = list(registry.export_lines())
    step = json.loads(lines[4])
    match change:
        case "behind another":
            step["task_id"] = "a"
        case "twice":
            step["step"] = "one"
        case "a field":
            step["more"] = 1
        case "a number":
            step["number"] = 0
        case "a name":
            step["step"] = " one"
        case "a result":
            step["result"] = "{"
    lines[4] = json.dumps(step)
    with Registry(tmp_path / "new.db", durability="normal") as registry:
        with pytest.raises(ImportLineError) as caught:
            registry.import_lines(lines)
        assert caught.value.line == 5
        assert [one.name for one in registry.steps("t")] == ["one"]


def test_a_salvaged_file_and_a_backup_have_the_steps(path: Path, tmp_path: Path) -> None:
    """Each whose seal holds comes out of a damaged file; the others are not skipped there."""
    steps = with_steps(path)
    with Registry(path, durability="normal") as registry:
        registry.backup(tmp_path / "copy.db")
    salvage(path, tmp_path / "saved.db")
    connection = connect(path)
    connection.execute("UPDATE idempotent_step SET result = '7' WHERE name = 'two'")
    connection.close()
    salvage(path, tmp_path / "less.db")
    found = {}
    for name in ("copy.db", "saved.db", "less.db"):
        with Registry(tmp_path / name, durability="normal") as registry:
            found[name] = registry.steps("t")
    assert found == {"copy.db": steps, "saved.db": steps, "less.db": steps[:1]}


# --- what the file says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", ["name = 'two'", "number = 2", "token = token + 1", "saved_at = 0", "result = '2'", "result = NULL"]
)
def test_a_changed_step_is_an_error(path: Path, open_registry: Callable[..., Registry], change: str) -> None:
    """Neither skipped nor replayed by it: StoreCorruptError, for whoever looks at it."""
    with pytest.raises(ZeroDivisionError), open_registry() as registry, registry.claim("t") as claim:  # noqa: PT012 - its block is tested
        claim.run_step("one", lambda: 1)
        raise ZeroDivisionError
    connection = connect(path)
    connection.execute(f"UPDATE idempotent_step SET {change}")  # noqa: S608
    connection.close()
    registry = open_registry()
    with pytest.raises(StoreCorruptError):
        registry.steps("t")
    with pytest.raises(StoreCorruptError), registry.claim("t") as claim:
        claim.run_step("two" if "two" in change else "one", lambda: pytest.fail("it ran"))


def test_a_step_behind_the_end_of_its_claim_says_so(registry: Registry) -> None:
    """It is this process that has ended it: nobody else has the task, and the hint sends nobody to look for one."""
    with registry.claim("t") as claim:
        claim.succeed(1)
        for late in (lambda: claim.run_step("one", lambda: 1), claim.check, claim.release, claim.enter):
            with pytest.raises(ClaimLostError, match="has ended") as ended:
                late()
            assert "before the end of its claim" in ended.value.hint
            assert "nother owner" not in ended.value.hint
