"""What is inside the database: whose it is, its settings, its -wal, and whether all of it is as it was written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from idemreg.counted import counted
from idemreg.doctor.case import TASKS_LIMIT, names
from idemreg.doctor.finding import Finding, finding
from idemreg.errors import StoreCorruptError, StoreError, StorePathError
from idemreg.lockfile import digest
from idemreg.sqlite import pages, rest
from idemreg.sqlite.looking import WANTED_SETTINGS, Look
from idemreg.sqlite.making import PAGE_BYTES
from idemreg.sqlite.readers import wal_readers
from idemreg.sqlite.upkeep import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from idemreg.doctor.case import Case

__all__ = ["broken_rows", "damage", "database", "large_values", "layout", "schema", "seals", "settings", "steps", "wal"]

DAMAGE_LIMIT: Final = 10  # messages of SQLite
ROWS_LIMIT: Final = 20  # broken rows that are told one by one
WAL_LARGE_BYTES: Final = 16 * 2**20  # in use; twice the size at which a checkpointer waits for readers
MEGABYTE: Final = 2**20


def database(case: Case) -> Iterator[Finding]:
    """Open the database; say why where that cannot be done, or where it is no registry."""
    if not os.path.getsize(case.path):
        if case.lock is not None and case.lock.notes_database:
            yield finding("vanished", f"{case.path} is empty, but its lock file knows of a registry.")
        else:
            yield finding("empty", f"{case.path} is empty.")
        return
    look = None
    try:
        look = Look(case.path, case.clock, case.limit_s)
        if look.is_empty():
            yield finding("empty", f"{case.path} is a database without a table.")
        else:
            case.look, look = look, None
    except StorePathError as error:
        yield finding("cannot-open" if error.__cause__ else "foreign", f"{error.message}.")
    except StoreCorruptError as error:
        code = "damaged-header" if case.lock is not None and case.lock.is_ours else "not-a-database"
        yield finding(code, f"{case.path} cannot be read as a database: {error.message}.")
    except StoreError as error:
        yield finding("cannot-open", f"{case.path} cannot be opened: {error.message}.")
    finally:
        if look is not None:
            look.close()


def layout(case: Case) -> Iterator[Finding]:
    """What is stored about the file's form."""
    assert case.look is not None  # noqa: S101 - see CHECKS
    found = case.look.layout()
    if found["journal_mode"] != "wal":
        yield finding("journal-mode", f"The journal mode is {found['journal_mode']}, not wal.")
    if found["reserved_bytes"] == pages.RESERVED_BYTES and pages.vfs() is None:
        yield finding("page-checksums-missing", "This apsw has no cksumvfs, and cannot verify the file's checksums.")
    if found["page_size"] != PAGE_BYTES or found["reserved_bytes"] not in {0, pages.RESERVED_BYTES}:
        yield finding(
            "page-layout",
            f"Pages have {found['page_size']:,} bytes, {found['reserved_bytes']} of them reserved; idemreg makes them"
            f" with {PAGE_BYTES:,}, and with {pages.RESERVED_BYTES} reserved for page checksums, or none.",
        )


def settings(case: Case) -> Iterator[Finding]:
    """What a connection answers that was told what idemreg tells its own."""
    assert case.look is not None  # noqa: S101
    found = case.look.settings()
    told = case.look.layout() | found
    yield finding("settings", f"Read back: {', '.join(f'{name}={value}' for name, value in told.items())}.")
    for name, value in WANTED_SETTINGS.items():
        if found[name] != value:
            yield finding("setting-refused", f"SQLite was told {name}={value}, and answers {found[name]}.")


def schema(case: Case) -> Iterator[Finding]:
    """Whether the tables are those that this code knows, and the row about the file is there."""
    assert case.look is not None  # noqa: S101
    version = case.look.layout()["user_version"]
    if version > SCHEMA.version:
        yield finding("schema-newer", f"The file has schema {version}; this idemreg knows {SCHEMA.version}.")
    elif version < SCHEMA.version:
        yield finding("schema-older", f"The file has schema {version}; this idemreg knows {SCHEMA.version}.")
    elif (registered := case.look.registered()) is None or registered.schema_version != version:
        yield finding("registry-row-missing", "The row about the file itself is missing, or of another schema.")
    else:
        try:
            case.look.check_form()
        except StoreCorruptError as error:
            yield finding("schema-altered", f"{error.message[0].upper()}{error.message[1:]}.")
            return
        case.registered = registered
        yield from _lock_id(case, registered.lock_id)


def _lock_id(case: Case, lock_id: str) -> Iterator[Finding]:
    if case.lock is not None and case.lock.is_ours and case.lock.file.lock_id != lock_id:
        yield finding("lock-file-replaced", f"{case.lock.file.path} is another one than the database was used with.")


def _lost(case: Case, frames: int) -> Iterator[Finding]:
    """As the first to open the files compares them with what was left; while others have them open, it is theirs."""
    if case.lock is None or not case.lock.is_ours:
        return
    try:
        rest.check_wal(case.path, case.lock.file, digest(case.clock.boot_id()), rest.wal_at(case.path, frames))
    except StoreCorruptError as error:
        if not case.lock.file.is_open_elsewhere():
            yield finding("wal-lost", f"{error.message}.")


def wal(case: Case) -> Iterator[Finding]:
    """How long the -wal is, and who keeps it from beginning anew."""
    assert case.look is not None  # noqa: S101
    try:
        state = case.look.wal()
    except StorePathError:  # the question needs the right to write; without a -wal nobody need ask
        size = os.path.getsize(f"{case.path}-wal") / MEGABYTE
        yield finding("wal", f"The -wal takes {size:.1f} MiB; how much of it is in use, this user may not ask.")
        return
    yield from _lost(case, state.pages)
    readers = wal_readers(case.path, case.clock)
    in_use = f"{counted(state.pages, 'page')} ({state.used_bytes / MEGABYTE:.1f} MiB) in use, {state.moved:,} moved"
    yield finding("wal", f"The -wal has {in_use} to the database.")
    for reader in readers or ():
        yield finding("wal-reader", f"It is being read by {reader.describe()}.")
    if state.used_bytes > WAL_LARGE_BYTES:
        if readers is None:
            who = "who reads it, /proc does not tell"
        elif readers:
            who = "it cannot begin anew while it is read by " + "; ".join(reader.describe() for reader in readers)
        else:
            who = "nobody that /proc shows reads it now"
        yield finding("wal-large", f"The -wal has {in_use}; {who}.")


def damage(case: Case) -> Iterator[Finding]:
    """Whether SQLite finds the file sound: quick_check, or integrity_check in a full examination."""
    assert case.look is not None  # noqa: S101
    try:
        found = case.look.damage(DAMAGE_LIMIT, full=case.full)
    except StoreCorruptError as error:
        found = [error.message]
    for message in found:
        yield finding("integrity", f"{' '.join(message.split())}.")
    if not found:
        yield finding("sound", f"SQLite finds no damage ({'integrity_check' if case.full else 'quick_check'}).")


def broken_rows(case: Case) -> Iterator[Finding]:
    """Rows that idemreg does not write so."""
    assert case.look is not None  # noqa: S101
    for task_id, what in case.look.broken(ROWS_LIMIT):
        yield finding("row-invalid", f"The row of task {task_id!r} is not one that idemreg writes: {what}.")


def seals(case: Case) -> Iterator[Finding]:
    """Rows that are not as they were written."""
    assert case.look is not None  # noqa: S101
    for what in case.look.broken_seals(ROWS_LIMIT):
        yield finding("seal-broken", f"{what[0].upper()}{what[1:]}.")


def large_values(case: Case) -> Iterator[Finding]:
    """Large results and errors: each where its task says."""
    assert case.look is not None  # noqa: S101
    if missing := case.look.large_missing(TASKS_LIMIT):
        yield finding("large-missing", f"The large result of {names(missing)} is not there.")
    if orphaned := case.look.large_orphaned(TASKS_LIMIT):
        yield finding("large-orphaned", f"Large results are stored of {names(orphaned)} without a use for them.")


def steps(case: Case) -> Iterator[Finding]:
    """Steps: each of a task that is there."""
    assert case.look is not None  # noqa: S101
    if orphaned := case.look.steps_orphaned(TASKS_LIMIT):
        yield finding("steps-orphaned", f"Steps are stored of {names(orphaned)}, without a row of the task.")


def kept_arguments(case: Case) -> Iterator[Finding]:
    """Kept arguments: each of a task that is there, and not final."""
    assert case.look is not None  # noqa: S101
    if orphaned := case.look.arguments_orphaned(TASKS_LIMIT):
        yield finding("arguments-orphaned", f"Arguments are kept of {names(orphaned)} without a use for them.")
