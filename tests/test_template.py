"""Task ids are well formed, and a template never gives two calls one id by accident."""

from __future__ import annotations

import contextlib
import enum
from datetime import UTC, date, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idemreg.errors import TaskIdError
from idemreg.template import MAX_TASK_ID_BYTES, Template, check_task_id
from tests.support.names import shown

# Few letters, and all that a template or its escapes are made of, so that chance meetings are frequent.
awkward = st.text(alphabet=":%-/ 1230ADaé\u2013\u2014", min_size=1, max_size=6)
separators = st.sampled_from([":", "%", "-", "--", ":%", "%:", "/", " ", "\u2013", "\u2014", "a:", "3-", ": "])


class Name(str):
    __slots__ = ()


class Colour(enum.StrEnum):
    RED = "red"


class Day(date):
    """May have another text, or another day, than the date that it is made of."""


@pytest.mark.parametrize("task_id", ["a", "coupon:7:2026-11-23", "x" * MAX_TASK_ID_BYTES, "Größe 7", "👩‍🚀", "日本"])
def test_good_task_ids_are_given_back(task_id: str) -> None:
    """A task_id of printable NFC text comes back as it is."""
    assert check_task_id(task_id) is task_id


@pytest.mark.parametrize(
    "task_id",
    [
        None,
        7,
        b"a",
        Name("a"),
        Colour.RED,
        "",
        " ",
        " a",
        "a ",
        "\u00a0a",
        "a\u3000",
        "a\nb",
        "a\x00",
        "a\x7f",
        "a\x85b",
        "a\u2028b",
        "a\u2029b",
        "a\ud800",
        "e\u0301",
        "x" * (MAX_TASK_ID_BYTES + 1),
        "é" * (MAX_TASK_ID_BYTES // 2 + 1),
    ],
    ids=shown,
)
def test_bad_task_ids_are_refused(task_id: object) -> None:
    """What is no text, is empty, too long, not NFC, or holds what cannot be seen, never becomes a task_id."""
    with pytest.raises(TaskIdError) as caught:
        check_task_id(task_id)
    assert caught.value.hint


def test_a_text_of_two_forms_is_told_of_nfc() -> None:
    """The hint of a text that is not normalised names the form that is."""
    with pytest.raises(TaskIdError) as caught:
        check_task_id("cafe\u0301")
    assert "NFC" in caught.value.hint


@given(st.text())
def test_a_task_id_passes_or_is_a_task_id_error(text: str) -> None:
    """Any text is given back or refused with the one error."""
    with contextlib.suppress(TaskIdError):
        assert check_task_id(text) is text


# --- templates ----------------------------------------------------------------------------------------------------


@given(st.data())
def test_no_two_sets_of_texts_share_an_id(data: st.DataObject) -> None:
    """Whatever the separators, distinct texts make distinct ids."""
    between = data.draw(st.lists(separators, min_size=1, max_size=3))
    names = [f"f{number}" for number in range(len(between) + 1)]
    literal = "job:{f0}" + "".join(f"{one}{{{name}}}" for one, name in zip(between, names[1:], strict=True))
    try:
        template = Template(literal, names)
    except ValueError:
        return  # a separator that could not keep the fields apart was refused
    texts = st.tuples(*[awkward] * len(names))
    one, other = data.draw(texts), data.draw(texts)
    if one != other:
        ids = [template.render(dict(zip(names, texts, strict=True))) for texts in (one, other)]
        assert ids[0] != ids[1]


@given(awkward, awkward, awkward, awkward)
@example("1", "2:3", "1:2", "3")
@example("1", "%3A", "1", ":")
def test_a_stray_separator_moves_nothing(a: str, b: str, c: str, d: str) -> None:
    """Two fields around a colon are never read with the border elsewhere."""
    template = Template("coupon:{a}:{b}", ["a", "b"])
    if (a, b) != (c, d):
        assert template.render({"a": a, "b": b}) != template.render({"a": c, "b": d})


def test_an_escape_beyond_ascii_does_not_run_into_the_next_text() -> None:
    """A blank before digits and a dash of Unicode number 2013 are told apart where both separate fields."""
    template = Template("x:{a} {b}\u2013{c}", ["a", "b", "c"])
    rest = {"b": "b", "c": "c"}
    assert template.render({"a": " 13", **rest}) != template.render({"a": "\u2013", **rest})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("abc", "abc"),
        ("a b", "a b"),
        (7, "7"),
        (-7, "-7"),
        (2**70, "1180591620717411303424"),
        (True, "True"),
        (Decimal("1.50"), "1.50"),
        (date(2026, 11, 23), "2026-11-23"),
        (datetime(2026, 11, 23, 3, tzinfo=UTC), "2026-11-23T03%3A00%3A00+00%3A00"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("50%", "50%25"),
        ("a:b", "a%3Ab"),
        ("a:b%", "a%3Ab%25"),
        (2**4_096 - 1, str(2**4_096 - 1)),
    ],
    ids=shown,
)
def test_values_with_one_text_are_written(value: object, text: str) -> None:
    """Text, whole numbers, decimals, dates and UUIDs have the one text that anybody expects."""
    assert Template("job:{x}:{y}", ["x", "y"]).render({"x": value, "y": "z"}) == f"job:{text}:z"


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        float("nan"),
        1.5,
        [],
        {},
        (1,),
        b"a",
        object(),
        Name("a"),
        Colour.RED,
        Decimal("NaN"),
        Decimal("-Infinity"),
        10**5_000,
        2**4_096,
        Day(2026, 11, 23),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_without_one_text_are_refused(value: object) -> None:
    """None, empty text, fractions and objects never become part of a task_id; the error names the field."""
    with pytest.raises(TaskIdError) as caught:
        check_task_id(Template("job:{order}", ["order"]).render({"order": value}))
    assert "{order}" in caught.value.message


def test_an_escape_beyond_ascii_is_written_byte_by_byte() -> None:
    """A separator of several bytes is escaped as in an address: each byte by its two digits, and nothing between."""
    assert Template("{a}\u2013{b}", ["a", "b"]).render({"a": "x\u2013y", "b": "z"}) == "x%E2%80%93y\u2013z"


def test_fields_may_go_on_by_attribute_and_index() -> None:
    """Plain access into an argument works as in str.format."""
    template = Template("ship:{order.id}:{items[0]}:{meta[key]}", ["order", "items", "meta"])
    arguments = {"order": SimpleNamespace(id=7), "items": ["a"], "meta": {"key": "b"}}
    assert template.render(arguments) == "ship:7:a:b"


@pytest.mark.parametrize(
    ("literal", "arguments"),
    [
        ("a:{x.id}", {"x": 1}),
        ("a:{x[0]}", {"x": []}),
        ("a:{x[k]}", {"x": {}}),
        ("a:{x[0]}", {"x": 1}),
        ("a:{x}", {}),
        ("a:{x.id}", {"x": SimpleNamespace(id=None)}),
    ],
)
def test_a_field_that_cannot_be_read_is_a_task_id_error(literal: str, arguments: dict[str, Any]) -> None:
    """A missing attribute, key or index stops the call with the field's name."""
    with pytest.raises(TaskIdError) as caught:
        Template(literal, ["x"]).render(arguments)
    assert "{x" in caught.value.message


@pytest.mark.parametrize(
    "literal",
    [
        "{x}{y}",
        "{x!r}",
        "{x:>5}",
        "{x:{y}}",
        "{}",
        "{0}",
        "{z}",
        "{x",
        "x}",
        "{x.}",
        "{x[}",
        "{x[]}",
        "{x[0]y}",
        "{x}%{y}",
        "{ x }",
    ],
)
def test_templates_that_lose_or_guess_are_refused(literal: str) -> None:
    """A template that could give two calls one id, or names no parameter, is refused at decoration."""
    with pytest.raises(ValueError):
        Template(literal, ["x", "y"])


@pytest.mark.parametrize(("literal", "why"), [("a{", "Single '{'"), ("a}", "Single '}'"), ("a{b!rr}", "conversion")])
def test_what_is_no_template_is_told_with_the_way_to_write_it(literal: str, why: str) -> None:
    """What `str.format` has against it, of which text, and how a brace is meant as one."""
    with pytest.raises(ValueError, match=why) as refused:
        Template(literal, frozenset())
    assert str(refused.value).startswith(f"{literal!r} is no template (")
    assert str(refused.value).endswith("): write {name} for a field, {{ or }} for a brace of the text")


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ("100%:{a}%%/{b}%d", "100%:1%%/2%d"),
        ("%s{a}", "%s1"),
        ('\'"{a}\\n\\{b}\n\0{{}}"""', '\'"1\\n\\2\n\0{}"""'),
        ("é👩‍🚀{a}日-{b}", "é👩‍🚀1日-2"),
    ],
    ids=shown,
)
def test_the_text_of_a_template_stands_as_it_is(literal: str, text: str) -> None:
    """Whatever characters it has."""
    assert Template(literal, ["a", "b"]).render({"a": 1, "b": 2}) == text


def test_each_of_many_separators_is_escaped() -> None:
    """In whatever field it comes; what only looks like one is left as it is."""
    literal = "{a}:{b}/{c}]{d}^{e}-{f}.{g}"
    between = ":/]^-."
    rendered = Template(literal, "abcdefg").render(
        {name: f"{one}x" for name, one in zip("abcdefg", between + "+", strict=True)}
    )
    assert rendered == "%3Ax:%2Fx/%5Dx]%5Ex^%2Dx-%2Ex.+x"


def test_a_template_without_fields_is_one_task() -> None:
    """A template without fields names one task for every call, and braces may be doubled."""
    assert Template("nightly", []).render({}) == "nightly"
    assert Template("a{{b}}", ["x"]).render({"x": 1}) == "a{b}"


def test_a_template_keeps_its_literal() -> None:
    """The text as given stays readable, for a registry that refuses it twice."""
    assert Template("a:{x}", ["x"]).literal == "a:{x}"


def test_a_number_and_its_digits_share_an_id() -> None:
    """1 and "1" are one task; their checksums differ, so the second is a mismatch and not a second run."""
    template = Template("a:{x}", ["x"])
    assert template.render({"x": 1}) == template.render({"x": "1"})
