"""One token after the other: pure functions on ids and logits, no text and no files.

    for tokens in generate(model, prompt, 100, Choice(temperature=0.8, top_k=200)): ...   # int64 (B,), one step

A key-value cache keeps what each layer computed for earlier positions, so a step costs one position. When a model
with learned positions has filled its window, its cache cannot slide (every position would change its embedding): it is
filled anew with the last half of the window and goes on from there. With rotary positions the cache rolls.
"""

import collections
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from tinygpt.errors import diverged
from tinygpt.fast.decoder import Decoder
from tinygpt.model import GPT


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the next token is drawn."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1337


def probabilities(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (..., V) to the distribution that is drawn from: float32 (..., V), sums to one.

    temperature 0 puts everything on the likeliest token; top_k keeps the k likeliest; top_p keeps the fewest whose
    probabilities, after temperature and top_k, reach p (nucleus sampling, Holtzman et al. 2020).
    """
    logits = logits.float()
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    if temperature < 1:
        logits = logits - logits.amax(-1, keepdim=True)  # from the top: dividing by the temperature cannot overflow
    logits = logits / max(temperature, 1e-30)  # in float32 a smaller one would be 0, and 0 / 0 is NaN
    if 0 < top_k < logits.size(-1):
        kth = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    chances = logits.softmax(-1)
    if top_p < 1:
        ordered, order = chances.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # the tokens before this one already reach p
        beyond[..., 0] = False  # always keep the first: in float32 a tiny top_p is 0
        chances = chances.masked_fill(beyond.scatter(-1, order, beyond), 0.0)
        chances = chances / chances.sum(-1, keepdim=True)
    return chances


@torch.inference_mode()
def generate(
    model: GPT, prompt: Tensor, max_new_tokens: int, choice: Choice, vocab_size: int = 0, exact_window: bool = False
) -> Iterator[Tensor]:
    """Yield the next token of every row, int64 (B,), up to max_new_tokens times.

    prompt int64 (B, T), T >= 1, of which the last block_size are used. vocab_size: ids from here on are never drawn
    (a padded vocabulary). exact_window: recompute the last block_size tokens at every step, as nanoGPT does.
    Memory use does not depend on max_new_tokens. Errors: TinyGPTError for logits that are not finite.
    """
    block_size = model.config.block_size
    rolls = model.config.position == "rope"
    generator = torch.Generator(prompt.device).manual_seed(choice.seed)
    context = prompt[:, -block_size:]
    recent = collections.deque(context.split(1, dim=1), maxlen=block_size)  # the newest tokens, each int64 (B, 1)
    decoder = None if exact_window else Decoder(model, len(context))
    for _ in range(max_new_tokens):
        logits = decoder(context) if decoder else model(context, last_only=True)[0][:, -1]
        if 0 < vocab_size < logits.size(-1):
            logits = logits[:, :vocab_size]
        chosen = draw(logits, choice, generator)
        recent.append(chosen)
        yield chosen[:, 0]
        if decoder is None:
            context = torch.cat(tuple(recent), dim=1)
        elif decoder.length < block_size or rolls:
            context = chosen
        else:
            decoder.forget()
            context = torch.cat(tuple(recent)[-max(1, block_size // 2) :], dim=1)


def draw(logits: Tensor, choice: Choice, generator: torch.Generator) -> Tensor:
    """Draw one token per row of the logits (B, V): int64 (B, 1). Errors: TinyGPTError for logits that are not finite.

    On a CPU, multinomial itself raises for a distribution with NaN, so finite logits need no separate check.
    """
    if choice.temperature == 0 or logits.device.type != "cpu":
        require_finite(logits)  # argmax treats NaN as the largest; a GPU may become unusable
    chances = probabilities(logits, choice.temperature, choice.top_k, choice.top_p)
    try:
        return torch.multinomial(chances, 1, generator=generator)
    except RuntimeError:
        require_finite(logits)
        raise


@torch.inference_mode()
def refuse_diverged(model: GPT, where: str, probe: int = 64) -> None:
    """Refuse a model that diverged. Errors: TinyGPTError if its weights, or its logits for up to `probe` tokens, are
    not finite; the message begins with `where`, which names the model."""
    for weight in model.parameters():
        require_finite(weight, f"{where}: the weights are")
    count = min(model.config.vocab_size, model.config.block_size, probe)
    idx = torch.arange(count, device=model.lm_head.weight.device)[None]
    require_finite(model.eval()(idx)[0], f"{where}: the logits are")


def require_finite(values: Tensor, what: str = "the logits are") -> None:
    """Refuse values of which one is NaN or infinite. Errors: TinyGPTError, whose message begins with `what`."""
    if not values.isfinite().all():
        raise diverged(what, values[~values.isfinite()][0].item())
