"""What the processes say of themselves, in one pipe: a line a record, each written by one write.

A pipe takes what is shorter than PIPE_BUF in one piece or not at all, also of a process that is killed in the middle of
it, and gives it in the order in which it was written. So the number of a record is the time: whatever a process did
before it wrote record 7 was done before whatever another did behind its record 8. No clock is asked, none can jump, and
processes in other time namespaces need no conversion.

A record is its kind, the number of the process (every start is a new one), and words:

    born P                              killing P    gone P         written by the keeper
    point P DOES NAME   the fault point, or KIND/POINT, at which it is about to kill or stop itself
    call P T KIND TASK ASKED MOST       said P T ANSWER...          a call of thread T begins, and has ended
    got P T TASK ANSWER...              of an item of a batch; what a sweep has done about a task
    in P T TASK TOKEN ATTEMPT           out P T END RESULT          a body is entered, and left
    step P T TASK NAME RESULT           a step's body is entered, and is to give this
    stepped P T TASK NAME RESULT        its caller is told that it is done, now or before
    saved P TASK NAME RESULT            it is in the file when all is over
    hook P T TASK TOKEN                 verdict P T VERDICT RESULT  so is a verify hook
    unlocked P                          its own locks are gone, and it lives
    leaving P                           it ends in order
    trouble P TEXT                      what must not be
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Witness", "records"]

MOST_BYTES: Final = 512  # PIPE_BUF of POSIX


class Witness:
    """The writing end, in one process."""

    def __init__(self, fd: int, process: int) -> None:
        self._fd = fd
        self._process = process

    def say(self, kind: str, *words: object) -> None:
        """Write one record, or nothing of it."""
        line = " ".join((kind, str(self._process), *map(str, words))).encode()[: MOST_BYTES - 1] + b"\n"
        os.write(self._fd, line)


def records(data: bytes) -> tuple[list[Sequence[str]], bytes]:
    """The whole records in what was read, and the rest."""
    *lines, rest = data.split(b"\n")
    return [line.decode().split(" ") for line in lines], rest
