"""`tinygpt sample`: generate text with a checkpoint, from logits to tokens to text.

    for tokens in generate(model, prompt, 100, Choice(temperature=0.8, top_k=200)): ...   # int64 (B,), one step

With the key-value cache (cache.py) a step computes one position. Past block_size tokens, a model with relative
positions overwrites the oldest position at each step. With learned positions, every cached position would need another
embedding, so the cache is cleared and the last half of the context is read again.
"""

import codecs
import collections
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tinygpt import device
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.health import require_finite
from tinygpt.checkpoint.store import tokenizer_of
from tinygpt.config.schema import SampleConfig
from tinygpt.data.prompts import answers, encode_prompt, prompt_text, require_room
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import TinyGPTError
from tinygpt.files import strict_json
from tinygpt.model import GPT


@dataclasses.dataclass(frozen=True)
class Choice:
    """Settings for drawing the next token."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1337


# ---- from logits to tokens --------------------------------------------------------------------------------------


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
    chances = logits.softmax(-1)
    if top_p < 1:
        ordered, order = chances.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # the tokens before this one already reach p
        beyond[..., 0] = False  # always keep the first: a tiny top_p is 0 in float32
        chances = chances.masked_fill(beyond.scatter(-1, order, beyond), 0.0)
        chances = chances / chances.sum(-1, keepdim=True)
    return chances


def draw(logits: Tensor, choice: Choice, generator: torch.Generator) -> Tensor:
    """Draw one token per row of the logits (B, V): int64 (B, 1). Errors: TinyGPTError for logits that are not finite.

    On a CPU, multinomial itself raises for a distribution with NaN, so finite logits need no separate check.
    """
    if choice.temperature == 0 or logits.device.type != "cpu":
        require_finite(logits)  # argmax treats NaN as the largest; multinomial of NaN makes a GPU unusable
    if choice.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    chances = probabilities(logits, choice.temperature, choice.top_k, choice.top_p)
    try:
        return torch.multinomial(chances, 1, generator=generator)
    except RuntimeError:
        require_finite(logits)
        raise


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
    generator = torch.Generator(prompt.device).manual_seed(choice.seed)
    context = prompt[:, -block_size:]
    recent = collections.deque(context.split(1, dim=1), maxlen=block_size)  # the newest tokens, each int64 (B, 1)
    cache = None if exact_window else model.new_cache(len(context), context.size(1) + max_new_tokens)
    for _ in range(max_new_tokens):
        logits = model.next_logits(context, cache)  # (B, V)
        if 0 < vocab_size < logits.size(-1):
            logits = logits[:, :vocab_size]
        chosen = draw(logits, choice, generator)
        recent.append(chosen)
        yield chosen[:, 0]
        if cache is None:
            context = torch.cat(tuple(recent), dim=1)
        elif cache.length < block_size or model.position.relative:
            context = chosen
        else:
            cache.forget()
            context = torch.cat(tuple(recent)[-max(1, block_size // 2) :], dim=1)


def answer(model: GPT, tokenizer: Tokenizer, prompt: str, longest: int = 60) -> str:
    """Decode the response to a prompt greedily, up to its end or `longest` tokens."""
    assert tokenizer.pair is not None
    end, encoded = tokenizer.pair.end[0], tokenizer.encode_prompt(prompt).astype("int64")
    idx = torch.tensor(encoded[None], device=model.lm_head.weight.device)
    ids = (int(token[0]) for token in generate(model, idx, longest, Choice(temperature=0), tokenizer.vocab_size))
    return tokenizer.decode(list(itertools.takewhile(lambda token: token != end, ids)))


# ---- from tokens to text ----------------------------------------------------------------------------------------


def sample(config: SampleConfig) -> None:
    """Print `num_samples` continuations of `start`: a single one is streamed, several are generated as one batch."""
    checkpoint = load_model(config.ckpt, config.adapter)
    tokenizer = tokenizer_of(checkpoint, config.ckpt, config.data_dir)
    prompt = encode_prompt(prompt_text(config.start), tokenizer, config.skip_unknown, config.plain)
    compute = device.choose_for_inference(config.device, config.dtype, checkpoint.num_params)
    model = checkpoint.for_inference(compute, config.fast)
    if answers(tokenizer) and not config.plain:
        require_room(prompt, model.config.block_size)
    stops = [config.stop] if config.plain else [tokenizer.stop, config.stop]
    try:
        show = stream if config.num_samples == 1 and not config.json else batch
        show(model, prompt, config, tokenizer, stops)
    except (MemoryError, RuntimeError) as error:
        if not device.is_out_of_memory(error):
            raise
        what = f"--num_samples={config.num_samples} and --max_new_tokens={config.max_new_tokens}"
        raise TinyGPTError(
            f"out of memory on {compute.device} with {what}", "lower --num_samples or --max_new_tokens", status=1
        ) from None


def stream(model: GPT, prompt: list[int], config: SampleConfig, tokenizer: Tokenizer, stops: list[str]) -> None:
    """Write one sample, each token as soon as it is generated."""
    rows = new_tokens(model, prompt, config, tokenizer.vocab_size)
    text = TextStream(tokenizer, stops)
    write(tokenizer.decode(prompt))
    try:
        for row in rows:
            write(text.feed(int(row[0])))
            if text.stopped:
                break
    finally:
        write(text.end() + "\n")


def batch(model: GPT, prompt: list[int], config: SampleConfig, tokenizer: Tokenizer, stops: list[str]) -> None:
    """Generate all samples as one batch, until every one has ended, and print them."""
    values = config.num_samples * max(config.max_new_tokens, model.config.block_size * model.config.n_embd)
    if values > 1 << 46:  # more than any machine has; from 2^63 on, torch overflows
        raise MemoryError
    rows = new_tokens(model, prompt, config, tokenizer.vocab_size)
    streams = [TextStream(tokenizer, stops) for _ in range(config.num_samples)]
    pieces: list[list[str]] = [[] for _ in streams]
    for row in rows:
        for index, token in enumerate(row.tolist()):
            if not streams[index].stopped:
                pieces[index].append(streams[index].feed(token))
        if all(stream.stopped for stream in streams):
            break
    for index, stream in enumerate(streams):
        text = "".join(pieces[index]) + stream.end()
        if config.json:
            print(strict_json({"sample": index, "prompt": tokenizer.decode(prompt), "text": text}))
        else:
            print(f"{tokenizer.decode(prompt)}{text}\n{'-' * 15}")


def new_tokens(model: GPT, prompt: list[int], config: SampleConfig, vocab_size: int) -> Iterator[Tensor]:
    """Iterate over the generated ids of all samples, one step at a time: int64 (num_samples,).

    The first step is computed here, so that its errors are raised before anything is written.
    """
    idx = torch.tensor([prompt], dtype=torch.long, device=model.lm_head.weight.device).expand(config.num_samples, -1)
    choice = Choice(config.temperature, config.top_k, config.top_p, config.seed)
    rows = generate(model, idx, config.max_new_tokens, choice, vocab_size, config.exact_window)
    return itertools.chain(list(itertools.islice(rows, 1)), rows)


class TextStream:
    """The text of tokens as they are generated: complete characters only, up to the first of some stop texts."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops, self.held, self.stopped = tokenizer, [stop for stop in stops if stop], "", False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the text that is certain after one more token. `stopped` says that a stop text is complete."""
        text = self.held + self.decoder.decode(self.tokenizer.token_bytes(token))
        if found := [text.index(stop) for stop in self.stops if stop in text]:
            self.held, self.stopped = "", True
            return text[: min(found)]
        keep = max(
            (n for stop in self.stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])),
            default=0,
        )
        self.held = text[len(text) - keep :]  # the beginning of a stop text, perhaps
        return text[: len(text) - keep]

    def end(self) -> str:
        """Return the rest of the text: what may have been the beginning of a stop text, or an incomplete character."""
        return "" if self.stopped else self.held + self.decoder.decode(b"", final=True)


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
