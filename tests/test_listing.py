"""Lists: what is chosen is what the rows say, in order, page by page, and no page reads without a bound."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idemreg import Registry, Status
from idemreg.lines import end_line, header_line, task_line
from idemreg.listing import query_of
from idemreg.model import Policy, Task, Verdict
from idemreg.query import Instant, Query
from idemreg.sqlite import queries, records
from idemreg.sqlite.upkeep import SCHEMA
from idemreg.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from idemreg.sqlite.connection import Connection

HOUR = 3_600
HOUR_US = HOUR * 1_000_000


@pytest.fixture(scope="module")
def clock() -> ManualClock:
    return ManualClock()


def rows(now_us: int) -> Iterator[Task]:
    """A row of every shape that a list may tell apart."""
    names, hours = ("", "job", "other"), (0, 1, 5)
    for number in range(180):
        status = [status for status in Status if status is not Status.RUNNING][number % 6]
        yield Task(
            f"{'abc'[number % 3]}:{number:03}",
            status,
            "a" * 64,
            now_us - hours[number % 7 % 3] * HOUR_US,
            0,
            names[number % 5 % 3],
            number,
            number % 4,
            None,
            Policy(max_attempts=2),
            None,
            None,
            None,
            Verdict.RETRY if number % 11 == 0 else None,
            None,
            None,
        )


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, clock: ManualClock) -> Iterator[Registry]:
    """180 imported rows, whose dates count."""
    with Registry(tmp_path_factory.mktemp("list") / "jobs.db", clock=clock, durability="normal") as registry:
        tasks = list(rows(clock.wall_us()))
        registry.import_lines([header_line("0" * 32), *map(task_line, tasks), end_line(len(tasks), 0)])
        yield registry


@pytest.fixture(autouse=True)
def nothing_left_open() -> None:
    """The registry of this file lives as long as its tests do."""


@given(
    status=st.none() | st.frozensets(st.sampled_from(Status)),
    prefix=st.sampled_from(["", "a", "b:0", "zzz"]),
    name=st.sampled_from([None, "", "job", "nobody"]),
    older=st.sampled_from([None, 0, HOUR, 2 * HOUR]),
    newer=st.sampled_from([None, 0, HOUR, 2 * HOUR]),
    dead=st.booleans(),
    limit=st.integers(1, 7),
    scanned=st.integers(1, 9),
)
def test_what_is_chosen_is_what_the_rows_say(
    many: Registry, clock: ManualClock, status: Any, prefix: str, name: str | None, older: Any, newer: Any,
    *, dead: bool, limit: int, scanned: int,
) -> None:  # fmt: skip
    """Any filters, with pages and pieces of any size, give what a plain loop over all rows gives, in its order."""

    def is_wanted(task: Task) -> bool:
        age = (clock.wall_us() - task.updated_at) // 1_000_000
        return (
            (status is None or task.status in status)
            and task.task_id.startswith(prefix)
            and (name is None or task.name == name)
            and (older is None or age >= older)
            and (newer is None or age < newer)
            and (not dead or task.is_dead_letter)
        )

    expected = [task for task in many.tasks() if is_wanted(task)]
    words: dict[str, Any] = {"status": status, "prefix": prefix, "name": name, "older_than": older, "newer_than": newer}
    assert list(many.tasks(**words, dead=dead)) == expected
    query = query_of(**words, dead=dead)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queries, "SCANNED_ROWS", scanned)
        found, after = [], None
        while True:
            page = many.store.page(query, after, limit)
            assert len(page.tasks) <= limit
            found += page.tasks
            if (after := page.after) is None:
                break
    assert found == expected


def test_the_age_of_this_boots_rows_is_no_date(open_registry: Callable[..., Registry], tmp_path: Path) -> None:
    """A list counts ages as purge does: a wall clock that jumps makes no row of this boot older."""
    clock = ManualClock()
    with Registry(tmp_path / "ages.db", clock=clock, durability="normal") as registry:
        registry.add("t")
        clock.set(wall_us=clock.wall_us() + 1_000 * HOUR_US)
        assert not list(registry.tasks(older_than=1))
        assert len(list(registry.tasks(newer_than=1))) == 1
        clock.advance(2)
        assert len(list(registry.tasks(older_than=1))) == 1


def test_a_list_holds_one_page(many: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tasks are given before the second page is read."""
    pages = []
    read = many._reader.page

    def count(*arguments: Any) -> Any:
        pages.append(arguments)
        return read(arguments[0], arguments[1], 10)

    monkeypatch.setattr(many._reader, "page", count)
    tasks = many.tasks()
    assert not pages
    assert len(list(islice(tasks, 10))) == 10
    assert len(pages) == 1
    assert len(list(tasks)) == 170


def test_a_word_is_no_status(many: Registry) -> None:
    """Refused as a whole, not by its first letter, alone and in a list."""
    for status in ("failed", ["failed"]):
        with pytest.raises(ValueError, match="'failed' is not a valid Status"):
            list(many.tasks(status=status))  # type: ignore[arg-type] # on purpose


def test_the_index_serves_several_statuses() -> None:
    """Statuses that have an index are searched in it, one by one, without a sort of all that is left."""
    connection = apsw.Connection(":memory:")
    connection.execute(SCHEMA.read_text())
    records.insert_registry(cast("Connection", connection), records.RegistryRow(1, "", "", "", 0, None))
    statements: list[tuple[str, Any]] = []

    def note(_cursor: object, sql: str, bindings: Any) -> bool:
        statements.append((sql, bindings))
        return True

    connection.exec_trace = note
    statuses = frozenset({Status.FAILED, Status.UNKNOWN, Status.PENDING})
    queries.page(cast("Connection", connection), 1, Query(statuses, "a"), Instant(0, 0, 0), "a:1", 10)
    connection.exec_trace = None
    plans = [
        [str(row[3]) for row in connection.execute(f"explain query plan {sql}", bindings) if " large " not in row[3]]
        for sql, bindings in statements[-3:]
    ]
    connection.close()
    search = "SEARCH idempotent_log USING INDEX idempotent_attention (status=? AND task_id>? AND task_id<?)"
    assert plans == [[search, *(f"CORRELATED SCALAR SUBQUERY {number}" for number in (1, 2, 3))]] * 3
