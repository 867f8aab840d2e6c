"""The fast path: model and optimizer in a version that is faster for small models on a CPU.

    model.py        FastGPT: the GPT of model.py with attention and decoder below; what all rows share is computed once
    attention.py    attention, normalisation and rotation with handwritten gradients
    decoder.py      decoding, with weights laid out for matrix products with few rows
    optimizer.py    all weights in one flat tensor, which one kernel casts to low precision; AdamW and Muon on it
    muon.py         Muon, which batches all matrices of one shape

Every part computes the same as the plain core (tests/test_fast.py) and is measurably faster (docs/PERFORMANCE.md).
`device.model_class` chooses between the two. The package imports the model and the configuration.

    flat = FlatWeights(FastGPT(model_config), torch.bfloat16)
    optimizer = FlatOptimizer(flat, config)
"""
