"""What type checkers see of the API. Never run nor collected: mypy checks it, and an ignore that hides nothing fails.

Each `type: ignore` is therefore a test: of a misuse that a type checker must find.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, assert_type

from idemreg import Claim, Outcome, OwnerInfo, Registry, Status, Task, Verdict, Verified, current_claim
from idemreg.testing import ManualClock, throw_away_registry

if TYPE_CHECKING:
    from collections.abc import Iterator

registry = Registry("jobs.db", create=False, durability="normal", busy_timeout=timedelta(seconds=1))

assert_type(registry.serials("COUP").next(), str)
assert_type(next(registry.serials("COUP")), str)
assert_type(registry.claim("t").run_step("one", lambda: 1), int)
with registry.claim("t") as claimed, claimed.step("one") as one:
    assert_type(one.done, bool)

# --- the decorator ----------------------------------------------------------------------------------------------


@registry.idempotent("coupon:{user_id}:{day}", wait=timedelta(seconds=5), keep_for=None)
def issue(user_id: int, day: str, *, amount: int = 10) -> dict[str, int]:
    return {day: user_id * amount}


assert_type(issue(7, "monday"), dict[str, int])
assert_type(issue(7, day="monday", amount=3), dict[str, int])
assert_type(issue.call(7, "monday"), Outcome[dict[str, int]])
assert_type(issue.call(7, "monday").result, dict[str, int])
assert_type(issue.call(7, "monday").replayed, bool)
assert_type(issue.task(7, "monday"), Task | None)
assert_type(issue.task_id(7, "monday"), str)
assert_type(issue.add(7, "monday"), Task)
assert_type(issue.__name__, str)

issue("7", "monday")  # type: ignore[arg-type]
issue(7)  # type: ignore[call-arg]
issue(7, "monday", 10)  # type: ignore[call-arg]
issue(7, "monday", price=10)  # type: ignore[call-arg]
issue.call("7", "monday")  # type: ignore[arg-type]
issue.call(7)  # type: ignore[call-arg]
issue.task(7)  # type: ignore[call-arg]
issue.task_id()  # type: ignore[call-arg]
issue.add(7, None)  # type: ignore[arg-type]
issue.delay(7)  # type: ignore[attr-defined]


@registry.idempotent(lambda order: f"order:{order}", exclude=["log"], checksum=lambda order, **_: order, name="order")
def order_it(order: str, log: object = None) -> None: ...


assert_type(order_it.call("o-1"), Outcome[None])


class Shop:
    @registry.idempotent("order:{number}")
    def order(self, number: int) -> str:
        return str(number)


assert_type(Shop().order(7), str)
assert_type(Shop.order(Shop(), 7), str)
assert_type(Shop.order.call(Shop(), 7), Outcome[str])
Shop().order("7")  # type: ignore[arg-type]
Shop().order.call(7)  # type: ignore[attr-defined] # it has no self there

# --- run, claim -------------------------------------------------------------------------------------------------

outcome = registry.run("t", lambda: (1, "a"), payload={"any": ["thing"]})
assert_type(outcome, Outcome[tuple[int, str]])
assert_type(outcome.result, tuple[int, str])
assert_type(outcome.status, Status)
assert_type(outcome.attempt, int)
registry.run("t", lambda number: number)  # type: ignore[misc, arg-type]
registry.run(7, lambda: 1)  # type: ignore[arg-type]

with registry.claim("t", payload=1, on_crash="rerun") as claim, claim.transaction() as tx:
    assert_type(claim, Claim)
    assert_type(claim.token, int)
    assert_type(claim.downstream_key, str)
    assert_type(tx.execute("select ?", (1,)), list[tuple[Any, ...]])
    claim.result = {"any": "thing"}
    tx.commit()  # type: ignore[attr-defined]
    claim.token = 7  # type: ignore[misc]

assert_type(current_claim(), Claim)

# --- options ----------------------------------------------------------------------------------------------------


def hook(task: Task, *args: object, **kwargs: object) -> Verified | Verdict | bool | None:
    return Verified(Verdict.HAPPENED, result=task.token, evidence="seen")


def bad_hook(task: Task) -> str:
    return task.name


registry.idempotent("t", on_crash="verify", verify=hook, unknown_on=TimeoutError, release_on=(OSError, KeyError))
registry.idempotent("t", on_duplicate="ignore")  # type: ignore[arg-type]
registry.idempotent("t", on_failure="rerun")  # type: ignore[arg-type]
registry.idempotent("t", on_crash="retry")  # type: ignore[arg-type]
registry.idempotent("t", max_attempts="3")  # type: ignore[arg-type]
registry.idempotent("t", wait="5")  # type: ignore[arg-type]
registry.idempotent("t", unknown_on="TimeoutError")  # type: ignore[arg-type]
registry.idempotent("t", release_on=[OSError])  # type: ignore[arg-type]
registry.idempotent("t", durability="safe")  # type: ignore[arg-type]
registry.idempotent("t", verify=bad_hook)  # type: ignore[arg-type]
registry.idempotent("t", retries=3)  # type: ignore[call-arg]
registry.idempotent("t", 3)  # type: ignore[call-arg, arg-type]
registry.idempotent(7)  # type: ignore[arg-type]
registry.run("t", lambda: 1, on_crash="retry")  # type: ignore[arg-type]
registry.run("t", lambda: 1, retries=3)  # type: ignore[call-arg]
registry.claim("t", on_crash="retry")  # type: ignore[arg-type]
registry.claim("t", leases=5)  # type: ignore[call-arg]
registry.claim("t", lease="5")  # type: ignore[arg-type]
Registry("jobs.db", durability="safe")  # type: ignore[arg-type]
Registry("jobs.db", False)  # type: ignore[call-arg] # noqa: FBT003 - the misuse

# --- look and operate -------------------------------------------------------------------------------------------

assert_type(registry.get("t"), Task | None)
assert_type(registry.add("t"), Task)
assert_type(registry.resolve("t", "happened", result=1), Task)
assert_type(registry.resolve("t", Verdict.CANNOT_TELL), Task)
assert_type(registry.retry("t"), Task)
assert_type(registry.skip("t", "holiday"), Task)
assert_type(registry.cancel("t"), Task)
assert_type(registry.forget("t", force=True), Task)
assert_type(registry.count(), dict[Status, int])
assert_type(registry.owner(registry.add("t")), OwnerInfo | None)
registry.resolve("t", "maybe")  # type: ignore[arg-type]
registry.skip("t")  # type: ignore[call-arg]
registry.get("t").status  # type: ignore[union-attr] # noqa: B018 - None where there is no row


def listed() -> Iterator[Task]:
    yield from registry.tasks(status=Status.FAILED, prefix="a")


with throw_away_registry(clock=ManualClock(wall_us=1)) as mine:
    assert_type(mine, Registry)
