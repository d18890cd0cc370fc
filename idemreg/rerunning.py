"""Functions of a registry are run again with the arguments that are kept of them. Twice, by calling and by awaiting."""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any

from idemreg import sweeping
from idemreg.errors import RecoveryError
from idemreg.overtime import within_time
from idemreg.walk import adrive, drive, refuse_loop_in_loop, under_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.claim import Terms
    from idemreg.deciding import Outcome
    from idemreg.events import Teller
    from idemreg.idempotent import Recoverable
    from idemreg.model import Task
    from idemreg.options import Options
    from idemreg.recovery import Kept
    from idemreg.registry import Registry
    from idemreg.sweeping import Swept
    from idemreg.walk import Walk

__all__ = ["AsyncSweep", "sweep"]


def sweep(
    registry: Registry,
    teller: Teller | None = None,
    is_ended: Callable[[], bool] | None = None,
    tell: Callable[[Swept], object] = lambda _: None,
) -> list[Swept]:
    """See `Registry.sweep`. ``teller``: in place of the registry's own. ``tell``: of each at once.

    ``is_ended``: no more is to be run again. It is for who has handlers of signals that raise nothing.
    """
    for name, recoverable in registry.recoverable.items():
        if inspect.iscoroutinefunction(recoverable.function):
            refuse_loop_in_loop(name)
    told = registry.teller if teller is None else teller
    jobs_own = (BaseException,) if is_ended is not None else _of_this_thread()

    def rerun(task: Task, kept: Kept) -> Walk[Outcome[Any] | None]:
        job = _job(registry, task, kept)
        if not inspect.iscoroutinefunction(job.function):
            return _rerun(job, registry.terms, told, task, kept)
        return _at_once(under_loop, _rerun(job, registry.async_terms, told, task, kept), registry.offload.host)

    return drive(sweeping.sweep(registry.store, told, rerun, is_ended or (lambda: False), jobs_own, tell))


def _of_this_thread() -> tuple[type[BaseException], ...]:
    """What only a job raises here: handlers of signals run, and raise, in the main thread."""
    is_main = threading.current_thread() is threading.main_thread()
    return (Exception,) if is_main else (Exception, SystemExit, KeyboardInterrupt)


class AsyncSweep:
    """The same of an `AsyncRegistry`."""

    _registry: Registry

    async def sweep(self) -> list[Swept]:
        """Rerun or settle every task whose owner is dead, one after the other; see `Registry.sweep`."""
        registry = self._registry

        def rerun(task: Task, kept: Kept) -> Walk[Outcome[Any] | None]:
            job = _job(registry, task, kept)
            if inspect.iscoroutinefunction(job.function):
                return _rerun(job, registry.async_terms, registry.teller, task, kept)
            return _at_once(drive, _rerun(job, registry.terms, registry.teller, task, kept))

        walk = sweeping.sweep(registry.store, registry.teller, rerun)
        return await adrive(walk, registry.offload.host())


def _job(registry: Registry, task: Task, kept: Kept) -> Recoverable:
    if kept.is_command:
        msg = f"task {task.task_id!r} is a command's"
        raise RecoveryError(msg, task_id=task.task_id, hint="Run `idemreg watch` on its file, without a module.")
    if task.name not in registry.recoverable:
        known = ", ".join(sorted(registry.recoverable)) or "none"
        msg = f"this registry has no function {task.name!r} with recover=True"
        hint = f"It has: {known}. Is the module imported that decorates it?"
        raise RecoveryError(msg, task_id=task.task_id, hint=hint)
    return registry.recoverable[task.name]


def _rerun(
    job: Recoverable, terms_of: Callable[[Options], Terms], teller: Teller | None, task: Task, kept: Kept
) -> Walk[Outcome[Any] | None]:
    """The walk of a task's rerun, as its decorated function would be called: but it waits for nobody."""
    wanted, args, kwargs = job.recipe.again(task, kept)
    options = job.recipe.options._replace(raise_on_duplicate=False, wait_s=0)
    terms = sweeping.following(terms_of(options), task)._replace(teller=teller)
    function = job.function if terms.offload is None else within_time(terms, job.function)
    return (yield from sweeping.again(terms, wanted, function, args, kwargs))


# A job finds the claim of its own kind, a coroutine function that of coroutines, whoever sweeps: it was written for it.


def _at_once(run: Callable[..., Any], *args: object) -> Walk[Outcome[Any] | None]:
    """A walk of one step: the whole of another kind of walk, off the event loop where there is one."""
    outcome: Outcome[Any] | None = yield run, args, None
    return outcome
