"""The mutants, by the barrier that each takes away."""

from __future__ import annotations

from typing import Final

from tests.mutants import (
    catalogue_barriers,
    catalogue_beside,
    catalogue_clock,
    catalogue_corruption,
    catalogue_door,
    catalogue_faults,
    catalogue_guard,
    catalogue_kills,
    catalogue_leases,
    catalogue_powercut,
    catalogue_resources,
    catalogue_rest,
    catalogue_salvage,
    catalogue_simulation,
    catalogue_slots,
    catalogue_syncing,
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
)

# What is looked at when a file is opened; no other barrier hides its absence. A trial finds most of them as well: see
# `ALSO_FOUND` in tests/torture/corruption.py.
_AT_REST: Final = {
    "rest-without-checksum": "test_an_older_wal_that_was_written_on_is_refused",
    "rest-without-epoch": "test_what_is_lost_can_be_given_up",
    "rest-without-frames": "test_what_was_lost_at_rest_is_noticed",
    "rest-without-header": "test_also_after_a_reboot",
    "rest-without-inodes": "test_what_was_lost_at_rest_is_noticed",
    "rest-without-ring": "test_an_older_wal_is_refused",
    "rest-without-times": "test_what_was_lost_at_rest_is_noticed",
    "rest-without-whole": "test_a_file_that_somebody_changed_is_looked_at_as_a_whole",
}
_REST: Final = tuple(
    one._replace(barrier="at rest", killer=f"tests/test_rest.py::{_AT_REST[one.name]}") for one in catalogue_rest.REST
)

_AREAS: Final = (
    _MUTANTS,
    catalogue_barriers.BARRIERS,
    catalogue_guard.FILES,
    _REST,
    catalogue_corruption.CORRUPTION,
    catalogue_clock.CLOCKS,
    catalogue_leases.LEASES,
    catalogue_slots.SLOTS,
    catalogue_simulation.MUTANTS,
    catalogue_beside.MUTANTS,
    catalogue_powercut.MUTANTS,
    catalogue_syncing.SYNCS,
    catalogue_faults.FAULTS,
    catalogue_kills.MUTANTS,
    catalogue_resources.MUTANTS,
    catalogue_salvage.SALVAGE,
    catalogue_door.DOOR,
    catalogue_door.HARDENING,
)

CATALOGUE: Final = {one.name: one for some in _AREAS for one in some}
# One that has another's name would hide it.
assert len(CATALOGUE) == sum(map(len, _AREAS)), "two mutants have one name"
