"""`tinygpt plan --processes`: the memory of each process of a run, computed from the sizes of the model.

Sources: Rajbhandari et al. 2020 (ZeRO) for the state, Korthikanti et al. 2022 for the activations. experiments.md
compares the results with measurements.
"""

from typing import Any

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.device import Compute
from tinygpt.base.terminal import table
from tinygpt.model import GPT, MATRIX, parameter_class
from tinygpt.training.processes import Processes


def plan_memory(config: TrainConfig, processes: int, model: GPT, compute: Compute) -> dict[str, Any]:
    """Print the memory of a process, part by part; return it in MB for --json."""
    parts = memory(config, Processes(0, processes), model, compute.dtype.itemsize)
    if compute.device.type != "cpu":
        print("note:        the memory is computed for the GPU, not measured on one")
    print(f"memory of each of {processes} processes{', sharded' * config.shard}, besides Python and PyTorch:")
    print("\n".join(table({"": "<42", "MB": ">10,.0f"}, [(f"  {name}", mb) for name, mb in parts.items()])))
    return {"processes": processes, "memory_mb": parts}


def memory(config: TrainConfig, ranks: Processes, model: GPT, size: int) -> dict[str, float]:
    """Compute the memory of a process in MB. size: bytes of a number in the matrix products."""
    weights = dict(model.named_parameters())
    total = sum(weight.numel() for weight in weights.values())
    matrices = sum(w.numel() for name, w in weights.items() if parameter_class(name, w) == MATRIX)
    moments = 8 * total - 4 * matrices * (config.optimizer == "muon")  # Muon has one
    block = sum(weight.numel() for weight in model.transformer["h"][0].parameters())
    others = total - block * config.n_layer  # embeddings, norm and head
    shards = ranks.count if config.shard else 1
    gathered = 2 * size * (others + 2 * block)  # weights and gradients
    if not config.shard:  # DistributedDataParallel's copy of the gradients, and the weights in low precision
        gathered = 4 * total + size * total * (size < 4)
    micro_steps, rows = ranks.share(config)
    mlp = model.config.hidden_width * (4 if model.config.gated else 2)
    inside = 6 * config.n_embd + sum(model.transformer["h"][0].attn.heads) * model.config.head_dim + mlp
    kept = inside + config.n_layer * config.n_embd if config.checkpoint_activations else inside * config.n_layer
    activations = rows * config.block_size * (size * kept + 12 * model.config.vocab_size)
    gradients = 4 * total / shards
    # the activations are freed while the gradients of the first micro-step are computed
    largest = max(activations, gradients) if micro_steps == 1 else activations + gradients
    parts = {
        "weights and optimizer state": (4 * total + moments) / shards,
        "gradients and activations": largest,
        "gathered weights and gradients" if config.shard else "copies of weights and gradients": gathered,
    }
    parts["training"] = sum(parts.values())
    if config.shard:
        parts["saving (process 0, in main memory)"] = (4 * total + moments) * (1 + 1 / shards)
    return {name: value / 1e6 for name, value in parts.items()}
