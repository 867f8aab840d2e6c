"""Checkpoints: atomic files with a checksum, LoRA adapters, and changes of a model's size.

The package imports data, model, lora.py and what they import.

    model = store.load("out/ckpt.pt").build_model()
"""
