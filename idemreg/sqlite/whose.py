"""Who owns a running task, and whether it lives: by the lock, the record and the lease of its claim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idemreg.model import Liveness
from idemreg.owner import OwnerInfo
from idemreg.sqlite import leases, records, rows
from idemreg.sqlite.stamps import LATEST_MS

if TYPE_CHECKING:
    from idemreg.liveness import OwnerRecord
    from idemreg.model import Task
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.owners import Owners

__all__ = ["owner_of"]


def owner_of(owners: Owners, connection: Connection, task: Task) -> OwnerInfo:
    """Who owns a running task, and whether it lives; of one with a lease, whether that has expired."""
    info = _owner_of(owners, connection, task)
    lease = leases.read(connection, task)
    return info if lease is None else _with_lease(info, lease, owners.now())


def _owner_of(owners: Owners, connection: Connection, task: Task) -> OwnerInfo:
    owner = task.owner or 0
    if owners.is_here(owner):
        if owners.holds(task.task_id, task.token):
            return _info(owner, owners.own_record, Liveness.ALIVE, "it is this process")
        record = records.owner_record(connection, owner)
        info = _info(
            owner, record or owners.own_record, Liveness.DEAD, "this process dropped the claim without a finish"
        )
    else:
        record = records.owner_record(connection, owner)
        info = _info(owner, record, *owners.examiner.examine(owner, record))
    if info.liveness is not Liveness.DEAD or record is None or record.notes_at is None:
        return info
    return info._replace(entered=owners.examiner.has_entered(record, rows.note_of(connection, task.task_id)))


def _info(owner: int, record: OwnerRecord | None, liveness: Liveness, reason: str) -> OwnerInfo:
    if record is None:
        return OwnerInfo(owner, liveness, reason=reason)
    return OwnerInfo(owner, liveness, record.pid, record.host, record.command, reason)


def _with_lease(info: OwnerInfo, lease: leases.LeaseRow, now: int) -> OwnerInfo:
    """An expired lease frees its task as a death does. What is proven stays proven: the dead need no deadline.

    A lease of another boot says nothing against a lock that is held: this kernel is then still the one that gave it.
    That is a process which cannot read the boot's id, and takes every opening for a boot.
    """
    left_ms = lease.left_ms(now)
    info = info._replace(lease_left_ms=left_ms, overdue_ms=lease.overdue_ms(now))
    if left_ms is None or left_ms >= 0 or info.liveness is Liveness.DEAD:
        return info
    if left_ms == -LATEST_MS:
        if info.liveness is Liveness.ALIVE:
            return info
        return info._replace(liveness=Liveness.EXPIRED, reason=f"its lease is of another boot; {info.reason}")
    reason = f"its lease expired {-left_ms / 1_000:.1f} s ago; {info.reason}"
    return info._replace(liveness=Liveness.EXPIRED, reason=reason)
