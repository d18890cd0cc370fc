"""Steps: named pieces of a job, each saved with its result before the next begins, and skipped by a later attempt.

    with registry.claim("backup:2026-11-23", on_crash="rerun") as claim:
        for part in range(parts):
            claim.run_step(f"upload:{part}", lambda part=part: upload(part))

`run_step` is the form to reach for: what is done cannot run again by it. `step` is for a piece that is no function; a
block cannot skip itself, so its body asks:

    with claim.step("index") as step:
        if not step.done:
            step.result = build_index()

A step is done once its block has ended without an error, and its record is on the disk (under `durability="full"`). A
process that dies before that leaves the step to be run again, whether its effect happened or not: what must not happen
twice within a step needs a receiver that fences, as within a job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

from idemreg.codec import load_result, store_result
from idemreg.ends import lost_error
from idemreg.errors import ResultError, StepError, StoreError, TaskIdError
from idemreg.store import Lost
from idemreg.template import check_task_id
from idemreg.walk import adrive, drive

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from idemreg.async_claim import AsyncClaim
    from idemreg.claim import BaseClaim
    from idemreg.progress import Progress, Step
    from idemreg.walk import Walk

__all__ = ["AsyncStepBlock", "BaseStep", "StepBlock", "check_name"]

R = TypeVar("R")

LOST: Final = "the result of step {name!r} was lost when it was saved; the step is done"
LOST_HINT: Final = (
    "It will not run again. Return plain data, under 1 MiB a step and 16 MiB a task, or give result= a codec."
)


def check_name(name: object) -> str:
    """The name; `StepError` where it could not be a task_id either."""
    try:
        return check_task_id(name)
    except TaskIdError as error:
        msg = f"a step is named as a task is, and {error.message}"
        raise StepError(msg, hint=error.hint) from None


class BaseStep:
    """A step of one claim. ``done``: it was saved before, so its body has nothing to do.

    ``result``: what it was saved with, or is to be saved with; plain data, or what the job's codec knows. Reading that
    of a step which is done, but whose result could not be stored, raises `ResultError`.
    """

    def __init__(self, claim: BaseClaim, name: str) -> None:
        self.name: Final = check_name(name)
        self.done = False
        self._claim = claim
        self._result: Any = None
        self._problem: ResultError | None = None

    @property
    def result(self) -> Any:  # noqa: ANN401 - whatever the step gave
        """What the step gave."""
        if self._problem is not None:
            raise self._problem
        return self._result

    @result.setter
    def result(self, value: object) -> None:
        if self.done:
            msg = f"step {self.name!r} is done, and keeps the result that it has"
            raise StepError(msg, task_id=self._claim.task_id, hint="Put the body under `if not step.done:`.")
        self._result = value

    # --- the walks ------------------------------------------------------------------------------------------------

    def opening(self) -> Walk[None]:
        """Look the step up. From here on no other of its name runs under the claim, until `left`."""
        claim = self._claim
        claim.check_step()
        try:
            self._begin()
            args = claim.task_id, claim.token, self.name
            self._take((yield from _asked(lambda: self._store.step(*args, durable=claim.options.durable))))
        except BaseException:
            self.left()
            raise

    def _begin(self) -> None:
        if _running.setdefault((id(self._claim), self.name), self) is not self:
            msg = f"step {self.name!r} is running already, in this claim"
            raise StepError(msg, task_id=self._claim.task_id)

    def closing(self) -> Walk[None]:
        """Save the step, unless it was done before."""
        claim = self._claim
        if self.done:
            return
        if not claim.is_open:
            msg = f"the claim ended before its step {self.name!r}, which is not saved"
            hint = "End the claim, also by claim.transaction(), behind the step and not in it."
            raise StepError(msg, task_id=claim.task_id, hint=hint)
        text = self._text()
        args = claim.task_id, claim.token, self.name, text
        saved = yield from _asked(lambda: self._store.save_step(*args, durable=claim.options.durable))
        if isinstance(saved, Lost):
            raise lost_error(claim.task_id)
        self.done = True
        if saved.result is None:
            self._problem = self._problem or self._lost()
            raise self._problem

    def running(self, job: Callable[[], Any]) -> Walk[Any]:
        """The whole of it, around a job: what the step gave, now or before."""
        yield from self.opening()
        try:
            if not self.done:
                self._result = yield job, (), {}
                yield from self.closing()
        finally:
            self.left()
        return self.result

    def left(self) -> None:
        """The block is over, whatever came of it."""
        key = id(self._claim), self.name
        if _running.get(key) is self:
            del _running[key]

    # --- results --------------------------------------------------------------------------------------------------

    @property
    def _store(self) -> Progress:
        return cast("Progress", self._claim.terms.store)  # every store is one

    def _take(self, found: Step | Lost | None) -> None:
        if isinstance(found, Lost):
            raise lost_error(self._claim.task_id)
        if found is None:
            return
        self.done = True
        if found.result is None:
            self._problem = self._lost()
            return
        try:
            self._result = load_result(found.result, self._claim.options.codec)
        except ResultError as error:
            self._problem = error

    def _text(self) -> str | None:
        """As it is stored; None where it cannot be: the step has run, and must not run again for that."""
        try:
            return store_result(self._result, self._claim.options.codec)
        except ResultError as error:
            error.task_id, error.hint = self._claim.task_id, LOST_HINT
            self._problem = error
            return None

    def _lost(self) -> ResultError:
        return ResultError(LOST.format(name=self.name), task_id=self._claim.task_id, hint=LOST_HINT)


# The steps that run in this process, by claim and name. One call of a dict decides between two threads.
_running: Final[dict[tuple[int, str], BaseStep]] = {}


def _asked(call: Callable[[], Any]) -> Walk[Any]:
    """The store's answer. Its error came in the middle of the job, so whoever ends the claim must not put it back."""
    try:
        return (yield call, (), None)
    except StoreError as error:
        error.in_job = True
        raise


class StepBlock(BaseStep):
    """A step as a context manager."""

    def run(self, job: Callable[[], R]) -> R:
        """Run ``job`` as the step; see `Claim.run_step`."""
        return cast("R", drive(self.running(job)))

    def __enter__(self) -> Self:
        drive(self.opening())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                drive(self.closing())
        finally:
            self.left()


class AsyncStepBlock(BaseStep):
    """A step as an asynchronous context manager."""

    def __init__(self, claim: AsyncClaim, name: str) -> None:
        super().__init__(claim, name)
        self._offload = claim.offload

    async def run(self, job: Callable[[], Awaitable[R]]) -> R:
        """Run ``job`` as the step; see `Claim.run_step`."""
        return cast("R", await adrive(self.running(job), self._offload.host()))

    async def __aenter__(self) -> Self:
        await adrive(self.opening(), self._offload.host())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await adrive(self.closing(), self._offload.host())
        finally:
            self.left()
