"""The thorough look: a copy of an image opened by a whole `Registry` after a reboot, and asked as callers would ask."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any, Final

from idemreg import Clock, IdemregError, Registry, Status, TaskUnknownError, current_claim
from tests.powercut.image import write_out
from tests.powercut.worker import JOB, POLICIES, STEPS, recoverable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from tests.powercut.image import Content
    from tests.powercut.told import Need, Told

__all__ = ["reboot"]

ASKED: Final = 8  # tasks an image

# What a sweep makes of what is running, which nobody is any more.
SWEPT: Final = {
    "kept": ("rerun", Status.SUCCEEDED),
    "hold": ("settled", Status.UNKNOWN),
    "verify": ("settled", Status.UNKNOWN),
    "rerun": ("left", Status.RUNNING),
}


class Rebooted(Clock):
    """After the power came back."""

    def boot_id(self) -> str:
        return "after the cut"


def reboot(image: dict[str, Content], folder: str, database: str, told: Told, chance: Random) -> Iterator[str]:
    """What a registry says wrong, after a reboot, about tasks whose callers had been told something."""
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    write_out(image, folder)
    with Registry(os.path.join(folder, database), clock=Rebooted(), busy_timeout=1) as registry:
        try:
            registry.open()
        except IdemregError as error:
            yield f"the registry does not open: {error!r}"
            return
        jobs = _Kept(registry, told)
        try:
            for task in chance.sample(sorted(told.needs), min(ASKED, len(told.needs))):
                yield from _ask(registry, task, told.needs[task], told, jobs)
            yield from _sweep(registry)
            yield from jobs.problems
            yield from _claim_new(registry, told)
        except IdemregError as error:
            yield f"{error!r}"


class _Kept:
    """The job whose arguments are kept: run again, it goes on where its steps end."""

    def __init__(self, registry: Registry, told: Told) -> None:
        self.told = told
        self.entered: list[int] = []
        self.problems: list[str] = []
        self.call = recoverable(registry, self._body)

    def _body(self, task: str) -> str:
        claim = current_claim()
        if claim.task_id != task:
            self.problems.append(f"{claim.task_id}: is run again with the arguments of {task}")
        self.entered.append(claim.token)
        for name in STEPS:
            entered: list[str] = []
            result = json.dumps(claim.run_step(name, lambda entered=entered: entered.append("") or ""))  # type: ignore[misc]
            if (before := self.told.steps.get((task, name))) is not None and (entered or result != before):
                self.problems.append(
                    f"{task}: step {name} was told to be done with {before}, and is run again: {result}"
                )
        return ""


def _sweep(registry: Registry) -> Iterator[str]:
    """A sweep leaves nothing running but what its next call runs again by itself."""
    dead = {task.task_id: task for task in registry.tasks(status=Status.RUNNING)}
    swept = {one.task_id: (one.did, one.status) for one in registry.sweep()}
    for task, row in dead.items():
        policy = "kept" if task[0] == "k" else POLICIES[task[0]]
        if (became := swept.get(task)) != SWEPT[policy]:
            yield f"{task}: a sweep made {became} of {row}"


def _ask(registry: Registry, task: str, need: Need, told: Told, jobs: _Kept) -> Iterator[str]:
    """Call the task again: a success is replayed, and what may have begun under hold does not begin again."""
    entered: list[int] = []
    row = registry.get(task)
    before = None if row is None else row.status
    options: dict[str, Any] = {"name": JOB, "on_crash": POLICIES[task[0]]}
    if task[0] == "v":
        options["verify"] = lambda _: None  # cannot tell
    try:
        if task[0] == "k":
            outcome: Any = jobs.call(task)
            entered = jobs.entered[-1:] * (not outcome.replayed)
        else:
            outcome = registry.run(task, lambda: entered.append(current_claim().token), **options)
    except IdemregError as error:
        if need.is_final:
            yield f"{task}: must be replayed, and is {error!r}"
        elif before == Status.RUNNING and task[0] in "hov" and not isinstance(error, TaskUnknownError):
            yield f"{task}: was running at the cut, and is not unknown but {error!r}"
        return
    if need.is_final and (entered or json.dumps(outcome.result) not in {result for _, result in need.states}):
        yield f"{task}: must be replayed as {need.states}, and gives {outcome}"
    if entered and before in {Status.RUNNING, Status.UNKNOWN} and task[0] in "hov":
        yield f"{task}: began again, and was {before!r}"
    if entered and entered[0] <= told.newest:
        yield f"{task}: got token {entered[0]}, and {told.newest} had been given before"


def _claim_new(registry: Registry, told: Told) -> Iterator[str]:
    with registry.claim("new after the cut") as claim:
        if claim.token <= told.newest:
            yield f"a new task got token {claim.token}, and {told.newest} had been given before"
