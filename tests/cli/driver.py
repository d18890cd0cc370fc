"""The command line in this process, in a process of its own, and on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from idemreg.cli import main

if TYPE_CHECKING:
    from click.testing import Result

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 60.0  # only for a test that would hang
NOT_INHERITED = frozenset({"COLUMNS", "PYTHONUNBUFFERED", "NO_COLOR", "TERM", "XDG_STATE_HOME", "IDEMREG_DEBUG"})


class Cli:
    """`idemreg` on one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, *words: str, **environment: str) -> Result:
        """In this process. What it prints is caught; a traceback of anything but SystemExit would be in the result."""
        return CliRunner().invoke(main, list(words), env=self._variables(environment))

    def json(self, *words: str) -> Any:
        """The one object that a command prints with --json."""
        result = self(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def process(self, *words: str, script: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """In a process of its own; ``script`` is a line of shell in which ``"$@"`` stands for it."""
        argv = [sys.executable, "-m", "idemreg", *words]
        if script:
            argv = ["/bin/sh", "-c", script, "sh", *argv]
        return subprocess.run(
            argv,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def terminal(
        self, columns: int, *words: str, typed: str = "", then: tuple[str, str] | None = None, **environment: str
    ) -> str:
        """On a pseudo-terminal of so many columns, where somebody has typed this; what appears there.

        ``then``: once this has appeared on a line of its own, that is typed.
        """
        screen, line = pty.openpty()
        try:
            fcntl.ioctl(line, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            process = subprocess.Popen(
                [sys.executable, "-m", "idemreg", *words],
                env=self.environment(TERM="xterm", **environment),
                stdin=line,
                stdout=line,
                stderr=line,
                preexec_fn=None if then is None else _own_terminal,  # noqa: PLW1509 - no thread runs here
            )
        finally:
            os.close(line)
        output = b""
        os.write(screen, typed.encode())
        try:
            while data := os.read(screen, 65_536):
                output += data
                # Behind what takes a progress away, if one was shown by then.
                lines = [line.rpartition(b"\r\x1b[K")[2] for line in output.split(b"\r\n")[:-1]]
                if then is not None and then[0].encode() in lines:
                    os.write(screen, then[1].encode())
                    then = None
        except OSError:  # EIO: the last process has closed the terminal
            pass
        finally:
            os.close(screen)
        process.wait(PATIENCE_S)
        return output.decode().replace("\r\n", "\n")

    def environment(self, **environment: str) -> dict[str, str]:
        """Ours, without what would change the output."""
        ours = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        wanted = self._variables(environment)
        return {**ours, "PYTHONPATH": str(ROOT), **{name: value for name, value in wanted.items() if value is not None}}

    def _variables(self, environment: dict[str, str]) -> dict[str, str | None]:
        return {**dict.fromkeys(NOT_INHERITED), "IDEMREG_DB": str(self.path), "TZ": "UTC", **environment}


def _own_terminal() -> None:
    """In the child: a session whose terminal this is, so that Ctrl-C is a signal."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
