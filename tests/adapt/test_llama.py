"""Exported GGUF files in llama.cpp's own server: the same tokens, log probabilities, texts and answers.

The server is that of the package xllamacpp, which may conflict with others. These tests are skipped where neither this
interpreter nor the one that TINYGPT_LLAMA_PYTHON names, of an environment of its own, can import it.
"""

import contextlib
import functools
import json
import os
import random
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATIENCE, ok
from inputs import json_lines
from models import largest, shaken, small
from published import ROWS, TEXT, characters, logits, model, pretrained_file, rebuilt, stock_of

from tinygpt.adapt.formats.gguf_file import read_file, write_file
from tinygpt.adapt.formats.gguf_tokenizer import PRE
from tinygpt.checkpoint.store import load
from tinygpt.data.tokenizer import CharTokenizer, GPT2Tokenizer, HuggingFaceTokenizer, tokenizer_from_dict
from tinygpt.model import GPT

SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port, params.verbosity = sys.argv[1], 0, 1, 0, -1
params.warmup, params.use_jinja, params.cpuparams.n_threads = False, True, 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
print("ADDRESS", server.listening_address, flush=True)
sys.stdin.read()
"""


@functools.lru_cache(maxsize=1)
def python_of_llama() -> str:
    """A Python that can import xllamacpp, or an empty string."""
    for python in (os.environ.get("TINYGPT_LLAMA_PYTHON"), sys.executable):
        if python and subprocess.run([python, "-c", "import xllamacpp"], capture_output=True).returncode == 0:
            return python
    return ""


@pytest.fixture(autouse=True)
def needs_llama() -> None:
    if not python_of_llama():
        pytest.skip("xllamacpp is not installed: see the head of this file")


class Server:
    def __init__(self, address: str) -> None:
        self.address = address

    def post(self, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def ids(self, text: str) -> list[int]:
        return list(self.post("/tokenize", content=text, add_special=False, parse_special=False)["tokens"])

    def log_probs(self, prompt: list[int], size: int) -> torch.Tensor:
        """Log probabilities of the token that follows the prompt, (size,)."""
        answer = self.post("/completion", prompt=prompt, n_predict=1, n_probs=size, temperature=-1, cache_prompt=False)
        found = torch.full((size,), torch.nan)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found


@contextlib.contextmanager
def serving(path: Path) -> Iterator[Server]:
    command = [python_of_llama(), "-c", SERVER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            address = next((line for line in process.stdout if line.startswith("ADDRESS")), "ADDRESS none").split()[1]
            assert address.startswith("http"), "llama.cpp does not load the file"
            yield Server(address)
        finally:
            process.stdin.close()


def expected(gpt: GPT, prompt: list[int]) -> torch.Tensor:
    return logits(gpt, torch.tensor([prompt]))[0, -1].log_softmax(-1)


CASES = [*((name, "f16", 5e-3) for name in ROWS), ("gpt2-bias", "q8_0", 0.1), ("llama-grouped", "q8_0", 0.1)]


@pytest.mark.parametrize(("name", "quantisation", "most"), CASES)
def test_log_probabilities_and_greedy_text(tmp_path: Path, name: str, quantisation: str, most: float) -> None:
    """llama.cpp multiplies 8-bit weights with activations that it quantises to 8 bits too."""
    gpt, size = model(**ROWS[name]), characters().vocab_size
    write_file(tmp_path / "model.gguf", stock_of(gpt), characters(), quantisation)
    same = rebuilt(read_file(tmp_path / "model.gguf").stock)
    generator = random.Random(0)
    with serving(tmp_path / "model.gguf") as server:
        for length in (1, 2, 7, 20, 50):
            prompt = generator.choices(range(size), k=length)
            wanted, found = expected(same, prompt), server.log_probs(prompt, size)
            assert largest(found - wanted) < most
            missed = wanted.max() - wanted[found.argmax()]
            assert missed == 0 if quantisation == "f16" else missed < 0.1
        answer = server.post("/completion", prompt=prompt[:5], n_predict=20, temperature=0, return_tokens=True)
    if quantisation == "f16":
        ids = prompt[:5]
        while len(ids) < 5 + len(answer["tokens"]):
            ids.append(int(expected(same, ids).argmax()))
        assert answer["tokens"] == ids[5:] and len(ids) > 5
        assert largest(expected(shaken(gpt), prompt) - wanted) > 0.1  # negative control: another model


def test_characters_are_the_same_tokens(tmp_path: Path) -> None:
    for mine in (CharTokenizer(sorted(set(TEXT))), CharTokenizer(sorted({c for c in TEXT if c < "\x7f"}))):
        write_file(tmp_path / "model.gguf", stock_of(small(vocab_size=mine.vocab_size, **ROWS["llama"])), mine, "f16")
        with serving(tmp_path / "model.gguf") as server:
            for sample in (TEXT, TEXT[::-1], TEXT * 3, "\n", "unknown: ÿ“"):
                assert server.ids(sample) == mine.encode(sample, skip_unknown=True).tolist()
            known = mine.encode(TEXT, skip_unknown=True).tolist()
            assert server.post("/detokenize", tokens=known)["content"] == mine.decode(known)


def test_a_fine_tuned_model_answers_in_the_chat_endpoint(tmp_path: Path) -> None:
    colours = ["red", "green", "blue"]
    json_lines(tmp_path, [{"prompt": f"{colours[n % 3]} {n:03}?", "response": colours[n % 3]} for n in range(300)])
    ok(tmp_path, "prepare", "colours", "--input=pairs.jsonl", "--format=pairs")
    flags = ["--n_layer=1", "--n_head=2", "--n_embd=64", "--block_size=32", "--batch_size=16", "--device=cpu"]
    flags += ["--position=rope", "--norm=rmsnorm", "--activation=swiglu", "--mlp_width=96", "--learning_rate=1e-2"]
    flags += ["--max_iters=150", "--eval_interval=150", "--dataset=colours", "--quiet"]
    ok(tmp_path, "train", *flags)
    checkpoint = load(tmp_path / "out/ckpt.pt")
    stock = stock_of(checkpoint.build_model())
    write_file(tmp_path / "model.gguf", stock, tokenizer_from_dict(checkpoint.tokenizer, "ckpt.pt"), "q8_0")
    with serving(tmp_path / "model.gguf") as server:
        for colour in colours:
            messages = [{"role": "user", "content": f"{colour} 123?"}]
            answer = server.post("/v1/chat/completions", messages=messages, temperature=0, max_tokens=20)
            assert answer["choices"][0]["message"]["content"] == colour
            assert answer["choices"][0]["finish_reason"] == "stop"


WORDS = "the of I'm don't we'LL Straße naïve Ωμέγα привет мир 你好，世界 こんにちは 한국어 שלום مرحبا हिन्दी ไทย café ﬁn"
WORDS += " x+=1; return(a[i]); def_f(self): <div> {}-> // ## 0x1F 3.14159 1234567 ½ ² Ⅷ ٣ £5 100% #tag @you 'tis"
WORDS += " 😀 👩\u200d👩\u200d👧 🇬🇧 ✓ … — “quoted” ''' <|im_end|> <|endoftext|>"
WORDS += " \u00a0 \u3000 a\u0301 \u200b \x07 \u2581"


def mixed_lines(count: int) -> list[str]:
    """Text in several scripts, code, digits, emoji, runs of blanks, carriage returns and names of special tokens."""
    generator = random.Random(5)
    words = WORDS.split(" ")
    blanks = [" "] * 12 + ["", "  ", "    ", "\t", " \t ", "\r\n", "\n\n", "\r"]
    lines = []
    for _ in range(count):
        line = generator.choice(["", "", "    ", "\t", " "])
        for _ in range(generator.randrange(12)):
            line += generator.choice(words) + generator.choice(blanks)
        lines.append(line + generator.choice(["", "", " ", "\r"]))
    return lines


def differing(server: Server, encode: Any, lines: list[str]) -> list[str]:
    """Texts of a hundred lines with other ids here than in llama.cpp."""
    texts = ["\n".join(lines[at : at + 100]) for at in range(0, len(lines), 100)]
    return [text for text in texts if server.ids(text) != encode(text)]


def test_gpt2_tokenizer(tmp_path: Path) -> None:
    gpt2 = GPT2Tokenizer()
    stock = stock_of(small(vocab_size=50304, **ROWS["gpt2"]))  # padded, as nanoGPT does
    write_file(tmp_path / "model.gguf", stock, gpt2, "q8_0")
    with serving(tmp_path / "model.gguf") as server:
        assert not differing(server, lambda text: gpt2.encode(text).tolist(), mixed_lines(1000))


@pytest.mark.parametrize("pre", PRE)
def test_pre_tokenizers(tmp_path: Path, pre: str) -> None:
    """Each cuts texts as llama.cpp does, with the vocabulary of SmolLM2."""
    import tokenizers

    pretrained = read_file(pretrained_file())
    spec = json.loads(pretrained.tokenizer_json)
    spec["pre_tokenizer"]["pretokenizers"] = PRE[pre]
    spec["model"]["ignore_merges"] = pre == "llama-bpe"
    stock = stock_of(small(vocab_size=len(spec["model"]["vocab"]), **ROWS["llama"]))
    write_file(tmp_path / "model.gguf", stock, HuggingFaceTokenizer(json.dumps(spec)), "q8_0")
    again = read_file(tmp_path / "model.gguf")
    encoding = tokenizers.Tokenizer.from_str(again.tokenizer_json)
    encoding.encode_special_tokens = True
    encoding.normalizer = None  # llama.cpp has none
    with serving(tmp_path / "model.gguf") as server:
        assert not differing(server, lambda text: encoding.encode(text).ids, mixed_lines(1000))
        assert differing(server, lambda text: encoding.encode(text.lower()).ids, mixed_lines(100))  # negative control
