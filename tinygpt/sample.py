"""`tinygpt sample`: generate text with a checkpoint (generate.py makes the tokens)."""

import codecs
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tinygpt import device
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import tokenizer_of
from tinygpt.config.schema import SampleConfig
from tinygpt.data.prompts import encode_prompt, prompt_text, require_room
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import TinyGPTError
from tinygpt.files import strict_json
from tinygpt.generate import Sampling, generate

MOST_VALUES = 1 << 46  # of a batch: more than any machine has; from 2^63 on, torch overflows


def sample(config: SampleConfig) -> None:
    """Print `num_samples` continuations of `start`: a single one is streamed, several are generated as one batch."""
    checkpoint = load_model(config.ckpt, config.adapter)
    tokenizer = tokenizer_of(checkpoint, config.ckpt, config.data_dir)
    text = prompt_text(config.start)
    prompt = encode_prompt(text, tokenizer, config.skip_unknown, config.plain)
    compute = device.choose_for_inference(config.device, config.dtype, checkpoint.num_params, config.threads)
    model = checkpoint.for_inference(compute, config.fast)
    start = tokenizer.decode(prompt[len(tokenizer.start) :])
    if tokenizer.pair is not None and not config.plain:
        require_room(prompt, model.config.block_size)
        start = tokenizer.decode(tokenizer.encode(text.strip("\n"), config.skip_unknown))  # without special tokens
        start += "" if config.json else "\n"
    stops = [config.stop] if config.plain else [tokenizer.stop, config.stop]
    single = config.num_samples == 1 and not config.json
    idx = torch.tensor([prompt], dtype=torch.long, device=compute.device).expand(config.num_samples, -1)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.seed)
    try:
        values = config.num_samples * max(config.max_new_tokens, model.config.block_size * model.config.n_embd)
        if not single and values > MOST_VALUES:
            raise MemoryError  # reported below
        rows = generate(model, idx, config.max_new_tokens, sampling, tokenizer.vocab_size, config.exact_window)
        # errors of the first step are raised before any output
        rows = itertools.chain(list(itertools.islice(rows, 1)), rows)
        streams = [TextStream(tokenizer, stops) for _ in range(config.num_samples)]
        if single:
            print_stream(rows, start, streams[0])
        else:
            print_batch(rows, start, streams, config.json)
    except (MemoryError, RuntimeError) as error:
        if not device.is_out_of_memory(error):
            raise
        settings = f"--num_samples={config.num_samples} and --max_new_tokens={config.max_new_tokens}"
        problem = f"out of memory on {compute.device} with {settings}"
        raise TinyGPTError(problem, "lower --num_samples or --max_new_tokens", status=1) from None


def print_stream(rows: Iterator[Tensor], start: str, text: "TextStream") -> None:
    """Print one sample, each token as soon as it is generated."""
    print(start, end="", flush=True)
    try:
        for piece in pieces(rows, text):
            print(piece, end="", flush=True)
    finally:
        print(flush=True)


def pieces(rows: Iterator[Tensor], text: "TextStream") -> Iterator[str]:
    """Yield the text of one sample, each token as soon as it is generated."""
    for row in rows:
        yield text.feed(int(row[0]))
        if text.stopped:
            return
    yield text.end()


def print_batch(rows: Iterator[Tensor], start: str, streams: "list[TextStream]", json: bool) -> None:
    """Generate all samples as one batch, until each has ended, and print them."""
    pieces: list[list[str]] = [[] for _ in streams]
    for row in rows:
        for index, token in enumerate(row.tolist()):
            if not streams[index].stopped:
                pieces[index].append(streams[index].feed(token))
        if all(stream.stopped for stream in streams):
            break
    for index, stream in enumerate(streams):
        text = "".join(pieces[index]) + stream.end()
        if json:
            print(strict_json({"sample": index, "prompt": start, "text": text}))
        else:
            print(f"{start}{text}\n{'-' * 15}")


class TextStream:
    """Decode tokens to text one at a time: complete characters only, and nothing from the first stop text on."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops, self.pending, self.stopped = tokenizer, [stop for stop in stops if stop], "", False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Decode one more token, and return the text that can be printed now. `stopped` is set after a stop text."""
        text = self.pending + self.decoder.decode(self.tokenizer.token_bytes(token))
        if stop_indices := [text.index(stop) for stop in self.stops if stop in text]:
            self.pending, self.stopped = "", True
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
