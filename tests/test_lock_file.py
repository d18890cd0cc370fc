"""The lock file and what stands on it: what cannot be opened, held or read is told, and is nobody's death."""

from __future__ import annotations

import errno
import os
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import apsw
import pytest

from idemreg import (
    Clock,
    Liveness,
    Registry,
    Status,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StorePathError,
    oslock,
)
from idemreg import lockfile as lockfiles
from idemreg.liveness import Examiner
from idemreg.lockfile import LockFile, random_owner, tells_of_database
from idemreg.placing import _sync, _take_name, make_file, new_file
from idemreg.sqlite import forking
from idemreg.sqlite.form import check_form
from idemreg.sqlite.making import set_wal
from idemreg.sqlite.owners import _hold
from idemreg.sqlite.readers import wal_readers
from idemreg.sqlite.upkeep import SCHEMA
from idemreg.testing import ManualClock
from tests.support.descriptors import left_open
from tests.support.faulted import FaultedScript
from tests.support.processes import Script
from tests.support.raw import connect
from tests.support.second_schema import open_second

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.opened import Opened


@pytest.fixture
def lock_file(registry: Registry, path: Path) -> LockFile:
    """That of an open registry, opened once more."""
    registry.run("t", lambda: 1)
    return LockFile(f"{path}-lock").open()


def opened(registry: Registry) -> Opened:
    return cast("SqliteStore", registry.store)._opening.opened()


def test_what_is_no_file_is_left_closed(tmp_path: Path) -> None:
    """A FIFO can be opened for both, and is no lock file."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StorePathError, match="in the way"):
        LockFile(str(tmp_path / "fifo")).open()
    assert left_open(tmp_path) == []


def test_memory_that_goes_behind_the_opening_leaves_it_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is passed on as it is."""

    def fail(_mode: int) -> bool:
        raise MemoryError

    monkeypatch.setattr(lockfiles, "stat", SimpleNamespace(S_ISREG=fail))
    with pytest.raises(MemoryError):
        LockFile(str(path)).open()
    assert left_open(path) == []


def test_who_makes_the_file_for_ever_is_waited_for_no_longer_than_asked(path: Path) -> None:
    """By another thread or process: nothing is opened meanwhile."""
    make_file(f"{path}-lock")
    maker, clock = LockFile(f"{path}-lock").open(), ManualClock()
    with maker.creation(Clock(), 1), Registry(path, clock=clock, busy_timeout=5) as registry:
        before = clock.monotonic()
        with pytest.raises(StoreBusyError, match="creating or migrating"):
            registry.open()
        assert 5 <= clock.monotonic() - before < 6
    maker.close()
    with Registry(path) as registry:
        assert registry.run("t", lambda: 1).result == 1


def test_what_was_cut_off_is_told(lock_file: LockFile) -> None:
    """By whoever reads it; and what cannot be read is no note that says no."""
    whole = lock_file.read(0, 4_096)
    os.truncate(lock_file.path, 100)
    with pytest.raises(StoreCorruptError, match="cut short"):
        lock_file.read(64, 104)
    assert lock_file.read_note(4_096)
    os.pwrite(lock_file.fd, whole, 0)
    lock_file.close()
    with pytest.raises(StoreError, match="cannot read the lock file"):
        lock_file.read_note(4_096)


def test_a_byte_that_is_held_is_nobodys_new_one(registry: Registry, lock_file: LockFile) -> None:
    """Chance cannot do it, so somebody locks at will: the owner is not made."""
    owner = random_owner()
    _hold(lock_file.fd, owner)
    with pytest.raises(StoreError, match="already held"):
        _hold(opened(registry).lock_file.fd, owner)
    lock_file.close()


def test_a_command_has_no_owner_without_the_lock_file(registry: Registry, lock_file: LockFile) -> None:
    """It was deleted: the error names it, and nothing is held."""
    lock_file.close()
    owners = opened(registry).owners
    kept = f"{lock_file.path}.kept"
    os.rename(lock_file.path, kept)
    with pytest.raises(StorePathError, match="No such file"):
        owners.command(lambda _: None, lambda: None)
    os.rename(kept, lock_file.path)
    assert owners.are_idle


def test_a_child_lets_go_of_the_commands_of_its_parent(registry: Registry, lock_file: LockFile) -> None:
    """Their descriptors are closed, and a batch that ended with its file gives nothing back."""
    lock_file.close()
    mine = opened(registry)
    command = mine.owners.command(lambda _: None, lambda: None)
    mine.owners.forget()
    assert command.fd == -1
    batch = mine.owners.batch(1)
    registry.close()
    batch.release()
    assert mine.owners.are_idle


def test_without_a_record_it_had_entered(registry: Registry, lock_file: LockFile) -> None:
    """Nothing says that it had not."""
    assert Examiner(lock_file, Clock()).has_entered(None, 0)
    assert registry.get("t") is not None
    lock_file.close()


def test_a_descriptor_that_is_closed_is_no_limit(lock_file: LockFile) -> None:
    """No other number is tried for it."""
    fd = lock_file.fd
    lock_file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        oslock._duplicate(fd, 700)


@pytest.mark.usefixtures("compiler")
def test_a_path_that_cannot_be_looked_at_proves_nobody_dead(path: Path) -> None:
    """The byte is free, and whether the lock file is the one at the path nobody can tell."""
    source = """
        from idemreg import Registry
        from idemreg.clock import Clock
        from idemreg.liveness import Examiner
        from idemreg.lockfile import LockFile, random_owner
        from tests.torture.injected.shim import LASTING
        Registry(sys.argv[1], durability="normal").open()
        examiner = Examiner(LockFile(sys.argv[1] + "-lock").open(), Clock())
        fail("stat", errno.EIO, lasting=LASTING)
        liveness, reason = examiner.examine(random_owner(), None)
        say(hits() > 0, liveness.value, reason)
    """
    with FaultedScript(source, path) as script:
        script.expect(f"True {Liveness.CANNOT_TELL.value} the lock file cannot be looked at: {os.strerror(errno.EIO)}")
        assert script.end() == 0


def test_a_file_that_is_gone_was_not_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that left one file in its parent's hands may make another."""
    monkeypatch.setattr(forking, "_left", {(0, 0)})
    assert not forking.is_left(str(path))


def test_nobody_reads(registry: Registry, path: Path) -> None:
    """However often it is looked."""
    registry.open()
    assert wal_readers(str(path), Clock()) == ()


def test_files_that_cannot_be_what_they_should_be(tmp_path: Path) -> None:
    """A database without WAL, and one whose text is not UTF-8, are refused."""
    connection = apsw.Connection(":memory:")
    with pytest.raises(StorePathError, match="WAL"):
        set_wal(connection)  # type: ignore[arg-type]
    connection.pragma("encoding", "UTF-16le")
    connection.execute(SCHEMA.read_text())
    with pytest.raises(StoreCorruptError, match="UTF-8"):
        check_form(connection, SCHEMA.read_text())  # type: ignore[arg-type]
    connection.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("open_it", [lambda path: Registry(path).open(), open_second], ids=["as it is", "migrated"])
def test_a_file_without_the_row_about_it_is_refused(path: Path, open_it: Callable[[str], object]) -> None:
    """Also where it is to be migrated: nobody can know which tokens were given."""
    with Registry(path) as registry:
        registry.run("t", lambda: 1)
    connection = connect(path)
    connection.execute("DELETE FROM idempotent_registry")
    connection.close()
    with pytest.raises(StoreCorruptError, match="missing"):
        open_it(str(path))


def test_no_checkpoint_of_another_mode(registry: Registry) -> None:
    """The modes are SQLite's own."""
    with pytest.raises(ValueError, match="no checkpoint mode"):
        registry.checkpoint("SOON")  # type: ignore[arg-type]


# --- a new file in its place ------------------------------------------------------------------------------------


def test_a_name_that_is_taken_meanwhile_is_not_taken_over(tmp_path: Path) -> None:
    """By a link; and the file that is there stays."""
    part, path = str(tmp_path / "part"), str(tmp_path / "name")
    make_file(part)
    make_file(path)
    with pytest.raises(StorePathError, match="exists already"):
        _take_name(part, path)
    with pytest.raises(StoreError, match="cannot sync"):
        _sync(str(tmp_path / "missing"))
    with pytest.raises(StorePathError, match="cannot write"), new_file(str(tmp_path / "missing" / "name")):
        pytest.fail("the block was entered")


@pytest.mark.usefixtures("compiler")
def test_neither_is_it_where_there_are_no_links(path: Path) -> None:
    """On such a file system the name is taken first, which fails as well."""
    source = """
        from idemreg.placing import _take_name, make_file
        from idemreg.errors import StoreError
        part, path = sys.argv[1] + "-part", sys.argv[1] + "-name"
        make_file(part); make_file(path)
        fail("name", errno.EPERM)
        try: _take_name(part, path)
        except StoreError as error: told = error.message
        say(hits(), "exists already" in told, os.path.exists(part))
    """
    with FaultedScript(source, path) as script:
        script.expect("1 True True")
        assert script.end() == 0


@pytest.mark.usefixtures("compiler")
def test_a_name_that_the_disk_refuses_is_not_taken(path: Path) -> None:
    """Neither by a link nor by a rename; nothing is left under the name, nor beside it."""
    source = """
        from idemreg.errors import StoreError
        from idemreg.placing import new_file
        from tests.torture.injected.shim import LASTING
        try:
            with new_file(sys.argv[1]) as part: fail("name", errno.EROFS, lasting=LASTING)
        except StoreError as error: told = type(error).__name__, error.message
        say(hits(), told[0], f"cannot write {sys.argv[1]}: Read-only file system" == told[1])
        say(os.listdir(os.path.dirname(sys.argv[1])))
    """
    with FaultedScript(source, path) as script:
        script.expect("2 StoreError True")
        script.expect("[]")
        assert script.end() == 0


def test_a_folder_of_another_user(path: Path) -> None:
    """May not be written, and is not trusted."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    source = """
        from idemreg.errors import StoreError
        from idemreg.sqlite import files, trust
        os.chdir(os.path.dirname(sys.argv[1]))
        os.setresuid(65_534, 65_534, 0)
        told = []
        for look in (lambda: files.locate("/etc/jobs.db"), lambda: trust._check_folder(".")):
            try: look()
            except StoreError as error: told.append(error.message)
        os.setresuid(0, 0, 0)
        say("may not be written" in told[0], "belongs to user 1000" in told[1])
    """
    os.chown(path.parent, 1_000, -1)
    path.parent.chmod(0o755)
    with Script(source, path) as script:
        script.expect("True True")
        assert script.end() == 0


def test_a_lock_file_that_was_written_over_proves_nobody_dead(path: Path, tmp_path: Path) -> None:
    """In its place, with that of another registry, while one is at work, who holds his byte all the same."""
    with Registry(tmp_path / "other.db") as other:
        other.open()
    with Registry(path, durability="normal") as registry:
        claim = registry.claim("t", name="job")
        shutil.copyfile(tmp_path / "other.db-lock", f"{path}-lock")  # as the content of a file is restored
        source = """
            from idemreg import Registry
            registry = Registry(sys.argv[1], durability="normal")
            say(registry.owner(registry.get("t")).liveness.value, registry.store.origin().registry_id)
        """
        with Script(source, path) as script:
            script.expect(f"alive {registry.store.origin().registry_id}")
            assert script.end() == 0
        claim.succeed(7)
        task = registry.get("t")
        assert task is not None
        assert (task.status, task.result) == (Status.SUCCEEDED, "7")


def test_what_cannot_be_read_tells_of_no_database(tmp_path: Path) -> None:
    """A folder in the place of the lock file, or nothing: whoever opens it says what it is."""
    (tmp_path / "folder").mkdir()
    assert not tells_of_database(str(tmp_path / "folder"))
    assert not tells_of_database(str(tmp_path / "nothing"))
