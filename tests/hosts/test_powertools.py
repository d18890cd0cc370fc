"""AWS Lambda Powertools' own decorators on an idemreg file."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent, idempotent_function
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyAlreadyInProgressError,
    IdempotencyPersistenceLayerError,
    IdempotencyValidationError,
)

from idemreg import ClaimLostError, Registry, Status, TaskUnknownError
from idemreg.ext.powertools import IdemregPersistenceLayer
from tests.support.processes import PATIENCE_S, Script

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't determine the remaining time left")


class Context:
    """What Lambda hands to a handler."""

    function_name = "shop"

    def get_remaining_time_in_millis(self) -> int:
        return 1_000


def config(**options: Any) -> Any:
    return IdempotencyConfig(event_key_jmespath="order", **options)


def test_a_handler_runs_once(registry: Registry) -> None:
    """The Lambda decorator: the second event of one order gets the first one's response, in whichever process."""
    entered: list[dict[str, Any]] = []

    def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
        entered.append(event)
        return {"statusCode": 200, "order": event["order"]}

    decorate: Any = idempotent
    first, second = (
        decorate(handler, config=config(), persistence_store=IdemregPersistenceLayer(registry)) for _ in range(2)
    )
    answers = [one({"order": "o-1", "sent": n}, Context()) for n, one in enumerate((first, first, second))]
    assert answers == [{"statusCode": 200, "order": "o-1"}] * 3
    assert len(entered) == 1
    (task,) = registry.tasks()
    assert (task.status, task.name, task.attempt) == (Status.SUCCEEDED, "powertools", 1)


def test_a_failing_function_may_run_again(registry: Registry) -> None:
    """The utility deletes the record of a handler that raised: the task is put back, and the next call runs it."""
    tries: list[int] = []

    @idempotent_function(
        data_keyword_argument="order", config=config(), persistence_store=IdemregPersistenceLayer(registry)
    )
    def pay(order: dict[str, Any]) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError
        return "paid"

    for _ in range(2):
        with pytest.raises(ConnectionError):
            pay(order={"order": 1})
    assert [pay(order={"order": 1}) for _ in range(2)] == ["paid", "paid"]
    assert len(tries) == 3


def test_another_payload_is_refused(registry: Registry) -> None:
    """With payload validation, another amount under one order is the utility's own error."""
    layer = IdemregPersistenceLayer(registry)

    @idempotent_function(
        data_keyword_argument="event",
        config=config(payload_validation_jmespath="amount"),
        persistence_store=layer,
    )
    def pay(event: dict[str, Any]) -> int:
        return int(event["amount"])

    assert pay(event={"order": 1, "amount": 5}) == 5
    with pytest.raises(IdempotencyValidationError):
        pay(event={"order": 1, "amount": 6})
    assert pay(event={"order": 1, "amount": 5}) == 5


def test_in_progress_is_refused_however_long_it_takes(registry: Registry) -> None:
    """While the handler runs, its twin is refused: an owner that lives is not replaced by a time-out."""
    layer = IdemregPersistenceLayer(registry)
    inside, leave = threading.Event(), threading.Event()

    @idempotent_function(data_keyword_argument="order", config=config(), persistence_store=layer)
    def slow(order: dict[str, Any]) -> str:
        inside.set()
        assert leave.wait(PATIENCE_S)
        return "done"

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(slow, order={"order": 1})
        assert inside.wait(PATIENCE_S)
        with pytest.raises(IdempotencyAlreadyInProgressError):
            slow(order={"order": 1})
        leave.set()
        assert first.result(PATIENCE_S) == "done"
    assert slow(order={"order": 1}) == "done"


def test_an_expired_record_runs_again(registry: Registry) -> None:
    """After expires_after_seconds the utility wants another execution, and gets one, under a larger token."""
    entered: list[int] = []

    @idempotent_function(
        data_keyword_argument="order",
        config=config(expires_after_seconds=-5),
        persistence_store=IdemregPersistenceLayer(registry),
    )
    def pay(order: dict[str, Any]) -> int:
        entered.append(1)
        return len(entered)

    tokens = []
    for expected in (1, 2):
        assert pay(order={"order": 1}) == expected
        (task,) = registry.tasks()
        tokens.append(task.token)
    assert tokens[0] < tokens[1]


def test_an_interrupted_handler_is_a_crash(registry: Registry) -> None:
    """The utility says nothing of a KeyboardInterrupt; the next invocation settles it by the crash policy."""
    for policy, layer in (("hold", IdemregPersistenceLayer(registry)), ("rerun", rerunning(registry))):
        tries: list[int] = []

        @idempotent_function(data_keyword_argument="order", config=config(), persistence_store=layer, key_prefix=policy)
        def pay(order: dict[str, Any], tries: list[int] = tries) -> str:
            tries.append(1)
            if len(tries) == 1:
                raise KeyboardInterrupt
            return "paid"

        with pytest.raises(KeyboardInterrupt):
            pay(order={"order": 1})
        if policy == "rerun":
            assert pay(order={"order": 1}) == "paid"
        else:
            with pytest.raises(IdempotencyPersistenceLayerError) as refused:
                pay(order={"order": 1})
            assert isinstance(refused.value.__cause__, TaskUnknownError)
            assert len(tries) == 1


def rerunning(registry: Registry) -> IdemregPersistenceLayer:
    return IdemregPersistenceLayer(registry, on_crash="rerun")


@pytest.mark.parametrize("on_crash", ["hold", "rerun"])
def test_a_process_that_died_in_the_handler(registry: Registry, path: Path, on_crash: Any) -> None:
    """No expiry is waited for: the death is proven, and the task is unknown, or runs again at once."""
    script = """
        import warnings
        warnings.simplefilter("ignore")
        from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent_function
        from idemreg import Registry
        from idemreg.ext.powertools import IdemregPersistenceLayer
        layer = IdemregPersistenceLayer(Registry(sys.argv[1]), on_crash=sys.argv[2])
        @idempotent_function(data_keyword_argument="order", config=IdempotencyConfig(event_key_jmespath="order"),
                             persistence_store=layer, key_prefix="pay")
        def pay(order): os.kill(os.getpid(), 9)
        pay(order={"order": 1})
    """
    with Script(script, path, on_crash) as process:
        assert process.end() == -signal.SIGKILL

    @idempotent_function(
        data_keyword_argument="order",
        config=config(),
        persistence_store=IdemregPersistenceLayer(registry, on_crash=on_crash),
        key_prefix="pay",
    )
    def pay(order: dict[str, Any]) -> str:
        return "paid"

    if on_crash == "rerun":
        assert pay(order={"order": 1}) == "paid"
    else:
        with pytest.raises(IdempotencyPersistenceLayerError):
            pay(order={"order": 1})


def test_a_late_owner_changes_nothing(registry: Registry) -> None:
    """Its claim was settled meanwhile: the update fails loudly, and the row stays as it was settled."""
    layer = IdemregPersistenceLayer(registry)

    @idempotent_function(data_keyword_argument="order", config=config(), persistence_store=layer)
    def late(order: dict[str, Any]) -> str:
        (claim, _) = next(iter(layer._claims.values()))
        claim.fail(KeyboardInterrupt())
        return "too late"

    with pytest.raises(IdempotencyPersistenceLayerError) as refused:
        late(order={"order": 1})
    assert isinstance(refused.value.__cause__, ClaimLostError)
    assert [task.status for task in registry.tasks()] == [Status.UNKNOWN]


def test_threads_at_once(registry: Registry) -> None:
    """Of many that call at once one runs; the others are refused as in progress, or get its response."""
    layer = IdemregPersistenceLayer(registry)
    entered: list[int] = []
    barrier = threading.Barrier(8)

    @idempotent_function(data_keyword_argument="order", config=config(), persistence_store=layer)
    def pay(order: dict[str, Any]) -> str:
        entered.append(1)
        return "paid"

    def call(_: int) -> str:
        barrier.wait(PATIENCE_S)
        try:
            return str(pay(order={"order": 1}))
        except IdempotencyAlreadyInProgressError:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(call, range(8)))
    assert set(answers) <= {"paid", "refused"}
    assert "paid" in answers
    assert len(entered) == 1


def test_an_operators_result_is_the_response(registry: Registry) -> None:
    """What `resolve` stored for an unknown record is what the utility returns."""
    layer = IdemregPersistenceLayer(registry)

    @idempotent_function(data_keyword_argument="order", config=config(), persistence_store=layer)
    def pay(order: dict[str, Any]) -> dict[str, int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pay(order={"order": 1})
    with pytest.raises(IdempotencyPersistenceLayerError):
        pay(order={"order": 1})
    (task,) = registry.tasks()
    registry.resolve(task.task_id, "happened", result={"paid": 5})
    assert pay(order={"order": 1}) == {"paid": 5}
