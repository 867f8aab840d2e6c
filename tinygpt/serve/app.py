"""The HTTP side of the server: paths, streams, and what protects them. It never runs a model itself.

Each request becomes tasks for the engine (engine.py), whose events arrive in an asyncio queue. The middleware refuses
what does not come from this machine's own clients: foreign Host headers (DNS rebinding), other content types than JSON
(forms of other sites), bodies that are too large, and requests without the key.

    app = make_app(state)                      # an ASGI application for uvicorn
"""

import asyncio
import contextlib
import dataclasses
import hmac
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tinygpt.data.prompts import encode_prompt
from tinygpt.errors import TinyGPTError
from tinygpt.serve import protocol
from tinygpt.serve.chat import ChatFormat
from tinygpt.serve.engine import Engine, Event, Failed, Piece, Prompt, QueueFull, Served, Settings, Task, Token
from tinygpt.serve.protocol import ApiError

MAX_BODY = 4 << 20  # bytes of a request
BODY_SECONDS = 30.0  # for a client to send one
MAX_PROMPTS = 128  # of a request
POLL = 0.5  # seconds between checks that the client of a request without a stream is still connected
STATUS = {"timeout": 503, "server_error": 500, "diverged": 500}  # HTTP status of each error code of the engine
DOCUMENTS = "documents"  # the name of the model that answers from an index
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


@dataclasses.dataclass
class Limits:
    """What a request may ask for."""

    max_tokens: int
    max_batch: int
    timeout: float  # seconds


class Documents:
    """Answers from an index, one at a time, in one thread of their own. The index is opened in this thread, because a
    connection to SQLite works only in the thread that opened it."""

    def __init__(self, make: Callable[[], AbstractContextManager[Callable[[str], dict[str, Any]]]]) -> None:
        self._pool, self._opened = ThreadPoolExecutor(1, "documents"), contextlib.ExitStack()
        self._respond = self._pool.submit(lambda: self._opened.enter_context(make())).result()

    async def __call__(self, question: str) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._respond, question)

    def close(self) -> None:
        """Close the index, after the questions that are waiting."""
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

    def served(self, name: str) -> Served:
        """The model that a request names; the first one if it names none. Errors: ApiError."""
        if self.engine is None:
            raise ApiError(503, "the model is loading; try again in a moment", code="loading")
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.names())
            message = f"the model {name!r} is not served here; the models are {known}"
            if name == DOCUMENTS and self.documents:
                message = f"{DOCUMENTS!r} answers questions: use /v1/chat/completions"
            raise ApiError(404, message, "model", "model_not_found")
        return self.models[name]

    def names(self) -> list[str]:
        return [*self.models, *([DOCUMENTS] if self.documents else [])]


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
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + state.limits.timeout

        def deliver_to(number: int) -> Callable[[Event], None]:
            def deliver(event: Event) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                    loop.call_soon_threadsafe(self._queue.put_nowait, (number, event))

            return deliver

        self.tasks = [
            Task(served, prompt, settings, deliver_to(number), deadline) for number, prompt in enumerate(prompts)
        ]
        self._left = len(prompts) * settings.n
        try:
            state.engine.submit(*self.tasks)
        except QueueFull:
            raise ApiError(429, "too many requests are waiting; try again later", code="queue_full") from None

    async def events(self, request: Request | None = None) -> AsyncIterator[tuple[int, Event]]:
        """The events until all sequences are complete. request: stop if its client has left.

        Errors: ApiError if a task fails; ClientDisconnect.
        """
        look = time.monotonic() + POLL
        try:
            while self._left:
                try:
                    number, event = await asyncio.wait_for(self._queue.get(), POLL if request else None)
                except TimeoutError:
                    event = None
                if request and time.monotonic() >= look:  # events may come without a pause
                    look = time.monotonic() + POLL
                    if await request.is_disconnected():
                        raise ClientDisconnect
                if event is None:
                    continue
                if isinstance(event, Failed):
                    raise ApiError(STATUS.get(event.code, 500), event.message, code=event.code)
                self._left -= isinstance(event, Piece) and bool(event.finish)
                yield number, event
        finally:
            self.cancel()

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


# ---- completions ------------------------------------------------------------------------------------------------


async def completions(request: Request) -> Response:
    """POST /v1/completions"""
    state, body = state_of(request), await read_json(request)
    asked = protocol.read(protocol.COMPLETION, body)
    served = state.served(asked["model"])
    settings = protocol.settings(asked, state.limits.max_tokens, state.limits.max_batch, 0)
    if len(asked["prompt"]) > MAX_PROMPTS:
        raise protocol.wrong("prompt", f"at most {MAX_PROMPTS} prompts in one request")
    prompts = [as_ids(prompt, served, state.skip_unknown) for prompt in asked["prompt"]]
    texts = [as_text(prompt, served, state.skip_unknown) for prompt in asked["prompt"]]
    answer = Answer(state, served, prompts, settings)
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": served.name,
    }
    echo, n, tokenizer = asked["echo"], settings.n, served.tokenizer

    def choice(number: int, piece: Text, start: int, prompt: list[Token]) -> dict[str, Any]:
        told = None
        if settings.logprobs >= 0:
            told = protocol.completion_logprobs(tokenizer, [*prompt, *piece.tokens], start)
        return {"text": piece.text, "index": number, "logprobs": told, "finish_reason": piece.finish}

    if asked["stream"]:

        async def chunks() -> AsyncIterator[dict[str, Any]]:
            starts, made = dict[int, int](), dict[int, int]()
            known = dict[int, list[Token]]()
            async for task, event in answer.events():
                if isinstance(event, Prompt):
                    known[task] = event.tokens
                elif isinstance(event, Piece):
                    number, one, start = task * n + event.sequence, Text(), 0
                    one.add(event)
                    if number in starts:
                        prompt, start = [], starts[number]
                    else:
                        prompt = known[task]
                        one.text = texts[task] * echo + one.text
                    made[number], starts[number] = event.made, start + len(one.text)
                    yield head | {"choices": [choice(number, one, start, prompt)]}
            if asked["stream_options"]["include_usage"]:
                yield head | {"choices": [], "usage": protocol.usage(sum(map(len, prompts)), sum(made.values()))}

        return Stream(chunks(), answer.cancel)

    found = [Text() for _ in range(len(prompts) * n)]
    known: dict[int, list[Token]] = {}
    async for task, event in answer.events(request):
        if isinstance(event, Prompt):
            known[task] = event.tokens
        elif isinstance(event, Piece):
            found[task * n + event.sequence].add(event)
    for number, one in enumerate(found):
        one.text = texts[number // n] * echo + one.text
    choices = [choice(number, one, 0, known[number // n]) for number, one in enumerate(found)]
    used = protocol.usage(sum(map(len, prompts)), sum(one.made for one in found))
    return JSONResponse(head | {"choices": choices, "usage": used})


def as_ids(prompt: str | list[int], served: Served, skip_unknown: bool) -> list[int]:
    """Ids of a prompt that is a text or ids already. Errors: ApiError."""
    size = served.tokenizer.vocab_size
    if isinstance(prompt, str):
        try:
            return encode_prompt(prompt, served.tokenizer, skip_unknown, plain=True)
        except TinyGPTError as error:
            raise protocol.from_error(error, "prompt") from None
    if not all(0 <= token < size for token in prompt):
        raise protocol.wrong("prompt", f"token ids are 0 to {size - 1:,}")
    return prompt


def as_text(prompt: str | list[int], served: Served, skip_unknown: bool) -> str:
    """The text of a prompt that the model can read, for `echo`."""
    if isinstance(prompt, str) and not skip_unknown:
        return prompt
    ids = served.tokenizer.encode(prompt, skip_unknown).tolist() if isinstance(prompt, str) else prompt
    return served.tokenizer.decode(ids)


# ---- chat -------------------------------------------------------------------------------------------------------


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions"""
    state, body = state_of(request), await read_json(request)
    asked = protocol.read(protocol.CHAT, body)
    if asked["model"] == DOCUMENTS and state.documents:
        return await ask_documents(state.documents, asked)
    served = state.served(asked["model"])
    prompt = state.chats[served.name].encode(asked["messages"])
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

    found = [Text() for _ in range(settings.n)]
    async for _, event in answer.events(request):
        if isinstance(event, Piece):
            found[event.sequence].add(event)
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


async def ask_documents(documents: Documents, asked: dict[str, Any]) -> Response:
    """Answer the last message from the index. The field `documents`, which is not OpenAI's, holds the passages."""
    last = asked["messages"][-1]
    if last["role"] != "user" or not last["content"].strip():
        raise protocol.wrong("messages", "the last message must be the question, with the role user")
    try:
        outcome = await documents(last["content"])
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
    state.served("")
    return JSONResponse({"object": "list", "data": [described(state, name) for name in state.names()]})


async def model(request: Request) -> Response:
    """GET /v1/models/NAME"""
    state, name = state_of(request), request.path_params["name"]
    if name not in state.names():
        state.served(name)
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
        "parameters": served.model.num_params(),
        "vocabulary": served.tokenizer.vocab_size,
    }


async def tokenize(request: Request) -> Response:
    """POST /tokenize: the ids of a text. A text that is the name of a special token is that token."""
    state = state_of(request)
    asked = protocol.read(protocol.TOKENIZE, await read_json(request))
    served = state.served(asked["model"])
    tokenizer, text = served.tokenizer, asked["prompt"]
    try:
        if tokenizer.pair is not None and text == tokenizer.stop:
            found = tokenizer.pair.end.tolist()
        else:
            found = tokenizer.encode(text, state.skip_unknown).tolist()
    except TinyGPTError as error:
        raise protocol.from_error(error, "prompt") from None
    return JSONResponse({"count": len(found), "max_model_len": served.model.config.block_size, "tokens": found})


async def detokenize(request: Request) -> Response:
    """POST /detokenize: the text of some ids."""
    asked = protocol.read(protocol.DETOKENIZE, await read_json(request))
    served = state_of(request).served(asked["model"])
    if asked["tokens"]:
        as_ids(asked["tokens"], served, False)
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
    ready = state_of(request).engine is not None
    return JSONResponse({"status": "ready" if ready else "loading"}, 200 if ready else 503)


async def page(request: Request) -> Response:
    """GET /: the chat page, and its style and program."""
    name, kind = PAGE[request.scope["path"]]
    return Response(files("tinygpt.serve").joinpath(name).read_bytes(), media_type=kind, headers=SECURITY)


# ---- HTTP -------------------------------------------------------------------------------------------------------


def state_of(request: Request) -> State:
    state: State = request.app.state.tinygpt
    return state


async def read_json(request: Request) -> Any:
    """Read a body as JSON. Errors: ApiError."""
    chunks, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BODY:
                    raise ApiError(413, f"the body is larger than {MAX_BODY >> 20} MiB", code="body_too_large")
                chunks.append(chunk)
    except TimeoutError:
        raise ApiError(400, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None
    try:
        return json.loads(b"".join(chunks))
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON") from None


class Stream(StreamingResponse):
    """Chunks as server-sent events; an error is the last one. `close` is called when the client has left, too."""

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], close: Callable[[], None] = lambda: None) -> None:
        super().__init__(as_lines(chunks), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()


async def as_lines(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error.body())}\n\n"
    yield "data: [DONE]\n\n"


def refusal(error: ApiError) -> JSONResponse:
    headers = {429: {"retry-after": "1"}, 401: {"www-authenticate": "Bearer"}, 503: {"retry-after": "1"}}
    return JSONResponse(error.body(), error.status, headers.get(error.status))


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return refusal(error)


async def client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def no_such_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    told = f"{request.method} {request.scope['path']}: no such path; see GET /v1/models, POST /v1/chat/completions"
    return refusal(ApiError(status, told))


class Guard:
    """Refuse requests that web sites could cause, and requests without the key."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self.check(Request(scope))
        except ApiError as error:
            await refusal(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def check(self, request: Request) -> None:
        """Errors: ApiError."""
        # not request.url.path: it is parsed from a URL with the Host header in it, which the client chooses
        state, path = self.state, request.scope["path"]
        host = re.sub(r":\d*$", "", request.headers.get("host", "").lower())  # browsers leave out port 80
        if state.hosts and host not in state.hosts:
            raise ApiError(403, "this server answers to localhost only (protection against DNS rebinding)")
        public = path in PAGE or path == "/health"
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if state.key and not public and not hmac.compare_digest(given, state.key.encode()):
            raise ApiError(401, "a key is required: Authorization: Bearer KEY", code="invalid_api_key")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method == "POST" and kind != "application/json":
            raise ApiError(400, "the content type is not application/json", code="unsupported_content_type")


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
        methods, headers = ["GET", "POST"], ["authorization", "content-type"]
        cors = [Middleware(CORSMiddleware, allow_origins=[state.origin], allow_methods=methods, allow_headers=headers)]
    app = Starlette(
        routes=[Route(path, endpoint, methods=[method]) for path, endpoint, method in paths],
        middleware=[*cors, Middleware(Guard, state=state)],
        exception_handlers={ApiError: refused, ClientDisconnect: client_left, 404: no_such_path, 405: no_such_path},
    )
    app.state.tinygpt = state
    return app
