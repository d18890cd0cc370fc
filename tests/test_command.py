"""`run_command` and `idemreg run`: real commands, real signals, real orphans."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from idemreg import (
    ArgumentError,
    ChecksumMismatchError,
    Liveness,
    Registry,
    Status,
    TaskRunningError,
    TaskUnknownError,
    Verdict,
    command_parts,
    faults,
)
from idemreg.codec import load_result
from idemreg.command import run_command
from idemreg.errors import CommandNotExecutableError, CommandNotFoundError, TaskFailedError
from idemreg.output import Output, stored_output
from tests.support.processes import PATIENCE_S, ROOT, Script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg import Task

SH = "/bin/sh"


def idemreg(path: Path, *args: str, **options: object) -> subprocess.Popen[bytes]:
    """The command line in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IDEMREG_DB": str(path)}
    command = [sys.executable, "-m", "idemreg", *args]
    return subprocess.Popen(command, cwd=ROOT, env=environment, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def streams(tmp_path: Path) -> tuple[int, int]:
    """Two files in place of the terminal."""
    return os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT), os.open(tmp_path / "err", os.O_RDWR | os.O_CREAT)


def read(fd: int) -> bytes:
    return os.pread(fd, 1_000_000, 0)


def sh(registry: Registry, streams: tuple[int, int], task_id: str, script: str, **options: object) -> tuple[int, bool]:
    out, err = streams
    end = run_command(registry, task_id, [SH, "-c", script], stdout=out, stderr=err, **options)  # type: ignore[arg-type]
    return end.exit_code, end.replayed


def test_a_command_runs_once_and_its_output_is_replayed(registry: Registry, streams: tuple[int, int]) -> None:
    """The second run starts nothing, writes the stored output to the same streams again, and exits with 0."""
    script = "echo to-out; echo to-err >&2; echo again"
    assert sh(registry, streams, "t", script) == (0, False)
    assert sh(registry, streams, "t", script) == (0, True)
    assert read(streams[0]) == b"to-out\nagain\n" * 2
    assert read(streams[1]) == b"to-err\n" * 2


def test_other_arguments_are_a_mismatch(registry: Registry, streams: tuple[int, int]) -> None:
    """The checksum covers the command line and the payload."""
    sh(registry, streams, "t", "true")
    with pytest.raises(ChecksumMismatchError):
        sh(registry, streams, "t", "false")
    with pytest.raises(ChecksumMismatchError):
        sh(registry, streams, "t", "true", payload={"day": 1})


def test_a_failure_is_kept_and_replayed(registry: Registry, streams: tuple[int, int]) -> None:
    """A held failure is not run again: its output and its exit code come back."""
    assert sh(registry, streams, "t", "echo broken; exit 3", on_failure="hold") == (3, False)
    assert sh(registry, streams, "t", "echo broken; exit 3", on_failure="hold") == (3, True)
    assert read(streams[0]) == b"broken\n" * 2
    registry.retry("t")
    assert sh(registry, streams, "t", "echo broken; exit 3", on_failure="hold") == (3, False)


def test_exit_codes_with_a_meaning(registry: Registry, streams: tuple[int, int]) -> None:
    """--release-on puts the task back without counting the attempt; --unknown-on leaves it unknown."""
    sh(registry, streams, "released", "exit 75", release_on=[75])
    task = registry.get("released")
    assert task is not None
    assert (task.status, task.attempt) == (Status.PENDING, 0)
    sh(registry, streams, "open", "exit 9", unknown_on=[9])
    with pytest.raises(TaskUnknownError):
        sh(registry, streams, "open", "exit 9", unknown_on=[9])


def test_the_command_is_told_who_it_is(registry: Registry, streams: tuple[int, int]) -> None:
    """Task, attempt, token and downstream key are in its environment."""
    sh(registry, streams, "t", 'echo "$IDEMREG_TASK_ID $IDEMREG_ATTEMPT $IDEMREG_TOKEN $IDEMREG_DOWNSTREAM_KEY"')
    task = registry.get("t")
    assert task is not None
    assert read(streams[0]).decode().split() == ["t", "1", str(task.token), registry.store.downstream_key("t")]


def test_a_command_inside_of_a_slot_is_none(
    registry: Registry, streams: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a command around it knows its claim by is not its own."""
    for name in ("IDEMREG_SLOT", "IDEMREG_CLAIM_DB", "IDEMREG_TOKEN"):
        monkeypatch.setenv(name, "another's")
    sh(registry, streams, "t", 'echo "${IDEMREG_SLOT-none} $IDEMREG_CLAIM_DB $IDEMREG_TOKEN"')
    slot, database, token = read(streams[0]).decode().split()
    assert slot == "none"
    assert "another's" not in (database, token)


def test_only_the_last_64_kib_are_kept(registry: Registry, streams: tuple[int, int]) -> None:
    """All of the output passes through; its end is the result."""
    script = "i=0; while [ $i -lt 3000 ]; do echo line-$i-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; i=$((i+1)); done"
    sh(registry, streams, "t", script)
    passed = read(streams[0])
    os.truncate(streams[0], 0)
    os.lseek(streams[0], 0, os.SEEK_SET)
    assert sh(registry, streams, "t", script) == (0, True)
    kept = read(streams[0])
    assert len(passed) > 100_000
    assert len(kept) == 64 * 1024
    assert passed.endswith(kept)


def test_bytes_that_are_no_text_come_back(registry: Registry, streams: tuple[int, int]) -> None:
    """Output is bytes; what is no UTF-8 is kept as it is."""
    script = r"printf '\377\000\001'"
    sh(registry, streams, "t", script)
    sh(registry, streams, "t", script)
    assert read(streams[0]) == b"\xff\x00\x01" * 2


def test_what_stays_in_the_background_is_not_waited_for(
    registry: Registry, streams: tuple[int, int], tmp_path: Path
) -> None:
    """The end of the command is the end, though a grandchild holds its output open until after that."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    assert sh(registry, streams, "t", f"cat <{gate} & echo started") == (0, False)
    assert read(streams[0]) == b"started\n"
    gate.write_text("the grandchild was still there to read this")


def test_a_background_process_that_writes_for_ever_is_not_waited_for(
    registry: Registry, streams: tuple[int, int], tmp_path: Path
) -> None:
    """What is in the pipe at the command's end is passed on, and no more, however slow the reader of it is."""
    read_end, write_end = os.pipe()
    background, go = tmp_path / "background", tmp_path / "go"
    os.mkfifo(go)
    script = f"yes & echo $! >{background}; read x <{go}"
    passed: list[int] = []
    reader = threading.Thread(target=read_slowly, args=(read_end, passed, go))
    reader.start()
    end = run_command(registry, "t", [SH, "-c", script], stdout=write_end, stderr=streams[1])
    os.close(write_end)
    os.kill(int(background.read_text()), signal.SIGKILL)
    reader.join(PATIENCE_S)
    assert (end.exit_code, reader.is_alive()) == (0, False)
    assert passed[0] < 8_000_000  # without a bound it goes on until the reader is faster for once


def read_slowly(fd: int, passed: list[int], go: Path) -> None:
    """A byte at a time, so that the writer has nearly always more; behind the first the command may end."""
    count = len(os.read(fd, 1))
    go.write_text("\n")
    while os.read(fd, 1):
        count += 1
    passed.append(count)
    os.close(fd)


@pytest.mark.parametrize(("on_crash", "status"), [("hold", Status.UNKNOWN), ("rerun", Status.PENDING)])
def test_a_signal_while_the_command_is_started_goes_to_the_command(
    registry: Registry, streams: tuple[int, int], monkeypatch: pytest.MonkeyPatch, on_crash: str, status: Status
) -> None:
    """Behind the fork and before Popen has returned: the command gets the signal, and its task is not put back."""
    fork_exec = subprocess._fork_exec  # type: ignore[attr-defined] # where Popen leaves Python

    def then_signal(*args: object) -> int:
        pid: int = fork_exec(*args)
        signal.raise_signal(signal.SIGTERM)
        return pid

    monkeypatch.setattr(subprocess, "_fork_exec", then_signal)
    out, err = streams
    end = run_command(registry, "t", ["/bin/cat", "/dev/zero"], stdout=out, stderr=err, on_crash=on_crash)  # type: ignore[arg-type]
    assert end.exit_code == 128 + signal.SIGTERM
    task = registry.get("t")
    assert task is not None
    assert (task.status, task.attempt) == (status, 1)


def test_an_orphan_that_dropped_its_lock_is_no_dead_owner(
    path: Path, tmp_path: Path, open_registry: Callable[..., Registry]
) -> None:
    """A command that closes what it inherits (as sudo does) is known by its process: nobody takes its task."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"import os; os.closerange(3, 5000); print(os.getpid(), flush=True); open({str(gate)!r}).read()"
    argv = [sys.executable, "-c", script]
    wrapper = idemreg(path, "run", "t", "--on-crash", "rerun", "--", *argv, stdout=subprocess.PIPE)
    assert wrapper.stdout is not None
    command = int(wrapper.stdout.readline())
    wrapper.kill()
    wrapper.wait(PATIENCE_S)
    registry = open_registry()
    with pytest.raises(TaskRunningError) as running:
        run_command(registry, "t", argv, on_crash="rerun")
    owner = running.value.owner
    assert owner is not None
    assert (owner.liveness, owner.pid) == (Liveness.CANNOT_TELL, command)
    ended = os.pidfd_open(command)
    gate.write_text("go")
    assert select.select([ended], [], [], PATIENCE_S)[0]
    os.close(ended)
    wrapper.stdout.close()


def test_every_output_fits_into_a_result(registry: Registry, streams: tuple[int, int]) -> None:
    """The finest mixture of both streams, with no text in it, is stored; the exit code is the command's own."""
    output = Output()
    for number in range(70_000):
        output.add(1 + number % 2, b"\x80")
    assert output.is_truncated
    registry.run("t", lambda: {"exit_code": 3, "output": output.kept(), "truncated": True})


@pytest.mark.parametrize(
    "result",
    [
        {"output": 5},
        {"exit_code": 0, "output": 5, "truncated": True},
        {"exit_code": None, "output": [], "truncated": False},
        {"exit_code": 1_000, "output": [], "truncated": False},
        {"exit_code": 0, "output": [[1]], "truncated": False},
        {"exit_code": 0, "output": [[1, None]], "truncated": False},
        {"exit_code": 0, "output": [[7, "x"]], "truncated": False},
        {"exit_code": 0, "output": [], "truncated": False, "more": 1},
    ],
)
def test_an_operators_result_is_not_taken_for_a_commands(
    registry: Registry, streams: tuple[int, int], result: object
) -> None:
    """Whatever `resolve --result` stored is replayed as a plain success: nothing to write, exit code 0."""
    sh(registry, streams, "t", "exit 9", unknown_on=[9])
    registry.resolve("t", "happened", result=result)
    assert sh(registry, streams, "t", "exit 9", unknown_on=[9]) == (0, True)
    assert stored_output(result) is None


def test_a_missing_interpreter_is_no_missing_command(registry: Registry, tmp_path: Path) -> None:
    """The script is there; what its first line names is not: 126, whose hint says so."""
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(CommandNotExecutableError):
        run_command(registry, "t", [str(script)])


def test_no_argument_of_a_command_line_is_stored(path: Path, registry: Registry, tmp_path: Path) -> None:
    """Passwords on command lines appear in no row: not while the command runs, nor in what is told of its death."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    argv = [SH, "-c", f"echo on; read x <{gate}", "--password=hunter2"]
    wrapper = idemreg(path, "run", "t", "--", *argv, stdout=subprocess.PIPE)
    assert wrapper.stdout is not None
    wrapper.stdout.readline()
    with pytest.raises(TaskRunningError) as running:
        run_command(registry, "t", argv)
    assert "hunter2" not in str(running.value)
    wrapper.kill()
    wrapper.wait(PATIENCE_S)
    gate.write_text("go\n")
    with pytest.raises(TaskUnknownError):
        run_command(registry, "t", argv, wait=PATIENCE_S)
    wrapper.stdout.close()
    registry.checkpoint("TRUNCATE")
    assert b"hunter2" not in path.read_bytes()


def test_nothing_to_run_puts_the_task_back(registry: Registry, streams: tuple[int, int], tmp_path: Path) -> None:
    """A command that is missing, or may not be executed, leaves the task pending, its attempt uncounted."""
    with pytest.raises(CommandNotFoundError) as missing:
        run_command(registry, "t", ["/nowhere/command"])
    assert missing.value.exit_code == 127
    (tmp_path / "plain").write_text("no program")
    with pytest.raises(CommandNotExecutableError) as plain:
        run_command(registry, "u", [str(tmp_path / "plain")])
    assert plain.value.exit_code == 126
    for task_id in "tu":
        task = registry.get(task_id)
        assert task is not None
        assert (task.status, task.attempt) == (Status.PENDING, 0)


def test_a_corrected_command_follows_a_mistyped_one(registry: Registry, streams: tuple[int, int]) -> None:
    """What did not start binds nobody: the same task_id may then run another command, under a larger token."""
    with pytest.raises(CommandNotFoundError):
        run_command(registry, "t", ["/nowhere/comand"])
    before = registry.get("t")
    assert sh(registry, streams, "t", "true") == (0, False)
    after = registry.get("t")
    assert before is not None
    assert after is not None
    assert after.token > before.token
    with pytest.raises(ChecksumMismatchError):
        sh(registry, streams, "t", "false")


def test_a_command_whose_name_is_no_text_is_run(registry: Registry, tmp_path: Path) -> None:
    """A path is bytes; those that are no UTF-8 are escaped in the job's name."""
    command = os.fsencode(tmp_path) + b"/odd-\xff"
    with open(command, "w") as file:
        file.write("#!/bin/sh\nexit 0\n")
    os.chmod(command, 0o700)
    assert run_command(registry, "t", [os.fsdecode(command)]).exit_code == 0
    task = registry.get("t")
    assert task is not None
    assert task.name == "odd-\\xff"


def test_a_command_killed_by_a_signal_was_interrupted(registry: Registry, streams: tuple[int, int]) -> None:
    """Its crash policy decides: unknown under hold, and run again under rerun."""
    assert sh(registry, streams, "held", "kill -9 $$") == (137, False)
    with pytest.raises(TaskUnknownError):
        sh(registry, streams, "held", "kill -9 $$")
    script = '[ "$IDEMREG_ATTEMPT" = 2 ] || kill -TERM $$'
    assert sh(registry, streams, "rerun", script, on_crash="rerun") == (143, False)
    assert sh(registry, streams, "rerun", script, on_crash="rerun") == (0, False)


def test_the_verify_command_settles_what_a_crash_left(registry: Registry, streams: tuple[int, int]) -> None:
    """Exit code 0 means that it happened, 1 that it did not; what it wrote is the evidence."""
    for task_id, verify in (("yes", "echo found $IDEMREG_TASK_ID"), ("no", "exit 1"), ("perhaps", "exit 2")):
        script = '[ "$IDEMREG_ATTEMPT" = 2 ] || kill -9 $$'
        sh(registry, streams, task_id, script, on_crash="verify", verify=verify)
        if task_id == "perhaps":
            with pytest.raises(TaskUnknownError) as unknown:
                sh(registry, streams, task_id, script, on_crash="verify", verify=verify)
            assert unknown.value.retryable
            continue
        replayed = task_id == "yes"
        assert sh(registry, streams, task_id, script, on_crash="verify", verify=verify) == (0, replayed)
    task = registry.get("yes")
    assert task is not None
    assert (task.status, task.evidence) == (Status.SUCCEEDED, "found yes")


def unknown_command(registry: Registry, streams: tuple[int, int]) -> Callable[[str], Task]:
    """A task that a killed command has left; a call asks a verify command about it, and gives its row."""
    script = "kill -9 $$"
    sh(registry, streams, "t", script, on_crash="verify", verify="exit 2")

    def ask(verify: str) -> Task:
        with contextlib.suppress(TaskUnknownError):
            sh(registry, streams, "t", script, on_crash="verify", verify=verify)
        task = registry.get("t")
        assert task is not None
        return task

    return ask


def test_a_verify_command_ends_with_itself(registry: Registry, streams: tuple[int, int]) -> None:
    """What it leaves running in the background may hold its output open for ever: nobody waits for that."""
    task = unknown_command(registry, streams)("tail -f /dev/null & echo $!; exit 0")
    os.kill(int(task.evidence or ""), signal.SIGKILL)
    assert task.status is Status.SUCCEEDED


def test_the_evidence_of_a_verify_command_is_the_end_of_what_it_wrote(
    registry: Registry, streams: tuple[int, int]
) -> None:
    """However much it writes, no more than that is in memory."""
    ask = unknown_command(registry, streams)
    tracemalloc.start()
    try:
        task = ask("head -c 30000000 /dev/zero | tr '\\0' x; echo the end; exit 2")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (task.verdict, len(task.evidence or "")) == (Verdict.CANNOT_TELL, 4_095)
    assert (task.evidence or "").endswith("xxxthe end")
    assert most < 2_000_000


@pytest.mark.parametrize(
    ("verify", "shell", "evidence"),
    [
        ("echo begun; kill -9 $$", SH, "no verdict: the verify command was killed by signal 9"),
        ("exit 0", "/no/such/shell", "no verdict: the verify command could not be asked: No such file or directory"),
    ],
)
def test_a_verify_command_that_gives_no_verdict_is_to_be_asked_again(
    registry: Registry,
    streams: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    verify: str,
    shell: str,
    evidence: str,
) -> None:
    """Killed in its middle it has not said that it cannot tell; its caller is told that another call may ask again."""
    ask = unknown_command(registry, streams)
    monkeypatch.setattr(command_parts, "BY_SHELL", shell)
    task = ask(verify)
    assert (task.status, task.verdict, task.evidence) == (Status.UNKNOWN, None, evidence)
    with pytest.raises(TaskUnknownError) as unknown:
        sh(registry, streams, "t", "kill -9 $$", on_crash="verify", verify=verify)
    assert unknown.value.retryable


def test_standard_input_reaches_the_command(path: Path) -> None:
    """`idemreg run` hands its own standard input on."""
    process = idemreg(path, "run", "t", "--", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, _ = process.communicate(b"through", PATIENCE_S)
    assert (process.returncode, out) == (0, b"through")


def test_output_comes_while_the_command_runs(path: Path, tmp_path: Path) -> None:
    """The first line is there although the command has not ended."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    process = idemreg(path, "run", "t", "--", SH, "-c", f"echo first; read x <{gate}", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    gate.write_text("go\n")
    assert process.wait(PATIENCE_S) == 0
    process.stdout.close()


HOLDING = """
    from idemreg import Registry
    wait()
    with Registry(sys.argv[1]).claim("other", name="other") as claim, claim.transaction():
        say("holds")
        wait()
"""


def test_output_comes_while_others_have_the_registry(
    path: Path, tmp_path: Path, open_registry: Callable[..., Registry]
) -> None:
    """The first line does not wait for the write lock; which process runs the command is noted once that is free."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    registry = open_registry(busy_timeout=2 * PATIENCE_S)
    registry.open()
    read_end, write_end = os.pipe()
    argv = [SH, "-c", f"echo $$; read x <{gate}"]
    runner = threading.Thread(target=run_command, args=(registry, "t", argv), kwargs={"stdout": write_end})
    with Script(HOLDING, path) as holder:

        def hold() -> None:
            holder.go()
            holder.expect("holds")

        faults.arm("command.spawned", hold)
        with Registry(path) as looking:
            runner.start()
            is_live = bool(select.select([read_end], [], [], PATIENCE_S)[0])
            holder.go()
            command = int(os.read(read_end, 100))
            while (task := looking.get("t")) is None or (owner := looking.owner(task)) is None or owner.pid != command:
                assert runner.is_alive()
        gate.write_text("go\n")
        runner.join(PATIENCE_S)
        assert holder.end() == 0
    os.close(read_end)
    os.close(write_end)
    assert is_live


def test_output_that_is_lost_to_a_full_disk_is_told(path: Path) -> None:
    """One line on stderr a run or replay, and the exit code stays; a reader that has gone is not worth one."""
    words = ("run", "t", "--", SH, "-c", "echo one; sleep 0; echo two")
    for _ in range(2):
        with open("/dev/full", "wb") as full:
            process = idemreg(path, *words, stdout=full, stderr=subprocess.PIPE)
            _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        assert err.count(b"idemreg: output to stdout is lost: No space left on device\n") == 1
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = idemreg(path, *words, stdout=write_end, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=PATIENCE_S)
    os.close(write_end)
    assert process.returncode == 0
    assert b"lost" not in err


ANSWERING = """
import signal, sys
number = int(sys.argv[1])
signal.pthread_sigmask(signal.SIG_BLOCK, [number])  # so that it is not lost before it is waited for
print("ready", flush=True)
print("got", signal.sigwait([number]) == number, flush=True)
sys.exit(5)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_command(path: Path, number: signal.Signals) -> None:
    """A signal sent to the wrapper is the command's to answer, and its exit code is the command's."""
    command = [sys.executable, "-c", ANSWERING, str(int(number))]
    with idemreg(
        path, "run", "t", "--", *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == b"got True\n"
        assert process.wait(PATIENCE_S) == 5


def test_an_orphan_keeps_its_task_owned(path: Path, tmp_path: Path, open_registry: Callable[..., Registry]) -> None:
    """kill -9 of the wrapper: nobody runs the task while the command lives; then it is unknown, never run again."""
    gate, witness = tmp_path / "gate", tmp_path / "witness"
    os.mkfifo(gate)
    script = f"echo $$; echo ran >>{witness}; exec 3>{tmp_path}/x 9>{tmp_path}/y; read x <{gate}; echo done >>{witness}"
    argv = [SH, "-c", script]
    wrapper = idemreg(path, "run", "t", "--on-crash", "rerun", "--", *argv, stdout=subprocess.PIPE)
    assert wrapper.stdout is not None
    command = int(wrapper.stdout.readline())
    wrapper.kill()
    wrapper.wait(PATIENCE_S)
    registry = open_registry()
    with pytest.raises(TaskRunningError) as running:
        run_command(registry, "t", argv, on_crash="rerun")
    assert running.value.owner is not None
    assert running.value.owner.reason == "its lock is held"

    ended = os.pidfd_open(command)
    gate.write_text("go\n")
    assert select.select([ended], [], [], PATIENCE_S)[0]
    os.close(ended)
    assert witness.read_text() == "ran\ndone\n"
    with pytest.raises(TaskUnknownError):
        run_command(registry, "t", argv, on_crash="hold")
    wrapper.stdout.close()


KILLED = """
    from idemreg import Registry, faults
    from idemreg.command import run_command
    faults.arm("command.ended", faults.kill)
    run_command(Registry(sys.argv[1]), "t", ["/bin/sh", "-c", sys.argv[2]], stdout=2, **eval(sys.argv[3]))
"""


def test_the_output_of_an_attempt_is_never_shown_as_that_of_a_later_one(
    path: Path, registry: Registry, streams: tuple[int, int]
) -> None:
    """Of an attempt whose wrapper was killed nothing was kept, and nothing is replayed, whoever settles it."""
    for how in ("a later claim", "resolve"):
        script = "echo output of the first attempt; exit 3"
        assert sh(registry, streams, "t", script) == (3, False)
        with Script(KILLED, path, script, {}) as wrapper:
            assert wrapper.end() == -signal.SIGKILL
        if how == "a later claim":
            with pytest.raises(TaskUnknownError):
                sh(registry, streams, "t", script)
            assert is_without_output(registry)
        registry.resolve("t", "did-not-happen")
        assert is_without_output(registry)
        with pytest.raises(TaskFailedError):
            sh(registry, streams, "t", script, max_attempts=2)
        registry.forget("t")


def is_without_output(registry: Registry) -> bool:
    task = registry.get("t")
    assert task is not None
    assert task.attempt == 2
    return task.result is None


def test_a_verify_hook_leaves_the_output_that_its_attempt_left(
    path: Path, registry: Registry, streams: tuple[int, int]
) -> None:
    """What an unknown attempt wrote stays when the hook knows no more; that of an attempt before does not."""
    script = "echo output; exit 9"
    asking = {"unknown_on": [9], "on_crash": "verify", "verify": "exit 2"}
    sh(registry, streams, "t", script, **asking)
    with pytest.raises(TaskUnknownError):
        sh(registry, streams, "t", script, **asking)
    task = registry.get("t")
    assert task is not None
    assert task.result is not None
    registry.resolve("t", "did-not-happen")
    with Script(KILLED, path, script, asking) as wrapper:
        assert wrapper.end() == -signal.SIGKILL
    with pytest.raises(TaskUnknownError):
        sh(registry, streams, "t", script, **asking)
    assert is_without_output(registry)


# --- a status that somebody else has taken ------------------------------------------------------------------------

# SIG_IGN survives exec: a supervisor, or a shell's `trap '' CHLD`, leaves it to all that it starts.
IGNORING = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def ignoring(path: Path, *args: str, given: bytes = b"") -> int:
    """The exit code of the command line, begun by a program that ignores SIGCHLD."""
    argv = [sys.executable, "-c", IGNORING, "-m", "idemreg", *args]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IDEMREG_DB": str(path)}
    return subprocess.run(argv, cwd=ROOT, env=environment, input=given, check=False, timeout=PATIENCE_S).returncode


def test_an_ignored_sigchld_makes_no_success_of_a_failure(path: Path, registry: Registry) -> None:
    """Begun by a program that ignores SIGCHLD, `run` and `each` record the exit code that the command had."""
    assert ignoring(path, "run", "t", "--", SH, "-c", "exit 3") == 3
    assert ignoring(path, "each", "--task-id", "{id}", "--", SH, "-c", "exit 3", given=b'{"id": "line"}\n') == 1
    for task_id in ("t", "line"):
        task = registry.get(task_id)
        assert task is not None
        assert (task.status, task.error) == (Status.FAILED, "exit code 3")


def test_an_ignored_sigchld_makes_no_happened_of_did_not_happen(path: Path, registry: Registry) -> None:
    """The verdict of a verify command is its own exit code there too."""
    words = ("run", "--on-crash", "verify", "--verify", "echo no; exit 1", "t", "--", SH, "-c")
    script = '[ "$IDEMREG_ATTEMPT" = 2 ] || kill -9 $$'
    assert ignoring(path, *words, script) == 137
    assert ignoring(path, *words, script) == 0
    task = registry.get("t")
    assert task is not None
    assert (task.status, task.attempt, task.evidence) == (Status.SUCCEEDED, 2, "no")


def test_a_command_finds_sigchld_as_it_is_by_default(path: Path) -> None:
    """What its own children say is not thrown away because of who started us."""
    look = "import signal, sys; sys.exit(signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN)"
    assert ignoring(path, "run", "t", "--", sys.executable, "-c", look) == 0


# In a thread nothing can be done about it: the kernel throws every status away.
LOST = """
    import threading
    from idemreg import Registry, TaskUnknownError
    from idemreg.command import run_command
    registry = Registry(sys.argv[1])
    def run():
        end = run_command(registry, "t", ["/bin/sh", "-c", "echo out"], on_crash="verify", verify="exit 2")
        say(end.exit_code, end.status.word)
        try: run_command(registry, "t", ["/bin/sh", "-c", "echo out"], on_crash="verify", verify="true")
        except TaskUnknownError as error: say("unknown", error.retryable)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
"""


def test_a_lost_exit_code_is_no_success(path: Path, registry: Registry) -> None:
    """Where the status is thrown away the task is unknown, and the verdict of a verify command cannot-tell."""
    with Script(LOST, path) as script:
        script.expect("out")
        script.expect("76 unknown")
        script.expect("unknown True")
        assert script.end() == 0
    task = registry.get("t")
    assert task is not None
    assert (task.status, task.verdict, task.attempt) == (Status.UNKNOWN, Verdict.CANNOT_TELL, 1)
    assert stored_output(load_result(task.result or "", None)) == (76, [(1, "out\n")], False)


def test_a_status_that_another_part_of_the_process_took_is_lost(path: Path) -> None:
    """A handler that waits for every child takes the command's status: never 0, and signals go to nobody else."""
    source = """
        from idemreg import Registry, faults
        from idemreg.command import run_command
        faults.arm("command.spawned", lambda: os.waitpid(-1, 0))
        end = run_command(Registry(sys.argv[1]), "t", ["/bin/sh", "-c", "exit 3"])
        say(end.exit_code, end.status.word)
    """
    with Script(source, path) as script:
        script.expect("76 unknown")
        assert script.end() == 0


def test_words_without_a_folder_are_not_kept(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone by now: nothing starts that could not be run again, and nothing is stored."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "gone"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    with pytest.raises(ArgumentError, match="would be rerun in is gone"):
        run_command(registry, "t", ["/bin/true"], recover=True, on_crash="rerun")
    assert registry.get("t") is None
