"""tinygpt from Python: `tinygpt.load` and `tinygpt.api` give what the commands give, and docs/how-to/python.md runs."""

import contextlib
import json
import re
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_TRAIN, ok
from models import same_weights

import tinygpt
from tinygpt import api
from tinygpt.checkpoint.store import load
from tinygpt.data.tasks import TASKS

DOCS = Path(__file__).parent.parent / "docs/how-to/python.md"
OPTIONS: dict[str, Any] = dict(flag[2:].split("=") for flag in TINY_TRAIN[1:])
ENDLESS = {name: value for name, value in OPTIONS.items() if name != "max_iters"}


def refuses(message: str) -> Any:
    return pytest.raises(tinygpt.TinyGPTError, match=message)


def test_a_model_generates_what_sample_prints(tiny_run: Path) -> None:
    options = ["--temperature=0.7", "--top_k=10", "--seed=3", "--stop=king"]
    model = tinygpt.load(tiny_run / "out", device="cpu")
    text = model.generate("The ", 60, temperature=0.7, top_k=10, seed=3, stop="king")
    printed = ok(tiny_run, "sample", "--ckpt=out", "--device=cpu", "--start=The ", "--max_new_tokens=60", *options).out
    assert f"The {text}\n" == printed
    pieces = list(model.generate("The ", 60, stream=True, temperature=0.7, top_k=10, seed=3, stop="king"))
    assert "".join(pieces) == text and len(pieces) > 1
    with refuses("generate: temprature: no such option"):  # which must not be ignored
        model.generate("The ", temprature=3)


def test_logits_and_losses_are_those_of_the_model(tiny_run: Path, models: Path, capsys: Any) -> None:
    model = tinygpt.load(tiny_run / "out", device="cpu", dtype="float32")
    ids = torch.tensor([model.tokenizer.encode("The king of my").tolist()])
    logits = load(tiny_run / "out/ckpt.pt").build_model().eval()(ids)[0][0]
    torch.testing.assert_close(model.logits("The king of my"), logits, rtol=0, atol=1e-5)
    by_hand = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]).item()
    assert model.loss("The king of my") == pytest.approx(by_hand, abs=1e-5)

    with contextlib.chdir(tiny_run):
        evaluated = api.evaluate("out", device="cpu", dtype="float32")
        assert "perplexity" in capsys.readouterr().out
    printed = ok(tiny_run, "eval", "--ckpt=out", "--device=cpu", "--dtype=float32", "--json").out
    assert evaluated == json.loads(printed)
    dataset = api.Dataset(tiny_run / "data", "tiny")
    before = dataset.tokenizer
    assert "tokens in train" in repr(dataset)
    assert model.loss(dataset) == pytest.approx(evaluated["loss"]) and dataset.tokenizer is before
    assert model.loss(before.decode(dataset.splits["val"].tolist())) == pytest.approx(evaluated["loss"], abs=1e-5)
    with refuses("have different vocabularies"):
        model.loss(api.Dataset(str(models / "data"), "colours"))


def test_a_model_of_pairs(models: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"prompt": "001 red"}\n')
    labelled = json.loads(ok(models, "label", tmp_path / "lines.jsonl", "--model=out", "--adapter=out-lora").out)
    with contextlib.chdir(models):
        model, base = tinygpt.load("out", adapter="out-lora", device="cpu"), tinygpt.load("out", device="cpu")
        assert model.generate("001 red", temperature=0) == "red"
        assert model.path == Path("out-lora") and repr(model).startswith("<out-lora: ")
        probabilities = model.classify("001 red", ["green", "red", "blue"])
        assert next(iter(probabilities)) == "red" and sum(probabilities.values()) == pytest.approx(1)
        assert labelled.keys() == {"prompt", "label", "probability"}
        assert probabilities[labelled["label"]] == pytest.approx(labelled["probability"], abs=1e-6)
        assert model.loss("001 red", "red") < 0.5 < model.loss("001 red", "blue")
        assert model.classify("001 red") == pytest.approx(probabilities)  # the labels of the data
    with refuses("not trained on prompts"):
        base.classify("001 red")


def test_many_prompts_at_once_give_what_single_ones_give(models: Path) -> None:
    prompts, labels = ["001 red", "002 blue"], ["green", "red"]
    with contextlib.chdir(models):
        model = tinygpt.load("out-colours", device="cpu")

        def logarithm(prompt: str, response: str) -> float:
            return -model.loss(prompt, response) * (len(response) + 1)

        single = [model.classify(prompt, labels) for prompt in prompts]
        together = model.probabilities(["001 réed", "002 blue"], labels)  # the unknown character is left out
        assert together == pytest.approx(np.array([[each[label] for label in labels] for each in single]), abs=1e-6)
        assert model.probabilities(prompts).shape == (2, 3)  # the labels of the data
        texts, shares = model.responses(prompts, 9)
        assert texts == ["red", "blue"]
        assert np.log(shares) == pytest.approx(list(map(logarithm, prompts, texts)), abs=1e-3)
        logs = model.log_probabilities("001 red", labels)
        assert logs == pytest.approx([logarithm("001 red", label) for label in labels], abs=1e-3)
        dataset = api.Dataset("data", "colours")
        examples = dataset.sources["val"].examples(dataset.tokenizer)
        losses, lengths = [model.loss(*example) for example in examples], [len(text) + 1 for _, text in examples]
        assert model.loss(dataset) == pytest.approx(np.average(losses, weights=lengths), abs=1e-6)


def test_the_log_probability_of_a_continuation_adds_up_those_of_its_tokens(models: Path) -> None:
    model = tinygpt.load(models / "out", device="cpu")
    ends, expected = ["king", "e", "king of"], []
    for end in ends:
        ids = model.tokenizer.encode(f"The {end}").tolist()
        logs = model.logits(f"The {end}").log_softmax(-1)
        expected.append(sum(float(logs[place - 1, ids[place]]) for place in range(4, len(ids))))
    assert model.log_probabilities("The ", ends) == pytest.approx(expected, abs=1e-4)
    with refuses("take 18 tokens, but the model reads 16"):
        model.log_probabilities("The king of ", ["my so"] * 3 + ["my son"])


def test_adapters_share_a_base_model(models: Path) -> None:
    with contextlib.chdir(models):
        adapted = api.load_adapters("out", {"colours": Path("out-lora")}, device="cpu")
        assert list(adapted) == ["", "colours"]
        alone = tinygpt.load("out", adapter="out-lora", device="cpu")
        assert torch.equal(adapted["colours"].logits("001 red"), alone.logits("001 red"))
        assert adapted["colours"].classify("001 red") == alone.classify("001 red")  # the labels of its data
        assert torch.equal(adapted[""].logits("The"), tinygpt.load("out", device="cpu").logits("The"))
        with refuses("trained on a base model other than"):
            api.load_adapters("out", {"german": "out-german"})


def test_documents_are_searched_read_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    for name, text in (("norvik", "Lars Holm is the finance chief of Norvik."), ("kelm", "Kelm was founded in 1950.")):
        (tmp_path / f"docs/{name}.md").write_text(f"# {name}\n\n{text}\n")
    monkeypatch.chdir(tmp_path)
    question, options = "Who is the finance chief of Norvik?", {"embeddings": "none"}
    printed = json.loads(ok(tmp_path, "ask", question, "docs", "--ckpt=reader", "--embeddings=none", "--json").out)
    outcome = api.ask(question, "docs", ckpt="reader", **options)
    assert json.loads(json.dumps(outcome._asdict())) == printed and outcome.model == "Lars Holm"
    assert api.ask("What does a zebra eat?", [Path("docs")], **options).answer == ""

    documents = api.Documents("docs", **options)
    first, *others = documents.search(question, 5)
    assert Path(first.source).name == "norvik.md" and 0 < first.relevance < 1
    assert all(other.relevance < first.relevance for other in others)
    index = next((tmp_path / ".tinygpt").glob("*.db"))
    assert api.Documents(index=index).search(question, 1) == [first]

    reader = api.load("reader", device="cpu")
    answer = reader.read(question, [first])
    assert answer.text == "Lars Holm" and answer.passage == 1 and 0.3 < answer.probability <= 1
    assert reader.read(question, ["Kelm was founded in 1950.", first.text]).passage == 2
    texts = api.Documents(texts=["a red car", "the blue car of Emil", "nothing"])
    assert [passage.id for passage in texts.search("blue car")] == [2, 1] and texts.search("zebra") == []
    for call, message in (
        (lambda: texts.search(" "), "the question is empty"),
        (lambda: api.Documents("docs", texts=["one"]), "no files, and no options"),
    ):
        with refuses(message):
            call()


def test_a_child_that_cannot_do_what_is_asked_is_not_started(run_copy: Path) -> None:
    with contextlib.chdir(run_copy):
        Path("c.yaml").write_text("init_from: out\n")
        for call, source, options, message in (
            (api.train, ENDLESS, {"learning_rate": 0.5, "max_iters": 20, "out_dir": "out"}, "the run in out has ended"),
            (api.train, "c.yaml", ENDLESS | {"out_dir": "out2"}, "continues its run, or starts with new weights"),
            (api.train, ENDLESS, {"callback": print}, "cannot call the callback"),
            (api.train, ENDLESS, {"n_embd": 17, "out_dir": "out2"}, "n_embd"),
        ):
            with refuses(message):
                call(source, child=True, **options)
        assert not (run_copy / "out2").exists()


def test_a_task_has_its_seed_and_its_options() -> None:
    made = api.task("transactions", 7)
    assert made.splits == TASKS["transactions"].make(7) and made.labels == TASKS["transactions"].labels
    assert made.scores("line", "food", "food") == {"exact match": True} != made.scores("line", "food", "rent")
    text = api.task("reports_a", 1)
    prompt, response = text.splits["test"][0]
    assert not text.labels and all(text.scores(prompt, response, response).values())
    for arguments, options, message in (
        (("transaction",), {}, "transaction: no such task"),
        (("headlines",), {"brands": 3}, "task headlines: brands: no such option"),
        (("transactions",), {"brands": 3000}, "the split 'train' has .* brands of each category"),
    ):
        with refuses(message):
            api.task(*arguments, **options)


def test_the_n_gram_baseline_is_that_of_eval(tmp_path: Path) -> None:
    pairs = [(f"{word} {number}", word) for word in ("red", "blue") for number in range(20)]
    probabilities = api.ngrams(pairs, ["blue", "red"])(["a red one", "blue"])
    assert probabilities.argmax(1).tolist() == [1, 0] and probabilities.sum(1) == pytest.approx(1)
    data = api.write_dataset(tmp_path / "colours", {"train": pairs, "val": pairs, "test": pairs}, ["red", "blue"])
    assert isinstance(data, api.Dataset) and data.labels == ["red", "blue"]


def rows(run: api.Run) -> list[dict[str, Any]]:
    return run.losses if isinstance(run.losses, list) else run.losses.to_dict("records")


def test_train_gives_the_weights_of_the_command_also_after_a_stop(tiny_run: Path, work: Path, capsys: Any) -> None:
    entries: list[dict[str, Any]] = []
    with contextlib.chdir(work):
        run = api.train(OPTIONS, callback=lambda entry: entry["kind"] == "train" and entry["step"] == 10, out_dir="out")
        assert [row["step"] for row in rows(run)] == [0, 10]
        assert "stopped by the callback after 11 iterations" in capsys.readouterr().out
        ok(work, "train", "--init_from=resume", "--out_dir=out")
        assert same_weights(tiny_run / "out/last.pt", work / "out/last.pt")
        Path("c.yaml").write_text("".join(f"{name}: {value}\n" for name, value in OPTIONS.items()))
        run = api.train("c.yaml", callback=entries.append, out_dir="whole")
        assert same_weights(tiny_run / "out/last.pt", work / "whole/last.pt")
        assert [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()] == entries
        assert [row["step"] for row in rows(run)] == [0, 10, 20]
        assert run.val_loss == min(row["val_loss"] for row in rows(run)) == load(work / "whole").best_val_loss
        assert f"\nverdict:     {run.verdict}\n" in ok(work, "doctor", "whole").out


@pytest.mark.parametrize(("kind", "step"), [("train", 10), ("eval", 20)])
def test_an_interrupt_is_raised_and_the_run_is_kept(kind: str, step: int, tiny_run: Path, work: Path) -> None:
    """As by Jupyter, which sends a SIGINT; also in the last evaluation."""

    def interrupt(entry: dict[str, Any]) -> None:
        if (entry["kind"], entry["step"]) == (kind, step):
            signal.raise_signal(signal.SIGINT)

    with contextlib.chdir(work), pytest.raises(KeyboardInterrupt):
        api.train(OPTIONS, callback=interrupt, out_dir="out")
    if kind == "train":
        assert load(work / "out/last.pt").step == 11
        ok(work, "train", "--init_from=resume", "--out_dir=out")
    assert same_weights(tiny_run / "out/last.pt", work / "out/last.pt")


def page_of(run: api.Run) -> str:
    """What Jupyter shows, without the names of clip paths, which contain addresses in memory."""
    return re.sub(r"p[0-9a-f]{10}\b", "p", run._repr_html_())


def test_objects_work_after_a_change_of_the_folder(models: Path, tmp_path: Path) -> None:
    with contextlib.chdir(models):
        run, tuned = api.Run("out"), api.Run("out-lora")
        model = tinygpt.load("out", adapter="out-lora", device="cpu")
        verdict, page, probabilities = run.verdict, page_of(run), model.classify("001 red")  # the dataset's labels
    with contextlib.chdir(tmp_path):
        assert (run.verdict, page_of(run), model.classify("001 red")) == (verdict, page, probabilities)
        assert repr(run) == f"<out: {verdict}>" and rows(run) and run.entries("eval")
        assert tuned.folder == models / "out-lora" and run.load().generate("The ", 9, seed=1)
        assert str(models) not in repr(run.load())  # which may contain the user's name
        assert tuned.load(device="cpu").classify("001 red").keys() == probabilities.keys()
        with refuses("metrics.jsonl"):
            api.Run("out")


def test_an_error_has_the_hint_of_the_command_line(models: Path, work: Path) -> None:
    with refuses("'é'") as caught:
        tinygpt.load(models / "out", device="cpu").generate("é")
    assert caught.value.hint == "leave it out (tinygpt sample and serve: --skip_unknown)"
    assert caught.value.hint in traceback.format_exception(caught.value)[-1]
    with contextlib.chdir(work):
        for call, message in (
            (lambda: api.train(OPTIONS, max_iters=[1, 2]), r"max_iters: needs one value, not \[1, 2\]"),
            (lambda: tinygpt.load("none", devic="cpu"), "load: devic: no such option"),
        ):
            with refuses(message):
                call()
        assert not Path("out").exists()


def test_runs_and_datasets_are_arguments(tiny_run: Path, work: Path) -> None:
    with contextlib.chdir(work):
        options = OPTIONS | {"dataset": api.Dataset(tiny_run / "data", "tiny"), "max_iters": 2, "data_dir": "none"}
        run = api.train(options, init_from=api.Run(tiny_run / "out"), out_dir="out", eval_interval=2)
        config = run.load().config
        assert (config["dataset"], config["data_dir"]) == ("tiny", str(tiny_run / "data"))
        assert config["init_from"] == str(tiny_run / "out") and Path(run) == work / "out"
        tuned = api.finetune(options, ckpt=run, out_dir="out-lora", lora_rank=2, base_dataset="")
        assert tuned.load().config["ckpt"] == str(work / "out")
        assert api.evaluate(run, dataset=options["dataset"])["loss"] == api.evaluate("out")["loss"]


def test_a_run_shows_itself_in_jupyter(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.chdir(run_copy):
        with open("out/metrics.jsonl", "a") as file:
            file.write('{"kind": "sample", "step": 20, "seconds": 1, "text": "<b>thou & art"}\n')
        shutil.move("out", "-run")
        run = api.Run("-run")  # a dash begins a path
        page = run._repr_html_()
        assert "<svg" in page and "&lt;b&gt;thou &amp; art" in page and run.verdict.split(" (")[0] in page
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        page = run._repr_html_()
        assert "<svg" not in page and f"{rows(run)[0]['val_loss']:.4f}" in page


def test_the_public_names_are_documented() -> None:
    names = {*api.__all__, "splits", "labels", "tokenizer", "model", "config", "folder"}
    for owner in (api.Documents, api.LoadedModel, api.Run):
        names |= {name for name in vars(owner) if not name.startswith("_")}
    reference = DOCS.parents[1].joinpath("reference/python.md").read_text(encoding="utf-8")
    code = " ".join(re.findall(r"`([^`]+)`", reference))
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []


@pytest.mark.slow
def test_the_examples_of_the_documentation(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With fewer iterations and small models; the resumed run has more than the one before."""
    examples = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 10
    short = r"eval_iters=1, n_layer=1, n_embd=32, n_head=2, max_iters=\1"
    code = re.sub(r"max_iters=(\d)\d+", short, "\n".join(examples)).replace("=2)", "=5)")
    code = re.sub(r"eval_interval=\d+", "eval_interval=1", code).replace("< 2.6", "< 9")
    code = code.replace('zip(*splits["test"])', 'zip(*splits["test"][:50])')
    with contextlib.chdir(tmp_path):
        exec(compile(code, "examples.py", "exec"), {})
    printed = capfd.readouterr().out
    assert "stopped by the callback" in printed and "out-pz: no such file" in printed
