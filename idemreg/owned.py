"""Whose file it is, as far as commands in it go: only what nobody else could have written is ever executed.

This is not `sqlite/trust.py`, which asks what may be opened and can be forced: here no force helps. Looked at are the
names that SQLite opens, so behind every link: the database, what stands beside it and the folder that holds them, and
also the folder of a link, who writes there chooses the database. Each is this user's, or (but for the database) root's,
and neither its group nor others may write it. Folders further up may be a group's, or everybody's with the sticky bit.

It says whose the files are now. What somebody else has written in former days, it cannot know.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from idemreg.errors import RecoveryError
from idemreg.placing import COMPANIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_owned"]

ROOT: Final = 0
OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def check_owned(path: str | os.PathLike[str], task_id: str | None = None) -> None:
    """`RecoveryError` where somebody else could have written what would be executed."""
    for file, owners, rights in _looked_at(os.path.abspath(path)):
        try:
            found = os.stat(file)
        except FileNotFoundError:
            continue
        if found.st_uid not in owners:
            msg = f"{file} is another user's, whose commands are not run as this one"
            hint = f"Only as its owner: `chown {os.geteuid()} {file}`."
        elif found.st_mode & rights and not (rights == stat.S_IWOTH and _is_sticky(found)):
            msg = f"others may write {file}, so a command in it may be theirs"
            hint = f"Only as its owner, and with: `chmod {'go-w' if rights == OTHERS_MAY_WRITE else 'o-w'} {file}`."
        else:
            continue
        raise RecoveryError(msg, task_id=task_id, hint=hint)


def _looked_at(path: str) -> Iterator[tuple[str, set[int] | range, int]]:
    """Each file and folder, who may own it, and the rights that others may not have to it."""
    me, anybody = os.geteuid(), range(2**32)
    database = os.path.realpath(path)
    yield database, {me}, OTHERS_MAY_WRITE
    for end in COMPANIONS:
        yield database + end, {me, ROOT}, OTHERS_MAY_WRITE
    for folder in dict.fromkeys(map(os.path.dirname, (database, *_names(path)))):
        yield folder, {me, ROOT}, OTHERS_MAY_WRITE
        while folder != (above := os.path.dirname(folder)):
            folder = above  # noqa: PLW2901 - climbs from it
            yield folder, anybody, stat.S_IWOTH


def _names(path: str) -> Iterator[str]:
    """The path, and from link to link those that it leads to; `realpath` has found that they end."""
    yield path
    while os.path.islink(path):
        path = os.path.abspath(os.path.join(os.path.dirname(path), os.readlink(path)))
        yield path


def _is_sticky(found: os.stat_result) -> bool:
    return bool(found.st_mode & stat.S_ISVTX) and found.st_uid in (ROOT, os.geteuid())
