"""`tinygpt quickstart`: it runs the three commands that it shows, explains the loss it got, and replaces nothing."""

import json
import math
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from children import Child, wait_for_lines
from conftest import cli_here, listing, needs_fork, ok
from runs import suggested

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.learn import QuickstartConfig
from tinygpt.base.configs.parse import parse
from tinygpt.learn import quickstart

SHORT = "--max_iters=30"
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "eval_iters": 2}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, in which the preset of quickstart is small.yaml."""
    preset = Path(__file__).parents[2] / quickstart.CONFIG
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(yaml.safe_load(preset.read_text(encoding="utf-8")) | SMALL))
    monkeypatch.setattr(quickstart, "CONFIG", "small.yaml")
    return tmp_path


def shown(out: str) -> list[str]:
    """The command lines that it says it runs."""
    return re.findall(r"^\$ (tinygpt .*)", out, flags=re.MULTILINE)


def explained(out: str) -> float:
    """The loss that it explains, with its perplexity."""
    pattern = r"was ([\d.]+) at first, and is ([\d.]+): on average the model hesitates\nbetween (\d+) characters. "
    read = re.search(pattern, out)
    assert read and abs(int(read[3]) - math.exp(float(read[2]))) < 0.51 + 0.005 * int(read[3])
    assert float(read[2]) < float(read[1])
    return float(read[2])


def test_quickstart_trains_as_long_as_its_preset() -> None:
    assert QuickstartConfig.max_iters == parse(TrainConfig, [quickstart.CONFIG]).max_iters


def test_quickstart_twice(small: Path) -> None:
    first = ok(small, "quickstart", SHORT).out
    assert shown(first) == [
        "tinygpt prepare shakespeare_char",
        f"tinygpt train small.yaml --device=cpu {SHORT}",
        "tinygpt report out",
    ]
    assert "1,115,394 characters, 65 different ones" in first and explained(first) < 4.2
    assert "A blind guess hesitates between 65; a table of letter triples, between 8." in first  # as `eval` measures
    ((command, *arguments),) = suggested(first)
    assert [command, *arguments] == ["sample", "out", "--start", "ROMEO:"]
    ok(small, command, *arguments, "--max_new_tokens=5")
    untrained, before = (first.split(f"{title}:\n")[1].split("\n\n")[0] for title in ("it writes", "before"))
    sampled = json.loads((small / "out/metrics.jsonl").read_text().splitlines()[0])
    assert untrained == before and sampled["kind"] == "sample"
    assert [line.removeprefix("  | ") for line in before.splitlines()] == sampled["text"].splitlines()
    assert "best model" in (small / "out/report.html").read_text(encoding="utf-8")
    before = (small / "out/ckpt.pt").read_bytes()
    assert shown(ok(small, "quickstart", SHORT).out)[1].endswith("--init_from=auto")
    assert (small / "out/ckpt.pt").read_bytes() == before


@needs_fork
def test_a_stopped_training_is_not_explained_as_a_result(small: Path) -> None:
    child = Child(["quickstart", "--max_iters=100000"], small / "log", small)
    wait_for_lines(child, small / "out", 2)
    child.send(signal.SIGINT)
    assert child.wait() == 130
    assert "stopped; the state is saved in out/last.pt" in child.output and "hesitates" not in child.output
    assert len(shown(child.output)) == 2 and "It takes about 125 minutes." in child.output


@pytest.mark.slow
def test_the_commands_it_shows_do_the_same_by_hand(small: Path) -> None:
    """Negative control of the display: typed, the shown commands end with the same weights and the same text."""
    quick = ok(small, "quickstart", SHORT, "--out_dir=my out", "--data_dir=my data").out
    (small / "my out").rename(small / "first")
    for line in shown(quick):
        ok(small, *suggested(f"next: {line}")[0])
    assert (small / "my out/report.html").stat().st_size > 10_000
    states = [torch.load(small / out / "ckpt.pt", weights_only=True)["model"] for out in ("first", "my out")]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())


def test_a_folder_that_holds_another_model_is_left_alone(tiny_run: Path, small: Path) -> None:
    """A run of another dataset, and a model without its last state, as one copies it from somewhere."""
    (small / "copied").mkdir()
    shutil.copy(tiny_run / "out/ckpt.pt", small / "copied/ckpt.pt")
    shutil.copytree(tiny_run / "out", small / "other")
    for folder, why in (("copied", "no last.pt"), ("other", "in the checkpoint")):
        before = listing(small / folder)
        refused = cli_here("quickstart", SHORT, f"--out_dir={folder}", cwd=small)
        assert refused.status == 2 and why in refused.err and "--out_dir" in refused.err.rpartition("try: ")[2]
        assert listing(small / folder) == before


def test_quickstart_with_own_texts_shows_the_commands_that_it_runs(tmp_path: Path) -> None:
    (tmp_path / "my letters").mkdir()
    for number in range(3):
        lines = [f"Dear {name}, letter {number} costs {k} €.\n" for k in range(60) for name in ("Ada", "Zoë")]
        (tmp_path / "my letters" / f"{number}.txt").write_text("".join(lines), encoding="utf-8")
    said = ok(tmp_path, "quickstart", "my letters", "--budget=5s").out
    assert shown(said) == [
        "tinygpt prepare my-letters --input 'my letters'",
        "tinygpt train --dataset=my-letters --budget=5s --out_dir=out-my-letters",
        "tinygpt report out-my-letters",
    ]
    explained(said)
    sampled = ok(tmp_path, "sample", "--ckpt=out-my-letters", "--start=Dear Zoë", "--max_new_tokens=20")
    assert sampled.out.startswith("Dear Zoë")
