"""Arguments are bound as Python binds them, and what does not count is not in the canonical bytes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idemreg.binding import Binder
from idemreg.compiled import at_first_use
from idemreg.errors import ArgumentError
from idemreg.tagged import MAX_CANONICAL_BYTES, canonical
from tests.support.names import shown
from tests.support.processes import PATIENCE_S
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from idemreg import Registry

MISSING = object()


def nothing() -> Any:
    return locals()


def plain(a: Any, b: Any = 2) -> Any:
    return locals()


def every(a: Any, b: Any = 2, /, c: Any = 3, *rest: Any, d: Any, e: Any = 5, **more: Any) -> Any:
    return locals()


def keywords(*, a: Any, b: Any = None) -> Any:
    return locals()


def names(self: Any, bind: Any, _defaults: Any = 1, args: Any = 2, kwargs: Any = 3) -> Any:
    return locals()


async def later(a: Any, b: Any = 2) -> None: ...


FUNCTIONS: list[Callable[..., Any]] = [nothing, plain, every, keywords, names, lambda x, y=1: locals()]


@given(
    st.sampled_from(FUNCTIONS),
    st.lists(st.integers(), max_size=5),
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "d", "e", "self", "bind", "args", "x", "more"]), st.integers(), max_size=4
    ),
)
def test_binding_is_what_python_does(function: Callable[..., Any], args: list[int], kwargs: dict[str, int]) -> None:
    """Every call is bound, or refused with a TypeError, exactly as Python itself binds it."""
    binder = Binder(function)
    try:
        expected = function(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError):
            binder.bind(*args, **kwargs)
    else:
        assert binder.bind(*args, **kwargs) == expected


# What a parameter may be, in the order in which Python takes them.
POSITIONAL, EITHER, REST, KEYWORD, MORE = range(5)


@st.composite
def signatures(draw: st.DrawFn) -> str:
    """The parameters of any function: every kind, with and without defaults."""
    kinds = sorted(draw(st.lists(st.sampled_from([POSITIONAL, EITHER, KEYWORD]), max_size=4)))
    words = []
    has_default = False
    for index, kind in enumerate(kinds):
        # Behind a default Python takes no positional parameter without one.
        has_default = (has_default and kind is not KEYWORD) or draw(st.booleans())
        words.append((kind, "abcd"[index] + (f"={index + 10}" if has_default else "")))
    head = [word for kind, word in words if kind is POSITIONAL]
    head += ["/"] if head else []
    head += [word for kind, word in words if kind is EITHER]
    keyword = [word for kind, word in words if kind is KEYWORD]
    if draw(st.booleans()):
        head.append("*rest")
    elif keyword:
        head.append("*")
    return ", ".join([*head, *keyword, *(["**more"] if draw(st.booleans()) else [])])


@given(
    signatures(),
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e", "rest", "more"]), st.integers(), max_size=3),
)
def test_every_signature_is_bound_as_python_does(head: str, args: list[int], kwargs: dict[str, int]) -> None:
    """Whatever the parameters: names, values, defaults, and the text of the TypeError are those of the call itself.

    The names come in the order of the signature. (inspect's own `bind` of Python 3.11 refuses a keyword for **more that
    has the name of a positional-only parameter with a default; where it binds, it agrees.)
    """
    scope: dict[str, Any] = {}
    exec(f"def job({head}): return locals()", scope)  # noqa: S102 - made above
    job = scope["job"]
    binder = Binder(job)
    try:
        expected = job(*args, **kwargs)
    except TypeError as error:
        with pytest.raises(TypeError, match=f"^{re.escape(str(error))}$"):
            binder.bind(*args, **kwargs)
        return
    assert binder.bind(*args, **kwargs) == expected
    assert list(binder.bind(*args, **kwargs)) == list(inspect.signature(job).parameters)
    with contextlib.suppress(TypeError):
        arguments = inspect.signature(job).bind(*args, **kwargs)
        arguments.apply_defaults()
        assert expected == arguments.arguments


def test_a_coroutine_function_is_bound_and_not_called() -> None:
    """Binding the arguments of an async job makes no coroutine."""
    assert Binder(later).bind(1) == {"a": 1, "b": 2}


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"a": 1}), ((1,), {"z": 1})])
def test_a_bad_call_names_the_function(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The TypeError of a bad call reads as Python's own, with the user's function in it."""
    with pytest.raises(TypeError) as expected:
        plain(*args, **kwargs)
    with pytest.raises(TypeError) as caught:
        Binder(plain).bind(*args, **kwargs)
    assert str(caught.value) == str(expected.value)


def test_defaults_are_the_very_objects() -> None:
    """A default is handed on by identity, as Python does."""
    shared: list[int] = []

    def job(a: Any = shared, *, b: Any = MISSING) -> None: ...

    assert Binder(job).bind()["a"] is shared
    assert Binder(job).bind()["b"] is MISSING


def test_a_wrapped_function_keeps_its_parameters() -> None:
    """A function behind functools.wraps is bound by the signature that it shows."""

    @functools.wraps(plain)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    assert Binder(wrapper).bind(1) == {"a": 1, "b": 2}


# --- canonical bytes ----------------------------------------------------------------------------------------------


def content(
    function: Callable[..., Any], *args: Any, exclude: tuple[str, ...] = ("self", "cls"), **kwargs: Any
) -> bytes:
    binder = Binder(function, exclude)
    return binder.canonical(binder.bind(*args, **kwargs))


def test_the_bytes_are_those_of_a_dict_of_the_arguments() -> None:
    """Anyone can compute the checksum from the arguments by name."""
    assert content(plain, 1, 3) == canonical({"a": 1, "b": 3})
    assert content(every, 1, 9, 8, 7, d=6, x=5) == canonical(
        {"a": 1, "b": 9, "c": 8, "rest": [7], "d": 6, "more": {"x": 5}}
    )


def test_how_an_argument_is_given_does_not_count() -> None:
    """Positional or by keyword, a call is the same call."""
    assert content(plain, 1, 3) == content(plain, b=3, a=1)


def test_an_added_optional_parameter_changes_nothing() -> None:
    """A redelivery to a newer version of the function has the checksum that it had."""

    def newer(a: Any, *rest: Any, b: Any = 2, c: Any = (), **more: Any) -> None: ...

    assert content(newer, 1) == content(plain, 1) == canonical({"a": 1})


@pytest.mark.parametrize(
    ("default", "equal"),
    [
        (None, None),
        (2, 2),
        (10**30, 10**30),
        (float("nan"), float("nan")),
        ((), []),
        ([], ()),
        ((1, "a"), [1, "a"]),
        ({"a": 1}, {"a": 1}),
        (frozenset(), set()),
        (b"", bytearray()),
    ],
    ids=shown,
)
def test_an_argument_equal_to_its_default_is_left_out(default: object, equal: object) -> None:
    """Giving the default's value counts as giving nothing; equal means equal canonical bytes."""

    def job(a: object = default) -> None: ...

    assert content(job, equal) == content(job) == b"{}"


@pytest.mark.parametrize(
    ("default", "other"),
    [(1, True), (1, 1.0), (0.0, -0.0), (None, 0), (None, ""), ((), set()), (Decimal(1), Decimal("1.0")), ("a", b"a")],
    ids=shown,
)
def test_an_argument_like_its_default_counts(default: object, other: object) -> None:
    """What Python calls equal but is written otherwise is another argument."""

    def job(a: object = default) -> None: ...

    assert content(job, other) == canonical({"a": other})


def with_defaults(a: Any = 1, b: Any = "x", c: Any = None, *, d: Any = True, e: Any = 0.0, f: Any = ()) -> Any:
    return locals()


ANY_VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.floats(), st.text('xé\ud800"\\\n%{', max_size=3),
    st.just(10**5_000), st.just([1]), st.just(()), st.just({}), st.just(MISSING), st.just(b"x"),
)  # fmt: skip


@given(st.sampled_from([nothing, plain, every, keywords, names, with_defaults]), st.data())
def test_what_is_written_out_is_what_json_says(function: Callable[..., Any], data: st.DataObject) -> None:
    """Texts and numbers are written by compiled code, all else by the encoder: the same bytes, or the same error."""
    binder = Binder(function)
    names = ["a", "b", "c", "d", "e", "f", "x", "self", "bind", "args"]
    args = data.draw(st.lists(ANY_VALUE, max_size=5))
    kwargs = data.draw(st.dictionaries(st.sampled_from(names), ANY_VALUE, max_size=5))
    try:
        bound = binder.bind(*args, **kwargs)
    except TypeError:
        return

    def told(canonical: Callable[[dict[str, object]], bytes]) -> bytes | str:
        try:
            return canonical(bound)
        except ArgumentError as error:
            return str(error)

    assert told(binder.canonical) == told(binder._counted.canonical)


def test_a_text_may_be_long_but_not_too_long() -> None:
    """The bound of canonical bytes holds for what is written out as well."""
    head, tail = b'{"a":"', b'"}'
    room = MAX_CANONICAL_BYTES - len(head) - len(tail)
    assert len(content(plain, "x" * room)) == MAX_CANONICAL_BYTES
    with pytest.raises(ArgumentError):
        content(plain, "x" * (room + 1))


def test_a_default_that_was_changed_later_still_counts_as_it_was() -> None:
    """A mutable default is written down at decoration, so a later change moves no checksum."""
    shared: list[int] = []

    def job(a: Any = shared) -> None: ...

    binder = Binder(job)
    shared.append(1)
    assert binder.canonical(binder.bind()) == b"{}"
    assert binder.canonical(binder.bind([])) == b"{}"
    assert binder.canonical(binder.bind([1])) == canonical({"a": [1]})


@pytest.mark.parametrize("default", ["\ud800", 10**5_000, MISSING], ids=["surrogate", "digits", "sentinel"])
def test_a_default_without_a_stored_form_is_the_functions_own(default: object) -> None:
    """It counts for nothing, and is not kept: a rerun takes that of then."""

    def job(a: Any = default) -> None: ...

    binder = Binder(job)
    bound = binder.bind(default)
    assert binder.canonical(bound) == b"{}"
    assert binder.to_keep(bound) == {}


def test_a_sentinel_default_counts_by_identity() -> None:
    """A default without canonical bytes is left out when it is that object, and refused when it is another."""

    def job(a: Any = MISSING) -> None: ...

    assert content(job) == b"{}"
    assert content(job, None) == canonical({"a": None})
    with pytest.raises(ArgumentError):
        content(job, object())


@pytest.mark.parametrize("default", [None, [], [0], MISSING], ids=shown)
def test_a_refused_argument_is_named(default: object) -> None:
    """The error leads from the argument's name to the value, whatever the default is."""

    def job(order: object = default) -> None: ...

    with pytest.raises(ArgumentError) as caught:
        content(job, [object()])
    assert "order[0]" in caught.value.message


# --- exclude ------------------------------------------------------------------------------------------------------


def test_self_and_cls_are_left_out() -> None:
    """A method's object needs no canonical bytes, and another object is no other call."""

    def method(self: Any, a: Any) -> None: ...
    def class_method(cls: Any, a: Any) -> None: ...

    assert content(method, object(), 1) == content(class_method, int, 1) == canonical({"a": 1})


def test_excluded_arguments_do_not_count() -> None:
    """A connection or a host's own object is named in exclude= and never written."""

    def job(a: Any, connection: Any = None) -> None: ...

    assert content(job, 1, object(), exclude=("connection",)) == canonical({"a": 1})


def test_an_injected_keyword_is_left_out_of_the_rest() -> None:
    """What a queue injects through **kwargs is excluded by its name, and the rest still counts."""

    def job(a: Any, **more: Any) -> None: ...

    assert content(job, 1, task=object(), exclude=("task",)) == canonical({"a": 1})
    assert content(job, 1, task=object(), b=2, exclude=("task",)) == canonical({"a": 1, "more": {"b": 2}})


def test_bound_arguments_are_left_as_they_are() -> None:
    """Computing the bytes takes nothing out of what the job will see."""

    def job(**more: Any) -> None: ...

    binder = Binder(job, ("task",))
    bound = binder.bind(task=1, a=2)
    binder.canonical(bound)
    assert bound == {"more": {"task": 1, "a": 2}}


def test_an_unknown_name_in_exclude_is_refused() -> None:
    """A slip in exclude= shows at decoration, where the function takes no such keyword."""
    with pytest.raises(ValueError):
        Binder(plain, ("conection",))


# --- what is no job -----------------------------------------------------------------------------------------------


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class Class:
    pass


@pytest.mark.parametrize("function", [generator, async_generator, Class, int, type, 7, None], ids=shown)
def test_what_is_no_job_is_refused(function: Any) -> None:
    """Generators, classes and what cannot be called are refused at decoration."""
    with pytest.raises(TypeError):
        Binder(function)


def test_a_function_that_does_not_tell_its_parameters_is_refused(registry: Registry) -> None:
    """Some of C have no signature: a TypeError at decoration, and nothing is stored."""
    with pytest.raises(TypeError, match="does not tell its parameters"):
        registry.idempotent("t")(max)
    assert registry.count() == {}


def test_what_is_made_at_first_use_is_no_wait_for_others() -> None:
    """A child that is forked while a thread makes it has that thread no more, and must not wait for it."""
    begun, goes_on = threading.Event(), threading.Event()

    class Thing:
        def __init__(self, *, waits: bool) -> None:
            self.waits = waits

        @at_first_use
        def made(self) -> object:
            if self.waits:
                begun.set()
                goes_on.wait(PATIENCE_S)
            return object()

    slow, quick = Thing(waits=True), Thing(waits=False)
    others = [threading.Thread(target=lambda: slow.made), threading.Thread(target=lambda: quick.made)]
    others[0].start()
    assert begun.wait(PATIENCE_S)
    others[1].start()
    until(lambda: "made" in vars(quick))
    assert "made" not in vars(slow)
    goes_on.set()
    for thread in others:
        thread.join(PATIENCE_S)
    assert slow.made is slow.made
