"""What the commands of a case are told of as MODULE:NAME."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg import Registry

__all__ = ["of_line", "of_lines", "of_slot", "registry"]

registry: Registry | None = None
of_lines: dict[str, Callable[[], Any]] = {}


def of_line(fields: dict[str, str]) -> Any:
    """The job of a line."""
    return of_lines[fields["id"]]()


def of_slot() -> None:
    """The job of a slot."""
