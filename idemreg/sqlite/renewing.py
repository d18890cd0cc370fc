"""Renewing leases: all that are due, of all claims in one file, by one commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idemreg import faults
from idemreg.leasing import Renewed
from idemreg.model import Status
from idemreg.sqlite import leases, records, rows
from idemreg.store import Lost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.leasing import Renewal
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.opened import Opened
    from idemreg.sqlite.opening import Opening

__all__ = ["renew"]


def renew(opening: Opening, schema_version: int, renewals: Sequence[Renewal], busy_s: float) -> list[Renewed | Lost]:
    """See `Leasing.renew`. Claims of before a close and behind it have files of their own, and a commit for each."""
    answers: dict[Renewal, Renewed | Lost] = {}
    left = list(renewals)
    while left:
        with opening.using_of(left[0].owner) as opened:
            if opened is None:  # of a parent process, or ended
                answers[left.pop(0)] = Lost(None)
                continue
            mine = [one for one in left if opened.owners.is_ours(one.owner)]
            answers |= _renew_in(opened, schema_version, mine or [left[0]], busy_s)
        left = [one for one in left if one not in answers]
    return [answers[one] for one in renewals]


def _renew_in(
    opened: Opened, schema_version: int, renewals: Sequence[Renewal], busy_s: float
) -> dict[Renewal, Renewed | Lost]:
    def renew(connection: Connection) -> dict[Renewal, Renewed | Lost]:
        records.floor(connection, schema_version)
        now = opened.owners.now()
        done = {one: _renew(connection, schema_version, one, now) for one in renewals}
        faults.point("renew.in-transaction")
        return done

    answers: Any = opened.database.write(renew, durable=False, busy_s=busy_s)
    faults.point("renew.committed")
    return dict(answers)


def _renew(connection: Connection, schema_version: int, wanted: Renewal, now: int) -> Renewed | Lost:
    row = rows.read(connection, schema_version, wanted.task_id)
    if row is None or (*row.version, row.owner) != (Status.RUNNING, wanted.token, wanted.owner):
        return Lost(row)
    lease = leases.read(connection, row)
    if lease is None or lease.until is None:
        return Lost(row)
    return Renewed(leases.renew(connection, lease, wanted.lease_ms, now))
