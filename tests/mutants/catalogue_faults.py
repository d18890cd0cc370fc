"""Mutants that only show where the system fails beneath a call: the disk, or memory."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant, Patch

__all__ = ["FAULTS"]

FAULTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "commit-error-swallowed",
        "an error of a COMMIT is taken for a success",
        (
            Patch(
                "idemreg/sqlite/database.py",
                "                is_committing = False\n                raise self.unsure(error) from error\n",
                "                is_committing = False\n                self.translate(error)\n",
            ),
        ),
    ),
    Mutant(
        "disk-error-untyped",
        "what the system says where it has no lock to give comes to the caller as it is",
        (
            Patch(
                "idemreg/oslock.py",
                "        raise _refused(error) from error\n    return True",
                "        raise\n    return True",
            ),
        ),
    ),
    Mutant(
        "failed-sync-forgotten",
        "that a sync has failed is not noted: the next says OK, and is believed",
        (
            Patch(
                "idemreg/sqlite/syncing.py",
                '        self._failed = True\n        self._synced = b""\n        with',
                '        self._synced = b""\n        return\n        with',
            ),
        ),
    ),
    Mutant(
        "unsure-finish-believed",
        "a finish whose commit failed, and which is not there, is told as recorded",
        (
            Patch(
                "idemreg/sqlite/backend.py",
                "                if not isinstance(self._read_again(end, error), Recorded):\n",
                "                if self._read_again(end, error) is None:\n",
            ),
        ),
    ),
    Mutant(
        "gate-left-taken",
        "a write that fails leaves the gate taken",
        (
            Patch(
                "idemreg/sqlite/database.py",
                "        self.gate.done(mine)\n\n    def _surely_go_out",
                "        if mine.error is None:\n            self.gate.done(mine)\n\n    def _surely_go_out",
            ),
        ),
    ),
    Mutant(
        "not-withdrawn",
        "a claim that was stored and whose sync failed is not put back",
        (
            Patch(
                "idemreg/sqlite/settling.py",
                "        is_stored = not isinstance(error, _STORED_NOTHING)\n",
                "        is_stored = False\n",
            ),
        ),
    ),
    Mutant(
        "read-only-for-good",
        "a connection that could not be opened for writing is used again and again",
        (
            Patch(
                "idemreg/sqlite/pool.py",
                "        self._spoilt.update(self._all)\n",
                "        return\n",
            ),
        ),
        barrier="connections",
        killer="tests/test_paths.py::test_files_that_may_not_be_written_for_a_moment",
    ),
    Mutant(
        "returned-job-fails",
        "a job that has returned, and whose result there is no memory to encode, counts as failed and runs again",
        (Patch("idemreg/attempt.py", "has_returned=result is not _NOTHING", "has_returned=False"),),
    ),
)
