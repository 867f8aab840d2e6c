"""AdamW or Muon on the flat float32 weights.

optimizer = Optimizer(mixed, config)
optimizer.set_learning_rate(learning_rate(step, config))
loss.backward(); norm = optimizer.clip(); optimizer.update()
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from tinygpt.config.schema import TrainConfig
from tinygpt.errors import TinyGPTError
from tinygpt.fast.muon import Muon
from tinygpt.fast.weights import EMBEDDING, MATRIX, VECTOR, MixedPrecision
from tinygpt.training.device import adamw_scales_gradients


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) on stretches of one flat tensor: torch's fused kernel.

    Not through torch.optim.AdamW: the first use of any torch.optim.Optimizer imports PyTorch's compiler, which takes
    1.4 s and 70 MB, a tenth of a short run.
    """

    def __init__(self, weights: list[Tensor], decays: list[float], betas: tuple[float, float]) -> None:
        self.weights, self.decays, self.betas = weights, decays, betas
        self.exp_avg = [torch.zeros_like(weight) for weight in weights]
        self.exp_avg_sq = [torch.zeros_like(weight) for weight in weights]
        self.steps = [torch.zeros((), device=weight.device) for weight in weights]

    @torch.no_grad()
    def step(self, gradients: list[Tensor], lr: float, divide_by: Tensor | None = None) -> None:
        """Update the weights, with the gradients divided by `divide_by`: in the fused kernel where it supports that."""
        beta1, beta2 = self.betas
        if divide_by is not None and not adamw_scales_gradients(divide_by.device):
            gradients, divide_by = [gradient / divide_by for gradient in gradients], None
        for index, decay in enumerate(self.decays):
            w, g, m, v, step = (
                [tensors[index]] for tensors in (self.weights, gradients, self.exp_avg, self.exp_avg_sq, self.steps)
            )
            adamw(
                w, g, m, v, [], step, fused=True, amsgrad=False, maximize=False,
                beta1=beta1, beta2=beta2, lr=lr, weight_decay=decay, eps=1e-8, grad_scale=divide_by,
            )  # fmt: skip


class Optimizer:
    """AdamW for everything, or Muon (Jordan et al. 2024) for the blocks' matrices and AdamW for embeddings, head and
    vectors.

    Matrices and embeddings are decayed, vectors (biases, norms) are not: Devlin et al. 2019, GPT-3, nanoGPT. The
    weights of each kind lie side by side in the flat tensor, so AdamW is one kernel for those decayed and one for the
    rest.
    """

    def __init__(self, mixed: MixedPrecision, config: TrainConfig) -> None:
        self.mixed, self.config, self.rate = mixed, config, config.learning_rate
        flat, wd = mixed.flat.detach(), config.weight_decay
        self.muon: Muon | None = None
        decayed = [MATRIX, EMBEDDING]
        if config.optimizer == "muon" and (place := mixed.place_of(MATRIX)):
            self.muon_place, decayed = place, [EMBEDDING]
            shapes = [shape for name, shape in mixed.shapes.items() if mixed.kinds[name] == MATRIX]
            self.muon = Muon(flat[place], shapes, wd, mixed.dtype)
        kinds = [(mixed.place_of(*decayed), wd), (mixed.place_of(VECTOR), 0.0)]
        self.places = [place for place, _ in kinds if place]
        decays = [decay for place, decay in kinds if place]
        self.adamw = AdamW([flat[place] for place in self.places], decays, (config.beta1, config.beta2))
        self.scaler = torch.amp.GradScaler(flat.device.type, enabled=mixed.dtype is torch.float16)
        self.divide_by: Tensor | None = None  # what clipping makes of the gradient's norm
        self.param_groups = [{"params": [mixed.flat]}]  # where the scaler looks for gradients

    def set_learning_rate(self, rate: float) -> None:
        """AdamW's rate; Muon's moves in proportion."""
        self.rate = rate

    def clip(self) -> Tensor:
        """The gradient's norm; if it is larger than grad_clip, `update` scales the gradient down to that."""
        self.scaler.unscale_(self)  # type: ignore[arg-type]
        assert self.mixed.flat.grad is not None
        norm = torch.linalg.vector_norm(self.mixed.flat.grad)
        self.divide_by = (norm / self.config.grad_clip).clamp(min=1.0) if self.config.grad_clip else None
        return norm

    def update(self) -> None:
        """Move the weights, unless float16 overflowed, and forget the gradient."""
        self.scaler.step(self)  # type: ignore[arg-type]
        self.scaler.update()
        self.mixed.flat.grad = None

    def step(self) -> None:
        """Move the weights."""
        gradient = self.mixed.flat.grad
        assert gradient is not None
        self.adamw.step([gradient[place] for place in self.places], self.rate, self.divide_by)
        if self.muon:
            share = self.rate / self.config.learning_rate if self.config.learning_rate else 0.0
            part = gradient[self.muon_place]
            part = part if self.divide_by is None else part / self.divide_by
            self.muon.step(part, self.config.muon_learning_rate * share)

    def state_dict(self) -> dict[str, Any]:
        """What the optimizer has learned about the gradients; rates, decay and betas are the config's."""
        adamw = {name: getattr(self.adamw, name) for name in ("exp_avg", "exp_avg_sq", "steps")}
        muon = {"momentum": [self.muon.momentum]} if self.muon else {}
        return {"moments": adamw | muon, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Errors: TinyGPTError for the state of another model or optimizer."""
        own: dict[str, list[Tensor]] = self.state_dict()["moments"]
        saved: Any = state.get("moments")
        same = isinstance(saved, dict) and saved.keys() == own.keys()
        if not same or [_shapes(saved[name]) for name in own] != [_shapes(own[name]) for name in own]:
            raise TinyGPTError("the checkpoint's optimizer state is not that of this model")
        for name, tensors in own.items():
            for mine, theirs in zip(tensors, saved[name], strict=True):
                mine.copy_(theirs)
        self.scaler.load_state_dict(state["scaler"])


def _shapes(tensors: Any) -> list[Any]:
    return [getattr(tensor, "shape", None) for tensor in tensors]
