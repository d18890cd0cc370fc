"""The registry's file as another program sees it, which obeys no rule but keeps the page checksums right.

What it changes is then found by nothing but the seals. Without the VFS, whatever it writes (the -wal that the last
connection moves at its close, too) would leave pages with wrong checksums.
"""

from __future__ import annotations

import os
from typing import Any

import apsw

from idemreg.sqlite.pages import vfs
from idemreg.sqlite.seals import claim_seal, state_seal, values_seal

__all__ = ["connect", "reseal"]

READ_WRITE = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE


def connect(path: str | os.PathLike[str], flags: int = READ_WRITE) -> apsw.Connection:
    return apsw.Connection(os.fspath(path), flags=flags, vfs=vfs())


TASK = (
    "SELECT t.task_id, t.name, t.checksum, t.policy, t.keep_ms, t.note, t.settled_by, t.evidence, t.status, t.token,"
    " t.attempt, t.owner, t.verdict, t.updated_at, t.boot_stamp, coalesce(t.result, l.result),"
    " coalesce(t.error, l.error) FROM idempotent_log t LEFT JOIN idempotent_large l USING (task_id)"
)
FILE = "SELECT schema_version, registry_id, lock_id, boot_id, floor, key_note FROM idempotent_registry"


def reseal(connection: apsw.Connection) -> None:
    """As if idemreg had written the rows so: what a row says now is what its seal covers."""
    rows: list[Any] = connection.execute(TASK).fetchall()
    for row in rows:
        seals = claim_seal(*row[:8]), state_seal(row[0], *row[8:])
        connection.execute(
            "UPDATE idempotent_log SET claim_seal = ?, state_seal = ? WHERE task_id = ?", (*seals, row[0])
        )
    for row in connection.execute("SELECT * FROM idempotent_owner").fetchall():
        connection.execute("UPDATE idempotent_owner SET seal = ? WHERE id = ?", (values_seal(row[:-1]), row[0]))
    for row in connection.execute("SELECT * FROM idempotent_clock").fetchall():
        connection.execute("UPDATE idempotent_clock SET seal = ?", (values_seal(row[1:-1]),))
    for row in connection.execute("SELECT * FROM idempotent_lease").fetchall():
        connection.execute("UPDATE idempotent_lease SET seal = ? WHERE task_id = ?", (values_seal(row[:-1]), row[0]))
    for row in connection.execute("SELECT * FROM idempotent_argument").fetchall():
        connection.execute("UPDATE idempotent_argument SET seal = ? WHERE task_id = ?", (values_seal(row[:-1]), row[0]))
    for row in connection.execute("SELECT * FROM idempotent_serial").fetchall():
        connection.execute("UPDATE idempotent_serial SET seal = ? WHERE prefix = ?", (values_seal(row[:-1]), row[0]))
    for row in connection.execute("SELECT * FROM idempotent_step").fetchall():
        connection.execute(
            "UPDATE idempotent_step SET seal = ? WHERE task_id = ? AND name = ?", (values_seal(row[:-1]), *row[:2])
        )
    for row in connection.execute(FILE).fetchall():
        seal = values_seal((*row, connection.reserve_bytes()))
        connection.execute("UPDATE idempotent_registry SET seal = ?", (seal,))
    for row in connection.execute("SELECT * FROM idempotent_schedule").fetchall():
        connection.execute(
            "UPDATE idempotent_schedule SET seal = ? WHERE name = ? AND version = ?", (values_seal(row[:-1]), *row[:2])
        )
