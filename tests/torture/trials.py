"""All trials, in the order of the table in docs/reliability.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.torture import (
    clock,
    corruption,
    hostile,
    io_errors,
    kills,
    memory,
    namespaces,
    powercut,
    resources,
    simulation,
)

if TYPE_CHECKING:
    from tests.torture.trial import Trial

__all__ = ["TRIALS"]

TRIALS: Final[tuple[Trial, ...]] = (
    simulation.TRIAL,
    powercut.TRIAL,
    io_errors.TRIAL,
    memory.TRIAL,
    kills.TRIAL,
    corruption.TRIAL,
    resources.TRIAL,
    clock.TRIAL,
    namespaces.TRIAL,
    hostile.TRIAL,
)
