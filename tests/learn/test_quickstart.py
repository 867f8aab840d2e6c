"""`tinygpt quickstart`: it runs the three commands that it shows, explains the loss it got, and replaces nothing; and
from text to text through the command line, like a new user."""

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
from conftest import cli, cli_here, listing, needs_fork, ok
from runs import suggested

from tinygpt import api
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
    """The loss that it explains, with its perplexity and that of the other predictors."""
    read = re.search(
        r"was ([\d.]+) at first, and is ([\d.]+): on average the model hesitates\nbetween (\d+) characters. ", out
    )
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
    assert "It takes about 1 minute." in first
    assert "1,115,394 characters, 65 different ones" in first and explained(first) < 4.2
    assert "A blind guess hesitates between 65; a table of letter triples, between 8." in first  # as `eval` measures
    assert "it predicts no better than simple counting" in first
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
    (small / "out/metrics.jsonl").unlink()
    assert "was 4.17 at first" in ok(small, "quickstart", SHORT).out  # ln(65), the loss of knowing nothing


@pytest.mark.slow
def test_the_commands_for_teaching_print_what_is_asked(small: Path) -> None:
    """The first question of the worksheet and the claim about quickstart ask for three losses."""
    docs = Path(__file__).parents[2] / "docs/teaching"
    question = (docs / "worksheet.md").read_text(encoding="utf-8").partition("**1. ")[2].partition("a) ")[0]
    claim = (docs / "claims.md").read_text(encoding="utf-8").split("\n## ")[1]
    for text in (question, claim):
        assert "bigram baseline" in text
        printed = ""
        for command in re.findall(r"`tinygpt ([^`]+)`", text):
            printed += ok(small, *command.split(), *([SHORT] if command == "quickstart" else [])).out
        if text == question:
            assert "was 4." in printed and explained(printed) < 4.2
        assert re.search(r"^bigram +2\.49", printed, re.MULTILINE)


@needs_fork
def test_a_stopped_training_is_not_explained_as_a_result(small: Path) -> None:
    child = Child(["quickstart", "--max_iters=100000"], small / "log", small)
    wait_for_lines(child, small / "out", 2)
    child.send(signal.SIGINT)
    assert child.wait() == 130
    assert "stopped; the state is saved in out/last.pt" in child.output and "hesitates" not in child.output
    assert len(shown(child.output)) == 2 and "It takes about 125 minutes." in child.output


def test_stopped_before_there_is_a_state(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "train", interrupted)  # while it chooses the number of threads, or fits a budget
    stopped = cli_here("quickstart", cwd=small)
    assert stopped.status == 130 and "state is saved" not in stopped.out


@pytest.mark.slow
def test_the_commands_it_shows_do_the_same_by_hand(small: Path) -> None:
    """Negative control of the display: typed, the shown commands end with the same weights and the same text."""
    quick = ok(small, "quickstart", SHORT, "--out_dir=my out", "--data_dir=my data").out
    (small / "my out").rename(small / "first")
    pages = [(small / "first/report.html").read_bytes()]
    for line in shown(quick):
        ok(small, *suggested(f"next: {line}")[0])
    pages.append((small / "my out/report.html").read_bytes())
    assert len(pages[0]) > 10_000 and abs(len(pages[0]) - len(pages[1])) < 200
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
        assert refused.status == 2 and why in refused.err, refused.err
        assert "--out_dir" in refused.err.rpartition("try: ")[2]
        assert listing(small / folder) == before


@pytest.mark.slow
def test_quickstart_sample_eval_plot_doctor_in_processes_of_their_own(tmp_path: Path) -> None:
    """With the model of the preset, which is near the loss of equal probabilities at first."""
    done = cli("quickstart", "--max_iters=20", cwd=tmp_path)
    assert done.status == 0, done.err
    assert "tinygpt train configs/shakespeare_char.yaml" in done.out
    run = api.Run(tmp_path / "out")
    losses = [entry["val_loss"] for entry in run.entries("eval")]
    assert abs(losses[0] - 4.174) < 0.05 and losses[-1] < 3.5 and abs(explained(done.out) - losses[-1]) < 0.1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"ckpt.pt", "last.pt", "metrics.jsonl", "config.yaml"}
    sampled = cli("sample", "--ckpt", "out/ckpt.pt", "--max_new_tokens=80", cwd=tmp_path)
    assert sampled.status == 0 and len(sampled.out) >= 80
    evaluated = json.loads(cli("eval", "--ckpt", "out/ckpt.pt", "--json", cwd=tmp_path).out)
    assert abs(evaluated["loss"] - losses[-1]) < 0.1 and evaluated["tokens"] == 111_539
    assert cli("report", "out", "--png=out/loss.png", cwd=tmp_path).status == 0
    assert (tmp_path / "out/loss.png").read_bytes().startswith(b"\x89PNG")
    assert cli("doctor", "out", "data/shakespeare_char", cwd=tmp_path).status == 0


def test_own_text_from_several_files(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    for number in range(3):
        lines = [f"Dear {name}, letter {number} costs {k} €.\n" for k in range(60) for name in ("Ada", "Zoë")]
        (tmp_path / "letters" / f"{number}.txt").write_text("".join(lines), encoding="utf-8")
    following = re.search(r"next: tinygpt (train .*)", ok(tmp_path, "prepare", "mine", "--input", "letters").out)
    assert following
    flags = [f"--{key}={value}" for key, value in SMALL.items()]
    ok(tmp_path, *following[1].split(), "--device=cpu", "--budget=10s", *flags)
    sampled = ok(tmp_path, "sample", "--ckpt=out-mine", "--start=Dear Zoë", "--max_new_tokens=20")
    assert sampled.out.startswith("Dear Zoë")


@pytest.mark.slow
def test_quickstart_with_own_text_shows_the_commands_that_it_runs(tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("To be, or not to be: that is the question.\n" * 100)
    said = ok(tmp_path, "quickstart", "my notes.txt", "--budget=10s").out
    assert shown(said) == [
        "tinygpt prepare my-notes --input 'my notes.txt'",
        "tinygpt train --dataset=my-notes --budget=10s --out_dir=out-my-notes",
        "tinygpt report out-my-notes",
    ]
    assert "A blind guess hesitates between 18;" in said and explained(said) < 2.5
    assert shown(ok(tmp_path, "quickstart", "my notes.txt", "--budget=10s").out)[1].endswith("--init_from=auto")
