"""The trial of power cuts finds nothing in the shipped code, and tells of a loss so that it can be seen again."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.powercut import recorder
from tests.powercut.run import record_and_judge
from tests.torture import powercut

ROOT = Path(__file__).resolve().parent.parent


pytestmark = pytest.mark.usefixtures("compiler")


def test_it_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shipped code no image has lost anything, and as many distinct ones were judged as were asked for."""
    monkeypatch.setattr(powercut, "record_and_judge", functools.partial(record_and_judge, rounds=2, steps=3))
    tally = powercut.run(1, 300)
    assert tally.violations == []
    assert len(tally.distinct) >= 300


def test_it_says_how_to_see_a_loss_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nothing is synced everything is lost, and the command that tells of it finds that in the kept log."""
    normal = functools.partial(record_and_judge, durability="normal", stop_at=1)
    monkeypatch.setattr(powercut, "record_and_judge", normal)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tally = powercut.run(1, 300)
    again = tally.violations[0].partition("; again: python ")[2].split()
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
