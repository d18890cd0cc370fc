"""A process whose clocks are set from outside, for the trial of clocks: commands come as lines of JSON, and answers go.

Its clock is the machine's (and so its time namespace's), plus what it was told. ``jump`` of a command is added to the
wall clock in the middle of it, at its first wait, and the wait is told.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from idemreg import Claim, Clock, IdemregError, Registry

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main"]


class Set(Clock):
    """The clocks as they were set."""

    def __init__(self) -> None:
        self.wall = self.boot = self.jump = 0
        self.name = "boot"

    def wall_us(self) -> int:
        return super().wall_us() + self.wall

    def boot_ms(self) -> int:
        return super().boot_ms() + self.boot

    def boot_id(self) -> str:
        return self.name

    def sleep(self, pause: float) -> None:
        if self.jump:
            self.wall += self.jump
            self.jump = 0
            say({"waits": True})
        super().sleep(pause)


class Worker:
    """What one process does, a method a command."""

    def __init__(self) -> None:
        self.clock = Set()
        self.claims: dict[str, Claim] = {}
        self.registry: Registry | None = None

    def set(self, **clocks: Any) -> None:
        for name, value in clocks.items():
            setattr(self.clock, name, value)

    def open(self, path: str) -> None:
        self.registry = Registry(path, clock=self.clock, durability="normal")
        self.registry.open()

    def _open(self) -> Registry:
        assert self.registry is not None
        return self.registry

    def run(self, task: str, result: int, **options: Any) -> dict[str, Any]:
        entered: list[int] = []

        def job() -> int:
            entered.append(1)
            return result

        outcome = self._open().run(task, job, name="job", **options)
        return {
            "entered": len(entered),
            "replayed": outcome.replayed,
            "result": outcome.result,
            "token": outcome.token,
        }

    def claim(self, task: str, **options: Any) -> dict[str, Any]:
        claim = self.claims[task] = self._open().claim(task, name="job", **options)
        return {"token": claim.token}

    def finish(self, task: str, result: int) -> None:
        self.claims.pop(task).succeed(result)

    def purge(self, **options: Any) -> dict[str, Any]:
        return {"removed": self._open().purge(**options).removed}

    def rows(self) -> list[tuple[str, int, int]]:
        return [(task.task_id, int(task.status), task.token) for task in self._open().tasks()]

    def close(self) -> None:
        self._open().close()


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until the commands end."""
    worker = Worker()
    for line in sys.stdin:
        command, options = json.loads(line)
        worker.clock.jump = options.pop("jump", 0)
        method: Callable[..., Any] = getattr(worker, command)
        try:
            answer = {"answer": method(**options)}
        except IdemregError as error:
            answer = {"error": error.code, "hint": error.hint, "message": error.message}
        say(answer)


if __name__ == "__main__":
    main()
