"""A glance at a file from outside, for the completion of a shell: the beginning of a list, or nothing at all.

It opens no registry: that would make a lock file where there is none, and wait where somebody creates or migrates.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import apsw

from idemreg.clock import Clock
from idemreg.errors import IdemregError
from idemreg.query import Query
from idemreg.sqlite.connection import NORMAL, connect, leave_wal
from idemreg.sqlite.form import check_form
from idemreg.sqlite.making import check_identity
from idemreg.sqlite.queries import Conditions, within
from idemreg.sqlite.trust import check_trust
from idemreg.sqlite.upkeep import SCHEMA

if TYPE_CHECKING:
    from idemreg.sqlite.connection import Connection

__all__ = ["task_ids"]

PATIENCE_S: Final = 0.2  # a person waits with a finger on the key


def task_ids(path: str, prefix: str, limit: int, *, unsafe_path: bool = False) -> list[str]:
    """At most ``limit`` task_ids with the prefix; none where the file is no registry at rest or at work, or is busy.

    Leaves no file behind that was not there.
    """
    database = os.path.realpath(path)
    # A registry that was ever opened has its lock file. Without it (a backup, say) nobody is to come upon new files.
    if not (os.path.isfile(database) and os.path.isfile(database + "-lock")):
        return []
    has_wal = os.path.exists(f"{database}-wal")
    try:
        check_trust(os.path.abspath(path), database, is_forced=unsafe_path)
        connection = connect(database, synchronous=NORMAL, busy_s=PATIENCE_S, clock=Clock())
        try:
            if has_wal:
                leave_wal(connection)
            return _read(connection, database, prefix, limit)
        finally:
            connection.close()
    except (apsw.Error, IdemregError, OSError, ValueError):
        return []


def _read(connection: Connection, database: str, prefix: str, limit: int) -> list[str]:
    if check_identity(connection, database) or connection.pragma("user_version") != SCHEMA.version:
        return []
    check_form(connection, SCHEMA.read_text())
    wanted = Conditions([], [])
    within(wanted, Query(prefix=prefix), None, None)
    rows = connection.execute(
        f"SELECT task_id FROM idempotent_log {wanted.where} ORDER BY task_id LIMIT ?",  # noqa: S608 - constants only
        (*wanted.bindings, limit),
    )
    return [str(task_id) for (task_id,) in rows.fetchall()]
