"""What the registry is about: its owners, the tasks that wait for somebody, and its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from idemreg.counted import counted
from idemreg.doctor.case import OWNERS_LIMIT, TASKS_LIMIT, names
from idemreg.doctor.finding import Finding, finding
from idemreg.lockfile import FIRST_OWNER_BYTE
from idemreg.model import Liveness, Status
from idemreg.processes import locks_on
from idemreg.sqlite.looking import WAITING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from idemreg.doctor.case import Case
    from idemreg.liveness import OwnerRecord

__all__ = ["boots", "clock", "limits", "owners", "running", "tasks", "to_rerun", "waiting"]

CLOCK_SLACK_US: Final = 1_000_000  # what is written in this very second


def owners(case: Case) -> Iterator[Finding]:
    """Who holds which byte: the recorded owners, and bytes that are held without a record."""
    assert case.look is not None  # noqa: S101 - see CHECKS
    records = case.look.owners(OWNERS_LIMIT)
    for record in records:
        yield from _owner(case, record)
    held = locks_on(f"{case.path}-lock") or [] if case.lock is not None else []
    recorded = {record.id for record in records}
    for lock in held[:OWNERS_LIMIT]:
        owner = lock.first - FIRST_OWNER_BYTE
        if owner > 0 and owner not in recorded and len(records) < OWNERS_LIMIT:
            yield finding("byte-unrecorded", f"The byte of owner {owner} is held, and no such owner is recorded.")


def _owner(case: Case, record: OwnerRecord) -> Iterator[Finding]:
    who = f"Owner {record.id}, process {record.pid} on {record.host} ({record.command})"
    answer = case.liveness(record.id, record)
    if answer is None:
        yield finding("owner-cannot-tell", f"{who}: without a lock file nobody can tell whether it lives.")
        return
    liveness, reason = answer
    codes = {Liveness.ALIVE: "owner", Liveness.DEAD: "owner-dead", Liveness.CANNOT_TELL: "owner-cannot-tell"}
    yield finding(codes[liveness], f"{who}: {liveness.value}, {reason}.")


def tasks(case: Case) -> Iterator[Finding]:
    """How many tasks there are in each status. The check after it needs what this one read."""
    assert case.look is not None  # noqa: S101
    case.summary = summary = case.look.summary()
    words = {int(status): status.word for status in Status}
    counts = [f"{count:,} {words.get(status, 'of no status')}" for status, count in summary.counts.items()]
    total = sum(summary.counts.values())
    yield finding("tasks", f"{counted(total, 'task')}: {', '.join(counts) or 'none yet'}.")


def running(case: Case) -> Iterator[Finding]:
    """Tasks that count as running and whose owner is dead, or whose owner nobody can tell about."""
    assert case.look is not None  # noqa: S101
    records = {record.id: record for record in case.look.owners(OWNERS_LIMIT)}
    stuck: dict[Liveness, list[str]] = {Liveness.DEAD: [], Liveness.CANNOT_TELL: [], Liveness.ALIVE: []}
    for task_id, owner in case.look.running(TASKS_LIMIT):
        answer = case.liveness(owner, records.get(owner))
        stuck[Liveness.CANNOT_TELL if answer is None else answer[0]].append(task_id)
    if dead := stuck[Liveness.DEAD]:
        yield finding("running-dead", f"The owner died in the middle of {names(dead)}.")
    if untold := stuck[Liveness.CANNOT_TELL]:
        yield finding("running-cannot-tell", f"Nobody can tell whether the owner lives of {names(untold)}.")


def limits(case: Case) -> Iterator[Finding]:
    """Tasks whose lease has expired, or whose job takes longer than it may, while their owner is not proven dead."""
    assert case.look is not None  # noqa: S101
    assert case.registered is not None  # noqa: S101
    if case.registered.boot_id != case.clock.boot_id():
        return  # the limits of another boot are over, and so are its owners, which the check before tells
    records = {record.id: record for record in case.look.owners(OWNERS_LIMIT)}
    found = case.look.limited(case.registered.epoch, TASKS_LIMIT)
    living = [one for one in found if not _is_dead(case, one.owner, records.get(one.owner))]
    if expired := [one.task_id for one in living if one.has_expired]:
        yield finding("lease-expired", f"The lease has expired, and was not renewed, of {names(expired)}.")
    if overdue := [one.task_id for one in living if one.is_overdue]:
        yield finding("overdue", f"Longer than the time limit allows runs the job of {names(overdue)}.")


def _is_dead(case: Case, owner: int, record: OwnerRecord | None) -> bool:
    answer = case.liveness(owner, record)
    return answer is not None and answer[0] is Liveness.DEAD


def to_rerun(case: Case) -> Iterator[Finding]:
    """Tasks whose arguments are kept for a rerun, and which wait for one: no sweep has come."""
    assert case.look is not None  # noqa: S101
    records = {record.id: record for record in case.look.owners(OWNERS_LIMIT)}
    kept = case.look.kept_of_running(TASKS_LIMIT)
    owners = ((task_id, owner) for task_id, owner in case.look.running(TASKS_LIMIT) if task_id in kept)
    dead = [task_id for task_id, owner in owners if _is_dead(case, owner, records.get(owner))]
    if waiting := sorted([*case.look.to_rerun(TASKS_LIMIT), *dead])[:TASKS_LIMIT]:
        yield finding("rerun-waiting", f"Arguments are kept to run again, and no sweep has done so: {names(waiting)}.")


WORDS: Final = {
    "clock-suspended": "The clock is in doubt, and suspends every schedule of this file: {}.",
    "unknown": "Nobody knows whether it happened: {}.",
    "dead-letter": "Failed, with every attempt used up: {}.",
    "failed-held": "Failed, and held until somebody looks: {}.",
}


def waiting(case: Case) -> Iterator[Finding]:
    """Tasks that do not go on without a person."""
    assert case.look is not None  # noqa: S101
    for kind in WAITING:
        if found := case.look.waiting(kind, TASKS_LIMIT):
            yield finding(kind, WORDS[kind].format(names(found)))


def clock(case: Case) -> Iterator[Finding]:
    """Whether the clock has reached the newest stored time."""
    newest_us = case.summary.newest_us if case.summary is not None else None
    behind_us = newest_us - case.clock.wall_us() if newest_us is not None else 0
    if behind_us > CLOCK_SLACK_US:
        yield finding("clock-behind", f"The clock is {behind_us // 1_000_000:,} s behind the newest stored time.")


def boots(case: Case) -> Iterator[Finding]:
    """Whether one kernel writes the file. The dead of an earlier boot go when the first owner of a boot is recorded."""
    assert case.look is not None  # noqa: S101
    assert case.registered is not None  # noqa: S101
    now = case.clock.boot_id()
    recorded = {record.boot_id for record in case.look.owners(OWNERS_LIMIT)}
    summary = case.summary
    if case.registered.boot_id != now:
        spread = ""
        if summary is not None and summary.first_epoch is not None:
            spread = f"; its rows are of its boots {summary.first_epoch} to {summary.last_epoch}"
        yield finding("other-boot", f"The registry was last opened in another boot of the machine{spread}.")
    if len(recorded) > 1:
        yield finding("several-boots", f"Owners of {len(recorded)} boots are recorded at the same time.")
