"""From a cron expression and a time zone to instants. Pure: it reads no clock, no file but the zone's, and no row.

The expression has the five fields of cron (minute, hour, day of month, month, day of week), as cronsim reads them,
which follows Debian's cron: names, ranges, steps, lists, ``L``, ``LW`` and ``#``; where neither day begins with a star,
either of them is enough.

The nights on which the clocks change are Debian's as well. A job *at a fixed time* (neither its minute nor its hour
begins with a star: ``30 2 * * *``) runs once in each of them: where its time is left out, at the first instant behind
the gap (several times of one gap are one slot); where its time comes twice, the first time. A job *by the clock* (a
star in front of its minute or hour: ``*/15 * * * *``, ``30 * * * *``) runs whenever the clock on the wall says so: not
in the gap, and twice where a time comes twice.

cronsim reads the expression, and decides which days are meant; this file tells when their times are. *Rejected:* to let
cronsim go through the zone by itself. It steps by whole hours, and so misses slots where a zone moves by half an hour
(Lord Howe): a test shows it. And it goes from slot to slot in 5 µs, ten times what a slot of a known day takes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg.errors import ScheduleError, require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

__all__ = ["DENSEST_S", "Cron", "zone_of"]

FIELDS: Final = 5
DENSEST_S: Final = 60  # no two slots are nearer

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - the wall clock of a zone is counted in its own seconds
_SECOND: Final = timedelta(seconds=1)

DAY_S: Final = 86_400

# Zones change their offset some times a year; two changes within a quarter of a day would be taken for one.
PROBE_S: Final = 6 * 3_600
# How far a wall clock may be from where it is some change of its zone later: Samoa once left out a day.
LONGEST_CHANGE_S: Final = 2 * 86_400

GROWTH: Final = 4  # of the span in which `newest` looks


class _Stretch(NamedTuple):
    """A time without a change of the zone: the instants after ``after_s`` up to ``until_s``."""

    after_s: int
    until_s: int
    offset_s: int  # of the wall clock, ahead of UTC


class Cron:
    """Which instants an expression names in a zone; `ScheduleError` where they make no schedule."""

    def __init__(self, expression: str, zone: str) -> None:
        require(expression, str, "a cron expression is text")
        require(zone, str, "a time zone is the name of one")
        self.expression: Final = " ".join(expression.upper().split())
        self.zone: Final = zone
        self._zone = zone_of(zone)
        fields = self.expression.split(" ")
        if len(fields) != FIELDS:
            msg = f"a cron expression has five fields, not {len(fields)}: {expression!r}"
            raise ScheduleError(msg, hint="Minute, hour, day of month, month, day of week: '0 3 * * *' is 03:00.")
        self._is_fixed = not any(field.startswith("*") for field in fields[:2])
        spec = self._cronsim(self.expression, _EPOCH)  # whatever is wrong with it is told now
        self._times_s: Final = sorted(hour * 3_600 + minute * 60 for hour in spec.hours for minute in spec.minutes)
        self._days: Final = " ".join(["0", "0", *fields[2:]])

    def between(self, after_s: int, until_s: int) -> Iterator[int]:
        """The slots after ``after_s`` up to ``until_s`` inclusive, in order."""
        return self._at_fixed_times(after_s, until_s) if self._is_fixed else self._by_the_clock(after_s, until_s)

    def newest(self, after_s: int, until_s: int, most: int) -> list[int]:
        """The last of them, at most so many, in order; takes no longer where there are millions before them."""
        span_s = most * DENSEST_S
        while True:
            begin_s = max(after_s, until_s - span_s)
            found = list(self.between(begin_s, until_s))
            if begin_s == after_s or len(found) >= most:
                return found[-most:]
            span_s *= GROWTH

    def following(self, after_s: int, until_s: int) -> int | None:
        """The first slot after an instant; None where there is none up to the other."""
        return next(self.between(after_s, until_s), None)

    def names(self, at_s: int) -> bool:
        """Whether the instant is a slot. At the ends of what a date can say, where nothing can be reckoned, none is."""
        try:
            return self.following(at_s - 1, at_s) is not None
        except (OverflowError, ValueError):
            return False

    def local(self, at_s: int) -> datetime:
        """The instant on the wall clock of the zone."""
        return datetime.fromtimestamp(at_s, self._zone)

    # --- times of the wall clock --------------------------------------------------------------------------------

    def _cronsim(self, expression: str, after: datetime) -> Any:  # noqa: ANN401 - cronsim's own iterator
        cronsim = _cronsim()
        try:
            return cronsim.CronSim(expression, after)
        except cronsim.CronSimError as error:
            msg = f"{self.expression!r} is no cron expression: {str(error).lower()}"
            raise ScheduleError(msg) from error

    def _shown(self, after_s: int) -> Iterator[int]:
        """The times after this one that the expression means, on a wall clock that never changes, in its seconds.

        Where there are none, cronsim ends after fifty empty years.
        """
        before = _EPOCH + timedelta(seconds=after_s - after_s % DAY_S - 1)
        for day in self._cronsim(self._days, before):
            day_s = (day - _EPOCH) // _SECOND
            for time_s in self._times_s:
                if day_s + time_s > after_s:
                    yield day_s + time_s

    def _by_the_clock(self, after_s: int, until_s: int) -> Iterator[int]:
        """What the wall clock shows, one stretch after the other: times in a gap are in none, double ones in two."""
        for stretch in self._stretches(after_s, until_s):
            for shown_s in self._shown(stretch.after_s + stretch.offset_s):
                if shown_s - stretch.offset_s > stretch.until_s:
                    break
                yield shown_s - stretch.offset_s

    def _at_fixed_times(self, after_s: int, until_s: int) -> Iterator[int]:
        """Each time of the wall clock once, the first time that it is reached or passed."""
        last_s = after_s
        for shown_s in self._shown(after_s + self._offset_s(after_s) - LONGEST_CHANGE_S):
            at_s = self._first_instant(shown_s)
            if at_s > until_s:
                return
            if at_s > last_s:
                last_s = at_s
                yield at_s

    def _first_instant(self, shown_s: int) -> int:
        """When the wall clock first shows the time, or first has passed it, where it never shows it."""
        there = (_EPOCH + timedelta(seconds=shown_s)).replace(tzinfo=self._zone)
        before, behind = (_offset_s(there.replace(fold=fold)) for fold in (0, 1))
        if before < behind:  # a gap: the time is after its change by the old offset, and before it by the new one
            return self._change(shown_s - behind, shown_s - before)
        return shown_s - before

    # --- the zone -----------------------------------------------------------------------------------------------

    def _offset_s(self, at_s: int) -> int:
        return _offset_s(self.local(at_s))

    def _stretches(self, after_s: int, until_s: int) -> Iterator[_Stretch]:
        begin_s, at_s = after_s, after_s + 1
        offset_s = self._offset_s(at_s)
        while at_s < until_s:
            next_s = min(at_s + PROBE_S, until_s)
            if self._offset_s(next_s) != offset_s:
                next_s = self._change(at_s, next_s)
                yield _Stretch(begin_s, next_s - 1, offset_s)
                begin_s, offset_s = next_s - 1, self._offset_s(next_s)
            at_s = next_s
        yield _Stretch(begin_s, until_s, offset_s)

    def _change(self, before_s: int, behind_s: int) -> int:
        """The first instant with another offset than ``before_s``, between the two, by halving."""
        offset_s = self._offset_s(before_s)
        while behind_s - before_s > 1:
            middle_s = (before_s + behind_s) // 2
            if self._offset_s(middle_s) == offset_s:
                before_s = middle_s
            else:
                behind_s = middle_s
        return behind_s


def _offset_s(at: datetime) -> int:
    offset = at.utcoffset()
    return 0 if offset is None else offset // _SECOND


def zone_of(name: str) -> tzinfo:
    """The zone of a schedule; `ScheduleError` where there is none of that name here."""
    if name == "UTC":  # what holds without an option is to work where there is no database of zones
        return UTC
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - 3 ms for whoever has a schedule

    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError, TypeError) as error:  # which of them depends on what is wrong with it
        msg = f"there is no time zone {name!r}"
        hint = (
            "Names are those of the IANA database: Europe/Berlin, UTC. Where the system has none (package tzdata), the"
            ' extra brings one: `pip install "idemreg[schedule]"`.'
        )
        raise ScheduleError(msg, hint=hint) from error


def _cronsim() -> Any:  # noqa: ANN401 - the module
    try:
        import cronsim  # noqa: PLC0415 - an extra: whoever has no schedule does without
    except ImportError as error:
        msg = "schedules stand on the library cronsim, which is not installed"
        raise ScheduleError(msg, hint='Install it: `pip install "idemreg[schedule]"`.') from error
    return cronsim
