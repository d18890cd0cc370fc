"""The clock judged by values alone: every band's edge, each source alone and against others, and what always holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idemreg.clockcheck.readings import (
    BOOT,
    CHRONY,
    EARLIEST_US,
    HARDWARE,
    KERNEL,
    STORED,
    Hardware,
    Moment,
    Reading,
    Trusted,
    amount,
    boot_reading,
    hardware_reading,
    stored_reading,
)
from idemreg.clockcheck.verdict import ClockBands, ClockVerdict, Permit, judge, permit

GOOD, DEVIATING, CANNOT_TELL = ClockVerdict.GOOD, ClockVerdict.DEVIATING, ClockVerdict.CANNOT_TELL
BANDS = ClockBands()
MS, SECOND, HOUR, DAY = 1_000, 1_000_000, 3_600_000_000, 86_400_000_000
YEARS = 100 * 365 * DAY

NOW = 1_795_402_800 * SECOND
THEN = Trusted(NOW - HOUR, 5_000_000, "boot", NOW - HOUR)
BOOTED = Moment(NOW, 5_000_000 + 3_600_000, "boot")

each_sign = pytest.mark.parametrize("sign", [1, -1])


def outcome(*readings: Reading, bands: ClockBands = BANDS, accepted_us: int = 0) -> tuple[ClockVerdict, bool, float]:
    """The verdict, whether an alarm is due, and by how much windows are extended without one."""
    judged = judge(readings, bands, accepted_us)
    return judged.verdict, judged.suspends, permit(judged, bands, readings, is_suspended=False).extension_ms


# --- bands ------------------------------------------------------------------------------------------------------


@each_sign
@pytest.mark.parametrize(
    ("deviation_us", "verdict", "suspends", "extension_ms"),
    [
        (0, GOOD, False, 0),
        (9_999, GOOD, False, 0),
        (10_000, DEVIATING, False, 20),
        (49_999, DEVIATING, False, 20),
        (50_000, DEVIATING, True, 20),
        (SECOND, DEVIATING, True, 20),
        (HOUR, DEVIATING, True, 20),
        (YEARS, DEVIATING, True, 20),
    ],
)
@pytest.mark.parametrize("source", [KERNEL, CHRONY])
def test_the_edges_of_the_bands(
    source: str, deviation_us: int, verdict: ClockVerdict, *, suspends: bool, extension_ms: float, sign: int
) -> None:
    """Under the first band nothing, then longer windows, then an alarm; a clock behind counts as one ahead."""
    assert outcome(Reading(source, sign * deviation_us)) == (verdict, suspends, extension_ms)


def test_the_bands_are_settings() -> None:
    """Other bands, other edges."""
    bands = ClockBands(extend_from_ms=1, suspend_from_ms=2.5, extension_ms=7)
    assert outcome(Reading(KERNEL, 999), bands=bands) == (GOOD, False, 0)
    assert outcome(Reading(KERNEL, 1_000), bands=bands) == (DEVIATING, False, 7)
    assert outcome(Reading(KERNEL, 2_499), bands=bands) == (DEVIATING, False, 7)
    assert outcome(Reading(KERNEL, 2_500), bands=bands)[:2] == (DEVIATING, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"extend_from_ms": 0},
        {"extend_from_ms": -1},
        {"extend_from_ms": 51},
        {"extend_from_ms": float("nan")},
        {"extend_from_ms": 1e-4},
        {"suspend_from_ms": 9},
        {"suspend_from_ms": float("inf")},
        {"suspend_from_ms": 1e306},
        {"suspend_from_ms": float("nan")},
        {"extension_ms": -1},
        {"extension_ms": float("inf")},
        {"extension_ms": 1e306},
        {"extension_ms": float("nan")},
    ],
)
def test_bands_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    """At the door, by a ValueError."""
    with pytest.raises(ValueError):
        ClockBands(**wrong)


@each_sign
def test_the_widest_and_the_finest_bands_are_bands(sign: int) -> None:
    """To the microsecond in which deviations are told; beyond them stands a mistake in the unit."""
    widest = ClockBands(suspend_from_ms=100 * 365 * 86_400_000, extension_ms=100 * 365 * 86_400_000)
    assert outcome(Reading(KERNEL, sign * (YEARS - 1)), bands=widest)[1] is False
    assert outcome(Reading(KERNEL, sign * YEARS), bands=widest)[1] is True
    finest = ClockBands(extend_from_ms=0.001, suspend_from_ms=0.001)
    assert outcome(Reading(KERNEL, 0), bands=finest) == (GOOD, False, 0)
    assert outcome(Reading(KERNEL, sign), bands=finest)[:2] == (DEVIATING, True)


# --- one source -------------------------------------------------------------------------------------------------


def test_nobody_says_anything() -> None:
    """Without a source nobody can tell, and nothing is suspended or extended."""
    assert outcome() == (CANNOT_TELL, False, 0)
    assert outcome(*(Reading(one, None) for one in (KERNEL, CHRONY, HARDWARE, BOOT, STORED))) == (CANNOT_TELL, False, 0)


@each_sign
@pytest.mark.parametrize("source", [KERNEL, CHRONY, HARDWARE, BOOT])
def test_a_source_speaks_only_beyond_its_own_resolution(source: str, sign: int) -> None:
    """A deviation within the resolution is none; one beyond it counts as it is said."""
    assert outcome(Reading(source, sign * SECOND, SECOND)) == (CANNOT_TELL, False, 0)
    assert outcome(Reading(source, sign * (SECOND + 1), SECOND))[:2] == (DEVIATING, True)


@pytest.mark.parametrize(("resolution_us", "verdict"), [(9_999, GOOD), (10_000, CANNOT_TELL)])
def test_a_coarse_source_calls_no_clock_good(resolution_us: int, verdict: ClockVerdict) -> None:
    """A source that agrees within a band's width cannot tell that the clock is within the band."""
    assert outcome(Reading(KERNEL, 0, resolution_us)) == (verdict, False, 0)


@pytest.mark.parametrize(("source", "verdict"), [(HARDWARE, CANNOT_TELL), (BOOT, CANNOT_TELL), (STORED, CANNOT_TELL)])
def test_only_who_is_synchronised_calls_a_clock_good(source: str, verdict: ClockVerdict) -> None:
    """That a clock has not jumped does not make it right, nor that it agrees with a crystal."""
    assert outcome(Reading(source, 0, 0)) == (verdict, False, 0)


@each_sign
@pytest.mark.parametrize(
    ("jump_us", "suspends", "extension_ms"),
    [(9_999, False, 0), (10_000, False, 20), (49_999, False, 20), (50_000, True, 20), (SECOND, True, 20)],
)
def test_a_jump_goes_by_the_bands(jump_us: int, *, suspends: bool, extension_ms: float, sign: int) -> None:
    """A jump since the last look, with nobody to answer for the clock."""
    assert outcome(Reading(BOOT, sign * jump_us, 3_000))[1:] == (suspends, extension_ms)


@pytest.mark.parametrize(("behind_us", "suspends"), [(9_999, False), (10_000, True), (49_999, True), (DAY, True)])
def test_a_clock_behind_stored_times_suspends(behind_us: int, *, suspends: bool) -> None:
    """However little it is behind, beyond what is too little for anything."""
    assert outcome(Reading(STORED, -behind_us))[1] is suspends


# --- several ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel_us", "chrony_us"), [(0, 3 * SECOND), (3 * SECOND, 0), (SECOND, -3 * SECOND)])
def test_the_worst_of_two_that_know_holds(kernel_us: int, chrony_us: int) -> None:
    """chrony slews behind the kernel's back; nobody outvotes who says the worse."""
    judged = judge([Reading(KERNEL, kernel_us, 100), Reading(CHRONY, chrony_us, 100)], BANDS)
    assert (judged.verdict, judged.suspends, judged.confirms) == (DEVIATING, True, False)
    assert abs(judged.deviation_us) == 3 * SECOND


@pytest.mark.parametrize("other", [Reading(BOOT, HOUR, 3_000), Reading(STORED, -HOUR), Reading(BOOT, -YEARS, 3_000)])
@pytest.mark.parametrize("source", [KERNEL, CHRONY])
def test_a_jump_that_a_synchronised_source_answers_for_is_none(source: str, other: Reading) -> None:
    """Put right by its daemon the clock has jumped, and is good: how it came there does not count."""
    judged = judge([Reading(source, 200, 100), other], BANDS)
    assert (judged.verdict, judged.suspends, judged.confirms, judged.overrules) == (GOOD, False, True, True)


@pytest.mark.parametrize("other", [Reading(BOOT, HOUR, 3_000), Reading(STORED, -HOUR)])
@pytest.mark.parametrize("kernel", [Reading(KERNEL, None), Reading(KERNEL, 0, 50_000), Reading(KERNEL, 60_000, 0)])
def test_who_is_too_coarse_or_off_himself_answers_for_nothing(kernel: Reading, other: Reading) -> None:
    """The jump stands where the kernel is silent, coarser than the band, or says that the clock deviates."""
    judged = judge([kernel, other], BANDS)
    assert (judged.verdict, judged.suspends, judged.confirms) == (DEVIATING, True, False)


def test_a_hardware_clock_that_contradicts_its_last_word_is_heard() -> None:
    """A virtual machine that stood still: the kernel has not noticed, and the hardware clock has gone on."""
    readings = [Reading(KERNEL, 0, 100), Reading(HARDWARE, -HOUR, SECOND)]
    judged = judge(readings, BANDS)
    assert (judged.verdict, judged.suspends, judged.confirms) == (DEVIATING, True, False)


def test_a_hardware_clock_nobody_knows_gives_way_to_a_synchronised_source() -> None:
    """Its first word may be its own error; without anybody else it counts all the same."""
    first = Reading(HARDWARE, -HOUR, SECOND, is_first_word=True)
    assert outcome(Reading(KERNEL, 0, 100), first) == (GOOD, False, 0)
    assert outcome(Reading(KERNEL, None), first)[:2] == (DEVIATING, True)


def test_what_an_operator_has_accepted_suspends_only_once_it_is_worse() -> None:
    """By a whole band. The verdict stays, and the window stays extended."""
    assert outcome(Reading(KERNEL, 80_000), accepted_us=80_000) == (DEVIATING, False, 20)
    assert outcome(Reading(KERNEL, 129_999), accepted_us=80_000) == (DEVIATING, False, 20)
    assert outcome(Reading(KERNEL, 130_000), accepted_us=80_000)[:2] == (DEVIATING, True)
    assert outcome(Reading(BOOT, 60_000, 3_000), accepted_us=80_000)[1], "a jump is another matter"


def test_the_clock_is_back_where_nobody_says_otherwise() -> None:
    """It goes on from the last look as if nothing had been; not where another deviates, or the boot is another."""
    back = Reading(BOOT, 1_000, 3_000)
    assert judge([back], BANDS).is_back
    assert not judge([back, Reading(HARDWARE, HOUR, SECOND)], BANDS).is_back
    assert not judge([Reading(BOOT, None)], BANDS).is_back
    assert not judge([Reading(BOOT, 10_000, 3_000)], BANDS).is_back


# --- what is allowed --------------------------------------------------------------------------------------------


def test_while_suspended_the_hardware_clock_serves_where_it_speaks() -> None:
    """What is due goes by its time, what was missed waits; where it does not speak, all waits."""
    speaks, silent = Reading(HARDWARE, HOUR, SECOND), Reading(HARDWARE, 900_000, SECOND)
    judged = judge([speaks], BANDS)
    assert permit(judged, BANDS, [speaks], is_suspended=True) == Permit(
        scheduling=True, catch_up=False, extension_ms=20, correction_us=-HOUR
    )
    for readings in ([silent], [], [Reading(HARDWARE, None)], [Reading(KERNEL, HOUR)]):
        assert permit(judged, BANDS, readings, is_suspended=True) == Permit(scheduling=False, catch_up=False)


# --- what always holds ------------------------------------------------------------------------------------------

DEVIATIONS = st.one_of(
    st.none(),
    st.integers(-60_000, 60_000),
    st.sampled_from([0, 9_999, 10_000, 49_999, 50_000, SECOND, HOUR, YEARS]).flatmap(
        lambda us: st.sampled_from([us, -us])
    ),
    st.integers(-YEARS, YEARS),
)
RESOLUTIONS = st.one_of(st.just(0), st.integers(0, 100_000), st.just(SECOND))
READINGS = st.lists(
    st.builds(
        Reading,
        st.sampled_from([KERNEL, CHRONY, HARDWARE, BOOT, STORED]),
        DEVIATIONS,
        RESOLUTIONS,
        st.just(""),
        st.booleans(),
    ),
    max_size=6,
)


def strictness(readings: list[Reading], accepted_us: int = 0) -> int:
    judged = judge(readings, BANDS, accepted_us)
    return 2 if judged.suspends else int(abs(judged.deviation_us) >= 10_000)


@given(READINGS)
def test_no_clock_is_good_while_a_source_that_knows_says_otherwise(readings: list[Reading]) -> None:
    """A source that speaks of a band's width and gives way to nobody: never good, and suspended from the upper band."""
    judged = judge(readings, BANDS)
    said = [one.size_us for one in readings if one.speaks and not one.yields]
    if any(us >= 50_000 for us in said):
        assert (judged.verdict, judged.suspends, judged.confirms) == (DEVIATING, True, False)
    elif any(us >= 10_000 for us in said):
        assert judged.verdict is DEVIATING


@given(READINGS)
def test_what_speaks_is_overruled_only_by_who_answers_for_the_clock(readings: list[Reading]) -> None:
    """Without a disciplined source that is finer than the upper band, everything that is said counts."""
    judged = judge(readings, BANDS)
    answers = any(one.source in (KERNEL, CHRONY) and one.bound_us < 50_000 for one in readings)
    assert judged.confirms <= answers
    if not answers:
        assert abs(judged.deviation_us) == max((one.size_us for one in readings if one.speaks), default=0)


@given(READINGS)
def test_a_good_clock_suspends_and_extends_nothing(readings: list[Reading]) -> None:
    """Good means within the first band, by somebody who can tell."""
    judged = judge(readings, BANDS)
    if judged.verdict is GOOD:
        assert not judged.suspends
        assert permit(judged, BANDS, readings, is_suspended=False) == Permit()
        assert any(one.source in (KERNEL, CHRONY) and one.bound_us < 10_000 for one in readings)


@given(READINGS, st.data(), st.integers(0, YEARS), st.integers(0, 200_000))
def test_it_is_monotone_in_each_deviation(
    readings: list[Reading], data: st.DataObject, further_us: int, accepted_us: int
) -> None:
    """A source that says more of the same never makes the answer milder."""
    loud = [at for at, one in enumerate(readings) if one.deviation_us is not None]
    if loud:
        at = data.draw(st.sampled_from(loud))
        one = readings[at]
        worse_us = (one.deviation_us or 0) + (further_us if (one.deviation_us or 0) >= 0 else -further_us)
        worse = [*readings[:at], one._replace(deviation_us=worse_us), *readings[at + 1 :]]
        assert strictness(worse, accepted_us) >= strictness(readings, accepted_us)


@given(READINGS)
def test_the_order_of_the_sources_does_not_matter(readings: list[Reading]) -> None:
    """But for the sign, where two say as much with opposite ones."""
    here, there = judge(readings, BANDS), judge(readings[::-1], BANDS)
    assert here._replace(deviation_us=abs(here.deviation_us)) == there._replace(deviation_us=abs(there.deviation_us))


@given(readings=READINGS, is_suspended=st.booleans())
def test_the_clock_is_corrected_only_by_the_hardware_clock(readings: list[Reading], *, is_suspended: bool) -> None:
    """And only while it is suspended; catch-up goes on only while it is not."""
    allowed = permit(judge(readings, BANDS), BANDS, readings, is_suspended=is_suspended)
    corrections = {-(one.deviation_us or 0) for one in readings if one.source == HARDWARE and one.speaks}
    assert allowed.catch_up is not is_suspended
    assert allowed.correction_us in (corrections if is_suspended and corrections else {0})
    assert allowed.scheduling == (not is_suspended or bool(corrections))


# --- readings against the last look -----------------------------------------------------------------------------


@pytest.mark.parametrize("jump_us", [0, SECOND, -SECOND, HOUR, -HOUR, YEARS, -YEARS])
def test_a_jump_is_what_the_time_since_boot_does_not_tell_of(jump_us: int) -> None:
    """The wall clock's way since the last look, less the time that has passed."""
    assert boot_reading(BOOTED._replace(wall_us=NOW + jump_us), THEN).deviation_us == jump_us


def test_suspend_and_slewing_are_no_jump() -> None:
    """Both clocks count suspend, and NTP slews both: after a year of either they agree to the microsecond."""
    later = Moment(THEN.wall_us + 365 * DAY, THEN.boot_ms + 365 * DAY // MS, "boot")
    reading = boot_reading(later, THEN)
    assert (reading.deviation_us, reading.speaks) == (0, False)


@pytest.mark.parametrize(
    ("now", "trusted"),
    [
        (BOOTED, None),
        (BOOTED._replace(boot_id="another"), THEN),
        (BOOTED._replace(boot_id="process-1"), THEN._replace(boot_id="process-1")),
    ],
)
def test_the_time_since_boot_says_nothing_across_boots(now: Moment, trusted: Trusted | None) -> None:
    """Nor at the first look, nor where the system has no boot id."""
    assert boot_reading(now, trusted).deviation_us is None


def test_a_look_that_was_interrupted_is_vague() -> None:
    """The gap between the two clocks adds to the resolution."""
    assert boot_reading(BOOTED._replace(gap_us=70_000, wall_us=NOW + 60_000), THEN).speaks is False


@pytest.mark.parametrize(
    ("trusted", "newest_us", "deviation_us"),
    [
        (None, None, None),
        (None, NOW, None),
        (None, NOW + 1, -1),
        (THEN, None, None),
        (THEN, NOW + HOUR, -HOUR),
        (THEN._replace(newest_us=NOW + HOUR), NOW + HOUR, None),
        (THEN._replace(newest_us=NOW + HOUR), NOW + DAY, -DAY),
        (THEN._replace(wall_us=NOW + SECOND), None, -SECOND),
        (THEN._replace(wall_us=NOW + SECOND), NOW + HOUR, -HOUR),
    ],
)
def test_stored_times_speak_of_a_clock_that_is_behind(
    trusted: Trusted | None, newest_us: int | None, deviation_us: int | None
) -> None:
    """The last look is one of them; those that were known then do not count again."""
    assert stored_reading(BOOTED, trusted, newest_us).deviation_us == deviation_us


def rtc(ahead_us: int, *, keeps_utc: bool | None = True, now_us: int = NOW) -> Hardware:
    return Hardware(now_us - ahead_us, ahead_us, SECOND, keeps_utc, "rtc0")


@pytest.mark.parametrize(
    ("ahead_us", "speaks"), [(0, False), (SECOND, False), (SECOND + 1, True), (-SECOND, False), (-SECOND - 1, True)]
)
def test_the_hardware_clock_speaks_beyond_a_second(ahead_us: int, *, speaks: bool) -> None:
    """It gives whole seconds, and who set it last was half of one off."""
    reading = hardware_reading(rtc(ahead_us), None)
    assert (reading.deviation_us, reading.speaks, reading.is_first_word) == (ahead_us, speaks, True)


def test_its_own_error_does_not_count() -> None:
    """Five seconds off now as at the last look: it agrees, within what two crystals drift apart in an hour."""
    trusted = THEN._replace(hardware_us=5 * SECOND)
    reading = hardware_reading(rtc(5 * SECOND + 3 * SECOND), trusted)
    assert (reading.deviation_us, reading.resolution_us, reading.speaks) == (3 * SECOND, 3_517_900, False)
    assert hardware_reading(rtc(5 * SECOND + 4 * SECOND), trusted).speaks
    assert not hardware_reading(rtc(5 * SECOND), trusted).is_first_word


def test_a_hardware_clock_that_was_set_right_agrees() -> None:
    """Whatever it said before: the kernel writes it every eleven minutes once the clock is synchronised."""
    for last_us in (5 * SECOND, -2 * HOUR, -YEARS):
        assert hardware_reading(rtc(0), THEN._replace(hardware_us=last_us)) == Reading(HARDWARE, 0, SECOND, "rtc0")


def test_a_machine_that_stood_still_is_told() -> None:
    """The hardware clock is an hour further than at the last look, and the wall clock is not."""
    assert hardware_reading(rtc(-HOUR - 7 * SECOND, keeps_utc=True), THEN._replace(hardware_us=-7 * SECOND)).speaks


@pytest.mark.parametrize("quarters", [-48, -14, 1, 4, 22, 32, 51, 56])
def test_a_hardware_clock_in_local_time_stops_nothing(quarters: int) -> None:
    """Where nobody says that it keeps UTC, whole quarters of an hour are a zone; where somebody does, a deviation."""
    ahead_us = quarters * 15 * 60 * SECOND + 1_500_000
    assert hardware_reading(rtc(ahead_us, keeps_utc=None), None).deviation_us is None
    assert hardware_reading(rtc(ahead_us, keeps_utc=False), None).deviation_us is None
    assert hardware_reading(rtc(ahead_us, keeps_utc=True), None).speaks
    assert hardware_reading(rtc(ahead_us + 7 * SECOND, keeps_utc=None), None).speaks
    assert hardware_reading(rtc(ahead_us + 60 * HOUR, keeps_utc=None), None).speaks


def test_a_hardware_clock_without_a_battery_says_nothing() -> None:
    """It begins in 1970, or wherever its chip does; and one that was set back is no witness."""
    for says_us in (0, EARLIEST_US - 1):
        assert (
            hardware_reading(Hardware(says_us, NOW - says_us, SECOND, keeps_utc=True, name="rtc0"), None).deviation_us
            is None
        )
    assert hardware_reading(Hardware(EARLIEST_US, NOW - EARLIEST_US, SECOND, keeps_utc=True, name="rtc0"), None).speaks
    assert hardware_reading(rtc(2 * HOUR), THEN._replace(hardware_us=0)).deviation_us is None


# --- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("us", "words"),
    [
        (0, "0.0 ms"),
        (-1_250, "1.2 ms"),
        (999_900, "999.9 ms"),
        (SECOND, "1.000 s"),
        (-61_500_000, "61.500 s"),
        (HOUR, "1.0 h"),
        (DAY, "1.0 days"),
        (YEARS, "36,500.0 days"),
    ],
)
def test_an_amount_is_told_in_a_fitting_unit(us: int, words: str) -> None:
    """Without its sign."""
    assert amount(us) == words


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Reading(KERNEL, None, 0, "it is silent"), "it is silent"),
        (Reading(KERNEL, 1_500, 200, "synchronised"), "1.5 ms ahead (synchronised)"),
        (Reading(KERNEL, -2 * HOUR), "2.0 h behind"),
        (Reading(HARDWARE, -2, SECOND, "rtc0"), "agrees within 1.000 s (rtc0)"),
    ],
)
def test_a_reading_is_described(reading: Reading, words: str) -> None:
    """What it says, then how it knows."""
    assert reading.describe() == words
