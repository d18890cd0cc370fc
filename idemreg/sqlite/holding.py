"""What a damaged file held back, which its copy must hold back as well: schedules, and a clock in doubt.

Every row of the two tables has a seal, so a row that comes out is as it was written. That it is the newest, and that
none is missing, no seal tells: only that the whole table was seen, each page of it sound and the newest there is.

Where that is so, all rows are carried over as they are. Else a row may be an older one, and what is lost with the newer
may be a pause, an alarm, or how far the schedule had run. So every schedule that anything tells of (a row, also one
that is damaged; a slot among the tasks) is paused in the copy: what comes due is skipped for that until an operator has
looked, and nothing runs twice. One whose row is lost has come as far as its newest slot that is not ahead, or without
one to now. One of which nothing is left cannot be known, and begins anew. Likewise the clock: where its row may be
lost, scheduling is suspended, by the alarm that is found among the tasks or by a new one.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from idemreg.clockcheck.alarm import JOB, PREFIX
from idemreg.clockcheck.readings import Watch
from idemreg.errors import StoreCorruptError
from idemreg.ledger import LOST_CRON, Schedule, State
from idemreg.model import FINAL
from idemreg.slots import slot_of
from idemreg.sqlite.clocks import to_watch
from idemreg.sqlite.gaps import NAMED
from idemreg.sqlite.slots import ANY_SLOT, to_schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import apsw

    from idemreg.sqlite.gaps import Gaps

__all__ = ["CLOCK", "SCHEDULES", "Held"]

SCHEDULES: Final = "idempotent_schedule"
CLOCK: Final = "idempotent_clock"
SCHEDULE_COLUMNS: Final = 12
CLOCK_COLUMNS: Final = 10
_LOOKS_LIKE: Final = {SCHEDULE_COLUMNS: SCHEDULES, CLOCK_COLUMNS: CLOCK}

ZONE: Final = "UTC"

_STAGE: Final = (
    f"INSERT INTO schedule VALUES ({'?, ' * SCHEDULE_COLUMNS}?) ON CONFLICT DO UPDATE SET "  # noqa: S608
    + ", ".join(f"{field} = excluded.{field}" for field in (*Schedule._fields[2:], "seal", "is_sure"))
    + " WHERE (excluded.is_sure, excluded.watermark_s) > (is_sure, watermark_s)"
)
_SLOTS: Final = f"SELECT task_id FROM log WHERE task_id GLOB '{ANY_SLOT}'"  # noqa: S608 - a constant
_ALARMS: Final = (
    f"SELECT task_id FROM log WHERE name = ? AND task_id GLOB '{PREFIX}*'"  # noqa: S608 - constants
    f" AND status NOT IN ({', '.join(str(int(status)) for status in FINAL)}) ORDER BY task_id DESC LIMIT 1"
)


class Held:
    """The rows of schedules and of the clock, as they are found and as they go into the copy.

    ``staged``: where the rows of tasks are, in its table ``log``, before `settle`. ``now_s``: of the wall clock.
    """

    def __init__(self, staged: apsw.Connection, now_s: int) -> None:
        self._staged = staged
        self._now_s = now_s
        staged.execute(
            f"CREATE TABLE schedule ({', '.join(Schedule._fields)}, seal, is_sure, PRIMARY KEY (name, version))"
        )
        self._names: dict[str, int] = {}  # of schedules that are told of otherwise; the newest slot that has come, or 0
        self._broken: set[str] = set()  # the tables with a row whose seal fails
        self._has_schedules = self._has_clock = False  # every row was seen, and is the newest
        self._is_clock_told = False  # there was a row about the clock, whatever became of it
        self._watch: Watch | None = None
        self.watch: Watch | None = None  # to be kept in the copy; None: nothing was
        self.alarm: str | None = None  # a task that is to be made for it

    # --- what is there ------------------------------------------------------------------------------------------

    def take(self, values: list[Any], table: str | None, *, is_sure: bool) -> bool | None:
        """Whether it is a row of one of the two, as it was written; None where it is a row of another table.

        ``table``: to which the page belongs; None, where nothing leads there. Then what makes no sense is no row.
        """
        kind = _LOOKS_LIKE.get(len(values)) if table is None else table
        if kind not in (SCHEDULES, CLOCK):
            return None
        take = self._take_schedule if kind == SCHEDULES else self._take_clock
        taken = take(values, is_sure=is_sure and table is not None)
        if taken or table is None:
            return taken or None
        self._broken.add(table)
        if table == SCHEDULES and values:  # a record may say that it has no columns
            self._name(values[0], 0)
        return False

    def _take_schedule(self, values: list[Any], *, is_sure: bool) -> bool:
        if len(values) != SCHEDULE_COLUMNS:
            return False
        try:
            to_schedule(values)
        except StoreCorruptError:
            return False
        self._staged.execute(_STAGE, (*values, is_sure))
        return True

    def _take_clock(self, values: list[Any], *, is_sure: bool) -> bool:
        self._is_clock_told = True
        if len(values) != CLOCK_COLUMNS:
            return False
        try:
            watch = to_watch(values[1:])
        except StoreCorruptError:
            return False
        if is_sure:
            self._watch = watch
        else:
            self._broken.add(CLOCK)  # the table does not lead there, or it is an older one
        return True

    def _name(self, name: object, at_s: int) -> None:
        if isinstance(name, str) and name and "@" not in name:
            self._names[name] = max(at_s, self._names.get(name, 0))

    # --- what comes out -----------------------------------------------------------------------------------------

    def settle(self, gaps: Gaps, whole: Callable[[str], bool]) -> Gaps:
        """Decide, once all rows are staged, what goes into the copy; the gaps, these included.

        ``whole``: whether every page of a table was seen and is sound. Where frames are lost it may not be the newest.
        """
        is_seen = {table: whole(table) and table not in self._broken for table in (SCHEDULES, CLOCK)}
        self._has_schedules = is_seen[SCHEDULES] and not gaps.lost_frames and not self._has_any("WHERE NOT is_sure")
        self._has_clock = is_seen[CLOCK] and not gaps.lost_frames
        paused = [] if self._has_schedules else self._all_names()
        if self._has_clock:
            self.watch = self._watch
        elif paused or self._is_clock_told or self._has_any() or not is_seen[CLOCK]:
            self._suspend()
        return gaps._replace(
            lost_schedules=not self._has_schedules,
            paused=tuple(paused[:NAMED]),
            paused_schedules=len(paused),
            lost_clock=not self._has_clock,
            suspended=None if self._has_clock or self.watch is None else self.watch.alarm,
        )

    def _has_any(self, where: str = "") -> bool:
        return self._staged.execute(f"SELECT 1 FROM schedule {where} LIMIT 1").fetchall() != []  # noqa: S608 - constants

    def _all_names(self) -> list[str]:
        """Of every schedule that anything tells of."""
        for (task_id,) in self._staged.execute(_SLOTS):
            if (at_s := slot_of(str(task_id))) is not None:
                # One to come has run by hand, or by a clock that went ahead: those before it are still to be run.
                self._name(str(task_id).rpartition("@")[0], at_s if at_s <= self._now_s else 0)
        rows = self._staged.execute("SELECT DISTINCT name FROM schedule").fetchall()
        return sorted({*(str(name) for (name,) in rows), *self._names})

    def _suspend(self) -> None:
        """By the alarm that is open, or by one of a name that no task has."""
        found = self._staged.execute(_ALARMS, (JOB,)).fetchall()
        if not found:
            names = (f"{PREFIX}salvage{number or ''}" for number in itertools.count())
            self.alarm = next(name for name in names if not self._has_task(name))
        self.watch = Watch(alarm=self.alarm or str(found[0][0]))

    def _has_task(self, task_id: str) -> bool:
        return self._staged.execute("SELECT 1 FROM log WHERE task_id = ?", (task_id,)).fetchall() != []

    def schedules(self) -> Iterator[list[Schedule]]:
        """Each schedule as it goes into another registry: all its versions."""
        found: set[str] = set()
        rows = (to_schedule(row[:-1]) for row in self._staged.execute("SELECT * FROM schedule ORDER BY name, version"))
        for name, group in itertools.groupby(rows, key=lambda row: row.name):
            versions = list(group)
            found.add(name)
            yield versions if self._has_schedules else _paused(versions)
        if not self._has_schedules:
            for name, newest_s in sorted(self._names.items()):
                if name not in found:
                    at_s = newest_s or self._now_s  # or nothing tells how far it has come
                    yield [Schedule(name, 1, LOST_CRON, ZONE, at_s, None, at_s, at_s, None, State.PAUSED, None)]


def _paused(versions: list[Schedule]) -> list[Schedule]:
    """The last one counts, whatever followed it; one that had ended goes on as another, from its end on."""
    *before, last = versions
    ended = [one if one.until_s is not None else one._replace(until_s=one.watermark_s) for one in before]
    if last.until_s is None:
        return [*ended, last._replace(state=State.PAUSED)]
    goes_on = last._replace(version=last.version + 1, after_s=last.watermark_s, until_s=None, skips=None)
    return [*ended, last, goes_on._replace(state=State.PAUSED)]
