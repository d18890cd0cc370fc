"""The trial without memory finds nothing in the shipped code.

What judges it is that of the trial of I/O errors. That it finds its mutants is tried by
``make torture ARGS="--power --only out-of-memory"``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.torture.injected import shim
from tests.torture.injected.commands import CASES
from tests.torture.injected.judge import End, _error
from tests.torture.injected.parts import part
from tests.torture.memory import TRIAL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def test_what_cpython_says_of_no_memory_is_no_error_of_ours(tmp_path: Path) -> None:
    """Whichever allocation fails as an error leaves a generator, with none of our code; and nothing else is excused."""
    testing = pytest.importorskip("_testcapi", reason="this Python was built without the module of its own tests")

    @contextlib.contextmanager
    def opened(path: str) -> Iterator[int]:
        descriptors: list[int] = []
        try:
            descriptors.extend(map(os.open, (path,), (os.O_CREAT | os.O_EXCL,)))
            yield descriptors[0]
        finally:
            descriptors.clear()

    def told(number: int) -> BaseException:
        try:
            testing.set_nomemory(number, number + 1)
            with opened(str(tmp_path)):
                pass
        except BaseException as error:  # noqa: BLE001 - whatever it is
            return error
        finally:
            testing.remove_mem_hooks()
        raise AssertionError

    errors = [error for error in map(told, range(100)) if not isinstance(error, FileExistsError)]
    assert any(isinstance(error, MemoryError) for error in errors)
    for error in [*errors, SystemError("bad argument to internal function")]:
        end = End(type(error), str(error), None, is_fault_met=True, wal_hit=False, is_whole=True)
        assert bool([*_error(end, is_memory=True)]) == (error not in errors)
        assert [*_error(end, is_memory=False)]


def test_what_was_found_stays_mended() -> None:
    """A file that is looked at as a whole is sound, whichever allocation of SQLite's is the first to fail."""
    found = [["open", "killed", False, "sqlite", errno.ENOMEM, shim.LASTING, number] for number in range(830, 860)]
    tally = part("memory", 2, 0, json.dumps(found))
    assert tally.violations == []
    assert sum(tally.events.values()) > 0
