"""How a claim ends: which end a result or an error leads to, and the walk that stores it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from idemreg.codec import store_result
from idemreg.errors import ClaimLostError, FinishNotRecordedError, ResultError, StoreError
from idemreg.model import OnCrash, Status, of_fields
from idemreg.store import End, Granted, Lost, Recorded, Unsure

if TYPE_CHECKING:
    from idemreg.claim import BaseClaim
    from idemreg.keyed import ErrorDetail
    from idemreg.options import Options
    from idemreg.walk import Walk

__all__ = [
    "abandon",
    "bounded",
    "crash_end",
    "describe",
    "ended_error",
    "error_end",
    "handed_over",
    "interrupted",
    "lost_error",
    "lost_result",
    "message_of",
    "not_recorded",
    "put_back",
    "record",
    "success_end",
    "tell_abandoned",
    "told",
]

E = TypeVar("E", bound=BaseException)

ERROR_CHARACTERS: Final = 4_096
MESSAGE_CHARACTERS: Final = 1_000


def success_end(claim: Granted, options: Options, result: object) -> tuple[End, ResultError | None]:
    """succeeded. A result that cannot be stored is lost, and said: the job did run, and must not run again."""
    text, lost, problem = None, None, None
    try:
        text = store_result(result, options.codec)
    except ResultError as error:
        error.task_id = claim.task_id
        lost, problem = lost_result(error, options), error
    task_id, token, attempt, owner, durable = claim.task_id, claim.token, claim.attempt, claim.owner, options.durable
    end = of_fields(End, (task_id, token, owner, Status.SUCCEEDED, attempt, text, lost, durable, None, False))
    return end, problem


def error_end(claim: Granted, options: Options, error: BaseException) -> End:
    """What the job's error makes of its task."""
    if isinstance(error, options.release_on):
        return End.release(claim, durable=options.durable)
    if isinstance(error, options.unknown_on):
        return _end(claim, options, Status.UNKNOWN, told(error, options))
    if not isinstance(error, Exception):  # KeyboardInterrupt, SystemExit, CancelledError
        return crash_end(claim, options, told(error, options))
    return _end(claim, options, Status.FAILED, told(error, options))


def crash_end(claim: Granted, options: Options, why: str) -> End:
    """The job was interrupted or dropped: its crash policy decides, as it would if the process had died."""
    if claim.policy.on_crash is not OnCrash.RERUN:
        return _end(claim, options, Status.UNKNOWN, why)
    used_up = claim.attempt >= options.policy.max_attempts
    return _end(claim, options, Status.FAILED if used_up else Status.PENDING, why)


def _end(claim: Granted, options: Options, status: Status, error: str) -> End:
    return End(claim.task_id, claim.token, claim.owner, status, claim.attempt, error=error, durable=options.durable)


def record(claim: BaseClaim, end: End, result: object = None) -> Walk[None]:
    """Store the end.

    `ClaimLostError` where the claim is another's by now. `FinishNotRecordedError` where the store could not write: the
    task then becomes `unknown` as soon as it can. Whatever else comes, the claim is over: see `interrupted`.
    """
    store, teller = claim.terms.store, claim.terms.teller
    try:
        claim.settled()
        answer = yield store.finish_one, (end,), None
    except StoreError as error:
        answer = Unsure(error)
    except BaseException as error:
        interrupted(claim, end, error)
        raise
    if type(answer) is not Recorded:
        yield from not_recorded(claim, end, answer, result)
    if teller is not None:
        teller.ended(claim.grant, claim.name, end)


def put_back(claim: BaseClaim) -> Walk[None]:
    """End the claim of a caller who was cancelled before the job: the task is as it was."""
    yield from record(claim, End.release(claim.grant, durable=claim.options.durable, nothing_ran=True))


def not_recorded(claim: BaseClaim, end: End, answer: Lost | Unsure, result: object) -> Walk[None]:
    """Raise what an end that is not stored means to the owner; see `record`."""
    if isinstance(answer, Lost):
        raise lost_error(end.task_id)
    instead = not_recorded_end(end, answer.cause, claim.options)
    is_left = yield claim.terms.store.abandon, (instead,), None
    tell_abandoned(claim, instead, is_left=is_left)
    raise not_recorded_error(end, result) from answer.cause


def interrupted(claim: BaseClaim, end: End, error: BaseException) -> None:
    """An error from outside (Ctrl-C, a time limit) came while the end was being stored: leave no claim behind.

    Nobody knows yet whether the end is stored. Where it is, it stays. Where not, the crash policy decides, as it does
    for an interrupted job; only what leaves the task as it was, or as a crash would, is stored after all.
    """
    if isinstance(error, GeneratorExit) and claim.terms.offload is not None:
        return  # a coroutine was closed: what it waited for is done all the same, and whole (see `adrive`)
    if end.attempt == claim.grant.attempt and end.status in {Status.SUCCEEDED, Status.FAILED}:
        what = told(error, claim.options)
        why = f"FinishNotRecorded: the job ended as {end.status.word}; storing that was interrupted: {what}"
        end = crash_end(claim.grant, claim.options, bounded(why, ERROR_CHARACTERS))
    abandon(claim, end)


def abandon(claim: BaseClaim, end: End) -> None:
    """The claim ends so as soon as the store can write; that is told at once, unless the claim had ended before."""
    claim.settled()
    tell_abandoned(claim, end, is_left=claim.terms.store.abandon(end))


def tell_abandoned(claim: BaseClaim, end: End, *, is_left: bool) -> None:
    """Tell of an end that was left to the store, which may write it now or later: see `Store.abandon`."""
    if is_left and claim.terms.teller is not None:
        claim.terms.teller.ended(claim.grant, claim.name, end)


def not_recorded_end(end: End, cause: BaseException, options: Options) -> End:
    """What becomes of a task whose end could not be stored, once something can be."""
    if end.was_absent:  # nothing ran, and that stays true
        return end
    why = f"FinishNotRecorded: the job ended as {end.status.word}, but storing that failed: {told(cause, options)}"
    return end._replace(status=Status.UNKNOWN, result=None, error=bounded(why, ERROR_CHARACTERS))


def not_recorded_error(end: End, result: object) -> FinishNotRecordedError:
    """The error for the caller, with the result that the job gave."""
    msg = f"task {end.task_id!r} ended as {end.status.word}, but that could not be stored"
    error = FinishNotRecordedError(msg, task_id=end.task_id)
    error.result = result
    return error


def lost_error(task_id: str) -> ClaimLostError:
    """The error of a late owner."""
    return ClaimLostError(f"the claim of task {task_id!r} is not this owner's any more", task_id=task_id)


def ended_error(task_id: str) -> ClaimLostError:
    """The error of who goes on with a claim that has ended: by this very process, or found to be lost before."""
    hint = "What is the job's goes before the end of its claim; `idemreg show TASK_ID` tells what became of it."
    return ClaimLostError(f"the claim of task {task_id!r} has ended", task_id=task_id, hint=hint)


def told(error: BaseException, options: Options) -> str:
    """What is stored of an error that came from the job, or from a caller of his."""
    return describe(error, options.secrecy.error_detail)


def handed_over(error: E) -> E:
    """An error that is an answer, and is not raised: without tracebacks, its own and those of what it came from.

    The frames of a traceback lead to their callers, and so to the very list that the error stands in. With it all else
    in there, claims that were not entered among it, would live until garbage is collected.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def lost_result(error: ResultError, options: Options) -> str:
    """What is stored in place of a result that cannot be."""
    if options.secrecy.error_detail == "type":
        return "ResultError"
    return bounded(f"ResultError: {error.message}", MESSAGE_CHARACTERS)  # it may quote a key of the result


def describe(error: BaseException, detail: ErrorDetail = "traceback") -> str:
    """Type and message of an error in one line, then where it came from; bounded, and fit to be stored.

    ``detail``: "message" ends with the first line, "type" names the type alone.
    """
    try:
        return _described(error, detail)
    except MemoryError:  # which may be what is to be described
        return type(error).__name__


def _described(error: BaseException, detail: ErrorDetail) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if detail == "type":
        return bounded(name, MESSAGE_CHARACTERS)
    message = message_of(error)
    head = bounded(f"{name}: {message}" if message else name, MESSAGE_CHARACTERS)
    if detail == "message":
        return head
    try:
        import traceback  # noqa: PLC0415 - only failures need it
    except OSError:  # no descriptor is left to import it with
        return head
    frames = "".join(traceback.format_tb(error.__traceback__)[-8:])
    return bounded(f"{head}\n{frames}".rstrip(), ERROR_CHARACTERS)


def message_of(error: BaseException) -> str:
    """What the error says, whatever its class does when it is asked."""
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - a message that cannot be made must not hide the failure
        return f"(its message cannot be made: {type(broken).__name__})"


def bounded(text: Any, characters: int) -> str:  # noqa: ANN401 - whatever a hook returned
    """Text fit to be stored: no lone surrogates, no NUL, no longer than that."""
    clean = str(text).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return clean if len(clean) <= characters else clean[: characters - 1] + "…"
