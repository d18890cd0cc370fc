"""The mutants, by the barrier that each takes away."""

from __future__ import annotations

from typing import Final

from tests.mutants.catalogue_faults import FAULTS
from tests.mutants.mutant import Mutant, Patch

__all__ = ["CATALOGUE"]

_MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "finish-without-token",
        "a finish compares no token: a late owner overwrites its successor's row",
        (
            Patch(
                "idemreg/sqlite/tasks.py",
                '" verdict = NULL WHERE task_id = ? AND token = ? AND owner = ? AND status = 3 AND is_large = 0"',
                '" verdict = NULL WHERE task_id = ? AND token + 0 * ? = token AND owner + 0 * ? = owner"'
                '" AND status = 3 AND is_large = 0"',
            ),
        ),
    ),
)

CATALOGUE: Final = {one.name: one for one in (*_MUTANTS, *FAULTS)}
