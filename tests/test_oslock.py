"""The locks of the operating system: where their descriptors are put."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import oslock
from idemreg.oslock import HIGH_DESCRIPTOR
from tests.support.processes import Script

if TYPE_CHECKING:
    from pathlib import Path

OPENER = """
import resource
from idemreg import oslock
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
open(sys.argv[1], "w").close()
for _ in range(40): say(oslock.open_high(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
"""


@pytest.mark.parametrize(("limit", "lowest"), [(1_000, HIGH_DESCRIPTOR), (256, 100), (64, 5)])
def test_many_commands_have_a_descriptor_each(tmp_path: Path, limit: int, lowest: int) -> None:
    """Also under a small limit forty find a number, and the first of them one that scripts hardly use."""
    with Script(OPENER, tmp_path / "file", limit) as script:
        numbers = [int(script.line()) for _ in range(40)]
        assert script.end() == 0
    assert len(set(numbers)) == 40
    assert numbers[0] >= lowest


def test_a_self_test_without_memory_leaves_nothing_open(tmp_path: Path) -> None:
    """Whichever of its allocations fails, what it has opened is closed."""
    testcapi: Any = pytest.importorskip("_testcapi", reason="this Python cannot be made to run out of memory")
    path = str(tmp_path / "file")
    open(path, "w").close()
    before = len(os.listdir("/proc/self/fd"))
    failed, traced_by = 0, sys.gettrace()
    sys.settrace(None)  # coverage would need memory as well
    for number in range(1, 200):
        try:
            testcapi.set_nomemory(number, number + 1)
            oslock.self_test(path, 7)
        except MemoryError:
            failed += 1
        finally:
            testcapi.remove_mem_hooks()
    sys.settrace(traced_by)
    assert failed > 10
    assert len(os.listdir("/proc/self/fd")) == before
