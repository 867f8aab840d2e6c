"""The paths of the API: each request becomes tasks for the engine, and their events become its response.

The events arrive in an asyncio queue, from the engine's thread (engine.py). What all paths share, such as streams and
protection, is in http.py.

    app = make_app(state)                      # an ASGI application for uvicorn
"""

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tinygpt.data.prompts import encode_prompt
from tinygpt.errors import TinyGPTError
from tinygpt.serve import protocol
from tinygpt.serve.chat import ChatFormat
from tinygpt.serve.engine import (
    TIMED_OUT,
    Engine,
    Event,
    Failed,
    Piece,
    Prompt,
    QueueFull,
    Served,
    Settings,
    Task,
    Token,
)
from tinygpt.serve.http import PAGE, Guard, Stream, client_left, no_such_path, page, read_json, refused
from tinygpt.serve.protocol import DOCUMENTS, ApiError

MAX_PROMPTS = 128  # of a request
LONG = 10_000  # characters that take more than some milliseconds to encode
MAX_TOKENIZE = 400_000  # characters of a text to tokenize; GPT-2's tokenizer overflows its stack at a million spaces
POLL = 0.5  # seconds between checks that the client of a request without a stream is still connected
GRACE = 5.0  # seconds after the time of a request until it ends even if the engine says nothing
CLIENT_LEFT = Failed("the client has left", "")
STATUS = {"timeout": 503, "server_error": 500, "diverged": 500}  # HTTP status of each error code of the engine


@dataclasses.dataclass
class Limits:
    """What a request may ask for."""

    max_tokens: int
    max_batch: int
    timeout: float  # seconds


class Documents:
    """Answers from an index, one at a time, in one thread of their own. The index is opened in this thread, because a
    connection to SQLite works only in the thread that opened it."""

    def __init__(
        self, make: Callable[[], AbstractContextManager[Callable[[str], dict[str, Any]]]], max_queue: int
    ) -> None:
        self._pool, self._opened = ThreadPoolExecutor(1, "documents"), contextlib.ExitStack()
        self._respond = self._pool.submit(lambda: self._opened.enter_context(make())).result()
        self._left, self._closed = max_queue, False

    async def __call__(self, question: str, timeout: float) -> dict[str, Any]:
        """Answer a question within so many seconds. Errors: ApiError; TinyGPTError for a question that is too long."""
        if self._left == 0:
            raise queue_full()
        self._left -= 1
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, question)
        except TimeoutError:
            raise ApiError(503, TIMED_OUT[0], code="timeout") from None
        finally:
            self._left += 1

    def _answer(self, question: str) -> dict[str, Any]:
        if self._closed:
            raise ApiError(503, "the server is ending", code="loading")
        return self._respond(question)

    def close(self) -> None:
        """Close the index, after the question that is being answered."""
        self._closed = True
        self._pool.submit(self._opened.close).result()
        self._pool.shutdown()


class State:
    """What the paths share. Until `open` is called, the server is loading."""

    def __init__(self, limits: Limits, key: str = "", hosts: frozenset[str] = frozenset(), origin: str = "") -> None:
        self.limits, self.key, self.hosts, self.origin = limits, key, hosts, origin
        self.engine: Engine | None = None
        self.models: dict[str, Served] = {}
        self.chats: dict[str, ChatFormat] = {}
        self.documents: Documents | None = None
        self.created, self.skip_unknown = int(time.time()), False

    def open(self, engine: Engine, documents: Documents | None, skip_unknown: bool) -> None:
        self.models = {model.name: model for model in engine.models}
        self.skip_unknown, self.documents = skip_unknown, documents
        self.chats = {name: ChatFormat.of(model.tokenizer, skip_unknown) for name, model in self.models.items()}
        self.engine = engine

    @property
    def ready(self) -> bool:
        return self.engine is not None and self.engine.alive

    def require_ready(self) -> None:
        """Errors: ApiError while the server loads, or if it has failed."""
        if self.engine is None:
            raise ApiError(503, "the model is loading; try again in a moment", code="loading")
        if not self.engine.alive:
            raise ApiError(503, "the server has failed, and must be started again", code="server_error")

    def served(self, name: str) -> Served:
        """The model that a request names; the first one if it names none. Errors: ApiError."""
        self.require_ready()
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise no_such_model(self, name)
        return self.models[name]

    def names(self) -> list[str]:
        return [*self.models, *([DOCUMENTS] if self.documents else [])]


def no_such_model(state: State, name: str) -> ApiError:
    message = f"the model {name!r} is not served here; the models are {', '.join(state.names())}"
    if name in state.names():
        message = f"{name!r} answers questions: use /v1/chat/completions"
    return ApiError(404, message, "model", "model_not_found")


def queue_full() -> ApiError:
    return ApiError(429, "too many requests are waiting; try again later", code="queue_full")


# ---- requests to the engine -------------------------------------------------------------------------------------


class Answer:
    """The tasks of one HTTP request, and their events as one stream of (number of the task, event)."""

    def __init__(self, state: State, served: Served, prompts: list[list[int]], settings: Settings) -> None:
        """Errors: ApiError if a prompt is too long or the queue is full."""
        assert state.engine is not None
        room = served.model.config.block_size
        for prompt in prompts:
            if len(prompt) > room:
                raise ApiError(
                    400,
                    f"the prompt has {len(prompt):,} tokens, and the context of {served.name} has {room:,}",
                    "prompt",
                    "context_length_exceeded",
                )
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop, self._timeout = asyncio.get_running_loop(), state.limits.timeout
        deadline = time.monotonic() + self._timeout

        def deliver_to(number: int) -> Callable[[Event], None]:
            def deliver(event: Event) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                    self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, event))

            return deliver

        self.tasks = [
            Task(served, prompt, settings, deliver_to(number), deadline) for number, prompt in enumerate(prompts)
        ]
        self.n = settings.n
        try:
            state.engine.submit(*self.tasks)
        except QueueFull:
            raise queue_full() from None

    async def events(self, request: Request | None = None) -> AsyncIterator[tuple[int, Event]]:
        """The events until all sequences are complete. request: stop if its client has left.

        Errors: ApiError if a task fails; ClientDisconnect.
        """
        left = len(self.tasks) * self.n
        watcher = asyncio.create_task(self._watch(request)) if request else None
        late = self._loop.call_later(self._timeout + GRACE, self._queue.put_nowait, (0, Failed(*TIMED_OUT)))
        try:
            while left:
                number, event = await self._queue.get()
                if event is CLIENT_LEFT:
                    raise ClientDisconnect
                if isinstance(event, Failed):
                    raise ApiError(STATUS.get(event.code, 500), event.message, code=event.code)
                left -= isinstance(event, Piece) and bool(event.finish)
                yield number, event
        finally:
            late.cancel()
            if watcher:
                watcher.cancel()
            self.cancel()

    async def _watch(self, request: Request) -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(POLL)
        self._queue.put_nowait((0, CLIENT_LEFT))

    async def texts(self, request: Request) -> list["Text"]:
        """All sequences, those of the first prompt first, when they are complete; their tokens with those of `echo`."""
        found = [Text() for _ in range(len(self.tasks) * self.n)]
        async for task, event in self.events(request):
            if isinstance(event, Prompt):
                for text in found[task * self.n : (task + 1) * self.n]:
                    text.tokens += event.tokens
            elif isinstance(event, Piece):
                found[task * self.n + event.sequence].add(event)
        return found

    def cancel(self) -> None:
        """End the tasks that are not complete."""
        for task in self.tasks:
            task.cancelled = True


@dataclasses.dataclass
class Text:
    """A choice of a response so far: its text, its tokens and its finish reason."""

    text: str = ""
    tokens: list[Token] = dataclasses.field(default_factory=list)
    made: int = 0
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.made, self.finish = piece.made, piece.finish or None


def state_of(request: Request) -> State:
    state: State = request.app.state.tinygpt
    return state


# ---- completions ------------------------------------------------------------------------------------------------


async def completions(request: Request) -> Response:
    """POST /v1/completions"""
    state, body = state_of(request), await read_json(request)
    asked = protocol.read(protocol.COMPLETION, body)
    served = state.served(asked["model"])
    settings = protocol.settings(asked, state.limits.max_tokens, state.limits.max_batch, 0)
    if len(asked["prompt"]) > MAX_PROMPTS:
        raise protocol.wrong("prompt", f"at most {MAX_PROMPTS} prompts in one request")
    prompts = [await encoded(prompt, as_ids, prompt, served, state.skip_unknown) for prompt in asked["prompt"]]
    echoed = [  # as it was read: without the characters that --skip_unknown leaves out
        prompt if isinstance(prompt, str) and prompt and not state.skip_unknown else served.text(ids)
        for prompt, ids in zip(asked["prompt"], prompts, strict=True)
    ]
    answer, n = Answer(state, served, prompts, settings), settings.n
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": served.name,
    }
    offsets = [protocol.TextOffsets() for _ in range(len(prompts) * n)]

    def choice(number: int, one: Text) -> dict[str, Any]:
        logprobs = None
        if settings.logprobs >= 0:
            logprobs = protocol.completion_logprobs(served.tokenizer, one.tokens, offsets[number])
        return {"text": one.text, "index": number, "logprobs": logprobs, "finish_reason": one.finish}

    def usage(made: int) -> dict[str, int]:
        return protocol.usage(sum(map(len, prompts)), made)

    if asked["stream"]:

        async def chunks() -> AsyncIterator[dict[str, Any]]:
            made, first = dict[int, int](), dict[int, Text]()  # first: what comes before the first piece
            async for task, event in answer.events():
                if isinstance(event, Prompt):
                    for number in range(task * n, (task + 1) * n):
                        first[number] = Text(echoed[task] * asked["echo"], list(event.tokens))
                elif isinstance(event, Piece):
                    number = task * n + event.sequence
                    one = first.pop(number, Text())
                    one.add(event)
                    made[number] = event.made
                    yield head | {"choices": [choice(number, one)]}
            if asked["stream_options"]["include_usage"]:
                yield head | {"choices": [], "usage": usage(sum(made.values()))}

        return Stream(chunks(), answer.cancel)

    found = await answer.texts(request)
    for number, one in enumerate(found):
        one.text = echoed[number // n] * asked["echo"] + one.text
    choices = [choice(number, one) for number, one in enumerate(found)]
    return JSONResponse(head | {"choices": choices, "usage": usage(sum(one.made for one in found))})


async def encoded(text: str | list[int], encode: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that encodes a text; a long text in another thread, so that other requests go on meanwhile."""
    return await asyncio.to_thread(encode, *arguments) if len(text) > LONG else encode(*arguments)


def require_length(text: str, most: int, param: str) -> None:
    """Errors: ApiError for a text that is too long for the model, whatever its tokens are: it is not even encoded."""
    if len(text) > most:
        message = f"{param}: the text has {len(text):,} characters, too many for this model"
        raise ApiError(400, message, param, "context_length_exceeded")


def as_ids(prompt: str | list[int], served: Served, skip_unknown: bool) -> list[int]:
    """Ids of a prompt that is a text or ids already. Errors: ApiError."""
    if isinstance(prompt, str):
        require_length(prompt, served.model.config.block_size * served.longest_token, "prompt")
        try:
            return encode_prompt(prompt, served.tokenizer, skip_unknown, plain=True)
        except TinyGPTError as error:
            raise protocol.from_error(error, "prompt") from None
    require_ids(prompt, served, "prompt")
    return prompt


def require_ids(ids: list[int], served: Served, field: str) -> None:
    """Errors: ApiError that names the field, for an id outside the vocabulary."""
    size = served.tokenizer.vocab_size
    if not all(0 <= token < size for token in ids):
        raise protocol.wrong(field, f"token ids are 0 to {size - 1:,}")


# ---- chat -------------------------------------------------------------------------------------------------------


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions"""
    state, body = state_of(request), await read_json(request)
    asked = protocol.read(protocol.CHAT, body)
    if asked["model"] == DOCUMENTS and state.documents:
        return await ask_documents(state, state.documents, asked)
    served = state.served(asked["model"])
    for message in asked["messages"]:
        require_length(message["content"], served.model.config.block_size * served.longest_token, "messages")
    whole = "".join(message["content"] for message in asked["messages"])
    prompt = await encoded(whole, state.chats[served.name].encode, asked["messages"])
    room = max(1, served.model.config.block_size - len(prompt))
    settings = protocol.settings(asked, state.limits.max_tokens, state.limits.max_batch, room)
    answer = Answer(state, served, [prompt], settings)
    head, tokenizer = chat_head(served.name), served.tokenizer

    def told(tokens: list[Token]) -> dict[str, Any] | None:
        return protocol.chat_logprobs(tokenizer, tokens) if settings.logprobs >= 0 else None

    if asked["stream"]:

        async def chunks() -> AsyncIterator[dict[str, Any]]:
            part, made = head | {"object": "chat.completion.chunk"}, {}

            def chunk(index: int, delta: dict[str, str], told: Any = None, finish: str | None = None) -> dict[str, Any]:
                entry = {"index": index, "delta": delta, "logprobs": told, "finish_reason": finish}
                return part | {"choices": [entry]}

            async for _, event in answer.events():
                if isinstance(event, Prompt):
                    for index in range(settings.n):
                        yield chunk(index, {"role": "assistant", "content": ""})
                elif isinstance(event, Piece):
                    made[event.sequence] = event.made
                    if event.text or event.tokens:
                        yield chunk(event.sequence, {"content": event.text}, told(event.tokens))
                    if event.finish:
                        yield chunk(event.sequence, {}, None, event.finish)
            if asked["stream_options"]["include_usage"]:
                yield part | {"choices": [], "usage": protocol.usage(len(prompt), sum(made.values()))}

        return Stream(chunks(), answer.cancel)

    found = await answer.texts(request)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": one.text, "refusal": None},
            "logprobs": told(one.tokens),
            "finish_reason": one.finish,
        }
        for index, one in enumerate(found)
    ]
    used = protocol.usage(len(prompt), sum(one.made for one in found))
    return JSONResponse(head | {"object": "chat.completion", "choices": choices, "usage": used})


def chat_head(model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


async def ask_documents(state: State, documents: Documents, asked: dict[str, Any]) -> Response:
    """Answer the last message from the index. The field `documents`, which is not OpenAI's, holds the passages."""
    last = asked["messages"][-1]
    if last["role"] != "user" or not last["content"].strip():
        raise protocol.wrong("messages", "the last message must be the question, with the role user")
    for name, neutral in (("n", 1), ("logprobs", False)):
        if asked[name] != neutral:
            raise protocol.wrong(name, f"not supported by the model {DOCUMENTS}")
    try:
        outcome = await documents(last["content"], state.limits.timeout)
    except TinyGPTError as error:
        raise protocol.from_error(error, "messages") from None
    content = outcome["answer"] or "not in the documents"
    head = chat_head(DOCUMENTS)
    if not asked["stream"]:
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        body = head | {"object": "chat.completion", "choices": [choice], "usage": protocol.usage(0, 0)}
        return JSONResponse(body | {"documents": outcome})

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        part = head | {"object": "chat.completion.chunk"}
        for delta, finish in (({"role": "assistant", "content": ""}, None), ({"content": content}, None), ({}, "stop")):
            entry = part | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
            yield entry | ({"documents": outcome} if finish else {})
        if asked["stream_options"]["include_usage"]:
            yield part | {"choices": [], "usage": protocol.usage(0, 0)}

    return Stream(chunks())


# ---- models, tokenizer, page ------------------------------------------------------------------------------------


async def models(request: Request) -> Response:
    """GET /v1/models"""
    state = state_of(request)
    state.require_ready()
    return JSONResponse({"object": "list", "data": [described(state, name) for name in state.names()]})


async def model(request: Request) -> Response:
    """GET /v1/models/NAME"""
    state, name = state_of(request), request.path_params["name"]
    state.require_ready()
    if name not in state.names():
        raise no_such_model(state, name)
    return JSONResponse(described(state, name))


def described(state: State, name: str) -> dict[str, Any]:
    """A model as OpenAI lists it, and what the page shows: what it does, its context and its size."""
    entry: dict[str, Any] = {"id": name, "object": "model", "created": state.created, "owned_by": "tinygpt"}
    if name == DOCUMENTS:
        return entry | {"task": "documents"}
    served = state.models[name]
    chats = state.chats[name]
    return entry | {
        "task": "text" if served.tokenizer.pair is None else "chat",
        "turns": chats.between is not None,
        "system": chats.before_system is not None,
        "context": served.model.config.block_size,
        "parameters": served.parameters,
        "vocabulary": served.tokenizer.vocab_size,
    }


async def tokenize(request: Request) -> Response:
    """POST /tokenize: the ids of a text. A text that is the name of a special token is that token."""
    state = state_of(request)
    asked = protocol.read(protocol.TOKENIZE, await read_json(request))
    served = state.served(asked["model"])
    tokenizer, text = served.tokenizer, asked["prompt"]
    require_length(text, MAX_TOKENIZE, "prompt")
    try:
        if tokenizer.pair is not None and text == tokenizer.stop:
            found = tokenizer.pair.end.tolist()
        else:
            found = (await encoded(text, tokenizer.encode, text, state.skip_unknown)).tolist()
    except TinyGPTError as error:
        raise protocol.from_error(error, "prompt") from None
    return JSONResponse({"count": len(found), "max_model_len": served.model.config.block_size, "tokens": found})


async def detokenize(request: Request) -> Response:
    """POST /detokenize: the text of some ids."""
    asked = protocol.read(protocol.DETOKENIZE, await read_json(request))
    served = state_of(request).served(asked["model"])
    require_ids(asked["tokens"], served, "tokens")
    return JSONResponse({"prompt": served.tokenizer.decode(asked["tokens"])})


async def tokenizer_info(request: Request) -> Response:
    """GET /tokenizer_info: the special tokens, as lm-eval's remote tokenizer expects them."""
    served = state_of(request).served(request.query_params.get("model", ""))
    tokenizer = served.tokenizer
    start = tokenizer.decode(tokenizer.start[:1].tolist()) or None
    return JSONResponse(
        {
            "tokenizer_class": type(tokenizer).__name__,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": served.model.config.block_size,
            "bos_token": start,
            "eos_token": tokenizer.stop or None,
            "pad_token": None,
            "chat_template": getattr(tokenizer, "chat_template", "") or None,
        }
    )


async def health(request: Request) -> Response:
    """GET /health"""
    state = state_of(request)
    status = "ready" if state.ready else "failed" if state.engine else "loading"
    return JSONResponse({"status": status}, 200 if state.ready else 503)


# ---- the application ----------------------------------------------------------------------------------------------


def make_app(state: State) -> Starlette:
    """The ASGI application: paths, middleware, and errors as responses."""
    paths: list[tuple[str, Callable[[Request], Awaitable[Response]], str]] = [
        ("/v1/models", models, "GET"),
        ("/v1/models/{name:path}", model, "GET"),
        ("/v1/completions", completions, "POST"),
        ("/v1/chat/completions", chat, "POST"),
        ("/tokenize", tokenize, "POST"),
        ("/detokenize", detokenize, "POST"),
        ("/tokenizer_info", tokenizer_info, "GET"),
        ("/health", health, "GET"),
        *((path, page, "GET") for path in PAGE),
    ]
    cors = []
    if state.origin:
        allowed = ["GET", "POST"]  # and any header: OpenAI's client in a browser sends several of its own
        cors = [Middleware(CORSMiddleware, allow_origins=[state.origin], allow_methods=allowed, allow_headers=["*"])]
    app = Starlette(
        routes=[Route(path, endpoint, methods=[method]) for path, endpoint, method in paths],
        middleware=[*cors, Middleware(Guard, key=state.key, hosts=state.hosts)],
        exception_handlers={ApiError: refused, ClientDisconnect: client_left, 404: no_such_path, 405: no_such_path},
    )
    app.state.tinygpt = state
    return app
