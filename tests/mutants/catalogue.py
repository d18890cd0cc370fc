"""The mutants, by the barrier that each takes away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.mutants.catalogue_barriers import BARRIERS
from tests.mutants.catalogue_guard import FILES

if TYPE_CHECKING:
    from tests.mutants.mutant import Mutant

__all__ = ["CATALOGUE"]

_MUTANTS: Final[tuple[Mutant, ...]] = (*BARRIERS, *FILES)

CATALOGUE: Final = {one.name: one for one in _MUTANTS}
