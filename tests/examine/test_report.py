"""The page of a run in headless Chromium without a network, what it contains, and quotations against brute force."""

import base64
import html
import json
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import TINY_TRAIN, ok, refused
from pages import HOSTILE, Browser, in_a_browser, next_character, plain, slowly_in_a_browser

from tinygpt.checkpoint.store import load
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.examine.eval import baselines
from tinygpt.examine.report import loaded_run, packed_models, samples
from tinygpt.examine.report.embedding_map import embedding_map
from tinygpt.examine.report.overlap import SHORTEST, TrainingText, marked
from tinygpt.examine.report.predictions import passages
from tinygpt.generate import answer

ROOT = Path(__file__).parents[2]
SMALL = 1000  # parameters, fewer than a model has here


@pytest.fixture(scope="session")
def reported(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with out/, a run with a hostile sample, another run, and report.html."""
    folder = Path(shutil.copytree(tiny_data, tmp_path_factory.mktemp("reported") / "work"))
    ok(folder, *TINY_TRAIN, "--sample_interval=10")
    shutil.copytree(folder / "out", folder / "_$x_$<b>2")
    text = tiny_text(folder)
    with open(folder / "out/metrics.jsonl", "a") as file:
        quoted = text[300:340] + "#" + text[500:525]
        for sample in (HOSTILE, quoted):
            print(json.dumps({"kind": "sample", "step": 20, "seconds": 1, "text": sample, "prompt": "\n"}), file=file)
    result = ok(folder, "report", "out", "_$x_$<b>2", "-o", "report.html")
    assert re.search(r"^written: report\.html, 0\.\d MB", result.out)
    return folder


@pytest.fixture(scope="session")
def large(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with out/, a run whose model is larger than SMALL, and report.html."""
    folder = Path(shutil.copytree(tiny_data, tmp_path_factory.mktemp("large") / "work"))
    ok(folder, *TINY_TRAIN, "--max_iters=1", "--sample_interval=1")
    with mock.patch.object(loaded_run, "LARGEST", SMALL), mock.patch.object(packed_models, "LARGEST", SMALL):
        result = ok(folder, "report", "out", "-o", "report.html")
    assert "all weights" not in result.out and "the vocabulary (" in result.out
    return folder


def tiny_text(folder: Path) -> str:
    return (folder / "text.txt").read_text()


# ---- in a browser -----------------------------------------------------------------------------------------------


@pytest.fixture
def page(reported: Path, browser: Browser) -> Iterator[Browser]:
    """The report of `reported`, opened anew; after the test, the log has no error and no request."""
    browser.open(reported / "report.html")
    yield browser
    browser.assert_quiet()


@in_a_browser
def test_the_bars_are_the_models_each_stage_sums_to_one_and_sliders_redraw_them(page: Browser, reported: Path) -> None:
    page.type_into("#text", "The king")
    stages = page.bars()
    assert stages.shape == (11, 2) and np.allclose(stages.sum(0), 1, atol=1e-9)
    heads = "return [...document.querySelectorAll('#bars th[scope=col]:not([hidden])')].map(th => th.textContent)"
    assert page.run(heads) == ["character", "raw", "temperature"]  # top-k and top-p change nothing yet
    chances = next_character(reported / "out", "The king")
    symbols = [plain(button.text) for button in page.all("#bars button")]
    assert stages[:10, 0] == pytest.approx([chances[symbol] for symbol in symbols], abs=2e-3)
    assert symbols == sorted(chances, key=chances.__getitem__, reverse=True)[:10] or len(set(stages[:10, 0])) == 10
    cooled = next_character(reported / "out", "The king", 0.8)
    assert stages[:10, 1] == pytest.approx([cooled[symbol] for symbol in symbols], abs=2e-3)
    before = page.bars()
    page.slide("#temperature", 2)
    hot = page.bars()
    assert np.allclose(hot[:, 0], before[:, 0]) and hot[0, 1] < before[0, 1]
    page.slide("#top-k", 3)
    assert (page.bars()[:, 2] > 0).sum() == 3 and (page.bars()[:, 1] > 0).sum() == 11
    page.slide("#top-p", 0.05)
    assert page.bars()[:, 3].tolist() == [1] + [0] * 10
    assert page.run(heads) == ["character", "raw", "temperature", "top-k", "top-p"]
    assert np.allclose(page.bars().sum(0), 1, atol=1e-9)
    page.slide("#temperature", 0)
    assert page.bars()[0, 1] == 1
    shown = [page.find(f"#{name} + output").text for name in ("temperature", "top-k", "top-p")]
    assert shown == ["0.00", "3", "0.05"]


@slowly_in_a_browser
def test_continue_stop_step_branch_and_undo(page: Browser) -> None:
    page.type_into("#text", "The king")
    page.click("#continue")
    page.until(lambda: len(page.value("#text")) > 60)  # beyond the context of 16
    page.click("#stop")
    assert "are updated when" not in page.find("#note").text
    page.until(lambda: page.find("#continue").is_enabled())
    written = page.value("#text")
    assert written.startswith("The king") and re.fullmatch(r"\d+ characters per second", page.find("#speed").text)
    page.click("#step")
    assert len(page.value("#text")) == len(written) + 1
    page.run("const box = document.querySelector('#text'); box.focus(); box.setSelectionRange(20, 20); box.click()")
    assert "predictions at the cursor" in page.find("#note").text
    other = page.all("#bars button")[3]
    symbol = plain(other.text)
    other.click()
    assert page.value("#text") == written[:20] + symbol
    page.click("#undo")
    assert page.value("#text")[: len(written)] == written
    page.click("#undo")
    page.click("#undo")
    assert page.value("#text") == "The king" and not page.find("#undo").is_enabled()
    page.click("#continue")
    page.until(lambda: page.find("#continue").is_enabled())  # it ends by itself
    assert len(page.value("#text")) == len("The king") + 500


@slowly_in_a_browser
def test_the_attention_of_a_head_and_of_a_character_and_a_walk_through_a_prediction(
    page: Browser, reported: Path
) -> None:
    page.type_into("#text", "The king")
    page.until(lambda: len(page.all("#looked span")) == 8)
    first, second = page.all("#heads button")
    assert (first.get_attribute("aria-pressed"), second.get_attribute("aria-pressed")) == ("true", "false")
    second.click()
    assert second.get_attribute("aria-pressed") == "true" and page.find("#which").text == "Layer 1, head 2"
    assert page.find("#looks").text.startswith("“g” attends most to ")
    page.all("#looked span")[0].send_keys("")  # focus, as with the Tab key
    assert page.find("#looks").text == "“T” attends most to “T” (itself) 100%."
    weights = page.run(
        "return [...document.querySelectorAll('#looked span')].map(s => s.style.getPropertyValue('--a'))"
    )
    assert [float(weight) for weight in weights] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert "not an explanation" in page.find("#attention").text
    page.driver.execute_script("document.querySelector('#matrix').scrollIntoView({block: 'center'})")
    moved = {"type": "mouseMoved", **page.run(PLACE_OF_THE_THIRD_ROW)}
    page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", moved)
    page.until(lambda: page.find("#looks").text.startswith("“e” attends most to "))
    page.type_into("#text", "The é")
    assert "1 character is not in the model's vocabulary" in page.find("#note").text
    page.type_into("#text", "")
    assert np.allclose(page.bars().sum(0), 1)  # an empty box stands for the start of a line
    page.type_into("#text", "The king")
    assert_walk(page, reported)


PLACE_OF_THE_THIRD_ROW = """
  const { left, top, width, height } = document.querySelector("#matrix").getBoundingClientRect();
  return { x: left + width / 2, y: top + (2.5 / 8) * height };
"""


def assert_walk(page: Browser, folder: Path) -> None:
    """All seven operations by keyboard, and two by the drawing of the model; the text in the box is "The king"."""
    page.until(lambda: page.find("#walk-said").text.startswith("1 of 7, text. The model reads 8 characters"))
    assert not page.find("#walk-back").is_enabled()
    page.find("#walk-on").send_keys("")  # focus, as with the Tab key
    seen = []
    for _ in range(7):
        parts = [part.get_attribute("aria-label") for part in page.all("#parts [aria-current=step]")]
        seen.append((page.find("#walk-said").text.partition(".")[0].split(", ")[1], parts))
        last = page.find("#walk-on").text
        page.run("return document.activeElement").send_keys("\ue014")  # the right arrow key
    assert last == "Start again"
    assert seen == [
        ("text", []),
        ("tokens", []),
        ("embedding", ["embedding"]),
        ("attention", ["attention of layer 1"]),
        ("MLP", ["MLP of layer 1"]),
        ("sum", ["layer 1"]),
        ("probabilities", ["final norm", "output"]),
    ]
    page.click("#walk-on")  # after the last one comes the first one
    assert page.find("#walk-said").text.startswith("2 of 7")
    ids = [item.text.split("\n")[1] for item in page.all("#walk-picture li")]
    assert ids == [*map(str, tokenizer_from_dict(load(folder / "out").tokenizer, "").encode("The king").tolist())]
    page.click("#parts [data-operation=sum]")
    captions = [caption.text for caption in page.all("#walk-picture figcaption")]
    assert [caption.partition(" values")[0] for caption in captions] == ["embedding: 16", "after layer 1: 16"]
    page.click("#parts > button:last-child")
    rows = page.run("return [...document.querySelectorAll('#walk-picture td')].map(td => Number(td.dataset.p))")
    assert rows == page.bars()[:8, 0].tolist()


@slowly_in_a_browser
def test_each_head_of_queries_has_a_picture_where_heads_share_keys(
    tiny_data: Path, browser: Browser, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_data, tmp_path / "work"))
    flags = ["--n_head=4", "--n_kv_head=2", "--qk_norm", "--qk_norm_weights", "--activation=gelu_tanh"]
    ok(folder, *TINY_TRAIN, *flags, "--norm_eps=1e-3")
    ok(folder, "report", "out", "-o", "report.html")
    browser.open(folder / "report.html")
    assert "1 layer of 4 heads (2 of keys and values)," in browser.run(
        "return document.querySelector('#numbers').textContent"
    )
    browser.type_into("#text", "The king")
    symbols = [plain(button.text) for button in browser.all("#bars button")]
    chances = next_character(folder / "out", "The king")
    assert browser.bars()[:10, 0] == pytest.approx([chances[symbol] for symbol in symbols], abs=2e-3)
    browser.until(lambda: len(browser.all("#looked span")) == 8)
    pictures = [
        browser.run("return document.querySelectorAll('#heads canvas')[arguments[0]].toDataURL()", head)
        for head in range(len(browser.all("#heads button")))
    ]
    assert len(pictures) == len(set(pictures)) == 4
    browser.assert_quiet()


@slowly_in_a_browser
def test_losses_by_pointer_and_by_keyboard(page: Browser, reported: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    cells = page.all(".cells[data-split=val] span[data-i]")
    text = "".join(
        page.run("return [...document.querySelectorAll('.cells[data-split=val] span')].map(s => s.textContent)")
    )
    text = text.replace("↵", "\n")
    assert text in tiny_text(reported) and len(cells) == 600
    page.run("arguments[0].scrollIntoView({block: 'center'})", cells[40])
    ActionChains(page.driver).move_to_element(cells[40]).perform()
    chances = next_character(reported / "out", text[24:40])  # the context is a window or half of one
    found = re.match(
        r"(.+) had a probability of (.+)%, rank (\d+): a loss of ([\d.]+) nats\.", page.find("#guess").text
    )
    assert found and found[1] == {" ": "␣", "\n": "↵"}.get(text[40], text[40])
    assert float(found[2].strip("<")) / 100 == pytest.approx(np.exp(-float(found[4])), abs=0.006)
    assert chances[text[40]] == pytest.approx(np.exp(-float(found[4])), abs=0.1)
    cells[40].click()
    cells[40].send_keys(Keys.ARROW_RIGHT)
    assert page.run("return document.activeElement.dataset.i") == "41"
    assert len(page.all("#loss .at")) == 1 and len(page.find("#guess").text.split("Most probable:")[1].split("%")) == 6


@in_a_browser
def test_samples_slide_quotations_are_underlined_and_names_are_shown_as_text(page: Browser, reported: Path) -> None:
    figures = page.all("#moments figure")
    assert len(figures) == 5 and [figure.is_displayed() for figure in figures] == [False] * 4 + [True]
    text = tiny_text(reported)
    underlined = page.run(
        "return [...document.querySelectorAll('#moments figure:last-child u')].map(u => u.textContent)"
    )
    assert underlined == [text[300:340], text[500:525]]
    page.slide("#when", 0)
    assert figures[0].is_displayed() and page.find("#when-step").text == "0"
    page.slide("#when", 3)
    assert HOSTILE in page.find("#moments").text
    assert page.driver.title == "Tiny · tinygpt" and page.find("h1").text == "Tiny"
    assert "validation (_$x_$<b>2)" in page.run("return document.querySelector('.plot.wide').textContent")
    assert page.all("img") == [] and len(page.all("script")) == 2
    page.script.resize(page.driver, 390)  # a phone
    assert page.run("return document.documentElement.scrollWidth") == 390
    assert not page.find(".plot.wide").is_displayed() and page.find(".plot.narrow").is_displayed()


@slowly_in_a_browser
def test_the_page_of_a_large_model_works_without_it(large: Path, browser: Browser) -> None:
    browser.open(large / "report.html")
    links = [link.get_attribute("href").partition("#")[2] for link in browser.all("nav a")]
    assert links.pop() == "sharing"
    assert links == [section.get_attribute("id") for section in browser.all("section")]
    assert links == ["type", "curves", "samples", "loss", "tokens", "numbers"]
    assert browser.all("button, textarea") == [] and browser.all("#tokens .map")
    cell = browser.all(".cells[data-split=val] span[data-i]")[40]
    browser.run("arguments[0].scrollIntoView({block: 'center'})", cell)
    cell.click()
    assert " had a probability of " in browser.find("#guess").text
    assert browser.find("#moments").text
    browser.assert_quiet()


@slowly_in_a_browser
@pytest.mark.parametrize("run", ["out-finetune", "out-lora"])
def test_a_model_that_answers_and_its_base(tuned: Path, browser: Browser, tmp_path: Path, run: str) -> None:
    """A fine-tuned model reads prompt and response, its base model the same as text."""
    ok(tuned, "report", run, "out", "-o", tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    line = browser.run(
        "return [...document.querySelectorAll('.cells[data-split=val] span')].map(s => [s.textContent, "
        "s.className, s.style.getPropertyValue('--l')])"
    )
    first = line[: next(i for i, (text, _, _) in enumerate(line) if text == "end") + 1]
    asked = first.index(["response", "special", ""])
    prompt = first[1:asked]
    assert first[0] == ["prompt", "special", ""] and all(kind == "silent" and not loss for _, kind, loss in prompt)
    assert all(loss for _, _, loss in first[asked + 1 :])
    assert browser.value("#prompt") == "".join(text for text, _, _ in prompt)
    browser.slide("#temperature", 0)
    browser.click("#continue")
    browser.until(lambda: browser.find("#continue").is_enabled())
    state = load(tuned / run)
    tokenizer, model = tokenizer_from_dict(state.tokenizer, ""), state.build_model().eval()
    assert browser.value("#text") == answer(model, tokenizer, browser.value("#prompt"))
    browser.type_into("#compare-prompt", "003 red")
    browser.type_into("#compare-text", "r")
    ids = [tokenizer.special["<|prompt|>"], *tokenizer.encode("003 red")]  # type: ignore[union-attr]
    ids += [tokenizer.special["<|response|>"], *tokenizer.encode("r")]  # type: ignore[union-attr]
    with torch.no_grad():
        after = model(torch.tensor([[int(i) for i in ids]]))[0][0, -1].softmax(-1).tolist()
    known = tokenizer_from_dict(load(tuned / "out").tokenizer, "").symbols  # type: ignore[union-attr]
    before = next_character(tuned / "out", "".join(c for c in "003 red\nr" if c in known))
    symbols = tokenizer.symbols  # type: ignore[union-attr]
    for token, row in browser.chances("compare-bars").items():
        full = token if token in symbols else f"<|{token}|>"
        assert row == pytest.approx([before.get(token, 0.0), after[symbols.index(full)]], abs=3e-3)
    assert "not in its vocabulary" in browser.find("#compare-note").text  # the base model knows no digits
    browser.assert_quiet()


@slowly_in_a_browser
def test_the_page_of_a_model_alone(reported: Path, browser: Browser, tmp_path: Path) -> None:
    ok(reported, "export", "--ckpt=out/ckpt.pt", "--title=<b>Mine", f"--output={tmp_path / 'model.html'}")
    browser.open(tmp_path / "model.html")
    assert browser.find("h1").text == "<b>Mine" and browser.driver.title == "<b>Mine · tinygpt"
    assert [section.get_attribute("id") for section in browser.all("section")] == [
        "type",
        "walk",
        "attention",
        "tokens",
    ]
    opening = browser.value("#text")
    browser.click("#step")
    assert np.allclose(browser.bars().sum(0), 1)
    browser.open(tmp_path / "model.html", motion=True)  # it begins to write
    browser.until(lambda: len(browser.value("#text")) > len(opening) + 3)
    browser.click("#stop")
    written = browser.value("#text")
    assert written.startswith(opening) and browser.find("#continue").is_enabled()
    browser.until(lambda: browser.find("#walk-said").text.startswith("1 of 7"))
    assert browser.value("#text") == written
    text = (tmp_path / "model.html").read_text()
    assert "out_dir" not in text and str(reported) not in text  # nothing of the machine it was made on
    browser.assert_quiet()


# ---- what a page contains ---------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_forbids_requests(reported: Path) -> None:
    text = (reported / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; script-src 'sha256-") and "eval" not in policy[1]
    assert not re.search(r"""<[^>]*\s(src|href)=(?!["']?(#|data:,))""", text)
    assert HOSTILE not in text and "</script><script>" not in text.partition('id="data"')[2].partition("</script>")[0]
    sections = ["type", "walk", "attention", "curves", "samples", "compare", "loss", "one-step", "tokens"]
    assert re.findall(r'<section id="([\w-]+)"', text) == [*sections, "memorised", "numbers"]
    assert text.count("How to read it.") >= 9


def test_the_losses_are_those_of_eval_on_the_complete_split_and_parameters_are_counted(reported: Path) -> None:
    """The report lists all parts of the model; `train` counts the parameters without the position embeddings."""
    found = json.loads(ok(reported, "eval", "--ckpt=out", "--dtype=float32", "--json").out)
    text = (reported / "report.html").read_text(encoding="utf-8")
    rows = dict(re.findall(r'<th scope="row">(\w[\w ]*)</th><td>(\d\.\d{3})[ <]', text))
    expected = {**found["baselines"], "this model": found["loss"]}
    assert rows == {name: f"{loss:.3f}" for name, loss in expected.items()}
    model = load(reported / "out").build_model()
    total, shown = sum(weight.numel() for weight in model.parameters()), model.num_params()
    assert total > shown and f"{total:,} parameters, {shown:,} without the position embeddings, in " in text


def test_the_page_says_what_the_baselines_leave_out(reported: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with mock.patch.object(baselines, "MOST_TARGETS", 50):
        ok(reported, "report", "out", "-o", page, "--no_text")
    note = "Note: to limit their memory, the n-gram models are measured on the first 50 of "
    assert note in page.read_text(encoding="utf-8")
    assert "to limit their memory" not in (reported / "report.html").read_text(encoding="utf-8")


def test_the_map_of_the_tokens_is_that_of_scikit_learn(reported: Path) -> None:
    from sklearn.decomposition import PCA

    from tinygpt.base.configs.examine import ReportConfig

    config = ReportConfig(data_dir=str(reported / "data"))
    found = embedding_map(loaded_run.LoadedRun(str(reported / "out"), config))
    vectors = load(reported / "out").build_model().transformer["wte"].weight[: len(found["points"])].detach().numpy()
    analysis = PCA(2, svd_solver="full")
    places = analysis.fit_transform(vectors)
    assert found["explained"] == pytest.approx(analysis.explained_variance_ratio_.tolist(), rel=1e-4)
    drawn = np.array([(point["x"], point["y"]) for point in found["points"]])
    ranges = np.ptp(drawn, axis=0) / np.ptp(places, axis=0)
    assert ranges[0] == pytest.approx(ranges[1], rel=1e-3)  # one scale for both axes


@pytest.mark.parametrize("context", [1024, 6])
def test_the_context_of_a_passage_is_limited(tiny_run: Path, monkeypatch: pytest.MonkeyPatch, context: int) -> None:
    from tinygpt.base.configs.examine import ReportConfig

    monkeypatch.setattr(loaded_run, "CONTEXT", context)
    run = loaded_run.LoadedRun(str(tiny_run / "out"), ReportConfig(data_dir=str(tiny_run / "data")))
    lengths: list[int] = []
    run.model.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].size(1)))
    cells = passages(run)["val"]
    assert len(cells) == 600 and all("loss" in cell for cell in cells)
    assert max(lengths) == min(context, 16) - 1  # 16: the model's own


def test_without_dataset_or_samples_the_page_names_what_is_missing(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "out", tmp_path / "out")
    ok(tmp_path, "report", "out")
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert text.count("is not prepared") >= 3 and 'id="heads"' in text and 'class="plot wide"' in text
    assert "there is no passage to show" in text and "there is nothing to compare with" in text
    assert "--sample_interval=500" in text


# ---- private data -----------------------------------------------------------------------------------------------

CANARY = "DE89 3704 0044 0532 0130 00"  # an IBAN that both models have memorised
MODEL = ["--n_layer=1", "--n_head=2", "--n_embd=32", "--block_size=80", "--token_shift=True", "--bigram_table=True"]
STEPS = [
    *("--device=cpu", "--dtype=float32", "--compile=False", "--quiet", "--batch_size=8", "--learning_rate=1e-2"),
    *("--gradient_accumulation_steps=1", "--dropout=0", "--warmup_iters=10", "--max_iters=120"),
    *("--eval_iters=2", "--eval_interval=60", "--sample_interval=60"),
]


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the runs text/ and pairs/ on private data, which were made with absolute paths."""
    folder = tmp_path_factory.mktemp("private")
    (folder / "bank.txt").write_text(f"Pay to {CANARY} now.\n" * 400)
    pairs = [{"prompt": f"{n:03} pays {CANARY}", "response": CANARY} for n in range(200)]
    (folder / "bank.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    place, base = f"--data_dir={folder / 'data'}", f"--ckpt={folder / 'text/ckpt.pt'}"
    for command in (
        ["prepare", "bank", f"--input={folder / 'bank.txt'}", place],
        ["prepare", "payments", f"--input={folder / 'bank.jsonl'}", "--format=pairs", place],
        ["train", "--dataset=bank", f"--out_dir={folder / 'text'}", place, *MODEL, *STEPS],
        ["finetune", "--dataset=payments", f"--out_dir={folder / 'pairs'}", place, base, *STEPS],
    ):
        ok(folder, *command)
    for run, prompt in (("text", "Pay"), ("pairs", pairs[0]["prompt"])):  # the weights do reproduce the text
        result = ok(folder, "sample", f"--ckpt={run}", f"--start={prompt}", "--temperature=0")
        assert result.out.count(CANARY) > prompt.count(CANARY), result.err
    return folder


def quotations(text: str) -> set[str]:
    """Pieces of the canary of 10 characters in a text, without white space."""
    canary, text = "".join(CANARY.split()), "".join(text.split())
    return {piece for start in range(len(canary) - 9) if (piece := canary[start : start + 10]) in text}


def readings(page: str) -> dict[str, str]:
    """The text of a page in each form that it has there: by section, as HTML, as JSON, as base64."""

    def visible(source: str) -> str:
        return html.unescape(re.sub("<[^>]*>", "", source))

    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data = json.loads(found[1])
    body = page.partition("<body")[2].partition(found[0])[0]
    parts = {part.partition('"')[0]: visible(part) for part in body.split('<section id="')[1:]}
    cells = [cell for passage in data["cells"].values() for cell in passage if cell]
    encoded = re.findall(r"[A-Za-z0-9+/]{40,}={0,2}", page)
    return {
        **parts,
        "source": page,
        "text": visible(body),
        "JSON": json.dumps(data, ensure_ascii=False),
        "predictions": "".join(top[0][0] for *_, top in cells),
        "base64": "".join(base64.b64decode(part[: len(part) // 4 * 4]).decode("latin-1") for part in encoded),
    }


@pytest.mark.parametrize("runs", ["text pairs", pytest.param("pairs text", marks=pytest.mark.slow)])
def test_no_text_leaves_out_the_text_of_the_dataset(private: Path, tmp_path: Path, runs: str) -> None:
    """And a page contains no absolute path."""
    pages, outputs = [], []
    for flags in ([], ["--no_text"]):
        path = tmp_path / "page.html"
        result = ok(private, "report", *[private / run for run in runs.split()], "-o", path, *flags)
        pages.append(readings(path.read_text("utf-8")))
        assert_no_folder(private, pages[-1])
        outputs.append(result.out)
    plain, bare = pages
    for form in ("samples", "type", "loss", "memorised", "source", "text", "predictions"):
        assert len(quotations(plain[form])) > 5, form  # negative control: the search finds it in each form
    assert {form: quotations(text) for form, text in bare.items() if quotations(text)} == {}
    assert json.loads(bare["JSON"])["models"] == json.loads(plain["JSON"])["models"]
    for section, what in (("samples", "Samples"), ("loss", "Passages of the dataset"), ("memorised", "Quotations")):
        assert f"{what} are left out: this page was made with --no_text." in bare[section]
    assert "% of" not in bare["samples"] and "best model" in bare["memorised"]  # the shares of quotations stay
    first = runs.split()[0]
    assert f"without samples and text of the dataset: tinygpt report {first} --no_text\n" in outputs[0]
    assert "--no_text" not in outputs[1]
    assert f"The file has {re.search(r'[0-9.]+ MB', outputs[0])[0]}: send it" in plain["source"]  # type: ignore[index]
    for what in ("samples", "data", "quotations"):
        assert what in outputs[0].partition("contains: ")[2] and what not in outputs[1].partition("contains: ")[2], what
    assert all("a model can reproduce text that it has memorised" in out for out in outputs)


@pytest.mark.slow
def test_a_page_lists_what_it_contains_with_amounts(private: Path, tmp_path: Path) -> None:
    result = ok(private, "report", "text", "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    data = json.loads(readings(page)["JSON"])
    weights = sum(int(np.prod(tensor["shape"])) for tensor in data["models"][0]["packed"]["tensors"].values())
    lines = map(json.loads, (private / "text/metrics.jsonl").read_text().splitlines())
    samples = [line["prompt"] + line["text"] for line in lines if line["kind"] == "sample"]
    opening = re.search(r'<textarea id="text"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)
    quoted = [int(length) for length in re.findall(r"<span>(\d+) characters, best model", page)]
    assert opening and quoted and len(samples) == 3
    contents = re.search(r"^contains: (.*)$", result.out, re.MULTILINE)
    assert contents and f"This file contains: {contents[1]}. Whoever has" in html.unescape(page)
    found = re.fullmatch(
        rf"all weights of the model \({weights:,} parameters\), "
        rf"the vocabulary \({len(data['models'][0]['packed']['vocabulary'])} tokens\), "
        r"the run's settings, column and file names, checksums and versions, the losses of 1 run, "
        r"3 samples \(([\d,]+) characters\), 600 characters of the training data, "
        r"600 characters of the validation data, \d\d characters of a training batch, "
        r"(\d) quotations from the training data \(([\d,]+) characters\), "
        rf"{len(html.unescape(opening[1]))} characters of text that the model generated",
        contents[1],
    )
    assert found, contents[1]
    expected = sum(map(len, samples)), len(quoted), sum(quoted)
    assert tuple(int(figure.replace(",", "")) for figure in found.groups()) == expected


@pytest.mark.parametrize("run", ["text", "pairs"])
def test_an_exported_model_contains_no_text_of_the_dataset(private: Path, tmp_path: Path, run: str) -> None:
    """Only words that the model generates, which the command says; a prompt would be text of the dataset."""
    result = ok(private, "export", f"--ckpt={private / run}", "-o", tmp_path / "m.html")
    page = (tmp_path / "m.html").read_text("utf-8")
    opening = re.search(r'<textarea id="text"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)
    assert opening
    generated = f"{len(opening[1])} characters of text that the model generated"
    assert (generated in result.out) == (run == "text") == bool(opening[1])
    assert "contains: all weights of the model (" in result.out and "--no_text" not in result.out
    assert "a model can reproduce text that it has memorised" in result.out
    assert_no_folder(private, readings(page))
    forms = readings(page.replace(opening[1], "") if opening[1] else page)
    assert not any(quotations(text) for text in forms.values())


def assert_no_folder(private: Path, page: dict[str, str]) -> None:
    for run in ("text", "pairs"):
        assert (private / run / "config.yaml").read_text().count(str(private)) >= 2  # negative control
    for text in page.values():
        assert str(private) not in text and private.parent.name not in text


@pytest.mark.slow
def test_a_page_without_the_dataset_contains_no_absolute_path(private: Path, tmp_path: Path) -> None:
    ok(tmp_path, "report", private / "text", "-o", "page.html", f"--data_dir={private}/nowhere")
    page = readings((tmp_path / "page.html").read_text("utf-8"))
    assert_no_folder(private, page)
    assert "is not prepared" in page["text"]


def test_absolute_paths_of_any_system_are_shortened() -> None:
    from tinygpt.base.files import without_folders

    settings = {
        "out_dir": "/home/jane doe/out",
        "data_dir": r"C:\Users\jane\data",
        "input": ["~x/a", "/mnt/jane/b.txt"],
    }
    assert without_folders(settings) == {"out_dir": "out", "data_dir": "data", "input": ["~x/a", "b.txt"]}
    kept = {"dataset": "bank", "ckpt": "../out/ckpt.pt", "lr": 0.1, "fast": True, "name": "C: 1", "none": None}
    assert without_folders(kept) == kept


@slowly_in_a_browser
@pytest.mark.parametrize("run", ["text", "pairs"])
def test_a_page_without_text_works(private: Path, browser: Browser, tmp_path: Path, run: str) -> None:
    ok(private, "report", run, "-o", tmp_path / "bare.html", "--no_text")
    browser.open(tmp_path / "bare.html")
    assert len(browser.all("section")) == 11 and browser.value("#text") == "" and not browser.all(".cells, #moments")
    assert np.allclose(browser.bars().sum(0), 1)
    browser.until(lambda: browser.all("#looked span"))
    if run == "pairs":
        assert browser.value("#prompt") == "" and browser.find("#prompt").get_attribute("placeholder")
        browser.type_into("#prompt", "001 pays")
    browser.click("#step")
    assert len(browser.value("#text")) == 1
    browser.assert_quiet()


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(run_copy: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install {package}" in refused(run_copy, "report", "out")


@pytest.mark.slow
def test_a_model_too_large_for_a_page(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = load(large / "out").build_model().num_params()
    assert loaded_run.LARGEST == 9_000_000
    for module in (loaded_run, packed_models):
        monkeypatch.setattr(module, "LARGEST", SMALL)
    what = f"he model has {parameters:,} parameters, and a page can hold at most {SMALL:,}"
    said = refused(large, "export", "--ckpt=out", "--format=html")
    assert f"error: t{what}\n  try: tinygpt export --format=gguf or --format=hf" in said
    page = (large / "report.html").read_text(encoding="utf-8")
    assert (
        f"T{what}, so it does not run here. "
        "Left out as well: one prediction, attention, one training step, memorised text." in page
    )
    monkeypatch.delattr(samples, "fresh")  # nothing is generated for the page of a large model
    ok(large, "report", "out", "-o", "again.html", "--no_text")
    monkeypatch.undo()
    for module in (loaded_run, packed_models):
        monkeypatch.setattr(module, "LARGEST", parameters)  # the limit itself is allowed
    assert "all weights of the model" in ok(large, "report", "out", "-o", "live.html").out
    assert 'id="memorised"' in (large / "live.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_subword_tokens_do_not_run_in_a_page(run_copy: Path) -> None:
    from tinygpt.checkpoint import store as checkpoint

    state = load(run_copy / "out")
    state.tokenizer, state.model_args["vocab_size"] = {"kind": "gpt2"}, 50304
    state.model["transformer.wte.weight"] = state.model["lm_head.weight"] = torch.zeros(50304, 16)
    checkpoint.save(run_copy / "out/ckpt.pt", state)
    said = refused(run_copy, "export")
    assert "a subword tokenizer" in said and "--format=gguf or --format=hf" in said
    result = ok(run_copy, "report", "out")
    page = (run_copy / "out/report.html").read_text(encoding="utf-8")
    assert (
        "The model has a subword tokenizer, and a page can hold only byte-level BPE with GPT-2&#39;s pattern and at "
        "most 8,192 tokens, so it does not run here. Left out as well: one prediction, attention, embedding map."
        in page
    )
    links = re.findall(r'<a href="#(\w+)"', page.partition("<nav")[2])
    sections = re.findall(r'<section id="(\w+)"', page)
    assert links.pop() == "sharing"
    assert links == sections == ["type", "curves", "samples", "loss", "memorised", "numbers"]
    contents = next(line for line in result.out.splitlines() if line.startswith("contains: "))
    assert contents.startswith(
        "contains: the run's settings, column and file names, checksums and versions, the losses of 1 run"
    )
    assert "weights" not in contents and "vocabulary" not in contents


# ---- overlap ----------------------------------------------------------------------------------------------------


def brute_force(text: str, training: str) -> list[tuple[int, int]]:
    """From each start the longest stretch that occurs in the training text, if it is not part of an earlier one."""
    found: list[tuple[int, int]] = []
    for start in range(len(text)):
        end = next((end for end in range(len(text), start, -1) if text[start:end] in training), start)
        if end - start >= SHORTEST and (not found or end > found[-1][1]):
            found.append((start, end))
    return found


def patchworks(count: int) -> Iterator[tuple[str, str]]:
    """Training texts with repetitions, and texts made of pieces of them."""
    draw = random.Random(5)
    for _ in range(count):
        training = "".join(draw.choices("ab é", k=draw.randint(0, 200))) + "abc" * draw.randint(0, 20)
        text = ""
        while len(text) < draw.randint(0, 150):
            start = draw.randrange(len(training) + 1)
            text += (
                training[start : start + draw.randint(5, 60)]
                if draw.random() < 0.7
                else "".join(draw.choices("abc", k=5))
            )
        yield training, text


def test_stretches_and_share_by_brute_force() -> None:
    shares = []
    for training, text in patchworks(120):
        looked_up = TrainingText(training)
        assert looked_up.stretches(text) == brute_force(text, training)
        windows = [text[start : start + SHORTEST] in training for start in range(len(text) - SHORTEST + 1)]
        if windows:
            shares.append(looked_up.share(text))
            assert shares[-1] == pytest.approx(sum(windows) / len(windows))
        pieces = marked(text, looked_up.stretches(text))
        assert "".join(piece for piece, _ in pieces) == text
        inside = {place for start, end in looked_up.stretches(text) for place in range(start, end)}
        assert [seen for piece, seen in pieces for _ in piece] == [place in inside for place in range(len(text))]
    assert 0 < np.mean(shares) < 1  # the texts are neither all quotation nor all new
