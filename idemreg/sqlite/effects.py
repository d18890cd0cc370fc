"""The transaction of a job: its effects on tables of its own in the same file, committed with its finish."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import apsw

from idemreg import faults
from idemreg.errors import ClaimLostError, StoreError, SyncFailedError
from idemreg.sqlite.connection import CommitUnsureError
from idemreg.store import Lost, Recorded, Unsure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.long_write import LongWrite
    from idemreg.store import End

__all__ = ["Effects"]

OUR_TABLES: Final = "idempotent_"

# What would end or leave the transaction, or change what it stands on.
_FORBIDDEN: Final = frozenset(
    {apsw.SQLITE_TRANSACTION, apsw.SQLITE_ATTACH, apsw.SQLITE_DETACH, apsw.SQLITE_PRAGMA, apsw.SQLITE_CREATE_TRIGGER,
     apsw.SQLITE_CREATE_TEMP_TRIGGER, apsw.SQLITE_CREATE_VTABLE}
)  # fmt: skip
# No fault of the statement.
_OF_THE_FILE: Final = (
    apsw.IOError,
    apsw.FullError,
    apsw.NoMemError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.BusyError,
    apsw.ProtocolError,
)

_READING: Final = frozenset({apsw.SQLITE_READ, apsw.SQLITE_SELECT})


class Effects:
    """An open transaction. ``execute`` is for the job, ``finish`` for the walk of its claim."""

    def __init__(
        self,
        write: LongWrite,
        finish: Callable[[Connection, End], bool],
        let_go: Callable[[End], None],
        task_id: str,
    ) -> None:
        self._write = write
        self._connection = write.connection
        self._finish = finish
        self._let_go = let_go
        self._task_id = task_id
        self._pid = os.getpid()

    def execute(self, sql: str, bindings: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Carry out one statement of the job, and give all of its rows.

        idemreg's own tables may be read only, and the transaction cannot be ended from here. Raises `StoreError`
        with SQLite's message as its cause; the transaction stays open, so an error may be caught.
        """
        self._refuse_in_child()
        # SQLite does not tell an authorizer what a table is renamed to.
        self._connection.authorizer = _authorize_but_alter if OUR_TABLES in sql.lower() else _authorize
        try:
            return self._connection.execute(sql, bindings).fetchall()
        except (apsw.Error, UnicodeEncodeError, OverflowError) as error:  # text that is none, a number beyond 64 bits
            raise self._problem(error) from error
        finally:
            self._connection.authorizer = None

    def _problem(self, error: Exception) -> StoreError:
        msg = f"SQLite: {error}"
        problem = StoreError(msg, task_id=self._task_id, hint="See the statement given to tx.execute().")
        problem.in_job = isinstance(error, _OF_THE_FILE)
        return problem

    def finish(self, end: End) -> Recorded | Lost | Unsure:
        """Finish the claim and commit. `Lost`: the caller leaves the block, and everything is rolled back."""
        self._refuse_in_child()
        if not self._finish(self._connection, end):
            self._let_go(end)
            return Lost(None)
        faults.point("transaction.finished")
        try:
            self._write.commit()
        except (CommitUnsureError, SyncFailedError) as error:
            return Unsure(error)
        self._let_go(end)
        return Recorded(end.task_id)

    def _refuse_in_child(self) -> None:
        if os.getpid() != self._pid:
            msg = "the transaction belongs to the parent process"
            raise ClaimLostError(msg, task_id=self._task_id)


def _authorize(operation: int, first: str | None, second: str | None, _database: str | None, _by: str | None) -> int:
    if operation in _FORBIDDEN:
        return apsw.SQLITE_DENY
    ours = any(name is not None and name.lower().startswith(OUR_TABLES) for name in (first, second))
    if ours and operation not in _READING:
        return apsw.SQLITE_DENY
    return apsw.SQLITE_OK


def _authorize_but_alter(
    operation: int, first: str | None, second: str | None, database: str | None, by: str | None
) -> int:
    if operation == apsw.SQLITE_ALTER_TABLE:
        return apsw.SQLITE_DENY
    return _authorize(operation, first, second, database, by)
