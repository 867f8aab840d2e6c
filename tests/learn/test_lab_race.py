"""`tinygpt lab race`: its ranks by hand, and races of small models, from the teacher's text to the table."""

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
from conftest import Shared, cli_here, needs_fork, ok, refused, tiny_text, until

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.parse import parse
from tinygpt.checkpoint.store import load
from tinygpt.data.dataset import Dataset
from tinygpt.learn.lab import race

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 8, "gradient_accumulation_steps": 1}
SMALL |= {"learning_rate": 1e-2, "warmup_iters": 2, "max_iters": 20, "eval_interval": 10, "eval_iters": 2}
ENDLESS = {"max_iters": 10**9, "eval_interval": 10**9}
TEXT = tiny_text(6000)  # about 220,000 characters
CUT = len(TEXT) * 9 // 10
RACE, FLAGS, OUT = ["lab", "race"], ["--text=text.txt", "--times=5"], "out-lab-race"


def write(folder: Path, name: str, **settings: Any) -> str:
    """Write a config; return its name."""
    lines = [f"{key}: {value}\n" for key, value in (SMALL | settings).items()]
    (folder / name).write_text("".join(lines))
    return name


@pytest.fixture(scope="module", autouse=True)
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The unit of the budget is a fraction of a second."""
    folder = tmp_path_factory.mktemp("calibration")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, "PRESET", str(folder / write(folder, "calibration.yaml")))
        patch.setattr(race, "SLICE", 0.2)
        patch.setattr(race, "CALIBRATION", 0.05)
        yield


@pytest.fixture(scope="module")
def made(shared: Shared) -> Path:
    """A working folder with text.txt and a race of three entries: two equal ones, and one that does not end."""

    def make(folder: Path) -> None:
        (folder / "text.txt").write_text(TEXT)
        names = [write(folder, "anna.yaml"), write(folder, "ben.yaml"), write(folder, "eva.yaml", **ENDLESS)]
        (folder / "said.txt").write_text(ok(folder, *RACE, *names, *FLAGS).out)

    return shared("race", make)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working folder with text.txt."""
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def table(folder: Path) -> list[dict[str, str]]:
    """The lines of race.csv."""
    with open(folder / OUT / "race.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """The lines of race.csv, by the name of the config."""
    return {row["entry"].rpartition("-")[0]: row for row in table(folder)}


def test_ranks_by_hand() -> None:
    losses = {"e": 1.8501, "b": 1.82, "a": 1.80, "d": 1.85, "c": 1.83}  # d ties with c, not with b, and e with nobody
    assert race.ranks(losses) == {"a": 1, "b": 1, "c": 3, "d": 3, "e": 5}
    assert list(race.ranks(losses)) == ["a", "b", "c", "d", "e"] and race.ranks({}) == {}


def test_the_table_has_a_line_for_each_entry(made: Path) -> None:
    found, said = rows(made), (made / "said.txt").read_text()
    assert set(found) == {"anna", "ben", "eva"}
    assert found["anna"]["loss"] == found["ben"]["loss"] and found["anna"]["rank"] == found["ben"]["rank"]
    for name, row in found.items():
        state = load(made / OUT / row["entry"] / "last.pt")
        assert int(row["iterations"]) == state.step and int(row["parameters"]) == state.build_model().num_params()
        assert row["ended"] == ("stopped" if name == "eva" else "finished") and row["machine"] and row["date"]
        used = float(row["seconds"]) / float(row["calibration"])
        assert float(row["used"]) == pytest.approx(used, rel=1e-4) and (used >= 5) == (name == "eva")  # --times=5
        line = re.search(rf"^ *(\d+) +{row['entry']} +([\d.]+) ", said, re.MULTILINE)
        assert line and line[1] == row["rank"]
        assert float(line[2]) == pytest.approx(float(row["loss"]), abs=1e-4)  # each is rounded from the same loss
    eva = found["eva"]
    assert 0 < int(eva["iterations"]) < 10**9 and float(eva["used"]) < 10
    # her ckpt.pt has the initial weights, as there was no other evaluation: what counts is last.pt
    assert load(made / OUT / eva["entry"] / "ckpt.pt").step == 0 and eva["rank"] == "1"
    assert f"next: tinygpt sample {OUT}/{eva['entry']}/last.pt" in said


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


def test_the_clock_by_hand(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program halves the speed of the machine from second 10 on: the budget is used up half as fast."""
    now = SimpleNamespace(seconds=0.0, each=0.5)  # seconds, of the clock and of an iteration of the calibration

    def mean_seconds(step: Any, count: int) -> float:
        now.seconds += 7.0  # the time of the calibration itself does not count
        return now.each

    monkeypatch.setattr(race, "mean_seconds", mean_seconds)
    monkeypatch.setattr(race, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    monkeypatch.setattr(race, "SLICE", 10.0)
    config = race.changed(parse(TrainConfig, [race.PRESET]), made / OUT, "clock")
    clock = race.Clock(config, budget=0.5)  # of 100 iterations: 25 seconds at first
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


def test_other_entries_are_added_and_each_student_can_see_her_own_rank_only(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "work"))
    models = {path: path.read_bytes() for path in (folder / OUT).glob("*/*.pt")}
    added = write(folder, "ben.yaml", n_embd=32)  # a new config of the same student
    said = ok(folder, *RACE, "anna.yaml", added, *FLAGS, "--own_rank").out
    assert said.count("stage") == 1 and "stage 2 of 2: ben-" in said
    assert len(models) == 6 and all(path.read_bytes() == content for path, content in models.items())
    assert sorted(row["entry"].partition("-")[0] for row in table(folder)) == ["anna", "ben", "ben", "eva"]
    for row in table(folder):
        own, _, loss = (folder / OUT / f"{row['entry']}.txt").read_text().rpartition(" ")
        assert own == f"{row['entry']}: rank {row['rank']} of 4, loss"
        assert float(loss) == pytest.approx(float(row["loss"]), abs=1e-4)
        assert row["entry"] not in said.partition("written")[2] and f"{float(row['loss']):.2f}" not in said


@needs_fork
def test_a_race_that_was_interrupted_continues(work: Path) -> None:
    args = [*RACE, write(work, "anna.yaml"), write(work, "eva.yaml", **ENDLESS), *FLAGS]
    child = Child(args, work / "log", work, before=lambda: setattr(race.Clock, "__call__", lambda *_: False))
    until(lambda: any(lines_of(path) > 30 for path in work.glob(f"{OUT}/eva-*")))
    child.send(signal.SIGINT)
    assert child.wait() == 130 and "stopped in eva-" in child.output and not (work / OUT / "race.csv").exists()
    said = ok(work, *args).out
    assert said.count("stage") == 1 and "stage 2 of 2: eva-" in said and set(rows(work)) == {"anna", "eva"}


def test_what_a_config_does_not_set_is_as_in_the_preset_and_evaluations_are_short(work: Path) -> None:
    """Not as in nanoGPT's defaults, whose 12 layers would take hours."""
    (work / "few.yaml").write_text("n_embd: 32\neval_iters: 0\n")  # 0: the complete validation split
    config = race.changed(race.read_entry(str(work / "few.yaml"))[1], work, "few")
    assert (config.n_embd, config.n_layer, config.eval_iters) == (32, SMALL["n_layer"], 20)


def test_a_folder_of_configs(work: Path) -> None:
    (work / "class/ben/__MACOSX").mkdir(parents=True)
    assert "class: a folder without any *.yaml" in refused(work, *RACE, "class", *FLAGS)
    for name in ("anna.yaml", "ben/anna.yaml", "ben/__MACOSX/anna.yaml"):
        write(work, f"class/{name}")
    (work / "class/.hidden.yaml").write_text("no: key\n")
    message = refused(work, *RACE, "class", *FLAGS)
    assert "ben/anna.yaml: another entry has the same name and settings" in message.replace("\\", "/")
    assert [path.name for path in race.config_files([str(work / "class")])] == ["anna.yaml", "anna.yaml"]
    assert [path.parent.name for path in race.config_files([str(work / "class/b*/*.yaml")])] == ["ben"]


def test_an_entry_that_fails_does_not_end_the_race(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [write(work, "anna.yaml", block_size=10**5), write(work, "ben.yaml")]
    names += [write(work, "huge.yaml", gradient_accumulation_steps=40), write(work, "wide.yaml", n_embd=2**20)]  # 50 TB
    result = cli_here(*RACE, *names, *FLAGS, cwd=work)
    assert result.status == 1 and re.search(r"anna-\w+ failed: an iteration takes", result.out)
    assert re.search(r"huge-\w+ failed: an iteration takes about 8% of the budget; the limit is 5%", result.out)
    assert re.search(r"wide-\w+ failed: an iteration takes more than 100% of the budget", result.out)
    found = rows(work)
    assert found["ben"]["rank"] == "1" and not found["anna"]["loss"] and "of the budget" in found["anna"]["ended"]
    monkeypatch.setattr(race.api.LoadedModel, "loss", lambda *_: math.nan)
    names[1] = write(work, "nan.yaml", n_embd=32)
    again = cli_here(*RACE, *names[:2], *FLAGS, "--own_rank", cwd=work)
    assert again.status == 1 and "stage 1 of 2: anna-" in again.out  # the reason may be gone, as after a full disk
    anna, nan = (next((work / OUT).glob(f"{name}-*.txt")).read_text() for name in ("anna", "nan"))
    assert "failed: an iteration takes" in anna and "rank" not in anna and "the loss is NaN" in nan


def test_students_get_the_first_nine_tenths(work: Path) -> None:
    said = ok(work, *RACE, "--text=text.txt", "--times=7", "--out_dir=mine").out
    assert (work / "mine/train.txt").read_bytes().decode() == TEXT[:CUT]
    command = "tinygpt lab race FOLDER --text=text.txt --times=7 --out_dir=mine"
    assert f"{CUT:,} characters for the students" in said and f"next: give it to the students, then {command}" in said
    ok(work / "mine", *RACE, write(work / "mine", "own.yaml"), "--times=5")
    assert Dataset(str(work / "mine" / OUT / "data"), "test").meta["characters"]["val"] == CUT - CUT * 9 // 10
    (work / "mine/train.txt").write_text(TEXT)
    assert "train.txt would be overwritten" in refused(work / "mine", *RACE, "--out_dir=.")


def test_what_a_config_cannot_choose_and_characters_that_only_the_test_has(work: Path) -> None:
    (work / "text.txt").write_text(TEXT[:-2] + "é\n", encoding="utf-8")
    other = {"dataset": "mine", "data_dir": "elsewhere", "out_dir": "mine", "threads": 2, "eval_only": True}
    result = ok(work, *RACE, write(work, "anna.yaml", **other), write(work, "ben.yaml"), *FLAGS)
    ignored = "data_dir, dataset, eval_only, out_dir, threads"
    assert f"note: anna.yaml: ignored, because the race sets it: {ignored}" in result.err
    assert not (work / "mine").exists() and rows(work)["anna"]["loss"] == rows(work)["ben"]["loss"]
    assert load(work / OUT / rows(work)["anna"]["entry"]).config["threads"] == "1"
    assert "these characters occur only in the test, and are skipped there: 'é'" in result.err
    assert Dataset(str(work / OUT / "data"), "test").meta["characters"]["val"] == len(TEXT) - CUT - 1


def test_every_config_that_is_refused_is_named_at_once(work: Path) -> None:
    wrong = {"anna": {"init_from": "out/ckpt.pt"}, "ben": {"teacher": "out/ckpt.pt"}, "carla": {"n_head": 3}, "eva": {}}
    names = [write(work, f"{name}.yaml", **settings) for name, settings in wrong.items()]
    said = refused(work, *RACE, *names, write(work, "dora.yml", n_layers=3), *FLAGS)
    assert "anna.yaml: init_from is out/ckpt.pt" in said and "ben.yaml: teacher: an entry of a race must not" in said
    assert "carla.yaml: n_head 3 does not divide n_embd 16" in said and "dora.yml: n_layers: no such key" in said


def test_a_text_that_is_too_short_and_the_folder_of_another_race(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "work"))
    (folder / "short.txt").write_text(TEXT[:190_000])
    assert "has 190,000 characters, but a race needs 200,000" in refused(folder, *RACE, "--text=short.txt")
    (folder / "short.txt").write_text(TEXT[:100_000])
    assert "but a race needs 180,000" in refused(folder, *RACE, "anna.yaml", "--text=short.txt")
    assert "the teacher's out-lab-race/train.txt" in refused(folder, *RACE, "anna.yaml")
    said = refused(folder, *RACE, "anna.yaml", "--text=text.txt", "--times=2")
    assert "with times=5" in said and "--out_dir=NAME" in said
    (folder / "text.txt").write_text(TEXT + "More.\n")
    assert f"text.txt is not the one that {OUT} was made with" in refused(folder, *RACE, "anna.yaml", *FLAGS)
    (folder / "text.txt").write_text(TEXT)
    monkeypatch.setattr(race, "PRESET", str(folder / write(folder, "other.yaml", weight_decay=0.2)))
    assert f"nanogpt.yaml is not the one that {OUT}" in refused(folder, *RACE, "anna.yaml", *FLAGS)
