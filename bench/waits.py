"""Where the time goes that some goals miss: `python -m bench.waits purge` and `python -m bench.waits processes`.

`purge`: of a writer's calls while another process purges, those that took more than ten times its p99 alone, and what
they waited for. `processes`: under a steady load what a job takes of the processors, and how idle those are.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench import big_file
from bench.contenders import Place
from bench.contenders.sqlite_files import FILE
from bench.crew import Crew, Order
from bench.figures.processes import LABELS, home
from bench.job import DAY, issue_coupon
from bench.model import SCALES, percentile
from bench.race import to_working_size
from idemreg import Registry
from idemreg.sqlite.syncing import GroupSync
from idemreg.sqlite.wal import _AfterCommit
from idemreg.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NS: Final = 1_000_000_000
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
LONGER: Final = 10  # times the p99 alone


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.waits", description="Where the time goes.")
    parser.add_argument("what", choices=("purge", "processes"))
    parser.add_argument("--rows", type=int, default=SCALES["full"].rows, help="of the file that is purged")
    parser.add_argument("--size", type=int, default=32, help="how many processes")
    parser.add_argument("--seconds", type=float, default=10, help="of each load, or of the writer alone")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="idemreg-bench-") as folder:
        if options.what == "purge":
            purge(folder, options.rows, options.seconds)
        else:
            processes(folder, options.size, options.seconds)


# --- a writer beside a purge --------------------------------------------------------------------------------------


class Call(NamedTuple):
    """What a call took, and how much of it each of its waits, in nanoseconds."""

    spent_ns: int
    waits: Counter[str]


def purge(folder: str, rows: int, alone_s: float) -> None:
    full = SCALES["full"]
    place = os.path.join(folder, "figure")
    os.mkdir(place)
    path = big_file.big(full._replace(rows=rows, purged=min(full.purged, rows // 3)), place)
    with Registry(path, create=False) as registry, _noted() as waits:
        calls = _calls(registry, waits)
        _for_a_while(calls, 1)
        alone = _for_a_while(calls, alone_s)
        command = [sys.executable, "-m", "bench.big_work", "purge", path]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as purging:
            meanwhile = []
            while purging.poll() is None:
                meanwhile.append(next(calls))
    longest_ns = LONGER * percentile([call.spent_ns for call in alone], 0.99)
    for name, done in (("alone", alone), ("meanwhile", meanwhile)):
        _tell(name, done, [call for call in done if call.spent_ns > longest_ns])


@contextmanager
def _noted() -> Iterator[Counter[str]]:
    """Note what the calls wait for: a turn, a sync of their own or of others, and the checkpoint behind a commit."""
    waits: Counter[str] = Counter()
    for owner, name, word in (
        (Turn, "take", "the turn"),
        (GroupSync, "_sync", "its own sync"),
        (GroupSync, "_wait", "another's sync"),
        (_AfterCommit, "__call__", "the checkpoint behind its commit"),
    ):
        setattr(owner, name, _timed(getattr(owner, name), word, waits))
    yield waits


def _timed(call: Callable[..., Any], word: str, waits: Counter[str]) -> Callable[..., Any]:
    def timed(*arguments: object, **options: object) -> Any:  # noqa: ANN401 - what the call gives
        began = time.perf_counter_ns()
        try:
            return call(*arguments, **options)
        finally:
            waits[word] += time.perf_counter_ns() - began

    return timed


def _calls(registry: Registry, waits: Counter[str]) -> Iterator[Call]:
    job = registry.idempotent("coupon:{user_id}:{day}")(issue_coupon)
    user = 10**9
    while True:
        waits.clear()
        began = time.perf_counter_ns()
        job(user, DAY)
        yield Call(time.perf_counter_ns() - began, waits.copy())
        user += 1


def _for_a_while(calls: Iterator[Call], some_s: float) -> list[Call]:
    until = time.perf_counter_ns() + round(some_s * NS)
    done = []
    while time.perf_counter_ns() < until:
        done.append(next(calls))
    return done


def _tell(name: str, done: Sequence[Call], longer: Sequence[Call]) -> None:
    spent = [call.spent_ns / 1e6 for call in done]
    print(
        f"{name}: {len(done):,} calls, p99 {percentile(spent, 0.99):.2f} ms, longest {max(spent):.1f} ms;"
        f" {len(longer):,} took more than {LONGER} times the p99 alone"
    )
    total = sum(call.spent_ns for call in longer)
    for word, ns in sum((call.waits for call in longer), Counter[str]()).most_common():
        print(f"    {ns / total:>4.0%} of their time in {word}")


# --- many processes -----------------------------------------------------------------------------------------------


def processes(folder: str, size: int, load_s: float) -> None:
    for who in LABELS:
        os.makedirs(home(folder, who))
    with Crew(size, {who: Place(home(folder, who), "full") for who in LABELS}) as crew:
        for who, label in LABELS.items():
            to_working_size(functools.partial(_serve, crew, who), os.path.join(home(folder, who), FILE))
            jobs, used = _under_load(crew, who, load_s)
            each = ", ".join(f"{spent_s / jobs * 1e3:.2f} ms {kind}" for kind, spent_s in used.items())
            idle = used["idle"] / sum(used.values())
            print(f"{label:<12}{jobs / load_s:>6,.0f} jobs/s, of all processors a job: {each}, {idle:.0%}", flush=True)


def _serve(crew: Crew, who: str, users: range) -> None:
    crew.work([Order(who, users)])


def _under_load(crew: Crew, who: str, load_s: float) -> tuple[int, dict[str, float]]:
    """The jobs that were done, and the seconds of all processors meanwhile."""
    start = crew.start_ns()
    until = start + round(load_s * NS)
    before = _used()
    reports = crew.work(
        [Order(who, range(at := (m + 100) * 10**7, at + 10**6), start, until) for m in range(crew.size)]
    )
    after = _used()
    return sum(len(report.spent_ns) for report in reports), {kind: after[kind] - before[kind] for kind in after}


def _used() -> dict[str, float]:
    """Seconds of all processors since the machine was started, by what they did."""
    with open("/proc/stat", encoding="ascii") as file:
        words = file.readline().split()
    user, nice, system, idle, waiting, interrupt, soft = (int(word) * TICK_S for word in words[1:8])
    return {"user": user + nice, "system": system + interrupt + soft, "idle": idle + waiting}


if __name__ == "__main__":
    main()
