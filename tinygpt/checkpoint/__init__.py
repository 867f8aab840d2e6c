"""Checkpoints: atomic files with a checksum, LoRA adapters, OpenAI's GPT-2, and changes of a model's size.

model = store.load("out/ckpt.pt").build_model()
"""
