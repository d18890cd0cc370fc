"""Results of a job's own types go into a row and come back, and only by the classes that were named."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idemreg.codec import Codec, DataclassCodec, as_codec, load_result, store_result
from idemreg.errors import ResultError
from idemreg.tagged import encode_result
from tests.support.names import shown


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass(frozen=True)
class Item:
    sku: str
    price: Decimal = Decimal(0)
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Order:
    items: list[Item]
    notes: dict[Any, Any] = dataclasses.field(default_factory=dict)
    parent: Order | None = None


CLASSES = DataclassCodec(Order, Item, Colour, Access)

items = st.builds(Item, st.text(), st.decimals(allow_nan=False), st.sampled_from(Colour))
plain = st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.dates(), items, st.sampled_from(Access))
orders = st.builds(
    Order,
    st.lists(items, max_size=3),
    st.dictionaries(plain, st.one_of(plain, st.frozensets(items), st.tuples(plain, items)), max_size=3),
)


@given(st.one_of(orders, st.lists(orders, max_size=2), st.builds(Order, st.just([]), st.just({}), orders)))
def test_registered_classes_come_back(value: object) -> None:
    """Dataclasses and Enums nested in each other, in lists, keys, sets and tuples come back equal."""
    assert load_result(store_result(value, CLASSES), CLASSES) == value


@pytest.mark.parametrize("value", [Access.READ, Access.READ | Access.WRITE, Access(0)], ids=shown)
def test_flags_come_back(value: Access) -> None:
    """A flag comes back, also as a combination and as none at all."""
    assert load_result(store_result(value, CLASSES), CLASSES) is value


def test_a_dict_cannot_pass_for_an_instance() -> None:
    """A plain dict that copies the stored form of an instance comes back as a dict."""
    stored = CLASSES.encode(Item("a"))
    assert load_result(store_result(stored, CLASSES), CLASSES) == stored
    copy = {"class": "Item", "fields": [["sku", "a"]]}
    assert load_result(store_result(copy, CLASSES), CLASSES) == copy


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Its __init__ makes something else of what it is given, and more than its fields."""

    cents: int
    half: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cents", self.cents * 100)
        object.__setattr__(self, "half", self.cents // 2)
        object.__setattr__(self, "log", [])


def test_post_init_is_not_applied_twice() -> None:
    """An instance comes back with the fields that it had, and with what __post_init__ makes besides."""
    codec = DataclassCodec(Prepared)
    value = Prepared(1)
    back = load_result(store_result(value, codec), codec)
    assert back == value
    assert (back.cents, back.half, back.log) == (100, 50, [])


@dataclasses.dataclass
class Stranger:
    x: int = 1


@pytest.mark.parametrize(
    "value", [Stranger(), [Order([], {"a": Stranger()})], object()], ids=lambda one: type(one).__name__
)
def test_classes_that_were_not_named_are_refused(value: object) -> None:
    """Only registered classes are stored, however deep the other one hides."""
    with pytest.raises(ResultError):
        store_result(value, CLASSES)


def test_a_row_of_an_unknown_class_is_a_result_error() -> None:
    """A class that is no longer registered is not looked for anywhere else."""
    text = store_result(Item("a"), CLASSES)
    with pytest.raises(ResultError):
        load_result(text, DataclassCodec(Order))


def test_a_class_that_changed_is_a_result_error() -> None:
    """A stored instance that lacks a field that the class now requires cannot come back half made."""
    before = dataclasses.make_dataclass("Parcel", ["a"])
    after = dataclasses.make_dataclass("Parcel", ["a", "b"])
    text = store_result(before(1), DataclassCodec(before))
    with pytest.raises(ResultError) as caught:
        load_result(text, DataclassCodec(after))
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize(
    "data",
    [
        {"class": "Item"},
        {"class": [], "fields": []},
        {"class": "Item", "fields": 1},
        {"pairs": [[1]]},
        {"x": [], "y": 1},
        {},
    ],
    ids=shown,
)
def test_a_damaged_row_is_a_result_error(data: object) -> None:
    """Stored data that the codec cannot have written is a ResultError."""
    with pytest.raises(ResultError):
        load_result(encode_result(data), CLASSES)


junk = st.recursive(
    st.one_of(
        st.none(), st.integers(), st.text(max_size=3), st.sampled_from(["Item", "Order", "Colour", "RED", "sku"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2).map(tuple),
        st.builds(lambda name, fields: {"class": name, "fields": fields}, inner, inner),
        st.dictionaries(st.sampled_from(["class", "fields", "pairs", "set", "frozenset", "x"]), inner, max_size=2),
    ),
    max_leaves=8,
)


@given(junk)
def test_any_stored_data_is_a_value_or_a_result_error(data: object) -> None:
    """Whatever the row holds, the codec gives a value or a ResultError, and makes nothing but the named classes."""
    with contextlib.suppress(ResultError):
        load_result(encode_result(data), CLASSES)


class Cents:
    """A codec as a user would write it."""

    def encode(self, value: Any, /) -> object:
        return int(value * 100)

    def decode(self, data: Any, /) -> Any:
        return Decimal(data) / 100


class Broken:
    def encode(self, value: Any, /) -> object:
        raise LookupError

    decode = encode


def test_a_codec_of_the_user_is_asked() -> None:
    """A codec's data is what is stored, and what it gets back."""
    codec = Cents()
    assert store_result(Decimal("1.25"), codec) == "125"
    assert load_result("125", codec) == Decimal("1.25")


def test_a_failing_codec_is_a_result_error_with_its_cause() -> None:
    """An exception of the user's codec is told as a ResultError, and stays attached."""
    for act in (lambda: store_result(1, Broken()), lambda: load_result("1", Broken())):
        with pytest.raises(ResultError) as caught:
            act()
        assert isinstance(caught.value.__cause__, LookupError)


def test_without_a_codec_results_are_tagged_json() -> None:
    """No codec means the tagged form and nothing else."""
    assert store_result((1, date(2026, 1, 1)), None) == encode_result((1, date(2026, 1, 1)))
    assert load_result(encode_result((1,)), None) == (1,)


def test_the_option_may_be_a_codec_or_classes() -> None:
    """result= takes a codec, a class, or a tuple of classes, and leaves None alone."""
    codec = Cents()
    assert as_codec(None) is None
    assert as_codec(codec) is codec
    assert isinstance(codec, Codec)
    for option in (Item, Colour, (Item, Colour)):
        assert isinstance(as_codec(option), DataclassCodec)


@pytest.mark.parametrize("option", [1, "Item", int, (Item, int), (Item, "x"), (), [Item], Cents, Item("a")], ids=shown)
def test_any_other_option_is_a_type_error(option: object) -> None:
    """What is neither a codec nor classes is refused at decoration."""
    with pytest.raises(TypeError):
        as_codec(option)


class Extended(Item):
    """No dataclass itself: what it holds besides the fields would be lost."""


@dataclasses.dataclass
class Listed(list):  # type: ignore[type-arg] # as users write it
    note: str = ""


@pytest.mark.parametrize(
    "classes", [(1,), ("Item",), (int,), (Item("a"),), (Item, Item), (Extended,), (Listed,)], ids=shown
)
def test_a_codec_takes_classes_only(classes: tuple[Any, ...]) -> None:
    """DataclassCodec refuses what is no dataclass or Enum, what is more than its fields, and two of one name."""
    with pytest.raises(TypeError):
        DataclassCodec(*classes)
