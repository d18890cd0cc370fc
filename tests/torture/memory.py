"""Out of memory at the n-th allocation, through every public call.

Two allocators fail, one at a time: SQLite's own, told by who calls malloc, and all three of Python's, by hooks in the
place of its allocators. A MemoryError of Python may come at any step, like an interrupt. What must hold then stands in
injected/judge.py; beside a StoreError the caller may get a MemoryError.

Python's memory is gone once, SQLite's once or from then on. Where Python's is gone for some allocations on end, apsw
3.54 crashes as it closes a cursor (it tells of an error that there was no memory to make: apsw_write_unraisable calls
PyErr_Display with none); and where it is gone for good CPython 3.11 goes round and round (ceval.c: behind the 256th
instruction the number of the one that failed needs memory, and that there was none is an error with a number).

Nor is it taken from a decoration, which compiles a function: CPython's compiler gives a text back once too often where
an allocation in it has failed (3.11; it tells by itself, with ``_testcapi.set_nomemory`` around `compile`), and another
allocation then gets memory that is in use. A decoration touches no file.

Event loops and click are not ours: from calls that run them Python's memory is not taken (`mixed` in
injected/cases.py); SQLite's is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.torture.injected.parts import part
from tests.torture.trial import Trial

if TYPE_CHECKING:
    from tests.torture.trial import Tally

__all__ = ["TRIAL"]


def run(seed: int, count: int) -> Tally:
    """About ``count`` allocations that fail."""
    return part("memory", seed, count)


TRIAL: Final = Trial(
    "out-of-memory",
    "allocations",
    20_000,
    1_000,
    run,
    ("unsure-finish-believed", "returned-job-fails"),
)
