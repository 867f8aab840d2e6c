"""The chat page in headless Chromium, with `tinygpt serve`; the API itself says what the page has to show."""

import contextlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_TRAIN, free_port, ok, tiny_text, until
from inputs import json_lines
from pages import Browser, in_a_browser
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.support.select import Select
from serving import Server, serving, serving_here

from tinygpt.use.serve.command import QUESTIONS

pytest.importorskip("uvicorn")
pytestmark = in_a_browser

KEY = "0123456789abcdef"
HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
DOCUMENT = (
    "# AUG Foods\n\n🐳 🐳 <b>Costs</b> rose. Chief executive of AUG Foods: Lin Nax. Hana Jipel is the CFO of AUG "
    "Foods.\n\n# Norvik\n\nNorvik makes toys. The head office of Norvik is in Chipikville.\n"
)
CONTEXT = 32
ENDLESS = 1_000_000  # tokens
TRAIN = [*TINY_TRAIN, "--n_embd=32", f"--block_size={CONTEXT}", "--dropout=0", "--batch_size=8", "--eval_interval=200"]
TRAIN += ["--max_iters=200", "--lr_decay_iters=200"]
TUNE = ["--ckpt=out", "--dataset=colours", "--device=cpu", "--dtype=float32", "--compile=False", "--quiet"]
TUNE += ["--max_iters=1", "--eval_interval=1", "--lora_rank=2"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves with a key: out, which continues text; <b>lora</b>, which answers one prompt; documents."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "text.txt").write_text("".join(f"{line}{HOSTILE}\n" for line in tiny_text(300).splitlines(True)))
    names = ["red", "green", "blue"]
    json_lines(folder, [{"prompt": f"{n:03} {names[n % 3]}", "response": names[n % 3]} for n in range(60)])
    (folder / "docs").mkdir()
    (folder / "docs/<i>.md").write_text(DOCUMENT, encoding="utf-8")
    (folder / "key.txt").write_text(KEY)
    for command in (
        ["prepare", "tiny", "--input=text.txt"],
        TRAIN,
        ["prepare", "colours", "--input=pairs.jsonl", "--format=pairs"],
        ["finetune", *TUNE, "--out_dir=out-lora"],
        ["ask", "Who?", "docs", "--index=index.db", "--embeddings=none"],
    ):
        ok(folder, *command)
    flags = ["--ckpt=out", "--adapter=<b>lora</b>=out-lora", "--index=index.db", "--api_key=key.txt"]
    flags += [f"--max_tokens={ENDLESS}"]
    with serving_here(folder, *flags, key=KEY) as server:
        yield server
        assert server.errors.getvalue() == ""


IN_PIECES = """
const whole = window.fetch;
const transform = (chunk, out) => {
  for (let at = 0; at < chunk.length; at += 50) out.enqueue(chunk.slice(at, at + 50));
};
window.fetch = async (...request) => {
  const response = await whole(...request);
  return new Response(response.body.pipeThrough(new TransformStream({transform})), response);
};
"""  # a network divides a response anywhere


class Page(Browser):
    """The chat page, and what it logs."""

    def __init__(self, profile: Path) -> None:
        super().__init__(profile, local=True)
        self.known: list[dict[str, Any]] = []
        self.refused: list[int] = []  # HTTP statuses that a test expects, which Chromium logs as errors

    def visit(self, server: Server, key: str = KEY, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.script.resize(self.driver, width, dark, height=height)
        self.refused, self.known = [], []
        self.driver.get_log("performance")  # what came before
        source = f"sessionStorage.clear(); {json.dumps(key)} && sessionStorage.setItem('key', {json.dumps(key)})"
        before = self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": IN_PIECES + source})
        self.driver.get(server.url)
        self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", before)

    def ready(self) -> None:
        self.until(lambda: self.find("#about").text and self.find("#send").is_enabled())

    def choose(self, model: str) -> None:
        Select(self.find("#model")).select_by_visible_text(model)

    def set(self, **settings: object) -> None:
        for name, value in settings.items():
            self.run("document.getElementById(arguments[0]).value = arguments[1]", name, value)

    def press(self, key: str) -> None:
        """Where the focus is."""
        self.driver.switch_to.active_element.send_keys(key)

    def send(self, text: str, wait: bool = True) -> None:
        self.find("#box").send_keys(text, Keys.ENTER)
        if wait:
            self.done()

    def done(self) -> None:
        self.until(lambda: self.find("#send").is_enabled() and not self.find("#stop").is_enabled())

    def texts(self, selector: str) -> list[str]:
        """The exact texts of visible elements."""
        script = "[...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).map(e => e.textContent)"
        found: list[str] = self.run(f"return {script}", selector)
        return found

    def sent(self) -> list[dict[str, Any]]:
        """All requests since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        self.known += [one["params"]["request"] for one in events if one["method"] == "Network.requestWillBeSent"]
        return self.known

    def body(self) -> dict[str, Any]:
        """The body of the last request for an answer."""
        found: dict[str, Any] = json.loads([one["postData"] for one in self.sent() if "completions" in one["url"]][-1])
        return found

    def check(self, server: Server) -> None:
        """The log has no error, so nothing violated the Content-Security-Policy, and no request left the machine."""
        expected = [f"status of {status} " for status in self.refused]
        errors = [one["message"] for one in self.driver.get_log("browser")]
        assert [one for one in errors if not any(text in one for text in expected)] == []
        urls = [request["url"] for request in self.sent()]
        assert server.url + "page.js" in urls  # negative control
        assert [url for url in urls if not url.startswith((server.url, "data:"))] == []
        assert self.driver.title == "tinygpt serve"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(tmp_path_factory.mktemp("chromium"))
    yield page
    page.driver.quit()


@pytest.fixture
def page(server: Server, chromium: Page) -> Iterator[Page]:
    """The page, opened anew with the key."""
    chromium.visit(server)
    chromium.ready()
    yield chromium
    chromium.check(server)


def test_continue_and_continue_from_the_end_of_the_whole_text(page: Page, server: Server) -> None:
    assert re.fullmatch(
        r"out continues text; it has 1\d,\d{3} parameters and a context of 32 tokens\.", page.find("#about").text
    )
    asked: dict[str, Any] = {"model": "out", "temperature": 0.8, "top_k": 200, "top_p": 1, "seed": 5, "max_tokens": 40}
    page.set(seed=5, max_tokens=40)
    page.send("The king")
    first = server.ask("v1/completions", prompt="The king", **asked)["choices"][0]["text"]
    assert page.texts(".said") == ["The king", first] and len(first) == 40
    page.click("#send")
    page.done()
    whole = server.ask("tokenize", model="out", prompt="The king" + first)["tokens"]
    second = server.ask("v1/completions", prompt=whole[-CONTEXT:], **asked)["choices"][0]["text"]
    assert page.texts(".said:not(:empty)") == ["The king", first, second] and second != first
    (told,) = page.texts("footer")  # of the last one
    assert re.search(r"Finish reason: length.*40 tokens in [\d.]+ s, [\d,]+ tokens per second", told)
    page.set(max_tokens=500, stop_text=r".\n")
    page.send("")
    assert page.texts(".answer")[-1].count(".\n") == 0 and "Finish reason: stop" in page.texts("footer")[0]


def test_text_of_a_model_is_never_html(page: Page, server: Server) -> None:
    page.set(temperature=0, max_tokens=30)
    page.send("<script>")
    assert page.texts(".said") == ["<script>", "document.title='taken'</script"]
    page.find(".answer span").click()
    page.send(HOSTILE)
    page.choose("<b>lora</b>")
    page.send(HOSTILE[:24])
    assert page.all("#logs script, #logs img, option > b, .given *") == []
    logprobs = {"tokens": [HOSTILE], "token_logprobs": [-1], "top_logprobs": [{HOSTILE: -1, "<img src=y>": -2}]}
    choice = {"text": HOSTILE, "logprobs": logprobs, "finish_reason": "length"}
    page.choose("out")
    page.run(  # answers of a hostile server, with a whole element in a token
        "window.fetch = async (path) => new Response(path === 'tokenize' ? '{\"tokens\": []}' : arguments[0])",
        f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n",
    )
    page.send("")
    assert page.texts(".answer")[-1] == HOSTILE
    page.run("[...document.querySelectorAll('.log:not([hidden]) .answer span')].at(-1).focus()")
    assert page.texts("#token b, #token th") == [HOSTILE.replace(" ", "␣")] * 2 + ["<img␣src=y>"]
    error = json.dumps({"error": {"message": HOSTILE}})
    page.run("window.fetch = async () => new Response(arguments[0], {status: 400})", error)
    page.send("")
    assert page.find("#error").text == HOSTILE and page.all("main script, main img, #token img, #live *") == []


@pytest.mark.slow
def test_again_and_stop(page: Page) -> None:
    page.set(max_tokens=30)
    page.send("The king")
    first = page.texts(".answer")
    page.click("#again")
    page.until(lambda: page.find("#send").is_enabled() and page.texts(".answer") != first)
    for stop in (lambda: page.click("#stop"), lambda: page.choose("documents")):
        page.choose("out")
        page.click("#new")
        page.set(max_tokens=ENDLESS)
        page.send("The king", wait=False)
        page.until(lambda: len(page.texts(".answer")[0]) > 20)
        assert not page.find("#send").is_enabled() and page.find("#state").text == "Generating …"
        stop()
        page.done()
        page.choose("out")
        stopped = page.texts(".answer")[0]
        assert 20 < len(stopped) < ENDLESS and page.texts("footer")[0].startswith("Stopped by you")
        page.set(max_tokens=5)
        page.send("And")
        assert page.texts(".answer")[0] == stopped and len(page.texts(".answer")[1]) == 5


@pytest.mark.slow
def test_errors_are_shown_and_the_prompt_is_given_back(page: Page) -> None:
    page.refused = [400]
    page.send("The king ß")
    assert "'ß' (U+00DF, position 9) is not in this model's" in page.find("#error").text
    assert page.value("#box") == "The king ß" and page.texts(".turn") == []
    page.find("#box").clear()
    page.set(max_tokens=5)
    page.send("The king")
    assert not page.find("#error").is_displayed() and page.texts(".given") == ["The king"] and page.value("#box") == ""
    network = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", network)
    page.send("The king")
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", network | {"offline": False})
    assert page.find("#error").text == "The server does not answer. Is tinygpt serve still running?"
    page.driver.get_log("browser")  # the two failures


@pytest.mark.slow
def test_probabilities_of_tokens(page: Page, server: Server) -> None:
    asked = {"model": "out", "prompt": "The king", "temperature": 2, "seed": 8, "max_tokens": 30, "logprobs": 5}
    told = server.ask("v1/completions", **asked)["choices"][0]["logprobs"]
    page.set(temperature=2, seed=8, max_tokens=30)
    page.send("The king")
    assert page.texts(".answer span") == told["tokens"]
    tokens = page.all(".answer span")
    words = [index for index, token in enumerate(told["tokens"]) if token.strip()]

    def shows(index: int) -> None:
        top = sorted(told["top_logprobs"][index].items(), key=lambda item: -item[1])
        rows = "return [...document.querySelectorAll('#token tr')].map(r => [r.querySelector('th'), r.lastChild]"
        found = dict(page.run(f"{rows}.map(e => e.textContent))"))
        assert list(found) == [token.replace(" ", "␣").replace("\n", "↵") for token, _ in top]
        shown = [float(text.removesuffix("%").replace("<", "")) for text in found.values()]
        assert shown == pytest.approx([100 * math.exp(logprob) for _, logprob in top], abs=0.51)

    ActionChains(page.driver).move_to_element(tokens[words[3]]).perform()
    shows(words[3])
    page.run("document.querySelector('.answer span').focus()")
    for key, index in ((Keys.HOME, 0), (Keys.ARROW_RIGHT, 1)):
        page.press(key)
        shows(index)
    page.press(Keys.ESCAPE)
    assert not page.find("#token").is_displayed()
    colours = "return [...document.querySelectorAll('.answer span')].map(s => getComputedStyle(s).backgroundColor)"
    alphas = [float(re.findall(r"[\d.e-]+", colour)[-1]) for colour in page.run(colours)]
    losses = [-logprob for logprob in told["token_logprobs"]]
    assert alphas == pytest.approx([0.7 * min(loss / 6, 1) for loss in losses], abs=0.01) and max(losses) > 3
    page.click("#shade")
    assert set(page.run(colours)) == {"rgba(0, 0, 0, 0)"}


@pytest.mark.slow
def test_an_adapter_and_documents(page: Page, server: Server) -> None:
    page.set(temperature=0, max_tokens=20)
    page.send("The king")
    page.choose("<b>lora</b>")
    assert page.find("#about").text.startswith("<b>lora</b> answers one message at a time and sees no earlier ones")
    for prompt in ("007 red", "008 green"):
        page.send(prompt)
        asked = page.body()
        assert asked["messages"] == [{"role": "user", "content": prompt}]
        answer = server.ask("v1/chat/completions", **asked | {"stream": False})["choices"][0]["message"]["content"]
        assert page.texts(".answer")[-1] == answer and page.texts("h2")[-1] == "<b>lora</b>"
    page.choose("out")
    assert page.texts(".given") == ["The king"]  # each task keeps its own turns

    page.choose("documents")
    assert not page.find("#settings").is_displayed()
    page.send("Who is the CFO of AUG Foods?")
    (answer,) = page.texts(".answer")
    assert "Hana Jipel" in answer and page.texts("mark")[0] == "Hana Jipel"  # the place counts 🐳 as one character
    first = page.texts(".passages li")[0]
    assert first.startswith("1. docs/<i>.md, line 3, AUG Foods") and "🐳 🐳 <b>Costs</b> rose." in first
    assert page.texts(".passages details[open] b") == [answer]  # the other passages are closed
    page.send("Who painted the Mona Lisa?")
    assert page.texts(".answer")[1] == "probably not in the documents, or in other words"


@pytest.mark.slow
def test_it_asks_for_the_key_and_keeps_it_in_the_tab(page: Page, server: Server) -> None:
    page.visit(server, key="")
    page.refused = [401]
    page.until(lambda: page.find("#key").is_displayed())
    assert page.find("#key-note").text.startswith("The server requires a key.") and not page.find("#send").is_enabled()
    page.find("#key-input").send_keys("wrong-wrong-wrong", "\n")
    page.until(lambda: page.find("#key-note").text == "The server refused this key.")
    page.find("#key-input").send_keys(KEY, "\n")
    page.ready()
    assert not page.find("#key").is_displayed()
    assert page.run("return [sessionStorage.getItem('key'), localStorage.length, document.cookie]") == [KEY, 0, ""]
    assert KEY not in page.driver.page_source


@pytest.mark.slow
def test_a_conversation_with_a_model_that_loads_while_the_page_waits(
    imported: Path, chromium: Page, tmp_path: Path
) -> None:
    with serving(imported, tmp_path / "log", "--ckpt=out-base", port=free_port(), wait=False) as server:

        def listens() -> bool:
            with contextlib.suppress(OSError):
                return server.request("GET", "/page.css")[0] == 200
            return False

        until(listens)
        chromium.visit(server, key="")
        chromium.refused = [503]
        chromium.until(lambda: "loading" in chromium.find("#state").text or chromium.find("#about").text)
        chromium.ready()
        assert chromium.find("#about").text.startswith("out-base answers in a conversation; it has ")
        assert chromium.texts("#starts button") == QUESTIONS
        chromium.set(temperature=0, max_tokens=12, system="Be ünkind 🐳.")
        messages = [{"role": "system", "content": "Be ünkind 🐳."}]
        for prompt in ("<script>x</script>", "Why?"):
            messages.append({"role": "user", "content": prompt})
            chromium.send(prompt)
            assert chromium.body()["messages"] == messages
            told = server.ask("v1/chat/completions", messages=messages, temperature=0, max_tokens=12)
            answer = told["choices"][0]["message"]["content"]
            assert chromium.texts(".said")[-2:] == [prompt, answer]
            messages.append({"role": "assistant", "content": answer})
        chromium.check(server)
        assert server.stop() == 0 and server.output.endswith("stopped\n")


@pytest.mark.slow
def test_screen_readers_hear_an_answer_once_and_the_keyboard_reaches_everything(page: Page) -> None:
    page.run(
        "window.heard = []; for (const one of document.querySelectorAll('[role=status], [role=alert], [aria-live]'))"
        "new MutationObserver(() => heard.push(one.id))"
        ".observe(one, {childList: true, characterData: true, subtree: true})"
    )
    page.set(max_tokens=200)
    page.send("The king")
    (answer,) = page.texts(".answer")
    assert len(answer) == 200 and page.find("#live").get_property("textContent") == answer
    assert sorted(page.run("return window.heard")) == ["live", *["state"] * 2]  # "Generating …", and the end of it
    reached = []
    for _ in range(20):
        page.press(Keys.TAB)
        focus = "const e = document.activeElement; return e.id || e.closest('.answer')?.tagName || e.tagName"
        reached.append(page.run(focus))
    wanted = ["send", "new", "model", "SUMMARY", "temperature", "top_k", "top_p", "max_tokens", "stop_text", "seed"]
    assert [one for one in reached if one != "BODY"][:14] == [*wanted, "P", "again", "shade", "box"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "dark"), [(1280, 700, False), (390, 844, True)])
def test_the_first_screen_has_prompts_and_axe_finds_no_violation(
    page: Page, server: Server, width: int, height: int, dark: bool
) -> None:
    told = {one["id"]: one.get("starts", []) for one in json.loads(server.request("GET", "/v1/models")[1])["data"]}
    assert [len(starts) for starts in told.values()] == [3, 2, 0] and HOSTILE[:20] in told["out"][1]
    for model, starts in told.items():
        page.visit(server, width=width, height=height, dark=dark)
        page.ready()
        page.choose(model)
        assert page.texts("#starts button") == starts
        assert page.run(
            "return ['h1', '#model', '#starts', '#box', '#send'].map(s => document.querySelector(s)"
            ".getBoundingClientRect()).every(r => r.top >= 0 && r.bottom <= innerHeight)"
        )
        page.set(max_tokens=300)
        if starts:
            page.click("#starts button:nth-child(2)")
            page.done()
        else:
            page.send("Who is the CFO of AUG Foods?")
        assert page.texts(".given") == (starts[1:2] or ["Who is the CFO of AUG Foods?"])
        assert page.violations() == [] and page.run("return document.documentElement.scrollWidth") == width
