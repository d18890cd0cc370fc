"""The walk of one attempt: claim, wait, verify, run, finish. Every branch of the protocol is here, and only here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from idemreg import faults
from idemreg.claim import Claim, current
from idemreg.codec import load_result, store_result
from idemreg.ends import bounded, crash_end, describe, lost_error, not_recorded, record, success_end
from idemreg.errors import (
    ChecksumMismatchError,
    ClaimLostError,
    FinishNotRecordedError,
    ResultError,
    StoreError,
    TaskDoneError,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
)
from idemreg.model import Outcome, Status, Verdict
from idemreg.options import Verified
from idemreg.store import (
    Absent,
    Done,
    Granted,
    Lost,
    Mismatch,
    Recorded,
    Refused,
    Running,
    Settlement,
    Stored,
    Unknown,
    Unsure,
)
from idemreg.walk import Step, Walk, drive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from idemreg.clock import Clock
    from idemreg.model import Task, Wanted
    from idemreg.options import Options
    from idemreg.store import Answer, Store

__all__ = ["Attempt", "acquire", "attempt", "run"]

R = TypeVar("R")

EVIDENCE_CHARACTERS = 4_096
BY_HOOK = "verify hook"

# What a verify hook may say; the other verdicts are an operator's.
_BRIEF = {True: Verdict.HAPPENED, False: Verdict.DID_NOT_HAPPEN, None: Verdict.CANNOT_TELL}


class Attempt(NamedTuple):
    """What one attempt needs: where, what, and how."""

    store: Store
    clock: Clock
    wanted: Wanted
    options: Options
    verify_args: Sequence[Any] = ()
    verify_kwargs: Mapping[str, Any] = {}


def run(
    store: Store,
    clock: Clock,
    wanted: Wanted,
    options: Options,
    job: Callable[..., R],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Outcome[R]:
    """Run the job once under a claim, or replay what an earlier call of the task stored.

    The common duplicate is answered by a glance, and needs no walk.
    """
    found = store.glance(wanted)
    if type(found) is Stored and not options.raise_on_duplicate:
        return _replay_stored(wanted, found, options)
    seen = None if type(found) is Absent else store.look(wanted)
    if type(seen) is Done:
        return replay(seen.task, options)
    return drive(attempt(Attempt(store, clock, wanted, options, args, kwargs), seen, job, args, kwargs))


def _replay_stored(wanted: Wanted, found: Stored, options: Options) -> Outcome[Any]:
    try:
        result = load_result(found.result, options.codec)
    except ResultError as error:
        error.task_id = wanted.task_id
        raise
    return Outcome(wanted.task_id, Status.SUCCEEDED, result, True, found.attempt, found.token)  # noqa: FBT003 - as below


def attempt(
    this: Attempt, seen: Answer | None, job: Callable[..., R], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Walk[Outcome[R]]:
    """The walk of an attempt, from what a first look has ``seen``."""
    answer = seen
    if answer is None:
        (answer,) = yield Step(this.store.claim, ([this.wanted],))
    if type(answer) is Granted and not answer.to_verify:  # the hot path has no walk within the walk
        claim = Claim(this.store, answer, this.options)
    else:
        got = yield from acquire(this, answer)
        if isinstance(got, Outcome):
            return got
        claim = got
    before = current.set(claim)
    try:
        faults.point("claim.granted")
        result = yield Step(_apply, (job, args, kwargs), True)  # noqa: FBT003 - keywords cost on the hot path
        faults.point("job.returned")
    except BaseException as error:
        yield from _end_by_error(this, claim, error)
        raise
    finally:
        current.reset(before)
    if not claim.is_open:
        return _ended_in_job(claim, result)
    end, problem = success_end(claim.grant, this.options, result)
    claim.settled()
    try:
        (recorded,) = yield Step(this.store.finish, ([end],))
    except StoreError as error:
        recorded = Unsure(error)
    if type(recorded) is not Recorded:
        yield from not_recorded(this.store, end, recorded, result)
    if problem is not None:
        raise problem
    return _outcome(claim, result)


def _apply(job: Callable[..., R], args: Sequence[Any], kwargs: Mapping[str, Any]) -> R:
    return job(*args, **kwargs)


# --- claim ------------------------------------------------------------------------------------------------------


def acquire(this: Attempt, seen: Answer | None) -> Walk[Claim | Outcome[Any]]:
    """Claim the task, or give the outcome of its earlier success. Everything else is an error.

    A running twin is waited for up to ``wait``. Nobody waits for ever: each turn of this loop is a wait under that
    deadline, or follows a verdict that ended the row's uncertainty.
    """
    deadline: float | None = None
    while True:
        answer, seen = seen, None
        if answer is None:
            (answer,) = yield Step(this.store.claim, ([this.wanted],))
        match answer:
            case Granted(to_verify=False):
                return Claim(this.store, answer, this.options)
            case Granted():
                yield from _verify(this, answer)
            case Done():
                return replay(answer.task, this.options)
            case Running():
                if deadline is None:
                    deadline = this.clock.monotonic() + this.options.wait_s
                if this.clock.monotonic() >= deadline:
                    raise _running_error(answer)
                yield Step(this.store.wait, (answer.task.task_id, answer.task.version, deadline))
                seen = yield Step(this.store.look, (this.wanted,))
            case _:
                raise _refusal(answer, this.wanted)


def replay(task: Task, options: Options) -> Outcome[Any]:
    """The outcome of a final task. `TaskDoneError` where it has no result to give, or the caller wants none."""
    if task.status is not Status.SUCCEEDED:
        reason = f"was {task.status.word}: {task.evidence or 'no reason given'}"
        raise _done_error(reason, _replayed(task, None))
    if task.result is None:
        msg = f"task {task.task_id!r} succeeded, but its result was lost ({task.error})"
        raise ResultError(msg, task_id=task.task_id)
    try:
        outcome = _replayed(task, load_result(task.result, options.codec))
    except ResultError as error:
        error.task_id = task.task_id
        raise
    if options.raise_on_duplicate:
        happened = "has succeeded before"
        raise _done_error(happened, outcome)
    return outcome


def _replayed(task: Task, result: R) -> Outcome[R]:
    return Outcome(task.task_id, task.status, result, True, task.attempt, task.token)  # noqa: FBT003 - as above


def _done_error(happened: str, outcome: Outcome[Any]) -> TaskDoneError:
    error = TaskDoneError(f"task {outcome.task_id!r} {happened}", task_id=outcome.task_id)
    error.outcome = outcome
    return error


def _running_error(answer: Running) -> TaskRunningError:
    task, owner = answer
    msg = f"task {task.task_id!r} is running: {owner.describe()}"
    error = TaskRunningError(msg, task_id=task.task_id)
    error.owner, error.since = owner, task.updated_at
    return error


def _refusal(answer: Mismatch | Refused | Unknown | Unsure, wanted: Wanted) -> Exception:
    task_id = wanted.task_id
    match answer:
        case Mismatch(task) if task.name != wanted.name:
            msg = f"task {task_id!r} belongs to the job {task.name!r}, not to {wanted.name!r}"
            return ChecksumMismatchError(msg, task_id=task_id)
        case Mismatch():
            return ChecksumMismatchError(f"task {task_id!r} was claimed with other arguments", task_id=task_id)
        case Refused(task):
            failed = TaskFailedError(
                f"task {task_id!r} failed in attempt {task.attempt}: {first_line(task.error)}", task_id=task_id
            )
            failed.task = task
            return failed
        case Unknown(task):
            return _unknown_error(task)
        case Unsure(cause):
            store_error = StoreError(f"the claim of task {task_id!r} could not be stored", task_id=task_id)
            store_error.__cause__ = cause
            return store_error


def _unknown_error(task: Task) -> TaskUnknownError:
    msg = f"nobody knows whether task {task.task_id!r} happened: {first_line(task.error)}"
    error = TaskUnknownError(msg, task_id=task.task_id)
    error.task = task
    return error


def first_line(error: str | None) -> str:
    """The line of a stored error that says what happened."""
    return (error or "no error was stored").partition("\n")[0]


# --- verify -----------------------------------------------------------------------------------------------------


def _verify(this: Attempt, grant: Granted) -> Walk[None]:
    """Ask the verify hook what became of the task, and settle it so. No transaction is open while the hook runs.

    Returns where its answer settled the question; the caller claims anew, and finds the task done or claimable.
    """
    hook = this.options.verify
    failure: BaseException | None = None
    try:
        args = (grant.prior, *this.verify_args)
        verified = _as_verified((yield Step(_apply, (hook, args, this.verify_kwargs), is_user_code=True)))
        settlement = _settlement(this, grant, verified)
    except BaseException as error:  # noqa: BLE001 - the task must not stay claimed by a hook that ended
        failure = error
        settlement = _settlement(this, grant, Verified(Verdict.CANNOT_TELL, evidence=describe(error)))
    try:
        answer = yield Step(this.store.settle, (grant.task_id, settlement))
    except BaseException as error:  # nor by one whose answer could not be stored
        yield Step(this.store.abandon, (crash_end(grant, this.options, describe(error)),))
        raise
    if failure is not None and not isinstance(failure, Exception):
        raise failure
    if isinstance(answer, Lost):
        raise lost_error(grant.task_id)
    if settlement.verdict is Verdict.CANNOT_TELL:
        unknown = _unknown_error(answer)
        unknown.retryable = True  # the next call asks the hook again
        raise unknown from failure


def _as_verified(answer: object) -> Verified:
    """A hook may answer briefly: True for happened, False for did not happen, None for cannot tell, or a Verdict."""
    verified = answer if isinstance(answer, Verified) else Verified(cast("Verdict", answer))
    verdict: object = verified.verdict
    if verdict is None or isinstance(verdict, bool):
        return verified._replace(verdict=_BRIEF[verdict])
    if not isinstance(verdict, Verdict) or verdict not in _BRIEF.values():  # 1 equals HAPPENED
        msg = f"a verify hook says happened, did-not-happen or cannot-tell, or True, False or None, not {verdict!r}"
        raise TypeError(msg)
    return verified


def _settlement(this: Attempt, grant: Granted, verified: Verified) -> Settlement:
    result, lost = None, None
    if verified.verdict is Verdict.HAPPENED:
        try:
            result = store_result(verified.result, this.options.codec)
        except ResultError as error:
            lost = f"ResultError: {error.message}"
    evidence = bounded(verified.evidence, EVIDENCE_CHARACTERS)
    return Settlement(verified.verdict, BY_HOOK, evidence, result, lost, verifying=grant.token)


# --- the end ----------------------------------------------------------------------------------------------------


def _outcome(claim: Claim, result: R) -> Outcome[R]:
    grant = claim.grant
    return Outcome(grant.task_id, Status.SUCCEEDED, result, False, grant.attempt, grant.token)  # noqa: FBT003 - as above


def _ended_in_job(claim: Claim, result: R) -> Outcome[R]:
    """The claim ended inside the job. What was stored then is what every later caller gets."""
    if result is not None and result != claim.result:
        msg = f"task {claim.task_id!r} ended in its job with another result than the job returned"
        raise ResultError(msg, task_id=claim.task_id, hint="Set claim.result in the block of claim.transaction().")
    return _outcome(claim, claim.result)


def _end_by_error(this: Attempt, claim: Claim, error: BaseException) -> Walk[None]:
    """Store what the job's error makes of the task. Interruptions go on their way whatever the store says."""
    if not claim.is_open:
        return
    end = claim.end_for(error)
    claim.settled()
    try:
        yield from record(this.store, end)
    except (ClaimLostError, FinishNotRecordedError) as problem:
        if not isinstance(error, Exception):
            error.add_note(f"idemreg: {problem}")
            return
        raise problem from error
