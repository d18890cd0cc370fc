"""The upkeep of the tasks, a bounded transaction or a bounded step at a time; and what is kept of the clock."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from idemreg import faults
from idemreg.errors import StoreError
from idemreg.lockfile import importing
from idemreg.sqlite.files import absolute
from idemreg.sqlite.reading import Reader
from idemreg.store import Removed

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from idemreg.blocks import Block
    from idemreg.clockcheck.readings import Watch
    from idemreg.deciding import Wanted
    from idemreg.ledger import NewSlot, Schedule, Waiting
    from idemreg.model import Origin, Task
    from idemreg.progress import Step, Steps
    from idemreg.query import Instant, Query
    from idemreg.recovery import Kept
    from idemreg.sqlite.connection import Connection
    from idemreg.store import Backup, Lost, Present, Survey

__all__ = ["Keeper"]

MARK_BUSY_S: Final = 0.5  # with whoever writes: a look that cannot note what it finds can tell it all the same


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

    def put(self, tasks: Sequence[Task], floor: int, origin: Origin, steps: Steps = None) -> list[Present | None]:
        """Insert the rows and their steps, in one transaction; `Present` for each that has a row already, in order."""
        from idemreg.sqlite import importing  # noqa: PLC0415

        version = self._schema_version

        with self._opening.using() as opened:

            def put(connection: Connection) -> list[Present | None]:
                answers = importing.put(connection, version, tasks, floor, origin, steps)
                now_us = opened.stamp()[0]
                if any(task.updated_at > now_us for task in tasks):
                    opened.newest.void()
                return answers

            answers = opened.database.write(put, durable=True)
        faults.point("import.committed")
        return answers

    def put_kept(self, kept: Sequence[tuple[str, Kept]]) -> None:
        """Store arguments, each of a task that `put` has inserted and whose policy says that they are kept."""
        from idemreg.sqlite import arguments, records  # noqa: PLC0415 - for a salvage only

        def put(connection: Connection) -> None:
            records.floor(connection, self._schema_version)
            for task_id, one in kept:
                arguments.keep(connection, task_id, one)

        with self._opening.using() as opened:
            opened.database.write(put, durable=True)

    def backup(self, path: str | os.PathLike[str], progress: Callable[[int, int], None] | None) -> Backup:
        """Copy the whole file as it is at one instant to ``path``, which must not exist; see `copying.copy`."""
        from idemreg.sqlite import copying  # noqa: PLC0415

        return self._read(copying.copy, self._schema_version, absolute(path), progress)

    def reserve_serials(self, prefix: str, now_us: int, ahead_us: int, held: Block | None, *, durable: bool) -> Block:
        """Raise the prefix's mark past a new block; see `serial_marks.reserve`."""
        from idemreg.sqlite import serial_marks  # noqa: PLC0415 - few programs need it

        version = self._schema_version

        def reserve(connection: Connection) -> Block:
            return serial_marks.reserve(connection, version, prefix, now_us, ahead_us, held)

        with self._opening.using() as opened:
            block = opened.database.write(reserve, durable=durable)
            opened.database.check_files()  # a mark in files that are gone would bind nobody
        faults.point("serial.reserved")
        return block

    def step(self, task_id: str, token: int, name: str, *, durable: bool) -> Step | Lost | None:
        """The step as it was saved; see `Progress.step`."""
        with importing():
            from idemreg.sqlite import steps  # noqa: PLC0415 - few jobs have any

        with self._opening.using() as opened:
            found = opened.database.read(steps.find, self._schema_version, task_id, token, name)
            if found is not None:
                opened.database.seen_final(durable=durable)
            return found

    def save_step(self, task_id: str, token: int, name: str, result: str | None, *, durable: bool) -> Step | Lost:
        """Save the step; see `Progress.save_step`."""
        with importing():
            from idemreg.sqlite import steps  # noqa: PLC0415

        version = self._schema_version
        with self._opening.using() as opened:

            def save(connection: Connection) -> Step | Lost:
                return steps.save(connection, version, task_id, token, name, result, opened.instant().wall_us)

            saved = opened.database.write(save, durable=durable)
        faults.point("step.saved")
        return saved

    # --- the clock ------------------------------------------------------------------------------------------------

    def watch(self) -> Watch:
        """What is kept of the wall clock between two looks; see `idemreg.clockcheck`."""
        from idemreg.sqlite import clocks, records  # noqa: PLC0415 - for schedules only

        def read(connection: Connection) -> Watch:
            records.floor(connection, self._schema_version)
            return clocks.watch(connection)

        return self._read(read)

    def newest_us(self) -> int | None:
        """The newest stored time, where it is noted; see `sqlite/stamps.py`."""
        with self._opening.using() as opened:
            return opened.newest.read()

    def begin_newest(self) -> int | None:
        """Note the times of all rows that are stored from now on. None where nobody may write just now."""
        with self._opening.using() as opened, contextlib.suppress(StoreError):
            now_us = opened.instant().wall_us
            begun: int | None = opened.database.write(
                lambda _: opened.newest.begin(now_us), durable=False, busy_s=MARK_BUSY_S
            )
            return begun
        return None

    def complete_newest(self, reading: int, newest_us: int | None) -> None:
        """Note the newest of the rows that were stored before, as they were read since `begin_newest` gave this."""
        with self._opening.using() as opened, contextlib.suppress(StoreError):
            opened.database.write(
                lambda _: opened.newest.complete(reading, newest_us), durable=False, busy_s=MARK_BUSY_S
            )

    def note_watch(self, seen: Watch, new: Watch) -> bool:
        """Keep ``new`` in place of ``seen``; False, and nothing is changed, where another process was faster.

        An alarm is durable when this returns. A look is not: where a power cut takes it back, the one before it serves.
        """
        from idemreg.sqlite import clocks, records  # noqa: PLC0415

        def note(connection: Connection) -> bool:
            records.floor(connection, self._schema_version)
            return clocks.note_watch(connection, seen, new)

        with self._opening.using() as opened:
            return opened.database.write(note, durable=(seen.alarm, seen.of_jump) != (new.alarm, new.of_jump))

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

    def rewind(self, seen: Schedule, now_s: int, wanted: Wanted) -> bool:
        """Take back how far a schedule has come, behind a clock that was ahead; see `Ledger.rewind`.

        Not synced: where a power cut takes it back, the next look does it again.
        """
        from idemreg.sqlite import rewinding  # noqa: PLC0415 - rare

        version = self._schema_version
        with self._opening.using() as opened:

            def rewind(connection: Connection) -> bool:
                # Whoever has looked by an older time, and was stopped since, takes no clock for one that went back.
                stamp = opened.stamp()
                latest_s = stamp[0] // 1_000_000
                return rewinding.rewind(connection, version, seen, max(now_s, latest_s), wanted, stamp)

            return opened.database.write(rewind, durable=False, is_alone=True)
