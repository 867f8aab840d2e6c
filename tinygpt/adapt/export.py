"""`tinygpt export`: write a model in the format of another tool, or as a page.

tinygpt export out --format gguf
"""

import dataclasses
from pathlib import Path

from tinygpt.adapt.formats import gguf_file, huggingface, peft
from tinygpt.adapt.formats.architectures import Stock
from tinygpt.adapt.formats.conversion import from_stock, to_stock
from tinygpt.base import device
from tinygpt.base.configs import suggest
from tinygpt.base.configs.adapt import ExportConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import folder_lock, folder_of, require_writable
from tinygpt.checkpoint import store
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.examine.doctor.files import next_for_checkpoint
from tinygpt.examine.report.gather import complete
from tinygpt.examine.report.loaded_run import LoadedRun, one_thread_if_small
from tinygpt.examine.report.packed_models import live_model
from tinygpt.examine.report.page import destination, publish, templates
from tinygpt.training.losses import mean_loss

MEASURED = 1 << 15  # targets of the validation split on which quantisation is measured


def export(config: ExportConfig) -> None:
    """Write the model in the format that the command names, and print what opens it."""
    if config.format == "html":
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


def export_page(config: ExportConfig) -> None:
    """Write the page of a model alone. Errors: TinyGPTError for one that is too large or has a subword tokenizer."""
    templates()  # refuses early if Jinja2 is missing
    path = destination(config.output, folder_of(config.ckpt), "model.html")
    run = LoadedRun(config.ckpt, config)
    live_model(run)
    with one_thread_if_small(run.model):
        values = {"kind": "export", "title": config.title}
        publish(complete(run, [], values, opening=not run.answers), path)  # not text of the dataset


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
        print(f"\nnext: {next_for_checkpoint(merged, out, data_dir(config, merged.config, config.ckpt))}")


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
