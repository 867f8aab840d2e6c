"""Pages in headless Chromium, and their scripts in Node."""

import importlib.resources
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE, script, until

import tinygpt.examine.report.weights
from tinygpt.checkpoint.store import load, tokenizer_of

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
FILE = Path(tinygpt.examine.report.weights.__file__).with_name("model.js")
in_a_browser = pytest.mark.skipif(
    not (shutil.which("chromium") or shutil.which("google-chrome") or os.environ.get("CI")),
    reason="neither Chromium nor Chrome is installed here",
)


def slowly_in_a_browser(test: Any) -> Any:
    return pytest.mark.slow(in_a_browser(test))


class Browser:
    """Headless Chromium without a network, and what it logs; local: it reaches servers of this machine."""

    def __init__(self, profile: Path, local: bool = False) -> None:
        self.script = script("screenshot")
        self.driver = self.script.chromium(profile, local)

    def open(self, page: Path, width: int = 1280, motion: bool = False) -> None:
        self.script.resize(self.driver, width, motion=motion)
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
        return until(condition)

    def requests(self) -> list[str]:
        """Requests of pages from disk since the last call, except for the page itself and data inside it."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        urls = [one["request"]["url"] for one in sent if one["documentURL"].startswith("file:")]
        assert any(url.endswith(".html") for url in urls)  # negative control: the log has the page
        return [url for url in urls if not url.startswith("data:") and not url.endswith(".html")]

    def violations(self) -> list[tuple[str, str, str]]:
        """What axe-core objects to (contrast, names, roles, order): rule, impact, first element."""
        self.run(importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8"))
        self.driver.set_script_timeout(600)  # a page with models computes for seconds, on a busy machine for minutes
        code = "axe.run(document, {resultTypes: ['violations']}).then(({violations}) => arguments[0](violations))"
        found = self.driver.execute_async_script(code)
        return [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found]

    def bars(self) -> np.ndarray:
        """Probabilities in the table: (10 characters and the sum of the others, stages)."""
        code = "r => [...r.querySelectorAll('td')].map(c => Number(c.dataset.p))"
        return np.array(self.run(f"return [...document.querySelectorAll('#bars tbody tr')].map({code})"))

    def chances(self, table: str = "bars") -> dict[str, list[float]]:
        """Probabilities in a table, by character."""
        code = "r => [r.querySelector('th').textContent, ...[...r.querySelectorAll('td')].map(c => c.dataset.p)]"
        rows = self.run(f"return [...document.querySelectorAll('#{table} tbody tr:not(.rest)')].map({code})")
        return {plain(row[0]): [*map(float, row[1:])] for row in rows}

    def type_into(self, selector: str, text: str) -> None:
        self.find(selector).clear()
        self.find(selector).send_keys(text)

    def assert_quiet(self) -> None:
        assert self.driver.get_log("browser") == [] and self.requests() == []

    def slide(self, selector: str, value: float) -> None:
        code = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.run(code, self.find(selector), value)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.driver.quit()


def plain(symbol: str) -> str:
    """The character that a page shows as this symbol."""
    return {"␣": " ", "↵": "\n"}.get(symbol, symbol)


def next_character(path: Path, text: str, temperature: float = 1.0) -> dict[str, float]:
    """A model's probabilities of the next character, by PyTorch."""
    state = load(path)
    tokenizer = tokenizer_of(state, "", "")
    ids = torch.from_numpy(tokenizer.encode(text)[-16:].astype(np.int64))[None]
    with torch.no_grad():
        chances = (state.build_model().eval()(ids)[0][0, -1] / temperature).softmax(-1).tolist()
    return dict(zip(tokenizer.symbols, chances, strict=True))  # type: ignore[union-attr]


PRELUDE = f"""
const TinyGPT = require({json.dumps(str(FILE))});
const input = JSON.parse(require("fs").readFileSync(0, "utf8"));
// logits (T, V) after each token that a fresh state reads, and after each that a reader reads past its first `known`
const read = (packed, ids) => {{
  const state = TinyGPT.load(packed).start();
  return ids.map((id) => [...state.read(id)]);
}};
const follow = (packed, ids, known) => {{
  const reader = TinyGPT.load(packed).reader(ids.slice(0, known));
  return ids.slice(known).map((id) => (reader.push(id), [...reader.logits]));
}};
const greedy = (packed, ids, count) => {{
  const reader = TinyGPT.load(packed).reader(ids);
  while (count--) reader.push(TinyGPT.draw(TinyGPT.probabilities(reader.logits, {{ temperature: 0 }}).topP, 0.5));
  return reader.ids.slice(ids.length);
}};
"""


def node(code: str, **values: Any) -> Any:
    """Run the body of a function in Node, with `values` as its `input`, and return its result."""
    program = shutil.which("node")
    if program is None and not os.environ.get("CI"):
        pytest.skip("the page's model runs in Node, which is not installed here")
    command = [program or "node", "-e", f"{PRELUDE}\nconsole.log(JSON.stringify((() => {{ {code} }})()));"]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, encoding="utf-8", timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
