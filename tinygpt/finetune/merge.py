"""`tinygpt merge`: merge a LoRA adapter into its base model, as an ordinary checkpoint.

tinygpt merge --ckpt out/ckpt.pt --adapter out-finetune --out_dir out-merged
"""

import dataclasses
from pathlib import Path

from tinygpt.checkpoint import store as checkpoint
from tinygpt.checkpoint.adapter import load_model
from tinygpt.config.schema import MergeConfig
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.check import next_command
from tinygpt.files import folder_lock


def merge(config: MergeConfig) -> None:
    """Write OUT_DIR/ckpt.pt."""
    out = Path(config.out_dir)
    checkpoint.refuse_overwriting(out, config.ckpt, "the base model")
    checkpoint.refuse_overwriting(out, config.adapter, "the adapter's run")
    if (out / "last.pt").exists():
        raise TinyGPTError(f"{out} contains a run, whose best model would be overwritten", f"--out_dir={out}-merged")
    merged = load_model(config.ckpt, config.adapter)
    model = merged.build_model()
    merged.model, merged.model_args = model.state_dict(), dataclasses.asdict(model.config)
    with folder_lock(out, "run"):
        checkpoint.save(out / "ckpt.pt", merged)
    print(f"written: {out}/ckpt.pt, {model.num_params():,} parameters: {config.ckpt} merged with {config.adapter}")
    print(f"\nnext: {next_command(merged, out, str(merged.config.get('data_dir') or 'data'))}")
