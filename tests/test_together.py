"""Interactions of features, through the command line: resuming, fine-tuning, replay, padding, merging. Each test is
named after a promise; test_matrix.py tests the combinations systematically."""

import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faults
import numpy as np
import pytest
import torch
import yaml
from answers import EMIL, examples
from children import Child
from conftest import GERMAN, PATIENCE, TINY_TRAIN, cli_here, listing, ok, refused
from inputs import json_lines
from runs import FLAGS

from tinygpt import train
from tinygpt.base import files
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.use import AskConfig
from tinygpt.checkpoint.store import load, write
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import MixedRows, TextRows
from tinygpt.training.log import read_metrics
from tinygpt.training.processes import Processes
from tinygpt.use.ask.answer import Answer, load_reader
from tinygpt.use.ask.search import search
from tinygpt.use.ask.store import open_index

SHORT = ["--max_iters=20", "--lr_decay_iters=20", "--eval_interval=10", "--eval_iters=2", "--quiet"]


@pytest.fixture
def work(tuned: Path, tmp_path: Path) -> Path:
    """data/tiny (text), data/colours (pairs), out/ (a base model), out-finetune/, out-lora/."""
    return Path(shutil.copytree(tuned, tmp_path / "work"))


def settings(run: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((run / "config.yaml").read_text()))


# ---- asking documents --------------------------------------------------------------------------------------------


def read_answer(folder: Path, ckpt: str, adapter: str = "") -> Answer:
    """What the model answers to EMIL from the best passage, a quotation or not."""
    paths = {"ckpt": str(folder / ckpt), "adapter": str(folder / adapter) if adapter else ""}
    with open_index(folder / "index.db") as index:
        return load_reader(AskConfig(device="cpu", **paths)).read(EMIL, search(index, EMIL, 1))


@pytest.mark.slow
def test_ask_answers_with_an_adapted_reader(asked: Path, tmp_path: Path) -> None:
    """The adapter answers in German."""
    folder = Path(shutil.copytree(asked, tmp_path / "work"))
    pairs = [
        {**pair, "response": re.sub("|".join(GERMAN), lambda found: GERMAN[found[0]], pair["response"])}
        for pair in examples()
    ]
    json_lines(folder, pairs, "german.jsonl")
    ok(folder, "prepare", "german", "--input=german.jsonl", "--format=pairs")
    flags = ["--dataset=german", "--ckpt=out-colours/ckpt.pt", "--batch_size=16", "--learning_rate=1e-2", "--quiet"]
    flags += ["--device=cpu", "--dtype=float32", "--max_iters=100", "--eval_interval=100", "--patience=0"]
    ok(folder, "finetune", *flags, "--lora_rank=8", "--out_dir=out-lora")
    ask = ["ask", EMIL, "--index=index.db", "--passages=1", "--device=cpu", "--json"]
    assert json.loads(ok(folder, *ask, "--ckpt=out-colours").out)["model"] == "red"
    # `rot` stands in no passage, so `ask` does not show it
    assert json.loads(ok(folder, *ask, "--ckpt=out-colours", "--adapter=out-lora").out)["model"] == ""
    adapted, complete = read_answer(folder, "out-colours", "out-lora"), read_answer(folder, "out-lora")
    assert adapted.text == complete.text == "rot"
    assert complete.probability == pytest.approx(adapted.probability, abs=1e-4)


# ---- resuming ----------------------------------------------------------------------------------------------------


def test_resuming_keeps_the_dtype_and_notes_another_one(work: Path) -> None:
    ok(work, *TINY_TRAIN, "--dtype=bfloat16", "--out_dir=run")
    said = ok(work, "train", "--init_from=resume", "--out_dir=run", "--max_iters=22").out
    assert ", bfloat16; checkpoints" in said and "the dtype of this run" not in said
    assert "bfloat16" in (work / "run/config.yaml").read_text().partition("\n")[0]
    said = ok(work, "train", "--init_from=resume", "--out_dir=run", "--max_iters=23", "--dtype=float32").out
    assert "the dtype of this run was bfloat16 until now and is float32" in said


def test_resuming_keeps_the_origin_of_a_run(work: Path) -> None:
    """config.yaml records what a run started from, so that the run can be repeated elsewhere."""
    starts = {"scratch": [*TINY_TRAIN], "out/ckpt.pt": [*TINY_TRAIN, "--init_from=out/ckpt.pt"]}
    for index, (origin, command) in enumerate(starts.items()):
        ok(work, *command, f"--out_dir=run{index}")
        for mode in ("resume", "auto"):
            ok(work, "train", f"--init_from={mode}", f"--out_dir=run{index}", "--max_iters=25")
            assert settings(work / f"run{index}")["init_from"] == origin
        ok(work, "train", f"run{index}/config.yaml", "--out_dir=elsewhere")  # which has no last.pt
        shutil.rmtree(work / "elsewhere")
    ok(work, *TINY_TRAIN, "--init_from=auto", "--out_dir=fresh")
    assert settings(work / "fresh")["init_from"] == "scratch"
    ok(work, "finetune", "--init_from=resume", "--out_dir=out-finetune", "--max_iters=42")
    assert {settings(work / "out-finetune")[key] for key in ("init_from", "ckpt")} == {"out/ckpt.pt"}


def test_a_fine_tuning_run_in_the_default_out_dir_can_be_resumed(work: Path) -> None:
    shutil.move(work / "out", work / "base")
    ok(work, "finetune", *FLAGS, "--ckpt=base/ckpt.pt", "--out_dir=out")
    ok(work, "finetune", "--init_from=resume", "--out_dir=out", "--max_iters=44")
    assert load(work / "out/last.pt").step == 44 and settings(work / "out")["ckpt"] == "base/ckpt.pt"


def test_the_base_model_given_on_the_command_line_takes_precedence(work: Path) -> None:
    """Over the one that an earlier run's config.yaml records as its starting point."""
    ok(work, *TINY_TRAIN, "--seed=99", "--out_dir=other")
    again = ("finetune", "out-lora/config.yaml", "--ckpt", "other/ckpt.pt", "--out_dir=new", "--max_iters=2")
    ok(work, *again)
    weights = [load(work / run).model["transformer.h.0.attn.c_attn.weight"] for run in ("other", "new")]
    assert torch.equal(*weights)  # LoRA does not change them
    assert settings(work / "new")["ckpt"] == settings(work / "new")["init_from"] == "other/ckpt.pt"
    ok(work, "finetune", *FLAGS[1:], "--init_from=other/ckpt.pt", "--out_dir=newer", "--max_iters=2")
    assert settings(work / "newer")["ckpt"] == "other/ckpt.pt"
    said = refused(work, "finetune", *FLAGS, "--init_from=other/ckpt.pt", "--out_dir=newest")
    assert "two base models" in said


def test_an_existing_path_that_begins_like_a_pretrained_model_is_a_path(work: Path) -> None:
    shutil.copytree(work / "out", work / "gpt2_run")
    shutil.copytree(work / "out", work / "gpt2")
    for start in ("gpt2_run/ckpt.pt", "gpt2"):
        ok(work, *TINY_TRAIN, f"--init_from={start}", "--out_dir=run", "--max_iters=1")
    assert "no such model" in refused(work, *TINY_TRAIN, "--init_from=gpt2-huge", "--out_dir=new")


# ---- overwriting ----------------------------------------------------------------------------------------------------


def test_the_base_model_is_never_overwritten(work: Path) -> None:
    both = ["--ckpt=out/ckpt.pt", "--adapter=out-lora/adapter.pt"]
    for args in (
        ["export", "--format=checkpoint", *both, "--output=out"],
        ["export", "--format=checkpoint", "--ckpt=out", "--adapter=out-lora", "--output=./out/"],
        ["export", "--format=checkpoint", *both, "--output=out-lora"],
        ["finetune", *FLAGS, "--out_dir=out"],
        [*TINY_TRAIN, "--init_from=out/ckpt.pt", "--out_dir=out"],
    ):
        said = refused(work, *args)
        assert "would be overwritten" in said
        (advised,) = re.findall(r"--(?:out_dir|output)=\S+", said)
        ok(work, *args, advised, *SHORT * (args[0] != "export"))
        shutil.rmtree(work / advised.partition("=")[2])


# ---- the loss ------------------------------------------------------------------------------------------------------


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


# ---- adapters, vocabularies ----------------------------------------------------------------------------------------


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


def test_the_files_of_a_fine_tuned_run_are_intact(work: Path) -> None:
    """Its vocabulary is that of the base model and the new characters, which is more than the dataset's."""
    for run in ("out-finetune", "out-lora"):
        said = ok(work, "doctor", run).out
        assert "files:       intact" in said and "not checked" not in said
    json_lines(work, [{"prompt": f"{n:03} pink", "response": "§°"[n % 2]} for n in range(200)])
    ok(work, "prepare", "colours", "--input=pairs.jsonl", "--format=pairs")
    result = cli_here("doctor", "out-finetune", cwd=work)  # different data is still detected
    assert result.status == 1 and "different vocabularies" in result.out
    assert "resume" not in result.out.partition("can be used:")[2]


def test_a_checkpoint_with_an_option_of_a_newer_version_asks_for_an_upgrade(work: Path) -> None:
    """The message does not say `not a checkpoint`, and does not recommend the next file with the same option."""
    for change in ({"position": "spiral"}, {"hyper_connections": 4}):
        for name in ("ckpt.pt", "last.pt"):
            state = torch.load(work / "out" / name, weights_only=True)
            state["model_args"] = load(work / "out-finetune").model_args | change
            (work / "newer").mkdir(exist_ok=True)
            write(work / "newer" / name, state)
        said = refused(work, "sample", "--ckpt=newer/ckpt.pt")
        assert "its model uses" in said and next(iter(change)) in said and "upgrade tinygpt" in said
        assert "is intact" not in said


def test_a_checkpoint_whose_logits_are_not_finite_is_refused(work: Path) -> None:
    """All its weights are finite, but the logits that it computes are not."""
    wild = ["--learning_rate=1e20", "--min_lr=1e20", "--checkpoint_interval=1", "--max_iters=40", "--grad_clip=0"]
    result = cli_here(*TINY_TRAIN, *wild, "--out_dir=wild", cwd=work)
    assert result.status == 1
    assert all(weight.isfinite().all() for weight in load(work / "wild/last.pt").model.values())
    result = cli_here("doctor", "wild", cwd=work)
    assert result.status == 1 and "wild/last.pt: the logits are" in result.out and "diverged" in result.out
    for command in (TINY_TRAIN, ["finetune", *FLAGS[1:]], ["finetune", *FLAGS[1:], "--lora_rank=2"]):
        before = listing(work)
        result = cli_here(*command, "--init_from=wild/last.pt", "--out_dir=new", cwd=work)
        assert result.status == 1 and "wild/last.pt: the logits are" in result.err and listing(work) == before


# ---- configuration -------------------------------------------------------------------------------------------------


def test_values_of_text_keys_are_taken_as_written(work: Path) -> None:
    for written in ("1.10", "010", "0x1F", "2024-01-01", "yes", "1_000", "1e3"):
        (work / "c.yaml").write_text(f"out_dir: {written}\nmax_iters: 1\n")
        ok(work, TINY_TRAIN[0], "c.yaml", *[flag for flag in TINY_TRAIN[1:] if "max_iters" not in flag])
        assert (work / written / "ckpt.pt").exists(), written
    (work / "c.py").write_text("out_dir = 1.10\n")
    assert "out_dir: needs text" in refused(work, "train", "c.py")


def test_every_input_is_read_and_a_missing_one_is_reported(work: Path) -> None:
    for name in ("-dash.txt", "a.txt"):
        (work / name).write_text(f"{name} and more of it\n" * 20)
    for inputs in (["--input=-dash.txt", "--input", "a.txt"], ["--input", "-dash.txt", "a.txt"]):
        said = ok(work, "prepare", "mine", *inputs).out
        assert f"characters: {sum((work / name).stat().st_size for name in ('-dash.txt', 'a.txt')):,}" in said
    assert "gone.txt: no such file" in refused(work, "prepare", "mine", "--input=gone.txt", "--input=a.txt")


def test_speed_is_that_of_the_iterations_alone(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of metrics.jsonl counts the iterations since the last one, the first line one; no evaluation counts."""
    now = [0.0]
    step, evaluation = train.forward_backward, train.evaluate

    def forward_backward(*args: Any) -> Any:
        now[0] += 0.5
        return step(*args)

    def evaluate(run: Any) -> bool:
        now[0] += 60
        return evaluation(run)

    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(train, "forward_backward", forward_backward)
    monkeypatch.setattr(train, "evaluate", evaluate)
    flags = ["--log_interval=3", "--eval_interval=4", "--checkpoint_interval=3", "--max_iters=30", "--out_dir=run"]
    said = ok(work, *TINY_TRAIN, *flags).out
    speeds = [entry["tokens_per_second"] for entry in read_metrics(work / "run") if entry["kind"] == "train"]
    assert speeds == [2 * 4 * 2 * 16] * 10  # two iterations per second of 4 x 2 rows of 16 tokens
    assert "(500.0 ms each)" in said


def test_a_full_disk_says_how_to_go_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a run that has saved something can be resumed."""
    replace, allowed = files.os.replace, [0]

    def full(source: Any, target: Any) -> None:
        if allowed[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        allowed[0] -= 1
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    allowed[0] = 1  # config.yaml
    result = cli_here(*TINY_TRAIN, "--out_dir=run", cwd=work)
    assert result.status == 1 and "no space left" in result.err and "then run the command again" in result.err
    allowed[0] = 3  # and ckpt.pt, last.pt
    result = cli_here(*TINY_TRAIN, "--out_dir=run", cwd=work)
    assert result.status == 1 and "then resume: tinygpt train --init_from=resume --out_dir=run" in result.err
    result = cli_here("exercise", "start", "1", cwd=work)
    assert result.status == 1 and "then run the command again" in result.err, result.err


def test_a_path_that_the_system_refuses_is_one_sentence(work: Path) -> None:
    long = "x" * 300
    for args in (
        ["train", f"{long}.yaml"],
        [*TINY_TRAIN, f"--out_dir={long}"],
        [*TINY_TRAIN, f"--init_from={long}", "--out_dir=new"],
        ["export", "--format=checkpoint", f"--adapter={long}"],
        *([name, long] for name in ("doctor", "report")),
        ["prepare", "mine", f"--input={long}"],
        ["eval", "--ckpt=out-finetune", f"--output={long}"],
        ["exercise", "start", "1", long],
    ):
        said = refused(work, *args)
        assert "file name too long" in said.lower() or "no such" in said, (args, said)


def test_measuring_a_checkpoint_in_place_overwrites_nothing(work: Path) -> None:
    before = listing(work)
    ok(work, *TINY_TRAIN, "--init_from=out/ckpt.pt", "--eval_only")
    assert listing(work) == before


def test_a_damaged_state_is_named_when_resuming(work: Path) -> None:
    state = torch.load(work / "out/last.pt", weights_only=True)
    write(work / "out/last.pt", state | {"tokenizer": {"kind": "odd"}})
    assert "out/last.pt: contains a tokenizer that tinygpt" in refused(work, "train", "--init_from=resume")


def test_a_config_with_a_byte_order_mark_is_read(work: Path) -> None:
    for name, text in (("c.py", "max_iters = 1\n"), ("c.yaml", "max_iters: 1\n")):
        (work / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        flags = [flag for flag in TINY_TRAIN if "max_iters" not in flag]
        ok(work, *flags, name, "--out_dir=run")
        assert load(work / "run/last.pt").step == 1


# ---- what an earlier run left -------------------------------------------------------------------------------------


def test_a_new_run_in_an_old_folder_never_continues_the_old_one(work: Path) -> None:
    """Not even if it was killed before it saved anything."""
    other = [*TINY_TRAIN, "--seed=99", "--init_from=scratch", "--out_dir=out-lora"]
    assert Child(other, work / "log", work, faults.die_before_saving).wait() == -9
    assert "resuming" not in ok(work, *other[:-2], "--init_from=auto", "--out_dir=out-lora").out
    assert not (work / "out-lora/adapter.pt").exists()  # of the earlier run


def test_replay_of_changed_data_is_refused_when_resuming(work: Path) -> None:
    ok(work, "finetune", *FLAGS, "--replay=0.3", "--out_dir=replayed")
    (work / "text.txt").write_text((work / "text.txt").read_text()[::-1])
    ok(work, "prepare", "tiny", "--input=text.txt")
    said = refused(work, "finetune", "--init_from=resume", "--out_dir=replayed", "--max_iters=44")
    assert "replay: dataset 'tiny' has been prepared from different text" in said


def test_merging_leaves_a_run_alone_and_has_a_folder_of_its_own(work: Path) -> None:
    ok(work, *TINY_TRAIN, "--out_dir=other")
    adapter = ["--ckpt=out", "--adapter=out-lora"]
    assert "contains a run" in refused(work, "export", "--format=checkpoint", *adapter, "--output=other")
    for _ in range(2):  # merging again is possible
        ok(work, "export", "--format=checkpoint", *adapter, "--output=merged")
    before = (work / "out-lora/ckpt.pt").read_bytes()
    ok(work, "export", "--format=checkpoint", *adapter)
    ok(work, "export", "--format=checkpoint", *adapter, "-o", "one.pt")
    assert (work / "out-lora/ckpt.pt").read_bytes() == before
    files = [(work / path).read_bytes() for path in ("merged/ckpt.pt", "out-lora/merged/ckpt.pt", "one.pt")]
    assert len(set(files)) == 1
    assert "needs adapter" in refused(work, "export", "--format=checkpoint")


def test_text_is_read_from_regular_files_each_once(work: Path) -> None:
    os.mkfifo(work / "pipe")
    child = Child(["prepare", "mine", "--input=pipe"], work / "log", work)
    assert child.wait(PATIENCE, otherwise=signal.SIGKILL) == 2 and "not a regular file" in child.output
    (work / "link.txt").symlink_to("text.txt")
    said = ok(work, "prepare", "mine", "--input", "text.txt", str(work / "text.txt"), "link.txt").out
    assert f"characters: {(work / 'text.txt').stat().st_size:,}" in said


def test_base_data_that_does_not_fit_is_not_measured_in_part(work: Path) -> None:
    (work / "short.txt").write_text("the king of")
    ok(work, "prepare", "short", "--input=short.txt", "--val_fraction=0.05")
    said = ok(work, "finetune", *FLAGS[:-3], "--base_dataset=short", "--out_dir=new", "--max_iters=2").out
    assert "forgetting (increase)" not in said.partition("before")[2]
    note, short = "note: forgetting is not measured: ", [*FLAGS[:-3], "--max_iters=2", "--quiet=False"]
    assert note not in ok(work, "finetune", *short, "--out_dir=whole").out
    said = ok(work, "finetune", *short, "--base_dataset=none", "--out_dir=without").out
    assert f"{note}none is not prepared in data, or does not fit this model" in said
