"""The plain rules, which each can be told in a sentence. The linearizability of the histories stands beside them.

* Bodies of one task never overlap, unless the process of the former was being killed; and who was replaced says nothing
  any more.
* Under hold and verify a body is not entered again unless the one before has ended, or somebody gave a verdict.
* Each body has a larger token than the one before.
* Who is told a result is told that of the one body, or verdict, that it belongs to.
* The owner of a claim never loses it, and a claim that has ended is never ended again.
* An effect in the same file is there exactly once for each success, and for nothing else.
* A step that somebody was told is done is never entered again, and gives the same to all (`pieces`).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.torture.killing.pieces import Pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Rules"]

# Kinds of tasks that a dead owner leaves to be run again.
REPEATED: Final = ("rerun", "kept", "steps", "effects")


class _Body(NamedTuple):
    process: int
    thread: str
    token: int
    is_open: bool
    may_repeat: bool  # it has ended, or somebody has given a verdict since


class Rules:
    """Reads the records in their order, and collects what broke a rule."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self._bodies: dict[str, _Body] = {}
        self._in: dict[tuple[int, str], tuple[str, int]] = {}  # the body that a thread is in, or was in last
        self._left: dict[tuple[int, str, str], tuple[str, int, str]] = {}  # by task too: its end, token and result
        self._doomed: set[int] = set()
        self._unlocked: set[int] = set()
        self._replaced: dict[int, str] = {}  # processes in whose body another is by now
        self._verdicts: dict[str, set[tuple[int, str]]] = defaultdict(set)  # calls for one that have not ended
        self._calls: dict[tuple[int, str], Sequence[str]] = {}
        self._finishes: dict[tuple[int, str, str], Sequence[str]] = {}
        self._results: dict[tuple[str, int], str] = {}
        self._effects: dict[str, list[int]] = defaultdict(list)
        self._recorded: dict[str, list[int]] = defaultdict(list)  # successes by token, of tasks with effects
        self._pieces = Pieces(self._break, self._unlocked)

        self._kinds: dict[str, Callable[[int, Sequence[str]], None]] = {
            "call": self._call,
            "item": self._call,
            "got": self._got,
            "in": self._inside,
            "out": self._leave,
            "verdict": self._verdict,
            "killing": self._doom,
            "point": self._doom,
            "unlocked": lambda process, _: self._unlocked.add(process),
            "gone": self._gone,
            "effect": self._effect,
            "step": self._pieces.enter,
            "stepped": self._pieces.tell,
            "saved": lambda _, words: self._pieces.find(words),
        }

    def read(self, record: Sequence[str]) -> None:
        """The next record."""
        kind, number, *words = record
        process = int(number)
        if process in self._replaced and kind in ("in", "out"):
            self._break(f"process {process} goes on in {self._replaced[process]}, which another had taken over")
        if kind == "said":
            self._said(process, words[0], self._calls.pop((process, words[0])), words[1:])
        elif (read := self._kinds.get(kind)) is not None:
            read(process, words)
        elif kind == "trouble":
            self._break(f"process {process}: {' '.join(words)}")

    def _inside(self, process: int, words: Sequence[str]) -> None:
        self._enter(process, words[0], words[1], int(words[2]))

    def _verdict(self, process: int, words: Sequence[str]) -> None:
        if words[1] == "did-not-happen":
            self._give_verdict(self._calls[process, words[0]][2])

    def _doom(self, process: int, words: Sequence[str]) -> None:
        if not words or words[0] == "kill":  # at a point it may only stop itself
            self._doomed.add(process)

    def _gone(self, process: int, _words: Sequence[str]) -> None:
        self._doomed.add(process)
        self._replaced.pop(process, None)
        self._pieces.died(process)
        for calls in self._verdicts.values():
            calls -= {call for call in calls if call[0] == process}

    def _effect(self, _process: int, words: Sequence[str]) -> None:
        self._effects[words[0]].append(int(words[1]))

    def _break(self, text: str) -> None:
        self.broken.append(text)

    # --- bodies -----------------------------------------------------------------------------------------------------

    def _enter(self, process: int, thread: str, task: str, token: int) -> None:
        before = self._bodies.get(task)
        if before is not None:
            if token <= before.token:
                self._break(f"{task}: token {token} behind {before.token}")
            if before.is_open:
                self._overlap(task, before)
            if not before.may_repeat and not task.startswith(REPEATED) and not self._verdicts[task]:
                self._break(f"{task}: entered again under token {token}, and nobody gave a verdict over {before.token}")
        self._bodies[task] = _Body(process, thread, token, is_open=True, may_repeat=bool(self._verdicts[task]))
        self._in[process, thread] = task, token

    def _overlap(self, task: str, before: _Body) -> None:
        if before.process not in self._doomed and before.process not in self._unlocked:
            self._break(f"{task}: a body is entered while process {before.process} is in one")
        elif before.process not in self._unlocked:
            self._replaced[before.process] = task

    def _leave(self, process: int, words: Sequence[str]) -> None:
        thread, end, result = words
        task, token = self._in[process, thread]
        body = self._bodies[task]
        if (body.process, body.thread) == (process, thread):
            self._bodies[task] = body._replace(
                is_open=False, may_repeat=body.may_repeat or end in ("failed", "released")
            )
        self._left[process, thread, task] = (end, token, result)

    # --- calls ------------------------------------------------------------------------------------------------------

    def _call(self, process: int, words: Sequence[str]) -> None:
        thread, kind, task, *_ = words
        self._calls[process, thread] = words
        self._finishes[process, thread, task] = words
        if kind == "forget":
            self._pieces.begin_to_forget(process, thread, task)
        if kind == "forget" or (kind == "resolve" and words[3] == "did-not-happen"):
            self._give_verdict(task)
            self._verdicts[task].add((process, thread))

    def _give_verdict(self, task: str) -> None:
        if (body := self._bodies.get(task)) is not None:
            self._bodies[task] = body._replace(may_repeat=True)

    def _said(self, process: int, thread: str, call: Sequence[str], answer: Sequence[str]) -> None:
        _, kind, task, *_ = call
        self._verdicts[task].discard((process, thread))
        self._pieces.forgot(process, thread, is_gone=answer[0] == "ok")
        self._judge(process, kind, task, call, answer)

    def _got(self, process: int, words: Sequence[str]) -> None:
        thread, task, *answer = words
        if (call := self._calls.get((process, thread), ()))[1:2] == ["sweep"]:
            self._judge(process, "run", task, call, answer)
            return
        call = self._finishes[process, thread, task]
        self._calls.pop((process, thread), None)
        self._judge(process, call[1], task, call, answer)

    def _judge(self, process: int, kind: str, task: str, call: Sequence[str], answer: Sequence[str]) -> None:
        if answer[0] == "done":
            self._told(task, int(answer[1]), answer[3])
        elif (
            answer[0] == "recorded" and kind == "run" and (left := self._left[process, call[0], task])[0] == "succeeded"
        ):
            self._told(task, *left[1:])
        if kind == "late" and answer[0] != "lost":
            self._break(f"{task}: a claim that had ended was ended again, under token {call[4]}: {answer[0]}")
        if kind in ("run", "finish", "enter") and answer[0] == "lost" and process not in self._unlocked:
            self._break(f"{task}: process {process} has lost its claim, and lives")
        if kind == "finish" and answer[0] == "recorded" and call[3] == "succeeded":
            self._told(task, int(call[4]), call[5])
            self._recorded[task].append(int(call[4]))

    def _told(self, task: str, token: int, result: str) -> None:
        if (other := self._results.setdefault((task, token), result)) != result:
            self._break(f"{task}: {result} was told for token {token}, and {other} before")

    # --- the end ----------------------------------------------------------------------------------------------------

    def look_at_the_end(self) -> None:
        """When all is over: no effect twice, each of a finish that was recorded, and each step that was told."""
        self.broken += self._pieces.missing()
        for task in self._effects.keys() | {task for task in self._recorded if task.startswith("effects")}:
            found, recorded = self._effects[task], self._recorded[task]
            for token in {token for token in found if found.count(token) > 1}:
                self._break(f"{task}: the effect of token {token} is there {found.count(token)} times")
            for token in set(recorded) - set(found):
                self._break(f"{task}: the effect of token {token} is not there, and its success was recorded")
