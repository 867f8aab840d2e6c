"""The verdict's rule on curves that were recorded, and the command that prints it."""

import json
import math
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_TRAIN, cli_here, ok, trained

from tinygpt import cli
from tinygpt.base.configs import parse as configfile
from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import FinetuneConfig, TrainConfig
from tinygpt.base.configs.parse import parse
from tinygpt.checkpoint.store import load
from tinygpt.examine.doctor.files import next_for_checkpoint
from tinygpt.training.log import read_run
from tinygpt.training.verdict import MEANINGS, RULES, Verdict, judge, remedy

# of runs on Tiny Shakespeare or a piece of it: step, training loss, validation loss, its standard error
CURVES = json.loads((Path(__file__).parents[1] / "fixtures/curves.json").read_text())
PRESETS = sorted(path for folder in (*configfile.PRESETS, *configfile.OTHERS) for path in folder.glob("*.yaml"))
SETTINGS = {"max_iters": 2000, "eval_interval": 250, "learning_rate": 1e-3, "n_layer": 4, "dataset": "tiny"}


def entries(rows: list[list[float]]) -> list[dict[str, Any]]:
    names = ("step", "train_loss", "val_loss", "val_loss_se")
    return [{"kind": "eval", **dict(zip(names, row, strict=False))} for row in rows]


def verdict(rows: list[list[float]], **sizes: int) -> Verdict:
    return judge(entries(rows), SETTINGS, "out", **sizes)


def rising(*above: float, error: float = 0.01) -> list[list[float]]:
    """A curve that falls to 2.0 at step 200, and then exceeds that by so many standard errors."""
    after = [[300 + 100 * i, 1.8, 2.0 + errors * error, error] for i, errors in enumerate(above)]
    return [[0, 4.2, 4.2, error], [100, 2.4, 2.5, error], [200, 1.9, 2.0, error], *after]


def test_recorded_curves() -> None:
    """The last evaluations of `noisy` exceed the best one, but by less than two standard errors."""
    kinds = {"improving": "still improving", "overfitted": "overfitting", "noisy": "finished"}
    for name, curve in CURVES.items():
        found, kind = verdict(curve), kinds.get(name, name)
        assert found.kind == kind and found.rule == RULES[kind] and MEANINGS.keys() == RULES.keys()
        assert (found.since is None) is (kind in ("still improving", "finished"))


@pytest.mark.parametrize(
    ("above", "since"),
    [
        ((2.1, 2.1, 2.1), 300),
        ((2.1, 2.1, 1.9, 2.1, 2.1), None),  # not in a row
        ((1.9, 2.1, 2.1, 2.1), 400),
        ((1.9, 1.9, 1.9, 1.9), None),  # not by two standard errors
        ((3, 3, 3, 0.5), None),  # nearly so
        ((3, 3, 3, 2.1), 300),  # it did not
    ],
)
def test_overfitting_is_three_in_a_row_by_two_standard_errors(above: tuple[float, ...], since: int | None) -> None:
    found = verdict(rising(*above))
    assert found.since == since
    assert (found.kind == "overfitting") is (since is not None)
    last = "perhaps" if above[-1] > 2 else "not seen"
    assert found.overfitting == (last if since is None else f"since step {since}")


def test_too_little_data_is_overfitting_with_many_parameters_a_token() -> None:
    curve = rising(3, 3, 3)
    assert verdict(curve, parameters=800_000, tokens=80_001).kind == "overfitting"
    found = verdict(curve, parameters=800_000, tokens=79_999)
    assert found.kind == "too little data" and found.title == "too little data: overfitting since step 300"
    assert verdict(curve, parameters=800_000, tokens=0).kind == "overfitting"  # not known
    assert verdict(rising(-5, -9, -14), parameters=800_000, tokens=100).kind == "still improving"


def test_diverging_is_seen_in_the_training_loss_or_in_its_end() -> None:
    up = [[0, 4.2, 4.2, 0.01], [100, 2.2, 2.2, 0.01], [200, 3.0, 3.0, 0.01]]
    assert verdict(up).kind != "diverged"
    assert verdict([*up, [300, 3.3, 3.3, 0.01]]).title == "diverged since step 300"
    both = rising(3, 3, 3)
    for row in both[3:]:
        row[1] = 1.93  # by three standard errors above 1.9
    assert verdict(both, parameters=800_000, tokens=10).title == "diverged since step 300"
    ended = [*entries(rising(-5)), {"kind": "diverged", "step": 321, "seconds": 1, "reason": "the loss is nan"}]
    assert judge(ended, SETTINGS, "out").lines()[0] == "verdict:     diverged since step 321 (the loss is nan)"
    resumed = [*ended, *entries([[400, 1.5, 1.9, 0.01]])]
    assert judge(resumed, SETTINGS, "out").kind == "still improving"


@pytest.mark.parametrize(
    ("val", "patience", "max_iters", "kind"),
    [
        ([4.2, 1.94, 2.38], 0, 200, "rising"),  # below the first one, but no longer the best
        ([2.3 - 0.006 * n for n in range(40)], 0, 3900, "still improving"),  # by little at each of many evaluations
        ([2.0] * 40, 0, 3900, "finished"),
        ([4.2, 2.0, 2.3, 2.3, 2.3, 2.01, 2.005], 0, 600, "finished"),  # it recovered
        # three evaluations after the best one, not overfitting: finished, unless patience ended the run
        ([4.2, 2.5, 2.0, 2.01, 2.01, 2.01], 3, 2000, "stopped early"),
        ([4.2, 2.5, 2.0, 2.01, 2.01, 2.01], 4, 2000, "finished"),
        ([2.0, 2.1], 1, 2000, "stopped early"),
    ],
)
def test_a_verdict_is_about_the_end_of_the_run(val: list[float], patience: int, max_iters: int, kind: str) -> None:
    curve = entries([[100 * n, loss - 0.1, loss, 0.01] for n, loss in enumerate(val)])
    found = judge(curve, SETTINGS | {"patience": patience, "max_iters": max_iters}, "out")
    assert (found.kind, found.rule) == (kind, RULES[kind])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_few_evaluations_are_no_trend(count: int) -> None:
    """While the run goes on it is too early for one; at its end there is nothing to wait for."""
    assert verdict(rising()[:count]).kind == "too early"
    ended = judge(entries(rising()[:count]), SETTINGS | {"max_iters": 100 * max(0, count - 1)}, "out")
    assert ended.kind == ("trend unknown" if count else "too early")
    assert count < 2 or "the validation loss was 4.200 at step 0 and is 2.500 at step 100" in ended.lines()[0]


def test_without_standard_errors_every_change_may_be_chance() -> None:
    """As with evaluations of a single row, and those of version 0.1, which have none: overfitting is not ruled out."""
    said = verdict([row[:3] for row in rising(3, 3, 3)])
    assert said.kind == "trend unknown" and "no standard error" in said.why


def test_three_evaluations_are_compared_with_the_first() -> None:
    """With three evaluations, none precedes the last three, so the verdict mentions none."""
    curve = [[0, 4.0, 4.0, 0.01], [10, 3.0, 3.0, 0.01], [20, 2.5, 2.5, 0.01], [30, 2.2, 2.2, 0.01]]
    assert "1.500 after step 0, to 2.500" in verdict(curve[:3]).why
    assert "1.800 after step 0, to 2.200" in verdict(curve).why


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_the_schedule_of_each_preset_allows_a_verdict(preset: Path) -> None:
    """Computed, not trained: the steps at which the run is evaluated, and a loss that falls at each of them."""
    config = parse(FinetuneConfig if preset.stem.startswith("finetune") else TrainConfig, [str(preset)])
    steps = [*range(0, config.max_iters, config.eval_interval), config.max_iters]
    curve = entries([[step, 4 - n / len(steps), 4 - n / len(steps), 1e-6] for n, step in enumerate(steps)])
    assert judge(curve, vars(config), config.out_dir).kind == "still improving"


@pytest.mark.parametrize("settings", [SETTINGS, {}, {**SETTINGS, "ckpt": "base/ckpt.pt"}])
def test_each_command_is_understood(settings: dict[str, Any]) -> None:
    """Its flags exist, whatever the folder is called."""
    folder = "a folder/it's"
    for name, curve in {**CURVES, "early": []}.items():
        for sizes in ({}, {"parameters": 10**6, "tokens": 10}):
            program, command, *args = shlex.split(judge(entries(curve), settings, folder, **sizes).command)
            assert program == "tinygpt" and (any(folder in arg for arg in args) or command == "prepare"), name
            parse(cli.config_class(command), [arg for arg in args if not arg.endswith("config.yaml")])


@pytest.mark.parametrize(
    ("kind", "settings", "changes"),
    [
        ("too little data", {"init_from": "b.pt"}, "--ckpt=b.pt --lora_rank=8 --out_dir=o-lora"),
        ("too little data", {"ckpt": "b.pt", "lora_rank": 4}, "--lora_rank=2 --out_dir=o-lora"),
        # a longer run decays to its own end, also after one whose configuration fixes the end, as nanoGPT's do
        ("still improving", {"lr_decay_iters": 9}, "--out_dir=o --max_iters=4000 --lr_decay_iters=0"),
        ("still improving", {}, "--out_dir=o --max_iters=4000"),
        ("trend unknown", {}, "--eval_interval=50 --out_dir=o-more-evals"),
        ("overfitting", {"dropout": 0.2}, "--dropout=0.4 --patience=3 --out_dir=o-dropout"),
    ],
)
def test_the_remedy_fits_the_settings(kind: str, settings: dict[str, Any], changes: str) -> None:
    commands = {"too little data": "finetune o/config.yaml", "still improving": "train --init_from=resume"}
    assert remedy(kind, SETTINGS | settings, "o") == f"tinygpt {commands.get(kind, 'train o/config.yaml')} {changes}"


def test_the_command_on_a_run_and_the_end_of_training_say_the_same(work: Path) -> None:
    said, result = trained(work).out, ok(work, "doctor", "out").out
    assert result.startswith("files:       intact\nverdict:     still improving (")
    assert "; the loss still falls, so longer training may help\n" in said and "\ntrained:     tinygpt " in result
    assert ok(work, "doctor", "out/ckpt.pt").out == result
    assert re.search(r"^overfitting: not seen$", result, re.MULTILINE)
    more = shlex.split(re.findall(r"^try: +(.*)", result, re.MULTILINE)[0])
    assert more == ["tinygpt", "train", "--init_from=resume", "--out_dir=out", "--max_iters=40", "--lr_decay_iters=0"]
    ok(work, *more[1:])  # and it is true


def test_a_run_that_diverges_says_so_in_its_metrics(work: Path) -> None:
    diverging = ["--learning_rate=1e30", "--grad_clip=0", "--warmup_iters=0"]
    assert cli_here(*TINY_TRAIN, *diverging, cwd=work).status == 1
    result = cli_here("doctor", "out", cwd=work)
    assert "\nverdict:     diverged since step " in result.out and "--learning_rate=3e+29" in result.out


def test_a_damaged_trail_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    draw, junk = random.Random(2), [None, "x", -1, 1e400, math.nan, [], {}, True, 10**30, ""]
    for _ in range(100):
        lines = [dict(entry) for entry in entries(CURVES["overfitted"])]
        for line in draw.choices(lines, k=4):
            line[draw.choice(["step", "kind", "train_loss", "val_loss", "val_loss_se"])] = draw.choice(junk)
        (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{")
        (tmp_path / "config.yaml").write_text(f"{draw.choice(list(SETTINGS))}: {json.dumps(draw.choice(junk))}\n")
        assert len(judge(*read_run(tmp_path), "out").lines()) >= 4


def test_an_unfinished_run_is_continued(run_copy: Path) -> None:
    log = run_copy / "out/metrics.jsonl"
    assert "unfinished" not in ok(run_copy, "doctor", "out").out
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-3]))
    out = ok(run_copy, "doctor", "out").out
    assert re.search(r"^unfinished:  1\d of 20 iterations$", out, re.MULTILINE), out
    assert re.search(r"^try: +tinygpt train --init_from=resume --out_dir=out$", out, re.MULTILINE), out
    log.unlink()
    assert ok(run_copy, "doctor", "out").out == "files:       intact\n"  # a model without a log has no verdict


def test_each_damaged_file_is_found(run_copy: Path) -> None:
    assert cli_here("doctor", "out", "data/tiny", cwd=run_copy).out.count("files:       intact\n") == 2
    for name in ("out/ckpt.pt", "out/last.pt", "out/metrics.jsonl", "data/tiny/train.bin"):
        content = (run_copy / name).read_bytes()
        (run_copy / name).write_bytes(content[:-9])
        result = cli_here("doctor", "out", "data/tiny", cwd=run_copy)
        assert result.status == 1 and re.search(rf"^FAIL +{name}: ", result.out, re.MULTILINE), result.out
        # the verdict's command may need what is damaged
        assert bool(re.search("^try: ", result.out, re.MULTILINE)) is (name == "data/tiny/train.bin")
        (run_copy / name).write_bytes(content)


def test_the_next_command_fits_the_model_and_its_dataset(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled, text = load(tuned / "out-finetune"), load(tuned / "out")
    monkeypatch.chdir(tuned.parent)
    assert next_for_checkpoint(labelled, "run", "tuned/data") == "tinygpt eval run --data_dir=tuned/data"
    assert next_for_checkpoint(labelled, "run", "data") == "tinygpt sample run --plain"
    assert next_for_checkpoint(text, "a b", "data") == "tinygpt sample 'a b'"
    assert suggest.next_command({}, "out", True, prompt="1 2") == "tinygpt sample out --start '1 2'"
