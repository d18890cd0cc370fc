"""Who is to ask for what a dead process has left, as the conductor sees it: see `estate`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from tests.torture.killing.chances import task_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from tests.torture.killing.estate import Estate

__all__ = ["Heirs"]

RECORDS_TO_ASK: Final = 200  # so long is an estate kept for them
NOBODY: Final = 0


class Heirs:
    """Knows the process ids of the living."""

    def __init__(self, estate: Estate, seed: int) -> None:
        self.asked = 0  # estates that an heir has asked for first
        self._estate = estate
        self._seed = seed
        self._pids: dict[int, int] = {}
        self._of = NOBODY  # whose estate heirs were called to last
        self._heir = NOBODY
        self._kept_until = 0

    def bear(self, process: int, pid: int) -> None:
        """It lives."""
        self._pids[process] = pid
        self._share()

    def bury(self, process: int, now: int) -> AbstractSet[int]:
        """It is gone. Those who are called to ask for its estate, if that is what it has left."""
        pid = self._pids.pop(process, NOBODY)
        self._share()
        if process != self._estate.leaver:
            return frozenset()
        called = {other for other, number in self._pids.items() if number == pid}
        self._of, self._heir, self._kept_until = process, NOBODY, now + RECORDS_TO_ASK
        if called:
            self._estate.call(pid)
        else:
            self._estate.clear()
        return called

    def _share(self) -> None:
        """Let all know which number most of the living have, where two have any."""
        numbers = Counter(self._pids.values()).most_common(1)
        self._estate.share(next((pid for pid, living in numbers if living > 1), NOBODY))

    def hear(self, record: Sequence[str], now: int) -> None:
        """The estate is kept until one of them has asked for it, or none is heard of."""
        left = self._estate.left
        if left is None or self._estate.leaver != self._of:
            return
        kind, process = record[0], int(record[1])
        if kind in ("call", "item") and record[4] == task_id(self._seed, left):
            self._heir = process if self._estate.is_for(self._pids.get(process, NOBODY)) else self._heir
        has_asked = kind in ("said", "got") and process == self._heir
        if has_asked or now > self._kept_until:
            self.asked += has_asked
            self._estate.clear()
