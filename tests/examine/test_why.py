"""tinygpt why: planted examples are found, tested and proved; the older estimate. The derivative: test_why_exact.py."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import lab_results, ok, refused
from labs import quick
from models import EVERYDAY, SMALL, shaken, small
from runs import LEARN, MODEL, TAUGHT
from scipy.stats import binomtest, ttest_1samp

from tinygpt import api
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.examine import WhyConfig
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import store
from tinygpt.data.rows import TextRows
from tinygpt.examine.experiment.stages import Records
from tinygpt.examine.why import effects, influence
from tinygpt.examine.why.exact import exact_effects
from tinygpt.examine.why.explained import load_run, output
from tinygpt.examine.why.proof import INFLUENTIAL, RANDOM, is_positive, proof, random_rows, stage_name
from tinygpt.examine.why.rows import exposures_of, positions_of, sums_of_rows, without
from tinygpt.examine.why.step import Batch, ExplicitGPT, State, Training
from tinygpt.fast.optimizer import FlatWeights
from tinygpt.learn.lab import why as lab
from tinygpt.training.losses import tensors


def answer(folder: Path, run: str, start: str, text: str, *flags: str) -> dict[str, Any]:
    """The answer of `tinygpt why --json`."""
    return dict(json.loads(ok(folder, "why", run, "--start", start, "--text", text, "--json", *flags).out))


def train_on(planted: Path, folder: Path, *flags: str) -> None:
    """A run out/ in this folder, on a dataset of `planted`."""
    ok(folder, "train", "--dataset=mine", "--block_size=20", f"--data_dir={planted}/data", *MODEL, *LEARN, *flags)


def test_the_line_that_alone_teaches_an_output_is_found_by_the_command_and_by_the_api(planted: Path) -> None:
    found, other = answer(planted, "out", *TAUGHT, "--count=3"), ("017 red", "rot")
    first, second, _ = found["raised"]
    assert (first["text"], first["place"]) == ("zzq xxk -> lila", "pairs.jsonl line 31")
    assert first["effect"] < 3 * second["effect"] < 0 and all(entry["effect"] > 0 for entry in found["lowered"])
    assert found["repeated"] == pytest.approx(found["log_probability"], abs=0.01)
    run = api.Run(planted / "out")  # whose dataset is found in the folder where the run was started
    effects, model, similar, _ = run.influence([TAUGHT])
    dataset = api.Dataset(str(planted / "data"), "mine")
    row = dataset.sources["train"].examples(dataset.tokenizer).index(TAUGHT)
    assert effects.argmin() == row and effects[row] == pytest.approx(first["effect"])
    assert model.log_probabilities(TAUGHT[0], [TAUGHT[1]])[0] == pytest.approx(math.log(found["probability"]), abs=1e-3)
    several, alone = run.influence([TAUGHT, other]).effects, run.influence([other]).effects
    assert several == pytest.approx(effects + alone, abs=1e-3)  # log-probabilities are added
    weights, trained = model.model.state_dict(), store.load(planted / "out/ckpt.pt").model
    assert all(torch.allclose(weights[name], trained[name], atol=1e-2) for name in trained)
    assert similar(np.array([row])).shape == (1,) and row not in similar(np.array([row]))
    without = run.retrain([row])
    assert without.log_probabilities(TAUGHT[0], [TAUGHT[1]])[0] < math.log(found["probability"]) - 1
    seeded = run.retrain([], seed=2).model.state_dict()
    assert not all(torch.allclose(weights[name], seeded[name], atol=1e-2) for name in trained)
    text = api.Run(planted / "out-text")
    for call, message in (
        (lambda: run.retrain([0, 300]), "no training row 300"),
        (lambda: run.retrain(effects < 0), "a mask does not number"),
        (lambda: similar(np.arange(50)), "only 8 other training rows"),
        (lambda: run.influence([TAUGHT], sweeps=1), "0, or at least 2"),
        (lambda: text.influence([("Quark ", "jump"), ("Quark j", "ump")]), "one output at a time"),
    ):
        with pytest.raises(TinyGPTError, match=message):
            call()


def test_a_planted_sentence_of_plain_text_is_found_at_its_line(planted: Path) -> None:
    first = answer(planted, "out-text", "Quark j", "ump vex", "--count=2")["raised"][0]
    assert "Quark" in first["text"] or "vex" in first["text"]
    assert first["place"] in ("line 90 of the training text", "line 91 of the training text")


def test_derivatives_are_tested_on_trainings_without_random_rows(planted: Path, tmp_path: Path) -> None:
    """Step by step: the median of the derivatives, and what the others predict for each set of rows."""
    short = ["--max_iters=15", "--eval_interval=15", "--learning_rate=1e-3"]
    train_on(planted, tmp_path, *short)
    ask = ["out", "--start=017 red", "--text=rot", "--sweeps=3"]
    found = json.loads(ok(tmp_path, "why", *ask, "--json").out)
    explained = load_run(WhyConfig(run=str(tmp_path / "out"), data_dir=str(planted / "data")))
    x, y = output(explained, ("017 red", "rot"))
    nothing, *sets = (effects.random_set(58, number) for number in range(3))
    assert len(nothing) == 0 and [len(set(rows.tolist())) for rows in sets] == [3, 3]  # a twentieth
    derivatives, proved = [], []
    for rows in (nothing, *sets):
        training = Training(explained, explained.config.seed, rows)
        tokens, weights = exact_effects(training, [(x, y)], 1e9)
        derivatives.append(sums_of_rows(tokens[0], explained))
        again = training.run()
        assert torch.allclose(weights, again, atol=1e-4)
        proved.append(float(training.log_probability(again, x, y)))
    for derivative, rows in zip(derivatives, (nothing, *sets), strict=True):
        derivative[rows] = np.nan
    raised = np.nanmedian(derivatives, axis=0).min()
    assert found["raised"][0]["effect"] == pytest.approx(raised, rel=1e-3)
    assert found["test"]["proved"] == pytest.approx([value - proved[0] for value in proved[1:]], abs=1e-3)
    other = np.nanmedian([derivatives[0], derivatives[2]], axis=0)
    predicted, changed = (np.array(found["test"][name]) for name in ("predicted", "proved"))
    assert predicted[0] == pytest.approx(other[sets[0]].sum(), rel=1e-2)
    assert found["test"]["error"] == pytest.approx(np.linalg.norm(predicted - changed) / np.linalg.norm(changed))
    said = ok(tmp_path, "why", *ask).out
    assert "estimated by the median derivative of 3 trainings\n" in said and "differentiate" not in said  # it is stored
    assert found["test"]["error"] < 1 and "are no guide" not in said


@pytest.mark.parametrize("options", EVERYDAY, ids=str)
def test_the_derivative_of_a_batch_is_that_of_autograd_row_by_row(options: dict[str, Any]) -> None:
    """With every option of the model, which can be differentiated twice."""
    training = Training.__new__(Training)
    training.model = ExplicitGPT(small(**options).config)
    shaken(training.model, 0.1)
    training.flat = FlatWeights(training.model, torch.float32)
    source = TextRows(np.random.default_rng(1).integers(0, SMALL.vocab_size, 60).astype(np.uint16))
    x, y = tensors(source, 16, source.all_rows(16))
    y[:, ::3] = -1
    weights, count = training.flat.weights.detach(), int((y >= 0).sum())
    direction, expected = torch.randn(len(weights)), []
    for row, column in (y >= 0).nonzero().tolist():
        alone = torch.full_like(y, -1)
        alone[row, column] = y[row, column]
        gradient = training.gradient(weights, 0, Batch(x[None], alone[None], torch.ones(1, *y.shape), np.zeros(0)))
        expected.append(float(gradient @ direction) / count)
    of_tokens = torch.ones(1, *y.shape, requires_grad=True)
    batch = Batch(x[None], y[None], of_tokens, np.zeros(0))
    gradient = training.gradient(weights.clone().requires_grad_(), 0, batch)
    found = torch.autograd.grad(gradient, of_tokens, direction)[0][0]
    assert found[y >= 0].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4) and not found[y < 0].any()


@pytest.mark.parametrize(
    ("name", "pair", "fast"), [("mine", TAUGHT, True), ("text", ("The kin", "g of my"), False)], ids=["pairs", "text"]
)
def test_all_effects_together_are_the_change_that_training_made(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, pair: tuple[str, str], fast: bool
) -> None:
    """To first order, if the second moment did not change, and without weight decay; with the dropout of the run."""
    monkeypatch.setattr(influence, "share_of_change", lambda first, second: 1.0)
    few = ["--learning_rate=1e-4", "--lr_schedule=constant", "--warmup_iters=0", "--max_iters=30", "--grad_clip=0.5"]
    few += ["--weight_decay=0", "--dropout=0.2", "--batch_size=8", "--gradient_accumulation_steps=2"]
    train_on(planted, tmp_path, f"--dataset={name}", f"--fast={fast}", *few)
    explained = load_run(WhyConfig(run=str(tmp_path / "out"), data_dir=str(planted / "data")))
    x, y = output(explained, pair)
    training = Training(explained, explained.config.seed)
    before, after = (float(training.log_probability(w, x, y)) for w in (training.start().weights, training.run()))
    estimate, weights = influence.estimated_effects(training, x, y)
    assert torch.allclose(weights, training.run(), atol=1e-5)
    assert after - before > 0.02 and -estimate.sum() == pytest.approx(after - before, rel=0.05)


@pytest.mark.parametrize("other", [1.0, -0.5])
def test_the_preconditioner_is_the_change_of_the_updates_of_adamw(other: float) -> None:
    """Gradients of 1 and `other` in turn, and one of them slightly larger: what do torch's updates change in all?"""

    def weight_and_state(change: float, steps: int = 2000) -> tuple[float, dict[str, torch.Tensor]]:
        weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.AdamW([weight], lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
        for step in range(steps):
            weight.grad = torch.tensor([(1.0, other)[step % 2] + change * (step in (998, 999))], dtype=torch.float64)
            optimizer.step()
        return float(weight.detach()), optimizer.state[weight]

    measured = -(weight_and_state(1e-4)[0] - weight_and_state(-1e-4)[0]) / 2e-4 / 2  # two gradients
    moments = weight_and_state(0.0, 1000)[1]
    state = State(torch.zeros(3), torch.cat((torch.ones(2), moments["exp_avg"])), moments["exp_avg_sq"])
    training: Any = SimpleNamespace(config=TrainConfig(beta1=0.9, beta2=0.99), adam=slice(2, None))
    direction = influence.preconditioned(training, state, 999, torch.ones(3, dtype=torch.float64))
    assert float(direction[2]) == pytest.approx(measured, abs=0.05)
    assert not direction[:2].any()  # Muon's matrices are left out


def test_momentum_applies_the_first_gradient_more_and_the_last_one_less() -> None:
    """By hand, for two iterations: AdamW's first update is the first gradient, its second 0.9 / 1.9 of it."""
    config = TrainConfig(learning_rate=1.0, lr_schedule="constant", warmup_iters=0, max_iters=2)
    assert influence.applied_rates(config) == pytest.approx([1 + 0.9 / 1.9, 1 / 1.9])
    assert influence.applied_rates(dataclasses.replace(config, beta1=0.0)) == pytest.approx([1, 1])


@pytest.mark.slow
def test_the_proof_shows_what_the_planted_example_does_and_a_random_one_does_not(planted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(planted, tmp_path / "work", ignore=shutil.ignore_patterns("why")))
    flags = ["--prove", "--leave_out=1", "--seeds=2"]
    found = answer(folder, "out", *TAUGHT, *flags)
    proof = found["proof"]
    assert proof["right"] and proof["seeds"] == [1337, 1338]
    assert proof["log_probability"]["nothing"][0] == pytest.approx(found["repeated"], abs=1e-4)
    assert max(proof["change"]["the most influential"]) < -5 < -1 < min(proof["change"]["random ones"])
    # finished trainings are kept, and no model stays
    said = ok(folder, "why", "out", "--start", TAUGHT[0], "--text", TAUGHT[1], *flags).out
    assert "stage" not in said and "verdict:     these rows matter more than random ones: " in said
    for kept in (folder / "out/why").iterdir():
        assert {path.name for path in kept.iterdir()} <= {"why.json", ".lock"}


@pytest.mark.parametrize(("random_changes", "agrees"), [([-1, -2, 0], True), ([-4.5, -2, 0], False)])
def test_every_seed_must_agree(random_changes: list[float], agrees: bool) -> None:
    """Without the influential rows the log-probability falls by 4, 3 and 2."""
    values = {"nothing": [-1, -1, -1], INFLUENTIAL: [-5, -4, -3], RANDOM: [change - 1 for change in random_changes]}
    results = {stage_name(name, 3, seed): of_seeds[seed] for name, of_seeds in values.items() for seed in range(3)}
    found = proof(results, 3, [0, 1, 2], -3.0)
    assert found["change"] == {INFLUENTIAL: [-4, -3, -2], RANDOM: random_changes} and found["agrees"] == agrees


def test_random_rows_have_the_labels_of_the_influential_ones(planted: Path) -> None:
    explained = load_run(WhyConfig(run=str(planted / "out"), data_dir=str(planted / "data")))
    labels = [response for _, response in explained.source.examples(explained.dataset.tokenizer)]
    wanted = ["rot", "gelb", "blau", "gruen"]
    influential = np.array([labels.index(label) for label in wanted])
    for seed in range(2):
        drawn = random_rows(explained, influential, seed)
        assert [labels[row] for row in drawn] == wanted and not set(drawn) & set(influential)
        # with about as many targets in the training; of gelb there is only one other row
        exposures = exposures_of(explained, seed)
        assert np.abs(exposures[drawn] - exposures[influential])[[0, 2, 3]].max() <= 6
    assert (random_rows(explained, influential, 0) != drawn).any()


@pytest.mark.slow
def test_a_run_whose_best_step_is_early_is_trained_again(planted: Path, tmp_path: Path) -> None:
    few = ["--max_iters=30", "--eval_interval=3", "--patience=2", "--eval_iters=2", "--warmup_iters=2", "--min_lr=3"]
    train_on(planted, tmp_path, *few, "--gradient_accumulation_steps=2")
    found = answer(tmp_path, "out", *TAUGHT)
    assert found["repeated"] == pytest.approx(found["log_probability"], abs=0.02) and found["step"] < 30


@pytest.mark.slow
def test_a_resumed_run_of_plain_text_and_a_fine_tuned_one_are_trained_again(planted: Path, tmp_path: Path) -> None:
    few = ["--max_iters=20", "--eval_interval=10", "--eval_iters=2", "--warmup_iters=2", "--lr_decay_iters=40"]
    train_on(planted, tmp_path, "--dataset=text", "--block_size=16", "--context_warmup=10", *few)
    ok(tmp_path, "train", "--init_from=resume", "--max_iters=40", "--quiet")
    tune = ["--ckpt=out", "--dataset=mine", "--out_dir=tuned", "--max_iters=20", "--eval_interval=10", "--quiet"]
    ok(tmp_path, "finetune", *tune, "--examples=40", "--device=cpu", "--dtype=float32", f"--data_dir={planted}/data")
    tuned = answer(tmp_path, "tuned", "017 red", "rot")
    assert tuned["rows"] == 40
    for found in (tuned, answer(tmp_path, "out", "Quark j", "ump")):
        assert found["repeated"] == pytest.approx(found["log_probability"], abs=0.02)


def test_a_run_on_a_mac_is_refused(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    checkpoint = store.load(planted / "out")
    store.save(tmp_path / "ckpt.pt", dataclasses.replace(checkpoint, training={"device": "mps"}))
    with pytest.raises(TinyGPTError, match="why does not support MPS"):
        load_run(WhyConfig(run=str(tmp_path), data_dir=str(planted / "data"), device="auto"))


@pytest.mark.parametrize("run", ["out", "out-text"])
def test_rows_left_out_lose_their_targets(planted: Path, run: str) -> None:
    explained = load_run(WhyConfig(run=str(planted / run), data_dir=str(planted / "data")))
    source, size, rows = explained.source, explained.config.block_size, explained.rows
    weights, positions = without(explained, np.array([3, 7])), positions_of(source, rows, size)
    y = source.rows(rows, size)[1]
    gone = (weights[positions] == 0) & (y >= 0)
    assert gone.any(axis=1).nonzero()[0].tolist() == [3, 7] and (gone == (y >= 0))[[3, 7]].all()
    assert (source.tokens[positions] == y)[y >= 0].all()
    assert sums_of_rows(1 - weights, explained).nonzero()[0].tolist() == [3, 7]


def test_more_than_chance_is_a_one_sided_t_test() -> None:
    draws = np.random.default_rng(0)
    for count in [*range(1, 11)] * 10:
        values = draws.normal(0.8, 1.0, count)
        expected = count > 1 and ttest_1samp(values, 0.0, alternative="greater").pvalue < 0.05
        assert is_positive(values) == expected, values


def test_damaged_results_are_named(planted: Path, tmp_path: Path) -> None:
    train_on(planted, tmp_path, "--max_iters=2", "--eval_interval=2")
    ask = ["why", "out", "--start=001 red", "--text=rot"]
    ok(tmp_path, *ask)
    (kept,) = (tmp_path / "out/why").glob("*/why.json")
    kept.write_text("{")
    said = refused(tmp_path, *ask)
    assert f"try: delete {kept.parent.relative_to(tmp_path)}\n" in said and "--out_dir" not in said


@pytest.mark.slow
def test_the_lab_ranks_the_wrong_labels_and_trains_again(tmp_path: Path) -> None:
    folder = quick(tmp_path, "why", lab, lab.Size(lines=40, iterations=4, answers=1, left_out=3, judges=3))
    stages, said = lab_results(folder), " ".join((folder / "said.txt").read_text(encoding="utf-8").split())
    rankings = {record["ranking"]: record for record in stages["wrong labels, seed 1"]}
    assert rankings.keys() == lab.RANKINGS.keys() and all(0 <= each["accuracy"] <= 1 for each in rankings.values())
    wrong = {name: record["wrong"] for name, record in rankings.items() if name != "none"}
    assert wrong["harm"] != wrong["known"] != wrong["loss"] and wrong["known"] == [True] * 4 + [False] * 36
    assert all(sum(ranking) == 4 and len(ranking) == 40 for ranking in wrong.values())
    changes = {record["left out"]: record["change"] for record in stages["answer 1, seed 1"]}
    assert changes.keys() == lab.GROUPS.keys() and 0 not in changes.values()
    assert "| known wrong labels" in said and " of 1 answers fell further" in said


def test_each_seed_of_the_lab_explains_other_lines(tmp_path: Path) -> None:
    stages = [stage for stage in lab.stages(LabConfig("why", seeds=3), tmp_path) if stage.name.startswith("answer")]
    assert sorted(stage.case["line"] for stage in stages) == list(range(3 * lab.FULL.answers))


def test_the_verdict_of_the_lab_is_a_sign_test() -> None:
    for count, wins in ((12, 10), (12, 9), (5, 5), (1, 1)):
        changes = {"influence": [-1.0] * wins + [1.0] * (count - wins), "random": [0.0] * count}
        verdict = lab.proves(changes, "random")
        chance = binomtest(wins, count, alternative="greater").pvalue
        assert ("not clearly more" not in verdict.text) == (chance < 0.05) and f"{chance:.3f}" in verdict.rule


def test_the_verdict_on_the_rankings_compares_their_medians() -> None:
    for harm, loss, finds in ((0.25, 0.29, "about as many as"), (0.29, 0.24, "more than")):
        shares = {"harm": harm, "loss": loss, "none": 0.0}
        results = {name: Records([{"found": share, "accuracy": 0.7}]) for name, share in shares.items()}
        assert f"{finds} by their loss" in lab.detects(results).text
