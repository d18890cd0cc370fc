"""What a lack of space, descriptors or rights must not lead to: mutants that only such a lack shows."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant, Patch

__all__ = ["MUTANTS"]

MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "claim-error-swallowed",
        "a claim that cannot be stored starts the job all the same",
        (
            Patch(
                "idemreg/sqlite/hot.py",
                "                raise database.translate(error, connection) from error\n            finally:\n"
                "                if self.may_insert:\n",
                "                if self.grant is not None:\n                    return self.grant\n"
                "                raise database.translate(error, connection) from error\n            finally:\n"
                "                if self.may_insert:\n",
            ),
        ),
    ),
    Mutant(
        "finish-error-swallowed",
        "an end that cannot be stored is reported as stored",
        (Patch("idemreg/ends.py", "if type(answer) is not Recorded:", "if type(answer) is Lost:"),),
    ),
    Mutant(
        "lock-descriptor-leaked",
        "where the database cannot be opened, the lock file stays open",
        (
            Patch(
                "idemreg/sqlite/opening.py",
                "                connection.close()\n            lock_file.close()\n",
                "                connection.close()\n",
            ),
        ),
    ),
)
