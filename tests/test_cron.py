"""Which instants an expression names, also in the nights when clocks change, against a reckoning of another kind."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

import cronsim
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idemreg import ScheduleError
from idemreg.cron import Cron
from idemreg.slots import instant, seconds_of, slot_id, slot_of
from tests.support.processes import ROOT

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
LONGEST_LEAP = timedelta(hours=3)  # Debian's cron takes more for a clock that was set

# What the zones do in 2026, from their laws: the instant in UTC, and the offset from then on. No zoneinfo here.
ZONES: dict[str, list[tuple[str, float]]] = {
    "Europe/Berlin": [("2026-01-01T00:00", 1), ("2026-03-29T01:00", 2), ("2026-10-25T01:00", 1)],
    "America/New_York": [("2026-01-01T00:00", -5), ("2026-03-08T07:00", -4), ("2026-11-01T06:00", -5)],
    "Australia/Lord_Howe": [("2026-01-01T00:00", 11), ("2026-04-04T15:00", 10.5), ("2026-10-03T15:30", 11)],
    "Asia/Shanghai": [("2026-01-01T00:00", 8)],
    "UTC": [("2026-01-01T00:00", 0)],
}


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def slots(expression: str, zone: str, after: str, until: str) -> list[str]:
    found = Cron(expression, zone).between(seconds_of(at(after)), seconds_of(at(until)))
    return [instant(slot).strftime("%m-%d %H:%M") for slot in found]


# --- another reckoning ------------------------------------------------------------------------------------------


@cache
def changes(zone: str) -> list[tuple[datetime, timedelta]]:
    return [(at(since), timedelta(hours=hours)) for since, hours in reversed(ZONES[zone])]


def wall(zone: str, now: datetime) -> datetime:
    for since, offset in changes(zone):
        if since <= now:
            return now.replace(tzinfo=None) + offset
    raise AssertionError(now)


def allowed(field: str, lowest: int, highest: int) -> set[int]:
    found: set[int] = set()
    for term in field.split(","):
        span, _, step = term.partition("/")
        first, _, last = ("", "", "") if span == "*" else span.partition("-")
        begin = int(first) if first else lowest
        end = int(last) if last else begin if first and not step else highest
        found |= set(range(begin, end + 1, int(step or 1)))
    return found


class Fields(NamedTuple):
    """The five of an expression, each read once: a year has half a million minutes."""

    minutes: set[int]
    hours: set[int]
    days: set[int]
    months: set[int]
    weekdays: set[int]
    both: bool  # a day must be one of the days and of the weekdays, not only of either


@cache
def fields(expression: str) -> Fields:
    minute, hour, day, month, weekday = expression.split()
    return Fields(
        allowed(minute, 0, 59),
        allowed(hour, 0, 23),
        allowed(day, 1, 31),
        allowed(month, 1, 12),
        {number % 7 for number in allowed(weekday, 0, 7)},
        day.startswith("*") or weekday.startswith("*"),
    )


def matches(wanted: Fields, time: datetime) -> bool:
    if time.minute not in wanted.minutes or time.hour not in wanted.hours:
        return False
    by_day = time.day in wanted.days
    by_weekday = time.isoweekday() % 7 in wanted.weekdays
    return time.month in wanted.months and (by_day and by_weekday if wanted.both else by_day or by_weekday)


def as_debian_does(expression: str, zone: str, after: datetime, until: datetime) -> list[str]:
    """cron's own loop: it looks at the wall clock each minute, and at what it has leapt over or shown before."""
    is_fixed = not any(field.startswith("*") for field in expression.split()[:2])
    wanted = fields(expression)
    virtual = wall(zone, after - 2 * HOUR)  # how far jobs at fixed times have come
    now, found = after - 2 * HOUR, []
    while (now := now + MINUTE) <= until:
        shown = wall(zone, now)
        if not is_fixed:
            is_due = matches(wanted, shown)
        else:
            assert shown - virtual < LONGEST_LEAP
            is_due = False
            while virtual < shown:
                virtual += MINUTE
                is_due = is_due or matches(wanted, virtual)
        if is_due and now > after:
            found.append(now.strftime("%m-%d %H:%M"))
    return found


NIGHTS = {
    "Europe/Berlin": ["2026-03-28T12:00", "2026-10-24T12:00"],
    "America/New_York": ["2026-03-07T18:00", "2026-10-31T18:00"],
    "Australia/Lord_Howe": ["2026-04-04T06:00", "2026-10-03T06:00"],
    "Asia/Shanghai": ["2026-03-28T12:00", "2026-10-24T12:00"],
}

minutes = st.sampled_from(["0", "30", "15,45", "*", "*/15", "5-50/15", "59", "1"])
hours = st.sampled_from(["*", "*/2", "0", "1", "2", "3", "1-3", "0,2", "2,3", "23"])
days = st.sampled_from([("*", "*"), ("*", "0"), ("*", "6,7"), ("29", "*"), ("4", "6"), ("25,1,8", "1")])


@given(
    zone=st.sampled_from(sorted(NIGHTS)),
    spring=st.booleans(),
    minute=minutes,
    hour=hours,
    day=days,
    skew=st.integers(0, 18 * 60),
)
def test_the_nights_are_those_of_cron(
    zone: str, *, spring: bool, minute: str, hour: str, day: tuple[str, str], skew: int
) -> None:
    """Over every night of a change, from wherever one begins to look, the slots are those of Debian's own loop."""
    expression = f"{minute} {hour} {day[0]} * {day[1]}"
    after = at(NIGHTS[zone][spring]) + skew * MINUTE
    until = after + 12 * HOUR
    found = Cron(expression, zone).between(seconds_of(after), seconds_of(until))
    assert [instant(slot).strftime("%m-%d %H:%M") for slot in found] == as_debian_does(expression, zone, after, until)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("expression", ["30 2 * * *", "15 */6 1,15 * 3"])
def test_a_year_is_that_of_cron(zone: str, expression: str) -> None:
    """Over a whole year, whatever the zone does in it."""
    after, until = at("2026-01-02T00:00"), at("2026-12-30T00:00")
    found = [instant(slot) for slot in Cron(expression, zone).between(seconds_of(after), seconds_of(until))]
    assert [slot.strftime("%m-%d %H:%M") for slot in found] == as_debian_does(expression, zone, after, until)


# --- told one by one --------------------------------------------------------------------------------------------


def test_a_fixed_time_in_the_gap_runs_behind_it() -> None:
    """Berlin, 29 March 2026: 02:30 does not exist, so the job runs at 03:00 summer time, once."""
    assert slots("30 2 * * *", "Europe/Berlin", "2026-03-28T02:00", "2026-03-30T12:00") == [
        "03-29 01:00",
        "03-30 00:30",
    ]
    assert slots("15,45 2 * * *", "Europe/Berlin", "2026-03-29T00:00", "2026-03-29T12:00") == ["03-29 01:00"]
    assert slots("0 2,3 * * *", "Europe/Berlin", "2026-03-29T00:00", "2026-03-29T12:00") == ["03-29 01:00"]


def test_a_fixed_time_that_comes_twice_runs_the_first_time() -> None:
    """New York, 1 November 2026: 01:30 comes twice; the job runs at the first, whenever one looks."""
    assert slots("30 1 * * *", "America/New_York", "2026-11-01T00:00", "2026-11-02T00:00") == ["11-01 05:30"]
    assert slots("30 1 * * *", "America/New_York", "2026-11-01T06:10", "2026-11-02T00:00") == []


def test_a_job_by_the_clock_follows_it() -> None:
    """Each half hour of the wall clock: 46 in the night of the gap, 50 in the other."""
    assert len(slots("*/30 * * * *", "Europe/Berlin", "2026-03-28T23:00", "2026-03-29T22:00")) == 46
    assert len(slots("*/30 * * * *", "Europe/Berlin", "2026-10-24T22:00", "2026-10-25T23:00")) == 50
    assert slots("*/30 2 * * *", "Europe/Berlin", "2026-03-29T00:00", "2026-03-29T12:00") == []


def test_half_an_hour_at_lord_howe() -> None:
    """5 April 2026: 01:30 to 02:00 comes twice, so 01:45 does, for a job by the clock."""
    assert slots("45 * * * *", "Australia/Lord_Howe", "2026-04-04T14:00", "2026-04-04T16:30") == [
        "04-04 14:45",
        "04-04 15:15",
        "04-04 16:15",
    ]
    assert slots("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T14:00", "2026-04-04T18:30") == ["04-04 14:45"]


def test_cronsim_alone_would_not_do() -> None:
    """By itself it misses the second 01:45 of Lord Howe. Where this fails, `idemreg.cron` may become shorter."""
    zone = ZoneInfo("Australia/Lord_Howe")
    alone = cronsim.CronSim("45 * * * *", at("2026-04-04T14:00").astimezone(zone))
    assert [next(alone).astimezone(UTC).strftime("%H:%M") for _ in range(2)] != ["14:45", "15:15"]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Shanghai"])
@pytest.mark.parametrize("expression", ["30 2 * * *", "*/20 * * * *", "0 3 L * *", "0 12 * * MON#2", "0 1 LW * *"])
def test_where_zones_move_by_hours_cronsim_says_the_same(zone: str, expression: str) -> None:
    """Its own way through a zone is a second witness there."""
    after, until = at("2026-01-01T00:00"), at("2026-12-31T00:00")
    alone = []
    for slot in cronsim.CronSim(expression, after.astimezone(ZoneInfo(zone))):
        if slot > until:
            break
        alone.append(seconds_of(slot))
    assert list(Cron(expression, zone).between(seconds_of(after), seconds_of(until))) == alone


# --- pieces -----------------------------------------------------------------------------------------------------

YEAR = st.integers(seconds_of(at("2026-01-02T00:00")), seconds_of(at("2026-12-30T00:00")))


@given(
    zone=st.sampled_from(sorted(ZONES)), minute=minutes, hour=hours, begin=YEAR, cuts=st.lists(st.integers(0, 10**6))
)
def test_pieces_make_the_whole(zone: str, minute: str, hour: str, begin: int, cuts: list[int]) -> None:
    """However a time is cut into pieces, each slot is in one of them, and in order."""
    cron, ends = Cron(f"{minute} {hour} * * *", zone), sorted({begin, *(begin + cut for cut in cuts)})
    pieces = [slot for after, until in pairwise(ends) for slot in cron.between(after, until)]
    assert pieces == list(cron.between(ends[0], ends[-1]))
    assert pieces == sorted(set(pieces))


@given(zone=st.sampled_from(sorted(ZONES)), minute=minutes, hour=hours, after=YEAR, days=st.integers(0, 60))
def test_the_newest_are_the_last_of_all(zone: str, minute: str, hour: str, after: int, days: int) -> None:
    """Looking backwards finds what looking at everything finds, and the next slot is the first."""
    cron, until = Cron(f"{minute} {hour} * * *", zone), after + days * 86_400
    every = list(cron.between(after, until))
    assert cron.newest(after, until, 40) == every[-40:]
    assert cron.following(after, until) == (every[0] if every else None)


def test_a_time_that_never_comes_ends() -> None:
    """30 February is no error of the expression alone, and nobody looks for it for ever."""
    assert Cron("0 0 30 2 1", "UTC").following(0, 10**10) is not None  # or any Monday of February
    with pytest.raises(ScheduleError):
        Cron("0 0 30 2 *", "UTC")


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        *("", "* * * *", "0 0 3 * * *", "60 * * * *", "0 3 * * FOO", "@daily", "a b c d e", "0 5-3 * * *"),
        *("@reboot", "CRON_TZ=UTC 0 3 * * *", "TZ=UTC 3 * * *", "0 3 ? * *", "H 3 * * *", "0 3 * * * 2027"),
    ],
)
def test_no_expression(expression: str) -> None:
    """What has not five sound fields is refused at once."""
    with pytest.raises(ScheduleError):
        Cron(expression, "UTC")


@pytest.mark.parametrize("zone", ["Europe/Nowhere", "", "../etc/passwd", "/etc/localtime", "Europe"])
def test_no_zone(zone: str) -> None:
    """A zone that the system does not know is refused at once."""
    with pytest.raises(ScheduleError):
        Cron("0 3 * * *", zone)


WITHOUT_ZONES = """
import sys
sys.modules["tzdata"] = None
from idemreg import ScheduleError
from idemreg.cron import Cron
from idemreg.slots import instant
print(*(instant(slot).strftime("%H:%M") for slot in Cron("0 3 * * *", "UTC").between(0, 86_400)))
try: Cron("0 3 * * *", "Europe/Berlin")
except ScheduleError as error: print(error.hint)
"""


def test_utc_needs_no_database_of_zones() -> None:
    """A device without one keeps the schedules that name no zone; the others are refused, and the hint says why."""
    command, environment = [sys.executable, "-c", WITHOUT_ZONES], {**os.environ, "PYTHONTZPATH": ""}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("03:00\nNames are those of the IANA database")
    assert 'pip install "idemreg[schedule]"' in done.stdout


def test_the_extra_brings_a_database_of_zones() -> None:
    """Where the system has none, that of the package tzdata is read."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert [one for one in extras["schedule"] if one.startswith("tzdata")]
    program = "from idemreg.cron import Cron; print(Cron('0 3 * * *', 'Europe/Berlin').following(0, 86_400))"
    environment = {**os.environ, "PYTHONTZPATH": ""}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{2 * 3_600}\n"


def test_spelling_makes_no_other_expression() -> None:
    """Spaces and capitals do not count: such an edit begins no new version."""
    assert Cron(" 0  3 * * mon ", "UTC").expression == Cron("0 3 * * MON", "UTC").expression


def test_without_cronsim_the_error_names_the_extra() -> None:
    """The package works without the library, and says what to install where it is needed."""
    program = (
        "import sys; sys.modules['cronsim'] = None\nfrom idemreg import ScheduleError\nfrom idemreg.cron import Cron\n"
        "try: Cron('0 3 * * *', 'UTC')\nexcept ScheduleError as error: print(error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == 'Install it: `pip install "idemreg[schedule]"`.\n'


# --- names ------------------------------------------------------------------------------------------------------


NAMES = st.text(st.characters(exclude_characters="@", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(st.integers(0, 2**37), NAMES)
def test_a_slot_has_one_name(at_s: int, name: str) -> None:
    """The task_id tells its slot, and sorts as it does."""
    assert slot_of(slot_id(name, at_s)) == at_s
    assert slot_id(name, at_s) < slot_id(name, at_s + 1)


@pytest.mark.parametrize(
    "task_id",
    [
        "coupons", "@2026-11-22T19:00:00Z", "coupons@2026-11-22T19:00:00", "coupons@2026-11-22 19:00:00Z",
        "coupons@2026-13-22T19:00:00Z", "coupons@2026-W47-7T19:00:00Z", "coupons@20261122T190000+00Z",
    ],
)  # fmt: skip
def test_other_names_are_no_slots(task_id: str) -> None:
    """Only the one form counts."""
    assert slot_of(task_id) is None


def test_an_instant_needs_a_zone() -> None:
    """A datetime without one could be anywhere."""
    assert seconds_of(instant(86_400)) == 86_400
    with pytest.raises(ValueError, match="zone"):
        seconds_of(datetime(2026, 11, 23))  # noqa: DTZ001 - what is refused


def test_an_instant_has_a_year() -> None:
    """Also where its zone brings it out of those that there are."""
    west, east = (timezone(timedelta(hours=hours)) for hours in (-14, 14))
    assert slot_id("x", seconds_of(datetime.max.replace(tzinfo=west))) == "x@9999-12-31T23:59:59Z"
    assert slot_id("x", seconds_of(datetime.min.replace(tzinfo=east))) == "x@0001-01-01T00:00:00Z"
