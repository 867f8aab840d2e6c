"""Build the twelve collections of scripts/bench_ask.py from packages of Debian and npm, and from own/.

    python scripts/questions/build.py FOLDER [CACHE]

collections.txt names packages, files and licences. Nothing of the packages' text is kept here but the sentences that
answer the questions of tune.jsonl and held-out.jsonl.
"""

import fnmatch
import gzip
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent


def unpack(client: str, package: str, version: str, into: Path, cache: Path) -> None:
    """Download a package, unless it is in the cache, and unpack it. A warning says if its version differs."""
    if client == "npm":
        file = cache / f"{package}-{version}.tgz"
        if not file.exists():
            subprocess.run(["npm", "pack", "-s", f"{package}@{version}"], cwd=cache, check=True)
        with tarfile.open(file) as tar:
            tar.extractall(into, filter="data")
        return
    if not list(cache.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "download", package], cwd=cache, check=True)
    file = max(cache.glob(f"{package}_*.deb"))
    actual = file.name.split("_")[1].replace("%3a", ":").split(":")[-1]
    if not fnmatch.fnmatch(actual, version):
        print(f"warning: {package} is {actual}, the questions were written for {version}", file=sys.stderr)
    subprocess.run(["dpkg", "-x", file, into], check=True)


def copy(pattern: str, to: Sequence[str], unpacked: Path, target: Path) -> None:
    """Copy the files that match a pattern, decompressed, perhaps to another name."""
    files = sorted(unpacked.glob(pattern.replace("DOC", "usr/share/doc")))
    if not files:
        print(f"warning: nothing matches {pattern}", file=sys.stderr)
    for file in files:
        content = file.read_bytes()
        (target / "".join(to or [file.name])).write_bytes(gzip.decompress(content) if file.suffix == ".gz" else content)


def main(folder: Path, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    shutil.copytree(HERE / "own", folder, dirs_exist_ok=True)
    unpacked = dict[str, Path]()
    with tempfile.TemporaryDirectory() as temporary:
        for line in (HERE / "collections.txt").read_text(encoding="utf-8").splitlines():
            if not line or line.startswith("#"):
                continue
            name, client, package, version, pattern, *to = line.split()
            if package not in unpacked:
                unpacked[package] = Path(temporary, package)
                unpack(client, package, version, unpacked[package], cache)
            (folder / name).mkdir(exist_ok=True)
            copy(pattern, to, unpacked[package], folder / name)
    for path in sorted(folder.iterdir()):
        print(f"{path.name:16} {len(list(path.iterdir())):3} files")


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    main(where, Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else where.parent / "download-cache")
