"""The demonstration tells the truth: it ends well only where the witness agrees, and leaves no process behind."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from idemreg import Liveness, Registry, Status, demo
from idemreg.cli.demo import DEMO_FIELDS
from idemreg.demo import crew as crews
from idemreg.demo import nights
from idemreg.demo.account import disagreements
from idemreg.demo.book import ENTERED, ISSUED, Book, Entry
from idemreg.demo.company import Answer, Company
from idemreg.demo.crew import Crew, Delivery
from idemreg.demo.fileclock import ClockFile, FileClock
from idemreg.demo.first import FirstAct
from idemreg.demo.process import DemoError, _with_our_own
from idemreg.demo.second import BY_HAND, SecondAct, slot
from idemreg.demo.witness import Witness
from tests.support.processes import PATIENCE_S, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_every_effect_happens_once_although_workers_are_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small demonstration ends with 0; witness, rows and account agree that each task happened exactly once."""
    assert demo.main(str(tmp_path), workers=3, tasks=60, seed=1, act=1) == 0
    account = capsys.readouterr().out
    witnessed = Witness(str(tmp_path / "witness.log")).effects()
    assert set(witnessed.values()) == {1}
    assert len(witnessed) == 60
    with Registry(tmp_path / "jobs.db", create=False) as registry:
        assert registry.count() == {Status.SUCCEEDED: 60}
        settled = [task for task in registry.tasks() if task.settled_by]
    assert account.startswith("Act one: ")
    assert "exactly 1, for all 60" in account
    assert "15 workers killed with SIGKILL" in account
    assert f"{len(settled)} tasks, whose worker died" in account
    assert f"idemreg --db {tmp_path}/jobs.db stats" in account
    assert len(account) < 2_000
    assert "\r" not in account  # a progress line is for terminals


def test_the_account_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object with the same figures as the prose, and nothing else on stdout."""
    assert demo.main(str(tmp_path), workers=2, tasks=40, seed=1, as_json=True, act=1) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["act"], told["tasks"], told["killed"], told["seed"], told["effects_a_task"]) == (1, 40, 10, 1, 1)
    assert told["deliveries"] >= told["duplicates"] + 40
    with Registry(tmp_path / "jobs.db", create=False) as registry:
        settled = [task for task in registry.tasks() if task.settled_by]
    assert told["settled_by_hook"] + told["resolved_by_hand"] == len(settled)


def test_the_account_fits_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for the commands to copy, no line has more than 80 columns."""
    assert demo.main(str(tmp_path), workers=2, tasks=8, seed=1, act=1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines if "idemreg" not in line and "grep" not in line)


def test_kills_leave_both_kinds_of_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some killed tasks are settled by the verify hook, others are left unknown and resolved by hand."""
    assert demo.main(str(tmp_path), workers=2, tasks=60, seed=1, act=1) == 0
    account = capsys.readouterr().out
    assert int(re.findall(r"by verify hook +(\d+): \d+ had happened", account)[0]) > 0
    assert int(re.findall(r"left unknown +(\d+)", account)[0]) > 0
    assert int(re.findall(r"resolved by hand +(\d+): \d+ had happened", account)[0]) > 0


def test_one_task_and_one_worker_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest demonstration works as well: its only worker is killed and replaced."""
    assert demo.main(str(tmp_path / "made"), workers=1, tasks=1, seed=3, act=1) == 0
    assert "exactly 1, for all 1;" in capsys.readouterr().out


def test_a_disagreeing_witness_fails_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An effect that the registry knows nothing of ends the demonstration with 1, and is named."""
    planted = Witness(str(tmp_path / "witness.log"))
    planted.record("coupon:1", "planted")
    planted.record("coupon:1", "planted")
    planted.record("coupon:999", "planted")
    assert demo.main(str(tmp_path), workers=2, tasks=8, seed=1, act=1) == 1
    out, err = capsys.readouterr()
    assert "exactly 1" not in out
    assert "DEMO FAILED" in err
    assert re.search(r"coupon:1: [23] effects, not exactly one", err)
    assert "coupon:999: nobody delivered it" in err


def test_every_kind_of_disagreement_is_found(registry: Registry) -> None:
    """Twice, never, of nobody's, without a row, not succeeded: each is a finding of its own."""
    with registry.claim("good"):
        pass
    registry.add("pending")
    rows = {task.task_id: task for task in registry.tasks()}
    effects = {"good": 2, "pending": 1, "stranger": 1}
    assert disagreements(["good", "pending", "lost"], effects, rows) == [
        "good: 2 effects, not exactly one",
        "lost: 0 effects, not exactly one",
        "lost: no row, not succeeded",
        "pending: pending, not succeeded",
        "stranger: nobody delivered it, but there is a row or an effect of it",
    ]
    assert disagreements(["good"], {"good": 1}, {"good": rows["good"]}) == []


def test_a_folder_with_a_registry_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demonstration never writes into a registry that is there already."""
    (tmp_path / "jobs.db").touch()
    assert demo.main(str(tmp_path), workers=1, tasks=1) == 2
    assert "there is a jobs.db" in capsys.readouterr().err
    assert demo.main(str(tmp_path / "jobs.db"), workers=1, tasks=1) == 2
    assert demo.main(workers=0) == 2
    assert demo.main(tasks=0) == 2
    assert demo.main(act=3) == 2
    (tmp_path / "jobs.db").rename(tmp_path / "coupons.db")
    assert demo.main(str(tmp_path), act=2) == 2
    assert "there is a coupons.db" in capsys.readouterr().err


def test_a_worker_that_ends_by_itself_fails_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the workers cannot work, the demonstration says so instead of hanging."""
    monkeypatch.setattr("idemreg.demo.crew.PROGRAM", "raise SystemExit(3)")
    assert demo.main(str(tmp_path), workers=2, tasks=3, act=1) == 1
    assert "ended by itself, with exit code 3" in capsys.readouterr().err


def test_workers_that_fall_silent_fail_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all of them hang, the demonstration ends instead of waiting for ever, and ends them."""
    monkeypatch.setattr("idemreg.demo.crew.PROGRAM", "import sys; sys.stdin.read()")
    monkeypatch.setattr("idemreg.demo.crew.SILENCE_S", 0)
    before = children_of(os.getpid())
    assert demo.main(str(tmp_path), workers=2, tasks=3, act=1) == 1
    assert "no worker said anything" in capsys.readouterr().err
    assert children_of(os.getpid()) == before


def test_a_worker_that_cannot_be_started_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three the second cannot be: the first is ended, and the error is the system's."""
    before = children_of(os.getpid())
    crew = Crew("jobs.db", "witness.log", 3, {})
    hire = crew._hire
    hired: list[int] = []

    def then_lose_the_program() -> None:
        hire()
        hired.extend(set(children_of(os.getpid())) - set(before))
        monkeypatch.setattr("sys.executable", "/nonexistent/python")

    monkeypatch.setattr(crew, "_hire", then_lose_the_program)
    with pytest.raises(FileNotFoundError), crew:
        pytest.fail("the block was entered")
    assert len(hired) == 1
    assert children_of(os.getpid()) == before


# Speaks as a worker does, and takes the deliveries of two tasks apart.
SPEAKER = """
import sys
print("ready", flush=True)
has_come = set()
for line in iter(sys.stdin.readline, ""):
    kind, number, moment = line.split()
    if kind == "coupon":
        print("at", "before", flush=True)
        assert sys.stdin.readline().strip() == "go"
        print("ran", flush=True)
    else:
        print("ran" if line in has_come else "again running", flush=True)
        has_come.add(line)
"""


def test_what_a_crew_does_with_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is not to die is let go on; a delivery to be repeated comes again; three are made of two."""
    monkeypatch.setattr(crews, "PROGRAM", SPEAKER)
    with Crew("jobs.db", "witness.log", 1, {}) as crew:
        crew.deliver([Delivery("coupon", 1), Delivery("letter", 2)], lambda _: None)
        crew.dismiss()
        assert crew.answers == {"ran": 2, "again": 1}
        assert crew.delivered == 3
        assert not crew.killed


def test_a_worker_that_went_is_told_by_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended before it was told something: that cannot be written, and the error is that it ended."""
    monkeypatch.setattr(crews, "PROGRAM", "print('ready', flush=True)")
    with Crew("jobs.db", "witness.log", 1, {}) as crew, pytest.raises(DemoError, match="exit code 0"):
        crew.deliver([Delivery("coupon", number) for number in range(2)], lambda _: None)


def test_workers_run_the_code_of_their_parent() -> None:
    """This very package comes first on their import path, and what the parent was given behind it."""
    assert _with_our_own("/elsewhere") == f"{ROOT}{os.pathsep}/elsewhere"
    assert _with_our_own(None) == str(ROOT)


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    """Ctrl-C in the terminal ends the demonstration at once, with 130 and one line, and every worker with it."""
    program = "import sys; from idemreg.demo import main; sys.exit(main(sys.argv[1], workers=4, tasks=50_000, act=1))"
    workers = interrupted(program, tmp_path, b"deliveries")
    assert len(workers) >= 3  # one may be between two lives


# --- act two ----------------------------------------------------------------------------------------------------


class Kept(SecondAct):
    """Keeps its account for the tests."""

    account: nights.Account

    def _conclude(self, account: nights.Account) -> int:
        self.account = account
        return super()._conclude(account)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    act = Kept(str(tmp_path_factory.mktemp("act")), as_json=False)
    assert act.play() == 0
    return act


def test_the_story_comes_true(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each slot ran once or is skipped for a reason, the audit is clean, the late owner fenced, no serial repeats."""
    assert demo.main(str(tmp_path), act=2) == 0
    entries = Book(Witness(str(tmp_path / "coupons.log"))).entries()
    issued = {one.task_id: one.serial for one in entries if one.what == ISSUED}
    assert len(issued) == len(set(issued.values())) == sum(one.what == ISSUED for one in entries) == 9
    with Registry(tmp_path / "coupons.db", create=False, clock=FileClock(str(tmp_path / "clock"))) as registry:
        audited = list(registry.audit("coupons"))
        late, alarm = registry.get(slot(30)), registry.get("clock@2025-11-27T15:50:00.000000Z")
    assert [one.state for one in audited] == ["run"] * 6 + ["skipped"] + ["run"] * 2
    assert [one.reason for one in audited if one.state == "skipped"] == ["paused"]
    assert late is not None
    assert late.result == json.dumps(issued[slot(30)])
    assert [(one.what, one.by) for one in entries if one.task_id == slot(30)] == [
        (ENTERED, "B"),
        (ENTERED, "C"),
        (ISSUED, "C"),
    ]
    assert alarm is not None
    assert (alarm.status, alarm.settled_by) == (Status.SUCCEEDED, "the demo's operator")
    told = capsys.readouterr().out
    assert "8 ran exactly once, 1 was skipped for a reason" in told
    assert all(len(line) <= 80 for line in told.splitlines() if "idemreg" not in line and "grep" not in line)


def test_both_acts_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default both are played; each is an object on a line of its own, and nothing else is on stdout."""
    assert demo.main(str(tmp_path), workers=1, tasks=2, as_json=True) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["act"], first["tasks"]) == (1, 2)
    figures = [second[one] for one in ("act", "slots", "run", "skipped", "serials", "fenced")]
    assert figures == [2, 9, 8, 1, 9, 1]
    assert (first.keys() | second.keys()) == DEMO_FIELDS.keys()


def twice(folder: Path) -> None:
    Book(Witness(str(folder / "coupons.log"))).issue(slot(25), "COUP-ANOTHER", "nobody", 1)


def same_serial(folder: Path) -> None:
    book = Book(Witness(str(folder / "coupons.log")))
    serial = book.entries()[1].serial
    book.enter("coupon:else", "nobody", 1)
    book.issue("coupon:else", serial, "nobody", 1)


def missing(folder: Path) -> None:
    with Registry(folder / "coupons.db", create=False, clock=FileClock(str(folder / "clock"))) as registry:
        registry.forget(slot(26))


@pytest.mark.parametrize(
    ("harm", "finding"),
    [
        (twice, f"{slot(25)}: 2 coupons, not 1"),
        (same_serial, "this serial was issued 2 times"),
        (missing, f"{slot(26)}: missing (its row was removed), says the audit"),
    ],
)
def test_harm_fails_loudly(
    harm: Callable[[Path], None],
    finding: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A double in the witness file, a serial that repeats, a slot that is gone: exit code 1, and it is named."""
    paused = SecondAct._paused

    def harmed(act: SecondAct, *args: Any) -> nights.Late:
        late = paused(act, *args)
        harm(tmp_path)
        return late

    monkeypatch.setattr(SecondAct, "_paused", harmed)
    assert demo.main(str(tmp_path), act=2) == 1
    out, err = capsys.readouterr()
    assert "exactly once" not in out
    assert "DEMO FAILED" in err
    assert finding in err


def changed(account: nights.Account, **parts: Any) -> list[str]:
    """What disagrees once a part of it is another; a dictionary changes or (by None) removes some."""
    told = account._told._replace(**parts.pop("told", {}))
    rows = dict(account._rows) | parts.pop("rows", {})
    audited = dict(account._audited) | parts.pop("audited", {})
    entries = parts.pop("entries", account._entries)
    assert not parts
    rows, audited = ({key: one for key, one in some.items() if one is not None} for some in (rows, audited))
    return nights.Account(told, list(audited.values()), rows, entries).disagreements()


def test_every_kind_of_disagreement_of_the_nights_is_found(kept: Kept) -> None:
    """Each is a finding of its own; and without any change there is none."""
    account = kept.account
    told, rows, audited, entries = account._told, account._rows, account._audited, list(account._entries)
    night, off, late, before = slot(25), slot(29), slot(30), slot(24)
    assert changed(account) == []
    assert f"{night}: without a row, neither run nor skipped" in changed(account, rows={night: None})
    pending = audited[night]._replace(state="pending")
    assert f"{night}: pending, neither run nor skipped" in changed(account, audited={night: pending})
    silent = audited[off]._replace(reason=None)
    assert changed(account, audited={off: silent}) == [f"{off}: skipped, and nothing says why"]
    other = rows[night]._replace(result='"COUP-OTHER"')
    assert "COUP-OTHER is stored" in changed(account, rows={night: other})[0]
    assert f"{night}: a slot by the calendar alone" in changed(account, audited={night: None})
    fewer = {key: at for key, at in told.nights.items() if key != night}
    assert f"{night}: a slot by the audit alone" in changed(account, told={"nights": fewer})
    double = audited[night]._replace(state="double", reason="run, and no slot")
    assert f"{night}: double (run, and no slot), says the audit" in changed(account, audited={night: double})
    again = [*entries, Entry(night, ENTERED, "-", "C", 9)]
    assert changed(account, entries=again) == [f"{night}: its job was entered 2 times, not 1"]
    stray = [*entries, Entry("stray", ENTERED, "-", "C", 9)]
    assert changed(account, entries=stray) == ["stray: the witness saw it, and it has no row"]
    assert changed(account, entries=[one for one in entries if one.task_id != "coupon:by-hand"]) == []
    by_hand = [*entries, Entry("coupon:by-hand", ENTERED, "-", "C", 9)]
    assert "1 coupon by 2 executions" in changed(account, entries=by_hand)[0]
    mild = told.late._replace(code="done")
    assert changed(account, told={"late": mild}) == [f"{late}: the late owner got 'done', not 'claim-lost'"]
    swapped = [one._replace(token=1) if (one.task_id, one.by) == (late, "C") else one for one in entries]
    assert "token is not larger" in changed(account, entries=swapped)[0]
    by_late = [one._replace(by="B") if (one.task_id, one.what) == (late, ISSUED) else one for one in entries]
    assert f"{late}: its coupon is not the taker's alone" in changed(account, entries=by_late)
    back = [one._replace(serial="COUP-0") if (one.task_id, one.what) == (before, ISSUED) else one for one in entries]
    assert any("COUP-0: a serial that went back" in found for found in changed(account, entries=back))
    assert changed(account, rows={told.alarm: None}) == [f"{told.alarm}: no alarm that an operator has settled"]


def test_another_answer_ends_the_story(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler that ends by itself, says something else, or says nothing, is named; nobody waits for it."""
    monkeypatch.setattr("idemreg.demo.company.PROGRAM", "raise SystemExit(3)")
    assert demo.main(str(tmp_path), act=2) == 1
    assert "ended by itself, with exit code 3" in capsys.readouterr().err
    monkeypatch.setattr("idemreg.demo.company.PROGRAM", "import sys; sys.stdout.write('hello'); print(); input()")
    with Company() as company, pytest.raises(DemoError):
        company.hire("A")
    monkeypatch.setattr("idemreg.demo.company.PROGRAM", "input()")
    monkeypatch.setattr("idemreg.demo.process.SILENCE_S", 0)
    with Company() as company, pytest.raises(DemoError):
        company.hire("A")
    assert Answer({"a": "S"}, {}, "done", "").must_be("done", "a").issued == {"a": "S"}
    for wrong in (("done",), ("at", "a"), ("done", "a", "b")):
        with pytest.raises(DemoError):
            Answer({"a": "S"}, {}, "done", "").must_be(*wrong)
    with pytest.raises(DemoError) as caught:
        Answer({}, {"a": "claim-lost"}, "done", "").must_be("done")
    assert "it answered 'done' (coupons for nothing, claim-lost for a)" in str(caught.value)


def test_ctrl_c_leaves_no_stopped_process(tmp_path: Path) -> None:
    """Ctrl-C ends act two as well, with every scheduler, also the one that is paused just then."""
    program = """if True:
        import signal, sys
        from idemreg.demo import company, main
        stop = company.Scheduler.stop
        def stop_and_wait(scheduler):
            stop(scheduler)
            print("it is stopped", flush=True)
            signal.pause()
        company.Scheduler.stop = stop_and_wait
        sys.exit(main(sys.argv[1], act=2))
    """
    assert len(interrupted(program, tmp_path, b"it is stopped")) == 2


def test_without_cronsim_act_two_is_left_out(tmp_path: Path) -> None:
    """Act one is played and ends well, and a line says what act two needs; asked for alone, it is an error of usage."""
    program = "import sys; sys.modules['cronsim'] = None; from idemreg.demo import main; sys.exit(main({}))"

    def play(options: str) -> subprocess.CompletedProcess[str]:
        call = program.format(f"{str(tmp_path)!r}, {options}")
        return subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False, cwd=ROOT)

    alone = play("act=2")
    assert alone.returncode == 2
    both = play("workers=1, tasks=1")
    assert both.returncode == 0, both.stderr
    assert "exactly 1, for all 1;" in both.stdout
    assert "Act two" not in both.stdout
    for told in (alone.stderr, both.stderr):
        assert "act two is left out" in told
        assert 'pip install "idemreg[schedule]"' in told


def test_make_demo_brings_what_act_two_needs() -> None:
    """The set-up behind `make demo` installs the extra of schedules, and no tools for tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    plan = subprocess.run(
        ["make", "-n", "-B", "demo"], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    ).stdout
    assert "install -e '.[schedule]'" in plan
    assert "--group" not in plan


def test_all_who_read_the_file_have_one_instant(tmp_path: Path) -> None:
    """Time passes when the file is written, on both clocks; a clock that is set leaves the time since boot."""
    begin = datetime(2025, 11, 22, tzinfo=UTC)
    file = ClockFile(str(tmp_path / "clock"), begin)
    one, other = FileClock(file.path), FileClock(file.path)
    wall_us, boot_ms = one.wall_us(), one.boot_ms()
    assert wall_us == begin.timestamp() * 1_000_000
    file.advance(timedelta(seconds=90))
    assert (
        (one.wall_us(), one.boot_ms()) == (other.wall_us(), other.boot_ms()) == (wall_us + 90_000_000, boot_ms + 90_000)
    )
    file.set(begin)
    assert (other.wall_us(), other.boot_ms()) == (wall_us, boot_ms + 90_000)


# --- help -------------------------------------------------------------------------------------------------------


def interrupted(program: str, folder: Path, word: bytes) -> list[int]:
    """Runs it on a terminal, and interrupts it once it says the word: the children that it had, all gone by now."""
    parent_side, child_side = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdout=child_side,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        process_group=0,
        text=True,
    ) as process:
        os.close(child_side)
        try:
            wait_for(parent_side, word)
            workers = children_of(process.pid)
            os.killpg(process.pid, signal.SIGINT)  # what the terminal does
            _, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            os.close(parent_side)
    assert process.returncode == 130
    assert err.count("\n") == 1
    assert "every worker is gone" in err
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]
    return workers


def wait_for(fd: int, word: bytes) -> None:
    seen = b""
    while word not in seen:
        ready, _, _ = select.select([fd], [], [], PATIENCE_S)
        assert ready, "the demonstration said nothing"
        seen = seen[-100:] + os.read(fd, 65_536)


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


# --- what hardly ever happens -----------------------------------------------------------------------------------


def test_a_progress_line_is_taken_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal: the account begins where it stood."""
    act = FirstAct(str(tmp_path), 1, 1, 3, as_json=False)
    act._is_terminal = True
    assert act.play() == 0
    shown = capsys.readouterr().out
    assert "deliveries, 1 workers killed\r\033[K1 task, delivered " in shown


def test_a_job_that_is_to_die_somewhere_is_not_told_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin of the one that was killed there runs on, and waits for no word."""
    program = "print('ready', flush=True); input(); print('at running\\nran', flush=True); assert not input()"
    monkeypatch.setattr(crews, "PROGRAM", program)
    with Crew("jobs.db", "witness.log", 1, {}) as crew:
        crew.deliver([Delivery("coupon", 1)], lambda _: None)
        assert (crew.answers, crew.delivered, crew.killed) == ({"ran": 1}, 1, {})


def speak(program: str, *words: str, said: str) -> tuple[int, str]:
    """What a process of the demonstration answers, and how it ends."""
    done = subprocess.run(
        [sys.executable, "-c", f"from idemreg.demo.{program} import main; main()", *words],
        input=said, text=True, cwd=ROOT, stdout=subprocess.PIPE, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_a_worker_that_nobody_kills_ends_its_job(tmp_path: Path) -> None:
    """It says that it is at it, and goes on."""
    database, witness = str(tmp_path / "jobs.db"), str(tmp_path / "witness.log")
    assert speak("worker", database, witness, said="letter 1 running\n") == (0, "ready\nat running\nran\n")
    assert Witness(witness).effects() == {"letter:1": 1}
    with Registry(database) as registry:
        assert registry.count() == {Status.SUCCEEDED: 1}


def test_a_scheduler_whose_company_is_gone_ends_in_the_middle(tmp_path: Path) -> None:
    """No coupon is issued that nobody would hear of."""
    database, witness = str(tmp_path / "coupons.db"), str(tmp_path / "coupons.log")
    clock = ClockFile(str(tmp_path / "clock"), datetime(2026, 11, 23, tzinfo=UTC))
    code, said = speak("issuer", database, witness, clock.path, "A", said="look entered\nissue coupon:1\n")
    assert (code, said) == (1, "ready\ndone\nat entered\n")
    assert [one.what for one in Book(Witness(witness)).entries()] == [ENTERED]
    with Registry(database, clock=FileClock(clock.path)) as registry:
        task = registry.get("coupon:1")
        assert task is not None
        owner = registry.owner(task)
        assert owner is not None
        assert (task.status, owner.liveness) == (Status.RUNNING, Liveness.DEAD)


class Canned:
    """A company whose schedulers answer what they are told to, one after the other."""

    name = "B"

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)

    def hire(self, _name: str) -> Canned:
        return self

    def look(self, _moment: str = "-") -> Answer:
        return self._answers.pop(0)

    issue = answer = look

    def beat(self) -> None:
        """Nobody has a heart here."""

    stop = resume = beat

    def tell(self, words: str) -> None:
        """Nobody listens."""


def test_a_serial_that_goes_back_with_the_clock_ends_the_story(tmp_path: Path, registry: Registry) -> None:
    """It is what the act is to show."""
    in_doubt = Answer({}, {}, "suspended", "clock@")
    second = Canned(
        Answer({slot(28): "COUP-2"}, {}, "done", ""), in_doubt, in_doubt, Answer({BY_HAND: "COUP-1"}, {}, "done", "")
    )
    act = SecondAct(str(tmp_path), as_json=True)
    with pytest.raises(DemoError, match="the serial went back with the clock: COUP-2, then COUP-1"):
        act._set_back(registry, cast("Any", second))


def test_a_slot_that_two_have_issued_ends_the_story(tmp_path: Path) -> None:
    """So is this."""
    both = Answer({slot(31): "COUP-1"}, {}, "done", "")
    company = Canned(
        Answer({}, {}, "at", "entered"),
        Answer({}, {}, "done", ""),
        Answer({slot(30): "COUP-0"}, {}, "done", ""),
        Answer({}, {slot(30): "claim-lost"}, "done", ""),
        both,
        both,
    )
    act = SecondAct(str(tmp_path), as_json=True)
    with pytest.raises(DemoError, match="two schedulers that looked at once"):
        act._paused(cast("Any", company), cast("Any", company))
