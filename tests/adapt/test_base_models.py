"""A base model and what is made from it: which one is taken, what is kept of it, replay, merging."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_TRAIN, ok, refused
from inputs import json_lines
from runs import FLAGS

from tinygpt import train
from tinygpt.base.configs.core import TrainConfig
from tinygpt.checkpoint.store import load
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import MixedRows, TextRows
from tinygpt.training.log import read_metrics
from tinygpt.training.processes import Processes

SHORT = ["--max_iters=20", "--lr_decay_iters=20", "--eval_interval=10", "--eval_iters=2", "--quiet"]


@pytest.fixture
def work(tuned: Path, tmp_path: Path) -> Path:
    """data/tiny (text), data/colours (pairs), out/ (a base model), out-finetune/, out-lora/."""
    return Path(shutil.copytree(tuned, tmp_path / "work"))


def test_the_base_model_given_on_the_command_line_takes_precedence(work: Path) -> None:
    """Over the one that an earlier run's config.yaml records as its starting point."""
    ok(work, *TINY_TRAIN, "--seed=99", "--out_dir=other")
    again = ("finetune", "out-lora/config.yaml", "--ckpt", "other/ckpt.pt", "--out_dir=new", "--max_iters=2")
    ok(work, *again)
    weights = [load(work / run).model["transformer.h.0.attn.c_attn.weight"] for run in ("other", "new")]
    assert torch.equal(*weights)  # LoRA does not change them
    recorded = load(work / "new/last.pt").config
    assert recorded["ckpt"] == recorded["init_from"] == "other/ckpt.pt"
    ok(work, "finetune", *FLAGS[1:], "--init_from=other/ckpt.pt", "--out_dir=newer", "--max_iters=2")
    assert load(work / "newer/last.pt").config["ckpt"] == "other/ckpt.pt"


def test_the_advice_that_keeps_the_base_model_can_be_followed(work: Path) -> None:
    short = ["--max_iters=2", "--eval_interval=2", "--eval_iters=1"]
    for args in (
        ["export", "--format=checkpoint", "--ckpt=out", "--adapter=out-lora", "--output=./out/"],
        ["finetune", *FLAGS, *short, "--out_dir=out"],
        [*TINY_TRAIN, *short, "--init_from=out/ckpt.pt", "--out_dir=out"],
    ):
        (advised,) = re.findall(r"--(?:out_dir|output)=\S+", refused(work, *args))
        ok(work, *args, advised)
        shutil.rmtree(work / advised.partition("=")[2])


def losses(folder: Path, *flags: str) -> list[tuple[float, float]]:
    ok(folder, "finetune", *FLAGS, "--max_iters=3", "--dropout=0", "--eval_iters=1", "--out_dir=run", *flags)
    lines = [(e["loss"], e["grad_norm"]) for e in read_metrics(folder / "run") if e["kind"] == "train"]
    shutil.rmtree(folder / "run")
    return lines


@pytest.mark.parametrize("replay", ["0", "0.4"])
def test_accumulated_pairs_have_the_gradient_of_the_full_batch(work: Path, replay: str) -> None:
    """Responses differ in length, so the mean of the micro-steps' mean losses would differ from that of the batch;
    replayed rows of plain text have many more targets."""
    flags = [f"--replay={replay}"]
    full = losses(work, *flags, "--batch_size=16", "--gradient_accumulation_steps=1")
    for rows, steps in ((4, 4), (1, 16)):
        split = losses(work, *flags, f"--batch_size={rows}", f"--gradient_accumulation_steps={steps}")
        for one, other in zip(full, split, strict=True):
            assert other == pytest.approx(one, rel=1e-4)


def test_replay_of_pairs_while_training_on_longer_or_shorter_pairs(work: Path) -> None:
    """The base model's examples may be longer or shorter than the new ones; an iteration may consist of replay only."""
    for name, length in (("short", 1), ("long", 5)):
        json_lines(work, [{"prompt": f"{n:03}", "response": "ab"[n % 2] * length} for n in range(90)], f"{name}.jsonl")
        ok(work, "prepare", name, f"--input={name}.jsonl", "--format=pairs")
    flags = [*FLAGS[1:], "--eval_iters=1", "--max_iters=4"]
    for old, new in (("short", "long"), ("long", "short")):
        ok(work, "finetune", *flags, "--ckpt=out", f"--dataset={old}", f"--out_dir=base-{old}")
        ok(work, "finetune", *flags, f"--ckpt=base-{old}", f"--dataset={new}", f"--out_dir=to-{new}", "--replay=0.5")
    one_row = ["--batch_size=1", "--replay=0.5", "--out_dir=one-row"]
    ok(work, "finetune", *flags, "--ckpt=base-short", "--dataset=long", *one_row)


def test_replayed_rows_are_spread_evenly_over_the_processes(tiny_data: Path) -> None:
    config = TrainConfig(batch_size=16, gradient_accumulation_steps=1, block_size=8)
    new = Dataset(str(tiny_data / "data"), "tiny").sources["train"]
    source = MixedRows(new, TextRows(np.zeros(999, dtype=np.uint16)), 0.25)
    run: Any = SimpleNamespace(config=config, source=source, row_length=lambda at: 8, rows_per_iter=16)
    run.compute, run.micro_steps = SimpleNamespace(device=torch.device("cpu")), 1
    for rank in range(4):
        run.ranks = Processes(rank, 4)
        x, _, weights = train.batch(run, 0)
        assert (x == 0).all(-1).sum() == 1 and weights == [1.0]


def test_base_and_adapter_equal_the_lora_run_with_a_padded_vocabulary(work: Path) -> None:
    """GPT-2's 50,257 tokens are padded to 50,304 rows; the vocabulary does not grow and the padding does not change."""
    ok(work, "prepare", "bpe", "--input=text.txt", "--tokenizer=gpt2")
    small = [*TINY_TRAIN, "--dataset=bpe", "--n_embd=8", *SHORT, "--max_iters=2"]
    ok(work, *small, "--out_dir=base")
    ok(work, "finetune", *small[1:], "--ckpt=base/ckpt.pt", "--lora_rank=2", "--out_dir=lora", "--max_iters=10")
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
