"""Every public call, each as a case that can be carried out again and again, with a fault beneath it.

A case says which methods it covers; tests/test_torture_io_errors.py fails on a public method that none covers.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg import (
    Checkpointer,
    Claim,
    Clock,
    IdemregError,
    Outcome,
    Registry,
    Status,
    TaskUnknownError,
)
from idemreg.slots import slot_id
from idemreg.testing import ManualClock
from tests.torture.injected.scene import NAME
from tests.torture.injected.states import BUSY_S, LARGE, RESULT, JobError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.torture.injected.scene import Scene

__all__ = ["CASES", "EXPORT", "Case", "CommandError", "case"]

SUCCEEDED, FAILED, PENDING, RUNNING, UNKNOWN = (
    *(Status.SUCCEEDED, Status.FAILED, Status.PENDING, Status.RUNNING, Status.UNKNOWN),
)


SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US


class Case(NamedTuple):
    """A call; ``act`` raises what it raises."""

    name: str
    covers: tuple[str, ...]
    act: Callable[[Scene], None]
    is_filled: bool  # needs the tasks of a filled state
    is_cold: bool  # opens the file itself, and is not tried on one that is open
    weight: int  # tried so many times as often as others; 0: seldom, as it takes long
    is_mixed: bool  # shared with code that is not ours (an event loop, click): Python has its memory there


class CommandError(Exception):
    """A command ended with a code and a line of stderr, which say that the file could not be read or written."""


CASES: Final[list[Case]] = []


def case(
    name: str, *covers: str, filled: bool = False, cold: bool = False, weight: int = 1, mixed: bool = False
) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    def register(act: Callable[[Scene], None]) -> Callable[[Scene], None]:
        CASES.append(Case(name, covers, act, filled, cold, weight, mixed))
        return act

    return register


# --- jobs -----------------------------------------------------------------------------------------------------------


@case("run", "Registry.run", weight=8)
def run(scene: Scene) -> None:
    scene.run("new")


@case("run, rerun", "Registry.run", weight=2)
def run_rerun(scene: Scene) -> None:
    scene.may_rerun = True
    scene.run("new", on_crash="rerun")


@case("run twice", "Registry.run", weight=3)
def run_twice(scene: Scene) -> None:
    scene.run("new")
    scene.run("new")
    scene.run("new-2")


@case("run, fails", "Registry.run", weight=2)
def run_fails(scene: Scene) -> None:
    scene.tries("new", RUNNING, PENDING, UNKNOWN)
    with contextlib.suppress(JobError):
        scene.registry.run("new", scene.job("new", JobError("told to")), name=NAME, on_failure="hold")
        scene.problems.append("the error of a job is lost")
    scene.tells("new", FAILED)


@case("run, interrupted", "Registry.run")
def run_interrupted(scene: Scene) -> None:
    scene.tries("new", RUNNING, PENDING, UNKNOWN)
    with contextlib.suppress(KeyboardInterrupt):
        scene.registry.run("new", scene.job("new", KeyboardInterrupt()), name=NAME)


@case("run, stored before", "Registry.run", filled=True, weight=2)
def run_replayed(scene: Scene) -> None:
    for task_id, result in (("done", RESULT), ("large", LARGE)):
        outcome: Any = scene.registry.run(task_id, scene.job(task_id), name="first")
        scene.check(outcome.replayed and outcome.result == result, "what is replayed is another result")


@case("run, failed before", "Registry.run", filled=True)
def run_again(scene: Scene) -> None:
    scene.tries("failed", RUNNING, PENDING, UNKNOWN)
    scene.registry.run("failed", scene.job("failed"), name="_fail")
    scene.tells("failed", SUCCEEDED)


@case("run, owner dead", "Registry.run", filled=True)
def run_dead(scene: Scene) -> None:
    scene.tries("dead", UNKNOWN)
    with contextlib.suppress(TaskUnknownError):
        scene.registry.run("dead", scene.job("dead"), name="")
        scene.problems.append("a task whose owner has died was run")
    scene.tells("dead", UNKNOWN, durable=False)


@case("run, verify", "Registry.run", filled=True, weight=2)
def run_verified(scene: Scene) -> None:
    for task_id, answer in (("unknown", True), ("unknown-too", None)):
        scene.tries(task_id, RUNNING, UNKNOWN, *((SUCCEEDED,) if answer else ()))
        with contextlib.suppress(TaskUnknownError):
            scene.registry.run(task_id, scene.job(task_id) if answer else dict, name="_fail", on_crash="verify",
                               verify=lambda *_, said=answer: said)  # fmt: skip
            scene.check(answer, "a hook that cannot tell has settled a task")
            scene.tells(task_id, SUCCEEDED)


@case("idempotent", "Registry.idempotent", weight=2)
def decorated(scene: Scene) -> None:
    _decorated(scene, recover=False)


@case("idempotent, recover", "Registry.idempotent")
def kept(scene: Scene) -> None:
    _decorated(scene, recover=True)


def _decorated(scene: Scene, *, recover: bool) -> None:
    body = scene.job("new")
    scene.fault.armed = 0  # to decorate compiles a function: see memory.py

    @scene.registry.idempotent("{task_id}", name=NAME, checksum=lambda task_id: None, recover=recover)
    def job(task_id: str) -> Any:
        return body()

    scene.fault.armed = 1
    scene.tries("new", RUNNING, PENDING, UNKNOWN)
    scene.check(job("new") == RESULT, "a call gave another result")
    scene.tells("new", SUCCEEDED)
    task = job.task("new")
    scene.check(task is not None and task.status is SUCCEEDED, "a task that has succeeded is not told so")


@case("run, lease", "Registry.run")
def run_leased(scene: Scene) -> None:
    scene.run("new", lease=60)


@case("claim", "Registry.claim", "Claim.succeed", weight=3)
def claimed(scene: Scene) -> None:
    scene.is_block = True
    scene.tries("new", RUNNING, PENDING, UNKNOWN)
    with scene.registry.claim("new", name=NAME) as claim:
        claim.result = scene.job("new")()
    scene.tells("new", SUCCEEDED)


@case(
    "claim, by hand",
    "Registry.claim",
    "Claim.enter",
    "Claim.succeed",
    "Claim.fail",
    "Claim.release",
    "Claim.downstream_key",
)
def claimed_by_hand(scene: Scene) -> None:
    scene.is_block = True
    for task_id in ("new", "new-2", "put-back"):
        scene.tries(task_id, RUNNING, PENDING, UNKNOWN)
    claim = scene.registry.claim("new", name=NAME)
    claim.enter()
    scene.entered["new"] += 1
    scene.check(claim.downstream_key, "no key")  # which reads: a claim that is dropped in here has begun
    claim.succeed(RESULT)
    scene.tells("new", SUCCEEDED)
    claim = scene.registry.claim("new-2", name=NAME, on_failure="hold")
    scene.entered["new-2"] += 1
    scene.failed["new-2"] += 1
    claim.fail(JobError("told to"))
    scene.tells("new-2", FAILED)
    scene.registry.claim("put-back", name=NAME).release()
    scene.tells("put-back", PENDING)


@case("claim, transaction", "Registry.claim", "Claim.transaction", weight=2)
def in_transaction(scene: Scene) -> None:
    scene.is_block = True
    scene.tries("new", RUNNING, PENDING, UNKNOWN)
    with scene.registry.claim("new", name=NAME) as claim:
        scene.has_begun = True
        body = scene.job("new")
        with claim.transaction() as transaction:
            claim.result = body()
            transaction.execute("CREATE TABLE IF NOT EXISTS stock (n)")
            transaction.execute("INSERT INTO stock VALUES (1)")
    scene.tells("new", SUCCEEDED)


@case("steps", "Claim.step", "Claim.run_step", "Registry.steps")
def stepped(scene: Scene) -> None:
    scene.is_block = True
    scene.tries("new", RUNNING, PENDING, UNKNOWN)
    with scene.registry.claim("new", name=NAME) as claim:
        scene.has_begun = True
        claim.run_step("first", lambda: 1)
        with claim.step("second") as step:
            step.result = 2
        claim.result = scene.job("new")()
    scene.tells("new", SUCCEEDED)
    scene.check(len(scene.registry.steps("new")) == 2, "a step that was saved is not told")


@case("serials", "Registry.serials")
def numbered(scene: Scene) -> None:
    numbers = scene.registry.serials("T")
    scene.check(numbers.next() < numbers.next(), "serials go back")


@case("run_due", "Registry.scheduled", "Registry.run_due", weight=2)
def due(scene: Scene) -> None:
    if (problem := _due(scene)) is not None:  # as in `many`
        raise problem


def _due(scene: Scene) -> Exception | None:
    """The slot of a minute that passes by the clock of a registry of its own."""
    machine = Clock()
    clock = ManualClock(wall_us=machine.wall_us(), boot_ms=machine.boot_ms())
    slot = slot_id("minute", (clock.wall_us() // MINUTE_US + 1) * MINUTE_US // SECOND_US)
    scene.entered[slot] = scene.failed[slot] = 0
    scene.tries(slot, RUNNING, PENDING, UNKNOWN)
    with Registry(scene.path, busy_timeout=BUSY_S, clock=clock) as registry:
        registry.scheduled("minute", cron="* * * * *")(scene.job(slot))
        registry.run_due()  # begins the schedule
        clock.advance(MINUTE_US // SECOND_US)
        (ran,) = registry.run_due()
        if ran.error is None:
            scene.tells(slot, SUCCEEDED)
        return ran.error


@case("schedule", "Registry.scheduled", "Registry.run_due", "Registry.pause", "Registry.resume", "Registry.audit",
      "Registry.run_slot")  # fmt: skip
def scheduled(scene: Scene) -> None:
    registry, slot = scene.registry, "leap@2024-02-29T00:00:00Z"
    registry.scheduled("leap", cron="0 0 29 2 *")(lambda: None)
    registry.run_due()
    registry.pause("leap")
    registry.resume("leap")
    scene.check(all(one.is_sound for one in registry.audit("leap")), "the audit of nothing is not clean")
    scene.tries(slot, RUNNING, PENDING, UNKNOWN, SUCCEEDED)
    registry.run_slot(slot)
    scene.tells(slot, SUCCEEDED)


@case("sweep", "Registry.sweep", filled=True, weight=2)
def swept(scene: Scene) -> None:
    scene.tries("dead", UNKNOWN)
    for one in scene.registry.sweep():
        scene.check((one.task_id, one.did) == ("dead", "settled"), "a sweep has touched what it should not")
        scene.tells("dead", UNKNOWN)


@case("clock", "Registry.check_clock", "Registry.confirm_clock")
def clock_checked(scene: Scene) -> None:
    scene.check(scene.registry.check_clock().permit.scheduling, "a clock is in doubt that nobody has set")
    scene.registry.confirm_clock(evidence="looked at it")


@case("claim_many", "Registry.claim_many", "Registry.finish_many", "Claim.enter", weight=2)
def many(scene: Scene) -> None:
    # Not raised where the claims are: a traceback that leads to its own error keeps them until garbage is collected.
    if (problem := _many(scene)) is not None:
        raise problem


def _many(scene: Scene) -> IdemregError | None:
    scene.is_block = True
    names = ("new", "new-2", "new-3")
    for task_id in names:
        scene.tries(task_id, RUNNING, PENDING, UNKNOWN)
    answers = scene.registry.claim_many([(task_id, None) for task_id in names], name=NAME)
    claims = []
    for task_id, answer in zip(names, answers, strict=True):
        if not isinstance(answer, Claim):
            scene.check(isinstance(answer, IdemregError), "neither a claim nor an error")
            continue
        with contextlib.suppress(IdemregError):
            answer.enter()
            scene.entered[task_id] += 1
            claims.append(answer)
    ends = scene.registry.finish_many([(claim, RESULT) for claim in claims])
    for claim, end in zip(claims, ends, strict=True):
        if isinstance(end, Outcome):
            scene.tells(claim.task_id, SUCCEEDED)
        else:
            scene.check(isinstance(end, IdemregError), "neither an outcome nor an error")
    return next((one for one in (*answers, *ends) if isinstance(one, IdemregError)), None)


@case("consume", "Registry.consume", weight=2)
def consumed(scene: Scene) -> None:
    names = ("new", "new-2", "new-3")
    for task_id in names:
        scene.tries(task_id, RUNNING, PENDING, UNKNOWN)
    error: BaseException | None = None
    bodies = {task_id: scene.job(task_id) for task_id in names}
    for handled in scene.registry.consume(
        names, lambda task_id: bodies[task_id](), task_id=str, payload=lambda _: None, name=NAME, batch=2
    ):
        if handled.error is None:
            scene.tells(handled.message, SUCCEEDED)
        else:
            error = handled.error
    if error is not None:
        raise error


# --- looking --------------------------------------------------------------------------------------------------------


@case("get", "Registry.get", "Registry.owner", filled=True)
def got(scene: Scene) -> None:
    for task_id in ("done", "dead", "nobody"):
        task, row = scene.registry.get(task_id), scene.before.get(task_id)
        scene.check((None if task is None else task.status) == (row and row.status), "get tells something else")
        if task_id == "dead" and task is not None:
            scene.check(scene.registry.owner(task) is not None, "a running task has no owner")


@case("tasks", "Registry.tasks", "Registry.count", filled=True)
def listed(scene: Scene) -> None:
    found = {task.task_id: task.status for task in scene.registry.tasks()}
    scene.check(
        {**found, "warm": 1} == {**{i: row.status for i, row in scene.before.items()}, "warm": 1},
        "tasks leaves some out",
    )
    counts = scene.registry.count()
    scene.check(sum(counts.values()) == len(found), "count leaves some out")


@case("doctor", "Registry.doctor", filled=True)
def examined(scene: Scene) -> None:
    scene.registry.doctor()


@case("doctor, full", "Registry.doctor", filled=True)
def examined_in_full(scene: Scene) -> None:
    scene.registry.doctor(full=True)


# --- operating ------------------------------------------------------------------------------------------------------


@case("add", "Registry.add", "Registry.skip", "Registry.cancel")
def added(scene: Scene) -> None:
    for task_id, status in (("new", PENDING), ("skip", Status.SKIPPED), ("cancel", Status.CANCELLED)):
        scene.tries(task_id, PENDING, status)
        scene.registry.add(task_id, name=NAME)
        if status is Status.SKIPPED:
            scene.registry.skip(task_id, "not wanted")
        if status is Status.CANCELLED:
            scene.registry.cancel(task_id)
        scene.tells(task_id, status)


@case("resolve", "Registry.resolve", "Registry.retry", filled=True)
def resolved(scene: Scene) -> None:
    scene.tries("unknown", SUCCEEDED)
    scene.registry.resolve("unknown", "happened", result=RESULT, evidence="seen")
    scene.tells("unknown", SUCCEEDED)
    scene.tries("unknown-too", FAILED)
    scene.registry.resolve("unknown-too", "did-not-happen")
    scene.tells("unknown-too", FAILED)
    scene.tries("held", FAILED)
    scene.registry.retry("held")
    scene.tells("held", FAILED)


@case("forget", "Registry.forget", filled=True)
def forgotten(scene: Scene) -> None:
    for task_id in ("failed", "dead"):
        scene.tries(task_id, None)
        scene.registry.forget(task_id, force=True)
        scene.tells(task_id, None)


@case("checkpoint", "Registry.checkpoint", filled=True)
def checkpointed(scene: Scene) -> None:
    scene.run("new")
    for mode in ("PASSIVE", "FULL", "TRUNCATE"):
        scene.registry.checkpoint(mode)


@case("purge", "Registry.purge", filled=True)
def purged(scene: Scene) -> None:
    final = [i for i, row in scene.before.items() if row.status in {SUCCEEDED, Status.SKIPPED, Status.CANCELLED}]
    for task_id in (*final, "warm"):
        scene.tries(task_id, None)
    scene.registry.purge(older_than=0)


@case("backup", "Registry.backup", filled=True)
def backed_up(scene: Scene) -> None:
    scene.backup = f"{scene.path}.copy"
    scene.registry.backup(scene.backup)


@case("export", "Registry.export_lines", filled=True)
def exported(scene: Scene) -> None:
    lines = [json.loads(line) for line in scene.registry.export_lines()]
    found = {line["task_id"] for line in lines if "task_id" in line}
    scene.check(found - {"warm"} == set(scene.before), "an export leaves some out")


@case("import", "Registry.import_lines")
def imported(scene: Scene) -> None:
    for task_id in ("in-1", "in-2"):
        scene.tries(task_id, SUCCEEDED)
    scene.registry.import_lines(EXPORT)
    for task_id in ("in-1", "in-2"):
        scene.tells(task_id, SUCCEEDED)


def _export() -> list[str]:
    import tempfile  # noqa: PLC0415

    with (
        tempfile.TemporaryDirectory() as folder,
        Registry(os.path.join(folder, "jobs.db"), durability="normal") as other,
    ):
        for task_id in ("in-1", "in-2"):
            other.run(task_id, lambda: RESULT, name=NAME)
        return list(other.export_lines())


EXPORT: Final = _export()


# --- opening and closing --------------------------------------------------------------------------------------------


@case("open", "Registry.open", "Registry.close", cold=True, weight=2)
def opened(scene: Scene) -> None:
    scene.registry.open()
    scene.registry.close()


@case("close", "Registry.close", "Registry.run", weight=2)
def closed(scene: Scene) -> None:
    scene.run("new")
    scene.registry.close()
    scene.run("new-2")


@case("Checkpointer", "Checkpointer.start", "Checkpointer.step", "Checkpointer.stop", "Checkpointer.close")
def with_checkpointer(scene: Scene) -> None:
    checkpointer = Checkpointer(scene.registry, passive_pages=1, restart_bytes=1)
    scene.run("new")
    checkpointer.step()
    checkpointer.close()
