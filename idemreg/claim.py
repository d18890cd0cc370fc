"""A claim in the hands of the job: what it is told, how it ends, and what becomes of it when it is dropped.

`BaseClaim` is what every claim knows and can lose. `Claim` ends by calling the store; `idemreg.async_claim` has the one
that awaits it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from idemreg.ends import (
    abandon,
    crash_end,
    error_end,
    lost_error,
    not_recorded_error,
    record,
    success_end,
    told,
)
from idemreg.errors import ClaimLostError, FinishNotRecordedError, StoreError
from idemreg.store import End, Lost, Unsure
from idemreg.walk import drive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Token
    from types import TracebackType
    from typing import Self

    from idemreg.clock import Clock
    from idemreg.events import Teller
    from idemreg.offload import Offload
    from idemreg.options import Options
    from idemreg.store import Granted, Store, Transaction
    from idemreg.walk import Walk

__all__ = ["BaseClaim", "Claim", "Terms", "current", "current_claim"]

current: ContextVar[BaseClaim | None] = ContextVar("idemreg_claim", default=None)


def current_claim() -> Claim:
    """The claim under which the calling job runs. RuntimeError outside of any job."""
    claim = current.get()
    if claim is None:
        msg = "no job of idemreg is running here; current_claim() is for the body of a job"
        raise RuntimeError(msg)
    return cast("Claim", claim)  # in a coroutine an AsyncClaim; `idemreg.aio.current_claim` says so to type checkers


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
        "_is_open",
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
        self._before: Token[BaseClaim | None] | None = None
        self._store_error: StoreError | None = None
        self.is_entered = grant.note is None
        self._is_open = True  # last: until it is whole there is nothing to be dropped

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
        if not self._is_open or os.getpid() != self._pid:
            raise lost_error(self.task_id)

    def entering(self) -> Walk[None]:
        """The walk that notes that the job begins; nothing but for a claim of a batch."""
        if not self._is_open:
            raise lost_error(self.task_id)
        if not self.is_entered:
            yield self.terms.store.enter, (self.grant,), None
            self.is_entered = True

    def settled(self) -> None:
        """The walk that holds this claim stores its end itself."""
        self._is_open = False

    def end_for(self, error: BaseException) -> End:
        """The end that an error of the job leads to. An error of the store is never recorded as the job's failure."""
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
        elif not self._is_open:
            raise lost_error(self.task_id)
        return record(self, end, result)

    def check_entered(self) -> None:
        """`ClaimLostError` where the claim has ended. RuntimeError where its job has not begun: see `enter`."""
        if not self._is_open:
            raise lost_error(self.task_id)
        if not self.is_entered:
            msg = f"the claim of task {self.task_id!r} was not entered: call enter() before its job, or use `with`"
            raise RuntimeError(msg)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        self.check_entered()
        end: End | None = None
        try:
            with contextlib.ExitStack() as stack:
                transaction = self._open_in(stack)
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
        if self.terms.teller is not None:
            self.terms.teller.ended(self.grant, self.name, end)
        if problem is not None:
            raise problem

    def _open_in(self, stack: contextlib.ExitStack) -> Transaction:
        try:
            opening = self.terms.store.transaction(self.grant, durable=self.options.durable)
            return stack.enter_context(opening)
        except StoreError as error:
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
        """`current_claim()` is again what it was before the block. In another context than that it never changed."""
        before, self._before = self._before, None
        if before is not None:
            with contextlib.suppress(ValueError):  # of a host that enters and leaves a block in copies of a context
                current.reset(before)

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


class Claim(BaseClaim):
    """A claim whose ends are calls. As a context manager it ends with its block: an error fails it.

    A claim left by the thread that took it, without an end, counts as dropped.
    """

    __slots__ = ("_holder",)

    def __init__(self, terms: Terms, grant: Granted, name: str) -> None:
        super().__init__(terms, grant, name)
        self._holder: weakref.ref[_ThreadClaims] | None = None

    def enter(self) -> None:
        """Of `claim_many`: note that its job begins now. Until then the task is put back if this process dies."""
        drive(self.entering())

    # --- the end ------------------------------------------------------------------------------------------------

    def succeed(self, result: object = None) -> None:
        """End as succeeded, with ``result``.

        `ClaimLostError` where another owner has the task by now, `FinishNotRecordedError` where the store could not
        write, `ResultError` where the result cannot be stored (the task has succeeded all the same).
        """
        self.result = result
        end, problem = success_end(self.grant, self.terms.options, result)
        self.end(end, result)
        if problem is not None:
            raise problem

    def fail(self, error: BaseException) -> None:
        """End as ``error`` says: failed, unknown (``unknown_on``) or released (``release_on``)."""
        self.end(self.end_for(error))

    def release(self) -> None:
        """Put the task back as it was before this claim; the attempt does not count."""
        self.end(End.release(self.grant, durable=self.terms.options.durable))

    def end(self, end: End, result: object = None) -> None:
        """Store an end; whatever comes of it, this claim is over."""
        drive(self.close_for(end, result))

    # --- effects in the same file ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction of the registry's file, in which the effects of the job commit together with its success.

        While it is open, every other writer of the file waits. Set ``claim.result`` before the block ends. An error in
        the block rolls the effects back, and so does a claim that was lost: the late owner leaves nothing behind.
        """
        with self._transaction() as transaction:
            yield transaction

    # --- as a context manager -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.enter()
        try:
            self._before = current.set(self)
            self.hold()
        except BaseException:  # the block is not entered, and will not be left
            self._leave_block()
            self.not_begun()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave_block()
            if not self._is_open:
                return
            if error is None:
                self.succeed(self.result)
            else:
                self._fail_by(error)
        except BaseException as interruption:
            self.interrupted(interruption)
            raise

    def _fail_by(self, error: BaseException) -> None:
        try:
            self.fail(error)
        except (ClaimLostError, FinishNotRecordedError) as problem:
            if isinstance(error, Exception):
                raise
            error.add_note(f"idemreg: {problem}")  # an interruption goes on its way whatever the store says

    def hold(self) -> None:
        """From now on the calling thread holds the claim: it is dropped should that thread end."""
        before = self._holder() if self._holder is not None else None
        if before is not None:
            before.claims.discard(self)
        mine = _threads.mine
        mine.claims.add(self)
        self._holder = weakref.ref(mine)


class _ThreadClaims:
    """The claims that one thread took or entered. It dies with its thread, and then settles what is still open."""

    def __init__(self) -> None:
        self.claims: weakref.WeakSet[Claim] = weakref.WeakSet()

    def __del__(self) -> None:
        for claim in list(self.claims):
            claim.drop("the thread that held it has ended")


class _Threads(threading.local):
    """This thread's claims. A claim is held by the thread that took it, or that entered its block since."""

    def __init__(self) -> None:
        self.mine = _ThreadClaims()


_threads = _Threads()
