"""tinygpt: train tiny character-level GPTs on a laptop, and see what they do."""

__version__ = "0.1.0"
