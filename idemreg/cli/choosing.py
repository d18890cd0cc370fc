"""The options by which commands choose tasks, so that they mean the same everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from idemreg.cli.values import DURATION, TEXT
from idemreg.model import FINAL, Status

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["choosing", "statuses"]

F = TypeVar("F", bound="Callable[..., Any]")

_OPTIONS: Final = {
    "prefix": click.option(
        "--prefix", type=TEXT, default="", metavar="TEXT", help="Only tasks whose task_id begins so."
    ),
    "name": click.option(
        "--name", type=TEXT, default=None, metavar="JOB", help="Only tasks of the job with this name."
    ),
    "older_than": click.option(
        "--older-than",
        type=DURATION,
        default=None,
        metavar="AGE",
        help="Only tasks unchanged for so long: 90s, 12h, 30d.",
    ),
    "newer_than": click.option(
        "--newer-than", type=DURATION, default=None, metavar="AGE", help="Only tasks that changed within so long."
    ),
    "dead": click.option("--dead", is_flag=True, help="Only dead letters: failed, with their attempts used up."),
}


def choosing(*names: str, final_only: bool = False, **help_texts: str) -> Callable[[F], F]:
    """The option --status, and those named; ``help_texts`` says what one means where it means more."""
    words = [status.word for status in Status if not final_only or status in FINAL]

    def decorate(function: F) -> F:
        for name in reversed(names):
            function = _OPTIONS[name](function)
            if name in help_texts:
                function.__click_params__[-1].help = help_texts[name]  # type: ignore[attr-defined]
        return click.option(
            "--status",
            type=click.Choice(words),
            multiple=True,
            metavar="STATUS",
            help=f"Only tasks in this status, may be repeated: {', '.join(words)}.",
        )(function)

    return decorate


def statuses(words: tuple[str, ...]) -> list[Status] | None:
    """The statuses of the option; None: all."""
    return [Status[word.upper()] for word in words] or None
