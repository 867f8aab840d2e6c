"""What can be configured: one flat dataclass a command, under nanoGPT's own names.

    defaults  <  config files (YAML, or Python in nanoGPT's style)  <  --key=value

The text under a field is its help. `tinygpt/parse.py` makes a config out of files and flags.
"""

import dataclasses
from typing import Annotated, Any, Literal

import tyro
import yaml

Device = str
DATASET_NAME = r"\w[\w.-]{0,99}"  # a folder inside data/, and nowhere else
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclasses.dataclass
class PrepareConfig:
    """Turn text into token files: data/NAME/{train.bin, val.bin, meta.json}.

    Ready corpora: shakespeare_char (65 characters), shakespeare (the same text in GPT-2's BPE).
    Own text: tinygpt prepare mine --input notes.txt more/ '*.md'
    """

    name: Annotated[str, tyro.conf.Positional]
    """the dataset's name: a ready corpus, or any name together with --input"""
    input: tuple[str, ...] = ()
    """your own text: files, folders (every *.txt below them) or patterns, read in sorted order"""
    tokenizer: Literal["auto", "char", "gpt2"] = "auto"
    """char: one symbol a character; gpt2: GPT-2's byte-pair encoding; auto: char for own text"""
    val_fraction: float = 0.1
    """share of the text, at its end, that is kept for validation"""
    encoding: str = "utf-8"
    """how the input's bytes spell characters, for example cp1252 or utf-16"""
    source: str = ""
    """for the ready corpora: take the text from this path or URL (its checksum must still be right)"""
    data_dir: str = "data"
    """folder that holds the datasets"""


@dataclasses.dataclass
class TrainConfig:
    """Train a GPT on a prepared dataset and write OUT_DIR/{ckpt.pt, last.pt, metrics.jsonl, config.yaml}.

    tinygpt train configs/shakespeare_char.yaml --device=cpu --max_iters=500
    """

    config: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """config files (.yaml, or .py in nanoGPT's style), later ones win; presets are found by name anywhere"""

    out_dir: str = "out"
    """folder for checkpoints and metrics"""
    dataset: str = "openwebtext"
    """a prepared dataset: the folder DATA_DIR/DATASET"""
    data_dir: str = "data"
    """folder that holds the datasets"""
    init_from: str = "scratch"
    """scratch; resume: continue from OUT_DIR/last.pt; auto: resume if there is something to resume, else scratch;
    a checkpoint's path: start from its weights; gpt2, gpt2-medium, gpt2-large, gpt2-xl: through transformers"""
    eval_interval: int = 2000
    """iterations between evaluations of both splits"""
    eval_iters: int = 200
    """batches per evaluation and split; 0: the whole validation split, every token once"""
    eval_only: bool = False
    """evaluate once and stop"""
    log_interval: int = 1
    """iterations between lines in metrics.jsonl"""
    sample_interval: int = 0
    """iterations between short samples, taken at an evaluation; 0: never"""
    checkpoint_interval: int = 0
    """iterations between writes of last.pt; 0: at every evaluation"""
    always_save_checkpoint: bool = False
    """write ckpt.pt at every evaluation, not only at the best one (last.pt is always written)"""
    patience: int = 0
    """stop after this many evaluations in a row without a better validation loss; 0: never"""
    wandb_log: bool = False
    """also send the metrics to Weights & Biases (the only thing that ever leaves the machine)"""
    wandb_project: str = "tinygpt"
    """Weights & Biases project"""
    wandb_run_name: str = "run"
    """Weights & Biases run name"""

    batch_size: int = 12
    """sequences per micro-step"""
    block_size: int = 1024
    """context length in tokens"""
    gradient_accumulation_steps: int = 40
    """micro-steps per iteration, over all processes together"""

    n_layer: int = 12
    """decoder blocks"""
    n_head: int = 12
    """attention heads per block; divides n_embd"""
    n_embd: int = 768
    """width of the residual stream"""
    dropout: float = 0.0
    """share of activations dropped in training; 0 for pretraining, 0.1 and more for small data"""
    bias: bool = False
    """biases in linear layers and LayerNorm, as in GPT-2"""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """layernorm (Ba et al. 2016) or rmsnorm (Zhang & Sennrich 2019)"""
    position: Literal["learned", "rope"] = "learned"
    """learned position embeddings (GPT-2) or rotary ones (Su et al. 2021)"""
    activation: Literal["gelu", "relu2", "swiglu"] = "gelu"
    """of the MLP: gelu (GPT-2), relu2 (So et al. 2021) or swiglu (Shazeer 2020)"""
    qk_norm: bool = False
    """normalise queries and keys in each head (Henry et al. 2020)"""
    tie_weights: bool = True
    """one matrix for the token embedding and the output head (Press & Wolf 2017)"""
    zero_init: bool = False
    """start the blocks' output projections at zero, so that each block begins as the identity (Zhang et al. 2019)"""
    bigram_table: bool = False
    """also embed each pair of neighbouring tokens, in a table of vocabulary x vocabulary rows (small vocabularies)"""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw (Loshchilov & Hutter 2019), or muon (Jordan et al. 2024) for the blocks' matrices and adamw for the rest"""
    learning_rate: float = 6e-4
    """peak learning rate"""
    muon_learning_rate: float = 0.02
    """peak learning rate of the matrices under optimizer=muon"""
    max_iters: int = 600000
    """iterations (optimizer updates)"""
    weight_decay: float = 0.1
    """of matrices and embeddings; biases and norms are not decayed"""
    beta1: float = 0.9
    """AdamW's decay of the first moment"""
    beta2: float = 0.95
    """AdamW's decay of the second moment"""
    grad_clip: float = 1.0
    """largest norm of the whole gradient; 0: no clipping"""
    lr_schedule: Literal["cosine", "linear"] = "cosine"
    """the way from learning_rate to min_lr"""
    decay_lr: bool = True
    """warm up and decay the learning rate; False: constant"""
    warmup_iters: int = 2000
    """iterations of linear warm-up"""
    lr_decay_iters: int = 600000
    """iteration at which the learning rate has come down to min_lr; usually max_iters"""
    min_lr: float = 6e-5
    """the learning rate after the decay; usually learning_rate / 10"""

    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: Dtype = "auto"
    """of the matrix products; weights and optimizer stay in float32. auto: bfloat16 where the processor has it"""
    compile: Literal["auto", "True", "False"] = "auto"
    """torch.compile the model; auto: on a GPU only, since on a CPU compiling takes longer than it saves"""
    backend: str = "auto"
    """torch.distributed's backend under torchrun; auto: nccl on GPUs, gloo elsewhere"""
    seed: int = 1337
    """of the weights, the batches and dropout"""
    quiet: bool = False
    """no progress bar and no samples, only the evaluations: for logs"""


@dataclasses.dataclass
class SampleConfig:
    """Write text with a trained model.

    tinygpt sample --ckpt out/ckpt.pt --start "ROMEO:" --max_new_tokens 300
    """

    ckpt: str = "out/ckpt.pt"
    """a checkpoint, or the folder that holds ckpt.pt (nanoGPT's checkpoints are read too)"""
    start: str = "\n"
    """the prompt; FILE:prompt.txt reads it from a file"""
    num_samples: int = 1
    """how many samples of the prompt, made as one batch"""
    max_new_tokens: int = 500
    """tokens to add to the prompt"""
    temperature: float = 0.8
    """below 1 safer, above 1 wilder; 0 always takes the likeliest token"""
    top_k: int = 200
    """choose among the k likeliest tokens only; 0: all"""
    top_p: float = 1.0
    """choose among the fewest tokens whose probabilities reach p (Holtzman et al. 2020); 1: all"""
    stop: str = ""
    """end a sample where this text appears"""
    seed: int = 1337
    """the same seed gives the same text"""
    skip_unknown: bool = False
    """leave out prompt characters that the model does not know, instead of refusing them"""
    exact_window: bool = False
    """past the context length, recompute the whole window at every token, as nanoGPT does (slow)"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: Dtype = "auto"
    """of the matrix products; auto: float32 on a CPU, where one token at a time gains nothing from less"""
    json: bool = False
    """print one JSON object a sample, for programs"""
    data_dir: str = "data"
    """folder of the datasets: a nanoGPT checkpoint's tokenizer comes from the one its config names"""


@dataclasses.dataclass
class EvalConfig:
    """Measure a model on a whole validation split, beside what guessing by counts would reach.

    tinygpt eval --ckpt out/ckpt.pt
    """

    ckpt: str = "out/ckpt.pt"
    """a checkpoint, or the folder that holds ckpt.pt"""
    dataset: str = ""
    """a prepared dataset; empty: the one the model was trained on"""
    data_dir: str = "data"
    """folder that holds the datasets"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: Dtype = "auto"
    """of the matrix products"""
    json: bool = False
    """print one JSON object, for programs"""


@dataclasses.dataclass
class PlotConfig:
    """Draw the loss curves of one or more runs into a PNG.

    tinygpt plot out/ out-mine/ --output losses.png
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ("out",)
    """run folders"""
    output: str = ""
    """the picture; empty: loss.png in the first folder"""


@dataclasses.dataclass
class CheckConfig:
    """Say whether the files of a run or a dataset are whole, and what can still be used.

    tinygpt check out/ data/shakespeare_char
    tinygpt check --resume configs/shakespeare_char.yaml
    """

    folders: Annotated[tuple[str, ...], tyro.conf.Positional] = ("out",)
    """folders of runs or of datasets"""
    resume: str = ""
    """a config: train it for a moment, once undisturbed and once killed and resumed, and compare the weights"""
    iterations: int = 60
    """iterations of that short run"""
    data_dir: str = "data"
    """folder that holds the datasets"""


def to_yaml(config: Any) -> str:
    """The resolved config as YAML that `parse` reads back: what a run writes beside its checkpoints."""
    values = {key: value for key, value in dataclasses.asdict(config).items() if key != "config"}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
