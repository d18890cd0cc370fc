"""SQLite without its statistics of memory, which nobody asks for: they take a lock at each allocation."""

from __future__ import annotations

import apsw

__all__ = ["without_statistics"]


def without_statistics() -> None:
    """From now on, in a process that has no connection yet, and has registered nothing with SQLite."""
    apsw.shutdown()
    apsw.config(apsw.SQLITE_CONFIG_MEMSTATUS, False)  # noqa: FBT003 - as SQLite has it
    apsw.initialize()
