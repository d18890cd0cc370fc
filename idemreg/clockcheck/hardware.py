"""The hardware clock, which goes on while the machine is off: sysfs gives it in whole seconds. Many machines have none.

Besides `idemreg.clock` this is the one room that reads a time. It is another clock, of another machine's part, and what
it says is only compared with the wall clock, or serves a scheduler in its place; so it is no method of `Clock`, which
every claim asks.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from idemreg.clockcheck.readings import HARDWARE, Hardware, Reading

if TYPE_CHECKING:
    from idemreg.clock import Clock

__all__ = ["hardware"]

SYS: Final = "/sys"
ETC: Final = "/etc"

# A whole second says that it is somewhere within it: half a second to either side of its middle. The other half is for
# who set it last, as the usual chip starts the second that is written to it half a second late.
SECOND_US: Final = 1_000_000

MOST_BYTES: Final = 64
MOST_DIGITS: Final = 12  # of seconds: 30,000 years


def hardware(clock: Clock, *, sys: str = SYS, etc: str = ETC) -> Hardware | Reading:
    """Read the hardware clock that the system is set from, else the first."""
    names = _names(f"{sys}/class/rtc")
    if not names:
        return Reading(HARDWARE, None, text="there is none")
    name = next((one for one in names if _read(f"{sys}/class/rtc/{one}/hctosys") == "1"), names[0])
    before_us = clock.wall_us()
    said = _read(f"{sys}/class/rtc/{name}/since_epoch")
    after_us = clock.wall_us()
    if said is None or len(said) > MOST_DIGITS or not (said.isascii() and said.isdigit()):
        return Reading(HARDWARE, None, text=f"{name} cannot be read")
    middle_us = (before_us + after_us) // 2
    resolution_us = SECOND_US + abs(after_us - before_us) // 2
    says_us = int(said) * SECOND_US + SECOND_US // 2
    return Hardware(says_us, middle_us - says_us, resolution_us, _keeps_utc(etc), name)


def _names(folder: str) -> list[str]:
    """In the order of their numbers."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith("rtc") and name[3:].isdecimal()]
    except OSError:
        return []
    return sorted(names, key=lambda name: int(name[3:]))


def _keeps_utc(etc: str) -> bool | None:
    """By the third line of adjtime(5): UTC or LOCAL; None where nobody has said so."""
    with contextlib.suppress(OSError, IndexError), open(f"{etc}/adjtime", "rb") as file:
        return {b"UTC": True, b"LOCAL": False}.get(file.read(4 * MOST_BYTES).splitlines()[2].strip())
    return None


def _read(path: str) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return (file.read(MOST_BYTES) or b"").decode("ascii", "replace").strip()
    except OSError:
        return None
