"""Check that the core lives alone: that it needs none of the packages examine, adapt, use and learn.

python scripts/core_alone.py

Copy tinygpt/ without one of them, for each, and without all four. In each copy, import every module of the core and run
its three commands, with 20 iterations. Print what failed; the exit status is 1 if something did. The core includes
`cli`, which imports a command when it is run, but not `api`, which imports examine.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tinygpt.cli import GROUPS

ROOT = Path(__file__).resolve().parent.parent
_, *PACKAGES = GROUPS  # the first group is the three commands of the core
JOBS = 2  # copies at a time
CHECK = """
import importlib, os, sys
from tinygpt import __file__, cli
assert os.path.samefile(__file__, "tinygpt/__init__.py"), f"{__file__} was imported instead of the copy"
for name in sys.argv[1:]:
    importlib.import_module(name)
for line in (
    "prepare shakespeare_char",
    "train configs/shakespeare_char.yaml --device=cpu --max_iters=20 --eval_interval=10 --eval_iters=1 --quiet",
    "sample --ckpt out/ckpt.pt --max_new_tokens=20 --device=cpu",
):
    if status := cli.main(line.split()):
        sys.exit(f"tinygpt {line}: exit status {status}")
"""


def core(folder: Path) -> list[str]:
    """The names of the core's modules."""
    paths = [path.relative_to(folder).with_suffix("") for path in sorted(folder.glob("tinygpt/**/*.py"))]
    names = [".".join(path.parts) for path in paths if path.parts[1] not in (*PACKAGES, "api", "__main__")]
    return [name.removesuffix(".__init__") for name in names]


def failure(removed: list[str], folder: Path) -> str:
    """Check a copy without the packages `removed`. Returns what failed, or an empty string."""
    shutil.copytree(ROOT / "tinygpt", folder / "tinygpt")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for package in removed:
        shutil.rmtree(folder / "tinygpt" / package)
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", CHECK, *core(folder)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    return done.stderr if done.returncode else ""


def main() -> int:
    cases = [*([package] for package in PACKAGES), PACKAGES]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(JOBS) as pool:
        folders = [Path(place) / "-".join(removed) for removed in cases]
        failures = list(pool.map(failure, cases, folders))
    for removed, failed in zip(cases, failures, strict=True):
        print(f"{'FAIL' if failed else 'PASS'}  without {', '.join(removed)}\n{failed}", end="")
    print(f"{time.monotonic() - began:.0f} seconds")
    return int(any(failures))


if __name__ == "__main__":
    sys.exit(main())
