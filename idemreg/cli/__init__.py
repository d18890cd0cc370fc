"""The command line. This file is the list of commands; each is loaded when it is called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from idemreg.cli.context import HintedUsageError, Settings, common_options
from idemreg.cli.failures import guarded
from idemreg.cli.streams import never_fail_on_encoding, replace_closed
from idemreg.cli.text import columns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["COMMANDS", "main"]

# name -> where it is, and what it does in one line. The line stands here so that `idemreg --help` loads no command.
COMMANDS: Final = {
    "run": ("idemreg.cli.run:run", "Run a command once for a task."),
    "step": ("idemreg.cli.step:step", "Run a piece of a command under `run` once."),
    "each": ("idemreg.cli.each:each", "Handle each line of JSON on stdin once."),
    "show": ("idemreg.cli.look:show", "Tell everything about one task."),
    "list": ("idemreg.cli.look:list_tasks", "List tasks in the order of their task_id."),
    "stats": ("idemreg.cli.look:stats", "Count the tasks by status."),
    "resolve": ("idemreg.cli.operate:resolve", "Settle an unknown task: it happened, or it did not."),
    "retry": ("idemreg.cli.operate:retry", "Allow a failed task one more attempt."),
    "forget": ("idemreg.cli.operate:forget", "Remove a task's row: the task may run again."),
    "purge": ("idemreg.cli.keep:purge", "Remove ended tasks whose time has passed."),
    "backup": ("idemreg.cli.keep:backup", "Copy the registry to a new file, while others work."),
    "export": ("idemreg.cli.exchange:export", "Write tasks as lines of JSON."),
    "import": ("idemreg.cli.exchange:import_", "Insert the tasks of an export that are not here yet."),
    "schedule": ("idemreg.cli.schedule:schedule", "Run the slots of a module's schedules as they come due."),
    "watch": ("idemreg.cli.watch:watch", "Rerun or settle the tasks of dead owners, at once."),
    "audit": ("idemreg.cli.audit:audit", "Reckon a schedule anew, and compare it with what ran."),
    "checkpoint": ("idemreg.cli.checkpoint:checkpoint", "Move the -wal into the database."),
    "doctor": ("idemreg.cli.doctor:doctor", "Examine the file and all around it; change nothing."),
    "serial": ("idemreg.cli.serial:serial", "Write ids that never repeat and never go back."),
    "clock": ("idemreg.cli.clock:clock", "Say whether the clock can be trusted with a schedule."),
    "init": ("idemreg.cli.operate:init", "Create the registry's file."),
    "demo": ("idemreg.cli.demo:demo", "See it work: real jobs, killed workers, one effect each."),
}

COMPLETION_VARIABLE: Final = "_IDEMREG_COMPLETE"
HELP_COLUMNS: Final = 80


class LazyGroup(click.Group):
    """A group that loads a command when it is called, and turns every error into a line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """In the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Load the command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - the table names commands
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but with suggestions from the table."""
        name = args[0]
        if name not in COMMANDS and not ctx.resilient_parsing:
            from difflib import get_close_matches  # noqa: PLC0415 - a typing error only

            close = get_close_matches(name, COMMANDS, n=1)
            hint = f"Did you mean `idemreg {close[0]}`?" if close else f"The commands are {', '.join(COMMANDS)}."
            msg = f"there is no command {name!r}"
            raise HintedUsageError(msg, hint, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """From the table, without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001, FBT002 - click's signature
        **extra: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Run the command line and exit."""
        if os.environ.get(COMPLETION_VARIABLE):
            return _complete(lambda: super(LazyGroup, self).main(args, prog_name, COMPLETION_VARIABLE, **extra))
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode, **extra)
        replace_closed()
        words = list(sys.argv[1:] if args is None else args)
        settings = Settings()
        # Errors of parsing itself come before --json was parsed; behind `--` the words are the command's own.
        settings.json = "--json" in (words[: words.index("--")] if "--" in words else words)
        extra |= {"obj": settings, "terminal_width": min(columns(), HELP_COLUMNS) - 2}
        never_fail_on_encoding()
        sys.exit(guarded(lambda: self._run(words, extra), settings))

    def _run(self, words: list[str], extra: dict[str, Any]) -> Any:  # noqa: ANN401
        with self.make_context("idemreg", words, **extra) as ctx:
            return self.invoke(ctx)


def _complete(work: Callable[[], Any]) -> Any:  # noqa: ANN401 - click's
    """Answer a shell that completes a line. It is never told of an error, which would land in that line."""
    from idemreg.cli.complete import register_bash  # noqa: PLC0415 - completion only

    try:
        register_bash()
        return work()
    except Exception:  # noqa: BLE001
        sys.exit(1)


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value and not ctx.resilient_parsing:
        from idemreg import __version__  # noqa: PLC0415 - never through importlib.metadata, which costs 27 ms

        click.echo(f"idemreg {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Tell the version."
)
@common_options(creates=True)
def main() -> None:
    """Run any job once: never twice, and never silently lost.

    Exit codes: 0 success or a replayed one, 1 failed, 2 usage, 65 other arguments, 73 ended otherwise, 74 the file,
    75 running elsewhere, 76 unknown, 78 the clock, 124 ran too long, 126 not executable, 127 not found, 128+n killed by
    signal n, else the command's own.
    """
