"""checkpoint: move the -wal into the database, and tell who is in the way."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import click

from idemreg.cli.context import Command, common_options, settings
from idemreg.cli.render import write, write_json
from idemreg.cli.text import columns, escape, fold
from idemreg.cli.values import DURATION
from idemreg.counted import counted
from idemreg.sqlite.checkpoints import MODES

if TYPE_CHECKING:
    from idemreg.sqlite.checkpoints import Checkpoint

__all__ = ["FIELDS", "checkpoint"]

BUSY: Final = 75  # EX_TEMPFAIL: the same call may complete later
WAIT_S: Final = 10.0

FIELDS: Final = {
    "path": "the registry's file",
    "mode": "passive, full, restart or truncate",
    "wal_pages": "pages in the -wal, or null where another checkpoint was at work",
    "moved_pages": "how many of them are in the database now",
    "busy": "whether a reader or a writer kept it from completing",
    "duration_us": "microseconds that it took",
    "readers": "who was reading then, or null where the system does not tell: pid, command, process_s (its age in"
    " seconds, or null)",
}


@click.command(
    cls=Command,
    examples=["idemreg checkpoint", "idemreg checkpoint --mode truncate --wait 1s"],
    fields=FIELDS,
)
@click.option(
    "--mode",
    type=click.Choice([mode.lower() for mode in MODES]),
    default="passive",
    metavar="MODE",
    help="passive (the default) waits for nobody; full waits for readers; restart also makes the -wal begin anew;"
    " truncate also cuts its file to nothing.",
)
@click.option(
    "--wait",
    type=DURATION,
    default=WAIT_S,
    metavar="DURATION",
    help="How long the others wait for readers and writers, while new writers wait for them. Default: 10s.",
)
@common_options()
def checkpoint(mode: str, wait: float) -> None:
    """Move the pages of the -wal into the database.

    Nobody needs to: commits do so by themselves. It is for a -wal that a long reader made grow. Exit code 0: all pages
    are moved. 75: a reader or writer kept it from completing; readers are named.
    """
    with settings().existing() as registry:
        done = registry.checkpoint(next(one for one in MODES if one.lower() == mode), wait=wait)
    if settings().json:
        write_json(_fields(done))
    else:
        _tell(done)
    if done.busy:
        click.get_current_context().exit(BUSY)


def _fields(done: Checkpoint) -> dict[str, Any]:
    readers = None
    if done.readers is not None:
        readers = [{"pid": one.pid, "command": one.command, "process_s": one.process_s} for one in done.readers]
    values = (
        os.path.abspath(settings().path()),
        done.mode.lower(),
        *(None if pages < 0 else pages for pages in (done.wal_pages, done.moved_pages)),
        done.busy,
        done.duration_us,
        readers,
    )
    return dict(zip(FIELDS, values, strict=True))


def _tell(done: Checkpoint) -> None:
    took = f"{done.duration_us / 1_000:.1f} ms"
    if done.wal_pages < 0:
        lines = [f"another checkpoint is at work; nothing was done in {took}"]
    elif done.mode == "TRUNCATE" and not done.busy:
        lines = [f"truncate: all pages are moved and the -wal is empty, in {took}"]
    else:
        lines = [f"{done.mode.lower()}: moved {done.moved_pages:,} of {counted(done.wal_pages, 'page')}, in {took}"]
    if done.busy and done.readers is None:
        lines.append("it did not complete, and this system does not tell who is reading")
    elif done.busy and not done.readers:
        lines.append("it did not complete: a writer or a reader, which is gone by now or cannot be seen from here")
    else:
        lines += [f"kept from completing by {reader.describe()}" for reader in done.readers or ()]
    for line in lines:
        for piece in fold(escape(line), columns()):
            write(piece)
