"""Errors that have no caller to raise to: of callbacks, and of threads that renew leases or keep the -wal short."""

from __future__ import annotations

import contextlib
import threading

__all__ = ["Untold", "tell_hook"]


def tell_hook(error: BaseException) -> None:
    """Give the error to `threading.excepthook`, where programs look for errors of threads; never raises one itself."""
    with contextlib.suppress(Exception, SystemExit):  # of the program's own hook: the thread goes on
        threading.excepthook(
            threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
        )


class Untold:
    """The errors of one thread: what comes again and again, of a disk that is full, is told once."""

    def __init__(self) -> None:
        self._last = ""

    def tell(self, error: BaseException) -> None:
        """Tell of it, unless the last was the same."""
        text = type(error).__name__
        with contextlib.suppress(Exception, SystemExit):  # of an error of the program's own
            text = repr(error)
        if text != self._last:
            self._last = text
            tell_hook(error)

    def forget(self) -> None:
        """It went well meanwhile: the next error is news, whatever it is."""
        self._last = ""
