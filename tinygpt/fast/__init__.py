"""The fast path: model and optimizer in a version that is faster for small models on a CPU.

Every part computes the same as the plain core (tests/fast/test_fast.py) and is measurably faster (experiments.md).
`model_class` in fast/model.py chooses between the two.

    flat = FlatWeights(FastGPT(model_config), torch.bfloat16)
    optimizer = FlatOptimizer(flat, config)
"""
