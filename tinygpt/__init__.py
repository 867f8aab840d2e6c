"""tinygpt: train tiny character-level GPTs on a laptop, and see what they do.

To understand how a GPT is trained, read model.py with options.py, prepare.py, data/rows.py, train.py (`loop` first)
and training/optimizer.py, then sample.py. fast/ computes the same, faster on a CPU.
"""

__version__ = "0.5.0"
