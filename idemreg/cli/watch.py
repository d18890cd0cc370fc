"""`idemreg watch`: tasks of dead owners are rerun or settled, and events handed to a command. The loop is a sweep's."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import click

from idemreg.cli.context import KEY_VARIABLE, Command, HintedUsageError, common_options, settings
from idemreg.cli.ending import SIGNAL, die, end_behind, relay_in, say
from idemreg.cli.failures import hint_for, job_error, report_error, unknown_hint
from idemreg.cli.printing import stdout_apart
from idemreg.cli.render import write_json
from idemreg.cli.run import behind_dashes
from idemreg.cli.target import registry_at
from idemreg.cli.text import escape
from idemreg.cli.values import DURATION
from idemreg.errors import IdemregError
from idemreg.keyed import OPEN
from idemreg.model import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from idemreg.events import Teller
    from idemreg.handing import Hand
    from idemreg.keyed import ErrorDetail
    from idemreg.operations import Operations
    from idemreg.recovery import Recovery
    from idemreg.signals import Relay
    from idemreg.sweeping import Swept

__all__ = ["WATCH_FIELDS", "watch"]

FORM: Final = "idemreg watch [MODULE:REGISTRY] [--on EVENT -- COMMAND [ARGS]...]"
TROUBLE: Final = 1

# Those that a sweep makes; their classes, which need an import, are those of `idemreg.events.EVENTS`.
NAMES: Final = ("claimed", "taken-over", "replayed", "succeeded", "failed", "unknown", "released", "lease-lost")
LEAST_INTERVAL_S: Final = 0.1

WATCH_FIELDS: Final = {
    "task_id": "a task whose owner is dead",
    "name": "its job's name",
    "did": "rerun, settled, or left as it was",
    "status": "its status since then",
    "error": "what its job raised, or why it is unknown, failed or left; or null",
    "hint": "what to do next, or null",
}


class WatchCommand(Command):
    """Splits the line at the first ``--``: options before it, the command for events, untouched, behind it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what is before ``--``; leave what is behind it in ``ctx.args``."""
        head, command = behind_dashes(args)
        extra = super().parse_args(ctx, head)
        if not ctx.resilient_parsing and (extra or bool(command) != bool(ctx.params["events"])):
            is_before = extra or (not command and ctx.params["target"] is not None)
            msg = "the command goes behind --" if is_before else "--on EVENT and a command behind -- go together"
            raise HintedUsageError(msg, FORM, ctx)
        ctx.args = command
        return ctx.args

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """As it is typed."""
        return ["[OPTIONS]", "[MODULE:REGISTRY]", "[-- COMMAND [ARGS]...]"]


def _at_least(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    if value < LEAST_INTERVAL_S:
        msg = f"{LEAST_INTERVAL_S:g} seconds at least."
        raise click.BadParameter(msg)
    return value


@click.command(
    cls=WatchCommand,
    context_settings={"allow_extra_args": True},
    examples=[
        "idemreg watch",
        "idemreg watch --once shop.jobs:registry",
        "idemreg watch --on unknown --on failed -- ./page-somebody",
    ],
    fields=WATCH_FIELDS,
)
@click.argument("target", metavar="[MODULE:REGISTRY]", required=False)
@click.option("--once", is_flag=True, help="Sweep once, and end: for a timer, or a crontab.")
@click.option(
    "--interval", type=DURATION, default=5.0, callback=_at_least, help="How long to wait between sweeps. Default: 5."
)
@click.option(
    "--on",
    "events",
    type=click.Choice(NAMES),
    metavar="EVENT",
    multiple=True,
    help=f"Hand these to the command, repeat it: {', '.join(NAMES)}.",
)
@common_options()
@click.pass_context
def watch(ctx: click.Context, target: str | None, events: tuple[str, ...], interval: float, *, once: bool) -> int:
    """Rerun or settle the tasks of dead owners at once, over and over.

    What asked for it is run again with its arguments, under its --on-crash, one task after the other: the commands of
    `run --recover` in the file of --db; or with MODULE's REGISTRY, which has its own file, the functions that were
    decorated with `recover=True`. All others become unknown, and are told; what its next call runs again by itself
    is left to it. Any number of these may watch one file.

    A command that is rerun is executed as you are: so the file must be yours, and neither it nor its folder writable by
    others. It runs in its folder of then, with the environment of now and no standard input.

    With --on each event of that kind which happens in this process is handed to COMMAND, one after the other: as one
    object of JSON on its standard input, its name in IDEMREG_EVENT and its task in IDEMREG_TASK_ID; IDEMREG_DB names
    the file. Those of other processes are not: no failed slot of `idemreg schedule`, and nothing of its clock.
    COMMAND may take a minute, and is killed then. That it fails is told, and stops nothing. Where there is no such
    command the watch does not begin: 127, or 126 where it may not be executed.

    SIGTERM or Ctrl-C is passed on to the command that runs, and ends the watch behind its job, which is said on stderr
    where it takes a moment. What is still to be handed to COMMAND then has a minute in all; what is left is told of. A
    second signal kills, COMMAND as well. It also ends, with 74, where its file was deleted, moved or replaced: started
    anew it opens what is there; and where the disk refused to sync, or the file needs a newer idemreg. It goes on where
    a disk is full, say. The exit code with --once is 1 where somebody should look: a job failed, a task is unknown or
    could not be rerun, or COMMAND failed.
    """
    out: TextIO = sys.stdout
    with contextlib.ExitStack() as stack:
        if settings().json:
            out = stack.enter_context(stdout_apart())  # jobs and commands may print
        registry = settings().existing() if target is None else registry_at(ctx, target, FORM)
        stack.enter_context(registry)
        os.environ.pop(KEY_VARIABLE, None)  # no command finds it; a module has read it by now
        account = _Account(out, getattr(registry, "secrecy", OPEN).error_detail)  # a file's, without a module, has none
        relay = relay_in(stack)  # before the hand, which is still left under its handlers
        hand = _hand(events, ctx.args, registry, account, relay)
        teller = _teller(registry, None if hand is None else stack.enter_context(hand))
        _watch(registry, teller, relay, account, None if once else interval, is_of_module=target is not None)
    return account.exit_code if relay.received is None else SIGNAL + relay.received


def _watch(
    registry: Any,  # noqa: ANN401 - a Registry where it is of a module, else Operations
    teller: Teller | None,
    relay: Relay,
    account: _Account,
    interval: float | None,
    *,
    is_of_module: bool,
) -> None:
    sweep: Callable[[Callable[[Swept], None]], list[Swept]]
    if is_of_module:
        from idemreg.rerunning import sweep as functions  # noqa: PLC0415 - where it is asked for

        sweep = functools.partial(functions, registry, teller, lambda: relay.received is not None)
    else:
        from idemreg.command_rerun import sweep_commands  # noqa: PLC0415 - as above

        sweep = functools.partial(sweep_commands, registry, teller, relay)
    if interval is None:
        relay.on_first = say
        sweep(account)
        return
    from idemreg.scheduler import FOR_GOOD, Loops  # noqa: PLC0415 - as above
    from idemreg.watcher import watch as loop  # noqa: PLC0415 - as above

    def sweep_or_end(tell: Callable[[Swept], None]) -> list[Swept]:
        try:
            cast("Recovery", registry.store).check_files()  # a sweep that finds nothing writes nothing, and sees none
            return sweep(tell)
        except FOR_GOOD:
            loops.stop()
            raise

    loops = Loops({"watch": functools.partial(loop, sweep_or_end, account, interval, registry.clock)})
    end_behind(relay, loops)
    loops.run()


def _hand(
    events: Sequence[str], argv: Sequence[str], registry: Operations, account: _Account, relay: Relay
) -> Hand | None:
    if not events:
        return None
    from idemreg.handing import Hand, check_command  # noqa: PLC0415 - where it is asked for

    check_command(argv[0])
    variables = {"IDEMREG_DB": os.path.abspath(registry.path)}
    hand = Hand(events, argv, variables, account.problem, is_hurried=lambda: relay.received is not None)
    relay.on_second = lambda: die(relay, hand)
    return hand


def _teller(registry: Operations, hand: Hand | None) -> Teller | None:
    """What tells the command, and behind it the registry's own callback."""
    own = registry.teller
    if hand is None:
        return own
    from idemreg.events import Teller  # noqa: PLC0415 - as above

    def tell(event: Any) -> None:  # noqa: ANN401 - any event
        hand(event)
        if own is not None:
            own.tell(event)

    return Teller(tell)


class _Account:
    """A line a task, and the exit code of it all. Threads share it."""

    def __init__(self, out: TextIO, detail: ErrorDetail) -> None:
        self._out = out
        self._detail = detail
        self._lock = threading.Lock()
        self._settings = settings()  # in the thread of the command, which has them
        self.exit_code = 0

    def __call__(self, told: Swept | Exception) -> None:
        with self._lock:
            if isinstance(told, Exception):
                self.exit_code = report_error(told, self._settings)
                return
            if told.is_trouble:
                self.exit_code = TROUBLE
            if self._settings.json:
                write_json(self._fields(told), to=self._out)
            else:
                self._out.write(f"{escape(told.task_id)} {_words(told, self._error(told))}\n")
                if (hint := self._hint(told)) is not None:
                    self._out.write(f"  hint: {escape(hint)}\n")
            self._out.flush()

    def problem(self, text: str) -> None:
        """What is wrong with the command of --on."""
        with self._lock:
            self.exit_code = TROUBLE
            with contextlib.suppress(OSError):
                sys.stderr.write(f"idemreg: {escape(text)}\n")

    def _fields(self, told: Swept) -> dict[str, Any]:
        return {
            "task_id": told.task_id,
            "name": told.name,
            "did": told.did,
            "status": told.status.word,
            "error": self._error(told),
            "hint": self._hint(told),
        }

    def _error(self, told: Swept) -> str | None:
        error = told.error
        if error is None:
            return None
        if isinstance(error, IdemregError) and (self._detail != "type" or error.task_id == told.task_id):
            return error.message
        return job_error(error, told.task_id, self._detail)

    def _hint(self, told: Swept) -> str | None:
        error = told.error if isinstance(told.error, IdemregError) else None
        if told.status is Status.UNKNOWN and (error is None or error.task_id != told.task_id):  # its job has raised it
            return unknown_hint(told.task_id, self._settings)
        return None if error is None else hint_for(error, self._settings)


def _words(told: Swept, why: str | None) -> str:
    what = {
        "rerun": f"was run again: {told.status.word}",
        "settled": f"is {told.status.word}",
        "left": f"is left {told.status.word}",
    }
    why = escape(why or "")
    if told.did == "left" and not why:
        why = "its next call runs it again"
    return f"{what[told.did]}; {why}" if why else what[told.did]
