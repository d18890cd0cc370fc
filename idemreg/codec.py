"""Results of a job's own types: a codec turns them into plain data and back."""

from __future__ import annotations

import enum
from typing import Any, Final, Protocol, runtime_checkable

from idemreg.errors import ResultError
from idemreg.tagged import decode_result, encode_result, is_plain_dataclass

__all__ = ["Codec", "DataclassCodec", "as_codec", "load_result", "store_result"]

# The key under which an instance of a registered class is stored; plain results never pass through here.
CLASS_KEY: Final = "class"
FIELDS_KEY: Final = "fields"


@runtime_checkable
class Codec(Protocol):
    """Two functions that undo each other. Plain data is whatever the tagged JSON knows."""

    def encode(self, value: Any, /) -> object:  # noqa: ANN401 - the job's own result
        """The result as plain data."""

    def decode(self, data: Any, /) -> Any:  # noqa: ANN401 - plain data
        """The result again."""


class DataclassCodec:
    """Dataclasses and Enums, also inside lists, tuples, sets and dicts. Only the classes named here come back."""

    def __init__(self, *classes: type) -> None:
        for one in classes:
            kind: object = one  # a user's tuple may hold anything
            if not (isinstance(kind, type) and (is_plain_dataclass(kind) or issubclass(kind, enum.Enum))):
                msg = f"{kind!r} is neither a dataclass, whose fields tell all of it, nor an Enum class"
                raise TypeError(msg)
        self._classes: Final = {one.__qualname__: one for one in classes}
        if len(self._classes) != len(classes):
            msg = "two of the classes have the same qualified name"
            raise TypeError(msg)

    def encode(self, value: Any, /) -> object:  # noqa: ANN401
        """The result as plain data: every dict becomes pairs, so that none can pass for an instance."""
        name = type(value).__qualname__
        if self._classes.get(name) is type(value):
            return {CLASS_KEY: name, FIELDS_KEY: self._fields(value)}
        if type(value) is dict:
            return {"pairs": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if type(value) in (list, tuple):
            return type(value)(self.encode(item) for item in value)
        if type(value) in (set, frozenset):
            return {type(value).__name__: [self.encode(item) for item in value]}
        return value

    def _fields(self, value: Any) -> object:  # noqa: ANN401
        if isinstance(value, enum.Flag):  # a combination has no name that its class knows
            return value.value
        if isinstance(value, enum.Enum):
            return value.name
        return [[field.name, self.encode(getattr(value, field.name))] for field in _fields(value)]

    def decode(self, data: Any, /) -> Any:  # noqa: ANN401
        """The result again; LookupError or TypeError where the class has changed too much."""
        if type(data) in (list, tuple):
            return type(data)(self.decode(item) for item in data)
        if type(data) is not dict:
            return data
        if CLASS_KEY in data:
            return self._instance(self._classes[data[CLASS_KEY]], data[FIELDS_KEY])
        ((kind, items),) = data.items()
        if kind == "pairs":
            return {self.decode(key): self.decode(item) for key, item in items}
        return {"set": set, "frozenset": frozenset}[kind](self.decode(item) for item in items)

    def _instance(self, kind: Any, stored: Any) -> Any:  # noqa: ANN401
        if issubclass(kind, enum.Enum):
            return kind(stored) if issubclass(kind, enum.Flag) else kind[stored]
        fields = {name: self.decode(item) for name, item in stored}
        in_init = {field.name for field in _fields(kind) if field.init}
        instance = kind(**{name: item for name, item in fields.items() if name in in_init})
        for name, item in fields.items():  # also what __post_init__ made of them: it has been applied already
            object.__setattr__(instance, name, item)
        return instance


def as_codec(option: object) -> Codec | None:
    """The codec that the ``result=`` option means: a codec, a dataclass or Enum, or a tuple of those."""
    if option is None:
        return None
    if isinstance(option, type):
        return DataclassCodec(option)
    if isinstance(option, tuple) and option and all(isinstance(one, type) for one in option):
        return DataclassCodec(*option)
    if isinstance(option, Codec):
        return option
    msg = f"result= takes a codec (encode, decode), a dataclass, an Enum or a tuple of those, not {option!r}"
    raise TypeError(msg)


def _fields(of: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a dataclass, or an instance of one
    import dataclasses  # noqa: PLC0415 - 5 ms that only their users pay

    return dataclasses.fields(of)


def store_result(value: object, codec: Codec | None) -> str:
    """The stored text of a result; `ResultError` where it cannot be stored and come back."""
    if codec is None:
        return encode_result(value)
    try:
        data = codec.encode(value)
    except Exception as error:
        msg = f"the codec cannot encode the result: {type(error).__name__}: {error}"
        raise ResultError(msg) from error
    return encode_result(data)


def load_result(text: str, codec: Codec | None) -> Any:  # noqa: ANN401 - whatever the job returned
    """The result of a stored text; `ResultError` where it cannot be read back."""
    data = decode_result(text)
    if codec is None:
        return data
    try:
        return codec.decode(data)
    except Exception as error:
        msg = f"the codec cannot decode the stored result: {type(error).__name__}: {error}"
        hint = "The class changed since, or the row was written with another codec."
        raise ResultError(msg, hint=hint) from error
