"""The case before the doctor: the file, what was opened of it, and the limits of each look."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from idemreg.counted import word_for
from idemreg.liveness import Examiner
from idemreg.lockfile import DATABASE_OFFSET, MAGIC, SIZE, LockFile, is_new

if TYPE_CHECKING:
    from idemreg.clock import Clock
    from idemreg.liveness import OwnerRecord
    from idemreg.model import Liveness
    from idemreg.sqlite.looking import Look, Registered, Summary

__all__ = ["Case", "Lock", "names"]

LOOK_S: Final = 5.0  # a question to the database; without limit in a full examination
NAMED: Final = 5  # tasks that a text names; the rest is a number
TASKS_LIMIT: Final = 1_000  # of one kind
OWNERS_LIMIT: Final = 256


class Lock:
    """The lock file, opened where it exists; nothing is written to it."""

    def __init__(self, path: str, clock: Clock) -> None:
        self._clock = clock
        self._examiner: Examiner | None = None
        self.file = LockFile(path)
        try:
            self.file.open()
            head = os.pread(self.file.fd, SIZE, 0)
            self.is_blank = is_new(head)
            self.is_ours = head.startswith(MAGIC) and not self.is_blank
            self.notes_database = self.is_ours and head[DATABASE_OFFSET] == 1
            self.file.lock_id = head[len(MAGIC) : DATABASE_OFFSET].hex() if self.is_ours else ""
        except BaseException:  # the disk's, or no memory
            self.file.close()
            raise

    @property
    def examiner(self) -> Examiner:
        """Tells who lives, by this lock file. Tries the locks first, on a byte that is nobody's."""
        if self._examiner is None:
            self._examiner = Examiner(self.file, self._clock)
        return self._examiner


class Case:
    """One file, examined once. Checks share here what they found and opened."""

    def __init__(self, path: str, clock: Clock, *, full: bool, unsafe_path: bool) -> None:
        self.given: Final = path
        self.path: Final = os.path.realpath(path)
        self.unsafe_path: Final = unsafe_path
        self.may_open = True  # nothing that is no file is in the place of one
        self.clock: Final = clock
        self.full: Final = full
        self.lock: Lock | None = None
        self.look: Look | None = None  # the database, once it is known to be a registry
        self.registered: Registered | None = None  # the row about it, once its schema is known to be ours
        self.summary: Summary | None = None
        self.owners: dict[int, tuple[Liveness, str]] = {}

    @property
    def limit_s(self) -> float | None:
        """How long one question to the database may take."""
        return None if self.full else LOOK_S

    @property
    def files(self) -> list[str]:
        """The database and what belongs to it, as far as it exists."""
        return [path for end in ("", "-wal", "-shm", "-lock") if os.path.exists(path := self.path + end)]

    def liveness(self, owner: int, record: OwnerRecord | None) -> tuple[Liveness, str] | None:
        """Whether the owner lives; None without a lock file to tell by."""
        if self.lock is None:
            return None
        if owner not in self.owners:
            self.owners[owner] = self.lock.examiner.examine(owner, record)
        return self.owners[owner]

    def close(self) -> None:
        """Close what was opened."""
        if self.look is not None:
            self.look.close()
        if self.lock is not None:
            self.lock.file.close()


def names(task_ids: list[str]) -> str:
    """Some tasks by name, and how many there are."""
    count = f"{len(task_ids):,}{' or more' if len(task_ids) >= TASKS_LIMIT else ''}"
    shown = ", ".join(map(repr, task_ids[:NAMED]))
    rest = ", ..." if len(task_ids) > NAMED else ""
    return f"{count} {word_for(len(task_ids), 'task')} ({shown}{rest})"
