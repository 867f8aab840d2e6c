"""What all paths of the server share: JSON bodies, streams, errors, the chat page, and protection.

`Guard` refuses what does not come from this machine's own clients: foreign Host headers (DNS rebinding), other content
types than JSON (forms of other sites), and requests without the key.
"""

import hmac
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tinygpt.examine.report.page import read
from tinygpt.use.serve.protocol import ApiError

MAX_BODY = 4 << 20  # bytes of a request
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
    "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # no site may embed the page
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
PAGE = {  # path: (files that are joined, media type)
    "/": (["use/serve/page.html"], "text/html"),
    "/page.css": (["examine/report/colours.css", "use/serve/page.css"], "text/css"),
    "/page.js": (["use/serve/page.js"], "text/javascript"),
}


async def read_json(request: Request) -> Any:
    """Read a body as JSON. Errors: ApiError."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise ApiError(413, f"the body is larger than {MAX_BODY >> 20} MiB", code="body_too_large")
        return json.loads(body)
    except (ValueError, RecursionError, ClientDisconnect):
        raise ApiError(400, "the body is not valid JSON") from None


class Stream(StreamingResponse):
    """A response of chunks as server-sent events; an error is the last event. `close` is called at any end."""

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


async def refused(request: Request, error: Exception) -> Response:
    """Build the response to a refused request. Its headers suggest a retry only where that can help."""
    assert isinstance(error, ApiError)
    headers = {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    elif error.code in ("queue_full", "loading"):
        headers["retry-after"] = "1"
    elif error.status >= 500:
        headers["x-should-retry"] = "false"  # OpenAI's client would send the same long request twice more
    return JSONResponse(error.body(), error.status, headers)


async def no_such_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    problem = "this path has another method" if status == 405 else "no such path"
    message = f"{request.method} {request.scope['path']}: {problem}; see GET /v1/models, POST /v1/chat/completions"
    return await refused(request, ApiError(status, message))


class Guard:
    """Middleware that refuses requests that web sites could cause, and requests without the key."""

    def __init__(self, app: ASGIApp, key: str, hosts: frozenset[str]) -> None:
        """key: required in each request; empty: no key. hosts: permitted names in Host headers; empty: any."""
        self.app = app
        self.key = key
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http":
            try:
                self.check(Request(scope))
            except ApiError as error:
                app = await refused(Request(scope), error)
        await app(scope, receive, send)

    def check(self, request: Request) -> None:
        """Check host, key and content type. Errors: ApiError."""
        # not request.url.path: it is parsed from a URL with the Host header in it, which the client chooses
        path = request.scope["path"]
        host = re.sub(r":\d*$", "", request.headers.get("host", "").lower())  # browsers leave out port 80
        if self.hosts and host not in self.hosts:
            raise ApiError(403, "this server answers to localhost only (protection against DNS rebinding)")
        is_public = path in PAGE or path == "/health"
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        is_authorised = scheme.lower() == "bearer" and hmac.compare_digest(key.encode(), self.key.encode())
        if self.key and not is_public and not is_authorised:
            raise ApiError(401, "a key is required: Authorization: Bearer KEY", code="invalid_api_key")
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method == "POST" and content_type != "application/json":
            raise ApiError(400, "the content type is not application/json", code="unsupported_content_type")


async def page(request: Request) -> Response:
    """GET /, /page.css and /page.js: the chat page."""
    names, media_type = PAGE[request.scope["path"]]
    return Response("".join(map(read, names)), media_type=media_type, headers=HEADERS)
