"""The pages of docs/ cannot drift: each is a program that runs as written, and every link leads somewhere.

The Python blocks of a page run in their order, as one script in an empty folder. What is the reader's own there
(`send_mail`, a broker in memory) and what the test asserts stands in the page as well, in Python blocks inside HTML
comments: they run like the others, and no reader sees them.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import pytest

from idemreg import AsyncRegistry, Registry, Status
from idemreg.cli.every import every_options, table_of
from idemreg.scheduled import timetable
from tests.support.processes import PATIENCE_S, ROOT
from tests.test_readme import README, blocks, environment, headings, shell, unit

if TYPE_CHECKING:
    from pathlib import Path

    from idemreg.planning import Timetable

PAGES = sorted((ROOT / "docs").rglob("*.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def program(text: str) -> str:
    """The page's Python blocks, each on the lines that it has in the page, so that a traceback names those."""
    lines: list[str] = []
    position = 0
    for block in blocks(text):
        position = text.index(f"```{block.language}\n{block.text}", position) + 3
        if block.language == "python":
            lines += [""] * (text.count("\n", 0, position) + 1 - len(lines))
            lines += block.text.splitlines()
    return "\n".join(lines) + "\n"


def anchors(text: str) -> set[str]:
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings(text)}


@each_page
def test_the_page_runs_as_written(page: Path, tmp_path: Path) -> None:
    """The page's Python, hidden assertions included, ends without an error or a warning."""
    script = tmp_path / f"{page.stem}_page.py"
    script.write_text(program(page.read_text("utf-8")), "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # A host may log the failures that the page speaks of; an assertion that fails in a thread ends no process.
    for words in ("Exception in thread", "Exception ignored", "AssertionError"):
        assert words not in done.stderr, done.stderr


@each_page
def test_the_page_shows_python_and_proves_it(page: Path) -> None:
    """Each page has Python that the reader sees, and asserts something about it."""
    text = page.read_text("utf-8")
    seen = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    assert [block for block in blocks(seen) if block.language == "python"]
    assert re.search(r"^\s*assert ", program(text), re.MULTILINE)


def test_the_orders_of_the_recipe_are_shipped_once(tmp_path: Path) -> None:
    """The shell of recipes.md, fed twice: each order is shipped once, and the second run replays all of them."""
    (command,) = [
        block.text for page in PAGES for block in blocks(page.read_text("utf-8")) if block.language == "shell"
    ]
    orders = [{"id": number, "to": f"{number} Elm Street"} for number in range(12)]
    (tmp_path / "orders.jsonl").write_text("".join(f"{json.dumps(order)}\n" for order in orders), "utf-8")
    ship = tmp_path / "ship"
    ship.write_text('#!/bin/sh\nread -r order && echo "$order" >>shipped\n', "utf-8")
    ship.chmod(0o755)
    for _ in range(2):
        done = shell(command, tmp_path, environment(IDEMREG_DB=str(tmp_path / "jobs.db")))
        assert done.returncode == 0, done.stderr
        shipped = [json.loads(line) for line in (tmp_path / "shipped").read_text("utf-8").splitlines()]
        assert sorted(shipped, key=lambda order: int(order["id"])) == orders
    with Registry(tmp_path / "jobs.db", create=False) as registry:
        assert sorted(task.task_id for task in registry.tasks()) == sorted(f"order:{order['id']}" for order in orders)
        assert registry.count() == {Status.SUCCEEDED: len(orders)}


JOBS = """
import os
from idemreg import Registry
from idemreg.testing import ManualClock

wall_us = int(os.environ["WALL_US"])
registry = Registry(os.environ["DB"], clock=ManualClock(wall_us=wall_us, boot_ms=wall_us // 1_000))


@registry.scheduled("coupons", cron="0 3 * * *")
def coupons(slot):
    with open("issued", "a") as file:
        print(slot.isoformat(), file=file)
"""


def test_the_timer_of_the_schedules_looks_once_a_minute(tmp_path: Path) -> None:
    """The service's command, from its folder: the first begins the schedule, a later one runs its slot, once."""
    found = blocks((ROOT / "docs" / "schedules.md").read_text("utf-8"))
    service, timer = (unit(block.text) for block in found if block.language == "ini")
    assert timer["Timer"]["OnCalendar"] == "minutely"
    folder = tmp_path / service["Service"]["WorkingDirectory"].removeprefix("/")
    (folder / "shop").mkdir(parents=True)
    (folder / "shop" / "jobs.py").write_text(JOBS, "utf-8")
    command = service["Service"]["ExecStart"].replace("/opt/app/.venv/bin/", "")
    begun_us = int(datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()) * 1_000_000
    for day in (0, 1, 1):
        wall_us = begun_us + day * 86_400 * 1_000_000
        done = shell(command, folder, environment(DB=str(tmp_path / "jobs.db"), WALL_US=str(wall_us)))
        assert done.returncode == 0, done.stderr
    assert (folder / "issued").read_text("utf-8") == "2026-11-23T03:00:00+00:00\n"


def test_what_holds_without_an_option_of_a_schedule_is_as_told(tmp_path: Path) -> None:
    """The table of schedules.md, both registries and the command agree on it, and so do the words of its --help."""
    page = (ROOT / "docs" / "schedules.md").read_text("utf-8")
    (rows,) = re.findall(r"^\| option \| without it .*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    told = {option: ast.literal_eval(value) for option, value in re.findall(r"\| `(\w+)` \| `?([^`| ]+)", rows)}
    schedule: dict[str, Any] = {"name": "job", "cron": "0 * * * *"}
    stated = timetable(**schedule, **told)
    with Registry(tmp_path / "jobs.db") as registry:
        registry.scheduled(**schedule)(print)
        called = registry.schedules.pop("job").table
        AsyncRegistry.of(registry).scheduled(**schedule)(print)
        awaited = registry.schedules.pop("job").table
    commanded: list[Timetable] = []

    @click.command
    @click.pass_context
    @every_options
    def command(ctx: click.Context, /, **options: Any) -> None:
        if (table := table_of(ctx, schedule["name"], {"recover": False, **options})) is not None:
            commanded.append(table)

    command.main(["--every", schedule["cron"]], standalone_mode=False)
    assert [(table.cron.zone, *table[2:]) for table in (called, awaited, *commanded)] == [(told["tz"], *stated[2:])] * 3
    helped = {
        str(option.name): re.findall(r"(?:Default: |\()([^.)]+)", getattr(option, "help", ""))
        for option in command.params
    }
    words = {option: "whenever it can" if value is None else str(value) for option, value in told.items()}
    assert helped == {"every": [], **{option: [word] for option, word in words.items()}}


def test_a_page_keeps_its_line_numbers() -> None:
    """A block of the page stands on the same lines in the script; other languages and comments' words are left out."""
    hidden, other = "<!--\n```python\nb = 2\n```\n-->\n", "```console\n$ c\n```\n"
    lines = program(f"# A\n\n```python\na = 1\n```\n\n{hidden}\n{other}\n```python\na = 1\n```\n").splitlines()
    assert {number: line for number, line in enumerate(lines, 1) if line} == {4: "a = 1", 9: "b = 2", 18: "a = 1"}


@each_page
def test_every_link_of_the_page_leads_somewhere(page: Path) -> None:
    """A link to a file, or to a heading in this page or in another, finds it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text("utf-8")), target


def test_the_readme_links_every_page() -> None:
    """README.md leads to each page."""
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)\)", README))
    assert linked >= {str(page.relative_to(ROOT)) for page in PAGES}


@each_page
def test_every_test_that_is_named_exists(page: Path) -> None:
    """A test that a page names as its proof is there: the file, and what is behind each `::` in it."""
    for name, rest in re.findall(r"(tests/[\w/]+\.py)((?:::\w+)*)", page.read_text("utf-8")):
        text = (ROOT / name).read_text("utf-8")
        for one in rest.split("::")[1:]:
            # The tests of a suite that several classes inherit stand in the file once.
            assert re.search(rf"^\s*(?:def|class) {one}\b", text, re.MULTILINE), f"{name}{rest}"


@each_page
def test_every_cron_line_is_one_of_the_readme(page: Path) -> None:
    """A crontab line of a page is one that the README shows too, where tests run it as cron does."""
    for block in blocks(page.read_text("utf-8")):
        if block.language == "crontab":
            assert block.text in README
