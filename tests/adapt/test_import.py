"""Imported models through the command line, from a folder that transformers wrote to a folder that it opens again.

The folders hold small random models with a trained byte-level tokenizer: a Llama with a chat template and grouped-query
attention, and a GPT-2 without a template. transformers is the authority.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENCE, ok
from runs import tokenizer_json, tokenizers, transformers, vocabulary

from tinygpt.adapt.formats import chat
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import load
from tinygpt.data.dataset import Dataset
from tinygpt.data.tokenizer import SPECIAL, HuggingFaceTokenizer, tokenizer_from_dict

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

TRAIN = ["--dataset=colours", "--device=cpu", "--dtype=float32", "--block_size=64", "--batch_size=8", "--quiet"]
TRAIN += ["--learning_rate=1e-2", "--warmup_iters=2", "--max_iters=30", "--eval_interval=15"]


@pytest.fixture
def work(imported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(imported, tmp_path / "work"))


def tokenizer_of_base(folder: Path) -> HuggingFaceTokenizer:
    tokenizer = tokenizer_from_dict(load(folder / "out-base").tokenizer, "out-base")
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer


# ---- the model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "out"), [("theirs", "out-base"), ("gpt2", "out-gpt2")])
@torch.inference_mode()
def test_logits_and_greedy_text_are_those_of_transformers(imported: Path, name: str, out: str) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(imported / name).eval()
    fast = transformers.AutoTokenizer.from_pretrained(imported / name)
    idx = torch.tensor([fast("The sky is 12 blue é 漢")["input_ids"]])
    assert (load(imported / out).build_model().eval()(idx)[0] - theirs(idx).logits).abs().max() < 1e-4
    made = theirs.generate(idx, do_sample=False, max_new_tokens=100, eos_token_id=None, pad_token_id=0)
    flags = ["--temperature=0", "--max_new_tokens=100", "--plain", "--fast=False"]
    said = ok(imported, "sample", f"--ckpt={out}", "--start=The sky is 12 blue é 漢", *flags, "--json")
    expected = fast.decode(made[0, idx.size(1) :], clean_up_tokenization_spaces=False)
    assert json.loads(said.out)["text"] == expected and len(expected) > 20


@torch.inference_mode()
def test_a_prompt_is_asked_with_the_chat_template(imported: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(imported / "theirs").eval()
    fast = transformers.AutoTokenizer.from_pretrained(imported / "theirs")
    messages = [{"role": "user", "content": "grass 7"}]
    idx = fast.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokenizer = tokenizer_of_base(imported)
    assert tokenizer.encode_prompt("grass 7").tolist() == idx["input_ids"][0].tolist()
    made = theirs.generate(**idx, do_sample=False, max_new_tokens=40, eos_token_id=2, pad_token_id=0)
    text = fast.decode(made[0, idx["input_ids"].size(1) :]).partition("<|im_end|>")[0]
    flags = ["--temperature=0", "--max_new_tokens=40", "--json"]
    said = json.loads(ok(imported, "sample", "--ckpt=out-base", "--start=grass 7", *flags).out)
    assert said["text"] == text and said["prompt"] == "grass 7"
    ids = tokenizer.encode("a<|im_end|>b")  # the name of a special token in a prompt is text
    assert 2 not in ids and tokenizer.decode(ids.tolist()) == "a<|im_end|>b"


# ---- the data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [["--input=text.txt"], ["--input=pairs.jsonl", "--format=pairs"]], ids=str)
def test_data_is_encoded_by_prepare_or_when_it_is_used(work: Path, given: list[str]) -> None:
    (work / "text.txt").write_bytes("A sky, a sea: 12 jeans.\n\tfrog   é 漢\r\n".encode() * 300)
    ok(work, "prepare", "direct", *given, "--tokenizer=out-base")
    ok(work, "prepare", "mine", *given)
    direct, characters = Dataset(str(work / "data"), "direct"), Dataset(str(work / "data"), "mine")
    tokenizer = tokenizer_of_base(work)
    assert characters.adopt_tokenizer(tokenizer)
    for split, ids in direct.splits.items():
        np.testing.assert_array_equal(ids, characters.splits[split])
    if "--format=pairs" in given:
        before = Dataset(str(work / "data"), "mine")
        examples = before.sources["val"].examples(before.tokenizer)
        assert direct.sources["val"].examples(tokenizer) == examples
    else:
        fast = tokenizers.Tokenizer.from_str(tokenizer_json())
        assert fast.encode(tokenizer.decode(ids.tolist())).ids == ids.tolist()


# ---- fine-tuning ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_loss_of_labels_is_per_token_of_the_model_s_tokenizer(work: Path) -> None:
    """That of `eval --task`, compared with the cross-entropy that transformers computes."""
    found = json.loads(ok(work, "eval", "--ckpt=out-base", "--task=colours", "--dtype=float32", "--json").out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(work / "theirs").eval()
    fast = transformers.AutoTokenizer.from_pretrained(work / "theirs")
    dataset, losses, characters = Dataset(str(work / "data"), "colours"), list[float](), 0
    for prompt, label in dataset.sources[found["split"]].examples(dataset.tokenizer):
        asked = [{"role": "user", "content": prompt}]
        idx = fast.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        answer = torch.tensor([[*fast(label)["input_ids"], fast.eos_token_id]])
        logits = theirs(torch.cat((idx["input_ids"], answer), dim=1)).logits[0, -answer.size(1) - 1 : -1]
        losses += torch.nn.functional.cross_entropy(logits, answer[0], reduction="none").tolist()
        characters += len(label) + 1
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4) and characters > 1.2 * len(losses)


def test_lora_on_pairs_answers_and_is_merged(work: Path) -> None:
    ok(work, "finetune", *TRAIN, "--ckpt=out-base", "--lora_rank=8", "--max_iters=60", "--out_dir=out-lora")
    report = json.loads(ok(work, "eval", "--ckpt=out-lora", "--json").out)
    untrained = json.loads(ok(work, "eval", "--ckpt=out-base", "--task=colours", "--json").out)
    assert report["results"]["model"]["accuracy"] > 0.9 > untrained["results"]["model"]["accuracy"]
    asked = ["--start=grass 7", "--temperature=0", "--json"]
    adapted = json.loads(ok(work, "sample", "--ckpt=out-base", "--adapter=out-lora", *asked).out)
    said = ok(work, "export", "--format=checkpoint", "--ckpt=out-base", "--adapter=out-lora", "--output=out-merged").out
    assert "next: tinygpt eval out-merged" in said  # `sample` would need a prompt
    merged = json.loads(ok(work, "sample", "--ckpt=out-merged", *asked).out)
    assert adapted["text"] == merged["text"] == "green"
    ok(work, "export", "--ckpt=out-merged", "--format=hf", "-o", "hf")
    ok(work, "import", "hf", "--out_dir=out-again")
    one, other = load(work / "out-merged").model, load(work / "out-again").model
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert ok(work, "doctor", "out-base", "out-lora", "out-merged").out.count("files:       intact") == 3


def test_a_base_without_a_chat_template_gets_special_tokens(work: Path) -> None:
    ok(work, "finetune", *TRAIN, "--ckpt=out-gpt2", "--lora_rank=4", "--out_dir=out-lora", "--max_iters=60")
    checkpoint = load_model(str(work / "out-gpt2"), str(work / "out-lora"))
    tokenizer = tokenizer_from_dict(checkpoint.tokenizer, "out-lora")
    assert tokenizer.vocab_size == vocabulary() + 3
    assert tokenizer.decode(range(vocabulary(), vocabulary() + 3)) == "".join(SPECIAL)
    said = ok(work, "sample", "--ckpt=out-gpt2", "--adapter=out-lora", "--start=frog 3", "--temperature=0", "--json")
    assert json.loads(said.out)["text"] == "green"


def test_a_template_uses_neither_endless_time_nor_memory(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    bad = {"seconds": loop}
    if sys.platform == "linux":
        bad["MemoryError"] = "{{ 'a' * (2 ** 31) }}"
    for index, (why, template) in enumerate(bad.items()):
        monkeypatch.setattr(chat, "SECONDS", 0.3 if why == "seconds" else PATIENCE)
        (work / "theirs" / "chat_template.jinja").write_text(template)
        said = ok(work, "import", "theirs", f"--out_dir=out-{index}")
        assert why in said.out and "it continues text" in said.out, said.out
