"""Processes that work on order: each holds some contenders open, does what it is told, and says what it took.

One process a contender for the table of contenders, so that each one's memory, threads and imports are its own; or 8 or
32 processes that hold the same contenders, each of which they serve in turn. Whoever has no order sleeps in a read.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from bench.contenders import contender
from bench.job import runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from types import TracebackType

    from bench.contenders import Contender, Place

__all__ = ["Crew", "NotDoneError", "Order", "Report", "forget_peak", "memory_mib"]

# From the last order sent to the common start: enough for every process to be awake and waiting for it.
START_MARGIN_S = 0.1
PATIENCE_S = 300.0


class NotDoneError(RuntimeError):
    """A contender did not do what its line in the table says."""


class Order(NamedTuple):
    """Serve these users as ``who``, from the instant ``start_ns`` on, and begin no call at ``until_ns`` or later.

    Instants are those of the monotonic clock, which all processes share; 0: none. ``warming``: users served before,
    not counted, of a process that has slept while others had the CPU's caches.
    """

    who: str
    users: range
    start_ns: int = 0
    until_ns: int = 0
    warming: range = range(0)


class Report(NamedTuple):
    """What it took: nanoseconds of each call, the instant of the last end, jobs that ran, and the memory in MiB."""

    spent_ns: array[int]
    began_ns: int
    ended_ns: int
    ran: int
    memory_mib: float


def memory_mib() -> float:
    """Most resident memory of this process so far; `getrusage` would tell its parent's, where that was more."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1_024


def forget_peak() -> None:
    """Have `memory_mib` begin with what is resident now, so that the figures before do not count.

    A kernel may be built without it: what is told then is the most of the whole run, which flatters nobody.
    """
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


class Crew:
    """Some processes, each with the same contenders open. Leave it by ``with``."""

    def __init__(self, size: int, places: dict[str, Place]) -> None:
        context = multiprocessing.get_context("spawn")  # nothing of this process is inherited
        self._members: list[tuple[BaseProcess, Connection]] = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, places), daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours))
        self._heard(range(size))  # each has opened its contenders

    @property
    def size(self) -> int:
        return len(self._members)

    def work(self, orders: Sequence[Order]) -> list[Report]:
        """Each member does its order at once; the first begin together with all."""
        for (_, pipe), order in zip(self._members, orders, strict=False):
            pipe.send(order)
        return self._heard(range(len(orders)))

    def start_ns(self) -> int:
        """The instant of a common start, a moment from now."""
        return time.perf_counter_ns() + round((START_MARGIN_S + 0.002 * self.size) * 1e9)

    def _heard(self, members: Iterable[int]) -> list[Any]:
        answers = []
        for number in members:
            pipe = self._members[number][1]
            answer = pipe.recv() if pipe.poll(PATIENCE_S) else "no answer"
            if isinstance(answer, str):
                raise NotDoneError(answer)
            answers.append(answer)
        return answers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, pipe in self._members:
            pipe.close()  # which ends it
            process.join(PATIENCE_S if error is None else 1)
            if process.is_alive():
                process.kill()
                process.join()


def _serve(pipe: Connection, places: dict[str, Place]) -> None:
    """The life of a member."""
    held: dict[str, Contender] = {}
    try:
        try:
            for who, place in places.items():
                held[who] = contender(who, place)
            pipe.send(None)
            while True:
                pipe.send(_carried_out(held, pipe.recv()))
        except EOFError:
            return
        except Exception as error:  # noqa: BLE001 - it is told to whoever waits for the answer
            pipe.send(f"{type(error).__name__}: {error}")
    finally:
        for one in held.values():
            one.close()


def _carried_out(held: dict[str, Contender], order: Order) -> Report:
    call, users, until = held[order.who].call, order.users, order.until_ns
    for user in order.warming:
        call(user)
    spent, clock, before = array("q"), time.perf_counter_ns, runs()
    if (early := order.start_ns - clock()) > 0:
        time.sleep(early / 1e9)
    began = ended = clock()
    for user in users:
        start = clock()
        if until and start >= until:
            break
        call(user)
        ended = clock()
        spent.append(ended - start)
    return Report(spent, began, ended, runs() - before, memory_mib())
