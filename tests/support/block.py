"""A block of a document that a program writes, between two lines that say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Block"]


class Block(NamedTuple):
    """What stands in ``page`` between the lines ``begin`` and ``end``, each with its line break."""

    page: Path
    begin: str
    end: str

    def read(self) -> str:
        """The block as it stands there."""
        return self._parts()[1]

    def write(self, text: str) -> None:
        """Put ``text`` in its place."""
        before, _, after = self._parts()
        self.page.write_text(before + self.begin + text + self.end + after, "utf-8")

    def _parts(self) -> tuple[str, str, str]:
        before, begin, rest = self.page.read_text("utf-8").partition(self.begin)
        block, end, after = rest.partition(self.end)
        assert begin, f"{self.page} has no line {self.begin!r}"
        assert end, f"{self.page} has no line {self.end!r}"
        return before, block, after
