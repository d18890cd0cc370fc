"""A sweep: tasks whose owner is dead are rerun or settled at once, and not at their next call.

It decides nothing by itself. What may be settled is settled as a claim would (`Recovery.bury`), in batches of one
commit; what asked to be rerun is run under an ordinary claim, which takes the task as it was found (`following`):
so of several sweeps at once one gets each task. What becomes of a task of a dead owner (or of an expired lease):

* hold, or verify without kept arguments: `unknown`; under verify its next call asks the hook, or the next look at its
  schedule. Rerun with its attempts used up: `failed`.
* kept arguments, under rerun or verify: run again with them; the verify hook is asked first.
* rerun without kept arguments, or not begun (of a batch): left alone, for its next call runs it by itself. Nobody
  but that caller has the arguments, and `unknown` would keep it from doing so.

Run again are also tasks with kept arguments that are `pending` though an attempt counts: one that began was interrupted
while its owner lived on, or its owner died and the rerun was put back before it started. And those that failed and of
which an operator or a hook says since that they may run. A task that simply failed, or whose first attempt was
released, is left to its next call: its owner lived, and told whoever called.

Of those that are `unknown` under verify the hook is asked where it has not answered: it was cut off in its middle, or
the job was interrupted, or failed by an `unknown_on` error, while its owner lived. What the hook itself cannot tell
waits for a person, or for a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast

from idemreg import faults
from idemreg.acquiring import put_back_granted
from idemreg.attempt import run_walk
from idemreg.beside import BesideStore
from idemreg.deciding import Decision, decide
from idemreg.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    IdemregError,
    RecoveryError,
    StoreError,
    TaskDoneError,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
)
from idemreg.listing import PAGE_TASKS
from idemreg.model import Liveness, OnCrash, Status, Verdict, Version
from idemreg.query import Query
from idemreg.recovery import BURIED_AT_ONCE, as_stored
from idemreg.store import Done, Granted, Lost, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from idemreg.claim import Terms
    from idemreg.deciding import Outcome, Wanted
    from idemreg.events import Teller
    from idemreg.model import Task
    from idemreg.recovery import Kept, Recovery
    from idemreg.store import Answer, Store
    from idemreg.walk import Walk

__all__ = ["LEFT", "RERUN", "SETTLED", "Swept", "again", "following", "sweep"]

KEPT_AT_ONCE: Final = 20  # a page of them is in memory, each with arguments of up to 1 MiB

RERUN: Final = "rerun"
SETTLED: Final = "settled"
LEFT: Final = "left"

_SAID_TO_RUN: Final = frozenset({Verdict.DID_NOT_HAPPEN, Verdict.RETRY})


class Swept(NamedTuple):
    """A task of a dead owner, and what a sweep did about it.

    ``did``: "rerun" (its job has run now), "settled" (without running it), or "left" as it was. ``status``: the task's
    since then. ``error``: what its job raised, or why it is unknown, failed or left; None where all is well.
    ``outcome``: of a job that succeeded.
    """

    task_id: str
    name: str
    did: str
    status: Status
    error: BaseException | None = None
    outcome: Any = None

    @property
    def is_trouble(self) -> bool:
        """Whether somebody should look at it."""
        return self.error is not None or self.status in {Status.UNKNOWN, Status.FAILED}


def _never(*_: object) -> bool:
    return False


def sweep(
    store: Store,
    teller: Teller | None,
    rerun: Callable[[Task, Kept], Walk[Any]],
    is_ended: Callable[[], bool] = _never,
    jobs_own: tuple[type[BaseException], ...] = (Exception,),
    tell: Callable[[Swept], object] = _never,
) -> Walk[list[Swept]]:
    """Settle what is to be settled, then run what is to be run again, one task after the other, until ``is_ended``.

    An error of a job is told in its `Swept`, not raised; so is one of the store where something was swept before.
    ``rerun`` gives what became of a command or a function: an `Outcome`, or None where somebody else has the task.
    ``jobs_own``: what is a job's error; SystemExit is, say, where nothing else can raise it.
    ``tell`` is called with each as soon as it is settled, or its job has ended: a job behind it may take hours.
    """
    swept = _Told(tell)
    after: str | None = None
    try:
        while True:
            some, after = yield _settle_page, (store, teller, after), None
            swept.add(some)
            if after is None:
                break
        while True:
            waiting, after = yield _waiting_page, (store, after), None
            for task, kept in waiting:
                if is_ended():
                    return swept
                # The jobs before it may have taken hours, and others sweep as well.
                if not (yield _unchanged, (store, [task]), None):
                    continue
                one = yield from _rerun(store, task, kept, rerun, jobs_own)
                swept.add([] if one is None else [one])
            if after is None:
                return swept
    except IdemregError:
        if swept:
            return swept  # the next sweep meets the error
        raise


class _Told(list[Swept]):
    def __init__(self, tell: Callable[[Swept], object]) -> None:
        super().__init__()
        self._tell = tell

    def add(self, some: Sequence[Swept]) -> None:
        for one in some:
            self.append(one)
            self._tell(one)


# --- settle -----------------------------------------------------------------------------------------------------


def _settle_page(store: Store, teller: Teller | None, after: str | None) -> tuple[list[Swept], str | None]:
    """Settle the dead among a page of running tasks; where the next page begins."""
    page = store.page(Query(status=Status.RUNNING), after, PAGE_TASKS)
    left, to_bury = [], []
    for task in page.tasks:
        decision = _decision(store, task)
        if decision in {Decision.BECOMES_UNKNOWN, Decision.BECOMES_FAILED} and not _is_asked(store, task, decision):
            to_bury.append(task)
        elif decision is Decision.PUT_BACK or (decision is Decision.TAKE_OVER and _kept_of(store, task) is None):
            left.append(task)
    swept = [Swept(task.task_id, task.name, LEFT, task.status) for task in _unchanged(store, left)]
    for first in range(0, len(to_bury), BURIED_AT_ONCE):
        swept += _bury(store, teller, to_bury[first : first + BURIED_AT_ONCE])
    return swept, page.after


def _unchanged(store: Store, seen: Sequence[Task]) -> list[Task]:
    """Those that still are as their page told: whose owner has ended its task since, and itself, looks dead as well."""
    rows = store.get([task.task_id for task in seen]) if seen else []
    return [task for task, row in zip(seen, rows, strict=True) if row == task]


def _decision(store: Store, task: Task) -> Decision:
    """What a claim that asks for no more than what is stored would do now. Verify looks as hold: there is no hook."""
    owner = store.owner(task)
    if owner is None:
        return decide(task, as_stored(task), Liveness.CANNOT_TELL)
    return decide(task, as_stored(task), owner.liveness, entered=owner.entered)


def _is_asked(store: Store, task: Task, decision: Decision) -> bool:
    """Whether the task's own hook is to be asked, by who has it, rather than to make the task unknown."""
    is_verified = decision is Decision.BECOMES_UNKNOWN and task.policy.on_crash is OnCrash.VERIFY
    return is_verified and _kept_of(store, task) is not None


def _kept_of(store: Store, task: Task) -> Kept | None:
    return cast("Recovery", store).kept_of(task.task_id) if task.policy.keeps_arguments else None


def _bury(store: Store, teller: Teller | None, dead: Sequence[Task]) -> list[Swept]:
    swept = []
    for answer in cast("Recovery", store).bury(dead):
        if answer is None:
            continue  # somebody else was faster
        task, is_failed = answer.task, isinstance(answer, Refused)
        if teller is not None:
            teller.refused(answer, as_stored(task))
        kind: type[TaskFailedError | TaskUnknownError] = TaskFailedError if is_failed else TaskUnknownError
        error = kind(task.error or "", task_id=task.task_id)
        error.task = task
        swept.append(Swept(task.task_id, task.name, SETTLED, task.status, error))
    return swept


# --- run again --------------------------------------------------------------------------------------------------


def _waiting_page(store: Store, after: str | None) -> tuple[list[tuple[Task, Kept]], str | None]:
    """Those of a page of tasks with kept arguments that wait to be run again; where the next page begins."""
    found = cast("Recovery", store).kept(after, KEPT_AT_ONCE)
    waiting = [(task, kept) for task, kept in found if _waits(store, task)]
    return waiting, found[-1][0].task_id if len(found) == KEPT_AT_ONCE else None


def _waits(store: Store, task: Task) -> bool:
    if not task.policy.keeps_arguments:
        return False  # no claim of ours brought these
    if task.status is Status.RUNNING:
        decision = _decision(store, task)
        return decision is Decision.TAKE_OVER or _is_asked(store, task, decision)
    if task.status is Status.PENDING:
        return task.attempt > 0  # one began and did not end; a release of the first counts none, and was told
    if task.status is Status.UNKNOWN:
        return task.policy.on_crash is OnCrash.VERIFY and task.verdict is None
    is_said = task.status is Status.FAILED and task.verdict in _SAID_TO_RUN
    return is_said and _decision(store, task) is Decision.CLAIM


def _rerun(
    store: Store,
    task: Task,
    kept: Kept,
    rerun: Callable[[Task, Kept], Walk[Any]],
    jobs_own: tuple[type[BaseException], ...],
) -> Walk[Swept | None]:
    did, outcome = RERUN, None
    faults.point("sweep.found")
    error: BaseException | None = None
    try:
        outcome = yield from rerun(task, kept)
        if outcome is None:
            return None
        did = SETTLED if outcome.replayed else RERUN  # a hook said that it had happened
    except RecoveryError as problem:
        did, error = LEFT, problem
    except (CommandNotFoundError, CommandNotExecutableError) as problem:  # nothing ran: the next sweep tries again
        did, error = LEFT if problem.task_id == task.task_id else RERUN, problem
    except (TaskRunningError, TaskDoneError) as problem:
        if problem.task_id == task.task_id:  # and not of a task that its job has called
            return None
        error = problem
    except (TaskUnknownError, TaskFailedError) as problem:
        did, error = SETTLED if problem.task_id == task.task_id else RERUN, problem
    except GeneratorExit:
        raise
    except jobs_own as problem:  # one job's error keeps no other from being run
        error = problem
    row: Task | None = yield _row, (store, task.task_id), None
    if error is not None:
        did = _without_its_job(task, row) or did
    return Swept(task.task_id, task.name, did, task.status if row is None else row.status, error, outcome)


def _without_its_job(task: Task, row: Task | None) -> str | None:
    """What was done about a task whose job did not begin; None where it did."""
    if row == task:  # it was not even claimed
        return LEFT
    is_asked = row is not None and (row.status, row.attempt) == (Status.UNKNOWN, task.attempt)
    return SETTLED if is_asked else None  # its hook was cut off


def _row(store: Store, task_id: str) -> Task | None:
    """The task as it is now; None also where it cannot be read."""
    try:
        (row,) = store.get([task_id])
    except StoreError:
        return None
    return row


class _Following(BesideStore):
    """The store for the rerun of one task: no claim is granted where the task is not as it was found."""

    def __init__(self, store: Store, task: Task) -> None:
        super().__init__(store)
        self._found = task.version
        self._is_asked = False  # whether a claim for the hook was granted, so that what is found then is its answer

    def look(self, _wanted: Wanted) -> None:
        """Nothing: what others have made of the task since must not be answered as if it were this sweep's doing."""

    def claim(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """As the store's own, of one task."""
        kept = cast("Kept", wanted[0].kept)._replace(follows=self._found)
        answers: list[Answer] = []
        try:
            answers = self._store.claim([wanted[0]._replace(kept=kept)])
            if isinstance(answers[0], Granted):  # for a hook, perhaps: where it says no, the task is claimed anew
                self._found, self._is_asked = Version(Status.FAILED, answers[0].token), True
            elif self._is_of_others(answers[0]):
                _refuse_moved_on(wanted[0].task_id)
        except BaseException:  # an interrupt, before the caller has them
            put_back_granted(self._store, answers)
            raise
        return answers

    def _is_of_others(self, answer: Answer) -> bool:
        """Whether the task has moved on since it was found, or since the hook of this rerun was asked."""
        if isinstance(answer, Done):
            return not self._is_asked or answer.task.token != self._found.token
        return isinstance(answer, Lost)


def _refuse_moved_on(task_id: str) -> NoReturn:
    msg = "somebody has claimed or ended the task since the sweep found it, or has removed it"
    raise TaskRunningError(msg, task_id=task_id)


def following(terms: Terms, task: Task) -> Terms:
    """The terms of a rerun of the task, as it was found."""
    store: Any = _Following(terms.store, task)
    return terms._replace(store=store)


def again(
    terms: Terms, wanted: Wanted, job: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]
) -> Walk[Outcome[Any] | None]:
    """Run a function again; None where it was done meanwhile. A hook that says it happened gives the outcome."""
    outcome: Outcome[Any] = yield from run_walk(terms, wanted, job, tuple(args), kwargs)
    is_verified = wanted.policy.on_crash is OnCrash.VERIFY
    return None if outcome.replayed and not is_verified else outcome
