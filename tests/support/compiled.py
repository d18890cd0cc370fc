"""Libraries in C that stand in front of the system's own: compiled where they are needed."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["NoCompilerError", "compiler", "library"]

OPTIONS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared")


class NoCompilerError(Exception):
    """There is no C compiler on this machine."""


def compiler() -> str:
    """The path of a C compiler, or `NoCompilerError`."""
    found = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if found is None:
        msg = "no C compiler (cc): Debian and Ubuntu have it in the package gcc"
        raise NoCompilerError(msg)
    return found


def library(sources: Iterable[Path], *needed: str) -> str:
    """The path of a shared library made of ``sources``, which is there until this process ends."""
    command = compiler()
    folder = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "shim.so")
    subprocess.run([command, *OPTIONS, "-o", path, *map(str, sources), *needed], check=True)
    return path
