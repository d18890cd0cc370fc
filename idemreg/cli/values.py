"""The values of options that click has no type for: durations, exit codes, a line of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from typing import NoReturn

    _Type = click.ParamType[Any]  # generic for type checkers since 8.4 only
else:
    _Type = click.ParamType

__all__ = ["DURATION", "EXIT_CODES", "LINE", "TEXT"]

SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
MAX_S: Final = 10_000 * 365 * 86_400  # ten thousand years: more is a mistake in the unit

MAX_EXIT_CODE: Final = 255
MAX_LINE_CHARACTERS: Final = 200


class Duration(_Type):
    """Seconds, or a number with a unit."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """In seconds."""
        if isinstance(value, float):
            return value
        number, unit = (value[:-1], SECONDS[value[-1]]) if value[-1:] in SECONDS else (value, 1)
        try:
            seconds = float(number) * unit
        except ValueError:
            self._refuse(value, param, ctx)
        if not 0 <= seconds <= MAX_S:  # false for nan as well
            self._refuse(value, param, ctx)
        return seconds

    def _refuse(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> NoReturn:
        self.fail(f"{value!r} is no duration such as 30, 1.5, 90s, 15m, 12h, 30d or 2w", param, ctx)


class ExitCodes(_Type):
    """Exit codes of a failure, separated by commas."""

    name = "CODES"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> frozenset[int]:
        """As a set of numbers."""
        if isinstance(value, frozenset):
            return value
        words = [word.strip() for word in value.split(",")]
        if not all(word.isascii() and word.isdigit() and 1 <= int(word[:4]) <= MAX_EXIT_CODE for word in words):
            self.fail(f"{value!r} is no list of exit codes from 1 to {MAX_EXIT_CODE}, such as 75,111", param, ctx)
        return frozenset(map(int, words))


class Text(_Type):
    """Any text. A word of the command line that is no UTF-8 is none, and nothing that is stored has it."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """The text itself."""
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{value[:40]!a} is no UTF-8", param, ctx)
        return str(value)


class Line(_Type):
    """A short text that may be stored and shown in one line."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """The text itself."""
        if not value or len(value) > MAX_LINE_CHARACTERS or not value.isprintable():
            limit = f"1 to {MAX_LINE_CHARACTERS} characters, none of them a control character"
            self.fail(f"{value[:40]!a} is not {limit}", param, ctx)
        return str(value)


DURATION: Final = Duration()
EXIT_CODES: Final = ExitCodes()
LINE: Final = Line()
TEXT: Final = Text()
