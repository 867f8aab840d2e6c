"""`tinygpt serve` in this process or in one of its own, clients of it, and what its answers are compared with.

with serving_here(folder, "--ckpt=out") as server:
    server.client().completions.create(model="out", prompt="the king")
"""

import contextlib
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from conftest import PATIENCE, ok, until
from openai import OpenAI

from tinygpt.cli import main
from tinygpt.use.serve import command

CPU = ["--device=cpu", "--dtype=float32"]
ADDRESS = re.compile(r"^API: .*:(\d+)/v1.*^stop:", re.M | re.S)


class Server:
    """A server in a thread of this process: its address, its output, and clients of it."""

    def __init__(self, folder: Path, *flags: str, key: str = "") -> None:
        """Start it, and wait until it is ready."""
        self.folder, self.key, self._out, self.errors = folder, key, io.StringIO(), io.StringIO()
        found = list[Any]()  # the uvicorn server

        @contextlib.contextmanager
        def signals(server: Any) -> Iterator[None]:
            """A thread gets no signals."""
            found.append(server)
            yield

        self._thread = threading.Thread(target=main, args=[["serve", "--port=0", *CPU, *flags]], daemon=True)
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(self._out),
            contextlib.redirect_stderr(self.errors),
            mock.patch.object(command, "signals", signals),
        ):
            self._thread.start()
            address = until(lambda: ADDRESS.search(self.output) or self.ended())
        assert isinstance(address, re.Match), self.output
        self.port, (self._uvicorn,) = int(address[1]), found
        logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler(self.errors))  # of every server here

    @property
    def output(self) -> str:
        return self._out.getvalue() + self.errors.getvalue()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def app(self) -> Any:
        return self._uvicorn.config.app

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def is_idle(self) -> bool:
        """Whether this process uses no CPU time."""
        before = time.process_time()
        time.sleep(0.3)
        return time.process_time() - before < 0.02

    def close(self) -> None:
        self._uvicorn.should_exit = True
        this_process_stays = mock.patch.object(command, "os", SimpleNamespace(_exit=lambda status: None))
        with contextlib.redirect_stdout(self._out), this_process_stays:
            self._thread.join(PATIENCE)
        assert self.ended() and self._out.getvalue().endswith("stopped\n")
        logger = logging.getLogger("uvicorn.error")
        for one in [*logger.filters]:  # which let nothing pass after the end of their server
            logger.removeFilter(one)

    def client(self, **settings: Any) -> OpenAI:
        known = {"api_key": self.key or "none", "max_retries": 0, "timeout": PATIENCE}
        return OpenAI(base_url=f"{self.url}v1", **known | settings)

    def post(self, path: str, body: bytes | dict[str, Any], **headers: str) -> tuple[int, bytes]:
        """Send a body as it is; returns the status and the body of the answer."""
        return self.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), **headers)[:2]

    def ask(self, path: str, **body: Any) -> Any:
        """POST the fields `body` as JSON, require status 200, and return the JSON value of the answer."""
        status, data = self.post(f"/{path}", body)
        assert status == 200, data
        return json.loads(data)

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Send a request; returns status, body and headers (lower-case names). Give headers as content_type=..."""
        known = {"content-type": "application/json"} | ({"authorization": f"Bearer {self.key}"} if self.key else {})
        known |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, known)
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def begin(self, path: str, body: dict[str, Any], small_buffer: bool = False, unsent: int = 0) -> socket.socket:
        """Send a request, without its last bytes, and read nothing: for clients that leave, or are slow."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {self.key}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        connection = socket.socket()
        connection.settimeout(PATIENCE)
        if small_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(("127.0.0.1", self.port))
        connection.sendall(head.encode() + data[: len(data) - unsent])
        return connection


class Process(Server):
    """A server in a process of its own. Until `ready` returns, it may be loading."""

    def __init__(self, folder: Path, log: Path, *flags: str, port: int = 0, **env: str) -> None:
        self.folder, self.log, self.port, self.key = folder, log, port, ""
        command = [sys.executable, "-m", "tinygpt", "serve", f"--port={port}", *CPU, *flags]
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **env}
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def ready(self) -> "Process":
        found = until(lambda: ADDRESS.search(self.output) or self.ended())
        assert isinstance(found, re.Match), self.output
        self.port = int(found[1])
        return self

    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def first_chunk(connection: socket.socket) -> bytes:
    """Read up to a part of the first chunk of a stream: its headers come while it still waits in the queue."""
    data = b""
    while b"data: " not in data:
        piece = connection.recv(4096)
        assert piece, data
        data += piece
    return data


@contextlib.contextmanager
def serving_here(folder: Path, *flags: str, key: str = "") -> Iterator[Server]:
    with contextlib.closing(Server(folder, *flags, key=key)) as server:
        yield server


@contextlib.contextmanager
def serving(folder: Path, log: Path, *flags: str, port: int = 0, wait: bool = True, **env: str) -> Iterator[Process]:
    """A server in a process of its own, which is killed at the end."""
    server = Process(folder, log, *flags, port=port, **env)
    try:
        yield server.ready() if wait else server
    finally:
        server.process.kill()
        server.process.wait()


def sampled(folder: Path, start: str, *flags: str) -> str:
    """What `tinygpt sample` adds to a prompt."""
    return str(json.loads(ok(folder, "sample", f"--start={start}", "--json", *CPU, *flags).out)["text"])


def events(body: bytes) -> list[Any]:
    """The chunks of a stream, as they were sent: JSON values, and "[DONE]"."""
    lines = body.decode().split("\n\n")
    assert lines.pop() == "" and all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line if line == "[DONE]" else json.loads(line) for line in (line[6:] for line in lines)]
