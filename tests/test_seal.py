"""Seals and page checksums: a damaged row or page is a typed error, never an answer, and never an execution."""

from __future__ import annotations

import contextlib
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import apsw
import pytest

from idemreg import (
    Claim,
    FinishNotRecordedError,
    IdemregError,
    Registry,
    Status,
    StoreCorruptError,
    StoreError,
    StoreVersionError,
    SyncFailedError,
)
from idemreg.sqlite import pages, rows, seals
from idemreg.sqlite.seals import TASK_COLUMNS, claim_seal, running_seal, state_seal, success_seal, values_seal
from idemreg.store import End
from tests.support.processes import Script
from tests.support.raw import connect, reseal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from idemreg.sqlite.backend import SqliteStore

NORMAL: dict[str, Any] = {"durability": "normal"}
MEMORY = "/dev/shm"  # noqa: S108 - not a temporary file: a file system in memory


def never() -> int:
    pytest.fail("the body was entered")


@pytest.fixture
def at_work(path: Path) -> Iterator[None]:
    """Another process has the registry open: so nobody is the first to open it, who would look at the whole."""
    with kept_open(path):
        yield


@contextlib.contextmanager
def kept_open(path: Path) -> Iterator[None]:
    script = "from idemreg import Registry\nregistry = Registry(sys.argv[1]).open(); say('open'); wait()"
    with Script(script, path) as other:
        other.expect("open")
        yield


def tamper(path: Path, statement: str, *, seal: bool = False) -> None:
    """Through a connection that keeps the page checksums right, so that nothing but the seal can tell."""
    connection = connect(path)
    connection.pragma("ignore_check_constraints", 1)
    connection.execute(statement)
    if seal:
        reseal(connection)
    connection.close()


# --- what a seal covers -----------------------------------------------------------------------------------------


def test_the_short_ways_to_a_seal_are_the_same_seal() -> None:
    """A new row's and a plain success's are what the general function says, so that whoever verifies need not know."""
    assert running_seal("t", 3, 7, 1, 99, 5, 6) == state_seal("t", 3, 7, 1, 99, None, 5, 6, None, None)
    assert success_seal("t", 7, 1, 5, 6, "[1]") == state_seal("t", 1, 7, 1, None, None, 5, 6, "[1]", None)
    assert claim_seal("t", "n", "c", 1, None) == claim_seal("t", "n", "c", 1, None, None, None, None)


def test_values_are_told_from_their_neighbours() -> None:
    """No two rows have one seal because a text ends where another begins, or says "None"."""
    assert claim_seal("ab", "c", "", 1, None) != claim_seal("a", "bc", "", 1, None)
    assert claim_seal("a", "b", "", 1, None, None, "x", None) != claim_seal("a", "b", "", 1, None, None, None, "x")
    assert claim_seal("a", "b", "", 1, None, None, "", None) != claim_seal("a", "b", "", 1, None)
    state = ("t", 1, 7, 1, None, None, 5, 6)
    assert len({state_seal(*state, *texts) for texts in (("a", "b"), ("ab", None), (None, "ab"), ("ab", ""))}) == 4
    assert state_seal(*state, "None", None) != state_seal(*state, None, None)
    assert values_seal((1, "2")) != values_seal((12, ""))
    assert values_seal((None,)) != values_seal(("None",))


def test_a_seal_takes_four_bytes() -> None:
    """It is a signed number of 32 bits: SQLite would take six bytes for half of the unsigned ones."""
    found = [values_seal((number,)) for number in range(1_000)]
    assert all(-(2**31) <= seal < 2**31 for seal in found)
    assert min(found) < 0 < max(found)


# --- every column of a task, and every kind of call -------------------------------------------------------------

CHANGES = {
    "task_id": "'u'",
    "status": "5",
    "checksum": "replace(checksum, substr(checksum, 1, 1), 'f0')",
    "updated_at": "updated_at + 1",
    "boot_stamp": "boot_stamp + 1",
    "name": "'joc'",
    "token": "token + 1",
    "attempt": "2",
    "owner": "1",
    "policy": "policy + 16",
    "keep_ms": "1",
    "result": "'8'",
    "error": "'oh'",
    "verdict": "1",
    "settled_by": "'me'",
    "evidence": "'it'",
    "is_large": "1",
    "note": "3",
    "claim_seal": "claim_seal + 1",
    "state_seal": "state_seal - 1",
}

# What a replay does not look at: not what it is answered from.
BESIDE = {"policy", "keep_ms", "settled_by", "evidence", "is_large", "note", "claim_seal"}

CALLS: dict[str, Callable[[Registry, str, Path], object]] = {
    "run": lambda registry, task_id, _: registry.run(task_id, never, name="job"),
    "claim": lambda registry, task_id, _: registry.claim(task_id, name="job"),
    "batch": lambda registry, task_id, _: registry.claim_many([(task_id, None)], name="job"),
    "add": lambda registry, task_id, _: registry.add(task_id, name="job"),
    "get": lambda registry, task_id, _: registry.get(task_id),
    "list": lambda registry, _, __: list(registry.tasks()),
    "resolve": lambda registry, task_id, _: registry.resolve(task_id, "happened"),
    "cancel": lambda registry, task_id, _: registry.cancel(task_id),
    "forget": lambda registry, task_id, _: registry.forget(task_id, force=True),
    "purge": lambda registry, _, __: registry.purge(older_than=0),
    "export": lambda registry, _, __: list(registry.export_lines()),
}


def test_every_column_is_tried() -> None:
    """The list of changes is the list of columns."""
    assert list(CHANGES) == list(TASK_COLUMNS)


@pytest.mark.usefixtures("at_work")
@pytest.mark.parametrize("column", CHANGES)
def test_a_changed_column_is_an_error(path: Path, column: str) -> None:
    """Whatever is asked of the row: a typed error that names the task, and nothing is run or removed."""
    with Registry(path, **NORMAL) as registry:
        registry.run("t", lambda: 7, name="job", keep_for=0)
    tamper(path, f"UPDATE idempotent_log SET {column} = {CHANGES[column]}")  # noqa: S608
    task_id = "u" if column == "task_id" else "t"
    for name, call in CALLS.items():
        with Registry(path, **NORMAL) as registry:
            if name == "run" and column in BESIDE:
                assert registry.run(task_id, never, name="job").result == 7
                continue
            if name == "purge" and column == "status" and CHANGES[column] not in {"1", "5", "6"}:
                continue
            with pytest.raises(StoreCorruptError) as caught:
                call(registry, task_id, path)
            assert caught.value.task_id == task_id, name
            assert "salvage" in caught.value.hint
    connection = connect(path)
    assert connection.execute("SELECT count(*) FROM idempotent_log").fetchall() == [(1,)]
    connection.close()


@pytest.mark.usefixtures("at_work")
@pytest.mark.parametrize(
    "value", ["CAST(x'ff' AS TEXT)", "''", "CAST(x'edb080' AS TEXT)"], ids=["no UTF-8", "empty", "surrogate"]
)
def test_a_damaged_text_is_an_error(path: Path, value: str) -> None:
    """Also one that is no text at all any more."""
    with Registry(path, **NORMAL) as registry:
        registry.run("t", lambda: 7, name="job")
    tamper(path, f"UPDATE idempotent_log SET result = {value}")  # noqa: S608
    for call in ("run", "claim", "get", "list", "purge"):
        with Registry(path, **NORMAL) as registry, pytest.raises(StoreCorruptError):
            CALLS[call](registry, "t", path)


@pytest.mark.usefixtures("at_work")
@pytest.mark.parametrize("column", ["result", "error"])
def test_a_large_value_is_under_the_seal_of_its_row(path: Path, column: str) -> None:
    """Although it lies in another table."""
    with Registry(path, **NORMAL) as registry:
        registry.run("t", lambda: "x" * 1_000, name="job")
    tamper(path, f"UPDATE idempotent_large SET {column} = coalesce(replace({column}, 'xx', 'xy'), 'oh')")  # noqa: S608
    for call in ("run", "claim", "get", "list"):
        with Registry(path, **NORMAL) as registry, pytest.raises(StoreCorruptError):
            CALLS[call](registry, "t", path)


RUNNING = [("status", "4"), ("token", "token + 1"), ("owner", "owner + 1"), ("attempt", "9"), ("policy", "161")]


@pytest.mark.usefixtures("at_work")
@pytest.mark.parametrize(("column", "value"), RUNNING)
def test_a_running_row_that_was_changed_is_not_taken_over(path: Path, column: str, value: str) -> None:
    """Its owner is dead: by what the row says now another would run it."""
    die(path)
    tamper(path, f"UPDATE idempotent_log SET {column} = {value}")  # noqa: S608
    with Registry(path, **NORMAL) as registry, pytest.raises(StoreCorruptError):
        registry.run("t", never, name="job", on_crash="rerun")


def die(path: Path) -> None:
    script = """
        from idemreg import Registry
        claim = Registry(sys.argv[1], durability="normal").claim("t", name="job", on_crash="rerun")
        say("claimed")
        wait()
    """
    with Script(script, path) as process:
        process.expect("claimed")
        process.kill()


OWNER = (
    *("lock_id", "boot_id", "pid", "pid_ns", "time_ns", "started", "host", "command"),
    *("notes_at", "notes", "claims", "seal"),
)


@pytest.mark.usefixtures("at_work")
@pytest.mark.parametrize("column", OWNER)
def test_a_changed_record_of_an_owner_proves_nothing(path: Path, column: str) -> None:
    """Whether it is dead is not decided by such a record."""
    die(path)
    value = f"{column} || 'x'" if column in {"lock_id", "boot_id", "host", "command"} else f"coalesce({column}, 0) + 1"
    tamper(path, f"UPDATE idempotent_owner SET {column} = {value}")  # noqa: S608
    with Registry(path, **NORMAL) as registry, pytest.raises(StoreCorruptError):
        registry.run("t", never, name="job", on_crash="rerun")


@pytest.mark.usefixtures("at_work")
@pytest.mark.parametrize("column", ["registry_id", "lock_id", "boot_id", "floor", "seal"])
def test_a_changed_row_about_the_file_is_an_error(path: Path, column: str) -> None:
    """A smaller floor would give a token twice."""
    with Registry(path, **NORMAL) as registry:
        registry.open()
    value = f"{column} - 1" if column in {"floor", "seal"} else f"{column} || 'x'"
    tamper(path, f"UPDATE idempotent_registry SET {column} = {value}")  # noqa: S608
    with Registry(path, **NORMAL) as registry, pytest.raises(StoreCorruptError):
        registry.run("t", never, name="job")


def test_a_floor_that_changes_under_a_live_registry_is_an_error(path: Path) -> None:
    """It is verified whenever it is read."""
    with Registry(path, **NORMAL) as registry:
        registry.run("t", lambda: 1, name="job")
        tamper(path, "UPDATE idempotent_registry SET floor = 0")
        with pytest.raises(StoreCorruptError):
            registry.run("u", never, name="job")


def test_a_floor_that_is_no_whole_number_any_more_is_an_error(path: Path) -> None:
    """A flipped bit makes a real number of a long one; SQLite looks at the types of STRICT only as it writes."""
    with Registry(path, **NORMAL) as registry:
        registry.run("t", lambda: 1, name="job")
        for change in (
            "UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')') WHERE name = 'idempotent_registry'",
            "UPDATE idempotent_registry SET floor = 1.5",
            "UPDATE sqlite_schema SET sql = sql || ' STRICT' WHERE name = 'idempotent_registry'",
        ):
            tamper(path, f"PRAGMA writable_schema = on; {change}")
        for call in ("run", "claim", "batch", "add", "get", "list", "purge", "export"):
            with pytest.raises(StoreCorruptError):
                CALLS[call](registry, "u", path)
    with Registry(path, **NORMAL) as registry, pytest.raises(StoreCorruptError):
        registry.open()


# --- every step keeps them --------------------------------------------------------------------------------------


def fail(text: str) -> None:
    raise LookupError(text)


def attempt(registry: Registry, task_id: str, job: Callable[[], object], **options: Any) -> None:
    with contextlib.suppress(IdemregError, LookupError):
        registry.run(task_id, job, name="job", **options)


def test_every_way_that_a_row_goes_leaves_it_sealed(path: Path, tmp_path: Path) -> None:
    """Each transition, in and out of the large table, by batch, by import and by a backup: all rows read back."""
    with Registry(path, **NORMAL) as registry:
        for number, length in enumerate((1, 1_000)):
            text = "x" * length
            attempt(registry, f"done:{number}", lambda text=text: text)  # type: ignore[misc]
            for _ in range(2):
                attempt(registry, f"failed:{number}", partial(fail, text))
            attempt(registry, f"unknown:{number}", partial(fail, text), unknown_on=LookupError)
            registry.resolve(f"unknown:{number}", "happened", result=text, evidence="seen")
            attempt(registry, f"again:{number}", partial(fail, "y" * (1_001 - length)))
            attempt(registry, f"again:{number}", lambda text=text: text)  # type: ignore[misc]
        registry.add("pending", name="job")
        registry.skip("pending", "not today")
        registry.claim("released", name="job").release()
        first, other = registry.claim_many([("batch:0", None), ("batch:1", None)], name="job")
        assert isinstance(first, Claim)
        assert isinstance(other, Claim)
        with first:
            first.result = 1
        other.release()
        unbound = registry.claim("unbound", name="job")
        unbound.end(End.release(unbound.grant, nothing_ran=True))
        with registry.claim("open", name="job"):
            rows = {task.task_id: task.status for task in registry.tasks()}
            assert rows["open"] is Status.RUNNING
        assert registry.run("unbound", lambda: 1, name="another").attempt == 1
        registry.forget("released")
        registry.backup(tmp_path / "copy.db")
        exported = list(registry.export_lines())
        kept = len(list(registry.tasks()))
        assert kept == len(rows) - 1 == 13
    for name in ("copy.db", "new.db"):
        with Registry(tmp_path / name, **NORMAL) as registry:
            if name == "new.db":
                registry.import_lines(exported)
            assert len(list(registry.tasks())) == kept
            assert not [one for one in registry.doctor() if one.code in {"seal-broken", "integrity", "check-failed"}]


# --- pages ------------------------------------------------------------------------------------------------------


def closed_file(path: Path, *, page_checksums: bool = True) -> bytes:
    """A small file at rest, in which "t" has succeeded."""
    with Registry(path, page_checksums=page_checksums, **NORMAL) as registry:
        for number in range(40):
            registry.run(f"before:{number}", lambda: 1, name="job")
        registry.run("t", lambda: 7, name="job")
    assert not os.path.exists(f"{path}-wal")
    return path.read_bytes()


WHERE = pytest.mark.parametrize("page_checksums", [False, True], ids=["at rest", "page checksums, at work"])


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """On a file system in memory, where there is one: of what is at rest nothing has to be on a disk."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path / "jobs.db"
        return
    with tempfile.TemporaryDirectory(prefix="idemreg-seal-", dir=MEMORY) as folder:
        yield Path(folder) / "jobs.db"


# Every byte would take minutes. All those of the header with one bit, and of the rest others with each.
@WHERE
@pytest.mark.parametrize("bit", [0, 3, 6])
def test_a_flipped_bit_of_a_page_hides_nothing(quick_path: Path, bit: int, *, page_checksums: bool) -> None:
    """Wherever it is: the same answer, or a typed error. Never an execution.

    At rest the first to open the file finds it; where others have it open, the checksum of the page tells.
    """
    path = quick_path
    whole = closed_file(path, page_checksums=page_checksums)
    lock = (path.parent / f"{path.name}-lock").read_bytes()
    errors = 0
    offsets = {*range(100 if bit == 3 else 0), *range(bit, len(whole), 499)}
    with kept_open(path) if page_checksums else contextlib.nullcontext():
        for offset in sorted(offsets):
            overwrite(path, whole[:offset] + bytes([whole[offset] ^ 1 << bit]) + whole[offset + 1 :])
            if not page_checksums:
                (path.parent / f"{path.name}-lock").write_bytes(lock)
            try:
                with Registry(path, **NORMAL) as registry:
                    assert registry.run("t", never, name="job").result == 7, offset
            except StoreError:
                errors += 1
            for end in () if page_checksums else ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{path}{end}")
        overwrite(path, whole)
    # On pages that nobody needed, and in bytes that none uses, it is met by nobody.
    assert errors >= len(offsets) / (3 if page_checksums else 4)


@WHERE
def test_a_flip_that_would_hide_a_row_is_an_error(path: Path, *, page_checksums: bool) -> None:
    """The first letter of a finished task's id on its page: a search would pass it by, and run it again."""
    whole = closed_file(path, page_checksums=page_checksums)
    assert b"before:7" in whole
    with kept_open(path) if page_checksums else contextlib.nullcontext():
        overwrite(path, whole.replace(b"before:7", b"bezore:7"))
        for call in ("run", "claim"):
            with Registry(path, **NORMAL) as registry, pytest.raises(StoreCorruptError) as caught:
                CALLS[call](registry, "before:7", path)
            assert "salvage" in caught.value.hint
        overwrite(path, whole)


@pytest.mark.parametrize("pages", ["swapped", "older"])
def test_whole_pages_in_the_wrong_place_or_time_are_noticed(path: Path, pages: str) -> None:
    """Each page has a right checksum, and yet a finished task would look absent: the whole does not fit together."""
    with Registry(path, page_checksums=True, **NORMAL) as registry:
        for number in range(200):
            registry.run(f"t:{number:03}", lambda: 1, name="job")
        registry.checkpoint("TRUNCATE")
        older = content(path)
        for number in range(200, 300):
            registry.run(f"t:{number:03}", lambda: 1, name="job")
    whole = path.read_bytes()
    found = [
        at for at in range(0, len(whole), 2_048) if whole[at : at + 1] == b"\x0a" and b"t:0" in whole[at : at + 2_048]
    ]
    one, two = found[0], found[1]
    if pages == "swapped":
        first, second = whole[one : one + 2_048], whole[two : two + 2_048]
        whole = whole[:one] + second + whole[one + 2_048 : two] + first + whole[two + 2_048 :]
    else:
        at = next(at for at in range(2_048, len(older), 2_048) if older[at : at + 2_048] != whole[at : at + 2_048])
        whole = whole[:at] + older[at : at + 2_048] + whole[at + 2_048 :]
    path.write_bytes(whole)
    with Registry(path, **NORMAL) as registry, pytest.raises(StoreCorruptError):
        registry.run("t:001", never, name="job")


def test_a_bad_page_met_by_a_finish_leaves_nothing_unsure(path: Path) -> None:
    """The finish was never committed, which is known: no reading again, and no word of a failed sync."""
    with Registry(path, page_checksums=True, **NORMAL) as registry:
        claim = registry.claim("t", name="shipping")
        registry.checkpoint("TRUNCATE")
        whole = content(path)
        damaged = whole.replace(b"shipping", b"shipqing")
        assert damaged != whole
        overwrite(path, damaged)
        tamper(path, "CREATE TABLE another (x)")  # so that the pages are read anew
        with pytest.raises(FinishNotRecordedError) as caught:
            claim.succeed(1)
        assert isinstance(caught.value.__cause__, StoreCorruptError)
        overwrite(path, whole)
        assert "sync-failed" not in {one.code for one in registry.doctor()}
    assert not isinstance(caught.value.__cause__, SyncFailedError)


def overwrite(path: Path, data: bytes) -> None:
    """From another process: a descriptor that this one closes would drop SQLite's locks."""
    (path.parent / "data").write_bytes(data)
    script = "open(sys.argv[1], 'r+b').write(open(sys.argv[2], 'rb').read())"
    with Script(script, path, path.parent / "data") as process:
        assert process.end() == 0


def content(path: Path) -> bytes:
    """Likewise."""
    with Script("open(sys.argv[2], 'wb').write(open(sys.argv[1], 'rb').read())", path, path.parent / "data") as process:
        assert process.end() == 0
    return (path.parent / "data").read_bytes()


def test_a_flip_in_the_wal_of_a_live_registry_is_an_error(path: Path) -> None:
    """SQLite verifies the frames of the -wal only after a crash: of the row, the seal tells."""
    with Registry(path, **NORMAL) as registry:
        registry.run("t", lambda: "the result", name="job")
        wal = path.parent / f"{path.name}-wal"
        content = wal.read_bytes()
        assert content.count(b"the result")
        wal.write_bytes(content.replace(b"the result", b"the resuly"))
        for call in ("run", "claim", "get", "list"):
            with Registry(path, **NORMAL) as other, pytest.raises(StoreCorruptError):
                CALLS[call](other, "t", path)


def test_a_backup_has_right_checksums(path: Path, tmp_path: Path) -> None:
    """Of pages from the -wal as well, and of more than SQLite keeps in memory."""
    with Registry(path, page_checksums=True, **NORMAL) as registry:
        for number in range(40):
            registry.run(f"t:{number}", lambda: "x" * 100_000, name="job")
        registry.backup(tmp_path / "copy.db")
    connection = connect(tmp_path / "copy.db")
    assert connection.pragma("page_count") > 1_500
    assert connection.pragma("checksum_verification") == "1"
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT count(*) FROM idempotent_log").fetchall() == [(40,)]
    connection.close()


# --- the process around it --------------------------------------------------------------------------------------


def test_the_default_vfs_stays_what_it_was(path: Path, tmp_path: Path) -> None:
    """Another program's files in the same process are opened as before, whatever bytes they reserve."""
    script = """
        import apsw
        before = apsw.vfs_names()
        from idemreg import Registry
        with Registry(sys.argv[1]) as registry:
            registry.run("t", lambda: 1)
        say(before == apsw.vfs_names())
        with Registry(sys.argv[1] + "2", page_checksums=True) as registry:
            registry.run("t", lambda: 1)
        say(*(before[0], apsw.vfs_names()[0], set(apsw.vfs_names()) - set(before)))
        other = apsw.Connection(sys.argv[2])
        other.reserve_bytes(reserve=8)
        other.execute("create table t (x); insert into t values (zeroblob(100))")
        say(other.open_vfs, other.pragma("checksum_verification"))
    """
    with Script(script, path, tmp_path / "other.db") as process:
        assert process.line() == "True"
        assert process.line() == "unix unix {'cksmvfs'}"
        assert process.line() == "unix None"
    assert (tmp_path / "other.db").read_bytes()[2 * 4096 - 8 : 2 * 4096] == bytes(8)


WITHOUT = """
    import idemreg.sqlite.pages as pages
    pages.LIBRARY = "/nowhere/cksumvfs.so"
    from idemreg import Registry, StoreError
    registry = Registry(sys.argv[1], page_checksums=sys.argv[2] == "new")
    try:
        say(registry.run("t", lambda: 7, name="job").result)
    except StoreError as error:
        say("refused:", "PyPI" in error.hint)
"""


def test_without_the_extension_files_have_no_page_checksums(path: Path) -> None:
    """Asked for, they are refused; without them all goes as usual, here as well as where the extension is."""
    with Script(WITHOUT, path, "new") as process:
        process.expect("refused: True")
    with Script(WITHOUT, path, "") as process:
        process.expect("7")
    assert path.read_bytes()[20] == 0
    with Registry(path, **NORMAL) as registry:
        assert registry.run("t", never, name="job").result == 7


def test_without_the_extension_a_file_with_checksums_is_refused(path: Path) -> None:
    """It would leave wrong checksums behind."""
    before = closed_file(path)
    with Script(WITHOUT, path, "") as process:
        process.expect("refused: True")
    assert path.read_bytes() == before


@WHERE
def test_what_another_program_may_write(path: Path, *, page_checksums: bool) -> None:
    """Where pages have checksums it fails closed; else a shell that is the last to close harms nothing."""
    closed_file(path, page_checksums=page_checksums)
    reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    assert reader.execute("SELECT count(*) FROM idempotent_log").fetchall() == [(41,)]
    reader.close()
    tamper(path, "UPDATE idempotent_log SET policy = policy")
    with Registry(path, **NORMAL) as registry:
        assert registry.run("t", never, name="job").result == 7
    writer = apsw.Connection(str(path))
    writer.execute("CREATE TABLE another (x)")
    writer.close()
    with Registry(path, **NORMAL) as registry:
        if page_checksums:
            with pytest.raises(StoreCorruptError):
                registry.run("t", never, name="job")
        else:
            assert registry.run("t", never, name="job").result == 7


def test_it_is_loaded_once() -> None:
    """And is there in every process whose apsw comes from PyPI."""
    assert pages.vfs() == pages.vfs() == "cksmvfs"
    assert apsw.vfs_names().count("cksmvfs") == 1
    assert os.path.exists(pages.LIBRARY)
    assert seals.TASK_COLUMNS[-1] == "state_seal"


def test_a_build_without_page_checksums_makes_no_file_with_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, they are had or refused; and a file that has them is not written by who cannot keep them right."""
    monkeypatch.setattr(pages, "VFS", "another")
    monkeypatch.setattr(pages, "LIBRARY", "no such library")
    assert pages.vfs() is None
    with pytest.raises(StoreError, match="no page checksums") as caught, Registry(path, page_checksums=True) as refused:
        refused.run("t", lambda: pytest.fail("the job started"))
    assert "pip install" in str(caught.value.hint)
    monkeypatch.undo()
    made = path.with_name("made.db")
    with Registry(made, page_checksums=True) as registry:
        registry.run("t", lambda: 1, name="job")
    monkeypatch.setattr(pages, "vfs", lambda: None)
    with pytest.raises(StoreVersionError, match="page checksums"), Registry(made) as registry:
        registry.run("u", lambda: pytest.fail("the job started"))
    monkeypatch.undo()
    with Registry(made) as registry:
        assert registry.get("u") is None
        assert registry.run("t", lambda: 2, name="job").replayed


def test_a_connection_that_does_not_verify_is_refused(path: Path) -> None:
    """A file with page checksums, looked at past the VFS: an error, and not a page of damage."""
    with Registry(path, page_checksums=True) as registry:
        registry.run("t", lambda: 1)
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
    with pytest.raises(StoreError, match="does not verify"):
        pages.check(connection)
    connection.close()


# --- values of other types --------------------------------------------------------------------------------------


def mistype(path: Path, change: str) -> None:
    """Store values of types that the tables do not take, as a flipped bit in a row's header makes them."""

    def define(old: str, new: str) -> None:
        with contextlib.closing(connect(path)) as connection:
            connection.pragma("writable_schema", 1)
            connection.execute("UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE type = 'table'", (old, new))
            assert connection.changes() > 0

    define(" STRICT", " /*RICT*/")
    define(" TEXT", " BLOB")
    tamper(path, f"UPDATE {change}")
    define(" BLOB", " TEXT")
    define(" /*RICT*/", " STRICT")


def fill_every_table(path: Path) -> Registry:
    registry = Registry(path, **NORMAL)
    registry.run("t", lambda: 7, name="job")
    registry.scheduled("every", cron="* * * * *")(never)
    registry.may_schedule()
    registry.run_due()
    registry.check_clock()
    next(registry.serials("a"))
    return registry


def next_block(registry: Registry) -> object:
    """Not the next number: on a quick machine that is of the block that this process has reserved a moment ago."""
    return cast("SqliteStore", registry.store).reserve_serials("a", 0, 1, None, durable=False)


MISTYPED: dict[str, Callable[[Registry], object]] = {
    "idempotent_log SET result = 1.5": lambda registry: registry.run("t", never, name="job"),
    "idempotent_log SET name = 1.5": lambda registry: registry.get("t"),
    "idempotent_serial SET mark_us = mark_us + 0.5": next_block,
    "idempotent_clock SET accepted_us = 0.5": lambda registry: registry.check_clock(),
    "idempotent_schedule SET watermark_s = watermark_s + 0.5": lambda registry: registry.audit("every"),
    "idempotent_owner SET pid = pid + 0.5": lambda registry: registry.claim("new"),
    "idempotent_lease SET until_stamp = until_stamp + 0.5": lambda registry: registry.run("leased", never, name=""),
    "idempotent_step SET number = 1.5": lambda registry: registry.steps("leased"),
    "idempotent_registry SET floor = floor + 0.5": lambda registry: registry.add("new"),
}


@pytest.mark.parametrize("change", MISTYPED)
def test_a_value_of_another_type_is_an_error(path: Path, change: str) -> None:
    """A number with a fraction where a text or a whole number was: nothing is reckoned from it, and nothing runs."""
    script = """
        from idemreg import Registry
        registry = Registry(sys.argv[1], durability="normal")
        claim = registry.claim("leased", lease=3_600)
        claim.run_step("s", lambda: 1)
        say("open")
        wait()
    """
    with fill_every_table(path), Script(script, path) as other:
        other.expect("open")
    with kept_open(path):
        mistype(path, change)
        with Registry(path, **NORMAL) as registry, pytest.raises(StoreCorruptError):
            MISTYPED[change](registry)


def test_a_claim_of_other_types_is_an_error(path: Path) -> None:
    """Where only what it belongs to is read; and where there is no row, nothing is."""
    with fill_every_table(path) as registry:
        registry.close()
        with kept_open(path):
            mistype(path, "idempotent_log SET name = 1.5 WHERE task_id = 't'")
            database = cast("SqliteStore", registry.store)._opening.opened().database
            assert database.read(rows.note_of, "no such task") is None
            with pytest.raises(StoreCorruptError) as caught:
                database.read(rows.note_of, "t")
            assert caught.value.task_id == "t"


@pytest.mark.parametrize(
    ("change", "call"),
    [
        ("UPDATE idempotent_log SET status = 52", lambda registry: registry.get("t")),
        ("UPDATE idempotent_schedule SET state = 7", lambda registry: registry.audit("every")),
        ("UPDATE idempotent_schedule SET skips = 'for fun'", lambda registry: registry.audit("every")),
    ],
)
def test_a_value_that_never_was_is_an_error_under_a_whole_seal(
    path: Path, change: str, call: Callable[[Registry], object]
) -> None:
    """As another version, or whoever writes the file by hand, may store it."""
    fill_every_table(path).close()
    with kept_open(path):
        tamper(path, change, seal=True)
        with Registry(path, **NORMAL) as registry, pytest.raises(StoreCorruptError, match="no idemreg writes"):
            call(registry)


def test_a_large_value_that_is_missing_is_an_error(path: Path) -> None:
    """It is no result that was lost in order, which its row would say."""
    with Registry(path, **NORMAL) as registry:
        registry.run("t", lambda: "x" * 1_000, name="job")
    with kept_open(path):
        tamper(path, "DELETE FROM idempotent_large")
        for call in ("run", "get", "list"):
            with Registry(path, **NORMAL) as registry, pytest.raises(StoreCorruptError, match="missing"):
                CALLS[call](registry, "t", path)
