"""Schedules and their slots: rows that come before anything runs.

A hundred thousand slots may have been missed. Their rows are made by one prepared statement in one transaction, each
with its two seals, as `sqlite/tasks.py` would write it: a pending row, or one that was settled as skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from idemreg import faults
from idemreg.cron import Cron
from idemreg.errors import StoreCorruptError
from idemreg.ledger import Schedule, State, Waiting, is_skipped
from idemreg.model import OnCrash, Status, Verdict
from idemreg.slots import BY_SCHEDULE, REMOVED, Reason, slot_id, slot_of
from idemreg.sqlite.records import floor
from idemreg.sqlite.rows import COLUMNS, to_task
from idemreg.sqlite.seals import broken, claim_seal, state_seal, values_hold, values_seal
from idemreg.sqlite.whose import owner_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from idemreg.deciding import Wanted
    from idemreg.ledger import NewSlot
    from idemreg.model import Task
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.owners import Owners
    from idemreg.sqlite.stamps import Stamp

__all__ = [
    "AFTER_AT",
    "ANY_SLOT",
    "ahead",
    "mark_removed",
    "newest",
    "plan",
    "put",
    "schedules",
    "to_schedule",
    "waiting",
]

_FIELDS: Final = (
    "name, version, cron, zone, after_s, until_s, watermark_s, open_s, grace_ms, state, skips"  # as in `Schedule`
)
ANY_SLOT: Final = "?*@????-??-??T??:??:??Z"  # for GLOB; `slot_of` has the last word
AFTER_AT: Final = "A"  # the character behind "@", so that a range of task_ids ends there
_AFTER_SLOTS: Final = "@:"  # behind "@9": what is named NAME@<letter> is no slot


def schedules(connection: Connection, schema_version: int, name: str | None = None) -> list[Schedule]:
    """Every version of the schedule, or of all, in order."""
    floor(connection, schema_version)
    rows = connection.execute(
        f"SELECT {_FIELDS}, seal FROM idempotent_schedule WHERE name = ?1 OR ?1 IS NULL ORDER BY name, version",  # noqa: S608
        (name if name is None else _text(name),),
    ).fetchall()
    return [to_schedule(row) for row in rows]


def newest(connection: Connection, name: str) -> Schedule | None:
    """The version that counts."""
    row = connection.execute(
        f"SELECT {_FIELDS}, seal FROM idempotent_schedule WHERE name = ? ORDER BY version DESC LIMIT 1",  # noqa: S608
        (_text(name),),
    ).fetchone()
    return None if row is None else to_schedule(row)


def _text(name: str) -> str:
    """What SQLite can compare with: words of a command line may be no UTF-8, and then no schedule's name."""
    return name.encode("utf-8", "replace").decode()


def to_schedule(row: Sequence[Any]) -> Schedule:
    """A row, its seal verified."""
    if not values_hold(row[:-1], row[-1]):
        what = f"the row of schedule {row[0]!r}"
        raise broken(what)
    stored = Schedule._make(row[:-1])
    try:
        skips = None if stored.skips is None else Reason(stored.skips)
        return stored._replace(state=State(stored.state), skips=skips)
    except ValueError as unknown:
        msg = f"the row of schedule {row[0]!r} holds a value that no idemreg writes: {unknown}"
        raise StoreCorruptError(msg) from unknown


def waiting(connection: Connection, schema_version: int, owners: Owners, name: str) -> Waiting:
    """The version that counts, and what is not at its end; read as of one instant."""
    connection.execute("BEGIN")
    try:
        floor(connection, schema_version)
        schedule = newest(connection, name)
        if schedule is None:
            return Waiting(None, [], {})
        tasks = _unended(connection, name, schedule.open_s)
        running = [task for task in tasks if task.status is Status.RUNNING]
        owned = {task.task_id: owner_of(owners, connection, task) for task in running}
        begun = _begun(connection, schedule, tasks)
        early = _early(connection, name, schedule.watermark_s)
        return Waiting(schedule, tasks, owned, begun, _has_begun(early), _skipped_s(early))
    finally:
        connection.execute("ROLLBACK")


def _unended(connection: Connection, name: str, open_s: int) -> list[Task]:
    """By the index; of the running ones, which have none, those that the schedule may have.

    Of the unknown ones, those about which a verify hook may speak: under hold there may be any number.
    """
    rows: list[Any] = []
    for status in (Status.PENDING, Status.FAILED, Status.UNKNOWN):
        rows += connection.execute(
            f"SELECT {COLUMNS} FROM idempotent_log WHERE status = ? AND status NOT IN (1, 3)"  # noqa: S608 - constants
            f" AND task_id > ? AND task_id < ? AND (status <> {Status.UNKNOWN:d} OR policy & 3 < {OnCrash.HOLD:d})",
            (int(status), f"{name}@", name + AFTER_AT),
        ).fetchall()
    rows += connection.execute(
        f"SELECT {COLUMNS} FROM idempotent_log WHERE status = 3 AND task_id >= ? AND task_id < ?",  # noqa: S608
        (slot_id(name, open_s), name + AFTER_AT),
    ).fetchall()
    tasks = sorted(map(to_task, rows))  # by task_id, which is by time
    return [task for task in tasks if slot_of(task.task_id) is not None]


def _begun(connection: Connection, schedule: Schedule, tasks: Sequence[Task]) -> tuple[int, ...]:
    """The newest slots that have begun, behind the oldest that has not: of all, and of those that have come due."""
    oldest = next((task for task in tasks if task.is_untried), None)
    if oldest is None:
        return ()
    found = []
    for last in (schedule.name + AFTER_AT, slot_id(schedule.name, schedule.watermark_s)):
        rows = connection.execute(
            f"SELECT {COLUMNS} FROM idempotent_log WHERE task_id > ? AND task_id <= ? AND task_id GLOB ?"  # noqa: S608
            f" AND status NOT IN ({Status.SKIPPED:d}, {Status.CANCELLED:d})"
            f" AND (status <> {Status.PENDING:d} OR attempt > 0) ORDER BY task_id DESC",
            (oldest.task_id, last, ANY_SLOT),
        )
        slots = (slot_of(to_task(row).task_id) for row in rows)  # of that form are also 99:99:99, and other names
        found.append(next((at_s for at_s in slots if at_s is not None), None))
    return tuple(at_s for at_s in found if at_s is not None)


def ahead(connection: Connection, name: str, after_s: int) -> Iterator[Task]:
    """The rows of all slots after an instant, in order."""
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM idempotent_log WHERE task_id > ? AND task_id < ? AND task_id GLOB ?"  # noqa: S608
        " ORDER BY task_id",
        (slot_id(name, after_s), name + _AFTER_SLOTS, ANY_SLOT),
    )
    return (task for task in map(to_task, rows) if slot_of(task.task_id) is not None)


def _early(connection: Connection, name: str, after_s: int) -> list[Task]:
    """Those of them that have left `pending`."""
    return [task for task in ahead(connection, name, after_s) if not task.is_untried]


def _has_begun(early: Sequence[Task]) -> dict[int, bool]:
    """Of slots that have left `pending` before a look came to them: whether they have begun."""
    return {slot_of(task.task_id) or 0: task.status not in {Status.SKIPPED, Status.CANCELLED} for task in early}


def _skipped_s(early: Sequence[Task]) -> int | None:
    """The newest of them that the schedule itself has skipped."""
    return max((slot_of(task.task_id) or 0 for task in early if is_skipped(task)), default=None)


_PUT: Final = f"INSERT OR REPLACE INTO idempotent_schedule ({_FIELDS}, seal) VALUES ({'?, ' * 11}?)"  # noqa: S608
_INSERT: Final = (
    "INSERT INTO idempotent_log (task_id, checksum, updated_at, boot_stamp, name, policy, keep_ms, status, token,"
    " attempt, is_large, verdict, settled_by, evidence, claim_seal, state_seal)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)


def plan(
    connection: Connection,
    schema_version: int,
    seen: Schedule | None,
    becomes: Sequence[Schedule],
    slots: Sequence[NewSlot],
    wanted: Wanted,
    stamp: Stamp,
) -> bool:
    """See `Ledger.plan`. Inside a transaction. A slot that has a row keeps it: it may have run."""
    floor(connection, schema_version)
    name = becomes[0].name
    if newest(connection, name) != seen:
        return False
    for schedule in _with_early(connection, _in_sight(connection, seen, becomes)):
        put(connection, schedule)
    ends = ((at_s, None if reason is None else reason.value) for at_s, reason in slots)
    connection.executemany(_INSERT, _rows(name, ends, wanted, stamp))
    faults.point("slots.in-transaction")
    return True


def put(connection: Connection, schedule: Schedule) -> None:
    """Write a version, new or in place of the one that is there. Inside a transaction."""
    values = (*schedule[:9], int(schedule.state), None if schedule.skips is None else schedule.skips.value)
    connection.execute(_PUT, (*values, values_seal(values)))


def _in_sight(connection: Connection, seen: Schedule | None, becomes: Sequence[Schedule]) -> Sequence[Schedule]:
    """No slot at work falls out of sight: it may have been claimed, by hand, since the schedule was looked at."""
    last = becomes[-1]
    if seen is not None and last.open_s <= seen.open_s:
        return becomes
    first = f"{last.name}@" if seen is None else slot_id(last.name, seen.open_s)
    ids = connection.execute(
        "SELECT task_id FROM idempotent_log WHERE status = 3 AND task_id >= ? AND task_id < ? ORDER BY task_id",
        (first, slot_id(last.name, last.open_s)),
    ).fetchall()
    oldest_s = next((at_s for (task_id,) in ids if (at_s := slot_of(str(task_id))) is not None), last.open_s)
    return [*becomes[:-1], last._replace(open_s=oldest_s)]


def _with_early(connection: Connection, becomes: Sequence[Schedule]) -> Sequence[Schedule]:
    """Where one version becomes another, the first says how far its slots have begun ahead of its end.

    By hand, or by a clock that was ahead; one may have begun since the schedule was looked at. So the audit takes none
    of them for a double.
    """
    if len(becomes) == 1:
        return becomes
    *before, ended, new = becomes
    if ended.until_s is None or (ended.cron, ended.zone) == (new.cron, new.zone):
        return becomes
    cron = Cron(ended.cron, ended.zone)
    begun = (at_s for at_s, has_begun in _has_begun(_early(connection, ended.name, ended.until_s)).items() if has_begun)
    newest_s = max(filter(cron.names, begun), default=ended.open_s)
    return [*before, ended._replace(open_s=newest_s), new]


def mark_removed(connection: Connection, name: str, slots: Iterable[int], wanted: Wanted, stamp: Stamp) -> None:
    """Give each of the slots a row by which it never comes again. Inside a transaction."""
    ended = ((at_s, REMOVED) for at_s in slots)
    connection.executemany(_INSERT, _rows(name, ended, wanted._replace(keep_ms=None), stamp))


def _rows(
    schedule: str, slots: Iterable[tuple[int, str | None]], wanted: Wanted, stamp: Stamp
) -> Iterator[tuple[Any, ...]]:
    """Of each slot and why it was skipped; None: it is pending."""
    packed, keep_ms, name, checksum = wanted.policy.pack(), wanted.keep_ms, wanted.name, wanted.checksum
    skipped = (int(Status.SKIPPED), int(Verdict.SKIPPED), BY_SCHEDULE)
    pending = (int(Status.PENDING), None, None)
    for at_s, why in slots:
        task_id = slot_id(schedule, at_s)
        status, verdict, by = pending if why is None else skipped
        yield (
            task_id,
            checksum,
            *stamp,
            name,
            packed,
            keep_ms,
            status,
            verdict,
            by,
            why,
            claim_seal(task_id, name, checksum, packed, keep_ms, None, by, why),
            state_seal(task_id, status, 0, 0, None, verdict, *stamp, None, None),
        )
