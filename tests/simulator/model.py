"""What must hold, told without the product: by what an observer sees in the file, and by what the jobs say themselves.

The observer has a connection of its own and looks after each step: whatever was committed is compared with what was
there before, with who ran, what he was told to do, and who is dead in truth. None of the product's decisions is asked.
The numbers of statuses and verdicts, and the layout of a policy, are those of schema.sql, written down once more; so
are the rules of what lies beside a task's row (`beside.py`): its lease, its kept arguments, its steps.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

from idemreg.sqlite.walindex import WalIndex
from tests.simulator import beside
from tests.simulator.beside import EPOCH_BITS, Lease, Step

if TYPE_CHECKING:
    from tests.simulator.machine import Doing, Machine, Process

__all__ = ["Body", "Observer", "Row", "expected"]

PENDING, SUCCEEDED, FAILED, RUNNING, UNKNOWN, SKIPPED, CANCELLED = beside.STATUSES
FINAL: Final = beside.FINAL
HAPPENED, DID_NOT_HAPPEN, CANNOT_TELL, RETRY = 1, 2, 3, 4
RERUN, VERIFY, HOLD = 0, 1, 2
FRAME_BYTES: Final = 24 + 2_048
WAL_HEADER_BYTES: Final = 32

ROWS: Final = "SELECT task_id, status, token, attempt, owner, policy, verdict, result, note FROM idempotent_log"
LEASES: Final = "SELECT task_id, token, until_stamp FROM idempotent_lease"
KEPT: Final = "SELECT task_id, arguments FROM idempotent_argument"
STEPS: Final = "SELECT task_id, name, token, result FROM idempotent_step ORDER BY task_id, number"


class Row(NamedTuple):
    """A task as it stands in the file, with what lies beside its row."""

    status: int
    token: int
    attempt: int
    owner: int | None
    policy: int
    verdict: int | None
    result: str | None
    note: int | None
    lease: Lease | None = None
    kept: str | None = None
    steps: tuple[Step, ...] = ()

    @property
    def on_crash(self) -> int:
        return self.policy & 3


class Body(NamedTuple):
    """A job's body that was entered and not left."""

    process: Process
    task: str
    token: int


def expected(task: str, token: int, *, is_settled: bool) -> Any:
    """The result that a task must have: what its job returned, or what somebody settled it with."""
    return {"settled": task} if is_settled else {"task": task, "n": token, "pair": (1, token)}


class Observer:
    """Sees each commit and each body. `Machine.fail` where something must not be."""

    def __init__(self, machine: Machine, path: str) -> None:
        self._machine = machine
        self._path = path
        self._connection: apsw.Connection | None = None
        self._index: WalIndex | None = None
        self._seen = b""
        self.rows: dict[str, Row] = {}
        self.effects: frozenset[tuple[str, int]] = frozenset()  # what jobs have written beside their success
        self.floor = 0
        self.history: list[dict[str, Row]] = [{}]
        self._first: dict[tuple[Any, ...], int] = {}  # where in the history a state of a task came up last
        self._required = 0  # so far the history was told to somebody, and must outlive a power cut
        self._highest: dict[str, int] = {}  # token of each task, ever
        self.bodies: list[Body] = []
        self._entered: dict[tuple[str, int], float] = {}  # and when
        self._hooks: set[tuple[str, int]] = set()  # claims that are for a verify hook
        self.blocked: dict[str, int] = {}  # tasks that began, under hold or verify, and died with their process
        self._replaced: set[tuple[str, int]] = set()  # claims that others ended, or took over
        self.interrupted: set[tuple[str, int]] = set()  # claims whose job could not save a step, or was told to stop
        self._synced = (b"", 0)  # salts of the -wal, and frames of it that the disk has

    @property
    def now(self) -> int:
        """Where the history ends."""
        return len(self.history) - 1

    # --- the file ---------------------------------------------------------------------------------------------------

    def look(self, process: Process) -> None:
        """See what was committed since the last look, all of it by the process."""
        if self._index is None:
            if not self._may_open():
                return
            self._open()
        assert self._index is not None
        if self._index.copies.raw == self._seen:
            return
        effects = self.effects
        rows, floor = self._read()
        before, self.rows = self.rows, rows
        if effects != self.effects:
            self._judge_effects(process, effects)
        if floor < self.floor:
            self._fail(f"the token floor fell from {self.floor} to {floor}", process)
        self.floor = floor
        if rows == before:
            return
        self.history.append(rows)
        for task in before.keys() | rows.keys():
            old, new = before.get(task), rows.get(task)
            if old != new:
                self._first[_state(task, new)] = self.now
                self._judge(process, task, old, new)

    def _may_open(self) -> bool:
        """Not as the first: to bring the -wal up again after a death is the product's work."""
        return bool(apsw.connections())

    def _open(self) -> None:
        self._connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READWRITE)
        self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
        self._index = WalIndex(self._connection)

    def close(self) -> None:
        """Leave the file, for the next look to open it."""
        if self._connection is not None and self._index is not None:
            self._index.close()
            self._connection.close()
        self._connection = self._index = None
        self._seen = b""

    def _read(self) -> tuple[dict[str, Row], int]:
        assert self._connection is not None
        assert self._index is not None
        connection = self._connection
        connection.execute("BEGIN")
        rows: Any = connection.execute(ROWS).fetchall()
        others: tuple[Any, ...] = tuple(connection.execute(sql).fetchall() for sql in (LEASES, KEPT, STEPS))
        leases = {task: Lease(*lease) for task, *lease in others[0]}
        kept = dict(others[1])
        steps: dict[str, tuple[Step, ...]] = {}
        for task, *step in others[2]:
            steps[task] = (*steps.get(task, ()), Step._make(step))
        ((floor,),) = connection.execute("SELECT floor FROM idempotent_registry").fetchall()
        effects: Any = connection.execute("SELECT task, token FROM effect").fetchall()
        self._seen = self._index.copies.raw
        connection.execute("COMMIT")
        self.effects = frozenset(effects)
        found = {
            task: Row._make((*row, leases.pop(task, None), kept.pop(task, None), steps.pop(task, ())))
            for task, *row in rows
        }
        if leases or kept or steps:
            self._fail(f"left behind by tasks that are gone: {leases}, {kept}, {steps}")
        return found, int(str(floor))

    def _fail(self, what: str, process: Process | None = None) -> None:
        who = "" if process is None else f" ({process}, {process.doing})"
        self._machine.fail(what + who)

    # --- rows -------------------------------------------------------------------------------------------------------

    def _judge(self, process: Process, task: str, old: Row | None, new: Row | None) -> None:
        if old is not None and old.status in FINAL:
            problem = self._of_final(process, task, old, new)
        elif new is None:
            problem = self._gone(process, task, old)
        elif new.status == RUNNING and (old is None or old[:2] != new[:2]):
            problem = self._claimed(process, task, old, new)
        elif old is not None and old.status == RUNNING:
            problem = self._ended(process, task, old, new)
        else:
            problem = self._settled(process.doing, task, old, new)
        is_taken = old is not None and old.status == RUNNING and (new is None or old[:2] != new[:2])
        if is_taken and old is not None and self._holder(old) is not process:
            self._replaced.add((task, old.token))
        if new is not None and not problem:
            problem = self._beside(process, task, old, new)
        if problem:
            self._fail(f"{task}: {_short(old)} became {_short(new)}: {problem}", process)

    def _beside(self, process: Process, task: str, old: Row | None, new: Row) -> str:
        """What became of the row's lease, kept arguments and steps."""
        if new.status == RUNNING and (old is None or old[:2] != new[:2]):
            # A batch's task that was not entered may still be verified: behind a reboot nobody trusts the notes.
            may_be_hook = old is not None and old.note is not None and new.lease is None and new.on_crash == VERIFY
            is_hook = (task, new.token) in self._hooks or may_be_hook
            return beside.claimed(old, new, process.doing, process.begun_ms, self._machine.boot_ms(), is_hook=is_hook)
        if old is not None and old.status == new.status == RUNNING:
            piece = process.in_step if process.in_step and process.in_step[0] == task else None
            return beside.went_on(old, new, process.doing, process.begun_ms, self._machine.boot_ms(), piece)
        return beside.ended(old, new)

    def _judge_effects(self, process: Process, before: frozenset[tuple[str, int]]) -> None:
        if before - self.effects:
            self._fail("an effect went", process)
        for task, token in self.effects - before:
            row = self.rows.get(task)
            if row is None or (row.status, row.token) != (SUCCEEDED, token):
                self._fail(f"{task}: an effect without its success: {_short(row)}", process)

    def _of_final(self, process: Process, task: str, old: Row, new: Row | None) -> str:
        if new is not None:
            return "a final row changed"
        if self.floor < old.token:
            return "a row went, and the floor stayed below its token"
        self.blocked.pop(task, None)
        return "" if process.doing.kind in {"forget", "purge"} else "nobody asked for it"

    def _gone(self, process: Process, task: str, old: Row | None) -> str:
        assert old is not None
        is_forced = process.doing.option == "force"
        if process.doing.kind != "forget" or process.doing.task != task:
            return "nobody asked for it"
        if self.floor < old.token:
            return "a row went, and the floor stayed below its token"
        if old.status == RUNNING and not (is_forced and self._is_free(old)):
            return "it runs"
        if old.status == UNKNOWN and not is_forced:
            return "not without force"
        self.blocked.pop(task, None)
        return ""

    def _holder(self, row: Row) -> Process:
        return self._machine.owner_of[row.owner or 0]

    def _is_free(self, row: Row) -> bool:
        """Whether a running task may be decided about without its owner."""
        return self._holder(row).may_be_taken_for_dead or self.has_expired(row)

    def has_expired(self, row: Row, at_ms: int | None = None) -> bool:
        """Whether its lease is over, now or at that time since boot."""
        now = self.floor >> EPOCH_BITS << EPOCH_BITS | (self._machine.boot_ms() if at_ms is None else at_ms)
        return row.lease is not None and row.lease.until < now

    def is_late(self, task: str, token: int) -> bool:
        """Whether the claim is another's by now, or ended without its owner, or may be at any moment."""
        row = self.rows.get(task)
        is_its = row is not None and (row.status, row.token) == (RUNNING, token)
        return (task, token) in self._replaced or (row is not None and is_its and self.has_expired(row))

    def _claimed(self, process: Process, task: str, old: Row | None, new: Row) -> str:
        highest = self._highest.get(task, 0)
        self._highest[task] = max(highest, new.token)
        if new.token <= highest:
            return f"token {_token(new.token)} is not above {_token(highest)}"
        if self._holder(new) is not process:
            return "claimed for another owner"
        begins = new.attempt == (0 if old is None else old.attempt) + 1
        if process.doing.kind == "sweep" and (problem := beside.swept(old)):
            return problem
        if old is None or old.status == PENDING:
            return "" if begins else "wrong attempt"
        if old.status == FAILED:
            is_allowed = old.verdict in {DID_NOT_HAPPEN, RETRY} or not (old.policy >> 2 & 1 or new.policy >> 2 & 1)
            is_left = old.verdict == RETRY or old.attempt < new.policy >> 5
            return "" if begins and is_allowed and is_left else "it may not be tried again"
        if old.status == RUNNING:
            return self._taken_over(process, task, old, new)
        return self._asked(task, old, new) if old.status == UNKNOWN else "it has ended"

    def _taken_over(self, process: Process, task: str, old: Row, new: Row) -> str:
        holder = self._holder(old)
        if holder is not process and not self._is_free(old):
            return "its owner lives"
        if new.attempt == old.attempt + 1:
            is_rerun = old.on_crash == new.on_crash == RERUN
            return "" if is_rerun and old.attempt < new.policy >> 5 else "only a rerun may be taken over"
        if old.note is not None and self._looked_unentered(process, holder, task, old.token):
            self.blocked.pop(task, None)  # entered since, by a holder without its locks, who may be dead by now
            return ""  # put back, and claimed again
        return self._asked(task, old, new)

    def _looked_unentered(self, process: Process, holder: Process, task: str, token: int) -> bool:
        """Whether the task of a batch was not entered when the taker decided.

        Behind that only a holder may enter it that has lost its locks, and was taken for dead while it lived.
        """
        entered_at = self._entered.get((task, token))
        return entered_at is None or (holder.has_lost and entered_at > process.decided_at)

    def _asked(self, task: str, old: Row, new: Row) -> str:
        """Claimed for the verify hook."""
        self._hooks.add((task, new.token))
        is_it = new.on_crash == VERIFY and old.on_crash != HOLD and new.attempt == old.attempt
        return "" if is_it else "nobody may claim it"

    def _ended(self, process: Process, task: str, old: Row, new: Row) -> str:
        holder = self._holder(old)
        if new.token != old.token:
            return "another token"
        if new.status == RUNNING:
            return "" if holder is process and old[:8] == new[:8] else "it runs"
        if new.status == FAILED and new.verdict == DID_NOT_HAPPEN:
            self.blocked.pop(task, None)
        if holder is process and new.status in {SUCCEEDED, FAILED, PENDING, UNKNOWN}:
            return self._ended_by_owner(process, task, old, new)
        if holder is not process and not self._is_free(old):
            return "its owner lives"
        if new.status == UNKNOWN:
            if (task, old.token) in self._entered:
                self.blocked[task] = old.token
            return ""
        if new.status == FAILED and new.verdict != DID_NOT_HAPPEN:
            return "" if old.on_crash == RERUN else "not by itself"
        return self._by_verdict(process.doing, task, new)

    def _ended_by_owner(self, process: Process, task: str, old: Row, new: Row) -> str:
        if new.status == SUCCEEDED and not self._is_result(task, new):
            return "another result than its job's"
        if new.status == SUCCEEDED and process.doing[:2] == ("effect", task) and (task, new.token) not in self.effects:
            return "without its effect"
        if new.status == PENDING and new.attempt != old.attempt - self._is_put_back(process, task, old):
            return "wrong attempt"
        return ""

    def _is_put_back(self, process: Process, task: str, old: Row) -> bool:
        """Whether nothing ran, or the job wants it so; else the attempt counts."""
        is_wanted = process.doing.end == "back" and (task, old.token) not in self.interrupted
        return (task, old.token) not in self._entered or is_wanted

    def _settled(self, doing: Doing, task: str, old: Row | None, new: Row) -> str:
        if old is None:
            return "" if new.status == PENDING and doing.kind == "add" else "out of nothing"
        if new.token != old.token:
            return "another token"
        if old.status == UNKNOWN:
            if new.status == FAILED:
                self.blocked.pop(task, None)
            return self._by_verdict(doing, task, new)
        if old.status == FAILED and new.status == FAILED:
            return "" if doing[:2] == ("retry", task) else "nobody asked for it"
        wanted = {"skip": (PENDING, SKIPPED), "cancel": (old.status, CANCELLED)}.get(doing.kind)
        return "" if doing.task == task and wanted == (old.status, new.status) else "nobody asked for it"

    def _by_verdict(self, doing: Doing, task: str, new: Row) -> str:
        if doing.task != task:
            return "nobody asked for it"
        if doing.kind == "cancel":
            return "" if new.status == CANCELLED else "not what was asked for"
        if doing.kind != "resolve":
            return "nobody asked for it"
        if new.status == SUCCEEDED and not self._is_result(task, new):
            return "another result than it was given"
        wanted = {"happened": SUCCEEDED, "did-not-happen": FAILED, "cannot-tell": UNKNOWN}[doing.option]
        return "" if new.status == wanted else "not what was asked for"

    def _is_result(self, task: str, row: Row) -> bool:
        wanted = expected(task, row.token, is_settled=row.verdict == HAPPENED)
        plain = json.loads(row.result or "null")
        if "pair" in wanted and isinstance(plain, dict):
            plain["pair"] = wanted["pair"]  # a tuple has a tag; the replay is compared by value and type
        return bool(plain == wanted)

    # --- bodies -----------------------------------------------------------------------------------------------------

    def enter(self, process: Process, task: str, token: int) -> Body:
        """A job's body begins."""
        self.look(process)
        row = self.rows.get(task)
        body = Body(process, task, token)
        is_late = process.may_be_taken_for_dead or self.is_late(task, token)  # stopped behind its claim, it cannot know
        twins = [
            one
            for one in self.bodies
            if one.task == task and not one.process.may_be_taken_for_dead and not self.is_late(task, one.token)
        ]
        if twins and not is_late:
            self._fail(f"{task} is entered, and runs in {twins[0].process}", process)
        is_own = row is not None and row.status == RUNNING and row.token == token and self._holder(row) is process
        if not is_own and not is_late:
            self._fail(f"{task} is entered with token {_token(token)}, and its row is {_short(row)}", process)
        if (task, token) in self._entered:
            self._fail(f"{task} is entered twice with token {_token(token)}", process)
        if (task, token) in self._hooks:
            self._fail(f"{task} is entered by a claim for the verify hook", process)
        if task in self.blocked and not is_late:
            self._fail(f"{task} is entered again without a verdict, after token {_token(self.blocked[task])}", process)
        self._entered[task, token] = self._machine.now
        self.bodies.append(body)
        if row is not None and is_own and (row.on_crash != RERUN or row.kept is not None):
            self.require(task, row)
        return body

    def leave(self, body: Body) -> None:
        """A job's body has ended."""
        if body in self.bodies:
            self.bodies.remove(body)

    def enter_step(self, process: Process, task: str, token: int, name: str) -> None:
        """A piece of the job begins."""
        self.look(process)
        saved = self.step(task, name)
        if saved is not None and not process.may_be_taken_for_dead and not self.is_late(task, token):
            self._fail(f"{task}: step {name} is run again, and was saved with token {_token(saved.token)}", process)
        process.in_step = (task, token, name)

    def step(self, task: str, name: str) -> Step | None:
        """The step, as it was saved."""
        return _step(self.rows.get(task), name)

    def step_since(self, since: int, task: str, name: str, token: int) -> Row | None:
        """The first row since then that has the step as that claim has saved it: others may forget it since."""
        some = [rows.get(task) for rows in self.history[since:]]
        return next((row for row in some if (step := _step(row, name)) is not None and step.token == token), None)

    def died(self, process: Process) -> None:
        """With all bodies that it was in, or whose ends it had not stored."""
        self.bodies = [one for one in self.bodies if one.process is not process]
        for task, row in self.rows.items():
            is_its = row.status == RUNNING and self._machine.owner_of.get(row.owner or 0) is process
            if is_its and row.on_crash != RERUN and (task, row.token) in self._entered:
                self.blocked[task] = row.token

    # --- what was told ----------------------------------------------------------------------------------------------

    def was(self, since: int, task: str, *statuses: int) -> list[Row]:
        """The states of the task since then that had such a status."""
        some = (rows.get(task) for rows in self.history[since:])
        return [row for row in some if row is not None and row.status in statuses]

    def stayed(self, since: int, task: str, statuses: tuple[int, ...]) -> bool:
        """Whether the task had one of the statuses all the time."""
        some = [rows.get(task) for rows in self.history[since:]]
        return all(row is not None and row.status in statuses for row in some)

    def require(self, task: str, row: Row | None) -> None:
        """Somebody was told of this state: it must outlive a power cut."""
        self._required = max(self._required, self._first.get(_state(task, row), 0))

    # --- power ------------------------------------------------------------------------------------------------------

    def synced(self) -> None:
        """The -wal is synced now."""
        if self._index is None:
            self._open()
        assert self._index is not None
        header = self._index.header()
        if header is not None:
            self._synced = (header[32:40], self._index.frames)

    def least_wal_bytes(self) -> int:
        """How much of the -wal the disk has for certain. SQLite itself syncs what it moves."""
        if self._index is None:
            self._open()
        assert self._index is not None
        header = self._index.header() or bytes(48)
        salts, frames = self._synced
        frames = max(frames if salts == header[32:40] else 0, self._index.moved)
        return WAL_HEADER_BYTES + frames * FRAME_BYTES

    def lost_power(self) -> None:
        """What is left must be what was there at one instant, not before anything that somebody was told."""
        self.close()
        self._open()
        rows, self.floor = self._read()
        self.synced()
        self.close()
        if rows not in self.history[self._required :]:
            at = self.history.index(rows) if rows in self.history else None
            lost = "is none that ever was" if at is None else f"is of {self._required - at} commits before one told of"
            self._fail(f"what the power cut has left {lost}: {_all(rows)} and not {_all(self.history[self._required])}")
        # Anew: what nobody was told of may be as it was before, or gone, as a claim under rerun, which is not synced.
        self.blocked = {task: row.token for task, row in rows.items() if self._is_blocked(task, row)}
        if rows != self.rows:
            self.history.append(rows)
        self.rows = rows
        self._required = self.now

    def _is_blocked(self, task: str, row: Row) -> bool:
        is_open = row.status == UNKNOWN or (row.status == RUNNING and row.on_crash != RERUN)
        return is_open and ((task, row.token) in self._entered or self.blocked.get(task) == row.token)


def _state(task: str, row: Row | None) -> tuple[Any, ...]:
    return (task,) if row is None else (task, row.status, row.token, row.verdict, row.kept, row.steps)


_WORDS: Final = ("pending", "succeeded", "failed", "running", "unknown", "skipped", "cancelled")


def _step(row: Row | None, name: str) -> Step | None:
    return next((one for one in (() if row is None else row.steps) if one.name == name), None)


def _short(row: Row | None) -> str:
    return "none" if row is None else f"{_WORDS[row.status]} (token {_token(row.token)}, attempt {row.attempt})"


def _all(rows: dict[str, Row]) -> str:
    return ", ".join(f"{task} {_short(row)}" for task, row in sorted(rows.items())) or "nothing"


def _token(token: int) -> str:
    return f"{token >> 40}.{token & (1 << 40) - 1}"
