"""The walk of one attempt: claim, wait, verify, run, finish. Every branch of the protocol is here, and only here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from idemreg import faults
from idemreg.claim import BaseClaim, Claim, Terms, current, leave
from idemreg.codec import load_result, store_result
from idemreg.ends import (
    bounded,
    crash_end,
    interrupted,
    lost_error,
    lost_result,
    not_recorded,
    put_back,
    record,
    success_end,
    told,
)
from idemreg.errors import ClaimLostError, FinishNotRecordedError, ResultError, StoreError
from idemreg.model import Outcome, Status, Verdict
from idemreg.options import Verified
from idemreg.refusals import done_error, refusal, running_error, unknown_error
from idemreg.store import Absent, Done, End, Granted, Lost, Recorded, Running, Settlement, Stored, Unsure
from idemreg.walk import PAUSE, NotStartedError, Walk, drive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from idemreg.events import Teller
    from idemreg.model import Task, Wanted
    from idemreg.options import Options
    from idemreg.store import Answer

__all__ = [
    "Terms",
    "acquire",
    "attempt",
    "claim",
    "ended_in_job",
    "make_claim",
    "make_claims",
    "never_made",
    "outcome_of",
    "run",
    "run_walk",
]

R = TypeVar("R")

_NOTHING: Final = object()
_NO_KEYWORDS: Final[Mapping[str, Any]] = {}

EVIDENCE_CHARACTERS = 4_096
BY_HOOK = "verify hook"


# Waiting for a running twin: the first look comes soon, later ones cost a process next to nothing. Waits are pauses of
# the walk and no call of the store, which would keep a thread for every coroutine that waits.
FIRST_NAP_S: Final = 0.001
LONGEST_NAP_S: Final = 0.05
NAP_GROWTH: Final = 1.6


def run(
    terms: Terms, wanted: Wanted, job: Callable[..., R], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Outcome[R]:
    """Run the job once under a claim, or replay what an earlier call of the task stored.

    The common duplicate is answered by the first look at the task, and needs no walk.
    """
    seen = terms.store.begin(wanted)
    if type(seen) is Stored and not terms.options.raise_on_duplicate:
        return _replay_stored(terms, wanted, seen)
    try:
        walk = attempt(terms, wanted, seen, job, args, kwargs)
    except BaseException:
        never_made(terms, [seen])
        raise
    return drive(walk)


def run_walk(
    terms: Terms, wanted: Wanted, job: Callable[..., R], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Walk[Outcome[R]]:
    """The same as one walk, for callers whose first look is a step as well."""
    seen = yield terms.store.begin, (wanted,), None
    if type(seen) is Stored and not terms.options.raise_on_duplicate:
        return _replay_stored(terms, wanted, seen)
    return (yield from attempt(terms, wanted, seen, job, args, kwargs))


def _replay_stored(terms: Terms, wanted: Wanted, found: Stored) -> Outcome[Any]:
    try:
        result = load_result(found.result, terms.options.codec)
    except ResultError as error:
        error.task_id = wanted.task_id
        raise
    if terms.teller is not None:
        terms.teller.replayed(wanted.task_id, wanted.name, found.token, found.attempt)
    return Outcome(wanted.task_id, Status.SUCCEEDED, result, True, found.attempt, found.token)  # noqa: FBT003 - as below


def attempt(  # noqa: C901 - the walk itself: each call that parts it costs every new task
    terms: Terms,
    wanted: Wanted,
    seen: Stored | Granted | Absent | None,
    job: Callable[..., R],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Walk[Outcome[R]]:
    """The walk of an attempt, from what `Store.begin` gave."""
    if type(seen) is Granted:
        claim = make_claim(terms, seen, wanted.name)
    else:
        got = yield from acquire(terms, wanted, args, kwargs, is_absent=type(seen) is Absent)
        if isinstance(got, Outcome):
            return got
        claim = got
    result: Any = _NOTHING
    before = _go_in(claim)
    try:
        faults.point("claim.granted")
        result = yield (job, args, kwargs)
        faults.point("job.returned")
        if not claim.is_open:
            return ended_in_job(claim, result)
        end, problem = success_end(claim.grant, terms.options, result)
    except BaseException as error:
        try:
            yield from _end_by_error(claim, error, has_returned=result is not _NOTHING)
        except BaseException as problem:
            claim.interrupted(problem)  # where it came before the end was made
            raise
        raise
    finally:
        _go_out(claim, before)
    try:  # as `record` does, whose walk within the walk costs a microsecond
        claim.settled()
        recorded = yield terms.store.finish_one, (end,), None
    except StoreError as error:
        recorded = Unsure(error)
    except BaseException as error:
        interrupted(claim, end, error)
        raise
    if type(recorded) is not Recorded:
        yield from not_recorded(claim, end, recorded, result)
    if terms.teller is not None:
        terms.teller.ended(claim.grant, wanted.name, end)
    if problem is not None:
        raise problem
    return outcome_of(claim, result)


# Without memory CPython may leave the claim in the context for good, so that nobody ever drops it.


def _go_in(claim: Any) -> Any:  # noqa: ANN401 - a token of the context variable
    try:
        return current.set(claim)
    except BaseException:
        claim.not_begun()
        raise


def _go_out(claim: Any, before: Any) -> None:  # noqa: ANN401 - as above
    try:
        leave(before)
    except BaseException as error:
        claim.interrupted(error)
        raise


def make_claim(terms: Terms, grant: Granted, name: str) -> Any:  # noqa: ANN401 - `Claim`, or the class of the terms
    """The claim of what the store granted."""
    try:
        claim = Claim(terms, grant, name) if terms.claim is None else terms.claim(terms, grant, name)
    except BaseException:  # no memory, or an interruption
        never_made(terms, [grant])
        raise
    if terms.teller is not None:
        _tell(terms.teller, [claim])
    return claim


def never_made(terms: Terms, answers: Iterable[object]) -> None:
    """Put back what was granted and has no claim, which nobody else can end. One that was made and ended stays so."""
    for answer in answers:
        if type(answer) is Granted:
            terms.store.abandon(End.release(answer, nothing_ran=True))


def make_claims(terms: Terms, answers: Sequence[Any], wanted: Sequence[Wanted]) -> list[Any]:
    """The claims of a batch. All are there before one is told of: from then on each is settled when it is dropped."""
    kind = Claim if terms.claim is None else terms.claim
    pairs = zip(answers, wanted, strict=True)
    claims = [kind(terms, answer, one.name) for answer, one in pairs if type(answer) is Granted]
    if terms.teller is not None:
        _tell(terms.teller, claims)
    return claims


def _tell(teller: Teller, claims: Sequence[BaseClaim]) -> None:
    """Tell of claims. An interruption of the callback (Ctrl-C) puts all of them back, untold: no job has begun."""
    try:
        for claim in claims:
            teller.granted(claim.grant, claim.name)
    except BaseException:
        for claim in claims:
            claim.settled()
            claim.terms.store.abandon(End.release(claim.grant, nothing_ran=True))
        raise


# --- claim ------------------------------------------------------------------------------------------------------


def acquire(
    terms: Terms,
    wanted: Wanted,
    verify_args: Sequence[Any] = (),
    verify_kwargs: Mapping[str, Any] = _NO_KEYWORDS,
    *,
    is_absent: bool = False,
    answer: Answer | None = None,
) -> Walk[Any]:
    """Claim the task, or give the `Outcome` of its earlier success. Everything else is an error.

    A running twin is waited for up to ``wait``. Nobody waits for ever: each turn of this loop is a wait under that
    deadline, or follows a verdict that ended the row's uncertainty. ``is_absent``: there was no row a moment ago.
    ``answer``: what a claim of several has answered.
    """
    store, clock, options = terms.store, terms.clock, terms.options
    deadline: float | None = None
    nap = FIRST_NAP_S
    seen = answer
    if seen is None and not is_absent:
        seen = yield store.look, (wanted,), None
    while True:
        answer, seen = seen, None
        if answer is None:
            (answer,) = yield store.claim, ([wanted],), None
        match answer:
            case Granted(to_verify=False):
                return make_claim(terms, answer, wanted.name)
            case Granted():
                yield from _verify(terms, answer, wanted.name, verify_args, verify_kwargs)
            case Done():
                return replay(answer.task, terms)
            case Running():
                now = clock.monotonic()
                deadline = now + options.wait_s if deadline is None else deadline
                if now >= deadline:
                    raise running_error(answer)
                yield clock.sleep, (min(nap, deadline - now),), PAUSE
                nap = min(nap * NAP_GROWTH, LONGEST_NAP_S)
                seen = yield store.look, (wanted,), None
            case _:
                if terms.teller is not None:
                    terms.teller.refused(answer, wanted)
                raise refusal(answer, wanted)


def claim(terms: Terms, wanted: Wanted) -> Walk[Any]:
    """The walk of a claim that its caller ends: `acquire`, by one statement where the task is new."""
    seen = yield terms.store.begin, (wanted,), None
    if type(seen) is Granted:
        return make_claim(terms, seen, wanted.name)
    return (yield from acquire(terms, wanted, is_absent=type(seen) is Absent))


def replay(task: Task, terms: Terms) -> Outcome[Any]:
    """The outcome of a final task. `TaskDoneError` where it has no result to give, or the caller wants none."""
    if terms.teller is not None:
        terms.teller.replayed(task.task_id, task.name, task.token, task.attempt)
    if task.status is not Status.SUCCEEDED:
        reason = f"was {task.status.word}: {task.evidence or 'no reason given'}"
        raise done_error(reason, _replayed(task, None))
    if task.result is None:
        msg = f"task {task.task_id!r} succeeded, but its result was lost ({task.error})"
        raise ResultError(msg, task_id=task.task_id)
    try:
        outcome = _replayed(task, load_result(task.result, terms.options.codec))
    except ResultError as error:
        error.task_id = task.task_id
        raise
    if terms.options.raise_on_duplicate:
        happened = "has succeeded before"
        raise done_error(happened, outcome)
    return outcome


def _replayed(task: Task, result: R) -> Outcome[R]:
    return Outcome(task.task_id, task.status, result, True, task.attempt, task.token)  # noqa: FBT003 - as above


# --- verify -----------------------------------------------------------------------------------------------------


def _verify(terms: Terms, grant: Granted, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Walk[None]:
    """Ask the verify hook what became of the task, and settle it so. No transaction is open while the hook runs.

    Returns where its answer settled the question; the caller claims anew, and finds the task done or claimable.
    """
    store, options = terms.store, terms.options
    failure: BaseException | None = None
    try:
        if terms.teller is not None:
            terms.teller.granted(grant, name)
        hook = cast("Callable[..., Any]", options.verify)  # only who has a hook is granted a claim for it
        verified = Verified.of((yield hook, (grant.prior, *args), kwargs))
        settlement = _settlement(options, grant, verified)
    except GeneratorExit as error:  # the coroutine was closed: nothing can be awaited
        _abandon_hook(terms, grant, name, error)
        raise
    except BaseException as error:  # noqa: BLE001 - the task must not stay claimed by a hook that ended
        failure = error
        settlement = _settlement(options, grant, Verified(Verdict.CANNOT_TELL, evidence=told(error, options)))
    try:
        answer = yield store.settle, (grant.task_id, settlement), None
    except BaseException as error:  # nor by one whose answer could not be stored
        _abandon_hook(terms, grant, name, error)
        raise
    is_unknown = settlement.verdict is Verdict.CANNOT_TELL and not isinstance(answer, Lost)
    if is_unknown and terms.teller is not None:
        terms.teller.unknown(answer)
    if failure is not None and not isinstance(failure, Exception):
        raise failure
    if isinstance(answer, Lost):
        raise lost_error(grant.task_id)
    if is_unknown:
        unknown = unknown_error(answer)
        unknown.retryable = True  # the next call asks the hook again
        raise unknown from failure


def _abandon_hook(terms: Terms, grant: Granted, name: str, error: BaseException) -> None:
    end = crash_end(grant, terms.options, told(error, terms.options))
    if terms.store.abandon(end) and terms.teller is not None:
        terms.teller.ended(grant, name, end)


def _settlement(options: Options, grant: Granted, verified: Verified) -> Settlement:
    prior = grant.prior
    result, lost = None if prior is None or prior.status is not Status.UNKNOWN else prior.result, None
    if verified.verdict is Verdict.HAPPENED:
        result = None
        try:
            result = store_result(verified.result, options.codec)
        except ResultError as error:
            lost = lost_result(error, options)
    evidence = bounded(verified.evidence, EVIDENCE_CHARACTERS)
    return Settlement(verified.verdict, BY_HOOK, evidence, result, lost, verifying=grant.token)


# --- the end ----------------------------------------------------------------------------------------------------


def outcome_of(claim: BaseClaim, result: R) -> Outcome[R]:
    """The outcome of a claim that has succeeded."""
    grant = claim.grant
    return Outcome(grant.task_id, Status.SUCCEEDED, result, False, grant.attempt, grant.token)  # noqa: FBT003 - as above


def ended_in_job(claim: BaseClaim, result: R) -> Outcome[R]:
    """The claim ended inside the job. What was stored then is what every later caller gets."""
    if result is not None and result != claim.result:
        msg = f"task {claim.task_id!r} ended in its job with another result than the job returned"
        raise ResultError(msg, task_id=claim.task_id, hint="Set claim.result in the block of claim.transaction().")
    return outcome_of(claim, claim.result)


def _end_by_error(claim: BaseClaim, error: BaseException, *, has_returned: bool) -> Walk[None]:
    """Store what the job's error makes of the task. Interruptions go on their way whatever the store says.

    ``has_returned``: the job is through, and memory ran out before its end was made. That is no failure of the job,
    after which it might run again.
    """
    if not claim.is_open or isinstance(error, GeneratorExit):
        return  # a coroutine that is closed can await nothing: its claim is dropped
    try:
        if isinstance(error, NotStartedError):
            yield from put_back(claim)
        elif has_returned:
            yield from record(claim, crash_end(claim.grant, claim.options, told(error, claim.options)))
        else:
            yield from record(claim, claim.end_for(error))
    except (ClaimLostError, FinishNotRecordedError) as problem:
        if not isinstance(error, Exception):
            error.add_note(f"idemreg: {problem}")
            return
        raise problem from error
