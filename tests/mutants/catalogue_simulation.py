"""The mutants that the deterministic simulation must find, by the barrier that each takes away."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant, Patch

__all__ = ["MUTANTS"]

DECIDING: Final = "idemreg/deciding.py"
LIVENESS: Final = "idemreg/liveness.py"
TASKS: Final = "idemreg/sqlite/tasks.py"
CLAIMING: Final = "idemreg/sqlite/claiming.py"
OWNERS: Final = "idemreg/sqlite/owners.py"
HOT: Final = "idemreg/sqlite/hot.py"
DATABASE: Final = "idemreg/sqlite/database.py"
SYNCING: Final = "idemreg/sqlite/syncing.py"
UPKEEP: Final = "idemreg/sqlite/upkeep.py"

MUTANTS: Final[tuple[Mutant, ...]] = (
    # --- the decision -----------------------------------------------------------------------------------------------
    Mutant(
        "doubt-is-death",
        "an owner of whom nobody can tell counts as dead",
        (
            Patch(
                DECIDING,
                "            if not liveness.frees:\n                return Decision.RUNNING",
                '            if liveness.value == "alive":\n                return Decision.RUNNING',
            ),
        ),
    ),
    Mutant(
        "hold-reruns",
        "a dead owner's task is run again under hold and verify as well",
        (Patch(DECIDING, "    if _stricter(row, wanted) is not OnCrash.RERUN:", "    if False:"),),
    ),
    Mutant(
        "asked-policy-decides",
        "of the stored and the asked policy the asked decides, and not the stricter",
        (
            Patch(
                DECIDING,
                "    return max(row.policy.on_crash, wanted.policy.on_crash)",
                "    return wanted.policy.on_crash",
            ),
        ),
    ),
    Mutant(
        "final-is-claimed",
        "a succeeded task may be claimed again",
        (
            Patch(
                DECIDING,
                "        case Status.SUCCEEDED | Status.SKIPPED | Status.CANCELLED:\n            return Decision.DONE",
                "        case Status.SUCCEEDED | Status.SKIPPED | Status.CANCELLED:\n            return Decision.CLAIM",
            ),
        ),
        (Patch(TASKS, "status = 1 AND name = ?", "status = 7 AND name = ?"),),
    ),
    Mutant(
        "attempts-without-end",
        "max_attempts bounds nothing",
        (
            Patch(
                "idemreg/model.py",
                "    return row.verdict is Verdict.RETRY or row.attempt < asked.max_attempts",
                "    return True",
            ),
        ),
    ),
    Mutant(
        "live-is-settled",
        "an operator's verdict settles the task of a live owner",
        (Patch(DECIDING, "(verifying or liveness.frees)", "(verifying or liveness is not None)"),),
    ),
    Mutant(
        "live-is-forgotten",
        "the row of a live owner is forgotten by force",
        (Patch(DECIDING, "        return force and liveness.frees", "        return force"),),
    ),
    # --- whether an owner lives -------------------------------------------------------------------------------------
    Mutant(
        "always-dead",
        "every owner counts as dead",
        (
            Patch(
                LIVENESS,
                "        if not self.locks_work:\n            return self._without_locks(record)\n        if oslock",
                "        if self.locks_work:\n            return Liveness.DEAD, 'so it is said'\n        if oslock",
            ),
        ),
    ),
    Mutant(
        "byte-not-held",
        "an owner does not hold its byte",
        (
            Patch(
                OWNERS,
                "            _hold(self._lock_file.fd, record.id)\n            faults",
                "            faults",
            ),
        ),
    ),
    Mutant(
        "byte-of-batch-not-held",
        "the owner of a batch does not hold its byte",
        (Patch(OWNERS, "        _hold(lock_file.fd, self.id)", "        pass"),),
    ),
    Mutant(
        "process-not-looked-at",
        "a free byte alone proves death, also where the process is there",
        (Patch(LIVENESS, "        if self._still_there(record):", "        if False:"),),
    ),
    Mutant(
        "notes-ignored",
        "what a dead batch has entered counts as not entered",
        (Patch(LIVENESS, "        return self._lock_file.read_note(record.notes_at + note)", "        return False"),),
    ),
    Mutant(
        "notes-of-another-boot",
        "the notes of an earlier boot are trusted",
        (
            Patch(
                LIVENESS,
                "        if (record.boot_id, record.lock_id) != (self._boot_id, self._lock_file.lock_id):\n"
                "            return True\n",
                "",
            ),
        ),
    ),
    # --- rows -------------------------------------------------------------------------------------------------------
    Mutant(
        "late-finish-accepted",
        "the general finish compares neither token nor owner: a late owner overwrites its successor's row",
        (
            Patch(
                TASKS,
                'verdict = ?, state_seal = ? WHERE task_id = ? AND token = ? AND owner = ?"',
                'verdict = ?, state_seal = ? WHERE task_id = ? AND ? * 0 = ? * 0"',
            ),
        ),
    ),
    Mutant(
        "token-not-increased",
        "who claims a task again gets the token of before",
        (Patch(CLAIMING, "        token = max(row.token, floor) + 1", "        token = row.token"),),
    ),
    Mutant(
        "forget-keeps-floor",
        "a forgotten row's token may be given again",
        (
            Patch(
                TASKS,
                "    raise_floor(connection, row.token)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "purge-keeps-floor",
        "a purged row's token may be given again",
        (Patch("idemreg/sqlite/purging.py", "    raise_floor(connection, highest)\n", ""),),
    ),
    Mutant(
        "hot-insert-ignores-floor",
        "the first claim of a task does not check the floor that it stands on",
        (Patch(TASKS, "WHERE schema_version = ? AND floor = ? ON", "WHERE schema_version = ? AND floor >= 0 * ? ON"),),
    ),
    Mutant(
        "epoch-not-raised",
        "the first opener after a boot raises no epoch",
        (
            Patch(
                UPKEEP, "            floor = (max(floor >> EPOCH_BITS, highest) + 1) << EPOCH_BITS", "            pass"
            ),
        ),
    ),
    Mutant(
        "released-keeps-attempt",
        "a task that is put back counts the attempt",
        (Patch("idemreg/store.py", "claim.attempt - (not claim.to_verify)", "claim.attempt"),),
    ),
    Mutant(
        "effects-committed-alone",
        "the effects of a job are committed before its success",
        (
            Patch(
                "idemreg/sqlite/effects.py",
                "        if not self._finish(self._connection, end):",
                '        self._connection.execute("COMMIT")\n'
                '        faults.point("transaction.finished")\n'
                '        self._connection.execute("BEGIN IMMEDIATE")\n'
                "        if not self._finish(self._connection, end):",
            ),
        ),
    ),
    Mutant(
        "record-left-behind",
        "the record of a dead owner is never removed",
        (
            Patch(
                OWNERS,
                "            if liveness is Liveness.DEAD:\n                records.forget_owner",
                "            if False:\n                records.forget_owner",
            ),
        ),
    ),
    Mutant(
        "batch-record-left-behind",
        "a batch's claims are not counted down when others end them",
        (Patch(CLAIMING, "            records.leave_batch(self.connection, row.owner)", "            pass"),),
    ),
    # --- syncing ----------------------------------------------------------------------------------------------------
    Mutant(
        "first-claim-not-synced",
        "the first claim of a task is not on the disk when its body is entered",
        (
            Patch(
                HOT,
                "        elif self._is_durable and self.grant is not None:\n            database.durable()\n",
                "",
            ),
        ),
    ),
    Mutant(
        "general-claim-not-synced",
        "a claim is not on the disk when its body is entered",
        (
            Patch(
                CLAIMING,
                "    return any(one.durable and _syncs(one, claim.policy) for",
                "    return any(False for",
            ),
        ),
    ),
    Mutant(
        "success-not-synced",
        "a success is told before it is on the disk",
        (Patch(HOT, "    if is_stored and end.durable:\n        database.durable()\n", ""),),
    ),
    Mutant(
        "write-not-synced",
        "an end is told before it is on the disk",
        (Patch(DATABASE, "            self._sync(writes)\n", "            pass\n"),),
    ),
    Mutant(
        "begun-is-done",
        "a sync that began before counts as one that begins later",
        (Patch(SYNCING, "        return record.done > seen and", "        return record.done >= seen and"),),
    ),
    Mutant(
        "published-before-sync",
        "a sync is published before it is done",
        (
            Patch(
                SYNCING,
                '        faults.point("sync.begun")\n'
                "        header = self._index.header() or NO_HEADER  # before the sync: see step 1\n",
                "        header = self._index.header() or NO_HEADER  # before the sync: see step 1\n"
                "        if record is not None:\n            self._publish(record, header)\n"
                '        faults.point("sync.begun")\n',
            ),
        ),
    ),
    # --- turns ------------------------------------------------------------------------------------------------------
    Mutant(
        "wait-without-end",
        "who waits for a running twin does not look at his deadline",
        (Patch("idemreg/acquiring.py", "                if now >= deadline:", "                if False:"),),
    ),
)
