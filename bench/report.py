"""Figures as tables: for the terminal, for bench/results/figures.md, and for the README. Text in, text out."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["AS_ABOVE", "BEGIN", "END", "PLOTS", "figure_table", "markdown", "readme_section", "with_section"]

BEGIN: Final = "<!-- bench: begin. Made by `python -m bench.keep` of bench/results/figures.json; do not edit. -->"
END: Final = "<!-- bench: end -->"

Row = list[str]


def number(value: float, unit: str = "") -> str:
    """Three digits that count, or a whole number as it is."""
    digits = (
        0
        if value == int(value)
        else 0
        if abs(value) >= 100
        else 1
        if abs(value) >= 10
        else 2
        if abs(value) >= 0.1
        else 4
    )
    text = f"{value:,.{digits}f}"
    return f"{text}{'' if unit == 'x' or not unit else ' '}{unit}"


def goal(value: dict[str, Any]) -> str:
    if value["goal"] is None:
        return ""
    return f"{value['goal']['sense']} {number(value['goal']['bound'], value['unit'])}"


def verdict(value: dict[str, Any]) -> str:
    return "" if value["goal"] is None else "reached" if value["reached"] else "**not reached**"


def value_rows(figure: dict[str, Any]) -> list[Row]:
    return [
        [
            value["label"],
            number(value["median"], value["unit"]),
            f"{number(value['lowest'])} … {number(value['highest'])}",
            goal(value),
            verdict(value),
        ]
        for value in figure["values"]
    ]


VALUE_HEAD: Final = ["value", "median", "lowest … highest", "goal", ""]


def side_rows(figure: dict[str, Any]) -> tuple[Row, list[Row]]:
    """The head and the lines of those measured; a column that nobody fills is left out."""
    more = list(dict.fromkeys(name for side in figure["sides"] for name in side["more"]))
    with_survives = any(side["survives"] for side in figure["sides"])
    head = ["who", "", "median", "lowest … highest", *more, *(["survives"] if with_survives else [])]
    rows = [
        [
            side["name"],
            side["what"],
            number(side["median"], side["unit"]),
            f"{number(side['lowest'])} … {number(side['highest'])}",
            *(number(side["more"][name]) if name in side["more"] else "" for name in more),
            *([side["survives"]] if with_survives else []),
        ]
        for side in figure["sides"]
    ]
    return head, rows


# --- one figure -------------------------------------------------------------------------------------------------


def figure_table(name: str, figure: dict[str, Any], why: dict[str, str] | None = None, *, is_plain: bool) -> str:
    """All about a figure: its values with their goals, those measured, who was absent, and the reasons."""
    form = plain_table if is_plain else table
    heading = f"{figure['title']} (`{figure['durability']}`)"
    parts = [f"== {name}: {heading}" if is_plain else f"## {heading}\n\n`{name}`. {figure['how']}"]
    if figure["values"]:
        parts.append(form(VALUE_HEAD, value_rows(figure)).replace("**" if is_plain else "\0", ""))
    if figure["sides"]:
        parts.append(form(*side_rows(figure)))
    parts += [f"Absent: {one}" for one in figure["absent"]]
    if not is_plain and "revision" in figure:
        parts.append(
            f"Measured on {figure['measured_on']}, at revision {figure['revision']}; load of the machine behind it:"
            f" {figure['load']}."
        )
    parts += figure["notes"]
    parts += [f"- {label}: {reason}" for label, reason in (why or {}).items()]
    return "\n".join(parts) if is_plain else "\n\n".join(parts)


def table(head: Row, rows: list[Row]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def plain_table(head: Row, rows: list[Row]) -> str:
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        .rstrip()
        for cells in (zip(row, widths, strict=True) for row in [head, *rows])
    )  # fmt: skip


# --- documents --------------------------------------------------------------------------------------------------


ABOUT: Final = (
    "Made by `make bench-full`; do not edit. `figures.json` beside it has every round of each value. A value is the"
    " median of its rounds; a ratio is taken within a round, whose contenders took turns. *Survives* says what an"
    " acknowledged row outlives at that setting; a dash: the side stores none."
)


def markdown(found: dict[str, Any], why: dict[str, dict[str, str]]) -> str:
    """bench/results/figures.md."""
    parts = [
        "# What it costs",
        ABOUT,
        _where(found),
        *(figure_table(name, one, why.get(name), is_plain=False) for name, one in found["figures"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def _where(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in (found["machine"] or {}).items()) + "."


def _when(found: dict[str, Any]) -> list[str]:
    """Of which code, on which days, and how busy the machine was: over all figures, in one line; none without any."""
    dated = [one for one in found["figures"].values() if "revision" in one]
    if not dated:
        return []
    revisions, days = ({one[name]: None for one in dated} for name in ("revision", "measured_on"))
    loads = [one["load"] for one in dated]
    of = f"Measured at revision {', '.join(revisions)}, on {', '.join(sorted(days))}"
    return [f"{of}; load of the machine behind the figures: {min(loads)} … {max(loads)}."]


def readme_section(found: dict[str, Any], why: dict[str, dict[str, str]]) -> str:
    """The README's own: every value that has a goal, with its reason, and the plots."""
    rows = [
        [f"{one['title']} (`{one['durability']}`)", *row]
        for one in found["figures"].values()
        for value, row in zip(one["values"], value_rows(one), strict=True)
        if value["goal"] is not None
    ]
    reasons = [
        f"- {found['figures'][name]['title']}, {'; '.join(labels)}: {text}"
        for name, of in why.items()
        if name in found["figures"]
        for labels, text in _told_once(of)
    ]
    shown = "\n".join(f"![{alt}](bench/results/{name}.svg)" for name, alt in PLOTS.items())
    parts = [
        table(["figure", *VALUE_HEAD], rows),
        *(["Where a goal is not reached:", "\n".join(reasons)] if reasons else []),
        shown,
        _where(found),
        *_when(found),
    ]
    return "\n\n".join(parts)


AS_ABOVE: Final = "As above."  # a reason that is told once, but for the tables of each figure

PLOTS: Final = {
    "new-task": "A new task, each contender, at the setting that survives a power cut",
    "processes": "Jobs a second of 8 and 32 processes, by hand and by idemreg",
}


def _told_once(why: dict[str, str]) -> list[tuple[list[str], str]]:
    """A figure's reasons, each with all values that share it: those behind it that say no more than `AS_ABOVE`."""
    told: list[tuple[list[str], str]] = []
    for label, text in why.items():
        if text == AS_ABOVE and told:
            told[-1][0].append(label)
        else:
            told.append(([label], text))
    return told


def with_section(text: str, section: str) -> str:
    """The document with what stands between the marks replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        msg = f"the document has no {BEGIN} and {END}"
        raise ValueError(msg)
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"
