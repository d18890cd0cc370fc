"""The rules of the house as tests. Each finding reads `path:line: X, use Y`, with the path from the top level."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from idemreg import errors, faults
from idemreg.cli import COMMANDS
from idemreg.doctor.finding import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "idemreg").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

FILE_LINES = 400
FUNCTION_LINES = 50

WALL_CLOCK_CALLS = frozenset({
    "time.time",
    "time.time_ns",
    "datetime.now",
    "datetime.utcnow",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
})  # fmt: skip

# Of Python, taken apart so that this file does not find itself; and of the shell, where a command that is to last
# sleeps for long, and one that sleeps for a moment waits for something.
SLEEPS_IN_TEXT = re.compile("time[.]" + r"sleep\(|\bsleep 0[.]\d")
NAPS_HERE = ROOT / "tests" / "support" / "waiting.py"

# As they are typed; `idemreg runs on Linux` is no command.
COMMANDS_IN_HINTS = re.compile(
    rf"idemreg (--db|{'|'.join(COMMANDS)})\b|(pip install|chmod|chown|mkdir|head|docker|ulimit) -?\w"
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def report(findings: Iterable[str]) -> None:
    """Fail with every finding, one a line."""
    found = list(findings)
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


# --- size -------------------------------------------------------------------------------------------------------


def test_no_file_is_a_corridor() -> None:
    """A file of the package that outgrows its name becomes a folder of rooms."""
    report(
        f"{place(path, lines)}: {lines} lines, use at most {FILE_LINES}: make a folder of rooms"
        for path in PACKAGE
        if (lines := len(path.read_text("utf-8").splitlines())) > FILE_LINES
    )


def test_no_function_is_a_corridor() -> None:
    """A function of the package fits on a screen, docstring included."""
    report(
        f"{place(path, node.lineno)}: {node.name} has {lines} lines, use at most {FUNCTION_LINES}: branch in the parent"
        for path in PACKAGE
        for node in functions(path)
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    )


# --- time -------------------------------------------------------------------------------------------------------


def test_only_the_clock_reads_the_wall_clock() -> None:
    """No file but clock.py asks for the date or the time of day, so no decision can rest on it."""
    report(
        f"{place(path, call.lineno)}: {name}(), use a Clock (idemreg.clock)"
        for path in PACKAGE
        if path != ROOT / "idemreg" / "clock.py"
        for call in calls(path)
        if (name := ast.unparse(call.func)) in WALL_CLOCK_CALLS
    )


def test_tests_never_sleep() -> None:
    """Tests wait for what they can observe; a manual clock passes the time."""
    report(
        f"{place(path, line)}: {what}, use a manual clock, a barrier, or wait for an observed state"
        for path in TESTS
        for line, what in sleeps(path)
    )


def sleeps(path: Path) -> Iterator[tuple[int, str]]:
    """Each sleep of a test file, also in the text of a script that it starts."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and (is_sleep(node) or (is_nap(node) and path != NAPS_HERE)):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and SLEEPS_IN_TEXT.search(node.value):
            yield node.lineno, "a script that sleeps"


def is_sleep(call: ast.Call) -> bool:
    """But a clock's own, which is the manual clock's; and sleep(0), which only lets others run."""
    name = ast.unparse(call.func)
    clocks = name.lower().endswith("clock.sleep") or name.startswith("super()")
    return name.split(".")[-1] == "sleep" and not clocks and "sleep(0)" not in ast.unparse(call)


def is_nap(call: ast.Call) -> bool:
    """A wait for an event that nobody else knows, and so nobody sets."""
    return ast.unparse(call.func) == "threading.Event().wait" and bool(call.args)


# --- tests ------------------------------------------------------------------------------------------------------


def test_every_test_says_what_it_proves() -> None:
    """A test's docstring is the claim that it proves."""
    report(
        f"{place(path, node.lineno)}: {node.name} has no docstring, use one that states the claim"
        for path in TESTS
        for node in functions(path)
        if node.name.startswith("test_") and not ast.get_docstring(node)
    )


# --- fault points -----------------------------------------------------------------------------------------------


def points_passed() -> Iterator[tuple[Path, int, str | None]]:
    """Every `faults.point(...)` of the package: where, and the name, or None where it is no literal."""
    for path in PACKAGE:
        for call in calls(path):
            if ast.unparse(call.func) in {"faults.point", "point"}:
                argument = call.args[0] if call.args else None
                literal = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                yield path, call.lineno, ast.literal_eval(argument) if argument and literal else None


def test_fault_points_are_known() -> None:
    """The package passes a fault point by its literal name, and only one that is listed."""
    report(
        f"{place(path, line)}: fault point {name or 'without a literal name'}, use a name of idemreg.faults.POINTS"
        for path, line, name in points_passed()
        if name not in faults.POINTS
    )


def test_fault_points_are_passed() -> None:
    """Every listed fault point stands in the package, so that a test that arms it tests something."""
    path = ROOT / "idemreg" / "faults.py"
    lines = {node.value: node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)}
    passed = {name for _, _, name in points_passed()}
    report(
        f'{place(path, lines[name])}: nothing passes {name}, use faults.point("{name}") or take it from the list'
        for name in faults.POINTS
        if name not in passed
    )


def test_fault_points_are_listed_once() -> None:
    """No name stands twice in the list."""
    assert len(set(faults.POINTS)) == len(faults.POINTS)


# --- errors -----------------------------------------------------------------------------------------------------


def error_classes() -> list[type[errors.IdemregError]]:
    members = [member for _, member in inspect.getmembers(errors, inspect.isclass)]
    return [member for member in members if issubclass(member, errors.IdemregError)]


def line_of(error: type[errors.IdemregError]) -> str:
    return place(ROOT / "idemreg" / "errors.py", inspect.getsourcelines(error)[1])


def test_every_error_teaches() -> None:
    """Each error says what it means and what to do next; only the base, which is never raised, has no hint."""
    report(
        f"{line_of(error)}: {error.__name__} has no {missing}, use one of its own"
        for error in error_classes()
        for missing, there in (
            ("docstring", error.__doc__),
            ("hint", error is errors.IdemregError or vars(error).get("hint")),
        )
        if not there
    )


def words_of(value: ast.expr) -> str:
    """The text that stands in the source, with ``…`` for what is put into it."""
    if isinstance(value, ast.JoinedStr):
        return "".join(words_of(piece) for piece in value.values)
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else "…"


def hints(path: Path) -> Iterator[tuple[int, str]]:
    """What a file gives as hints: by a name, to a usage error, in the doctor's table, as the next step of a task."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.keyword) and node.arg == "hint":
            yield node.value.lineno, words_of(node.value)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "hint":
            yield node.lineno, words_of(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "HintedUsageError" and len(node.args) > 1:
            yield node.lineno, words_of(node.args[1])
    if path.name == "finding.py":
        yield from ((1, hint) for _, hint in KINDS.values())
    if path.name == "task.py":
        (function,) = (one for one in functions(path) if one.name == "next_step")
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and node.value.value:
                yield node.lineno, words_of(node.value)


def test_hints_have_one_voice() -> None:
    """A hint is a sentence, in which commands stand in backticks; or nothing but the form of the command itself."""
    findings = []
    for path in PACKAGE:
        for line, hint in hints(path):
            rest = re.sub("`[^`]*`", "", hint)
            if hint.startswith("idemreg ") and "`" not in hint:
                continue
            if hint and not (hint[0].isupper() or hint[0] in "…`" or hint.startswith("idemreg ")):
                findings.append(f"{place(path, line)}: {hint!r} begins small, use a capital letter")
            if COMMANDS_IN_HINTS.search(rest):
                findings.append(f"{place(path, line)}: {hint!r} has a bare command, use backticks around it")
    report(findings)


def test_every_error_has_a_code_of_its_own() -> None:
    """Codes are for machines: each class has one, and no two share it."""
    seen: dict[str, str] = {}
    findings = []
    for error in error_classes():
        code = vars(error).get("code")
        if not code or code in seen:
            what = f"the code of {seen[code]}" if code else "no code"
            findings.append(f"{line_of(error)}: {error.__name__} has {what}, use one of its own")
        seen.setdefault(code or "", error.__name__)
    report(findings)


def test_every_error_is_public() -> None:
    """Each error is in `errors.__all__`, so that documents and users find it."""
    report(
        f"{line_of(error)}: {error.__name__} is not in __all__, use an entry there"
        for error in error_classes()
        if error.__name__ not in errors.__all__
    )


# --- floors -----------------------------------------------------------------------------------------------------


def test_every_room_has_a_floor() -> None:
    """Every module stands in the layers of pyproject.toml; a room that stands nowhere may import anything."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (layers,) = (entry["layers"] for entry in config["tool"]["importlinter"]["contracts"] if entry["type"] == "layers")
    floors = {name.strip(" ()") for layer in layers for name in layer.replace(":", "|").split("|")}
    report(
        f"{place(path, 1)}: {name} has no floor, use a line of [[tool.importlinter.contracts]] in pyproject.toml"
        for path in PACKAGE
        if path.name != "__init__.py"
        and (name := ".".join(path.relative_to(ROOT).with_suffix("").parts))
        and not any(name == floor or name.startswith(floor + ".") for floor in floors)
    )
