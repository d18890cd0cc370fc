"""`idemreg run`: any command, once. The walk itself is `idemreg.command`; here are its words and its last line."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from idemreg.cli.complete import offer_task_ids
from idemreg.cli.context import Command, HintedUsageError, common_options, settings
from idemreg.cli.every import every_options, run_every, table_of
from idemreg.cli.failures import concrete
from idemreg.cli.policy import check_policy, policy_options
from idemreg.cli.render import local_time, write_json
from idemreg.cli.task import next_step
from idemreg.cli.text import escape
from idemreg.cli.values import LINE
from idemreg.errors import ClaimLostError, RecoveryError, StoreError, TaskTimeoutError
from idemreg.model import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.command import CommandEnd
    from idemreg.model import Task
    from idemreg.registry import Registry

__all__ = ["RUN_FIELDS", "behind_dashes", "run"]

# What a limit of ours ended exits with; its own command may as well, but leaves no pending task with an error.
LIMITS: Final = {TaskTimeoutError.exit_code, ClaimLostError.exit_code}

FORM: Final = "idemreg run [OPTIONS] TASK_ID -- COMMAND [ARGS]..."

RUN_FIELDS: Final = {
    "task_id": "the task's name",
    "status": "the task's status now, or null where it was forgotten meanwhile",
    "exit_code": "the command's own, 128+n where signal n killed it, 124 after --timeout; also of this call",
    "replayed": "true where the command did not run now",
    "attempt": "which attempt this was",
    "token": "the fencing token of that attempt",
    "path": "the registry's file",
}


class RunCommand(Command):
    """Splits the line at the first ``--``: options and TASK_ID before it, the command, untouched, behind it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what is before ``--``; leave what is behind it in ``ctx.args``."""
        head, command = behind_dashes(args)
        extra = super().parse_args(ctx, head)
        if extra:
            words = " ".join(map(shlex.quote, [ctx.params["task_id"], "--", *extra, *command]))
            msg = "the command goes behind --"
            raise HintedUsageError(msg, f"idemreg run {words}", ctx)
        if ctx.params["task_id"] is None and len(command) > 1 and command[0].startswith("-") and command[1] == "--":
            ctx.params["task_id"], command = command[0], command[2:]
        if not ctx.resilient_parsing:
            self._check(ctx, command)
        ctx.args = command
        return ctx.args

    @staticmethod
    def _check(ctx: click.Context, command: Sequence[str]) -> None:
        task_id = ctx.params["task_id"]
        if task_id is None:
            msg = "the TASK_ID is missing: it goes before --"
            raise HintedUsageError(msg, FORM, ctx)
        if not command:
            msg = "the command is missing"
            raise HintedUsageError(msg, f"idemreg run {shlex.quote(task_id)} -- COMMAND [ARGS]...", ctx)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """As it is typed."""
        return ["[OPTIONS]", "TASK_ID", "--", "COMMAND [ARGS]..."]


def behind_dashes(args: list[str]) -> tuple[list[str], list[str]]:
    """What is before the first ``--``, and what is behind it."""
    at = args.index("--") if "--" in args else len(args)
    return args[:at], args[at + 1 :]


@click.command(
    cls=RunCommand,
    context_settings={"allow_extra_args": True},
    examples=[
        "idemreg run backup:2026-11-23 -- pg_dump -f /backup/shop.sql shop",
        "idemreg run --on-crash verify --verify 'test -f /backup/ok' backup -- backup.sh",
        "idemreg run --on-crash rerun --lease 60 --timeout 1h sync:shop -- rsync -a shop/ backup:",
        "idemreg run --unknown-on 75,111 --wait 30 order:42 -- charge --order 42",
        "idemreg run --recover --on-crash rerun import:42 -- ./import 42",
        "idemreg run -- -odd-id -- true",
        "idemreg run --every '0 3 * * *' --tz Asia/Shanghai coupons -- ./coupons",
    ],
    fields=RUN_FIELDS,
)
@click.argument("task_id", metavar="TASK_ID", required=False, shell_complete=offer_task_ids)
@click.option("--name", type=LINE, default=None, help="The job's name. Default: the command's base name.")
@click.option("--payload", metavar="TEXT", default=None, help="Counts for the checksum, beside the command's words.")
@policy_options
@click.option(
    "--recover",
    is_flag=True,
    help="Keep the command's words, folder and options until the task is final, for `idemreg watch` to rerun it.",
)
@every_options
@common_options(creates=True)
@click.pass_context
def run(ctx: click.Context, /, task_id: str, **options: Any) -> int:  # noqa: ANN401 - the flags above
    """Run a command once for a task; a duplicate writes the stored output again and exits with the stored code.

    The checksum covers the command's words, and --payload, which is plain text and is not parsed: the same TASK_ID
    with other words exits with 65. Output streams through live, its last 64 KiB are kept. The command finds
    IDEMREG_TASK_ID, IDEMREG_ATTEMPT, IDEMREG_TOKEN and IDEMREG_DOWNSTREAM_KEY in its environment, and gets our
    standard input and signals; pieces of it may be steps, see `idemreg step`. Killed by a signal, it was interrupted,
    and --on-crash decides. In the foreground of a terminal SIGINT, SIGQUIT and SIGWINCH are not passed on, since the
    terminal sends them to the command itself: end it by SIGTERM from elsewhere.

    --lease is for jobs that must be replaced when this process hangs: it renews the lease at a third of that time, and
    where it cannot, the command is ended as by --timeout, with exit code 75. A command that outlives this process keeps
    its task until the lease is over, and not longer.

    Options go before `--`. A DURATION is a number of seconds, or has a unit: 90s, 15m, 12h, 30d, 2w. CODES are
    separated by commas, or the option is repeated. --json writes its one object as the last line of stderr, since
    stdout is the command's.

    --recover is for a job that nobody calls again: once its owner is dead, `idemreg watch` runs it, under --on-crash
    rerun or verify; under hold only behind `idemreg resolve ... did-not-happen`. A warning says at once where others
    may write the file, from which nothing is run then. Its words stand in it until the task is final, passwords among
    them; its environment and its standard input do not: a rerun has the environment of `watch`, and no input.

    With --every TASK_ID is the name of a schedule, and this call runs its slots that are due: put it into a line of
    the crontab that runs each minute. The first call begins the schedule, and runs nothing. The command finds its slot
    in IDEMREG_SLOT. Its words do not count for the checksum, so that they may be changed. While the clock is in doubt
    (see `idemreg clock`) nothing is scheduled: that is told on stderr, with exit code 1. A missing command is told by
    each call, due or not: 127, or 126 where it may not be executed.
    """
    from idemreg.command import run_command  # noqa: PLC0415 - the help text needs none of it
    from idemreg.template import check_task_id  # noqa: PLC0415

    check_task_id(task_id)  # before a file comes into being for it
    check_policy(options, "idemreg run --on-crash verify --verify CMD TASK_ID -- COMMAND [ARGS]...")
    argv = list(ctx.args)
    options["payload"] = _payload(options["payload"])
    table = table_of(ctx, task_id, options)
    registry, is_new = settings().creating()
    with registry:
        if is_new:
            settings().announce()
        if options["recover"]:
            _warn(ctx, registry)
        if table is not None:
            return run_every(registry, table, argv, options, _tell)
        end = run_command(registry, task_id, argv, **options)
        with contextlib.suppress(OSError, StoreError):  # the command's own exit code matters more than our last line
            _tell(registry, end)
    return end.exit_code


def _payload(text: str | None) -> str | bytes | None:
    """The text; a word of the command line that is no UTF-8 counts by its bytes."""
    if text is None:
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def _warn(ctx: click.Context, registry: Registry) -> None:
    """Say at once what would otherwise be found at the crash, when nobody calls again."""
    from click.core import ParameterSource  # noqa: PLC0415 - where it is asked for

    from idemreg.owned import check_owned  # noqa: PLC0415 - as above

    told: list[tuple[str, str]] = []
    if ctx.get_parameter_source("on_crash") is ParameterSource.DEFAULT:
        what = "--recover under --on-crash hold: a crash leaves the task unknown, and a person must settle it"
        told.append((what, "Add --on-crash rerun or verify, to have `idemreg watch` run it; or hold, if it is meant."))
    try:
        check_owned(registry.path)
    except RecoveryError as error:
        told.append((f"after a crash `idemreg watch` will not run it again: {error.message}", error.hint))
    with contextlib.suppress(OSError):  # as `announce`
        for what, hint in told:
            sys.stderr.write(f"idemreg: {escape(what)}\n  hint: {escape(hint)}\n")


# --- the last line ----------------------------------------------------------------------------------------------


def _tell(registry: Registry, end: CommandEnd) -> None:
    """What the command's own output does not say, on stderr: that it was replayed, or that somebody must look."""
    if not (settings().json or end.replayed or end.exit_code):
        return
    task = registry.get(end.task_id)
    if settings().json:
        status = None if task is None else task.status.word
        path = os.path.abspath(settings().path())
        write_json({"task_id": end.task_id, "status": status} | _facts(end) | {"path": path}, to=sys.stderr)
    elif task is not None and end.replayed:
        _say(f"{escape(end.task_id)} {_before(task, end)}")
        _hint(task)
    elif task is not None and task.token == end.token and (what := _doubt(task, end)) is not None:
        _say(f"{escape(end.task_id)} is {task.status.word}: {escape(task.error or '')}; {what}")
        _hint(task)


def _doubt(task: Task, end: CommandEnd) -> str | None:
    """What the exit code does not tell: that somebody must look, or that it was a limit of ours which ended it."""
    if next_step(task, None) is not None:
        return (
            "nobody knows whether it happened" if task.status is Status.UNKNOWN else "it will not run again by itself"
        )
    is_ended = task.status is Status.PENDING and task.error and end.exit_code in LIMITS
    return "the next call runs it again" if is_ended else None


def _facts(end: CommandEnd) -> dict[str, Any]:
    return {name: getattr(end, name) for name in ("exit_code", "replayed", "attempt", "token")}


def _before(task: Task, end: CommandEnd) -> str:
    what = task.status.word if not end.exit_code else f"{task.status.word} with exit code {end.exit_code}"
    return f"{what} before (attempt {end.attempt}, {local_time(task.updated_at)}); {_output(task)}"


def _output(task: Task) -> str:
    from idemreg.codec import load_result  # noqa: PLC0415 - as above
    from idemreg.output import stored_output  # noqa: PLC0415

    output = None if task.result is None else stored_output(load_result(task.result, None))
    if output is None or not output.pieces:
        return "it left no output"
    return "the end of its output is above" if output.is_truncated else "its output is above"


def _say(text: str) -> None:
    sys.stderr.write(f"idemreg: {text}\n")


def _hint(task: Task) -> None:
    if (step := next_step(task, None)) is not None:
        sys.stderr.write(f"  hint: {escape(concrete(step, task.task_id, settings()))}\n")
