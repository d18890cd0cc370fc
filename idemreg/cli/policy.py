"""The options that say how a task is run: the same flags for `run` and `each`, named as those of the decorator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from idemreg.cli.context import HintedUsageError
from idemreg.cli.values import DURATION, EXIT_CODES
from idemreg.counted import word_for
from idemreg.model import MAX_ATTEMPTS_LIMIT
from idemreg.options import MAX_LIMIT_S, MIN_LEASE_S, MIN_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_policy", "policy_options"]

F = TypeVar("F", bound="Callable[..., Any]")


def _within(least_s: float) -> Callable[[click.Context, click.Parameter, float | None], float | None]:
    def check(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
        if value is not None and not least_s <= value <= MAX_LIMIT_S:
            msg = f"{least_s:g} {word_for(least_s, 'second')} at least, and a year at most."
            raise click.BadParameter(msg)
        return value

    return check


_OPTIONS: Final = (
    click.option(
        "--on-duplicate",
        type=click.Choice(["return", "raise"]),
        default="return",
        help="Where it has succeeded: write its output again, or exit 73.",
    ),
    click.option("--wait", type=DURATION, default=0.0, help="How long to wait for a running twin. Default: 0."),
    click.option(
        "--on-failure",
        type=click.Choice(["retry", "hold"]),
        default="retry",
        help="Whether a failed task runs again by itself.",
    ),
    click.option(
        "--max-attempts",
        type=click.IntRange(1, MAX_ATTEMPTS_LIMIT),
        default=10,
        metavar="N",
        help="How many attempts a task has. Default: 10.",
    ),
    click.option(
        "--on-crash",
        type=click.Choice(["hold", "rerun", "verify"]),
        default="hold",
        help="What becomes of a task whose owner died.",
    ),
    click.option(
        "--verify",
        metavar="CMD",
        default=None,
        help="Shell command that tells whether it happened: exit 0 yes, 1 no, else cannot tell.",
    ),
    click.option("--unknown-on", type=EXIT_CODES, multiple=True, help="Exit codes that leave it open."),
    click.option(
        "--release-on", type=EXIT_CODES, multiple=True, help="Exit codes that put the task back, as if it had not run."
    ),
    click.option(
        "--no-output",
        "keeps_output",
        is_flag=True,
        flag_value=False,
        default=True,
        help="Store nothing of what the command writes; a replay is silent.",
    ),
    click.option(
        "--keep-for", type=DURATION, default=None, help="From when `purge` may take the ended row. Default: never."
    ),
    click.option(
        "--lease",
        type=DURATION,
        callback=_within(MIN_LEASE_S),
        default=None,
        help="Another may take the task over once this process has given no sign of life for so long.",
    ),
    click.option(
        "--timeout",
        type=DURATION,
        callback=_within(MIN_TIMEOUT_S),
        default=None,
        help="End it by SIGTERM after so long, by SIGKILL 10 s later: exit 124, and --on-crash decides.",
    ),
    click.option(
        "--durability",
        type=click.Choice(["full", "normal"]),
        default="full",
        help="normal: survives a process crash, not a power cut.",
    ),
)


def policy_options(function: F) -> F:
    """Add the options, in their order."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def check_policy(options: dict[str, Any], example: str) -> None:
    """Check what the options say together, and join the exit codes of repeated ones."""
    if (options["verify"] is not None) != (options["on_crash"] == "verify"):
        msg = "--verify CMD and --on-crash verify go together"
        raise HintedUsageError(msg, example)
    for name in ("unknown_on", "release_on"):
        options[name] = frozenset().union(*options[name])
