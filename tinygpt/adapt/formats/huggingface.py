"""Hugging Face folders, in and out: config.json, model.safetensors, tokenizer.json and the files around them.

Everything that is read may come from a stranger, and code in the folder is never run. A folder is written file by
file, config.json last, so that no library takes an incomplete folder for a model. The key "tinygpt" in config.json
marks a folder that may be replaced.

    pretrained = read_folder(Path("SmolLM2-135M-Instruct"))
    write_folder(Path("out-hf"), checkpoint, tokenizer)
"""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from tinygpt.adapt.formats.architectures import Pretrained, Stock
from tinygpt.adapt.formats.conversion import to_stock
from tinygpt.adapt.formats.tokenizers import tokenizer_files
from tinygpt.base import __version__
from tinygpt.base.configs import suggest
from tinygpt.base.configs.core import SampleConfig
from tinygpt.base.errors import TinyGPTError, library
from tinygpt.base.files import read_text, remove, replacing, target_of, without_folders
from tinygpt.checkpoint.foreign import AGAIN, SAFETENSORS, WEIGHTS, read_errors, read_json, read_weights, write_tensors
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.data.tokenizer import Tokenizer, from_json, lone_surrogate

TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
SETTINGS = "config.json", "tokenizer_config.json", "generation_config.json"
WRITTEN = {*SETTINGS, TOKENIZER, TEMPLATE, WEIGHTS[0], "README.md"}


def read_folder(path: Path) -> Pretrained:
    """Read a model and its tokenizer from a Hugging Face folder; the weights become float32.

    Errors: TinyGPTError for a file that is missing or damaged, and for a model that tinygpt's GPT cannot express.
    """
    config = read_json(path / "config.json", "give a folder with config.json and model.safetensors")
    text = read_text(path / TOKENIZER, "save the model's fast tokenizer there: AutoTokenizer...save_pretrained(FOLDER)")
    settings, generation = (read_json(path / name) if (path / name).exists() else {} for name in SETTINGS[1:])
    with read_errors(path / TOKENIZER):
        eos = _eos(from_json(text), settings, generation, config)
    with read_errors(path):
        return Pretrained(Stock(config, read_weights(path)), text, eos, _chat_template(path, settings))


def _eos(tokenizer: Any, *settings: dict[str, Any]) -> str:
    """Find the token that ends a text, in the first settings that name it, as a string, an id, or a list of ids."""
    for values in settings:
        for entry in (values.get("eos_token"), values.get("eos_token_id")):
            token = entry.get("content") if isinstance(entry, dict) else entry
            token = token[0] if isinstance(token, list) and token else token
            if isinstance(token, int) and 0 <= token < tokenizer.get_vocab_size():  # -1: the model has none
                token = tokenizer.id_to_token(token)
            if isinstance(token, str) and tokenizer.token_to_id(token) is not None:
                return token
    return ""


def _chat_template(path: Path, settings: dict[str, Any]) -> str:
    """Read the chat template from its own file, as transformers 5 writes it, or from tokenizer_config.json."""
    if (path / TEMPLATE).exists():
        return read_text(path / TEMPLATE, AGAIN)
    template = settings.get("chat_template")
    if isinstance(template, list):  # several templates with names
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) and not lone_surrogate(template) else ""


def write_folder(out: Path, checkpoint: Checkpoint, tokenizer: Tokenizer, note: str = "", beside: str = "") -> None:
    """Write a model as a folder that transformers, and every tool built on it, opens without remote code.

    note: a sentence for the model card. beside: a subfolder that may exist.
    Errors: TinyGPTError for an option that no class of transformers has, and for a folder that contains other files.
    """
    library(*SAFETENSORS)  # refuse before any work
    model = checkpoint.build_model()
    stock = to_stock(model.config, model.state_dict())
    files = tokenizer_files(tokenizer, model.config.block_size)
    eos = json.loads(files["tokenizer_config.json"]).get("eos_token")
    eos = None if eos is None else from_json(files[TOKENIZER]).token_to_id(eos)
    require_own(out, {*WRITTEN, beside})
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", TEMPLATE):  # of an earlier export
        remove(out / name)
    write_tensors(out / WEIGHTS[0], stock.weights)
    for name, text in files.items():
        write_file(out / name, text)
    choice = {"do_sample": True, "temperature": SampleConfig.temperature, "top_k": SampleConfig.top_k}
    ends = {"eos_token_id": eos, "pad_token_id": eos}
    write_file(out / "generation_config.json", choice | ends)
    write_file(out / "README.md", model_card(out.name, checkpoint, TEMPLATE in files, note))
    write_file(out / "config.json", stock.config | ends | {"tinygpt": __version__})


def require_own(out: Path, names: set[str]) -> None:
    """Check that a folder contains at most an earlier export, which may be replaced. Errors: TinyGPTError.

    names: of its files. Temporary files of an export that was killed are accepted as well.
    """
    hint = "choose another folder: -o FOLDER"
    if out.exists() and not out.is_dir():
        raise TinyGPTError(f"{out}: is not a folder", hint)
    others = sorted({target_of(path.name) for path in out.iterdir()} - names) if out.exists() else []
    if others:
        raise TinyGPTError(f"{out}: holds other files ({others[0]}), which tinygpt would not replace", hint)
    if (out / "config.json").exists() and "tinygpt" not in read_json(out / "config.json", hint):
        raise TinyGPTError(f"{out}: holds a model that tinygpt did not export", hint)


def write_file(path: Path, content: str | dict[str, Any]) -> None:
    """Write a text, or values as JSON."""
    with replacing(path) as file:
        file.write((content if isinstance(content, str) else json.dumps(content, indent=2) + "\n").encode())


USE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{folder}"  # the path of this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
{prompt}
output = model.generate(**inputs, max_new_tokens={longest}{greedy})
print(tokenizer.decode(output[0, inputs["input_ids"].size(1) :], skip_special_tokens=True))
"""
CHAT = """\
messages = [{"role": "user", "content": "a prompt"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
PLAIN = 'inputs = tokenizer("the start of a text", return_tensors="pt")'


def model_card(name: str, checkpoint: Checkpoint, answers: bool, note: str) -> str:
    """Write the README.md of an exported model: its data, its loss, how to use it, and how to reproduce it."""
    config = without_folders({key: value for key, value in checkpoint.config.items() if key != "config"})
    loss = checkpoint.best_val_loss
    origin = f"from iteration {checkpoint.step:,} of training"
    if not checkpoint.step and config.get("init_from"):
        origin = f"imported from {Path(str(config['init_from'])).name} and not trained further"
    facts = [
        f"Exported with tinygpt {__version__}, {origin}.",
        *([f"Data: `{config['dataset']}`."] if config.get("dataset") else []),
        *([f"Best validation loss: {loss:.4f} nats per token."] if math.isfinite(loss) else []),
        *([note] if note else []),
    ]
    longest = min(100, checkpoint.model_args["block_size"] // 2)  # leaves half of the context to the prompt
    prompt, greedy = (CHAT, ", do_sample=False") if answers else (PLAIN, "")
    use = USE.format(folder=name, prompt=prompt, greedy=greedy, longest=longest)
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---",
        f"# {name}",
        "\n".join(f"- {fact}" for fact in facts),
        "Licence: none is stated here. Before publishing, choose one that the data and the base model allow.",
        f"## Use\n\n```python\n{use}```",
    ]
    if config.get("dataset"):
        command = suggest.command(suggest.training_command(config), "config.yaml")
        steps = f"Save this as config.yaml, prepare the data, and run `{command}`."
        settings = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        parts.append(f"## Reproduce\n\n{steps}\n\n```yaml\n{settings}```")
    return "\n\n".join(parts) + "\n"
