"""The walk of one attempt: claim (`idemreg.acquiring`), run, finish."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from idemreg import faults
from idemreg.acquiring import acquire, make_claim, never_made
from idemreg.asking import ask_into
from idemreg.claim import BaseClaim, Terms, go_in, leave
from idemreg.codec import load_result
from idemreg.deciding import Outcome
from idemreg.ends import crash_end, interrupted, not_recorded, put_back, record, success_end, told
from idemreg.errors import ClaimLostError, FinishNotRecordedError, ResultError, StoreError
from idemreg.model import Status, of_fields
from idemreg.store import Absent, Granted, Recorded, Stored, Unsure
from idemreg.walk import NotStartedError, Walk, drive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from idemreg.deciding import Wanted

__all__ = ["Terms", "attempt", "ended_in_job", "outcome_of", "run", "run_walk"]

R = TypeVar("R")

_NOTHING: Final = object()


def run(
    terms: Terms, wanted: Wanted, job: Callable[..., R], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Outcome[R]:
    """Run the job once under a claim, or replay what an earlier call of the task stored.

    The common duplicate is answered by the first look at the task, and needs no walk.
    """
    seen, claim = terms.store.begin(wanted), None
    try:
        if type(seen) is Stored and not terms.options.raise_on_duplicate:
            return _replay_stored(terms, wanted, seen)
        claim = make_claim(terms, seen, wanted.name) if type(seen) is Granted else None
        walk = attempt(terms, wanted, claim, job, args, kwargs, is_absent=type(seen) is Absent)
    except BaseException:
        never_made(terms, [seen], claim)
        raise
    return drive(walk)


def run_walk(
    terms: Terms, wanted: Wanted, job: Callable[..., R], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Walk[Outcome[R]]:
    """The same as one walk, for callers whose first look is a step as well.

    A coroutine's claims are combined with others by that look (`Store.begin`). Who calls by himself claims the general
    way: what that grants is kept where no interrupt between two steps can lose it.
    """
    if terms.offload is None:
        return (yield from attempt(terms, wanted, None, job, args, kwargs, is_absent=False))
    claim: Any = None
    answers: list[Any] = [None]
    try:
        yield ask_into, (terms.store.begin, wanted, answers), None
        seen: Any = answers[0]
        if type(seen) is Stored and not terms.options.raise_on_duplicate:
            return _replay_stored(terms, wanted, seen)
        claim = make_claim(terms, seen, wanted.name) if type(seen) is Granted else None
        walk = attempt(terms, wanted, claim, job, args, kwargs, is_absent=type(seen) is Absent)
    except BaseException:
        never_made(terms, answers, claim)
        raise
    return (yield from walk)


def _replay_stored(terms: Terms, wanted: Wanted, found: Stored) -> Outcome[Any]:
    try:
        result = load_result(found.result, terms.options.codec)
    except ResultError as error:
        error.task_id = wanted.task_id
        raise
    if terms.teller is not None:
        terms.teller.replayed(wanted.task_id, wanted.name, found.token, found.attempt)
    fields = (wanted.task_id, Status.SUCCEEDED, result, True, found.attempt, found.token)
    return of_fields(Outcome, fields)


def attempt(  # noqa: C901 - the walk itself: each call that parts it costs every new task
    terms: Terms,
    wanted: Wanted,
    claim: Any,  # noqa: ANN401 - `Claim`, or the class of the terms
    job: Callable[..., R],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    is_absent: bool,
) -> Walk[Outcome[R]]:
    """The walk of an attempt, behind the first look: with the claim that it gave, or (None) by a look that sees all."""
    if claim is None:
        got = yield from acquire(terms, wanted, args, kwargs, is_absent=is_absent)
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


# Without memory for it the claim would be dropped anyway, but only once nobody has the error any more.


def _go_in(claim: Any) -> Any:  # noqa: ANN401 - a token of the context variable
    try:
        return go_in(claim)
    except BaseException:
        claim.not_begun()
        raise


def _go_out(claim: Any, before: Any) -> None:  # noqa: ANN401 - as above
    try:
        leave(before)
    except BaseException as error:
        claim.interrupted(error)
        raise


# --- the end ----------------------------------------------------------------------------------------------------


def outcome_of(claim: BaseClaim, result: R) -> Outcome[R]:
    """The outcome of a claim that has succeeded."""
    grant = claim.grant
    return of_fields(Outcome, (grant.task_id, Status.SUCCEEDED, result, False, grant.attempt, grant.token))


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
    if isinstance(error, NotStartedError) and isinstance(error.__cause__, GeneratorExit):
        claim.not_begun()  # nor can it here, before its job: the store puts the task back
        return
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
