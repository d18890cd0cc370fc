"""A registry with millions of rows, made in a minute: one task of each kind by idemreg, copied by SQL under new ids.

The copies differ from their pattern in the task_id only, and in their seals. They are inserted in the order of their
ids without a journal, which nobody should do with a registry that matters.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any, Final, cast

import apsw

from idemreg import Registry, Status
from idemreg.sqlite.pages import vfs
from idemreg.sqlite.seals import claim_seal, state_seal

if TYPE_CHECKING:
    from bench.model import Scale

__all__ = ["LISTED", "PURGED", "Ids", "big", "small"]

PURGED: Final = "purge:"
LISTED: Final = (Status.PENDING, Status.FAILED, Status.UNKNOWN, Status.SKIPPED, Status.CANCELLED)
BYTES_A_ROW: Final = 400  # to be on the safe side, the -wal included

# 60 bits as 15 hexadecimal digits, which SQLite's integers hold.
SPACE: Final = 2**60
GOLDEN: Final = 0x9E3779B97F4A7C15  # 2^64 / the golden ratio: multiples of it lie evenly all over the space

# The pattern's error, which is too long for the row itself.
LARGE: Final = (
    "INSERT INTO idempotent_large (task_id, result, error) SELECT t.task_id, p.result, p.error"
    " FROM idempotent_log t, idempotent_large p WHERE t.is_large = 1 AND t.status = ?1 AND p.task_id = ?2"
    " AND t.status NOT IN (1, 3) AND t.task_id <> ?2"
)

# As `idemreg.sqlite.seals` says what each covers.
SEAL: Final = (
    "UPDATE idempotent_log AS t SET"
    " claim_seal = claim_seal(task_id, name, checksum, policy, keep_ms, note, settled_by, evidence), state_seal ="
    " state_seal(task_id, status, token, attempt, owner, verdict, updated_at, boot_stamp,"
    " iif(is_large, (SELECT l.result FROM idempotent_large l WHERE l.task_id = t.task_id), result),"
    " iif(is_large, (SELECT l.error FROM idempotent_large l WHERE l.task_id = t.task_id), error))"
)

_made: dict[tuple[str, int], tuple[str, Any]] = {}


class Ids:
    """Task ids of 20 characters that are not in the file yet, by user."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    @staticmethod
    def ordered(user: int) -> str:
        """Behind all that there are."""
        return f"user:{user:015d}"

    @staticmethod
    def random(user: int) -> str:
        """Anywhere among them. Odd, where the file's are even."""
        return f"task:{(user * GOLDEN % SPACE) | 1:015x}"


def big(scale: Scale, folder: str) -> str:
    """The file with many rows, of which some are to be purged."""
    return _shared(folder, scale.rows, scale.purged, scale.rows_of_a_status)


def small(scale: Scale, folder: str) -> str:
    """The one with few rows."""
    return _shared(folder, scale.few_rows, 0, 0)


def _shared(folder: str, rows: int, purged: int, of_a_status: int) -> str:
    """Made once a run and beside the figure's own folder, which is removed before the next figure comes."""
    beside = os.path.dirname(folder)
    if (beside, rows) not in _made:
        if shutil.disk_usage(beside).free < (needed := rows * BYTES_A_ROW):
            msg = f"{beside} has no room for {needed / 2**30:.1f} GiB; name another folder: --folder"
            raise OSError(msg)
        home = tempfile.TemporaryDirectory(prefix="idemreg-bench-rows-", dir=beside)  # goes with this process
        path = os.path.join(home.name, "jobs.db")
        _make(path, rows, purged, of_a_status)
        _made[beside, rows] = path, home
    return _made[beside, rows][0]


def _make(path: str, rows: int, purged: int, of_a_status: int) -> None:
    with Registry(path, durability="normal") as registry:
        _patterns(registry)
    connection = apsw.Connection(path, vfs=vfs())
    for name, value in (
        ("journal_mode", "off"),
        ("synchronous", 0),
        ("cache_size", -200_000),
        ("locking_mode", "exclusive"),
    ):
        connection.pragma(name, value)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(idempotent_log)")]
    _copy(connection, columns, "pattern:keep", "purge:%015x", purged)
    _copy(connection, columns, "pattern:succeeded", "task:%015x", rows - purged - of_a_status * len(LISTED))
    for status in LISTED:
        _copy(connection, columns, f"pattern:{status.word}", "task:%015x", of_a_status)
        connection.execute(LARGE, (int(status), f"pattern:{status.word}"))
    _seal(connection)
    for table in ("idempotent_log", "idempotent_large"):
        connection.execute(f"DELETE FROM {table} WHERE task_id >= 'pattern:' AND task_id < 'pattern;'")  # noqa: S608
    connection.pragma("journal_mode", "wal")
    connection.close()


def _copy(connection: apsw.Connection, columns: list[str], pattern: str, form: str, rows: int) -> None:
    """As many rows with even ids, one somewhere in each of as many equal parts of the space."""
    if not rows:
        return
    copied = ", ".join(column for column in columns if column != "task_id")
    step = SPACE // rows
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ? - 1)"  # noqa: S608 - names of columns
        f" INSERT INTO idempotent_log (task_id, {copied})"
        f" SELECT printf(?, (i * ? + abs(random() % ?)) & ~1), {copied} FROM n, idempotent_log WHERE task_id = ?",
        (rows, form, step, step, pattern),
    )


def _seal(connection: apsw.Connection) -> None:
    """The copies are other tasks, so their seals are others."""
    connection.create_scalar_function("claim_seal", cast("Any", claim_seal))
    connection.create_scalar_function("state_seal", cast("Any", state_seal))
    connection.execute(SEAL)


def _patterns(registry: Registry) -> None:
    def fail() -> None:
        raise OSError

    registry.run("pattern:succeeded", lambda: {"ok": 1}, name="ship")
    registry.run("pattern:keep", lambda: {"ok": 1}, name="ship", keep_for=0)
    for status, options in ((Status.FAILED, {}), (Status.UNKNOWN, {"unknown_on": OSError})):
        try:
            registry.run(f"pattern:{status.word}", fail, name="ship", **options)  # type: ignore[arg-type]
        except OSError:
            continue
    for status in (Status.PENDING, Status.SKIPPED, Status.CANCELLED):
        registry.add(f"pattern:{status.word}", name="ship")
    registry.skip("pattern:skipped", "for the benchmark")
    registry.cancel("pattern:cancelled")
