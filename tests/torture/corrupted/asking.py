"""A registry over corrupted files is asked all that it can be asked; what it must not answer is a violation."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from idemreg import IdemregError, Registry, current_claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from random import Random

    from tests.torture.corrupted.damage import Damaged
    from tests.torture.corrupted.series import Known, Stage

__all__ = ["HANG_S", "Questions"]

HANG_S: Final = 5.0
BUSY_S: Final = 1.0
DAY_S: Final = 86_400


class Questions:
    """Asked about one registry; ``wrong`` says what was broken."""

    def __init__(self, path: Path, stage: Stage, damaged: Damaged, dice: Random) -> None:
        self.path, self.stage, self.damaged, self.dice = path, stage, damaged, dice
        self.wrong: list[str] = []
        self.said: Counter[str] = Counter()
        self.known: dict[str, Known] = dict(stage.known)
        self.entered: Counter[str] = Counter()
        self.is_excused = False  # a row is absent, or its task was entered, where the README promises nothing
        self.made = 0

    @contextlib.contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """A typed error is an answer; any other is not, nor is one that takes too long."""
        begun = time.monotonic()
        try:
            yield
        except IdemregError as error:
            self.said[type(error).__name__] += 1
        except Exception as error:  # noqa: BLE001 - that is the question
            self.wrong.append(f"{what} raised {error!r}")
        if (seconds := time.monotonic() - begun) > HANG_S:
            self.wrong.append(f"{what} took {seconds:.1f} s")

    def body(self, task: str, meanwhile: Callable[[], object] | None = None) -> Callable[[], str]:
        def entered() -> str:
            self.entered[task] += 1
            if meanwhile is not None:
                meanwhile()
            claim = current_claim()
            if claim.token <= self.damaged.top:
                self.wrong.append(f"{task} got token {claim.token}, and {self.damaged.top} was given before")
            return f"ran {task}"

        return entered

    def ask_all(self) -> None:
        """Open, ask in any order, close; sometimes the next opener is asked as well."""
        for is_last in (self.dice.random() < 0.8, True):
            with self.asking("opening"):
                self.ask(Registry(self.path, busy_timeout=BUSY_S))
            if is_last:
                return

    def ask(self, registry: Registry) -> None:
        questions: list[Callable[[Registry], object]] = [self.replays, self.looks, self.lists, self.upkeep, self.new]
        if self.dice.random() < 0.1:
            questions.append(self.examine)
        self.dice.shuffle(questions)
        if not self.is_open(registry):
            questions = questions[:2]
        for question in questions[: self.dice.randint(2, len(questions))]:
            question(registry)
        if self.is_open(registry):
            self.replays(registry, share=1.0)
        with self.asking("close"):
            registry.close()

    def replays(self, registry: Registry, share: float = 0.2) -> None:
        """What has ended is replayed, and never entered."""
        if not self.is_open(registry):
            return
        for task, known in self.known.items():
            if known.may_run or self.dice.random() > share:
                continue
            with self.asking(f"run {task}"):
                outcome = registry.run(task, self.body(task), name="job", on_failure="hold")
                if task in self.entered and self.entered[task] > (known.status == "new"):
                    continue
                self.said["replays"] += 1
                if known.result is None or not outcome.replayed or outcome.result != known.result:
                    self.wrong.append(f"{task} was {known}, and is answered {str(outcome)[:300]}")
        for task, times in self.entered.items():
            known_now = self.known.get(task)
            if known_now and not known_now.may_run and times > (known_now.status == "new"):
                self.forgotten(f"{task} was {known_now.status}, and was entered")
                self.known.pop(task)

    def is_open(self, registry: Registry) -> bool:
        """Whether it opens at all: what is refused once need not be asked a hundred times."""
        refused = sum(self.said.values()) + len(self.wrong)
        with self.asking("open"):
            registry.open()
        return refused == sum(self.said.values()) + len(self.wrong)

    def looks(self, registry: Registry) -> None:
        """No row that was told of is absent, nor of another status."""
        if not self.is_open(registry):
            return
        for task in self.dice.sample([*self.known], min(20, len(self.known))):
            with self.asking(f"get {task}"):
                row = registry.get(task)
                known = self.known[task]
                if row is None:
                    self.absent(task, "get")
                elif not known.may_run and row.status.name.lower() not in self.may_be(known):
                    self.wrong.append(f"{task} was {known.status}, and get says {row.status.name}")

    def may_be(self, known: Known) -> tuple[str, ...]:
        if known.status == "running":
            return "running", "unknown"
        return ("succeeded",) if known.status == "new" else (known.status,)

    def absent(self, task: str, where: str) -> None:
        self.forgotten(f"{task} was {self.known[task].status}, and is absent from {where}")

    def forgotten(self, what: str) -> None:
        """A row is hidden: excused by what the damage may do, or wrong."""
        if self.damaged.may_forget:
            self.is_excused = True
        else:
            self.wrong.append(what)

    def lists(self, registry: Registry) -> None:
        """A list is whole, or an error."""
        with self.asking("tasks"):
            listed = {task.task_id for task in registry.tasks()}
            missing = [task for task in self.known if task not in listed]
            if missing:
                self.absent(missing[0], f"the list, with {len(missing) - 1} more")
        with self.asking("count"):
            counted = registry.count()
            if sum(counted.values()) < len(self.known):
                self.absent(next(iter(self.known)), f"the counts {counted}, or another is")

    def upkeep(self, registry: Registry) -> None:
        """Nothing of it takes a row away that is young."""
        mode: Any = self.dice.choice(("PASSIVE", "FULL", "RESTART", "TRUNCATE"))
        with self.asking("checkpoint"):
            registry.checkpoint(mode)
        with self.asking("purge"):
            purge = registry.purge(older_than=DAY_S)
            if purge.removed:
                self.wrong.append(f"a purge took what is young: {purge}")

    def new(self, registry: Registry, meanwhile: Callable[[], object] | None = None) -> str:
        """A new task runs once, and with a token of its own. ``meanwhile`` happens in its job. Answers its id."""
        self.made += 1
        task = f"new:{self.made}"
        with self.asking("run a new task"):
            outcome = registry.run(task, self.body(task, meanwhile), name="job")
            if outcome.replayed:
                self.wrong.append(f"{task} is new, and is answered {outcome}")
            self.note_new(task)
        return task

    def note_new(self, task: str) -> None:
        self.said["new tasks"] += 1
        self.known[task] = self.stage.known["pending:0"]._replace(status="new", result=f"ran {task}", may_run=False)

    def examine(self, registry: Registry) -> None:
        with self.asking("doctor"):
            registry.doctor(full=self.dice.random() < 0.5)
