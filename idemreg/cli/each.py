"""`idemreg each`: lines of JSON on stdin, each handled once. Parses, shows how far it is, and says how it went."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from idemreg.cli.account import Progress
from idemreg.cli.context import Command, HintedUsageError, common_options, settings
from idemreg.cli.policy import check_policy, policy_options
from idemreg.cli.printing import line_by_line, stdout_apart
from idemreg.cli.values import LINE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from idemreg.each import Work
    from idemreg.keyed import ErrorDetail
    from idemreg.signals import Relay

__all__ = ["EACH_FIELDS", "each"]

FORM: Final = "idemreg each --task-id '{id}' -- COMMAND [ARGS]..."
MAX_JOBS: Final = 256
STDIN: Final = 0  # not sys.stdin, which is None where it was closed

EACH_FIELDS: Final = {
    "line": "the line's number, from 1",
    "task_id": "the task's name; null where the line is none",
    "outcome": "done, replayed, released, failed, refused, mismatch, running or unknown",
    "exit_code": "the command's own, or 128+n where signal n killed it; null where none ran",
    "error": "why it is not done; null where it is",
}


class EachCommand(Command):
    """Splits the line at the first ``--``: options before it, the command, untouched, behind it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what is before ``--``; leave what is behind it in ``ctx.args``."""
        at = args.index("--") if "--" in args else len(args)
        head, command = args[:at], args[at + 1 :]
        if extra := super().parse_args(ctx, head):
            msg = f"unexpected {extra[0]!r}: the command goes behind --"
            raise HintedUsageError(msg, FORM, ctx)
        if not ctx.resilient_parsing and bool(command) == bool(ctx.params["python"]):
            msg = "give a command behind --, or --python module:function"
            raise HintedUsageError(msg, FORM, ctx)
        ctx.args = command
        return ctx.args

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """As it is typed."""
        return ["[OPTIONS]", "--", "COMMAND [ARGS]..."]


@click.command(
    cls=EachCommand,
    context_settings={"allow_extra_args": True},
    examples=[
        "idemreg each --task-id 'order:{id}' -- ./ship <orders.jsonl",
        "idemreg each -j 4 --task-id '{delivery}' --payload body -- ./handle <deliveries.jsonl",
        "idemreg each --task-id 'mail:{to}:{day}' --python mails:send",
    ],
    fields=EACH_FIELDS,
)
@click.option("--task-id", required=True, metavar="TEMPLATE", help="Its name from the line's fields: 'order:{id}'.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1, MAX_JOBS), default=1, metavar="N", help="Lines at a time, at most (1)."
)
@click.option(
    "--name", type=LINE, default=None, help="The job's name. Default: the command's words without its options."
)
@click.option(
    "--payload", metavar="FIELDS", default=None, help="What the checksum covers: a,b or '{a[b]}'. Default: all."
)
@click.option("--python", metavar="MODULE:FUNCTION", default=None, help="Call this in place of a command.")
@click.option(
    "--error-detail",
    type=click.Choice(["traceback", "message", "type"]),
    default="traceback",
    help="What is stored of an error of a function.",
)
@policy_options
@common_options(creates=True)
@click.pass_context
def each(
    ctx: click.Context,
    /,
    task_id: str,
    jobs: int,
    payload: str | None,
    python: str | None,
    error_detail: ErrorDetail,
    **options: Any,  # noqa: ANN401 - the flags of the policy
) -> int:
    """Handle each line of JSON on stdin once, several at a time; feeding the same lines again goes on.

    A line is an object; it is the standard input of its command, which finds IDEMREG_TASK_ID and its kin in its
    environment. A line that was done before is replayed in silence. One that has no task id, is no JSON, or has more
    than 1 MiB is refused, a blank one is passed over, and the others go on. Ctrl-C begins no more, passes the signal on
    and waits, which it says after a moment; a second one kills. With -j the output of the commands comes line by line.
    Where the limit of open files (ulimit -n) has no room for N commands, fewer run at a time.

    The checksum covers the line, or what --payload says of it, and not the command. What tells jobs apart is their
    name: a task of another job is refused. Options of the command may change; where other words may, give --name.

    With --python a function gets the line as a dictionary. What it raises fails the task; SystemExit and its kin count
    as a crash.

    Exit code: 0 all done or replayed, 76 some are unknown, 65 some were refused or changed, 1 some failed, 75 some run
    elsewhere (the first that applies); 130 or 143 after a signal. With --json the commands' output goes to stderr.
    """
    from idemreg.each import Work  # noqa: PLC0415 - the help text needs none of it
    from idemreg.feed import LineTemplate  # noqa: PLC0415

    check_policy(options, "idemreg each --on-crash verify --verify CMD --task-id '{id}' -- COMMAND [ARGS]...")
    try:
        template = LineTemplate(task_id, payload)
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from None
    with contextlib.ExitStack() as stack:
        stdout = sys.stdout
        if python is not None and settings().json:
            stdout = stack.enter_context(stdout_apart())  # a module may print when it is imported
        function = None if python is None else _function(ctx, python, options)
        registry, is_new = settings().creating(error_detail=error_detail)
        stack.enter_context(registry)
        if is_new:
            settings().announce()
        return _drive(Work(registry, template, options), list(ctx.args), function, _that_fit(jobs), stdout)


def _that_fit(jobs: int) -> int:
    """So many lines at a time, or as many as there are descriptors for: what cannot open a file cannot end a claim.

    The limit is not raised: commands would inherit it, and some take a high one for an order to close so many files.
    """
    import resource  # noqa: PLC0415

    from idemreg.each import descriptors_for, jobs_that_fit  # noqa: PLC0415

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if (limit := sys.maxsize if limit == resource.RLIM_INFINITY else limit) >= descriptors_for(jobs):
        return jobs
    fit = jobs_that_fit(limit)
    with contextlib.suppress(OSError):
        sys.stderr.write(
            f"idemreg: {fit} at a time, not {jobs}: the limit of open files is {limit:,}\n"
            f"  hint: ulimit -n {descriptors_for(jobs)}\n"
        )
    return fit


def _drive(work: Work, argv: Sequence[str], function: Callable[[Any], object] | None, jobs: int, stdout: TextIO) -> int:
    from idemreg.each import Each  # noqa: PLC0415
    from idemreg.feed import read_lines  # noqa: PLC0415
    from idemreg.signals import Relay  # noqa: PLC0415

    progress = Progress(work.registry.clock, stdout)
    in_lines = jobs > 1 or progress.draws
    with contextlib.ExitStack() as stack, Relay() as relay:
        if function is None:
            handle = work.by_command(argv, progress, relay, line_by_line=in_lines)
        else:
            ended = stack.enter_context(line_by_line(progress)) if in_lines else None
            handle = work.by_function(function, relay, ended=ended)
        ends = Each(read_lines(STDIN), handle, jobs=jobs, look_up=_LookUp(relay, work, progress))
        relay.on_first = ends.stop
        if function is not None:
            relay.on_second = ends.leave  # nothing can kill a function alone: its task becomes unknown
        try:
            # Closed at once where the account cannot be written: those that have begun are waited for.
            with contextlib.closing(iter(ends)) as following:
                for end in following:
                    progress.add(end)
        finally:
            progress.finish(relay.received, left=work.in_hand)
    return progress.exit_code if relay.received is None else 128 + relay.received


class _LookUp:
    """Whenever nothing has ended for a moment: the bar; and, behind a whole one, a word to who asked to end."""

    def __init__(self, relay: Relay, work: Work, progress: Progress) -> None:
        self._relay, self._work, self._progress = relay, work, progress
        self._has_waited = self._has_told = False

    def __call__(self) -> None:
        # Not while a line waits for the file: no second signal ends that, and nothing of it runs.
        is_asked = self._relay.received is not None and not self._relay.is_repeated
        waits = is_asked and (self._work.calls or self._relay.runs)
        if waits and self._has_waited and not self._has_told:
            self._has_told = True
            self._progress.tell_ending()
        self._has_waited = waits
        self._progress.look_up()


def _function(ctx: click.Context, name: str, options: dict[str, Any]) -> Callable[[Any], object]:
    """The function of ``module:function``, looked for as Python does, from the folder of now."""
    from idemreg.cli.target import named  # noqa: PLC0415 - where it is asked for
    from idemreg.request import check_job  # noqa: PLC0415 - as above

    options["no_output"] = not options.pop("keeps_output")
    for flag in ("verify", "unknown_on", "release_on", "no_output"):
        if options.pop(flag):
            msg = f"--{flag.replace('_', '-')} is for commands: {name} tells by its exceptions, and fails or not"
            raise HintedUsageError(msg, FORM, ctx)
    found = named(ctx, name, "function", "idemreg each --task-id '{id}' --python mails:send", "--python ")
    if not callable(found):
        msg = f"{name!r} is no function"
        raise click.BadParameter(msg, ctx, param_hint="--python")
    try:
        check_job(found)
    except TypeError as error:
        msg = f"{name!r} is a coroutine or a generator function: calling it would run nothing of it"
        hint = "Give a plain function, one that calls asyncio.run(...) for example."
        raise HintedUsageError(msg, hint, ctx) from error
    return found  # type: ignore[no-any-return]
