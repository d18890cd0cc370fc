"""backup: one instant of a file at work, complete or not at all, and a copy that runs nothing by mistake."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

import apsw
import pytest

from idemreg import Liveness, Registry, Status, StorePathError, TaskRunningError, faults
from idemreg.sqlite import copying
from tests.support.processes import PATIENCE_S, Script
from tests.support.raw import connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder / "copy.db"


def test_a_backup_opens_as_a_registry(registry: Registry, out: Path) -> None:
    """The copy holds the same rows, large ones included, and goes on with larger tokens and the same keys."""
    registry.run("large", lambda: "x" * 9_000)
    registry.run("t", lambda: 1)
    done = registry.backup(out)
    assert (done.path, done.bytes) == (str(out), out.stat().st_size)
    assert os.listdir(out.parent) == ["copy.db"]
    assert out.stat().st_mode & 0o777 == 0o600
    with Registry(out, create=False) as copy:
        assert list(copy.tasks()) == list(registry.tasks())
        assert copy.store.downstream_key("t") == registry.store.downstream_key("t")
        with copy.claim("new") as claim:
            assert claim.token > 1 << 40


def test_the_pages_are_the_same_kind(registry: Registry, out: Path) -> None:
    """Page size, reserved bytes, application and version of the header come over, and every page is sound."""
    registry.run("t", lambda: 1)
    registry.backup(out)
    connection = connect(out, apsw.SQLITE_OPEN_READONLY)
    try:
        names = ("page_size", "application_id", "user_version", "integrity_check")
        assert [connection.pragma(name) for name in names] == [2_048, 0x1DE3_4E61, 1, "ok"]
    finally:
        connection.close()
    assert out.read_bytes()[20] == 8  # "bytes of unused reserved space at the end of each page"


def test_it_is_one_instant(registry: Registry, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes while the pages are copied: the copy is as it was at the beginning, and is copied once."""
    monkeypatch.setattr(copying, "STEP_PAGES", 4)
    for number in range(400):
        registry.add(f"before:{number:03}")
    steps = []

    def write(done: int, total: int) -> None:
        steps.append((done, total))
        registry.add(f"while:{len(steps)}")
        registry.forget(f"before:{len(steps):03}")

    registry.backup(out, progress=write)
    total = steps[-1][1]
    assert len(steps) > 5
    assert [done for done, _ in steps] == [min(4 * number, total) for number in range(1, len(steps) + 1)]
    with Registry(out, create=False) as copy:
        assert [task.task_id for task in copy.tasks()] == [f"before:{number:03}" for number in range(400)]


def test_writers_of_other_threads_are_not_stopped(registry: Registry, out: Path) -> None:
    """No lock is held against writers: another thread claims and finishes in the middle of the copy."""
    registry.add("first")

    def write(_done: int, _total: int) -> None:
        thread = threading.Thread(target=lambda: registry.run("beside", lambda: 1))
        thread.start()
        thread.join(PATIENCE_S)

    registry.backup(out, progress=write)
    task = registry.get("beside")
    assert task is not None
    assert task.is_final


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal", "-lock"])
def test_nothing_is_overwritten(registry: Registry, out: Path, suffix: str) -> None:
    """A file at the name, or one that SQLite or idemreg would take for a part of it, is an error and stays as it is."""
    other = out.with_name(out.name + suffix)
    other.write_text("mine")
    with pytest.raises(StorePathError):
        registry.backup(out)
    assert os.listdir(out.parent) == [other.name]
    assert other.read_text() == "mine"


def write_mine(path: Path) -> None:
    path.write_text("mine")


def test_a_name_that_is_taken_meanwhile(registry: Registry, out: Path) -> None:
    """Also what appears at the name while the pages are copied is not replaced."""
    registry.open()
    faults.arm("place.synced", lambda: write_mine(out))
    with pytest.raises(StorePathError):
        registry.backup(out)
    assert out.read_text() == "mine"
    assert os.listdir(out.parent) == ["copy.db"]


def test_a_link_that_leads_nowhere_is_in_the_way(registry: Registry, out: Path) -> None:
    """A dangling link at the name is not written through."""
    out.symlink_to(out.parent / "elsewhere")
    with pytest.raises(StorePathError):
        registry.backup(out)
    assert os.listdir(out.parent) == ["copy.db"]


def test_a_file_system_without_links(registry: Registry, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no hard links the name is taken first: the copy still appears, and still replaces nothing."""

    def no_links(_source: str, _target: str) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    registry.add("t")
    registry.backup(out)
    with Registry(out, create=False) as copy:
        assert copy.get("t") is not None
    taken = out.with_name("taken.db")
    faults.arm("place.synced", lambda: write_mine(taken))
    with pytest.raises(StorePathError):
        registry.backup(taken)
    assert taken.read_text() == "mine"


@pytest.mark.parametrize("point", ["backup.copied", "place.synced"])
def test_an_interruption_leaves_nothing(registry: Registry, out: Path, point: str) -> None:
    """Ctrl-C at any time removes what was copied so far; the registry goes on, and so does a second try."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    registry.add("t")
    faults.arm(point, interrupt)
    with pytest.raises(KeyboardInterrupt):
        registry.backup(out)
    assert os.listdir(out.parent) == []
    faults.disarm()
    registry.run("u", lambda: 1)
    registry.backup(out)


def test_it_is_on_the_disk_before_it_has_its_name(
    registry: Registry, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is synced, then the name given, then the folder synced: after a power cut it is whole or absent."""
    registry.open()
    registry.backup(out.with_name("first.db"))  # what follows is the backup's own
    steps: list[str] = []
    sync, link = os.fsync, os.link

    def note_sync(fd: int) -> None:
        steps.append("sync of " + ("the folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "the file"))
        sync(fd)

    def note_link(source: str, target: str) -> None:
        steps.append("name")
        link(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "link", note_link)
    registry.backup(out)
    assert steps == ["sync of the file", "name", "sync of the folder"]


def test_a_disk_that_takes_no_more(registry: Registry, path: Path, out: Path) -> None:
    """A copy that cannot be written whole is an error of the store, and nothing of it is left."""
    for number in range(300):
        registry.add(f"t{number}")
    program = """
        import resource
        from idemreg import Registry, StoreError
        with Registry(sys.argv[1]) as registry:
            registry.open()
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            try: registry.backup(sys.argv[2])
            except StoreError as error: say(type(error.__cause__ or error).__module__)
    """
    with Script(program, path, out) as script:
        script.expect("apsw")
    assert os.listdir(out.parent) == []


def test_a_folder_that_is_not_there(registry: Registry, out: Path) -> None:
    """A copy that cannot be written is an error of the path."""
    with pytest.raises(StorePathError):
        registry.backup(out / "no" / "copy.db")


def test_the_copy_takes_nothing_over_from_a_living_owner(registry: Registry, out: Path) -> None:
    """On the same machine nobody can tell, by the copy's lock file, about the owner of a running task: it stays."""
    with registry.claim("t", name="job", on_crash="rerun"):
        registry.backup(out)
        with Registry(out, create=False) as copy:
            task = copy.get("t")
            assert task is not None
            owner = copy.owner(task)
            assert owner is not None
            assert owner.liveness is Liveness.CANNOT_TELL
            for on_crash in ("rerun", "hold"):
                with pytest.raises(TaskRunningError):
                    copy.run("t", lambda: 1, name="job", on_crash=on_crash)
    with Registry(out, create=False) as copy, pytest.raises(TaskRunningError):  # nor once the original has finished
        copy.run("t", lambda: 1, name="job", on_crash="rerun")


def test_a_copy_put_back_beside_the_lock_file_knows_the_dead(registry: Registry, path: Path, out: Path) -> None:
    """Restored in place, beside the lock file that survived, the dead are told from the living."""
    program = """
        from idemreg import Registry
        registry = Registry(sys.argv[1])
        claim = registry.claim("t", name="job")
        registry.backup(sys.argv[2])
        say("claimed")
        wait()
    """
    with Script(program, path, out) as script:
        script.expect("claimed")
        script.kill()
    registry.close()
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    out.rename(path)
    with Registry(path, create=False) as restored:
        assert restored.resolve("t", "did-not-happen").status is Status.FAILED


def test_a_lost_database_is_not_replaced_by_a_backup_command(
    registry: Registry, path: Path, open_registry: Callable[..., Registry], out: Path
) -> None:
    """Beside the lock file of a database that vanished a backup of another registry is refused."""
    registry.add("t")
    with Registry(out) as other:
        other.add("u")
        registry.close()
        path.unlink()
        with pytest.raises(StorePathError):
            other.backup(path)
    assert not path.exists()
