"""show, list and stats: everything is told, nothing is changed, and every line fits."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from idemreg import Registry
from idemreg.cli import task as rows
from idemreg.cli.look import STATS_FIELDS
from idemreg.cli.text import width
from idemreg.model import Status
from idemreg.testing import ManualClock
from tests.support.processes import Script

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.driver import Cli

COLOUR = re.compile(r"\x1b\[\d+m")
WIDE_ID = "備份:東京:2026-11-23:" + "長い" * 20
HOSTILE = "a\u202eb\u200d"  # what a task_id may hold, and a terminal must not get
EVIL = "x\x1b]0;owned\x07y\x1b[2J\u202e\r\nz"


def fail(registry: Registry, task_id: str, message: str, **options: object) -> None:
    def job() -> None:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError):
        registry.run(task_id, job, name="a.job", **options)  # type: ignore[arg-type]


@pytest.fixture
def many(registry: Registry) -> Registry:
    """A row in every status that needs no second process, with ids of every shape."""
    registry.run("short", lambda: {"parts": 3}, name="backup")
    registry.run(WIDE_ID, lambda: None, name="備份")
    registry.run("order:" + "0123456789" * 12, lambda: None, name="a.very.long.module.and.function.name.indeed")
    registry.run(HOSTILE, lambda: EVIL, name=HOSTILE)
    registry.add("waits", name="later")
    registry.add("skipped", name="later")
    registry.skip("skipped", EVIL)
    fail(registry, "failed", EVIL)
    fail(registry, "held", "no", on_failure="hold")
    fail(registry, "who-knows", "timed out", unknown_on=RuntimeError)
    return registry


# --- they only look ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["show", "x"], ["list"], ["stats"], ["resolve", "x", "happened"], ["retry", "x"], ["forget", "x"]]
)
def test_looking_creates_nothing(cli: Cli, path: Path, words: list[str]) -> None:
    """Where there is no registry, a command that looks or settles says how to make one, and leaves no file."""
    result = cli(*words)
    assert result.exit_code == 74
    assert result.stderr == (
        f"idemreg: there is no registry at {path}\n"
        "  hint: Create it first: `idemreg init`, or name another file with --db.\n"
    )
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("left", ["nothing", "an empty file"])
@pytest.mark.parametrize(
    "words",
    [
        *(["show", "x"], ["list"], ["stats"], ["resolve", "x", "happened"], ["retry", "x"], ["forget", "x"]),
        *(["export"], ["audit", "x"], ["checkpoint"], ["schedule"], ["clock"], ["backup", "out"], ["purge", "--yes"]),
        *(["init"], ["run", "x", "--", "true"]),
    ],
)
def test_a_database_that_has_vanished_is_told(cli: Cli, path: Path, words: list[str], left: str) -> None:
    """Beside its lock file it is none that was never made: every command says so, and what to do, as `init` does."""
    with Registry(path) as registry:
        registry.run("x", int)
    path.unlink()
    if left != "nothing":
        path.touch()
    before = sorted(path.parent.iterdir())
    result = cli(*words)
    assert result.exit_code == 74
    assert "has vanished or is empty" in result.stderr
    assert f"Put a backup in its place; to start anew and forget every task, delete {path}-lock." in result.stderr
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("lock", [b"", b"idemreg lock 1\0\0" + bytes(4_080), b"another program's"])
def test_a_lock_file_alone_tells_of_no_database(cli: Cli, path: Path, lock: bytes) -> None:
    """Whoever made it was stopped before there was one: to look at it, there is no registry yet."""
    path.with_name(f"{path.name}-lock").write_bytes(lock)
    result = cli("list")
    assert result.exit_code == 74
    assert "there is no registry" in result.stderr


# --- a person reads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_every_row_fits_the_terminal(many: Registry, cli: Cli, columns: int) -> None:
    """On a terminal of any width a task takes one line of the list, whatever its id is made of."""
    screen = COLOUR.sub("", cli.terminal(columns, "list")).splitlines()
    assert len(screen) == 1 + sum(many.count().values())
    assert not [line for line in screen if width(line) > columns]
    assert screen[0].startswith("TASK_ID")


@pytest.mark.parametrize("columns", [40, 80])
def test_everything_else_fits_as_well(many: Registry, cli: Cli, columns: int) -> None:
    """show and stats fold or shorten what is too long for the terminal."""
    for words in (["show", WIDE_ID], ["show", "failed"], ["show", "who-knows"], ["stats"]):
        screen = COLOUR.sub("", cli.terminal(columns, *words)).splitlines()
        assert screen
        assert not [line for line in screen if width(line) > columns and not line.startswith("/")]


def test_a_narrow_list_keeps_what_matters(many: Registry, cli: Cli) -> None:
    """On 40 columns id, status and age stay, and a long id keeps both its ends."""
    result = cli("list", COLUMNS="40")
    assert result.stdout.splitlines()[0].split() == ["TASK_ID", "STATUS", "AGE"]
    assert re.search(r"^order:0123\S*…\S*6789  succeeded  \d+s$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("words", [["list"], ["show", HOSTILE], ["show", "failed"], ["show", "skipped"]])
def test_stored_text_cannot_act_on_a_terminal(many: Registry, cli: Cli, words: list[str]) -> None:
    """Names, errors, evidence and results are shown with every control character spelled out."""
    screen = COLOUR.sub("", cli.terminal(80, *words))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u200b-\u200f]", screen)
    assert "\\u202e" in screen


def test_colours_only_on_a_terminal(many: Registry, cli: Cli) -> None:
    """A terminal gets colours, a pipe, NO_COLOR and a dumb terminal get none."""
    assert COLOUR.search(cli.terminal(80, "list"))
    assert not COLOUR.search(cli.terminal(80, "list", NO_COLOR="1"))
    assert not COLOUR.search(cli.process("list", TERM="xterm").stdout)


def test_a_pipe_gets_eighty_columns(many: Registry, cli: Cli) -> None:
    """In a pipe a line has at most 80 columns, or COLUMNS where that is set, even to nonsense."""
    assert max(map(width, cli.process("list").stdout.splitlines())) <= 80
    assert max(map(width, cli.process("list", COLUMNS="wide").stdout.splitlines())) <= 80
    assert max(map(width, cli.process("list", COLUMNS="150").stdout.splitlines())) > 80


def test_any_encoding_will_do(many: Registry, cli: Cli) -> None:
    """A terminal without Unicode gets escapes, not an error."""
    done = cli.process("list", PYTHONIOENCODING="ascii", COLUMNS="200")
    assert done.returncode == 0
    assert "\\u5099\\u4efd" in done.stdout


@pytest.mark.parametrize(
    ("task_id", "words"),
    [
        ("short", "succeeded: it ran, and will not run again"),
        ("waits", "pending: the next call runs it"),
        ("skipped", "skipped: it was skipped for good, and will not run"),
        ("failed", "failed: the next call runs it again"),
        ("held", "failed: it is held, and does not run again by itself"),
        ("who-knows", "unknown: nobody knows whether it happened"),
    ],
)
def test_show_says_what_the_status_means(many: Registry, cli: Cli, task_id: str, words: str) -> None:
    """Every status comes with a sentence that says what happens next."""
    assert f"status    {words}\n" in cli("show", task_id).stdout


def test_show_names_the_next_command(many: Registry, cli: Cli, path: Path) -> None:
    """Where an operator is needed, show ends with the command, with the task's own name and file."""
    assert "`idemreg retry held`" in cli("show", "held").stdout
    assert "`idemreg resolve who-knows happened`" in cli("show", "who-knows", COLUMNS="200").stdout
    shown = cli("--db", str(path), "show", "held", COLUMNS="300", IDEMREG_DB="").stdout
    assert f"`idemreg --db {path} retry held`" in shown


def test_a_missing_task_is_an_error(many: Registry, cli: Cli, path: Path) -> None:
    """show of a task that does not exist is an error, not an empty answer."""
    result = cli("show", "nope")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"idemreg: there is no task 'nope' in {path}\n  hint: ")


def test_what_is_left_of_a_claims_limits_is_told(cli: Cli, registry: Registry) -> None:
    """Of a lease and of a time limit: in words, and in milliseconds; of a claim without either, null."""
    with registry.claim("t", lease=3_600, timeout=86_400):
        assert re.search(
            r"^limits +its lease is good for another \d+m; overdue in 23h$", cli("show", "t").stdout, re.MULTILINE
        )
        told = cli.json("show", "t")
        assert 0 < told["lease_left_ms"] <= 3_600_000
        assert -86_400_000 <= told["overdue_ms"] < 0
        assert "running (" not in cli("list").stdout
    told = cli.json("show", "t")
    assert (told["lease_left_ms"], told["overdue_ms"]) == (None, None)


def test_an_expired_lease_and_an_overdue_job_are_seen_at_once(cli: Cli, path: Path) -> None:
    """show and list tell them from a task whose owner is at work, and what the next call would do."""
    clock = ManualClock(boot_ms=0)  # this machine has been up for longer than the limits
    with (
        Registry(path, clock=clock) as owner,
        owner.claim("hold", lease=1),
        owner.claim("again", lease=1, on_crash="rerun"),
        owner.claim("o", timeout=1),
    ):
        listed = cli("list", COLUMNS="60").stdout
        assert re.findall(r"running \(.*?\)", listed) == ["running (lease expired)"] * 2 + ["running (overdue)"]
        assert "running: its lease has expired; nobody knows whether it happened" in cli("show", "hold").stdout
        assert "running: its lease has expired; the next call runs it again" in cli("show", "again").stdout
        assert "limits    its lease has expired" in cli("show", "again").stdout
        assert "running: its owner is at work" in cli("show", "o").stdout
        assert "limits    overdue for " in cli("show", "o").stdout
        assert cli.json("show", "hold")["owner_liveness"] == "lease expired"
        assert cli.json("show", "hold")["lease_left_ms"] < 0
        assert cli.json("show", "o")["overdue_ms"] > 0


def test_a_dead_owner_is_seen_at_once(cli: Cli, registry: Registry, path: Path) -> None:
    """show and list tell a running task whose owner was killed from one that is at work."""
    program = """
        from idemreg import Registry
        with Registry(sys.argv[1]).claim("t", name="job"):
            say("claimed")
            wait()
    """
    with Script(program, path) as script:
        script.expect("claimed")
        assert "running: its owner is at work" in cli("show", "t").stdout
        assert cli.json("show", "t")["owner_liveness"] == "alive"
        assert f"process {script.process.pid} on " in cli("show", "t", COLUMNS="300").stdout
        script.kill()
    assert "running: its owner is dead; nobody knows whether it happened" in cli("show", "t").stdout
    assert "`idemreg resolve t happened`" in cli("show", "t", COLUMNS="200").stdout
    assert "running (dead)" in cli("list", COLUMNS="40").stdout
    assert cli.json("list")["owner_liveness"] == "dead"
    assert registry.get("t").status is Status.RUNNING  # type: ignore[union-attr] # looking changed nothing


def test_a_long_output_is_bounded(registry: Registry, cli: Cli) -> None:
    """show gives the last lines of a command's output, and the beginning of any other large result."""
    output = {"exit_code": 0, "output": [[1, "".join(f"line {n}\n" for n in range(999))], [2, b"\xff\x1b!"]]}
    registry.run("command", lambda: {**output, "truncated": False})
    registry.run("list", lambda: list(range(9_999)))
    registry.run("text", lambda: "x" * 99_999)
    shown = cli("show", "command").stdout
    assert "line 998\n" in shown
    assert "line 900\n" not in shown
    assert "\\xff\\x1b!" in shown
    assert "--json tells all of it" in cli("show", "list").stdout
    assert all(len(cli("show", task_id).stdout) < 6_000 for task_id in ("command", "list", "text"))


# --- a program reads --------------------------------------------------------------------------------------------


def test_json_has_the_documented_fields(many: Registry, cli: Cli) -> None:
    """The fields of show, list and stats are those that their help names, in its order."""
    assert list(cli.json("show", "short")) == list(rows.SHOW_FIELDS)
    assert list(cli.json("stats")) == list(STATS_FIELDS)
    lines = cli("list", "--json").stdout.splitlines()
    assert len(lines) == sum(many.count().values())
    assert all(list(json.loads(line)) == list(rows.FIELDS) for line in lines)


def test_json_holds_the_row(many: Registry, cli: Cli) -> None:
    """The JSON of a task is its row: the same names and values, words for numbers, the result as JSON."""
    task = many.get("short")
    assert task is not None
    shown = cli.json("show", "short")
    same = {"task_id", "checksum", "updated_at", "boot_stamp", "name", "token", "attempt", "owner", "keep_ms", "error"}
    assert {name: shown[name] for name in same} == {name: getattr(task, name) for name in same}
    assert (shown["status"], shown["result"], shown["is_final"]) == ("succeeded", {"parts": 3}, True)
    assert shown["policy"] == {"on_crash": "hold", "on_failure": "retry", "max_attempts": 10}


def test_json_is_inert(many: Registry, cli: Cli) -> None:
    """JSON is ASCII without control characters, so it may go to any terminal and any encoding."""
    for line in cli("list", "--json").stdout.splitlines():
        assert line.isascii()
        assert line.isprintable()
    assert cli.json("show", HOSTILE)["result"] == EVIL


def test_list_takes_a_selection(many: Registry, cli: Cli) -> None:
    """--status, --prefix and --limit choose; an empty choice is said."""

    def ids(*words: str) -> list[str]:
        return [json.loads(line)["task_id"] for line in cli("list", "--json", *words).stdout.splitlines()]

    assert ids("--status", "unknown") == ["who-knows"]
    assert ids("--prefix", "備") == [WIDE_ID]
    assert ids("--limit", "2") == sorted(task.task_id for task in many.tasks())[:2]
    assert cli("list", "--prefix", "zzz").stdout == "no such tasks\n"
    assert cli("list", "--prefix", "zzz", "--json").stdout == ""
    assert cli("list", "--limit", "0").exit_code == 2
    assert len(ids("--limit", "9" * 20)) == sum(many.count().values())
    assert cli("list", "--newer-than", "0").stdout == "no such tasks\n"


@pytest.mark.parametrize(
    "words", [["list", "--prefix"], ["list", "--name"], ["purge", "--dry-run", "--prefix"], ["export", "--name"]]
)
def test_a_choice_is_text(many: Registry, cli: Cli, words: list[str]) -> None:
    """A word that is no UTF-8 chooses nothing: a usage error, before anything is written."""
    done = cli.process(*words, script='"$@" "$(printf "\\377")"')
    assert (done.returncode, done.stdout) == (2, "")
    assert "'\\udcff' is no UTF-8" in done.stderr


def test_stats_counts_every_status(many: Registry, cli: Cli, path: Path) -> None:
    """stats names every status in JSON, those that occur to people, and the file to both."""
    shown = cli.json("stats")
    assert shown["path"] == str(path)
    assert shown["counts"] == {status.word: many.count().get(status, 0) for status in Status}
    assert shown["total"] == sum(shown["counts"].values())
    text = cli("stats").stdout
    assert "  unknown    nobody knows whether they happened\n" in text
    assert "running" not in text
    assert text.endswith(f"{path}\n")


def test_an_empty_registry_has_no_tasks(cli: Cli) -> None:
    """An empty list is said in words."""
    cli("init")
    assert cli("list").stdout == "no tasks yet\n"
    assert cli.json("stats")["total"] == 0


def test_a_reader_may_leave(registry: Registry, cli: Cli) -> None:
    """`idemreg list | head` ends quietly, with the exit code of a broken pipe, however long the list is."""
    for number in range(3_000):
        registry.add(f"task:{number:05}", name="job")
    done = cli.process("list", script='{ "$@"; echo "exit $?" >&2; } | head -2')
    assert done.stderr == "exit 141\n"
    assert done.stdout.startswith("TASK_ID")


def test_a_full_disk_behind_stdout(many: Registry, cli: Cli) -> None:
    """Output that cannot be written is an error of its own, in one line."""
    for words in (["list"], ["stats", "--json"], ["doctor"], ["doctor", "--json"]):
        done = cli.process(*words, script='"$@" >/dev/full')
        assert done.returncode == 74
        assert "No space left on device" in done.stderr
        assert "Exception" not in done.stderr
