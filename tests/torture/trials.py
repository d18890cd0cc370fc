"""All trials, in the order of the table in docs/reliability.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.torture import io_errors, memory

if TYPE_CHECKING:
    from tests.torture.trial import Trial

__all__ = ["TRIALS"]

TRIALS: Final[tuple[Trial, ...]] = (io_errors.TRIAL, memory.TRIAL)
