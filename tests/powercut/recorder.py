"""Records what real processes do to one folder's files, in one log of all of them: compiles the shim and sets it up.

The shim (shim.c, record.c) stands in front of the C library's functions in every worker (LD_PRELOAD), so it sees SQLite
inside apsw and Python's own ``os.pwrite`` and ``os.fdatasync`` alike.

Why the order of the log can be trusted. All processes share one lock. An operation that changes a file or a name is
carried out *and* recorded under it: so the order of the records is the order of the operations of all processes. What
a caller was told (`tell` in worker.py) is a record under the same lock.

Syncs run outside of the lock, or nothing would ever happen during one. A sync is a begin and an end, each a record
under the lock, with the sync itself in between. What was recorded before its begin had been done before it began, so a
sync that succeeds covers it; what was recorded later counts as not covered, even where the kernel took it along, as the
disk was free not to. Its caller learns of the success after the end is recorded, and so does everybody whom he tells.
So no cut shows a loss that the real one could not have had. What can be missed is small: a caller who was told too
early, but whose record came when a sync had ended meanwhile.

A process that is killed. Whoever kills here holds the lock (`Recorder.alone`; the shim does so for a process that kills
itself), so nobody dies between an operation and its record. Who dies so all the same (killed by somebody else, in
mid-record) voids the trace: its operation may be done and not recorded. A sync without an end covers nothing, which is
true to life: nobody was told of its success.

The folder should be on a file system in memory: what the disk does is simulated, and so is how long a sync takes
(``sync_us``; real ones with None). The time matters: only while a sync lasts can others commit, answer and join.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import mmap
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import compiled

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
SOURCES = ("shim.c", "record.c")
CONTROL_BYTES = 4_096
FAIL_IN_OFFSET = 4  # of struct control in shim.h
MEMORY = "/dev/shm"  # noqa: S108 - not a temporary file: a file system in memory

# The longest simulated sync, in microseconds: about what a fast disk takes.
SYNC_US = 300


@functools.cache
def shim() -> str:
    """The path of the compiled shim; compiled once a process, and not where POWERCUT_SHIM names one."""
    if (made := os.environ.get("POWERCUT_SHIM")) is not None:
        return made
    return compiled.library([HERE / name for name in SOURCES], "-ldl", "-lpthread")


def scratch() -> str:
    """A new folder in memory, where there is one."""
    return tempfile.mkdtemp(prefix="powercut-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None)


class Recorder:
    """One recording: a folder that is watched, and the log beside it.

    ``folder`` is where the registry is to be; ``log`` what `trace.read` reads. The processes that run with
    `environment` are recorded.
    """

    def __init__(self, base: str) -> None:
        base = os.path.realpath(base)
        self.folder, self.log, self.told, self.control = (
            os.path.join(base, name) for name in ("files", "log", "told", "control")
        )
        os.mkdir(self.folder)
        for path in (self.told, self.log):
            Path(path).touch()
        Path(self.control).write_bytes(bytes(CONTROL_BYTES))

    @property
    def database(self) -> str:
        """Where the registry of a recording is."""
        return os.path.join(self.folder, "jobs.db")

    def environment(self, *, sync_us: int | None = SYNC_US) -> dict[str, str]:
        """What a process needs in its environment to be recorded."""
        return {
            "LD_PRELOAD": shim(),
            "POWERCUT_FOLDER": self.folder,
            "POWERCUT_LOG": self.log,
            "POWERCUT_TOLD": self.told,
            "POWERCUT_CONTROL": self.control,
            "POWERCUT_SYNC_US": "" if sync_us is None else str(sync_us),
        }


class Control:
    """The lock of a recording, and its faults; for the process that conducts it (`Recorder.control` is the path)."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._map = mmap.mmap(self._fd, CONTROL_BYTES)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody is inside an operation meanwhile (some may be inside a sync): the moment to kill, or to stop."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def fail_sync(self, number: int) -> None:
        """Let the ``number``-th sync of a -wal from now on fail, as the kernel reports it: once a descriptor."""
        with self.alone():
            self._map[FAIL_IN_OFFSET : FAIL_IN_OFFSET + 4] = struct.pack("=I", number)

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)
