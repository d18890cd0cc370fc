"""What one process of a recording does: jobs, duplicates, batches, checkpoints, chosen by a seed, and telling of each.

`Teller` tells the moment a caller would learn: inside the body, right behind the return of a call. The names of tasks
say what they are, since every call of a task must say the same: h, r, v for its crash policy (hold, rerun, verify), e
for one whose effect commits with its finish, o for those that operators forget, k for one that keeps its arguments
under rerun, s for one under hold. Those of k and s, and of r where they are claimed by hand, have steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg import Claim, Clock, IdemregError, Outcome, Registry, Status, StoreError, current_claim
from idemreg.aio import AsyncRegistry
from idemreg.aio import current_claim as current_async_claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from idemreg import Task
    from idemreg.sqlite.checkpoints import Mode

__all__ = ["JOB", "KEPT", "POLICIES", "ROLES", "STEPS", "Plan", "recoverable", "work"]

POLICIES: Final = {"h": "hold", "r": "rerun", "v": "verify", "e": "rerun", "o": "hold", "k": "rerun", "s": "hold"}
JOB: Final = "job"
KEPT: Final = "kept"  # the job whose arguments are kept; as a policy, rerun that a caller may rely on
STEPS: Final = ("first", "second")

# How many neighbouring tasks the processes pick from at a time: few, so that they meet.
WIDTH: Final = 6
LOOKS: Final = 40  # a step of a reader

# Every so many results are too long for a row, and lie in the side table.
LONG_EVERY: Final = 7
LONG_TEXT: Final = "x" * 600
BUSY_S: Final = 2.0  # longer than any of them writes; shorter than a test's patience with one that is stopped

CHECKPOINT_WAIT_S: Final = 0.05
CHECKPOINTS: Final[tuple[Mode, ...]] = ("PASSIVE", "PASSIVE", "FULL", "RESTART", "TRUNCATE")
FOREIGN_AUTOCHECKPOINT: Final = 3  # pages


class Plan(NamedTuple):
    """What one process is to do."""

    database: str
    role: str
    seed: int
    steps: int
    first: int  # number of the first task
    durability: str
    boot: int


class Boot(Clock):
    """The clock of the ``number``-th boot of a machine that boots often."""

    def __init__(self, number: int) -> None:
        self._id = f"boot {number}"

    def boot_id(self) -> str:
        return self._id


class JobError(Exception):
    """What a job fails with."""


class Teller:
    """Tells the recorder what a caller was told."""

    def __init__(self) -> None:
        self._fd = os.open(os.environ["POWERCUT_TOLD"], os.O_WRONLY | os.O_CLOEXEC)
        self._seen: set[tuple[str, int, int]] = set()  # a second time is no news

    def __call__(self, kind: str, *values: str | int | None) -> None:
        os.write(self._fd, json.dumps([kind, *values]).encode())

    def outcome(self, outcome: Outcome[Any]) -> None:
        """The caller of `run` got this."""
        kind = "seen" if outcome.replayed else "ended"
        self(kind, outcome.task_id, outcome.token, Status.SUCCEEDED, json.dumps(outcome.result))

    def row(self, task: Task | None) -> None:
        """Somebody was shown this row."""
        if task is None or task.status not in {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}:
            return
        if (seen := (task.task_id, task.token, task.status)) not in self._seen:
            self._seen.add(seen)
            result = task.result if task.status is Status.SUCCEEDED else None
            self("seen", task.task_id, task.token, task.status, result)


class Jobs:
    """One thread's share of the work of a process."""

    def __init__(
        self, plan: Plan, registry: Registry, tell: Teller, chance: Random, stepped: Callable[[], None]
    ) -> None:
        self.plan, self.registry, self.tell, self.chance = plan, registry, tell, chance
        self.stepped = stepped
        self.step = 0
        self.job = recoverable(registry, lambda _task: self.body(current_claim()))

    def steps(self) -> Iterator[None]:
        for step in range(self.plan.steps):
            self.step = step
            yield
            self.stepped()

    def work(self, *kinds: Callable[[Jobs], None]) -> None:
        for _ in self.steps():
            with contextlib.suppress(IdemregError):  # nothing was acknowledged
                self.chance.choice(kinds)(self)

    # --- tasks ----------------------------------------------------------------------------------------------------

    def pick(self, letters: str = "hhhrrv") -> str:
        number = self.plan.first + self.step // 2 + self.chance.randrange(WIDTH)
        return f"{self.chance.choice(letters)}{number}"

    def options(self, task: str) -> dict[str, Any]:
        hook = {"verify": self.verify} if task[0] == "v" else {}
        return {"name": JOB, "on_crash": POLICIES[task[0]], **hook}

    def verify(self, prior: Task) -> bool:
        """Nothing here has effects outside, so it did not happen."""
        self.tell("ending", prior.task_id, prior.token, Status.FAILED, None)
        return False

    def body(self, claim: Any) -> str:
        """The job: succeeds, or fails now and then."""
        task, token = claim.task_id, claim.token
        self.tell("granted", task, token, KEPT if task[0] == "k" else POLICIES[task[0]])
        if task[0] == "k":
            self.steps_of(claim)
        return self.entered(task, token)

    def steps_of(self, claim: Claim) -> None:
        """The pieces of a job, each told as its body is entered, and as its caller learns that it is done."""
        task, token = claim.task_id, claim.token
        for name in STEPS:
            result = f"{task}.{name}#{token}"

            def piece(name: str = name, result: str = result) -> str:
                self.tell("stepping", task, name, json.dumps(result))
                return result

            try:
                given = claim.run_step(name, piece)
            except StoreError:  # the job is interrupted: under rerun it is put back
                self.tell("ending", task, token, Status.PENDING, None)
                raise
            self.tell("stepped", task, name, json.dumps(given))

    def entered(self, task: str, token: int) -> str:
        self.tell("entered", task, token, POLICIES[task[0]])
        if self.chance.random() < 0.15:
            self.tell("ending", task, token, Status.FAILED, None)
            msg = f"{task}#{token}"
            raise JobError(msg)
        result = f"{task}#{token}" + (LONG_TEXT if token % LONG_EVERY == 0 else "")
        self.tell("ending", task, token, Status.SUCCEEDED, json.dumps(result))
        return result

    def failed(self, error: JobError) -> None:
        """`run` or a ``with`` has stored the failure of its job."""
        task, _, token = str(error).partition("#")
        self.tell("ended", task, int(token), Status.FAILED, None)

    # --- what may happen in a step ----------------------------------------------------------------------------------

    def run(self) -> None:
        """The usual call; often of a task that is done, or runs elsewhere."""
        self.call(self.pick())

    def call(self, task: str) -> None:
        try:
            self.tell.outcome(self.registry.run(task, lambda: self.body(current_claim()), **self.options(task)))
        except JobError as error:
            self.failed(error)

    def claim(self) -> None:
        """A claim by hand, now and then released."""
        task = self.pick("hhhrrvss")
        with self.registry.claim(task, **self.options(task)) as claim:
            self.tell("granted", task, claim.token, POLICIES[task[0]])
            if self.chance.random() < 0.2:
                self.release(claim)
                return
            if task[0] in "rs":
                self.steps_of(claim)
            try:
                claim.result = self.entered(task, claim.token)
            except JobError as error:
                claim.fail(error)
                self.failed(error)
                return
        self.tell("ended", task, claim.token, Status.SUCCEEDED, json.dumps(claim.result))

    def release(self, claim: Claim) -> None:
        status = released(claim)
        self.tell("ending", claim.task_id, claim.token, status, None)
        claim.release()
        self.tell("ended", claim.task_id, claim.token, status, None)

    def keep(self) -> None:
        """A job whose arguments are kept, called as anybody would."""
        try:
            self.tell.outcome(self.job(self.pick("k")))
        except JobError as error:
            self.failed(error)

    def sweep(self) -> None:
        """What the dead have left is run again with its arguments, or settled."""
        for one in self.registry.sweep():
            if one.outcome is not None:
                self.tell.outcome(one.outcome)
            elif isinstance(one.error, JobError):
                self.failed(one.error)

    def effect(self) -> None:
        """An effect in the same file, in one commit with the finish."""
        task = self.pick("e")
        with self.registry.claim(task, **self.options(task)) as claim:
            self.tell("granted", task, claim.token, "rerun")
            with claim.transaction() as transaction:
                claim.result = f"{task}#{claim.token}"
                self.tell("entered", task, claim.token, "rerun")
                self.tell("ending", task, claim.token, Status.SUCCEEDED, json.dumps(claim.result))
                transaction.execute("CREATE TABLE IF NOT EXISTS effect (task TEXT, token INTEGER)")
                transaction.execute("INSERT INTO effect VALUES (?, ?)", (task, claim.token))
        self.tell("ended", task, claim.token, Status.SUCCEEDED, json.dumps(claim.result))

    def batch(self) -> None:
        """Several at once: claimed by one commit, ended by one, and the last left for later."""
        policy = self.chance.choice("hr")
        tasks = sorted({self.pick(policy) for _ in range(5)})
        answers = self.registry.claim_many([(task, None) for task in tasks], **self.options(tasks[0]))
        claims = [answer for answer in answers if isinstance(answer, Claim)]
        for claim in claims:
            self.tell("granted", claim.task_id, claim.token, POLICIES[policy])
        done = []
        try:
            for claim in claims:
                claim.enter()
                try:
                    done.append((claim, self.entered(claim.task_id, claim.token)))
                except JobError as error:
                    claim.fail(error)
                    self.failed(error)
        except IdemregError:
            for claim in claims:
                if not claim.is_entered:  # dropped with this, and so put back
                    self.tell("ending", claim.task_id, claim.token, released(claim), None)
            raise
        for outcome in self.registry.finish_many(done):
            if isinstance(outcome, Outcome):
                self.tell("ended", outcome.task_id, outcome.token, Status.SUCCEEDED, json.dumps(outcome.result))

    def look(self) -> None:
        """Whoever gets a final row may rely on it."""
        with contextlib.suppress(StoreError):  # a sync has failed: nothing is told
            self.tell.row(self.registry.get(self.pick("hhrveks")))

    def overlook(self) -> None:
        """The same of whoever gets a list."""
        with contextlib.suppress(StoreError):
            for task in self.registry.tasks():
                if task.task_id[0] != "o":  # it may be forgotten meanwhile, and then nobody owes it
                    self.tell.row(task)

    def settle(self) -> None:
        """An operator decides about an unknown task. One process at a time does this."""
        for task in self.registry.tasks(status=Status.UNKNOWN):
            if task.task_id[0] in "hs" and task.attempt:
                verdict = self.chance.choice(("happened", "did-not-happen"))
                status = Status.SUCCEEDED if verdict == "happened" else Status.FAILED
                result = json.dumps("by hand") if verdict == "happened" else None
                self.tell("ending", task.task_id, task.token, status, result)
                self.registry.resolve(task.task_id, verdict, result="by hand" if result else None)  # type: ignore[arg-type]
                self.tell("ended", task.task_id, task.token, status, result)
                return

    def forget(self) -> None:
        """A task runs, is forgotten, and may run again. One process at a time does this."""
        task = f"o{self.plan.first}"
        self.call(task)
        self.tell("forgetting", task)
        self.registry.forget(task)

    def checkpoint(self) -> None:
        self.registry.checkpoint(self.chance.choice(CHECKPOINTS), wait=CHECKPOINT_WAIT_S)

    def visit(self) -> None:
        self.chance.choice(USUAL)(self)
        self.registry.close()

    def reopen(self) -> None:
        """Close, and so, where nobody else has the file open, checkpoint and delete the -wal."""
        self.registry.close()


def released(claim: Claim) -> Status:
    """What a task is that is put back: it keeps a failure that it had."""
    prior = claim.grant.prior
    return Status.FAILED if prior is not None and prior.status is Status.FAILED else Status.PENDING


def recoverable(registry: Registry, body: Callable[[str], str]) -> Callable[[str], Outcome[str]]:
    """The job that any process can run again with the arguments that are kept of it."""

    def job(task: str) -> str:
        return body(task)

    decorate = registry.idempotent(lambda task: task, name=KEPT, on_crash="rerun", recover=True)
    return decorate(job).call


USUAL: Final = (Jobs.run, Jobs.run, Jobs.run, Jobs.claim, Jobs.keep, Jobs.look, Jobs.effect)


def jobs(one: Jobs) -> None:
    """One thread, all kinds of calls."""
    one.work(*USUAL, Jobs.batch, Jobs.sweep, Jobs.reopen)


def visitors(one: Jobs) -> None:
    """Opens and closes for every call: so it is often the first, and the last, which deletes the -wal."""
    one.work(Jobs.visit)


def last(one: Jobs) -> None:
    """Opens the file and closes it, with nobody else there."""
    with contextlib.suppress(IdemregError):
        one.registry.open()


def readers(one: Jobs) -> None:
    """Looks again and again at what the others are working on."""
    for _ in one.steps():
        for _ in range(LOOKS):
            one.chance.choice((Jobs.look, Jobs.overlook))(one)


def threads(one: Jobs) -> None:
    """Three threads over one registry."""

    def thread(number: int) -> None:
        chance = Random(one.plan.seed + number)
        Jobs(one.plan, one.registry, one.tell, chance, one.stepped).work(*USUAL, Jobs.batch)

    running = [threading.Thread(target=thread, args=(number,)) for number in range(3)]
    for each in running:
        each.start()
    for each in running:
        each.join()


def coroutines(one: Jobs) -> None:
    """Many calls at once on one event loop."""

    async def run(registry: AsyncRegistry) -> None:
        task = one.pick("hr")

        async def body() -> str:
            return one.body(current_async_claim())

        try:
            one.tell.outcome(await registry.run(task, body, **one.options(task)))
        except JobError as error:
            one.failed(error)
        except IdemregError:
            pass

    async def main() -> None:
        async with AsyncRegistry.of(one.registry) as registry:
            for _ in one.steps():
                await asyncio.gather(*(run(registry) for _ in range(6)))

    asyncio.run(main())


def keeper(one: Jobs) -> None:
    """Checkpoints of all modes, an operator's work, sweeps, and a few jobs."""
    one.work(Jobs.checkpoint, Jobs.checkpoint, Jobs.checkpoint, Jobs.settle, Jobs.forget, Jobs.sweep, Jobs.run)


def foreign(one: Jobs) -> None:
    """Another program: SQLite with page checksums at NORMAL, a tiny automatic checkpoint, a table of its own beside."""
    import apsw  # noqa: PLC0415 - the workers that use idemreg do so through it

    from idemreg.sqlite.pages import vfs  # noqa: PLC0415

    for _ in one.steps():
        with contextlib.suppress(apsw.Error):  # busy, or there is no file yet
            flags = apsw.SQLITE_OPEN_READWRITE
            connection = apsw.Connection(one.plan.database, flags=flags, vfs=vfs())
            try:
                connection.set_busy_timeout(round(BUSY_S * 1_000))
                connection.pragma("synchronous", 1)
                connection.pragma("wal_autocheckpoint", FOREIGN_AUTOCHECKPOINT)
                if not connection.pragma("application_id"):
                    continue  # whoever comes first to an empty file makes it his own
                connection.execute("CREATE TABLE IF NOT EXISTS another (n, data)")
                for number in range(4):
                    connection.execute("INSERT INTO another VALUES (?, randomblob(100))", (one.step * 10 + number,))
                if one.chance.random() < 0.3:
                    connection.execute("DELETE FROM another WHERE n % 3 = 0")
            finally:
                connection.close()


ROLES: Final[dict[str, Callable[[Jobs], None]]] = {
    role.__name__: role for role in (jobs, visitors, last, readers, threads, coroutines, keeper, foreign)
}


def work(plan: Plan, stepped: Callable[[], None], *, leave: bool) -> None:
    """Carry a plan out; ``stepped`` hears of every step. ``leave``: do not close the registry at the end."""
    registry = Registry(
        plan.database,
        durability=plan.durability,  # type: ignore[arg-type]
        busy_timeout=BUSY_S,
        clock=Boot(plan.boot),
    )
    ROLES[plan.role](Jobs(plan, registry, Teller(), Random(plan.seed), stepped))
    if not leave:
        registry.close()
