"""`tinygpt train --budget`: the run ends in its time, is repeated bit for bit, and has the size that fits."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import TINY_MODEL, ok, refused
from models import same_weights

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
    """A run of twelve seconds, and the seconds that it took."""

    def make(folder: Path) -> None:
        began = time.perf_counter()
        ok(folder, "train", *SMALL, "--budget=12s", f"--data_dir={tiny_run / 'data'}")
        (folder / "seconds").write_text(str(time.perf_counter() - began))

    return shared("timed", make)


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


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--budget=1s"], "a budget of 1s is too short"),
        (["--budget=5"], "must be a time such as"),
        (["--budget=soon"], "must be a time such as"),
        (["--budget=5m", "--max_iters=9"], "budget fixes max_iters"),
        (["--budget=5m", "--eval_only"], "cannot be used with eval_only"),
        (["--budget=5m", "--init_from=resume"], "a resumed run keeps its length"),
        (["--budget=5m", "--n_embd=129", "--n_head=2"], "n_head 2 does not divide n_embd 129"),
        (["--budget=5m", "--n_kv_head=5", "--n_head=4"], "n_kv_head 5 does not divide"),
    ],
    ids=str,
)
def test_a_budget_that_cannot_be_kept_is_refused(tiny_run: Path, flags: list[str], problem: str) -> None:
    assert problem in refused(tiny_run, "train", "--dataset=tiny", "--device=cpu", *flags)


def test_plans_and_lessons_refuse_what_their_training_would(tiny_run: Path) -> None:
    plan = ("plan", "--dataset=tiny", "--processes=2", "--device=cpu")
    assert "a budget is for one process" in refused(tiny_run, *plan)
    assert "give one of them" in refused(tiny_run, "quickstart", "--budget=5m", "--max_iters=9")


@pytest.mark.parametrize("flags", [["--budget=1m"], []], ids=["given", "default"])
def test_several_processes_have_no_budget(tiny_data: Path, tmp_path: Path, flags: list[str]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tinygpt"]
    data = ["--dataset=tiny", f"--data_dir={tiny_data / 'data'}", "--device=cpu"]
    done = subprocess.run([*torchrun, "train", *data, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert "a budget is for one process" in done.stderr and "Traceback" not in done.stderr.partition("error: ")[0]
    assert ("a run has a budget of 2m" in done.stderr) == (not flags) and list(tmp_path.iterdir()) == []


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
    assert (
        config.n_head == n_head
        and config.n_embd % n_head == 0
        and flag[2:] in [f"{key}={getattr(config, key)}" for key in ("n_embd", "n_head", "n_kv_head")]
    )


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


def test_a_finetuning_gets_a_length_and_nothing_else(run_copy: Path) -> None:
    ok(run_copy, "finetune", "--ckpt=out", "--dataset=tiny", "--budget=10s", "--device=cpu", "--lora_rank=2", "--quiet")
    config, plain = stored(run_copy / "out-finetune"), vars(parse(FinetuneConfig, ["--ckpt=out", "--lora_rank=2"]))
    kept = ("learning_rate", "batch_size", "lr_schedule", "warmup_iters", "eval_interval", "dropout", "lora_rank")
    assert {key: config[key] for key in kept} == {key: plain[key] for key in kept}
    assert int(str(config["max_iters"])) > 10 and config["max_iters"] != plain["max_iters"]
