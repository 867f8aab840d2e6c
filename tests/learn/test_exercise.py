"""The exercise: a correct solution passes, and each plausible mistake is found by the check that is meant for it."""

import csv
import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import cli, cli_here, listing, ok, until

from tinygpt.learn.exercise import child, runner
from tinygpt.learn.exercise.outline import template_steps

SOURCE = (Path(__file__).parents[1] / "solution.py").read_text(encoding="utf-8")

# (step, a mistake that a student may make: old -> new in the solution, the check that must find it, words of its report)
WRONG = [
    (1, "sorted(set(text))", "sorted(text)", "vocab_size is the number", "got=5 expected=4"),
    (1, "sorted(set(text))", "list(dict.fromkeys(text))", "token ids follow the sorted order", "expected=[0, 1, 2, 3, 4, 5]"),
    (1, "self.characters[i] for i in ids", "self.characters[i].lower() for i in ids", "decoding gives the text back", "first citizen"),
    (1, 'raise ValueError(f"{c!r} is not in the vocabulary")', "return []", "an unknown character raises", "got=[]"),
    (2, "return data[:cut], data[cut:]", "return data[-cut:], data[:-cut]", "the validation part is the end", "[0, 1]"),
    (2, "data[i : i + block_size] for i in starts])\n", "data[i : i + block_size] for i in starts]).float()\n", "x and y are int64", "torch.float32"),
    (2, "data[i + 1 : i + 1 + block_size]", "data[i : i + block_size]", "the target is the input shifted", "y[0] ="),
    (2, "len(data) - block_size,", "len(data) - block_size - 1,", "every window can be drawn", "starts [0, 1]"),
    (2, ", generator=generator)\n    x", ")\n    x", "windows are random", "same seed"),
    (3, "logits = self.table(idx)", "logits = self.table(idx)[:, -1]", "logits have shape (B, T, V), and the loss is None", "(2, 5)"),
    (3, "logits = self.table(idx)", "logits = self.table(idx).mean(1, keepdim=True) + self.table(idx)", "the logits depend on the current", "position 1"),
    (3, "F.cross_entropy(logits.flatten(0, 1), targets.flatten())\n\n\ndef counts", "F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction='sum')\n\n\ndef counts", "the loss is the mean", "averaged"),
    (3, ".log().mean()", ".log2().mean()", "counts_loss is the cross-entropy", "0.3819"),
    (3, "F.cross_entropy(logits.flatten(0, 1), targets.flatten())\n\n\ndef counts", "F.cross_entropy(logits.detach().flatten(0, 1), targets.flatten())\n\n\ndef counts", "training converges", "with a gradient"),
    (4, "return F.softmax(scores.masked_fill(mask, float(\"-inf\")), dim=-1)", "return F.softmax(scores, dim=-1).masked_fill(mask, 0)", "each row of attention weights", "the sums of the rows"),
    (4, 'scores.masked_fill(mask, float("-inf"))', "scores", "no position attends to a later one", "zeros above the diagonal"),
    (4, "scores = q @ k.transpose(-2, -1)", "scores = k @ k.transpose(-2, -1)", "equal scores give equal weights", "queries of zeros"),
    (4, " / math.sqrt(size)", "", "scores are scaled", "0.7311"),
    (4, "class Head(", "class Haed(", "the output is the weighted sum", "no Head in the file"),
    (4, "@ self.value(x)", "@ self.key(x)", "the output is the weighted sum", "PyTorch's attention"),
    (5, "return self.c_proj(y)\n", "return self.c_proj(y).sum(1)\n", "attention keeps the shape", "(2, 12)"),
    (5, "view(B, T, self.n_head, -1).transpose(1, 2)", "reshape(B, self.n_head, T, -1)", "no head attends to a later", "different outputs"),
    (5, ", is_causal=True)", ")", "no head attends to a later", "only at positions 4 and 5"),
    (5, "q, k, v = self.c_attn(x)", "k, q, v = self.c_attn(x)", "each head works on its own channels", "3 heads"),
    (5, "self.c_proj(F.gelu(self.c_fc(x)))", "self.c_proj(self.c_fc(x))", "the MLP is linear, GELU, linear", "MLP(8)"),
    (5, "x = x + self.attn(self.ln_1(x))", "x = self.attn(self.ln_1(x))", "a block adds to the residual stream", "zero"),
    (5, "x = x + self.mlp(self.ln_2(x))", "x = x + self.mlp(x)", "attention and the MLP each get", "followed by"),
    (6, "self.wpe.weight[: idx.shape[1]]", "self.wpe.weight", "logits have shape (B, T, V) for every T", "RuntimeError"),
    (6, "nn.init.normal_(module.weight, std=0.02)", "nn.init.normal_(module.weight, std=1.0)", "the loss of an untrained model", "about ln 11"),
    (6, "F.cross_entropy(logits.flatten(0, 1), targets.flatten())\n\n\ndef learning", "F.cross_entropy(logits[:, -1], targets[:, -1])\n\n\ndef learning", "the loss is the mean cross-entropy", "(3, 8)"),
    (6, "x = self.wte(idx) + self", "x = self.wte(idx) + self.wte(idx.flip(1)) + self", "logits do not depend on later tokens", "different outputs"),
    (6, "x = self.wte(idx) + self.wpe.weight[: idx.shape[1]]", "x = self.wte(idx)", "the order of earlier characters", "the same logits"),
    (6, "[Block(n_embd, n_head) for _ in range(n_layer)]", "[Block(n_embd, n_head)] * n_layer", "every parameter gets a gradient", "one block used twice"),
    (7, "peak * (step + 1) / (warmup + 1)", "peak * step / warmup", "the learning rate rises", "learning_rate(0"),
    (7, "(1 + math.cos(math.pi * share)) / 2", "(1 - share)", "the decay follows half a cosine", "learning_rate(34"),
    (7, "return loss.item()", "return model(x, y)[1].item()", "train_step returns the loss", "1.0000"),
    (7, '    for group in optimizer.param_groups:\n        group["lr"] = lr\n', "", "the update uses the given learning rate", "w = 2.0000"),
    (7, "    optimizer.zero_grad()\n", "", "each update uses the gradient of its own batch", "w = 0.3600"),
    (7, "    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)\n", "", "the gradient is clipped", "w = 0.2000"),
    (7, "    loss = model(x, y)[1]\n", "    loss = model(x, y)[1] if hasattr(model, 'w') else model(x, x)[1]\n", "one batch can be memorised", "at the end"),
    (8, "logits = logits / temperature", "logits = logits * temperature", "probabilities sum to one, and the temperature", "temperature 2.0"),
    (8, "logits = logits / temperature", "logits = logits / max(temperature, 0.5)", "a temperature near zero", "0.001"),
    (8, "logits < least", "logits <= least", "top_k keeps", "top_k 2"),
    (8, "before >= top_p", "p.cumsum(0) > top_p", "top_p keeps", "top_p 0.7"),
    (8, "    if top_k:\n        least", "    if top_k and top_p == 1:\n        least", "temperature comes first", "top_k 2 gives"),
    (8, "[0][:, -1]\n", "[0][:, 0]\n", "generate appends one token", "predicts n + 1"),
    (8, "idx[:, -block_size:]", "idx[:, :block_size]", "the model gets at most", "block_size 3"),
    (8, "torch.multinomial(p, 1, generator=generator)", "torch.multinomial(p, 1)", "tokens are random", "the same seed"),
    (8, "probabilities(row, temperature, top_k, top_p)", "probabilities(row, temperature)", "generate uses temperature", "top_k 3"),
    (9, "x = torch.full((block_size,), end)", "x = torch.full((block_size,), 0)", "x is the prompt", "[1, 2, 3, 4, 5, 0, 0, 0]"),
    (9, "y[len(prompt) - 1 : len(sequence) - 1] = torch.tensor(sequence[len(prompt) :])", "y[: len(sequence) - 1] = torch.tensor(sequence[1:])", "the prompt carries no loss", "[2, 3]"),
    (9, "y[len(prompt) - 1 : len(sequence) - 1] = torch.tensor(sequence[len(prompt) :])", "y[len(prompt) : len(sequence) - 1] = torch.tensor(sequence[len(prompt) + 1 :])", "the first token of the response", "[-1, 5]"),
    (9, "y[len(prompt) - 1 : len(sequence) - 1] = torch.tensor(sequence[len(prompt) :])", "y[len(prompt) - 1 : len(sequence) - 2] = torch.tensor(sequence[len(prompt) : -1])", "the end token is a target", "-1"),
    (9, "    return x, y\n\n\ndef masked", "    y[len(sequence) - 1 :] = end\n    return x, y\n\n\ndef masked", "padding carries no loss", "[9, 9, 9]"),
    (9, "targets.flatten(), ignore_index=-1)", "targets.flatten(), ignore_index=-1, reduction='sum') / targets.numel()", "the loss is the mean over the targets", "three terms"),
    (9, "ignore_index=-1)", "ignore_index=-1) + 0 * logits.sum() + (logits.mean() - logits.mean().detach())", "the logits at masked positions", "zeros"),
    (10, "torch.randn(rank, linear.in_features)", "torch.randn(linear.in_features, rank)", "A is (rank, in_features)", "(6, 2)"),
    (10, "torch.zeros(linear.out_features, rank)", "torch.randn(linear.out_features, rank)", "a new adapter does not change", "that it wraps"),
    (10, "linear.requires_grad_(False)", "linear", "only A and B are trainable", "linear.weight"),
    (10, "torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features)", "torch.zeros(rank, linear.in_features)", "a new adapter can learn", "the gradients of A and B"),
    (10, "self.scale = alpha / rank", "self.scale = alpha", "the adapter adds", "alpha 8, rank 2"),
    (10, "self.linear.weight + self.scale * self.B @ self.A", "self.linear.weight + self.B @ self.A", "the merged layer computes", "compared with the LoRALinear"),
    (10, "out.weight.data = self.linear.weight + self.scale * self.B @ self.A", "out.weight.data = self.linear.weight.data.add_(self.scale * self.B.data @ self.A.data)", "merging does not change", "after merged()"),
]  # fmt: skip


def checks_in(step: int) -> list[Any]:
    """The checks of a step, in their order."""
    ladder = importlib.import_module(f"{runner.STEPS}.test_step{step:02}")
    return [test for name, test in vars(ladder).items() if name.startswith("test_")]


def verdict(step: int, source: str, path: Path) -> tuple[str, str]:
    """The first check that the source fails, and its report in a line; two empty strings if it passes all."""
    path.write_text(source, encoding="utf-8")
    my = child.load(str(path))
    for test in checks_in(step):
        torch.manual_seed(0)
        try:
            test(my)
        except Exception as error:
            found = child.describe(error, str(path))
            return test.check[0], " ".join(f"{key}={value}" for key, value in found.items())
    return "", ""


def test_the_solution_and_other_designs_pass(tmp_path: Path) -> None:
    lora = SOURCE.replace("torch.zeros(linear.out_features, rank)", "torch.randn(linear.out_features, rank)")
    others = [
        (1, SOURCE.replace("raise ValueError(", "raise RuntimeError(")),
        (6, SOURCE.replace("self.h", "self.layers")),
        # either of the two matrices may begin with zeros
        (10, re.sub(r"torch.randn\(rank, .*\)\)", "torch.zeros(rank, linear.in_features))", lora)),
    ]
    for step, source in [*((step, SOURCE) for step in range(1, 11)), *others]:
        assert verdict(step, source, tmp_path / "my_gpt.py") == ("", ""), step


@pytest.mark.parametrize(("step", "old", "new", "name", "words"), WRONG, ids=lambda v: v if isinstance(v, int) else "")
def test_a_mistake_is_found_by_its_check(step: int, old: str, new: str, name: str, words: str, tmp_path: Path) -> None:
    assert old in SOURCE
    found, report = verdict(step, SOURCE.replace(old, new), tmp_path / "my_gpt.py")
    assert found.startswith(name), f"{found!r} found it: {report}"
    assert words in report, report


def solution_of(*numbers: int) -> str:
    """The solution of these steps, without the imports."""
    names = [name for number in numbers for name in template_steps()[1][number - 1].names]
    parts = re.split(r"\n\n\n(?=class |def |@)", SOURCE)
    found = [part.strip() for part in parts if re.search(rf"^(class|def) ({'|'.join(names)})\b", part, re.MULTILINE)]
    return "\n\n\n".join(found) + "\n"


@pytest.mark.slow
def test_the_steps_are_solved_from_their_templates(tmp_path: Path) -> None:
    """start gives what is to be filled in, check says so, and the solution in its place passes."""
    file, written = tmp_path / "my_gpt.py", ""
    for step in range(1, 11):
        assert f"tinygpt exercise check {step}" in ok(tmp_path, "exercise", "start", str(step)).out
        template = file.read_text()
        assert template.startswith(written)  # what was there stays
        if step == 6:
            empty = cli("exercise", "check", "6", cwd=tmp_path)
            assert empty.status == 1 and "not written yet: line" in empty.out and "Traceback" not in empty.err
            assert "then again: tinygpt exercise check 6\n" in empty.out
        head = template[: template.index(f"# ==== step {step}:")]
        written = head + f"# ==== step {step}: mine ====\n\n\n{solution_of(step)}"
        file.write_text(written)
    file.write_text(written + "\nimport os\nprint('seen')\nos.write(1, b'here')\n")
    passed = cli("exercise", "check", cwd=tmp_path)
    assert passed.status == 0, passed
    assert "seen" in passed.err and "here" in passed.err and "seen" not in passed.out  # to debug with print
    assert passed.out.count("PASS  ") > 40
    assert "FAIL" not in passed.out and "This is a complete GPT." in passed.out


IMPORTS = SOURCE.partition("class ")[0]


def raising(error: str) -> str:
    """The first step, with an error in place of a result."""
    return solution_of(1).replace("return", f"raise {error}\n        return")


IMPORTED, FIRST = "step 1: the file can be imported", "step 1: vocab_size is the number of distinct characters"
IDS = "step 1: token ids follow the sorted order of the characters"
OVERLAP = "step 2: the validation part is the end of the data, without overlap"
CLASS = {  # file: source, the results of its steps, the first failed check, words of the message
    "anna_17_file/my_gpt.py": ("import my_helpers\n" + solution_of(1, 3), "1 PASS, 3 PASS", "", ""),
    "anna_17_file/my_helpers.py": ("import math\n", "", "", ""),
    "random.py": ("raise ImportError('a neighbour')\n", "", "", ""),
    "Zoë Müller_18_file/my gpt.py": (solution_of(4).replace(" / math.sqrt(size)", ""), "4 FAIL", "step 4: scores are scaled by 1 / sqrt(head_size)", "0.7311"),
    "loop.py": (solution_of(1) + "def split(data, val_fraction):\n    import time\n    while True:\n        time.sleep(1)\n" + solution_of(3), "1 PASS, 2 FAIL, 3 PASS", OVERLAP, "got: Failed: Timeout (>15.0s) from pytest-timeout. line "),
    "segfault.py": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n" + solution_of(1), "1 FAIL", IMPORTED, "the Python process was killed by signal 11"),
    "later.py": ("import os\nfor _ in range(200):\n    print('x' * 100_000)\n    os.write(1, b'y' * 100_000)\n" + raising("NotImplementedError('later \\ud800')"), "1 FAIL", IDS, "got: NotImplementedError: later"),
    "exit.py": ("raise SystemExit(0)\n" + solution_of(1, 3), "1 FAIL, 3 FAIL", IMPORTED, "got: SystemExit: 0 line"),
    "os_exit.py": (solution_of(1).replace("self.vocab_size =", "import os; os._exit(0); self.vocab_size =") + solution_of(3), "1 FAIL, 3 PASS", FIRST, "exit status 0"),
    "broken.py": (solution_of(1, 3) + "def (:\n", "1 FAIL, 3 FAIL", IMPORTED, "invalid syntax"),
    "odd.py": (solution_of(2).replace("def split(", "def mine(") + "split = mine\nimport threading; threading.Thread(target=threading.Event().wait).start()\n" + solution_of(8, 10).replace("@torch.no_grad()\n", "").replace("    for _ in range(max_new", "    torch.set_grad_enabled(False)\n    for _ in range(max_new"), "2 PASS, 8 PASS, 10 PASS", "", ""),
    "=1+1.py": ("x = 1\n", "", "", ""),
    "latin.py": ("# caf\u00e9\n", "", "the file can be read", "got: not UTF-8 text (byte 0xe9 at offset 0)"),
}  # fmt: skip
FEW = ["anna_17_file/my_gpt.py", "anna_17_file/my_helpers.py", "random.py", "broken.py", "=1+1.py", "latin.py"]
FEW += ["os_exit.py"]
REST = [name for name in CLASS if name not in FEW] + ["latin.py"]


def table(path: Path) -> list[dict[str, str]]:
    assert path.read_bytes().startswith(b"\xef\xbb\xbffile,")
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("names", "sums"),
    [
        (FEW, "   1       1       2        4  the file can be imported (1)"),
        pytest.param(REST, "   1       1       3        3  the file can be imported (2)", marks=pytest.mark.slow),
    ],
    ids=["few", "rest"],
)
def test_a_class_is_checked(names: list[str], sums: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file per kind of mistake; none has an effect on another file, or on the other steps of its own file."""
    if "loop.py" in names:  # which never ends
        monkeypatch.setattr(runner, "LIMIT", 15)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    chosen = {name: CLASS[name] for name in names}
    folder, grades = tmp_path / "my class", tmp_path / "grades.csv"
    unread = [".hidden.py", "__pycache__/a.py", ".git/a.py", "venv/lib/site-packages/a.py", "notes.txt", "emil/a.ipynb"]
    sources = {name: IMPORTS + source for name, (source, *_) in chosen.items()} | dict.fromkeys(unread, SOURCE)
    for name, source in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source, encoding="utf-8")
    (folder / "latin.py").write_bytes(b"\xe9")
    old = ",".join(["file", *(f"step {n}" for n in range(1, 11)), "steps passed", "first failed check", "message"])
    grades.write_text(f"{old}\nold.py\n", encoding="utf-8-sig")  # a table of its own is replaced
    before = listing(folder)
    done = cli_here("exercise", "check", folder, f"--csv={grades}", cwd=tmp_path)
    assert done.status == 1 and listing(folder) == before
    rows = table(grades)
    assert [row["file"] for row in rows] == sorted(f"'{name}" if name[0] == "=" else name for name in chosen)
    for row in rows:
        _, results, check, words = chosen[row["file"].removeprefix("'")]
        found = ", ".join(f"{n} {row[f'step {n}']}" for n in range(1, 11) if row[f"step {n}"])
        assert (found, row["first failed check"]) == (results, check), row
        assert int(row["steps passed"]) == results.count("PASS")
        assert words in row["message"] and bool(words) == bool(row["message"]), row
        line = next(line for line in done.out.splitlines() if f"  {row['file'].removeprefix(chr(39))}  " in line)
        assert line.startswith("  FAIL  " if check else "  PASS  " if results else "  NONE  ") and line.endswith(check)
    assert "  note: not checked, not *.py: emil/a.ipynb, notes.txt" in done.out
    assert "  note: subfolders without a Python file: emil, venv\n" in done.out
    assert sums in done.out.splitlines(), done.out


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_ends_the_processes(tmp_path: Path) -> None:
    wait = "import os, time\nopen('pid.txt', 'w').write(str(os.getpid()))\ntime.sleep(600)\ndef split(): ...\n"
    (tmp_path / "my_gpt.py").write_text(wait)
    arguments = [sys.executable, "-m", "tinygpt", "exercise", "check", ".", "--csv=grades.csv"]
    with (
        open(tmp_path / "log", "w+") as log,
        subprocess.Popen(arguments, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True) as checking,
    ):
        file = tmp_path / "pid.txt"
        until(lambda: (file.exists() and file.read_text()) or checking.poll() is not None)
        assert checking.poll() is None, (tmp_path / "log").read_text()
        pid = int(file.read_text())
        os.killpg(checking.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    assert checking.returncode == 130 and (not state or state.startswith("Z"))
    assert not (tmp_path / "grades.csv").exists()
