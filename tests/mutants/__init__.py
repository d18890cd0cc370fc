"""The shipped code, broken on purpose. Each mutant is a patch, and each must be found by a test of behaviour."""

from tests.mutants.catalogue import CATALOGUE
from tests.mutants.mutant import Mutant, mutated

__all__ = ["CATALOGUE", "Mutant", "mutated"]
