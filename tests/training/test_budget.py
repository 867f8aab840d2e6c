"""`tinygpt train --budget`: the run ends in its time, is repeated bit for bit, and has the size that fits."""

import contextlib
from pathlib import Path

import pytest
import yaml
from conftest import TINY_MODEL, ok
from models import same_weights

from tinygpt.base.configs.core import FinetuneConfig, TrainConfig
from tinygpt.base.configs.parse import parse
from tinygpt.checkpoint.store import load
from tinygpt.training import budget, recipe
from tinygpt.training.start import resolve

SMALL = ["--dataset=tiny", "--device=cpu", *TINY_MODEL[:4], "--quiet"]


def test_a_measured_run_is_repeated_from_its_config_and_keeps_its_length(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned for twelve seconds, on a machine that seems to be slow. If the same command is given again, it continues
    a run that was stopped."""
    measure = budget.seconds_per_iteration
    monkeypatch.setattr(budget, "seconds_per_iteration", lambda *args: max(0.1, measure(*args)))
    ok(tmp_path, "train", *SMALL, "--budget=12s", f"--data_dir={tiny_data / 'data'}", "--out_dir=timed")
    config = yaml.safe_load((tmp_path / "timed/config.yaml").read_text(encoding="utf-8"))
    length = config["max_iters"]
    assert "budget" not in config and int(config["threads"]) > 0
    assert config["n_embd"] == 16 and config["position"] == "rope" and length > 10
    again = ["train", "timed/config.yaml", "--quiet", "--out_dir=again", "--budget="]
    ok(tmp_path, *again, f"--max_iters={length // 2}", f"--lr_decay_iters={length}")
    ok(tmp_path, "train", "--init_from=resume", "--quiet", "--out_dir=again", f"--max_iters={length}")
    (tmp_path / "short.yaml").write_text("max_iters: 7\n")  # is not the length that a budget has fixed
    for files in ([], ["short.yaml"]):  # nothing is left to do
        ok(tmp_path, "train", *files, *SMALL, "--budget=1h", "--init_from=auto", "--out_dir=again")
    assert same_weights(tmp_path / "again/ckpt.pt", tmp_path / "timed/ckpt.pt")
    assert load(tmp_path / "again/last.pt").step == load(tmp_path / "timed/last.pt").step == length


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


def chosen(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> TrainConfig:
    """The configuration that a budget fixes, on a machine whose iterations take a microsecond for each channel^2."""
    monkeypatch.setattr(budget, "seconds_per_iteration", lambda start, config, *_: usual(config))
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
    times = ("30s", "3m", "1h")
    one, two, three = (chosen(long_text, monkeypatch, "--dataset=long", f"--budget={time}") for time in times)
    assert one.n_embd < two.n_embd < three.n_embd and all(config.n_embd % 64 == 0 for config in (one, two, three))
    assert 20 < one.max_iters * usual(one) < 29
    assert one.dropout == 0 < three.dropout
    kept = chosen(long_text, monkeypatch, "--dataset=long", "--budget=1h", "--n_embd=96", "--learning_rate=1e-3")
    assert (kept.n_embd, kept.n_head, kept.learning_rate) == (96, 1, 1e-3)
    short = chosen(tiny_run, monkeypatch, "--dataset=tiny", "--budget=1h")  # a text that would only be memorised
    tokens = short.batch_size * short.block_size * short.max_iters
    assert tokens < 1.1 * recipe.MOST * 20_000


@pytest.mark.parametrize(("flag", "n_head"), [("--n_embd=128", 2), ("--n_head=12", 12), ("--n_kv_head=2", 4)])
def test_a_given_shape_is_kept(long_text: Path, monkeypatch: pytest.MonkeyPatch, flag: str, n_head: int) -> None:
    config = chosen(long_text, monkeypatch, "--dataset=long", "--budget=6m", flag)
    assert config.n_head == n_head and config.n_embd % n_head == 0
    assert flag[2:] in [f"{key}={getattr(config, key)}" for key in ("n_embd", "n_head", "n_kv_head")]


@pytest.mark.parametrize("flag", ["--eval_interval=10", "--eval_iters=200", "--eval_iters=0"])
def test_evaluations_count(long_text: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    config = chosen(long_text, monkeypatch, "--dataset=long", "--budget=2m", "--n_embd=128", flag)
    batches = config.eval_iters or 86_000 / (config.batch_size * config.block_size)
    evaluations = config.max_iters / config.eval_interval + 1
    used = (config.max_iters + evaluations * 2 * batches * budget.FORWARD) * 1e-6 * 128**2
    assert 100 < used < 116


def test_a_finetuning_gets_a_length_and_nothing_else(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "seconds_per_iteration", lambda *_: 0.01)
    flags = ["--ckpt=out", "--dataset=tiny", "--device=cpu", "--lora_rank=2"]
    with contextlib.ExitStack() as stack, contextlib.chdir(tiny_run):
        plain = parse(FinetuneConfig, flags)
        config = budget.within_budget(resolve(stack, parse(FinetuneConfig, [*flags, "--budget=10s"]))).config
    changed = {key for key, value in vars(config).items() if value != vars(plain)[key]}
    assert 10 < config.max_iters != plain.max_iters and "max_iters" in changed
    assert not changed & {"learning_rate", "batch_size", "lr_schedule", "warmup_iters", "eval_interval", "dropout"}
