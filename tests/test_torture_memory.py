"""The trial without memory finds nothing in the shipped code.

What judges it is that of the trial of I/O errors. That it finds its mutants is tried by
``make torture ARGS="--power --only out-of-memory"``.
"""

from __future__ import annotations

import pytest

from tests.torture.memory import TRIAL

pytestmark = pytest.mark.usefixtures("compiler")


def test_nothing_is_found() -> None:
    """A part of the trial ends without a violation, and as many allocations have failed as were to."""
    tally = TRIAL.run(1, 40)
    assert tally.violations == []
    assert len(tally.distinct) == 40
