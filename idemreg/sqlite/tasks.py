"""The transitions of a task: one function, one statement, one transition, its changed rows counted.

Every function runs inside a transaction that its caller opened; what it decided by was read in the same transaction.
The compare-and-set in each statement is therefore a second barrier: it holds should the first, SQLite's write lock,
have been lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from idemreg.model import FINAL, NO_CHECKSUM, Status, of_fields
from idemreg.sqlite import arguments, leases
from idemreg.sqlite.records import raise_floor
from idemreg.sqlite.rows import claim_fields
from idemreg.sqlite.seals import claim_seal, running_seal, state_seal, success_seal
from idemreg.store import Absent, Stored

if TYPE_CHECKING:
    from idemreg.deciding import Wanted
    from idemreg.model import Policy, Task
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.stamps import Stamp
    from idemreg.store import End, Settlement

__all__ = [
    "claim",
    "finish",
    "forget",
    "glance",
    "insert",
    "is_large",
    "is_plain_success",
    "settle",
    "succeed",
]

# Longer results and errors live in a table of their own, so that a page of the tree of tasks holds many tasks.
INLINE_CHARACTERS: Final = 200

_GLANCE: Final = (
    "SELECT token, attempt, updated_at, boot_stamp, result, state_seal, status = 1 AND name = ? AND checksum = ?"
    " AND result IS NOT NULL AND error IS NULL AND verdict IS NULL AND owner IS NULL"
    " AND (SELECT schema_version FROM idempotent_registry) = ? FROM idempotent_log WHERE task_id = ?"
)


def glance(connection: Connection, schema_version: int, wanted: Wanted) -> Stored | Absent | None:
    """The stored success of the very task, or that there is no row; None where more must be read.

    `deciding.decide` says the same of such a row. Half of a duplicate's time went into the columns that only other
    answers need. Of the seals that of the state is verified here: name and checksum equal what is wanted.
    """
    task_id = wanted.task_id
    try:
        rows: list[Any] = connection.hot.execute(
            _GLANCE, (wanted.name, wanted.checksum, schema_version, task_id)
        ).fetchall()
    except BaseException:  # memory may go between two rows, and a read that stays open keeps the -wal from its restart
        connection.renew_hot()
        raise
    if not rows:
        return _ABSENT
    token, attempt, updated_at, boot_stamp, result, seal, is_it = rows[0]
    if not is_it:
        return None
    try:
        if success_seal(task_id, token, attempt, updated_at, boot_stamp, result) == seal:
            return of_fields(Stored, (token, attempt, result))
    except TypeError:
        pass  # damage may make any type of a value
    return None  # a whole read tells what is wrong


_ABSENT: Final = Absent()


# --- claim ------------------------------------------------------------------------------------------------------


_INSERT: Final = (
    "INSERT INTO idempotent_log (task_id, checksum, updated_at, boot_stamp, name, policy, keep_ms, note, status, token,"
    " attempt, owner, claim_seal, state_seal, is_large) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0"
    " FROM idempotent_registry WHERE schema_version = ? AND floor = ? ON CONFLICT DO NOTHING"
)


def insert(
    connection: Connection,
    wanted: Wanted,
    schema_version: int,
    floor: int,
    owner: int | None,
    stamp: Stamp,
    note: int | None = None,
) -> bool:
    """none -> running, with the first token above the floor; or none -> pending, where there is no ``owner``.

    False where the task has a row, or the ground has shifted (a migration, a `forget` that raised the ``floor``): the
    statement checks both itself, so that it may be a transaction of its own. ``note``: which note of its owner tells
    whether the job was entered; None: the claim itself does.
    """
    task_id, name, checksum, policy, keep_ms = wanted[:5]
    updated_at, boot_stamp = stamp
    packed = policy.pack()
    status, token, attempt = (0, 0, 0) if owner is None else (3, floor + 1, 1)
    of_claim = claim_seal(task_id, name, checksum, packed, keep_ms, note)
    of_state = running_seal(task_id, status, token, attempt, owner, updated_at, boot_stamp)
    bindings = (
        task_id, checksum, updated_at, boot_stamp, name, packed, keep_ms, note, status, token, attempt, owner,
        of_claim, of_state, schema_version, floor,
    )  # fmt: skip
    connection.hot.execute(_INSERT, bindings)
    return connection.changes() == 1


def claim(
    connection: Connection,
    row: Task,
    wanted: Wanted,
    policy: Policy,
    token: int,
    attempt: int,
    owner: int,
    stamp: Stamp,
    note: int | None = None,
) -> bool:
    """pending, failed, unknown or running -> running, with a larger token. False where the row changed."""
    task_id, packed = row.task_id, policy.pack()
    connection.execute(
        "UPDATE idempotent_log SET status = 3, name = ?, checksum = ?, updated_at = ?, boot_stamp = ?, token = ?,"
        " attempt = ?, owner = ?, policy = ?, keep_ms = ?, verdict = NULL, note = ?, claim_seal = ?, state_seal = ?"
        " WHERE task_id = ? AND status = ? AND token = ?",
        (
            wanted.name,
            wanted.checksum,
            *stamp,
            token,
            attempt,
            owner,
            packed,
            wanted.keep_ms,
            note,
            claim_seal(
                task_id, wanted.name, wanted.checksum, packed, wanted.keep_ms, note, row.settled_by, row.evidence
            ),
            state_seal(task_id, 3, token, attempt, owner, None, *stamp, row.result, row.error),
            task_id,
            int(row.status),
            row.token,
        ),
    )
    is_claimed = connection.changes() == 1
    leases.drop(connection, row)
    if not policy.keeps_arguments:
        arguments.drop(connection, row)
    return is_claimed


# --- finish and settle ------------------------------------------------------------------------------------------


def is_plain_success(end: End) -> bool:
    """Whether `succeed` may do for this end: a success with a small result, the hot path."""
    return end.status is _SUCCEEDED and not is_large(end.result, end.error)


_SUCCEEDED: Final = Status.SUCCEEDED
_SUCCEED: Final = (
    "UPDATE idempotent_log SET status = 1, updated_at = ?, boot_stamp = ?, attempt = ?, owner = NULL, result = ?,"
    " error = ?, verdict = NULL, state_seal = ? WHERE task_id = ? AND token = ? AND owner = ? AND status = 3"
    " AND is_large = 0 AND (SELECT schema_version FROM idempotent_registry) = ?"
)


def succeed(connection: Connection, schema_version: int, end: End, stamp: Stamp) -> bool:
    """running -> succeeded. False as in `finish`, and where the row has something large from before."""
    task_id, token, owner, _, attempt, result, error = end[:7]
    updated_at, boot_stamp = stamp
    if result is not None and error is None:
        seal = success_seal(task_id, token, attempt, updated_at, boot_stamp, result)
    else:
        seal = state_seal(task_id, 1, token, attempt, None, None, updated_at, boot_stamp, result, error)
    bindings = (updated_at, boot_stamp, attempt, result, error, seal, task_id, token, owner, schema_version)
    connection.hot.execute(_SUCCEED, bindings)
    return connection.changes() == 1


def finish(connection: Connection, schema_version: int, end: End, stamp: Stamp) -> bool:
    """running -> succeeded, failed, unknown, or back.

    False where the claim is not this owner's any more, or this code must not write the file's schema.
    """
    task_id, token, owner, status, attempt, result, error, _, verdict, was_absent = end
    is_far = is_large(result, error)
    stored_verdict = None if verdict is None else int(verdict)
    connection.execute(
        "UPDATE idempotent_log SET status = ?, updated_at = ?, boot_stamp = ?, attempt = ?, owner = NULL, result = ?,"
        " error = ?, is_large = ?, verdict = ?, state_seal = ? WHERE task_id = ? AND token = ? AND owner = ?"
        " AND status = 3 AND (SELECT schema_version FROM idempotent_registry) = ?",
        (
            int(status),
            *stamp,
            attempt,
            None if is_far else result,
            None if is_far else error,
            is_far,
            stored_verdict,
            state_seal(task_id, int(status), token, attempt, None, stored_verdict, *stamp, result, error),
            task_id,
            token,
            owner,
            schema_version,
        ),
    )
    if connection.changes() != 1:
        return False
    _write_large(connection, task_id, result, error, is_large=is_far)
    if was_absent:
        _unbind(connection, task_id, token)
    return True


def _unbind(connection: Connection, task_id: str, token: int) -> None:
    """From now on the row belongs to no job; see `NO_CHECKSUM`."""
    _, _, _, *rest = claim_fields(connection, task_id) or (None, None, None)
    connection.execute(
        "UPDATE idempotent_log SET name = '', checksum = ?, claim_seal = ? WHERE task_id = ? AND token = ?",
        (NO_CHECKSUM, claim_seal(task_id, "", NO_CHECKSUM, *rest), task_id, token),
    )


def settle(connection: Connection, row: Task, status: Status, settlement: Settlement, stamp: Stamp) -> bool:
    """An end decided without the owner. False where the row changed.

    A claim leaves the result of the attempt before in its row, so that of a running row is not this attempt's.
    """
    succeeded = status is Status.SUCCEEDED
    result = settlement.result if succeeded or row.status is Status.RUNNING else row.result
    error = settlement.error if succeeded else settlement.error or row.error
    is_far = is_large(result, error)
    task_id, by, evidence = row.task_id, settlement.by, settlement.evidence
    verdict = None if settlement.verdict is None else int(settlement.verdict)
    connection.execute(
        "UPDATE idempotent_log SET status = ?, updated_at = ?, boot_stamp = ?, owner = NULL, result = ?, error = ?,"
        " is_large = ?, verdict = ?, settled_by = ?, evidence = ?, note = NULL, claim_seal = ?, state_seal = ?"
        " WHERE task_id = ? AND status = ? AND token = ?",
        (
            int(status),
            *stamp,
            None if is_far else result,
            None if is_far else error,
            is_far,
            verdict,
            by,
            evidence,
            claim_seal(task_id, row.name, row.checksum, row.policy.pack(), row.keep_ms, None, by, evidence),
            state_seal(task_id, int(status), row.token, row.attempt, None, verdict, *stamp, result, error),
            task_id,
            int(row.status),
            row.token,
        ),
    )
    if connection.changes() != 1:
        return False
    _write_large(connection, row.task_id, result, error, is_large=is_far)
    leases.drop(connection, row)
    if status in FINAL:
        arguments.drop(connection, row)
    return True


def is_large(result: str | None, error: str | None) -> bool:
    """Whether they live in the table of their own."""
    return (0 if result is None else len(result)) + (0 if error is None else len(error)) > INLINE_CHARACTERS


def _write_large(
    connection: Connection, task_id: str, result: str | None, error: str | None, *, is_large: bool
) -> None:
    if is_large:
        connection.execute(
            "INSERT INTO idempotent_large (task_id, result, error) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET result = excluded.result, error = excluded.error",
            (task_id, result, error),
        )
    else:
        connection.execute("DELETE FROM idempotent_large WHERE task_id = ?", (task_id,))


# --- forget -----------------------------------------------------------------------------------------------------


def forget(connection: Connection, row: Task) -> bool:
    """any -> none. Raises the token floor past the row's token, so that it is never given again."""
    connection.execute(
        "DELETE FROM idempotent_log WHERE task_id = ? AND status = ? AND token = ?",
        (row.task_id, int(row.status), row.token),
    )
    if connection.changes() != 1:
        return False
    connection.execute("DELETE FROM idempotent_large WHERE task_id = ?", (row.task_id,))
    connection.execute("DELETE FROM idempotent_step WHERE task_id = ?", (row.task_id,))
    leases.drop(connection, row)
    arguments.drop(connection, row)
    raise_floor(connection, row.token)
    return True
