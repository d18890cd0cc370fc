"""Whose files these are: what others could plant, swap or point elsewhere is refused, unless forced.

A registry decides what runs, so whoever can write it, or put another in its place, can keep jobs from running or have
them run again. Looked at are the database, what lies beside it under its name, and every folder on the way there:

* What SQLite or we would open must be a regular file: no FIFO, device, socket or folder, and beside the database no
  link. This holds by force as well: none of them can serve.
* The database is no symbolic link, and no file has a second name (a hard link): each name would have a -wal and a lock
  file of its own.
* The files, and the folder that holds them, are this user's or root's. Root looks after everybody's: for root they may
  be another user's, if the files beside the database are the same user's.
* The folder that holds them may not be written by everybody, not even with the sticky bit (/tmp): the -wal comes and
  goes, and any user could be the first to make it. Folders further up may be so with the sticky bit, if they are ours
  or root's, and so is what is passed in them: nobody else can rename that.

Nothing is opened to be looked at: see `sqlite/files.py`. Between the look and the opening nobody else can change what
was looked at, and SQLite is told to follow no link. Groups are not looked at: who is in them, the administrator knows.
"""

from __future__ import annotations

import os
import stat
from typing import Final, NoReturn

from idemreg.errors import StorePathError
from idemreg.placing import COMPANIONS, PART

__all__ = ["check_trust"]

MAX_LINKS: Final = 40  # on one way; as many as the kernel follows
ROOT: Final = 0

FORCE: Final = " To use it all the same: Registry(..., unsafe_path=True), or idemreg --unsafe-path."


def check_trust(path: str, database: str, *, is_forced: bool) -> None:
    """`StorePathError` says what cannot be trusted.

    ``path`` is from the root, as it was given; ``database`` is the same with its links resolved.
    """
    try:
        if not is_forced:
            if os.path.islink(path):
                _refuse(f"{path} is a symbolic link, to {database}", "Name the file itself.")
            _check_way(path)
            _check_folder(os.path.dirname(database))
        _check_files(database, is_forced=is_forced)
    except OSError as error:
        msg = f"cannot look at {error.filename}: {error.strerror}"
        raise StorePathError(msg) from error


# --- the files --------------------------------------------------------------------------------------------------


def _check_files(database: str, *, is_forced: bool) -> None:
    owners = {ROOT, os.geteuid()}
    for end in ("", *COMPANIONS):
        file = database + end
        try:
            found = os.lstat(file)
        except FileNotFoundError:
            continue
        _check_kind(file, found, is_database=not end)
        if is_forced:
            continue
        if found.st_nlink > 1 and _has_other_names(file, found.st_ino):
            what = f"{file} has a second name (a hard link), under which others would use another lock file and -wal"
            _refuse(what, f"Keep one name: find DIRECTORY -xdev -inum {found.st_ino} shows them all.")
        if not end and os.geteuid() == ROOT:
            owners.add(found.st_uid)
        if found.st_uid not in owners:
            what = f"{file} belongs to user {found.st_uid}, and this is user {os.geteuid()}"
            _refuse(what, "Let one user own the files and run the jobs.")


def _check_kind(file: str, found: os.stat_result, *, is_database: bool) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISDIR(found.st_mode) and is_database:
        msg = f"{file} is a folder"
        raise StorePathError(msg, hint=f"Name a file in it, as {os.path.join(file, 'jobs.db')}.")
    msg = f"{file} is no regular file (a link, a folder, a pipe, a socket or a device)"
    raise StorePathError(msg, hint="Move it away, or choose another path for the registry.")


def _has_other_names(file: str, inode: int) -> bool:
    """Whether there are more names than that of `placing.new_file`, which goes in a moment, or was left by a kill."""
    folder, name = os.path.split(file)
    with os.scandir(folder) as entries:
        parts = sum(entry.name.startswith(name + PART) and entry.inode() == inode for entry in entries)
    try:
        return os.lstat(file).st_nlink > 1 + parts  # once more, behind the look into the folder
    except FileNotFoundError:
        return False


# --- the way ----------------------------------------------------------------------------------------------------


def _check_way(path: str) -> None:
    """Every folder that decides what the path leads to, those of links on the way included."""
    here, rest, links = "/", [*reversed(path.split("/"))], 0
    while rest:
        name = rest.pop()
        if name in ("", ".", ".."):
            here = os.path.dirname(here) if name == ".." else here
            continue
        is_open = _is_open_to_all(here)
        there = os.path.join(here, name)
        try:
            found = os.lstat(there)
        except FileNotFoundError:  # the file itself, which is not there yet; `locate` has told what else is missing
            return
        if is_open and found.st_uid not in (ROOT, os.geteuid()):
            what = f"{there} belongs to user {found.st_uid}, in a folder where everybody may put such"
            _refuse(what, "Choose a folder of your own.")
        if stat.S_ISLNK(found.st_mode) and links < MAX_LINKS:
            links += 1
            target = os.readlink(there)
            here = "/" if target.startswith("/") else here
            rest += reversed(target.split("/"))
        else:
            here = there


def _is_open_to_all(folder: str) -> bool:
    """Whether everybody may put something there. Refused where they may also rename what is another's."""
    found = os.stat(folder)
    is_open = bool(found.st_mode & stat.S_IWOTH)
    if is_open and not (found.st_mode & stat.S_ISVTX and found.st_uid in (ROOT, os.geteuid())):
        _refuse_open(folder)
    return is_open


def _check_folder(folder: str) -> None:
    """The one that holds the files."""
    found = os.stat(folder)
    if found.st_mode & stat.S_IWOTH:
        _refuse_open(folder)
    me = os.geteuid()
    if found.st_uid not in (ROOT, me) and me != ROOT:
        _refuse(f"the folder {folder} belongs to user {found.st_uid}, and this is user {me}", "Choose one of your own.")


def _refuse_open(folder: str) -> NoReturn:
    what = f"every user of the machine may write in {folder}, and so put other files in the place of these"
    is_shared = os.stat(folder).st_mode & stat.S_ISVTX  # as /tmp, which is to be so
    or_else = "." if is_shared else ", or take that right away (`chmod o-w FOLDER`)."
    _refuse(what, f"Choose a folder of your own (`mkdir -m 700 FOLDER`){or_else}")


def _refuse(what: str, hint: str) -> NoReturn:
    raise StorePathError(what, hint=hint + FORCE)
