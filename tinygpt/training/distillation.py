"""Distillation: a run also learns from the probabilities that a trained model, its teacher, gives to every token.

    teacher = Teacher.of(start)    # None without one
    loss = teacher.loss(cross_entropy, logits, x, y)

Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", at temperature 1; the teacher may have the
student's size (Furlanello et al. 2018, "Born Again Neural Networks").
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import store
from tinygpt.checkpoint.adapter import weights_fingerprint
from tinygpt.generate import refuse_diverged
from tinygpt.model import GPT
from tinygpt.training.start import Start


class Teacher(NamedTuple):
    """A trained model, whose weights stay as they are, and its share of the loss."""

    model: GPT
    share: float
    vocab_size: int  # of the tokenizer; a model whose vocabulary is padded has more logits
    fingerprint: str  # of the weights

    @classmethod
    def of(cls, start: Start) -> "Teacher | None":
        """Load the teacher of a run, if it has one. Errors: TinyGPTError for a teacher that is missing, diverged, or
        would be overwritten, or that cannot read the run's rows."""
        config = start.config
        path = start.teacher
        dataset = start.dataset
        dtype = start.compute.dtype
        if not path or config.eval_only:
            return None
        store.refuse_overwriting(Path(config.out_dir), path, "the teacher")
        try:
            checkpoint = store.load(path)
        except TinyGPTError as error:
            first = "" if Path(path).exists() else "train it first, or "
            hint = f"{first}give --teacher=PATH of a model's ckpt.pt or last.pt, or --teacher= for none"
            raise TinyGPTError(f"teacher: {error.message}", hint) from None
        # a nanoGPT model's tokenizer is that of its dataset, which is next to this one
        tokenizer = store.tokenizer_of(checkpoint, path, str(dataset.folder.parent))
        if tokenizer.to_dict() != dataset.tokenizer.to_dict():
            hint = f"a model that was trained on the dataset {config.dataset}, or fine-tuned on it from the same base"
            raise TinyGPTError(f"teacher: {path} and this run have different vocabularies", hint)
        # its weights are cast, so numbers outside the range of float16 are possible, and a run would skip the update
        compute = dataclasses.replace(start.compute, dtype=torch.float32 if dtype == torch.float16 else dtype)
        model = checkpoint.for_inference(compute, config.fast).requires_grad_(False)
        refuse_diverged(model, path)
        width = start.source.width(config.block_size)
        if width > model.config.block_size:
            problem = f"teacher: {path} reads {model.config.block_size} tokens, but the rows of this run have {width}"
            raise TinyGPTError(problem, f"a teacher with a longer context, or --block_size={model.config.block_size}")
        return cls(model, config.teacher_share, dataset.tokenizer.vocab_size, weights_fingerprint(checkpoint.model))

    def loss(self, cross_entropy: Tensor, logits: Tensor, idx: Tensor, targets: Tensor) -> Tensor:
        """Compute (1 - share) cross-entropy + share KL(teacher ‖ student), in nats, averaged over the N targets.

        logits: the student's, (B, T, V), or (N, V) of the positions with a target; idx and targets int64 (B, T), -1 for
        no target. KL(p ‖ q) is the sum over the vocabulary of p ln(p / q).
        """
        only_targets = logits.dim() == 2
        with torch.no_grad():
            teacher_logits, _ = self.model(idx, targets if only_targets else None, targets_only=only_targets)
        student, teacher = (each[..., : self.vocab_size].log_softmax(-1) for each in (logits, teacher_logits))
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)  # (B, T) or (N,)
        if only_targets:
            return cross_entropy.lerp(divergence.mean(), self.share)
        has_target = targets >= 0  # multiplied, since an index of booleans would wait for a GPU
        return cross_entropy.lerp((divergence * has_target).sum() / has_target.sum(), self.share)
