"""What nobody should give: ids, arguments, results, words of a command line, lines of JSON, each by a die."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import json
import uuid
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

__all__ = ["NASTY", "json_line", "name", "number", "task_id", "text", "value", "word"]

# What moves a cursor, sets a title, hides, turns the order of reading around, ends a line, or is no text at all.
NASTY: Final = (
    *("\x1b[2J", "\x1b]0;owned\x07", "\x9b31m", "\x1b[1A\x1b[2K", "\x00", "\x07", "\x08" * 8, "\x7f"),
    *("\r", "\n", "\t", "\v", "\x85", "\u2028", "\u2029", "\u202e", "\u2066", "\u2069", "\u200b", "\u200d", "\ufeff"),
    *("\u00ad", "\u0301", "e\u0301", "\ud800", "\udcff", "\udc80\udc81", "\ufffe", "\U0010ffff", "\U000e0041"),
    *("\u0627", "\u5b57", "\U0001f3f3\ufe0f\u200d\U0001f308", "\u3000", "\u00a0", "'", '"', "\\", "`id`", "$(id)"),
    *(
        "; id",
        "%s%n",
        "{}",
        "{0}",
        "{task_id}",
        "--",
        "-x",
        "--help",
        "../..",
        "*",
        "~",
        "#",
        "TASK_ID",
        "idemreg show",
    ),
)

INTEGERS: Final = (0, -1, 1, 255, 256, 2**31, 2**53 + 1, 2**62, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400)


def text(dice: random.Random) -> str:
    """Any text, short for the most part."""
    kind = dice.randrange(12)
    if kind == 0:
        return dice.choice(("", " ", "x", "None", "null", "0", "nan", "-0", "1e999", "١٢"))
    if kind == 1:
        return chr(dice.randrange(0x110000)) * dice.choice((1, 3, 170, 171, 513))
    if kind == 2:
        return dice.choice(NASTY) * dice.choice((1, 100, 5_000))
    parts = [dice.choice(NASTY) if dice.random() < 0.5 else f"t{dice.randrange(40)}" for _ in range(dice.randint(1, 4))]
    return "".join(parts)


def word(dice: random.Random) -> str:
    """A word of a command line: no NUL, and bytes that are no UTF-8 as Python has them there."""
    return "".join(one for one in text(dice)[:2_000] if one != "\0" and not "\ud800" <= one <= "\udc7f")


def task_id(dice: random.Random) -> Any:
    """A task id, or what is none."""
    kind = dice.randrange(6)
    if kind == 0:
        return dice.choice((None, 7, 7.5, True, b"bytes", [], {}, Shouting("sub"), float("nan"), object, 2**70))
    if kind == 1:
        return f"task:{dice.randrange(30)}"
    return text(dice)


def name(dice: random.Random) -> str:
    """A job's name."""
    return "job" if dice.random() < 0.3 else text(dice)


def number(dice: random.Random) -> Any:
    """What stands where a number or a duration should."""
    return dice.choice((*INTEGERS, 0.5, -0.5, float("nan"), float("inf"), -float("inf"), "5", None, True, b"1"))


def value(dice: random.Random, depth: int = 0) -> Any:
    """A payload or a result."""
    makers = (*_PLAIN, *_DEEP) if depth < 3 else _PLAIN
    return dice.choice(makers)(dice, depth)


def _circle(_dice: random.Random, _depth: int) -> Any:
    found: list[Any] = []
    found.append(found)
    return found


_PLAIN: Final[tuple[Callable[[random.Random, int], Any], ...]] = (
    lambda dice, _: dice.choice(INTEGERS),
    lambda dice, _: dice.choice((float("nan"), float("inf"), -0.0, 5e-324, 1.5, None, True, False)),
    lambda dice, _: text(dice),
    lambda dice, _: text(dice),
    lambda dice, _: dice.randbytes(dice.choice((0, 1, 40))),
    lambda dice, _: dice.choice(
        (decimal.Decimal("NaN"), decimal.Decimal("1E+999999"), decimal.Decimal("-0.00"), uuid.UUID(int=0))
    ),
    lambda dice, _: dice.choice((dt.datetime.max, dt.date.min, dt.timedelta.max)),  # noqa: DTZ901 - without a zone
    lambda dice, _: dice.choice((object(), Evil(), Shouting("x"), len, ..., ValueError, iter(()), Point(1, 2), 1j)),
)
_DEEP: Final[tuple[Callable[[random.Random, int], Any], ...]] = (
    lambda dice, _: nested(dice),
    _circle,
    lambda dice, depth: {
        dice.choice(("$", "a", "\ud800", 1, None, (1, 2), 1.0)): value(dice, depth + 1) for _ in range(3)
    },
    lambda dice, depth: {"$": [text(dice), value(dice, depth + 1)]},
    lambda dice, depth: dice.choice((tuple, list))(value(dice, depth + 1) for _ in range(dice.randrange(4))),
    lambda dice, _: {"x" * dice.choice((1, 10_000)): "y" * dice.choice((1, 100_000, 1_100_000))},
)


def nested(dice: random.Random) -> Any:
    """Very deep."""
    found: Any = 1
    for _ in range(dice.choice((50, 99, 100, 101, 102, 900, 20_000))):
        found = [found] if dice.random() < 0.5 else {"a": found}
    return found


@dataclasses.dataclass(frozen=True)
class Point:
    """Plain data of a class of its own."""

    x: int
    y: int


class Shouting(str):
    """Text of another class, which says something else of itself."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\x1b[31mSHOUT"


class Evil:
    """Raises whatever is asked of it."""

    def __repr__(self) -> str:
        msg = "\x1b[2J\ud800"
        raise RuntimeError(msg)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __hash__(self) -> int:
        raise RuntimeError


# --- lines of JSON --------------------------------------------------------------------------------------------------

HEADER: Final = {"idemreg": "export", "format": 1, "registry_id": "0" * 32}
ROW: Final = {
    "task_id": "imported", "status": "succeeded", "checksum": "a" * 64, "updated_at": 1, "name": "job", "token": 1,
    "attempt": 1, "on_crash": "hold", "on_failure": "retry", "max_attempts": 10, "keep_ms": None, "result": "1",
    "error": None, "verdict": None, "settled_by": None, "evidence": None,
}  # fmt: skip


def json_value(dice: random.Random) -> Any:
    """What JSON can say."""
    found = value(dice)
    try:
        json.dumps(found)
    except (TypeError, ValueError, RecursionError, RuntimeError, UnicodeError):
        return dice.choice((*INTEGERS[:-1], text(dice), [], {}, None, True, 1.5))
    return found


def json_line(dice: random.Random) -> bytes:
    """A line for `each`: an object for the most part."""
    kind = dice.randrange(8)
    if kind == 0:
        return dice.randbytes(dice.randrange(60)).replace(b"\n", b"")
    if kind == 1:
        return dice.choice(
            (b"", b"[]", b"{", b'{"id": 1, "id": 2}', b'{"id": NaN}', b"[" * 50_000, b'"x"', b"\xef\xbb\xbf{}")
        )
    if kind == 2:
        return b'{"id": "' + b"x" * dice.choice((600, 2**20)) + b'"}'
    line = {"id": json_value(dice), text(dice): json_value(dice)}
    return json.dumps(line, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")


def export(dice: random.Random) -> bytes:
    """An export, with one thing wrong with it, or more."""
    lines: list[Any] = [dict(HEADER), dict(ROW, task_id=f"imported:{dice.randrange(50)}"), {"end": 1, "floor": 5}]
    for _ in range(dice.randint(0, 2)):
        line = dice.choice(lines)
        if isinstance(line, dict):
            key = dice.choice([*line, text(dice)])
            if dice.random() < 0.8:
                line[key] = dice.choice((json_value(dice), dice.choice(INTEGERS[:-1]), text(dice)))
            else:
                line.pop(key, None)
    if dice.random() < 0.2:
        lines[dice.randrange(3)] = dice.choice(("x", [], None, 7))
    if dice.random() < 0.1:
        dice.shuffle(lines)
    data = b"\n".join(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") for line in lines) + b"\n"
    return data[: dice.randrange(len(data))] if dice.random() < 0.1 else data
