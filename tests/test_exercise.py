"""The exercise: a right solution passes, and each plausible wrong one is found by the check that is meant for it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tinygpt.cli import main
from tinygpt.exercise import command as exercise
from tinygpt.exercise import steps

SOLUTION = Path(__file__).parent / "solution.py"
SOURCE = SOLUTION.read_text(encoding="utf-8")

# (step, what a reader may write: old -> new in the solution, the check that must find it, words of its report)
WRONG = [
    (1, "sorted(set(text))", "sorted(text)", "each distinct character counts once", "got=5 expected=4"),
    (1, "sorted(set(text))", "list(dict.fromkeys(text))", "numbers follow the sorted order", "expected=[0, 1, 2, 3, 4, 5]"),
    (1, "i for i, symbol in enumerate(self.symbols)", "i + 1 for i, symbol in enumerate(self.symbols)", "numbers follow", "[1, 2, 3, 4, 5, 6]"),
    (1, "self.symbols[i] for i in ids", "self.symbols[i].lower() for i in ids", "decoding gives the text back", "first citizen"),
    (1, "for c in text]", "for c in text.rstrip()]", "decoding gives the text back", "5!'"),
    (1, 'raise ValueError(f"{c!r} is not in the vocabulary")', "return []", "an unknown character is refused", "got=[]"),
    (1, 'raise ValueError(f"{c!r} is not in the vocabulary")', 'raise ValueError("bad")', "an unknown character is refused", "names 'x'"),
    (2, "return data[:cut], data[cut:]", "return data[-cut:], data[:-cut]", "the end of the data", "[0, 1]"),
    (2, "return data[:cut], data[cut:]", "return data, data[cut:]", "the end of the data", "8, 9] and [8, 9]"),
    (2, "    cut = int(", "    data = data[torch.randperm(len(data))]\n    cut = int(", "the end of the data", "split(torch.arange(10), 0.2)"),
    (2, "data[i : i + block_size] for i in starts])\n", "data[i : i + block_size] for i in starts]).float()\n", "x and y are int64", "torch.float32"),
    (2, "data[i + 1 : i + 1 + block_size]", "data[i : i + block_size]", "the target is the input shifted", "y[0] ="),
    (2, "data[i + 1 : i + 1 + block_size]", "data[i + 2 : i + 2 + block_size]", "the target is the input shifted", "y[0] ="),
    (2, "len(data) - block_size,", "len(data) - block_size - 1,", "every window can be drawn", "starts [0, 1]"),
    (2, "len(data) - block_size,", "len(data) - block_size + 1,", "every window can be drawn", "RuntimeError"),
    (2, ", generator=generator)\n    x", ")\n    x", "windows are drawn at random", "same seed"),
    (2, "torch.randint(len(data) - block_size, (batch_size,), generator=generator)", "torch.randint(len(data) - block_size, (1,), generator=generator).repeat(batch_size)", "windows are drawn at random", "different starts"),
    (3, "logits = self.table(idx)", "logits = self.table(idx)[:, -1]", "there is one row of logits", "(2, 5)"),
    (3, "logits = self.table(idx)", "logits = self.table(idx).mean(1, keepdim=True) + self.table(idx)", "the guess depends on the last", "position 1"),
    (3, "logits = self.table(idx)", "logits = self.table(idx).softmax(-1)", "the guess depends on the last", "row 2"),
    (3, "F.cross_entropy(logits.flatten(0, 1), targets.flatten())\n\n\ndef counts", "F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction='sum')\n\n\ndef counts", "the loss is the mean", "averaged"),
    (3, "F.cross_entropy(logits.flatten(0, 1), targets.flatten())\n\n\ndef counts", "F.cross_entropy(logits.transpose(0, 1).flatten(0, 1), targets.flatten())\n\n\ndef counts", "the loss is the mean", "averaged"),
    (3, ".log().mean()", ".log2().mean()", "counting gives the least loss", "0.3819"),
    (3, "counts.sum(1, keepdim=True)", "counts.sum()", "counting gives the least loss", "0.3819"),
    (3, "counts = torch.zeros(vocab", "counts = torch.ones(vocab", "counting gives the least loss", "2 ln 3/2"),
    (3, "F.cross_entropy(logits.flatten(0, 1), targets.flatten())\n\n\ndef counts", "F.cross_entropy(logits.detach().flatten(0, 1), targets.flatten())\n\n\ndef counts", "training ends where counting does", "with a gradient"),
    (4, "return F.softmax(scores.masked_fill(mask, float(\"-inf\")), dim=-1)", "return F.softmax(scores, dim=-1).masked_fill(mask, 0)", "rows of the weights sum to one", "the sums of the rows"),
    (4, 'float("-inf")), dim=-1)', 'float("-inf")), dim=-2)', "rows of the weights sum to one", "the sums of the rows"),
    (4, 'scores.masked_fill(mask, float("-inf"))', "scores", "the future cannot be seen", "zeros above the diagonal"),
    (4, 'masked_fill(mask, float("-inf"))', "masked_fill(mask, 0)", "the future cannot be seen", "zeros above the diagonal"),
    (4, "torch.tril(torch.ones(T, T)) == 0", "torch.triu(torch.ones(T, T)) == 0", "the future cannot be seen", "zeros above the diagonal"),
    (4, "torch.tril(torch.ones(T, T)) == 0", "torch.tril(torch.ones(T, T), -1) == 0", "rows of the weights", "nan"),
    (4, "scores = q @ k.transpose(-2, -1)", "scores = k @ k.transpose(-2, -1)", "without a preference", "q of zeros"),
    (4, " / math.sqrt(size)", "", "scores are scaled", "0.7311"),
    (4, " / math.sqrt(size)", " / size", "scores are scaled", "0.7311"),
    (4, " / math.sqrt(size)", " / math.sqrt(T)", "scores are scaled", "0.7311"),
    (4, "@ self.value(x)", "@ self.key(x)", "the head gathers values", "torch's own attention"),
    (4, "attention_weights(self.query(x), self.key(x))", "attention_weights(self.key(x), self.query(x))", "the head gathers values", "(2, 5, 8)"),
    (5, "return self.c_proj(y)\n", "return self.c_proj(y).sum(1)\n", "attention keeps the shape", "(2, 12)"),
    (5, "view(B, T, self.n_head, -1).transpose(1, 2)", "reshape(B, self.n_head, T, -1)", "no head sees the future", "other outputs"),
    (5, ", is_causal=True)", ")", "no head sees the future", "positions 4 and 5 differ"),
    (5, "q, k, v = self.c_attn(x)", "k, q, v = self.c_attn(x)", "each head works on its own channels", "3 heads"),
    (5, "y.transpose(1, 2).reshape(B, T, C)", "y.transpose(1, 2).transpose(2, 3).reshape(B, T, C)", "each head works on its own", "3 heads"),
    (5, "return self.c_proj(y)\n", "return y\n", "each head works on its own", "3 heads"),
    (5, "self.c_proj(F.gelu(self.c_fc(x)))", "self.c_proj(self.c_fc(x))", "the MLP is linear, GELU, linear", "MLP(8)"),
    (5, "self.c_proj(F.gelu(self.c_fc(x)))", "F.gelu(self.c_proj(self.c_fc(x)))", "the MLP is linear, GELU, linear", "MLP(8)"),
    (5, "x = x + self.attn(self.ln_1(x))", "x = self.attn(self.ln_1(x))", "a block adds to the stream", "zero"),
    (5, "x = x + self.mlp(self.ln_2(x))", "x = self.ln_2(x) + self.mlp(self.ln_2(x))", "a block adds to the stream", "zero"),
    (5, "x = x + self.mlp(self.ln_2(x))", "x = x + self.mlp(x)", "each half reads a normalised copy", "two lines"),
    (5, "self.attn(self.ln_1(x))\n        x = x + self.mlp(self.ln_2(x))", "self.attn(self.ln_1(x)) + self.mlp(self.ln_2(x))", "each half reads a normalised copy", "two lines"),
    (6, "self.wpe.weight[: idx.shape[1]]", "self.wpe.weight", "contexts of every length", "RuntimeError"),
    (6, "nn.init.normal_(module.weight, std=0.02)", "nn.init.normal_(module.weight, std=1.0)", "an untrained model guesses evenly", "about ln 11"),
    (6, "F.cross_entropy(logits.flatten(0, 1), targets.flatten())\n\n\ndef learning", "F.cross_entropy(logits[:, -1], targets[:, -1])\n\n\ndef learning", "the loss is the mean cross-entropy", "(3, 8)"),
    (6, "x = self.wte(idx) + self", "x = self.wte(idx) + self.wte(idx.flip(1)) + self", "the future cannot be seen", "other outputs"),
    (6, "x = self.wte(idx) + self.wpe.weight[: idx.shape[1]]", "x = self.wte(idx)", "the order of earlier characters", "the same logits"),
    (6, "[Block(n_embd, n_head) for _ in range(n_layer)]", "[Block(n_embd, n_head)] * n_layer", "every part takes part", "one block used twice"),
    (6, "self.lm_head(self.ln_f(x))", "self.lm_head(x)", "every part takes part", "ln_f.weight, ln_f.bias"),
    (6, "for block in self.h:", "for block in self.h[:1]:", "every part takes part", "h.1."),
    (7, "    if step > total:\n        return minimum\n", "", "the rate warms up", "learning_rate(500"),
    (7, "peak * (step + 1) / (warmup + 1)", "peak * step / warmup", "the rate warms up", "learning_rate(0"),
    (7, "    if step < warmup:\n        return peak * (step + 1) / (warmup + 1)\n", "", "the rate warms up", "0.1000"),
    (7, "(1 + math.cos(math.pi * share)) / 2", "(1 - share)", "in between the rate follows", "learning_rate(34"),
    (7, "(step - warmup) / (total - warmup)", "step / total", "the rate warms up", "learning_rate(9"),
    (7, "return loss.item()", "return loss", "the loss comes back as a number", "a Tensor"),
    (7, "return loss.item()", "return model(x, y)[1].item()", "the loss comes back as a number", "1.0000"),
    (7, '    for group in optimizer.param_groups:\n        group["lr"] = lr\n', "", "an update uses the rate", "w = 2.0000"),
    (7, "    optimizer.zero_grad()\n", "", "each update starts from a gradient of zero", "w = 0.3600"),
    (7, "    optimizer.zero_grad()\n    loss.backward()", "    loss.backward()\n    optimizer.zero_grad()", "an update uses the rate", "w = 0.0000"),
    (7, "    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)\n", "", "the gradient is clipped", "w = 0.2000"),
    (7, "clip_grad_norm_(model.parameters(), max_norm)\n    optimizer.step()", "clip_grad_norm_(model.parameters(), 100.0)\n    optimizer.step()", "the gradient is clipped", "gradient -2"),
    (7, "    loss = model(x, y)[1]\n", "    loss = model(x, y)[1] if hasattr(model, 'w') else model(x, x)[1]\n", "one batch can be memorised", "at the end"),
    (7, "loss = model(x, y)[1]\n", "loss = model(x[:1], y[:1])[1]\n", "one batch can be memorised", "at the end"),
    (8, "logits = logits / temperature", "logits = logits * temperature", "probabilities sum to one, and the temperature", "temperature 2.0"),
    (8, "logits = logits / temperature", "logits = logits", "probabilities sum to one, and the temperature", "temperature 2.0"),
    (8, "logits = logits / temperature", "logits = logits / max(temperature, 0.5)", "as the temperature goes to zero", "0.001"),
    (8, "logits < least", "logits <= least", "top_k keeps", "top_k 2"),
    (8, "min(top_k, len(logits))", "top_k", "top_k keeps", "RuntimeError"),
    (8, "logits.masked_fill(logits < least, float(\"-inf\"))", "logits.masked_fill(logits < least, 0.0)", "top_k keeps", "top_k 2"),
    (8, "before >= top_p", "p.cumsum(0) > top_p", "top_p keeps", "top_p 0.7"),
    (8, "out[order] = p / p.sum()", "out = p / p.sum()", "as the temperature goes to zero", "logits 1, 3, 2.9"),
    (8, "out[order] = p / p.sum()", "out[order] = p", "top_p keeps", "top_p 0.7"),
    (8, "F.softmax(logits, 0).sort(", "F.softmax(logits * temperature, 0).sort(", "probabilities sum", "temperature 2.0"),
    (8, "    if top_k:\n        least", "    if top_k and top_p == 1:\n        least", "temperature comes first", "top_k 2 leaves"),
    (8, "[0][:, -1]\n", "[0][:, 0]\n", "each new number continues", "counts on"),
    (8, "torch.cat((idx, torch", "torch.cat((idx[:, 1:], torch", "each new number continues", "(2, 6)"),
    (8, "idx[:, -block_size:]", "idx", "the model sees at most block_size", "an input of 4"),
    (8, "idx[:, -block_size:]", "idx[:, :block_size]", "the model sees", "block_size 3"),
    (8, "torch.multinomial(p, 1, generator=generator)", "p.argmax(1, keepdim=True)", "numbers are drawn", "many different"),
    (8, "torch.multinomial(p, 1, generator=generator)", "torch.multinomial(p, 1)", "numbers are drawn", "one seed"),
    (8, "probabilities(row, temperature, top_k, top_p)", "probabilities(row, temperature)", "generate passes its choices on", "top_k 3"),
    (8, "probabilities(row, temperature, top_k, top_p)", "probabilities(row, 1.0, top_k, top_p)", "generate passes its choices on", "temperature 0.0001"),
    (9, "x = torch.full((block_size,), end)", "x = torch.full((block_size,), 0)", "x is the prompt", "[1, 2, 3, 4, 5, 0, 0, 0]"),
    (9, "whole = [*prompt, *response, end]", "whole = [*prompt, end, *response, end]", "x is the prompt", "[1, 2, 3, 9, 4, 5, 9, 9]"),
    (9, "y[len(prompt) - 1 : len(whole) - 1] = torch.tensor(whole[len(prompt) :])", "y[: len(whole) - 1] = torch.tensor(whole[1:])", "the prompt carries no loss", "[2, 3]"),
    (9, "y[len(prompt) - 1 : len(whole) - 1] = torch.tensor(whole[len(prompt) :])", "y[len(prompt) : len(whole) - 1] = torch.tensor(whole[len(prompt) + 1 :])", "the response is learned", "[-1, 5]"),
    (9, "y[len(prompt) - 1 : len(whole) - 1] = torch.tensor(whole[len(prompt) :])", "y[len(prompt) - 1 : len(whole) - 2] = torch.tensor(whole[len(prompt) : -1])", "the end is learned", "-1"),
    (9, "y = torch.full((block_size,), -1)", "y = torch.full((block_size,), end)", "the prompt carries no loss", "[9, 9]"),
    (9, "    return x, y\n\n\ndef masked", "    y[len(whole) - 1 :] = end\n    return x, y\n\n\ndef masked", "padding carries no loss", "[9, 9, 9]"),
    (9, "targets.flatten(), ignore_index=-1)", "targets.flatten().clamp(min=0))", "the loss is the mean over what is trained", "three terms"),
    (9, "targets.flatten(), ignore_index=-1)", "targets.flatten(), ignore_index=-1, reduction='sum') / targets.numel()", "the loss is the mean over", "three terms"),
    (9, "targets.flatten(), ignore_index=-1)", "targets.flatten())", "the loss is the mean over", "IndexError"),
    (9, "ignore_index=-1)", "ignore_index=-1) + 0 * logits.sum() + (logits.mean() - logits.mean().detach())", "what stands at masked positions", "zeros"),
    (10, "torch.randn(rank, linear.in_features)", "torch.randn(linear.in_features, rank)", "A and B have the shapes", "(6, 2)"),
    (10, "torch.zeros(linear.out_features, rank)", "torch.randn(linear.out_features, rank)", "at first nothing changes", "that it wraps"),
    (10, "self.linear(x) + self.scale", "self.scale", "at first nothing changes", "that it wraps"),
    (10, "linear.requires_grad_(False)", "linear", "only A and B are trained", "linear.weight"),
    (10, "torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features)", "torch.zeros(rank, linear.in_features)", "a new adapter can learn", "the gradient of B"),
    (10, "self.scale = alpha / rank", "self.scale = alpha", "the adapter adds", "alpha 8, rank 2"),
    (10, "self.scale = alpha / rank", "self.scale = 1 / rank", "the adapter adds", "alpha 8, rank 2"),
    (10, "x @ self.A.T @ self.B.T", "x.detach() @ self.A.T @ self.B.T + 0.1 * (x @ self.A.T @ self.B.T)", "the adapter adds", "alpha 8, rank 2"),
    (10, "self.linear.weight + self.scale * self.B @ self.A", "self.linear.weight + self.B @ self.A", "merged and unmerged", "against the LoRALinear"),
    (10, "            out.bias.data = self.linear.bias\n", "            pass\n", "merged and unmerged", "against the LoRALinear"),
    (10, "out.weight.data = self.linear.weight + self.scale * self.B @ self.A", "out.weight.data = self.linear.weight.data.add_(self.scale * self.B.data @ self.A.data)", "merging leaves", "after merged()"),
    (10, "        return out\n", "        return self\n", "merged and unmerged", "a LoRALinear"),
]  # fmt: skip


def verdict(step: int, source: str, path: Path) -> tuple[str, str]:
    """The first check that the source fails, and its report in a line; two empty strings if it passes all."""
    path.write_text(source, encoding="utf-8")
    my: ModuleType = steps.load_module(str(path))
    for check in steps.checks_of(step):
        finding = steps.try_check(check, my, str(path))
        if finding is not None:
            return check.name, " ".join(f"{key}={value}" for key, value in finding.items())
    return "", ""


@pytest.mark.parametrize("step", range(1, 11))
def test_the_solution_passes(step: int, tmp_path: Path) -> None:
    assert verdict(step, SOURCE, tmp_path / "my_gpt.py") == ("", "")


@pytest.mark.parametrize(("step", "old", "new", "name", "words"), WRONG, ids=lambda v: v if isinstance(v, int) else "")
def test_what_is_wrong_is_found_by_its_check(
    step: int, old: str, new: str, name: str, words: str, tmp_path: Path
) -> None:
    assert old in SOURCE
    found, report = verdict(step, SOURCE.replace(old, new), tmp_path / "my_gpt.py")
    assert re.match(name, found), f"{found!r} found it: {report}"
    assert words in report, report


def test_every_check_finds_something() -> None:
    for check in steps.CHECKS:
        assert any(step == check.step and re.match(name, check.name) for step, _, _, name, _ in WRONG), check.name
    for step in range(1, 11):
        assert sum(entry[0] == step for entry in WRONG) >= 3


# ---- the command ----------------------------------------------------------------------------------------------------


def run(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tinygpt", "exercise", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_list_names_every_part_of_the_solution(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exercise", "list"]) == 0
    text = capsys.readouterr().out
    for name in re.findall(r"^(?:class|def) (\w+)", SOURCE, re.MULTILINE):
        assert name in text


def test_the_steps_are_solved_from_their_templates(tmp_path: Path) -> None:
    """start gives what is to be filled in, check says so, and the solution in its place passes."""
    written = ""
    for step in range(1, 11):
        started = run("start", str(step), folder=tmp_path)
        assert started.returncode == 0 and f"tinygpt exercise check {step}" in started.stdout
        template = (tmp_path / "my_gpt.py").read_text()
        assert template.startswith(written)  # what was there stays
        if step in (1, 6):
            empty = run("check", str(step), folder=tmp_path)
            assert empty.returncode == 1 and "not written yet: line" in empty.stdout and "Traceback" not in empty.stderr
        names = exercise.template_steps()[1][step - 1].names
        parts = re.split(r"\n\n\n(?=class |def |@)", SOURCE)
        solved = [
            part.strip() for part in parts if re.search(rf"^(class|def) ({'|'.join(names)})\b", part, re.MULTILINE)
        ]
        assert len(solved) == len(names)
        head = template[: template.index(f"# ==== step {step}:")]
        written = head + f"# ==== step {step}: mine ====\n\n\n" + "\n\n\n".join(solved) + "\n"
        (tmp_path / "my_gpt.py").write_text(written)
    for step in (1, 6, 10):
        passed = run("check", str(step), folder=tmp_path)
        assert passed.returncode == 0, passed.stdout
        assert "FAIL" not in passed.stdout and passed.stdout.count("PASS  ") > 3


def test_starting_again_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "my_gpt.py").write_text("class Head:\n    mine = True\n")
    done = run("start", "4", folder=tmp_path)
    assert done.returncode == 2 and "has Head already" in done.stderr
    assert (tmp_path / "my_gpt.py").read_text() == "class Head:\n    mine = True\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit(0)", "SystemExit"),
        ("import os; os._exit(0)", "Python ended with status 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "Python ended with status -11"),
        ("while True: pass", "no end after 5 seconds"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print('{}')", "PASS  decoding"),
        ("from tinygpt.nothing import x", "ModuleNotFoundError"),
    ],
)
def test_what_the_file_does_on_import_is_survived(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exercise, "LIMIT", 5)
    file = tmp_path / "my_gpt.py"
    file.write_text(f"{SOURCE}\n{code}\n")
    status = main(["exercise", "check", "1", str(file)])
    text = capsys.readouterr().out
    assert status == (0 if "PASS  decoding" in words else 1)
    assert words in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["check", "3"], "my_gpt.py: no such file"),
        (["start"], "which step? There are steps 1 to 10"),
        (["start", "11"], "step 11?"),
        (["check", "2", "folder"], "folder: is a folder"),
        (["check", "2", "other.py"], "nothing of step 2 (split, get_batch) in it"),
        (["check", "2", "broken.py"], "broken.py, line 1: not Python"),
        (["start", "2", "broken.py"], "broken.py, line 1: not Python"),
        (["check", "2", "binary.py"], "binary.py: is UTF-16 text"),
        (["climb"], "climb"),
        (["check", "two"], "two"),
    ],
)
def test_bad_input_gets_a_sentence(args: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    before = sorted(tmp_path.iterdir())
    done = run(*args, folder=tmp_path)
    assert done.returncode == 2, done.stdout
    assert words in done.stderr and "try:" in done.stderr and "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_one_line_of_json_a_message() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tinygpt.exercise.steps", "1", str(SOLUTION)], capture_output=True, text=True
    )
    told: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(message) for message in told] == [{"begin", "look"}, {"passed"}] * 5
