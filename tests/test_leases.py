"""Leases: a claim with a deadline, its heartbeat, and what a late owner is told."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.figures.leases import commits_in
from idemreg import (
    AsyncRegistry,
    ClaimLostError,
    Liveness,
    OwnerInfo,
    Registry,
    Status,
    StoreError,
    Task,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
    current_claim,
    faults,
)
from idemreg.deciding import Limits, Wanted
from idemreg.events import LeaseLost, TakenOver
from idemreg.heartbeat import Lease, heart
from idemreg.leasing import Renewal, Renewed
from idemreg.model import OnCrash, Policy
from idemreg.sqlite import whose
from idemreg.sqlite.backend import SqliteStore
from idemreg.sqlite.leases import LeaseRow
from idemreg.sqlite.opening import Opening
from idemreg.sqlite.stamps import EPOCH_BITS
from idemreg.store import End, Granted, Lost, Recorded
from idemreg.testing import ManualClock, beat
from tests.support.paused import PAUSE, has_stopped
from tests.support.processes import PATIENCE_S, Script
from tests.support.raw import connect
from tests.support.unshared import time_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

SUM = "a" * 64
ONCE_MORE: dict[str, Any] = {"on_crash": "rerun", "lease": 60}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def pair(open_registry: Callable[..., Registry], clock: ManualClock) -> tuple[Registry, Registry]:
    """Two owners of one file, by one clock."""
    return open_registry(clock=clock), open_registry(clock=clock)


@pytest.fixture(autouse=True)
def no_lease_left() -> Iterator[None]:
    """Whatever became of its claim, no lease is renewed any more."""
    yield
    heart.step()
    assert heart.step() == pytest.approx(3_600)


def owner_of(registry: Registry, task_id: str = "t") -> OwnerInfo:
    task = registry.get(task_id)
    assert task is not None
    owner = registry.owner(task)
    assert owner is not None
    return owner


def row_of(registry: Registry, task_id: str = "t") -> Task:
    task = registry.get(task_id)
    assert task is not None
    return task


# --- the heartbeat ----------------------------------------------------------------------------------------------


def test_a_lease_is_renewed_at_a_third_of_it(pair: tuple[Registry, Registry], clock: ManualClock) -> None:
    """Not before; and from then on it is good for as long as it was at first."""
    with pair[0].claim("t", lease=60) as claim:
        clock.advance(19.999)
        beat()
        assert owner_of(pair[1]).lease_left_ms == 40_001
        clock.advance(0.001)
        beat()
        assert owner_of(pair[1]).lease_left_ms == 60_000
        claim.check()
    assert row_of(pair[1]).status is Status.SUCCEEDED


def test_renewed_leases_are_never_taken(pair: tuple[Registry, Registry], clock: ManualClock) -> None:
    """As long as the process gives signs of life nobody else gets the task, whatever the wall clock says."""
    with pair[0].claim("t", **ONCE_MORE) as claim:
        for number in range(20):
            clock.advance(60)
            beat()
            clock.set(wall_us=number % 2 * 2**50)
            claim.check()
            with pytest.raises(TaskRunningError):
                pair[1].claim("t", **ONCE_MORE)


def test_many_leases_are_renewed_by_one_commit(pair: tuple[Registry, Registry], clock: ManualClock) -> None:
    """All that are due in a registry, 256 at a time; one that is not due is left alone."""
    registry = pair[0]
    commits: list[int] = []
    claims = [registry.claim(f"t{number}", lease=60) for number in range(300)]
    clock.advance(10)
    claims.append(registry.claim("young", lease=60))
    clock.advance(10)
    faults.arm("renew.committed", lambda: commits.append(1))
    beat()
    beat()
    faults.disarm()
    assert len(commits) == 2
    assert owner_of(registry, "t299").lease_left_ms == 60_000
    assert owner_of(registry, "young").lease_left_ms == 50_000
    for claim in claims:
        claim.release()


def test_a_job_shorter_than_a_third_of_its_lease_costs_no_commit_more(path: Path) -> None:
    """The lease is stored and removed with the row: so a job has its two commits, with a lease or without."""
    with Registry(path, durability="normal") as registry:
        registry.run("first", lambda: 1)
        registry.run("leased before", lambda: 1, lease=60)
        counts: list[int] = []
        for options in ({}, {"lease": 60}, {"lease": 60, "timeout": 60}):
            before = commits_in(str(path))
            registry.run(f"t{len(counts)}", lambda: 1, **options)  # type: ignore[arg-type]
            counts.append(commits_in(str(path)) - before)
    assert counts == [2, 2, 2]


class SteppedClock(ManualClock):
    """A clock set by hand that a thread may wait for, as far as it is rung."""

    is_real = True

    def third(self, renewed: threading.Semaphore) -> None:
        """A third of a minute passes, and the heartbeat has seen it."""
        self.advance(20)
        heart.ring()
        assert renewed.acquire(timeout=PATIENCE_S)


def test_a_thread_renews_while_the_job_is_at_work(open_registry: Callable[..., Registry]) -> None:
    """Where time is real nobody needs to step; of a job that blocks its thread as well."""
    clock, renewed = SteppedClock(), threading.Semaphore(0)
    with open_registry(clock=clock).claim("t", lease=60) as claim:
        faults.arm("renew.committed", renewed.release)
        for _ in range(6):
            clock.third(renewed)
        claim.check()
    assert heart.is_running


def test_a_blocked_event_loop_keeps_its_lease(
    open_registry: Callable[..., Registry], loop: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]
) -> None:
    """The heartbeat is no coroutine."""
    clock, renewed = SteppedClock(), threading.Semaphore(0)
    registry = open_registry(clock=clock)

    async def main() -> None:
        async with AsyncRegistry.of(registry).claim("t", lease=60) as claim:
            faults.arm("renew.committed", renewed.release)
            for _ in range(6):
                clock.third(renewed)
            claim.check()

    loop(main)
    assert row_of(registry).status is Status.SUCCEEDED


def test_a_busy_file_is_tried_again_until_the_deadline(
    pair: tuple[Registry, Registry], clock: ManualClock, path: Path
) -> None:
    """A renewal that finds the file taken loses nothing; the next may succeed. At the deadline the lease is over."""
    lost: list[LeaseLost] = []
    other = connect(path)
    with pair[0].claim("t", lease=1, on_lost=lost.append) as claim, pair[0].claim("u", lease=1):
        other.execute("BEGIN IMMEDIATE")
        clock.advance(0.5)
        beat()
        claim.check()
        other.execute("ROLLBACK")
        clock.advance(0.4)
        beat()
        assert owner_of(pair[1]).lease_left_ms == 1_000
        other.execute("BEGIN IMMEDIATE")
        clock.advance(1.001)
        beat()
        with pytest.raises(ClaimLostError):
            claim.check()
        other.execute("ROLLBACK")
        assert [(one.task_id, one.reason) for one in lost] == [("t", "it was not renewed in time")]
        beat()
        assert len(lost) == 1
    other.close()
    assert row_of(pair[0]).status is Status.SUCCEEDED  # nobody had taken it


def test_a_full_disk_ends_a_lease_at_its_deadline(path: Path) -> None:
    """Nothing can be written, nor read of it: the owner knows by its clock alone, and is told once."""
    source = """
        import resource, signal
        from idemreg import Registry, ClaimLostError
        from idemreg.testing import ManualClock, beat
        clock = ManualClock()
        registry = Registry(sys.argv[1], clock=clock)
        def check():
            try: claim.check()
            except ClaimLostError: return "lost"
            return "held"
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with registry.claim("t", lease=60, on_lost=lambda lost: say("told", lost.task_id)) as claim:
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
            for _ in range(2):
                clock.advance(30); beat(); say(check())
            clock.advance(0.001); say(check()); beat(); beat()
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        say(registry.get("t").status.word)
    """
    with Script(source, path) as script:
        for line in ("held", "held", "lost", "told t", "succeeded"):
            script.expect(line)
        assert script.end() == 0


def test_an_error_of_a_renewal_does_not_end_the_heartbeat(monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> None:
    """It is told once as long as it stays the same, and other leases are renewed."""

    def broken_renew(_renewals: object, *, busy_s: float) -> list[Renewed | Lost]:
        raise LookupError(busy_s)

    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    broken = Lease(broken_renew, clock, Renewal("b", 1, 1, 60_000), clock.boot_ms() + 60_000, lambda _: None)
    heart.add(broken)
    clock.advance(30)
    beat()
    clock.advance(2)
    beat()
    heart.remove(broken)
    assert [kind.exc_type for kind in told] == [LookupError]


def test_a_hook_that_raises_does_not_end_the_heartbeat(monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> None:
    """The program's own excepthook may be broken: the leases of all others are renewed."""
    asked = []

    def broken_hook(args: threading.ExceptHookArgs) -> None:
        asked.append(args.exc_type)
        raise OSError

    def broken_renew(_renewals: object, *, busy_s: float) -> list[Renewed | Lost]:
        raise KeyError(busy_s)

    monkeypatch.setattr(threading, "excepthook", broken_hook)
    broken = Lease(broken_renew, clock, Renewal("b", 1, 1, 60_000), clock.boot_ms() + 60_000, lambda _: None)
    heart.add(broken)
    clock.advance(30)
    beat()
    heart.remove(broken)
    assert asked == [KeyError]


def test_a_callback_that_raises_touches_nobody(
    pair: tuple[Registry, Registry], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What on_lost raises goes to the excepthook, and the next lease is told of all the same."""
    told: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
    lost: list[LeaseLost] = []

    def fail(_: LeaseLost) -> None:
        raise SystemExit

    first, second = pair[0].claim("t", lease=60, on_lost=fail), pair[0].claim("u", lease=60, on_lost=lost.append)
    clock.advance(61)
    for task_id in ("t", "u"):
        with pytest.raises(TaskUnknownError):
            pair[1].claim(task_id)
    beat()
    assert (told, [one.task_id for one in lost]) == ([SystemExit], ["u"])
    for claim in (first, second):
        with pytest.raises(ClaimLostError):
            claim.succeed()


# --- the late owner ---------------------------------------------------------------------------------------------


def test_a_late_owner_learns_it_and_leaves_nothing(pair: tuple[Registry, Registry], clock: ManualClock) -> None:
    """The taker has a larger token; the late one is told by check, callback and finish, and writes nothing."""
    lost: list[LeaseLost] = []
    late = pair[0].claim("t", on_lost=lost.append, **ONCE_MORE)
    clock.advance(60.001)
    taker = pair[1].claim("t", **ONCE_MORE)
    assert (taker.token > late.token, taker.attempt) == (True, 2)
    beat()
    assert [(one.task_id, one.token, one.attempt) for one in lost] == [("t", late.token, 1)]
    assert "another owner has the task" in lost[0].reason
    with pytest.raises(ClaimLostError):
        late.check()
    with pytest.raises(ClaimLostError), late.transaction() as tx:
        tx.execute("create table effects (n)")
    with pytest.raises(ClaimLostError):
        late.succeed("the late one's")
    taker.succeed("the taker's")
    assert pair[0].run("t", str, name="").result == "the taker's"
    with pair[1].claim("look", on_crash="rerun") as claim, claim.transaction() as tx:
        assert tx.execute("select count(*) from sqlite_schema where name = 'effects'") == [(0,)]


def test_a_late_owner_is_told_nothing_that_is_not_so(pair: tuple[Registry, Registry], clock: ManualClock) -> None:
    """Nobody has the task any more where the taker has ended it, nor where it is unknown: the hint names no owner."""
    late = pair[0].claim("t", **ONCE_MORE)
    held = pair[0].claim("held", lease=60)
    clock.advance(61)
    pair[1].claim("t", **ONCE_MORE).succeed(1)
    with pytest.raises(TaskUnknownError):
        pair[1].claim("held", lease=60)
    for claim in (late, held):
        with pytest.raises(ClaimLostError) as caught:
            claim.succeed(2)
        assert "owner has" not in caught.value.hint
        assert "`idemreg show TASK_ID` tells what became of it" in caught.value.hint


def test_events_tell_of_the_lease_and_of_the_takeover(
    open_registry: Callable[..., Registry], clock: ManualClock
) -> None:
    """The late owner's registry tells that the lease is lost, the taker's that the task was taken over."""
    told: list[object] = []
    first, second = (open_registry(clock=clock, on_event=told.append) for _ in range(2))
    late = first.claim("t", **ONCE_MORE)
    clock.advance(61)
    taker = second.claim("t", **ONCE_MORE)
    beat()
    kinds = [event for event in told if isinstance(event, (LeaseLost, TakenOver))]
    assert [(type(event), event.token) for event in kinds] == [(TakenOver, taker.token), (LeaseLost, late.token)]
    taker.release()
    with pytest.raises(ClaimLostError):
        late.release()


def test_what_a_late_owner_wrote_is_rolled_back(pair: tuple[Registry, Registry], clock: ManualClock) -> None:
    """Effects and finish are one commit: while they are open nobody takes the task, and without the claim none are."""
    late = pair[0].claim("t", **ONCE_MORE)
    clock.advance(61)
    taker = pair[1].claim("t", **ONCE_MORE)
    with pytest.raises(ClaimLostError), late.transaction() as tx:
        tx.execute("create table effects (n)")
    with taker.transaction() as tx:
        tx.execute("create table effects (n)")
        clock.advance(600)
        beat()
        taker.check()  # it has the write lock, so nobody has taken the task
    with pytest.raises(ClaimLostError):
        late.succeed()
    assert row_of(pair[0]).status is Status.SUCCEEDED


def test_a_job_that_stops_when_it_is_told_to_was_interrupted(
    pair: tuple[Registry, Registry], clock: ManualClock
) -> None:
    """What check raises is no failure of the job: the crash policy decides, and nothing is stored over a taker's."""

    def job() -> None:
        clock.advance(61)
        current_claim().check()

    for on_crash, status in (("hold", Status.UNKNOWN), ("rerun", Status.PENDING)):
        with pytest.raises(ClaimLostError):
            pair[0].run(on_crash, job, lease=60, on_crash=on_crash)  # type: ignore[arg-type]
        assert row_of(pair[0], on_crash).status is status


def test_attempts_used_up_are_a_dead_letter_that_retry_revives(
    pair: tuple[Registry, Registry], clock: ManualClock
) -> None:
    """Each lapse counts as an attempt; behind the last the task is failed, and listed as dead."""
    late = []
    for number in range(2):
        late.append(pair[number].claim("t", max_attempts=2, **ONCE_MORE))
        clock.advance(61)
    with pytest.raises(TaskFailedError):
        pair[0].claim("t", max_attempts=2, **ONCE_MORE)
    (dead,) = pair[0].tasks(dead=True)
    assert (dead.task_id, dead.attempt) == ("t", 2)
    assert (dead.error or "").startswith("LeaseExpired: attempt 2")
    pair[0].retry("t")
    with pair[0].claim("t", max_attempts=2, **ONCE_MORE) as claim:
        assert claim.attempt == 3
    for claim in late:
        with pytest.raises(ClaimLostError):
            claim.succeed()


def test_a_hook_is_asked_about_an_expired_lease(pair: tuple[Registry, Registry], clock: ManualClock) -> None:
    """Under verify its answer decides; while it is asked the task has no lease, so nobody comes between."""
    late = pair[0].claim("t", lease=60, on_crash="verify", verify=lambda _: None)
    clock.advance(61)

    def verify(task: Task) -> bool:
        assert task.token == late.token
        clock.advance(3_600)
        assert owner_of(pair[0]).liveness is Liveness.ALIVE
        return True

    outcome = pair[1].run("t", lambda: 1, name="", lease=60, on_crash="verify", verify=verify)
    assert outcome.replayed
    with pytest.raises(ClaimLostError):
        late.succeed()


# --- stopped, killed, forked, booted ----------------------------------------------------------------------------


STOPPED = f"""
{PAUSE}
from idemreg import Registry, ClaimLostError
registry = Registry(sys.argv[1])
claim = registry.claim("t", on_crash="rerun", lease=float(sys.argv[2]), on_lost=lambda lost: say("told", lost.task_id))
say("claimed", claim.token)
pause()
wait()
try: claim.succeed("late")
except ClaimLostError: say("lost")
"""


class ElsewhereInTime(Script):
    """In a time namespace of its own, whose clock since boot is a hundred days ahead."""

    def command(self) -> list[str]:
        return [*time_namespace(), "--boottime", str(100 * 86_400), *super().command()]


@pytest.mark.parametrize("where", [Script, ElsewhereInTime])
def test_a_stopped_owner_is_fenced(where: type[Script], path: Path) -> None:
    """SIGSTOP past the lease, then SIGCONT: it is told, its finish is refused, and the taker's result stays."""
    if where is ElsewhereInTime:
        needs_a_time_namespace()
    with where(STOPPED, path, 1) as owner, Registry(path) as registry:
        token = int(owner.line().split()[1])
        has_stopped(owner)
        with registry.claim("t", on_crash="rerun", lease=60, wait=PATIENCE_S) as claim:
            assert claim.token > token
            claim.result = "the taker's"
            owner.signal(signal.SIGCONT)
            owner.expect("told t")
        owner.go()
        owner.expect("lost")
        assert owner.end() == 0
        assert registry.run("t", str, name="").result == "the taker's"


def needs_a_time_namespace() -> None:
    """Which CI must have."""
    if not time_namespace() and "CI" not in os.environ:
        pytest.skip("needs a time namespace")


def test_a_lease_lasts_as_long_in_every_time_namespace(path: Path) -> None:
    """A deadline of one is in the far past, or future, by the clock of the other, and means the same there."""
    needs_a_time_namespace()
    with ElsewhereInTime(STOPPED, path, 3_600) as owner, Registry(path) as registry:
        owner.line()
        has_stopped(owner)
        with pytest.raises(TaskRunningError):
            registry.claim("t", on_crash="rerun")
        left_ms = owner_of(registry).lease_left_ms
        assert left_ms is not None
        assert 0 < left_ms <= 3_600_000
        owner.signal(signal.SIGCONT)
        owner.go()
        assert owner.end() == 0
        assert row_of(registry).status is Status.SUCCEEDED
        with registry.claim("u", on_crash="rerun", lease=3_600), ElsewhereInTime(OTHER, path) as other:
            other.expect("TaskRunningError")


OTHER = """
from idemreg import Registry, IdemregError
try: Registry(sys.argv[1]).claim("u", on_crash="rerun")
except IdemregError as error: say(type(error).__name__)
"""


def test_a_death_needs_no_deadline(path: Path) -> None:
    """The owner is killed in the middle of a long lease: its task is free at once, as without one."""
    source = 'from idemreg import Registry; claim = Registry(sys.argv[1]).claim("t", lease=86400); say("go"); wait()'
    with Script(source, path) as owner, Registry(path) as registry:
        owner.expect("go")
        owner.kill()
        with pytest.raises(TaskUnknownError, match="OwnerDied"):
            registry.claim("t")


def test_a_reboot_frees_every_lease_at_once(path: Path) -> None:
    """Deadlines count within one boot: of the one before, no lease is good any more, however much was left of it."""
    source = """
        from idemreg import Registry
        from idemreg.testing import ManualClock
        registry = Registry(sys.argv[1], clock=ManualClock(boot_ms=10**9))
        claim = registry.claim("t", on_crash=sys.argv[2], lease=10**6, wait=0)
        say("claimed"); wait()
    """
    for on_crash in ("rerun", "hold"):
        with Script(source, f"{path}-{on_crash}", on_crash) as owner:
            owner.expect("claimed")
            owner.kill()
        clock = ManualClock(boot_ms=5, boot_id="after")
        with Registry(f"{path}-{on_crash}", clock=clock) as registry:
            assert owner_of(registry).lease_left_ms == -(2**EPOCH_BITS - 1)
            if on_crash == "rerun":
                with registry.claim("t", on_crash="rerun") as claim:
                    assert claim.attempt == 2
            else:
                with pytest.raises(TaskUnknownError):
                    registry.claim("t")


@pytest.mark.parametrize(
    ("lives", "until", "becomes"),
    [
        (Liveness.ALIVE, (5, 10), Liveness.ALIVE),  # the last moment
        (Liveness.ALIVE, (5, 9), Liveness.EXPIRED),
        (Liveness.CANNOT_TELL, (5, 9), Liveness.EXPIRED),
        (Liveness.DEAD, (5, 11), Liveness.DEAD),
        (Liveness.DEAD, (5, 9), Liveness.DEAD),
        (Liveness.CANNOT_TELL, (5, 11), Liveness.CANNOT_TELL),
        # Of another boot: whose lock is held lives in this one, and could not read its id.
        (Liveness.ALIVE, (4, 9), Liveness.ALIVE),
        (Liveness.CANNOT_TELL, (4, 99), Liveness.EXPIRED),
        (Liveness.DEAD, (4, 99), Liveness.DEAD),
        (Liveness.ALIVE, (6, 0), Liveness.ALIVE),
        (Liveness.CANNOT_TELL, (6, 0), Liveness.CANNOT_TELL),
    ],
)
def test_what_a_lease_makes_of_an_owners_life(lives: Liveness, until: tuple[int, int], becomes: Liveness) -> None:
    """It frees only from its own moment on; a proof of death stays one, and a lock that is held refutes a reboot."""
    stamp = until[0] << EPOCH_BITS | until[1]
    lease = LeaseRow("t", 1, stamp, None)
    info = whose._with_lease(OwnerInfo(1, lives, reason="why"), lease, 5 << EPOCH_BITS | 10)
    assert info.liveness is becomes
    assert "why" in info.reason


def test_a_forked_child_renews_its_own_leases_only(path: Path) -> None:
    """The parent's claim is none in the child, which has no thread until its own first lease; the parent's goes on."""
    source = """
        from idemreg import Registry, ClaimLostError
        from idemreg.heartbeat import heart
        registry = Registry(sys.argv[1])
        claim = registry.claim("t", lease=60)
        assert heart.is_running
        pid = os.fork()
        if pid == 0:
            try: claim.check()
            except ClaimLostError: say("not the child's")
            assert not heart.is_running and not heart._leases
            with registry.claim("u", lease=60) as own:
                own.check()
                say(heart.is_running, len(heart._leases))
            os._exit(0)
        os.waitpid(pid, 0)
        claim.check()
        say(heart.is_running, len(heart._leases))
        claim.succeed()
        say(registry.get("t").status.word, registry.get("u").status.word)
    """
    with Script(source, path) as script:
        for line in ("not the child's", "True 1", "True 1", "succeeded succeeded"):
            script.expect(line)
        assert script.end() == 0


def test_a_claim_that_nobody_could_renew_is_put_back(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread can be started: the job does not begin, and the task is as it was."""

    def start(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    with monkeypatch.context() as patched:
        patched.setattr(heart, "_thread", None)
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            registry.claim("t", lease=60)
    row = row_of(registry)
    assert (row.status, row.attempt) == (Status.PENDING, 0)
    assert not heart._leases


def test_a_closed_registry_renews_what_it_has_claimed(pair: tuple[Registry, Registry], clock: ManualClock) -> None:
    """The claim goes on behind the close, and so does its lease, beside those of the registry that was opened anew."""
    with pair[0].claim("t", lease=60) as old:
        pair[0].close()
        with pair[0].claim("u", lease=60) as new:
            clock.advance(40)
            beat()
            assert [owner_of(pair[1], task_id).lease_left_ms for task_id in "tu"] == [60_000, 60_000]
            old.check()
            new.check()


def test_a_dropped_claim_is_renewed_no_more(registry: Registry, clock: ManualClock) -> None:
    """Whatever becomes of a claim, its lease goes with it."""
    claim = registry.claim("t", lease=3_600)
    assert len(heart._leases) == 1
    with pytest.warns(ResourceWarning, match="dropped"):
        del claim
    assert not heart._leases


def test_limits_go_with_their_claim(pair: tuple[Registry, Registry], clock: ManualClock) -> None:
    """However it ends, or is ended by others, its row of them is gone in the same transaction."""
    first, second = pair
    late = []
    for task_id in ("succeeded", "failed", "released", "dropped", "hold", "rerun", "forgotten", "transaction"):
        on_crash = "hold" if task_id in ("hold", "forgotten") else "rerun"
        late.append(first.claim(task_id, lease=60, timeout=60, on_crash=on_crash))  # type: ignore[arg-type]
    assert limits_of(second) == 8
    succeeded, failed, released, dropped, *late, transaction = late
    succeeded.succeed()
    failed.fail(ValueError())
    released.release()
    dropped.interrupted(KeyboardInterrupt())
    with transaction.transaction():
        pass
    assert limits_of(second) == 3
    clock.advance(61)
    with pytest.raises(TaskUnknownError):
        second.claim("hold")
    with second.claim("rerun", on_crash="rerun"):
        assert limits_of(second) == 1
    second.forget("forgotten", force=True)
    assert limits_of(second) == 0
    for claim in late:
        with pytest.raises(ClaimLostError):
            claim.succeed()


def limits_of(registry: Registry) -> int:
    """How many rows of limits there are."""
    connection = connect(registry.path)
    ((count,),) = connection.execute("SELECT count(*) FROM idempotent_lease")
    connection.close()
    return int(count)


# --- at the door ------------------------------------------------------------------------------------------------


def test_batches_take_no_limits(registry: Registry) -> None:
    """Their jobs wait for one another, so nobody would be at work for most of the leases."""
    for options in ({"lease": 60}, {"timeout": 60}):
        with pytest.raises(ValueError, match="single claims"):
            registry.claim_many([("t", None)], **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="single claims"):
            list(registry.consume(["t"], str, task_id=str, **options))  # type: ignore[arg-type]
    assert registry.get("t") is None


def test_batches_of_coroutines_take_none_either(
    registry: Registry, loop: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]
) -> None:
    """As above."""

    async def job(_: str) -> None:
        """Never entered."""

    async def main() -> None:
        with pytest.raises(ValueError, match="single claims"):
            await AsyncRegistry.of(registry).claim_many([("t", None)], lease=60)
        with pytest.raises(ValueError, match="single claims"):
            await anext(AsyncRegistry.of(registry).consume(["t"], job, task_id=str, timeout=60))

    loop(main)
    assert registry.count() == {}


@pytest.mark.parametrize(
    "options",
    [{"lease": 0.9}, {"lease": -1}, {"lease": 10**9}, {"timeout": 0}, {"on_lost": print}, {"lease": 1, "on_lost": 7}],
)
def test_limits_that_are_none_are_refused(registry: Registry, options: dict[str, Any]) -> None:
    """Before anything is stored."""
    with pytest.raises(ValueError, match=r"lease|timeout|on_lost"):
        registry.claim("t", **options)
    assert registry.get("t") is None


def test_a_damaged_lease_is_an_error(pair: tuple[Registry, Registry], clock: ManualClock, path: Path) -> None:
    """Its row is sealed: a deadline that another program has moved frees no task."""
    with pair[0].claim("t", lease=60) as claim:
        connection = connect(path)
        connection.execute("UPDATE idempotent_lease SET until_stamp = 1")
        with pytest.raises(StoreError, match="the lease of task 't'"):
            pair[1].claim("t")
        assert "seal-broken" in {finding.code for finding in pair[1].doctor(full=True)}
        connection.execute("DELETE FROM idempotent_lease")
        clock.advance(3_600)
        with pytest.raises(TaskRunningError):
            pair[1].claim("t")
        connection.close()
        claim.result = 1


# --- exclusion --------------------------------------------------------------------------------------------------


STEPS = st.lists(
    st.tuples(st.sampled_from(["claim", "renew", "finish", "fail"]), st.integers(0, 2))
    | st.tuples(st.just("pass"), st.sampled_from([1, 20_000, 40_000, 60_000, 60_001])),
    max_size=30,
)


@given(STEPS)
@example([("claim", 0), ("pass", 60_001), ("claim", 1), ("renew", 0), ("finish", 0), ("renew", 1), ("finish", 1)])
def test_no_two_leases_of_a_task_are_ever_good(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    """Whatever three owners do, and however late: one holder at most, growing tokens, the late ones refused."""
    clock = ManualClock(boot_ms=0)
    place = tmp_path_factory.mktemp("leases") / "jobs.db"
    stores = [SqliteStore(Opening(place, create=True, busy_s=5, clock=clock)).serve() for _ in range(3)]
    wish = Wanted("t", "job", SUM, Policy(OnCrash.RERUN, max_attempts=1_000), limits=Limits(60_000))
    held: dict[int, tuple[Granted, int]] = {}  # by owner: its claim, and until when it may believe in it
    newest: Granted | None = None  # the claim that the row is of; None: nobody's
    tokens: list[int] = []
    try:
        for step, of in steps:
            if step == "pass":
                clock.advance(of / 1_000)
                continue
            store, now = stores[of], clock.boot_ms()
            if step == "claim" and of not in held:
                (answer,) = store.claim([wish])
                good = [who for who, (_, until) in held.items() if until >= now]
                assert isinstance(answer, Granted) is not bool(good and newest is not None)
                if isinstance(answer, Granted):
                    tokens.append(answer.token)
                    newest = answer
                    held[of] = answer, now + 60_000
                    assert [who for who, (_, until) in held.items() if until >= now] == [of]
            elif step == "renew" and of in held:
                grant, _ = held[of]
                renewal = Renewal("t", grant.token, grant.owner, 60_000)
                (renewed,) = store.renew([renewal], busy_s=5)
                assert isinstance(renewed, Renewed) is (grant is newest)
                if isinstance(renewed, Renewed):
                    held[of] = grant, renewed.until_ms
            elif of in held:
                grant, _ = held.pop(of)
                (end,) = store.finish([End("t", grant.token, grant.owner, Status.FAILED, grant.attempt)])
                assert isinstance(end, Recorded) is (grant is newest)
                newest = None if grant is newest else newest
        assert tokens == sorted(set(tokens))
    finally:
        for who, (grant, _) in held.items():
            stores[who].finish([End("t", grant.token, grant.owner, Status.FAILED, grant.attempt)])
        for store in stores:
            store.close()
    assert not [left for left in apsw.connections() if left.filename == str(place)]
