"""DBOS: a workflow with an id runs once, and later calls under the id return its result."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from bench.job import DAY, issue_coupon

if TYPE_CHECKING:
    from bench.contenders import Place

__all__ = ["Dbos"]


class Dbos:
    """One workflow without steps, the cheapest that there is. The administration's server and the log are off.

    Its SQLite runs as DBOS sets it up: with a rollback journal and synchronous=FULL. It takes an engine of one's own
    (``system_database_engine``), which nobody is told to make; so there is no line of it at `normal`.
    """

    def __init__(self, place: Place) -> None:
        import dbos  # noqa: PLC0415 - only where it takes part

        url = f"sqlite:///{os.path.join(place.folder, 'dbos.sqlite')}"
        dbos.DBOS(config={"name": "bench", "system_database_url": url, "run_admin_server": False, "log_level": "ERROR"})
        self._dbos: Any = dbos.DBOS
        self._id: Any = dbos.SetWorkflowID
        self._job: Any = dbos.DBOS.workflow()(issue_coupon)
        dbos.DBOS.launch()

    def call(self, user: int) -> object:
        with self._id(f"coupon:{user}:{DAY}"):
            return self._job(user, DAY)

    def close(self) -> None:
        self._dbos.destroy()
