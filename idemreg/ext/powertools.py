"""A persistence layer for the idempotency utility of AWS Lambda Powertools, on a registry.

    store = IdemregPersistenceLayer(Registry("jobs.db"))

    @idempotent_function(data_keyword_argument="order", persistence_store=store, config=config)
    def ship(order: dict) -> dict: ...

The utility says what is to be done by key only; who it was that claimed the key is kept here, so that a late owner
changes nothing. docs/powertools.md tells what becomes of idemreg's promises under that utility.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyValidationError,
)
from aws_lambda_powertools.utilities.idempotency.persistence.base import BasePersistenceLayer
from aws_lambda_powertools.utilities.idempotency.persistence.datarecord import STATUS_CONSTANTS, DataRecord

from idemreg.acquiring import put_back_granted
from idemreg.claim import Claim
from idemreg.codec import load_result
from idemreg.deciding import Wanted
from idemreg.errors import (
    ClaimLostError,
    ResultError,
    TaskDoneError,
)
from idemreg.ext.powertools_rows import (
    StoredResponse,
    StoredResponseCodec,
    check_ours,
    deadline_ms,
    name_until,
    task_id_of,
    unknown_error,
)
from idemreg.model import Liveness, Status
from idemreg.registry import Registry
from idemreg.request import checksum
from idemreg.store import End, Granted, Unknown
from idemreg.tagged import canonical

if TYPE_CHECKING:
    from idemreg.model import Task
    from idemreg.options import CallOptions, Durability
    from idemreg.store import Answer

__all__ = ["IdemregPersistenceLayer"]

TRIES: Final = 10  # each is lost only to another process that claimed, finished or removed the row in between
MAX_NESTED: Final = 64  # claims that one thread has open

IN_PROGRESS: Final = STATUS_CONSTANTS["INPROGRESS"]
COMPLETED: Final = STATUS_CONSTANTS["COMPLETED"]


class _Held(NamedTuple):
    """A claim between the utility's "in progress" and its "success" or "delete"."""

    key: str
    claim: Claim


class _Call(NamedTuple):
    """A function that the utility has entered, or may enter: its data, which the utility gives again at the end."""

    data: Any
    function_name: str
    has_claim: bool


class _Local(threading.local):
    """What one thread has begun and not ended; the last is the innermost."""

    def __init__(self) -> None:
        self.function_name = ""
        self.calls: list[_Call] = []
        self.stack: list[_Held] = []


class IdemregPersistenceLayer(BasePersistenceLayer):
    """Keeps the utility's records in a registry. Share one between threads and functions.

    ``on_crash``: what becomes of a key whose process died in the function. "rerun" is the utility's own rule: in
    progress until the in-progress expiry, then it runs again. "hold" is idemreg's: it is unknown, `TaskUnknownError` as
    the cause of the utility's error, until an operator resolves it.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        on_crash: Literal["rerun", "hold"] = "rerun",
        durability: Durability | None = None,
    ) -> None:
        given: object = registry
        if not isinstance(given, Registry):
            msg = f"IdemregPersistenceLayer takes a Registry (the `.registry` of an AsyncRegistry), not {registry!r}"
            raise TypeError(msg)
        self._local = _Local()  # before the base, which sets function_name
        super().__init__()  # type: ignore[no-untyped-call]
        self._registry = registry
        self._holds = on_crash == "hold"
        asked: CallOptions = {"on_crash": on_crash, "durability": durability, "result": StoredResponseCodec()}
        self._terms = registry.terms(registry.checked(asked))
        self._open: dict[str, _Held] = {}  # by task_id, of this process

    # --- the utility's own slips ------------------------------------------------------------------------------------

    @property
    def function_name(self) -> str:
        """Part of the key. The base keeps one for all; a thread's own keeps functions of two threads apart."""
        return self._local.function_name

    @function_name.setter
    def function_name(self, name: str) -> None:
        self._local.function_name = name

    def save_inprogress(self, data: Any, remaining_time_in_millis: int | None = None) -> None:  # noqa: ANN401
        """As the base. Notes under which name the function runs, also that of a durable one that goes on."""
        try:
            super().save_inprogress(data, remaining_time_in_millis)
        except IdempotencyItemAlreadyExistsError as error:
            if error.old_data_record is None or error.old_data_record.status == IN_PROGRESS:
                self._local.calls.append(_Call(data, self.function_name, has_claim=False))
            raise
        self._local.calls.append(_Call(data, self.function_name, has_claim=True))
        del self._local.calls[:-MAX_NESTED]  # of functions that were interrupted, which the utility never ends

    def save_success(self, data: Any, result: Any) -> None:  # noqa: ANN401 - as the base
        """As the base. A result that has no JSON is lost, and not the fact that the function ran."""
        self._restore(data)
        try:
            super().save_success(data, result)
        except (TypeError, ValueError):
            key = str(self._get_hashed_idempotency_key(data))  # there is one: without it nothing is to be stored
            held = self._mine(key) or self._open.get(task_id_of(key))
            if held is not None and held.claim.is_open:
                with contextlib.suppress(ResultError):
                    self._let_go(held).succeed(StoredResponse(None, 0))
            raise

    def delete_record(self, data: Any, exception: Exception) -> None:  # noqa: ANN401 - as the base
        """As the base."""
        self._restore(data)
        super().delete_record(data, exception)

    def _restore(self, data: Any) -> None:  # noqa: ANN401
        """Set the name under which the call with this data began; what was called inside of it has set its own since.

        The utility copies the data for each call, but not text and numbers. Of calls with the same text the innermost
        that has a claim ends: who is refused sets a name, and ends nothing.
        """
        calls = self._local.calls
        _, found = max(
            ((call.has_claim, n) for n, call in enumerate(calls) if call.data is data), default=(False, None)
        )
        if found is not None:
            self.function_name = calls[found].function_name
            del calls[found:]

    def _validate_payload(self, data_payload: Any, stored_data_record: DataRecord) -> None:  # noqa: ANN401
        """As the base, where a row stores only a checksum of the payload's hash."""
        if self.payload_validation_enabled:
            is_record = isinstance(data_payload, DataRecord)
            mine = data_payload.payload_hash if is_record else self._get_hashed_payload(data_payload)
            if stored_data_record.payload_hash not in (mine, self._checksum(mine)):
                msg = "Payload does not match stored record for this event key"
                raise IdempotencyValidationError(msg)

    def _checksum(self, payload_hash: str) -> str:
        return checksum(canonical(payload_hash), self._terms.options)

    # --- the four methods of a layer --------------------------------------------------------------------------------

    def _get_record(self, idempotency_key: str) -> DataRecord:
        row = self._row(task_id_of(idempotency_key))
        if row is None or row.status in (Status.PENDING, Status.FAILED):
            raise IdempotencyItemNotFoundError
        return self._record(row, idempotency_key)

    def _put_record(self, data_record: DataRecord) -> None:
        """Claim. What stands in the way and has expired is removed first; `Lost` to another process, it looks again."""
        task_id = task_id_of(data_record.idempotency_key)
        until_ms = data_record.in_progress_expiry_timestamp or (data_record.expiry_timestamp or 0) * 1_000
        for _ in range(TRIES):
            row = self._row(task_id)
            if row is not None and not self._remove(row):
                self._exists(row, data_record)
            keep_ms = max(0, (data_record.expiry_timestamp or 0) * 1_000 - self._now_ms())
            options = self._terms.options
            wanted = Wanted(
                task_id,
                name_until(until_ms),
                self._checksum(data_record.payload_hash),
                options.policy,
                keep_ms,
                durable=options.durable,
            )
            (answer,) = self._terms.store.claim([wanted])
            if isinstance(answer, Granted):
                self._hold(data_record.idempotency_key, answer, wanted.name)
                return
        raise IdempotencyItemAlreadyExistsError

    def _update_record(self, data_record: DataRecord) -> None:
        """Succeed, or `ClaimLostError` where the key was given to another run since; that one's record stays."""
        held = self._mine(data_record.idempotency_key) or self._adopt(data_record.idempotency_key)
        stored = StoredResponse(data_record.response_data, data_record.expiry_timestamp or 0)
        self._let_go(held).succeed(stored)

    def _delete_record(self, data_record: DataRecord) -> None:
        """Put the task back: the function raised, and its own error is what the caller must see.

        Where the key was given to another run since, there is nothing to put back.
        """
        held = self._mine(data_record.idempotency_key)
        if held is not None:
            with contextlib.suppress(ClaimLostError):
                self._release(self._let_go(held))

    # --- what stands in the way -------------------------------------------------------------------------------------

    def _remove(self, row: Task) -> bool:
        """Make way for a new run, if the row may be replaced. True also where it has changed meanwhile."""
        check_ours(row)
        store, is_late = self._terms.store, self._now_ms() > deadline_ms(row)
        match row.status:
            case Status.PENDING | Status.FAILED:
                store.forget(row.task_id, force=False, seen=row.version)
                return True
            case Status.SUCCEEDED:
                if self._now_ms() // 1_000 <= self._expires_at(row):
                    return False
                store.forget(row.task_id, force=False, seen=row.version)
                return True
            case Status.RUNNING:
                return self._remove_running(row, is_late=is_late)
            case Status.UNKNOWN:
                if self._is_held(row):
                    raise unknown_error(row)
                if is_late:
                    store.forget(row.task_id, force=True, seen=row.version)
                return is_late
        msg = f"task {row.task_id!r} was {row.status.word}: {row.evidence or 'no reason given'}"
        raise TaskDoneError(msg, task_id=row.task_id)

    def _remove_running(self, row: Task, *, is_late: bool) -> bool:
        """One of this process gives way once it is late, one of another only when that is proven dead as well."""
        store = self._terms.store
        held = self._open.get(row.task_id)
        if held is not None and held.claim.token == row.token:
            if is_late and not self._is_held(row):
                with contextlib.suppress(ClaimLostError):  # it ended in this moment
                    self._release(self._let_go(held))
                return True
            return False
        owner = store.owner(row)
        if owner is None or owner.liveness is not Liveness.DEAD:
            return False
        if self._is_held(row):
            answers: list[Answer] = []
            try:
                answers = store.claim([Wanted(row.task_id, row.name, row.checksum, self._terms.options.policy)])
                if isinstance(answers[0], Unknown):
                    raise unknown_error(answers[0].task)
                return True
            finally:  # where an operator has settled it in this moment, it is as he left it
                put_back_granted(store, answers)
        if is_late:
            store.forget(row.task_id, force=True, seen=row.version)
        return is_late

    def _is_held(self, row: Task) -> bool:
        """Of the stored and the asked policy the stricter holds."""
        return self._holds or row.policy.on_crash > 0

    def _exists(self, row: Task, data_record: DataRecord) -> None:
        record = self._record(row, data_record.idempotency_key)
        self._validate_payload(data_record, record)
        self._save_to_cache(record)
        raise IdempotencyItemAlreadyExistsError(old_data_record=record)

    # --- rows -------------------------------------------------------------------------------------------------------

    def _row(self, task_id: str) -> Task | None:
        return self._terms.store.get([task_id], durable=self._terms.options.durable)[0]

    def _record(self, row: Task, key: str) -> DataRecord:
        """The row as the utility's record."""
        check_ours(row)
        if row.status is Status.SUCCEEDED:
            stored = self._stored(row)
            return DataRecord(key, COMPLETED, stored.expires_at, None, stored.response or "", row.checksum)
        # One that is late and yet not to be replaced (its owner lives elsewhere) has no expiry to go by.
        until_ms = deadline_ms(row)
        expiry_ms = until_ms if until_ms >= self._now_ms() else None
        return DataRecord(key, IN_PROGRESS, None, expiry_ms, "", row.checksum)

    def _stored(self, row: Task) -> StoredResponse:
        if row.result is None:
            msg = f"task {row.task_id!r} succeeded, but its result was lost ({row.error})"
            raise ResultError(msg, task_id=row.task_id)
        stored: StoredResponse = load_result(row.result, self._terms.options.codec)
        return stored

    def _expires_at(self, row: Task) -> int:
        if row.result is None:
            return (row.updated_at // 1_000 + (row.keep_ms or 0)) // 1_000
        return self._stored(row).expires_at

    def _now_ms(self) -> int:
        """By the wall clock, as the utility's own expiries are."""
        return self._registry.clock.wall_us() // 1_000

    # --- claims -----------------------------------------------------------------------------------------------------

    def _hold(self, key: str, grant: Granted, name: str) -> None:
        if self._terms.teller is not None:
            self._terms.teller.granted(grant, name)
        held = _Held(key, Claim(self._terms, grant, name))
        self._open[grant.task_id] = held
        self._local.stack.append(held)
        del self._local.stack[:-MAX_NESTED]  # of functions that were interrupted, which the utility never ends

    def _mine(self, key: str) -> _Held | None:
        return next((held for held in reversed(self._local.stack) if held.key == key), None)

    def _let_go(self, held: _Held) -> Claim:
        if held in self._local.stack:
            self._local.stack.remove(held)
        if self._open.get(held.claim.task_id) is held:
            self._open.pop(held.claim.task_id, None)
        return held.claim

    @staticmethod
    def _release(claim: Claim) -> None:
        """Put the task back, bound to nobody: the next run may have another payload, as after a deleted record."""
        claim.end(End.release(claim.grant, durable=claim.options.durable, nothing_ran=True))

    def _adopt(self, key: str) -> _Held:
        """The claim of an earlier part of the same run: a durable function goes on where that one was suspended."""
        task_id = task_id_of(key)
        if held := self._open.get(task_id):
            return held
        row = self._row(task_id)
        if row is not None and row.status is Status.RUNNING:
            wanted = Wanted(task_id, row.name, row.checksum, row.policy, row.keep_ms)
            (answer,) = self._terms.store.claim([wanted])
            if isinstance(answer, Granted):  # its process is proven dead
                return _Held(key, Claim(self._terms, answer, row.name))
        msg = f"the claim of task {task_id!r} is not this owner's any more"
        raise ClaimLostError(msg, task_id=task_id)
