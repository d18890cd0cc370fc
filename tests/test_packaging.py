"""What is installed is what stands here: the schema behind the link, the types, and two dependencies."""

from __future__ import annotations

import email
import importlib.metadata
import importlib.resources
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from packaging.requirements import Requirement

import idemreg

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 120
SOURCES = ("idemreg", "pyproject.toml", "schema.sql", "LICENSE", "README.md")


class Built(NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A wheel and an sdist of a copy of the sources, since setuptools writes into the folder that it builds."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    # Both from the sources, not the wheel from the sdist: each must follow the link by itself.
    command = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", "dist", "."]
    run = subprocess.run(
        command, cwd=copy, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=TIMEOUT_S
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = (copy / "dist").glob("*.whl")
    (sdist,) = (copy / "dist").glob("*.tar.gz")
    return Built(wheel, sdist)


def schema_text() -> bytes:
    return (ROOT / "schema.sql").read_bytes()


def wheel_metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_schema_is_a_link() -> None:
    """The schema exists once, at top level; the package only links to it (`sed -i` on the link would make two)."""
    link = ROOT / "idemreg" / "schema.sql"
    assert link.is_symlink(), "idemreg/schema.sql:1: a file of its own, use ln -sf ../schema.sql idemreg/schema.sql"
    assert link.readlink() == Path("..", "schema.sql")


def test_wheel_holds_schema_and_types(built: Built) -> None:
    """The wheel has the text of the schema, not a link, and py.typed."""
    with zipfile.ZipFile(built.wheel) as archive:
        assert archive.read("idemreg/schema.sql") == schema_text()
        assert archive.read("idemreg/py.typed") == b""


def test_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    """Every module is in the wheel, also those of folders; tests and bench are not."""
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "idemreg").rglob("*.py")}
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == wanted | {"idemreg/schema.sql", "idemreg/py.typed"}


def test_sdist_holds_schema_and_types(built: Built) -> None:
    """The sdist has the text of the schema as a regular file, so that it builds where links do not exist."""
    with tarfile.open(built.sdist) as archive:
        (top,) = {name.split("/")[0] for name in archive.getnames()}
        member = archive.getmember(f"{top}/idemreg/schema.sql")
        assert member.isreg()
        file = archive.extractfile(member)
        assert file is not None
        assert file.read() == schema_text()
        assert archive.getmember(f"{top}/idemreg/py.typed").isreg()
        assert archive.getmember(f"{top}/LICENSE").isreg()


def test_installed_package_reads_the_schema() -> None:
    """The package, as installed here, reads the same text that stands at top level."""
    assert (importlib.resources.files("idemreg") / "schema.sql").read_bytes() == schema_text()


def test_installation_finds_the_schema_from_anywhere(tmp_path: Path) -> None:
    """A process that starts in another folder imports the installed package and reads the schema."""
    script = (
        "import importlib.resources as r, sys;sys.stdout.buffer.write((r.files('idemreg') / 'schema.sql').read_bytes())"
    )
    command = [sys.executable, "-I", "-c", script]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=TIMEOUT_S)
    assert run.returncode == 0, run.stderr.decode()
    assert run.stdout == schema_text()


def test_dependencies_are_two(built: Built) -> None:
    """Who installs idemreg gets apsw and click, and what those need; all else is an extra."""
    every = wheel_metadata(built.wheel).get_all("Requires-Dist") or []
    found = [text for text in every if "extra ==" not in text]
    assert len(found) < len(every)
    assert sorted(Requirement(text).name for text in found) == ["apsw", "click"]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    assert {Requirement(text) for text in found} == {Requirement(text) for text in declared}


def test_the_core_imports_its_two_dependencies_only(tmp_path: Path) -> None:
    """Every module, idemreg.ext.asgi included, imports none of the extras and no framework."""
    script = """if True:
        import importlib, pkgutil, sys
        before = set(sys.modules)
        import idemreg
        names = [one.name for one in pkgutil.walk_packages(idemreg.__path__, "idemreg.")]
        assert "idemreg.ext.asgi" in names and "idemreg.sqlite.hot" in names
        for name in names:
            if name not in ("idemreg.__main__", "idemreg.ext.powertools"):
                importlib.import_module(name)
        roots = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(*sorted(roots - sys.stdlib_module_names))
    """
    command = [sys.executable, "-I", "-c", script]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["apsw", "click", "idemreg"]


def test_version_is_written_once(built: Built) -> None:
    """The wheel, the installation and `idemreg.__version__` name one version."""
    assert wheel_metadata(built.wheel)["Version"] == idemreg.__version__
    assert importlib.metadata.version("idemreg") == idemreg.__version__
