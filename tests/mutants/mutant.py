"""A mutant, and a copy of the whole tree that has it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Mutant", "Patch", "mutated"]

ROOT: Final = Path(__file__).resolve().parent.parent.parent
COPIED: Final = ("idemreg", "tests", "schema.sql", "pyproject.toml")


class Patch(NamedTuple):
    """``old`` stands exactly once in the file, and becomes ``new``."""

    file: str  # from the top level
    old: str
    new: str


class Mutant(NamedTuple):
    """What is broken, and how: the patches that break it, and those that take other barriers away first."""

    name: str
    what: str
    patches: tuple[Patch, ...]
    without: tuple[Patch, ...] = ()  # the barriers that would hide it


@contextlib.contextmanager
def mutated(mutant: Mutant, *, is_broken: bool = True) -> Iterator[Path]:
    """A folder with the mutant in place of the tree: what runs there as its working folder imports it.

    Not ``is_broken``: with the other barriers off only, where its killer must be content still.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        for source in COPIED:
            copy(ROOT / source, folder / source)
        for patch in (*mutant.without, *(mutant.patches if is_broken else ())):
            apply(patch, folder)
        yield folder


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


def apply(patch: Patch, folder: Path) -> None:
    """Apply it; an assertion fails where the file does not have the old text exactly once."""
    file = folder / patch.file
    text = file.read_text("utf-8")
    assert text.count(patch.old) == 1, f"{patch.file}: {text.count(patch.old)} times, wanted once: {patch.old!r}"
    file.write_text(text.replace(patch.old, patch.new), "utf-8")
