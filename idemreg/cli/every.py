"""`idemreg run --every`: a command on a schedule, by a line of a crontab that runs each minute."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from idemreg.cli.context import HintedUsageError, settings
from idemreg.cli.failures import report_error
from idemreg.cli.values import DURATION
from idemreg.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from idemreg.clockcheck.verdict import Permit
    from idemreg.command import CommandEnd
    from idemreg.ledger import Ledger
    from idemreg.planning import Timetable
    from idemreg.registry import Registry
    from idemreg.walk import Walk

__all__ = ["every_options", "run_every", "table_of"]

F = TypeVar("F", bound="Callable[..., Any]")

_DEFAULTS: Final[dict[str, Any]] = {
    "tz": "UTC",
    "misfire_grace": None,
    "coalesce": "latest",
    "limit": 100,
    "overlap": "skip",
}

_OPTIONS: Final = (
    click.option("--every", metavar="CRON", default=None, help="Run the slots of this schedule: '0 3 * * *'."),
    click.option("--tz", metavar="ZONE", default=None, help="Whose clock --every means. Default: UTC."),
    click.option(
        "--misfire-grace", type=DURATION, default=None, help="How late a slot may start. Default: whenever it can."
    ),
    click.option(
        "--coalesce",
        type=click.Choice(["all", "latest", "earliest"]),
        default=None,
        help="Which of several slots that wait are run. Default: latest.",
    ),
    click.option(
        "--limit", type=click.IntRange(1, 100_000), metavar="N", default=None, help="Of all, at most so many (100)."
    ),
    click.option(
        "--overlap",
        type=click.Choice(["skip", "queue"]),
        default=None,
        help="What comes due while a slot runs is skipped, or waits. Default: skip.",
    ),
)


def every_options(function: F) -> F:
    """Add the options, in their order."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def table_of(ctx: click.Context, name: str, options: dict[str, Any]) -> Timetable | None:
    """The schedule that the options tell of, which are taken out of them; None where there is none."""
    every = options.pop("every")
    given = {option: options.pop(option) for option in _DEFAULTS}
    if every is None:
        for option, value in given.items():
            if value is not None:
                msg = f"--{option.replace('_', '-')} goes with --every"
                raise HintedUsageError(msg, "idemreg run --every '0 3 * * *' NAME -- COMMAND [ARGS]...", ctx)
        return None
    if options["recover"]:
        msg = "--recover is not for --every, whose next call runs a slot again by itself"
        raise HintedUsageError(msg, "idemreg run --every '0 3 * * *' --on-crash rerun NAME -- COMMAND [ARGS]...", ctx)
    from idemreg.scheduled import timetable  # noqa: PLC0415 - the help text needs none of it

    return timetable(name, every, **{key: _DEFAULTS[key] if value is None else value for key, value in given.items()})


def run_every(
    registry: Registry,
    table: Timetable,
    argv: Sequence[str],
    options: dict[str, Any],
    tell: Callable[[Registry, CommandEnd], None],
) -> int:
    """Run what is due, one slot after the other; the exit code of the first that did not succeed.

    1 where the clock is suspended, which is told: else nobody would hear why nothing runs. `CommandNotFoundError` or
    `CommandNotExecutableError` before anything is looked at where the command could never run.
    """
    from idemreg.cli.bands import bands_of  # noqa: PLC0415 - the help text needs none of it
    from idemreg.handing import check_command  # noqa: PLC0415 - the help text needs none of it
    from idemreg.scheduled import Memory, check_alone, due  # noqa: PLC0415 - as above
    from idemreg.signals import Signals  # noqa: PLC0415 - as above
    from idemreg.slots import slot_id  # noqa: PLC0415 - as above
    from idemreg.walk import drive  # noqa: PLC0415 - as above

    check_command(argv[0])  # now, and not at 03:00
    registry.clock_bands = bands_of({})
    options |= {"on_duplicate": "raise", "counts_argv": False, "name": options["name"] or table.name}
    with Signals() as inbox:

        def may_schedule() -> Permit:
            inbox.check()  # a signal that ended a command ends the catching up
            return registry.may_schedule()

        def execute(task_id: str) -> Walk[CommandEnd]:
            check = functools.partial(check_alone, cast("Ledger", registry.store), template, task_id)
            call = functools.partial(_run, registry, task_id, argv, inbox=inbox, admit=check, **options)
            end = cast("CommandEnd", (yield call, (), None))
            with contextlib.suppress(OSError, StoreError):
                tell(registry, end)
            return end

        template = _wanted(registry, slot_id(table.name, 0), options)
        runs = drive(due(registry.store, registry.clock, table, template, may_schedule, execute, Memory()))
    codes = [run.outcome.exit_code if run.error is None else report_error(run.error, settings()) for run in runs]
    if registry.clock_found is not None and (problem := registry.clock_found.problem) is not None:
        codes.append(report_error(problem, settings()))
    return next((code for code in codes if code), 0)


def _run(*args: Any, **options: Any) -> CommandEnd:  # noqa: ANN401 - those of `run_command`
    from idemreg.command import run_command  # noqa: PLC0415 - as above

    return run_command(*args, **options)


def _wanted(registry: Registry, task_id: str, options: dict[str, Any]) -> Any:  # noqa: ANN401 - a Wanted
    """As `run_command` claims the slots."""
    from idemreg.options import CommonOptions  # noqa: PLC0415 - as above
    from idemreg.request import wanted  # noqa: PLC0415 - as above
    from idemreg.tagged import canonical  # noqa: PLC0415 - as above

    common = {key: value for key, value in options.items() if key in CommonOptions.__annotations__}
    common["verify"] = None if options["verify"] is None else _run  # whether there is one is all that counts
    return wanted(task_id, options["name"], canonical(options["payload"]), registry.checked(common))  # type: ignore[arg-type]
