"""A disk whose syncs take a millisecond more, for the processes that are started meanwhile.

What sharing a sync saves depends on what one costs, and a disk in a data centre may take a tenth of a millisecond. The
library in C stands before the system's own calls, so SQLite's syncs are slower as well as Python's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["compiler", "lacks", "slower_syncs"]

SOURCE: Final = Path(__file__).with_name("slow_sync.c")


def compiler() -> str | None:
    """The C compiler of this machine, or None."""
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")


def lacks() -> list[str]:
    """As `bench.model.Figure` asks for it."""
    return [] if compiler() else ["a C compiler, which makes the syncs slower (Debian: apt install gcc)"]


@contextlib.contextmanager
def slower_syncs(compiler: str, folder: str) -> Iterator[None]:
    """Whatever process is started within has them; the library is made in ``folder``."""
    library = os.path.join(folder, "slow_sync.so")
    subprocess.run([compiler, "-O2", "-fPIC", "-shared", "-o", library, str(SOURCE), "-ldl"], check=True)
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = library if before is None else f"{library}:{before}"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LD_PRELOAD"]
        else:
            os.environ["LD_PRELOAD"] = before
