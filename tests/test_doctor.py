"""The doctor: every finding is planted and found, nothing is changed by looking, and a healthy file is well."""

from __future__ import annotations

import contextlib
import errno
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import Clock, Registry, oslock
from idemreg.doctor import CHECKS, Severity, could_not_open, examine, is_well
from idemreg.doctor.finding import CANNOT_OPEN, KINDS
from idemreg.lockfile import DATABASE_OFFSET, LockFile, owner_byte, random_owner
from idemreg.processes import locks_on
from idemreg.sqlite import files, looking, pages
from idemreg.sqlite.looking import BROKEN, WAITING
from idemreg.sqlite.making import PAGE_BYTES
from idemreg.sqlite.walindex import FILE_HEADER_BYTES, FRAME_HEADER_BYTES
from idemreg.testing import ManualClock
from tests.support.faulted import FaultedScript
from tests.support.paused import PAUSE, has_stopped
from tests.support.processes import Script
from tests.support.raw import connect, reseal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from idemreg.doctor import Finding

READER = """
    from tests.support.raw import connect
    connection = connect(sys.argv[1])
    connection.execute("begin")
    connection.execute("select count(*) from idempotent_log").fetchall()
    say("reading")
    wait()
"""

OWNER = """
    from idemreg import Registry
    claim = Registry(sys.argv[1]).claim("killed", name="job")
    say("claimed")
    wait()
"""


class Scene:
    """A registry in which something is planted, and how it is examined."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
        self.path = path
        self.patch = monkeypatch
        self.clock: Clock | None = None
        self._stack = stack

    def registry(self) -> Registry:
        """One that stays open."""
        return self._stack.enter_context(Registry(self.path, durability="normal"))

    def closed(self, work: Callable[[Registry], object] = Registry.open) -> None:
        """One that was used, and is closed."""
        with Registry(self.path, durability="normal") as registry:
            work(registry)

    def tamper(self, *statements: str, seal: bool = False) -> None:
        """As another program would, which obeys no rule; with a ``seal``, as if idemreg had written it so."""
        connection = connect(self.path)
        connection.pragma("ignore_check_constraints", 1)
        for statement in statements:
            connection.execute(statement).fetchall()
        if seal:
            reseal(connection)
        connection.close()

    def killed(self) -> None:
        """A process is killed in the middle of its task."""
        with Script(OWNER, self.path) as script:
            script.expect("claimed")
            script.kill()

    def script(self, source: str, words: str) -> Script:
        """A process that stays as it is after it has said these words."""
        script = self._stack.enter_context(Script(source, self.path))
        script.expect(words)
        return script

    def overwrite(self, offset: int, data: bytes, end: str = "") -> None:
        with open(f"{self.path}{end}", "r+b") as file:
            file.seek(offset)
            file.write(data)

    def statvfs(self, **changed: int) -> None:
        """The file system says something else of itself."""
        found = os.statvfs(self.path.parent)
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_flag")
        values = tuple(changed.get(name, getattr(found, name)) for name in (*names, "f_namemax"))
        self.patch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))

    def find(self, code: str) -> list[Finding]:
        return [one for one in examine(self.path, clock=self.clock) if one.code == code]


@pytest.fixture
def scene(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        yield Scene(path, monkeypatch, stack)


def fail(registry: Registry, task_id: str, **options: Any) -> None:
    def job() -> None:
        raise LookupError

    with contextlib.suppress(LookupError):
        registry.run(task_id, job, name="job", **options)


# --- every finding, planted -------------------------------------------------------------------------------------

PLANTS: dict[str, Callable[[Scene], object]] = {}


def plants(code: str) -> Callable[[Callable[[Scene], object]], Callable[[Scene], object]]:
    def register(plant: Callable[[Scene], object]) -> Callable[[Scene], object]:
        PLANTS[code] = plant
        return plant

    return register


for healthy in ("versions", "filesystem", "locks", "settings", "wal", "sound", "tasks"):
    PLANTS[healthy] = Scene.closed


@plants("sqlite-version")
def _(scene: Scene) -> None:
    scene.closed()
    scene.patch.setattr(looking, "versions", lambda: ("3.40.1.0", "3.40.1"))


@plants("filesystem-unknown")
def _(scene: Scene) -> None:
    scene.closed()
    scene.patch.setattr(files, "filesystem_type", partial(files.filesystem_type, mounts_path="/nonexistent"))


@plants("network-filesystem")
def _(scene: Scene) -> None:
    scene.closed()
    mounts = scene.path.with_name("mountinfo")
    mounts.write_text(f"22 1 0:35 / {scene.path.parent} rw - nfs4 server:/export rw\n")
    scene.patch.setattr(files, "filesystem_type", partial(files.filesystem_type, mounts_path=str(mounts)))


@plants("mounted-alone")
def _(scene: Scene) -> None:
    scene.closed()
    mounts = scene.path.with_name("mountinfo")
    mounts.write_text(f"22 1 254:0 /jobs.db {scene.path} rw - ext4 /dev/vda rw\n")
    scene.patch.setattr(files, "is_mounted_alone", partial(files.is_mounted_alone, mounts_path=str(mounts)))


@plants("read-only")
def _(scene: Scene) -> None:
    scene.closed()
    scene.statvfs(f_flag=os.ST_RDONLY)


@plants("disk-full")
def _(scene: Scene) -> None:
    scene.closed()
    scene.statvfs(f_frsize=4_096, f_bavail=1_000)


@plants("low-space")
def _(scene: Scene) -> None:
    scene.closed()
    scene.statvfs(f_frsize=4_096, f_bavail=20_000)


@plants("missing")
def _(scene: Scene) -> None:
    assert not scene.path.exists()


@plants("not-a-file")
def _(scene: Scene) -> None:
    scene.path.mkdir()


@plants("unreadable")
def _(scene: Scene) -> None:
    scene.path.symlink_to(scene.path)


@plants("not-writable")
def _(scene: Scene) -> None:
    scene.closed()
    real = os.access
    scene.patch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))


@plants("world-writable")
def _(scene: Scene) -> None:
    scene.closed()
    scene.path.chmod(0o666)


@plants("untrusted")
def _(scene: Scene) -> None:
    scene.closed()
    scene.path.parent.chmod(0o777)


@plants("planted")
def _(scene: Scene) -> None:
    scene.closed()
    os.mkfifo(f"{scene.path}-journal")


@plants("schema-altered")
def _(scene: Scene) -> None:
    scene.closed()
    scene.tamper("CREATE TRIGGER t AFTER INSERT ON idempotent_log BEGIN DELETE FROM idempotent_log; END")


@plants("foreign-owner")
def _(scene: Scene) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    scene.closed()
    os.chown(f"{scene.path}-lock", 65_534, 65_534)


@plants("lock-file-missing")
def _(scene: Scene) -> None:
    scene.closed()
    os.unlink(f"{scene.path}-lock")


@plants("lock-file-empty")
def _(scene: Scene) -> None:
    scene.closed()
    os.truncate(f"{scene.path}-lock", 0)


@plants("sync-failed")
def _(scene: Scene) -> None:
    scene.closed()
    lock_file = LockFile(f"{scene.path}-lock").open()
    lock_file.note_failed_sync()
    lock_file.close()


@plants("lock-file-foreign")
def _(scene: Scene) -> None:
    scene.closed()
    scene.overwrite(0, b"my notes", "-lock")


@plants("lock-file-unreadable")
def _(scene: Scene) -> None:
    scene.closed()
    real = os.open

    def refuse(path: str, *rest: Any, **more: Any) -> int:
        if str(path).endswith("-lock"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **more)

    scene.patch.setattr(os, "open", refuse)


@plants("lock-file-replaced")
def _(scene: Scene) -> None:
    scene.closed()
    scene.overwrite(DATABASE_OFFSET - 8, b"?" * 8, "-lock")  # of a random id, which one byte could be already


@plants("locks-inert")
def _(scene: Scene) -> None:
    scene.closed()
    scene.patch.setattr(oslock, "is_held", lambda *_: False)


@plants("locks-untried")
def _(scene: Scene) -> None:
    def refuse(fd: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    scene.closed()
    scene.patch.setattr(os, "dup", refuse)


@plants("empty")
def _(scene: Scene) -> None:
    scene.path.touch()


@plants("vanished")
def _(scene: Scene) -> None:
    scene.closed()
    os.truncate(scene.path, 0)


@plants("not-a-database")
def _(scene: Scene) -> None:
    scene.path.write_text("my notes\n" * 1_000)


@plants("damaged-header")
def _(scene: Scene) -> None:
    scene.closed()
    scene.overwrite(0, b"\xff" * 100)


@plants("foreign")
def _(scene: Scene) -> None:
    scene.tamper("create table t (x)")


@plants("cannot-open")
def _(scene: Scene) -> None:
    scene.closed()
    scene.patch.setattr(looking, "BUSY_MS", 1)
    hold = """
        from tests.support.raw import connect
        connection = connect(sys.argv[1])
        connection.pragma("locking_mode", "exclusive")
        connection.execute("begin immediate; update idempotent_registry set id = 1; commit")
        say("held")
        wait()
    """
    scene.script(hold, "held")


@plants("schema-newer")
def _(scene: Scene) -> None:
    scene.closed()
    scene.tamper("pragma user_version = 99")


@plants("schema-older")
def _(scene: Scene) -> None:
    scene.closed()
    scene.tamper("pragma user_version = 0")


@plants("registry-row-missing")
def _(scene: Scene) -> None:
    scene.closed()
    scene.tamper("delete from idempotent_registry")


@plants("setting-refused")
def _(scene: Scene) -> None:
    scene.closed()
    scene.patch.setitem(looking.WANTED_SETTINGS, "synchronous", 9)


@plants("journal-mode")
def _(scene: Scene) -> None:
    scene.closed()
    scene.tamper("pragma journal_mode = delete")


@plants("page-layout")
def _(scene: Scene) -> None:
    other = connect(scene.path)  # whoever comes first says how large a page is
    other.pragma("page_size", 8192)
    other.pragma("journal_mode", "wal")
    other.close()
    scene.closed()


@plants("wal-lost")
def _(scene: Scene) -> None:
    with scene.script(OWNER, "claimed") as owner:
        owner.kill()
    scene.path.with_name(f"{scene.path.name}-wal").unlink()


@plants("wal-reader")
def _(scene: Scene) -> Script:
    scene.registry().add("t")
    return scene.script(READER, "reading")


@plants("wal-large")
def _(scene: Scene) -> Script:
    registry = scene.registry()
    registry.add("t")
    reader = scene.script(READER, "reading")
    for number in range(20):
        registry.claim(f"big:{number}").succeed("x" * 900_000)
    return reader


@plants("integrity")
def _(scene: Scene) -> None:
    scene.closed(lambda registry: [registry.add(f"task:{number}") for number in range(200)])
    size = scene.path.stat().st_size
    scene.overwrite(size - 3 * 2_048 + 8, b"\xff" * 200)


@plants("row-invalid")
def _(scene: Scene) -> None:
    scene.closed(lambda registry: registry.add("t"))
    scene.tamper("update idempotent_log set status = 9")


@plants("seal-broken")
def _(scene: Scene) -> None:
    scene.closed(lambda registry: registry.run("t", lambda: 1, name="job"))
    scene.tamper("update idempotent_log set attempt = 2")


@plants("page-checksums-missing")
def _(scene: Scene) -> None:
    Registry(scene.path, page_checksums=True).open().close()
    scene.closed()
    scene.patch.setattr(pages, "vfs", lambda: None)


@plants("large-missing")
def _(scene: Scene) -> None:
    scene.closed(lambda registry: registry.run("t", lambda: "x" * 1_000, name="job"))
    scene.tamper("delete from idempotent_large")


@plants("large-orphaned")
def _(scene: Scene) -> None:
    scene.closed()
    scene.tamper("insert into idempotent_large values ('t', null, null)")


@plants("steps-orphaned")
def _(scene: Scene) -> None:
    def work(registry: Registry) -> None:
        with registry.claim("t", name="job") as claim:
            claim.run_step("one", lambda: 1)

    scene.closed(work)
    scene.tamper("delete from idempotent_log")


@plants("arguments-orphaned")
def _(scene: Scene) -> None:
    def work(registry: Registry) -> None:
        @registry.idempotent("t", name="job", recover=True)
        def job() -> None:
            raise LookupError

        with contextlib.suppress(LookupError):
            job()

    scene.closed(work)
    scene.tamper("delete from idempotent_log")


@plants("owner")
def _(scene: Scene) -> Script:
    scene.closed()
    return scene.script(OWNER, "claimed")


PLANTS["owner-dead"] = PLANTS["running-dead"] = Scene.killed


@plants("owner-cannot-tell")
def _(scene: Scene) -> None:
    scene.killed()
    scene.tamper("update idempotent_owner set lock_id = 'another'", seal=True)


PLANTS["running-cannot-tell"] = PLANTS["owner-cannot-tell"]


@plants("byte-unrecorded")
def _(scene: Scene) -> None:
    scene.closed()
    fd = os.open(f"{scene.path}-lock", os.O_RDWR)
    scene._stack.callback(os.close, fd)
    assert oslock.try_lock(fd, owner_byte(random_owner()))


LIMITED = f"""
{PAUSE}
from idemreg import Registry
claim = Registry(sys.argv[1]).claim("t", name="job", on_crash="rerun", lease=1, timeout=0.001)
say("claimed")
pause()
"""


def past_its_limits(scene: Scene) -> None:
    """A process is stopped past its lease and its time; it lives."""
    script = scene.script(LIMITED, "claimed")
    has_stopped(script)
    scene._stack.callback(script.kill)
    real = Clock()
    scene.clock = ManualClock(wall_us=real.wall_us(), boot_ms=real.boot_ms() + 60_000, boot_id=real.boot_id())


PLANTS["lease-expired"] = PLANTS["overdue"] = past_its_limits


def interrupted(scene: Scene, **options: Any) -> None:
    """A job with kept arguments is interrupted while its owner lives."""

    def work(registry: Registry) -> None:
        @registry.idempotent("t", name="job", recover=True, **options)
        def job() -> None:
            raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            job()

    scene.closed(work)


@plants("rerun-waiting")
def _(scene: Scene) -> None:
    interrupted(scene, on_crash="rerun")


@plants("unknown")
def _(scene: Scene) -> None:
    scene.closed(lambda registry: fail(registry, "t", unknown_on=LookupError))


@plants("clock-suspended")
def _(scene: Scene) -> None:
    scene.clock = clock = ManualClock()
    with Registry(scene.path, durability="normal", clock=clock) as registry:
        registry.check_clock()
        clock.set(wall_us=clock.wall_us() + 3_600_000_000)
        assert registry.check_clock().is_suspended


@plants("dead-letter")
def _(scene: Scene) -> None:
    scene.closed(lambda registry: fail(registry, "t", max_attempts=1))


@plants("failed-held")
def _(scene: Scene) -> None:
    scene.closed(lambda registry: fail(registry, "t", on_failure="hold"))


@plants("clock-behind")
def _(scene: Scene) -> None:
    scene.closed(lambda registry: registry.add("t"))
    scene.clock = ManualClock(wall_us=0)


@plants("other-boot")
def _(scene: Scene) -> None:
    scene.closed(lambda registry: registry.add("t"))
    scene.clock = ManualClock(wall_us=2**60, boot_id="another")


@plants("several-boots")
def _(scene: Scene) -> None:
    for task_id in ("a", "b"):
        scene.registry().run(task_id, lambda: 1, name="job")  # its owner stays recorded while it is open
    scene.tamper(
        "update idempotent_owner set boot_id = 'x' where id = (select min(id) from idempotent_owner)", seal=True
    )


class Hurrying(ManualClock):
    """A second passes at each look at it."""

    def monotonic(self) -> float:
        self.advance(1)
        return super().monotonic()


@plants("unfinished")
def _(scene: Scene) -> None:
    scene.closed(lambda registry: [registry.add(f"task:{number}") for number in range(500)])
    scene.patch.setattr(looking, "STEPS_BETWEEN_LOOKS_AT_THE_CLOCK", 500)
    scene.clock = Hurrying(wall_us=2**60)


@plants("check-failed")
def _(scene: Scene) -> None:
    scene.closed()

    def broken(_path: str) -> None:
        raise OSError(5, "Input/output error")

    scene.patch.setattr(os, "statvfs", broken)


def test_every_finding_has_a_plant() -> None:
    """A new kind of finding cannot come without a case that plants it."""
    assert PLANTS.keys() == KINDS.keys()


@pytest.mark.parametrize("code", KINDS)
def test_what_is_planted_is_found(scene: Scene, code: str) -> None:
    """Each kind is found where it is, with its severity and its hint, and never in a file that is well."""
    planted = PLANTS[code](scene)
    findings = examine(scene.path, clock=scene.clock)
    found = [one for one in findings if one.code == code]
    assert found, findings
    assert {(one.severity, one.hint) for one in found} == {KINDS[code]}
    assert all(one.text.endswith(".") for one in found)
    if isinstance(planted, Script):  # a living process is named
        assert all(str(planted.process.pid) in one.text for one in found)
    assert could_not_open(findings) == bool(CANNOT_OPEN & {one.code for one in findings})
    assert is_well(findings) == all(one.severity is Severity.INFO for one in findings)


@pytest.mark.parametrize("code", [code for code, (severity, _) in KINDS.items() if severity > Severity.INFO])
def test_what_is_wrong_has_a_remedy(code: str) -> None:
    """From a warning on, a finding says what to do."""
    assert KINDS[code][1]


# --- work that waits --------------------------------------------------------------------------------------------

RECOVERABLE = """
    from idemreg import Registry
    registry = Registry(sys.argv[1])
    options = eval(sys.argv[2])
    @registry.idempotent("t", name="job", recover=True, **options)
    def job():
        say("begun")
        wait()
    job()
"""


@pytest.mark.parametrize(
    ("options", "waits"),
    [
        ({"on_crash": "rerun"}, True),
        ({"on_crash": "rerun", "max_attempts": 1}, False),
        ({"on_crash": "hold"}, False),
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_alive", [False, True])
def test_a_dead_task_that_a_sweep_would_run_waits_for_one(
    scene: Scene,
    options: dict[str, Any],
    waits: bool,  # noqa: FBT001
    is_alive: bool,  # noqa: FBT001
) -> None:
    """What asked to be run again, and may be; not what a living owner is at work on."""
    with Script(RECOVERABLE, scene.path, repr(options)) as script:
        script.expect("begun")
        if not is_alive:
            script.kill()
        found = scene.find("rerun-waiting")
        assert bool(found) is (waits and not is_alive)
        assert all("'t'" in one.text for one in found)


def test_what_a_sweep_leaves_waits_for_none(scene: Scene) -> None:
    """The finding and the sweep agree, whatever became of a task with kept arguments."""
    verify: dict[str, Any] = {"on_crash": "verify", "verify": lambda _task: None}
    interrupted(scene, **verify)
    assert scene.find("rerun-waiting")
    with Registry(scene.path, durability="normal") as registry:
        ran = []
        registry.idempotent("t", name="job", recover=True, **verify)(lambda: ran.append(1))
        registry.sweep()
        assert not scene.find("rerun-waiting")  # the hook cannot tell: a person is to
        registry.resolve("t", "did-not-happen")
        assert scene.find("rerun-waiting")
        registry.sweep()
        assert ran == [1]
        assert not scene.find("rerun-waiting")


def test_a_task_within_its_limits_is_no_finding(scene: Scene) -> None:
    """Nor one whose owner is dead: that is told as such."""
    with Script(LIMITED.replace("0.001", "600").replace("lease=1", "lease=600"), scene.path) as script:
        script.expect("claimed")
        assert not scene.find("lease-expired")
        assert not scene.find("overdue")
        script.kill()
        real = Clock()
        scene.clock = ManualClock(wall_us=real.wall_us(), boot_ms=real.boot_ms() + 10**6, boot_id=real.boot_id())
        assert not scene.find("lease-expired")
        assert not scene.find("overdue")
        assert scene.find("running-dead")


# --- rows -------------------------------------------------------------------------------------------------------

BREAKS = {
    "its task_id is empty or too long": "update idempotent_log set task_id = ''",
    "its status is none that exists": "update idempotent_log set status = 7",
    "it has an owner and does not run, or runs without one": "update idempotent_log set owner = 1",
    "its checksum is none": "update idempotent_log set checksum = 'no'",
    "its token or its attempt is negative": "update idempotent_log set attempt = -1",
    "it ran and was never claimed": "update idempotent_log set token = 0",
    "its token is of a boot that has not been": "update idempotent_log set token = 900 << 40",
    "its policy is none": "update idempotent_log set policy = 3",
    "its verdict is none": "update idempotent_log set verdict = 7",
    "its large values are stored twice": "update idempotent_log set is_large = 1",
    "it succeeded, and neither a result nor the reason of its loss is stored": (
        "update idempotent_log set result = null"
    ),
    "its result is not JSON": "update idempotent_log set result = '{'",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_row_that_idemreg_never_writes(scene: Scene, what: str) -> None:
    """Each thing that cannot be wrong in a row is told by its name when it is, and the task by its id."""
    scene.closed(lambda registry: registry.run("a-task", lambda: 1, name="job"))
    scene.tamper(BREAKS[what])
    (found,) = scene.find("row-invalid")
    assert what in found.text
    assert repr("" if what.startswith("its task_id") else "a-task") in found.text


def test_rows_of_every_status_are_sound(scene: Scene) -> None:
    """What idemreg itself writes never counts as broken, whatever became of the task."""

    def work(registry: Registry) -> None:
        registry.run("result", lambda: {"n": [1, None]}, name="job")
        registry.run("large", lambda: "x" * 5_000, name="job")
        with contextlib.suppress(Exception):
            registry.run("lost", object, name="job")
        fail(registry, "failed")
        fail(registry, "unknown", unknown_on=LookupError)
        fail(registry, "settled", unknown_on=LookupError)
        registry.resolve("settled", "happened")
        fail(registry, "again", max_attempts=1)
        registry.retry("again")
        for task_id in ("pending", "skipped", "cancelled"):
            registry.add(task_id)
        registry.skip("skipped", "no")
        registry.cancel("cancelled")
        fail(registry, "released", release_on=LookupError)

    scene.closed(work)
    assert not scene.find("row-invalid")
    assert not scene.find("large-missing")
    assert not scene.find("integrity")


def test_a_page_with_a_wrong_checksum_is_damage(scene: Scene) -> None:
    """SQLite's check ends at it by an error, which is its finding; the other checks go on."""
    Registry(scene.path, page_checksums=True).open().close()
    scene.closed(lambda registry: [registry.add(f"task:{number}") for number in range(200)])
    scene.overwrite(scene.path.stat().st_size - 3 * 2_048 + 8, b"\xff")
    (found,) = scene.find("integrity")
    assert "a page of the file has a wrong checksum" in found.text
    assert not scene.find("sound")
    assert scene.find("layout") or scene.find("locks")


def test_waiting_tasks_are_counted_by_the_index(scene: Scene) -> None:
    """The lists of what waits for a person read the index of what needs attention, not all tasks."""
    scene.closed()
    connection = connect(scene.path)
    for condition in WAITING.values():
        question = f"explain query plan select task_id from idempotent_log where {condition}"  # noqa: S608 - a constant
        plan = connection.execute(question).fetchall()
        assert "idempotent_attention" in str(plan)
    connection.close()


def test_an_id_that_is_no_text_is_told(scene: Scene) -> None:
    """A damaged id is spelled out, and keeps nothing else from being told."""
    scene.closed(lambda registry: fail(registry, "t", max_attempts=1))
    scene.tamper("update idempotent_log set task_id = cast(x'74ff' as text)")
    (found,) = scene.find("dead-letter")
    assert "t\\\\xff" in found.text


def test_a_database_that_is_gone_beside_its_lock_file_has_vanished(scene: Scene) -> None:
    """It is not one that was never made, which `init` would make: that refuses."""
    scene.closed()
    os.unlink(scene.path)
    (found,) = (one for one in examine(scene.path) if one.severity >= Severity.ERROR)
    assert found.code == "vanished"


@pytest.mark.parametrize("code", ["damaged-header", "integrity", "registry-row-missing", "wal-lost", "seal-broken"])
def test_damage_is_told_with_the_way_out(code: str) -> None:
    """As the other commands' hint names it."""
    assert "idemreg doctor --salvage OUT" in KINDS[code][1]


# --- nothing is changed -----------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All files but the -shm, which is only an index, by content and time of change."""
    return {
        name: (b"", 0) if name.endswith("-shm") else ((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns)
        for name in sorted(os.listdir(folder))
    }


def crashed(scene: Scene) -> None:
    scene.killed()


def crashed_without_index(scene: Scene) -> None:
    scene.killed()
    os.unlink(f"{scene.path}-shm")


@pytest.mark.parametrize(
    "arrange",
    [
        Scene.closed,
        crashed,
        crashed_without_index,
        PLANTS["missing"],
        PLANTS["empty"],
        PLANTS["not-a-database"],
        PLANTS["damaged-header"],
        PLANTS["foreign"],
        PLANTS["journal-mode"],
        PLANTS["not-writable"],
        PLANTS["lock-file-missing"],
        PLANTS["lock-file-empty"],
        PLANTS["vanished"],
    ],
)
def test_looking_changes_nothing(scene: Scene, arrange: Callable[[Scene], object]) -> None:
    """No file comes, goes or changes, whatever state the files are in."""
    arrange(scene)
    before = contents(scene.path.parent)
    first, second = ([one.code for one in examine(scene.path, full=True)] for _ in range(2))
    assert contents(scene.path.parent) == before
    assert first == second


def test_where_nothing_may_be_written_the_journal_mode_is_the_files_own(scene: Scene) -> None:
    """It is looked at as an immutable file then, which SQLite never calls a wal; nobody has changed it."""
    PLANTS["not-writable"](scene)
    assert {one.code for one in examine(scene.path) if one.severity.word != "info"} == {"not-writable"}


def test_a_stranger_may_look_and_changes_nothing(open_folder: Path) -> None:
    """A user who may read the files and not write them gets an answer, in use as well as closed; no file comes."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    path = open_folder / "jobs.db"
    source = """
        from idemreg.doctor import examine
        examine(sys.argv[1])
        wait()
        os.setgroups([])
        os.setresgid(65534, 65534, 0)  # the group of root has its own rights
        os.setresuid(65534, 65534, 0)
        say(*(one.code for one in examine(sys.argv[1]) if one.severity.word != "info"))
        wait()
        say(*(one.code for one in examine(sys.argv[1]) if one.code in ("sound", "unknown", "check-failed")))
        os.setresuid(0, 0, 0)  # what it took is written down by somebody who may
    """
    with Registry(path, durability="normal") as registry:
        fail(registry, "t", unknown_on=LookupError)
        for name in os.listdir(open_folder):
            (open_folder / name).chmod(0o644)
        with Script(source, path) as stranger:
            stranger.go()
            stranger.expect("foreign-owner not-writable not-writable lock-file-unreadable owner-cannot-tell unknown")
            registry.close()
            before = contents(open_folder)
            stranger.go()
            stranger.expect("sound unknown")
            assert stranger.end() == 0
    assert contents(open_folder) == before


@pytest.mark.usefixtures("compiler")
def test_a_file_that_this_user_may_not_read_is_told(scene: Scene) -> None:
    """As root may read all, the system itself says no here; nothing else is looked at."""
    scene.closed()
    source = """
        from idemreg.doctor import examine
        fail("look", errno.EACCES, lasting=9)
        found = examine(sys.argv[1])
        say(hits() > 0, *(one.code for one in found), "may not be read by this user" in found[-1].text)
    """
    with FaultedScript(source, scene.path) as script:
        script.expect("True versions unreadable True")
        assert script.end() == 0


def test_only_a_registry_lacks_its_lock_file(scene: Scene) -> None:
    """Of a file that is none it is told that it is none, and no word of a file that it never had."""
    scene.path.write_bytes(b"no database" * 1_000)
    assert [one.code for one in examine(scene.path)][-1] == "not-a-database"
    assert not scene.find("lock-file-missing")
    scene.path.unlink()
    scene.tamper("create table t (n)")
    assert [one.code for one in examine(scene.path)][-1] == "foreign"
    assert not scene.find("lock-file-missing")


def test_a_wal_that_others_have_open_is_theirs(scene: Scene) -> None:
    """What they have lost they are told themselves; the next to open the files compares them."""
    with scene.script(OWNER, "claimed") as owner:
        size = os.path.getsize(f"{scene.path}-wal")
        for frame in range(FILE_HEADER_BYTES, size, FRAME_HEADER_BYTES + PAGE_BYTES):  # that of the last was synced
            scene.overwrite(frame + 16, b"\0" * 8, "-wal")  # its checksum
        assert not scene.find("wal-lost")
        owner.kill()
    assert scene.find("wal-lost")


def test_another_boot_of_a_registry_without_tasks(scene: Scene) -> None:
    """There are no rows whose boots could be told."""
    scene.closed()
    scene.clock = ManualClock(wall_us=2**60, boot_id="another")
    assert [one.text for one in scene.find("other-boot")] == [
        "The registry was last opened in another boot of the machine."
    ]


@pytest.mark.parametrize("arrange", [crashed, crashed_without_index])
def test_what_only_the_wal_holds_is_seen(scene: Scene, arrange: Callable[[Scene], object]) -> None:
    """After a crash the newest rows are in the -wal alone, and the doctor reads them there."""
    arrange(scene)
    (found,) = scene.find("running-dead")
    assert "'killed'" in found.text


def test_the_locks_of_this_process_survive(scene: Scene) -> None:
    """Examined by a process that uses the file, SQLite's locks and the owner's byte are held as before."""
    registry = scene.registry()
    claim = registry.claim("t", name="job")

    def look() -> list[tuple[str, int, int, int]]:
        return sorted(
            (end, lock.pid, lock.first, lock.last)
            for end in ("", "-shm", "-lock")
            for lock in locks_on(f"{scene.path}{end}") or []
        )

    def held() -> list[tuple[str, int, int, int]]:
        """What two looks agree on: one alone may miss a lock, while other processes lock and unlock."""
        found = look()
        while found != (found := look()):
            pass
        return found

    before = held()
    assert len(before) >= 3
    assert is_well(registry.doctor())
    assert held() == before
    claim.succeed(1)


def test_a_healthy_file_is_well(scene: Scene) -> None:
    """A registry in use has no finding above information, by the method and by its path, in full and in brief."""
    registry = scene.registry()
    registry.run("t", lambda: "x" * 1_000, name="job")
    for findings in (registry.doctor(), registry.doctor(full=True), examine(scene.path), examine(str(scene.path))):
        assert is_well(findings), findings
        assert not could_not_open(findings)


def test_a_failed_check_leaves_the_others(scene: Scene) -> None:
    """What one check cannot find out keeps no other from its work."""
    PLANTS["check-failed"](scene)
    PLANTS["unknown"](scene)
    codes = [one.code for one in examine(scene.path)]
    assert "check-failed" in codes
    assert "unknown" in codes


def test_every_check_has_a_line_that_says_what_it_looks_at() -> None:
    """Checks are told by their docstrings."""
    assert all(check.run.__doc__ for check in CHECKS)


def test_ctrl_c_ends_a_long_look(scene: Scene) -> None:
    """Interrupted inside a question to SQLite, nothing stays open and nothing is changed."""
    PLANTS["unfinished"](scene)
    before = contents(scene.path.parent)

    class Interrupting(Hurrying):
        def monotonic(self) -> float:
            if super().monotonic() > 20:
                raise KeyboardInterrupt
            return 0.0

    with pytest.raises(KeyboardInterrupt):
        examine(scene.path, clock=Interrupting())
    assert contents(scene.path.parent) == before


def test_a_task_id_that_is_gone_keeps_no_other_from_being_told(scene: Scene) -> None:
    """Damage makes anything of a value, a NULL where none may be: the row is told, and the examination goes on."""
    scene.closed(lambda registry: [registry.add(f"task:{number}") for number in range(3)])
    content = bytearray(scene.path.read_bytes())
    at = content.index(b"task:1")
    record = content.rindex(b"\x19", 0, at)  # text of six bytes: the type of the first value, in the record's header
    content[record] = 0  # NULL
    scene.path.write_bytes(content)
    findings = examine(scene.path)
    assert any("(none)" in one.text for one in findings), findings
    assert "tasks" in [one.code for one in findings]
