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
_LEFT: Final = struct.Struct("<QQQ")  # the task's number and one, who has left it, and the process id that is to ask
_NUMBER: Final = struct.Struct("<Q")
_LIVING_AT: Final = ESTATE_AT + _LEFT.size
ESTATE_BYTES: Final = _LEFT.size + _NUMBER.size
NOBODY: Final = 0


class Estate:
    """The task of the one who died last; written by whoever dies, and by the conductor."""

    def __init__(self, shared: mmap.mmap) -> None:
        self._shared = shared

    def leave(self, number: int, process: int) -> None:
        """About to die in a body of that task. Nobody asks for it yet."""
        _LEFT.pack_into(self._shared, ESTATE_AT, number + 1, process, NOBODY)

    def call(self, pid: int) -> None:
        """Who has left it is gone: a living process of that number is to ask for it."""
        number, process, _ = _LEFT.unpack_from(self._shared, ESTATE_AT)
        _LEFT.pack_into(self._shared, ESTATE_AT, number, process, pid)

    def clear(self) -> None:
        """It has been asked for, or nobody is there who could: it is everybody's again."""
        _LEFT.pack_into(self._shared, ESTATE_AT, 0, NOBODY, NOBODY)

    def share(self, pid: int) -> None:
        """That number is of several living processes by now: one of them may die, and another ask."""
        _NUMBER.pack_into(self._shared, _LIVING_AT, pid)

    def is_shared(self, pid: int) -> bool:
        """Whether another lives under that number, so far as one knows."""
        return _NUMBER.unpack_from(self._shared, _LIVING_AT) == (pid,)

    @property
    def left(self) -> int | None:
        """The number of the task."""
        number: int = _LEFT.unpack_from(self._shared, ESTATE_AT)[0]
        return number - 1 if number else None

    @property
    def leaver(self) -> int:
        """The process that has left it; 0 where nothing is left."""
        process: int = _LEFT.unpack_from(self._shared, ESTATE_AT)[1]
        return process

    def is_for(self, pid: int) -> bool:
        """Whether that is who is to ask."""
        return self.left is not None and bool(_LEFT.unpack_from(self._shared, ESTATE_AT)[2] == pid)
