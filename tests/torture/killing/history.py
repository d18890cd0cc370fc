"""From the records of the witness to the history of each task: its operations, each between two records."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.torture.killing.chances import INTERRUPTED, MOST_ATTEMPTS, POLICIES, SWEEP
from tests.torture.killing.spec import NOTHING, PENDING, Op

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COUNTED", "History"]

# What counts as a call of the public API, an item of a batch as one.
COUNTED: Final = frozenset({"run", "claim", "finish", "late", "get", "resolve", "retry", "forget", "sweep"})
KEPT: Final = "kept"  # as what is asked for: rerun, by whoever sweeps
_TOLD: Final = {"busy": NOTHING, "not-recorded": NOTHING}


class _Open(NamedTuple):
    """What a thread is in the middle of: an operation that began at a record."""

    kind: str
    begun: int
    asked: str
    token: int
    result: str | None
    policy: str = ""  # of a run, also while another of its parts goes on


class History:
    """Reads record after record, in their order. ``ops`` are whole once each process is gone."""

    def __init__(self, *, others_may_bury: bool = False) -> None:
        """``others_may_bury``: who has lost its locks may be taken for dead, by those who cannot see its process."""
        self.ops: dict[str, list[Op]] = defaultdict(list)
        self.effects: dict[str, list[int]] = defaultdict(list)
        self.now = 0
        self._others_may_bury = others_may_bury
        self._open: dict[tuple[int, str], dict[str, _Open]] = defaultdict(dict)  # by process and thread, then by task
        self._claimed: dict[int, set[str]] = defaultdict(set)
        self._dying: dict[int, int] = {}
        self._dead: dict[str, int] = {}  # tasks that the dead have touched, and no whole sweep has looked at since
        self._listed: dict[tuple[int, str], set[str]] = {}  # of what a sweep has told
        self._abandoned: dict[int, list[tuple[str, _Open]]] = defaultdict(list)

    def read(self, record: Sequence[str]) -> None:
        """The next record."""
        kind, number, *words = record
        process = int(number)
        if kind in ("call", "item"):
            self._begin(process, *words)
        elif kind in ("said", "got"):
            self._answer(process, kind, words)
        elif kind in ("in", "out", "hook", "verdict"):
            self._inside(kind, process, words)
        elif kind == "effect":
            self.effects[words[0]].append(int(words[1]))
        else:
            self._living(kind, process, words)
        self.now += 1

    def _begin(self, process: int, thread: str, what: str, task: str, asked: str, token: str, result: str) -> None:
        begun = _Open(what, self.now, asked, int(token), _result(result), asked if what == "run" else "")
        self._open[process, thread][task] = begun

    def _answer(self, process: int, kind: str, words: Sequence[str]) -> None:
        thread, *answer = words
        if SWEEP in self._open[process, thread]:
            self._swept(process, thread, kind, answer)
            return
        if kind == "said":
            ((task, begun),) = self._open.pop((process, thread)).items()
        else:
            task, *answer = answer
            begun = self._open[process, thread].pop(task)
        self._ended(process, task, begun, answer)

    def _living(self, kind: str, process: int, words: Sequence[str]) -> None:
        """What befalls a process as a whole."""
        if kind in ("killing", "leaving") or (kind == "point" and words[0] == "kill"):
            self._dying.setdefault(process, self.now)
        elif kind == "unlocked" and self._others_may_bury:
            for task in self._claimed[process]:
                self._note(Op(self.now, self.now, process, "lose", "ok"), task)
        elif kind == "gone":
            self._gone(process)

    def _note(self, op: Op, task: str) -> None:
        self.ops[task].append(op)

    def _op(self, process: int, task: str, begun: _Open, kind: str, answer: str, **more: object) -> None:
        op = Op(begun.begun, self.now, process, kind, answer, begun.token, 0, begun.result, begun.asked, MOST_ATTEMPTS)
        op = op._replace(**more)  # type: ignore[arg-type]
        self._note(op, task)
        may_be_granted = kind == "sweep" and (op.answer == "granted" or (op.answer == PENDING and op.asked == KEPT))
        if kind in ("claim", "verify") or may_be_granted:
            self._claimed[process].add(task)

    # --- inside a run -----------------------------------------------------------------------------------------------

    def _inside(self, kind: str, process: int, words: Sequence[str]) -> None:
        """A body, or a hook: what came before it has ended, and behind it something else begins."""
        ours = self._open.get((process, words[0]))
        if not ours:
            return  # of a claim, whose parts are calls
        if SWEEP in ours:
            self._inside_sweep(kind, process, words, ours)
            return
        ((task, begun),) = ours.items()
        match kind:
            case "hook":
                self._settled(process, task, begun)
                self._op(process, task, begun, "verify", "granted", token=int(words[2]))
                ours[task] = begun._replace(kind="hook", token=int(words[2]))
            case "verdict":
                ours[task] = begun._replace(kind="settle", begun=self.now, asked=words[1], result=_result(words[2]))
            case "in":
                self._settled(process, task, begun)
                token, attempt = int(words[2]), int(words[3])
                self._op(
                    process,
                    task,
                    begun,
                    "claim",
                    "granted",
                    token=token,
                    attempt=attempt,
                    asked=begun.policy,
                    result=None,
                )
                ours[task] = begun._replace(kind="body", token=token)
            case _:
                ours[task] = begun._replace(kind="finish", begun=self.now, asked=words[1], result=_result(words[2]))

    def _settled(self, process: int, task: str, begun: _Open) -> None:
        if begun.kind == "settle":
            self._op(process, task, begun, "settle", "ok")

    # --- sweeps -----------------------------------------------------------------------------------------------------

    def _inside_sweep(self, kind: str, process: int, words: Sequence[str], ours: dict[str, _Open]) -> None:
        """The body of one of the tasks that it runs again, one after the other."""
        if kind == "in":
            _, task, token, attempt = words
            claim = {"token": int(token), "attempt": int(attempt), "asked": _asked_of(task)}
            if int(attempt) > MOST_ATTEMPTS:
                self._op(process, task, ours[SWEEP], "bury", "ok")
            self._op(process, task, ours[SWEEP], "sweep", "granted", **claim)
            ours[task] = _Open("body", self.now, "", int(token), None)
        else:
            ((task, body),) = ((task, one) for task, one in ours.items() if one.kind == "body")
            ours[task] = body._replace(kind="finish", begun=self.now, asked=words[1], result=_result(words[2]))

    def _swept(self, process: int, thread: str, kind: str, words: Sequence[str]) -> None:
        """It tells of one task after the other; then it has ended, and has left alone whatever it did not tell of."""
        ours = self._open[process, thread]
        listed = self._listed.setdefault((process, thread), set())
        if kind == "got":
            task, *answer = words
            listed.add(task)
            if answer[0] == "settled":
                if task not in ours:  # else it was given up before it was run again, see "bury"
                    self._op(process, task, ours[SWEEP], "sweep", answer[1], asked=_asked_of(task))
            elif (begun := ours.pop(task, None)) is not None:
                self._ended(process, task, begun, answer)
            elif task in self._dead and _asked_of(task) != KEPT:  # what is kept is left where the file is busy
                self._op(process, task, ours[SWEEP], "sweep", "left", asked=_asked_of(task))
            return
        sweep = self._open.pop((process, thread)).pop(SWEEP)
        del self._listed[process, thread]
        for task, begun in ours.items():
            self._op(process, task, begun, "finish", "untold")
        if words[0] != "swept":
            return
        for task in [task for task, died_at in self._dead.items() if died_at < sweep.begun]:
            del self._dead[task]
            if task not in listed:
                self._op(process, task, sweep, "sweep", "untouched", asked=_asked_of(task))

    # --- the end ----------------------------------------------------------------------------------------------------

    def _ended(self, process: int, task: str, begun: _Open, words: Sequence[str]) -> None:
        answer = _TOLD.get(words[0], words[0])
        match begun.kind:
            case "settle" if answer == "lost":
                self._op(process, task, begun, "settle", "lost")
            case "settle" | "run" | "claim":
                self._settled(process, task, begun)
                if begun.kind != "settle" or (answer, begun.asked) != ("unknown", "cannot-tell"):
                    self._claim_ended(process, task, begun, answer, words[1:])
            case "finish" if begun.asked == INTERRUPTED and answer == NOTHING:  # the file was busy for its step
                self._op(process, task, begun, "finish", PENDING)
            case "finish" | "late":
                self._op(process, task, begun, "finish", answer)
                if words[0] == "not-recorded":
                    self._abandoned[process].append((task, begun._replace(begun=self.now, asked="unknown")))
            case "get":
                token, attempt, result = (*words[1:], "0", "0", "-")[:3]
                more = {"token": int(token), "attempt": int(attempt), "result": _result(result), "asked": answer}
                self._op(process, task, begun, "get", "ok", **more)
            case _:
                self._op(process, task, begun, begun.kind, answer)

    def _claim_ended(self, process: int, task: str, begun: _Open, answer: str, words: Sequence[str]) -> None:
        token, attempt, result = (*words, *("0", "0", "-")[len(words) :])
        self._op(
            process,
            task,
            begun,
            "claim",
            answer,
            token=int(token),
            attempt=int(attempt),
            result=_result(result),
            asked=begun.policy or begun.asked,
            batch=task.startswith("batch"),
        )

    def _gone(self, process: int) -> None:
        """What it was in the middle of has happened before its death, or never will."""
        for key in [key for key in self._open if key[0] == process]:
            for task, begun in self._open.pop(key).items():
                self._left_open(process, task, begun)
        for task, begun in self._abandoned.pop(process, ()):
            self._op(process, task, begun, "finish", PENDING)
        died_at = self._dying.get(process, self.now)
        for task in self._claimed.pop(process, ()):
            self._note(Op(died_at, self.now, process, "die", "ok"), task)
            self._dead[task] = self.now

    def _left_open(self, process: int, task: str, begun: _Open) -> None:
        asked = begun.policy or begun.asked
        match begun.kind:
            case "run" | "settle" | "claim":
                if begun.kind == "settle":
                    self._op(process, task, begun, "settle", PENDING)
                more = {"token": None, "asked": asked, "result": None, "batch": task.startswith("batch")}
                self._op(process, task, begun, "claim", PENDING, **more)
                if asked == "verify":
                    self._op(process, task, begun, "verify", PENDING, **more)
            case "finish":
                self._op(process, task, begun, "finish", PENDING)
            case "body" | "hook" | "get" | "late":  # a claim that has ended is ended by nobody once more
                pass
            case "sweep":
                for one in list(self.ops):
                    self._op(process, one, begun, "sweep", PENDING, token=None, result=None, asked=_asked_of(one))
            case _:
                self._op(process, task, begun, begun.kind, PENDING)

    def settle_effects(self) -> None:
        """A finish of a killed caller whose effect is in the file must have been recorded, and else must not."""
        for task, ops in self.ops.items():
            if task.startswith("effects"):
                self.ops[task] = [self._by_effect(op, self.effects[task]) for op in ops]

    @staticmethod
    def _by_effect(op: Op, tokens: Sequence[int]) -> Op:
        if (op.kind, op.answer, op.asked) != ("finish", PENDING, "succeeded"):
            return op
        return op._replace(answer="recorded" if op.token in tokens else NOTHING)


def _asked_of(task: str) -> str:
    """What a sweep may do about it: its policy, or that its arguments are kept."""
    kind = task.partition("-")[0]
    return KEPT if kind == KEPT else POLICIES[kind]


def _result(word: str) -> str | None:
    return None if word == "-" else word
