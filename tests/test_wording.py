"""What people are told by the rooms of ids and checksums, word for word.

No other test matches a message, and no caller should. But people read them, and a slip in one (the wrong field, a None)
shows nowhere else. So they stand in a file of their own, where a change of one is seen.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from idemreg.counted import counted, word_for
from idemreg.errors import IdemregError
from idemreg.model import Liveness, is_durable
from idemreg.owner import OwnerInfo
from idemreg.tagged import canonical, decode_result, encode_result
from idemreg.template import Template, check_task_id

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS: dict[str, list[str]] = json.loads((Path(__file__).parent / "golden" / "wording.json").read_text("utf-8"))


class Own:
    """A class of a user's."""


@dataclasses.dataclass
class Later:
    made: int = dataclasses.field(init=False)


class Zone(tzinfo):
    """A user's, of which nobody knows what it means tomorrow."""

    def utcoffset(self, _when: datetime | None) -> timedelta:
        return timedelta(0)

    dst = utcoffset

    def tzname(self, _when: datetime | None) -> str:
        return "Z"


class KeyedZone(Zone):
    key = "Europe/Berlin"


KeyedZone.__module__ = Zone.__module__ = Own.__module__ = Later.__module__ = (
    "shop"  # wherever pytest has found this file
)


def render(literal: str, **arguments: object) -> str:
    return check_task_id(Template(literal, arguments).render(arguments))


CASES: dict[str, Callable[[], Any]] = {
    "id of another type": lambda: check_task_id(7),
    "empty id": lambda: check_task_id(""),
    "id with a space": lambda: check_task_id(" a"),
    "id with a space beyond ASCII": lambda: check_task_id("\u00a0a"),
    "id with a control character": lambda: check_task_id("a\n" + "b" * 100),
    "long id": lambda: check_task_id("x" * 513),
    "long id beyond ASCII": lambda: check_task_id("é" * 257),
    "id of two forms": lambda: check_task_id("e\u0301"),
    "field of None": lambda: render("{x}", x=None),
    "empty field": lambda: render("{x}", x=""),
    "field of NaN": lambda: render("{x}", x=Decimal("NaN")),
    "field of many digits": lambda: render("{x}", x=10**5_000),
    "field of a class": lambda: render("{x}", x=Own()),
    "field that is not there": lambda: render("{x.y}", x=1),
    "template with a format": lambda: Template("{x:>5}", ["x"]),
    "template with a conversion": lambda: Template("{x!r}", ["x"]),
    "template with a slip": lambda: Template("{x.}", ["x"]),
    "template of another parameter": lambda: Template("{z}", ["y", "x"]),
    "template of no parameter": lambda: Template("{z}", []),
    "template without a separator": lambda: Template("{x}{y}", ["x", "y"]),
    "argument of a class": lambda: canonical(Own()),
    "argument of a builtin class": lambda: canonical(1j),
    "argument deep inside": lambda: canonical({"a": [1, {"b": {3: Own()}}]}),
    "argument as a key": lambda: canonical({"a": {Own(): 1}}),
    "argument beside a key of text": lambda: canonical({"a": {1: 2, "k": Own()}}),
    "argument in a set": lambda: canonical([{Own()}]),
    "argument with a field never set": lambda: canonical([Later()]),
    "argument with like keys": lambda: canonical({float("nan"): 1, -float("nan"): 2}),
    "argument in a zone of a user's": lambda: canonical([datetime(2026, 11, 23, tzinfo=Zone())]),
    "argument in a zone with a key": lambda: canonical([datetime(2026, 11, 23, tzinfo=KeyedZone())]),
    "argument without text": lambda: canonical("\ud800"),
    "argument too deep": lambda: canonical(deep(200)),
    "argument too large": lambda: canonical("x" * 2**26),
    "result of a class": lambda: encode_result(Own()),
    "result without text": lambda: encode_result("\ud800"),
    "result too deep": lambda: encode_result(deep(200)),
    "result too large": lambda: encode_result("x" * 2**20),
    "stored result of no JSON": lambda: decode_result("NaN"),
    "stored result with more behind it": lambda: decode_result("1 2"),
    "stored result of another type": lambda: decode_result('{"$":["tuple","ab"]}'),
    "durability": lambda: is_durable("none"),
}


def deep(levels: int) -> Any:
    value: Any = ()
    for _ in range(levels):
        value = (value,)
    return value


def told(error: BaseException) -> list[str]:
    """Its class, its words, its hint and task_id where it has them; then those of its cause."""
    own = [type(error).__name__, str(error)]
    if isinstance(error, IdemregError):
        own += [error.hint, str(error.task_id)]
    return own if error.__cause__ is None else [*own, *told(error.__cause__)]


@pytest.mark.parametrize("case", CASES)
def test_people_are_told_just_this(case: str) -> None:
    """The error with its hint, and its cause."""
    with pytest.raises((IdemregError, ValueError)) as caught:
        CASES[case]()
    assert told(caught.value) == WORDS[case]


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (OwnerInfo(7, Liveness.DEAD, reason="its lock is free"), "owner 7: its lock is free"),
        (
            OwnerInfo(7, Liveness.ALIVE, 12, "pi", "python", "its lock is held"),
            "process 12 on pi (python): its lock is held",
        ),
    ],
)
def test_an_owner_is_described(owner: OwnerInfo, words: str) -> None:
    """By its process where that is known, else by its number; then why."""
    assert owner.describe() == words


@pytest.mark.parametrize(("word", "is_it"), [("full", True), ("normal", False)])
def test_the_words_of_durability(word: str, *, is_it: bool) -> None:
    """There are two."""
    assert is_durable(word) is is_it


def test_what_is_counted_is_told_in_its_number() -> None:
    """One task, and none or several tasks; where a word has a plural of its own, that."""
    assert [counted(number, "task") for number in (0, 1, 1_000)] == ["0 tasks", "1 task", "1,000 tasks"]
    assert [counted(number, "process", "processes") for number in (1, 2)] == ["1 process", "2 processes"]
    assert [word_for(seconds, "second") for seconds in (0.5, 1.0)] == ["seconds", "second"]
