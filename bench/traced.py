"""The process that `bench.figures.together` has strace look at: a thousand claims at once, then a thousand jobs.

`python -m bench.traced FOLDER NUMBER`. Three marks, calls that fail and do nothing, part its account.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Final

from bench.contenders.sqlite_files import FILE
from bench.job import DAY, issue_coupon
from idemreg import AsyncRegistry

if TYPE_CHECKING:
    from idemreg.aio import AsyncClaim

MARK: Final = 1_000_001  # no file has this number


def mark() -> None:
    with contextlib.suppress(OSError):
        os.fdatasync(MARK)


async def main(folder: str, number: int) -> None:
    registry = AsyncRegistry(os.path.join(folder, FILE), busy_timeout=60)

    async def job(user_id: int, day: str) -> dict[str, object]:
        return issue_coupon(user_id, day)

    once = registry.idempotent("coupon:{user_id}:{day}")(job)
    await once(0, DAY)  # the file is open, and its threads have started

    async def claim(name: str) -> AsyncClaim:
        return await registry.claim(name)  # which raises where it gets none

    mark()
    claims = await asyncio.gather(*(claim(f"claim:{user}") for user in range(number)))
    mark()
    await asyncio.gather(*(once(user, DAY) for user in range(1, number + 1)))
    mark()
    await registry.finish_many([(one, None) for one in claims])
    await registry.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
