"""The crew: worker processes, the queue that feeds them, and the SIGKILLs that meet them in mid-job.

Nothing here waits for time to pass. A worker says where it is, and is killed there; a delivery that its worker did not
answer goes back into the queue, as any broker does it.
"""

from __future__ import annotations

import selectors
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from idemreg.demo.process import SILENCE_S, DemoError, Process
from idemreg.demo.worker import BEFORE, BEHIND, RUNNING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Crew", "Delivery"]

PROGRAM: Final = "from idemreg.demo.worker import main; main()"


class Delivery(NamedTuple):
    """One message: do the work of this task. The same task is delivered several times."""

    kind: str
    number: int

    @property
    def task_id(self) -> str:
        """The task_id that the worker's template makes of it."""
        return f"{self.kind}:{self.number}"


class _Worker(Process):
    """One process, and the delivery that it has in hand."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(PROGRAM, *arguments)
        self.in_hand: Delivery | None = None
        self.is_ready = False


class Crew:
    """As a context manager: no worker outlives the block, however it is left.

    ``kills`` says which tasks' workers are to be killed, each once, and at which moment of the job.
    """

    def __init__(self, database: str, witness: str, workers: int, kills: Mapping[str, str]) -> None:
        self.answers: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()
        self.delivered = 0
        self._arguments = database, witness
        self._size = workers
        self._kills = dict(kills)
        self._workers: list[_Worker] = []
        self._queue: deque[Delivery] = deque()
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        try:
            for _ in range(self._size):
                self._hire()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for worker in self._workers:
            worker.kill()

    def deliver(self, deliveries: Iterable[Delivery], progress: Callable[[Crew], None]) -> None:
        """Hand every delivery to a worker, again where its worker died, until each is answered."""
        self._queue.extend(deliveries)
        for worker in self._workers:
            self._hand_out(worker)
        while self._queue or any(worker.in_hand for worker in self._workers):
            ready = self._selector.select(SILENCE_S)
            if not ready:
                msg = f"no worker said anything for {SILENCE_S} s"
                raise DemoError(msg)
            for key, _ in ready:
                self._listen(key.data)
            progress(self)

    def dismiss(self) -> None:
        """Let all workers end in order."""
        for worker in self._workers:
            worker.dismiss()

    # --- one worker ---------------------------------------------------------------------------------------------

    def _hire(self) -> None:
        worker = _Worker(*self._arguments)
        self._workers.append(worker)
        self._selector.register(worker.output, selectors.EVENT_READ, worker)

    def _hand_out(self, worker: _Worker) -> None:
        if not worker.is_ready or worker.in_hand is not None or not self._queue:
            return
        worker.in_hand = delivery = self._queue.popleft()
        self.delivered += 1
        moment = self._kills.get(delivery.task_id, "-")
        worker.tell(f"{delivery.kind} {delivery.number} {moment}")

    def _listen(self, worker: _Worker) -> None:
        for line in worker.lines():
            word, _, rest = line.partition(" ")
            if word == "at":
                if self._is_condemned(worker, rest):
                    self._kill(worker, rest)
                    return
                if rest != RUNNING:
                    worker.tell("go")
                continue
            if word == "ready":
                worker.is_ready = True
            else:
                self._answered(worker, word)
            self._hand_out(worker)

    def _is_condemned(self, worker: _Worker, moment: str) -> bool:
        """Whether this is the kill that was planned; each happens once."""
        assert moment in (BEFORE, BEHIND, RUNNING)  # noqa: S101 - our own protocol
        assert worker.in_hand is not None  # noqa: S101 - it is in the middle of it
        return self._kills.pop(worker.in_hand.task_id, None) is not None

    def _kill(self, worker: _Worker, moment: str) -> None:
        """Kill it in mid-job, put what it had in hand back into the queue, and hire another in its place."""
        self.killed[moment] += 1
        self._selector.unregister(worker.output)
        self._workers.remove(worker)
        worker.kill()
        assert worker.in_hand is not None  # noqa: S101 - see `_is_condemned`
        self._queue.append(worker.in_hand)
        self._hire()
        for other in self._workers:  # idle ones, should the queue have run dry
            self._hand_out(other)

    def _answered(self, worker: _Worker, answer: str) -> None:
        assert worker.in_hand is not None  # noqa: S101 - it speaks of what it was given
        self.answers[answer] += 1
        if answer == "again":
            self._queue.append(worker.in_hand)
        worker.in_hand = None
