"""Measuring a model, and reading and writing text. Each test is named after the promise that it checks."""

import csv
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_MODEL, Result, cli_here
from inputs import json_lines
from pages import node

from tinygpt.checkpoint import store as checkpoint
from tinygpt.checkpoint.store import Checkpoint, load
from tinygpt.data.dataset import Dataset
from tinygpt.data.tokenizer import tokenizer_from_dict
from tinygpt.generate import Sampling, generate, probabilities
from tinygpt.model import GPT, GPTConfig

COLOURS = ["red", "green", "blue"]
RATES = ["--learning_rate=1e-2", "--min_lr=1e-3", "--warmup_iters=2"]
SHORT = [*RATES, "--max_iters=20", "--eval_interval=10", "--eval_iters=2", "--gradient_accumulation_steps=1"]
TRAIN = ["train", "--device=cpu", "--dtype=float32", "--compile=False", "--quiet", *TINY_MODEL, *SHORT]


@pytest.fixture(scope="session")
def measured(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with out/, a run on plain text, and out-pairs/, one on the labelled task `colours`."""
    folder = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("measured") / "work"))
    json_lines(folder, [{"prompt": f"{n:03} {COLOURS[n % 3]}", "response": COLOURS[n % 3]} for n in range(90)])
    assert cli_here("prepare", "colours", "--input=pairs.jsonl", "--format=pairs", cwd=folder).status == 0
    result = cli_here(*TRAIN, "--dataset=colours", "--out_dir=out-pairs", "--block_size=24", cwd=folder)
    assert result.status == 0, result.err
    return folder


@pytest.fixture
def work(measured: Path, tmp_path: Path) -> Path:
    """A copy of `measured` that a test may change."""
    return Path(shutil.copytree(measured, tmp_path / "work"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite the run's checkpoints, intact and sealed, with changed weights."""
    for name in ("ckpt.pt", "last.pt"):
        state = torch.load(folder / name, weights_only=True)
        change(state["model"])
        with open(folder / name, "w+b") as file:
            torch.save(state, file)
            checkpoint._seal(file)


def scaled(factor: float, *names: str) -> Callable[[dict[str, torch.Tensor]], object]:
    """Return a change that multiplies by `factor` the weights whose name ends with one of `names`, or all."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in weights:
            if not names or name.endswith(names):
                weights[name] = weights[name] * factor  # not in place: tied weights are one tensor

    return change


def strict(text: str) -> Any:
    """Parse one line of JSON. Fails for NaN and Infinity, which JSON does not have."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def failure(result: Result, status: int = 1) -> str:
    """Message of an error. Fails if the command printed anything but that message and its hint."""
    assert result.status == status, result
    lines = result.err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("  try: "), result.err
    return lines[0].removeprefix("error: ")


# ---- a loss that is not finite ----------------------------------------------------------------------------------

BROKEN = {
    "finite weights, a NaN loss": scaled(1e30),
    "infinite logits": lambda weights: (
        scaled(1e18, "wte.weight", "lm_head.weight")(weights),
        scaled(1e25, "ln_f.weight")(weights),
    ),
    "NaN weights": lambda weights: weights["transformer.ln_f.weight"].fill_(math.nan),
    "infinite weights": lambda weights: weights["transformer.ln_f.weight"].fill_(math.inf),
}
COMMANDS = [
    ["eval"],
    ["eval", "--json"],
    ["eval", "--ckpt=out-pairs", "--task=colours"],
    ["label", "lines.txt", "--model=out-pairs"],
    ["eval", "--ckpt=out-free", "--dataset=free"],
    ["sample"],
    ["sample", "--temperature=0"],
    ["sample", "--top_k=0", "--exact_window"],
    ["sample", "--json"],
    ["sample", "--ckpt=out-pairs", "--start=001 red"],
    ["report", "out"],
    ["report", "out-pairs"],
    ["report", "out-pairs", "--data_dir=nowhere"],
    ["export"],
    ["export", "--ckpt=out-pairs", "--data_dir=nowhere"],
]


def free_responses(folder: Path) -> None:
    """Prepare data/free, pairs whose responses are not labels, and copy the model of the colours to out-free/."""
    json_lines(folder, [{"prompt": f"{n:03} red", "response": f"{n}"} for n in range(90)], "free.jsonl")
    assert cli_here("prepare", "free", "--input=free.jsonl", "--format=pairs", cwd=folder).status == 0
    shutil.copytree(folder / "out-pairs", folder / "out-free")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", BROKEN)
def test_every_command_reports_a_loss_that_is_not_finite_in_one_sentence(work: Path, how: str) -> None:
    free_responses(work)
    for folder in ("out", "out-pairs", "out-free"):
        change_weights(work / folder, BROKEN[how])
    (work / "lines.txt").write_text("001 red\n002 blue\n")
    said = []
    for args in COMMANDS:
        result = cli_here(*args, cwd=work)
        sentence = failure(result)
        said.append(f"{' '.join(args):60}{result.err}")
        assert result.out == ""
        assert "NaN" in sentence or "infinite" in sentence or "not finite" in sentence
        assert "training diverged" in sentence and "learning_rate" in result.err
    print("\n".join(said))


def test_a_loss_above_709_nats_has_an_infinite_perplexity(work: Path) -> None:
    """exp overflows, which is shown as "inf" on the terminal and in the page, and as null in JSON."""
    change_weights(work / "out", scaled(1e4, "ln_f.weight"))
    found = strict(cli_here("eval", "--json", cwd=work).out)
    assert found["loss"] > 710 and found["perplexity"] is None
    rows = [line.split() for line in cli_here("eval", cwd=work).out.splitlines()]
    assert ["model", f"{found['loss']:.4f}", "inf"] in [row[:3] for row in rows]
    assert cli_here("report", "out", cwd=work).status == 0
    page = (work / "out/report.html").read_text()
    assert re.search(r'<th scope="row">this model</th><td>\d+\.\d+ .*<td>inf</td>', page)


def test_every_json_output_is_strict(work: Path) -> None:
    """One object per line, ASCII, without NaN and Infinity, even from a model that is almost certain of its labels."""
    change_weights(work / "out-pairs", scaled(1e3, "ln_f.weight"))
    (work / "lines.txt").write_text("001 red\n002 blue\n")
    pairs = ["--ckpt=out-pairs"]
    for args in (
        ["eval", "--json"],
        ["eval", *pairs, "--task=colours", "--json"],
        ["sample", "--json", "--max_new_tokens=5", "--seed=1"],
        ["sample", "--json", "--num_samples=3", "--max_new_tokens=5", "--seed=1"],
    ):
        result = cli_here(*args, cwd=work)
        assert (result.status, result.err) == (0, "")
        assert result.out.isascii() and [strict(line) for line in result.out.splitlines()]


def test_curves_leave_out_losses_that_are_not_finite(work: Path) -> None:
    """The curves of a metrics.jsonl with NaN, null or Infinity show its finite losses."""
    lines = (work / "out/metrics.jsonl").read_text()
    for loss in ("NaN", "null", "Infinity"):
        entry = f'{{"kind": "eval", "step": 30, "seconds": 1, "train_loss": {loss}, "val_loss": {loss}}}\n'
        (work / "out/metrics.jsonl").write_text(lines + entry)
        assert cli_here("report", "out", "--png=loss.png", cwd=work).status == 0
        (work / "out/metrics.jsonl").write_text(entry)
        assert "no evaluation with a finite loss" in failure(
            cli_here("report", "out", "--png=loss.png", cwd=work), status=2
        )


# ---- generating -------------------------------------------------------------------------------------------------


def random_model(**options: Any) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{"block_size": 8, "vocab_size": 23, "n_layer": 2, "n_head": 2, "n_embd": 16} | options))
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def test_a_token_is_drawn_from_logits_that_overflow_with_the_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite logits that become infinite when divided by the temperature give the most probable token, not NaN."""
    logits = torch.tensor([[-3e38, 2.9e38, 3e38], [3e38, 1.0, -3e38]])
    monkeypatch.setattr(GPT, "forward", lambda self, idx, **more: (logits[:, None], None))
    for choice in (
        Sampling(temperature=0.5),
        Sampling(temperature=1e-5),
        Sampling(temperature=0.5, top_k=2, top_p=0.9),
    ):
        assert [row.tolist() for row in generate(random_model(), torch.zeros(2, 1).long(), 1, choice)] == [[2, 0]]


@pytest.mark.parametrize("top_p", ["1e-300", "1e-45", "5e-324"])
def test_a_tiny_top_p_selects_the_most_probable_token(work: Path, top_p: str) -> None:
    result = cli_here("sample", f"--top_p={top_p}", "--max_new_tokens=20", cwd=work)
    assert result.status == 0, result.err
    assert result.out == cli_here("sample", "--temperature=0", "--max_new_tokens=20", cwd=work).out
    chances = probabilities(torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 1.0]]), 1.0, 0, float(top_p))
    assert chances.sum(-1).tolist() == [1, 1] and chances[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("options", [{}, {"position": "rope"}], ids=str)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("length", [1, 7, 8, 30])
def test_generating_needs_memory_only_for_the_context(options: dict[str, Any], exact: bool, length: int) -> None:
    """A request for 10**12 tokens can be started, and yields the same tokens as a short request."""
    model = random_model(**options)
    prompt = torch.randint(23, (2, length), generator=torch.Generator().manual_seed(5))
    some = torch.stack(list(generate(model, prompt, 60, Sampling(), 0, exact)), dim=1)
    endless = generate(model, prompt, 10**12, Sampling(), 0, exact)
    assert torch.equal(some, torch.stack([next(endless) for _ in range(60)], dim=1))


@pytest.mark.parametrize(
    "flags",
    [
        ["--num_samples=9007199254740991"],
        ["--num_samples=1000000000", "--exact_window"],
        ["--num_samples=2", "--max_new_tokens=1000000000000000"],
        ["--json", "--max_new_tokens=9007199254740991"],
    ],
    ids=str,
)
def test_more_samples_than_fit_into_memory_are_refused_in_one_sentence(work: Path, flags: list[str]) -> None:
    sentence = failure(cli_here("sample", "--device=cpu", *flags, cwd=work))
    assert "out of memory on cpu" in sentence and flags[0] in sentence + " --json"


# ---- devices without float64 ------------------------------------------------------------------------------------


class OnDevice(torch.Tensor):
    """A tensor that behaves as if on a device without float64 (MPS) until `.cpu()` copies it to the host."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.cpu, torch.Tensor.item, torch.Tensor.tolist):
            with torch._C.DisableTorchFunctionSubclass():
                return func(args[0].as_subclass(torch.Tensor), *args[1:])
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return result


def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the logits and embeddings of every model on such a device."""
    forward, build = GPT.forward, Checkpoint.build_model

    def device_forward(self: GPT, *args: Any, **kwargs: Any) -> Any:
        logits, loss = forward(self, *args, **kwargs)
        return logits.as_subclass(OnDevice), loss

    def device_build(self: Checkpoint, *args: Any) -> GPT:
        model = build(self, *args)
        wte = model.transformer["wte"]
        wte._parameters["weight"] = torch.nn.Parameter(wte.weight.detach().as_subclass(OnDevice))
        model.tie()
        return model

    monkeypatch.setattr(GPT, "forward", device_forward)
    monkeypatch.setattr(Checkpoint, "build_model", device_build)


@pytest.mark.parametrize(
    "args",
    [
        [*TRAIN, "--dataset=tiny", "--eval_only"],
        [*TRAIN, "--dataset=colours", "--block_size=24", "--eval_only"],
        ["eval", "--json"],
        ["eval", "--ckpt=out-pairs", "--task=colours", "--json"],
        pytest.param(["report", "out"], marks=pytest.mark.slow),
        pytest.param(["report", "out-pairs"], marks=pytest.mark.slow),
        ["export"],
    ],
    ids=lambda args: " ".join(args[:1] + args[-1:]),
)
def test_measurements_are_the_same_on_a_device_without_float64(
    work: Path, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "lines.txt").write_text("001 red\n002 blue\n")
    expected = cli_here(*args, cwd=work)
    on_device(monkeypatch)
    result = cli_here(*args, cwd=work)
    assert (result.status, result.err) == (0, "")
    assert result.out == expected.out


# ---- reading text -----------------------------------------------------------------------------------------------


def predicted(folder: Path, content: bytes, *flags: str) -> list[list[str]]:
    """Rows that `label` writes for a file with this content, without the header."""
    (folder / "lines.txt").write_bytes(content)
    result = cli_here("label", "lines.txt", "--model=out-pairs", "--output=labels.csv", *flags, cwd=folder)
    assert result.status == 0, result.err
    with open(folder / "labels.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def test_labels_have_one_row_per_line(work: Path) -> None:
    """Empty lines too. Only LF and CRLF end a line, not the other line separators of Unicode and Python."""
    inside = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
    lines = [f"00{n} {mark} red" for n, mark in enumerate(inside)]
    content = "\n".join([lines[0], "", "  ", *lines[1:5]]) + "\r\n\r\n" + "\r\n".join(lines[5:])
    rows = predicted(work, content.encode())
    expected = [lines[0], "", "  ", *lines[1:5], "", *lines[5:]]
    assert [row[0] for row in rows] == expected
    assert [row[0] for row in predicted(work, ("\ufeff" + content + "\n").encode())] == expected
    assert [row[0] for row in predicted(work, (content + "\n\n").encode())] == [*expected, ""]


def test_a_byte_order_mark_is_not_part_of_the_text(work: Path) -> None:
    """Lines to label, prompts and exercises give the same results with and without a byte-order mark."""
    mark = "\ufeff".encode()
    assert predicted(work, mark + b"001 red\n002 blue\n") == predicted(work, b"001 red\n002 blue\n")
    for name, start in (("plain.txt", b""), ("marked.txt", mark)):
        (work / name).write_bytes(start + b"The king\r\nof")
    plain, marked = (
        cli_here("sample", "--seed=1", f"--start=FILE:{name}.txt", cwd=work) for name in ("plain", "marked")
    )
    assert plain.status == 0 and plain == marked and plain.out.startswith("The king\nof")
    source = work / "my_gpt.py"
    assert cli_here("exercise", "start", "1", source, cwd=work).status == 0
    source.write_bytes(mark + source.read_bytes())
    result = cli_here("exercise", "start", "2", source, cwd=work)
    assert result.status == 0, result.err
    assert b"\xef\xbb\xbf" not in source.read_bytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "f.txt: no such file"),
        (b"caf\xe9", "f.txt: not UTF-8 text (byte 0xe9 at offset 3)"),
        (b"\xef\xbb\xbfcaf\xe9", "f.txt: not UTF-8 text (byte 0xe9 at offset 6)"),
        ("red".encode("utf-16"), "f.txt: is UTF-16 text"),
        (b"re\0d", "f.txt: is binary, not text"),
    ],
    ids=str,
)
def test_every_command_gives_the_same_message_for_an_unreadable_text_file(
    work: Path, content: bytes | None, says: str
) -> None:
    if content is not None:
        (work / "f.txt").write_bytes(content)
    commands = [["sample", "--start=FILE:f.txt"], ["exercise", "check", "1", "f.txt"]]
    said = {failure(cli_here(*args, cwd=work), status=2) for args in commands}
    assert len(said) == 1 and said.pop().startswith(says)


def test_pairs_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    """CSV as Excel writes it, and JSON Lines. A note reports the mark, and the dataset is the same as without it."""
    entries = [{"prompt": f"{n:03} {COLOURS[n % 3]}", "response": COLOURS[n % 3]} for n in range(90)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["prompt", "response"], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(entries)
    files = {"csv": text.getvalue(), "jsonl": "".join(json.dumps(entry) + "\n" for entry in entries)}
    for kind, content in files.items():
        for name, encoding in (("plain", "utf-8"), ("marked", "utf-8-sig")):
            (tmp_path / f"{name}.{kind}").write_text(content, encoding=encoding, newline="")
            args = ["prepare", f"{name}-{kind}", f"--input={name}.{kind}", "--format=pairs"]
            result = cli_here(*args, cwd=tmp_path)
            assert (result.status, result.err) == (0, ""), result.err
        plain, marked = ((tmp_path / f"data/{name}-{kind}/train.bin").read_bytes() for name in ("plain", "marked"))
        assert plain == marked and len(plain) > 1000


def test_the_message_for_pairs_in_utf16_names_the_encoding(tmp_path: Path) -> None:
    content = "prompt,response\n" + "".join(f"{n:03},{COLOURS[n % 3]}\n" for n in range(90))
    (tmp_path / "p.csv").write_text(content, encoding="utf-16")
    args = ["prepare", "mine", "--input=p.csv", "--format=pairs"]
    result = cli_here(*args, cwd=tmp_path)
    assert "p.csv: is UTF-16 text" in failure(result, status=2) and "--encoding=utf-16" in result.err
    assert cli_here(*args, "--encoding=utf-16", cwd=tmp_path).status == 0


@pytest.mark.parametrize("key", ["prompt", "response"])
@pytest.mark.parametrize("half", ["\\ud83d", "\\ude00", "\\ude00\\ud83d"])
def test_a_lone_surrogate_in_a_pair_is_a_bad_line(tmp_path: Path, key: str, half: str) -> None:
    entries = [json.dumps({"prompt": f"{n:03} red", "response": "smile \U0001f600"}) for n in range(90)]
    bad = json.dumps({"prompt": "a", "response": "b"} | {key: "x@y"}).replace("@", half)
    (tmp_path / "p.jsonl").write_text("\n".join([*entries[:6], bad, *entries[6:]]))
    args = ["prepare", "mine", "--input=p.jsonl", "--format=pairs"]
    sentence = failure(cli_here(*args, cwd=tmp_path), status=2)
    assert sentence.startswith(f"p.jsonl line 7: the value of '{key}' contains a lone surrogate (U+D")
    result = cli_here(*args, "--skip_bad", cwd=tmp_path)
    assert result.status == 0 and "left out: p.jsonl line 7" in result.err
    meta = strict((tmp_path / "data/mine/meta.json").read_text())
    assert sum(meta["examples"].values()) == 90 and "\U0001f600" in meta["tokenizer"]["symbols"]


# ---- block_size 1 -----------------------------------------------------------------------------------------------


def test_a_model_that_reads_one_token_has_a_report_and_a_page(work: Path) -> None:
    """With block_size 1, Python and JavaScript predict each character from the preceding one only: a bigram model."""
    result = cli_here(*TRAIN, "--dataset=tiny", "--block_size=1", "--out_dir=out-bigram", cwd=work)
    assert result.status == 0, result.err
    for command in (["report", "out-bigram"], ["export", "--ckpt=out-bigram"]):
        result = cli_here(*command, cwd=work)
        assert (result.status, result.err) == (0, "")
    pages = [(work / f"out-bigram/{name}.html").read_text() for name in ("report", "model")]
    found = [re.search(r'<script type="application/json" id="data">(.*?)</script>', page) for page in pages]
    data, exported = (strict(match[1]) for match in found if match)
    (packed,), (again,) = ([one["packed"] for one in page["models"]] for page in (data, exported))
    assert packed == again
    checkpoint = load(work / "out-bigram")
    model, tokenizer = checkpoint.build_model().eval(), tokenizer_from_dict(checkpoint.tokenizer, "")
    text = Dataset(str(work / "data"), "tiny").splits["val"]
    first = max(1, min(len(text) // 2, len(text) - 600))
    first += tokenizer.decode(text[first : first + 200].tolist()).index("\n") + 1
    ids = torch.from_numpy(text[first - 1 : first + 600].astype(np.int64))
    with torch.no_grad():
        logits = model(ids[:-1, None])[0][:, 0]  # a row for each character, from the one before
    chances = logits.softmax(-1).gather(1, ids[1:, None])[:, 0]
    assert [cell[1] for cell in data["cells"]["val"]] == pytest.approx(chances.tolist(), abs=1e-5)
    code = "return input.ids.map((id) => [...TinyGPT.load(input.packed).reader([id]).logits])"
    read = torch.tensor(node(code, packed=packed, ids=ids[:20].tolist()))
    assert (read - logits[:20]).abs().max() < 2e-2  # in half precision
    pushed = torch.tensor(node("return follow(input.packed, input.ids, 1)", packed=packed, ids=ids[:20].tolist()))
    assert (pushed - logits[1:20]).abs().max() < 2e-2


# ---- output paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["eval", "--ckpt=out-pairs", "--output"],
        ["report", "--output"],
        ["export", "--output"],
    ],
    ids=str,
)
def test_an_output_that_cannot_be_a_file_is_refused_before_the_work(
    work: Path, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "lines.txt").write_text("001 red\n")
    (work / "link.out").symlink_to("lines.txt")
    os.mkfifo(work / "pipe")
    monkeypatch.setattr(GPT, "__init__", lambda *_: pytest.fail("a model was made"))
    for output, says in (
        (".", "is a folder"),
        ("data", "data: is a folder"),
        ("nowhere/file", "nowhere: no such folder"),
        ("link.out", "link.out is a link"),
        ("pipe", "pipe: is not a regular file"),
        ("/dev/null", "/dev/null: is not a regular file"),
    ):
        assert says in failure(cli_here(*args, output, cwd=work), status=2)
    assert Path("/dev/null").is_char_device()


# ---- labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["ZZZ", "Z Z", " Z\n"])
def test_a_prompt_of_unknown_characters_only_is_refused(work: Path, start: str) -> None:
    result = cli_here("sample", "--ckpt=out-pairs", f"--start={start}", "--skip_unknown", cwd=work)
    assert "without characters outside the vocabulary, the prompt is empty" in failure(result, status=2)
    assert cli_here("sample", "--ckpt=out-pairs", "--start=Z1", "--skip_unknown", cwd=work).status == 0


def test_a_prompt_longer_than_the_context_of_a_model_of_pairs_is_refused(work: Path) -> None:
    """Truncation would remove its first special token. (A model of plain text continues the end of a long prompt.)"""
    fits, long = "001 red red red red re", "001 red red red red red"
    assert len(fits) + 2 == 24
    assert cli_here("sample", "--ckpt=out-pairs", f"--start={fits}", cwd=work).status == 0
    sentence = failure(cli_here("sample", "--ckpt=out-pairs", f"--start={long}", cwd=work), status=2)
    assert "the prompt has 25 tokens" in sentence and "the model reads at most 24" in sentence
    assert cli_here("sample", "--ckpt=out-pairs", f"--start={long}", "--plain", cwd=work).status == 0


def test_an_example_longer_than_the_context_is_not_measured_in_part(work: Path) -> None:
    entries = [{"prompt": f"{n:03} red red red red red", "response": f"{n} red"} for n in range(90)]
    json_lines(work, entries, "long.jsonl")
    assert cli_here("prepare", "long", "--input=long.jsonl", "--format=pairs", cwd=work).status == 0
    sentence = failure(cli_here("eval", "--ckpt=out-pairs", "--dataset=long", cwd=work), status=2)
    assert "too long for block_size 24" in sentence


# ---- the dataset of a run -----------------------------------------------------------------------------------------


@pytest.fixture
def moved(work: Path) -> Path:
    """`work` with its datasets in the folder `elsewhere`, and with run/, trained on `colours` from there."""
    (work / "data").rename(work / "elsewhere")
    flags = ["--dataset=colours", "--data_dir=elsewhere", "--out_dir=run", "--block_size=24"]
    assert cli_here(*TRAIN, *flags, cwd=work).status == 0
    return work


@pytest.mark.parametrize(
    "command",
    [["eval", "--ckpt=run"], ["doctor", "run"], pytest.param(["report", "run"], marks=pytest.mark.slow)],
    ids=str,
)
def test_the_data_dir_of_the_run_is_used_unless_another_is_given(moved: Path, command: list[str]) -> None:
    def finds_the_dataset(*flags: str) -> bool:
        result = cli_here(*command, *flags, cwd=moved)
        page = moved / "run/report.html"
        return "is not prepared" not in result.out + result.err + (page.read_text("utf-8") if page.exists() else "")

    if command[0] == "report":
        pytest.importorskip("jinja2")
    assert finds_the_dataset()
    assert not finds_the_dataset("--data_dir=data")
    (moved / "elsewhere").rename(moved / "data")  # as on another machine, which has the run's folder alone
    assert finds_the_dataset()


def test_the_command_to_try_fits_the_model_and_its_dataset(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinygpt.base.configs import suggest
    from tinygpt.examine.doctor.files import next_for_checkpoint

    monkeypatch.chdir(moved)
    labelled, text = load("run"), load("out")
    assert next_for_checkpoint(labelled, "run", "elsewhere") == "tinygpt eval run --data_dir=elsewhere"
    assert next_for_checkpoint(labelled, "run", "data") == "tinygpt sample run --plain"
    assert next_for_checkpoint(text, "a b", "data") == "tinygpt sample 'a b'"
    assert suggest.next_command({}, "out", True, prompt="1 2") == "tinygpt sample out --start '1 2'"
