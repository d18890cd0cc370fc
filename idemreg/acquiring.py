"""The way to a claim: claim, wait, verify. Whoever gets none here gets the outcome of an earlier success, or an error.

Between the store's answer and the claim that is made of it nobody else can end the task. An interruption, or a lack of
memory, may come at any call; so whoever calls the store has its answer within a `try` before anything else is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from idemreg.asking import ask_into
from idemreg.claim import BaseClaim, Claim, Terms
from idemreg.codec import load_result, store_result
from idemreg.deciding import Outcome
from idemreg.ends import bounded, lost_error, lost_result, told
from idemreg.errors import IdemregError, ResultError
from idemreg.model import Status, Verdict
from idemreg.options import NoVerdictError, Verified
from idemreg.refusals import done_error, refusal, running_error, unknown_error
from idemreg.store import Absent, Done, End, Granted, Lost, Running, Settlement
from idemreg.walk import PAUSE, Walk, drive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from idemreg.deciding import Wanted
    from idemreg.events import Teller
    from idemreg.model import Task
    from idemreg.options import Options
    from idemreg.store import Answer, Store

__all__ = [
    "Terms",
    "acquire",
    "claim",
    "claim_walk",
    "make_claim",
    "make_claims",
    "never_made",
    "put_back_granted",
]

R = TypeVar("R")

_NO_KEYWORDS: Final[Mapping[str, Any]] = {}

EVIDENCE_CHARACTERS = 4_096
BY_HOOK = "verify hook"

# Waiting for a running twin: the first look comes soon, later ones cost a process next to nothing. Waits are pauses of
# the walk and no call of the store, which would keep a thread for every coroutine that waits.
FIRST_NAP_S: Final = 0.001
LONGEST_NAP_S: Final = 0.05
NAP_GROWTH: Final = 1.6


# --- made -------------------------------------------------------------------------------------------------------


def make_claim(terms: Terms, grant: Granted, name: str) -> Any:  # noqa: ANN401 - `Claim`, or the class of the terms
    """The claim of what the store granted. Whoever calls puts the grant back where none was made: `never_made`."""
    claim = Claim(terms, grant, name) if terms.claim is None else terms.claim(terms, grant, name)
    if terms.teller is not None:
        _tell(terms.teller, [claim])
    return claim


def never_made(terms: Terms, answers: Iterable[object], claim: BaseClaim | None = None) -> None:
    """Put back what was granted and has no claim, which nobody else can end. One that was made and ended stays so.

    ``claim``: that of the answer, which no caller gets all the same.
    """
    if claim is not None:
        claim.settled()
    put_back_granted(terms.store, answers)


def put_back_granted(store: Store, answers: Iterable[object]) -> None:
    """What was granted is nobody's: its job has not begun."""
    for answer in answers:
        if type(answer) is Granted:
            store.abandon(End.release(answer, nothing_ran=True))


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
    by: Callable[[Sequence[Wanted]], list[Answer]] | None = None,
) -> Walk[Any]:
    """Claim the task, or give the `Outcome` of its earlier success. Everything else is an error.

    A running twin is waited for up to ``wait``. Nobody waits for ever: each turn of this loop is a wait under that
    deadline, or follows a verdict that ended the row's uncertainty. ``is_absent``: there was no row a moment ago.
    ``answer``: what a claim of several has answered. ``by``: in place of `Store.claim`.
    """
    store, clock, options = terms.store, terms.clock, terms.options
    deadline: float | None = None
    nap = FIRST_NAP_S
    got: Any = answer
    if got is None and not is_absent:
        got = yield store.look, (wanted,), None
    while True:
        if got is None:
            got = yield from _claim(terms, wanted, verify_args, verify_kwargs, by or store.claim)
        match got:
            case BaseClaim():
                return got
            case None:  # verified: claimed anew
                pass
            case Done():
                return replay(got.task, terms)
            case Running():
                now = clock.monotonic()
                deadline = now + options.wait_s if deadline is None else deadline
                if now >= deadline:
                    raise running_error(got)
                yield clock.sleep, (min(nap, deadline - now),), PAUSE
                nap = min(nap * NAP_GROWTH, LONGEST_NAP_S)
                got = yield store.look, (wanted,), None
            case _:
                if terms.teller is not None:
                    terms.teller.refused(got, wanted)
                raise refusal(got, wanted)


def _claim(
    terms: Terms,
    wanted: Wanted,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    by: Callable[[Sequence[Wanted]], list[Answer]],
) -> Walk[Any]:
    """The claim, or the store's answer; None where a verify hook was asked, so that it is to be claimed anew."""
    answers: list[list[Answer]] = [[]]
    try:
        yield ask_into, (by, [wanted], answers), None
        ((answer,),) = answers
        if type(answer) is not Granted:
            return answer
        if not answer.to_verify:
            return make_claim(terms, answer, wanted.name)
        yield from _verify(terms, answer, wanted.name, args, kwargs)
    except IdemregError:  # the store has granted nothing, or what the hook's end is stored as says so
        raise
    except BaseException:
        never_made(terms, answers[0])
        raise
    return None


def claim(terms: Terms, wanted: Wanted) -> Any:  # noqa: ANN401 - as `make_claim`
    """A claim that its caller ends: `acquire`, by one statement where the task is new."""
    seen = terms.store.begin(wanted)
    try:
        if type(seen) is Granted:
            return make_claim(terms, seen, wanted.name)
        walk = acquire(terms, wanted, is_absent=type(seen) is Absent)
    except BaseException:
        never_made(terms, [seen])
        raise
    return drive(walk)


def claim_walk(terms: Terms, wanted: Wanted) -> Walk[Any]:
    """The same as one walk, for callers whose first look is a step as well."""
    answers: list[Any] = [None]
    try:
        yield ask_into, (terms.store.begin, wanted, answers), None
        (seen,) = answers
        if type(seen) is Granted:
            return make_claim(terms, seen, wanted.name)
        walk = acquire(terms, wanted, is_absent=type(seen) is Absent)
    except BaseException:
        never_made(terms, answers)
        raise
    return (yield from walk)


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
        settlement = _failed(options, grant, error)
    try:
        answer = yield store.settle, (grant.task_id, settlement), None
    except BaseException as error:  # nor by one whose answer could not be stored
        _abandon_hook(terms, grant, name, error)
        raise
    is_unknown = settlement.verdict in (None, Verdict.CANNOT_TELL) and not isinstance(answer, Lost)
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
    """Leave its claim without a verdict of its own, as soon as the store can write: a person's from before stays."""
    end = End.release(grant)
    if not _is_told_by_others(grant.prior):
        end = end._replace(verdict=None)
    if grant.prior is None or grant.prior.status is not Status.UNKNOWN:  # else what is known of the attempt stays
        end = end._replace(error=told(error, terms.options))
    if terms.store.abandon(end) and terms.teller is not None:
        terms.teller.ended(grant, name, end)


def _failed(options: Options, grant: Granted, error: BaseException) -> Settlement:
    """What a hook that raised makes of the task. An error is its answer: it cannot tell. An interruption is none.

    So the next sweep asks again what was cut off, and leaves to people what the hook itself cannot tell, or what one
    of them has said before: that stays, with his name and his evidence.
    """
    is_cut_off = isinstance(error, NoVerdictError)
    evidence = str(error) if is_cut_off else told(error, options)
    settlement = _settlement(options, grant, Verified(Verdict.CANNOT_TELL, evidence=evidence))
    if isinstance(error, Exception) and not is_cut_off:
        return settlement
    if (prior := grant.prior) is not None and _is_told_by_others(prior):
        return settlement._replace(verdict=prior.verdict, by=prior.settled_by or "", evidence=prior.evidence or "")
    return settlement._replace(verdict=None, evidence=bounded(f"no verdict: {evidence}", EVIDENCE_CHARACTERS))


def _is_told_by_others(prior: Task | None) -> bool:
    """Whether somebody else than a hook has said before that he cannot tell."""
    if prior is None or prior.status is not Status.UNKNOWN:
        return False
    return prior.verdict is not None and prior.settled_by != BY_HOOK


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
