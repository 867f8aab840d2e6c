"""`tinygpt ask` with a reader that is a base model and an adapter."""

import json
import re
import shutil
from pathlib import Path

import pytest
from answers import EMIL, examples
from conftest import GERMAN, ok
from inputs import json_lines

from tinygpt.base.configs.use import AskConfig
from tinygpt.use.ask.answer import Answer, load_reader
from tinygpt.use.ask.search import search
from tinygpt.use.ask.store import open_index


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
