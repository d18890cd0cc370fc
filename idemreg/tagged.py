"""Tagged JSON 1: canonical bytes of arguments, and results in and out. A public format, frozen by golden vectors.

Plain JSON types stand for themselves: null, true, 1, "text", [...], {...}. Everything else is an object with the single
key ``$`` and a list, the tag first:

    {"$":["float","nan"]}  (also inf, -inf)     {"$":["bytes","<base64>"]}      {"$":["decimal","1.50"]}
    {"$":["uuid","<hex with dashes>"]}           {"$":["date","2026-11-23"]}     {"$":["time","03:00:00",fold,zone]}
    {"$":["datetime","2026-11-23T03:00:00",fold,zone]}                           {"$":["timedelta",days,s,us]}
    {"$":["set",[...]]}                          {"$":["path","posix","/a"]}     {"$":["dict",[[key,value],...]]}

A path is posix, windows, pure-posix or pure-windows; a combination of flags stands by its number in place of a name.
``zone`` is null (naive), a number of seconds east of UTC, or the key of an IANA zone. A dict whose keys are not all
text, or that has the key ``$``, is written as pairs, so that no dict of a user can pass for a tag.

Canonical bytes (of arguments) and stored results differ in what they keep apart:

* Canonical: object keys, pairs and set members are sorted; a tuple counts as a list, a frozenset as a set, a bytearray
  as bytes; an Enum member is ``["enum",class,name]``, a dataclass instance ``["dataclass",class,fields]``. The same
  value has the same bytes in every process and version; 1, 1.0 and true have different ones, and so have 0.0 and -0.0.
* Results come back equal in value and type: tuple, frozenset and bytearray have tags of their own, and dicts keep their
  order. Enums and dataclasses need a codec, since nothing is ever imported by a stored name.

Types count exactly. A subclass (a namedtuple, an int with units) may mean more than its plain value says, so it is
refused, with the way to it and the remedy, before the job starts.
"""

from __future__ import annotations

import functools
import json
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined] # not in the stubs
from typing import TYPE_CHECKING, Any, Final, NoReturn

from idemreg.errors import ArgumentError, ResultError
from idemreg.rich import RefusedError, kind_name, rich_taggers, unzone

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MAX_ARGUMENTS_BYTES",
    "MAX_CANONICAL_BYTES",
    "MAX_RESULT_BYTES",
    "NO_TEXT",
    "PLAIN_SCALARS",
    "PLAIN_TEXTS",
    "canonical",
    "canonical_text",
    "decode_arguments",
    "decode_result",
    "digest",
    "downstream_key",
    "encode_arguments",
    "encode_result",
    "is_plain_dataclass",
]

MAX_CANONICAL_BYTES: Final = 64 * 1_024 * 1_024
MAX_RESULT_BYTES: Final = 1_024 * 1_024
MAX_ARGUMENTS_BYTES: Final = 1_024 * 1_024  # where they are kept for a rerun

# Deeper than any payload of people. Reading takes up to four frames a level, and a caller deep inside a framework must
# be able to read what one at the top stored.
MAX_DEPTH: Final = 100

TAG: Final = "$"
_TAG_IN_TEXT: Final = '"$"'
# What JSON says of a value of each type that it needs nothing more for. Types count exactly, as everywhere.
PLAIN_TEXTS: Final[dict[type, Callable[[Any], str]]] = {
    str: encode_basestring,
    int: int.__repr__,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): {None: "null"}.__getitem__,
}
PLAIN_SCALARS: Final = frozenset(PLAIN_TEXTS)
NO_TEXT: Final = (RefusedError, ValueError, RecursionError)
# Builtins whose subclasses carry a value beside their fields, which no list of fields would tell.
_VALUES: Final = (dict, list, tuple, str, int, float, complex, bytes, bytearray, set, frozenset)
_INFINITY: Final = float("inf")


def _encoder(*, sort_keys: bool) -> Callable[[Any], str]:
    """Compact JSON without NaN. JSONEncoder makes a C encoder for each call, which costs as much as the encoding."""
    encoder = json.JSONEncoder(
        sort_keys=sort_keys, ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False
    )
    if c_make_encoder is None:
        return encoder.encode
    # As in JSONEncoder.iterencode: markers, default, text, indent, separators, sort_keys, skipkeys, allow_nan.
    encode = c_make_encoder(None, encoder.default, encode_basestring, None, ":", ",", sort_keys, False, False)  # noqa: FBT003 - C takes no keywords
    return lambda value: "".join(encode(value, 0))


_canonical_json = _encoder(sort_keys=True)
_result_json = _encoder(sort_keys=False)


# --- canonical bytes --------------------------------------------------------------------------------------------


def canonical(value: object) -> bytes:
    """The canonical bytes of a value; `ArgumentError` where it has none."""
    try:
        content = canonical_text(value).encode()
    except RefusedError as refused:
        raise ArgumentError(refused.tell()) from None
    except (ValueError, RecursionError) as error:  # a lone surrogate; an int beyond the interpreter's digit limit
        msg = f"a value has no canonical text: {error}"
        raise ArgumentError(msg) from error
    if len(content) > MAX_CANONICAL_BYTES:
        msg = f"the arguments have {len(content):,} canonical bytes; at most {MAX_CANONICAL_BYTES:,} are taken"
        raise ArgumentError(msg)
    return content


def canonical_text(value: object, depth: int = 0) -> str:
    """The text of a value, or of a part of one that deep in it. Raises `NO_TEXT` where it has none, or no bytes."""
    return _canonical_json(value if _is_plain(value, depth) else _FOR_ARGUMENTS.tag(value, depth))


def digest(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    digest: str = _sha256()(content).hexdigest()
    return digest


def downstream_key(registry_id: str, task_id: str) -> str:
    """A key for receivers: the same over all attempts of the task, different in every other registry."""
    return digest(f"{registry_id}\n{task_id}".encode())[:32]


@functools.cache
def _sha256() -> Any:  # noqa: ANN401 - what hashlib has
    import hashlib  # noqa: PLC0415 - 5 ms of OpenSSL, which a command such as `idemreg show` need not pay

    return hashlib.sha256


def _is_plain(value: Any, depth: int = 0) -> bool:  # noqa: ANN401 - any value of a user
    """Whether JSON says all of the value already. The fast path: most arguments and results never meet a `_Tagger`."""
    kind = type(value)
    if kind in PLAIN_SCALARS:
        return True
    if depth > MAX_DEPTH:
        return False
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or key == TAG or not (type(item) in PLAIN_SCALARS or _is_plain(item, depth + 1)):
                return False
        return True
    if kind is list:
        return all(_is_plain(item, depth + 1) for item in value)
    return kind is float and -_INFINITY < value < _INFINITY


class _Tagger:
    """Turns values into what JSON can say."""

    def __init__(self, *, for_arguments: bool) -> None:
        self._for_arguments = for_arguments

    def tag(self, value: Any, depth: int) -> Any:  # noqa: ANN401 - any value of a user
        """The plain form of one value."""
        kind = type(value)
        if kind in PLAIN_SCALARS:
            return value
        if kind is float:
            return value if -_INFINITY < value < _INFINITY else {TAG: ["float", str(value)]}
        if depth > MAX_DEPTH:
            msg = f"it is nested more than {MAX_DEPTH} deep, or contains itself"
            raise RefusedError(msg)
        if kind is dict:
            return self._dict(value, depth + 1)
        if kind is list:
            return self._items(value, depth + 1)
        return self._tagged(value, kind, depth + 1)

    def _dict(self, value: dict[Any, Any], depth: int) -> Any:  # noqa: ANN401
        if all(type(key) is str for key in value) and TAG not in value:
            return {key: self._step(f".{key}", item, depth) for key, item in value.items()}
        pairs = [
            [self._step(" key", key, depth), self._step(f"[{_short(key)}]", item, depth)] for key, item in value.items()
        ]
        return {TAG: ["dict", _sorted_pairs(pairs) if self._for_arguments else pairs]}

    def _items(self, values: Any, depth: int) -> list[Any]:  # noqa: ANN401
        return [self._step(f"[{index}]", item, depth) for index, item in enumerate(values)]

    def _step(self, step: str, value: Any, depth: int) -> Any:  # noqa: ANN401
        try:
            return self.tag(value, depth)
        except RefusedError as refused:
            refused.path.append(step)
            raise

    def _tagged(self, value: Any, kind: type, depth: int) -> Any:  # noqa: ANN401
        if kind is tuple:
            items = self._items(value, depth)
            return items if self._for_arguments else {TAG: ["tuple", items]}
        if kind in (set, frozenset):
            name = "set" if self._for_arguments or kind is set else "frozenset"
            items = [self._step(" member", item, depth) for item in value]
            return {TAG: [name, sorted(items, key=_canonical_json)]}
        if kind in (bytes, bytearray):
            name = "bytes" if self._for_arguments or kind is bytes else "bytearray"
            return {TAG: [name, _base64(value)]}
        if (rich := rich_taggers().get(kind)) is not None:
            return {TAG: rich(value)}
        if self._for_arguments:
            return self._class_instance(value, kind, depth)
        msg = (
            f"{kind_name(kind)} cannot be stored and come back; give result= a codec, or a dataclass's or Enum's class"
        )
        raise RefusedError(msg)

    def _class_instance(self, value: Any, kind: type, depth: int) -> Any:  # noqa: ANN401
        import dataclasses  # noqa: PLC0415 - rare types only
        import enum  # noqa: PLC0415

        if isinstance(value, enum.Enum):
            name: str | None = value.name
            if name is None or "|" in name:  # a combination of flags counts by its number
                return {TAG: ["enum", kind.__qualname__, self.tag(value.value, depth)]}
            return {TAG: ["enum", kind.__qualname__, name]}
        if is_plain_dataclass(kind):
            try:
                fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            except AttributeError as error:
                msg = f"a field of {kind_name(kind)} was never set: {error}"
                raise RefusedError(msg) from error
            return {TAG: ["dataclass", kind.__qualname__, self._dict(fields, depth)]}
        msg = f"{kind_name(kind)} has no canonical bytes"
        raise RefusedError(msg)


_FOR_ARGUMENTS: Final = _Tagger(for_arguments=True)
_FOR_RESULTS: Final = _Tagger(for_arguments=False)


def is_plain_dataclass(kind: type) -> bool:
    """Whether the fields tell all of an instance: a subclass that is no dataclass may hold attributes besides."""
    return "__dataclass_fields__" in vars(kind) and not issubclass(kind, _VALUES)


def _sorted_pairs(pairs: list[list[Any]]) -> list[list[Any]]:
    """The pairs in the order of their keys' bytes. Keys that share theirs (nan twice) have no order but the dict's."""
    by_key = {_canonical_json(pair[0]): pair for pair in pairs}
    if len(by_key) < len(pairs):
        msg = "two keys of one dict have the same canonical bytes"
        raise RefusedError(msg)
    return [by_key[key] for key in sorted(by_key)]


def _short(key: object) -> str:
    return key if type(key) is str else type(key).__name__


def _base64(value: bytes | bytearray) -> str:
    import binascii  # noqa: PLC0415

    return binascii.b2a_base64(value, newline=False).decode()


# --- results ----------------------------------------------------------------------------------------------------


def encode_result(value: object) -> str:
    """The stored text of a result; `ResultError` where it cannot be stored and come back, or is too large."""
    return _stored(value, "the result", MAX_RESULT_BYTES, ResultError)


def encode_arguments(value: object) -> str:
    """The text of arguments that are kept for a rerun, as of results; `ArgumentError` where there is none."""
    try:
        return _stored(value, "what is kept of the arguments", MAX_ARGUMENTS_BYTES, ArgumentError)
    except ArgumentError as error:
        error.hint = "To be rerun it takes plain data. Give an excluded argument a default, or do without recover=."
        raise


def _stored(value: object, what: str, most_bytes: int, refusal: type[ResultError | ArgumentError]) -> str:
    try:
        text = _result_json(value if _is_plain(value) else _FOR_RESULTS.tag(value, 0))
        size = len(text) if text.isascii() else len(text.encode())
    except RefusedError as refused:
        msg = f"{what} cannot be stored: {refused.tell()}"
        raise refusal(msg) from None
    except (ValueError, RecursionError) as error:
        msg = f"{what} cannot be stored: {error}"
        raise refusal(msg) from error
    if size > most_bytes:
        msg = f"{what} has {size:,} bytes; at most {most_bytes:,} are stored"
        raise refusal(msg)
    return text


def decode_result(text: str) -> Any:  # noqa: ANN401 - whatever was stored
    """The value of a stored text; `ResultError` where it is not one. Imports and executes nothing by a stored name."""
    try:
        data = _parse(text)
        return _untag(data) if _TAG_IN_TEXT in text else data
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, OSError, RuntimeError) as error:
        # OSError: zoneinfo reads a file; RuntimeError: too deep, or a WindowsPath where there are none.
        msg = "the stored result cannot be read back"
        raise ResultError(msg, hint="The row is damaged, or was written with another codec.") from error


def decode_arguments(text: str) -> Any:  # noqa: ANN401 - whatever was kept
    """What `encode_arguments` took; `ArgumentError` where the text is none of its."""
    try:
        return decode_result(text)
    except ResultError as error:
        msg = "what is kept of the arguments cannot be read back"
        hint = "It was written by another version, or names a time zone that is missing here."
        raise ArgumentError(msg, hint=hint) from error


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


# One decoder for all calls: json.loads makes a new one for each call with an option.
_decode_json = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode


def _parse(text: str) -> Any:  # noqa: ANN401
    data, end = _decode_json(text)
    if end != len(text):
        msg = "something follows the value"
        raise ValueError(msg)
    return data


def _untag(data: Any) -> Any:  # noqa: ANN401
    if type(data) is list:
        return [_untag(item) for item in data]
    if type(data) is not dict:
        return data
    if TAG not in data:
        return {key: _untag(item) for key, item in data.items()}
    (content,) = data.values()  # ValueError where a tag has company
    name, *rest = content
    return _decoders()[name](*rest)


@functools.cache
def _decoders() -> dict[str, Callable[..., Any]]:
    import binascii  # noqa: PLC0415
    import pathlib  # noqa: PLC0415
    from datetime import date, datetime, time, timedelta  # noqa: PLC0415
    from decimal import Decimal  # noqa: PLC0415
    from uuid import UUID  # noqa: PLC0415

    paths = {
        "posix": pathlib.PosixPath,
        "windows": pathlib.WindowsPath,
        "pure-posix": pathlib.PurePosixPath,
        "pure-windows": pathlib.PureWindowsPath,
    }
    return {
        "float": lambda text: {"nan": float("nan"), "inf": _INFINITY, "-inf": -_INFINITY}[text],
        "bytes": lambda text: binascii.a2b_base64(text, strict_mode=True),
        "bytearray": lambda text: bytearray(binascii.a2b_base64(text, strict_mode=True)),
        "tuple": lambda items: tuple(_untag(_checked(items, list))),
        "set": lambda items: set(_untag(_checked(items, list))),
        "frozenset": lambda items: frozenset(_untag(_checked(items, list))),
        "dict": lambda pairs: {
            _untag(key): _untag(value) for key, value in (_checked(pair, list) for pair in _checked(pairs, list))
        },
        "decimal": lambda text: Decimal(_checked(text, str)),
        "uuid": UUID,
        "date": date.fromisoformat,
        "time": lambda text, fold, zone: time.fromisoformat(text).replace(fold=fold, tzinfo=unzone(zone)),
        "datetime": lambda text, fold, zone: datetime.fromisoformat(text).replace(fold=fold, tzinfo=unzone(zone)),
        "timedelta": timedelta,
        "path": lambda flavour, text: paths[flavour](text),
    }


def _checked(stored: Any, kind: type) -> Any:  # noqa: ANN401 - damaged text may hold anything
    """A text where a list belongs would be taken apart into letters."""
    if type(stored) is not kind:
        msg = f"{kind.__name__} expected, not {type(stored).__name__}"
        raise TypeError(msg)
    return stored
