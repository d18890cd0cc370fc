"""What the bands of the clock check make of a slot, whoever looks at its schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from idemreg.clockcheck.readings import KERNEL, Reading

if TYPE_CHECKING:
    from idemreg import Clock

__all__ = ["GRACE_S", "Said", "each_band"]

GRACE_S = 60

# What a source says of the clock (µs; None: it cannot tell); how long behind the slot's window of `GRACE_S` somebody
# looks (µs); and what the slot is then. None: nothing is decided about it.
each_band = pytest.mark.parametrize(
    ("deviation_us", "late_us", "becomes"),
    [
        (None, 0, "succeeded"),
        (None, 1, "too_late"),
        (9_999, 0, "succeeded"),
        (-9_999, 1, "too_late"),
        (-10_000, 20_000, "succeeded"),
        (10_000, 20_001, "too_late"),
        (49_999, 20_000, "succeeded"),
        (-49_999, 20_001, "too_late"),
        (50_000, 0, None),
        (-50_000, 0, None),
    ],
)


class Said:
    """A source that says what a test says; at first that it cannot tell."""

    deviation_us: int | None = None

    def __call__(self, _clock: Clock) -> Reading:
        return Reading(KERNEL, self.deviation_us, 100, text="" if self.deviation_us else "it is synchronised to nobody")
