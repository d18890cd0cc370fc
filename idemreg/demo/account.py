"""The account of a demonstration: does the witness agree with the registry, and what is there to tell."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg.counted import counted
from idemreg.demo.worker import BEFORE, BEHIND, RUNNING
from idemreg.model import Status, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from idemreg.model import Task

__all__ = ["BY_HAND", "BY_HOOK", "OPENING", "Run", "disagreements", "facts", "failure", "program", "tell"]

OPENING: Final = "Act one: tasks are delivered several times, and their workers die in mid-job."

BY_HOOK: Final = "verify hook"
BY_HAND: Final = "the demo's operator"

# More findings than this are counted, not listed.
LISTED: Final = 20


class Run(NamedTuple):
    """What happened, as far as the parent saw it. The rest stands in the rows."""

    database: str
    witness: str
    seed: int
    workers: int
    delivered: int
    duplicates: int
    killed: Mapping[str, int]
    left_unknown: Collection[str]
    seconds: float


def disagreements(task_ids: Iterable[str], effects: Mapping[str, int], rows: Mapping[str, Task]) -> list[str]:
    """Every task that did not happen exactly once by the witness, or that did not end as succeeded by the registry."""
    wanted = set(task_ids)
    found = []
    for task_id in sorted(wanted | effects.keys() | rows.keys()):
        count = effects.get(task_id, 0)
        row = rows.get(task_id)
        if task_id not in wanted:
            found.append(f"{task_id}: nobody delivered it, but there is a row or an effect of it")
        elif count != 1:
            found.append(f"{task_id}: {count} effects, not exactly one")
        if task_id in wanted and (row is None or row.status is not Status.SUCCEEDED):
            found.append(f"{task_id}: {'no row' if row is None else row.status.word}, not succeeded")
    return found


def failure(found: list[str], where: str) -> str:
    """The loud end: what disagrees, and where to look."""
    more = [f"  ... and {len(found) - LISTED} more"] if len(found) > LISTED else []
    lines = ["DEMO FAILED: the witness and the registry disagree", *(f"  {one}" for one in found[:LISTED]), *more]
    return "\n".join([*lines, where])


def facts(run: Run, rows: Mapping[str, Task]) -> dict[str, Any]:
    """The account as one object."""
    settled = [row.settled_by for row in rows.values()]
    return {
        "act": 1,
        "tasks": len(rows),
        "deliveries": run.delivered,
        "workers": run.workers,
        "killed": sum(run.killed.values()),
        "effects_a_task": 1,  # or there is no account
        "duplicates": run.duplicates,
        "settled_by_hook": settled.count(BY_HOOK),
        "left_unknown": len(run.left_unknown),
        "resolved_by_hand": settled.count(BY_HAND),
        "seconds": round(run.seconds, 3),
        "seed": run.seed,
        "path": run.database,
        "witness": run.witness,
    }


def tell(run: Run, rows: Mapping[str, Task]) -> str:
    """The account, to be read by people, on 80 columns but for the commands at its end."""
    tasks, settled = len(rows), [row for row in rows.values() if row.settled_by is not None]
    by_hook = [row for row in settled if row.settled_by == BY_HOOK]
    by_hand = [row for row in settled if row.settled_by == BY_HAND]
    lines = [
        f"{counted(tasks, 'task')}, delivered {run.delivered:,} times in shuffled order",
        f"to {counted(run.workers, 'worker process', 'worker processes')}.",
        f"{counted(sum(run.killed.values()), 'worker')} killed with SIGKILL in mid-job:",
        f"{_moments(run.killed)}.",
        "",
        f"  effects a task      exactly 1, for all {tasks:,}; counted outside the registry",
        f"  duplicates          {run.duplicates:,} suppressed, answered with the stored result",
        f"  left in doubt       {counted(len(settled), 'task')}, whose worker died in the middle{_late(run, settled)}",
        f"    by verify hook    {_verdicts(by_hook)}",
        f"    left unknown      {len(run.left_unknown)}: nobody ran them again by himself",
        f"    resolved by hand  {_verdicts(by_hand)}",
        "",
        f"In {run.seconds:.1f} s, with every claim on the disk before its job began. Seed {run.seed}.",
        "",
        "Look at the rows, and at the witness:",
        *_commands(run, [*by_hand, *by_hook]),
    ]
    return "\n".join(lines)


def _moments(killed: Mapping[str, int]) -> str:
    words = {BEFORE: "before the effect", BEHIND: "after it", RUNNING: "at a random point"}
    return ", ".join(f"{killed.get(moment, 0)} {word}" for moment, word in words.items())


def _late(run: Run, settled: list[Task]) -> str:
    late = sum(run.killed.values()) - len(settled)
    return f" ({late} more after it)" if late > 0 else ""


def _verdicts(settled: list[Task]) -> str:
    # The next claim clears the verdict; author and evidence stay. So a row without one has run again since.
    happened = sum(row.verdict is Verdict.HAPPENED for row in settled)
    return f"{len(settled)}: {happened} had happened, {len(settled) - happened} had not, and ran then"


def program() -> str:
    """How to call the command line from here: `make demo` runs it in an environment that is on nobody's PATH."""
    here = os.path.join(os.path.dirname(sys.executable), "idemreg")
    return "idemreg" if shutil.which("idemreg") or not os.path.exists(here) else shlex.quote(os.path.relpath(here))


def _commands(run: Run, settled: list[Task]) -> list[str]:
    registry = f"{program()} --db {shlex.quote(run.database)}"
    example = settled[0].task_id if settled else "coupon:1"
    return [
        f"  {registry} stats",
        f"  {registry} list",
        f"  {registry} show {example}",
        f"  grep '^{example} ' {shlex.quote(run.witness)}",
    ]
