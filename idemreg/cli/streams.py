"""The standard streams, made fit to be written to: one that is closed, and an encoding that lacks a character."""

from __future__ import annotations

import errno
import io
import os
import sys

__all__ = ["ClosedStdout", "never_fail_on_encoding", "replace_closed"]


class ClosedStdout(io.TextIOWrapper):
    """In the place of a stdout that is closed (``>&-``): what is written there is lost, and who flushes it is told."""

    def __init__(self) -> None:
        super().__init__(os.fdopen(1, "wb", closefd=False), "utf-8")
        self.is_silent = False  # a job may print; Python itself tells nobody that it comes to nothing
        self._has_lost = False

    def write(self, text: str, /) -> int:
        """Lose it."""
        self._has_lost = self._has_lost or bool(text and not self.is_silent)
        return len(text)

    def flush(self) -> None:
        """OSError where anything was lost; once, or Python would say it again at its exit."""
        has_lost, self._has_lost = self._has_lost, False
        if has_lost:
            raise OSError(errno.EBADF, "stdout is closed")


def replace_closed() -> None:
    """Put /dev/null where a standard descriptor is closed.

    The next file opened, which is a registry's, would get its number otherwise, and the command's output with it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    if sys.stdout is None:
        sys.stdout = ClosedStdout()
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def never_fail_on_encoding() -> None:
    """A character that the terminal's encoding lacks is shown as its escape."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
