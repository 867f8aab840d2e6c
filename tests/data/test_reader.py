"""The task reader: every answer can be copied, and no name or new wording leaks into train; documents and questions.

Exact match is compared with real decoding, and weights in 8 bits with the largest error of rounding.
"""

import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import cli_here, ok, refused
from tasks_made import examples

from tinygpt.base import device
from tinygpt.base.configs.use import AskConfig
from tinygpt.base.intervals import percent, wilson
from tinygpt.checkpoint.eight_bits import SCALE, from_8_bits, to_8_bits
from tinygpt.checkpoint.store import Checkpoint, load, save
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import PairRows
from tinygpt.data.tasks import TASKS, Task, reader
from tinygpt.data.tasks.reader import RELATIONS, UNANSWERABLE, Recipe, cited_answer
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.examine.eval.respond import matches
from tinygpt.fast.model import FastGPT
from tinygpt.use.ask.answer import load_reader
from tinygpt.use.ask.search import search
from tinygpt.use.ask.store import open_index

ROOT = Path(__file__).parents[2]


def pattern(wording: str) -> str:
    """A regular expression for all sentences with this wording."""
    parts = re.split(r"(@|~|\([^)]*\))", wording)
    return "".join(
        part if part.startswith("(") else ".+" if part in "@~" and part else re.escape(part) for part in parts
    )


def test_the_cited_passage_contains_the_answer_and_the_example_fits() -> None:
    for prompt, response in itertools.chain(*examples("reader").values()):
        question, *passages = prompt.split("\n")
        assert passages and question.endswith("?")
        number, answer = cited_answer(response)
        assert (number == 0) == response.endswith(f": {UNANSWERABLE}")
        if number:
            assert re.search(rf"(?<!\w){re.escape(answer)}", passages[number - 1]), (prompt, answer)
    share = np.mean([response.endswith(UNANSWERABLE) for _, response in examples("reader")["train"]])
    assert abs(share - reader.UNANSWERABLE_SHARE) < 0.03


def test_the_answer_is_about_the_company_that_is_asked_about() -> None:
    numbers = []
    for prompt, response in examples("reader")["train"]:
        question, *passages = prompt.split("\n")
        number, _ = cited_answer(response)
        if number:
            names = set(re.findall(r"[A-Z]\w+", question)) & set(re.findall(r"[A-Z]\w+", passages[number - 1]))
            assert names, prompt
            numbers.append((number, len(passages)))
    of_three = [number for number, count in numbers if count == 3]
    tolerance = 3 * (2 / 9 / len(of_three)) ** 0.5  # three standard deviations
    assert all(abs(of_three.count(number) / len(of_three) - 1 / 3) < tolerance < 0.1 for number in (1, 2, 3))


def names_asked(response: str) -> set[str]:
    """The company that is asked about, without Ltd, Group, ..., and the answer if it is a name."""
    relation, name = re.split(r" \[|: ", response)[0].split(" of ")
    kind, (number, answer) = RELATIONS[relation].value, cited_answer(response)
    if number and kind in (reader.person, reader.place, reader.company):
        return {name, reader.short(answer) if kind is reader.company else answer}
    return {name}


def test_no_name_of_val_or_test_occurs_in_train() -> None:
    """Neither in the train split of the same dataset nor in that of the other one: both train the same model."""
    datasets = [examples(name) for name in reader.DATASETS]
    held_out = set().union(*(names_asked(each[1]) for some in datasets for each in some["val"] + some["test"]))
    asked = set().union(*(names_asked(each[1]) for some in datasets for each in some["train"]))
    assert len(held_out) > 1200 and len(asked) > 6000
    assert held_out & asked == set()
    train = "\n".join(each[0] for some in datasets for each in some["train"])
    people = re.findall(r"\b[A-Z][a-z]+ (?:[A-Z]\. )?[A-Z][a-z]+\b", train)  # of distractors, too
    assert len(people) > 9000 and set(people) & {name for name in held_out if " " in name} == set()


def test_new_wordings_occur_only_in_test() -> None:
    for relation in RELATIONS.values():
        for mark in "+?":
            assert not set(relation.wordings[mark]) & set(relation.wordings[f"{mark}!"])
    new = [pattern(wording) for relation in RELATIONS.values() for wording in relation.wordings["?!"]]
    old = [pattern(wording) for relation in RELATIONS.values() for wording in relation.wordings["?"]]
    count = {
        split: np.mean([not any(re.fullmatch(p, prompt.split("\n")[0]) for p in old) for prompt, _ in part[:300]])
        for split, part in examples("reader").items()
    }
    assert count["train"] == count["val"] == 0
    assert count["test"] > 0.8  # some new wordings with a long name look like an old one
    assert all(any(re.fullmatch(p, prompt.split("\n")[0]) for p in new) for prompt, _ in examples("reader")["test"])


def test_reading_is_one_line_per_passage() -> None:
    assert reader.reader_prompt("e\tf?", ["a\nb  c", "d"]) == "e f?\n[1] a b c\n[2] d"
    assert (
        reader.cited_answer("[2] d e") == (2, "d e") == cited_answer("A of B [1] no [2] d e")
        and reader.cited_answer("[1] Five years [1]. [2] No.") == (1, "Five years [1]. [2] No.")
        and reader.cited_answer("A of B [1] no [2] $5 million[3]") == (2, "$5 million[3]")
        and reader.cited_answer("[x] d") == (0, "[x] d")
        and reader.cited_answer("[12]") == (12, "") == reader.cited_answer("A of B [11] no [12] no")
        and reader.cited_answer("A of B [1] no: not in the documents") == (0, "A of B [1] no: not in the documents")
    )


def test_a_response_judges_each_passage_up_to_the_one_with_the_answer() -> None:
    for prompt, response in itertools.chain(*examples("reader").values()):
        number, answer = cited_answer(response)
        judgements = re.findall(r"\[(\d+)\] no\b", response)
        assert judgements == [str(each) for each in range(1, number or prompt.count("\n") + 1)]
        assert response.endswith(f" [{number}] {answer}" if number else f": {UNANSWERABLE}")


def test_an_abstention_repeats_the_question_and_says_no_to_each_passage() -> None:
    prompt, abstaining = "Who?\n[1] A.\n[2] B.", "chair of AUG [1] no [2] no: not in the documents"
    assert reader.abstention(prompt, "chair of AUG [1] Bo Lo: x") == abstaining == reader.abstention(prompt, abstaining)


def test_a_response_repeats_what_is_asked() -> None:
    """The relation in one wording, whatever that of the question, and the company's name without Ltd, Group, ..."""
    for prompt, response in itertools.chain(*examples("reader").values()):
        relation, _, name = re.split(r" \[|: ", response)[0].partition(" of ")
        asked, mark = prompt.split("\n")[0], "?" if (prompt, response) not in examples("reader")["test"] else "?!"
        patterns = [pattern(wording.replace("@", name)) for wording in RELATIONS[relation].wordings[mark]]
        assert name in asked and "Ltd" not in name
        assert any(
            re.fullmatch(each.replace(re.escape(name), f"{re.escape(name)}( \\w+)?"), asked) for each in patterns
        )


# ---- through the command line -----------------------------------------------------------------------------------


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


def decoded(folder: Path) -> list[tuple[str, str, str]]:
    """(prompt, wanted, greedy response) of the test split, from `tinygpt sample`."""
    dataset = Dataset(folder / "data", "copy")
    results = []
    for prompt, wanted in dataset.sources["test"].examples(dataset.tokenizer):
        done = ok(folder, "sample", f"--start={prompt}", "--temperature=0", "--max_new_tokens=8", "--json")
        results.append((prompt, wanted, json.loads(done.out)["text"]))
    return results


@pytest.mark.parametrize("fast", ["True", pytest.param("False", marks=pytest.mark.slow)])
def test_exact_match_agrees_with_greedy_decoding(trained: Path, fast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = decoded(trained)
    replies = [(response.strip(), response.strip() == wanted) for _, wanted, response in results]
    none = next(reply for reply, right in replies if (reply, not right) in replies)  # sometimes right, sometimes wrong
    task = Task("copy", (), reader.make, "reader", abstention=lambda prompt, response: none)
    monkeypatch.setitem(TASKS, "copy", task)
    done = ok(trained, "eval", "--ckpt=out", "--task=copy", "--json", f"--fast={fast}")
    report = json.loads(done.out)
    assert report["n"] == len(results)
    right = [wanted == response.strip() for _, wanted, response in results]
    assert 0 < np.mean(right) < 1  # otherwise the comparison shows little
    assert report["exact"] == pytest.approx(np.mean(right))
    said = [response.strip() == none for _, _, response in results]
    truth = [wanted == none for _, wanted, _ in results]
    assert report["abstention"]["n"] == sum(truth) > 0
    both = sum(s and t for s, t in zip(said, truth, strict=True))
    assert 0 < both < sum(said)
    assert report["abstention"]["recall"] == pytest.approx(both / sum(truth))
    assert report["abstention"]["precision"] == pytest.approx(both / max(sum(said), 1))
    shown = ok(trained, "eval", "--ckpt=out", "--task=copy", f"--fast={fast}").out
    for name, n in (("recall", sum(truth)), ("precision", sum(said))):
        interval = wilson(report["abstention"][name], n)
        assert report["abstention"][f"{name}_interval"] == pytest.approx(interval)
        assert f"{percent(report['abstention'][name], n)} of {n}: {name} of abstention" in shown


def test_a_split_is_chosen_for_a_task(trained: Path) -> None:
    same = ok(trained, "eval", "--ckpt=out", "--dataset=copy", "--task=copy", "--split=val", "--json")
    assert json.loads(same.out)["split"] == "val"
    said = ok(trained, "eval", "--ckpt=out", "--task=copy").out
    assert "exact match" in said and "expected:" in said and "recall" not in said  # nothing abstains


def test_rounding_to_8_bits_changes_a_weight_by_at_most_half_a_step(trained: Path) -> None:
    full = load(trained / "out").model
    back = from_8_bits(to_8_bits(full))
    assert back.keys() == full.keys()
    for name, weight in full.items():
        step = weight.abs().amax(-1, keepdim=True) / 127 if weight.dim() > 1 else weight.abs() * 2**-10
        assert ((back[name] - weight).abs() <= step * 0.51 + 1e-7).all(), name
    assert back["lm_head.weight"].data_ptr() == back["transformer.wte.weight"].data_ptr()  # tied
    assert from_8_bits(full) is full


def test_a_model_in_8_bits_is_small_and_has_almost_the_same_loss(trained: Path, tmp_path: Path) -> None:
    checkpoint = load(trained / "out")
    weights = to_8_bits(checkpoint.model)
    small = Checkpoint(weights, checkpoint.model_args, checkpoint.config, tokenizer=checkpoint.tokenizer)
    save(tmp_path / "small.pt", small)
    weights = sum(weight.numel() for weight in checkpoint.model.values())
    assert (tmp_path / "small.pt").stat().st_size < 1.4 * weights + 40_000 < (trained / "out/ckpt.pt").stat().st_size
    assert load(tmp_path / "small.pt").num_params == checkpoint.num_params
    reports = [
        json.loads(cli_here("eval", f"--ckpt={path}", "--task=copy", "--json", cwd=trained).out)
        for path in ("out/ckpt.pt", tmp_path / "small.pt")
    ]
    assert reports[0]["loss"] == pytest.approx(reports[1]["loss"], abs=0.02)
    assert reports[0]["loss"] != reports[1]["loss"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights, name: weights.pop(name + SCALE), "damaged"),
        (lambda weights, name: weights.update({name + SCALE: torch.ones(3, 1, dtype=torch.float16)}), "damaged"),
        (lambda weights, name: weights.pop(name), "weights do not fit"),
    ],
    ids=["no scale", "wrong scale", "scale only"],
)
def test_damaged_8_bits_are_refused(trained: Path, tmp_path: Path, change: Callable[..., object], says: str) -> None:
    checkpoint = load(trained / "out")
    weights = to_8_bits(checkpoint.model)
    change(weights, "transformer.h.0.mlp.c_fc.weight")
    damaged = Checkpoint(weights, checkpoint.model_args, checkpoint.config, tokenizer=checkpoint.tokenizer)
    save(tmp_path / "small.pt", damaged)
    assert says in refused(trained, "sample", f"--ckpt={tmp_path / 'small.pt'}", "--start=ab?")


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


def test_long_examples_have_several_passages_about_the_company() -> None:
    rng, several, without_answer = random.Random(3), 0, 0
    for _ in range(300):
        prompt, response, _, _ = reader.example(rng, reader.RECIPES["reader_long"])
        name = re.split(r" \[|: ", response)[0].split(" of ")[1]
        own = [line for line in prompt.split("\n")[1:] if re.search(rf"\b{name}\b", line)]
        several += len(own) > 1
        without_answer += len(own) > 0 and response.endswith(UNANSWERABLE)
    assert several > 60 and without_answer > 30


def test_no_other_company_has_the_name_that_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a passage about another company could seem to answer the question."""
    monkeypatch.setattr(reader, "company", lambda rng: rng.choice(("Ba", "Ba Ltd", "Co", "Du")))
    rng = random.Random(3)
    for _ in range(200):
        _, *passages = reader.example(rng, Recipe(others=(1, 2), repeats=(0,))).prompt.split("\n")
        names = [re.findall(r"\b(?:Ba|Co|Du)\b", passage)[0] for passage in passages]
        assert passages and len(set(names)) == len(names)


@pytest.mark.slow
def test_the_reader_that_ships_is_small_and_reads_new_examples() -> None:
    path = ROOT / "tinygpt/use/ask/reader.pt"
    assert path.stat().st_size < 1 << 20
    checkpoint, rng = load(path), random.Random("new")
    tokenizer = tokenizer_from_dict(checkpoint.tokenizer, str(path))
    for recipe, answers, abstentions in zip(reader.RECIPES.values(), (0.9, 0.7), (0.9, 0.8), strict=True):
        pairs = [reader.example(rng, recipe)[:2] for _ in range(150)]
        rows = PairRows(np.concatenate([tokenizer.encode_pair(*pair) for pair in pairs]), tokenizer)
        exact, _ = matches(checkpoint.build_model(FastGPT), rows, device.choose("cpu", "float32"))
        answered = np.array([bool(cited_answer(response)[0]) for _, response in pairs])
        assert exact[answered].mean() > answers and exact[~answered].mean() > abstentions


@pytest.mark.slow
def test_the_reader_that_ships_answers_from_documents(tmp_path: Path) -> None:
    documents, questions = reader.library(3, companies=20)
    for name, text in documents.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    ok(tmp_path, "ask", "Who?", ".", "--index=index.db", "--embeddings=none")
    some, model, found, exact = questions["val"][:60], load_reader(AskConfig(ckpt="reader")), [], []
    with open_index(tmp_path / "index.db") as index:
        for one in some:
            hits = search(index, one["question"], 3)
            found.append(any(Path(hit.source).name == one["source"] for hit in hits))
            exact.append(model.quoted(one["question"], hits).text == one["answer"])
    answerable = np.array([bool(one["answer"]) for one in some])
    assert np.array(found)[answerable].mean() > 0.9 and np.array(exact)[answerable].mean() > 0.6
