"""Salvage: every row on an undamaged page comes out, none whose seal fails does, and nothing runs again by it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from idemreg import Clock, Registry, Status, StoreCorruptError, StoreError, StorePathError, TaskUnknownError, Verdict
from idemreg.doctor import examine, is_well
from idemreg.doctor.salvage import Salvaged, salvage
from idemreg.sqlite import rest
from idemreg.sqlite.making import PAGE_BYTES
from idemreg.sqlite.salvaging import _LARGE_OF, STORED_COLUMNS, salvaging
from idemreg.sqlite.upkeep import SCHEMA
from tests.cli.driver import Cli
from tests.support.descriptors import left_open
from tests.support.processes import Script
from tests.support.raw import connect

if TYPE_CHECKING:
    from pathlib import Path

    from idemreg import Task

FRAME = 24 + PAGE_BYTES
WAL_HEADER = 32
DICE = random.Random(1)  # noqa: S311 - for a test
FINAL = (Status.SUCCEEDED, Status.SKIPPED, Status.CANCELLED)


def fill(path: Path, *, count: int = 400, page_checksums: bool = False) -> None:
    """Tasks of every status and size; some were removed, so that there are free pages."""

    def fail() -> None:
        raise ValueError("x" * 50)

    with Registry(path, durability="normal", page_checksums=page_checksums) as registry:
        for number in range(count):
            task_id = f"task:{number * 7919 % count:04d}"
            size = (0, 40, 300, 700, 5_000)[number % 5]
            match number % 7:
                case 0:
                    registry.add(task_id, name="job")
                case 1:
                    with pytest.raises(ValueError, match="x"):
                        registry.run(task_id, fail, name="job")
                case 2:
                    registry.add(task_id, name="job")
                    registry.skip(task_id, "not needed")
                case _:
                    registry.run(task_id, lambda size=size: "r" * size, name="job")  # type: ignore[misc]
        for number in range(count // 4, count // 3):
            registry.forget(f"task:{number:04d}")


def rows_of(path: Path) -> dict[str, Task]:
    with Registry(path, durability="normal") as registry:
        return {task.task_id: task for task in registry.tasks()}


def places(content: bytes, task: Task) -> set[int]:
    """On which pages a row lies, by its bytes: its id, a byte or none of its status, its checksum."""
    pattern = re.escape(task.task_id.encode()) + b".?" + re.escape(task.checksum.encode())
    return {found.start() // PAGE_BYTES for found in re.finditer(pattern, content, re.DOTALL)}


def check(done: Salvaged, out: Path, truth: dict[str, Task], content: bytes, damaged: set[int]) -> None:
    """What was on undamaged pages came out as it was; nothing else than what was; nothing runs that must not."""
    found = rows_of(out)
    if (alarm := done.gaps.suspended) is not None:
        assert found.pop(alarm).status is Status.UNKNOWN
    for task_id, task in found.items():
        if (was := truth.get(task_id)) is None:
            assert done.gaps.lost_free_list
            assert task.status in FINAL or task.status is Status.UNKNOWN
        elif task.status is not was.status:
            assert task.status is Status.UNKNOWN
            assert was.status not in FINAL
        else:
            assert task._replace(boot_stamp=was.boot_stamp) == was
    for task_id, was in truth.items():
        short = len(was.result or "") + len(was.error or "") + len(task_id) < 250
        if short and not places(content, was) & damaged:
            assert task_id in found, (task_id, done)
        if task_id not in found:
            is_told = any(
                (one.above is None or one.above <= task_id) and (one.below is None or task_id <= one.below)
                for one in done.gaps.ranges
            )
            assert is_told or task_id in done.gaps.broken or done.gaps.lost_frames, (task_id, done)
    assert done.copied == len(found)
    assert not done.gaps.are_none or found.keys() == truth.keys(), done
    unwell = "unknown", "lock-file-missing", *(() if alarm is None else ("clock-suspended",))
    assert is_well([one for one in examine(out) if one.code not in unwell])


def test_a_sound_file_comes_out_whole(path: Path, tmp_path: Path) -> None:
    """With its id, its rows and its floor; the file itself is not touched."""
    fill(path)
    truth, before = rows_of(path), path.read_bytes()
    out = tmp_path / "out.db"
    done = salvage(path, out)
    assert done.gaps.are_none
    assert done.copied == len(truth)
    assert path.read_bytes() == before
    check(done, out, truth, before, set())
    with Registry(path) as old, Registry(out) as new:
        assert old.store.origin() == new.store.origin()
        with new.claim("task:new") as claim:
            assert claim.token > max(task.token for task in truth.values())
        assert new.store.floor() >= old.store.floor()
    assert os.stat(out).st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".idemreg-salvage-*"))


def flip(content: bytearray, page: int, dice: random.Random) -> None:
    content[page * PAGE_BYTES + dice.randrange(PAGE_BYTES)] ^= 1 << dice.randrange(8)


def clear(content: bytearray, page: int, _dice: random.Random) -> None:
    content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes(PAGE_BYTES)


def scribble(content: bytearray, page: int, dice: random.Random) -> None:
    begin = page * PAGE_BYTES + dice.randrange(PAGE_BYTES - 200)
    content[begin : begin + 200] = dice.randbytes(200)


@pytest.mark.parametrize("seed", range(40))
def test_rows_on_undamaged_pages_come_out(path: Path, tmp_path: Path, seed: int) -> None:
    """However pages are damaged, interior pages of the tree, the first page and the end of the file included."""
    dice = random.Random(seed)  # noqa: S311 - for a test
    fill(path, page_checksums=bool(seed % 2))
    truth, content = rows_of(path), bytearray(path.read_bytes())
    sound = bytes(content)
    count = len(content) // PAGE_BYTES
    damaged = set(dice.sample(range(count), dice.choice((1, 1, 2, 5, 20))))
    for page in damaged:
        dice.choice((flip, clear, scribble))(content, page, dice)
    if seed % 6 == 5:
        cut = dice.randrange(count // 2, count)
        damaged |= set(range(cut, count))
        del content[cut * PAGE_BYTES + dice.randrange(PAGE_BYTES) :]
    path.write_bytes(content)
    out = tmp_path / "out.db"
    done = salvage(path, out)
    check(done, out, truth, sound, damaged)
    assert path.read_bytes() == content


@pytest.mark.parametrize("seed", range(12))
def test_rows_in_the_wal_come_out(path: Path, tmp_path: Path, seed: int) -> None:
    """Of a process that was killed; a damaged frame loses no task, but what is not final may be too old to believe."""
    dice = random.Random(seed)  # noqa: S311 - for a test
    source = """
        from idemreg import Registry
        registry = Registry(sys.argv[1])
        for number in range(60):
            registry.run(f"task:{number:04d}", lambda: number, name="job")
        registry.checkpoint("RESTART")
        for number in range(40, 120):
            if number % 3: registry.run(f"task:{number:04d}", lambda: number, name="job")
            else: registry.add(f"task:{number:04d}", name="job")
        for number in range(60, 120, 3):
            registry.run(f"task:{number:04d}", lambda: number, name="job")
        claim = registry.claim("task:running", name="job")
        say("ready")
        wait()
    """
    with Script(source, path) as script:
        script.expect("ready")
        script.kill()
    copy = tmp_path / "copy" / "jobs.db"
    copy.parent.mkdir()
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", f"{copy}{end}")
    truth = rows_of(copy)
    wal = bytearray((tmp_path / "jobs.db-wal").read_bytes())
    used = len(bytes(wal).rstrip(b"\0"))
    if seed:
        wal[dice.randrange(WAL_HEADER if seed > 3 else 0, used)] ^= 1 << dice.randrange(8)
    (tmp_path / "jobs.db-wal").write_bytes(wal)
    out = tmp_path / "out.db"
    done = salvage(path, out)
    found = rows_of(out)
    assert found["task:running"].status is Status.UNKNOWN
    assert found["task:running"].verdict is Verdict.CANNOT_TELL
    for task_id, task in found.items():
        was = truth[task_id]
        assert task.status is Status.UNKNOWN or task._replace(boot_stamp=was.boot_stamp) == was
    if seed:
        assert done.gaps.lost_frames
    else:
        assert done.gaps.are_none
        assert found.keys() == truth.keys()
    with Registry(out) as registry, pytest.raises(TaskUnknownError):
        registry.run("task:running", lambda: pytest.fail("the job started"), name="job")


def test_a_row_whose_seal_fails_stays_behind_and_is_named(path: Path, tmp_path: Path) -> None:
    """Also where its page's checksum was made anew, so that nothing but the seal tells; its neighbours come out."""
    fill(path, page_checksums=True)
    truth, content = rows_of(path), bytearray(path.read_bytes())
    victim = next(task for task in truth.values() if task.status is Status.SUCCEEDED and (task.result or "") == '""')
    at = _offset(content, victim)
    content[at] ^= 1
    page = at // PAGE_BYTES
    content[(page + 1) * PAGE_BYTES - 8 : (page + 1) * PAGE_BYTES] = _page_sums(
        content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES - 8]
    )
    path.write_bytes(content)
    done = salvage(path, tmp_path / "out.db")
    assert done.gaps.broken == (victim.task_id,)
    assert done.gaps.damaged_pages == (page + 1,)
    assert rows_of(tmp_path / "out.db").keys() == truth.keys() - {victim.task_id}


def _offset(content: bytearray, task: Task) -> int:
    """Where its checksum is stored."""
    pattern = re.escape(task.task_id.encode()) + b".?" + re.escape(task.checksum.encode())
    found = re.search(pattern, bytes(content), re.DOTALL)
    assert found is not None
    return found.end() - 1


def _page_sums(data: bytearray) -> bytes:
    """As cksumvfs makes them."""
    one = two = 0
    words = struct.unpack(f"<{len(data) // 4}I", data)
    for at in range(0, len(words), 2):
        one = (one + words[at] + two) & 0xFFFFFFFF
        two = (two + words[at + 1] + one) & 0xFFFFFFFF
    return struct.pack("<II", one, two)


@pytest.mark.parametrize("what", ["count", "pointer"])
def test_a_row_that_its_page_does_not_name_any_more_is_missed(path: Path, tmp_path: Path, what: str) -> None:
    """Without page checksums: no seal fails, but a byte of the page is in no cell, or in two."""
    fill(path)
    truth, content = rows_of(path), bytearray(path.read_bytes())
    page = next(
        page
        for page in range(1, len(content) // PAGE_BYTES)
        if content[page * PAGE_BYTES] == 0x0A and b"task:" in content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
        and len(re.findall(rb"[0-9a-f]{64}", bytes(content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]))) > 3
    )  # fmt: skip
    begin = page * PAGE_BYTES
    count = int.from_bytes(content[begin + 3 : begin + 5], "big")
    if what == "count":
        content[begin + 3 : begin + 5] = (count - 1).to_bytes(2, "big")
    else:
        content[begin + 8 : begin + 10] = content[begin + 10 : begin + 12]
    path.write_bytes(content)
    done = salvage(path, tmp_path / "out.db")
    (lost,) = truth.keys() - rows_of(tmp_path / "out.db").keys()
    assert done.gaps.damaged_pages == (page + 1,)
    (place,) = done.gaps.ranges
    assert (place.above or "") <= lost <= (place.below or "~")


@pytest.mark.parametrize("where", ["frame", "header"])
def test_a_page_number_that_is_damaged_makes_no_pages(path: Path, tmp_path: Path, where: str) -> None:
    """One bit of it, and the file has billions of pages: what is there is read, and what is not is counted."""
    with Registry(path, durability="normal") as registry:
        for number in range(20):
            registry.run(f"t:{number}", lambda: 1, name="job")
        copy = tmp_path / "copy.db"
        for end in ("", "-wal"):
            shutil.copy(f"{path}{end}", f"{copy}{end}")
        if where == "header":
            registry.checkpoint("TRUNCATE")
            shutil.copy(path, copy)
    file, at = (f"{copy}-wal", WAL_HEADER + FRAME * 20) if where == "frame" else (copy, 29)
    with open(file, "r+b") as opened:
        opened.seek(at)
        opened.write(b"\xff")
    if where == "header":
        os.unlink(f"{copy}-wal")
    looked_at: list[int] = []

    def progress(number: int, _count: int) -> None:
        looked_at.append(number)
        assert len(looked_at) < 1_000

    gaps = salvage(copy, tmp_path / "out.db", progress=progress).gaps
    assert gaps.pages - gaps.damaged < 100
    assert len(gaps.damaged_pages) == (1 if where == "frame" else 100)
    assert {f"t:{number}" for number in range(20)} == rows_of(tmp_path / "out.db").keys()


def test_where_there_is_no_memory_nothing_is_left_open(path: Path, tmp_path: Path) -> None:
    """A typed error, and no file of the damaged registry stays open."""
    fill(path, count=10)
    before = apsw.hard_heap_limit(1)
    try:
        with pytest.raises(StoreError, match="out of memory"):
            salvage(path, tmp_path / "out.db")
    finally:
        apsw.hard_heap_limit(before)
    assert left_open(path) == []
    assert not (tmp_path / "out.db").exists()


def test_large_values_are_found_without_a_look_at_all_of_them(path: Path) -> None:
    """Each task with a large result looks for it once: by a search, or a hundred thousand of them take hours."""
    fill(path, count=10)
    with salvaging(str(path), Clock()) as reading:
        plan = reading._staged.execute(f"EXPLAIN QUERY PLAN {_LARGE_OF}", ("task:0001",)).fetchall()
    assert "SEARCH large USING INDEX" in str(plan)


@pytest.mark.parametrize(
    "own",
    [
        "CREATE TABLE own (note TEXT); INSERT INTO own VALUES ('hello')",
        "CREATE TABLE own (note TEXT PRIMARY KEY) WITHOUT ROWID; INSERT INTO own VALUES ('hello')",
        "CREATE TABLE own (a, b); INSERT INTO own VALUES (CAST(x'ff' AS TEXT), 1), ('a', CAST(x'ff' AS TEXT))",
        "CREATE TABLE own (a); INSERT INTO own VALUES (hex(zeroblob(9000000)))",
        "CREATE TABLE own AS SELECT * FROM idempotent_log; UPDATE own SET status = 1",
    ],
)
@pytest.mark.parametrize("page_checksums", [False, True])
def test_a_table_of_ones_own_is_no_damage(path: Path, tmp_path: Path, own: str, page_checksums: bool) -> None:  # noqa: FBT001 - as above
    """Whatever its rows look like: text alone, or not even text, or larger than any row of a registry."""
    fill(path, count=30, page_checksums=page_checksums)
    truth = rows_of(path)
    execute(path, own)
    done = salvage(path, tmp_path / "out.db")
    assert done.gaps.other_tables == ("own",)
    assert done.gaps._replace(other_tables=()).are_none
    assert rows_of(tmp_path / "out.db").keys() == truth.keys()


def test_what_was_forgotten_does_not_come_back_out_of_a_table_of_ones_own(path: Path, tmp_path: Path) -> None:
    """A row that was copied there has a seal that holds, but it is no row of the registry any more."""
    with Registry(path) as registry:
        registry.run("task", lambda: 1)
    execute(path, "CREATE TABLE own AS SELECT * FROM idempotent_log")
    with Registry(path) as registry:
        registry.forget("task")
    assert salvage(path, tmp_path / "out.db").gaps._replace(other_tables=()).are_none
    assert rows_of(tmp_path / "out.db") == {}


def test_a_record_larger_than_any_of_a_registry_is_none_of_its_rows(path: Path, tmp_path: Path) -> None:
    """Where the schema is damaged nobody can say whose pages these are: it is no row, and the rows come out."""
    fill(path, count=30)
    truth = rows_of(path)
    execute(path, "CREATE TABLE own (a); INSERT INTO own VALUES (hex(zeroblob(9000000)))")
    content = bytearray(path.read_bytes())
    content[100:PAGE_BYTES] = bytes(PAGE_BYTES - 100)  # the tree of the schema, behind the header
    path.write_bytes(content)
    gaps = salvage(path, tmp_path / "out.db").gaps
    assert gaps.damaged
    assert gaps.other_tables == ()  # of which nothing tells any more
    assert rows_of(tmp_path / "out.db").keys() == truth.keys() | {"clock@salvage"}  # what is lost of the clock is told


def execute(path: Path, statements: str) -> None:
    connection = connect(path)
    connection.execute(statements)
    connection.close()


def test_an_older_copy_of_a_row_is_not_believed(path: Path, tmp_path: Path) -> None:
    """The newest version of its page is lost: failed then, it may have succeeded since, so it is unknown now."""

    def fail() -> None:
        msg = "it failed"
        raise ValueError(msg)

    with Registry(path, durability="normal") as registry:
        with pytest.raises(ValueError, match="it failed"):
            registry.run("task", fail, name="job")
        registry.run("done", lambda: 1, name="job")
        registry.checkpoint("TRUNCATE")
        registry.run("task", lambda: 2, name="job")
        for end in ("", "-wal"):  # by another process: closing these files here would drop SQLite's locks
            subprocess.run(["cp", f"{path}{end}", f"{tmp_path / 'copy.db'}{end}"], check=True)
    copy = tmp_path / "copy.db"
    wal = bytearray((tmp_path / "copy.db-wal").read_bytes())
    for at in range(WAL_HEADER, len(wal) - 24, FRAME):
        if wal[at : at + 4] != b"\0\0\0\0":
            wal[at + 24 : at + FRAME] = bytes(PAGE_BYTES)
    (tmp_path / "copy.db-wal").write_bytes(wal)
    done = salvage(copy, tmp_path / "out.db")
    assert done.gaps.lost_frames
    found = rows_of(tmp_path / "out.db")
    assert found["done"].status is Status.SUCCEEDED
    assert found["task"].status is Status.UNKNOWN
    assert "older" in (found["task"].evidence or "")


@pytest.mark.parametrize("size", [0, WAL_HEADER + FRAME * 10])
def test_a_wal_that_is_gone_or_shorter_leaves_nothing_claimable(path: Path, tmp_path: Path, size: int) -> None:
    """The lock file tells of frames that were synced: what the database says of tasks without them is an older word."""
    with Registry(path) as registry:
        for number in range(20):
            registry.add(f"t:{number}", name="job")
    script = """
        from idemreg import Registry
        registry = Registry(sys.argv[1])
        for number in range(20): registry.run(f"t:{number}", lambda: 1, name="job")
        say("done")
        wait()
    """
    with Script(script, path) as process:
        process.expect("done")
        process.kill()
    if size:
        os.truncate(f"{path}-wal", size)
    else:
        os.unlink(f"{path}-wal")
    assert salvage(path, tmp_path / "out.db").gaps.lost_frames
    found = rows_of(tmp_path / "out.db")
    assert len(found) == 20
    assert {task.status for task in found.values()} <= {Status.SUCCEEDED, Status.UNKNOWN}


def test_the_loss_of_the_files_own_row_is_told(path: Path, tmp_path: Path) -> None:
    """The copy has an id of its own, and a floor far above any token that may have been given."""
    fill(path, count=50)
    truth, content = rows_of(path), bytearray(path.read_bytes())
    registry_page = next(page for page in range(len(content) // PAGE_BYTES) if _has_file_row(content, page))
    clear(content, registry_page, DICE)
    path.write_bytes(content)
    done = salvage(path, tmp_path / "out.db")
    assert done.gaps.lost_file_row
    with Registry(tmp_path / "out.db") as registry:
        assert registry.store.floor() > max(task.token for task in truth.values()) + (1 << 49)


def test_a_row_about_the_file_whose_seal_fails_is_not_believed(path: Path, tmp_path: Path) -> None:
    """Another id, or a floor that never was: neither comes into the copy."""
    fill(path, count=50, page_checksums=True)
    content = bytearray(path.read_bytes())
    page = next(page for page in range(len(content) // PAGE_BYTES) if _has_file_row(content, page))
    data = content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES - 8]
    found = re.search(rb"[0-9a-f]{64}[0-9a-f-]{36}", bytes(data))
    assert found is not None
    data[found.start()] = ord("0") if data[found.start()] != ord("0") else ord("1")
    content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = data + _page_sums(data)
    path.write_bytes(content)
    done = salvage(path, tmp_path / "out.db")
    assert done.gaps.lost_file_row


def _has_file_row(content: bytearray, page: int) -> bool:
    data = content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
    return page > 0 and data[0] == 0x0D and b"-" in data and re.search(rb"[0-9a-f]{64}[0-9a-f-]{36}", data) is not None


@pytest.mark.parametrize(
    "content", [b"", b"no database at all" * 500, bytes(10_000), b"SQLite format 3\0" + b"\xff" * 5_000]
)
def test_what_has_nothing_of_a_registry_gives_no_copy(path: Path, tmp_path: Path, content: bytes) -> None:
    """An error, and no file that would pass for an empty registry."""
    path.write_bytes(content)
    with pytest.raises(StoreCorruptError) as refused:
        salvage(path, tmp_path / "out.db")
    assert "salvage" not in refused.value.hint  # this was it
    assert sorted(os.listdir(tmp_path)) == ["jobs.db"]


def test_nothing_is_overwritten_and_nothing_open_is_read(path: Path, tmp_path: Path) -> None:
    """Closing a descriptor of an open database would drop its locks; OUT must be new, and there must be a file."""
    with Registry(path) as registry:
        registry.run("task", lambda: 1)
        with pytest.raises(StoreError, match="open in this process"):
            salvage(path, tmp_path / "out.db")
    (tmp_path / "out.db").touch()
    with pytest.raises(StorePathError):
        salvage(path, tmp_path / "out.db")
    with pytest.raises(StorePathError):
        salvage(tmp_path / "missing.db", tmp_path / "other.db")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StorePathError):
        salvage(tmp_path / "fifo", tmp_path / "other.db")


def test_the_columns_are_decoded_in_the_order_of_the_table() -> None:
    """A record has them as schema.sql names them."""
    table = re.search(r"CREATE TABLE idempotent_log \((.*?)^\)", SCHEMA.read_text(), re.DOTALL | re.MULTILINE)
    assert table is not None
    names = re.findall(r"^    ([a-z_]+) +(?:TEXT|INTEGER)", table[1], re.MULTILINE)
    assert tuple(names) == STORED_COLUMNS


def test_the_command_reports_what_may_be_missing(path: Path, tmp_path: Path) -> None:
    """On the terminal and as JSON; exit code 1 where anything is missing, 0 where nothing is."""
    fill(path, count=100)
    cli = Cli(path)
    out = tmp_path / "out.db"
    sound = cli("doctor", "--salvage", str(out))
    assert sound.exit_code == 0, sound.output
    assert "nothing is missing" in sound.stdout
    quiet = cli("doctor", "--quiet", "--salvage", str(tmp_path / "quiet.db"))
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert len(rows_of(tmp_path / "quiet.db")) == len(rows_of(out))
    content = bytearray(path.read_bytes())
    clear(content, 2, DICE)
    path.write_bytes(content)
    told = cli("doctor", "--salvage", str(tmp_path / "two.db"))
    assert told.exit_code == 1
    assert "rows may be lost" in told.stdout
    as_json = cli("doctor", "--json", "--salvage", str(tmp_path / "three.db"))
    assert as_json.exit_code == 1
    found: Any = json.loads(as_json.stdout)
    assert found["gaps"]["damaged_pages"] == [3]
    assert found["copied"] == len(rows_of(tmp_path / "three.db"))
    again = cli("doctor", "--salvage", str(out))
    assert again.exit_code == 74


def test_an_interrupt_before_the_first_page_leaves_nothing_open(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does an error of the disk there: the file itself is open by then."""

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with Registry(path) as registry:
        registry.run("task", int)
    monkeypatch.setattr(rest, "check_wal", interrupt)
    with pytest.raises(KeyboardInterrupt):
        salvage(path, tmp_path / "out.db")
    assert left_open(path) == []
