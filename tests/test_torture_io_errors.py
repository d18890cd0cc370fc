"""The trial of I/O errors tries every public call, finds nothing, and finds what is broken on purpose."""

from __future__ import annotations

import errno
import fcntl
import inspect
import json
import os
import struct
from pathlib import Path

import pytest

from idemreg import AsyncRegistry, Checkpointer, Claim, Registry
from idemreg.aio import AsyncClaim, AsyncTransaction
from idemreg.cli import COMMANDS
from tests.mutants import CATALOGUE, mutated
from tests.support.faulted import FaultedScript
from tests.torture.injected import shim
from tests.torture.injected.commands import CASES
from tests.torture.injected.judge import LOCKS, End, judge
from tests.torture.injected.parts import part
from tests.torture.injected.scene import Scene
from tests.torture.io_errors import TRIAL

# What does nothing with the file, or stands beneath the public calls: how it is said in the classes themselves.
BENEATH_CLAIMS = {
    *("attempt", "check_entered", "close_for", "drop", "end", "end_for", "entering", "grant", "hold", "interrupted"),
    *("check", "check_step", "slot"),
    *("is_entered", "is_open", "name", "not_begun", "options", "result", "settled", "task_id", "terms", "token"),
}
INSIDE = {
    "Registry": {
        "checked",
        "reader",
        "store",
        "teller",
        "terms",
        "async_terms",
        "offload",
        "may_schedule",
        "schedules",
        "recoverable",
    },
    "AsyncRegistry": {"of", "registry"},
    "Claim": BENEATH_CLAIMS,
    "AsyncClaim": BENEATH_CLAIMS | {"offload"},
    "AsyncTransaction": set(),
    "Checkpointer": {"forget", "is_running", "step_safely"},
}

# The commands that no case of the trial has, and why.
NO_CASE = {
    "demo": "the registry is its workers', processes of its own that it kills, and takes a second each time; of what it"
    " asks itself, `tasks` and `resolve`, there are cases (and see the test below)"
}

pytestmark = pytest.mark.usefixtures("compiler")


# What the trial has found: the call, the file and whether it is open; what failed, how, and for how long.
MENDED: list[list[object]] = [
    ["run", "filled", False, "lock", errno.ENOLCK, 1, 0],  # OSError, and a claim that was stored and lost
    ["open", "filled", False, "stat", errno.EIO, 1, 0],  # OSError, "vanished", and the lock file left open
    ["close", "killed", False, "open", errno.ENOSPC, 1, 0],  # read-only for good
    ["backup", "filled", True, "unlink", errno.EROFS, 1, 0],  # OSError behind a backup that is whole
    ["backup", "filled", True, "name", errno.EIO, shim.LASTING, 0],  # OSError, and an empty file under the name
    ["idemreg run", "filled", True, "lock", errno.EIO, 1, 0],  # the command's byte left open
    ["doctor", "killed", True, "read", errno.EIO, 1, 0],  # the lock file left open
    ["consume", "empty", True, "write", shim.SHORT, shim.LASTING, 0],  # put back, and unknown all the same
    ["claim, transaction", "filled", True, "write", errno.EIO, 1, 0],  # the job failed, where the disk did
    ["open", "none", False, "write", shim.SHORT, 1, 0],  # half a lock file, which nobody could open any more
    ["run", "killed", True, "stat", errno.EIO, 1, 0],  # "replaced", and the task running for good
    ["open", "filled", False, "read", errno.ENOMEM, 1, 0],  # OSError of the note at the end, and "damaged"
    ["Checkpointer", "filled", False, "read", errno.ENOMEM, 1, 0],  # OSError in the middle of a checkpoint
    ["export", "filled", False, "open", errno.EROFS, 1, 0],  # the call behind it: a connection that can only read
    ["claim_many", "filled", True, "write", errno.ENOSPC, shim.LASTING, 0],  # kept by their own error's traceback
    ["claim_many", "filled", True, "stat", errno.ENOMEM, 1, 0],  # likewise
]


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}


KINDS = {kind.__name__: kind for kind in (Registry, AsyncRegistry, Claim, AsyncClaim, AsyncTransaction, Checkpointer)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_public_call_is_tried(kind: str) -> None:
    """A public method cannot come without a case in the trial, nor go without its case."""
    covered = {name for case in CASES for name in case.covers if name.startswith(f"{kind}.")}
    assert {f"{kind}.{name}" for name in public(KINDS[kind]) - INSIDE[kind]} == covered


def test_every_command_is_tried() -> None:
    """Nor can a command, but for those that say why."""
    covered = {name.removeprefix("idemreg ") for case in CASES for name in case.covers if name.startswith("idemreg ")}
    assert covered | NO_CASE.keys() == COMMANDS.keys()
    assert not covered & NO_CASE.keys()


def test_the_demonstration_ends_in_order_where_its_disk_fails(path: Path) -> None:
    """With the code of an error of the disk, and with none of its workers left."""
    source = """
        import contextlib, io
        from idemreg.cli import main
        from tests.torture.injected.shim import LASTING
        folder = os.path.join(os.path.dirname(sys.argv[1]), "demo")
        fail("read", errno.EIO, lasting=LASTING)
        with contextlib.redirect_stdout(io.StringIO()):
            try: main(["demo", "--act", "1", "--workers", "1", "--tasks", "2", "--keep", folder])
            except SystemExit as end: code = end.code
        failed = hits() > 0
        try: left = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError: left = None
        say(code, failed, left)
    """
    with FaultedScript(source, path) as script:
        script.expect("74 True None")
        assert script.end() == 0


def test_nothing_is_found() -> None:
    """A part of the trial ends without a violation, and has met as many faults as it was to."""
    tally = TRIAL.run(1, 60)
    assert tally.violations == []
    assert len(tally.distinct) == 60
    assert sum(tally.events.values()) == 60, "no fault comes twice"


def test_each_part_has_faults_of_its_own() -> None:
    """What another part has tried is not tried again."""
    one, other = TRIAL.run(1, 40), TRIAL.run(2, 40)
    assert len(one.distinct) == len(other.distinct) == 40
    assert not one.distinct & other.distinct


def test_what_was_found_stays_mended() -> None:
    """The faults that the trial has found something with, each at every call of its kind."""
    tally = part("io", 1, 0, json.dumps(MENDED))
    assert tally.violations == []
    assert tally.tried > 2 * len(MENDED)


@pytest.mark.parametrize(
    ("mutant", "item"),
    [
        ("commit-error-swallowed", ["add", "filled", True, "write", errno.EIO, 1, 0]),
        ("disk-error-untyped", ["run", "killed", True, "lock", errno.EIO, shim.LASTING, 0]),
        ("not-withdrawn", ["run", "empty", True, "stat", errno.EIO, shim.LASTING, 0]),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_broken_is_found(mutant: str, item: list[object]) -> None:
    """Some of its mutants, by the faults that they concern; `make torture ARGS=--power` tries all of them by chance."""
    with mutated(CATALOGUE[mutant]) as folder:
        assert part("io", 1, 0, json.dumps(item), Path(folder)).violations


@pytest.mark.parametrize("suffix", ["", "-shm", "-lock"])
def test_a_lock_that_stays_is_seen(tmp_path: Path, suffix: str) -> None:
    """The judge names a byte that somebody in his own process has left locked, and leaves nothing open himself."""
    scene = Scene(str(tmp_path / "jobs.db"), shim.Fault(), None, {}, [])
    scene.registry.open()
    end = End(None, "no error", None, is_fault_met=False, wal_hit=False, is_whole=True)
    held = LOCKS[suffix].start
    with open(scene.path + suffix, "rb+") as file:
        lock = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, held, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        found = next(judge(scene, end, is_memory=False))
    scene.close_looks()
    scene.registry.close()
    assert found == f"byte {held} of jobs.db{suffix} stays locked"
