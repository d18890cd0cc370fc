"""Lines of JSON, each handled once: by a command, or by a function, several at a time.

A feeder thread reads, at most twice as many lines ahead as are handled at once, so an endless stream needs a bounded
memory. Each worker claims its line's task when it begins it: whatever dies in the middle, feeding the same lines again
goes on, and what has been done is replayed. Ends come in the order in which they are reached.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import os
import queue
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg.child import Lines
from idemreg.command import run_command
from idemreg.ends import describe
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
from idemreg.feed import parse_line
from idemreg.model import Status
from idemreg.request import job_name
from idemreg.signals import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from idemreg.child import Sink
    from idemreg.feed import Line, LineTemplate
    from idemreg.registry import Registry
    from idemreg.signals import Relay

__all__ = ["Each", "End", "Kind", "Work", "command_name", "descriptors_for", "jobs_that_fit"]

LOOK_UP_S: Final = 0.25
AHEAD: Final = 2  # lines read for each that is handled at once

# The most descriptors that a command takes: while it is started, its input, its lock, two pipes from both their ends
# and Popen's own. And what there is besides: connections, the lock file, standard streams.
DESCRIPTORS_A_LINE: Final = 8
DESCRIPTORS_BESIDES: Final = 48

NAME_CHARACTERS: Final = 80
DIGEST_DIGITS: Final = 12


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


class End(NamedTuple):
    """What became of a line. ``error`` says why, where it is not done."""

    line: Line
    kind: Kind
    task_id: str | None = None
    exit_code: int | None = None
    error: str | None = None


class Each:
    """Handles each line once, ``jobs`` at a time; iterate to have the ends.

    `stop` begins no more, `leave` waits no more. An error of ``handle`` (the store fails) stops the others, and is
    raised when those begun have ended. So is one of the caller: whoever closes the iterator waits for them. ``handle``
    gives None for a line that it let be. ``look_up`` is called now and then while nothing ends.
    """

    def __init__(
        self,
        lines: Iterator[Line],
        handle: Callable[[Line], End | None],
        *,
        jobs: int,
        look_up: Callable[[], None] | None = None,
    ) -> None:
        self._lines = lines
        self._handle = handle
        self._jobs = jobs
        self._look_up = look_up or _nothing
        # Simple queues alone, and plain attributes: `stop` and `leave` are called in a signal handler, which would hang
        # on the lock of an Event or a Semaphore that the step below it holds.
        self._begun: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[End | BaseException | None] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(AHEAD * jobs):
            self._room.put(None)
        self._is_over = False
        self._is_left = False

    def stop(self) -> None:
        """Begin no more lines; those that have begun go on to their end."""
        self._is_over = True
        self._release_workers()
        self._room.put(None)  # the feeder may wait for it

    def leave(self) -> None:
        """Wait no more for those that have begun."""
        self._is_left = True
        self._ends.put(None)

    def __iter__(self) -> Generator[End, None, None]:
        # Daemons: the feeder may wait for a line that never comes.
        threading.Thread(target=self._feed, name="idemreg-feeder", daemon=True).start()
        for number in range(self._jobs):
            threading.Thread(target=self._work, name=f"idemreg-each-{number}", daemon=True).start()
        problem: BaseException | None = None
        working = self._jobs
        try:
            while working and not self._is_left:
                end = self._next()
                if end is None:
                    working -= 1
                elif isinstance(end, End):
                    self._room.put(None)  # not before: an end that nobody takes counts as well
                    yield end
                else:
                    problem = problem or end
                    self.stop()
        finally:
            self.stop()
            while working and not self._is_left:
                working -= self._next() is None
        if problem is not None:
            raise problem

    def _next(self) -> End | BaseException | None:
        # The kernel may give one of two signals to a worker. Python then runs its handler in this thread, but wakes it
        # for none: so it looks up by itself. (Blocked in the workers, they would be blocked in the commands as well.)
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ends.get(timeout=LOOK_UP_S)
            self._look_up()

    def _release_workers(self) -> None:
        for _ in range(self._jobs):
            self._begun.put(None)

    def _feed(self) -> None:
        try:
            for line in self._lines:
                self._room.get()
                if self._is_over:
                    break
                self._begun.put(line)
        except BaseException as error:  # noqa: BLE001 - told to the caller's thread
            self._ends.put(error)
        self._release_workers()

    def _work(self) -> None:
        while (line := self._begun.get()) is not None and not self._is_over:
            try:
                if (end := self._handle(line)) is not None:
                    self._ends.put(end)
            except BaseException as error:  # noqa: BLE001 - told to the caller's thread
                self._ends.put(error)
        self._ends.put(None)


# --- what is done with a line -----------------------------------------------------------------------------------


class Work:
    """How lines are handled: under which task, and with which options of `Registry.run` or `run_command`.

    Two lines of one task are handled one behind the other: the second has the answer of the first, not "running".
    """

    def __init__(self, registry: Registry, template: LineTemplate, options: dict[str, Any]) -> None:
        self.registry: Final = registry
        self._template: Final = template
        self._options: Final = options
        self._now: set[str] = set()  # the tasks of the lines that are being handled
        self._calls: Final[set[_Call]] = set()  # those of them whose function runs
        self._changed: Final = threading.Condition()

    @property
    def in_hand(self) -> int:
        """How many lines are being handled."""
        return len(self._now)

    @property
    def calls(self) -> bool:
        """Whether any function runs."""
        return bool(self._calls)

    def by_command(
        self, argv: Sequence[str], sink: Sink, relay: Relay, *, line_by_line: bool
    ) -> Callable[[Line], End | None]:
        """A function that runs the command for a line, which is its standard input. ``line_by_line``: its output."""
        name = self._options.pop("name", None) or command_name(argv)

        def run(line: Line, task_id: str, payload: object) -> End:
            with _as_file(line.raw + b"\n") as stdin, relay.inbox() as inbox:
                end = run_command(
                    self.registry,
                    task_id,
                    argv,
                    name=name,
                    payload=payload,
                    counts_argv=False,
                    stdin=stdin,
                    sink=Lines(sink) if line_by_line else sink,
                    inbox=inbox,
                    shows_replay=False,
                    **self._options,
                )
            kind = Kind.REPLAYED if end.replayed and end.status is Status.SUCCEEDED else _KINDS[end.status]
            return End(line, kind, task_id, end.exit_code, end.stopped)

        return functools.partial(self._handle, run, relay)

    def by_function(
        self, function: Callable[[Any], object], relay: Relay, *, ended: Callable[[], None] | None = None
    ) -> Callable[[Line], End | None]:
        """A function that calls ``function`` with the parsed line, and ``ended`` in the same thread behind it."""
        name = self._options.pop("name", None) or job_name(function)

        def run(line: Line, task_id: str, payload: object) -> End:
            call = _Call(function, parse_line(line), self._calls)
            try:
                outcome = self.registry.run(task_id, call, name=name, payload=payload, **self._options)
            except BaseException as error:
                if error is not call.raised:
                    raise
                what = describe(error, self.registry.secrecy.error_detail).partition("\n")[0]
                return End(line, self._kind_behind(task_id, error), task_id, error=what)
            finally:
                call.raised = None  # with its traceback it would hold itself
                (ended or _nothing)()
            return End(line, Kind.REPLAYED if outcome.replayed else Kind.DONE, task_id)

        return functools.partial(self._handle, run, relay)

    def _kind_behind(self, task_id: str, error: BaseException) -> Kind:
        """What an error of the function has made of its task. Its own, also where it is one that we might raise."""
        task = self.registry.get(task_id)
        kind = Kind.FAILED if task is None else _KINDS[task.status]
        if kind is Kind.RELEASED and isinstance(error, StoreError):
            raise error  # its claim.transaction() did not begin: that is of all lines
        return Kind.UNKNOWN if kind is Kind.RUNNING else kind  # its end could not be stored, or is another's

    def _handle(self, run: Callable[[Line, str, object], End], relay: Relay, line: Line) -> End | None:
        task_id = None
        try:
            fields = parse_line(line)
            task_id = self._template.task_id(fields)
            payload = self._template.payload(fields)
            with self._alone(task_id):
                return None if relay.received is not None else run(line, task_id, payload)
        except Interrupted:
            return None
        except FinishNotRecordedError as error:  # it did run; its task becomes unknown once the store can write
            return End(line, Kind.UNKNOWN, task_id, error=error.message)
        except (StoreError, CommandNotFoundError, CommandNotExecutableError):
            raise  # of all lines, not of this one
        except IdemregError as error:
            return End(line, _kind_of(error), task_id, error=error.message)

    @contextlib.contextmanager
    def _alone(self, task_id: str) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: task_id not in self._now)
            self._now.add(task_id)
        try:
            yield
        finally:
            with self._changed:
                self._now.discard(task_id)
                self._changed.notify_all()


class _Call:
    """A function with its argument, and what it raised: its own errors are told from ours by identity."""

    def __init__(self, function: Callable[[Any], object], fields: dict[str, Any], running: set[_Call]) -> None:
        self.raised: BaseException | None = None
        self._function: Final = function
        self._fields: Final = fields
        self._running: Final = running

    def __call__(self) -> object:
        self._running.add(self)
        try:
            return self._function(self._fields)
        except BaseException as error:
            self.raised = error
            raise
        finally:
            self._running.discard(self)


def command_name(argv: Sequence[str]) -> str:
    """The job that a command line is: the command's base name, and the words behind it that are no options.

    Options may change. But `sh -c` with another script, or `python` with another program, is another job, which must
    not be answered by the tasks of this one.
    """
    words = [os.path.basename(argv[0]), *(word for word in argv[1:] if not word.startswith("-"))]
    given = b" ".join(map(os.fsencode, words)).decode("utf-8", "backslashreplace")
    name = " ".join(given.split())
    if name == given and name.isprintable() and len(name) <= NAME_CHARACTERS:
        return name
    digest = hashlib.sha256(given.encode()).hexdigest()[:DIGEST_DIGITS]
    head = "".join(filter(str.isprintable, name))[: NAME_CHARACTERS - DIGEST_DIGITS - 2]
    return f"{head}… {digest}"


def descriptors_for(jobs: int) -> int:
    """The limit of open files that so many lines at a time may need."""
    return DESCRIPTORS_BESIDES + DESCRIPTORS_A_LINE * jobs


def jobs_that_fit(descriptors: int) -> int:
    """How many lines at a time the limit of open files has room for; at least one."""
    return max(1, (descriptors - DESCRIPTORS_BESIDES) // DESCRIPTORS_A_LINE)


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


def _nothing() -> None:
    pass


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
