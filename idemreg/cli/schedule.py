"""`idemreg schedule`: the schedules of a module are kept; or what the file knows of schedules is told and changed."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import click

from idemreg.cli.context import Command, HintedUsageError, common_options, settings
from idemreg.cli.ending import SIGNAL, end_behind, relay_in
from idemreg.cli.failures import InterruptedJobError, job_error, report_error, unknown_hint
from idemreg.cli.printing import stdout_apart
from idemreg.cli.render import Cell, Column, table, utc_time, write, write_json
from idemreg.cli.target import registry_at
from idemreg.cli.text import escape
from idemreg.errors import IdemregError, StoreError
from idemreg.model import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.ledger import Ledger, Schedule
    from idemreg.model import Task
    from idemreg.query import Instant
    from idemreg.registry import Registry
    from idemreg.scheduled import SlotRun
    from idemreg.store import Store

__all__ = ["SCHEDULE_FIELDS", "schedule"]

FORM: Final = "idemreg schedule MODULE:REGISTRY"
FAILED: Final = 1
SECOND_US: Final = 1_000_000
YEARS_S: Final = 5 * 366 * 86_400  # how far the next slot is looked for

SCHEDULE_FIELDS: Final = {
    "name": "the schedule's name",
    "task_id": "of a slot that was run: its task",
    "slot": "of a slot that was run: its instant, in UTC",
    "succeeded": "of a slot that was run: whether its job succeeded",
    "status": "of a slot that was run: its task's status since then, or null where it cannot be read",
    "error": "of a slot that was run: what its job raised, or why nobody may run it; or null",
    "version": "of a schedule: another expression begins another",
    "cron": "of a schedule: its expression",
    "tz": "of a schedule: whose clock it means",
    "state": "of a schedule: going, paused, or held while the clock is not trusted",
    "looked_at": "of a schedule: up to when its slots have rows, in UTC",
    "next": "of a schedule: its next slot, in UTC; or null",
}


@click.command(
    cls=Command,
    examples=[
        "idemreg schedule shop.jobs:registry",
        "idemreg schedule --once shop.jobs:registry",
        "idemreg schedule --slot coupons@2026-11-22T19:00:00Z shop.jobs:registry",
        "idemreg schedule --pause coupons",
        "idemreg schedule",
    ],
    fields=SCHEDULE_FIELDS,
)
@click.argument("target", metavar="[MODULE:REGISTRY]", required=False)
@click.option("--once", is_flag=True, help="Run what is due now, and end: for a timer, or a crontab.")
@click.option(
    "--slot",
    metavar="TASK_ID",
    default=None,
    help="Run this slot now, by hand: also one that was skipped. One still to come runs now, and not at its time.",
)
@click.option("--pause", metavar="NAME", default=None, help="Hold a schedule: what comes due is skipped as paused.")
@click.option("--resume", metavar="NAME", default=None, help="Let it go on with its next slot.")
@common_options()
@click.pass_context
def schedule(
    ctx: click.Context, target: str | None, slot: str | None, pause: str | None, resume: str | None, *, once: bool
) -> int:
    """Wait for the slots of every schedule that MODULE's REGISTRY has, and run each once.

    REGISTRY is what the functions were decorated with, `@registry.scheduled(...)`; it has its own file. What was missed
    since anybody last looked is caught up first. Other processes may do the same at the same time. A schedule has a
    thread of its own. SIGTERM or Ctrl-C ends it behind the jobs that are due now, which it says on stderr where that
    takes a moment; a second one kills. It also ends, with 74, where its file was deleted, moved or replaced: started
    anew it opens the file that is there; and where the disk refused to sync, or the file needs a newer idemreg. It goes
    on where a disk is full, say; and while the clock is in doubt (see `idemreg clock`), which it tells once, on stderr.
    The exit code with --once and --slot is 1 where a job failed, or exited, which ends the call; with --once also where
    the clock suspends scheduling.

    Without MODULE:REGISTRY it lists the schedules that the file of --db knows, or holds one with --pause.
    """
    needs_target = once or slot is not None
    if (needs_target and target is None) or sum(one is not None for one in (target, pause, resume)) > 1:
        msg = "give MODULE:REGISTRY, with or without --once or --slot; or --pause or --resume; or nothing"
        raise HintedUsageError(msg, FORM, ctx)
    if target is None:
        return _of_file(pause, resume)
    out: TextIO = sys.stdout
    if not settings().json:
        return _of_module(ctx, target, slot, out, once=once)
    with stdout_apart() as out:  # jobs may print
        return _of_module(ctx, target, slot, out, once=once)


# --- the file ---------------------------------------------------------------------------------------------------


def _of_file(pause: str | None, resume: str | None) -> int:
    with settings().existing() as registry:
        if pause is not None:
            registry.pause(pause)
        if resume is not None:
            from idemreg.cli.bands import bands_of  # noqa: PLC0415 - where it is asked for

            registry.clock_bands = bands_of({})
            registry.resume(resume)
        name, now_s = pause or resume, registry.clock.wall_us() // SECOND_US
        found = cast("Ledger", registry.store).schedules(name)
        rows = [_fields(registry.store, one, now_s) for one in found if one.until_s is None]
    _list(rows)
    return 0


def _list(rows: Sequence[dict[str, Any]]) -> None:
    if settings().json:
        for row in rows:
            write_json(row)
        return
    layout = [
        Column("SCHEDULE", is_elastic=True, least=8),
        Column("CRON"),
        Column("ZONE"),
        Column("STATE"),
        Column("NEXT"),
    ]
    cells = [[Cell(escape(str(row[key] or "-"))) for key in ("name", "cron", "tz", "state", "next")] for row in rows]
    if not table(layout, cells):
        write("no schedule yet: the first look at one begins it")


def _fields(store: Store, one: Schedule, now_s: int) -> dict[str, Any]:
    following = _next(store, one, now_s)
    return {
        "name": one.name,
        "version": one.version,
        "cron": one.cron,
        "tz": one.zone,
        "state": one.state.word,
        "looked_at": _utc(one.watermark_s),
        "next": None if following is None else _utc(following),
    }


def _next(store: Store, one: Schedule, now_s: int) -> int | None:
    """The next slot that may still start: one that ran early will not, and one that was skipped too early comes."""
    from idemreg.cron import Cron  # noqa: PLC0415 - where there is a schedule
    from idemreg.ledger import is_skipped  # noqa: PLC0415
    from idemreg.slots import slot_id  # noqa: PLC0415

    for at_s in Cron(one.cron, one.zone).between(now_s, now_s + YEARS_S):
        (row,) = store.get([slot_id(one.name, at_s)])
        if row is None or row.status is Status.PENDING or is_skipped(row):
            return at_s
    return None


def _utc(at_s: int) -> str:
    return utc_time(at_s * SECOND_US).replace(".000000", "")


# --- a module ---------------------------------------------------------------------------------------------------


def _of_module(ctx: click.Context, target: str, slot: str | None, out: TextIO, *, once: bool) -> int:
    registry = registry_at(ctx, target, FORM)
    if not registry.schedules:
        msg = f"no function of {target} is on a schedule"
        raise HintedUsageError(msg, "Decorate one: `@registry.scheduled('coupons', cron='0 3 * * *')`.", ctx)
    teller = _Teller(out, registry)
    with registry:
        if slot is None and not once:
            return _keep(registry, teller)
        began = registry.store.instant()
        try:
            return _once(registry, teller) if slot is None else _by_hand(registry, slot, teller)
        except (KeyboardInterrupt, SystemExit) as error:
            task = _in_the_middle(registry, began)
            if task is not None and isinstance(error, SystemExit):
                teller.tell_slot(task.task_id, error)
                return teller.exit_code
            if task is not None and task.status is Status.UNKNOWN:
                raise InterruptedJobError(task.task_id) from error
            raise


def _in_the_middle(registry: Registry, began: Instant) -> Task | None:
    """The slot whose job has been ended in its middle: jobs run one after the other, so it is the last one."""
    from idemreg.slots import slot_of  # noqa: PLC0415 - as below

    ended = [
        task
        for name in registry.schedules
        for task in registry.tasks(prefix=f"{name}@", status=(Status.UNKNOWN, Status.PENDING))
        if (task.status is Status.UNKNOWN or not task.is_untried)
        and task.boot_stamp >= began.boot_start | began.boot_ms
        and slot_of(task.task_id) is not None  # and no other that is only called so, which the job ran, say
    ]
    return max(reversed(ended), key=lambda task: task.boot_stamp, default=None)  # of equal ones the last


def _once(registry: Registry, teller: _Teller) -> int:
    from idemreg.scheduler import ClockWatch  # noqa: PLC0415 - the help text needs none of it
    from idemreg.slotted import run_due  # noqa: PLC0415 - has it, since the module has schedules

    run_due(registry, (), teller)
    ClockWatch(registry, teller)()
    return teller.exit_code


def _by_hand(registry: Registry, task_id: str, teller: _Teller) -> int:
    from idemreg.scheduled import SlotRun  # noqa: PLC0415 - has it, since the module has schedules
    from idemreg.slots import instant, slot_of  # noqa: PLC0415

    outcome, problem = None, None
    try:
        outcome = registry.run_slot(task_id)
    except IdemregError:
        raise
    except Exception as error:  # noqa: BLE001 - the job's own
        problem = error
    teller(SlotRun(task_id, instant(slot_of(task_id) or 0), outcome, problem))
    return teller.exit_code


def _keep(registry: Registry, teller: _Teller) -> int:
    from idemreg.scheduler import Scheduler  # noqa: PLC0415 - where it is asked for

    with contextlib.ExitStack() as stack:
        relay = relay_in(stack)
        scheduler = Scheduler(registry, teller)
        end_behind(relay, scheduler)
        scheduler.run()
    return teller.exit_code if relay.received is None else SIGNAL + relay.received


class _Teller:
    """A line a slot, and the exit code of it all. Threads may share it: each line is one write."""

    def __init__(self, out: TextIO, registry: Registry) -> None:
        self._out = out
        self._registry = registry
        self._settings = settings()  # in the thread of the command, which has them
        self.exit_code = 0

    def __call__(self, told: SlotRun | IdemregError) -> None:
        if isinstance(told, IdemregError):
            self.exit_code = report_error(told, self._settings)
        else:
            self.tell_slot(told.task_id, told.error)

    def tell_slot(self, task_id: str, error: BaseException | None) -> None:
        """What became of a slot. ``error``: what its job raised."""
        what = None
        if error is not None:
            self.exit_code = FAILED
            what = job_error(error, task_id, self._registry.secrecy.error_detail)
        status = Status.SUCCEEDED if error is None else self._status(task_id)
        if self._settings.json:
            fields = {
                "name": task_id.rpartition("@")[0],
                "task_id": task_id,
                "slot": task_id.rpartition("@")[2],
                "succeeded": error is None,
                "status": None if status is None else status.word,
                "error": what,
            }
            write_json(fields, to=self._out)
        else:
            said = " succeeded" if what is None else f": {escape(what)}"
            hint = f"  hint: {escape(unknown_hint(task_id, self._settings))}\n" * (status is Status.UNKNOWN)
            self._out.write(f"{escape(task_id)}{said}\n{hint}")
        self._out.flush()

    def _status(self, task_id: str) -> Status | None:
        try:
            task = self._registry.get(task_id)
        except StoreError:  # what the job raised is told all the same
            return None
        return None if task is None else task.status
