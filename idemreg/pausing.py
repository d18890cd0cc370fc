"""A schedule that an operator holds. No function is needed for it, and no option: the row of the schedule says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from idemreg.deciding import Wanted
from idemreg.errors import ScheduleError, require
from idemreg.ledger import State
from idemreg.model import NO_CHECKSUM, Policy
from idemreg.planning import NOTHING, always_changing, resumed

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.ledger import Ledger, Schedule
    from idemreg.planning import Plan
    from idemreg.store import Store

__all__ = ["pause", "resume"]

TRIES: Final = 10


def pause(store: Store, name: str) -> None:
    """See `Operations.pause`."""
    _write(store, name, lambda seen: NOTHING._replace(becomes=[seen._replace(state=State.PAUSED)]))


def resume(store: Store, name: str, now_us: Callable[[], int]) -> None:
    """See `Operations.resume`. ``now_us``: the wall clock, or an error where it is in doubt."""
    _write(store, name, lambda seen: resumed(seen, now_us() // 1_000_000) if seen.state is State.PAUSED else NOTHING)


def _write(store: Store, name: str, change: Callable[[Schedule], Plan]) -> None:
    require(name, str, "the name of a schedule is text")
    ledger = cast("Ledger", store)
    # Rows of slots that are skipped at once belong to nobody's arguments.
    wanted = Wanted("", name, NO_CHECKSUM, Policy())
    for _ in range(TRIES):
        seen = ledger.waiting(name).schedule
        if seen is None:
            msg = f"the file knows no schedule {name!r}"
            raise ScheduleError(msg, hint="`idemreg schedule` lists those that it knows; the first look begins it.")
        plan = change(seen)
        if not plan.becomes or ledger.plan(seen, plan.becomes, plan.slots, wanted):
            return
    raise always_changing(name)
