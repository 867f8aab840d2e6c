"""`tinygpt lab race`: its ranks by hand, and races of small models, from the teacher's text to the table."""

import csv
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from children import Child
from conftest import Shared, cli_here, needs_fork, ok, refused, tiny_text, until

from tinygpt.checkpoint.store import load
from tinygpt.data.dataset import Dataset
from tinygpt.learn.lab import race

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 8, "gradient_accumulation_steps": 1}
SMALL |= {"learning_rate": 1e-2, "warmup_iters": 2, "eval_interval": 10**9, "eval_iters": 2, "sample_interval": 0}
TEXT = tiny_text(6000)  # about 220,000 characters
CUT = len(TEXT) * 9 // 10
RACE, FLAGS, OUT = ["lab", "race"], ["--text=text.txt", "--budget=6s"], "out-lab-race"


def write(folder: Path, name: str, **settings: Any) -> str:
    """Write a config; return its name."""
    lines = [f"{key}: {value}\n" for key, value in (SMALL | settings).items()]
    (folder / name).write_text("".join(lines))
    return name


@pytest.fixture(scope="module")
def made(shared: Shared) -> Path:
    """A working folder with text.txt and a race of two entries."""

    def make(folder: Path) -> None:
        (folder / "text.txt").write_text(TEXT)
        names = [write(folder, "anna.yaml"), write(folder, "eva.yaml", learning_rate=1e-6, min_lr=0)]
        (folder / "said.txt").write_text(ok(folder, *RACE, *names, *FLAGS).out)

    return shared("race", make)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working folder with text.txt."""
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """The lines of race.csv, by the name of the config."""
    with open(folder / OUT / "race.csv", encoding="utf-8-sig", newline="") as file:
        return {row["entry"].rpartition("-")[0]: row for row in csv.DictReader(file)}


def test_ranks_by_hand() -> None:
    losses = {"e": 1.8501, "b": 1.82, "a": 1.80, "d": 1.85, "c": 1.83}  # c beats e, not d
    ranked = race.ranked_rows({name: {"loss": loss} for name, loss in losses.items()} | {"f": {"failed": "no"}})
    assert [(row["entry"], row.get("rank")) for row in ranked] == [*zip("abcdef", (1, 1, 2, 3, 4, None), strict=True)]


def test_the_table_has_a_line_for_each_entry(made: Path) -> None:
    found, said = rows(made), (made / "said.txt").read_text()
    assert [found[name]["rank"] for name in ("anna", "eva")] == ["1", "2"]  # eva hardly learns
    for row in found.values():
        state = load(made / OUT / row["entry"] / "last.pt")
        assert int(row["iterations"]) == state.step and int(row["parameters"]) == state.build_model().num_params()
        assert 0.3 < float(row["seconds"]) < 6 and row["date"] and state.config["threads"] == "1"
        line = re.search(rf"^ *(\d+) +{row['entry']} +([\d.]+) ", said, re.MULTILINE)
        assert line and line[1] == row["rank"] and line[2] == f"{float(row['loss']):.4f}"


def test_the_loss_is_that_of_eval_on_the_last_tenth(made: Path) -> None:
    row = rows(made)["anna"]
    own, test = (Dataset(str(made / OUT / "data"), dataset) for dataset in ("train", "test"))
    assert "".join(own.tokenizer.decode(own.splits[split]) for split in ("train", "val")) == TEXT[:CUT]
    assert test.tokenizer.decode(test.splits["val"]) == TEXT[CUT:]

    def evaluated(file: str, data: str) -> dict[str, float]:
        args = [f"--ckpt={OUT}/{row['entry']}/{file}", f"--dataset={data}", f"--data_dir={OUT}/data", "--device=cpu"]
        return json.loads(ok(made, "eval", *args, "--json").out)

    best = min(("ckpt.pt", "last.pt"), key=lambda file: evaluated(file, "train")["loss"])
    for key in ("loss", "bits_per_character"):
        assert float(row[key]) == pytest.approx(evaluated(best, "test")[key], abs=1e-4)


def test_other_entries_are_added(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "work"))
    models = {path: path.read_bytes() for path in (folder / OUT).glob("*/*.pt")}
    said = ok(folder, *RACE, "anna.yaml", write(folder, "ben.yaml"), *FLAGS).out
    assert said.count("stage") == 1 and "stage 2 of 2: ben-" in said and set(rows(folder)) == {"anna", "ben", "eva"}
    assert models and all(path.read_bytes() == content for path, content in models.items())
    assert "with budget='6s'" in refused(folder, *RACE, "anna.yaml", "--text=text.txt", "--budget=4s")
    (folder / "text.txt").write_text(TEXT + "More.\n")
    assert f"text.txt is not the one that {OUT} was made with" in refused(folder, *RACE, "anna.yaml", *FLAGS)


@needs_fork
def test_a_race_that_was_interrupted_continues_its_entry(work: Path) -> None:
    args = [*RACE, write(work, "eva.yaml", eval_interval=50), "--text=text.txt", "--budget=12s"]
    child = Child(args, work / "log", work)
    until(lambda: any(work.glob(f"{OUT}/eva-*/last.pt")))
    child.send(signal.SIGINT)
    assert child.wait() == 130 and not (work / OUT / "race.csv").exists()
    (state,) = work.glob(f"{OUT}/eva-*/last.pt")
    reached, length = load(state).step, load(state).config["max_iters"]
    ok(work, *args)
    entries = [json.loads(line) for line in (state.parent / "metrics.jsonl").read_text().splitlines()]
    assert 0 < reached < length == int(rows(work)["eva"]["iterations"])
    assert sum(entry["kind"] == "eval" and entry["step"] == 0 for entry in entries) == 1


def test_a_folder_of_configs(work: Path) -> None:
    (work / "class/ben/__MACOSX").mkdir(parents=True)
    assert "class: no config file" in refused(work, *RACE, "class", *FLAGS)
    for name in ("anna.yaml", "ben/anna.yaml", "ben/__MACOSX/anna.yaml"):
        write(work, f"class/{name}")
    (work / "class/.hidden.yaml").write_text("no: key\n")
    message = refused(work, *RACE, "class", *FLAGS)
    assert "ben/anna.yaml: another entry has the same name and settings" in message.replace("\\", "/")
    assert [path.name for path in race.config_files([str(work / "class")])] == ["anna.yaml", "anna.yaml"]


def test_an_entry_that_fails_does_not_end_the_race(work: Path) -> None:
    names = [write(work, "anna.yaml", block_size=10**5), write(work, "ben.yaml")]
    result = cli_here(*RACE, *names, *FLAGS, cwd=work)
    assert result.status == 1 and re.search(r"anna-\w+ failed: .* tokens", result.out)
    found = rows(work)
    assert found["ben"]["rank"] == "1" and not found["anna"]["loss"] and found["anna"]["failed"]
    again = cli_here(*RACE, "anna.yaml", *FLAGS, cwd=work)
    assert again.status == 1 and "stage 1 of 1: anna-" in again.out  # the reason may be gone, as after a full disk


def test_students_get_the_first_nine_tenths(work: Path) -> None:
    said = ok(work, *RACE, "--text=text.txt", "--budget=7s", "--out_dir=mine").out
    assert (work / "mine/train.txt").read_bytes().decode() == TEXT[:CUT]
    command = "tinygpt lab race FOLDER --text=text.txt --budget=7s --out_dir=mine"
    assert f"{CUT:,} characters for the students" in said and f"next: give it to the students, then {command}" in said
    (work / "mine/train.txt").write_text(TEXT)
    assert "train.txt would be overwritten" in refused(work / "mine", *RACE, "--out_dir=.")
    assert "the teacher's out-lab-race/train.txt" in refused(work, *RACE, "anna.yaml")


def test_what_a_config_cannot_choose_and_characters_that_only_the_test_has(work: Path) -> None:
    (work / "text.txt").write_text(TEXT[:-2] + "é\n", encoding="utf-8")
    other = {"dataset": "mine", "data_dir": "elsewhere", "out_dir": "mine", "threads": 2, "eval_only": True}
    result = ok(work, *RACE, write(work, "anna.yaml", max_iters=3, **other), *FLAGS)
    ignored = "data_dir, dataset, eval_only, max_iters, out_dir, threads"
    assert f"note: anna.yaml: ignored, because the race sets it: {ignored}" in result.err
    assert not (work / "mine").exists() and int(rows(work)["anna"]["iterations"]) > 3
    assert "these characters occur only in the test, and are skipped there: 'é'" in result.err
    assert Dataset(str(work / OUT / "data"), "test").meta["characters"]["val"] == len(TEXT) - CUT - 1


def test_every_config_that_is_refused_is_named_at_once(work: Path) -> None:
    wrong = {"anna": {"init_from": "out/ckpt.pt"}, "carla": {"n_head": 3}, "dora": {"n_layers": 3}, "eva": {}}
    said = refused(work, *RACE, *(write(work, f"{name}.yaml", **settings) for name, settings in wrong.items()), *FLAGS)
    assert "anna.yaml: all entries of a race start from new weights" in said
    assert "carla.yaml: n_head 3 does not divide n_embd 16" in said and "dora.yaml: n_layers: no such key" in said
