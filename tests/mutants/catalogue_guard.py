"""The mutants of what tells that a file, a page or a row is not what it was."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Patch
from tests.mutants.rows import Off, Row, mutants

__all__ = ["FILES"]

GUARD: Final = "idemreg/sqlite/guard.py"
BACKEND: Final = "idemreg/sqlite/backend.py"
TASKS: Final = "idemreg/sqlite/tasks.py"
ROWS: Final = "idemreg/sqlite/rows.py"
RECORDS: Final = "idemreg/sqlite/records.py"

# At ``durability="normal"`` no claim is synced, and a sync looks at the names of the files as well.
NO_SYNC: Final = Off("the sync's look at the names")
_BEGINS: Final = "test_no_job_begins_whatever_became_of_a_file"

_GUARD: Final = mutants(
    "file guard",
    NO_SYNC,
    "tests/test_guard.py",
    Row(
        "guard-off",
        "nobody looks at the files between a claim and its job",
        (Patch("idemreg/sqlite/database.py", "        self.guard.check()\n", "        pass\n"),),
        "test_no_way_in_enters_a_job_whose_claim_is_nowhere[normal-database deleted-decorator]",
    ),
    Row(
        "cut-wal-written-to",
        "a -wal that was cut is written to, and so gets its size back",
        (Patch("idemreg/sqlite/database.py", ", guard.before_writing\n", ", self.gate.look\n"),),
        "test_a_wal_cut_by_less_than_a_block_is_not_written_to[normal-run]",
    ),
    Row(
        "guard-not-asked-by-claims",
        "the hot path does not ask the guard behind its claim",
        (
            Patch(
                BACKEND,
                '                opened.database.check_files()\n                faults.point("claim.committed")  #',
                '                faults.point("claim.committed")  #',
            ),
        ),
        f"{_BEGINS}[normal-database deleted]",
    ),
    Row(
        "guard-without-database",
        "a database that was deleted or replaced is not seen",
        (Patch(GUARD, 'for path in (database, f"{database}-shm")', 'for path in (f"{database}-shm",)'),),
        f"{_BEGINS}[normal-database replaced]",
    ),
    Row(
        "guard-without-index",
        "an index of the -wal that was deleted is not seen",
        (Patch(GUARD, 'for path in (database, f"{database}-shm")', "for path in (database,)"),),
        f"{_BEGINS}[normal-index deleted]",
    ),
    Row(
        "guard-without-wal",
        "a -wal that was deleted or replaced is not seen",
        (Patch(GUARD, "        if self._wal >= 0 and not self._is_wal_there():\n", "        if self._wal < -1:\n"),),
        f"{_BEGINS}[normal-wal replaced]",
    ),
    Row(
        "guard-without-lock-file",
        "a lock file that was deleted or replaced is not seen: others could not tell that its owners live",
        (Patch(GUARD, "self._lock_file_gone = not self._lock_file.is_at_path()", "self._lock_file_gone = False"),),
        f"{_BEGINS}[normal-lock file deleted]",
    ),
    Row(
        "guard-without-size-of-database",
        "a database that was cut is not seen",
        (
            Patch(
                GUARD,
                "            if fstat(self._database).st_size != self._size:\n",
                "            if self._size < 0:\n",
            ),
        ),
        f"{_BEGINS}[normal-database cut]",
    ),
    Row(
        "guard-without-size-of-wal",
        "a -wal that was cut is not seen",
        (
            Patch(
                GUARD, "                if lseek(self._wal, 0, SEEK_HOLE) < used:\n", "                if used < 0:\n"
            ),
        ),
        f"{_BEGINS}[normal-wal cut]",
    ),
    Row(
        "guard-without-size-of-lock-file",
        "a lock file that was cut is not seen",
        (
            Patch(
                GUARD,
                "            if lseek(self._lock_file.fd, 0, SEEK_END) < SIZE:\n",
                "            if self._size < 0:\n",
            ),
        ),
        f"{_BEGINS}[normal-lock file cut]",
    ),
    Row(
        "guard-forgets",
        "files that were found gone are written on",
        (Patch("idemreg/sqlite/pool.py", "        self.lost, self._closed = error, True\n", "        del error\n"),),
        "test_files_that_are_lost_are_not_written_any_more[normal-wal deleted]",
    ),
)

_SYNCED: Final = mutants(
    "file guard",
    Off(
        "the look behind the claim",
        (Patch("idemreg/sqlite/database.py", "        self.guard.check()\n", "        pass\n"),),
    ),
    "tests/barriers/test_reader_joins.py",
    Row(
        "deleted-wal-synced",
        "a -wal that was deleted is synced, and what is in it counts as durable",
        (
            Patch(
                "idemreg/sqlite/syncing.py",
                "        self._guard.check_names(begun_at)\n",
                "",
            ),
        ),
        "test_a_deleted_wal_makes_nothing_durable",
    ),
)

# What the tests change is changed through the page checksums, which then say nothing.
_SEALS: Final = mutants(
    "seal",
    Off("page checksums"),
    "tests/test_seal.py",
    Row(
        "replay-without-seal",
        "a duplicate is answered from a row whose seal is not verified",
        (
            Patch(
                TASKS,
                "if success_seal(task_id, token, attempt, updated_at, boot_stamp, result) == seal:",
                "if seal is not None:",
            ),
        ),
        "test_a_changed_column_is_an_error",
    ),
    Row(
        "decision-without-seal",
        "a row is decided by, listed or purged whose seals are not verified",
        (Patch(ROWS, "    if not task_holds(row):", "    if row is None:"),),
        "test_a_running_row_that_was_changed_is_not_taken_over",
    ),
    Row(
        "owner-without-seal",
        "the record of an owner is believed whose seal is not verified",
        (Patch(RECORDS, "if not values_hold(record, row[-1]):", "if row is None:"),),
        "test_a_changed_record_of_an_owner_proves_nothing",
    ),
    Row(
        "floor-without-seal",
        "the token floor is read from a row whose seal is not verified",
        (Patch(RECORDS, "if not values_hold((*row, connection.reserve_bytes()), rows[0][-1]):", "if row is None:"),),
        "test_a_floor_that_changes_under_a_live_registry_is_an_error",
    ),
)

_PAGES: Final = mutants(
    "page checksums",
    Off("seal", (Patch(ROWS, "    if not task_holds(row):", "    if row is None:"),)),
    "tests/test_seal.py",
    Row(
        "pages-not-verified",
        "the pages of a file that has checksums are read without a look at them",
        (
            Patch(
                "idemreg/sqlite/connection.py",
                "connection = Connection(path, flags=flags, vfs=pages.vfs() if checks_pages else None)",
                "connection = Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)",
            ),
            Patch(
                "idemreg/sqlite/pages.py", 'if connection.pragma("checksum_verification") != "1":', "if vfs is None:"
            ),
        ),
        "test_a_flip_that_would_hide_a_row_is_an_error",
    ),
)

FILES: Final = (*_GUARD, *_SYNCED, *_SEALS, *_PAGES)
