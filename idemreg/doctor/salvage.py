"""Salvage: every row whose seal holds, out of a damaged file into a new one, and what may be missing."""

from __future__ import annotations

import itertools
import os
import tempfile
from typing import TYPE_CHECKING, Final, NamedTuple

from idemreg.blocks import Block
from idemreg.clock import Clock
from idemreg.clockcheck.alarm import as_wanted
from idemreg.clockcheck.readings import Watch
from idemreg.deciding import Wanted
from idemreg.errors import RecoveryError, StoreCorruptError, StorePathError
from idemreg.model import NO_CHECKSUM, Policy, Status, Task, Verdict
from idemreg.owned import check_owned
from idemreg.sqlite.backend import SqliteStore
from idemreg.sqlite.files import absolute
from idemreg.sqlite.opening import Opening
from idemreg.sqlite.salvaging import BY_SALVAGE, NO_BOOT, salvaging
from idemreg.sqlite.trust import check_trust

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.model import Origin
    from idemreg.sqlite.gaps import Gaps
    from idemreg.sqlite.salvaging import Salvage

__all__ = ["Salvaged", "salvage"]

CHUNK_TASKS: Final = 500
KEPT_AT_ONCE: Final = 20  # each of up to 1 MiB
BUSY_S: Final = 10.0


class Salvaged(NamedTuple):
    """What was salvaged. ``unknown``: of the copied ones those that nobody can know about now."""

    path: str
    copied: int
    unknown: int
    gaps: Gaps


def salvage(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    clock: Clock | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Salvaged:
    """Copy every row whose seal holds from the file at ``path`` to a new registry at ``out``, which must not exist.

    The damaged file is only read, page by page past SQLite. A task that was running becomes unknown, and so does any
    that is not final and may have a newer row that is lost. Tokens given in ``out`` are above all that were given.
    Of one that asked to be rerun the arguments come along, for a rerun once somebody says that it did not happen.
    ``out`` appears complete, or not at all. Nothing may have the damaged file open in this process; stop what uses it.
    """
    given, target = absolute(path), absolute(out)
    database = os.path.realpath(given)
    check_trust(given, database, is_forced=True)  # it is only read, but it must be a file
    if os.path.lexists(target):
        msg = f"{target} exists already"
        raise StorePathError(msg, hint="Name a file that does not exist yet; nothing is overwritten.")
    if not any(os.path.exists(database + end) for end in ("", "-wal")):
        msg = f"there is no file {database}"
        raise StorePathError(msg)
    clock = clock or Clock()
    with salvaging(database, clock, progress, takes_commands=_is_own(given)) as source:
        gaps = source.read()
        copied, unknown = _write(source, target, clock)
    return Salvaged(target, copied, unknown, gaps)


def _is_own(path: str) -> bool:
    """Whether a watch would execute the commands that are kept in the file."""
    try:
        check_owned(path)
    except (RecoveryError, OSError):  # or nobody can say
        return False
    return True


def _write(source: Salvage, target: str, clock: Clock) -> tuple[int, int]:
    """Make the registry in a folder of its own, and place it as a backup is placed: complete, or not at all."""
    copied = unknown = 0
    tasks = source.tasks()
    chunk = list(itertools.islice(tasks, CHUNK_TASKS))
    if not chunk and source.origin is None:
        msg = "nothing of a registry was found in the file"
        raise StoreCorruptError(msg, hint="Is it the right file? Else nothing but a backup helps.")
    try:
        folder = tempfile.TemporaryDirectory(prefix=".idemreg-salvage-", dir=os.path.dirname(target))
    except OSError as error:
        msg = f"cannot write {target}: {error.strerror}"
        raise StorePathError(msg) from error
    with folder as name:
        made = os.path.join(name, "jobs.db")
        opening = Opening(
            made,
            create=True,
            busy_s=BUSY_S,
            clock=clock,
            reads_durable=False,
            unsafe_path=True,
            page_checksums=source.has_page_checksums,
        )
        store = SqliteStore(opening).serve()
        try:
            origin = source.origin or store.origin()
            while True:
                store.put(chunk, source.floor, origin, {task.task_id: source.steps(task.task_id) for task in chunk})
                copied += len(chunk)
                unknown += sum(task.status is Status.UNKNOWN and task.settled_by == BY_SALVAGE for task in chunk)
                chunk = list(itertools.islice(tasks, CHUNK_TASKS))
                if not chunk:
                    break
            kept = source.kept.all()
            while some := list(itertools.islice(kept, KEPT_AT_ONCE)):
                store.put_kept(some)
            for prefix, mark_us in source.marks.items():
                beyond = Block(0, mark_us, mark_us, 0)
                store.reserve_serials(prefix, mark_us, 0, beyond, durable=False)
            _hold(source, store, origin, clock)
            store.backup(target, None)
        finally:
            store.close()
    return copied, unknown


def _hold(source: Salvage, store: SqliteStore, origin: Origin, clock: Clock) -> None:
    """Schedules with their pauses, and the clock with its alarm: see `sqlite/holding.py`."""
    held = source.held
    for versions in held.schedules():
        store.plan(None, versions, [], Wanted("", versions[0].name, NO_CHECKSUM, Policy()))
    if held.watch is not None:
        store.note_watch(Watch(), held.watch)
    if held.alarm is not None:
        store.put([_alarm(held.alarm, clock)], source.floor, origin)


def _alarm(task_id: str, clock: Clock) -> Task:
    """As the clock check raises one; what ends it has confirmed the clock."""
    wanted = as_wanted(task_id)
    error = "the clock is in doubt: this copy is of a damaged file, of which what was known of the clock is lost"
    return Task(
        *(task_id, Status.UNKNOWN, wanted.checksum, clock.wall_us(), NO_BOOT, wanted.name, 1, 1, None, wanted.policy),
        *(None, None, error),
        verdict=Verdict.CANNOT_TELL,
        settled_by=BY_SALVAGE,
        evidence="it may have been in doubt in the damaged file",
    )
