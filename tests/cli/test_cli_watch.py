"""`idemreg watch` and `run --recover`: what dead owners left is rerun or settled, told, and handed to a command."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import click
import pytest

from idemreg import RecoveryError, Registry, Status, StoreBusyError, Swept, faults
from idemreg.cli.ending import SAID
from idemreg.command_rerun import sweep_commands
from idemreg.events import EVENTS, Failed, Teller, Unknown
from idemreg.handing import MAX_WAITING, Hand
from idemreg.operations import Operations
from idemreg.scheduler import Loops
from idemreg.signals import Relay
from idemreg.tagged import decode_arguments, encode_arguments
from idemreg.testing import ManualClock
from idemreg.watcher import watch
from tests.cli.driver import PATIENCE_S, Cli
from tests.support.processes import Script
from tests.support.raw import connect
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = "the secret word"  # noqa: S105 - a word that the tests look for

# Notes where it runs and with what; its first attempt then waits to be killed.
COMMAND = (
    'echo "$PWD|$1|$IDEMREG_ATTEMPT" >>"$2"; [ "$IDEMREG_ATTEMPT" != 1 ] || exec tail -f /dev/null; exit "${3:-0}"'
)


class Command:
    """`idemreg run --recover`, killed together with its command in the middle of the first attempt."""

    def __init__(self, cli: Cli, folder: Path) -> None:
        self.cli = cli
        self.folder = folder / "its folder"
        self.folder.mkdir()
        self.log = folder / "log"
        self.shell = "sh"

    def killed(self, *options: str, exit_code: str = "0") -> None:
        words = ["run", *(options or ("--recover", "--on-crash", "rerun")), "t", "--"]
        line = [self.shell, "-c", COMMAND, "sh", SECRET, str(self.log), exit_code]
        argv = [sys.executable, "-m", "idemreg", *words, *line]
        process = subprocess.Popen(argv, cwd=self.folder, env=self.cli.environment(), start_new_session=True)
        until(lambda: self.log.exists() and self.log.read_text())
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
        with Registry(self.cli.path, create=False) as registry:
            task = registry.get("t")
            assert task is not None
            owner = registry.owner
            until(lambda: (seen := owner(task)) is None or seen.liveness.frees)  # None: a watch was there already

    def ran(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def command(cli: Cli, tmp_path: Path) -> Command:
    return Command(cli, tmp_path)


MODULE = """
    from idemreg import Registry, current_claim
    registry = Registry({path!r})

    @registry.idempotent("coupon:{{user}}", on_crash={on_crash!r}, recover=True)
    def coupon(user, *, note):
        print(f"coupon for {{user}}: {{note}}", flush=True)
        if current_claim().attempt == 1:
            sys.stdin.readline()
"""


@pytest.fixture
def jobs(path: Path, tmp_path: Path) -> str:
    """A module with a recoverable function."""
    return module_of(path, tmp_path, "rerun")


def module_of(path: Path, folder: Path, on_crash: str) -> str:
    source = "import sys\n" + textwrap.dedent(MODULE).format(path=str(path), on_crash=on_crash)
    (folder / "watched_jobs.py").write_text(source)
    return "watched_jobs:registry"


def killed_function(folder: Path) -> None:
    with Script(
        "sys.path.insert(0, sys.argv[1]); import watched_jobs; watched_jobs.coupon(7, note='hi')", folder
    ) as one:
        one.expect("coupon for 7: hi")
        one.kill()


HOLD = "from idemreg import Registry; r = Registry(sys.argv[1]); held = [r.claim(x) for x in 'abc']; say('held')"


def held_by_nobody(path: Path) -> None:
    """Three tasks, a to c, whose owner is dead."""
    with Script(HOLD, path) as holder:
        holder.expect("held")
        holder.kill()


@contextlib.contextmanager
def started(cli: Cli, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with its test."""
    with subprocess.Popen(argv, env=cli.environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def row(path: Path, task_id: str = "t") -> Any:
    with Registry(path, create=False) as registry:
        return registry.get(task_id)


def kept(path: Path) -> list[Any]:
    connection = connect(path)
    try:
        return connection.execute("SELECT arguments FROM idempotent_argument").fetchall()
    finally:
        connection.close()


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


# --- commands ---------------------------------------------------------------------------------------------------


def test_a_killed_command_is_rerun_with_its_words(cli: Cli, command: Command) -> None:
    """In its folder, once; its words stand in the file until it has succeeded, and not longer."""
    command.killed()
    ((arguments,),) = kept(cli.path)
    assert SECRET in arguments
    done = cli.process("watch", "--once", "--json")
    assert done.returncode == 0, done.stderr
    told = {"task_id": "t", "name": "sh", "did": "rerun", "status": "succeeded", "error": None, "hint": None}
    assert lines(done.stdout) == [told]
    assert command.ran() == [f"{command.folder}|{SECRET}|{attempt}" for attempt in (1, 2)]
    assert kept(cli.path) == []
    again = cli.process("watch", "--once", "--json")
    assert (again.returncode, again.stdout, len(command.ran())) == (0, "", 2)


def test_a_rerun_that_fails_is_told(cli: Cli, command: Command) -> None:
    """Its exit code is stored as of every run; the watch says so, and exits with 1."""
    command.killed(exit_code="3")
    done = cli.process("watch", "--once")
    assert (done.returncode, done.stdout) == (1, "t was run again: failed; CommandFailedError: exit code 3\n")
    assert (row(cli.path).status, row(cli.path).error) == (Status.FAILED, "exit code 3")


def test_the_options_of_a_run_are_those_of_its_rerun(cli: Cli, command: Command) -> None:
    """What an exit code means, and whether output is stored, is kept with the words."""
    command.killed("--recover", "--on-crash", "rerun", "--unknown-on", "3", "--no-output", exit_code="3")
    done = cli.process("watch", "--once")
    assert (done.returncode, row(cli.path).status) == (1, Status.UNKNOWN)
    assert json.loads(row(cli.path).result)["output"] == []


@pytest.mark.parametrize(
    ("says", "status", "runs"), [("0", "succeeded", 1), ("1", "succeeded", 2), ("2", "unknown", 1)]
)
def test_a_verify_command_is_asked_first(says: str, status: str, runs: int, cli: Cli, command: Command) -> None:
    """It happened, it did not and is run, or nobody knows."""
    command.killed("--recover", "--on-crash", "verify", "--verify", f"exit {says}")
    done = cli.process("watch", "--once", "--json")
    assert lines(done.stdout)[0]["status"] == status
    assert len(command.ran()) == runs


def test_a_verify_command_that_was_cut_off_is_asked_again(cli: Cli, command: Command, tmp_path: Path) -> None:
    """A watch that is ended while it asks leaves the question to the next one, whose answer counts."""
    asked = tmp_path / "asked"
    verify = f"[ ! -e {asked} ] || exit 1; touch {asked}; kill -TERM $PPID; exec tail -f /dev/null"
    command.killed("--recover", "--on-crash", "verify", "--verify", verify)
    assert cli.process("watch", "--once").returncode == 128 + signal.SIGTERM
    assert (row(cli.path).status, row(cli.path).verdict, len(command.ran())) == (Status.UNKNOWN, None, 1)
    done = cli.process("watch", "--once")
    assert (done.returncode, done.stdout) == (0, "t was run again: succeeded\n")
    assert len(command.ran()) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["rerun"], "final: `idemreg watch` reruns it\n"),
        (["verify", "--verify", "true"], "asks about it, and reruns it where it did not happen\n"),
        (["hold"], "reruns it only once a person has resolved it as did-not-happen\n"),
    ],
)
def test_show_tells_who_reruns_it_and_when(cli: Cli, command: Command, options: list[str], words: str) -> None:
    """By the policy: under hold no watch does by itself."""
    command.killed("--recover", "--on-crash", *options)
    assert words in cli("show", "t", COLUMNS="200").stdout


def test_a_held_command_becomes_unknown(cli: Cli, command: Command) -> None:
    """Also where its words are kept: hold is for a person."""
    command.killed("--recover")
    done = cli.process("watch", "--once", "--json")
    (told,) = lines(done.stdout)
    assert (done.returncode, told["did"], told["status"]) == (1, "settled", "unknown")
    assert told["error"].startswith("OwnerDied")
    assert "resolve" in told["hint"]
    assert len(command.ran()) == 1


def test_a_command_without_recover_is_left_to_its_call(cli: Cli, command: Command) -> None:
    """Nobody has its words; the next call of the same line runs it."""
    command.killed("--on-crash", "rerun")
    assert kept(cli.path) == []
    done = cli.process("watch", "--once")
    assert (done.returncode, done.stdout) == (0, "t is left running; its next call runs it again\n")


@pytest.mark.parametrize("problem", ["missing", "not executable"])
def test_a_command_that_cannot_be_started_is_tried_again(problem: str, cli: Cli, command: Command) -> None:
    """As in the middle of a deployment: nothing ran, which is told, and a later sweep runs it."""
    shell = command.folder / "shell"
    shell.symlink_to("/bin/sh")
    command.shell = str(shell)
    command.killed()
    shell.unlink()
    if problem == "not executable":
        shell.touch(0o600)
    for _ in range(2):
        done = cli.process("watch", "--once")
        assert done.returncode == 1
        assert done.stdout.startswith("t is left pending; ")
        assert str(shell) in done.stdout
        assert row(cli.path).attempt == 1
    shell.unlink(missing_ok=True)
    shell.symlink_to("/bin/sh")
    assert cli.process("watch", "--once").stdout == "t was run again: succeeded\n"
    assert (len(command.ran()), kept(cli.path)) == (2, [])


def test_a_signal_before_the_command_starts_loses_nothing(cli: Cli, command: Command) -> None:
    """A watch that is ended between its claim and the start puts the task back, and the next one runs it."""
    command.killed()
    with Operations(cli.path, create=False) as operations:
        faults.arm("claim.committed", lambda: os.kill(os.getpid(), signal.SIGTERM))
        with Relay() as relay:
            assert sweep_commands(operations, None, relay) == []
        assert row(cli.path).status is Status.PENDING
        faults.disarm()
        with Relay() as relay:
            (one,) = sweep_commands(operations, None, relay)
    assert (one.did, one.status, len(command.ran())) == ("rerun", Status.SUCCEEDED, 2)


def test_a_folder_that_is_gone_is_told(cli: Cli, command: Command) -> None:
    """The command is not run elsewhere; the task stays as it is."""
    command.killed()
    command.folder.rmdir()
    done = cli.process("watch", "--once")
    assert (done.returncode, len(command.ran())) == (1, 1)
    assert "is left running; the folder" in done.stdout


def test_a_command_that_others_could_have_written_is_not_run(cli: Cli, command: Command) -> None:
    """A stored line is executed as whoever watches: also where --unsafe-path permits the rest."""
    command.killed()
    cli.path.chmod(0o660)
    done = cli.process("--unsafe-path", "watch", "--once", "--json")
    (told,) = lines(done.stdout)
    assert (done.returncode, told["did"], len(command.ran())) == (1, "left", 1)
    assert "others may write" in told["error"]
    assert "chmod go-w" in told["hint"]
    assert f"  hint: {told['hint']}\n" in cli.process("--unsafe-path", "watch", "--once").stdout
    cli.path.chmod(0o600)
    assert cli.process("watch", "--once").returncode == 0


@pytest.mark.parametrize(
    "open_to", ["its folder", "the folder above", "its -wal", "its lock file", "the link's folder"]
)
def test_a_command_behind_a_link_is_not_run_either(open_to: str, cli: Cli, command: Command, tmp_path: Path) -> None:
    """What SQLite opens is looked at, and not what stands beside the name that was given."""
    above, linked = tmp_path / "above", tmp_path / "linked"
    real = above / "real"
    for folder in (above, real, linked):
        folder.mkdir(mode=0o700)
    target, link = real / "jobs.db", linked / "jobs.db"
    link.symlink_to("../above/real/jobs.db")
    cli.path = target
    command.killed()
    opened = {
        "its folder": real,
        "the folder above": above,
        "its -wal": real / "jobs.db-wal",
        "its lock file": real / "jobs.db-lock",
        "the link's folder": linked,
    }[open_to]
    cli.path = link
    with Registry(target, create=False) as registry:
        registry.run("u", lambda: None)  # so that there is a -wal that is not empty
        mode = opened.stat().st_mode
        opened.chmod(mode | 0o002)
        done = cli.process("--unsafe-path", "watch", "--once", "--json")
        (told,) = lines(done.stdout)
        assert (done.returncode, told["did"], len(command.ran())) == (1, "left", 1)
        assert told["error"].startswith(f"others may write {opened},")
        opened.chmod(mode)
    assert cli.process("--unsafe-path", "watch", "--once").returncode == 0


def test_words_that_were_changed_are_not_run(cli: Cli, command: Command) -> None:
    """They have a seal: what is not as it was written is an error of the store, and nothing of it is executed."""
    command.killed()
    connection = connect(cli.path)
    connection.execute("UPDATE idempotent_argument SET arguments = replace(arguments, 'sh', 'rm')")
    connection.close()
    done = cli.process("watch", "--once")
    assert done.returncode == 74
    assert len(command.ran()) == 1


@pytest.mark.parametrize("lacking", ["folder", "argv", "options", "unknown_on", "all of it"])
def test_words_of_another_version_are_left(lacking: str, cli: Cli, command: Command) -> None:
    """Where something is not there that this version needs, nothing is claimed, and the task stays as it is."""
    command.killed()
    with Registry(cli.path) as registry:
        task = row(cli.path)
        stored: Any = registry.store
        ((_, whole),) = stored.kept(None, 1)
        words = decode_arguments(whole.arguments)
        words.pop(lacking, None)
        less = whole._replace(arguments="no JSON" if lacking == "all of it" else encode_arguments(words))
        stored.kept = lambda after, _limit: [] if after else [(task, less)]
        with Relay() as relay:
            (one,) = sweep_commands(registry, None, relay)
    assert (one.did, one.status, type(one.error)) == ("left", Status.RUNNING, RecoveryError)
    assert len(command.ran()) == 1


def test_a_command_is_not_run_by_a_registry_of_functions(cli: Cli, command: Command) -> None:
    """Its words are of another kind than a function's arguments: it is left, and who runs it is told."""
    command.killed()
    with Registry(cli.path) as registry:
        (one,) = registry.sweep()
    assert (one.did, one.status, type(one.error)) == ("left", Status.RUNNING, RecoveryError)
    assert "is a command's" in str(one.error)
    assert "without a module" in str(getattr(one.error, "hint", ""))
    assert len(command.ran()) == 1
    assert cli.process("watch", "--once").stdout == "t was run again: succeeded\n"


def test_a_line_without_a_folder_to_be_rerun_in_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Before the command starts: a rerun in another folder may do something else."""
    folder = tmp_path / "gone"
    folder.mkdir()
    script = f'cd {folder} && rmdir {folder} && exec "$@"'
    done = cli.process("run", "--recover", "--on-crash", "rerun", "t", "--", "echo", "ran", script=script)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the folder that the command would be rerun in is gone" in done.stderr
    assert "without --recover" in done.stderr
    assert row(cli.path) is None


def test_a_line_that_is_too_long_to_be_kept_is_refused(cli: Cli) -> None:
    """Before the command starts."""
    words = ["x" * 100_000] * 11
    done = cli.process("run", "--recover", "t", "--", "echo", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "what is kept of the arguments has" in done.stderr


def test_that_a_watch_will_refuse_is_said_at_once(cli: Cli, tmp_path: Path) -> None:
    """A umask of 002 makes folders that a group may write: the crash would be too late to hear of it. The job runs."""
    tmp_path.chmod(0o770)
    done = cli.process("run", "--recover", "--on-crash", "rerun", "t", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert f"will not run it again: others may write {tmp_path}," in done.stderr
    assert f"  hint: Only as its owner, and with: `chmod go-w {tmp_path}`.\n" in done.stderr
    tmp_path.chmod(0o700)
    assert cli.process("run", "--recover", "--on-crash", "rerun", "u", "--", "true").stderr == ""


def test_recover_under_hold_is_to_be_said(cli: Cli) -> None:
    """By default a sweep would only make the task unknown, which is not what somebody expects who keeps its words."""
    cli("init")
    done = cli.process("run", "--recover", "t", "--", "true")
    assert (done.returncode, "--on-crash rerun" in done.stderr) == (0, True)
    assert cli.process("run", "--recover", "--on-crash", "hold", "u", "--", "true").stderr == ""


@pytest.mark.parametrize(("words", "code"), [("./missing", 127), ("missing", 127), ("./folder", 126)])
def test_a_command_for_events_that_is_not_there_is_refused(words: str, code: int, cli: Cli, tmp_path: Path) -> None:
    """A mistyped one would be found with the first event, which it loses."""
    cli("init")
    (tmp_path / "folder").mkdir()
    done = cli.process("watch", "--on", "unknown", "--", words, script=f'cd {tmp_path} && exec "$@"')
    assert (done.returncode, done.stdout) == (code, "")
    assert "hint:" in done.stderr


def test_recover_is_not_for_every(cli: Cli) -> None:
    """A schedule runs its slots again by itself."""
    done = cli("run", "--recover", "--every", "* * * * *", "job", "--", "true")
    assert (done.exit_code, "hint:" in done.stderr) == (2, True)


def test_show_and_list_tell_what_is_kept(cli: Cli, command: Command) -> None:
    """How much of a command's or a function's arguments stands in the file; never what."""
    command.killed()
    shown = cli("show", "t").stdout
    assert "command's words" in shown
    assert SECRET not in shown
    assert cli.json("show", "t")["kept_bytes"] > len(SECRET)
    assert cli.json("list")["keeps_arguments"] is True
    cli.process("watch", "--once")
    assert cli.json("show", "t")["kept_bytes"] is None


def test_a_backup_brings_them_along_and_an_export_does_not(cli: Cli, command: Command, tmp_path: Path) -> None:
    """It is the file. An export holds no arguments: nothing where it is imported reruns the task."""
    command.killed()
    export, backup = tmp_path / "export", tmp_path / "backup.db"
    assert cli("export", str(export)).exit_code == 0
    assert SECRET not in export.read_text()
    assert cli("backup", str(backup)).exit_code == 0
    assert len(kept(backup)) == 1


def test_a_salvaged_command_is_rerun_once_somebody_says_that_it_did_not_happen(
    cli: Cli, command: Command, tmp_path: Path
) -> None:
    """Not before: whether the killed one has done its work, the damaged file cannot tell."""
    command.killed()
    salvaged = tmp_path / "salvaged.db"
    assert cli("doctor", "--salvage", str(salvaged)).exit_code == 0
    assert (row(salvaged).status, kept(salvaged)) == (Status.UNKNOWN, kept(cli.path))
    copy = Cli(salvaged)
    assert (copy.process("watch", "--once").stdout, len(command.ran())) == ("", 1)
    assert copy("resolve", "t", "did-not-happen").exit_code == 0
    done = copy.process("watch", "--once", "--json")
    assert (done.returncode, lines(done.stdout)[0]["did"]) == (0, "rerun")
    assert command.ran() == [f"{command.folder}|{SECRET}|{attempt}" for attempt in (1, 2)]
    assert kept(salvaged) == []


# --- functions --------------------------------------------------------------------------------------------------


def test_a_killed_function_is_rerun_with_its_arguments(cli: Cli, jobs: str, tmp_path: Path) -> None:
    """`idemreg watch MODULE:REGISTRY` runs it; what it prints is not mixed into the JSON."""
    killed_function(tmp_path)
    done = cli.process("watch", "--once", "--json", jobs, script=f'cd {tmp_path} && exec "$@"')
    assert done.returncode == 0, done.stderr
    (told,) = lines(done.stdout)
    assert (told["task_id"], told["did"], told["status"]) == ("coupon:7", "rerun", "succeeded")
    assert "coupon for 7: hi" in done.stderr
    assert kept(cli.path) == []


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_no_more_of_an_error_is_told_than_is_stored(form: tuple[str, ...], cli: Cli, jobs: str, tmp_path: Path) -> None:
    """A journal is read by more people than the file: of error_detail="type" it is the type in both."""
    module = tmp_path / "watched_jobs.py"
    source = module.read_text().replace("Registry('", "Registry(error_detail='type', path='")
    module.write_text(f"{source}    raise ValueError({SECRET!r})\n")
    killed_function(tmp_path)
    done = cli.process("watch", "--once", *form, jobs, script=f'cd {tmp_path} && exec "$@"')
    assert done.returncode == 1
    assert "ValueError" in done.stdout
    assert SECRET not in done.stdout + done.stderr
    assert row(cli.path, "coupon:7").error == "ValueError"


def test_each_leaves_what_is_the_others(cli: Cli, jobs: str, tmp_path: Path, command: Command) -> None:
    """A watch of a file runs commands, one of a module its functions; both say what they left."""
    command.killed()
    killed_function(tmp_path)
    done = cli.process("watch", "--once", "--json")
    assert {one["task_id"]: one["did"] for one in lines(done.stdout)} == {"t": "rerun", "coupon:7": "left"}
    assert done.returncode == 1
    done = cli.process("watch", "--once", "--json", jobs, script=f'cd {tmp_path} && exec "$@"')
    assert {one["task_id"]: one["did"] for one in lines(done.stdout)} == {"coupon:7": "rerun"}


def test_a_hint_looks_into_the_file_of_the_module(cli: Cli, path: Path, tmp_path: Path) -> None:
    """Which is another than the default: the command that is named finds the task there, from any folder."""
    target = module_of(path, tmp_path, "hold")
    killed_function(tmp_path)
    other = {"IDEMREG_DB": str(tmp_path / "other.db")}
    done = cli.process("watch", "--once", target, script=f'cd {tmp_path} && exec "$@"', **other)
    assert "coupon:7 is unknown" in done.stdout
    assert f"idemreg --db {path} resolve coupon:7 happened" in done.stdout
    assert cli("--db", str(path), "resolve", "coupon:7", "happened", **other).exit_code == 0


@pytest.mark.parametrize("raised", ["KeyboardInterrupt", "SystemExit(0)"])
def test_a_job_that_was_ended_in_its_middle_is_told_with_what_to_do(
    cli: Cli, path: Path, tmp_path: Path, raised: str
) -> None:
    """Nobody knows what it had done; under rerun somebody runs it again, and nothing is to be done."""
    for on_crash in ("hold", "rerun"):
        target = module_of(path, tmp_path, on_crash)
        killed_function(tmp_path)
        if on_crash == "hold":
            assert cli.process("watch", "--once").returncode == 1
            cli("resolve", "coupon:7", "did-not-happen")
        module = tmp_path / "watched_jobs.py"
        module.write_text(module.read_text().replace("print(", f"raise {raised}; print("))
        for words in ([], ["--json"]):
            done = cli.process("watch", "--once", *words, target, script=f'cd {tmp_path} && exec "$@"')
            hint = lines(done.stdout)[0]["hint"] if words else done.stdout
            if on_crash == "hold":
                assert done.returncode == 1
                assert "resolve coupon:7 happened" in hint
                cli("resolve", "coupon:7", "did-not-happen")
            else:
                assert "resolve" not in (hint or "")
        cli("forget", "coupon:7", "--force")


@pytest.mark.parametrize("words", [("watch", "--once"), ("schedule", "--once"), ("schedule",)])
def test_a_module_has_its_own_file(cli: Cli, jobs: str, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Another one is refused, before the module is imported; the variable is a default, and gives way."""
    other = str(tmp_path / "other.db")
    done = cli.process("--db", other, *words, jobs, script=f'cd {tmp_path} && exec "$@"')
    assert (done.returncode, done.stdout) == (2, "")
    assert "has its own file, and --db names one as well" in done.stderr
    assert "hint:" in done.stderr
    assert not os.path.exists(other)


# --- the loop ---------------------------------------------------------------------------------------------------


def test_the_watch_goes_on_until_it_is_told_to_stop(cli: Cli, command: Command) -> None:
    """It reruns what dies while it watches; SIGTERM and Ctrl-C end it, with the exit code of the signal."""
    cli("init")
    argv = [sys.executable, "-m", "idemreg", "watch", "--json", "--interval", "0.1"]
    for number in (signal.SIGTERM, signal.SIGINT):
        with started(cli, *argv) as watching:
            assert watching.stdout is not None
            if number == signal.SIGTERM:
                command.killed()
            else:
                cli.process("run", "--recover", "u", "--", "sh", "-c", "kill -9 $$")
                cli("resolve", "u", "did-not-happen")
            told = json.loads(watching.stdout.readline())
            assert told["did"] == "rerun"
            watching.send_signal(number)
            assert watching.wait(PATIENCE_S) == 128 + number


@pytest.mark.parametrize("of", ["its file", "a module"])
def test_a_watch_of_a_file_that_was_replaced_ends(of: str, cli: Cli, jobs: str, tmp_path: Path) -> None:
    """It would watch for ever what nobody writes to any more, in silence; whoever starts it anew has the new file."""
    held_by_nobody(cli.path)
    argv = [sys.executable, "-m", "idemreg", "watch", "--interval", "0.1", *([jobs] if of == "a module" else [])]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=tmp_path, env=cli.environment(), stdout=pipe, stderr=pipe, text=True) as watching:
        try:
            assert watching.stdout is not None
            assert watching.stdout.readline().startswith("a is unknown")  # so it has opened all
            moved = tmp_path / "moved"
            moved.mkdir()
            for file in cli.path.parent.glob("jobs.db*"):
                file.rename(moved / file.name)
            cli("init")
            _, said = watching.communicate(timeout=PATIENCE_S)
        finally:
            watching.kill()
    assert watching.returncode == 74
    assert "was deleted, moved or replaced" in said
    assert "hint:" in said


def test_a_signal_is_passed_on_to_the_command(cli: Cli, tmp_path: Path) -> None:
    """It ends as its own policy says, and the watch behind it; the next watch runs it again."""
    log = tmp_path / "log"
    source = 'echo $IDEMREG_ATTEMPT >>"$1"; [ $IDEMREG_ATTEMPT = 3 ] || exec tail -f /dev/null'
    words = ["run", "--recover", "--on-crash", "rerun", "t", "--", "sh", "-c", source, "sh", str(log)]
    argv = [sys.executable, "-m", "idemreg"]
    with started(cli, *argv, *words) as running:
        until(lambda: log.exists() and log.read_text() == "1\n")
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE_S) == 128 + signal.SIGTERM
    with started(cli, *argv, "watch") as watching:
        until(lambda: log.read_text() == "1\n2\n")
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert row(cli.path).status is Status.PENDING
    assert cli.process("watch", "--once").returncode == 0
    assert log.read_text() == "1\n2\n3\n"


@pytest.mark.parametrize("once", [[], ["--once"]])
def test_who_asks_to_end_is_told_why_it_goes_on(cli: Cli, tmp_path: Path, once: list[str]) -> None:
    """The command minds no signal: the first is told on stderr, and ends the watch behind the job."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    os.mkfifo(gate)
    source = """
        echo $IDEMREG_ATTEMPT >>"$1"
        [ $IDEMREG_ATTEMPT = 2 ] || exec tail -f /dev/null
        trap "" TERM
        echo deaf >>"$1"
        read -r _ <"$2"
    """
    words = ["run", "--recover", "--on-crash", "rerun", "t", "--", "sh", "-c", source, "sh", str(log), str(gate)]
    argv = [sys.executable, "-m", "idemreg"]
    with started(cli, *argv, *words) as running:
        until(lambda: log.exists() and log.read_text() == "1\n")
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE_S) == 128 + signal.SIGTERM
    with subprocess.Popen([*argv, "watch", *once], env=cli.environment(), stderr=subprocess.PIPE) as watching:
        try:
            until(lambda: log.read_text() == "1\n2\ndeaf\n")
            watching.send_signal(signal.SIGTERM)
            assert watching.stderr is not None
            assert watching.stderr.readline() == SAID
            gate.write_text("\n")
            assert watching.wait(PATIENCE_S) == 128 + signal.SIGTERM
            assert watching.stderr.read() == b""
        finally:
            watching.kill()
    assert row(cli.path).status is Status.SUCCEEDED


def test_an_error_that_ends_the_loops_is_no_signal() -> None:
    """What runs goes on behind it, and only a signal is told of; once."""
    source = """
        import contextlib, threading
        from idemreg.cli.ending import end_behind, relay_in
        from idemreg.scheduler import Loops
        os.dup2(1, 2)
        failed, waited = threading.Event(), threading.Semaphore(0)

        def fails(pause):
            failed.set()
            raise LookupError("failed")

        def goes_on(pause):
            assert failed.wait(60) and pause(60)
            for _ in range(2): waited.acquire()
            say("without a word")
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(3): waited.acquire()

        with contextlib.ExitStack() as stack:
            relay, loops = relay_in(stack), Loops({"fails": fails, "goes on": goes_on})
            end_behind(relay, loops)
            tells = loops.on_wait
            loops.on_wait = lambda: (tells(), waited.release())
            try: loops.run()
            except LookupError as error: say(error, relay.received)
    """
    with Script(source) as script:
        script.expect("without a word")
        script.expect(SAID.decode().strip())
        script.expect(f"failed {signal.SIGTERM.value}")
        assert script.end() == 0


def test_no_command_is_begun_behind_a_signal(path: Path) -> None:
    """A sweep that was told to end runs nothing more, and leaves the rest as it is."""
    with Registry(path) as registry:

        @registry.idempotent("t", recover=True, on_crash="rerun")
        def job() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            job()
    with Relay() as relay, Operations(path) as operations:
        relay.received = signal.SIGTERM
        assert sweep_commands(operations, None, relay) == []


def swept(did: str, task_id: str = "t") -> Swept:
    return Swept(task_id, "job", did, Status.RUNNING)


def test_the_loop_rests_and_repeats_nothing() -> None:
    """An error is told and the next sweep tries again; what is left is told once; a slow sweep makes a long pause."""
    clock, told = ManualClock(), []
    pauses: list[float] = []
    results: list[Any] = [
        [swept("left")],
        [swept("left"), swept("settled")],
        StoreBusyError("busy"),
        [swept("left")],
        [swept("rerun")],
    ]

    def sweep(heard: Callable[[Swept], None]) -> list[Swept]:
        clock.advance(2)
        result = results[len(pauses)]
        if isinstance(result, Exception):
            raise result
        found: list[Swept] = result
        for one in found:
            heard(one)
        return found

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == len(results)

    watch(sweep, lambda one: told.append(getattr(one, "did", "error")), 5.0, clock, pause)
    assert told == ["left", "settled", "error", "left", "rerun"]
    assert pauses == [18, 18, 18, 18, 5]


def test_an_error_of_telling_ends_no_watch() -> None:
    """Whatever a job's error does when it is asked what it says: the next task is told, and the loop goes on."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    mute = swept("left")._replace(error=MuteError())
    told: list[Any] = []

    def sweep(heard: Callable[[Swept], None]) -> list[Swept]:
        for one in (mute, swept("settled")):
            heard(one)
        return [mute, swept("settled")]

    def tell(what: Swept | Exception) -> None:
        told.append(type(what.error) if isinstance(what, Swept) else type(what))
        if what is mute:
            raise KeyError

    watch(sweep, tell, 5.0, ManualClock(), lambda _: True)
    assert told == [MuteError, KeyError, type(None)]


def test_a_watch_on_a_full_disk_says_so(cli: Cli, command: Command) -> None:
    """What it cannot write it cannot tell: one line on stderr, and the exit code of an I/O error. The task is swept."""
    command.killed("--recover")
    done = cli.process("watch", script='exec "$@" >/dev/full')
    assert (done.returncode, done.stderr.splitlines()[0]) == (74, "idemreg: No space left on device")
    assert row(cli.path).status is Status.UNKNOWN


@pytest.mark.parametrize("words", [[], ["--json"], ["--once"]], ids=str)
def test_a_watch_that_nobody_reads_ends_as_others(words: list[str], cli: Cli, command: Command) -> None:
    """As a program that SIGPIPE ended, without a word."""
    command.killed("--recover")
    reading, writing = os.pipe()
    os.close(reading)
    argv = [sys.executable, "-m", "idemreg", "watch", *words]
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run(
            argv, env=cli.environment(), stdout=nobody, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False
        )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_an_error_that_cannot_say_what_it_is_is_told(cli: Cli, path: Path, tmp_path: Path) -> None:
    """A job's error whose message cannot be made."""
    jobs = module_of(path, tmp_path, "rerun")
    killed_function(tmp_path)
    with (tmp_path / "watched_jobs.py").open("a") as file:
        file.write(
            "    if current_claim().attempt == 2:\n        raise type('MuteError', (Exception,), {'__str__': None})\n"
        )
    done = cli.process("watch", "--once", jobs, script=f'cd {tmp_path} && exec "$@"')
    assert "MuteError: (its message cannot be made: TypeError)" in done.stdout


def test_a_signal_before_the_watch_begins_ends_it(path: Path) -> None:
    """Nobody has heard of it yet who could stop the loop: no sweep begins, and nothing is told."""
    from idemreg.cli.context import Settings  # noqa: PLC0415 - click is for the command line
    from idemreg.cli.watch import _Account, _watch  # noqa: PLC0415 - as above

    Registry(path).open().close()
    out = io.StringIO()
    with click.Context(click.Command("watch"), obj=Settings()), Operations(path) as operations, Relay() as relay:
        account = _Account(out, "traceback")
        relay.received = signal.SIGTERM
        _watch(operations, None, relay, account, 5.0, is_of_module=False)
    assert (out.getvalue(), account.exit_code) == ("", 0)


def test_the_longest_pause_is_one(path: Path) -> None:
    """An interval of a million days is more than a thread can wait for at once."""
    loops = Loops({"watch": lambda pause: stopped.append(pause(1e12))})
    stopped: list[bool] = []
    loops.stop()
    loops.run()
    assert stopped == [True]


# --- events -----------------------------------------------------------------------------------------------------


def test_events_are_handed_to_a_command(cli: Cli, command: Command, tmp_path: Path) -> None:
    """As JSON on its input, and by name in its environment; only those that were asked for."""
    command.killed("--recover")
    source = 'cat; echo "$IDEMREG_EVENT $IDEMREG_TASK_ID $IDEMREG_DB ${IDEMREG_CHECKSUM_KEY-none}"'
    done = cli.process(
        "watch", "--once", "--on", "unknown", "--on", "failed", "--", "sh", "-c", source, IDEMREG_CHECKSUM_KEY="x" * 16
    )
    assert done.returncode == 1
    said = done.stdout.splitlines()
    event = next(json.loads(line) for line in said if line.startswith("{"))
    assert (event["event"], event["task_id"], event["name"], event["attempt"]) == ("unknown", "t", "sh", 1)
    assert f"unknown t {cli.path} none" in said


def test_a_command_for_events_that_fails_stops_nothing(cli: Cli, command: Command) -> None:
    """It is told, and the exit code says so; the task is rerun all the same."""
    command.killed()
    done = cli.process("watch", "--once", "--on", "succeeded", "--", "sh", "-c", "exit 3")
    assert (done.returncode, done.stdout) == (1, "t was run again: succeeded\n")
    assert done.stderr == "idemreg: --on succeeded: sh ended with exit code 3\n"


EVENT = Failed("t", "job", 1, 1, "no luck")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["tail", "-f", "/dev/null"], "--on failed: tail took longer than 0.1 s, and was killed"),
        (["/no/such/command"], "--on failed: /no/such/command cannot be started: No such file or directory"),
        (["sh", "-c", "kill -9 $$"], "--on failed: sh was killed by signal 9"),
    ],
)
def test_a_command_for_events_that_hangs_is_killed(argv: list[str], said: str) -> None:
    """Whatever is wrong with it is told, and the next event is handed on."""
    told: list[str] = []
    with Hand(["failed"], argv, {}, told.append, handled_s=0.1 if "tail" in argv else PATIENCE_S) as hand:
        hand(EVENT)
        hand(Unknown("t", "job", 1, 1, None))
        hand(EVENT)
    assert told == [said, said]


def test_events_that_wait_are_bounded(tmp_path: Path) -> None:
    """More than a thousand are dropped, which is told once; no job waits for the command."""
    told: list[str] = []
    hand = Hand(["failed"], ["true"], {}, told.append)
    for _ in range(MAX_WAITING + 3):
        hand(EVENT)
    assert told == ["1,000 events wait for their command; those behind them are dropped"]


def test_who_is_in_a_hurry_waits_for_one_event() -> None:
    """Leaving takes no longer than one may take, whatever is queued; how many nobody got is told."""
    told: list[str] = []
    with Hand(["failed"], ["tail", "-f", "/dev/null"], {}, told.append, 0.1, is_hurried=lambda: True) as hand:
        for _ in range(100):
            hand(EVENT)
    *killed, last = told
    assert len(killed) < 50
    assert all("and was killed" in one for one in killed)
    assert last == f"--on: {100 - len(killed)} events dropped, which nobody was handed"


def test_a_command_that_is_being_started_is_killed_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes in the middle of its start leaves no orphan: who starts it ends it."""
    done: list[str] = []
    popen = subprocess.Popen

    def start(*args: Any, **options: Any) -> Any:
        process = popen(*args, **options)
        hand.kill(lambda: done.append("died"))
        assert done == []
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    told: list[str] = []
    with Hand(["failed"], ["tail", "-f", "/dev/null"], {}, told.append) as hand:
        hand(EVENT)
        hand(EVENT)
    assert done[:1] == ["died"]
    assert told[0] == "--on failed: tail was killed by signal 9"
    assert "is being killed" in told[1]


def test_a_command_that_runs_is_killed_at_once() -> None:
    """Who is to die at once leaves none behind, and waits for nothing; later events are handed to nobody."""
    done: list[str] = []
    told: list[str] = []
    with Hand(["failed"], ["tail", "-f", "/dev/null"], {}, told.append) as hand:
        hand(EVENT)
        until(lambda: hand._process is not None)
        hand.kill(lambda: done.append("died"))
        assert done == ["died"]
        hand(EVENT)
    assert told[0] == "--on failed: tail was killed by signal 9"
    assert "is being killed" in told[1]


def test_the_second_signal_ends_as_the_first_would_have() -> None:
    """Of the process itself, and behind what is handed an event. A signal that is blocked waits: so it can be asked."""
    source = """
        from types import SimpleNamespace
        from idemreg.cli.ending import die
        from idemreg.handing import Hand
        number = signal.SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        relay = SimpleNamespace(received=number)
        signal.signal(number, lambda *_: None)
        die(relay)
        say(signal.getsignal(number) is signal.SIG_DFL, signal.sigpending() == {number})
        signal.sigwait([number])
        hand = Hand(["failed"], ["true"], {}, say)
        die(relay, hand)
        say(hand._after_kill is not None, signal.sigpending() == {number})
    """
    with Script(source) as script:
        script.expect("True True")
        script.expect("True True")
        assert script.end() == 0


def test_the_first_signal_loses_no_event(cli: Cli, tmp_path: Path) -> None:
    """Also behind the sweep of --once, while the command runs: what is queued is handed on first."""
    held_by_nobody(cli.path)
    gate, go, log = (tmp_path / name for name in ("gate", "go", "log"))
    os.mkfifo(gate)
    words = [
        "--on",
        "unknown",
        "--",
        "sh",
        "-c",
        'cat >>"$1"; [ -e "$2" ] || read -r _ <"$3"',
        "sh",
        *map(str, (log, go, gate)),
    ]
    with started(cli, sys.executable, "-m", "idemreg", "watch", "--once", *words) as watching:
        opened: list[int] = []
        until(lambda: _open_for_reader(gate, opened))
        go.touch()
        watching.send_signal(signal.SIGTERM)
        os.close(opened[0])
        assert watching.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert sorted(one["task_id"] for one in lines(log.read_text())) == ["a", "b", "c"]


def _open_for_reader(fifo: Path, opened: list[int]) -> bool:
    """Whether somebody waits at the other end."""
    with contextlib.suppress(OSError):
        opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    return bool(opened)


def test_the_second_signal_kills_the_command_of_an_event(cli: Cli, tmp_path: Path) -> None:
    """It has a session of its own, and would go on as an orphan."""
    held_by_nobody(cli.path)
    begun = tmp_path / "begun"
    words = ["--on", "unknown", "--", "sh", "-c", 'touch "$1"; exec tail -f /dev/null', "sh", str(begun)]
    with started(cli, sys.executable, "-m", "idemreg", "watch", *words) as watching:
        until(begun.exists)
        watching.send_signal(signal.SIGTERM)
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=PATIENCE_S)  # the pipe ends with its last writer
        assert watching.returncode in {-signal.SIGTERM, -signal.SIGINT}


def test_every_event_has_a_name() -> None:
    """The names of the command line are those of the library."""
    from idemreg.cli.watch import NAMES  # noqa: PLC0415 - click is for the command line

    assert set(NAMES) <= set(EVENTS)


def test_the_registrys_own_callback_is_told_too(path: Path) -> None:
    """--on takes nothing away from `on_event`."""
    from idemreg.cli.watch import _teller  # noqa: PLC0415 - as above

    own: list[Any] = []
    with Registry(path, on_event=own.append) as registry:
        handed: list[Any] = []
        teller = _teller(registry, handed.append)  # type: ignore[arg-type]
        assert isinstance(teller, Teller)
        teller.tell(EVENT)
        assert own == handed == [EVENT]


@pytest.mark.parametrize(
    "words",
    [
        ("--on", "unknown"),
        ("--", "true"),
        ("--on", "nothing", "--", "true"),
        ("a", "b"),
        ("no_such_module:registry",),
        ("--interval", "0.01"),
    ],
)
def test_what_makes_no_sense(cli: Cli, words: tuple[str, ...]) -> None:
    """Is a usage error with a hint."""
    cli("init")
    done = cli("watch", *words)
    assert done.exit_code == 2, done.output
    assert "hint:" in done.stderr


def test_a_watch_makes_no_file(cli: Cli) -> None:
    """A mistyped path is an error, and not a silent watch of nothing."""
    done = cli("watch", "--once")
    assert (done.exit_code, cli.path.exists()) == (74, False)


def test_the_help_names_the_exception(cli: Cli) -> None:
    """That words are stored and executed is said where one would do so."""
    assert "passwords" in cli("run", "--help").output
    assert "executed as you are" in " ".join(cli("watch", "--help").output.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("watch", "--on", "unknown", "./pager"), "the command goes behind --"),
        (("watch", "--on", "unknown"), "--on EVENT and a command behind -- go together"),
    ],
)
def test_where_the_command_for_events_goes(cli: Cli, words: tuple[str, ...], told: str) -> None:
    """In front of the dashes it would be a module."""
    result = cli(*words)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_file_in_the_place_of_a_module_is_told_where_to_go(cli: Cli) -> None:
    """The commonest mistake: every other command takes the file by --db as well."""
    Registry(cli.path).open().close()
    result = cli("watch", str(cli.path))
    assert result.exit_code == 2
    assert f"A file goes before: idemreg --db {cli.path}" in result.stderr
