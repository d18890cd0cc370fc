"""What a store of tasks offers for claims with limits: a lease that is renewed, and a time that a job may take.

A claim that is wanted with `Limits` is granted by `Store.claim` alone and ended by `Store.finish` alone, which store
and remove the limits in the transaction of the claim and of its end. The common claim goes other ways (`Store.begin`,
`Store.finish_one`), and so pays nothing for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.store import Lost

__all__ = ["LeaseLost", "Leasing", "Renewal", "Renewed"]


class Renewal(NamedTuple):
    """An owner's wish to have its lease for so long from now on."""

    task_id: str
    token: int
    owner: int
    lease_ms: int


class Renewed(NamedTuple):
    """The lease is stored anew; ``until_ms``: milliseconds since this boot."""

    until_ms: int


class LeaseLost(NamedTuple):
    """A claim's lease was lost, or is over: its job should stop. ``reason``: how that is known. From the heartbeat."""

    task_id: str
    name: str
    token: int
    attempt: int
    reason: str


class Leasing(Protocol):
    """A Store that keeps leases."""

    def renew(self, renewals: Sequence[Renewal], *, busy_s: float) -> list[Renewed | Lost]:
        """Renew leases, in order, by one commit: each a compare-and-set on task, token, owner and `running`.

        Also one that has expired, as long as nobody has taken its task. Nothing is synced: after a power cut the task
        is free in any case. ``busy_s``: seconds to wait for other writers.
        """
