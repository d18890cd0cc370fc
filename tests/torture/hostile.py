"""The trial of hostile input: ids, arguments, results, words, lines, files and environments that nobody should give.

Whatever is given: the API raises one of idemreg's errors (or ValueError and TypeError for an option), a command ends
with a documented exit code, one line that says why, and never a traceback; nothing on a terminal could move its cursor
or turn its text around; with --json each line is JSON. And the registry works afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import io
import json
import os
import pty
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import unicodedata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from idemreg import AsyncRegistry, Claim, IdemregError, Registry, TaskIdError
from idemreg.cli import COMMANDS, main
from idemreg.errors import StoreCorruptError, StorePathError, StoreVersionError
from tests.mutants.catalogue_door import DOOR
from tests.support import raw
from tests.torture import hostile_values as values
from tests.torture.trial import Tally, Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["TRIAL"]

ROOT: Final = Path(__file__).resolve().parent.parent.parent
ROUND: Final = 25  # so many things are tried on one file, then there is a new one

# What README and --help document. 70, an unexpected error, is none of them.
EXIT_CODES: Final = frozenset({0, 1, 2, 3, 65, 73, 74, 75, 76, 78, 124, 126, 127, 130, 141, 143})
TALKATIVE: Final = frozenset({"doctor", "each", "run"})  # their exit codes above 0 need no error

SGR: Final = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[K|\r")  # colours, and click's bars

# Each command's options that are given something harmless, since what they name is carried out, or takes long.
HARMLESS: Final[dict[str, tuple[str, ...]]] = {
    "verify": ("true", "false", "exit 3"),
    "python": ("json:dumps", "nosuch:fn", ":", "a:b:c", "json:", "os.path:\x1b[2J", "-:-", "json:\udcff"),
    "wait": ("0", "nan", "-1", "1e999", "x", "0.001"),
    "jobs": ("0", "1", "3", "x", "99999999999999999999", "-1"),
}
COMMAND_LINES: Final = (
    ["true"], ["false"], ["sh", "-c", "exit 3"], ["/nonexistent/\x1b[2J"], [""], ["/"], ["/etc/passwd"],
    ["sh", "-c", "cat >/dev/null"],
)  # fmt: skip


class Shown(NamedTuple):
    """What a command has shown."""

    exit_code: int | None
    stdout: str
    stderr: str


class Scene:
    """A folder with a registry whose rows say what they should not, and what was seen so far."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self.path = folder / "jobs.db"
        shutil.copy(template, self.path)  # nobody has it open
        self.path.chmod(0o600)


def run(seed: int, count: int) -> Tally:
    """Try ``count`` things, chosen by the seed."""
    tally = Tally()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="hostile-") as name:
        warnings.simplefilter("ignore")  # claims that are dropped on purpose
        template = Path(name) / "template.db"
        _make_template(template, random.Random(seed))
        for begin in range(0, count, ROUND):
            folder = Path(name) / str(begin)
            folder.mkdir(0o700)
            scene = Scene(folder, template)
            with contextlib.chdir(folder):  # where a relative path leads, such as "-"
                for number in range(begin, min(begin + ROUND, count)):
                    _try(scene, seed, number, count, tally)
            shutil.rmtree(folder)
    return tally


def _try(scene: Scene, seed: int, number: int, count: int, tally: Tally) -> None:
    dice = random.Random(seed * 1_000_003 + number)
    (kind,) = dice.choices((_command, _call, _planted, _tampered, _process), (46, 24, 12, 10, 8))
    tried, violations = kind(scene, dice)
    tally.tried += 1
    tally.distinct.add(
        int.from_bytes(hashlib.blake2b(repr(tried).encode("utf-8", "surrogatepass"), digest_size=8).digest())
    )
    tally.events[kind.__name__.strip("_")] += 1
    again = f"python -m tests.torture --only hostile --seed {seed} --count {count}"
    tally.violations += [f"{what} (number {number}, {tried!a:.400}): {again}" for what in violations]


def _make_template(path: Path, dice: random.Random) -> None:
    """A registry of rows that the API refuses, or stores: whoever can write the file may have put them there."""
    with Registry(path, durability="normal") as registry:
        for number in range(8):
            registry.run(f"task:{number}", lambda: {"x": "\x1b[2J\u202e"}, name="job")
        for number in range(8, 12):
            with contextlib.suppress(ValueError):
                registry.run(f"task:{number}", lambda: int("\x1b]0;owned\x07"), name="job\u202e")
        for number in range(12, 20):
            registry.add(f"task:{number}", name="job\u200b")
    connection = raw.connect(path)
    try:
        stored = [
            text for text in values.NASTY if text.isprintable() is False and not re.search("[\ud800-\udfff\0]", text)
        ]
        for number, text in enumerate(stored):
            row = {
                "id": f"{text}id{number}",
                "status": dice.choice((0, 1, 2, 4, 5, 6)),
                "name": f"{text}name",
                "result": json.dumps(f"{text}r", ensure_ascii=False),
                "error": f"{text}error\n{text}",
                "verdict": dice.choice((None, 1, 3)),
                "by": f"{text}by",
                "evidence": f"{text}evidence\n{text}",
            }
            connection.execute(
                "INSERT OR IGNORE INTO idempotent_log SELECT :id, :status, checksum, updated_at, boot_stamp, :name,"
                " token, attempt, NULL, policy, keep_ms, :result, :error, 0, note, :verdict, :by, :evidence, 0, 0"
                " FROM idempotent_log WHERE task_id = 'task:8'",
                row,
            )
        raw.reseal(connection)
    finally:
        connection.close()


# --- what must hold ---------------------------------------------------------------------------------------------


def _shown_wrong(shown: Shown, words: list[str], *, on_terminal: bool = False) -> Iterator[str]:
    """What is wrong with what a command showed."""
    command = next((one for one in words if one in COMMANDS), "")
    if shown.exit_code not in EXIT_CODES:
        yield f"exit code {shown.exit_code}"
    if "Traceback (most recent call last)" in shown.stdout + shown.stderr:
        yield "a traceback"
    for where, text in (("stdout", shown.stdout), ("stderr", shown.stderr)):
        seen = SGR.sub("", text) if on_terminal else text
        if strange := sorted({one for one in seen if not _may_be_shown(one)}):
            yield f"{where} has a raw {strange[0]!a}"
    if on_terminal or shown.exit_code in (0, 1, 3, None) or command in TALKATIVE:
        return
    told = [line for line in shown.stderr.splitlines() if line.startswith(("idemreg: ", "{"))]
    if not told and shown.exit_code != 141 and "Usage: " not in shown.stderr:
        yield f"exit code {shown.exit_code}, and no line that says why"


def _may_be_shown(character: str) -> bool:
    return character == "\n" or character.isprintable() or unicodedata.category(character) == "Zs"


def _json_wrong(shown: Shown, words: list[str]) -> Iterator[str]:
    if "--json" not in words or "--help" in words or "-h" in words or "--version" in words:
        return
    for line in shown.stdout.splitlines():
        try:
            json.loads(line)
        except ValueError:
            yield f"a line that is no JSON: {line[:80]!a}"
            return


def _raised_wrong(error: BaseException) -> str | None:
    """What is wrong with an error that a call raised; None where it is one that it may raise."""
    if isinstance(error, IdemregError):
        if not error.hint or not error.message:
            return f"{type(error).__name__} without a hint"
        return None
    if type(error) in (ValueError, TypeError) and str(error):
        return None
    return f"{type(error).__module__}.{type(error).__qualname__}: {error!a:.200}"


# --- commands in this process -----------------------------------------------------------------------------------


def _command(scene: Scene, dice: random.Random) -> tuple[Any, list[str]]:
    words, stdin = _line(scene, dice)
    variables = _variables(scene, dice) if dice.random() < 0.2 else {"IDEMREG_DB": str(scene.path)}
    encoding = dice.choice(("utf-8", "utf-8", "ascii", "latin-1"))
    shown = _invoke(words, stdin, variables, encoding)
    kept = [word.replace(str(scene.folder), "") for word in words]
    named = {key: value.replace(str(scene.folder), "") for key, value in variables.items()}
    return (kept, stdin[:200], named, encoding), [*_shown_wrong(shown, words), *_json_wrong(shown, words)]


def _line(scene: Scene, dice: random.Random) -> tuple[list[str], bytes]:
    """The words of one command, and what it reads."""
    name = dice.choice([*(one for one in COMMANDS if one != "demo"), "import", "import", "each", "list", "show"])
    if dice.random() < 0.03:
        return [dice.choice((values.word(dice), "demo")), "--" + values.word(dice)], b""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    words = ["--json"] if dice.random() < 0.3 else []
    words.append(name)
    arguments: list[str] = []
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            if dice.random() < 0.9:
                arguments.append(_argument(scene, name, parameter, dice))
        elif dice.random() < (0.7 if parameter.required else 0.12):
            assert isinstance(parameter, click.Option)
            words += _option(scene, parameter, dice)
    for command_name, flag in (("purge", "--yes"), ("watch", "--once")):  # the one asks, the other goes on for ever
        if name == command_name and flag not in words:
            words.append(flag)
    words += ["--", *arguments] if name not in ("run", "each") and dice.random() < 0.7 else arguments
    if name in ("run", "each") and dice.random() < 0.9:
        words += ["--", *dice.choice(COMMAND_LINES), *([values.word(dice)] if dice.random() < 0.3 else [])]
    if name == "each":
        stdin = b"\n".join(values.json_line(dice) for _ in range(dice.randint(0, 4)))
    else:
        stdin = values.export(dice) if name == "import" else b""
    return words, stdin


def _option(scene: Scene, option: click.Option, dice: random.Random) -> list[str]:
    flag = dice.choice([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return [flag]
    return [flag, _option_value(scene, option, dice)]


def _option_value(scene: Scene, option: click.Option, dice: random.Random) -> str:
    name = option.name or ""
    if name in HARMLESS:
        return dice.choice(HARMLESS[name])
    if name in ("salvage", "db", "key_file", "checksum_key_file"):
        return _place(scene, dice)
    if isinstance(option.type, click.Choice) and dice.random() < 0.7:
        return str(dice.choice(list(option.type.choices)))
    if name == "task_id":
        return dice.choice(
            ("{id}", "x:{id}", "{id[a]}", "{", "{missing}", "", values.word(dice), "{id.__class__}", "{id!r}")
        )
    return dice.choice((values.word(dice), str(values.number(dice)).replace("\0", ""), "1", "30d"))


def _argument(scene: Scene, command: str, argument: click.Argument, dice: random.Random) -> str:
    if isinstance(argument.type, click.Choice) and dice.random() < 0.8:
        return str(dice.choice(list(argument.type.choices)))
    if command in ("backup", "export", "import") or argument.name in ("out", "file"):
        return "-" if command == "import" and dice.random() < 0.5 else _place(scene, dice)
    return dice.choice((f"task:{dice.randrange(25)}", values.word(dice)))


def _place(scene: Scene, dice: random.Random) -> str:
    """A path inside the folder, or one where nothing can be made."""
    inside = values.word(dice)[:100].replace("/", "_").replace("~", "_") or "x"
    there = ("", ".", str(scene.folder), "/dev/null", "/dev/full", "/proc/self/mem", "/nonexistent/x", "-")
    return dice.choice((*there, *[str(scene.folder / inside)] * 6, str(scene.path), f"{scene.path}-lock"))


def _variables(scene: Scene, dice: random.Random) -> dict[str, str]:
    """An environment; one that names no other file than those of the folder."""
    found = {"IDEMREG_DB": str(scene.path)}
    for name in dice.sample(
        ("COLUMNS", "TERM", "NO_COLOR", "LOGNAME", "TZ", "IDEMREG_UNSAFE_PATH", "IDEMREG_CHECKSUM_KEY"), 3
    ):
        found[name] = values.word(dice)[:200]
    if dice.random() < 0.3:
        found["IDEMREG_DB"] = dice.choice(("", _place(scene, dice)))
        found["HOME"] = dice.choice((str(scene.folder), "/nonexistent", "", "relative", f"{scene.folder}/\x1b[2J"))
        found["XDG_STATE_HOME"] = dice.choice(("", str(scene.folder / "state"), "\udcff", "relative"))
    return found


def _invoke(words: list[str], stdin: bytes, variables: dict[str, str], encoding: str) -> Shown:
    """The command line in this process, on descriptors and streams of its own."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(stdin)
        files[0].seek(0)
        stack.enter_context(_descriptors([file.fileno() for file in files]))
        stack.enter_context(_environment(variables))
        streams = [io.TextIOWrapper(os.fdopen(os.dup(fd), "wb"), encoding=encoding) for fd in (1, 2)]
        stack.enter_context(contextlib.redirect_stdout(streams[0]))
        stack.enter_context(contextlib.redirect_stderr(streams[1]))
        code: int | None = None
        try:
            main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException as error:  # noqa: BLE001 - whatever comes out is a violation
            streams[1].write(f"Traceback (most recent call last) of {type(error).__name__}: {error!a}")
        for stream in streams:
            with contextlib.suppress(OSError, ValueError):
                stream.close()
        texts = []
        for file in files[1:]:
            file.seek(0)
            texts.append(file.read().decode(encoding, "surrogateescape"))
    return Shown(code, *texts)


@contextlib.contextmanager
def _descriptors(ours: list[int]) -> Iterator[None]:
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in range(3)]
    try:
        for fd, one in enumerate(ours):
            os.dup2(one, fd)
        yield
    finally:
        for fd, one in enumerate(kept):
            os.dup2(one, fd)
            os.close(one)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    try:
        for name in ("COLUMNS", "NO_COLOR", "XDG_STATE_HOME", "IDEMREG_DEBUG"):
            os.environ.pop(name, None)
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# --- calls ------------------------------------------------------------------------------------------------------


def _call(scene: Scene, dice: random.Random) -> tuple[Any, list[str]]:
    if dice.random() < 0.25:
        return _ids(scene, dice)
    what = dice.choice(list(CALLS))
    task_id, payload, name, number = values.task_id(dice), values.value(dice), values.name(dice), values.number(dice)
    wrong: list[str] = []
    with Registry(scene.path, durability="normal") as registry:
        try:
            CALLS[what](registry, task_id, payload, name, number)
        except BaseException as error:  # noqa: BLE001 - whatever comes out is judged
            if not isinstance(error, JobError) and (problem := _raised_wrong(error)):
                wrong.append(f"{what} raised {problem}")
        else:
            if what in TAKE_ID and _is_no_task_id(task_id):
                wrong.append(f"{what} took {task_id!a:.80} for a task_id")
        try:
            registry.run("sentinel", lambda: 1, name="job")
        except IdemregError as error:
            wrong.append(f"behind {what} the registry does not work: {error!a}")
    return (what, _spelled(task_id), _spelled(payload), name, _spelled(number)), wrong


def _ids(scene: Scene, dice: random.Random) -> tuple[Any, list[str]]:
    """Many task ids, each of which is one, or is refused."""
    ids = [values.task_id(dice) for _ in range(20)]
    wrong = []
    with Registry(scene.path, durability="normal") as registry:
        for task_id in ids:
            try:
                registry.get(task_id)
            except TaskIdError:
                continue
            except BaseException as error:  # noqa: BLE001 - whatever comes out is judged
                wrong.append(f"get raised {_raised_wrong(error) or type(error).__name__} for a task_id")
            else:
                if _is_no_task_id(task_id):
                    wrong.append(f"get took {task_id!a:.80} for a task_id")
    return ("ids", *map(_spelled, ids)), wrong


def _is_no_task_id(task_id: object) -> bool:
    return (
        type(task_id) is not str
        or not task_id
        or any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in task_id)
    )


def _spelled(given: object) -> str:
    """As far as it has a spelling that is the same in every process."""
    try:
        return hashlib.blake2b(re.sub(r"0x[0-9a-f]+", "", repr(given)).encode("utf-8", "surrogatepass")).hexdigest()[
            :16
        ]
    except (RuntimeError, RecursionError):
        return type(given).__name__


class JobError(Exception):
    """A job's own, with a message that nobody should have."""


def _raise(payload: object) -> None:
    error = JobError(payload) if isinstance(payload, str) else JobError("\x1b[2J\ud800\0")
    raise error


def _claim_block(registry: Registry, task_id: Any, payload: Any, name: str, _number: Any) -> None:
    with registry.claim(task_id, payload=payload, name=name) as claim:
        claim.result = payload


def _claim_failed(registry: Registry, _task_id: Any, payload: Any, _name: str, _number: Any) -> None:
    with registry.claim(f"fail:{id(payload)}", name="job") as claim:
        claim.fail(payload)


def _decorated(registry: Registry, task_id: Any, payload: Any, name: str, _number: Any) -> None:
    @registry.idempotent("x:{task_id}", name=name or "job", exclude=("payload",))
    def job(task_id: Any, payload: Any) -> Any:
        return payload

    job(task_id, payload)


def _batch(registry: Registry, task_id: Any, payload: Any, name: str, _number: Any) -> None:
    for claim in registry.claim_many([(task_id, payload)], name=name):
        if isinstance(claim, Claim):
            claim.release()


def _batch_ended(registry: Registry, task_id: Any, payload: Any, name: str, _number: Any) -> None:
    claims = [one for one in registry.claim_many([(task_id, None)], name=name) if isinstance(one, Claim)]
    try:
        for claim in claims:
            claim.enter()
        registry.finish_many([(claim, payload) for claim in claims])
    finally:
        for claim in claims:
            if claim.is_open:
                claim.release()


def _steps(registry: Registry, task_id: Any, payload: Any, name: str, _number: Any) -> None:
    with registry.claim(task_id, name="job") as claim:
        with claim.step(task_id) as step:
            step.result = payload
        claim.run_step(name, lambda: payload)
    registry.steps(task_id)


def _kept(registry: Registry, task_id: Any, payload: Any, name: str, _number: Any) -> None:
    @registry.idempotent("x:{task_id}", name=name or "job", recover=True)
    def job(task_id: Any, payload: Any) -> Any:
        return payload

    try:
        job(task_id, payload)
    finally:
        registry.sweep()


def _scheduled(registry: Registry, task_id: Any, payload: Any, name: str, number: Any) -> None:
    @registry.scheduled(name, cron=task_id, misfire_grace=number, tz=payload)
    def job(slot: Any) -> Any:
        return payload

    registry.run_due()


async def _awaited(registry: Registry, task_id: Any, payload: Any, name: str, number: Any) -> None:
    beside = AsyncRegistry.of(registry)
    await beside.run(task_id, lambda: payload, name=name)
    async with beside.claim(task_id, name=name, lease=number) as claim:
        claim.result = payload
    await beside.get(task_id)


def _effects(registry: Registry, task_id: Any, payload: Any, name: str, _number: Any) -> None:
    with registry.claim(task_id, name=name) as claim, claim.transaction() as tx:
        tx.execute(name, (payload,))


CALLS: Final[dict[str, Callable[[Registry, Any, Any, str, Any], object]]] = {
    "run": lambda r, t, p, n, _: r.run(t, lambda: 1, payload=p, name=n),
    "run result": lambda r, t, p, n, _: r.run(t, lambda: p, name=n),
    "run error": lambda r, t, p, n, _: r.run(t, lambda: _raise(p), name=n),
    "run options": lambda r, t, _p, n, x: r.run(t, lambda: 1, name=n, keep_for=x, max_attempts=x),
    "run wait": lambda r, t, _p, n, x: r.run(t, lambda: 1, name=n, wait=x if isinstance(x, bytes) else -1),  # type: ignore[arg-type]
    "claim": _claim_block,
    "claim fail": _claim_failed,
    "idempotent": _decorated,
    "transaction": _effects,
    "add": lambda r, t, p, n, _: r.add(t, payload=p, name=n),
    "get": lambda r, t, _p, _n, _x: r.get(t),
    "claim_many": _batch,
    "finish_many": _batch_ended,
    "run_step": _steps,
    "sweep": _kept,
    "run_due": _scheduled,
    "run awaited": lambda r, t, p, n, x: asyncio.run(_awaited(r, t, p, n, x)),
    "run limits": lambda r, t, _p, n, x: r.run(t, lambda: 1, name=n, lease=x, timeout=x),
    "run errors": lambda r, t, p, n, _: r.run(t, lambda: 1, name=n, unknown_on=p, release_on=p),
    "run_slot": lambda r, t, _p, _n, _x: r.run_slot(t),
    "audit": lambda r, t, p, _n, x: list(r.audit(t, since=p, until=x)),
    "pause": lambda r, t, _p, _n, _x: r.pause(t),
    "resume": lambda r, t, _p, _n, _x: r.resume(t),
    "owner": lambda r, _t, p, _n, _x: r.owner(p),
    "steps": lambda r, t, _p, _n, _x: r.steps(t),
    "serials": lambda r, t, _p, _n, _x: r.serials(t).next(),
    "count": lambda r, _t, _p, _n, _x: r.count(),
    "doctor": lambda r, _t, _p, _n, x: r.doctor(full=x),
    "backup": lambda r, t, _p, _n, _x: r.backup(t),
    "export_lines": lambda r, t, p, _n, x: list(r.export_lines(prefix=t, name=p, older_than=x)),
    "confirm_clock": lambda r, t, p, _n, _x: r.confirm_clock(evidence=t, by=p),
    "consume": lambda r, t, p, n, _: list(r.consume([p], lambda one: one, task_id=lambda _one: t, name=n)),
    "resolve": lambda r, t, p, n, _: r.resolve(t, "happened", result=p, evidence=n, by=n),
    "resolve verdict": lambda r, t, _p, n, _x: r.resolve(t, n),  # type: ignore[arg-type]
    "retry": lambda r, t, _p, n, _x: r.retry(t, reason=n, by=n),
    "skip": lambda r, t, _p, n, _x: r.skip(t, n, by=n),
    "cancel": lambda r, t, _p, n, _x: r.cancel(t, reason=n, by=n),
    "forget": lambda r, t, _p, _n, _x: r.forget(t),
    "tasks": lambda r, _t, _p, n, x: list(r.tasks(prefix=n, name=n, older_than=x)),
    "tasks typed": lambda r, t, p, _n, _x: list(r.tasks(prefix=t, name=p, status=p)),
    "purge": lambda r, _t, _p, n, x: r.purge(prefix=n, older_than=x, dry_run=True),
    "checkpoint": lambda r, _t, _p, n, x: r.checkpoint(n, wait=x),  # type: ignore[arg-type]
    "import_lines": lambda r, _t, p, n, _x: r.import_lines([n, n.encode("utf-8", "replace"), str(type(p))]),
    "open": lambda r, t, _p, n, x: Registry(t if isinstance(t, str) and "/" in t else n[:0] or t, busy_timeout=x),
    "key": lambda r, t, _p, n, x: Registry(r.path, checksum_key=n, error_detail=t),
}  # fmt: skip
TAKE_ID: Final = frozenset({"run", "run result", "add", "get", "claim", "skip", "cancel", "retry", "forget", "resolve"})


# --- files ------------------------------------------------------------------------------------------------------


def _planted(scene: Scene, dice: random.Random) -> tuple[Any, list[str]]:
    """Something is planted where SQLite or we would open it: refused by every command, and nothing runs."""
    end = dice.choice(("", "-wal", "-shm", "-journal", "-lock"))
    how = dice.choice(list(PLANTS))
    folder = scene.folder / "planted"
    folder.mkdir(0o700)
    path = folder / "jobs.db"
    shutil.copy(scene.path, path)
    try:
        place = Path(f"{path}{end}")
        PLANTS[how](place, folder)
        words = ["--db", str(path), *dice.choice(FILE_COMMANDS)]
        shown = _invoke(words, b"", {}, "utf-8")
        wrong = list(_shown_wrong(shown, words))
        if shown.exit_code == 0:
            wrong.append(f"{words[2]} took a registry with {how} as its {end or 'database'}")
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)
    return ("planted", how, end, words[2:]), wrong


FILE_COMMANDS: Final = (
    ["list"], ["stats"], ["show", "task:1"], ["run", "new", "--", "true"], ["init"], ["purge", "--yes"], ["doctor"],
    ["export", "-"], ["checkpoint"], ["skip"], ["forget", "task:1"], ["retry", "task:9"], ["backup", "/dev/null"],
)  # fmt: skip


def _move(place: Path) -> Path:
    """What is there, or nothing, under another name."""
    other = place.with_name(f"other{place.name}")
    if place.exists():
        place.rename(other)
    else:
        other.touch()
    return other


def _bind(place: Path, folder: Path) -> None:
    _move(place)
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as one:
        one.bind(place.name)


def _link(place: Path, _folder: Path) -> None:
    place.symlink_to(_move(place).name)


def _dangle(place: Path, _folder: Path) -> None:
    _move(place)
    place.symlink_to("nowhere")


def _circle(place: Path, _folder: Path) -> None:
    _move(place)
    place.symlink_to(place.name)


def _fifo(place: Path, _folder: Path) -> None:
    _move(place)
    os.mkfifo(place)


def _folder(place: Path, _folder: Path) -> None:
    _move(place)
    place.mkdir()


PLANTS: Final[dict[str, Callable[[Path, Path], object]]] = {
    "a symbolic link": _link,
    "a dangling link": _dangle,
    "a circle of links": _circle,
    "a hard link": lambda place, _: os.link(_move(place), place),
    "a FIFO": _fifo,
    "a folder": _folder,
    "a socket": _bind,
    "an open folder": lambda _, folder: folder.chmod(0o777),
    "an open folder like /tmp": lambda _, folder: folder.chmod(0o1777),
}


def _tampered(scene: Scene, dice: random.Random) -> tuple[Any, list[str]]:
    """A file whose schema, header or rows are not ours: refused, or its rows are, and nothing runs that must not."""
    folder = scene.folder / "tampered"
    folder.mkdir(0o700)
    path = folder / "jobs.db"
    shutil.copy(scene.path, path)
    statement = dice.choice(STATEMENTS)
    words = ["--db", str(path), *dice.choice(FILE_COMMANDS)]
    try:
        connection = raw.connect(path)
        try:
            connection.config(1011, 1)  # SQLITE_DBCONFIG_WRITABLE_SCHEMA
            connection.pragma("ignore_check_constraints", 1)
            for one in statement.split(" ;; "):
                connection.execute(one).fetchall()
        finally:
            connection.close()
        shown = _invoke(words, b"", {}, "utf-8")
        wrong = list(_shown_wrong(shown, words))
        if shown.exit_code == 0:
            wrong.append(f"{words[2]} took a registry behind {statement!a}")
        with Registry(path) as registry:
            try:
                registry.run("task:1", lambda: wrong.append("the job ran on the word of a hostile file"), name="job")
                wrong.append("a hostile file was opened")
            except (StoreCorruptError, StorePathError, StoreVersionError):
                pass
            except BaseException as error:  # noqa: BLE001 - whatever comes out is judged
                wrong.append(f"opening raised {error!a:.200}")
    finally:
        shutil.rmtree(folder)
    return ("tampered", statement, words[2:]), wrong


STATEMENTS: Final = (
    'CREATE TRIGGER "a\x1b[2J" AFTER INSERT ON idempotent_log BEGIN DELETE FROM idempotent_log; END',
    "CREATE TABLE own (x) ;; CREATE TRIGGER t AFTER INSERT ON own BEGIN SELECT load_extension('x'); END",
    "CREATE VIEW idempotent_view AS SELECT 1",
    'CREATE TABLE "idempotent_\u202e" (x)',
    "CREATE UNIQUE INDEX i ON idempotent_log (task_id)",
    "DROP INDEX idempotent_attention",
    "DROP TABLE idempotent_large",
    "DROP TABLE idempotent_log ;; CREATE TABLE idempotent_log (task_id TEXT PRIMARY KEY, status)",
    "DROP TABLE idempotent_log ;; CREATE VIEW idempotent_log AS SELECT * FROM idempotent_owner",
    "ALTER TABLE idempotent_log ADD COLUMN more TEXT DEFAULT 'x'",
    "UPDATE sqlite_schema SET sql = replace(sql, 'CHECK (status BETWEEN 0 AND 6)', 'CHECK (1)')",
    "UPDATE sqlite_schema SET sql = replace(sql, 'WITHOUT ROWID', 'WITHOUT ROWID /* */')",
    "UPDATE sqlite_schema SET sql = 'CREATE TABLE idempotent_log (' || char(27) || '[2J x)' WHERE name LIKE '%log'",
    "PRAGMA user_version = 99",
    "PRAGMA user_version = -5",
    "PRAGMA user_version = 0",
    "PRAGMA application_id = 1",
    "UPDATE idempotent_registry SET floor = 9223372036854775807",
    "UPDATE idempotent_registry SET floor = -1",
    "UPDATE idempotent_registry SET registry_id = char(27) || '[2J'",
    "DELETE FROM idempotent_registry",
)  # fmt: skip


# --- processes of their own -----------------------------------------------------------------------------------------


def _process(scene: Scene, dice: random.Random) -> tuple[Any, list[str]]:
    """With closed streams, full ones, on a terminal, and in an environment that nobody set up."""
    words, stdin = _line(scene, dice)
    words = [word for word in words if "\0" not in word]
    variables = _variables(scene, dice)
    variables |= {
        name: dice.choice(("C", "POSIX", "xx_XX", "", "de_DE.ISO-8859-1", "\udcff"))
        for name in dice.sample(("LANG", "LC_ALL", "LC_CTYPE", "PYTHONIOENCODING", "PYTHONUTF8"), 2)
    }
    if variables.get("PYTHONUTF8") not in (None, "0", "1"):  # Python itself refuses to start with it
        variables["PYTHONUTF8"] = dice.choice(("0", "1"))
    if variables.get("PYTHONIOENCODING"):
        variables["PYTHONIOENCODING"] = dice.choice(("ascii", "latin-1", "cp437"))
    how = dice.choice(
        ("plain", "terminal", "<&-", ">&-", "2>&-", ">&- 2>&- <&-", *[">/dev/full"] * 4, "2>/dev/full", "| true")
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(scene.folder), **variables}
    environment = {name: value for name, value in environment.items() if "\0" not in value}
    argv = [sys.executable, "-m", "idemreg", *words]
    if how == "terminal":
        shown = _on_terminal(argv, environment, dice.choice((1, 20, 80, 500)))
    else:
        line = argv if how == "plain" else ["/bin/sh", "-c", f'"$@" {how}', "sh", *argv]
        done = subprocess.run(line, input=stdin, env=environment, capture_output=True, check=False, timeout=60)
        encoding = {"cp437": "cp437", "latin-1": "latin-1"}.get(environment.get("PYTHONIOENCODING", ""), "utf-8")
        shown = Shown(done.returncode, *(one.decode(encoding, "replace") for one in (done.stdout, done.stderr)))
    if how == "| true":
        shown = shown._replace(exit_code=0)
    kept = [word.replace(str(scene.folder), "") for word in words]
    quiet = shown._replace(stderr="idemreg: ") if "2>" in how else shown
    wrong = _shown_wrong(quiet, words, on_terminal=how == "terminal")
    return (kept, stdin[:200], sorted(variables), how), list(wrong)


def _on_terminal(argv: list[str], environment: dict[str, str], columns: int) -> Shown:
    screen, line = pty.openpty()
    try:
        fcntl.ioctl(line, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen(argv, env={"TERM": "xterm", **environment}, stdin=line, stdout=line, stderr=line)
    finally:
        os.close(line)
    output = b""
    os.write(screen, b"\x04\x04\x04")  # the end of what it may want to read
    with contextlib.suppress(OSError):  # EIO: the last process has closed the terminal
        while data := os.read(screen, 65_536):
            output += data
    os.close(screen)
    return Shown(process.wait(60), output.decode("utf-8", "replace").replace("^D\b\b", ""), "")


TRIAL: Final = Trial(
    name="hostile",
    counted="inputs",
    count=10_000,
    part=500,
    run=run,
    mutants=tuple(one.name for one in DOOR),
)
