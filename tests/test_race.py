"""`tinygpt race`: its ranks by hand, and races of small models, from the teacher's text to the table."""

import contextlib
import csv
import json
import math
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from children import Child, lines_of
from conftest import Shared, cli_here, listing, needs_fork, ok, refused, tiny_text, until

from tinygpt.checkpoint.store import load
from tinygpt.config.parse import parse
from tinygpt.config.schema import TrainConfig
from tinygpt.data.dataset import Dataset
from tinygpt.race import command, entry
from tinygpt.race.command import ranks
from tinygpt.race.entry import changed

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 8, "gradient_accumulation_steps": 1}
SMALL |= {"learning_rate": 1e-2, "warmup_iters": 2, "max_iters": 20, "eval_interval": 10, "eval_iters": 2}
TEXT = tiny_text(6000)  # about 220,000 characters
CUT = len(TEXT) * 9 // 10
RACE = ["--text=text.txt", "--times=5"]


def write(folder: Path, name: str, **settings: Any) -> str:
    """Write a config; return its name."""
    lines = [f"{key}: {value}\n" for key, value in (SMALL | settings).items()]
    (folder / name).write_text("".join(lines))
    return name


@contextlib.contextmanager
def small_calibration(folder: Path) -> Iterator[None]:
    """The unit of the budget is a fraction of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "PRESET", str(folder / write(folder, "calibration.yaml")))
        patch.setattr(entry, "SLICE", 0.2)
        patch.setattr(entry, "CALIBRATION", 0.05)
        yield


@pytest.fixture(autouse=True)
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with small_calibration(tmp_path_factory.mktemp("calibration")):
        yield


@pytest.fixture(scope="module")
def made(shared: Shared) -> Path:
    """A working folder with text.txt and a race of three entries: two equal ones, and one that does not end."""

    def make(folder: Path) -> None:
        (folder / "text.txt").write_text(TEXT)
        with small_calibration(folder):
            names = [write(folder, "anna.yaml"), write(folder, "ben.yaml"), write(folder, "eva.yaml", max_iters=10**9)]
            (folder / "said.txt").write_text(ok(folder, "race", *names, *RACE).out)

    return shared("race", make)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working folder with text.txt."""
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """The lines of race.csv, by the name of the config."""
    with open(folder / "out-race/race.csv", encoding="utf-8-sig", newline="") as file:
        return {row["entry"].rpartition("-")[0]: row for row in csv.DictReader(file)}


def test_ranks_by_hand() -> None:
    losses = {"e": 1.8501, "b": 1.82, "a": 1.80, "d": 1.85, "c": 1.83}  # d ties with c, not with b, and e with nobody
    assert ranks(losses) == {"a": 1, "b": 1, "c": 3, "d": 3, "e": 5}
    assert list(ranks(losses)) == ["a", "b", "c", "d", "e"] and ranks({}) == {}


def test_the_table_has_a_line_for_each_entry(made: Path) -> None:
    table, said = rows(made), (made / "said.txt").read_text()
    assert set(table) == {"anna", "ben", "eva"}
    assert table["anna"]["loss"] == table["ben"]["loss"] and table["anna"]["rank"] == table["ben"]["rank"]
    for name, row in table.items():
        state = load(made / "out-race" / row["entry"] / "last.pt")
        assert int(row["iterations"]) == state.step and int(row["parameters"]) == state.build_model().num_params()
        assert row["ended"] == ("stopped" if name == "eva" else "finished") and row["machine"] and row["date"]
        used = float(row["seconds"]) / float(row["calibration"])
        assert float(row["used"]) == pytest.approx(used, rel=1e-4) and (used >= 5) == (name == "eva")  # --times=5
        line = re.search(rf"^ *(\d+) +{row['entry']} +([\d.]+) ", said, re.MULTILINE)
        assert line and line[1] == row["rank"]
        assert float(line[2]) == pytest.approx(float(row["loss"]), abs=1e-4)  # each is rounded from the same loss


def test_the_loss_is_that_of_eval_on_the_last_tenth(made: Path) -> None:
    name = rows(made)["anna"]["entry"]
    folder = "--data_dir=out-race/data"
    own = Dataset(str(made / "out-race/data"), "train")
    assert "".join(own.tokenizer.decode(own.splits[split]) for split in ("train", "val")) == TEXT[:CUT]
    test = Dataset(str(made / "out-race/data"), "test")
    assert test.tokenizer.decode(test.splits["val"]) == TEXT[CUT:]
    assert load(made / "out-race" / name / "last.pt").data == own.meta["sha256"]
    losses = {}
    for data in ("train", "test"):
        for file in ("ckpt.pt", "last.pt"):
            args = ["eval", f"--ckpt=out-race/{name}/{file}", f"--dataset={data}", folder, "--device=cpu", "--json"]
            losses[data, file] = json.loads(ok(made, *args).out)
    best = min(("ckpt.pt", "last.pt"), key=lambda file: losses["train", file]["loss"])
    row = rows(made)["anna"]
    assert float(row["loss"]) == pytest.approx(losses["test", best]["loss"], abs=1e-4)
    assert float(row["bits_per_character"]) == pytest.approx(losses["test", best]["bits_per_character"], abs=1e-4)


def test_an_entry_is_stopped_when_its_budget_is_used_up(made: Path) -> None:
    row = rows(made)["eva"]
    assert 0 < int(row["iterations"]) < 10**9 and 5 <= float(row["used"]) < 10


def test_the_clock_by_hand(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program halves the speed of the machine from second 10 on: the budget is used up half as fast."""
    now = SimpleNamespace(seconds=0.0, each=0.5)  # seconds, of the clock and of an iteration of the calibration

    def mean_seconds(step: Any, count: int) -> float:
        now.seconds += 7.0  # the time of the calibration itself does not count
        return now.each

    monkeypatch.setattr(entry, "mean_seconds", mean_seconds)
    monkeypatch.setattr(entry, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    monkeypatch.setattr(entry, "SLICE", 10.0)
    config = entry.changed(parse(TrainConfig, [entry.PRESET]), made / "out-race", "clock")
    clock = entry.Clock(config, budget=0.5)  # of 100 iterations: 25 seconds at first
    assert clock.unit == 50
    used = []
    for kind, seconds, each in (("eval", 4, 0.5), ("train", 6, 0.5), ("train", 9, 0.5), ("train", 1, 1.0)):
        now.seconds, now.each = now.seconds + seconds, each
        assert not clock({"kind": kind})
        used.append(clock.used)
    assert used == pytest.approx([0, 0.2, 0.2, 0.2 + 10 / 75])  # the mean of 50 and 100 seconds
    now.seconds += 17
    assert not clock({"kind": "eval"}) and clock.used == pytest.approx(1 / 3 + 0.17) and clock.seconds == 37
    assert clock({"kind": "train"})


def test_a_model_that_was_stopped_is_not_that_of_the_first_evaluation(work: Path) -> None:
    """ckpt.pt has the initial weights, as there was no other evaluation."""
    result = ok(work, "race", write(work, "eva.yaml", max_iters=10**9, eval_interval=10**9), *RACE)
    row = rows(work)["eva"]
    assert load(work / "out-race" / row["entry"] / "ckpt.pt").step == 0 < int(row["iterations"])
    assert f"next: tinygpt sample --ckpt=out-race/{row['entry']}/last.pt" in result.out
    args = ["eval", f"--ckpt=out-race/{row['entry']}/last.pt", "--dataset=test", "--data_dir=out-race/data", "--json"]
    assert float(row["loss"]) == pytest.approx(json.loads(ok(work, *args).out)["loss"], abs=1e-4)


def test_other_entries_are_added_and_finished_ones_do_not_run_again(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "work"))
    before = listing(folder / "out-race")
    added = write(folder, "ben.yaml", n_embd=32)  # a new config of the same student
    said = ok(folder, "race", "anna.yaml", added, *RACE).out
    assert said.count("stage") == 1 and "stage 2 of 2: ben-" in said
    after = listing(folder / "out-race")
    models = [path for path in before if path.endswith(".pt")]
    assert len(models) == 6 and all(after[path] == before[path] for path in models)
    with open(folder / "out-race/race.csv", encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert sorted(row["entry"].partition("-")[0] for row in table) == ["anna", "ben", "ben", "eva"]


@needs_fork
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_race_that_was_interrupted_continues(work: Path, number: int, status: int) -> None:
    args = ["race", write(work, "anna.yaml"), write(work, "eva.yaml", max_iters=10**9), *RACE]
    child = Child(args, work / "log", work, before=lambda: setattr(entry.Clock, "__call__", lambda *_: False))
    until(lambda: any(lines_of(path) > 30 for path in work.glob("out-race/eva-*")))
    child.send(number)
    assert child.wait() == status and "stopped in eva-" in child.output and not (work / "out-race/race.csv").exists()
    said = ok(work, *args).out
    assert said.count("stage") == 1 and "stage 2 of 2: eva-" in said and set(rows(work)) == {"anna", "eva"}


def test_what_a_config_does_not_set_is_as_in_the_preset(work: Path) -> None:
    """Not as in nanoGPT's defaults, whose 12 layers would take hours."""
    (work / "few.yaml").write_text("n_embd: 32\n")
    _, config = entry.read_entry(str(work / "few.yaml"))
    assert (config.n_embd, config.n_layer, config.block_size) == (32, SMALL["n_layer"], SMALL["block_size"])
    (work / "odd.yaml").write_text("n_embd: 33\n")
    assert "odd.yaml: n_head 2 does not divide n_embd 33" in refused(work, "race", "odd.yaml", *RACE)


def test_an_iteration_that_takes_much_of_the_budget_is_refused(work: Path) -> None:
    write(work, "huge.yaml", gradient_accumulation_steps=40)
    result = cli_here("race", "huge.yaml", *RACE, cwd=work)
    assert result.status == 1 and "huge-" in result.out
    assert "failed: an iteration takes about 8% of the budget; the limit is 5%" in result.out
    write(work, "wide.yaml", n_embd=2**20)  # 50 TB of weights
    assert "takes more than 100% of the budget; the limit is 5%" in cli_here("race", "wide.yaml", *RACE, cwd=work).out


def test_equal_configs_of_one_name_are_refused_and_hidden_files_left_out(work: Path) -> None:
    for folder in ("anna", "ben", "ben/__MACOSX"):
        (work / "class" / folder).mkdir(parents=True)
        write(work / "class" / folder, "config.yaml")
    message = refused(work, "race", "class", *RACE)
    assert "ben/config.yaml: another entry has the same name and settings" in message.replace("\\", "/")
    (work / "class/ben/config.yaml").write_text("n_embd: 32\n")
    (work / "class/.hidden.yaml").write_text("no: key\n")
    assert len(list(command.config_files([str(work / "class"), str(work / "class/a*/*.yaml")]))) == 3


def test_a_folder_of_configs(work: Path) -> None:
    (work / "submissions/ben").mkdir(parents=True)
    assert "submissions: a folder without any *.yaml" in refused(work, "race", "submissions", *RACE)
    for name in ("submissions/anna.yaml", "submissions/ben/ben.yaml"):
        write(work, name)
    (work / "submissions/notes.txt").write_text("no config\n")
    ok(work, "race", "submissions", *RACE)
    assert set(rows(work)) == {"anna", "ben"}


def test_a_loss_that_is_not_finite_is_a_failure(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "validation_loss", lambda *_: math.nan)
    result = cli_here("race", write(work, "anna.yaml"), *RACE, cwd=work)
    assert result.status == 1 and re.search(r"anna-\w+ failed: .*the loss is NaN", result.out)


def test_an_entry_that_fails_does_not_end_the_race(work: Path) -> None:
    args = ["race", write(work, "anna.yaml", block_size=10**5), write(work, "ben.yaml"), *RACE]
    result = cli_here(*args, cwd=work)
    assert result.status == 1 and re.search(r"anna-\w+ failed: an iteration takes", result.out)
    table = rows(work)
    assert table["ben"]["rank"] == "1" and not table["anna"]["loss"] and "of the budget" in table["anna"]["ended"]
    again = cli_here(*args, cwd=work)  # the reason may be gone, as after a full disk
    assert again.status == 1 and again.out.count("stage") == 1 and "stage 1 of 2: anna-" in again.out


def test_students_get_the_first_nine_tenths(work: Path) -> None:
    said = ok(work, "race", "--text=text.txt").out
    assert (work / "out-race/train.txt").read_bytes().decode() == TEXT[:CUT]
    assert f"{CUT:,} characters for the students" in said and "test" in said
    student = work / "student"
    student.mkdir()
    shutil.copy(work / "out-race/train.txt", student)
    ok(student, "race", write(student, "mine.yaml"), "--times=5")
    assert Dataset(str(student / "out-race/data"), "test").meta["characters"]["val"] == CUT - CUT * 9 // 10


def test_the_text_is_not_overwritten_and_the_next_command_names_the_race(work: Path) -> None:
    (work / "train.txt").write_text(TEXT)
    assert "train.txt would be overwritten" in refused(work, "race", "--text=train.txt", "--out_dir=.")
    assert (work / "train.txt").read_text() == TEXT
    said = ok(work, "race", "--text=train.txt", "--out_dir=mine", "--times=7").out
    assert "next: tinygpt race configs/shakespeare_char.yaml --text=train.txt --times=7 --out_dir=mine" in said


@pytest.mark.parametrize(("wanted", "made"), [(0, 20), (2, 2), (500, 20)])
def test_evaluations_are_short(tmp_path: Path, wanted: int, made: int) -> None:
    """eval_iters=0 would evaluate the complete validation split."""
    assert changed(TrainConfig(eval_iters=wanted), tmp_path, "a").eval_iters == made


def test_what_a_config_cannot_choose(work: Path) -> None:
    other = {"dataset": "mine", "data_dir": "elsewhere", "out_dir": "mine", "threads": 2, "eval_only": True}
    result = ok(work, "race", write(work, "anna.yaml", **other), write(work, "ben.yaml"), *RACE)
    ignored = "data_dir, dataset, eval_only, out_dir, threads"
    assert f"note: anna.yaml: ignored, because the race sets it: {ignored}" in result.err
    assert not (work / "mine").exists() and not (work / "elsewhere").exists()
    assert rows(work)["anna"]["loss"] == rows(work)["ben"]["loss"]
    assert load(work / "out-race" / rows(work)["anna"]["entry"]).config["threads"] == "1"


def test_characters_that_only_the_test_has_are_left_out(work: Path) -> None:
    (work / "text.txt").write_text(TEXT[:-2] + "é\n", encoding="utf-8")
    result = ok(work, "race", write(work, "a.yaml"), *RACE)
    assert "these characters occur only in the test, and are skipped there: 'é'" in result.err
    assert Dataset(str(work / "out-race/data"), "test").meta["characters"]["val"] == len(TEXT) - CUT - 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_from": "out/ckpt.pt"}, "anna.yaml: init_from is out/ckpt.pt, but all entries of a race start from new"),
        ({"init_from": "resume"}, "anna.yaml: init_from is resume"),
        ({"n_head": 3}, "anna.yaml: n_head 3 does not divide n_embd 16"),
        ({"ckpt": "out"}, "anna.yaml: ckpt: a key of tinygpt finetune"),
    ],
)
def test_a_config_that_is_refused(work: Path, settings: dict[str, Any], message: str) -> None:
    write(work, "anna.yaml", **settings)
    write(work, "ben.yaml")
    (work / "carla.yml").write_text("n_layers: 3\n")
    said = refused(work, "race", "ben.yaml", "anna.yaml", "carla.yml", *RACE)
    assert message in said and "carla.yml: n_layers: no such key" in said  # every mistake at once


def test_a_text_that_is_too_short_or_missing(work: Path) -> None:
    write(work, "anna.yaml")
    (work / "short.txt").write_text(TEXT[:190_000])
    assert "has 190,000 characters, but a race needs 200,000" in refused(work, "race", "--text=short.txt")
    (work / "short.txt").write_text(TEXT[:100_000])
    assert "100,000 characters, but a race needs 180,000" in refused(work, "race", "anna.yaml", "--text=short.txt")
    assert "train.txt: no such file" in refused(work, "race", "anna.yaml")


def test_a_folder_of_another_race_is_refused(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "work"))
    said = refused(folder, "race", "anna.yaml", "--text=text.txt", "--times=2")
    assert "with times=5" in said and "--out_dir=NAME" in said
    (folder / "text.txt").write_text(TEXT + "More.\n")
    assert "text.txt is not the one that out-race was made with" in refused(folder, "race", "anna.yaml", *RACE)
    (folder / "text.txt").write_text(TEXT)
    with open(entry.PRESET, "a") as file:
        file.write("weight_decay: 0.2\n")
    assert "nanogpt.yaml is not the one that out-race" in refused(folder, "race", "anna.yaml", *RACE)
