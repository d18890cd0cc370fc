"""The lines of an export: one JSON object each, the same bytes for the same row. A public format, version 1.

The first line is the header, the last one the end with the number of tasks and the token floor; between them stands
one line a task, and behind it one for each of its steps. What belongs to one machine only is left out: the owner's
number, and the time since boot.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from idemreg.errors import TaskIdError
from idemreg.model import MAX_ATTEMPTS_LIMIT, OnCrash, OnFailure, Origin, Policy, Status, Task, Verdict
from idemreg.progress import Step
from idemreg.template import check_task_id

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "FIELDS",
    "FORMAT",
    "STEP_FIELDS",
    "End",
    "LineError",
    "StepOf",
    "end_line",
    "fields_of",
    "header_line",
    "parse",
    "step_line",
    "task_line",
]

FORMAT: Final = 1

# What an imported row is stamped with: a boot before the first one of any registry, so `purge` goes by its date.
NO_BOOT: Final = 0

# Above this a token could not grow any more; the boot epoch alone has 22 bits below it.
TOKEN_LIMIT: Final = 2**62
TIME_LIMIT: Final = 2**62
CHECKSUM_DIGITS: Final = 64
ID_DIGITS: Final = 32
NOTE_DIGITS: Final = 4
_HEX: Final = frozenset("0123456789abcdef")

FIELDS: Final = {
    "task_id": "the task's name",
    "status": "pending, succeeded, failed, running, unknown, skipped or cancelled",
    "checksum": "SHA-256 of the arguments (with a key their HMAC), 64 hexadecimal digits",
    "updated_at": "last change, microseconds since the epoch by the wall clock",
    "name": "the job's name",
    "token": "fencing token of the last claim, 0 before the first",
    "attempt": "claims so far",
    "on_crash": "rerun, verify or hold",
    "on_failure": "retry or hold",
    "max_attempts": "from 1",
    "keep_ms": "how long `purge` leaves the ended row alone, in milliseconds; null: for ever",
    "result": "the stored text of the result (tagged JSON), or null",
    "error": "of the last failure or loss, or null",
    "verdict": "of the last settlement, or null",
    "settled_by": "who settled it last, or null",
    "evidence": "what the verdict rests on, or null",
}

_STATUSES: Final = {one.word: one for one in Status}
_VERDICTS: Final = {one.word: one for one in Verdict}
_ON_CRASH: Final = {one.name.lower(): one for one in OnCrash}
_ON_FAILURE: Final = {one.name.lower(): one for one in OnFailure}


STEP_FIELDS: Final = {
    "step": "the step's name",
    "task_id": "the task, whose line is above",
    "number": "which of its steps it is, from 1",
    "token": "fencing token of the claim that saved it",
    "saved_at": "microseconds since the epoch by the wall clock",
    "result": "the stored text of its result (tagged JSON), or null where that was lost",
}


class StepOf(NamedTuple):
    """A step, and the task that it belongs to."""

    task_id: str
    step: Step


class End(NamedTuple):
    """The last line: how many tasks there are, and a floor above all tokens that their registry gave so far."""

    tasks: int
    floor: int


class LineError(ValueError):
    """The line is not what an export writes; the message says why."""


# --- write ------------------------------------------------------------------------------------------------------


def header_line(registry_id: str, key_note: str | None = None) -> str:
    """The first line: the registry that the tasks come from. Without a key there is no ``key_note``."""
    note = {} if key_note is None else {"key_note": key_note}
    return _line({"idemreg": "export", "format": FORMAT, "registry_id": registry_id, **note})


def task_line(task: Task) -> str:
    """The line of a task."""
    return _line(fields_of(task))


def step_line(task_id: str, step: Step) -> str:
    """The line of a step of the task."""
    values = {**step._asdict(), "step": step.name, "task_id": task_id}
    return _line({name: values[name] for name in STEP_FIELDS})


def end_line(tasks: int, floor: int) -> str:
    """The last line."""
    return _line({"end": tasks, "floor": floor})


def fields_of(task: Task) -> dict[str, Any]:
    """A row as `FIELDS`, in their order."""
    policy = task.policy
    values = {
        **task._asdict(),
        "status": task.status.word,
        "on_crash": policy.on_crash.name.lower(),
        "on_failure": policy.on_failure.name.lower(),
        "max_attempts": policy.max_attempts,
        "verdict": None if task.verdict is None else task.verdict.word,
    }
    return {name: values[name] for name in FIELDS}


def _line(fields: dict[str, Any]) -> str:
    # ASCII only: it passes every encoding.
    return json.dumps(fields, separators=(",", ":")) + "\n"


# --- read -------------------------------------------------------------------------------------------------------


def parse(line: str) -> Origin | Task | StepOf | End:
    """What the line says; `LineError` where it is none. A running task is given as it was, without its owner."""
    fields = _object(line)
    if "idemreg" in fields:
        return _header(fields)
    if "end" in fields:
        _check_names(fields, ("end", "floor"))
        return End(_integer(fields, "end", TIME_LIMIT), _integer(fields, "floor", TOKEN_LIMIT))
    if "step" in fields:
        return _step(fields)
    _check_names(fields, FIELDS)
    return _task(fields)


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line, object_pairs_hook=_no_repetition, parse_constant=_no_constant)
    except RecursionError:
        found = None
    except LineError:
        raise
    except ValueError as error:
        msg = f"it is not JSON: {error}"
        raise LineError(msg) from error
    if not isinstance(found, dict):
        msg = "it is no JSON object"
        raise LineError(msg)
    return found


def _no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        msg = "a field stands in it twice"
        raise LineError(msg)
    return found


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is no JSON value"
    raise LineError(msg)


def _check_names(fields: dict[str, Any], names: Any) -> None:  # noqa: ANN401 - any collection of names
    missing, unknown = [name for name in names if name not in fields], fields.keys() - set(names)
    if missing or unknown:
        what = f"it lacks {', '.join(missing)}" if missing else f"it has unknown fields: {', '.join(sorted(unknown))}"
        raise LineError(what)


def _header(fields: dict[str, Any]) -> Origin:
    if fields["idemreg"] != "export" or fields.get("format") != FORMAT:
        msg = f"it is not the header of an export of format {FORMAT}"
        raise LineError(msg)
    has_note = "key_note" in fields
    _check_names(fields, ("idemreg", "format", "registry_id", *(["key_note"] if has_note else [])))
    note = _hexadecimal(fields, "key_note", NOTE_DIGITS) if has_note else None
    return Origin(_hexadecimal(fields, "registry_id", ID_DIGITS), note)


def _step(fields: dict[str, Any]) -> StepOf:
    _check_names(fields, STEP_FIELDS)
    step = Step(
        name=_id(fields, "step"),
        number=_integer(fields, "number", TOKEN_LIMIT, least=1),
        token=_integer(fields, "token", TOKEN_LIMIT),
        saved_at=_integer(fields, "saved_at", TIME_LIMIT, least=-TIME_LIMIT),
        result=_or_none(fields, "result", _result),
    )
    return StepOf(_id(fields, "task_id"), step)


def _id(fields: dict[str, Any], name: str) -> str:
    try:
        return check_task_id(fields[name])
    except TaskIdError as error:
        raise LineError(error.message) from error


def _task(fields: dict[str, Any]) -> Task:
    if not (max_attempts := _integer(fields, "max_attempts", MAX_ATTEMPTS_LIMIT + 1)) >= 1:
        msg = "max_attempts is 0"
        raise LineError(msg)
    return Task(
        task_id=_id(fields, "task_id"),
        status=_word(fields, "status", _STATUSES),
        checksum=_hexadecimal(fields, "checksum", CHECKSUM_DIGITS),
        updated_at=_integer(fields, "updated_at", TIME_LIMIT, least=-TIME_LIMIT),
        boot_stamp=NO_BOOT,
        name=_text(fields, "name"),
        token=_integer(fields, "token", TOKEN_LIMIT),
        attempt=_integer(fields, "attempt", TOKEN_LIMIT),
        owner=None,
        policy=Policy(_word(fields, "on_crash", _ON_CRASH), _word(fields, "on_failure", _ON_FAILURE), max_attempts),
        keep_ms=_or_none(fields, "keep_ms", lambda fields, name: _integer(fields, name, TIME_LIMIT)),
        result=_or_none(fields, "result", _result),
        error=_or_none(fields, "error", _text),
        verdict=_or_none(fields, "verdict", lambda fields, name: _word(fields, name, _VERDICTS)),
        settled_by=_or_none(fields, "settled_by", _text),
        evidence=_or_none(fields, "evidence", _text),
    )


def _or_none(fields: dict[str, Any], name: str, read: Callable[[dict[str, Any], str], Any]) -> Any:  # noqa: ANN401
    return None if fields[name] is None else read(fields, name)


def _word(fields: dict[str, Any], name: str, words: dict[str, Any]) -> Any:  # noqa: ANN401 - a member of some Enum
    value = fields[name]
    if not isinstance(value, str) or value not in words:
        msg = f"{name} is one of {', '.join(words)}, not {str(value)[:40]!a}"
        raise LineError(msg)
    return words[value]


def _integer(fields: dict[str, Any], name: str, limit: int, *, least: int = 0) -> int:
    value = fields[name]
    if type(value) is not int or not least <= value < limit:
        msg = f"{name} is no whole number from {least} below {limit}"
        raise LineError(msg)
    return value


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not _is_unicode(value):
        msg = f"{name} is no text"
        raise LineError(msg)
    return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return False
    return True


def _hexadecimal(fields: dict[str, Any], name: str, digits: int) -> str:
    value = _text(fields, name)
    if len(value) != digits or not _HEX.issuperset(value):
        msg = f"{name} has not {digits} hexadecimal digits"
        raise LineError(msg)
    return value


def _result(fields: dict[str, Any], name: str) -> str:
    text = _text(fields, name)
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # its tags are the replay's business: a time zone may be missing here
        msg = f"{name} is not what a job's result is stored as"
        raise LineError(msg) from error
    return text
