"""The hot path: the claim of a new task and its first success, each by one statement that is its own transaction.

A statement takes the write lock before it reads, as BEGIN IMMEDIATE does, and checks by itself what a transaction would
have read before; BEGIN and COMMIT cost 3 µs of the 25 that SQLite takes for a task. Whatever does not fit (a row that
is there, a lock that somebody has, a first claim that brings its owner's record) is left to the general path, which
decides. So nothing here is a rule of its own: both paths use the statements of `tasks`, the general one in the frame of
a transaction. The frame is written out here, not borrowed from `Database`: each Python call between two statements
costs twice what it does alone, since SQLite has had the caches in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw

from idemreg import faults
from idemreg.sqlite import tasks
from idemreg.sqlite.connection import FULL, NORMAL, translate, unsure
from idemreg.store import Absent, Granted

if TYPE_CHECKING:
    from idemreg.model import Wanted
    from idemreg.sqlite.opening import Opened
    from idemreg.store import End, Stored

__all__ = ["begin", "succeed"]


def begin(opened: Opened, schema_version: int, wanted: Wanted) -> Stored | Granted | Absent | None:
    """Replay the task's stored success, or claim it where it has no row.

    `Absent` where there is no row, and the general path must insert it; None where there is one, to be decided about.
    """
    database, live = opened.database, opened.owners.live
    synchronous = FULL if wanted.durable else NORMAL
    connection = database.take(synchronous)
    grant = None
    try:
        found = tasks.glance(connection, schema_version, wanted)
        owner = opened.owners.recorded
        if type(found) is not Absent or owner is None or wanted.owner is not None:
            return found
        turn = database.try_turn()
        if turn is None:
            return found
        try:
            if wanted.task_id in live:  # of another thread, whose note must stay
                return None
            grant = Granted(wanted.task_id, opened.floor + 1, 1, owner, None, wanted.policy)
            live[wanted.task_id] = grant  # before anybody can see the row
            faults.point("claim.in-transaction")
            if tasks.insert(connection, wanted, schema_version, opened.floor, owner, opened.stamp()):
                faults.point("claim.committed")
                return grant
            del live[wanted.task_id]
            return None
        finally:
            database.leave_turn(turn)
    except BaseException as error:
        if grant is not None:  # whatever row is found of it counts as dropped
            opened.owners.take_back(grant)
        if isinstance(error, apsw.Error):  # that it is unsure does not matter: the job does not start
            raise translate(error) from error
        raise
    finally:
        database.give_back(connection, synchronous)


def succeed(opened: Opened, schema_version: int, end: End) -> bool:
    """Store a plain success. False where another thread writes, or nothing was changed.

    `CommitUnsureError` where the statement reported an error: it may or may not be stored.
    """
    database = opened.database
    synchronous = FULL if end.durable else NORMAL
    connection = database.take(synchronous)
    try:
        turn = database.try_turn()
        if turn is None:
            return False
        try:
            faults.point("finish.in-transaction")
            return tasks.succeed(connection, schema_version, end, opened.stamp())
        except apsw.BusyError as error:
            raise translate(error) from error
        except apsw.Error as error:
            raise unsure(error) from translate(error)
        finally:
            database.leave_turn(turn)
    finally:
        database.give_back(connection, synchronous)
