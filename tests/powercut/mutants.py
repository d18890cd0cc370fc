"""The promises of durability, broken on purpose: the harness must find each of these.

A mutant is applied in a worker, before it opens the registry, and replaces functions of that process only. To add one,
write a function that calls `replace`, and give it a line in `MUTANTS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg.model import Wanted
from idemreg.sqlite import backend, connection, hot, upkeep
from idemreg.store import End

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["MUTANTS", "Mutant", "replace"]

OFF: Final = 0  # of PRAGMA synchronous: nothing is synced


class Mutant(NamedTuple):
    """What is broken, and how."""

    what: str
    apply: Callable[[], None]
    scenario: Mapping[str, Any] = {}  # where it shows soonest: fields of `conduct.Scenario`, or sync_us


def replace(owner: object, name: str, make: Callable[[Any], Any]) -> None:
    """Put ``make(old)`` in the place of ``owner.name``. Of a module, what others imported by name stays as it was."""
    setattr(owner, name, make(getattr(owner, name)))


def full_is_normal() -> None:
    def careless(connect: Any) -> Any:
        return lambda path, **options: connect(path, **{**options, "synchronous": connection.NORMAL})

    replace(connection, "connect", careless)


def _never_synced(kind: type) -> None:
    """Requests of this kind commit as if nobody had asked for durability."""

    def careless(synchronous: Any) -> Any:
        return lambda requests: connection.NORMAL if isinstance(requests[0], kind) else synchronous(requests)

    replace(backend, "_synchronous", careless)


def finish_not_synced() -> None:
    replace(hot, "succeed", lambda succeed: lambda *args: succeed(*args[:-1], args[-1]._replace(durable=False)))
    _never_synced(End)


def claim_not_synced() -> None:
    replace(hot, "begin", lambda begin: lambda *args: begin(*args[:-1], args[-1]._replace(durable=False)))
    _never_synced(Wanted)


def effects_not_synced() -> None:
    def careless(transaction: Any) -> Any:
        return lambda self, claim, *, durable: transaction(self, claim, durable=False)

    replace(backend.SqliteStore, "transaction", careless)


def epoch_not_synced() -> None:
    """The commit that raises the epoch after a boot is not synced: the tokens of the lost epoch come back."""

    def careless(adopt: Any) -> Any:
        def adopt_at_off(on: Any, lock_file: Any, schema: Any, clock: Any) -> Any:
            if upkeep._registered(on, schema).boot_id != clock.boot_id():
                on.pragma("synchronous", OFF)
            return adopt(on, lock_file, schema, clock)

        return adopt_at_off

    replace(upkeep, "_adopt", careless)


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
    "effects-not-synced": Mutant("a transaction of effects is not synced", effects_not_synced),
    "epoch-not-synced": Mutant(
        "tokens are drawn from a new epoch before it is synced", epoch_not_synced, {"boots": 1, "crews": [["jobs"]]}
    ),
    "checkpoint-not-synced": Mutant("a checkpoint syncs neither -wal nor database", checkpoint_not_synced),
}
