"""README and docs/ are true: generated parts are up to date; commands, links and extras exist; presets are accepted;
and figures that the code can compute agree with the text."""

import ast
import contextlib
import dataclasses
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import script
from inputs import PAGES, ROOT

from tinygpt import cli, options
from tinygpt.base.configs import parse as configfile
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.parse import parse, read_config
from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tasks import TASKS
from tinygpt.examine.eval.classify import label_indices, ngram_classifier
from tinygpt.learn.lab.command import LABS
from tinygpt.model import GPT, GPTConfig

README = PAGES[ROOT / "README.md"]
KEYS = PAGES[ROOT / "docs/reference/configuration.md"]
DOCS, MEASURED = script("docs"), script("figures")
CLAIMS = DOCS.claims(PAGES[ROOT / "docs/teaching/claims.md"])
PRESETS = sorted((ROOT / "configs").glob("*.yaml"))
ELSEWHERE = [path for folder in configfile.OTHERS for path in folder.glob("*.yaml")]


def commands(text: str) -> list[list[str]]:
    """Every `tinygpt ...` line of the shell blocks, split as a shell does, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("tinygpt ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize(("new", "stale"), [("1024", False), ("1023", True)])
def test_the_table_of_keys_is_up_to_date(
    new: str, stale: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page with another default is not what the code says."""
    page = tmp_path / DOCS.KEYS
    page.parent.mkdir(parents=True)
    old = "| `block_size` | `1024`"
    assert old in KEYS
    page.write_text(KEYS.replace(old, f"| `block_size` | `{new}`"), encoding="utf-8")
    monkeypatch.setattr(DOCS, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["docs.py", "--check"])
    said = f"{DOCS.KEYS} is not up to date; run: python scripts/docs.py"
    with pytest.raises(SystemExit, match=said) if stale else contextlib.nullcontext():
        DOCS.main()


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.title)
def test_each_claim_has_a_command_a_verdict_and_a_question(claim: Any) -> None:
    quoted = re.findall(r"`tinygpt ([^`]+)`", claim.commands)
    assert quoted and re.match(r"\*\*(Holds|In part|Does not hold|Not tested)\b", claim.result)
    assert re.search(r"\d", claim.result) and claim.question.endswith("?") and claim.wrong.startswith('"')
    for line in quoted:
        test_commands_of_the_pages_are_understood(shlex.split(line))


def test_the_deck_has_two_slides_for_each_claim_and_says_which_are_ours() -> None:
    """No claim is missing: each section of the page is a claim, or the list of all."""
    text, page = (PAGES[ROOT / f"docs/teaching/{name}.md"] for name in ("slides", "claims"))
    deck = DOCS.deck(text, page)
    headings = re.findall("^## (.*)$", deck, re.MULTILINE)
    assert len(headings) == len(re.findall("^## ", text, re.MULTILINE)) + 2 * len(CLAIMS)
    assert len(CLAIMS) >= len(re.findall("^## ", page, re.MULTILINE)) - 2
    ours = [claim.title.removesuffix(" (ours)") for claim in CLAIMS if claim.title.endswith(" (ours)")]
    assert ours and ours == [title.removeprefix("Our claim: ") for title in headings if title.startswith("Our claim: ")]


def test_every_lab_is_described_and_used_in_class() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGES[ROOT / "docs/reference/labs.md"], re.MULTILINE)
    assert set(listed) == set(LABS)
    used = {name for claim in CLAIMS for name in re.findall(r"tinygpt lab (\w+)", claim.commands)}
    assert used == set(LABS)


def minutes(text: str) -> float:
    """The upper end of a time such as `28 s` or `2 to 4 min`."""
    number, unit = re.findall(r"([\d.]+) (s|min)\b", text)[-1]
    return float(number) / (60 if unit == "s" else 1)


def allowances() -> dict[str, float]:
    """The minutes that the teaching page allows for a lab with --quick on a slow laptop."""
    page = " ".join(PAGES[ROOT / "docs/teaching/index.md"].split())
    found = re.search(r"(\d+) for a lab with `--quick` \((.*?)\)", page)
    assert found
    named = {name: float(part.split()[-1]) for part in found[2].split(", ") for name in re.findall(r"`(\w+)`", part)}
    return dict.fromkeys(LABS, float(found[1])) | named


def test_the_time_allowed_for_a_lab_is_three_times_that_of_a_server() -> None:
    listed = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", PAGES[ROOT / "docs/reference/labs.md"], re.MULTILINE)
    times = {name: minutes(time) for name, time in listed if time != "none"}
    assert len(times) == len(LABS) - 1
    assert {name: time for name, time in times.items() if allowances()[name] < 3 * time} == {}


def test_a_lesson_reads_the_page_of_a_lab_when_it_is_there() -> None:
    """Each lesson that starts a lab with --quick reads its page after the time allowed for the lab."""
    gaps = {}
    rows = re.findall(r"^\| (\d+)–\d+ \|(.*)", PAGES[ROOT / "docs/teaching/index.md"], re.MULTILINE)
    for place, (begin, text) in enumerate(rows):
        for name in re.findall(r"`tinygpt lab (\w+) --quick`", text):
            read = [int(time) for time, later in rows[place:] if f"out-lab-{name}-quick/{name}.html" in later]
            if read:
                gaps[name] = read[0] - int(begin)
    assert set(gaps) == {"facts", "why"}
    assert {name: gap for name, gap in gaps.items() if gap < allowances()[name]} == {}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout whose environment is installed; its programs only write their path and arguments."""
    if os.name == "nt" or not shutil.which("bash"):
        pytest.skip("needs bash")
    folder = tmp_path / "tinygpt"
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    programs = {folder / f".venv/bin/{name}" for name in ("python", "tinygpt", "ruff", "mypy")}
    programs |= {tmp_path / f"bin/{name}" for name in ("chromium", "chromedriver", "node", "uv")}
    for program in programs:
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text('#!/bin/sh\necho "$PWD/$0 $*"\n')
        program.chmod(0o755)
    (folder / "pyproject.toml").touch()
    for extras in ("offline", "dev,offline"):
        (folder / f".venv/.installed-{extras}").write_text(str(folder.resolve()))
    return folder


def script_output(clone: Path, *command: str) -> list[str]:
    env = {name: value for name, value in os.environ.items() if name != "TINYGPT_VENV"}
    env["PATH"] = f"{clone.parent / 'bin'}{os.pathsep}{env['PATH']}"
    done = subprocess.run(["bash", *command], cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_scripts_end_as_the_readme_says(clone: Path) -> None:
    """With the line that activates the environment, and with pytest's own."""
    quickstart, test = re.findall(r"^bash (scripts/\w+\.sh) .*; ends \"(.+)\"$", README, re.MULTILINE)
    assert quickstart[0] == "scripts/quickstart.sh" and test[0] == "scripts/test.sh" and "passed" in test[1]
    assert script_output(clone, quickstart[0])[-1].endswith(quickstart[1])
    for chosen in ([], ["--all"]):
        assert script_output(clone, test[0], *chosen)[-1].startswith(f"{clone.resolve()}/.venv/bin/python -m pytest ")


def test_ci_runs_the_scripts_of_the_readme(clone: Path) -> None:
    """In another folder named tinygpt, with the environment inside it; pytest comes last, with the slow tests."""
    (clone / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", clone / ".ci/run")
    output = "\n".join(script_output(clone, ".ci/run"))
    pattern = r"^(/.*/tinygpt)/\.venv/bin/(tinygpt quickstart|python -m pytest)(.*)$"
    (folder, first, _), (same, last, flags) = re.findall(pattern, output, re.MULTILINE)
    assert (first, last) == ("tinygpt quickstart", "python -m pytest")
    assert folder == same != str(clone.resolve())
    assert output.endswith(f"{last}{flags}") and "not slow" not in flags


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


@pytest.mark.slow
def test_extras_are_installed_without_the_source(tmp_path: Path) -> None:
    """The lines of the pages, outside a checkout, where tinygpt is installed. Those with Jupyter are left out."""
    pytest.importorskip("pip")
    pattern = r'pip install ((?:-e )?"[^"./]*\.?\[[a-z,]+\]")'  # "./tinygpt[report]" installs it
    lines = {line for text in PAGES.values() for line in re.findall(pattern, text)}
    lines -= {'"tinygpt[class]"', '"tinygpt[notebook]"'}
    assert len(lines) > 5
    install = [sys.executable, "-m", "pip", "install", "--no-index", "--dry-run", *shlex.split(" ".join(lines))]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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


@pytest.mark.parametrize("option", ["norm", "position", "activation"])
def test_every_choice_of_the_architecture_is_explained(option: str) -> None:
    """The help of the key and the docstring of options.py name each choice."""
    row = next(line for line in KEYS.splitlines() if line.startswith(f"| `{option}` |"))
    for choice in typing.get_args(typing.get_type_hints(TrainConfig)[option]):
        for text in (row.split("|")[3], str(options.__doc__)):
            assert re.search(rf"\b{choice}\b", text), f"{option}={choice} is missing in: {text}"


@pytest.mark.parametrize("command", [each for text in PAGES.values() for each in commands(text)], ids=" ".join)
def test_commands_of_the_pages_are_understood(command: list[str]) -> None:
    """Each command exists, and so do its flags (its files need not exist)."""
    args = [arg for arg in command[1:] if arg != "CONFIG"]
    parse(cli.config_class(command[0]), args)


def test_commands_named_in_sentences_exist() -> None:
    """The changelog also names those of earlier versions. The README has the three commands of the beginning."""
    for line in (
        "prepare shakespeare_char",
        "train configs/shakespeare_char.yaml --device=cpu",
        "sample --ckpt out/ckpt.pt",
    ):
        assert f"tinygpt {line}\n" in README
    texts = [text for page, text in PAGES.items() if page.name != "CHANGELOG.md"]
    named = {name for text in texts for name in re.findall(r"`tinygpt\s+([a-z]+)", text)}
    assert len(named) > 10 and named - set(cli.COMMANDS) == set()


def test_a_flag_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(TinyGPTError, match="no such key"):
        test_commands_of_the_pages_are_understood(["sample", "--ckpt", "out", "--temprature=1"])


# ---- figures ------------------------------------------------------------------------------------------------------


def parameter_counts(vocab_size: int, **shape: Any) -> tuple[int, int]:
    """Numbers of parameters: (without, with) the position embeddings."""
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=vocab_size, **shape))
    return model.num_params(), sum(weight.numel() for weight in model.parameters())


def preset_counts(preset: str, grown: int = 0) -> tuple[int, int]:
    """Parameter counts of a preset on its own dataset, with `grown` tokens added to the vocabulary."""
    config_of = parse(TrainConfig, [preset])
    names = {field.name for field in dataclasses.fields(GPTConfig)} & set(vars(config_of))
    vocab_size = 65 if config_of.dataset == "shakespeare_char" else 50257
    return parameter_counts(vocab_size + grown, **{name: getattr(config_of, name) for name in names})


@functools.cache
def counts() -> tuple[dict[str, tuple[int, int]], list[tuple[int, int]]]:
    """Parameter counts of the presets by name, and those of other models that the texts mention."""
    presets = {path.stem: preset_counts(path.stem) for path in (*PRESETS, *ELSEWHERE) if "finetune" not in path.stem}
    rope: dict[str, Any] = {"position": "rope"}
    others = [
        preset_counts("shakespeare_char_fast", grown=16),  # fine-tuned on transactions: 13 characters, 3 special tokens
        parameter_counts(65, n_layer=6, n_head=5, n_embd=160, block_size=256, **rope),  # of experiments.md, the larger
    ]
    smollm2 = rope | {"n_layer": 30, "n_head": 9, "n_kv_head": 3, "n_embd": 576, "mlp_width": 1536}
    return presets, [*others, parameter_counts(49152, **smollm2, norm="rmsnorm", activation="swiglu")]


OTHERS = "tokens|characters|passages|training examples|random vectors"  # that numbers in the texts count


def test_the_record_preset_is_the_best_preset_with_a_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from bench import SHORT

    best, record = (ROOT / f"configs/shakespeare_char_{name}.yaml" for name in ("best", "record"))
    values, changed = read_config(best), read_config(record)
    differ = {key for key in values | changed if values.get(key) != changed.get(key)}
    assert differ == {"out_dir", "teacher", "teacher_share", "max_iters"}
    assert " ".join(SHORT) in best.read_text(encoding="utf-8").replace("\n# ", " ")


def test_the_presets_are_listed() -> None:
    table = KEYS.partition("| preset |")[2].partition("\n\n")[0]
    listed = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(listed) == [path.stem for path in PRESETS]
    from_scratch = [path.stem for path in PRESETS if "finetune" not in path.stem]
    helped = str(TrainConfig.__doc__).partition("Start from a preset:")[2].partition(".")[0]
    assert sorted(re.findall(r"\w+", helped)) == sorted([*from_scratch, "or"])


def test_pages_contain_no_conflict() -> None:
    assert not [page.name for page, text in PAGES.items() if re.search(r"^(<{7}|={7}|>{7})", text, re.MULTILINE)]


TEXTS = [*PAGES, ROOT / "data/README.md", *PRESETS, *ELSEWHERE]


def wrong_counts(text: str) -> list[str]:
    """List the counts that differ from the code's, or include position embeddings without saying so.

    A number of six digits or more is taken for a parameter count, unless it counts something else by name (OTHERS). If
    the paragraph names a preset before the number, the count must be that preset's.
    """
    (presets, others), wrong = counts(), []
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = " ".join(paragraph.split())
        for found in re.finditer(rf"\b\d{{1,3}}(?:,\d{{3}})*,\d{{3}}\b(?! (?:{OTHERS}))", paragraph):
            number = int(found[0].replace(",", ""))
            if number < 100_000:
                continue
            named = re.findall(r"configs/(\w+)\.yaml", paragraph[: found.start()])
            known = [presets[named[-1]]] if named and named[-1] in presets else [*presets.values(), *others]
            without = {count for count, _ in known}
            if number not in without | {count for _, count in known}:
                wrong.append(f"{found[0]} is no preset's number of parameters: {paragraph[:80]}")
            elif number not in without and "position embeddings" not in paragraph:
                wrong.append(f"{found[0]} includes position embeddings without saying so: {paragraph[:80]}")
        for rounded in re.findall(r"\b(\d+(?:\.\d+)?) M[ -]parameters?\b", paragraph):
            digits = len(rounded.partition(".")[2])
            exact = [count for pair in (*presets.values(), *others) for count in pair]
            if not any(f"{count / 1e6:.{digits}f}" == rounded for count in exact):
                wrong.append(f"{rounded} M is no preset's number of parameters: {paragraph[:80]}")
    return wrong


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_parameter_counts_agree_with_the_code(path: Path) -> None:
    assert wrong_counts(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "804,096 numbers by formula and by code",
        "`configs/shakespeare_char.yaml` trains 1,336,704 parameters",
        "the same 0.9 M parameters",
    ],
)
def test_a_wrong_parameter_count_would_be_noticed(text: str) -> None:
    """Negative control."""
    assert len(wrong_counts(text)) == 1


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


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        ("It ends at 1.63 after 46 s, 13 to 84% of all.", []),
        ("It ends at 1.64 after 45 s.", ["1.64", "45"]),
        ("| a | 12 | 13 |", ["12"]),
        ("13, 14 and 84%", ["14"]),
        ("Run `--rate 0.7` 3 times", ["3"]),
        ("In 2023, 20 people had 3 cats.", []),
    ],
)
def test_a_figure_without_a_measurement_would_be_noticed(sentence: str, wrong: list[str]) -> None:
    """Negative control."""
    known = {"preset": {"values": "1.6297 46.2 13 84"}}
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


def test_quoted_iterations_of_the_fast_preset_agree_with_it() -> None:
    fast, recipe = (
        parse(TrainConfig, [str(ROOT / f"configs/{name}.yaml")]) for name in ("shakespeare_char_fast", "nanogpt")
    )
    texts = [*TEXTS, ROOT / "notebooks/gpt_from_scratch.py"]
    quoted = [
        found
        for path in texts
        for found in re.findall(r"([\d,]+) iterations instead of ([\d,]*\d)", path.read_text(encoding="utf-8"))
    ]
    assert len(quoted) >= 3
    assert set(quoted) == {(f"{fast.max_iters:,}", f"{recipe.max_iters:,}")}


def code_lines(source: str) -> int:
    """Count the lines with code: not empty, and not only a comment or a part of a docstring."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    texts = [node.value for node in nodes if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)]
    docstrings = {number for text in texts for number in range(text.lineno, (text.end_lineno or text.lineno) + 1)}
    lines = enumerate(map(str.strip, source.splitlines()), start=1)
    return sum(line != "" and not line.startswith("#") and number not in docstrings for number, line in lines)


def test_the_stated_size_of_the_core_is_that_of_the_files_named() -> None:
    """To the nearest hundred lines."""
    sentence = re.search(
        r"the core \(((?:`\w+\.py`[,\sand]*)+)\) has\s+(\d+) lines", PAGES[ROOT / "docs/developers/code.md"]
    )
    readme = re.search(r"The core is (\d+) lines", README)
    assert sentence and readme
    names = re.findall(r"\w+\.py", sentence[1])
    assert {"model.py", "prepare.py", "train.py", "sample.py"} <= set(names)
    count = sum(code_lines((ROOT / "tinygpt" / name).read_text(encoding="utf-8")) for name in names)
    assert [int(sentence[2]), int(readme[1])] == [round(count, -2)] * 2, f"the core has {count} lines"


@pytest.mark.slow
def test_the_quoted_baselines_of_the_headlines_agree_with_eval() -> None:
    pytest.importorskip("sklearn")
    examples = TASKS["headlines"].make(1337)
    labels = sorted({label for _, label in examples["train"]})
    train, test = (label_indices(examples[split], labels) for split in ("train", "test"))
    prompts = {split: [prompt for prompt, _ in examples[split]] for split in ("train", "test")}
    groups = np.array([TASKS["headlines"].group(prompt) for prompt in prompts["test"]])
    data = (ROOT / "data/README.md").read_text(encoding="utf-8")
    for kind, listed in (("ngram", "character n-grams"), ("word", "words")):
        classifier, _ = ngram_classifier(prompts["train"], train, len(labels), kind)
        assert classifier
        right = classifier(prompts["test"]).argmax(axis=1) == test
        assert re.search(rf"^\| {listed}.* {100 * right.mean():.1f}% \|$", data, re.MULTILINE)
        if kind == "ngram":
            share = f"{100 * right[groups == 'new combinations'].mean():.1f}%"
            assert f"n-gram baseline {share}" in " ".join(PAGES[ROOT / "docs/explanation/fine-tuning.md"].split())
