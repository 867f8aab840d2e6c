"""The task reader: every answer can be copied, and no name or new wording leaks into train; documents and questions.

Exact match is compared with real decoding, and weights in 8 bits with the largest error of rounding.
"""

import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ok
from tasks_made import examples

from tinygpt.base import device
from tinygpt.base.intervals import percent, wilson
from tinygpt.checkpoint.eight_bits import from_8_bits, to_8_bits
from tinygpt.checkpoint.store import load
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import PairRows
from tinygpt.data.tasks import TASKS, Task, reader
from tinygpt.data.tasks.reader import UNANSWERABLE, cited_answer
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.examine.eval.respond import matches
from tinygpt.fast.model import FastGPT

ROOT = Path(__file__).parents[2]


def test_the_cited_passage_contains_the_answer_and_is_about_the_company() -> None:
    """And each passage before it is judged."""
    for prompt, response in itertools.chain(*examples("reader").values()):
        question, *passages = prompt.split("\n")
        number, answer = cited_answer(response)
        assert passages and question.endswith("?")
        judgements = re.findall(r"\[(\d+)\] no\b", response)
        assert judgements == [str(each) for each in range(1, number or len(passages) + 1)]
        assert response.endswith(f" [{number}] {answer}" if number else f": {UNANSWERABLE}")
        if number:
            cited = passages[number - 1]
            assert re.search(rf"(?<!\w){re.escape(answer)}", cited), (prompt, answer)
            assert set(re.findall(r"[A-Z]\w+", question)) & set(re.findall(r"[A-Z]\w+", cited)), prompt
    share = np.mean([response.endswith(UNANSWERABLE) for _, response in examples("reader")["train"]])
    assert abs(share - reader.UNANSWERABLE_SHARE) < 0.03


@pytest.mark.parametrize(
    ("response", "read"),
    [
        ("[1] Five years [1]. [2] No.", (1, "Five years [1]. [2] No.")),
        ("A of B [1] no [2] $5 million[3]", (2, "$5 million[3]")),
        ("A of B [11] no [12] no", (12, "")),
        ("A of B [1] no: not in the documents", (0, "A of B [1] no: not in the documents")),
    ],
)
def test_the_answer_in_a_response(response: str, read: tuple[int, str]) -> None:
    assert cited_answer(response) == read


def test_what_is_read_and_an_abstention_from_it() -> None:
    assert reader.reader_prompt("e\tf?", ["a\nb  c", "d"]) == "e f?\n[1] a b c\n[2] d"
    prompt, abstaining = "Who?\n[1] A.\n[2] B.", "chair of AUG [1] no [2] no: not in the documents"
    assert reader.abstention(prompt, "chair of AUG [1] Bo Lo: x") == abstaining == reader.abstention(prompt, abstaining)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset `copy`, a reader in miniature, and a model that has learned part of it."""
    folder = tmp_path_factory.mktemp("reader")
    rng = random.Random(1)
    words = ["ab", "cd", "ef", "gh"]
    lines = []
    for _ in range(400):
        word = rng.choice(words) if rng.random() < 0.7 else ""
        lines.append({"prompt": f"{rng.randrange(1000)} {word or 'zz'}?", "response": word or "none"})
    (folder / "copy.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ok(folder, "prepare", "copy", "--input=copy.jsonl", "--format=pairs", "--test_fraction=0.3")
    meta = json.loads((folder / "data/copy/meta.json").read_text())
    (folder / "data/copy/meta.json").write_text(json.dumps(meta | {"labels": []}))  # responses that are free text
    sizes = ["--n_layer=1", "--n_head=2", "--n_embd=32", "--block_size=24", "--batch_size=16", "--position=rope"]
    steps = ["--gradient_accumulation_steps=1", "--max_iters=60", "--eval_interval=30", "--eval_iters=0"]
    rate = ["--learning_rate=3e-3", "--warmup_iters=5", "--device=cpu", "--dtype=float32", "--quiet"]
    ok(folder, "train", "--dataset=copy", *sizes, *steps, *rate)
    return folder


def test_exact_match_agrees_with_greedy_decoding(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(trained / "data", "copy")
    results = []
    for prompt, wanted in dataset.sources["test"].examples(dataset.tokenizer):
        done = ok(trained, "sample", f"--start={prompt}", "--temperature=0", "--max_new_tokens=8", "--json")
        results.append((wanted, json.loads(done.out)["text"].strip()))
    replies = {(response, response == wanted) for wanted, response in results}
    none = next(reply for reply, right in replies if (reply, not right) in replies)  # sometimes right, sometimes wrong
    task = Task("copy", (), reader.make, "reader", abstention=lambda prompt, response: none)
    monkeypatch.setitem(TASKS, "copy", task)
    report = json.loads(ok(trained, "eval", "--ckpt=out", "--task=copy", "--json").out)
    assert report["n"] == len(results)
    assert report["exact"] == pytest.approx(np.mean([wanted == response for wanted, response in results]))
    assert report["exact_interval"] == pytest.approx(wilson(report["exact"], report["n"]))
    assert 0 < report["exact"] < 1  # otherwise the comparison shows little
    said = sum(response == none for _, response in results)
    truth = sum(wanted == none for wanted, _ in results)
    both = results.count((none, none))
    assert 0 < both < said and report["abstention"]["n"] == truth
    assert report["abstention"]["recall"] == pytest.approx(both / truth)
    assert report["abstention"]["precision"] == pytest.approx(both / said)
    shown = ok(trained, "eval", "--ckpt=out", "--task=copy").out
    for name, n in (("recall", truth), ("precision", said)):
        interval = wilson(report["abstention"][name], n)
        assert report["abstention"][f"{name}_interval"] == pytest.approx(interval)
        assert f"{percent(report['abstention'][name], n)} of {n}: {name} of abstention" in shown


def test_rounding_to_8_bits_changes_a_weight_by_at_most_half_a_step(trained: Path) -> None:
    full = load(trained / "out").model
    back = from_8_bits(to_8_bits(full))
    assert back.keys() == full.keys()
    for name, weight in full.items():
        step = weight.abs().amax(-1, keepdim=True) / 127 if weight.dim() > 1 else weight.abs() * 2**-10
        assert ((back[name] - weight).abs() <= step * 0.51 + 1e-7).all(), name
    assert back["lm_head.weight"].data_ptr() == back["transformer.wte.weight"].data_ptr()  # tied
    assert from_8_bits(full) is full


def test_prepare_writes_documents_and_suggests_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reader.SIZES, "reader", {"train": 300, "val": 30, "test": 30})
    done = ok(tmp_path, "prepare", "reader", "--show=2")
    assert "next: tinygpt train reader" in done.out and UNANSWERABLE not in done.out.split("written")[1]
    folder = tmp_path / "data/reader"
    documents = {path.name: path.read_text(encoding="utf-8") for path in (folder / "documents").iterdir()}
    assert len(documents) == 100
    for split in ("val", "test"):
        lines = (folder / f"questions-{split}.jsonl").read_text(encoding="utf-8").splitlines()
        questions = [json.loads(line) for line in lines]
        assert len(questions) > 400
        assert all(q["answer"] in documents[q["source"]] for q in questions if q["answer"])


@pytest.mark.slow
def test_the_reader_that_ships_is_small_and_reads_new_examples() -> None:
    path = ROOT / "tinygpt/use/ask/reader.pt"
    assert path.stat().st_size < 1 << 20
    checkpoint, rng = load(path), random.Random("new")
    tokenizer = tokenizer_from_dict(checkpoint.tokenizer, str(path))
    for recipe, answers, abstentions in zip(reader.RECIPES.values(), (0.9, 0.7), (0.9, 0.8), strict=True):
        pairs = [reader.example(rng, recipe)[:2] for _ in range(60)]
        rows = PairRows(np.concatenate([tokenizer.encode_pair(*pair) for pair in pairs]), tokenizer)
        exact, _ = matches(checkpoint.build_model(FastGPT), rows, device.choose("cpu", "float32"))
        answered = np.array([bool(cited_answer(response)[0]) for _, response in pairs])
        assert exact[answered].mean() > answers and exact[~answered].mean() > abstentions
