"""Lines of JSON, each handled once: by a command, or by a function, several at a time.

A feeder thread reads, at most twice as many lines ahead as are handled at once, so an endless stream needs a bounded
memory. Each worker claims its line's task when it begins it: whatever dies in the middle, feeding the same lines again
goes on, and what has been done is replayed. Ends come in the order in which they are reached.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import json
import os
import queue
import re
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg.child import Lines
from idemreg.command import run_command
from idemreg.errors import (
    ArgumentError,
    ChecksumMismatchError,
    CommandNotExecutableError,
    CommandNotFoundError,
    FinishNotRecordedError,
    IdemregError,
    StoreError,
    TaskDoneError,
    TaskIdError,
    TaskRunningError,
    TaskUnknownError,
)
from idemreg.model import Status
from idemreg.request import job_name
from idemreg.template import Template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from idemreg.child import Relay, Sink
    from idemreg.registry import Registry

__all__ = ["Each", "End", "Kind", "Line", "LineTemplate", "Work", "read_lines"]

LINE_BYTES: Final = 1_024 * 1_024
READ_BYTES: Final = 64 * 1_024
AHEAD: Final = 2  # lines read for each that is handled at once

_ROOT: Final = re.compile(r"\w+")


class Kind(enum.Enum):
    """What became of a line."""

    DONE = "done"
    REPLAYED = "replayed"
    RELEASED = "released"
    FAILED = "failed"
    REFUSED = "refused"
    MISMATCH = "mismatch"
    RUNNING = "running"
    UNKNOWN = "unknown"


class Line(NamedTuple):
    """A line as it was read: its number from 1, its bytes, and how far behind it the input has been read."""

    number: int
    raw: bytes
    read: int


class End(NamedTuple):
    """What became of a line. ``error`` says why, where it is not done."""

    line: Line
    kind: Kind
    task_id: str | None = None
    exit_code: int | None = None
    error: str | None = None


class LineTemplate:
    """A template over the fields of a line, ``{id}`` or ``{order[id]}``, and what of the line the checksum covers."""

    def __init__(self, literal: str, payload: Sequence[str] = ()) -> None:
        roots = {_ROOT.match(piece).group() for piece in literal.split("{")[1:] if _ROOT.match(piece)}  # type: ignore[union-attr]
        self._template: Final = Template(literal, roots)
        self._roots: Final = sorted(roots)
        self._payload: Final = payload

    def task_id(self, fields: dict[str, Any]) -> str:
        """The task_id; `TaskIdError` where a field is missing or empty."""
        for root in self._roots:
            if root not in fields:
                msg = f"the line has no field {root!r}"
                raise TaskIdError(msg)
        return self._template.render(fields)

    def payload(self, fields: dict[str, Any]) -> object:
        """What counts of the line; `ArgumentError` where a field is missing."""
        for field in self._payload:
            if field not in fields:
                msg = f"the line has no field {field!r}"
                raise ArgumentError(msg)
        return {field: fields[field] for field in self._payload} if self._payload else fields


def read_lines(fd: int) -> Iterator[Line]:
    """The lines of a descriptor, without their ends. One that is too long comes cut, and is refused by its length.

    Reads the descriptor itself: a buffered file that another thread waits in would hang the end of the process.
    """
    rest, number, read, skipping = b"", 0, 0, False
    while data := os.read(fd, READ_BYTES):
        read += len(data)
        *whole, rest = (rest + data).split(b"\n")
        for raw in whole:
            number += 1
            if not skipping:
                yield Line(number, raw[: LINE_BYTES + 1], read)
            skipping = False
        if len(rest) > LINE_BYTES and not skipping:
            skipping = True
            yield Line(number + 1, rest[: LINE_BYTES + 1], read)
        if skipping:
            rest = b""
    if rest:
        yield Line(number + 1, rest, read)


class Each:
    """Handles each line once, ``jobs`` at a time; iterate to have the ends. `stop` begins no more.

    An error of ``handle`` (the store cannot be used) stops the others, and is raised when those begun have ended.
    """

    def __init__(self, lines: Iterator[Line], handle: Callable[[Line], End], *, jobs: int) -> None:
        self._lines = lines
        self._handle = handle
        self._jobs = jobs
        # Simple queues: `stop` may be called in a signal handler.
        self._begun: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[End | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(AHEAD * jobs)
        self._over = threading.Event()

    def stop(self) -> None:
        """Begin no more lines; those that have begun go on to their end."""
        self._over.set()
        self._release_workers()
        self._room.release()  # the feeder may wait for it

    def __iter__(self) -> Iterator[End]:
        # Daemons: the feeder may wait for a line that never comes.
        threading.Thread(target=self._feed, name="idemreg-feeder", daemon=True).start()
        for number in range(self._jobs):
            threading.Thread(target=self._work, name=f"idemreg-each-{number}", daemon=True).start()
        problem: BaseException | None = None
        working = self._jobs
        while working:
            end = self._ends.get()
            if end is None:
                working -= 1
            elif isinstance(end, End):
                self._room.release()  # not before: an end that nobody takes counts as well
                yield end
            else:
                problem = problem or end
                self.stop()
        if problem is not None:
            raise problem

    def _release_workers(self) -> None:
        for _ in range(self._jobs):
            self._begun.put(None)

    def _feed(self) -> None:
        try:
            for line in self._lines:
                self._room.acquire()
                if self._over.is_set():
                    break
                self._begun.put(line)
        except BaseException as error:  # noqa: BLE001 - told to the caller's thread
            self._ends.put(error)
        self._release_workers()

    def _work(self) -> None:
        while (line := self._begun.get()) is not None and not self._over.is_set():
            try:
                self._ends.put(self._handle(line))
            except BaseException as error:  # noqa: BLE001 - told to the caller's thread
                self._ends.put(error)
        self._ends.put(None)


# --- what is done with a line -----------------------------------------------------------------------------------


class Work(NamedTuple):
    """How lines are handled: under which task, and with which options of `Registry.run` or `run_command`."""

    registry: Registry
    template: LineTemplate
    options: dict[str, Any]

    def by_command(self, argv: Sequence[str], sink: Sink, signals: Relay) -> Callable[[Line], End]:
        """A function that runs the command for a line, which is its standard input."""
        lock = threading.Lock()

        def run(line: Line, task_id: str, payload: object) -> End:
            with _as_file(line.raw + b"\n") as stdin:
                end = run_command(
                    self.registry,
                    task_id,
                    argv,
                    payload=payload,
                    stdin=stdin,
                    sink=Lines(sink, lock),
                    signals=signals,
                    shows_replay=False,
                    **self.options,
                )
            kind = Kind.REPLAYED if end.replayed and end.status is Status.SUCCEEDED else _KINDS[end.status]
            return End(line, kind, task_id, end.exit_code)

        return functools.partial(self._handle, run)

    def by_function(self, function: Callable[[Any], object]) -> Callable[[Line], End]:
        """A function that calls ``function`` with the parsed line."""
        name = self.options.pop("name", None) or job_name(function)

        def run(line: Line, task_id: str, payload: object) -> End:
            fields = _parse(line)
            try:
                outcome = self.registry.run(
                    task_id, lambda: function(fields), name=name, payload=payload, **self.options
                )
            except IdemregError:
                raise
            except Exception as error:  # noqa: BLE001 - of the function: its task has failed, and says so
                task = self.registry.get(task_id)
                kind = Kind.FAILED if task is None else _KINDS[task.status]
                return End(line, kind, task_id, error=f"{type(error).__name__}: {error}")
            return End(line, Kind.REPLAYED if outcome.replayed else Kind.DONE, task_id)

        return functools.partial(self._handle, run)

    def _handle(self, run: Callable[[Line, str, object], End], line: Line) -> End:
        task_id = None
        try:
            fields = _parse(line)
            task_id = self.template.task_id(fields)
            return run(line, task_id, self.template.payload(fields))
        except FinishNotRecordedError as error:  # it did run; its task becomes unknown once the store can write
            return End(line, Kind.UNKNOWN, task_id, error=error.message)
        except (StoreError, CommandNotFoundError, CommandNotExecutableError):
            raise  # of all lines, not of this one
        except IdemregError as error:
            return End(line, _kind_of(error), task_id, error=error.message)


_KINDS: Final = {
    Status.SUCCEEDED: Kind.DONE,
    Status.PENDING: Kind.RELEASED,
    Status.FAILED: Kind.FAILED,
    Status.UNKNOWN: Kind.UNKNOWN,
    Status.RUNNING: Kind.RUNNING,
    Status.SKIPPED: Kind.REPLAYED,
    Status.CANCELLED: Kind.REPLAYED,
}

_REFUSALS: Final[tuple[tuple[type[IdemregError], Kind], ...]] = (
    (TaskIdError, Kind.REFUSED),
    (ArgumentError, Kind.REFUSED),
    (ChecksumMismatchError, Kind.MISMATCH),
    (TaskRunningError, Kind.RUNNING),
    (TaskUnknownError, Kind.UNKNOWN),
    (TaskDoneError, Kind.REPLAYED),  # skipped or cancelled by somebody, or on_duplicate="raise"
)


def _kind_of(error: IdemregError) -> Kind:
    """Everything else is of the task: a failure that is held, a result that cannot be stored, a claim that was lost."""
    return next((kind for refusal, kind in _REFUSALS if isinstance(error, refusal)), Kind.FAILED)


def _parse(line: Line) -> dict[str, Any]:
    if len(line.raw) > LINE_BYTES:
        msg = f"the line has more than {LINE_BYTES:,} bytes"
        raise ArgumentError(msg)
    try:
        fields = json.loads(line.raw)
    except (ValueError, RecursionError) as error:
        msg = f"the line is no JSON: {error}"
        raise ArgumentError(msg) from None
    if not isinstance(fields, dict):
        msg = "the line is no JSON object"
        raise ArgumentError(msg)
    return fields


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[int]:
    """A descriptor to read the data from, at its own pace: a file in memory."""
    fd = os.memfd_create("idemreg-line", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
