"""An error from outside, raised at a named point: Ctrl-C, a host's time limit, an alarm."""

from __future__ import annotations

from idemreg import faults

__all__ = ["TimeLimitError", "interrupt_at"]


class TimeLimitError(Exception):
    """What a host raises from a signal handler, as Celery does for its soft time limit."""


def interrupt_at(point: str, error: BaseException) -> None:
    """Raise ``error`` when this process passes the point for the first time."""

    def act() -> None:
        faults.disarm()
        raise error

    faults.arm(point, act)
