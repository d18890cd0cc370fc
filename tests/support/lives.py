"""What machines of random lives share: a registry's folder, and an end by which each life is judged."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis.stateful import RuleBasedStateMachine

if TYPE_CHECKING:
    from idemreg import Registry

__all__ = ["Lives"]


class Lives(RuleBasedStateMachine):
    """A life in a folder of its own. ``registries``: of its processes; none as long as it has not begun."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="idemreg-lives-")
        self.path = Path(self.folder.name) / "jobs.db"
        self.registries: list[Registry] = []

    def ends(self) -> None:
        """The last look, and what must hold behind it."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Judge the life, whose processes end with it."""
        try:
            if self.registries:
                self.ends()
                for registry in self.registries:
                    registry.close()
        finally:
            self.folder.cleanup()
