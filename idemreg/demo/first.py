"""Act one: a few hundred tasks, each delivered several times to workers that are killed in mid-job."""

from __future__ import annotations

import json
import os
import random
import sys
from typing import TYPE_CHECKING, Final

from idemreg.clock import Clock
from idemreg.demo import account
from idemreg.demo.crew import Crew, Delivery
from idemreg.demo.process import FAILED, complain
from idemreg.demo.witness import Witness
from idemreg.demo.worker import BEFORE, BEHIND, COUPON, LETTER, RUNNING
from idemreg.model import Status
from idemreg.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.model import Task

__all__ = ["FILE", "FirstAct"]

FILE: Final = "jobs.db"

DELIVERIES_A_TASK: Final = (3, 4, 5)
ONE_LETTER_IN: Final = 4  # tasks; the others are coupons
ONE_KILL_IN: Final = 4


class FirstAct:
    """One demonstration, from the first delivery to the account."""

    def __init__(self, folder: str, workers: int, tasks: int, seed: int, *, as_json: bool) -> None:
        chance = random.Random(seed)  # noqa: S311 - a plan to be repeated, not a secret
        self._database = os.path.join(folder, FILE)
        self._witness = Witness(os.path.join(folder, "witness.log"))
        self._workers = workers
        self._seed = seed
        self._tasks = [
            Delivery(LETTER if number % ONE_LETTER_IN == 0 else COUPON, number) for number in range(1, tasks + 1)
        ]
        self._deliveries = [task for task in self._tasks for _ in range(chance.choice(DELIVERIES_A_TASK))]
        chance.shuffle(self._deliveries)
        condemned = chance.sample(self._tasks, -(-tasks // ONE_KILL_IN))
        self._kills = {task.task_id: chance.choice((BEFORE, BEHIND, RUNNING)) for task in condemned}
        self._as_json = as_json
        self._is_terminal = sys.stdout.isatty() and not as_json

    def play(self) -> int:
        """From the first delivery to the account; the exit code."""
        clock = Clock()
        began = clock.monotonic()
        if not self._as_json:
            sys.stdout.write(f"{account.OPENING}\n\n")
            sys.stdout.flush()
        with (
            Registry(self._database) as registry,
            Crew(self._database, self._witness.path, self._workers, self._kills) as crew,
        ):
            crew.deliver(self._deliveries, self._progress)
            left_unknown = [task.task_id for task in registry.tasks(status=Status.UNKNOWN)]
            self._resolve(registry, left_unknown)
            crew.deliver([task for task in self._tasks if task.task_id in set(left_unknown)], self._progress)
            crew.dismiss()
            rows = {row.task_id: row for row in registry.tasks()}
        self._clear_progress()
        return self._conclude(self._run(crew, left_unknown, clock.monotonic() - began), rows)

    def _resolve(self, registry: Registry, task_ids: Sequence[str]) -> None:
        """What an operator does with `idemreg resolve`: find out whether it happened, and say so."""
        for task_id in task_ids:
            evidence = self._witness.evidence(task_id)
            if evidence is None:
                registry.resolve(task_id, "did-not-happen", evidence="not in the witness file", by=account.BY_HAND)
            else:
                result = f"letter {task_id.partition(':')[2]} posted"
                registry.resolve(task_id, "happened", result=result, evidence=evidence, by=account.BY_HAND)

    def _run(self, crew: Crew, left_unknown: list[str], seconds: float) -> account.Run:
        return account.Run(
            self._database,
            self._witness.path,
            self._seed,
            self._workers,
            crew.delivered,
            crew.answers["replayed"],
            crew.killed,
            left_unknown,
            seconds,
        )

    def _conclude(self, run: account.Run, rows: dict[str, Task]) -> int:
        found = account.disagreements([task.task_id for task in self._tasks], self._witness.effects(), rows)
        if found:
            return complain(
                account.failure(found, f"seed {run.seed}; registry {run.database}; witness {run.witness}"), FAILED
            )
        told = json.dumps(account.facts(run, rows)) if self._as_json else account.tell(run, rows)
        sys.stdout.write(f"{told}\n")
        return 0

    # --- progress, on a terminal only -----------------------------------------------------------------------------

    def _progress(self, crew: Crew) -> None:
        if self._is_terminal:
            killed = crew.killed.total()
            sys.stdout.write(f"\r\033[K{crew.delivered:,} deliveries, {killed} workers killed")
            sys.stdout.flush()

    def _clear_progress(self) -> None:
        if self._is_terminal:
            sys.stdout.write("\r\033[K")
