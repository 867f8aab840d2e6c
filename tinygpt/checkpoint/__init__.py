"""Checkpoints: atomic files with a checksum, LoRA adapters, and changes of a model's size.

    store.py        read and write checkpoints; build the model in one
    adapter.py      adapter.pt: the weights that a LoRA run has trained, without the base model; swapping adapters
    resize.py       shorten the context, enlarge the vocabulary
    snapshots.py    weights of several steps of a run, for the report
    eight_bits.py   weights in 8 bits, for snapshots and for pages

The package imports data, model, lora.py and what they import.

    model = store.load("out/ckpt.pt").build_model()
"""
