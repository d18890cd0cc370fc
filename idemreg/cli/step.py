"""`idemreg step`: a piece of a command that runs under `idemreg run`. The walk is `idemreg.step_command`."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Final

import click

from idemreg.cli.context import Command, HintedUsageError, common_options, settings
from idemreg.cli.render import write_json
from idemreg.cli.run import behind_dashes

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["STEP_FIELDS", "step"]

FORM: Final = "idemreg step [OPTIONS] NAME -- COMMAND [ARGS]..."

STEP_FIELDS: Final = {
    "task_id": "the task that the step is a piece of",
    "name": "the step's name",
    "exit_code": "the command's own, or 128+n where signal n killed it; also of this call",
    "replayed": "true where the command did not run now",
    "path": "the registry's file",
}


class StepCommand(Command):
    """Splits the line at the first ``--``: options and NAME before it, the command, untouched, behind it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what is before ``--``; leave what is behind it in ``ctx.args``."""
        head, command = behind_dashes(args)
        extra = super().parse_args(ctx, head)
        if not ctx.resilient_parsing:
            self._check(ctx, extra, command)
        ctx.args = command
        return ctx.args

    @staticmethod
    def _check(ctx: click.Context, extra: Sequence[str], command: Sequence[str]) -> None:
        name = ctx.params["name"]
        if name is None or not command:
            msg = f"the {'NAME' if name is None else 'command'} is missing"
            raise HintedUsageError(msg, FORM, ctx)
        if extra:
            words = " ".join(map(shlex.quote, [name, "--", *extra, *command]))
            msg = "the command goes behind --"
            raise HintedUsageError(msg, f"idemreg step {words}", ctx)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """As it is typed."""
        return ["[OPTIONS]", "NAME", "--", "COMMAND [ARGS]..."]


@click.command(
    cls=StepCommand,
    context_settings={"allow_extra_args": True},
    examples=[
        "idemreg step dump -- pg_dump -f /backup/shop.sql shop",
        "idemreg step upload:3 -- rclone copy part3 far:",
    ],
    fields=STEP_FIELDS,
)
@click.argument("name", metavar="NAME", required=False)
@common_options()
@click.pass_context
def step(ctx: click.Context, /, name: str) -> int:
    """Run a piece of a job, inside of `idemreg run`, unless an earlier attempt of the task has done it.

    The command runs, and once it has ended with 0 the step is saved with the end of its output, on the disk before this
    returns. A later attempt of the task writes that output again and runs nothing; so the job, called again after a
    crash, goes on where it was. Another exit code saves nothing and is passed on, so `set -e` ends the job by it.
    NAME stands for one piece of the task: used a second time in the same attempt it is skipped as well, whatever the
    command. In a loop give each round its own: upload:3.

    Exit code 75: another owner has the task by now, and nothing was begun, or saved. 74: the command ran, but that
    could not be stored; give such a job --unknown-on 74. 2: there is no `idemreg run` around it.
    """
    from idemreg.operations import Operations  # noqa: PLC0415 - the help text needs none of it
    from idemreg.step_command import CommandClaim, run_step_command  # noqa: PLC0415

    claim = CommandClaim.of(os.environ)
    path = claim.path if settings().db is None else settings().path()
    with Operations(path, create=False, unsafe_path=settings().unsafe_path) as registry:
        end = run_step_command(registry.store, claim, name, list(ctx.args))
    if settings().json:
        facts = {"task_id": claim.task_id, "name": name, "exit_code": end.exit_code, "replayed": end.replayed}
        write_json(facts | {"path": os.path.abspath(path)}, to=sys.stderr)
    return end.exit_code
