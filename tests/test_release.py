"""What is published: the files of the wheel and of the source archive."""

import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from inputs import PAGES

from tinygpt import __version__

ROOT = Path(__file__).parent.parent
PACKAGE = {path for path in (ROOT / "tinygpt").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
TOLD = {"py.typed", "data/shakespeare.txt.bz2", "data/tasks/merchants.LICENSE"}
TOLD |= {"use/ask/reader.pt", "examine/report/model.js"}


def built(kind: str, folder: Path) -> Path:
    """Build the wheel or the source archive (sdist) of this checkout."""
    builder = pytest.importorskip(f"hatchling.builders.{kind}", reason="needs hatchling, which builds the package")
    return Path(next(getattr(builder, f"{kind.title()}Builder")(str(ROOT)).build(directory=str(folder))))


def test_the_wheel_has_the_package_the_presets_and_nothing_else(tmp_path: Path) -> None:
    wheel = built("wheel", tmp_path)
    assert wheel.name == f"tinygpt-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        info = f"tinygpt-{__version__}.dist-info"
        files = {name for name in archive.namelist() if not name.startswith(info)}
        metadata, entry = (archive.read(f"{info}/{name}").decode() for name in ("METADATA", "entry_points.txt"))
        preset = archive.read("tinygpt/configs/shakespeare_char.yaml")
    assert preset == (ROOT / "configs/shakespeare_char.yaml").read_bytes()
    presets = {Path("tinygpt", path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert files == {path.as_posix() for path in presets | {path.relative_to(ROOT) for path in PACKAGE}}
    assert {f"tinygpt/{name}" for name in TOLD} <= files
    assert "tinygpt = tinygpt.cli:main" in entry
    for line in ("Requires-Python: >=3.11", "Provides-Extra: report", "License-File: tinygpt/data/shakespeare.NOTICE"):
        assert line in metadata.splitlines()


def test_the_source_archive_has_what_the_wheel_and_the_tests_need(tmp_path: Path) -> None:
    with tarfile.open(built("sdist", tmp_path)) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {path.relative_to(ROOT).as_posix() for path in PACKAGE} <= files
    needed = {"pyproject.toml", "LICENSE", "configs/shakespeare_char.yaml", "tests/conftest.py"}
    assert needed | {"docs/how-to/install.md", "data/make/merchants.py"} <= files


def test_pages_name_the_wheel_of_this_version() -> None:
    named = [name for text in PAGES.values() for name in re.findall(r"tinygpt-(\d[\w.]*)-py3-none-any\.whl", text)]
    assert named and set(named) == {__version__}
