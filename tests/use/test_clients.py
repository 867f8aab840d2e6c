"""Programs that people use with `tinygpt serve` get the texts of `tinygpt sample`: complete and streamed, greedy and
with a seed, as a completion and as a chat. lm-eval gets the log probabilities of the model.

Those that are not installed are skipped. They may conflict with other packages; TINYGPT_CLIENTS_PYTHON names the Python
of another environment: pip install llm langchain-openai llama-index-llms-openai-like "lm-eval[api]"
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import Server, events, sampled, serving_here

from tinygpt.checkpoint.adapter import load_model
from tinygpt.data.tokenizer import tokenizer_from_dict

pytestmark = pytest.mark.slow
PYTHON = os.environ.get("TINYGPT_CLIENTS_PYTHON") or sys.executable
MODELS = {"text": ("out", "the kin", ["--plain"]), "chat": ("out-colours", "007 red", [])}  # and a prompt
GREEDY, SEEDED = {"temperature": 0}, {"temperature": 0.8, "seed": 5}
LANGCHAIN = """
from langchain_openai import ChatOpenAI, OpenAI
kind = OpenAI if asked["kind"] == "text" else ChatOpenAI
read = (lambda answer: answer) if asked["kind"] == "text" else (lambda answer: answer.content)
known = dict(base_url=asked["url"], api_key="none", model=asked["model"], max_tokens=24)
greedy, seeded = kind(temperature=0, **known), kind(temperature=0.8, seed=5, **known)
found = [read(greedy.invoke(asked["prompt"])), "".join(map(read, greedy.stream(asked["prompt"])))]
found += [read(seeded.invoke(asked["prompt"]))]
if asked["kind"] == "chat":
    told = greedy.bind(logprobs=True).invoke(asked["prompt"])
    tokens = told.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens).startswith(told.content)
    assert told.usage_metadata["output_tokens"] == len(tokens), (told.usage_metadata, tokens)
"""
LLAMA_INDEX = """
from llama_index.llms.openai_like import OpenAILike
known = dict(api_base=asked["url"], api_key="none", model=asked["model"], max_tokens=24, context_window=16)
known |= dict(is_chat_model=asked["kind"] == "chat")
greedy = OpenAILike(temperature=0, **known)
seeded = OpenAILike(temperature=0.8, additional_kwargs={"seed": 5}, **known)
found = [greedy.complete(asked["prompt"]).text]
found += ["".join(chunk.delta or "" for chunk in greedy.stream_complete(asked["prompt"]))]
found += [seeded.complete(asked["prompt"]).text]
"""


def output(*command: str | Path, stdin: str = "", **variables: str) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8", env=os.environ | variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(module: str) -> None:
    if subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode:
        pytest.skip(f"{module} is not installed")


Texts = list[str]  # greedy, greedy as a stream, with a seed


def curl(server: Server, kind: str, model: str, prompt: str, _: Path) -> Texts:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    path = "completions" if kind == "text" else "chat/completions"
    given = {"prompt": prompt} if kind == "text" else {"messages": [{"role": "user", "content": prompt}]}

    def asked(**more: Any) -> str:
        body = json.dumps(given | {"model": model, "max_tokens": 24} | more)
        return output("curl", "-sSN", "-H", "Content-Type: application/json", "-d", body, f"{server.url}v1/{path}")

    def read(choice: dict[str, Any]) -> str:
        return str(choice["text"] if kind == "text" else (choice.get("message") or choice["delta"]).get("content", ""))

    stream = events(asked(**GREEDY, stream=True).encode())[:-1]
    greedy, seeded = (read(json.loads(asked(**more))["choices"][0]) for more in (GREEDY, SEEDED))
    return [greedy, "".join(read(chunk["choices"][0]) for chunk in stream), seeded]


def llm(server: Server, kind: str, model: str, prompt: str, folder: Path) -> Texts:
    needs("llm")
    entry = f'- model_id: tiny\n  model_name: {model}\n  api_base: "{server.url}v1"\n'
    (folder / "extra-openai-models.yaml").write_text(entry + "  completion: true\n" * (kind == "text"))
    base = [PYTHON, "-m", "llm", "-m", "tiny", "-o", "max_tokens", "24"]
    seeded = ["--no-stream", "-o", "temperature", "0.8", "-o", "seed", "5"]
    flags = [["--no-stream", "-o", "temperature", "0"], ["-o", "temperature", "0"], seeded]
    return [output(*base, *more, prompt, LLM_USER_PATH=str(folder)).removesuffix("\n") for more in flags]


def python(module: str, code: str) -> Callable[..., Texts]:
    """A program that gets `asked` and makes `found`."""

    def texts(server: Server, kind: str, model: str, prompt: str, _: Path) -> Texts:
        needs(module)
        asked = {"url": f"{server.url}v1", "kind": kind, "model": model, "prompt": prompt}
        program = f"import json, sys\nasked = json.load(sys.stdin)\n{code}\nprint(json.dumps(found))"
        found: Texts = json.loads(output(PYTHON, "-c", program, stdin=json.dumps(asked)).splitlines()[-1])
        return found

    return texts


CLIENTS = {"curl": curl, "llm": llm}
CLIENTS |= {"langchain": python("langchain_openai", LANGCHAIN), "llama-index": python("llama_index.llms", LLAMA_INDEX)}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_the_text_of_sample(client: str, kind: str, models: Path, tmp_path: Path) -> None:
    model, prompt, flags = MODELS[kind]
    with serving_here(models, f"--ckpt={model}") as server:
        found = CLIENTS[client](server, kind, model, prompt, tmp_path)
    flags = [f"--ckpt={model}", "--max_new_tokens=24", *flags]
    greedy = sampled(models, prompt, *flags, "--temperature=0")
    seeded = sampled(models, prompt, *flags, "--temperature=0.8", "--seed=5", "--top_k=0")
    assert greedy and found == [greedy, greedy, seeded]


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


def test_lm_eval_gets_the_log_probabilities_of_the_model(models: Path, tmp_path: Path) -> None:
    """Of documents that fit the context; no continuation begins with a blank, which lm-eval would move."""
    needs("lm_eval")
    documents = [("t", "he king"), ("a", "nd"), ("the", "n he")]
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"context": a, "continuation": b}) + "\n" for a, b in documents))
    (tmp_path / "task").mkdir()
    (tmp_path / "task/tiny_loss.yaml").write_text(TASK.format(file=file))
    with serving_here(models, "--ckpt=out") as server:
        arguments = (
            f"model=out,base_url={server.url}v1/completions,tokenizer_backend=remote,max_length=17,max_retries=1"
        )
        command = [PYTHON, "-m", "lm_eval", "--model=local-completions", f"--model_args={arguments}"]
        command += ["--tasks=tiny_loss", f"--include_path={tmp_path / 'task'}", "--log_samples"]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        output(*command, f"--output_path={tmp_path / 'scores'}", **offline)
    (scores,) = (tmp_path / "scores").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in scores.read_text().splitlines()]
    found = {sample["doc"]["continuation"]: float(sample["filtered_resps"][0][0]) for sample in samples}

    checkpoint = load_model(str(models / "out"))
    tokenizer = tokenizer_from_dict(checkpoint.tokenizer, "out")
    for context, rest in documents:
        ids = torch.tensor(tokenizer.encode(context + rest).astype("int64"))[None]
        with torch.no_grad():
            logits = checkpoint.build_model().eval()(ids)[0]
        known = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[len(context) - 1 :].sum()
        assert found[rest] == pytest.approx(float(known), abs=1e-3)
