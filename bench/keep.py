"""Where the figures are kept: bench/results/, as JSON, as tables in Markdown, and as plots.

The JSON is what counts; `python -m bench.keep` makes the rest of it anew, and the README's section.
"""

from __future__ import annotations

import json
import os
import tomllib
from typing import Any, Final

from bench.report import markdown, readme_section, with_section

__all__ = ["FOLDER", "REASONS", "load", "reasons", "save", "write_json"]

ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER: Final = os.path.join(ROOT, "bench", "results")
README: Final = os.path.join(ROOT, "README.md")
REASONS: Final = os.path.join(ROOT, "bench", "reasons.toml")


def load() -> dict[str, Any]:
    """The figures that are kept, in the form of `bench.__main__`; none where nothing was kept so far."""
    try:
        with open(os.path.join(FOLDER, "figures.json"), encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return {"machine": None, "figures": {}}
    return found


def reasons() -> dict[str, dict[str, str]]:
    """Of each figure, why a value does not reach its goal."""
    with open(REASONS, "rb") as file:
        return tomllib.load(file)


def save(found: dict[str, Any]) -> None:
    """Put the figures among those kept, and make tables and plots anew.

    Figures of other machines or versions are not mixed: those kept go, where the machine is not the same. Each tells of
    which revision of idemreg it is.
    """
    kept = load()
    if kept["machine"] == found["machine"]:
        found = {"machine": found["machine"], "figures": {**kept["figures"], **found["figures"]}}
    found["figures"] = in_order(found["figures"])
    write_json(os.path.join(FOLDER, "figures.json"), found)
    make(found)


def make(found: dict[str, Any]) -> None:
    """Tables, plots and the README's section."""
    found["figures"] = in_order(found["figures"])
    with open(os.path.join(FOLDER, "figures.md"), "w", encoding="utf-8") as file:
        file.write(markdown(found, reasons()))
    try:
        from bench.plots import plot  # noqa: PLC0415 - the library is in .venv-bench only
    except ImportError:
        print("no plots: pygal is not installed here (`make bench-full` has it)")
    else:
        plot(found, FOLDER)
    with open(README, encoding="utf-8") as file:
        text = file.read()
    if (changed := with_section(text, readme_section(found, reasons()))) != text:
        with open(README, "w", encoding="utf-8") as file:
            file.write(changed)


def in_order(figures: dict[str, Any]) -> dict[str, Any]:
    from bench.figures import FIGURES  # noqa: PLC0415 - half a second of imports that a test of the README need not pay

    return {name: figures[name] for name in FIGURES if name in figures}


def write_json(path: str, found: dict[str, Any]) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=2, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    make(load())
