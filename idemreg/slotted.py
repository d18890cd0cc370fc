"""Schedules of a registry: functions are put on them, and what is due is run. Twice, by calling and by awaiting."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from idemreg.by_hand import run_slot as run_slot_walk
from idemreg.errors import ScheduleError
from idemreg.request import job_name
from idemreg.scheduled import Scheduled, timetable
from idemreg.slots import slot_of
from idemreg.template import check_task_id
from idemreg.walk import adrive, drive, refuse_loop_in_loop, under_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime, timedelta

    from idemreg.audit import Audited
    from idemreg.claim import Terms
    from idemreg.deciding import Outcome
    from idemreg.options import CallOptions
    from idemreg.planning import Coalesce, Overlap
    from idemreg.registry import Registry
    from idemreg.scheduled import SlotRun
    from idemreg.walk import Walk

__all__ = ["AsyncSlots", "run_due", "run_slot", "scheduled"]

F = TypeVar("F", bound="Callable[..., Any]")
R = TypeVar("R")


def scheduled(
    registry: Registry,
    name: str,
    cron: str,
    tz: str,
    misfire_grace: float | timedelta | None,
    coalesce: Coalesce,
    limit: int,
    overlap: Overlap,
    options: CallOptions,
) -> Callable[[F], F]:
    """See `Registry.scheduled`."""
    table = timetable(name, cron, tz, misfire_grace, coalesce, limit, overlap)
    checked = registry.checked(options)

    def decorate(function: F) -> F:
        job = Scheduled.of(table, function, checked)
        other = registry.schedules.get(name, job).function
        if _place(other) != _place(function):
            msg = f"the schedule {name!r} is {job_name(other)}'s already: give {job_name(function)} its own"
            raise ValueError(msg)
        registry.schedules[name] = job
        return function

    return decorate


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    """Where a function stands: a module that is loaded anew brings another object."""
    return getattr(function, "__module__", ""), job_name(function)


def _job(registry: Registry, name: str) -> Scheduled:
    if name not in registry.schedules:
        known = ", ".join(sorted(registry.schedules)) or "none"
        msg = f"this registry has no function on a schedule {name!r}"
        raise ScheduleError(msg, hint=f"It has: {known}. Is the module imported that decorates it?")
    return registry.schedules[name]


def _jobs(registry: Registry, names: Iterable[str]) -> list[Scheduled]:
    return [_job(registry, name) for name in names] or list(registry.schedules.values())


def _job_of(registry: Registry, task_id: str) -> Scheduled:
    if slot_of(check_task_id(task_id)) is None:
        msg = f"{task_id!r} is no slot"
        raise ScheduleError(msg, hint="A slot is NAME@2026-11-22T19:00:00Z.")
    return _job(registry, task_id.rpartition("@")[0])


def run_due(registry: Registry, names: Iterable[str], tell: Callable[[SlotRun], object] | None = None) -> list[SlotRun]:
    """See `Registry.run_due`. ``tell`` hears of each slot as its job ends, for who prints them."""
    jobs = _jobs(registry, names)
    _refuse_loop_in_loop(jobs)
    runs, problem = [], None
    for job in jobs:
        try:
            runs += _carry_out(registry, job, functools.partial(job.due, may_schedule=registry.may_schedule, tell=tell))
        except ScheduleError as error:
            problem = error  # the others run first
    if problem is not None:
        raise problem
    return runs


def run_slot(registry: Registry, task_id: str) -> Outcome[Any]:
    """See `Registry.run_slot`."""
    job = _job_of(registry, task_id)
    _refuse_loop_in_loop([job])
    return _carry_out(registry, job, lambda terms: run_slot_walk(job, terms, task_id))


def _refuse_loop_in_loop(jobs: Iterable[Scheduled]) -> None:
    for job in jobs:
        if inspect.iscoroutinefunction(job.function):
            refuse_loop_in_loop(job.table.name)


def _carry_out(registry: Registry, job: Scheduled, walk_of: Callable[[Terms], Walk[R]]) -> R:
    """A coroutine function finds the claim of coroutines, whoever runs its slot: it was written for it."""
    if inspect.iscoroutinefunction(job.function):
        return under_loop(walk_of(registry.async_terms(job.options)), registry.offload.host)
    return drive(walk_of(registry.terms(job.options)))


class AsyncSlots:
    """The same of an `AsyncRegistry`."""

    _registry: Registry

    def scheduled(
        self,
        name: str,
        *,
        cron: str,
        tz: str = "UTC",
        misfire_grace: float | timedelta | None = None,
        coalesce: Coalesce = "latest",
        limit: int = 100,
        overlap: Overlap = "skip",
        **options: Any,  # noqa: ANN401 - `CallOptions`, which the registry checks
    ) -> Callable[[F], F]:
        """Decorate a coroutine function (or a plain one, whose calls then block); see `Registry.scheduled`."""
        return scheduled(self._registry, name, cron, tz, misfire_grace, coalesce, limit, overlap, options)  # type: ignore[arg-type]

    async def run_due(self, *names: str) -> list[SlotRun]:
        """Run what is due of these schedules, one slot after the other; see `Registry.run_due`."""
        registry, runs, problem = self._registry, [], None
        for job in _jobs(registry, names):
            walk = job.due(registry.async_terms(job.options), registry.may_schedule)
            try:
                runs += await adrive(walk, registry.offload.host())
            except ScheduleError as error:
                problem = error  # the others run first
        if problem is not None:
            raise problem
        return runs

    async def run_slot(self, task_id: str) -> Outcome[Any]:
        """Run one slot by hand; see `Registry.run_slot`."""
        job = _job_of(self._registry, task_id)
        walk = run_slot_walk(job, self._registry.async_terms(job.options), task_id)
        return await adrive(walk, self._registry.offload.host())

    async def audit(self, name: str, *, since: datetime | None = None, until: datetime | None = None) -> list[Audited]:
        """Every slot of a schedule as it should be and as it is, in order; see `Registry.audit`."""
        registry = self._registry
        found: list[Audited] = await registry.offload.call(lambda: list(registry.audit(name, since=since, until=until)))
        return found

    async def pause(self, name: str) -> None:
        """Hold a schedule; see `Registry.pause`."""
        await self._registry.offload.call(self._registry.pause, name)

    async def resume(self, name: str) -> None:
        """Let it go on; see `Registry.resume`."""
        await self._registry.offload.call(self._registry.resume, name)
