"""What CPython itself has lost: claims that nothing refers to any more, and that are never let go.

Where memory goes just as the call of a generator function makes its generator, CPython 3.11 loses the arguments of that
call: their references are never given back. A claim among them lives as long as its process, as one does that a program
keeps for itself, and its task is told as running, which is what it is. `_testcapi.set_nomemory` shows it without any of
ours: of `gen([claim])` one allocation in four does so.
"""

from __future__ import annotations

import contextlib
import gc
import types

from idemreg import IdemregError
from idemreg.base_claim import BaseClaim

__all__ = ["end_leaked", "leaked"]


def leaked() -> list[BaseClaim]:
    """The claims that are alive behind a call, and that nothing has but a list or a tuple, which nothing has in turn.

    A list in a variable of a frame that still runs looks so too: no call of ours may be under way.
    """
    gc.collect()
    claims = [one for one in gc.get_objects() if isinstance(one, BaseClaim)]
    found = []
    while claims:  # no loop over them: its iterator would lead to each
        claim = claims.pop()
        if not _is_reached(claim):
            found.append(claim)
    return found


def _is_reached(claim: BaseClaim) -> bool:
    ahead: list[object] = [claim]
    seen = {id(claim), id(ahead)}
    while ahead:
        for one in _referring(ahead.pop()):
            if not isinstance(one, list | tuple):
                return True
            if id(one) not in seen:
                seen.add(id(one))
                ahead.append(one)
    return False


def _referring(one: object) -> list[object]:
    """What refers to it, but for the frames of this room."""
    found = gc.get_referrers(one)
    return [
        other for other in found if not (isinstance(other, types.FrameType) and other.f_code.co_filename == __file__)
    ]


def end_leaked() -> bool:
    """End them as a program would that has lost them; False where there are none."""
    claims = leaked()
    for claim in claims:
        with contextlib.suppress(IdemregError):
            claim.not_begun()
    return bool(claims)
