"""Which paths may hold a registry, checked before anything is opened.

Nothing here opens the database file: closing *any* descriptor of it would drop the POSIX locks that SQLite holds on it
elsewhere in this process (two processes then committed the same primary key, and integrity_check said ok).
"""

# Not `from __future__ import annotations`: of a named tuple's fields typing compiles each annotation that is text.

import os
import stat
from typing import NamedTuple

from idemreg.errors import StorePathError, StoreVersionError

__all__ = ["Location", "absolute", "check_sqlite_version", "filesystem_type", "is_mounted_alone", "locate"]

MOUNTS_PATH = "/proc/self/mountinfo"

# Their locks and their shared memory do not reach the other clients, or not reliably: WAL needs both.
NETWORK_FILESYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs",
     "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs", "virtiofs"}
)  # fmt: skip

# 3.7.0 to 3.51.2 can corrupt the file when two connections write and checkpoint at the same instant; 3.52 is withdrawn.
OLDEST_SQLITE = (3, 51, 3)
WITHDRAWN_SQLITE = (3, 52)


class Location(NamedTuple):
    """Where a registry is. Links are resolved, so that two names of one file share one lock file."""

    database: str
    lock: str
    has_content: bool


def absolute(path: str | os.PathLike[str]) -> str:
    """The path from the root. A relative one means the folder of now, whatever the process changes to later."""
    text: object = os.fspath(path)
    if not isinstance(text, str) or not text or text == ":memory:" or "\0" in text:
        msg = f"a registry needs the path of a file, not {text!r}"
        raise StorePathError(msg)
    try:
        text.encode()
    except UnicodeEncodeError:
        msg = f"the path {text!r} is no UTF-8, which SQLite needs"
        raise StorePathError(msg, hint="Rename the file or its folder.") from None
    return os.path.abspath(text)


def locate(path: str, *, mounts_path: str = MOUNTS_PATH) -> Location:
    """Check that the path can hold a registry; `StorePathError` says why not. Creates nothing."""
    database = os.path.realpath(path)
    has_content = _check_file(database)
    _check_folder(os.path.dirname(database))
    mounts = _mounts_on_the_way(database, mounts_path)
    if _is_alone(database, mounts):
        msg = f"{database} is mounted by itself, so the -wal and the lock file are not those beside the file that it is"
        raise StorePathError(msg, hint="Mount the folder that holds it (`docker run -v FOLDER:FOLDER`), not the file.")
    kind = _type(mounts)
    if kind in NETWORK_FILESYSTEMS:
        msg = f"{database} is on a network file system ({kind}), where locks and shared memory cannot be relied on"
        raise StorePathError(msg, hint="Choose a path on a local disk of the machine that runs the jobs.")
    return Location(database, database + "-lock", has_content)


def _check_file(database: str) -> bool:
    try:
        found = os.stat(database)
    except FileNotFoundError:
        return False
    except OSError as error:
        msg = f"cannot look at {database}: {error.strerror}"
        raise StorePathError(msg) from error
    if stat.S_ISDIR(found.st_mode):
        msg = f"{database} is a folder"
        raise StorePathError(msg, hint=f"Name a file in it, as {os.path.join(database, 'jobs.db')}.")
    if not stat.S_ISREG(found.st_mode):
        msg = f"{database} is no regular file (a pipe, a socket or a device)"
        raise StorePathError(msg)
    if not os.access(database, os.R_OK | os.W_OK):
        msg = f"{database} may not be read and written by this user"
        raise StorePathError(msg, hint="Run as the user who owns the file, or give the user permission.")
    return found.st_size > 0


def _check_folder(folder: str) -> None:
    if not os.path.isdir(folder):
        import shlex  # noqa: PLC0415 - errors only

        msg = f"there is no folder {folder}"
        raise StorePathError(msg, hint=f"Create it first: `mkdir -p {shlex.quote(folder)}`.")
    if not os.access(folder, os.W_OK | os.X_OK):
        msg = f"the folder {folder} may not be written: SQLite keeps its -wal and -shm files beside the database"
        raise StorePathError(msg)


def filesystem_type(path: str, *, mounts_path: str = MOUNTS_PATH) -> str | None:
    """The type of the file system that holds the path (``ext4``, ``nfs4``, ...); None where that cannot be told.

    By the longest mount point that leads to the path, since device numbers do not match on btrfs and overlays.
    """
    return _type(_mounts_on_the_way(path, mounts_path))


def is_mounted_alone(path: str, *, mounts_path: str = MOUNTS_PATH) -> bool:
    """Whether the file itself is a mount point: a container was given it without the folder that holds it.

    It would have a -wal and a lock file of its own then, and run the others' tasks.
    """
    return _is_alone(path, _mounts_on_the_way(path, mounts_path))


def _type(mounts: list[tuple[str, str]]) -> str | None:
    best, found = "", None
    for point, kind in mounts:
        if len(point) >= len(best):
            best, found = point, kind  # at equal length the later mount covers the earlier
    return found


def _is_alone(path: str, mounts: list[tuple[str, str]]) -> bool:
    return bool(mounts) and mounts[-1][0] == path  # a later mount of a folder covers an earlier one of the file


def _mounts_on_the_way(path: str, mounts_path: str) -> list[tuple[str, str]]:
    """Mount point and type of each line of mountinfo (proc_pid_mountinfo(5)) that the path leads through."""
    mounts = []
    try:
        with open(mounts_path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                point = _plain(line.split(" ", 5)[4])
                if path == point or path.startswith(point.rstrip("/") + "/"):
                    mounts.append((point, line.partition(" - ")[2].split(" ", 1)[0]))
    except OSError:
        return []
    return mounts


def _plain(point: str) -> str:
    """Space and others come as octal."""
    if "\\" in point:
        for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            point = point.replace(octal, character)
    return point


def check_sqlite_version(version: str) -> None:
    """Refuse a SQLite that can corrupt the file (`StoreVersionError`)."""
    parts = tuple(int(part) for part in version.split("."))
    if parts < OLDEST_SQLITE or parts[:2] == WITHDRAWN_SQLITE:
        msg = f"SQLite {version} can corrupt a WAL database that several processes write"
        raise StoreVersionError(msg, hint="Upgrade apsw: `pip install --upgrade 'apsw>=3.51.3.0,!=3.52.*'`.")
