"""Hostile files: what others could plant, swap or point elsewhere is refused, unless forced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

from idemreg import AsyncRegistry, Registry, StoreCorruptError, StoreError, StorePathError, StoreVersionError
from idemreg.placing import COMPANIONS
from idemreg.sqlite.upkeep import SCHEMA
from tests.support import raw
from tests.support.processes import Script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STRANGER = 65_534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")


@pytest.fixture
def used(path: Path) -> Path:
    """A registry at rest, in a folder of its own."""
    with Registry(path) as registry:
        registry.run("task", lambda: 1, name="job")
    return path


def refuse(path: Path, kind: type[StoreError] = StorePathError) -> StoreError:
    """The error of the first call, whose job must not start."""
    with pytest.raises(kind) as caught, Registry(path) as registry:
        registry.run("task", lambda: pytest.fail("the job started"), name="job")
    return caught.value


def is_replayed(path: Path, *, forced: bool = False) -> bool:
    with Registry(path, unsafe_path=forced) as registry:
        return registry.run("task", lambda: pytest.fail("the job started"), name="job").replayed


# --- the files ------------------------------------------------------------------------------------------------------


def test_a_symbolic_link_is_refused_unless_forced(used: Path) -> None:
    """It may lead elsewhere tomorrow; forced, it is the file that it leads to."""
    link = used.with_name("link.db")
    link.symlink_to(used)
    assert "unsafe_path" in refuse(link).hint
    assert is_replayed(link, forced=True)
    assert not os.path.lexists(f"{link}-lock")


def test_a_hard_link_is_refused_unless_forced(used: Path) -> None:
    """Of the database, and of what lies beside it."""
    for end in ("", "-lock"):
        second = used.with_name("second")
        os.link(f"{used}{end}", second)
        refuse(used)
        assert is_replayed(used, forced=True)
        second.unlink()
    assert is_replayed(used)


def fifo(place: str) -> None:
    os.mkfifo(place)


def link(place: str) -> None:
    os.symlink("elsewhere", place)


def bound(place: str) -> None:
    with contextlib.chdir(os.path.dirname(place)), socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.basename(place))


def device(place: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a device")
    try:
        os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no devices may be made here")


@pytest.mark.parametrize("plant", [fifo, link, bound, device, os.mkdir])
@pytest.mark.parametrize("end", COMPANIONS)
def test_what_is_no_file_is_refused_beside_the_database(used: Path, end: str, plant: Callable[[str], None]) -> None:
    """By force as well, at once, and nothing is written through it."""
    place = f"{used}{end}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)
    plant(place)
    for forced in (False, True):
        with pytest.raises(StorePathError), Registry(used, unsafe_path=forced) as registry:
            registry.run("task", lambda: pytest.fail("the job started"), name="job")
    assert not used.with_name("elsewhere").exists()


@needs_root
@pytest.mark.parametrize("end", COMPANIONS)
def test_another_users_file_is_refused_unless_forced(used: Path, end: str) -> None:
    """Root looks after everybody's files, but not after one that another user has put beside those of a second."""
    place = f"{used}{end}"
    if not os.path.exists(place):
        with open(place, "wb"):
            pass
    os.chown(place, STRANGER, STRANGER)
    refuse(used)
    assert is_replayed(used, forced=True)


@needs_root
def test_another_users_database_is_refused_unless_forced(open_folder: Path) -> None:
    """By another user than root, whom the modes of files and folder give every right."""
    path = open_folder / "jobs.db"
    with Registry(path) as registry:
        registry.run("task", lambda: 1, name="job")
    source = """
        import idemreg.calls
        from idemreg import Registry, StorePathError
        os.seteuid(65533)
        try: Registry(sys.argv[1]).run("task", lambda: say("started"), name="job")
        except StorePathError as error: say("refused" if "belongs to" in error.message else error.message)
    """
    os.chown(open_folder, 0, STRANGER - 1)
    open_folder.chmod(0o770)
    for place in (path, f"{path}-lock"):
        os.chown(place, STRANGER if place == path else 0, STRANGER - 1)
        os.chmod(place, 0o660)
    with Script(source.replace("os.seteuid", "os.setegid(65533); os.seteuid"), path) as script:
        script.expect("refused")
    assert is_replayed(path, forced=True)


@needs_root
def test_root_opens_another_users_registry(used: Path) -> None:
    """An administrator looks after it; what SQLite makes beside it is that user's."""
    for place in (used, f"{used}-lock", used.parent):
        os.chown(place, STRANGER, STRANGER)
    with Registry(used) as registry:
        assert registry.get("task") is not None
        assert os.stat(f"{used}-wal").st_uid == STRANGER


# --- the way --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(3))
def test_a_folder_that_everybody_may_write_is_refused_unless_forced(tmp_path: Path, at: int) -> None:
    """Wherever on the way: who may rename a folder puts another in its place."""
    path = tmp_path / "a" / "b" / "jobs.db"
    path.parent.mkdir(parents=True)
    with Registry(path) as registry:
        registry.run("task", lambda: 1, name="job")
    folder = (path.parents[0], path.parents[1], path.parents[2])[at]
    folder.chmod(0o777)
    assert "chmod o-w" in refuse(path).hint
    assert is_replayed(path, forced=True)
    folder.chmod(0o1777)  # as /tmp: nobody may rename what is another's, but be the first to make a -wal
    if at:
        assert is_replayed(path)
    else:
        refuse(path)


def test_a_link_on_the_way_is_followed_with_the_same_care(tmp_path: Path) -> None:
    """A folder's link is no reason to refuse; one that lies where everybody may put another is."""
    (tmp_path / "real").mkdir()
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "link").symlink_to("../real")
    (tmp_path / "link").symlink_to("open/link")
    path = tmp_path / "link" / "jobs.db"
    with Registry(path) as registry:
        registry.run("task", lambda: 1, name="job")
    (tmp_path / "open").chmod(0o777)
    refuse(path)
    assert is_replayed(path, forced=True)


@needs_root
@pytest.mark.parametrize("what", ["open", "open/link", "open/real"])
def test_what_a_stranger_has_in_an_open_folder_is_refused_unless_forced(tmp_path: Path, what: str) -> None:
    """Also under the sticky bit, and by root: there anybody may be the first to make it."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "link").symlink_to("real")
    (tmp_path / "open" / "real").mkdir()
    (tmp_path / "open").chmod(0o1777)
    path = tmp_path / "open" / "link" / "jobs.db"
    with Registry(path) as registry:
        registry.run("task", lambda: 1, name="job")
    os.chown(tmp_path / what, STRANGER, STRANGER, follow_symlinks=False)
    refuse(path)
    assert is_replayed(path, forced=True)


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_new_files_are_their_owners_alone(path: Path, umask: int) -> None:
    """Whatever the umask: the database, -wal, -shm and lock file, and a backup."""
    before = os.umask(umask)
    try:
        with Registry(path) as registry:
            registry.run("task", lambda: 1)
            modes = [os.stat(f"{path}{end}").st_mode for end in ("", "-wal", "-shm", "-lock")]
            registry.backup(path.with_name("copy.db"))
            modes.append(path.with_name("copy.db").stat().st_mode)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(mode) for mode in modes} == {0o600}


def test_an_asynchronous_registry_may_be_forced(used: Path) -> None:
    """By the same name."""
    link = used.with_name("link.db")
    link.symlink_to(used)

    async def ask(*, forced: bool) -> object:
        async with AsyncRegistry(link, unsafe_path=forced) as registry:
            return await registry.get("task")

    with pytest.raises(StorePathError):
        asyncio.run(ask(forced=False))
    assert asyncio.run(ask(forced=True)) is not None


# --- the schema -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stranger(path: Path, *, reseals: bool = False) -> Iterator[apsw.Connection]:
    """Another program, which obeys no rule; ``reseals``: but keeps the seals of the rows right."""
    connection = raw.connect(path)
    try:
        yield connection
        if reseals:
            raw.reseal(connection)
    finally:
        connection.close()


def rewrite(path: Path, old: str, new: str) -> None:
    """Change the stored text of the schema itself, as a file that comes from anywhere may have it."""
    with stranger(path) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, ?, ?)", (old, new))
        assert connection.total_changes()
        assert connection.execute("SELECT 1 FROM sqlite_schema WHERE instr(sql, ?)", (new,)).fetchall()
        connection.execute("PRAGMA schema_version = 99")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON idempotent_log BEGIN DELETE FROM idempotent_log; END",
        "CREATE TRIGGER t INSTEAD OF INSERT ON v BEGIN SELECT 1; END",
        "CREATE TRIGGER t AFTER INSERT ON own BEGIN DELETE FROM idempotent_log; END",
        "CREATE VIEW idempotent_view AS SELECT * FROM idempotent_log",
        "CREATE VIEW IDEMPOTENT_VIEW AS SELECT 1",
        "CREATE TABLE idempotent_more (x)",
        "CREATE TABLE Idempotent_More (x)",
        "CREATE UNIQUE INDEX own_index ON idempotent_log (status)",
        "CREATE INDEX idempotent_index ON own (x)",
        "DROP INDEX idempotent_attention",
        "DROP TABLE idempotent_large",
        "ALTER TABLE idempotent_log ADD COLUMN more TEXT",
        "ALTER TABLE own RENAME TO idempotent_own",
    ],
)
def test_a_schema_that_is_not_ours_is_refused(used: Path, statement: str) -> None:
    """Anything on our tables, of our prefix, or missing; and a trigger on whatever."""
    with stranger(used) as connection:
        connection.execute("CREATE TABLE own (x); CREATE VIEW v AS SELECT * FROM own")
    assert is_replayed(used)
    with stranger(used) as connection:
        connection.execute(statement)
    refuse(used, StoreCorruptError)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    CHECK (token >= 0 AND attempt >= 0),\n", ""),
        ("CHECK (status BETWEEN 0 AND 6)", "CHECK (status BETWEEN 0 AND 7)"),
        (") STRICT, WITHOUT ROWID", ", CHECK (status != 1)) STRICT, WITHOUT ROWID"),
        ("status NOT IN (1, 3)", "status NOT IN (3, 1)"),
        ("status     INTEGER NOT NULL", "status     INTEGER NOT NULL DEFAULT (abs(-1))"),
    ],
)
def test_a_schema_whose_text_was_altered_is_refused(used: Path, old: str, new: str) -> None:
    """One CHECK less, one more, or one word of it: none is as the promises need it."""
    rewrite(used, old, new)
    refuse(used, StoreCorruptError)


def test_comments_and_white_space_of_the_schema_may_change(used: Path) -> None:
    """A later version may explain more: what SQLite carries out is the same."""
    rewrite(used, "-- fencing token: grows", "-- grows; see there:\n   -- 'fencing'\t")
    rewrite(used, "    name       TEXT    NOT NULL,", "name TEXT\n NOT NULL,")
    assert is_replayed(used)


@pytest.mark.parametrize("blank", ["\xa0", "\x85", "\v", "\0", "\u2028"])
def test_what_is_no_white_space_to_sqlite_is_none_here(used: Path, blank: str) -> None:
    """A name may have it, so it must not count as nothing."""
    rewrite(used, "note       INTEGER,", f"note{blank}INTEGER,")
    refuse(used, StoreCorruptError)


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_that_never_was_is_refused(used: Path, version: int) -> None:
    """No migration leads from there."""
    with stranger(used) as connection:
        connection.pragma("user_version", version)
    refuse(used, StoreCorruptError)


def test_a_newer_version_or_another_program_is_refused(used: Path) -> None:
    """By the header alone."""
    with stranger(used) as connection:
        connection.pragma("user_version", SCHEMA.version + 1)
    refuse(used, StoreVersionError)
    with stranger(used) as connection:
        connection.pragma("user_version", SCHEMA.version)
        connection.pragma("application_id", 1)
    refuse(used, StorePathError)


@pytest.mark.parametrize("floor", [-1, 0, 2**63 - 1])
def test_a_floor_that_no_registry_has_is_refused(used: Path, floor: int) -> None:
    """Tokens above it would overflow, or begin anew."""
    with stranger(used, reseals=True) as connection:
        connection.execute("UPDATE idempotent_registry SET floor = ?", (floor,))
    refuse(used, StoreCorruptError)


# --- what a connection may do ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM v",
        "ATTACH ':memory:' AS other",
        "SELECT load_extension('x')",
        'INSERT INTO own VALUES ("a text by mistake")',
        "UPDATE sqlite_schema SET sql = ''",
        "CREATE TRIGGER t AFTER INSERT ON own BEGIN SELECT 1; END",
        "CREATE TEMP TABLE idempotent_log (x)",
        "ALTER TABLE own RENAME TO idempotent_own",
        'ALTER TABLE temp.passing RENAME TO "Idempotent_Log"',
        "PRAGMA journal_mode = off",
    ],
)
def test_a_jobs_transaction_has_no_view_attachment_or_extension(used: Path, statement: str) -> None:
    """It is an error there, never in silence, and the transaction goes on."""
    with stranger(used) as connection:
        connection.execute("CREATE TABLE own (x); CREATE VIEW v AS SELECT * FROM own")
    with Registry(used) as registry, registry.claim("effects") as claim, claim.transaction() as tx:
        tx.execute("CREATE TEMP TABLE passing (x)")
        with pytest.raises(StoreError):
            tx.execute(statement)
        tx.execute("INSERT INTO own VALUES (1)")
        claim.result = tx.execute("SELECT count(*) FROM own")[0][0]


def test_a_trigger_that_comes_later_is_not_carried_out(used: Path) -> None:
    """Made by another program while the file is open: it acts on nothing of ours, and the next opening refuses it."""
    with Registry(used) as registry:
        registry.run("before", lambda: 1)
        with stranger(used) as connection:
            connection.execute("CREATE TRIGGER t AFTER UPDATE ON idempotent_log BEGIN DELETE FROM idempotent_log; END")
        registry.run("after", lambda: 2)
        assert registry.get("before") is not None
        assert registry.get("after") is not None
    refuse(used, StoreCorruptError)


@pytest.mark.parametrize("end", COMPANIONS)
def test_nothing_is_made_under_the_name_of_a_part_of_a_registry(used: Path, end: str) -> None:
    """A backup or a second registry there would be taken for its -wal, -shm, -journal or lock file, or removed."""
    place = Path(f"{used}{end}")
    place.unlink(missing_ok=True)
    with pytest.raises(StorePathError):
        Registry(place).open()
    with Registry(used) as registry, pytest.raises(StorePathError):
        registry.backup(place)
    assert is_replayed(used)


@pytest.mark.parametrize(
    ("sql", "bindings"), [("SELECT '\ud800'", ()), ("SELECT ?", (2**63,)), ("SELECT ?", ("\udcff",))]
)
def test_what_sqlite_cannot_take_is_an_error_of_the_statement(
    used: Path, sql: str, bindings: tuple[object, ...]
) -> None:
    """A `StoreError`, as any other that a job's own statement meets, and the transaction goes on."""
    with Registry(used) as registry, registry.claim("effects") as claim, claim.transaction() as tx:
        with pytest.raises(StoreError):
            tx.execute(sql, bindings)
        claim.result = tx.execute("SELECT 1")[0][0]
