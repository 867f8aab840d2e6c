"""LoRA: which weights are trained, what is merged, the adapter's file. test_architectures.py compares it with peft."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from models import SMALL, every_option, ids, largest, shaken, small
from runs import adapted

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import lora
from tinygpt.checkpoint import store as checkpoint
from tinygpt.checkpoint.adapter import applied, save_adapter, weights_fingerprint
from tinygpt.checkpoint.lora import LoRA
from tinygpt.checkpoint.resize import grow_vocabulary
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.fast.optimizer import FlatWeights
from tinygpt.model import GPT


@every_option
@torch.inference_mode()
def test_at_the_start_nothing_changes_and_what_trains_is_what_is_merged(options: dict[str, Any]) -> None:
    """Also with flat weights, which assemble the tables at each pass."""
    base, idx = shaken(small(**options)), ids(2, 16)
    fresh = copy.deepcopy(base)
    lora.attach(fresh, LoRA(rank=2, alpha=8.0), 0)
    assert torch.equal(fresh(idx)[0], base(idx)[0])
    model, x = adapted(new=4, **options), ids(2, 16, vocab_size=69)
    assert largest(model(idx)[0][..., :65] - base(idx)[0]) > 0.01
    merged = GPT(model.config).eval()
    merged.load_state_dict(lora.merged(model.state_dict(), alpha=6.0))
    expected = merged(x)[0]
    for found in (model(x)[0], FlatWeights(model, torch.float32).eval()(x)[0]):
        torch.testing.assert_close(found, expected, atol=1e-4 * largest(expected), rtol=0)


@every_option
@torch.inference_mode()
def test_a_grown_model_gives_the_old_logits_on_the_old_symbols(options: dict[str, Any]) -> None:
    model = shaken(small(**options))
    before = model(ids(2, 16))[0]
    grow_vocabulary(model, 65, 70)
    after = model(ids(2, 16))[0]
    assert after.shape[-1] == 70
    torch.testing.assert_close(after[..., :65], before)
    rows = model.transformer["wte"].weight
    torch.testing.assert_close(rows[65:], rows[:65].mean(0).expand(5, -1))
    assert torch.isfinite(model(ids(2, 16, vocab_size=70))[0]).all()


@pytest.mark.parametrize("new", [0, 4])
@torch.inference_mode()
def test_base_and_adapter_make_the_model_of_the_run(tmp_path: Path, new: int) -> None:
    symbols, trained = [chr(33 + n) for n in range(65 + new)], adapted(new=new)
    base = Checkpoint(
        shaken(small()).state_dict(), dataclasses.asdict(SMALL), {}, tokenizer={"kind": "char", "symbols": symbols[:65]}
    )
    run = Checkpoint(
        trained.state_dict(), dataclasses.asdict(trained.config), {"lora_alpha": 6.0, "ckpt": "b.pt"}, 7, 1.5,
        {"kind": "char", "symbols": symbols},
    )  # fmt: skip
    checkpoint.save(tmp_path / "ckpt.pt", base)
    save_adapter(tmp_path / "adapter.pt", run, weights_fingerprint(base.model))
    whole = applied(checkpoint.load(tmp_path / "ckpt.pt"), "ckpt.pt", str(tmp_path))
    x = ids(1, 16, vocab_size=65 + new)
    assert torch.equal(whole.build_model().eval()(x)[0], run.build_model().eval()(x)[0])
    assert (tmp_path / "adapter.pt").stat().st_size < (tmp_path / "ckpt.pt").stat().st_size
    assert torch.load(tmp_path / "adapter.pt")["tinygpt_adapter"] == 1  # of all released versions
    assert whole.tokenizer == run.tokenizer
    written = (tmp_path / "adapter.pt").read_bytes()
    (tmp_path / "adapter.pt").write_bytes(written[:500] + bytes([written[500] ^ 1]) + written[501:])
    with pytest.raises(TinyGPTError, match="damaged") as caught:
        applied(base, "ckpt.pt", str(tmp_path / "adapter.pt"))
    assert caught.value.hint == "copy it again, or train again"
