"""Kills that are not left to chance: in each part of the trial somebody dies at each of these places.

By chance most kills come where a process does nothing that matters, and what only one kind of task promises, at one
place, may go untried in a small part. So one place after the other is made known to all processes, and whoever comes
there first dies. It is one of a task that is at hand, and nobody is sent there: that would take too long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tests.torture.killing.chances import BODY, POLICIES

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ANY_BODY", "NOWHERE", "PLACES", "TURNS", "Directed", "Place", "bit_of"]


class Place(NamedTuple):
    """The kind of a task; and its body, or a fault point that only calls of this kind pass."""

    kind: str
    point: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.point}"


# What an owner that dies in its body has left is another thing to decide by each kind of task.
PLACES: Final = (*(Place(kind, BODY) for kind in POLICIES), Place("effects", "transaction.finished"))
# These two show what a kill anywhere else does not: a batch whose task was entered, and effects that may be there
# without their success. Twice, for whoever comes first behind it may forget the task by force, or give a verdict.
_TWICE: Final = (Place("batch", BODY), Place("effects", "transaction.finished"))
TURNS: Final = (*_TWICE, *(place for place in PLACES if place not in _TWICE), *_TWICE)
ANY_BODY: Final = Place("any", BODY)  # of whatever kind
NOWHERE: Final = 0  # no bit of any place is set


class Directed:
    """Where somebody is to die yet."""

    def __init__(self, turns: Sequence[Place], seed: int, most: int) -> None:
        """At most so many of them, from one that goes by the seed: small parts of the next seeds have the others."""
        first = seed * most % len(turns) if turns else 0
        self.left = [*turns[first:], *turns[:first]][:most]
        self.hit = 0

    @property
    def wanted(self) -> int:
        """A bit for each place that is left."""
        return sum({bit_of(place) for place in self.left})

    def reached(self, name: str) -> None:
        """Somebody dies there: at a place of that name, or at another point of his own."""
        for number, place in enumerate(self.left):
            if str(place) == name:
                del self.left[number]
                self.hit += 1
                return


def bit_of(place: Place) -> int:
    """By which it is told to be wanted."""
    return 1 << (*PLACES, ANY_BODY).index(place)
