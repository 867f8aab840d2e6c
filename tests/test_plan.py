"""`tinygpt plan`: costs by hand and against real runs, the fit against a known law, refusals, and resuming."""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import Child
from conftest import cli_here, commands_here, needs_fork, ok, refused, tiny_text, trained
from models import ALONE, ids
from torch import Tensor

from tinygpt.checkpoint.store import load
from tinygpt.config.parse import parse
from tinygpt.config.schema import TrainConfig
from tinygpt.evaluate.doctor import read_run
from tinygpt.evaluate.forecast import Interval, compared, time_text
from tinygpt.files import file_lock
from tinygpt.model import GPT
from tinygpt.options import GPTConfig
from tinygpt.plan import choose, cost, fit, pilots
from tinygpt.plan.cost import Costs
from tinygpt.plan.memory import memory
from tinygpt.training.log import read_metrics
from tinygpt.training.processes import Processes

SMALL = ["--dataset=tiny", "--device=cpu", "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16"]
SMALL += ["--batch_size=8", "--gradient_accumulation_steps=1", "--warmup_iters=40", "--learning_rate=1e-2"]
SMALL += ["--eval_interval=400", "--eval_iters=2", "--log_interval=10", "--max_iters=800", "--optimizer=muon"]


PLAN = ["plan", *SMALL, "--sample_interval=400"]


@pytest.fixture(scope="module")
def planned(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data/tiny, out/plan.json and plan.txt, what the command printed.

    Here the time pilot is a process of its own.
    """
    folder = tmp_path_factory.mktemp("planned")
    shutil.copytree(tiny_data / "data", folder / "data")
    (folder / "plan.txt").write_text(ok(folder, *PLAN).out)
    return folder


@pytest.fixture
def pilot_here() -> Iterator[None]:
    """The time pilot runs inside this process, which saves it the seconds of a start."""
    with commands_here():
        yield


def interrupted(planned: Path, folder: Path, **change: Any) -> None:
    """Write the plan.json of a plan that was interrupted after all its pilots, with changes."""
    content = json.loads((planned / "out/plan.json").read_text())
    content = {key: value for key, value in content.items() if not key.startswith("predicted")}
    for key, value in change.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out/plan.json").write_text(json.dumps(content))


# ---- the command ----------------------------------------------------------------------------------------------------


def test_a_plan_is_stored_and_its_pilots_are_removed(planned: Path) -> None:
    assert {path.name for path in (planned / "out").iterdir()} - {".plan.json.lock"} == {"plan.json"}
    content = json.loads((planned / "out/plan.json").read_text())
    assert content["settings"]["max_iters"] == 800
    assert [pilot["iterations"] for pilot in content["pilots"]] == [25, 50, 100]
    for key in ("predicted_seconds", "predicted_memory_mb", "predicted_loss"):
        part = content[key]
        assert part is None or part["low"] <= part["value"] <= part["high"]
    assert content["predicted_seconds"]
    if not content["predicted_loss"]:
        assert content["no_loss"] and content["loss_at_most"] == content["pilots"][2]["loss"]
    text = (planned / "plan.txt").read_text()
    for row in (r"iterations: +800", r"evaluations: +3", r"saves: +6", r"samples: +3"):
        assert re.search(row, text), text
    command = shlex.split(text.rpartition("next: tinygpt train ")[2])
    assert vars(parse(TrainConfig, command)) == vars(parse(TrainConfig, PLAN[1:]))


def test_doctor_and_report_compare_it_with_the_run(planned: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(planned, tmp_path / "work"))
    assert cli_here("doctor", "out", cwd=folder).status == 2  # no run yet
    ok(folder, "train", *PLAN[1:], "--quiet")
    found = compared(folder / "out", *read_run(folder / "out"), load(folder / "out").data)
    assert {"time", "memory"} <= {what for what, *_ in found}
    said = ok(folder, "doctor", "out").out
    assert re.search(r"^predicted: +time \d+ s \(\d+ to \d+\), measured \d+ s \([+-]\d+%.*\)$", said, re.MULTILINE)
    memory = r"^predicted: +memory [\d,]+ MB \([\d,]+ to [\d,]+\), measured [\d,]+ MB \(.*\)$"
    assert re.search(memory, said, re.MULTILINE), said
    ok(folder, "report", "out")
    assert "predicted time" in (folder / "out/report.html").read_text()


@pytest.mark.parametrize(("other", "key"), [("settings", "max_iters"), ("text", "data")])
def test_a_plan_of_another_run_is_not_compared(planned: Path, tmp_path: Path, other: str, key: str) -> None:
    folder = Path(shutil.copytree(planned, tmp_path / "work"))
    if other == "text":
        (folder / "text.txt").write_text(tiny_text()[::-1])
        ok(folder, "prepare", "tiny", "--input=text.txt")
        content = json.loads((folder / "out/plan.json").read_text())
        content["settings"]["max_iters"] = 40
        (folder / "out/plan.json").write_text(json.dumps(content))
    ok(folder, "train", *PLAN[1:], "--max_iters=40", "--quiet")
    assert compared(folder / "out", *read_run(folder / "out"), load(folder / "out").data) == []
    said = ok(folder, "doctor", "out").out
    assert "predicted" not in said and f"is not compared: {key}\n" in said


def test_a_damaged_plan_harms_nothing(run_copy: Path) -> None:
    odd = {"predicted_seconds": {"value": "x"}, "predicted_loss": [1], "start": None}
    damaged = json.dumps({"settings": read_run(run_copy / "out")[1], **odd})
    for content in ("", "[]", "{}", '{"settings": 1}', '{"settings": {}, "predicted_seconds": "x"}', damaged):
        (run_copy / "out/plan.json").write_text(content)
        ok(run_copy, "doctor", "out")


def test_with_json_standard_output_has_nothing_else(work: Path, pilot_here: None) -> None:
    """OUT_DIR may be any folder, even one with a folder called plan: nothing of the user is removed."""
    for name in ("plan", "other"):
        (work / name).mkdir()
        (work / name / "notes.txt").write_text("mine")
    result = ok(work, "plan", *SMALL, "--time_only", "--json", "--out_dir=.")
    made = json.loads(result.out)
    assert made["predicted_loss"] is made["loss_at_most"] is None and "time_only" in made["no_loss"]
    assert made["predicted_seconds"]["low"] < made["predicted_seconds"]["value"]
    assert "time pilot" in result.err
    assert (work / "plan/notes.txt").read_text() == (work / "other/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--dataset=colours", "--block_size=20", "--group_by_length"], "the dataset has pairs"),
        (["--dataset=digits", "--init_from=out/ckpt.pt", "--block_size=12"], "starts from trained weights"),
        pytest.param(
            ["--dataset=tiny", "--batch_size=20", "--max_iters=640", "--eval_interval=160"],
            "passes over its data",
            marks=pytest.mark.slow,
        ),
        (["--dataset=tiny", "--learning_rate=1e-3"], "the shortest pilot would end at iteration 3"),
    ],
)
def test_a_loss_that_is_not_predicted_has_a_bound(
    models: Path, tmp_path: Path, flags: list[str], reason: str, pilot_here: None
) -> None:
    """The bound is the loss of the run itself after a quarter of it, also if its data has characters that the weights
    do not know."""
    for name in ("data", "out"):
        shutil.copytree(models / name, tmp_path / name)
    (tmp_path / "text.txt").write_text(f"0123456789 {tiny_text()}")
    ok(tmp_path, "prepare", "digits", "--input=text.txt")
    shape = ("--n_", "--block_size") if "--init_from=out/ckpt.pt" in flags else ("--dataset",)
    flags = [flag for flag in SMALL if not flag.startswith(shape)] + [
        *("--max_iters=100", "--eval_interval=20", "--eval_iters=0", "--warmup_iters=5", "--out_dir=new"), *flags
    ]  # fmt: skip
    planned = ok(tmp_path, "plan", *flags)
    plan = json.loads((tmp_path / "new/plan.json").read_text())
    assert set(os.listdir(tmp_path / "new")) - {".plan.json.lock"} == {"plan.json"}
    assert f"loss:        probably at most {plan['loss_at_most']:.3f} nats per token" in planned.out
    assert reason in planned.out and reason in plan["no_loss"] and plan["predicted_loss"] is None
    ok(tmp_path, "train", *flags, "--quiet")
    losses = {entry["step"]: entry["val_loss"] for entry in read_metrics(tmp_path / "new") if entry["kind"] == "eval"}
    assert losses[plan["pilots"][0]["iterations"]] == pytest.approx(plan["loss_at_most"], abs=1e-3)  # bfloat16
    expected = f"best validation loss at most {plan['loss_at_most']:.3f}, measured {min(losses.values()):.3f} (held)"
    assert f"predicted:   {expected}\n" in ok(tmp_path, "doctor", "new").out
    if reason == "the dataset has pairs":  # once
        ok(tmp_path, "report", "new")
        assert "predicted best validation loss" in (tmp_path / "new/report.html").read_text()


def test_a_bound_is_the_loss_of_an_evaluation_that_the_run_makes(work: Path, pilot_here: None) -> None:
    """Otherwise the run may never reach it: it keeps no weights between two evaluations."""
    cases = {20: 100, 30: 90, 100: 100, 101: 101, 133: 133, 134: 0, 400: 0}
    for interval, length in cases.items():
        config = TrainConfig(max_iters=400, eval_interval=interval, out_dir=str(work / "out"))
        found = [each.max_iters for each in pilots.configurations(config, False, work)]
        assert found == [length] * bool(length) and (not length or length % interval == 0)
    said = ok(work, "plan", *SMALL, "--max_iters=400", "--eval_interval=134", "--eval_iters=1").out
    assert "at most" not in said and "for an upper bound it needs" in said


@pytest.mark.parametrize(
    ("below", "verdict"),
    [(0.0, "held"), (1.9, "above it by less than two standard errors"), (2.1, "did not hold")],
)
def test_a_bound_that_did_not_hold(run_copy: Path, below: float, verdict: str) -> None:
    """Beyond what two standard errors of the best evaluation may be by chance."""
    evaluations = [entry for entry in read_metrics(run_copy / "out") if entry["kind"] == "eval"]
    best = min(evaluations, key=lambda entry: entry["val_loss"])
    checkpoint = load(run_copy / "out")
    bound = best["val_loss"] - below * best["val_loss_se"]
    plan = {"settings": read_run(run_copy / "out")[1], "data": checkpoint.data, "loss_at_most": bound}
    plan |= {"predicted_seconds": {"value": 5, "low": 1, "high": 9}, "start": 0.5, "no_loss": "it has pairs"}
    (run_copy / "out/plan.json").write_text(json.dumps(plan))
    said = cli_here("doctor", "out", cwd=run_copy).out
    result = f"measured {best['val_loss']:.3f}, with eval_iters 2 ({verdict})"
    assert f"predicted:   best validation loss at most {bound:.3f}, {result}\n" in said


def test_a_run_that_is_shorter_than_its_pilot(work: Path, pilot_here: None) -> None:
    said = ok(work, "plan", *SMALL, "--max_iters=3", "--eval_interval=100").out
    assert "the time pilot has more iterations than this run" in said
    assert "not predicted: the run has fewer than 80 iterations" in said


def test_two_plans_in_one_folder(work: Path) -> None:
    (work / "out").mkdir()
    with file_lock(work / "out/plan.json", "plan"):
        result = cli_here("plan", *SMALL, "--time_only", cwd=work)
    assert result.status == 2 and "in use by process" in result.err


# ---- costs ----------------------------------------------------------------------------------------------------------


def pilot_entries(step: float, evaluation: float, save: float, sample: float, warm: float) -> list[dict[str, Any]]:
    """The metrics of a time pilot on a machine with these costs: at iteration 0 it saves twice, and is slow."""
    clock, entries = 0.5 + evaluation, []  # something before the first evaluation ends

    def note(kind: str, at: int) -> None:
        entries.append({"kind": kind, "step": at, "seconds": clock})

    note("eval", 0)
    clock += sample
    note("sample", 0)
    clock += 2 * save
    for i in range(25):
        clock += step + (warm if i == 0 else 0) + (save if i == cost.SAVE_AT else 0)
        note("train", i)
    clock += evaluation
    note("eval", 25)
    clock += sample
    note("sample", 25)
    return entries


def test_costs_by_hand() -> None:
    entries = pilot_entries(step=0.02, evaluation=0.3, save=0.05, sample=0.4, warm=0.25)
    found = cost.costs_of(entries, seconds=entries[-1]["seconds"] + 2 * 0.05 + 3)
    assert found.step == pytest.approx(0.02) and found.evaluation == pytest.approx(0.3)
    assert found.save == pytest.approx(0.05) and found.sample == pytest.approx(0.4)
    assert found.start == pytest.approx(3) and found.warm_up == pytest.approx(0.75)  # 0.5 before, 0.25 at iteration 0
    config = TrainConfig(max_iters=100, eval_interval=40, sample_interval=80, checkpoint_interval=30, snapshots=4)
    parts = cost.parts(config, found)
    # evaluations at 0, 40, 80, 100; last.pt also at 30, 60, 90; snapshots at 0, 1, 10, 100; samples at 0, 80
    assert {name: part.times for name, part in parts.items()} == {
        "start": 1, "iterations": 100, "evaluations": 4, "saves": 2 * 4 + 3 + 4, "samples": 2
    }  # fmt: skip
    total = 3.75 + 100 * 0.02 + 4 * 0.3 + 15 * 0.05 + 2 * 0.4
    assert cost.seconds(config, found).value == pytest.approx(total)


@pytest.mark.parametrize(
    "flags",
    [
        ["--max_iters=50", "--eval_interval=20", "--sample_interval=40", "--checkpoint_interval=15"],
        ["--max_iters=40", "--eval_interval=20", "--sample_interval=0"],
        ["--max_iters=7", "--eval_interval=100", "--sample_interval=7", "--checkpoint_interval=7"],
    ],
)
def test_the_parts_are_those_of_a_real_run(work: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    from tinygpt.checkpoint import store

    save = store.save
    monkeypatch.setattr(store, "save", lambda path, *rest: (saved.append(path), save(path, *rest)))
    trained(work, *flags, "--always_save_checkpoint=True")
    kinds = [entry["kind"] for entry in read_metrics(work / "out")]
    values = {flag[2:].split("=")[0]: int(flag.split("=")[1]) for flag in flags}
    parts = cost.parts(TrainConfig(**values), Costs(0, 0, 0, 0, 0, 0, 0, 0, []))  # type: ignore[arg-type]
    assert parts["evaluations"].times == kinds.count("eval") and parts["saves"].times == len(saved)
    assert (parts["samples"].times if "samples" in parts else 0) == kinds.count("sample")


def test_the_interval_of_the_time_follows_the_blocks() -> None:
    config = TrainConfig(max_iters=1000, eval_interval=1000)
    even = Costs(1, 0, 0.01, 0.1, 0.01, 0, 10**6, 10**6, [(10, 0.1)] * 20)
    value, low, high = cost.seconds(config, even)
    assert not cost.unsteady(even) and high - low == pytest.approx(
        2 * cost.TIME_ERROR * cost.seconds(config, even).value
    )
    uneven = cost.with_blocks(even, [(10, 0.1)] * 10 + [(10, 0.3)] * 10)
    assert uneven.step == pytest.approx(0.02) and len(uneven.blocks) == 40
    value, low, high = cost.seconds(config, uneven)
    assert cost.unsteady(uneven)
    assert high - value == pytest.approx(1000 * 0.01) and value - low == pytest.approx(1000 * 0.01)


# ---- the fit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("E", "A", "alpha"), [(1.0, 3.0, 0.5), (0.5, 4.0, 0.3), (1.3, 30.0, 0.8)])
def test_a_power_law_is_recovered(E: float, A: float, alpha: float) -> None:
    law = lambda steps: E + A * steps**-alpha  # noqa: E731
    found = fit.predict([100, 200, 400], [law(100), law(200), law(400)], 3200)
    assert found.value == pytest.approx(law(3200), rel=0.06) and found.low <= law(3200) <= found.high
    nearer = fit.predict([100, 200, 400], [law(100), law(200), law(400)], 800)
    assert nearer.value == pytest.approx(law(800), rel=0.02)
    assert nearer.high - nearer.low < found.high - found.low


def test_pilots_that_no_power_law_fits_are_refused() -> None:
    assert not fit.refusal([2.0, 1.8, 1.65], baseline=2.07)
    early = fit.refusal([2.67, 2.53, 2.43], baseline=2.07)
    assert "(2.430) has not beaten the n-gram baseline (2.070)" in early
    assert "unlike a power law" in fit.refusal([2.0, 1.95, 1.7], baseline=9)


def test_pilots_whose_loss_rises_bound_nothing() -> None:
    assert "does not fall with longer pilots: 2.000, then 1.800, then 1.900" in fit.no_bound_reason([2.0, 1.8, 1.9])
    assert not fit.no_bound_reason([2.0, 1.9, 1.9]) and not fit.no_bound_reason([2.0])


def test_the_pilots_have_the_schedule_in_proportion(tmp_path: Path) -> None:
    config = TrainConfig(max_iters=3200, warmup_iters=160, lr_decay_iters=1600, patience=3)
    pilot = pilots.shortened(config, 16, tmp_path)
    assert (pilot.max_iters, pilot.warmup_iters, pilot.lr_decay_iters) == (200, 10, 100)
    assert pilot.eval_interval == 200 and not pilot.patience
    assert pilot.learning_rate == config.learning_rate and pilot.seed == config.seed


def test_the_loss_of_a_pilot_is_that_of_tinygpt_eval(planned: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(planned / "data", tmp_path / "data")).parent
    short = ["--max_iters=100", "--warmup_iters=5", "--eval_interval=100"]
    ok(folder, "train", *SMALL, *short, "--quiet")
    said = json.loads(ok(folder, "eval", "--ckpt=out/last.pt", "--json").out)
    pilot = json.loads((planned / "out/plan.json").read_text())["pilots"][2]
    assert pilot["iterations"] == 100 and pilot["loss"] == pytest.approx(said["loss"], abs=1e-3)  # bfloat16


# ---- mistakes, and interruptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--init_from=resume"], "predicts a new run"),
        (["--teacher=out", "--budget=10m"], "teacher cannot be used with processes, budget or target"),
        (["--law=law.json"], "law needs budget or target"),
        (["--time_only", "--budget=10m"], "time_only cannot be used"),
        (["--eval_only"], "predicts a new run"),
        (["--max_iters=0"], "predicts a new run"),
        (["--dataset=nowhere"], "nowhere"),
        (["--block_size=100000"], "block_size"),
        (["--n_head=3"], "n_head 3 does not divide"),
        (["--lora_rank=4"], "a key of tinygpt finetune"),
        (["--budget=soon"], "--budget=soon"),
        (["--budget=1s"], "--budget=1s"),
        (["--target=1.5"], "needs the scaling law of tiny"),
        (["--budget=10m", "--law=nowhere"], "nowhere"),
        (["--shard=True"], "shard needs processes"),
        (["--processes=2", "--time_only"], "processes cannot be used with time_only"),
        (["--processes=3"], "3 processes cannot share 8 sequences per iteration evenly"),
    ],
)
def test_mistakes(work: Path, flags: list[str], message: str) -> None:
    assert message in refused(work, "plan", *SMALL, *flags)


def test_several_processes_are_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in refused(work, "plan", *SMALL)


@pytest.mark.parametrize(
    ("flags", "state", "saving"),
    [
        (["--optimizer=adamw"], 12 * 3840, None),
        (["--optimizer=adamw", "--shard=True"], 6 * 3840, 18 * 3840),
        (["--optimizer=muon", "--shard=True"], 6 * 3840 - 2 * 3072, 18 * 3840 - 6 * 3072),
    ],
)
def test_the_memory_of_two_processes(work: Path, flags: list[str], state: float, saving: float | None) -> None:
    """Of 3,840 parameters, 3,072 are in the block's matrices, for which Muon has one moment."""
    out = ok(work, "plan", *SMALL, *flags, "--processes=2", "--json").out
    parts = json.loads(out)["memory_mb"]
    assert parts["weights and optimizer state"] == pytest.approx(state / 1e6)
    assert parts["training"] == pytest.approx(sum(list(parts.values())[:3]))
    assert parts.get("saving (process 0, in main memory)") == (pytest.approx(saving / 1e6) if saving else None)
    assert not (work / "out").exists()


@functools.cache
def kept_and_planned(many_tokens: bool, **options: Any) -> tuple[int, float]:
    """The bytes that a forward pass keeps for the backward pass, besides the weights, and those of the plan."""
    sizes = {"block_size": 16, "n_layer": 1, "n_embd": 16} if many_tokens else {"block_size": 64, "n_embd": 64}
    config = TrainConfig(**{"n_layer": 3, "n_head": 4, **sizes, **options}, batch_size=8, gradient_accumulation_steps=2)
    shape = GPTConfig.from_dict(vars(config) | {"vocab_size": 300 if many_tokens else 65})
    model, kept = GPT(shape), dict[int, Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = ids(8, config.block_size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(x, x)[1]
    weights = [*model.parameters()]
    besides = kept.keys() - {weight.untyped_storage().data_ptr() for weight in weights}
    gradients = sum(4 * weight.numel() for weight in weights) / 1e6
    planned = memory(config, Processes(0, 1), model, 4)["gradients and activations"] - gradients
    assert loss.requires_grad
    return sum(kept[at].untyped_storage().nbytes() for at in besides), planned


@pytest.mark.parametrize("many_tokens", [False, True], ids=["a long context", "a large vocabulary"])
@pytest.mark.parametrize("options", ALONE, ids=str)
def test_the_planned_activations_grow_with_an_option_as_those_that_are_kept(
    options: dict[str, Any], many_tokens: bool
) -> None:
    """Within 35%: the plan leaves out the copies that qk_norm, RoPE and RMSNorm make."""
    (usual, usual_plan), (kept, plan) = kept_and_planned(many_tokens), kept_and_planned(many_tokens, **options)
    assert 0.8 < (kept / usual) / (plan / usual_plan) < 1.35


def test_the_memory_on_a_gpu_is_computed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    out = ok(work, "plan", *SMALL, "--device=mps", "--processes=2").out
    assert "computed for the GPU, not measured on one\n" in out and "not predicted" not in out
    assert "GPU" not in ok(work, "plan", *SMALL, "--processes=2").out


def test_short_runs_and_repeated_data_have_no_loss() -> None:
    assert "needs 20 (max_iters=640)" in pilots.refusal(TrainConfig(max_iters=210), 1, pairs=False)
    assert "fewer than 80 iterations" in pilots.refusal(TrainConfig(max_iters=79), 40, pairs=True)
    assert "passes over its data" in pilots.refusal(TrainConfig(max_iters=9000), 40, pairs=False)
    assert "learns from a teacher" in pilots.refusal(TrainConfig(max_iters=9000, teacher="out"), 4, pairs=False)
    assert not pilots.refusal(TrainConfig(max_iters=9000), 4, pairs=False)


def test_a_run_that_diverges_is_a_finding(work: Path, pilot_here: None) -> None:
    result = cli_here("plan", *SMALL, "--learning_rate=1e30", "--optimizer=adamw", "--grad_clip=0", cwd=work)
    assert result.status == 1, (result.out, result.err)
    assert re.search(r"diverged|NaN", result.err) and "1e+30" in result.err


@pytest.mark.slow
@needs_fork
def test_a_plan_that_was_killed_continues(planned: Path, tmp_path: Path) -> None:
    """A plan that is killed or stopped three times ends with the losses of an uninterrupted one."""
    shutil.copytree(planned / "data", tmp_path / "data")
    file = tmp_path / "out/plan.json"
    for wanted, number in ((0, signal.SIGKILL), (1, signal.SIGTERM), (2, signal.SIGKILL)):
        child = Child(PLAN, tmp_path / "log", tmp_path)
        while child.wait(0) is None and not (file.exists() and len(json.loads(file.read_text())["pilots"]) >= wanted):
            time.sleep(0.005)
        child.send(number)
        assert child.wait() in (-number, 128 + number, 0), child.output
    content, change = json.loads(file.read_text()), 0.0
    if "predicted_seconds" not in content:  # else it ended before the last signal
        content["pilots"][0]["loss"] += (change := 1e-9)  # to see that it is not measured again
        file.write_text(json.dumps(content))
    ok(tmp_path, *PLAN)
    losses = [[p["loss"] for p in json.loads((f / "out/plan.json").read_text())["pilots"]] for f in (planned, tmp_path)]
    assert losses[1][1:] == losses[0][1:] and losses[1][0] - losses[0][0] == pytest.approx(change)
    assert not (tmp_path / "out/.plan-pilots").exists()


def test_an_interrupted_plan_of_which_only_plan_json_is_left(planned: Path, work: Path) -> None:
    """It continues after its first pilot. With --time_only it has no bound, even so."""
    measured = json.loads((planned / "out/plan.json").read_text())["pilots"]
    interrupted(planned, work, pilots=measured[:1])
    found = json.loads(ok(work, *PLAN, "--time_only", "--json").out)
    assert found["loss_at_most"] is found["predicted_loss"] is None
    interrupted(planned, work, pilots=measured[:1])
    assert "time pilot" not in ok(work, *PLAN).out
    found = json.loads((work / "out/plan.json").read_text())
    assert [pilot["loss"] for pilot in found["pilots"]] == [pilot["loss"] for pilot in measured]


def test_only_intact_measurements_of_the_same_plan_are_used_again(planned: Path, work: Path, pilot_here: None) -> None:
    for flags, change, uses in (
        ([], {}, True),
        (["--n_embd=32"], {}, False),
        ([], {"costs": {"unknown": 1}}, False),
        ([], {"pilots": [{"iterations": 25}]}, False),
        ([], {"pilots": None}, False),
    ):
        interrupted(planned, work, **{"costs": {"step": 1e6}, "pilots": []} | change)
        made = json.loads(ok(work, *PLAN, *flags, "--time_only", "--json").out)
        assert (made["predicted_seconds"]["value"] > 1e6) is uses  # the measurement of the interrupted plan


# ---- choosing a size ------------------------------------------------------------------------------------------------


LAW = {"E": 1.0, "A": 9.0, "B": 40.0, "alpha": 0.3, "beta": 0.4, "dataset": "tiny"}


@pytest.fixture
def sizes(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a scaling law; the choice is between the smallest sizes."""
    (work / "law.json").write_text(json.dumps(LAW))
    monkeypatch.setattr(choose, "SHAPES", dict([*choose.SHAPES.items()][:2]))
    return work


def test_a_budget_gives_a_command_that_fits_it(sizes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "seconds_per_batch", lambda *_: 0.004)
    made = json.loads(ok(sizes, "plan", *SMALL, "--batch_size=1", "--budget=12s", "--law=law.json", "--json").out)
    assert made["choices"] and made["command"].startswith("tinygpt train --")
    assert all(choice["seconds"] <= 12.5 and choice["passes"] <= pilots.MOST_PASSES for choice in made["choices"])
    best = min(made["choices"], key=lambda choice: choice["loss"])
    assert best == made["best"] and f"--n_embd={best['width']}" in made["command"]
    assert set(os.listdir(sizes)) == {"law.json", "data"}
    assert parse(TrainConfig, shlex.split(made["command"])[2:]).n_embd == best["width"]


@pytest.mark.slow
def test_a_target_chooses_the_run_that_reaches_it_soonest(sizes: Path) -> None:
    flags = [*SMALL, "--law=law.json", "--json"]
    made = json.loads(ok(sizes, "plan", *flags, "--target=1.9").out)
    assert all(choice["loss"] <= 1.9 for choice in made["choices"])
    assert made["best"] == min(made["choices"], key=lambda choice: choice["seconds"])
    assert "no size fits" in refused(sizes, "plan", *flags[:-1], "--target=0.9")  # below the irreducible loss


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(120, 110.4, 129.6), "120 s (110 to 130)"),
        (Interval(3, 2.8, 3.2), "3 s (3 to 3)"),
        (Interval(600, 552, 648), "10.0 min (9.2 to 10.8)"),
        (Interval(7200, 6624, 7776), "120 min (110 to 130)"),
        (Interval(36000, 30000, 43000), "10.0 h (8.3 to 11.9)"),
        (Interval(1e6, 9e5, 1.1e6), "11.6 days (10.4 to 12.7)"),
    ],
)
def test_times_have_one_unit(interval: Interval, text: str) -> None:
    assert time_text(interval) == text


def test_intervals() -> None:
    assert np.isfinite(fit.predict([20, 40, 80], [3.0, 1.0, 0.1], 640)).all()
