"""Fine-tuning through the command line: what is learned, what is kept, what a killed run loses (nothing)."""

import functools
import json
import re
import shutil
import signal
import sys
from pathlib import Path

import faults
import numpy as np
import pytest
import torch
from children import Child
from conftest import TINY_MODEL, TINY_TRAIN, ok
from models import same_weights
from runs import FLAGS, LORA, column, entries

from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import load
from tinygpt.data.dataset import Dataset
from tinygpt.training.compare import side_by_side

SHORT = ["--dataset=tiny", "--device=cpu", "--batch_size=2", "--gradient_accumulation_steps=1", "--quiet"]
SHORT += ["--max_iters=2", "--eval_interval=2", "--eval_iters=1"]


@pytest.fixture
def work(tuned: Path, tmp_path: Path) -> Path:
    """data/tiny (text), data/colours (pairs), out/ (a base model), out-finetune/, out-lora/."""
    return Path(shutil.copytree(tuned, tmp_path / "work"))


def symbols_of(run: Path) -> list[str]:
    tokenizer = load(run / "ckpt.pt").tokenizer
    assert tokenizer
    return list(tokenizer["symbols"])


def exact_loss(folder: Path, *flags: str) -> float:
    return float(json.loads(ok(folder, "eval", *flags, "--dtype=float32", "--json").out)["loss"])


def test_before_and_after(tuned: Path) -> None:
    (before,), (after,) = entries(tuned / "out-finetune", "before"), entries(tuned / "out-finetune", "after")
    assert after["response_loss"] < before["response_loss"] - 0.5
    assert after["base_loss"] > before["base_loss"] + 0.01  # forgetting
    assert after["base_loss"] == pytest.approx(exact_loss(tuned, "out-finetune", "--dataset=tiny"), abs=1e-4)
    base, share = exact_loss(tuned, "out"), len(symbols_of(tuned / "out-finetune")) / len(symbols_of(tuned / "out"))
    assert base <= before["base_loss"] < base + np.log(share)  # new tokens take a share at most
    assert len(before["answers"]) == len(after["answers"]) == len(after["prompts"]) == 3


def test_a_split_that_would_take_minutes_is_sampled_before_and_after(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinygpt.training.losses.CHEAP", 1 << 22)  # between the cost of the two splits
    said = ok(work, "finetune", *FLAGS, "--max_iters=4", "--out_dir=out-sampled").out
    (before,), (after,) = entries(work / "out-sampled", "before"), entries(work / "out-sampled", "after")
    assert before["base_rows"] == after["base_rows"] < after["base_of"]
    assert before["response_rows"] == after["response_rows"] == after["response_of"]
    sample = f"± {after['base_error']:.3f}: a sample of {after['base_rows']} of {after['base_of']} rows"
    assert re.search(f"^loss on the base model's data.*{re.escape(sample)}", said, re.MULTILINE)
    more = np.log(len(symbols_of(work / "out-sampled")) / len(symbols_of(work / "out")))
    error = 4 * before["base_error"]
    assert -error < before["base_loss"] - exact_loss(work, "out") < error + more


def test_the_base_stays_as_it_was_and_old_symbols_keep_their_ids(tuned: Path, tiny_run: Path) -> None:
    """LoRA changes no weight of the base, in its own run either."""
    assert (tuned / "out/ckpt.pt").read_bytes() == (tiny_run / "out/ckpt.pt").read_bytes()
    old, grown = symbols_of(tuned / "out"), symbols_of(tuned / "out-finetune")
    assert grown[: len(old)] == old and "7" in grown and "7" not in old
    base, run = load(tuned / "out/ckpt.pt").model, load(tuned / "out-lora/ckpt.pt").model
    for name, weight in base.items():
        assert torch.equal(run[name][: len(weight)] if weight.dim() == 2 else run[name], weight), name
    assert any(run[name].abs().max() > 0 for name in run if name.endswith("lora_B"))
    rows = run["transformer.wte.new_rows"]
    assert len(rows) == len(grown) - len(old)
    assert not torch.allclose(rows, base["transformer.wte.weight"].mean(0).expand_as(rows))
    assert (tuned / "out-lora/adapter.pt").stat().st_size < (tuned / "out-lora/ckpt.pt").stat().st_size


def sampled(folder: Path, *flags: str) -> str:
    return ok(folder, "sample", "--start=123 red", "--temperature=0", "--max_new_tokens=20", *flags).out


def test_adapter_merge_and_checkpoint_are_one_model(work: Path) -> None:
    both = ["--ckpt=out/ckpt.pt", "--adapter=out-lora/adapter.pt"]
    ok(work, "export", "--format=checkpoint", *both, "--output=merged")
    (text,) = {sampled(work, *flags) for flags in (both, ["--ckpt=merged"], ["--ckpt=out-lora"])}
    assert text.startswith("123 red\n") and "<|" not in text
    merged, base = load(work / "merged").model, load(work / "out").model
    changed = {name for name, weight in base.items() if not torch.equal(merged[name][: len(weight)], weight)}
    assert changed == {name for name, weight in base.items() if ".h." in name and weight.dim() == 2}


def test_the_model_answers_and_stops(tuned: Path) -> None:
    answer = sampled(tuned, "--ckpt=out-finetune")
    assert sampled(tuned, "--ckpt=out-finetune", "--stop=@@") == answer  # the end of the response still ends it
    assert sampled(tuned, "--ckpt=out-finetune", f"--stop={answer[-2]}") != answer
    assert answer.startswith("123 red\nr") and "<|" not in answer  # no special token
    plain = sampled(tuned, "--ckpt=out-finetune", "--plain")
    assert plain.startswith("123 red") and "<|prompt|>123" not in plain


def test_eval_of_the_task(work: Path) -> None:
    flags = ["--ckpt=out-finetune/ckpt.pt", "--task=colours"]
    ok(work, "eval", *flags)
    assert (work / "out-finetune/confusion.png").exists()
    found = json.loads(ok(work, "eval", *flags, "--json").out)
    assert 0.3 < found["results"]["model"]["accuracy"] <= 1
    assert set(found["results"]) == {"model", "normalised", "ngram", "word", "majority"} and found["groups"] == {}
    assert found["n"] == Dataset(str(work / "data"), "colours").meta["examples"]["test"]


def test_replay_forgets_less(work: Path) -> None:
    ok(work, "finetune", *FLAGS, "--replay=0.5", "--out_dir=out-replay")
    lost = {}
    for run in ("out-finetune", "out-replay"):
        before, after = (column(work / run, kind, "base_loss")[0] for kind in ("before", "after"))
        lost[run] = after - before
    assert lost["out-replay"] < lost["out-finetune"] / 2


def test_the_base_model_given_on_the_command_line_takes_precedence(work: Path) -> None:
    """Over the one that an earlier run's config.yaml records as its starting point."""
    ok(work, *TINY_TRAIN, "--seed=99", "--max_iters=2", "--out_dir=other")
    ok(work, "finetune", "out-lora/config.yaml", "--ckpt", "other/ckpt.pt", "--out_dir=new", "--max_iters=2")
    weights = [load(work / run).model["transformer.h.0.attn.c_attn.weight"] for run in ("other", "new")]
    assert torch.equal(*weights)  # LoRA does not change them
    recorded = load(work / "new/last.pt").config
    assert recorded["ckpt"] == recorded["init_from"] == "other/ckpt.pt"


def test_base_and_adapter_equal_the_lora_run_with_a_padded_vocabulary(work: Path) -> None:
    """GPT-2's 50,257 tokens are padded to 50,304 rows; the vocabulary does not grow and the padding does not change."""
    ok(work, "prepare", "bpe", "--input=text.txt", "--tokenizer=gpt2")
    small = ["--dataset=bpe", "--n_embd=8", "--eval_interval=2", "--eval_iters=2", "--max_iters=2", "--quiet"]
    ok(work, *TINY_TRAIN, *small, "--out_dir=base")
    ok(work, "finetune", *TINY_TRAIN[1:], *small, "--ckpt=base/ckpt.pt", "--lora_rank=2", "--out_dir=lora")
    ok(work, "export", "--format=checkpoint", "--ckpt=base", "--adapter=lora", "--output=merged")
    models = (["--ckpt=lora"], ["--ckpt=base", "--adapter=lora"], ["--ckpt=merged"])
    found = [json.loads(ok(work, "eval", *model, "--dtype=float32", "--json").out)["loss"] for model in models]
    assert found[1:] == pytest.approx([found[0]] * 2, abs=1e-6)


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
    assert len(entries(work / "killed", "before")) == len(entries(work / "killed", "after")) == 1


def test_continued_pretraining_grows_the_vocabulary(work: Path) -> None:
    (work / "more.txt").write_text("".join(f"{n} kings sing & sing\n" for n in range(300)))
    ok(work, "prepare", "more", "--input=more.txt")
    ok(work, "train", *SHORT, "--init_from=out/ckpt.pt", "--dataset=more", "--out_dir=out-more")
    symbols, base = symbols_of(work / "out-more"), symbols_of(work / "out")
    assert symbols[: len(base)] == base and {"&", "0", "9"} <= set(symbols)
    ok(work, "sample", "--ckpt=out-more", "--start=9 kings", "--max_new_tokens=5")


def test_the_comparison_shows_control_characters_escaped() -> None:
    said = {"prompts": ["a\x1b[1m"], "responses": ["b\x07"], "answers": ["c\n"]}
    text = "".join(side_by_side(said, said)).replace("\n", "")
    assert text.isprintable() and r"a\x1b[1m   (expected: b\x07)" in text and r"after:  c\n" in text


def test_a_longer_context_than_the_bases(work: Path) -> None:
    """And an adapter brings it along."""
    for position, lora in (("alibi", []), ("rope", ["--lora_rank=2"])):
        ok(work, "train", *SHORT, *TINY_MODEL, f"--position={position}", f"--out_dir={position}")
        longer = ["--block_size=48", f"--out_dir=longer-{position}"]
        ok(work, "finetune", *SHORT, f"--ckpt={position}", *lora, *longer)
        ok(work, "finetune", "--init_from=resume", f"--out_dir=longer-{position}", "--max_iters=3")
        assert load(work / f"longer-{position}").model_args["block_size"] == 48
    ok(work, "export", "--format=checkpoint", "--ckpt=rope", "--adapter=longer-rope", "--output=merged")
    adapted = load_model(str(work / "rope"), str(work / "longer-rope"))
    assert adapted.model_args["block_size"] == load(work / "merged").model_args["block_size"] == 48
