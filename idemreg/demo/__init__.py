"""See it work, in two acts: real processes, real kills, and a witness that counts what really happened.

Act one: a few hundred tasks are delivered several times each, in shuffled order, to workers that are killed in
mid-job. Act two: a coupon system loses its scheduler, the right time, and an owner, on a clock of its own. The rooms:
`process` is a child that is driven line by line, `witness` counts effects outside the registry.

    act one    `first`; `worker` is one consumer process, `crew` starts, feeds and kills them, `account` compares
               and tells
    act two    `second` is the story; `fileclock` is the clock that all processes read, `issuer` one scheduler
               process, `company` them all, `book` what the witness saw, `nights` compares and tells
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from typing import Final

from idemreg.demo import first, second
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
    act: int | None = None,
) -> int:
    """Run the demonstration, tell what happened, and give the exit code: 0, or 1 where the witness disagrees.

    ``directory`` keeps the registries and the witness files; a new temporary one by default, which stays for a look.
    ``workers``, ``tasks`` and ``seed`` are of act one: with one seed the deliveries and the planned kills are the same;
    what the processes make of them is up to the kernel. ``as_json``: the account of an act is one object on one line.
    ``act``: only this one, 1 or 2.
    """
    if not (1 <= workers <= MAX_WORKERS and 1 <= tasks <= MAX_TASKS and act in (None, 1, 2)):
        return complain(f"demo takes 1 to {MAX_WORKERS} workers, 1 to {MAX_TASKS:,} tasks, and act 1 or 2", USAGE)
    lacking = None if act == 1 else second.lacking()
    if act == 2 and lacking:  # noqa: PLR2004 - the number is the name
        return complain(lacking, USAGE)
    try:
        folder = _folder(directory)
    except OSError as error:
        return complain(f"demo cannot use {directory}: {error.strerror}", USAGE)
    if (file := _taken(folder)) is not None:
        return complain(f"there is a {file} in {folder} already: name another folder", USAGE)
    chosen = random.SystemRandom().getrandbits(SEED_BITS) if seed is None else seed
    try:
        done = 0 if act == 2 else first.FirstAct(folder, workers, tasks, chosen, as_json=as_json).play()  # noqa: PLR2004
        return done if act == 1 or done else _second(folder, lacking, as_json=as_json, is_alone=act is not None)
    except KeyboardInterrupt:
        return complain(f"interrupted; every worker is gone, and the files stay in {folder}", INTERRUPTED)
    except DemoError as error:
        return complain(f"DEMO FAILED: {error}; the files stay in {folder}", FAILED)


def _second(folder: str, lacking: str | None, *, as_json: bool, is_alone: bool) -> int:
    if lacking:
        return complain(lacking, 0)
    if not (is_alone or as_json):
        sys.stdout.write("\n\n")
    return second.SecondAct(folder, as_json=as_json).play()


def _folder(directory: str | None) -> str:
    if directory is None:
        return tempfile.mkdtemp(prefix="idemreg-demo-")
    os.makedirs(directory, exist_ok=True)
    return os.path.abspath(directory)


def _taken(folder: str) -> str | None:
    """A registry that is there already, into which nothing may be written."""
    files = (first.FILE, second.FILE)
    return next((file for file in files if os.path.exists(os.path.join(folder, file))), None)
