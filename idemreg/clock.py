"""The only reader of time.

Three clocks, each for one purpose. The wall clock stamps rows for people and decides nothing. Time since boot
(CLOCK_BOOTTIME, which counts suspend) together with the boot id orders what outlives a process. The monotonic clock
bounds waits. Tests pass a `Clock` of their own; see `idemreg.testing.ManualClock`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from idemreg.clockcheck.readings import Source

__all__ = ["Clock", "seconds"]

BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"

# What the time namespace of this process adds to the clocks, against the machine's own (time_namespaces(7)).
OFFSETS_PATH = "/proc/self/timens_offsets"

# CLOCK_BOOTTIME exists on Linux only. Elsewhere the monotonic clock serves: it may stop during suspend, which only
# makes a row look younger, and so be kept longer.
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

# Without a boot id (not Linux) every process counts as a boot of its own: an epoch too many costs nothing, one too
# few could give a token twice.
_PROCESS_BOOT_ID = f"process-{os.urandom(16).hex()}"


class _Namespace:
    """The time namespace: its members see another time since boot, under the same boot id."""

    def __init__(self) -> None:
        self.offset_ns = 0
        self.read()

    def read(self) -> None:
        """Anew in a forked child: it may be the first member of a namespace that its parent has made."""
        with contextlib.suppress(OSError, ValueError), open(OFFSETS_PATH, encoding="utf-8") as file:
            for line in file:
                clock, whole, rest = line.split()
                if clock in ("boottime", "7"):
                    self.offset_ns = int(whole) * 1_000_000_000 + int(rest)


_namespace = _Namespace()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_namespace.read)


@cache  # what was raised is no answer, and is not kept
def _boot_id() -> str:
    try:
        with open(BOOT_ID_PATH, encoding="utf-8") as file:
            return file.read().strip()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return _PROCESS_BOOT_ID


class Clock:
    """The machine's clocks. Instances hold no state and may be shared by threads.

    ``is_real``: time passes by itself, so that a thread may wait for it.
    """

    is_real: bool = True

    # Who can say whether the wall clock is right, for `idemreg.clockcheck`. None: the machine, which knows nothing of a
    # clock that a test sets by hand; such a clock brings its own.
    sources: Sequence[Source] | None = None

    def wall_us(self) -> int:
        """Microseconds since the epoch. It may jump; for people only."""
        return time.time_ns() // 1_000

    def boot_ms(self) -> int:
        """Milliseconds since this boot, suspend included, in every container. Compare only within one `boot_id`."""
        return (time.clock_gettime_ns(_BOOT_CLOCK) - _namespace.offset_ns) // 1_000_000

    def monotonic(self) -> float:
        """Seconds for deadlines within this process."""
        return time.monotonic()

    def sleep(self, pause: float) -> None:
        """Let ``pause`` seconds pass."""
        time.sleep(pause)

    def boot_id(self) -> str:
        """The identity of this boot of the kernel, the same in every container.

        OSError where it cannot be read just now (no descriptor is left, say): another one in its place would make the
        dead of those that live.
        """
        return _boot_id()


def seconds(duration: float | timedelta, *, what: str) -> float:
    """Normalise a duration given as seconds or `timedelta`; refuse what is negative or not a number."""
    value: object = duration
    if not isinstance(value, (int, float)) and hasattr(value, "total_seconds"):  # a timedelta, whose module costs 1 ms
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        msg = f"{what} takes seconds or a timedelta, zero or more, not {duration!r}"
        raise ValueError(msg)
    return float(value)
