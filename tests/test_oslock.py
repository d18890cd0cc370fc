"""The locks of the operating system: where their descriptors are put."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
"""


@pytest.mark.parametrize(("limit", "lowest"), [(1_000, HIGH_DESCRIPTOR), (256, 100), (64, 5)])
def test_many_commands_have_a_descriptor_each(tmp_path: Path, limit: int, lowest: int) -> None:
    """Also under a small limit forty find a number, and the first of them one that scripts hardly use."""
    with Script(OPENER, tmp_path / "file", limit) as script:
        numbers = [int(script.line()) for _ in range(40)]
        assert script.end() == 0
    assert len(set(numbers)) == 40
    assert numbers[0] >= lowest
