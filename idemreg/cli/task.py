"""One task told: as JSON fields, as words, and what may be done about it next."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from idemreg.cli.render import Cell, age, local_time, span, utc_time
from idemreg.cli.text import escape, escape_lines
from idemreg.clockcheck.alarm import NEXT, is_alarm
from idemreg.deciding import Decision, Wanted, decide
from idemreg.errors import ResultError
from idemreg.model import Liveness, OnCrash, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from idemreg.model import Policy, Task
    from idemreg.output import StoredOutput
    from idemreg.owner import OwnerInfo
    from idemreg.progress import Step
    from idemreg.recovery import Kept

__all__ = [
    "COLOURS",
    "FIELDS",
    "SHOW_FIELDS",
    "SUMMARIES",
    "kept_pairs",
    "meaning",
    "next_step",
    "pairs",
    "show_fields",
    "state",
    "step_pairs",
    "task_fields",
]

RESULT_LINES: Final = 20
RESULT_CHARACTERS: Final = 4_000
LINE_CHARACTERS: Final = 500

MS_A_SECOND: Final = 1_000

FIELDS: Final = {
    "task_id": "the task's name",
    "status": "pending, succeeded, failed, running, unknown, skipped or cancelled",
    "checksum": "SHA-256 of the arguments (with a key their HMAC), 64 hexadecimal digits",
    "updated_at": "last change, microseconds since the epoch by the wall clock",
    "updated_at_utc": "the same as ISO 8601 in UTC",
    "boot_stamp": "last change, (boot epoch << 40) | milliseconds since that boot",
    "name": "the job's name",
    "token": "fencing token of the last claim, 0 before the first",
    "attempt": "claims so far",
    "owner": "number of the owner that runs it (up to 62 bits), or null",
    "owner_liveness": "alive, dead, cannot tell or lease expired; null where nobody runs it",
    "owner_reason": "who that is, and how it is known; or null",
    "lease_left_ms": "milliseconds until its lease expires, negative once it has; null without one",
    "overdue_ms": "how long it runs beyond its --timeout, in milliseconds, negative before; null without one",
    "policy": "on_crash, on_failure and max_attempts of the last claim",
    "keep_ms": "how long `purge` leaves the ended row alone, in milliseconds; null: for ever",
    "result": "what the job returned, as tagged JSON; of a command exit_code, output and truncated",
    "error": "of the last failure or loss: type and message, then where; or null",
    "verdict": "of the last settlement: happened, did-not-happen, cannot-tell, retry, skipped, cancelled; or null",
    "settled_by": "who settled it last, or null",
    "evidence": "what the verdict rests on, or null",
    "is_final": "whether it can never run again (unless it is forgotten)",
    "is_dead_letter": "failed with its attempts used up",
    "keeps_arguments": "whether its arguments stand in the file until it is final, for a rerun by `watch`",
}

SHOW_FIELDS: Final = FIELDS | {
    "steps": "pieces of the job that are done: name, number, token, saved_at and result of each",
    "kept_bytes": "how long the kept arguments are, as tagged JSON; null where there are none",
}

COLOURS: Final = {
    Status.PENDING: None,
    Status.SUCCEEDED: "green",
    Status.FAILED: "red",
    Status.RUNNING: "cyan",
    Status.UNKNOWN: "yellow",
    Status.SKIPPED: "grey",
    Status.CANCELLED: "grey",
}

# For a count of tasks.
SUMMARIES: Final = {
    Status.PENDING: "not run yet",
    Status.SUCCEEDED: "ran, and will not run again",
    Status.FAILED: "to run again, or held",
    Status.RUNNING: "claimed by an owner now",
    Status.UNKNOWN: "nobody knows whether they happened",
    Status.SKIPPED: "skipped for good",
    Status.CANCELLED: "cancelled for good",
}

# What a status means for one task, where the next call's decision says no more.
_MEANINGS: Final = {
    Status.PENDING: "the next call runs it",
    Status.SUCCEEDED: "it ran, and will not run again",
    Status.FAILED: "the next call runs it again",
    Status.RUNNING: "its owner is at work",
    Status.UNKNOWN: "nobody knows whether it happened",
    Status.SKIPPED: "it was skipped for good, and will not run",
    Status.CANCELLED: "it was cancelled, and will not run",
}
_DEAD_MEANINGS: Final = {
    Decision.TAKE_OVER: "; the next call runs it again",
    Decision.BECOMES_FAILED: ", and its attempts are used up",
    Decision.BECOMES_UNKNOWN: "; nobody knows whether it happened",
}


# --- for programs -----------------------------------------------------------------------------------------------


def task_fields(task: Task, owner: OwnerInfo | None) -> dict[str, Any]:
    """The row as JSON fields: `FIELDS`, in their order."""
    policy = task.policy
    own: dict[str, Any] = task._asdict() | {
        "status": task.status.word,
        "updated_at_utc": utc_time(task.updated_at),
        "owner_liveness": None if owner is None else owner.liveness.value,
        "owner_reason": None if owner is None else owner.describe(),
        "lease_left_ms": None if owner is None else owner.lease_left_ms,
        "overdue_ms": None if owner is None else owner.overdue_ms,
        "policy": {
            "on_crash": policy.on_crash.name.lower(),
            "on_failure": policy.on_failure.name.lower(),
            "max_attempts": policy.max_attempts,
        },
        "result": _result_json(task.result),
        "verdict": None if task.verdict is None else task.verdict.word,
        "is_final": task.is_final,
        "is_dead_letter": task.is_dead_letter,
        "keeps_arguments": task.policy.keeps_arguments and not task.is_final,
    }
    return {name: own[name] for name in FIELDS}


def show_fields(task: Task, owner: OwnerInfo | None, steps: Sequence[Step], kept: Kept | None) -> dict[str, Any]:
    """The row, its steps and what is kept of its arguments as JSON fields: `SHOW_FIELDS`."""
    done = [step._asdict() | {"result": _result_json(step.result)} for step in steps]
    kept_bytes = None if kept is None else len(kept.arguments.encode())
    return task_fields(task, owner) | {"steps": done, "kept_bytes": kept_bytes}


def _result_json(stored: str | None) -> Any:  # noqa: ANN401 - any JSON
    """The stored text as JSON, or as text where it is none."""
    try:
        return None if stored is None else json.loads(stored)
    except (ValueError, RecursionError):
        return stored


# --- for people -------------------------------------------------------------------------------------------------


def state(task: Task, owner: OwnerInfo | None) -> Cell:
    """The status for a table. What time or death has made of a task is told: the row alone goes on saying `running`."""
    mark = ""
    if owner is not None and (owner.liveness.frees or owner.is_overdue):
        mark = f" ({owner.liveness.value})" if owner.liveness.frees else " (overdue)"
    return Cell(f"{task.status.word}{mark}", COLOURS[task.status])


def pairs(task: Task, owner: OwnerInfo | None, now_us: int) -> Iterator[tuple[str, Cell | list[str]]]:
    """Everything about the task, as labels and escaped values."""
    yield "task", Cell(escape(task.task_id), "bold")
    yield "status", Cell(f"{task.status.word}: {meaning(task, owner)}", COLOURS[task.status])
    yield "job", Cell(escape(task.name) or "(no name)")
    yield "attempt", Cell(f"{task.attempt} of {task.policy.max_attempts}" if task.attempt else "none yet")
    if owner is not None:
        yield "owner", Cell(escape(f"{owner.liveness.value}; {owner.describe()}"))
        if (limits := _limits(owner)) is not None:
            yield "limits", Cell(limits)
    yield "updated", Cell(f"{local_time(task.updated_at)}, {_ago(task.updated_at, now_us)}")
    yield "policy", Cell(_policy(task))
    if task.verdict is not None or task.settled_by is not None:
        verdict = "earlier" if task.verdict is None else task.verdict.word
        yield "settled", Cell(f"{verdict}, by {escape(task.settled_by or 'nobody known')}")
    if task.evidence:
        yield "evidence", _bounded(escape_lines(task.evidence))
    yield "token", Cell(str(task.token))
    yield "checksum", Cell(task.checksum)
    if task.error:
        first, *rest = escape_lines(task.error.rstrip())
        yield "error", [first, *(f"  {line}" for line in rest)]
    if task.result is not None:
        yield "result", _result_lines(task.result)


def step_pairs(steps: Sequence[Step], now_us: int) -> Iterator[tuple[str, list[str]]]:
    """The last of the task's steps; nothing where it has none."""
    lines = [
        f"{step.number}. {escape(step.name)}, {_ago(step.saved_at, now_us)}"
        + ("; its result is lost" if step.result is None else "")
        for step in steps[-RESULT_LINES:]
    ]
    if lines:
        yield "steps", lines


def kept_pairs(kept: Kept | None, policy: Policy) -> Iterator[tuple[str, Cell]]:
    """How much of its arguments is kept, never what: there may be secrets in them. And who reruns it by them, when."""
    if kept is not None:
        what = "the command's words" if kept.is_command else "its arguments"
        text = f"{what}, {len(kept.arguments.encode()):,} bytes, until it is final: {_RERUNS[policy.on_crash]}"
        yield "kept", Cell(text)


_RERUNS: Final = {
    OnCrash.RERUN: "`idemreg watch` reruns it",
    OnCrash.VERIFY: "`idemreg watch` asks about it, and reruns it where it did not happen",
    OnCrash.HOLD: "after a crash `idemreg watch` reruns it only once a person has resolved it as did-not-happen",
}


def _limits(owner: OwnerInfo) -> str | None:
    """When its lease and its time are over, or since when."""
    said = []
    if owner.lease_left_ms is not None and owner.lease_left_ms >= 0:
        said.append(f"its lease is good for another {span(owner.lease_left_ms // MS_A_SECOND)}")
    elif owner.lease_left_ms is not None:
        said.append("its lease has expired")
    if owner.overdue_ms is not None:
        word = "overdue for" if owner.is_overdue else "overdue in"
        said.append(f"{word} {span(abs(owner.overdue_ms) // MS_A_SECOND)}")
    return "; ".join(said) or None


def next_step(task: Task, owner: OwnerInfo | None) -> str | None:
    """What an operator can do about it, or None where there is nothing to do."""
    decision = _decision(task, owner)
    if is_alarm(task):
        return None if task.is_final else NEXT
    if decision in {Decision.UNKNOWN, Decision.BECOMES_UNKNOWN}:
        return "Find out whether it happened, then `idemreg resolve TASK_ID happened` or `... did-not-happen`."
    if decision in {Decision.REFUSED, Decision.BECOMES_FAILED}:
        return "`idemreg retry TASK_ID` allows one more attempt."
    if decision is Decision.RUNNING and owner is not None and owner.liveness is Liveness.CANNOT_TELL:
        return "Find out whether its owner still works; nothing takes the task over meanwhile."
    return None


def _decision(task: Task, owner: OwnerInfo | None) -> Decision:
    """What a call with the same arguments and policy would be answered now."""
    wanted = Wanted(task.task_id, task.name, task.checksum, task.policy)
    return decide(task, wanted, Liveness.ALIVE if owner is None else owner.liveness)


def meaning(task: Task, owner: OwnerInfo | None) -> str:
    """What the status means for this task, as it stands."""
    decision = _decision(task, owner)
    if decision is Decision.REFUSED:
        return "its attempts are used up" if task.is_dead_letter else "it is held, and does not run again by itself"
    if decision is Decision.RUNNING and owner is not None and owner.liveness is Liveness.CANNOT_TELL:
        return "nobody can tell whether its owner lives"
    if is_alarm(task) and not task.is_final:
        return "the clock is in doubt, and nothing is scheduled until it is confirmed"
    if task.status is Status.SUCCEEDED and task.result is None:
        return "it ran, and will not run again; its result is lost"
    if decision in _DEAD_MEANINGS:
        is_expired = owner is not None and owner.liveness is Liveness.EXPIRED
        why = "its lease has expired" if is_expired else "its owner is dead"
        return f"{why}{_DEAD_MEANINGS[decision]}"
    return _MEANINGS[task.status]


def _ago(time_us: int, now_us: int) -> str:
    passed = age(time_us, now_us)
    return f"{passed.removeprefix('-')} ahead of this clock" if passed.startswith("-") else f"{passed} ago"


def _policy(task: Task) -> str:
    policy = task.policy
    crash = {
        OnCrash.RERUN: "run again after a crash",
        OnCrash.VERIFY: "verify after a crash",
        OnCrash.HOLD: "hold after a crash",
    }
    keep = "for ever" if task.keep_ms is None else f"for {span(task.keep_ms // MS_A_SECOND)} once it ended"
    return f"{crash[policy.on_crash]}, {policy.on_failure.name.lower()} after a failure, kept {keep}"


# --- a result ---------------------------------------------------------------------------------------------------


def _result_lines(stored: str) -> list[str]:
    from idemreg.codec import load_result  # noqa: PLC0415 - where there is a result
    from idemreg.output import stored_output  # noqa: PLC0415

    try:
        result = load_result(stored, None)
    except (ResultError, RecursionError):
        return _bounded(escape_lines(stored[:RESULT_CHARACTERS]))
    if (output := stored_output(result)) is not None:
        return _command_lines(output)
    text = json.dumps(json.loads(stored), indent=2, ensure_ascii=False)
    return _bounded(escape_lines(text[:RESULT_CHARACTERS]), is_cut=len(text) > RESULT_CHARACTERS)


def _command_lines(output: StoredOutput) -> list[str]:
    """A command's exit code, and the last lines of what it wrote."""
    text = "".join(_text(data) for _, data in output.pieces)
    lines = escape_lines(text.rstrip("\n")) if text else []
    head = f"exit code {output.exit_code}, " + ("no output" if not lines else "and its output ends with:")
    kept = [shortened(line) for line in lines[-RESULT_LINES:]]
    return [head, *([f"(the last {RESULT_LINES} lines)"] if len(lines) > RESULT_LINES else []), *kept]


def _text(data: str | bytes) -> str:
    return data if isinstance(data, str) else data.decode("utf-8", "backslashreplace")


def shortened(line: str) -> str:
    """A line of at most so many characters: what a job printed may have no line ends at all."""
    return line if len(line) <= LINE_CHARACTERS else line[:LINE_CHARACTERS] + "…"


def _bounded(lines: list[str], *, is_cut: bool = False) -> list[str]:
    kept = [shortened(line) for line in lines[:RESULT_LINES]]
    return [*kept, "… (--json tells all of it)"] if is_cut or len(lines) > RESULT_LINES else kept
