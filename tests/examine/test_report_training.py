"""The page's slider through training, two models side by side, one step explained; the snapshots that they need."""

import base64
import contextlib
import dataclasses
import html
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import cli_here, ok, trained
from models import largest
from pages import Browser, next_character, node, plain, slowly_in_a_browser

from tinygpt.base.configs.examine import ReportConfig
from tinygpt.checkpoint.snapshots import snapshot_steps, snapshots
from tinygpt.checkpoint.store import load, tokenizer_of
from tinygpt.examine.report.loaded_run import LoadedRun
from tinygpt.examine.report.one_step import one_step
from tinygpt.examine.report.weights import BLOCK, differences, pack, page_weights
from tinygpt.training.log import read_metrics

PLAIN = ["--fast=False", "--dropout=0", "--eval_interval=5"]


@pytest.fixture(scope="session")
def with_snapshots(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with out/, a run of 20 iterations with snapshots; other/, another one; and report.html."""
    folder = Path(shutil.copytree(tiny_data, tmp_path_factory.mktemp("with_snapshots") / "work"))
    trained(folder, "--snapshots=5", *PLAIN)
    trained(folder, "--out_dir=other", "--seed=8", "--n_head=1", *PLAIN)
    ok(folder, "report", "out", "other", "-o", "report.html")
    return folder


@pytest.fixture
def page(with_snapshots: Path, browser: Browser) -> Iterator[Browser]:
    """The report of `with_snapshots`, opened anew; after the test, the log has no error and no request."""
    browser.open(with_snapshots / "report.html")
    yield browser
    browser.assert_quiet()


def test_the_steps_are_spaced_logarithmically() -> None:
    assert snapshot_steps(6, 2000) == [0, 20, 63, 200, 632, 2000]
    assert len(snapshot_steps(10**9, 100)) == 56  # at most every step, and at once
    assert [snapshot_steps(count, 2000) for count in range(4)] == [[], [0], [0, 2000], [0, 20, 2000]]
    assert snapshot_steps(5, 1) == [0, 1] and snapshot_steps(5, 7) == [0, 2, 7]


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
    with open(found[4], "ab") as file:
        file.write(b"?")
    result = cli_here("doctor", "out", cwd=folder)
    assert result.status == 1 and "FAIL  out/snapshots/step-4.pt: " in result.out
    assert "OK    out/snapshots/step-1.pt: intact" in result.out


def test_a_resumed_run_writes_the_same_snapshots(work: Path) -> None:
    """One that ended at 10 of 20 iterations and went on; and a new run removes those of the run that it replaces."""
    flags = ["--snapshots=6", *PLAIN]
    trained(work, *flags)
    once = snapshots(work / "out")
    assert list(once) == [0, 1, 2, 6, 20]
    trained(work, *flags, "--out_dir=twice", "--max_iters=10")
    trained(work, "--init_from=resume", "--out_dir=twice", "--max_iters=20", *flags)
    again = snapshots(work / "twice")
    assert list(again) == [0, 1, 3, 10, 20]  # those of 10 iterations, and of 20
    for step in (0, 1, 20):
        first, second = load(once[step]).model, load(again[step]).model
        assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    (work / "twice/snapshots/mine.txt").write_text("kept")
    trained(work, "--out_dir=twice", *PLAIN)
    assert [path.name for path in (work / "twice/snapshots").iterdir()] == ["mine.txt"]


def test_the_scripts_weights_are_those_that_python_reconstructs(with_snapshots: Path) -> None:
    """Chains of differences in both directions, from a model in the middle of its training: errors do not add up."""
    states = {step: load(path) for step, path in snapshots(with_snapshots / "out").items()}
    tokenizer: Any = tokenizer_of(states[0], "", "")
    models = {step: state.build_model() for step, state in states.items()}
    packed = pack(models.pop(4), tokenizer)
    packed["snapshots"] = differences(packed, 4, models, tokenizer)
    assert [(one["step"], one["from"]) for one in packed["snapshots"]] == [(0, 1), (1, None), (20, None)]
    whole = node("return input.packed.snapshots.map((_, i) => [...TinyGPT.weights(input.packed, i)])", packed=packed)
    for one, numbers in zip(packed["snapshots"], whole, strict=True):
        expected = torch.cat([weight.flatten() for weight in page_weights(models[one["step"]], tokenizer).values()])
        scales = torch.from_numpy(np.frombuffer(base64.b64decode(one["scales"]), "<f2").astype(np.float32))
        bound = 0.52 * scales.repeat_interleave(BLOCK)[: len(expected)] + 1e-6
        assert ((torch.tensor(numbers) - expected).abs() <= bound).all(), one["step"]


@slowly_in_a_browser
def test_the_slider_shows_the_model_of_each_step(page: Browser, with_snapshots: Path) -> None:
    page.type_into("#text", "The king of ")
    pictures = set()
    paths = ["snapshots/step-0.pt", "snapshots/step-1.pt", "snapshots/step-4.pt", "ckpt.pt"]
    assert page.find("#step-slider-type").get_property("max") == page.value("#step-slider-type") == "3"  # the best
    for index, shown in enumerate(["0, untrained", "1", "4", "20, best"]):
        page.slide("#step-slider-attention" if index % 2 else "#step-slider-type", index)
        expected = next_character(with_snapshots / "out" / paths[index], "The king of ")
        for token, row in page.chances().items():
            assert row[0] == pytest.approx(expected[token], abs=2e-3), (index, token)
        assert page.find("#step-slider-type + output").text == shown
        assert page.value("#step-slider-type") == page.value("#step-slider-attention") == str(index)
        pictures.add(page.run("return document.getElementById('matrix').toDataURL()"))
    assert len(pictures) >= 3  # the attention changes
    page.click("#continue")
    page.until(lambda: len(page.value("#text")) > 40)
    page.slide("#step-slider-type", 0)  # while it writes: the model is changed, the text stays
    page.click("#stop")


@slowly_in_a_browser
def test_two_models_side_by_side(page: Browser, with_snapshots: Path) -> None:
    labels = [option.text for option in page.all("#left option")]
    assert labels == ["step 0", "step 1", "step 4", "out, best model, step 20", "other, step 20"]
    assert page.value("#left") == "4" and page.value("#right") == "3"
    page.type_into("#compare-text", "And thou ")
    left, right = (next_character(with_snapshots / run / "ckpt.pt", "And thou ") for run in ("other", "out"))
    for token, row in page.chances("compare-bars").items():
        assert row == pytest.approx([left[token], right[token]], abs=2e-3)
    common = sum(min(left[token], right[token]) for token in left)
    percent = re.search(r"have (\d+)%", page.find("#overlap").text)
    assert percent and int(percent[1]) == pytest.approx(100 * common, abs=1)
    page.click("#continue-both")
    texts = [page.find(f"#{side}-text").text for side in ("left", "right")]
    assert len(texts[0]) > 100 and texts[0] != texts[1]
    page.run("const e = document.getElementById('left'); e.value = 3; e.dispatchEvent(new Event('change'))")
    assert "100%" in page.find("#overlap").text  # the same model twice
    page.click("#continue-both")
    assert page.find("#left-text").text == page.find("#right-text").text


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


@pytest.fixture(scope="session")
def stepped(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with out/, whose last.pt is one iteration further than its best model ckpt.pt, and page.html."""
    folder = Path(shutil.copytree(tiny_data, tmp_path_factory.mktemp("stepped") / "work"))
    one_more_step(folder, 20, "--fast=False", "--grad_clip=0.1")
    ok(folder, "report", "out", "-o", "page.html")
    return folder


def one_more_step(folder: Path, steps: int, *flags: str) -> None:
    """Train for so many iterations, and one more, which leaves ckpt.pt as it was."""
    flags = ("--dropout=0", "--eval_interval=100", "--lr_schedule=constant", *flags)
    trained(folder, f"--max_iters={steps}", *flags)
    best = (folder / "out/ckpt.pt").read_bytes()
    trained(folder, "--init_from=resume", f"--max_iters={steps + 1}", *flags)
    (folder / "out/ckpt.pt").write_bytes(best)
    assert load(folder / "out").step == steps and load(folder / "out/last.pt").step == steps + 1


def logged(folder: Path, step: int) -> dict[str, Any]:
    """What the run says of the batch of this step."""
    return [entry for entry in read_metrics(folder / "out") if (entry["kind"], entry["step"]) == ("train", step)][-1]


def the_step(folder: Path, run: str = "out", **changes: Any) -> dict[str, Any]:
    """With changes of the checkpoint."""
    with contextlib.chdir(folder):
        loaded = LoadedRun(run, ReportConfig())
        loaded.checkpoint = dataclasses.replace(loaded.checkpoint, **changes)
        return one_step(loaded)


def test_the_step_is_the_one_that_training_makes(stepped: Path) -> None:
    found, before, after = the_step(stepped), load(stepped / "out"), load(stepped / "out/last.pt")
    keys = {"token": "wte", "layer 1, attention": "h.0.attn.c_attn", "layer 1, MLP": "h.0.mlp.c_fc"}
    for weight, (start, key) in zip(found["weights"], keys.items(), strict=True):
        assert weight["name"].startswith(start)
        old, new = (state.model[f"transformer.{key}.weight"] for state in (before, after))
        place = int((old - weight["value"]).abs().argmin())
        assert new.flatten()[place].item() == pytest.approx(weight["after"], abs=1e-7), weight["name"]
        assert weight["after"] != weight["value"]
        assert weight["value"] + weight["change"] == pytest.approx(weight["after"], abs=2e-6)  # by hand and by torch
    entry = logged(stepped, 20)
    assert found["loss"] == pytest.approx(entry["loss"], abs=1e-4)
    assert found["norm"] == pytest.approx(entry["grad_norm"], rel=1e-3) and found["rate"] == entry["lr"]
    assert 0 > found["after"] - found["loss"] == pytest.approx(found["predicted"], rel=0.3)


def test_the_logits_give_the_loss_and_the_gradient(stepped: Path) -> None:
    state, found = load(stepped / "out"), the_step(stepped)
    tokenizer = tokenizer_of(state, "", "")
    cells = [cell for cell in found["cells"] if "top" in cell]
    assert len(cells) == 16 and found["targets"] == 8 * 16
    ids = torch.from_numpy(tokenizer.encode("".join(cell["text"] for cell in found["cells"])).astype(np.int64))
    logits = state.build_model().eval()(ids[None, :-1])[0][0].detach().requires_grad_()
    losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
    (gradients,) = torch.autograd.grad(losses.sum(), logits)
    for place, cell in enumerate(cells):
        assert cell["loss"] == pytest.approx(losses[place].item(), abs=1e-4)
        assert cell["sum"] == pytest.approx(logits[place].exp().sum().item(), rel=1e-4)
        assert cell["text"] in [token for token, *_ in cell["top"]]
        for token, z, p, gradient in cell["top"]:
            i = int(tokenizer.encode(token)[0])
            assert (z, gradient) == pytest.approx((logits[place, i].item(), gradients[place, i].item()), abs=1e-4)
            assert p == pytest.approx(math.exp(z) / cell["sum"], rel=1e-6)


def test_the_arithmetic_on_the_page_can_be_followed(stepped: Path) -> None:
    """Each printed calculation, evaluated as printed, gives the printed result within its rounding."""
    page = html.unescape((stepped / "page.html").read_text("utf-8"))
    section = page.partition('<section id="one-step"')[2].partition("</section>")[0]
    sums = [line for part in re.findall(r"<dd>(.*?)</dd>", section) for line in part.split("<br>") if " = " in line]
    assert len(sums) == 18
    raised = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    for line in sums:
        python = line.translate(str.maketrans("−×", "-*")).replace("√", "math.sqrt")
        python = re.sub(r" · 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda found: f"e{found[1].translate(raised)}", python)
        left, right = (eval(part) for part in python.replace("²", "**2").rsplit(" = ", 1))
        assert left == pytest.approx(right, rel=0.02, abs=1e-9), line


@slowly_in_a_browser
def test_a_character_of_the_step_is_explained(stepped: Path, browser: Browser) -> None:
    browser.open(stepped / "page.html")
    cells = the_step(stepped)["cells"]
    browser.all("#step-text span[data-i]")[5].click()
    shown = [plain(head.text) for head in browser.all("#step-logits tbody th")]
    assert shown == [token for token, *_ in cells[5]["top"]]
    assert plain(browser.find("#step-logits tr.own th").text) == cells[5]["text"]
    browser.run("return document.activeElement").send_keys("\ue014")  # the right arrow key
    assert f"{cells[6]['loss']:.3f}" in browser.find("#step-loss").text
    browser.assert_quiet()


def test_loss_and_norm_of_muon_are_those_that_training_logs(work: Path) -> None:
    """AdamW does not update Muon's matrices."""
    one_more_step(work, 10, "--optimizer=muon")
    found, entry = the_step(work), logged(work, 10)
    assert (found["loss"], found["norm"]) == pytest.approx((entry["loss"], entry["grad_norm"]), rel=1e-3)
    for weight in found["weights"]:
        assert weight["value"] + weight["change"] == pytest.approx(weight["after"], abs=1e-6)
        assert "c_attn" not in weight["name"] and "c_fc" not in weight["name"]


def test_a_step_of_fine_tuning(tuned: Path) -> None:
    found = the_step(tuned, "out-lora")
    silent = [cell["text"] for cell in found["cells"] if "top" not in cell]
    assert silent[0] == "<|prompt|>" and silent[-1] == "<|response|>"  # prompts have no loss
    assert found["cells"][-1]["text"] == "<|end|>" and found["after"] < found["loss"]
    assert any("lora" in weight["name"] or "token embedding" in weight["name"] for weight in found["weights"])


@pytest.mark.slow
def test_a_step_needs_dataset_optimizer_and_permission(stepped: Path, tmp_path: Path) -> None:
    folder, page = Path(shutil.copytree(stepped, tmp_path / "work")), tmp_path / "page.html"
    assert "This is the step that follows" in (folder / "page.html").read_text("utf-8")
    ok(folder, "report", "out", "-o", page, "--no_text")
    assert "its numbers are left out" in page.read_text("utf-8")
    assert the_step(folder, training={}) == {}
    shutil.rmtree(folder / "data")
    ok(folder, "report", "out", "-o", page)
    assert "A step needs the run's dataset" in page.read_text("utf-8")
