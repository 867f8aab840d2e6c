"""Measure servers of OpenAI's protocol on this machine: throughput, time to the first token and between tokens.

    python scripts/bench_serve.py http://127.0.0.1:8000 --tokens 100                     # a server that runs already
    python scripts/bench_serve.py --tiny out/ckpt.pt --large out-smollm2                 # tinygpt, started here
    python scripts/bench_serve.py --large out-smollm2 --python ~/others/bin/python       # and transformers, llama.cpp
    python scripts/bench_serve.py --tiny out/ckpt.pt --overhead --many 10000             # cost of the protocol; memory

Each number of clients sends its requests, streamed, one after another; the prompts differ, so no server can reuse one.
The servers are measured in turn, and in two rounds, on the same machine; the better round counts. The load generator
shares the machine's cores with the server. --python names an environment with the packages transformers[serving] and
xllamacpp; they serve the same weights, exported by tinygpt. Tables are printed in Markdown.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LLAMA = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
params.n_ctx, params.cpuparams.n_threads = 512 * params.n_parallel, int(sys.argv[4])
server = xllamacpp.Server(params)
print("listening", flush=True)
time.sleep(1e9)
"""


# ---- one request ------------------------------------------------------------------------------------------------


class Timed(NamedTuple):
    """What a request measured, in seconds."""

    first: float  # to the first token
    gaps: list[float]  # between tokens
    total: float
    tokens: int


async def ask(host: str, port: int, model: str, prompt: str, tokens: int, chat: bool) -> Timed:
    """Send a request, and time each chunk of the stream."""
    body = {"model": model, "max_tokens": tokens, "temperature": 1.0, "stream": True, "seed": 1}
    body |= {"stream_options": {"include_usage": True}}
    body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    data = json.dumps(body).encode()
    path = "/v1/chat/completions" if chat else "/v1/completions"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    times, made, status = list[float](), 0, await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status.decode().strip()}: {(await reader.read(4000)).decode(errors='replace')}")
    async for line in reader:
        if re.search(rb'"(text|content)": ?"[^"]', line):
            times.append(time.perf_counter())
        if usage := re.search(rb'"completion_tokens": ?(\d+)', line):
            made = int(usage[1])
        if b"[DONE]" in line:
            break
    writer.close()
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return Timed(times[0] - began, gaps, times[-1] - began, made or len(times))


class Level(NamedTuple):
    """A server under a number of clients."""

    clients: int
    requests_per_second: float
    tokens_per_second: float
    first: list[float]
    gaps: list[float]


async def load(url: str, model: str, clients: int, requests: int, tokens: int, chat: bool) -> Level:
    """Send `requests` requests from so many clients."""
    host, port = url.removeprefix("http://").split(":")
    left, done = list(range(requests)), list[Timed]()

    async def client() -> None:
        while left:
            number = left.pop()
            prompt = f"{number} " * 2 + ("What is a bond?" if chat else "ROMEO: What is")
            done.append(await ask(host, int(port), model, prompt if chat else prompt.translate(LETTERS), tokens, chat))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - began
    made = sum(one.tokens for one in done)
    gaps = [gap for one in done for gap in one.gaps]
    return Level(clients, len(done) / seconds, made / seconds, [one.first for one in done], gaps)


LETTERS = str.maketrans("0123456789", "abcdefghij")  # a model of characters may not know digits


def percentiles(values: list[float]) -> str:
    """Compute the 50th, 95th and 99th percentile, in milliseconds."""
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return " / ".join(f"{1000 * cuts[p - 1]:.3g}" for p in (50, 95, 99))


def table(levels: dict[str, list[Level]]) -> str:
    """Format the levels of each server."""
    lines = [
        "| server | clients | requests/s | tokens/s | first token, ms (p50 / p95 / p99) | between tokens, ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, some in levels.items():
        for one in some:
            rates = f"{one.requests_per_second:.3g} | {one.tokens_per_second:,.0f}"
            lines.append(f"| {name} | {one.clients} | {rates} | {percentiles(one.first)} | {percentiles(one.gaps)} |")
    return "\n".join(lines)


# ---- servers ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(command: list[str], port: int, path: str = "/health") -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a server, and wait until it answers."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(url + path, timeout=5).read()
                    break
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(log.read().decode(errors="replace")[-2000:])
                time.sleep(0.5)
            yield url, process
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def tinygpt_server(ckpt: str, port: int, *flags: str) -> list[str]:
    command = [sys.executable, "-m", "tinygpt", "serve", f"--ckpt={ckpt}", f"--port={port}", "--max_queue=10000"]
    return [*command, *flags]


def exported(ckpt: str, folder: Path) -> tuple[Path, Path]:
    """Export the model as a folder for transformers, and as a GGUF file in 16 bits for llama.cpp."""
    hugging, gguf = folder / "hf", folder / "model.gguf"
    for target, flags in ((hugging, ["--format=hf"]), (gguf, ["--format=gguf", "--quantisation=f16"])):
        command = [sys.executable, "-m", "tinygpt", "export", f"--ckpt={ckpt}", f"--output={target}", *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return hugging, gguf


def memory(process: subprocess.Popen[bytes]) -> float:
    """Measure the memory of a process in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


# ---- measurements -----------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace, ckpt: str, chat: bool, tokens: int) -> None:
    """Measure all servers of a model, in two rounds."""
    servers: dict[str, tuple[list[str], int, str]] = {}
    port = free_port()
    servers["tinygpt"] = tinygpt_server(ckpt, port), port, "/health"
    with tempfile.TemporaryDirectory() as folder:
        if args.python:
            hugging, gguf = exported(ckpt, Path(folder))
            port, threads = free_port(), str(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
            servers["llama.cpp"] = [args.python, "-c", LLAMA, str(gguf), str(port), "16", threads], port, "/health"
            port = free_port()
            command = [str(Path(args.python).parent / "transformers"), "serve", str(hugging), f"--port={port}"]
            servers["transformers"] = [*command, "--device=cpu", "--dtype=bfloat16"], port, "/health"
        names = {"transformers": str(Path(folder) / "hf")}
        best: dict[str, list[Level]] = {}
        for _ in range(args.rounds):
            for name, (command, port, path) in servers.items():
                try:
                    with running(command, port, path) as (url, _):
                        model = names.get(name, "")
                        asyncio.run(load(url, model, 1, 1, 4, chat))  # warm-up
                        found = [
                            asyncio.run(load(url, model, n, args.requests * n, tokens, chat)) for n in args.clients
                        ]
                except RuntimeError as error:
                    print(f"{name}: {error}", file=sys.stderr)
                    continue
                old = best.get(name, found)
                best[name] = [
                    max(pair, key=lambda level: level.tokens_per_second) for pair in zip(old, found, strict=True)
                ]
        print(f"\n{ckpt}, {tokens} tokens for each request:\n\n{table(best)}")


async def unstreamed(url: str, clients: int, requests: int, tokens: int) -> float:
    """Measure tokens per second of requests without a stream."""
    host, port = url.removeprefix("http://").split(":")
    left = list(range(requests))

    async def client() -> None:
        while left:
            data = json.dumps({"prompt": "ROMEO:", "max_tokens": tokens, "seed": left.pop()}).encode()
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
            answer = await reader.read()
            assert b" 200 " in answer[:20], answer[:500]
            writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return requests * tokens / (time.perf_counter() - began)


def batching(args: argparse.Namespace) -> None:
    """Measure the gain of decoding 16 requests together, compared with one at a time, in alternating rounds."""
    ratios, port = [], free_port()
    with running(tinygpt_server(args.tiny, port), port) as (url, _):
        for _ in range(5):
            alone = asyncio.run(unstreamed(url, 1, 4, 200))
            together = asyncio.run(unstreamed(url, 16, 64, 200))
            ratios.append(together / alone)
            print(f"one at a time {alone:,.0f} tokens/s, 16 together {together:,.0f}: {ratios[-1]:.1f} times")
    print(f"batching: {statistics.median(ratios):.1f} times the tokens per second (median of {len(ratios)})")


def overhead(args: argparse.Namespace) -> None:
    """The cost of server and protocol: a streamed token, compared with the engine's own step in this process."""
    from tinygpt import device
    from tinygpt.checkpoint.adapter import load_model
    from tinygpt.checkpoint.store import tokenizer_of
    from tinygpt.generate import Sampling
    from tinygpt.serve.engine import Prefill, Row, Served, Settings, Task

    checkpoint = load_model(args.tiny)
    compute = device.choose_for_inference("cpu", "auto", checkpoint.num_params)
    served = Served("", tokenizer_of(checkpoint, args.tiny, "data"), checkpoint.for_inference(compute, "False"))

    def steps() -> float:
        task = Task(served, [1], Settings(300, Sampling(seed=1)), lambda event: None)
        served.prefills.append(Prefill([Row(task, 0)], task.prompt, False))
        began = time.perf_counter()
        while served.busy():
            served.step()
        return (time.perf_counter() - began) / 300

    port, costs = free_port(), []
    with running(tinygpt_server(args.tiny, port, "--device=cpu"), port) as (url, _):
        asyncio.run(load(url, "", 1, 1, 50, False))
        for _ in range(7):
            own = steps()
            level = asyncio.run(load(url, "", 1, 1, 300, False))
            costs.append(1 / level.tokens_per_second - own)
    print(f"protocol: {1000 * statistics.median(costs):.2f} ms for each streamed token (median of {len(costs)})")


def many(args: argparse.Namespace) -> None:
    """Measure the memory over many requests, some of whose clients leave in the middle."""
    port = free_port()
    with running(tinygpt_server(args.tiny, port), port) as (url, process):
        for done in range(0, args.many + 1, max(1, args.many // 10)):
            print(f"{done:,} requests: {memory(process):.0f} MB", flush=True)
            if done < args.many:
                asyncio.run(unstreamed(url, 16, max(1, args.many // 10), 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="")
    parser.add_argument("--model", default="", help="its name at the server")
    parser.add_argument("--tiny", default="", help="a checkpoint that continues text")
    parser.add_argument("--large", default="", help="a checkpoint that answers prompts")
    parser.add_argument("--python", default="", help="the Python of an environment with the other servers")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=2, help="for each client")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--many", type=int, default=0)
    args = parser.parse_args()
    if args.url:
        levels = [
            asyncio.run(load(args.url.rstrip("/"), args.model, n, args.requests * n, args.tokens, args.chat))
            for n in args.clients
        ]
        print(table({args.model or "server": levels}))
    elif args.overhead or args.many:
        if args.overhead:
            batching(args)
            overhead(args)
        if args.many:
            many(args)
    else:
        if args.tiny:
            compare(args, args.tiny, False, args.tokens)
        if args.large:
            compare(args, args.large, True, args.tokens)


if __name__ == "__main__":
    main()
