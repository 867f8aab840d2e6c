"""The fast path: the model and its optimizer again, for a small model on a CPU.

    model.py        FastGPT: the GPT of model.py with the attention and the decoder below
    attention.py    attention, and normalisation and rotation, with their gradients written out
    decoder.py      decoding with the weights laid out for products with a few rows
    weights.py      all weights in one flat tensor, which is cast to low precision as a whole
    optimizer.py    AdamW and Muon on that flat tensor
    muon.py         Muon, with all matrices of one shape in one batch

Every piece computes what the plain core computes (tests/test_fast.py) and earns its place by a measured ratio
(docs/PERFORMANCE.md). Only training/build.py chooses between the two, so this package can be removed there. It imports
the model and the configuration.

    flat = FlatWeights(FastGPT(model_config), torch.bfloat16)
    optimizer = FlatOptimizer(flat, config)
"""
