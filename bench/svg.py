"""An SVG as it is kept: nothing in it runs, and drawing it anew of the same figures changes nothing."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["inert"]

# pygal writes its settings as a script, for tooltips that a README's picture does not have, and a date as a comment.
NOT_KEPT: Final = re.compile(r"<script\b(?:[^>]*/>|.*?</script\s*>)|<!--.*?-->", re.DOTALL | re.IGNORECASE)


def inert(drawn: str) -> str:
    """The drawing without scripts and comments."""
    return NOT_KEPT.sub("", drawn).rstrip() + "\n"
