"""The paths of the API: a request becomes tasks for the engine, and their events become its response (responses.py).

What all paths share is in http.py (streams, protection) and in state.py (the models).
"""

import functools
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tinygpt.data.prompts import encode_prompt
from tinygpt.use.serve import protocol
from tinygpt.use.serve.engine import Piece, Prompt, Served
from tinygpt.use.serve.http import PAGE, Guard, no_such_path, page, read_json, refused
from tinygpt.use.serve.listen import LOOPBACK
from tinygpt.use.serve.protocol import ApiError, invalid_field, refusing
from tinygpt.use.serve.responses import ChatChoice, Choice, Events, RequestTasks, respond
from tinygpt.use.serve.state import Body, Responder, State

MAX_PROMPTS = 128  # of a request
MAX_TOKENIZE = 400_000  # characters of a text to tokenize; GPT-2's tokenizer overflows its stack at a million spaces


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
    served = state.models[name]
    chats = state.chats[name]
    return entry | {
        "task": "text" if served.tokenizer.pair is None else "chat",
        "turns": chats.between is not None,
        "system": chats.before_system is not None,
        "context": served.model.config.block_size,
        "parameters": served.parameters,
        "vocabulary": served.tokenizer.vocab_size,
        "starts": served.starts if state.config.host in LOOPBACK else [],  # of the dataset: for this machine only
    }


async def tokenize(state: State, request: Request, body: Body) -> Body:
    """POST /tokenize: the ids of a text. A text that is the name of a special token is that token."""
    served = state.served(body["model"])
    tokenizer = served.tokenizer
    text = body["prompt"]
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
    status = "loading"
    if state.engine:
        status = "ready" if state.engine.alive else "failed"
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
