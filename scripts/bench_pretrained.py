"""Compare tinygpt's speed and memory on a pretrained model with transformers, PEFT and llama.cpp.

    tinygpt import smollm2 --out_dir out-smollm2 && tinygpt prepare transactions
    python scripts/bench_pretrained.py --ckpt out-smollm2

Rows: LoRA training (rank 8 on all matrices, batches of 16 transactions, bfloat16), greedy decoding of one sample, the
import and loading. Each measurement is a process of its own, in the order A B A B, and the median is printed. Tokens
of LoRA are those of the examples, without padding, and both sides see the same batches. llama.cpp is measured if
TINYGPT_LLAMA_PYTHON names a Python that has xllamacpp (`scripts/clients.py llama --keep FOLDER` makes one).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH, RANK, WARM, STEPS = 16, 8, 2, 8
PROMPT, NEW = "Explain in a few sentences what a bank does with the money of its customers.", 100


def lora_config(ckpt: str, out: str, data_dir: str) -> Any:
    from tinygpt.config.schema import FinetuneConfig

    return FinetuneConfig(
        ckpt=ckpt, init_from=ckpt, out_dir=out, data_dir=data_dir, dataset="transactions", batch_size=BATCH,
        block_size=128, lora_rank=RANK, learning_rate=1e-3, device="cpu", dtype="bfloat16", quiet=True, max_iters=100,
    )  # fmt: skip


def batches(ckpt: str, data_dir: str) -> list[Any]:
    """The examples of WARM + STEPS batches as lists of token ids, and the number of tokens of each prompt."""
    from tinygpt.checkpoint.store import load
    from tinygpt.data.dataset import Dataset
    from tinygpt.data.tokenizer import tokenizer_from_dict

    dataset = Dataset(data_dir, "transactions")
    dataset.adopt_tokenizer(tokenizer_from_dict(load(ckpt).tokenizer, ckpt))
    source: Any = dataset.sources["train"]
    made = []
    for step in range(WARM + STEPS):
        at = source.draw(1337, step, 128, BATCH)
        made.append([(source.tokens[source.starts[i] : source.ends[i]].tolist(),
                      int(source.responses[i] - source.starts[i] + 1)) for i in at])  # fmt: skip
    return made


def lora_tinygpt(ckpt: str, data_dir: str) -> dict[str, float]:
    import contextlib

    from tinygpt.train import batch, forward_backward
    from tinygpt.training.run import set_up
    from tinygpt.training.start import choose_compute, starting_point

    tokens = sum(len(ids) - 1 for examples in batches(ckpt, data_dir)[WARM:] for ids, _ in examples)
    with tempfile.TemporaryDirectory() as out, contextlib.ExitStack() as stack:
        config = lora_config(ckpt, out, data_dir)
        start = starting_point(config)
        run = set_up(stack, start, choose_compute(start.config, start.saved))
        for step in range(WARM + STEPS):
            if step == WARM:
                began = time.perf_counter()
            run.progress.step = step
            run.optimizer.set_learning_rate(config.learning_rate)
            loss, _ = forward_backward(run, *batch(run, step))
            run.optimizer.update()
        seconds = time.perf_counter() - began
    return {"rate": tokens / seconds, "loss": loss.item()}


def lora_peft(ckpt: str, data_dir: str) -> dict[str, float]:
    import torch
    from peft import LoraConfig, get_peft_model

    model = transformers_model(ckpt)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=16, target_modules=names, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-3)
    model.train()
    tokens = 0
    for step, examples in enumerate(batches(ckpt, data_dir)):
        if step == WARM:
            began, tokens = time.perf_counter(), 0
        width = max(len(ids) for ids, _ in examples)
        ids = torch.zeros((len(examples), width), dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, (example, prompt) in enumerate(examples):
            ids[row, : len(example)] = torch.tensor(example)
            labels[row, prompt : len(example)] = ids[row, prompt : len(example)]
            mask[row, : len(example)] = 1
            tokens += len(example) - 1
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"rate": tokens / (time.perf_counter() - began), "loss": loss.item()}


def transformers_model(ckpt: str) -> Any:
    """Convert the checkpoint to transformers' own class, without its files."""
    import transformers

    from tinygpt.checkpoint.store import load
    from tinygpt.interop.architectures import to_stock
    from tinygpt.options import GPTConfig

    checkpoint = load(ckpt)
    stock = to_stock(GPTConfig.from_dict(checkpoint.model_args), checkpoint.model)
    config = transformers.AutoConfig.for_model(**stock.config)
    model = getattr(transformers, stock.config["architectures"][0])(config)
    model.load_state_dict(stock.weights, strict=False)
    model.tie_weights()
    return model


def prompt_ids(ckpt: str) -> list[int]:
    from tinygpt.checkpoint.store import load
    from tinygpt.data.tokenizer import tokenizer_from_dict

    return tokenizer_from_dict(load(ckpt).tokenizer, ckpt).encode_prompt(PROMPT).tolist()


def greedy_tinygpt(ckpt: str, data_dir: str, dtype: str) -> dict[str, float]:
    import torch

    from tinygpt import device
    from tinygpt.checkpoint.store import load
    from tinygpt.generate import Sampling, generate

    ids = torch.tensor([prompt_ids(ckpt)])
    model = load(ckpt).for_inference(device.choose_for_inference("cpu", dtype))
    list(generate(model, ids, 3, Sampling(temperature=0)))
    began = time.perf_counter()
    count = len(list(generate(model, ids, NEW, Sampling(temperature=0))))
    return {"rate": count / (time.perf_counter() - began), "bytes": float(sum(w.nbytes for w in model.parameters()))}


def greedy_transformers(ckpt: str, data_dir: str) -> dict[str, float]:
    import torch

    model, ids = transformers_model(ckpt).eval(), torch.tensor([prompt_ids(ckpt)])
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(ids, max_new_tokens=3, **options)
        began = time.perf_counter()
        made = model.generate(ids, max_new_tokens=NEW, **options)
    return {"rate": (made.size(1) - ids.size(1)) / (time.perf_counter() - began)}


def bandwidth(ckpt: str, data_dir: str) -> dict[str, float]:
    """Measure the bytes per second at which a large float32 vector is read, with all threads."""
    import torch

    x = torch.ones(1 << 28)
    x.sum()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        x.sum()
        times.append(time.perf_counter() - began)
    return {"rate": x.nbytes / min(times)}


def importing(ckpt: str, data_dir: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "tinygpt", "import", "smollm2", f"--out_dir={out}"], check=True, capture_output=True
        )
        return {"seconds": time.perf_counter() - began}


def loading(ckpt: str, data_dir: str) -> dict[str, float]:
    from tinygpt.checkpoint.store import load
    from tinygpt.fast.model import FastGPT

    began = time.perf_counter()
    load(ckpt).build_model(FastGPT)
    return {"seconds": time.perf_counter() - began}


LLAMA = """
import json, sys, urllib.request
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.port, params.verbosity = 512, 1, 0, -1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[2])
server = xllamacpp.Server(params)
body = json.dumps({"prompt": sys.argv[3], "n_predict": 100, "temperature": 0, "ignore_eos": True}).encode()
request = urllib.request.Request(server.listening_address + "/completion", body, {"Content-Type": "application/json"})
answers = [json.load(urllib.request.urlopen(request)) for _ in range(4)]
print(json.dumps({"rate": max(answer["timings"]["predicted_per_second"] for answer in answers)}))
"""


MEASUREMENTS = {
    "LoRA, tinygpt": lora_tinygpt,
    "LoRA, PEFT": lora_peft,
    "greedy, tinygpt bfloat16": lambda *args: greedy_tinygpt(*args, "bfloat16"),
    "greedy, tinygpt float32": lambda *args: greedy_tinygpt(*args, "float32"),
    "greedy, transformers float32": greedy_transformers,
    "memory bandwidth": bandwidth,
    "import": importing,
    "load": loading,
}


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--ckpt", args.ckpt, "--data_dir", args.data_dir, "--only", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}:\n{done.stderr[-1500:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="out-smollm2", help="the imported model")
    parser.add_argument("--data_dir", default="data", help="folder with the prepared dataset transactions")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each row")
    parser.add_argument("--only", help="measure this row once, in this process, and print JSON")
    args = parser.parse_args()
    if args.only:
        found = MEASUREMENTS[args.only](args.ckpt, args.data_dir)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps(found | {"peak": peak}))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in MEASUREMENTS}
    for _ in range(args.rounds):
        for name, found in results.items():
            found.append(measure(name, args))
            print(f"{name}: {found[-1]}", file=sys.stderr)

    def median(name: str, key: str) -> float:
        return statistics.median(one[key] for one in results[name])

    print("| measured | tinygpt | compared with | ratio |\n|---|---|---|---|")
    ours, theirs = median("LoRA, tinygpt", "rate"), median("LoRA, PEFT", "rate")
    print(f"| LoRA, tokens per second | {ours:.0f} | PEFT: {theirs:.0f} | {ours / theirs:.2f} |")
    ours, theirs = (median(f"LoRA, {name}", "peak") / 1e9 for name in ("tinygpt", "PEFT"))
    print(f"| LoRA, peak memory | {ours:.2f} GB | PEFT: {theirs:.2f} GB | {ours / theirs:.2f} |")
    theirs = median("greedy, transformers float32", "rate")
    for dtype in ("bfloat16", "float32"):
        ours = median(f"greedy, tinygpt {dtype}", "rate")
        share = ours * median(f"greedy, tinygpt {dtype}", "bytes") / median("memory bandwidth", "rate")
        what = f"greedy decoding in {dtype}, tokens per second ({share:.0%} of the memory's bandwidth)"
        print(f"| {what} | {ours:.1f} | transformers, float32: {theirs:.1f} | {ours / theirs:.2f} |")
    for name in ("import", "load"):
        print(f"| {name}, seconds | {median(name, 'seconds'):.1f} | | |")
    if python := os.environ.get("TINYGPT_LLAMA_PYTHON"):
        llama(python, args.ckpt)


def llama(python: str, ckpt: str) -> None:
    """Print llama.cpp's rates on the same model, exported in several quantisations."""
    with tempfile.TemporaryDirectory() as folder:
        for quantisation in ("f16", "q8_0", "q4_0"):
            path = Path(folder) / f"{quantisation}.gguf"
            options = ["--format=gguf", f"--quantisation={quantisation}", f"--output={path}"]
            subprocess.run(
                [sys.executable, "-m", "tinygpt", "export", f"--ckpt={ckpt}", *options], check=True, capture_output=True
            )
            command = [python, "-c", LLAMA, str(path), str(os.cpu_count()), PROMPT]
            done = subprocess.run(command, capture_output=True, text=True)
            rates = [json.loads(line)["rate"] for line in done.stdout.splitlines() if line.startswith('{"rate"')]
            shown = f"{rates[0]:.0f}" if rates else f"failed: {done.stderr[-200:]}"
            print(f"| llama.cpp, {quantisation}, tokens per second | {shown} | | |")


if __name__ == "__main__":
    main()
