"""What every test of the command line may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import Cli

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cli(path: Path) -> Cli:
    return Cli(path)
