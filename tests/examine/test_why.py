"""tinygpt why: planted examples are found, tested and proved; the older estimate. The derivative: test_why_exact.py."""

import dataclasses
import json
import math
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import cli_here, lab_results, ok, refused
from labs import quick
from models import SMALL, every_pair, shaken, small
from runs import DISPUTED, LEARN, MODEL, TAUGHT
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
from tinygpt.examine.why.step import Batch, ExplicitGPT, State, Training, settings
from tinygpt.fast.optimizer import FlatWeights
from tinygpt.learn.lab import why as lab
from tinygpt.training.losses import tensors


@pytest.fixture
def copy(planted: Path, tmp_path: Path) -> Path:
    """A copy of `planted` without answers of other tests, to write in."""
    return Path(shutil.copytree(planted, tmp_path / "work", ignore=shutil.ignore_patterns("why")))


def answer(folder: Path, run: str, start: str, text: str, *flags: str) -> dict[str, Any]:
    """The answer of `tinygpt why --json`."""
    result: dict[str, Any] = json.loads(ok(folder, "why", run, "--start", start, "--text", text, "--json", *flags).out)
    return result


# ---- the estimate -----------------------------------------------------------------------------------------------


def test_the_example_that_alone_teaches_an_output_is_found_at_its_line(planted: Path) -> None:
    found = answer(planted, "out", *TAUGHT, "--count=3")
    first, second, _ = found["raised"]
    assert (first["text"], first["place"]) == ("zzq xxk -> lila", "pairs.jsonl line 31")
    assert first["effect"] < 3 * second["effect"] < 0 and len(found["lowered"]) == 3
    assert all(entry["effect"] > 0 for entry in found["lowered"])
    assert found["probability"] > 0.1 and found["tokens"] == 5
    assert found["repeated"] == pytest.approx(found["log_probability"], abs=0.01)
    # control: an output that many examples teach does not depend on it
    other = answer(planted, "out", "017 red", "rot", "--count=3")
    assert all("-> rot" in entry["text"] for entry in other["raised"])


def test_the_api_gives_the_effects_of_the_command_and_the_model_without_some_rows(planted: Path) -> None:
    found = answer(planted, "out", *TAUGHT, "--count=3")
    run = api.Run(planted / "out")  # whose dataset is found in the folder where the run was started
    effects, model, similar, _ = run.influence([TAUGHT])
    dataset = api.Dataset(str(planted / "data"), "mine")
    row = dataset.sources["train"].examples(dataset.tokenizer).index(TAUGHT)
    assert effects.argmin() == row and effects[row] == pytest.approx(found["raised"][0]["effect"])
    assert model.log_probabilities(TAUGHT[0], [TAUGHT[1]])[0] == pytest.approx(math.log(found["probability"]), abs=1e-3)
    several, *_ = run.influence([TAUGHT, ("017 red", "rot")])
    other, *_ = run.influence([("017 red", "rot")])
    assert several == pytest.approx(effects + other, abs=1e-3)  # log-probabilities are added
    weights, trained = model.model.state_dict(), store.load(planted / "out/ckpt.pt").model
    assert all(torch.allclose(weights[name], trained[name], atol=1e-2) for name in trained)
    assert similar(np.array([row])).shape == (1,) and row not in similar(np.array([row]))
    without = run.retrain([row])
    assert without.log_probabilities(TAUGHT[0], [TAUGHT[1]])[0] < math.log(found["probability"]) - 1
    seeded = run.retrain([], seed=2).model.state_dict()
    assert not all(torch.allclose(weights[name], seeded[name], atol=1e-2) for name in trained)
    for row in (-1, 300):
        with pytest.raises(TinyGPTError, match=f"no training row {row}"):
            run.retrain([0, row])
    for call, message in (
        (lambda: run.retrain(effects < 0), "a mask does not number"),
        (lambda: similar(effects < 0), "a mask does not number"),
        (lambda: similar(np.arange(50)), "only 8 other training rows"),
        (lambda: run.influence([]), "no output"),
        (lambda: run.influence([TAUGHT], sweeps=1), "0, or at least 2"),
        (lambda: run.influence([TAUGHT, ("", "rot")]), "the prompt is empty"),
        (lambda: run.influence([TAUGHT, ("017 red", " ")]), "--text is empty"),
        (lambda: api.Run(planted / "out-text").influence([("Quark ", "")]), "--text is empty"),
    ):
        with pytest.raises(TinyGPTError, match=message):
            call()
    assert similar([1, 2]).shape == (2,)
    with pytest.raises(TinyGPTError, match="one output at a time"):
        api.Run(planted / "out-text").influence([("Quark ", "jump"), ("Quark j", "ump")])


def test_interrupts_of_the_api_are_keyboard_interrupts(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Training.batch
    for times in (1, 2):  # the second one ends a command at once
        signals = iter([signal.SIGINT] * times)

        def interrupted(*args: Any, signals: Iterator[signal.Signals] = signals) -> Any:
            for number in signals:
                signal.raise_signal(number)
            return batch(*args)

        monkeypatch.setattr(Training, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.Run(planted / "out").retrain([0])


def test_a_contradicting_label_lowers_the_probability(planted: Path) -> None:
    found = answer(planted, "out", DISPUTED, "gelb", "--count=20")
    assert [entry["text"] for entry in found["raised"][:2]] == [f"{DISPUTED} -> gelb"] * 2
    assert f"{DISPUTED} -> rot" in [entry["text"] for entry in found["lowered"]]
    equal = sorted(found["raised"][:2], key=lambda entry: int(entry["row"]))
    assert [entry["place"] for entry in equal] == ["pairs.jsonl line 37", "pairs.jsonl line 43"]
    found = answer(planted, "out", DISPUTED, "rot")
    assert (found["raised"][0]["text"], found["lowered"][0]["text"]) == (f"{DISPUTED} -> rot", f"{DISPUTED} -> gelb")


def test_a_planted_sentence_of_plain_text_is_found_at_its_line(planted: Path) -> None:
    found = answer(planted, "out-text", "Quark j", "ump vex", "--count=2")
    assert all(any(part in entry["text"] for part in ("Quark", "vex")) for entry in found["raised"][:1])
    assert found["raised"][0]["place"] in ("line 90 of the training text", "line 91 of the training text")


def test_derivatives_are_tested_on_trainings_without_random_rows(copy: Path) -> None:
    """Step by step: the median of the derivatives, and what the others predict for each set of rows."""
    short = ["--max_iters=15", "--eval_interval=15", "--learning_rate=1e-3", "--out_dir=short"]
    ok(copy, "train", "--dataset=mine", "--block_size=20", *MODEL, *LEARN, *short)
    ask = ["short", "--start=017 red", "--text=rot", "--sweeps=3"]
    found = json.loads(ok(copy, "why", *ask, "--json").out)
    explained = load_run(WhyConfig(run=str(copy / "short"), data_dir=str(copy / "data")))
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
    assert found["test"]["predicted"][0] == pytest.approx(other[sets[0]].sum(), rel=1e-2)
    said = ok(copy, "why", *ask).out
    assert "set 2" in said and "set 3" not in said and "estimated by the median derivative of 3 trainings\n" in said
    assert f"relative error: {found['test']['error']:.3g} " in said and "differentiate" not in said  # it is stored
    assert ("are no guide" in said) == (found["test"]["error"] >= 1)
    for changes, error in (([1.0, 2.0], 0), ([0.0, 0.0], 1), ([0.0, 2.0], 0.2**0.5)):
        assert effects.Tested(raised, changes, [1.0, 2.0]).error == pytest.approx(error)
    assert effects.Tested(raised, [1.0, 2.0], [0.0, 0.0]).error == 1


def test_no_derivative_counts_for_rows_that_its_training_leaves_out() -> None:
    """Where only such a row touches a weight, AdamW's derivative is huge."""
    rows = [effects.random_set(40, number).tolist() for number in range(4)]
    derivatives = [np.full(40, value) for value in (1.0, 2.0, 3.0, 6.0)]
    for derivative, left_out in zip(derivatives, rows, strict=True):
        derivative[left_out] = 1e9
    found = effects.tested(derivatives, [-5.0, -4.0, -4.0, -7.0])
    of_others = {1: [1.0, 3.0, 6.0], 2: [1.0, 2.0, 6.0], 3: [1.0, 2.0, 3.0]}
    assert found.proved == [1.0, 1.0, -2.0] and found.effects.max() < 10
    for number in (1, 2, 3):
        alone = [row for row in rows[number] if sum(row in left_out for left_out in rows) == 1]
        assert alone and found.effects[alone].tolist() == [np.median(of_others[number])] * len(alone)
    assert sorted(found.effects)[20] == 2.5  # of all four


@pytest.mark.slow
def test_where_the_derivatives_miss_the_sizes_it_is_said(copy: Path) -> None:
    """A learning rate that is much too high: the training without other rows is another one."""
    rough = ["--max_iters=40", "--eval_interval=40", "--learning_rate=0.1", "--out_dir=rough"]
    ok(copy, "train", "--dataset=mine", "--block_size=20", *MODEL, *LEARN, *rough)
    ask = ["rough", "--start=017 red", "--text=rot", "--sweeps=2"]
    assert "the sizes of the effects below are no guide" in ok(copy, "why", *ask).out
    found = json.loads(ok(copy, "why", *ask, "--json").out)
    influence = api.Run(copy / "rough", data_dir=copy / "data").influence([("017 red", "rot")], sweeps=2)
    assert (
        influence.test and influence.test.error == pytest.approx(found["test"]["error"]) and influence.test.error >= 1
    )
    assert influence.effects.min() == pytest.approx(found["raised"][0]["effect"])


@every_pair
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
    ("name", "start", "text", "fast"),
    [
        ("mine", *TAUGHT, True),
        pytest.param("mine", *TAUGHT, False, marks=pytest.mark.slow),
        ("text", "The kin", "g of my", False),
    ],
)
def test_all_effects_together_are_the_change_that_training_made(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: str, text: str, fast: bool
) -> None:
    """To first order, if the second moment did not change, and without weight decay; with the dropout of the run."""
    monkeypatch.setattr(influence, "share_of_change", lambda first, second: 1.0)
    few = ["--learning_rate=1e-4", "--lr_schedule=constant", "--warmup_iters=0", "--max_iters=30", "--grad_clip=0.5"]
    few += ["--weight_decay=0", "--dropout=0.2", f"--data_dir={planted / 'data'}", f"--fast={fast}"]
    few += ["--block_size=20", "--batch_size=8", "--gradient_accumulation_steps=2"]
    ok(tmp_path, "train", f"--dataset={name}", *MODEL, *LEARN, *few)
    explained = load_run(WhyConfig(run=str(tmp_path / "out"), data_dir=str(planted / "data")))
    x, y = output(explained, (start, text))
    training = Training(explained, explained.config.seed)
    before, after = (float(training.log_probability(w, x, y)) for w in (training.start().weights, training.run()))
    estimate, weights = influence.estimated_effects(training, x, y)
    assert torch.allclose(weights, training.run(), atol=1e-5)
    assert after - before > 0.02 and -estimate.sum() == pytest.approx(after - before, rel=0.05)


@pytest.mark.parametrize("other", [1.0, -1.0, -0.5])
def test_the_preconditioner_is_the_change_of_the_updates_of_adamw(other: float) -> None:
    """Gradients of 1 and `other` in turn, and one of them slightly larger: what do torch's updates change in all?"""

    def weight_and_state(change: float, more: int) -> tuple[float, dict[str, torch.Tensor]]:
        weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.AdamW([weight], lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
        for step in range(1000 + more):
            weight.grad = torch.tensor([(1.0, other)[step % 2] + change * (step in (998, 999))], dtype=torch.float64)
            optimizer.step()
        return float(weight.detach()), optimizer.state[weight]

    measured = -(weight_and_state(1e-4, 1000)[0] - weight_and_state(-1e-4, 1000)[0]) / 2e-4 / 2  # two gradients
    moments = weight_and_state(0.0, 0)[1]
    first = torch.cat((torch.ones(2), moments["exp_avg"]))
    state = State(torch.zeros(3), first, moments["exp_avg_sq"])
    training: Any = SimpleNamespace(config=TrainConfig(beta1=0.9, beta2=0.99), adam=slice(2, None))
    direction = influence.preconditioned(training, state, 999, torch.ones(3, dtype=torch.float64))
    assert float(direction[2]) == pytest.approx(measured, abs=0.05)
    assert not direction[:2].any()  # Muon's matrices are left out


def test_momentum_applies_the_first_gradient_more_and_the_last_one_less() -> None:
    """By hand, for two iterations: AdamW's first update is the first gradient, its second 0.9 / 1.9 of it."""
    config = TrainConfig(learning_rate=1.0, lr_schedule="constant", warmup_iters=0, max_iters=2)
    assert influence.applied_rates(config) == pytest.approx([1 + 0.9 / 1.9, 1 / 1.9])
    assert influence.applied_rates(dataclasses.replace(config, beta1=0.0)) == pytest.approx([1, 1])


# ---- the proof --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_proof_shows_what_the_planted_example_does_and_a_random_one_does_not(copy: Path) -> None:
    flags = ["--prove", "--leave_out=1", "--seeds=2"]
    found = answer(copy, "out", *TAUGHT, *flags)
    proof = found["proof"]
    assert proof["right"] and proof["seeds"] == [1337, 1338]
    assert proof["left_out"]["the most influential"] == 1
    assert proof["log_probability"]["nothing"][0] == pytest.approx(found["repeated"], abs=1e-4)
    assert max(proof["change"]["the most influential"]) < -5 < -1 < min(proof["change"]["random ones"])
    # finished trainings are kept, and no model stays
    said = ok(copy, "why", "out", "--start", TAUGHT[0], "--text", TAUGHT[1], *flags).out
    assert "stage" not in said
    assert "verdict:     these rows matter more than random ones: " in said and "seed 1338" in said
    for folder in (copy / "out/why").iterdir():
        assert {path.name for path in folder.iterdir()} <= {"why.json", ".lock"}


@pytest.mark.parametrize(("random_changes", "agrees"), [([-1, -2, 0], True), ([-4.5, -2, 0], False)])
def test_every_seed_must_agree(random_changes: list[float], agrees: bool) -> None:
    """Without the influential rows the log-probability falls by 4, 3 and 2."""
    seeds = [1, 2, 3]
    values: dict[str, list[float]] = {"nothing": [-1, -1, -1], INFLUENTIAL: [-5, -4, -3]}
    values[RANDOM] = [change - 1 for change in random_changes]
    results = {
        stage_name(name, 3, seed): value
        for name, of_seeds in values.items()
        for seed, value in zip(seeds, of_seeds, strict=True)
    }
    found = proof(results, 3, seeds, -3.0)
    assert found["change"] == {INFLUENTIAL: [-4, -3, -2], RANDOM: random_changes} and found["agrees"] == agrees


def test_random_rows_have_the_labels_of_the_influential_ones(planted: Path) -> None:
    explained = load_run(WhyConfig(run=str(planted / "out"), data_dir=str(planted / "data")))
    labels = [response for _, response in explained.source.examples(explained.dataset.tokenizer)]
    influential = np.array([labels.index("rot"), labels.index("gelb"), labels.index("blau"), labels.index("gruen")])
    for seed in range(3):
        drawn = random_rows(explained, influential, seed)
        assert [labels[row] for row in drawn] == ["rot", "gelb", "blau", "gruen"]
        assert not set(drawn) & set(influential)
        # with about as many targets in the training; of gelb there is only one other row
        exposures = exposures_of(explained, seed)
        assert np.abs(exposures[drawn] - exposures[influential])[[0, 2, 3]].max() <= 6
        batches = [explained.source.draw(seed, step, 20, 16) for step in range(explained.checkpoint.step)]
        assert exposures.sum() == sum(explained.source.targets(rows, 20).sum() for rows in batches)
    assert (random_rows(explained, influential, 1) != random_rows(explained, influential, 2)).any()


EXACT = {
    "accumulated, best at an early step": ["--gradient_accumulation_steps=2", "--min_lr=3", "--eval_interval=3"],
    "grouped by length in epochs, muon": ["--group_by_length=True", "--sampling=epochs", "--optimizer=muon"],
    "plain path": ["--fast=False", "--position=rope", "--dropout=0"],  # which draws other masks
}


@pytest.mark.slow
@pytest.mark.parametrize("how", EXACT)
def test_a_run_trained_again_has_the_same_output(copy: Path, how: str) -> None:
    few = ["--max_iters=30", "--eval_interval=10", "--patience=2", "--eval_iters=2", "--warmup_iters=2"]
    ok(copy, "train", "--dataset=mine", "--block_size=20", "--out_dir=new", *MODEL, *LEARN, *few, *EXACT[how])
    found = answer(copy, "new", *TAUGHT, "--prove", "--leave_out=2")
    assert found["repeated"] == pytest.approx(found["log_probability"], abs=0.02)
    assert (found["step"] < 30) == ("early" in how) and len(found["proof"]["change"]) == 2


@pytest.mark.slow
def test_a_resumed_run_of_plain_text_and_a_fine_tuned_one_are_trained_again(copy: Path) -> None:
    few = ["--max_iters=20", "--eval_interval=10", "--eval_iters=2", "--warmup_iters=2"]
    ok(copy, "train", "--dataset=text", "--block_size=16", "--out_dir=new", *MODEL, *LEARN, *few, "--lr_decay_iters=40",
       "--context_warmup=10")  # fmt: skip
    ok(copy, "train", "--init_from=resume", "--out_dir=new", "--max_iters=40", "--quiet")
    found = answer(copy, "new", "Quark j", "ump", "--prove", "--leave_out=2")
    assert found["repeated"] == pytest.approx(found["log_probability"], abs=0.02)
    tune = ["--ckpt=out-text", "--dataset=mine", "--out_dir=tuned", "--max_iters=20", "--eval_interval=10", "--quiet"]
    ok(copy, "finetune", *tune, "--examples=40", "--device=cpu", "--dtype=float32")
    found = answer(copy, "tuned", "017 red", "rot", "--prove", "--leave_out=2")
    assert found["repeated"] == pytest.approx(found["log_probability"], abs=0.02) and found["rows"] == 40


def test_a_mac_trains_again_on_the_device_of_the_run(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    explained = load_run(WhyConfig(run=str(planted / "out"), data_dir=str(planted / "data"), device="auto"))
    assert explained.config.device == "auto" and settings(explained, 1, "again").device == "cpu"
    explained.checkpoint.training["device"] = "mps"
    store.save(tmp_path / "ckpt.pt", explained.checkpoint)
    with pytest.raises(TinyGPTError, match="why does not support MPS"):
        load_run(WhyConfig(run=str(tmp_path), data_dir=str(planted / "data"), device="auto"))


@pytest.mark.parametrize(("name", "run"), [("mine", "out"), ("text", "out-text")])
def test_rows_left_out_lose_their_targets_in_every_window(planted: Path, name: str, run: str) -> None:
    explained = load_run(WhyConfig(run=str(planted / run), data_dir=str(planted / "data")))
    source, size = explained.source, explained.config.block_size
    rows = explained.rows if name == "mine" else np.arange(len(source.tokens) - size)  # windows, at any place
    weights = without(explained, np.array([3, 7]))
    gone = (weights[positions_of(source, rows, size)] == 0) & (source.rows(rows, size)[1] >= 0)
    if name == "mine":
        assert set(gone.nonzero()[0].tolist()) == {3, 7}
        assert (gone.sum(axis=1)[[3, 7]] == source.targets(rows[[3, 7]], size)).all()
    else:
        positions = {int(rows[row]) + 1 + int(column) for row, column in zip(*gone.nonzero(), strict=True)}
        assert positions == {start + 1 + place for start in explained.rows[[3, 7]].tolist() for place in range(size)}
    assert without(explained, np.array([], dtype=int)).all()
    assert sums_of_rows(1 - weights, explained).nonzero()[0].tolist() == [3, 7]


def test_more_than_chance_is_a_one_sided_t_test() -> None:
    draws = np.random.default_rng(0)
    for count in [1, *range(2, 11)] * 20:
        values = draws.normal(0.8, 1.0, count)
        expected = count > 1 and ttest_1samp(values, 0.0, alternative="greater").pvalue < 0.05
        assert is_positive(values) == expected, values


# ---- what is refused --------------------------------------------------------------------------------------------


def test_damaged_results_and_diverged_models_are_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ["why", "out", "--start=001 red", "--text=rot"]
    with monkeypatch.context() as patch:
        patch.setattr(effects, "estimated_effects", lambda *args: (np.array([np.nan]), torch.zeros(1)))
        done = cli_here(*ask, cwd=copy)
        assert done.status == 1 and "effect is NaN: training diverged" in done.err
    ok(copy, *ask)
    (kept,) = (copy / "out/why").glob("*/why.json")
    kept.write_text("{")
    said = refused(copy, *ask)
    assert f"try: delete {kept.parent.relative_to(copy)}\n" in said and "--out_dir" not in said
    changed = store.load(copy / "out/ckpt.pt")
    changed.model = {name: weight * float("nan") for name, weight in changed.model.items()}
    store.save(copy / "out/ckpt.pt", changed)
    done = cli_here(*ask, "--json", cwd=copy)
    assert done.status == 1 and done.out == "" and "training diverged" in done.err


# ---- tinygpt lab why --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_lab_ranks_the_wrong_labels_and_trains_again(tmp_path: Path) -> None:
    folder = quick(tmp_path, "why", lab, lab.Size(lines=80, iterations=10, answers=1, left_out=5, judges=10))
    stages, said = lab_results(folder), " ".join((folder / "said.txt").read_text(encoding="utf-8").split())
    rankings = {record["ranking"]: record for record in stages["wrong labels, seed 1"]}
    wrong = {name: record["wrong"] for name, record in rankings.items() if name != "none"}
    assert rankings.keys() == lab.RANKINGS.keys() and all(0 <= each["accuracy"] <= 1 for each in rankings.values())
    assert wrong["known"] == [True] * 8 + [False] * 72
    assert all(sum(ranking) == 8 and len(ranking) == 80 for ranking in wrong.values())
    assert wrong["harm"] != wrong["known"] != wrong["loss"]
    changes = {record["left out"]: record["change"] for record in stages["answer 1, seed 1"]}
    assert changes.keys() == lab.GROUPS.keys() and 0 not in changes.values()
    assert "| known wrong labels" in said and " of 1 answers fell further" in said
    line = ok(tmp_path, "why", "out/seed-1/run", "--start=SQ *BLUE HERON ESPRESSO", "--text=coffee").out
    assert "80 training rows" in line


def test_each_seed_of_the_lab_explains_other_lines(tmp_path: Path) -> None:
    size = lab.FULL.answers
    stages = [stage for stage in lab.stages(LabConfig("why", seeds=3), tmp_path) if stage.name.startswith("answer")]
    assert sorted(stage.case["line"] for stage in stages) == list(range(3 * size))


def test_the_verdict_of_the_lab_is_a_sign_test() -> None:
    for count, wins in ((12, 10), (12, 9), (5, 5), (1, 1)):
        changes = {"influence": [-1.0] * wins + [1.0] * (count - wins), "random": [0.0] * count}
        verdict = lab.proves(changes, "random")
        chance = binomtest(wins, count, alternative="greater").pvalue
        assert ("not clearly more" not in verdict.text) == (chance < 0.05) and f"{chance:.3f}" in verdict.rule


def test_the_verdict_on_the_rankings_compares_their_medians() -> None:
    def rankings(harm: float, loss: float) -> dict[str, Records]:
        shares = {"harm": harm, "loss": loss, "none": 0.0}
        return {name: Records([{"found": share, "accuracy": 0.7 + share}]) for name, share in shares.items()}

    cases = ((0.25, 0.29, "about as many as"), (0.4, 0.3, "more than"), (0.2, 0.3, "fewer than"))
    for harm, loss, finds in (*cases, (0.29, 0.24, "more than")):  # 100 * 0.29 is less than 29
        text = lab.detects(rankings(harm, loss)).text
        assert f"{finds} by their loss" in text and text.startswith(
            f"Ranking lines by their harm to correct ones finds {100 * harm:.0f}% "
        )
