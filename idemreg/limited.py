"""Claims with limits: a lease that the heartbeat renews, and a time that the job may take.

What is different for them is all here, in a store and in classes of their own. The common claim knows nothing of it,
and takes the short ways of the store (`Store.begin`, `Store.finish_one`), which such a claim must not.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

from idemreg.async_claim import AsyncClaim
from idemreg.beside import BesideStore
from idemreg.claim import BaseClaim, Claim
from idemreg.ends import crash_end, lost_error, told
from idemreg.errors import ClaimLostError, TaskTimeoutError
from idemreg.heartbeat import Lease, heart
from idemreg.leasing import LeaseLost, Renewal
from idemreg.overtime import left_s, time_limit, timeout_error
from idemreg.untold import tell_hook

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from idemreg.claim import Terms
    from idemreg.deciding import Limits, Wanted
    from idemreg.leasing import Leasing
    from idemreg.store import Answer, End, Granted, Store, Transaction

__all__ = ["AsyncLimitedClaim", "LimitedClaim", "limited"]


def limited(terms: Terms) -> Terms:
    """The terms of claims with the limits that their options say."""
    kind: Any = LimitedClaim if terms.offload is None else AsyncLimitedClaim
    store: Any = _LimitedStore(terms.store, cast("Limits", terms.options.limits))
    return terms._replace(store=store, claim=kind)


class _LimitedStore(BesideStore):
    """The store, as such claims use it."""

    def __init__(self, store: Store, limits: Limits) -> None:
        super().__init__(store)
        self._limits = limits

    def claim(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """As the store's own, with the limits."""
        return self._store.claim([one._replace(limits=self._limits) for one in wanted])


class _Limited(BaseClaim):
    """What both kinds of claims with limits have in common. ``lease``: None where only the time is limited."""

    __slots__ = ()

    lease: Lease | None

    def _renew(self) -> None:
        """Have the lease renewed from now on. Where it cannot be, whoever makes the claim puts it back."""
        try:
            if self.lease is not None:
                heart.add(self.lease)
        except BaseException:
            self.settled()
            raise

    def check(self) -> None:
        """As of every claim, and raise where its lease is lost or over, or its time."""
        super().check()
        if self.lease is not None and self.lease.is_lost():
            error = lost_error(self.task_id)
            error.add_note(f"its lease: {self.lease.reason}")
            raise error
        left = left_s(self)
        if left is not None and left < 0:
            raise timeout_error(self)

    def changes_in_s(self) -> float:
        """Seconds until `check` may answer otherwise, should nothing be renewed meanwhile."""
        ends = [] if self.lease is None else [self.lease.until_ms - self.terms.clock.boot_ms()]
        left = left_s(self)
        return max(min([*(end / 1_000 for end in ends), *([] if left is None else [left])]), 0.0)

    def settled(self) -> None:
        super().settled()
        if self.lease is not None:
            heart.remove(self.lease)

    def end_for(self, error: BaseException) -> End:
        """As of every claim; but a job that was told to stop was interrupted, and did not fail."""
        told_to_stop = isinstance(error, (ClaimLostError, TaskTimeoutError)) and error.task_id == self.task_id
        if told_to_stop and not isinstance(error, (*self.options.release_on, *self.options.unknown_on)):
            return crash_end(self.grant, self.options, told(error, self.options))
        return super().end_for(error)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Transaction]:
        with super()._opened() as transaction, contextlib.nullcontext() if self.lease is None else self.lease.held():
            yield transaction


class LimitedClaim(_Limited, Claim):
    """A claim with limits whose ends are calls."""

    __slots__ = ("lease",)

    def __init__(self, terms: Terms, grant: Granted, name: str) -> None:
        self.lease = _lease_of(terms, grant, name)
        super().__init__(terms, grant, name)
        self._renew()


class AsyncLimitedClaim(_Limited, AsyncClaim):
    """A claim with limits whose ends are awaited. Its block is cancelled when its time is over."""

    __slots__ = ("_time", "lease")

    def __init__(self, terms: Terms, grant: Granted, name: str) -> None:
        self.lease = _lease_of(terms, grant, name)
        self._time: contextlib.AbstractAsyncContextManager[None] = contextlib.nullcontext()  # until its block begins
        super().__init__(terms, grant, name)
        self._renew()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._time = time_limit(self)
        await self._time.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._time.__aexit__(kind, error, trace)
        except TaskTimeoutError as over:
            await super().__aexit__(type(over), over, over.__traceback__)
            raise
        await super().__aexit__(kind, error, trace)


def _lease_of(terms: Terms, grant: Granted, name: str) -> Lease | None:
    """The lease of a claim; None where only its time is limited."""
    limits, deadlines = terms.options.limits, grant.deadlines
    if limits is None or limits.lease_ms is None or deadlines is None or deadlines.lease_ms is None:
        return None

    def on_lost(reason: str) -> None:
        lost = LeaseLost(grant.task_id, name, grant.token, grant.attempt, reason)
        if terms.teller is not None:
            terms.teller.tell(lost)
        if terms.options.on_lost is not None:
            _call(terms.options.on_lost, lost)

    renewal = Renewal(grant.task_id, grant.token, grant.owner, limits.lease_ms)
    return Lease(cast("Leasing", terms.store).renew, terms.clock, renewal, deadlines.lease_ms, on_lost)


def _call(on_lost: Any, lost: LeaseLost) -> None:  # noqa: ANN401 - a callback
    """Whatever it raises: the heartbeat goes on for all others."""
    try:
        on_lost(lost)
    except BaseException as error:  # noqa: BLE001 - as above
        tell_hook(error)
