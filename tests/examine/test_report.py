"""The page of a run in headless Chromium without a network, what it contains, and quotations against brute force."""

import base64
import html
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_TRAIN, ok, refused
from inputs import json_lines
from pages import HOSTILE, Browser, in_a_browser, next_character, plain, slowly_in_a_browser

from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.files import without_folders
from tinygpt.checkpoint.store import load
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.examine.report import loaded_run, packed_models
from tinygpt.examine.report.embedding_map import embedding_map
from tinygpt.examine.report.overlap import SHORTEST, TrainingText, marked
from tinygpt.generate import answer


@pytest.fixture(scope="session")
def reported(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with out/, a run with a hostile sample, another run, and report.html."""
    folder = Path(shutil.copytree(tiny_data, tmp_path_factory.mktemp("reported") / "work"))
    ok(folder, *TINY_TRAIN, "--sample_interval=10")
    shutil.copytree(folder / "out", folder / "_$x_$<b>2")
    text = (folder / "text.txt").read_text()
    with open(folder / "out/metrics.jsonl", "a") as file:
        for sample in (HOSTILE, text[300:340] + "#" + text[500:525]):
            print(json.dumps({"kind": "sample", "step": 20, "seconds": 1, "text": sample, "prompt": "\n"}), file=file)
    ok(folder, "report", "out", "_$x_$<b>2", "-o", "report.html")
    return folder


@pytest.fixture
def page(reported: Path, browser: Browser) -> Iterator[Browser]:
    """The report of `reported`, opened anew; after the test, the log has no error and no request."""
    browser.open(reported / "report.html")
    yield browser
    browser.assert_quiet()


@in_a_browser
def test_the_bars_are_the_models_each_stage_sums_to_one_and_sliders_redraw_them(page: Browser, reported: Path) -> None:
    page.type_into("#text", "The king")
    before = page.bars()
    assert before.shape == (11, 2) and np.allclose(before.sum(0), 1, atol=1e-9)
    chances, cooled = (next_character(reported / "out", "The king", temperature) for temperature in (1.0, 0.8))
    symbols = [plain(button.text) for button in page.all("#bars button")]
    assert symbols == sorted(chances, key=chances.__getitem__, reverse=True)[:10]
    assert before[:10, 0] == pytest.approx([chances[symbol] for symbol in symbols], abs=2e-3)
    assert before[:10, 1] == pytest.approx([cooled[symbol] for symbol in symbols], abs=2e-3)
    page.slide("#temperature", 2)
    hot = page.bars()
    assert np.allclose(hot[:, 0], before[:, 0]) and hot[0, 1] < before[0, 1]
    page.slide("#top-k", 3)
    assert (page.bars()[:, 2] > 0).sum() == 3 and (page.bars()[:, 1] > 0).sum() == 11
    page.slide("#top-p", 0.05)
    assert page.bars()[:, 3].tolist() == [1] + [0] * 10 and np.allclose(page.bars().sum(0), 1, atol=1e-9)
    page.slide("#temperature", 0)
    assert page.bars()[0, 1] == 1


@slowly_in_a_browser
def test_continue_stop_step_branch_and_undo(page: Browser) -> None:
    page.type_into("#text", "The king")
    page.click("#continue")
    page.until(lambda: len(page.value("#text")) > 60)  # beyond the context of 16
    page.click("#stop")
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
def test_the_attention_of_a_head_and_of_a_character(page: Browser) -> None:
    page.type_into("#text", "The é")
    assert "1 character is not in the model's vocabulary" in page.find("#note").text
    page.type_into("#text", "The king")
    page.until(lambda: len(page.all("#looked span")) == 8)
    page.all("#heads button")[1].click()
    assert page.find("#which").text == "Layer 1, head 2"
    assert page.find("#looks").text.startswith("“g” attends most to ")
    page.all("#looked span")[0].send_keys("")  # focus, as with the Tab key
    assert page.find("#looks").text == "“T” attends most to “T” (itself) 100%."
    page.type_into("#text", "")
    assert np.allclose(page.bars().sum(0), 1)  # an empty box stands for the start of a line


@slowly_in_a_browser
def test_a_walk_through_a_prediction(page: Browser) -> None:
    """All seven operations by keyboard, and the last by the drawing of the model."""
    page.type_into("#text", "The king")
    page.until(lambda: page.find("#walk-said").text.startswith("1 of 7, text. The model reads 8 characters"))
    page.find("#walk-on").send_keys("")  # focus, as with the Tab key
    seen = []
    for _ in range(7):
        seen.append(page.find("#walk-said").text.partition(".")[0].split(", ")[1])
        page.run("return document.activeElement").send_keys("\ue014")  # the right arrow key
    assert seen == ["text", "tokens", "embedding", "attention", "MLP", "sum", "probabilities"]
    page.click("#parts > button:last-child")
    rows = page.run("return [...document.querySelectorAll('#walk-picture td')].map(td => Number(td.dataset.p))")
    assert rows == page.bars()[:8, 0].tolist()


@slowly_in_a_browser
def test_losses_by_pointer_and_by_keyboard(page: Browser, reported: Path) -> None:
    cells = page.all(".cells[data-split=val] span[data-i]")
    shown = page.run("return [...document.querySelectorAll('.cells[data-split=val] span')].map(s => s.textContent)")
    text = "".join(shown).replace("↵", "\n")
    assert text in (reported / "text.txt").read_text() and len(cells) == 600
    page.run("arguments[0].scrollIntoView({block: 'center'})", cells[40])
    cells[40].click()
    said = page.find("#guess").text
    found = re.match(r"(.+) had a probability of (.+)%, rank (\d+): a loss of ([\d.]+) nats\.", said)
    assert found and plain(found[1]) == text[40]
    chance, context = np.exp(-float(found[4])), text[24:40]  # the model's context is a window or half of one
    assert float(found[2].strip("<")) / 100 == pytest.approx(chance, abs=0.006)
    assert next_character(reported / "out", context)[text[40]] == pytest.approx(chance, abs=0.1)
    cells[40].send_keys("\ue014")  # the right arrow key
    assert page.run("return document.activeElement.dataset.i") == "41"


@in_a_browser
def test_samples_slide_quotations_are_underlined_and_names_are_shown_as_text(page: Browser, reported: Path) -> None:
    figures = page.all("#moments figure")
    assert [figure.is_displayed() for figure in figures] == [False] * 4 + [True]
    text = (reported / "text.txt").read_text()
    assert [quoted.text for quoted in figures[-1].find_elements("css selector", "u")] == [text[300:340], text[500:525]]
    page.slide("#when", 3)
    assert HOSTILE in page.find("#moments").text and page.find("#when-step").text == "20"
    assert page.driver.title == "Tiny · tinygpt" and page.find("h1").text == "Tiny"
    assert "validation (_$x_$<b>2)" in page.run("return document.querySelector('.plot.wide').textContent")
    assert page.all("img") == [] and len(page.all("script")) == 2
    assert not page.find(".step-slider").is_displayed()  # a run without snapshots
    page.script.resize(page.driver, 390)  # a phone
    assert page.run("return document.documentElement.scrollWidth") == 390
    assert not page.find(".plot.wide").is_displayed() and page.find(".plot.narrow").is_displayed()


@slowly_in_a_browser
def test_a_model_that_answers_and_its_base(tuned: Path, browser: Browser, tmp_path: Path) -> None:
    """A fine-tuned model reads prompt and response, its base model the same as text."""
    ok(tuned, "report", "out-lora", "out", "-o", tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    code = "return [...document.querySelectorAll('[data-split=val] span')].map(s => [s.textContent, s.className])"
    line = browser.run(code)
    asked = line.index(["response", "special"])
    prompt = line[1:asked]
    assert line[0] == ["prompt", "special"] and all(kind == "silent" for _, kind in prompt)
    assert browser.value("#prompt") == "".join(text for text, _ in prompt)
    browser.slide("#temperature", 0)
    browser.click("#continue")
    browser.until(lambda: browser.find("#continue").is_enabled())
    state = load(tuned / "out-lora")
    tokenizer: Any = tokenizer_from_dict(state.tokenizer, "")
    model = state.build_model().eval()
    assert browser.value("#text") == answer(model, tokenizer, browser.value("#prompt"))
    browser.type_into("#compare-prompt", "003 red")
    browser.type_into("#compare-text", "r")
    ids = torch.tensor([[*tokenizer.encode_prompt("003 red").tolist(), *tokenizer.encode("r").tolist()]])
    with torch.no_grad():
        after = dict(zip(tokenizer.symbols, model(ids)[0][0, -1].softmax(-1).tolist(), strict=True))
    before = next_character(tuned / "out", " red\nr")  # the base model knows no digits
    for token, row in browser.chances("compare-bars").items():
        full = token if token in after else f"<|{token}|>"
        assert row == pytest.approx([before.get(token, 0.0), after[full]], abs=3e-3)
    assert "not in its vocabulary" in browser.find("#compare-note").text
    browser.assert_quiet()


@slowly_in_a_browser
def test_the_page_of_a_model_alone(reported: Path, browser: Browser, tmp_path: Path) -> None:
    ok(reported, "export", "--ckpt=out/ckpt.pt", "--title=<b>Mine", f"--output={tmp_path / 'model.html'}")
    browser.open(tmp_path / "model.html", motion=True)  # it begins to write
    assert browser.find("h1").text == "<b>Mine" and browser.driver.title == "<b>Mine · tinygpt"
    sections = [section.get_attribute("id") for section in browser.all("section")]
    assert sections == ["type", "walk", "attention", "tokens"]
    browser.until(lambda: len(browser.value("#text")) > 70)  # the opening has at most 60 characters
    browser.click("#stop")
    browser.until(lambda: browser.find("#walk-said").text.startswith("1 of 7"))
    assert np.allclose(browser.bars().sum(0), 1)
    browser.assert_quiet()


def test_the_page_is_one_file_that_forbids_requests_with_the_losses_of_eval(reported: Path) -> None:
    """It lists all parts of the model; `train` counts the parameters without the position embeddings."""
    text = (reported / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; script-src 'sha256-") and "eval" not in policy[1]
    assert not re.search(r"""<[^>]*\s(src|href)=(?!["']?(#|data:,))""", text)
    assert HOSTILE not in text and "</script><script>" not in text.partition('id="data"')[2].partition("</script>")[0]
    sections = ["type", "walk", "attention", "curves", "samples", "compare", "loss", "one-step", "tokens"]
    assert re.findall(r'<section id="([\w-]+)"', text) == [*sections, "memorised", "numbers"]
    found = json.loads(ok(reported, "eval", "--ckpt=out", "--dtype=float32", "--json").out)
    rows = dict(re.findall(r'<th scope="row">(\w[\w ]*)</th><td>(\d\.\d{3})[ <]', text))
    expected = {**found["baselines"], "this model": found["loss"]}
    assert rows == {name: f"{loss:.3f}" for name, loss in expected.items()}
    model = load(reported / "out").build_model()
    total, shown = sum(weight.numel() for weight in model.parameters()), model.num_params()
    assert total > shown and f"{total:,} parameters, {shown:,} without the position embeddings, in " in text


def test_the_map_of_the_tokens_is_that_of_scikit_learn(tiny_run: Path) -> None:
    from sklearn.decomposition import PCA

    run = loaded_run.LoadedRun(str(tiny_run / "out"), ReportConfig(data_dir=str(tiny_run / "data")))
    found = embedding_map(run)
    analysis = PCA(2, svd_solver="full")
    places = analysis.fit_transform(run.model.transformer["wte"].weight[: len(found["points"])].detach().numpy())
    assert found["explained"] == pytest.approx(analysis.explained_variance_ratio_.tolist(), rel=1e-4)
    drawn = np.array([(point["x"], point["y"]) for point in found["points"]])
    ranges = np.ptp(drawn, axis=0) / np.ptp(places, axis=0)
    assert ranges[0] == pytest.approx(ranges[1], rel=1e-3)  # one scale for both axes


def test_without_dataset_or_samples_the_page_names_what_is_missing(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "out", tmp_path / "out")
    ok(tmp_path, "report", "out")
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert text.count("is not prepared") >= 3 and 'id="heads"' in text and 'class="plot wide"' in text
    assert "there is no passage to show" in text and "--sample_interval=500" in text


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
    json_lines(folder, [{"prompt": f"{n:03} pays {CANARY}", "response": CANARY} for n in range(200)], "bank.jsonl")
    place, base = f"--data_dir={folder / 'data'}", f"--ckpt={folder / 'text/ckpt.pt'}"
    ok(folder, "prepare", "bank", f"--input={folder / 'bank.txt'}", place)
    ok(folder, "prepare", "payments", f"--input={folder / 'bank.jsonl'}", "--format=pairs", place)
    ok(folder, "train", "--dataset=bank", f"--out_dir={folder / 'text'}", place, *MODEL, *STEPS)
    ok(folder, "finetune", "--dataset=payments", f"--out_dir={folder / 'pairs'}", place, base, *STEPS)
    for run, prompt in (("text", "Pay"), ("pairs", f"000 pays {CANARY}")):  # the weights do reproduce the text
        said = ok(folder, "sample", f"--ckpt={run}", f"--start={prompt}", "--temperature=0").out
        assert said.count(CANARY) > prompt.count(CANARY), said
    return folder


def quotations(text: str) -> set[str]:
    """Pieces of the canary of 10 characters in a text, without white space."""
    canary, text = "".join(CANARY.split()), "".join(text.split())
    return {piece for start in range(len(canary) - 9) if (piece := canary[start : start + 10]) in text}


def visible(source: str) -> str:
    return html.unescape(re.sub("<[^>]*>", "", source))


def readings(page: str, private: Path) -> dict[str, str]:
    """The text of a page in each form that it has there: by section, as HTML, as JSON, as base64. None has the folder
    where the runs were made, which their settings have."""
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data = json.loads(found[1])
    body = page.partition("<body")[2].partition(found[0])[0]
    encoded = re.findall(r"[A-Za-z0-9+/]{40,}={0,2}", page)
    forms = {part.partition('"')[0]: visible(part) for part in body.split('<section id="')[1:]} | {
        "source": page,
        "text": visible(body),
        "JSON": json.dumps(data, ensure_ascii=False),
        "predictions": "".join(top[0][0] for passage in data["cells"].values() for *_, top in filter(None, passage)),
        "base64": "".join(base64.b64decode(part[: len(part) // 4 * 4]).decode("latin-1") for part in encoded),
    }
    for run in ("text", "pairs"):
        assert (private / run / "config.yaml").read_text().count(str(private)) >= 2  # negative control
    assert not any(str(private) in text or private.parent.name in text for text in forms.values())
    return forms


def test_no_text_leaves_out_the_text_of_the_dataset(private: Path, tmp_path: Path) -> None:
    """And a page contains no absolute path."""
    pages, outputs, path = [], [], tmp_path / "page.html"
    for flags in ([], ["--no_text"]):
        result = ok(private, "report", private / "text", private / "pairs", "-o", path, *flags)
        pages.append(readings(path.read_text("utf-8"), private))
        outputs.append(result.out)
    plain, bare = pages
    for form in ("samples", "type", "loss", "memorised", "source", "text", "predictions"):
        assert len(quotations(plain[form])) > 5, form  # negative control: the search finds it in each form
    assert {form: quotations(text) for form, text in bare.items() if quotations(text)} == {}
    assert json.loads(bare["JSON"])["models"] == json.loads(plain["JSON"])["models"]
    assert all("left out: this page was made with --no_text." in bare[one] for one in ("samples", "loss", "memorised"))
    assert "best model" in bare["memorised"]  # the shares of quotations stay
    for what in ("samples", "data", "quotations"):
        assert what in outputs[0].partition("contains: ")[2] and what not in outputs[1].partition("contains: ")[2], what
    assert all("a model can reproduce text that it has memorised" in out for out in outputs)


@pytest.mark.parametrize("run", ["text", "pairs"])
def test_an_exported_model_contains_no_text_of_the_dataset(private: Path, tmp_path: Path, run: str) -> None:
    """Only words that the model generates; a prompt would be text of the dataset."""
    ok(private, "export", f"--ckpt={private / run}", "-o", tmp_path / "m.html")
    page = (tmp_path / "m.html").read_text("utf-8")
    opening = re.search(r'<textarea id="text"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)
    assert opening
    assert (run == "text") == bool(opening[1])
    forms = readings(page.replace(opening[1], "") if opening[1] else page, private)
    assert not any(quotations(text) for text in forms.values())


def test_absolute_paths_of_any_system_are_shortened() -> None:
    paths = {"out_dir": "/home/jane doe/out", "data_dir": r"C:\Users\jane\data", "input": ["~x/a", "/mnt/b.txt"]}
    assert without_folders(paths) == {"out_dir": "out", "data_dir": "data", "input": ["~x/a", "b.txt"]}
    kept = {"ckpt": "../out/ckpt.pt", "lr": 0.1, "name": "C: 1", "none": None}
    assert without_folders(kept) == kept


@slowly_in_a_browser
def test_a_page_without_text_works(private: Path, browser: Browser, tmp_path: Path) -> None:
    ok(private, "report", "pairs", "-o", tmp_path / "bare.html", "--no_text")
    browser.open(tmp_path / "bare.html")
    assert len(browser.all("section")) == 11 and browser.value("#text") == "" and not browser.all(".cells, #moments")
    assert browser.value("#prompt") == "" and browser.find("#prompt").get_attribute("placeholder")
    browser.type_into("#prompt", "001 pays")
    browser.click("#step")
    assert len(browser.value("#text")) == 1 and np.allclose(browser.bars().sum(0), 1)
    browser.assert_quiet()


@pytest.mark.slow
def test_a_model_too_large_for_a_page(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = load(run_copy / "out").build_model().num_params()
    for module in (loaded_run, packed_models):
        monkeypatch.setattr(module, "LARGEST", parameters - 1)
    what = f"he model has {parameters:,} parameters, and a page can hold at most {parameters - 1:,}"
    assert "all weights" not in ok(run_copy, "report", "out").out
    assert f"T{what}, so it does not run here." in (run_copy / "out/report.html").read_text(encoding="utf-8")
    assert f"error: t{what}\n" in refused(run_copy, "export", "--ckpt=out", "--format=html")


def brute_force(text: str, training: str) -> list[tuple[int, int]]:
    """From each start the longest stretch that occurs in the training text, if it is not part of an earlier one."""
    found = [(0, 0)]
    for start in range(len(text)):
        end = next((end for end in range(len(text), start, -1) if text[start:end] in training), start)
        if end - start >= SHORTEST and end > found[-1][1]:
            found.append((start, end))
    return found[1:]


def test_stretches_and_share_by_brute_force() -> None:
    """Of training texts with repetitions, and texts made of pieces of them."""
    shares, draw = [], random.Random(5)
    for _ in range(100):
        training = "".join(draw.choices("ab é", k=draw.randint(0, 200))) + "abc" * draw.randint(0, 20)
        text = ""
        while len(text) < draw.randint(0, 150):
            start = draw.randrange(len(training) + 1)
            quoted = training[start : start + draw.randint(5, 60)]
            text += quoted if draw.random() < 0.7 else "".join(draw.choices("abc", k=5))
        looked_up, expected = TrainingText(training), brute_force(text, training)
        assert looked_up.stretches(text) == expected
        windows = [text[start : start + SHORTEST] in training for start in range(len(text) - SHORTEST + 1)]
        if windows:
            assert looked_up.share(text) == pytest.approx(np.mean(windows))
            shares.append(np.mean(windows))
        pieces = marked(text, expected)
        assert "".join(piece for piece, _ in pieces) == text
        inside = {place for start, end in expected for place in range(start, end)}
        assert [seen for piece, seen in pieces for _ in piece] == [place in inside for place in range(len(text))]
    assert 0 < np.mean(shares) < 1  # the texts are neither all quotation nor all new
