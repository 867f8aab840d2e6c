"""OpenAI's protocol as data: request bodies to settings, events to response bodies. No network, no model.

Unknown fields are ignored, because clients send many. A known field with a wrong value is refused, and so is a field
that would change the answer and is not supported.

Source: https://platform.openai.com/docs/api-reference (completions, chat, errors); vLLM's /tokenize.

    request = read(COMPLETION, body)                     # {"prompt": ..., "max_tokens": 16, ...}
    settings(request, cap=4096, rows=16, room=0)         # of the engine
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tokenizer import Tokenizer, lone_surrogate
from tinygpt.generate import Sampling
from tinygpt.use.serve.engine import Settings, Token

DOCUMENTS = "documents"  # the name of the model that answers from an index
LABELS = "labels"  # the name of the model that labels a text
# stop texts, alternatives of a token
MAX_STOPS = 4
MAX_TOP = 20


class ApiError(Exception):
    """An error of a request: HTTP status, and OpenAI's error object."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        types = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        error_type = types.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": error_type, "param": self.param, "code": self.code}}


def invalid_field(param: str, message: str, code: str | None = None) -> ApiError:
    return ApiError(400, f"{param}: {message}", param, code)


@contextlib.contextmanager
def refusing(param: str) -> Iterator[None]:
    """Raise ApiError for a TinyGPTError about the text of the field `param`."""
    try:
        yield
    except TinyGPTError as error:
        raise invalid_field(param, error.message) from None


# ---- fields of a request ----------------------------------------------------------------------------------------


class Field(NamedTuple):
    """A field of a request body. `read` returns its value, or raises ValueError with the expected values."""

    default: Any
    read: Callable[[Any], Any]


def number(low: float, high: float, number_type: type = float) -> Callable[[Any], Any]:
    accepted, name = (int, "an integer") if number_type is int else ((int, float), "a number")

    def read(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, accepted):
            raise ValueError(f"expected {name}")
        if not low <= value <= high:
            raise ValueError(f"expected {low:g} to {high:g}")
        return number_type(value)

    return read


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a string")
    if surrogate := lone_surrogate(value):
        raise ValueError(f"contains {surrogate}, half of a surrogate pair")
    return value


def stops(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MAX_STOPS or not all(isinstance(stop, str) for stop in texts):
        raise ValueError(f"expected a string, or a list of at most {MAX_STOPS} strings")
    return tuple(text(stop) for stop in texts if stop)


def prompts(value: Any) -> list[str | list[int]]:
    """Read prompts: a text, a list of texts, a list of token ids, or a list of such lists."""
    entries = [value] if isinstance(value, str) or is_token_ids(value) else value
    if (
        not isinstance(entries, list)
        or not entries
        or not all(isinstance(entry, str) or is_token_ids(entry) for entry in entries)
    ):
        raise ValueError("expected a string, a list of strings, a list of token ids, or a list of such lists")
    return [text(entry) if isinstance(entry, str) else entry for entry in entries]


def is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def ids(value: Any) -> list[int]:
    if value != [] and not is_token_ids(value):
        raise ValueError("expected a list of token ids")
    return list(value)


def messages(value: Any) -> list[dict[str, str]]:
    """Read messages; return their roles and texts. A content is a text, or a list of parts of the type text."""
    if not isinstance(value, list) or not value:
        raise ValueError("expected a list of messages")
    messages = []
    for entry in value:
        role, content = (entry.get("role"), entry.get("content")) if isinstance(entry, dict) else (None, None)
        if role not in ("system", "developer", "user", "assistant"):
            raise ValueError("the role of each message must be system, user or assistant; no tools are supported")
        if isinstance(content, list):
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                message = "each part of a content must have the type text; no images, files or audio are supported"
                raise ValueError(message)
            content = "".join(text(part.get("text")) for part in content)
        if not isinstance(content, str):
            raise ValueError("the content of each message is a string, or a list of parts")
        messages.append({"role": "system" if role == "developer" else role, "content": text(content)})
    return messages


def stream_options(value: Any) -> dict[str, bool]:
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    return {"include_usage": boolean(value.get("include_usage", False))}


def unsupported(*neutral: Any) -> Field:
    """Make a field that is not supported. Only the `neutral` values, which change nothing, are accepted."""

    def read(value: Any) -> None:
        if value not in neutral:
            raise ValueError("not supported")

    return Field(None, read)


COMMON = {
    "model": Field("", text),
    "temperature": Field(1.0, number(0, 100)),
    "top_p": Field(1.0, number(0, 1)),
    "top_k": Field(0, number(0, 1 << 31, int)),
    "n": Field(1, number(1, 128, int)),
    "stop": Field((), stops),
    "seed": Field(None, number(-(1 << 63), (1 << 64) - 1, int)),
    "stream": Field(False, boolean),
    "stream_options": Field({"include_usage": False}, stream_options),
    "max_tokens": Field(None, number(0, 1 << 31, int)),
    "presence_penalty": unsupported(0),
    "frequency_penalty": unsupported(0),
    "repetition_penalty": unsupported(1),
    "min_p": unsupported(0),
    "logit_bias": unsupported({}),
}
COMPLETION = COMMON | {
    "prompt": Field(None, prompts),
    "max_tokens": Field(16, number(0, 1 << 31, int)),
    "logprobs": Field(None, number(0, MAX_TOP, int)),
    "echo": Field(False, boolean),
    "suffix": unsupported(""),
    "best_of": unsupported(1),
}
CHAT = COMMON | {
    "messages": Field(None, messages),
    "max_completion_tokens": Field(None, number(1, 1 << 31, int)),
    "logprobs": Field(False, boolean),
    "top_logprobs": Field(None, number(0, MAX_TOP, int)),
    "tools": unsupported([]),
    "functions": unsupported([]),
    "tool_choice": unsupported("none", "auto"),
    "response_format": unsupported({"type": "text"}),
    "modalities": unsupported(["text"]),
    "audio": unsupported(),
}
TOKENIZE = {"model": Field("", text), "prompt": Field("", text)}
DETOKENIZE = {"model": Field("", text), "tokens": Field([], ids)}


def read(fields: dict[str, Field], body: Any) -> dict[str, Any]:
    """Read the fields of a request body; null means the default. Errors: ApiError."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body is not a JSON object")
    values = {}
    for name, field in fields.items():
        value = body.get(name)
        try:
            values[name] = field.default if value is None else field.read(value)
        except ValueError as error:
            raise invalid_field(name, str(error)) from None
    for name in ("prompt", "messages"):
        if name in values and values[name] is None:
            raise invalid_field(name, "this field is required")
    return values


def settings(request: dict[str, Any], cap: int, rows: int, room: int) -> Settings:
    """Convert a request to the engine's settings. Errors: ApiError.

    cap: limit of max_tokens; rows: limit of n; room: the default of max_tokens for a chat.
    """
    candidates = request.get("max_completion_tokens"), request["max_tokens"], min(cap, room)
    max_tokens = next(number for number in candidates if number is not None)
    if max_tokens > cap:
        raise invalid_field("max_tokens", f"{max_tokens:,} is above this server's limit of {cap:,} (--max_tokens)")
    if request["n"] > rows:
        raise invalid_field("n", f"{request['n']} is above this server's limit of {rows} (--max_batch)")
    seeded = request["seed"] is not None
    seed = request["seed"] % (1 << 63) if seeded else 0
    choice = Sampling(request["temperature"], request["top_k"], request["top_p"], seed)
    top = -1 if request["logprobs"] is None else request["logprobs"]
    if "messages" in request:  # in a chat, logprobs is true or false
        if request["top_logprobs"] is not None and not request["logprobs"]:
            raise invalid_field("top_logprobs", "needs logprobs: true")
        top = (request["top_logprobs"] or 0) if request["logprobs"] else -1
    echo = request.get("echo", False) and top >= 0
    return Settings(max_tokens, choice, seeded, request["n"], request["stop"], top, echo)


# ---- responses --------------------------------------------------------------------------------------------------


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token; for a part of a character, its bytes as `bytes:\\xe2\\x82`."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> dict[str, list[Any]]:
    """Build the field `logprobs` of a completion's choice."""

    def top(token: Token) -> dict[str, float | None] | None:
        # the token itself may not be one of the most probable ones
        alternatives = (*token.top, (token.id, token.logprob))
        return None if token.logprob is None else {token_text(tokenizer, id): value for id, value in alternatives}

    return {
        "tokens": [token_text(tokenizer, token.id) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [top(token) for token in tokens],
    }


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> dict[str, Any]:
    """Build the field `logprobs` of a chat's choice."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        data = tokenizer.token_bytes(token)
        return {"token": token_text(tokenizer, token), "logprob": logprob, "bytes": list(data)}

    content = [
        entry(token.id, token.logprob) | {"top_logprobs": [entry(*other) for other in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}
