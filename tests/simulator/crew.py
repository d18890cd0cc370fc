"""The threads that virtual processes are carried out by, one after the other: to start one for each took time.

To the product a virtual process has a thread of its own, which is new as it begins and ends with it: context variables
are empty, and what the product keeps by thread is gone behind it.
"""

from __future__ import annotations

import _thread
import contextvars
from typing import TYPE_CHECKING

from idemreg import claim

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Crew", "Member"]


class Member:
    """A thread. Whoever releases its ``gate`` lets it go on; whoever has nothing to do waits there as well."""

    def __init__(self) -> None:
        self.gate = _thread.allocate_lock()
        self.gate.acquire()
        self.work: Callable[[], None] | None = None
        self.thread = _thread.start_new_thread(self._live, ())

    def _live(self) -> None:
        while True:
            self.gate.acquire()
            work, self.work = self.work, None
            if work is None:
                return
            contextvars.Context().run(work)
            del work

    def is_over(self) -> None:
        """What the end of a thread does to what is kept by thread. By itself, as the last of its work."""
        claim._threads.__init__()  # type: ignore[misc]


class Crew:
    """As many threads as there ever were processes at a time."""

    def __init__(self) -> None:
        self._idle: list[Member] = []

    def take(self, work: Callable[[], None]) -> Member:
        """One that begins with the work when its gate is released, and not before."""
        member = self._idle.pop() if self._idle else Member()
        member.work = work
        return member

    def give_back(self, member: Member) -> None:
        """By itself, at the end of its work: it may be given other work at once."""
        self._idle.append(member)

    def close(self) -> None:
        """Let them end, when all are idle."""
        while self._idle:
            self._idle.pop().gate.release()
