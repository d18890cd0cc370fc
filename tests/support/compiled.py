"""Libraries in C that stand in front of the system's own: compiled where they are needed."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["NoCompilerError", "compiler", "library", "shared"]

VARIABLE: Final = "IDEMREG_TEST_COMPILED"  # the folder of what a process and those that it starts have compiled
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
    """The path of a shared library made of ``sources``, which is there until this process ends, or the `shared` one."""
    words = [compiler(), *OPTIONS, *map(str, sources := list(sources)), *needed]
    name = hashlib.sha256(b"".join([repr(words).encode(), *(one.read_bytes() for one in sources)])).hexdigest()
    path = os.path.join(os.environ.get(VARIABLE) or _folder(), f"{name}.so")
    if not os.path.exists(path):
        made = f"{path}.{os.getpid()}"
        subprocess.run([*words, "-o", made], check=True)
        os.rename(made, path)  # complete or not at all, for whoever makes the same meanwhile
    return path


def shared() -> None:
    """From now on, what a process compiles that this one starts is there for all of them, until this one ends."""
    os.environ.setdefault(VARIABLE, _folder())


@functools.cache
def _folder() -> str:
    folder = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
