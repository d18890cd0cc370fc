"""Who meets in a recording, and under which circumstances."""

from __future__ import annotations

from random import Random
from typing import Any, Final

__all__ = ["CREWS", "SYNC_FAILS", "mixed"]

# The roles of the processes of a round (worker.ROLES): three at least.
CREWS: Final = (
    ("jobs", "jobs", "keeper", "readers"),
    ("jobs", "threads", "keeper", "foreign"),
    ("jobs", "threads", "readers", "readers"),
    ("jobs", "coroutines", "keeper", "readers"),
    ("threads", "coroutines", "readers", "foreign"),
    ("visitors", "visitors", "visitors", "foreign"),
    ("visitors", "visitors", "keeper", "readers"),
)

SYNC_FAILS: Final[dict[str, Any]] = {"fail_sync": True}

# While a sync lasts, others commit, answer and join: so most are slow.
SYNCS_US: Final = (300, 1_500, 1_500)


def mixed(seed: int) -> dict[str, Any]:
    """Circumstances by a seed, so that a few traces meet them all: arguments of `run.record_and_judge`."""
    chance = Random(seed)
    return {
        "sync_us": chance.choice(SYNCS_US),
        "boots": chance.choice((0.5, 1, 1)),
        "settings": chance.choice(((), (), (), (), (), ("impatient",), ("short wal",))),
        "fail_sync": chance.random() < 0.85,
    }
