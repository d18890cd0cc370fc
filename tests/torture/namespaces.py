"""Processes in pid namespaces of their own on one file: the same process ids on each side, and none speaks for another.

Two sides have a /proc of their own; a third is in a time namespace as well, in which every process seems to have
started a day later; a fourth has the /proc of the machine, in which its numbers are those of strangers. They need root,
or user namespaces: where there is neither, the trial says so, and fails.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Final

from tests.torture.killing import tried
from tests.torture.killing.chances import BODY
from tests.torture.killing.conductor import ASKED, Conductor, Plan
from tests.torture.killing.directed import ANY_BODY
from tests.torture.trial import NOT_TRIED, Tally, Trial, again

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TRIAL", "sides"]

CALLS_A_KILL: Final = 60
AT_A_TIME: Final = 8
OWN_PROC: Final = "pid"
OLD_PROC: Final = "pid,bare"
PROBES: Final = {
    OWN_PROC: ["--pid", "--mount-proc"],
    "pid,time": ["--pid", "--mount-proc", "--time"],
    OLD_PROC: ["--pid"],
}

# Where a process has a claim. One thread each, since threads take process ids as well.
POINTS: Final = (*(BODY,) * 4, "claim.committed", "claim.granted", "job.returned", "finish.in-transaction")
# So often somebody dies in a body in any case, where another has its process id, who then asks for what is left.
BODIES: Final = (ANY_BODY,) * 9


@cache
def sides() -> Sequence[str]:
    """The namespaces of each side, as far as this machine allows them; none where it allows no pid namespace."""
    user, option = ("", []) if os.geteuid() == 0 else ("user,", ["--user", "--map-root-user"])
    allowed = [names for names, words in PROBES.items() if _is_allowed([*option, *words])]
    twice = allowed[:1]  # the same numbers there, and of the same start times
    return [user + names for names in (*twice, *allowed)]


def _is_allowed(words: Sequence[str]) -> bool:
    return subprocess.run(["unshare", "--fork", *words, "true"], capture_output=True, check=False).returncode == 0


def run(seed: int, count: int) -> Tally:
    """Conduct until ``count`` kills."""
    command = again("namespaces", seed, count)
    if not sides():
        why = "no pid namespace is allowed here: run as root, or allow user namespaces"
        return Tally(violations=[f"{NOT_TRIED}{why} ({command})"])
    plan = Plan(count * CALLS_A_KILL, count, tuple(sides()), AT_A_TIME, points=POINTS, threads=1, directed=BODIES)
    with Conductor(seed, plan, command) as conductor:
        conductor.conduct()
        tally = conductor.judge()
    tally.events["calls"] = tally.tried
    tally.tried = conductor.kills
    tally.distinct = tried.kills(conductor.log, conductor.sides)
    return tally


MUTANTS: Final = (
    "dead-is-alive",
    "living-is-dead",
    "process-id-without-namespace",
)
TOLD: Final = ("calls", "stops", "processes", "process ids that every side has", ASKED)
TRIAL: Final = Trial("namespaces", "kills", 500, 50, run, MUTANTS, told=TOLD)
