"""Distillation: a run also learns from the probabilities that a trained model, its teacher, gives to every token.

    teacher = Teacher.of(config, compute, dataset.tokenizer, width)    # None without the key `teacher`
    loss = teacher.distilled(cross_entropy, logits, x, y)

Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", at temperature 1; a teacher of the student's
own size helps, too (Furlanello et al. 2018, "Born-again neural networks").
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tinygpt.checkpoint import store
from tinygpt.checkpoint.adapter import weights_fingerprint
from tinygpt.config.schema import TrainConfig
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.device import Compute
from tinygpt.errors import TinyGPTError
from tinygpt.generate import refuse_diverged
from tinygpt.model import GPT
from tinygpt.options import POSITIONS


class Teacher(NamedTuple):
    """A trained model, whose weights stay as they are, and its share of the loss."""

    model: GPT
    share: float
    tokens: int  # of the vocabulary; the logits of a model may be more
    fingerprint: str  # of the weights

    @classmethod
    def of(cls, config: TrainConfig, compute: Compute, tokenizer: Tokenizer, width: int) -> "Teacher | None":
        """Load the teacher of a run, if it has one. width: tokens of the longest row. Errors: TinyGPTError for a
        teacher that is missing, that the run would overwrite, or that cannot read the run's rows."""
        path = config.teacher
        if not path or config.eval_only:
            return None
        if not os.path.exists(path):
            hint = "--teacher=PATH of a trained model, or --teacher= for none"
            raise TinyGPTError(f"teacher: {path}: no such file", hint)
        store.refuse_overwriting(Path(config.out_dir), path, "the teacher")
        checkpoint = store.load(path)
        if store.tokenizer_of(checkpoint, path, config.data_dir).to_dict() != tokenizer.to_dict():
            problem = f"teacher: {path} has another vocabulary than this run"
            raise TinyGPTError(problem, f"a model that was trained on the dataset {config.dataset}")
        model = checkpoint.for_inference(compute).requires_grad_(False)
        refuse_diverged(model, path)
        if width > model.config.block_size and not POSITIONS[model.config.position].relative:
            problem = f"teacher: {path} reads {model.config.block_size} tokens, but the rows of this run have {width}"
            raise TinyGPTError(problem, f"--block_size={model.config.block_size}")
        return cls(model, config.teacher_share, tokenizer.vocab_size, weights_fingerprint(checkpoint.model))

    def distilled(self, cross_entropy: Tensor, logits: Tensor, idx: Tensor, targets: Tensor) -> Tensor:
        """Mix the cross-entropy with the mean Kullback-Leibler divergence from the teacher's probabilities at the N
        positions that have a target, in nats.

        logits: the student's, (B, T, V), or (N, V) of those positions; idx and targets int64 (B, T), -1 for no target.
        """
        with torch.no_grad():
            wanted = self.model(idx, targets, targets_only=logits.dim() == 2)[0]
        own, wanted = (each[..., : self.tokens].log_softmax(-1) for each in (logits, wanted))
        divergence = F.kl_div(own, wanted, reduction="none", log_target=True).sum(-1)  # (B, T) or (N,)
        if logits.dim() == 3:
            divergence = divergence * (targets >= 0) * (targets.numel() / (targets >= 0).sum())  # the mean is that of N
        return cross_entropy.lerp(divergence.mean(), self.share)
