"""The reading half of the Store: what it tells without the write lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from idemreg.model import Liveness, Status
from idemreg.sqlite import queries, tasks
from idemreg.sqlite.claiming import look
from idemreg.store import Instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apsw import Connection

    from idemreg.clock import Clock
    from idemreg.model import OwnerInfo, Task, Version, Wanted
    from idemreg.sqlite.opening import Opening
    from idemreg.store import Absent, Answer, Page, Query, Stored

__all__ = ["Reader"]

# Waiting for a running twin: the first look comes soon, later ones cost a process next to nothing.
FIRST_NAP_S: Final = 0.001
LONGEST_NAP_S: Final = 0.05
NAP_GROWTH: Final = 1.6


class Reader:
    """Reads tasks. Every read checks that this code knows the file's schema."""

    def __init__(self, opening: Opening, clock: Clock, schema_version: int) -> None:
        self._opening = opening
        self._clock = clock
        self._schema_version = schema_version

    def glance(self, wanted: Wanted) -> Stored | Absent | None:
        """The two common cases by one narrow read; None where it takes a `look`."""
        return self._opening.opened().database.read(tasks.glance, self._schema_version, wanted)

    def look(self, wanted: Wanted) -> Answer | None:
        """What a plain read can answer, with no write lock; None where a row must be written."""
        opened = self._opening.opened()
        return opened.database.read(look, self._schema_version, opened.owners, wanted)

    def get(self, task_ids: Sequence[str]) -> list[Task | None]:
        """The rows, in order."""
        version = self._schema_version

        def get(connection: Connection) -> list[Task | None]:
            tasks.floor(connection, version)
            return [tasks.read(connection, version, task_id) for task_id in task_ids]

        return self._opening.opened().database.read(get)

    def page(self, query: Query, after: str | None, limit: int) -> Page:
        """At most ``limit`` tasks behind the task_id ``after``."""
        version, at = self._schema_version, self.instant()
        return self._opening.opened().database.read(
            lambda connection: queries.page(connection, version, query, at, after, limit)
        )

    def instant(self) -> Instant:
        """Now, as ages are counted. This process lives in one boot, so every epoch since its opening is this boot."""
        return Instant(self._clock.wall_us(), self._clock.boot_ms(), self._opening.opened().epoch_bits)

    def floor(self) -> int:
        """The token floor: every token given from now on is above it."""
        return self._opening.opened().database.read(tasks.floor, self._schema_version)

    def registry_id(self) -> str:
        """The random id of the place. Read anew each time: an import into an empty place changes it."""
        return self._opening.opened().database.read(queries.registry_id, self._schema_version)

    def count(self) -> dict[Status, int]:
        """How many tasks are in each status that occurs."""
        version = self._schema_version
        return self._opening.opened().database.read(lambda connection: queries.count(connection, version))

    def owner(self, task: Task) -> OwnerInfo | None:
        """Who runs the task, and whether it lives; None where nobody does."""
        if task.status is not Status.RUNNING:
            return None
        opened = self._opening.opened()
        return opened.database.read(lambda connection: opened.owners.of(connection, task))

    def wait(self, task_id: str, seen: Version, deadline: float) -> None:
        """Return once the row differs from ``seen``, its owner is proven dead, or ``deadline`` has passed."""
        nap = FIRST_NAP_S
        while (left := deadline - self._clock.monotonic()) > 0:
            (row,) = self.get([task_id])
            if row is None or row.version != seen:
                return
            owner = self.owner(row)
            if owner is not None and owner.liveness is Liveness.DEAD:
                return
            self._clock.sleep(min(nap, left))
            nap = min(nap * NAP_GROWTH, LONGEST_NAP_S)
