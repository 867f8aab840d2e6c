"""What is published: the files of the wheel and of the source archive, and when `scripts/release.sh` refuses."""

import os
import re
import shutil
import subprocess
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
        assert archive.read("tinygpt/configs/shakespeare_char.yaml") == (
            (ROOT / "configs/shakespeare_char.yaml").read_bytes()
        )
    presets = {path for path in (ROOT / "configs").rglob("*") if path.is_file()}
    expected = {path.relative_to(ROOT) for path in PACKAGE} | {
        Path("tinygpt", path.relative_to(ROOT)) for path in presets
    }
    assert files == {path.as_posix() for path in expected}
    assert {f"tinygpt/{name}" for name in TOLD} <= files
    assert "tinygpt = tinygpt.cli:main" in entry
    for line in ("Requires-Python: >=3.11", "Provides-Extra: report", "License-File: tinygpt/data/shakespeare.NOTICE"):
        assert line in metadata.splitlines()


def test_the_source_archive_has_what_the_wheel_and_the_tests_need(tmp_path: Path) -> None:
    with tarfile.open(built("sdist", tmp_path)) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {path.relative_to(ROOT).as_posix() for path in PACKAGE} <= files
    assert {
        "pyproject.toml",
        "LICENSE",
        "configs/shakespeare_char.yaml",
        "tests/conftest.py",
        "data/make/merchants.py",
        "docs/how-to/install.md",
    } <= files


def test_pages_name_the_wheel_of_this_version() -> None:
    named = [name for text in PAGES.values() for name in re.findall(r"tinygpt-(\d[\w.]*)-py3-none-any\.whl", text)]
    assert named and set(named) == {__version__}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A repository of one commit, whose version can be released."""
    if os.name == "nt" or not (shutil.which("bash") and shutil.which("git")):
        pytest.skip("needs bash and git")
    root = tmp_path / "checkout"
    for name in ("scripts/common.sh", "scripts/release.sh", "tinygpt/base/__init__.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "CHANGELOG.md").write_text(f"# Changelog\n\n## {__version__}\n\n- More.\n\n## 0.0.1\n\n- First.\n")
    git(root, "init", "--quiet")
    commit(root)
    return root


def git(folder: Path, *args: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *args], cwd=folder, check=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=more")


def run(folder: Path) -> tuple[int, str]:
    """Exit status and output of the script on a machine without Python, where it can only begin to build."""
    empty = folder.parent / "bin"
    empty.mkdir(exist_ok=True)
    for name in ("python", "python3", *(f"python3.{minor}" for minor in range(11, 15))):
        (empty / name).write_text("#!/bin/sh\nexit 1\n")
        (empty / name).chmod(0o755)
    path = f"{empty}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "scripts/release.sh"], cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert not (folder / "dist").exists()
    return done.returncode, done.stdout + done.stderr


def test_a_release_is_built_from_a_clean_tree_and_a_new_version(release: Path) -> None:
    status, output = run(release)
    assert status == 1 and f"building tinygpt {__version__}" in output and "needs Python" in output
    git(release, "tag", f"v{__version__}")  # of this commit: the files can be built again
    assert run(release)[0] == 1

    (release / "new.py").touch()
    status, output = run(release)
    assert status == 2 and "the tree has changes" in output

    commit(release)
    status, output = run(release)
    assert status == 2 and f"v{__version__} is the tag of another commit" in output

    git(release, "tag", "--delete", f"v{__version__}")
    changes = release / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace(f"## {__version__}\n", "## Unreleased\n"))
    commit(release)
    status, output = run(release)
    assert status == 2 and f'begins with "## Unreleased", not with "## {__version__}"' in output
