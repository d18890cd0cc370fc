"""Commands that operate: init, resolve, retry, forget. Each is one call of the registry, and tells what came of it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from idemreg.cli import task as rows
from idemreg.cli.complete import offer_task_ids
from idemreg.cli.context import Command, HintedUsageError, common_options, login_name, settings
from idemreg.cli.failures import concrete
from idemreg.cli.render import write, write_folded, write_json
from idemreg.cli.text import escape
from idemreg.model import Verdict

if TYPE_CHECKING:
    from idemreg.model import Task

__all__ = ["INIT_FIELDS", "forget", "init", "resolve", "retry"]

INIT_FIELDS: Final = {"path": "the registry's file", "created": "whether this call created it"}

VERDICTS: Final = [verdict.word for verdict in (Verdict.HAPPENED, Verdict.DID_NOT_HAPPEN, Verdict.CANNOT_TELL)]

_BY: Final = click.option("--by", metavar="WHO", default=None, help="Who says so. Default: your login name.")


@click.command(cls=Command, examples=["idemreg init", "idemreg --db /var/lib/shop/jobs.db init"], fields=INIT_FIELDS)
@click.option(
    "--page-checksums",
    is_flag=True,
    help="A new file verifies each page as it is read; no other program may write to it then, or move its -wal.",
)
@common_options()
def init(*, page_checksums: bool) -> None:
    """Create the registry's file, or check that it is one.

    `run` creates the file as well; the other commands never do.
    """
    registry, is_new = settings().creating(page_checksums=page_checksums)
    registry.close()
    path = os.path.abspath(settings().path())
    if settings().json:
        write_json({"path": path, "created": is_new})
    else:
        write(f"created {escape(path)}" if is_new else f"{escape(path)} is a registry already")


@click.command(
    cls=Command,
    examples=[
        "idemreg resolve backup:2026-11-23 happened --evidence 'found it in the bucket'",
        'idemreg resolve order:42 happened --result \'{"charge": "ch_1"}\'',
        "idemreg resolve order:43 did-not-happen",
    ],
    fields=rows.FIELDS,
)
@click.argument("task_id", metavar="TASK_ID", shell_complete=offer_task_ids)
@click.argument("verdict", metavar="VERDICT", type=click.Choice(VERDICTS))
@click.option("--result", metavar="JSON", default=None, help="What later callers get, if it happened. Default: null.")
@click.option("--evidence", metavar="TEXT", default="", help="What the verdict rests on.")
@_BY
@common_options()
def resolve(task_id: str, verdict: str, result: str | None, evidence: str, by: str | None) -> None:
    """Settle an unknown task, or a running one whose owner is dead.

    VERDICT is happened, did-not-happen or cannot-tell. After `happened` later calls get the result and never run it;
    after `did-not-happen` the next call runs it, if attempts are left; `cannot-tell` is noted, and the task stays
    unknown.
    """
    chosen = next(one for one in Verdict if one.word == verdict)
    if result is not None and chosen is not Verdict.HAPPENED:
        msg = f"--result goes with the verdict happened, not with {verdict}"
        raise HintedUsageError(msg, "Only a task that happened has a result for later callers.")
    value = None if result is None else _json(result)
    with settings().existing() as registry:
        task = registry.resolve(task_id, chosen, result=value, evidence=evidence, by=by or login_name())
    _tell(task)


@click.command(cls=Command, examples=["idemreg retry order:42 --reason 'the gateway is back'"], fields=rows.FIELDS)
@click.argument("task_id", metavar="TASK_ID", shell_complete=offer_task_ids)
@click.option("--reason", metavar="TEXT", default="", help="Why, for those who look later.")
@_BY
@common_options()
def retry(task_id: str, reason: str, by: str | None) -> None:
    """Allow a failed task one more attempt, also where its failure is held or its attempts are used up.

    Nothing runs now: the next call of the task does.
    """
    with settings().existing() as registry:
        task = registry.retry(task_id, reason=reason, by=by or login_name())
    _tell(task)


@click.command(cls=Command, examples=["idemreg forget order:42", "idemreg forget --force order:43"], fields=rows.FIELDS)
@click.argument("task_id", metavar="TASK_ID", shell_complete=offer_task_ids)
@click.option("--force", is_flag=True, help="Also an unknown task, and a running one whose owner is dead.")
@common_options()
def forget(task_id: str, *, force: bool) -> None:
    """Remove a task's row: the next call runs the task, whatever happened before.

    Its tokens go on growing. The JSON is the row that was removed.
    """
    with settings().existing() as registry:
        task = registry.forget(task_id, force=force)
    if settings().json:
        write_json(rows.task_fields(task, None))
    else:
        write_folded(f"forgot {escape(task.task_id)} (it was {task.status.word}): the next call runs it")


def _tell(task: Task) -> None:
    """What the task is now, and what follows."""
    if settings().json:
        write_json(rows.task_fields(task, None))
        return
    write_folded(f"{escape(task.task_id)} is {task.status.word}: {rows.meaning(task, None)}")
    if (step := rows.next_step(task, None)) is not None:
        write_folded(f"  next: {escape(concrete(step, task.task_id, settings()))}")


def _json(text: str) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        msg = f"--result is not JSON: {error}"
        raise HintedUsageError(
            msg, "Text needs its quotes: --result '\"text\"'; an object: --result '{\"n\": 1}'"
        ) from error


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is no JSON value"
    raise ValueError(msg)
