"""What can be configured: one flat dataclass a command, under nanoGPT's own names.

    defaults  <  config files (YAML, or Python in nanoGPT's style)  <  --key=value

The text under a field is its help. `tinygpt/config/parse.py` makes a config out of files and flags.
"""

import dataclasses
from typing import Annotated, Any, Literal

import tyro

Device = str
DATASET_NAME = r"\w[\w.-]{0,99}"  # a folder inside data/, and nowhere else
STRINGS = tyro.constructors.PrimitiveConstructorSpec(  # of a plain `tuple`, since tuple[str, ...] costs 45 ms
    nargs="*",
    metavar="STR ...",
    instance_from_str=tuple,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=list,
)
PATHS = {  # keys whose value is a path, in which a leading ~ is expanded to the home folder
    *("out_dir", "data_dir", "init_from", "ckpt", "adapter", "input", "source", "output", "predict"),
    *("runs", "run", "folders", "resume", "file"),
}
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclasses.dataclass
class PrepareConfig:
    """Turn text into token files: data/NAME/{train.bin, val.bin, meta.json}.

    Ready corpora: shakespeare_char (65 characters), shakespeare (the same text in GPT-2's BPE).

    Ready tasks, of prompts and responses: transactions, headlines.

    Own text: tinygpt prepare mine --input notes.txt more/ '*.md'

    Own pairs: tinygpt prepare mine --input pairs.jsonl --format pairs --show 3
    """

    name: Annotated[str, tyro.conf.Positional]
    """the dataset's name: a ready corpus, or any name together with --input"""
    input: Annotated[tuple, STRINGS] = ()
    """your own text: files, folders (every *.txt below them) or patterns, read in sorted order"""
    tokenizer: Literal["auto", "char", "gpt2"] = "auto"
    """char: one symbol a character; gpt2: GPT-2's byte-pair encoding; auto: char for own text"""
    val_fraction: float = 0.1
    """share of the text, at its end, that is kept for validation; of pairs, by example"""
    format: Literal["text", "pairs"] = "text"
    """text: one long text; pairs: a prompt and a response a line, as JSON Lines or CSV (by the file's name)"""
    prompt_field: str = "prompt"
    """pairs: the key or column of the prompt"""
    response_field: str = "response"
    """pairs: the key or column of the response"""
    test_fraction: float = 0.1
    """pairs: share of the examples that is kept for a last test"""
    skip_bad: bool = False
    """pairs: leave out lines that are not pairs, instead of stopping"""
    show: int = 0
    """pairs: print so many examples, with the characters that carry loss marked"""
    encoding: str = "utf-8"
    """how the input's bytes spell characters, for example cp1252 or utf-16"""
    source: str = ""
    """for the ready corpora: take the text from this path or URL (its checksum must still be right)"""
    data_dir: str = "data"
    """folder that holds the datasets"""


def prepare_options(config: PrepareConfig) -> dict[str, Any]:
    """What a dataset was made with, for meta.json: the values that are not defaults, so that messages can say how to
    make it again."""
    apart = ("name", "source", "show", "data_dir")  # where it comes from and goes to, and what is shown
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {key: v for key, v in values.items() if key not in apart and v != getattr(PrepareConfig, key)}


@dataclasses.dataclass
class TrainConfig:
    """Train a GPT on a prepared dataset and write OUT_DIR/{ckpt.pt, last.pt, metrics.jsonl, config.yaml}.

    tinygpt train configs/shakespeare_char.yaml --device=cpu --max_iters=500
    """

    config: Annotated[tuple, STRINGS, tyro.conf.Positional] = ()
    """config files (.yaml, or .py in nanoGPT's style), later ones win; presets are found by name anywhere"""

    out_dir: str = "out"
    """folder for checkpoints and metrics"""
    dataset: str = "openwebtext"
    """a prepared dataset: the folder DATA_DIR/DATASET"""
    data_dir: str = "data"
    """folder that holds the datasets"""
    init_from: str = "scratch"
    """scratch; resume: continue the run in OUT_DIR from its last.pt, with its settings; auto: resume if there is a
    last.pt, else scratch; a checkpoint's path: start from its weights; gpt2, gpt2-medium, gpt2-large, gpt2-xl: through
    transformers"""
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
    token_shift: bool = False
    """half of what attention and the MLP read comes from the position before"""

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
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """warm-up, then a cosine or linear decay from learning_rate to min_lr; constant: learning_rate throughout"""
    decay_lr: bool = True
    """nanoGPT's key: False means lr_schedule=constant"""
    warmup_iters: int = 2000
    """iterations of linear warm-up"""
    lr_decay_iters: int = 0
    """iteration at which the decay reaches min_lr; 0: max_iters, also when a resumed run is given a larger one"""
    min_lr: float = 6e-5
    """the learning rate after the decay; usually learning_rate / 10"""

    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: Dtype = "auto"
    """of the matrix products; weights and optimizer stay in float32. auto: bfloat16 where the processor has it"""
    compile: Literal["auto", "True", "False"] = "auto"
    """torch.compile the model; auto: on a GPU only, since on a CPU compiling takes longer than it saves"""
    fast: Literal["auto", "True", "False"] = "auto"
    """compute with tinygpt/fast, which is faster on a CPU, instead of plain PyTorch; auto: on a CPU"""
    backend: str = "auto"
    """torch.distributed's backend under torchrun; auto: nccl on GPUs, gloo elsewhere"""
    lora_rank: int = 0
    """with a checkpoint to start from: train adapters of this rank beside frozen weights (Hu et al. 2021); 0: all
    weights"""
    lora_alpha: float = 16.0
    """adapters count lora_alpha / lora_rank times"""
    lora_dropout: float = 0.0
    """share of an adapter's inputs dropped in training"""
    lora_targets: str = "c_attn,c_proj,c_fc"
    """the linear layers that get an adapter, in every block"""
    replay: float = 0.0
    """with a checkpoint to start from: share of all rows that is taken from the base model's own data, against
    forgetting"""
    base_dataset: str = ""
    """the base model's own dataset; empty: the one that its checkpoint names"""
    seed: int = 1337
    """of the weights, the batches and dropout"""
    quiet: bool = False
    """no progress bar and no samples, only the evaluations: for logs"""


@dataclasses.dataclass
class FinetuneConfig(TrainConfig):
    """Make a trained model behave differently with a few thousand examples; write OUT_DIR/{ckpt.pt, last.pt, ...}.

    tinygpt finetune configs/finetune_transactions.yaml --ckpt out-fast/ckpt.pt

    tinygpt finetune configs/finetune_transactions_lora.yaml --ckpt out-fast/ckpt.pt
    """

    ckpt: str = "out/ckpt.pt"
    """the base model: a checkpoint, or the folder that holds ckpt.pt"""
    out_dir: str = "out-finetune"
    """folder for checkpoints and metrics"""
    dataset: str = "transactions"
    """a prepared dataset, of prompts and responses or plain text"""
    batch_size: int = 32
    """sequences per micro-step"""
    gradient_accumulation_steps: int = 1
    """micro-steps per iteration, over all processes together"""
    learning_rate: float = 1e-3
    """peak learning rate"""
    min_lr: float = 0.0
    """the learning rate after the decay"""
    lr_schedule: Literal["cosine", "linear", "constant"] = "linear"
    """warm-up, then a cosine or linear decay from learning_rate to min_lr; constant: learning_rate throughout"""
    warmup_iters: int = 20
    """iterations of linear warm-up"""
    max_iters: int = 1000
    """iterations (optimizer updates)"""
    eval_interval: int = 100
    """iterations between evaluations"""
    eval_iters: int = 0
    """batches per evaluation and split; 0: the whole validation split"""
    patience: int = 5
    """stop after this many evaluations in a row without a better validation loss; 0: never"""


@dataclasses.dataclass
class MergeConfig:
    """Make one ordinary checkpoint out of a base model and an adapter.

    tinygpt merge --ckpt out-fast/ckpt.pt --adapter out-finetune-lora/adapter.pt --out_dir out-merged
    """

    ckpt: str = "out/ckpt.pt"
    """the base model: a checkpoint, or the folder that holds ckpt.pt"""
    adapter: str = "out-finetune-lora/adapter.pt"
    """what a LoRA run wrote"""
    out_dir: str = "out-merged"
    """folder for ckpt.pt"""


@dataclasses.dataclass
class SampleConfig:
    """Write text with a trained model.

    tinygpt sample --ckpt out/ckpt.pt --start "ROMEO:" --max_new_tokens 300
    """

    ckpt: str = "out/ckpt.pt"
    """a checkpoint, or the folder that holds ckpt.pt (nanoGPT's checkpoints are read too)"""
    adapter: str = ""
    """an adapter.pt, or its folder, to put beside that checkpoint"""
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
    plain: bool = False
    """continue the prompt as text, also with a model that was fine-tuned to answer prompts"""
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
    fast: Literal["auto", "True", "False"] = "auto"
    """compute with tinygpt/fast, which is faster on a CPU, instead of plain PyTorch; auto: on a CPU"""
    json: bool = False
    """print one JSON object a sample, for programs"""
    data_dir: str = "data"
    """folder of the datasets: a nanoGPT checkpoint's tokenizer comes from the one its config names"""


@dataclasses.dataclass
class EvalConfig:
    """Measure a model on a whole validation split, beside what guessing by counts would reach.

    tinygpt eval --ckpt out/ckpt.pt

    tinygpt eval --ckpt out-finetune/ckpt.pt --task transactions
    """

    ckpt: str = "out/ckpt.pt"
    """a checkpoint, or the folder that holds ckpt.pt"""
    adapter: str = ""
    """an adapter.pt, or its folder, to put beside that checkpoint"""
    dataset: str = ""
    """a prepared dataset; empty: the one the model was trained on"""
    task: str = ""
    """a prepared labelled task: accuracy, F1, confusions and calibration, beside simpler ways to the same labels"""
    split: Literal["test", "val"] = "test"
    """of a task: the split to measure on"""
    predict: str = ""
    """of a task: label the lines of this file instead, as CSV with the probability of each label"""
    output: str = ""
    """of a task: the confusion matrix as PNG, or the CSV of --predict; empty: confusion.png beside the checkpoint, and
    CSV to the terminal"""
    data_dir: str = "data"
    """folder that holds the datasets"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: Dtype = "auto"
    """of the matrix products"""
    fast: Literal["auto", "True", "False"] = "auto"
    """compute with tinygpt/fast, which is faster on a CPU, instead of plain PyTorch; auto: on a CPU"""
    json: bool = False
    """print one JSON object, for programs"""


@dataclasses.dataclass
class PlotConfig:
    """Draw the loss curves of one or more runs into a PNG.

    tinygpt plot out/ out-mine/ --output losses.png
    """

    runs: Annotated[tuple, STRINGS, tyro.conf.Positional] = ("out",)
    """run folders"""
    output: str = ""
    """the picture; empty: loss.png in the first folder"""


@dataclasses.dataclass
class DoctorConfig:
    """Say how a run went, in plain words: still improving, finished, overfitting, diverged, too little data.

    tinygpt doctor out/
    """

    run: Annotated[str, tyro.conf.Positional] = "out"
    """the run's folder"""
    data_dir: str = "data"
    """folder that holds the datasets"""


@dataclasses.dataclass
class ReportConfig:
    """Make one HTML file of a run, in which its model answers: no server, no network.

    tinygpt report out/ -o report.html

    tinygpt report out/ out-mine/ for the curves of several runs over each other
    """

    runs: Annotated[tuple, STRINGS, tyro.conf.Positional] = ("out",)
    """run folders: the report is about the first, the others are in its curves"""
    output: str = ""
    """the page, also -o; empty: report.html in the first folder"""
    data_dir: str = "data"
    """folder that holds the datasets"""


@dataclasses.dataclass
class ExportConfig:
    """Make one HTML file of a model, to hand to someone who has no Python.

    tinygpt export --ckpt out/ckpt.pt --format html
    """

    ckpt: str = "out/ckpt.pt"
    """a checkpoint, or the folder that holds ckpt.pt"""
    adapter: str = ""
    """an adapter.pt, or its folder, to put beside that checkpoint"""
    format: Literal["html"] = "html"
    """html: a page in which the model runs"""
    output: str = ""
    """the page, also -o; empty: model.html beside the checkpoint"""
    data_dir: str = "data"
    """folder of the datasets: a nanoGPT checkpoint's tokenizer comes from the one its config names"""


@dataclasses.dataclass
class CheckConfig:
    """Say whether the files of a run or a dataset are whole, and what can still be used.

    tinygpt check out/ data/shakespeare_char

    tinygpt check --resume configs/shakespeare_char.yaml
    """

    folders: Annotated[tuple, STRINGS, tyro.conf.Positional] = ("out",)
    """folders of runs or of datasets"""
    resume: str = ""
    """a config: train it for a moment, once undisturbed and once killed and resumed, and compare the weights"""
    ckpt: str = ""
    """base model for --resume with a fine-tuning config; empty: the one that the config names"""
    iterations: int = 60
    """iterations of that short run"""
    data_dir: str = "data"
    """folder that holds the datasets"""


@dataclasses.dataclass
class ExerciseConfig:
    """Write a GPT yourself, in ten steps, each with checks that say what is wrong and where to look.

    tinygpt exercise list

    tinygpt exercise start 4

    tinygpt exercise check 4 my_gpt.py
    """

    action: Annotated[Literal["list", "start", "check"], tyro.conf.Positional] = "list"
    """list: the ten steps; start: put a step's template into the file; check: say whether what you wrote is right"""
    step: Annotated[int, tyro.conf.Positional] = 0
    """which step"""
    file: Annotated[str, tyro.conf.Positional] = "my_gpt.py"
    """the file that you write in"""
