"""A claim in the hands of the job: what it is told, what ends it, and what becomes of it when it is dropped.

`BaseClaim` is what every claim knows and can lose. `idemreg.claim` has the one that ends by calling the store, and
`idemreg.async_claim` the one that awaits it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, cast
from weakref import ref

from idemreg.ends import (
    abandon,
    crash_end,
    ended_error,
    error_end,
    lost_error,
    not_recorded_error,
    record,
    success_end,
    told,
)
from idemreg.errors import ClaimLostError, StepError, StoreError
from idemreg.store import End, Lost, Unsure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Token
    from datetime import datetime

    from idemreg.claim import Claim
    from idemreg.clock import Clock
    from idemreg.events import Teller
    from idemreg.offload import Offload
    from idemreg.options import Options
    from idemreg.store import Granted, Store, Transaction
    from idemreg.walk import Walk

__all__ = ["BaseClaim", "Terms", "current", "current_claim", "go_in", "leave"]

Before: TypeAlias = "Token[ref[BaseClaim] | None]"  # the context as it was

R = TypeVar("R")

# Weak: whoever runs the job has the claim. Where he is interrupted, or has no memory, before he can end it, it is
# dropped and so settled, also where that kept the context from being put back.
_current: ContextVar[ref[BaseClaim] | None] = ContextVar("idemreg_claim", default=None)


def current_claim() -> Claim:
    """The claim under which the calling job runs. RuntimeError outside of any job."""
    claim = current()
    if claim is None:
        msg = "no job of idemreg is running here; current_claim() is for the body of a job"
        raise RuntimeError(msg)
    return cast("Claim", claim)  # in a coroutine an AsyncClaim; `idemreg.aio.current_claim` says so to type checkers


def current() -> BaseClaim | None:
    """The claim under which the calling job runs, if any."""
    claim = _current.get()
    return None if claim is None else claim()


def go_in(claim: BaseClaim) -> Before:
    """From now on `current_claim()` is this one."""
    return _current.set(ref(claim))


def leave(before: Before) -> None:
    """`current_claim()` is again what it was. In another context than that it never changed."""
    try:
        _current.reset(before)
    except ValueError:  # of a host that uses copies of a context, or of a coroutine that is closed from outside
        return


class Terms(NamedTuple):
    """Where and how: the same for every attempt of a decorated function."""

    store: Store
    clock: Clock
    options: Options
    teller: Teller | None = None  # for `on_event`
    claim: Callable[[Terms, Granted, str], Any] | None = None  # the class of the claims; None = `Claim`
    offload: Offload | None = None  # for asynchronous callers


class BaseClaim:
    """Ownership of a task for one attempt.

    ``task_id``, ``token`` (grows with every claim of the task; give it to receivers that fence) and ``attempt`` (the
    first is 1). ``result`` is what the task is to be remembered by. A claim that is dropped without an end is settled
    as by a crash at once, with a ResourceWarning.
    """

    __slots__ = (
        "__weakref__",
        "_before",
        "_holder",
        "_is_open",
        "_is_transacting",  # set while it is so, by the few that ever are
        "_pid",
        "_store_error",
        "grant",
        "is_entered",
        "name",
        "result",
        "terms",
    )

    def __init__(self, terms: Terms, grant: Granted, name: str) -> None:
        self.result: Any = None
        self.terms = terms
        self.grant = grant
        self.name = name
        self._pid = os.getpid()
        self._before: Before | None = None
        self._holder: ref[Any] | None = None  # of a `Claim`; here, since each __init__ more costs every new task
        self._store_error: StoreError | None = None
        self.is_entered = grant.note is None
        self._is_open = True  # last: until it is whole there is nothing to be dropped

    def __repr__(self) -> str:
        """Which claim it is, and how it stands; nothing of the job's, which may be secret."""
        state = "ended" if not self._is_open else "open" if self.is_entered else "not entered"
        return f"<{type(self).__name__} of {self.task_id!r}, attempt {self.attempt}, {state}>"

    @property
    def task_id(self) -> str:
        """The idempotency key."""
        return self.grant.task_id

    @property
    def token(self) -> int:
        """The fencing token: larger than that of every earlier claim of the task."""
        return self.grant.token

    @property
    def attempt(self) -> int:
        """How many claims have entered the job, this one included."""
        return self.grant.attempt

    @property
    def downstream_key(self) -> str:
        """A key for receivers: the same over all attempts of this task, another in every other registry."""
        return self.terms.store.downstream_key(self.task_id)

    @property
    def slot(self) -> datetime | None:
        """Of a schedule's task the instant that it is due for, in UTC."""
        from idemreg.slots import instant, slot_of  # noqa: PLC0415 - for jobs on a schedule

        at_s = slot_of(self.task_id)
        return None if at_s is None else instant(at_s)

    @property
    def options(self) -> Options:
        """The options that it was claimed with."""
        return self.terms.options

    @property
    def is_open(self) -> bool:
        """Whether the claim has not ended yet."""
        return self._is_open

    def check(self) -> None:
        """Raise `ClaimLostError` where the claim is not this process's any more: its job should stop.

        Of a claim with limits also where its lease is over, and `TaskTimeoutError` where its time is. Reads nothing, so
        that it never waits, and never takes a file that cannot be read for good news.
        """
        self._check_open()
        if os.getpid() != self._pid:
            raise lost_error(self.task_id)

    def entering(self) -> Walk[None]:
        """The walk that notes that the job begins; nothing but for a claim of a batch."""
        self._check_open()
        if not self.is_entered:
            yield self.terms.store.enter, (self.grant,), None
            self.is_entered = True

    def settled(self) -> None:
        """The walk that holds this claim stores its end itself."""
        self._is_open = False

    def end_for(self, error: BaseException) -> End:
        """The end that an error of the job leads to. An error of the store is never recorded as the job's failure."""
        given: object = error  # a caller of `fail` may give a text, or the class of an error
        if not isinstance(given, BaseException):
            kind = given if isinstance(given, type) else type(given)
            msg = f"fail takes the error itself, not {kind.__name__}"
            raise TypeError(msg)
        if error is self._store_error:
            return End.release(self.grant, durable=self.terms.options.durable)
        if isinstance(error, StoreError) and error.in_job:  # who knows what it had done elsewhere by then?
            return crash_end(self.grant, self.terms.options, told(error, self.terms.options))
        return error_end(self.grant, self.terms.options, error)

    def interrupted(self, error: BaseException) -> None:
        """The block of the claim is over, and an interruption came before its end was made: as by a crash."""
        if self._is_open:
            abandon(self, crash_end(self.grant, self.terms.options, told(error, self.terms.options)))

    def not_begun(self) -> None:
        """The caller was interrupted before the job: the task is as it was."""
        if self._is_open:
            abandon(self, End.release(self.grant, durable=self.terms.options.durable, nothing_ran=True))

    def close_for(self, end: End, result: object) -> Walk[None]:
        """The walk that stores an end; whatever comes of it, this claim is over."""
        if end.attempt == self.grant.attempt:  # no release
            self.check_entered()
        else:
            self._check_open()
        return record(self, end, result)

    def check_entered(self) -> None:
        """`ClaimLostError` where the claim has ended. RuntimeError where its job has not begun: see `enter`."""
        self._check_open()
        if not self.is_entered:
            msg = f"the claim of task {self.task_id!r} was not entered: call enter() before its job, or use `with`"
            raise RuntimeError(msg)

    def _check_open(self) -> None:
        if not self._is_open:
            raise ended_error(self.task_id)

    def check_step(self) -> None:
        """As `check_entered`, in a forked child as well; `StepError` inside of the claim's transaction."""
        self.check_entered()
        if os.getpid() != self._pid:
            raise lost_error(self.task_id)
        if getattr(self, "_is_transacting", False):
            msg = "a step cannot be saved inside of claim.transaction(), whose one commit ends the claim"
            raise StepError(msg, task_id=self.task_id)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        self.check_entered()
        end: End | None = None
        try:
            self._is_transacting = True
            with self._opened() as transaction:
                yield transaction
                end, problem = success_end(self.grant, self.options, self.result)
                self._finish_in(transaction, end)
        except ClaimLostError:
            raise
        except BaseException as error:
            # Unless it was committed, the effects are rolled back by now, so the crash policy may decide: rerun
            # repeats nothing.
            if end is not None:
                abandon(self, crash_end(self.grant, self.options, told(error.__cause__ or error, self.options)))
            raise
        finally:
            self._is_transacting = False
        if self.terms.teller is not None:
            self.terms.teller.ended(self.grant, self.name, end)
        if problem is not None:
            raise problem

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Transaction]:
        is_open = False
        try:
            with self.terms.store.transaction(self.grant, durable=self.options.durable) as transaction:
                is_open = True
                yield transaction
        except StoreError as error:
            if not is_open:
                self._store_error = error
            raise

    def _finish_in(self, transaction: Transaction, end: End) -> None:
        self.settled()
        try:
            answer = transaction.finish(end)
        except StoreError as error:
            answer = Unsure(error)
        if isinstance(answer, Lost):
            raise lost_error(self.task_id)
        if isinstance(answer, Unsure):
            raise not_recorded_error(end, self.result) from answer.cause

    def _leave_block(self) -> None:
        """The block is over for `current_claim()`."""
        before, self._before = self._before, None
        if before is not None:
            leave(before)

    # --- dropped --------------------------------------------------------------------------------------------------

    def drop(self, why: str) -> None:
        """Settle an open claim as by a crash, with a ResourceWarning. Nothing happens in a forked child."""
        if not self._is_open or os.getpid() != self._pid or sys.is_finalizing():
            return
        if self.is_entered:
            abandon(self, crash_end(self.grant, self.terms.options, f"ClaimDropped: {why}"))
        else:
            self.not_begun()
        import warnings  # noqa: PLC0415 - only mistakes need it

        warnings.warn(f"the claim of task {self.task_id!r} was dropped: {why}", ResourceWarning, stacklevel=2)

    def __del__(self) -> None:
        if getattr(self, "_is_open", False):
            self.drop("nothing refers to it any more, and it was neither succeeded, failed nor released")
