"""What callers had been told by one point of a trace, and so what a cut at this point must leave.

A worker tells as a caller would learn: a claim is granted, a body entered, an end acknowledged, a row seen. What may be
in the file before it is acknowledged is announced ("ending", "forgetting") before the call that writes it. So for each
task there is one latest acknowledged state that must be there, and a set of states that may have come after it.
"""

from __future__ import annotations

import json
from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from idemreg.model import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["EPOCH_BITS", "Found", "Need", "Row", "State", "Told"]

EPOCH_BITS: Final = 40  # of a token: (boot epoch, counter)

State = tuple[int, str | None]  # status, and the stored text of a success's result

_OPEN: Final[tuple[State, ...]] = ((Status.RUNNING, None), (Status.UNKNOWN, None))
_FINAL: Final = frozenset({Status.SUCCEEDED, Status.SKIPPED, Status.CANCELLED})
# From these a task may be claimed again.
_CLAIMABLE: Final = frozenset({Status.PENDING, Status.FAILED})


class Row(NamedTuple):
    """A row of an image."""

    token: int
    state: State


class Found(NamedTuple):
    """What is in an image. ``problem``: why it cannot be read, or what is wrong in itself; empty where all is well."""

    rows: Mapping[str, Row]
    floor: int  # of the tokens
    problem: str = ""
    steps: Mapping[tuple[str, str], str] = MappingProxyType({})  # their results, by task and name


class Need(NamedTuple):
    """What must be there of a task: this token in one of these states, or, unless it is final, a larger token."""

    token: int
    states: set[State]
    is_final: bool


class Told:
    """What was told so far. ``problems``: what no cut was needed for (a task entered twice, a token given twice)."""

    def __init__(self) -> None:
        self.needs: dict[str, Need] = {}
        self.newest = 0  # the largest token that anybody was told
        self.problems: list[str] = []
        self.events: Counter[str] = Counter()
        self.entries = 0
        self.ends = 0
        self.steps: dict[tuple[str, str], str] = {}  # what each that a caller was told is done has given
        self._promised: dict[tuple[str, str], set[str]] = {}  # what the bodies of a step have said that it gives
        self._states: dict[tuple[str, int], set[State]] = {}
        self._tokens: dict[str, int] = {}
        self._inside: dict[str, int] = {}  # entered under hold or verify: the token
        self._kinds: dict[str, Callable[..., None]] = {
            "granted": self._granted,
            "entered": self._entered,
            "ending": self._ending,
            "ended": self._ended,
            "seen": self._seen,
            "forgetting": self._forgetting,
            "stepping": self._stepping,
            "stepped": self._stepped,
            "event": self._event,
        }

    def apply(self, message: bytes) -> None:
        """Bring one record in."""
        kind, *values = json.loads(message)
        self._kinds[kind](*values)

    # --- what was told ------------------------------------------------------------------------------------------

    def _granted(self, task: str, token: int, on_crash: str) -> None:
        """A caller has the claim."""
        if token <= self._tokens.get(task, 0):
            self.problems.append(f"{task}: token {token} was granted after {self._tokens[task]}")
        self._tokens[task] = max(token, self._tokens.get(task, 0))
        self.newest = max(self.newest, token)
        self._may(task, token, *_OPEN)
        if on_crash != "rerun":
            self._must(task, token, self._states[task, token])

    def _entered(self, task: str, token: int, on_crash: str) -> None:
        """The job begins."""
        self.entries += 1
        before = self._inside.get(task)
        if before is not None and not any(state[0] in _CLAIMABLE for state in self._states[task, before]):
            self.problems.append(f"{task}: entered with token {token} after it was entered with {before}")
        if on_crash != "rerun":
            self._inside[task] = token

    def _ending(self, task: str, token: int, status: int, result: str | None) -> None:
        """Its owner is about to end it so, or an operator to settle it."""
        self._may(task, token, (status, result))

    def _ended(self, task: str, token: int, status: int, result: str | None) -> None:
        """And was told that the end is stored."""
        self.ends += 1
        self._is(task, token, (status, result))

    def _seen(self, task: str, token: int, status: int, result: str | None) -> None:
        """Anybody was shown a row that is final, or was given the stored result."""
        self._may(task, token, (status, result))
        self._is(task, token, (status, result))

    def _forgetting(self, task: str) -> None:
        """Its row is about to go: nothing is owed any more but that its tokens never return."""
        self.needs.pop(task, None)
        self._inside.pop(task, None)

    def _stepping(self, task: str, name: str, result: str) -> None:
        """The body of a step is entered, and will give this. Whatever steps were told before it are done."""
        if (task, name) in self.steps:
            self.problems.append(f"{task}: step {name} is entered again, and was told to be done")
        self._promised.setdefault((task, name), set()).add(result)

    def _stepped(self, task: str, name: str, result: str) -> None:
        """Its caller was told that it is done, now or by an attempt before."""
        if result not in self._promised.get((task, name), ()):
            self.problems.append(f"{task}: step {name} gave {result}, which no body of it has said")
        if (before := self.steps.setdefault((task, name), result)) != result:
            self.problems.append(f"{task}: step {name} gave {result}, and {before} before")

    def _event(self, what: str) -> None:
        """Of the conductor: what befell a process."""
        self.events[what] += 1

    # --- what follows -------------------------------------------------------------------------------------------

    def _may(self, task: str, token: int, *states: State) -> None:
        self._states.setdefault((task, token), set()).update(states)

    def _is(self, task: str, token: int, state: State) -> None:
        """Under this token it is no longer open. What may follow a failure or a release may be announced already."""
        states = self._states[task, token]
        states.difference_update(states if state[0] in _FINAL else _OPEN)
        states.add(state)
        self._must(task, token, states, is_final=state[0] in _FINAL)

    def _must(self, task: str, token: int, states: set[State], *, is_final: bool = False) -> None:
        need = self.needs.get(task)
        if need is None or token >= need.token:
            self.needs[task] = Need(token, states, is_final)

    # --- the verdict --------------------------------------------------------------------------------------------

    def lost(self, found: Found) -> Iterator[str]:
        """What of it an image lacks."""
        rows, floor = found.rows, found.floor
        for task, (token, states, is_final) in self.needs.items():
            row = rows.get(task)
            if row is None:
                yield f"{task}: its row with token {token} is gone"
            elif row.token < token:
                yield f"{task}: token {row.token} is back, after {token}"
            elif row.token > token:
                if is_final:
                    yield f"{task}: claimed again (token {row.token}), and was final with {token}"
            elif row.state not in states:
                yield f"{task}: is {row.state}, and must be one of {sorted(states, key=str)}"
        for (task, name), result in self.steps.items():
            if (saved := found.steps.get((task, name))) != result:
                yield f"{task}: step {name} was told to be done with {result}, and is {saved}"
        epoch = (floor >> EPOCH_BITS) + 1
        if self.newest >= epoch << EPOCH_BITS:
            yield f"token {self.newest} can be given again: after a reboot they begin at epoch {epoch}"

    def invented(self, found: Found) -> Iterator[str]:
        """Successes and steps in an image that nobody ever announced."""
        for (task, name), result in found.steps.items():
            if result not in self._promised.get((task, name), ()):
                yield f"{task}: no body of step {name} has said {result}"
        for task, row in found.rows.items():
            if row.state[0] == Status.SUCCEEDED and row.state not in self._states.get((task, row.token), ()):
                yield f"{task}: nobody ended it so: {row}"
