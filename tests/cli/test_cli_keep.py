"""purge, backup, export, import and the choices of list: on terminals, in pipes, as JSON, and interrupted."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import Registry
from idemreg.cli.exchange import IMPORT_FIELDS
from idemreg.cli.keep import BACKUP_FIELDS, PURGE_FIELDS
from idemreg.cli.text import width
from idemreg.lines import FIELDS
from tests.cli.driver import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.driver import Cli

# Colours, and what a progress bar moves the cursor with.
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\[K")
EVIL_NAME = "備份\u202e" + "very.long.module." * 3


@pytest.fixture
def ended(registry: Registry) -> Registry:
    """Two tasks whose time has passed, one that is kept for ever, and one that failed for good."""
    registry.run("order:1", lambda: None, name=EVIL_NAME, keep_for=0)
    registry.run("order:2", lambda: "x" * 900, name="job", keep_for=0)
    registry.run("kept", lambda: None, name="job")
    with pytest.raises(ZeroDivisionError):
        registry.run("dead", lambda: 1 / 0, name="job", max_attempts=1)
    return registry


def ids(cli: Cli, *words: str) -> list[str]:
    return [json.loads(line)["task_id"] for line in cli("list", "--json", *words).stdout.splitlines()]


def screen_of(text: str) -> list[str]:
    """The lines of a terminal; a bar that is drawn again over itself counts as one line a drawing."""
    return [CONTROLS.sub("", piece) for piece in re.split(r"[\r\n]+", text)]


def fits(text: str, columns: int) -> bool:
    return all(width(line) <= columns or line.startswith("/") for line in screen_of(text))


def interrupted(cli: Cli, point: str, *words: str, passes: int = 1) -> subprocess.CompletedProcess[str]:
    """A process that gets SIGINT, as by Ctrl-C, when it comes past the fault point for that time."""
    program = """if True:
        import os, signal, sys
        from idemreg import faults
        from idemreg.cli import main
        left = int(sys.argv[2])
        def interrupt():
            global left
            left -= 1
            if not left: os.kill(os.getpid(), signal.SIGINT)
        faults.arm(sys.argv[1], interrupt)
        main(sys.argv[3:])
    """
    return subprocess.run(
        [sys.executable, "-c", program, point, str(passes), *words],
        env=cli.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


# --- purge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 80])
def test_purge_shows_and_asks(ended: Registry, cli: Cli, columns: int) -> None:
    """On a terminal it shows what would go, in lines that fit, and removes it only after a yes."""
    for typed in ("n\n", "\n"):
        screen = cli.terminal(columns, "purge", typed=typed)
        assert fits(screen, columns), screen
        assert "TASKS  STATUS" in screen
        assert "Remove 2 tasks? [y/N]" in screen
        assert "\u202e" not in screen
        assert len(ids(cli)) == 4
    assert "\nidemreg: interrupted\n" in cli.terminal(columns, "purge", typed="\x04")  # not behind the question
    screen = cli.terminal(columns, "purge", typed="y\n")
    assert fits(screen, columns), screen
    assert "removed 2 tasks" in screen
    assert ids(cli) == ["dead", "kept"]
    assert "nothing to remove" in cli.terminal(columns, "purge")


def test_purge_never_removes_unasked(ended: Registry, cli: Cli) -> None:
    """In a pipe, and for a program, it removes nothing without --yes, and the hint says what to do."""
    for words in (["purge"], ["purge", "--json"]):
        done = cli.process(*words)
        assert done.returncode == 2
        assert "--dry-run" in done.stderr
        assert done.stdout == ""
    assert len(ids(cli)) == 4


def test_purge_in_a_pipe(ended: Registry, cli: Cli) -> None:
    """--dry-run shows and removes nothing; --yes shows and removes; both are quiet on stderr."""
    dry = cli.process("purge", "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "2 tasks would be removed, last changed " in dry.stdout
    done = cli.process("purge", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("removed 2 tasks\n")
    assert cli("purge", "--yes").stdout == "nothing to remove\n"


def test_purge_as_json(ended: Registry, cli: Cli) -> None:
    """One object with the documented fields, before and after."""
    dry, done = cli.json("purge", "--dry-run"), cli.json("purge", "--yes")
    assert list(dry) == list(done) == list(PURGE_FIELDS)
    assert (dry["found"], dry["removed"], done["found"], done["removed"]) == (2, 0, 2, 2)
    assert dry["groups"] == done["groups"]
    assert [group["tasks"] for group in dry["groups"]] == [1, 1]
    assert {group["status"] for group in dry["groups"]} == {"succeeded"}


def test_purge_takes_a_selection(ended: Registry, cli: Cli) -> None:
    """--older-than reaches what is kept for ever; prefix, name and status narrow; failed tasks cannot be named."""
    assert cli.json("purge", "--older-than", "1000d", "--dry-run")["found"] == 0
    assert cli.json("purge", "--older-than", "0", "--dry-run")["found"] == 3
    assert cli.json("purge", "--prefix", "order:", "--name", "job", "--dry-run")["found"] == 1
    assert cli.json("purge", "--status", "skipped", "--status", "cancelled", "--dry-run")["found"] == 0
    assert cli("purge", "--status", "failed", "--yes").exit_code == 2


def test_many_jobs_are_cut_short(registry: Registry, cli: Cli) -> None:
    """Of many jobs the table shows the largest, and how many more there are."""
    for number in range(25):
        registry.run(f"t{number}", lambda: None, name=f"job{number}", keep_for=0)
    shown = cli("purge", "--dry-run").stdout
    assert "… and 5 more (--json tells all)\n" in shown
    assert len(cli.json("purge", "--dry-run")["groups"]) == 25


def test_a_wrong_clock_is_told(registry: Registry, cli: Cli, path: Path) -> None:
    """A stored date that is still to come ends with 78 and a hint that names the task as it can be typed."""
    line = json.loads(next(iter(registry.export_lines())))
    task = {**dict.fromkeys(FIELDS), "task_id": "from the future", "status": "cancelled", "checksum": "a" * 64}
    task |= {"updated_at": 2**55, "name": "", "token": 0, "attempt": 0, "max_attempts": 1}
    task |= {"on_crash": "hold", "on_failure": "retry"}
    registry.import_lines([json.dumps(line), json.dumps(task), '{"end": 1, "floor": 0}'])
    result = cli("purge", "--yes")
    assert result.exit_code == 78
    assert "`idemreg forget 'from the future'`" in result.stderr


def many(registry: Registry, count: int) -> None:
    lines = list(registry.export_lines())
    one = {"task_id": "", "status": "succeeded", "checksum": "a" * 64, "updated_at": 1, "name": "job", "token": 1}
    one |= {"attempt": 1, "on_crash": "hold", "on_failure": "retry", "max_attempts": 1, "keep_ms": 0, "result": "null"}
    one |= dict.fromkeys(("error", "verdict", "settled_by", "evidence"))
    tasks = [json.dumps({**one, "task_id": f"t{number:05}"}) for number in range(count)]
    registry.import_lines([lines[0], *tasks, json.dumps({"end": count, "floor": 1})])


def test_purge_can_be_interrupted(registry: Registry, cli: Cli) -> None:
    """Ctrl-C between two transactions says how far it came, exits with 130, and calling again goes on."""
    many(registry, 1_400)
    done = interrupted(cli, "purge.committed", "purge", "--yes", passes=2)
    assert done.returncode == 130
    assert re.search(r"interrupted: at least (500|1,000) of 1,400 tasks removed; call again to go on", done.stderr)
    assert len(ids(cli)) == 400
    assert cli.json("purge", "--yes")["removed"] == 400
    many(registry, 600)
    done = interrupted(cli, "purge.in-transaction", "purge", "--yes", "--json")
    assert json.loads(done.stderr)["error"] == "interrupted"
    assert len(ids(cli)) == 600


# --- backup -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 80])
def test_backup_on_a_terminal(ended: Registry, cli: Cli, columns: int, tmp_path: Path) -> None:
    """The bar and the answer fit, and the copy is a registry."""
    out = tmp_path / "copy.db"
    screen = cli.terminal(columns, "backup", str(out))
    assert fits(screen, columns), screen
    assert "copying" in screen
    assert "100%" in screen
    assert screen.endswith(f"{out}\n")
    with Registry(out, create=False) as copy:
        assert copy.get("kept") is not None


def test_backup_in_a_pipe(ended: Registry, cli: Cli, tmp_path: Path) -> None:
    """No bar; JSON with the documented fields; a second call overwrites nothing and exits with 74."""
    out = tmp_path / "copy.db"
    done = cli.process("backup", str(out), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert list(shown) == list(BACKUP_FIELDS)
    assert (shown["path"], shown["bytes"]) == (str(out), out.stat().st_size)
    again = cli("backup", str(out))
    assert again.exit_code == 74
    assert "exists already" in again.stderr
    plain = cli.process("backup", str(tmp_path / "other.db"))
    assert (plain.stderr, plain.stdout.splitlines()[1]) == ("", str(tmp_path / "other.db"))


@pytest.mark.parametrize("words", [["backup"], ["export"]])
def test_new_files_can_be_interrupted(ended: Registry, cli: Cli, tmp_path: Path, words: list[str]) -> None:
    """Ctrl-C just before the file gets its name: exit code 130, and nothing of it is left."""
    folder = tmp_path / "out"
    folder.mkdir()
    done = interrupted(cli, "place.synced", *words, str(folder / "file"))
    assert (done.returncode, done.stderr) == (130, "idemreg: interrupted\n")
    assert os.listdir(folder) == []


# --- export and import ------------------------------------------------------------------------------------------


def test_an_export_counts_tasks_and_not_their_steps(registry: Registry, cli: Cli, tmp_path: Path) -> None:
    """What is told of an export is what an import of it tells."""
    with registry.claim("t") as claim:
        claim.run_step("a", lambda: None)
        claim.run_step("b", lambda: None)
    out = tmp_path / "tasks.jsonl"
    assert cli("export", str(out)).stdout == f"exported 1 task to\n{out}\n"
    assert cli("--db", str(tmp_path / "other.db"), "import", str(out)).stdout.startswith("1  imported\n")


def test_export_to_a_pipe_and_to_a_file(ended: Registry, cli: Cli, tmp_path: Path) -> None:
    """The lines of the library, and the same in a file that is not overwritten."""
    out = tmp_path / "tasks.jsonl"
    lines = "".join(ended.export_lines())
    done = cli.process("export")
    assert (done.returncode, done.stdout, done.stderr) == (0, lines, "")
    assert cli("export", "--json").stdout == lines
    assert cli("export", str(out)).stdout == f"exported 4 tasks to\n{out}\n"
    assert out.read_text() == lines
    assert cli("export", str(out)).exit_code == 74
    assert list(json.loads(lines.splitlines()[1])) == list(FIELDS)
    other = cli.json("export", str(tmp_path / "other.jsonl"), "--prefix", "order:", "--status", "succeeded")
    assert other["lines"] == 4
    for columns in (40, 80):
        assert fits(cli.terminal(columns, "export", str(tmp_path / f"{columns}.jsonl")), columns)
        assert cli.terminal(columns, "export") == lines


def test_a_dash_is_stdout(ended: Registry, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`export -` writes to stdout, as `import -` reads stdin, and makes no file."""
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir())
    assert cli("export", "-").stdout == "".join(ended.export_lines())
    assert sorted(os.listdir()) == before


def test_import_counts(ended: Registry, cli: Cli, tmp_path: Path) -> None:
    """Into a new file, again, and over something else: imported, there already, conflicting with exit code 65."""
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(ended.export_lines()))
    other = ["--db", str(tmp_path / "other.db")]
    first = cli.process(*other, "import", str(file))
    assert (first.returncode, first.stderr) == (0, f"idemreg: created {tmp_path / 'other.db'}\n")
    assert first.stdout == "4  imported\n0  here already, the same\n"
    again = cli.json(*other, "import", str(file))
    assert list(again) == list(IMPORT_FIELDS)
    assert (again["read"], again["imported"], again["skipped"]) == (4, 0, 4)
    cli(*other, "retry", "dead")
    conflict = cli(*other, "import", str(file))
    assert conflict.exit_code == 65
    assert conflict.stdout.endswith("1  here already, different, and left as they are:\n   dead\n")


@pytest.mark.parametrize("columns", [40, 80])
def test_import_on_a_terminal(ended: Registry, cli: Cli, columns: int, tmp_path: Path) -> None:
    """The bar and the counts fit, with a task that was running as well."""
    file = tmp_path / "tasks.jsonl"
    with ended.claim("runs"):
        file.write_text("".join(ended.export_lines()))
    screen = cli.terminal(columns, "--db", str(tmp_path / "other.db"), "import", str(file))
    assert fits(screen.partition("\n")[2], columns), screen
    assert "5  imported\n" in screen
    assert "1  of them unknown: they were running\n" in screen
    assert "100%" in screen


def test_import_from_stdin(ended: Registry, cli: Cli, tmp_path: Path) -> None:
    """`export | import -` carries everything over in a pipe."""
    other = tmp_path / "other.db"
    done = cli.process("export", script=f'"$@" | {sys.executable} -m idemreg --db {other} import -')
    assert done.returncode == 0, done.stderr
    with Registry(other, create=False) as copy:
        assert list(copy.export_lines()) == list(ended.export_lines())


def test_import_names_a_bad_line(cli: Cli, tmp_path: Path) -> None:
    """A line that is none ends with 65 and its number; a missing file with 74; --no-create creates nothing."""
    file = tmp_path / "bad.jsonl"
    file.write_text('{"idemreg": "export", "format": 1, "registry_id": "%s"}\n\x1b[2J\n' % ("0" * 32))
    assert cli("import", "--no-create", str(file)).exit_code == 74
    result = cli("import", str(file))
    assert result.exit_code == 65
    assert "idemreg: line 2: it is not JSON" in result.stderr
    assert "\x1b" not in result.stderr
    assert cli("import", str(tmp_path / "none")).exit_code == 74


def test_what_is_no_export_leaves_no_registry(cli: Cli, path: Path, tmp_path: Path) -> None:
    """A file without a single task to import creates nothing; a missing one is asked for by its name."""
    file = tmp_path / "bad.jsonl"
    for text in ('{"a": 1}\n', "", '{"idemreg": "export", "format": 1, "registry_id": "%s"}\nx\n' % ("0" * 32)):
        file.write_text(text)
        assert cli("import", str(file)).exit_code == 65
        assert sorted(os.listdir(tmp_path)) == [file.name]
    missing = cli("import", str(tmp_path / "none"))
    assert missing.exit_code == 74
    assert "  hint: Is the name right?\n" in missing.stderr


def test_import_waits_for_a_pipe_that_does_not_block(ended: Registry, cli: Cli, tmp_path: Path) -> None:
    """An input that somebody made non-blocking is waited for, and closed standard input is an empty one."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    words = [sys.executable, "-m", "idemreg", "--db", str(tmp_path / "other.db"), "import", "-"]
    process = subprocess.Popen(
        words, env=cli.environment(), stdin=read_end, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    text = "".join(ended.export_lines()).encode()
    os.write(write_end, text[:300])  # from the middle of a line on later, whenever it reads
    while fcntl.ioctl(read_end, termios.FIONREAD, bytes(4)) != bytes(4):
        assert process.poll() is None
    os.write(write_end, text[300:])
    os.close(write_end)
    out, err = process.communicate(timeout=PATIENCE_S)
    os.close(read_end)
    assert process.returncode == 0, err
    assert out.startswith(b"4  imported\n")
    assert cli.process("import", "-", script='"$@" <&-').returncode == 65


def test_import_can_be_interrupted(registry: Registry, cli: Cli, tmp_path: Path) -> None:
    """Ctrl-C leaves the transactions that are done; the message says how far it came, and importing again goes on."""
    many(registry, 1_400)
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(registry.export_lines()))
    other = ["--db", str(tmp_path / "other.db")]
    done = interrupted(cli, "import.committed", *other, "import", str(file), passes=2)
    assert done.returncode == 130
    assert re.search(r"interrupted: at least (500|1,000) tasks dealt with; import again to go on", done.stderr)
    again = cli.json(*other, "import", str(file))
    assert (again["skipped"], again["imported"]) == (1_000, 400)


@pytest.mark.parametrize("words", [["export"], ["list"], ["list", "--json"]])
def test_what_is_long_in_a_pipe_can_be_interrupted(registry: Registry, cli: Cli, words: list[str]) -> None:
    """Ctrl-C while the reader is slow: exit code 130, no traceback."""
    many(registry, 2_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "idemreg", *words],
        env=cli.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(100)  # it is writing, and will block, since nobody reads on
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert (json.loads(errors)["error"] if "--json" in words else errors) in ("interrupted", b"idemreg: interrupted\n")


@pytest.mark.parametrize("command", ["export", "list --json", "list"])
def test_a_reader_may_leave(registry: Registry, cli: Cli, command: str) -> None:
    """`| head` ends them quietly, with the exit code of a broken pipe."""
    many(registry, 3_000)
    done = cli.process(*command.split(), script='{ "$@"; echo "exit $?" >&2; } | head -2')
    assert done.stderr == "exit 141\n"
    assert len(done.stdout.splitlines()) == 2


# --- list -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--status", "failed", "--status", "pending"], ["dead"]),
        (["--status", "succeeded", "--prefix", "order:"], ["order:1", "order:2"]),
        (["--name", "job"], ["dead", "kept", "order:2"]),
        (["--name", "job", "--limit", "1"], ["dead"]),
        (["--dead"], ["dead"]),
        (["--older-than", "1h"], []),
        (["--newer-than", "1h", "--dead"], ["dead"]),
        (["--older-than", "0", "--prefix", "k"], ["kept"]),
    ],
)
def test_list_takes_a_selection(ended: Registry, cli: Cli, words: list[str], found: list[str]) -> None:
    """Each option narrows, and all that are given hold."""
    assert ids(cli, *words) == found
    shown = cli("list", *words).stdout
    assert len(shown.splitlines()) == len(found) + 1 if found else shown == "no such tasks\n"


@pytest.mark.parametrize("words", [["purge", "--yes"], ["backup", "out"], ["export"]])
def test_they_create_no_registry(cli: Cli, path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no registry they say how to make one, and leave no file."""
    monkeypatch.chdir(path.parent)
    assert cli(*words).exit_code == 74
    assert not list(path.parent.iterdir())


def test_the_fields_are_documented(cli: Cli) -> None:
    """The help of each names the fields of its JSON."""
    documented: dict[str, Any] = {
        "purge": PURGE_FIELDS,
        "backup": BACKUP_FIELDS,
        "export": FIELDS,
        "import": IMPORT_FIELDS,
    }
    for name, fields in documented.items():
        text = cli(name, "--help").output
        assert all(re.search(rf"^  {field}\b", text, re.MULTILINE) for field in fields)
