"""See it work: real processes, real kills, and a witness that counts what really happened.

A few hundred tasks are delivered several times each, in shuffled order, to workers that are killed in mid-job. The
rooms: `witness` counts effects outside the registry, `worker` is one consumer process, `crew` starts, feeds and kills
them, `account` compares and tells.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from typing import TYPE_CHECKING, Final

from idemreg.clock import Clock
from idemreg.demo import account
from idemreg.demo.crew import Crew, CrewError, Delivery
from idemreg.demo.witness import Witness
from idemreg.demo.worker import BEFORE, BEHIND, COUPON, LETTER, RUNNING
from idemreg.model import Status
from idemreg.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.model import Task

__all__ = ["main"]

MAX_WORKERS: Final = 64
MAX_TASKS: Final = 100_000
SEED_BITS: Final = 32

DELIVERIES_A_TASK: Final = (3, 4, 5)
ONE_LETTER_IN: Final = 4  # tasks; the others are coupons
ONE_KILL_IN: Final = 4

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


def main(
    directory: str | None = None,
    workers: int = 6,
    tasks: int = 300,
    *,
    seed: int | None = None,
    as_json: bool = False,
) -> int:
    """Run the demonstration, tell what happened, and give the exit code: 0, or 1 where the witness disagrees.

    ``directory`` keeps the registry and the witness file; a new temporary one by default, which stays for a look. With
    one ``seed`` the deliveries and the planned kills are the same; what the processes make of them is up to the kernel.
    ``as_json``: the account is one object.
    """
    if not (1 <= workers <= MAX_WORKERS and 1 <= tasks <= MAX_TASKS):
        return _complain(f"demo takes 1 to {MAX_WORKERS} workers and 1 to {MAX_TASKS:,} tasks", USAGE)
    try:
        folder = _folder(directory)
    except OSError as error:
        return _complain(f"demo cannot use {directory}: {error.strerror}", USAGE)
    if os.path.exists(os.path.join(folder, "jobs.db")):
        return _complain(f"there is a jobs.db in {folder} already: name another folder", USAGE)
    chosen = random.SystemRandom().getrandbits(SEED_BITS) if seed is None else seed
    try:
        return _Demo(folder, workers, tasks, chosen, as_json=as_json)()
    except KeyboardInterrupt:
        return _complain(f"interrupted; every worker is gone, and the files stay in {folder}", INTERRUPTED)
    except CrewError as error:
        return _complain(f"DEMO FAILED: {error}; the files stay in {folder}", FAILED)


def _folder(directory: str | None) -> str:
    if directory is None:
        return tempfile.mkdtemp(prefix="idemreg-demo-")
    os.makedirs(directory, exist_ok=True)
    return os.path.abspath(directory)


def _complain(words: str, exit_code: int) -> int:
    sys.stderr.write(f"idemreg: {words}\n")
    return exit_code


class _Demo:
    """One demonstration, from the first delivery to the account."""

    def __init__(self, folder: str, workers: int, tasks: int, seed: int, *, as_json: bool) -> None:
        chance = random.Random(seed)  # noqa: S311 - a plan to be repeated, not a secret
        self._database = os.path.join(folder, "jobs.db")
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

    def __call__(self) -> int:
        clock = Clock()
        began = clock.monotonic()
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
            return _complain(account.failure(found, run), FAILED)
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
