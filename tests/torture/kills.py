"""Six processes that are killed and stopped: each task's history is linearizable, and the plain rules hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.torture.killing import tried
from tests.torture.killing.conductor import Conductor, Plan
from tests.torture.killing.directed import TURNS
from tests.torture.trial import Trial, again

if TYPE_CHECKING:
    from tests.torture.trial import Tally

__all__ = ["TRIAL"]

CALLS_A_KILL: Final = 100


def run(seed: int, count: int) -> Tally:
    """Conduct about ``count`` calls, a kill for each hundred of them."""
    plan = Plan(count, -(-count // CALLS_A_KILL), directed=TURNS)
    with Conductor(seed, plan, again("kills", seed, count)) as conductor:
        conductor.conduct()
        tally = conductor.judge()
    tally.distinct = tried.calls(conductor.log)
    return tally


MUTANTS: Final = (
    "arguments-kept-for-ever",
    "batch-entered-not-noted",
    "begin-deferred",
    "byte-released-early",
    "cannot-tell-is-dead",
    "claim-behind-body",
    "dead-is-alive",
    "effects-apart",
    "finish-without-token",
    "floor-not-raised",
    "general-finish-without-token",
    "hold-is-rerun",
    "interrupt-is-failure",
    "living-is-dead",
    "replay-of-another-attempt",
    "step-of-another-name",
    "step-run-again",
    "sweep-reruns-what-lives",
    "sweep-settles-nothing",
    "token-given-twice",
)
TOLD: Final = ("kills", "stops", "processes", "histories")
TRIAL: Final = Trial("kills", "calls", 500_000, 5_000, run, MUTANTS, told=TOLD)
