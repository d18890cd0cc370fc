"""A child process: its output passed through live and kept in part, its end awaited."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import sys
import termios
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

from idemreg.output import READ_BYTES, STDERR, STDOUT
from idemreg.woken import exit_descriptor, woken_by_signals

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from idemreg.output import Output

__all__ = ["Child", "Descriptors", "Lines", "Sink", "pump", "replay_output"]

# Where there is no pidfd (before Linux 5.3), the end of the child is looked for this often.
POLL_S: Final = 0.05

_NO_READER: Final = frozenset({errno.EPIPE, errno.EBADF})
_NAMES: Final = {STDOUT: "stdout", STDERR: "stderr"}


class Sink(Protocol):
    """Where a command's output goes."""

    def write(self, stream: int, data: bytes) -> bool:
        """Write all of it; False where nobody listens to that stream any more."""

    def close(self) -> None:
        """There is no more."""


class Descriptors:
    """As it comes, to one descriptor for each stream.

    A reader that has gone is nothing to tell anybody. What is lost for another reason, to a full disk say, is told once
    a stream, by a line on stderr; the command goes on in either case.
    """

    def __init__(self, stdout: int, stderr: int) -> None:
        self._fds: Final = {STDOUT: stdout, STDERR: stderr}
        self._told: Final[set[int]] = set()

    def write(self, stream: int, data: bytes) -> bool:
        """Write all of it at once."""
        try:
            _write(self._fds[stream], data)
        except OSError as error:
            if error.errno not in _NO_READER and stream not in self._told:
                self._told.add(stream)
                self._tell(f"idemreg: output to {_NAMES[stream]} is lost: {error.strerror}\n".encode())
            return False
        return True

    def _tell(self, line: bytes) -> None:
        with contextlib.suppress(OSError):
            _write(self._fds[STDERR], line)

    def close(self) -> None:
        """The descriptors are the caller's."""


class Lines:
    """Line by line, so that the lines of several commands do not mix where each `write` of the sink is whole."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._begun: Final = {STDOUT: b"", STDERR: b""}

    def write(self, stream: int, data: bytes) -> bool:
        """Write what is whole; keep what is not. A line of more than 64 KiB goes in pieces."""
        data = self._begun[stream] + data
        end = data.rfind(b"\n") + 1
        if not end and len(data) >= READ_BYTES:
            end = len(data)
        self._begun[stream] = data[end:]
        return not end or self._sink.write(stream, data[:end])

    def close(self) -> None:
        """Write what is left, as a line."""
        for stream, rest in self._begun.items():
            if rest:
                self._sink.write(stream, rest + b"\n")
        self._begun.update({STDOUT: b"", STDERR: b""})


def replay_output(pieces: Any, sink: Sink) -> None:  # noqa: ANN401 - what was stored
    """Write stored pieces again, each to the stream that it came from."""
    for stream, data in pieces:
        sink.write(stream, data.encode() if isinstance(data, str) else data)


class Child:
    """A child process whose end is never mistaken.

    `Popen` takes a status that it cannot get for 0, and a failure would be recorded as a success. Others may have got
    it: a handler of SIGCHLD that waits for every child, or the kernel, which throws it away where SIGCHLD is ignored.
    So it is looked at before it is taken, and taken in one place: `Popen.send_signal` takes it as well.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process: Final = process
        self._found: os.waitid_result | None = None
        self._is_taken = False
        self._senders: Final[dict[object, bool]] = {}
        self.pid: Final = process.pid

    @property
    def pipes(self) -> dict[int, IO[bytes]]:
        """What it writes and we read, by its stream: of `starting.spawn` both."""
        pipes = {STDOUT: self._process.stdout, STDERR: self._process.stderr}
        return {stream: pipe for stream, pipe in pipes.items() if pipe is not None}

    def close_pipes(self) -> None:
        """Read no more of it: what it writes from now on fails, and cannot block it."""
        for pipe in self.pipes.values():
            pipe.close()

    def has_ended(self) -> bool:
        """Whether it has; its status stays where it is."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:
            return True

    def wait(self) -> int | None:
        """Wait for its end: its return code (negative: the signal that killed it), or None where that is lost.

        It can be called again where it was interrupted.
        """
        with contextlib.suppress(ChildProcessError):
            self._found = self._found or os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        # With its status its number goes, so not under somebody who is about to send a signal to that. He looks whether
        # it is taken behind his entry, and here it is the other way round: one of both sees the other, without a lock
        # that a handler of signals could not take.
        self._is_taken = True
        while self._senders.copy():
            os.sched_yield()
        self._process.wait()
        if self._found is None:
            return None
        return self._found.si_status if self._found.si_code == os.CLD_EXITED else -self._found.si_status

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing where it has ended, for its number may be another's by now.

        From a handler of signals, or from another thread than that which waits for it.
        """
        sender = object()
        self._senders[sender] = True
        try:
            if not self._is_taken and not self.has_ended():
                with contextlib.suppress(ProcessLookupError):  # who waits for every child has just taken it
                    os.kill(self.pid, number)
        finally:
            del self._senders[sender]


def pump(child: Child, output: Output, sink: Sink | None, chore: Callable[[], float | None]) -> None:
    """Pass the output through until the command ends; without a ``sink`` it is only kept.

    ``chore`` is done beside it, at once and then again, after as many seconds as it says (None: never).

    The end is the end of the process, not of its pipes: what it left running in the background may hold them open for
    ever, and write to them for ever. Everything that it wrote itself is in the pipes by then, so what is in them at
    that moment is passed on, and no more.
    """
    with _reading(child), selectors.DefaultSelector() as selector, exit_descriptor(child.pid) as exited:
        for number, pipe in child.pipes.items():
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, _Stream(number, pipe, sink, output))
        if exited is not None:
            selector.register(exited, selectors.EVENT_READ, None)
        with woken_by_signals(selector):
            while not child.has_ended():
                pause = chore()
                if exited is None:
                    pause = POLL_S if pause is None else min(pause, POLL_S)
                for key, _ in selector.select(pause):
                    if key.data is not None and not key.data.pass_on():
                        selector.unregister(key.fileobj)
        for stream in [key.data for key in selector.get_map().values() if key.data is not None]:
            stream.pass_rest_on()


@contextlib.contextmanager
def _reading(child: Child) -> Iterator[None]:
    try:
        yield
    finally:
        child.close_pipes()


class _Stream:
    """One pipe of the command, where it is passed on to, and the output that is kept."""

    def __init__(self, number: int, pipe: IO[bytes], sink: Sink | None, output: Output) -> None:
        self._number = number
        self._fd = pipe.fileno()
        self._sink = sink
        self._output = output
        self.passed = 0  # bytes

    def pass_rest_on(self) -> None:
        """Pass on what is in the pipe at this moment."""
        left = int.from_bytes(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)), sys.byteorder)
        while left > 0:
            before = self.passed
            if not self.pass_on(left):
                return
            left -= self.passed - before

    def pass_on(self, most: int = READ_BYTES) -> bool:
        """Pass on what is there now; False where nothing is, or nothing will be."""
        try:
            data = os.read(self._fd, min(most, READ_BYTES))
        except BlockingIOError:
            return False
        if not data:
            return False
        self.passed += len(data)
        self._output.add(self._number, data)
        if self._sink is not None and not self._sink.write(self._number, data):
            self._sink = None  # nobody listens any more; the command goes on, and its output is kept
        return True


def _write(fd: int, data: bytes) -> None:
    """Write all of it, however slow the reader is."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            with selectors.DefaultSelector() as selector:
                selector.register(fd, selectors.EVENT_WRITE)
                selector.select()
