"""What every connection to a registry's file has off, seen from outside: by literals, not by the list in the product.

Whoever embeds idemreg may set up each connection of the process (`apsw.connection_hooks`), to his own database's needs:
here everything is switched on so that is to be off. What a connection may do is looked at with each statement that it
carries out, since some are open for a moment only.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from idemreg import Registry, StoreError, StorePathError
from idemreg.clock import Clock
from idemreg.doctor.salvage import salvage
from idemreg.operations import Operations
from idemreg.sqlite import connection as connections
from idemreg.sqlite import looking, peeking, rest
from idemreg.sqlite.looking import Look
from idemreg.sqlite.pages import vfs
from tests.cli.driver import Cli
from tests.support import raw
from tests.support.processes import Script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Numbers of SQLite's, by sqlite3.h; what is wanted of each, and the contrary.
SWITCHES = {
    "trusted schema": (1017, 0, 1),
    "triggers": (1003, 0, 1),
    "views": (1015, 0, 1),
    "extensions": (1005, 0, 1),
    "defensive": (1010, 1, 0),
    "text in double quotes": (1013, 0, 1),
    "text in double quotes of the schema": (1014, 0, 1),
}
ATTACHED = 7
WANTED = {name: wanted for name, (_, wanted, _) in SWITCHES.items()} | {"attached": 0}

# By which a connection is set up: they act on no content.
SETTING_UP = ('pragma "synchronous"', 'pragma "wal_autocheckpoint"')


def settings(connection: apsw.Connection) -> dict[str, int]:
    """What it may do now."""
    found = {name: connection.config(number, -1) for name, (number, _, _) in SWITCHES.items()}
    return found | {"attached": connection.limit(ATTACHED)}


class Watch:
    """What was carried out on a registry's file, and what was allowed meanwhile."""

    def __init__(self, path: Path) -> None:
        self._name = path.name  # of a copy, and of what a salvage makes, as well
        self.seen: list[tuple[str, dict[str, int]]] = []

    def begin(self, connection: apsw.Connection) -> None:
        """For each connection that is made, before anything else is done with it."""
        for number, _, contrary in SWITCHES.values():
            connection.config(number, contrary)
        connection.limit(ATTACHED, 10)
        connection.exec_trace = self._look

    def _look(self, user: apsw.Cursor | apsw.Connection, sql: str, _bindings: object) -> bool:
        connection = user.connection if isinstance(user, apsw.Cursor) else user
        if os.path.basename(connection.filename) == self._name and not sql.startswith(SETTING_UP):
            self.seen.append((sql, settings(connection)))
        return True

    def check(self) -> None:
        """Something was carried out, and nothing was allowed meanwhile."""
        assert self.seen
        assert [(sql, found) for sql, found in self.seen if found != WANTED] == []


@pytest.fixture
def used(path: Path) -> Path:
    """A registry at rest, with a table of its jobs'."""
    with Registry(path) as registry:
        registry.run("task", lambda: 1, name="job")
        with registry.claim("own") as claim, claim.transaction() as tx:
            tx.execute("CREATE TABLE own (x)")
    return path


@pytest.fixture
def watch(used: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch(used)
    monkeypatch.setattr(apsw, "connection_hooks", [watch.begin])
    return watch


# --- every connection -----------------------------------------------------------------------------------------------


def at_work(path: Path) -> None:
    """Those that write, that read, and that others are given while one is inside."""
    with Registry(path) as registry, Registry(path) as other:
        with registry.claim("effects") as claim, claim.transaction() as tx:
            tx.execute("INSERT INTO own VALUES (1)")
            assert registry.get("task") is not None
            assert len(list(other.tasks())) == 3
            inside = [one for one in apsw.connections() if one.filename == os.fspath(path)]
            assert len(inside) >= 3
            assert [settings(one) for one in inside] == [WANTED] * len(inside)
        registry.run("another", lambda: 2)
        registry.sweep()


def operated(path: Path) -> None:
    with Registry(path) as registry:
        registry.add("later")
    with Operations(path, create=False) as operator:
        operator.skip("later", "not needed")
        list(operator.export_lines())
        operator.checkpoint("TRUNCATE")
        operator.purge(older_than=0)


def of_an_empty_file(path: Path) -> None:
    """As one is made."""
    for end in ("", "-lock"):
        os.unlink(f"{path}{end}")
    Registry(path).open().close()


def with_page_checksums(path: Path) -> None:
    if vfs() is None:
        pytest.skip("this build of apsw has no page checksums")
    for end in ("", "-lock"):
        os.unlink(f"{path}{end}")
    for _ in range(2):
        with Registry(path, page_checksums=True) as registry:
            registry.run("task", lambda: 1)


def backed_up(path: Path) -> None:
    with Registry(path) as registry:
        registry.backup(path.with_name("copy.db"))


def doctored(path: Path) -> None:
    """At rest, at work, and behind a kill: read-only, with the -shm of others, and alone."""
    cli = Cli(path)
    for words in ((), ("--full",)):
        assert cli("doctor", *words).exit_code == 0
        with Registry(path) as registry:
            registry.run("at work", lambda: 1, name="job")
            assert cli("doctor", *words).exit_code == 0


def salvaged(path: Path) -> None:
    """Past SQLite; so it is the new file that is looked at."""
    old = path.with_name("old.db")
    os.rename(path, old)
    os.unlink(f"{path}-lock")
    salvage(old, path)


def glanced_at(path: Path) -> None:
    assert peeking.task_ids(os.fspath(path), "t", 10) == ["task"]


def covered(path: Path) -> None:
    """By a -wal that no sync of ours has seen: the database is looked at without it as well."""
    source = """
    from idemreg import Registry
    registry = Registry(sys.argv[1], durability="normal")
    registry.run("covering", lambda: 1)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with Script(source, path) as worker:
        worker.end()
    with Registry(path) as registry:
        assert registry.get("covering") is not None


@pytest.mark.parametrize(
    "use",
    [
        at_work,
        operated,
        of_an_empty_file,
        with_page_checksums,
        backed_up,
        doctored,
        salvaged,
        glanced_at,
        covered,
    ],
)
def test_nothing_that_a_file_could_use_is_on(used: Path, watch: Watch, use: Callable[[Path], None]) -> None:
    """On no connection to it, whichever it is, with any statement."""
    use(used)
    watch.check()


@pytest.mark.parametrize("state", ["at rest", "at work", "killed", "not to be written"])
def test_a_look_has_nothing_on_either(used: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """In whichever of its ways it opens the file."""
    copied = used.with_name("copied")
    copied.mkdir()
    with Registry(used) as registry:
        registry.run("another", lambda: 2)
        for end in ("", "-wal"):  # without a -shm, as a kill and a reboot leave it
            shutil.copy(f"{used}{end}", copied)
        if state == "at work":
            take_a_look(used)
            watch.check()
    watch.seen.clear()
    if state == "not to be written":
        monkeypatch.setattr(os, "access", lambda *_: False)
    take_a_look(copied / used.name if state == "killed" else used)
    watch.check()


def take_a_look(path: Path) -> None:
    look = Look(os.fspath(path), Clock(), None)
    try:
        assert not look.is_empty()
        assert look.damage(1, full=True) == []
        look.check_form()
    finally:
        look.close()


# --- what it is for -------------------------------------------------------------------------------------------------


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the program's own function was called with, that it has on each of its connections."""
    calls: list[object] = []

    def effect(*values: Any) -> int:
        calls.extend(values)
        return 1

    def begin(connection: apsw.Connection) -> None:
        connection.create_scalar_function("effect", effect, 1, deterministic=True)

    monkeypatch.setattr(apsw, "connection_hooks", [begin])
    return calls


@pytest.mark.parametrize(
    "table",
    [
        "planted (x, CHECK (effect(x)))",
        "planted (x, y AS (effect(x)) STORED)",
        "planted (x); CREATE INDEX of_planted ON planted (effect(x))",
        "planted (x); CREATE INDEX of_planted ON planted (x) WHERE effect(x)",
    ],
    ids=["check", "generated column", "index on an expression", "partial index"],
)
def test_a_schema_calls_no_function_of_the_programs(used: Path, called: list[object], table: str) -> None:
    """The file came from anywhere: SQLite's check of what was changed calls none, nor does a job's own statement."""
    stranger = raw.connect(used)
    stranger.execute(f"CREATE TABLE {table}")
    stranger.close()
    with (
        pytest.raises(StoreError, match="unsafe use of effect"),
        Registry(used) as registry,
        registry.claim("effects") as claim,
        claim.transaction() as tx,
    ):
        tx.execute("INSERT INTO planted (x) VALUES (1)")
    assert called == []


def test_a_job_may_call_what_its_program_has_made(registry: Registry, called: list[object]) -> None:
    """It is asked for by the program itself."""
    with registry.claim("effects") as claim, claim.transaction() as tx:
        claim.result = tx.execute("SELECT effect(2)")[0][0]
    assert called == [2]


def test_what_lies_under_a_strange_wal_calls_nothing(used: Path, called: list[object]) -> None:
    """The schema of the database itself, which the check of the form has not seen: that of the -wal lies over it."""
    hostile = used.with_name("hostile.db")
    stranger = raw.connect(hostile)
    stranger.execute("CREATE VIEW idempotent_registry AS SELECT 'id' AS registry_id, effect(3) AS floor")
    stranger.close()
    seen = connections.connect(os.fspath(used), synchronous=None, busy_s=1, clock=Clock())
    try:
        with pytest.raises(apsw.Error, match="unsafe use of effect"):
            rest.check_uncovered(os.fspath(hostile), seen)
    finally:
        seen.close()
    assert called == []


# --- what is swapped ------------------------------------------------------------------------------------------------


class Swapped(connections.Connection):
    """At the last moment before SQLite opens it, a file goes elsewhere, and a link to it is in its place."""

    def __init__(self, name: str, **options: Any) -> None:
        if not os.path.islink(name):
            os.rename(name, f"{name}.elsewhere")
            os.symlink(f"{name}.elsewhere", name)
        super().__init__(name, **options)


def as_registry(path: Path) -> None:
    Registry(path).open().close()


def as_operator(path: Path) -> None:
    with Operations(path, create=False) as operator:
        operator.get("task")


def as_look(path: Path) -> None:
    Look(os.fspath(path), Clock(), None).close()


@pytest.mark.parametrize("way", [as_registry, as_operator, as_look])
def test_a_link_that_was_put_there_behind_the_look_is_not_followed(
    used: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[Path], None]
) -> None:
    """It leads to the very file, which would else pass for what was looked at."""
    monkeypatch.setattr(connections, "Connection", Swapped)
    monkeypatch.setattr(looking, "Connection", Swapped)
    with pytest.raises(StorePathError) as error:
        way(used)
    assert isinstance(error.value.__cause__, apsw.CantOpenError)
    assert used.is_symlink()
    monkeypatch.undo()
    os.replace(f"{used}.elsewhere", used)
    way(used)


def test_a_connection_that_others_are_given_follows_no_link_either(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is opened later, while the first is at work."""
    with Registry(used) as registry, registry.claim("effects") as claim, claim.transaction():
        monkeypatch.setattr(connections, "Connection", Swapped)
        with pytest.raises(StoreError):
            registry.get("task")
        claim.result = 1
        monkeypatch.undo()
        os.replace(f"{used}.elsewhere", used)


def test_what_lies_under_a_wal_is_looked_at_behind_no_link(used: Path) -> None:
    """When the database is opened without its -wal."""
    link = used.with_name("link.db")
    link.symlink_to(used)
    with pytest.raises(apsw.CantOpenError):
        rest.check_uncovered(os.fspath(link), apsw.Connection(":memory:"))
