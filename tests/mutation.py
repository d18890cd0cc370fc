"""Mutation testing of the model, of ids and of checksums: ``make mutation``.

mutmut changes one expression at a time and runs the quick tests of these rooms. Here its run is started and judged: at
least so many must be killed, and each that lives must be explained in mutation-survivors.toml, by the function and the
line that it becomes. Ends with 1 otherwise.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LEAST: Final = 0.95

# mutmut puts a call of its own before each call, and some tests go deep.
RUN: Final = "import sys; sys.setrecursionlimit(20_000); from mutmut.__main__ import cli; cli()"
KILLED: Final = "killed"  # a time-out may be the machine's, and is none


def main() -> int:
    """Run mutmut, and compare what lives with what is explained."""
    shutil.rmtree(ROOT / "mutants", ignore_errors=True)  # what was found before says nothing of new tests
    subprocess.run([sys.executable, "-c", RUN, "run", *sys.argv[1:]], cwd=ROOT, check=True)
    states = _states()
    explained = tomllib.loads((ROOT / "tests" / "mutation-survivors.toml").read_text("utf-8"))["survivor"]
    reasons = {(one["function"], one["becomes"]): one["why"] for one in explained}
    alive = {(_function(name), _becomes(name)): name for name, state in states.items() if state != KILLED}
    unexplained = [name for key, name in alive.items() if key not in reasons]
    outdated = [key for key in reasons if key not in alive]
    for name in unexplained:
        print(f"{name} lives, and nothing explains it: {_becomes(name)}")
    for function, becomes in outdated:
        print(f"tests/mutation-survivors.toml explains what does not live any more: {function}: {becomes}")
    killed = sum(state == KILLED for state in states.values())
    print(f"{killed} of {len(states)} mutants killed ({killed / len(states):.1%}): {dict(Counter(states.values()))}")
    return int(bool(unexplained or outdated) or killed < LEAST * len(states))


def _states() -> dict[str, str]:
    lines = _mutmut("results", "--all", "true").splitlines()
    return dict(line.strip().split(": ", 1) for line in lines if ": " in line)


def _function(name: str) -> str:
    """``idemreg.deciding.x_decide__mutmut_27`` is of ``idemreg.deciding.decide``; a method has its class before it."""
    room, _, function = name.partition("__mutmut_")[0].rpartition(".")
    return f"{room}.{function.removeprefix('xǁ').replace('ǁ', '.') if 'ǁ' in function else function.removeprefix('x_')}"


def _becomes(name: str) -> str:
    """The lines that the mutant puts in the place of others."""
    shown = _mutmut("show", name).splitlines()
    return " ".join(line[1:].strip() for line in shown if line.startswith("+") and not line.startswith("+++"))


def _mutmut(*words: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", RUN, *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    sys.exit(main())
