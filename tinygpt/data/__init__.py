"""Data: text, pairs and tasks, tokenizers, and the token files that a model is trained on."""
