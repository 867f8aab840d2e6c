"""The README is true: its tree and its table come from the code, its commands exist, its presets are accepted."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tinygpt import cli, config, parse
from tinygpt.errors import TinyGPTError

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PRESETS = sorted((ROOT / "configs").glob("*.yaml"))


def commands(text: str) -> list[list[str]]:
    """Every `tinygpt ...` line of the shell blocks, split as a shell does, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("tinygpt ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_tree_and_keys_are_those_of_the_code() -> None:
    done = subprocess.run([sys.executable, "scripts/readme.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run: python scripts/readme.py"


def test_the_check_notices_a_changed_key(tmp_path: Path) -> None:
    """Negative control: a README with another default is not the code's."""
    for part in ("README.md", "tinygpt", "configs", "scripts", "docs", "data/README.md"):
        (tmp_path / part).parent.mkdir(exist_ok=True, parents=True)
        subprocess.run(["cp", "-r", ROOT / part, tmp_path / part], check=True)
    (tmp_path / "README.md").write_text(README.replace("| `block_size` | `1024`", "| `block_size` | `1023`"))
    done = subprocess.run([sys.executable, tmp_path / "scripts/readme.py", "--check"], cwd=tmp_path)
    assert done.returncode == 1


def test_the_three_commands_stand_in_the_readme() -> None:
    assert README.count("tinygpt prepare shakespeare_char\n") >= 1
    assert README.count("tinygpt train configs/shakespeare_char.yaml --device=cpu\n") >= 1
    assert README.count("tinygpt sample --ckpt out/ckpt.pt\n") >= 1


@pytest.mark.parametrize("command", commands(README), ids=" ".join)
def test_commands_of_the_readme_are_understood(command: list[str]) -> None:
    """Each parses: the command exists, and so do its flags (whether its files exist is not asked)."""
    _, kind, _ = cli.COMMANDS[command[0]]
    args = [arg for arg in command[1:] if arg != "CONFIG"]
    parse.parse(getattr(config, kind), args)


def test_a_flag_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(TinyGPTError, match="no such key"):
        test_commands_of_the_readme_are_understood(["sample", "--ckpt", "out", "--temprature=1"])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_presets_are_accepted_and_say_why(preset: Path) -> None:
    parse.parse(config.FinetuneConfig if preset.name.startswith("finetune") else config.TrainConfig, [str(preset)])
    assert preset.read_text().count("#") >= 3


def test_every_key_of_every_command_has_a_help_text() -> None:
    tree = ast.parse((ROOT / "tinygpt/config.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            body = node.body
            for field, text in zip(body, [*body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    told = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                    assert told, f"{node.name}.{ast.unparse(field.target)} has no help"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"usage: tinygpt {command}" in shown and "(default: " in shown


def test_no_help_imports_torch() -> None:
    for args in ("['--help']", "['train', '--help']", "['sample', '--help']"):
        code = "import sys, contextlib\nfrom tinygpt.cli import main\n"
        code += f"with contextlib.suppress(SystemExit): main({args})\n"
        done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], capture_output=True)
        assert done.returncode == 0, f"tinygpt {args} imports torch"
