"""`tinygpt serve` when things go wrong: clients that leave or send nonsense, other sites' pages, full queues, signals.

The server of most tests is small: two sequences at a time, eight requests in the queue. What a request gets is compared
with `tinygpt sample`, so a text that belongs to another request fails.
"""

import contextlib
import copy
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from unittest import mock

import openai
import pytest
from conftest import PATIENCE, free_port, listing, refused, until
from hostile import JSON_VALUES, META_TOKENS, mutate, mutate_value
from models import small
from serving import Server, events, first_chunk, sampled, serving, serving_here

from tinygpt.data.tokenizer import CharTokenizer
from tinygpt.use.serve import engine as engines
from tinygpt.use.serve import listen as listening
from tinygpt.use.serve.engine import Engine, Event, Failed, Piece, Served, Settings, Task

KEY = "0123456789abcdef-for-tests"
ENDLESS = 1_000_000  # tokens: minutes


@pytest.fixture(scope="module")
def few(models: Path) -> Iterator[Server]:
    flags = ["--ckpt=out", "--adapter=colours=out-lora", "--max_batch=2", "--max_queue=8", f"--max_tokens={ENDLESS}"]
    with serving_here(models, *flags) as server:
        yield server
        assert not server.ended() and "Traceback" not in server.output


@pytest.fixture(scope="module")
def guarded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that other machines reach, with a key."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "key.txt").write_text(KEY)
    flags = ["--host=0.0.0.0", f"--api_key={folder / 'key.txt'}"]
    with serving_here(models, "--ckpt=out", *flags, "--skip_unknown", f"--max_tokens={ENDLESS}", key=KEY) as server:
        yield server


def expected(server: Server, prompt: str, seed: int, length: int, *flags: str) -> str:
    more = [f"--seed={seed}", f"--max_new_tokens={length}", "--temperature=1", "--top_k=0"]
    return sampled(server.folder, prompt, "--ckpt=out", *more, *flags)


def completed(server: Server, **body: Any) -> str:
    return str(server.ask("v1/completions", **body)["choices"][0]["text"])


def rest(connection: socket.socket, data: bytes = b"") -> bytes:
    """All that comes until the server closes the connection, after `data`."""
    while piece := connection.recv(1 << 16):
        data += piece
    return data


def streamed(data: bytes) -> str:
    """The text of a stream with its HTTP frame."""
    text = "".join(re.findall(r'"text":"((?:[^"\\]|\\.)*)"', data.decode()))
    return str(json.loads(f'"{text}"'))


def test_clients_that_leave_in_the_middle_leave_nothing_behind(guarded: Server) -> None:
    statuses = Counter[bytes]()
    for number in range(24):
        body = {"prompt": "the", "max_tokens": ENDLESS, "stream": number % 2 == 0, "n": 1 + number % 2}
        connection = guarded.begin("/v1/completions", body)
        if number % 4 == 0:  # it has begun
            statuses[first_chunk(connection)[9:12]] += 1
        if number % 3 == 0:  # a reset instead of an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    with guarded.begin("/v1/completions", {"prompt": "the", "max_tokens": ENDLESS, "stream": True}) as stays:
        first_chunk(stays)
        until(lambda: not guarded.is_idle())  # negative control
    assert statuses == {b"200": 6}
    until(guarded.is_idle)
    assert completed(guarded, prompt="the", seed=1) == expected(guarded, "the", 1, 16)


def test_slow_readers_get_everything_and_delay_nobody(few: Server) -> None:
    body = {"prompt": "the king", "max_tokens": 1000, "seed": 1, "stream": True}
    slow = few.begin("/v1/completions", body, small_buffer=True)
    half = few.begin("/v1/completions", {"prompt": "the"}, unsent=5)  # sends most of a body, then waits
    assert completed(few, prompt="my", seed=1) == expected(few, "my", 1, 16)
    data = rest(slow)
    assert streamed(data) == expected(few, "the king", 1, 1000) and data.count(b"data: [DONE]") == 1
    half.close()


def test_a_full_queue_refuses_some_and_clients_that_leave_it_make_room(few: Server) -> None:
    endless, engine = {"prompt": "the", "max_tokens": ENDLESS, "stream": True}, few.app.state.tinygpt.engine
    holding = [few.begin("/v1/completions", endless) for _ in range(2)]  # which leave no other a place in the batch
    for connection in holding:
        first_chunk(connection)
    leaving = [few.begin("/v1/completions", {"prompt": "the", "stream": True}) for _ in range(4)]
    until(lambda: len(engine._waiting) == 4)
    with ThreadPoolExecutor(8) as pool:
        ask = functools.partial(pool.submit, completed, few, prompt="gone", max_tokens=200)
        answers = [ask(seed=seed) for seed in range(4)]
        until(lambda: len(engine._waiting) == 8)
        with pytest.raises(openai.RateLimitError) as caught:
            few.client().completions.create(model="out", prompt="the")
        assert caught.value.code == "queue_full" and caught.value.response.headers["retry-after"] == "1"
        for connection in leaving:
            connection.close()
        until(lambda: sum(task.cancelled for task in [*engine._waiting]) == 4)
        answers += [ask(seed=seed) for seed in range(4, 8)]
        until(lambda: sum(not task.cancelled for task in [*engine._waiting]) == 8)
        for connection in holding:
            connection.close()
        for seed, answer in enumerate(answers):
            assert answer.result() == expected(few, "gone", seed, 200)


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "the king", "logprobs": 2, "echo": True, "stop": "x", "suffix": None, "best_of": 1}),
    ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 1, "tools": []}),
    ("/tokenize", {"prompt": "the king"}),
    ("/detokenize", {"tokens": [1, 2]}),
]
OPTIONS = {"temperature": 1, "top_p": 1, "top_k": 0, "n": 1, "seed": 1, "max_tokens": 5}


def test_malformed_bodies_are_refused_and_never_an_error_of_the_server(
    few: Server, request: pytest.FixtureRequest
) -> None:
    """--full=1: 3,000 bodies instead of 200."""
    count, seen, draw = 3000 if request.config.getoption("--full") else 200, Counter[int](), random.Random(1)
    for _ in range(count):
        path, fields = draw.choice(BODIES)
        message = {"role": "user", "content": draw.choice(["12 red", "1 blue", *JSON_VALUES])}
        drawn = {"model": draw.choice(["out", "colours", "x"]), "stream": draw.choice([False, True])}
        body = OPTIONS | drawn | {"messages": [message], "stream_options": {"include_usage": True}} | fields
        if draw.random() < 0.7:
            sent = json.dumps(mutate_value(draw, copy.deepcopy(body), JSON_VALUES)).encode()
        else:
            sent = mutate(draw, json.dumps(body).encode(), META_TOKENS)
        status, data, headers = few.request("POST", path, sent)
        seen[status] += 1
        assert status in (200, 400, 404), (sent, data)
        if status != 200:
            error = json.loads(data)["error"]
            assert error.keys() == {"message", "type", "param", "code"} and error["message"]
        elif headers["content-type"].startswith("text/event-stream"):
            assert not any("error" in chunk for chunk in events(data)[:-1])
        else:
            json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert seen[200] > count / 20 and seen[400] > count / 3 and seen[404]  # negative control
    assert not few.ended() and "Traceback" not in few.output
    assert few.post("/v1/completions", {"prompt": "the"})[0] == 200


def test_numbers_beyond_all_bounds(few: Server) -> None:
    for field in ("temperature", "top_p", "top_k", "max_tokens", "n", "seed", "logprobs"):
        for value in ("NaN", "Infinity", "-Infinity", "1e999", "-0.1", "1" + "0" * 400):
            status, data = few.post("/v1/completions", f'{{"prompt": "the", "{field}": {value}}}'.encode())
            assert status == 400 and json.loads(data)["error"]["param"] == field, (field, value)


def test_deep_nesting_half_of_a_surrogate_pair_and_a_text_that_cannot_fit(few: Server, guarded: Server) -> None:
    for depth in (500, 100_000):
        assert few.post("/v1/completions", b'{"prompt":' * depth + b"1" + b"}" * depth)[0] == 400
    status, data = guarded.post("/v1/completions", b'{"prompt": "the \\ud800 king", "echo": true}')
    assert status == 400 and "U+D800" in json.loads(data)["error"]["message"]
    for path in ("/v1/completions", "/tokenize"):  # GPT-2's tokenizer would overflow its stack with a million spaces
        status, data = few.post(path, {"prompt": " " * 1_000_000})
        assert status == 400 and json.loads(data)["error"]["code"] == "context_length_exceeded"


MALFORMED = [
    b"nonsense\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: [\r\n\r\n",
    b"GET /tokenizer_info?model=%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 200_000 + b"\r\n\r\n",
]


@pytest.mark.parametrize("head", MALFORMED, ids=lambda head: repr(head[:40]))
def test_malformed_requests(few: Server, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", few.port), timeout=PATIENCE) as connection:
        try:
            connection.sendall(head)
            connection.shutdown(socket.SHUT_WR)
            status = connection.recv(100)[9:10]
        except OSError:
            status = b""  # the connection was cut
    assert status in (b"4", b"")
    assert few.request("GET", "/health")[0] == 200 and "Traceback" not in few.output


def test_a_name_that_another_site_bound_to_this_machine_is_refused(few: Server) -> None:
    port = few.port
    for host in ("evil.example", "localhost.evil.example", f"127.0.0.1.nip.io:{port}", ":80", ""):
        assert few.request("GET", "/v1/models", host=host)[0] == 403
    for host in (f"localhost:{port}", f"LocalHost:{port}", "127.0.0.1:80", f"[::1]:{port}", "localhost", "[::1]"):
        assert few.request("GET", "/v1/models", host=host)[0] == 200


def test_a_form_of_another_site_is_refused(few: Server) -> None:
    body = json.dumps({"prompt": "the"}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        status, data = few.post("/v1/completions", body, content_type=kind, origin="http://evil.example")
        assert status == 400 and json.loads(data)["error"]["code"] == "unsupported_content_type"
    assert few.post("/v1/completions", body, content_type="Application/JSON; charset=utf-8")[0] == 200


def test_pages_of_other_sites_may_read_nothing(few: Server) -> None:
    asks = {"access_control_request_method": "POST", "access_control_request_headers": "content-type,authorization"}
    for method, path, body in (("POST", "/v1/completions", b"{}"), ("GET", "/v1/models", b""), ("OPTIONS", "/", b"")):
        headers = few.request(method, path, body, origin="http://evil.example", **asks)[2]
        assert not [name for name in headers if name.startswith("access-control-")]


def test_no_request_without_the_key_by_any_trick(guarded: Server) -> None:
    body = json.dumps({"prompt": "the", "max_tokens": 1}).encode()
    tricks = [{"authorization": value} for value in ("", "Bearer ", "Bearer", "Basic x", f"Bearer {KEY[:-1]}")]
    tricks += [{"authorization": "", "host": host} for host in ("x/health?", "x/#", "localhost", "x/page.css?")]
    for headers in tricks:
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "//v1/completions", "/health/"):
            assert guarded.post(path, body, **headers)[0] == 401, (path, headers)
        assert guarded.request("GET", "/v1/models", **headers)[0] == 401
    assert guarded.post("/v1/completions", body)[0] == 200
    assert guarded.post("/v1/completions", body, host="my-machine:1234")[0] == 200


@pytest.mark.slow
def test_kill_then_restart_on_the_same_port_then_drain(models: Path, tmp_path: Path) -> None:
    port, body = free_port(), {"prompt": "the", "seed": 1, "stream": True, "max_tokens": ENDLESS}
    flags = ["--ckpt=out", f"--max_tokens={ENDLESS}"]
    with serving(models, tmp_path / "first", *flags, port=port) as server:
        connection = server.begin("/v1/completions", body)
        assert first_chunk(connection)
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    with serving(models, tmp_path / "second", *flags, port=port) as server:
        assert server.port == port
        whole = server.begin("/v1/completions", body | {"max_tokens": 1000, "stream": False})
        stream = server.begin("/v1/completions", body | {"max_tokens": 1500})
        data = first_chunk(stream)  # the server has accepted both
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not accepts(port))
        assert not server.ended()
        data = rest(stream, data)
        assert b"data: [DONE]" in data and streamed(data) == expected(server, "the", 1, 1500)
        complete = json.loads(rest(whole).partition(b"\r\n\r\n")[2])
        assert complete["choices"][0]["text"] == expected(server, "the", 1, 1000)
        assert server.process.wait(PATIENCE) == 0
        assert server.output.endswith("Ctrl-C\nstopped\n")


def accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_a_second_signal_ends_it_at_once_and_no_prompt_was_written_anywhere(models: Path, tmp_path: Path) -> None:
    for folder in ("home", "tmp", "work"):
        (tmp_path / folder).mkdir()
    shutil.copytree(models / "out", tmp_path / "work/out")
    before = listing(tmp_path / "work")
    prompt = "kinggonekinggone"
    environment = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "sitecustomize.py").write_text("from tinygpt.use.serve import command\ncommand.DRAIN = 1000\n")
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    flags = ["--ckpt=out", f"--max_tokens={ENDLESS}"]
    with serving(tmp_path / "work", tmp_path / "log", *flags, **environment) as server:
        response = completed(server, prompt=prompt, max_tokens=300, seed=1, stop="gone gone gone")
        assert len(response) > 100
        assert server.post("/v1/completions", {"prompt": prompt, "temperature": prompt})[0] == 400
        endless = {"prompt": prompt, "max_tokens": ENDLESS}
        connections = [server.begin("/v1/completions", endless | {"stream": stream}) for stream in (True, False)]
        first_chunk(connections[0])
        server.process.send_signal(signal.SIGINT)
        until(lambda: not accepts(server.port))
        assert not server.ended()  # it waits for the two
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE) == 0
        assert server.output.endswith("Ctrl-C\nstopped\n") and "Traceback" not in server.output
    assert listing(tmp_path / "work") == before
    (tmp_path / "control").write_text(f"... {prompt} ...")
    written = {path: path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()}
    for secret in (prompt, response[40:70]):
        found = [path.name for path, content in written.items() if secret in content]
        assert found == (["control"] if secret == prompt else []), secret


def test_a_port_that_is_in_use(few: Server) -> None:
    message = refused(few.folder, "serve", "--ckpt=out", f"--port={few.port}")
    assert message.startswith(f"error: cannot listen on 127.0.0.1, port {few.port}: Address already in use")
    assert f"--port={few.port + 1}" in message


class Asked:
    """Requests to an engine in this process, and what they got."""

    def __init__(self) -> None:
        tokenizer = CharTokenizer([chr(0x100 + i) for i in range(65)])
        self.served = Served("model", tokenizer, small(block_size=256, position="rope"))
        self.engine = Engine([self.served], 8, 64)

    def begin(self, length: int, seed: int = 1, prompt: int = 5) -> tuple[Task, list[Event]]:
        got: list[Event] = []
        task = Task(self.served, list(range(prompt)), Settings(length, engines.Sampling(seed=seed)), got.append)
        self.engine.submit(task)
        return task, got

    def answer(self, length: int, seed: int = 1, prompt: int = 5) -> tuple[str, Event]:
        """The text of a request, and its last event."""
        got = self.begin(length, seed, prompt)[1]
        until(lambda: got and (isinstance(got[-1], Failed) or (isinstance(got[-1], Piece) and got[-1].finish)))
        return "".join(event.text for event in got if isinstance(event, Piece)), got[-1]


def test_cancelled_requests_give_their_memory_back() -> None:
    asked = Asked()
    tasks = [asked.begin(100_000, seed)[0] for seed in range(50)]
    until(lambda: asked.served.batch._all.keys_values.size(4) > 64)  # positions; negative control
    for task in tasks:
        task.cancelled = True
    until(lambda: asked.served.batch._all.keys_values.size(4) == 1)


def test_out_of_memory_is_the_error_of_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may happen where a prompt's cache is allocated, and where its sequence joins the batch."""
    asked = Asked()
    text, _ = asked.answer(50)
    for owner, name in ((asked.served.model, "new_cache"), (engines.BatchCache, "join")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, mock.Mock(side_effect=MemoryError))
            _, failed = asked.answer(50)
        assert isinstance(failed, Failed) and "out of memory" in failed.message
        assert asked.answer(50)[0] == text and len(text) == 50


def test_an_engine_that_dies_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a failure of a GPU, when nothing can be allocated any more."""
    asked = Asked()
    _, got = asked.begin(100_000)
    until(lambda: len(asked.served.rows) == 1)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    fails = mock.Mock(side_effect=RuntimeError("CUDA error: device-side assert triggered"))
    monkeypatch.setattr(engines, "BatchCache", fails)
    monkeypatch.setattr(asked.served.model, "next_logits", fails)
    until(lambda: not asked.engine.alive)
    assert isinstance(got[-1], Failed) and got[-1].code == "server_error"


def test_a_request_with_nan_harms_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    alone, _ = asked.answer(30, 3)
    first, _ = asked.begin(100_000)
    until(lambda: len(asked.served.rows) == 1)
    join = engines.BatchCache.join

    def with_nan(batch: engines.BatchCache, cache: Any) -> None:
        cache.keys_values.fill_(float("nan"))
        join(batch, cache)

    with monkeypatch.context() as patch:
        patch.setattr(engines.BatchCache, "join", with_nan)
        _, failed = asked.answer(50, prompt=7)
    assert isinstance(failed, Failed) and failed.code == "diverged"
    assert asked.answer(30, 3)[0] == alone != ""
    first.cancelled = True


def test_a_connection_that_sends_nothing_is_closed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "IDLE", 0.3)
    with serving_here(models, "--ckpt=out") as server:
        address = ("127.0.0.1", server.port)
        asked = HTTPConnection(*address, timeout=PATIENCE)
        with contextlib.closing(asked), socket.create_connection(address, timeout=PATIENCE) as silent:
            asked.request("GET", "/health")
            assert asked.getresponse().read() == b'{"status":"ready"}' and silent.recv(1) == b""
            asked.request("GET", "/health")  # this connection has sent a request, and stays
            assert asked.getresponse().status == 200
