"""One part of a trial, in a process of its own with the shim in front of the C library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from tests.torture.injected import shim
from tests.torture.trial import Tally

__all__ = ["part"]

ROOT: Final = Path(__file__).resolve().parent.parent.parent.parent
MEMORY: Final = "/dev/shm"  # noqa: S108 - not a temporary file: a file system in memory
PATIENCE_S: Final = 1_200.0


def part(mode: str, seed: int, count: int, only: str = "", root: Path = ROOT) -> Tally:
    """Carry it out; a process that crashed or hung is a violation, with the call that it was at.

    ``only``: the cases with these words in their names. ``root``: the tree, which may be a mutant.
    """
    environment = shim.environment()
    if mode == "memory":  # whoever measures coverage takes memory as well, and what he lacks is an error at any line
        environment = {name: value for name, value in environment.items() if not name.startswith("COVERAGE_")}
    base = tempfile.mkdtemp(prefix="faults-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
    try:
        words = [sys.executable, "-m", "tests.torture.injected.worker", mode, str(seed), str(count), base, only]
        run = subprocess.run(
            words, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        at = os.path.join(base, "at")
        was_at = Path(at).read_text("utf-8").strip() if os.path.exists(at) else "its beginning"
    finally:
        shutil.rmtree(base, ignore_errors=True)
    if run.returncode:
        end = run.stderr.strip().splitlines()[-12:]
        command = f"python -m tests.torture.injected.worker {mode} {seed} {count} FOLDER"
        return Tally(violations=[f"the process ended with {run.returncode} at {was_at}; {command}", *end])
    found = json.loads(run.stdout)
    return Tally(found["tried"], set(found["distinct"]), found["violations"], Counter(found["events"]))
