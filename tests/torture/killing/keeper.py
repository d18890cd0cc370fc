"""The parent of the processes, in a program of its own: it starts, kills, stops and reaps them as it is told.

``python -m tests.torture.killing.keeper WITNESS_FD SHARED_FILE NAMESPACES`` reads its orders from standard input. With
namespaces ("pid", "pid,time", ...) it is process 1 of a pid namespace of its own, with a /proc of its own, and what it
starts has small numbers that others on the same file have as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import mmap
import os
import signal
import sys
from typing import Final

from tests.torture.killing.audit import audit
from tests.torture.killing.witness import Witness
from tests.torture.killing.worker import Orders, Worker

__all__ = ["NEW_PID", "NEW_TIME", "NEW_USER", "main"]

NEW_TIME: Final = 0x00000080
NEW_MOUNT: Final = 0x00020000
NEW_USER: Final = 0x10000000
NEW_PID: Final = 0x20000000
_FLAGS: Final = {"user": NEW_USER, "pid": NEW_PID | NEW_MOUNT, "time": NEW_TIME}
MS_REC_PRIVATE: Final = 0x4000 | 0x40000
DIE_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG
TIME_OFFSETS: Final = "monotonic 86400 0\nboottime 86400 0\n"

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Carry out orders until there are no more; then kill whoever is left."""
    witness_fd, shared_path, words = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    _libc.prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if words != "-":
        names = words.split(",")
        _enter(names)
        if (child := os.fork()) != 0:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _libc.prctl(DIE_WITH_PARENT, signal.SIGKILL)
        if "bare" not in names:
            _check(_libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None))
            _check(_libc.mount(b"proc", b"/proc", b"proc", 0, None))
        assert os.getpid() == 1
    with open(shared_path, "r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        Keeper(witness_fd, shared).obey()
    return 0


def _enter(names: list[str]) -> None:
    ids = (os.getuid(), os.getgid())
    flags = 0
    for name in names:
        flags |= _FLAGS.get(name, 0)
    _check(_libc.unshare(flags))
    if "user" in names:
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {ids[0]} 1"), ("gid_map", f"0 {ids[1]} 1")):
            _write(f"/proc/self/{file}", text)
    if "time" in names:
        _write("/proc/self/timens_offsets", TIME_OFFSETS)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _check(answer: int) -> None:
    if answer != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Keeper:
    """Knows its children by the numbers that the conductor gives them."""

    def __init__(self, witness_fd: int, shared: mmap.mmap) -> None:
        self._witness_fd = witness_fd
        self._shared = shared
        self._pids: dict[int, int] = {}

    def obey(self) -> None:
        """Order after order, each a line of JSON."""
        gc.freeze()  # what is there is shared with each child
        try:
            for line in sys.stdin:
                order, process, *rest = json.loads(line)
                getattr(self, f"_{order}")(process, *rest)
        finally:
            for pid in self._pids.values():
                os.kill(pid, signal.SIGKILL)

    def _start(self, process: int, *fields: object) -> None:
        pid = os.fork()
        if pid:
            self._pids[process] = pid
            self._say("born", process, pid)
            return
        self._be(process, lambda: Worker(Orders(process, *fields), self._witness_fd, self._shared).live())  # type: ignore[arg-type]

    def _audit(self, process: int, path: str, tasks: list[str]) -> None:
        pid = os.fork()
        if pid:
            self._pids[process] = pid
            return
        self._be(process, lambda: audit(path, tasks, Witness(self._witness_fd, process)))

    def _be(self, process: int, body: object) -> None:
        """Be the child, and nothing of the keeper."""
        _libc.prctl(DIE_WITH_PARENT, signal.SIGKILL)
        os.close(0)
        try:
            body()  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - the child must not go on as a keeper
            self._say("trouble", process, repr(error).replace("\n", " "))
            self._say("leaving", process)  # or the conductor would listen for half a minute
        finally:
            os._exit(0)

    def _kill(self, process: int) -> None:
        if process not in self._pids:
            return
        self._say("killing", process)
        os.kill(self._pids[process], signal.SIGKILL)
        self._wait_for(process)

    def _stop(self, process: int) -> None:
        if process in self._pids:  # or it has ended meanwhile
            os.kill(self._pids[process], signal.SIGSTOP)

    def _go(self, process: int) -> None:
        if process in self._pids:
            os.kill(self._pids[process], signal.SIGCONT)

    def _reap(self, process: int) -> None:
        """It is about to end, of itself: wait for that. It may have been stopped just before."""
        self._go(process)
        self._wait_for(process)

    def _wait_for(self, process: int) -> None:
        os.waitpid(self._pids.pop(process), 0)
        self._say("gone", process)

    def _say(self, kind: str, process: int, *words: object) -> None:
        Witness(self._witness_fd, process).say(kind, *words)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
