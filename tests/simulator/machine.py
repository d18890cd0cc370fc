"""A virtual machine: processes that run one at a time, time that passes when it is told to, death and reboot.

Each virtual process has a thread (`crew.py`), and only one of them runs. Whoever comes past a named fault point, naps,
or takes a step in a job hands control to the machine, which decides by chance, from a seed alone, who goes on: itself,
another, or one that dies here. Files, locks and SQLite are real. What is not: the clock (`VirtualClock`), the process
ids that an owner's record tells of, the owners' numbers, and the sync of the -wal, which is noted instead (`seams.py`).

*Death.* A virtual process that dies never goes on. What the kernel would do is done in its place: its descriptors are
closed, and with them its locks; its connections are closed with a rollback, without a checkpoint. Its thread is then
unwound by `DiedError`. What the product's own clean-up tries meanwhile finds every descriptor closed and a clock that
raises, so that a dead process changes nothing.

*Leases.* The heartbeat of a virtual process is no thread: its job lets it beat (`work.py`), or does not for so long
that the lease expires. So it comes at any step of the job, as a thread's would, but never amid another call.

*Reboot.* All die at once. With a power cut the -wal then loses what no sync has covered, or a part of it.
"""

from __future__ import annotations

import _thread
import contextlib
import random
from collections import Counter
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

from idemreg import oslock
from idemreg.clock import Clock
from idemreg.heartbeat import Heart
from idemreg.lockfile import owner_byte
from idemreg.sqlite import forking
from idemreg.sqlite.connection import leave_wal

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg import Registry
    from idemreg.lockfile import LockFile
    from tests.simulator.crew import Crew, Member

__all__ = ["DiedError", "Doing", "Machine", "Process", "Style", "VirtualClock"]

WALL_US: Final = 1_795_402_800_000_000
BOOT_MS: Final = 3_600_000
STEPS_LIMIT: Final = 6_000  # of one schedule: somebody waits for ever
PATIENCE_S: Final = 60  # of the real clock, for a whole schedule: the simulator itself is broken
CRASHES_LIMIT: Final = 3
PAUSES_S: Final = (0.001, 0.01, 0.05, 0.2)  # of a process that is stopped
LONG_PAUSES_S: Final = (*PAUSES_S, 1.2, 2.5)  # where there are leases, which last a second or two
JUMPS_US: Final = (1_000_000, 3_600 * 10**6, 100 * 365 * 86_400 * 10**6)
# Where a stop, a death and a reboot are most telling.
FOCUSES: Final = (
    *("",) * 8,
    *("sync.",) * 6,  # all of a sync's
    *("sync.wanted", "sync.begun", "sync.done") * 2,
    "turn.taken",
    "claim.in-transaction",
    "claim.committed",
    "claim.granted",
    "job.returned",
    "batch.entered",
    "step.",
    "sweep.",
    "renew.",
    "finish.in-transaction",
    "finish.committed",
    "nap",
)
LEASES, STEPS, RECOVERS = 0.3, 0.3, 0.3  # shares of the schedules that have them
SWEPT: Final = ("sweep.found", "sweep.found", "in the job")  # the focus of some of those in which somebody sweeps
STEPPED: Final = ("sync.wanted", "sync.begun", "in the step")  # and of some in which jobs have steps
FOCUSED: Final = 0.3  # chance there that the process is stopped; a third of that, that it dies
IN_A_JOB: Final = frozenset({"in the job", "job.returned", "in the hook"})
ADOPTS: Final = "boot.before-commit"  # in a transaction that SQLite itself syncs
DECIDES: Final = "claim.decided"  # over a row, by what its owner's byte and notes say at that moment
TELLING: Final = {"told": 1.0, "in the job": 0.5}  # where a power cut shows what was told too early
ROUNDING: Final = 1e-9
SHOWN: Final = 60  # last steps of a violating schedule, unless it is tried alone


class DiedError(BaseException):
    """The virtual process is dead, and nothing of it goes on."""


class Style(NamedTuple):
    """How a schedule goes, drawn once for each: chances at each step, and seconds."""

    switch: float  # another process goes on
    crash: float  # this process dies
    kill: float  # another one dies, wherever it is
    stop: float  # this process is stopped for a while
    lose: float  # this process loses its locks, and lives on
    reboot: float
    reboots: int  # at most
    reboot_told: float  # behind an answer, and half of it in a job
    jump: float  # the wall clock jumps
    focus: str  # the points at which most of it happens begin so; or none
    step_s: float  # that a step takes, at most
    is_cut: bool  # a reboot is a power cut
    namespaces: int  # of process ids
    leases: bool  # most tasks are claimed with one
    steps: bool  # most jobs have some
    recovers: bool  # most jobs keep their arguments, and somebody sweeps

    @classmethod
    def draw(cls, rng: random.Random) -> Style:
        """A style by chance. Each kind of fault is left out in some of them."""
        recovers, steps, is_usual = rng.random() < RECOVERS, rng.random() < STEPS, rng.random() < 0.5
        focuses = FOCUSES if is_usual else SWEPT if recovers else STEPPED if steps else FOCUSES
        return cls(
            switch=rng.choice((0.05, 0.2, 0.5, 0.9)),
            crash=rng.choice((0.02, 0.05) if recovers else (0.0, 0.005, 0.02, 0.05)),
            kill=rng.choice((0.0, 0.005, 0.01)),
            stop=rng.choice((0.0, 0.0, 0.005, 0.02)),
            lose=rng.choice((0.0, 0.0, 0.3)),
            reboot=rng.choice((0.0, 0.0, 0.005, 0.01)),
            reboots=rng.choice((1, 1, 1, 2)),
            reboot_told=rng.choice((0.0, 0.1, 0.3, 0.3) if steps else (0.0, 0.0, 0.1, 0.3)),
            jump=rng.choice((0.0, 0.0, 0.01)),
            focus=rng.choice(focuses),
            step_s=rng.choice((0.00001, 0.0001, 0.0005)),
            is_cut=rng.random() < 0.7,
            namespaces=rng.choice((1, 2)),
            leases=rng.random() < LEASES,
            steps=steps,
            recovers=recovers,
        )


class Doing(NamedTuple):
    """What a process was told to do, as far as it allows a row to change."""

    kind: str
    task: str = ""
    option: str = ""
    end: str = ""  # of its jobs
    lease_s: float | None = None  # that it claims with
    kept: str | None = None  # the argument that its claim keeps


class VirtualClock(Clock):
    """The machine's time, as one process sees it. It passes by steps alone, so no thread can wait for it."""

    is_real = False

    def __init__(self, process: Process) -> None:
        self.process = process
        self._machine = process.machine

    def wall_us(self) -> int:
        """Microseconds since the epoch."""
        self.process.check()
        return self._machine.wall_us + round(self._machine.now * 1e6)

    def boot_ms(self) -> int:
        """Milliseconds since boot."""
        self.process.check()
        return self._machine.boot_ms()

    def monotonic(self) -> float:
        """Seconds."""
        self.process.check()
        return self._machine.now

    def sleep(self, pause: float) -> None:
        """Hand control over for so long."""
        self._machine.step(self.process, "nap", pause)

    def boot_id(self) -> str:
        """The identity of this boot."""
        self.process.check()
        return f"boot-{self._machine.boot}"


class Process:
    """One incarnation of a virtual process."""

    def __init__(self, machine: Machine, slot: int, life: int, wake: float) -> None:
        self.machine = machine
        self.slot = slot
        self.pid = 100 + slot  # again in its next life: only the start time tells them apart
        self.started = life
        self.namespace = 1 + slot % machine.style.namespaces
        self.clock = VirtualClock(self)
        self.wake = wake  # goes on from then on
        self.ran_at = machine.now
        self.member: Member | None = None  # the thread that carries it out
        self.kill = False  # dies as soon as it is to go on
        self.is_dead = False
        self.died_at = 0.0
        self.is_over = False
        self.adopts = False  # the file, for a new boot
        self.decided_at = 0.0  # over the last row that it may claim
        self.has_lost = False  # its locks, while it lives
        self.owners: list[int] = []
        self.lock_files: list[LockFile] = []
        self.registry: Registry | None = None
        self.decorated: Any = None  # its function that keeps its arguments
        self.call: Any = None  # what it is at, for those
        self.doing = Doing("open")
        self.begun_ms = 0  # when it began what it is at
        self.in_step: tuple[str, int, str] | None = None  # the task, token and name of the step that it is in
        self.heart = Heart()

    @property
    def gate(self) -> _thread.LockType:
        assert self.member is not None
        return self.member.gate

    def __repr__(self) -> str:
        return f"process {self.slot}.{self.started}"

    @property
    def may_be_taken_for_dead(self) -> bool:
        """Dead; or seen from another namespace, where its lock alone speaks, and it has lost that."""
        return self.is_dead or (self.has_lost and self.machine.style.namespaces > 1)

    def check(self) -> None:
        """Nothing of a dead process goes on."""
        if self.is_dead:
            raise DiedError

    def die(self) -> None:
        """What the kernel does at the death of a process. In its own thread, before anything is unwound."""
        self.is_dead = True
        self.died_at = self.machine.now
        self.machine.when_dead(self)
        if self.registry is not None:
            opening: Any = self.registry.store._opening  # type: ignore[attr-defined]
            for opened in [*opening._closing, *([opening.current] if opening.current else [])]:
                self._close(opened)
        for lock_file in self.lock_files:
            lock_file.close()
        self._close_connections()

    def _close(self, opened: Any) -> None:
        opened.is_closed = True
        database = opened.database
        database._closed = True
        if database.index is not None:
            database.index.close()  # before its connection: it looks through that one's memory
        if database.sync is not None:
            database.sync.close()
        if database.guard is not None:
            database.guard.close()
        database.turns.close()
        for idle in database._idle.values():
            idle.clear()
        opened.lock_file.close()

    def _close_connections(self) -> None:
        for connection in self.connections():
            forking.inside.pop(connection, None)
            # One that is in the middle of a statement, where its busy handler naps, ends with that statement.
            with contextlib.suppress(apsw.Error):
                leave_wal(connection)
                connection.close()

    def connections(self) -> list[Any]:
        """Its connections that are open."""
        some: list[Any] = apsw.connections()
        return [one for one in some if getattr(one, "patience", None) and one.patience._clock is self.clock]

    def exit(self) -> None:
        """It ends in order. Claims that it could not end keep its files open until then."""
        if self.connections():
            self.die()

    def bury(self) -> None:
        """Behind the last of its thread: nothing is left of it."""
        if self.is_dead:
            self._close_connections()
            if self.registry is not None:
                opening: Any = self.registry.store._opening  # type: ignore[attr-defined]
                opening.current, opening._closing = None, []
            for ticket, thread in list(forking.inside.items()):
                if thread == _thread.get_ident():
                    del forking.inside[ticket]
        self.registry = self.call = self.decorated = None


class Machine:
    """Runs one schedule."""

    def __init__(self, seed: int, crew: Crew) -> None:
        self._crew = crew
        self.rng = random.Random(seed)
        self.style = Style.draw(self.rng)
        self.now = 1.0
        self.wall_us = WALL_US
        self.boot = 1
        self.processes: list[Process] = []
        self.running: Process | None = None
        self.trace: list[tuple[int, str, str]] = []
        self.events: Counter[str] = Counter()
        self.owner_of: dict[int, Process] = {}
        self.violation = ""
        self.is_calm = False  # nothing befalls anybody any more
        self.parks: list[tuple[float, float]] = []  # when somebody went on, and for how long he had stood still
        self.look: Callable[[Process], None] = _nothing  # behind each step
        self.when_dead: Callable[[Process], None] = _nothing
        self.when_over: Callable[[Process], None] = _nothing
        self.when_down: Callable[[], None] = lambda: None  # all are dead, before the next boot
        self._most: dict[str, float] = {}  # by point: a chance above it lets nothing befall anybody
        self._lives = 0
        self._crashes = 0
        self._is_rebooting = False
        self._fallen: list[Process] = []  # over, and not told of
        self._done = _thread.allocate_lock()
        self._done.acquire()

    # --- running ----------------------------------------------------------------------------------------------------

    def start(self, slot: int, main: Callable[[Process], None], delay: float = 0.0) -> Process:
        """A new process, which goes on with the others."""
        self._lives += 1
        process = Process(self, slot, self._lives, self.now + delay)
        self.processes.append(process)
        process.member = self._crew.take(lambda: self._live(process, main))
        return process

    def run(self) -> None:
        """Let all that were started run, until none is left."""
        first = self._next()
        if first is not None:
            self._let(first)
            if not self._done.acquire(timeout=PATIENCE_S):
                msg = "a virtual process does not hand control over"
                raise AssertionError(msg)

    def _live(self, process: Process, main: Callable[[Process], None]) -> None:
        try:
            if process.kill:
                process.die()
            else:
                main(process)
                process.exit()
        except DiedError:
            if not process.is_dead:
                self.fail("the simulator's own death reached a living process")
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
            if not process.is_dead:  # of a dead one: what its clean-up made of the death
                self.fail(_told(error))
                process.die()
        finally:
            self._end(process)

    def _end(self, process: Process) -> None:
        try:
            if not process.is_dead:
                self.look(process)
            process.bury()
            process.is_over = True
            self.processes.remove(process)
            self._fallen.append(process)
            if self._is_rebooting and not self.processes:
                self._is_rebooting = False
                self.boot += 1
                self.when_down()
            while self._fallen and not self._is_rebooting:
                self.when_over(self._fallen.pop(0))
        except BaseException as error:  # noqa: BLE001 - as above
            self.fail(_told(error))
        member = process.member
        assert member is not None
        member.is_over()
        self._crew.give_back(member)
        following = self._next()
        if following is None:
            self.running = None
            self._done.release()
        else:
            self._let(following)

    def _let(self, process: Process) -> None:
        self.running = process
        process.gate.release()

    def _next(self) -> Process | None:
        processes = self.processes
        for process in processes:
            if process.kill:
                return process
        if not processes:
            return None
        ready = [one for one in processes if one.wake <= self.now]
        if not ready:
            self.now = min(one.wake for one in processes)
            ready = [one for one in processes if one.wake <= self.now]
        return ready[0] if len(ready) == 1 else self.rng.choice(ready)

    # --- steps ------------------------------------------------------------------------------------------------------

    def reach(self, point: str) -> None:
        """The running process comes past a fault point."""
        assert self.running is not None
        if point == ADOPTS:
            self.running.adopts = True
        elif point == DECIDES:
            self.running.decided_at = self.now
        self.step(self.running, point)

    def step(self, process: Process, point: str, pause: float = 0.0) -> None:
        """The process is at the point; who goes on is decided here. Returns when that process does."""
        if process.is_dead:
            raise DiedError
        self.look(process)
        rng = self.rng
        self.now += rng.random() * self.style.step_s
        process.wake = self.now + pause
        process.ran_at = self.now
        event = "" if self.is_calm else self._befall(process, point)
        stays = not event and not pause and rng.random() >= self.style.switch
        following = process if stays or event == "crash" else self._next()
        assert following is not None  # this one is there
        self.trace.append((process.slot, point, event or ("" if following is process else str(following.slot))))
        if len(self.trace) > STEPS_LIMIT:
            self.fail(f"{STEPS_LIMIT} steps, and no end: {process} waits for ever, at {process.doing}")
        if following is not process:
            self._let(following)
            process.gate.acquire()
            self._note_park(process, pause)
        if process.kill:
            process.die()
            raise DiedError

    def _note_park(self, process: Process, pause: float) -> None:
        length = self.now - process.ran_at - pause
        if length > 0:
            self.parks.append((self.now, length))

    def stood_still(self, since: float, length: float, but: Process) -> bool:
        """Whether others stood still for so long since then, all in all: each might have had the turn to write."""
        still = sum(self.now - max(one.ran_at, since) for one in self.processes if one is not but)
        return still + sum(lasted for end, lasted in self.parks if end >= since) >= length

    def _befall(self, process: Process, point: str) -> str:
        style, chance = self.style, self.rng.random()
        if (most := self._most.get(point)) is None:
            most = self._most[point] = _most(style, point)
        if chance > most:
            return ""
        is_focus = bool(style.focus) and point.startswith(style.focus)
        if (chance := chance - style.crash - is_focus * FOCUSED / 3) < 0:
            return self._kill(process, "crash")
        if (chance := chance - style.kill) < 0:
            return self._kill(self.rng.choice(self.processes), "kill")
        if (chance := chance - style.stop - is_focus * FOCUSED) < 0:
            return self._stop(process)
        if (chance := chance - style.lose * (point in IN_A_JOB)) < 0:
            return self._lose(process)
        if (chance := chance - style.reboot - style.reboot_told * TELLING.get(point, 0.0)) < 0:
            return self._reboot()
        if chance - style.jump < 0:
            self.wall_us += self.rng.choice((-1, 1)) * self.rng.choice(JUMPS_US)
            self.events["clock jumps"] += 1
            return "jump"
        return ""

    def _stop(self, process: Process) -> str:
        pause = self.rng.choice(LONG_PAUSES_S if self.style.leases else PAUSES_S)
        process.wake += pause
        self.events["stops"] += 1
        return f"stop {pause:g}"

    def _kill(self, process: Process, event: str) -> str:
        if self._crashes >= CRASHES_LIMIT:
            return ""
        self._crashes += 1
        self.events["crashes"] += 1
        process.kill = True
        return event if event == "crash" else f"{event} {process.slot}"

    def _lose(self, process: Process) -> str:
        if process.has_lost or not process.owners or not process.lock_files:
            return ""
        process.has_lost = True
        self.events["lost locks"] += 1
        lock_file = process.lock_files[-1]
        for owner in process.owners:
            if lock_file.fd >= 0:
                oslock.unlock(lock_file.fd, owner_byte(owner))
        process.wake += self.rng.choice(PAUSES_S)  # others find it out meanwhile
        return "lose"

    def _reboot(self) -> str:
        if self.boot > self.style.reboots:
            return ""
        self.events["power cuts" if self.style.is_cut else "reboots"] += 1
        self._is_rebooting = True
        for process in self.processes:
            process.kill = True
        return "reboot"

    # --- what it tells ----------------------------------------------------------------------------------------------

    def boot_ms(self) -> int:
        """Milliseconds since boot: they go on over a reboot, whose epoch tells the boots apart."""
        return BOOT_MS + round(self.now * 1e3)

    def new_owner(self) -> int:
        """A number for an owner of the running process."""
        number = self.rng.getrandbits(61) + 1
        if self.running is not None:
            self.owner_of[number] = self.running
            self.running.owners.append(number)
        return number

    def process_of(self, pid: int, namespace: int) -> Process | None:
        """The living process with that id."""
        alive = (one for one in self.processes if not one.is_dead)
        return next((one for one in alive if (one.pid, one.namespace) == (pid, namespace)), None)

    def fail(self, what: str) -> None:
        """A promise is broken. The first counts; everybody dies."""
        self.violation = self.violation or what
        self.is_calm = True
        for process in self.processes:
            process.kill = True

    def digest(self) -> int:
        """64 bits of what happened: who was where, and what was decided there."""
        return int.from_bytes(blake2b(repr(self.trace).encode(), digest_size=8).digest(), "big")

    def story(self, *, is_whole: bool) -> str:
        """The trace in one line: ``slot point (decision)``; steps in a row of one process without its number."""
        words, before = [], -1
        for slot, point, decision in self.trace if is_whole else self.trace[-SHOWN:]:
            who = "" if slot == before else f"| {slot}: "
            words.append(f"{who}{point}" + (f" ({decision})" if decision and not decision.isdigit() else ""))
            before = slot
        return " ".join(words)


def _most(style: Style, point: str) -> float:
    """What `Machine._befall` takes from a chance at the point, all in all, and a little more than rounding may do."""
    focused = FOCUSED / 3 + FOCUSED if style.focus and point.startswith(style.focus) else 0.0
    told = style.reboot_told * TELLING.get(point, 0.0)
    lost = style.lose * (point in IN_A_JOB)
    return style.crash + style.kill + style.stop + focused + lost + style.reboot + told + style.jump + ROUNDING


def _nothing(_process: Process) -> None:
    """Nobody wants to know."""


def _told(error: BaseException) -> str:
    import traceback  # noqa: PLC0415 - failures only

    return "".join(traceback.format_exception(error)[-4:]).replace("\n", " / ")
