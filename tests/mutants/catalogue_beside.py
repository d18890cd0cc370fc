"""The mutants of what lies beside a task's row, leases, steps and kept arguments: the simulation must find them."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant, Patch

__all__ = ["MUTANTS"]

SQLITE: Final = "idemreg/sqlite/"
CLAIMING: Final = SQLITE + "claiming.py"
KEEPING: Final = SQLITE + "keeping.py"
SETTLING: Final = SQLITE + "settling.py"
STEPS: Final = SQLITE + "steps.py"
SWEEPING: Final = "idemreg/sweeping.py"

MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "late-effects-kept",
        "the transaction of a late owner is committed: its effects are there without its success",
        (
            Patch(
                SQLITE + "backend.py",
                "if row is None or not self._is_own(row, claim.token):",
                "if row is None:",
            ),
            Patch(
                SQLITE + "effects.py",
                "            return Lost(None)\n        faults",
                "            self._write.commit()\n            return Lost(None)\n        faults",
            ),
        ),
    ),
    Mutant(
        "lease-good-for-ever",
        "what a claim says of its lease is not asked of the clock",
        (
            Patch(
                "idemreg/heartbeat.py",
                "not self.is_held and self.clock.boot_ms() > self.until_ms",
                "not self.is_held and self.clock.boot_ms() < 0",
            ),
        ),
    ),
    Mutant(
        "step-of-anybody",
        "a step is saved without a compare-and-set on its claim: a late owner saves steps as well",
        (
            Patch(
                STEPS,
                "    return row is not None and row.status is Status.RUNNING and row.token == token",
                "    return row is not None",
            ),
            Patch(
                STEPS,
                '" WHERE task_id = ? AND token = ? AND owner = ? AND status = 3 ON CONFLICT',
                '" WHERE task_id = ? AND ? > 0 AND (? > 0 OR 1) ON CONFLICT',
            ),
        ),
    ),
    Mutant(
        "step-run-again",
        "a later attempt does not see the steps that are done",
        (Patch(STEPS, "    if (step := _find(connection, task_id, name)) is None:", "    if (step := None) is None:"),),
    ),
    Mutant(
        "step-not-synced",
        "a step is told to be saved before it is on the disk",
        (Patch(KEEPING, "opened.database.write(save, durable=durable)", "opened.database.write(save, durable=False)"),),
    ),
    Mutant(
        "step-reader-does-not-join",
        "a step that another attempt has saved is answered as soon as it is visible, before it is durable",
        (
            Patch(
                KEEPING,
                "            if found is not None:\n                opened.database.seen_final(durable=durable)",
                "            if found is not None:\n                opened.database.seen_final(durable=False)",
            ),
        ),
    ),
    Mutant(
        "kept-claim-not-synced",
        "a claim under rerun that keeps arguments is not on the disk when its body is entered",
        (Patch(CLAIMING, " or wanted.kept is not None\n", "\n"),),
    ),
    Mutant(
        "arguments-kept-for-ever",
        "the arguments of a task stay behind its final end",
        (Patch(SETTLING, "            if is_over and (held", "            if False and (held"),),
    ),
    Mutant(
        "sweep-reruns-what-lives",
        "a sweep runs again what a living owner has",
        (
            Patch(
                SWEEPING,
                "    return decide(task, as_stored(task), owner.liveness, entered=owner.entered)",
                "    return decide(task, as_stored(task), Liveness.DEAD, entered=owner.entered)",
            ),
            Patch(
                CLAIMING,
                "    return decide(row, wanted, owner.liveness, entered=owner.entered), owner",
                "    if wanted.kept is not None and wanted.kept.follows is not None:\n"
                "        return decide(row, wanted, Liveness.DEAD, entered=owner.entered), owner\n"
                "    return decide(row, wanted, owner.liveness, entered=owner.entered), owner",
            ),
        ),
    ),
    Mutant(
        "sweep-runs-twice",
        "a sweep runs what another has run since it was found",
        (Patch(CLAIMING, "        if follows is not None and (row", "        if False and (row"),),
    ),
    Mutant(
        "sweep-settles-nothing",
        "a sweep leaves what a dead owner held as it is",
        (Patch(SWEEPING, "            to_bury.append(task)", "            pass"),),
    ),
)
