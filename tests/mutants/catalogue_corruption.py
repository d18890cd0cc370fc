"""What stands between a corrupted file and its callers, taken away: mutants that the trial of corruption finds."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant, Patch

__all__ = ["CORRUPTION"]

_REST: Final = "idemreg/sqlite/rest.py"
_UPKEEP: Final = "idemreg/sqlite/upkeep.py"
_TASKS: Final = "idemreg/sqlite/tasks.py"
_ROWS: Final = "idemreg/sqlite/rows.py"

# Who opens first verifies every seal as well, and a page checksum tells before a seal is asked.
_NO_SEALS_AT_OPENING: Final = Patch(_UPKEEP, "        check_seals(connection)\n", "        pass\n")
_NO_WHOLE: Final = Patch(
    _UPKEEP,
    "    is_checked = verdict.is_strange and",
    "    is_checked = False and",
)

CORRUPTION: Final[tuple[Mutant, ...]] = (
    Mutant(
        "corrupt-frames-believed",
        "the -wal is not compared with what was synced",
        (Patch(_REST, "            _check_frames(wal, synced, there)\n", "            pass\n"),),
        barrier="files at rest",
    ),
    Mutant(
        "corrupt-hidden-rows",
        "a -wal that hides what is in the database is believed",
        (Patch(_REST, "    if is_hiding:\n", "    if False:\n"),),
        barrier="files at rest",
    ),
    Mutant(
        "corrupt-pages-believed",
        "page checksums are not verified",
        (
            Patch(  # behind a read, which is what turns it on
                "idemreg/sqlite/connection.py",
                "        connection.hot = connection.cursor()\n",
                '        connection.execute("SELECT 1 FROM sqlite_schema").fetchall()\n'
                '        connection.pragma("checksum_verification", 0)\n'
                "        connection.hot = connection.cursor()\n",
            ),
            Patch(
                "idemreg/sqlite/pages.py", 'if connection.pragma("checksum_verification") != "1":', "if vfs is None:"
            ),
        ),
        barrier="page checksums",
    ),
    Mutant(
        "corrupt-rows-believed",
        "no seal of a row is verified",
        (
            Patch(
                _TASKS,
                "if success_seal(task_id, token, attempt, updated_at, boot_stamp, result) == seal:",
                "if seal is not None:",
            ),
            Patch(_ROWS, "    if not task_holds(row):", "    if row is None:"),
        ),
        without=(_NO_SEALS_AT_OPENING,),
        barrier="seal",
        off="seals verified at opening",
    ),
    Mutant(
        "corrupt-text-raw",
        "text that is none raises at opening what is no error of ours",
        (
            Patch(
                _UPKEEP,
                "        except (apsw.Error, UnicodeDecodeError) as error:\n            if connections.is_sync",
                "        except apsw.Error as error:\n            if connections.is_sync",
            ),
        ),
        barrier="typed errors",
    ),
    Mutant(
        "corrupt-unguarded",
        "nobody looks at the files between a claim and its job",
        (Patch("idemreg/sqlite/database.py", "        self.guard.check()\n", "        pass\n"),),
        barrier="file guard",
    ),
    Mutant(
        "corrupt-whole-unchecked",
        "a database that others have changed is not checked as a whole",
        (_NO_WHOLE, Patch(_UPKEEP, "<= rest.CHECKED_BYTES:\n        check_seals", "< 0:\n        check_seals")),
        barrier="files at rest",
    ),
)
