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

from idemreg.later import later
from idemreg.store import End, Granted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from idemreg.deciding import Wanted
    from idemreg.store import Store

__all__ = ["Item", "Lane"]

# Of one transaction: other writers wait for its end.
TAKEN_AT_ONCE: Final = 128


class Item:
    """A request of one coroutine. ``wake`` is called on its event loop's thread, once there is an answer.

    ``request``: something for the lane, or what to call by itself (`Lane.carry_out`). The answer goes to whoever takes
    it first: the coroutine, or what puts back a grant that no coroutine will take.
    """

    __slots__ = ("_answers", "_noted", "is_dropped", "loop", "request", "tell", "wake")

    def __init__(
        self,
        request: Wanted | End | Callable[[], Any],
        loop: object,
        tell: Callable[[Callable[[Sequence[Item]], None], Sequence[Item]], object],
        wake: Callable[[], object],
        answers: list[Any] | None = None,
    ) -> None:
        self.request: Any = request
        self.loop = loop
        self.tell = tell  # has something called on the event loop's thread
        self.wake = wake
        self._noted = answers  # see `asking`: there the walk finds what a lane has answered
        self._answers: list[Any] = []  # none, or one; removing it decides without a lock, which no finaliser may take
        self.is_dropped = False  # its coroutine was closed, or interrupted: what it is granted is put back

    @property
    def is_answered(self) -> bool:
        """Whether there is an answer, be its coroutine woken or not: who was interrupted may have been to wake it."""
        return bool(self._answers)

    def result(self) -> Any:  # noqa: ANN401 - whatever the store has answered
        """Take the answer; raises it where it is an error.

        An interrupt may come behind any call. So nothing is called behind the taking: what is taken is given on.
        """
        (answer,) = self._answers
        if isinstance(answer, BaseException):
            self._answers.clear()
            try:
                raise answer
            finally:
                del answer  # whose traceback has this frame
        del self._answers[0]
        return answer

    def answer(self, answer: object) -> None:
        """Note what the store has answered."""
        if self._noted is not None and not isinstance(answer, BaseException):
            self._noted[0] = answer
        self._answers.append(answer)

    def untaken(self) -> list[Granted]:
        """Take the answer, if it is there, away from a coroutine that will not: the claims that it may be."""
        try:
            answer = self._answers.pop()
        except IndexError:  # there is none yet, or it is taken
            return []
        return [one for one in (answer if isinstance(answer, list) else [answer]) if isinstance(one, Granted)]


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
        """Have the request carried out with others. Behind an error `drop` it: it may be, all the same."""
        try:
            with self._lock:
                self._items.append(item)
                starts = not self._is_served
                self._is_served = True
            if starts:
                self._pool().submit(self._serve)
        except BaseException:  # there is no thread, or an interrupt came before one was told
            item.is_dropped = True
            self._is_served = False
            later.do(self._serve)  # others may have come meanwhile, and believe that they are served
            raise

    def carry_out(self, item: Item) -> None:
        """Call what the item asks for, by itself and at once, and tell it."""
        try:
            item.answer(item.request())
        except BaseException as error:  # noqa: BLE001 - a coroutine waits for it
            item.answer(error)
        self._tell([item])

    def drop(self, item: Item) -> None:
        """The coroutine of the item was closed or interrupted: what it is granted, by now or later, is put back."""
        item.is_dropped = True  # first: whoever answers looks at it behind its answer
        self._put_back(item)

    def _serve(self) -> None:
        while items := self._take():
            if wanted := [item for item in items if _is_wanted(item)]:
                self._answer(wanted)
                self._tell(wanted)

    def _answer(self, items: Sequence[Item]) -> None:
        try:
            answers: Sequence[object] = self._store.together([item.request for item in items])
        except BaseException as error:  # noqa: BLE001 - each of them is waited for by a coroutine
            for item in items:
                item.answer(error)
            return
        for item, answer in zip(items, answers, strict=True):
            item.answer(answer)

    def _take(self) -> list[Item]:
        with self._lock:
            items = [self._items.popleft() for _ in range(min(len(self._items), TAKEN_AT_ONCE))]
            self._is_served = bool(items)
        return items

    def _tell(self, items: Sequence[Item]) -> None:
        by_loop: dict[int, list[Item]] = {}
        for item in items:
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
        for grant in item.untaken():
            self._store.abandon(End.release(grant, nothing_ran=True))


def _is_wanted(item: Item) -> bool:
    """Whether to carry it out. An end is stored also where nobody waits for it; a claim has to be begun by somebody."""
    return not item.is_dropped or isinstance(item.request, End)


def _arrive(items: Sequence[Item]) -> None:
    """On the event loop's thread."""
    for item in items:
        if not item.is_dropped:
            item.wake()
