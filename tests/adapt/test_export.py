"""`tinygpt export` through the command line: what a run's tokenizer, dataset and adapter become in each format.

test_architectures.py has the round trip of every format and option; tests/transcripts/adapt_export.txt what is refused.
"""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path
from unittest import mock

import pytest
import torch
from children import Child
from conftest import TINY_TRAIN, Shared, cli_here, needs_fork, ok, refused
from inputs import json_lines, pairs
from models import largest, nanogpts_file
from published import GGUF, Adapter, Folder, logits, transformers

from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import load, save, tokenizer_of
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.options import GPTConfig

SHORT = ["--device=cpu", "--max_iters=10", "--eval_interval=10", "--eval_iters=2", "--warmup_iters=2", "--quiet"]
WIDE = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=64"]  # rows of quantised files are multiples of 32
QWEN = ["--position=rope", "--norm=rmsnorm", "--activation=swiglu", "--mlp_width=96", "--qk_norm=True"]
FORMATS: dict[str, Folder] = {"hf": Folder(), "gguf": GGUF("q8_0")}
RUNS = ["out", "out-pairs", "out-nanogpt", "out-base"]  # characters, pairs, that of the dataset, an imported tokenizer
TEXT = "The king sings of my heart"


@pytest.fixture(scope="session")
def runs(imported: Path, tiny_data: Path, shared: Shared) -> Path:
    """The runs of RUNS, and out-lora, an adapter of `out`; the tests only read them."""

    def make(folder: Path) -> None:
        for made in (imported, tiny_data):
            shutil.copytree(made, folder, dirs_exist_ok=True)
        json_lines(folder, pairs())
        finetune = ["finetune", "--ckpt=out", "--dataset=mine", "--block_size=64", *SHORT]
        for args in (
            ("prepare", "mine", "--input=pairs.jsonl", "--format=pairs"),
            ("train", "--dataset=tiny", "--out_dir=out", *WIDE, *QWEN, *SHORT),
            (*TINY_TRAIN, *WIDE, "--quiet", "--out_dir=out-bias", "--bias=True", "--max_iters=5", "--eval_interval=5"),
            (*finetune, "--out_dir=out-pairs", "--max_iters=30"),
            (*finetune, "--out_dir=out-lora", "--lora_rank=2", "--learning_rate=1e-2"),
        ):
            ok(folder, *args)
        (folder / "out-nanogpt").mkdir()
        torch.save(nanogpts_file(load(folder / "out-bias")), folder / "out-nanogpt/ckpt.pt")

    return shared("exported runs", make)


@pytest.fixture
def work(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "work"))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("run", RUNS)
def test_a_run_with_its_tokenizer_opens_and_comes_back(work: Path, run: str, format: str) -> None:
    (work / "made").mkdir()
    out = "made" if format == "hf" else "made/model.gguf"
    said = ok(work, "export", f"--ckpt={run}", f"--format={format}", "-o", out).out
    assert f"opens in: {'transformers' if format == 'hf' else 'llama.cpp'}" in said
    tokenizer = tokenizer_of(load(work / run), str(work / run), str(work / "data"))
    idx = torch.from_numpy(tokenizer.encode(TEXT, skip_unknown=True).astype("int64"))[None]
    ok(work, "import", out, "--out_dir=again")
    again = load(work / "again")
    expected, found = logits(load(work / run), idx), logits(again, idx)
    error = ((found - expected).std() / expected.std()).item()
    assert error < 1e-5 if format == "hf" else 0 < error < 0.1
    assert largest(logits(FORMATS[format].theirs(work / "made"), idx) - found) < 1e-4
    same = tokenizer_from_dict(again.tokenizer, "again")
    assert same.encode(tokenizer.decode(idx[0].tolist())).tolist() == idx[0].tolist()
    if format == "hf":
        fast = transformers.AutoTokenizer.from_pretrained(work / "made")
        assert fast(fast.decode(idx[0]))["input_ids"] == idx[0].tolist()


def test_a_fine_tuned_model_answers_in_transformers(runs: Path, tmp_path: Path) -> None:
    """All weights, and an adapter that is merged on the way; the answers are those of `tinygpt sample`."""
    for name, flags in (("all", ["--ckpt=out-pairs"]), ("lora", ["--ckpt=out", "--adapter=out-lora"])):
        ok(runs, "export", *flags, "--format=hf", "-o", str(tmp_path / name))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        fast = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        messages = [{"role": "user", "content": "item 7 is green"}]
        idx = fast.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = theirs.generate(**idx, do_sample=False, max_new_tokens=12)
        answer = fast.decode(made[0, idx["input_ids"].size(1) :], skip_special_tokens=True)
        flags = [*flags, "--start=item 7 is green", "--temperature=0", "--max_new_tokens=12", "--fast=False", "--json"]
        assert json.loads(ok(runs, "sample", *flags).out)["text"] == answer


@pytest.mark.parametrize(("run", "flags"), [("out-nanogpt", []), ("out-pairs", ["--split=val"])])
def test_the_loss_before_and_after_quantisation(runs: Path, tmp_path: Path, run: str, flags: list[str]) -> None:
    """That of `eval`: of a text, or of the responses."""
    asked = ["eval", f"--ckpt={run}", *flags, "--device=cpu", "--fast=False", "--json"]
    measured = json.loads(ok(runs, *asked).out)["loss"]
    for quantisation, most in (("f16", 1e-3), ("q4_0", 0.2)):
        flags = ["--format=gguf", f"--quantisation={quantisation}", "-o", str(tmp_path / "model.gguf")]
        said = ok(runs, "export", f"--ckpt={run}", *flags).out
        shown = re.search(r"loss: (\d+\.\d{4}) before, (\d+\.\d{4}) after quantisation \(([+-]\d\.\d{4})\)", said)
        assert shown, said
        before, after, difference = map(float, shown.groups())
        assert before == pytest.approx(measured, abs=6e-5) and difference == pytest.approx(after - before, abs=1.1e-4)
        assert abs(difference) < most and (after != before or quantisation == "f16")


def test_an_adapter_opens_in_peft_and_comes_back(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(work, "export", "--ckpt=out", "--adapter=out-lora", "--format=peft", "-o", "peft")
    monkeypatch.chdir(work)  # adapter_config.json names its base by the path that export was given
    run = load_model("out", "out-lora")
    idx = torch.randint(run.model_args["vocab_size"], (2, 30), generator=torch.Generator().manual_seed(0))
    expected = logits(run, idx)
    assert largest(logits(Adapter().theirs(Path("peft")), idx) - expected) < 1e-4
    assert largest(logits(Folder().theirs(Path("peft")), idx) - expected) > 0.01  # the base alone
    ok(work, "import", "peft", "--out_dir=base")
    ok(work, "import", "peft/adapter", "--ckpt=base", "--out_dir=back")
    assert largest(logits(load_model("base", "back"), idx) - expected) < 1e-4


@pytest.mark.parametrize("format", ["hf", "gguf", "html"])
def test_a_field_that_no_exporter_knows_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """An option that somebody adds to GPTConfig, here attention sinks, is not left out in silence."""
    newer = dataclasses.make_dataclass("Newer", [("sinks", int, 0)], bases=(GPTConfig,))
    monkeypatch.setattr(GPTConfig, "from_dict", newer.from_dict)
    run, flags = load(work / "out"), ["export", "--ckpt=out", f"--format={format}", "-o", "new"]
    save(work / "out/ckpt.pt", dataclasses.replace(run, model_args={**run.model_args, "sinks": 4}))
    assert "sinks=4" in refused(work, *flags)
    save(work / "out/ckpt.pt", dataclasses.replace(run, model_args={**run.model_args, "sinks": 0}))
    ok(work, *flags)


@pytest.mark.parametrize("format", ["hf", "gguf", "html"])
def test_a_full_disk_leaves_no_model(work: Path, format: str) -> None:
    (work / "new").mkdir()
    flags = ["export", "--ckpt=out", f"--format={format}", "-o", "new/model"]
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with mock.patch.object(os, "fsync", full):
        result = cli_here(*flags, cwd=work)
    assert result.status == 1 and "no space left" in result.err and len(result.err.splitlines()) <= 2
    assert not [path for path in (work / "new").rglob("*") if path.is_file()]


@needs_fork
@pytest.mark.parametrize("format", ["hf", "gguf", "peft"])
def test_after_a_kill_the_same_command_succeeds(work: Path, format: str) -> None:
    def before() -> None:
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)

    flags = ["export", "--ckpt=out", "--adapter=out-lora", f"--format={format}", "-o", "model"]
    assert Child(flags, work / "log", work, before).wait() == -signal.SIGKILL
    assert not (work / "model/config.json").exists() and not (work / "model").is_file()
    ok(work, *flags)
    assert not list(work.rglob("*.tmp*"))
