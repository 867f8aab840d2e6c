"""The models that run in a page, packed for its script (weights.py), with the snapshots of a training."""

import contextlib
import math
from typing import Any

import numpy as np

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.snapshots import snapshots
from tinygpt.checkpoint.store import load
from tinygpt.examine.report.loaded_run import LARGEST, LoadedRun
from tinygpt.examine.report.weights import BLOCK, differences, pack
from tinygpt.model import GPT

MOST = 25_000_000  # bytes of models in a page: others beyond it are not compared
ROOM = 7_600_000  # bytes of models in a page, beyond which it gets no snapshots: 8 MB with everything else


def live_model(run: LoadedRun) -> dict[str, Any]:
    """Pack the model for the page's script: {"name", "step", "answers", "packed"}. Errors: TinyGPTError for one that is
    too large, or that `pack` refuses."""
    if run.is_large:
        what = f"the model has {run.model.num_params():,} parameters, and a page can hold at most {LARGEST:,}"
        raise TinyGPTError(what, "tinygpt export --format=gguf or --format=hf")
    packed = pack(run.model, run.tokenizer)
    return {"name": run.name, "step": run.checkpoint.step, "answers": run.answers, "packed": packed}


def models(run: LoadedRun, others: list[LoadedRun]) -> list[dict[str, Any]]:
    """Pack the models of the page, each as in `live_model`, first that of `run` with the snapshots of its training.
    A model of `others` that cannot run in a page, or exceeds MOST, is left out. Errors: see `live_model`, for `run`."""
    packed_models = [live_model(run)]
    packed = packed_models[0]["packed"]
    size = len(packed["data"])
    for other in others:
        with contextlib.suppress(TinyGPTError):
            entry = live_model(other)
            if size + len(entry["packed"]["data"]) <= MOST:
                size += len(entry["packed"]["data"])
                packed_models.append(entry)
    packed["snapshots"] = packed_snapshots(run, packed, ROOM - size)
    return packed_models


def packed_snapshots(run: LoadedRun, packed: dict[str, Any], room: int) -> list[dict[str, Any]]:
    """Pack the snapshots of a run as differences from its packed model: as many as fit into `room` bytes, without those
    that are damaged or another run's."""
    paths = snapshots(run.path)
    best = run.checkpoint
    steps = [step for step in paths if step != best.step]
    weight_count = sum(math.prod(tensor["shape"]) for tensor in packed["tensors"].values())
    count = min(len(steps), max(0, room) // math.ceil(weight_count * (1 + 2 / BLOCK) * 4 / 3))
    snapshot_models: dict[int, GPT] = {}
    for step in (steps[i] for i in np.linspace(0, len(steps) - 1, count).round().astype(int)):
        with contextlib.suppress(TinyGPTError):
            state = load(paths[step])
            if (state.step, state.tokenizer, state.model_args) == (step, best.tokenizer, best.model_args):
                snapshot_models[step] = state.build_model()
    return differences(packed, best.step, snapshot_models, run.tokenizer)
