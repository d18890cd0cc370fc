"""How far `idemreg each` is: a bar on the terminal, lines that want a look, the account at the end."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING, Final, TextIO

from idemreg.child import Descriptors
from idemreg.cli.context import settings
from idemreg.cli.ending import SAID
from idemreg.cli.render import write_json
from idemreg.cli.text import escape
from idemreg.counted import counted

if TYPE_CHECKING:
    from idemreg.clock import Clock
    from idemreg.each import End

__all__ = ["Progress", "progress_text"]

REDRAW_S: Final = 0.1
SHOWN_PROBLEMS: Final = 20
WIDEST_BAR: Final = 30
NARROWEST_BAR: Final = 5
CLEAR: Final = "\r\x1b[K"

# A rate is told for the shortest of these in which at least one line ends.
_RATES: Final = ((1, "s"), (60, "min"), (3_600, "h"))

# The exit code of the worst outcome, the worst first.
EXIT_CODES: Final = (("unknown", 76), ("mismatch", 65), ("refused", 65), ("failed", 1), ("running", 75))
WORDS: Final = ("done", "replayed", "released", "failed", "refused", "mismatch", "running", "unknown")


class Progress:
    """Counts, draws, and takes the output of the commands: whole pieces, above the bar. ``json``: where that goes."""

    def __init__(self, clock: Clock, json: TextIO) -> None:
        self._clock = clock
        self._is_json = settings().json
        self._json = json
        self._stderr = sys.stderr  # a function's own is another meanwhile
        self._out = Descriptors(2 if self._is_json else 1, 2)
        self._counts: dict[str, int] = dict.fromkeys(WORDS, 0)
        self._began = clock.monotonic()
        self._drawn_at: float | None = None
        self._size = _size_of_input()
        self._at = 0  # bytes of the input, up to the end of the last line of those that have ended
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
        self._at = max(self._at, end.line.end)
        if self._is_json:
            facts = {"line": end.line.number, "task_id": end.task_id, "outcome": end.kind.value}
            write_json({**facts, "exit_code": end.exit_code, "error": end.error}, to=self._json)
            self._json.flush()  # whoever reads it may act on each line
        elif end.error is not None or end.kind.value not in ("done", "replayed", "released"):
            self._tell_problem(end)
        self.look_up()

    def look_up(self) -> None:
        """Time passes, whether lines end or not."""
        if self.draws:
            self._draw()

    def tell_ending(self) -> None:
        """Say that it goes on behind a signal until what has begun has ended."""
        self._say(SAID.decode().rstrip())

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
            self._stderr.write(f"{text}\n")

    def _clear(self) -> None:
        if self._is_drawn:
            self._is_drawn = False
            self._stderr.write(CLEAR)
            self._stderr.flush()

    def _draw(self) -> None:
        now = self._clock.monotonic()
        if self._drawn_at is not None and now - self._drawn_at < REDRAW_S:
            return
        with self._lock, contextlib.suppress(OSError):
            columns = os.get_terminal_size(self._stderr.fileno()).columns
            self._drawn_at, self._is_drawn = now, True
            share = min(self._at / self._size, 1) if self._size else None
            ended = sum(self._counts.values())
            self._stderr.write(CLEAR + progress_text(ended, now - self._began, share, max(columns - 1, 10)))
            self._stderr.flush()

    # --- the account --------------------------------------------------------------------------------------------

    def finish(self, signal: int | None, *, left: int) -> None:
        """The account. ``left``: lines in whose middle nobody waits any more."""
        counts = {word: number for word, number in self._counts.items() if number}
        total = sum(counts.values())
        if self._is_json:
            write_json({"lines": total, **self._counts, "left": left, "interrupted": signal is not None}, to=self._json)
            return
        what = ", ".join(f"{number:,} {word}" for word, number in counts.items()) or "nothing to do"
        head = "interrupted: " if signal is not None else ""
        tail = f"; {left:,} left in the middle" if left else ""
        self._say(f"idemreg: {head}{counted(total, 'line')}: {what}{tail}")


def progress_text(ended: int, passed_s: float, share: float | None, columns: int) -> str:
    """Lines and their rate; where the share of the input is known, that, the remaining time, and a bar if it fits."""
    text = counted(ended, "line") + _rate(ended, passed_s)
    if share is None:
        return text[:columns]
    left = f" {_minutes(passed_s / share - passed_s)} left" if share else ""
    text = f"{int(share * 100):3}% {text}{left}"
    room = min(columns - len(text) - 3, WIDEST_BAR)
    if room < NARROWEST_BAR:
        return text[:columns]
    return f"[{'#' * int(share * room):-<{room}}] {text}"


def _rate(ended: int, passed_s: float) -> str:
    """Nothing before the first end."""
    for unit_s, unit in _RATES:
        if (rate := ended * unit_s / max(passed_s, 1e-3)) >= 1:
            return f" {rate:,.0f}/{unit}"
    return ""


def _size_of_input() -> int:
    """How much of stdin is still to be read, where it is a file; 0 where nobody can know."""
    try:
        found = os.fstat(0)
        return max(found.st_size - os.lseek(0, 0, os.SEEK_CUR), 0) if stat.S_ISREG(found.st_mode) else 0
    except OSError:
        return 0


def _minutes(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
