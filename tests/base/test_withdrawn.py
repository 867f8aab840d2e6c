"""What was withdrawn is refused with what replaces it, and ignored in the config file of an earlier version."""

from pathlib import Path

import pytest
from conftest import ok, refused

from tinygpt.base.configs import withdrawn

COMMANDS = [[name] for name in withdrawn.COMMANDS]
FLAGS = [[command, f"--{key}=1"] for command, key in withdrawn.KEYS]
TASKS = [["prepare", name] for name in withdrawn.TASKS]


@pytest.mark.parametrize("args", [*COMMANDS, *FLAGS, *TASKS], ids=" ".join)
def test_it_is_refused_in_one_sentence(args: list[str], tmp_path: Path) -> None:
    complaint, hint = refused(tmp_path, *args).splitlines()
    assert complaint.startswith("error: ") and complaint.endswith(" was withdrawn") and hint.startswith("  try: ")


def test_a_key_of_an_old_config_file_is_ignored_with_one_note(work: Path) -> None:
    (work / "old.yaml").write_text("watch_port: 8000\ndataset: tiny\n")
    said = ok(work, "train", "old.yaml", "--eval_only", "--device=cpu", "--n_layer=1", "--n_head=1", "--n_embd=8")
    assert said.err.count("note: old.yaml: watch_port was withdrawn, and is ignored") == 1
