"""Whether a history is linearizable: whether all its operations can be put in one order that keeps to what was seen.

The algorithm is that of Wing and Gong with the memory of Lowe: take, one after the other, an operation that began
before any other that is left had ended, and go back where that leads nowhere, remembering where one has been. Tasks
share nothing, so each has a history of its own (as in Porcupine), which keeps it cheap.

An operation that only looks is taken at once, where the state allows it: where it could be taken later, it can be taken
now. The claim that is told of an unknown or failed task is none of those: it may be the one that has made it so. Nor is
what an operator was allowed, though it changes nothing here: of two retries at a time each may let a run begin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.torture.killing.spec import FOR_EVER, NO_TASK, PENDING, Op, State, step

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Stuck", "find_stuck"]

# A history that needs more is told of as undecided, and counts as a violation. One that can be put in order has needed
# a few more steps than it has operations.
MOST_STEPS: Final = 30_000
MAY_CHANGE: Final = frozenset({PENDING, "unknown", "failed"})
MAY_DO_NOTHING: Final = frozenset({"retry", "resolve", "forget", "bury"})


class Stuck(Exception):  # noqa: N818 - it is a finding
    """No order was found. ``done``: the most that could be put in order; ``rest``: what could have come next."""

    def __init__(self, done: Sequence[Op], rest: Sequence[Op], state: State, *, is_sure: bool) -> None:
        super().__init__(f"no order: stuck in {state} before {list(rest)}")
        self.done, self.rest, self.state, self.is_sure = done, rest, state, is_sure


def find_stuck(ops: Sequence[Op], start: State = NO_TASK) -> Stuck | None:
    """None where the operations can be put in order."""
    ops = sorted(ops, key=lambda op: (op.begun, op.ended))
    everything = (1 << len(ops)) - 1
    best: tuple[int, State] = (0, start)
    seen: set[tuple[int, State]] = set()
    stack = [(0, 0, start)]
    steps = 0
    while stack:
        taken, first, state = stack.pop()
        steps += 1
        next_ones, taken, first, state = _take_what_only_looks(ops, taken, first, state)
        if taken == everything:
            return None
        if (taken, state) in seen:
            continue
        seen.add((taken, state))
        if taken.bit_count() > best[0].bit_count():
            best = taken, state
        if steps > MOST_STEPS:
            break
        for place in sorted(next_ones, key=lambda place: ops[place].ended, reverse=True):
            stack.extend((taken | 1 << place, first, after) for after in step(state, ops[place]))
    taken, state = best
    done = [op for place, op in enumerate(ops) if taken >> place & 1]
    return Stuck(done, [ops[place] for place in _next(ops, taken, 0)], state, is_sure=steps <= MOST_STEPS)


def _take_what_only_looks(ops: Sequence[Op], taken: int, first: int, state: State) -> tuple[list[int], int, int, State]:
    while True:
        while taken >> first & 1:
            first += 1
        next_ones = _next(ops, taken, first)
        free = [place for place in next_ones if _only_looks(state, ops[place])]
        if not free:
            return next_ones, taken, first, state
        for place in free:
            taken |= 1 << place


def _only_looks(state: State, op: Op) -> bool:
    may_change = op.answer in MAY_CHANGE or (op.answer == "ok" and op.kind in MAY_DO_NOTHING)
    return not may_change and any(after == state for after in step(state, op))


def _next(ops: Sequence[Op], taken: int, first: int) -> list[int]:
    """Which may come next: those that began before any other that is left had ended."""
    bound, found = FOR_EVER, []
    for place in range(first, len(ops)):
        op = ops[place]
        if op.begun > bound:
            break
        if not taken >> place & 1:
            found.append(place)
            bound = min(bound, op.ended)
    return [place for place in found if ops[place].begun <= bound]
