"""What befalls the files: each kind a function that changes them, chosen by a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.torture.corrupted.series import First, Stage

__all__ = ["AT_REST", "Damaged", "damage"]

Files = dict[str, bytes]
PAGE_SIZE_AT: Final = 16
WAL_HEADER_BYTES: Final = 32
NEAR: Final = 0.2  # of the flips, those that lie together anywhere
IN_A_RESULT: Final = 0.3  # and those that lie together in a result: most of a file is in use by nobody
RESULT: Final = b'"task:'  # so each begins


class Damaged(NamedTuple):
    """The files, and what may be asked of them."""

    files: Files
    what: str  # all that was chosen
    stage: int  # what the callers were told by this stage is judged
    shows: bool = True  # the times of the database tell
    at_home: bool = True  # the files are those that the lock file knows
    top: int = 0  # what runs gets a token above this one
    is_replaced: bool = False  # and the database is another than the one that the lock file tells of
    may_forget: bool = False  # an older page in its place, or another registry's: not promised


class Scene(NamedTuple):
    """One registry's stages, another's, and the dice."""

    stages: tuple[Stage, ...]
    others: tuple[Stage, ...]
    dice: Random
    with_checksums: bool

    def pick(self) -> int:
        return self.dice.randrange(len(self.stages))

    def killed(self) -> int:
        return self.dice.choice((1, 3))

    @property
    def first(self) -> First:
        return _first(self.stages)

    @property
    def first_of_another(self) -> First:
        return _first(self.others)


def _first(stages: tuple[Stage, ...]) -> First:
    first = stages[0].first
    assert first is not None
    return first


def _flip(content: bytes, dice: Random) -> tuple[bytes, str]:
    """1 to 8 bits or bytes, together or anywhere."""
    changed = bytearray(content)
    if not changed:
        return content, "nothing"
    number, near = dice.randint(1, 8), None
    chance = dice.random()
    if chance < IN_A_RESULT and (at := content.find(RESULT, dice.randrange(len(content)))) >= 0:
        number, near = dice.randint(1, 2), at + 1
    elif chance < IN_A_RESULT + NEAR:
        near = dice.randrange(len(content))
    places = []
    for _ in range(number):
        at = dice.randrange(len(changed)) if near is None else min(near + dice.randrange(16), len(changed) - 1)
        mask = 1 << dice.randrange(8) if dice.random() < 0.7 else dice.randint(1, 255)
        changed[at] ^= mask
        places.append(f"{at}^{mask}")
    return bytes(changed), " ".join(places)


def flips_of_database(scene: Scene) -> Damaged:
    stage = scene.pick()
    content, what = _flip(scene.stages[stage].files[""], scene.dice)
    return Damaged({**scene.stages[stage].files, "": content}, what, stage)


def rot(scene: Scene) -> Damaged:
    """A disk that gives other bits than it was given: nothing tells of it but the checksums of pages and rows."""
    stage = scene.pick()
    content, what = _flip(scene.stages[stage].files[""], scene.dice)
    # Without page checksums a row may be hidden so: not promised.
    return Damaged(
        {**scene.stages[stage].files, "": content}, what, stage, shows=False, may_forget=not scene.with_checksums
    )


def flips_of_wal(scene: Scene) -> Damaged:
    stage = scene.killed()
    content, what = _flip(scene.stages[stage].files["-wal"], scene.dice)
    return Damaged({**scene.stages[stage].files, "-wal": content}, what, stage, shows=False)


def flips_of_header_of_wal(scene: Scene) -> Damaged:
    """To SQLite it is an empty one then; and no time of the database speaks against that."""
    stage = scene.killed()
    wal = scene.stages[stage].files["-wal"]
    content, what = _flip(wal[:WAL_HEADER_BYTES], scene.dice)
    return Damaged({**scene.stages[stage].files, "-wal": content + wal[WAL_HEADER_BYTES:]}, what, stage)


def flips_of_lock_file(scene: Scene) -> Damaged:
    stage = scene.pick()
    at = scene.dice.choice((304, 1024, 4096))
    lock = scene.stages[stage].files["-lock"]
    content, what = _flip(lock[:at], scene.dice)
    files = {**scene.stages[stage].files, "-lock": content + lock[at:]}
    return Damaged(files, what, stage, shows=False, at_home=scene.dice.random() < 0.5)


def pages(scene: Scene) -> Damaged:
    """Pages swapped, written twice, zeroed."""
    stage = scene.pick()
    content = bytearray(scene.stages[stage].files[""])
    size = int.from_bytes(content[PAGE_SIZE_AT : PAGE_SIZE_AT + 2], "big")
    number = len(content) // size
    first, second = scene.dice.sample(range(number), 2)
    kind = scene.dice.choice(("swapped", "duplicated", "zeroed", "half zeroed"))
    one, two = slice(first * size, first * size + size), slice(second * size, second * size + size)
    if kind == "swapped":
        content[one], content[two] = content[two], content[one]
    elif kind == "duplicated":
        content[two] = content[one]
    else:
        half = scene.dice.randrange(1, size) if kind == "half zeroed" else size
        content[one.start : one.start + half] = bytes(half)
        kind = f"{kind} {half}"
    return Damaged({**scene.stages[stage].files, "": bytes(content)}, f"{kind} {first} {second}", stage)


def older_pages(scene: Scene) -> Damaged:
    """Some pages as they were before."""
    stage, before = sorted(scene.dice.sample(range(len(scene.stages)), 2), reverse=True)
    content, old = bytearray(scene.stages[stage].files[""]), scene.stages[before].files[""]
    size = int.from_bytes(content[PAGE_SIZE_AT : PAGE_SIZE_AT + 2], "big")
    chosen = scene.dice.sample(range(len(old) // size), min(scene.dice.randint(1, 3), len(old) // size))
    for page in chosen:
        content[page * size : page * size + size] = old[page * size : page * size + size]
    files = {**scene.stages[stage].files, "": bytes(content)}
    return Damaged(files, f"{before} {chosen}", stage, may_forget=True)


def cut(scene: Scene) -> Damaged:
    """The database, the -wal or the lock file ends anywhere."""
    suffix = scene.dice.choice(("", "", "-wal", "-wal", "-lock"))
    stage = scene.killed() if suffix == "-wal" else scene.pick()
    content = scene.stages[stage].files[suffix]
    length = scene.dice.randrange(len(content))
    if scene.dice.random() < 0.3:
        length -= length % 512
    files = {**scene.stages[stage].files, suffix: content[:length]}
    return Damaged(files, f"{suffix} {length}", stage, shows=not suffix)


def wal_of_another_time(scene: Scene) -> Damaged:
    """The -wal of one stage beside all that is of another, or none, or that of another registry."""
    stage = scene.pick()
    own = scene.stages[stage].files
    kind = scene.dice.choice(("another time", "another registry", "none"))
    if kind == "none" or (kind == "another time" and stage == 0):
        stage, kind = scene.killed(), "none"
        files = {suffix: content for suffix, content in scene.stages[stage].files.items() if suffix != "-wal"}
        what = ""
    elif kind == "another registry":
        other = scene.killed()
        files, what = {**own, "-wal": scene.others[other].files["-wal"]}, f"{other}"
    else:
        # One that is over: of a stage before. One that is to come is told by nobody.
        before = 1
        stage = max(stage, 2)
        files, what = {**scene.stages[stage].files, "-wal": scene.stages[before].files["-wal"]}, f"{before}"
    if scene.dice.random() < 0.5:
        files.pop("-shm", None)
        what += " without -shm"
    length = len(files.get("-wal", b""))
    if kind != "none" and scene.dice.random() < 0.8:  # as if the copy had been cut, so that they are distinct
        length = scene.dice.randrange(32, length)
        files["-wal"] = files["-wal"][:length]
    content, flip = _some_garbage(files, scene)
    # Copied elsewhere without its -wal, nothing could tell; closed in order it has none.
    at_home = stage % 2 == 1 or kind != "another registry" or scene.dice.random() < 0.5
    what = f"{kind} {what} {length} {flip}"
    # Of a copy no note tells that it is whole without any -wal: pages of another registry may happen to fit.
    return Damaged(content, what, stage, shows=False, at_home=at_home, may_forget=not at_home)


def _some_garbage(files: Files, scene: Scene) -> tuple[Files, str]:
    """The -shm of a registry that nobody has open is made anew: whatever is in it does not matter."""
    size = scene.dice.choice((0, 100, 32_768, 65_536))
    return {**files, "-shm": _noise(scene.dice, size)}, f"-shm {size}"


def _noise(dice: Random, size: int) -> bytes:
    return dice.randbytes(size) if dice.random() < 0.8 else bytes(size)


def first_wal(scene: Scene) -> Damaged:
    """Over a closed registry its first -wal, or a beginning of it: a whole database, as it once was. Or another's."""
    is_own = scene.dice.random() < 0.5
    wal = (scene.first if is_own else scene.first_of_another).whole["-wal"]
    length = scene.dice.randrange(len(wal) // 4, len(wal))
    # Beside a copy, or a database that was written to since, another's pages may happen to fit.
    at_home, shows = (scene.dice.random() < 0.8, scene.dice.random() < 0.8) if is_own else (True, False)
    files = {**scene.stages[2].files, "-wal": wal[:length]}
    return Damaged(files, f"{'own' if is_own else 'of another'} {length}", 2, shows=shows, at_home=at_home)


def backup_under_wal(scene: Scene) -> Damaged:
    """A later database is put in the place of the first, whose -wal, with all that was in it, is left."""
    name, first = scene.dice.choice((("half", scene.first.half), ("whole", scene.first.whole)))
    noise = _tail(scene.dice)
    files = {**first, "": scene.stages[2].files[""], "-wal": first["-wal"] + noise}
    return Damaged(files, f"{name} and {len(noise)}", 2, is_replaced=True)


def other_history(scene: Scene) -> Damaged:
    """A copy of the registry was worked on elsewhere, and its -wal is put back: the same one, longer, and another."""
    noise = _tail(scene.dice)
    files = {**scene.first.whole, "-wal": scene.first.other + noise}
    return Damaged(files, f"and {len(noise)}", 0, shows=False)


def _tail(dice: Random) -> bytes:
    """Behind the used end of a -wal lies anything."""
    return dice.randbytes(dice.randrange(1, 5_000))


def mixed(scene: Scene) -> Damaged:
    """An older database under the newest -wal, or the newest database under an older -wal."""
    newest = scene.stages[3].files
    if scene.dice.random() < 0.5:
        before = scene.dice.choice((0, 1, 2))
        files, stage = {**newest, "": scene.stages[before].files[""]}, before
        what = f"old database {before}"
    else:
        before = 1
        files, stage, what = {**newest, "-wal": scene.stages[before].files["-wal"]}, 3, f"old -wal {before}"
    files, garbage = _some_garbage(files, scene)
    return Damaged(files, f"{what} {garbage}", stage, at_home=scene.dice.random() < 0.8)


def older_copy(scene: Scene) -> Damaged:
    """An older copy of database and -wal, beside the lock file of today."""
    stage = scene.dice.choice((0, 1, 2))
    files = {**scene.stages[stage].files, "-lock": scene.stages[3].files["-lock"]}
    if stage != 1 and scene.dice.random() < 0.5:
        files.pop("-shm", None)
    files, garbage = _some_garbage(files, scene)
    return Damaged(files, f"{garbage}", stage, at_home=scene.dice.random() < 0.5, top=scene.stages[3].top)


def other_lock_file(scene: Scene) -> Damaged:
    """Garbage in its place, or that of another registry, or none."""
    stage = scene.pick()
    files = dict(scene.stages[stage].files)
    kind = scene.dice.choice(("garbage", "of another", "none", "garbage behind the magic"))
    length = scene.dice.choice((0, 1, 16, 33, 100, 4_096, 5_000))
    noise = scene.dice.randbytes(length)
    if kind == "garbage":
        files["-lock"] = noise
    elif kind == "garbage behind the magic":
        files["-lock"] = files["-lock"][: scene.dice.choice((16, 32, 64))] + noise
    elif kind == "of another":
        files["-lock"] = scene.others[scene.pick()].files["-lock"]
    else:
        del files["-lock"]
    files, garbage = _some_garbage(files, scene)
    return Damaged(files, f"{kind} {length} {garbage}", stage, shows=False, at_home=False)


def index(scene: Scene) -> Damaged:
    """The -shm is garbage."""
    stage = scene.pick()
    shm = scene.stages[stage].files.get("-shm", bytes(32_768))
    content, what = _flip(shm, scene.dice) if scene.dice.random() < 0.5 else (scene.dice.randbytes(32_768), "noise")
    what = f"{what} {content[:8].hex()}"
    return Damaged({**scene.stages[stage].files, "-shm": content}, what, stage, shows=False)


AT_REST: Final[dict[Callable[[Scene], Damaged], int]] = {
    flips_of_database: 26,
    rot: 34,
    flips_of_wal: 14,
    flips_of_header_of_wal: 3,
    flips_of_lock_file: 6,
    pages: 5,
    older_pages: 4,
    cut: 12,
    wal_of_another_time: 10,
    first_wal: 6,
    backup_under_wal: 4,
    other_history: 3,
    mixed: 3,
    older_copy: 3,
    other_lock_file: 2,
    index: 2,
}


def damage(scene: Scene) -> tuple[str, Damaged]:
    """One kind of damage, by the dice."""
    (kind,) = scene.dice.choices([*AT_REST], [*AT_REST.values()])
    return kind.__name__, kind(scene)
