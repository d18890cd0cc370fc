"""Export and import: all tasks as lines, and lines as tasks that are not there yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

from idemreg import lines as form
from idemreg.counted import counted
from idemreg.errors import ImportLineError
from idemreg.lines import End, LineError, StepOf
from idemreg.listing import PAGE_TASKS
from idemreg.model import Origin, Status, Task, Verdict
from idemreg.sqlite.steps import MAX_STEPS, MAX_STEPS_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from idemreg.progress import Progress, Step
    from idemreg.query import Query
    from idemreg.store import Store

__all__ = ["LINE_CHARACTERS", "Imported", "export_lines", "import_lines"]

# A result of 1 MiB and its error, every character of both escaped, fit into a line of these.
LINE_CHARACTERS: Final = 16 * 1_024 * 1_024

# One transaction takes so many tasks, or fewer where they are large.
CHUNK_TASKS: Final = 500
CHUNK_CHARACTERS: Final = 4 * 1_024 * 1_024

CONFLICTS_NAMED: Final = 100

BY_IMPORT: Final = "import"


class Imported(NamedTuple):
    """What an import did. ``read`` is ``imported`` + ``skipped`` + ``conflicting``.

    ``skipped``: there already, and the same. ``conflicting``: there already, and different; ``conflicts`` names the
    first of them. ``unknown``: imported, and running when it was exported.
    """

    read: int = 0
    imported: int = 0
    skipped: int = 0
    conflicting: int = 0
    unknown: int = 0
    conflicts: tuple[str, ...] = ()


def export_lines(store: Store, query: Query) -> Iterator[str]:
    """The header, the tasks and the end, each a line; see `Registry.export_lines`."""
    yield form.header_line(*store.origin())
    count, highest = 0, 0
    for task, steps in _with_steps(store, query):
        yield form.task_line(task)
        for step in steps:
            yield form.step_line(task.task_id, step)
        count, highest = count + 1, max(highest, task.token)
    yield form.end_line(count, max(highest, store.floor()))


def _with_steps(store: Store, query: Query) -> Iterator[tuple[Task, list[Step]]]:
    """Each task with its steps, which are read behind it: none is missing that its row knows of."""
    progress, after = cast("Progress", store), None
    while True:
        page = store.page(query, after, PAGE_TASKS)
        tasks = page.tasks
        having = progress.tasks_with_steps(tasks[0].task_id, tasks[-1].task_id) if tasks else set()
        for task in tasks:
            yield task, progress.steps(task.task_id) if task.task_id in having else []
        if (after := page.after) is None:
            return


def import_lines(store: Store, lines: Iterable[str | bytes], progress: Callable[[Imported], None] | None) -> Imported:
    """Insert what is not there; see `Registry.import_lines`."""
    importing = _Importing(store, progress)
    number = 1
    try:
        for line in lines:
            importing.take(_decoded(line))
            number += 1
        importing.end()
    except LineError as error:
        importing.flush()
        broken = ImportLineError(f"line {number}: {error}")
        broken.line = number
        raise broken from error
    return importing.done


def _decoded(line: str | bytes) -> str:
    if len(line) > LINE_CHARACTERS:
        msg = f"it has more than {LINE_CHARACTERS} characters"
        raise LineError(msg)
    try:
        return line.decode() if isinstance(line, bytes) else line
    except UnicodeDecodeError as error:
        msg = "it is not UTF-8"
        raise LineError(msg) from error


class _Importing:
    """The state of one import: the header, what waits for the next transaction, what is done."""

    def __init__(self, store: Store, progress: Callable[[Imported], None] | None) -> None:
        self.done = Imported()
        self._store = store
        self._progress = progress
        self._header: Origin | None = None
        self._end: End | None = None
        self._waiting: list[Task] = []  # as they were exported
        self._steps: dict[str, list[Step]] = {}  # of those
        self._characters = 0

    def take(self, line: str) -> None:
        """Take the next line; `LineError` where it is none, or not in its place."""
        found = form.parse(line)
        if (self._header is None) is not isinstance(found, Origin):
            msg = "it is a second header" if self._header else "the header of an export comes first"
            raise LineError(msg)
        if self._end is not None:
            msg = "it stands behind the end"
            raise LineError(msg)
        if isinstance(found, Origin):
            self._header = found
        elif isinstance(found, End):
            self._take_end(found)
        elif isinstance(found, StepOf):
            self._take_step(found, len(line))
        else:
            if len(self._waiting) >= CHUNK_TASKS or self._characters >= CHUNK_CHARACTERS:
                self.flush()  # not before: the steps of the last one have to come along
            self._waiting.append(found)
            self._characters += len(line)

    def _take_step(self, found: StepOf, characters: int) -> None:
        task = self._waiting[-1] if self._waiting else None
        if task is None or task.task_id != found.task_id:
            msg = "it is a step, and the line of its task is not above"
            raise LineError(msg)
        steps = self._steps.setdefault(found.task_id, [])
        if len(steps) == MAX_STEPS or any(step.name == found.step.name for step in steps):
            msg = f"it is a step that its task has already, or one more than {MAX_STEPS:,}"
            raise LineError(msg)
        if sum(len(step.result or "") for step in steps) > MAX_STEPS_BYTES:
            msg = f"its task has steps of more than {MAX_STEPS_BYTES:,} bytes"
            raise LineError(msg)
        steps.append(found.step)
        self._characters += characters

    def _take_end(self, end: End) -> None:
        if end.tasks != (read := self.done.read + len(self._waiting)):
            msg = f"the end speaks of {counted(end.tasks, 'task')}, and {read} came before it"
            raise LineError(msg)
        self._end = end
        self.flush()

    def end(self) -> None:
        """Nothing follows; `LineError` where the end did not come."""
        if self._end is None:
            msg = "the end is missing: the export was cut off" if self._header else "there is no export"
            raise LineError(msg)

    def flush(self) -> None:
        """Store what waits, in one transaction."""
        if self._header is None or not (self._waiting or self._end):
            return
        waiting, self._waiting, self._characters = self._waiting, [], 0
        steps, self._steps = self._steps, {}
        tasks = [_settled(task, self._header.registry_id) for task in waiting]
        answers = self._store.put(tasks, self._end.floor if self._end else 0, self._header, steps)
        imported = skipped = unknown = 0
        conflicts = []
        for exported, task, answer in zip(waiting, tasks, answers, strict=True):
            if answer is None:
                imported += 1
                unknown += exported.status is Status.RUNNING
            elif form.fields_of(answer.task) in (form.fields_of(task), form.fields_of(exported)):
                skipped += 1
            else:
                conflicts.append(task.task_id)
        self._count(imported, skipped, unknown, conflicts)

    def _count(self, imported: int, skipped: int, unknown: int, conflicts: list[str]) -> None:
        done = self.done
        self.done = Imported(
            done.read + imported + skipped + len(conflicts),
            done.imported + imported,
            done.skipped + skipped,
            done.conflicting + len(conflicts),
            done.unknown + unknown,
            (*done.conflicts, *conflicts)[:CONFLICTS_NAMED],
        )
        if self._progress is not None:
            self._progress(self.done)


def _settled(task: Task, registry_id: str) -> Task:
    """The task as it is stored here. One that was running is unknown: its owner's end is not to be seen from here."""
    if task.status is not Status.RUNNING:
        return task
    evidence = f"it was running when registry {registry_id} was exported; how it ended was not seen"
    return task._replace(status=Status.UNKNOWN, verdict=Verdict.CANNOT_TELL, settled_by=BY_IMPORT, evidence=evidence)
