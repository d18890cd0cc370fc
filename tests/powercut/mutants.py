"""The promises of durability, broken on purpose: the harness must find each of these.

A mutant is applied in a worker, before it opens the registry, and replaces functions of that process only. To add one,
write a function that calls `replace`, and give it a line in `MUTANTS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg.lockfile import SYNC_RECORD_OFFSET
from idemreg.sqlite import backend, hot, rest, syncing, upkeep
from idemreg.sqlite.database import Database
from idemreg.sqlite.syncing import GroupSync
from idemreg.sqlite.walindex import HEADER_BYTES
from idemreg.store import End
from tests.powercut.crews import SYNC_FAILS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["MUTANTS", "Mutant", "replace"]

OFF: Final = 0  # of PRAGMA synchronous: nothing is synced


# With slower syncs more happens during one.
SLOW: Final[Mapping[str, Any]] = {"sync_us": 1_500}
SLOW_THREADS: Final[Mapping[str, Any]] = {**SLOW, "crews": [["threads", "threads"]]}


class Mutant(NamedTuple):
    """What is broken, and how."""

    what: str
    apply: Callable[[], None]
    scenario: Mapping[str, Any] = {}  # where it shows soonest: fields of `conduct.Scenario`, or sync_us


def replace(owner: object, name: str, make: Callable[[Any], Any]) -> None:
    """Put ``make(old)`` in the place of ``owner.name``. Of a module, what others imported by name stays as it was."""
    setattr(owner, name, make(getattr(owner, name)))


def full_is_normal() -> None:
    """Nobody syncs."""
    replace(GroupSync, "durable", lambda _: lambda _self: None)


def finish_not_synced() -> None:
    def careless(are_durable: Any) -> Any:
        return lambda requests: False if isinstance(requests[0], End) else are_durable(requests)

    replace(backend, "are_durable", careless)
    for name in ("succeed", "success"):
        replace(hot, name, lambda old: lambda *args: old(*args[:-1], args[-1]._replace(durable=False)))


def claim_not_synced() -> None:
    def careless(init: Any) -> Any:
        def init_careless(self: Any, *args: Any) -> None:
            init(self, *args)
            self._is_durable = False

        return init_careless

    replace(hot.Claim, "__init__", careless)
    replace(backend, "must_sync", lambda _: lambda *_args: False)


def reader_does_not_join() -> None:
    """A row is answered from as soon as it is visible."""
    replace(Database, "seen_final", lambda _: lambda _self, **_durable: None)


def header_after_sync() -> None:
    """What is published as covered is read behind the sync, and tells of what the sync never saw."""

    def careless(put: Any) -> Any:
        def put_late(self: Any, offset: int, data: bytes) -> None:
            if offset == SYNC_RECORD_OFFSET and len(data) == HEADER_BYTES + 16:
                data = (self._index.header() or data[:HEADER_BYTES]) + data[HEADER_BYTES:]
            put(self, offset, data)

        return put_late

    replace(GroupSync, "_put", careless)


def done_before_sync() -> None:
    """The end of a sync is published at its beginning."""

    def careless(put: Any) -> Any:
        def put_both(self: Any, offset: int, data: bytes) -> None:
            put(self, offset, data)
            if offset == syncing._BEGUN_OFFSET:
                put(self, offset + 8, data)

        return put_both

    replace(GroupSync, "_put", careless)


def earlier_sync_taken() -> None:
    """Who joins takes a sync that began before he committed for a later one."""

    def careless(join: Any) -> Any:
        return lambda self, seen, begun: join(self, seen - 1, begun)

    replace(GroupSync, "_join", careless)


def begun_not_written() -> None:
    """The number of a sync is told when it ends: who joins in between takes it for a later one."""

    def careless(put: Any) -> Any:
        return lambda self, at, data: None if at == syncing._BEGUN_OFFSET else put(self, at, data)

    replace(GroupSync, "_put", careless)


def own_sync_taken() -> None:
    """A thread takes a sync of its process that began before it committed for a later one."""

    def careless(join: Any) -> Any:
        return lambda self, seen, begun: join(self, seen, begun - 1)

    replace(GroupSync, "_join", careless)


def failed_not_noted() -> None:
    """A failed sync is forgotten: the next one says OK."""
    replace(GroupSync, "taint", lambda _: lambda _self, _number=0: None)


def effects_not_synced() -> None:
    def careless(transaction: Any) -> Any:
        return lambda self, claim, *, durable: transaction(self, claim, durable=False)

    replace(backend.SqliteStore, "transaction", careless)


def epoch_not_synced() -> None:
    """The commit that raises the epoch after a boot is not synced: the tokens of the lost epoch come back."""

    def careless(adopt: Any) -> Any:
        def adopt_at_off(on: Any, lock_file: Any, schema: Any, clock: Any, **more: Any) -> Any:
            if upkeep._registered(on, schema).boot_id != clock.boot_id():
                on.pragma("synchronous", OFF)
            return adopt(on, lock_file, schema, clock, **more)

        return adopt_at_off

    replace(upkeep, "_adopt", careless)
    replace(rest, "raise_epoch", lambda _: lambda _, epoch: epoch)  # the lock file knows it as well


def checkpoint_not_synced() -> None:
    """The database is not synced before the -wal, which has all of it, begins anew."""

    def careless(checkpoint: Any) -> Any:
        def checkpoint_at_off(on: Any, mode: Any) -> Any:
            before = on.pragma("synchronous")
            on.pragma("synchronous", OFF)
            try:
                return checkpoint(on, mode)
            finally:
                on.pragma("synchronous", before)

        return checkpoint_at_off

    replace(upkeep, "checkpoint", careless)


MUTANTS: Final[dict[str, Mutant]] = {
    "full-is-normal": Mutant("commits of durable requests are not synced", full_is_normal),
    "finish-not-synced": Mutant("an end is not synced before it is acknowledged", finish_not_synced),
    "claim-not-synced": Mutant("a claim under hold is not synced before the body is entered", claim_not_synced),
    "reader-does-not-join": Mutant("a final row is answered from before it is durable", reader_does_not_join, SLOW),
    "header-after-sync": Mutant("the header is read behind the sync that is to cover it", header_after_sync, SLOW),
    "done-before-sync": Mutant("a sync is published as done when it begins", done_before_sync, SLOW),
    "begun-not-written": Mutant("the number of a sync is written when it ends", begun_not_written, SLOW),
    "earlier-sync-taken": Mutant("a sync that began earlier is taken for a later one", earlier_sync_taken, SLOW),
    "own-sync-taken": Mutant("the same, of another thread's sync", own_sync_taken, SLOW_THREADS),
    "failed-not-noted": Mutant("a failed sync is forgotten", failed_not_noted, SYNC_FAILS),
    "effects-not-synced": Mutant("a transaction of effects is not synced", effects_not_synced),
    "epoch-not-synced": Mutant(
        "tokens are drawn from a new epoch before it is synced", epoch_not_synced, {"boots": 1, "crews": [["jobs"]]}
    ),
    "checkpoint-not-synced": Mutant("a checkpoint syncs neither -wal nor database", checkpoint_not_synced),
}
