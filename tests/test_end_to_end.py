"""From text to text through the command line, like a new user, in a temporary folder and at a small size."""

import json
import re
from pathlib import Path

import torch
from conftest import cli

PRESET = str(Path(__file__).parent.parent / "configs" / "shakespeare_char.yaml")
SMALL = ("--max_iters=40", "--lr_decay_iters=40", "--eval_interval=20", "--eval_iters=2", "--warmup_iters=5")


def test_prepare_train_sample_eval_plot(tmp_path: Path) -> None:
    prepared = cli("prepare", "shakespeare_char", cwd=tmp_path)
    assert prepared.status == 0, prepared.err
    assert "1,003,854 for training, 111,540 for validation" in prepared.out
    assert "tinygpt train configs/shakespeare_char.yaml" in prepared.out

    trained = cli("train", PRESET, "--device=cpu", *SMALL, cwd=tmp_path)
    assert trained.status == 0, trained.err
    assert "795,904 parameters" in trained.out
    losses = [float(loss) for loss in re.findall(r"val loss ([\d.]+)", trained.out)]
    assert len(losses) == 3 and abs(losses[0] - 4.174) < 0.05 and losses[-1] < 3.5
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "ckpt.pt",
        "last.pt",
        "metrics.jsonl",
        "config.yaml",
    }
    assert "tinygpt sample --ckpt out/ckpt.pt" in trained.out

    sampled = cli("sample", "--ckpt", "out/ckpt.pt", "--max_new_tokens=80", cwd=tmp_path)
    assert sampled.status == 0 and len(sampled.out) >= 80

    evaluated = json.loads(cli("eval", "--ckpt", "out/ckpt.pt", "--json", cwd=tmp_path).out)
    assert abs(evaluated["loss"] - losses[-1]) < 0.1
    assert evaluated["tokens"] == 111_539

    assert cli("plot", "out", cwd=tmp_path).status == 0
    assert (tmp_path / "out/loss.png").read_bytes().startswith(b"\x89PNG")
    assert cli("check", "out", "data/shakespeare_char", cwd=tmp_path).status == 0


def test_nanogpts_command_line_works_verbatim(tmp_path: Path) -> None:
    """The flags of nanoGPT's README for a CPU, after a config file; only the number of iterations is smaller here."""
    assert cli("prepare", "shakespeare_char", cwd=tmp_path).status == 0
    flags = (
        "--device=cpu --compile=False --eval_iters=20 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 "
        "--n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
    ).replace("2000", "20")
    trained = cli("train", "configs/shakespeare_char.yaml", *flags.split(), cwd=tmp_path)  # the preset, found by name
    assert trained.status == 0, trained.err


def test_own_text_from_several_files(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    for number in range(3):
        lines = [f"Dear {name}, letter {number} costs {k} €.\n" for k in range(60) for name in ("Ada", "Zoë")]
        (tmp_path / "letters" / f"{number}.txt").write_text("".join(lines), encoding="utf-8")
    prepared = cli("prepare", "mine", "--input", "letters", cwd=tmp_path)
    assert prepared.status == 0, prepared.err
    following = re.search(r"next: tinygpt (train .*)", prepared.out)
    assert following, prepared.out
    trained = cli(*following[1].split(), "--device=cpu", *SMALL, cwd=tmp_path)
    assert trained.status == 0, trained.err
    sampled = cli("sample", "--ckpt=out-mine", "--start=Dear Zoë", "--max_new_tokens=20", cwd=tmp_path)
    assert sampled.status == 0 and sampled.out.startswith("Dear Zoë")


def test_the_model_that_sample_loads_is_the_one_that_was_trained(tiny_run: Path) -> None:
    """The checkpoint has the dtype and the names of the trained model."""
    state = torch.load(tiny_run / "out/last.pt", weights_only=True)
    assert all(weight.dtype is torch.float32 for weight in state["model"].values())
    assert "transformer.h.0.attn.c_attn.weight" in state["model"]
