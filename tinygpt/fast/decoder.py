"""Decoding on a CPU: weights laid out for matrix products with few rows, and as few calls per token as possible.

A token of a small model takes a quarter of a millisecond, and most of the cost of calling a module is overhead
(experiments.md). The computation is that of GPT.forward; tests compare the two for every option.
"""

import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinygpt.model import GPT, Block, Function, KVCache, shift
from tinygpt.options import QK_EPS, rotate


@dataclasses.dataclass(slots=True)
class Linear:
    """x W + b for x (rows, in), with W (in, out) contiguous; `onto` adds a residual in the same kernel."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        y = torch.addmm(residual, x, self.weight)
        return y if self.bias is None else y.add_(self.bias)


class Packed(nn.Module):
    """`Linear` in bfloat16, with a weight in the layout of oneDNN's kernels. Packing it once makes a product with one
    row about twice as fast as F.linear, which is then limited by the memory's bandwidth (experiments.md)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:  # without the cost of calling a module
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        return self(x).add_(residual)


Product = Linear | Packed


class Decoder(KVCache):
    """A key-value cache that also computes the forward pass, without calling the model's modules.

    decoder = Decoder(model, batch_size)
    logits = decoder(idx)               # idx int64 (B, T): the next tokens; logits of the last one
    """

    def __init__(self, model: GPT, batch_size: int, length: int = 0) -> None:
        super().__init__(model.config, batch_size, like=model.lm_head.weight, length=length)
        transformer = model.transformer
        self.model = model
        self.config = model.config
        self.wte = transformer["wte"].weight
        self.head = layout(model.lm_head)
        self.wpe, self.wbe = (transformer[name].weight if name in transformer else None for name in ("wpe", "wbe"))
        self.blocks = [layout_block(block) for block in transformer["h"]]
        self.ln_f = norm(transformer["ln_f"])
        self.masked = model.context(torch.zeros(1, dtype=torch.long)).mask is not None  # also a single token
        self.rotation: Tensor | None = None  # of the positions from rotation_start on
        self.rotation_start = self.rotation_end = 0

    def __call__(self, idx: Tensor) -> Tensor:
        """Read idx int64 (B, T). Return logits float32 (B, V) of its last position."""
        config = self.config
        B, T = idx.shape
        start = self.length
        x = F.embedding(idx, self.wte)
        if self.wbe is not None:
            previous = self.last_token if T == 1 else torch.cat((self.last_token, idx[:, :-1]), dim=1)
            x = x + F.embedding(previous * config.vocab_size + idx, self.wbe)
        if self.wpe is not None:
            x = x + self.wpe[start : start + T]
        rotation = self._rotation(start, T)
        mask = self._mask(T)
        x = x.view(B * T, -1)
        slot = start % self.block_size
        filled = min(start + T, self.block_size)
        new = self.keys_values.narrow(4, slot, T).unbind()
        cached = self.keys_values.narrow(4, 0, filled).unbind()
        for layer, (ln_1, c_attn, attend, attn_proj, ln_2, c_fc, mlp_proj, activate) in enumerate(self.blocks):
            qkv = c_attn(self._shifted(ln_1(x), T, layer, 0))
            q = self._split_heads(qkv, rotation, layer, new[layer])
            y = attend(q, *cached[layer].unbind(), mask)
            x = attn_proj.onto(x, y.transpose(1, 2).reshape(B * T, -1))
            x = mlp_proj.onto(x, activate(c_fc(self._shifted(ln_2(x), T, layer, 1))))
        self.advance(idx)
        return self.model.logits(x if T == 1 else x.view(B, T, -1)[:, -1], self.ln_f, self.head)

    def _split_heads(self, qkv: Tensor, rotation: Tensor | None, layer: int, new: Tensor) -> Tensor:
        """Write keys and values to `new` (2, B, kv_heads, T, head_dim), and return q (B, n_head, T, head_dim)."""
        config = self.config
        B = new.size(1)
        T = new.size(3)
        if config.kv_heads < config.n_head or config.qk_norm_weights:
            q, new[0], new[1] = self.model.transformer["h"][layer].attn.split_heads(qkv, B, T, rotation)
            return q
        parts = qkv.view(B, T, 3, config.n_head, -1).permute(2, 0, 3, 1, 4)
        if config.qk_norm or rotation is not None:  # queries and keys in one call
            qk = F.rms_norm(parts[:2], parts.shape[-1:], eps=QK_EPS) if config.qk_norm else parts[:2]
            parts = torch.cat((qk if rotation is None else rotate(qk, rotation), parts[2:]))
        new.copy_(parts[1:])
        return parts[0]

    def _mask(self, T: int) -> Tensor | None:
        """Return the mask of the next T tokens; None for a single token that attends to every key."""
        if T == 1 and not self.masked:
            return None
        mask = self.model.context(self.query_positions(T), self).mask
        return None if mask is None else mask.to(self.wte.dtype)

    def _rotation(self, start: int, T: int) -> Tensor | None:
        """Look up the rotation of the next T positions in a table, computed for block_size positions at a time."""
        if not self.rotation_start <= start < start + T <= self.rotation_end:
            self.rotation_start = start
            self.rotation_end = start + max(T, self.block_size)
            positions = torch.arange(self.rotation_start, self.rotation_end, device=self.wte.device)
            rotation = self.model.position.rotation(positions)
            self.rotation = None if rotation is None else rotation.to(self.wte.dtype)
        if self.rotation is None:
            return None
        return self.rotation[:, start - self.rotation_start : start - self.rotation_start + T]

    def _shifted(self, x: Tensor, T: int, layer: int, part: int) -> Tensor:
        """Return the input of attention (part 0) or the MLP (part 1), as in Block.shifted; x (B T, C)."""
        if not self.config.token_shift:
            return x
        x = x.view(-1, T, x.size(1))
        shifted = shift(x, self.last_input[layer, part])
        self.last_input[layer, part] = x[:, -1:]
        return shifted.flatten(0, 1)


def layout_block(
    block: Block,
) -> tuple[Function, Product, Callable[..., Tensor], Product, Function, Product, Product, Function]:
    """Return ln_1, c_attn, `attend`, c_proj of attention, ln_2, c_fc, c_proj of the MLP, and the activation."""
    attn = block.attn
    mlp = block.mlp
    attention = norm(block.ln_1), layout(attn.c_attn), attn.attend, layout(attn.c_proj)
    return *attention, norm(block.ln_2), layout(mlp.c_fc), layout(mlp.c_proj), mlp.activate


def layout(linear: nn.Linear) -> Product:
    """Copy a linear layer into the layout that is fastest for few rows."""
    weight = linear.weight.detach()
    if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and can_pack():
        return Packed(linear)
    return Linear(weight.t().contiguous(), linear.bias)


def pack(model: GPT) -> GPT:
    """Replace the linear layers of a model in bfloat16 on a CPU by `Packed` ones, in place, if PyTorch supports them.

    A decoding step of SmolLM2 then takes about 60% of the time, with the same logits (experiments.md).
    """
    if model.lm_head.weight.dtype == torch.bfloat16 and model.lm_head.weight.device.type == "cpu" and can_pack():
        head = model.lm_head.weight  # kept, because other code reads its dtype and device
        for module in list(model.modules()):
            for name, layer in list(module.named_children()):
                if type(layer) is nn.Linear:
                    setattr(module, name, Packed(layer))
        model.lm_head.weight = head
    return model


@functools.cache
def can_pack() -> bool:
    """Return whether this build of PyTorch and this processor have oneDNN's products in bfloat16."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def norm(module: nn.Module) -> Function:
    """Return the function of a norm, without the cost of calling a module."""
    if isinstance(module, nn.LayerNorm):
        shape = list(module.normalized_shape)
        weight = module.weight
        bias = module.bias
        eps = module.eps
        return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
    if isinstance(module, nn.RMSNorm):
        shape = list(module.normalized_shape)
        weight = module.weight
        eps = module.eps or 0.0
        return lambda x: torch.rms_norm(x, shape, weight, eps)
    return module
