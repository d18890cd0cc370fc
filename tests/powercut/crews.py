"""Who meets in a recording."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["CREWS", "SYNC_FAILS"]

# The roles of the processes of a round (worker.ROLES).
CREWS: Final = (
    ("jobs", "jobs", "keeper", "jobs"),
    ("jobs", "threads", "keeper", "foreign"),
    ("jobs", "threads", "readers", "readers"),
    ("jobs", "coroutines", "keeper"),
    ("threads", "coroutines", "readers", "foreign"),
    ("visitors", "visitors", "visitors", "foreign"),
    ("visitors", "visitors", "keeper"),
)

# Where a sync is to fail: without the program that knows nothing of it and moves the -wal into the database all the
# same, and without boots, since those of a recording keep the page cache, which has what the disk lacks.
SYNC_FAILS: Final[dict[str, Any]] = {
    "fail_sync": True,
    "boots": 0,
    "crews": tuple(crew for crew in CREWS if "foreign" not in crew),
}
