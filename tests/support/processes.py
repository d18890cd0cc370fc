"""Real child processes, driven line by line: a test waits for what a process says, never for time to pass."""

from __future__ import annotations

import os
import select
import signal  # noqa: TC003 - the name is part of the signature below
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 60.0  # only for a test that would hang


class Script:
    """A Python program in a process of its own. It talks by lines: it prints what it reached, and reads when to go on.

    In the program, ``say("word")`` prints a line at once and ``wait()`` blocks until the test calls `go`.
    """

    PRELUDE = textwrap.dedent("""
        import os, signal, sys
        def say(*words): print(*words, flush=True)
        def wait(): return sys.stdin.readline().strip()
    """)

    def __init__(self, source: str, *args: object) -> None:
        self.process = subprocess.Popen(
            [*self.command(), "-c", self.PRELUDE + textwrap.dedent(source), *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=self.environment() | {"PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        self._buffer = b""

    def command(self) -> list[str]:
        """What a Python is called by."""
        return [sys.executable]

    def environment(self) -> dict[str, str]:
        """What the program finds in its environment."""
        return dict(os.environ)

    def line(self) -> str:
        """The next line that the program says; fails where it ends or stays silent instead."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([fd], [], [], PATIENCE_S)
            assert ready, "the process said nothing"
            data = os.read(fd, 65_536)
            assert data, f"the process ended with {self.process.wait()}"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode().strip()

    def expect(self, words: str) -> None:
        """Wait for exactly this line."""
        assert (line := self.line()) == words, line

    def go(self, word: str = "go") -> None:
        """Let the program's `wait` return ``word``."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for its end; the return code."""
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
