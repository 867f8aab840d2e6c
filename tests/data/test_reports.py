"""The tasks `reports`: controls of style and fidelity; adapters swapped on one base model; tinygpt lab reports."""

import dataclasses
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Result, cli_here, commands_here, lab_results, ok
from models import ids, shaken, small
from runs import adapted
from tasks_made import examples

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import store
from tinygpt.checkpoint.adapter import Adapters, load_model, save_adapter, weights_fingerprint
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.data.tasks import TASKS, reports
from tinygpt.data.tokenizer import SPECIAL
from tinygpt.examine.experiment.stages import Records
from tinygpt.learn.lab import reports as lab

DATASETS = {"plain": "reports", "a": "reports_a", "b": "reports_b"}
PROMPT = "Nordal Q2 sales 48.3 +6 profit 5.1 -12"
EXAMPLES = {name: examples(name) for name in DATASETS.values()}


def both(firm: str, prompt: str, response: str) -> tuple[bool, bool]:
    """Style and fidelity, by the score of the task."""
    scores = TASKS[DATASETS[firm]].scores
    assert scores is not None
    checks = scores(prompt, "", response)
    return checks["style"], checks["fidelity"]


def right(firm: str, prompt: str = PROMPT) -> str:
    return reports.STYLES[firm](reports.figures_of(prompt))


# ---- the task --------------------------------------------------------------------------------------------------------


def test_the_three_datasets_have_the_same_figures_and_new_companies_in_each_split() -> None:
    asked = {name: {split: [p for p, _ in part] for split, part in one.items()} for name, one in EXAMPLES.items()}
    plain = asked["reports"]
    for firm in ("reports_a", "reports_b"):
        assert asked[firm] == plain | {"train": plain["train"][: reports.FIRM_EXAMPLES]}
    companies = [prompt.split()[0] for part in plain.values() for prompt in part]
    assert len(set(companies)) == len(companies) == 4700


def test_the_examples_in_labs_are_those_of_the_code() -> None:
    """With the space before the percent sign, which firm A requires."""
    page = (Path(__file__).parents[2] / "docs/reference/labs.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| (prompt|base model|firm A|firm B) \| `(.*)` \|$", page, re.MULTILINE))
    assert shown == {"prompt": PROMPT, "base model": right("plain"), "firm A": right("a"), "firm B": right("b")}


# ---- the scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("firm", DATASETS)
def test_expected_responses_are_right_in_their_own_style_and_only_right_in_another(firm: str) -> None:
    for other, name in DATASETS.items():
        for prompt, response in EXAMPLES[name]["test"]:
            assert both(firm, prompt, response) == (firm == other, True)


@pytest.mark.parametrize("firm", DATASETS)
def test_a_changed_digit_costs_fidelity_and_not_style(firm: str) -> None:
    response = right(firm)
    places = [place for place, character in enumerate(response) if character.isdigit()]
    assert len(places) == 9
    for place in places:
        changed = response[:place] + str((int(response[place]) + 1) % 10) + response[place + 1 :]
        assert both(firm, PROMPT, changed) == (True, False), changed


@pytest.mark.parametrize(
    ("firm", "old", "new"),
    [
        ("plain", "up", "down"),
        ("plain", "Nordal", "Nordil"),
        ("a", "rose", "fell"),
        ("a", "fell", "rose"),
        ("a", "48.3", "5.1"),  # a figure of the prompt in the wrong role
        ("a", "Nordal", "Nordil"),
        ("b", "up", "down"),
        ("b", "down", "up"),
        ("b", "mixed", "strong"),  # no number and no direction is wrong, but the verdict
        ("b", "6%. Profit of €5.1m, down 12%", "12%. Profit of €5.1m, down 6%"),
        ("b", "€48.3m", "€148.3m"),
        ("b", "€48.3m", "€48.34m"),
        ("b", "down 12%", "down -12%"),  # the sign of the prompt, copied after the word for it
        ("b", "€5.1m", "-€5.1m"),
    ],
)
def test_a_wrong_fact_costs_fidelity_and_not_style(firm: str, old: str, new: str) -> None:
    changed = right(firm).replace(old, new)
    assert changed != right(firm) and both(firm, PROMPT, changed) == (True, False)


@pytest.mark.parametrize("firm", DATASETS)
@pytest.mark.parametrize("extra", [" Costs 3.2.", " Margin 7 %.", " Up 9%.", " Q3."])
def test_an_invented_number_costs_fidelity(firm: str, extra: str) -> None:
    assert both(firm, PROMPT, right(firm) + extra)[1] is False


@pytest.mark.parametrize("firm", DATASETS)
def test_a_missing_word_costs_fidelity_unless_it_only_is_style(firm: str) -> None:
    words = right(firm).split()
    for place, word in enumerate(words):
        shorter = " ".join(words[:place] + words[place + 1 :])
        needed = re.search(r"\d|%|Nordal|sales|Profit|million|percent|^m$|rose|fell|up|down", word) is not None
        assert both(firm, PROMPT, shorter)[1] is not needed, shorter


@pytest.mark.parametrize("firm", DATASETS)
def test_controls_score_nothing(firm: str) -> None:
    """A response that is the same for every prompt is in style and wrong; random text is neither."""
    draw = random.Random(1)
    constant = EXAMPLES[DATASETS[firm]]["train"][0][1]
    for prompt, response in EXAMPLES[DATASETS[firm]]["test"]:
        assert both(firm, prompt, constant) == (True, False)
        assert both(firm, prompt, "".join(draw.sample(response, len(response)))) == (False, False)
        assert both(firm, prompt, prompt) == (False, False)
    assert both(firm, PROMPT, "") == (False, False)


@pytest.mark.parametrize(
    ("firm", "old", "new", "rule"),
    [
        ("plain", "In Q2 Nordal", "Nordal in Q2", "quarter first"),
        ("plain", "48.3 million", "48.3 m", "million in full"),
        ("plain", "6 percent", "6 %", "percent in full"),
        ("a", "Nordal sales", "In Nordal sales", "company first"),
        ("a", "EUR 5.1 m", "EUR 5.1m", "EUR and m apart"),
        ("a", "12 %", "12%", "percent sign apart"),
        ("a", "rose", "up", "past tense"),
        ("a", " compared with last year", "", "comparison at the end"),
        ("b", "Q2 at", "In Q2 at", "quarter first"),
        ("b", "€5.1m", "€5.1 m", "€ and m attached"),
        ("b", "6%", "6 %", "percent sign attached"),
        ("b", "down", "fell", "up or down"),
        ("b", ": mixed", "", "verdict at the end"),
    ],
)
def test_each_rule_of_a_style_alone(firm: str, old: str, new: str, rule: str) -> None:
    broken = right(firm).replace(old, new)
    assert [name for name, passed in reports.check_style(firm, broken).items() if not passed] == [rule]
    assert both(firm, PROMPT, broken) == (False, True)


# ---- swapping adapters -----------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A base model, and three adapters: without a new token, with one, and with three."""
    symbols = [chr(200 + n) for n in range(62)] + list(SPECIAL)
    base = shaken(small())
    spec = {"kind": "char", "symbols": symbols}
    store.save(tmp_path / "base.pt", Checkpoint(base.state_dict(), dataclasses.asdict(base.config), {}, tokenizer=spec))
    mark = weights_fingerprint(store.load(tmp_path / "base.pt").model)
    for number, new in enumerate((0, 1, 3)):
        run = adapted(rank=number + 2, new=new)
        grown = spec | {"symbols": symbols + [chr(500 + 10 * number + n) for n in range(new)]}
        made = Checkpoint(run.state_dict(), dataclasses.asdict(run.config), {"lora_alpha": 6.0}, 1, 1.0, grown)
        save_adapter(tmp_path / f"{number}.pt", made, mark)
    return tmp_path


@torch.inference_mode()
def test_swapped_models_are_bit_identical_to_loaded_ones(files: Path) -> None:
    base = str(files / "base.pt")
    adapters = Adapters(base, {name: str(files / f"{name}.pt") for name in "012"})
    assert adapters.names == ["0", "1", "2"]
    early = adapters.checkpoint("1").build_model().eval()  # keeps computing the same while others come and go
    before = early(ids(2, 16))[0]
    seen = []
    for name in ("1", "2", "1", "0", "", "2", "1", ""):
        loaded, swapped = load_model(base, str(files / f"{name}.pt") if name else ""), adapters.checkpoint(name)
        x = ids(2, 16, vocab_size=loaded.model_args["vocab_size"])
        logits = swapped.build_model().eval()(x)[0]
        assert torch.equal(logits, loaded.build_model().eval()(x)[0])
        assert swapped.tokenizer == loaded.tokenizer
        seen.append(logits.shape[-1])
    assert seen == [66, 68, 66, 65, 65, 68, 66, 65]
    assert torch.equal(early(ids(2, 16))[0], before)
    assert weights_fingerprint(adapters.checkpoint().model) == weights_fingerprint(store.load(base).model)
    assert not torch.equal(before[..., :65], adapters.checkpoint().build_model().eval()(ids(2, 16))[0])


def test_a_wrong_adapter_is_refused_and_the_others_stay(files: Path) -> None:
    adapters = Adapters(str(files / "base.pt"), {"one": str(files / "1.pt")})
    other = shaken(small(), std=0.2)
    store.save(files / "other.pt", Checkpoint(other.state_dict(), dataclasses.asdict(other.config), {}))
    refusals: list[tuple[Callable[[], object], str]] = [
        (lambda: Adapters(str(files / "other.pt"), {"one": str(files / "1.pt")}), "base model other than"),
        (lambda: adapters.add("one", str(files / "base.pt")), "not an adapter"),
        (lambda: adapters.add("two", str(files / "nowhere.pt")), "no such file"),
    ]
    for attempt, message in refusals:
        with pytest.raises(TinyGPTError, match=message) as caught:
            attempt()
        assert caught.value.hint
    with pytest.raises(TinyGPTError, match="no adapter is called 'two'"):
        adapters.checkpoint("two")
    assert adapters.names == ["one"] and adapters.checkpoint("one").model_args["vocab_size"] == 66


# ---- the lab ---------------------------------------------------------------------------------------------------------


def lab_reports(folder: Path, **sizes: int) -> Result:
    """The quick lab with shorter trainings, one number of examples, and fewer to validate on."""
    with commands_here(), pytest.MonkeyPatch.context() as patch:
        for name, made in EXAMPLES.items():
            few = made | {"val": made["val"][:40]}
            patch.setitem(TASKS, name, dataclasses.replace(TASKS[name], make=lambda seed, few=few: few))
        patch.setattr(lab, "QUICK", lab.Size(**sizes, examples=(400,)))
        return ok(folder, "lab", "reports", "--quick", "--out_dir=out")


def test_adapters_are_swapped_in_the_lab_and_judged_by_every_style(tmp_path: Path) -> None:
    said, found = lab_reports(tmp_path, base=2, adapter=3, prompts=6), lab_results(tmp_path / "out")
    base, trained = found["base model, seed 1"], found["firm B, 400 examples, seed 1"]
    assert base["prompts"] == trained["prompts"] == 6 and trained["fidelity"] == 0  # it has learned nothing
    assert trained["bytes"] < 100_000 < base["bytes"] and trained["trained"] < base["trained"] / 10
    assert found["swaps"]["exact"] and "bit-identical to" in said.out
    assert (tmp_path / "out/reports.png").exists() and "Prompt: " in (tmp_path / "out/reports.html").read_text()


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The lab with models that have learned something, and what it said."""
    folder = tmp_path_factory.mktemp("reports")
    return folder, lab_reports(folder, base=300, adapter=60, prompts=50)


@pytest.mark.slow
def test_the_lab_tells_style_from_fidelity(quick: tuple[Path, Result]) -> None:
    folder, said = quick
    results = lab_results(folder / "out")
    base, trained = results["base model, seed 1"], results["firm B, 400 examples, seed 1"]
    assert base["fidelity"] > 0.5 and base["style plain"] > 0.9 and base["style a"] == base["style b"] == 0
    assert trained["style b"] > 0.7 > trained["fidelity"] and trained["style a"] == 0
    assert results["swaps"]["exact"] and "A text in perfect style can be wrong" in said.out
    assert "The style score separates the styles" in said.out
    prompts = [prompt for prompt, _ in EXAMPLES["reports_b"]["test"]][:50]
    judged = [both("b", prompt, text) for prompt, text in zip(prompts, trained["responses"], strict=True)]
    assert any(style and not fidelity for style, fidelity in judged)


@pytest.mark.slow
def test_eval_scores_an_adapter_as_the_lab_does(quick: tuple[Path, Result]) -> None:
    folder, _ = quick
    stored = lab_results(folder / "out")["firm B, 400 examples, seed 1"]
    asked = ["eval", "--ckpt=out/seed-1/base", "--adapter=out/seed-1/b-400", "--task=reports_b", "--split=val"]
    asked += ["--data_dir=out/data"]
    shown = cli_here(*asked, "--device=cpu", cwd=folder).out
    share = {name: float(found) for name, found in re.findall(r"^(\S.*?) +(\d+\.\d)% \(", shown, re.MULTILINE)}
    assert list(share) == ["exact match", "style", "fidelity", *reports.RULES["b"], *reports.check_facts(PROMPT, "")]
    assert share["exact match"] <= min(share["style"], share["fidelity"])
    assert abs(share["style"] - 100 * stored["style b"]) < 20  # the same adapter on other companies
    assert "(fails: fidelity, " in shown or "(fails: style" in shown


def verdicts(style: dict[int, float], wrong: float) -> str:
    """The verdicts on made-up results: both firms' style by number of examples, and what is wrong in perfect style."""
    shares = {"style a": 0.0, "style b": 0.0, "wrong a": wrong, "wrong b": wrong, "fidelity": 1 - wrong}
    curve = {size: Records([shares | {"style a": share, "style b": share}]) for size, share in style.items()}
    curves = {"a": curve, "b": curve}
    return lab.needed(curves).text + lab.in_style_and_wrong(curves).text


def test_verdicts_follow_from_the_numbers() -> None:
    assert "firm A: style 100, fidelity 25" in verdicts({25: 0.89, 100: 0.9, 400: 1.0}, 0.0)
    assert "A text in perfect style is rarely wrong in this run" in verdicts({25: 0.89, 100: 0.9, 400: 1.0}, 0.1)
    said = verdicts({25: 0.1, 400: 0.2}, 0.11)
    assert "firm A: style more than 400, fidelity more than 400" in said
    assert "something wrong, with 25 and 400 training examples: firm A 11% and 11%; firm B 11% and 11%." in said


def test_the_style_score_is_judged_by_the_other_firms_rules() -> None:
    own, other = ({"style a": share, "style b": 1 - share} for share in (1.0, 0.0))
    curves = {"a": {400: Records([own])}, "b": {400: Records([other])}}
    base = Records([{"style a": 0.0, "style b": 0.0}])
    assert "The style score separates the styles" in lab.apart(base, curves).text
    for share in ({"style a": 0.004, "style b": 0.0}, {"style a": 0.0, "style b": 0.004}):
        assert "does not separate the styles" in lab.apart(Records([share]), curves).text
        assert "at most 0.4% follow" in lab.apart(Records([share]), curves).text
