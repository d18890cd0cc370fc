"""A mutant, and a copy of the whole tree that has it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ROOT", "Mutant", "Patch", "applied", "mutated"]

ROOT: Final = Path(__file__).resolve().parent.parent.parent
COPIED: Final = ("idemreg", "tests", "schema.sql", "pyproject.toml")


class Patch(NamedTuple):
    """``old`` stands exactly once in the file, and becomes ``new``."""

    file: str  # from the top level
    old: str
    new: str


class Mutant(NamedTuple):
    """What is broken, and how: the patches that break it, and those that take other barriers away first.

    ``killer``: the test, by pytest's name for it, that must fail where it is broken, and must not where only the other
    barriers are away. None where it is a trial (`tests.torture`) that finds it.
    """

    name: str
    what: str
    patches: tuple[Patch, ...]
    without: tuple[Patch, ...] = ()  # the barriers that would hide it
    barrier: str = ""
    off: str = ""  # ``without`` in words
    killer: str | None = None


@contextlib.contextmanager
def mutated(mutant: Mutant, *, is_broken: bool = True) -> Iterator[Path]:
    """A folder with the mutant in place of the tree: what runs there as its working folder imports it.

    Not ``is_broken``: with the other barriers off only, where its killer must be content still.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        for source in COPIED:
            copy(ROOT / source, folder / source)
        texts = applied((*mutant.without, *(mutant.patches if is_broken else ())))
        for file, text in texts.items():
            (folder / file).write_text(text, "utf-8")
        yield folder


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


def applied(patches: tuple[Patch, ...]) -> dict[str, str]:
    """The files as the patches make them; an assertion fails where one does not have the old text exactly once."""
    texts: dict[str, str] = {}
    for file, old, new in patches:
        text = texts.get(file) or (ROOT / file).read_text("utf-8")
        assert text.count(old) == 1, f"{file}: {text.count(old)} times, wanted once: {old!r}"
        texts[file] = text.replace(old, new)
    return texts
