"""Many tasks: a query from a caller's words, and all tasks that it means, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from idemreg.clock import seconds
from idemreg.errors import require
from idemreg.model import Status
from idemreg.query import Query

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import timedelta

    from idemreg.model import Task
    from idemreg.store import Readable

__all__ = ["PAGE_TASKS", "every", "query_of"]

PAGE_TASKS: Final = 500
FIRST_TASKS: Final = 100  # many want no more, and the seal of each task that is read is verified
MOST_MS: Final = 2**62  # what an age can be compared with


def query_of(
    *,
    status: Status | Iterable[Status] | None = None,
    prefix: str = "",
    name: str | None = None,
    older_than: float | timedelta | None = None,
    newer_than: float | timedelta | None = None,
    dead: bool = False,
) -> Query:
    """The query for these words; ValueError where a status or a duration is none, or a text no valid Unicode.

    TypeError where what should be a text is none.
    """
    several = (status,) if isinstance(status, Status | str) else status  # a word is none, and no list of its letters
    statuses = None if several is None else frozenset(map(Status, several))
    older, newer = _milliseconds(older_than, "older_than"), _milliseconds(newer_than, "newer_than")
    return Query(statuses, _text(prefix, "prefix"), None if name is None else _text(name, "name"), older, newer, dead)


def _text(text: str, what: str) -> str:
    require(text, str, f"{what} is text")
    try:
        text.encode()
    except UnicodeEncodeError:
        msg = f"{what} is no valid Unicode: {text[:80]!a}"
        raise ValueError(msg) from None
    return text


def _milliseconds(duration: float | timedelta | None, what: str) -> int | None:
    return None if duration is None else min(round(seconds(duration, what=what) * 1_000), MOST_MS)


def every(store: Readable, query: Query) -> Iterator[Task]:
    """All tasks in the order of their task_id. No transaction stays open between two pages, and one is in memory."""
    page = store.page(query, None, FIRST_TASKS)
    yield from page.tasks
    while page.after is not None:
        page = store.page(query, page.after, PAGE_TASKS)
        yield from page.tasks
