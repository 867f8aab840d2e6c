"""The fast path: model and optimizer in a version that is faster for small models on a CPU.

    model.py        FastGPT: the GPT of model.py with attention and decoder below; what all rows share is computed once
    attention.py    attention, normalisation and rotation with handwritten gradients
    decoder.py      decoding, with weights laid out for matrix products with few rows
    weights.py      all weights in one flat tensor, which one kernel casts to low precision
    optimizer.py    AdamW and Muon on that flat tensor
    muon.py         Muon, which batches all matrices of one shape

Every part computes the same as the plain core (tests/test_fast.py) and is measurably faster (docs/PERFORMANCE.md).
`model_class` and training/build.py choose between the two, and serve/command.py uses the decoder. The package imports
the model, the device and the configuration.

    flat = FlatWeights(FastGPT(model_config), torch.bfloat16)
    optimizer = FlatOptimizer(flat, config)
"""

from tinygpt.device import Compute
from tinygpt.errors import TinyGPTError
from tinygpt.model import GPT


def model_class(fast: str, compute: Compute) -> type[GPT]:
    """GPT or FastGPT for a value of the key `fast`. Errors: TinyGPTError for the fast path on a GPU."""
    on_cpu = compute.device.type == "cpu"
    if fast == "True" and not on_cpu:
        raise TinyGPTError(f"fast=True is for a CPU, not for {compute.device}", "--fast=auto")
    if not on_cpu or fast == "False":
        return GPT
    from tinygpt.fast.model import FastGPT

    return FastGPT
