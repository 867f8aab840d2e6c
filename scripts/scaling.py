"""Compute on paper what the training of GPTs of 124 M, 1 B and 7 B parameters takes: the tables of docs/dev/SCALING.md.

    python scripts/scaling.py

Nothing is measured here: all figures follow from the constants below and from the formulas in the functions.
"""

from typing import NamedTuple

from tinygpt.terminal import duration

SHARE = 0.4  # of the GPU's peak that training reaches (model FLOP utilisation, MFU); 0.3 to 0.6 in PUBLISHED
LINK = 250e9  # bytes per second and direction between the GPUs of a machine (NVLink of an A100: 300e9 at most)
NETWORK = 25e9  # bytes per second and GPU between machines (InfiniBand, 200 Gbit/s)
OPTIMAL = 20  # training tokens per parameter (Hoffmann et al. 2022)
# bytes per parameter: float32 weights, gradients, and AdamW's two moments; a copy of the weights in bfloat16
STATE = {"weights": 4, "gradients": 4, "optimizer": 8, "bfloat16 copy": 2}


class Shape(NamedTuple):
    """A GPT."""

    parameters: float
    layers: int
    width: int
    context: int

    def flop_per_token(self) -> float:
        """FLOP of the forward and the backward pass: 6 per parameter, and the scores and weighted sums of attention
        (Chowdhery et al. 2022, appendix B)."""
        return 6 * self.parameters + 12 * self.layers * self.width * self.context


class Gpu(NamedTuple):
    """A GPU: peak FLOP per second in bfloat16, and bytes of memory."""

    peak: float
    memory: float


MODELS = {
    "124 M": Shape(124e6, 12, 768, 1024),
    "1 B": Shape(1.1e9, 22, 2048, 2048),
    "7 B": Shape(6.7e9, 32, 4096, 2048),
}
GPUS = {"A100": Gpu(312e12, 80e9), "H100": Gpu(989e12, 80e9)}


class Published(NamedTuple):
    """A run that others have made."""

    model: str
    tokens: float
    gpu_hours: float  # on A100s
    source: str


PUBLISHED = {
    "GPT-2, nanoGPT": Published("124 M", 300e9, 8 * 4 * 24, "README of nanoGPT: about 4 days on 8 A100"),
    "TinyLlama": Published("1 B", 300e9, 3456, "README of TinyLlama"),
    "Llama 7B": Published("7 B", 1e12, 82432, "Touvron et al. 2023, table 15"),
}


def gpu_hours(shape: Shape, tokens: float, gpu: Gpu, share: float = SHARE) -> float:
    return shape.flop_per_token() * tokens / (gpu.peak * share) / 3600


def activations(shape: Shape, rows: int) -> float:
    """Bytes kept for the backward pass, in bfloat16 with fused attention: 34 per block, token and channel (Korthikanti
    et al. 2022, equation 2 without the scores), and the logits in float32 for a vocabulary of 50,257."""
    tokens = rows * shape.context
    return tokens * (34 * shape.layers * shape.width + 4 * 50257)


def communication(shape: Shape, gpus: int, method: str) -> float:
    """Bytes that a GPU sends per step. DistributedDataParallel: an all-reduce of the float32 gradients. fully_shard:
    the weights are gathered in bfloat16 for the forward and for the backward pass (those of the embeddings and the
    head only once, which is neglected here), the gradients scattered in float32."""
    share = (gpus - 1) / gpus
    return share * shape.parameters * (2 * 4 if method == "DistributedDataParallel" else 2 + 2 + 4)


def memory(shape: Shape, gpus: int, method: str, rows: int = 1) -> float:
    """Compute the bytes per GPU."""
    state = shape.parameters * sum(STATE.values())
    return state / (gpus if method == "fully_shard" else 1) + activations(shape, rows)


def table(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def tables() -> dict[str, str]:
    """Make the tables, by their names in docs/dev/SCALING.md."""
    time, parts, shared, checked = [], [], [], []
    for name, shape in MODELS.items():
        tokens = OPTIMAL * shape.parameters
        flop = shape.flop_per_token()
        each = [duration(3600 * gpu_hours(shape, tokens, gpu) / count) for gpu in GPUS.values() for count in (1, 8, 64)]
        time.append([name, f"{tokens / 1e9:.3g} B", f"{flop:.2g}", f"{flop * tokens:.1e}", *each])
        gb = [f"{shape.parameters * size / 1e9:.1f}" for size in STATE.values()]
        total = memory(shape, 1, "")
        parts.append([name, *gb, f"{activations(shape, 1) / 1e9:.1f}", f"{total / 1e9:.1f}"])
        for gpus, speed in ((8, LINK), (64, NETWORK)):
            step = flop * shape.context * 8 / (GPUS["A100"].peak * SHARE)  # seconds for 8 rows per GPU
            for method in ("DistributedDataParallel", "fully_shard"):
                sent, needed = communication(shape, gpus, method), memory(shape, gpus, method, rows=8)
                fits = "yes" if needed < GPUS["A100"].memory else "no"
                shared.append(
                    [name, str(gpus), method, f"{sent / 1e9:.1f}", f"{1000 * sent / speed:,.0f}", f"{1000 * step:,.0f}",
                     f"{needed / 1e9:.0f}", fits]
                )  # fmt: skip
    for name, run in PUBLISHED.items():
        shape = MODELS[run.model]
        ours = gpu_hours(shape, run.tokens, GPUS["A100"])
        reached = gpu_hours(shape, run.tokens, GPUS["A100"], 1) / run.gpu_hours
        difference = f"{ours / run.gpu_hours - 1:+.0%}"
        figures = f"{run.tokens / 1e9:,.0f} B", f"{ours:,.0f}", f"{run.gpu_hours:,.0f}", difference, f"{reached:.0%}"
        checked.append([name, *figures, run.source])
    counts = [f"{count} {gpu}" for gpu in GPUS for count in (1, 8, 64)]
    return {
        "time": table(["model", "tokens", "FLOP per token", "FLOP", *counts], time),
        "memory": table(["model", *STATE, "activations, 1 row", "sum"], parts),
        "sharing": table(
            ["model", "GPUs", "method", "GB sent per step", "ms to send", "ms to compute", "GB needed", "fits 80 GB"],
            shared,
        ),
        "published": table(
            ["run", "tokens", "computed GPU hours", "published", "difference", "share of the peak", "source"], checked
        ),
    }


if __name__ == "__main__":
    for name, text in tables().items():
        print(f"{name}:\n\n{text}\n")
