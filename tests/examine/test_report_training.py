"""The page's slider through training, two models side by side, one step explained; the snapshots that they need."""

import base64
import contextlib
import dataclasses
import html
import json
import math
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_TRAIN, cli_here, needs_fork, ok, trained
from models import largest
from pages import Browser, next_character, node, page_data, plain, slowly_in_a_browser
from runs import FLAGS, LORA

from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.configs.parse import read_config
from tinygpt.checkpoint.snapshots import snapshot_steps, snapshots
from tinygpt.checkpoint.store import load, save, tokenizer_of
from tinygpt.data.tokenizer import CharTokenizer
from tinygpt.examine.report import packed_models
from tinygpt.examine.report.loaded_run import LoadedRun
from tinygpt.examine.report.one_step import one_step
from tinygpt.examine.report.page import short
from tinygpt.examine.report.weights import BLOCK, differences, pack, page_weights
from tinygpt.model import GPT, GPTConfig

PLAIN = ["--fast=False", "--dropout=0", "--eval_interval=5"]


@pytest.fixture(scope="session")
def with_snapshots(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with out/, a run of 20 iterations with snapshots; other/, another one; and report.html."""
    folder = Path(shutil.copytree(tiny_data, tmp_path_factory.mktemp("with_snapshots") / "work"))
    trained(folder, "--snapshots=5", *PLAIN)
    trained(folder, "--out_dir=other", "--seed=8", "--n_head=1", *PLAIN)
    result = ok(folder, "report", "out", "other", "-o", "report.html")
    assert "3 snapshots of its training, all weights of the model in other (" in result.out
    return folder


@pytest.fixture
def page(with_snapshots: Path, browser: Browser) -> Iterator[Browser]:
    """The report of `with_snapshots`, opened anew; after the test, the log has no error and no request."""
    browser.open(with_snapshots / "report.html")
    yield browser
    browser.assert_quiet()


# ---- snapshots ---------------------------------------------------------------------------------------------------


def test_the_steps_are_spaced_logarithmically() -> None:
    assert snapshot_steps(6, 2000) == [0, 20, 63, 200, 632, 2000]
    assert len(snapshot_steps(10**9, 100)) == 56  # at most every step, and at once
    assert snapshot_steps(0, 2000) == [] and snapshot_steps(1, 2000) == [0] and snapshot_steps(2, 2000) == [0, 2000]
    for count in range(1, 12):
        for last in (1, 2, 7, 210, 5000):
            steps = snapshot_steps(count, last)
            assert steps == sorted(set(steps)) and len(steps) <= count and steps[0] == 0
            assert steps[-1] == (last if count > 1 else 0)


def test_a_snapshot_is_the_model_of_its_step_in_8_bits(with_snapshots: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(with_snapshots, tmp_path / "work"))
    found = snapshots(folder / "out")
    assert list(found) == [0, 1, 4, 20]  # 0 and 20 · 100^(-i/3), of which 0.2 rounds to 0
    last = load(folder / "out/last.pt")
    for step, path in found.items():
        state = load(path)
        assert state.step == step and not state.training
        distance = max(largest(state.model[name] - weight) for name, weight in last.model.items())
        assert (distance < 0.01) == (step == 20), (step, distance)
    assert found[20].stat().st_size < 0.5 * (folder / "out/last.pt").stat().st_size
    ok(folder, "sample", "--ckpt", found[4], "--max_new_tokens=20")
    with open(found[4], "ab") as file:
        file.write(b"?")
    result = cli_here("doctor", "out", cwd=folder)
    assert result.status == 1 and "FAIL  out/snapshots/step-4.pt: " in result.out
    assert "OK    out/snapshots/step-1.pt: intact" in result.out


def test_a_resumed_run_writes_the_same_snapshots(work: Path) -> None:
    """One that ended at 10 of 20 iterations and went on; and a new run removes those of the run that it replaces."""
    flags = ["--snapshots=6", *PLAIN]
    trained(work, *flags)
    once = {step: path.read_bytes() for step, path in snapshots(work / "out").items()}
    assert list(once) == [0, 1, 2, 6, 20]
    trained(work, *flags, "--out_dir=twice", "--max_iters=10")
    trained(work, "--init_from=resume", "--out_dir=twice", "--max_iters=20", *flags)
    again = snapshots(work / "twice")
    assert list(again) == [0, 1, 3, 10, 20]  # those of 10 iterations, and of 20
    for step in (0, 1, 20):
        first, second = load(work / f"out/snapshots/step-{step}.pt"), load(again[step])
        assert all(torch.equal(weight, second.model[name]) for name, weight in first.model.items())
    (work / "twice/snapshots/mine.txt").write_text("kept")
    trained(work, "--out_dir=twice", *PLAIN)
    assert [path.name for path in (work / "twice/snapshots").iterdir()] == ["mine.txt"]
    assert not (work / "out/snapshots/step-0.pt").is_symlink() and once[0]


@pytest.mark.slow
@needs_fork
def test_two_processes_write_the_snapshots_of_one(with_snapshots: Path, tmp_path: Path) -> None:
    from children import Child, ranks

    folder, command = Path(shutil.copytree(with_snapshots, tmp_path / "work")), [*TINY_TRAIN, "--snapshots=5", *PLAIN]
    both = [
        Child([*command, "--out_dir=two"], tmp_path / f"log-{rank}", folder, **environment)
        for rank, environment in enumerate(ranks(2))
    ]
    assert [child.wait() for child in both] == [0, 0], both[0].output
    for step, path in snapshots(folder / "two").items():
        one = load(snapshots(folder / "out")[step])
        assert max(largest(load(path).model[name] - weight) for name, weight in one.model.items()) < 0.01


@pytest.mark.slow
def test_a_step_that_diverges_is_shown(stepped: Path, tmp_path: Path) -> None:
    """With a learning rate of 10^30, as if the run had diverged right after its best model."""
    folder = Path(shutil.copytree(stepped, tmp_path / "work"))
    state = load(folder / "out")
    save(folder / "out/ckpt.pt", dataclasses.replace(state, config=state.config | {"learning_rate": 1e30}))
    found = the_step(folder)
    assert found["diverged"] and not the_step(stepped)["diverged"]
    ok(folder, "report", "out", "-o", "page.html")
    page = (folder / "page.html").read_text("utf-8")
    assert "This step diverges" in page and "not a finite number" in page


@pytest.mark.slow
def test_snapshots_that_are_damaged_or_of_another_run_are_left_out(with_snapshots: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(with_snapshots, tmp_path / "work"))
    trained(folder, "--out_dir=third", "--n_embd=32", "--snapshots=2", *PLAIN)
    found = folder / "out/snapshots"
    shutil.copy(folder / "third/snapshots/step-0.pt", found / "step-0.pt")  # another shape
    shutil.copy(found / "step-4.pt", found / "step-7.pt")  # another step
    (found / "step-1.pt").write_bytes(b"damaged")
    (found / "step-9.pt").mkdir()
    result = cli_here("report", "out", "-o", "page.html", cwd=folder)
    assert result.status == 0 and "1 snapshot of its training, " in result.out
    packed = page_data(folder / "page.html")["models"][0]["packed"]
    assert [one["step"] for one in packed["snapshots"]] == [4]


# ---- in the page -------------------------------------------------------------------------------------------------


def snapshot_logits(folder: Path, run: str, ids: list[int]) -> dict[int, torch.Tensor]:
    with torch.inference_mode():
        models = {step: load(path).build_model().eval() for step, path in snapshots(folder / run).items()}
        return {step: model(torch.tensor([ids]))[0][0] for step, model in models.items()}


def compare_with_pytorch(folder: Path, run: str, page: Path, ids: list[int]) -> None:
    """Logits in Node of each snapshot in a page, with PyTorch's from the file; those of another step differ more."""
    packed = page_data(page)["models"][0]["packed"]
    steps = [one["step"] for one in packed["snapshots"]]
    code = """return input.packed.snapshots.map((_, index) => {
                const state = TinyGPT.load(input.packed, index).start();
                return input.ids.map((id) => [...state.read(id)]);
              });"""
    found = dict(zip(steps, node(code, packed=packed, ids=ids), strict=True))
    expected = snapshot_logits(folder, run, ids)
    best = load(folder / run).step
    assert steps and set(steps) == set(expected) - {best}
    for step, logits in found.items():
        size = len(logits[0])
        errors = {one: largest(torch.tensor(logits) - rows[:, :size]) for one, rows in expected.items()}
        assert errors[step] < 0.05
        others = [error for one, error in errors.items() if abs(one - step) > 2]
        assert min(others) > 2 * errors[step], (step, errors)


def test_every_snapshot_computes_what_pytorch_computes(with_snapshots: Path) -> None:
    compare_with_pytorch(with_snapshots, "out", with_snapshots / "report.html", [3, 9, 5, 1, 12, 7, 7, 2])


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], LORA], ids=["all weights", "LoRA"])
def test_snapshots_of_pairs_with_and_without_an_adapter(tuned: Path, tmp_path: Path, more: list[str]) -> None:
    folder = Path(shutil.copytree(tuned, tmp_path / "work"))
    ok(folder, "finetune", *FLAGS, *more, "--snapshots=4", "--out_dir=new")
    assert "snapshots of its training" in ok(folder, "report", "new", "-o", "page.html").out
    compare_with_pytorch(folder, "new", folder / "page.html", [3, 9, 5, 1, 12, 7])


def test_the_scripts_weights_are_those_that_python_reconstructs(with_snapshots: Path) -> None:
    """Chains of differences in both directions, from a model in the middle of its training."""
    states = {step: load(path) for step, path in snapshots(with_snapshots / "out").items()}
    tokenizer = tokenizer_of(states[0], "", "")
    models = {step: state.build_model() for step, state in states.items()}
    middle = models.pop(4)
    packed = pack(middle, tokenizer)  # type: ignore[arg-type]
    packed["snapshots"] = differences(packed, 4, models, tokenizer)  # type: ignore[arg-type]
    assert [(one["step"], one["from"]) for one in packed["snapshots"]] == [(0, 1), (1, None), (20, None)]
    code = "return input.packed.snapshots.map((_, index) => [...TinyGPT.load(input.packed, index).wte])"
    whole = node("return input.packed.snapshots.map((_, i) => [...TinyGPT.weights(input.packed, i)])", packed=packed)
    for one, numbers in zip(packed["snapshots"], whole, strict=True):  # errors do not add up along the chain
        expected = torch.cat([weight.flatten() for weight in page_weights(models[one["step"]], tokenizer).values()])  # type: ignore[arg-type]
        scales = torch.from_numpy(np.frombuffer(base64.b64decode(one["scales"]), "<f2").astype(np.float32))
        bound = 0.52 * scales.repeat_interleave(BLOCK)[: len(expected)] + 1e-6
        assert ((torch.tensor(numbers) - expected).abs() <= bound).all(), one["step"]
    for (step, model), wte in zip(models.items(), node(code, packed=packed), strict=True):
        expected = page_weights(model, tokenizer)["transformer.wte.weight"].flatten()  # type: ignore[arg-type]
        assert largest(torch.tensor(wte) - expected) < 2e-3, step
        assert largest(torch.tensor(wte) - page_weights(middle, tokenizer)["transformer.wte.weight"].flatten()) > 2e-3  # type: ignore[arg-type]


def test_a_page_gets_as_many_snapshots_as_fit(with_snapshots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.chdir(with_snapshots):
        run = LoadedRun("out", ReportConfig())
        size = len(packed_models.models(run, [])[0]["packed"]["data"])
        small = LoadedRun("other", ReportConfig())
        both = size + len(packed_models.models(small, [])[0]["packed"]["data"])
        monkeypatch.setattr(packed_models, "ROOM", int(2.3 * size))
        assert [len(one["packed"].get("snapshots", ())) for one in packed_models.models(run, [small])] == [0, 0]
        monkeypatch.setattr(packed_models, "MOST", both - 1)
        assert [one["name"] for one in packed_models.models(run, [small])] == ["out"]
        for room, steps in ((10 * size, [0, 1, 4]), (2.3 * size, [0, 4]), (1.6 * size, [0]), (size, [])):
            monkeypatch.setattr(packed_models, "ROOM", int(room))
            assert [one["step"] for one in packed_models.models(run, [])[0]["packed"]["snapshots"]] == steps


@pytest.mark.slow
def test_six_snapshots_of_the_first_model_leave_the_page_below_8_mb() -> None:
    """configs/shakespeare_char.yaml, whose best model is usually the last one, so that five differ from it."""
    settings = read_config(Path(__file__).parents[2] / "configs/shakespeare_char.yaml")
    known = {field.name for field in dataclasses.fields(GPTConfig)}
    model = GPT(GPTConfig(**{key: value for key, value in settings.items() if key in known}, vocab_size=65))
    symbols = CharTokenizer(map(chr, range(ord("0"), ord("0") + 65)))
    packed = pack(model, symbols)
    packed["snapshots"] = differences(packed, 5, dict.fromkeys(range(5), model), symbols)
    models = len(json.dumps(packed))
    assert 5_000_000 < models < packed_models.ROOM  # none is left out
    assert models < 8_000_000 - 350_000  # the rest of a page takes 350,000 bytes with eight samples


@pytest.mark.slow
def test_a_model_that_cannot_run_in_a_page_is_not_compared(with_snapshots: Path, tmp_path: Path) -> None:
    """A damaged one, and a folder without a model: the curves are shown all the same."""
    folder = Path(shutil.copytree(with_snapshots, tmp_path / "work"))
    (folder / "other/ckpt.pt").unlink()
    (folder / "other/last.pt").unlink()
    ok(folder, "report", "out", "other", "-o", "page.html")
    assert len(page_data(folder / "page.html")["models"]) == 1
    assert ">other</caption>" in (folder / "page.html").read_text()


# ---- in a browser -----------------------------------------------------------------------------------------------


@slowly_in_a_browser
def test_the_slider_shows_the_model_of_each_step(page: Browser, with_snapshots: Path) -> None:
    page.type_into("#text", "The king of ")
    pictures = set()
    paths = {0: "out/snapshots/step-0.pt", 1: "out/snapshots/step-1.pt", 2: "out/snapshots/step-4.pt", 3: "out/ckpt.pt"}
    steps = ["0, untrained", "1", "4", "20, best"]
    slider = page.find("#step-slider-type")
    assert slider.get_property("max") == "3" and slider.get_property("value") == "3"  # the best model at first
    for index, path in paths.items():
        page.slide("#step-slider-attention" if index % 2 else "#step-slider-type", index)
        expected = next_character(with_snapshots / path, "The king of ")
        for token, row in page.chances().items():
            assert row[0] == pytest.approx(expected[token], abs=2e-3), (index, token)
        assert page.run("return document.querySelector('#step-slider-type + output').value") == steps[index]
        assert page.value("#step-slider-type") == page.value("#step-slider-attention") == str(index)
        assert page.value("#text") == "The king of "
        step = steps[index].partition(",")[0]
        assert f"of step {step}" in page.find("#continuation").text  # at once
        expected_name = "Continue" if index == 3 else f"Continue with step {step}"
        assert page.find("#continue").text == expected_name
        pictures.add(page.run("return document.getElementById('matrix').toDataURL()"))
    assert len(pictures) >= 3  # the attention changes
    slider.send_keys("\ue012")  # the left arrow key
    assert page.value("#step-slider-type") == "2" and slider.get_attribute("aria-valuetext") == "step 4"
    page.click("#continue")
    page.until(lambda: len(page.value("#text")) > 40)
    page.slide("#step-slider-type", 0)  # while it writes: the model is changed, the text stays
    page.click("#stop")


@slowly_in_a_browser
def test_the_training_is_played_until_the_reader_touches_the_page(browser: Browser, with_snapshots: Path) -> None:
    for touch, left in (("h1", "3"), ("#step-slider-type", None)):
        browser.open(with_snapshots / "report.html", motion=True)
        browser.until(lambda: browser.value("#step-slider-type") == "0")
        assert browser.find("#step-slider-type + output").text == "0, untrained"
        assert browser.find("#continuation").text.startswith("Replay of the training: the model of step 0")
        browser.until(lambda: browser.value("#step-slider-type") == "1")
        browser.until(lambda: "the model of step 1 continues" in browser.find("#continuation").text)
        browser.click(touch)
        chosen = browser.value("#step-slider-type")
        assert chosen == (left or chosen)  # the best model, or the one that the reader has chosen
        time.sleep(1.2)
        assert browser.value("#step-slider-type") == chosen
    browser.open(with_snapshots / "report.html")  # a reader who prefers reduced motion
    assert browser.value("#step-slider-type") == "3"
    browser.click(".step-slider button")  # but may ask for it
    browser.until(lambda: browser.value("#step-slider-type") == "0")
    browser.until(lambda: browser.value("#step-slider-type") == "3")  # it ends by itself
    assert browser.find("#continuation").text.startswith("The best model, of step 20, continues")


@slowly_in_a_browser
def test_two_models_side_by_side(page: Browser, with_snapshots: Path) -> None:
    labels = [option.text for option in page.all("#left option")]
    assert labels == ["step 0", "step 1", "step 4", "out, best model, step 20", "other, step 20"]
    assert page.value("#left") == "4" and page.value("#right") == "3"
    page.type_into("#compare-text", "And thou ")
    left, right = (next_character(with_snapshots / run / "ckpt.pt", "And thou ") for run in ("other", "out"))
    found = page.chances("compare-bars")
    assert len(found) == 10
    for token, row in found.items():
        assert row == pytest.approx([left[token], right[token]], abs=2e-3)
        assert abs(left[token] - right[token]) > 2e-3 or row[0] == pytest.approx(row[1], abs=5e-3)
    common = sum(min(left[token], right[token]) for token in left)
    percent = re.search(r"have (\d+)%", page.find("#overlap").text)
    assert percent and int(percent[1]) == pytest.approx(100 * common, abs=1)
    page.click("#continue-both")
    texts = [page.find(f"#{side}-text").text for side in ("left", "right")]
    assert len(texts[0]) > 100 and texts[0] != texts[1]
    page.run("const e = document.getElementById('left'); e.value = 3; e.dispatchEvent(new Event('change'))")
    assert all(row[0] == row[1] for row in page.chances("compare-bars").values())  # the same model twice
    assert "100%" in page.find("#overlap").text
    page.click("#continue-both")
    assert page.find("#left-text").text == page.find("#right-text").text


UPDATE = "TinyPage.update(new DOMParser().parseFromString(arguments[0], 'text/html'))"


@slowly_in_a_browser
def test_an_update_keeps_what_the_reader_chose(page: Browser, with_snapshots: Path) -> None:
    """The page of the same run, from another folder: the contents are new, and the choices are the old ones."""
    newer = (with_snapshots / "report.html").read_text("utf-8").replace("<h2 id=", '<h2 data-newer="" id=')
    page.slide("#step-slider-type", 1)
    for name, index in (("left", 2), ("right", 4)):
        choose = f"const e = document.getElementById('{name}'); e.selectedIndex = {index};"
        page.run(f"{choose} e.dispatchEvent(new Event('change'))")
    for name, text in (("text", "The king"), ("compare-text", "And thou")):
        page.type_into(f"#{name}", text)
    page.run("document.querySelector('#curves details').open = true")
    page.run("const e = document.querySelector('#loss [data-split=val] [data-i=\"40\"]'); e.click(); e.focus()")
    chosen = (
        "return [...['step-slider-type', 'left', 'right', 'text', 'compare-text']"
        ".map(id => document.getElementById(id).value), document.querySelector('#curves details').open, "
        "document.activeElement.dataset.i, Math.round(document.activeElement.getBoundingClientRect().top / 4)]"
    )
    before = page.run(chosen)
    assert before[:7] == ["1", "2", "4", "The king", "And thou", True, "40"]
    page.run(UPDATE, newer)
    assert page.run(chosen) == before
    replaced = page.run("return [...document.querySelectorAll('h2[data-newer]')].map(e => e.parentElement.id)")
    assert replaced == ["curves", "samples", "loss", "one-step", "tokens", "memorised", "numbers"]
    page.run("window.stamp = 1")
    ok(with_snapshots, "report", "other", "-o", "other.html")
    page.run(UPDATE, (with_snapshots / "other.html").read_text("utf-8"))  # another number of heads
    page.until(lambda: page.run("return window.stamp") is None)  # it was loaded anew


@slowly_in_a_browser
def test_without_snapshots_there_is_no_slider(run_copy: Path, browser: Browser) -> None:
    ok(run_copy, "report", "out", "-o", "page.html")
    browser.open(run_copy / "page.html")
    for selector in (".step-slider", "#continuation", "#compare"):
        assert not browser.find(selector).is_displayed()
    assert "Compare" not in browser.find("nav").text
    assert browser.driver.get_log("browser") == []


@slowly_in_a_browser
def test_axe_finds_no_violation(page: Browser) -> None:
    """The negative control has a slider without a name."""
    for width, dark in ((1280, False), (390, True)):
        page.script.resize(page.driver, width, dark)
        page.click("#parts [data-operation=MLP]")
        assert page.violations() == []
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    page.run("document.querySelector('label[for=temperature]').remove()")
    assert [(rule, impact) for rule, impact, _ in page.violations()] == [("label", "critical")]


# ---- one step, explained -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stepped(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with out/, whose last.pt is one iteration further than its best model ckpt.pt, and page.html."""
    folder = Path(shutil.copytree(tiny_data, tmp_path_factory.mktemp("stepped") / "work"))
    trained(folder, "--fast=False", "--dropout=0", "--eval_interval=20", "--lr_schedule=constant")
    more = ["--init_from=resume", "--max_iters=21", "--eval_interval=100", "--quiet"]
    shutil.copy(folder / "out/ckpt.pt", folder / "best.pt")
    trained(folder, *more, "--fast=False", "--dropout=0", "--lr_schedule=constant")
    shutil.copy(folder / "best.pt", folder / "out/ckpt.pt")
    assert load(folder / "out").step == 20 and load(folder / "out/last.pt").step == 21
    ok(folder, "report", "out", "-o", "page.html")
    return folder


def the_step(folder: Path, run: str = "out") -> dict[str, Any]:
    with contextlib.chdir(folder):
        return one_step(LoadedRun(run, ReportConfig()))


def test_the_step_is_the_one_that_training_makes(stepped: Path) -> None:
    found, before, after = the_step(stepped), load(stepped / "out"), load(stepped / "out/last.pt")
    assert len(found["weights"]) == 3
    for weight in found["weights"]:
        name = {"token": "transformer.wte", "layer 1, attention": "transformer.h.0.attn.c_attn"}
        key = next(
            (value for start, value in name.items() if weight["name"].startswith(start)), "transformer.h.0.mlp.c_fc"
        )
        matrix = after.model[f"{key}.weight"]
        place = int((before.model[f"{key}.weight"] - weight["value"]).abs().argmin())
        assert matrix.flatten()[place].item() == pytest.approx(weight["after"], abs=1e-7), weight["name"]
        assert weight["after"] != weight["value"]
        assert weight["value"] + weight["change"] == pytest.approx(weight["after"], abs=2e-6)  # by hand and by torch
    lines = [json.loads(line) for line in (stepped / "out/metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if line["kind"] == "train" and line["step"] == 20)
    assert found["loss"] == pytest.approx(logged["loss"], abs=1e-4)
    assert found["norm"] == pytest.approx(logged["grad_norm"], rel=1e-3) and found["rate"] == logged["lr"]
    assert found["after"] < found["loss"] and found["after"] - found["loss"] == pytest.approx(
        found["predicted"], rel=0.3
    )


def test_the_logits_give_the_loss_and_the_gradient(stepped: Path) -> None:
    state = load(stepped / "out")
    found = the_step(stepped)
    tokenizer = tokenizer_of(state, "", "")
    cells = [cell for cell in found["cells"] if "top" in cell]
    assert len(cells) == 16 and found["targets"] == 8 * 16
    ids = torch.from_numpy(tokenizer.encode("".join(cell["text"] for cell in found["cells"])).astype(np.int64))
    logits = state.build_model().eval()(ids[None, :-1])[0][0].detach().requires_grad_()
    losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
    losses.sum().backward()
    assert logits.grad is not None
    for place, cell in enumerate(cells):
        assert cell["loss"] == pytest.approx(losses[place].item(), abs=1e-4)
        assert cell["sum"] == pytest.approx(logits[place].exp().sum().item(), rel=1e-4)
        assert cell["text"] in [token for token, *_ in cell["top"]]
        for token, z, p, gradient in cell["top"]:
            i = int(tokenizer.encode(token)[0])
            assert (z, gradient) == pytest.approx((logits[place, i].item(), logits.grad[place, i].item()), abs=1e-4)
            assert p == pytest.approx(math.exp(z) / cell["sum"], rel=1e-6)


def test_the_arithmetic_on_the_page_can_be_followed(stepped: Path) -> None:
    """Each printed calculation, evaluated as printed, gives the printed result within its rounding."""
    page = html.unescape((stepped / "page.html").read_text("utf-8"))
    section = page[page.index('<section id="one-step"') :]
    section = section[: section.index("</section>")]
    sums = [line for part in re.findall(r"<dd>(.*?)</dd>", section) for line in part.split("<br>") if " = " in line]
    assert len(sums) == 15
    for line in sums:
        left, _, right = line.rpartition(" = ")
        values = []
        for part in (left, right):
            python = part.translate(str.maketrans("−×", "-*")).replace("²", "**2")
            python = re.sub(
                r" · 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)",
                lambda found: "e" + found[1].translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")),
                python,
            )
            values.append(eval(python.replace("√", "sqrt"), {"sqrt": math.sqrt}))
        assert values[0] == pytest.approx(values[1], rel=0.02, abs=1e-9), line


@slowly_in_a_browser
def test_a_character_of_the_step_is_explained(stepped: Path, browser: Browser) -> None:
    browser.open(stepped / "page.html")
    cells = the_step(stepped)["cells"]
    span = browser.all("#step-text span[data-i]")[5]
    span.click()
    rows = browser.all("#step-logits tbody tr")
    shown = [plain(row.find_element("css selector", "th").text) for row in rows]
    assert shown == [token for token, *_ in cells[5]["top"]]
    assert f"{cells[5]['loss']:.3f}" in browser.find("#step-loss").text
    assert plain(browser.find("#step-logits tr.own th").text) == cells[5]["text"]
    browser.run("return document.activeElement").send_keys("\ue014")  # the right arrow key
    assert f"{cells[6]['loss']:.3f}" in browser.find("#step-loss").text
    assert browser.driver.get_log("browser") == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--grad_clip=0.01", "--weight_decay=0.5"],
        pytest.param(["--optimizer=muon", "--batch_size=2"], marks=pytest.mark.slow),
        pytest.param(["--dtype=bfloat16"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_loss_and_norm_are_those_that_training_logs(work: Path, flags: list[str]) -> None:
    """The best model is that of step 10, and the run goes on to 20: the log has the loss of the batch of step 10."""
    trained(work, "--dropout=0", "--max_iters=10", "--lr_schedule=constant", *flags)
    best = (work / "out/ckpt.pt").read_bytes()
    trained(work, "--init_from=resume", "--dropout=0", "--max_iters=11", "--lr_schedule=constant", *flags)
    (work / "out/ckpt.pt").write_bytes(best)
    found, lines = the_step(work), (work / "out/metrics.jsonl").read_text().splitlines()
    logged = [line for line in map(json.loads, lines) if line["kind"] == "train" and line["step"] == 10][-1]
    near = 0.02 if "--dtype=bfloat16" in flags else 1e-3
    assert (found["loss"], found["norm"]) == pytest.approx((logged["loss"], logged["grad_norm"]), rel=near)
    for weight in found["weights"]:
        assert weight["value"] + weight["change"] == pytest.approx(weight["after"], abs=1e-6)
    assert (found["factor"] < 0.1) == ("--grad_clip=0.01" in flags)


@pytest.mark.parametrize("run", ["out-finetune", "out-lora"])
def test_a_step_of_fine_tuning(tuned: Path, run: str) -> None:
    found = the_step(tuned, run)
    assert found["weights"] and found["after"] < found["loss"]
    silent = [cell["text"] for cell in found["cells"] if "top" not in cell]
    assert silent[0] == "<|prompt|>" and silent[-1] == "<|response|>"  # prompts have no loss
    assert found["cells"][-1]["text"] == "<|end|>"
    if run == "out-lora":
        assert any("lora" in weight["name"] or "token embedding" in weight["name"] for weight in found["weights"])


def test_a_step_with_muon(work: Path) -> None:
    trained(work, "--optimizer=muon", *PLAIN)
    found = the_step(work)
    assert found["config"].optimizer == "muon" and found["after"] < found["loss"]
    assert not any("attention c_attn" in weight["name"] or "MLP c_fc" in weight["name"] for weight in found["weights"])


@pytest.mark.slow
def test_a_step_needs_dataset_optimizer_and_permission(with_snapshots: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(with_snapshots, tmp_path / "work"))
    assert "This is the step that follows" in (folder / "report.html").read_text("utf-8")
    ok(folder, "report", "out", "-o", "page.html", "--no_text")
    assert "its numbers are left out" in (folder / "page.html").read_text("utf-8")
    shutil.rmtree(folder / "data")
    ok(folder, "report", "out", "-o", "page.html")
    assert "A step needs the run's dataset" in (folder / "page.html").read_text("utf-8")
    state = load(folder / "out")
    assert "optimizer" in state.training
    with contextlib.chdir(with_snapshots):
        run = LoadedRun("out", ReportConfig())
        run.checkpoint = dataclasses.replace(run.checkpoint, training={})
        assert one_step(run) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (0.05007, "0.05007"),
        (-1e-4, "−0.0001"),
        (3.451e-5, "3.451 · 10⁻⁵"),
        (-2.5e7, "−2.5 · 10⁷"),
        (301, "301"),
    ],
)
def test_short_numbers_have_four_significant_digits(value: float, expected: str) -> None:
    assert short(value) == expected
