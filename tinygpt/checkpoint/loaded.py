"""Load a model for inference: read its checkpoint, choose device and dtype, and build the torch module there.

loaded = Loaded.load("out", "out-lora", InferenceConfig(device="cpu"))
loaded.model(torch.tensor([loaded.tokenizer.encode("text").tolist()]))[0]    # logits (1, T, V)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

from tinygpt.base.configs.shared import InferenceConfig
from tinygpt.base.device import choose_for_inference
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import Checkpoint, tokenizer_of
from tinygpt.model import GPT

ON_CPU = InferenceConfig(device="cpu", threads="")  # with the number of threads that PyTorch has now


class Loaded:
    """A trained model for inference, with its tokenizer.

    path: its checkpoint or folder; of an adapter, if there is one. name: the path as given, for display. config: the
    run's configuration. compute: device and dtype. model: the torch module.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        path: str,
        settings: InferenceConfig,
        data_dir: str = "data",
        model: GPT | None = None,
    ) -> None:
        """Build the model of a checkpoint, which is not kept: its weights may be in another dtype. data_dir: see
        `tokenizer_of`. model: one that is built already. Errors: TinyGPTError for a checkpoint without a tokenizer, and
        for a device that is not here."""
        self.path = Path(path)
        self.name = path
        self.data_dir = data_dir
        self.config = checkpoint.config
        self.tokenizer = tokenizer_of(checkpoint, path, data_dir)
        self.compute = choose_for_inference(settings.device, settings.dtype, checkpoint.num_params, settings.threads)
        self.model = model or checkpoint.for_inference(self.compute, settings.fast)

    @classmethod
    def load(cls, ckpt: str, adapter: str, settings: InferenceConfig, data_dir: str = "data") -> Self:
        """Load a checkpoint, or the best one of a run's folder, with an adapter unless that is empty. Errors: as in
        `load_model`, too."""
        return cls(load_model(ckpt, adapter), adapter or ckpt, settings, data_dir)


Model = TypeVar("Model", bound=Loaded)


class AdaptedModels(Mapping[str, Model]):
    """A base model, "", and its adapters by name; each is built when it is asked for, on the base's tensors."""

    def __init__(self, build: Callable[[str], Model], names: Sequence[str]) -> None:
        self.build = build
        self.names = names

    def __getitem__(self, name: str) -> Model:
        if name not in list(self):
            raise KeyError(name)
        return self.build(name)

    def __iter__(self) -> Iterator[str]:
        return iter(["", *self.names])

    def __len__(self) -> int:
        return 1 + len(self.names)
