"""A claim to come, of an asynchronous caller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from idemreg.acquiring import claim_walk
from idemreg.async_claim import AsyncClaim, hand_over
from idemreg.walk import adrive

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from idemreg.claim import Terms
    from idemreg.deciding import Wanted

__all__ = ["Claiming"]


class Claiming:
    """A claim to come: await it, or enter it as a context manager at once."""

    def __init__(self, terms: Terms, request: Wanted) -> None:
        self._terms = terms
        self._request = request
        self._claim: AsyncClaim | None = None

    def __await__(self) -> Generator[Any, Any, AsyncClaim]:
        return self._take().__await__()

    async def _take(self) -> AsyncClaim:
        offload = self._terms.offload
        assert offload is not None  # noqa: S101 - asynchronous terms have one
        return cast("AsyncClaim", await adrive(hand_over(claim_walk(self._terms, self._request)), offload.host()))

    async def __aenter__(self) -> AsyncClaim:
        self._claim = await self._take()
        return await self._claim.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._claim is not None  # noqa: S101 - it was entered
        await self._claim.__aexit__(kind, error, trace)
