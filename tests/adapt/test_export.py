"""`tinygpt export` through the command line: every kind of run, in every format, opened again by other programs.

transformers, peft and gguf's reader are the authorities, and `tinygpt import` reads what `tinygpt export` wrote. The
formats themselves have their own tests: test_huggingface.py, test_gguf.py, test_peft.py and test_architectures.py.
"""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_TRAIN, cli_here, listing, needs_fork, ok, refused
from inputs import json_lines, pairs
from models import largest, nanogpts_file
from runs import save_model

from tinygpt.adapt.formats.gguf_file import QUANTISATIONS, read_file
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import Checkpoint, load, save, tokenizer_of
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.options import GPTConfig

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

PRESET = Path(__file__).parents[2] / "configs/shakespeare_char.yaml"
SHORT = ["--device=cpu", "--max_iters=10", "--eval_interval=10", "--warmup_iters=2", "--quiet"]
WIDE = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=64"]  # rows of quantised files are multiples of 32
PLAIN = [*TINY_TRAIN, *WIDE, "--quiet"]
LLAMA = ["--position=rope", "--norm=rmsnorm", "--activation=swiglu", "--mlp_width=96"]
CLASSES = {
    "out": "Qwen3ForCausalLM",
    "out-preset": "ArceeForCausalLM",
    "out-gpt2": "GPT2LMHeadModel",
    "out-bias": "GPT2LMHeadModel",
    "out-llama": "LlamaForCausalLM",
    "out-pairs": "Qwen3ForCausalLM",
    "out-nanogpt": "GPT2LMHeadModel",
    "out-bytes": "GPT2LMHeadModel",
    "out-import": "LlamaForCausalLM",
}
OTHERS = [name for name in QUANTISATIONS if name != "q8_0"]
CHANGED = "out", "out-pairs"  # QK norm has another epsilon there, so that queries and keys are scaled
EVERYDAY = "out", "out-bias", "out-import"
every_run = pytest.mark.parametrize(
    "run", [*EVERYDAY, *(pytest.param(run, marks=pytest.mark.slow) for run in CLASSES if run not in EVERYDAY)]
)
TEXT = "The king sings of my heart"


@pytest.fixture(scope="module")
def runs(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of each kind, the folders of CLASSES, and out-lora, an adapter of `out`; the tests only read them."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(tiny_data, folder, dirs_exist_ok=True)
    json_lines(folder, pairs())
    save_model(folder / "theirs", "llama")
    small = [*WIDE, "--mlp_width=96", "--eval_iters=2"]
    finetune = ["finetune", "--ckpt=out", "--dataset=mine", "--block_size=64", *SHORT, "--max_iters=30"]
    for args in (
        ("prepare", "mine", "--input=pairs.jsonl", "--format=pairs"),
        ("prepare", "bytes", "--input=text.txt", "--tokenizer=gpt2"),
        ("train", PRESET, "--dataset=tiny", "--out_dir=out-preset", *WIDE, *SHORT),
        ("train", PRESET, "--dataset=tiny", "--out_dir=out", "--activation=swiglu", "--qk_norm=True", *small, *SHORT),
        (*PLAIN, "--out_dir=out-gpt2"),
        (*PLAIN, "--out_dir=out-bias", "--bias=True"),
        (*PLAIN, "--out_dir=out-llama", *LLAMA, "--bias=True", "--n_kv_head=1", "--tie_weights=False"),
        (*finetune, "--out_dir=out-pairs"),
        (*finetune, "--out_dir=out-lora", "--lora_rank=2", "--learning_rate=1e-2"),
        (*PLAIN, "--out_dir=out-bytes", "--dataset=bytes", "--max_iters=2", "--lr_decay_iters=2"),
        ("import", "theirs", "--out_dir=out-import"),
    ):
        ok(folder, *map(str, args))
    (folder / "out-bytes/last.pt").unlink()  # large
    (folder / "out-nanogpt").mkdir()
    torch.save(nanogpts_file(load(folder / "out-bias")), folder / "out-nanogpt/ckpt.pt")
    return folder


@pytest.fixture
def work(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "work"))


def ids_of(run: Path) -> torch.Tensor:
    """Ids of TEXT in the run's tokenizer."""
    tokenizer = tokenizer_of(load(run), str(run), str(run.parent / "data"))
    return torch.from_numpy(tokenizer.encode(TEXT, skip_unknown=True).astype("int64"))[None]


@torch.inference_mode()
def logits(checkpoint: Checkpoint, idx: torch.Tensor) -> torch.Tensor:
    return checkpoint.build_model().eval()(idx)[0]


@torch.inference_mode()
def their_logits(idx: torch.Tensor, *source: Any, **options: Any) -> torch.Tensor:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(*source, **options).eval()
    return theirs(idx).logits


# ---- hf ---------------------------------------------------------------------------------------------------------


@every_run
def test_a_folder_opens_in_transformers_and_comes_back(runs: Path, tmp_path: Path, run: str) -> None:
    said = ok(runs, "export", f"--ckpt={run}", "--format=hf", "-o", str(tmp_path / "hf"))
    assert "opens in: transformers" in said.out
    idx, mine = ids_of(runs / run), load(runs / run)
    expected = logits(mine, idx)
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["architectures"] == [CLASSES[run]]
    assert largest(their_logits(idx, tmp_path / "hf") - expected) < 1e-4
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert fast(fast.decode(idx[0]))["input_ids"] == idx[0].tolist()

    ok(tmp_path, "import", "hf", "--out_dir=again")
    again = load(tmp_path / "again")
    assert again.model.keys() == mine.model.keys()
    assert all(torch.equal(again.model[name], mine.model[name]) for name in mine.model) == (run not in CHANGED)
    assert largest(logits(again, idx) - expected) < 1e-5
    weight = next(name for name in again.model if "attn.c_attn.weight" in name)  # negative control
    again.model[weight] = again.model[weight].flip(0)
    assert largest(logits(again, idx) - expected) > 1e-4


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


# ---- gguf -------------------------------------------------------------------------------------------------------


# each class and kind of tokenizer with 8 bits, and each quantisation with a Llama and with another class
FILES = [pytest.param(run, "q8_0", marks=pytest.mark.slow) for run in CLASSES if run != "out"]
FILES += [pytest.param(run, other, marks=pytest.mark.slow) for run in ("out-bias", "out-llama") for other in OTHERS]


@pytest.mark.parametrize(("run", "quantisation"), [("out", "q8_0"), *FILES])
def test_a_gguf_file_opens_and_comes_back(runs: Path, tmp_path: Path, run: str, quantisation: str) -> None:
    path = tmp_path / "model.gguf"
    said = ok(runs, "export", f"--ckpt={run}", "--format=gguf", f"--quantisation={quantisation}", "-o", str(path))
    assert f"{quantisation}\n" in said.out and "opens in: llama.cpp" in said.out
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert quantisation.upper() in types and "F32" in types

    ok(tmp_path, "import", "model.gguf", "--out_dir=again")
    again, idx = load(tmp_path / "again"), ids_of(runs / run)
    found, exact = logits(again, idx), logits(load(runs / run), idx)
    error = ((found - exact).std() / exact.std()).item()
    assert 0 < error < {"f16": 0.01, "q8_0": 0.1, "q5_1": 0.3, "q4_0": 0.6}[quantisation]
    tokenizer = tokenizer_from_dict(again.tokenizer, "again")
    assert tokenizer.encode(tokenizer.decode(idx[0].tolist())).tolist() == idx[0].tolist()
    known = {"config": transformers.AutoConfig.for_model(**read_file(path).stock.config), "dtype": torch.float32}
    if run == "out-preset":  # transformers' reader of GGUF does not know Arcee's class
        return
    assert largest(their_logits(idx, tmp_path, gguf_file="model.gguf", **known) - found) < 1e-4


@pytest.mark.parametrize("run", ["out", pytest.param("out-nanogpt", marks=pytest.mark.slow)])
def test_the_loss_before_and_after_quantisation(runs: Path, tmp_path: Path, run: str) -> None:
    measured = json.loads(ok(runs, "eval", f"--ckpt={run}", "--device=cpu", "--fast=False", "--json").out)["loss"]
    for quantisation, most in (("f16", 1e-3), ("q4_0", 0.2)):
        flags = ["--format=gguf", f"--quantisation={quantisation}", "-o", str(tmp_path / "model.gguf")]
        before, after = losses(ok(runs, "export", f"--ckpt={run}", *flags).out)
        assert before == pytest.approx(measured, abs=6e-5)
        assert abs(after - before) < most and (after != before or quantisation == "f16")


def losses(text: str) -> tuple[float, float]:
    found = re.search(r"loss: (\d+\.\d{4}) before, (\d+\.\d{4}) after quantisation \(([+-]\d\.\d{4})\)", text)
    assert found, text
    before, after, difference = map(float, found.groups())
    assert difference == pytest.approx(after - before, abs=1.1e-4)
    return before, after


def test_the_loss_of_a_fine_tuned_model_is_that_of_its_responses(runs: Path, tmp_path: Path) -> None:
    measured = json.loads(ok(runs, "eval", "--ckpt=out-pairs", "--split=val", "--device=cpu", "--json").out)["loss"]
    flags = ["--ckpt=out-pairs", "--format=gguf", "-o", str(tmp_path / "model.gguf")]
    before, after = losses(ok(runs, "export", *flags).out)
    assert before == pytest.approx(measured, abs=6e-5) and abs(after - before) < 0.01


def test_without_the_dataset_nothing_is_measured(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "out", tmp_path / "out")
    said = ok(tmp_path, "export", "--ckpt=out", "--format=gguf")
    assert "dataset is not prepared here" in said.out and "validation loss: " not in said.out
    assert (tmp_path / "out/model-q8_0.gguf").exists()


# ---- peft -------------------------------------------------------------------------------------------------------


def test_an_adapter_opens_in_peft_and_comes_back(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    ok(work, "export", "--ckpt=out", "--adapter=out-lora", "--format=peft", "-o", "peft")
    monkeypatch.chdir(work)  # adapter_config.json names its base by the path that export was given
    run = load_model("out", "out-lora")
    idx = torch.randint(run.model_args["vocab_size"], (2, 30), generator=torch.Generator().manual_seed(0))
    expected = logits(run, idx)
    with torch.inference_mode():
        theirs = peft.AutoPeftModelForCausalLM.from_pretrained("peft/adapter").eval()(idx).logits
    assert largest(theirs - expected) < 1e-4
    assert largest(their_logits(idx, "peft") - expected) > 0.01  # the base alone
    ok(work, "import", "peft", "--out_dir=base")
    assert "peft is not a PEFT adapter" in refused(work, "import", "peft", "--ckpt=base", "--out_dir=no")
    ok(work, "import", "peft/adapter", "--ckpt=base", "--out_dir=back")
    assert largest(logits(load_model("base", "back"), idx) - expected) < 1e-4


# ---- html -------------------------------------------------------------------------------------------------------


def test_a_page_is_written(runs: Path, tmp_path: Path) -> None:
    for flags in (["--ckpt=out"], ["--ckpt=out-pairs"], ["--ckpt=out", "--adapter=out-lora"]):
        said = ok(runs, "export", *flags, "--format=html", "-o", str(tmp_path / "model.html"))
        assert "all weights of the model" in said.out
        assert "<!doctype html>" in (tmp_path / "model.html").read_text(encoding="utf-8").lower()
        (tmp_path / "model.html").unlink()


# ---- bad input --------------------------------------------------------------------------------------------------


def test_an_option_that_other_programs_lack_is_named(work: Path) -> None:
    ok(work, *TINY_TRAIN, "--token_shift=True", "--quiet", "--max_iters=1", "--out_dir=shifted")
    ok(work, "finetune", "--ckpt=shifted", "--dataset=tiny", "--out_dir=other-lora", "--lora_rank=2", *SHORT)
    for format in (["--format=hf"], ["--format=gguf"], ["--format=peft", "--adapter=other-lora"]):
        message = refused(work, "export", "--ckpt=shifted", *format)
        assert "lacks token_shift=True" in message and "configs/shakespeare_char.yaml" in message


FORMATS = "--format=hf", "--format=gguf", "--format=peft --adapter=out-lora", "--format=html"


@pytest.mark.parametrize("format", FORMATS)
def test_a_field_that_no_exporter_knows_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """An option that somebody adds to GPTConfig, here attention sinks, is not left out in silence."""
    newer = dataclasses.make_dataclass("Newer", [("sinks", int, 0)], bases=(GPTConfig,))
    monkeypatch.setattr(GPTConfig, "from_dict", newer.from_dict)
    flags = ["export", "--ckpt=out", *format.split(), "-o", "new"]
    run = load(work / "out")
    save(work / "out/ckpt.pt", dataclasses.replace(run, model_args={**run.model_args, "sinks": 4}))
    message = refused(work, *flags)
    assert "sinks=4" in message and ("configs/shakespeare_char.yaml" in message or "html" in format)
    save(work / "out/ckpt.pt", dataclasses.replace(run, model_args={**run.model_args, "sinks": 0}))
    ok(work, *flags)


def test_what_cannot_be_exported_is_refused_in_one_sentence(work: Path) -> None:
    (work / "other").mkdir()
    (work / "other/notes.txt").write_text("mine")
    (work / "file").write_text("mine")
    cases = {
        "--format=peft": "no LoRA adapter",
        "--format=hf -o other": "holds other files (notes.txt)",
        "--format=peft --adapter=out-lora -o other": "holds other files (notes.txt)",
        "--format=hf -o file": "file: is not a folder",
        "--format=hf -o file/deep": "file/deep",
        "--format=hf -o theirs": "holds a model that tinygpt did not export",
        "--format=gguf -o missing/model.gguf": "missing: no such folder",
        "--format=gguf -o other": "other: is a folder",
        "--format=html --ckpt=out-import": "a subword tokenizer",
        "--format=hf --adapter=out-gpt2": "adapter",
        "--format=hf --ckpt=out-nanogpt --data_dir=missing": "missing",
        "--format=hf --quantisation=q8_0": "quantisation needs format=gguf",
        "--format=gguf --quantisation=q2_k": "q2_k",
        "--ckpt=nowhere --format=hf": "nowhere",
    }
    for flags, what in cases.items():
        given = flags if "--ckpt" in flags else f"--ckpt=out {flags}"
        assert what in refused(work, "export", *given.split()), flags


# ---- interrupted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["hf", "gguf", "html"])
def test_a_full_disk_leaves_no_model(work: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (work / "new").mkdir()
    flags = ["export", "--ckpt=out", f"--format={format}", "-o", "new/model"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = cli_here(*flags, cwd=work)
        assert result.status == 1 and "no space left" in result.err and len(result.err.splitlines()) <= 2
        assert not [path for path in (work / "new").rglob("*") if path.is_file()]
    ok(work, *flags)
    before = listing(work / "new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert cli_here(*flags, cwd=work).status == 1
    after = listing(work / "new")
    assert after == before or not (work / "new/model/config.json").exists()  # a folder without it is no model


@needs_fork
@pytest.mark.parametrize("format", ["hf", "gguf", "peft"])
def test_after_a_kill_the_same_command_succeeds(work: Path, format: str) -> None:
    from children import Child

    def before() -> None:
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)

    flags = ["export", "--ckpt=out", "--adapter=out-lora", f"--format={format}", "-o", "model"]
    assert Child(flags, work / "log", work, before).wait() == -signal.SIGKILL
    assert not (work / "model/config.json").exists() and not (work / "model").is_file()
    ok(work, *flags)
    assert not list(work.rglob("*.tmp*"))
