"""A descriptor for a moment, which no interrupt leaves open."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["opened"]

ALL: Final = 0o777  # as `os.open` has it


@contextlib.contextmanager
def opened(path: str, flags: int, mode: int = ALL) -> Iterator[int]:
    """Open the file for the block, on a descriptor that no other program inherits.

    Its number goes into the list by the call that opens it, one of C, into which no interrupt can come.
    """
    fds: list[int] = []
    try:
        fds.extend(map(os.open, (path,), (flags | os.O_CLOEXEC,), (mode,)))
        yield fds[0]
    finally:
        if fds:  # not in a loop, for which there may be no memory
            os.close(fds[0])
