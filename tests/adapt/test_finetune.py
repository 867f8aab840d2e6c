"""Fine-tuning through the command line: what is learned, what is kept, what a killed run loses (nothing)."""

import contextlib
import functools
import io
import json
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
import torch
from children import Child
from conftest import TINY_MODEL, cli_here, ok
from inputs import json_lines
from models import same_weights
from runs import FLAGS, LORA

from tinygpt.base.configs.examine import ReportConfig
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import load
from tinygpt.cli import main
from tinygpt.data.dataset import Dataset
from tinygpt.examine.report.loaded_run import LoadedRun
from tinygpt.examine.report.one_step import one_step
from tinygpt.training.log import read_metrics

SHORT = ["--dataset=tiny", "--device=cpu", "--batch_size=2", "--gradient_accumulation_steps=1", "--quiet"]
SHORT += ["--max_iters=2", "--eval_interval=2", "--eval_iters=1"]


@pytest.fixture
def work(tuned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tuned, tmp_path / "work"))


def kinds(run: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in read_metrics(run) if entry["kind"] == kind]


def test_before_and_after(tuned: Path) -> None:
    (before,), (after,) = kinds(tuned / "out-finetune", "before"), kinds(tuned / "out-finetune", "after")
    assert after["response_loss"] < before["response_loss"] - 0.5
    assert after["base_loss"] > before["base_loss"] + 0.01  # forgetting
    base = json.loads(cli_here("eval", "--ckpt=out/ckpt.pt", "--dtype=float32", "--json", cwd=tuned).out)
    more, old = (len(load(tuned / run).tokenizer["symbols"]) for run in ("out-finetune", "out"))  # type: ignore[index]
    assert base["loss"] <= before["base_loss"] < base["loss"] + np.log(more / old)  # new tokens take a share at most
    assert len(before["answers"]) == len(after["answers"]) == len(after["prompts"]) == 3
    flags = ["--ckpt=out-finetune/ckpt.pt", "--dataset=tiny", "--dtype=float32", "--json"]
    forgot = json.loads(cli_here("eval", *flags, cwd=tuned).out)
    assert after["base_loss"] == pytest.approx(forgot["loss"], abs=1e-4)


def test_the_prompts_after_training_are_those_that_were_asked_before(work: Path) -> None:
    """Another version of tinygpt may have chosen them, so they are read from metrics.jsonl."""
    log = work / "out-finetune/metrics.jsonl"
    (before,) = kinds(work / "out-finetune", "before")
    other = {"prompts": [*reversed(before["prompts"])], "responses": [*reversed(before["responses"])]}
    assert before["prompts"] != other["prompts"]
    lines = [json.dumps(entry | (other if entry["kind"] == "before" else {})) for entry in read_metrics(log.parent)]
    log.write_text("".join(f"{line}\n" for line in lines))
    ok(work, "finetune", "--init_from=resume", "--out_dir=out-finetune", "--max_iters=41")
    after = kinds(work / "out-finetune", "after")[-1]
    assert after["prompts"] == other["prompts"] and after["responses"] == other["responses"]


def test_a_split_that_would_take_minutes_is_sampled_before_and_after(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinygpt.training.losses.CHEAP", 1 << 22)  # between the cost of the two splits
    result = ok(work, "finetune", *FLAGS, "--max_iters=4", "--out_dir=out-sampled")
    (before,), (after,) = kinds(work / "out-sampled", "before"), kinds(work / "out-sampled", "after")
    assert before["base_rows"] == after["base_rows"] < after["base_of"]
    assert before["response_rows"] == after["response_rows"] == after["response_of"]
    line = next(line for line in result.out.splitlines() if line.startswith("loss on the base model's data"))
    assert f"± {after['base_error']:.3f}: a sample of {after['base_rows']} of {after['base_of']} rows" in line
    flags = ["--ckpt=out/ckpt.pt", "--dtype=float32", "--json"]
    exact = json.loads(cli_here("eval", *flags, cwd=work).out)["loss"]
    more, old = (len(load(work / run).tokenizer["symbols"]) for run in ("out-sampled", "out"))  # type: ignore[index]
    assert -4 * before["base_error"] < before["base_loss"] - exact < 4 * before["base_error"] + np.log(more / old)


def test_the_base_is_as_it_was_and_old_symbols_keep_their_ids(tuned: Path, tiny_run: Path) -> None:
    assert (tuned / "out/ckpt.pt").read_bytes() == (tiny_run / "out/ckpt.pt").read_bytes()
    base, grown = load(tuned / "out/ckpt.pt"), load(tuned / "out-finetune/ckpt.pt")
    assert base.tokenizer and grown.tokenizer
    assert grown.tokenizer["symbols"][: len(base.tokenizer["symbols"])] == base.tokenizer["symbols"]
    assert "7" in grown.tokenizer["symbols"] and "7" not in base.tokenizer["symbols"]


def test_lora_leaves_the_base_weights_and_trains_the_rest(tuned: Path) -> None:
    base, run = load(tuned / "out/ckpt.pt"), load(tuned / "out-lora/ckpt.pt")
    old = len(base.tokenizer["symbols"])  # type: ignore[index]
    for name, weight in base.model.items():
        assert torch.equal(run.model[name][: len(weight)] if weight.dim() == 2 else run.model[name], weight), name
    assert any(run.model[name].abs().max() > 0 for name in run.model if name.endswith("lora_B"))
    rows = run.model["transformer.wte.new_rows"]
    assert len(rows) == len(run.tokenizer["symbols"]) - old  # type: ignore[index]
    assert not torch.allclose(rows, base.model["transformer.wte.weight"].mean(0).expand_as(rows))
    assert (tuned / "out-lora/adapter.pt").stat().st_size < (tuned / "out-lora/ckpt.pt").stat().st_size


def sampled(folder: Path, *flags: str) -> str:
    result = ok(folder, "sample", "--start=123 red", "--temperature=0", "--max_new_tokens=20", *flags)
    return result.out


def test_adapter_merge_and_checkpoint_are_one_model(work: Path) -> None:
    both = ["--ckpt=out/ckpt.pt", "--adapter=out-lora/adapter.pt"]
    ok(work, "export", "--format=checkpoint", *both, "--output=merged")
    assert sampled(work, *both).startswith("123 red\n") and "<|" not in sampled(work, *both)
    texts = {sampled(work, *flags) for flags in (both, ["--ckpt=merged"], ["--ckpt=out-lora"])}
    assert len(texts) == 1
    merged, base = load(work / "merged").model, load(work / "out").model
    assert not any("lora" in name for name in merged)
    changed = {
        name
        for name, weight in base.items()
        if weight.dim() == 2 and not torch.equal(merged[name][: len(weight)], weight)
    }
    assert changed == {name for name in base if ".h." in name and base[name].dim() == 2}


def test_the_model_answers_and_stops(work: Path) -> None:
    answer = sampled(work, "--ckpt=out-finetune")
    assert sampled(work, "--ckpt=out-finetune", "--stop=@@") == answer  # the end of the response still ends it
    assert sampled(work, "--ckpt=out-finetune", f"--stop={answer[-2]}") != answer
    assert answer.startswith("123 red\nr") and "<|" not in answer  # no special token
    plain = sampled(work, "--ckpt=out-finetune", "--plain")
    assert plain.startswith("123 red") and "<|prompt|>123" not in plain


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_eval_of_the_task(work: Path) -> None:
    flags = ["--ckpt=out-finetune/ckpt.pt", "--task=colours"]
    result = ok(work, "eval", *flags)
    assert result.err == ""  # its progress is shown on a terminal only
    assert "accuracy" in result.out and "\nword baseline   " in result.out and "majority" in result.out
    assert "accuracy in each group" not in result.out
    ok(work, "eval", *flags, "-o", "elsewhere.png")
    assert (work / "elsewhere.png").read_bytes() == (work / "out-finetune/confusion.png").read_bytes()
    shown, said = Terminal(), io.StringIO()
    with contextlib.chdir(work), contextlib.redirect_stderr(shown), contextlib.redirect_stdout(said):
        assert main(["eval", *flags, "--json"]) == 0
    assert "scoring all labels" in shown.getvalue() and "training the n-gram baseline" in shown.getvalue()
    found = json.loads(said.getvalue())
    assert 0.3 < found["results"]["model"]["accuracy"] <= 1
    assert set(found["results"]) == {"model", "normalised", "ngram", "word", "majority"} and found["groups"] == {}
    dataset = Dataset(str(work / "data"), "colours")
    assert found["n"] == dataset.meta["examples"]["test"]


def test_the_next_command_asks_the_model_something(work: Path) -> None:
    """Pairs whose responses are no labels: the command to go on with has a prompt, quoted for the shell."""
    names = [f"{a}{b}{c}" for a in "abcd" for b in "aeou" for c in "lmnr"]
    json_lines(work, [{"prompt": f"it's {name}?", "response": name[::-1]} for name in names])
    ok(work, "prepare", "names", "--input=pairs.jsonl", "--format=pairs")
    flags = [flag for flag in FLAGS if "dataset" not in flag and flag != "--quiet"]
    result = ok(work, "finetune", *flags, "--dataset=names", "--max_iters=10", "--out_dir=out-names")
    (command,) = re.findall(r"^next: tinygpt (sample .*)$", result.out, re.MULTILINE)
    asked = shlex.split(command)
    assert re.fullmatch(r"it's [a-z]+\?", asked[-1]) and asked[-2] == "--start"
    ok(work, *asked, "--max_new_tokens=5")


# ---- replay ------------------------------------------------------------------------------------------------------


def test_replay_forgets_less(work: Path) -> None:
    ok(work, "finetune", *FLAGS, "--replay=0.5", "--out_dir=out-replay")
    lost = {
        run: kinds(work / run, "after")[0]["base_loss"] - kinds(work / run, "before")[0]["base_loss"]
        for run in ("out-finetune", "out-replay")
    }
    assert lost["out-replay"] < lost["out-finetune"] / 2


# ---- nothing is lost ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    "more",
    [["--replay=0.25", "--dropout=0.1"], pytest.param([*LORA, "--sampling=epochs"], marks=pytest.mark.slow)],
    ids=["full", "lora, epochs"],
)
def test_killed_and_resumed_is_undisturbed(work: Path, more: list[str]) -> None:
    flags = [*FLAGS, "--max_iters=40", "--checkpoint_interval=3", *more]
    ok(work, "finetune", *flags, "--out_dir=whole")
    command = ["finetune", *flags, "--out_dir=killed", "--init_from=auto"]
    child = Child(command, work / "log", work, functools.partial(faults.on_iteration, 22, faults.die))
    assert child.wait() == -signal.SIGKILL and load(work / "killed/last.pt").step == 21
    ok(work, *command)
    whole, resumed = load(work / "whole/last.pt"), load(work / "killed/last.pt")
    assert whole.step == resumed.step == 40
    assert same_weights(work / "whole/last.pt", work / "killed/last.pt")
    assert len(kinds(work / "killed", "before")) == len(kinds(work / "killed", "after")) == 1


def test_continued_pretraining_grows_the_vocabulary(work: Path) -> None:
    (work / "more.txt").write_text("".join(f"{n} kings sing & sing\n" for n in range(300)))
    ok(work, "prepare", "more", "--input=more.txt")
    ok(work, "train", *SHORT, "--init_from=out/ckpt.pt", "--dataset=more", "--out_dir=out-more")
    symbols = load(work / "out-more/ckpt.pt").tokenizer["symbols"]  # type: ignore[index]
    base = load(work / "out/ckpt.pt").tokenizer["symbols"]  # type: ignore[index]
    assert symbols[: len(base)] == base and {"&", "0", "9"} <= set(symbols)
    ok(work, "sample", "--ckpt=out-more", "--start=9 kings", "--max_new_tokens=5")


def test_the_comparison_shows_control_characters_escaped() -> None:
    from tinygpt.training.compare import side_by_side

    said = {"prompts": ["a\x1b[1m"], "responses": ["b\x07"], "answers": ["c\n"]}
    text = "".join(side_by_side(said, said)).replace("\n", "")
    assert text.isprintable() and r"a\x1b[1m   (expected: b\x07)" in text and r"after:  c\n" in text


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_a_longer_context_than_the_bases(position: str, work: Path) -> None:
    ok(work, "train", *SHORT, *TINY_MODEL, f"--position={position}", "--out_dir=base")
    ok(work, "finetune", *SHORT, "--ckpt=base", "--block_size=48", "--out_dir=longer")
    assert load(work / "longer").model_args["block_size"] == 48
    ok(work, "finetune", "--init_from=resume", "--out_dir=longer", "--max_iters=3")


def test_an_adapter_brings_its_longer_context_along(work: Path) -> None:
    lora = ["finetune", *SHORT, "--ckpt=base", "--lora_rank=2"]
    ok(work, "train", *SHORT, *TINY_MODEL, "--position=rope", "--out_dir=base")
    ok(work, *lora, "--block_size=48", "--out_dir=lora")
    # the adapter of a resumed run belongs to the same base
    ok(work, "finetune", "--init_from=resume", "--out_dir=lora", "--max_iters=3", "--always_save_checkpoint=True")
    ok(work, "export", "--format=checkpoint", "--ckpt=base", "--adapter=lora", "--output=merged")
    ok(work, *lora, "--block_size=8", "--out_dir=cropped")
    sizes = {
        "complete": load(work / "lora"),
        "adapted": load_model(str(work / "base"), str(work / "lora")),
        "merged": load(work / "merged"),
    }
    assert {name: model.model_args["block_size"] for name, model in sizes.items()} == dict.fromkeys(sizes, 48)
    cropped = load_model(str(work / "base"), str(work / "cropped"))
    assert cropped.model_args["block_size"] == 16  # as long as the base's, whose weights it has


def test_the_step_of_a_report_draws_from_the_first_examples(tuned: Path, tmp_path: Path) -> None:
    """With one example, every row of the batch is that one."""
    work = Path(shutil.copytree(tuned, tmp_path / "work"))
    ok(work, "finetune", *FLAGS, "--examples=1", "--max_iters=10", "--out_dir=one")
    with contextlib.chdir(work):
        run = LoadedRun("one", ReportConfig())
        assert run.dataset is not None
        shown, source = one_step(run), run.dataset.sources["train"]
        only = np.zeros(1, dtype=np.int64)
        x, y = (torch.from_numpy(part) for part in source.rows(only, source.width(16, only)))
        assert shown["loss"] == pytest.approx(run.checkpoint.build_model().eval()(x, y)[1].item(), abs=1e-5)
