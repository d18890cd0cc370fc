"""Ten million rows: what a call, a page, an export and a purge cost there.

All figures of this room share one file, made once a run: `bench.big_file`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench import big_file
from bench.contenders import POWER, READS, SQLITE, Place
from bench.crew import Crew, NotDoneError, Order
from bench.imports import spent_ms
from bench.job import issue_coupon
from bench.model import Figure, Measured, Side, Value, at_most, percentile, tail
from bench.race import race, ratios, to_working_size
from idemreg import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.model import Scale
    from idemreg.options import Durability

__all__ = ["FIGURES"]


# --- new tasks and duplicates -----------------------------------------------------------------------------------

KINDS: Final = ("ordered", "random", "duplicate")
GOALS: Final = {"ordered": 1.5, "random": 3, "duplicate": 1.5}


class Calls:
    """One registry on one file, and its calls by user."""

    def __init__(self, path: str, rows: int, durability: Durability) -> None:
        self._registry = Registry(path, durability=durability)
        self._ids = big_file.Ids(rows)
        self._job = self._registry.idempotent(lambda key: key)(_job)
        self._path = path
        to_working_size(lambda users: [self._job(self._ids.ordered(user)) for user in users], path)

    def call(self, kind: str) -> Callable[[int], object]:
        job, ids = self._job, self._ids
        if kind == "duplicate":  # of rows all over the file: each is claimed here by its first call
            return lambda user: job(ids.random(user))
        key = ids.ordered if kind == "ordered" else ids.random
        return lambda user: job(key(user))

    def close(self) -> None:
        self._registry.close()


def _job(key: str) -> dict[str, object]:
    return issue_coupon(len(key), "")


def new_tasks(scale: Scale, folder: str) -> Measured:
    """At `normal`, where no sync hides the difference, and at `full` for information."""
    values, sides = [], []
    for durability in ("normal", "full"):
        few = Calls(big_file.small(scale, folder), scale.few_rows, durability)
        many = Calls(big_file.big(scale, folder), scale.rows, durability)
        found = _raced(few, many, scale, 0 if durability == "normal" else 1)
        few.close()
        many.close()
        for kind, ((at_few, few_calls), (at_many, many_calls)) in found.items():
            goal = at_most(GOALS[kind]) if durability == "normal" else None
            label = f"{kind if kind == 'duplicate' else f'new task, {kind} ids'}, `{durability}`"
            against = f"{scale.rows:,} rows / {scale.few_rows:,}"
            values.append(Value(f"{label}: {against}", "x", ratios(at_many, at_few), goal))
            sides.append(Side(f"{scale.rows:,} rows", label, "µs", at_many, SQLITE[durability], tail(many_calls, "µs")))
            sides.append(
                Side(f"{scale.few_rows:,} rows", label, "µs", at_few, SQLITE[durability], tail(few_calls, "µs"))
            )
    return Measured(values, sides)


class Taken(NamedTuple):
    """Microseconds a call: the mean of each round, and every one of them."""

    rounds: list[float]
    calls: list[float]


def _raced(few: Calls, many: Calls, scale: Scale, era: int) -> dict[str, tuple[Taken, Taken]]:
    """What it took on few rows and on many; the first round warms up."""
    found = {kind: (Taken([], []), Taken([], [])) for kind in KINDS}
    for number in range(scale.rounds + 1):
        first = 10**9 + (era * 1_000 + number) * scale.new_tasks
        for kind in KINDS:  # duplicates: of the random ids just before
            each: tuple[list[float], list[float]] = ([], [])
            spent = race([few.call(kind), many.call(kind)], range(first, first + scale.new_tasks), number, each)
            if number:
                for of, mean, calls in zip(found[kind], spent, each, strict=True):
                    of.rounds.append(mean)
                    of.calls.extend(calls)
    return found


# --- the first page ---------------------------------------------------------------------------------------------

PAGE: Final = 100  # rows
HAND: Final = "a row by hand"

BY_HAND: Final = (
    "import apsw, sys; c = apsw.Connection(sys.argv[1]); c.set_busy_timeout(1000);"
    "print(c.execute('SELECT * FROM idempotent_log WHERE task_id = ?', (sys.argv[2],)).fetchone())"
)
LIBRARY: Final = (
    "import itertools, sys; from idemreg import Registry, Status; r = Registry(sys.argv[1], create=False);"
    "s = Status[sys.argv[3]] if sys.argv[3:] else None;"
    f"page = [*itertools.islice(r.tasks(prefix=sys.argv[2], status=s), {PAGE})]; r.close()"
)
COMMAND: Final = "import sys; from idemreg.__main__ import start; sys.argv = ['idemreg', *sys.argv[1:]]; start()"


def pages(scale: Scale, folder: str) -> Measured:
    """Whole processes, in turn with one that imports apsw and reads a row."""
    path = big_file.big(scale, folder)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    asked = {"by id": [""], "by prefix": ["task:8"], **{status.word: ["", status.name] for status in big_file.LISTED}}
    with Registry(path) as registry:  # as in production: somebody has the file open
        key = next(registry.tasks(prefix="task:8")).task_id
        _check_pages(registry)
        processes = {name: ["-c", LIBRARY, path, *words] for name, words in asked.items()}
        processes["`idemreg list`"] = ["-c", COMMAND, "--db", path, "list", "--limit", str(PAGE)]
        processes[HAND] = ["-c", BY_HAND, path, key]
        taken: dict[str, list[float]] = {name: [] for name in processes}
        for _ in range(scale.runs + 1):
            for name, argv in processes.items():
                taken[name].append(spent_ms(argv, environment))
    taken = {name: rounds[1:] for name, rounds in taken.items()}
    values = [
        Value(f"{name} / {HAND}", "x", ratios(rounds, taken[HAND]), at_most(3) if name in asked else None)
        for name, rounds in taken.items()
        if name != HAND
    ]
    return Measured(values, [Side(name, "process", "ms", rounds, READS) for name, rounds in taken.items()])


def _check_pages(registry: Registry) -> None:
    for status in big_file.LISTED:
        if not any(True for _ in registry.tasks(status=status)):
            msg = f"no task is {status.word}"
            raise NotDoneError(msg)


# --- export and purge -------------------------------------------------------------------------------------------

MOST_MIB: Final = 64


def worked(*words: str) -> dict[str, Any]:
    """What `bench.big_work` says of itself, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "bench.big_work", *words], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def export(scale: Scale, folder: str) -> Measured:
    found = worked("export", big_file.big(scale, folder))
    if found["count"] < scale.rows:
        msg = f"{found['count']:,} lines for {scale.rows:,} rows"
        raise NotDoneError(msg)
    return Measured(
        [Value("export: resident memory", "MiB", [found["memory_mib"]], at_most(MOST_MIB))],
        [Side("export", "all rows", "s", [found["spent_s"]], READS)],
    )


def purge(scale: Scale, folder: str) -> Measured:
    """A writer's calls with nobody purging, and while another process purges."""
    path = big_file.big(scale, folder)
    with Crew(1, {"idemreg": Place(os.path.dirname(path), "full")}) as crew:
        writer = Writer(crew)
        writer.for_a_while(1)  # warms up
        alone = writer.for_a_while(scale.writer_s)
        command = [sys.executable, "-m", "bench.big_work", "purge", path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as purging:
            meanwhile: list[float] = []
            while purging.poll() is None:
                meanwhile += writer.for_a_while(WHILE_S)
            said = purging.communicate()[0]
    found = json.loads(said)
    if found["count"] != scale.purged:
        msg = f"{found['count']:,} rows were purged, not {scale.purged:,}"
        raise NotDoneError(msg)
    p99 = percentile(alone, 0.99)
    return Measured(
        [
            Value("purge: resident memory", "MiB", [found["memory_mib"]], at_most(MOST_MIB)),
            Value("longest wait of a writer meanwhile / its p99 without", "x", [max(meanwhile) / p99], at_most(10)),
        ],
        [
            Side("purge", f"{scale.purged:,} rows", "s", [found["spent_s"]], POWER),
            Side("writer, nobody purging", "a call", "ms", alone, POWER, tail(alone, "ms")),
            Side("writer, meanwhile", "a call", "ms", meanwhile, POWER, tail(meanwhile, "ms")),
        ],
        notes=[_longer(name, waits, 10 * p99) for name, waits in (("alone", alone), ("meanwhile", meanwhile))],
    )


def _longer(name: str, waits: list[float], ms: float) -> str:
    """How many waits missed the goal: of the longest alone one call in a hundred thousand decides."""
    return f"Writer {name}: {sum(one > ms for one in waits):,} of {len(waits):,} calls took more than {ms:.1f} ms."


WHILE_S: Final = 0.5


class Writer:
    """A process that makes new tasks, one after the other."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._next = 10**9

    def for_a_while(self, some_s: float) -> list[float]:
        """Milliseconds of each call."""
        until = time.perf_counter_ns() + round(some_s * 1e9)
        (report,) = self._crew.work([Order("idemreg", range(self._next, 9 * 10**9), until_ns=until)])
        self._next += len(report.spent_ns)
        return [ns / 1e6 for ns in report.spent_ns]


FIGURES: Final = (
    Figure(
        "rows-new",
        "New task and duplicate at 10 million rows",
        "normal",
        "The same calls on a file with 10 million rows and on one with 10 thousand, slices in turn. Ordered ids come"
        " behind all others, random ones anywhere; a duplicate is one of the random ones again.",
        new_tasks,
        is_small=False,
    ),
    Figure(
        "rows-list",
        "First page of `list` at 10 million rows",
        "full",
        "A new process that opens the registry and reads the first 100 tasks, against one that imports apsw and reads a"
        " row of the same file by its key; whole processes, the start of Python included.",
        pages,
        is_small=False,
    ),
    Figure(
        "rows-export",
        "Export of 10 million rows",
        "full",
        "Most resident memory of the process that exports them, all of Python included.",
        export,
        is_small=False,
    ),
    Figure(
        "rows-purge",
        "Purge of a million rows out of 10 million",
        "full",
        "The same of a purge; and the calls of a writer in another process, alone for 20 s, then meanwhile.",
        purge,
        is_small=False,
    ),
)
