"""A base model and what is made from it: which one is taken, what is kept of it, replay, merging."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_TRAIN, ok
from inputs import json_lines
from runs import FLAGS, entries

from tinygpt.checkpoint.store import load


@pytest.fixture
def work(tuned: Path, tmp_path: Path) -> Path:
    """data/tiny (text), data/colours (pairs), out/ (a base model), out-finetune/, out-lora/."""
    return Path(shutil.copytree(tuned, tmp_path / "work"))


def test_the_base_model_given_on_the_command_line_takes_precedence(work: Path) -> None:
    """Over the one that an earlier run's config.yaml records as its starting point."""
    ok(work, *TINY_TRAIN, "--seed=99", "--max_iters=2", "--out_dir=other")
    ok(work, "finetune", "out-lora/config.yaml", "--ckpt", "other/ckpt.pt", "--out_dir=new", "--max_iters=2")
    weights = [load(work / run).model["transformer.h.0.attn.c_attn.weight"] for run in ("other", "new")]
    assert torch.equal(*weights)  # LoRA does not change them
    recorded = load(work / "new/last.pt").config
    assert recorded["ckpt"] == recorded["init_from"] == "other/ckpt.pt"


@pytest.mark.parametrize("replay", ["0", "0.4"])
def test_accumulated_pairs_have_the_gradient_of_the_full_batch(work: Path, replay: str) -> None:
    """Responses differ in length, so the mean of the micro-steps' mean losses would differ from that of the batch;
    replayed rows of plain text have many more targets."""
    found = []
    for rows, steps in ((16, 1), (4, 4), (1, 16)):
        batch = [f"--batch_size={rows}", f"--gradient_accumulation_steps={steps}", f"--replay={replay}", "--dropout=0"]
        ok(work, "finetune", *FLAGS, *batch, "--max_iters=3", "--eval_iters=1", f"--out_dir=run-{rows}")
        found.append([(line["loss"], line["grad_norm"]) for line in entries(work / f"run-{rows}", "train")])
    np.testing.assert_allclose(found[1:], [found[0], found[0]], rtol=1e-4)


def test_replay_of_pairs_while_training_on_longer_or_shorter_pairs(work: Path) -> None:
    """The base model's examples may be longer or shorter than the new ones; an iteration may consist of replay only."""
    flags = [*FLAGS[1:], "--eval_iters=1", "--max_iters=2"]
    for name, length in (("short", 1), ("long", 5)):
        json_lines(work, [{"prompt": f"{n:03}", "response": "ab"[n % 2] * length} for n in range(90)], f"{name}.jsonl")
        ok(work, "prepare", name, f"--input={name}.jsonl", "--format=pairs")
        ok(work, "finetune", *flags, "--ckpt=out", f"--dataset={name}", f"--out_dir=base-{name}")
    for old, new, rows in (("short", "long", 8), ("long", "short", 8), ("short", "long", 1)):
        more = [f"--batch_size={rows}", "--replay=0.5", f"--out_dir=to-{new}-{rows}"]
        ok(work, "finetune", *flags, f"--ckpt=base-{old}", f"--dataset={new}", *more)


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


def test_merging_again_gives_the_same_file(work: Path) -> None:
    before = (work / "out-lora/ckpt.pt").read_bytes()
    for output in (["--output=merged"], ["--output=merged"], [], ["-o", "one.pt"]):
        ok(work, "export", "--format=checkpoint", "--ckpt=out", "--adapter=out-lora", *output)
    assert (work / "out-lora/ckpt.pt").read_bytes() == before
    paths = ("merged/ckpt.pt", "out-lora/merged/ckpt.pt", "one.pt")
    assert len({(work / path).read_bytes() for path in paths}) == 1
