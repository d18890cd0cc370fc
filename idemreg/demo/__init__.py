"""See it work: real processes, real kills, and a witness that counts what really happened.

A few hundred tasks are delivered several times each, in shuffled order, to workers that are killed in mid-job. The
rooms: `process` is a child that is driven line by line, `witness` counts effects outside the registry; of the first
act `worker` is one consumer process, `crew` starts, feeds and kills them, `account` compares and tells.
"""

from __future__ import annotations

import os
import random
import tempfile
from typing import Final

from idemreg.demo import first
from idemreg.demo.process import FAILED, DemoError, complain

__all__ = ["main"]

MAX_WORKERS: Final = 64
MAX_TASKS: Final = 100_000
SEED_BITS: Final = 32

USAGE: Final = 2
INTERRUPTED: Final = 130


def main(
    directory: str | None = None,
    workers: int = 6,
    tasks: int = 300,
    *,
    seed: int | None = None,
    as_json: bool = False,
) -> int:
    """Run the demonstration, tell what happened, and give the exit code: 0, or 1 where the witness disagrees.

    ``directory`` keeps the registry and the witness file; a new temporary one by default, which stays for a look. With
    one ``seed`` the deliveries and the planned kills are the same; what the processes make of them is up to the kernel.
    ``as_json``: the account is one object.
    """
    if not (1 <= workers <= MAX_WORKERS and 1 <= tasks <= MAX_TASKS):
        return complain(f"demo takes 1 to {MAX_WORKERS} workers and 1 to {MAX_TASKS:,} tasks", USAGE)
    try:
        folder = _folder(directory)
    except OSError as error:
        return complain(f"demo cannot use {directory}: {error.strerror}", USAGE)
    if os.path.exists(os.path.join(folder, first.FILE)):
        return complain(f"there is a {first.FILE} in {folder} already: name another folder", USAGE)
    chosen = random.SystemRandom().getrandbits(SEED_BITS) if seed is None else seed
    try:
        return first.FirstAct(folder, workers, tasks, chosen, as_json=as_json).play()
    except KeyboardInterrupt:
        return complain(f"interrupted; every worker is gone, and the files stay in {folder}", INTERRUPTED)
    except DemoError as error:
        return complain(f"DEMO FAILED: {error}; the files stay in {folder}", FAILED)


def _folder(directory: str | None) -> str:
    if directory is None:
        return tempfile.mkdtemp(prefix="idemreg-demo-")
    os.makedirs(directory, exist_ok=True)
    return os.path.abspath(directory)
