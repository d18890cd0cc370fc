"""The wall clock judged: pure, by readings as values. Nothing here touches a file or a clock.

*A source speaks only beyond its own resolution.* A deviation above it counts as it is said. One within it means that
the source agrees as finely as it can: to the kernel that may be a millisecond, to the hardware clock a second, which is
no reason to call the clock good. So a clock is good only by a source that is finer than the lowest band.

*A jump is a change, no deviation.* A clock that was wrong jumps when it is put right, as most devices without a battery
do after each boot. So where a disciplined source answers for the clock now, how it came there does not count. The
kernel's word is never older than the jump: whoever sets the clock makes it unsynchronised until the daemon has
compared it anew (ntp_clear in the kernel's timekeeping). It does not know that the whole machine stood still, as a
virtual one may; then the hardware clock contradicts it, and the worse of the two holds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from idemreg.clockcheck.readings import ABSOLUTE, BOOT, DISCIPLINED, HARDWARE, STORED, Reading, amount
from idemreg.errors import ClockError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MS_US", "SUSPENDED", "ClockBands", "ClockCheck", "ClockVerdict", "Judged", "Permit", "judge", "permit"]

MS_US: Final = 1_000
FINEST_MS: Final = 0.001  # deviations are whole microseconds
LONGEST_MS: Final = 100 * 365 * 86_400_000  # a century: more is a mistake in the unit
SUSPENDED: Final = 1  # exit code of whatever schedules, and of `idemreg clock`


# --- settings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClockBands:
    """From which deviation on something is done about it, in milliseconds: from a microsecond to a century.

    Under ``extend_from_ms`` nothing. From there on the execution window of a slot is open ``extension_ms`` longer. From
    ``suspend_from_ms`` on catch-up and scheduling are suspended.
    """

    extend_from_ms: float = 10
    suspend_from_ms: float = 50
    extension_ms: float = 20

    def __post_init__(self) -> None:
        if not FINEST_MS <= self.extend_from_ms <= self.suspend_from_ms <= LONGEST_MS:
            msg = (
                f"the bands of the clock are {FINEST_MS} <= extend_from_ms <= suspend_from_ms <= {LONGEST_MS:,},"
                f" not {self.extend_from_ms!r} and {self.suspend_from_ms!r}"
            )
            raise ValueError(msg)
        if not 0 <= self.extension_ms <= LONGEST_MS:
            msg = f"extension_ms is from 0 to {LONGEST_MS:,}, not {self.extension_ms!r}"
            raise ValueError(msg)


# --- the judgement ----------------------------------------------------------------------------------------------


class ClockVerdict(enum.Enum):
    """What is said of the wall clock."""

    GOOD = "good"
    DEVIATING = "deviating"
    CANNOT_TELL = "cannot-tell"


class Judged(NamedTuple):
    """A judgement by the readings of one moment; it knows of no alarm.

    ``deviation_us``: the worst that is said, 0 where nothing is. ``worst_us``: the worst by sources that know the time,
    without its sign. ``suspends``: an alarm is due; ``jumped``: for a jump. ``confirms``: a disciplined source answers
    for the clock, so an open alarm ends; ``overrules``: in spite of what another one says. ``is_back``: the clock goes
    on from the last trusted look as if it had never jumped, and nobody says that it deviates.
    """

    verdict: ClockVerdict
    deviation_us: int
    worst_us: int
    suspends: bool
    jumped: bool
    confirms: bool
    overrules: bool
    is_back: bool


def judge(readings: Sequence[Reading], bands: ClockBands, accepted_us: int = 0) -> Judged:
    """Judge the clock. The worst that a source says holds; nobody outvotes it.

    ``accepted_us``: a deviation that an operator has confirmed; only what is a whole band worse suspends again.
    """
    extend_us, suspend_us = round(bands.extend_from_ms * MS_US), round(bands.suspend_from_ms * MS_US)
    speaking = [one for one in readings if one.speaks]
    firm_us = max((one.size_us for one in speaking if not one.yields), default=0)
    finest_us = min((one.bound_us for one in readings if one.source in DISCIPLINED), default=suspend_us)
    confirms = max(finest_us, firm_us) < suspend_us
    counted = [one for one in speaking if not (confirms and one.yields)]
    worst_us = max((one.size_us for one in counted if one.source in ABSOLUTE), default=0)
    deviation_us = max(counted, key=lambda one: one.size_us, default=Reading("", 0)).deviation_us or 0
    if abs(deviation_us) >= extend_us:
        verdict = ClockVerdict.DEVIATING
    else:
        verdict = ClockVerdict.GOOD if finest_us < extend_us else ClockVerdict.CANNOT_TELL
    jumped = any(one.size_us >= suspend_us for one in counted if one.source == BOOT)
    is_behind = any(one.size_us >= extend_us for one in counted if one.source == STORED)
    return Judged(
        verdict,
        deviation_us,
        worst_us,
        suspends=jumped or is_behind or worst_us >= suspend_us + accepted_us,
        jumped=jumped,
        confirms=confirms,
        overrules=len(counted) < len(speaking),
        is_back=abs(deviation_us) < extend_us
        and any(one.bound_us < extend_us for one in readings if one.source == BOOT),
    )


# --- what comes out ---------------------------------------------------------------------------------------------


class Permit(NamedTuple):
    """What the clock allows to a scheduler.

    ``scheduling``: slots that are due now may begin. ``catch_up``: slots that were missed may begin, or be skipped.
    ``extension_ms``: the execution window of a slot is open so much longer. ``correction_us``: what to add to the wall
    clock to get the time by which slots are due; other than 0 only while the hardware clock serves in its place.
    """

    scheduling: bool = True
    catch_up: bool = True
    extension_ms: float = 0
    correction_us: int = 0


class ClockCheck(NamedTuple):
    """What a look at the clock found, and what follows.

    ``alarm``: the task_id of the alarm that suspends scheduling; None: nothing is suspended. ``deviation_us``: by how
    much the clock is ahead, by the source that says the worst.
    """

    verdict: ClockVerdict
    deviation_us: int
    permit: Permit
    alarm: str | None
    readings: tuple[Reading, ...]

    @property
    def is_suspended(self) -> bool:
        """Whether the clock must be confirmed before what was missed is caught up."""
        return self.alarm is not None

    @property
    def finding(self) -> str:
        """The verdict for people, with the deviation where there is one."""
        if self.verdict is not ClockVerdict.DEVIATING:
            return "good" if self.verdict is ClockVerdict.GOOD else "cannot tell"
        return f"deviating, {amount(self.deviation_us)} {'ahead' if self.deviation_us > 0 else 'behind'}"

    @property
    def consequence(self) -> str:
        """What follows, for people."""
        if self.alarm is None and not self.permit.catch_up:
            return "scheduling and catch-up would be suspended by these bands; no alarm is raised for them"
        if self.permit.correction_us:
            return "catch-up is suspended, and what is due goes by the hardware clock"
        if self.is_suspended:
            return "scheduling and catch-up are suspended until the clock is confirmed"
        if self.permit.extension_ms:
            return f"scheduling goes on, execution windows are {self.permit.extension_ms:g} ms longer"
        return "scheduling goes on"

    @property
    def problem(self) -> ClockError | None:
        """For whoever runs a schedule and would else see nothing run; None where nothing is suspended.

        Retryable: a source may answer for the clock at the next look.
        """
        if self.alarm is None:
            return None
        return in_doubt(self)


def in_doubt(found: ClockCheck) -> ClockError:
    """The error for a clock by which nothing may be told."""
    why = f"{found.consequence}; the alarm is {found.alarm}" if found.is_suspended else "no look has suspended it yet"
    msg = f"the clock is in doubt ({found.finding}): {why}"
    error = ClockError(msg, task_id=found.alarm, hint="Set the clock right, or `idemreg clock --confirm`.")
    error.exit_code, error.retryable = SUSPENDED, True
    return error


def permit(judged: Judged, bands: ClockBands, readings: Sequence[Reading], *, is_suspended: bool) -> Permit:
    """What is allowed.

    While the clock is suspended the hardware clock serves where it speaks: for what is due. What was missed waits until
    somebody knows the time, since it is begun or given up for good.
    """
    if not is_suspended:
        return Permit(extension_ms=bands.extension_ms if judged.verdict is ClockVerdict.DEVIATING else 0)
    for one in readings:
        if one.source == HARDWARE and one.speaks:
            return Permit(catch_up=False, extension_ms=bands.extension_ms, correction_us=-(one.deviation_us or 0))
    return Permit(scheduling=False, catch_up=False)
