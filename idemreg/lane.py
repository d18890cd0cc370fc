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
    """A request of one coroutine. ``wake`` is called on its event loop's thread, once there is an answer.

    The answer goes to whoever takes it first: the coroutine, or what puts back a grant that no coroutine will take.
    """

    __slots__ = ("_answers", "is_done", "is_dropped", "loop", "request", "tell", "wake")

    def __init__(
        self,
        request: Wanted | End,
        loop: object,
        tell: Callable[[Callable[[Sequence[Item]], None], Sequence[Item]], object],
        wake: Callable[[], object],
    ) -> None:
        self.request = request
        self.loop = loop
        self.tell = tell  # has something called on the event loop's thread
        self.wake = wake
        self._answers: list[Any] = []  # none, or one; popping it decides without a lock, which no finaliser may take
        self.is_done = False
        self.is_dropped = False  # the coroutine was closed: what it is granted is put back

    def result(self) -> Any:  # noqa: ANN401 - whatever the store has answered
        """The answer; raises it where it is an error."""
        answer = self._answers.pop()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def answer(self, answer: object) -> None:
        """Note what the store has answered."""
        self._answers.append(answer)

    def untaken(self) -> Granted | None:
        """Take the answer, if it is there, away from a coroutine that will not: the claim that it may be."""
        try:
            answer = self._answers.pop()
        except IndexError:  # there is none yet, or it is taken
            return None
        return answer if isinstance(answer, Granted) else None


class Lane:
    """Thread-safe. Uses a thread of the pool only while there is something to do.

    ``store``: whose `abandon` may be called on any thread, also on that of an event loop.
    """

    def __init__(self, store: Store, pool: Callable[[], Executor]) -> None:
        self._store = store
        self._pool = pool
        self._items: deque[Item] = deque()
        self._lock = threading.Lock()
        self._is_served = False

    def renew(self) -> None:
        """For a forked child: nobody serves the lane there, and what its parent wanted is not carried out."""
        self._items, self._lock, self._is_served = deque(), threading.Lock(), False

    def put(self, item: Item) -> None:
        """Have the request carried out with others."""
        with self._lock:
            self._items.append(item)
            starts = not self._is_served
            self._is_served = True
        if not starts:
            return
        try:
            self._pool().submit(self._serve)
        except BaseException:  # there is no thread: the next one tries again
            self._is_served = False
            item.is_dropped = True
            raise

    def drop(self, item: Item) -> None:
        """The coroutine of the item was closed: what it is granted, by now or later, is put back."""
        item.is_dropped = True  # first: whoever answers looks at it behind its answer
        self._put_back(item)

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
            item.answer(answer)
            if item.is_dropped:
                self._put_back(item)
            else:
                by_loop.setdefault(id(item.loop), []).append(item)
        for some in by_loop.values():
            try:
                some[0].tell(_arrive, some)
            except RuntimeError:  # the loop is closed
                for item in some:
                    self._put_back(item)

    def _put_back(self, item: Item) -> None:
        if (grant := item.untaken()) is not None:
            self._store.abandon(End.release(grant, nothing_ran=True))


def _arrive(items: Sequence[Item]) -> None:
    """On the event loop's thread."""
    for item in items:
        item.is_done = True
        if not item.is_dropped:
            item.wake()
