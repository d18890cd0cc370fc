"""The rooms of the store, each by itself: damage, interrupts and lacks that no whole history brings about at will."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import subprocess
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import apsw
import pytest

from idemreg import Clock, Registry, Status, StoreCorruptError, StorePathError, StoreVersionError
from idemreg.lockfile import LockFile
from idemreg.options import Options
from idemreg.request import wanted
from idemreg.sqlite import carving, forking, hot, noted, opened, pages, rest, tasks, walindex
from idemreg.sqlite.carving import Image
from idemreg.sqlite.cells import INTERIOR_INDEX, _value, adds_up, children
from idemreg.sqlite.connection import NORMAL
from idemreg.sqlite.guard import CLOSED, FilesReplacedError, Guard, _no
from idemreg.sqlite.looking import Look
from idemreg.sqlite.making import PAGE_BYTES
from idemreg.sqlite.salvaging import salvaging
from idemreg.sqlite.trust import _check_kind, _has_other_names
from idemreg.sqlite.upkeep import SCHEMA
from idemreg.sqlite.walindex import WalIndex
from idemreg.sqlite.writing import Write
from tests.support.descriptors import left_open
from tests.support.faulted import FaultedScript
from tests.support.forked import in_child
from tests.support.processes import PATIENCE_S
from tests.support.raw import connect
from tests.support.second_schema import open_second
from tests.support.waiting import until
from tests.test_salvage import fill, rows_of
from tests.test_seal import kept_open, mistype, tamper

if TYPE_CHECKING:
    from pathlib import Path

    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.database import Database
    from idemreg.sqlite.opening import Opening


def opening_of(registry: Registry) -> Opening:
    return cast("SqliteStore", registry.store)._opening


def database_of(registry: Registry) -> Database:
    return opening_of(registry).opened().database


# --- a damaged file, page by page -------------------------------------------------------------------------------


@pytest.fixture
def copy(path: Path, registry: Registry) -> Path:
    """A copy of a registry at work, with its -wal, which no connection has open."""
    for number in range(20):
        registry.run(f"t:{number}", lambda: 1, name="job")
    there = path.with_name("copy.db")
    for end in ("", "-wal"):
        subprocess.run(["cp", f"{path}{end}", f"{there}{end}"], check=True)
    return there


def test_what_cannot_be_opened_leaves_nothing_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the file nor what verifies its pages, where there is such."""
    path.symlink_to("elsewhere")
    for _ in range(2):
        with pytest.raises(StorePathError, match="cannot open"):
            Image(str(path))
        monkeypatch.setattr(pages, "vfs", lambda: None)
    assert left_open(path) == []
    assert apsw.connections() == []


def test_a_wal_without_its_database_is_read(copy: Path) -> None:
    """Pages of a file that is gone have no checksums that could be looked for."""
    copy.unlink()
    image = Image(str(copy))
    assert image._reserved(PAGE_BYTES) == 0
    assert image.frames
    image.close()


def test_a_wal_whose_head_is_damaged_goes_by_its_first_frame(copy: Path) -> None:
    """And is told to have lost something; one that is cut under the reading gives no page of it."""
    wal = f"{copy}-wal"
    with open(wal, "r+b") as file:
        file.seek(16)
        file.write(b"\xff\xff\xff\xff")
    image = Image(str(copy))
    assert image.has_lost_frames
    assert image.frames
    page = 1
    before = len(list(image.versions(page)))
    image._by_page[page] = [carving.Frame(page, 10**9, is_sound=True, commits=True)]
    assert len(list(image.versions(page))) <= before
    image.close()


def test_a_list_of_free_pages_that_is_damaged_is_none(path: Path) -> None:
    """It cannot tell of more pages than there is room for in one."""
    fill(path)
    content = bytearray(path.read_bytes())
    trunk = int.from_bytes(content[32:36], "big")
    at = (trunk - 1) * PAGE_BYTES
    content[at + 4 : at + 8] = b"\xff" * 4
    path.write_bytes(content)
    image = Image(str(path))
    assert image.free_pages() is None
    image.close()


def test_values_of_each_kind() -> None:
    """As sqlite.org/fileformat2 has them; what none of them is, is damage."""
    assert _value(struct.pack(">d", 1.5), 0, 7) == (1.5, 8)
    for kind in (10, 11):
        with pytest.raises(ValueError):
            _value(b"", 0, kind)


def test_a_page_whose_cells_begin_in_front_of_it_does_not_add_up(path: Path) -> None:
    """So something of it is not where it was."""
    fill(path, count=50)
    image = Image(str(path))
    data = bytearray(image.newest(2).data)  # type: ignore[union-attr]
    assert adds_up(image, 2, bytes(data))
    data[5:7] = (1).to_bytes(2, "big")
    assert not adds_up(image, 2, bytes(data))
    image.close()


def test_a_key_of_an_inner_page_that_is_garbled_bounds_nothing(path: Path) -> None:
    """The children are found all the same; between which keys the two beside it are is not known."""
    fill(path)
    image = Image(str(path))
    number = next(n for n in image.numbers() if (page := image.newest(n)) and page.data[0] == INTERIOR_INDEX)
    data = bytearray(image.newest(number).data)  # type: ignore[union-attr]
    sound = children(image, number, bytes(data))
    cell = int.from_bytes(data[12:14], "big")
    data[cell + 4 : cell + 8] = b"\xff" * 4  # longer than a row of ours is
    first, second, *others = children(image, number, bytes(data))
    assert [one.page for one in (first, second, *others)] == [one.page for one in sound]
    assert (sound[0].below, first.below, second.above, second.below) == (sound[1].above, None, None, sound[1].below)
    assert others == sound[2:]
    assert sound[0].below is not None
    image.close()


def test_free_pages_that_are_in_use_are_none(path: Path) -> None:
    """The list is not believed: every row is there, and none that was removed, from a page that it names no more."""
    fill(path)
    there = rows_of(path).keys()
    content = bytearray(path.read_bytes())
    trunk = int.from_bytes(content[32:36], "big")
    first = (trunk - 1) * PAGE_BYTES + 8
    leaves = int.from_bytes(content[first - 4 : first], "big")

    def page(at: int) -> bytearray:
        begin = (int.from_bytes(content[at : at + 4], "big") - 1) * PAGE_BYTES
        return content[begin : begin + PAGE_BYTES]

    at = next(at for at in range(first, first + 4 * leaves, 4) if b"task:" in page(at))
    content[at : at + 4] = (2).to_bytes(4, "big")
    path.write_bytes(content)
    with salvaging(str(path), Clock()) as found:
        gaps = found.read()
        assert {task.task_id for task in found.tasks()} == there
    assert (gaps.damaged, gaps.broken_rows) == (0, 0)


def test_a_lock_file_that_cannot_be_opened_tells_a_salvage_nothing(path: Path) -> None:
    """A folder in its place: what the pages hold comes out, and is not called older than it is."""
    with Registry(path, durability="normal") as registry:
        registry.run("t", lambda: 1, name="job")
        registry.add("u")
    lock_file = path.with_name(f"{path.name}-lock")
    lock_file.unlink()
    lock_file.mkdir()
    with salvaging(str(path), Clock()) as found:
        gaps = found.read()
        assert {task.task_id: task.status for task in found.tasks()} == {"t": Status.SUCCEEDED, "u": Status.PENDING}
    assert (gaps.are_none, gaps.lost_frames) == (True, False)


def test_a_look_names_no_more_rows_than_asked(path: Path) -> None:
    """Of those whose seals do not hold."""
    with Registry(path, durability="normal") as registry:
        for number in range(5):
            registry.run(f"t:{number}", lambda: 1, name="job")
    tamper(path, "UPDATE idempotent_log SET token = token + 1")
    look = Look(str(path), Clock(), None)
    assert len(look.broken_seals(2)) == 2
    look.close()


# --- rows -------------------------------------------------------------------------------------------------------


def test_a_glance_at_a_result_of_another_type_sees_nothing(path: Path) -> None:
    """A whole read tells what is wrong; and a purge what is wrong with a date."""
    with Registry(path, durability="normal") as registry:
        registry.run("t", lambda: 7, name="job")
        asked = wanted("t", "job", b"null", Options.of({}, "normal"))
    with kept_open(path):
        mistype(path, "idempotent_log SET result = 1.5")
        with Registry(path, durability="normal") as registry:
            (row,) = database_of(registry).read(
                lambda connection: connection.execute("SELECT checksum FROM idempotent_log").fetchall()
            )
            exactly = asked._replace(checksum=str(row[0]))
            assert database_of(registry).read(tasks.glance, SCHEMA.version, exactly) is None
        mistype(path, "idempotent_log SET updated_at = 1.5")
        with Registry(path, durability="normal") as registry, pytest.raises(StoreCorruptError, match="date"):
            registry.purge(older_than=0)


def test_limits_go_with_their_task(registry: Registry) -> None:
    """A purge takes them along."""
    registry.run("t", lambda: 7, name="job", lease=60)
    assert registry.purge(older_than=0).removed == 1
    left = database_of(registry).read(lambda on: on.execute("SELECT * FROM idempotent_lease").fetchall())
    assert left == []


def test_where_it_comes_from_is_not_told_of_another_schema(path: Path, registry: Registry) -> None:
    """The file was migrated under this process."""
    registry.run("t", lambda: 1)
    open_second(str(path)).close()
    with pytest.raises(StoreVersionError):
        registry.store.origin()


def test_a_tree_that_leads_to_anothers_row_is_damage(path: Path) -> None:
    """Two cells in each other's place: the row that is found is whole, and it is not the task's."""
    with Registry(path, durability="normal") as registry:
        for number in range(9):
            registry.run(f"t:{number}", lambda: 1, name="job")
    content = bytearray(path.read_bytes())
    page = next(at for at in range(0, len(content), PAGE_BYTES) if b"t:8" in content[at : at + PAGE_BYTES])
    places = content[page + 8 : page + 8 + 18]
    content[page + 8 : page + 8 + 18] = b"".join(places[at : at + 2] for at in range(16, -2, -2))  # backwards
    with Registry(path, durability="normal") as registry:
        registry.open()
        path.write_bytes(content)
        told = [tell(registry, f"t:{number}") for number in range(9)]
    assert "damage" in told
    assert set(told) <= {"damage", "none", "its own"}


def tell(registry: Registry, task_id: str) -> str:
    try:
        task = registry.get(task_id)
    except StoreCorruptError:
        return "damage"
    return "none" if task is None else "its own" if task.task_id == task_id else "another's"


# --- what is kept beside it -------------------------------------------------------------------------------------


def test_a_head_of_the_wal_in_either_order_is_verified(copy: Path, registry: Registry) -> None:
    """By its magic the checksums are of one order of bytes or the other."""
    assert noted.Wal.of(None) == noted.Wal()
    wal = f"{copy}-wal"
    salts = rest._read_some(wal, 16, 8)
    assert not rest._has_damaged_header(wal, salts)
    with open(wal, "r+b") as file:
        head = int.from_bytes(file.read(4), "big")
        file.seek(0)
        file.write((head ^ 1).to_bytes(4, "big"))
    assert rest._has_damaged_header(wal, salts)
    assert registry.get("t:1") is not None


def test_a_checkpoint_without_an_index_notes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done all the same."""
    monkeypatch.setattr(walindex, "VERSION", 1)
    with Registry(path) as registry:
        registry.run("t", lambda: 1)
        assert not registry.checkpoint("TRUNCATE").busy
        assert registry.get("t") is not None


def test_a_commit_in_the_middle_of_a_note_leaves_none(path: Path, registry: Registry) -> None:
    """What was looked at would not be what is there; nothing is said of the files then."""
    registry.run("t", lambda: 1)
    assert not registry.checkpoint("TRUNCATE").busy
    index: Any = database_of(registry).index
    lock_file = LockFile(f"{path}-lock").open()
    assert rest._read(lock_file).noted == 1
    noted.void(lock_file)
    looks: list[int] = []

    class Late:
        moved = 0

        def header(self) -> bytes | None:
            looks.append(1)
            if len(looks) == 2:
                registry.run("u", lambda: 1)
            found: bytes | None = index.header()
            return found

    noted.note(str(path), lock_file, cast("Any", Late()))
    assert (len(looks), rest._read(lock_file).noted) == (2, 0)
    lock_file.close()


def test_another_wal_beside_another_database_is_no_exchange(path: Path, registry: Registry) -> None:
    """Only the very files prove one."""
    registry.run("t", lambda: 1)
    lock_file = LockFile(f"{path}-lock").open()
    left = rest._read(lock_file)._replace(inode=1, lock_inode=os.fstat(lock_file.fd).st_ino)
    rest._check_inodes(str(path), lock_file, left, 2, wal_inode=3)
    with pytest.raises(StoreCorruptError, match="replaced"):
        rest._check_inodes(str(path), lock_file, left, 2, os.stat(f"{path}-wal").st_ino)
    lock_file.close()


def test_an_index_that_is_always_being_changed_is_not_known(registry: Registry) -> None:
    """Its two copies never agree: a writer was killed between them, and SQLite is asked to look."""
    database = database_of(registry)
    connection = database.take(NORMAL)
    index = WalIndex(connection)
    was_known = index.is_known
    index.copies = SimpleNamespace(raw=b"a" * 48 + b"b" * 48)
    assert index.header() is None
    assert (was_known, index.is_known) == (True, False)
    index.close()
    database.give_back(connection, NORMAL)


def test_who_looks_through_a_descriptor_that_was_closed_is_told(path: Path, registry: Registry) -> None:
    """Whatever said so first; a size that changes as often as it is looked at is left to the next look."""
    registry.run("t", lambda: 1)
    assert not _no()
    lock_file = LockFile(f"{path}-lock").open()
    guard = Guard(str(path), lock_file, Clock())
    with pytest.raises(FilesReplacedError, match=CLOSED[:20]):
        guard._look_again(OSError(errno.ENXIO, "an empty file"))

    class Growing:
        size = 10**9

        @property
        def used_bytes(self) -> int:
            Growing.size += 1
            return Growing.size

    guard._wal = os.open(f"{path}-wal", os.O_RDONLY)
    guard._index = cast("Any", Growing())
    guard._check_wal()
    os.close(guard._wal)
    guard.close()
    lock_file.close()


def test_names_that_went_meanwhile(tmp_path: Path) -> None:
    """A folder is no database; and a file that is gone has no other name."""
    with pytest.raises(StorePathError, match="is a folder"):
        _check_kind(str(tmp_path), os.stat(tmp_path), is_database=True)
    assert not _has_other_names(str(tmp_path / "gone"), 1)


# --- opening and closing ----------------------------------------------------------------------------------------


def test_an_opening_without_memory_leaves_nothing_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one opens."""

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(opened, "Owners", fail)
        with pytest.raises(MemoryError), Registry(path) as registry:
            registry.open()
    assert left_open(path) == []
    with Registry(path) as registry:
        assert registry.run("t", lambda: 1).result == 1


def test_who_comes_after_the_close_does_not_come_in(registry: Registry) -> None:
    """And whoever is in when it is asked for leaves as the last, who closes."""
    registry.run("t", lambda: 1)
    there = opening_of(registry)
    first, user = there.opened(), object()
    assert first.enter(user)
    first.leave(user)
    with there.using_open() as inside:
        assert inside is first
        registry.close()
        was_closed = first.is_closed
    assert (was_closed, first.is_closed) == (False, True)
    assert not first.enter_late(user)
    there.serve(lambda: None, lambda: None)
    assert registry.get("t") is not None


def test_a_close_that_is_interrupted_closes(path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without moving the -wal, for which there may be no time."""
    registry.run("t", lambda: 1, name="job")
    database, calls = database_of(registry), []
    close = database._close_connections

    def interrupted(*, may_move: bool) -> None:
        calls.append(may_move)
        if len(calls) == 1:
            raise KeyboardInterrupt
        close(may_move=may_move)

    monkeypatch.setattr(database, "_close_connections", interrupted)
    with pytest.raises(KeyboardInterrupt):
        registry.close()
    assert calls == [True, False]
    assert left_open(path) == []
    with Registry(path) as again:
        assert again.run("t", lambda: 2, name="job").replayed


def test_an_interrupt_behind_the_commit_of_many_wakes_them(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken along was carried out, and whoever waits for it is not left asleep."""
    registry.run("warm", lambda: 1)
    database = database_of(registry)
    give_back = database.give_back

    def interrupted(connection: Connection, synchronous: int) -> None:
        give_back(connection, synchronous)
        monkeypatch.undo()
        raise KeyboardInterrupt

    mine, other = (Write(lambda _: 1, durable=False) for _ in range(2))
    other.state = "waiting"
    database.gate.waiting.append(other)
    monkeypatch.setattr(database, "give_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        database._come_through(mine, [mine], Clock().monotonic() + 1)
    assert other.is_carried_out
    assert other.sleep(0)
    assert not database.gate.is_taken


def test_a_child_of_a_process_with_a_thread_in_sqlite(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the fork did not wait for it: the connection is left to the parent, and the child opens its own."""
    monkeypatch.setattr(forking, "FORK_PATIENCE_S", 0)
    registry.run("t", lambda: 7, name="job")
    goes = threading.Event()
    inside = threading.Thread(target=database_of(registry).read, args=(lambda _: goes.wait(PATIENCE_S),))
    inside.start()
    until(lambda: forking.inside)
    said = in_child(lambda: str(registry.run("t", lambda: 8, name="job").result))
    goes.set()
    inside.join(PATIENCE_S)
    assert said == "7"


def test_a_new_task_behind_many_is_read_where_a_connection_may_only_read(registry: Registry) -> None:
    """The claim at once is taken back, and the general path takes another connection for it."""
    registry.run("warm", lambda: 1)
    there = opening_of(registry).opened()
    there.new_in_a_row = hot.SURELY_NEW
    connection = there.database.take(NORMAL)
    connection.pragma("query_only", 1)
    there.database.give_back(connection, NORMAL)
    assert registry.run("t", lambda: 7).result == 7
    task = registry.get("t")
    assert task is not None
    assert task.status is Status.SUCCEEDED


# --- every call of the system, the n-th of its kind -------------------------------------------------------------

EACH_CALL = """
import shutil
from idemreg import Registry, StoreError
kind, error = sys.argv[2], getattr(errno, sys.argv[3])

def new(number):
    with Registry(sys.argv[1] + f".{number}.jobs.db") as registry: registry.open()
def killed(number):
    path = sys.argv[1] + f".{number}.jobs.db"
    for end in ("", "-wal", "-lock"): shutil.copy(sys.argv[1] + ".kept" + end, path + end)
    fail(kind, error, number=number)
    with Registry(path) as registry: registry.open()
def backup(number): registry.backup(sys.argv[1] + f".{number}.out")
def whole(number):
    database.is_whole()
def grown(number):
    hits()
    with Registry(sys.argv[1] + f".{number}.jobs.db") as one:
        one.open()
        sync = one.store._opening.opened().database.sync
        while sync.syncs < 18: one.run(f"u:{sync.syncs}", lambda: 1)
        fail(kind, error, number=number)
        for n in range(3): one.run(f"v:{n}", lambda: 1)

registry = Registry(sys.argv[1])
for number in range(30): registry.run(f"warm:{number}", lambda: 1)
database = registry.store._opening.opened().database
for end in ("", "-wal", "-lock"): shutil.copy(sys.argv[1] + end, sys.argv[1] + ".kept" + end)
told = set()
for number in range(1, 60):
    fail(kind, error, number=number)
    try: globals()[sys.argv[4]](number)
    except StoreError as caught: told.add("store error")
    else: told.add("done")
    if not hits(): break
say(*sorted(told))
"""


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("kind", "error", "call"),
    [
        ("read", "EIO", "new"),
        ("sync", "EIO", "new"),
        ("map", "ENOMEM", "new"),
        ("read", "EIO", "killed"),
        ("sync", "EIO", "killed"),
        ("map", "ENOMEM", "killed"),
        ("read", "EIO", "backup"),
        ("write", "ENOSPC", "backup"),
        ("read", "EIO", "whole"),
        ("sync", "EIO", "grown"),
    ],
)
def test_whichever_call_fails_it_is_a_store_error(path: Path, kind: str, error: str, call: str) -> None:
    """Of all that an opening, a backup, a look at all tables or a claim asks of the system."""
    with FaultedScript(EACH_CALL, path, kind, error, call) as script:
        assert "store error" in script.line()
        assert script.end() == 0
    with contextlib.closing(connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


FULL_AT_OPENING = """
from idemreg import Registry, StoreError

with Registry(sys.argv[1]) as registry: registry.open()
told = set()
for number in range(1, 60):
    path = sys.argv[1] if sys.argv[2] == "old" else f"{sys.argv[1]}.{number}.jobs.db"
    fail("write", errno.ENOSPC, number=number)
    try:
        with Registry(path) as registry: registry.open()
    except StoreError as caught: told.add(f"{caught.code} {caught.retryable}")
    if not hits(): break
say(number > 1, *sorted(told))
"""


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("file", ["new", "old"])
def test_a_disk_that_is_full_at_the_opening_is_told_as_full(path: Path, file: str) -> None:
    """At whichever write it shows, also where SQLite speaks of an I/O error: the same call may succeed later."""
    with FaultedScript(FULL_AT_OPENING, path, file) as script:
        script.expect("True store-full True")
        assert script.end() == 0


NO_LOCKS = """
from idemreg import Registry, StoreError
from tests.torture.injected.shim import LASTING

def look():
    with Registry(sys.argv[1]) as registry: return registry.get("t").status.word

with Registry(sys.argv[1]) as registry: registry.run("t", lambda: 1)
fail("lock", errno.EIO, number=LASTING)
look()
last, told = _fault.seen, set()
for number in range(last - 15, last):
    fail("lock", errno.EIO, number=number, lasting=LASTING)
    try: told.add(look())
    except StoreError: told.add("store error")
hits()
say(*sorted(told), look())
"""


@pytest.mark.usefixtures("compiler")
def test_where_locks_come_to_an_end_the_opening_is_a_store_error(path: Path) -> None:
    """At whichever of the last of them; nothing is left that would keep the next from opening."""
    with FaultedScript(NO_LOCKS, path) as script:
        script.expect("store error succeeded succeeded")
        assert script.end() == 0
