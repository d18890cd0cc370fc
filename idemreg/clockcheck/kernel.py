"""What the kernel knows of the wall clock: adjtimex(2) with no mode set, which needs no privilege and changes nothing.

Whoever disciplines the clock (ntpd, chrony, systemd-timesyncd, PTP) tells the kernel that it is synchronised, how far
off it is, and how well that is known. Where nobody does, as in most containers and on most devices, the kernel says so,
and says nothing else. A process may be forbidden to ask (a seccomp filter); then the source is silent as well.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Final

from idemreg.clockcheck.readings import KERNEL, Reading, amount

if TYPE_CHECKING:
    from idemreg.clock import Clock

__all__ = ["TIME_ERROR", "Timex", "interpret", "kernel"]

TIME_ERROR: Final = 5  # what adjtimex returns where the clock is not synchronised
STA_UNSYNC: Final = 0x0040
STA_CLOCKERR: Final = 0x1000  # of the hardware that gives a pulse a second
STA_NANO: Final = 0x2000  # `offset` is in nanoseconds, not microseconds

# The kernel writes at most so much, whatever its version (208 bytes on 64 bits); a struct that is too short would let
# it write into what lies behind.
BUFFER_BYTES: Final = 512


class Timex(ctypes.Structure):
    """The beginning of struct timex (linux/timex.h), as far as it is read here. The rest differs between systems."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
    )


def kernel(_clock: Clock) -> Reading:
    """Ask the kernel."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):  # not Linux
        return Reading(KERNEL, None, text="this system does not tell")
    buffer = ctypes.create_string_buffer(BUFFER_BYTES)
    state = adjtimex(buffer)
    if state < 0:
        return Reading(KERNEL, None, text=f"it may not be asked: {os.strerror(ctypes.get_errno())}")
    return interpret(state, buffer.raw)


def interpret(state: int, data: bytes) -> Reading:
    """What adjtimex has returned, and the struct that it has filled, as a reading.

    The resolution is the estimated error. The maximum error is told only: it grows by 500 ppm between two words of the
    daemon, whatever the clock does, so by it no clock were ever good.
    """
    found = Timex.from_buffer_copy(data)
    if state == TIME_ERROR or found.status & (STA_UNSYNC | STA_CLOCKERR):
        return Reading(KERNEL, None, text="it is not synchronised to anybody")
    # The offset is what is still to be added to the clock: one that is behind has a positive one.
    offset_us = found.offset / 1_000 if found.status & STA_NANO else found.offset
    text = f"synchronised, {amount(found.maxerror)} off at most"
    return Reading(KERNEL, -round(offset_us), max(found.esterror, 0), text)
