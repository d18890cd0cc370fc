"""For your own tests: a registry that is thrown away, and a clock set by hand.

    @pytest.fixture
    def registry():
        with throw_away_registry() as registry:
            yield registry

Real SQLite, real locks, real claims: only the folder is temporary. Jobs decorated at import keep their own registry, so
give your code its registry (a parameter, a factory) where you want to test it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from typing import TYPE_CHECKING, Final

from idemreg.clock import Clock, seconds
from idemreg.heartbeat import heart
from idemreg.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from idemreg.clockcheck.readings import Source

__all__ = ["ManualClock", "beat", "throw_away_registry"]

# 2026-11-23 03:00 UTC: the hour at which jobs get lost.
_WALL_US: Final = 1_795_402_800_000_000
_BOOT_MS: Final = 3_600_000


class ManualClock(Clock):
    """Time that passes only when a test says so, or when somebody sleeps: nobody sits out a wait.

    Each process has its own: what one of them sleeps through, another's clock is behind, and the clock check says so.
    ``wall_us``, ``boot_ms`` and ``monotonic`` are what `Clock` calls so; ``boot_id`` is this machine's unless given.
    `Registry.check_clock` asks none of the machine's sources about it.
    Leases by it are renewed by `beat` alone.
    """

    is_real = False
    sources: Sequence[Source] | None = ()

    def __init__(
        self, *, wall_us: int = _WALL_US, boot_ms: int = _BOOT_MS, monotonic: float = 0.0, boot_id: str | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._wall_us = wall_us
        self._boot_ms = boot_ms
        self._monotonic = monotonic
        self._boot_id = super().boot_id() if boot_id is None else boot_id

    def advance(self, duration: float | timedelta) -> None:
        """Let time pass on all three clocks alike."""
        passed = seconds(duration, what="advance")
        with self._lock:
            self._wall_us += round(passed * 1_000_000)
            self._boot_ms += round(passed * 1_000)
            self._monotonic += passed

    def set(
        self,
        *,
        wall_us: int | None = None,
        boot_ms: int | None = None,
        monotonic: float | None = None,
        boot_id: str | None = None,
    ) -> None:
        """Make one clock jump and leave the others. A new ``boot_id`` is a restart to what opens the file after it."""
        with self._lock:
            self._wall_us = self._wall_us if wall_us is None else wall_us
            self._boot_ms = self._boot_ms if boot_ms is None else boot_ms
            self._monotonic = self._monotonic if monotonic is None else monotonic
            self._boot_id = self._boot_id if boot_id is None else boot_id

    def wall_us(self) -> int:
        """Microseconds since the epoch, as set."""
        return self._wall_us

    def boot_ms(self) -> int:
        """Milliseconds since boot, as set."""
        return self._boot_ms

    def monotonic(self) -> float:
        """Seconds for deadlines, as set."""
        return self._monotonic

    def boot_id(self) -> str:
        """The boot, as set."""
        return self._boot_id

    def sleep(self, pause: float) -> None:
        """Pass ``pause`` seconds at once, and let other threads run."""
        self.advance(pause)
        super().sleep(0)


def beat() -> None:
    """Renew the leases that are due by now, and tell of those that are lost, as a thread does where time is real."""
    heart.step()


@contextlib.contextmanager
def throw_away_registry(*, clock: Clock | None = None) -> Iterator[Registry]:
    """A registry in a temporary folder, closed and removed at the end. Nothing of it need survive a power cut."""
    with tempfile.TemporaryDirectory(prefix="idemreg-") as folder:
        registry = Registry(os.path.join(folder, "jobs.db"), durability="normal", clock=clock)
        try:
            yield registry
        finally:
            registry.close()
