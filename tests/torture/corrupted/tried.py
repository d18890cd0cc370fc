"""What was tried, as a hash: of the files that were put there, and of how and when. No -shm: it is made anew."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.torture.corrupted.series import Stage

__all__ = ["hash_of"]

COUNTED: Final = ("", "-wal", "-lock")


def hash_of(files: Mapping[str, bytes], stages: Sequence[Stage], circumstances: str) -> int:
    """A file that is one of these stages' own, or its beginning, counts as that one.

    So the same files of another part, whose ids and salts are others, are the same.
    """
    digest = blake2b(circumstances.encode(), digest_size=8)
    for suffix in COUNTED:
        content = files.get(suffix)
        own = next((number for number, stage in enumerate(stages) if _is_of(stage, suffix, content)), None)
        name = "none" if content is None else f"{len(content)} {own}"
        digest.update(f"\n{suffix} {name}\n".encode())
        if content is not None and own is None:
            digest.update(content)
    return int.from_bytes(digest.digest(), "big")


def _is_of(stage: Stage, suffix: str, content: bytes | None) -> bool:
    return content is not None and stage.files.get(suffix, b"").startswith(content)
