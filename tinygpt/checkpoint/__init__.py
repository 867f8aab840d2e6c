"""Checkpoints: files that are complete or absent, and what is in them.

    store.py        write and read, atomically and with a checksum; the model inside
    adapter.py      adapter.pt: what a LoRA run has learned, without its base model
    resize.py       a shorter context, a larger vocabulary
    health.py       refuse a model whose numbers are not finite
    gpt2.py         OpenAI's GPT-2 weights as a checkpoint

The package imports data, model, lora.py and what they import.

    model = store.load("out/ckpt.pt").build_model()
"""
