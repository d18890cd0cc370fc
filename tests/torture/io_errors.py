"""An I/O error at the n-th read, write, sync, truncate or open, once and from then on, through every public call.

The model is SQLite's own fault loops: for each call, state of the file and kind of fault n goes 1, 2, 3, ... until the
call comes to its end without meeting it. The fault is beneath SQLite and beneath our own code alike (injected/shim.c).
What must hold then stands in injected/judge.py.

What is never made to fail: giving a lock back, for which the kernel needs nothing (see shim.c); and no error is written
into memory that is mapped, as there a disk that fails is SIGBUS and no error. SQLite asks for a lock on the -shm for
ten seconds where the system says that it has none to give: its naps are counted there, and not sat out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.torture.injected.parts import part
from tests.torture.trial import Trial

if TYPE_CHECKING:
    from tests.torture.trial import Tally

__all__ = ["TRIAL"]


def run(seed: int, count: int) -> Tally:
    """About ``count`` faults."""
    return part("io", seed, count)


TRIAL: Final = Trial(
    "io-errors",
    "faults",
    100_000,
    2_500,
    run,
    (
        "commit-error-swallowed",
        "failed-sync-forgotten",
        "gate-left-taken",
        "not-withdrawn",
        "disk-error-untyped",
        "unsure-finish-believed",
    ),
    crowd=2,  # a lock that is refused is asked for again, with naps
)
