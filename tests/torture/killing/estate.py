"""What a process leaves that dies in a body, and who asks for it first: one of its number, on another side.

Whether a dead owner is taken for a stranger who has its process id shows only where that stranger asks, and before
anybody else does, who settles it. So who is about to die says which task it has; nobody comes near that until the
process is gone; and then who has its number is to ask, if there is anybody.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import mmap

__all__ = ["ESTATE_AT", "ESTATE_BYTES", "Estate"]

ESTATE_AT: Final = 24  # in what all processes share, behind `worker.SHARED`
_NUMBER: Final = struct.Struct("<Q")
_HEIR_AT: Final = ESTATE_AT + _NUMBER.size
_SHARED_AT: Final = _HEIR_AT + _NUMBER.size
ESTATE_BYTES: Final = 3 * _NUMBER.size
NOTHING: Final = 0


class Estate:
    """The task of the one who died last; written by whoever dies, and by the conductor."""

    def __init__(self, shared: mmap.mmap) -> None:
        self._shared = shared

    def leave(self, number: int) -> None:
        """About to die in a body of that task. Nobody asks for it yet."""
        _NUMBER.pack_into(self._shared, _HEIR_AT, NOTHING)
        _NUMBER.pack_into(self._shared, ESTATE_AT, number + 1)

    def call(self, pid: int) -> None:
        """Who has left it is gone: a living process of that number is to ask for it."""
        _NUMBER.pack_into(self._shared, _HEIR_AT, pid)

    def clear(self) -> None:
        """It has been asked for, or nobody is there who could: it is everybody's again."""
        _NUMBER.pack_into(self._shared, ESTATE_AT, NOTHING)

    def share(self, pid: int) -> None:
        """That number is of several living processes by now: one of them may die, and another ask."""
        _NUMBER.pack_into(self._shared, _SHARED_AT, pid)

    def is_shared(self, pid: int) -> bool:
        """Whether another lives under that number, so far as one knows."""
        return _NUMBER.unpack_from(self._shared, _SHARED_AT) == (pid,)

    @property
    def left(self) -> int | None:
        """The number of the task."""
        (number,) = _NUMBER.unpack_from(self._shared, ESTATE_AT)
        return number - 1 if number else None

    def is_for(self, pid: int) -> bool:
        """Whether that is who is to ask."""
        return self.left is not None and _NUMBER.unpack_from(self._shared, _HEIR_AT) == (pid,)
