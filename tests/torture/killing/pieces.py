"""The rules of steps: what a caller was told is done is never entered again, and is the same whoever asks.

A step's body tells the witness what it is about to give, and its caller what he was given. All of it is owed for as
long as the row of its task is there: while somebody forgets the task nobody knows whether it is, and nothing is judged.
Who has lost its locks and lives may be late in all that it says; nothing of that counts.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

__all__ = ["Pieces"]


class Pieces:
    """Reads the records of steps, in their order, and those of whoever forgets a task."""

    def __init__(self, broken: Callable[[str], None], late: Container[int]) -> None:
        """``broken`` is told what broke a rule; ``late`` are the processes that have lost their locks."""
        self._break, self._late = broken, late
        self._promised: dict[tuple[str, str], set[str]] = defaultdict(set)  # by task and name: what bodies said
        self._told: dict[str, dict[str, str]] = defaultdict(dict)  # by task: what each step that is done has given
        self._saved: dict[str, dict[str, str]] = defaultdict(dict)
        self._forgetting: dict[tuple[int, str], str] = {}  # the task, by process and thread

    def enter(self, process: int, words: Sequence[str]) -> None:
        """The body of a step is entered."""
        _, task, name, result = words
        self._promised[task, name].add(result)
        if process not in self._late and self._is_owed(task) and name in self._told[task]:
            self._break(f"{task}: step {name} is entered again, and was told to be done: {self._told[task][name]}")

    def tell(self, process: int, words: Sequence[str]) -> None:
        """Somebody is told that a step is done."""
        _, task, name, result = words
        if process in self._late:
            return
        if result not in self._promised[task, name]:
            self._break(f"{task}: step {name} gave {result}, which no body of it has said")
        before = self._told[task].get(name, result)
        if before != result and self._is_owed(task):
            self._break(f"{task}: step {name} gave {result}, and {before} before")
        self._told[task][name] = result

    def find(self, words: Sequence[str]) -> None:
        """A step that is in the file in the end."""
        task, name, result = words
        self._saved[task][name] = result

    def begin_to_forget(self, process: int, thread: str, task: str) -> None:
        """From here on the row may go at any time."""
        self._forgetting[process, thread] = task

    def forgot(self, process: int, thread: str, *, is_gone: bool) -> None:
        """The call has ended; ``is_gone``: it may have removed the row."""
        task = self._forgetting.pop((process, thread), None)
        if task is not None and is_gone:
            self._told[task].clear()

    def died(self, process: int) -> None:
        """Whoever was forgetting a task has done so, or not."""
        for one, thread in [call for call in self._forgetting if call[0] == process]:
            self.forgot(one, thread, is_gone=True)

    def _is_owed(self, task: str) -> bool:
        return task not in self._forgetting.values()

    def missing(self) -> Iterator[str]:
        """When all is over: what was told to be done and is not in the file, or otherwise."""
        for task, steps in self._told.items():
            for name, result in steps.items():
                if (saved := self._saved[task].get(name)) != result:
                    yield f"{task}: step {name} was told to be done with {result}, and the file has {saved}"
