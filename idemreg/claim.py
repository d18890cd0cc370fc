"""The claim that ends by calling the store, and what becomes of one whose thread has ended without it."""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import TYPE_CHECKING, TypeVar

from idemreg.base_claim import BaseClaim, Terms, current, current_claim, go_in, leave
from idemreg.ends import success_end
from idemreg.errors import ClaimLostError, FinishNotRecordedError
from idemreg.lockfile import importing
from idemreg.store import End
from idemreg.walk import drive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from idemreg.steps import StepBlock
    from idemreg.store import Transaction

__all__ = ["BaseClaim", "Claim", "Terms", "current", "current_claim", "go_in", "leave"]

R = TypeVar("R")


class Claim(BaseClaim):
    """A claim whose ends are calls. As a context manager it ends with its block: an error fails it.

    A claim left by the thread that took it, without an end, counts as dropped.
    """

    __slots__ = ()

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

    # --- steps ----------------------------------------------------------------------------------------------------

    def run_step(self, name: str, job: Callable[[], R]) -> R:
        """Run ``job`` as a named piece of the task, unless an attempt has done so; what it returned, now or then.

        Its result is saved, durably, before this returns; where it raises, nothing is. `ClaimLostError` where another
        owner has the task by now, `ResultError` where the result could not be stored: the step is done all the same.
        """
        return self.step(name).run(job)

    def step(self, name: str) -> StepBlock:
        """The same as a block: ``with claim.step(name) as step: if not step.done: step.result = ...``."""
        with importing():
            from idemreg.steps import StepBlock  # noqa: PLC0415 - few jobs have any

        return StepBlock(self, name)

    # --- as a context manager -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.enter()
        try:
            self._before = go_in(self)
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
