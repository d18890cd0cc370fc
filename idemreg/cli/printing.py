"""What the functions of `idemreg each` print: away from our JSON, and in whole lines above the bar."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, TextIO

from idemreg.child import Lines
from idemreg.output import STDERR, STDOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from idemreg.child import Sink

__all__ = ["line_by_line", "stdout_apart"]


@contextlib.contextmanager
def stdout_apart() -> Iterator[TextIO]:
    """Give our stdout, while all else that this process writes there, or a program that it starts, goes to stderr."""
    sys.stdout.flush()
    ours = os.fdopen(os.dup(STDOUT), "w", encoding="ascii")  # what JSON is
    os.dup2(STDERR, STDOUT)
    try:
        yield ours
    finally:
        with contextlib.suppress(OSError, ValueError):  # theirs; what of ours cannot be written is told below
            sys.stdout.flush()
        os.dup2(ours.fileno(), STDOUT)
        ours.close()


@contextlib.contextmanager
def line_by_line(sink: Sink) -> Iterator[Callable[[], None]]:
    """What any thread prints goes to the sink in whole lines. Gives what a thread calls when it has printed all."""
    out, err = _Printed(sink, STDOUT, sys.stdout), _Printed(sink, STDERR, sys.stderr)

    def ended() -> None:
        out.end()
        err.end()

    with contextlib.redirect_stdout(out.as_text()), contextlib.redirect_stderr(err.as_text()):
        yield ended


class _Printed(io.RawIOBase):
    """A standard stream in place of ``stream``; each thread has an unfinished line of its own."""

    def __init__(self, sink: Sink, number: int, stream: TextIO) -> None:
        self._sink: Final = sink
        self._number: Final = number
        self._stream: Final = stream
        self._mine: Final = threading.local()

    def as_text(self) -> io.TextIOWrapper:
        """To be printed to."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return io.TextIOWrapper(self, encoding, "backslashreplace", newline="\n", write_through=True)  # type: ignore[arg-type] # it keeps nothing back

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        """Keep it until the line has its end."""
        whole = bytes(data)
        self._lines().write(self._number, whole)
        return len(whole)

    def end(self) -> None:
        """This thread has printed all: what is left is a line."""
        self._lines().close()

    def _lines(self) -> Lines:
        if not hasattr(self._mine, "lines"):
            self._mine.lines = Lines(self._sink)
        lines: Lines = self._mine.lines
        return lines
