"""The clock check for coroutines: the part of `AsyncRegistry` that schedulers call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from idemreg.clockcheck.verdict import ClockBands, ClockCheck
    from idemreg.registry import Registry

__all__ = ["AsyncClock"]


class AsyncClock:
    """What `AsyncRegistry` is built on; it brings the registry, and the thread on which it is called."""

    _registry: Registry
    _call: Callable[..., Coroutine[Any, Any, Any]]

    async def check_clock(self, bands: ClockBands | None = None) -> ClockCheck:
        """Say whether the wall clock can be trusted to tell when a slot is due; see `Registry.check_clock`."""
        found: ClockCheck = await self._call(self._registry.check_clock, bands)
        return found

    async def confirm_clock(self, *, evidence: str = "", by: str = "operator") -> ClockCheck:
        """Trust the wall clock as it is now; see `Registry.confirm_clock`."""
        found: ClockCheck = await self._call(self._registry.confirm_clock, evidence=evidence, by=by)
        return found
