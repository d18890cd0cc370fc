"""Salvage: the arguments that are kept of tasks which asked to be rerun are in the copy as well, and no others are."""

from __future__ import annotations

import json
import os
import random
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from idemreg import Registry, Status, TaskUnknownError, Verdict
from idemreg.acquiring import put_back_granted
from idemreg.deciding import Wanted
from idemreg.doctor import examine
from idemreg.doctor import salvage as salvages
from idemreg.doctor.salvage import salvage
from idemreg.model import OnCrash, Policy
from idemreg.recovery import Kept
from idemreg.sqlite.gaps import Gaps
from idemreg.sqlite.kept_rows import ARGUMENTS, KeptRows
from idemreg.sqlite.making import PAGE_BYTES
from idemreg.sqlite.salvaging import TABLES
from idemreg.sqlite.seals import TASK_COLUMNS, values_seal
from idemreg.store import End, Granted
from tests.cli.driver import Cli
from tests.support.processes import Script
from tests.support.raw import connect
from tests.test_recovery import ARGUMENTS as CALLED_WITH
from tests.test_recovery import CALL, WORKER, Job, kept, only
from tests.test_salvage_held import alter, clear, lose_frames, page_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg import Task
    from idemreg.doctor.salvage import Salvaged

WAL_HEADER = 32
KEY = b"a key of 32 bytes for checksums "
WORDS = '{"argv":["true"]}'  # of a command: here only whether they are there counts


def killed(path: Path, on_crash: str = "rerun", key: str = "None") -> None:
    """A worker dies in the middle of the job."""
    verify = ", verify=lambda _: False" if on_crash == "verify" else ""
    source = WORKER.replace("Registry(sys.argv[1])", f"Registry(sys.argv[1], checksum_key={key})")
    with Script(source, path, f"dict(on_crash={on_crash!r}, recover=True{verify})", CALL) as worker:
        worker.expect("begun")
        worker.kill()


def fail() -> None:
    msg = "no luck"
    raise ValueError(msg)


def failed(path: Path, *users: int) -> None:
    """Tasks of which arguments are kept, and which an operator has allowed one more attempt."""
    with Registry(path) as registry:
        job = Job(registry, fail)
        for user in users:
            with pytest.raises(ValueError, match="no luck"):
                job.call(user)
            registry.retry(f"t:{user}")


def claimed(path: Path, task_id: str, arguments: Kept | None, *, policy: Policy | None = None) -> None:
    """A task that failed with these, and that may be claimed again."""
    with Registry(path) as registry:
        wanted = Wanted(task_id, "job", "1" * 64, policy or Policy(OnCrash.RERUN), kept=arguments)
        (claim,) = registry.store.claim([wanted])
        assert isinstance(claim, Granted)
        registry.store.finish([End(task_id, claim.token, claim.owner, Status.FAILED, claim.attempt, None, "no luck")])


def row(path: Path, task_id: str = "t:7") -> Task:
    with Registry(path) as registry:
        task = registry.get(task_id)
        assert task is not None
        return task


def swept(path: Path) -> list[Any]:
    """With which arguments a sweep runs tasks there."""
    with Registry(path) as registry:
        job = Job(registry)
        registry.sweep()
    return job.calls


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.db"


# --- from a file to its copy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "keyed"])
@pytest.mark.parametrize("on_crash", ["rerun", "hold", "verify"])
def test_a_task_is_rerun_in_the_copy_once_somebody_says_that_it_did_not_happen(
    path: Path, out: Path, on_crash: str, key: bytes | None
) -> None:
    """And not before, whatever its policy: it was running, nobody knows, and no hook is asked by itself."""
    killed(path, on_crash, repr(key))
    assert salvage(path, out).gaps.are_none
    asked: list[Task] = []

    def verify(task: Task) -> bool:
        asked.append(task)
        return False

    with Registry(out, checksum_key=key) as registry:
        options: dict[str, Any] = {"verify": verify} if on_crash == "verify" else {}
        job = Job(registry, on_crash=on_crash, **options)
        task = registry.get("t:7")
        assert task is not None
        assert (task.status, task.verdict) == (Status.UNKNOWN, Verdict.CANNOT_TELL)
        assert task.policy.keeps_arguments
        for _ in range(2):
            assert registry.sweep() == []
        if on_crash != "verify":  # where a call asks the hook
            args, kwargs = CALLED_WITH
            with pytest.raises(TaskUnknownError):
                job.call(*args, **kwargs)
        assert (job.calls, asked) == ([], [])
        registry.resolve("t:7", "did-not-happen")
        one = only(registry.sweep())
        assert (one.did, one.status, one.error) == ("rerun", Status.SUCCEEDED, None)
        assert job.calls == [CALLED_WITH]
        assert registry.sweep() == []
    assert kept(out) == []


def test_in_the_place_of_the_damaged_file_it_goes_on(path: Path, out: Path) -> None:
    """Beside the lock file that is there."""
    killed(path)
    salvage(path, out)
    for end in ("-wal", "-shm"):
        os.unlink(f"{path}{end}")
    os.replace(out, path)
    with Registry(path) as registry:
        job = Job(registry)
        assert registry.sweep() == []
        registry.resolve("t:7", "did-not-happen")
        assert only(registry.sweep()).status is Status.SUCCEEDED
        assert job.calls == [CALLED_WITH]


def test_what_a_sweep_would_run_in_the_file_it_runs_in_the_copy(path: Path, out: Path) -> None:
    """An operator had allowed it, or it was interrupted while its owner lived; a failure alone waits for its caller."""
    failed(path, 1)
    with Registry(path) as registry:
        job = Job(registry, fail)
        with pytest.raises(ValueError, match="no luck"):
            job.call(2)

        def interrupt() -> None:
            raise KeyboardInterrupt

        job.body = interrupt
        with pytest.raises(KeyboardInterrupt):
            job.call(3)
    assert salvage(path, out).gaps.are_none
    assert kept(out) == kept(path)
    assert len(kept(out)) == 3
    assert {one.code for one in examine(out)} >= {"rerun-waiting"}
    assert [args for args, _ in swept(out)] == [(1,), (3,)]


def test_arguments_of_many_tasks_come_out(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some at a time: each may be as large as a result."""
    monkeypatch.setattr(salvages, "KEPT_AT_ONCE", 2)
    failed(path, *range(5))
    assert salvage(path, out).gaps.are_none
    assert kept(out) == kept(path)
    assert len(swept(out)) == 5


def test_large_arguments_come_out(path: Path, out: Path) -> None:
    """They go on in pages of their own."""
    claimed(path, "t", Kept(is_command=True, arguments=json.dumps(["x" * 100_000])))
    assert salvage(path, out).gaps.are_none
    assert kept(out) == kept(path)


def test_no_other_task_has_arguments_in_the_copy(path: Path, out: Path) -> None:
    """None that is final, or whose last claim kept none, or that is not there: and nothing of those is missing."""
    with Registry(path) as registry:
        Job(registry).call(1)
    claimed(path, "none-kept", None)
    connection = connect(path)
    for task_id in ("t:1", "none-kept", "not-there"):
        values = task_id, 0, "{}"
        connection.execute(f"INSERT INTO {ARGUMENTS} VALUES (?, ?, ?, ?)", (*values, values_seal(values)))  # noqa: S608
    connection.close()
    assert salvage(path, out).gaps.are_none
    assert kept(out) == []
    assert not row(out, "t:1").policy.keeps_arguments


def test_a_row_that_binds_nobody_misses_nothing(path: Path, out: Path) -> None:
    """Its first claim was put back before anything ran, and its arguments went with that: its policy alone tells."""
    with Registry(path) as registry:
        wanted = Wanted("t", "job", "1" * 64, Policy(OnCrash.RERUN), kept=Kept(is_command=True, arguments=WORDS))
        put_back_granted(registry.store, registry.store.claim([wanted]))
    assert row(path, "t").policy.keeps_arguments
    assert kept(path) == []
    assert salvage(path, out).gaps.are_none
    assert not row(out, "t").policy.keeps_arguments


# --- what is lost -----------------------------------------------------------------------------------------------


def check_lost(path: Path, out: Path) -> Salvaged:
    """It is told, nothing looks for them in the copy, and the task can still be called."""
    done = salvage(path, out)
    assert (done.gaps.without_arguments, done.gaps.tasks_without_arguments) == (("t:7",), 1)
    assert kept(out) == []
    assert not row(out).policy.keeps_arguments
    with Registry(out) as registry:
        if registry.get("t:7").status is Status.UNKNOWN:  # type: ignore[union-attr]
            registry.resolve("t:7", "did-not-happen")
        job = Job(registry)
        assert registry.sweep() == []
        job.call(7)
        assert len(job.calls) == 1
    return done


def test_arguments_whose_seal_fails_are_a_gap(path: Path, out: Path) -> None:
    """No task is rerun with others than it was called with; the page is told as damaged."""
    failed(path, 7)
    alter(path, f"UPDATE {ARGUMENTS} SET arguments = replace(arguments, '7', '8')")  # noqa: S608 - a constant
    assert check_lost(path, out).gaps.damaged_pages == (page_of(path, ARGUMENTS) + 1,)


def test_arguments_on_a_page_that_is_gone_are_a_gap(path: Path, out: Path) -> None:
    """The row of the task says that some were kept."""
    failed(path, 7)
    clear(path, ARGUMENTS)
    check_lost(path, out)


def test_arguments_that_a_final_task_had_are_no_gap(path: Path, out: Path) -> None:
    """Nobody needs them; that the page is damaged is told."""
    with Registry(path) as registry:
        Job(registry).call(7)
    clear(path, ARGUMENTS)
    gaps = salvage(path, out).gaps
    assert (gaps.without_arguments, gaps.damaged) == ((), 1)


def test_no_damaged_byte_loses_arguments_without_a_word(path: Path, out: Path) -> None:
    """Also where the record cannot be decoded any more, or has another kind of value, or another number of them."""
    failed(path, 1, 2, 3)
    begin = page_of(path, ARGUMENTS) * PAGE_BYTES
    content, whole = path.read_bytes(), kept(path)
    first = begin + int.from_bytes(content[begin + 5 : begin + 7], "big")  # where the records begin
    dice = random.Random(1)  # noqa: S311 - for a test
    for _ in range(40):
        damaged = bytearray(content)
        damaged[dice.randrange(first, begin + PAGE_BYTES)] = dice.choice([0, 1, 9, 127, 128, 255])
        path.write_bytes(damaged)
        for file in out.parent.glob("out.db*"):
            file.unlink()
        gaps = salvage(path, out).gaps
        found = kept(out)
        assert len(found) + gaps.tasks_without_arguments == 3
        assert set(found) <= set(whole)


def test_the_command_tells_of_tasks_without_their_arguments(path: Path, out: Path) -> None:
    """With exit code 1, in a sentence and as JSON."""
    failed(path, 7, 8)
    clear(path, ARGUMENTS)
    cli = Cli(path)
    told = cli("doctor", "--salvage", str(out))
    assert told.exit_code == 1
    said = "kept arguments are not in the copy, and no sweep reruns their tasks: t:7, t:8"
    assert said in " ".join(told.stdout.split())
    gaps = json.loads(cli("doctor", "--json", "--salvage", f"{out}2").stdout)["gaps"]
    assert (gaps["without_arguments"], gaps["tasks_without_arguments"]) == (["t:7", "t:8"], 2)


# --- which row of several ---------------------------------------------------------------------------------------


def test_what_may_be_an_older_copy_is_no_command(path: Path, out: Path) -> None:
    """Frames are lost: a rerun compares a function's arguments with the task's checksum, but not a command's words."""
    failed(path, 7)
    claimed(path, "command", Kept(is_command=True, arguments=WORDS))
    lose_frames(path)
    gaps = salvage(path, out).gaps
    assert gaps.lost_frames
    assert (gaps.without_arguments, gaps.tasks_without_arguments) == (("command",), 1)
    assert [task_id for task_id, *_ in kept(out)] == ["t:7"]
    assert {row(out, task_id).status for task_id in ("t:7", "command")} == {Status.UNKNOWN}
    assert swept(out) == []
    with Registry(out) as registry:
        registry.resolve("t:7", "did-not-happen")
    assert len(swept(out)) == 1


@pytest.mark.parametrize("mode", [0o660, 0o602])
def test_commands_that_others_may_have_written_stay_behind(path: Path, out: Path, mode: int) -> None:
    """The copy is this user's own, so a watch would execute them there. The arguments of functions are no code."""
    failed(path, 7)
    claimed(path, "command", Kept(is_command=True, arguments=WORDS))
    path.chmod(mode)
    assert salvage(path, out).gaps.without_arguments == ("command",)
    assert [task_id for task_id, *_ in kept(out)] == ["t:7"]


def staged(*policies: tuple[str, Policy]) -> apsw.Connection:
    connection = apsw.Connection("")
    connection.execute(f"CREATE TABLE log ({', '.join(TASK_COLUMNS)})")
    for task_id, policy in policies:
        connection.execute(
            "INSERT INTO log (task_id, status, checksum, policy) VALUES (?, 2, '1', ?)", (task_id, policy.pack())
        )
    return connection


def record(task_id: str, is_command: int, arguments: str) -> list[Any]:
    values = [task_id, is_command, arguments]
    return [*values, values_seal(values)]


@pytest.mark.parametrize("first", [True, False])
def test_the_sure_one_of_several_is_taken(*, first: bool) -> None:
    """In whatever order they are found."""
    rows = KeptRows(staged(("t", Policy(keeps_arguments=True))), takes_commands=True)
    found = {True: record("t", 1, "sure"), False: record("t", 0, "older")}
    for is_sure in (first, not first):
        assert rows.take(found[is_sure], ARGUMENTS, is_sure=is_sure)
    assert rows.settle(Gaps()).are_none
    assert list(rows.all()) == [("t", Kept(is_command=True, arguments="sure"))]


@pytest.mark.parametrize(
    ("change", "table", "taken"),
    [
        (lambda values: values, ARGUMENTS, True),
        (lambda values: values, None, True),  # nothing leads to its page
        (lambda values: values, "idempotent_serial", None),
        (lambda values: values, "", None),
        (lambda values: values[:3], ARGUMENTS, False),
        (lambda values: [*values, 1], ARGUMENTS, False),
        (lambda _: [], ARGUMENTS, False),
        (lambda _: ["t"], ARGUMENTS, False),
        (lambda _: record("t", 2, "{}"), ARGUMENTS, False),
        (lambda _: record("t", 0, 7), ARGUMENTS, False),  # type: ignore[arg-type]
        (lambda _: record(7, 0, "{}"), ARGUMENTS, False),  # type: ignore[arg-type]
        (lambda values: [*values[:3], None], ARGUMENTS, False),
        (lambda values: [values[0], 1.0, *values[2:]], ARGUMENTS, False),
        (lambda values: [*values[:3], None], None, None),
        (lambda _: record("prefix", 1, 7), None, None),  # type: ignore[arg-type] # the mark of a serial
    ],
)
def test_only_a_row_as_it_was_written_is_one_of_arguments(
    change: Callable[[list[Any]], list[Any]],
    table: str | None,
    taken: bool | None,  # noqa: FBT001 - as the others
) -> None:
    """In its table anything else is damage; elsewhere it is another table's."""
    rows = KeptRows(staged(), takes_commands=True)
    assert rows.take(change(record("t", 0, "{}")), table, is_sure=True) is taken


def test_marks_of_serials_and_arguments_are_told_from_each_other(path: Path, out: Path) -> None:
    """Both have four columns; also where the schema is lost, so that nothing says whose page it is."""
    failed(path, 7)
    with Registry(path) as registry:
        first = registry.serials("COUP").next()
    content = bytearray(path.read_bytes())
    content[100:PAGE_BYTES] = bytes(PAGE_BYTES - 100)  # the tree of the schema, behind the header
    path.write_bytes(content)
    salvage(path, out)
    assert [task_id for task_id, *_ in kept(out)] == ["t:7"]
    with Registry(out) as registry:
        assert registry.serials("COUP").next() > first


def test_a_copy_of_the_table_in_one_of_ones_own_is_none_of_it(path: Path, out: Path) -> None:
    """Where the schema names every table: what was kept before a task was forgotten does not come back."""
    failed(path, 7)
    connection = connect(path)
    connection.execute(f"CREATE TABLE own AS SELECT * FROM {ARGUMENTS}; DELETE FROM {ARGUMENTS}")  # noqa: S608
    connection.close()
    assert ARGUMENTS in TABLES
    assert salvage(path, out).gaps.without_arguments == ("t:7",)
    assert kept(out) == []
