"""The mutants of leases: what frees a task by time, and what keeps a late owner out."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Patch
from tests.mutants.rows import Off, Row, mutants

__all__ = ["LEASES"]

SQLITE: Final = "idemreg/sqlite/"
OWNERS: Final = SQLITE + "owners.py"
WHOSE: Final = SQLITE + "whose.py"
HEARTBEAT: Final = "idemreg/heartbeat.py"
LATE: Final = "test_a_late_owner_learns_it_and_leaves_nothing"
NEVER_TAKEN: Final = "test_renewed_leases_are_never_taken"

LEASES: Final = mutants(
    "lease",
    Off(),
    "tests/test_leases.py",
    Row(
        "lease-ignored-at-finish",
        "a finish with a lease compares no token: the late owner overwrites the taker's row",
        (
            Patch(
                SQLITE + "tasks.py",
                ' verdict = ?, state_seal = ? WHERE task_id = ? AND token = ? AND owner = ?"\n',
                ' verdict = ?, state_seal = ? WHERE task_id = ? AND token + 0 * ? = token AND owner + 0 * ? = owner"\n',
            ),
        ),
        LATE,
    ),
    Row(
        "lease-kept-at-finish",
        "the limits of a claim stay behind its finish",
        (Patch(SQLITE + "settling.py", "if held is None or held.policy.is_limited:", "if held is None:"),),
        "test_limits_go_with_their_claim",
    ),
    Row(
        "lease-never-expires",
        "a lease that is over frees no task",
        (Patch(WHOSE, "if left_ms is None or left_ms >= 0 or", "if left_ms is None or left_ms or"),),
        LATE,
    ),
    Row(
        "lease-expires-at-once",
        "a lease that is good frees its task",
        (Patch(WHOSE, "if left_ms is None or left_ms >= 0 or", "if left_ms is None or"),),
        NEVER_TAKEN,
    ),
    Row(
        "lease-by-date",
        "whether a lease is over is asked of the wall clock",
        (
            Patch(
                OWNERS,
                "self._epoch_bits | min(self._clock.boot_ms(), LATEST",
                "self._epoch_bits | min(self._clock.wall_us() // 1_000, LATEST",
            ),
        ),
        "test_a_lease_is_renewed_at_a_third_of_it",
    ),
    Row(
        "lease-renewed-by-anybody",
        "a renewal compares neither token nor owner: a late owner keeps the taker's lease alive",
        (
            Patch(
                SQLITE + "renewing.py",
                "if row is None or (*row.version, row.owner) != (Status.RUNNING, wanted.token, wanted.owner):",
                "if row is None or row.status is not Status.RUNNING:",
            ),
        ),
        "test_no_two_leases_of_a_task_are_ever_good",
    ),
    Row(
        "lease-believed-unread",
        "an owner whose lease cannot be renewed goes on believing in it",
        (Patch(HEARTBEAT, "not self.is_held and self.clock.boot_ms() > self.until_ms", "not self.is_held and False"),),
        "test_a_busy_file_is_tried_again_until_the_deadline",
    ),
    Row(
        "lease-of-no-boot",
        "a lease of another boot frees its task although its owner's lock is held",
        (
            Patch(
                WHOSE,
                "        if info.liveness is Liveness.ALIVE:\n            return info\n        return info._replace",
                "        return info._replace",
            ),
        ),
        "test_what_a_lease_makes_of_an_owners_life",
    ),
    Row(
        "heartbeat-of-the-parent",
        "a forked child takes over the leases of its parent, and no thread renews its own",
        (Patch(HEARTBEAT, "    os.register_at_fork(after_in_child=heart.forget)\n", "    pass\n"),),
        "test_a_forked_child_renews_its_own_leases_only",
    ),
)
