"""A number and what it counts, as English has it."""

from __future__ import annotations

__all__ = ["counted", "word_for"]


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 task``, ``1,000 tasks``."""
    return f"{number:,} {word_for(number, one, many)}"


def word_for(number: float, one: str, many: str | None = None) -> str:
    """The word that goes with the number."""
    return one if number == 1 else many or f"{one}s"
