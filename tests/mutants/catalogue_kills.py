"""Mutants that killed and stopped processes show: ownership, its end, and what is told of both."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant, Patch

__all__ = ["MUTANTS"]

NO_TURN: Final = (
    Patch(
        "idemreg/sqlite/writing.py",
        "the gate itself\n            fcntl.fcntl(self._turn.fd, _SET_LOCK, self._turn.lock)\n",
        "the gate itself\n            pass\n",
    ),
    Patch(
        "idemreg/sqlite/writing.py",
        "        try:\n            fcntl.fcntl(self._turn.fd, _SET_LOCK, self._turn.lock)\n",
        "        try:\n            pass\n",
    ),
    Patch("idemreg/sqlite/writing.py", "        if not self._turn.take(until):\n", "        if False:\n"),
)
NO_PROCESS_CHECK: Final = (
    Patch("idemreg/liveness.py", "        if self._still_there(record):\n", "        if False:\n"),
)

# What the trial does only because there is that check: processes lose their locks, and live.
NOBODY_UNLOCKED: Final = (
    Patch("tests/torture/killing/conductor.py", "if chance.random() < UNLOCKED:\n", "if False:\n"),
)

MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "batch-entered-not-noted",
        "that a job of a batch was entered is noted nowhere: it is put back when its owner dies",
        (
            Patch(
                "idemreg/sqlite/owners.py",
                '            self._lock_file.write_note(cast("int", self.record.notes_at) + note)\n',
                "            pass\n",
            ),
        ),
    ),
    Mutant(
        "begin-deferred",
        "a write transaction takes the lock at its first write: what it read may have changed",
        (
            Patch(
                "idemreg/sqlite/database.py",
                "                    if not self.begins(connection):",
                '                    if connection.execute("BEGIN").fetchall():',
            ),
        ),
        NO_TURN,
    ),
    Mutant(
        "byte-released-early",
        "an owner gives its byte back before its finish is committed",
        (
            Patch(
                "idemreg/sqlite/backend.py",
                "            try:\n                if opened.wants_close or not hot.succeed(",
                "            try:\n"
                "                from idemreg import lockfile, oslock\n"
                "                oslock.unlock(opened.lock_file.fd, lockfile.owner_byte(end.owner))\n"
                "                if opened.wants_close or not hot.succeed(",
            ),
        ),
        (*NO_PROCESS_CHECK, *NOBODY_UNLOCKED),
    ),
    Mutant(
        "cannot-tell-is-dead",
        "an owner whose lock is free counts as dead, although its process is there",
        (
            Patch(
                "idemreg/liveness.py",
                'return Liveness.CANNOT_TELL, f"its lock is free, but',
                'return Liveness.DEAD, f"its lock is free, but',
            ),
        ),
    ),
    Mutant(
        "claim-behind-body",
        "the first claim of a task is stored together with its finish, behind the body",
        (
            Patch(
                "idemreg/sqlite/hot.py",
                "        if not tasks.insert(connection, wanted, self._schema_version,",
                "        LATE[wanted.task_id, grant.token] = (\n"
                "            wanted, self._schema_version, opened.floor, owner, opened.stamp())\n"
                "        if False and not tasks.insert(connection, wanted, self._schema_version,",
            ),
            Patch(
                "idemreg/sqlite/hot.py",
                '                faults.point("finish.in-transaction")\n                is_stored =',
                "                if (end.task_id, end.token) in LATE:\n"
                "                    tasks.insert(connection, *LATE.pop((end.task_id, end.token)))\n"
                "                is_stored =",
            ),
            Patch("idemreg/sqlite/hot.py", "RERUN: Final = ", "LATE = {}\nRERUN: Final = "),
        ),
    ),
    Mutant(
        "dead-is-alive",
        "nobody is ever found dead: a killed owner keeps its task",
        (Patch("idemreg/liveness.py", "if oslock.is_held(self._lock_file.fd, owner_byte(owner)):", "if True:"),),
    ),
    Mutant(
        "effects-apart",
        "the effects of a job are committed before its finish",
        (
            Patch(
                "idemreg/sqlite/effects.py",
                "        if not self._finish(self._connection, end):",
                '        self._connection.execute("COMMIT")\n'
                '        self._connection.execute("BEGIN IMMEDIATE")\n'
                "        if not self._finish(self._connection, end):",
            ),
        ),
    ),
    Mutant(
        "floor-not-raised",
        "a task that is forgotten leaves its tokens to the next",
        (
            Patch(
                "idemreg/sqlite/tasks.py",
                "    raise_floor(connection, row.token)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "general-finish-without-token",
        "a finish that is no plain success compares no token and no owner",
        (
            Patch(
                "idemreg/sqlite/tasks.py",
                'verdict = ?, state_seal = ? WHERE task_id = ? AND token = ? AND owner = ?"\n',
                'verdict = ?, state_seal = ? WHERE task_id = ? AND ? > 0 AND ? > 0"\n',
            ),
        ),
    ),
    Mutant(
        "hold-is-rerun",
        "a task that is held when its owner dies is run again",
        (
            Patch(
                "idemreg/deciding.py",
                "    if _stricter(row, wanted) is not OnCrash.RERUN:\n",
                "    if _stricter(row, wanted) is OnCrash.VERIFY:\n",
            ),
        ),
    ),
    Mutant(
        "living-is-dead",
        "whoever has a task counts as dead",
        (
            Patch(
                "idemreg/liveness.py",
                "        if not self.locks_work:\n            return self._without",
                '        if self.locks_work:\n            return Liveness.DEAD, "it is said so"\n'
                "        if not self.locks_work:\n            return self._without",
            ),
        ),
    ),
    Mutant(
        "process-id-without-namespace",
        "a process id counts in every pid namespace: a dead owner is taken for whoever has its number elsewhere",
        (
            Patch(
                "idemreg/liveness.py",
                "        if record.pid_ns != self._pid_ns or not record.pid_ns:\n",
                "        if not record.pid_ns:\n",
            ),
        ),
    ),
    Mutant(
        "replay-of-another-attempt",
        "a process replays what it has replayed for the task before",
        (
            Patch(
                "idemreg/attempt.py",
                "        result = load_result(found.result, terms.options.codec)\n",
                "        result = load_result(found.result, terms.options.codec)\n"
                "        result = REPLAYED.setdefault(wanted.task_id, result)\n",
            ),
            Patch("idemreg/attempt.py", "_NOTHING: Final = ", "REPLAYED = {}\n_NOTHING: Final = "),
        ),
    ),
    Mutant(
        "step-of-another-name",
        "a step that is done answers for every step of its task",
        (
            Patch(
                "idemreg/sqlite/steps.py",
                "FROM idempotent_step WHERE task_id = ? AND name = ?",
                "FROM idempotent_step WHERE task_id = ? AND ? > ''",
            ),
        ),
    ),
    Mutant(
        "token-given-twice",
        "a task that is claimed again keeps its token",
        (
            Patch(
                "idemreg/sqlite/claiming.py",
                "        token = max(row.token, floor) + 1\n",
                "        token = max(row.token, floor + 1)\n",
            ),
        ),
    ),
)
