"""`idemreg demo`: hands over to `idemreg.demo`."""

from __future__ import annotations

from typing import Final

import click

from idemreg.cli.context import Command, settings

__all__ = ["demo"]

WORKERS: Final = 6
TASKS: Final = 300


DEMO_FIELDS: Final = {
    "act": "1 or 2: each is an object on a line of its own, with its own fields",
    "tasks": "how many there were",
    "deliveries": "how often they came",
    "workers": "how many processes handled them at a time",
    "killed": "how many of those were killed in mid-job",
    "effects_a_task": "1: by the witness, for every task; else there is no account, and the exit code is 1",
    "duplicates": "deliveries answered with the stored result",
    "settled_by_hook": "tasks of dead workers that the verify hook settled",
    "left_unknown": "tasks of dead workers that nobody ran again by himself",
    "resolved_by_hand": "how many of those were resolved afterwards",
    "slots": "of act two: how many nights there were",
    "run": "how many of them ran, each once by audit and witness; else there is no account, and the exit code is 1",
    "skipped": "how many were skipped, each for its reason",
    "serials": "how many serial numbers were given, none of them twice",
    "fenced": "how many late owners got ClaimLostError: 1",
    "alarm": "task_id of the alarm that the clock's jump raised",
    "seconds": "how long it took",
    "seed": "repeats the plan of act one, by --seed",
    "path": "the registry's file",
    "witness": "the file that counted the effects",
}


@click.command(
    cls=Command,
    fields=DEMO_FIELDS,
    examples=["idemreg demo", "idemreg demo --act 2", "idemreg demo --workers 4 --tasks 100 --keep ./demo"],
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=WORKERS,
    metavar="N",
    help=f"Workers of act one. Default: {WORKERS}.",
)
@click.option(
    "--tasks", type=click.IntRange(1, 100_000), default=TASKS, metavar="N", help=f"Tasks of act one. Default: {TASKS}."
)
@click.option("--keep", metavar="DIR", default=None, help="Folder for the files. Default: a new temporary one.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=None, metavar="N", help="Repeat the plan of an earlier act one."
)
@click.option("--act", type=click.IntRange(1, 2), default=None, metavar="N", help="Only this act. Default: both.")
@click.option("--json", "as_json", is_flag=True, help="The account of each act as one object on one line.")
def demo(workers: int, tasks: int, keep: str | None, seed: int | None, act: int | None, *, as_json: bool) -> int:
    """See it work: real jobs, killed workers, one effect each.

    Act one: several processes handle tasks that are delivered several times each, and are killed in mid-job. Act two: a
    job of each night loses its scheduler for three of them, has its clock set back across midnight, and is taken over
    from an owner that comes back too late. An independent witness counts the effects. Exits with 1 where it disagrees.

    Act two needs the extra of schedules: pip install "idemreg[schedule]". It is left out where that is missing.
    """
    from idemreg.demo import main  # noqa: PLC0415 - the help text needs none of it

    return main(keep, workers, tasks, seed=seed, as_json=as_json or settings().json, act=act)
