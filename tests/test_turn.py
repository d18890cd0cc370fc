"""The turn to write: its deadline, whoever is in the way; a barrier of its own. How fair it is, `bench` measures."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING

import pytest

from idemreg import Clock, FinishNotRecordedError, Registry, Status, StoreBusyError
from idemreg.options import Options
from idemreg.request import wanted
from idemreg.store import End, Granted
from idemreg.testing import ManualClock
from idemreg.turn import Turns
from tests.support.processes import Script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from idemreg.deciding import Wanted

BUSY_S = 5.0
ONE_NAP_S = 0.1

# A program that knows nothing of turns takes SQLite's own lock.
STRANGER = """
import apsw
from tests.support.raw import connect
connection = connect(sys.argv[1])
try: connection.execute("BEGIN IMMEDIATE"); say("writes")
except apsw.BusyError: say("busy")
wait()
"""


def asked(task_id: str) -> Wanted:
    return wanted(task_id, "job", b"{}", Options.of({"on_crash": "rerun"}, "normal"))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def hurried(open_registry: Callable[..., Registry], clock: ManualClock) -> Registry:
    """A registry whose waits are measured, and pass at once."""
    registry = open_registry(clock=clock, busy_timeout=BUSY_S)
    registry.run("warm", lambda: 1)  # from now on a claim is one statement
    return registry


@pytest.fixture
def stranger(hurried: Registry, path: Path) -> Iterator[Script]:
    with Script(STRANGER, path) as script:
        script.expect("writes")
        yield script


def test_the_deadline_holds_behind_a_stranger(hurried: Registry, clock: ManualClock, stranger: Script) -> None:
    """Another program in a write transaction costs the busy time-out and no more, for each kind of write."""
    for write in (
        lambda: hurried.run("task", lambda: pytest.fail("the job started"), on_crash="rerun"),
        lambda: hurried.add("task"),
    ):
        before = clock.monotonic()
        with pytest.raises(StoreBusyError):
            write()
        assert BUSY_S <= clock.monotonic() - before <= BUSY_S + ONE_NAP_S


def test_a_finish_behind_a_stranger_is_told(hurried: Registry, clock: ManualClock, path: Path) -> None:
    """A finish that cannot be stored in time hands the result out, and the next write settles the task.

    It costs twice the time-out at most, since its end is tried once more.
    """
    claim = hurried.claim("task", on_crash="rerun")
    with Script(STRANGER, path) as stranger:
        stranger.expect("writes")
        before = clock.monotonic()
        with pytest.raises(FinishNotRecordedError):
            claim.succeed(1)
        assert clock.monotonic() - before <= 2 * (BUSY_S + ONE_NAP_S)
    hurried.add("next")
    task = hurried.get("task")
    assert task is not None
    assert task.status is Status.UNKNOWN


class ReleasingClock(ManualClock):
    """Drops a turn at a moment."""

    at = float("inf")
    turns: Turns

    def sleep(self, pause: float) -> None:
        super().sleep(pause)
        if self.monotonic() >= self.at:
            self.turns.write.drop()


class ListingClock(ManualClock):
    """Lists the naps."""

    def __init__(self) -> None:
        super().__init__()
        self.naps: list[float] = []

    def sleep(self, pause: float) -> None:
        super().sleep(pause)
        self.naps.append(pause)


@pytest.mark.usefixtures("hurried")
def test_nobody_who_waits_looks_away_for_longer_than_a_millisecond(path: Path) -> None:
    """However long he has waited: naps that grow on, as SQLite's do, let whoever comes later go first."""
    clock = ListingClock()
    holding, waiting = Turns(f"{path}-lock", Clock()), Turns(f"{path}-lock", clock)
    assert holding.write.try_take()
    assert not waiting.write.take(clock.monotonic() + 60)
    assert max(clock.naps) <= 0.001
    assert clock.naps[-2] >= max(clock.naps[:10]), "at first they are shorter"
    holding.close()
    assert waiting.write.take(clock.monotonic())
    waiting.close()


@pytest.mark.parametrize("kind", ["claim", "finish", "add"])
def test_what_was_waited_for_the_turn_is_not_waited_again(
    kind: str, open_registry: Callable[..., Registry], path: Path
) -> None:
    """First another process has the turn, then a stranger SQLite's lock: there is one deadline for both waits."""
    clock = ReleasingClock()
    registry = open_registry(clock=clock, busy_timeout=BUSY_S)
    registry.run("warm", lambda: 1)
    claim = registry.store.begin(asked("claimed"))
    assert isinstance(claim, Granted)
    end = End("claimed", claim.token, claim.owner, Status.SUCCEEDED, 1, "1", durable=False)
    writes: dict[str, Callable[[], object]] = {
        "claim": lambda: registry.store.begin(asked("task")),
        "finish": lambda: registry.store.finish_one(end),
        "add": lambda: registry.store.add(asked("task")),
    }
    clock.turns = Turns(f"{path}-lock", Clock())
    assert clock.turns.write.try_take()
    with Script(STRANGER, path) as stranger:
        stranger.expect("writes")
        before = clock.monotonic()
        clock.at = before + BUSY_S / 2
        with pytest.raises(StoreBusyError):
            writes[kind]()
        assert BUSY_S <= clock.monotonic() - before <= BUSY_S + ONE_NAP_S
    clock.turns.close()
    registry.store.finish_one(end)


def test_the_turn_excludes_where_sqlites_locks_were_lost(registry: Registry, path: Path) -> None:
    """Any close of the files in a process drops the locks that SQLite has on them; the turn stays, and keeps order."""
    with registry.claim("task", on_crash="rerun") as claim, claim.transaction() as effects:
        effects.execute("CREATE TABLE effect (n)")
        for name in (path, f"{path}-shm"):
            os.close(os.open(name, os.O_RDONLY))
        with Script(STRANGER, path) as stranger:
            stranger.expect("writes")  # the lock is lost indeed
            stranger.kill()
        script = """
        from idemreg import Registry, StoreBusyError
        registry = Registry(sys.argv[1], busy_timeout=0.05)  # whom nobody closes before the end
        try: registry.add("other")
        except StoreBusyError: say("busy")
        os.kill(os.getpid(), signal.SIGKILL)  # its close must not take the -wal away from under the others
        """
        with Script(textwrap.dedent(script), path) as other:
            other.expect("busy")
        effects.execute("INSERT INTO effect VALUES (1)")
    with registry.claim("look") as look, look.transaction() as found:
        assert found.execute("SELECT n FROM effect") == [(1,)]
    assert registry.get("other") is None
