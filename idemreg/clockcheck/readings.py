"""What is known of the wall clock, as values: what each source says, against the last look where it takes one.

Five sources say something. Three know what time it is: the kernel and chrony where they are synchronised to somebody
(they are *disciplined*), and the hardware clock. Two know only what happened to the wall clock here: the time since
boot, which shows a jump since the last look, and the stored times, which no right clock is behind.

*Slewing is no jump, and needs no allowance.* Time since boot and the wall clock are one counter of the kernel with two
offsets. NTP speeds up and slows down the counter, so both together; suspend is added to both; only a step changes their
difference. What is left is how the two are read: see `BOOT_RESOLUTION_US`. An allowance of 500 ppm, as between two
independent clocks, would hide a jump of 43 seconds a day. The hardware clock is such an independent one, and has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.clock import Clock

__all__ = [
    "ABSOLUTE",
    "BOOT",
    "CHRONY",
    "DISCIPLINED",
    "HARDWARE",
    "KERNEL",
    "STORED",
    "Hardware",
    "Moment",
    "Reading",
    "Source",
    "Trusted",
    "Watch",
    "amount",
    "boot_reading",
    "hardware_reading",
    "stored_reading",
]

KERNEL, CHRONY, HARDWARE, BOOT, STORED = "kernel", "chrony", "hardware clock", "time since boot", "stored times"
DISCIPLINED: Final = frozenset({KERNEL, CHRONY})
ABSOLUTE: Final = frozenset({KERNEL, CHRONY, HARDWARE})

# Of a jump: each of the two looks reads whole milliseconds since boot, and the wall clock up to a millisecond away.
BOOT_RESOLUTION_US: Final = 3_000

# How far two crystals drift apart: the kernel corrects its own by 500 ppm at most, and hardware clocks have up to 200.
DRIFT_PPM: Final = 700

# What a hardware clock says before this is no time, but a battery that is empty: 2024-01-01.
EARLIEST_US: Final = 1_704_067_200_000_000

# The zones of the world lie whole quarters of an hour apart, up to 14 hours from UTC.
QUARTER_US: Final = 15 * 60 * 1_000_000
FARTHEST_ZONE_US: Final = 56 * QUARTER_US
ZONE_SLACK_US: Final = 2_000_000

MS_US: Final = 1_000


class Moment(NamedTuple):
    """The wall clock and the time since boot, read at once; they are at most ``gap_us`` apart."""

    wall_us: int
    boot_ms: int
    boot_id: str
    gap_us: int = 0


class Trusted(NamedTuple):
    """The last look at which the clock was not suspended: what later looks compare with.

    ``newest_us``: no time stored until then was after it. ``hardware_us``: the wall clock minus the hardware clock, or
    None where there was none. ``accepted_us``: a deviation by which an operator has confirmed the clock all the same.
    """

    wall_us: int
    boot_ms: int
    boot_id: str
    newest_us: int
    hardware_us: int | None = None
    accepted_us: int = 0


class Watch(NamedTuple):
    """What is kept between looks.

    ``alarm``: the task_id of the alarm that suspends scheduling until it is settled. ``of_jump``: it tells of a jump,
    so it ends as well when the clock is back.
    """

    trusted: Trusted | None = None
    alarm: str | None = None
    of_jump: bool = False


class Reading(NamedTuple):
    """What one source says: by how much the wall clock is ahead of what it should be, and how finely it can tell.

    ``deviation_us`` is None where the source says nothing at all; ``text`` says why, or what else it knows.
    ``is_first_word``: of a hardware clock of which nobody knows yet how far off it is by itself.
    """

    source: str
    deviation_us: int | None
    resolution_us: int = 0
    text: str = ""
    is_first_word: bool = False

    @property
    def yields(self) -> bool:
        """Whether it does not count where a disciplined source answers for the clock."""
        return self.source in (BOOT, STORED) or self.is_first_word

    @property
    def speaks(self) -> bool:
        """Whether it says that the clock deviates."""
        return self.deviation_us is not None and abs(self.deviation_us) > self.resolution_us

    @property
    def size_us(self) -> int:
        """The deviation without its sign."""
        return abs(self.deviation_us or 0)

    @property
    def bound_us(self) -> float:
        """How far off the clock is at most, by this source; without a limit where it says nothing."""
        return float("inf") if self.deviation_us is None else max(self.size_us, self.resolution_us)

    def describe(self) -> str:
        """What it says, for people."""
        if self.deviation_us is None:
            return self.text
        if self.speaks:
            said = f"{amount(self.deviation_us)} {'ahead' if self.deviation_us > 0 else 'behind'}"
        else:
            said = f"agrees within {amount(self.resolution_us)}"
        return f"{said} ({self.text})" if self.text else said


class Hardware(NamedTuple):
    """The hardware clock, before it is known what it said at the last look.

    ``says_us``: its time, ``ahead_us``: the wall clock minus it. ``keeps_utc``: None where nobody says whether it keeps
    UTC or local time.
    """

    says_us: int
    ahead_us: int
    resolution_us: int
    keeps_utc: bool | None
    name: str

    @property
    def has_time(self) -> bool:
        """Whether it has kept its time at all."""
        return self.says_us >= EARLIEST_US


Source: TypeAlias = "Callable[[Clock], Reading | Hardware]"


# --- readings that need the last look ---------------------------------------------------------------------------


def boot_reading(now: Moment, trusted: Trusted | None) -> Reading:
    """By how much the wall clock has jumped since the last look, against the time since boot."""
    if trusted is None:
        return Reading(BOOT, None, text="this is the first look")
    if now.boot_id != trusted.boot_id:
        return Reading(BOOT, None, text="this is the first look since the machine was started")
    if now.boot_id.startswith("process-"):  # not Linux: what the clock counts may stand still during suspend
        return Reading(BOOT, None, text="this system does not tell")
    jump_us = (now.wall_us - trusted.wall_us) - (now.boot_ms - trusted.boot_ms) * MS_US
    return Reading(BOOT, jump_us, BOOT_RESOLUTION_US + now.gap_us, "since the last look")


def stored_reading(now: Moment, trusted: Trusted | None, newest_us: int | None, *, is_asked: bool = True) -> Reading:
    """How far the wall clock is behind the newest stored time.

    ``newest_us``: of all tasks where ``is_asked``, else of none. Those up to the ``newest_us`` of the last look were
    known then, so what an operator or a source has confirmed in spite of them does not count again.
    """
    known = [] if trusted is None else [trusted.wall_us]
    if newest_us is not None and (trusted is None or newest_us > trusted.newest_us):
        known.append(newest_us)
    if not known:
        return Reading(STORED, None, text="there is none")
    behind_us = max(known) - now.wall_us
    if behind_us <= 0:
        return Reading(STORED, None, text="none is after now" if is_asked else "not asked: the alarm is open")
    return Reading(STORED, -behind_us, 0, "the clock is behind the newest")


def hardware_reading(found: Hardware, trusted: Trusted | None) -> Reading:
    """What the hardware clock says: it speaks where it contradicts the wall clock now *and* its own last word.

    Its own error does not count so, nor that it keeps local time: both are as they were. Nor does it count that it was
    set right: then it agrees. It survives a reboot, and tells of a virtual machine that stood still. Without a last
    word it gives way to disciplined sources, and a deviation that looks like a zone's counts for nothing: a clock in
    local time must not stop everything.
    """
    if found.keeps_utc is False or not found.has_time:
        return Reading(
            HARDWARE, None, text=f"{found.name} {'has lost its time' if not found.has_time else 'keeps local time'}"
        )
    last_us = None if trusted is None else trusted.hardware_us
    deviation_us, resolution_us, text = found.ahead_us, found.resolution_us, found.name
    if trusted is not None and last_us is not None and abs(deviation_us) > resolution_us:
        passed_us = found.says_us - (trusted.wall_us - last_us)
        if passed_us < -resolution_us:
            return Reading(HARDWARE, None, text=f"{found.name} was set back")
        if abs(deviation_us - last_us) < abs(deviation_us):
            deviation_us -= last_us
            resolution_us += max(passed_us, 0) * DRIFT_PPM // 1_000_000
            text = f"{found.name}, which is {amount(last_us)} off by itself"
    if found.keeps_utc is None and _is_like_a_zone(deviation_us):
        text = f"{found.name} differs by {amount(deviation_us)}, as if it kept local time"
        return Reading(HARDWARE, None, text=text)
    return Reading(HARDWARE, deviation_us, resolution_us, text, is_first_word=last_us is None)


def _is_like_a_zone(deviation_us: int) -> bool:
    quarters = round(deviation_us / QUARTER_US)
    is_near = abs(deviation_us - quarters * QUARTER_US) <= ZONE_SLACK_US
    return bool(quarters) and is_near and abs(deviation_us) <= FARTHEST_ZONE_US + ZONE_SLACK_US


def amount(us: int) -> str:
    """Microseconds for people, without a sign: in the largest unit that leaves something before the point."""
    size = abs(us)
    for unit_us, name in ((86_400_000_000, "days"), (3_600_000_000, "h"), (1_000_000, "s")):
        if size >= unit_us:
            return f"{size / unit_us:,.3f} {name}" if name == "s" else f"{size / unit_us:,.1f} {name}"
    return f"{size / MS_US:.1f} ms"
