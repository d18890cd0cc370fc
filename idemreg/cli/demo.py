"""`idemreg demo`: hands over to `idemreg.demo`."""

from __future__ import annotations

from typing import Final

import click

from idemreg.cli.context import Command

__all__ = ["demo"]

WORKERS: Final = 6
TASKS: Final = 300


@click.command(cls=Command, examples=["idemreg demo", "idemreg demo --workers 4 --tasks 100 --keep ./demo"])
@click.option(
    "--workers", type=click.IntRange(1, 64), default=WORKERS, metavar="N", help=f"Worker processes. Default: {WORKERS}."
)
@click.option("--tasks", type=click.IntRange(1, 100_000), default=TASKS, metavar="N", help=f"Tasks. Default: {TASKS}.")
@click.option("--keep", metavar="DIR", default=None, help="Folder for the files. Default: a new temporary one.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=None, metavar="N", help="Repeat the plan of an earlier demonstration."
)
def demo(workers: int, tasks: int, keep: str | None, seed: int | None) -> int:
    """See it work: real jobs, killed workers, one effect each.

    Several processes handle tasks that are delivered several times each, and are killed in mid-job. An independent
    witness counts the effects. Exits with 1 where it disagrees.
    """
    from idemreg.demo import main  # noqa: PLC0415 - the help text needs none of it

    return main(keep, workers, tasks, seed=seed)
