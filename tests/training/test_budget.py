"""`tinygpt train --budget`: the run ends in its time, is repeated bit for bit, and has the size that fits."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import TINY_MODEL, needs_fork, ok
from models import same_weights
from runs import two_processes

from tinygpt.base.configs.core import FinetuneConfig, TrainConfig
from tinygpt.base.configs.parse import parse
from tinygpt.training import budget, recipe
from tinygpt.training.log import read_metrics
from tinygpt.training.start import resolve

SMALL = ["--dataset=tiny", "--device=cpu", *TINY_MODEL[:4], "--quiet"]


def stored(run: Path) -> dict[str, object]:
    values: dict[str, object] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return values


@pytest.fixture(scope="module")
def timed(shared, tiny_run: Path) -> Path:
    """A run that was measured and planned for twelve seconds, on a machine that seems to be slow: out/."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            measure = budget.seconds_per_iteration
            patch.setattr(budget, "seconds_per_iteration", lambda *args: max(0.1, measure(*args)))
            ok(folder, "train", *SMALL, "--budget=12s", f"--data_dir={tiny_run / 'data'}")

    return shared("timed", make)


@pytest.mark.slow
def test_a_run_ends_within_its_budget(work: Path) -> None:
    began = time.perf_counter()
    ok(work, "train", *SMALL, "--budget=6s")
    assert time.perf_counter() - began < 30, "much longer than its budget, even for a machine that is busy"
    assert read_metrics(work / "out")[-1]["step"] == stored(work / "out")["max_iters"]


def test_a_run_is_repeated_from_its_config(timed: Path, tmp_path: Path) -> None:
    config = stored(timed / "out")
    assert "budget" not in config and int(str(config["threads"])) > 0
    assert config["n_embd"] == 16 and config["position"] == "rope" and int(str(config["max_iters"])) > 10
    ok(tmp_path, "train", str(timed / "out/config.yaml"), "--quiet")
    assert same_weights(tmp_path / "out/ckpt.pt", timed / "out/ckpt.pt")
    assert read_metrics(tmp_path / "out")[-1]["step"] == config["max_iters"]


def test_a_resumed_run_keeps_its_length(timed: Path, tmp_path: Path) -> None:
    """Also if the same command is given again, which continues a run that was stopped."""
    config = stored(timed / "out")
    halfway = int(str(config["max_iters"])) // 2
    ok(tmp_path, "train", str(timed / "out/config.yaml"), "--quiet", "--budget=", f"--max_iters={halfway}",
       f"--lr_decay_iters={config['max_iters']}")  # fmt: skip
    ok(tmp_path, "train", "--init_from=resume", "--quiet", f"--max_iters={config['max_iters']}")
    (tmp_path / "short.yaml").write_text("max_iters: 7\n")  # is not the length that a budget has fixed
    for files in ([], ["short.yaml"]):  # nothing is left to do
        ok(tmp_path, "train", *files, *SMALL, "--budget=1h", "--init_from=auto")
    assert stored(tmp_path / "out")["max_iters"] == config["max_iters"]
    assert same_weights(tmp_path / "out/ckpt.pt", timed / "out/ckpt.pt")


@needs_fork
@pytest.mark.parametrize("flags", [["--budget=1m"], []], ids=["given", "default"])
def test_several_processes_have_no_budget(work: Path, flags: list[str]) -> None:
    for child in two_processes(work, "train", "--dataset=tiny", "--device=cpu", *flags):
        assert child.status == 2 and "a budget is for one process" in child.output, child.output
        assert ("a run has a budget of 2m" in child.output) == (not flags)
    assert not (work / "out").exists()


def test_a_new_run_without_a_size_has_a_budget() -> None:
    def found(config_class: type[TrainConfig], *args: str) -> str:
        return recipe.budget_of(parse(config_class, list(args)))

    assert found(TrainConfig, "--dataset=tiny") == found(TrainConfig, "--learning_rate=1") == "2m"
    assert found(TrainConfig, "--budget=1h", "--n_layer=1") == "1h"
    for args in (["nanogpt"], ["--budget="], ["--n_layer=1"], ["--max_iters=1"], ["--eval_only"], ["--init_from=gpt2"]):
        assert found(TrainConfig, *args) == ""
    assert found(FinetuneConfig) == "" and found(FinetuneConfig, "--budget=1h") == "1h"
    assert found(TrainConfig, "nanogpt", "--budget=3m") == "3m"


def usual(config: TrainConfig) -> float:
    return 1e-6 * config.n_embd**2


def chosen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str, seconds: Callable[[TrainConfig], float] = usual
) -> TrainConfig:
    """The configuration that a budget fixes, on a machine whose iterations take a microsecond for each channel^2."""
    monkeypatch.setattr(budget, "seconds_per_iteration", lambda start, config, *_: seconds(config))
    with contextlib.ExitStack() as stack, contextlib.chdir(folder):
        config = parse(TrainConfig, ["--device=cpu", "--threads=1", *flags])
        return budget.within_budget(resolve(stack, config)).config


@pytest.fixture(scope="module")
def long_text(shared) -> Path:
    def make(folder: Path) -> None:
        (folder / "text.txt").write_text("To be, or not to be: that is the question.\n" * 20_000)
        ok(folder, "prepare", "long", "--input=text.txt")

    return shared("long_text", make)


def test_more_time_is_for_a_larger_model(tiny_run: Path, long_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = (
        chosen(long_text, monkeypatch, "--dataset=long", f"--budget={time}") for time in ("30s", "3m", "1h")
    )
    assert one.n_embd < two.n_embd < three.n_embd and all(config.n_embd % 64 == 0 for config in (one, two, three))
    assert one.max_iters < 29 / (1e-6 * one.n_embd**2) and one.max_iters > 20 / (1e-6 * one.n_embd**2)
    assert one.dropout == 0 < three.dropout
    kept = chosen(long_text, monkeypatch, "--dataset=long", "--budget=1h", "--n_embd=96", "--learning_rate=1e-3")
    assert (kept.n_embd, kept.n_head, kept.learning_rate) == (96, 1, 1e-3)
    short = chosen(tiny_run, monkeypatch, "--dataset=tiny", "--budget=1h")  # a text that would only be memorised
    tokens = short.batch_size * short.block_size * short.max_iters
    assert tokens < 1.1 * recipe.MOST * 20_000


@pytest.mark.parametrize(
    ("flag", "n_head"), [("--n_embd=128", 2), ("--n_head=3", 3), ("--n_kv_head=2", 4), ("--n_head=12", 12)], ids=str
)
def test_a_given_shape_is_kept(long_text: Path, monkeypatch: pytest.MonkeyPatch, flag: str, n_head: int) -> None:
    config = chosen(long_text, monkeypatch, "--dataset=long", "--budget=6m", flag)
    assert config.n_head == n_head and config.n_embd % n_head == 0
    assert flag[2:] in [f"{key}={getattr(config, key)}" for key in ("n_embd", "n_head", "n_kv_head")]


@pytest.mark.parametrize("flag", ["--seed=1", "--eval_interval=10", "--eval_iters=200", "--eval_iters=0"])
def test_evaluations_count(long_text: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    config = chosen(long_text, monkeypatch, "--dataset=long", "--budget=2m", "--n_embd=128", flag)
    batches = config.eval_iters or 86_000 / (config.batch_size * config.block_size)
    evaluations = config.max_iters / config.eval_interval + 1
    used = (config.max_iters + evaluations * 2 * batches * budget.FORWARD) * 1e-6 * 128**2
    assert 100 < used < 116


def test_a_dropout_that_needs_the_time_in_which_it_would_help_is_left_out(
    long_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 470 s a width of 256 reads this text 18 times without dropout, and half as often with it."""
    flags = "--dataset=long", "--budget=470s", "--n_embd=256"
    config = chosen(long_text, monkeypatch, *flags, seconds=lambda each: usual(each) * (1 + 10 * each.dropout))
    assert config.dropout == 0 and 0.9 * 470 < config.max_iters * usual(config) < 470
    assert chosen(long_text, monkeypatch, *flags).dropout == 0.1  # control: where it takes no time


def test_a_finetuning_gets_a_length_and_nothing_else(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "seconds_per_iteration", lambda *_: 0.01)
    flags = ["--ckpt=out", "--dataset=tiny", "--device=cpu", "--lora_rank=2"]
    with contextlib.ExitStack() as stack, contextlib.chdir(tiny_run):
        plain = parse(FinetuneConfig, flags)
        config = budget.within_budget(resolve(stack, parse(FinetuneConfig, [*flags, "--budget=10s"]))).config
    changed = {key for key, value in vars(config).items() if value != vars(plain)[key]}
    assert 10 < config.max_iters != plain.max_iters and "max_iters" in changed
    assert not changed & {"learning_rate", "batch_size", "lr_schedule", "warmup_iters", "eval_interval", "dropout"}
