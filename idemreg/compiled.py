"""Functions that are written out for one signature, or one template: a loop over its parts would cost every call."""

from __future__ import annotations

from typing import Any

__all__ = ["compiled"]


def compiled(name: str, source: str, scope: dict[str, Any]) -> Any:  # noqa: ANN401 - the function
    """The function of that name, which the source defines; the ``scope`` has the names that it uses, and no others.

    Names of the user stand in it only where Python itself has accepted them as such, and all else of his in quotes.
    """
    exec(source, scope)  # noqa: S102
    return scope.pop(name)  # or each would hold itself, and only a collection of garbage could free what it refers to
