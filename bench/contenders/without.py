"""idemreg without one of its barriers, or with one more: what each costs. Each patches the process that it has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bench.contenders.sqlite_files import FILE, Hold
from bench.job import issue_coupon
from idemreg import Registry
from idemreg.sqlite import tasks
from idemreg.sqlite.guard import Guard

if TYPE_CHECKING:
    from bench.contenders import Place

__all__ = ["WithPageChecksums", "WithoutGuard", "WithoutSeals"]


class WithoutGuard(Hold):
    """Nobody looks at the files between the claim and its job."""

    def __init__(self, place: Place) -> None:
        setattr(Guard, "check", lambda _self: None)  # noqa: B010 - an assignment is not to the taste of mypy
        super().__init__(place)


class WithoutSeals(Hold):
    """Each row has the seal 0, which is what it must be. Nothing here reads a row as a whole."""

    def __init__(self, place: Place) -> None:
        for name in ("claim_seal", "running_seal", "state_seal", "success_seal", "task_holds"):
            setattr(tasks, name, lambda *_: 0)
        super().__init__(place)


class WithPageChecksums(Hold):
    """Each page is verified as it is read from the database."""

    def __init__(self, place: Place) -> None:
        path = os.path.join(place.folder, FILE)
        self.registry = Registry(path, durability=place.durability, busy_timeout=60, page_checksums=True)
        self._job = self.registry.idempotent("coupon:{user_id}:{day}")(issue_coupon)
