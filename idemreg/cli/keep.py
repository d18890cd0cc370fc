"""Commands that keep the file small and safe: purge and backup."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from idemreg.cli.choosing import choosing, statuses
from idemreg.cli.context import Command, HintedUsageError, common_options, settings
from idemreg.cli.progress import bar
from idemreg.cli.render import Cell, Column, local_time, table, write, write_folded, write_json
from idemreg.cli.task import COLOURS
from idemreg.cli.text import columns, escape
from idemreg.counted import counted

if TYPE_CHECKING:
    from idemreg.purge import Purge
    from idemreg.store import Group

__all__ = ["BACKUP_FIELDS", "PURGE_FIELDS", "backup", "purge"]

# A table of more jobs than this tells nobody more; --json has all.
SHOWN_GROUPS: Final = 20

# From these on a table has room for one time, and for both.
OLDEST_COLUMNS: Final = 60
NEWEST_COLUMNS: Final = 80
JOB_COLUMNS: Final = 24

PURGE_FIELDS: Final = {
    "found": "how many tasks may go",
    "removed": "how many are gone; 0 with --dry-run",
    "oldest": "when the first of them changed last, microseconds since the epoch; or null",
    "newest": "the same of the last",
    "groups": "for each status and job: status, name, tasks, oldest, newest",
}
BACKUP_FIELDS: Final = {"path": "the copy", "pages": "pages of the database", "bytes": "size of the copy"}


# --- purge ------------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples=[
        "idemreg purge --dry-run",
        "idemreg purge --yes",
        "idemreg purge --older-than 90d --prefix backup: --yes",
    ],
    fields=PURGE_FIELDS,
)
@choosing(
    "prefix",
    "name",
    "older_than",
    final_only=True,
    older_than="Also tasks that are kept for ever, and only those that ended so long ago: 12h, 30d.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options()
def purge(
    status: tuple[str, ...], prefix: str, name: str | None, older_than: float | None, *, dry_run: bool, yes: bool
) -> None:
    """Remove ended tasks whose --keep-for has passed: they may then run anew.

    Only succeeded, skipped and cancelled tasks go. One that is kept for ever goes only by --older-than, and one with a
    --keep-for never before that has passed. Shows what it would remove, and asks. Goes in small transactions: Ctrl-C
    leaves a sound file, and calling again goes on.
    """
    ask = not (yes or dry_run)
    as_json = settings().json
    if ask and (as_json or not sys.stdin.isatty()):
        msg = "purge removes tasks, and nobody is here to be asked"
        raise HintedUsageError(msg, "Look first with --dry-run, then give --yes.")
    found = removed = 0

    def approve(plan: Purge) -> bool:
        nonlocal found
        found = plan.total
        if not as_json:
            _tell_plan(plan, "to remove")
        return not ask or _confirm(f"Remove {counted(found, 'task')}?")

    with settings().existing() as registry, bar("removing", hidden=as_json) as show:

        def progress(count: int) -> None:
            nonlocal removed
            removed = count
            show(count, found)

        try:
            done = registry.purge(
                status=statuses(status),
                prefix=prefix,
                name=name,
                older_than=older_than,
                dry_run=dry_run,
                approve=approve,
                progress=progress,
            )
        except KeyboardInterrupt:
            msg = f"interrupted: at least {removed:,} of {counted(found, 'task')} removed; call again to go on"
            raise KeyboardInterrupt(msg) from None
    _tell_purge(done, dry_run=dry_run)


def _confirm(question: str) -> bool:
    """Ask on stderr. What follows a question that was not answered (Ctrl-C, Ctrl-D) stands on a line of its own."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)
        raise


def _tell_purge(done: Purge, *, dry_run: bool) -> None:
    if settings().json:
        fields: dict[str, Any] = {
            "found": done.total,
            "removed": done.removed,
            "oldest": done.oldest,
            "newest": done.newest,
            "groups": [{**group._asdict(), "status": group.status.word} for group in done.groups],
        }
        write_json(fields)
    elif not done.total:
        write("nothing to remove")
    elif dry_run:
        _tell_plan(done, "would be removed")
    else:
        write(f"removed {counted(done.removed, 'task')}")


def _tell_plan(plan: Purge, what: str) -> None:
    """How many, from when to when, and of which jobs."""
    room = columns()
    layout = [Column("TASKS"), Column("STATUS"), Column("JOB", is_elastic=True, least=8, most=JOB_COLUMNS)]
    layout += [Column("OLDEST")] * (room >= OLDEST_COLUMNS) + [Column("NEWEST")] * (room >= NEWEST_COLUMNS)
    groups = sorted(plan.groups, key=lambda group: -group.tasks)
    table(layout, (_cells(group)[: len(layout)] for group in groups[:SHOWN_GROUPS]))
    if (more := len(groups) - SHOWN_GROUPS) > 0:
        write(f"… and {more:,} more (--json tells all)")
    if plan.oldest is not None and plan.newest is not None:
        span = f"{local_time(plan.oldest)} to {local_time(plan.newest)}"
        write_folded(f"{counted(plan.total, 'task')} {what}, last changed {span}")


def _cells(group: Group) -> list[Cell]:
    return [
        Cell(f"{group.tasks:,}"),
        Cell(group.status.word, COLOURS[group.status]),
        Cell(escape(group.name) or "(no name)"),
        Cell(local_time(group.oldest, with_zone=False)),
        Cell(local_time(group.newest, with_zone=False)),
    ]


# --- backup -----------------------------------------------------------------------------------------------------


@click.command(cls=Command, examples=["idemreg backup /backup/jobs-2026-11-23.db"], fields=BACKUP_FIELDS)
@click.argument("out", metavar="OUT", type=click.Path(dir_okay=False))
@common_options()
def backup(out: str) -> None:
    """Copy the registry to a new file, as it is at one instant, while others work.

    OUT appears complete and synced, or not at all, and nothing is overwritten. It opens as a registry: --db OUT. What
    was running stays running there, since nobody can tell about its owner.
    """
    with settings().existing() as registry, bar("copying", hidden=settings().json) as show:
        done = registry.backup(out, progress=show)
    if settings().json:
        write_json(done._asdict())
    else:
        write(f"copied {done.bytes:,} bytes to")
        write(escape(done.path))
