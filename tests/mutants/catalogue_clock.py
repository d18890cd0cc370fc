"""The mutants of what counts time."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant, Patch

__all__ = ["CLOCKS"]

CLOCKS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "clock-age-by-date",
        "the age of a row of this boot is counted by the wall clock",
        (Patch("idemreg/sqlite/queries.py", "(CASE WHEN boot_stamp >= ?", "(CASE WHEN boot_stamp * 0 > ?"),),
    ),
    Mutant(
        "clock-deadline-by-date",
        "whoever waits for a running twin waits by the wall clock",
        (Patch("idemreg/acquiring.py", "now = clock.monotonic()", "now = clock.wall_us() / 1e6"),),
    ),
    Mutant(
        "clock-namespace-ignored",
        "the time since boot is believed as another time namespace shows it",
        (Patch("idemreg/clock.py", "_BOOT_CLOCK) - _namespace.offset_ns)", "_BOOT_CLOCK))"),),
    ),
    Mutant(
        "clock-purge-unchecked",
        "a purge believes a wall clock that is behind a stored date",
        (Patch("idemreg/purge.py", "piece.newest is not None and piece.newest > now", "False"),),
    ),
    Mutant(
        "clock-stamp-overflows",
        "a time since boot of more than 34 years runs over into the number of the boot",
        (
            Patch(
                "idemreg/sqlite/opened.py",
                "min(self._boot_ms(), LATEST_MS)\n\n    def instant",
                "self._boot_ms()\n\n    def instant",
            ),
        ),
    ),
)
