"""idemreg without one of its barriers, or with one more: what each costs. Each in a process of its own."""

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


class Patched(Hold):
    """With some names of the product replaced, until it is closed."""

    def __init__(self, place: Place, of: object, *names: str) -> None:
        self._of, self._before = of, {name: getattr(of, name) for name in names}
        for name in names:
            setattr(of, name, lambda *_: 0)
        super().__init__(place)

    def close(self) -> None:
        super().close()
        for name, value in self._before.items():
            setattr(self._of, name, value)


class WithoutGuard(Patched):
    """Nobody looks at the files between the claim and its job."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, Guard, "check")


class WithoutSeals(Patched):
    """Each row has the seal 0, which is what it must be. Nothing here reads a row as a whole."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, tasks, "claim_seal", "running_seal", "state_seal", "success_seal")


class WithPageChecksums(Hold):
    """Each page is verified as it is read from the database."""

    def __init__(self, place: Place) -> None:
        path = os.path.join(place.folder, FILE)
        self.registry = Registry(path, durability=place.durability, busy_timeout=60, page_checksums=True)
        self._job = self.registry.idempotent("coupon:{user_id}:{day}")(issue_coupon)
