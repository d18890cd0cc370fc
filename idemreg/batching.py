"""Messages of a source, plain or asynchronous, gathered into batches."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator

__all__ = ["BATCH_LIMIT", "abatches", "batches"]

M = TypeVar("M")

# Tasks of one batch. A commit of more holds the write lock for a tenth of a second and longer.
BATCH_LIMIT: Final = 10_000


class _Batching(Generic[M]):
    """Messages into lists of at most ``size``; a None ends a list early."""

    def __init__(self, size: int) -> None:
        if type(size) is not int or not 1 <= size <= BATCH_LIMIT:
            msg = f"batch is a whole number from 1 to {BATCH_LIMIT:,}, not {size!r}"
            raise ValueError(msg)
        self._size = size
        self._batch: list[M] = []

    def add(self, message: M | None) -> list[M]:
        """The list that is full now; empty as long as none is."""
        if message is not None:
            self._batch.append(message)
        return self.take() if message is None or len(self._batch) == self._size else []

    def take(self) -> list[M]:
        """What is there."""
        batch, self._batch = self._batch, []
        return batch


def batches(messages: Iterable[M | None], size: int) -> Iterator[list[M]]:
    """The messages in lists of at most ``size``; a None ends a list early, for a source that has none at the moment."""
    batching = _Batching[M](size)
    for message in messages:
        if batch := batching.add(message):
            yield batch
    if batch := batching.take():
        yield batch


async def abatches(messages: AsyncIterable[M | None] | Iterable[M | None], size: int) -> AsyncGenerator[list[M], None]:
    """The same of an asynchronous source, or of a plain one. An asynchronous generator is closed at the end of it.

    Nobody else would, before the garbage collector comes: ``async for`` leaves it open where it is left early.
    """
    if not hasattr(messages, "__aiter__"):
        for batch in batches(messages, size):
            yield batch
        return
    batching = _Batching[M](size)
    async with contextlib.AsyncExitStack() as stack:
        if hasattr(messages, "aclose"):
            stack.push_async_callback(messages.aclose)
        async for message in cast("AsyncIterable[M | None]", messages):
            if batch := batching.add(message):
                yield batch
        if batch := batching.take():
            yield batch
