"""What must hold behind a call under a fault: in the same process, in the files, and for the next that opens them."""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import fcntl
import gc
import os
import struct
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import apsw

from idemreg import (
    FinishNotRecordedError,
    IdemregError,
    Registry,
    Status,
    StoreCorruptError,
    StoreError,
    SyncFailedError,
    TaskFailedError,
    TaskUnknownError,
)
from idemreg.later import later
from idemreg.lockfile import CHECKPOINT_TURN, WRITE_TURN
from tests.torture.injected.cases import CommandError
from tests.torture.injected.scene import JOBS, NAME, Row, Scene, rows
from tests.torture.injected.states import BUSY_S, NAMES_BEFORE, RESULT, Boot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from idemreg.sqlite.backend import SqliteStore

__all__ = ["End", "judge"]

PATIENCE_S: Final = 60.0
LATE_S: Final = 1.0  # by which the thread of a coroutine may still be at work
NEW: Final = ("new", "new-2", "new-3")
# By file, what nobody may have locked: SQLite's RESERVED and PENDING; its locks in WAL mode for writing, checkpoint and
# recovery, and the marks of readers; the turns, and the creation.
LOCKS: Final = {
    "": range(0x4000_0000, 0x4000_0002),
    "-shm": range(120, 128),
    "-lock": range(WRITE_TURN, CHECKPOINT_TURN + 1),
}
_FLOCK: Final = struct.Struct("hhqqi0q")  # struct flock: type, whence, start, length, pid

# Of what is stored behind a body that was entered once, and whose caller was not told that it succeeded.
LEFT: Final = (Status.RUNNING, Status.UNKNOWN, Status.SUCCEEDED)


class End(NamedTuple):
    """How the call ended; the error itself is gone, and with it what its traceback held."""

    kind: type[BaseException] | None
    text: str
    result: Any
    is_fault_met: bool
    wal_hit: bool
    is_whole: bool  # whatever failed has left no half of anything behind


def judge(scene: Scene, end: End, *, is_memory: bool) -> Iterator[str]:
    """Every rule that is broken."""
    _wait_for_what_was_left()
    yield from scene.problems
    yield from _error(end, is_memory=is_memory)
    yield from _nothing_held(scene)
    try:
        stored = rows(scene.path) if os.path.exists(scene.path) and os.path.getsize(scene.path) else {}
    except (AssertionError, apsw.Error) as error:
        yield f"behind the call: {error}"
        stored = {}
    yield from _rows(scene, end, stored, is_memory=is_memory)
    yield from _backup(scene, end)
    yield from _goes_on(scene, end, is_memory=is_memory)
    with contextlib.suppress(StoreError):
        scene.registry.close()
    scene.close_looks()
    left = list(_nothing_open(scene))
    yield from left
    if not left:  # else it would find the locks of this one
        yield from _next_process(scene, end)


def _wait_for_what_was_left() -> None:
    """Until the thread of `later` has done what was left to it: it may be inside a connection, and changes rows."""
    if later._thread is not None:
        done = _thread.allocate_lock()
        done.acquire()
        later.do(done.release)
        assert done.acquire(timeout=PATIENCE_S), "what was left to another thread is not done"


def _error(end: End, *, is_memory: bool) -> Iterator[str]:
    kind = end.kind
    if kind is None:
        return
    if not end.is_fault_met:
        yield f"{kind.__name__} with no fault: {end.text}"
    elif not issubclass(kind, (IdemregError, CommandError)) and not (is_memory and _is_memory(kind, end.text)):
        yield f"an error of no type of ours: {kind.__name__}: {end.text}"
    if issubclass(kind, StoreCorruptError) and end.is_whole:
        yield f"nothing was damaged or replaced, and it is told so: {end.text}"
    if issubclass(kind, FinishNotRecordedError) and end.result not in (RESULT, None):
        yield f"FinishNotRecordedError without the result: {end.result!r}"


_NO_MEMORY: Final = (
    (ctypes.ArgumentError, "MemoryError"),
    (RuntimeError, "can't allocate"),
    (SystemError, "error return without exception set"),
    (SystemError, "returned NULL without setting an exception"),
)


def _is_memory(kind: type[BaseException], text: str) -> bool:
    # ctypes makes an error of its own of one that it meets among the arguments.
    # CPython has other words for it where a lock cannot be made, and none at all where it goes as an error leaves a
    # generator: whoever called that, or the function of C between, then says so. `_testcapi.set_nomemory` shows it.
    return issubclass(kind, MemoryError) or any(kind is one and words in text for one, words in _NO_MEMORY)


def _nothing_held(scene: Scene) -> Iterator[str]:
    """Neither the gate nor a turn nor one of SQLite's locks: another process can write at once."""
    opened = cast("SqliteStore", scene.registry.store)._opening.current
    until = time.monotonic() + LATE_S
    while opened is not None and opened.database.gate.is_taken:
        if time.monotonic() > until:
            yield "the gate is taken"
            break
        os.sched_yield()
    for suffix, locks in LOCKS.items():
        if (byte := _held(scene, suffix, locks)) is not None:
            yield f"byte {byte} of jobs.db{suffix} stays locked"


def _held(scene: Scene, suffix: str, some: range) -> int | None:
    """One of these bytes that anybody has locked, this process included.

    By a descriptor of its own, through which the kernel shows the locks of its process as well; it stays open until the
    registry is closed, since the close of any descriptor drops all POSIX locks of its process on the file. (/proc/locks
    tells the same, and takes ten milliseconds, in which the kernel waits for each processor.)
    """
    try:
        fd = os.open(scene.path + suffix, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    scene.looks.append(fd)
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, some.start, len(some), 0)
    kind, _, first, _, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else max(first, some.start)


def _rows(scene: Scene, end: End, stored: dict[str, Row], *, is_memory: bool) -> Iterator[str]:
    """What is stored is what the caller was told; where he was told nothing, what it may be."""
    before = scene.before
    for task_id in {*before, *stored, *scene.promised}:
        row, was = stored.get(task_id), before.get(task_id)
        status = None if row is None else row.status
        if task_id in scene.promised:
            if status is not scene.promised[task_id][0]:
                yield f"{task_id} was told as {scene.promised[task_id][0]}, and is stored as {row}"
        elif scene.entered.get(task_id):
            # Memory may go in the block of a claim, which is the user's, behind what is counted.
            may_fail = scene.failed[task_id] or scene.may_rerun or (is_memory and scene.is_block)
            allowed = (*LEFT, *((Status.FAILED, Status.PENDING) if may_fail else ()))
            if status not in allowed:
                yield f"{task_id} was entered, its end was not told, and it is stored as {row} (told: {end.text})"
        elif row != was and not _may_be(scene, task_id, row, was, is_memory=is_memory):
            yield f"{task_id} was {was}, nobody has touched it, and it is {row}"
    for task_id, entered in scene.entered.items():
        if entered > 1:
            yield f"the body of {task_id} was entered {entered} times"


def _may_be(scene: Scene, task_id: str, row: Row | None, was: Row | None, *, is_memory: bool) -> bool:
    if task_id == "warm":
        return True
    status = None if row is None else row.status
    if is_memory and status is Status.FAILED and task_id in scene.tried:
        return True  # memory went in the block of the claim, before it came to what is counted
    is_put_back = row is not None and was is not None and row.status is was.status and row.token > was.token
    return task_id in scene.tried and (is_put_back or status in scene.tried[task_id])


def _backup(scene: Scene, end: End) -> Iterator[str]:
    if not scene.backup:
        return
    there = os.path.exists(scene.backup)
    if end.kind is None and not there:
        yield "a backup that was told is not there"
    if there:
        try:
            found = rows(scene.backup)
        except (AssertionError, apsw.Error) as error:
            yield f"half a backup is there: {error}"
            return
        if scene.before.items() - found.items():
            yield "a backup lacks rows"


def _goes_on(scene: Scene, end: End, *, is_memory: bool) -> Iterator[str]:
    """The same object works once the fault is gone, or says that a sync has failed."""
    try:
        scene.registry.run("after", scene.job("after"), name=NAME)
    except SyncFailedError:
        if not end.is_fault_met or is_memory:
            yield "SyncFailedError, and no sync has failed"
        return
    except IdemregError as error:
        yield f"the same registry does not work any more: {type(error).__name__}: {error} ({error.__cause__})"
        return
    if end.wal_hit:
        yield "a sync of the -wal has failed, and what follows is acknowledged"
    # Where memory went between the claim and its body, the claim counts as dropped: nobody knows, and the task is held.
    yield from _again(scene, scene.registry, "the same registry", must_go_on=not is_memory)


def _again(scene: Scene, registry: Registry, who: str, *, must_go_on: bool) -> Iterator[str]:
    """Each job once more: none is entered twice, and none that was never entered is lost."""
    for task_id in JOBS[: -len(("after", "after-close"))]:
        if task_id not in scene.tried or task_id not in scene.entered:
            continue
        before, failed = scene.entered[task_id], scene.failed[task_id]
        kind: type[BaseException] | None = None
        try:
            name = NAMES_BEFORE.get(task_id, NAME) if task_id in scene.before else NAME
            outcome: Any = registry.run(task_id, scene.job(task_id), name=name, on_failure="hold")
            if scene.entered[task_id] and outcome.result not in (RESULT, None):
                yield f"{who}: {task_id} gives {outcome.result!r}"
        except IdemregError as error:
            kind = type(error)
            if not isinstance(error, (TaskUnknownError, TaskFailedError)):
                yield f"{who}: {task_id} says {kind.__name__}: {error} ({error.__cause__})"
        if scene.entered[task_id] > 1 and not failed and not scene.may_rerun:
            yield f"{who}: {task_id} was entered {scene.entered[task_id]} times"
        elif not (before or scene.entered[task_id] or scene.has_begun) and kind and must_go_on and task_id in NEW:
            yield f"{who}: {task_id} was never entered, and is lost: {kind.__name__}"


def _nothing_open(scene: Scene) -> Iterator[str]:
    if _left_open(scene):  # by a registry of the case's own, which an error's traceback may keep in a cycle
        gc.collect()
    _wait_for_what_was_left()
    if left := _left_open(scene):
        yield f"behind the close there is open: {' '.join(left)}"
    if there := apsw.connections():
        yield f"connections are left open: {len(there)}"


def _left_open(scene: Scene) -> list[str]:
    folder = os.path.dirname(scene.path)
    left = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            link = os.readlink(f"/proc/self/fd/{fd}")
            if link.startswith(folder) and not link.endswith(" (deleted)"):  # of an earlier call, which told of it
                left.append(link[len(folder) :])
    return left


def _next_process(scene: Scene, end: End) -> Iterator[str]:
    """Whoever opens the files next finds what was told, and runs nothing again."""
    clock = scene.clock
    if end.wal_hit:
        with Registry(scene.path, busy_timeout=BUSY_S, clock=clock) as registry:
            try:
                registry.run("after-close", scene.job("after-close"), name=NAME)
                yield "a sync of the -wal has failed, and the next process does not know"
            except SyncFailedError:
                clock = Boot("the next")
            except StoreError as error:
                yield f"the next process says {type(error).__name__}: {error}"
    try:
        with Registry(scene.path, busy_timeout=BUSY_S, clock=clock) as registry:
            try:
                registry.run("after-close", scene.job("after-close"), name=NAME)
            except SyncFailedError:
                if not end.is_fault_met:
                    yield "the next process says SyncFailedError"
                return
            yield from _again(scene, registry, "the next process", must_go_on=False)
            found = rows(scene.path)
    except (IdemregError, AssertionError, OSError) as error:
        yield f"the next process cannot open the files: {type(error).__name__}: {error} ({error.__cause__})"
        return
    for task_id, (status, _) in scene.promised.items():
        row = found.get(task_id)
        is_final = status is Status.SUCCEEDED
        if is_final and (row is None or row.status is not status):
            yield f"the next process finds {task_id} as {row}, told was {status}"
