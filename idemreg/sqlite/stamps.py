"""What a row is stamped with: microseconds by the wall clock, and epoch and milliseconds of this boot."""

from __future__ import annotations

from typing import Final

__all__ = ["EPOCH_BITS", "LATEST_MS", "Stamp"]

Stamp = tuple[int, int]

EPOCH_BITS: Final = 40  # of a stamp, for the milliseconds; the boot epoch is above

# The time since boot that a stamp has room for: 34 years. A broken hardware clock can make a sleep of the machine as
# long; from then on rows of this boot grow no older, and stay.
LATEST_MS: Final = 2**EPOCH_BITS - 1
