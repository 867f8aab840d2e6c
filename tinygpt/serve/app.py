"""The paths of the API: each request becomes tasks for the engine, and their events become its response.

The events arrive in an asyncio queue, from the engine's thread (engine.py). What all paths share, such as streams and
protection, is in http.py.
"""

import asyncio
import contextlib
import dataclasses
import functools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tinygpt.config.schema import ServeConfig
from tinygpt.data.prompts import encode_prompt
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.serve import protocol
from tinygpt.serve.chat import ChatFormat
from tinygpt.serve.engine import TIMED_OUT, Engine, Failed, Piece, Prompt, QueueFull, Served, Settings, Task, Token
from tinygpt.serve.http import PAGE, Guard, Stream, client_left, no_such_path, page, read_json, refused
from tinygpt.serve.protocol import DOCUMENTS, ApiError, refusing, wrong

MAX_PROMPTS = 128  # of a request
MAX_TOKENIZE = 400_000  # characters of a text to tokenize; GPT-2's tokenizer overflows its stack at a million spaces
POLL = 0.5  # seconds between checks that the client of a request without a stream is still connected
CLIENT_LEFT = Failed("the client has left", "")

Body = dict[str, Any]  # of a request or a response, or a part of one
Events = AsyncIterator[tuple[int, Prompt | Piece]]  # each with the number of its choice


class Documents:
    """Answers from an index, one at a time, in one thread of their own. The index is opened in this thread, because a
    connection to SQLite works only in the thread that opened it."""

    def __init__(self, make: Callable[[], AbstractContextManager[Callable[[str], Body]]], max_queue: int) -> None:
        self._pool, self._opened, self._left = ThreadPoolExecutor(1, "documents"), contextlib.ExitStack(), max_queue
        self._respond = self._pool.submit(lambda: self._opened.enter_context(make())).result()

    async def __call__(self, question: str, timeout: float) -> Body:
        """Answer a question within so many seconds. Errors: ApiError; TinyGPTError for a question that is too long."""
        if self._left == 0:
            raise queue_full()
        self._left -= 1
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._respond, question)
        except TimeoutError:
            raise failure(TIMED_OUT) from None
        finally:
            self._left += 1

    def close(self) -> None:
        """Close the index, after the question that is being answered; those that wait end with their requests."""
        self._pool.submit(self._opened.close).result()
        self._pool.shutdown()


class State:
    """What the paths share. Until `open` is called, the server is loading."""

    def __init__(self, config: ServeConfig) -> None:
        self.config, self.created = config, int(time.time())
        self.engine: Engine | None = None
        self.models: dict[str, Served] = {}
        self.chats: dict[str, ChatFormat] = {}
        self.documents: Documents | None = None

    def open(self, engine: Engine, documents: Documents | None) -> None:
        self.models = {model.name: model for model in engine.models}
        skip = self.config.skip_unknown
        self.chats = {name: ChatFormat.of(model.tokenizer, skip) for name, model in self.models.items()}
        self.documents, self.engine = documents, engine

    def require_ready(self) -> None:
        """Check that the models are loaded. Errors: ApiError while the server loads, or if it has failed."""
        if self.engine is None:
            raise ApiError(503, "the model is loading; try again in a moment", code="loading")
        if not self.engine.alive:
            raise ApiError(503, "the server has failed, and must be started again", code="server_error")

    def served(self, name: str) -> Served:
        """The model that a request names; the first one if it names none. Errors: ApiError."""
        self.require_ready()
        name = name or next(iter(self.models))
        if name not in self.models:
            raise self.no_such_model(name)
        return self.models[name]

    def names(self) -> list[str]:
        return [*self.models, *([DOCUMENTS] if self.documents else [])]

    def no_such_model(self, name: str) -> ApiError:
        message = f"the model {name!r} is not served here; the models are {', '.join(self.names())}"
        if name in self.names():
            message = f"{name!r} answers questions: use /v1/chat/completions"
        return ApiError(404, message, "model", "model_not_found")


def failure(event: Failed) -> ApiError:
    return ApiError(503 if event == TIMED_OUT else 500, event.message, code=event.code)


def queue_full() -> ApiError:
    return ApiError(429, "too many requests are waiting; try again later", code="queue_full")


class Answer:
    """The tasks of one HTTP request, and their events as one stream."""

    def __init__(self, state: State, served: Served, prompts: list[list[int]], settings: Settings) -> None:
        """Queue the prompts. Errors: ApiError if one is too long or the queue is full."""
        assert state.engine is not None
        longest, room = max(map(len, prompts)), served.model.config.block_size
        if longest > room:
            message = f"the prompt has {longest:,} tokens, and the context of {served.name} has {room:,}"
            raise ApiError(400, message, "prompt", "context_length_exceeded")
        self._queue: asyncio.Queue[tuple[int, Prompt | Piece | Failed]] = asyncio.Queue()
        self._loop, self.n = asyncio.get_running_loop(), settings.n
        deadline = time.monotonic() + state.config.timeout
        self.tasks = [
            Task(served, prompt, settings, functools.partial(self._deliver, number), deadline)
            for number, prompt in enumerate(prompts)
        ]
        try:
            state.engine.submit(*self.tasks)
        except QueueFull:
            raise queue_full() from None

    def _deliver(self, task: int, event: Prompt | Piece | Failed) -> None:
        """Called in the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (task, event))

    async def events(self, request: Request | None) -> Events:
        """The events until all choices are complete, those of the first prompt numbered first.

        request: stop if its client has left. Errors: ApiError if a task fails; ClientDisconnect.
        """
        left = len(self.tasks) * self.n
        watcher = asyncio.create_task(self._watch(request)) if request else None
        try:
            while left:
                task, event = await self._queue.get()
                if event is CLIENT_LEFT:
                    raise ClientDisconnect
                if isinstance(event, Failed):
                    raise failure(event)
                if isinstance(event, Piece):
                    left -= bool(event.finish)
                for index in [event.sequence] if isinstance(event, Piece) else range(self.n):
                    yield task * self.n + index, event
        finally:
            if watcher:
                watcher.cancel()
            self.cancel()

    async def _watch(self, request: Request) -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(POLL)
        self._queue.put_nowait((0, CLIENT_LEFT))

    def cancel(self) -> None:
        """End the tasks that are not complete."""
        for task in self.tasks:
            task.cancelled = True


@dataclasses.dataclass
class Choice:
    """A choice of a response: what of it has not been sent yet, and its finish reason."""

    text: str = ""
    tokens: list[Token] = dataclasses.field(default_factory=list)
    made: int = 0
    finish: str | None = None

    def add(self, event: Prompt | Piece) -> None:
        self.tokens += event.tokens
        if isinstance(event, Piece):
            self.text += event.text
            self.made, self.finish = event.made, event.finish or None


async def respond(
    asked: Body,
    head: Body,
    choices: list[Choice],
    events: Events,
    prompt_tokens: int,
    format_choice: Callable[[int], Body],
    format_chunks: Callable[[int, Prompt | Piece], Iterator[Body]],
    close: Callable[[], None] = lambda: None,
    last: Body | None = None,
) -> Response:
    """Build the response: one JSON body when all events have come, or a stream with chunks for each event.

    head: the fields of every chunk; last: more fields of the last one. format_choice: a complete choice, by its number.
    format_chunks: the parts of a choice that an event adds. close: see Stream.
    """
    head = head | {"created": int(time.time())}

    def usage() -> dict[str, int]:
        return protocol.usage(prompt_tokens, sum(choice.made for choice in choices))

    async def chunks() -> AsyncIterator[Body]:
        async for number, event in events:
            choices[number].add(event)
            for part in format_chunks(number, event):
                yield head | {"choices": [part]} | (last if last and part["finish_reason"] else {})
            if isinstance(event, Piece):
                choices[number].text, choices[number].tokens = "", []
        if asked["stream_options"]["include_usage"]:
            yield head | {"choices": [], "usage": usage()}

    if asked["stream"]:
        return Stream(chunks(), close)
    async for number, event in events:
        choices[number].add(event)
    return JSONResponse(head | {"choices": [*map(format_choice, range(len(choices)))], "usage": usage()} | (last or {}))


async def completions(state: State, request: Request, asked: Body) -> Response:
    """POST /v1/completions"""
    served = state.served(asked["model"])
    settings = protocol.settings(asked, state.config.max_tokens, state.config.max_batch, 0)
    if len(asked["prompt"]) > MAX_PROMPTS:
        raise wrong("prompt", f"at most {MAX_PROMPTS} prompts in one request")
    prompts = [as_ids(prompt, served, state.config.skip_unknown) for prompt in asked["prompt"]]
    echoed = [  # as it was read: without the characters that --skip_unknown leaves out
        prompt if isinstance(prompt, str) and prompt and not state.config.skip_unknown else served.text(ids)
        for prompt, ids in zip(asked["prompt"], prompts, strict=True)
    ]
    answer = Answer(state, served, prompts, settings)
    choices = [Choice(text * asked["echo"]) for text in echoed for _ in range(settings.n)]
    offsets = [protocol.TextOffsets() for _ in choices]

    def format_choice(number: int) -> Body:
        choice, logprobs = choices[number], None
        if settings.logprobs >= 0:
            logprobs = protocol.completion_logprobs(served.tokenizer, choice.tokens, offsets[number])
        return {"text": choice.text, "index": number, "logprobs": logprobs, "finish_reason": choice.finish}

    def format_chunks(number: int, event: Prompt | Piece) -> Iterator[Body]:
        if isinstance(event, Piece):  # what is echoed comes with the first one
            yield format_choice(number)

    head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "model": served.name}
    events = answer.events(None if asked["stream"] else request)
    return await respond(
        asked, head, choices, events, sum(map(len, prompts)), format_choice, format_chunks, answer.cancel
    )


def require_length(text: str, most: int, param: str) -> None:
    """Check the length of a text before it is encoded. Errors: ApiError if no tokenization would fit the model."""
    if len(text) > most:
        raise wrong(param, f"the text has {len(text):,} characters, too many for this model", "context_length_exceeded")


def as_ids(prompt: str | list[int], served: Served, skip_unknown: bool) -> list[int]:
    """Ids of a prompt that is a text or ids already. Errors: ApiError."""
    if isinstance(prompt, list):
        return checked_ids(prompt, served, "prompt")
    require_length(prompt, served.model.config.block_size * served.longest_token, "prompt")
    with refusing("prompt"):
        return encode_prompt(prompt, served.tokenizer, skip_unknown, plain=True)


def checked_ids(ids: list[int], served: Served, field: str) -> list[int]:
    """Check that ids are in the vocabulary, and return them. Errors: ApiError that names the field."""
    size = served.tokenizer.vocab_size
    if not all(0 <= token < size for token in ids):
        raise wrong(field, f"token ids are 0 to {size - 1:,}")
    return ids


async def chat(state: State, request: Request, asked: Body) -> Response:
    """POST /v1/chat/completions"""
    if asked["model"] == DOCUMENTS and state.documents:
        return await ask_documents(state.documents, asked, state.config.timeout)
    served = state.served(asked["model"])
    text = "".join(message["content"] for message in asked["messages"])
    require_length(text, served.model.config.block_size * served.longest_token, "messages")
    prompt = state.chats[served.name].encode(asked["messages"])
    room = max(1, served.model.config.block_size - len(prompt))
    settings = protocol.settings(asked, state.config.max_tokens, state.config.max_batch, room)
    answer = Answer(state, served, [prompt], settings)
    events = answer.events(None if asked["stream"] else request)
    return await respond_to_chat(asked, served.name, events, len(prompt), served.tokenizer, answer.cancel)


async def ask_documents(documents: Documents, asked: Body, timeout: float) -> Response:
    """Answer the last message from the index. The field `documents`, which is not OpenAI's, holds the passages."""
    question = asked["messages"][-1]
    if question["role"] != "user" or not question["content"].strip():
        raise wrong("messages", "the last message must be the question, with the role user")
    for name, neutral in (("n", 1), ("logprobs", False)):
        if asked[name] != neutral:
            raise wrong(name, f"not supported by the model {DOCUMENTS}")
    with refusing("messages"):
        outcome = await documents(question["content"], timeout)

    async def events() -> Events:
        yield 0, Prompt([])
        yield 0, Piece(0, outcome["answer"] or "not in the documents", [], 0, "stop")

    return await respond_to_chat(asked, DOCUMENTS, events(), last={"documents": outcome})


async def respond_to_chat(
    asked: Body,
    model: str,
    events: Events,
    prompt_tokens: int = 0,
    tokenizer: Tokenizer | None = None,
    close: Callable[[], None] = lambda: None,
    last: Body | None = None,
) -> Response:
    """See `respond`. tokenizer: needed if log probabilities are asked for."""
    choices = [Choice() for _ in range(asked["n"])]

    def logprobs_of(number: int) -> Body | None:
        return protocol.chat_logprobs(tokenizer, choices[number].tokens) if tokenizer and asked["logprobs"] else None

    def format_choice(number: int) -> Body:
        message = {"role": "assistant", "content": choices[number].text, "refusal": None}
        finish = choices[number].finish
        return {"index": number, "message": message, "logprobs": logprobs_of(number), "finish_reason": finish}

    def format_chunks(number: int, event: Prompt | Piece) -> Iterator[Body]:
        choice = {"index": number, "delta": {}, "logprobs": None, "finish_reason": None}
        if isinstance(event, Prompt):
            yield choice | {"delta": {"role": "assistant", "content": ""}}
            return
        if event.text or event.tokens:
            yield choice | {"delta": {"content": event.text}, "logprobs": logprobs_of(number)}
        if event.finish:
            yield choice | {"finish_reason": event.finish}

    kind = "chat.completion" + ".chunk" * asked["stream"]
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "model": model}
    return await respond(asked, head, choices, events, prompt_tokens, format_choice, format_chunks, close, last)


async def models(state: State, request: Request, asked: Body) -> Body:
    """GET /v1/models and /v1/models/NAME"""
    state.require_ready()
    name = request.path_params.get("name")
    if name is None:
        return {"object": "list", "data": [described(state, name) for name in state.names()]}
    if name not in state.names():
        raise state.no_such_model(name)
    return described(state, name)


def described(state: State, name: str) -> Body:
    """A model as OpenAI lists it, and what the page shows."""
    entry: Body = {"id": name, "object": "model", "created": state.created, "owned_by": "tinygpt"}
    if name == DOCUMENTS:
        return entry | {"task": "documents"}
    served, chats = state.models[name], state.chats[name]
    return entry | {
        "task": "text" if served.tokenizer.pair is None else "chat",
        "turns": chats.between is not None,
        "system": chats.before_system is not None,
        "context": served.model.config.block_size,
        "parameters": served.parameters,
        "vocabulary": served.tokenizer.vocab_size,
    }


async def tokenize(state: State, request: Request, asked: Body) -> Body:
    """POST /tokenize: the ids of a text. A text that is the name of a special token is that token."""
    served = state.served(asked["model"])
    tokenizer, text = served.tokenizer, asked["prompt"]
    require_length(text, MAX_TOKENIZE, "prompt")
    with refusing("prompt"):
        if tokenizer.pair is not None and text == tokenizer.stop:
            found = tokenizer.pair.end.tolist()
        else:
            found = tokenizer.encode(text, state.config.skip_unknown).tolist()
    return {"count": len(found), "max_model_len": served.model.config.block_size, "tokens": found}


async def detokenize(state: State, request: Request, asked: Body) -> Body:
    """POST /detokenize: the text of some ids."""
    served = state.served(asked["model"])
    return {"prompt": served.tokenizer.decode(checked_ids(asked["tokens"], served, "tokens"))}


async def tokenizer_info(state: State, request: Request, asked: Body) -> Body:
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


async def health(state: State, request: Request, asked: Body) -> Response:
    """GET /health"""
    status = "loading" if not state.engine else "ready" if state.engine.alive else "failed"
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)


Handler = Callable[[State, Request, Body], Awaitable[Response | Body]]
PATHS: list[tuple[str, Handler, dict[str, protocol.Field]]] = [  # with the fields of a POST; none: GET
    ("/v1/models", models, {}),
    ("/v1/models/{name:path}", models, {}),
    ("/v1/completions", completions, protocol.COMPLETION),
    ("/v1/chat/completions", chat, protocol.CHAT),
    ("/tokenize", tokenize, protocol.TOKENIZE),
    ("/detokenize", detokenize, protocol.DETOKENIZE),
    ("/tokenizer_info", tokenizer_info, {}),
    ("/health", health, {}),
]


def route(state: State, path: str, handle: Handler, fields: dict[str, protocol.Field]) -> Route:
    """A path whose requests are read and checked before `handle` gets their fields, and its values sent as JSON."""

    async def endpoint(request: Request) -> Response:
        asked = protocol.read(fields, await read_json(request)) if fields else {}
        found = await handle(state, request, asked)
        return found if isinstance(found, Response) else JSONResponse(found)

    return Route(path, endpoint, methods=["POST" if fields else "GET"])


def make_app(state: State, key: str = "", hosts: frozenset[str] = frozenset()) -> Starlette:
    """The ASGI application: paths, middleware, and errors as responses. key, hosts: see Guard."""
    middleware = [Middleware(Guard, key=key, hosts=hosts)]
    if origin := state.config.allow_origin:  # any header: OpenAI's client in a browser sends several of its own
        allowed: Any = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=[origin], **allowed))
    app = Starlette(
        routes=[*(route(state, *entry) for entry in PATHS), *(Route(path, page, methods=["GET"]) for path in PAGE)],
        middleware=middleware,
        exception_handlers={ApiError: refused, ClientDisconnect: client_left, 404: no_such_path, 405: no_such_path},
    )
    app.state.tinygpt = state
    return app
