"""Load a model for inference: read its checkpoint, choose device and dtype, and build the torch module there.

loaded = Loaded.load("out", "out-lora", InferenceConfig(device="cpu"))
loaded.model(torch.tensor([loaded.tokenizer.encode("text").tolist()]))[0]    # logits (1, T, V)
"""

from pathlib import Path
from typing import Self

from tinygpt.base.configs.shared import InferenceConfig
from tinygpt.base.device import choose_for_inference
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import Checkpoint, tokenizer_of


class Loaded:
    """A trained model for inference, with its tokenizer.

    path: its checkpoint or folder; of an adapter, if there is one. name: the path as given, for display. config: the
    run's configuration. compute: device and dtype. model: the torch module.
    """

    def __init__(self, checkpoint: Checkpoint, path: str, settings: InferenceConfig, data_dir: str = "data") -> None:
        """Build the model of a checkpoint, which is not kept: its weights may be in another dtype. data_dir: see
        `tokenizer_of`. Errors: TinyGPTError for a checkpoint without a tokenizer, and for a device that is not here."""
        self.path = Path(path)
        self.name = path
        self.data_dir = data_dir
        self.config = checkpoint.config
        self.tokenizer = tokenizer_of(checkpoint, path, data_dir)
        self.compute = choose_for_inference(settings.device, settings.dtype, checkpoint.num_params, settings.threads)
        self.model = checkpoint.for_inference(self.compute, settings.fast)

    @classmethod
    def load(cls, ckpt: str, adapter: str, settings: InferenceConfig, data_dir: str = "data") -> Self:
        """Load a checkpoint, or the best one of a run's folder, with an adapter unless that is empty. Errors: as in
        `load_model`, too."""
        return cls(load_model(ckpt, adapter), adapter or ckpt, settings, data_dir)
