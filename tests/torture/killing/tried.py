"""What was tried, as hashes of what the witness has told: two runs in which the same happened have tried one thing."""

from __future__ import annotations

from collections import defaultdict
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from tests.torture.killing.history import COUNTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["calls", "kills"]

UNTOLD: Final = ("untold",)  # the answer of a call whose process has died in it


def calls(log: Iterable[Sequence[str]]) -> set[int]:
    """Each call: of which task, what was asked and answered, by whom; and all calls of its task that ended before.

    Without these, most would be one: that a task is done is told again and again.
    """
    open_calls: dict[tuple[str, str], dict[str, Sequence[str]]] = defaultdict(dict)  # by process and thread, then task
    before: dict[str, int] = {}  # of each task
    seen: set[int] = set()

    def ended(process: str, task: str, asked: Sequence[str], answer: Sequence[str]) -> None:
        before[task] = _hash((str(before.get(task)), process, *asked, *answer))
        seen.add(before[task])

    for kind, process, *words in log:
        match kind, words:
            case ("call" | "item", (thread, what, task, *_)) if what in COUNTED:
                open_calls[process, thread][task] = words
            case "said", (thread, *answer):
                for task, asked in open_calls.pop((process, thread), {}).items():
                    ended(process, task, asked, answer)
            case "got", (thread, task, *answer) if task in open_calls[process, thread]:
                ended(process, task, open_calls[process, thread].pop(task), answer)
            case "gone", _:
                for thread in [thread for one, thread in open_calls if one == process]:
                    for task, asked in open_calls.pop((process, thread)).items():
                        ended(process, task, asked, UNTOLD)
    return seen


def kills(log: Iterable[Sequence[str]], sides: Mapping[int, str]) -> set[int]:
    """Each kill: the side of the process, and its whole life, so far as it told of it: where it died is the end of it.

    ``sides``: of each process. Its numbers are no part of its life, so that those who died before they did anything
    have died alike.
    """
    lives: dict[str, list[str]] = defaultdict(list)
    killed = set()
    for kind, process, *words in log:
        if kind == "killing":
            killed.add(process)
        elif kind not in {"born", "gone"}:
            lives[process].append(" ".join((kind, *words)))
    return {_hash((sides[int(process)], *lives[process])) for process in killed}


def _hash(parts: Iterable[str]) -> int:
    return int.from_bytes(blake2b("\n".join(parts).encode(), digest_size=8).digest(), "big")
