"""Many tasks at once: claimed by one commit, entered one after the other, ended by one commit.

The items stay atomic one by one: each has an answer of its own, and none waits for or fails with another. What the
process's death finds of a batch is told apart by its notes: a task that was entered is unknown (or runs again), as
after any crash; one that was not is put back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from idemreg import faults
from idemreg.acquiring import acquire, make_claims, never_made, put_back_granted
from idemreg.asking import ask_into
from idemreg.attempt import ended_in_job, outcome_of
from idemreg.batching import BATCH_LIMIT
from idemreg.claim import BaseClaim, go_in, leave
from idemreg.deciding import Outcome
from idemreg.ends import (
    abandon,
    crash_end,
    ended_error,
    handed_over,
    interrupted,
    lost_error,
    not_recorded_end,
    not_recorded_error,
    success_end,
    tell_abandoned,
    told,
)
from idemreg.errors import IdemregError, ResultError, StoreError, TaskRunningError
from idemreg.request import wanted as make_wanted
from idemreg.store import End, Granted, Lost, Recorded, Unknown, Unsure
from idemreg.tagged import canonical
from idemreg.walk import NotStartedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from idemreg.claim import Terms
    from idemreg.deciding import Wanted
    from idemreg.options import Options
    from idemreg.store import Answer, Store
    from idemreg.walk import Walk

__all__ = ["Handled", "Message", "claim_many", "finish_many", "handle", "messages_of", "requests"]

M = TypeVar("M")
R = TypeVar("R")


class Handled(NamedTuple, Generic[M, R]):
    """What became of a message: an outcome (acknowledge it), or an error (``retryable`` says whether to have it again).

    An exception of the job comes as it was raised.
    """

    message: M
    outcome: Outcome[R] | None
    error: Exception | None

    @property
    def retryable(self) -> bool:
        """Whether the same message may succeed later with nobody doing anything."""
        return self.error is not None and bool(getattr(self.error, "retryable", True))


class Message(NamedTuple):
    """A message and the claim that it asks for, or why it can ask for none."""

    content: Any
    wanted: Wanted | Exception


class _Ended(NamedTuple):
    claim: BaseClaim
    end: End
    result: Any
    problem: Exception | None  # what the caller is told where the end is stored


def requests(items: Iterable[tuple[str, object]], name: str, options: Options) -> list[Wanted | Exception]:
    """What the items ask for; of one that can ask for nothing, why."""
    return [_request(task_id, payload, name, options) for task_id, payload in items]


def messages_of(
    contents: Iterable[M],
    task_id: Callable[[M], str],
    payload: Callable[[M], object] | None,
    name: str,
    options: Options,
) -> list[Message]:
    """The messages with what they ask for. An error of the caller's own functions is one of that message."""
    messages = []
    for content in contents:
        wanted: Wanted | Exception
        try:
            what = content if payload is None else payload(content)
            wanted = _request(task_id(content), what, name, options)
        except Exception as error:  # noqa: BLE001 - one bad message must not stop the others
            wanted = error
        messages.append(Message(content, wanted))
    return messages


def _request(task_id: str, payload: object, name: str, options: Options) -> Wanted | Exception:
    try:
        return make_wanted(task_id, name, canonical(payload), options)
    except IdemregError as error:
        return handed_over(error)


def claim_many(terms: Terms, requests: Sequence[Wanted | Exception], *, waits: bool = True) -> Walk[list[Any]]:
    """Claim them in one commit. One answer an item, in order: a claim, an `Outcome`, or an error (not raised).

    ``waits``: for tasks that run elsewhere. One that this very batch has claimed cannot end before the caller goes on.
    """
    wanted = [one for one in requests if not isinstance(one, Exception)]
    if len(wanted) > BATCH_LIMIT:
        msg = f"a batch has {len(wanted):,} tasks; at most {BATCH_LIMIT:,} are claimed at once"
        raise ValueError(msg)
    answers: list[list[Any]] = [[]]
    claims: list[Any] = []
    given: list[Any] = []
    try:
        if wanted:
            yield ask_into, (terms.store.claim_batch, wanted, answers), None
        (granted,) = answers
        claims = make_claims(terms, granted, wanted)
        pairs = list(zip(granted, wanted, strict=True))
        yield from _give(terms, pairs, claims, given, waits=waits)
    except BaseException:  # while one was waited for, say: nobody gets the claims of the others
        for claim in (*claims, *given):
            if isinstance(claim, BaseClaim):
                claim.not_begun()
        never_made(terms, () if claims else answers[0])
        raise
    rest = iter(given)
    return [request if isinstance(request, Exception) else next(rest) for request in requests]


def _give(
    terms: Terms, pairs: Sequence[tuple[Any, Wanted]], claims: Sequence[BaseClaim], given: list[Any], *, waits: bool
) -> Walk[None]:
    """Put into ``given`` what becomes of each, in order. Should this end early, its caller has what is in there."""
    own = {claim.task_id for claim in claims}
    at_once = terms._replace(options=terms.options._replace(wait_s=0))
    unclaimed = iter(claims)
    for answer, one in pairs:
        if type(answer) is Granted:
            given.append(next(unclaimed))
        else:
            of = terms if waits and one.task_id not in own else at_once
            given.append((yield from _answer(of, one, answer)))


def _answer(terms: Terms, wanted: Wanted, answer: Answer) -> Walk[Any]:
    """What a single claim would have given, as a value."""
    asks = isinstance(answer, Unknown) and terms.options.verify is not None  # the hook, under a claim of its own
    try:
        by = _noted(terms.store)
        return (yield from acquire(terms, wanted, answer=None if asks else answer, is_absent=asks, by=by))
    except IdemregError as error:
        return handed_over(error)


def _noted(store: Store) -> Callable[[Sequence[Wanted]], list[Answer]]:
    """Claims one that was waited for as a batch of its own: its caller enters it as the others, perhaps much later.

    A verify hook is asked under a single claim.
    """

    def claim(wanted: Sequence[Wanted]) -> list[Answer]:
        answers: list[Answer] = []
        try:
            answers = store.claim_batch(wanted)
            if isinstance(answers[0], Unknown) and wanted[0].can_verify:
                answers = store.claim(wanted)
        except BaseException:  # an interrupt, before the caller has them
            put_back_granted(store, answers)
            raise
        return answers

    return claim


def finish_many(pairs: Sequence[tuple[BaseClaim, object]]) -> Walk[list[Any]]:
    """End them as succeeded in one commit. One answer an item, in order: an `Outcome`, or an error (not raised).

    RuntimeError where one was not entered, ValueError where they are of several registries: then none has ended.
    """
    ended: list[_Ended | Exception] = []
    seen: set[BaseClaim] = set()
    for claim, result in pairs:
        try:
            ended.append(ended_error(claim.task_id) if claim in seen else _success(claim, result))
        except IdemregError as error:
            ended.append(handed_over(error))
        seen.add(claim)
    if len({id(claim.terms.store) for claim, _ in pairs}) > 1:
        msg = "the claims are of several registries; each ends its own"
        raise ValueError(msg)
    return _placed(ended, (yield from _store([one for one in ended if isinstance(one, _Ended)])))


def _placed(ended: Sequence[Any], recorded: Sequence[Any]) -> list[Any]:
    each = iter(recorded)
    return [next(each) if isinstance(one, _Ended) else one for one in ended]


def _success(claim: BaseClaim, result: object) -> _Ended:
    claim.check_entered()
    end, problem = success_end(claim.grant, claim.options, result)
    return _Ended(claim, end, result, problem)


def _store(ended: Sequence[_Ended]) -> Walk[list[Any]]:
    """Store the ends in one commit; of each an `Outcome`, or the error that its owner is to be told."""
    if not ended:
        return []
    terms = ended[0].claim.terms
    try:
        for one in ended:  # not before all are there: whatever is raised until then finds claims that are dropped
            one.claim.settled()
        recorded: list[Any] = yield terms.store.finish, ([one.end for one in ended],), None
    except StoreError as error:
        recorded = [Unsure(error)] * len(ended)
    except BaseException as error:
        for one in ended:
            interrupted(one.claim, one.end, error)
        raise
    left = []
    for one, answer in zip(ended, recorded, strict=True):
        if isinstance(answer, Unsure):
            instead = not_recorded_end(one.end, answer.cause, one.claim.options)
            left.append((one.claim, instead, (yield terms.store.abandon, (instead,), None)))
    for claim, instead, is_left in left:  # behind the last of them: an interruption of the callback leaves none
        tell_abandoned(claim, instead, is_left=is_left)
    return [_answer_to(one, answer) for one, answer in zip(ended, recorded, strict=True)]


def _answer_to(ended: _Ended, answer: Recorded | Lost | Unsure) -> Any:  # noqa: ANN401 - an Outcome or an Exception
    claim, end, result, problem = ended
    if isinstance(answer, Recorded):
        if claim.terms.teller is not None:
            claim.terms.teller.ended(claim.grant, claim.name, end)
        return problem or outcome_of(claim, result)
    if isinstance(answer, Lost):
        return lost_error(end.task_id)
    failed = not_recorded_error(end, result)
    failed.__cause__ = answer.cause
    return handed_over(failed)


def handle(terms: Terms, messages: Sequence[Message], job: Callable[[Any], Any]) -> Walk[list[Handled[Any, Any]]]:
    """Claim the messages' tasks, run the job for each, and end them: two commits in all.

    Interrupted in the middle, what has run is stored, what was entered is settled by ``on_crash``, and the rest is put
    back; then the interruption goes on its way.
    """
    wanted = [message.wanted for message in messages]
    answers = yield from claim_many(terms, wanted, waits=False)  # the others' jobs need not wait as well
    answers = yield from _run_all(answers, messages, job)
    for place, message in enumerate(messages):  # twice in one batch: the first has ended by now
        if isinstance(answers[place], TaskRunningError) and not isinstance(message.wanted, Exception):
            answers[place] = yield from _again(terms, message, job)
    return [_handled(message.content, answer) for message, answer in zip(messages, answers, strict=True)]


def _run_all(answers: list[Any], messages: Sequence[Message], job: Callable[[Any], Any]) -> Walk[list[Any]]:
    """Run the job under each claim that is among the answers, and store all ends in one commit."""
    try:
        for place, message in enumerate(messages):
            if isinstance(answers[place], BaseClaim):
                answers[place] = yield from _run(answers[place], job, message.content)
        storing = _store([one for one in answers if isinstance(one, _Ended)])  # in here: there may be no memory for it
    except BaseException as error:
        yield from _leave(answers, error)
        raise
    return _placed(answers, (yield from storing))


def _run(claim: BaseClaim, job: Callable[[Any], Any], content: object) -> Walk[Any]:
    """Run the job under a claim; the end that it leads to, or where the claim ended in the job, its `Outcome`."""
    try:
        yield from claim.entering()
    except StoreError as error:  # it cannot be noted, so it must not begin
        return _Ended(claim, _release(claim), None, error)
    before = go_in(claim)
    try:
        result = yield job, (content,), {}
    except Exception as error:  # noqa: BLE001 - any failure of a job
        return error if not claim.is_open else _by_error(claim, error)
    finally:
        leave(before)
    faults.point("job.returned")
    if claim.is_open:
        ended = _success(claim, result)
        claim.settled()  # whatever the job has left to others cannot end it otherwise
        return ended
    try:
        return ended_in_job(claim, result)
    except ResultError as error:
        return error


def _by_error(claim: BaseClaim, error: Exception) -> _Ended:
    end = claim.end_for(error)
    claim.settled()
    return _Ended(claim, end, None, error)


def _release(claim: BaseClaim) -> End:
    claim.settled()
    return End.release(claim.grant, durable=claim.options.durable, nothing_ran=True)


def _leave(answers: Sequence[Any], error: BaseException) -> Walk[None]:
    """Store what an interruption makes of the claims among them."""
    ended = _interrupted(answers, error)
    if isinstance(error, GeneratorExit):  # nothing can be awaited
        for one in ended:
            abandon(one.claim, one.end)
    else:
        yield from _store(ended)


def _interrupted(answers: Iterable[Any], error: BaseException) -> list[_Ended]:
    """The ends of a batch that an error left: those that there are, the interrupted job's, and the rest put back."""
    ended = []
    for one in answers:
        if isinstance(one, _Ended):
            ended.append(one)
        elif isinstance(one, BaseClaim) and one.is_open:
            end = _end_of_interrupted(one, error)
            one.settled()
            ended.append(_Ended(one, end, None, None))
    return ended


def _end_of_interrupted(claim: BaseClaim, error: BaseException) -> End:
    if not claim.is_entered or isinstance(error, NotStartedError):
        return End.release(claim.grant, durable=claim.options.durable, nothing_ran=True)
    is_jobs = not isinstance(error, Exception)  # which are caught: it is of what comes behind the job, as no memory
    return claim.end_for(error) if is_jobs else crash_end(claim.grant, claim.options, told(error, claim.options))


def _again(terms: Terms, message: Message, job: Callable[[Any], Any]) -> Walk[Any]:
    """The message of a twin: by now its task has ended, or runs elsewhere, and is waited for."""
    wanted = cast("Wanted", message.wanted)
    try:
        got = yield from acquire(terms, wanted)
    except IdemregError as error:
        return error
    return (yield from _run_all([got], [message], job))[0]


def _handled(content: object, answer: Any) -> Handled[Any, Any]:  # noqa: ANN401 - an Outcome or an Exception
    if isinstance(answer, Outcome):
        return Handled(content, answer, None)
    return Handled(content, None, answer)
