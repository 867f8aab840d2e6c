"""A real `tinygpt serve` process, clients of it, and what its answers are compared with.

with serving(folder, "--ckpt=out") as server:
    server.client().completions.create(model="out", prompt="the king")
    server.wait_until_idle()
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from conftest import PATIENCE, cli_here, until
from openai import OpenAI

CPU = ["--device=cpu", "--dtype=float32"]


class Server:
    """The process, its address and its output. Until `ready` returns, it may be loading."""

    def __init__(self, folder: Path, log: Path, *flags: str, port: int = 0, key: str = "", **env: str) -> None:
        self.folder, self.log, self.port, self.key = folder, log, port, key
        command = [sys.executable, "-m", "tinygpt", "serve", f"--port={port}", *CPU, *flags]
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **env}
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def ready(self) -> "Server":
        found = until(lambda: re.search(r"^API: .*:(\d+)/v1.*^stop:", self.output, re.M | re.S) or self.ended())
        assert isinstance(found, re.Match), self.output
        self.port = int(found[1])
        return self

    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def client(self, **settings: Any) -> OpenAI:
        known = {"api_key": self.key or "none", "max_retries": 0, "timeout": PATIENCE}
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", **known | settings)

    def post(self, path: str, body: bytes | dict[str, Any], **headers: str) -> tuple[int, bytes]:
        """Send a body as it is; returns the status and the body of the answer."""
        return self.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), **headers)[:2]

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """The same with the headers of the answer, in lower case. Headers are given as content_type=..."""
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


def first_chunk(connection: socket.socket) -> bytes:
    """Read up to a part of the first chunk of a stream: its headers come while it still waits in the queue."""
    data = b""
    while b"data: " not in data:
        piece = connection.recv(4096)
        assert piece, data
        data += piece
    return data


@contextlib.contextmanager
def serving(
    folder: Path, log: Path, *flags: str, port: int = 0, key: str = "", wait: bool = True, **env: str
) -> Iterator[Server]:
    server = Server(folder, log, *flags, port=port, key=key, **env)
    try:
        yield server.ready() if wait else server
    finally:
        server.process.kill()
        server.process.wait()


def sampled(folder: Path, start: str, *flags: str) -> str:
    """What `tinygpt sample` adds to a prompt."""
    done = cli_here("sample", f"--start={start}", "--json", *CPU, *flags, cwd=folder)
    assert done.status == 0, done.err
    return str(json.loads(done.out)["text"])


def events(body: bytes) -> list[Any]:
    """The chunks of a stream, as they were sent: JSON values, and "[DONE]"."""
    lines = body.decode().split("\n\n")
    assert lines.pop() == "" and all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line if line == "[DONE]" else json.loads(line) for line in (line[6:] for line in lines)]
