"""SIGKILL at every named fault point, then reopen: what began is never repeated by itself, and nothing is lost."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from idemreg import Registry, Status, StoreVersionError, Task, TaskUnknownError, faults
from idemreg.clockcheck.verdict import Permit
from idemreg.command import run_command
from idemreg.lines import end_line, header_line, task_line
from idemreg.model import Policy
from idemreg.testing import ManualClock
from tests.support.processes import Script
from tests.support.raw import connect
from tests.support.second_schema import open_second

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# What every script begins with. `job` leaves a line in the witness each time that its body is entered.
HEAD = """
from idemreg import Registry, faults
path, witness, point = sys.argv[1:4]
def job():
    with open(witness, "a") as file: file.write("entered\\n")
    return {"n": 1}
def effect(registry, **options):
    with registry.claim("t", name="effect", on_crash="rerun") as claim, claim.transaction() as tx:
        tx.execute("create table if not exists effect (n)")
        tx.execute("insert into effect values (1)")
registry = Registry(path)
"""

OPEN = "faults.arm(point, faults.kill); registry.open()"
RUN_HOLD = 'faults.arm(point, faults.kill); registry.run("t", job, name="j")'
RUN_HOLD_AGAIN = 'registry.run("first", lambda: 1); faults.arm(point, faults.kill); registry.run("t", job, name="j")'
RUN_RERUN = 'faults.arm(point, faults.kill); registry.run("t", job, name="j", on_crash="rerun")'
RUN_RERUN_AGAIN = RUN_HOLD_AGAIN.replace('name="j"', 'name="j", on_crash="rerun"')
RUN_FAILED = """
try: registry.run("t", lambda: 1 / 0, name="j")
except ZeroDivisionError: faults.arm(point, faults.kill)
registry.run("t", job, name="j")
"""
EFFECT = "faults.arm(point, faults.kill); effect(registry)"
RESOLVE = 'faults.arm(point, faults.kill); registry.resolve("left", "happened", result=7, evidence="seen")'
FORGET = 'faults.arm(point, faults.kill); registry.forget("left", force=True)'
PURGE = "faults.arm(point, faults.kill); registry.purge(older_than=0)"
IMPORT = """
with open(path + ".jsonl") as file: lines = file.readlines()
faults.arm(point, faults.kill)
registry.import_lines(lines)
"""
BACKUP = 'faults.arm(point, faults.kill); registry.backup(path + ".copy")'
COMMAND = """
from idemreg.command import run_command
faults.arm(point, faults.kill)
run_command(registry, "t", ["/bin/sh", "-c", f"echo entered >>{witness}"])
"""
SLOTS = """
from idemreg.testing import ManualClock
clock = ManualClock(wall_us=4_000_000_000_000_000)  # behind all times that are stored here
registry = Registry(path, clock=clock)
registry.scheduled("slot", cron="0 * * * *", coalesce="all", limit=2)(lambda: job())
registry.run_due()
clock.advance(3 * 3_600)
faults.arm(point, faults.kill)
registry.run_due()
"""
# A clock that was two hours ahead is right again: one slot was skipped by it, and one has run early.
SLOTS_AHEAD = """
from idemreg.clockcheck.verdict import Permit
from idemreg.testing import ManualClock
clock = ManualClock(wall_us=4_000_000_000_000_000)
registry = Registry(path, clock=clock)
registry.may_schedule = Permit
registry.scheduled("slot", cron="0 * * * *")(lambda: None)
registry.run_due()
clock.advance(2 * 3_600)
registry.run_due()
clock.set(wall_us=4_000_000_000_000_000)
faults.arm(point, faults.kill)
registry.run_due()
"""
# Armed by the job of the second of three messages, so the first has run, and has not ended: they all end at once.
BATCH = """
def handle(message):
    job()
    if message == "b": faults.arm(point, faults.kill)
for handled in registry.consume(["a", "b", "c"], handle, task_id=str, name="j"): pass
"""
BATCH_CLAIM = "faults.arm(point, faults.kill)" + BATCH
STEPS = """
def piece(name):
    with open(witness, "a") as file: file.write(name)
with registry.claim("t", name="j", on_crash="rerun") as claim:
    claim.run_step("a", lambda: piece("a"))
    faults.arm(point, faults.kill)
    claim.run_step("b", lambda: piece("b"))
"""
SERIALS = """
numbers = registry.serials("COUP")
def give():
    with open(witness, "a") as file: file.write(f"{numbers.next()}\\n")
give()
faults.arm(point, faults.kill)
class Later(type(registry.clock)):
    def wall_us(self): return super().wall_us() + 3_600_000_000
numbers = Registry(path, clock=Later()).serials("COUP")
for _ in range(3): give()
"""
SWEEP = """
import os
if not os.fork():
    claim = Registry(path).claim("t", name="j")
    os._exit(0)
os.wait()
faults.arm(point, faults.kill)
registry.sweep()
"""
SWEEP_AGAIN = """
import os
def decorated(registry):
    kept = registry.idempotent(lambda: "t", name="j", recover=True, on_crash="rerun", checksum=lambda: None)
    return kept(lambda: os._exit(0) if registry is dying else job())
if not os.fork():
    dying = Registry(path)
    decorated(dying)()
os.wait()
dying = None
decorated(registry)
faults.arm(point, faults.kill)
registry.sweep()
"""
# Killed by the heartbeat in the middle of its job, at a renewal.
LEASED = """
from idemreg.testing import ManualClock, beat
clock = ManualClock()
def work():
    job()
    faults.arm(point, faults.kill)
    clock.advance(30)
    beat()
Registry(path, clock=clock).run("t", work, name="j", lease=60{})
"""
LEASED_HOLD, LEASED_RERUN = LEASED.format(""), LEASED.format(', on_crash="rerun"')
SECOND = "from tests.support.second_schema import open_second; faults.arm(point, faults.kill); open_second(path)"
OTHER_BOOT = """
from idemreg import Clock
class Later(Clock):
    def boot_id(self): return "a later boot"
faults.arm(point, faults.kill)
Registry(path, clock=Later()).open()
"""


class World:
    """The registry after the kill, and the witness of every body entered."""

    def __init__(self, registry: Registry, path: Path, witness: Path) -> None:
        self.registry, self.path, self.witness = registry, path, witness

    def entered(self) -> int:
        return self.witness.read_text().count("entered") if self.witness.exists() else 0

    def job(self) -> dict[str, int]:
        with self.witness.open("a") as file:
            file.write("entered\n")
        return {"n": 1}

    def run(self, **options: Any) -> Any:
        return self.registry.run("t", self.job, name="j", **options)

    def effects(self) -> int:
        with self.registry.claim("count", on_crash="rerun") as claim, claim.transaction() as tx:
            tx.execute("create table if not exists effect (n)")
            ((number,),) = tx.execute("select count(*) from effect")
        return int(number)


# --- what must hold after the kill ------------------------------------------------------------------------------


def starts_as_if_nothing_was(world: World) -> None:
    assert world.registry.get("t") is None
    assert world.run().attempt == 1
    assert world.entered() == 1


def is_unknown(entered: int) -> Callable[[World], None]:
    def check(world: World) -> None:
        for _ in range(2):
            with pytest.raises(TaskUnknownError):
                world.run()
        assert world.entered() == entered
        world.registry.resolve("t", "did-not-happen")
        assert world.run().attempt == 2

    return check


def is_run_again(world: World) -> None:
    before = world.entered()
    outcome = world.run(on_crash="rerun")
    assert (outcome.attempt, outcome.replayed) == (2, False)
    assert world.entered() == before + 1


def is_still_claimable(world: World) -> None:
    assert world.run().attempt == 2
    assert world.entered() == 1


def is_replayed(world: World) -> None:
    outcome = world.run()
    assert (outcome.result, outcome.replayed, world.entered()) == ({"n": 1}, True, 1)


def has_no_effect_yet(world: World) -> None:
    assert world.effects() == 0
    with world.registry.claim("t", name="effect", on_crash="rerun") as claim, claim.transaction() as tx:
        assert claim.attempt == 2
        tx.execute("insert into effect values (1)")
    ((number,),) = [(world.registry.get("t"),)]
    assert number is not None
    assert number.status is Status.SUCCEEDED


def batch_is(**expected: str) -> Callable[[World], None]:
    """After a kill in mid-batch the entered tasks are unknown, and the rest of the batch runs as if never claimed."""

    def check(world: World) -> None:
        before = world.entered()
        handled = list(world.registry.consume(["a", "b", "c"], lambda _: world.job(), task_id=str, name="j"))
        assert {
            one.message: "unknown" if isinstance(one.error, TaskUnknownError) else one.outcome and one.outcome.attempt
            for one in handled
        } == {name: "unknown" if state == "unknown" else 1 for name, state in expected.items()}
        assert world.entered() == before + sum(state == "runs" for state in expected.values())
        assert not _owners_of_batches(world.path)

    return check


def _owners_of_batches(path: Path) -> list[Any]:
    connection = connect(path, apsw.SQLITE_OPEN_READONLY)
    rows = connection.execute("SELECT id FROM idempotent_owner WHERE claims IS NOT NULL").fetchall()
    connection.close()
    return rows


def command_is_unknown(world: World) -> None:
    argv = ["/bin/sh", "-c", f"echo entered >>{world.witness}"]
    task = world.registry.get("t")
    assert task is not None
    with pytest.raises(TaskUnknownError):
        run_command(world.registry, "t", argv, wait=60)  # seconds, for the orphan's end
    assert world.entered() == 1


def left_is(status: Status | None) -> Callable[[World], None]:
    def check(world: World) -> None:
        task = world.registry.get("left")
        assert (None if task is None else task.status) is status
        starts_as_if_nothing_was(world)

    return check


def ended_are(count: int) -> Callable[[World], None]:
    """All or none of a chunk; and whoever is claimed anew has a larger token than before."""

    def check(world: World) -> None:
        assert len(list(world.registry.tasks(prefix="ended"))) == count
        world.registry.purge(older_than=0)
        for number in range(ENDED):
            with world.registry.claim(f"ended:{number}") as claim:
                assert claim.token > (1 << 40) + 1
        starts_as_if_nothing_was(world)

    return check


def imported_are(count: int) -> Callable[[World], None]:
    def check(world: World) -> None:
        assert len(list(world.registry.tasks(prefix="moved"))) == count
        done = world.registry.import_lines(EXPORT)
        assert (done.imported, done.skipped) == (2 - count, count)
        with world.registry.claim("moved:2") as claim:
            assert claim.token > EXPORT_FLOOR
        starts_as_if_nothing_was(world)

    return check


def resumes_with(*left: str) -> Callable[[World], None]:
    """The next attempt runs just these of the two steps."""

    def check(world: World) -> None:
        ran: list[str] = []
        with world.registry.claim("t", name="j", on_crash="rerun") as claim:
            assert claim.attempt == 2
            for name in "ab":
                claim.run_step(name, lambda name=name: ran.append(name))  # type: ignore[misc]
        assert (world.witness.read_text(), ran) == ("ab", list(left))

    return check


def slots_are(*rows: str) -> Callable[[World], None]:
    """All of the missed slots have their rows, or none; and whoever looks next runs each of them that may run."""

    def check(world: World) -> None:
        found = [task.evidence or task.status.word for task in world.registry.tasks(prefix="slot@")]
        assert found == list(rows)
        clock = ManualClock(wall_us=4_000_000_000_000_000)
        clock.advance(3 * 3_600)
        with Registry(world.path, clock=clock) as registry:
            registry.scheduled("slot", cron="0 * * * *", coalesce="all", limit=2)(world.job)
            assert len(registry.run_due()) == world.entered() == 2
        assert world.registry.count() == {Status.SUCCEEDED: 2, Status.SKIPPED: 1, Status.UNKNOWN: 1}
        starts_as_if_nothing_was(World(world.registry, world.path, world.witness.with_name("another")))

    return check


def slots_come_again(world: World) -> None:
    """Nothing is taken back, or all of it is: the next look does it, and each slot runs once when its time comes."""
    assert [task.status.word for task in world.registry.tasks(prefix="slot@")] == ["skipped", "succeeded"]
    clock = ManualClock(wall_us=4_000_000_000_000_000)
    with Registry(world.path, clock=clock) as registry:
        registry.may_schedule = Permit  # type: ignore[method-assign]
        registry.scheduled("slot", cron="0 * * * *")(world.job)
        for _ in range(3):
            registry.run_due()
            clock.advance(3_600)
        registry.run_due()
        assert [one.state for one in registry.audit("slot")] == ["run", "run", "run"]
    assert world.entered() == 2
    starts_as_if_nothing_was(World(world.registry, world.path, world.witness.with_name("another")))


def serials_go_on(world: World) -> None:
    """Of the block at which the process died none was given; it is a gap at most."""
    (given,) = world.witness.read_text().split()
    world.witness.unlink()
    number = world.registry.serials("COUP").next()
    assert number > given
    assert number[-10:] != given[-10:]
    starts_as_if_nothing_was(world)


def no_half_copy(world: World) -> None:
    copy = f"{world.path}.copy"
    assert not os.path.exists(copy)
    world.registry.backup(copy)
    with Registry(copy, create=False) as registry:
        assert registry.get("left") is not None
    starts_as_if_nothing_was(world)


def old_schema_serves(world: World) -> None:
    starts_as_if_nothing_was(world)
    open_second(str(world.path)).close()
    with pytest.raises(StoreVersionError):
        world.registry.get("t")


def new_schema_serves(world: World) -> None:
    with pytest.raises(StoreVersionError):
        world.registry.get("t")
    store = open_second(str(world.path))
    assert store.get(["left"])[0] is not None
    store.close()


# The first sync of a process; a rerun claim makes durable what it stands on, once, before it is stored.
IN_A_SYNC = [
    (RUN_HOLD, is_unknown(0)),
    (RUN_HOLD_AGAIN, is_unknown(0)),
    (RUN_RERUN, starts_as_if_nothing_was),
    (RUN_RERUN_AGAIN, is_replayed),
    (BATCH_CLAIM, batch_is(a="runs", b="runs", c="runs")),
    (BATCH, batch_is(a="replayed", b="replayed", c="replayed")),
]

CASES: dict[str, list[tuple[str, Callable[[World], None]]]] = {
    "create.lock-file-written": [(OPEN, starts_as_if_nothing_was)],
    "create.journal-set": [(OPEN, starts_as_if_nothing_was)],
    "create.in-transaction": [(OPEN, starts_as_if_nothing_was)],
    "create.committed": [(OPEN, starts_as_if_nothing_was)],
    "migrate.in-transaction": [(SECOND, old_schema_serves)],
    "migrate.committed": [(SECOND, new_schema_serves)],
    "boot.before-commit": [(OTHER_BOOT, starts_as_if_nothing_was)],
    "owner.byte-held": [(RUN_HOLD, starts_as_if_nothing_was)],
    "claim.decided": [(RUN_FAILED, is_still_claimable)],
    "claim.in-transaction": [(RUN_HOLD, starts_as_if_nothing_was), (RUN_HOLD_AGAIN, starts_as_if_nothing_was)],
    "turn.taken": [
        (RUN_HOLD, starts_as_if_nothing_was),
        (RUN_RERUN, starts_as_if_nothing_was),
        (BATCH_CLAIM, batch_is(a="runs", b="runs", c="runs")),
        (BATCH, batch_is(a="unknown", b="unknown", c="unknown")),
    ],
    "sync.wanted": IN_A_SYNC,
    "sync.begun": IN_A_SYNC,
    "sync.done": IN_A_SYNC,
    "sync.published": IN_A_SYNC,
    "claim.committed": [(RUN_HOLD, is_unknown(0)), (RUN_HOLD_AGAIN, is_unknown(0)), (RUN_RERUN, is_run_again)],
    "claim.granted": [(RUN_HOLD, is_unknown(0)), (RUN_RERUN, is_run_again)],
    "job.returned": [
        (RUN_HOLD, is_unknown(1)),
        (RUN_RERUN, is_run_again),
        (BATCH, batch_is(a="unknown", b="unknown", c="runs")),
    ],
    "finish.in-transaction": [
        (RUN_HOLD, is_unknown(1)),
        (RUN_RERUN, is_run_again),
        (BATCH, batch_is(a="unknown", b="unknown", c="unknown")),
    ],
    "finish.committed": [(RUN_HOLD, is_replayed), (BATCH, batch_is(a="replayed", b="replayed", c="replayed"))],
    "batch.in-transaction": [(BATCH_CLAIM, batch_is(a="runs", b="runs", c="runs"))],
    "batch.committed": [(BATCH_CLAIM, batch_is(a="runs", b="runs", c="runs"))],
    "batch.entered": [
        (BATCH_CLAIM, batch_is(a="unknown", b="runs", c="runs")),
        (BATCH, batch_is(a="unknown", b="unknown", c="unknown")),
    ],
    "settle.decided": [(RESOLVE, left_is(Status.UNKNOWN))],
    "settle.in-transaction": [(RESOLVE, left_is(Status.UNKNOWN))],
    "settle.committed": [(RESOLVE, left_is(Status.SUCCEEDED))],
    "forget.decided": [(FORGET, left_is(Status.UNKNOWN))],
    "forget.in-transaction": [(FORGET, left_is(Status.UNKNOWN))],
    "forget.committed": [(FORGET, left_is(None))],
    "purge.in-transaction": [(PURGE, ended_are(5))],
    "purge.committed": [(PURGE, ended_are(0))],
    "import.in-transaction": [(IMPORT, imported_are(0))],
    "import.committed": [(IMPORT, imported_are(2))],
    "step.in-transaction": [(STEPS, resumes_with("b"))],
    "step.saved": [(STEPS, resumes_with())],
    "serial.in-transaction": [(SERIALS, serials_go_on)],
    "serial.reserved": [(SERIALS, serials_go_on)],
    "slots.in-transaction": [(SLOTS, slots_are())],
    "slots.committed": [(SLOTS, slots_are("over_limit", "pending", "pending"))],
    "slots.rewound": [(SLOTS_AHEAD, slots_come_again)],
    "backup.copied": [(BACKUP, no_half_copy)],
    "place.synced": [(BACKUP, no_half_copy)],
    "transaction.open": [(EFFECT, has_no_effect_yet)],
    "transaction.finished": [(EFFECT, has_no_effect_yet)],
    "sweep.in-transaction": [(SWEEP, is_unknown(0))],
    "sweep.committed": [(SWEEP, is_unknown(0))],
    "sweep.found": [(SWEEP_AGAIN, is_run_again)],
    "renew.in-transaction": [(LEASED_HOLD, is_unknown(1)), (LEASED_RERUN, is_run_again)],
    "renew.committed": [(LEASED_HOLD, is_unknown(1)), (LEASED_RERUN, is_run_again)],
    "command.spawned": [(COMMAND, command_is_unknown)],
    "command.ended": [(COMMAND, command_is_unknown)],
}

# These happen in a file that is there already; the others begin with no file at all.
NEEDS_FILE = ("migrate.", "boot.", "settle.", "forget.", "purge.", "import.", "slots.", "backup.", "place.")

# What a `purge.` and an `import.` are about.
ENDED = 5
EXPORT_FLOOR = (7 << 40) + 3
EXPORT = [
    header_line("0" * 32),
    *(
        task_line(
            Task(f"moved:{n}", Status.FAILED, "a" * 64, 1, 0, "", EXPORT_FLOOR - n, 1, None, Policy(), *[None] * 6)
        )
        for n in range(2)
    ),
    end_line(2, EXPORT_FLOOR),
]


def test_every_fault_point_has_a_case() -> None:
    """A new point cannot come without its proof."""
    assert set(CASES) == set(faults.POINTS)


def leave_unknown(path: Path) -> None:
    """A file with one unknown task in it."""
    with Registry(path) as registry, pytest.raises(ZeroDivisionError):
        registry.run("left", lambda: 1 / 0, unknown_on=ZeroDivisionError)


def leave_ended(path: Path) -> None:
    """Ended tasks in the file, and the lines of an import beside it."""
    with Registry(path, durability="normal") as registry:
        for number in range(ENDED):
            registry.run(f"ended:{number}", lambda: None)
    path.with_name(f"{path.name}.jsonl").write_text("".join(EXPORT))


@pytest.mark.parametrize(
    ("point", "script", "holds"),
    [(point, *case) for point, cases in CASES.items() for case in cases],
    ids=[f"{point}-{number}" for point, cases in CASES.items() for number in range(len(cases))],
)
def test_killed_there(
    point: str,
    script: str,
    holds: Callable[[World], None],
    path: Path,
    tmp_path: Path,
    open_registry: Callable[..., Registry],
) -> None:
    """After SIGKILL at the point the file is sound, nobody is blocked, and the task is what its policy says."""
    witness = tmp_path / "witness"
    if point.startswith(NEEDS_FILE):
        leave_unknown(path)
    if point.startswith(("purge.", "import.")):
        leave_ended(path)
    with Script(HEAD + script, path, witness, point) as killed:
        assert killed.end() == -signal.SIGKILL
    holds(World(open_registry(busy_timeout=5), path, witness))
    check = connect(path, apsw.SQLITE_OPEN_READONLY)
    assert check.pragma("integrity_check") == "ok"
    check.close()
    assert not [name for name in os.listdir(path.parent) if name.endswith("-journal")]
