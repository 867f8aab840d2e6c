"""TinyGPTError: the error type for everything that a user can cause and fix.

A mistake in a path, a flag or a file raises it, with a message of one sentence that names the mistake, and a hint that
shows how to fix it. `tinygpt/cli.py` is the only place that prints it:

    error: input.txt: no such file
      try: tinygpt prepare mine --input path/to/text.txt
"""

import importlib
import importlib.util
import math
from typing import Any

EXTRAS = {  # module of a package that the plain install lacks: its name on PyPI, and the extra that installs it
    "backports": ("backports.zstd", "zstd"),
    "docx": ("python-docx", "retrieve"),
    "gguf": ("gguf", "pretrained"),
    "huggingface_hub": ("huggingface_hub", "pretrained"),
    "jinja2": ("jinja2", "report"),
    "matplotlib": ("matplotlib", "plot"),
    "openpyxl": ("openpyxl", "excel"),
    "pypdf": ("pypdf", "retrieve"),
    "pytest": ("pytest", "class"),
    "pytest_timeout": ("pytest-timeout", "class"),
    "safetensors": ("safetensors", "pretrained"),
    "sentence_transformers": ("sentence-transformers", "vectors"),
    "sklearn": ("scikit-learn", "eval"),
    "starlette": ("starlette", "serve"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "threadpoolctl": ("scikit-learn", "eval"),  # which requires it
    "tokenizers": ("tokenizers", "pretrained"),
    "transformers": ("sentence-transformers", "vectors"),  # which requires it
    "uvicorn": ("uvicorn", "serve"),
    "wordllama": ("wordllama", "retrieve"),
}


class TinyGPTError(Exception):
    """`message` says what is wrong, `hint` what to do next; `status` is the exit status.

    Status 2: a mistake in the command, nothing written. 1: a failure while the command ran (a full disk, out of memory,
    a loss that is not finite).
    """

    def __init__(self, message: str, hint: str = "", status: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.hint = hint
        if hint:
            self.add_note(f"  try: {hint}")  # which a traceback shows below the message

    def text(self) -> str:
        """Format message and hint, as the command line prints them."""
        return f"error: {self.message}\n  try: {self.hint}" if self.hint else f"error: {self.message}"


def diverged(subject: str, value: float) -> TinyGPTError:
    """Make the error for a loss, logits or weights that are NaN or infinite: `diverged("the loss is", loss)`."""
    shown = "NaN" if math.isnan(value) else "infinite"
    return TinyGPTError(f"{subject} {shown}: training diverged", "train again with a lower learning_rate", status=1)


def missing(module: str, feature: str, otherwise: str = "") -> TinyGPTError:
    """Make the error for a package that is not installed: `missing("gguf", "GGUF")`."""
    package, extra = EXTRAS[module.partition(".")[0]]
    hint = f'pip install {package} (also in "tinygpt[{extra}]"){otherwise}'
    return TinyGPTError(f"{feature} needs the package {package}", hint)


def library(module: str, feature: str) -> Any:
    """Import a module that `feature` needs and the plain install lacks. Errors: TinyGPTError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise missing(module, feature) from None


def require_installed(feature: str, *modules: str, otherwise: str = "") -> None:
    """Check that modules are installed, without importing them, which can take seconds. Errors: as in `library`."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise missing(module, feature, otherwise)
