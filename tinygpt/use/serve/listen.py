"""What `tinygpt serve` listens with: the socket, uvicorn without its log lines, and an orderly shutdown.

listener = listen("127.0.0.1", 8001)           # errors: TinyGPTError
server = make_server(app, drain=5)
with signals(server):
    server.run([listener])
"""

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

from tinygpt.base.errors import TinyGPTError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})  # addresses that only this machine reaches
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})  # names of this machine in a Host header
IDLE = 30  # seconds for a connection to send its first byte


def listen(host: str, port: int) -> socket.socket:
    """Open the socket. Errors: TinyGPTError if it is in use, or not allowed."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        hint = "--port=0 for a free one"
        if port < 65535:
            hint = f"--port={port + 1}, or {hint}"
        raise TinyGPTError(f"cannot listen on {host}, port {port}: {os.strerror(error.errno or 0)}", hint) from None
    # connections inherit TCP_NODELAY from this socket; asyncio sets it only for sockets that it opens. Without it, a
    # small response waits 40 ms for the acknowledgement of its headers
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def make_server(app: Any, drain: int) -> Any:
    """Make a uvicorn server that logs nothing, handles no signal, and closes connections that send nothing.

    drain: seconds for the requests that are running when the server is asked to end.
    """
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class ConnectionTimeout(H11Protocol):
        """Start the keep-alive timer with the connection: without a byte within IDLE seconds, it is closed."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.timeout_keep_alive_task = self.loop.call_later(IDLE, self.timeout_keep_alive_handler)

    class QuietServer(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:  # uvicorn's version raises the signals again at its end
            yield

    options: Any = {"log_level": "error", "access_log": False, "server_header": False, "lifespan": "off"}
    server = QuietServer(uvicorn.Config(app, timeout_graceful_shutdown=drain, http=ConnectionTimeout, **options))
    # uvicorn would print a traceback for each request that the shutdown interrupts
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    # asyncio would print a line for each write to a client that has left
    logging.getLogger("asyncio").addFilter(lambda record: "socket.send() raised" not in record.getMessage())
    return server


@contextlib.contextmanager
def signals(server: Any) -> Iterator[None]:
    """Shut the server down in order at the first signal, and at once at the second."""

    def stop(number: int, frame: Any) -> None:
        if server.should_exit:
            server.force_exit = True
        server.should_exit = True

    old_handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
