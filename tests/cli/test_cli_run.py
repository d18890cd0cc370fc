"""`idemreg run` as a shell sees it: words, streams, exit codes, and the one line of its own."""

from __future__ import annotations

import json
import re
import stat
from typing import TYPE_CHECKING

import pytest

from idemreg.cli.run import RUN_FIELDS
from tests.support.processes import Script

if TYPE_CHECKING:
    from pathlib import Path

    from idemreg import Registry
    from tests.cli.driver import Cli

SHELL = ("--", "sh", "-c")


# --- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["run"], "the TASK_ID is missing", "idemreg run [OPTIONS] TASK_ID -- COMMAND [ARGS]..."),
        (["run", "--", "ls"], "the TASK_ID is missing", "idemreg run [OPTIONS] TASK_ID -- COMMAND [ARGS]..."),
        (["run", "a b"], "the command is missing", "idemreg run 'a b' -- COMMAND [ARGS]..."),
        (["run", "a b", "--"], "the command is missing", "idemreg run 'a b' -- COMMAND [ARGS]..."),
        (["run", "t", "ls", "x y"], "the command goes behind --", "idemreg run t -- ls 'x y'"),
        (
            ["run", "t", "--verify", "x", "--", "ls"],
            "--verify CMD and --on-crash verify go together",
            "idemreg run --on",
        ),
        (["run", "t", "--on-crash", "verify", "--", "ls"], "--verify CMD and --on-crash verify go together", "idemreg"),
    ],
)
def test_the_form_is_shown(cli: Cli, path: Path, words: list[str], message: str, hint: str) -> None:
    """A line without its TASK_ID, its -- or its command is refused with the form, before any file is created."""
    result = cli(*words)
    assert result.exit_code == 2
    assert f"idemreg: {message}" in result.stderr
    assert f"  hint: {hint}" in result.stderr
    assert not path.exists()


@pytest.mark.parametrize(
    "option",
    [
        ["--wait", "-1"], ["--wait", "soon"], ["--wait", "nan"], ["--keep-for", "inf"], ["--keep-for", "1y"],
        ["--unknown-on", "0"], ["--unknown-on", "256"], ["--unknown-on", "1,,2"], ["--release-on", "x"],
        ["--max-attempts", "0"], ["--name", ""], ["--name", "a\nb"], ["--on-crash", "retry"], ["--durability", "half"],
    ],
)  # fmt: skip
def test_nonsense_is_refused(cli: Cli, path: Path, option: list[str]) -> None:
    """An option's value that means nothing is a usage error, before any file is created."""
    assert cli("run", *option, "t", "--", "true").exit_code == 2
    assert not path.exists()


def test_options_reach_the_row(cli: Cli) -> None:
    """Every option that is stored is stored as it was given, with its unit."""
    options = ["--name", "nightly", "--max-attempts", "3", "--on-crash", "rerun", "--on-failure", "hold"]
    assert cli.process("run", *options, "--keep-for", "1.5h", "t", "--", "true").returncode == 0
    row = cli.json("show", "t")
    assert (row["name"], row["keep_ms"]) == ("nightly", 5_400_000)
    assert row["policy"] == {"on_crash": "rerun", "on_failure": "hold", "max_attempts": 3}


def test_the_command_gets_its_words_untouched(cli: Cli) -> None:
    """Behind -- everything is the command's: options, further --, empty words."""
    done = cli.process("run", "t", "--json", "--", "printf", "[%s]", "--json", "--", "", "-x", "--db")
    assert done.stdout == "[--json][--][][-x][--db]"


def test_a_command_may_begin_with_a_dash(cli: Cli) -> None:
    """A command's name may begin with a dash: it is looked for, and not taken as an option."""
    done = cli.process("run", "t", "--", "-ls")
    assert done.returncode == 127
    assert "no such command: -ls" in done.stderr


def test_a_task_id_may_begin_with_a_dash(cli: Cli) -> None:
    """Where TASK_ID begins with a dash it goes behind a -- of its own."""
    assert cli.process("run", "--", "-odd", "--", "echo", "x").stdout == "x\n"
    assert '"task_id": "-odd"' in cli("show", "--json", "--", "-odd").stdout


def test_a_malformed_task_id_creates_no_file(cli: Cli) -> None:
    """It is refused before a file comes into being, or is announced, for it."""
    done = cli.process("run", "bad\n", "--", "true")
    assert done.returncode == 2
    assert "created" not in done.stderr
    assert not cli.path.exists()


# --- streams and exit codes -------------------------------------------------------------------------------------


def test_a_replay_writes_the_output_again(cli: Cli) -> None:
    """A duplicate writes the stored output to the streams it came from, exits with 0, and says so in one line."""
    words = ("run", "backup:2026-11-23", *SHELL, "echo out; echo err >&2")
    first, second = cli.process(*words), cli.process(*words)
    assert (first.returncode, first.stdout) == (0, "out\n")
    assert first.stderr == f"idemreg: created {cli.path}\nerr\n"
    assert (second.returncode, second.stdout) == (0, "out\n")
    line = r"idemreg: backup:2026-11-23 succeeded before \(attempt 1, [0-9-]+ [0-9:]+ UTC\); its output is above\n"
    assert re.fullmatch(rf"err\n{line}", second.stderr)


def test_a_remembered_failure_keeps_its_exit_code(cli: Cli) -> None:
    """A failure that is held is written again, with its exit code, and the hint names the way on."""
    words = ("run", "--on-failure", "hold", "t", *SHELL, "echo no; exit 9")
    assert cli.process(*words).returncode == 9
    again = cli.process(*words)
    assert (again.returncode, again.stdout) == (9, "no\n")
    assert "idemreg: t failed with exit code 9 before" in again.stderr
    assert "  hint: `idemreg retry t` allows one more attempt.\n" in again.stderr


@pytest.mark.parametrize("columns", [80, 40])
def test_on_a_terminal(cli: Cli, columns: int) -> None:
    """The command's output comes as it is, on a terminal as in a pipe; our own line follows it."""
    cli("init")
    words = ("run", "t", *SHELL, "printf '%s\n' wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww; echo err >&2")
    assert sorted(cli.terminal(columns, *words).splitlines()) == ["err", "w" * 50]
    again = cli.terminal(columns, *words).splitlines()
    assert sorted(again[:2]) == ["err", "w" * 50]
    assert again[2].startswith("idemreg: t succeeded before (attempt 1, ")


def test_a_plain_failure_adds_no_word(cli: Cli) -> None:
    """A failure that the next call repeats is the command's own affair: its exit code, and nothing else."""
    cli("init")
    done = cli.process("run", "t", *SHELL, "exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


def test_a_killed_command_is_unknown(cli: Cli) -> None:
    """A command that a signal killed exits with 128+n, becomes unknown, and the line names the next command."""
    words = ("run", "t", *SHELL, "kill -9 $$")
    first = cli.process(*words)
    assert first.returncode == 137
    assert "t is unknown: killed by signal 9; nobody knows whether it happened\n" in first.stderr
    assert "`idemreg resolve t happened`" in first.stderr
    assert cli.process(*words).returncode == 76


def test_exit_codes_of_refusals(cli: Cli, registry: Registry) -> None:
    """Other arguments 65, a duplicate that is not wanted 73, skipped 73, not found 127, not executable 126."""
    assert cli.process("run", "t", "--", "true").returncode == 0
    assert cli.process("run", "t", "--", "true", "x").returncode == 65
    assert cli.process("run", "--payload", "p", "t", "--", "true").returncode == 65
    assert cli.process("run", "--on-duplicate", "raise", "t", "--", "true").returncode == 73
    assert cli.process("run", "nf", "--", "/no/such/command").returncode == 127
    assert cli.process("run", "nx", "--", "/etc/passwd").returncode == 126


def test_running_elsewhere(cli: Cli, path: Path, tmp_path: Path) -> None:
    """While the command runs, a second call exits with 75 and tells who runs it."""
    program = """
        import subprocess
        command = [sys.executable, "-m", "idemreg", "--db", sys.argv[1], "run", "t", "--", "cat"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdin.write(b"x"); process.stdin.flush()
        process.stdout.read(1)
        say("running")
        wait()
        process.stdin.close()
        say(process.wait())
    """
    with Script(program, path) as script:
        script.expect("running")
        twin = cli.process("run", "t", "--", "cat")
        assert twin.returncode == 75
        assert "idemreg: task 't' is running: process " in twin.stderr
        assert "--wait SECONDS" in twin.stderr
        script.go()
        script.expect("0")


def test_codes_with_a_meaning(cli: Cli) -> None:
    """--unknown-on and --release-on take lists and repetition."""
    codes = ("--unknown-on", "3,4", "--unknown-on", "5", "--release-on", "6")
    for code, status in ((3, "unknown"), (4, "unknown"), (5, "unknown"), (6, "pending"), (7, "failed")):
        assert cli.process("run", *codes, f"t{code}", *SHELL, f"exit {code}").returncode == code
        assert cli.json("show", f"t{code}")["status"] == status


def test_verify_settles_an_unknown_task(cli: Cli) -> None:
    """The verify command decides what became of a killed command, and its output is kept as the evidence."""
    options = ("--on-crash", "verify", "--verify", "echo found $IDEMREG_TASK_ID")
    words = ("run", *options, "t", *SHELL, "kill -9 $$")
    assert cli.process(*words).returncode == 137
    assert cli.process(*words).returncode == 0
    row = cli.json("show", "t")
    assert (row["status"], row["verdict"], row["evidence"]) == ("succeeded", "happened", "found t")


def test_json_is_the_last_line_of_stderr(cli: Cli) -> None:
    """With --json stdout stays the command's, and the account is one object at the end of stderr."""
    words = ("run", "--json", "t", *SHELL, "echo '{}'; echo noise >&2; exit 4")
    done = cli.process(*words)
    assert done.stdout == "{}\n"
    account = json.loads(done.stderr.splitlines()[-1])
    assert list(account) == list(RUN_FIELDS)
    assert (account["exit_code"], account["status"], account["replayed"]) == (4, "failed", False)
    assert done.returncode == 4


def test_closed_streams_harm_nothing(cli: Cli) -> None:
    """With stdin, stdout and stderr closed the command runs, and its output is kept, not written into the files."""
    done = cli.process("run", "t", *SHELL, "echo out; exit 4", script='"$@" <&- >&- 2>&-')
    assert done.returncode == 4
    assert cli.json("show", "t")["result"]["output"] == [[1, "out\n"]]


def test_a_full_disk_behind_stderr(cli: Cli) -> None:
    """Where our own lines cannot be written, the job runs all the same, and its exit code is kept."""
    words = ("run", "--on-failure", "hold", "t", *SHELL, "exit 9")
    for _ in ("first", "replayed"):
        assert cli.process(*words, script='"$@" 2>/dev/full').returncode == 9
    assert cli.json("show", "t")["attempt"] == 1


def test_words_that_are_no_utf8(cli: Cli) -> None:
    """Words and payloads that are no UTF-8 count by their bytes; a task_id is refused."""
    script = '"$@" --payload "$(printf "\\377")" t -- test "$(printf "\\376")"'
    assert cli.process("run", script=script).returncode == 0
    assert cli.process("run", script='"$@" "$(printf "\\377")" -- true').returncode == 2


# --- the file ---------------------------------------------------------------------------------------------------


def test_the_file_of_the_user(cli: Cli, tmp_path: Path) -> None:
    """Without --db and IDEMREG_DB the file is in the user's state folder, made for this user alone, and announced."""
    home = tmp_path / "home"
    home.mkdir()
    done = cli.process("run", "t", "--", "true", IDEMREG_DB="", HOME=str(home))
    file = home / ".local/state/idemreg/jobs.db"
    assert done.stderr == f"idemreg: created {file}\n"
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    state = tmp_path / "state"
    done = cli.process("run", "t", "--", "true", IDEMREG_DB="", HOME=str(home), XDG_STATE_HOME=str(state))
    assert done.stderr == f"idemreg: created {state}/idemreg/jobs.db\n"


@pytest.mark.parametrize("home", ["/nonexistent", "", "/", "relative"])
def test_without_a_home_the_default_is_an_error(cli: Cli, home: str) -> None:
    """A user without a home folder must name the file: no registry appears in a place that nobody looks at."""
    done = cli.process("run", "t", "--", "true", IDEMREG_DB="", HOME=home)
    assert done.returncode == 2
    assert "  hint: Name the file: `idemreg --db " in done.stderr


def test_a_named_folder_is_not_made(cli: Cli, tmp_path: Path) -> None:
    """A typing error in --db makes no folder."""
    done = cli.process("--db", str(tmp_path / "typo" / "jobs.db"), "run", "t", "--", "true")
    assert done.returncode == 74
    assert not (tmp_path / "typo").exists()


def test_a_command_that_takes_too_long_is_ended(cli: Cli) -> None:
    """Exit code 124, told with what the task has become; attempts used up are a dead letter."""
    words = ("--timeout", "0.01", "--on-crash", "rerun", "--max-attempts", "1", "t", "--", "sleep", "1000")
    done = cli.process("run", *words)
    assert done.returncode == 124
    assert "t is failed: task 't' ran longer than 0.01 s: the command was ended" in done.stderr
    again = cli.process("run", "--timeout", "0.01", "--on-crash", "rerun", "u", "--", "sleep", "1000")
    told = "u is pending: task 'u' ran longer than 0.01 s: the command was ended; the next call runs it again"
    assert (again.returncode, told in again.stderr) == (124, True)
    assert cli.json("list", "--dead")["task_id"] == "t"
    assert cli("retry", "t").exit_code == 0
    own = cli.process("run", "--release-on", "124", "v", "--", "sh", "-c", "exit 124")
    assert (own.returncode, own.stderr) == (124, "")


@pytest.mark.parametrize(
    ("words", "least"),
    [(("--lease", "0.5"), "1 second"), (("--timeout", "0"), "0.001 seconds"), (("--lease", "2000d"), "1 second")],
)
def test_limits_that_are_none_are_usage_errors(cli: Cli, words: tuple[str, str], least: str) -> None:
    """Before a file comes into being."""
    result = cli("run", *words, "t", "--", "true")
    assert (result.exit_code, f"{least} at least, and a year at most" in result.stderr) == (2, True)
    assert not cli.path.exists()
