"""The inference thread: it decodes the sequences of all requests together, token by token.

A new task joins between two steps (continuous batching, Yu et al. 2022): the model reads its prompt, at most
PREFILL_TOKENS tokens between two steps, and its sequences become rows of the model's batch. Each sequence has a random
generator of its own, so what else is served changes nothing but the rounding of the logits.

    engine = Engine([Served("out", tokenizer, model)], max_batch=16, max_queue=64)
    engine.submit(Task(served, prompt, Settings(max_tokens=100), deliver))      # deliver(event), in the engine's thread
"""

import collections
import dataclasses
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tinygpt.base.device import is_out_of_memory
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.generate import Sampling, TextStream, draw, tokens_to_reread
from tinygpt.model import GPT, KVCache
from tinygpt.use.serve.batch import BatchCache

PREFILL_TOKENS = 256  # tokens of prompts between two steps


class Settings(NamedTuple):
    """How the sequences of a task are generated."""

    max_tokens: int
    sampling: Sampling = Sampling()  # its seed is that of the first sequence; the next ones add 1, 2, ...
    seeded: bool = True  # False: each sequence draws a seed of its own instead
    n: int = 1
    stops: tuple[str, ...] = ()  # texts that end a sequence, and are left out of it
    logprobs: int = -1  # alternatives per token in the log probabilities; -1: no log probabilities
    echo: bool = False  # return the log probabilities of the prompt's tokens, too


class Token(NamedTuple):
    """A token and its log probability at temperature 1, in nats; None for the first token of a text."""

    id: int
    logprob: float | None
    top: list[tuple[int, float]]  # the most probable tokens, with their log probabilities


class Prompt(NamedTuple):
    """The first event of a task: the model has read the prompt. With `echo`, it has the prompt's tokens."""

    tokens: list[Token]


class Piece(NamedTuple):
    """An event: the next piece of the text of a sequence."""

    sequence: int  # its index within the task
    text: str
    tokens: list[Token]  # with `logprobs`; the last piece has those of the stop text, too
    num_tokens: int  # generated so far, including the tokens of the end
    finish: str = ""  # "stop" or "length" for the last piece


class Failed(NamedTuple):
    """The last event of a task that has failed."""

    message: str
    code: str


Event = Prompt | Piece | Failed
NOT_FINITE = Failed("the model's logits are not finite", "diverged")


@dataclasses.dataclass(eq=False)
class Task:
    """A prompt to continue; a request has a task for each of its prompts."""

    served: "Served"
    prompt: list[int]  # at least one token, at most the model's context
    settings: Settings
    deliver: Callable[[Event], None]
    cancelled: bool = False  # the client has left, its time is up, or the task has failed


class QueueFull(Exception):
    """Too many tasks are waiting."""


class Row:
    """A sequence while it is generated."""

    def __init__(self, task: Task, index: int) -> None:
        settings = task.settings
        served = task.served
        self.task = task
        self.index = index
        self.num_tokens = 0
        self.finish = ""
        self.text = TextStream(served.tokenizer, (served.tokenizer.stop, *settings.stops))
        device = served.model.lm_head.weight.device
        seed = settings.sampling.seed + index if settings.seeded else secrets.randbits(63)
        self.generator = torch.Generator(device).manual_seed(seed % (1 << 63))
        self.recent = collections.deque(task.prompt, maxlen=served.model.config.block_size)
        self.pending: list[Token] = []  # not sent yet

    def add(self, token: int, detail: Token | None) -> None:
        """Add a generated token, and send the text that no later token can change."""
        self.num_tokens += 1
        self.recent.append(token)
        text = self.text.feed(token)
        if detail is not None:
            self.pending.append(detail)
        if self.text.stopped:
            self.finish = "stop"
        elif self.num_tokens == self.task.settings.max_tokens:
            self.finish = "length"
            text = text + self.text.end()
        if text or self.finish:
            self.task.deliver(Piece(self.index, text, self.pending, self.num_tokens, self.finish))
            self.pending = []


class Prefill:
    """A prompt that is being read (prefill): that of a new task, or the last half of a context that has become full."""

    def __init__(self, rows: list[Row], tokens: Sequence[int], echo: bool) -> None:
        self.rows = rows
        self.remaining = list(tokens)
        self.echo = echo
        self.task = rows[0].task
        self.cache: KVCache | None = None  # allocated by the first `read`, in Served.step: it may run out of memory
        self.tokens: list[Token] = []  # with `echo`
        self.logits: Tensor | None = None  # of the next token, (1, V)

    def read(self, count: int) -> int:
        """Read at most `count` tokens of the prompt; return how many."""
        served = self.task.served
        if self.cache is None:
            self.cache = served.model.new_cache(1, len(self.remaining))
        chunk = self.remaining[:count]
        self.remaining = self.remaining[count:]
        idx = torch.tensor([chunk], device=served.model.lm_head.weight.device)
        if not self.echo:
            self.logits = served.model.next_logits(idx, self.cache)[:, : served.tokenizer.vocab_size]
            return len(chunk)
        logits = served.model(idx, cache=self.cache)[0][0, :, : served.tokenizer.vocab_size]  # (T, V)
        if not logits.isfinite().all():
            fail(self.task, NOT_FINITE)
            self.remaining = []
        elif self.logits is None:
            self.tokens = [Token(chunk[0], None, [])]
            self.tokens += with_logprobs(logits[:-1], chunk[1:], self.task.settings.logprobs)
        else:
            self.tokens += with_logprobs(torch.cat((self.logits, logits[:-1])), chunk, self.task.settings.logprobs)
        self.logits = logits[-1:]
        return len(chunk)


class Served:
    """A model that is served under a name."""

    def __init__(self, name: str, tokenizer: Tokenizer, model: GPT, parameters: int = 0) -> None:
        """parameters: the number of parameters, which clients are told."""
        self.name = name
        self.tokenizer = tokenizer
        self.model = model
        self.parameters = parameters
        self.starts: list[str] = []  # prompts that the page offers
        self.longest_token = max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
        self.batch = BatchCache(model)
        self.rows = list[Row]()
        self.prefills: collections.deque[Prefill] = collections.deque()

    def text(self, ids: Sequence[int]) -> str:
        """Decode a prompt, without the tokens that start every text."""
        start = self.tokenizer.start.tolist()
        return self.tokenizer.decode(ids[len(start) :] if list(ids[: len(start)]) == start else ids)

    def busy(self) -> int:
        """Return the number of sequences that are being generated."""
        return len(self.rows) + sum(len(prefill.rows) for prefill in self.prefills)

    @torch.inference_mode()
    def step(self) -> None:
        """Read at most PREFILL_TOKENS tokens of prompts, and generate one token for each row."""
        self._remove_rows()
        budget = PREFILL_TOKENS
        while self.prefills and budget > 0:
            prefill = self.prefills[0]
            budget -= prefill.read(budget)
            if not prefill.remaining:
                self._start_rows(prefill)
                self.prefills.popleft()  # now, so that `fail` finds its task if `_start_rows` raises
        if self.rows:
            idx = torch.tensor([[row.recent[-1]] for row in self.rows], device=self.model.lm_head.weight.device)
            draw_tokens(self.rows, self.model.next_logits(idx, self.batch)[:, : self.tokenizer.vocab_size])
            self._remove_rows()

    def _start_rows(self, prefill: Prefill) -> None:
        """Draw the first token of each sequence of a prompt that was read, and add the sequences to the batch."""
        task = prefill.task
        rows = prefill.rows
        logits = prefill.logits
        cache = prefill.cache
        if task.cancelled:
            return
        assert logits is not None and cache is not None
        if not rows[0].num_tokens:
            task.deliver(Prompt(prefill.tokens))
        if task.settings.max_tokens == 0:
            for row in rows:
                task.deliver(Piece(row.index, "", [], 0, "length"))
            return
        draw_tokens(rows, logits.expand(len(rows), -1))
        num_reread = tokens_to_reread(self.model, cache.length)
        for row in rows:
            if num_reread and not row.finish:
                self._restart_context(row, num_reread)
            elif not row.finish:
                self.batch.join(cache)
                self.rows.append(row)

    def _remove_rows(self) -> None:
        """Remove the rows that are complete or cancelled, and restart those whose context is full."""
        self.prefills = collections.deque(prefill for prefill in self.prefills if not prefill.task.cancelled)
        for index in reversed(range(len(self.rows))):
            row = self.rows[index]
            num_reread = tokens_to_reread(self.model, self.batch.lengths[index])
            is_over = bool(row.finish) or row.task.cancelled
            if is_over or num_reread:
                if not is_over:
                    self._restart_context(row, num_reread)
                self.batch.leave(index)
                self.rows[index] = self.rows[-1]
                self.rows.pop()
        if not self.rows and self.batch.slots > 1:
            self.batch = BatchCache(self.model)  # frees memory

    def _restart_context(self, row: Row, num_reread: int) -> None:
        """Read the newest `num_reread` tokens of a row again, into an empty context."""
        self.prefills.append(Prefill([row], list(row.recent)[-num_reread:], echo=False))

    def fail(self, message: str) -> None:
        """End the tasks of all sequences with an error, and remove the sequences."""
        for row in [*self.rows, *(row for prefill in self.prefills for row in prefill.rows)]:
            fail(row.task, Failed(message, "server_error"))
        self.rows.clear()
        self.prefills.clear()
        self.batch = BatchCache(self.model)


def draw_tokens(rows: Sequence[Row], logits: Tensor) -> None:
    """Draw the next token of each row from its logits (B, V), with the row's own settings and generator."""
    finite = logits.isfinite().all(dim=-1).tolist()
    groups = collections.defaultdict(list)
    for index, row in enumerate(rows):
        sampling = row.task.settings.sampling
        if row.task.cancelled or not finite[index]:
            fail(row.task, NOT_FINITE)
        else:
            groups[sampling.temperature, sampling.top_k, sampling.top_p].append(index)
    for row_indices in groups.values():
        group_logits = logits[row_indices]
        sampling = rows[row_indices[0]].task.settings.sampling
        tokens = draw(group_logits, sampling, *(rows[index].generator for index in row_indices))[:, 0].tolist()
        for index, token in zip(row_indices, tokens, strict=True):
            top = rows[index].task.settings.logprobs
            rows[index].add(token, with_logprobs(logits[index : index + 1], [token], top)[0] if top >= 0 else None)


def fail(task: Task, error: Failed) -> None:
    """End a task with an error, unless it has ended."""
    if not task.cancelled:
        task.cancelled = True
        task.deliver(error)


def with_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[Token]:
    """Return tokens with their log probabilities and `top` alternatives, from logits (n, V)."""
    logprobs = logits.float().log_softmax(-1)
    ids = torch.tensor(tokens, dtype=torch.long, device=logits.device)
    chosen = logprobs.gather(1, ids[:, None])[:, 0].tolist()
    best, ids = logprobs.topk(min(top, logprobs.size(-1)))
    pairs = [list(zip(*row, strict=True)) for row in zip(ids.tolist(), best.tolist(), strict=True)]
    return [Token(*fields) for fields in zip(tokens, chosen, pairs, strict=True)]


class Engine:
    """The inference thread and its queue."""

    def __init__(self, models: Sequence[Served], max_batch: int, max_queue: int) -> None:
        self.models = list(models)
        self.max_batch = max_batch
        self.max_queue = max_queue
        self._waiting: collections.deque[Task] = collections.deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, *tasks: Task) -> None:
        """Queue the tasks of a request, all or none. Errors: QueueFull."""
        with self._changed:
            self._waiting = collections.deque(task for task in self._waiting if not task.cancelled)  # clients that left
            if self._waiting and len(self._waiting) + len(tasks) > self.max_queue:
                raise QueueFull
            self._waiting.extend(tasks)
            self._changed.notify()

    @property
    def alive(self) -> bool:
        """Return whether the thread runs. An error that `_step` cannot handle, such as a broken GPU, ends it."""
        return self._thread.is_alive()

    def _run(self) -> None:
        """Run one step of each model, again and again."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or any(model.busy() for model in self.models))
                self._admit()
            for model in self.models:
                if model.busy():
                    self._step(model)

    def _admit(self) -> None:
        """Move waiting tasks to their models, while the batch has room for their sequences."""
        busy = sum(model.busy() for model in self.models)
        while self._waiting and (not busy or busy + self._waiting[0].settings.n <= self.max_batch):
            task = self._waiting.popleft()
            if not task.cancelled:
                rows = [Row(task, index) for index in range(task.settings.n)]
                task.served.prefills.append(Prefill(rows, task.prompt, task.settings.echo))
                busy += task.settings.n

    def _step(self, model: Served) -> None:
        try:
            model.step()
        except Exception as error:  # of any type: the thread goes on, and only the requests of this model fail
            out_of_memory = is_out_of_memory(error)
            if not out_of_memory:
                threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, self._thread)))
            model.fail("the model failed: " + ("out of memory" if out_of_memory else type(error).__name__))
