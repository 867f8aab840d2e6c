"""Short runs of each kind: fine-tuned, imported, in several processes; and what they have printed."""

import functools
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from children import Child, nothing, ranks
from conftest import GERMAN, PATIENCE, Lazy, Shared, ok, tiny_text
from inputs import json_lines
from models import shaken, small

from tinygpt.checkpoint import lora
from tinygpt.checkpoint.lora import LoRA
from tinygpt.checkpoint.resize import grow_vocabulary
from tinygpt.checkpoint.store import load
from tinygpt.model import GPT
from tinygpt.training.log import read_metrics

FLAGS = [
    *("--ckpt=out/ckpt.pt", "--dataset=colours", "--device=cpu", "--dtype=float32", "--compile=False", "--quiet"),
    *("--batch_size=8", "--max_iters=40", "--lr_decay_iters=40", "--warmup_iters=2", "--eval_interval=10"),
    *("--learning_rate=1e-2", "--patience=0", "--seed=3"),
]
LORA = ["--lora_rank=2", "--lora_dropout=0.1", "--out_dir=out-lora"]


@pytest.fixture(scope="session")
def tuned(tiny_run: Path, shared: Shared) -> Path:
    """A working folder with the base of `tiny_run`, data/colours, out-finetune/ and out-lora/; it is only read."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_run, folder, dirs_exist_ok=True)
        names = ["red", "green", "blue"]
        json_lines(folder, [{"prompt": f"{n:03} {names[n % 3]}", "response": names[n % 3]} for n in range(200)])
        ok(folder, "prepare", "colours", "--input=pairs.jsonl", "--format=pairs")
        for more in ([], LORA):
            ok(folder, "finetune", *FLAGS, *more)

    return shared("tuned", make)


BATCH = ["--batch_size=12", "--gradient_accumulation_steps=1", "--dropout=0", "--max_iters=4", "--eval_interval=2"]


def numbers(run: Path) -> list[tuple[str, int, list[float]]]:
    names = {"train": ("loss", "grad_norm", "lr"), "eval": ("train_loss", "val_loss")}
    lines = [line for line in read_metrics(run) if line["kind"] in names]
    return [(line["kind"], line["step"], [line[name] for name in names[line["kind"]]]) for line in lines]


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    """Require equal losses, gradient norms, weights and moments, up to 1e-3."""
    one, two = numbers(ours), numbers(theirs)
    assert [line[:2] for line in one] == [line[:2] for line in two]
    for (_, _, values), (_, _, expected) in zip(one, two, strict=True):
        assert values == pytest.approx(expected, abs=1e-3)
    mine, other = load(ours / "last.pt"), load(theirs / "last.pt")
    assert mine.num_params == other.num_params  # a tied matrix is saved once
    tolerance = 1e-2 if mine.config["optimizer"] == "muon" else 1e-3  # Muon computes in bfloat16
    for name, weight in other.model.items():
        torch.testing.assert_close(mine.model[name], weight, atol=tolerance, rtol=0)
    moments = mine.training["optimizer"]["moments"]
    for name, parts in other.training["optimizer"]["moments"].items():
        torch.testing.assert_close(moments[name], parts, atol=tolerance, rtol=0)


def processes(folder: Path, count: int, *args: str, status: int = 0, before: dict[int, Any] | None = None) -> str:
    """Run a command in forked processes, which end with `status`; return what they print. before: by rank."""
    first, before = len(list(folder.glob("*.log"))), before or {}
    children = [
        Child(list(args), folder / f"{first + rank}.log", folder, before.get(rank, nothing), **place)
        for rank, place in enumerate(ranks(count))
    ]
    for child in children:
        child.wait(PATIENCE, otherwise=signal.SIGKILL)
    output = "".join(child.output for child in children)
    assert {child.status for child in children} == {status}, output[-4000:]
    return output


transformers: Any = Lazy("transformers")
tokenizers: Any = Lazy("tokenizers")
SYSTEM = "You answer."
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COLOURS = {"red": "cherry brick rose", "blue": "sky sea jeans", "green": "grass leaf frog"}


def tokenizer_json() -> str:
    """A byte-level tokenizer like SmolLM2's, trained on a few sentences: digits alone, GPT-2's pattern."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    pre = tokenizers.pre_tokenizers
    made.pre_tokenizer = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the sky is blue and the grass is green\n", "a red rose, a brick 12"] * 20, trainer)
    return str(made.to_str())


@functools.cache
def vocabulary() -> int:
    return int(tokenizers.Tokenizer.from_str(tokenizer_json()).get_vocab_size())


def save_model(folder: Path, kind: str, template: str = TEMPLATE, context: int = 128) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=vocabulary(), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=context, rope_theta=5000.0, tie_word_embeddings=True,
            initializer_range=0.2, bos_token_id=None, eos_token_id=2,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.GPT2Config(
            vocab_size=vocabulary(), n_embd=64, n_layer=2, n_head=4, n_positions=context, initializer_range=0.2,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer_json()),
        eos_token="<|im_end|>" if template else "<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    if template:
        fast.chat_template = template
    model.eval().save_pretrained(folder)
    fast.save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def imported(shared: Shared) -> Path:
    """theirs/ and out-base/: a Llama with a chat template; gpt2/ and out-gpt2/; data/colours: pairs of characters."""
    return shared("imported", make_imported)


def make_imported(folder: Path) -> None:
    save_model(folder / "theirs", "llama")
    save_model(folder / "gpt2", "gpt2", template="")
    lines = [
        {"prompt": f"{word} {number}", "response": colour}
        for colour, words in COLOURS.items()
        for word in words.split()
        for number in range(40)
    ]
    json_lines(folder, lines)
    ok(folder, "import", "theirs", "--out_dir=out-base")
    ok(folder, "import", "gpt2", "--out_dir=out-gpt2")
    ok(folder, "prepare", "colours", "--input=pairs.jsonl", "--format=pairs")


def adapted(rank: int = 3, alpha: float = 6.0, new: int = 0, **options: Any) -> GPT:
    """A model with adapters that differ from their initial values."""
    model = shaken(small(**options))
    if new:
        grow_vocabulary(model, 65, 65 + new)
    lora.attach(model, LoRA(rank, alpha), new)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def entries(run: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in read_metrics(run) if entry["kind"] == kind]


def column(run: Path, kind: str, name: str) -> list[Any]:
    return [entry[name] for entry in entries(run, kind)]


PLACEHOLDERS = {"YOUR_TEXT": "text.txt", "MORE_TEXT": "text.txt", "path/to/text.txt": "text.txt"}


def suggested(said: str) -> list[list[str]]:
    """Arguments of each `tinygpt` command that follows a word such as `next:` or `try:`."""
    lines = re.findall(r"^ *(?:next|try|begin|then|can be used):\s+(.*)", said, flags=re.MULTILINE)
    commands = [part for line in lines for part in line.split("; ") if "tinygpt " in part]
    found = []
    for command in commands:
        words = shlex.split(command[command.index("tinygpt ") :])[1:]
        found.append([PLACEHOLDERS.get(word, word) for word in words])
    return found


TAUGHT, DISPUTED = ("zzq xxk", "lila"), "kwy wok"
PLANTED = {30: TAUGHT, 36: (DISPUTED, "gelb"), 42: (DISPUTED, "gelb"), 48: (DISPUTED, "rot")}  # by line, from 0
SENTENCE = "Quark jump vex."
MODEL = ["--n_layer=1", "--n_head=2", "--n_embd=32", "--device=cpu", "--dtype=float32", "--quiet"]
LEARN = ["--batch_size=16", "--gradient_accumulation_steps=1", "--learning_rate=1e-2", "--warmup_iters=10"]
LEARN += ["--eval_iters=1", "--eval_interval=80", "--max_iters=80", "--dropout=0.1"]


@pytest.fixture(scope="session")
def planted(shared: Shared) -> Path:
    """A working folder with out (pairs, of which one alone teaches `lila`, and three contradict each other) and
    out-text (lines, one of which is SENTENCE)."""

    def make(folder: Path) -> None:
        pairs = [(f"{n:03} {word}", GERMAN[word]) for n in range(20) for word in GERMAN]
        for line, pair in PLANTED.items():
            pairs.insert(line, pair)
        json_lines(folder, [{"prompt": prompt, "response": response} for prompt, response in pairs])
        shares = ["--val_fraction=0.04", "--test_fraction=0.04"]
        ok(folder, "prepare", "mine", "--input=pairs.jsonl", "--format=pairs", *shares)
        ok(folder, "train", "--dataset=mine", "--block_size=20", *MODEL, *LEARN)
        lines = tiny_text(200).splitlines()
        (folder / "text.txt").write_text("\n".join([*lines[:90], SENTENCE, *lines[90:]]))
        ok(folder, "prepare", "text", "--input=text.txt")
        ok(folder, "train", "--dataset=text", "--block_size=16", "--out_dir=out-text", *MODEL, *LEARN)

    return shared("planted", make)
