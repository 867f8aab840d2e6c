"""Measure tinygpt and nanoGPT on this machine: speed, loss in a given time, memory.

    python scripts/bench.py --nanogpt ../nanoGPT                  # all rows of a CPU: half an hour on two cores
    python scripts/bench.py --device=cuda --nanogpt ../nanoGPT    # the rows of a GPU instead: a text to send in
    python scripts/bench.py --quick                               # a test of this script; its figures mean nothing

Without a checkout of nanoGPT only tinygpt is measured, in the time NANOGPT_SECONDS. All work is done in a temporary
folder, with a copy of nanoGPT's files; nothing is downloaded. The method:

- Both programs train nanoGPT's recipe for a CPU. nanoGPT computes in float32 on every CPU, and so does `tinygpt
  sample`; the training rows have tinygpt's dtype.
- A whole command runs in its own process, from start to exit. Its peak memory is the kernel's figure, which is never
  below the memory of this script; so this script imports neither torch nor numpy.
- Steps and generation are measured in two processes that stay loaded and take turns, A B A B; the first round is
  discarded. A ratio is the median of the rounds' ratios.
- Losses are of the complete validation split: of tinygpt's last.pt, and of the best model by nanoGPT's own estimate.
- `same_time`, `six_times`: the iterations that fit into 1 and 6 times nanoGPT's time, by two short runs.
- `gpu`, `gpu_124M`: nanoGPT's recipe for a GPU, and GPT-2's size (5 micro-steps of 12 rows, the share of one of 8 GPUs)
  on Tiny Shakespeare, in the dtype that tinygpt chooses, both compiled.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__mp_main__":  # in the process of a program
    import numpy as np
    import torch

    import tinygpt
    from tinygpt.base.configs.core import TrainConfig
    from tinygpt.base.configs.parse import parse
    from tinygpt.generate import Sampling, generate
    from tinygpt.train import batch, forward_backward, require_finite_loss
    from tinygpt.training.optimizer import learning_rate
    from tinygpt.training.run import set_up
    from tinygpt.training.start import resolve

RECIPE = "configs/nanogpt.yaml"
FAST = "configs/shakespeare_char_fast.yaml"
BEST = "configs/shakespeare_char_best.yaml"
NANOGPT_RECIPE = [  # from its README, for a CPU
    "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=10",
    "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000",
    "--lr_decay_iters=2000", "--dropout=0.0",
]  # fmt: skip
# the advice in BEST for a run of a minute or two
SHORT = ["--block_size=128", "--batch_size=16", "--weight_decay=0.1", "--sampling=independent"]
STEPS = {  # rows of training steps: dataset, preset and flags
    "step": ("shakespeare_char", RECIPE),
    "gpu": ("shakespeare_char", "configs/shakespeare_char_gpu.yaml"),
    "gpu_124M": ("shakespeare", "gpt2_openwebtext", "--gradient_accumulation_steps=5"),
}
TINY = ["--n_layer=1", "--n_head=2", "--n_embd=32", "--block_size=16", "--batch_size=2"]  # --quick
NANOGPT_SECONDS = 87.0  # its whole training command on two cores with AVX512, used without a checkout
ROWS = {  # what, unit
    "step": ("step time, same recipe", "ms"),
    "flops": ("matmul FLOP/s of a step / large products'", "GFLOP/s"),
    "to_loss": ("whole command until loss 1.886", "s"),  # nanoGPT's own estimate at the end of its recipe
    "same_time": ("loss in nanoGPT's time", "nats"),
    "six_times": ("loss in 6 x that time", "nats"),
    "memory": ("peak memory of training the recipe", "MB"),
    "sample_command": ("sample 10 x 500, whole command", "s"),
    "sample_batch": ("10 samples, once loaded", "tokens/s"),
    "sample_stream": ("one sample, once loaded", "tokens/s"),
    "prepare": ("prepare 56 MB of characters", "s"),
    "prepare_memory": ("peak memory of prepare at 1 GB", "MB"),
    "help": ("tinygpt --help", "s"),
    "gpu": ("step, nanoGPT's recipe for a GPU", "ms"),
    "gpu_124M": ("step, GPT-2's size", "ms"),
}
EACH = ("step", "flops", "to_loss", "same_time", "six_times", "memory")  # in each dtype of --dtype


class Result(NamedTuple):  # of a row in one dtype
    theirs: float | None  # nanoGPT's median
    ours: float
    ratio: float | None  # the median of the rounds' ratios
    note: str


class Command(NamedTuple):
    wall: float
    peak_mb: float
    lines: list[str]


def run(args: list[str], cwd: Path) -> Command:
    """Run a command to its end. Errors: RuntimeError with the last lines of its output."""
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    start = time.perf_counter()
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(args, cwd=cwd, env=env, **pipes) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError("\n".join([f"{' '.join(args[1:4])} ... ended with {process.returncode}:", *lines[-6:]]))
    return Command(wall, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3 / 1.024), lines)


class NanoGPT:
    """In a process of its own: the code of train.py and of sample.py."""

    def start(self, device: str, dtype: str, compiled: bool, vocab_size: int, c: dict[str, Any]) -> None:
        from model import GPT, GPTConfig

        torch.manual_seed(1337)
        torch.backends.cuda.matmul.allow_tf32 = True
        shape = {name: c[name] for name in ("n_layer", "n_head", "n_embd", "block_size", "dropout")}
        self.c = c
        self.device = device
        self.kind = torch.device(device).type
        self.model = GPT(GPTConfig(bias=False, vocab_size=vocab_size, **shape)).to(device)
        self.autocast = functools.partial(torch.autocast, self.kind, getattr(torch, dtype), dtype != "float32")
        self.scaler = torch.amp.GradScaler(self.kind, enabled=dtype == "float16")
        betas = (c["beta1"], c["beta2"])
        self.optimizer = self.model.configure_optimizers(c["weight_decay"], c["learning_rate"], betas, self.kind)
        self.fast = torch.compile(self.model) if compiled else self.model
        self.iteration = 0
        self.ahead = self.batch()

    def batch(self) -> Any:
        """Draw inputs and targets, int64 (B, T)."""
        data = np.memmap(f"data/{self.c['dataset']}/train.bin", dtype=np.uint16, mode="r")
        T = self.c["block_size"]
        ix = torch.randint(len(data) - T, (self.c["batch_size"],))
        x = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in ix])
        if self.kind == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.c["learning_rate"]
        for _ in range(self.c["gradient_accumulation_steps"]):
            with self.autocast():
                loss = self.fast(*self.ahead)[1] / self.c["gradient_accumulation_steps"]
            self.ahead = self.batch()  # as in nanoGPT's loop, between the forward and the backward pass
            self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.c["grad_clip"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.iteration % self.c["log_interval"] == 0:
            loss.item()
        self.iteration += 1

    def sample(self, samples: int, tokens: int) -> float:
        """Measure tokens per second."""
        from model import GPT, GPTConfig

        saved = torch.load("out-shakespeare-char/ckpt.pt", map_location="cpu")
        model = GPT(GPTConfig(**saved["model_args"])).eval()
        model.load_state_dict(saved["model"])
        prompt = torch.zeros((1, 1), dtype=torch.long)
        with torch.no_grad():
            return tokens / timed(lambda: model.generate(prompt, tokens, 0.8, 200)[0].tolist(), samples)


class TinyGPT:
    """In a process of its own: a training step and generation, by the code of the commands."""

    def start(self, name: str, dtype: str, *flags: str) -> dict[str, Any]:
        """Begin a training; return what nanoGPT must know to do the same."""
        # eval_only: writes no files
        config = parse(TrainConfig, [*flags, f"--device={name}", f"--dtype={dtype}", "--eval_only", "--quiet"])
        stack = contextlib.ExitStack()
        self.run = set_up(stack, resolve(stack, config))
        self.ahead = batch(self.run, 0)
        size = self.run.model.num_params()
        flop_per_token = 6 * size + 12 * config.n_layer * config.n_embd * config.block_size  # the latter: attention
        tokens = config.batch_size * config.gradient_accumulation_steps * config.block_size
        dtype = str(self.run.compute.dtype).removeprefix("torch.")
        return {
            "nanoGPT": [dtype, self.run.compiled, self.run.model.config.vocab_size, vars(config)],
            "parameters": size,
            "tokens": tokens,
            "flop": tokens * flop_per_token,
        }

    def step(self) -> None:
        run, step = self.run, self.run.progress.step
        run.optimizer.set_learning_rate(learning_rate(step, run.config))
        loss, norm = forward_backward(run, *self.ahead)
        self.ahead = batch(run, step + 1)
        if step % run.config.log_interval == 0 or run.compute.device.type == "cpu":
            require_finite_loss(run, loss, norm)
        run.optimizer.update()
        run.progress.step += 1

    def large_products(self, size: int, count: int) -> float:
        """Measure FLOP/s."""
        compute = self.run.compute
        a, b, out = (torch.randn(size, size, device=compute.device).to(compute.dtype) for _ in range(3))
        return 2 * size**3 / timed(lambda: torch.mm(a, b, out=out), count)

    def sample(self, samples: int, tokens: int) -> float:
        """Measure tokens per second."""
        model = tinygpt.load("out-recipe-float32/last.pt", device="cpu", dtype="float32")
        prompt = torch.tensor(model.tokenizer.encode("\n").astype("int64")).expand(samples, -1)
        rows = generate(model.model, prompt, tokens, Sampling(0.8, 200), model.tokenizer.vocab_size)
        return samples * tokens / timed(lambda: [row.tolist() for row in rows], 1)


def timed(call: Callable[[], Any], count: int) -> float:
    """Measure the seconds of one of `count` calls."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else list
    wait()
    began = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return (time.perf_counter() - began) / count


loaded: NanoGPT | TinyGPT  # in the process of a program


def load(program: type, folder: Path) -> None:
    global loaded
    os.dup2(2, 1)  # what the programs print does not belong to the table
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    loaded = program()


def call(function: str, *args: Any) -> Any:
    """Call a function of the program; `steps` measures the seconds of a step."""
    return timed(loaded.step, *args) if function == "steps" else getattr(loaded, function)(*args)


class Bench:
    """The measurements, in one folder: a method per row, which gets the dtype."""

    def __init__(self, folder: Path, nanogpt: Path | None, quick: bool = False, device: str = "cpu") -> None:
        self.folder = folder
        self.quick = quick
        self.device = device
        self.folders = {NanoGPT: folder / "nanogpt", TinyGPT: folder}
        self.programs: list[type] = [NanoGPT, TinyGPT] if nanogpt else [TinyGPT]
        self.trainings: dict[str, tuple[float, float]] = {}  # wall time and loss, for several rows
        self.rounds = functools.cache(self._rounds)
        self.tinygpt("prepare", "shakespeare_char")
        self.text = (folder / "data/shakespeare_char/input.txt").read_bytes()
        if nanogpt:
            left_out = shutil.ignore_patterns(".git", "out*", "*.bin", "*.pkl", "input.txt", "*.ipynb", "assets")
            shutil.copytree(nanogpt, folder / "nanogpt", ignore=left_out)
            (folder / "nanogpt/data/shakespeare_char/input.txt").write_bytes(self.text)
            self.nanogpt("data/shakespeare_char/prepare.py")

    def tinygpt(self, *args: str) -> Command:
        return run([sys.executable, "-m", "tinygpt", *args], self.folder)

    def nanogpt(self, *args: str) -> Command:
        return run([sys.executable, *args], self.folders[NanoGPT])

    def processes(self, stack: contextlib.ExitStack) -> dict[type, Callable[..., Any]]:
        """Start a process for each program; each value calls a function of the program there."""
        found: dict[type, Callable[..., Any]] = {}
        for program in self.programs:
            pool = ProcessPoolExecutor(1, get_context("spawn"), load, (program, self.folders[program]))
            stack.callback(pool.shutdown)
            found[program] = lambda *request, pool=pool: pool.submit(call, *request).result()
        return found

    def alternating(self, theirs: Callable[[], float], ours: Callable[[], float], times: int = 3) -> Result:
        measured: dict[type, list[float]] = {NanoGPT: [], TinyGPT: []}
        for _ in range(1 if self.quick else times):
            for program in self.programs:
                measured[program].append(theirs() if program is NanoGPT else ours())
        return compared(*measured.values())

    def _rounds(self, row: str, dtype: str) -> dict[str, Any]:
        """Measure rounds of both programs' steps and of large products, in turn: ms of a step, FLOP/s."""
        dataset, *flags = STEPS[row]
        on_gpu = self.device != "cpu"
        seconds = 0 if self.quick else 3 if on_gpu else 0.7  # of a round
        self.tinygpt("prepare", dataset)
        with contextlib.ExitStack() as stack:
            processes = self.processes(stack)
            flags += [f"--dataset={dataset}", *(TINY if self.quick else [])]
            facts = processes[TinyGPT]("start", self.device, dtype, *flags)
            if NanoGPT in processes:
                shutil.copytree(self.folder / "data", self.folder / "nanogpt/data", dirs_exist_ok=True)
                its_dtype, *same = facts["nanoGPT"]
                processes[NanoGPT]("start", self.device, its_dtype if on_gpu else "float32", *same)
            counts = {program: max(2, round(seconds / ask("steps", 2))) for program, ask in processes.items()}
            found: dict[str, Any] = {"NanoGPT": [], "TinyGPT": [], "products": [], "facts": facts}
            for index in range(3 if self.quick else 13):
                times = {program.__name__: 1e3 * ask("steps", counts[program]) for program, ask in processes.items()}
                times["products"] = processes[TinyGPT](
                    "large_products", *((8192, 10) if on_gpu else (256, 2) if self.quick else (2048, 4))
                )
                for name in times if index else []:
                    found[name].append(times[name])
        return found | {"compared": compared(found["NanoGPT"], found["TinyGPT"])}

    def step(self, dtype: str) -> Result:
        return self.rounds("step", dtype)["compared"]

    def flops(self, dtype: str, row: str = "step") -> Result:
        found = self.rounds(row, dtype)
        rates = [found["facts"]["flop"] / ms / 1e6 for ms in found["TinyGPT"]]
        products = [rate / 1e9 for rate in found["products"]]
        share = statistics.median(rate / product for rate, product in zip(rates, products, strict=True))
        note = f"large products: {statistics.median(products):,.0f} GFLOP/s, tinygpt {share:.0%} of it"
        return Result(None, statistics.median(rates), None, note)

    def gpu(self, _: str, row: str = "gpu") -> Result:
        found = self.rounds(row, "auto")
        facts = found["facts"]
        dtype, compiled, *_ = facts["nanoGPT"]
        size = f"{facts['parameters']:,} parameters, {facts['tokens']:,} tokens, {dtype}, compiled: {compiled}"
        return found["compared"]._replace(note=f"{found['compared'].note}; {size}; {self.flops('auto', row).note}")

    gpu_124M = functools.partialmethod(gpu, row="gpu_124M")

    def train(self, name: str, preset: str, dtype: str, *flags: str) -> tuple[float, float]:
        """Run the whole command `tinygpt train`, and measure its loss: wall time and loss."""
        name = f"{name}-{dtype}"
        short = [*TINY, "--max_iters=40", "--eval_interval=20", "--eval_iters=2"] if self.quick else []
        here = ["--device=cpu", f"--dtype={dtype}", f"--out_dir=out-{name}"]
        return self.finished(name, self.tinygpt("train", preset, *here, *flags, *short), f"out-{name}/last.pt")

    def finished(self, name: str, command: Command, ckpt: str) -> tuple[float, float]:
        output = self.tinygpt("eval", "--ckpt", ckpt, "--dataset=shakespeare_char", "--device=cpu", "--json").lines
        loss = json.loads(next(line for line in reversed(output) if line.startswith("{")))["loss"]
        say(f"  {name}: {command.wall:.1f} s, validation loss {loss:.4f} (complete split)")
        self.trainings[name] = command.wall, loss
        return self.trainings[name]

    def theirs(self) -> tuple[float, float | None]:
        """Train nanoGPT's recipe with nanoGPT, once."""
        if NanoGPT not in self.programs:
            return NANOGPT_SECONDS, None
        if "nanogpt" not in self.trainings:
            short = ["--max_iters=40", "--eval_interval=20", "--eval_iters=2"] if self.quick else []
            command = self.nanogpt("train.py", *NANOGPT_RECIPE, *short)
            self.finished("nanogpt", command, "nanogpt/out-shakespeare-char/ckpt.pt")
        return self.trainings["nanogpt"]

    def to_loss(self, dtype: str) -> Result:
        ours = [self.train(f"fast-{seed}", FAST, dtype, f"--seed={seed}") for seed in (1337, 1338, 1339)]
        wall, loss = self.theirs()
        result = compared([wall] * 3 if loss else [], [wall for wall, _ in ours])
        losses = [loss for _, loss in ours] + ([loss] if loss else [])
        return result._replace(note=f"losses {', '.join(f'{loss:.4f}' for loss in losses)}")

    def within(self, dtype: str, times: float, flags: Iterable[str] = ()) -> Result:
        """Train the best preset for as many iterations as fit into `times` the wall time of nanoGPT's command."""
        reference, their_loss = self.theirs()
        budget = times * reference
        flags = [BEST, dtype, *flags]
        pace = [self.train("pace", *flags, f"--max_iters={n}", "--eval_interval=100")[0] for n in (100, 300)]
        iterations = 300 + int(200 * (0.98 * budget - pace[1]) / max(pace[1] - pace[0], 0.1))
        say(f"  {iterations} iterations should fit into {budget:.0f} s")
        wall, loss = self.train(f"times-{times}", *flags, f"--max_iters={iterations}", "--eval_interval=300")
        return Result(their_loss, loss, None, f"{iterations} iterations, {wall:.1f} s of {budget:.1f} s")

    same_time = functools.partialmethod(within, times=1, flags=SHORT)
    six_times = functools.partialmethod(within, times=6)

    def trained_both(self) -> int:
        """Make sure that both programs have a checkpoint. Returns the number of tokens to sample."""
        if "recipe-float32" not in self.trainings:
            self.train("recipe", RECIPE, "float32")
        self.theirs()
        return 50 if self.quick else 500

    def sample_command(self, _: str) -> Result:
        flags = ["--num_samples=10", f"--max_new_tokens={self.trained_both()}", "--device=cpu"]
        return self.alternating(
            lambda: self.nanogpt("sample.py", "--out_dir=out-shakespeare-char", "--compile=False", *flags).wall,
            lambda: self.tinygpt("sample", "--ckpt=out-recipe-float32", *flags).wall,
        )

    def sample_loaded(self, _: str, samples: int, times: int) -> Result:
        """Measure tokens per second; the ratio is tinygpt's over nanoGPT's."""
        tokens = self.trained_both()
        with contextlib.ExitStack() as stack:
            processes = self.processes(stack)
            for ask in processes.values():
                ask("sample", samples, 20)
            theirs, ours = (lambda kind=kind: processes[kind]("sample", samples, tokens) for kind in (NanoGPT, TinyGPT))
            result = self.alternating(theirs, ours, times)
        return result._replace(ratio=1 / result.ratio if result.ratio else None)

    sample_batch = functools.partialmethod(sample_loaded, samples=10, times=3)
    sample_stream = functools.partialmethod(sample_loaded, samples=1, times=7)

    def prepare(self, _: str) -> Result:
        text = self.folder / "nanogpt/data/large/input.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_bytes(self.text * (2 if self.quick else 50))
        if NanoGPT in self.programs:
            shutil.copy(self.folder / "nanogpt/data/shakespeare_char/prepare.py", text.parent)
        return self.alternating(
            lambda: self.nanogpt("data/large/prepare.py").wall,
            lambda: self.tinygpt("prepare", "large", "--input", str(text)).wall,
        )

    def prepare_memory(self, _: str) -> Result:
        text = self.folder / "huge.txt"
        with open(text, "wb") as file:
            for _ in range(20 if self.quick else round(1e9 / len(self.text))):
                file.write(self.text)
        done = self.tinygpt("prepare", "huge", "--input", str(text))
        return Result(None, done.peak_mb, None, f"{text.stat().st_size / 1e6:.0f} MB in {done.wall:.1f} s")

    def help(self, _: str) -> Result:
        return compared([], [self.tinygpt("--help").wall for _ in range(2 if self.quick else 9)])

    def memory(self, dtype: str) -> Result:
        iterations = 20 if self.quick else 200  # both programs evaluate and save a checkpoint on the way
        flags = [f"--max_iters={iterations}", f"--eval_interval={iterations // 2}", "--device=cpu"]
        return self.alternating(
            lambda: self.nanogpt("train.py", *NANOGPT_RECIPE, *flags).peak_mb,
            lambda: self.tinygpt("train", RECIPE, f"--dtype={dtype}", "--out_dir=out-memory", *flags).peak_mb,
            times=1,
        )


def compared(theirs: list[float], ours: list[float]) -> Result:
    """Compute both programs' medians, and that of the rounds' ratios theirs / ours."""
    if not theirs:
        return Result(None, statistics.median(ours), None, spread(ours))
    ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    return Result(statistics.median(theirs), statistics.median(ours), ratio, f"{spread(theirs)} and {spread(ours)}")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def shown(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.1f}" if abs(number) >= 10 else f"{number:.3g}"


def spread(numbers: list[float]) -> str:
    return f"{shown(min(numbers))}..{shown(max(numbers))}"


def processor() -> str:
    """Return the processor's name and its number of CPUs."""
    name = platform.processor()
    if sys.platform == "linux":
        name = Path("/proc/cpuinfo").read_text("utf-8").partition("model name\t: ")[2].partition("\n")[0]
    return f"{name or 'unknown'}, {os.cpu_count()} CPUs"


def main() -> int:
    """Measure row by row, and print each line at once. A row that fails does not stop the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT to compare with")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    dtypes = "of the training rows; auto: both where the processor has bfloat16 hardware, else float32"
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help=dtypes)
    parser.add_argument("--device", default="cpu", help="cuda: the rows of a GPU")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test this script")
    args = parser.parse_args()
    if args.nanogpt and not (args.nanogpt / "train.py").exists():
        parser.error(f"{args.nanogpt} is not a checkout of nanoGPT (it has no train.py)")
    code = f"import torch; from tinygpt.base import device; compute = device.choose({args.device!r}, 'auto'); "
    code += "print('torch ' + torch.__version__, compute.describe(), compute.dtype, sep='\\n')"
    failed = False
    with tempfile.TemporaryDirectory(prefix="tinygpt-bench-", ignore_cleanup_errors=True) as folder:
        *about, native = run([sys.executable, "-c", code], Path(folder)).lines
        auto = ["bfloat16", "float32"] if native == "torch.bfloat16" else ["float32"]
        dtypes = auto if args.dtype == "auto" else [args.dtype]
        bench = Bench(Path(folder), args.nanogpt, args.quick, args.device)
        print(processor(), *about, f"load: {os.getloadavg()[0]:.1f}; --quick: {args.quick}", "", sep="\n")
        print("| row | dtype | unit | nanoGPT | tinygpt | ratio | spread, remarks |")
        print(f"|{'---|' * 7}", flush=True)
        for name in args.rows or [row for row in ROWS if row.startswith("gpu") == (args.device != "cpu")]:
            what, unit = ROWS[name]
            for dtype in dtypes if name in EACH else [""]:
                say(f"{name}: {what} {dtype}")
                try:
                    *medians, note = getattr(bench, name)(dtype)
                    cells = [f"{x:.4f}" if unit == "nats" and x is not None else shown(x) for x in medians]
                    print(f"| {' | '.join([what, dtype, unit, *cells, note])} |", flush=True)
                except Exception as error:
                    say(f"  failed: {error}")
                    failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
