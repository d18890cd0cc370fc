"""`idemreg each`: every line handled once, several at a time, over kills and signals."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import ArgumentError, Registry, Status, TaskIdError
from idemreg.each import LINE_BYTES, Each, End, Kind, Line, LineTemplate, read_lines
from tests.support.processes import PATIENCE_S, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SH = "/bin/sh"


def start(path: Path, *words: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IDEMREG_DB": str(path)}
    return subprocess.Popen([sys.executable, "-m", "idemreg", "each", *words], env=environment, **options)


def feed(path: Path, lines: bytes, *words: str, **options: Any) -> tuple[int, bytes, bytes]:
    process = start(path, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    out, err = process.communicate(lines, timeout=PATIENCE_S)
    return process.returncode, out, err


def orders(*numbers: int) -> bytes:
    return b"".join(json.dumps({"id": n}).encode() + b"\n" for n in numbers)


def words_of(err: bytes) -> str:
    return err.decode().splitlines()[-1].removeprefix("idemreg: ")


# --- the pieces -----------------------------------------------------------------------------------------------------


def test_lines_come_whole_and_bounded(tmp_path: Path) -> None:
    """Lines are numbered and whole over reads of any size; one that is too long comes cut, and the next is intact."""
    long = b"x" * (LINE_BYTES + 200_000)
    (tmp_path / "in").write_bytes(b"one\n\n" + b"y" * 100_000 + b"\n" + long + b"\nlast")
    fd = os.open(tmp_path / "in", os.O_RDONLY)
    lines = list(read_lines(fd))
    os.close(fd)
    assert [(line.number, len(line.raw)) for line in lines] == [
        (1, 3),
        (2, 0),
        (3, 100_000),
        (4, LINE_BYTES + 1),
        (5, 4),
    ]
    assert lines[-1].read == os.stat(tmp_path / "in").st_size


def test_the_template_is_over_the_lines_fields() -> None:
    """Fields, and fields within fields; what is missing is an error of its line, a slip in the template one at once."""
    template = LineTemplate("order:{id}:{customer[name]}", "id")
    assert template.task_id({"id": 7, "customer": {"name": "a"}, "more": 1}) == "order:7:a"
    assert template.payload({"id": 7, "more": 1}) == {"id": 7}
    for wrong in ({"id": 7}, {"id": 7, "customer": {}}, {"id": None, "customer": {"name": "a"}}):
        with pytest.raises(TaskIdError):
            template.task_id(wrong)
    with pytest.raises(ArgumentError):
        template.payload({"customer": 1})
    assert LineTemplate("{id}").payload({"id": 1, "x": 2}) == {"id": 1, "x": 2}
    with pytest.raises(ValueError, match="separator"):
        LineTemplate("{a}{b}")


def test_no_more_than_twice_the_jobs_are_read_ahead() -> None:
    """An endless source is read as far as needed: begun and waiting lines are bounded."""
    read: list[int] = []
    most = 0

    def endless() -> Iterator[Line]:
        number = 0
        while True:
            number += 1
            read.append(number)
            yield Line(number, b"{}", number)

    def handle(line: Line) -> End:
        nonlocal most
        most = max(most, len(read) - line.number)
        return End(line, Kind.DONE)

    every = Each(endless(), handle, jobs=3)
    done = 0
    for _ in every:
        done += 1
        if done == 500:
            every.stop()
    assert 500 <= done <= 506
    assert most <= 3 * 2 + 3


def test_an_error_of_the_store_ends_all(registry: Registry) -> None:
    """What is of all lines and not of one is raised, when those begun have ended."""

    def handle(line: Line) -> End:
        raise OSError(line.number)

    lines = (Line(n, b"{}", n) for n in range(1, 1_000))
    with pytest.raises(OSError, match=r"[0-9]"):
        list(Each(lines, handle, jobs=4))


# --- the command ----------------------------------------------------------------------------------------------------


def test_each_line_once(path: Path, registry: Registry) -> None:
    """The line is the command's input and names its task; fed again, all are replayed in silence."""
    script = ["-j", "4", "--task-id", "order:{id}", "--", SH, "-c", "cat; echo $IDEMREG_TASK_ID"]
    code, out, err = feed(path, orders(*range(20)), *script)
    assert (code, words_of(err)) == (0, "20 lines: 20 done")
    assert sorted(out.splitlines()) == sorted(
        word for n in range(20) for word in (json.dumps({"id": n}).encode(), f"order:{n}".encode())
    )
    code, out, err = feed(path, orders(*range(20)), *script)
    assert (code, out, words_of(err)) == (0, b"", "20 lines: 20 replayed")
    assert registry.count() == {Status.SUCCEEDED: 20}


def test_the_lines_of_two_commands_do_not_mix(path: Path) -> None:
    """Output that comes in pieces is passed on line by line; the last line gets its end."""
    script = f"for i in 1 2 3 4 5; do printf '%s' $IDEMREG_TASK_ID; printf -- '-%s\\n' $i; done; printf {'x' * 300}"
    code, out, _ = feed(path, orders(*range(12)), "-j", "6", "--task-id", "{id}", "--", SH, "-c", script)
    assert code == 0
    expected = Counter(f"{n}-{i}" for n in range(12) for i in range(1, 6)) + Counter({"x" * 300: 12})
    assert Counter(out.decode().splitlines()) == expected


def test_one_bad_line_stops_no_other(path: Path) -> None:
    """No JSON, no object, no field, too long, other content: each is told with its number, and counted."""
    feed(path, b'{"id": 1, "x": 1}\n', "--task-id", "{id}", "--", "true")
    lines = b'{"id": 1, "x": 2}\nno json\n[1]\n{"x": 1}\n{"id": 2}\n{"id": "' + b"z" * LINE_BYTES + b'"}\n{"id": 3}\n'
    code, _, err = feed(path, lines, "--task-id", "{id}", "--", "true")
    assert (code, words_of(err)) == (65, "7 lines: 2 done, 4 refused, 1 mismatch")
    assert [line.split()[2] for line in err.decode().splitlines()[:-1]] == ["1", "2", "3", "4", "6"]


@pytest.mark.parametrize(
    ("script", "options", "code", "counts"),
    [
        ("exit 3", [], 1, "1 failed"),
        ("exit 3", ["--unknown-on", "3"], 76, "1 unknown"),
        ("exit 3", ["--release-on", "3"], 0, "1 released"),
        ("kill -9 $$", [], 76, "1 unknown"),
    ],
)
def test_the_exit_code_is_that_of_the_worst(
    path: Path, script: str, options: list[str], code: int, counts: str
) -> None:
    """One failed line among good ones decides."""
    words = [*options, "--task-id", "{id}", "--", SH, "-c", f'[ "$IDEMREG_TASK_ID" = 2 ] || exit 0; {script}']
    got, _, err = feed(path, orders(1, 2, 3), *words)
    assert (got, words_of(err)) == (code, f"3 lines: 2 done, {counts}")


def test_json_tells_every_line(path: Path) -> None:
    """One object a line in the order of completion, then the account; the commands' output goes to stderr."""
    code, out, err = feed(path, orders(1) + b"x\n", "--json", "--task-id", "{id}", "--", "echo", "hello")
    assert code == 65
    first, second, account = map(json.loads, out.splitlines())
    assert first == {"line": 1, "task_id": "1", "outcome": "done", "exit_code": 0, "error": None}
    assert (second["line"], second["outcome"], second["task_id"]) == (2, "refused", None)
    assert (account["lines"], account["done"], account["refused"], account["interrupted"]) == (2, 1, 1, False)
    assert b"hello" in err


def test_the_payload_says_what_counts(path: Path) -> None:
    """With --payload other fields may change; without, nothing may but white space and the order of keys."""
    words = ["--task-id", "{id}", "--payload", "id,x", "--", "true"]
    assert feed(path, b'{"id": 1, "x": 1, "sent": 1}\n', *words)[0] == 0
    assert words_of(feed(path, b'{"id": 1, "x": 1, "sent": 2}\n', *words)[2]) == "1 line: 1 replayed"
    assert feed(path, b'{"id": 1, "x": 2, "sent": 2}\n', *words)[0] == 65
    whole = ["--task-id", "w{id}", "--", "true"]
    feed(path, b'{"id": 1, "x": 1}\n', *whole)
    assert words_of(feed(path, b'{"x":1,"id":1}\n', *whole)[2]) == "1 line: 1 replayed"


def test_a_function_in_place_of_a_command(path: Path, tmp_path: Path, registry: Registry) -> None:
    """--python module:function gets the parsed line; its result is the task's, its exception a failure."""
    (tmp_path / "mails.py").write_text("def send(line):\n    return 10 // line['id']\n")
    words = ["--task-id", "{id}", "--python", "mails:send", "-j", "2"]
    code, _, err = feed(path, orders(5, 0, 2), *words, cwd=tmp_path)
    assert (code, words_of(err)) == (1, "3 lines: 2 done, 1 failed")
    task = registry.get("5")
    assert task is not None
    assert (task.result, task.name) == ("2", "send")
    assert feed(path, b"", "--task-id", "{id}", "--python", "mails:none", cwd=tmp_path)[0] == 2
    assert feed(path, b"", "--task-id", "{id}", "--python", "mails:send", "--", "true", cwd=tmp_path)[0] == 2
    assert feed(path, b"", "--task-id", "{id", "--", "true")[0] == 2


def test_a_missing_command_stops_at_once(path: Path, registry: Registry) -> None:
    """It is no failure of the lines: nothing ran, and their tasks are put back."""
    code, _, err = feed(path, orders(1, 2, 3), "--task-id", "{id}", "--", "/no/such/command")
    assert code == 127
    assert b"no such command" in err
    assert Status.FAILED not in registry.count()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_in_order(path: Path, tmp_path: Path, registry: Registry, number: int, code: int) -> None:
    """No more lines are begun, the commands get the signal, their rows are settled, and the account is given."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"trap 'exit 0' INT TERM; echo on; read x <{gate} & wait"
    process = start(
        path, "-j", "2", "--task-id", "{id}", "--", SH, "-c", script,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(orders(*range(50)))
    process.stdin.flush()  # and left open: the feeder waits for more
    assert [process.stdout.readline() for _ in range(2)] == [b"on\n"] * 2
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, err
    assert words_of(err) == "interrupted: 2 lines: 2 done"
    assert registry.count() == {Status.SUCCEEDED: 2}
    assert out == b""


def test_a_second_signal_kills(path: Path, tmp_path: Path, registry: Registry) -> None:
    """A command that does not end is killed by a second Ctrl-C, and its task is unknown."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"trap 'echo heard' INT; echo on; while :; do read x <{gate}; done"
    process = start(
        path, "--task-id", "{id}", "--", SH, "-c", script,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(orders(1))
    process.stdin.flush()
    assert process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"heard\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, words_of(err)) == (130, "interrupted: 1 line: 1 unknown")
    assert registry.count() == {Status.UNKNOWN: 1}


def test_killed_in_the_middle_and_fed_again(path: Path, tmp_path: Path, open_registry: Callable[..., Registry]) -> None:
    """kill -9: an orphan keeps its task until it ends; what was not begun runs, what was in the middle is unknown."""
    gate, witness = tmp_path / "gate", tmp_path / "witness"
    os.mkfifo(gate)
    script = f"echo $IDEMREG_TASK_ID >>{witness}; if [ -p {gate} ]; then echo $$; read x <{gate}; fi"
    words = ["-j", "2", "--task-id", "{id}", "--", SH, "-c", script]
    process = start(path, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(orders(*range(6)))
    process.stdin.flush()
    orphans = [os.pidfd_open(int(process.stdout.readline())) for _ in range(2)]
    process.kill()
    process.wait(PATIENCE_S)
    process.stdin.close()
    process.stdout.close()
    code, _, err = feed(path, orders(0, 1), *words)
    assert (code, words_of(err)) == (75, "2 lines: 2 running")
    gate.unlink()
    for orphan in orphans:
        signal.pidfd_send_signal(orphan, signal.SIGKILL)
        assert select.select([orphan], [], [], PATIENCE_S)[0]
        os.close(orphan)
    code, _, err = feed(path, orders(*range(6)), "--wait", "60", *words)
    assert (code, words_of(err)) == (76, "6 lines: 4 done, 2 unknown")
    assert sorted(witness.read_text().split()) == list("012345")
    assert open_registry().count() == {Status.SUCCEEDED: 4, Status.UNKNOWN: 2}


def test_the_real_deliveries_with_kills_in_between(shared_data: Path, path: Path, tmp_path: Path) -> None:
    """Fed again and again while it is killed: every delivery ends, each with one effect, and no other."""
    lines = (shared_data / "github-deliveries.jsonl").read_bytes().splitlines()[:40]
    witness = tmp_path / "witness"
    script = f'grep -qx "$IDEMREG_TASK_ID" {witness} || echo "$IDEMREG_TASK_ID" >>{witness}; echo done'
    verify = f'grep -qx "$IDEMREG_TASK_ID" {witness}'
    witness.touch()
    words = ["-j", "4", "--on-crash", "verify", "--verify", verify, "--wait", "60"]
    words += ["--task-id", "gh:{delivery}", "--", SH, "-c", script]
    data = b"\n".join(lines) + b"\n"
    (tmp_path / "in").write_bytes(data)
    for kill_after in (3, 7, 11):
        with (tmp_path / "in").open("rb") as source:
            process = start(path, *words, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        for _ in range(kill_after):
            assert process.stdout.readline() == b"done\n"
        process.kill()
        process.wait(PATIENCE_S)
        process.stdout.close()
    code, _, err = feed(path, data, *words)
    assert code == 0, err
    with Registry(path, create=False) as registry:
        assert registry.count() == {Status.SUCCEEDED: len(lines)}
    effects = Counter(witness.read_text().split())
    assert set(effects.values()) == {1}
    assert len(effects) == len(lines)
