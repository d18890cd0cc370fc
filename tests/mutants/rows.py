"""Mutants in the rows of a table: those of one barrier, with the same others away, killed by tests of one file."""

from __future__ import annotations

from typing import NamedTuple

from tests.mutants.mutant import Mutant, Patch

__all__ = ["Off", "Row", "mutants"]


class Off(NamedTuple):
    """Barriers that are away, in words and as patches."""

    words: str = ""
    patches: tuple[Patch, ...] = ()

    def __add__(self, other: object) -> Off:
        assert isinstance(other, Off)
        return Off(f"{self.words}, {other.words}", self.patches + other.patches)


class Row(NamedTuple):
    """A mutant of a barrier; ``test`` is the killer, in the file that the others have theirs in too."""

    name: str
    what: str
    patches: tuple[Patch, ...]
    test: str = ""


def mutants(barrier: str, off: Off, file: str, *rows: Row) -> tuple[Mutant, ...]:
    return tuple(
        Mutant(
            one.name,
            one.what,
            one.patches,
            off.patches,
            barrier,
            off.words,
            f"{file}::{one.test}" if one.test else file,
        )
        for one in rows
    )
