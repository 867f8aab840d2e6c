"""Data: text, pairs and tasks, tokenizers, and the token files that a model is trained on.

It knows nothing of models, and numpy but not torch.

    Dataset("data", "shakespeare_char").sources["train"].draw(seed=1337, step=0, block_size=64, count=12)
"""
