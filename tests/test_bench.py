"""The benchmark runs, tells what it measured, and compares like with like. What it says of speed is not tested."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import pytest

from bench import __main__ as command
from bench import race
from bench.by_hand import ByHand, ByHandQueued
from bench.contenders import KINDS, NO_ROW, READS, SQLITE, Place, absent, contender
from bench.contenders.sqlite_files import Hold
from bench.crew import Crew, NotDoneError, Order, Report, forget_peak, memory_mib
from bench.figures import FIGURES, barriers, peers, processes, together
from bench.figures.peers import served
from bench.figures.processes import Field, load_of
from bench.figures.together import Traced, read_trace
from bench.imports import MEASURED
from bench.job import DAY, issue_coupon, runs
from bench.model import SCALES, Figure, Measured, Value, percentile
from bench.slow_disk import compiler, slower_syncs
from idemreg.model import OnCrash
from tests.support import goals
from tests.support.processes import ROOT, Script

if TYPE_CHECKING:
    from pathlib import Path

    from idemreg.options import Durability

# Figures that cost a run of the tests too much, or that need what a developer's machine may lack.
LEFT_OUT = ("barriers-full", "peers-normal", "peers-full", "processes-32", "processes-slow", "syncs")
TINY = [name for name in FIGURES if name not in LEFT_OUT]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The figures of a tiny run, and what it printed."""
    folder = tmp_path_factory.mktemp("bench")
    file = folder / "results" / "run.json"
    chosen = [word for name in TINY for word in ("--only", name)]
    argv = [sys.executable, "-m", "bench", "--scale", "tiny", *chosen, "--json", str(file), "--folder", str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert [one.name for one in folder.iterdir()] == ["results"], "what was measured on is removed"
    return json.loads(file.read_text("utf-8")), done.stdout


# --- a run ------------------------------------------------------------------------------------------------------


def test_a_tiny_run_measures_what_it_was_asked_for(tiny: tuple[dict[str, Any], str]) -> None:
    """Each figure chosen, in that order, with the machine above them; the printed tables name them all."""
    found, printed = tiny
    assert list(found["figures"]) == TINY
    assert found["machine"].keys() >= {"python", "apsw", "sqlite", "kernel", "cpus", "file system"}
    assert f"sqlite {found['machine']['sqlite']}" in printed.splitlines()[0]
    for name, figure in found["figures"].items():
        assert f"== {name}: {figure['title']}" in printed
        assert figure["command"] == f"python -m bench --scale tiny --only {name} --folder FOLDER"
        assert not figure["absent"]


def test_a_figure_has_its_goals(tiny: tuple[dict[str, Any], str]) -> None:
    """The goals are those that the project set itself, and none of them is missing."""
    assert list(goals.GOALS) == list(FIGURES)
    for name, figure in tiny[0]["figures"].items():
        assert goals.of(figure["values"]) == goals.GOALS[name], name


@pytest.fixture
def _measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ones in place of what was measured, of everybody."""

    def ones(who: list[str], *_: object) -> dict[str, peers.Taken]:
        return {one: peers.Taken([[1.0]], [[1.0]], [1.0]) for one in who}

    loads = {who: [processes.Load(*[1] * len(processes.Load._fields))] for who in processes.WHO}
    monkeypatch.setattr(peers, "absent", lambda _: None)
    monkeypatch.setattr(peers, "measure", ones)
    monkeypatch.setattr(barriers, "measure", ones)
    monkeypatch.setattr(processes, "measure", lambda *_: (loads, loads, dict.fromkeys(processes.WHO, 1)))
    monkeypatch.setattr(processes, "compiler", lambda: "cc")
    monkeypatch.setattr(processes, "slower_syncs", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(together, "lacks_strace", list)
    monkeypatch.setattr(together, "traced", lambda *_: Traced(1, 0))


@pytest.mark.usefixtures("_measures_nothing")
@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_figure_that_a_tiny_run_leaves_out_has_its_goals(name: str, tmp_path: Path) -> None:
    """Whatever is measured, it is held to the goals that the project set itself."""
    values = [value.as_json() for value in FIGURES[name].measure(SCALES["tiny"], str(tmp_path)).values]
    assert values
    assert goals.of(values) == goals.GOALS[name]


def test_a_value_is_the_median_of_its_rounds_and_judged_by_its_goal(tiny: tuple[dict[str, Any], str]) -> None:
    """As many rounds as the scale says, positive all of them, and `reached` says what the numbers say."""
    for name, figure in tiny[0]["figures"].items():
        for one in figure["values"]:
            assert len(one["rounds"]) in (1, SCALES["tiny"].rounds), name
            assert 0 <= min(one["rounds"]) == one["lowest"] <= one["median"] <= one["highest"] == max(one["rounds"])
            if one["goal"] is None:
                assert one["reached"] is None
            else:
                bound, median = one["goal"]["bound"], one["median"]
                assert one["reached"] is (median <= bound if one["goal"]["sense"] == "≤" else median >= bound)
        for side in figure["sides"]:
            assert 0 < side["lowest"] <= side["median"] <= side["highest"], (name, side)


def test_ratios_are_of_the_sides_that_they_name(tiny: tuple[dict[str, Any], str]) -> None:
    """Hold over rerun by their ratios to (a) is hold over rerun by their own numbers: nobody is mixed up."""
    figure = tiny[0]["figures"]["calls-full"]
    sides = {side["name"]: side for side in figure["sides"] if side["what"] == "new"}
    for value, who in zip(figure["values"], ("idemreg", "idemreg, rerun"), strict=False):
        ours, hand = sides[who], sides["by hand"]
        assert ours["lowest"] / hand["highest"] <= value["median"] <= ours["highest"] / hand["lowest"]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine without programs and contenders; the names of the figures that would be measured there."""
    measured: list[str] = []
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    monkeypatch.setattr(peers, "absent", lambda name: f"{name}: pip" if KINDS[name].needs else None)
    monkeypatch.setattr(command, "run", lambda chosen, *_: measured.extend(figure.name for figure in chosen))
    return measured


def test_each_table_says_who_is_durable(tiny: tuple[dict[str, Any], str]) -> None:
    """Each side says what its rows survive at that setting, by the contenders' words, or that there are none."""
    words = {*SQLITE.values(), NO_ROW, READS}
    for name, figure in tiny[0]["figures"].items():
        for side in figure["sides"]:
            assert side["survives"] in words, (name, side)
    uuid4 = next(side for side in tiny[0]["figures"]["serials"]["sides"] if side["name"] == "uuid.uuid4()")
    assert uuid4["survives"] == NO_ROW


@pytest.mark.parametrize("name", ["threads", "coroutines", "batch", "rows-new", "rows-purge", "processes-8"])
def test_single_calls_are_told_as_well(tiny: tuple[dict[str, Any], str], name: str) -> None:
    """The p99 and the worst of each side that makes calls, in its unit."""
    for side in tiny[0]["figures"][name]["sides"]:
        if side["name"] != "purge":
            (of_p99, p99), (of_worst, worst) = list(side["more"].items())[:2]
            assert of_p99.startswith("p99 ")
            assert of_worst.startswith(("worst ", "longest "))
            assert 0 < p99 <= worst


def test_a_single_call_is_timed_where_the_mean_is(tiny: tuple[dict[str, Any], str]) -> None:
    """The worst of all calls on large files is not below the highest mean of a round."""
    for side in tiny[0]["figures"]["rows-new"]["sides"]:
        assert side["highest"] <= side["more"]["worst µs"], side


@pytest.mark.parametrize("name", ["processes-8", "threads", "coroutines", "batch"])
def test_memory_is_told_of_many_callers(tiny: tuple[dict[str, Any], str], name: str) -> None:
    """That of Python with a registry at the least."""
    (memory,) = (one for one in tiny[0]["figures"][name]["values"] if one["unit"] == "MiB")
    assert memory["label"].startswith("resident memory")
    assert memory["lowest"] > 10


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this kernel cannot begin anew")
def test_the_memory_of_earlier_figures_does_not_count() -> None:
    """The most so far begins anew, with what is resident then."""
    size = 64 * 2**20
    forget_peak()
    before, much = memory_mib(), b"x" * size
    del much
    assert memory_mib() > before
    forget_peak()
    assert memory_mib() < before + size / 2**21


def test_what_a_full_run_lacks_is_said(bare: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A table with gaps is not made by accident: exit code 2, and all that is missing, once, with its remedy."""
    with pytest.raises(SystemExit) as ended:
        command.main(["--scale", "full"])
    assert (ended.value.code, bare) == (2, [])
    said = [line.strip() for line in capsys.readouterr().err.splitlines()[1:]]
    programs = [line for line in said if not line.endswith(": pip")]
    assert ["gcc)" in programs[0], "strace)" in programs[1], len(programs)] == [True, True, 2]
    contenders = sorted(f"{name}: pip" for name, kind in KINDS.items() if kind.needs)
    assert sorted(line for line in said if line not in programs) == contenders


@pytest.mark.parametrize(
    ("name", "word"), [("syncs", "strace"), ("processes-slow", "C compiler"), ("peers-normal", "joblib: pip")]
)
def test_a_figure_is_refused_for_what_it_needs_itself(
    bare: list[str], capsys: pytest.CaptureFixture[str], name: str, word: str
) -> None:
    """At full scale only, and not where gaps are allowed."""
    with pytest.raises(SystemExit):
        command.main(["--scale", "full", "--only", name])
    assert word in capsys.readouterr().err
    command.main(["--only", name])
    command.main(["--scale", "full", "--only", name, "--allow-absent"])
    assert bare == [name, name]


def test_what_the_chosen_figures_do_not_need_may_lack(bare: list[str]) -> None:
    """One figure of idemreg and of what is by hand asks for no contender and no program."""
    command.main(["--scale", "full", "--only", "calls-normal"])
    assert bare == ["calls-normal"]


def test_only_a_full_run_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """Smaller ones are for a look, and never end up in the README."""
    with pytest.raises(SystemExit):
        command.main(["--scale", "tiny", "--save"])
    assert "--scale full" in capsys.readouterr().err


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each save was given, instead of files; the checkout counts as changed from the first one on."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(command, "save", lambda found: given.append(json.loads(json.dumps(found))))
    monkeypatch.setattr(command, "revision", lambda: "abc+" if given else "abc")
    return given


def nothing_much(name: str) -> Figure:
    return Figure(name, "T", "full", "H", lambda *_: Measured([Value("a", "x", [1])]))


@pytest.mark.usefixtures("capsys")
def test_a_run_is_of_the_revision_that_it_began_with(saved: list[dict[str, Any]]) -> None:
    """What it saves is a change to the checkout, and none to what is measured: no figure behind the first has a +."""
    command.run([nothing_much("a"), nothing_much("b")], SCALES["full"], command.parse(["--scale", "full", "--save"]))
    assert [one["revision"] for one in saved[-1]["figures"].values()] == ["abc", "abc"]


@pytest.mark.usefixtures("capsys")
def test_a_figure_keeps_the_command_that_measured_it(saved: list[dict[str, Any]], tmp_path: Path) -> None:
    """With all that was asked for, but for the folder's name: no path of a machine is kept."""
    asked = ["--scale", "full", "--save", "--rounds", "9", "--folder", str(tmp_path), "--allow-absent"]
    command.run([nothing_much("a")], SCALES["full"], command.parse(asked))
    kept = saved[-1]["figures"]["a"]["command"]
    assert kept == "python -m bench --scale full --only a --rounds 9 --folder FOLDER --allow-absent"
    command.run([nothing_much("a")], SCALES["full"], command.parse(["--scale", "full", "--save"]))
    assert saved[-1]["figures"]["a"]["command"] == "python -m bench --scale full --only a"


def test_what_starting_costs_is_measured_too() -> None:
    """A line a process, each against what it stands on."""
    argv = [sys.executable, "-m", "bench.imports", "--runs", "1"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line[:30].strip() for line in done.stdout.splitlines()[1:]] == list(MEASURED)


WAITS = {
    "processes --size 2": ["by hand (a)", "by hand (b)", "hold", "rerun"],
    "purge --rows 3000": ["alone:", "meanwhile:"],
}


@pytest.mark.parametrize("what", WAITS)
def test_where_the_time_goes_is_measured_too(what: str) -> None:
    """A line each; of calls that took long, if there are any, what they waited for."""
    argv = [sys.executable, "-m", "bench.waits", *what.split(), "--seconds", "0.2"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    told = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [line[: len(word)] for line, word in zip(told, WAITS[what], strict=True)] == WAITS[what]


# --- contenders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.uses_redis and absent(name) is None])
def test_a_contender_runs_the_job_once(name: str, tmp_path: Path) -> None:
    """At each of its settings: a new task runs the job, a duplicate gets its result and runs nothing."""
    for durability in KINDS[name].survives:
        home = tmp_path / durability
        home.mkdir()
        one = contender(name, Place(str(home), durability))
        before = runs()
        assert [one.call(7), one.call(7), one.call(8)] == [issue_coupon(user, DAY) for user in (7, 7, 8)]
        assert runs() - before == 2 + 3  # three by this test
        one.close()


@pytest.mark.parametrize(("name", "on_crash"), [("idemreg", OnCrash.HOLD), ("idemreg, rerun", OnCrash.RERUN)])
@pytest.mark.parametrize("durability", ["normal", "full"])
def test_idemreg_is_measured_at_what_its_line_says(
    tmp_path: Path, name: str, on_crash: OnCrash, durability: Durability
) -> None:
    """Its rows have the policy of the line, and its registry the durability of the table."""
    one = contender(name, Place(str(tmp_path), durability))
    assert isinstance(one, Hold)
    one.call(7)
    (task,) = one.registry.tasks()
    assert task.policy.on_crash is on_crash
    assert one.registry.durability == durability
    one.close()


@pytest.mark.parametrize("kind", [ByHand, ByHandQueued])
def test_the_yardstick_is_idempotent(path: Path, kind: type[ByHand]) -> None:
    """What is measured against runs a job once, replays it, and refuses other arguments."""
    hand = kind(str(path), "normal")
    for call in (hand.call, hand.call, hand.call_unseen):
        assert call("coupon:7", issue_coupon, user_id=7, day="d") == issue_coupon(7, "d")
    with pytest.raises(ValueError):
        hand.call("coupon:7", issue_coupon, user_id=8, day="d")
    assert hand.connection.execute("SELECT task_id, status FROM task").fetchall() == [("coupon:7", 1)]
    assert hand.connection.pragma("synchronous") == 1
    hand.close()


def test_each_contender_can_be_installed() -> None:
    """What a contender needs is in the group of packages that `make bench-full` installs."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    installed = {one.partition(">=")[0] for one in groups["bench"]}
    assert {package for kind in KINDS.values() for package in kind.needs.values()} <= installed


def test_a_contender_says_all_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its packages and its server at once, each with its remedy; one of idemreg's own lacks nothing."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    assert absent("Redis") == (
        "Redis: not installed: redis, hiredis (`make bench-full` installs them into .venv-bench);"
        " there is no redis-server (Debian: apt install redis-server)"
    )
    assert absent("idemreg") is None


def test_a_line_is_not_filled_with_something_else(tmp_path: Path) -> None:
    """A crew whose new tasks ran no job, or whose duplicates ran one, was not measured at that: the run stops."""
    with Crew(1, {"by hand": Place(str(tmp_path), "normal")}) as crew:
        users = range(9 * 10**9, 9 * 10**9 + 5)
        with pytest.raises(NotDoneError):
            served(crew, "by hand", users, is_new=False)
        with pytest.raises(NotDoneError):
            served(crew, "by hand", users, is_new=True)
        assert served(crew, "by hand", users, is_new=False).ran == 0


def test_a_crew_starts_together_and_ends_in_time(tmp_path: Path) -> None:
    """Nobody begins before the common start, nobody begins a call after the end, and the users are nobody else's.

    Who has no processor meanwhile serves nobody: then they have longer.
    """
    with Crew(2, {"by hand": Place(str(tmp_path), "normal")}) as crew:
        for longer in range(8):
            start = crew.start_ns()
            until = start + 50_000_000 * 2**longer
            ats = (10**9 * (2 * longer + 1), 10**9 * (2 * longer + 2))
            reports = crew.work([Order("by hand", range(at, at + 10**6), start, until) for at in ats])
            for report in reports:
                assert len(report.spent_ns) == report.ran < 10**6
                assert report.memory_mib > 1
            if all(report.ran for report in reports):
                break
        for report in reports:
            assert start <= report.began_ns <= report.ended_ns
            assert report.ended_ns - report.spent_ns[-1] < until


def test_a_member_that_fails_is_heard(tmp_path: Path) -> None:
    """An error of a contender ends the run with its name, not with a time-out."""
    with Crew(1, {"by hand": Place(str(tmp_path), "normal")}) as crew, pytest.raises(NotDoneError, match="KeyError"):
        crew.work([Order("nobody", range(1))])


# --- how it is measured -----------------------------------------------------------------------------------------


def test_contenders_take_turns_and_do_the_same_calls() -> None:
    """Every contender gets each user once, in slices, and who begins changes."""
    calls: list[tuple[str, int]] = []
    spent = race.race([lambda user: calls.append(("a", user)), lambda user: calls.append(("b", user))], range(7, 47), 0)
    assert len(spent) == 2
    assert [user for who, user in calls if who == "a"] == [user for who, user in calls if who == "b"] == [*range(7, 47)]
    assert "".join(who for who, _ in calls)[:8] == "aabbbbaa"


def test_a_wal_is_written_to_its_working_size_first(tmp_path: Path) -> None:
    """Until 1,000 pages of 4 KiB, or until it has stopped to grow; never for ever."""
    wal, served = tmp_path / "x-wal", []

    def grow(users: range) -> None:
        served.append(users)
        wal.write_bytes(bytes(min(len(served), limit) * 1_000_000))

    limit = 10
    assert race.to_working_size(grow, str(tmp_path / "x")) == 5_000_000
    assert all(one.stop == other.start for one, other in pairwise(served))
    limit = 3
    served.clear()
    assert race.to_working_size(grow, str(tmp_path / "x")) == 3_000_000
    assert len(served) < race.MOST_WARMINGS


SYNCS = """
import time
from tests.support.raw import connect
connection = connect(sys.argv[1])
connection.pragma("synchronous", 2)
begun = time.perf_counter()
connection.execute("CREATE TABLE t (n)")
of_sqlite = time.perf_counter()
os.fdatasync(os.open(sys.argv[1], os.O_RDWR))
say(of_sqlite - begun >= 1e-3, time.perf_counter() - of_sqlite >= 1e-3)
"""


@pytest.mark.usefixtures("compiler")
def test_syncs_are_slower_for_those_who_are_started_meanwhile(tmp_path: Path) -> None:
    """A millisecond at least, of SQLite's as well as of Python's."""
    command = compiler()
    assert command is not None
    with slower_syncs(command, str(tmp_path)):
        script = Script(SYNCS, tmp_path / "a.db")
    assert "LD_PRELOAD" not in os.environ
    with script:
        script.expect("True True")


def test_a_load_counts_what_was_done_until_its_end() -> None:
    """A call that was under way at the end is a wait and no job; the processes' jobs are told one by one."""
    late = Report(array("q", [10**6, 5 * 10**9]), 0, 2 * 10**9, 2, 1.0)
    even = Report(array("q", [10**6] * 4), 0, 9 * 10**8, 4, 2.0)
    load = load_of([late, even], 10**9)
    assert load == (5.0, 5_000.0, 5_000.0, 1, 4, 2.0)


def test_a_process_that_came_too_late_did_nothing() -> None:
    """It began no call until the end, so none was under way then: its jobs are 0, not one fewer."""
    late = Report(array("q"), 2 * 10**9, 2 * 10**9, 0, 1.0)
    even = Report(array("q", [10**6] * 4), 0, 9 * 10**8, 4, 1.0)
    load = load_of([late, even], 10**9)
    assert (load.fewest, load.most) == (0, 4)


class Late:
    """A crew whose every call is under way at the end, or of whom nobody has begun one."""

    size = 2

    def __init__(self, calls: int) -> None:
        self._calls = calls

    def start_ns(self) -> int:
        return 0

    def work(self, orders: list[Order]) -> list[Report]:
        ended = orders[0].until_ns + 1
        return [Report(array("q", [ended] * self._calls), ended, ended, self._calls, 1.0) for _ in orders]


@pytest.mark.parametrize("calls", [0, 1])
def test_a_load_without_a_job_was_not_measured(tmp_path: Path, calls: int) -> None:
    """The run stops with who it was and how long, not by a division."""
    field = Field(cast("Crew", Late(calls)), str(tmp_path))
    with pytest.raises(NotDoneError, match="idemreg: none of 2 processes ended a job within 1 s"):
        field.steady("idemreg", 1)


def test_percentiles_are_of_the_nearest_rank() -> None:
    """The smallest number that so many are not above."""
    numbers = [float(number) for number in range(100, 0, -1)]
    assert [percentile(numbers, share) for share in (0.01, 0.5, 0.99, 1)] == [1, 50, 99, 100]
    assert percentile([3.0], 0.99) == 3


TRACE = """\
7  openat(AT_FDCWD, "jobs.db", O_RDWR) = 5
8  fdatasync(5) = 0
7  fdatasync(1000001) = -1 EBADF (Bad file descriptor)
8  pwrite64(5, "x", 1, 0) = 1
8  fdatasync(5 <unfinished ...>
7  fcntl(9, F_DUPFD_CLOEXEC, 0) = 10
8  <... fdatasync resumed>) = 0
9  fsync(6) = 0
7  fdatasync(1000001) = -1 EBADF (Bad file descriptor)
9  fdatasync(5) = 0
7  fcntl(9, F_OFD_SETLK, {l_type=F_WRLCK}) = 0
7  fdatasync(1000001) = -1 EBADF (Bad file descriptor)
7  fdatasync(5) = 0
+++ exited with 0 +++
""".splitlines()


def test_syncs_are_counted_from_the_kernels_account() -> None:
    """Those between the first two marks, whoever issues them; and on the loop's thread whatever it must not do."""
    assert read_trace(TRACE) == Traced(syncs=2, on_the_loop=1)


def test_an_account_without_its_marks_counts_for_nothing() -> None:
    """A process that ended early, or an account in another form, is an error and never a zero."""
    for lines in (TRACE[3:], [], ["nothing of the kind"]):
        with pytest.raises(ValueError):
            read_trace(lines)
