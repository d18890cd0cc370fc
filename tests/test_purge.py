"""purge: only what ended and whose time has passed goes, by time since boot, and no token ever comes back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idemreg import ClockError, Registry, Status
from idemreg.model import FINAL
from idemreg.sqlite import purging, queries
from idemreg.testing import ManualClock, throw_away_registry
from tests.support.processes import PATIENCE_S, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAY = 86_400
YEARS_US = 10 * 365 * DAY * 1_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def registry(open_registry: Callable[..., Registry], clock: ManualClock) -> Registry:
    return open_registry(clock=clock)


def ids(registry: Registry) -> list[str]:
    return [task.task_id for task in registry.tasks()]


def run(registry: Registry, task_id: str, **options: Any) -> int:
    return registry.run(task_id, lambda: None, name="job", **options).token


# --- what goes --------------------------------------------------------------------------------------------------


def test_a_row_goes_when_its_own_time_has_passed(registry: Registry, clock: ManualClock) -> None:
    """A row stays until its keep_for has passed, to the millisecond, and goes from then on."""
    run(registry, "t", keep_for=60)
    clock.advance(59.999)
    assert registry.purge().total == 0
    clock.advance(0.001)
    assert registry.purge().removed == 1
    assert registry.get("t") is None


def test_what_is_kept_for_ever_stays(registry: Registry, clock: ManualClock) -> None:
    """Without an age nothing goes that has no keep_for, however old; with one it goes from that age on."""
    run(registry, "t")
    clock.advance(timedelta(days=3_650))
    assert registry.purge().total == 0
    assert registry.purge(older_than=timedelta(days=3_651)).total == 0
    assert registry.purge(older_than=timedelta(days=3_650)).removed == 1


def test_an_age_never_shortens_a_keep_for(registry: Registry, clock: ManualClock) -> None:
    """With an age a row goes only when it has that age and its own time has passed as well."""
    run(registry, "short", keep_for=10)
    run(registry, "long", keep_for=1_000)
    clock.advance(100)
    assert registry.purge(older_than=101).total == 0
    assert registry.purge(older_than=100).removed == 1
    assert ids(registry) == ["long"]


def test_only_ended_tasks_go(registry: Registry, clock: ManualClock) -> None:
    """Pending, running, failed and unknown rows stay, whatever their age; each status that is final goes."""

    def broken() -> None:
        raise RuntimeError

    registry.add("pending")
    for name in ("skipped", "cancelled"):
        registry.add(name)
    registry.skip("skipped", "")
    registry.cancel("cancelled")
    run(registry, "succeeded")
    with pytest.raises(RuntimeError):
        registry.run("failed", broken, keep_for=0)
    with pytest.raises(RuntimeError):
        registry.run("unknown", broken, unknown_on=RuntimeError, keep_for=0)
    with registry.claim("running", keep_for=0):
        clock.advance(DAY)
        done = registry.purge(older_than=0)
    assert {group.status for group in done.groups} == FINAL
    assert done.removed == 3
    assert sorted(ids(registry)) == ["failed", "pending", "running", "unknown"]
    with pytest.raises(ValueError, match="purged"):
        registry.purge(status=Status.FAILED, older_than=0)


def test_a_purge_takes_a_selection(registry: Registry) -> None:
    """Status, prefix and name narrow it; what they leave out stays."""
    for task_id in ("a:1", "a:2", "b:1"):
        run(registry, task_id, keep_for=0)
    registry.run("a:3", lambda: None, name="other", keep_for=0)
    registry.add("a:4", name="job")
    registry.cancel("a:4")
    assert registry.purge(prefix="b").removed == 1
    assert registry.purge(name="other").removed == 1
    assert registry.purge(status=[Status.CANCELLED], older_than=0).removed == 1
    assert registry.purge(status=Status.SKIPPED, older_than=0).removed == 0
    assert ids(registry) == ["a:1", "a:2"]


def test_it_says_what_it_would_remove(registry: Registry, clock: ManualClock) -> None:
    """The count by status and job, the oldest and the newest; a dry run and a refusal remove nothing."""
    first = clock.wall_us()
    run(registry, "a", keep_for=0)
    clock.advance(5)
    run(registry, "b", keep_for=0)
    asked = []

    def refuse(found: Any) -> bool:
        asked.append(found)
        return False

    for done in (registry.purge(dry_run=True), registry.purge(approve=refuse), *asked):
        assert [tuple(group) for group in done.groups] == [(1, "job", 2, first, first + 5_000_000)]
        assert (done.total, done.removed, done.oldest, done.newest) == (2, 0, first, first + 5_000_000)
    assert len(asked) == 1
    assert ids(registry) == ["a", "b"]
    assert registry.purge(prefix="zzz")[:2] == ([], 0)
    assert registry.purge(prefix="zzz").oldest is None


def test_what_ends_after_the_question_stays(registry: Registry, clock: ManualClock) -> None:
    """Nothing goes that was not in the count: a task that ends while a person thinks is not taken along."""
    run(registry, "a", keep_for=0)

    def think(found: object) -> bool:
        clock.advance(60)
        run(registry, "b", keep_for=0)
        clock.advance(60)
        return True

    assert registry.purge(approve=think).removed == 1
    assert ids(registry) == ["b"]


# --- the clock --------------------------------------------------------------------------------------------------


def test_rows_of_this_boot_do_not_see_the_wall_clock(registry: Registry, clock: ManualClock) -> None:
    """A wall clock that jumps ten years ahead makes no row of this boot older; time since boot does."""
    run(registry, "kept", keep_for=DAY)
    run(registry, "for ever")
    clock.set(wall_us=clock.wall_us() + YEARS_US)
    assert registry.purge(older_than=1).total == 0
    clock.advance(DAY)
    assert registry.purge().removed == 1


def test_rows_of_this_boot_do_not_see_it_either_from_another_process(
    registry: Registry, clock: ManualClock, open_registry: Callable[..., Registry]
) -> None:
    """A registry that is opened later in the same boot counts the same."""
    run(registry, "t", keep_for=DAY)
    clock.set(wall_us=clock.wall_us() + YEARS_US)
    assert open_registry(clock=clock).purge().total == 0


def purged_elsewhere(path: Path, offset_s: int, *, forks: bool = False) -> str:
    """What a purge of a process takes that lives in another time namespace; or whose child does, which purges."""
    fork = "import ctypes; ctypes.CDLL(None).unshare(0x80)" if forks else ""
    offset = f"open('/proc/self/timens_offsets', 'w').write('boottime {offset_s} 0')" if forks else ""
    program = f"""
import os
{fork}
{offset}
from idemreg import Registry
if {forks} and os.fork():
    os.wait()
    os._exit(0)
with Registry({str(path)!r}) as registry: print(registry.purge().removed, flush=True)
os._exit(0)
"""
    way = [] if forks else ["unshare", "-T", "--boottime", str(offset_s)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*way, sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode and "Operation not permitted" in done.stderr:
        pytest.skip("this user may not make a time namespace")
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("forks", [False, True])
def test_another_time_namespace_counts_the_same(path: Path, *, forks: bool) -> None:
    """There the time since boot is years ahead, under the same boot id: what is kept for a day is still kept."""
    with Registry(path) as registry:
        registry.run("kept", lambda: 1, keep_for=DAY)
        registry.run("gone", lambda: 1, keep_for=0)
        assert purged_elsewhere(path, 10 * 365 * DAY, forks=forks) == "1"
        assert ids(registry) == ["kept"]


def test_time_since_boot_beyond_what_a_stamp_has_room_for(registry: Registry, clock: ManualClock) -> None:
    """A sleep of 40 years, as a broken hardware clock makes it: rows of this boot grow no older."""
    clock.set(boot_ms=40 * 365 * DAY * 1_000)
    run(registry, "t", keep_for=DAY)
    assert registry.purge().total == 0
    clock.advance(DAY)
    assert registry.purge().total == 0


def restarted(clock: ManualClock, *, boot_ms: int = 1_000) -> None:
    clock.set(boot_id="a later boot", boot_ms=boot_ms)


def test_rows_of_earlier_boots_go_by_their_date(
    registry: Registry, clock: ManualClock, open_registry: Callable[..., Registry]
) -> None:
    """After a restart the date decides, and the time since the new boot says nothing."""
    run(registry, "t", keep_for=DAY)
    registry.close()
    restarted(clock, boot_ms=50 * DAY * 1_000)
    later = open_registry(clock=clock)
    assert later.purge().total == 0
    clock.set(wall_us=clock.wall_us() + DAY * 1_000_000)
    assert later.purge().removed == 1


@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_behind_a_stored_date_is_refused(
    registry: Registry, clock: ManualClock, open_registry: Callable[..., Registry], *, restart: bool
) -> None:
    """Where any task, also one that could not go, has a date still to come, nothing goes, and the error teaches."""
    run(registry, "old", keep_for=0)
    clock.advance(60)
    registry.add("newest")
    if restart:
        registry.close()
        restarted(clock)
        registry = open_registry(clock=clock)
    clock.set(wall_us=clock.wall_us() - 1)
    for options in ({}, {"dry_run": True}, {"prefix": "old"}):
        with pytest.raises(ClockError) as caught:
            registry.purge(**options)
        assert (caught.value.task_id, caught.value.exit_code, caught.value.retryable) == ("newest", 78, False)
        assert "clock" in caught.value.hint
    assert ids(registry) == ["newest", "old"]
    clock.set(wall_us=clock.wall_us() + 1)
    assert registry.purge().removed == 1


def test_a_writer_beside_it_is_no_wrong_clock(
    registry: Registry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is written while the purge counts is not ahead of the clock, which is read behind the rows."""
    run(registry, "t", keep_for=0)
    store = registry.store
    survey = store.survey

    def write_first(*arguments: Any) -> Any:
        clock.advance(1)
        run(registry, "beside")
        return survey(*arguments)

    monkeypatch.setattr(store, "survey", write_first)
    assert registry.purge().removed == 1


# --- chunks and tokens ------------------------------------------------------------------------------------------


def test_it_goes_in_bounded_transactions(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each transaction removes a bounded number of rows, and others write between two of them."""
    monkeypatch.setattr(purging, "CHUNK_ROWS", 4)
    for number in range(10):
        run(registry, f"t{number}", keep_for=0)
    steps = []

    def progress(removed: int) -> None:
        steps.append((removed, len(ids(registry))))
        run(registry, f"between:{removed}")

    assert registry.purge(progress=progress).removed == 10
    assert steps == [(4, 6), (8, 3), (10, 2)]
    assert ids(registry) == ["between:10", "between:4", "between:8"]


def test_pieces_without_anything_to_remove_are_passed_over(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that may go are found behind any number of rows that may not."""
    monkeypatch.setattr(queries, "SCANNED_ROWS", 3)
    monkeypatch.setattr(purging, "CHUNK_ROWS", 2)
    for number in range(20):
        run(registry, f"t{number:02}", keep_for=0 if number in {0, 9, 10, 11, 19} else None)
    done = registry.purge()
    assert (done.total, done.removed, len(ids(registry))) == (5, 5, 15)


def test_what_changed_since_the_look_stays(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that was forgotten and run anew between the look and the removal is another row, and stays."""
    run(registry, "a", keep_for=0)
    run(registry, "b", keep_for=0)
    find = purging.find

    def find_then_change(*arguments: Any) -> Any:
        rows = find(*arguments)
        thread = threading.Thread(target=lambda: (registry.forget("a"), run(registry, "a", keep_for=0)))
        thread.start()
        thread.join(PATIENCE_S)
        return rows

    monkeypatch.setattr(purging, "find", find_then_change)
    assert registry.purge().removed == 1
    assert ids(registry) == ["a"]


def test_large_results_go_along(registry: Registry) -> None:
    """The side table keeps nothing of a row that went."""
    registry.run("t", lambda: "x" * 5_000, keep_for=0)
    registry.run("u", lambda: "x" * 5_000)
    assert registry.purge().removed == 1
    with registry.claim("look", on_crash="rerun") as claim, claim.transaction() as tx:
        assert tx.execute("select task_id from idempotent_large") == [("u",)]


@given(tasks=st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), min_size=1, max_size=12))
def test_tokens_never_come_back(tasks: list[tuple[str, bool]]) -> None:
    """Over any order of runs, failures and purges the tokens of a task strictly increase."""
    last: dict[str, int] = {}
    with throw_away_registry() as registry:
        for task_id, purges in tasks:
            outcome = registry.run(task_id, lambda: None, name="job", keep_for=0)
            assert outcome.replayed or outcome.token > last.get(task_id, 0)
            last[task_id] = outcome.token
            if purges:
                registry.purge()
