"""export and import: the same bytes again, nothing overwritten, tokens that only grow, and lines that are checked."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idemreg import ImportLineError, Registry, Status, Verdict, exchange
from idemreg.lines import FIELDS, end_line, header_line, task_line
from idemreg.model import OnCrash, OnFailure, Policy, Task
from idemreg.template import check_task_id
from idemreg.testing import throw_away_registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SUM = "ab" * 32
ID = "0123456789abcdef" * 2


def is_task_id(text: str) -> bool:
    try:
        return check_task_id(text) == text
    except Exception:  # noqa: BLE001 - whatever it says, it is none
        return False


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
ODD_IDS = (
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=40)
    .map(lambda text: unicodedata.normalize("NFC", text))
    .filter(is_task_id)
)


def a_task(task_id: str = "t", status: Status = Status.FAILED, **fields: Any) -> Task:
    own: dict[str, Any] = {
        "checksum": SUM,
        "updated_at": 1,
        "boot_stamp": 0,
        "name": "job",
        "token": 5,
        "attempt": 1,
        "owner": None,
        "policy": Policy(),
        **dict.fromkeys(("keep_ms", "result", "error", "verdict", "settled_by", "evidence")),
    }
    return Task(task_id=task_id, status=status, **(own | fields))


TASKS = st.builds(
    a_task,
    ODD_IDS,
    st.sampled_from([status for status in Status if status is not Status.RUNNING]),
    updated_at=st.integers(-(2**61), 2**61),
    name=TEXT,
    token=st.integers(0, 2**61),
    attempt=st.integers(0, 2**40),
    # A claim's limits stay behind with it, as kept arguments do, and so does the note of either.
    policy=st.builds(
        Policy,
        st.sampled_from(OnCrash),
        st.sampled_from(OnFailure),
        st.integers(1, 1_000_000),
        st.just(value=False),
        st.just(value=False),
    ),
    keep_ms=st.none() | st.integers(0, 2**60),
    result=st.none() | st.sampled_from(["null", '"é"', "[1, 2.5]", json.dumps("x" * 900)]),
    error=st.none() | TEXT,
    verdict=st.none() | st.sampled_from(Verdict),
    settled_by=st.none() | TEXT,
    evidence=st.none() | TEXT,
)


def file_of(*tasks: Task, floor: int = 0) -> list[str]:
    return [header_line(ID), *map(task_line, tasks), end_line(len(tasks), floor)]


@given(tasks=st.lists(TASKS, max_size=8, unique_by=lambda task: task.task_id))
def test_export_import_export_is_identical(tasks: list[Task]) -> None:
    """Whatever ids and values there are: what is exported, imported into an empty registry and exported is the same."""
    with throw_away_registry() as first, throw_away_registry() as second:
        first.import_lines(file_of(*tasks))
        exported = list(first.export_lines())
        done = second.import_lines(line.encode() for line in exported)
        assert (done.read, done.imported) == (len(tasks), len(tasks))
        assert list(second.export_lines()) == exported
        assert sorted(second.tasks()) == sorted(first.tasks()) == sorted(tasks)


def test_limits_stay_behind(registry: Registry) -> None:
    """A lease is of a claim, which does not move: one that ended leaves no trace, one that runs comes as unknown."""
    registry.run("ended", lambda: 7, name="", lease=60)
    with registry.claim("runs", lease=60, timeout=60), throw_away_registry() as other:
        other.import_lines(registry.export_lines())
        assert [(task.task_id, task.status, task.policy.is_limited) for task in other.tasks()] == [
            ("ended", Status.SUCCEEDED, False),
            ("runs", Status.UNKNOWN, False),
        ]
        assert other.run("ended", lambda: 8, name="").result == 7


def test_real_rows_come_over_whole(registry: Registry, tmp_path: Path) -> None:
    """What jobs left in every way (a large result, a failure, a settlement) is the same in the other registry."""

    def broken() -> None:
        raise RuntimeError("x" * 500)

    registry.run("large", lambda: {"text": "é" * 3_000}, name="a")
    registry.run("kept", lambda: (1, {2}), name="a", keep_for=60)
    registry.add("pending")
    with pytest.raises(RuntimeError):
        registry.run("failed", broken, name="b")
    with pytest.raises(RuntimeError):
        registry.run("resolved", broken, name="b", unknown_on=RuntimeError)
    registry.resolve("resolved", "happened", result=[1], evidence="seen", by="ann")
    file = tmp_path / "x.jsonl"
    with file.open("w", encoding="ascii") as out:
        out.writelines(registry.export_lines())
    with Registry(tmp_path / "other.db") as other, file.open("rb") as lines:
        other.import_lines(lines)
        assert [task._replace(boot_stamp=0) for task in registry.tasks()] == list(other.tasks())
        assert other.run("kept", lambda: None, name="a").result == (1, {2})
        assert other.run("large", lambda: None, name="a").replayed
        assert list(other.export_lines()) == file.read_text().splitlines(keepends=True)


@pytest.mark.parametrize("attempt", [0, 1])
def test_a_task_with_a_long_error_that_is_pending_runs(registry: Registry, attempt: int) -> None:
    """What is large in the row from before does not keep its success, small as it is, from being stored."""
    checksum = registry.add("other", name="job").checksum
    task = a_task(status=Status.PENDING, attempt=attempt, error="x" * 1_000, checksum=checksum)
    registry.import_lines(file_of(task))
    assert registry.run("t", lambda: 5, name=task.name).result == 5
    stored = registry.get("t")
    assert stored is not None
    assert (stored.status, stored.error) == (Status.SUCCEEDED, None)


def test_what_was_running_is_unknown(
    registry: Registry, open_registry: Callable[..., Registry], tmp_path: Path
) -> None:
    """A running task becomes unknown with its evidence, keeps token and attempt, and is the same ever after."""
    with registry.claim("t", name="job") as claim:
        exported = list(registry.export_lines())
        again = registry.import_lines(exported)
        assert (again.skipped, again.conflicting) == (1, 0)
    with throw_away_registry() as other, throw_away_registry() as third:
        done = other.import_lines(exported)
        task = other.get("t")
        assert task is not None
        assert (done.imported, done.unknown) == (1, 1)
        assert (task.status, task.token, task.attempt, task.owner) == (Status.UNKNOWN, claim.token, 1, None)
        assert (task.verdict, task.settled_by) == (Verdict.CANNOT_TELL, "import")
        assert "was running" in (task.evidence or "")
        assert other.import_lines(exported).skipped == 1
        lines = list(other.export_lines())
        third.import_lines(lines)
        assert list(third.export_lines()) == lines


def test_nothing_is_overwritten(registry: Registry) -> None:
    """A task that has a row stays as it is; the same one counts as skipped, another as conflicting, by name."""
    registry.import_lines(file_of(a_task("same"), a_task("differs")))
    before = list(registry.tasks())
    done = registry.import_lines(file_of(a_task("differs", name="other"), a_task("new"), a_task("same")))
    assert (done.read, done.imported, done.skipped, done.conflicting) == (3, 1, 1, 1)
    assert done.conflicts == ("differs",)
    assert [task for task in registry.tasks() if task.task_id != "new"] == before


@pytest.mark.parametrize("already_there", [False, True])
def test_tokens_never_go_back(registry: Registry, *, already_there: bool) -> None:
    """After an import every new token is above all of it: of tasks imported, left alone, and forgotten over there."""
    if already_there:
        registry.run("t", lambda: None)
    floor = 9 << 40
    registry.import_lines(file_of(a_task("t", token=floor + 7), floor=floor))
    with registry.claim("elsewhere") as claim:
        assert claim.token > floor + 7
    registry.import_lines(file_of(floor=floor + 100))
    registry.forget("t")
    with registry.claim("t") as claim:
        assert claim.token > floor + 100


def test_the_end_speaks_for_what_was_forgotten(registry: Registry) -> None:
    """The floor of an export covers tasks that are gone: their tokens do not come back in the new registry."""
    registry.run("gone", lambda: None)
    last = registry.forget("gone").token
    with throw_away_registry() as other:
        other.import_lines(registry.export_lines())
        with other.claim("gone") as claim:
            assert claim.token > last


def test_downstream_keys_move_along(registry: Registry) -> None:
    """An empty registry takes over the id, so receivers see the keys that they know, at once and in every handle."""
    with registry.claim("t") as claim:
        key = claim.downstream_key
    with throw_away_registry() as other, Registry(other.path) as second_handle:
        assert second_handle.store.downstream_key("t") != key
        other.import_lines(registry.export_lines())
        assert second_handle.store.downstream_key("t") == key
    with throw_away_registry() as busy:
        busy.run("own", lambda: None)
        own = busy.store.downstream_key("own")
        busy.import_lines(registry.export_lines())
        assert busy.store.downstream_key("own") == own


# --- chunks -----------------------------------------------------------------------------------------------------


def test_an_import_goes_in_chunks_and_goes_on(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each transaction takes a bounded number of tasks; after an interruption importing again does the rest."""
    monkeypatch.setattr(exchange, "CHUNK_TASKS", 3)
    lines = file_of(*(a_task(f"t{number}") for number in range(8)))
    seen = []

    def interrupt(done: exchange.Imported) -> None:
        seen.append(done.imported)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.import_lines(lines, progress=interrupt)
    assert seen == [3, 6]
    assert len(list(registry.tasks())) == 6
    done = registry.import_lines(lines)
    assert (done.skipped, done.imported) == (6, 2)


def test_large_tasks_make_small_chunks(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction is bounded by its bytes as well."""
    monkeypatch.setattr(exchange, "CHUNK_CHARACTERS", 2_000)
    seen: list[int] = []
    tasks = [a_task(f"t{number}", error="x" * 1_500) for number in range(4)]
    registry.import_lines(file_of(*tasks), progress=lambda done: seen.append(done.read))
    assert seen == [2, 4]


# --- lines that are none ----------------------------------------------------------------------------------------


def changed(**fields: Any) -> str:
    line = json.loads(task_line(a_task("bad"))) | fields
    return json.dumps({name: value for name, value in line.items() if value is not ...}, default=str)


BAD = {
    "text": "hello",
    "array": "[]",
    "nothing": "",
    "deep": "[" * 100_000,
    "nan": changed().replace("null", "NaN", 1),
    "twice": changed()[:-1] + ', "name": "x"}',
    "missing": json.dumps({"task_id": "bad"}),
    "unknown field": changed(colour="red"),
    "status": changed(status="done"),
    "status number": changed(status=1),
    "id": changed(task_id=" x"),
    "id type": changed(task_id=7),
    "id surrogate": changed(task_id="\ud800"),
    "checksum": changed(checksum="A" * 64),
    "token": changed(token=-1),
    "token size": changed(token=2**62),
    "token type": changed(token=True),
    "attempt": changed(attempt=1.0),
    "max_attempts": changed(max_attempts=0),
    "keep": changed(keep_ms="60"),
    "name": changed(name=None),
    "name surrogate": changed(name="\udfff"),
    "error": changed(error=["x"]),
    "result": changed(result="{"),
    "verdict": changed(verdict="maybe"),
    "policy": changed(on_crash=["hold"]),
    "second header": header_line(ID),
    "wrong end": end_line(7, 0),
    "bad end": '{"end": 1}',
    "bad floor": '{"end": 1, "floor": -1}',
    "bytes": b"\xff\n",
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_a_bad_line_is_named(registry: Registry, line: str | bytes) -> None:
    """Each line is checked; the error has its number, what came before is there, and nothing of it or behind it."""
    good = file_of(a_task("good"), a_task("behind"))
    with pytest.raises(ImportLineError) as caught:
        registry.import_lines([*good[:2], line, *good[2:]])
    assert caught.value.line == 3
    assert caught.value.message.startswith("line 3: ")
    assert len(caught.value.message) < 300
    assert [task.task_id for task in registry.tasks()] == ["good"]


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ([], 1),
        (file_of(a_task())[1:], 1),
        (['{"idemreg": "export", "format": 2, "registry_id": "x"}'], 1),
        (file_of(a_task())[:-1], 3),
        ([*file_of(a_task()), task_line(a_task("u"))], 4),
        ([*file_of(a_task()), ""], 4),
    ],
)
def test_a_file_that_is_cut_off_or_goes_on(registry: Registry, lines: list[str], number: int) -> None:
    """Without its header or its end it is no export, and nothing may follow the end."""
    with pytest.raises(ImportLineError) as caught:
        registry.import_lines(lines)
    assert caught.value.line == number


def test_an_endless_line_is_refused(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of more than the bound is refused before it is parsed."""
    monkeypatch.setattr(exchange, "LINE_CHARACTERS", 1_000)
    with pytest.raises(ImportLineError, match="1000 characters"):
        registry.import_lines([header_line(ID), "x" * 1_001])


def test_the_format_is_what_it_says(registry: Registry) -> None:
    """Version 1 of the public format, to the byte."""
    registry.import_lines(file_of(a_task("é"), floor=6))
    assert list(registry.export_lines())[:2] == [
        '{"idemreg":"export","format":1,"registry_id":"0123456789abcdef0123456789abcdef"}\n',
        (
            f'{{"task_id":"\\u00e9","status":"failed","checksum":"{SUM}","updated_at":1,"name":"job","token":5,"attempt":1,'
            '"on_crash":"hold","on_failure":"retry","max_attempts":10,"keep_ms":null,"result":null,"error":null,'
            '"verdict":null,"settled_by":null,"evidence":null}\n'
        ),
    ]
    assert list(json.loads(task_line(a_task()))) == list(FIELDS)


def test_steps_beyond_their_bound_are_no_line_of_an_export(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No registry keeps as much for one task: what came before is imported, and no more."""
    with Registry(path, durability="normal") as registry:
        with registry.claim("t") as claim:
            for name in ("first", "second", "third"):
                claim.run_step(name, lambda: "x" * 100)
        lines = list(registry.export_lines())
    monkeypatch.setattr("idemreg.exchange.MAX_STEPS_BYTES", 50)
    with Registry(tmp_path / "other.db", durability="normal") as other:
        with pytest.raises(ImportLineError, match="steps of more than"):
            other.import_lines(lines)
        assert [step.name for step in other.steps("t")] == ["first"]
