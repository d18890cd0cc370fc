"""What the doctor can find: one table of every kind, with how bad it is and what to do about it."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from idemreg.clockcheck.alarm import NEXT

__all__ = ["CANNOT_OPEN", "KINDS", "Finding", "Severity", "finding"]


class Severity(enum.IntEnum):
    """How bad it is. From `WARNING` on somebody should look."""

    INFO = 0
    WARNING = 1
    ERROR = 2

    @property
    def word(self) -> str:
        """As people and JSON see it."""
        return self.name.lower()


class Finding(NamedTuple):
    """One thing that the doctor found. ``code`` is stable, for machines; ``hint`` says what to do, if anything."""

    code: str
    severity: Severity
    text: str
    hint: str


INFO, WARNING, ERROR = Severity

RESCUE: Final = (
    "Keep a copy of the file. `idemreg doctor --salvage OUT` copies what is whole out of it; or restore a backup."
)

# code -> how bad it is, and what to do. In the order in which the checks come.
KINDS: Final[dict[str, tuple[Severity, str]]] = {
    # --- the program and the machine
    "versions": (INFO, "No other program with SQLite 3.7.0 to 3.51.2 (the WAL-reset bug) may write this file."),
    "sqlite-version": (ERROR, "Upgrade apsw: `pip install --upgrade 'apsw>=3.51.3.0,!=3.52.*'`."),
    "filesystem": (INFO, ""),
    "filesystem-unknown": (INFO, "Make sure that it is a local disk: network file systems do not work."),
    "network-filesystem": (ERROR, "Move the files to a local disk of the machine that runs the jobs."),
    "mounted-alone": (
        ERROR,
        "Mount the folder: else each container has a -wal and a lock file of its own.",
    ),
    "read-only": (ERROR, "Mount the file system for writing; no claim can be stored."),
    "disk-full": (ERROR, "Free some space: no claim can be stored. Every task keeps its state meanwhile."),
    "low-space": (WARNING, "Free some space before claims can no longer be stored."),
    # --- the files and who may touch them
    "missing": (ERROR, "Name another file with --db, or create it: `idemreg init`."),
    "not-a-file": (ERROR, "Name a file, not the folder or device that holds it."),
    "unreadable": (ERROR, "Run as the user who owns the file."),
    "not-writable": (ERROR, "Run as the user who owns the file, or give this user permission for file and folder."),
    "world-writable": (WARNING, "Whoever is on the machine can forge or remove tasks. Take it away: `chmod o-w PATH`."),
    "foreign-owner": (WARNING, "Let one user own the files and run the jobs: `chown USER PATH`."),
    "untrusted": (ERROR, "Others could plant or swap the files; it is opened by force only (--unsafe-path)."),
    "planted": (ERROR, "Move it away: SQLite, or idemreg, would open it, and nothing of it can serve."),
    # --- the lock file
    "lock-file-missing": (WARNING, "Never remove it: owners that live now cannot be told from dead ones any more."),
    "lock-file-empty": (WARNING, "The next opening of the registry writes it."),
    "lock-file-foreign": (ERROR, "Move that file away: idemreg refuses to work beside it."),
    "lock-file-unreadable": (ERROR, "Run as the user who owns the file."),
    "lock-file-replaced": (WARNING, "Never replace it; restart what has the file open, and the next opening notes it."),
    "sync-failed": (ERROR, "Look after the disk, then reboot: until then nothing durable is answered."),
    "locks": (INFO, ""),
    "locks-inert": (ERROR, "Move the files to another file system: nobody's death can be proven on this one."),
    "locks-untried": (WARNING, "Mend what is said; until then nobody's death can be proven."),
    # --- the database
    "empty": (WARNING, "Create the registry: `idemreg init`."),
    "vanished": (ERROR, "Put a backup in its place; to forget every task and start anew, remove the lock file too."),
    "not-a-database": (ERROR, "Choose another path: a registry has a file of its own."),
    "damaged-header": (ERROR, RESCUE),
    "foreign": (ERROR, "Choose another path: a registry has a file of its own."),
    "cannot-open": (ERROR, "See what SQLite says, and check the disk and the permissions."),
    "schema-newer": (ERROR, "Upgrade idemreg here, as it was where the file was migrated."),
    "schema-older": (INFO, "The next opening of the registry migrates it."),
    "schema-altered": (ERROR, "Find out which program did so; idemreg refuses the file. Put a backup in its place."),
    "registry-row-missing": (ERROR, RESCUE),
    "settings": (INFO, ""),
    "setting-refused": (ERROR, "This build of SQLite does not obey: install apsw from PyPI."),
    "journal-mode": (WARNING, "Some program changed it; the next opening of the registry sets it back."),
    "page-layout": (WARNING, "It works, slower; some program rebuilt the file."),
    "page-checksums-missing": (ERROR, "Install apsw from PyPI: `pip install --force-reinstall apsw`."),
    "wal-lost": (
        ERROR,
        "Put the -wal back as it was, or a backup in the place of the database; or `idemreg doctor --salvage OUT`.",
    ),
    "wal": (INFO, ""),
    "wal-reader": (INFO, ""),
    "wal-large": (WARNING, "End what reads for so long, or then `idemreg checkpoint --mode truncate`."),
    "sound": (INFO, ""),
    "integrity": (ERROR, f"{RESCUE} Look at the disk."),
    "row-invalid": (ERROR, "Find out which program wrote it; idemreg did not. Put a backup in its place."),
    "seal-broken": (
        ERROR,
        "`idemreg doctor --salvage OUT` copies what is whole out of the file; or restore a backup.",
    ),
    "large-missing": (ERROR, "Its result is lost: callers get an error, and it never runs again. Restore a backup."),
    "large-orphaned": (WARNING, "It takes space and does no harm; some program removed its task by hand."),
    "steps-orphaned": (
        ERROR,
        "A task of that name would skip them; some program removed its row by hand. Restore a backup.",
    ),
    "arguments-orphaned": (
        WARNING,
        "Their task is over, and secrets may be in them; some program changed its row by hand. Restore a backup.",
    ),
    # --- owners and tasks
    "owner": (INFO, ""),
    "owner-dead": (INFO, "Its record goes when the next owner is recorded."),
    "owner-cannot-tell": (WARNING, "Look at the process; its tasks stay as they are as long as nobody can tell."),
    "byte-unrecorded": (INFO, "An owner that is about to record itself, or whose record was taken away."),
    "tasks": (INFO, ""),
    "running-dead": (WARNING, "The next call of each decides by its policy, and so does `idemreg watch --once`."),
    "running-cannot-tell": (WARNING, "`idemreg show TASK_ID` tells who their owners are."),
    "lease-expired": (
        WARNING,
        "Its process hangs, or was paused: the next call decides by its policy, and so does `idemreg watch --once`.",
    ),
    "overdue": (
        WARNING,
        "A thread cannot be ended from outside: `idemreg show TASK_ID` tells which process it is; end that one.",
    ),
    "rerun-waiting": (
        WARNING,
        "`idemreg watch` (or `... --once`, by a timer) runs commands; `idemreg watch MODULE:REGISTRY` runs functions.",
    ),
    "unknown": (
        WARNING,
        "Find out whether each happened, then `idemreg resolve TASK_ID happened` or `... did-not-happen`.",
    ),
    "clock-suspended": (WARNING, NEXT),
    "dead-letter": (
        WARNING,
        "`idemreg show TASK_ID` tells the error; `idemreg retry TASK_ID` allows one more attempt.",
    ),
    "failed-held": (
        WARNING,
        "`idemreg show TASK_ID` tells the error; `idemreg retry TASK_ID` allows one more attempt.",
    ),
    # --- time
    "clock-behind": (WARNING, "Set the clock. No task runs wrongly by it, but dates mislead, and `purge` refuses."),
    "other-boot": (INFO, "The next opening of the registry notes this boot."),
    "several-boots": (WARNING, "Does another kernel (a virtual machine) write this file? Only one may."),
    # --- the doctor itself
    "unfinished": (INFO, "Give it more time: `idemreg doctor --full`."),
    "check-failed": (ERROR, "The other checks went on. Look at the disk and the permissions."),
}

# With one of these, nothing of the file could be looked into.
CANNOT_OPEN: Final = frozenset(
    {"missing", "not-a-file", "unreadable", "vanished", "not-a-database", "damaged-header", "foreign", "cannot-open"}
)


def finding(code: str, text: str) -> Finding:
    """A finding of a kind."""
    severity, hint = KINDS[code]
    return Finding(code, severity, text, hint)
