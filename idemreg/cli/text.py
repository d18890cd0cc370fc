"""Text for people: escaped, measured in columns of a terminal, shortened and folded.

What is stored comes from anywhere. Nothing of it reaches a terminal that could move the cursor, change the title, or
turn the reading order around: every such character is shown as its escape.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from typing import Final

__all__ = ["columns", "escape", "escape_lines", "fold", "pad", "paint", "shorten", "width"]

DEFAULT_COLUMNS: Final = 80
NARROWEST_COLUMNS: Final = 20
WIDEST_COLUMNS: Final = 1_000

ELLIPSIS: Final = "…"

_SHORT_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "grey": "90", "bold": "1"}


def escape(text: str) -> str:
    r"""The text in one line, with every character that is not simply visible spelled out: ``\x1b``, ``\u202e``.

    Joiners and other invisible characters are spelled out as well: two ids that look the same must be told apart.
    """
    if text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return _SHORT_ESCAPES.get(character) or character.encode("unicode_escape", "surrogatepass").decode("ascii")


def escape_lines(text: str) -> list[str]:
    """Each line of the text, escaped. Only a line feed ends a line; a carriage return before it is left out."""
    return [escape(line.removesuffix("\r").replace("\t", "    ")) for line in text.split("\n")]


# --- columns ----------------------------------------------------------------------------------------------------


def columns() -> int:
    """How wide the output may be: by COLUMNS, by the terminal, or 80. `shutil` would load compressors."""
    try:
        found = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        found = 0
    if found <= 0:
        try:
            found = os.get_terminal_size(sys.stdout.fileno()).columns
        except (OSError, ValueError, AttributeError):  # no terminal; a closed or replaced stdout
            found = 0
    return min(max(found, NARROWEST_COLUMNS), WIDEST_COLUMNS) if found > 0 else DEFAULT_COLUMNS


def width(text: str) -> int:
    """How many columns of a terminal the escaped text takes: two for wide characters, none for combining ones."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if character < "\u0300":
        return 1
    # The vowels and finals of Hangul join the consonant before them.
    if unicodedata.category(character) in {"Mn", "Me"} or "\u1160" <= character <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def pad(text: str, to: int) -> str:
    """The text, filled up with spaces to so many columns."""
    return text + " " * (to - width(text))


def shorten(text: str, to: int) -> str:
    """The text in at most so many columns: an ellipsis replaces its middle, since both ends tell ids apart."""
    if width(text) <= to:
        return text
    if to <= 1:
        return ELLIPSIS[:to]
    tail_width = (to - 1) // 2
    head = _head(text, to - 1 - tail_width)
    return head + ELLIPSIS + _tail(text, tail_width)


def _head(text: str, to: int) -> str:
    """As much of the beginning as fits, with the combining characters of its last one."""
    taken = 0
    for index, character in enumerate(text):
        taken += _width(character)
        if taken > to:
            return text[:index]
    return text


def _tail(text: str, to: int) -> str:
    """As much of the end as fits; it never begins with a combining character, which would join the ellipsis."""
    taken, start = 0, len(text)
    for index in range(len(text) - 1, -1, -1):
        taken += _width(text[index])
        if taken > to:
            break
        if _width(text[index]):
            start = index
    return text[start:]


def fold(text: str, to: int) -> list[str]:
    """The text in lines of at most so many columns, broken at spaces where there are any."""
    lines: list[str] = []
    rest = text
    while width(rest) > to:
        head = _head(rest, to) or rest[:1]
        at = head.rfind(" ") if rest[len(head)] != " " else len(head)
        if at <= 0 or not head[:at].strip():
            at = len(head)
        lines.append(rest[:at].rstrip(" "))
        rest = rest[at:].removeprefix(" ")
    return [*lines, rest]


# --- colour -----------------------------------------------------------------------------------------------------


def paint(text: str, colour: str | None) -> str:
    """The text in a colour, where stdout is a terminal that shows colours and nobody asked for none (NO_COLOR)."""
    if colour is None or not _has_colours():
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def _has_colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
