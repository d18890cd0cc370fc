"""The steps of the argument in `sqlite/syncing.py`, each taken away: those that power cuts do not come by on their own.

What a power cut shows by itself is in `catalogue_powercut`.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.catalogue_powercut import SYNCING
from tests.mutants.mutant import Patch
from tests.mutants.rows import Off, Row, mutants

__all__ = ["SYNCS"]

_TESTS: Final = "tests/test_syncing.py"

SYNCS: Final = mutants(
    "group sync",
    Off(),
    _TESTS,
    Row(
        "frames-counted",
        "step 2: as many frames are believed to be the same ones, also of a -wal that has begun anew",
        (Patch(SYNCING, "header == record.header and record", "header[FRAMES] == record.header[FRAMES] and record"),),
        "test_as_many_frames_of_an_earlier_wal_cover_nothing",
    ),
    Row(
        "sync-of-another-wal",
        "step 5: what the record says is believed whichever -wal it is of",
        (
            Patch(SYNCING, "header == record.header and record.inode == self._inode:", "header == record.header:"),
            Patch(SYNCING, "return record.done > seen and record.inode == self._inode", "return record.done > seen"),
        ),
        "test_what_is_noted_of_another_wal_is_not_believed",
    ),
    Row(
        "published-without-turn",
        "step 6: who was not given the turn publishes what he synced, beside whoever has it",
        (Patch(SYNCING, "self._sync(record if has_turn else None)", "self._sync(record)"),),
        "test_a_stopped_leader_costs_the_others_some_speed",
    ),
    Row(
        "failed-noted-late",
        "step 7: that a sync has failed is noted when what is known to be covered was forgotten already",
        (
            Patch(
                SYNCING,
                '        self._failed = True\n        self._synced = b""\n        with contextlib',
                '        self._synced = b""\n        self._failed = True\n        with contextlib',
            ),
        ),
        "test_a_failure_that_is_told_amid_the_end_of_another_sync_counts",
    ),
    Row(
        "grown-sync-forgotten",
        "step 7: that the sync of a -wal that was written to its size has failed is not noted",
        (Patch("idemreg/sqlite/wal.py", "            self._sync.taint()\n", ""),),
        "test_where_the_sync_of_its_new_size_fails_nothing_is_sure",
    ),
    Row(
        "moved-amid-a-sync",
        "step 7: the -wal is moved into the database while a sync is under way, which may fail",
        (
            Patch(
                SYNCING,
                "self._turn.take(self._clock.monotonic() + PATIENCE_S)",
                "self._turn.take(0)",
            ),
        ),
        "test_the_wal_is_not_moved_while_a_sync_is_about_to_fail",
    ),
    Row(
        "failed-of-others-ignored",
        "step 7: a sync that another process has seen fail is not looked for",
        (Patch(SYNCING, "if self._failed or record.failed:", "if self._failed:"),),
        "test_where_the_sync_of_its_new_size_fails_nothing_is_sure",
    ),
    Row(
        "boot-not-begun",
        "step 8: what the syncs of an earlier boot have noted is kept",
        (Patch("idemreg/lockfile.py", "        if not self.is_of_boot(boot_id):\n", "        if not boot_id:\n"),),
        "test_a_finish_whose_sync_fails_is_told",
    ),
    Row(
        "deleted-wal-acknowledged",
        "step 9: nobody looks whether the -wal that is synced is the one at the path",
        (Patch(SYNCING, "        self._guard.check_names(begun_at)\n", ""),),
        "test_an_end_in_a_wal_that_was_deleted_is_told",
    ),
)
