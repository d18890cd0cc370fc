"""What is asked of a store by who only looks: which tasks, and what comes back; values and no SQL, as in `store`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from idemreg.model import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.model import Origin, Task
    from idemreg.owner import OwnerInfo

__all__ = ["Instant", "Look", "Page", "Query"]


class Query(NamedTuple):
    """Which tasks; all by default. What is given must all hold.

    ``status``: one, or several. ``prefix``: the beginning of the task_id. ``name``: of the job. ``older_ms``: not
    changed for at least so long; ``newer_ms``: changed within so long (see `Instant`). ``dead``: dead letters only.
    """

    status: Status | frozenset[Status] | None = None
    prefix: str = ""
    name: str | None = None
    older_ms: int | None = None
    newer_ms: int | None = None
    dead: bool = False

    @property
    def statuses(self) -> frozenset[Status] | None:
        """The statuses as a set; None: all."""
        return frozenset({self.status}) if isinstance(self.status, Status) else self.status


class Instant(NamedTuple):
    """The instant from which ages are counted.

    A row whose stamp is ``boot_start`` or above was written in this boot, and its age is counted by time since boot,
    whatever the wall clock did; only of earlier rows the date decides.
    """

    wall_us: int
    boot_ms: int
    boot_start: int


class Page(NamedTuple):
    """Some tasks in the order of their task_id. ``after`` goes on from there (None: no more), also where none came."""

    tasks: list[Task]
    after: str | None


class Look(Protocol):
    """A place that keeps tasks, to who only looks. Safe to share between threads; reopens in a forked child."""

    def get(self, task_ids: Sequence[str], *, durable: bool | None = None) -> list[Task | None]:
        """The rows, in order. What it returns is ``durable``, or (None) as the place's reads are."""

    def page(self, query: Query, after: str | None, limit: int) -> Page:
        """At most ``limit`` tasks behind the task_id ``after``."""

    def count(self) -> dict[Status, int]:
        """How many tasks are in each status that occurs."""

    def instant(self) -> Instant:
        """Now, as ages are counted."""

    def floor(self) -> int:
        """The token floor: every token given from now on is above it."""

    def origin(self) -> Origin:
        """The random id of the place, part of every downstream key, and of its checksums' key."""

    def owner(self, task: Task) -> OwnerInfo | None:
        """Who runs the task, and whether it lives; None where nobody does."""

    def downstream_key(self, task_id: str) -> str:
        """A key for receivers: the same over all attempts of the task, different in every other registry."""

    def close(self) -> None:
        """Close what is open. Claims that are not finished keep their owner's lock until they are."""
