"""What a reader of the file does not find: arguments, guessable ones by a key; errors, where they are switched off."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import json
import linecache
import os
from typing import TYPE_CHECKING, Any

import pytest
from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent_function

from idemreg import (
    AsyncRegistry,
    ChecksumKeyError,
    ChecksumMismatchError,
    FinishNotRecordedError,
    Registry,
    ResultError,
    Status,
    Verdict,
    Verified,
    batch,
)
from idemreg.command import run_command
from idemreg.each import Work
from idemreg.ext.asgi import IdempotencyMiddleware
from idemreg.ext.powertools import IdemregPersistenceLayer
from idemreg.feed import Line, LineTemplate
from idemreg.keyed import ChecksumKey
from idemreg.operations import Operations
from idemreg.signals import Relay
from idemreg.tagged import canonical
from tests.cli.driver import Cli
from tests.support.raw import connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = "correct horse battery staple"
SECRET = "4111 1111 1111 1111"  # noqa: S105 - of a card that is none


def checksums(path: Path) -> dict[str, str]:
    with Operations(path, create=False) as registry:
        return {task.task_id: task.checksum for task in registry.tasks()}


def mac(value: object) -> str:
    return hmac.new(KEY.encode(), canonical(value), "sha256").hexdigest()


# --- every way in ---------------------------------------------------------------------------------------------------


def by_decorator(registry: Registry) -> object:
    registry.idempotent("task")(lambda card: None)(SECRET)
    return {"card": SECRET}


def by_checksum(registry: Registry) -> object:
    registry.idempotent("task", checksum=lambda card: [card])(lambda card: None)(SECRET)
    return [SECRET]


def by_decorated_add(registry: Registry) -> object:
    registry.idempotent("task")(lambda card: None).add(SECRET)
    return {"card": SECRET}


def by_run(registry: Registry) -> object:
    registry.run("task", lambda: None, payload=SECRET)
    return SECRET


def by_claim(registry: Registry) -> object:
    with registry.claim("task", payload=SECRET):
        return SECRET


def by_add(registry: Registry) -> object:
    registry.add("task", payload=SECRET)
    return SECRET


def by_batch(registry: Registry) -> object:
    (claim,) = registry.claim_many([("task", SECRET)])
    with claim:  # type: ignore[union-attr]
        return SECRET


def by_consume(registry: Registry) -> object:
    assert list(registry.consume([SECRET], lambda _: None, task_id=lambda _: "task"))
    return SECRET


def by_command(registry: Registry) -> object:
    run_command(registry, "task", ["true", SECRET], payload=SECRET)
    return {"argv": ["true", SECRET], "payload": SECRET}


def by_coroutine(registry: Registry) -> object:
    async def main() -> None:
        jobs = AsyncRegistry.of(registry)

        @jobs.idempotent("task")
        async def job(card: str) -> None:
            """Nothing."""

        await job(SECRET)

    asyncio.run(main())
    return {"card": SECRET}


def by_coroutines_add(registry: Registry) -> object:
    async def main() -> None:
        await AsyncRegistry.of(registry).add("task", payload=SECRET)

    asyncio.run(main())
    return SECRET


WAYS = [
    by_decorator,
    by_checksum,
    by_decorated_add,
    by_run,
    by_claim,
    by_add,
    by_batch,
    by_consume,
    by_command,
    by_coroutine,
    by_coroutines_add,
]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_makes_its_checksums_with_the_key(path: Path, way: Callable[[Registry], object]) -> None:
    """HMAC-SHA256 over the canonical bytes; without a key SHA-256, as ever."""
    with Registry(path, checksum_key=KEY, durability="normal") as registry:
        covered = way(registry)
    assert checksums(path) == {"task": mac(covered)}
    plain = path.with_name("plain.db")
    with Registry(plain, durability="normal") as registry:
        way(registry)
    assert checksums(plain) == {"task": hashlib.sha256(canonical(covered)).hexdigest()}


def test_lines_requests_and_powertools_make_theirs_with_the_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is built on a registry has no checksum of its own: with another key each one differs."""
    seen: list[dict[str, str]] = []
    for number, key in enumerate((None, KEY, KEY, KEY[::-1])):
        file = path.with_name(f"{number}.db")
        with Registry(file, checksum_key=key, durability="normal") as registry:
            registry.run("plain", lambda: None, payload=SECRET)
            work = Work(registry, LineTemplate("line:{id}", None), {})
            with io.BytesIO(json.dumps({"id": 1, "card": SECRET}).encode()) as lines:
                handle_lines(work, lines)
            asyncio.run(request(registry))
            layer = IdemregPersistenceLayer(registry)
            use(layer, monkeypatch)
        seen.append(checksums(file))
    plain, keyed, again, other = seen
    assert len(plain) >= 4
    assert keyed == again
    for one, two in ((plain, keyed), (keyed, other), (plain, other)):
        assert one.keys() == two.keys()
        assert all(one[task_id] != two[task_id] for task_id in one)


def handle_lines(work: Work, lines: io.BytesIO) -> None:
    with Relay() as relay:
        handle = work.by_function(lambda _: None, relay, ended=None)
        assert handle(Line(1, lines.read(), 0))


async def request(registry: Registry) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": SECRET.encode(), "more_body": False}

    async def send(_message: Any) -> None:
        """To nobody."""

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/pay",
        "query_string": b"",
        "headers": [(b"idempotency-key", b'"key-1"')],
    }
    await IdempotencyMiddleware(app, registry=registry)(scope, receive, send)


class Context:
    """As much of a Lambda's as the utility asks for."""

    def get_remaining_time_in_millis(self) -> int:
        """Long enough."""
        return 60_000


def use(layer: IdemregPersistenceLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERTOOLS_DEV", "true")
    config = IdempotencyConfig(event_key_jmespath="id", payload_validation_jmespath="card")

    config.register_lambda_context(Context())  # type: ignore[arg-type]

    @idempotent_function(  # type: ignore[untyped-decorator]
        data_keyword_argument="event", persistence_store=layer, config=config
    )
    def pay(event: dict[str, object]) -> None:
        """Nothing."""

    pay(event={"id": 1, "card": SECRET})


# --- the right key, and no other ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "then"), [(None, KEY), (KEY, None), (KEY, KEY[::-1]), (KEY[::-1], KEY)])
def test_a_wrong_key_is_told_before_anything_is_compared(path: Path, first: str | None, then: str | None) -> None:
    """One error at opening, not a mismatch for each task; nothing runs, and nothing is stored with two keys."""
    with Registry(path, checksum_key=first, durability="normal") as registry:
        registry.run("task", lambda: 1, payload=SECRET, name="job")
    with pytest.raises(ChecksumKeyError, match="key"), Registry(path, checksum_key=then) as registry:
        registry.run("task", lambda: pytest.fail("the job started"), payload=SECRET, name="job")
    with Registry(path, checksum_key=first) as registry:
        assert registry.run("task", lambda: 2, payload=SECRET, name="job").replayed
        with pytest.raises(ChecksumMismatchError):
            registry.run("task", lambda: 2, payload=SECRET[:-1] + "2", name="job")


def test_a_registry_without_tasks_takes_a_key(path: Path) -> None:
    """As it does from the first task on; once there is one, it keeps the key."""
    for key in (None, KEY[::-1], None, KEY):
        Registry(path, checksum_key=key).open().close()
    with Registry(path, checksum_key=KEY.encode()) as registry:
        registry.add("task")
    with pytest.raises(ChecksumKeyError):
        Registry(path).open()


TAKERS: dict[str, Callable[[Registry], object]] = {
    "run": lambda registry: registry.run("task", lambda: pytest.fail("the job started"), name="job"),
    "claim": lambda registry: registry.claim("task", name="job", on_crash="rerun"),
    "batch": lambda registry: registry.claim_many([("task", None)], name="job"),
    "add": lambda registry: registry.add("task", name="job"),
}


@pytest.mark.parametrize("way", TAKERS)
@pytest.mark.parametrize("key", [None, KEY[::-1]])
def test_who_has_it_open_is_told_of_another_key(path: Path, key: str | None, way: str) -> None:
    """While there was no task another process took the registry over: no checksum of the former key is stored."""
    with Registry(path, checksum_key=KEY) as former:
        former.run("task", lambda: 1, name="job")  # so that it has an owner, and claims without a look at the rest
        former.forget("task")
        with Registry(path, checksum_key=key) as registry:
            registry.run("other", lambda: 1, name="job")
        with pytest.raises(ChecksumKeyError):
            TAKERS[way](former)
        assert former.get("task") is None
    with pytest.raises(ChecksumKeyError):
        Registry(path, checksum_key=KEY).open()


def test_who_only_looks_needs_no_key(path: Path) -> None:
    """An operator asks and decides without it: nothing that he does makes a checksum."""
    with Registry(path, checksum_key=KEY) as registry:
        registry.add("task", payload=SECRET)
    with Operations(path, create=False) as operator:
        operator.skip("task", "not needed")
        assert operator.get("task") is not None


def test_the_file_holds_neither_key_nor_arguments(path: Path) -> None:
    """Nor more of the key than 16 bits, and no representation shows it."""
    with Registry(path, checksum_key=KEY, error_detail="type") as registry:
        with pytest.raises(ValueError, match=SECRET):
            registry.run("task", lambda: int(SECRET), payload=SECRET)
        shown = repr(registry) + repr(registry.checked({})) + repr(registry.terms(registry.checked({})))
        content = b"".join(path.with_name(name).read_bytes() for name in os.listdir(path.parent))
    for secret in (KEY, SECRET, hashlib.sha256(canonical(SECRET)).hexdigest()):
        assert secret.encode() not in content
        assert secret not in shown
    assert len(ChecksumKey(KEY).note) == 4


@pytest.mark.parametrize("key", ["", "short", b"fifteen bytes..", 16, bytearray(32)])
def test_what_is_no_key_is_refused_at_once(path: Path, key: Any) -> None:
    """Too short to be safe, or of no type that means the same everywhere."""
    with pytest.raises((ValueError, TypeError), match="checksum_key"):
        Registry(path, checksum_key=key)


def test_an_export_carries_the_note_of_its_key(path: Path) -> None:
    """Moved into an empty registry the tasks are still those of the key; beside tasks of another they are refused."""
    with Registry(path, checksum_key=KEY, durability="normal") as registry:
        registry.run("task", lambda: 1, payload=SECRET, name="job")
        lines = list(registry.export_lines())
    moved, other = path.with_name("moved.db"), path.with_name("other.db")
    with Operations(moved) as registry:
        registry.import_lines(lines)
    with Registry(moved, checksum_key=KEY) as registry:
        assert registry.run("task", lambda: 2, payload=SECRET, name="job").replayed
    with Registry(other, durability="normal") as registry:
        registry.add("there")
        with pytest.raises(ChecksumKeyError):
            registry.import_lines(lines)
        assert registry.get("task") is None


# --- errors ---------------------------------------------------------------------------------------------------------


class CardError(Exception):
    """Says what it should not."""


def fail() -> None:
    raise CardError(SECRET)


@pytest.mark.parametrize(
    ("detail", "has_message", "has_place"),
    [("traceback", True, True), ("message", True, False), ("type", False, False)],
)
def test_an_error_is_stored_as_far_as_it_may_be(path: Path, detail: Any, has_message: bool, has_place: bool) -> None:  # noqa: FBT001
    """However the job ended by it: failed, unknown, interrupted, dropped in a batch, or in a verify hook."""

    def interrupt() -> None:
        raise KeyboardInterrupt(SECRET)

    def verify(_task: object) -> Verified:
        raise CardError(SECRET)

    def lose() -> object:
        return object()

    with Registry(path, error_detail=detail, durability="normal") as registry:
        for task_id, job, options, raised in (
            ("failed", fail, {}, CardError),
            ("unknown", fail, {"unknown_on": CardError}, CardError),
            ("interrupted", interrupt, {}, KeyboardInterrupt),
            ("lost", lose, {}, ResultError),
        ):
            with pytest.raises(raised):
                registry.run(task_id, job, **options)  # type: ignore[arg-type]
        with pytest.raises(CardError), registry.claim("block"):
            fail()
        with pytest.raises(CardError), registry.claim("effects") as claim, claim.transaction():
            fail()
        registry.idempotent("verified", on_crash="verify", verify=lambda _task: True)
        with pytest.raises(KeyboardInterrupt):
            registry.run("verified", interrupt, on_crash="verify", verify=verify)
        with pytest.raises(Exception):  # noqa: B017 - whatever the hook's own error becomes
            registry.run("verified", interrupt, on_crash="verify", verify=verify)
        rows = {task.task_id: task for task in registry.tasks()}
    assert rows["verified"].verdict is Verdict.CANNOT_TELL
    for task_id, row in rows.items():
        text = (row.error or "") if task_id != "verified" else (row.error or "") + (row.evidence or "")
        assert "Error" in text or "KeyboardInterrupt" in text
        if task_id != "lost":
            assert (SECRET in text) is has_message, (task_id, text)
            assert (__file__ in text) is has_place, (task_id, text)
    assert ("object" in (rows["lost"].error or "")) is has_message


class HeavyError(MemoryError):
    """As of an allocation that fails behind a job, with text of the job's in it."""


def test_an_interrupted_batch_stores_no_more_of_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes behind a job of a batch is told as all else: without memory for its end, say."""

    def lacks_memory(*_: object) -> None:
        raise HeavyError(SECRET)

    with Registry(path, error_detail="type", durability="normal") as registry:
        monkeypatch.setattr(batch, "success_end", lacks_memory)
        with pytest.raises(HeavyError):
            list(registry.consume(["one"], lambda _: None, task_id=str))
        row = registry.get("one")
    assert row is not None
    assert (row.status, SECRET in (row.error or "")) == (Status.UNKNOWN, False)
    assert (row.error or "").endswith("HeavyError")


@pytest.mark.parametrize("way", ["one", "many"])
def test_an_end_that_cannot_be_stored_says_no_more_of_it(path: Path, way: str) -> None:
    """The store's own error as well: not where it came from, nor what it quotes."""
    blocker = connect(path)
    with Registry(path, error_detail="type", durability="normal", busy_timeout=0) as registry:
        claim: Any = registry.claim_many([("one", None)], name="job")[0] if way == "many" else registry.claim("one")
        claim.enter()
        blocker.execute("BEGIN IMMEDIATE")
        if way == "many":
            (error,) = registry.finish_many([(claim, 1)])
            assert isinstance(error, FinishNotRecordedError)
        else:
            with pytest.raises(FinishNotRecordedError):
                claim.succeed(1)
        blocker.execute("ROLLBACK")
        blocker.close()
        registry.add("other")
        row = registry.get("one")
    assert row is not None
    assert (row.error or "").endswith("but storing that failed: idemreg.errors.StoreBusyError")


@pytest.mark.parametrize("detail", ["", "none", None, True])
def test_what_is_no_detail_is_refused_at_once(path: Path, detail: Any) -> None:
    """Before a secret is stored by a typing error."""
    with pytest.raises(ValueError, match="error_detail"):
        Registry(path, error_detail=detail)


def test_a_huge_error_is_bounded(registry: Registry) -> None:
    """Whatever its message, and however many its frames."""

    def dig(depth: int) -> None:
        if not depth:
            raise CardError(SECRET * 100_000)
        dig(depth - 1)

    with pytest.raises(CardError):
        registry.run("task", lambda: dig(200))
    row = registry.get("task")
    assert row is not None
    assert row.status is Status.FAILED
    assert len(row.error or "") <= 4_096


def test_a_huge_traceback_is_bounded(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its lines of source: generated code may have all of itself in one."""
    source = f"def job(): raise ValueError('short')  # {'x' * 100_000}\n"
    monkeypatch.setitem(linecache.cache, "<generated>", (len(source), None, [source], "<generated>"))
    made: dict[str, Any] = {}
    exec(compile(source, "<generated>", "exec"), made)  # noqa: S102 - as whoever generates code does
    with pytest.raises(ValueError, match="short"):
        registry.run("task", made["job"])
    row = registry.get("task")
    assert row is not None
    assert row.status is Status.FAILED
    error = row.error or ""
    assert error.startswith("ValueError: short\n")
    assert "<generated>" in error
    assert len(error) == 4_096
    assert error.endswith("xxx…")


def test_a_result_whose_loss_has_a_name_that_is_no_text_is_stored_as_lost(registry: Registry) -> None:
    """What the error quotes of it may be anything, and of any length."""
    for task_id, key in (("surrogate", "\ud800"), ("long", "x" * 100_000)):
        with pytest.raises(ResultError):
            registry.run(task_id, lambda key=key: {key: object()})  # type: ignore[misc]
        row = registry.get(task_id)
        assert row is not None
        assert row.status is Status.SUCCEEDED
        assert (row.error or "").startswith("ResultError: ")
        assert len(row.error or "") <= 1_000


@pytest.mark.parametrize("name", ["\ud800", "x" * 1_001, 7, None, b"job"])
def test_a_name_that_cannot_be_stored_is_refused_at_once(registry: Registry, name: Any) -> None:
    """Before anything runs, and by an error that says so."""
    for call in (registry.claim, registry.add):
        with pytest.raises((ValueError, TypeError), match="name"):
            call("task", name=name)
    if name is not None:
        with pytest.raises((ValueError, TypeError), match="name"):  # a decorated job is refused at decoration
            registry.idempotent("task", name=name)(lambda: None)
    with pytest.raises(ValueError, match="name is no valid Unicode"):
        list(registry.tasks(name="\ud800"))


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def cli(path: Path) -> Cli:
    return Cli(path)


def test_commands_take_the_key_from_a_file_or_their_environment(cli: Cli, path: Path, tmp_path: Path) -> None:
    """Never as a word; the commands that they run do not find it."""
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    script = 'test -z "$IDEMREG_CHECKSUM_KEY"'
    done = cli.process("run", "--checksum-key-file", str(key), "task", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert checksums(path) == {"task": mac({"argv": ["sh", "-c", script], "payload": None})}
    done = cli.process("run", "task", "--", "sh", "-c", script, IDEMREG_CHECKSUM_KEY=KEY)
    assert done.returncode == 0, done.stderr
    for options, variables in (
        ([], {}),
        ([], {"IDEMREG_CHECKSUM_KEY": KEY[::-1]}),
        (["--checksum-key-file", "/dev/null"], {}),
    ):
        refused = cli.process("run", *options, "task", "--", "sh", "-c", script, **variables)
        assert refused.returncode in (2, 74)
        assert "key" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert cli.process("list").returncode == 0


@pytest.mark.parametrize("what", ["missing", "folder", "fifo", "huge", "short"])
def test_a_key_file_that_is_none_is_refused(cli: Cli, tmp_path: Path, what: str) -> None:
    """At once, and nothing is created."""
    key = tmp_path / "key"
    if what == "folder":
        key.mkdir()
    elif what == "fifo":
        os.mkfifo(key)
    elif what == "huge":
        key.write_bytes(b"x" * 5_000)
    elif what == "short":
        key.write_text("short\n")
    refused = cli.process("run", "--checksum-key-file", str(key), "task", "--", "true")
    assert refused.returncode in (2, 74)
    assert refused.stderr.startswith("idemreg: ")
    assert not cli.path.exists()


def test_a_commands_output_can_be_kept_out_of_the_file(cli: Cli, path: Path) -> None:
    """It passes through, and nothing of it is stored; a replay is silent, and has the exit code."""
    words = ("run", "--no-output", "task", "--", "sh", "-c", f"echo {SECRET!r}; exit 3")
    first, second = cli.process(*words), cli.process("run", "--on-failure", "hold", *words[1:])
    assert first.returncode == second.returncode == 3
    assert SECRET in first.stdout
    with Operations(path, create=False) as registry:
        row = registry.get("task")
        assert row is not None
        assert SECRET not in (row.result or "") + (row.error or "")


def test_an_error_of_a_function_can_be_kept_out_of_the_file(cli: Cli, path: Path, tmp_path: Path) -> None:
    """For each line of `idemreg each`, which tells it to whoever has started it all the same."""
    (tmp_path / "secretive.py").write_text(f"def fail(line): raise ValueError({SECRET!r})\n")
    (tmp_path / "lines").write_text('{"id": 1}\n')
    words = ("each", "--task-id", "{id}", "--python", "secretive:fail", "--error-detail", "type")
    done = cli.process(*words, script=f'cd {tmp_path} && "$@" <lines')
    assert done.returncode == 1, done.stderr
    with Operations(path, create=False) as registry:
        row = registry.get("1")
        assert row is not None
        assert row.error == "ValueError"
