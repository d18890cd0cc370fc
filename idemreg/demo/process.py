"""A process of the demonstration, driven line by line: it says where it is, and is killed or answered there."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections import deque
from typing import IO, Final

__all__ = ["FAILED", "SILENCE_S", "DemoError", "Process", "complain"]

READ_BYTES: Final = 65_536

# A worker answers within its own wait for a twin, 5 s; a minute of silence from all of them means that something hangs.
SILENCE_S: Final = 60

FAILED: Final = 1


class DemoError(Exception):
    """The demonstration cannot go on: a process ended by itself, fell silent, or answered otherwise than is told."""


def complain(words: str, exit_code: int) -> int:
    """One line or more on stderr, and the exit code."""
    sys.stderr.write(f"idemreg: {words}\n")
    return exit_code


class Process:
    """A program of this package in a process of its own, under our own interpreter."""

    def __init__(self, program: str, *arguments: str) -> None:
        # -P: a file in the current folder that is called like a module of the standard library must not stand in.
        argv = [sys.executable, "-P", "-c", program, *arguments]
        environment = os.environ | {"PYTHONPATH": _with_our_own(os.environ.get("PYTHONPATH"))}
        # A process group of its own: Ctrl-C in the terminal reaches the parent alone, which ends its workers.
        self.process = subprocess.Popen(  # noqa: S603 - our own module, under our own interpreter
            argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, process_group=0
        )
        self._text = b""
        self._said: deque[str] = deque()

    @property
    def output(self) -> IO[bytes]:
        """What it says, to be selected on."""
        assert self.process.stdout is not None  # noqa: S101 - made with a pipe
        return self.process.stdout

    def tell(self, words: str) -> None:
        """One line to it."""
        assert self.process.stdin is not None  # noqa: S101 - made with a pipe
        with contextlib.suppress(BrokenPipeError):  # it ended by itself: `lines` is about to say so
            self.process.stdin.write(f"{words}\n".encode())

    def lines(self) -> list[str]:
        """What it said since. `DemoError` where it ended by itself."""
        data = self.output.read(READ_BYTES)
        if not data:
            msg = f"worker {self.process.pid} ended by itself, with exit code {self.process.wait()}"
            raise DemoError(msg)
        *lines, self._text = (self._text + data).split(b"\n")
        return [line.decode() for line in lines]

    def line(self) -> str:
        """The next line that it says. `DemoError` where it says nothing for long."""
        while not self._said:
            if not select.select([self.output], [], [], SILENCE_S)[0]:
                msg = f"worker {self.process.pid} said nothing for {SILENCE_S} s"
                raise DemoError(msg)
            self._said.extend(self.lines())
        return self._said.popleft()

    def stop(self) -> None:
        """SIGSTOP; comes back once it has stopped."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self.process.kill()
        self.process.wait()
        self._close()

    def dismiss(self) -> None:
        """End it in order: no more deliveries come."""
        assert self.process.stdin is not None  # noqa: S101 - made with a pipe
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(SILENCE_S)

    def _close(self) -> None:
        assert self.process.stdin is not None  # noqa: S101 - made with a pipe
        self.process.stdin.close()
        self.output.close()


def _with_our_own(import_path: str | None) -> str:
    """The import path with this very package first, so that workers run the code of their parent, installed or not."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return os.pathsep.join([os.path.dirname(package), *([import_path] if import_path else [])])
