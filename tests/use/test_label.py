"""`tinygpt label` on the command line, and `serve --labels`: forms of input, kinds of models, mistakes."""

import codecs
import csv
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from answers import LABELS, kinds
from conftest import ok, refused
from inputs import csv_file, workbook
from serving import serving_here

import tinygpt
from tinygpt.base.configs.use import AdviseConfig
from tinygpt.base.files import file_lock
from tinygpt.checkpoint import store
from tinygpt.examine.eval.classifiers import Linear
from tinygpt.use.advise.command import read_data
from tinygpt.use.advise.labeller import load, save
from tinygpt.use.ask import embeddings


@pytest.fixture
def work(labelling: Path, tmp_path: Path) -> Path:
    """A copy of the folder with the model `model`."""
    return Path(shutil.copytree(labelling, tmp_path / "work"))


def rows(text: str, separator: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))


TEXTS = ['who is "aaa", then?', "where is\nbbb?\r\n", "when; is ccc?", " ", "%&/ zzz", "who is ddd?"]
EXPECTED = ["person", "place", "time", "", None, "person"]  # None: whichever, but unsure


@pytest.mark.parametrize("separator", [",", ";"])
def test_csv_keeps_every_cell_and_its_separator(work: Path, separator: str) -> None:
    columns = ["id", "question", "", "note"]
    table = [[str(n), text, "", f'a{separator}"b"\n'] for n, text in enumerate(TEXTS)]
    csv_file(work / "new.csv", columns, *table, delimiter=separator)
    ok(work, "label", "new.csv", "--model=model", "-o", "out.csv")
    written = rows((work / "out.csv").read_bytes().decode(), separator)
    assert list(written[0]) == [*columns, "label", "probability", "sure"]
    assert [[row[name] for name in columns] for row in written] == table
    expected = load(work / "model").label([text.strip() for text in TEXTS])
    for row, wanted, answer in zip(written, EXPECTED, expected, strict=True):
        assert row["label"] == answer.label and (wanted is None or row["label"] == wanted)
        assert row["sure"] == ("yes" if wanted else "no")
        assert row["probability"] == (f"{answer.probability:.6f}" if row["label"] else "")


EMPTY_ROWS = [["id", "question"], ["1", "who?"], [], ["", " "], ["2", ""], ["", ""], ["3", "where?"], [], ["", " "]]


@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_an_empty_row_stays_empty_and_in_its_place(work: Path, kind: str) -> None:
    {"csv": csv_file, "xlsx": workbook}[kind](work / f"new.{kind}", *EMPTY_ROWS)
    result = ok(work, "label", f"new.{kind}", "--model=model", "-o", "out.csv")
    assert "2 lines labelled" in result.err and "empty lines, which have no label: 4" in result.err
    written = list(csv.reader((work / "out.csv").read_text("utf-8-sig").splitlines()))
    assert [row[0] for row in written] == ["id", "1", "", "", "2", "", "3"]
    assert [row[2] for row in written] == ["label", "person", "", "", "", "", "place"]
    assert [row[4] for row in written[2:6]] == ["", "", "no", ""]  # "2" has other cells, so a person looks at it


def test_json_lines_keep_their_values(work: Path) -> None:
    entries: list[dict[str, Any]] = [{"question": text, "tags": [1, {"a": None}]} for text in TEXTS]
    entries[1]["more"] = True
    (work / "new.jsonl").write_text("".join(f"{json.dumps(entry)}\n\n" for entry in entries))
    printed = [json.loads(line) for line in ok(work, "label", "new.jsonl", "--model=model").out.splitlines()]
    assert [{key: row[key] for key in entry} for row, entry in zip(printed, entries, strict=True)] == entries
    assert [row["label"] for row in printed[:4]] == EXPECTED[:4] and printed[3]["probability"] is None
    assert [row["sure"] for row in printed] == ["yes"] * 3 + ["no"] * 2 + ["yes"] and printed[0]["probability"] > 0.7
    ok(work, "label", "new.jsonl", "--model=model", "--output=out.csv")
    written = rows((work / "out.csv").read_bytes().decode())
    assert written[1]["tags"] == '[1, {"a": null}]' and written[1]["more"] == "true" and written[0]["more"] == ""


def test_lines_of_standard_input(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its byte order mark is not written into the output."""
    text = "who is aaa?\r\n\r\nwhére is bbb?\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(codecs.BOM_UTF8 + text)))
    ok(work, "label", "-", "--model=model", "-o", "out.csv")
    found = rows((work / "out.csv").read_bytes().decode())
    assert [row["question"] for row in found] == ["who is aaa?", "", "whére is bbb?"]
    assert [row["label"] for row in found] == ["person", "", "place"]


def test_a_model_without_a_threshold_is_never_sure_and_the_threshold_itself_is_sure(work: Path) -> None:
    model = Linear.fit(["a", "a", "b"], np.array([0, 0, 1]), 2, C=1)
    p = float(model(["a"])[0, 0])
    for threshold, sure in ((p, True), (p + 1e-9, False), (None, False)):
        save(work / "model", model, ["a", "b"], threshold)
        assert load(work / "model").label(["a"]) == [("a", pytest.approx(p), sure)]
    (work / "new.txt").write_text("who is aaa?\n" * 3)
    result = ok(work, "label", "new.txt", "--model=model")
    assert [row["sure"] for row in rows(result.out)] == ["no"] * 3
    assert "sure: none" in result.err and "a person should look at all lines" in result.err


@pytest.mark.parametrize(
    ("name", "encoding", "marked"),
    [
        ("new.csv", "utf-8", False),
        ("new.csv", "utf-8-sig", True),
        ("new.csv", "utf-16", True),
        ("new.xlsx", "utf-8", True),
    ],
)
def test_csv_has_a_byte_order_mark_where_excel_needs_it(work: Path, name: str, encoding: str, marked: bool) -> None:
    prompts = [f"{text} é" for text in kinds(60)[0]]
    if name == "new.xlsx":
        workbook(work / name, ["question"], *([prompt] for prompt in prompts))
    else:
        (work / name).write_text("".join(f"{line}\n" for line in ["question", *prompts]), encoding)
    flags = ["--model=model"] + [f"--encoding={encoding}"] * (encoding == "utf-16")
    ok(work, "label", name, "-o", "out.csv", *flags)
    data = (work / "out.csv").read_bytes()
    assert data.count(codecs.BOM_UTF8) == marked == data.startswith(codecs.BOM_UTF8)
    assert rows(data.decode("utf-8-sig"))[0]["question"] == prompts[0]
    again = rows(ok(work, "label", "out.csv", "--model=model").out)  # the output is read again
    assert all(row["label (2)"] == row["label"] in LABELS for row in again)
    config = AdviseConfig("out.csv", prompt_field="question", response_field="label")
    examples_again, _, _ = read_data(config, work / "out.csv")
    assert examples_again.prompts == prompts and examples_again.labels == LABELS


FORMULAS = ["=1+1", "+a", "-a", "@a", "\t=1", "\rb", " =1", "\uff1d1", "-1+1", "- item", "=-5"]
PLAIN = ["-5", "+3.2", "-1.000,5", "-1'000", "+1.5e-7", "-3%", "-", "1-1", "a=b", "'=1", ""]


def test_formulas_are_named_and_escaped_on_request(work: Path) -> None:
    save(work / "model", Linear.fit(["a", "b"], np.array([0, 1]), 2, C=1), ["=label", "=other"], 0.1, "question")
    table = [["question", "+column"], *(["who?", text] for text in [*PLAIN, *FORMULAS])]
    csv_file(work / "new.csv", *table)
    result = ok(work, "label", "new.csv", "-o", "out.csv", "--model=model")
    count = 1 + len(FORMULAS) + len(PLAIN + FORMULAS)  # of the header, of the column and of the labels
    assert f"which Excel calculates: {count}, the first in row 1: +column; --escape_formulas puts" in result.err
    plain = rows((work / "out.csv").read_bytes().decode())
    assert [row["+column"] for row in plain] == [*PLAIN, *FORMULAS] and plain[0]["label"] == "=label"
    result = ok(work, "label", "new.csv", "-o", "out.csv", "--model=model", "--escape_formulas")
    assert "each has an apostrophe now" in result.err
    escaped = rows((work / "out.csv").read_bytes().decode())
    assert [row["'+column"] for row in escaped] == [*PLAIN, *(f"'{text}" for text in FORMULAS)]
    assert {row["label"] for row in escaped} == {"'=label"}


COLOURS = ["red", "green", "blue"]


def save_gpt(folder: Path, ckpt: str) -> None:
    """Write what advise of earlier versions left for a tiny GPT."""
    state = {"tinygpt_labeller": 2, "kind": "gpt", "labels": COLOURS, "threshold": 0.0, "prompt_field": "prompt"}
    store.write(folder / "model.pt", state | {"about": {}, "encoder": "", "longest": 9, "state": {"ckpt": ckpt}})


def test_a_gpt_labels_relative_to_its_folder_and_long_prompts(models: Path, tmp_path: Path) -> None:
    prompts = ["001 red", "007 blue", "013 green"]
    folder = tmp_path / "made"
    (folder / "gpt").mkdir(parents=True)
    shutil.copy(models / "out-colours/ckpt.pt", folder / "gpt")
    save_gpt(folder, "gpt/ckpt.pt")
    folder = folder.rename(tmp_path / "copied")
    expected = tinygpt.load(models / "out-colours", device="cpu").probabilities(prompts, COLOURS)
    assert (load(folder)(prompts) == expected).all()
    (folder / "new.txt").write_text("\n".join([*prompts, "é 002 red", "003 green" + " and so on" * 50]))
    found = [row["label"] for row in rows(ok(folder, "label", "new.txt", "--model=.").out)]
    assert found == ["red", "blue", "green", "red", "green"]
    save_gpt(folder, str(models / "out-colours"))
    assert load(folder).label(["009 red" * 50])[0].label in COLOURS  # more than the context
    save_gpt(folder, "gpt/none.pt")
    assert "none.pt: no such file" in refused(folder, "label", "new.txt", "--model=.")


def test_a_run_labels_without_a_threshold(models: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("id,prompt\n1,001 red\n2,\n3,007 blue and much more\n")
    result = ok(models, "label", tmp_path / "new.csv", "--model=out-colours/ckpt.pt")
    first, empty, cut = rows(result.out)
    colours = ["blue", "green", "red"]
    (probabilities,) = tinygpt.load(models / "out-colours", device="cpu").probabilities(["001 red"], colours)
    assert list(first) == ["id", "prompt", "label", "probability"] and first["label"] == "red"
    assert float(first["probability"]) == pytest.approx(probabilities[colours.index("red")], abs=1e-6)
    assert (empty["label"], empty["probability"]) == ("", "") and cut["label"] in colours
    assert "no column sure" in result.err and "a person should look" not in result.err


def test_a_file_has_one_writer(work: Path) -> None:
    (work / "new.txt").write_text("who is aaa?")
    command = ("label", "new.txt", "--model=model", "-o", "out.csv")
    with file_lock(work / "out.csv", "test"):
        assert "out.csv is in use by process" in refused(work, *command)
    ok(work, *command)
    assert rows((work / "out.csv").read_text())[0]["label"] == "person"


@pytest.mark.parametrize("change", [{"labels": ["a", "a", "b"]}, {"threshold": 2.0}, {"state": {}}], ids=str)
def test_an_impossible_model_is_refused(work: Path, change: dict[str, Any]) -> None:
    (work / "new.txt").write_text("who?")
    path = work / "model/model.pt"
    store.write(path, store.read(path) | change)
    assert "impossible" in refused(work, "label", "new.txt", "--model=model")


def test_static_word_vectors_are_found_again_or_their_package_is_named(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Linear.fit(*kinds(60), 3, C=1, embed=embeddings.WordLlama().vectors)
    save(work / "model", model, LABELS, 0.5)
    assert (load(work / "model")(["who is it?"]) == model(["who is it?"])).all()
    (work / "new.txt").write_text("who?")
    monkeypatch.setattr(embeddings, "installed", lambda: False)
    assert "pip install wordllama" in refused(work, "label", "new.txt", "--model=model")


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_labels_are_served_without_a_gpt(labelling: Path) -> None:
    labeller = load(labelling / "model")
    with serving_here(labelling, "--labels=model") as served:
        client = served.client()
        assert [model.id for model in client.models.list()] == ["labels"] and "serving:  labels\n" in served.output
        create = client.chat.completions.create
        for text, sure in (("  who is aaa?", True), ("%&/ zzz", False)):
            (probs,) = labeller([text.strip()])
            expected = {"probabilities": dict(zip(LABELS, probs.tolist(), strict=True)), "sure": sure}
            expected |= {"label": LABELS[probs.argmax()], "probability": probs.max()}
            messages = [*user("when?"), {"role": "assistant", "content": "time"}, *user(text)]
            answer = create(model="labels", messages=messages)
            assert answer.choices[0].message.content == expected["label"] and answer.labels == expected
            assert answer.choices[0].finish_reason == "stop" and answer.model == "labels"
        *pieces, last = create(model="", messages=user("when is ccc?"), stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "time" == last.labels["label"]
        with pytest.raises(openai.NotFoundError, match="use /v1/chat/completions"):
            client.completions.create(model="", prompt="who?")
