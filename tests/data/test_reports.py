"""The tasks `reports`: controls of style and fidelity; adapters swapped on one base model; tinygpt lab reports."""

import dataclasses
import random
import re
from pathlib import Path

import pytest
import torch
from conftest import Result, commands_here, lab_results, ok
from models import ids
from tasks_made import examples

from tinygpt.checkpoint.adapter import Adapters, load_model, weights_fingerprint
from tinygpt.data.tasks import TASKS, reports
from tinygpt.examine.experiment.stages import Records
from tinygpt.learn.lab import reports as lab

DATASETS = {"plain": "reports", "a": "reports_a", "b": "reports_b"}
PROMPT = "Nordal Q2 sales 48.3 +6 profit 5.1 -12"
EXAMPLES = {name: examples(name) for name in DATASETS.values()}


def both(firm: str, prompt: str, response: str) -> tuple[bool, bool]:
    """Style and fidelity, by the score of the task."""
    checks = TASKS[DATASETS[firm]].scores(prompt, "", response)  # type: ignore[misc]
    return checks["style"], checks["fidelity"]


def right(firm: str) -> str:
    return reports.STYLES[firm](reports.figures_of(PROMPT))


@pytest.mark.parametrize("firm", DATASETS)
def test_a_changed_digit_and_an_invented_number_cost_fidelity(firm: str) -> None:
    digits = list(re.finditer(r"\d", right(firm)))
    assert len(digits) == 9
    for digit in digits:
        changed = f"{right(firm)[: digit.start()]}{(int(digit[0]) + 1) % 10}{right(firm)[digit.end() :]}"
        assert both(firm, PROMPT, changed) == (True, False), changed
    for extra in (" Costs 3.2.", " Margin 7 %.", " Q3."):
        assert both(firm, PROMPT, right(firm) + extra)[1] is False


@pytest.mark.parametrize(
    ("firm", "old", "new"),
    [
        ("plain", "up", "down"),
        ("plain", "had sales", "had costs"),
        ("a", "Profit", "Result"),
        ("a", "48.3", "5.1"),  # a figure of the prompt in the wrong role
        ("a", "Nordal", "Nordil"),
        ("b", "mixed", "strong"),  # no number and no direction is wrong, but the verdict
        ("b", "6%. Profit of €5.1m, down 12%", "12%. Profit of €5.1m, down 6%"),
        ("b", "down 12%", "down -12%"),  # the sign of the prompt, copied after the word for it
    ],
)
def test_a_wrong_fact_costs_fidelity_and_not_style(firm: str, old: str, new: str) -> None:
    changed = right(firm).replace(old, new)
    assert changed != right(firm) and both(firm, PROMPT, changed) == (True, False)


@pytest.mark.parametrize("firm", DATASETS)
def test_expected_responses_are_right_and_controls_score_nothing(firm: str) -> None:
    """A response that is the same for every prompt is in style and wrong; random text is neither."""
    draw, constant = random.Random(1), EXAMPLES[DATASETS[firm]]["train"][0][1]
    for other, name in DATASETS.items():
        for prompt, response in EXAMPLES[name]["test"][:200]:
            assert both(firm, prompt, response) == (firm == other, True)
            assert both(firm, prompt, constant) == (True, False)
            for text in ("".join(draw.sample(response, len(response))), prompt, ""):
                assert both(firm, prompt, text) == (False, False)


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


@torch.inference_mode()
def test_swapped_models_are_bit_identical_to_loaded_ones(models: Path) -> None:
    base, lora = str(models / "out"), str(models / "out-lora")
    adapters = Adapters(base, {"lora": lora})
    early = adapters.checkpoint("lora").build_model().eval()  # keeps computing the same while others come and go
    x = ids(2, 16, vocab_size=20)
    before = early(x)[0]
    for name in ("", "lora", ""):
        loaded, swapped = load_model(base, lora if name else ""), adapters.checkpoint(name)
        assert torch.equal(swapped.build_model().eval()(x)[0], loaded.build_model().eval()(x)[0])
        assert swapped.tokenizer == loaded.tokenizer
        assert (before.shape[-1] > swapped.model_args["vocab_size"]) == (not name)  # the adapter has new tokens
    assert torch.equal(early(x)[0], before)
    assert weights_fingerprint(adapters.checkpoint().model) == weights_fingerprint(load_model(base).model)


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
    asked = ["eval", "--ckpt=out/seed-1/base", "--adapter=out/seed-1/b-400", "--task=reports_b", "--split=val"]
    shown = ok(tmp_path, *asked, "--data_dir=out/data", "--device=cpu").out
    scores = re.findall(r"^(\S.*?) +\d+\.\d% \(", shown, re.MULTILINE)
    assert scores == ["exact match", "style", "fidelity", *reports.RULES["b"], *reports.check_facts(PROMPT, "")]
    assert "(fails: style" in shown


@pytest.mark.slow
def test_the_lab_tells_style_from_fidelity(tmp_path: Path) -> None:
    said, results = lab_reports(tmp_path, base=300, adapter=60, prompts=20), lab_results(tmp_path / "out")
    base, trained = results["base model, seed 1"], results["firm B, 400 examples, seed 1"]
    assert base["fidelity"] > 0.5 and base["style plain"] > 0.9 and base["style a"] == base["style b"] == 0
    assert trained["style b"] > 0.7 > trained["fidelity"] and trained["style a"] == 0
    assert results["swaps"]["exact"] and "A text in perfect style can be wrong" in said.out
    assert "The style score separates the styles" in said.out


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
