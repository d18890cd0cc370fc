"""Arguments by name, and the canonical bytes of them, prepared once at decoration.

`inspect.Signature.bind` takes 2 microseconds a call; a function compiled with the same parameters takes 0.1.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from idemreg.errors import ArgumentError
from idemreg.tagged import MAX_CANONICAL_BYTES, PLAIN_SCALARS, PLAIN_TEXTS, canonical, encode_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

__all__ = ["Binder"]

_Parameter = inspect.Parameter
_POSITIONAL_ONLY: Final = _Parameter.POSITIONAL_ONLY
_VAR_POSITIONAL: Final = _Parameter.VAR_POSITIONAL
_KEYWORD_ONLY: Final = _Parameter.KEYWORD_ONLY
_VAR_KEYWORD: Final = _Parameter.VAR_KEYWORD

_STARS: Final = (_VAR_POSITIONAL, _VAR_KEYWORD)

_LEFT_OUT: Final = object()

# Where defaults stand among what is kept: no parameter has this name.
DEFAULTS: Final = ""

# May be excluded without being parameters: they are the default of every decoration.
_ALWAYS_EXCLUDABLE: Final = frozenset({"self", "cls"})


class Binder:
    """``bind`` is called with the arguments of a call and gives them by name, defaults included."""

    def __init__(self, function: Callable[..., Any], exclude: Iterable[str] = ("self", "cls")) -> None:
        parameters = _parameters(function)
        self._exclude: Final = frozenset([exclude] if isinstance(exclude, str) else exclude)
        self.parameters: Final = tuple(parameters)
        self._function: Final = function
        self._rest: Final = next((name for name, one in parameters.items() if one.kind is _VAR_KEYWORD), None)
        unknown = self._exclude - parameters.keys() - _ALWAYS_EXCLUDABLE
        if unknown and self._rest is None:
            msg = f"exclude names no parameter of {function.__qualname__}: {', '.join(sorted(unknown))}"
            raise ValueError(msg)
        self._defaults: Final = {
            name: (one.default, _canonical_or_none(one.default))
            for name, one in parameters.items()
            if one.default is not _Parameter.empty and name not in self._exclude
        }
        stars = {name for name, one in parameters.items() if one.kind in _STARS}
        self._special: Final = self._exclude | self._defaults.keys() | stars
        # The arguments by parameter name; TypeError, as Python raises it, where they do not fit.
        self.bind: Final = _compile(function, parameters)
        # The canonical bytes of bound arguments; see `canonical_of_any`.
        counted = [name for name in parameters if name not in self._exclude]
        self.canonical: Final = _compile_canonical(counted, stars, self._defaults, self.canonical_of_any)

    def canonical_of_any(self, bound: dict[str, object]) -> bytes:
        """The canonical bytes of bound arguments, of whatever type.

        Left out are excluded parameters and those equal to their default, so that an added optional parameter changes
        no checksum. Equal means equal canonical bytes: 1, 1.0 and True differ. `ArgumentError` names the argument.
        """
        counted = {}
        for name, value in bound.items():
            left = self._counted(name, value) if name in self._special else value
            if left is not _LEFT_OUT:
                counted[name] = left
        return canonical(counted)

    def check_keepable(self) -> None:
        """ValueError where a rerun could not give an argument, since it is excluded and has no default."""
        for name, one in inspect.signature(self._function).parameters.items():
            if name in self._exclude and one.default is _Parameter.empty and one.kind not in _STARS:
                msg = f"recover=True: {self._function.__qualname__} needs {name!r}, which is excluded, and so not kept"
                raise ValueError(msg)

    def to_keep(self, bound: dict[str, object]) -> dict[str, object]:
        """The arguments that must be kept for a rerun: all but those that are excluded.

        Apart stand those that count for nothing, since they equal their default: a rerun is the very call, whatever the
        default is by then, and its checksum the same. One that is no plain data (a sentinel) is the function's own.
        """
        kept: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        for name, value in bound.items():
            if name in self._exclude:
                continue
            if name not in self._defaults or self._counted(name, value) is not _LEFT_OUT:
                kept[name] = value
            elif _is_keepable(value):
                defaults[name] = value
        if self._rest in kept:
            kept[self._rest] = {name: value for name, value in kept[self._rest].items() if name not in self._exclude}
        return {**kept, DEFAULTS: defaults} if defaults else kept

    def call_of(self, kept: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and the keyword arguments of a call with what was kept; TypeError where they do not fit."""
        return self._call(_counted_of(kept) | kept.get(DEFAULTS, {}))

    def counted_call_of(self, kept: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same with the defaults of now, for the checksum of the call."""
        return self._call(_counted_of(kept))

    def _call(self, kept: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        signature = inspect.signature(self._function)
        empty: dict[Any, Any] = {_VAR_POSITIONAL: (), _VAR_KEYWORD: {}}
        left = {name: empty.get(one.kind, one.default) for name, one in signature.parameters.items()}
        lacking = [name for name, value in left.items() if value is _Parameter.empty and name not in kept]
        if lacking or (unknown := kept.keys() - left.keys()):
            msg = f"its parameters are others now: {', '.join(lacking or sorted(unknown))}"
            raise TypeError(msg)
        call = inspect.BoundArguments(signature, {**left, **kept})
        return call.args, call.kwargs

    def _counted(self, name: str, value: Any) -> object:  # noqa: ANN401 - any argument
        """What counts of an argument that may be left out; `_LEFT_OUT` where nothing does."""
        if name in self._exclude:
            return _LEFT_OUT
        if name in self._defaults:
            default, content = self._defaults[name]
            return _LEFT_OUT if value is default or _is_equal(value, default, content) else value
        if name == self._rest:  # what a host injects comes as a keyword
            value = {key: item for key, item in value.items() if key not in self._exclude}
        return value or _LEFT_OUT


def _counted_of(kept: dict[str, Any]) -> dict[str, Any]:
    """What was kept of the arguments that count."""
    return {name: value for name, value in kept.items() if name != DEFAULTS}


def _is_keepable(value: object) -> bool:
    """Whether a default has a stored form."""
    if type(value) in PLAIN_SCALARS:
        return True
    try:
        encode_arguments(value)
    except ArgumentError:
        return False
    return True


def _is_equal(value: object, default: object, content: bytes | None) -> bool:
    if type(value) in PLAIN_SCALARS:
        return _is_equal_plain(value, default)
    return content is not None and _canonical_or_none(value) == content  # None: the error comes from the whole


def _is_equal_plain(value: object, default: object) -> bool:
    return type(value) is type(default) and value == default


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        msg = f"{name} is a generator function: its calls have no result to store"
        raise TypeError(msg)
    if not inspect.isroutine(function):
        msg = f"{name} is no function"
        raise TypeError(msg)
    try:
        return dict(inspect.signature(function).parameters)
    except ValueError as error:
        msg = f"{name} does not tell its parameters"
        raise TypeError(msg) from error


def _canonical_or_none(value: object) -> bytes | None:
    """Canonical bytes, None for a sentinel without any. A default's are kept, since it may be changed later."""
    try:
        return canonical(value)
    except ArgumentError:
        return None


def _compile(
    function: Callable[..., Any], parameters: dict[str, inspect.Parameter]
) -> Callable[..., dict[str, object]]:
    """A function with the same parameters that returns them by name. Its TypeErrors name the user's function."""
    defaults = [one.default for one in parameters.values()]
    head = _head(list(parameters.values()))
    body = ", ".join(f"{name!r}: {name}" for name in parameters)
    scope: dict[str, Any] = {"_defaults_of_job": defaults}
    # Only names that Python itself accepted as parameters come into this source.
    exec(f"def bind({head}): return {{{body}}}", scope)  # noqa: S102
    bind = scope["bind"]
    bind.__name__, bind.__qualname__ = function.__name__, function.__qualname__
    return bind  # type: ignore[no-any-return] # made by exec


def _compile_canonical(
    counted: Sequence[str],
    stars: AbstractSet[str],
    defaults: Mapping[str, tuple[object, object]],
    of_any: Callable[[dict[str, object]], bytes],
) -> Callable[[dict[str, object]], bytes]:
    """A function that writes the canonical bytes itself where all arguments are plain, and else asks ``of_any``.

    Most calls are of texts and numbers. What it writes of them is what JSON would, in a third of the time.
    """
    named = sorted(name for name in counted if name not in stars)
    scope: dict[str, Any] = {"_texts": PLAIN_TEXTS, "_given": _text_of_given, "_of_any": of_any}
    form, values = "", []
    for number, name in enumerate(named):
        text = canonical(name).decode() + ":"
        if name in defaults:
            scope[f"_default_{number}"] = defaults[name][0]
            form += "%s"
            values.append(
                f"'' if (v := bound[{name!r}]) is _default_{number} else _given({text!r}, v, _default_{number})"
            )
        else:
            form += f"{text}%s,"
            values.append(f"_texts[type(v := bound[{name!r}])](v)")
    has_rest = " or ".join(f"bound[{name!r}]" for name in counted if name in stars) or "False"
    # Only names that Python itself accepted as parameters come into this source, as above.
    source = f"""
def canonical(bound):
    if not ({has_rest}):
        try:
            text = {form!r} % ({"".join(f"{value}, " for value in values)})
            if len(content := ("{{" + text[:-1] + "}}").encode()) <= {MAX_CANONICAL_BYTES}:
                return content
        except (KeyError, ValueError):  # of another type; a text or a number that has no canonical bytes
            pass
    return _of_any(bound)
"""
    exec(source, scope)  # noqa: S102
    return scope["canonical"]  # type: ignore[no-any-return] # as above


def _text_of_given(name: str, value: object, default: object) -> str:
    """What is written of an argument that may be left out; KeyError where it is not plain."""
    text = PLAIN_TEXTS[type(value)](value)
    return "" if _is_equal_plain(value, default) else f"{name}{text},"


def _head(parameters: list[inspect.Parameter]) -> str:
    words = []
    kinds = [one.kind for one in parameters]
    for index, one in enumerate(parameters):
        if one.kind is _KEYWORD_ONLY and _VAR_POSITIONAL not in kinds and _KEYWORD_ONLY not in kinds[:index]:
            words.append("*")
        star = "*" if one.kind is _VAR_POSITIONAL else "**" if one.kind is _VAR_KEYWORD else ""
        default = "" if one.default is _Parameter.empty else f"=_defaults_of_job[{index}]"
        words.append(f"{star}{one.name}{default}")
        if one.kind is _POSITIONAL_ONLY and _POSITIONAL_ONLY not in kinds[index + 1 :]:
            words.append("/")
    return ", ".join(words)
