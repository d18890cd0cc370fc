"""A write transaction that stays open while user code runs in it (`claim.transaction()`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw

if TYPE_CHECKING:
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.database import Database
    from idemreg.sqlite.writing import Write

__all__ = ["LongWrite"]


class LongWrite:
    """A write transaction around user code."""

    def __init__(self, database: Database, connection: Connection, mine: Write) -> None:
        self.connection = connection
        self._database = database
        self._mine = mine

    def commit(self) -> None:
        """Commit, let the next writer through, and return once it is durable. Errors as in `Database.write`."""
        self._database.gate.look()  # the job may have taken long since the last
        try:
            self.connection.execute("COMMIT")
        except apsw.Error as error:
            raise self._database.unsure(error) from error
        self._database.gate.done(self._mine)
        if self._mine.durable:
            self._database.durable()
        self._database.after_commit()
