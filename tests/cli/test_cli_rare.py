"""What the commands say where something rare has happened: each in its words, with the exit code that it has."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click
import pytest

from idemreg import Liveness, OwnerInfo, Registry, Status, StoreBusyError
from idemreg.cli import main
from idemreg.cli.account import _size_of_input
from idemreg.cli.checkpoint import _fields, _tell
from idemreg.cli.context import Settings
from idemreg.cli.doctor import _gap_lines
from idemreg.cli.failures import describe, guarded
from idemreg.cli.keep import _tell_plan
from idemreg.cli.printing import _Printed
from idemreg.cli.progress import bar
from idemreg.cli.render import local_time
from idemreg.cli.schedule import _Teller
from idemreg.cli.step import step
from idemreg.cli.task import _result_lines, meaning, next_step, show_fields
from idemreg.cli.text import _head, _tail
from idemreg.cli.values import EXIT_CODES
from idemreg.doctor import examine, inside
from idemreg.model import NO_CHECKSUM, Policy, Task
from idemreg.purge import Purge
from idemreg.sqlite.checkpoints import Checkpoint
from idemreg.sqlite.gaps import EVERYWHERE, Gaps, Range
from idemreg.sqlite.readers import WalReader
from tests.support.raw import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.driver import Cli


@pytest.fixture
def of_a_command(path: Path) -> Iterator[None]:
    """As inside a command, whose settings are asked for."""
    settings = Settings()
    settings.db = str(path)
    with click.Context(main, obj=settings):
        yield


def test_what_a_salvage_may_have_missed() -> None:
    """Each kind of gap is a sentence of its own."""
    assert list(_gap_lines(Gaps(5))) == ["nothing is missing"]
    ranges = EVERYWHERE, Range(None, "b\n"), Range("c", None), Range("d", "e")
    gaps = Gaps(
        *(9, 2, (3, 4), ranges, ("x", "y"), 5),
        lost_frames=True, lost_file_row=True, lost_free_list=True, lost_steps=True, other_tables=("stock",),
    )  # fmt: skip
    said = list(_gap_lines(gaps))
    assert said[:6] == [
        "damaged or not there: 2 of 9 pages",
        "rows may be lost anywhere",
        "rows may be lost up to b\\n",
        "rows may be lost from c on",
        "rows may be lost from d to e",
        "5 damaged rows: x, y, and 3 more",
    ]
    words = ("-wal is damaged", "new id", "may be back", "steps may be lost", "not copied: stock")
    assert [word in line for word, line in zip(words, said[6:], strict=True)] == [True] * 5
    assert list(_gap_lines(Gaps(9, broken=("x",), broken_rows=1))) == ["1 damaged row: x"]
    held = Gaps(9, lost_schedules=True, paused=("a", "b\n"), paused_schedules=3, lost_clock=True)
    assert list(_gap_lines(held)) == [
        "schedules may be lost, with their pauses: one that the copy does not list begins anew",
        "schedules are paused in the copy: a, b\\n, and 1 more",
        "what comes due is skipped; once you have seen what ran: idemreg schedule --resume NAME",
        "what was known of the clock may be lost",
    ]
    lacking = Gaps(9, without_arguments=("a", "b\n"), tasks_without_arguments=3)
    told = "kept arguments are not in the copy, and no sweep reruns their tasks: a, b\\n"
    assert list(_gap_lines(lacking)) == [f"{told}, and 1 more"]
    assert list(_gap_lines(lacking._replace(tasks_without_arguments=2))) == [told]
    *_, last = _gap_lines(held._replace(suspended="clock@x"))
    assert last == "what was known of the clock may be lost: clock@x suspends schedules until idemreg clock --confirm"


@pytest.mark.usefixtures("of_a_command")
@pytest.mark.parametrize(
    ("done", "told", "readers"),
    [
        (Checkpoint("FULL", -1, -1, busy=True), "another checkpoint is at work", []),
        (Checkpoint("FULL", 3, 1, busy=True, readers=None), "does not tell who is reading", None),
        (Checkpoint("FULL", 3, 1, busy=True), "gone by now or cannot be seen", []),
    ],
)
def test_a_checkpoint_that_did_not_complete(
    done: Checkpoint, told: str, readers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever was in the way is not always known."""
    _tell(done)
    assert told in " ".join(capsys.readouterr().out.split())
    assert _fields(done)["readers"] == readers


def test_a_state_folder_that_cannot_be_made(cli: Cli, tmp_path: Path) -> None:
    """A file is in the way: nothing is created, and the error names the folder."""
    (tmp_path / "file").touch()
    result = cli("init", IDEMREG_DB="", XDG_STATE_HOME=str(tmp_path / "file"))
    assert result.exit_code == 74
    assert f"cannot create the folder {tmp_path}/file/idemreg" in " ".join(result.stderr.split()).replace("- ", "-")
    assert os.listdir(tmp_path) == ["file"]


def test_other_programs_may_ask_for_a_command() -> None:
    """As those that make manuals of it do: by its name, and without an end of the process."""
    with click.Context(main) as ctx:
        assert main.get_command(ctx, "no such command") is None
    assert main.main(["--help"], "idemreg", standalone_mode=False) == 0


def test_the_demonstration_is_a_command(cli: Cli, tmp_path: Path) -> None:
    """With its own exit code, and as JSON."""
    words = ("demo", "--act", "1", "--tasks", "1", "--workers", "1", "--keep", str(tmp_path / "demo"))
    told = cli.json(*words)
    assert (told["tasks"], told["effects_a_task"]) == (1, 1)
    assert cli(*words).exit_code == 2  # there is a registry now


def test_many_bad_lines_are_counted_and_not_told(path: Path, cli: Cli) -> None:
    """Twenty are, and that there are more."""
    script = 'i=0; while [ $i -lt 30 ]; do echo nonsense; i=$((i+1)); done | "$@"'
    done = cli.process("each", "--task-id", "{id}", "--", "true", script=script)
    assert done.returncode == 65
    assert done.stderr.count("refused:") == 20
    assert "further lines of this kind are counted, and not shown" in done.stderr
    assert "30 refused" in done.stderr
    assert not path.exists() or not Registry(path, create=False).count()


def test_an_input_that_is_not_there_has_no_size() -> None:
    """A closed standard input is empty, and nobody can know how large it would be."""
    kept = os.dup(0)
    try:
        os.close(0)
        assert _size_of_input() == 0
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def test_an_age_beyond_all_time(cli: Cli) -> None:
    """So far back there is nothing: it is from the beginning."""
    assert cli("init").exit_code == 0
    result = cli("audit", "nightly", "--since", "900000d")
    assert "no schedule" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["each", "extra", "--task-id", "{id}", "--", "true"], "the command goes behind --"),
        (["each", "--task-id", "{id}", "--python", "os:getpid", "--no-output"], "--no-output is for commands"),
        (["each", "--task-id", "{id}", "--python", "os:sep"], "is no function"),
        (["each", "--task-id", "{id}", "--payload", "id,,n", "--", "true"], "a field without a name"),
        (["each", "--task-id", "ship:{id", "--", "true"], "write {name} for a field"),
        (["schedule", "json:nope"], "'json:nope' names nothing"),
        (["schedule", "json:nope"], "Behind the colon stands the registry in it: `idemreg schedule MODULE:REGISTRY`."),
        (["schedule", "os:path.jion"], "Did you mean os:path.join?"),
        (["schedule", "jsn:registry"], "Does `python -c 'import jsn'` work in this folder?"),
        (["step", "name", "extra", "--", "true"], "the command goes behind --"),
    ],
)
def test_misuse_is_told(cli: Cli, words: list[str], told: str) -> None:
    """A usage error, before anything is read or run."""
    result = cli(*words)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert not cli.path.exists()


def test_many_conflicts_are_counted(cli: Cli, tmp_path: Path) -> None:
    """An import names some of what it has left alone, and says how many more there are."""
    for number, db in enumerate((cli.path, tmp_path / "other.db")):
        with Registry(db, durability="normal") as registry:
            list(registry.consume(range(12), lambda _, n=number: n, task_id="t:{}".format, name="job"))  # type: ignore[misc]
    out = tmp_path / "out.jsonl"
    out.write_text(cli("--db", str(tmp_path / "other.db"), "export").stdout)
    result = cli("import", str(out))
    assert "more (--json names a hundred)" in result.stdout, result.output


def test_an_exit_goes_on_its_way() -> None:
    """What ends the process by itself is no error of the command."""

    def leave() -> None:
        raise SystemExit(7)

    with pytest.raises(SystemExit) as left:
        guarded(leave, Settings())
    assert left.value.code == 7


def test_a_usage_error_of_no_command_names_the_help() -> None:
    """There is no form of it to be shown."""
    assert describe(click.ClickException("no"), Settings())["hint"] == "`idemreg --help` tells more."


def test_an_error_behind_a_closed_stderr_is_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """There is nowhere to tell it."""

    def fail() -> None:
        msg = "nobody hears it"
        raise OSError(msg)

    with pytest.MonkeyPatch.context() as patch:
        closed = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it is closed on purpose
        closed.close()
        patch.setattr("sys.stderr", closed)
        assert guarded(fail, Settings()) == 74
    assert "nobody" not in capsys.readouterr().err


def test_what_stands_in_for_stdout_is_as_it_was() -> None:
    """A function may ask whether it prints to a terminal, and by which descriptor."""
    with open(os.devnull, "w", encoding="utf-8") as stream:
        printed = _Printed(None, 1, stream)  # type: ignore[arg-type]
        assert (printed.isatty(), printed.fileno()) == (stream.isatty(), stream.fileno())


def test_a_date_that_the_zone_cannot_place_is_shown_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last instant of all, east of Greenwich: it has no date there."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert local_time(10**18) == "9999-12-31 23:59:59 UTC"
    finally:
        monkeypatch.undo()
        time.tzset()


def task(**fields: Any) -> Task:
    first = Task("t", Status.SUCCEEDED, NO_CHECKSUM, 0, 0, "job", 1, 1, None, Policy(), *[None] * 6)
    return first._replace(**fields)


def test_a_task_of_which_nobody_can_tell() -> None:
    """Neither what it is, nor what there is to be done, is as of one that runs."""
    running, owner = task(status=Status.RUNNING, owner=7), OwnerInfo(7, Liveness.CANNOT_TELL)
    assert meaning(running, owner) == "nobody can tell whether its owner lives"
    assert "Find out whether its owner still works" in (next_step(running, owner) or "")


def test_a_task_whose_result_is_lost() -> None:
    """It ran all the same."""
    assert "its result is lost" in meaning(task(), None)


@pytest.mark.parametrize("stored", ["no JSON", "[" * 100_000])
def test_a_result_that_is_none_is_shown_as_it_is(cli: Cli, stored: str) -> None:
    """What cannot be read as JSON is text."""
    assert show_fields(task(result=stored), None, [], None)["result"] == stored
    assert _result_lines(stored)[0].startswith(stored[:5])
    assert cli.path.suffix == ".db"


def test_ends_of_texts_that_fit() -> None:
    """All of it, also where it begins with a character that joins the one before it."""
    assert _head("abc", 9) == "abc"
    assert _tail("abc", 9) == "abc"
    assert _tail("\u0301bc", 9) == "bc"


def test_exit_codes_that_are_a_set_already() -> None:
    """As click gives a default twice."""
    codes = frozenset({75})
    assert EXIT_CODES.convert(codes, None, None) is codes


def test_an_error_of_the_store_is_a_line_of_the_scheduler(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told as any other, and is the exit code; the next slot goes on."""
    with click.Context(main, obj=Settings()):
        teller = _Teller(sys.stdout, registry)
        teller(StoreBusyError("others write"))
    assert teller.exit_code == 74
    assert "others write" in capsys.readouterr().err


def test_what_a_job_raised_is_told_whether_its_status_can_be_read_or_not(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is there one where somebody has removed the row meanwhile."""

    def busy(_task_id: str) -> None:
        msg = "others write"
        raise StoreBusyError(msg)

    with click.Context(main, obj=Settings()) as ctx:
        ctx.obj.json = True
        teller = _Teller(sys.stdout, registry)
        teller.tell_slot("a@2026-11-23T04:00:00Z", ValueError("no luck"))
        monkeypatch.setattr(registry, "get", busy)
        teller.tell_slot("a@2026-11-23T04:00:00Z", ValueError("no luck"))
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["status"], one["error"]) for one in told] == [(None, "ValueError: no luck")] * 2


def test_a_bar_is_one_however_often_it_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal; elsewhere there is none."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with bar("copying") as show:
        for done in (1, 2, 3):
            show(done, 3)
    assert "copying" in terminal.getvalue()


def test_a_plan_of_nothing_has_no_span(capsys: pytest.CaptureFixture[str]) -> None:
    """No task, and so no oldest one."""
    _tell_plan(Purge([]), "would be removed")
    assert "would be" not in capsys.readouterr().out


def test_a_name_that_no_file_can_have_is_told_by_its_opening(cli: Cli, tmp_path: Path) -> None:
    """It is not called missing, which `init` would be told to mend."""
    result = cli("--db", str(tmp_path / ("x" * 300)), "list")
    assert result.exit_code == 74
    assert "File name too long" in result.stderr
    assert "init" not in result.stderr


def test_a_step_that_is_being_typed_is_not_refused() -> None:
    """A shell that completes a line asks for what is there so far."""
    assert step.make_context("step", [], resilient_parsing=True).command is step


def test_what_the_doctor_says_of_a_long_wal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is in its way, or that nobody can be seen."""
    monkeypatch.setattr(inside, "WAL_LARGE_BYTES", 0)
    with Registry(path, durability="normal") as registry:
        registry.run("t", lambda: 1)
        reader = WalReader(7, "a report", None)
        for readers, told in (
            ((), "nobody that /proc shows"),
            (None, "/proc does not tell"),
            ((reader, reader), "while it is read by process 7 (a report); process 7 (a report)"),
        ):
            monkeypatch.setattr(inside, "wal_readers", lambda *_, found=readers: found)
            (long,) = [one for one in examine(path) if one.code == "wal-large"]
            assert told in long.text


def test_what_the_doctor_says_of_a_file_that_is_hardly_one(path: Path, tmp_path: Path) -> None:
    """A database without a table, and a lock file that is a link."""
    with contextlib.closing(connect(path)) as connection:
        connection.execute("CREATE TABLE t (x); DROP TABLE t")
    assert "empty" in {one.code for one in examine(path)}
    (tmp_path / "jobs.db-lock").symlink_to("elsewhere")
    assert "planted" in {one.code for one in examine(path)}
