"""The pages of docs/: every Python block runs, page by page, in the order in which it stands."""

from __future__ import annotations

import gc
import re
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import AsyncRegistry, Registry
from tests.support.processes import ROOT
from tests.test_readme import blocks

if TYPE_CHECKING:
    from pathlib import Path

PAGES = sorted((ROOT / "docs").glob("*.md"))
README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader would type them, in an empty folder; a page says what holds by its own assertions."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__page__"}
    found = [block.text for block in blocks(page.read_text("utf-8")) if block.language == "python"]
    assert found, f"{page.name} shows no Python"
    try:
        for text in found:
            exec(compile(text, page.name, "exec", dont_inherit=True), namespace)  # noqa: S102 - our own page
    finally:
        for value in list(namespace.values()):
            if isinstance(value, AsyncRegistry):
                value.registry.close()
            elif isinstance(value, Registry):
                value.close()
        namespace.clear()
        gc.collect()


def test_the_readme_links_every_page() -> None:
    """A page that nobody finds is not there; a link that leads nowhere misleads."""
    assert {f"docs/{page.name}" for page in PAGES} == set(re.findall(r"\]\((docs/[\w.-]+)\)", README))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Relative links name a file that is there."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
