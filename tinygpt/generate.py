"""From logits to text: the sampling distribution, generation with the key-value cache, and tokens decoded one by one.

    for tokens in generate(model, prompt, 100, Sampling(temperature=0.8, top_k=200)): ...   # int64 (B,), one step

With the key-value cache (model.KVCache) a step computes one position. Past block_size tokens, a model with relative
positions overwrites the oldest position at each step. With learned positions, every cached position would need another
embedding, so the cache is cleared and the last half of the context is read again.
"""

import codecs
import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tinygpt.base.errors import diverged
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.model import GPT


def require_finite(values: Tensor, subject: str = "the logits are") -> None:
    """Check that no value is NaN or infinite. Errors: TinyGPTError, whose message begins with `subject`."""
    if not values.isfinite().all():
        raise diverged(subject, values[~values.isfinite()][0].item())


@torch.inference_mode()
def refuse_diverged(model: GPT, name: str) -> None:
    """Check that a model's weights, and its logits for up to 64 tokens, are finite, before its outputs are used as
    results. Errors: TinyGPTError, whose message begins with the `name` of the model."""
    for weight in model.parameters():
        require_finite(weight, f"{name}: the weights are")
    count = min(model.config.vocab_size, model.config.block_size, 64)
    idx = torch.arange(count, device=model.lm_head.weight.device)[None]
    require_finite(model.eval()(idx)[0], f"{name}: the logits are")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of the sampling distribution, and the seed."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1337


GREEDY = Sampling(temperature=0)


def probabilities(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Convert logits (..., V) to the sampling distribution: float32 (..., V), sums to one.

    temperature 0 gives probability 1 to the most probable token (greedy decoding). top_k keeps the k most probable
    tokens. top_p keeps the fewest tokens whose probabilities, after temperature and top_k, reach p (nucleus sampling,
    Holtzman et al. 2020).
    """
    logits = logits.float()
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    if temperature < 1:
        logits = logits - logits.amax(-1, keepdim=True)  # at most 0, so that the division cannot overflow
    logits = logits / max(temperature, 1e-30)  # a smaller value is 0 in float32, and 0 / 0 is NaN
    if 0 < top_k < logits.size(-1):
        kth = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    probs = logits.softmax(-1)
    if top_p < 1:
        descending, order = probs.sort(dim=-1, descending=True)
        excluded = descending.cumsum(-1) - descending >= top_p  # the tokens before this one already reach p
        excluded[..., 0] = False  # always keep the first: a tiny top_p is 0 in float32
        probs = probs.masked_fill(excluded.scatter(-1, order, excluded), 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def draw(logits: Tensor, sampling: Sampling, *generators: torch.Generator) -> Tensor:
    """Draw one token per row of the logits (B, V), with one generator for all rows, or one for each: int64 (B, 1).
    Errors: TinyGPTError for logits that are not finite."""
    if sampling.temperature == 0 or logits.device.type != "cpu":
        # argmax treats NaN as the largest; multinomial of NaN raises on a CPU, and makes a GPU unusable
        require_finite(logits)
    if sampling.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    probs = probabilities(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    try:
        parts = zip(probs.chunk(len(generators)), generators, strict=True)
        return torch.cat([torch.multinomial(part, 1, generator=generator) for part, generator in parts])
    except RuntimeError:
        require_finite(logits)
        raise


@torch.inference_mode()
def generate_with_logits(
    model: GPT, prompt: Tensor, max_new_tokens: int, sampling: Sampling, vocab_size: int = 0, exact_window: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the next token of every row, int64 (B,), and its logits (B, V), up to max_new_tokens times.

    prompt int64 (B, T), T >= 1, of which the last block_size are used. vocab_size: ids from here on are never drawn
    (a padded vocabulary). exact_window: recompute the last block_size tokens at every step, as nanoGPT does.
    Memory use does not depend on max_new_tokens. Errors: TinyGPTError for logits that are not finite.
    """
    block_size = model.config.block_size
    generator = torch.Generator(prompt.device).manual_seed(sampling.seed)
    context = prompt[:, -block_size:]
    recent = collections.deque(context.split(1, dim=1), maxlen=block_size)  # the newest tokens, each int64 (B, 1)
    cache = None if exact_window else model.new_cache(len(context), context.size(1) + max_new_tokens)
    for _ in range(max_new_tokens):
        logits = model.next_logits(context, cache)  # (B, V)
        if 0 < vocab_size < logits.size(-1):
            logits = logits[:, :vocab_size]
        tokens = draw(logits, sampling, generator)
        recent.append(tokens)
        yield tokens[:, 0], logits
        if cache is None:
            context = torch.cat(tuple(recent), dim=1)
        elif count := tokens_to_reread(model, cache.length):
            cache.forget()
            context = torch.cat(tuple(recent)[-count:], dim=1)
        else:
            context = tokens


def tokens_to_reread(model: GPT, length: int) -> int:
    """Return the number of last tokens to read again with an empty cache after `length` positions: half of block_size
    if the cache is full and positions are not relative, else 0."""
    full = length >= model.config.block_size and not model.position.relative
    return max(1, model.config.block_size // 2) if full else 0


def generate(
    model: GPT, prompt: Tensor, max_new_tokens: int, sampling: Sampling, vocab_size: int = 0, exact_window: bool = False
) -> Iterator[Tensor]:
    """Yield the next token of every row, int64 (B,). Arguments and errors: as in `generate_with_logits`."""
    steps = generate_with_logits(model, prompt, max_new_tokens, sampling, vocab_size, exact_window)
    return (tokens for tokens, _ in steps)


def answer(model: GPT, tokenizer: Tokenizer, prompt: str, longest: int = 60) -> str:
    """Decode the response to a prompt greedily, up to its end or `longest` tokens."""
    assert tokenizer.pair is not None
    end = tokenizer.pair.end[0]
    encoded = tokenizer.encode_prompt(prompt).astype("int64")
    idx = torch.tensor(encoded[None], device=model.lm_head.weight.device)
    ids = (int(token[0]) for token in generate(model, idx, longest, GREEDY, tokenizer.vocab_size))
    return tokenizer.decode(list(itertools.takewhile(lambda token: token != end, ids)))


class TextStream:
    """Decode tokens to text one at a time: complete characters only, and nothing from the first stop text on."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stops = [stop for stop in stops if stop]
        self.pending = ""
        self.stopped = False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Decode one more token, and return the text that can be printed now. `stopped` is set after a stop text."""
        text = self.pending + self.decoder.decode(self.tokenizer.token_bytes(token))
        if stop_indices := [text.index(stop) for stop in self.stops if stop in text]:
            self.pending = ""
            self.stopped = True
            return text[: min(stop_indices)]
        keep = max(
            (n for stop in self.stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])),
            default=0,
        )
        self.pending = text[len(text) - keep :]  # the beginning of a stop text, perhaps
        return text[: len(text) - keep]

    def end(self) -> str:
        """Return the rest of the text: what may have been the beginning of a stop text, or an incomplete character."""
        return "" if self.stopped else self.pending + self.decoder.decode(b"", final=True)
