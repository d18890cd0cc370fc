"""Who writes: one thread of one process at a time, and those who wait together.

A writer of this process first has the gate to itself, then the write turn, for which all processes queue under an exact
deadline (`idemreg.turn`), and then SQLite's own write lock, which by then is free but for programs that know nothing of
turns. The turn is a barrier of its own, should something in the process have dropped SQLite's locks.

*Combining.* Threads that find the gate taken leave what they want to write and sleep. Whoever comes through the gate
takes along what others have left, up to 64 of them, each under a savepoint of its own, in one transaction with one
commit and one sync. Before that sync it wakes the next, who commits meanwhile. Alone, a thread does its own work at
once: no other thread, no hand-over. 64 threads finish 4.7 times the jobs of one connection a thread.

    waiting ──▶ leads            woken to come through the gate itself, with all that waits
       ├──────▶ taken            another thread carries it out
       └──────▶ gone             its deadline has passed, or its thread was interrupted
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, TypeVar

from idemreg import faults
from idemreg.errors import StoreBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from idemreg.clock import Clock
    from idemreg.sqlite.connection import Connection
    from idemreg.turn import Turn

__all__ = ["Gate", "Write"]

_SET_LOCK: Final = getattr(fcntl, "F_OFD_SETLK", 0)  # not elsewhere than on Linux, where nothing is opened

T = TypeVar("T")

# Of one transaction. More gain little, and the first of them waits for the last.
TAKEN_AT_ONCE: Final = 64


class State(Enum):
    """Of a write whose thread found the gate taken."""

    WAITING = auto()
    LEADS = auto()
    TAKEN = auto()
    GONE = auto()


class Write:
    """Something to be written. ``body`` may be called more than once, each time after a rollback.

    Whether the commit is synced, ``body`` may still decide by setting ``durable``: a claim reads its policy in its row.
    """

    __slots__ = ("_wake", "answer", "body", "durable", "error", "is_alone", "is_atomic", "is_synced", "state")

    def __init__(
        self, body: Callable[[Connection], Any], *, durable: bool, is_alone: bool = False, is_atomic: bool = False
    ) -> None:
        self.body = body
        self.durable = durable
        self.is_alone = is_alone  # its thread wants the gate for itself
        self.is_atomic = is_atomic  # one statement, which needs no savepoint
        self.answer: Any = None
        self.error: Exception | None = None
        self.is_synced = False
        self.state = State.WAITING
        self._wake = threading.Lock()
        self._wake.acquire()

    def wake(self) -> None:
        """Let its thread go on. Again does nothing."""
        with contextlib.suppress(RuntimeError):
            self._wake.release()

    def sleep(self, seconds: float) -> bool:
        """Until `wake`; False where the time is over first."""
        return self._wake.acquire(timeout=max(seconds, 0))


class Gate:
    """One writer of this process at a time. A forked child has a gate of its own."""

    def __init__(self, turn: Turn, clock: Clock, busy_s: float) -> None:
        self.busy_s = busy_s
        self._turn = turn
        self._clock = clock
        self._lock = threading.Lock()
        self._states = threading.Lock()  # over the states of what waits
        self._waiting: deque[Write] = deque()
        self._writer = 0

    @property
    def is_taken(self) -> bool:
        """Whether a thread of this process is writing now."""
        return self._lock.locked()

    # --- alone ------------------------------------------------------------------------------------------------------

    def try_enter(self) -> bool:
        """Come through if no other thread of this process writes. Then `leave`. `StoreBusyError` as in `enter`."""
        if not self._lock.acquire(False):  # noqa: FBT003 - a keyword costs on the hot path
            return False
        try:  # as `Turn.try_take`, whose two calls cost as much as the lock itself
            fcntl.fcntl(self._turn.fd, _SET_LOCK, self._turn.lock)
        except OSError:
            self._take_turn(self._clock.monotonic() + self.busy_s)
        self._writer = threading.get_ident()
        return True

    def _take_turn(self, until: float) -> None:
        """With the lock held: take the turn, or leave the lock to others."""
        try:
            is_ours = self._turn.take(until)
        except BaseException:
            self._turn.drop()
            self._open_for_next()
            raise
        if not is_ours:
            self._open_for_next()
            msg = f"another process has been writing for {self.busy_s:g} s"
            raise StoreBusyError(msg)

    def leave(self) -> None:
        """Let the next through."""
        self._writer = 0
        self._turn.drop()
        self._lock.release()
        if self._waiting and self._lock.acquire(False):  # noqa: FBT003 - as above
            self._open_for_next()

    def put_back(self, taken: Sequence[Write]) -> None:
        """With the gate held: these were not carried out, and wait again before all others."""
        with self._states:
            for write in reversed(taken):
                write.state, write.error = State.WAITING, None
                self._waiting.appendleft(write)

    # --- together ---------------------------------------------------------------------------------------------------

    def enter(self, mine: Write, until: float) -> Sequence[Write]:
        """Come through by the deadline, a monotonic time, and give what is to be written, ``mine`` first; then `leave`.

        Nothing where another thread has carried it out: it has an answer or an error. `StoreBusyError` at the deadline.
        """
        if self._writer == threading.get_ident():
            msg = "this thread has a claim.transaction() open, and another write would wait for it for ever"
            raise StoreBusyError(msg, hint="Claim and finish other tasks before or after the transaction's block.")
        if not self._lock.acquire(False) and not self._wait(mine, until):  # noqa: FBT003
            return ()
        self._take_turn(until)
        faults.point("turn.taken")
        self._writer = threading.get_ident()
        return [mine] if mine.is_alone else [mine, *self._collect()]

    def _wait(self, mine: Write, until: float) -> bool:
        """True with the lock held; False where somebody has carried it out."""
        self._waiting.append(mine)
        # Whoever had the gate may have left it before he could see us.
        if self._lock.acquire(False):  # noqa: FBT003
            with self._states:
                if mine.state is State.WAITING:
                    self._waiting.remove(mine)
                    mine.state = State.LEADS
                    return True
            self._open_for_next()  # it was taken and carried out in between
        try:
            woken = mine.sleep(until - self._clock.monotonic())
        except BaseException:
            if not self._give_up(mine):
                self._see_it_through(mine)
                if mine.state is State.LEADS:
                    self._open_for_next()
            raise
        if not woken and self._give_up(mine):
            msg = f"another thread of this process has been writing for {self.busy_s:g} s"
            raise StoreBusyError(msg)
        if not woken:
            self._see_it_through(mine)
        return mine.state is State.LEADS

    def _give_up(self, mine: Write) -> bool:
        """Whether it could still be taken back."""
        with self._states:
            if mine.state is not State.WAITING:
                return False
            self._waiting.remove(mine)
            mine.state = State.GONE
            return True

    def _see_it_through(self, mine: Write) -> None:
        """Somebody carries it out, or has made it the leader: either is told at once or as soon as it is committed."""
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                mine.sleep(threading.TIMEOUT_MAX)
                return

    def _collect(self) -> list[Write]:
        """What waits, and may be carried out by this thread."""
        taken: list[Write] = []
        if self._waiting:
            with self._states:
                while self._waiting and len(taken) < TAKEN_AT_ONCE - 1 and not self._waiting[0].is_alone:
                    taken.append(self._waiting.popleft())
                    taken[-1].state = State.TAKEN
        return taken

    def _open_for_next(self) -> None:
        """With the lock held: hand it to the next that waits, or release it."""
        while True:
            with self._states:
                if self._waiting:
                    first = self._waiting.popleft()
                    first.state = State.LEADS
                    first.wake()
                    return
            self._lock.release()
            if not self._waiting or not self._lock.acquire(False):  # noqa: FBT003
                return
