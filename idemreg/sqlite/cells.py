"""The cells of a page, decoded past SQLite (sqlite.org/fileformat2.html, 1.6 and 2.1).

Nothing is believed: whatever a page says is bounded, and what makes no sense is left out. Whether a row is as it was
written, its seal tells; whether one is missing from a page, that its bytes do not add up.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from idemreg.sqlite.carving import Image

__all__ = ["Tree", "adds_up", "cells", "children"]

HEADER_BYTES: Final = 100  # in front of the tree of page 1
MAX_PAYLOAD: Final = 16 * 2**20  # a row of idemreg has less
LEAST_CELL: Final = 4

INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE = 0x02, 0x05, 0x0A, 0x0D
KINDS: Final = frozenset({INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE})
INTERIOR: Final = frozenset({INTERIOR_INDEX, INTERIOR_TABLE})

_GARBLED: Final = (IndexError, ValueError, struct.error)


class Tree(NamedTuple):
    """A child of an interior page, and between which keys (of an index) its rows are: None = no bound."""

    page: int
    above: Any
    below: Any


class _Cell(NamedTuple):
    """Where a cell's record begins, how long that is, how much of it is in this page, and where the cell ends."""

    at: int
    size: int
    local: int
    end: int


class _CutError(ValueError):
    """The record goes on in a page that is not there."""


def cells(image: Image, number: int, data: bytes) -> Iterator[list[Any]]:
    """The records of a page of a tree, each as its values.

    Of a record that cannot be decoded to its end the first value alone, or none. One of which not even its length makes
    sense is left out: its page does not add up.
    """
    kind = data[_begin(number)]
    for place in _places(image, number, data) if kind != INTERIOR_TABLE else ():
        try:
            cell = _cell(image, data, place, kind)
        except _GARBLED:
            continue
        try:
            yield _values(_payload(image, data, cell))
        except _GARBLED:
            try:
                yield _values(data[cell.at : cell.at + cell.local], 1)
            except _GARBLED:
                yield []


def children(image: Image, number: int, data: bytes) -> list[Tree]:
    """The children of an interior page; of an index with the keys between which they are."""
    begin = _begin(number)
    kind = data[begin]
    if kind not in INTERIOR:
        return []
    found, above = [], None
    for place in _places(image, number, data):
        below = None
        if kind == INTERIOR_INDEX:
            try:
                below = _values(_payload(image, data, _cell(image, data, place, kind)), 1)[0]
            except _GARBLED:
                below = None
        found.append(Tree(int.from_bytes(data[place : place + 4], "big"), above, below))
        above = below
    found.append(Tree(int.from_bytes(data[begin + 8 : begin + 12], "big"), above, None))
    return found


def adds_up(image: Image, number: int, data: bytes) -> bool:
    """Whether every byte of the page is accounted for, as each page of a tree is: no cell of it can be missing."""
    begin = _begin(number)
    kind = data[begin]
    if kind not in KINDS:
        return False
    count, content = (int.from_bytes(data[begin + at : begin + at + 2], "big") for at in (3, 5))
    content = content or 65_536
    first = begin + (12 if kind in INTERIOR else 8)
    places = list(_places(image, number, data))
    if len(places) != count or not first + 2 * count <= content <= image.usable:
        return False
    try:
        used = sorted((place, _cell(image, data, place, kind).end) for place in places)
        used += _free_blocks(data, int.from_bytes(data[begin + 1 : begin + 3], "big"), image.usable)
    except _GARBLED:
        return False
    used.sort()
    ends = [content, *(end for _, end in used)]
    gaps = sum(place - end for (place, _), end in zip(used, ends, strict=False))
    is_apart = all(place >= end for (place, _), end in zip(used, ends, strict=False))
    return is_apart and gaps + image.usable - ends[-1] == data[begin + 7]  # the fragments, which are in no list


def _free_blocks(data: bytes, at: int, usable: int) -> list[tuple[int, int]]:
    """The list of free blocks, which are in the order of their places."""
    found: list[tuple[int, int]] = []
    while at:
        following, size = struct.unpack(">HH", data[at : at + 4])
        if at + size > usable or size < LEAST_CELL or (following and following <= at):
            raise ValueError
        found.append((at, at + size))
        at = following
    return found


def _begin(number: int) -> int:
    return HEADER_BYTES if number == 1 else 0


def _places(image: Image, number: int, data: bytes) -> Iterator[int]:
    begin = _begin(number)
    kind = data[begin]
    if kind not in KINDS:
        return
    first = begin + (12 if kind in INTERIOR else 8)
    count = min(int.from_bytes(data[begin + 3 : begin + 5], "big"), (image.usable - first) // 2)
    for place in range(first, first + 2 * count, 2):
        at = int.from_bytes(data[place : place + 2], "big")
        if first + 2 * count <= at <= image.usable - LEAST_CELL:
            yield at


def _cell(image: Image, data: bytes, place: int, kind: int) -> _Cell:
    at = place + 4 if kind in INTERIOR else place
    size, at = _varint(data, at)
    if kind == INTERIOR_TABLE:
        return _Cell(at, 0, 0, at)  # a key of the table, and no record
    if kind == LEAF_TABLE:
        _, at = _varint(data, at)
    usable = image.usable
    most = usable - 35 if kind == LEAF_TABLE else (usable - 12) * 64 // 255 - 23
    local = size
    if size > most:
        least = (usable - 12) * 32 // 255 - 23
        local = least + (size - least) % (usable - 4)
        local = local if local <= most else least
    end = max(at + local + (4 if local < size else 0), place + LEAST_CELL)
    if end > usable:
        raise ValueError
    return _Cell(at, size, local, end)


def _payload(image: Image, data: bytes, cell: _Cell) -> bytes:
    """All of the record, its overflow pages included."""
    if cell.size > MAX_PAYLOAD:
        raise ValueError
    at = cell.at + cell.local
    parts, left = [data[cell.at : at]], cell.size - cell.local
    following = int.from_bytes(data[at : at + 4], "big")
    while left > 0:
        page = image.newest(following) if 0 < following <= image.count else None
        if page is None:
            raise _CutError
        image.overflow.add(following)
        following = int.from_bytes(page.data[:4], "big")
        parts.append(page.data[4 : 4 + min(left, image.usable - 4)])
        left -= image.usable - 4
    return b"".join(parts)


def _values(payload: bytes, most: int | None = None) -> list[Any]:
    head, at = _varint(payload, 0)
    types = []
    while at < head:
        one, at = _varint(payload, at)
        types.append(one)
    values: list[Any] = []
    for one in types[:most]:
        value, at = _value(payload, at, one)
        values.append(value)
    return values


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:  # noqa: PLR2004 - the last one
            return value, at
    return value << 8 | data[at], at + 1


_INTEGER_BYTES: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def _value(payload: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (0, 8, 9):
        return {0: None, 8: 0, 9: 1}[kind], at
    if (size := _INTEGER_BYTES.get(kind)) is not None:
        end = at + size
        value: Any = int.from_bytes(payload[at:end], "big", signed=True)
    elif kind == 7:  # noqa: PLR2004 - a real number
        end = at + 8
        value = struct.unpack(">d", payload[at:end])[0]
    elif kind >= 12:  # noqa: PLR2004 - bytes, or text
        end = at + (kind - 12) // 2
        raw = payload[at:end]
        value = raw.decode() if kind & 1 else raw  # UnicodeDecodeError is a ValueError
    else:
        raise ValueError
    if end > len(payload):
        raise ValueError
    return value, end
