"""GGUF, the format of llama.cpp: read a model, write a model.

One file holds sizes, tokenizer and weights, often quantised: 32 values of a row share a scale, and each is stored in 4,
5 or 8 bits. Reading dequantises to float32. A file is input from a stranger, so an unknown key or tensor
that could change the model is refused by name.

llama.cpp rotates neighbouring channels (2i, 2i + 1) in the architectures llama and arcee, where transformers and this
package rotate (i, i + head_dim/2): the rows of queries and keys are reordered. Its gpt2 computes the tanh GELU.

Sources: the format's specification (ggml-org/ggml, docs/gguf.md), and the package gguf.

    pretrained = read_file(Path("model.gguf"))
    write_file(Path("model.gguf"), stock, tokenizer, "q8_0")
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tinygpt.adapt.formats.architectures import STOCK, Pretrained, Stock, StockClass
from tinygpt.adapt.formats.gguf_tokenizer import read_tokenizer, write_tokenizer
from tinygpt.base.errors import TinyGPTError, library
from tinygpt.base.files import replacing
from tinygpt.base.terminal import escaped, progress
from tinygpt.checkpoint.foreign import read_errors
from tinygpt.data.tokenizer import Tokenizer, from_json
from tinygpt.options import NEUTRAL, GPTConfig

# ---- architectures: keys of the header and names of the tensors ---------------------------------------------------

ACTIVATIONS = {  # of the class in transformers, which an architecture can be written from; llama.cpp has the first
    "gpt2": ("gelu_new", "gelu_pytorch_tanh", "gelu"),
    "llama": ("silu",),
    "qwen3": ("silu",),
    "arcee": ("relu2",),
}
PERMUTED = {"llama", "arcee"}
KEYS = {  # of the header, without the architecture: field of GPTConfig
    "block_count": "n_layer",
    "context_length": "block_size",
    "embedding_length": "n_embd",
    "feed_forward_length": "mlp_width",
    "attention.head_count": "n_head",
}
ROPE_KEYS = {"attention.head_count_kv": "n_kv_head", "attention.key_length": "head_dim", "rope.freq_base": "rope_theta"}
FLOATS = {"rope.freq_base", "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"}
DERIVED = {"vocab_size", "rope.dimension_count", "attention.value_length"}  # follow from the others
USUAL = {"attention.causal": (True,)}  # values of other keys that change nothing, if not NEUTRAL
IMPLIED = {  # keys of config.json that follow from tensors and tokenizer
    *("architectures", "model_type", "vocab_size", "tie_word_embeddings", "torch_dtype", "rope_parameters"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}


def _row(model_type: str) -> StockClass:
    return next(row for row in STOCK.values() if row.model_type == model_type)


def _keys(model_type: str) -> dict[str, str]:
    """Return the header's keys for sizes, without the architecture, and their names in config.json."""
    row = _row(model_type)
    epsilon = "attention.layer_norm_epsilon" if row.learned else "attention.layer_norm_rms_epsilon"
    keys = KEYS | {epsilon: "norm_eps"}
    keys |= {} if row.learned else ROPE_KEYS
    return {key: row.keys.get(field, field) for key, field in keys.items()}


def _names(model_type: str, layers: int) -> dict[str, str]:
    """Name the tensors in GGUF and, for each, in transformers; the embeddings come first."""
    gguf = library("gguf", "GGUF")
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == model_type)
    names = gguf.get_tensor_name_map(arch, layers)
    stems = [stem for stems in _row(model_type).layers.values() for stem in stems.split()]
    stems = [stem.replace(".N.", f".{n}.") for stem in stems for n in (range(layers) if ".N." in stem else [0])]
    return {names.get_name(stem) + end: stem + end for stem in stems for end in (".weight", ".bias")}


def _rearranged(array: np.ndarray, name: str, config: dict[str, Any], inverse: bool = False) -> np.ndarray:
    """Rearrange a tensor from the layout of the stock class to GGUF's; `inverse`: back."""
    model_type = config["model_type"]
    if _row(model_type).learned and array.ndim == 2 and ".h." in name:
        return array.T  # transformers' Conv1D holds (in, out)
    if model_type in PERMUTED and (".q_proj." in name or ".k_proj." in name):
        heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
        halves = (-1, 2) if inverse else (2, -1)  # the pairs of channels of a head: (i, i + half) or (2i, 2i + 1)
        return array.reshape(heads, *halves, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    return array


# ---- reading ------------------------------------------------------------------------------------------------------

ANOTHER = "import another model"


def read_file(path: Path) -> Pretrained:
    """Read a model, its tokenizer and its chat template.

    Errors: TinyGPTError if the file is not an intact GGUF file, for an unknown architecture, option or tensor, for a
    quantisation that gguf cannot read, and for a tokenizer that is not byte-level BPE.
    """
    with read_errors(path), np.errstate(all="ignore"):
        reader = _open(path)
        header = {key: field.contents() for key, field in reader.fields.items()}
        config = _config(path, header)
        text, eos, bos = read_tokenizer(path, header)
        from_json(text)  # checks it
        weights = _weights(path, reader.tensors, config)
    biased = [name for name in weights if name.endswith("_proj.bias")]
    biases = _row(config["model_type"]).biases
    tokens = header["tokenizer.ggml.tokens"]
    config |= {
        **{key: any(f"{part}." in name for name in biased) for part, key in biases.items()},
        "vocab_size": len(tokens),
        "eos_token_id": eos,
        "bos_token_id": bos,
        "tie_word_embeddings": "lm_head.weight" not in weights,
    }
    end = "" if eos is None else tokens[eos]
    return Pretrained(Stock(config, weights), text, end, header.get("tokenizer.chat_template", ""))


def _open(path: Path) -> Any:
    """Open a GGUFReader that refuses lengths beyond the end of the file, some of which take gguf's own very long."""

    class Reader(library("gguf", "GGUF").GGUFReader):  # type: ignore[misc]
        data: np.ndarray

        def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> np.ndarray:
            self.data = np.asarray(self.data)  # slices of a memmap take several times as long
            if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise TinyGPTError(f"{path}: is truncated, or its header is damaged", "download or export it again")
            return super()._get(int(offset), dtype, int(count), override_order)  # type: ignore[no-any-return]

    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise TinyGPTError(f"{path}: is not a GGUF file", "name a file that ends with .gguf")
    return Reader(path)


def _config(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    """Derive config.json from the header, without the size of the vocabulary. Errors: TinyGPTError."""
    model_type = header["general.architecture"]
    if model_type not in ACTIVATIONS:
        what = f"has the architecture {model_type!r}; tinygpt reads only {', '.join(ACTIVATIONS)}"
        raise TinyGPTError(f"{path}: {what}", ANOTHER)
    if (parts := header.get("split.count", 1)) > 1:
        raise TinyGPTError(f"{path}: is one of {parts} files of a model", "join them: llama-gguf-split --merge")
    prefix = f"{model_type}."
    sizes = {key.removeprefix(prefix): content for key, content in header.items() if key.startswith(prefix)}
    keys = _keys(model_type)
    row = _row(model_type)
    for key, content in sizes.items():
        if key not in {*keys, *DERIVED} and content not in USUAL.get(key, NEUTRAL):
            shown = escaped(f"{prefix}{key} = {str(content)[:40]}")[:100]
            raise TinyGPTError(f"{path}: has {shown}, which tinygpt does not support", ANOTHER)
    heads = sizes["attention.head_count"]
    width = sizes["embedding_length"]
    defaults = {"attention.head_count_kv": heads, "attention.key_length": width // heads, "rope.freq_base": 10000.0}
    config: dict[str, Any] = {"architectures": [row.name], "model_type": model_type}
    config[row.keys["activation"]] = ACTIVATIONS[model_type][0]
    for key, name in keys.items():
        size = sizes[key] if key in sizes else defaults[key]
        config[name] = float(str(np.float32(size))) if key in FLOATS else size  # 1e-05, not 9.999999747378752e-06
    if row.learned:
        return config
    for key in ("rope.dimension_count", "attention.value_length"):
        if (size := sizes.get(key, config["head_dim"])) != config["head_dim"]:
            what = f"{model_type}.{key} is {size}, but a head has {config['head_dim']} channels"
            raise TinyGPTError(f"{path}: {what}", ANOTHER)
    return config | {"rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]}}


def _weights(path: Path, tensors: list[Any], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Read the tensors as float32, under the names and in the layout of the stock class. Errors: TinyGPTError."""
    layers = config[_keys(config["model_type"])["block_count"]]
    names = _names(config["model_type"], min(layers, len(tensors)))  # a damaged header may name billions of layers
    weights = {}
    for tensor in progress(tensors, desc="reading", unit="tensor"):
        shown = escaped(tensor.name)[:60]
        if tensor.name not in names:
            reason = "a form of RoPE scaling" if shown.startswith("rope_") else "not a part of this architecture"
            raise TinyGPTError(f"{path}: has the tensor {shown}, {reason}", ANOTHER)
        try:
            array = library("gguf", "GGUF").dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            what = f"{shown} is quantised as {tensor.tensor_type.name}, which the package gguf cannot read"
            hint = "import a file in F16, Q8_0, Q4_0, Q5_1 or a K quantisation"
            raise TinyGPTError(f"{path}: {what}", hint) from None
        array = _rearranged(array, names[tensor.name], config, inverse=True)
        # a copy of the mapped file
        weights[names[tensor.name]] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    return weights


# ---- writing ------------------------------------------------------------------------------------------------------

EMBEDDINGS = {"wte", "embed_tokens", "lm_head"}
QUANTISATIONS = {  # types of the matrices, and of embedding and output; the others stay F32
    "f16": ("F16", "F16"),
    "q8_0": ("Q8_0", "Q8_0"),
    "q5_1": ("Q5_1", "Q8_0"),
    "q4_0": ("Q4_0", "Q8_0"),
}


def write_file(path: Path, stock: Stock, tokenizer: Tokenizer, quantisation: str = "q8_0") -> None:
    """Write a model and its tokenizer; the file appears in one step.

    quantisation: one of QUANTISATIONS, for the matrices. Embedding and output have at least 8 bits, as in
    llama.cpp's own files; norms, biases and learned positions are float32. llama.cpp computes GPT-2 with the tanh GELU:
    a model with the exact one changes its log probabilities by about 1e-3.

    Errors: TinyGPTError for an architecture, activation or tokenizer that llama.cpp lacks, and for quantised rows that
    are not multiples of 32.
    """
    gguf = library("gguf", "GGUF")
    stock = stock if quantisation == "f16" else _padded(stock)
    config = stock.config
    plan = _plan(stock, quantisation)
    model_type = config["model_type"]
    writer = gguf.GGUFWriter(None, model_type)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quantisation.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, name in _keys(model_type).items():
        (writer.add_float32 if key in FLOATS else writer.add_uint32)(f"{model_type}.{key}", config[name])
    writer.add_vocab_size(config["vocab_size"])
    if not _row(model_type).learned:
        writer.add_rope_dimension_count(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    write_tokenizer(writer, tokenizer, config["vocab_size"])

    for array, target, type_ in plan.values():
        shape = gguf.quant_shape_to_byte_shape(array.shape, type_)
        writer.add_tensor_info(target, shape, np.dtype(np.uint8), int(np.prod(shape)), type_)
    with replacing(path) as file:
        # so that `replacing` opens and closes
        writer.fout = [file]
        writer.state = gguf.gguf_writer.WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array, _, type_ in progress(plan.values(), desc="writing", unit="tensor"):
            writer.write_tensor_data(gguf.quantize(np.ascontiguousarray(array), type_))


def _unwritten(config: dict[str, Any], row: StockClass) -> list[str]:
    """List as `option=value`, under tinygpt's names, what a config.json has and GGUF cannot store."""
    written = {*_keys(row.model_type).values(), row.keys["activation"], *row.biases.values(), *IMPLIED}
    fields = {key: field for field, key in row.keys.items()}
    usual = vars(GPTConfig())
    return [
        f"{fields.get(key, key)}={value}"
        for key, value in {**config, **(config.get("rope_parameters") or {})}.items()
        if key not in written and value not in ([usual[fields[key]]] if key in fields else [*NEUTRAL, "default"])
    ]


def _padded(stock: Stock) -> Stock:
    """Widen the MLPs to a multiple of 32, the length of a quantised block, with channels whose weights are zero.

    Such a channel is zero after every activation, so no logit changes. GPT-2's class keeps its width.
    """
    row = _row(stock.config["model_type"])
    key = row.keys["mlp_width"]
    missing = 0 if row.learned else -stock.config[key] % 32
    if not missing:
        return stock
    weights = dict(stock.weights)
    for name, tensor in weights.items():
        if ".mlp.down_proj.weight" in name:
            weights[name] = F.pad(tensor, (0, missing))
        elif ".mlp." in name and ".down_proj." not in name:  # the first layer: (width, n_embd), biases (width,)
            weights[name] = torch.cat((tensor, tensor.new_zeros(missing, *tensor.shape[1:])))
    return Stock({**stock.config, key: stock.config[key] + missing}, weights)


def _plan(stock: Stock, quantisation: str) -> dict[str, tuple[np.ndarray, str, Any]]:
    """Return for each tensor its values in GGUF's layout, its name there and its type. Errors: TinyGPTError."""
    gguf = library("gguf", "GGUF")
    config = stock.config
    model_type = stock.config["model_type"]
    row = _row(model_type)
    problem = ""
    matrices, embeddings = QUANTISATIONS[quantisation]
    if model_type not in ACTIVATIONS:
        named = " with ".join(["the class of this model", *_unwritten(config, row)])
        problem = f"llama.cpp has no architecture for {config['architectures'][0]}, {named}"
    elif (activation := config[row.keys["activation"]]) not in ACTIVATIONS[model_type]:
        expected = ACTIVATIONS[model_type][0]
        problem = f"llama.cpp's architecture {model_type} has the activation {expected}, this model {activation}"
    elif lacking := _unwritten(config, row):
        problem = f"llama.cpp's architecture {model_type} lacks {' and '.join(lacking)}, which this model has"
    if problem:
        raise TinyGPTError(problem, "export with --format hf, or train with configs/shakespeare_char.yaml")
    names = {name: target for target, name in _names(model_type, config[_keys(model_type)["block_count"]]).items()}
    plan = {}
    for name, tensor in stock.weights.items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        array = _rearranged(tensor.numpy(), name, config)
        type_ = embeddings if name.split(".")[-2] in EMBEDDINGS else matrices
        if array.ndim == 1 or name == "transformer.wpe.weight":
            type_ = "F32"
        if type_.startswith("Q") and (columns := array.shape[-1]) % 32:
            option = "n_embd" if columns == config[row.keys["n_embd"]] else "mlp_width"
            raise TinyGPTError(
                f"{quantisation} stores rows in blocks of 32 values, and {option}={columns} is not a multiple of 32",
                f"export as f16, or train with {option}={columns + -columns % 32}",
            )
        plan[name] = (array, names[name], gguf.GGMLQuantizationType[type_])
    return plan
