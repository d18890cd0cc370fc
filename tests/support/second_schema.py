"""A schema that only the tests know: one column more than the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idemreg import Clock
from idemreg.sqlite import upkeep
from idemreg.sqlite.backend import SqliteStore
from idemreg.sqlite.opening import Opening

if TYPE_CHECKING:
    from apsw import Connection


def _add_column(connection: Connection) -> None:
    connection.execute("ALTER TABLE idempotent_log ADD COLUMN remark TEXT")


def _text() -> str:
    # Where SQLite puts the column: a file that was made so has the same text as one that was migrated.
    old, last = upkeep.SCHEMA.read_text(), "    CHECK (octet_length(task_id)"
    assert old.count(last) == 1
    return old.replace(last, f"    remark TEXT,\n{last}")


SECOND = upkeep.Schema(version=2, read_text=_text, migrations={1: _add_column})


def open_second(path: str) -> SqliteStore:
    """Open the file with the second schema, which migrates an older one."""
    store = SqliteStore(Opening(path, create=True, busy_s=5, clock=Clock(), schema=SECOND)).serve()
    store.open()
    return store
