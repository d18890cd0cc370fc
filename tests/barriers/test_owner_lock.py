"""The owner's lock alone: its task is nobody else's while it lives, and anybody's as soon as it is dead."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.barriers.actors import another, orphaned, stopped

if TYPE_CHECKING:
    from pathlib import Path

RUN = 'registry.run("t", lambda: 1, name="j", on_crash="rerun")'

OWNER = """
registry = Registry(path, durability={durability!r})
{act}
"""
CLAIM = 'claim = registry.claim("t", name="j", on_crash="rerun")'
STOPPED = 'say("stopped"); wait()'

# What an owner may do, or be in the middle of, with its claim in the file.
OWNERS = {
    "claim": f"{CLAIM}; {STOPPED}",
    "batch": f"""
claim, = registry.claim_many([("t", None)], name="j", on_crash="rerun")
claim.enter()
{STOPPED}
""",
    "closes the lock file elsewhere": f'{CLAIM}; os.close(os.open(path + "-lock", os.O_RDWR)); {STOPPED}',
    "closes the registry": f"{CLAIM}; registry.close(); {STOPPED}",
    "opens another registry": f"{CLAIM}; Registry(path).open().close(); {STOPPED}",
    "forks a child that ends": f"""
{CLAIM}
if not (child := os.fork()): sys.exit(0)
os.waitpid(child, 0)
{STOPPED}
""",
    "forks a child that claims": f"""
{CLAIM}
if not (child := os.fork()):
    registry.run("u", lambda: 1)
    sys.exit(0)
os.waitpid(child, 0)
{STOPPED}
""",
}

# The claim is in the file for all to see, and not on the disk yet.
CLAIMING = {
    "claim": 'registry.run("t", job, name="j", on_crash="hold")',
    "second claim": 'registry.run("warm", lambda: 1); faults.arm(point, stop); registry.run("t", job, name="j")',
    "batch": 'registry.claim_many([("t", None)], name="j")',
}


@pytest.mark.parametrize("owner", OWNERS)
def test_a_live_owner_is_not_replaced(path: Path, owner: str) -> None:
    """Whatever it does besides, also while it is stopped; killed, it is replaced by the next call."""
    with stopped(path, OWNER.format(act=OWNERS[owner], durability="normal")) as script:
        assert another(path, RUN) == "running"
        script.signal(signal.SIGSTOP)
        assert another(path, RUN) == "running"
        script.kill()
        assert another(path, RUN) == "done"


@pytest.mark.parametrize("claim", CLAIMING)
def test_an_owner_lives_from_the_moment_that_its_claim_is_seen(path: Path, claim: str) -> None:
    """The row can be read as soon as it is committed: by then its owner holds its byte."""
    act = CLAIMING[claim]
    early = "" if "arm(" in act else "registry.open(); faults.arm(point, stop)\n"
    with stopped(path, OWNER.format(act=early + act, durability="full"), "sync.begun"):
        assert another(path, RUN) == "running"


def test_a_command_keeps_its_task_when_its_wrapper_is_killed(path: Path, tmp_path: Path) -> None:
    """It has inherited the lock, so nobody settles its task while it goes on."""
    with orphaned(path, tmp_path / "gate"):
        assert another(path, 'registry.resolve("t", "did-not-happen")') == "transition"
