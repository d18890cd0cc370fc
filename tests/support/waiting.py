"""To wait for what can only be looked at: the one place where a test naps."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["until"]

NAP_S: Final = 0.001


def until(is_so: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Return once it is so, as what is waited for has no event of its own; fails where that takes too long."""
    end = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < end, "what is waited for does not come"
        threading.Event().wait(NAP_S)
