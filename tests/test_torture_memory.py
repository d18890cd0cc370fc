"""The trial without memory finds nothing in the shipped code.

What judges it is that of the trial of I/O errors. That it finds its mutants is tried by
``make torture ARGS="--power --only out-of-memory"``.
"""

from __future__ import annotations

import errno
import json

import pytest

from tests.torture.injected import shim
from tests.torture.injected.commands import CASES
from tests.torture.injected.parts import part
from tests.torture.memory import TRIAL

pytestmark = pytest.mark.usefixtures("compiler")


def test_nothing_is_found() -> None:
    """A part of the trial ends without a violation, and as many allocations have failed as were to."""
    tally = TRIAL.run(1, 40)
    assert tally.violations == []
    assert len(tally.distinct) == 40


def test_only_what_is_not_ours_keeps_its_memory() -> None:
    """Python's is taken from all calls but those that run an event loop or click; of SQLite's there is no such."""
    mixed = {name for case in CASES if case.is_mixed for name in case.covers}
    assert {name.partition(".")[0].partition(" ")[0] for name in mixed} == {
        *("AsyncRegistry", "AsyncClaim", "AsyncTransaction", "idemreg"),
    }


def test_what_was_found_stays_mended() -> None:
    """A file that is looked at as a whole is sound, whichever allocation of SQLite's is the first to fail."""
    found = [["open", "killed", False, "sqlite", errno.ENOMEM, shim.LASTING, number] for number in range(830, 860)]
    tally = part("memory", 2, 0, json.dumps(found))
    assert tally.violations == []
    assert sum(tally.events.values()) > 0
