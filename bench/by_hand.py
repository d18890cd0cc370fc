"""The yardstick: what a careful developer writes by hand on apsw, with one table and three statements.

One connection, WAL, a busy time-out, autocommit statements, prepared by apsw's own cache. It has no owners, tokens,
policies, guards or typed errors; a crash leaves its row at `running` for ever. So it is the least that a call can cost.

Two of them, as many processes want the write lock: (a) waits as SQLite does, for up to `BUSY_MS`, in naps of up to
100 ms that starve some and let others run on; (b), `ByHandQueued`, puts a lock of the kernel's around each write, whose
waiters form a queue.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

import apsw

if TYPE_CHECKING:
    from collections.abc import Callable

SUCCEEDED = 1

# Long, so that no writer gives up: one that does is a job lost, which would flatter the others.
BUSY_MS = 60_000

SCHEMA = """
CREATE TABLE IF NOT EXISTS task (
    task_id    TEXT    NOT NULL PRIMARY KEY,
    status     INTEGER NOT NULL,
    checksum   TEXT    NOT NULL,
    updated_at INTEGER NOT NULL,
    result     TEXT
) STRICT, WITHOUT ROWID
"""
SELECT = "SELECT status, checksum, result FROM task WHERE task_id = ?"
INSERT = "INSERT INTO task (task_id, status, checksum, updated_at) VALUES (?, 3, ?, ?) ON CONFLICT DO NOTHING"
FINISH = "UPDATE task SET status = 1, updated_at = ?, result = ? WHERE task_id = ? AND status = 3"

# One encoder for all calls: json.dumps with options makes a new one each time.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class ByHand:
    def __init__(self, path: str, durability: str) -> None:
        self.connection = apsw.Connection(path)
        self.connection.set_busy_timeout(BUSY_MS)
        assert self.connection.pragma("journal_mode", "wal") == "wal"
        self.connection.pragma("synchronous", durability)
        self.connection.pragma("wal_autocheckpoint", 1_000)
        self.connection.execute(SCHEMA)

    def call(self, task_id: str, job: Callable[..., Any], **arguments: object) -> Any:  # noqa: ANN401 - any job's
        """Look, and replay; or claim, run, and finish: the statements of an idemreg call, in its order."""
        checksum = hashlib.sha256(_encode(arguments).encode()).hexdigest()
        row = self.connection.execute(SELECT, (task_id,)).fetchone()
        if row is not None:
            return _replay(row, checksum)
        return self._claim_and_run(task_id, checksum, job, arguments)

    def call_unseen(self, task_id: str, job: Callable[..., Any], **arguments: object) -> Any:  # noqa: ANN401
        """The same without the first look: cheaper for a new task, while a duplicate would take the write lock."""
        checksum = hashlib.sha256(_encode(arguments).encode()).hexdigest()
        return self._claim_and_run(task_id, checksum, job, arguments)

    def _claim_and_run(self, task_id: str, checksum: str, job: Callable[..., Any], arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        if self.write(INSERT, (task_id, checksum, time.time_ns() // 1_000)) != 1:
            return _replay(self.connection.execute(SELECT, (task_id,)).fetchone(), checksum)
        result = job(**arguments)
        if self.write(FINISH, (time.time_ns() // 1_000, json.dumps(result), task_id)) != 1:
            msg = "the claim was lost"
            raise RuntimeError(msg)
        return result

    def write(self, statement: str, bindings: tuple[object, ...]) -> int:
        """One transaction; the rows that it changed."""
        self.connection.execute(statement, bindings)
        return self.connection.changes()

    def close(self) -> None:
        self.connection.close()


class ByHandQueued(ByHand):
    """The same, and each write waits for its turn at a lock whose waiters the kernel serves in their order."""

    def __init__(self, path: str, durability: str) -> None:
        super().__init__(path, durability)
        self._turn = os.open(f"{path}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, statement: str, bindings: tuple[object, ...]) -> int:
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        try:
            return super().write(statement, bindings)
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def close(self) -> None:
        super().close()
        os.close(self._turn)


def _replay(row: Any, checksum: str) -> Any:  # noqa: ANN401
    status, stored, result = row
    if stored != checksum:
        msg = "the same task with other arguments"
        raise ValueError(msg)
    if status != SUCCEEDED:
        msg = "the task is running, or its process died"
        raise RuntimeError(msg)
    return json.loads(result)
