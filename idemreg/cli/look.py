"""Commands that only look: show, list, stats. None of them creates a file or changes a row."""

from __future__ import annotations

import os
import sys
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import click

from idemreg.cli import task as rows
from idemreg.cli.choosing import choosing, statuses
from idemreg.cli.complete import offer_task_ids
from idemreg.cli.context import Command, common_options, settings
from idemreg.cli.failures import concrete
from idemreg.cli.render import Cell, Column, age, facts, local_time, table, write, write_json
from idemreg.cli.text import columns, escape, paint, shorten
from idemreg.errors import TransitionError
from idemreg.listing import query_of
from idemreg.model import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.model import Task
    from idemreg.operations import Operations

__all__ = ["STATS_FIELDS", "list_tasks", "show", "stats"]

# From these on, a table has room for the age, for the time in place of it, and for the job's name.
AGE_COLUMNS: Final = 30
FULL_TIME_COLUMNS: Final = 60
NAME_COLUMNS: Final = 80
JOB_COLUMNS: Final = 24


STATS_FIELDS: Final = {
    "path": "the registry's file",
    "total": "how many tasks it holds",
    "counts": "how many there are in each status; every status is named",
}


# --- show -------------------------------------------------------------------------------------------------------


@click.command(
    cls=Command, examples=["idemreg show backup:2026-11-23", "idemreg show --json order:42"], fields=rows.SHOW_FIELDS
)
@click.argument("task_id", metavar="TASK_ID", shell_complete=offer_task_ids)
@common_options()
def show(task_id: str) -> None:
    """Tell everything about one task.

    Whether it has run, who runs it and whether that owner lives, its last error, what it returned, which of its steps
    are done, how much of its arguments is kept, and what to do next.
    Text of the task is shown with its control characters spelled out. A TASK_ID that begins with a dash goes behind
    `--`.
    """
    with settings().existing() as registry:
        task = _get(registry, task_id)
        owner, steps = registry.owner(task), registry.steps(task_id)
        kept = registry.reader.kept_of(task_id)
        if settings().json:
            write_json(rows.show_fields(task, owner, steps, kept))
            return
        facts(rows.pairs(task, owner, registry.clock.wall_us()))
        facts(rows.step_pairs(steps, registry.clock.wall_us()))
        facts(rows.kept_pairs(kept, task.policy))
        if (step := rows.next_step(task, owner)) is not None:
            facts([("next", Cell(escape(concrete(step, task_id, settings()))))])


def _get(registry: Operations, task_id: str) -> Task:
    task = registry.get(task_id)
    if task is None:
        msg = f"there is no task {task_id!r} in {settings().path()}"
        raise TransitionError(msg, task_id=task_id, hint="`idemreg list` shows the tasks.")
    return task


# --- list -------------------------------------------------------------------------------------------------------


@click.command(
    "list",
    cls=Command,
    examples=[
        "idemreg list",
        "idemreg list --status failed --status unknown --prefix order:",
        "idemreg list --dead --newer-than 7d",
        "idemreg list --json | jq .task_id",
    ],
    fields=rows.FIELDS,
)
@choosing("prefix", "name", "older_than", "newer_than", "dead")
@click.option("--limit", type=click.IntRange(min=1), default=None, metavar="N", help="At most so many.")
@common_options()
def list_tasks(
    status: tuple[str, ...],
    prefix: str,
    name: str | None,
    older_than: float | None,
    newer_than: float | None,
    limit: int | None,
    *,
    dead: bool,
) -> None:
    """List tasks in the order of their task_id, as they are read: a long list begins at once.

    One line a task, as wide as the terminal (or COLUMNS): what does not fit is shortened, and `--json` gives it whole.
    `running (dead)` is a task whose owner is proven dead, `running (lease expired)` one whose owner was not renewed in
    time; the next call decides by its policy. `running (overdue)` runs longer than its --timeout.

    A prefix, and a status other than succeeded or running, are found by an index; every other filter looks through all
    tasks, which takes seconds for millions.
    """
    chosen: dict[str, Any] = {
        "status": statuses(status),
        "prefix": prefix,
        "name": name,
        "older_than": older_than,
        "newer_than": newer_than,
        "dead": dead,
    }
    with settings().existing() as registry:
        tasks = islice(registry.tasks(**chosen), None if limit is None else min(limit, sys.maxsize))
        if settings().json:
            for task in tasks:
                write_json(rows.task_fields(task, registry.owner(task)))
            return
        layout = _columns(registry)
        lines = ([cell(task) for _, cell in layout] for task in tasks)
        if not table([column for column, _ in layout], lines):
            write("no tasks yet" if query_of(**chosen) == query_of() else "no such tasks")


def _columns(registry: Operations) -> list[tuple[Column, Callable[[Task], Cell]]]:
    """The columns that there is room for, each with what it shows of a task."""
    room, now_us = columns(), registry.clock.wall_us()
    chosen: list[tuple[Column, Callable[[Task], Cell]]] = [
        (Column("TASK_ID", is_elastic=True, least=8), lambda task: Cell(escape(task.task_id))),
        (
            Column("STATUS", is_elastic=True, least=len("succeeded")),
            lambda task: rows.state(task, registry.owner(task)),
        ),
    ]
    if room < AGE_COLUMNS:
        return chosen
    if room < FULL_TIME_COLUMNS:
        return [*chosen, (Column("AGE"), lambda task: Cell(age(task.updated_at, now_us)))]
    chosen += [
        (Column("ATTEMPT"), lambda task: Cell(f"{task.attempt}/{task.policy.max_attempts}")),
        (Column("UPDATED"), lambda task: Cell(local_time(task.updated_at, with_zone=False))),
    ]
    if room >= NAME_COLUMNS:
        name = Column("JOB", is_elastic=True, least=8, most=JOB_COLUMNS)
        chosen.append((name, lambda task: Cell(escape(task.name))))
    return chosen


# --- stats ------------------------------------------------------------------------------------------------------


@click.command(cls=Command, examples=["idemreg stats", "idemreg stats --json"], fields=STATS_FIELDS)
@common_options()
def stats() -> None:
    """Count the tasks by status."""
    with settings().existing() as registry:
        counts = registry.count()
    path, total = os.path.abspath(settings().path()), sum(counts.values())
    if settings().json:
        write_json({"path": path, "total": total, "counts": {one.word: counts.get(one, 0) for one in Status}})
        return
    digits = len(f"{total:,}")
    for status in Status:
        if number := counts.get(status, 0):
            text = f"{number:>{digits},}  {status.word:<9}  {rows.SUMMARIES[status]}"
            write(paint(shorten(text, columns()), rows.COLOURS[status]))
    write(f"{total:>{digits},}  in all")
    write(escape(path))
