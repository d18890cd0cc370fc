"""Canonical bytes tell any two values apart, and results come back as they were."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import json
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Context, Decimal, localcontext
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idemreg import tagged
from idemreg.errors import ArgumentError, ResultError
from idemreg.tagged import (
    MAX_ARGUMENTS_BYTES,
    MAX_DEPTH,
    MAX_RESULT_BYTES,
    canonical,
    decode_arguments,
    decode_result,
    digest,
    downstream_key,
    encode_arguments,
    encode_result,
)
from tests.support.names import shown

if TYPE_CHECKING:
    from collections.abc import Callable


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Item:
    sku: str
    n: int = 1


@dataclasses.dataclass
class Later:
    made: int = dataclasses.field(init=False)


class Units(int):
    pass


class Extended(Item):
    pass


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - the kind that users have

GOLDEN = json.loads((Path(__file__).parent / "golden" / "canonical.json").read_text("utf-8"))
NAMES: dict[str, Any] = {
    one.__name__: one
    for one in (Colour, Level, Access, Item, Decimal, UUID, date, datetime, time, timedelta, timezone, ZoneInfo)
} | {"PurePosixPath": PurePosixPath, "PosixPath": PosixPath, "PureWindowsPath": PureWindowsPath, "UTC": UTC}


# --- what any value may be ----------------------------------------------------------------------------------------

zones = st.sampled_from(
    [
        None,
        UTC,
        timezone(timedelta(hours=-3, minutes=-30)),
        timezone(timedelta(microseconds=1)),
        ZoneInfo("Europe/Berlin"),
    ]
)
hashables = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.sampled_from(["$", "$a", "true", "1"]),
    st.binary(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.dates(),
    st.datetimes(timezones=zones),
    st.times(),
    st.timedeltas(),
    st.sampled_from([PurePosixPath("/a"), PosixPath("b"), PureWindowsPath("C:\\c")]),
)
members: st.SearchStrategy[Any] = st.deferred(
    lambda: hashables
)  # named, for Hypothesis writes a strategy out in full otherwise
keys: st.SearchStrategy[Any] = st.deferred(
    lambda: st.one_of(members, st.tuples(members, keys), st.frozensets(members, max_size=3))
)
values = st.recursive(
    st.one_of(hashables, st.binary().map(bytearray)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(keys, max_size=3),
        st.frozensets(keys, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=12,
)


def shape(value: Any) -> object:
    """The value with its types, since == holds of 1, 1.0 and True alike."""
    kind = type(value)
    if kind is dict:
        return kind, [(shape(key), shape(item)) for key, item in value.items()]
    if kind in {list, tuple}:
        return kind, [shape(item) for item in value]
    if kind in {set, frozenset}:
        return kind, sorted(str(shape(item)) for item in value)
    if kind is datetime or kind is time:
        return kind, value.replace(tzinfo=None).isoformat(), value.fold, value.tzinfo
    return kind, repr(value)


# --- canonical bytes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda vector: vector["python"])
def test_golden_vectors_hold(vector: dict[str, str]) -> None:
    """The canonical bytes are a public format: not one of the published vectors changes."""
    content = canonical(eval(vector["python"], dict(NAMES)))  # noqa: S307 - our own file
    assert content.decode() == vector["canonical"]
    assert digest(content) == vector["sha256"]


def test_golden_vectors_are_apart() -> None:
    """No two published vectors share their bytes, and each sum is that of its bytes."""
    assert len({vector["canonical"] for vector in GOLDEN}) == len(GOLDEN) >= 40
    for vector in GOLDEN:
        assert hashlib.sha256(vector["canonical"].encode()).hexdigest() == vector["sha256"]


@given(values, values)
def test_canonical_bytes_are_equal_only_for_equal_values(one: object, other: object) -> None:
    """Values whose stored forms differ have different canonical bytes, but for the types that count as one."""
    if canonical(one) == canonical(other):
        assert merged(one) == merged(other)


def merged(value: Any) -> object:
    """The value with its types, where those that count as one are one, and no order where none counts."""
    kind = type(value)
    if kind is dict:
        return dict, sorted(str((merged(key), merged(item))) for key, item in value.items())
    if kind in {list, tuple}:
        return list, [merged(item) for item in value]
    if kind in {set, frozenset}:
        return set, sorted(str(merged(item)) for item in value)
    return (bytes, bytes(value)) if kind is bytearray else shape(value)


def test_golden_vectors_cover_every_tag() -> None:
    """Each tag of canonical bytes has a published vector, and so have the plain types."""
    tagged = [json.loads(vector["canonical"]) for vector in GOLDEN]
    tags = {one["$"][0] for one in tagged if type(one) is dict and "$" in one}
    assert tags == {
        "float", "bytes", "decimal", "uuid", "date", "time", "datetime", "timedelta", "set", "path", "dict", "enum",
        "dataclass",
    }  # fmt: skip
    assert {type(one) for one in tagged} == {type(None), bool, int, float, str, list, dict}


@given(st.dictionaries(st.text(), st.integers()))
def test_the_order_of_a_dict_does_not_count(value: dict[str, int]) -> None:
    """Two calls whose dicts differ in order only are one call."""
    assert canonical(dict(reversed(value.items()))) == canonical(value)


@given(st.dictionaries(hashables, st.integers()))
def test_the_order_of_pairs_does_not_count(value: dict[object, int]) -> None:
    """Nor does it where the keys are not text."""
    assert canonical(dict(reversed(value.items()))) == canonical(value)


def test_keys_that_nothing_tells_apart_are_refused() -> None:
    """Two NaN keys have no order but the dict's, which does not count: refused as an argument; one has its bytes."""
    one, other = float("nan"), float("nan")
    with pytest.raises(ArgumentError) as caught:
        canonical({"rates": {one: 1, other: 2}})
    assert "rates" in caught.value.message
    assert canonical({one: 1}) == canonical({other: 1}) == b'{"$":["dict",[[{"$":["float","nan"]},1]]]}'


@given(st.sets(hashables))
def test_the_order_of_a_set_does_not_count(value: set[object]) -> None:
    """A set has the same bytes however it was filled."""
    refilled: set[object] = set()
    for member in sorted(value, key=str, reverse=True):
        refilled.add(member)
    assert canonical(refilled) == canonical(value)


@given(values)
def test_a_dict_cannot_pass_for_a_tag(value: object) -> None:
    """A user's dict that copies the written form of a value has other bytes than the value."""
    copy = json.loads(canonical(value))
    if type(copy) is dict and "$" in copy:
        assert canonical(copy) != canonical(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        (float("nan"), None),
        (float("inf"), float("-inf")),
        (b"a", "YQ=="),
        ({1}, [1]),
        (Decimal("1.0"), Decimal("1.00")),
        (Decimal(1), "1"),
        ({1: "a"}, {"1": "a"}),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1)),  # noqa: DTZ001 - the naive one is the claim
        (datetime(2026, 1, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=1)))),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC"))),
        (time(1), time(1, fold=1)),
        (Colour.RED, 1),
        (Level.LOW, 1),
        (Item("a"), {"sku": "a", "n": 1}),
        (2**53, 2**53 + 1),
    ],
)
def test_lookalikes_differ(one: object, other: object) -> None:
    """What other encoders write alike has bytes of its own here."""
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize(
    ("one", "other"), [((1, (2,)), [1, [2]]), (frozenset({1}), {1}), (bytearray(b"a"), b"a"), ([(1,)], ([1],))]
)
def test_these_types_count_as_one(one: object, other: object) -> None:
    """A redelivery through JSON turns a tuple into a list, and is still the same call."""
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    "value",
    [Units(1), OrderedDict(a=1), Pair(1, 2), object(), Extended("a"), len, Later, 1j, type("Text", (str,), {})("a")],
    ids=shown,
)
def test_other_types_are_refused_with_the_way_to_them(value: object) -> None:
    """A type with no canonical bytes is an ArgumentError that names the type, the place, and the remedy."""
    with pytest.raises(ArgumentError) as caught:
        canonical({"order": {"items": [1, 2, 3, {"price": value}]}})
    assert "order.items[3].price" in caught.value.message
    assert type(value).__qualname__ in caught.value.message
    assert "exclude=" in caught.value.hint
    assert "checksum=" in caught.value.hint


def test_a_field_that_was_never_set_is_an_argument_error() -> None:
    """A dataclass with a missing attribute is refused as an argument, not by an AttributeError from inside."""
    with pytest.raises(ArgumentError):
        canonical(Later())


def test_the_context_of_decimal_does_not_count() -> None:
    """The same Decimal has the same bytes in a thread whose context writes exponents in small letters."""
    with localcontext(Context(capitals=0)):
        content, text = canonical(Decimal("1E+5")), encode_result(Decimal("1E+5"))
    assert content == canonical(Decimal("1E+5"))
    assert text == encode_result(Decimal("1E+5"))


@pytest.mark.parametrize(
    "value",
    ["\ud800", {"\ud800": 1}, [{1: "\udfff"}], 10**5_000, {"a": -(10**5_000)}],
    ids=["text", "key", "deep key", "int", "inner int"],
)
def test_what_has_no_text_is_an_argument_error(value: object) -> None:
    """Lone surrogates and numbers beyond the interpreter's digits are refused as arguments."""
    with pytest.raises(ArgumentError):
        canonical(value)


def nested(kind: type, levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value} if kind is dict else kind([value])
    return value


@pytest.mark.parametrize("kind", [list, tuple, dict, frozenset])
def test_too_deep_is_typed(kind: type) -> None:
    """Nesting without end is an ArgumentError or a ResultError, never a RecursionError."""
    with pytest.raises(ArgumentError):
        canonical(nested(kind, 600))
    with pytest.raises(ResultError):
        encode_result(nested(kind, 600))


def at_depth(frames: int, act: Callable[[], object]) -> object:
    return at_depth(frames - 1, act) if frames else act()


@pytest.mark.parametrize("kind", [list, tuple, dict, frozenset])
def test_what_was_stored_can_be_read_deep_inside_a_framework(kind: type) -> None:
    """The deepest result that is taken at the top of a stack comes back under some hundred frames of others."""
    levels = next(levels for levels in range(1_000) if not is_stored(nested(kind, levels + 1)))
    text = encode_result(nested(kind, levels))
    assert at_depth(300, lambda: decode_result(text)) == nested(kind, levels)


def is_stored(value: object) -> bool:
    try:
        encode_result(value)
    except ResultError:
        return False
    return True


@pytest.mark.parametrize("kind", [list, tuple, dict, frozenset])
@pytest.mark.parametrize("levels", [100, 101, 102])
def test_the_bound_of_depth_is_the_same_every_time(kind: type, levels: int) -> None:
    """What is stored or refused is a matter of depth alone, the same for arguments as for results."""
    is_taken = True
    try:
        canonical(nested(kind, levels))
    except ArgumentError:
        is_taken = False
    assert is_taken is is_stored(nested(kind, levels)) is (levels <= MAX_DEPTH + 1)


def test_fields_of_a_dataclass_may_hold_anything() -> None:
    """Also what is nested itself, down to the same depth."""
    assert canonical(Item("a", [{"b": (1,)}])) == canonical(Item("a", [{"b": [1]}]))  # type: ignore[arg-type]


UNSAYABLE: list[tuple[Any, type[Exception]]] = [
    (float("nan"), ValueError),
    (float("inf"), ValueError),
    (object(), TypeError),
    ({(): 1}, TypeError),
]


@pytest.mark.parametrize(("sort_keys", "text"), [(True, '{"a":[1,"é"],"b":1.5}'), (False, '{"b":1.5,"a":[1,"é"]}')])
def test_the_encoder_is_made_as_it_is_used(*, sort_keys: bool, text: str) -> None:
    """Compact, without escapes, in the asked order, by C and without; what JSON cannot say is refused."""
    value = {"b": 1.5, "a": [1, "é"]}
    for encode in (tagged._encoder(sort_keys=sort_keys), without_c(sort_keys=sort_keys)):
        assert encode(value) == text
        for bad, error in UNSAYABLE:
            with pytest.raises(error):
                encode([bad])
        assert encode([{}, [], '"', None, True]) == '[{},[],"\\"",null,true]'


def without_c(*, sort_keys: bool) -> Callable[[Any], str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tagged, "c_make_encoder", None)
        return tagged._encoder(sort_keys=sort_keys)


def test_a_tagger_is_for_arguments_or_for_results() -> None:
    """A tuple counts as a list in the one, and comes back as a tuple from the other."""
    assert tagged._Tagger(for_arguments=True).tag((1,), 0) == [1]
    assert tagged._Tagger(for_arguments=False).tag((1,), 0) == {"$": ["tuple", [1]]}


def test_a_downstream_key_is_frozen() -> None:
    """Half of a SHA-256 of registry and task: receivers remember it, so it never changes."""
    assert downstream_key("r", "t") == hashlib.sha256(b"r\nt").hexdigest()[:32]


def test_a_cycle_is_typed() -> None:
    """A value that contains itself is refused."""
    ring: list[object] = []
    ring.append({"again": ring})
    with pytest.raises(ArgumentError):
        canonical(ring)
    with pytest.raises(ResultError):
        encode_result(ring)


def test_arguments_have_a_bound() -> None:
    """More canonical bytes than the bound are refused."""
    with pytest.raises(ArgumentError):
        canonical({"blob": "x" * (64 * 1_024 * 1_024)})


def test_kept_arguments_come_back() -> None:
    """As results do; what no longer can is an ArgumentError that says what may have happened."""
    assert decode_arguments(encode_arguments([("a", 7), {"day": date(2026, 11, 22)}])) == [
        ("a", 7),
        {"day": date(2026, 11, 22)},
    ]
    with pytest.raises(ArgumentError) as caught:
        decode_arguments("{")
    assert caught.value.message == "what is kept of the arguments cannot be read back"
    assert caught.value.hint == "It was written by another version, or names a time zone that is missing here."


def test_arguments_that_cannot_be_kept_say_so_and_what_to_do() -> None:
    """By their kind or their size, which may be just the bound."""
    text = "x" * (MAX_ARGUMENTS_BYTES - 2)
    assert decode_arguments(encode_arguments(text)) == text
    for value, why in (
        (object(), "cannot be stored: "),
        (text + "x", f"has {MAX_ARGUMENTS_BYTES + 1:,} bytes; at most {MAX_ARGUMENTS_BYTES:,} are stored"),
    ):
        with pytest.raises(ArgumentError) as caught:
            encode_arguments(value)
        assert caught.value.message.startswith(f"what is kept of the arguments {why}")
        hint = "To be rerun it takes plain data. Give an excluded argument a default, or do without recover=."
        assert caught.value.hint == hint


def test_a_digest_is_sha256_in_hex() -> None:
    """The checksum is what any other tool computes."""
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- results ------------------------------------------------------------------------------------------------------


@given(values)
def test_results_come_back_equal_in_value_and_type(value: object) -> None:
    """What a job returned is what a later caller gets: values, types, order of dicts, zones, folds."""
    assert shape(decode_result(encode_result(value))) == shape(value)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-0.0"])
def test_odd_floats_come_back(text: str) -> None:
    """NaN, the infinities and minus zero come back as themselves."""
    assert str(decode_result(encode_result(float(text)))) == text


@pytest.mark.parametrize("text", ["NaN", "sNaN123", "-Infinity", "1E+5", "0E-7", "-0", "1.500"])
def test_decimals_come_back_with_their_exponent(text: str) -> None:
    """A Decimal keeps its digits, sign and exponent."""
    assert str(decode_result(encode_result(Decimal(text)))) == text


@pytest.mark.parametrize(
    "value", [Colour.RED, Level.LOW, Item("a"), Units(1), Pair(1, 2), object(), [{1: Item("a")}]], ids=shown
)
def test_results_of_own_types_are_refused(value: object) -> None:
    """Enums, dataclasses and unknown types are a ResultError that names the remedy."""
    with pytest.raises(ResultError) as caught:
        encode_result(value)
    assert "result=" in caught.value.message + caught.value.hint


def test_a_result_may_be_just_as_large_as_the_bound() -> None:
    """The bound counts bytes of stored text: 1 MiB passes, and one more is refused."""
    assert decode_result(encode_result("x" * (MAX_RESULT_BYTES - 2))) == "x" * (MAX_RESULT_BYTES - 2)
    with pytest.raises(ResultError):
        encode_result("x" * (MAX_RESULT_BYTES - 1))
    with pytest.raises(ResultError):
        encode_result("é" * (MAX_RESULT_BYTES // 2))


GARBAGE = [
    "",
    '{"$":["posix"]}',
    '{"$":["path","posix"]}',
    '{"$":["path","posix",1]}',
    '{"$":["decimal","1E+99999999999999999999"]}',
    '{"$":["datetime","2026-01-01T00:00:00",0,"/etc/passwd"]}',
    '{"$":["datetime","2026-01-01T00:00:00",0,"\\u0000"]}',
    '{"$":["datetime","2026-01-01T00:00:00",0,1e400]}',
    '{"$":["timedelta",999999999999]}',
    '{"$":null}',
    '{"$":"tuple"}',
    '{"$":{"tuple":[]}}',
    "{",
    "NaN",
    "[Infinity]",
    "[" * 100_000,
    "1" * 5_000,
    '{"$":1}',
    '{"$":[]}',
    '{"$":[[]]}',
    '{"$":["nope"]}',
    '{"$":["bytes"]}',
    '{"$":["bytes","?"]}',
    '{"$":["bytes","YQ==","more"]}',
    '{"$":["tuple",[]],"a":1}',
    '{"$":["set",[[]]]}',
    '{"$":["dict",[[1]]]}',
    '{"$":["dict",[[[],1]]]}',
    '{"$":["decimal","one"]}',
    '{"$":["uuid","1"]}',
    '{"$":["float","1"]}',
    '{"$":["date","2026-13-01"]}',
    '{"$":["datetime","2026-01-01T00:00:00",2,null]}',
    '{"$":["datetime","2026-01-01T00:00:00",0,"../../etc/passwd"]}',
    '{"$":["datetime","2026-01-01T00:00:00",0,"Europe"]}',
    '{"$":["datetime","2026-01-01T00:00:00",0,86400]}',
    '{"$":["timedelta",1e308]}',
    '{"$":["path","windows","x"]}',
    '{"$":["path","os","x"]}',
    '{"$":["tuple","ab"]}',
    '{"$":["dict",["ab"]]}',
    '{"$":["decimal",1.5]}',
    '{"$":["enum","Colour","RED"]}',
    '{"$":["dataclass","Item",{"sku":"a","n":1}]}',
    '{"$":["tuple",' * 5_000 + "[]" + "]}" * 5_000,
]


@pytest.mark.parametrize("text", GARBAGE, ids=lambda text: text[:60])
def test_a_damaged_text_is_a_result_error(text: str) -> None:
    """Whatever garbage is stored, reading it is a ResultError and nothing else."""
    with pytest.raises(ResultError):
        decode_result(text)


tags = st.sampled_from(
    [
        "float",
        "bytes",
        "bytearray",
        "tuple",
        "set",
        "frozenset",
        "dict",
        "decimal",
        "uuid",
        "date",
        "time",
        "datetime",
        "timedelta",
        "path",
        "enum",
        "x",
    ]
)
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner), st.builds(lambda tag, rest: {"$": [tag, *rest]}, tags, st.lists(inner, max_size=4))
    ),
)


@given(values, st.data())
def test_a_flipped_character_is_a_value_or_a_result_error(value: object, data: st.DataObject) -> None:
    """A stored text with one character changed, lost or cut off behind has a value or is a ResultError."""
    text = encode_result(value)
    index = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from(["", "$", '"', "[", "]", "{", "}", ",", ":", "0", "9", "-", "e", "\\", "\0"]))
    rest = data.draw(st.sampled_from([text[index + 1 :], ""]))
    with contextlib.suppress(ResultError):
        decode_result(text[:index] + other + rest)


@given(junk)
def test_hostile_tags_are_values_or_result_errors(tree: object) -> None:
    """Tags filled with anything either have a value or are a ResultError."""
    with contextlib.suppress(ResultError):
        decode_result(json.dumps(tree))


class Odd(tzinfo):
    """A time zone of one's own, which no stored form can name."""

    def utcoffset(self, _moment: datetime | None) -> timedelta:
        return timedelta(0)

    dst = utcoffset

    def tzname(self, _moment: datetime | None) -> str:
        return "odd"


def test_a_time_zone_of_ones_own_has_no_form() -> None:
    """Neither as an argument nor in a result: the error names the two that have one."""
    moment = datetime(2026, 11, 23, tzinfo=Odd())
    with pytest.raises(ArgumentError, match="zoneinfo"):
        canonical({"at": moment})
    with pytest.raises(ResultError, match="zoneinfo"):
        encode_result(moment)


def test_a_result_that_is_too_deep_cannot_be_stored() -> None:
    """It is a ResultError, and no RecursionError of the encoder."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ResultError, match="cannot be stored"):
        encode_result(deep)
