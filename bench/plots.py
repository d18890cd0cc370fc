"""The plots of bench/results/, as SVG without scripts, by pygal (in .venv-bench only)."""

from __future__ import annotations

import os
from typing import Any

import pygal
from pygal.style import Style

from bench.report import PLOTS
from bench.svg import inert

__all__ = ["plot"]

# Of a palette that colour-blind readers can tell apart; the background is the page's own.
STYLE = Style(
    background="white",
    plot_background="white",
    colors=("#0072B2", "#E69F00", "#009E73", "#CC79A7"),
    font_family="sans-serif",
    googlefont=None,
    label_font_size=13,
    value_font_size=12,
    legend_font_size=13,
)


def plot(found: dict[str, Any], folder: str) -> None:
    """Draw those whose figures are there."""
    charts = {"new-task": new_task(found["figures"]), "processes": processes(found["figures"])}
    for name in PLOTS:
        if (chart := charts[name]) is not None:
            with open(os.path.join(folder, f"{name}.svg"), "w", encoding="utf-8") as file:
                file.write(inert(chart.render(disable_xml_declaration=True, is_unicode=True)))


def _chart(kind: Any, title: str, height: int) -> Any:  # noqa: ANN401 - untyped
    # No scripts from elsewhere, and ids that are the same each time.
    return kind(
        title=title, style=STYLE, js=[], no_prefix=True, width=900, height=height, print_values=True,
        legend_at_bottom=True, show_legend=True,
    )  # fmt: skip


def new_task(figures: dict[str, Any]) -> Any | None:  # noqa: ANN401 - untyped
    """Microseconds of each contender, new and duplicate. The scale is logarithmic: they are far apart."""
    if "peers-full" not in figures:
        return None
    sides = figures["peers-full"]["sides"]
    chart = _chart(pygal.HorizontalBar, "µs a call, surviving a power cut (logarithmic, shorter is better)", 560)
    chart.logarithmic = True
    chart.formatter = lambda value: f"{value:,.0f} µs"
    names = [side["name"] for side in sides if side["what"] == "new"]
    names.sort(key=lambda name: -next(side["median"] for side in sides if side["name"] == name))
    chart.x_labels = names
    for call in ("duplicate", "new"):
        medians = {side["name"]: side["median"] for side in sides if side["what"] == call}
        chart.add("new task" if call == "new" else "duplicate", [medians[name] for name in names])
    return chart


def processes(figures: dict[str, Any]) -> Any | None:  # noqa: ANN401 - untyped
    """Jobs a second of 8 and 32 processes, A and B."""
    shown = [name for name in ("processes-8", "processes-32") if name in figures]
    if not shown:
        return None
    chart = _chart(pygal.Bar, "jobs a second at `full` (higher is better)", 460)
    chart.formatter = lambda value: f"{value:,.0f}"
    chart.x_labels = [
        f"{figures[name]['title']}, {'960 jobs' if kind == 'A' else 'steady load'}" for name in shown for kind in "AB"
    ]
    sides = [side for name in shown for kind in "AB" for side in figures[name]["sides"] if side["what"] == kind]
    for who in dict.fromkeys(side["name"] for side in sides):
        chart.add(who, [side["median"] for side in sides if side["name"] == who])
    return chart
