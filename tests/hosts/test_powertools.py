"""The persistence layer for Powertools, under that library's own decorators."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent, idempotent_function
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyAlreadyInProgressError,
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyPersistenceLayerError,
    IdempotencyValidationError,
)
from aws_lambda_powertools.utilities.idempotency.persistence.datarecord import DataRecord

from idemreg import AsyncRegistry, ClaimLostError, ResultError, Status, TaskDoneError, TaskUnknownError, Verdict
from idemreg.ext.powertools import IdemregPersistenceLayer
from idemreg.sqlite.backend import SqliteStore
from idemreg.store import End
from idemreg.testing import ManualClock
from tests.support.processes import ROOT, Script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg import Registry, Task

PAGE = (ROOT / "docs" / "powertools.md").read_text("utf-8")
HOUR_S = 3_600


class Context:
    """What Lambda gives a handler: how long it may still run."""

    function_name = memory_limit_in_mb = invoked_function_arn = aws_request_id = "test"

    def __init__(self, remaining_ms: int = 60_000) -> None:
        self.remaining_ms = remaining_ms

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_ms


@pytest.fixture
def clock() -> ManualClock:
    """At the real time, by which the utility goes, until a test lets some pass."""
    return ManualClock(wall_us=int(dt.datetime.now(dt.UTC).timestamp() * 1_000_000))


@pytest.fixture
def registry(open_registry: Callable[..., Registry], clock: ManualClock) -> Registry:
    return open_registry(clock=clock)


@pytest.fixture
def layer(registry: Registry) -> IdemregPersistenceLayer:
    return IdemregPersistenceLayer(registry)


def config(**options: Any) -> IdempotencyConfig:
    return IdempotencyConfig(**{"event_key_jmespath": "id", "lambda_context": Context(), **options})


def shipping(layer: IdemregPersistenceLayer, body: Callable[[Any], Any], **options: Any) -> Any:
    """A job under the utility's decorator."""

    def ship(order: Any) -> Any:
        return body(order)

    return idempotent_function(
        ship, data_keyword_argument="order", persistence_store=layer, config=config(**options), key_prefix="ship"
    )


def noting(entered: list[Any], result: str) -> Callable[[Any], str]:
    def body(order: Any) -> str:
        entered.append(order)
        return result

    return body


def only(registry: Registry) -> Task:
    (task,) = registry.tasks()
    return task


# --- the utility's own rules ----------------------------------------------------------------------------------------


def test_a_duplicate_gets_the_stored_response(layer: IdemregPersistenceLayer, registry: Registry) -> None:
    """A Lambda handler runs once for its key; later events get its response, None too."""
    entered = []

    @idempotent(persistence_store=layer, config=IdempotencyConfig(event_key_jmespath="id"))
    def handler(event: dict[str, Any], context: Any) -> Any:
        entered.append(event["id"])
        return {"done": event["id"], "at": [1, 2.5]} if event["id"] else None

    for _ in range(3):
        assert handler({"id": 7, "retry": object}, Context()) == {"done": 7, "at": [1, 2.5]}
        assert handler({"id": 0}, Context()) is None
    assert entered == [7, 0]
    assert registry.count() == {Status.SUCCEEDED: 2}


def test_a_function_replays_to_another_layer(open_registry: Callable[..., Registry]) -> None:
    """The record is in the file: another process's layer finds it."""
    entered: list[Any] = []
    for _ in range(2):
        ship = shipping(IdemregPersistenceLayer(open_registry()), noting(entered, "ok"))
        assert ship(order={"id": 1}) == "ok"
    assert len(entered) == 1


def test_a_running_twin_is_in_progress(layer: IdemregPersistenceLayer) -> None:
    """While a function runs, its key is in progress to all others, also after its time where another process has it."""
    inside: list[type] = []

    def body(order: Any) -> str:
        if not inside:
            with pytest.raises(IdempotencyAlreadyInProgressError) as caught:
                ship(order=order)
            inside.append(caught.type)
        return "ok"

    ship = shipping(layer, body)
    assert ship(order={"id": 1}) == "ok"
    assert inside


def test_a_failing_function_may_run_again(layer: IdemregPersistenceLayer, registry: Registry) -> None:
    """Its own error reaches the caller, nothing stays in progress, and a retry may even bring another payload."""
    errors = [LookupError("first")]

    def body(order: Any) -> str:
        if errors:
            raise errors.pop()
        return "ok"

    ship = shipping(layer, body, payload_validation_jmespath="amount")
    with pytest.raises(LookupError):
        ship(order={"id": 1, "amount": 1})
    before = only(registry)
    assert (before.status, before.attempt) == (Status.PENDING, 0)
    assert ship(order={"id": 1, "amount": 2}) == "ok"
    assert only(registry).token > before.token


@pytest.mark.parametrize("cached", [False, True])
def test_another_payload_is_refused(layer: IdemregPersistenceLayer, cached: bool) -> None:  # noqa: FBT001
    """With payload validation the same key with another payload is the utility's own error; the same replays."""
    entered: list[Any] = []
    ship = shipping(
        layer,
        noting(entered, "ok"),
        payload_validation_jmespath="amount",
        use_local_cache=cached,
    )
    ship(order={"id": 1, "amount": 1})
    assert ship(order={"id": 1, "amount": 1, "note": "x"}) == "ok"
    with pytest.raises(IdempotencyValidationError):
        ship(order={"id": 1, "amount": 2})
    assert len(entered) == 1


def test_another_payload_is_refused_while_it_runs(layer: IdemregPersistenceLayer) -> None:
    """A mismatch with a run in progress is a mismatch, not a wait."""

    def body(order: Any) -> str:
        if order["amount"] == 1:
            with pytest.raises(IdempotencyValidationError):
                ship(order={"id": 1, "amount": 2})
        return "ok"

    ship = shipping(layer, body, payload_validation_jmespath="amount")
    assert ship(order={"id": 1, "amount": 1}) == "ok"


def test_an_expired_record_runs_again(layer: IdemregPersistenceLayer, registry: Registry, clock: ManualClock) -> None:
    """After expires_after_seconds the key is new, under a larger token; before that it is not."""
    entered: list[Any] = []
    ship = shipping(layer, entered.append, expires_after_seconds=2 * HOUR_S)
    ship(order={"id": 1})
    first = only(registry)
    assert first.keep_ms is not None
    assert abs(first.keep_ms - 2 * HOUR_S * 1_000) < 60_000
    clock.advance(2 * HOUR_S - 60)
    ship(order={"id": 1})
    assert len(entered) == 1
    clock.advance(120)
    ship(order={"id": 1})
    assert len(entered) == 2
    assert only(registry).token > first.token


def test_concurrent_functions_run_once(layer: IdemregPersistenceLayer, registry: Registry) -> None:
    """Eight threads with the same twenty orders: each runs once; a twin gets its result, or that it is in progress."""
    entered: list[int] = []

    def body(order: dict[str, int]) -> int:
        entered.append(order["id"])
        return order["id"] + 1

    ship = shipping(layer, body)
    start = threading.Barrier(8)

    def work(_: int) -> None:
        start.wait()
        for number in range(20):
            with contextlib.suppress(IdempotencyAlreadyInProgressError):
                assert ship(order={"id": number}) == number + 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(entered) == list(range(20))
    assert registry.count() == {Status.SUCCEEDED: 20}


def test_two_threads_do_not_mix_their_functions(layer: IdemregPersistenceLayer, registry: Registry) -> None:
    """A layer that is shared by two functions keeps each one's name, though the base has room for one."""
    meet = threading.Barrier(2)

    def one(order: Any) -> str:
        meet.wait()
        return "one"

    def two(order: Any) -> str:
        meet.wait()
        return "two"

    jobs: list[Any] = [
        idempotent_function(body, data_keyword_argument="order", persistence_store=layer, config=config())
        for body in (one, two)
    ]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda job: job(order={"id": 1}), jobs)) == ["one", "two"]
    assert registry.count() == {Status.SUCCEEDED: 2}


@pytest.mark.parametrize("replays", [False, True])
def test_nested_functions_keep_their_rows_apart(
    layer: IdemregPersistenceLayer,
    registry: Registry,
    replays: bool,  # noqa: FBT001
) -> None:
    """A decorated function inside another one, run or replayed, ends its own record, and so does the outer one."""

    def inner(order: Any) -> str:
        return "inner"

    ship = idempotent_function(inner, data_keyword_argument="order", persistence_store=layer, config=config())

    def outer(order: Any) -> str:
        return f"outer of {ship(order=order)}"

    both = idempotent_function(outer, data_keyword_argument="order", persistence_store=layer, config=config())
    if replays:
        ship(order={"id": 1})
    assert both(order={"id": 1}) == "outer of inner"
    assert both(order={"id": 1}) == "outer of inner"
    assert registry.count() == {Status.SUCCEEDED: 2}


def test_a_missing_key_is_the_utilitys_own_business(layer: IdemregPersistenceLayer, registry: Registry) -> None:
    """Without a key it warns and runs unprotected, unless it is told to raise; no row is written."""
    ship = shipping(layer, lambda order: "ran")
    with pytest.warns(UserWarning, match="No idempotency key"):
        assert ship(order={"other": 1}) == "ran"
    assert registry.count() == {}


def test_keys_of_any_length_are_taken(layer: IdemregPersistenceLayer, registry: Registry) -> None:
    """A name of a function that is no task_id is told by its hash."""

    def ship(order: Any) -> str:
        return "ok"

    ship.__qualname__ = "ship" * 200
    job: Any = idempotent_function(ship, data_keyword_argument="order", persistence_store=layer, config=config())
    assert [job(order={"id": 1}) for _ in range(2)] == ["ok", "ok"]
    assert re.fullmatch("powertools:[0-9a-f]{64}", only(registry).task_id)


# --- late owners ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meets", [True, False], ids=["while its successor runs", "after its successor"])
@pytest.mark.parametrize("fails", [True, False], ids=["a late failure", "a late result"])
def test_a_late_function_loses(
    layer: IdemregPersistenceLayer,
    registry: Registry,
    clock: ManualClock,
    fails: bool,  # noqa: FBT001
    meets: bool,  # noqa: FBT001
) -> None:
    """Past its time, a function gives way to a second run. When it comes back it fails, and overwrites nothing."""
    in_first, come_back, is_back = threading.Event(), threading.Event(), threading.Event()
    runs: list[str] = []

    def body(order: Any) -> str:
        runs.append("run")
        if len(runs) == 1:
            in_first.set()
            assert come_back.wait(60)
            if fails:
                raise LookupError
            return "first"
        if meets:
            come_back.set()
            assert is_back.wait(60)
        return "second"

    ship = shipping(layer, body)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ship, order={"id": 1})
        first.add_done_callback(lambda _: is_back.set())
        assert in_first.wait(60)
        with pytest.raises(IdempotencyAlreadyInProgressError):
            ship(order={"id": 1})
        clock.advance(600)
        assert ship(order={"id": 1}) == "second"
        come_back.set()
        error = first.exception()
    if fails:
        assert isinstance(error, LookupError)
    else:
        assert isinstance(error, IdempotencyPersistenceLayerError)
        assert isinstance(error.__cause__, ClaimLostError)
    assert ship(order={"id": 1}) == "second"
    assert len(runs) == 2
    assert registry.count() == {Status.SUCCEEDED: 1}


def test_a_live_process_keeps_its_key(path: Path, registry: Registry, clock: ManualClock) -> None:
    """An owner that lives in another process is not replaced when its time is over, only when it is dead as well."""
    ship = shipping(IdemregPersistenceLayer(registry), lambda order: "here")
    with Script(CHILD, path, "rerun") as child:
        child.expect("in the function")
        clock.advance(HOUR_S)
        with pytest.raises(IdempotencyAlreadyInProgressError):
            ship(order={"id": 1})
        child.kill()
        assert ship(order={"id": 1}) == "here"


CHILD = """
    from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent_function
    from idemreg import Registry
    from idemreg.ext.powertools import IdemregPersistenceLayer

    class Context:
        def get_remaining_time_in_millis(self):
            return 60_000

    def body(order):
        say("in the function")
        wait()
        return "there"

    layer = IdemregPersistenceLayer(Registry(sys.argv[1]), on_crash=sys.argv[2])
    config = IdempotencyConfig(event_key_jmespath="id", lambda_context=Context())
    ship = idempotent_function(
        body, data_keyword_argument="order", persistence_store=layer, config=config, key_prefix="ship"
    )
    ship(order={"id": 1})
"""


def test_a_killed_process_runs_again_after_its_time(path: Path, registry: Registry, clock: ManualClock) -> None:
    """SIGKILL in the function: in progress until the in-progress expiry, then it runs again: the utility's rule."""
    entered: list[Any] = []
    ship = shipping(IdemregPersistenceLayer(registry), noting(entered, "here"))
    with Script(CHILD, path, "rerun") as child:
        child.expect("in the function")
        child.kill()
    with pytest.raises(IdempotencyAlreadyInProgressError):
        ship(order={"id": 1})
    clock.advance(30)
    with pytest.raises(IdempotencyAlreadyInProgressError):
        ship(order={"id": 1})
    clock.advance(600)
    assert [ship(order={"id": 1}) for _ in range(2)] == ["here", "here"]
    assert len(entered) == 1


@pytest.mark.parametrize("verdict", [Verdict.HAPPENED, Verdict.DID_NOT_HAPPEN])
@pytest.mark.parametrize("held_there", [True, False], ids=["the dead process holds", "the layer that asks holds"])
def test_a_killed_process_that_holds_leaves_unknown(
    path: Path,
    registry: Registry,
    clock: ManualClock,
    held_there: bool,  # noqa: FBT001
    verdict: Verdict,
) -> None:
    """With on_crash="hold", of either side, nothing runs again by itself; an operator's word ends it."""
    ship = shipping(IdemregPersistenceLayer(registry, on_crash="rerun" if held_there else "hold"), lambda order: "here")
    with Script(CHILD, path, "hold" if held_there else "rerun") as child:
        child.expect("in the function")
        child.kill()
    clock.advance(HOUR_S)
    for _ in range(2):
        with pytest.raises(IdempotencyPersistenceLayerError) as caught:
            ship(order={"id": 1})
        assert isinstance(caught.value.__cause__, TaskUnknownError)
    assert only(registry).status is Status.UNKNOWN
    registry.resolve(only(registry).task_id, verdict, result={"response": '"there"', "expires_at": 2_000_000_000})
    assert ship(order={"id": 1}) == ("there" if verdict is Verdict.HAPPENED else "here")


@pytest.mark.parametrize("verdict", [Verdict.HAPPENED, Verdict.DID_NOT_HAPPEN])
def test_a_killed_process_that_an_operator_settles_meanwhile_runs_again(
    path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, verdict: Verdict
) -> None:
    """Between the look at its owner and the claim that would have made it unknown; where it happened it is replayed."""
    ship = shipping(IdemregPersistenceLayer(registry, on_crash="hold"), lambda order: "here")
    with Script(CHILD, path, "hold") as child:
        child.expect("in the function")
        child.kill()
    owner = SqliteStore.owner

    def slow(self: SqliteStore, task: Task) -> Any:
        monkeypatch.setattr(SqliteStore, "owner", owner)
        found = owner(self, task)
        registry.resolve(task.task_id, verdict, result={"response": '"there"', "expires_at": 2_000_000_000})
        return found

    monkeypatch.setattr(SqliteStore, "owner", slow)
    assert ship(order={"id": 1}) == ("there" if verdict is Verdict.HAPPENED else "here")
    assert only(registry).status is Status.SUCCEEDED


def test_a_late_function_whose_result_cannot_be_stored_loses_nothing(
    layer: IdemregPersistenceLayer, registry: Registry, clock: ManualClock
) -> None:
    """Its key was given to another run meanwhile, whose response stays; its own error is told."""
    runs: list[str] = []

    def body(order: Any) -> object:
        runs.append("run")
        if len(runs) > 1:
            return "second"
        clock.advance(600)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(ship, order=order).result() == "second"
        return object()

    ship = shipping(layer, body)
    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        ship(order={"id": 1})
    assert isinstance(caught.value.__cause__, TypeError)
    assert ship(order={"id": 1}) == "second"
    assert (len(runs), registry.count()) == (2, {Status.SUCCEEDED: 1})


def test_the_end_of_what_has_not_begun_changes_nothing(layer: IdemregPersistenceLayer, registry: Registry) -> None:
    """Of a function that the utility has not entered, of whatever key."""
    ship = shipping(layer, lambda order: "ok")
    assert ship(order={"id": 1}) == "ok"
    before = only(registry)
    layer.delete_record({"id": 1}, LookupError())
    assert only(registry) == before
    assert ship(order={"id": 1}) == "ok"


def test_an_interrupted_function_stays_in_progress_for_its_time(
    layer: IdemregPersistenceLayer, clock: ManualClock
) -> None:
    """The utility does not end what KeyboardInterrupt or SystemExit ends; its time does."""
    ends: list[BaseException] = [SystemExit(1)]

    def body(order: Any) -> str:
        if ends:
            raise ends.pop()
        return "ok"

    ship = shipping(layer, body)
    with pytest.raises(SystemExit):
        ship(order={"id": 1})
    with pytest.raises(IdempotencyAlreadyInProgressError):
        ship(order={"id": 1})
    clock.advance(600)
    assert ship(order={"id": 1}) == "ok"


class Durable:
    """The context of a durable function, as the utility looks at it."""

    def __init__(self, operations: int) -> None:
        self.lambda_context = Context()
        self.state = type("State", (), {"operations": [None] * operations})()


def test_a_durable_function_goes_on(layer: IdemregPersistenceLayer, registry: Registry) -> None:
    """An invocation that was suspended is in progress; its replay goes on under the same key and ends it."""
    suspends = [KeyboardInterrupt()]

    @idempotent(persistence_store=layer, config=IdempotencyConfig(event_key_jmespath="id"))
    def handler(event: dict[str, Any], context: Any) -> str:
        if suspends:
            raise suspends.pop()
        return "done"

    with pytest.raises(KeyboardInterrupt):
        handler({"id": 1}, Durable(1))
    with ThreadPoolExecutor(1) as pool:  # another thread has no claim of its own
        assert pool.submit(handler, {"id": 1}, Durable(2)).result() == "done"
    assert only(registry).status is Status.SUCCEEDED
    assert handler({"id": 1}, Durable(1)) == "done"


def test_durable_functions_are_not_mixed(layer: IdemregPersistenceLayer, registry: Registry) -> None:
    """Two that are suspended with the same event, each in a thread: a replay of the one ends its own record."""
    suspends = {"one": [KeyboardInterrupt()], "two": [KeyboardInterrupt()]}

    def durable(name: str) -> Any:
        def handler(event: dict[str, Any], context: Any) -> str:
            if suspends[name]:
                raise suspends[name].pop()
            return name

        handler.__qualname__ = name
        return idempotent(persistence_store=layer, config=IdempotencyConfig(event_key_jmespath="id"))(handler)

    one, two = durable("one"), durable("two")
    with ThreadPoolExecutor(1) as pool:
        suspended = pool.submit(two, {"id": 1}, Durable(1))
        with pytest.raises(KeyboardInterrupt):
            suspended.result()
        with pytest.raises(KeyboardInterrupt):
            one({"id": 1}, Durable(1))
        assert two({"id": 1}, Durable(2)) == "two"
        assert {task.task_id.partition("#")[0][-4:]: task.status for task in registry.tasks()} == {
            ".one": Status.RUNNING,
            ".two": Status.SUCCEEDED,
        }
        assert pool.submit(one, {"id": 1}, Durable(2)).result() == "one"
    assert registry.count() == {Status.SUCCEEDED: 2}
    assert (one({"id": 1}, Durable(1)), two({"id": 1}, Durable(1))) == ("one", "two")


@pytest.mark.parametrize(
    ("end", "order"),
    [("left", {"id": 1}), ("refused", {"id": 1}), ("refused", "text, which the utility does not copy")],
)
def test_an_inner_function_that_did_not_end(
    layer: IdemregPersistenceLayer, registry: Registry, clock: ManualClock, end: str, order: object
) -> None:
    """The outer one ends its own record after an inner one was interrupted, or was in progress elsewhere."""
    entered, go = threading.Event(), threading.Event()

    def inner(order: Any) -> str:
        if end == "left" and not go.is_set():
            raise KeyboardInterrupt
        entered.set()
        assert go.wait(60)
        return "inner"

    options = config(event_key_jmespath="")
    ship = idempotent_function(inner, data_keyword_argument="order", persistence_store=layer, config=options)

    def outer(order: Any) -> str:
        with pytest.raises(KeyboardInterrupt if end == "left" else IdempotencyAlreadyInProgressError):
            ship(order=order)
        return "outer"

    both = idempotent_function(outer, data_keyword_argument="order", persistence_store=layer, config=options)
    with ThreadPoolExecutor(1) as pool:
        if end == "refused":
            running = pool.submit(ship, order=order)
            assert entered.wait(60)
        assert both(order=order) == "outer"
        ends = {task.task_id.partition("#")[0].rpartition(".")[2]: task.status for task in registry.tasks()}
        assert ends == {"outer": Status.SUCCEEDED, "inner": Status.RUNNING}
        go.set()
        assert both(order=order) == "outer"
        if end == "refused":
            assert running.result() == "inner"
    clock.advance(600)
    assert ship(order=order) == "inner"


def test_a_durable_function_goes_on_after_its_process_died(path: Path, registry: Registry) -> None:
    """Its replay in another process takes the claim over, by proof of death."""
    with Script(CHILD, path, "rerun") as child:
        child.expect("in the function")
        child.kill()
    layer = IdemregPersistenceLayer(registry)
    key = only(registry).task_id
    record = DataRecord(key, "COMPLETED", 2_000_000_000, response_data='"done"')
    layer._update_record(record)
    assert layer._get_record(key).response_data == '"done"'


# --- results and stores that refuse ---------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [object(), {"text": "x" * (1 << 20)}], ids=["no JSON", "too large"])
def test_a_result_that_cannot_be_stored_is_lost(
    layer: IdemregPersistenceLayer, registry: Registry, clock: ManualClock, result: object
) -> None:
    """The function has run, and does not run again before the record expires: no retry repeats its effect."""
    entered: list[Any] = []

    def body(order: Any) -> object:
        entered.append(order)
        return result

    ship = shipping(layer, body)
    with pytest.raises(IdempotencyPersistenceLayerError):
        ship(order={"id": 1})
    assert (only(registry).status, only(registry).result) == (Status.SUCCEEDED, None)
    clock.advance(HOUR_S - 60)
    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        ship(order={"id": 1})
    assert isinstance(caught.value.__cause__, ResultError)
    assert len(entered) == 1
    clock.advance(120)
    with pytest.raises(IdempotencyPersistenceLayerError):
        ship(order={"id": 1})
    assert len(entered) == 2


def test_a_key_that_an_operator_cancelled_does_not_run(layer: IdemregPersistenceLayer, registry: Registry) -> None:
    """It is an error of the layer, with the reason as its cause."""
    ship = shipping(layer, lambda order: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ship(order={"id": 1})
    registry.cancel(only(registry).task_id, reason="sold out")
    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        ship(order={"id": 1})
    assert isinstance(caught.value.__cause__, TaskDoneError)


def test_another_jobs_row_is_left_alone(layer: IdemregPersistenceLayer, registry: Registry) -> None:
    """A task of that name which is not the utility's is never removed, and answers for nobody."""
    ship = shipping(layer, lambda order: "ok")
    ship(order={"id": 1})
    task_id = only(registry).task_id
    registry.forget(task_id)
    registry.run(task_id, lambda: 1, name="mine")
    with pytest.raises(IdempotencyPersistenceLayerError, match="belongs to the job 'mine'"):
        ship(order={"id": 1})
    assert only(registry).name == "mine"


# --- the four methods -----------------------------------------------------------------------------------------------


def record_of(key: str, status: str = "INPROGRESS", **more: Any) -> DataRecord:
    return DataRecord(key, status, 2_000_000_000, payload_hash="h", **more)


def test_the_methods_keep_their_contract(layer: IdemregPersistenceLayer, registry: Registry) -> None:
    """Get, put, update and delete: a missing record is not found, one that stands is given back with the error."""
    with pytest.raises(IdempotencyItemNotFoundError):
        layer._get_record("k")
    layer._put_record(record_of("k", in_progress_expiry_timestamp=1_999_999_999_999))
    assert layer._get_record("k").in_progress_expiry_timestamp == 1_999_999_999_999
    with pytest.raises(IdempotencyItemAlreadyExistsError) as caught:
        layer._put_record(record_of("k"))
    assert caught.value.old_data_record is not None
    assert caught.value.old_data_record.status == "INPROGRESS"
    layer._delete_record(record_of("k"))
    with pytest.raises(IdempotencyItemNotFoundError):
        layer._get_record("k")
    layer._delete_record(record_of("k"))  # nothing is there
    with pytest.raises(ClaimLostError):  # nor anything that could be updated
        layer._update_record(record_of("k", "COMPLETED", response_data="1"))
    layer._put_record(record_of("k"))
    layer._update_record(record_of("k", "COMPLETED", response_data='{"a": 1}'))
    done = layer._get_record("k")
    assert (done.status, done.response_json_as_dict(), done.expiry_timestamp) == ("COMPLETED", {"a": 1}, 2_000_000_000)
    layer._delete_record(record_of("k"))  # of nobody who holds it: the record stays
    assert layer._get_record("k").status == "COMPLETED"


def test_an_expired_record_is_removed_only_as_it_was_seen(
    layer: IdemregPersistenceLayer, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two find the same expired record: the slower one must not remove what the quicker one has completed since."""
    layer._put_record(DataRecord("k", "INPROGRESS", 1))
    layer._update_record(DataRecord("k", "COMPLETED", 1, response_data='"old"'))
    forget = SqliteStore.forget
    other = IdemregPersistenceLayer(registry)

    def slow(self: SqliteStore, task_id: str, **options: Any) -> Any:
        monkeypatch.setattr(SqliteStore, "forget", forget)
        other._put_record(record_of("k"))
        other._update_record(record_of("k", "COMPLETED", response_data='"new"'))
        return forget(self, task_id, **options)

    monkeypatch.setattr(SqliteStore, "forget", slow)
    with pytest.raises(IdempotencyItemAlreadyExistsError) as caught:
        layer._put_record(record_of("k"))
    assert caught.value.old_data_record is not None
    assert caught.value.old_data_record.response_data == '"new"'


def test_a_key_that_others_always_claim_first_is_in_progress(
    layer: IdemregPersistenceLayer, open_registry: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a bound on the tries; the other's run goes on."""
    other = open_registry()
    theirs = IdemregPersistenceLayer(other)
    theirs._put_record(record_of("k"))
    before = only(other)
    monkeypatch.setattr(layer, "_row", lambda _task_id: None)  # it was gone at each look
    with pytest.raises(IdempotencyItemAlreadyExistsError):
        layer._put_record(record_of("k"))
    assert only(other) == before
    theirs._delete_record(record_of("k"))


def test_a_run_that_goes_on_elsewhere_is_not_taken(
    layer: IdemregPersistenceLayer, open_registry: Callable[..., Registry]
) -> None:
    """Its owner lives: `ClaimLostError`, and its record stays in progress."""
    other = open_registry()
    theirs = IdemregPersistenceLayer(other)
    theirs._put_record(record_of("k", in_progress_expiry_timestamp=1_999_999_999_999))
    with pytest.raises(ClaimLostError):
        layer._update_record(record_of("k", "COMPLETED", response_data="1"))
    assert only(other).status is Status.RUNNING
    theirs._update_record(record_of("k", "COMPLETED", response_data="2"))
    assert layer._get_record("k").response_data == "2"


def test_what_is_unknown_makes_way_behind_its_time(
    layer: IdemregPersistenceLayer, registry: Registry, clock: ManualClock
) -> None:
    """Under the utility's own rule: until then it is in progress, whoever has said that nobody knows."""
    until = clock.wall_us() // 1_000 + 60_000
    layer._put_record(record_of("k", in_progress_expiry_timestamp=until))
    task = only(registry)
    layer._open["k"].claim.end(End("k", task.token, task.owner or 0, Status.UNKNOWN, 1, error="nobody knows"))
    other = IdemregPersistenceLayer(registry)
    with pytest.raises(IdempotencyItemAlreadyExistsError):
        other._put_record(record_of("k"))
    assert only(registry).status is Status.UNKNOWN
    clock.advance(61)
    other._put_record(record_of("k"))
    other._update_record(record_of("k", "COMPLETED", response_data="1"))
    assert other._get_record("k").response_data == "1"


def test_an_asynchronous_registry_is_refused(registry: Registry) -> None:
    """The utility calls and does not await: TypeError, with what to give instead."""
    with pytest.raises(TypeError, match=r"the `\.registry` of an AsyncRegistry"):
        IdemregPersistenceLayer(AsyncRegistry.of(registry))  # type: ignore[arg-type]


def test_events_are_told(open_registry: Callable[..., Registry]) -> None:
    """A registry with on_event hears of the utility's runs."""
    events: list[str] = []
    layer = IdemregPersistenceLayer(open_registry(on_event=lambda event: events.append(type(event).__name__)))
    shipping(layer, lambda order: "ok")(order={"id": 1})
    with pytest.raises(ZeroDivisionError):
        shipping(layer, lambda order: 1 / 0)(order={"id": 2})
    assert events == ["Claimed", "Succeeded", "Claimed", "Released"]


# --- docs/powertools.md ---------------------------------------------------------------------------------------------


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each python block of docs/powertools.md, in order."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/powertools.md", "exec"), namespace)  # noqa: S102 - the page's own words
    assert namespace["shipped"] == {"shipped": 7}
