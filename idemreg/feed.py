"""Lines of JSON from outside: read as they come, parsed, and what a template makes of their fields."""

from __future__ import annotations

import json
import os
import select
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg.errors import ArgumentError, TaskIdError
from idemreg.template import Template, pieces

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LINE_BYTES", "Line", "LineTemplate", "parse_line", "read_lines", "read_some"]

LINE_BYTES: Final = 1_024 * 1_024
READ_BYTES: Final = 64 * 1_024


class Line(NamedTuple):
    """A line as it was read: its number from 1, its bytes, and how many bytes of the input there are up to its end."""

    number: int
    raw: bytes
    end: int


class LineTemplate:
    """A template over the fields of a line, ``{id}`` or ``{order[id]}``, and what of the line the checksum covers."""

    def __init__(self, literal: str, payload: str | None = None) -> None:
        self._task_id: Final = _Text(literal)
        self._payload: Final = None if payload is None or "{" not in payload else _Text(payload)
        self._fields: Final = [] if payload is None or "{" in payload else [one.strip() for one in payload.split(",")]
        if "" in self._fields:
            msg = f"{payload!r} names a field without a name"
            raise ValueError(msg)

    def task_id(self, fields: dict[str, Any]) -> str:
        """The task_id; `TaskIdError` where a field is missing or empty."""
        return self._task_id.render(fields)

    def payload(self, fields: dict[str, Any]) -> object:
        """What counts of the line; `ArgumentError` where a field is missing."""
        if self._payload is not None:
            try:
                return self._payload.render(fields)
            except TaskIdError as error:
                raise ArgumentError(error.message) from error
        for field in self._fields:
            if field not in fields:
                msg = f"the line has no field {field!r}"
                raise ArgumentError(msg)
        return {field: fields[field] for field in self._fields} if self._fields else fields


class _Text:
    """A template over the fields of a line. ValueError where it names none: all lines would be one task."""

    def __init__(self, literal: str) -> None:
        fields = [field for _, field, _, _ in pieces(literal) if field is not None]
        if not all(fields) or not fields:
            msg = f"{literal!r} names no field of the line, so all lines would be one"
            raise ValueError(msg)
        self._roots: Final = sorted({field.partition("[")[0].partition(".")[0] for field in fields})
        self._template: Final = Template(literal, self._roots)

    def render(self, fields: dict[str, Any]) -> str:
        """The text; `TaskIdError` where a field is missing or empty."""
        for root in self._roots:
            if root not in fields:
                msg = f"the line has no field {root!r}"
                raise TaskIdError(msg)
        return self._template.render(fields)


def read_lines(fd: int) -> Iterator[Line]:
    """The lines of a descriptor that are not blank, without their ends. One that is too long comes cut, to be refused.

    Reads the descriptor itself: a buffered file that another thread waits in would hang the end of the process.
    """
    rest, number, at, skipping = b"", 0, 0, False
    while data := read_some(fd, READ_BYTES):
        *whole, rest = (rest + data).split(b"\n")
        for raw in whole:
            number, at = number + 1, at + len(raw) + 1
            if not skipping and raw.strip():
                yield Line(number, raw[: LINE_BYTES + 1], at)
            skipping = False
        if len(rest) > LINE_BYTES and not skipping:
            skipping = True
            yield Line(number + 1, rest[: LINE_BYTES + 1], at + len(rest))
        if skipping:
            at, rest = at + len(rest), b""
    if rest.strip():
        yield Line(number + 1, rest, at + len(rest))


def read_some(fd: int, most: int) -> bytes:
    """What a descriptor has, as soon as it has any; nothing at its end. One that another has made non-blocking as well.

    That is a setting of the open file, which others may share: it is left alone.
    """
    while True:
        try:
            return os.read(fd, most)
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(fd, select.POLLIN)
            waiting.poll()


def parse_line(line: Line) -> dict[str, Any]:
    """The object that the line is; `ArgumentError` where it is none."""
    if len(line.raw) > LINE_BYTES:
        msg = f"the line has more than {LINE_BYTES:,} bytes"
        raise ArgumentError(msg)
    try:
        fields = json.loads(line.raw)
    except (ValueError, RecursionError) as error:
        msg = f"the line is no JSON: {error}"
        raise ArgumentError(msg) from None
    if not isinstance(fields, dict):
        msg = "the line is no JSON object"
        raise ArgumentError(msg)
    return fields
