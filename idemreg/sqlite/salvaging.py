"""The rows of a damaged file: all whose seals hold, the newest of each task, and what may be missing.

A row is *sure* if it is on the newest version of a page that is in use. It is not, where it comes from an older version
of a damaged page, from a page that may have been given up (the list of free pages cannot be read, and no sound page
leads there), or beside a -wal that has lost a frame, or is gone with frames that the lock file tells of (see
`sqlite/rest.py`): a later row of the task may be what was lost. What is final stays so; any other row that is not sure
becomes unknown, so that nothing runs again on the word of an older copy.

Of the marks of serial numbers the highest is taken that is found: one that is lost brings no serial back, since the
new registry gives them under other instances. What becomes of schedules and of the clock, `sqlite/holding.py` tells; of
kept arguments, `sqlite/kept_rows.py`.
"""

from __future__ import annotations

import contextlib
import os
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import apsw

from idemreg.errors import StoreCorruptError, StorePathError
from idemreg.lockfile import LockFile, digest
from idemreg.model import FINAL, Origin, Status, Task, Verdict
from idemreg.sqlite import rest
from idemreg.sqlite.carving import Image, Version
from idemreg.sqlite.cells import Tree, adds_up, cells, children
from idemreg.sqlite.connection import translate
from idemreg.sqlite.gaps import EVERYWHERE, NAMED, Gaps, Range, joined
from idemreg.sqlite.holding import CLOCK, SCHEDULES, Held
from idemreg.sqlite.kept_rows import ARGUMENTS, KeptRows
from idemreg.sqlite.pages import RESERVED_BYTES
from idemreg.sqlite.records import RegistryRow
from idemreg.sqlite.rows import to_task
from idemreg.sqlite.seals import TASK_COLUMNS, values_seal
from idemreg.sqlite.serial_marks import to_mark
from idemreg.sqlite.stamps import EPOCH_BITS
from idemreg.sqlite.step_rows import to_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from idemreg.clock import Clock
    from idemreg.progress import Step

__all__ = ["Salvage", "salvaging"]

BY_SALVAGE: Final = "salvage"
NO_BOOT: Final = 0  # the age of a row goes by its date there, as of an import
# Where the row about the file is lost, a lost row may be of a later boot than any that is left.
SPARE_EPOCHS: Final = 1_000

REGISTRY_COLUMNS: Final = 8
MARK_COLUMNS: Final = 4
STEP_COLUMNS: Final = 7
LARGE_COLUMNS: Final = 3
SCHEMA_COLUMNS: Final = 5
LOG: Final = "idempotent_log"
STEPS: Final = "idempotent_step"
OWN: Final = ("idempotent_", "sqlite_autoindex_idempotent_")  # how the tables and indexes of a registry begin
# Whose rows are looked for. Where the schema names them all, none of those is in a table of the user's own.
TABLES: Final = frozenset(
    {LOG, STEPS, "idempotent_large", "idempotent_registry", "idempotent_serial", SCHEDULES, CLOCK, ARGUMENTS}
)
# The columns of the table in its own order, which is that of a record.
STORED_COLUMNS: Final = (
    "task_id", "status", "checksum", "updated_at", "boot_stamp", "name", "token", "attempt", "owner", "policy",
    "keep_ms", "result", "error", "is_large", "note", "verdict", "settled_by", "evidence", "claim_seal", "state_seal",
)  # fmt: skip
_PLACES: Final = tuple(map(STORED_COLUMNS.index, TASK_COLUMNS))
RESULT, IS_LARGE = TASK_COLUMNS.index("result"), TASK_COLUMNS.index("is_large")


class Salvage:
    """One pass over a damaged file. ``takes_commands``: see `KeptRows`."""

    def __init__(
        self,
        path: str,
        image: Image,
        staged: apsw.Connection,
        clock: Clock,
        progress: Callable[[int, int], None] | None,
        *,
        takes_commands: bool,
    ) -> None:
        self._image, self._staged = image, staged
        self._has_lost_frames = image.has_lost_frames or _has_lost_wal(path, image, clock)
        self._progress = progress
        staged.execute(
            "CREATE TABLE large (task_id, result, error);"
            "CREATE INDEX large_of ON large (task_id);"  # one task may have several, of former versions of its page
            f"CREATE TABLE log ({', '.join(TASK_COLUMNS)}, is_sure, is_settled, PRIMARY KEY (task_id));"
            "CREATE TABLE step (task_id, name, number, token, saved_at, result, seal, PRIMARY KEY (task_id, name));"
            "CREATE TABLE broken (task_id PRIMARY KEY)"
        )
        self.held = Held(staged, clock.wall_us() // 1_000_000)
        self.kept = KeptRows(staged, takes_commands=takes_commands)
        self._reached: dict[int, tuple[str, Range]] = {}
        self._table: str | None = None  # of the page that is looked at, where a tree leads there
        self._has_tables = False  # the schema names each
        self._damaged: set[int] = set()
        self._other_tables: list[str] = []
        self._file_row: RegistryRow | None = None
        self.marks: dict[str, int] = {}  # of serial numbers, in microseconds, by prefix
        self._highest = 0
        self._broken = 0

    # --- what is there ------------------------------------------------------------------------------------------

    def read(self) -> Gaps:
        """Look at every page, and say what may be missing."""
        image = self._image
        free = image.free_pages()
        is_whole = self._walk()
        if free is not None and not free.isdisjoint(self._reached):
            free = None  # it names pages that are in use
        self._has_tables = TABLES.issubset(name for name, _ in self._reached.values())
        with self._staged:
            for take in (self._take_large, self._take):
                for number in image.numbers():
                    if self._progress is not None:
                        self._progress(number, image.count)
                    # Where the walk was whole, what it did not reach is not in use, but that a row may go on in it.
                    is_reached = number in self._reached
                    if is_reached or (number not in free if free is not None else not is_whole):
                        is_sure = not self._has_lost_frames and (free is not None or is_reached)
                        self._look(number, take, is_sure=is_sure)
        missing = image.missing_count - self._note_missing(free) if free is not None or not is_whole else 0
        broken = self._staged.execute(
            "SELECT task_id FROM broken WHERE task_id NOT IN (SELECT task_id FROM log) ORDER BY task_id"
        ).fetchall()
        gaps = Gaps(
            pages=image.count,
            damaged=len(self._damaged) + missing,
            damaged_pages=tuple(sorted({*self._damaged, *self._some_missing(free, missing)})[:NAMED]),
            ranges=tuple(self._ranges()[:NAMED]),
            broken=tuple(str(task_id) for (task_id,) in broken[:NAMED]),
            broken_rows=len(broken),
            lost_frames=self._has_lost_frames,
            lost_file_row=self._file_row is None,
            lost_free_list=free is None and not is_whole,
            other_tables=tuple(self._other_tables),
            lost_steps=any(self._reached[number][0] == STEPS for number in self._damaged if number in self._reached),
        )
        return self.kept.settle(self.held.settle(gaps, self._is_whole))

    def _is_whole(self, table: str) -> bool:
        pages = [number for number, (name, _) in self._reached.items() if name == table]
        return bool(pages) and self._damaged.isdisjoint(pages)

    def _note_missing(self, free: set[int] | None) -> int:
        """Damaged are the missing pages that a tree leads to; how many of all need no more be looked after."""
        reached = set(filter(self._image.lacks, self._reached))
        self._damaged |= reached
        return len(reached) + sum(map(self._image.lacks, free or ()))

    def _some_missing(self, free: set[int] | None, count: int) -> Iterator[int]:
        others = (one for one in self._image.missing() if one not in self._damaged and one not in (free or ()))
        return islice(others, min(count, NAMED))

    def _walk(self) -> bool:
        """Follow the trees, from the schema on, as far as sound pages lead; whether that was to all of them."""
        roots = [("", 1)]
        is_whole = True
        for name, root in roots:
            waiting = [Tree(root, None, None)]
            while waiting:
                tree = waiting.pop()
                number = tree.page
                if not 0 < number <= self._image.count or number in self._reached:
                    is_whole = False  # it leads elsewhere
                    continue
                self._reached[number] = (name, Range(_text(tree.above), _text(tree.below)))
                page = self._image.newest(number)
                if page is None or not self._is_sound(number, page):
                    is_whole = False
                    continue
                for child in children(self._image, number, page.data):
                    above = tree.above if child.above is None else child.above
                    waiting.append(Tree(child.page, above, tree.below if child.below is None else child.below))
                if not name:
                    roots += self._objects(number, page.data)
        return is_whole and any(name == LOG for name, _ in self._reached.values())

    def _objects(self, number: int, data: bytes) -> list[tuple[str, int]]:
        """The tables and indexes that a page of the schema names, with their first pages."""
        found = []
        for row in cells(self._image, number, data):
            if len(row) == SCHEMA_COLUMNS and isinstance(row[1], str) and isinstance(row[3], int):
                kind, name, _, root, _ = row
                if root:
                    found.append((name, root))
                if kind == "table" and not name.startswith(("idempotent_", "sqlite_")):
                    self._other_tables.append(name)
        return found

    def _ranges(self) -> list[Range]:
        """Where rows may be lost. A page that nothing leads to lies below a damaged one, which says where."""
        found = [self._reached[number] for number in self._damaged if number in self._reached]
        if any(not name for name, _ in found) or not any(name == LOG for name, _ in self._reached.values()):
            return [EVERYWHERE]
        return joined([place for name, place in found if name == LOG])

    def _look(self, number: int, take: Callable[[list[Any], bool], None], *, is_sure: bool) -> None:
        """Each record of the page; where its newest version is damaged, those of the older ones as well."""
        self._table = self._reached[number][0] if number in self._reached else None
        is_strange = self._has_tables and bool(self._table) and not str(self._table).startswith(OWN)
        for version in self._image.versions(number):
            broken = self._broken
            for values in () if is_strange else cells(self._image, number, version.data):
                take(values, is_sure)
            if self._is_sound(number, version) and self._broken == broken:
                return
            self._damaged.add(number)
            is_sure = False
        self._damaged.add(number)

    def _is_sound(self, number: int, version: Version) -> bool:
        """By its checksum; a page of a tree also by itself, since few files have those."""
        return version.is_sound and (number not in self._reached or adds_up(self._image, number, version.data))

    # --- rows ---------------------------------------------------------------------------------------------------

    def _take_large(self, values: list[Any], _is_sure: bool) -> None:  # noqa: FBT001 - as `_take`
        if len(values) == LARGE_COLUMNS and isinstance(values[0], str):
            self._staged.execute("INSERT INTO large VALUES (?, ?, ?)", values)

    def _take(self, values: list[Any], is_sure: bool) -> None:  # noqa: FBT001 - of a page
        is_taken = self.held.take(values, self._table, is_sure=is_sure)
        if is_taken is None:
            is_taken = self.kept.take(values, self._table, is_sure=is_sure)
        if is_taken is not None:
            self._broken += not is_taken
        elif len(values) == len(TASK_COLUMNS) and isinstance(values[0], str):
            self._take_task([values[place] for place in _PLACES], is_sure=is_sure)
        elif self._table == LOG or (len(values) == 1 and isinstance(values[0], str)):  # what follows makes no sense
            self._take_broken(values[0] if values else None)
        elif not values:  # none of it makes sense; where no tree leads it may be no page of records at all
            self._broken += self._table is not None
        elif len(values) == REGISTRY_COLUMNS and values[0] is None:
            self._take_file_row(values[1:])
        elif len(values) == MARK_COLUMNS and isinstance(values[0], str) and isinstance(values[2], int):
            self._take_mark(values)  # with a text there they are kept arguments
        elif self._table == STEPS or (len(values) == STEP_COLUMNS and isinstance(values[0], str)):
            self._take_step(values)

    def _take_task(self, values: list[Any], *, is_sure: bool) -> None:
        task_id = values[0]
        candidates: list[Any] = [values[RESULT : RESULT + 2]]
        if values[IS_LARGE]:
            candidates = self._staged.execute(_LARGE_OF, (task_id,)).fetchall()
        for candidate in candidates:
            row = list(values)
            row[RESULT : RESULT + 2], row[IS_LARGE] = candidate, 0
            try:
                task = _to_task(row)
            except StoreCorruptError:
                continue
            self._highest = max(self._highest, task.token)
            self._staged.execute(_STAGE, (*row, is_sure, task.status is not Status.RUNNING))
            return
        self._take_broken(task_id)

    def _take_broken(self, task_id: object) -> None:
        self._broken += 1
        if isinstance(task_id, str):
            self._staged.execute("INSERT OR IGNORE INTO broken VALUES (?)", (task_id,))

    def _take_file_row(self, values: list[Any]) -> None:
        *fields, seal = values
        try:
            row = RegistryRow._make(fields)
            holds = values_seal((*row, self._image.reserved)) == seal
        except TypeError:
            return
        if holds and (self._file_row is None or row.floor > self._file_row.floor):
            self._file_row = row

    def _take_step(self, values: list[Any]) -> None:
        if len(values) == STEP_COLUMNS:
            with contextlib.suppress(StoreCorruptError):
                to_step(values)
                self._staged.execute("INSERT OR IGNORE INTO step VALUES (?, ?, ?, ?, ?, ?, ?)", values)
                return
        self._broken += self._table == STEPS

    def _take_mark(self, values: list[Any]) -> None:
        with contextlib.suppress(StoreCorruptError):
            mark = to_mark(values)
            self.marks[mark.prefix] = max(mark.mark_us, self.marks.get(mark.prefix, 0))

    # --- what comes out -----------------------------------------------------------------------------------------

    def tasks(self) -> Iterator[Task]:
        """The rows as they go into another registry, in the order of their task_id."""
        for *row, is_sure, _, is_kept in self._staged.execute(_TASKS):
            yield _settled(_to_task(row), is_sure=bool(is_sure), is_kept=bool(is_kept))

    def steps(self, task_id: str) -> list[Step]:
        """The steps of a task, in the order in which they were saved."""
        rows: list[Any] = self._staged.execute(
            "SELECT * FROM step WHERE task_id = ? ORDER BY number", (task_id,)
        ).fetchall()
        return [to_step(row) for row in rows]

    @property
    def has_page_checksums(self) -> bool:
        """Whether the file's pages have checksums."""
        return self._image.reserved == RESERVED_BYTES

    @property
    def origin(self) -> Origin | None:
        """What the file was; None where its own row is lost."""
        row = self._file_row
        return None if row is None else Origin(row.registry_id, row.key_note)

    @property
    def floor(self) -> int:
        """A token above every one that was given: the beginning of a boot that has not been."""
        row = self._file_row
        if row is not None:
            return ((max(row.floor, self._highest) >> EPOCH_BITS) + 1) << EPOCH_BITS
        return ((self._highest >> EPOCH_BITS) + SPARE_EPOCHS) << EPOCH_BITS


@contextlib.contextmanager
def salvaging(
    path: str,
    clock: Clock,
    progress: Callable[[int, int], None] | None = None,
    *,
    takes_commands: bool = False,
) -> Iterator[Salvage]:
    """A pass over a damaged file, which stays as it was.

    `StoreError` where there is no room, or no memory, for what is found.
    """
    try:
        # What is found goes into a file of SQLite's own, gone with the connection: there may be more than fits.
        with contextlib.closing(Image(path)) as image, contextlib.closing(apsw.Connection("")) as staged:
            yield Salvage(path, image, staged, clock, progress, takes_commands=takes_commands)
    except apsw.Error as error:
        raise translate(error) from error


def _has_lost_wal(path: str, image: Image, clock: Clock) -> bool:
    """Whether the lock file, where there is one, tells of a -wal that is not there any more, or of more frames."""
    if not (os.path.exists(path) and os.path.exists(f"{path}-lock")):
        return False
    try:
        with contextlib.closing(LockFile(f"{path}-lock")) as lock_file:
            rest.check_wal(path, lock_file.open(), digest(clock.boot_id()), rest.wal_at(path, len(image.frames)))
    except StoreCorruptError:
        return True
    except StorePathError:  # it cannot be opened, and tells nothing
        return False
    return False


_LARGE_OF: Final = "SELECT result, error FROM large WHERE task_id = ?"
_TASKS: Final = "SELECT *, task_id IN (SELECT task_id FROM kept) FROM log ORDER BY task_id"
_STAGE: Final = (
    f"INSERT INTO log VALUES ({', '.join('?' * (len(TASK_COLUMNS) + 2))}) ON CONFLICT DO UPDATE SET "  # noqa: S608
    + ", ".join(f"{name} = excluded.{name}" for name in (*TASK_COLUMNS[1:], "is_sure", "is_settled"))
    + " WHERE (excluded.token, excluded.is_sure, excluded.is_settled, excluded.boot_stamp, excluded.updated_at)"
    " > (token, is_sure, is_settled, boot_stamp, updated_at)"
)


def _to_task(row: list[Any]) -> Task:
    return to_task(tuple(row))  # what is large was put in its place


def _settled(task: Task, *, is_sure: bool, is_kept: bool) -> Task:
    """The task as it is stored elsewhere: nobody there owns it, and only what is final or sure may be believed."""
    policy = task.policy._replace(keeps_arguments=is_kept)
    task = task._replace(owner=None, boot_stamp=NO_BOOT, policy=policy)
    if task.status in FINAL or (is_sure and task.status is not Status.RUNNING):
        return task
    evidence = f"it was {task.status.word} in a damaged file" + (
        "" if is_sure else ", by a copy that may be an older one"
    )
    return task._replace(
        status=Status.UNKNOWN,
        token=max(task.token, 1),
        verdict=Verdict.CANNOT_TELL,
        settled_by=BY_SALVAGE,
        evidence=evidence,
    )


def _text(key: object) -> str | None:
    return key if isinstance(key, str) else None
