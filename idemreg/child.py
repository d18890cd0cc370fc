"""A child process: its output passed through live and kept in part, signals passed on, its end awaited."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import sys
import termios
import threading
from typing import IO, TYPE_CHECKING, Any, Final, Self

from idemreg.output import READ_BYTES, STDERR, STDOUT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

    from idemreg.output import Output

__all__ = ["Signals", "pump", "replay_output", "spawn"]

# Where there is no pidfd (before Linux 5.3), the end of the child is looked for this often.
POLL_S: Final = 0.05

# Those that ask a program to do something. A terminal sends the first three to the whole foreground process group,
# the command included.
_FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH)
_PASSED_ON: Final = (*_FROM_TERMINAL, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def replay_output(pieces: Any, stdout: int, stderr: int) -> None:  # noqa: ANN401 - what was stored
    """Write stored pieces again, each to the stream that it came from."""
    for stream, data in pieces:
        _write(stdout if stream == STDOUT else stderr, data.encode() if isinstance(data, str) else data)


def spawn(argv: Sequence[str], environment: Mapping[str, str], lock_fd: int) -> subprocess.Popen[bytes]:
    """Start the command with our standard input, two pipes, and the descriptor that holds its owner's lock."""
    return subprocess.Popen(  # noqa: S603 - running the caller's command is the purpose
        list(argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(environment), pass_fds=(lock_fd,)
    )


def pump(process: subprocess.Popen[bytes], output: Output, stdout: int, stderr: int) -> int:
    """Pass the output through until the command ends; its return code (negative: the signal that killed it).

    The end is the end of the process, not of its pipes: what it left running in the background may hold them open for
    ever, and write to them for ever. Everything that it wrote itself is in the pipes by then, so what is in them at
    that moment is passed on, and no more.
    """
    assert process.stdout is not None  # noqa: S101 - spawn() made both pipes
    assert process.stderr is not None  # noqa: S101
    exit_descriptor = _exit_descriptor(process.pid)
    with selectors.DefaultSelector() as selector, exit_descriptor as exited, process.stdout, process.stderr:
        for number, pipe, target in ((STDOUT, process.stdout, stdout), (STDERR, process.stderr, stderr)):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, _Stream(number, pipe, target, output))
        if exited is not None:
            selector.register(exited, selectors.EVENT_READ, None)
        while process.poll() is None:
            for key, _ in selector.select(None if exited is not None else POLL_S):
                if key.data is not None and not key.data.pass_on():
                    selector.unregister(key.fileobj)
        for stream in [key.data for key in selector.get_map().values() if key.data is not None]:
            stream.pass_rest_on()
    return process.returncode


class _Stream:
    """One pipe of the command, the descriptor that it is passed on to, and the output that is kept."""

    def __init__(self, number: int, pipe: IO[bytes], target: int, output: Output) -> None:
        self._number = number
        self._fd = pipe.fileno()
        self._target: int | None = target
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
        if self._target is not None and not _write(self._target, data):
            self._target = None  # nobody listens any more; the command goes on, and its output is kept
        return True


def _write(fd: int, data: bytes) -> bool:
    """Write all of it; False where the reader has gone."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            with selectors.DefaultSelector() as selector:
                selector.register(fd, selectors.EVENT_WRITE)
                selector.select()
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _exit_descriptor(pid: int) -> Iterator[int | None]:
    """A descriptor that becomes readable when the process ends; None where the kernel has none."""
    try:
        fd = os.pidfd_open(pid)
    except (OSError, AttributeError):
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


class Signals:
    """While it is entered, signals go to the command. Before `hold`, they end this process as they would anyway.

    From `hold` until the command is known they are kept for it: a handler that raised inside Popen would leave a
    command running that nobody knows of. A signal that the terminal sent has reached the command already, as it is in
    the same process group.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_holding = False
        self._kept: list[int] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _PASSED_ON:
                # An ignored signal (nohup) stays ignored, for the command too.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def hold(self) -> None:
        """From now on no signal ends this process: the command is about to be started."""
        self._is_holding = True

    def pass_to(self, process: subprocess.Popen[bytes]) -> None:
        """From now on signals are the command's, those that were kept included."""
        self._process = process
        while self._kept:
            self._send(self._kept.pop(0))

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._process is None:
            if not self._is_holding:
                self._end(number)
            self._kept.append(number)
        elif not (number in _FROM_TERMINAL and _is_foreground()):
            self._send(number)

    def _send(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    @staticmethod
    def _end(number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number != signal.SIGWINCH:
            raise SystemExit(128 + number)


def _is_foreground() -> bool:
    """Whether this process group is in the foreground of its terminal, which then tells the command as well."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
