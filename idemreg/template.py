"""Task ids: what one may look like, and how a template makes one from a call's arguments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from idemreg.compiled import at_first_use, compiled
from idemreg.errors import TaskIdError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["MAX_TASK_ID_BYTES", "Template", "check_task_id", "pieces"]

MAX_TASK_ID_BYTES: Final = 512
NO_SPACE: Final = "Leave the white space at its ends out."

# Control characters, line and paragraph separators, lone surrogates.
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Zl", "Zp", "Cs"})

# What str.format understands of a field; a slip in it must show at decoration, not at 03:00.
_FIELD: Final = r"\w+(\.\w+|\[[^\[\]]+\])*"

# Far below the interpreter's limit of digits; larger ones are looked at one by one.
_SMALL_INT: Final = 2**63

FEW_ESCAPES: Final = 4  # looking for each of them in turn is faster than one search for any


def check_task_id(task_id: object) -> str:
    """Give the task_id back if it is one; `TaskIdError` says why it is not."""
    if type(task_id) is not str:
        msg = f"a task_id is text, not {type(task_id).__name__}"
        raise TaskIdError(msg)
    if task_id.isascii() and task_id.isprintable() and 0 < len(task_id) <= MAX_TASK_ID_BYTES:
        if task_id[0] != " " and task_id[-1] != " ":
            return task_id
        msg = "a task_id neither begins nor ends with white space"
        raise TaskIdError(msg, task_id=task_id, hint=NO_SPACE)
    return _check_unusual(task_id)


def _check_unusual(task_id: str) -> str:
    import unicodedata  # noqa: PLC0415 - most task ids are ASCII

    if not task_id:
        msg = "the task_id is empty"
        raise TaskIdError(msg)
    if any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in task_id):
        msg = f"the task_id {task_id[:80]!a} holds control characters, line separators or lone surrogates"
        raise TaskIdError(msg)
    if (size := len(task_id.encode())) > MAX_TASK_ID_BYTES:
        msg = f"the task_id {task_id[:40]}… has {size} bytes; at most {MAX_TASK_ID_BYTES} are taken"
        raise TaskIdError(msg, hint="Use a hash of the long part.")
    if not unicodedata.is_normalized("NFC", task_id):
        msg = f"the task_id {task_id!r} is not in Unicode's NFC form, so an equal-looking one would be another task"
        raise TaskIdError(msg, task_id=task_id, hint="Give its NFC form: unicodedata.normalize('NFC', task_id).")
    if task_id != task_id.strip():
        msg = "a task_id neither begins nor ends with white space"
        raise TaskIdError(msg, task_id=task_id, hint=NO_SPACE)
    return task_id


class Template:
    """A template such as ``"coupon:{user_id}:{day}"``, checked at decoration.

    Fields name parameters, and may go on by attribute or index (``{order.id}``, ``{items[0]}``). Between two fields
    there is at least one character that is no letter or digit; that character is escaped inside the values (``%3A`` for
    ``:``), and so is ``%`` itself. Read from the left, each value therefore ends at the first such character, so no two
    sets of texts share an id. A number and the same digits as text do share one; the checksum then tells them apart.
    """

    def __init__(self, literal: str, parameters: Iterable[str]) -> None:
        self.literal: Final = literal
        head, fields = _parse(literal, frozenset(parameters))
        separators = {_separator(after, literal) for _, after in fields[:-1]}
        # Byte by byte: beyond ASCII the number of a character has more than two digits and would run into what follows.
        escapes = {one: "".join(f"%{byte:02X}" for byte in one.encode()) for one in separators | {"%"}}
        self._head, self._fields, self._escapes = head, fields, escapes

    def render(self, arguments: Mapping[str, object], *_call: object) -> str:
        """The text for these arguments, to be checked as a task_id. `TaskIdError` names a field that has no text.

        What else there is of the call is for callables that stand in the place of a template.
        """
        return self._written(arguments)

    @at_first_use
    def _written(self) -> Callable[[Mapping[str, object]], str]:
        """Renders it in half the time of a loop over the fields."""
        scope: dict[str, Any] = {"look_up": _look_up, "text_of": _text_of, "escapes": str.maketrans(self._escapes)}
        is_few = len(self._escapes) <= FEW_ESCAPES
        if not is_few:
            scope["is_escaped"] = re.compile(f"[{re.escape(''.join(self._escapes))}]").search
        lines = []
        for number, (field, _) in enumerate(self._fields):
            name, text = repr(field), f"text_{number}"
            lines.append(f"v = arguments[{name}] if {name} in arguments else look_up({name}, arguments)")
            small = f"str(v) if type(v) is int and -{_SMALL_INT} < v < {_SMALL_INT} else text_of(v, {name})"
            lines.append(f"{text} = v if type(v) is str and v else {small}")
            # Looked for first: a translation costs more than all the rest.
            each = " or ".join(f"{one!r} in {text}" for one in self._escapes)
            has_any = each if is_few else f"is_escaped({text})"
            lines.append(f"if {has_any}: {text} = {text}.translate(escapes)")
        form = _literally(self._head) + "".join("%s" + _literally(after) for _, after in self._fields)
        texts = "".join(f"text_{number}, " for number in range(len(self._fields)))
        body = "\n    ".join([*lines, f"return {form!r} % ({texts})"])
        written: Callable[[Mapping[str, object]], str] = compiled(
            "render", f"def render(arguments):\n    {body}", scope
        )
        return written


def _literally(text: str) -> str:
    return text.replace("%", "%%")


def pieces(literal: str) -> list[tuple[str, str | None, str | None, str | None]]:
    """What `string.Formatter` finds in a template: (text, field, format, conversion). ValueError for a brace alone."""
    from string import Formatter  # noqa: PLC0415 - what makes no template need not import it

    try:
        return list(Formatter().parse(literal))
    except ValueError as error:
        msg = f"{literal!r} is no template ({error}): write {{name}} for a field, {{{{ or }}}} for a brace of the text"
        raise ValueError(msg) from error


def _parse(literal: str, parameters: frozenset[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text before the first field, and each field with the text behind it. ValueError for what loses or guesses."""
    head = ""
    fields: list[tuple[str, str]] = []
    for text, field, spec, conversion in pieces(literal):
        if fields:
            fields[-1] = (fields[-1][0], fields[-1][1] + text)
        else:
            head += text
        if field is None:
            continue
        if spec or conversion:
            msg = f"{{{field}}} in {literal!r} has a format or a conversion, which could give two values one text"
            raise ValueError(msg)
        if field and not re.fullmatch(_FIELD, field):
            msg = f"{{{field}}} in {literal!r} is no name with .attribute or [index] behind it"
            raise ValueError(msg)
        if re.split(r"[.\[]", field)[0] not in parameters:
            msg = f"{{{field}}} in {literal!r} names no parameter; there are {', '.join(sorted(parameters)) or 'none'}"
            raise ValueError(msg)
        fields.append((field, ""))
    return head, fields


def _separator(between: str, literal: str) -> str:
    """The character that ends the value before it."""
    for character in between:
        if not character.isalnum() and character != "%":
            return character
    msg = f"two fields of {literal!r} have no separator between them: put a character such as ':' there"
    raise ValueError(msg)


def _look_up(field: str, arguments: Mapping[str, object]) -> object:
    """The value of a field that goes on by attribute or index."""
    from string import Formatter  # noqa: PLC0415 - as above

    try:
        value, _ = Formatter().get_field(field, (), arguments)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        msg = f"the task_id's field {{{field}}} cannot be read from the arguments: {error}"
        raise TaskIdError(msg) from error
    return value


def _text_of(value: object, field: str) -> str:
    """The text of a value that is no text itself and has just one; `TaskIdError` for every other."""
    from datetime import date, datetime  # noqa: PLC0415 - cached; most fields never come here
    from decimal import Decimal  # noqa: PLC0415
    from uuid import UUID  # noqa: PLC0415

    if value is None or value == "":
        msg = f"the task_id's field {{{field}}} is {'None' if value is None else 'empty'}"
        raise TaskIdError(msg, hint="A task_id without its key would make different work one task.")
    if type(value) is Decimal and not value.is_finite():
        msg = f"the task_id's field {{{field}}} is {value}, which is no number"
        raise TaskIdError(msg)
    if type(value) is int and value.bit_length() > 8 * MAX_TASK_ID_BYTES:  # also past what str() would refuse
        msg = f"the task_id's field {{{field}}} is a number of more than {MAX_TASK_ID_BYTES} digits"
        raise TaskIdError(msg)
    if type(value) in (int, bool, UUID, Decimal):
        return str(value)
    if isinstance(value, date) and type(value) in (date, datetime):
        return value.isoformat()
    msg = f"the task_id's field {{{field}}} is of the type {type(value).__qualname__}, which has no text of its own"
    raise TaskIdError(msg, hint="Use a field of it ({order.id}), or give a callable in place of the template.")
