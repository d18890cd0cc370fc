"""Jobs that run too long. A coroutine is cancelled; a thread cannot be, and is told when it asks (`check`)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

from idemreg.claim import current
from idemreg.errors import TaskTimeoutError
from idemreg.model import OnCrash

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from idemreg.claim import BaseClaim, Terms
    from idemreg.deciding import Limits

__all__ = ["left_s", "time_limit", "timeout_error", "within_time"]


def timeout_error(claim: BaseClaim) -> TaskTimeoutError:
    """The error of a job whose time is over."""
    allowed_s = (cast("Limits", claim.options.limits).timeout_ms or 0) / 1_000
    error = TaskTimeoutError(f"task {claim.task_id!r} ran longer than {allowed_s:g} s", task_id=claim.task_id)
    has_attempts = claim.grant.attempt < claim.options.policy.max_attempts  # as `crash_end` has it
    error.retryable = claim.grant.policy.on_crash is OnCrash.RERUN and has_attempts
    return error


def left_s(claim: BaseClaim) -> float | None:
    """Seconds that the job may still take, none or less once its time is over; None: as long as it likes."""
    deadlines = claim.grant.deadlines
    if deadlines is None or deadlines.overdue_ms is None:
        return None
    return (deadlines.overdue_ms - claim.terms.clock.boot_ms()) / 1_000


@contextlib.asynccontextmanager
async def time_limit(claim: BaseClaim) -> AsyncIterator[None]:
    """Cancel the block when the claim's time is over: `TaskTimeoutError`. Under asyncio or trio.

    A cancellation from elsewhere stays one. The time that a machine sleeps counts where it was slept before the block;
    within it, the event loop's own clock is waited by.
    """
    left = left_s(claim)
    if left is None:
        yield
        return
    trio: Any = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        with trio.move_on_after(max(left, 0)) as scope:
            yield
        if scope.cancelled_caught:
            raise timeout_error(claim)
        return
    import asyncio  # noqa: PLC0415 - the caller has imported it; the module may be imported without

    limit = asyncio.timeout(left)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise timeout_error(claim) from error
        raise  # the job's own


def within_time(terms: Terms, job: Callable[..., Any]) -> Callable[..., Any]:
    """The job of a coroutine's caller, cancelled when its time is over; the very job where it has none."""
    limits = terms.options.limits
    if limits is None or limits.timeout_ms is None:
        return job

    async def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the job returns
        async with time_limit(cast("BaseClaim", current())):
            result = job(*args, **kwargs)
            return await result if isinstance(result, Awaitable) else result

    return timed
