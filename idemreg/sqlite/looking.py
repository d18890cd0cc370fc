"""Looking into a database file without changing it: for the doctor.

Every statement has a deadline, and nothing is written. How the file is opened depends on what lies beside it, since
SQLite creates, recovers and removes files by merely reading:

    -wal and -shm     read-only; closing neither checkpoints nor removes them
    -wal alone        the index is built in memory (locking_mode=exclusive), so that no -shm comes into being; others
                      wait meanwhile
    none of them      as everybody does: both come into being, and go again at the close
    none, and no right to create them, or a rollback journal: as an immutable file, or read-only
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

from idemreg.clockcheck.alarm import JOB, PREFIX
from idemreg.errors import StoreCorruptError, StoreError
from idemreg.sqlite import arguments, clocks, leases, pages, records, serial_marks, slots, step_rows, upkeep
from idemreg.sqlite import connection as connections
from idemreg.sqlite.checkpoints import wal_state
from idemreg.sqlite.connection import Connection
from idemreg.sqlite.form import check_form
from idemreg.sqlite.making import check_identity
from idemreg.sqlite.seals import TASK_COLUMNS, task_holds
from idemreg.sqlite.stamps import EPOCH_BITS, LATEST_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from idemreg.clock import Clock
    from idemreg.liveness import OwnerRecord
    from idemreg.sqlite.checkpoints import WalState

__all__ = ["WANTED_SETTINGS", "DeadlineError", "Limited", "Look", "Registered", "Summary", "versions"]

BUSY_MS: Final = 1_000
OWNERS_LOOKED_AT: Final = 256
MARKS_LOOKED_AT: Final = 4_096
IN_WAL: Final = bytes([2, 2])  # the versions of the form for writers and readers, in the header
STEPS_BETWEEN_LOOKS_AT_THE_CLOCK: Final = 10_000  # of SQLite's machine, about a millisecond

# What idemreg's own connections ask for, and read back.
WANTED_SETTINGS: Final = {
    "synchronous": connections.FULL,
    "wal_autocheckpoint": 0,
    "trusted_schema": 0,
}

# A row that idemreg wrote satisfies none of these. The table's own CHECKs hold some of them for every other program
# too, unless it switched them off.
BROKEN: Final = {
    "its task_id is empty or too long": "length(CAST(task_id AS BLOB)) NOT BETWEEN 1 AND 512",
    "its status is none that exists": "status NOT BETWEEN 0 AND 6",
    "it has an owner and does not run, or runs without one": "(status = 3) != (owner IS NOT NULL)",
    "its checksum is none": "length(checksum) != 64 OR checksum GLOB '*[^0-9a-f]*'",
    "its token or its attempt is negative": "token < 0 OR attempt < 0",
    "it ran and was never claimed": "status IN (1, 2, 3, 4) AND token = 0",
    "its token is of a boot that has not been": "token >> 40 > (SELECT floor >> 40 FROM idempotent_registry)",
    "its policy is none": "policy & 3 = 3 OR policy >> 5 NOT BETWEEN 1 AND 1000000",
    "its verdict is none": "verdict NOT BETWEEN 1 AND 6",
    "its large values are stored twice": "is_large AND (result IS NOT NULL OR error IS NOT NULL)",
    "it succeeded, and neither a result nor the reason of its loss is stored": (
        "status = 1 AND NOT is_large AND result IS NULL AND error IS NULL"
    ),
    "its result is not JSON": "result IS NOT NULL AND NOT json_valid(result)",
}

# The text of the partial index's own condition, without which the planner does not use it.
_ATTENTION: Final = "status NOT IN (1, 3)"
_ALARM: Final = f"name = '{JOB}' AND task_id GLOB '{PREFIX}*'"  # as `is_alarm`

# Which tasks wait for a person: by what their row says.
WAITING: Final = {
    "clock-suspended": f"{_ATTENTION} AND status = 4 AND {_ALARM}",
    "unknown": f"{_ATTENTION} AND status = 4 AND NOT ({_ALARM})",
    "dead-letter": f"{_ATTENTION} AND status = 2 AND verdict IS NOT 4 AND attempt >= policy >> 5",
    "failed-held": (
        f"{_ATTENTION} AND status = 2 AND (verdict IS NULL OR verdict NOT IN (2, 4)) AND policy >> 2 & 1 = 1"
        " AND attempt < policy >> 5"
    ),
}


# Which tasks that are not running a sweep would run again with their kept arguments, or ask their verify hook about; as
# `idemreg.sweeping` says. The last condition of all: the claim that brought the arguments is the row's.
_RERUN: Final = (
    "(status = 0 AND attempt > 0 OR status = 2 AND (verdict = 4 OR verdict = 2 AND attempt < policy >> 5)"
    " OR status = 4 AND verdict IS NULL AND policy & 3 = 1) AND policy & 16"
)


def versions() -> tuple[str, str]:
    """The versions of apsw, and of the SQLite inside it."""
    return apsw.apsw_version(), apsw.sqlite_lib_version()


class DeadlineError(StoreError):
    """A look took longer than it may. What it found until then is not told."""

    code = "deadline"
    hint = "Give it more time: `idemreg doctor --full`."


class Registered(NamedTuple):
    """The row about the file."""

    schema_version: int
    lock_id: str
    boot_id: str
    epoch: int


class Summary(NamedTuple):
    """All tasks in a few numbers. The epochs are boots of this file, counted."""

    counts: dict[int, int]
    newest_us: int | None
    first_epoch: int | None
    last_epoch: int | None


class Limited(NamedTuple):
    """A running task that is past one of its limits."""

    task_id: str
    owner: int
    has_expired: bool
    is_overdue: bool


class Look:
    """A database file, opened to be looked at."""

    def __init__(self, path: str, clock: Clock, limit_s: float | None) -> None:
        """Open it. `StoreError` of the fitting kind where that fails; apsw's error is its cause."""
        self._clock = clock
        self._limit_s = limit_s
        self._deadline = float("inf")
        try:
            self._connection = _open(path)
            self._connection.set_progress_handler(self._is_late, STEPS_BETWEEN_LOOKS_AT_THE_CLOCK)
        except apsw.Error as error:
            raise connections.translate(error) from error

    def close(self) -> None:
        """Close it, and leave everything as it was found."""
        self._connection.close()

    def _is_late(self) -> bool:
        # Between two steps Ctrl-C gets its turn as well.
        return self._clock.monotonic() >= self._deadline

    def _ask(self, question: Callable[[Connection], Any]) -> Any:  # noqa: ANN401 - whatever the question gives
        self._deadline = float("inf") if self._limit_s is None else self._clock.monotonic() + self._limit_s
        try:
            return question(self._connection)
        except apsw.InterruptError as error:
            msg = f"not finished within {self._limit_s:g} s"
            raise DeadlineError(msg) from error
        except (apsw.Error, UnicodeDecodeError) as error:
            raise connections.translate(error, self._connection) from error

    def _rows(self, sql: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._ask(lambda connection: connection.execute(sql, bindings).fetchall())
        return found

    # --- the file -----------------------------------------------------------------------------------------------

    def is_empty(self) -> bool:
        """Whether there is nothing in it; `StorePathError` where it is another program's."""
        return bool(self._ask(lambda connection: check_identity(connection, connection.filename)))

    def layout(self) -> dict[str, Any]:
        """What is stored in the file: journal mode, page size, reserved bytes a page, version of the schema."""

        def read(connection: Connection) -> dict[str, Any]:
            names = ("journal_mode", "page_size", "user_version")
            told = {name: connection.pragma(name) for name in names} | {"reserved_bytes": connection.reserve_bytes()}
            # An immutable file is in no wal to SQLite, whatever it says itself.
            return told | {"journal_mode": "wal"} if connection.read("main", 0, 18, 2)[1] == IN_WAL else told

        return dict(self._ask(read))

    def settings(self) -> dict[str, Any]:
        """What a connection answers that was told `WANTED_SETTINGS`."""

        def read(connection: Connection) -> dict[str, Any]:
            for name, value in WANTED_SETTINGS.items():
                connection.pragma(name, value)
            return {name: connection.pragma(name) for name in WANTED_SETTINGS}

        return dict(self._ask(read))

    def check_form(self) -> None:
        """`StoreCorruptError` where the tables are not exactly ours; see `sqlite/form.py`."""
        self._ask(lambda connection: check_form(connection, upkeep.SCHEMA.read_text()))

    def wal(self) -> WalState:
        """What is in the -wal."""
        state: WalState = self._ask(wal_state)
        return state

    def damage(self, limit: int, *, full: bool) -> list[str]:
        """What SQLite's quick_check, or its integrity_check, has to say; nothing where all is well."""
        found: list[str] = self._ask(lambda on: pages.damage(on, "integrity_check" if full else "quick_check", limit))
        return found

    # --- the registry -------------------------------------------------------------------------------------------

    def registered(self) -> Registered | None:
        """The row about the file; None where it is missing."""
        rows = self._rows("SELECT schema_version, lock_id, boot_id, floor FROM idempotent_registry")
        if not rows:
            return None
        version, lock_id, boot_id, floor = rows[0]
        return Registered(version, lock_id, boot_id, floor >> EPOCH_BITS)

    def owners(self, limit: int) -> list[OwnerRecord]:
        """Some of the recorded owners."""
        found: list[OwnerRecord] = self._ask(lambda connection: records.other_owners(connection, limit))
        return found

    def summary(self) -> Summary:
        """Reads all tasks."""
        rows = self._rows(
            "SELECT status, count(*), max(updated_at), min(boot_stamp >> 40), max(boot_stamp >> 40)"
            " FROM idempotent_log GROUP BY status"
        )
        if not rows:
            return Summary({}, None, None, None)
        newest, first, last = max(row[2] for row in rows), min(row[3] for row in rows), max(row[4] for row in rows)
        return Summary({row[0]: row[1] for row in rows}, newest, first, last)

    def running(self, limit: int) -> list[tuple[str, int]]:
        """Some running tasks with their owners. Reads all tasks."""
        rows = self._rows(
            "SELECT CAST(task_id AS BLOB), owner FROM idempotent_log WHERE status = 3 AND owner IS NOT NULL"
            " ORDER BY task_id LIMIT ?",
            (limit,),
        )
        return [(_text(task_id), owner) for task_id, owner in rows]

    def limited(self, epoch: int, limit: int) -> list[Limited]:
        """Some running tasks whose lease, or whose time, was over at this moment of the boot of that epoch."""
        now = epoch << EPOCH_BITS | min(self._clock.boot_ms(), LATEST_MS)
        rows = self._rows(
            "SELECT CAST(task.task_id AS BLOB), owner, ifnull(until_stamp < ?1, 0), ifnull(overdue_stamp < ?1, 0)"
            " FROM idempotent_lease AS lease JOIN idempotent_log AS task USING (task_id) WHERE status = 3"
            " AND policy & 8 AND task.token = lease.token AND (until_stamp < ?1 OR overdue_stamp < ?1)"
            " ORDER BY task.task_id LIMIT ?2",
            (now, limit),
        )
        return [Limited(_text(row[0]), row[1], bool(row[2]), bool(row[3])) for row in rows]

    def to_rerun(self, limit: int) -> list[str]:
        """Some tasks that nobody has, and that wait with kept arguments for a sweep. Reads all that are kept."""
        return self._ids(f"FROM idempotent_argument JOIN idempotent_log USING (task_id) WHERE {_RERUN}", limit)

    def kept_of_running(self, limit: int) -> set[str]:
        """Some running tasks that a sweep runs again, or asks about, once their owner is dead. Reads all kept ones."""
        source = "FROM idempotent_argument JOIN idempotent_log USING (task_id) WHERE status = 3 AND policy & 16"
        policies = (
            "(policy & 3 = 1 OR policy & 3 = 0 AND attempt < policy >> 5)"  # verify, and rerun with attempts left
        )
        return set(self._ids(f"{source} AND {policies}", limit))

    def waiting(self, kind: str, limit: int) -> list[str]:
        """Some of the tasks that wait for a person; ``kind`` is one of `WAITING`."""
        return self._ids(f"FROM idempotent_log WHERE {WAITING[kind]} ORDER BY task_id", limit)

    def broken(self, limit: int) -> list[tuple[str, str]]:
        """Some rows that idemreg did not write so, each with what is wrong. Reads all tasks."""
        cases = " ".join(f"WHEN {condition} THEN {number}" for number, condition in enumerate(BROKEN.values()))
        rows = self._rows(
            f"SELECT CAST(task_id AS BLOB), CASE {cases} END AS wrong FROM idempotent_log"  # noqa: S608 - constants
            " WHERE wrong IS NOT NULL LIMIT ?",
            (limit,),
        )
        reasons = list(BROKEN)
        return [(_text(task_id), reasons[wrong]) for task_id, wrong in rows]

    def broken_seals(self, limit: int) -> list[str]:
        """What is not as it was written, of the rows of all tables; some of it. Reads all tasks."""
        found: list[str] = []
        for verify in _VERIFYING:
            try:
                self._ask(verify)
            except StoreCorruptError as error:
                found.append(error.message)

        def read(connection: Connection) -> None:
            for row in connection.execute(_RAW):
                if not task_holds([_decoded(value) for value in row]):
                    found.append(f"the row of task {_text(row[0])!r} is not as it was written: its seal does not hold")
                    if len(found) >= limit:
                        break

        self._ask(read)
        return found

    def large_missing(self, limit: int) -> list[str]:
        """Tasks whose large values are not there. Reads all tasks."""
        return self._ids(
            "FROM idempotent_log WHERE is_large AND task_id NOT IN (SELECT task_id FROM idempotent_large)", limit
        )

    def large_orphaned(self, limit: int) -> list[str]:
        """Large values whose task is gone, or says that it has none."""
        return self._ids(
            "FROM idempotent_large WHERE task_id NOT IN (SELECT task_id FROM idempotent_log WHERE is_large)", limit
        )

    def steps_orphaned(self, limit: int) -> list[str]:
        """Tasks that have steps and no row. Reads all steps."""
        return self._ids(
            "FROM (SELECT DISTINCT task_id FROM idempotent_step)"
            " WHERE task_id NOT IN (SELECT task_id FROM idempotent_log)",
            limit,
        )

    def arguments_orphaned(self, limit: int) -> list[str]:
        """Tasks whose arguments are kept though they are final, or gone. Reads all that are kept."""
        return self._ids(
            "FROM idempotent_argument"
            " WHERE task_id NOT IN (SELECT task_id FROM idempotent_log WHERE status NOT IN (1, 5, 6))",
            limit,
        )

    def _ids(self, source: str, limit: int) -> list[str]:
        rows = self._rows(f"SELECT CAST(task_id AS BLOB) {source} LIMIT ?", (limit,))
        return [_text(task_id) for (task_id,) in rows]


# Each reads the rows of a table other than that of tasks, whose seals it verifies.
_VERIFYING: Final[tuple[Callable[[Connection], object], ...]] = (
    records.registry_row,
    lambda connection: records.all_owners(connection, OWNERS_LOOKED_AT),
    lambda connection: serial_marks.all_marks(connection, MARKS_LOOKED_AT),
    step_rows.check_steps,
    clocks.watch,
    leases.check_seals,
    arguments.check_seals,
    lambda connection: slots.schedules(connection, upkeep.SCHEMA.version),
)

# Texts as bytes: one that is no UTF-8 must not keep the others from being read.
_IN_LARGE: Final = frozenset({"result", "error"})
_TEXTS: Final = frozenset({"task_id", "name", "checksum", "settled_by", "evidence"})


def _raw(column: str) -> str:
    if column in _IN_LARGE:
        return f"CAST(coalesce(t.{column}, l.{column}) AS BLOB)"
    return f"CAST(t.{column} AS BLOB)" if column in _TEXTS else f"t.{column}"


_RAW: Final = (
    f"SELECT {', '.join(map(_raw, TASK_COLUMNS))} FROM idempotent_log t"  # noqa: S608 - constants
    " LEFT JOIN idempotent_large l ON t.is_large AND l.task_id = t.task_id"
)


def _decoded(value: Any) -> Any:  # noqa: ANN401 - whatever SQLite gives
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _text(stored: bytes | None) -> str:
    """As it is, or with what is no UTF-8 spelled out: a damaged id must not keep the others from being told."""
    return "(none)" if stored is None else stored.decode("utf-8", "backslashreplace")


def _open(path: str) -> Connection:
    has_wal, has_shm, has_journal = (os.path.exists(f"{path}{end}") for end in ("-wal", "-shm", "-journal"))
    may_create = os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK)
    if has_wal and not has_shm and may_create:
        connection = _connect(path, apsw.SQLITE_OPEN_READWRITE)
        connection.pragma("locking_mode", "exclusive")
        return connection
    if has_wal or has_journal:
        return _connect(path, apsw.SQLITE_OPEN_READONLY)
    if may_create:
        return _connect(path, apsw.SQLITE_OPEN_READWRITE, keeps_wal=False)
    # Closing an immutable file would drop SQLite's locks elsewhere in this process. There are none: idemreg does not
    # open a registry in a folder that it may not write.
    return _connect(f"{pages.uri(path)}?immutable=1", apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)


def _connect(name: str, flags: int, *, keeps_wal: bool = True) -> Connection:
    connection = Connection(name, flags=flags | apsw.SQLITE_OPEN_NOFOLLOW, vfs=pages.vfs())
    connections.harden(connection)
    connection.set_busy_timeout(BUSY_MS)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(keeps_wal))
    connection.pragma("query_only", 1)
    return connection
