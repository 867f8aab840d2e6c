"""README and docs/ are true: generated parts are up to date; commands, links and extras exist; presets are accepted;
and figures that the code can compute agree with the text."""

import dataclasses
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import script
from inputs import PAGES, ROOT

from tinygpt import cli
from tinygpt.base.configs import parse as configfile
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.parse import parse
from tinygpt.base.errors import TinyGPTError
from tinygpt.learn.lab.command import LABS
from tinygpt.model import GPT, GPTConfig

README = PAGES[ROOT / "README.md"]
KEYS = PAGES[ROOT / "docs/reference/configuration.md"]
DOCS, MEASURED = script("docs"), script("figures")
CLAIMS_PAGE = ROOT / "docs/teaching/claims.md"
CLAIMS = DOCS.claims(PAGES[CLAIMS_PAGE])
PRESETS = sorted((ROOT / "configs").glob("*.yaml"))
ELSEWHERE = [path for folder in configfile.OTHERS for path in folder.glob("*.yaml")]


def commands(text: str) -> list[list[str]]:
    """Every `tinygpt ...` line of the shell blocks, split as a shell does, without comments and `> FILE`."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("tinygpt ")]
    return [shlex.split(line.partition(" > ")[0], comments=True)[1:] for line in lines]


def test_the_table_of_keys_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page with another default is not what the code says."""
    page = tmp_path / DOCS.KEYS
    page.parent.mkdir(parents=True)
    page.write_text(KEYS, encoding="utf-8")
    monkeypatch.setattr(DOCS, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["docs.py", "--check"])
    DOCS.main()
    page.write_text(KEYS.replace("| `block_size` | `1024`", "| `block_size` | `1023`"), encoding="utf-8")
    with pytest.raises(SystemExit, match=f"{DOCS.KEYS} is not up to date; run: python scripts/docs.py"):
        DOCS.main()


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.title)
def test_each_claim_has_a_command_a_verdict_and_a_question(claim: Any) -> None:
    quoted = re.findall(r"`tinygpt ([^`]+)`", claim.commands)
    assert len(CLAIMS) >= len(re.findall("^## ", PAGES[CLAIMS_PAGE], re.MULTILINE)) - 2  # the other two list them
    assert quoted and re.match(r"\*\*(Holds|In part|Does not hold|Not tested)\b", claim.result)
    assert re.search(r"\d", claim.result) and claim.question.endswith("?") and claim.wrong.startswith('"')
    for line in quoted:
        test_commands_of_the_pages_are_understood(shlex.split(line))


def test_every_lab_is_described_and_used_in_class() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGES[ROOT / "docs/reference/labs.md"], re.MULTILINE)
    assert set(listed) == set(LABS)
    used = {name for claim in CLAIMS for name in re.findall(r"tinygpt lab (\w+)", claim.commands)}
    assert used == set(LABS)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_pictures_scripts_and_extras_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", PAGES[page]):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    earlier = r"`?.*` at\s`[0-9a-f]{7}"  # measured by a script of an earlier commit
    for name in re.findall(rf"\bscripts[/\\](\w++\.\w++)(?!{earlier})", PAGES[page]):
        assert page.name == "CHANGELOG.md" or (ROOT / "scripts" / name).exists(), name
    for extras in re.findall(r"(?:\.|tinygpt|whl)\[([a-z,]+)\]", PAGES[page]):
        assert set(extras.split(",")) <= set(project["optional-dependencies"]), extras


def test_every_page_is_in_the_navigation_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    navigation = script("conf", "docs").NAVIGATION
    listed = {f"{page}.md" for pages in navigation.values() for page in pages} | {"README.md"}
    assert listed == {page.relative_to(ROOT).as_posix() for page in PAGES} | {"data/README.md"}


def test_the_site_is_built_without_a_warning_and_finds_the_terms_of_the_glossary(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    script_file = ROOT / "scripts/site.py"
    done = subprocess.run([sys.executable, script_file, tmp_path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    index = (tmp_path / "searchindex.js").read_text(encoding="utf-8")
    assert "docs/reference/glossary" in index and "perplex" in index and "lora" in index
    slides = (tmp_path / "slides/docs/teaching/slides.html").read_text(encoding="utf-8")
    assert slides.count("<h2>") >= 2 * len(CLAIMS)
    for page in tmp_path.rglob("*.html"):
        for url in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"#]+)"', page.read_text(encoding="utf-8")):
            assert (page.parent / url.partition("?")[0]).exists(), f"{page} loads {url}"  # and nothing from elsewhere


@pytest.mark.parametrize("command", [each for text in PAGES.values() for each in commands(text)], ids=" ".join)
def test_commands_of_the_pages_are_understood(command: list[str]) -> None:
    """Each command exists, and so do its flags (its files need not exist)."""
    args = [arg for arg in command[1:] if arg != "CONFIG"]
    parse(cli.config_class(command[0]), args)


def test_commands_named_in_sentences_exist() -> None:
    """The changelog also names those of earlier versions. The README has the three commands of the beginning."""
    train = "tinygpt train configs/shakespeare_char.yaml --device=cpu\n"
    assert f"tinygpt prepare shakespeare_char\n{train}tinygpt sample --ckpt out/ckpt.pt\n" in README
    texts = [text for page, text in PAGES.items() if page.name != "CHANGELOG.md"]
    named = {name for text in texts for name in re.findall(r"`tinygpt\s+([a-z]+)", text)}
    assert len(named) > 10 and named - set(cli.COMMANDS) == set()


def test_a_flag_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(TinyGPTError, match="no such key"):
        test_commands_of_the_pages_are_understood(["sample", "--ckpt", "out", "--temprature=1"])


def test_parameter_counts_agree_with_the_code() -> None:
    values = vars(parse(TrainConfig, ["shakespeare_char"]))
    shape = {field.name: values[field.name] for field in dataclasses.fields(GPTConfig) if field.name in values}
    count = GPT(GPTConfig(**shape | {"vocab_size": 65})).num_params()
    texts = [" ".join(text.split()) for page, text in PAGES.items() if page.name != "CHANGELOG.md"]
    found = [number for text in texts for number in re.findall(r"\b(\d{3},\d{3}) (?:parameters|weights)\b", text)]
    assert len(found) > 2 and set(found) == {f"{count:,}"}


FIGURES = MEASURED.measurements()
MACHINES = {"Xeon", "Zen 3", "Zen 4", "Zen 5", "any", "not recorded"}  # docs/developers/experiments.md describes them
STATING = [  # files besides the pages: `stated` has patterns of their sentences
    *(ROOT / "data/README.md", *PRESETS, *ELSEWHERE, *(ROOT / "notebooks").glob("*.py")),
    *(ROOT / path for path in ("tinygpt/base/configs/core.py", "tinygpt/data/preview.py")),
    *(ROOT / path for path in ("tinygpt/learn/quickstart.py", "scripts/wheelhouse.sh")),
]


@pytest.mark.parametrize("page", MEASURED.pages(), ids=lambda page: page.name)
def test_each_figure_of_a_page_comes_from_a_measurement_that_it_names(page: Path) -> None:
    assert MEASURED.unknown(PAGES[page], FIGURES) == []


def test_a_figure_without_a_measurement_would_be_noticed() -> None:
    """Negative control."""
    known = {"preset": {"values": "1.6297 46.2 13 84"}}
    for sentence, wrong in (
        ("It ends at 1.63 after 46 s, 13 to 84% of all.", []),
        ("It ends at 1.64 after 45 s.", ["1.64", "45"]),
        ("| a | 12 | 13 |", ["12"]),
        ("In 2023, 20 people had 3 cats.", []),
    ):
        assert MEASURED.unknown(f"# A 9.9% title\n\n{sentence}\n<!-- figures: preset -->\n", known) == wrong
    assert MEASURED.unknown("99%", known) == ["99"]


@pytest.mark.parametrize("name", FIGURES)
def test_each_measurement_has_a_command_a_machine_and_a_month_and_is_used(name: str) -> None:
    entry = FIGURES[name]
    assert [page for page, text in PAGES.items() if name in " ".join(MEASURED.COMMENT.findall(text)).split()]
    if "date" in entry:
        assert re.fullmatch(r"20\d\d-[01]\d", entry["date"]) and entry["machine"] in MACHINES and entry["command"]
    if entry["command"].startswith("tinygpt "):
        test_commands_of_the_pages_are_understood(shlex.split(entry["command"])[1:])
    for pattern in entry.get("stated", []):
        texts = [re.sub(r"\s+(?:# )?", " ", path.read_text(encoding="utf-8")) for path in STATING]
        found = [figure for text in texts for figure in re.findall(pattern, text)]
        assert found and all(MEASURED.is_value(figure, entry["values"].split()) for figure in found), (pattern, found)
