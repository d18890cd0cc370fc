"""The claim of an asynchronous caller: the same ends as `Claim`, awaited."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, TypeVar, cast

from idemreg.claim import BaseClaim, go_in
from idemreg.ends import put_back, success_end
from idemreg.errors import ClaimLostError, FinishNotRecordedError
from idemreg.later import later
from idemreg.lockfile import importing
from idemreg.store import End
from idemreg.walk import NotStartedError, adrive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from concurrent.futures import Executor
    from types import TracebackType
    from typing import Self

    from idemreg.offload import Offload
    from idemreg.steps import AsyncStepBlock
    from idemreg.store import Transaction
    from idemreg.walk import Walk

__all__ = ["AsyncClaim", "AsyncTransaction", "hand_over"]

R = TypeVar("R")


class AsyncTransaction:
    """An open transaction in which the effects of a job commit together with its success."""

    def __init__(self, offload: Offload, thread: Executor, transaction: Transaction) -> None:
        self._offload = offload
        self._lane = thread
        self._transaction = transaction

    async def execute(self, sql: str, bindings: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Carry out one statement and give all of its rows."""
        host = self._offload.host(self._lane)
        rows = await host.call(self._transaction.execute, (sql, bindings))
        host.leave()
        return cast("list[tuple[Any, ...]]", rows)


class AsyncClaim(BaseClaim):
    """A claim whose ends are awaited. As an asynchronous context manager it ends with its block: an error fails it."""

    __slots__ = ()

    async def enter(self) -> None:
        """Of `claim_many`: note that its job begins now. Until then the task is put back if this process dies."""
        await adrive(self.entering(), self.offload.host())

    async def succeed(self, result: object = None) -> None:
        """End as succeeded, with ``result``; see `Claim.succeed`."""
        self.result = result
        end, problem = success_end(self.grant, self.options, result)
        await self.end(end, result)
        if problem is not None:
            raise problem

    async def fail(self, error: BaseException) -> None:
        """End as ``error`` says: failed, unknown (``unknown_on``) or released (``release_on``)."""
        await self.end(self.end_for(error))

    async def release(self) -> None:
        """Put the task back as it was before this claim; the attempt does not count."""
        await self.end(End.release(self.grant, durable=self.options.durable))

    async def end(self, end: End, result: object = None) -> None:
        """Store an end; whatever comes of it, this claim is over."""
        await adrive(self.close_for(end, result), self.offload.host())

    @property
    def offload(self) -> Offload:
        """The threads that its calls of the store are made on."""
        return cast("Offload", self.terms.offload)

    async def run_step(self, name: str, job: Callable[[], Awaitable[R]]) -> R:
        """Run ``job`` as a named piece of the task, unless an attempt has done so before; see `Claim.run_step`."""
        return await self.step(name).run(job)

    def step(self, name: str) -> AsyncStepBlock:
        """The same as a block: ``async with claim.step(name) as step: if not step.done: ...``; see `Claim.step`."""
        with importing():
            from idemreg.steps import AsyncStepBlock  # noqa: PLC0415 - few jobs have steps

        return AsyncStepBlock(self, name)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction]:
        """A transaction of the registry's file, in which the effects of the job commit together with its success.

        See `Claim.transaction`. It has a thread of its own while it is open, and every other writer of the file waits.
        """
        offload, thread = self.offload, self.offload.own_thread()
        block, is_left = self._transaction(), False
        try:
            host = offload.host(thread)
            transaction = await host.call(block.__enter__, ())
            try:
                host.leave()
                yield AsyncTransaction(offload, thread, transaction)
            except GeneratorExit as error:  # the coroutine was closed, and cannot await
                is_left = True
                later.do(functools.partial(_leave_closed, block, thread, error))
                raise
            except BaseException as error:
                await offload.host(thread).call(block.__exit__, (type(error), error, error.__traceback__))
                raise
            await self._leave(block, offload, thread)
        finally:
            if not is_left:
                thread.shutdown(wait=False)

    @staticmethod
    async def _leave(block: Any, offload: Offload, thread: Executor) -> None:  # noqa: ANN401 - a context manager
        host = offload.host(thread)
        await host.call(block.__exit__, (None, None, None))
        host.leave()

    async def __aenter__(self) -> Self:
        await self.enter()
        self._before = go_in(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave_block()
            if not self._is_open or isinstance(error, GeneratorExit):  # a closed coroutine cannot await: dropped
                return
            if error is None:
                await self.succeed(self.result)
            else:
                await self._fail_by(error)
        except BaseException as interruption:
            self.interrupted(interruption)
            raise

    async def _fail_by(self, error: BaseException) -> None:
        try:
            await self.fail(error)
        except (ClaimLostError, FinishNotRecordedError) as problem:
            if isinstance(error, Exception):
                raise
            error.add_note(f"idemreg: {problem}")  # an interruption goes on its way whatever the store says


def _leave_closed(block: Any, thread: Executor, error: GeneratorExit) -> None:  # noqa: ANN401 - a context manager
    """Behind what the thread does for it right now."""
    thread.submit(block.__exit__, type(error), error, error.__traceback__)
    thread.shutdown(wait=False)


def hand_over(walk: Walk[R]) -> Walk[R]:
    """A walk whose claims go to a caller who may have been cancelled meanwhile: then they are put back."""
    taken = yield from walk
    try:
        yield _received, (), {}
    except NotStartedError:
        for claim in taken if isinstance(taken, list) else [taken]:
            if isinstance(claim, BaseClaim):
                yield from put_back(claim)
        raise
    return taken


def _received() -> None:
    """Stands for the caller's own code: a step of it is not begun once the caller was cancelled."""
