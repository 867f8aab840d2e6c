"""LoRA: which weights are trained, what is merged, and the adapter's file. test_peft.py compares it with peft."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from models import SMALL, every_option, every_path, ids, largest, shaken, small
from runs import adapted

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.device import Compute
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import lora
from tinygpt.checkpoint import store as checkpoint
from tinygpt.checkpoint.adapter import applied, save_adapter, weights_fingerprint
from tinygpt.checkpoint.lora import LoRA
from tinygpt.checkpoint.resize import grow_vocabulary
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.fast.optimizer import FlatWeights
from tinygpt.model import GPT
from tinygpt.training.optimizer import build


def plain(model: GPT, alpha: float = 6.0) -> GPT:
    merged = GPT(model.config).eval()
    merged.load_state_dict(lora.merged(model.state_dict(), alpha))
    return merged


# ---- the mathematics ---------------------------------------------------------------------------------------------


@every_option
@torch.inference_mode()
def test_at_the_start_nothing_changes_and_merged_is_unmerged(options: dict[str, Any]) -> None:
    base = shaken(small(**options)).eval()
    fresh = copy.deepcopy(base)
    lora.attach(fresh, LoRA(rank=2, alpha=8.0), 0)
    assert torch.equal(fresh(ids(2, 16))[0], base(ids(2, 16))[0])
    model = adapted(**options)
    moved = model(ids(2, 16))[0]
    assert largest(moved - base(ids(2, 16))[0]) > 0.01
    torch.testing.assert_close(plain(model)(ids(2, 16))[0], moved, atol=1e-4 * largest(moved), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"tie_weights": False, "bias": True}], ids=str)
@every_path
def test_training_moves_adapters_and_new_symbols_only(
    kind: type[GPT], options: dict[str, Any], dtype: torch.dtype
) -> None:
    model = adapted(new=4, kind=kind, **options)
    computing, optimizer = build(model, TrainConfig(), Compute(torch.device("cpu"), dtype, ""))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    x = ids(2, 16, vocab_size=69)
    optimizer.backward(computing(x[:, :-1], x[:, 1:])[1])
    optimizer.clip()
    optimizer.update()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if name.endswith((".lora_A", ".lora_B", ".new_rows"))} != set()


@pytest.mark.parametrize("options", [{}, {"tie_weights": False}], ids=str)
@torch.inference_mode()
def test_what_trains_is_what_is_merged(options: dict[str, Any]) -> None:
    """The model with flat weights, which assembles its tables at each pass, against the saved model."""
    model = adapted(new=4, **options)
    x = ids(2, 16, vocab_size=69)
    torch.testing.assert_close(plain(model)(x)[0], model(x)[0], atol=1e-4 * largest(model(x)[0]), rtol=0)
    through = FlatWeights(model, torch.float32).eval()(x)[0]
    torch.testing.assert_close(plain(model)(x)[0], through, atol=1e-4 * largest(through), rtol=0)


# ---- growing -----------------------------------------------------------------------------------------------------


@every_option
@torch.inference_mode()
def test_a_grown_model_gives_the_old_logits_on_the_old_symbols(options: dict[str, Any]) -> None:
    model = shaken(small(**options)).eval()
    before = model(ids(2, 16))[0]
    grow_vocabulary(model, 65, 70)
    after = model(ids(2, 16))[0]
    assert after.shape[-1] == 70
    torch.testing.assert_close(after[..., :65], before)
    rows = model.transformer["wte"].weight
    torch.testing.assert_close(rows[65:], rows[:65].mean(0).expand(5, -1))
    assert torch.isfinite(model(ids(2, 16, vocab_size=70))[0]).all()
    again = GPT(model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(ids(2, 16))[0], after)


# ---- the file ----------------------------------------------------------------------------------------------------


def base_and_run(new: int = 0) -> tuple[Checkpoint, Checkpoint]:
    """A base, and the checkpoint of a LoRA run on it."""
    symbols = [chr(33 + n) for n in range(65)]
    model = shaken(small())
    base = Checkpoint(model.state_dict(), dataclasses.asdict(SMALL), {}, tokenizer={"kind": "char", "symbols": symbols})
    trained = adapted(new=new)
    grown = {"kind": "char", "symbols": symbols + [chr(200 + n) for n in range(new)]}
    args = dataclasses.asdict(trained.config)
    return base, Checkpoint(trained.state_dict(), args, {"lora_alpha": 6.0, "ckpt": "b.pt"}, 7, 1.5, grown)


@pytest.mark.parametrize("new", [0, 4])
@torch.inference_mode()
def test_base_and_adapter_make_the_model_of_the_run(tmp_path: Path, new: int) -> None:
    base, run = base_and_run(new)
    checkpoint.save(tmp_path / "base.pt", base)
    save_adapter(tmp_path / "adapter.pt", run, weights_fingerprint(base.model))
    whole = applied(checkpoint.load(tmp_path / "base.pt"), "base.pt", str(tmp_path))
    x = ids(1, 16, vocab_size=65 + new)
    assert torch.equal(whole.build_model().eval()(x)[0], run.build_model().eval()(x)[0])
    assert (tmp_path / "adapter.pt").stat().st_size < (tmp_path / "base.pt").stat().st_size
    assert torch.load(tmp_path / "adapter.pt")["tinygpt_adapter"] == 1  # of all released versions
    assert whole.tokenizer == run.tokenizer


@pytest.mark.parametrize("new", [0, 5])
@pytest.mark.parametrize("tie_weights", [True, False])
def test_a_resumed_run_has_the_same_parameters(new: int, tie_weights: bool) -> None:
    model = adapted(new=new, tie_weights=tie_weights)
    config = {"lora_alpha": 6.0, "lora_dropout": 0.0, "lora_targets": LoRA.targets}
    resumed = Checkpoint(model.state_dict(), dataclasses.asdict(model.config), config).build_for_resuming()
    found, expected = (
        {name: (weight.shape, weight.requires_grad) for name, weight in one.named_parameters()}
        for one in (resumed, model)
    )
    assert found == expected


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    base, run = base_and_run()
    checkpoint.save(tmp_path / "ckpt.pt", base)  # of the same run, but no adapter
    save_adapter(tmp_path / "adapter.pt", run, weights_fingerprint(base.model))
    whole = (tmp_path / "adapter.pt").read_bytes()
    (tmp_path / "adapter.pt").write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    with pytest.raises(TinyGPTError, match="damaged") as caught:
        applied(base, "base.pt", str(tmp_path / "adapter.pt"))
    assert caught.value.hint == "copy it again, or train again"
