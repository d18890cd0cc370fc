"""The mutants of what is compared at rest."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant, Patch

__all__ = ["REST"]

_REST: Final = "idemreg/sqlite/rest.py"
_UPKEEP: Final = "idemreg/sqlite/upkeep.py"

REST: Final[tuple[Mutant, ...]] = (
    Mutant(
        "rest-without-checksum",
        "a -wal of another content and as many frames is believed",
        (Patch(_REST, "if checksum != synced.checksum:", "if False:"),),
    ),
    Mutant(
        "rest-without-epoch",
        "tokens return with an older copy of the file",
        (
            Patch(_UPKEEP, "if is_changed or registered.boot_id != boot_id:", "if registered.boot_id != boot_id:"),
            Patch(_UPKEEP, "(max(floor >> EPOCH_BITS, highest) + 1)", "((floor >> EPOCH_BITS) + 1)"),
        ),
    ),
    Mutant(
        "rest-without-frames",
        "a -wal that lost synced frames is believed",
        (
            Patch(_REST, "if there.frames < synced.frames:", "if False:"),
            Patch(_REST, "if checksum != synced.checksum:", "if there.frames and checksum != synced.checksum:"),
        ),
    ),
    Mutant(
        "rest-without-header",
        "a -wal whose header is damaged is taken for an empty one",
        (Patch(_REST, " or _has_damaged_header(wal, synced.salts)", ""),),
    ),
    Mutant(
        "rest-without-inodes",
        "a database is believed that was put under another's -wal",
        (Patch(_REST, 'if os.stat(f"{database}-wal").st_ino == wal_inode:', "if False:"),),
    ),
    Mutant(
        "rest-without-ring",
        "an older -wal is moved into the database",
        (Patch(_REST, "if there.frames and there.salts in _ring(lock_file):", "if False:"),),
    ),
    Mutant(
        "rest-without-times",
        "a missing -wal is taken for an empty one",
        (Patch(_REST, "elif is_same and", "elif False and"),),
    ),
    Mutant(
        "rest-without-whole",
        "a database that others have changed is not checked as a whole",
        (
            Patch(_UPKEEP, "    is_checked = verdict.is_strange and", "    is_checked = False and"),
            Patch(_UPKEEP, "<= rest.CHECKED_BYTES:\n        check_seals", "< 0:\n        check_seals"),
        ),
    ),
)
