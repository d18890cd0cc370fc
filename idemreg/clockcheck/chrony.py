"""What chrony knows of the wall clock: `chronyc -c tracking`, where there is such a command and its daemon answers.

The kernel hears of chrony only that the clock is synchronised: chrony slews by itself, so the kernel's own offset is 0
even where seconds are still to be made up. Here they are told.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from idemreg.clockcheck.readings import CHRONY, Reading, amount

if TYPE_CHECKING:
    from idemreg.clock import Clock

__all__ = ["chrony", "interpret"]

# It asks its daemon over a socket of this machine; one that does not answer is not waited for.
PATIENCE_S: Final = 1.0
MOST_CHARACTERS: Final = 1_000

# The columns of tracking in client.c: reference id, name, stratum, reference time, correction still to be made, last
# offset, RMS offset, frequency, residual frequency, skew, root delay, root dispersion, update interval, leap status.
COLUMNS: Final = 14
CORRECTION, RMS_OFFSET, ROOT_DELAY, ROOT_DISPERSION, LEAP = 4, 6, 10, 11, 13
SYNCHRONISED: Final = frozenset({"Normal", "Insert second", "Delete second"})

MOST_S: Final = 1e12  # beyond all dates: what is more is no time


def chrony(_clock: Clock) -> Reading:
    """Ask chrony, by the command of the PATH."""
    command = shutil.which("chronyc")
    if command is None:
        return Reading(CHRONY, None, text="it is not installed")
    try:
        done = subprocess.run(  # noqa: S603 - wherever this system has put it
            [command, "-n", "-c", "tracking"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return Reading(CHRONY, None, text="it does not answer")
    if done.returncode:
        return Reading(CHRONY, None, text="its daemon does not answer")
    return interpret(done.stdout.decode("ascii", "replace"))


def interpret(output: str) -> Reading:
    """The one line of `tracking` as a reading; nothing is guessed from a line of another form.

    The resolution is the long-term average of the offset. As with the kernel, the bound of the error is told only.
    """
    columns = output.strip().split(",")
    if len(output) > MOST_CHARACTERS or len(columns) != COLUMNS:
        return Reading(CHRONY, None, text="its answer is none that is known")
    if columns[LEAP] not in SYNCHRONISED:
        return Reading(CHRONY, None, text="it is not synchronised to anybody")
    try:
        correction_s, rms_s, delay_s, dispersion_s = (
            float(columns[at]) for at in (CORRECTION, RMS_OFFSET, ROOT_DELAY, ROOT_DISPERSION)
        )
    except ValueError:
        return Reading(CHRONY, None, text="its answer is none that is known")
    if not all(math.isfinite(one) and abs(one) < MOST_S for one in (correction_s, rms_s, delay_s, dispersion_s)):
        return Reading(CHRONY, None, text="its answer is none that is known")
    # A positive correction is still to be added: the clock is slow ("%O of NTP time" in client.c).
    bound_us = round((abs(correction_s) + abs(delay_s) / 2 + abs(dispersion_s)) * 1e6)
    text = f"synchronised, {amount(bound_us)} off at most"
    return Reading(CHRONY, -round(correction_s * 1e6), round(abs(rms_s) * 1e6), text)
