"""A bar on stderr for what takes long, where that is a terminal; nothing elsewhere."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["bar"]


@contextlib.contextmanager
def bar(label: str, *, hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Give a function that is told how much is done of how much; the bar appears with its first call."""
    shown: list[Any] = []

    def show(done: int, total: int) -> None:
        if hidden or not sys.stderr.isatty():
            return
        if not shown:
            shown.append(click.progressbar(length=total, label=label, file=sys.stderr, width=0).__enter__())
        shown[0].length = total
        shown[0].update(max(done - shown[0].pos, 0))

    try:
        yield show
    finally:
        for one in shown:
            one.__exit__(None, None, None)
