"""Off the event loop: the threads that carry out an asynchronous caller's calls of the store.

A call of the store may write, lock, sync, or wait for another process; on the thread of an event loop any of these
would stop every other coroutine. So each goes to a thread of a small pool, a whole claim or a whole finish at a time,
and is waited for to its end even where the caller is cancelled: half a claim would leave a transaction open.

The pool is the registry's own. In a pool shared with the program, jobs that wait for other jobs could take every
thread, and the finish that they wait for would get none.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from idemreg.asking import ask_into
from idemreg.errors import StoreError
from idemreg.lane import Item, Lane
from idemreg.later import later
from idemreg.store import Granted
from idemreg.tagged import downstream_key

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from idemreg.deciding import Wanted
    from idemreg.store import Answer, End, Store
    from idemreg.walk import Host

__all__ = ["Offload"]

T = TypeVar("T")

# What goes to a thread of its own waits for the write lock or the disk, and is combined: more threads mean fewer syncs.
# They start when they are needed.
THREADS: Final = 32


class Offload:
    """The threads of one registry. They start at first use, and anew in a forked child."""

    def __init__(self, store: Store) -> None:
        off_loop = _OffLoopStore(store, self.pool)
        self.lane = off_loop.lane
        self.store = cast("Store", off_loop)
        self._pool: Executor | None = None
        _offloads.add(self)

    def pool(self) -> Executor:
        """The threads that all calls share. Ask for each call: `close` and a fork change them."""
        pool = self._pool
        if pool is None:
            pool = self._pool = _threads(THREADS)
        return pool

    def host(self, thread: Executor | None = None) -> Host:
        """For one walk of the calling coroutine, under asyncio or trio; ``thread``: in place of the shared ones."""
        trio = sys.modules.get("trio")
        kind = _TrioHost if trio is not None and trio.lowlevel.in_trio_task() else _AsyncioHost
        return kind(self.lane, self.pool if thread is None else lambda: thread)

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

    async def in_chunks(self, call: Callable[..., Any], progress: Callable[..., object] | None) -> Any:  # noqa: ANN401
        """A call that tells its ``progress`` behind each chunk: a cancellation ends it there."""
        host = self.host()

        def told(*so_far: Any) -> None:  # noqa: ANN401 - whatever the call tells
            if progress is not None:
                progress(*so_far)
            if host.is_cancelled:
                msg = "the caller was cancelled, and is not any more"
                raise _LeftError(msg)

        try:
            return await host.call(functools.partial(call, progress=told), ())
        except _LeftError:
            await host.checkpoint()  # raises the cancellation
            raise
        finally:
            host.leave()

    def close(self) -> None:
        """Let the threads end when they have done what they have, and no call of this moment wants one any more.

        The executor ends them when nothing refers to it. Its own shutdown would refuse those who have just asked for
        it, and their tasks would stay running.
        """
        self._pool = None

    def forget(self) -> None:
        """In a forked child: the parent's threads, and what they were to do, are not here."""
        self._pool = None
        self.lane.renew()


_offloads: weakref.WeakSet[Offload] = weakref.WeakSet()


def _forget_all() -> None:
    for offload in list(_offloads):
        offload.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class _LeftError(Exception):
    """Ends a call in mid-way whose caller was cancelled."""


class _OffLoopStore:
    """The store for claims that live on an event loop: what their thread would do of it is done on others."""

    def __init__(self, store: Store, pool: Callable[[], Executor]) -> None:
        self._store = store
        self._registry_id: str | None = None
        self.lane = Lane(cast("Store", self), pool)
        self.begin = self.finish_one = Together(self.lane)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any method of the store
        return getattr(self._store, name)

    def together(self, requests: Sequence[Wanted | End]) -> list[object]:
        """As the store's own."""
        later.ready()
        return self._granted(self._store.together(requests))

    def claim(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """As the store's own."""
        later.ready()
        return self._granted(self._store.claim(wanted))

    def claim_batch(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """As the store's own."""
        later.ready()
        return self._granted(self._store.claim_batch(wanted))

    def _granted(self, answers: list[T]) -> list[T]:
        """Read the registry's id behind a grant: for as long as its row is there, no import can change it."""
        if any(type(answer) is Granted for answer in answers):
            try:
                self._registry_id = self._store.origin().registry_id
            except StoreError:  # the grants are worth more; whoever asks for a key reads for himself
                self._registry_id = None
        return answers

    def downstream_key(self, task_id: str) -> str:
        """As the store's own, of a claim that it granted, and without reading: jobs ask on the event loop's thread."""
        registry_id = self._registry_id
        return self._store.downstream_key(task_id) if registry_id is None else downstream_key(registry_id, task_id)

    def abandon(self, end: End) -> bool:
        """As the store's own, but never on the thread of an event loop: finalisers run wherever they happen to.

        Nor on a thread of ours, which may hold what an event loop's thread waits for, but as a step of a walk: that is
        done when this returns, so whoever is told that an end could not be stored finds at his next call what became
        of it.
        """
        if getattr(_here, "is_in_step", False):
            return self._store.abandon(end)
        later.do(functools.partial(self._store.abandon, end))
        return True


class Together:
    """Stands for a call of the store that goes by the lane."""

    __slots__ = ("lane",)

    def __init__(self, lane: Lane) -> None:
        self.lane = lane

    def __call__(self, _request: object) -> None:
        """Nobody calls it: see `_begin`."""
        raise NotImplementedError


_here: Final = threading.local()  # whether this thread carries out a step of a walk


def _step(call: Callable[..., Any], args: Sequence[Any]) -> Any:  # noqa: ANN401 - whatever it returns
    _here.is_in_step = True
    try:
        return call(*args)
    finally:
        _here.is_in_step = False


def _threads(number: int) -> Executor:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - 10 ms that only asynchronous callers pay

    return ThreadPoolExecutor(number, thread_name_prefix="idemreg")


def _item(call: Callable[..., Any], args: Sequence[Any], loop: object, tell: Any, wake: Callable[[], object]) -> Item:  # noqa: ANN401
    """What is to be done, as an item: by the lane, alone or into a list of answers, or by a call of its own."""
    if type(call) is Together:
        return Item(args[0], loop, tell, wake)
    if call is ask_into and type(args[0]) is Together:
        return Item(args[1], loop, tell, wake, args[2])
    return Item(functools.partial(_step, call, args), loop, tell, wake)


class _Host:
    def __init__(self, lane: Lane, pool: Callable[[], Executor]) -> None:
        self._lane = lane
        self._pool = pool

    def _begin(self, item: Item) -> None:
        """Have it carried out. Behind an error it may be, all the same: then it is to be dropped."""
        if callable(item.request):
            self._pool().submit(self._lane.carry_out, item)
        else:
            self._lane.put(item)


class _AsyncioHost(_Host):
    def __init__(self, lane: Lane, pool: Callable[[], Executor]) -> None:
        super().__init__(lane, pool)
        self._cancelled: asyncio.CancelledError | None = None

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled is not None

    async def call(self, call: Callable[..., Any], args: Sequence[Any]) -> Any:  # noqa: ANN401
        import asyncio  # noqa: PLC0415 - the caller has imported it; the module may be imported without

        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def wake() -> None:
            if not future.done():  # the caller may have been cancelled right now
                future.set_result(None)

        item = _item(call, args, loop, loop.call_soon_threadsafe, wake)
        try:
            self._begin(item)
            while True:
                try:
                    await future
                except asyncio.CancelledError as cancelled:  # the future as well; what was begun is done all the same
                    self._cancelled = cancelled
                    future = loop.create_future()
                if item.is_answered:
                    return item.result()
        except BaseException:  # closed, or interrupted
            self._lane.drop(item)
            raise

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


class _TrioHost(_Host):
    def __init__(self, lane: Lane, pool: Callable[[], Executor]) -> None:
        super().__init__(lane, pool)
        self._trio = sys.modules["trio"]
        self.is_cancelled = False

    async def call(self, call: Callable[..., Any], args: Sequence[Any]) -> Any:  # noqa: ANN401
        token, done = self._trio.lowlevel.current_trio_token(), self._trio.Event()
        item = _item(call, args, token, token.run_sync_soon, done.set)
        try:
            self._begin(item)
            await self._wait(done)
            return item.result()
        except BaseException:  # closed, or interrupted
            self._lane.drop(item)
            raise

    async def _wait(self, done: Any) -> None:  # noqa: ANN401 - a trio.Event
        try:
            await done.wait()
        except self._trio.Cancelled:  # trio raises it again at the next checkpoint
            self.is_cancelled = True
            with self._trio.CancelScope(shield=True):
                await done.wait()

    async def sleep(self, pause: float) -> None:
        await self._trio.sleep(pause)

    async def checkpoint(self) -> None:
        await self._trio.lowlevel.checkpoint_if_cancelled()

    def leave(self) -> None:
        """Trio raises a cancellation again at the next checkpoint; nothing was held back."""
