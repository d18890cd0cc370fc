"""A child of the test's own process."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_child", "in_dying_child"]


def in_child(body: Callable[[], str]) -> str:
    """What ``body`` says in a forked child, which ends without clean-up."""
    return in_dying_child(lambda _: body())


def in_dying_child(body: Callable[[Callable[[str], NoReturn]], str]) -> str:
    """The same of a child that may die in the middle of ``body``, by a call of what that is given: its last words."""
    reader, writer = os.pipe()
    pid = os.fork()

    def die(words: str) -> NoReturn:
        os.write(writer, words.encode())
        os._exit(0)

    if not pid:
        try:
            os.write(writer, body(die).encode())
        except BaseException:  # noqa: BLE001 - it is told to the parent
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said
