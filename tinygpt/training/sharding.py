"""Sharding and activation checkpointing: large models, with PyTorch's `fully_shard` and `checkpoint`.

Sharding divides weights, gradients and moments among the processes (ZeRO, Rajbhandari et al. 2020; FSDP, Zhao et al.
2023). Each parameter becomes a DTensor, divided along its first dimension; the weights of a block are gathered while it
computes. Checkpoints contain complete tensors, so they are the same as without sharding.

Activation checkpointing keeps the inputs of the blocks only, and computes the rest again in the backward pass (Chen et
al. 2016).

    shard(model, compute)                                   # in every process, before the optimizer is made
    weights = gather(model.state_dict(keep_vars=True), keep=rank == 0)
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tinygpt.base.device import Compute
from tinygpt.model import GPT


def checkpoint_activations(model: GPT) -> None:
    """Compute the activations inside each block twice instead of keeping them, with the same dropout masks."""
    for block in model.transformer["h"]:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def shard(model: GPT, compute: Compute) -> None:
    """Divide the model among all processes; the weights compute in compute.dtype, gradients are added in float32."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(compute.device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=compute.dtype, reduce_dtype=torch.float32)
    for unit in (*model.transformer["h"], model):  # the last one: embeddings, norm and head
        fully_shard(unit, mesh=mesh, mp_policy=policy)


def gather(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Gather complete tensors in main memory; one that has two names stays one. All processes call this together;
    those without `keep` get an empty dict."""
    complete: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in complete:
            gathered = full(tensor.detach())
            complete[id(tensor)] = gathered.cpu() if keep else torch.empty(0)
    return {name: complete[id(tensor)] for name, tensor in tensors.items()} if keep else {}


def full(tensor: Any) -> Tensor:
    """Gather a tensor that is divided among the processes; another one is returned as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[no-any-return]


def local(tensor: Any) -> Tensor:
    """Return this process's part of a tensor; all of one that is not divided."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[no-any-return]


def divided_like(tensor: Tensor, weight: Any) -> Tensor:
    """Copy a complete tensor to the device of a weight, and keep this process's part if the weight is divided."""
    if not hasattr(weight, "to_local"):
        return tensor.to(weight.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)
    return part.clone()  # not a view, which would keep the complete tensor in memory
