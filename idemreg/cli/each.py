"""`idemreg each`: lines of JSON on stdin, each handled once. Parses, shows how far it is, and says how it went."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from idemreg.cli.context import Command, HintedUsageError, common_options, settings
from idemreg.cli.policy import check_policy, policy_options
from idemreg.cli.render import write_json
from idemreg.cli.text import escape
from idemreg.cli.values import LINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from idemreg.clock import Clock
    from idemreg.each import Each, End, Line, Work

__all__ = ["EACH_FIELDS", "each"]

FORM: Final = "idemreg each --task-id '{id}' -- COMMAND [ARGS]..."
MAX_JOBS: Final = 256
REDRAW_S: Final = 0.1
SHOWN_PROBLEMS: Final = 20

EACH_FIELDS: Final = {
    "line": "the line's number, from 1",
    "task_id": "the task's name; null where the line is none",
    "outcome": "done, replayed, released, failed, refused, mismatch, running or unknown",
    "exit_code": "the command's own, or 128+n where signal n killed it; null where none ran",
    "error": "why it is not done; null where it is",
}

# The exit code of the worst outcome, the worst first.
EXIT_CODES: Final = (("unknown", 76), ("mismatch", 65), ("refused", 65), ("failed", 1), ("running", 75))
WORDS: Final = ("done", "replayed", "released", "failed", "refused", "mismatch", "running", "unknown")


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
@click.option("-j", "--jobs", type=click.IntRange(1, MAX_JOBS), default=1, metavar="N", help="Lines at a time (1).")
@click.option("--name", type=LINE, default=None, help="The job's name. Default: the command's base name.")
@click.option("--payload", metavar="FIELDS", default=None, help="What counts of a line, as a,b. Default: all of it.")
@click.option("--python", metavar="MODULE:FUNCTION", default=None, help="Call this in place of a command.")
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
    **options: Any,  # noqa: ANN401 - the flags of the policy
) -> int:
    """Handle each line of JSON on stdin once, several at a time; feeding the same lines again goes on.

    A line is an object; it is the standard input of its command, which finds IDEMREG_TASK_ID and its kin in its
    environment. A line that was done before is replayed in silence. One that has no task id, is no JSON, or has more
    than 1 MiB is refused, and the others go on. With -j the output of the commands comes line by line. Ctrl-C begins
    no more, passes the signal on and waits; a second one kills.

    Exit code: 0 all done or replayed, 76 some are unknown, 65 some were refused or changed, 1 some failed, 75 some run
    elsewhere (the first that applies); 130 or 143 after a signal. With --json the commands' output goes to stderr.
    """
    from idemreg.each import Each, LineTemplate, Work, read_lines  # noqa: PLC0415 - the help text needs none of it

    check_policy(options, "idemreg each --on-crash verify --verify CMD --task-id '{id}' -- COMMAND [ARGS]...")
    fields = [field.strip() for field in payload.split(",")] if payload is not None else []
    try:
        template = LineTemplate(task_id, fields)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param_hint="--task-id") from None
    function = None if python is None else _function(ctx, python, options)
    registry, is_new = settings().creating()
    with registry:
        if is_new:
            settings().announce()
        work = Work(registry, template, options)
        return _drive(work, list(ctx.args), function, jobs, read_lines(sys.stdin.fileno()), Each)


def _drive(
    work: Work,
    argv: Sequence[str],
    function: Callable[[Any], object] | None,
    jobs: int,
    lines: Iterator[Line],
    kind: type[Each],
) -> int:
    from idemreg.child import Descriptors, Relay  # noqa: PLC0415

    progress = Progress(work.registry.clock)
    with Relay() as relay:
        sink = Descriptors(2 if settings().json else 1, 2)
        handle = work.by_command(argv, sink, relay) if function is None else work.by_function(function)
        ends = kind(lines, handle, jobs=jobs)
        relay.on_first = ends.stop
        try:
            for end in ends:
                progress.add(end)
        finally:
            progress.finish(relay.received)
    return progress.exit_code if relay.received is None else 128 + relay.received


def _function(ctx: click.Context, name: str, options: dict[str, Any]) -> Callable[[Any], object]:
    """The function of ``module:function``, looked for as Python does, from the folder of now."""
    import importlib  # noqa: PLC0415 - where it is asked for

    for flag in ("verify", "unknown_on", "release_on"):
        if options.pop(flag):
            msg = f"--{flag.replace('_', '-')} is for commands: {name} tells by its exceptions, and fails or not"
            raise HintedUsageError(msg, FORM, ctx)
    module, _, path = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for word in path.split("."):
            found = getattr(found, word)
    except (ImportError, AttributeError, ValueError) as error:
        msg = f"{name!r} cannot be imported: {error}"
        raise click.BadParameter(msg, ctx, param_hint="--python") from None
    if not callable(found):
        msg = f"{name!r} is no function"
        raise click.BadParameter(msg, ctx, param_hint="--python")
    return found  # type: ignore[no-any-return]


class Progress:
    """Counts, a line on the terminal with rate and remaining time, and the account at the end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[str, int] = dict.fromkeys(WORDS, 0)
        self._began = clock.monotonic()
        self._drawn = self._began - REDRAW_S
        self._size = _size_of_input()
        self._read = 0
        self._told = 0
        self._draws = sys.stderr.isatty() and not settings().json

    @property
    def exit_code(self) -> int:
        """By the worst outcome."""
        return next((code for word, code in EXIT_CODES if self._counts[word]), 0)

    def add(self, end: End) -> None:
        """A line has ended."""
        self._counts[end.kind.value] += 1
        self._read = max(self._read, end.line.read)
        if settings().json:
            facts = {"line": end.line.number, "task_id": end.task_id, "outcome": end.kind.value}
            write_json({**facts, "exit_code": end.exit_code, "error": end.error})
        elif end.kind.value not in ("done", "replayed", "released"):
            self._tell_problem(end)
        self._draw()

    def _tell_problem(self, end: End) -> None:
        self._told += 1
        if self._told > SHOWN_PROBLEMS:
            return
        name = "" if end.task_id is None else f" ({escape(end.task_id)})"
        why = end.error or (f"exit code {end.exit_code}" if end.exit_code is not None else "")
        self._say(f"idemreg: line {end.line.number}{name} {end.kind.value}: {escape(why)}")
        if self._told == SHOWN_PROBLEMS:
            self._say("idemreg: further lines of this kind are counted, and not shown")

    def _say(self, text: str) -> None:
        sys.stderr.write(f"{CLEAR if self._draws else ''}{text}\n")

    def _draw(self) -> None:
        now = self._clock.monotonic()
        if not self._draws or now - self._drawn < REDRAW_S:
            return
        self._drawn = now
        ended, passed = sum(self._counts.values()), now - self._began
        text = f"{ended:,} lines, {ended / passed:,.0f} a second"
        if self._size and self._read:
            share = min(self._read / self._size, 1)
            text += f", {share:.0%}, {_minutes(passed / share - passed)} left"
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
        sys.stderr.write(CLEAR + text[: max(columns - 1, 10)])
        sys.stderr.flush()

    def finish(self, signal: int | None) -> None:
        """The account."""
        counts = {word: number for word, number in self._counts.items() if number}
        total = sum(counts.values())
        if settings().json:
            write_json({"lines": total, **self._counts, "interrupted": signal is not None})
            return
        what = ", ".join(f"{number:,} {word}" for word, number in counts.items()) or "nothing to do"
        head = "interrupted: " if signal is not None else ""
        self._say(f"idemreg: {head}{total:,} {'line' if total == 1 else 'lines'}: {what}")


CLEAR: Final = "\r\x1b[K"


def _size_of_input() -> int:
    """The size of stdin where it is a file; 0 where nobody can know."""
    try:
        found = os.fstat(sys.stdin.fileno())
    except (OSError, ValueError):
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _minutes(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
