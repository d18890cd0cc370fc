"""The lane: what the coroutines of a process want stored, carried out together by one thread.

A thread a coroutine would spend more time on waking threads than SQLite spends on the work. So a coroutine leaves its
request in the lane and goes to sleep; a thread of the pool takes all that have come, has them stored in one transaction
with one sync, and tells each event loop of all its answers at once. Nobody waits for others to come: a batch is what
came while the one before was stored.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from idemreg.store import End, Granted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from idemreg.model import Wanted
    from idemreg.store import Store

__all__ = ["Item", "Lane"]

# Of one transaction: other writers wait for its end.
TAKEN_AT_ONCE: Final = 128


class Item:
    """A request of one coroutine. ``wake`` is called on its event loop's thread, once there is an answer."""

    __slots__ = ("answer", "is_done", "is_dropped", "loop", "request", "tell", "wake")

    def __init__(
        self,
        request: Wanted | End,
        loop: object,
        tell: Callable[[Callable[[list[Item]], None], list[Item]], object],
        wake: Callable[[], object],
    ) -> None:
        self.request = request
        self.loop = loop
        self.tell = tell  # has something called on the event loop's thread
        self.wake = wake
        self.answer: Any = None
        self.is_done = False
        self.is_dropped = False  # the coroutine was closed: what it is granted is put back

    def result(self) -> Any:  # noqa: ANN401 - whatever the store has answered
        """The answer; raises it where it is an error."""
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Lane:
    """Thread-safe. Uses a thread of the pool only while there is something to do."""

    def __init__(self, store: Store, pool: Callable[[], Executor]) -> None:
        self._store = store
        self._pool = pool
        self._items: deque[Item] = deque()
        self._lock = threading.Lock()
        self._is_served = False

    def renew(self) -> None:
        """For a new pool: nobody serves the lane, and a forked child does not carry out what its parent wanted."""
        self._items, self._lock, self._is_served = deque(), threading.Lock(), False

    def put(self, item: Item) -> None:
        """Have the request carried out with others."""
        pool = self._pool()  # which may renew the lane
        with self._lock:
            self._items.append(item)
            starts = not self._is_served
            self._is_served = True
        if starts:
            pool.submit(self._serve)

    def _serve(self) -> None:
        while items := self._take():
            requests = [item.request for item in items]
            try:
                answers: Sequence[object] = self._store.together(requests)
            except BaseException as error:  # noqa: BLE001 - each of them is waited for by a coroutine
                answers = [error] * len(items)
            self._deliver(items, answers)

    def _take(self) -> list[Item]:
        with self._lock:
            items = [self._items.popleft() for _ in range(min(len(self._items), TAKEN_AT_ONCE))]
            self._is_served = bool(items)
        return items

    def _deliver(self, items: Sequence[Item], answers: Sequence[object]) -> None:
        by_loop: dict[int, list[Item]] = {}
        for item, answer in zip(items, answers, strict=True):
            item.answer = answer
            by_loop.setdefault(id(item.loop), []).append(item)
        for some in by_loop.values():
            try:
                some[0].tell(self._arrive, some)
            except RuntimeError:  # the loop is closed
                for item in some:
                    self._put_back(item)

    def _arrive(self, items: list[Item]) -> None:
        """On the event loop's thread."""
        for item in items:
            item.is_done = True
            if item.is_dropped:
                self._pool().submit(self._put_back, item)
            else:
                item.wake()

    def _put_back(self, item: Item) -> None:
        if isinstance(item.answer, Granted):
            self._store.abandon(End.release(item.answer, nothing_ran=True))
