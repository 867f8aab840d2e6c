"""Change the size of a trained model: its context, or its vocabulary.

set_block_size(model, 128)
grow_vocabulary(model, known=65, total=70)
"""

import torch
from torch import nn

from tinygpt.model import GPT


def set_block_size(model: GPT, block_size: int) -> None:
    """Change the context to `block_size`. Learned embeddings of later positions are dropped.

    With learned positions the context can only become shorter. Relative positions (rope, alibi) need no weights, so it
    can also become longer; the model then has to learn from longer rows.
    """
    assert model.position.relative or block_size <= model.config.block_size
    model.config.block_size = block_size
    if "wpe" in model.transformer:
        table = model.transformer["wpe"]
        table.weight = nn.Parameter(table.weight[:block_size].detach().clone())
        table.num_embeddings = len(table.weight)


def grow_vocabulary(model: GPT, known: int, total: int) -> None:
    """Enlarge the embeddings to `total` tokens. The rows of the `known` tokens stay.

    A new row starts as their mean, so the model treats a new token like an average one (Hewitt 2021, "Initializing
    new word embeddings for pretrained language models").
    """
    config = model.config
    transformer = model.transformer
    old = config.vocab_size
    size = max(total, config.vocab_size)
    if "wbe" in transformer:  # rows of pairs: (before, token)
        pairs = transformer["wbe"].weight.detach().view(old, old, -1)[:known, :known]
        grown = pairs.mean((0, 1)).repeat(size, size, 1)
        grown[:known, :known] = pairs
        transformer["wbe"] = nn.Embedding.from_pretrained(grown.flatten(0, 1), freeze=False)
    for module in {transformer["wte"], model.lm_head}:
        rows = module.weight.detach()[:known]
        module.weight = nn.Parameter(torch.cat((rows, rows.mean(0).repeat(size - known, 1))))
    transformer["wte"].num_embeddings = model.lm_head.out_features = size
    if config.tie_weights:
        model.lm_head.weight = transformer["wte"].weight
    config.vocab_size = size
