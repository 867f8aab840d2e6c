"""Run clients that may conflict with other packages against tinygpt, each in a throwaway environment of its own.

    python scripts/clients.py llama                              # exported models in llama.cpp
    python scripts/clients.py serve out-fast out-compliance      # `tinygpt serve` with programs that people use
    python scripts/clients.py serve out-smollm2 --only llm,curl --keep ~/clients     # keeps the environments

llama: tests/test_llama.py with the package xllamacpp, about 100 MB. The everyday suite skips these tests.

serve: a server for each checkpoint; then curl, llm, langchain-openai, llama-index-llms-openai-like and lm-eval ask it.
The texts of all but lm-eval must be those of `tinygpt sample` on the same checkpoint: complete and streamed, greedy and
with a seed, as a completion and, if the model answers prompts, as a chat. lm-eval scores a text through its model
`local-completions`, and its loss must be that of `tinygpt eval` within 1e-4. Each prints OK and what it compared, or
what differs. Pip needs its index.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.checkpoint.resize import set_block_size
from tinygpt.checkpoint.store import load, save
from tinygpt.data.dataset import Dataset

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "curl": "",
    "llm": "llm",
    "langchain": "langchain-openai",
    "llama-index": "llama-index-llms-openai-like",
    "lm-eval": "lm-eval[api]",
}
EXACT = ["--device=cpu", "--dtype=float32"]  # bfloat16 rounds differently in batches of other sizes
PROMPTS = ["the first man", "we are not here"]
LENGTH, SEED, TEMPERATURE = 24, 5, 0.8
SCORED = 40, 400  # documents that lm-eval scores, but at most so many tokens for a large model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["llama", "serve"])
    parser.add_argument("checkpoints", nargs="*", type=Path, help="serve: run folders")
    parser.add_argument("--only", default=",".join(PACKAGES), help="serve: the clients, with commas")
    parser.add_argument("--keep", type=Path, help="a folder for the environments, used again by the next run")
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.keep or Path(temporary)).expanduser().resolve()
        if asked.what == "llama":
            return test_llama(folder)
        failures = 0
        for number, checkpoint in enumerate(asked.checkpoints):
            work = Path(temporary) / f"work{number}"
            work.mkdir()
            with serving(checkpoint.resolve(), asked.port, work) as served:
                for name in asked.only.split(","):
                    failures += not report(name, folder, served)
        return min(failures, 1)


def python_with(package: str, folder: Path) -> Path:
    """Install a package in the environment `folder`, which is made unless it exists; return its interpreter."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
    return python


def test_llama(folder: Path) -> int:
    known = {**os.environ, "TINYGPT_LLAMA_PYTHON": str(python_with("xllamacpp", folder / "llama"))}
    command = [sys.executable, "-m", "pytest", "tests/test_llama.py", "-rs", "-s"]
    return subprocess.run(command, cwd=ROOT, env=known).returncode


# ---- the server, and what it must answer ------------------------------------------------------------------------


class Served(NamedTuple):
    """A model that is served, and a folder to write in."""

    checkpoint: Path
    url: str
    name: str
    info: dict[str, Any]  # of GET /v1/models
    end: str  # the name of the token that ends an answer
    work: Path
    expected: dict[str, Any]  # what each client must find, see `expectations`


def tinygpt(*args: str, cwd: Path | None = None) -> str:
    """Run a command in a new process; returns its output."""
    done = subprocess.run([sys.executable, "-m", "tinygpt", *args], cwd=cwd, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"tinygpt {shlex.join(args)}\n{done.stderr}")
    return done.stdout


def call(url: str, body: Any = None) -> Any:
    """GET, or POST a body of JSON; returns the answer's JSON."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


@contextlib.contextmanager
def serving(checkpoint: Path, port: int, work: Path) -> Iterator[Served]:
    if not port:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tinygpt", "serve", f"--ckpt={checkpoint}", f"--port={port}", *EXACT]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=work) as process:
        try:
            while process.poll() is None:
                with contextlib.suppress(urllib.error.URLError):
                    call(f"{url}/health")
                    break
                time.sleep(0.2)
            info = call(f"{url}/v1/models")["data"][0]
            print(f"{info['id']}: {info['task']}, {info['parameters']:,} parameters, context {info['context']:,}")
            end = call(f"{url}/tokenizer_info")["eos_token"] or ""
            served = Served(checkpoint, url, info["id"], info, end, work, {})
            served.expected.update(expectations(served))
            yield served
        finally:
            process.terminate()


def expectations(served: Served) -> dict[str, Any]:
    """Texts of `tinygpt sample`, by what a client is asked for."""

    def sampled(prompt: str, *flags: str) -> str:
        fixed = [f"--ckpt={served.checkpoint}", f"--max_new_tokens={LENGTH}", f"--start={prompt}", "--json", *EXACT]
        text = str(json.loads(tinygpt("sample", *fixed, *flags, cwd=served.work))["text"])
        return text.partition(served.end)[0] if served.end else text  # the server ends a plain text there, too

    greedy, seeded = ["--temperature=0"], [f"--temperature={TEMPERATURE}", f"--seed={SEED}", "--top_k=0"]
    kinds = {"text": ["--plain"]} | ({"chat": []} if served.info["task"] == "chat" else {})
    found: dict[str, Any] = {}
    for kind, flags in kinds.items():
        found[f"{kind} greedy"] = [sampled(prompt, *flags, *greedy) for prompt in PROMPTS]
        found[f"{kind} stream"] = found[f"{kind} greedy"][0]
        found[f"{kind} seed"] = sampled(PROMPTS[0], *flags, *seeded)
    return found


def report(name: str, folder: Path, served: Served) -> bool:
    """Run a client; print OK and what was compared, or what differs."""
    try:
        compared, problems = CLIENTS[name](served, folder / name)
    except subprocess.CalledProcessError as error:
        compared, problems = "", [f"exit status {error.returncode}: {(error.stderr or error.stdout or '')[-2000:]}"]
    print(f"  {name + ':':<13}{'FAIL' if problems else 'OK'}  {compared}", flush=True)
    for problem in problems:
        print(f"    {problem}", flush=True)
    return not problems


Outcome = tuple[str, list[str]]  # what was compared, and what differs


def compare(served: Served, found: dict[str, Any]) -> Outcome:
    """Compare texts with those of `tinygpt sample`."""
    wanted = served.expected
    problems = [f"{key}: not asked for" for key in wanted.keys() - found.keys()]
    problems += [
        f"{key}: {found[key]!r} instead of {wanted.get(key)!r}" for key in found if found[key] != wanted.get(key)
    ]
    texts = [text for value in found.values() for text in ([value] if isinstance(value, str) else value)]
    return f"{', '.join(found)}: {sum(map(len, texts))} characters as tinygpt sample", problems


def output(*command: str | Path, stdin: str = "", **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        check=True,
        env=os.environ | environment,
    )
    return done.stdout


# ---- curl -------------------------------------------------------------------------------------------------------


def curl(served: Served, _: Path) -> Outcome:
    kinds = {"text": ("/v1/completions", "text"), "chat": ("/v1/chat/completions", "message")}

    def asked(kind: str, prompt: str, **more: Any) -> str:
        path, field = kinds[kind]
        given = {"prompt": prompt} if kind == "text" else {"messages": [{"role": "user", "content": prompt}]}
        body = json.dumps(given | {"model": served.name, "max_tokens": LENGTH} | more)
        header = "Content-Type: application/json"
        text = output("curl", "-sSN", "--fail-with-body", f"{served.url}{path}", "-H", header, "-d", body)
        if not more.get("stream"):
            answer = json.loads(text)["choices"][0][field]
            return str(answer if kind == "text" else answer["content"])
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        choices = [json.loads(line)["choices"][0] for line in lines]
        return "".join(one["text"] if kind == "text" else one["delta"].get("content", "") for one in choices)

    found: dict[str, Any] = {}
    for kind in sorted({key.split()[0] for key in served.expected}, reverse=True):
        found[f"{kind} greedy"] = [asked(kind, prompt, temperature=0) for prompt in PROMPTS]
        found[f"{kind} stream"] = asked(kind, PROMPTS[0], temperature=0, stream=True)
        found[f"{kind} seed"] = asked(kind, PROMPTS[0], temperature=TEMPERATURE, seed=SEED)
    return compare(served, found)


# ---- llm --------------------------------------------------------------------------------------------------------


def llm(served: Served, folder: Path) -> Outcome:
    program, home = python_with(PACKAGES["llm"], folder).parent / "llm", served.work / "llm"
    home.mkdir()
    entry = f'  model_name: {served.name}\n  api_base: "{served.url}/v1"\n'
    text = f"- model_id: tiny-chat\n{entry}- model_id: tiny-text\n{entry}  completion: true\n"
    (home / "extra-openai-models.yaml").write_text(text)

    def asked(kind: str, prompt: str, *flags: str, **options: Any) -> str:
        given = [word for key, value in options.items() for word in ("-o", key, str(value))]
        command = [program, "-m", f"tiny-{kind}", "-o", "max_tokens", str(LENGTH), *given, *flags, prompt]
        return output(*command, LLM_USER_PATH=str(home)).removesuffix("\n")

    found: dict[str, Any] = {}
    for kind in sorted({key.split()[0] for key in served.expected}, reverse=True):
        found[f"{kind} greedy"] = [asked(kind, prompt, "--no-stream", temperature=0) for prompt in PROMPTS]
        found[f"{kind} stream"] = asked(kind, PROMPTS[0], temperature=0)
        found[f"{kind} seed"] = asked(kind, PROMPTS[0], temperature=TEMPERATURE, seed=SEED)
    return compare(served, found)


# ---- langchain and LlamaIndex -----------------------------------------------------------------------------------

LANGCHAIN = """
import json, sys
from langchain_openai import ChatOpenAI, OpenAI
asked = json.load(sys.stdin)
found = {}
for kind in asked["kinds"]:
    kindly = OpenAI if kind == "text" else ChatOpenAI
    read = (lambda answer: answer) if kind == "text" else (lambda answer: answer.content)
    known = dict(base_url=asked["url"], api_key="none", model=asked["model"], max_tokens=asked["length"])
    greedy = kindly(temperature=0, **known)
    seeded = kindly(temperature=asked["temperature"], seed=asked["seed"], **known)
    found[kind + " greedy"] = [read(answer) for answer in greedy.batch(asked["prompts"])]
    found[kind + " stream"] = "".join(read(chunk) for chunk in greedy.stream(asked["prompts"][0]))
    found[kind + " seed"] = read(seeded.invoke(asked["prompts"][0]))
    if kind == "chat":
        told = greedy.bind(logprobs=True).invoke(asked["prompts"][0])
        tokens = told.response_metadata["logprobs"]["content"]
        assert "".join(token["token"] for token in tokens).startswith(told.content)
        assert told.usage_metadata["output_tokens"] == len(tokens), (told.usage_metadata, tokens)
        chunks = list(greedy.bind(stream_options={"include_usage": True}).stream(asked["prompts"][0]))
        assert [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata] == [told.usage_metadata]
print(json.dumps(found))
"""
LLAMA_INDEX = """
import asyncio, json, sys
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
asked = json.load(sys.stdin)
found = {}
for kind in asked["kinds"]:
    known = dict(api_base=asked["url"], api_key="none", model=asked["model"], max_tokens=asked["length"])
    known |= dict(is_chat_model=kind == "chat", context_window=asked["context"])
    greedy = OpenAILike(temperature=0, **known)
    seeded = OpenAILike(temperature=asked["temperature"], additional_kwargs={"seed": asked["seed"]}, **known)
    first, *_ = asked["prompts"]
    async def several(): return await asyncio.gather(*(greedy.acomplete(prompt) for prompt in asked["prompts"]))
    found[kind + " greedy"] = [answer.text for answer in asyncio.run(several())]
    found[kind + " stream"] = "".join(chunk.delta or "" for chunk in greedy.stream_complete(first))
    found[kind + " seed"] = seeded.complete(first).text
    if kind == "chat":
        message = [ChatMessage(role="user", content=first)]
        assert greedy.chat(message).message.content == found["chat stream"]
        assert "".join(chunk.delta or "" for chunk in greedy.stream_chat(message)) == found["chat stream"]
print(json.dumps(found))
"""


def program_in(package: str, program: str, served: Served, folder: Path) -> Outcome:
    """Run a program that reads what to ask, and prints what was answered."""
    asked = {
        "url": f"{served.url}/v1",
        "model": served.name,
        "kinds": sorted({key.split()[0] for key in served.expected}, reverse=True),
        "prompts": PROMPTS,
        "length": LENGTH,
        "temperature": TEMPERATURE,
        "seed": SEED,
        "context": served.info["context"],
    }
    text = output(python_with(PACKAGES[package], folder), "-c", program, stdin=json.dumps(asked))
    return compare(served, json.loads(text.splitlines()[-1]))


def langchain(served: Served, folder: Path) -> Outcome:
    return program_in("langchain", LANGCHAIN, served, folder)


def llama_index(served: Served, folder: Path) -> Outcome:
    return program_in("llama-index", LLAMA_INDEX, served, folder)


# ---- lm-eval ----------------------------------------------------------------------------------------------------

TASK = """
task: tiny_loss
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: context
doc_to_target: continuation
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def lm_eval(served: Served, folder: Path) -> Outcome:
    """Score a text as documents, and compare with `tinygpt eval` on the same targets, each with the same context.

    A document is one token of context and the tokens that are scored. It must fit the model's context as a whole,
    because a server returns log probabilities of a prompt's tokens only. In a row of `tinygpt eval`, however, only the
    inputs must fit: it scores block_size tokens. So it evaluates a copy of the model with a context that is one token
    shorter, which changes nothing but the rows. A text that is one document gets a context of its own length.
    """
    width = served.info["context"] - 1
    text = own_text(served, width)
    # `prepare` takes the validation split from the end, so the training split is another copy of the text
    (served.work / "text.txt").write_text(text * 2, encoding="utf-8", newline="")
    flags = ["--input=text.txt", f"--tokenizer={served.checkpoint}", "--val_fraction=0.5"]
    tinygpt("prepare", "scored", *flags, cwd=served.work)
    dataset = Dataset(str(served.work / "data"), "scored")
    tokens, decode = dataset.splits["val"].tolist(), dataset.tokenizer.decode
    rows = [tokens[at : at + width + 1] for at in range(0, len(tokens) - 1, width)]
    documents = [(decode(row[:1]), decode(row[1:])) for row in rows]
    for row, pair in zip(rows, documents, strict=True):
        assert call(f"{served.url}/tokenize", {"prompt": "".join(pair)})["tokens"] == row, "it has other tokens"
    checkpoint = with_context(served, min(width, len(tokens) - 1))
    flags = ["--dataset=scored", f"--ckpt={checkpoint}", "--json", *EXACT]
    known = json.loads(tinygpt("eval", *flags, cwd=served.work))

    lines = [json.dumps({"context": context, "continuation": rest}) for context, rest in documents]
    (served.work / "documents.jsonl").write_text("\n".join(lines) + "\n")
    (served.work / "task").mkdir()
    (served.work / "task/tiny_loss.yaml").write_text(TASK.format(file=served.work / "documents.jsonl"))
    arguments = f"model={served.name},base_url={served.url}/v1/completions,tokenizer_backend=remote"
    arguments += f",max_length={served.info['context'] + 1},num_concurrent=4,max_retries=1"  # it takes one off
    python = python_with(PACKAGES["lm-eval"], folder)
    output(
        *(python, "-m", "lm_eval", "--model=local-completions", f"--model_args={arguments}", "--tasks=tiny_loss"),
        *(f"--include_path={served.work / 'task'}", f"--output_path={served.work / 'scores'}", "--log_samples"),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_CACHE=str(served.work / "cache"),
    )
    (file,) = (served.work / "scores").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    total = -sum(float(sample["filtered_resps"][0][0]) for sample in samples)
    loss, tokens = total / known["tokens"], known["tokens"]
    compared = f"loss {loss:.6f} of {tokens:,} tokens in {len(samples)} documents; tinygpt eval {known['loss']:.6f}"
    wrong = abs(loss - known["loss"]) > 1e-4 or len(samples) != len(documents)
    return compared, ["the losses differ"] if wrong else []


def own_text(served: Served, width: int) -> str:
    """A text that the model wrote, so that its tokenizer knows all characters.

    No row begins with a blank, which lm-eval would move from a document's context into what it scores.
    """
    large = served.info["parameters"] > 20_000_000
    length = SCORED[1] if large else SCORED[0] * width
    flags = [
        f"--ckpt={served.checkpoint}",
        "--plain",
        "--temperature=1",
        f"--max_new_tokens={length}",
        "--json",
        *EXACT,
    ]
    text = str(json.loads(tinygpt("sample", *flags, f"--start={PROMPTS[0]}", cwd=served.work))["text"])
    text = re.sub(r"<\|\w*\|>", "", text).strip()
    if large:
        return text
    letter = next(character for character in text if character.isalpha())
    return "".join(letter if not n % width and one.isspace() else one for n, one in enumerate(text))


def with_context(served: Served, block_size: int) -> Path:
    """A copy of the checkpoint with a shorter context."""
    checkpoint = load(served.checkpoint)
    model = checkpoint.build_model()
    set_block_size(model, block_size)
    path = served.work / "shorter/ckpt.pt"
    path.parent.mkdir()
    changed = {"model": model.state_dict(), "model_args": dataclasses.asdict(model.config)}
    save(path, dataclasses.replace(checkpoint, **changed))
    return path


CLIENTS = {"curl": curl, "llm": llm, "langchain": langchain, "llama-index": llama_index, "lm-eval": lm_eval}

if __name__ == "__main__":
    raise SystemExit(main())
