"""The judge of the simulation is right: each rule has a history that it calls a break, and one beside it that is none.

A history is what an observer would see, written down: who was told to do what, and what he committed; who entered a
body, died, lost his locks. No schedule is played, so a rule that was lost by mistake is missed here, whatever the
product does. A line is one of

    A: run a | a running 1.1 on=hold     A, told to run task a, commits that it runs, with token 1, in attempt 1
    A enters a 1, A leaves a 1           a body, by its token
    A begins a 1 s                       a step of the body
    A dies, A loses, A looks             it is killed; it loses its locks; it decides about a row
    A breaks a 1                         its job could not save a step, or was told to stop
    A tells a                            somebody is told how the task stands
    later 500                            milliseconds pass
    cut 1                                a power cut leaves what the first commit has left; ``cut 0`` leaves nothing
    cut 2 a                              it leaves what the second has left, but for task a

In a commit a task keeps its policy, its kept arguments (unless it becomes final) and its steps, and has no lease behind
its claim, unless it says otherwise.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from tests.simulator import model
from tests.simulator.beside import Lease, Step
from tests.simulator.crew import Crew
from tests.simulator.machine import Doing, Machine, Process
from tests.simulator.model import FINAL, RUNNING, SUCCEEDED, Body, Observer, Row

STATUSES = ("pending", "succeeded", "failed", "running", "unknown", "skipped", "cancelled")
POLICIES = {"rerun": 0, "verify": 1, "hold": 2}


class File:
    """What the observer reads, in place of a connection and of the index of the -wal."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.floor = 0
        self.effects: list[tuple[str, int]] = []
        self.orphans: list[str] = []  # tables with a row of a task that is not there
        self.raw = b"\0"
        self.frames = self.moved = 0

    @property
    def copies(self) -> File:
        return self

    def header(self) -> None:
        return None

    def close(self) -> None:
        """Nothing is open."""

    def execute(self, sql: str) -> File:
        self._asked = sql
        return self

    def fetchall(self) -> list[tuple[Any, ...]]:
        rows = self.rows.items()
        match self._asked:
            case model.ROWS:
                return [(task, *row[:8]) for task, row in rows]
            case model.LEASES:
                return [(task, *row.lease) for task, row in rows if row.lease] + self._orphan("lease", 1, 1)
            case model.KEPT:
                return [(task, row.kept) for task, row in rows if row.kept] + self._orphan("kept", "{}")
            case model.STEPS:
                return [(task, *step) for task, row in rows for step in row.steps] + self._orphan("step", "s", 1, "1")
            case "SELECT floor FROM idempotent_registry":
                return [(self.floor,)]
            case "SELECT task, token FROM effect":
                return list(self.effects)
        return []

    def _orphan(self, table: str, *values: Any) -> list[tuple[Any, ...]]:
        return [("gone", *values)] if table in self.orphans else []


class Witness(Observer):
    """The observer, before a file that is told to it."""

    def __init__(self, machine: Machine, file: File) -> None:
        super().__init__(machine, "")
        self._file = file
        self._open()

    def _open(self) -> None:
        told: Any = self._file
        self._connection = self._index = told


class Telling:
    """A history that is told line by line."""

    def __init__(self) -> None:
        self.machine = Machine(0, Crew())
        self.machine.style = self.machine.style._replace(namespaces=2)  # whoever has lost his locks counts as dead
        self.file = File()
        self.observer = Witness(self.machine, self.file)
        self.observer.look(self._process("A"))
        self._process("B")
        self._bodies: dict[tuple[str, str, int], Body] = {}
        self._states = [self.file.rows]

    def tell(self, line: str) -> str:
        """What is broken by then."""
        self.machine.now += 0.001
        who, _, what = line.partition(": ")
        if what:
            self._commit(self._process(who), *what.split(" | "))
        else:
            self._other(*line.split())
        return self.machine.violation

    def _process(self, name: str) -> Process:
        number = ord(name)
        if number not in self.machine.owner_of:
            self.machine.owner_of[number] = Process(self.machine, number - ord("A"), 1, 0.0)
        return self.machine.owner_of[number]

    def _other(self, who: str, verb: str, *words: str) -> None:
        observer = self.observer
        if who == "later":
            self.machine.now += int(verb) / 1_000
            return
        if who == "cut":
            self.file.rows = {task: row for task, row in self._states[int(verb)].items() if task not in words}
            observer.lost_power()
            observer._open()
            return
        process = self._process(who)
        if verb == "dies":
            process.is_dead = True
            observer.died(process)
        elif verb == "loses":
            process.has_lost = True
        elif verb == "looks":
            process.decided_at = self.machine.now
        elif verb == "tells":
            observer.require(words[0], observer.rows.get(words[0]))
        else:
            task, token = words[0], int(words[1])
            if verb == "enters":
                self._bodies[who, task, token] = observer.enter(process, task, token)
            elif verb == "leaves":
                observer.leave(self._bodies[who, task, token])
            elif verb == "begins":
                observer.enter_step(process, task, token, words[2])
            else:
                assert verb == "breaks"
                observer.interrupted.add((task, token))

    def _commit(self, process: Process, told: str, changes: str) -> None:
        words, options = _split(told)
        kind, task, option = (*words, "", "")[:3]
        lease_s = float(options["lease"]) if "lease" in options else None
        process.doing = Doing(kind, task, option, options.get("end", ""), lease_s, options.get("kept"))
        process.begun_ms = self.machine.boot_ms()
        self.file.rows = dict(self.file.rows)
        for change in changes.split(" ; "):
            self._change(process, *_split(change))
        self.file.raw += b"\0"
        self._states.append(self.file.rows)
        self.observer.look(process)

    def _change(self, process: Process, words: list[str], options: dict[str, str]) -> None:
        match words:
            case ["floor", floor]:
                self.file.floor = int(floor)
            case ["effect", task, by]:
                self.file.effects.append((task, int(by)))
            case ["no", "effect"]:
                self.file.effects.clear()
            case ["orphan", table]:
                self.file.orphans.append(table)
            case [task, "gone"]:
                del self.file.rows[task]
            case [task, status, number]:
                token, attempt = map(int, number.split("."))
                old = self.file.rows.get(task)
                row = self._row(process, task, STATUSES.index(status), token, attempt, old, options)
                self.file.rows[task] = row
                if "floor" not in options:
                    self.file.floor = max(self.file.floor, token)
            case _:
                raise AssertionError(words)

    def _row(
        self,
        process: Process,
        task: str,
        status: int,
        token: int,
        attempt: int,
        old: Row | None,
        options: dict[str, str],
    ) -> Row:
        stays = old is not None and (old.status, old.token) == (status, token)
        verdict = int(options["verdict"]) if "verdict" in options else None
        result = None
        if status == SUCCEEDED:
            results = {
                "job": {"task": task, "n": token, "pair": {"$": ["tuple", [1, token]]}},
                "verdict": {"settled": task},
                "other": {"task": task, "n": token + 1, "pair": [1, token]},
                "none": None,
            }
            result = json.dumps(results[options.get("result", "job" if verdict is None else "verdict")])
        return Row(
            status,
            token,
            attempt,
            ord(options.get("by", chr(process.slot + ord("A")))) if status == RUNNING else None,
            _policy(old, options),
            verdict,
            result,
            int(options["note"]) if "note" in options else old.note if old is not None and stays else None,
            self._lease(token, old if stays else None, options),
            _kept(status, old, options),
            _steps(old, options),
        )

    def _lease(self, token: int, old: Row | None, options: dict[str, str]) -> Lease | None:
        match options.get("lease", "").split("@"):
            case [""]:
                return None if old is None else old.lease
            case ["-"]:
                return None
            case [length, *of]:
                return Lease(int(of[0]) if of else token, self.machine.boot_ms() + round(float(length) * 1_000))
        raise AssertionError(options)


def _split(text: str) -> tuple[list[str], dict[str, str]]:
    words = text.split()
    options = dict(word.split("=") for word in words if "=" in word)
    return [word for word in words if "=" not in word], options


def _policy(old: Row | None, options: dict[str, str]) -> int:
    on_crash, holds, most = (2, False, 10) if old is None else (old.policy & 3, bool(old.policy & 4), old.policy >> 5)
    if "on" in options:
        on_crash = POLICIES[options["on"]]
    if "fails" in options:
        holds = options["fails"] == "hold"
    return on_crash | holds << 2 | int(options.get("most", most)) << 5


def _kept(status: int, old: Row | None, options: dict[str, str]) -> str | None:
    if "kept" in options:
        return None if options["kept"] == "-" else json.dumps({"n": options["kept"]})
    return None if old is None or status in FINAL else old.kept


def _steps(old: Row | None, options: dict[str, str]) -> tuple[Step, ...]:
    if "steps" not in options:
        return () if old is None else old.steps
    steps = []
    for word in options["steps"].split(",") if options["steps"] != "-" else ():
        name, token, *other = word.split(":")
        own = json.dumps({"step": name, "n": int(token)})
        steps.append(Step(name, int(token), {"other": '"other"', "none": None}[other[0]] if other else own))
    return tuple(steps)


class Rule(NamedTuple):
    """Behind ``before`` each of ``broken`` is a break that is told with those words; each of ``sound`` is none.

    Several lines are told one after the other; only the last may break anything.
    """

    words: str
    before: tuple[str, ...]
    broken: tuple[str | tuple[str, ...], ...]
    sound: tuple[str | tuple[str, ...], ...]


HELD = ("A: run a | a running 1.1 on=hold",)
RERUN = ("A: run a | a running 1.1 on=rerun",)
VERIFIED = ("A: run a | a running 1.1 on=verify",)
BATCH = ("A: batch a | a running 1.1 on=hold note=0",)
BATCH_VERIFIED = ("A: batch a | a running 1.1 on=verify note=0",)
LEASED = ("A: run a lease=1 | a running 1.1 on=rerun lease=1",)
LEASED_HELD = ("A: run a lease=1 | a running 1.1 on=hold lease=1",)
KEPT = ("A: keep a kept=n1 | a running 1.1 on=rerun kept=n1",)
STEPPED = (*RERUN, "A enters a 1", "A begins a 1 s", "A: run a | a running 1.1 steps=s:1")
FAILED = (*RERUN, "A enters a 1", "A leaves a 1", "A: run a | a failed 1.1")
DEAD = ("A enters a 1", "A dies")
UNKNOWN = (*HELD, *DEAD, "B: run a | a unknown 1.1")
ASKED = (*VERIFIED, *DEAD, "B: run a | a running 2.1")  # for the verify hook
HOOK_FAILED = (
    *("B: run a | a unknown 1.1", "B: run a | a running 2.1", "B: run a | a failed 2.1", "B: run a | a running 3.2"),
)
AGAIN = ("B: run a | a running 2.2", "B enters a 2")

RULES = {
    # --- what is seen of the file as a whole ------------------------------------------------------------------------
    "the floor only rises": Rule(
        "the token floor fell from 5 to 4",
        ("A: checkpoint | floor 5",),
        ("A: checkpoint | floor 4",),
        ("A: checkpoint | floor 5", "A: checkpoint | floor 6"),
    ),
    "nothing is left beside a row that is gone": Rule(
        "left behind by tasks that are gone",
        (),
        ("A: checkpoint | orphan lease", "A: checkpoint | orphan kept", "A: checkpoint | orphan step"),
        (
            "A: keep a kept=n1 lease=1 | a running 1.1 kept=n1 lease=1",
            (*STEPPED, "A: run a | a failed 1.1", "A: forget a | a gone"),
        ),
    ),
    "an effect stays": Rule(
        "an effect went",
        ("A: effect a | a running 1.1 on=rerun", "A: effect a | a succeeded 1.1 ; effect a 1"),
        ("B: run b | no effect",),
        ("B: run b | b running 1.1",),
    ),
    "an effect comes with its success": Rule(
        "an effect without its success",
        ("A: effect a | a running 1.1 on=rerun",),
        (
            "A: effect a | effect a 1",
            "A: effect a | a failed 1.1 ; effect a 1",
            "A: effect a | a succeeded 1.1 ; effect a 2",
            "A: effect a | effect b 1",
        ),
        ("A: effect a | a succeeded 1.1 ; effect a 1",),
    ),
    # --- what was over ----------------------------------------------------------------------------------------------
    "a final row never changes: succeeded": Rule(
        "a final row changed",
        (*HELD, "A: run a | a succeeded 1.1"),
        (
            "B: run a | a running 2.2",
            "A: run a | a succeeded 1.1 result=other",
            "A: run a | a failed 1.1",
            "A: cancel a | a cancelled 1.1",
        ),
        ("B: run b | b running 1.1", "A: forget a | a gone"),
    ),
    "a final row never changes: skipped": Rule(
        "a final row changed",
        ("A: add a | a pending 0.0", "A: skip a | a skipped 0.0"),
        ("B: run a | a running 1.1", "B: cancel a | a cancelled 0.0"),
        ("B: run b | b running 1.1", "A: purge | a gone"),
    ),
    "a final row never changes: cancelled": Rule(
        "a final row changed",
        (*FAILED, "B: cancel a | a cancelled 1.1"),
        ("B: run a | a running 2.2", "B: retry a | a failed 1.1 verdict=4"),
        ("B: run b | b running 1.1", "A: purge | a gone"),
    ),
    "a final row goes by forget and purge alone": Rule(
        "nobody asked for it",
        (*HELD, "A: run a | a succeeded 1.1"),
        ("A: run a | a gone", "A: sweep | a gone", "A: cancel a | a gone"),
        ("A: forget a | a gone", "A: purge | a gone"),
    ),
    "with a final row its token stays below the floor": Rule(
        "a row went, and the floor stayed below its token",
        ("A: run a | a running 3.1 floor=no ; floor 2", "A: run a | a succeeded 3.1 floor=no"),
        ("A: forget a | a gone",),
        ("A: forget a | a gone ; floor 3",),
    ),
    # --- what goes before it is over --------------------------------------------------------------------------------
    "a row goes by its own forget alone": Rule(
        "nobody asked for it",
        FAILED,
        ("A: purge | a gone", "A: forget b | a gone", "A: run a | a gone"),
        ("A: forget a | a gone",),
    ),
    "with a row its token stays below the floor": Rule(
        "a row went, and the floor stayed below its token",
        ("A: run a | a running 3.1 floor=no ; floor 2", "A: run a | a failed 3.1 floor=no"),
        ("A: forget a | a gone",),
        ("A: forget a | a gone ; floor 3",),
    ),
    "what runs is not forgotten": Rule(
        "it runs",
        LEASED,
        ("B: forget a | a gone", "B: forget a force | a gone", ("A dies", "B: forget a | a gone")),
        (
            ("A dies", "B: forget a force | a gone"),
            ("later 1500", "B: forget a force | a gone"),
            ("A loses", "B: forget a force | a gone"),
        ),
    ),
    "what is unknown is forgotten by force": Rule(
        "not without force", UNKNOWN, ("B: forget a | a gone",), ("B: forget a force | a gone",)
    ),
    # --- claims -----------------------------------------------------------------------------------------------------
    "a token is above all that a task had": Rule(
        "is not above",
        ("A: run a | a running 2.1 on=rerun", "A: run a | a failed 2.1"),
        (
            "A: run a | a running 2.2",
            "A: run a | a running 1.2",
            ("A: forget a | a gone", "A: run a | a running 2.1"),
        ),
        ("A: run a | a running 3.2", ("A: forget a | a gone", "A: run a | a running 3.1")),
    ),
    "a claim is one's own": Rule(
        "claimed for another owner", (), ("A: run a | a running 1.1 by=B",), ("A: run a | a running 1.1 by=A",)
    ),
    "attempts are counted from the first": Rule(
        "wrong attempt",
        (),
        (
            "A: run a | a running 1.2",
            "A: run a | a running 1.0",
            ("A: add a | a pending 0.0", "A: run a | a running 1.0"),
        ),
        ("A: run a | a running 1.1", ("A: add a | a pending 0.0", "A: run a | a running 1.1")),
    ),
    "attempts are counted behind a failure": Rule(
        "it may not be tried again", FAILED, ("B: run a | a running 2.1", "B: run a | a running 2.3"), (AGAIN,)
    ),
    "what fails and is held stays so": Rule(
        "it may not be tried again",
        ("A: run a | a running 1.1 fails=hold", "A: run a | a failed 1.1"),
        ("B: run a | a running 2.2", "B: run a | a running 2.2 fails=retry"),
        (("B: retry a | a failed 1.1 verdict=4", "B: run a | a running 2.2"),),
    ),
    "who asks for it as held does not try it again": Rule(
        "it may not be tried again", FAILED, ("B: run a | a running 2.2 fails=hold",), ("B: run a | a running 2.2",)
    ),
    "a verdict that it did not happen lets what is held run": Rule(
        "it may not be tried again",
        ("A: run a | a running 1.1 fails=hold most=1", "A: run a | a failed 1.1 verdict=2"),
        ("B: run a | a running 2.2",),  # no attempt is left
        ("B: run a | a running 2.2 most=2",),
    ),
    "attempts are bounded": Rule(
        "it may not be tried again",
        ("A: run a | a running 1.1 most=1", "A: run a | a failed 1.1"),
        ("B: run a | a running 2.2",),
        ("B: run a | a running 2.2 most=2", ("B: retry a | a failed 1.1 verdict=4", "B: run a | a running 2.2")),
    ),
    "a sweep runs what keeps its arguments": Rule(
        "a sweep ran what keeps no arguments",
        (),
        ("B: sweep | a running 1.1", (*RERUN, "A dies", "B: sweep | a running 2.2")),
        ((*KEPT, "A dies", "B: sweep | a running 2.2"),),
    ),
    "a sweep runs what began": Rule(
        "a sweep ran what never began",
        KEPT,
        (("A: keep a | a pending 1.0", "B: sweep | a running 2.1"),),
        (("A enters a 1", "A: keep a | a pending 1.1", "B: sweep | a running 2.2"),),
    ),
    "a sweep runs no failure by itself": Rule(
        "a sweep ran again what simply failed",
        (*KEPT, "A: keep a | a failed 1.1"),
        ("B: sweep | a running 2.2",),
        (("B: retry a | a failed 1.1 verdict=4", "B: sweep | a running 2.2"), "B: keep a kept=n1 | a running 2.2"),
    ),
    # --- claims over a claim ----------------------------------------------------------------------------------------
    "who lives is not replaced": Rule(
        "its owner lives",
        LEASED,
        ("B: run a | a running 2.2", ("later 900", "B: run a | a running 2.2")),
        (
            ("later 1100", "B: run a | a running 2.2"),
            "A: run a | a running 2.2",
            ("A dies", "B: run a | a running 2.2"),
            ("A loses", "B: run a | a running 2.2"),
        ),
    ),
    "what is held is not taken over": Rule(
        "only a rerun may be taken over",
        (*HELD, "A dies"),
        ("B: run a | a running 2.2", "B: run a | a running 2.2 on=rerun"),
        ("B: run a | a unknown 1.1",),
    ),
    "who asks for it as held takes nothing over": Rule(
        "only a rerun may be taken over",
        (*RERUN, "A dies"),
        ("B: run a | a running 2.2 on=hold", "B: run a | a running 2.2 on=verify"),
        ("B: run a | a running 2.2",),
    ),
    "no more is taken over than there are attempts": Rule(
        "only a rerun may be taken over",
        ("A: run a | a running 1.1 on=rerun most=1", "A dies"),
        ("B: run a | a running 2.2",),
        ("B: run a | a running 2.2 most=2", "B: run a | a failed 1.1"),
    ),
    "of a batch what was not entered is put back": Rule(
        "nobody may claim it",
        BATCH,
        (("A enters a 1", "A dies", "B: run a | a running 2.1"),),
        (("A dies", "B: run a | a running 2.1", "B enters a 2"),),
    ),
    "of a batch the entry that comes behind the look is a late one's": Rule(
        "nobody may claim it",
        (*BATCH, "A loses"),
        (("A enters a 1", "B looks", "B: run a | a running 2.1"),),
        (("B looks", "A enters a 1", "A dies", "B: run a | a running 2.1", "B enters a 2"),),
    ),
    "a batch's owner that has its locks is not late": Rule(
        "nobody may claim it",
        BATCH,
        (("B looks", "A enters a 1", "A dies", "B: run a | a running 2.1"),),
        (("B looks", "A dies", "B: run a | a running 2.1"),),
    ),
    "what is of no batch is not put back": Rule(
        "nobody may claim it", (*HELD, "A dies"), ("B: run a | a running 2.1",), ("B: run a | a unknown 1.1",)
    ),
    "a hook is asked under verify alone": Rule(
        "nobody may claim it",
        UNKNOWN,
        ("B: run a | a running 2.1", "B: run a | a running 2.1 on=verify", "B: run a | a running 2.2"),
        ("B: resolve a did-not-happen | a failed 1.1 verdict=2",),
    ),
    "a hook is asked in the same attempt": Rule(
        "nobody may claim it",
        (*VERIFIED, *DEAD, "B: run a | a unknown 1.1"),
        ("B: run a | a running 2.2", "B: run a | a running 2.1 on=rerun"),
        ("B: run a | a running 2.1",),
    ),
    # --- ends -------------------------------------------------------------------------------------------------------
    "an end has its claim's token": Rule(
        "another token", HELD, ("A: run a | a failed 2.1", "A: run a | a succeeded 0.1"), ("A: run a | a failed 1.1",)
    ),
    "a claim goes on by its owner": Rule(
        "it runs",
        LEASED,
        (
            "B: run a lease=1 | a running 1.1 lease=2 by=A",
            "A: run a lease=1 | a running 1.2 lease=1",
            "A: run a lease=1 | a running 1.1 lease=1 on=hold",
            "A: run a lease=1 | a running 1.1 note=4",
        ),
        ("A: run a lease=1 | a running 1.1 lease=1",),
    ),
    "nobody else ends what lives": Rule(
        "its owner lives",
        LEASED,
        (
            "B: run a | a unknown 1.1",
            "B: resolve a happened | a succeeded 1.1 verdict=1",
            "B: cancel a | a cancelled 1.1",
            "B: run a | a failed 1.1",
        ),
        (
            ("A dies", "B: run a | a unknown 1.1"),
            ("A loses", "B: run a | a unknown 1.1"),
            ("later 1100", "B: run a | a unknown 1.1"),
            "A: run a | a unknown 1.1",
        ),
    ),
    "what is held fails by a verdict alone": Rule(
        "not by itself",
        (*HELD, *DEAD),
        ("B: run a | a failed 1.1", "B: resolve a did-not-happen | a failed 1.1 verdict=3"),
        (("B: resolve a did-not-happen | a failed 1.1 verdict=2", *AGAIN),),
    ),
    "a dead one's task ends by an operator of that task": Rule(
        "nobody asked for it",
        (*HELD, *DEAD),
        (
            "B: resolve b happened | a succeeded 1.1 verdict=1",
            "B: run a | a succeeded 1.1 verdict=1",
            "B: run a | a failed 1.1 verdict=2",
            "B: cancel b | a cancelled 1.1",
        ),
        ("B: resolve a happened | a succeeded 1.1 verdict=1", "B: cancel a | a cancelled 1.1"),
    ),
    "nor does its owner end it otherwise than a job ends": Rule(
        "nobody asked for it",
        HELD,
        ("A: run a | a cancelled 1.1", "A: run a | a skipped 1.1"),
        ("A: run a | a failed 1.1", "A: run a | a unknown 1.1"),
    ),
    "an operator's word is what comes of it": Rule(
        "not what was asked for",
        UNKNOWN,
        (
            "B: resolve a did-not-happen | a succeeded 1.1 verdict=1",
            "B: resolve a happened | a failed 1.1 verdict=2",
            "B: resolve a cannot-tell | a failed 1.1 verdict=2",
            "B: cancel a | a failed 1.1 verdict=2",
            "B: resolve a happened | a cancelled 1.1",
        ),
        (
            "B: resolve a happened | a succeeded 1.1 verdict=1",
            "B: resolve a did-not-happen | a failed 1.1 verdict=2",
            "B: resolve a cannot-tell | a unknown 1.1 verdict=3",
            "B: cancel a | a cancelled 1.1",
        ),
    ),
    "a job's result is stored": Rule(
        "another result than its job's",
        HELD,
        (
            "A: run a | a succeeded 1.1 result=other",
            "A: run a | a succeeded 1.1 result=none",
            "A: run a | a succeeded 1.1 result=verdict",
        ),
        ("A: run a | a succeeded 1.1",),
    ),
    "an operator's result is stored": Rule(
        "another result than it was given",
        UNKNOWN,
        (
            "B: resolve a happened | a succeeded 1.1 verdict=1 result=other",
            "B: resolve a happened | a succeeded 1.1 verdict=1 result=job",
        ),
        ("B: resolve a happened | a succeeded 1.1 verdict=1",),
    ),
    "a success comes with its effect": Rule(
        "without its effect",
        ("A: effect a | a running 1.1 on=rerun",),
        ("A: effect a | a succeeded 1.1",),
        (
            "A: effect a | a succeeded 1.1 ; effect a 1",
            "A: effect a | a failed 1.1",
            "A: run a | a succeeded 1.1",
        ),
    ),
    "what was not entered is put back as it was": Rule(
        "wrong attempt", HELD, ("A: run a | a pending 1.1",), ("A: run a | a pending 1.0",)
    ),
    "what was entered is put back with its attempt counted": Rule(
        "wrong attempt", (*HELD, "A enters a 1"), ("A: run a | a pending 1.0",), ("A: run a | a pending 1.1",)
    ),
    "a job may want to be put back as it was": Rule(
        "wrong attempt",
        (*HELD, "A enters a 1"),
        ("A: run a end=back | a pending 1.1", ("A breaks a 1", "A: run a end=back | a pending 1.0")),
        ("A: run a end=back | a pending 1.0", ("A breaks a 1", "A: run a end=back | a pending 1.1")),
    ),
    # --- what is settled --------------------------------------------------------------------------------------------
    "nothing comes out of nothing": Rule(
        "out of nothing",
        (),
        ("A: run a | a pending 0.0", "A: add a | a failed 0.0", "A: skip a | a skipped 0.0"),
        ("A: add a | a pending 0.0",),
    ),
    "to settle changes no token": Rule(
        "another token",
        FAILED,
        ("B: retry a | a failed 2.1 verdict=4", "B: cancel a | a cancelled 2.1"),
        ("B: retry a | a failed 1.1 verdict=4", "B: cancel a | a cancelled 1.1"),
    ),
    "what is unknown is settled by an operator of that task": Rule(
        "nobody asked for it",
        UNKNOWN,
        (
            "B: resolve b did-not-happen | a failed 1.1 verdict=2",
            "B: run a | a failed 1.1 verdict=2",
            "B: sweep | a succeeded 1.1 verdict=1",
        ),
        ("B: resolve a did-not-happen | a failed 1.1 verdict=2",),
    ),
    "a retry is asked for": Rule(
        "nobody asked for it",
        FAILED,
        ("B: run a | a failed 1.1 verdict=4", "B: retry b | a failed 1.1 verdict=4"),
        ("B: retry a | a failed 1.1 verdict=4",),
    ),
    "to skip and to cancel are asked for": Rule(
        "nobody asked for it",
        ("A: add a | a pending 0.0",),
        (
            "A: skip b | a skipped 0.0",
            "A: run a | a skipped 0.0",
            "A: cancel b | a cancelled 0.0",
            "A: skip a | a cancelled 0.0",
            "A: cancel a | a skipped 0.0",
            "A: skip a | a failed 0.0",
            "A: retry a | a failed 0.0 verdict=4",
        ),
        ("A: skip a | a skipped 0.0", "A: cancel a | a cancelled 0.0"),
    ),
    "what has failed is not skipped": Rule(
        "nobody asked for it", FAILED, ("A: skip a | a skipped 1.1",), ("A: cancel a | a cancelled 1.1",)
    ),
    # --- what lies beside a row -------------------------------------------------------------------------------------
    "a claim leaves the steps": Rule(
        "a claim changed the steps",
        (*STEPPED, "A dies"),
        ("B: run a | a running 2.2 steps=-", "B: run a | a running 2.2 steps=s:1,t:2"),
        ("B: run a | a running 2.2",),
    ),
    "a claim begins without steps": Rule(
        "a claim changed the steps", (), ("A: run a | a running 1.1 steps=s:1",), ("A: run a | a running 1.1",)
    ),
    "a lease is asked for": Rule(
        "it has a lease, which nobody asked for",
        (),
        ("A: run a | a running 1.1 lease=1",),
        ("A: run a | a running 1.1", "A: run a lease=1 | a running 1.1 lease=1"),
    ),
    "a hook has no lease": Rule(
        "it has a lease, which nobody asked for",
        (*VERIFIED, *DEAD),
        ("B: run a lease=1 | a running 2.1 lease=1",),
        ("B: run a lease=1 | a running 2.1",),
    ),
    "what was in a batch may be asked about": Rule(
        "it has the lease",
        (),
        (
            (*BATCH, "A dies", "B: run a lease=1 | a running 2.1"),
            "A: run a lease=1 | a running 1.1 on=verify",
            (*VERIFIED, "A: run a | a failed 1.1", "B: run a lease=1 | a running 2.2"),
        ),
        (
            (*BATCH_VERIFIED, "A dies", "B: run a lease=1 | a running 2.1"),
            (*BATCH_VERIFIED, "A dies", "B: run a lease=1 | a running 2.1 lease=1"),
        ),
    ),
    "what was asked for as leased is": Rule(
        "it has the lease",
        (),
        ("A: run a lease=1 | a running 1.1", "A: run a lease=1 | a running 1.1 lease=1@2"),
        ("A: run a lease=1 | a running 1.1 lease=1",),
    ),
    "a lease is as long as it was to be": Rule(
        "its lease was given at",
        (),
        ("A: run a lease=1 | a running 1.1 lease=1.5", "A: run a lease=1 | a running 1.1 lease=0.5"),
        ("A: run a lease=1 | a running 1.1 lease=1",),
    ),
    "a sweep keeps the arguments": Rule(
        "a sweep changed the arguments",
        (*KEPT, "A dies"),
        ("B: sweep | a running 2.2 kept=n2", "B: sweep | a running 2.2 kept=-"),
        ("B: sweep | a running 2.2",),
    ),
    "a claim keeps what it was called with": Rule(
        "and was to keep",
        (),
        (
            "A: keep a kept=n1 | a running 1.1",
            "A: keep a kept=n1 | a running 1.1 kept=n2",
            "A: run a | a running 1.1 kept=n1",
            (*KEPT, "A dies", "B: keep a kept=n2 | a running 2.2"),
        ),
        (KEPT, (*KEPT, "A dies", "B: keep a kept=n2 | a running 2.2 kept=n2")),
    ),
    "arguments stay through a claim": Rule(
        "the arguments changed",
        KEPT,
        ("A: keep a | a running 1.1 kept=n2", "A: keep a | a running 1.1 kept=-"),
        ("A: keep b kept=n2 | b running 1.1 kept=n2",),
    ),
    "a lease only grows": Rule(
        "its lease was",
        LEASED,
        (
            "A: run a lease=1 | a running 1.1 lease=-",
            "A: run a lease=1 | a running 1.1 lease=0.5",
            "A: run a lease=0.5 | a running 1.1 lease=0.5",
            "A: run a | a running 1.1 lease=1.5",
        ),
        ("A: run a lease=1 | a running 1.1 lease=1",),
    ),
    "no lease comes of itself": Rule(
        "its lease was", RERUN, ("A: run a lease=1 | a running 1.1 lease=1",), ("B: run b | b running 1.1",)
    ),
    "a lease grows by as much as it was to last": Rule(
        "its lease was given at",
        LEASED,
        ("A: run a lease=1 | a running 1.1 lease=1.5",),
        (("later 500", "A: run a lease=1 | a running 1.1 lease=1"),),
    ),
    "a step is saved behind its end": Rule(
        "its steps were",
        (*STEPPED, "A begins a 1 t"),
        (
            "A: run a | a running 1.1 steps=-",
            "A: run a | a running 1.1 steps=t:1",
            "A: run a | a running 1.1 steps=s:1,u:1",
            "A: run a | a running 1.1 steps=s:1,t:2",
            "A: run a | a running 1.1 steps=s:1,t:1,t:1",
            ("A: run b | b running 1.1", "A: run b | b running 1.1 steps=t:1"),
        ),
        ("A: run a | a running 1.1 steps=s:1,t:1",),
    ),
    "a step is saved that was begun": Rule(
        "its steps were",
        (*RERUN, "A enters a 1"),
        ("A: run a | a running 1.1 steps=s:1",),
        (("A begins a 1 s", "A: run a | a running 1.1 steps=s:1"),),
    ),
    "a step is saved with what it gave": Rule(
        "was saved with",
        (*RERUN, "A enters a 1", "A begins a 1 s"),
        ("A: run a | a running 1.1 steps=s:1:other", "A: run a | a running 1.1 steps=s:1:none"),
        ("A: run a | a running 1.1 steps=s:1",),
    ),
    "a lease ends with its claim": Rule(
        "its lease stays behind its claim", LEASED, ("A: run a | a failed 1.1 lease=1",), ("A: run a | a failed 1.1",)
    ),
    "an end leaves the steps": Rule(
        "an end changed the steps",
        STEPPED,
        ("A: run a | a failed 1.1 steps=-", "A: run a | a succeeded 1.1 steps=s:1,t:1"),
        ("A: run a | a failed 1.1", "A: run a | a succeeded 1.1"),
    ),
    "what is final keeps no arguments": Rule(
        "it is final, and keeps its arguments",
        KEPT,
        ("A: keep a | a succeeded 1.1 kept=n1", ("A dies", "B: cancel a | a cancelled 1.1 kept=n1")),
        ("A: keep a | a succeeded 1.1", ("A dies", "B: cancel a | a cancelled 1.1")),
    ),
    "what is not final keeps its arguments": Rule(
        "the arguments changed",
        (*KEPT, "A enters a 1"),
        (
            "A: keep a | a failed 1.1 kept=-",
            "A: keep a | a pending 1.1 kept=-",
            "A: keep a | a unknown 1.1 kept=n2",
            "A: keep a | a failed 1.0 kept=-",
        ),
        ("A: keep a | a failed 1.1", "A: keep a end=back | a pending 1.0 kept=-"),
    ),
    # --- bodies -----------------------------------------------------------------------------------------------------
    "no two bodies of a task run": Rule(
        "is entered, and runs in process 0.1",
        (*RERUN, "A enters a 1"),
        (("A: run a | a pending 1.1", *AGAIN),),
        (
            ("A leaves a 1", "A: run a | a pending 1.1", *AGAIN),
            ("A: run a | a pending 1.1", "A dies", *AGAIN),
            ("A: run a | a pending 1.1", "A loses", *AGAIN),
            ("A: run a | a pending 1.1", "B: run a | a running 2.2", "B loses", "B enters a 2"),
            ("B: run b | b running 1.1", "B enters b 1"),
        ),
    ),
    "no two bodies of a task run, whose lease is good": Rule(
        "is entered, and runs in process 0.1",
        (*LEASED, "A enters a 1"),
        (("A: run a | a pending 1.1", *AGAIN),),
        (("later 1100", *AGAIN),),
    ),
    "a body is entered under its claim": Rule(
        "and its row is",
        RERUN,
        (
            "A enters a 2",
            "B enters a 1",
            "A enters b 1",
            ("A: run a | a pending 1.0", "A enters a 1"),
            ("A: run a | a failed 1.1", "A enters a 1"),
        ),
        (
            ("A enters a 1", "A dies", "A leaves a 1"),
            ("A loses", "A: run a | a pending 1.0", "A enters a 1"),
            ("A dies", *AGAIN, "A enters a 1"),
        ),
    ),
    "who is late enters what is another's by now": Rule(
        "and its row is",
        LEASED,
        (("A: run a | a failed 1.1", "A enters a 1"),),
        (("later 1100", *AGAIN, "A enters a 1"),),
    ),
    "a claim is entered once": Rule(
        "is entered twice with token",
        (*RERUN, "A enters a 1", "A leaves a 1"),
        ("A enters a 1",),
        (("A: run a | a failed 1.1", "A: run a | a running 2.2", "A enters a 2"),),
    ),
    "a hook's claim is not entered": Rule(
        "by a claim for the verify hook",
        ASKED,
        ("B enters a 2",),
        (("B: run a | a failed 2.1 verdict=2", "B: run a | a running 3.2", "B enters a 3"),),
    ),
    "what is held is not entered again without a verdict": Rule(
        "is entered again without a verdict, after token 0.1",
        ASKED,
        (("B: run a | a failed 2.1", "B: run a | a running 3.2", "B enters a 3"),),
        (
            ("B: run a | a failed 2.1 verdict=2", "B: run a | a running 3.2", "B enters a 3"),
            ("B: run a | a failed 2.1", "B: run a | a running 3.2", "B loses", "B enters a 3"),
        ),
    ),
    "a verdict that nobody can tell is none": Rule(
        "is entered again without a verdict, after token 0.1",
        (*VERIFIED, *DEAD, "B: run a | a unknown 1.1", "B: resolve a cannot-tell | a unknown 1.1 verdict=3"),
        ((*HOOK_FAILED[1:], "B enters a 3"),),
        (("B: resolve a did-not-happen | a failed 1.1 verdict=2", *AGAIN),),
    ),
    "who dies blocks what is his": Rule(
        "is entered twice",
        (*HELD, "A enters a 1", "A leaves a 1", "B dies"),
        ("A enters a 1",),
        (("A: run a | a pending 1.1", "A: run a | a running 2.2", "A enters a 2"),),
    ),
    "nor where its owner lost its locks": Rule(
        "is entered again without a verdict, after token 0.1",
        (*VERIFIED, "A enters a 1", "A leaves a 1", "A loses", "B: run a | a unknown 1.1", "B: run a | a running 2.1"),
        (("B: run a | a failed 2.1", "B: run a | a running 3.2", "B enters a 3"),),
        (("B: run a | a failed 2.1 verdict=2", "B: run a | a running 3.2", "B enters a 3"),),
    ),
    "what was not entered may be": Rule(
        "is entered again without a verdict, after token 0.1",
        VERIFIED,
        ((*DEAD, *HOOK_FAILED, "B enters a 3"),),
        (("A dies", *HOOK_FAILED, "B enters a 3"),),
    ),
    "an operator's verdict counts": Rule(
        "nobody may claim it",
        UNKNOWN,
        ("B: run a | a running 2.2",),
        (
            ("B: resolve a did-not-happen | a failed 1.1 verdict=2", *AGAIN),
            ("B: cancel a | a cancelled 1.1", "B: purge | a gone", "B: run a | a running 2.1", "B enters a 2"),
            ("B: forget a force | a gone", "B: run a | a running 2.1", "B enters a 2"),
        ),
    ),
    "a step that is saved is not run again": Rule(
        "step s is run again, and was saved with token 0.1",
        STEPPED,
        ("A begins a 1 s", ("A dies", *AGAIN, "B begins a 2 s")),
        ("A begins a 1 t", ("A loses", "A begins a 1 s"), ("A dies", *AGAIN, "A begins a 1 s")),
    ),
    "whose lease is over runs a step again": Rule(
        "step s is run again, and was saved with token 0.1",
        (*LEASED, "A enters a 1", "A begins a 1 s", "A: run a | a running 1.1 steps=s:1"),
        (
            ("later 900", "A begins a 1 s"),
            ("A: run a | a pending 1.1", "B: run a lease=1 | a running 2.2 lease=1", "later 1100", "A begins a 1 s"),
        ),
        (("later 1100", "A begins a 1 s"), ("later 1100", *AGAIN, "A begins a 1 s")),
    ),
    # --- a power cut ------------------------------------------------------------------------------------------------
    "a power cut leaves what was": Rule(
        "is none that ever was",
        ("A: run a | a running 1.1 on=rerun", "A: run a | a failed 1.1 ; b running 1.1 on=rerun"),
        ("cut 2 a", "cut 2 b"),
        ("cut 0", "cut 1", "cut 2"),
    ),
    "a held claim outlives a power cut once it was entered, and so do kept arguments": Rule(
        "is of 1 commits before one told of",
        (),
        ((*HELD, "A enters a 1", "cut 0"), (*VERIFIED, "A enters a 1", "cut 0"), (*KEPT, "A enters a 1", "cut 0")),
        (
            (*HELD, "A enters a 1", "cut 1"),
            (*HELD, "cut 0"),
            (*KEPT, "cut 0"),
            (*RERUN, "A enters a 1", "cut 0"),
            (*LEASED_HELD, "later 1100", "B: run a | a unknown 1.1", "A enters a 1", "cut 1"),
        ),
    ),
    "what somebody was told outlives a power cut": Rule(
        "is of 1 commits before one told of",
        (),
        (
            (*RERUN, "A tells a", "cut 0"),
            (*FAILED, "A: forget a | a gone", "A tells a", "cut 2"),
        ),
        (
            (*RERUN, "A tells b", "cut 0"),
            (*RERUN, "A tells a", "A: run a | a failed 1.1", "cut 1"),
            (*FAILED, "A: forget a | a gone", "cut 2"),
        ),
    ),
    "what a power cut has left outlives the next": Rule(
        "is of 3 commits before one told of",
        (*RERUN, "A: run a | a failed 1.1", "cut 1"),
        ("cut 0",),
        ("cut 1",),
    ),
    "what a power cut has left is what the next goes on from": Rule(
        "wrong attempt",
        (*RERUN, "A: run a | a failed 1.1", "cut 0"),
        ("B: run a | a running 2.2",),
        ("B: run a | a running 2.1",),
    ),
    "what is unknown is so behind a power cut": Rule(
        "is entered again without a verdict, after token 0.1",
        (*VERIFIED, *DEAD, "B: run a | a unknown 1.1", "B: resolve a did-not-happen | a failed 1.1 verdict=2"),
        (
            ("cut 1", *HOOK_FAILED, "B enters a 3"),
            ("cut 2", *HOOK_FAILED[1:], "B enters a 3"),
        ),
        (("cut 3", *AGAIN),),
    ),
    "what is not held, or was not entered, is free behind a power cut": Rule(
        "is entered twice",
        (),
        ((*RERUN, *DEAD, "cut 1", *AGAIN, "B leaves a 2", "B enters a 2"),),
        (
            (*RERUN, *DEAD, "cut 1", *AGAIN),
            (*HELD, "A enters a 1", "A leaves a 1", "A: run a | a failed 1.1", "A dies", "cut 2", *AGAIN),
            (*VERIFIED, "A dies", "cut 1", *HOOK_FAILED, "B enters a 3"),
        ),
    ),
    "what is held is known behind a power cut": Rule(
        "is entered again without a verdict, after token 0.1",
        (*VERIFIED, *DEAD, "cut 1", "B: run a | a running 2.1"),
        (("B: run a | a failed 2.1", "B: run a | a running 3.2", "B enters a 3"),),
        (("B: run a | a failed 2.1 verdict=2", "B: run a | a running 3.2", "B enters a 3"),),
    ),
}


def told(*parts: str | tuple[str, ...]) -> list[str]:
    return [line for part in parts for line in ((part,) if isinstance(part, str) else part)]


def cases(which: str) -> list[Any]:
    return [
        pytest.param(rule, one, id=f"{name}: {told(one)[-1]}")
        for name, rule in RULES.items()
        for one in getattr(rule, which)
    ]


@pytest.mark.parametrize(("rule", "lines"), cases("broken"))
def test_a_break_is_called_one(rule: Rule, lines: str | tuple[str, ...]) -> None:
    """By the last line, and by that rule."""
    telling = Telling()
    *before, last = told(rule.before, lines)
    assert [telling.tell(line) for line in before] == [""] * len(before)
    assert rule.words in telling.tell(last)


@pytest.mark.parametrize(("rule", "lines"), cases("sound"))
def test_what_may_be_is_none(rule: Rule, lines: str | tuple[str, ...]) -> None:
    """Not one of the lines is."""
    telling = Telling()
    for line in told(rule.before, lines):
        assert telling.tell(line) == ""
