"""The store for claims that have a row beside their task's: limits, or kept arguments.

The short ways of the store (`Store.begin`, `Store.finish_one`) know nothing of such rows, and so cost nobody anything.
These claims go the general way, which writes and removes the row in the transaction of the claim and of its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idemreg.claim import Terms
    from idemreg.deciding import Wanted
    from idemreg.store import End, Lost, Recorded, Store, Unsure

__all__ = ["BesideStore", "beside"]


class BesideStore:
    """A store whose claims and ends all go the general way."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any method of the store
        return getattr(self._store, name)

    def begin(self, _wanted: Wanted) -> None:
        """Nothing is answered in few steps: it takes a look."""

    def finish_one(self, end: End) -> Recorded | Lost | Unsure:
        """As the store's `finish`, which removes what is beside the row."""
        return self._store.finish([end])[0]


def beside(terms: Terms) -> Terms:
    """The terms of claims whose arguments are kept."""
    store: Any = BesideStore(terms.store)
    return terms._replace(store=store)
