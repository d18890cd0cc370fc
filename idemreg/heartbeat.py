"""The heartbeat: one thread of a process renews the leases of all its open claims, each at a third of its lease.

It is a thread of the operating system, so that neither a blocked event loop nor a job that never looks up loses a lease
while its process lives; and one for all registries, so that a thousand leases cost no thousand threads. Those that are
due in one registry are renewed by one commit, without a sync: a power cut frees their tasks in any case.

A renewal that fails (another program holds the file, the disk is full) is tried again until the deadline. From then on
the lease counts as lost here, whether anybody has taken the task or not: nothing needs to be read to know that, so
nothing that cannot be read makes a late owner believe that it is none. Nothing here ends a claim; its finish does, by
the row.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
from typing import TYPE_CHECKING, Final

from idemreg.clock import Clock
from idemreg.errors import StoreError
from idemreg.leasing import Renewed
from idemreg.untold import Untold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from idemreg.leasing import Renewal
    from idemreg.store import Lost

    Renew = Callable[..., Sequence[Renewed | Lost]]  # `Leasing.renew` of a store

__all__ = ["Heart", "Lease", "heart"]

# Of one commit: other writers wait for its end.
RENEWED_AT_ONCE: Final = 256

# A renewal waits so long at most for whoever writes, and no longer than this part of the shortest lease: the leases of
# other registries are due meanwhile.
BUSY_S: Final = 0.5
BUSY_PART: Final = 20

# Behind a renewal that failed, the next is tried after this part of the lease, and after a second at the latest.
AGAIN_PART: Final = 30
AGAIN_MOST_MS: Final = 1_000

LONGEST_PAUSE_S: Final = 3_600.0  # between two looks, however long the leases are
STOP_S: Final = 10.0  # that the end of the process waits for a renewal on a slow disk


class Lease:
    """The lease of one open claim, as its own process knows it. ``until_ms``: by the time since boot."""

    __slots__ = ("_is_told", "_on_lost", "clock", "due_ms", "is_held", "reason", "renew", "renewal", "until_ms")

    def __init__(
        self, renew: Renew, clock: Clock, renewal: Renewal, until_ms: int, on_lost: Callable[[str], object]
    ) -> None:
        """``renew``: of the claim's store. ``on_lost`` is called once, with the reason, by the heartbeat."""
        self.renew = renew
        self.clock = clock
        self.renewal = renewal
        self.reason = ""  # why it is lost; empty as long as it is not
        self.is_held = False  # by a transaction of the claim: nobody can take the task, nor renew
        self._on_lost = on_lost
        self._is_told = False
        self.renewed(until_ms)

    def renewed(self, until_ms: int) -> None:
        """It is good until then, and due when a third of it is over."""
        self.until_ms = until_ms
        self.due_ms = until_ms - self.renewal.lease_ms * 2 // 3

    def postpone(self) -> None:
        """The renewal failed: again soon."""
        self.due_ms = self.clock.boot_ms() + min(self.renewal.lease_ms // AGAIN_PART, AGAIN_MOST_MS)

    def lose(self, reason: str) -> None:
        """From now on it is lost for good, also where the store would still renew it: the job may know of it."""
        self.reason = self.reason or reason

    def is_lost(self) -> bool:
        """Whether it is lost, or over by now. Reads nothing but the clock."""
        if not self.reason and not self.is_held and self.clock.boot_ms() > self.until_ms:
            self.lose("it was not renewed in time")
            heart.ring()
        return bool(self.reason)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The claim has the write lock: its task cannot be taken, so the lease lasts as long as the block."""
        self.is_held = True
        try:
            yield
        finally:
            self.is_held = False
            heart.ring()

    def tell(self) -> None:
        """Call back, once."""
        if not self._is_told:
            self._is_told = True
            self._on_lost(self.reason)


class Heart:
    """The leases of this process, and the thread that renews them. What a claim calls is quick, and takes no lock.

    For a claim may be dropped in a finaliser, which runs between any two steps of any thread. Leases by a clock that is
    set by hand are left to `step`: their time does not pass by itself.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        self._reset()

    def _reset(self) -> None:
        self._leases: dict[Lease, None] = {}
        self._rung = threading.Event()
        self._starting = threading.Lock()  # over which thread is the thread
        self._stepping = threading.Lock()  # one step at a time, by the thread or by hand
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        self._untold = Untold()
        # When the thread looks again, by the monotonic clock; never, while it looks: so a lease that comes behind its
        # look rings, and it looks once more.
        self._wake_at = float("inf")

    # --- of a claim ---------------------------------------------------------------------------------------------

    def add(self, lease: Lease) -> None:
        """Renew it from now on. RuntimeError where there is no thread to do it, and can be none."""
        self._leases[lease] = None
        if lease.clock.is_real:
            if self._thread is None:
                self._start()
            if self._clock.monotonic() + _pause_s(lease) < self._wake_at:
                self._rung.set()

    def remove(self, lease: Lease) -> None:
        """Its claim has ended, or is about to."""
        self._leases.pop(lease, None)

    def ring(self) -> None:
        """Look now."""
        self._rung.set()

    # --- one step -----------------------------------------------------------------------------------------------

    def step(self, *, by_hand: bool = True) -> float:
        """Renew what is due, tell of what is lost, and give the seconds until the next look.

        The thread does no more.
        """
        with self._stepping:
            for some in self._due(by_hand=by_hand):
                self._renew(some)
        for lease in self._served(by_hand=by_hand):
            if lease.is_lost():
                self.remove(lease)
                lease.tell()
        pauses = map(_pause_s, self._served(by_hand=by_hand))
        return max(min(pauses, default=LONGEST_PAUSE_S), 0.0)

    def _served(self, *, by_hand: bool) -> list[Lease]:
        return [lease for lease in list(self._leases) if by_hand or lease.clock.is_real]

    def _due(self, *, by_hand: bool) -> Iterator[Sequence[Lease]]:
        """What is to be renewed now, by commits."""
        by_store: dict[Renew, list[Lease]] = {}  # a method of the very same store is the same key
        for lease in self._served(by_hand=by_hand):
            if not lease.is_held and not lease.reason and lease.due_ms <= lease.clock.boot_ms():
                by_store.setdefault(lease.renew, []).append(lease)
        for leases in by_store.values():
            for begin in range(0, len(leases), RENEWED_AT_ONCE):
                yield leases[begin : begin + RENEWED_AT_ONCE]

    def _renew(self, leases: Sequence[Lease]) -> None:
        shortest_s = min(lease.renewal.lease_ms for lease in leases) / 1_000
        try:
            wanted = [lease.renewal for lease in leases]
            answers = leases[0].renew(wanted, busy_s=min(BUSY_S, shortest_s / BUSY_PART))
        except Exception as error:  # noqa: BLE001 - whatever the file has: the others have their own
            for lease in leases:
                lease.postpone()
            if not isinstance(error, StoreError):
                self._untold.tell(error)
            return
        for lease, answer in zip(leases, answers, strict=True):
            if isinstance(answer, Renewed):
                lease.renewed(answer.until_ms)
            else:
                lease.lose("another owner has the task, or it was settled without this claim")

    # --- the thread ---------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether the thread lives in this process."""
        return self._thread is not None and self._thread.is_alive()

    def _start(self) -> None:
        with self._starting:
            if not self.is_running:
                thread = threading.Thread(target=self._serve, name="idemreg-heartbeat", daemon=True)
                thread.start()
                self._thread = thread
                _stop_at_exit()

    def _serve(self) -> None:
        while not self._is_stopped:
            self._rung.clear()
            self._wake_at = float("inf")
            pause = LONGEST_PAUSE_S
            try:
                pause = self.step(by_hand=False)
            except BaseException as error:  # noqa: BLE001 - the thread must outlive whatever a callback raises
                self._untold.tell(error)
                pause = AGAIN_MOST_MS / 1_000
            self._wake_at = self._clock.monotonic() + pause
            self._rung.wait(pause)

    def stop(self) -> None:
        """Before the interpreter goes: a daemon thread must not be inside SQLite while modules are torn down."""
        self._is_stopped = True
        self._rung.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def forget(self) -> None:
        """In a forked child: thread and claims are the parent's. The child's own first lease starts another."""
        self._reset()


def _pause_s(lease: Lease) -> float:
    """Seconds until the lease wants to be looked at."""
    if lease.is_held:
        return LONGEST_PAUSE_S  # whoever holds it rings
    return (lease.due_ms - lease.clock.boot_ms()) / 1_000


heart: Final = Heart()


@functools.cache
def _stop_at_exit() -> None:
    """Once, behind the start of the first thread: what is registered last is called first, before files are closed."""
    atexit.register(heart.stop)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=heart.forget)
