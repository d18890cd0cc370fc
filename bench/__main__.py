"""`make bench`: a decorated call against the same statements by hand, interleaved in one run on one file system.

Both sides do the same job with the same arguments in files of one temporary folder. Each round times slices of calls
in turn, who begins changes with every slice, and gives one ratio; the median of the rounds is the result, the lowest
and highest tell how far to trust it. The garbage collector stays on. Exit code 0 whether or not a goal is reached.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import apsw

from bench.by_hand import ByHand
from idemreg import Registry, __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from idemreg.options import Durability

SLICES = 20  # of one round; a slice of each contender follows a slice of the other
DAY = "2026-11-23"

# Of this version, at durability="normal".
GOALS = {"new": 1.5, "duplicate": 1.7}


class Row(NamedTuple):
    """One line of the table. Times are microseconds a call, medians over the rounds."""

    durability: str
    call: str
    by_hand_us: float
    idemreg_us: float
    ratio: float
    lowest: float
    highest: float
    goal: float | None

    @property
    def is_reached(self) -> bool:
        return self.goal is None or self.ratio <= self.goal


def issue_coupon(user_id: int, day: str, amount: int = 10) -> dict[str, object]:
    """The job: nothing to do but a small result."""
    return {"coupon": user_id, "day": day, "amount": amount}


def measure(durability: Durability, *, rounds: int, calls: int) -> list[Row]:
    """New calls and duplicates at one durability; the first round warms up and is not counted."""
    with tempfile.TemporaryDirectory(prefix="idemreg-bench-") as folder:
        hand = ByHand(os.path.join(folder, "by_hand.db"), durability)
        unseen = ByHand(os.path.join(folder, "unseen.db"), durability)
        with Registry(os.path.join(folder, "idemreg.db"), durability=durability) as registry:
            decorated = registry.idempotent("coupon:{user_id}:{day}")(issue_coupon)

            def by_hand(user: int) -> object:
                return hand.call(f"coupon:{user}:{DAY}", issue_coupon, user_id=user, day=DAY)

            def by_hand_unseen(user: int) -> object:
                return unseen.call_unseen(f"coupon:{user}:{DAY}", issue_coupon, user_id=user, day=DAY)

            def ours(user: int) -> object:
                return decorated(user, DAY)

            new, insert_first, duplicate = [], [], []
            for number in range(rounds + 1):
                users = range(number * calls, (number + 1) * calls)
                first, other, last = race([by_hand, ours, by_hand_unseen], users, number)
                new.append((first, other))
                insert_first.append((last, other))
                first, other = race([by_hand, ours], users, number)
                duplicate.append((first, other))
        hand.close()
        unseen.close()
    is_normal = durability == "normal"
    return [
        as_row(durability, "new", new[1:], GOALS["new"] if is_normal else None),
        as_row(durability, "new, no look by hand", insert_first[1:], None),
        as_row(durability, "duplicate", duplicate[1:], GOALS["duplicate"] if is_normal else None),
    ]


def race(contenders: Sequence[Callable[[int], object]], users: range, number: int) -> list[float]:
    """Microseconds a call of each contender, in slices that take turns."""
    spent = [0] * len(contenders)
    step = max(1, len(users) // SLICES)
    for turn, start in enumerate(range(users.start, users.stop, step), number):
        some = range(start, min(start + step, users.stop))
        for place in range(len(contenders)):
            who = (place + turn) % len(contenders)
            contender = contenders[who]
            began = time.perf_counter_ns()
            for user in some:
                contender(user)
            spent[who] += time.perf_counter_ns() - began
    return [ns / len(users) / 1_000 for ns in spent]


def as_row(durability: str, call: str, pairs: list[tuple[float, float]], goal: float | None) -> Row:
    ratios = [ours / hand for hand, ours in pairs]
    return Row(
        durability,
        call,
        statistics.median(hand for hand, _ in pairs),
        statistics.median(ours for _, ours in pairs),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        goal,
    )


def machine() -> dict[str, object]:
    return {
        "idemreg": __version__,
        "python": platform.python_version(),
        "apsw": apsw.apsw_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "cpus": len(os.sched_getaffinity(0)),
    }


def table(rows: Sequence[Row]) -> str:
    lines = [
        f"{'durability':<11}{'call':<22}{'by hand':>10}{'idemreg':>10}{'ratio':>8}{'lowest':>8}{'highest':>9}  goal"
    ]
    for row in rows:
        goal = "" if row.goal is None else f"<= {row.goal}x {'reached' if row.is_reached else 'NOT REACHED'}"
        lines.append(
            f"{row.durability:<11}{row.call:<22}{row.by_hand_us:>7.1f} µs{row.idemreg_us:>7.1f} µs"
            f"{row.ratio:>7.2f}x{row.lowest:>7.2f}x{row.highest:>8.2f}x  {goal}".rstrip()
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="What a decorated call costs.")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds (9); one more warms up")
    parser.add_argument("--calls", type=int, default=2_000, help="calls of each contender in a round (2,000)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well, as in bench/results/")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.calls < 1:
        parser.error("--rounds and --calls are 1 or more")

    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"{options.rounds} rounds of {options.calls} calls, interleaved; times are medians, ratios those of rounds\n")
    rows = measure("normal", rounds=options.rounds, calls=options.calls)
    rows += measure("full", rounds=options.rounds, calls=max(1, options.calls // 10))  # each call waits for the disk
    print(table(rows))
    if options.json:
        write(options.json, {"machine": machine(), "rows": [row._asdict() for row in rows]})


def write(path: str, figures: dict[str, Any]) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(figures, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    main()
