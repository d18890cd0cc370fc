"""The library that lets the n-th call of the system fail (shim.c): compiled, loaded, and set.

A process that is to be faulted is started with `environment`. In it `FAULT` is the shim's own record, so that to arm
and to disarm it takes one store into memory: no call, and no allocation that could fail in turn.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from pathlib import Path
from typing import Any, Final

from tests.support import compiled

__all__ = ["ERRORS", "FILES", "IO_KINDS", "KINDS", "LASTING", "Fault", "environment", "loaded"]

SOURCE: Final = Path(__file__).resolve().parent / "shim.c"
VARIABLE: Final = "IDEMREG_TEST_SHIM"
LASTING: Final = 2**30  # calls that fail, from the n-th on

# As in shim.c.
KINDS: Final = {
    name: number
    for number, name in enumerate(
        (
            *("none", "open", "read", "write", "sync", "truncate", "map", "lock", "unlink", "name", "stat", "look"),
            *("duplicate", "proc", "sqlite", "python"),
        )
    )
}
FILES: Final = (
    "another file",
    "a file",
    "the database",
    "the -wal",
    "the -shm",
    "the lock file",
    "the folder",
    "inside",
)
SHORT: Final = 0
NEVER: Final = 2**31 - 1  # as the number of the call that fails
FAR: Final = 2**30

# What each call of the system may say. Linux gives no other call EINTR than these, on local files.
ERRORS: Final = {
    "open": (errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EINTR),
    "read": (errno.EIO, errno.ENOMEM, errno.EINTR),
    "write": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EROFS, errno.EINTR, SHORT),
    "sync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "truncate": (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EINTR),
    "map": (errno.ENOMEM, errno.EIO, errno.EMFILE),
    "lock": (errno.EIO, errno.ENOLCK, errno.ENOMEM),
    "unlink": (errno.EIO, errno.EROFS, errno.ENOMEM),
    "name": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM),
    "stat": (errno.EIO, errno.ENOMEM),
    "look": (errno.EIO, errno.ENOMEM),
    "duplicate": (errno.EMFILE, errno.ENOMEM),
    "proc": (errno.EMFILE, errno.ENOMEM, errno.EIO),
}
IO_KINDS: Final = tuple(ERRORS)


class Fault(ctypes.Structure):
    """`struct fault` of shim.c."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("armed", "kind", "error", "lasting", "left", "hits", "seen", "hit_file")),
        *((name, ctypes.c_int32) for name in ("wal_hit", "wal_dirty", "database_dirty", "slept_us")),
        ("calls", ctypes.c_int32 * len(KINDS)),
        ("begins", ctypes.c_uint64),
        ("ends", ctypes.c_uint64),
        ("folder", ctypes.c_char * 1024),
    )

    armed: int
    kind: int
    error: int
    lasting: int
    left: int
    hits: int
    seen: int
    hit_file: int
    wal_hit: int
    wal_dirty: int
    slept_us: int
    calls: ctypes.Array[ctypes.c_int32]
    folder: bytes

    def aim(self, folder: str, kind: str, number: int, error: int, lasting: int) -> None:
        """The ``number``-th call of the kind is to fail, and ``lasting`` in all; not armed yet."""
        self.folder = folder.encode()
        self.kind, self.left, self.error, self.lasting = KINDS[kind], number, error, lasting
        self.armed = self.hits = self.seen = self.hit_file = self.wal_hit = self.slept_us = 0
        self.calls = (ctypes.c_int32 * len(KINDS))()


@functools.cache
def library() -> str:
    """The path of the compiled shim; compiled once a process, and not where a parent has."""
    if (made := os.environ.get(VARIABLE)) is not None:
        return made
    return compiled.library([SOURCE], "-ldl")


def environment() -> dict[str, str]:
    """What a process needs in its environment to be faulted."""
    path = library()
    return {**os.environ, "LD_PRELOAD": path, VARIABLE: path, "PYTHONHASHSEED": "0"}


def loaded() -> tuple[Fault, Any]:
    """The shim's record in this process, and its functions."""
    functions = ctypes.CDLL(None)
    return Fault.in_dll(functions, "fault"), functions


def watch_sqlite(functions: Any) -> None:
    """From now on the allocations of SQLite count as "sqlite"."""
    import apsw  # noqa: PLC0415 - which must be loaded by then

    assert functions.fault_code(os.fsencode(os.path.realpath(apsw.__file__))), "where is SQLite?"


def watch_python(functions: Any) -> None:
    """From now on the allocations of Python count as "python"."""
    get, put = ctypes.pythonapi.PyMem_GetAllocator, ctypes.pythonapi.PyMem_SetAllocator
    functions.fault_hook_python(get, put)
