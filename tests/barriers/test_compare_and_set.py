"""The compare-and-set alone: where nothing else kept two writers apart, one of them has changed nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from idemreg import Registry, Status
from tests.barriers.actors import another, stopped

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = 'kept.append(registry.claim("t", name="j", on_crash="rerun"))'  # kept: one that is dropped would be settled

WRITER = """
registry, kept = Registry(path, durability="normal"), []
registry.run("warm", lambda: 1)
faults.arm(point, stop)
told(lambda: {act})
leave()
"""

# The first has read the failed task, and not yet written, when the second does all that it does.
PAIRS = {
    "claim beside claim": ("claim.decided", CLAIM, CLAIM),
    "verdict beside claim": ("settle.decided", 'registry.cancel("t")', CLAIM),
    "forget beside claim": ("forget.decided", 'registry.forget("t")', CLAIM),
}


@pytest.fixture
def failed(path: Path) -> None:
    with Registry(path, durability="normal") as registry, pytest.raises(ZeroDivisionError):
        registry.run("t", lambda: 1 / 0, name="j")


def both_told(path: Path, point: str, first: str, second: str) -> list[str]:
    """What both are told, the first of whom is stopped at the point while the second comes and goes."""
    with stopped(path, WRITER.format(act=first), point) as writer:
        answer = another(path, second)
        writer.go()
        answers = [writer.line(), answer]
        writer.end()
    return answers


@pytest.mark.parametrize("pair", PAIRS)
def test_of_two_who_decide_over_one_row_one_has_his_way(path: Path, failed: None, pair: str) -> None:
    """Of two claims one is granted; a verdict and a `forget` touch no row that was claimed meanwhile."""
    assert both_told(path, *PAIRS[pair]).count("done") == 1


def test_of_two_first_claims_one_is_granted(path: Path) -> None:
    """Both have seen that there is no row."""
    claim = CLAIM.replace("rerun", "hold")  # not to be taken over when the second has gone
    assert both_told(path, "claim.in-transaction", claim, claim).count("done") == 1


HOLDER = """
registry = Registry(path, durability="normal")
claim = registry.claim("t", name="j")
say("stopped"); wait()
"""
RUN = 'registry.run("t", job, name="j")'


def test_a_burial_leaves_a_settled_task_alone(path: Path) -> None:
    """Who finds an owner dead notes it in no row that was settled meanwhile."""
    with stopped(path, HOLDER):
        pass  # killed with its claim
    with stopped(path, WRITER.format(act=RUN), "claim.decided") as finder:
        settled = another(path, f'(told(lambda: {RUN}), registry.resolve("t", "happened"))')
        finder.go()
        assert finder.line() in {"unknown", "store-corrupt"}
        finder.end()
    with Registry(path, durability="normal") as registry:
        task = registry.get("t")
        assert task is not None
        assert task.status is (Status.UNKNOWN if settled == "store-busy" else Status.SUCCEEDED)


OWNER = """
registry = Registry(path, durability="normal")
claim = registry.claim("t", name="j", on_crash="rerun")
os.close(registry.store._opening.opened().lock_file.fd)
say("stopped"); wait()
{end}
leave()
"""
LATE_ENDS = {
    "success": 'told(lambda: claim.succeed("late"))',
    "large success": 'told(lambda: claim.succeed("late" * 100))',
    "failure": 'told(lambda: claim.fail(ValueError("late")))',
    "release": "told(claim.release)",
}


@pytest.mark.parametrize("late", LATE_ENDS)
def test_a_late_owner_ends_nothing(path: Path, late: str) -> None:
    """Taken over (here by a later boot, where its lock was lost) it is told so, and the row is its successor's."""
    with stopped(path, OWNER.format(end=LATE_ENDS[late])) as owner:
        assert another(path, CLAIM, options=", clock=Later()") == "done"
        owner.go()
        owner.expect("claim-lost")
        owner.end()
    with Registry(path, durability="normal") as registry:
        task = registry.get("t")
        assert task is not None
        assert (task.status, task.attempt, task.result) == (Status.RUNNING, 2, None)


FORGETTER = """
registry = Registry(path, durability="normal")
registry.run("warm", lambda: 1)
say("stopped"); wait()
say(registry.run("t", lambda: 1, name="j").token)
leave()
"""


def test_a_token_that_was_forgotten_elsewhere_is_not_given_again(path: Path) -> None:
    """The floor that another process has raised meanwhile counts, whatever this one has read before."""
    with stopped(path, FORGETTER) as other:
        with Registry(path, durability="normal") as registry:
            tokens = [registry.run("t", lambda: 1, name="j").token]
            registry.forget("t")
            tokens.append(registry.run("t", lambda: 1, name="j").token)
            registry.forget("t")
        other.go()
        tokens.append(int(other.line()))
        other.end()
    assert tokens == sorted(set(tokens))
