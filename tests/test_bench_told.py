"""What the benchmark tells: tables, the README's section, reasons and plots, and whether they are of what is kept."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench import keep
from bench.figures import FIGURES
from bench.model import Value, at_least, at_most
from bench.report import AS_ABOVE, BEGIN, END, PLOTS, figure_table, markdown, readme_section, with_section
from bench.svg import inert
from tests.support import goals
from tests.support.processes import ROOT


def told(*values: Value) -> dict[str, Any]:
    as_json = [value.as_json() for value in values]
    return {"title": "T", "durability": "full", "how": "H", "values": as_json, "sides": [], "absent": [], "notes": []}


def test_the_tables_say_what_was_reached() -> None:
    """A goal is told as reached or not by the median, in the terminal and in Markdown; a reason stands beside it."""
    values = [Value("a", "x", [1, 1.5, 9], at_most(1.5)), Value("b", "x", [1.5], at_least(1.6)), Value("c", "", [1])]
    plain = figure_table("name", told(*values), is_plain=True).splitlines()
    assert [line.split()[-1] for line in plain[2:5]] == ["reached", "reached", "1"]
    assert "not reached" not in plain[2]
    assert "not reached" in plain[3]
    found = {"machine": {"cpus": 2}, "figures": {"name": told(*values)}}
    why = {"name": {"b": "the disk is slow"}}
    for text in (markdown(found, why), readme_section(found, why)):
        assert "**not reached**" in text
        assert "the disk is slow" in text
        assert "cpus 2" in text


def test_a_reason_that_values_share_is_told_once() -> None:
    """The README names all of them before it; a reason that says more has a line of its own."""
    why = {"a": "The disk.", "b": "As above.", "c": "As above, and the network.", "d": "As above."}
    found = {"machine": None, "figures": {"name": told(*(Value(label, "x", [2], at_most(1)) for label in why))}}
    lines = readme_section(found, {"name": why, "another": why}).splitlines()
    assert [line for line in lines if line.startswith("- ")] == [
        "- T, a; b: The disk.",
        "- T, c; d: As above, and the network.",
    ]


def test_the_readme_says_which_code_and_when_and_how_busy_it_was() -> None:
    """Each revision and each day once, and the range of the load, behind the machine; nothing of what is not known."""
    dated = [("abc", "2026-11-28", 2.5), ("def+", "2026-11-27", 4.0), ("abc", "2026-11-28", 0.9)]
    figures = {
        str(number): {**told(), "revision": revision, "measured_on": day, "load": load}
        for number, (revision, day, load) in enumerate(dated)
    }
    assert readme_section({"machine": {"cpus": 2}, "figures": figures}, {}).endswith(
        "cpus 2.\n\nMeasured at revision abc, def+, on 2026-11-27, 2026-11-28; load of the machine behind the figures:"
        " 0.9 … 4.0."
    )
    assert readme_section({"machine": {"cpus": 2}, "figures": {"a": told()}}, {}).endswith("cpus 2.")


def test_a_section_is_put_between_its_marks() -> None:
    """Once or twice, with the same result, and nothing around it changes; without marks nothing is written."""
    once = with_section(f"before\n{BEGIN}\nold\n{END}\nafter", "new")
    assert once == with_section(once, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter"
    with pytest.raises(ValueError):
        with_section("no marks", "new")


def test_the_readme_shows_the_figures_that_are_kept() -> None:
    """README.md and bench/results/figures.md are what `python -m bench.keep` makes of figures.json."""
    found, why = keep.load(), keep.reasons()
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme == with_section(readme, readme_section(found, why)), "run python -m bench.keep"
    assert (ROOT / "bench/results/figures.md").read_text("utf-8") == markdown(found, why)


def test_the_figures_that_are_kept_have_no_gaps() -> None:
    """Every figure, at full scale, nobody absent, and held to the goals that the project set itself."""
    found = keep.load()["figures"]
    assert list(found) == list(FIGURES)
    for name, figure in found.items():
        assert not figure["absent"], name
        assert figure["scale"]["name"] == "full", name
        assert goals.of(figure["values"]) == goals.GOALS[name], name


def test_a_reason_is_given_for_what_is_not_reached_and_for_nothing_else() -> None:
    """A missed goal without a reason is as wrong as the reason of one that was reached meanwhile; "above" is one."""
    found = keep.load()["figures"]
    missed = {(name, one["label"]) for name, of in found.items() for one in of["values"] if one["reached"] is False}
    given = {(name, label) for name, of in keep.reasons().items() for label in of}
    assert given == missed
    assert not [name for name, of in keep.reasons().items() if next(iter(of.values())) == AS_ABOVE]


# --- the plots --------------------------------------------------------------------------------------------------

G, TEXT, DESC = (f"{{http://www.w3.org/2000/svg}}{name}" for name in ("g", "text", "desc"))


def bars(name: str) -> dict[tuple[str, str], str]:
    """What a plot that is kept shows: by series and label, the number as it is written at the bar."""
    root = ET.parse(ROOT / "bench" / "results" / f"{name}.svg").getroot()  # noqa: S314 - our own
    groups = {one.get("class"): one for one in root.iter(G)}
    shown: dict[tuple[str, str], str] = {}
    for number, legend in enumerate(texts(groups["legends"], TEXT)):
        series = f".//{G}[@class='series serie-{number} color-{number}']"
        bar = groups["plot"].find(series)
        written = texts(groups["plot text-overlay"].find(series), TEXT)
        labels = texts(bar, f"{DESC}[@class='x_label']")
        assert texts(bar, f"{DESC}[@class='value']") == written
        shown |= {(legend, label): value for label, value in zip(labels, written, strict=True)}
    return shown


def texts(element: ET.Element | None, path: str) -> list[str]:
    assert element is not None
    return [one.text or "" for one in element.findall(f".//{path}")]


def test_nothing_runs_in_a_plot() -> None:
    """Those that are kept hold no script and no handler, and are what is kept of a drawing."""
    for name in PLOTS:
        text = (ROOT / "bench" / "results" / f"{name}.svg").read_text("utf-8")
        assert not re.search(r"<script|javascript:|\son\w+=", text, re.IGNORECASE), name
        assert inert(text) == text


def test_what_runs_in_a_drawing_is_not_kept() -> None:
    """Scripts go, short or long, and a comment with its date; the drawing stays."""
    drawn = '<svg><!-- today --><script>a/> b\n</script><g>1</g><script src="x"/><desc>2</desc></svg>\n\n'
    assert inert(drawn) == "<svg><g>1</g><desc>2</desc></svg>\n"


def test_the_plot_of_contenders_shows_the_figures_that_are_kept() -> None:
    """Each contender, new and duplicate, with the median of the table."""
    sides = keep.load()["figures"]["peers-full"]["sides"]
    calls = {"new": "new task", "duplicate": "duplicate"}
    expected = {(calls[side["what"]], side["name"]): f"{side['median']:,.0f} µs" for side in sides}
    assert bars("new-task") == expected, "run python -m bench.keep with pygal"


def test_the_plot_of_processes_shows_the_figures_that_are_kept() -> None:
    """Each side, with 8 and with 32 processes, in A and in B."""
    found, kinds = keep.load()["figures"], {"A": "960 jobs", "B": "steady load"}
    expected = {
        (side["name"], f"{size} processes, {kinds[side['what']]}"): f"{side['median']:,.0f}"
        for size in (8, 32)
        for side in found[f"processes-{size}"]["sides"]
    }
    assert bars("processes") == expected, "run python -m bench.keep with pygal"
