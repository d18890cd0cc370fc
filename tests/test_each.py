"""`idemreg each`: every line handled once, several at a time, over kills and signals."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import random
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import (
    ArgumentError,
    Registry,
    Status,
    StoreBusyError,
    TaskIdError,
    TaskUnknownError,
    current_claim,
    faults,
)
from idemreg.cli.account import progress_text
from idemreg.cli.each import _LookUp
from idemreg.cli.ending import SAID
from idemreg.command import run_command
from idemreg.each import Each, End, Kind, Work, command_name
from idemreg.errors import CommandNotExecutableError
from idemreg.feed import LINE_BYTES, Line, LineTemplate, read_lines
from idemreg.signals import Relay
from tests.support.processes import PATIENCE_S, ROOT
from tests.support.raw import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SH = "/bin/sh"
SEED = 20_261_123
KILLED_EVERY = 50  # lines


def start(path: Path, *words: str, more: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # it would hide a buffer
    environment = ours | {"PYTHONPATH": str(ROOT), "IDEMREG_DB": str(path)} | (more or {})
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
        (3, 100_000),
        (4, LINE_BYTES + 1),
        (5, 4),
    ]
    assert [line.end for line in lines if line.number != 4] == [4, 100_006, 100_007 + len(long) + len("last")]


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
    for literal in ("{a}{b}", "all", "{}", "{a!r}", "{a"):
        with pytest.raises(ValueError):
            LineTemplate(literal)
    assert LineTemplate("{{x}}:{id}").task_id({"id": 1}) == "{x}:1"
    assert LineTemplate("{id}", "{a}:{b[c]}").payload({"id": 1, "a": "x", "b": {"c": 2}}) == "x:2"
    with pytest.raises(ArgumentError):
        LineTemplate("{id}", "{a}").payload({"id": 1})


def test_blank_lines_are_passed_over(path: Path) -> None:
    """A blank line, at the end or between, is no line: it counts for nothing but the numbers of the others."""
    code, _, err = feed(path, b"\n \t\r\n" + orders(1) + b"\nno json\n\n  ", "--task-id", "{id}", "--", "true")
    assert (code, words_of(err)) == (65, "2 lines: 1 done, 1 refused")
    assert err.decode().splitlines()[1].startswith("idemreg: line 5 refused")


@pytest.mark.parametrize("columns", [200, 79, 39])
def test_share_rate_and_remaining_time_are_right(columns: int) -> None:
    """What is told follows from the lines, the time that passed and the share, and fits; a slow rate is readable."""

    def told(ended: int, passed_s: float, share: float | None) -> str:
        text = progress_text(ended, passed_s, share, columns)
        assert len(text) <= columns
        return re.sub(r"^\[#*-*\] *|^ +", "", text)

    assert told(0, 3, 0.0) == "0% 0 lines"
    assert told(1, 10, 0.25) == "25% 1 line 6/min 0:30 left"
    assert told(5_000, 10, 0.999) == "99% 5,000 lines 500/s 0:00 left"
    assert told(3, 3_600, 0.5) == "50% 3 lines 3/h 1:00:00 left"
    assert told(12, 10, None) == "12 lines 1/s"
    assert progress_text(1, 1, 0.5, 79).startswith("[###############---------------] ")


def test_a_line_tells_how_far_the_input_is(path: Path, tmp_path: Path) -> None:
    """Of an input that is read at once, a third of the lines is a third of the input, not all of it."""
    (tmp_path / "in").write_bytes(orders(1, 2, 3))
    fd = os.open(tmp_path / "in", os.O_RDONLY)
    assert [line.end * 3 for line in read_lines(fd)] == [len(orders(1, 2, 3)) * n for n in (1, 2, 3)]
    os.close(fd)


def test_time_passes_where_nothing_ends() -> None:
    """While a line takes long, the caller's thread looks up by itself, so that a bar goes on."""
    ended = threading.Event()

    def handle(line: Line) -> End:
        assert ended.wait(PATIENCE_S)
        return End(line, Kind.DONE)

    assert len(list(Each(iter([Line(1, b"{}", 1)]), handle, jobs=1, look_up=ended.set))) == 1


@pytest.mark.parametrize("words", [["--task-id", "{id}", "--", "cat"], ["--task-id", "{id}", "--python", "copy:copy"]])
def test_an_input_that_does_not_block(path: Path, words: list[str]) -> None:
    """A pipe that somebody has made non-blocking is waited for, not an error; the setting stays as it is."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    process = start(path, *words, stdin=read_end, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert b"created" in process.stderr.readline()  # it is at work, and finds nothing yet
    for number in (1, 2):
        os.write(write_end, orders(number))
    os.close(write_end)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, words_of(err)) == (0, "2 lines: 2 done")
    assert not os.get_blocking(read_end)
    os.close(read_end)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/bin/true", "--verbose", "-n"], "true"),
        (["python", "ship.py", "--fast"], "python ship.py"),
        (["sh", "-c", "cat >>x"], "sh cat >>x"),
        (["timeout", "60", "./ship"], "timeout 60 ./ship"),
    ],
)
def test_a_command_line_is_a_job(argv: list[str], name: str) -> None:
    """The job is called by the command's words, without its options: two scripts of one shell are two jobs."""
    assert command_name(argv) == name


def test_long_command_lines_are_told_apart() -> None:
    """A name is one short line; scripts that differ far behind, or in white space only, have different names."""
    scripts = ["x" * 500 + "a", "x" * 500 + "b", "a  b", "a b", "a\nb", "a\x1b", "a\udcff"]
    names = {command_name(["sh", "-c", script]) for script in scripts}
    assert len(names) == len(scripts)
    assert all(name.isprintable() and len(name) <= 80 for name in names)


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


@pytest.mark.parametrize(
    ("options", "outcome", "code"),
    [
        ([], "unknown", 76),
        (["--on-crash", "rerun"], "released", 0),
        (["--on-crash", "rerun", "--max-attempts", "1"], "failed", 1),
    ],
)
def test_a_line_that_took_too_long_is_told_in_words(path: Path, options: list[str], outcome: str, code: int) -> None:
    """Its exit code might be the command's own; also where it is put back, and so not done."""
    words = ["--timeout", "0.05", *options, "--task-id", "{id}", "--", "tail", "-f", "/dev/null"]
    told = "task '1' ran longer than 0.05 s: the command was ended"
    got, _, err = feed(path, orders(1), *words)
    assert (got, err.decode().splitlines()[-2]) == (code, f"idemreg: line 1 (1) {outcome}: {told}")
    assert words_of(err) == f"1 line: 1 {outcome}"
    _, out, _ = feed(path, orders(2), "--json", *words)
    fields = json.loads(out.splitlines()[0])
    assert (fields["exit_code"], fields["error"]) == (124, told.replace("'1'", "'2'"))


@pytest.mark.parametrize(("detail", "is_told"), [("message", True), ("type", False)])
def test_no_more_of_a_functions_error_is_told_than_is_stored(
    path: Path,
    functions: Path,
    detail: str,
    is_told: bool,  # noqa: FBT001
) -> None:
    """What is not in the file is on no terminal, in no journal and in no JSON either."""
    words = ["--error-detail", detail, "--task-id", "{id}", "--python", "lib:elsewhere"]
    for form in ([], ["--json"]):
        code, out, err = feed(path, orders(2), *form, *words, cwd=functions)
        assert (code, b"StoreError" in out + err) == (1, True)
        assert (b"another registry's disk" in out + err) is is_told


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


def test_the_checksum_covers_the_line_alone(path: Path) -> None:
    """Another option of the command changes no task; another job under the same task_id is refused."""
    assert feed(path, orders(1), "--task-id", "{id}", "--", "true")[0] == 0
    replayed = feed(path, orders(1), "--task-id", "{id}", "--", "true", "--verbose")
    assert words_of(replayed[2]) == "1 line: 1 replayed"
    for other in (["true", "x"], ["false"], [SH, "-c", "true"]):
        assert words_of(feed(path, orders(1), "--task-id", "{id}", "--", *other)[2]) == "1 line: 1 mismatch"
    renamed = feed(path, orders(1), "--task-id", "{id}", "--name", "true", "--", SH, "-c", "exit 1")
    assert words_of(renamed[2]) == "1 line: 1 replayed"


FUNCTIONS = """
import sys
from idemreg import Registry, TaskFailedError
from idemreg.errors import StoreError

def leaves(line):
    if line["id"] == 2: sys.exit(0)
    if line["id"] == 3: raise KeyboardInterrupt
def elsewhere(line):
    if line["id"] == 2: raise StoreError("another registry's disk")
    if line["id"] == 3: raise TaskFailedError("another registry's task", task_id="other")
async def coroutine(line): pass
def generator(line): yield
async def both(line): yield
class Callable:
    async def __call__(self, line): pass
instance = Callable()
def prints(line):
    print("said", line["id"], end="")
    sys.stderr.write("murmured\\n")
print("imported")
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "lib.py").write_text(FUNCTIONS)
    (tmp_path / "bad.py").write_text("def f(:\n")
    (tmp_path / "boom.py").write_text("1 / 0\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")
    return tmp_path


class Handled:
    """One line of a registry that does not wait for a writer, handled by a function."""

    def __init__(self, path: Path) -> None:
        self.registry = Registry(path, durability="normal", busy_timeout=0.01)
        self.other = connect(path)  # another writer

    def __call__(self, function: Callable[[Any], object], raw: bytes = b'{"id": 1}') -> End | None:
        with Relay() as relay:
            work = Work(self.registry, LineTemplate("{id}"), {"name": "job"})
            return work.by_function(function, relay)(Line(1, raw, len(raw)))


@pytest.fixture
def handled(path: Path) -> Iterator[Handled]:
    with Registry(path) as registry:
        registry.open()
    one = Handled(path)
    yield one
    one.other.close()
    one.registry.close()


def test_a_line_whose_task_is_of_another_line_is_no_failure_of_the_function(handled: Handled) -> None:
    """Its task is as it was, and the function is not called."""
    ends = [handled(lambda _: None), handled(lambda _: pytest.fail("called"), b'{"id": 1, "n": 2}')]
    assert [end and end.kind for end in ends] == [Kind.DONE, Kind.MISMATCH]
    task = handled.registry.get("1")
    assert task is not None
    assert (task.status, task.attempt) == (Status.SUCCEEDED, 1)


def test_a_transaction_of_a_function_that_does_not_begin_ends_all(handled: Handled) -> None:
    """The store is at fault, not the line: nothing happened, and its task is put back."""

    def transact(_line: object) -> None:
        handled.other.execute("BEGIN IMMEDIATE")
        try:
            with current_claim().transaction():
                pytest.fail("it began")
        finally:
            handled.other.execute("ROLLBACK")

    with pytest.raises(StoreBusyError):
        handled(transact)
    task = handled.registry.get("1")
    assert task is not None
    assert (task.status, task.attempt) == (Status.PENDING, 0)


def test_a_line_whose_end_cannot_be_stored_is_unknown(handled: Handled) -> None:
    """It did run: the others go on, and its task says so once the store can write."""
    end = handled(lambda _: handled.other.execute("BEGIN IMMEDIATE"))
    assert (end and end.kind, end and "could not be stored" in str(end.error)) == (Kind.UNKNOWN, True)
    handled.other.execute("ROLLBACK")
    assert handled.registry.run("2", lambda: 2).result == 2
    task = handled.registry.get("1")
    assert task is not None
    assert task.status is Status.UNKNOWN


@pytest.mark.parametrize(
    ("options", "code", "counts"),
    [([], 76, "3 done, 2 unknown"), (["--on-crash", "rerun"], 0, "3 done, 2 released")],
)
def test_a_function_that_leaves_ends_its_line_alone(
    path: Path, functions: Path, options: list[str], code: int, counts: str
) -> None:
    """SystemExit and KeyboardInterrupt of a function are a crash of its task; all other lines are handled."""
    words = ["--task-id", "{id}", "--python", "lib:leaves", *options]
    got, _, err = feed(path, orders(1, 2, 3, 4, 5), *words, cwd=functions)
    assert (got, words_of(err)) == (code, f"5 lines: {counts}")
    assert code == 0 or b"line 2 (2) unknown: SystemExit: 0" in err


def test_errors_of_another_registry_are_the_functions_own(path: Path, functions: Path, registry: Registry) -> None:
    """What a function raises fails its task, also where it is an error that this registry might raise."""
    code, _, err = feed(path, orders(1, 2, 3, 4), "--task-id", "{id}", "--python", "lib:elsewhere", cwd=functions)
    assert (code, words_of(err)) == (1, "4 lines: 2 done, 2 failed")
    assert registry.count() == {Status.SUCCEEDED: 2, Status.FAILED: 2}
    assert b"another registry's disk" in err


@pytest.mark.parametrize("name", ["coroutine", "generator", "both", "instance"])
def test_a_function_that_would_not_run_is_refused(path: Path, functions: Path, name: str) -> None:
    """Calling a coroutine or a generator function runs nothing of it: it is refused before there is any registry."""
    code, _, err = feed(path, orders(1), "--task-id", "{id}", "--python", f"lib:{name}", cwd=functions)
    assert code == 2
    assert b"coroutine or a generator function" in err
    assert not path.exists()


@pytest.mark.parametrize(
    "name", ["bad:f", "boom:f", "exits:f", "none:f", "lib:none", "lib", ":f", ".lib:prints", "lib:"]
)
def test_a_module_that_cannot_be_imported(path: Path, functions: Path, name: str) -> None:
    """Whatever goes wrong while a function is looked for is a usage error that names it, and nothing is created."""
    code, out, err = feed(path, orders(1), "--json", "--task-id", "{id}", "--python", name, cwd=functions)
    assert (code, out) == (2, b"")
    shown = json.loads(err.splitlines()[-1])
    assert (shown["error"], shown["exit_code"]) == ("usage", 2)
    assert name in shown["message"]
    assert shown["hint"]
    assert not path.exists()


def test_json_is_not_mixed_with_what_functions_print(path: Path, functions: Path) -> None:
    """With --json what a module or a function prints goes to stderr, whole, also with several at a time."""
    for jobs in ("1", "3"):
        words = ["--json", "-j", jobs, "--task-id", jobs + ":{id}", "--python", "lib:prints"]
        code, out, err = feed(path, orders(1, 2, 3), *words, cwd=functions)
        assert code == 0
        assert [json.loads(line).get("outcome") for line in out.splitlines()] == ["done"] * 3 + [None]
        assert err.count(b"imported\n") == 1
        assert err.count(b"murmured\n") == 3
        assert all(f"said {n}".encode() in err for n in (1, 2, 3))


def test_several_functions_print_whole_lines(path: Path, functions: Path) -> None:
    """With -j what a function prints comes line by line, and gets its end."""
    code, out, err = feed(
        path, orders(*range(9)), "-j", "3", "--task-id", "{id}", "--python", "lib:prints", cwd=functions
    )
    assert code == 0
    assert sorted(out.splitlines()) == sorted([b"imported", *(f"said {n}".encode() for n in range(9))])
    assert err.count(b"murmured\n") == 9


@pytest.mark.parametrize(("limit", "jobs"), [(64, 2), (200, 19)])
def test_as_many_at_a_time_as_there_are_descriptors_for(path: Path, registry: Registry, limit: int, jobs: int) -> None:
    """Where the limit of open files is low, fewer run at a time, which is said; every line is done, none is unknown."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    words = ["-j", "200", "--task-id", "{id}", "--", SH, "-c", "ulimit -Sn"]
    code, out, err = feed(
        path, orders(*range(60)), *words,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard)),
    )  # fmt: skip
    assert (code, words_of(err)) == (0, "60 lines: 60 done"), err
    assert f"idemreg: {jobs} at a time, not 200: the limit of open files is {limit}\n" in err.decode()
    assert registry.count() == {Status.SUCCEEDED: 60}
    assert set(out.split()) == {str(limit).encode()}  # a command has the limit that we were given


@pytest.fixture
def no_descriptors() -> Iterator[Callable[[], None]]:
    """Called, it lets this process open no file more; the limit is as before when a command has ended."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def restore() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    faults.arm("command.ended", restore)
    yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    restore()


def test_a_command_that_cannot_be_started_is_put_back(registry: Registry, no_descriptors: Callable[[], None]) -> None:
    """Where no pipe is to be had nothing ran: the task is as it was, and the error names the limit."""
    registry.run("before", lambda: None)  # the connections are there
    faults.arm("claim.committed", no_descriptors)
    with pytest.raises(CommandNotExecutableError) as caught:
        run_command(registry, "1", [SH, "-c", "true"])
    assert "Too many open files" in caught.value.message
    assert "ulimit -n" in caught.value.hint
    assert registry.count() == {Status.SUCCEEDED: 1, Status.PENDING: 1}


def test_a_command_whose_output_cannot_be_read_ends(registry: Registry, no_descriptors: Callable[[], None]) -> None:
    """Where its output cannot be followed, a command that fills its pipes ends all the same, and its task with it."""
    faults.arm("command.spawned", no_descriptors)
    with pytest.raises(OSError) as caught:
        run_command(registry, "1", [SH, "-c", "exec head -c 300000 /dev/zero"])
    assert caught.value.errno == errno.EMFILE
    assert registry.count() == {Status.UNKNOWN: 1}


def test_a_command_whose_end_is_not_told_is_looked_for(registry: Registry, no_descriptors: Callable[[], None]) -> None:
    """With a descriptor for what it writes and none for its end, it is asked after again and again."""

    def leave_one() -> None:
        lowest, following = os.dup(0), os.dup(0)
        os.close(lowest)
        os.close(following)
        resource.setrlimit(resource.RLIMIT_NOFILE, (following, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    faults.arm("command.spawned", leave_one)
    with open(os.devnull, "wb") as null:
        end = run_command(registry, "1", [SH, "-c", "head -c 300000 /dev/zero; exit 3"], stdout=null.fileno())
    assert end.exit_code == 3
    task = registry.get("1")
    assert task is not None
    assert (task.status, json.loads(task.result or "")["exit_code"]) == (Status.FAILED, 3)


def test_a_missing_command_stops_at_once(path: Path, registry: Registry) -> None:
    """It is no failure of the lines: nothing ran, and their tasks are put back."""
    code, _, err = feed(path, orders(1, 2, 3), "--task-id", "{id}", "--", "/no/such/command")
    assert code == 127
    assert b"no such command" in err
    assert Status.FAILED not in registry.count()


def test_two_lines_of_one_task_are_handled_in_turn(path: Path) -> None:
    """A line that comes twice in one feed is replayed, however many are handled at once: nobody else runs it."""
    code, _, err = feed(path, orders(1, 1, 2, 1, 1), "-j", "4", "--task-id", "{id}", "--", SH, "-c", "cat >/dev/null")
    assert (code, words_of(err)) == (0, "5 lines: 2 done, 3 replayed")


def test_long_outputs_do_not_mix(path: Path) -> None:
    """Of commands that write more than a pipe holds, every line stays whole."""
    script = f"{sys.executable} -c 'import os; n = os.environ[\"IDEMREG_TASK_ID\"]; print((n * 9 + chr(10)) * 40_000)'"
    code, out, _ = feed(path, orders(1, 2, 3, 4), "-j", "4", "--task-id", "{id}", "--", SH, "-c", script)
    assert code == 0
    assert Counter(out.split()) == {str(n).encode() * 9: 40_000 for n in range(1, 5)}


def test_one_at_a_time_its_output_comes_as_it_is(path: Path) -> None:
    """With one command at a time nothing is held back, and nothing is added."""
    code, out, _ = feed(path, orders(1, 2), "--task-id", "{id}", "--", "printf", "x")
    assert (code, out) == (0, b"xx")


def test_stdin_that_is_closed_is_empty(path: Path) -> None:
    """Nothing to read is nothing to do."""
    words = [sys.executable, "-m", "idemreg", "--db", str(path), "each", "--task-id", "{id}", "--", "true"]
    closed = [SH, "-c", 'exec "$@" <&-', "sh", *words]
    done = subprocess.run(closed, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, words_of(done.stderr)) == (0, "0 lines: nothing to do")


# --- its own output goes wrong ----------------------------------------------------------------------------------------


def test_json_comes_line_by_line(path: Path, tmp_path: Path) -> None:
    """Whoever reads the JSON has each line when it has ended, though others go on."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f'[ "$IDEMREG_TASK_ID" = 1 ] || read x <{gate}'
    process = start(
        path, "--json", "--task-id", "{id}", "--", SH, "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(orders(1, 2))
    process.stdin.close()
    assert json.loads(process.stdout.readline())["line"] == 1
    gate.write_text("go\n")
    assert [json.loads(line).get("line") for line in process.stdout] == [2, None]
    assert process.wait(PATIENCE_S) == 0
    process.stdout.close()


def test_a_reader_that_leaves_stops_it_in_order(path: Path, registry: Registry) -> None:
    """`each --json | head -1`: no more lines are begun, and those that were have their end: none is left unknown."""
    # Its pipe and what is read of it at once hold fewer lines than come: so it is at work when its reader goes.
    process = start(
        path, "-j", "4", "--json", "--task-id", "{id}", "--", "true",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pipesize=4_096,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(orders(*range(300)))
    process.stdin.close()
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 141
    assert registry.count().keys() == {Status.SUCCEEDED}


def test_a_full_disk_behind_stderr_stops_nothing(path: Path, registry: Registry) -> None:
    """Where our own lines cannot be written, the work is done all the same."""
    with open("/dev/full", "wb") as full:
        process = start(path, "--task-id", "{id}", "--", "true", stdin=subprocess.PIPE, stderr=full)
    process.communicate(orders(1, 2) + b"no json\n", PATIENCE_S)
    assert process.returncode == 65
    assert registry.count() == {Status.SUCCEEDED: 2}


@pytest.mark.parametrize("columns", [80, 40])
def test_a_terminal_shows_how_far_it_is(path: Path, tmp_path: Path, columns: int) -> None:
    """A bar with share, rate and remaining time that never folds; the commands' output stands above it, whole."""
    (tmp_path / "in").write_bytes(orders(*range(30)))
    os.mkfifo(gate := tmp_path / "gate")
    script = f"printf 'out %s' $IDEMREG_TASK_ID; [ $IDEMREG_TASK_ID != 29 ] || read x <{gate}"
    screen, line = pty.openpty()
    fcntl.ioctl(line, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with (tmp_path / "in").open("rb") as source:
        words = ["-j", "2", "--task-id", "{id}", "--", SH, "-c", script]
        process = start(path, *words, stdin=source, stdout=line, stderr=line)
    os.close(line)
    seen, is_open = b"", False
    with contextlib.suppress(OSError):  # EIO: the last has closed it
        while data := os.read(screen, 65_536):
            seen += data
            if not is_open and b"29 lines" in seen:  # the last waits until its bar is drawn
                gate.write_text("go\n")
                is_open = True
    os.close(screen)
    assert process.wait(PATIENCE_S) == 0
    text = seen.decode().replace("\r\n", "\n")
    drawn = [piece.split("\n")[0] for piece in text.split("\r\x1b[K")[1:]]
    bars = [piece for piece in drawn if "% " in piece]
    assert bars, text
    assert max(map(len, bars)) < columns
    assert all(re.fullmatch(r"(\[#*-*\] )? *\d+% \d+ lines?( [\d,]+/s)?( \d+:\d\d left)?", bar) for bar in bars), bars
    assert any(bar.startswith("[#") for bar in bars)
    shown = [line.split("\r\x1b[K")[-1] for line in text.split("\n")]
    assert sorted(line for line in shown if line.startswith("out ")) == sorted(f"out {n}" for n in range(30))
    assert "30 lines: 30 done" in shown[-2]


def test_a_pipe_shows_no_bar(path: Path) -> None:
    """Elsewhere than on a terminal nothing is drawn."""
    _, _, err = feed(path, orders(1, 2), "--task-id", "{id}", "--", "true")
    assert b"\x1b" not in err


# --- signals and kills ------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_wait_for_a_twin(path: Path, registry: Registry) -> None:
    """Lines that wait for a task that runs elsewhere are let be: nothing is waited for but what has begun."""
    gate_read, gate_write = os.pipe()
    twin = {"name": "cat", "payload": "1", "counts_argv": False, "stdin": gate_read}
    sleeper = threading.Thread(target=run_command, args=(registry, "1", ["cat"]), kwargs=twin)
    started = threading.Event()
    faults.arm("command.spawned", started.set)
    sleeper.start()
    assert started.wait(PATIENCE_S)
    words = ["-j", "2", "--wait", "1h", "--name", "cat", "--task-id", "{id}", "--payload", "{id}", "--", "cat"]
    process = start(path, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(orders(1, 2))
    process.stdin.flush()
    assert json.loads(process.stdout.readline()) == {"id": 2}
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    os.close(gate_write)
    sleeper.join(PATIENCE_S)
    os.close(gate_read)
    assert process.returncode == 130
    assert re.fullmatch("interrupted: 1 line: 1 (done|unknown)", words_of(err))  # its command may not have ended


def test_a_second_ctrl_c_leaves_a_function(path: Path, tmp_path: Path, registry: Registry) -> None:
    """Nothing can kill a function alone: the second signal ends the process, and its task is unknown."""
    os.mkfifo(tmp_path / "gate")
    (tmp_path / "hangs.py").write_text("def send(line):\n    print('on', flush=True)\n    open('gate').read()\n")
    process = start(
        path, "--task-id", "{id}", "--python", "hangs:send", cwd=tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(orders(1, 2))
    process.stdin.flush()
    assert process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith(b"idemreg: created ")
    assert process.stderr.readline() == SAID  # of two at once either may be the first: threads share what comes
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert words_of(err) == "interrupted: 0 lines: nothing to do; 1 left in the middle"
    with pytest.raises(TaskUnknownError):
        registry.run("1", lambda: None, name="send", payload={"id": 1})


def test_it_is_told_only_while_something_runs(registry: Registry) -> None:
    """Once; not while a line waits for the file, nor once a second signal came, nor before a whole moment is over."""
    told: list[str] = []

    class Deaf:
        def send_signal(self, number: int) -> None: ...

    class Told:
        def tell_ending(self) -> None:
            told.append("ending")

        def look_up(self) -> None:
            told.append("bar")

    def looks() -> list[str]:
        told.clear()
        for _ in range(3):
            look_up()
        return told.copy()

    nothing, ending = ["bar", "bar", "bar"], ["bar", "ending", "bar", "bar"]
    relay = Relay()
    work = Work(registry, LineTemplate("{id}", None), {})
    seen: list[list[str]] = []

    def job(_fields: dict[str, Any]) -> None:
        for sends in (False, True, False, True):
            if sends:
                relay._handle(signal.SIGTERM, None)
            seen.append(looks())

    look_up = _LookUp(relay, work, Told())  # type: ignore[arg-type]
    assert looks() == nothing
    assert work.by_function(job, relay)(Line(1, orders(1).strip(), 1)) is not None
    assert seen == [nothing, ending, nothing, nothing]

    look_up = _LookUp(relay, work, Told())  # type: ignore[arg-type]
    with relay.inbox() as inbox:
        inbox.pass_to(Deaf())
        assert looks() == nothing  # two signals have come
        relay.is_repeated = False
        assert looks() == ending
        inbox.ended()
    look_up = _LookUp(relay, work, Told())  # type: ignore[arg-type]
    assert looks() == nothing


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
    with contextlib.suppress(OSError):  # what the commands waited for waits on, until somebody has opened the gate
        os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))


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
    """Fed again after each kill: no delivery has two effects, and one that has an end has exactly one.

    The effect repeats itself as often as it is run. What was in the middle is unknown until somebody looks; then the
    last feed finishes, with every delivery done.
    """
    source, witness = shared_data / "github-deliveries.jsonl", tmp_path / "witness"
    lines = source.read_bytes().splitlines(keepends=True)
    deliveries = [json.loads(line)["delivery"] for line in lines]
    witness.touch()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    # Some stand still in the middle, before or behind their effect, so that a kill finds them there.
    script = f"""
    stand() {{ echo $1 $$; read x <{gate}; }}
    [ "$STAND_BEFORE" != "$IDEMREG_TASK_ID" ] || stand before
    echo "$IDEMREG_TASK_ID" >>{witness}
    [ "$STAND_BEHIND" != "$IDEMREG_TASK_ID" ] || stand behind
    """
    words = ["-j", "4", "--wait", "60", "--task-id", "{delivery}", "--", SH, "-c", script]
    chance, doomed = random.Random(SEED), set()  # noqa: S311 - repeatable, not secret
    for begin in range(0, len(lines) - KILLED_EVERY, KILLED_EVERY):  # each time as far as before, and a piece more
        before, behind = chance.sample(deliveries[begin : begin + KILLED_EVERY], 2)
        doomed |= {before, behind}
        killed_while_they_stand(path, b"".join(lines[: begin + KILLED_EVERY]), words, before, behind)

    with Registry(path, create=False) as registry:
        code, _, err = feed(path, b"".join(lines), *words)
        assert code == 76, err
        assert {task.task_id for task in registry.tasks(status=Status.UNKNOWN)} >= doomed
        effects = Counter(witness.read_text().split())
        assert max(effects.values()) == 1
        for task in registry.tasks():
            assert task.status in (Status.SUCCEEDED, Status.UNKNOWN)
            assert task.status is Status.UNKNOWN or effects[task.task_id] == 1
            if task.status is Status.UNKNOWN:
                registry.resolve(task.task_id, "happened" if effects[task.task_id] else "did-not-happen")
        code, _, err = feed(path, b"".join(lines), *words)
        assert code == 0, err
        assert registry.count() == {Status.SUCCEEDED: len(deliveries)}
    assert Counter(witness.read_text().split()) == dict.fromkeys(deliveries, 1)


def killed_while_they_stand(path: Path, lines: bytes, words: list[str], before: str, behind: str) -> None:
    """Feed them, wait until those two stand still in the middle, and kill `each` and them."""
    environment = {"STAND_BEFORE": before, "STAND_BEHIND": behind}
    process = start(
        path, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, more=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(lines)
    process.stdin.close()
    standing = [int(process.stdout.readline().split()[1]) for _ in range(2)]
    ended = [os.pidfd_open(one) for one in standing]
    process.kill()
    process.wait(PATIENCE_S)
    process.stdout.close()
    for one in ended:
        signal.pidfd_send_signal(one, signal.SIGKILL)
        assert select.select([one], [], [], PATIENCE_S)[0]
        os.close(one)
