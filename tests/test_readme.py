"""The documents cannot drift: what they show is run, what they name exists, and what exists they name."""

from __future__ import annotations

import configparser
import http.client
import itertools
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from idemreg import Clock, IdemregError, Registry, Status, errors
from tests.support.processes import PATIENCE_S, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md")
README = (ROOT / "README.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
BIN = os.path.dirname(sys.executable)

COMMANDS = (
    *("run", "each", "init", "show", "list", "stats", "resolve", "retry", "forget", "demo"),
    *(
        "purge",
        "backup",
        "export",
        "import",
        "checkpoint",
        "doctor",
        "serial",
        "step",
        "clock",
        "schedule",
        "audit",
        "watch",
    ),
)
ARCHITECTURE_LINES = 240


class Block(NamedTuple):
    """One fenced block: the heading above it, its language, its text."""

    heading: str
    language: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    heading = ""
    language: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        if language is not None:
            if line == "```":
                yield Block(heading, language, "\n".join(lines) + "\n")
                language, lines = None, []
            else:
                lines.append(line)
        elif line.startswith("```"):
            language = line[3:]
        elif line.startswith("#"):
            heading = line.lstrip("# ")


def under(heading: str, language: str) -> list[str]:
    found = [block.text for block in blocks(README) if (block.heading, block.language) == (heading, language)]
    assert found, f"README.md shows no {language} under {heading!r}"
    return found


def headings(text: str) -> set[str]:
    without_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return {line.lstrip("# ") for line in without_code.splitlines() if line.startswith("#")}


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Executes a Python block in an empty folder, with stand-ins for what is the reader's own."""
    monkeypatch.chdir(tmp_path)
    namespaces: list[dict[str, Any]] = []

    def run(heading: str, **stand_ins: object) -> dict[str, Any]:
        (text,) = under(heading, "python")
        namespace: dict[str, Any] = {"__name__": "readme", **stand_ins}
        namespaces.append(namespace)
        exec(compile(text, f"README.md: {heading}", "exec"), namespace)  # noqa: S102 - the README's own words
        return namespace

    yield run
    for namespace in namespaces:
        for value in namespace.values():
            if isinstance(value, Registry):
                value.close()


def environment(**variables: str) -> dict[str, str]:
    """What a shell of the reader has: the commands of the virtual environment first."""
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **variables}


def shell(command: str, folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


# --- Python -----------------------------------------------------------------------------------------------------


def test_every_python_block_has_a_test() -> None:
    """Each heading with Python below it is one that a test of this file executes."""
    tested = {
        "The tour",
        "Coroutines, batches, events",
        "Numbers that never repeat",
        "A long job that goes on where it was",
        "A schedule",
        "A queue consumer",
        "A webhook receiver",
        "A payment, and what to do about doubt",
        "A job that may hang",
        "A job that nobody calls again",
        "Effects in the same file",
    }
    assert {block.heading for block in blocks(README) if block.language == "python"} == tested


def test_the_tour_prints_what_it_says(
    execute: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python of the tour runs as written, and prints the lines shown below it."""
    execute("The tour")
    assert [capsys.readouterr().out] == under("The tour", "text")


def test_the_serial_numbers_are_as_shown(
    execute: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The block runs, and what it prints has the form that it shows."""
    with Registry(tmp_path / "jobs.db", durability="normal") as registry:
        execute("Numbers that never repeat", registry=registry)
    assert re.fullmatch(r"COUP-[0-9A-Z]{23}\n", capsys.readouterr().out)


def test_the_long_job_goes_on_where_it_was(execute: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """The block runs as written; a second attempt does only what the first has not."""
    ran: list[object] = []

    def build_index() -> str:
        ran.append("index")
        if len(ran) == 4:
            raise OSError
        return "done"

    with Registry(tmp_path / "steps.db", durability="normal") as registry:
        names = {"registry": registry, "upload": ran.append, "build_index": build_index}
        with pytest.raises(OSError):
            execute("A long job that goes on where it was", **names)
        execute("A long job that goes on where it was", **names)
        assert ran == [0, 1, 2, "index", "index"]
        task = registry.get("backup:2026-11-23")
        assert task is not None
        assert (task.status, task.result) == (Status.SUCCEEDED, '"done"')


class Message:
    def __init__(self, message_id: int, body: str) -> None:
        self.id = message_id
        self.body = body
        self.answers: list[object] = []

    def ack(self) -> None:
        self.answers.append("ack")

    def nack(self, *, requeue: bool) -> None:
        self.answers.append(requeue)


def test_the_queue_consumer_handles_each_message_once(execute: Callable[..., dict[str, Any]]) -> None:
    """A redelivery is acknowledged unhandled, a changed body goes to the dead letters, a failure comes again."""
    handled: list[str] = []

    def handle(body: str) -> None:
        handled.append(body)
        if body == "bad":
            raise OSError

    on_message = execute("A queue consumer", handle=handle)["on_message"]
    answers = []
    for message_id, body in [(1, "a"), (1, "a"), (1, "b"), (2, "bad"), (2, "bad")]:
        on_message(message := Message(message_id, body))
        answers += message.answers
    assert answers == ["ack", "ack", False, True, True]
    assert handled == ["a", "bad", "bad"]


def test_the_queue_consumer_gives_up_after_ten_attempts(execute: Callable[..., dict[str, Any]]) -> None:
    """A message that always fails ends among the dead letters."""

    def handle(_body: str) -> None:
        raise OSError

    on_message = execute("A queue consumer", handle=handle)["on_message"]
    messages = [Message(1, "a") for _ in range(11)]
    for message in messages:
        on_message(message)
    assert [message.answers for message in messages] == [[True]] * 10 + [[False]]


def test_the_webhook_receiver_answers_by_http(execute: Callable[..., dict[str, Any]]) -> None:
    """Over a real socket: a redelivery is not handled again, other content is refused, a missing id too."""
    handled: list[object] = []

    def handle(event: object) -> int:
        handled.append(event)
        return len(handled)

    receiver = execute("A webhook receiver", handle=handle)["Receiver"]
    receiver.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.server_port
            first = post(port, {"X-GitHub-Delivery": "a-1"}, '{"n": 1}')
            again = post(port, {"X-GitHub-Delivery": "a-1"}, '{"n": 1}')
            other = post(port, {"X-GitHub-Delivery": "a-1"}, '{"n": 2}')
            nameless = post(port, {}, '{"n": 3}')
        finally:
            server.shutdown()
            thread.join()
    assert (first, again, other, nameless) == (200, 200, 409, 400)
    assert handled == [{"n": 1}]


def post(port: int, headers: dict[str, str], body: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("POST", "/", body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


class Bank:
    """Pays, and then fails to say so."""

    def __init__(self) -> None:
        self.paid: list[tuple[str, int, str]] = []

    def pay(self, invoice: str, cents: int, *, key: str) -> str:
        self.paid.append((invoice, cents, key))
        raise TimeoutError

    def find(self, invoice: str) -> str | None:
        return next((f"no. {number}" for number, (paid, _, _) in enumerate(self.paid) if paid == invoice), None)


def test_a_payment_in_doubt_is_looked_up(execute: Callable[..., dict[str, Any]]) -> None:
    """A time-out leaves the payment unknown; the next call asks the bank, and does not pay again."""
    bank = Bank()
    pay = execute("A payment, and what to do about doubt", bank=bank)["pay"]
    with pytest.raises(TimeoutError):
        pay("2026-1", 500)
    assert pay.task("2026-1", 500).status is Status.UNKNOWN
    assert pay("2026-1", 500) == "no. 0"
    assert len(bank.paid) == 1
    assert pay.task("2026-1", 500).evidence == "payment no. 0"


def test_a_job_that_may_hang_has_a_lease(execute: Callable[..., dict[str, Any]]) -> None:
    """While it runs its task has a lease and a time limit, and each page is stored with the token."""
    stored: list[tuple[str, int]] = []

    def store(page: str, fenced_by: int) -> None:
        owner = names["registry"].owner(names["sync"].task("a"))
        assert 0 < owner.lease_left_ms <= 60_000
        assert not owner.is_overdue
        stored.append((page, fenced_by))

    names = execute("A job that may hang", pages_of=lambda shop: [f"{shop}1", f"{shop}2"], store=store)
    names["sync"]("a")
    names["sync"]("a")
    token = names["sync"].task("a").token
    assert stored == [("a1", token), ("a2", token)]


def test_a_job_that_nobody_calls_again_is_swept(
    execute: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted in its middle it is rerun by a sweep, with its arguments and without what is excluded."""
    loaded: list[Any] = []

    def load(customer: int, since: str) -> int:
        loaded.append((customer, since))
        if len(loaded) == 1:
            raise KeyboardInterrupt
        return 1

    names = execute("A job that nobody calls again", load=load)
    assert capsys.readouterr().out == ""
    with pytest.raises(KeyboardInterrupt):
        names["import_orders"](42, "2026-11-01", progress=print)
    (swept,) = names["registry"].sweep()
    assert (swept.task_id, swept.outcome.result) == ("import:42", 1)
    assert loaded == [(42, "2026-11-01")] * 2


def test_effects_in_the_same_file_happen_once(execute: Callable[..., dict[str, Any]]) -> None:
    """The block runs as written; it asserts itself that the second call changed nothing."""
    execute("Effects in the same file")


# --- shell ------------------------------------------------------------------------------------------------------


def commands(console: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block, with the output shown."""
    command = ""
    shown: list[str] = []
    for line in console.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = line[2:], []
        else:
            shown.append(line)
    yield command, shown


def test_every_make_target_shown_exists() -> None:
    """`make X` in a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for name in DOCUMENTS:
        text = (ROOT / name).read_text("utf-8")
        assert set(re.findall(r"(?:`|\$ )make ([a-z]+)", text)) <= targets, name


def test_the_second_tour_runs(execute: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """Coroutines, batches and events as shown: a replay in the batch, and an event for each step."""
    namespace = execute("Coroutines, batches, events")
    assert capsys.readouterr().out == "1 1 False\n2 4 False\n2 4 True\n3 9 False\n"
    assert [type(event).__name__ for event in namespace["events"]].count("Succeeded") == 3
    namespace["jobs"].registry.close()


def test_the_shell_of_the_tour_prints_what_it_says(execute: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Each command of the tour, run by /bin/sh, prints what is shown below it; `...` stands for anything."""
    execute("The tour")
    exports: list[str] = []
    for command, shown in itertools.chain.from_iterable(map(commands, under("The tour", "console"))):
        if command.startswith("export "):
            exports.append(command)
            continue
        done = shell("\n".join([*exports, command]), tmp_path, environment())
        if shown == ["..."]:
            assert done.returncode == 0, done.stderr
            assert done.stdout
        else:
            assert done.stdout.splitlines() == shown, done.stderr


def handed_over(line: str) -> tuple[str, str]:
    """What cron makes of a crontab line (crontab(5)): the shell's command, and its standard input."""
    command, *stdin = re.split(r"(?<!\\)%", line.split(None, 5)[5])
    return command.replace("\\%", "%"), "\n".join(stdin)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The folders of the recipes, under a temporary root."""
    for folder in ("opt/app/bin", "var/lib/app"):
        (tmp_path / folder).mkdir(parents=True)
    backup = tmp_path / "opt/app/bin/backup"
    backup.write_text(f'#!/bin/sh\necho "$IDEMREG_TASK_ID $*" >> {shlex.quote(str(tmp_path / "ran"))}\n')
    backup.chmod(0o700)
    return tmp_path


def relocated(command: str, app: Path) -> str:
    """The recipe's absolute paths, moved under the temporary root."""
    assert "/var/lib/app/" in command
    for path in ("/var/lib/app/", "/opt/app/bin/"):
        command = command.replace(path, f"{app}{path}")
    return command.replace("/opt/app/.venv/bin/", f"{BIN}/")


def test_the_cron_line_works_as_cron_hands_it_over(app: Path) -> None:
    """The literal line, unescaped as cron does it and run with cron's few variables, runs the job once a day."""
    (line,) = under("Cron", "crontab")
    command, stdin = handed_over(line.strip())
    assert not stdin
    cron = {"PATH": "/usr/bin:/bin", "HOME": str(app), "SHELL": "/bin/sh", "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        done = shell(relocated(command, app), app, cron)
        assert done.returncode == 0, done.stderr
    (ran,) = (app / "ran").read_text().splitlines()
    assert re.fullmatch(r"backup:\d{4}-\d\d-\d\d --all", ran)


def test_the_schedule_begins_and_runs_what_is_due(
    execute: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python of the schedule runs as written, and at 03:00 in Shanghai, late in the evening of UTC, its slot."""
    now = datetime(2026, 11, 22, 18, 30, tzinfo=UTC)
    monkeypatch.setattr(Clock, "wall_us", lambda _clock: int(now.timestamp()) * 1_000_000)
    monkeypatch.setattr(Clock, "boot_ms", lambda _clock: int(now.timestamp()) * 1_000)
    issued: list[datetime] = []
    registry = execute("A schedule", issue_all=issued.append)["registry"]
    now += timedelta(hours=1)
    assert [run.task_id for run in registry.run_due()] == ["coupons@2026-11-22T19:00:00Z"]
    assert issued == [datetime(2026, 11, 22, 19, tzinfo=UTC)]


def test_the_line_of_a_schedule_runs_each_minute(app: Path) -> None:
    """The literal line, as cron hands it over: the first begins the schedule, the next finds nothing due."""
    (line,) = under("A schedule", "crontab")
    command, _ = handed_over(line.strip())
    cron = {"PATH": "/usr/bin:/bin", "HOME": str(app), "SHELL": "/bin/sh", "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        done = shell(relocated(command, app), app, cron)
        assert done.returncode == 0, done.stderr
    audited = shell(f"idemreg --db {app}/var/lib/app/jobs.db audit nightly", app, environment())
    assert audited.returncode == 0, audited.stderr


def test_the_doctors_cron_line_is_silent_while_all_is_well(app: Path) -> None:
    """The literal line prints nothing over a healthy file, and tells what is wrong once a task waits for somebody."""
    (line,) = under("A file that is looked after", "crontab")
    command, _ = handed_over(line.strip())
    cron = {"PATH": "/usr/bin:/bin", "HOME": str(app), "SHELL": "/bin/sh", "PYTHONPATH": str(ROOT)}
    with Registry(app / "var/lib/app/jobs.db") as registry:
        registry.run("task", lambda: 1)
        well = shell(relocated(command, app), app, cron)
        with pytest.raises(TimeoutError):
            registry.run("doubt", lambda: Bank().pay("2026-1", 500, key=""), unknown_on=TimeoutError)
        unwell = shell(relocated(command, app), app, cron)
    assert (well.returncode, well.stdout, well.stderr) == (0, "", "")
    assert unwell.returncode == 1
    assert "idemreg --db" in unwell.stdout


def test_the_cron_trap_is_one() -> None:
    """Without the backslash cron cuts the command in two, and the shell refuses what is left."""
    (line,) = under("Cron", "crontab")
    command, stdin = handed_over(line.strip().replace("\\%", "%"))
    assert command.endswith("$(date +")
    assert stdin.startswith('F)"')
    assert subprocess.run(["/bin/sh", "-n", "-c", command], capture_output=True, check=False).returncode != 0


def test_the_systemd_units_work(app: Path) -> None:
    """The service's command, unescaped as systemd does it, runs the job once; the timer names a time."""
    service, timer = map(unit, under("A systemd timer", "ini"))
    # Within the interval, at the pace of the restarts: otherwise the limit would never be reached.
    assert int(service["Unit"]["StartLimitBurst"]) * int(service["Service"]["RestartSec"]) < 3_600
    assert service["Unit"]["StartLimitIntervalSec"] == "1h"
    start = service["Service"]["ExecStart"]
    assert not re.search(r"(?<!%)(%%)*%(?!%)|(?<!\$)(\$\$)*\$(?!\$)", start)
    argv = shlex.split(start.replace("%%", "%").replace("$$", "$"))
    for _ in range(2):
        done = subprocess.run(
            [*argv[:2], relocated(argv[2], app)],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert len((app / "ran").read_text().splitlines()) == 1
    codes = service["Service"]["RestartPreventExitStatus"].split()
    assert codes == [str(errors.ChecksumMismatchError.exit_code), str(errors.TaskUnknownError.exit_code)]
    assert timer["Timer"]["OnCalendar"]


def unit(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd's names have capitals
    parser.read_string(text)
    return parser


# --- what is named ----------------------------------------------------------------------------------------------


def test_every_command_is_told() -> None:
    """README.md has a line for each command that `idemreg --help` lists, and for none besides."""
    told = set(re.findall(r"^\| `idemreg ([a-z]+)", README, re.MULTILINE))
    listed = shell("idemreg --help", ROOT, environment())
    assert listed.returncode == 0, listed.stderr
    assert told == set(COMMANDS)
    assert set(COMMANDS) == set(re.findall(r"^  ([a-z]+)\b", listed.stdout.partition("Commands:")[2], re.MULTILINE))


def test_every_error_is_told() -> None:
    """The table of errors has each class, with its exit code and whether a retry may help."""
    rows = re.findall(r"^\| `(\w+Error)` \| (\d+) \| (yes|no) \|", README, re.MULTILINE)
    told = {name: (int(code), answer == "yes") for name, code, answer in rows}
    classes = {getattr(errors, name) for name in errors.__all__} - {IdemregError}
    assert told == {one.__name__: (one.exit_code, one.retryable) for one in classes}


def test_every_status_is_told() -> None:
    """The table of statuses has each word of the registry."""
    table = README.partition("| status | means |")[2].partition("\n\n")[0]
    told = {word for line in table.splitlines()[2:] for word in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert told == {status.word for status in Status}


def test_every_link_leads_somewhere() -> None:
    """A link of a document to a file, or to a heading, finds it."""
    for name in DOCUMENTS:
        text = (ROOT / name).read_text("utf-8")
        anchors = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings(text)}
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("#"):
                assert target[1:] in anchors, f"{name}: {target}"
            elif not target.startswith("https://"):
                assert (ROOT / target).exists(), f"{name}: {target}"


def test_no_figure_without_its_command() -> None:
    """README.md gives no measurement but those that `make bench-full` has written there."""
    written = README.partition("<!-- bench: begin")[2].partition("<!-- bench: end")[0]
    assert written
    assert not re.search(r"\d\s?(µs|ms|jobs/s|times faster)", README.replace(written, ""))
    assert "`make bench`" in README


# --- ARCHITECTURE.md --------------------------------------------------------------------------------------------


def test_the_architecture_is_short() -> None:
    """It is read in one sitting."""
    assert len(ARCHITECTURE.splitlines()) <= ARCHITECTURE_LINES


def test_the_floors_are_those_of_the_contract() -> None:
    """The table of floors has, row by row, the layers that import-linter checks."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (layers,) = (one["layers"] for one in config["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    contract = [
        {name.strip(" ()").removeprefix("idemreg.") for name in re.split("[|:]", layer)} for layer in reversed(layers)
    ]
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", ARCHITECTURE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(contract)))
    assert [set(re.findall(r"`([\w.]+)`", rooms)) for _, rooms in rows] == contract


def test_every_file_named_by_the_architecture_exists() -> None:
    """A path in ARCHITECTURE.md is one of the checkout, and `file: function` is a function there."""
    for path in re.findall(r"`([\w/]+\.(?:py|sql|toml|md))`", ARCHITECTURE):
        assert (ROOT / path).exists() or (ROOT / "idemreg" / path).exists(), path
    for path, function in re.findall(r"`([\w/]+\.py): (\w+)`", ARCHITECTURE):
        text = (ROOT / "idemreg" / path).read_text("utf-8")
        assert re.search(rf"^\s*(?:def|class) {function}\b", text, re.MULTILINE), f"{path}: {function}"
