"""Each barrier alone: what it keeps from happening, whether the others are there or not (see `tests.mutants`)."""
