"""What ends, adds or removes a task without its owner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idemreg import faults
from idemreg.model import Liveness, Status, may_forget, settled_status
from idemreg.sqlite import tasks
from idemreg.sqlite.claiming import changed_under_lock
from idemreg.sqlite.keeping import Keeper
from idemreg.store import Lost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.model import Task, Version, Wanted
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.opening import Opened
    from idemreg.store import End, Settlement

__all__ = ["Settler", "are_durable"]


class Settler(Keeper):
    """Settles, adds and forgets tasks, each in one transaction."""

    def settle(self, task_id: str, settlement: Settlement) -> Task | Lost:
        """End the task without its owner. `Lost` where its status does not allow the verdict."""
        with self._opening.using() as opened:

            def settle(connection: Connection) -> Task | Lost:
                row = tasks.read(connection, self._schema_version, task_id)
                if row is None:
                    return Lost(None)
                verifying = settlement.verifying is not None and self._is_own(row, settlement.verifying)
                liveness = self._liveness(connection, opened, row)
                status = settled_status(row, settlement.verdict, verifying=verifying, liveness=liveness)
                if status is None or (settlement.verifying is not None and not verifying):
                    return Lost(row)
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
            return answer

    def add(self, wanted: Wanted) -> Task:
        """Make sure that the row exists, `pending` where it is new."""
        with self._opening.using() as opened:

            def add(connection: Connection) -> Task:
                floor = tasks.floor(connection, self._schema_version)
                tasks.insert(connection, wanted, self._schema_version, floor, None, opened.stamp())
                return self._reread(connection, wanted.task_id)

            return opened.database.write(add, durable=are_durable([wanted]))

    def forget(self, task_id: str, *, force: bool, seen: Version | None = None) -> Task | Lost:
        """Remove the row and raise the token floor past its token. `Lost` where its status does not allow it."""
        with self._opening.using() as opened:

            def forget(connection: Connection) -> Task | Lost:
                row = tasks.read(connection, self._schema_version, task_id)
                if row is None or (seen is not None and row.version != seen):
                    return Lost(row)
                if not may_forget(row, self._liveness(connection, opened, row), force=force):
                    return Lost(row)
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
        return opened.owners.of(connection, row).liveness

    def _reread(self, connection: Connection, task_id: str) -> Task:
        row = tasks.read(connection, self._schema_version, task_id)
        if row is None:
            raise changed_under_lock(task_id)
        return row


def are_durable(requests: Sequence[Wanted] | Sequence[End]) -> bool:
    """Whether what is asked for must be on the disk before anybody is told."""
    return any(request.durable for request in requests)
