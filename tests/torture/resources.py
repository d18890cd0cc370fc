"""What a process needs goes while it works, and comes back: space, inodes, the right to write, a size, descriptors.

Each cycle is a registry at durability full, with three processes that use it in different styles, and takes every one
of these away once (`resources_cycle`). What must hold: a claim that cannot be stored does not start the job; an end
that cannot be stored raises `FinishNotRecordedError` with the result, and the task does not run again; what was
acknowledged is there; once the resource is back the next call succeeds, without a restart; no call takes five seconds,
and no descriptor is left. The small disks are mounted in a namespace of their own, which Linux permits to anybody where
it is not forbidden, and to root; where neither may, this is said (in CI it is a violation), and the rest is tried.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

from tests.mutants import catalogue_resources
from tests.torture.resources_cycle import MOUNTED
from tests.torture.trial import Tally, Trial, again

__all__ = ["TRIAL", "namespaces"]

ROOT: Final = Path(__file__).resolve().parent.parent.parent
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - not a temporary file: a file system in memory
CYCLES: Final = 1_000  # of one part, at most: each has a seed of its own
# What gives a process mounts of its own; the first needs no privilege.
WAYS: Final = (("unshare", "--user", "--map-root-user", "--mount"), ("unshare", "--mount"))


@functools.cache
def namespaces() -> tuple[str, ...]:
    """The words before a command that may mount; none where nobody here may."""
    with tempfile.TemporaryDirectory() as folder:
        for words in WAYS:
            if not shutil.which(words[0]):
                continue
            mount = ["mount", "-t", "tmpfs", "idemreg", folder]
            if not subprocess.run([*words, *mount], check=False, capture_output=True).returncode:
                return words
    return ()


def run(seed: int, count: int) -> Tally:
    """So many cycles."""
    words = namespaces()
    tally = Tally()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        seeds = [seed * CYCLES + number for number in range(count)]
        asked = json.dumps({"folder": folder, "seeds": seeds, "may_mount": bool(words)})
        done = subprocess.run(
            [*words, sys.executable, "-m", "tests.torture.resources_cycle", asked],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    command = f"again: {again('resources', seed, count)}"
    if done.returncode:
        tally.violations.append(f"the cycles ended with {done.returncode}: {done.stderr[-500:]!r}; {command}")
        return tally
    cycles: list[dict[str, Any]] = json.loads(done.stdout)
    for one in cycles:
        tally.tried += 1
        tally.distinct.add(one["hash"])
        tally.violations += [f"{text}; {command}" for text in one["wrong"]]
        tally.events += Counter(one["said"])
    if not words:
        for kind in MOUNTED:
            tally.not_tried(f"{kind} (nobody here may mount)", count)
    return tally


TRIAL: Final = Trial(
    "resources",
    "cycles",
    200,
    10,
    run,
    tuple(one.name for one in catalogue_resources.MUTANTS),
    told=("entered", "ended", "unrecorded"),
)
