"""How far `idemreg each` is: a bar on the terminal, lines that want a look, the account at the end."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING, Final

from idemreg.child import Descriptors
from idemreg.cli.context import settings
from idemreg.cli.render import write_json
from idemreg.cli.text import escape

if TYPE_CHECKING:
    from idemreg.clock import Clock
    from idemreg.each import End

__all__ = ["Progress"]

REDRAW_S: Final = 0.1
SHOWN_PROBLEMS: Final = 20
WIDEST_BAR: Final = 30
NARROWEST_BAR: Final = 5
CLEAR: Final = "\r\x1b[K"

# The exit code of the worst outcome, the worst first.
EXIT_CODES: Final = (("unknown", 76), ("mismatch", 65), ("refused", 65), ("failed", 1), ("running", 75))
WORDS: Final = ("done", "replayed", "released", "failed", "refused", "mismatch", "running", "unknown")


class Progress:
    """Counts, draws, and takes the output of the commands: whole pieces, above the bar."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._is_json = settings().json
        self._out = Descriptors(2 if self._is_json else 1, 2)
        self._counts: dict[str, int] = dict.fromkeys(WORDS, 0)
        self._began = clock.monotonic()
        self._drawn_at: float | None = None
        self._size = _size_of_input()
        self._read = 0
        self._told = 0
        self.draws: Final = sys.stderr.isatty() and not self._is_json
        self._is_drawn = False
        self._lock: Final = threading.Lock()  # of the main thread and the workers; no handler takes it

    @property
    def exit_code(self) -> int:
        """By the worst outcome."""
        return next((code for word, code in EXIT_CODES if self._counts[word]), 0)

    # --- the output of the commands -----------------------------------------------------------------------------

    def write(self, stream: int, data: bytes) -> bool:
        """Write all of it, and nothing of anybody else's in between; False where nobody listens any more."""
        with self._lock:
            self._clear()
            return self._out.write(stream, data)

    def close(self) -> None:
        """One command has no more; the others may."""

    # --- how far it is ------------------------------------------------------------------------------------------

    def add(self, end: End) -> None:
        """A line has ended."""
        self._counts[end.kind.value] += 1
        self._read = max(self._read, end.line.read)
        if self._is_json:
            facts = {"line": end.line.number, "task_id": end.task_id, "outcome": end.kind.value}
            write_json({**facts, "exit_code": end.exit_code, "error": end.error})
            sys.stdout.flush()  # whoever reads it may act on each line
        elif end.kind.value not in ("done", "replayed", "released"):
            self._tell_problem(end)
        if self.draws:
            self._draw()

    def _tell_problem(self, end: End) -> None:
        self._told += 1
        if self._told > SHOWN_PROBLEMS:
            return
        name = "" if end.task_id is None else f" ({escape(end.task_id)})"
        why = end.error or (f"exit code {end.exit_code}" if end.exit_code is not None else "")
        self._say(f"idemreg: line {end.line.number}{name} {end.kind.value}: {escape(why)}")
        if self._told == SHOWN_PROBLEMS:
            self._say("idemreg: further lines of this kind are counted, and not shown")

    def _say(self, text: str) -> None:
        # A full disk behind stderr must not keep the work from being done.
        with self._lock, contextlib.suppress(OSError):
            self._clear()
            sys.stderr.write(f"{text}\n")

    def _clear(self) -> None:
        if self._is_drawn:
            self._is_drawn = False
            sys.stderr.write(CLEAR)
            sys.stderr.flush()

    def _draw(self) -> None:
        now = self._clock.monotonic()
        if self._drawn_at is not None and now - self._drawn_at < REDRAW_S:
            return
        with self._lock, contextlib.suppress(OSError):
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            self._drawn_at, self._is_drawn = now, True
            sys.stderr.write(CLEAR + self._bar(now - self._began, max(columns - 1, 10)))
            sys.stderr.flush()

    def _bar(self, passed: float, columns: int) -> str:
        """Lines and rate; where the size of the input is known, the share, the remaining time, and a bar if it fits."""
        ended = sum(self._counts.values())
        text = f"{ended:,} lines {ended / max(passed, 1e-3):,.0f}/s"
        if not (self._size and self._read):
            return text[:columns]
        share = min(self._read / self._size, 1)
        text = f"{share:4.0%} {text} {_minutes(passed / share - passed)} left"
        room = min(columns - len(text) - 3, WIDEST_BAR)
        if room < NARROWEST_BAR:
            return text[:columns]
        return f"[{'#' * int(share * room):-<{room}}] {text}"

    # --- the account --------------------------------------------------------------------------------------------

    def finish(self, signal: int | None, *, left: int) -> None:
        """The account. ``left``: lines in whose middle nobody waits any more."""
        counts = {word: number for word, number in self._counts.items() if number}
        total = sum(counts.values())
        if self._is_json:
            write_json({"lines": total, **self._counts, "left": left, "interrupted": signal is not None})
            return
        what = ", ".join(f"{number:,} {word}" for word, number in counts.items()) or "nothing to do"
        head = "interrupted: " if signal is not None else ""
        tail = f"; {left:,} left in the middle" if left else ""
        self._say(f"idemreg: {head}{total:,} {'line' if total == 1 else 'lines'}: {what}{tail}")


def _size_of_input() -> int:
    """The size of stdin where it is a file; 0 where nobody can know."""
    try:
        found = os.fstat(0)
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _minutes(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
