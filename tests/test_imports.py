"""What a command imports, and code that no module may contain. scripts/policy.py checks which module imports which."""

import re
import subprocess
import sys
from pathlib import Path

from conftest import PATIENCE

import tinygpt

SOURCE = Path(tinygpt.__file__).parent


def test_help_and_preparing_text_import_nothing_heavy(tmp_path: Path) -> None:
    """In one process, which does not import PyTorch until it must."""
    (tmp_path / "text.txt").write_text("some text to learn from\n" * 50)
    code = """
import contextlib, sys
from tinygpt.cli import main
from tinygpt.base.configs.parse import parse
from tinygpt.base.configs.core import TrainConfig
imported = []
def note(*names):
    imported.append([name for name in names if name in sys.modules])
parse(TrainConfig, ["configs/shakespeare_char.yaml", "--seed=1"])
note("argparse")
lines = ["--help", "--version", "trian", "no", "report --help", "export --help", "doctor --help"]
for line in [*lines, "train --help", "prepare --help", "sample -h", "sample --help"]:
    with contextlib.suppress(SystemExit):
        main(line.split())
    note("torch", "numpy", "tiktoken", "requests", "jinja2", "shtab")
status = main(["prepare", "mine", "--input=text.txt"])
note("torch")
print(status, imported)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines()[-1] == f"0 {[[]] * 13}", done


RUNS_CODE = (
    r"(?<![.\w])(exec|eval)\(|\b(import|from) (pickle|marshal|shelve|dill|joblib)\b|\byaml\.(unsafe_|full_)?load\("
    r"|weights_only=False|torch\.load\((?!.*weights_only=True)|allow_pickle=True|shell=True"
)


def test_no_module_can_run_code_from_a_file() -> None:
    assert {path.name for path in SOURCE.rglob("*.py") if re.search(RUNS_CODE, path.read_text("utf-8"))} == set()
    assert re.search(RUNS_CODE, "state = torch.load(path)") and re.search(RUNS_CODE, "x = eval(text)")
