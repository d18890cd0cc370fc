"""One connection to the database file, its settings, and SQLite's errors in our words."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

import apsw

from idemreg.errors import (
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StorePathError,
)
from idemreg.lockfile import TOO_MANY_OPEN, out_of_descriptors
from idemreg.sqlite import pages

if TYPE_CHECKING:
    from idemreg.clock import Clock

__all__ = [
    "FULL",
    "NORMAL",
    "CommitUnsureError",
    "Connection",
    "check_room",
    "connect",
    "harden",
    "is_sync_failure",
    "leave_wal",
    "roll_back",
    "set_synchronous",
    "translate",
]

NORMAL: Final = 1  # values of PRAGMA synchronous
FULL: Final = 2

# In pages: the size at which a commit checkpoints. As many bytes as SQLite's default, whose pages are twice as large.
AUTOCHECKPOINT_PAGES: Final = 2_000

# The database, its -wal and its -shm, and the folder while it is synced. Some are closed before the error is seen.
FILES_OF_CONNECTION: Final = 4

# What a file that comes from anywhere could make SQLite do: off, for the jobs' own statements (`claim.transaction()`)
# as well. A view is an error there; a trigger is refused when the file is opened, since nobody would miss it.
HARD: Final = (
    (apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0),  # no function with an effect in a CHECK, an index or a view
    (apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0),
    (apsw.SQLITE_DBCONFIG_ENABLE_VIEW, 0),
    (apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0),
    (apsw.SQLITE_DBCONFIG_DEFENSIVE, 1),  # the schema is no table to be written, and the journal stays on
    (apsw.SQLITE_DBCONFIG_DQS_DML, 0),  # "x" is a name, and never a text by mistake
    (apsw.SQLITE_DBCONFIG_DQS_DDL, 0),
)

# Waits for a program's lock that knows nothing of our turns: the first nap is about one commit, the longest keeps a
# waiter from falling behind.
FIRST_NAP_S: Final = 0.0002
LONGEST_NAP_S: Final = 0.005
NAP_GROWTH: Final = 1.6


class CommitUnsureError(StoreError):
    """COMMIT reported an error: the transaction may be stored or not. Settled by reading again."""

    code = "commit-unsure"


class Patience:
    """Waits for another process's lock in naps. SQLite's own naps grow to 100 ms, which starves, and sit out Ctrl-C."""

    __slots__ = ("_busy_s", "_clock", "_deadline", "until")

    def __init__(self, busy_s: float, clock: Clock) -> None:
        self._busy_s = busy_s
        self._clock = clock
        self._deadline = 0.0
        self.until: float | None = None  # in place of the busy time-out: whoever set it has waited elsewhere already

    def __call__(self, tries: int) -> bool:
        now = self._clock.monotonic()
        if tries == 0:
            self._deadline = now + self._busy_s if self.until is None else self.until
        if now >= self._deadline:
            return False
        self._clock.sleep(min(FIRST_NAP_S * NAP_GROWTH ** min(tries, 20), LONGEST_NAP_S))
        return True


class Connection(apsw.Connection):
    """A connection with a cursor for the hot path: a new cursor for each statement costs a quarter of a microsecond.

    What the cursor gives must be fetched whole at once: a statement left in the middle keeps its read transaction open.
    """

    hot: apsw.Cursor
    patience: Patience

    def renew_hot(self) -> None:
        """End what the cursor has left in the middle."""
        left, self.hot = self.hot, self.cursor()
        left.close(True)  # noqa: FBT003 - whatever it was at


def connect(
    path: str, *, synchronous: int | None, busy_s: float, clock: Clock, checks_pages: bool = False
) -> Connection:
    """Open a connection with our settings, each of them read back.

    ``synchronous``: None for one that writes nothing; to be set it takes the whole schema, which need not be read then.
    ``checks_pages``: the file has page checksums, or is to have them: see `pages`. SQLite does not checkpoint inside
    our commits: it swallows what the disk reports then, and it is reported once.
    """
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
    connection = Connection(path, flags=flags, vfs=pages.vfs() if checks_pages else None)
    try:
        _check_writable(connection, path)
        connection.patience = Patience(busy_s, clock)
        connection.set_busy_handler(connection.patience)  # before the first statement
        if synchronous is not None:
            set_synchronous(connection, synchronous)
        _set(connection, "wal_autocheckpoint", 0)
        harden(connection)
        connection.hot = connection.cursor()
    except BaseException as error:
        try:
            check_room(connection, error)
            if isinstance(error, apsw.CorruptError):
                raise translate(error, connection) from error
        finally:
            connection.close()
        raise
    return connection


def check_room(connection: Connection, error: BaseException) -> None:
    """`StoreFullError` where the disk is full: a -shm that finds no room is an I/O error to SQLite.

    Of an opening only: a commit may be in the -wal all the same when its index finds none.
    """
    if isinstance(error, apsw.IOError) and connection.system_errno == errno.ENOSPC:
        msg = f"SQLite: {error}: {os.strerror(errno.ENOSPC)}"
        raise StoreFullError(msg) from error


def _check_writable(connection: Connection, path: str) -> None:
    if connection.readonly("main"):  # it could not be opened for writing, and SQLite makes do with less
        msg = f"{path} cannot be opened for writing"
        raise StorePathError(msg)


def set_synchronous(connection: Connection, synchronous: int) -> None:
    """When SQLite itself syncs, read back."""
    _set(connection, "synchronous", synchronous)


def _set(connection: Connection, pragma: str, value: int) -> None:
    # Pragma by pragma: several in one execute() stop at the first row, and the rest silently never runs.
    connection.pragma(pragma, value)
    if connection.pragma(pragma) != value:
        msg = f"SQLite does not accept {pragma}={value}"
        raise StoreError(msg)


def harden(connection: apsw.Connection) -> None:
    """Take away what a hostile file could use, and read it back. ATTACH as well: one registry is one file."""
    for switch, value in HARD:
        if connection.config(switch, value) != value:
            msg = f"SQLite does not accept the setting {apsw.mapping_db_config[switch]}={value}"
            raise StoreError(msg)
    connection.limit(apsw.SQLITE_LIMIT_ATTACHED, 0)


def roll_back(connection: Connection) -> None:
    """Undo what is not committed. SQLite itself did so after most errors."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def leave_wal(connection: Connection, *, leaves: bool = True) -> None:
    """Should it be the last to close, it moves nothing into the database and leaves the -wal where it is.

    After a failed sync the -wal on the disk may lack what is seen of it: moved, it would damage the database.
    """
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(leaves))


def translate(error: apsw.Error | UnicodeDecodeError, connection: apsw.Connection | None = None) -> StoreError:
    """The idemreg error for one of SQLite's, which the connection has reported. The caller chains it."""
    if isinstance(error, apsw.CantOpenError) and not _may_open():
        return out_of_descriptors(f"SQLite: {error}")
    if pages.is_damage(error):
        return StoreCorruptError("a page of the file has a wrong checksum")
    if isinstance(error, apsw.CorruptError) and connection is not None and pages.is_unread(connection):
        return StoreError("the disk reported an error: the file cannot be read")
    if isinstance(error, UnicodeDecodeError):
        return StoreCorruptError(f"a text in the file is no UTF-8: {error}")
    kinds: tuple[tuple[tuple[type[apsw.Error], ...], type[StoreError]], ...] = (
        ((apsw.BusyError, apsw.LockedError), StoreBusyError),
        ((apsw.FullError,), StoreFullError),
        ((apsw.CorruptError, apsw.NotADBError, apsw.FormatError), StoreCorruptError),
        ((apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError), StorePathError),
    )
    for sources, target in kinds:
        if isinstance(error, sources):
            return target(f"SQLite: {error}")
    return StoreError(f"SQLite: {error}")


def _may_open() -> bool:
    """Whether this process may open what a connection takes. SQLite does not say why it could not."""
    try:
        with contextlib.ExitStack() as opened:
            for _ in range(FILES_OF_CONNECTION):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in TOO_MANY_OPEN
    return True


# Not those of a write: it fails its transaction, which is rolled back, and says nothing of what was committed before.
_SYNC_FAILURES: Final = frozenset({apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC})


def is_sync_failure(error: Exception) -> bool:
    """Whether the disk refused to sync: what is visible may not be there after a power cut."""
    return getattr(error, "extendedresult", 0) in _SYNC_FAILURES
