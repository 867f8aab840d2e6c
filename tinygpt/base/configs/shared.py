"""The types and keys that the configurations of several commands share."""

import dataclasses
import math
from typing import Annotated, Literal

from tinygpt.base.configs.fields import DATASET_NAME, LARGEST, PATH, Config, Group, Limit, Text

Count = Annotated[int, Limit(">=", 1), Limit("<", LARGEST)]
CountOrZero = Annotated[int, Limit(">=", 0), Limit("<", LARGEST)]
NonNegative = Annotated[float, Limit(">=", 0), Limit("<", math.inf)]
Share = Annotated[float, Limit(">=", 0), Limit("<", 1)]
Port = Annotated[int, Limit(">=", 0), Limit("<", 65536)]
Seed = Annotated[int, Limit(">=", 0), Limit("<", 2**63)]
File = Annotated[str, PATH]
Files = Annotated[tuple[str, ...], PATH]
FOLDER_NAME = "the name of a folder inside data/: letters, digits, '_', '-' and '.' only"
DatasetName = Annotated[str, Text(f"({DATASET_NAME})?", FOLDER_NAME)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Switch = Literal["auto", "True", "False"]
Time = Annotated[str, Text(r"\d{1,6}(\.\d{1,6})?[smh]", "a time such as 90s, 10m or 1h")]
TimeOrNone = Annotated[str, Text(r"(\d{1,6}(\.\d{1,6})?[smh])?", "a time such as 90s, 10m or 1h")]
Threads = Annotated[str, Text("auto|[1-9][0-9]{0,2}", "auto or a number from 1 to 999")]
UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds_of(time: str) -> float:
    """Convert 90s, 10m or 1h to seconds."""
    return float(time[:-1]) * UNITS[time[-1]]


@dataclasses.dataclass(kw_only=True)
class DataConfig(Config):
    """A command that reads or writes datasets."""

    data_dir: File = "data"
    """folder of the datasets"""


@dataclasses.dataclass(kw_only=True)
class CheckpointConfig(Config):
    """A command that reads a checkpoint and no dataset."""

    data_dir: File = "data"
    """folder of the datasets; needed only for a nanoGPT checkpoint, whose tokenizer is its dataset's"""


@dataclasses.dataclass(kw_only=True)
class DeviceConfig(Config):
    """A command that computes with a trained model."""

    device: Annotated[str, Group("machine")] = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto: a CUDA GPU if there is one, else the CPU"""
    dtype: Dtype = "auto"
    """dtype of the model; auto: float32, but for more than 20 M parameters bfloat16, if the hardware supports it"""
    threads: Threads = "auto"
    """number of threads on a CPU; auto: OMP_NUM_THREADS, else one per core, on Linux no more than there are idle CPUs
    at the start"""


@dataclasses.dataclass(kw_only=True)
class InferenceConfig(DeviceConfig):
    """A command that can choose between the two implementations of a model."""

    fast: Annotated[Switch, Group("machine")] = "auto"
    """use the fast path for CPUs (tinygpt/fast) instead of plain PyTorch; auto: on a CPU"""
