"""Functions that are written out for one signature, or one template: a loop over its parts would cost every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["at_first_use", "compiled"]

T = TypeVar("T")


class at_first_use(Generic[T]):  # noqa: N801 - a decorator
    """An attribute that is made when it is first asked for, and stays: many jobs are decorated that are never called.

    `functools.cached_property` of Python 3.11 has one lock for all instances, and a child that is forked while another
    thread holds it would wait for ever. Here two threads may make it at once, and the same is made.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make

    def __get__(self, instance: Any, _owner: type) -> T:  # noqa: ANN401 - of any class
        made = vars(instance)[self._make.__name__] = self._make(instance)
        return made


def compiled(name: str, source: str, scope: dict[str, Any]) -> Any:  # noqa: ANN401 - the function
    """The function of that name, which the source defines; the ``scope`` has the names that it uses, and no others.

    Names of the user stand in it only where Python itself has accepted them as such, and all else of his in quotes.
    """
    exec(source, scope)  # noqa: S102
    return scope.pop(name)  # or each would hold itself, and only a collection of garbage could free what it refers to
