"""Open exported models in clients that may conflict with other packages, each in an environment of its own.

Today that is llama.cpp, through the package xllamacpp: tests/test_llama.py starts its server and compares tokens, log
probabilities, greedy texts and answers with tinygpt's. The everyday suite skips those tests.

python scripts/clients.py              # makes the environment in a temporary folder, about 100 MB
python scripts/clients.py ~/llama      # keeps it in this folder, and uses it again
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "xllamacpp"


def python_with(package: str, folder: Path) -> Path:
    """Install a package in the environment `folder`, which is made unless it exists; return its interpreter."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
    return python


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).expanduser().resolve()
        known = {**os.environ, "TINYGPT_LLAMA_PYTHON": str(python_with(PACKAGE, folder))}
        command = [sys.executable, "-m", "pytest", "tests/test_llama.py", "-rs", "-s"]
        return subprocess.run(command, cwd=ROOT, env=known).returncode


if __name__ == "__main__":
    raise SystemExit(main())
