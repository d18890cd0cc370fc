"""All that exists once the files are open, and how it ends: not before its last user, nor before its last claim.

Threads share the files, and any of them may close them while the others are at work. So each operation is noted as a
user from before its first look at the files to behind its last, and whoever leaves last closes what is to be closed.
A close that took the lock file from under a claim in flight would leave a row whose owner's byte is free: another
process would run the task a second time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from typing import TYPE_CHECKING, Final

from idemreg.errors import StoreError
from idemreg.query import Instant
from idemreg.sqlite import records, upkeep
from idemreg.sqlite.database import Database
from idemreg.sqlite.owners import Owners
from idemreg.sqlite.stamps import EPOCH_BITS, LATEST_MS, NewestTime

if TYPE_CHECKING:
    from idemreg.lockfile import LockFile
    from idemreg.sqlite.stamps import Stamp

__all__ = ["Opened"]

# At the end of a process there is no time to wait for the write lock; an owner's record left behind does no harm.
FAREWELL_S: Final = 0.05


class Opened:
    """All that exists once the files are open.

    It is closed once it ``wants_close``, has no user and no claim of its owners is open. Why no user can come too late,
    with the interpreter's lock or without: an operation adds itself to ``users`` and then looks at ``wants_close``;
    whoever closes sets ``wants_close`` and then looks at ``users``. Both use the dictionary's own lock, so one of the
    two sees the other. The hot path does these steps by itself, since calls cost as much as they do.
    """

    is_closed = True  # until all is open: see `__del__`

    def __init__(
        self,
        file: upkeep.Brought,
        lock_file: LockFile,
        making: upkeep.Making,
        *,
        reads_durable: bool,
    ) -> None:
        clock = making.clock
        self.wants_close = False
        self._pid = os.getpid()
        self.users: dict[object, bool] = {}  # one entry an operation; what each is does not matter
        self._deciding = threading.RLock()  # whether it is closed; a finaliser may come back to it in the same thread
        self._epoch_bits = file.row.floor >> EPOCH_BITS << EPOCH_BITS
        self.floor = file.row.floor  # as it was last read; a guess that the statements check
        self.lock_file = lock_file
        try:
            self.database = Database(file, lock_file, clock, busy_s=making.busy_s, reads_durable=reads_durable)
            self.owners = Owners(lock_file, clock, self._epoch_bits)
            self.newest = NewestTime(lock_file, clock.boot_id())
            self._clock = clock
            self._wall_us, self._boot_ms = clock.wall_us, clock.boot_ms
        except BaseException:
            if "database" in vars(self):
                self.database.close()
            raise
        self.is_closed = False
        self.new_in_a_row = 0  # tasks that were looked for, and not there: see `hot.Claim`

    def stamp(self) -> Stamp:
        """What a row that is written now is stamped with. With the write turn held."""
        wall_us = self._wall_us()
        newest = self.newest
        if not newest.after_us < wall_us <= newest.until_us:
            newest.note(wall_us)
        return wall_us, self._epoch_bits | min(self._boot_ms(), LATEST_MS)

    def instant(self) -> Instant:
        """Now, as ages are counted. This process lives in one boot, so every epoch since its opening is this boot."""
        return Instant(self._wall_us(), min(self._boot_ms(), LATEST_MS), self._epoch_bits)

    # --- who uses it ----------------------------------------------------------------------------------------------

    def enter(self, user: object) -> bool:
        """Keep it open until the user leaves; False where it is to be closed: another is opened in its place."""
        self.users[user] = True
        if not self.wants_close:
            return True
        self.leave(user)
        return False

    def enter_late(self, user: object) -> bool:
        """The same for the end of a claim, which may come after `close`; False where it is closed."""
        with self._deciding:
            if self.is_closed:
                return False
            self.users[user] = True
            return True

    def leave(self, user: object) -> None:
        """The user is done; the last one closes what is to be closed."""
        del self.users[user]
        if self.wants_close:
            self.close_if_idle()

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close now, or when the last user is gone and the last claim settled: the owner's byte speaks for claims."""
        self.wants_close = True
        self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close what `close` had to leave open, if nothing needs it any more."""
        with self._deciding:
            # A copy is made under the lock of the dictionary, its length is not.
            if not self.wants_close or self.is_closed or self.users.copy() or not self.owners.are_idle:
                return
            self.is_closed = True
        self._close_typed()

    def _close(self) -> None:
        try:
            self._farewell()
        finally:
            try:
                self.database.close()
            finally:
                self.lock_file.close()

    def _close_typed(self) -> None:
        try:
            self._close()
        except OSError as error:  # all the others are closed
            msg = f"a file beside {self.lock_file.path} cannot be closed: {error.strerror}"
            hint = "Another part of this process has closed its descriptor (os.closerange, perhaps)."
            raise StoreError(msg, hint=hint if error.errno == errno.EBADF else None) from error

    def __del__(self) -> None:
        """A registry that was dropped without a close leaves no descriptors.

        Whoever could end one of its claims holds the registry: so those that are left were dropped, and count as those
        of a dead owner. At the end of the interpreter a thread may be in the middle of a job: there the kernel closes.
        """
        if not self.is_closed and self._pid == os.getpid() and not sys.is_finalizing():
            self.is_closed = True
            try:
                self._close()
            finally:
                self.owners.forget()

    def _farewell(self) -> None:
        """Take this process's record away: it has no claim left. If that fails, whoever finds it dead will."""
        owner = self.owners.recorded
        if owner is None:
            return
        with contextlib.suppress(StoreError):
            self.database.write(
                lambda connection: records.forget_owner(connection, owner), durable=False, busy_s=FAREWELL_S
            )

    def forget(self) -> None:
        """In a forked child: close the lock descriptors (an unlock would drop the parent's locks) and touch nothing."""
        self.is_closed = True
        self._deciding = threading.RLock()  # it may be held by a thread that is not here
        self.lock_file.close()
        self.owners.forget()
