"""The trial of power cuts tries what it says, and finds a mutant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import CATALOGUE, mutated
from tests.powercut import recorder
from tests.torture import powercut

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="module")
def compiler() -> None:
    """As in test_powercut.py."""
    try:
        recorder.shim()
    except recorder.NoCompilerError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def tried(folder: Path, tmp_path: Path, *words: str) -> tuple[int, str, dict[str, object]]:
    """What ``python -m tests.torture`` says of the trial there: its code, what it prints, and its row."""
    report = tmp_path / "report.json"
    run = subprocess.run(
        [sys.executable, "-m", "tests.torture", "--only", "powercut", "--jobs", "1", "--json", report, *words],
        cwd=folder,
        env=os.environ | {"POWERCUT_SHIM": recorder.shim(), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr, json.loads(report.read_text())[0]


def test_it_finds_nothing(tmp_path: Path) -> None:
    """Of the shipped code no image has lost anything, and as many distinct ones were judged as were asked for."""
    code, said, row = tried(ROOT, tmp_path, "--count", "1000")
    assert code == 0, said
    assert row["violations"] == []
    assert isinstance(row["distinct"], int)
    assert row["distinct"] >= 1_000


def test_it_finds_a_mutant_and_says_how_to_see_it_again(tmp_path: Path) -> None:
    """A mutant's loss ends it with 1, and the command that it prints finds the loss once more in the kept log."""
    with mutated(CATALOGUE["finish-not-synced"]) as folder:
        code, said, row = tried(folder, tmp_path, "--count", "1000")
        assert code == 1, said
        assert isinstance(row["violations"], list)
        again = row["violations"][0].partition("; again: python ")[2].split()
        judged = subprocess.run([sys.executable, *again], cwd=ROOT, capture_output=True, text=True, check=False)
    assert judged.returncode == 1, judged.stdout + judged.stderr


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nothing can be recorded the trial does not pass in silence."""
    recorder.shim.cache_clear()
    monkeypatch.delenv("POWERCUT_SHIM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    tally = powercut.run(1, 10)
    assert not tally.distinct
    assert "no C compiler" in tally.violations[0]


def test_the_hash_of_an_image_is_the_same_in_every_process() -> None:
    """So that what two processes have seen counts once."""
    code = (
        "from tests.powercut.disk import File, Write\n"
        "from tests.powercut.image import contents, hash_of_all, hashes\n"
        "print(hash_of_all(hashes(contents({'f': (File(), [Write(0, 0, b'x' * 5_000)]), 'g': (File(), [])}))))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
