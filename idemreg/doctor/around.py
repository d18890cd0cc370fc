"""What is around the database: the program, the file system, permissions, and the lock file with its locks."""

from __future__ import annotations

import os
import platform
import stat
from typing import TYPE_CHECKING, Final

from idemreg.doctor.case import Lock
from idemreg.doctor.finding import Finding, finding
from idemreg.errors import StoreError, StorePathError, StoreVersionError
from idemreg.lockfile import tells_of_database
from idemreg.sqlite import files, looking
from idemreg.sqlite.trust import check_trust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from idemreg.doctor.case import Case

__all__ = ["filesystem", "lock_file", "locks", "no_lock_file", "path", "permissions", "trust", "versions"]

LOW_BYTES: Final = 100 * 2**20  # a day's -wal and then some
FULL_BYTES: Final = 4 * 2**20  # less than a -wal takes before it is checkpointed
MEGABYTE: Final = 2**20


def versions(_case: Case) -> Iterator[Finding]:
    """The versions that work here, and whether this SQLite may touch the file at all."""
    apsw_version, sqlite_version = looking.versions()
    python = platform.python_version()
    yield finding("versions", f"Python {python}, apsw {apsw_version} with SQLite {sqlite_version}.")
    try:
        files.check_sqlite_version(sqlite_version)
    except StoreVersionError as error:
        yield finding("sqlite-version", f"{error.message}.")


def path(case: Case) -> Iterator[Finding]:
    """Whether there is a file to look at."""
    try:
        mode = os.stat(case.path).st_mode
    except FileNotFoundError:
        if tells_of_database(f"{case.path}-lock"):
            yield finding("vanished", f"There is no file {case.path}, but its lock file knows of a registry.")
        else:
            yield finding("missing", f"There is no file {case.path}.")
    except OSError as error:
        yield finding("unreadable", f"{case.path} cannot be looked at: {error.strerror}.")
    else:
        if not stat.S_ISREG(mode):
            yield finding("not-a-file", f"{case.path} is no regular file.")
        elif not os.access(case.path, os.R_OK):
            yield finding("unreadable", f"{case.path} may not be read by this user.")


def filesystem(case: Case) -> Iterator[Finding]:
    """On what the file lies, and how much room is left."""
    folder = os.path.dirname(case.path)
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    room = f"{free // MEGABYTE:,} MiB are free"
    kind = files.filesystem_type(case.path)
    if kind is None:
        yield finding("filesystem-unknown", f"The type of the file system of {folder} cannot be told; {room}.")
    elif kind in files.NETWORK_FILESYSTEMS:
        yield finding("network-filesystem", f"{case.path} is on a network file system ({kind}).")
    else:
        yield finding("filesystem", f"{folder} is on {kind}; {room}.")
    if files.is_mounted_alone(case.path):
        yield finding("mounted-alone", f"{case.path} is mounted by itself, without the folder that holds it.")
    if found.f_flag & os.ST_RDONLY:
        yield finding("read-only", f"The file system of {folder} is mounted read-only.")
    elif free < FULL_BYTES:
        yield finding("disk-full", f"The disk of {folder} is full: {room}.")
    elif free < LOW_BYTES:
        yield finding("low-space", f"The disk of {folder} is nearly full: {room}.")


def permissions(case: Case) -> Iterator[Finding]:
    """Who may write what, and whose it is."""
    folder = os.path.dirname(case.path)
    for place in [*case.files, folder]:
        if os.stat(place).st_mode & stat.S_IWOTH:
            yield finding("world-writable", f"{place} may be written by every user.")
    owner = os.stat(case.path).st_uid
    me = os.geteuid()
    if me not in (0, owner):  # the superuser looks after everybody's files
        yield finding("foreign-owner", f"{case.path} belongs to user {owner}, and this is user {me}.")
    for place in case.files[1:]:
        if (other := os.stat(place).st_uid) != owner:
            yield finding("foreign-owner", f"{place} belongs to user {other}, and the database to user {owner}.")
    for place in (case.path, folder):
        if not os.access(place, os.W_OK):
            yield finding("not-writable", f"{place} may not be written by this user.")


def trust(case: Case) -> Iterator[Finding]:
    """Whether others could plant or swap the files, or have done so."""
    for is_forced, code in ((True, "planted"), (False, "untrusted")):
        try:
            check_trust(case.given, case.path, is_forced=is_forced or case.unsafe_path)
        except StorePathError as error:
            case.may_open = case.may_open and not is_forced
            yield finding(code, f"{error.message}.")
            return


def lock_file(case: Case) -> Iterator[Finding]:
    """Whether what is there for a lock file is one. Opens it for the later checks."""
    place = f"{case.path}-lock"
    if not os.path.lexists(place):
        return
    try:
        lock = Lock(place, case.clock)
    except StoreError as error:
        yield finding("lock-file-unreadable", f"{error.message}.")
        return
    case.lock = lock
    if lock.is_blank:
        yield finding("lock-file-empty", f"{place} is empty: its writer was stopped in between.")
    elif not lock.is_ours:
        yield finding("lock-file-foreign", f"{place} is not a lock file of idemreg.")
    elif lock.file.has_failed_sync(case.clock.boot_id()):
        yield finding("sync-failed", "The disk has failed to sync the -wal: what is visible may not be on it.")


def no_lock_file(case: Case) -> Iterator[Finding]:
    """Whether it is missing; behind the look inside, since only a registry has one."""
    if not os.path.lexists(f"{case.path}-lock"):
        yield finding("lock-file-missing", f"There is no lock file {case.path}-lock.")


def locks(case: Case) -> Iterator[Finding]:
    """Whether locks mean anything here: a lock must be seen, survive one close, and be gone with the last."""
    if case.lock is None:
        return
    examiner = case.lock.examiner
    if examiner.locks_work:
        yield finding("locks", "Locks work here: one is seen by others, and gone when its holder is.")
    elif examiner.untried:
        yield finding("locks-untried", f"Of {case.lock.file.path}, {examiner.untried}.")
    else:
        yield finding("locks-inert", f"Locks do nothing on the file system of {case.path}.")
