"""Off the event loop: the threads that carry out an asynchronous caller's calls of the store.

A call of the store may write, lock, sync, or wait for another process; on the thread of an event loop any of these
would stop every other coroutine. So each goes to a thread of a small pool, a whole claim or a whole finish at a time,
and is waited for to its end even where the caller is cancelled: half a claim would leave a transaction open.

The pool is the registry's own. In a pool shared with the program, jobs that wait for other jobs could take every
thread, and the finish that they wait for would get none.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, cast

from idemreg.lane import Item, Lane
from idemreg.store import End, Granted

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor, Future

    from idemreg.store import Store
    from idemreg.walk import Host

__all__ = ["Offload"]

# What goes to a thread of its own waits for the write lock or the disk, and is combined: more threads mean fewer syncs.
# They start when they are needed.
THREADS: Final = 32


class Offload:
    """The threads of one registry. They start at first use, and anew in a forked child."""

    def __init__(self, store: Store) -> None:
        self.lane = Lane(store, self.pool)
        self.store = cast("Store", _OffLoopStore(store, self))
        self._pool: Executor | None = None
        self._pid = 0

    def pool(self) -> Executor:
        """The threads that all calls share."""
        if self._pool is None or self._pid != os.getpid():  # a forked child has none of its parent's threads
            self._pool, self._pid = _threads(THREADS), os.getpid()
            self.lane.renew()
        return self._pool

    def host(self, pool: Executor | None = None) -> Host:
        """For one walk of the calling coroutine, under asyncio or trio; ``pool``: in place of the shared threads."""
        trio = sys.modules.get("trio")
        kind = _TrioHost if trio is not None and trio.lowlevel.in_trio_task() else _AsyncioHost
        return kind(pool or self.pool(), self._put_back)

    def _put_back(self, done: Future[Any]) -> None:
        """The coroutine that called was closed before the answer came: put back what it was granted."""
        answer = None if done.exception() else done.result()
        for grant in answer if isinstance(answer, list) else [answer]:
            if isinstance(grant, Granted):
                self.store.abandon(End.release(grant, nothing_ran=True))

    @staticmethod
    def own_thread() -> Executor:
        """One thread of its own, for a transaction: while it is open, others may wait for it in all of the pool's."""
        return _threads(1)

    async def call(self, call: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401 - whatever it returns
        """One call, done whole; a cancellation is raised once it is over."""
        host = self.host()
        try:
            return await host.call(call, args)
        finally:
            host.leave()

    def close(self) -> None:
        """Let the threads end when they have done what they have."""
        if self._pool is not None and self._pid == os.getpid():
            self._pool.shutdown(wait=False)
        self._pool = None


class _OffLoopStore:
    """The store for claims that live on an event loop: what settles a dropped one is handed to a thread."""

    def __init__(self, store: Store, offload: Offload) -> None:
        self._store = store
        self._offload = offload
        self.begin = self.finish_one = Together(offload.lane)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any method of the store
        return getattr(self._store, name)

    def abandon(self, end: End) -> bool:
        """As the store's own, but on another thread: finalisers run wherever they happen to."""
        self._offload.pool().submit(self._store.abandon, end)
        return True


class Together:
    """Stands for a call of the store that goes by the lane."""

    __slots__ = ("lane",)

    def __init__(self, lane: Lane) -> None:
        self.lane = lane

    def __call__(self, _request: object) -> None:
        """Nobody calls it: see `_AsyncioHost.call`."""
        raise NotImplementedError


def _threads(number: int) -> Executor:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - 10 ms that only asynchronous callers pay

    return ThreadPoolExecutor(number, thread_name_prefix="idemreg")


class _AsyncioHost:
    def __init__(self, pool: Executor, put_back: Callable[[Future[Any]], None]) -> None:
        self._pool = pool
        self._put_back = put_back
        self._cancelled: asyncio.CancelledError | None = None

    async def call(self, call: Callable[..., Any], args: Sequence[Any]) -> Any:  # noqa: ANN401
        import asyncio  # noqa: PLC0415 - the caller has imported it; the module may be imported without

        if type(call) is Together:
            return await self._together(call.lane, args[0])
        submitted = self._pool.submit(call, *args)
        future = asyncio.wrap_future(submitted)
        while not future.done():
            try:
                await asyncio.wait((future,))  # which does not cancel the future when it is cancelled itself
            except asyncio.CancelledError as cancelled:
                self._cancelled = cancelled
            except GeneratorExit:
                submitted.add_done_callback(self._put_back)
                raise
        return future.result()

    async def _together(self, lane: Lane, request: Any) -> Any:  # noqa: ANN401
        import asyncio  # noqa: PLC0415

        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def wake() -> None:
            if not future.done():  # the caller may have been cancelled right now
                future.set_result(None)

        item = Item(request, loop, loop.call_soon_threadsafe, wake)
        lane.put(item)
        while not item.is_done:
            try:
                await future
            except asyncio.CancelledError as cancelled:  # the future as well; what was begun is done all the same
                self._cancelled = cancelled
                future = loop.create_future()
            except GeneratorExit:
                item.is_dropped = True
                raise
        return item.result()

    async def sleep(self, pause: float) -> None:
        import asyncio  # noqa: PLC0415

        await self.checkpoint()
        await asyncio.sleep(pause)

    async def checkpoint(self) -> None:
        self.leave()

    def leave(self) -> None:
        if self._cancelled is not None:
            cancelled, self._cancelled = self._cancelled, None
            raise cancelled


class _TrioHost:
    def __init__(self, pool: Executor, put_back: Callable[[Future[Any]], None]) -> None:
        self._pool = pool
        self._put_back = put_back
        self._trio = sys.modules["trio"]

    async def call(self, call: Callable[..., Any], args: Sequence[Any]) -> Any:  # noqa: ANN401
        token, done = self._trio.lowlevel.current_trio_token(), self._trio.Event()
        if type(call) is Together:
            item = Item(args[0], token, token.run_sync_soon, done.set)
            call.lane.put(item)
            try:
                with self._trio.CancelScope(shield=True):
                    await done.wait()
            except GeneratorExit:
                item.is_dropped = True
                raise
            return item.result()
        future: Future[Any] = self._pool.submit(call, *args)
        future.add_done_callback(lambda _: token.run_sync_soon(done.set))
        try:
            with self._trio.CancelScope(shield=True):
                await done.wait()
        except GeneratorExit:
            future.add_done_callback(self._put_back)
            raise
        return future.result()

    async def sleep(self, pause: float) -> None:
        await self._trio.sleep(pause)

    async def checkpoint(self) -> None:
        await self._trio.lowlevel.checkpoint_if_cancelled()

    def leave(self) -> None:
        """Trio raises a cancellation again at the next checkpoint; nothing was held back."""
