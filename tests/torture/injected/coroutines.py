"""The cases that are coroutines: the same calls awaited, whose work threads of the registry's own do."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from idemreg import AsyncRegistry, IdemregError, Outcome, Status
from idemreg.aio import AsyncClaim
from tests.torture.injected.cases import CASES, EXPORT, case
from tests.torture.injected.scene import NAME
from tests.torture.injected.states import RESULT, JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.torture.injected.scene import Scene

    Main: TypeAlias = "Callable[[Scene, AsyncRegistry], Coroutine[Any, Any, Exception | None]]"

__all__ = ["CASES"]

SUCCEEDED, FAILED, PENDING, RUNNING, UNKNOWN = (
    *(Status.SUCCEEDED, Status.FAILED, Status.PENDING, Status.RUNNING, Status.UNKNOWN),
)
MANY: Final = ("new", "new-2", "new-3")


def awaited(name: str, *covers: str, filled: bool = False, weight: int = 1) -> Callable[[Main], Main]:
    """A case of coroutines. What it returns is raised, once nobody is at work for it any more."""

    def register(main: Main) -> Main:
        case(f"awaited, {name}", *covers, filled=filled, mixed=True, weight=weight)(functools.partial(_act, main))
        return main

    return register


def _act(main: Main, scene: Scene) -> None:
    try:
        problem = asyncio.run(_told(main, scene))
    finally:  # what a claim has left to the threads, they do behind its call
        offload = scene.registry.offload
        offload.pool().shutdown(wait=True)
        offload.close()
    if problem is not None:
        try:
            raise problem
        finally:
            del problem  # whose traceback has this frame


async def _told(main: Main, scene: Scene) -> Exception | None:
    """Its error is returned: asyncio makes a cycle of one that is raised, and keeps what it leads to, a claim, say."""
    try:
        return await main(scene, AsyncRegistry.of(scene.registry))
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error


# --- jobs -----------------------------------------------------------------------------------------------------------


@awaited("run", "AsyncRegistry.run", "AsyncRegistry.claim", "AsyncRegistry.get", weight=2)
async def run(scene: Scene, registry: AsyncRegistry) -> None:
    for task_id in ("new", "new-2"):
        scene.tries(task_id, RUNNING, PENDING, UNKNOWN)
    await registry.run("new", scene.job("new"), name=NAME)
    scene.tells("new", SUCCEEDED)
    async with registry.claim("new-2", name=NAME) as claim:
        claim.result = scene.job("new-2")()
    scene.tells("new-2", SUCCEEDED)
    await registry.get("new")


@awaited("idempotent", "AsyncRegistry.idempotent", "AsyncRegistry.open", "AsyncRegistry.close")
async def decorated(scene: Scene, registry: AsyncRegistry) -> None:
    body = scene.job("new")

    @registry.idempotent("{task_id}", name=NAME, checksum=lambda task_id: None)
    async def job(task_id: str) -> Any:
        return body()

    await registry.open()
    scene.tries("new", RUNNING, PENDING, UNKNOWN)
    scene.check(await job("new") == RESULT, "a call gave another result")
    scene.tells("new", SUCCEEDED)
    await registry.close()


@awaited(
    "claim, by hand",
    "AsyncRegistry.claim",
    *(f"AsyncClaim.{name}" for name in ("enter", "succeed", "fail", "release", "downstream_key")),
)
async def by_hand(scene: Scene, registry: AsyncRegistry) -> None:
    scene.is_block = True
    for task_id in ("new", "new-2", "put-back"):
        scene.tries(task_id, RUNNING, PENDING, UNKNOWN)
    claim = await registry.claim("new", name=NAME)
    await claim.enter()
    scene.entered["new"] += 1
    scene.check(claim.downstream_key, "no key")
    await claim.succeed(RESULT)
    scene.tells("new", SUCCEEDED)
    claim = await registry.claim("new-2", name=NAME, on_failure="hold")
    scene.entered["new-2"] += 1
    scene.failed["new-2"] += 1
    await claim.fail(JobError("told to"))
    scene.tells("new-2", FAILED)
    await (await registry.claim("put-back", name=NAME)).release()
    scene.tells("put-back", PENDING)


@awaited("transaction", "AsyncClaim.transaction", "AsyncTransaction.execute")
async def in_transaction(scene: Scene, registry: AsyncRegistry) -> None:
    scene.is_block = True
    scene.tries("new", RUNNING, PENDING, UNKNOWN)
    async with registry.claim("new", name=NAME) as claim:
        scene.has_begun = True
        body = scene.job("new")
        async with claim.transaction() as transaction:
            claim.result = body()
            await transaction.execute("CREATE TABLE IF NOT EXISTS stock (n)")
            await transaction.execute("INSERT INTO stock VALUES (1)")
    scene.tells("new", SUCCEEDED)


@awaited("steps", "AsyncClaim.step", "AsyncClaim.run_step", "AsyncRegistry.steps")
async def stepped(scene: Scene, registry: AsyncRegistry) -> None:
    async def one() -> int:
        return 1

    scene.is_block = True
    scene.tries("new", RUNNING, PENDING, UNKNOWN)
    async with registry.claim("new", name=NAME) as claim:
        scene.has_begun = True
        await claim.run_step("first", one)
        async with claim.step("second") as step:
            step.result = 2
        claim.result = scene.job("new")()
    scene.tells("new", SUCCEEDED)
    scene.check(len(await registry.steps("new")) == 2, "a step that was saved is not told")


@awaited("many", "AsyncRegistry.claim_many", "AsyncRegistry.finish_many", "AsyncClaim.enter")
async def many(scene: Scene, registry: AsyncRegistry) -> Exception | None:
    scene.is_block = True
    for task_id in MANY:
        scene.tries(task_id, RUNNING, PENDING, UNKNOWN)
    answers = await registry.claim_many([(task_id, None) for task_id in MANY], name=NAME)
    claims = []
    for task_id, answer in zip(MANY, answers, strict=True):
        if not isinstance(answer, AsyncClaim):
            scene.check(isinstance(answer, IdemregError), "neither a claim nor an error")
            continue
        with contextlib.suppress(IdemregError):
            await answer.enter()
            scene.entered[task_id] += 1
            claims.append(answer)
    ends = await registry.finish_many([(claim, RESULT) for claim in claims])
    for claim, end in zip(claims, ends, strict=True):
        if isinstance(end, Outcome):
            scene.tells(claim.task_id, SUCCEEDED)
        else:
            scene.check(isinstance(end, IdemregError), "neither an outcome nor an error")
    return next((one for one in (*answers, *ends) if isinstance(one, IdemregError)), None)


@awaited("consume", "AsyncRegistry.consume")
async def consumed(scene: Scene, registry: AsyncRegistry) -> Exception | None:
    for task_id in MANY:
        scene.tries(task_id, RUNNING, PENDING, UNKNOWN)
    bodies = {task_id: scene.job(task_id) for task_id in MANY}

    async def job(task_id: str) -> Any:
        return bodies[task_id]()

    problem: Exception | None = None
    handling = registry.consume(MANY, job, task_id=str, payload=lambda _: None, name=NAME, batch=2)
    async with contextlib.aclosing(handling) as following:
        async for handled in following:
            if handled.error is None:
                scene.tells(handled.message, SUCCEEDED)
            elif isinstance(handled.error, Exception):
                problem = handled.error
    return problem


@awaited("sweep", "AsyncRegistry.sweep", filled=True)
async def swept(scene: Scene, registry: AsyncRegistry) -> None:
    scene.tries("dead", UNKNOWN)
    for one in await registry.sweep():
        scene.check((one.task_id, one.did) == ("dead", "settled"), "a sweep has touched what it should not")
        scene.tells("dead", UNKNOWN)


@awaited(
    "schedule",
    *(f"AsyncRegistry.{name}" for name in ("scheduled", "run_due", "run_slot", "audit", "pause", "resume")),
    *(f"AsyncRegistry.{name}" for name in ("check_clock", "confirm_clock", "serials")),
)
async def scheduled(scene: Scene, registry: AsyncRegistry) -> None:
    async def job() -> None:
        pass

    slot = "leap@2024-02-29T00:00:00Z"
    registry.scheduled("leap", cron="0 0 29 2 *")(job)
    await registry.run_due()
    await registry.pause("leap")
    await registry.resume("leap")
    scene.check(all(one.is_sound for one in await registry.audit("leap")), "the audit of nothing is not clean")
    scene.tries(slot, RUNNING, PENDING, UNKNOWN, SUCCEEDED)
    await registry.run_slot(slot)
    scene.tells(slot, SUCCEEDED)
    scene.check((await registry.check_clock()).permit.scheduling, "a clock is in doubt that nobody has set")
    await registry.confirm_clock(evidence="looked at it")
    numbers = registry.serials("T")
    scene.check(await numbers.next() < await numbers.next(), "serials go back")


# --- looking and operating ------------------------------------------------------------------------------------------


@awaited(
    "look",
    *(f"AsyncRegistry.{name}" for name in ("get", "owner", "tasks", "count", "export_lines", "doctor")),
    filled=True,
)
async def looked(scene: Scene, registry: AsyncRegistry) -> None:
    task = await registry.get("dead")
    assert task is not None
    scene.check(await registry.owner(task) is not None, "a running task has no owner")
    found = {one.task_id async for one in registry.tasks()}
    scene.check(found - {"warm"} == set(scene.before), "tasks leaves some out")
    scene.check(sum((await registry.count()).values()) == len(found), "count leaves some out")
    lines = [line async for line in registry.export_lines()]
    scene.check(len(lines) >= len(found), "an export leaves some out")
    await registry.doctor()


@awaited(
    "decide",
    *(f"AsyncRegistry.{name}" for name in ("add", "skip", "cancel", "resolve", "retry", "forget")),
    filled=True,
)
async def decided(scene: Scene, registry: AsyncRegistry) -> None:
    for task_id, end in (("new", PENDING), ("skip", Status.SKIPPED), ("cancel", Status.CANCELLED)):
        scene.tries(task_id, PENDING, end)
        await registry.add(task_id, name=NAME)
    scene.tells("new", PENDING)
    scene.tries("unknown", SUCCEEDED)
    scene.tries("held", FAILED)
    scene.tries("failed", None)
    for task_id, decide, status in (
        ("skip", functools.partial(registry.skip, reason="not wanted"), Status.SKIPPED),
        ("cancel", registry.cancel, Status.CANCELLED),
        ("unknown", functools.partial(registry.resolve, verdict="happened", result=RESULT), SUCCEEDED),
        ("held", registry.retry, FAILED),
        ("failed", registry.forget, None),
    ):
        await decide(task_id)
        scene.tells(task_id, status)


@awaited(
    "keep",
    *(f"AsyncRegistry.{name}" for name in ("checkpoint", "purge", "backup", "import_lines")),
    filled=True,
)
async def kept(scene: Scene, registry: AsyncRegistry) -> None:
    for task_id in ("in-1", "in-2"):
        scene.tries(task_id, SUCCEEDED)
    await registry.import_lines(EXPORT)
    for task_id in ("in-1", "in-2"):
        scene.tells(task_id, SUCCEEDED)
    await registry.checkpoint()
    scene.backup = f"{scene.path}.copy"
    await registry.backup(scene.backup)
    scene.promised.clear()
    final = [i for i, row in scene.before.items() if row.status in {SUCCEEDED, Status.SKIPPED, Status.CANCELLED}]
    for task_id in (*final, "warm", "in-1", "in-2"):
        scene.tries(task_id, None, SUCCEEDED)
    await registry.purge(older_than=0)
