"""The mutants, by the barrier that each takes away."""

from __future__ import annotations

from typing import Final

from tests.mutants import (
    catalogue_barriers,
    catalogue_clock,
    catalogue_corruption,
    catalogue_door,
    catalogue_faults,
    catalogue_guard,
    catalogue_kills,
    catalogue_powercut,
    catalogue_resources,
    catalogue_rest,
    catalogue_simulation,
)
from tests.mutants.mutant import Mutant, Patch

__all__ = ["CATALOGUE"]

_MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "finish-without-token",
        "a finish compares no token: a late owner overwrites its successor's row",
        (
            Patch(
                "idemreg/sqlite/tasks.py",
                ' AND token = ? AND owner = ? AND status = 3"\n    " AND is_large = 0',
                ' AND token + 0 * ? = token AND owner + 0 * ? = owner AND status = 3"\n    " AND is_large = 0',
            ),
        ),
    ),
    Mutant(
        "replay-without-seal",
        "a duplicate is answered from a row whose seal is not verified",
        (
            Patch(
                "idemreg/sqlite/tasks.py",
                "if success_seal(task_id, token, attempt, updated_at, boot_stamp, result) == seal:",
                "if seal is not None:",
            ),
        ),
    ),
    Mutant(
        "decision-without-seal",
        "a row is decided by whose seals are not verified",
        (Patch("idemreg/sqlite/tasks.py", "    if not task_holds(row):", "    if row is None:"),),
    ),
    Mutant(
        "owner-without-seal",
        "the record of an owner is believed whose seal is not verified",
        (Patch("idemreg/sqlite/records.py", "holds = values_seal(record) == row[-1]", "holds = True"),),
    ),
    Mutant(
        "floor-without-seal",
        "the token floor is read from a row whose seal is not verified",
        (Patch("idemreg/sqlite/records.py", "if row.seal(connection) != rows[0][-1]:", "if row is None:"),),
    ),
    Mutant(
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
    ),
)

_AREAS: Final = (
    _MUTANTS,
    catalogue_barriers.BARRIERS,
    catalogue_guard.FILES,
    catalogue_rest.REST,
    catalogue_corruption.CORRUPTION,
    catalogue_clock.CLOCKS,
    catalogue_simulation.MUTANTS,
    catalogue_powercut.MUTANTS,
    catalogue_faults.FAULTS,
    catalogue_kills.MUTANTS,
    catalogue_resources.MUTANTS,
    catalogue_door.DOOR,
)

CATALOGUE: Final = {one.name: one for some in _AREAS for one in some}
