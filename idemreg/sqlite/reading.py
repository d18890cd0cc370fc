"""The reading half of the Store: what it tells without the write lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar

from idemreg.lockfile import importing
from idemreg.model import Status
from idemreg.sqlite import queries, records
from idemreg.sqlite.rows import read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from idemreg.model import Origin, Task
    from idemreg.owner import OwnerInfo
    from idemreg.progress import Step
    from idemreg.query import Instant, Page, Query
    from idemreg.recovery import Kept
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.opening import Opening

__all__ = ["Reader"]

P = ParamSpec("P")
T = TypeVar("T")

# What is said of these is no promise: a power cut may take them back.
_MAY_PASS: Final = (Status.PENDING, Status.RUNNING)


class Reader:
    """Reads tasks. Every read checks that this code knows the file's schema."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._schema_version = opening.schema_version
        self.path = opening.path

    def open(self) -> None:
        """Open now what the first use would."""
        self._opening.opened()

    def close(self) -> None:
        """Close what is open. Claims that are not finished keep their owner's lock until they are."""
        self._opening.close()

    def get(self, task_ids: Sequence[str], *, durable: bool | None = None) -> list[Task | None]:
        """The rows, in order."""
        version = self._schema_version

        def get(connection: Connection) -> list[Task | None]:
            records.floor(connection, version)
            return [read(connection, version, task_id) for task_id in task_ids]

        with self._opening.using() as opened:
            rows = opened.database.read(get)
            if any(row is not None and row.status not in _MAY_PASS for row in rows):
                opened.database.seen_final(durable=opened.database.reads_durable if durable is None else durable)
            return rows

    def page(self, query: Query, after: str | None, limit: int) -> Page:
        """At most ``limit`` tasks behind the task_id ``after``."""
        version, at = self._schema_version, self.instant()
        with self._opening.using() as opened:
            page = opened.database.read(lambda connection: queries.page(connection, version, query, at, after, limit))
            opened.database.seen_final(durable=opened.database.reads_durable)
            return page

    def instant(self) -> Instant:
        """Now, as ages are counted."""
        return self._opening.opened().instant()

    def floor(self) -> int:
        """The token floor: every token given from now on is above it."""
        return self._read(records.floor, self._schema_version)

    def origin(self) -> Origin:
        """The random id of the place, and its key's note. Read anew each time: an import may change them."""
        return self._read(queries.origin, self._schema_version)

    def downstream_key(self, task_id: str) -> str:
        """A key for receivers: the same over all attempts of the task, different in every other registry."""
        from idemreg.tagged import downstream_key  # noqa: PLC0415 - for jobs, which have it

        return downstream_key(self.origin().registry_id, task_id)

    def count(self) -> dict[Status, int]:
        """How many tasks are in each status that occurs."""
        with self._opening.using() as opened:
            counts = opened.database.read(queries.count, self._schema_version)
            opened.database.seen_final(durable=opened.database.reads_durable)
            return counts

    def steps(self, task_id: str) -> list[Step]:
        """The steps of the task, in the order in which they were saved."""
        with importing():
            from idemreg.sqlite import step_rows  # noqa: PLC0415 - few jobs have any

        return self._read(step_rows.of_task, self._schema_version, task_id)

    def tasks_with_steps(self, first: str, last: str) -> set[str]:
        """Which of the tasks between these two, both included, have steps."""
        with importing():
            from idemreg.sqlite import step_rows  # noqa: PLC0415 - as above

        return self._read(step_rows.tasks_with_steps, self._schema_version, first, last)

    def kept(self, after: str | None, limit: int) -> list[tuple[Task, Kept]]:
        """At most ``limit`` tasks whose arguments are kept, behind the task_id ``after``, in order."""
        with importing():
            from idemreg.sqlite import arguments  # noqa: PLC0415 - few jobs have any

        version = self._schema_version

        def kept(connection: Connection) -> list[tuple[Task, Kept]]:
            records.floor(connection, version)
            found = arguments.page(connection, after, limit)
            rows = [(read(connection, version, task_id), kept) for task_id, kept in found]
            return [(row, kept) for row, kept in rows if row is not None]

        return self._read(kept)

    def kept_of(self, task_id: str) -> Kept | None:
        """The kept arguments of the task; None where there are none."""
        with importing():
            from idemreg.sqlite import arguments  # noqa: PLC0415 - as above

        version = self._schema_version

        def kept_of(connection: Connection) -> Kept | None:
            records.floor(connection, version)
            return arguments.read(connection, task_id)

        return self._read(kept_of)

    def owner(self, task: Task) -> OwnerInfo | None:
        """Who runs the task, and whether it lives; None where nobody does."""
        if task.status is not Status.RUNNING:
            return None
        with importing():
            from idemreg.sqlite.whose import owner_of  # noqa: PLC0415 - most tasks do not run

        version = self._schema_version
        with self._opening.using() as opened:

            def owner(connection: Connection) -> OwnerInfo:
                records.floor(connection, version)
                return owner_of(opened.owners, connection, task)

            return opened.database.read(owner)

    def _read(self, body: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._opening.using() as opened:
            return opened.database.read(body, *args, **kwargs)
