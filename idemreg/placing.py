"""A new file appears under its name complete and synced, or not at all, and never in place of another.

It is written under another name beside it. A process that is killed leaves at most that one behind, which nothing
mistakes for the file: its name ends with `PART` and random digits.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from idemreg import faults
from idemreg.errors import StoreError, StorePathError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PART", "new_file"]

PART: Final = ".part-"
FILE_MODE: Final = 0o600  # what a job printed may be secret


@contextlib.contextmanager
def new_file(path: str) -> Iterator[str]:
    """Give the path of an empty file to be written and closed; at the end of the block it becomes ``path``, durably.

    `StorePathError` where ``path`` exists, before and after; whatever the block raises removes what it wrote.
    """
    _refuse_existing(path)
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


def _refuse_existing(path: str) -> None:
    if os.path.lexists(path):
        msg = f"{path} exists already"
        raise StorePathError(msg, hint="Name a file that does not exist yet; nothing is overwritten.")


def _create(part: str, path: str) -> None:
    try:
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}"
        raise StorePathError(msg) from error


def _sync(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        msg = f"cannot sync {path}: {error.strerror}"
        raise StoreError(msg) from error


def _take_name(part: str, path: str) -> None:
    """Give the file its name, which must be free. A rename would replace, so it is a link, which fails."""
    try:
        os.link(part, path)
    except FileExistsError:
        _refuse_existing(path)
        raise
    except OSError:
        # A file system without links (exFAT, say): take the name first, so that nobody else can, then rename over it.
        try:
            _take_over(part, path)
        except FileExistsError:
            _refuse_existing(path)
            raise
        except OSError as error:
            msg = f"cannot write {path}: {error.strerror}"
            raise StoreError(msg) from error


def _take_over(part: str, path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
    try:
        os.rename(part, path)
    except BaseException:  # nobody must find an empty file under the name
        os.unlink(path)
        raise
