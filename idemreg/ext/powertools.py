"""AWS Lambda Powertools' idempotency utility on an idemreg file: its decorators, our store.

    @idempotent_function(data_keyword_argument="order", persistence_store=IdemregPersistenceLayer(Registry("jobs.db")))
    def pay(order: dict) -> dict: ...

Needs ``pip install idemreg[powertools]``. What the promises become there is told in docs/powertools.md.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, Literal

from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyValidationError,
)
from aws_lambda_powertools.utilities.idempotency.persistence.base import BasePersistenceLayer
from aws_lambda_powertools.utilities.idempotency.persistence.datarecord import STATUS_CONSTANTS, DataRecord

from idemreg.codec import load_result
from idemreg.ends import lost_error
from idemreg.errors import ChecksumMismatchError, TaskDoneError, TaskRunningError
from idemreg.model import Status

if TYPE_CHECKING:
    from idemreg.claim import Claim
    from idemreg.model import Task
    from idemreg.registry import Registry

__all__ = ["IdemregPersistenceLayer"]


class IdemregPersistenceLayer(BasePersistenceLayer):
    """Keeps the utility's records as tasks. Share it between threads.

    ``name``: of the job, stored in the rows. ``on_crash``: what a record becomes whose process died: "hold" (the
    utility raises; look at `idemreg list`) or "rerun", at the next invocation, with no expiry to wait for.

    Between the utility's put and its update the claim is kept here, so that a late owner's update or delete is a
    `ClaimLostError` and changes nothing.
    """

    def __init__(
        self, registry: Registry, *, name: str = "powertools", on_crash: Literal["hold", "rerun"] = "hold"
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # theirs
        self._registry = registry
        self._name = name
        self._on_crash: Literal["hold", "rerun"] = on_crash
        self._claims: dict[str, tuple[Claim, int]] = {}  # with the thread that took it

    def _put_record(self, data_record: DataRecord) -> None:
        """Claim the task of the record; `IdempotencyItemAlreadyExistsError` with the record that is there."""
        key = data_record.idempotency_key
        self._settle_interrupted(key)
        try:
            claim = self._claim(data_record)
        except TaskDoneError as error:
            found = _record(key, None if error.outcome is None else error.outcome.result)
            if not found.is_expired:
                raise IdempotencyItemAlreadyExistsError(old_data_record=found) from None
            self._registry.forget(key)  # its time has passed, which to the utility means that it may run again
            claim = self._claim(data_record)
        except TaskRunningError:
            running = DataRecord(key, STATUS_CONSTANTS["INPROGRESS"], payload_hash=data_record.payload_hash)
            raise IdempotencyItemAlreadyExistsError(old_data_record=running) from None
        except ChecksumMismatchError as error:
            raise IdempotencyValidationError(error.message) from error
        self._claims[key] = claim, threading.get_ident()

    def _claim(self, record: DataRecord) -> Claim:
        return self._registry.claim(
            record.idempotency_key, payload=record.payload_hash, name=self._name, on_crash=self._on_crash
        )

    def _settle_interrupted(self, key: str) -> None:
        """The utility says nothing of a handler that was interrupted (Ctrl-C, a time-out): its claim is still here.

        A thread that asks anew is no longer in the handler that it claimed for.
        """
        claim, thread = self._claims.get(key, (None, 0))
        if claim is not None and thread == threading.get_ident():
            del self._claims[key]
            if claim.is_open:
                claim.fail(KeyboardInterrupt("the handler was interrupted"))

    def _update_record(self, data_record: DataRecord) -> None:
        """End the claim with the response."""
        stored = {
            "response": data_record.response_data,
            "expires": data_record.expiry_timestamp,
            "payload": data_record.payload_hash,
        }
        self._take(data_record.idempotency_key).succeed(stored)

    def _delete_record(self, data_record: DataRecord) -> None:
        """The handler raised: put the task back, so that the next invocation runs it."""
        self._take(data_record.idempotency_key).release()

    def _take(self, key: str) -> Claim:
        claim, _ = self._claims.pop(key, (None, 0))
        if claim is None:
            raise lost_error(key)
        return claim

    def _get_record(self, idempotency_key: str) -> DataRecord:
        """The record of the task; `IdempotencyItemNotFoundError` where none is done or in progress."""
        task = self._registry.get(idempotency_key)
        if task is None or task.status in (Status.PENDING, Status.FAILED):
            raise IdempotencyItemNotFoundError
        if task.status is Status.SUCCEEDED:
            return _record(idempotency_key, _result(task))
        return DataRecord(idempotency_key, STATUS_CONSTANTS["INPROGRESS"])


def _result(task: Task) -> Any:  # noqa: ANN401 - what was stored
    return None if task.result is None else load_result(task.result, None)


def _record(key: str, stored: Any) -> DataRecord:  # noqa: ANN401 - also an operator's
    """The record of a success. An operator's result is the response itself, and never expires."""
    done = STATUS_CONSTANTS["COMPLETED"]
    match stored:
        case {"response": str(text), "expires": int() | None as expires, "payload": str(payload)}:
            return DataRecord(key, done, expiry_timestamp=expires, response_data=text, payload_hash=payload)
        case _:
            return DataRecord(key, done, response_data="" if stored is None else json.dumps(stored))
