"""idemreg, and the statements by hand: the same job under the same task_ids, each in a file of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Literal

from bench.by_hand import ByHand, ByHandQueued
from bench.job import DAY, issue_coupon
from idemreg import Registry

if TYPE_CHECKING:
    from bench.contenders import Place

__all__ = ["FILE", "Hand", "HandQueued", "HandUnseen", "Hold", "Rerun"]

FILE = "jobs.db"


class Hand:
    make: ClassVar[type[ByHand]] = ByHand

    def __init__(self, place: Place) -> None:
        self._hand = self.make(os.path.join(place.folder, FILE), place.durability)

    def call(self, user: int) -> object:
        return self._hand.call(f"coupon:{user}:{DAY}", issue_coupon, user_id=user, day=DAY)

    def close(self) -> None:
        self._hand.close()


class HandQueued(Hand):
    make = ByHandQueued


class HandUnseen(Hand):
    def call(self, user: int) -> object:
        return self._hand.call_unseen(f"coupon:{user}:{DAY}", issue_coupon, user_id=user, day=DAY)


class Hold:
    on_crash: ClassVar[Literal["hold", "rerun"]] = "hold"

    def __init__(self, place: Place) -> None:
        self.registry = Registry(os.path.join(place.folder, FILE), durability=place.durability, busy_timeout=60)
        self._job = self.registry.idempotent("coupon:{user_id}:{day}", on_crash=self.on_crash)(issue_coupon)

    def call(self, user: int) -> object:
        return self._job(user, DAY)

    def close(self) -> None:
        self.registry.close()


class Rerun(Hold):
    on_crash = "rerun"
