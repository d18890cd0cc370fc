"""What event loops have left to other threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from idemreg.later import later
from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from idemreg.offload import Offload


def left_is_done(offload: Offload | None = None) -> None:
    """What was left to the threads of a registry, and then what finalisers left, is done."""
    if offload is not None:
        offload.pool().shutdown(wait=True)
        offload.close()
    is_done = threading.Event()
    later.ready()
    later.do(is_done.set)
    assert is_done.wait(PATIENCE_S)
