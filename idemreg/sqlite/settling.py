"""What ends, adds or removes a task without its owner, and what an owner has dropped."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final

from idemreg import faults
from idemreg.deciding import may_forget, settled_status
from idemreg.errors import (
    StoreBusyError,
    StoreError,
    StoreFullError,
    StorePathError,
    StoreVersionError,
)
from idemreg.model import FINAL, Liveness, Status, Verdict
from idemreg.sqlite import arguments, leases, records, rows, tasks
from idemreg.sqlite.claiming import Claiming, changed_under_lock
from idemreg.sqlite.keeping import Keeper
from idemreg.sqlite.renewing import renew
from idemreg.sqlite.whose import owner_of
from idemreg.store import End, Granted, Lost, Recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from idemreg.deciding import Wanted
    from idemreg.leasing import Renewal, Renewed
    from idemreg.model import Task, Version
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.opened import Opened
    from idemreg.sqlite.opening import Opening
    from idemreg.store import Refused, Settlement, Unknown

__all__ = ["Settler", "are_durable", "weakly"]


class Settler(Keeper):
    """Settles, adds and forgets tasks, each in one transaction."""

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        self._key_note = opening.key_note
        # Ends that could not be written yet: of claims dropped in a finaliser, or of finishes that the disk refused.
        self._unsettled: deque[_Left] = deque()
        self._settling: set[tuple[int, int]] = set()  # threads, of this process: a forked child may have their numbers

    def settle(self, task_id: str, settlement: Settlement) -> Task | Lost:
        """End the task without its owner. `Lost` where its status does not allow the verdict."""
        with self._opening.using() as opened:

            def settle(connection: Connection) -> Task | Lost:
                row = rows.read(connection, self._schema_version, task_id)
                if row is None:
                    return Lost(None)
                verifying = settlement.verifying is not None and self._is_own(row, settlement.verifying)
                liveness = self._liveness(connection, opened, row)
                verdict = Verdict.CANNOT_TELL if settlement.verdict is None else settlement.verdict
                status = settled_status(row, verdict, verifying=verifying, liveness=liveness)
                if status is None or (settlement.verifying is not None and not verifying):
                    return Lost(row)
                faults.point("settle.decided")
                if not tasks.settle(connection, row, status, settlement, opened.stamp()):
                    raise changed_under_lock(task_id)
                if row.status is Status.RUNNING and row.owner is not None:
                    opened.owners.ended(connection, row.owner)
                faults.point("settle.in-transaction")
                return self._reread(connection, task_id)

            answer = opened.database.write(settle, durable=True)
            faults.point("settle.committed")
            if not isinstance(answer, Lost):
                self._opening.let_go(answer.task_id, answer.token)
            elif settlement.verifying is not None:  # the claim of the hook is another's by now
                self._opening.let_go(task_id, settlement.verifying)
            return answer

    def add(self, wanted: Wanted) -> Task:
        """Make sure that the row exists, `pending` where it is new."""
        with self._opening.using() as opened:

            def add(connection: Connection) -> Task:
                floor = records.floor(connection, self._schema_version, self._key_note)
                tasks.insert(connection, wanted, self._schema_version, floor, None, opened.stamp())
                return self._reread(connection, wanted.task_id)

            return opened.database.write(add, durable=wanted.durable)

    def forget(self, task_id: str, *, force: bool, seen: Version | None = None) -> Task | Lost:
        """Remove the row and raise the token floor past its token. `Lost` where its status does not allow it."""
        with self._opening.using() as opened:

            def forget(connection: Connection) -> Task | Lost:
                row = rows.read(connection, self._schema_version, task_id)
                if row is None or (seen is not None and row.version != seen):
                    return Lost(row)
                if not may_forget(row, self._liveness(connection, opened, row), force=force):
                    return Lost(row)
                faults.point("forget.decided")
                if not tasks.forget(connection, row):
                    raise changed_under_lock(task_id)
                if row.owner is not None:
                    opened.owners.ended(connection, row.owner)
                faults.point("forget.in-transaction")
                return row

            answer = opened.database.write(forget, durable=True)
            faults.point("forget.committed")
            if not isinstance(answer, Lost):
                self._opening.let_go(answer.task_id, answer.token)
            return answer

    def bury(self, seen: Sequence[Task]) -> list[Unknown | Refused | None]:
        """Settle tasks whose owner is proven dead as a claim would, by one transaction; see `Recovery.bury`."""
        with self._opening.using() as opened:

            def bury(connection: Connection) -> list[Unknown | Refused | None]:
                records.floor(connection, self._schema_version)
                claiming, stamp = Claiming(connection, self._schema_version, opened.owners), opened.stamp()
                answers = [claiming.bury(one, stamp) for one in seen]
                faults.point("sweep.in-transaction")
                return answers

            answers = opened.database.write(bury, durable=True)
            faults.point("sweep.committed")
            return answers

    def check_files(self) -> None:
        """`FilesReplacedError` where the files are not those that were opened; see `Recovery.check_files`."""
        with self._opening.using() as opened:
            opened.database.check_files()

    def renew(self, renewals: Sequence[Renewal], *, busy_s: float) -> list[Renewed | Lost]:
        """Renew leases, in order; see `Leasing.renew`."""
        return renew(self._opening, self._schema_version, renewals, busy_s)

    # --- what was dropped -----------------------------------------------------------------------------------------

    def abandon(self, end: End) -> bool:
        """End a claim as soon as the store can write, now or later. Raises nothing of its own; safe in a finaliser.

        False where the claim had ended before, so that nothing was changed; True where it has ended so, or will.
        """
        # Nobody waits for it to be durable: should it be lost, a power cut has left a claim whose owner is dead.
        left = _Left(end._replace(durable=False))
        self._unsettled.append(left)
        self._settle_dropped()
        return not left.had_ended

    def _withdraw(self, answers: Sequence[object], error: BaseException) -> None:
        """Nobody is told of these claims, so no job starts: what may be stored of them is put back.

        Some errors of the store say that nothing is. Others, as that of a commit, and an interruption say nothing.
        Nothing is written to files that are lost.
        """
        is_stored = not isinstance(error, _STORED_NOTHING)
        for grant in answers:
            if isinstance(grant, Granted):
                opened = self._opening.of_owner(grant.owner)
                if is_stored and (opened is None or opened.database.lost is None):
                    self._unsettled.append(_Left(End.release(grant, durable=False, nothing_ran=True), grant))
                else:
                    self._opening.take_back(grant)
        self._settle_dropped()

    def _settle_dropped(self) -> None:
        """Write the ends that wait, each until it is stored, also through an interrupt: twice is once.

        A finaliser may run while this very thread writes, so nothing is waited for: whoever writes looks here again.
        """
        if not self._unsettled or (me := (os.getpid(), threading.get_ident())) in self._settling:
            return
        try:
            self._settling.add(me)
            while self._unsettled:
                left = self._unsettled[0]
                opened = self._opening.of_owner(left.end.owner)
                is_busy = opened is not None and opened.database.gate.is_taken and opened.database.lost is None
                if is_busy or not self._try_to_settle(left):
                    self._unsettled.rotate(-1)
                    return
                self._unsettled.remove(left)
        except (IndexError, ValueError):
            pass  # another thread took the last one, or this one
        finally:
            self._settling.discard(me)

    def _try_to_settle(self, left: _Left) -> bool:
        """False where the store cannot write."""
        end, grant = left.end, left.grant
        with self._opening.using_of(end.owner) as opened:
            if opened is None:
                return True  # of a parent process
            if opened.database.lost is not None:  # nobody will ever read what could be written there
                self._let_go_of(opened, left)
                return True

            def settle(connection: Connection) -> bool:
                if grant is not None and opened.owners.live.get((end.task_id, end.token)) is not grant:
                    return False
                records.floor(connection, self._schema_version)
                answer = self._finish_in(connection, opened, end)
                if isinstance(answer, Lost):  # it has ended so, where another thread settles it as well
                    row = answer.task
                    return row is not None and (row.status, row.token) == (end.status, end.token)
                opened.owners.ended(connection, end.owner)
                return True

            try:
                left.had_ended = not opened.database.write(settle, durable=False)
            except StoreError:
                return False
            self._let_go_of(opened, left)
            return True

    def _let_go_of(self, opened: Opened, left: _Left) -> None:
        if left.grant is None:
            self._opening.let_go(left.end.task_id, left.end.token)
        else:
            opened.owners.take_back(left.grant)

    def _finish_in(self, connection: Connection, opened: Opened, end: End) -> Recorded | Lost:
        if tasks.finish(connection, self._schema_version, end, opened.stamp()):
            held = opened.owners.live.get((end.task_id, end.token))
            if held is None or held.policy.is_limited:
                leases.remove(connection, end.task_id)
            is_over = end.status in FINAL or end.was_absent
            if is_over and (held is None or held.policy.keeps_arguments):
                arguments.remove(connection, end.task_id)
            return Recorded(end.task_id)
        return Lost(rows.read(connection, self._schema_version, end.task_id))

    # --- together -------------------------------------------------------------------------------------------------

    @staticmethod
    def _let_go(opened: Opened, end: End) -> None:
        # Of this token only: another thread may have claimed the task since the commit.
        opened.owners.let_go(end.task_id, end.token)

    def _is_own(self, row: Task, token: int) -> bool:
        is_it = row.status is Status.RUNNING and row.token == token
        return is_it and self._opening.of_owner(row.owner or 0) is not None

    @staticmethod
    def _liveness(connection: Connection, opened: Opened, row: Task) -> Liveness:
        if row.status is not Status.RUNNING:
            return Liveness.CANNOT_TELL
        return owner_of(opened.owners, connection, row).liveness

    def _reread(self, connection: Connection, task_id: str) -> Task:
        row = rows.read(connection, self._schema_version, task_id)
        if row is None:
            raise changed_under_lock(task_id)
        return row


_STORED_NOTHING: Final = (StoreBusyError, StoreFullError, StorePathError, StoreVersionError)


class _Left:
    """An end that waits to be written.

    ``grant``: of a claim that nobody was told of, and that may not even be stored. Then another thread may have claimed
    the task since, under the very same token; so it is ended only while this very claim is the one that is noted.
    """

    __slots__ = ("end", "grant", "had_ended")

    def __init__(self, end: End, grant: Granted | None = None) -> None:
        self.end = end
        self.grant = grant
        self.had_ended = False


def are_durable(requests: Sequence[Wanted] | Sequence[End]) -> bool:
    """Whether what is asked for must be on the disk before anybody is told."""
    return any(request.durable for request in requests)


def weakly(method: Callable[[], None]) -> Callable[[], None]:
    """The method as long as its object is there: a circle would keep a registry that was dropped open."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (there := reference()) is not None:
            there()

    return call
