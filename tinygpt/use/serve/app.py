"""The paths of the API: each request becomes tasks for the engine, and their events become its response.

The events arrive in an asyncio queue, from the engine's thread (engine.py). What all paths share, such as streams and
protection, is in http.py.
"""

import asyncio
import contextlib
import functools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tinygpt.base.configs.use import ServeConfig
from tinygpt.data.prompts import encode_prompt
from tinygpt.use.serve import protocol
from tinygpt.use.serve.chat import ChatFormat
from tinygpt.use.serve.engine import Engine, Failed, Piece, Prompt, QueueFull, Served, Settings, Task, Token
from tinygpt.use.serve.http import PAGE, Guard, Stream, no_such_path, page, read_json, refused
from tinygpt.use.serve.protocol import ApiError, invalid_field, refusing

MAX_PROMPTS = 128  # of a request
MAX_TOKENIZE = 400_000  # characters of a text to tokenize; GPT-2's tokenizer overflows its stack at a million spaces
POLL = 0.5  # seconds between checks that the client of a request without a stream is still connected
CLIENT_LEFT = Failed("the client has left", "client_left")
TIMED_OUT = Failed("the request took longer than the server allows (--timeout)", "timeout")

Body = dict[str, Any]  # of a request or a response, or a part of one
Events = AsyncIterator[tuple[int, Prompt | Piece]]  # each with the index of its choice


class Responder:
    """A model that is not a GPT, such as an index of documents: a thread that answers messages, one at a time."""

    def __init__(self, name: str, respond: Callable[[str], tuple[str, Body]], max_queue: int) -> None:
        """respond: from a message to the content of the answer, and the response's field `name`, not one of OpenAI's.
        It raises TinyGPTError for a message that it refuses."""
        self.name = name
        self._pool, self._respond, self._free = ThreadPoolExecutor(1, name), respond, max_queue

    async def __call__(self, message: str, timeout: float) -> tuple[str, Body]:
        """Answer a message within `timeout` seconds. Errors: ApiError; TinyGPTError as in `respond`."""
        if self._free == 0:
            raise queue_full()
        self._free -= 1
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._respond, message)
        except TimeoutError:
            raise failure(TIMED_OUT) from None
        finally:
            self._free += 1


class State:
    """The models, the responders and the settings that all paths use. Until `open` is called, the server is loading."""

    def __init__(self, config: ServeConfig) -> None:
        self.config, self.created = config, int(time.time())
        self.engine: Engine | None = None
        self.models: dict[str, Served] = {}
        self.chats: dict[str, ChatFormat] = {}
        self.responders: dict[str, Responder] = {}

    def open(self, engine: Engine, responders: Sequence[Responder]) -> None:
        self.models = {model.name: model for model in engine.models}
        skip = self.config.skip_unknown
        self.chats = {name: ChatFormat(model.tokenizer, skip) for name, model in self.models.items()}
        self.responders = {responder.name: responder for responder in responders}
        self.engine = engine

    def require_ready(self) -> None:
        """Check that the models are loaded. Errors: ApiError while the server loads, or if it has failed."""
        if self.engine is None:
            raise ApiError(503, "the model is loading; try again in a moment", code="loading")
        if not self.engine.alive:
            raise ApiError(503, "the server has failed, and must be started again", code="server_error")

    def served(self, name: str) -> Served:
        """Return the model that a request names; the first one without a name. Errors: ApiError."""
        self.require_ready()
        name = name or self.names()[0]
        if name in self.responders:
            raise ApiError(404, f"{name!r} answers messages: use /v1/chat/completions", "model", "model_not_found")
        if name not in self.models:
            message = f"the model {name!r} is not served here; the models are {', '.join(self.names())}"
            raise ApiError(404, message, "model", "model_not_found")
        return self.models[name]

    def names(self) -> list[str]:
        return [*self.models, *self.responders]


def failure(event: Failed) -> ApiError:
    return ApiError(503 if event == TIMED_OUT else 500, event.message, code=event.code)


def queue_full() -> ApiError:
    return ApiError(429, "too many requests are waiting; try again later", code="queue_full")


class RequestTasks:
    """The tasks of one HTTP request, whose events are merged into one stream."""

    def __init__(self, state: State, served: Served, prompts: list[list[int]], settings: Settings) -> None:
        """Queue the prompts. Errors: ApiError if one is too long or the queue is full."""
        assert state.engine is not None
        longest, context = max(map(len, prompts)), served.model.config.block_size
        if longest > context:
            message = f"the prompt has {longest:,} tokens, and the context of {served.name} has {context:,}"
            raise ApiError(400, message, "prompt", "context_length_exceeded")
        self._queue: asyncio.Queue[tuple[int, Prompt | Piece | Failed]] = asyncio.Queue()
        self._loop, self.n = asyncio.get_running_loop(), settings.n
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
        self.index, self.logprobs, self.text = index, logprobs, text
        self.tokens: list[Token] = []
        self.num_tokens = 0  # generated so far
        self.finish: str | None = None

    def add(self, event: Prompt | Piece) -> None:
        self.tokens += event.tokens
        if isinstance(event, Piece):
            self.text += event.text
            self.num_tokens, self.finish = event.num_tokens, event.finish or None

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
    name, object_type = "cmpl", "text_completion"
    if "messages" in body:
        name, object_type = "chatcmpl", "chat.completion" + ".chunk" * body["stream"]
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
                choices[index].text, choices[index].tokens = "", []
        if body["stream_options"]["include_usage"]:
            yield head | {"choices": [], "usage": usage()}

    if body["stream"]:
        return Stream(chunks(), close)
    async for index, event in events:
        choices[index].add(event)
    complete = [choice.complete() for choice in choices]
    return JSONResponse(head | {"choices": complete, "usage": usage()} | (last or {}))


async def completions(state: State, request: Request, body: Body) -> Response:
    """POST /v1/completions"""
    served = state.served(body["model"])
    settings = protocol.settings(body, state.config.max_tokens, state.config.max_batch, 0)
    if len(body["prompt"]) > MAX_PROMPTS:
        raise invalid_field("prompt", f"at most {MAX_PROMPTS} prompts in one request")
    prompts = [as_ids(prompt, served, state.config.skip_unknown) for prompt in body["prompt"]]
    tasks = RequestTasks(state, served, prompts, settings)
    logprobs = functools.partial(protocol.completion_logprobs, served.tokenizer) if settings.logprobs >= 0 else None
    echoes = [served.text(prompt) if body["echo"] else "" for prompt in prompts for _ in range(settings.n)]
    choices = [Choice(index, logprobs, echo) for index, echo in enumerate(echoes)]
    events = tasks.events(None if body["stream"] else request)
    return await respond(body, served.name, choices, events, sum(map(len, prompts)), tasks.cancel)


def require_length(text: str, max_length: int, param: str) -> None:
    """Check the length of a text before it is encoded. Errors: ApiError above `max_length` characters."""
    if len(text) > max_length:
        message = f"the text has {len(text):,} characters, too many for this model"
        raise invalid_field(param, message, "context_length_exceeded")


def as_ids(prompt: str | list[int], served: Served, skip_unknown: bool) -> list[int]:
    """Encode a prompt, or check it if it is token ids already. Errors: ApiError."""
    if isinstance(prompt, list):
        return checked_ids(prompt, served, "prompt")
    require_length(prompt, served.model.config.block_size * served.longest_token, "prompt")
    with refusing("prompt"):
        return encode_prompt(prompt, served.tokenizer, skip_unknown, plain=True)


def checked_ids(ids: list[int], served: Served, field: str) -> list[int]:
    """Return token ids. Errors: ApiError, with the name of the field, if one is not in the vocabulary."""
    size = served.tokenizer.vocab_size
    if not all(0 <= token < size for token in ids):
        raise invalid_field(field, f"token ids are 0 to {size - 1:,}")
    return ids


async def chat(state: State, request: Request, body: Body) -> Response:
    """POST /v1/chat/completions"""
    state.require_ready()
    if responder := state.responders.get(body["model"] or state.names()[0]):
        return await answer_last(responder, body, state.config.timeout)
    served = state.served(body["model"])
    text = "".join(message["content"] for message in body["messages"])
    require_length(text, served.model.config.block_size * served.longest_token, "messages")
    prompt = state.chats[served.name].encode(body["messages"])
    room = max(1, served.model.config.block_size - len(prompt))
    settings = protocol.settings(body, state.config.max_tokens, state.config.max_batch, room)
    tasks = RequestTasks(state, served, [prompt], settings)
    logprobs = functools.partial(protocol.chat_logprobs, served.tokenizer) if body["logprobs"] else None
    choices = [ChatChoice(index, logprobs) for index in range(settings.n)]
    events = tasks.events(None if body["stream"] else request)
    return await respond(body, served.name, choices, events, len(prompt), tasks.cancel)


async def answer_last(responder: Responder, body: Body, timeout: float) -> Response:
    """Answer the last message with a model that is not a GPT."""
    message = body["messages"][-1]
    if message["role"] != "user" or not message["content"].strip():
        raise invalid_field("messages", "the last message must be the question, with the role user")
    for name, neutral in (("n", 1), ("logprobs", False)):
        if body[name] != neutral:
            raise invalid_field(name, f"not supported by the model {responder.name}")
    with refusing("messages"):
        content, outcome = await responder(message["content"], timeout)

    async def events() -> Events:
        yield 0, Prompt([])
        yield 0, Piece(0, content, [], 0, "stop")

    return await respond(body, responder.name, [ChatChoice(0)], events(), last={responder.name: outcome})


async def models(state: State, request: Request, body: Body) -> Body:
    """GET /v1/models"""
    state.require_ready()
    return {"object": "list", "data": [described(state, name) for name in state.names()]}


def described(state: State, name: str) -> Body:
    """Describe a model: the fields of OpenAI's list of models, and more for the chat page."""
    entry: Body = {"id": name, "object": "model", "created": state.created, "owned_by": "tinygpt"}
    if name in state.responders:
        return entry | {"task": name}
    served, chats = state.models[name], state.chats[name]
    return entry | {
        "task": "text" if served.tokenizer.pair is None else "chat",
        "turns": chats.between is not None,
        "system": chats.before_system is not None,
        "context": served.model.config.block_size,
        "parameters": served.parameters,
        "vocabulary": served.tokenizer.vocab_size,
    }


async def tokenize(state: State, request: Request, body: Body) -> Body:
    """POST /tokenize: the ids of a text. A text that is the name of a special token is that token."""
    served = state.served(body["model"])
    tokenizer, text = served.tokenizer, body["prompt"]
    require_length(text, MAX_TOKENIZE, "prompt")
    with refusing("prompt"):
        if tokenizer.pair is not None and text == tokenizer.stop:
            ids = tokenizer.pair.end.tolist()
        else:
            ids = tokenizer.encode(text, state.config.skip_unknown).tolist()
    return {"count": len(ids), "max_model_len": served.model.config.block_size, "tokens": ids}


async def detokenize(state: State, request: Request, body: Body) -> Body:
    """POST /detokenize: the text of token ids."""
    served = state.served(body["model"])
    return {"prompt": served.tokenizer.decode(checked_ids(body["tokens"], served, "tokens"))}


async def tokenizer_info(state: State, request: Request, body: Body) -> Body:
    """GET /tokenizer_info: the special tokens, as lm-eval's remote tokenizer expects them."""
    served = state.served(request.query_params.get("model", ""))
    tokenizer = served.tokenizer
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": served.model.config.block_size,
        "bos_token": tokenizer.decode(tokenizer.start[:1].tolist()) or None,
        "eos_token": tokenizer.stop or None,
        "pad_token": None,
        "chat_template": getattr(tokenizer, "chat_template", "") or None,
    }


async def health(state: State, request: Request, body: Body) -> Response:
    """GET /health"""
    status = "loading" if not state.engine else "ready" if state.engine.alive else "failed"
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)


Handler = Callable[[State, Request, Body], Awaitable[Response | Body]]
PATHS: list[tuple[str, Handler, dict[str, protocol.Field]]] = [  # with the fields of a POST request; no fields: GET
    ("/v1/models", models, {}),
    ("/v1/completions", completions, protocol.COMPLETION),
    ("/v1/chat/completions", chat, protocol.CHAT),
    ("/tokenize", tokenize, protocol.TOKENIZE),
    ("/detokenize", detokenize, protocol.DETOKENIZE),
    ("/tokenizer_info", tokenizer_info, {}),
    ("/health", health, {}),
]


def route(state: State, path: str, handle: Handler, fields: dict[str, protocol.Field]) -> Route:
    """Make a route that reads and checks the fields of a request for `handle`, and sends its result as JSON."""

    async def endpoint(request: Request) -> Response:
        body = protocol.read(fields, await read_json(request)) if fields else {}
        result = await handle(state, request, body)
        return result if isinstance(result, Response) else JSONResponse(result)

    return Route(path, endpoint, methods=["POST" if fields else "GET"])


def make_app(state: State, key: str = "", hosts: frozenset[str] = frozenset()) -> Starlette:
    """Make the ASGI application: paths, middleware, and errors as responses. key, hosts: see Guard."""
    app = Starlette(
        routes=[*(route(state, *entry) for entry in PATHS), *(Route(path, page, methods=["GET"]) for path in PAGE)],
        middleware=[Middleware(Guard, key=key, hosts=hosts)],
        exception_handlers={ApiError: refused, 404: no_such_path, 405: no_such_path},
    )
    app.state.tinygpt = state
    return app
