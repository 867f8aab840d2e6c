"""What all paths of the API need: the models, the responders that are not a GPT, and the settings."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tinygpt.base.configs.use import ServeConfig
from tinygpt.use.serve.chat import ChatFormat
from tinygpt.use.serve.engine import Engine, Failed, Served
from tinygpt.use.serve.protocol import ApiError

TIMED_OUT = Failed("the request took longer than the server allows (--timeout)", "timeout")
Body = dict[str, Any]  # of a request or a response, or a part of one


class Responder:
    """A model that is not a GPT, such as an index of documents: a thread that answers messages, one at a time."""

    def __init__(self, name: str, respond: Callable[[str], tuple[str, Body]], max_queue: int) -> None:
        """respond: from a message to the content of the answer, and the response's field `name`, not one of OpenAI's.
        It raises TinyGPTError for a message that it refuses."""
        self.name = name
        self._pool = ThreadPoolExecutor(1, name)
        self._respond = respond
        self._free = max_queue

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
        self.config = config
        self.created = int(time.time())
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
