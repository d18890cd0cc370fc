"""The last look at the file, when all is over: what each task has become, and which steps and effects are there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from idemreg import Registry
from tests.torture.killing.worker import EFFECTS

if TYPE_CHECKING:
    from tests.torture.killing.witness import Witness

__all__ = ["audit", "prepare"]

# What must lie beside no row: arguments of a final task, steps of none, the limits of a claim that has ended.
LEFT: Final = (
    "SELECT task_id FROM idempotent_argument JOIN idempotent_log USING (task_id) WHERE status IN (1, 5, 6)",
    "SELECT task_id FROM idempotent_argument WHERE task_id NOT IN (SELECT task_id FROM idempotent_log)",
    "SELECT task_id FROM idempotent_step WHERE task_id NOT IN (SELECT task_id FROM idempotent_log)",
    "SELECT task_id FROM idempotent_lease WHERE task_id NOT IN (SELECT task_id FROM idempotent_log WHERE status = 3)",
)


def prepare(path: str) -> None:
    """Make the file, with a table for effects."""
    with Registry(path) as registry, registry.claim("made", on_crash="rerun") as claim, claim.transaction() as tx:
        tx.execute(EFFECTS)


def audit(path: str, tasks: list[str], witness: Witness) -> None:
    """Tell of all tasks, as any caller would be told, of their steps, and of all effects."""
    with Registry(path) as registry:
        for task in tasks:
            witness.say("call", 0, "get", task, "-", 0, "-")
            row = registry.get(task)
            if row is None:
                witness.say("said", 0, "none")
            else:
                witness.say("said", 0, row.status.word, row.token, row.attempt, json.loads(row.result or '"-"'))
                for step in registry.steps(task):
                    witness.say("saved", task, step.name, json.loads(step.result or '"-"'))
        with registry.claim("looked", on_crash="rerun") as claim, claim.transaction() as tx:
            effects = tx.execute("SELECT task, token FROM effect")
            left = [row for sql in LEFT for row in tx.execute(sql)]
        if left:
            witness.say("trouble", "left behind:", *left[0])
        for task, token in effects:
            witness.say("effect", task, token)
    witness.say("leaving")
