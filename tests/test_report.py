"""The page of a run, used in headless Chromium with the network off; what it says of a text, against brute force."""

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_TRAIN, cli_here, listing
from test_finetune import tuned  # noqa: F401 (a fixture)

from tinygpt.checkpoint.store import load
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.report.overlap import SHORTEST, Training, marked

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
ROOT = Path(__file__).parent.parent
in_a_browser = pytest.mark.skipif(
    shutil.which("chromium") is None and "CI" not in os.environ,
    reason="chromium and chromium-driver are not installed here",
)


@pytest.fixture(scope="session")
def reported(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with out/, a run of a hostile name and with a hostile sample, another one, and report.html."""
    folder = Path(shutil.copytree(tiny_data, tmp_path_factory.mktemp("reported") / "work"))
    flags = ["--sample_interval=10", f"--wandb_run_name={HOSTILE}"]
    assert cli_here(*TINY_TRAIN, *flags, cwd=folder).status == 0
    shutil.copytree(folder / "out", folder / "_$x_$<b>2")
    text = tiny_text(folder)
    with open(folder / "out/metrics.jsonl", "a") as file:
        quoted = text[300:340] + "#" + text[500:525]
        for sample in (HOSTILE, quoted):
            print(json.dumps({"kind": "sample", "step": 20, "seconds": 1, "text": sample, "prompt": "\n"}), file=file)
    result = cli_here("report", "out", "_$x_$<b>2", "-o", "report.html", cwd=folder)
    assert result.status == 0, result.err
    assert re.search(r"^written: report\.html, 0\.\d MB", result.out)
    return folder


def tiny_text(folder: Path) -> str:
    return (folder / "text.txt").read_text()


# ---- in a browser -----------------------------------------------------------------------------------------------


class Browser:
    """Headless Chromium without a network, and what it logs."""

    def __init__(self, profile: Path) -> None:
        spec = importlib.util.spec_from_file_location("screenshot", ROOT / "scripts/screenshot.py")
        assert spec and spec.loader
        self.script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.script)
        self.driver = self.script.chromium(profile)

    def open(self, page: Path, width: int = 1280) -> None:
        self.script.resize(self.driver, width)
        self.driver.get(page.as_uri())

    def run(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def value(self, selector: str) -> str:
        return self.find(selector).get_property("value")

    def until(self, condition: Callable[[], Any]) -> Any:
        for _ in range(200):
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError("waited 10 seconds in vain")

    def requests(self) -> list[str]:
        """What a page from disk asked for since the last call, but for itself and what is inside it."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        urls = [one["request"]["url"] for one in sent if one["documentURL"].startswith("file:")]
        assert any(url.endswith(".html") for url in urls)  # the log does hold what is asked for
        return [url for url in urls if not url.startswith("data:") and not url.endswith(".html")]

    def bars(self) -> np.ndarray:
        """Probabilities in the table: (characters and the rest, stages)."""
        rows = self.run(
            "return [...document.querySelectorAll('#bars tbody tr')].map(r => "
            "[...r.querySelectorAll('td')].map(c => Number(c.dataset.p)))"
        )
        return np.array(rows)

    def slide(self, selector: str, value: float) -> None:
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true}))",
            selector,
            value,
        )


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def page(reported: Path, browser: Browser) -> Iterator[Browser]:
    """The report of `reported`, opened anew; after the test, nothing was logged or asked for."""
    browser.open(reported / "report.html")
    yield browser
    assert browser.driver.get_log("browser") == []
    assert browser.requests() == []


def model_probabilities(folder: Path, text: str, temperature: float = 1.0) -> dict[str, float]:
    checkpoint = load(folder / "out")
    tokenizer = tokenizer_from_dict(checkpoint.tokenizer, "")
    model = checkpoint.build_model().eval()
    ids = torch.from_numpy(tokenizer.encode(text)[-16:].astype(np.int64))[None]
    with torch.no_grad():
        chances = (model(ids)[0][0, -1] / temperature).softmax(-1).tolist()
    return dict(zip(tokenizer.symbols, chances, strict=True))  # type: ignore[union-attr]


def type_into(page: Browser, text: str) -> None:
    box = page.find("#text")
    box.clear()
    box.send_keys(text)


@in_a_browser
def test_the_bars_are_the_models_and_each_stage_sums_to_one(page: Browser, reported: Path) -> None:
    type_into(page, "The king")
    stages = page.bars()
    assert stages.shape == (11, 5) and np.allclose(stages.sum(0), 1, atol=1e-9)
    chances = model_probabilities(reported, "The king")
    symbols = [{"␣": " ", "↵": "\n"}.get(b.text, b.text) for b in page.all("#bars button")]
    assert stages[:10, 0] == pytest.approx([chances[symbol] for symbol in symbols], abs=2e-3)
    assert symbols == sorted(chances, key=chances.__getitem__, reverse=True)[:10] or len(set(stages[:10, 0])) == 10
    cooled = model_probabilities(reported, "The king", 0.8)
    assert stages[:10, 1] == pytest.approx([cooled[symbol] for symbol in symbols], abs=2e-3)


@in_a_browser
def test_sliders_redraw_the_stages_at_once(page: Browser) -> None:
    type_into(page, "The king")
    before = page.bars()
    page.slide("#temperature", 2)
    hot = page.bars()
    assert np.allclose(hot[:, 0], before[:, 0]) and hot[0, 1] < before[0, 1]
    page.slide("#top-k", 3)
    assert (page.bars()[:, 2] > 0).sum() == 3 and (page.bars()[:, 1] > 0).sum() == 11
    page.slide("#top-p", 0.05)
    assert page.bars()[:, 3].tolist() == page.bars()[:, 4].tolist() == [1] + [0] * 10
    assert np.allclose(page.bars().sum(0), 1, atol=1e-9)
    page.slide("#temperature", 0)
    assert page.bars()[0, 1] == 1
    shown = [page.find(f"#{name} + output").text for name in ("temperature", "top-k", "top-p")]
    assert shown == ["0.00", "3", "0.05"]


@in_a_browser
def test_continue_stop_step_branch_and_back(page: Browser) -> None:
    type_into(page, "The king")
    page.click("#continue")
    page.until(lambda: len(page.value("#text")) > 60)  # beyond the context of 16
    page.click("#stop")
    page.until(lambda: page.find("#continue").is_enabled())
    written = page.value("#text")
    assert written.startswith("The king") and re.fullmatch(r"\d+ characters per second", page.find("#speed").text)
    page.click("#step")
    assert len(page.value("#text")) == len(written) + 1
    page.run("const box = document.querySelector('#text'); box.focus(); box.setSelectionRange(20, 20); box.click()")
    assert "place of the cursor" in page.find("#note").text
    other = page.all("#bars button")[3]
    symbol = {"␣": " ", "↵": "\n"}.get(other.text, other.text)
    other.click()
    assert page.value("#text") == written[:20] + symbol
    page.click("#back")
    assert page.value("#text")[: len(written)] == written
    page.click("#back")
    page.click("#back")
    assert page.value("#text") == "The king" and not page.find("#back").is_enabled()


@in_a_browser
def test_a_head_is_chosen_and_a_character_looked_from(page: Browser) -> None:
    type_into(page, "The king")
    page.until(lambda: len(page.all("#looked span")) == 8)
    first, second = page.all("#heads button")
    assert (first.get_attribute("aria-pressed"), second.get_attribute("aria-pressed")) == ("true", "false")
    second.click()
    assert second.get_attribute("aria-pressed") == "true" and page.find("#which").text == "Layer 1, head 2"
    assert page.find("#looks").text.startswith("“g” looks mostly at ")
    page.all("#looked span")[0].send_keys("")  # the keyboard's way: focus
    assert page.find("#looks").text == "“T” looks mostly at “T” (itself) 100 %."
    weights = page.run(
        "return [...document.querySelectorAll('#looked span')].map(s => s.style.getPropertyValue('--a'))"
    )
    assert [float(weight) for weight in weights] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert "not an explanation" in page.find("#attention").text


@in_a_browser
def test_ids_and_unknown_characters(page: Browser, reported: Path) -> None:
    type_into(page, "The é")
    page.until(lambda: len(page.all("#ids li")) == 5)
    ids = [item.text.split("\n")[1] for item in page.all("#ids li")]
    tokenizer = tokenizer_from_dict(load(reported / "out").tokenizer, "")
    assert ids == [*map(str, tokenizer.encode("The ").tolist()), "none"]
    assert page.find("#unknown").text == "Not in the model's vocabulary: é (U+00E9). Left out."
    assert "1 character that the model does not know" in page.find("#note").text
    type_into(page, "")
    assert np.allclose(page.bars().sum(0), 1)  # an empty box stands for a line's start


@in_a_browser
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
    chances = model_probabilities(reported, text[24:40])  # a window's worth before it, or half of that
    found = re.match(
        r"(.+) had a probability of (.+) %, rank (\d+): a loss of ([\d.]+) nats\.", page.find("#guess").text
    )
    assert found and found[1] == {" ": "␣", "\n": "↵"}.get(text[40], text[40])
    assert float(found[2].strip("<")) / 100 == pytest.approx(np.exp(-float(found[4])), abs=0.006)
    assert chances[text[40]] == pytest.approx(np.exp(-float(found[4])), abs=0.1)
    cells[40].click()
    cells[40].send_keys(Keys.ARROW_RIGHT)
    assert page.run("return document.activeElement.dataset.i") == "41"
    assert len(page.all(".cells .at")) == 1 and len(page.find("#guess").text.split("Most probable:")[1].split("%")) == 6


@in_a_browser
def test_samples_slide_and_quotations_are_underlined(page: Browser, reported: Path) -> None:
    figures = page.all("#moments figure")
    assert len(figures) == 5 and [figure.is_displayed() for figure in figures] == [False] * 4 + [True]
    text = tiny_text(reported)
    underlined = page.run(
        "return [...document.querySelectorAll('#moments figure:last-child u')].map(u => u.textContent)"
    )
    assert underlined == [text[300:340], text[500:525]]
    page.slide("#when", 0)
    assert figures[0].is_displayed() and page.find("#when-step").text == "0"


@in_a_browser
def test_what_a_stranger_wrote_stays_text(page: Browser) -> None:
    page.slide("#when", 3)
    assert HOSTILE in page.find("#moments").text
    assert HOSTILE in page.find("h1").text and page.driver.title.endswith("· tinygpt")
    assert "validation (_$x_$<b>2)" in page.run("return document.querySelector('.plot.wide').textContent")
    assert page.all("img") == [] and len(page.all("script")) == 2


@in_a_browser
def test_the_page_fits_a_phone(reported: Path, browser: Browser) -> None:
    browser.open(reported / "report.html", width=390)
    assert browser.run("return document.documentElement.scrollWidth") == 390
    assert not browser.find(".plot.wide").is_displayed() and browser.find(".plot.narrow").is_displayed()


@in_a_browser
@pytest.mark.parametrize("run", ["out-finetune", "out-lora"])
def test_a_model_that_answers(tuned: Path, browser: Browser, tmp_path: Path, run: str) -> None:  # noqa: F811
    result = cli_here("report", run, "-o", tmp_path / "tuned.html", cwd=tuned)
    assert result.status == 0, result.err
    browser.open(tmp_path / "tuned.html")
    line = browser.run(
        "return [...document.querySelectorAll('.cells[data-split=val] span')].map(s => [s.textContent, "
        "s.className, s.style.getPropertyValue('--l')])"
    )
    first = line[: next(i for i, (text, _, _) in enumerate(line) if text == "end") + 1]
    asked = first.index(["response", "mark", ""])
    assert first[0] == ["prompt", "mark", ""] and all(kind == "silent" and not loss for _, kind, loss in first[1:asked])
    assert all(loss for _, _, loss in first[asked + 1 :])
    assert browser.value("#prompt") == "".join(text for text, _, _ in first[1:asked])
    browser.slide("#temperature", 0)
    browser.click("#continue")
    browser.until(lambda: browser.find("#continue").is_enabled())
    from tinygpt.sample import answer

    checkpoint = load(tuned / run)
    expected = answer(
        checkpoint.build_model().eval(), tokenizer_from_dict(checkpoint.tokenizer, ""), browser.value("#prompt")
    )
    assert browser.value("#text") == expected
    assert browser.driver.get_log("browser") == [] and browser.requests() == []


@in_a_browser
def test_the_page_of_a_model_alone(reported: Path, browser: Browser, tmp_path: Path) -> None:
    result = cli_here(
        "export", "--ckpt=out/ckpt.pt", "--format=html", f"--output={tmp_path / 'model.html'}", cwd=reported
    )
    assert result.status == 0, result.err
    browser.open(tmp_path / "model.html")
    assert [section.get_attribute("id") for section in browser.all("section")] == ["type", "attention", "numbers"]
    browser.click("#step")
    assert np.allclose(browser.bars().sum(0), 1)
    text = (tmp_path / "model.html").read_text()
    assert "out_dir" not in text and str(reported) not in text  # nothing of the machine it was made on
    assert browser.driver.get_log("browser") == [] and browser.requests() == []


# ---- what a page holds ------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_forbids_requests(reported: Path) -> None:
    text = (reported / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; script-src 'sha256-") and "eval" not in policy[1]
    assert not re.search(r"""<[^>]*\s(src|href)=(?!["']?(#|data:,))""", text)
    assert HOSTILE not in text and "</script><script>" not in text.partition('id="data"')[2].partition("</script>")[0]
    sections = ["summary", "curves", "samples", "type", "attention", "loss", "numbers", "memorised", "reproduce"]
    assert re.findall(r'<section id="(\w+)"', text) == sections
    assert text.count("How to read it.") >= 9


def test_the_whole_split_and_its_guesses_by_counting(reported: Path) -> None:
    found = json.loads(cli_here("eval", "--ckpt=out", "--dtype=float32", "--json", cwd=reported).out)
    text = (reported / "report.html").read_text(encoding="utf-8")
    rows = dict(re.findall(r'<th scope="row">(\w[\w ]*)</th><td>(\d\.\d{3})[ <]', text))
    expected = {**found["baselines"], "this model": found["loss"]}
    assert rows == {name: f"{loss:.3f}" for name, loss in expected.items()}


def test_parameters_are_counted_with_and_without_the_position_embeddings(reported: Path) -> None:
    """The report lists all parts of the model; `train` counts parameters without the position embeddings."""
    model = load(reported / "out").build_model()
    total, shown = sum(weight.numel() for weight in model.parameters()), model.num_params()
    assert total > shown
    page = (reported / "report.html").read_text(encoding="utf-8")
    assert f"{total:,} parameters, {shown:,} without the position embeddings, in " in page


def test_without_the_dataset_the_rest_is_shown_and_what_is_missing_is_said(reported: Path, tmp_path: Path) -> None:
    shutil.copytree(reported / "out", tmp_path / "out")
    result = cli_here("report", "out", cwd=tmp_path)
    assert result.status == 0, result.err
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert text.count("is not prepared") >= 3 and 'id="heads"' in text and 'class="plot wide"' in text
    assert "there is no passage to show" in text and "there is nothing to compare with" in text


def test_without_samples_it_says_how_to_get_some(tiny_run: Path, tmp_path: Path) -> None:
    assert cli_here("report", "out", f"--output={tmp_path / 'r.html'}", cwd=tiny_run).status == 0
    assert "--sample_interval=500" in (tmp_path / "r.html").read_text(encoding="utf-8")


# ---- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["report", "nowhere"], "nowhere/metrics.jsonl: no such file"),
        (["report", "data"], "data/metrics.jsonl: no such file"),
        (["report", "bare"], "bare/ckpt.pt: no such file"),
        (["report", "out", "data"], "data/metrics.jsonl: no such file"),
        (["report", *["out"] * 7], "7 runs over each other"),
        (["report", "out", "-o", "no/where.html"], "no: no such folder"),
        (["report", "out", "-o", "data"], "data: is a folder"),
        (["report", "out", "-o"], "--output needs a value"),
        (["export", "--ckpt=bare"], "bare/ckpt.pt: no such file"),
        (["export", "--format=pdf"], "pdf"),
        (["export", "-o", "no/where.html"], "no: no such folder"),
        (["doctor", "nowhere"], "nowhere/metrics.jsonl: no such file"),
        (["doctor", "data"], "data/metrics.jsonl: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_sentence_and_write_nothing(run_copy: Path, args: list[str], message: str) -> None:
    (run_copy / "bare").mkdir()
    shutil.copy(run_copy / "out/metrics.jsonl", run_copy / "bare")
    before = listing(run_copy)
    result = cli_here(*args, cwd=run_copy)
    assert result.status == 2 and message in result.err and "\n  try: " in result.err and result.out == ""
    assert listing(run_copy) == before


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(run_copy: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    before = listing(run_copy)
    result = cli_here("report", "out", cwd=run_copy)
    assert result.status == 2 and package in result.err and f"pip install {package}" in result.err
    assert listing(run_copy) == before


def test_gpt2s_tokens_do_not_run_in_a_page(run_copy: Path) -> None:
    from tinygpt.checkpoint import store as checkpoint

    state = load(run_copy / "out")
    state.tokenizer, state.model_args["vocab_size"] = {"kind": "gpt2"}, 50304
    state.model["transformer.wte.weight"] = state.model["lm_head.weight"] = torch.zeros(50304, 16)
    checkpoint.save(run_copy / "out/ckpt.pt", state)
    before = listing(run_copy)
    result = cli_here("export", cwd=run_copy)
    assert result.status == 2 and "GPT-2's tokens" in result.err and listing(run_copy) == before
    assert cli_here("report", "out", cwd=run_copy).status == 0
    assert "GPT-2&#39;s tokens, so it does not run here" in (run_copy / "out/report.html").read_text(encoding="utf-8")


def test_help_imports_neither_torch_nor_jinja() -> None:
    for command in ("report", "export", "doctor"):
        code = "import sys, contextlib\nfrom tinygpt.cli import main\n"
        code += f"with contextlib.suppress(SystemExit): main(['{command}', '--help'])\n"
        code += "sys.exit('torch' in sys.modules or 'jinja2' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# ---- overlap ----------------------------------------------------------------------------------------------------


def brute_force(text: str, training: str) -> list[tuple[int, int]]:
    """From each start the longest stretch that stands in the training text, if it is not part of an earlier one."""
    found: list[tuple[int, int]] = []
    for start in range(len(text)):
        end = next((end for end in range(len(text), start, -1) if text[start:end] in training), start)
        if end - start >= SHORTEST and (not found or end > found[-1][1]):
            found.append((start, end))
    return found


def patchworks(count: int) -> Iterator[tuple[str, str]]:
    """Training texts that repeat themselves, and texts sewn from pieces of them."""
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
    for training, text in patchworks(300):
        looked_up = Training(training)
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


def test_a_long_training_text_is_hashed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import tinygpt.report.overlap as overlap

    whole = [(Training(training).share(text), Training(training).stretches(text)) for training, text in patchworks(40)]
    monkeypatch.setattr(overlap, "CHUNK", 7)
    parts = [(Training(training).share(text), Training(training).stretches(text)) for training, text in patchworks(40)]
    assert repr(whole) == repr(parts)


def test_hashes_that_agree_by_accident_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import tinygpt.report.overlap as overlap

    monkeypatch.setattr(overlap, "BASE", np.uint64(0))  # the last character of a window alone
    for training, text in patchworks(40):
        assert Training(training).stretches(text) == brute_force(text, training)
