"""Rows for people and for programs: a table that fits, two columns of facts, JSON with one object a line."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO

from idemreg.cli.text import columns, fold, pad, paint, shorten, width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Cell", "Column", "age", "facts", "local_time", "table", "utc_time", "write", "write_folded", "write_json"]

# The first rows of a table decide how wide its columns are; the rest streams through, shortened where it must be.
MEASURED_ROWS: Final = 200
GAP: Final = "  "

# A label of `facts` and its gap; narrower terminals keep it, the values fold.
LABEL_COLUMNS: Final = 10

SECOND_US: Final = 1_000_000
_AGES: Final = ((86_400 * 365, "y"), (86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


class Cell(NamedTuple):
    """Escaped text, and its colour."""

    text: str
    colour: str | None = None


class Column(NamedTuple):
    """A column of a table. An elastic one gives way where there is no room; ``least`` is what it keeps."""

    title: str
    is_elastic: bool = False
    least: int = 0
    most: int = 1_000


# --- output -----------------------------------------------------------------------------------------------------


def write(line: str = "") -> None:
    """One line on stdout."""
    sys.stdout.write(f"{line}\n")


def write_folded(text: str) -> None:
    """A sentence on stdout, in lines as wide as the terminal."""
    for line in fold(text, columns()):
        write(line)


def write_json(fields: dict[str, Any], *, to: TextIO | None = None) -> None:
    """One object on one line, on stdout. ASCII only: it passes every encoding, and can move no terminal's cursor."""
    stream = to or sys.stdout
    stream.write(json.dumps(fields, separators=(", ", ": ")).replace("\x7f", "\\u007f") + "\n")


def table(layout: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> int:
    """Write a table as its rows come, and say how many there were. A row never takes more than one line."""
    stream = iter(rows)
    first = list(islice(stream, MEASURED_ROWS))
    if not first:
        return 0
    widths = _widths(layout, first, columns())
    write(paint(_line([column.title for column in layout], widths), "bold"))
    count = 0
    for row in chain(first, stream):
        write(_line([cell.text for cell in row], widths, lambda at, text, row=row: paint(text, row[at].colour)))  # type: ignore[misc]
        count += 1
    return count


def _widths(layout: Sequence[Column], rows: Sequence[Sequence[Cell]], room: int) -> list[int]:
    """The natural widths, taken back in the elastic columns, from the right, until a line fits."""
    widths = [
        min(max(width(column.title), *(width(row[at].text) for row in rows)), column.most)
        for at, column in enumerate(layout)
    ]
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - room
    for at in reversed(range(len(layout))):
        if excess > 0 and layout[at].is_elastic:
            give = min(excess, max(widths[at] - layout[at].least, 0))
            widths[at] -= give
            excess -= give
    return widths


def _line(texts: Sequence[str], widths: Sequence[int], style: Callable[[int, str], str] | None = None) -> str:
    cells = []
    for at, (text, to) in enumerate(zip(texts, widths, strict=True)):
        short = shorten(text, to)
        gap = "" if at == len(texts) - 1 else " " * (to - width(short))
        cells.append((style(at, short) if style else short) + gap)
    return GAP.join(cells).rstrip(" ")


def facts(pairs: Iterable[tuple[str, Cell | Sequence[str]]]) -> None:
    """Write labels and values in two columns; values fold under themselves. A sequence is one line an item."""
    room = max(columns() - LABEL_COLUMNS, LABEL_COLUMNS)
    for label, value in pairs:
        colour = value.colour if isinstance(value, Cell) else None
        lines = [value.text] if isinstance(value, Cell) else value
        head = pad(label, LABEL_COLUMNS)
        for line in lines:
            for piece in fold(line, room):
                write((head + paint(piece, colour)).rstrip(" "))
                head = " " * LABEL_COLUMNS


# --- time -------------------------------------------------------------------------------------------------------


def utc_time(time_us: int) -> str:
    """Microseconds since the epoch as ISO 8601 in UTC."""
    return _instant(time_us).isoformat(timespec="microseconds").replace("+00:00", "Z")


def local_time(time_us: int, *, with_zone: bool = True) -> str:
    """Microseconds since the epoch in the zone of the reader."""
    instant = _instant(time_us)
    try:
        local = instant.astimezone()
    except (OverflowError, OSError, ValueError):  # a date that the C library cannot place
        local = instant
    return local.strftime("%Y-%m-%d %H:%M:%S %Z" if with_zone else "%Y-%m-%d %H:%M").strip()


def _instant(time_us: int) -> datetime:
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)
    except OverflowError:  # beyond the years 1 to 9999: the clock was wrong, and the row is shown all the same
        return datetime.max.replace(tzinfo=UTC) if time_us > 0 else datetime.min.replace(tzinfo=UTC)


def age(time_us: int, now_us: int) -> str:
    """How long ago, in the largest whole unit: ``4h``. A time to come, from a clock that was set back: ``-4h``."""
    return span((now_us - time_us) // SECOND_US if now_us >= time_us else -((time_us - now_us) // SECOND_US))


def span(seconds: int) -> str:
    """A number of seconds in the largest whole unit: ``30d``."""
    for unit, letter in _AGES:
        if abs(seconds) >= unit:
            return f"{'-' if seconds < 0 else ''}{abs(seconds) // unit}{letter}"
    return "0s"
