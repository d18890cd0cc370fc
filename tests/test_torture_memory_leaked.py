"""What the trial of memory excuses: claims that nothing refers to, and no others."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from idemreg import Status
from tests.torture.injected.leaked import end_leaked, leaked

if TYPE_CHECKING:
    from idemreg import Registry


def test_a_claim_that_somebody_has_is_not_leaked(registry: Registry) -> None:
    """In an attribute, in a dict, or on its way through a generator."""
    claims = [registry.claim(name) for name in "tuv"]
    holder: Any = type("Holder", (), {})()
    holder.claim = claims[0]
    kept = {"u": [claims[1]]}
    walk = (one for one in [claims[2]])
    claims.clear()
    assert leaked() == []
    assert not end_leaked()
    for claim in (holder.claim, kept["u"][0], next(walk)):
        claim.release()


def test_one_that_nobody_has_is_found_and_ended(registry: Registry) -> None:
    """As CPython 3.11 leaves it where there is no memory for a generator; also amid others."""
    kept = {"u": registry.claim("u")}
    lost = [(registry.claim("t"), 1)]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(lost))
    del lost
    assert [claim.task_id for claim in leaked()] == ["t"]
    assert end_leaked()
    task = registry.get("t")
    assert task is not None
    assert (task.status, task.attempt) == (Status.PENDING, 0)
    kept["u"].release()
