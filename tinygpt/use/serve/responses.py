"""From a request's tasks to its response: the engine's events, merged into one JSON body or a stream of chunks.

The events arrive in an asyncio queue, from the engine's thread (engine.py).
"""

import asyncio
import contextlib
import functools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinygpt.use.serve.engine import Failed, Piece, Prompt, QueueFull, Served, Settings, Task, Token
from tinygpt.use.serve.http import Stream
from tinygpt.use.serve.protocol import ApiError
from tinygpt.use.serve.state import TIMED_OUT, Body, State, failure, queue_full

POLL = 0.5  # seconds between checks that the client of a request without a stream is still connected
CLIENT_LEFT = Failed("the client has left", "client_left")
Events = AsyncIterator[tuple[int, Prompt | Piece]]  # each with the index of its choice


class RequestTasks:
    """The tasks of one HTTP request, whose events are merged into one stream."""

    def __init__(self, state: State, served: Served, prompts: list[list[int]], settings: Settings) -> None:
        """Queue the prompts. Errors: ApiError if one is too long or the queue is full."""
        assert state.engine is not None
        longest = max(map(len, prompts))
        context = served.model.config.block_size
        if longest > context:
            message = f"the prompt has {longest:,} tokens, and the context of {served.name} has {context:,}"
            raise ApiError(400, message, "prompt", "context_length_exceeded")
        self._queue: asyncio.Queue[tuple[int, Prompt | Piece | Failed]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.n = settings.n
        self.tasks = [
            Task(served, prompt, settings, functools.partial(self._deliver, index))
            for index, prompt in enumerate(prompts)
        ]
        try:
            state.engine.submit(*self.tasks)
        except QueueFull:
            raise queue_full() from None
        self._timer = self._loop.call_later(state.config.timeout, self._fail, TIMED_OUT)

    def _deliver(self, task_index: int, event: Prompt | Piece | Failed) -> None:
        """Put an event into the asyncio queue, from the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (task_index, event))

    async def events(self, request: Request | None) -> Events:
        """Yield events with the index of their choice until all choices are complete; choices are ordered by prompt.

        request: stop if its client has left. Errors: ApiError if a task fails, or the client has left.
        """
        pending = len(self.tasks) * self.n
        watcher = asyncio.create_task(self._watch(request)) if request else None
        try:
            while pending:
                task_index, event = await self._queue.get()
                if isinstance(event, Failed):
                    raise failure(event)
                if isinstance(event, Piece):
                    pending -= bool(event.finish)
                for sequence in [event.sequence] if isinstance(event, Piece) else range(self.n):
                    yield task_index * self.n + sequence, event
        finally:
            if watcher:
                watcher.cancel()
            self.cancel()

    async def _watch(self, request: Request) -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(POLL)
        self._fail(CLIENT_LEFT)

    def _fail(self, reason: Failed) -> None:
        self.cancel()
        self._queue.put_nowait((0, reason))

    def cancel(self) -> None:
        """End the tasks that are not complete."""
        self._timer.cancel()
        for task in self.tasks:
            task.cancelled = True


class Choice:
    """A choice of a response: its text and tokens that were not sent yet, and its finish reason."""

    def __init__(self, index: int, logprobs: Callable[[list[Token]], Body] | None = None, text: str = "") -> None:
        """logprobs: formats the log probabilities of tokens; None: without. text: the echo."""
        self.index = index
        self.logprobs = logprobs
        self.text = text
        self.tokens: list[Token] = []
        self.num_tokens = 0  # generated so far
        self.finish: str | None = None

    def add(self, event: Prompt | Piece) -> None:
        self.tokens += event.tokens
        if isinstance(event, Piece):
            self.text += event.text
            self.num_tokens = event.num_tokens
            self.finish = event.finish or None

    def complete(self) -> Body:
        """Return the choice as a part of a response without a stream."""
        logprobs = self.logprobs and self.logprobs(self.tokens)
        return {"text": self.text, "index": self.index, "logprobs": logprobs, "finish_reason": self.finish}

    def chunks(self, event: Prompt | Piece) -> Iterator[Body]:
        """Yield what an event, which was added, contributes to a stream."""
        if isinstance(event, Piece):  # the echo comes with the first piece
            yield self.complete()


class ChatChoice(Choice):
    """A choice of a response to a chat."""

    def complete(self) -> Body:
        choice = super().complete()
        message = {"role": "assistant", "content": choice.pop("text"), "refusal": None}
        return choice | {"message": message}

    def chunks(self, event: Prompt | Piece) -> Iterator[Body]:
        chunk: Body = {"index": self.index, "delta": {}, "logprobs": None, "finish_reason": None}
        if isinstance(event, Prompt):
            yield chunk | {"delta": {"role": "assistant", "content": ""}}
            return
        if event.text or event.tokens:
            yield chunk | {"delta": {"content": event.text}, "logprobs": self.logprobs and self.logprobs(self.tokens)}
        if event.finish:
            yield chunk | {"finish_reason": event.finish}


async def respond(
    body: Body,
    model: str,
    choices: Sequence[Choice],
    events: Events,
    prompt_tokens: int = 0,
    close: Callable[[], None] = lambda: None,
    last: Body | None = None,
) -> Response:
    """Build the response: one JSON body after the last event, or a stream with chunks for each event.

    close: see Stream. last: more fields of the last chunk.
    """
    name = "cmpl"
    object_type = "text_completion"
    if "messages" in body:
        name = "chatcmpl"
        object_type = "chat.completion.chunk" if body["stream"] else "chat.completion"
    head = {"id": f"{name}-{uuid.uuid4().hex}", "object": object_type, "created": int(time.time()), "model": model}

    def usage() -> dict[str, int]:
        generated = sum(choice.num_tokens for choice in choices)
        total = prompt_tokens + generated
        return {"prompt_tokens": prompt_tokens, "completion_tokens": generated, "total_tokens": total}

    async def chunks() -> AsyncIterator[Body]:
        async for index, event in events:
            choices[index].add(event)
            for chunk in choices[index].chunks(event):
                yield head | {"choices": [chunk]} | (last if last and chunk["finish_reason"] else {})
            if isinstance(event, Piece):
                choices[index].text = ""
                choices[index].tokens = []
        if body["stream_options"]["include_usage"]:
            yield head | {"choices": [], "usage": usage()}

    if body["stream"]:
        return Stream(chunks(), close)
    async for index, event in events:
        choices[index].add(event)
    complete = [choice.complete() for choice in choices]
    return JSONResponse(head | {"choices": complete, "usage": usage()} | (last or {}))
