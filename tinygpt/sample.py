"""`tinygpt sample`: generate text with a checkpoint (generate.py makes the tokens and the text)."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from tinygpt.base import device
from tinygpt.base.configs.core import SampleConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import strict_json
from tinygpt.checkpoint.loaded import Loaded
from tinygpt.data.prompts import encode_prompt, prompt_text, require_room
from tinygpt.generate import Sampling, TextStream, generate, pieces

MOST_VALUES = 1 << 46  # of a batch: more than any machine has; from 2^63 on, torch overflows


def sample(config: SampleConfig) -> None:
    """Print `num_samples` continuations of `start`: a single one is streamed, several are generated as one batch."""
    loaded = Loaded.load(config.ckpt, config.adapter, config, config.data_dir)
    tokenizer, model, compute = loaded.tokenizer, loaded.model, loaded.compute
    text = prompt_text(config.start)
    prompt = encode_prompt(text, tokenizer, config.skip_unknown, config.plain)
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


def print_stream(rows: Iterator[Tensor], start: str, text: TextStream) -> None:
    """Print one sample, each token as soon as it is generated."""
    print(start, end="", flush=True)
    try:
        for piece in pieces(rows, text):
            print(piece, end="", flush=True)
    finally:
        print(flush=True)


def print_batch(rows: Iterator[Tensor], start: str, streams: list[TextStream], json: bool) -> None:
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
