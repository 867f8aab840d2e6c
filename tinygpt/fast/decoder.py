"""The model one position at a time: a key-value cache, and the weights laid out for products with a few rows.

    decoder = Decoder(model, batch_size)
    logits = decoder(prompt)        # prompt int64 (B, T); logits (B, V) of the last position
    logits = decoder(chosen)        # chosen int64 (B, 1): the next position, and so on

The same mathematics as GPT.forward (tests compare them for every option), in the fewest calls: a token of a small
model takes a quarter of a millisecond, and most of what a module call costs is not arithmetic (docs/PERFORMANCE.md).
"""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tinygpt.model import GPT, Block, Norm, activate, positioned, rope_angles, shift

Function = Callable[[Tensor], Tensor]


@dataclasses.dataclass(slots=True)
class Linear:
    """x W + b for x (rows, in), with W (in, out) contiguous; `residual` is added in the same kernel."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        y = torch.addmm(residual, x, self.weight)
        return y if self.bias is None else y.add_(self.bias)


class Decoder:
    """Reads tokens and remembers the last block_size of them as keys and values, in memory allocated once.

    `length` counts the positions read. With rotary positions the cache rolls: position p lies in slot p % block_size,
    and attention does not mind the order of its slots. With learned positions length may not exceed block_size.
    """

    def __init__(self, model: GPT, batch_size: int) -> None:
        config, transformer = model.config, model.transformer
        head = model.lm_head.weight
        self.config, self.batch_size, self.length = config, batch_size, 0
        self.wte, self.head = transformer["wte"].weight, Linear(head.t().contiguous(), None)
        self.wpe = transformer["wpe"].weight if config.position == "learned" else None
        self.wbe = transformer["wbe"].weight if config.bigram_table else None
        self.blocks, self.ln_f = [_layout(block) for block in transformer["h"]], _norm(transformer["ln_f"])
        shape = (config.n_layer, 2, batch_size, config.n_head, config.block_size, config.n_embd // config.n_head)
        self.cache = torch.zeros(shape, device=head.device, dtype=head.dtype)  # keys and values of each layer
        self.last = torch.zeros((batch_size, 1), device=head.device, dtype=torch.long)  # the token before, for bigrams
        read = (config.n_layer, 2, batch_size, 1, config.n_embd)
        self.read_last = torch.zeros(read, device=head.device, dtype=head.dtype)  # for token_shift
        self.rope, self.rope_start = torch.empty(2, 0, 0), 0  # angles of the positions from rope_start on

    def __call__(self, idx: Tensor) -> Tensor:
        """Read idx int64 (B, T), the positions after those read before; logits float32 (B, V) of the last of them.

        Several positions at once (T > 1) must fit into the cache without rolling it: length + T <= block_size.
        """
        config, (B, T), start = self.config, idx.shape, self.length
        x = F.embedding(idx, self.wte)
        if self.wbe is not None:
            before = self.last if T == 1 else torch.cat((self.last, idx[:, :-1]), dim=1)
            x = x + F.embedding(before * config.vocab_size + idx, self.wbe)
        if self.wpe is not None:
            x = x + self.wpe[start : start + T]
        rope = self._angles(start, T, idx.device) if self.wpe is None else None
        x = x.view(B * T, -1)
        slot, filled = start % config.block_size, min(start + T, config.block_size)
        mask = None if T == 1 else torch.ones(T, filled, dtype=torch.bool, device=idx.device).tril(filled - T)
        new, known = self.cache.narrow(4, slot, T).unbind(), self.cache.narrow(4, 0, filled).unbind()
        for layer, (ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj) in enumerate(self.blocks):
            qkv = (
                c_attn(self._read(ln_1(x), T, layer, 0)).view(B, T, 3, config.n_head, -1).permute(2, 0, 3, 1, 4)
            )  # (3, B, nh, T, hd)
            qkv = positioned(qkv, rope, config.qk_norm)
            new[layer].copy_(qkv[1:])
            k, v = known[layer].unbind()
            y = F.scaled_dot_product_attention(qkv[0], k, v, attn_mask=mask)
            x = attn_proj.onto(x, y.transpose(1, 2).reshape(B * T, -1))
            x = mlp_proj.onto(x, activate(c_fc(self._read(ln_2(x), T, layer, 1)), config.activation))
        self.length += T
        self.last = idx[:, -1:]
        return self.head(self.ln_f(x if T == 1 else x.view(B, T, -1)[:, -1])).float()

    def forget(self) -> None:
        """Start anew at position 0."""
        self.length, self.last = 0, torch.zeros_like(self.last)
        self.read_last.zero_()

    def _read(self, x: Tensor, T: int, layer: int, part: int) -> Tensor:
        """What attention (part 0) or the MLP (1) reads: with token_shift, half of it from the position before."""
        if not self.config.token_shift:
            return x
        x = x.view(-1, T, x.size(1))
        shifted = shift(x, self.read_last[layer, part])
        self.read_last[layer, part] = x[:, -1:]
        return shifted.flatten(0, 1)

    def _angles(self, start: int, T: int, device: torch.device) -> Tensor:
        config = self.config
        if not self.rope_start <= start <= start + T <= self.rope_start + self.rope.size(1):
            self.rope_start = start
            self.rope = rope_angles(start, max(T, config.block_size), config.n_embd // config.n_head, device)
            self.rope = self.rope.to(self.wte.dtype)
        return self.rope[:, start - self.rope_start : start - self.rope_start + T]


def _layout(block: Block) -> tuple[Function, Linear, Linear, Function, Linear, Linear]:
    attn, mlp = block.attn, block.mlp
    qkv, attn_proj, fc, mlp_proj = (
        Linear(linear.weight.t().contiguous(), linear.bias)
        for linear in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj)
    )
    return _norm(block.ln_1), qkv, attn_proj, _norm(block.ln_2), fc, mlp_proj


def _norm(module: Norm) -> Function:
    shape, weight, bias = list(module.weight.shape), module.weight, module.bias
    if module.rms:
        return lambda x: torch.rms_norm(x, shape, weight, 1e-5)
    return lambda x: torch.layer_norm(x, shape, weight, bias, 1e-5)
