"""The upkeep of the tasks: purge, import, backup and slots, a bounded transaction or a bounded step at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idemreg import faults
from idemreg.sqlite.files import absolute
from idemreg.sqlite.reading import Reader
from idemreg.store import Removed

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from idemreg.ledger import NewSlot, Schedule, Waiting
    from idemreg.model import Origin, Task, Wanted
    from idemreg.sqlite.connection import Connection
    from idemreg.store import Backup, Instant, Present, Query, Survey

__all__ = ["Keeper"]


class Keeper(Reader):
    """Removes, inserts and copies rows. No claim passes here."""

    def survey(self, query: Query, at: Instant, after: str | None) -> Survey:
        """Count what `remove` would take in a bounded piece of the tasks behind ``after``. Takes no lock."""
        from idemreg.sqlite import purging  # noqa: PLC0415 - a purge, an import and a backup are rare

        with self._opening.using() as opened:
            survey = opened.database.read(purging.survey, self._schema_version, query, at, after)
            opened.database.seen_final(durable=opened.database.reads_durable)
            return survey

    def remove(self, query: Query, at: Instant, after: str | None) -> Removed:
        """Remove a bounded number of final rows behind ``after`` whose ``keep_for`` has passed, in one transaction.

        Not synced: a power cut may bring rows back, and the floor with them, which the next purge removes again.
        """
        from idemreg.sqlite import purging  # noqa: PLC0415

        version = self._schema_version
        found = self._read(purging.find, version, query, at, after)
        if not found.rows:
            return Removed(0, found.after)

        def remove(connection: Connection) -> int:
            return purging.remove(connection, version, found.rows)

        with self._opening.using() as opened:
            count = opened.database.write(remove, durable=False)
        faults.point("purge.committed")
        return Removed(count, found.after)

    def put(self, tasks: Sequence[Task], floor: int, origin: Origin) -> list[Present | None]:
        """Insert the rows as they are, in one transaction; `Present` for each that has a row already, in order."""
        from idemreg.sqlite import importing  # noqa: PLC0415

        version = self._schema_version

        def put(connection: Connection) -> list[Present | None]:
            return importing.put(connection, version, tasks, floor, origin)

        with self._opening.using() as opened:
            answers = opened.database.write(put, durable=True)
        faults.point("import.committed")
        return answers

    def backup(self, path: str | os.PathLike[str], progress: Callable[[int, int], None] | None) -> Backup:
        """Copy the whole file as it is at one instant to ``path``, which must not exist; see `copying.copy`."""
        from idemreg.sqlite import copying  # noqa: PLC0415

        return self._read(copying.copy, self._schema_version, absolute(path), progress)

    # --- slots ----------------------------------------------------------------------------------------------------

    def schedules(self, name: str | None = None) -> list[Schedule]:
        """Every version of the schedule, or of all, in order."""
        from idemreg.sqlite import slots  # noqa: PLC0415 - most programs have no schedule

        return self._read(slots.schedules, self._schema_version, name)

    def waiting(self, name: str) -> Waiting:
        """What may be to be done about a schedule, as of one instant."""
        from idemreg.sqlite import slots  # noqa: PLC0415

        with self._opening.using() as opened:
            found = opened.database.read(slots.waiting, self._schema_version, opened.owners, name)
            opened.database.seen_final(durable=opened.database.reads_durable)
            return found

    def plan(
        self, seen: Schedule | None, becomes: Sequence[Schedule], slots: Sequence[NewSlot], wanted: Wanted
    ) -> bool:
        """Write versions of a schedule, and a row for each of the slots that has none; see `Ledger.plan`."""
        from idemreg.sqlite.slots import plan  # noqa: PLC0415

        version = self._schema_version
        with self._opening.using() as opened:
            is_planned = opened.database.write(
                lambda connection: plan(connection, version, seen, becomes, slots, wanted, opened.stamp()),
                durable=wanted.durable,
                is_alone=bool(slots),
            )
        faults.point("slots.committed")
        return is_planned
