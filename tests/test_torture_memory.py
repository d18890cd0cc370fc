"""The trial without memory finds nothing, and finds what is broken on purpose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mutants import CATALOGUE, mutated
from tests.torture.injected import shim
from tests.torture.injected.parts import part
from tests.torture.memory import TRIAL


@pytest.fixture(autouse=True, scope="module")
def compiler() -> None:
    """Without a C compiler nothing can be made to fail, which only a machine of a developer's may lack."""
    try:
        shim.library()
    except shim.NoCompilerError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def test_nothing_is_found() -> None:
    """A part of the trial ends without a violation, and as many allocations have failed as were to."""
    tally = TRIAL.run(1, 60)
    assert tally.violations == []
    assert len(tally.distinct) == 60


def test_what_is_broken_is_found() -> None:
    """A job that has returned must not run again, however little memory there is."""
    with mutated(CATALOGUE["returned-job-fails"]) as folder:
        assert part("memory", 3, 60, "run", Path(folder)).violations
