"""A new file appears under its name complete and synced, or not at all, and never in place of another.

It is written under another name beside it. A process that is killed leaves at most that one behind, which nothing
mistakes for the file: its name ends with `PART` and random digits.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from idemreg import faults
from idemreg.descriptors import opened
from idemreg.errors import StoreError, StorePathError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["COMPANIONS", "PART", "make_file", "new_file", "refuse_companion"]

PART: Final = ".part-"
# What stands beside a database, by its name, and is taken for a part of it.
COMPANIONS: Final = ("-wal", "-shm", "-journal", "-lock")
FILE_MODE: Final = 0o600  # what a job printed may be secret


@contextlib.contextmanager
def new_file(path: str) -> Iterator[str]:
    """Give the path of an empty file to be written and closed; at the end of the block it becomes ``path``, durably.

    `StorePathError` where it would be taken for a part of a database that is there, and where ``path`` exists, before
    and after; whatever the block raises removes what it wrote.
    """
    if os.path.lexists(path):
        raise _exists(path)
    refuse_companion(path)
    part = f"{path}{PART}{os.urandom(8).hex()}"
    try:
        _create(part, path)
        yield part
        _sync(part)
        faults.point("place.synced")
        _take_name(part, path)
        _sync(os.path.dirname(path) or ".")
    finally:
        with contextlib.suppress(OSError):  # what is left then bears a name that nothing mistakes for the file
            os.unlink(part)


def make_file(path: str) -> None:
    """Make an empty file that only its owner may read and write, whatever the umask; FileExistsError where it is."""
    with opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE) as fd:
        os.fchmod(fd, FILE_MODE)  # a umask may take the owner's own rights as well


def _exists(path: str) -> StorePathError:
    return StorePathError(f"{path} exists already", hint="Name a file that does not exist yet; nothing is overwritten.")


def refuse_companion(path: str) -> None:
    """`StorePathError` where a new file of this name would be taken for a part of a database that is there."""
    for end in COMPANIONS:
        if path.endswith(end) and os.path.lexists(path.removesuffix(end)):
            msg = f"{path} would be taken for a part of {path.removesuffix(end)}"
            raise StorePathError(msg, hint="Choose another name.")


def _create(part: str, path: str) -> None:
    try:
        make_file(part)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}"
        raise StorePathError(msg) from error


def _sync(path: str) -> None:
    try:
        with opened(path, os.O_RDONLY) as fd:
            os.fsync(fd)
    except OSError as error:
        msg = f"cannot sync {path}: {error.strerror}"
        raise StoreError(msg) from error


def _take_name(part: str, path: str) -> None:
    """Give the file its name, which must be free. A rename would replace, so it is a link, which fails."""
    try:
        os.link(part, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError:
        # A file system without links (exFAT, say): take the name first, so that nobody else can, then rename over it.
        try:
            _take_over(part, path)
        except FileExistsError as error:
            raise _exists(path) from error
        except OSError as error:
            msg = f"cannot write {path}: {error.strerror}"
            raise StoreError(msg) from error


def _take_over(part: str, path: str) -> None:
    make_file(path)
    try:
        os.rename(part, path)
    except BaseException:  # nobody must find an empty file under the name
        os.unlink(path)
        raise
