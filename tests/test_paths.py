"""Bad paths, full disks, files of other versions: a typed error with a hint, before any job starts."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from idemreg import (
    Registry,
    Status,
    StoreCorruptError,
    StoreError,
    StorePathError,
    StoreVersionError,
    TaskUnknownError,
    oslock,
)
from idemreg.clock import Clock
from idemreg.sqlite import connection as connections
from idemreg.sqlite import files
from idemreg.sqlite.connection import FULL, connect
from idemreg.sqlite.making import check_identity
from tests.support import raw
from tests.support.faulted import FaultedScript
from tests.support.processes import Script
from tests.support.second_schema import open_second

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def refuse(path: Any, error: type[Exception] = StorePathError, **options: Any) -> Exception:
    """The error of the first call, whose job must not start."""
    with pytest.raises(error) as caught, Registry(path, **options) as registry:
        registry.run("task", lambda: pytest.fail("the job started"))
    assert getattr(caught.value, "hint", "")
    return caught.value


@pytest.mark.parametrize("path", ["", ":memory:", "nul\0", b"bytes.db", "lone\ud800", "bytes\udcff"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    """Nothing that would not outlive the process, and nothing that the system cannot name."""
    refuse(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder, a FIFO, a device, and a file in a folder that is not there."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", "/dev/null", tmp_path / "missing" / "jobs.db"):
        refuse(path)


def test_a_file_of_two_names_is_refused(path: Path, registry: Registry) -> None:
    """Each name would have a lock file and a -wal of its own: two owners of one task, and a damaged file."""
    registry.run("task", lambda: 1, name="job")
    registry.close()
    second = path.with_name("second.db")
    os.link(path, second)
    refuse(path)
    refuse(second)
    second.unlink()
    assert registry.run("task", lambda: pytest.fail("the job started"), name="job").replayed


@pytest.mark.parametrize("is_left", [False, True])
def test_a_file_that_is_just_being_placed_is_not_refused(path: Path, registry: Registry, *, is_left: bool) -> None:
    """The second name that a backup has for a moment, or for ever where it was killed there, is nobody's."""
    registry.run("task", lambda: 1, name="job")
    copy = path.with_name("copy.db")
    source = """
        from idemreg import Registry
        link = os.link
        def then_wait(part, path):
            link(part, path)
            say("linked")
            wait()
        os.link = then_wait
        Registry(sys.argv[1]).backup(sys.argv[2])
    """
    with Script(source, path, copy) as script:
        script.expect("linked")
        assert os.stat(copy).st_nlink == 2
        if is_left:
            script.kill()
        with Registry(copy) as opened:
            assert opened.run("task", lambda: pytest.fail("the job started"), name="job").replayed
        if not is_left:
            script.go()
            assert script.end() == 0


@pytest.mark.parametrize("content", [b"junk\n", b"idemreg lock 2\0\0", b"\0" * 40 + b"x", b"idemreg lock 1\0!"])
def test_a_foreign_file_in_the_lock_files_place_is_left_alone(path: Path, content: bytes) -> None:
    """However short it is."""
    lock = path.with_name(f"{path.name}-lock")
    lock.write_bytes(content)
    refuse(path)
    assert lock.read_bytes() == content
    assert not path.exists()


HALF = (b"idemreg lock 1\0\0" + b"i" * 16).ljust(2_048, b"\0")


@pytest.mark.parametrize("content", [b"", b"\0" * 4_096, b"idemreg", b"idemreg lock 1\0\0id", HALF])
def test_a_lock_file_whose_writer_was_stopped_is_written_again(path: Path, content: bytes) -> None:
    """Nobody can have used an id that is not there."""
    path.with_name(f"{path.name}-lock").write_bytes(content)
    with Registry(path) as registry:
        assert registry.run("task", lambda: 1).result == 1


def test_a_fifo_in_the_lock_files_place_is_refused(path: Path) -> None:
    """It hangs nobody, and is a typed error."""
    os.mkfifo(f"{path}-lock")
    refuse(path)
    assert not path.exists()


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    """It is left as it was, and no lock file is put beside it."""
    path = tmp_path / "other.db"
    connection = apsw.Connection(str(path))
    connection.execute("create table t (x)")
    connection.close()
    before = path.read_bytes()
    refuse(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["other.db"]


@pytest.mark.parametrize("statement", range(4))
def test_a_registry_that_another_process_makes_meanwhile_is_no_foreign_file(path: Path, statement: int) -> None:
    """Between any two statements of the look at a file that has its header and no table yet."""
    made = apsw.Connection(str(path))
    made.pragma("journal_mode", "wal")
    made.close()
    seen: list[str] = []

    def make_it_now(_cursor: object, sql: str, _bindings: object) -> bool:
        if len(seen) == statement:
            Registry(path, durability="normal").add("task", name="job")
        seen.append(sql)
        return True

    connection = connect(str(path), synchronous=FULL, busy_s=1, clock=Clock())
    connection.exec_trace = make_it_now
    is_empty = check_identity(connection, str(path))
    connection.close()
    assert len(seen) > statement
    assert is_empty == (statement > 1)  # a transaction begins with its first read


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    """What is no database is left as it was."""
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n" * 1_000)
    refuse(path)
    assert path.read_text() == "my notes\n" * 1_000
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_missing_registry_is_not_made_where_it_must_exist(path: Path) -> None:
    """create=False never leaves a file behind."""
    assert "init" in refuse(path, create=False).hint  # type: ignore[attr-defined]
    assert os.listdir(path.parent) == []


def test_a_newer_schema_is_refused(path: Path) -> None:
    """Code that does not know the schema touches nothing of it."""
    open_second(str(path)).close()
    refuse(path, StoreVersionError)


def test_running_code_notices_a_migration(path: Path, registry: Registry) -> None:
    """A process that still runs the older code is told at its next call, whatever the call is."""
    running: list[Any] = []
    registry.run("task", lambda: running.append(registry.get("task")), name="job")
    open_second(str(path)).close()
    for call in (
        lambda: registry.run("task", lambda: 1, name="job"),
        lambda: registry.run("new", lambda: pytest.fail("the job started")),
        lambda: registry.get("missing"),
        lambda: registry.add("added"),
        lambda: list(registry.tasks()),
        registry.count,
        lambda: registry.steps("task"),
        lambda: registry.owner(running[0]),
        lambda: registry.reader.kept_of("task"),
    ):
        with pytest.raises(StoreVersionError):
            call()


def test_a_finish_after_a_migration_is_not_recorded(path: Path) -> None:
    """The older code must not write the row; the caller gets its result back."""
    source = """
        from idemreg import FinishNotRecordedError, Registry
        claim = Registry(sys.argv[1]).claim("task")
        say("claimed")
        wait()
        try: claim.succeed(7)
        except FinishNotRecordedError as error: say(error.result, error.__cause__.code)
    """
    with Script(source, path) as script:
        script.expect("claimed")
        open_second(str(path)).close()
        script.go()
        script.expect("7 store-version")


def test_a_vanished_database_is_not_made_anew(path: Path, registry: Registry) -> None:
    """Beside a surviving lock file an empty registry would run everything again."""
    registry.run("task", lambda: 1)
    registry.close()
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(f"{path}{suffix}"):
            os.unlink(f"{path}{suffix}")
    refuse(path, StoreCorruptError)


def test_a_damaged_header_is_an_error(path: Path, registry: Registry) -> None:
    """A registry whose first page is gone is damaged, not foreign."""
    registry.run("task", lambda: 1)
    registry.close()
    with path.open("r+b") as file:
        file.write(b"\xff" * 100)
    refuse(path, StoreCorruptError)


def test_a_folder_that_may_not_be_written_is_refused(open_folder: Path) -> None:
    """Seen by a user without rights: SQLite needs its -wal and -shm beside the database."""
    source = """
        import idemreg.calls
        from idemreg import Registry, StorePathError
        os.setuid(65534)
        try: Registry(sys.argv[1]).run("task", lambda: say("started"))
        except StorePathError as error: say("refused", bool(error.hint))
    """
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    with Script(source, open_folder / "jobs.db") as script:
        script.expect("refused True")
        assert script.end() == 0


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:35 / /mnt/nfs rw,relatime shared:2 - nfs4 server:/export rw,vers=4.2
41 22 0:36 / /mnt/my\\040share rw,relatime shared:3 - cifs //server/share rw
42 40 254:1 / /mnt/nfs/local rw,relatime shared:4 - xfs /dev/vdb rw
43 22 0:37 / /mnt/nine rw,relatime - 9p host rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/jobs.db", "ext4"),
        ("/mnt/nfs/jobs.db", "nfs4"),
        ("/mnt/my share/jobs.db", "cifs"),
        ("/mnt/nfs/local/jobs.db", "xfs"),
        ("/mnt/nfsx/jobs.db", "ext4"),
        ("/mnt/nine/a/jobs.db", "9p"),
    ],
)
def test_the_file_system_is_that_of_the_longest_mount_point(tmp_path: Path, path: str, kind: str) -> None:
    """Read from mountinfo as the kernel writes it, escapes included."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert files.filesystem_type(path, mounts_path=str(mounts)) == kind


def test_a_network_file_system_is_refused(tmp_path: Path) -> None:
    """Its locks and its shared memory do not reach the other clients."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 0:35 / {tmp_path} rw - nfs4 server:/export rw\n")
    with pytest.raises(StorePathError):
        files.locate(str(tmp_path / "jobs.db"), mounts_path=str(mounts))


def test_a_file_that_is_mounted_by_itself_is_refused(tmp_path: Path) -> None:
    """The -wal and the lock file beside it are not those of who mounts the folder: both would run each task."""
    path, mounts = str(tmp_path / "my jobs.db"), tmp_path / "mountinfo"
    folder, file = (f"{place} rw - ext4 /dev/vda rw\n" for place in (tmp_path, f"{tmp_path}/my\\040jobs.db"))
    mounts.write_text(f"22 1 254:0 / {folder}23 22 254:0 /home/jobs.db {file}")
    with pytest.raises(StorePathError, match="mounted by itself") as caught:
        files.locate(path, mounts_path=str(mounts))
    assert "Mount the folder" in caught.value.hint
    mounts.write_text(f"23 1 254:0 /home/jobs.db {file}22 23 254:0 / {folder}")  # which covers that of the file
    assert files.locate(path, mounts_path=str(mounts)).database == path


@pytest.mark.parametrize("version", ["3.40.1", "3.51.2", "3.52.0", "3.52.3"])
def test_an_old_sqlite_is_refused(version: str) -> None:
    """Those that can corrupt a WAL, and the withdrawn release."""
    with pytest.raises(StoreVersionError):
        files.check_sqlite_version(version)
    files.check_sqlite_version("3.51.3")
    files.check_sqlite_version("3.54.1")


def test_a_platform_without_locks_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing could prove a death there: no job starts, and no file is made."""
    monkeypatch.setattr(oslock, "SUPPORTED", False)
    assert refuse(path, StoreError).hint == "idemreg runs on Linux."  # type: ignore[attr-defined]
    assert os.listdir(path.parent) == []


def test_a_setting_that_sqlite_does_not_take_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read back: nobody goes on with another than was asked for, and no job starts."""
    Registry(path).run("there", lambda: 1)
    with pytest.raises(StoreError, match="synchronous=9"):
        connect(str(path), synchronous=9, busy_s=1, clock=Clock())
    monkeypatch.setattr(connections, "HARD", ((apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 2),))
    with pytest.raises(StoreError, match="ENABLE_TRIGGER=2"), Registry(path) as registry:
        registry.run("task", lambda: pytest.fail("the job started"))
    monkeypatch.undo()
    with Registry(path) as registry:
        assert registry.get("task") is None
        assert registry.run("there", lambda: 2).replayed


def test_the_file_is_set_up_as_designed(path: Path, registry: Registry) -> None:
    """WAL, no page checksums unless they are asked for, our application id and version, and nobody else's to read."""
    registry.open()
    connection = raw.connect(path)
    assert connection.pragma("journal_mode") == "wal"
    assert connection.reserve_bytes() == 0
    assert connection.pragma("application_id") == 0x1DE34E61
    assert connection.pragma("user_version") == 1
    connection.close()
    for name in (path, f"{path}-lock"):
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o600


def test_a_lock_file_that_cannot_be_written_is_no_failed_sync(path: Path) -> None:
    """Nothing is answered that needs a sync then; and once there is room, all goes on in the same process."""
    source = """
        import resource, signal
        from idemreg import Registry, SyncFailedError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        registry = Registry(sys.argv[1])
        registry.run("first", lambda: 1)
        registry.run("task", lambda: 7, name="job", durability="normal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        try: say(registry.get("task").status.word)
        except SyncFailedError: say("refused")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        say(registry.get("task").status.word)
        say(registry.run("after", lambda: 8).result)
    """
    with Script(source, path) as script:
        script.expect("refused")
        script.expect("succeeded")
        script.expect("8")
        assert script.end() == 0


def test_the_wal_is_not_grown_into_the_last_of_a_disk(path: Path) -> None:
    """Where the working size has no room, the -wal stays as it is: what is left of the disk is for rows."""
    source = """
        import resource, signal
        from idemreg import Registry
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
        registry = Registry(sys.argv[1])
        for number in range(30):
            registry.run(f"t{number}", lambda: 1)
        say(os.path.getsize(sys.argv[1] + "-wal") < 1_000_000)
    """
    with Script(source, path) as script:
        script.expect("True")
        assert script.end() == 0


def test_a_full_disk_starts_nothing_and_loses_nothing(path: Path, open_registry: Callable[..., Registry]) -> None:
    """A claim that cannot be stored does not start; a finish that cannot be stored raises with the result attached."""
    source = """
        import resource, signal
        from idemreg import FinishNotRecordedError, Registry, StoreError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        registry = Registry(sys.argv[1])
        registry.run("before", lambda: 1)
        def fill():  # not one byte more, wherever in the -wal
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        def job():
            fill()
            return "done"
        try: registry.run("task", job, name="job")
        except FinishNotRecordedError as error: say("not recorded", error.result)
        try: registry.run("next", lambda: say("started"))
        except StoreError as error: say("refused", error.exit_code)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        registry.run("after", lambda: 1)
        say(registry.get("task").status.word)
    """
    with Script(source, path) as script:
        script.expect("not recorded done")
        script.expect("refused 74")
        script.expect("unknown")  # stored as soon as something could be
        assert script.end() == 0
    registry = open_registry()
    with pytest.raises(TaskUnknownError):
        registry.run("task", lambda: pytest.fail("the job started"), name="job")
    before = registry.get("before")
    assert before is not None
    assert before.status is Status.SUCCEEDED
    assert registry.get("next") is None


MANY_OPEN = """
import resource
from idemreg import IdemregError, Registry
def is_open(fd):
    try: return bool(os.fstat(fd))
    except OSError: return False
def count(): return sum(map(is_open, range(int(sys.argv[2]))))  # which needs no descriptor itself
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
kept = []
try:
    for number in range(64):
        kept.append(Registry(f"{sys.argv[1]}{number}", durability="normal"))
        before = count()
        kept[-1].run("task", lambda: 1)
except IdemregError as error:
    kept[-1].close()
    say(error.code, error.retryable, "ulimit -n" in error.hint, count() - before)
"""


@pytest.mark.parametrize("limit", range(40, 52))
def test_too_many_open_files_is_no_fault_of_the_path(path: Path, limit: int) -> None:
    """Wherever in the opening a process runs out of descriptors, the hint says so, and none of them is lost."""
    with Script(MANY_OPEN, path, limit) as script:
        script.expect("store True True 0")


READ_ONLY_FOR_A_MOMENT = """
import contextlib
from idemreg import IdemregError, Registry
from idemreg.sqlite import hot
registry = Registry(sys.argv[1], durability="normal")
registry.run("warm", lambda: 1)
opened = registry.store._opening.opened()
database = opened.database
refused = 0

@contextlib.contextmanager
def refusing(number):
    global refused
    taken = [database.take(1) for _ in range(len(database._idle[1]))]
    fail("open", errno.EROFS, number=number)
    try: yield
    finally:
        refused = hits()
        for connection in taken: database.give_back(connection, 1)

def add(task_id, number):
    with refusing(number): registry.add(task_id)
def run(task_id, number):
    with refusing(number): registry.run(task_id, lambda: 7)
def run_at_once(task_id, number):
    opened.new_in_a_row = hot.SURELY_NEW
    run(task_id, number)
def finish(task_id, number):
    claim = registry.claim(task_id)
    with refusing(number): claim.succeed(7)
def effects(task_id, number):
    with registry.claim(task_id) as claim, refusing(number), claim.transaction() as effects:
        effects.execute("SELECT 1")

for number in range(1, 20):
    task_id = f"task:{number}"
    try: globals()[sys.argv[2]](task_id, number)
    except IdemregError as error: told = error.code
    else: told = "done"
    if not refused: break
    registry.run(f"after:{number}", lambda: 1)
    task = registry.get(task_id)
    say(told, task and task.status.word)
say("end")
"""


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("call", "without_database", "without_wal"),
    [
        ("add", "store-path None", "done pending"),
        ("run", "store-path None", "done succeeded"),
        ("run_at_once", "store-path None", "done succeeded"),
        ("finish", "finish-not-recorded unknown", "done succeeded"),
        ("effects", "store-path pending", "done succeeded"),
    ],
)
def test_files_that_may_not_be_written_for_a_moment(
    path: Path, call: str, without_database: str, without_wal: str
) -> None:
    """A new connection that may only read is told, or another is taken for it; and none is used again."""
    with FaultedScript(READ_ONLY_FOR_A_MOMENT, path, call) as script:
        script.expect(without_database)
        script.expect(without_wal)
        script.expect("end")
        assert script.end() == 0


SHM_READ_ONLY = """
from idemreg import Registry, StorePathError
from tests.support.descriptors import left_open
told, number, failed = set(), 0, 1
while failed:
    number += 1
    registry = Registry(sys.argv[1])
    fail("open", errno.EACCES, number=number)
    try: registry.open()
    except StorePathError as error: told.add(error.message)
    except Exception: pass
    failed = hits()
    registry.close()
    assert not left_open(sys.argv[1])
say(f"{sys.argv[1]}-shm cannot be opened for writing" in told)
with Registry(sys.argv[1]) as registry: say(registry.run("t", lambda: 7).result)
"""


@pytest.mark.usefixtures("compiler")
def test_an_index_that_may_not_be_written_is_told(path: Path, registry: Registry) -> None:
    """While others have the file open SQLite would take it for one of a read-only disk, and write nothing for good."""
    registry.run("warm", lambda: 1)
    with FaultedScript(SHM_READ_ONLY, path) as script:
        script.expect("True")
        script.expect("7")
        assert script.end() == 0


UNREADABLE = """
from idemreg import Registry, StoreCorruptError, StoreError
from idemreg.model import Status
path, where, call = sys.argv[1:]
keeper = Registry(path)
for number in range(60): keeper.run(f"t{number}", lambda: "x" * 400)
if where == "database": keeper.close()
elif where == "alone":
    keeper.close()
    os.remove(f"{path}-lock")
told, places, number, failed = [], set(), 0, 1
while failed:
    number += 1
    registry = Registry(path, durability="normal")
    if call != "open": registry.open()
    fail("read", errno.EIO, number=number)
    try:
        if call == "look": registry.count(), registry.get("t7"), [task for task in registry.tasks()]
        elif call == "claim": registry.run(f"new:{number}", lambda: 1)
        elif call == "add": registry.add(f"new:{number}")
        else: registry.open()
    except StoreError as error: told.append(error)
    failed = hits()
    assert registry.get("t7").status is Status.SUCCEEDED
    registry.close()
    if where == "alone": os.remove(f"{path}-lock")
say(number > 3 and len(told) > 1)
say(*{str(error) for error in told if isinstance(error, StoreCorruptError)}, "-")
"""


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("database", "open"),
        ("database", "look"),
        ("database", "claim"),
        ("database", "add"),
        ("wal", "look"),
        ("alone", "open"),
    ],
)
@pytest.mark.usefixtures("compiler")
def test_a_disk_that_cannot_be_read_is_not_told_as_damage(path: Path, where: str, call: str) -> None:
    """Whichever read fails, of the database or the -wal: nobody is told to put a backup in a sound file's place."""
    with FaultedScript(UNREADABLE, path, where, call) as script:
        script.expect("True")
        script.expect("-")
        assert script.end() == 0


UNREADABLE_THEN_DAMAGED = """
import subprocess
from idemreg import Registry, StoreCorruptError, StoreError
path = sys.argv[1]
with Registry(path) as registry:
    for number in range(60): registry.run(f"t{number}", lambda: "x" * 400)
registry.open()
def told():
    try: return [task for task in registry.tasks()] and "whole"
    except StoreError as error: return type(error).__name__
fail("read", errno.EIO, number=2)
say(told(), hits())
damage = "import sys; file = open(sys.argv[1], 'r+b'); file.seek(40_960); file.write(bytes(int(sys.argv[2]) - 40_960))"
# By another process: to close a descriptor of it here would drop SQLite's locks.
subprocess.run([sys.executable, "-c", damage, path, str(os.path.getsize(path))], check=True)
say(told())
"""


@pytest.mark.usefixtures("compiler")
def test_damage_behind_a_read_that_failed_is_told_as_damage(path: Path) -> None:
    """What the disk has refused a connection once says nothing of what comes later."""
    with FaultedScript(UNREADABLE_THEN_DAMAGED, path) as script:
        script.expect("StoreError 1")
        script.expect("StoreCorruptError")
        assert script.end() == 0
