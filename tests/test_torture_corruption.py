"""The trial of corrupted files is content with the product, and judges aright what it is answered.

That it finds its mutants is tried by ``make torture ARGS="--power --only corruption"``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from idemreg import StoreError
from idemreg.lockfile import SIZE
from tests.torture import corruption
from tests.torture.corrupted import alive
from tests.torture.corrupted.asking import Questions
from tests.torture.corrupted.damage import AT_REST, Damaged, Scene, damage
from tests.torture.corrupted.loss import Blow, stays_lost, strike, vanished
from tests.torture.corrupted.series import OTHER, SERIES, Known, Stage, make
from tests.torture.corrupted.tried import hash_of
from tests.torture.trial import Tally, again

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg import Registry


def test_nothing_is_lost_by_corruption() -> None:
    """A tiny count: nothing is wrong, nearly all of it is distinct, and at rest and at work was tried."""
    tally = corruption.run(3, 60)
    assert tally.violations == []
    assert len(tally.distinct) > 50
    assert min(tally.events["alive"], tally.events["flips of database"]) > 0


def test_every_kind_of_damage_is_tried() -> None:
    """Each of the kinds comes up, and says what it has chosen."""
    stages = make(OTHER)
    seen = set()
    for seed in range(300):
        kind, damaged = damage(Scene(stages, stages, Random(seed), with_checksums=False))  # noqa: S311 - by a seed
        seen.add(kind)
        assert damaged.what
    assert seen == {kind.__name__ for kind in AT_REST}


@pytest.fixture
def one_series(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Stage, ...]:
    """All registries are one, which is made once; what is kept is kept in the test's folder."""
    stages = make(OTHER)
    monkeypatch.setattr(corruption, "make", lambda _name: stages)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return stages


@pytest.mark.usefixtures("one_series")
def test_a_death_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies by a signal is a violation, and the rest is tried by another."""

    def die(*_: object) -> dict[str, object]:
        import os  # noqa: PLC0415 - in the child

        os.abort()

    monkeypatch.setattr(corruption, "_try", die)
    tally = corruption.run(1, 2)
    assert isinstance(tally, Tally)
    assert [line.split(";")[0] for line in tally.violations] == [
        "0: the process ended with 6", "1: the process ended with 6",
    ]  # fmt: skip
    assert all((kept_of(line) / "as it was left").is_dir() for line in tally.violations)


def test_what_was_corrupted_is_kept(monkeypatch: pytest.MonkeyPatch, one_series: tuple[Stage, ...]) -> None:
    """A finding says where its files are, and they are those that the seed has chosen, as they were put there."""

    def refuse_all(*_: object) -> dict[str, object]:
        return {"hash": 1, "what": "flips", "wrong": ["no"], "said": {}}

    monkeypatch.setattr(corruption, "_try", refuse_all)
    monkeypatch.setattr(corruption, "KEPT", 2)
    *kept, last = corruption.run(5, 3).violations
    assert [line.partition("again: ")[2] for line in (*kept, last)] == [again("corruption", 5, n) for n in (1, 2, 3)]
    assert "the files: not kept;" in last
    templates = dict.fromkeys((*SERIES, "other"), one_series)
    for number, line in enumerate(kept):
        chosen = corruption._choose(templates, corruption._dice(5, number))
        assert (kept_of(line) / "jobs.db").read_bytes() == chosen.damaged.files[""]


def kept_of(line: str) -> Path:
    """The folder that a violation names."""
    return Path(line.partition("; the files: ")[2].partition("; again: ")[0])


# --- what counts as tried ---------------------------------------------------------------------------------------


def stages_of(salt: bytes) -> tuple[Stage, ...]:
    """Two stages of a registry that was made with this salt."""
    content = ({"": salt + b"1", "-lock": b"lock"}, {"": salt + b"2", "-wal": salt + b"frames", "-lock": b"lock"})
    return tuple(Stage(files, {}, 0, is_noted=True) for files in content)


def test_the_same_files_of_another_part_are_the_same() -> None:
    """A file that is a stage's own counts as that, whatever its ids and salts are; so does what is left of one."""
    hashes = set()
    for salt in (b"one", b"two"):
        stages = stages_of(salt)
        hashes.add(hash_of({**stages[0].files, "-wal": salt + b"fr"}, stages, "closed"))
    assert len(hashes) == 1


def test_a_shm_is_no_difference() -> None:
    """Whatever is in it, it is made anew."""
    stages = stages_of(b"")
    assert hash_of({**stages[0].files, "-shm": b"noise"}, stages, "") == hash_of(stages[0].files, stages, "")


@pytest.mark.parametrize(
    ("files", "circumstances"),
    [
        ({"": b"2", "-lock": b"lock"}, ""),
        ({"": b"flip", "-lock": b"lock"}, ""),
        ({"": b"", "-lock": b"lock"}, ""),
        ({"": b"1"}, ""),
        ({"": b"1", "-wal": b"frames", "-lock": b"lock"}, ""),
        ({"": b"1", "-lock": b"lock"}, "elsewhere"),
    ],
)
def test_other_files_and_circumstances_are_others(files: dict[str, bytes], circumstances: str) -> None:
    """Another stage's, changed, cut, absent, beside another; or the same in another place."""
    stages = stages_of(b"")
    assert hash_of(files, stages, circumstances) != hash_of(stages[0].files, stages, "")


# --- what must not be answered ----------------------------------------------------------------------------------


@pytest.fixture
def registry(open_registry: Callable[..., Registry]) -> Registry:
    """With one task that has succeeded, and one that has failed."""
    registry = open_registry()
    registry.run("there", lambda: "yes", name="job")
    with registry.claim("failed", name="job", on_failure="hold") as claim:
        claim.fail(ValueError("no"))
    return registry


def asked(path: Path, known: dict[str, Known], top: int = 0, *, may_forget: bool = False) -> Questions:
    """Questions about a registry of which that was told."""
    damaged = Damaged({}, "nothing", 0, top=top, may_forget=may_forget)
    return Questions(path, Stage({}, {"pending:0": PENDING, **known}, top, is_noted=True), damaged, Random(1))  # noqa: S311


PENDING = Known("pending", None, may_run=True)
THERE = {"there": Known("succeeded", "yes"), "failed": Known("failed")}


def test_what_is_there_is_admitted(registry: Registry, path: Path) -> None:
    """Each task is what was told of it; a refusal is an answer."""
    questions = asked(path, THERE)
    questions.known.pop("pending:0")
    questions.replays(registry, share=1.0)
    questions.looks(registry)
    questions.lists(registry)
    questions.upkeep(registry)
    questions.known["pending:0"] = PENDING
    questions.new(registry)
    assert questions.wrong == []
    assert not questions.is_excused
    assert questions.said == {"replays": 1, "TaskFailedError": 1, "new tasks": 1}


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ({"there": Known("succeeded", "another")}, "is answered"),
        ({"there": Known("failed")}, "is answered"),
        ({"gone": Known("succeeded", "yes")}, "gone was succeeded, and was entered"),
        ({"gone": Known("unknown")}, "gone was unknown, and was entered"),
    ],
)
def test_a_wrong_replay_is_seen(registry: Registry, path: Path, known: dict[str, Known], says: str) -> None:
    """What has ended is never entered, nor answered otherwise."""
    questions = asked(path, known)
    questions.replays(registry, share=1.0)
    (wrong,) = questions.wrong
    assert says in wrong


def test_an_older_page_may_forget(registry: Registry, path: Path) -> None:
    """Which is not promised, and so no violation."""
    questions = asked(path, {"gone": Known("succeeded", "yes")}, may_forget=True)
    questions.replays(registry, share=1.0)
    questions.looks(registry)
    questions.lists(registry)
    assert questions.wrong == []
    assert questions.is_excused


def test_a_wrong_look_is_seen(registry: Registry, path: Path) -> None:
    """A row that is absent, or of another status; a list, and counts, that lack one."""
    questions = asked(path, {"failed": Known("succeeded", "yes"), "gone": Known("skipped")})
    questions.known.pop("pending:0")
    questions.looks(registry)
    questions.known["gone too"] = Known("skipped")
    questions.lists(registry)
    assert sorted(one.partition(", and ")[2].split("{")[0].strip() for one in questions.wrong) == [
        "get says FAILED", "is absent from get", "is absent from the counts", "is absent from the list, with 1 more",
    ]  # fmt: skip


def test_an_old_token_is_seen(registry: Registry, path: Path) -> None:
    """What runs has a token above all that were given."""
    questions = asked(path, THERE, top=1 << 62)
    questions.new(registry)
    (wrong,) = questions.wrong
    assert "got token" in wrong


def test_an_error_of_no_type_is_seen(path: Path) -> None:
    """A typed one is an answer; any other is not."""
    questions = asked(path, {})
    for error in (StoreError("no"), OSError("no")):
        with questions.asking("it"):
            refuse(error)
    assert questions.wrong == ["it raised OSError('no')"]
    assert questions.said == {"StoreError": 1}


def refuse(error: Exception) -> None:
    raise error


# --- behind the loss of a file ----------------------------------------------------------------------------------

LOSS = Blow("delete", "-wal")


@pytest.mark.parametrize(
    ("blow", "is_loss"),
    [
        *((Blow(kind, suffix), True) for kind in ("delete", "replace") for suffix in ("", "-wal", "-lock", "-shm")),
        (Blow("flip", ""), False),
        (Blow("cut", "-wal", left=4_000, used=4_001), True),
        (Blow("cut", "-wal", left=4_001, used=4_001), False),
        (Blow("cut", "-wal", left=0, used=0), False),
        (Blow("cut", "-lock", left=SIZE - 1), True),
        (Blow("cut", "-lock", left=SIZE), False),
        (Blow("cut", "", left=4_097), True),
        (Blow("cut", "", left=4_097, seen=4_098), True),
        (Blow("cut", "", left=4_097, seen=4_097), False),
        (Blow("cut", "", left=0), True),
        (Blow("cut", "", left=4_096), False),
    ],
)
def test_what_is_a_loss(blow: Blow, *, is_loss: bool) -> None:
    """A cut is one where what is gone was in use; a database may end behind any page."""
    assert blow.is_loss is is_loss


def test_what_is_in_the_database_is_no_loss_of_the_wal(registry: Registry, path: Path) -> None:
    """Of a -wal that was moved into it nothing is in use: the next commit begins it anew."""
    registry.run("t", int)
    used, seen = alive._sizes(registry)
    assert used > 0
    assert seen == path.stat().st_size
    registry.checkpoint("PASSIVE")
    assert alive._sizes(registry)[0] == 0


@pytest.mark.parametrize("durability", ["full", "normal"])
@pytest.mark.parametrize("suffix", ["", "-wal", "-lock", "-shm"])
def test_a_loss_that_is_seen_is_admitted(
    open_registry: Callable[..., Registry], path: Path, suffix: str, durability: str
) -> None:
    """Nothing runs, and nothing is written; the end of a job in whose middle it came is not acknowledged."""
    registry = open_registry(durability=durability)
    questions, blow = asked(path, {}), Blow("delete", suffix)
    questions.new(registry)
    strike(questions, registry, blow, path.with_name(f"{path.name}{suffix}").unlink, is_durable=durability == "full")
    stays_lost(questions, registry, blow)
    assert questions.wrong == []
    assert questions.entered == {"new:1": 1, "new:2": 1}
    if suffix in {"", "-wal", "-shm"} and durability == "full":
        assert questions.said["FinishNotRecordedError"] == 1


@pytest.mark.parametrize("suffix", ["", "-wal", "-lock"])
def test_a_loss_that_is_not_seen_is_told(registry: Registry, path: Path, suffix: str) -> None:
    """The files are all there, and it is said that one is not: what runs and is written all the same is wrong."""
    questions, blow = asked(path, {}), Blow("replace", suffix)
    stays_lost(questions, registry, blow)
    what = suffix or "the database"
    written = [] if suffix == "-lock" else [f"what is there was written to behind the replace of {what}"]
    entered = [f"new:{number} was entered behind the replace of {what}" for number in (1, 2)]
    assert questions.wrong == [*entered, *written]


def test_an_end_behind_a_loss_is_not_acknowledged(registry: Registry, path: Path) -> None:
    """It is wrong, but for a process that has lost its lock file alone, or does not sync it."""
    questions = asked(path, {})
    for blow, is_durable in (
        (LOSS, True), (LOSS, False), (Blow("delete", "-lock"), True), (Blow("cut", "-wal", 1, 2), False),
    ):  # fmt: skip
        strike(questions, registry, blow, int, is_durable=is_durable)
    assert questions.wrong == [
        "new:1 was acknowledged behind the delete of -wal in the middle of its job",
        "new:4 was acknowledged behind the cut of -wal in the middle of its job",
    ]


def test_a_cut_wal_that_is_filled_up_is_seen(registry: Registry, path: Path) -> None:
    """Whatever else was seen, and whatever is where the gap was."""
    questions = asked(path, {})
    size = path.with_name(f"{path.name}-wal").stat().st_size
    stays_lost(questions, registry, Blow("cut", "-wal", left=size - 1, used=size))
    assert any(wrong.startswith(f"a -wal that was cut to {size - 1} bytes has ") for wrong in questions.wrong)


def test_a_loss_that_is_none_asks_nothing(registry: Registry, path: Path) -> None:
    """What a cut has left out was not in use: all goes on."""
    questions = asked(path, {})
    stays_lost(questions, registry, Blow("cut", "-wal", left=9, used=9))
    assert questions.wrong == []
    assert questions.entered == {"new:1": 1, "new:2": 1}


def test_a_database_that_is_made_anew_is_seen(registry: Registry, path: Path) -> None:
    """By its opening, and by its name; a refusal is an answer."""
    registry.close()
    questions = asked(path, {})
    vanished(questions)
    assert questions.wrong == [
        "a database that was deleted was made anew",
        "a database that was deleted is there again",
    ]
    path.unlink()
    questions = asked(path, {})
    vanished(questions)
    assert questions.wrong == []
    assert questions.said.total() == 1
