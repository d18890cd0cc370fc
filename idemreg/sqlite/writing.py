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

*Interrupts.* A signal's handler may raise between any two steps, in here and in whoever comes through. So the gate is
not a lock whose holder knows of it only behind the call that took it: it is a place that holds the ticket of whoever is
in, made before he tries. `Gate.leave` and `Gate.done` look whether the ticket is there, and may be called again. Every
caller does so from inside a ``try`` that begins before he tries to come in, and once more should he be interrupted in
the middle of it. Should that be interrupted too, whoever waits sees a ticket that nobody but the gate holds any more.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal

import apsw

from idemreg import faults
from idemreg.errors import StoreBusyError
from idemreg.sqlite.connection import translate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from idemreg.clock import Clock
    from idemreg.sqlite.connection import Connection
    from idemreg.turn import Turn

__all__ = ["Gate", "Ticket", "Write", "carry_out", "tell"]

_SET_LOCK: Final = getattr(fcntl, "F_OFD_SETLK", 0)  # not elsewhere than on Linux, where nothing is opened

# Of one transaction. More gain little, and the first of them waits for the last.
TAKEN_AT_ONCE: Final = 64

# Seconds after which a thread that sleeps looks by itself how things stand: whoever should wake it may have been
# interrupted in between.
LOOK_AGAIN_S: Final = 0.1

WRITER: Final = 0  # the one place in the gate

State = Literal["idle", "waiting", "leads", "taken", "gone"]  # of a write; no enum, which whoever only looks would make


class Ticket:
    """What a thread comes through the gate with, made anew each time."""

    __slots__ = ("thread",)

    thread: int


class Round:
    """What one leader carries out. Whom he has taken along knows it, and not him: see `_is_left_behind`."""

    is_told = False  # each has its answer or its error, and none is carried out again
    is_checked = False  # that no sync has failed: see `hot.Claim`


class Write(Ticket):
    """Something to be written. ``body`` may be called more than once, each time after a rollback.

    Whether the commit is synced, ``body`` may still decide by setting ``durable``: a claim reads its policy in its row.
    """

    __slots__ = (
        "_wake",
        "answer",
        "body",
        "durable",
        "error",
        "is_alone",
        "is_atomic",
        "is_synced",
        "round",
        "state",
        "taken",
    )

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
        self.state: State = "idle"
        self.round = Round()  # its own, or that of the leader who has taken it along
        self.taken: list[Write] = []  # along, where it leads
        self._wake = threading.Lock()
        self._wake.acquire()

    def forget(self) -> None:
        """It is over: a body that refers to its write would keep all that both refer to until garbage is collected."""
        self.body = _nothing

    @property
    def is_carried_out(self) -> bool:
        """Whether another thread has done it."""
        return self.state == "taken" and self.round.is_told

    def wake(self) -> None:
        """Let its thread go on. Again does nothing."""
        with contextlib.suppress(RuntimeError):
            self._wake.release()

    def sleep(self, seconds: float) -> bool:
        """Until `wake`; False where the time is over first."""
        return self._wake.acquire(timeout=seconds)


def carry_out(connection: Connection, write: Write) -> None:
    """Carry out one of several in a transaction: an error is its own, and rolls back what it did."""
    if not write.is_atomic:
        connection.execute("SAVEPOINT one")
    try:
        write.answer = write.body(connection)
    except Exception as error:
        if not connection.in_transaction:
            raise  # SQLite has rolled back all of it
        if not write.is_atomic:
            connection.execute("ROLLBACK TO one")
        write.error = translate(error, connection) if isinstance(error, (apsw.Error, UnicodeDecodeError)) else error
    if not write.is_atomic:
        connection.execute("RELEASE one")


def tell(writes: Sequence[Write], error: Exception, cause: Exception | None = None) -> None:
    """Each gets an error of its own: one that is raised in several threads collects the tracebacks of all."""
    if cause is not None:
        error.__cause__ = cause
    for write in writes:
        if write.error is None:
            write.error = error if write is writes[0] else copy.copy(error)
            if write.error is not error:
                write.error.__cause__ = error


class Gate:
    """One writer of this process at a time. A forked child has a gate of its own."""

    def __init__(self, turn: Turn, clock: Clock, busy_s: float) -> None:
        self.busy_s = busy_s
        self.until: float | None = None  # the deadline of who has come through by `try_enter`, if he had to wait
        self.look: Callable[[], None] = _nobody_looks  # at the files, before anything is written to them
        self._turn = turn
        self._clock = clock
        self._inside: dict[int, Ticket] = {}
        self._states = threading.Lock()  # over the states of what waits
        self.waiting: deque[Write] = deque()  # and what has waited, and is passed over

    @property
    def is_taken(self) -> bool:
        """Whether a thread of this process is writing now, or about to let the next in."""
        return bool(self._inside) or self._states.locked()

    # --- alone ------------------------------------------------------------------------------------------------------

    def try_enter(self, ticket: Ticket) -> bool:
        """Come through if no other thread of this process writes; `leave` in any case. `StoreBusyError` as in `enter`.

        Where it had to wait for the turn, ``until`` says what is left.
        """
        ticket.thread = threading.get_ident()
        if self._inside.setdefault(WRITER, ticket) is not ticket:  # one call of C, which nothing can come between
            return False
        try:  # as `Turn.try_take`, whose two calls cost as much as the gate itself
            fcntl.fcntl(self._turn.fd, _SET_LOCK, self._turn.lock)
        except OSError:
            self.until = self._clock.monotonic() + self.busy_s
            self._take_turn(self.until)
        self.look()
        return True

    def enter_at_once(self, ticket: Ticket) -> bool:
        """Come through if nobody writes, here or elsewhere; `leave` in any case."""
        ticket.thread = threading.get_ident()
        if self._inside.setdefault(WRITER, ticket) is not ticket:
            return False
        try:
            fcntl.fcntl(self._turn.fd, _SET_LOCK, self._turn.lock)
        except OSError:
            self._inside.clear()
            if self.waiting:
                self._let_in()
            return False
        self.look()
        return True

    def _take_turn(self, until: float) -> None:
        if not self._turn.take(until):
            msg = f"another process has been writing for {self.busy_s:g} s"
            raise StoreBusyError(msg)

    def leave(self, ticket: Ticket) -> None:
        """Let the next through, if it is with this ticket that somebody is in. Again does nothing."""
        if self._inside.get(WRITER) is ticket:
            self.until = None
            if (fd := self._turn.fd) >= 0:  # as `Turn.drop`
                fcntl.fcntl(fd, _SET_LOCK, self._turn.unlock)
            self._inside.clear()
        if self.waiting:
            self._let_in()

    # --- together ---------------------------------------------------------------------------------------------------

    def enter(self, mine: Write, until: float) -> bool:
        """Come through by the deadline, a monotonic time, with others in ``taken``; `done` in any case.

        False where another thread has carried it out: it has an answer or an error. `StoreBusyError` at the deadline.
        """
        mine.thread = threading.get_ident()
        if self._is_inside(mine.thread):
            msg = "this thread has a claim.transaction() open, and another write would wait for it for ever"
            raise StoreBusyError(msg, hint="Claim and finish other tasks before or after the transaction's block.")
        if self._inside.setdefault(WRITER, mine) is not mine and not self._wait(mine, until):
            return False
        mine.round = Round()
        self._take_turn(until)
        self.look()
        faults.point("turn.taken")
        if not mine.is_alone and self.waiting:
            self._collect(mine)
        return True

    def _is_inside(self, thread: int) -> bool:
        if _is_left_behind(self._inside):
            return False
        ticket = self._inside.get(WRITER)
        return ticket is not None and ticket.thread == thread

    def _wait(self, mine: Write, until: float) -> bool:
        """True where it has come through; False where somebody has carried it out."""
        mine.state = "waiting"
        self.waiting.append(mine)
        if not self._inside:  # whoever was in has left before he could see it; else he will see it
            self._let_in()
        left = until - self._clock.monotonic()
        while self._inside.get(WRITER) is not mine:
            if mine.is_carried_out:
                return False
            if left <= 0 and self._give_up(mine):
                msg = f"another thread of this process has been writing for {self.busy_s:g} s"
                raise StoreBusyError(msg)
            pause = min(left, LOOK_AGAIN_S) if left > 0 else LOOK_AGAIN_S
            if not mine.sleep(pause):
                left = min(left - pause, until - self._clock.monotonic())
                self._look_after(mine)
        mine.state = "leads"
        return True

    def _give_up(self, mine: Write) -> bool:
        """Nobody is to carry it out any more; False where somebody does."""
        with self._states:
            if mine.state == "taken" or self._inside.get(WRITER) is mine:
                return False
            mine.state = "gone"
            return True

    def _look_after(self, mine: Write) -> None:
        """Wait for nobody who cannot come: what an interrupted thread has left as it was is taken up again."""
        with self._states:
            if mine.is_carried_out:
                return
            if _is_left_behind(self._inside):
                self._inside[WRITER] = mine  # and the turn, should the process have it: it is given again
                return
            ticket = self._inside.get(WRITER)
            is_led = isinstance(ticket, Write) and ticket.round is mine.round
            if mine.state == "taken" and not is_led:
                self._back_to_front(mine)
            elif mine.state == "waiting" and mine not in self.waiting:
                self.waiting.append(mine)
        if not self._inside:
            self._let_in()

    def _collect(self, mine: Write) -> None:
        """Take along what waits."""
        with self._states:
            while len(mine.taken) < TAKEN_AT_ONCE - 1:
                first = self._first()
                if first is None or first.is_alone:
                    return
                # In this order: whatever is in ``taken`` is put back, should this be interrupted.
                mine.taken.append(first)
                first.round = mine.round
                first.state = "taken"

    def _first(self) -> Write | None:
        """The first that waits. With the states' lock held."""
        while self.waiting:
            if (first := self.waiting[0]).state == "waiting":
                return first
            self.waiting.popleft()
        return None

    def _let_in(self) -> None:
        """Let the first that waits come through, if nobody is in."""
        with self._states:
            first = self._first()
            if first is not None and self._inside.setdefault(WRITER, first) is first:
                first.state = "leads"
                first.wake()

    def done(self, mine: Write) -> None:
        """Leave, and leave nothing of it here, whatever has come in between. Again does nothing.

        What it has taken along and not told of waits again. Where another thread carries it out right now, that is
        seen through, since its caller wants to know what has become of it.
        """
        if mine.state in _UNDER_WAY:
            while not mine.is_carried_out and not self._give_up(mine) and self._inside.get(WRITER) is not mine:
                with contextlib.suppress(BaseException):  # its caller hears of the first already
                    if not mine.sleep(LOOK_AGAIN_S):
                        self._look_after(mine)
        if mine.taken and not mine.round.is_told:
            self._put_back(mine)
        self.leave(mine)

    def _put_back(self, mine: Write) -> None:
        """With the gate held: what it has taken along was not carried out, and waits again before all others."""
        with self._states:
            for write in reversed(mine.taken):
                if write.state == "taken":
                    self._back_to_front(write)
            mine.taken = []

    def _back_to_front(self, write: Write) -> None:
        # In this order: twice in the queue does no harm.
        self.waiting.appendleft(write)
        write.error = None
        write.round = Round()
        write.state = "waiting"


_UNDER_WAY: Final = ("waiting", "taken")


def _is_left_behind(inside: dict[int, Ticket]) -> bool:
    """Whether nobody is left who could leave with the ticket that is inside."""
    return _references(inside) <= _OF_NOBODY


def _references(inside: dict[int, Ticket]) -> int:
    return sys.getrefcount(inside.get(WRITER))


_OF_NOBODY: Final = _references({WRITER: Ticket()})


def _nothing(_connection: Connection) -> None:
    """What is left of a write that is over."""


def _nobody_looks() -> None:
    """There is no guard yet."""
