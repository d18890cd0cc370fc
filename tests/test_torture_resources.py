"""The trial of missing resources tries what it says, finds its mutants, and says what it could not try."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import CATALOGUE, catalogue_resources, mutated
from tests.torture import resources
from tests.torture.resources_cycle import MOUNTED

ROOT = Path(__file__).resolve().parent.parent


def tried(folder: Path, report: Path) -> tuple[int, dict[str, object]]:
    """Two cycles of the tree there: the code that it ends with, and what it reports."""
    words = ["--only", "resources", "--count", "2", "--jobs", "1", "--json", str(report)]
    run = subprocess.run([sys.executable, "-m", "tests.torture", *words], cwd=folder, check=False, capture_output=True)
    return run.returncode, json.loads(report.read_text())[0]


def test_it_finds_nothing(tmp_path: Path) -> None:
    """Of the shipped code: all that it promises holds, while callers were refused and ends could not be recorded."""
    code, row = tried(ROOT, tmp_path / "report")
    assert (code, row["violations"]) == (0, [])
    events = row["events"]
    assert isinstance(events, dict)
    assert min(events["entered"], events["ended"], events["run: StoreError"]) > 10


@pytest.mark.parametrize("mutant", [one.name for one in catalogue_resources.MUTANTS])
def test_it_finds_its_mutants(tmp_path: Path, mutant: str) -> None:
    """Each in two cycles."""
    with mutated(CATALOGUE[mutant]) as folder:
        code, row = tried(folder, tmp_path / "report")
    assert code == 1
    assert row["violations"]


def test_it_says_what_it_could_not_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody may mount, the rest is tried, and what was not is counted."""
    monkeypatch.setattr(resources, "namespaces", tuple)
    tally = resources.run(1, 1)
    assert tally.violations == []
    assert len(tally.distinct) == 1
    for kind in MOUNTED:
        assert tally.events[f"cycles without {kind} (nobody here may mount)"] == 1
