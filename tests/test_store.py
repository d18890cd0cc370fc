"""The conformance suite of a Store: requests and answers as values. Any Store must pass it; a subclass names one."""

from __future__ import annotations

import itertools
import os
import threading
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from idemreg import ClaimLostError, Clock, Liveness, Status, Step, StepError, StoreError, Task, Verdict, faults
from idemreg.blocks import Blocks
from idemreg.deciding import Deadlines, Limits, Wanted
from idemreg.leasing import Leasing, Renewal, Renewed
from idemreg.model import OnCrash, OnFailure, Origin, Policy
from idemreg.progress import Progress
from idemreg.query import Query
from idemreg.sqlite import steps
from idemreg.sqlite.backend import SqliteStore
from idemreg.sqlite.opening import Opening
from idemreg.sqlite.writing import Ticket
from idemreg.store import (
    Absent,
    Done,
    End,
    Granted,
    Lost,
    Mismatch,
    Present,
    Recorded,
    Refused,
    Running,
    Settlement,
    Store,
    Stored,
    Unknown,
)
from idemreg.testing import ManualClock
from tests.support.descriptors import left_open
from tests.support.names import shown
from tests.support.processes import PATIENCE_S
from tests.support.raw import connect
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


SUM = "a" * 64
LIMITS = Limits(lease_ms=60_000)
LARGE = '"' + "x" * 5_000 + '"'


def want(task_id: str = "t", **fields: Any) -> Wanted:
    return Wanted(task_id, **{"name": "job", "checksum": SUM, "policy": Policy(), **fields})


def end_of(grant: Granted, status: Status = Status.SUCCEEDED, **fields: Any) -> End:
    return End(grant.task_id, grant.token, grant.owner, status, **{"attempt": grant.attempt, **fields})


def granted(store: Store, wanted: Wanted | None = None) -> Granted:
    (answer,) = store.claim([wanted or want()])
    assert isinstance(answer, Granted)
    return answer


def renewal(grant: Granted) -> Renewal:
    return Renewal(grant.task_id, grant.token, grant.owner, 60_000)


def row_of(store: Store, task_id: str = "t") -> Task:
    (row,) = store.get([task_id])
    assert row is not None
    return row


class Whole(Store, Blocks, Progress, Leasing, Protocol):
    """All that a Store does, also what is kept apart so that few programs load it."""


class StoreContract:
    """What every Store promises. ``open_store`` gives handles on one and the same place."""

    @pytest.fixture
    def open_store(self) -> Callable[..., Store]:
        raise NotImplementedError

    @pytest.fixture
    def store(self, open_store: Callable[..., Store]) -> Store:
        return open_store()

    # --- claim --------------------------------------------------------------------------------------------------

    def test_a_first_claim_is_granted(self, store: Store) -> None:
        """A task without a row is granted: attempt 1, a token above 0, no prior row, the policy that was asked for."""
        policy = Policy(OnCrash.RERUN, OnFailure.HOLD, 3)
        grant = granted(store, want(policy=policy, keep_ms=5))
        assert (grant.task_id, grant.attempt, grant.prior, grant.policy) == ("t", 1, None, policy)
        assert not grant.to_verify
        row = row_of(store)
        assert (row.status, row.token, row.attempt, row.owner) == (Status.RUNNING, grant.token, 1, grant.owner)
        assert (row.policy, row.keep_ms, row.name, row.checksum) == (policy, 5, "job", SUM)
        assert row.token > 0

    def test_every_state_has_its_answer(self, store: Store) -> None:
        """Running, Done, Mismatch, Refused and Unknown are values with the row in them, and change nothing."""
        grants = {name: granted(store, want(name)) for name in ("running", "done", "refused", "unknown")}
        store.finish([end_of(grants["done"], result="1")])
        store.finish([end_of(grants["refused"], Status.FAILED, error="E")])
        store.finish([end_of(grants["unknown"], Status.UNKNOWN, error="E")])
        wishes = [
            want("running"),
            want("done"),
            want("refused", policy=Policy(on_failure=OnFailure.HOLD)),
            want("unknown"),
            want("done", checksum="b" * 64),
            want("running", name="other"),
        ]
        before = store.get([wish.task_id for wish in wishes])
        answers = store.claim(wishes)
        assert [type(answer) for answer in answers] == [Running, Done, Refused, Unknown, Mismatch, Mismatch]
        assert [answer.task for answer in answers if not isinstance(answer, Granted)] == before  # type: ignore[union-attr]
        assert [store.look(wish) for wish in wishes] == answers
        assert isinstance(answers[0], Running)
        assert answers[0].owner.liveness is Liveness.ALIVE
        assert store.get([wish.task_id for wish in wishes]) == before

    def test_looking_leaves_to_write_what_needs_a_write(self, store: Store) -> None:
        """None where a claim would write: no row, pending, failed and claimable. A look itself writes nothing."""
        store.add(want("pending"))
        store.finish([end_of(granted(store, want("failed")), Status.FAILED)])
        before = store.page(Query(), None, 10)
        assert [store.look(want(name)) for name in ("none", "pending", "failed")] == [None] * 3
        assert store.page(Query(), None, 10) == before

    def test_beginning_replays_or_claims_and_leaves_the_rest(self, store: Store) -> None:
        """The very task's success is told, a new task claimed as by `claim`; every other row is left to a look."""
        assert isinstance(store.begin(want("first")), Absent)  # it takes a claim to bring the owner's record
        first = granted(store, want("first"))
        grant = store.begin(want())
        assert isinstance(grant, Granted)
        assert (grant.token, grant.attempt, grant.prior, grant.owner) == (first.token, 1, None, first.owner)
        row = row_of(store)
        assert (row.status, row.token, row.attempt, row.owner) == (Status.RUNNING, grant.token, 1, grant.owner)
        assert store.begin(want()) is None  # running
        assert store.finish_one(end_of(grant, result="7")) == Recorded("t")
        assert store.begin(want()) == Stored(grant.token, 1, "7")
        assert store.begin(want(checksum="b" * 64)) is None
        assert store.begin(want(name="other")) is None
        store.finish_one(end_of(first, error="ResultError: lost"))
        assert store.begin(want("first")) is None  # its result was lost

    def test_finishing_one_is_a_compare_and_set(self, store: Store) -> None:
        """Whatever the end, it is stored once and by the claim's own token and owner only."""
        granted(store, want("first"))
        for status, result in [(Status.SUCCEEDED, "1"), (Status.SUCCEEDED, LARGE), (Status.FAILED, None)]:
            grant = store.begin(want(f"{status}-{len(result or '')}"))
            assert isinstance(grant, Granted)
            end = end_of(grant, status, result=result)
            wrongs = [end._replace(token=end.token + one) for one in (1, -1)]
            for wrong in (*wrongs, end._replace(owner=end.owner + 1)):
                assert isinstance(store.finish_one(wrong), Lost)
            assert store.finish_one(end) == Recorded(grant.task_id)
            assert isinstance(store.finish_one(end), Lost)
            row = row_of(store, grant.task_id)
            assert (row.status, row.result, row.attempt, row.owner) == (status, result, 1, None)

    def test_several_wishes_are_answered_in_order(self, store: Store) -> None:
        """Each item has its answer at its place; a task named twice is granted once, and running to the second."""
        store.finish([end_of(granted(store, want("b")))])
        answers = store.claim([want("c"), want("b"), want("a"), want("c"), want("a", checksum="b" * 64)])
        assert [type(answer) for answer in answers] == [Granted, Done, Granted, Running, Mismatch]
        assert [row_of(store, name).status for name in "abc"] == [Status.RUNNING, Status.SUCCEEDED, Status.RUNNING]
        recorded = store.finish([end_of(one, result="2") for one in answers if isinstance(one, Granted)])
        assert recorded == [Recorded("c"), Recorded("a")]

    def test_two_handles_never_both_own_a_task(self, open_store: Callable[..., Store]) -> None:
        """Threads that race through two handles for the same tasks get each of them granted once."""
        stores = [open_store(), open_store()]
        barrier = threading.Barrier(4)
        answers: list[Any] = []

        def race(store: Store) -> None:
            barrier.wait(PATIENCE_S)
            for number in range(20):
                answers.extend(store.claim([want(f"t{number}")]))

        threads = [threading.Thread(target=race, args=(stores[number % 2],)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        got = sorted(answer.task_id for answer in answers if isinstance(answer, Granted))
        assert got == sorted(f"t{number}" for number in range(20))
        assert len(answers) == 80
        for grant in answers:
            if isinstance(grant, Granted):
                assert any(store.finish([end_of(grant)]) == [Recorded(grant.task_id)] for store in stores)

    def test_tokens_of_a_task_grow(self, store: Store) -> None:
        """Over failure, release, resolve and forget every claim has a larger token than all before it."""
        tokens = []

        def claim() -> Granted:
            grant = granted(store)
            tokens.append(grant.token)
            return grant

        store.finish([end_of(claim(), Status.FAILED)])
        store.finish([End.release(claim())])
        store.finish([end_of(claim(), Status.UNKNOWN)])
        store.settle("t", Settlement(Verdict.DID_NOT_HAPPEN, "me"))
        store.finish([end_of(claim())])
        for _ in range(3):
            store.forget("t", force=False)
            store.finish([end_of(claim())])
        assert tokens == sorted(set(tokens))

    # --- finish -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("wrong", ["token", "owner", "task", "status"])
    def test_a_finish_compares_token_owner_and_running(self, store: Store, wrong: str) -> None:
        """Whoever does not hold the claim is `Lost`, with the row as it is, and changes nothing."""
        grant = granted(store)
        granted(store, want("other"))
        end = end_of(grant, result="1")
        if wrong == "token":
            end = end._replace(token=end.token + 1)
        elif wrong == "owner":
            end = end._replace(owner=end.owner + 1)
        elif wrong == "task":
            end = end._replace(task_id="none")
        else:
            assert store.finish([end]) == [Recorded("t")]
        before = store.page(Query(), None, 10)
        (answer,) = store.finish([end._replace(result="2")])
        assert isinstance(answer, Lost)
        assert answer.task in (None, row_of(store))
        assert store.page(Query(), None, 10) == before

    def test_a_lost_end_does_not_hold_up_the_others(self, store: Store) -> None:
        """Several ends in one call: each has its own answer, in order."""
        first, second = granted(store, want("a")), granted(store, want("b"))
        answers = store.finish([end_of(first), end_of(first), end_of(second, Status.FAILED, error="E")])
        assert [type(answer) for answer in answers] == [Recorded, Lost, Recorded]
        assert (row_of(store, "a").status, row_of(store, "b").error) == (Status.SUCCEEDED, "E")

    @pytest.mark.parametrize("size", [0, 1, 199, 200, 201, 100_000])
    def test_results_and_errors_of_any_size_come_back(self, store: Store, size: int) -> None:
        """Small or large, result and error are as they were stored, and are replaced as one by the next end."""
        text = "é" * size
        store.finish([end_of(granted(store), Status.FAILED, error=text)])
        assert row_of(store).error == text
        store.finish([end_of(granted(store), result=text)])
        assert (row_of(store).result, row_of(store).error) == (text, None)
        assert store.page(Query(), None, 1).tasks == [row_of(store)]

    def test_a_release_puts_back_what_was(self, store: Store) -> None:
        """Pending where it was new; where it had failed, failed with the same error, attempt and verdict."""
        store.finish([End.release(granted(store))])
        assert (row_of(store).status, row_of(store).attempt) == (Status.PENDING, 0)
        store.finish([end_of(granted(store), Status.FAILED, error=LARGE)])
        store.settle("t", Settlement(Verdict.RETRY, "me", "why"))
        before = row_of(store)
        store.finish([End.release(granted(store))])
        after = row_of(store)
        assert after == before._replace(token=after.token, updated_at=after.updated_at, boot_stamp=after.boot_stamp)

    # --- limits -------------------------------------------------------------------------------------------------

    def test_a_claim_with_limits_tells_its_deadlines(self, open_store: Callable[..., Store]) -> None:
        """Counted from the claim's own moment, by the time since boot; whoever asks is told how much is left."""
        clock = ManualClock(boot_ms=1_000)
        store = open_store(clock)
        grant = granted(store, want(limits=Limits(60_000, 90_000)))
        assert grant.deadlines == Deadlines(61_000, 91_000)
        assert granted(store, want("half", limits=Limits(None, 5))).deadlines == Deadlines(None, 1_005)
        assert granted(store, want("none")).deadlines is None
        clock.set(boot_ms=31_000, wall_us=0)
        owner = store.owner(row_of(store))
        assert owner is not None
        assert (owner.liveness, owner.lease_left_ms, owner.overdue_ms) == (Liveness.ALIVE, 30_000, -60_000)
        half, none = (store.owner(row_of(store, name)) for name in ("half", "none"))
        assert half is not None
        assert (half.lease_left_ms, half.overdue_ms, half.is_overdue) == (None, 29_995, True)
        assert none is not None
        assert (none.lease_left_ms, none.overdue_ms, none.is_overdue) == (None, None, False)

    @pytest.mark.parametrize("on_crash", OnCrash)
    def test_an_expired_lease_frees_as_a_death_does(self, open_store: Callable[..., Whole], on_crash: OnCrash) -> None:
        """Not before: then, under the stored policy, taken over by a larger token, or unknown, and told why."""
        clock = ManualClock()
        store, other = open_store(clock), open_store(clock)
        policy = Policy(on_crash)
        late = granted(store, want(policy=policy, limits=LIMITS))
        clock.advance(60)  # the last moment at which it is good
        assert [type(answer) for answer in other.claim([want(policy=policy)])] == [Running]
        clock.advance(0.001)
        assert other.look(want(policy=policy)) is None
        (answer,) = other.claim([want(policy=policy, can_verify=on_crash is OnCrash.VERIFY)])
        if on_crash is OnCrash.HOLD:
            assert isinstance(answer, Unknown)
            assert (answer.is_new, answer.task.status) == (True, Status.UNKNOWN)
            assert "LeaseExpired" in (answer.task.error or "")
            assert "its lease expired 0.0 s ago" in (answer.task.evidence or "")
        else:
            assert isinstance(answer, Granted)
            assert (answer.to_verify, answer.deadlines) == (on_crash is OnCrash.VERIFY, None)
            assert (answer.token > late.token, answer.prior is not None) == (True, True)
        (lost,) = store.finish([end_of(late, result="1")])
        assert isinstance(lost, Lost)
        assert store.renew([renewal(late)], busy_s=1) == [lost]

    def test_a_lease_without_a_taker_is_its_owners(self, open_store: Callable[..., Whole]) -> None:
        """Expired, it can still be renewed, which holds from then on, and finished, by its owner and nobody else."""
        clock = ManualClock(boot_ms=0)
        store, other = open_store(clock), open_store(clock)
        grant = granted(store, want(limits=LIMITS))
        clock.advance(3_600)
        assert store.renew([renewal(grant)], busy_s=1) == [Renewed(3_660_000)]
        clock.advance(60)
        assert [type(answer) for answer in other.claim([want()])] == [Running]
        clock.advance(3_600)
        assert store.finish([end_of(grant, result="1")]) == [Recorded("t")]
        assert row_of(store).status is Status.SUCCEEDED

    @pytest.mark.parametrize("wrong", ["token", "owner", "task", "status", "no lease"])
    def test_a_renewal_compares_token_owner_and_running(self, open_store: Callable[..., Whole], wrong: str) -> None:
        """Whoever does not hold the claim, or has no lease, is `Lost`; the others of the same call are renewed."""
        store = open_store(ManualClock(boot_ms=0))
        grant, good = granted(store, want(limits=LIMITS)), granted(store, want("good", limits=LIMITS))
        asked = renewal(grant)
        if wrong == "token":
            asked = asked._replace(token=asked.token + 1)
        elif wrong == "owner":
            asked = asked._replace(owner=asked.owner + 1)
        elif wrong == "task":
            asked = asked._replace(task_id="none")
        elif wrong == "status":
            store.finish([end_of(grant)])
        else:
            asked = renewal(granted(store, want("bare", limits=Limits(None, 5))))
        answers = store.renew([asked, renewal(good)], busy_s=1)
        assert [type(answer) for answer in answers] == [Lost, Renewed]

    def test_no_lease_outlives_its_claim(self, open_store: Callable[..., Store]) -> None:
        """A claim that follows has its own limits, or none; however the one before it ended, or was ended."""
        clock = ManualClock()
        store, other = open_store(clock), open_store(clock)
        policy = Policy(OnCrash.RERUN)

        def expire(then: Callable[[], object] = lambda: None) -> None:
            clock.advance(61)
            then()

        ends: list[Callable[[Granted], object]] = [
            lambda grant: store.finish([end_of(grant, Status.FAILED)]),
            lambda grant: store.finish([End.release(grant)]),
            lambda grant: store.abandon(end_of(grant, Status.FAILED)),
            lambda _: expire(lambda: other.settle("t", Settlement(Verdict.CANCELLED, "me"))),
            lambda _: expire(lambda: other.forget("t", force=True)),
            lambda _: expire(),
        ]
        for end in ends:
            store.forget("t", force=True)
            limited = granted(store, want(policy=policy, limits=LIMITS))
            end(limited)
            row = store.get(["t"])[0]
            if row is None or not row.is_final:
                grant = granted(store, want(policy=policy))
                owner = store.owner(row_of(store))
                assert owner is not None
                assert (owner.lease_left_ms, owner.overdue_ms) == (None, None)
                clock.advance(3_600)
                assert [type(answer) for answer in other.claim([want(policy=policy)])] == [Running]
                store.finish([end_of(grant, Status.FAILED)])
            assert isinstance(store.finish([end_of(limited)])[0], Lost)

    # --- dropped ------------------------------------------------------------------------------------------------

    def test_an_abandoned_claim_ends_without_a_word(self, store: Store) -> None:
        """`abandon` stores the end when it can, and raises nothing, not even for a claim that is lost."""
        grant = granted(store)
        store.abandon(end_of(grant, Status.UNKNOWN, error="dropped"))
        assert (row_of(store).status, row_of(store).error) == (Status.UNKNOWN, "dropped")
        store.abandon(end_of(grant))
        assert row_of(store).status is Status.UNKNOWN

    # --- settle, add, forget ------------------------------------------------------------------------------------

    def test_a_settlement_is_stored_with_who_and_why(self, store: Store) -> None:
        """The row that comes back is the row that is stored."""
        store.finish([end_of(granted(store), Status.UNKNOWN, error="E")])
        task = store.settle("t", Settlement(Verdict.HAPPENED, "ann", "seen", LARGE))
        assert isinstance(task, Task)
        assert task == row_of(store)
        assert (task.status, task.verdict, task.settled_by) == (Status.SUCCEEDED, Verdict.HAPPENED, "ann")
        assert (task.evidence, task.result, task.error) == ("seen", LARGE, None)

    def test_a_settlement_that_is_not_allowed_is_lost(self, store: Store) -> None:
        """No row, a status that does not allow the verdict, a foreign claim for a hook: `Lost`, nothing changes."""
        assert store.settle("none", Settlement(Verdict.CANCELLED, "me")) == Lost(None)
        grant = granted(store)
        before = row_of(store)
        for verdict in Verdict:
            assert store.settle("t", Settlement(verdict, "me")) == Lost(before)
        for token in (grant.token - 1, grant.token + 1):
            assert store.settle("t", Settlement(Verdict.HAPPENED, "me", verifying=token)) == Lost(before)
        assert row_of(store) == before

    def test_a_hook_claims_before_it_settles(self, store: Store) -> None:
        """Claimed to verify: a larger token, the same attempt; the settlement needs just that token."""
        verify = want(policy=Policy(OnCrash.VERIFY), can_verify=True)
        first = granted(store, verify)
        store.finish([end_of(first, Status.UNKNOWN)])
        before = row_of(store)
        grant = granted(store, verify)
        assert (grant.to_verify, grant.attempt, grant.prior) == (True, 1, before)
        assert grant.token > first.token
        assert isinstance(store.settle("t", Settlement(Verdict.HAPPENED, "hook", verifying=first.token)), Lost)
        task = store.settle("t", Settlement(Verdict.HAPPENED, "hook", verifying=grant.token))
        assert isinstance(task, Task)
        assert task.status is Status.SUCCEEDED

    def test_a_claim_for_a_hook_is_put_back_as_it_was(self, store: Store) -> None:
        """Unknown stays unknown, with its error, its result and its verdict, and the attempt counts; never pending."""
        verify = want(policy=Policy(OnCrash.VERIFY), can_verify=True)
        store.finish([end_of(granted(store, verify), Status.UNKNOWN)])
        grant = granted(store, verify)
        store.settle("t", Settlement(Verdict.CANNOT_TELL, "hook", "looked", '"kept"', verifying=grant.token))
        before = row_of(store)
        store.finish([End.release(granted(store, verify), nothing_ran=True)])
        after = row_of(store)
        assert after._replace(token=before.token, updated_at=before.updated_at, boot_stamp=before.boot_stamp) == before

    def test_a_hook_may_end_without_a_verdict(self, store: Store) -> None:
        """Then its task is unknown, and none is stored; only who has the claim for the hook may say so."""
        verify = want(policy=Policy(OnCrash.VERIFY), can_verify=True)
        store.finish([end_of(granted(store, verify), Status.UNKNOWN)])
        grant = granted(store, verify)
        none = Settlement(None, "hook", "cut off", verifying=grant.token)
        assert isinstance(store.settle("t", none._replace(verifying=grant.token - 1)), Lost)
        task = store.settle("t", none)
        assert isinstance(task, Task)
        assert task == row_of(store)
        assert (task.status, task.verdict, task.evidence) == (Status.UNKNOWN, None, "cut off")

    def test_adding_is_done_once(self, store: Store) -> None:
        """A new row is pending, with token and attempt 0; an old one is given back as it is, whatever was asked."""
        first = store.add(want(keep_ms=7))
        assert (first.status, first.token, first.attempt, first.keep_ms) == (Status.PENDING, 0, 0, 7)
        assert store.add(want(name="other", checksum="b" * 64)) == first
        grant = granted(store)
        assert grant.prior == first
        assert store.add(want()).status is Status.RUNNING

    def test_forgetting_gives_the_row_back_and_removes_it(self, store: Store) -> None:
        """The row goes with its large result; unknown rows only by force, running ones of the living never."""
        store.finish([end_of(granted(store), result=LARGE)])
        before = row_of(store)
        assert store.forget("t", force=False) == before
        assert store.get(["t"]) == [None]
        assert store.forget("t", force=True) == Lost(None)
        grant = granted(store)
        assert store.forget("t", force=True) == Lost(row_of(store))
        store.finish([end_of(grant, Status.UNKNOWN)])
        assert store.forget("t", force=False) == Lost(row_of(store))
        assert isinstance(store.forget("t", force=True), Task)

    def test_forgetting_what_was_seen_leaves_what_came_after(self, store: Store) -> None:
        """A row that is another than the one that was seen stays, whatever its status allows."""
        store.finish([end_of(granted(store))])
        seen = row_of(store).version
        store.forget("t", force=False, seen=seen)
        store.finish([end_of(granted(store))])
        assert store.forget("t", force=True, seen=seen) == Lost(row_of(store))
        assert isinstance(store.forget("t", force=False, seen=row_of(store).version), Task)

    # --- read ---------------------------------------------------------------------------------------------------

    def test_rows_come_in_the_order_asked(self, store: Store) -> None:
        """One row a place, also for a task that is asked for twice or that there is not."""
        store.add(want("a"))
        store.add(want("b"))
        rows = store.get(["b", "none", "a", "b"])
        assert [row and row.task_id for row in rows] == ["b", None, "a", "b"]
        assert store.get([]) == []

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
    def test_pages_hold_every_task_once_in_order(self, store: Store, limit: int) -> None:
        """Pages of any size add up to all tasks, by code points, and the last one says that it is."""
        names = ["a", "a b", "aa", "b", "ä", "é", "z", "\uffff", "\U0001f600"]
        for name in reversed(names):
            store.add(want(name))
        assert list(pages(store, Query(), limit)) == sorted(names)

    def test_pages_are_stable_under_inserts(self, store: Store) -> None:
        """What was there before the first page comes exactly once, whatever is added or forgotten in between."""
        old = [f"k{number:02}" for number in range(0, 40, 4)]
        for name in old:
            store.add(want(name))
        seen: list[str] = []
        fresh = itertools.count()
        for name in pages(store, Query(), 3):
            seen.append(name)
            store.add(want(f"k{next(fresh):02}x"))  # before and behind the place that was reached
            if name in old:
                store.forget(name, force=False)
        assert [name for name in seen if name in old] == old
        assert len(seen) == len(set(seen))
        assert seen == sorted(seen)

    @pytest.mark.parametrize(
        ("prefix", "found"),
        [
            ("", ["%", "%a", "A", "[a]", "_", "a", "a%b", "a*", "a_b", "ab", "ä", "äb", "\ud7ff1", "\U0010ffff1"]),
            ("a", ["a", "a%b", "a*", "a_b", "ab"]),
            ("%", ["%", "%a"]),
            ("_", ["_"]),
            ("a%", ["a%b"]),
            ("a_", ["a_b"]),
            ("a*", ["a*"]),
            ("[", ["[a]"]),
            ("[a]", ["[a]"]),
            ("ä", ["ä", "äb"]),
            ("A", ["A"]),
            ("\ud7ff", ["\ud7ff1"]),
            ("\U0010ffff", ["\U0010ffff1"]),
            ("none", []),
            ("'; DROP TABLE idempotent_log; --", []),
        ],
        ids=shown,
    )
    def test_a_prefix_is_text_and_no_pattern(self, store: Store, prefix: str, found: list[str]) -> None:
        """Signs that some query language gives a meaning to, capitals and the last code points are plain text."""
        for name in ("%", "%a", "A", "[a]", "_", "a", "a%b", "a*", "a_b", "ab", "ä", "äb", "\ud7ff1", "\U0010ffff1"):
            store.add(want(name))
        assert list(pages(store, Query(prefix=prefix), 2)) == sorted(found)

    def test_queries_by_status(self, store: Store) -> None:
        """Each status lists its own tasks, in combination with a prefix too, and the counts agree with the lists."""
        for name, status in (("a1", Status.SUCCEEDED), ("a2", Status.FAILED), ("b1", Status.FAILED)):
            store.finish([end_of(granted(store, want(name)), status)])
        granted(store, want("a3"))
        store.add(want("b2"))
        counts = {status: len(list(pages(store, Query(status), 2))) for status in Status}
        assert {status: number for status, number in counts.items() if number} == store.count()
        assert list(pages(store, Query(Status.FAILED), 1)) == ["a2", "b1"]
        assert list(pages(store, Query(Status.FAILED, "b"), 1)) == ["b1"]
        assert list(pages(store, Query(Status.RUNNING, "a"), 5)) == ["a3"]

    # --- upkeep -------------------------------------------------------------------------------------------------

    def test_remove_takes_what_its_survey_counts(self, store: Store) -> None:
        """Final rows whose time has passed go, and the floor is above their tokens; all else is left as it was."""
        grants = {name: granted(store, want(name, keep_ms=keep)) for name, keep in (("a", 0), ("b", None), ("c", 0))}
        store.finish([end_of(grants["a"]), end_of(grants["b"]), end_of(grants["c"], Status.FAILED)])
        at = store.instant()
        survey = store.survey(Query(), at, None)
        assert [(group.status, group.name, group.tasks) for group in survey.groups] == [(Status.SUCCEEDED, "job", 1)]
        assert survey.newest == max(row_of(store, name).updated_at for name in grants)
        removed, after = 0, None
        while True:
            chunk = store.remove(Query(), at, after)
            removed += chunk.tasks
            if (after := chunk.after) is None:
                break
        assert removed == 1
        assert [row is None for row in store.get(["a", "b", "c"])] == [True, False, False]
        assert store.floor() >= grants["a"].token
        assert granted(store, want("a")).token > grants["a"].token

    def test_put_inserts_and_never_overwrites(self, store: Store) -> None:
        """A row that is put is there as given; one that is there is answered, and the floor is above all of them."""
        present = row_of(store, granted(store, want("there")).task_id)
        new = present._replace(task_id="new", status=Status.FAILED, owner=None, token=1 << 50, error="e" * 900)
        answers = store.put([new, new._replace(task_id="there", token=1 << 51)], 5, Origin("f" * 32))
        assert answers == [None, Present(present)]
        assert store.get(["new", "there"]) == [new, present]
        assert store.floor() == 1 << 51
        assert store.origin().registry_id != "f" * 32

    # --- effects ------------------------------------------------------------------------------------------------

    def test_a_transaction_commits_effects_with_the_finish(self, store: Store) -> None:
        """Both are there behind `finish`; without it, the block rolls back and the claim goes on."""
        grant = granted(store)
        with store.transaction(grant, durable=False) as tx:
            tx.execute("CREATE TABLE mine (n INTEGER)")
            tx.execute("INSERT INTO mine VALUES (?)", (1,))
        assert row_of(store).status is Status.RUNNING
        with store.transaction(grant, durable=False) as tx:
            with pytest.raises(StoreError):
                tx.execute("SELECT * FROM mine")
            tx.execute("CREATE TABLE mine (n INTEGER)")
            tx.execute("INSERT INTO mine VALUES (:n)", {"n": 2})
            assert tx.finish(end_of(grant, result="1")) == Recorded("t")
        assert row_of(store).status is Status.SUCCEEDED
        second = granted(store, want("u"))
        with store.transaction(second, durable=False) as tx:
            assert tx.execute("SELECT n FROM mine") == [(2,)]
            assert isinstance(tx.finish(end_of(grant, result="2")), Lost)
        store.finish([end_of(second)])

    def test_a_transaction_needs_the_claim(self, store: Store) -> None:
        """A claim that ended, or was never this owner's, opens none."""
        grant = granted(store)
        stranger = grant._replace(token=grant.token + 1)
        for claim in (stranger, grant):
            if claim is grant:
                store.finish([end_of(grant)])
            with pytest.raises(ClaimLostError), store.transaction(claim, durable=False):
                pytest.fail("it opened")

    # --- owners -------------------------------------------------------------------------------------------------

    def test_a_command_is_an_owner_of_its_own(self, open_store: Callable[..., Store]) -> None:
        """own_byte gives an owner that claims under its own number, finishes by it, and is alive until it is closed."""
        store, other = open_store(), open_store()
        command = store.own_byte()
        grant = granted(store, want(owner=command.id))
        assert (grant.owner, row_of(store).owner) == (command.id, command.id)
        assert os.fstat(command.fd)
        seen = other.owner(row_of(other))
        assert seen is not None
        assert (seen.owner, seen.liveness) == (command.id, Liveness.ALIVE)
        assert store.finish([end_of(grant)]) == [Recorded("t")]
        assert other.owner(row_of(other)) is None
        command.close()
        command.close()

    def test_a_command_outlives_a_close(self, open_store: Callable[..., Store]) -> None:
        """Closed between own_byte and the claim: the command's claim is still its own, alive, and can be finished."""
        store, other = open_store(), open_store()
        command = store.own_byte()
        store.close()
        grant = granted(store, want(owner=command.id))
        store.close()
        command.note_process(os.getpid())
        seen = other.owner(row_of(other))
        assert seen is not None
        assert (seen.owner, seen.liveness) == (command.id, Liveness.ALIVE)
        assert store.finish([end_of(grant)]) == [Recorded("t")]
        command.close()

    def test_a_downstream_key_is_of_the_place_and_the_task(
        self, open_store: Callable[..., Store], tmp_path: Path
    ) -> None:
        """The same through every handle, another for every task."""
        keys = {open_store().downstream_key("t") for _ in range(2)}
        assert len(keys) == 1
        assert open_store().downstream_key("u") not in keys

    def test_a_closed_handle_still_owns_its_claim(self, open_store: Callable[..., Store]) -> None:
        """Between close and the end of the last claim nobody takes the task over, and its end is recorded."""
        store, other = open_store(), open_store()
        grant = granted(store, want(policy=Policy(OnCrash.RERUN)))
        store.close()
        (answer,) = other.claim([want(policy=Policy(OnCrash.RERUN))])
        assert isinstance(answer, Running)
        assert store.finish([end_of(grant)]) == [Recorded("t")]
        assert isinstance(other.look(want()), Done)
        assert isinstance(store.finish([end_of(grant)])[0], Lost)
        with pytest.raises(ClaimLostError), store.transaction(grant, durable=False):
            pytest.fail("it opened")

    def test_claims_of_before_and_after_a_close_end_together(
        self, open_store: Callable[..., Store], path: Path
    ) -> None:
        """One call may finish claims of two lives of the handle; nothing is kept open for either then."""
        store, other = open_store(), open_store()
        before = granted(store, want("before"))
        store.close()
        after = granted(store, want("after"))
        assert store.finish([end_of(after), end_of(before)]) == [Recorded("after"), Recorded("before")]
        assert all(isinstance(other.look(want(task_id)), Done) for task_id in ("before", "after"))
        store.close()
        other.close()
        assert left_open(path) == []

    # --- serial numbers -----------------------------------------------------------------------------------------

    def test_who_opens_a_prefix_begins_at_its_mark(self, open_store: Callable[..., Whole]) -> None:
        """Under an instance of its own, above all blocks of others, also where its clock is behind theirs."""
        first = open_store().reserve_serials("P", 10**9, 500, None, durable=False)
        second = open_store().reserve_serials("P", 5, 500, None, durable=True)
        other = open_store().reserve_serials("Q", 5, 500, None, durable=False)
        assert (first.begin_us, first.until_us) == (10**9, 10**9 + 500)
        assert second.begin_us == first.until_us < second.until_us
        assert first.instance != second.instance
        assert other.begin_us == 5

    def test_a_used_up_block_is_followed_under_the_same_instance(self, open_store: Callable[..., Whole]) -> None:
        """From where it was used up, or by the clock where that is ahead; other openers' marks do not hold it up."""
        store = open_store()
        held = store.reserve_serials("P", 10**9, 500, None, durable=False)
        other = open_store().reserve_serials("P", 10**9, 10**6, None, durable=False)
        used = held._replace(begin_us=held.until_us)
        behind = store.reserve_serials("P", 0, 500, used, durable=False)
        ahead = store.reserve_serials("P", 10**10, 500, behind._replace(begin_us=behind.until_us), durable=False)
        assert [one.instance for one in (behind, ahead)] == [held.instance] * 2
        assert (behind.begin_us, ahead.begin_us) == (held.until_us, 10**10)
        third = store.reserve_serials("P", 0, 500, None, durable=False)
        assert third.begin_us == max(other.until_us, ahead.until_us)

    def test_a_clock_beyond_the_ceiling_is_not_believed(self, store: Whole) -> None:
        """The block begins at the mark, and its ceiling says from where on no clock is."""
        held = store.reserve_serials("P", 10**9, 500, None, durable=False)
        far = store.reserve_serials("P", held.ceiling_us, 500, None, durable=False)
        assert far.begin_us == held.until_us
        assert far.until_us < held.ceiling_us

    def test_a_block_that_the_place_knows_nothing_of_is_not_followed(self, store: Whole) -> None:
        """It is an older copy, or another: the instance is a new one, and begins above what was held."""
        held = store.reserve_serials("P", 0, 500, None, durable=False)
        strange = held._replace(begin_us=10**9, until_us=10**9)
        block = store.reserve_serials("P", 0, 500, strange, durable=False)
        assert block.instance != held.instance
        assert block.begin_us == 10**9

    # --- steps --------------------------------------------------------------------------------------------------

    def test_a_step_is_there_for_every_later_claim(self, open_store: Callable[..., Whole]) -> None:
        """None until it is saved; then as it was saved, for this claim and the next, over any handle."""
        store, other = open_store(), open_store()
        first = granted(store)
        assert store.step("t", first.token, "one", durable=True) is None
        saved = store.save_step("t", first.token, "one", "1", durable=True)
        assert isinstance(saved, Step)
        assert saved[:3] == ("one", 1, first.token)
        assert store.step("t", first.token, "one", durable=False) == saved
        store.finish([end_of(first, Status.FAILED, error="E")])
        second = granted(store)
        assert other.step("t", second.token, "one", durable=True) == saved
        also = other.save_step("t", second.token, "two", None, durable=False)
        assert store.steps("t") == [saved, also]
        assert store.steps("u") == []

    def test_only_the_owner_of_a_running_claim_saves_a_step(self, store: Whole) -> None:
        """A claim that has ended, or was followed by another, gets Lost, and nothing is written."""
        late = granted(store)
        store.finish([end_of(late, Status.FAILED, error="E")])
        for _ in range(2):
            assert isinstance(store.step("t", late.token, "one", durable=True), Lost)
            assert isinstance(store.save_step("t", late.token, "one", "1", durable=True), Lost)
            granted(store) if row_of(store).status is Status.FAILED else None
        assert store.steps("t") == []
        assert isinstance(store.save_step("nobody", late.token, "one", "1", durable=True), Lost)

    def test_a_step_is_saved_once(self, store: Whole) -> None:
        """A second time is a StepError: its body has run twice, and what the first saved stays."""
        grant = granted(store)
        saved = store.save_step("t", grant.token, "one", "1", durable=False)
        with pytest.raises(StepError):
            store.save_step("t", grant.token, "one", "2", durable=False)
        assert store.steps("t") == [saved]

    def test_steps_are_bounded(self, store: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
        """No more than so many begin, and what has no room is saved as done, without its result."""
        monkeypatch.setattr(steps, "MAX_STEPS", 3)
        monkeypatch.setattr(steps, "MAX_STEPS_BYTES", 10)
        grant = granted(store)
        for name, result, kept in [("a", '"123456"', '"123456"'), ("b", '"1234"', None), ("c", "12", "12")]:
            saved = store.save_step("t", grant.token, name, result, durable=False)
            assert isinstance(saved, Step)
            assert saved.result == kept
        with pytest.raises(StepError):
            store.step("t", grant.token, "d", durable=False)
        assert store.step("t", grant.token, "a", durable=False) == store.steps("t")[0]

    @pytest.mark.parametrize("way", ["forget", "purge"])
    def test_steps_go_with_their_task(self, store: Whole, way: str) -> None:
        """With it and no other: those of a task beside it stay, as do those of one that purge leaves."""
        for task_id in ("s", "t", "u"):
            grant = granted(store, want(task_id, keep_ms=0 if task_id == "t" else None))
            store.save_step(task_id, grant.token, "one", "1", durable=False)
            store.finish([end_of(grant)])
        if way == "forget":
            store.forget("t", force=False)
        else:
            assert store.remove(Query(), store.instant(), None).tasks == 1
        assert [len(store.steps(task_id)) for task_id in ("s", "t", "u")] == [1, 0, 1]


def pages(store: Store, query: Query, limit: int) -> Iterator[str]:
    after: str | None = None
    while True:
        page = store.page(query, after, limit)
        assert len(page.tasks) <= limit
        yield from [task.task_id for task in page.tasks]
        if (after := page.after) is None:
            return


def added(store: Store) -> tuple[Store]:
    store.add(want())
    return (store,)


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def open_store(self, path: Path) -> Iterator[Callable[..., Store]]:
        opened: list[SqliteStore] = []

        def make(clock: ManualClock | None = None) -> SqliteStore:
            opened.append(SqliteStore(Opening(path, create=True, busy_s=10, clock=clock or Clock())).serve())
            return opened[-1]

        yield make
        for store in opened:
            for live in list(page_of_running(store)):
                store.abandon(End(live.task_id, live.token, live.owner or 0, Status.UNKNOWN, live.attempt))
            store.close()

    def test_large_values_live_beside_the_tree_and_go_with_their_row(self, store: Store, path: Path) -> None:
        """idempotent_large holds a row just as long as the task's own result or error is large."""

        def large() -> list[str]:
            connection = connect(path)
            rows: list[Any] = connection.execute("SELECT task_id FROM idempotent_large ORDER BY task_id").fetchall()
            connection.close()
            return [task_id for (task_id,) in rows]

        store.finish([end_of(granted(store), Status.FAILED, error=LARGE)])
        assert large() == ["t"]
        store.finish([End.release(granted(store))])
        assert (large(), row_of(store).error) == (["t"], LARGE)
        store.finish([end_of(granted(store), result="1")])
        assert large() == []
        store.forget("t", force=False)
        store.finish([end_of(granted(store), Status.UNKNOWN, error=LARGE)])
        store.settle("t", Settlement(Verdict.HAPPENED, "me", result="1"))
        assert large() == []
        store.finish([end_of(granted(store, want("u")), result=LARGE)])
        assert large() == ["u"]
        store.forget("u", force=False)
        assert large() == []

    def test_an_interrupted_claim_takes_none_from_another_thread(self, open_store: Callable[..., SqliteStore]) -> None:
        """A claim stored right behind one that was not gets the very same token, and is not put back in its place."""
        store = open_store()
        store.finish([end_of(granted(store, want("warm")))])
        opened = store._opening.opened()
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.extend(store.claim([want()])))

        def overtaken() -> None:
            faults.disarm()
            thread.start()
            until(lambda: opened.database.gate.waiting)
            raise KeyboardInterrupt

        faults.arm("claim.in-transaction", overtaken)
        with pytest.raises(KeyboardInterrupt):
            store.begin(want())
        thread.join(PATIENCE_S)
        (claim,) = answers
        assert isinstance(claim, Granted)
        assert row_of(store).status is Status.RUNNING
        assert opened.owners.live == {("t", claim.token): claim}
        assert store.finish([end_of(claim)]) == [Recorded("t")]

    def test_ends_that_wait_are_all_written(self, open_store: Callable[..., SqliteStore], path: Path) -> None:
        """However many have piled up behind a disk that refused, the next write carries every one with it."""
        store = open_store()
        grants = [one for one in store.claim([want(f"t{n}") for n in range(500)]) if isinstance(one, Granted)]
        gate = store._opening.opened().database.gate
        ticket = Ticket()
        assert gate.try_enter(ticket)
        assert all(store.abandon(end_of(grant, Status.UNKNOWN, error="dropped")) for grant in grants)
        gate.leave(ticket)
        store.finish([end_of(granted(store, want("other")))])
        assert store.count() == {Status.UNKNOWN: 500, Status.SUCCEEDED: 1}

    def test_several_wishes_are_one_commit(self, store: Store, path: Path) -> None:
        """A batch is in the file as a whole: another connection sees all of it or nothing, also of its ends."""
        granted(store, want("first"))
        reader = connect(path)
        seen: list[Any] = []

        def look() -> None:
            sql = "SELECT count(*), sum(status = 1) FROM idempotent_log WHERE task_id <> 'first'"
            seen.extend(reader.execute(sql).fetchall())

        faults.arm("claim.in-transaction", look)
        faults.arm("claim.committed", look)
        faults.arm("finish.in-transaction", look)
        faults.arm("finish.committed", look)
        answers = store.claim([want(f"t{number}") for number in range(50)])
        store.finish([end_of(answer) for answer in answers if isinstance(answer, Granted)])
        faults.disarm()
        assert seen == [(0, None), (50, 0), (50, 0), (50, 50)]
        reader.close()


def page_of_running(store: Store) -> list[Task]:
    return store.page(Query(Status.RUNNING), None, 1_000).tasks
