"""Named fault points: the places at which a test may kill, stop or disturb the process.

A point is inert unless a test of the same process arms it: no environment variable and no option reaches it. A test
lists `POINTS` and fails on one that no case kills at, so a new point cannot come without its proof.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["POINTS", "arm", "disarm", "kill", "point"]

# In the order in which a process comes past them.
POINTS = (
    "create.lock-file-written",
    "create.journal-set",
    "create.in-transaction",
    "create.committed",
    "migrate.in-transaction",
    "migrate.committed",
    "boot.before-commit",
    "owner.byte-held",
    "turn.taken",
    "claim.decided",
    "claim.in-transaction",
    "sync.wanted",
    "sync.begun",
    "sync.done",
    "sync.published",
    "claim.committed",
    "claim.granted",
    "job.returned",
    "batch.in-transaction",
    "batch.committed",
    "batch.entered",
    "finish.in-transaction",
    "finish.committed",
    "settle.decided",
    "settle.in-transaction",
    "settle.committed",
    "forget.decided",
    "forget.in-transaction",
    "forget.committed",
    "purge.in-transaction",
    "purge.committed",
    "import.in-transaction",
    "import.committed",
    "step.in-transaction",
    "step.saved",
    "serial.in-transaction",
    "serial.reserved",
    "slots.in-transaction",
    "slots.committed",
    "slots.rewound",
    "backup.copied",
    "place.synced",
    "transaction.open",
    "transaction.finished",
    "sweep.in-transaction",
    "sweep.committed",
    "sweep.found",
    "renew.in-transaction",
    "renew.committed",
    "command.spawned",
    "command.ended",
)

_armed: dict[str, Callable[[], None]] = {}


def point(name: str) -> None:
    """Pass a named point: nothing happens unless a test armed it."""
    if _armed and (action := _armed.get(name)) is not None:
        action()


def arm(name: str, action: Callable[[], None]) -> None:
    """From now on ``action`` runs whenever this process passes ``name``."""
    if name not in POINTS:
        msg = f"no fault point {name!r}"
        raise ValueError(msg)
    _armed[name] = action


def disarm() -> None:
    """Make every point inert again."""
    _armed.clear()


def kill() -> None:
    """The usual action: end this process as a power cut would, with no clean-up."""
    import signal  # noqa: PLC0415 - for tests

    os.kill(os.getpid(), signal.SIGKILL)
